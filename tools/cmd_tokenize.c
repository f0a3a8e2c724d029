/* cmd_tokenize.c - evenflow tokenize, detokenize, render: a model's text side, without an engine. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/chat.h"
#include "engine/tok.h"
#include "engine/unicode.h"
#include "ipc/clock.h"
#include "stages/gguf.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/vocab.h"

#define TEXT_BYTES_MAX (16u << 20)                  /* of one text as it comes in */
#define TEXT_ROOM      (3 * (size_t)TEXT_BYTES_MAX) /* repaired, it may be longer */
#define RENDERED_MAX   (2 * (size_t)TEXT_BYTES_MAX)

struct values {
    bool jsonl, special;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec tokenize_specs[] = {
    {"jsonl", NULL, 0, OPTION_FLAG, AT(jsonl), NULL, 0, 0, "",
     "One JSON string per line in, one JSON array of ids per line out (otherwise: all of the input is one text)"},
    {"special", NULL, 0, OPTION_FLAG, AT(special), NULL, 0, 0, "", "Special tokens in the text become control tokens"},
};
static const struct option_table tokenize_table = {.specs = tokenize_specs, .count = ARRAY_COUNT(tokenize_specs)};

static const struct option_spec detokenize_specs[] = {
    {"jsonl", NULL, 0, OPTION_FLAG, AT(jsonl), NULL, 0, 0, "",
     "One JSON array of ids per line in, one JSON string per line out (otherwise: ids separated by blanks)"},
    {"special", NULL, 0, OPTION_FLAG, AT(special), NULL, 0, 0, "", "Control tokens become their names"},
};
static const struct option_table detokenize_table = {.specs = detokenize_specs, .count = ARRAY_COUNT(detokenize_specs)};

struct render_values {
    bool jsonl;
    char chat_template[OPTION_TEXT_MAX];
};

static const struct option_spec render_specs[] = {
    {"jsonl", NULL, 0, OPTION_FLAG, offsetof(struct render_values, jsonl), NULL, 0, 0, "",
     "One chat request body per line in, the prompt's text as a JSON string per line out (the only form there is)"},
    {"chat-template", NULL, 0, OPTION_TEXT, offsetof(struct render_values, chat_template), NULL, 0, 0, "FILE",
     "Jinja template in place of the model's own"},
};
static const struct option_table render_table = {.specs = render_specs, .count = ARRAY_COUNT(render_specs)};

struct vocabulary {
    struct tok tok;
    void *blob;
};

static int open_vocabulary(struct vocabulary *vocabulary, const char *path, const char *template_path, struct err *err)
{
    struct gguf *gguf;
    size_t bytes;
    int ret = gguf_open(&gguf, path, err);
    if (ret != 0)
        return ret;
    ret = vocab_from_gguf(gguf, template_path, &vocabulary->blob, &bytes, err);
    gguf_close(gguf);
    return ret ? ret : tok_attach(&vocabulary->tok, vocabulary->blob, bytes, 0, err);
}

/* All of standard input. NULL when it is larger than TEXT_BYTES_MAX. */
static char *read_all(size_t *size)
{
    size_t room = 1 << 16;
    char *text = malloc(room);
    *size = 0;
    for (size_t got; (got = fread(text + *size, 1, room - *size, stdin)) > 0;) {
        *size += got;
        if (*size > TEXT_BYTES_MAX) {
            free(text);
            return NULL;
        }
        if (*size == room) {
            char *larger = realloc(text, room *= 2);
            check(larger != NULL);
            text = larger;
        }
    }
    return text;
}

/* The code of a \\uXXXX escape at text, -1 when there is none. */
static int escape_at(const char *text)
{
    unsigned code;
    if (text[0] != '\\' || text[1] != 'u' || strspn(text + 2, "0123456789abcdefABCDEF") < 4)
        return -1;
    char digits[5] = {text[2], text[3], text[4], text[5], '\0'};
    return sscanf(digits, "%x", &code) == 1 ? (int)code : -1;
}

/* Halves of surrogate pairs that stand alone are no characters, and jansson refuses them: they become U+FFFD, like bytes that
 * are no UTF-8. */
static void replace_lone_surrogates(char *line)
{
    for (char *at = line; *at != '\0';) {
        int code = escape_at(at);
        bool is_high = code >= 0xd800 && code <= 0xdbff, is_low = code >= 0xdc00 && code <= 0xdfff;
        int next = is_high ? escape_at(at + 6) : -1;
        if (is_high && next >= 0xdc00 && next <= 0xdfff) {
            at += 12;
        } else if (is_high || is_low) {
            memcpy(at + 2, "fffd", 4);
            at += 6;
        } else {
            at += at[0] == '\\' && at[1] != '\0' ? 2 : 1;
        }
    }
}

/* A line of JSON as it can be parsed: text in it that is no UTF-8 is repaired. The caller frees the value. */
static json_t *load_line(const char *line, size_t size, json_error_t *problem)
{
    char *repaired = base_alloc(3 * size + 1);
    size_t repaired_size = unicode_repair((uint8_t *)repaired, (const uint8_t *)line, size);
    replace_lone_surrogates(repaired);
    json_t *value = json_loadb(repaired, repaired_size, JSON_DECODE_ANY | JSON_ALLOW_NUL, problem);
    free(repaired);
    return value;
}

static void print_ids(const uint32_t *ids, uint32_t count)
{
    putchar('[');
    for (uint32_t i = 0; i < count; i++)
        printf("%s%u", i ? "," : "", ids[i]);
    puts("]");
}

/* Scratch for encoding grows with the text, so it is taken for each text anew. */
static int tokenize_text(const struct tok *vocabulary, const char *text, size_t size, bool special, struct err *err)
{
    struct tok tok;
    int ret = tok_attach(&tok, vocabulary->blob, tok_blob_bytes(vocabulary), size, err);
    if (ret != 0)
        return ret;
    size_t room = 2 * size + 2; /* every byte a token, the begin token, and for SPM spaces in front */
    uint32_t *ids = base_alloc(room * sizeof(*ids));
    const struct tok_range all = {0, size};
    uint32_t count = tok_encode(&tok, text, size, &all, special ? 1 : 0, ids, (uint32_t)room);
    print_ids(ids, count);
    free(ids);
    tok_detach(&tok);
    return 0;
}

/* Bytes of a regular file on standard input; 0 when it is none. */
static uint64_t input_bytes(void)
{
    struct stat stat;
    return fstat(STDIN_FILENO, &stat) == 0 && S_ISREG(stat.st_mode) ? (uint64_t)stat.st_size : 0;
}

/* How far it is in the input is shown where the output does not go to the same terminal. */
static int for_each_line(const char *command,
                         int (*work)(const struct tok *tok, json_t *value, bool special, struct err *err),
                         const struct tok *tok, bool special)
{
    char *line = NULL;
    size_t room = 0, number = 0;
    uint64_t bytes = 0;
    int status = 0;
    struct progress progress;
    progress_begin(&progress, command, input_bytes(), "lines/s");
    if (isatty(STDOUT_FILENO))
        progress.next_ns = UINT64_MAX;
    for (ssize_t size; status == 0 && (size = getline(&line, &room, stdin)) > 0; bytes += (uint64_t)size) {
        progress_show(&progress, bytes, number);
        json_error_t problem;
        json_t *value = load_line(line, (size_t)size, &problem);
        struct err err = {0};
        number++;
        if (value == NULL || work(tok, value, special, &err) != 0) {
            progress_end(&progress);
            fprintf(stderr, "evenflow %s: line %zu: %s\n", command, number, value == NULL ? problem.text : err.text);
            status = 1;
        }
        json_decref(value);
    }
    progress_end(&progress);
    free(line);
    return status;
}

static int tokenize_line(const struct tok *tok, json_t *value, bool special, struct err *err)
{
    if (!json_is_string(value) || json_string_length(value) > TEXT_ROOM)
        return err_set(err, -EINVAL, "must be a JSON string, 16 MiB at most");
    return tokenize_text(tok, json_string_value(value), json_string_length(value), special, err);
}

static int run_tokenize(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    const struct values *values = pointer;
    struct vocabulary vocabulary;
    struct err err;
    if (open_vocabulary(&vocabulary, positional[0], NULL, &err) != 0)
        return command_fail(1, "tokenize", err.text);
    if (values->jsonl)
        return for_each_line("tokenize", tokenize_line, &vocabulary.tok, values->special);
    size_t size;
    char *text = read_all(&size);
    if (text == NULL)
        return command_fail(1, "tokenize", "the text is longer than 16 MiB");
    char *repaired = base_alloc(3 * size + 1);
    size = unicode_repair((uint8_t *)repaired, (const uint8_t *)text, size);
    int ret = tokenize_text(&vocabulary.tok, repaired, size, values->special, &err);
    free(repaired);
    free(text);
    return ret != 0 ? command_fail(1, "tokenize", err.text) : 0;
}

/* Ids to text; control tokens by name where asked for. The caller frees it. */
static char *detokenize(const struct tok *tok, json_t *ids, bool special, size_t *size)
{
    char *text = base_alloc(json_array_size(ids) * 3 * (TOK_PIECE_MAX + 4) + 4);
    struct tok_decoder decoder = {.is_text_start = true};
    size_t i;
    json_t *id;
    *size = 0;
    json_array_foreach(ids, i, id) {
        json_int_t number = json_is_integer(id) ? json_integer_value(id) : -1;
        if (number < 0 || number >= tok_vocab_size(tok)) {
            free(text);
            return NULL;
        }
        if (special && tok_is_control(tok, (uint32_t)number)) {
            *size += tok_decoder_end(&decoder, text + *size);
            *size += tok_piece(tok, (uint32_t)number, (uint8_t *)text + *size);
        } else {
            *size += tok_decoder_push(&decoder, tok, (uint32_t)number, text + *size);
        }
    }
    *size += tok_decoder_end(&decoder, text + *size);
    return text;
}

static int detokenize_line(const struct tok *tok, json_t *value, bool special, struct err *err)
{
    size_t size;
    char *text = json_is_array(value) ? detokenize(tok, value, special, &size) : NULL;
    if (text == NULL)
        return err_set(err, -EINVAL, "must be a JSON array of ids from 0 to %u", tok_vocab_size(tok) - 1);
    json_t *string = json_stringn(text, size);
    json_dumpf(string, stdout, JSON_ENCODE_ANY);
    putchar('\n');
    json_decref(string);
    free(text);
    return 0;
}

static int run_detokenize(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    const struct values *values = pointer;
    struct vocabulary vocabulary;
    struct err err;
    if (open_vocabulary(&vocabulary, positional[0], NULL, &err) != 0)
        return command_fail(1, "detokenize", err.text);
    if (values->jsonl)
        return for_each_line("detokenize", detokenize_line, &vocabulary.tok, values->special);
    json_t *ids = json_array();
    long long id;
    while (scanf("%lld", &id) == 1)
        json_array_append_new(ids, json_integer(id));
    size_t size;
    char *text = detokenize(&vocabulary.tok, ids, values->special, &size);
    if (text == NULL || !feof(stdin))
        return command_fail(1, "detokenize", "the input must be ids of the vocabulary, separated by blanks");
    fwrite(text, 1, size, stdout);
    free(text);
    json_decref(ids);
    return 0;
}

static struct chat_template render_template;

static int render_line(const struct tok *tok, json_t *value, bool special, struct err *err)
{
    (void)tok;
    (void)special;
    char *text = base_alloc(RENDERED_MAX);
    struct chat_prompt prompt;
    struct chat_error error;
    bool is_rendered = chat_render(&render_template, value, clock_wall_s(), text, RENDERED_MAX, &prompt, &error);
    if (is_rendered) {
        json_t *string = json_stringn(text, prompt.size);
        json_dumpf(string, stdout, JSON_ENCODE_ANY);
        putchar('\n');
        json_decref(string);
    }
    free(text);
    return is_rendered ? 0 : err_set(err, -EINVAL, "%s", error.message);
}

static int run_render(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    const struct render_values *values = pointer;
    struct vocabulary vocabulary;
    struct err err;
    if (open_vocabulary(&vocabulary, positional[0], values->chat_template, &err) != 0 ||
        chat_template_open(&render_template, &vocabulary.tok, TEXT_BYTES_MAX, &err) != 0)
        return command_fail(1, "render", err.text);
    if (render_template.program == NULL)
        return command_fail(1, "render", "the model has no chat template; --chat-template FILE gives it one");
    return for_each_line("render", render_line, &vocabulary.tok, false);
}

const struct subcommand command_tokenize = {.name = "tokenize",
                                            .usage = "[OPTIONS] MODEL.gguf < TEXT",
                                            .help = "Turns text into the model's token ids",
                                            .options = &tokenize_table,
                                            .values_bytes = sizeof(struct values),
                                            .positional_min = 1,
                                            .positional_max = 1,
                                            .run = run_tokenize};

const struct subcommand command_detokenize = {.name = "detokenize",
                                              .usage = "[OPTIONS] MODEL.gguf < IDS",
                                              .help = "Turns token ids back into text",
                                              .options = &detokenize_table,
                                              .values_bytes = sizeof(struct values),
                                              .positional_min = 1,
                                              .positional_max = 1,
                                              .run = run_detokenize};

const struct subcommand command_render = {.name = "render",
                                          .usage = "[OPTIONS] MODEL.gguf < BODIES",
                                          .help = "Shows the exact prompt that a chat request becomes",
                                          .options = &render_table,
                                          .values_bytes = sizeof(struct render_values),
                                          .positional_min = 1,
                                          .positional_max = 1,
                                          .run = run_render};
