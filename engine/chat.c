#include "engine/chat.h"

#include <errno.h>
#include <string.h>

static const char begin_name[] = "<|im_start|>", end_name[] = "<|im_end|>";

/* The family's template, with newlines as they are in files (both the character and Jinja's \n occur). */
static const char head[] = "{% for message in messages %}";
static const char default_head[] = "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n";
static const char default_tail[] = "<|im_end|>\n' }}{% endif %}";
static const char tail[] = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
                           "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static bool take(const char **at, const char *expected)
{
    size_t size = strlen(expected);
    if (strncmp(*at, expected, size) != 0)
        return false;
    *at += size;
    return true;
}

/* Copies with Jinja's \n as the character. False when it is too long or holds a NUL. */
static bool normalise(char *target, size_t room, struct tok_text source)
{
    size_t size = 0;
    for (size_t i = 0; i < source.size; i++) {
        bool is_escape = source.data[i] == '\\' && i + 1 < source.size && source.data[i + 1] == 'n';
        if (source.data[i] == '\0' || size + 1 >= room)
            return false;
        target[size++] = is_escape ? '\n' : source.data[i];
        i += is_escape;
    }
    target[size] = '\0';
    return true;
}

int chat_template_parse(struct chat_template *chat, struct tok_text source, struct err *err)
{
    *chat = (struct chat_template){0};
    if (source.size == 0)
        return err_set(err, -ENOTSUP, "the model has no chat template; /v1/completions works");
    const char *at = chat->storage;
    bool is_known = normalise(chat->storage, sizeof(chat->storage), source) && take(&at, head);
    if (is_known && take(&at, default_head)) {
        const char *end = strstr(at, default_tail);
        /* a quote would end the text, and what other escapes mean is not known here */
        is_known =
            end != NULL && memchr(at, '\'', (size_t)(end - at)) == NULL && memchr(at, '\\', (size_t)(end - at)) == NULL;
        if (is_known) {
            chat->default_system = (struct tok_text){at, (size_t)(end - at)};
            at = end + strlen(default_tail);
        }
    }
    is_known = is_known && take(&at, tail) && (*at == '\0' || strcmp(at, "\n") == 0); /* Jinja drops a last newline */
    if (!is_known)
        return err_set(err, -ENOTSUP, "the model's chat template is not supported yet; /v1/completions works");
    chat->is_known = true;
    return 0;
}

struct output {
    char *text;
    size_t size, room;
    struct tok_range *ranges;
    uint32_t range_count;
    bool is_full;
};

static void put(struct output *out, const char *text, size_t size)
{
    if (size > out->room - out->size) {
        out->is_full = true;
        return;
    }
    memcpy(out->text + out->size, text, size);
    out->size += size;
}

static void put_special(struct output *out, const char *name)
{
    out->ranges[out->range_count++] = (struct tok_range){out->size, strlen(name)};
    put(out, name, strlen(name));
}

static void put_turn(struct output *out, struct tok_text role, struct tok_text content)
{
    put_special(out, begin_name);
    put(out, role.data, role.size);
    put(out, "\n", 1);
    put(out, content.data, content.size);
    put_special(out, end_name);
    put(out, "\n", 1);
}

bool chat_render(const struct chat_template *chat, const struct chat_message *messages, uint32_t count, char *text,
                 size_t text_max, size_t *text_size, struct tok_range *ranges, uint32_t *range_count)
{
    struct output out = {.text = text, .room = text_max, .ranges = ranges};
    static const struct tok_text system = {"system", 6};
    check(chat->is_known);
    bool has_system = count > 0 && messages[0].role.size == system.size &&
                      memcmp(messages[0].role.data, system.data, system.size) == 0;
    if (count > 0 && !has_system && chat->default_system.data != NULL)
        put_turn(&out, system, chat->default_system);
    for (uint32_t i = 0; i < count; i++)
        put_turn(&out, messages[i].role, messages[i].content);
    put_special(&out, begin_name);
    put(&out, "assistant\n", 10);
    *text_size = out.size;
    *range_count = out.range_count;
    return !out.is_full;
}
