/* fuzz_answer.c - answers: the text is what a naive reader of all tokens would say, stop strings and an echoed prompt included;
 * the bytes are the same however tokens and room come; what is streamed and what is not is one text.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/answer.h"
#include "ipc/journal.h"
#include "tests/fake_sched.h"
#include "tests/fuzz.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

#define TOKENS_MAX 64u
#define PROMPT_MAX 5u
#define BYTES_MAX  (1u << 20)
#define TEXT_MAX   ((PROMPT_MAX + TOKENS_MAX) * TOKEN_TEXT_MAX)

static struct plan plan;
static struct arena arena;
static struct tok tok;
static char *bytes_a, *bytes_b, *wanted;

/* One case. */
static struct answer_format format;
static struct answer_choice choices[2 * CHOICES_MAX];
static uint32_t min_tokens, token_count, prompt_count;
static uint32_t tokens[TOKENS_MAX], prompt[PROMPT_MAX];

static void set_up(void)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err;
    plan = plan_for_tests();
    plan.requests_max = 2;
    tiny_vocab_plan(&plan, vocab_bytes);
    fake_sched_plan(&plan);
    arena_in_memory(&arena, &plan);
    check(tok_attach(&tok, blob, vocab_bytes, 65536, &err) == 0);
    bytes_a = base_alloc(BYTES_MAX);
    bytes_b = base_alloc(BYTES_MAX);
    wanted = base_alloc(TEXT_MAX);
}

static bool is_end(uint32_t token)
{
    for (uint32_t i = 0; i < plan.end_token_count; i++)
        if (plan.end_tokens[i] == token)
            return true;
    return false;
}

/* Few letters, so that stop strings happen; parts of characters; words; ends. */
static uint32_t make_token(uint8_t byte)
{
    static const uint8_t bytes[] = {'a', 'b', 'c', 'a', 'b', 0xe2, 0x82, 0xac, 0xc3, 0xa9, '\n', '"'};
    if (byte < 160)
        return TINY_BYTE_FIRST + bytes[byte % sizeof(bytes)];
    if (byte < 250)
        return TINY_HE + byte % (TINY_COUNT - TINY_HE);
    return byte == 255 ? TINY_IM_END : TINY_BYTE_FIRST + byte;
}

static void make_case(struct fuzz_input *input)
{
    static const char *const parts[] = {"a", "b", "c", "\u20ac", "\u00e9", "he", "\n", "\""};
    format = (struct answer_format){.kind = ANSWER_COMPLETION};
    min_tokens = fuzz_number(input, 7);
    uint32_t stop_count = fuzz_number(input, 3);
    size_t used = 0;
    for (uint32_t i = 0; i < stop_count; i++) {
        uint32_t length = 1 + fuzz_number(input, 3);
        for (uint32_t k = 0; k < length; k++) {
            const char *part = parts[fuzz_number(input, ARRAY_COUNT(parts) - 1)];
            memcpy(format.stops + used, part, strlen(part));
            used += strlen(part);
            format.stop_size[i] += (uint32_t)strlen(part);
        }
        format.stop_count++;
    }
    prompt_count = 1 + fuzz_number(input, PROMPT_MAX - 1);
    for (uint32_t i = 0; i < prompt_count; i++)
        prompt[i] = make_token(fuzz_byte(input));
    token_count = 0;
    while (input->size > 0 && token_count < TOKENS_MAX) {
        uint32_t token = make_token(fuzz_byte(input));
        tokens[token_count++] = token;
        if (is_end(token) && token_count >= min_tokens)
            break;
    }
}

/* The text of the prompt, where it is echoed. */
static size_t read_prompt(void)
{
    struct tok_decoder decoder = {.is_text_start = true};
    size_t size = 0;
    for (uint32_t i = 0; i < prompt_count && format.echoes; i++)
        size += tok_decoder_push(&decoder, &tok, prompt[i], wanted + size);
    return size + tok_decoder_end(&decoder, wanted + size);
}

/* The text and the tokens that count, by looking at everything again after each token. */
static size_t read_naively(uint32_t *used)
{
    struct tok_decoder decoder = {0};
    size_t own = read_prompt(), size = own, seen = own;
    for (*used = 0; *used < token_count;) {
        uint32_t token = tokens[(*used)++];
        if (!is_end(token) || *used < min_tokens)
            size += tok_decoder_push(&decoder, &tok, token, wanted + size);
        if (*used <= min_tokens)
            seen = size; /* one that is complete by then does not count */
        const char *stop = format.stops;
        size_t first = size;
        for (uint32_t i = 0; i<format.stop_count && * used> min_tokens; stop += format.stop_size[i++]) {
            size_t from = max_u64(seen + 1, own + format.stop_size[i]) - format.stop_size[i];
            const char *at = memmem(wanted + from, size - from, stop, format.stop_size[i]);
            if (at != NULL)
                first = min_u64(first, (size_t)(at - wanted));
        }
        if (first < size)
            return first;
    }
    return size + tok_decoder_end(&decoder, wanted + size);
}

static void begin_request(void)
{
    struct request_shm *request = arena_request(&arena, 0);
    uint32_t generation = request->generation + 1;
    fake_sched_forget(&arena, 0);
    request->generation = generation;
    request->id = 0x0123456789abcdef;
    request->created_s = 1700000000;
    request->choices = 1;
    request->prompt_tokens = prompt_count;
    arena_prompt_list(&arena, 0)[0] = 0;
    journal_prompt_write(&arena, 0, 0, prompt_count, prompt);
    request->max_tokens = TOKENS_MAX;
    request->min_tokens = min_tokens;
    journal_request_set_state(request, REQUEST_ACCEPTED);
    fake_sched_take(&arena, 0);
}

/* Commits tokens and renders, in portions that `portions` says; NULL: everything at once. The size. */
static size_t render(char *bytes, struct fuzz_input *portions)
{
    static struct answer answer;
    begin_request();
    answer_begin(&answer, &arena, &tok, &format, 0, choices);
    size_t size = 0;
    uint32_t committed = 0;
    for (bool is_done = false;;) {
        uint32_t more = portions != NULL ? fuzz_number(portions, 5) : token_count;
        for (; more > 0 && committed < token_count; more--) {
            struct token_shm entry = {.token = tokens[committed++]};
            fake_sched_commit(&arena, 0, 0, &entry);
        }
        if (committed == token_count && !is_done) {
            bool is_stop = token_count > 0 && is_end(tokens[token_count - 1]) && token_count >= min_tokens;
            fake_sched_end(&arena, 0, 0, is_stop ? FINISH_STOP : FINISH_LENGTH);
            is_done = true;
        }
        size_t room = portions != NULL ? ANSWER_PIECE_MAX + fuzz_number(portions, 2000) : BYTES_MAX - size, written;
        check(size + room <= BYTES_MAX);
        enum answer_result result = answer_render(&answer, bytes + size, room, &written);
        check(written <= room);
        size += written;
        if (result == ANSWER_COMPLETE)
            return size;
        if (portions != NULL && portions->size == 0)
            portions = NULL; /* the rest at once */
        check(result != ANSWER_WAITS || !is_done);
    }
}

/* The body of an answer without its head and chunks, in place, terminated. */
static char *body_of(char *bytes, size_t size)
{
    bytes[size] = '\0';
    char *body = strstr(bytes, "\r\n\r\n");
    check(body != NULL);
    *body = '\0';
    bool is_chunked = strstr(bytes, "Transfer-Encoding: chunked") != NULL;
    body += 4;
    if (!is_chunked) {
        const char *length = strstr(bytes, "Content-Length: ");
        check(length != NULL && strtoul(length + 16, NULL, 10) == size - (size_t)(body - bytes));
        return body;
    }
    char *to = body, *from = body;
    for (;;) {
        char *end;
        size_t chunk = strtoul(from, &end, 16);
        check(end > from && end[0] == '\r' && end[1] == '\n');
        from = end + 2;
        check(from + chunk + 2 <= bytes + size);
        memmove(to, from, chunk);
        to += chunk;
        from += chunk;
        check(from[0] == '\r' && from[1] == '\n');
        from += 2;
        if (chunk == 0)
            break;
    }
    check(from == bytes + size);
    *to = '\0';
    return body;
}

static json_t *text_of(json_t *choice)
{
    json_t *message = json_object_get(choice, format.is_stream ? "delta" : "message");
    return format.kind == ANSWER_CHAT ? json_object_get(message, "content") : json_object_get(choice, "text");
}

/* jansson takes valid UTF-8 alone: so each event by itself is whole characters. */
static void take_events(char *body, char *text, size_t *size, uint32_t *events)
{
    *size = 0;
    *events = 0;
    for (char *event = strtok(body, "\n"); event != NULL; event = strtok(NULL, "\n")) {
        check(strncmp(event, "data: ", 6) == 0);
        if (strcmp(event, "data: [DONE]") == 0)
            continue;
        json_t *root = json_loads(event + 6, JSON_ALLOW_NUL, NULL);
        check(root != NULL);
        json_t *choice = json_array_get(json_object_get(root, "choices"), 0), *piece = text_of(choice);
        memcpy(text + *size, json_string_length(piece) > 0 ? json_string_value(piece) : "", json_string_length(piece));
        *size += json_string_length(piece);
        bool is_role = json_object_get(json_object_get(choice, "delta"), "role") != NULL;
        *events += json_is_null(json_object_get(choice, "finish_reason")) && !is_role;
        json_decref(root);
    }
}

static void expect_text(char *bytes, size_t size, size_t wanted_size, uint32_t used)
{
    char *body = body_of(bytes, size);
    if (format.is_stream) {
        static char text[TEXT_MAX];
        size_t text_size;
        uint32_t events;
        take_events(body, text, &text_size, &events);
        check(events == used + format.echoes);
        check(text_size == wanted_size && memcmp(text, wanted, text_size) == 0);
        return;
    }
    json_t *root = json_loads(body, JSON_ALLOW_NUL, NULL);
    json_t *text = text_of(json_array_get(json_object_get(root, "choices"), 0));
    json_t *usage = json_object_get(root, "usage");
    check(json_string_length(text) == wanted_size && memcmp(json_string_value(text), wanted, wanted_size) == 0);
    check(json_integer_value(json_object_get(usage, "completion_tokens")) == used);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (bytes_a == NULL)
        set_up();
    struct fuzz_input input = {data, size}, whole = input;
    make_case(&input);
    uint32_t used;
    static const enum answer_kind kinds[] = {ANSWER_COMPLETION, ANSWER_CHAT, ANSWER_COMPLETION};
    for (uint32_t i = 0; i < 6; i++) {
        format.kind = kinds[i / 2];
        format.is_stream = i % 2;
        format.echoes = i >= 4;
        size_t wanted_size = read_naively(&used);
        struct fuzz_input portions = whole;
        size_t size_a = render(bytes_a, NULL), size_b = render(bytes_b, &portions);
        check(size_a == size_b && memcmp(bytes_a, bytes_b, size_a) == 0);
        expect_text(bytes_a, size_a, wanted_size, used);
    }
    return 0;
}
