#include "engine/chat.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Scratch of a rendering: strings and their marks, copied a few times over, and the values of the body. */
#define ARENA_BASE     ((size_t)16 << 20)
#define ARENA_PER_BYTE 16u
#define ROLE_BYTES_MAX 32u
#define VALUE_DEPTH    100u

/* ---- the template ---- */

static struct tok_text token_name(const struct tok *tok, uint32_t id)
{
    char *name = base_alloc(TOK_PIECE_MAX);
    return (struct tok_text){name, id != TOK_NONE ? tok_piece(tok, id, (uint8_t *)name) : 0};
}

int chat_template_open(struct chat_template *chat, const struct tok *tok, size_t body_bytes, struct err *err)
{
    struct tok_text source = tok_chat_template(tok);
    *chat = (struct chat_template){0};
    if (source.size == 0)
        return 0;
    int ret = jinja_parse(&chat->program, source.data, source.size, err);
    if (ret != 0)
        return err_prefix(err, ret, "the chat template");
    chat->takes_tools = jinja_mentions(chat->program, "tools");
    chat->tags_calls = memmem(source.data, source.size, "<tool_call>", 11) != NULL;
    chat->thinks = memmem(source.data, source.size, "</think>", 8) != NULL;
    chat->begin = token_name(tok, tok_begin_token(tok));
    chat->end = token_name(tok, tok_end_token(tok));
    chat->ranges = base_alloc(CHAT_RANGES_MAX * sizeof(*chat->ranges));
    chat->arena.bytes = ARENA_BASE + ARENA_PER_BYTE * body_bytes;
    /* mapped, not allocated: pages that no conversation has needed yet cost nothing */
    chat->arena.memory =
        mmap(NULL, chat->arena.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(chat->arena.memory != MAP_FAILED);
    return 0;
}

void chat_template_close(struct chat_template *chat)
{
    if (chat->program == NULL)
        return;
    jinja_free(chat->program);
    munmap(chat->arena.memory, chat->arena.bytes);
    free((char *)(uintptr_t)chat->begin.data);
    free((char *)(uintptr_t)chat->end.data);
    free(chat->ranges);
    *chat = (struct chat_template){0};
}

/* ---- values ---- */

static const struct jinja_value absent = {.type = JINJA_ABSENT};

static struct jinja_value value_at(struct jinja_arena *arena, json_t *json, uint32_t depth)
{
    if (depth > VALUE_DEPTH)
        return absent;
    switch (json_typeof(json)) {
    case JSON_NULL:
        return jinja_none();
    case JSON_TRUE:
    case JSON_FALSE:
        return jinja_bool(json_is_true(json));
    case JSON_INTEGER:
        return jinja_integer(json_integer_value(json));
    case JSON_REAL:
        return jinja_float(json_real_value(json));
    case JSON_STRING:
        return jinja_string(json_string_value(json), json_string_length(json));
    case JSON_ARRAY: {
        struct jinja_value list = jinja_new_list(arena, (uint32_t)json_array_size(json));
        for (size_t i = 0; i < json_array_size(json) && list.type != JINJA_ABSENT; i++) {
            struct jinja_value item = value_at(arena, json_array_get(json, i), depth + 1);
            if (item.type == JINJA_ABSENT || !jinja_append(arena, list.list, item))
                return absent;
        }
        return list;
    }
    default: {
        struct jinja_value dict = jinja_new_dict(arena, (uint32_t)json_object_size(json));
        const char *key;
        json_t *value;
        if (dict.type == JINJA_ABSENT)
            return dict;
        json_object_foreach(json, key, value) {
            struct jinja_value item = value_at(arena, value, depth + 1);
            if (item.type == JINJA_ABSENT)
                return absent;
            /* room for all; keys of an object differ */
            dict.dict->pairs[dict.dict->count++] = (struct jinja_pair){jinja_string(key, strlen(key)), item};
        }
        return dict;
    }
    }
}

struct jinja_value chat_value(struct jinja_arena *arena, json_t *json)
{
    return value_at(arena, json, 0);
}

/* ---- requests ---- */

struct rendering {
    struct jinja_arena arena;
    struct jinja_dict *variables;
    struct chat_error *error;
};

__attribute__((format(printf, 3, 4))) static bool fail(struct rendering *r, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->error->message, sizeof(r->error->message), format, args);
    va_end(args);
    snprintf(r->error->param, sizeof(r->error->param), "%s", param);
    return false;
}

static bool is_full(struct rendering *r, const char *param)
{
    r->error->is_too_large = true;
    return fail(r, param, "%s needs more memory, or is nested deeper, than this server takes", param);
}

/* "messages[3].content", for errors. */
static const char *part_name(char name[64], size_t message, const char *field)
{
    snprintf(name, 64, "messages[%zu].%s", message, field);
    return name;
}

static bool set(struct rendering *r, struct jinja_dict *dict, const char *key, struct jinja_value value)
{
    if (value.type == JINJA_ABSENT || !jinja_set(&r->arena, dict, jinja_string(key, strlen(key)), value))
        return is_full(r, "messages");
    return true;
}

/* OpenAI's roles are words of ours, which may be part of a control token; any other is the client's. */
static struct jinja_value role_value(struct rendering *r, json_t *role)
{
    static const char *const known[] = {"system", "user", "assistant", "tool", "developer", "function"};
    const char *given = json_string_value(role);
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (strcmp(given, known[i]) == 0)
            return jinja_trusted(&r->arena, known[i], strlen(known[i]));
    return jinja_string(given, json_string_length(role));
}

static bool is_role(json_t *role)
{
    size_t size = json_string_length(role);
    for (size_t i = 0; i < size; i++)
        if (json_string_value(role)[i] < 'a' || json_string_value(role)[i] > 'z')
            return false;
    return size > 0 && size <= ROLE_BYTES_MAX;
}

/* Text parts, joined by newlines. */
static bool join_parts(struct rendering *r, json_t *parts, size_t index, struct jinja_value *value)
{
    char name[64];
    size_t size = 0, count = json_array_size(parts);
    for (size_t i = 0; i < count; i++) {
        json_t *part = json_array_get(parts, i), *text = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (type == NULL || strcmp(type, "text") != 0 || !json_is_string(text))
            return fail(r, part_name(name, index, "content"),
                        "messages[%zu].content: part %zu must be {\"type\":\"text\",\"text\":...}; this model reads "
                        "text only",
                        index, i);
        size += json_string_length(text) + 1;
    }
    char *joined = jinja_take(&r->arena, size + 1);
    if (joined == NULL)
        return is_full(r, "messages");
    size = 0;
    for (size_t i = 0; i < count; i++) {
        json_t *text = json_object_get(json_array_get(parts, i), "text");
        if (i > 0)
            joined[size++] = '\n';
        memcpy(joined + size, json_string_value(text), json_string_length(text));
        size += json_string_length(text);
    }
    *value = jinja_string(joined, size);
    return true;
}

/* Clients send a call's arguments as text that holds JSON; templates want the value. */
static bool parse_arguments(struct rendering *r, size_t index, struct jinja_value calls)
{
    char name[64];
    for (uint32_t i = 0; i < calls.list->count; i++) {
        const struct jinja_value *call = &calls.list->items[i];
        const struct jinja_value *function = call->type == JINJA_DICT ? jinja_find(call->dict, "function", 8) : NULL;
        if (function == NULL || function->type != JINJA_DICT || jinja_find(function->dict, "name", 4) == NULL)
            return fail(r, part_name(name, index, "tool_calls"),
                        "messages[%zu].tool_calls[%u] must have a function with a name and arguments", index, i);
        const struct jinja_value *arguments = jinja_find(function->dict, "arguments", 9);
        if (arguments == NULL || arguments->type != JINJA_STRING)
            continue;
        json_t *parsed = arguments->text.size > 0
                             ? json_loadb(arguments->text.data, arguments->text.size, JSON_ALLOW_NUL, NULL)
                             : json_object();
        if (!json_is_object(parsed))
            return fail(r, part_name(name, index, "tool_calls"),
                        "messages[%zu].tool_calls[%u].function.arguments must be a JSON object, as text", index, i);
        /* its strings stay in the memory of jansson, which the caller forgets as a whole */
        if (!set(r, function->dict, "arguments", chat_value(&r->arena, parsed)))
            return false;
    }
    return true;
}

static bool get_message(struct rendering *r, json_t *message, size_t index, struct jinja_value *value)
{
    char name[64];
    json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
    json_t *calls = json_object_get(message, "tool_calls");
    if (!json_is_object(message))
        return fail(r, "messages", "messages[%zu] must be an object with role and content", index);
    if (!is_role(role))
        return fail(r, part_name(name, index, "role"),
                    "messages[%zu].role must be a string of small letters: system, user, assistant, tool", index);
    bool has_calls = json_array_size(calls) > 0;
    if (calls != NULL && !json_is_array(calls) && !json_is_null(calls))
        return fail(r, part_name(name, index, "tool_calls"), "messages[%zu].tool_calls must be a list", index);
    if (!json_is_string(content) && !json_is_array(content) && !(json_is_null(content) || content == NULL))
        return fail(r, part_name(name, index, "content"),
                    "messages[%zu].content must be a string or a list of text parts", index);
    if (!json_is_string(content) && !json_is_array(content) && !has_calls)
        return fail(r, part_name(name, index, "content"),
                    "messages[%zu].content is missing: only an assistant's message with tool_calls may leave it out",
                    index);
    *value = chat_value(&r->arena, message);
    if (value->type == JINJA_ABSENT)
        return is_full(r, "messages");
    if (!set(r, value->dict, "role", role_value(r, role)))
        return false;
    if (has_calls) {
        const struct jinja_value *list = jinja_find(value->dict, "tool_calls", 10);
        if (!parse_arguments(r, index, *list))
            return false;
    }
    struct jinja_value joined;
    return !json_is_array(content) ||
           (join_parts(r, content, index, &joined) && set(r, value->dict, "content", joined));
}

static bool get_messages(struct rendering *r, json_t *body)
{
    json_t *messages = json_object_get(body, "messages");
    size_t count = json_array_size(messages);
    if (!json_is_array(messages) || count == 0 || count > CHAT_MESSAGES_MAX)
        return fail(r, "messages", "messages must be a list of 1 to %u messages", CHAT_MESSAGES_MAX);
    struct jinja_value list = jinja_new_list(&r->arena, (uint32_t)count);
    if (list.type == JINJA_ABSENT)
        return is_full(r, "messages");
    for (size_t i = 0; i < count; i++)
        if (!get_message(r, json_array_get(messages, i), i, &list.list->items[list.list->count++]))
            return false;
    return set(r, r->variables, "messages", list);
}

/* The request wants tools to be called: it has tools, and tool_choice allows them. */
static bool has_tools(json_t *body)
{
    const char *choice = json_string_value(json_object_get(body, "tool_choice"));
    return json_array_size(json_object_get(body, "tools")) > 0 && (choice == NULL || strcmp(choice, "none") != 0);
}

static bool get_tools(struct rendering *r, const struct chat_template *chat, json_t *body)
{
    json_t *tools = json_object_get(body, "tools"), *choice = json_object_get(body, "tool_choice");
    if (tools != NULL && !json_is_null(tools) && !json_is_array(tools))
        return fail(r, "tools", "tools must be a list of {\"type\":\"function\",\"function\":{...}}");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        json_t *tool = json_array_get(tools, i), *type = json_object_get(tool, "type");
        if (!json_is_string(json_object_get(json_object_get(tool, "function"), "name")) || !json_is_string(type) ||
            strcmp(json_string_value(type), "function") != 0)
            return fail(r, "tools", "tools[%zu] must be {\"type\":\"function\",\"function\":{\"name\":...}}", i);
    }
    const char *word = json_string_value(choice);
    if (choice != NULL && !json_is_null(choice) &&
        (word == NULL || (strcmp(word, "auto") != 0 && strcmp(word, "none") != 0)))
        return fail(r, "tool_choice", "tool_choice must be \"auto\" or \"none\": this server cannot force a call");
    if (!has_tools(body))
        return set(r, r->variables, "tools", jinja_none());
    if (!chat->takes_tools)
        return fail(r, "tools", "this model's chat template takes no tools");
    struct jinja_value list = chat_value(&r->arena, tools);
    return list.type == JINJA_ABSENT ? is_full(r, "tools") : set(r, r->variables, "tools", list);
}

static bool get_documents(struct rendering *r, json_t *body)
{
    json_t *documents = json_object_get(body, "documents");
    if (documents == NULL || json_is_null(documents))
        return set(r, r->variables, "documents", jinja_none());
    if (!json_is_array(documents))
        return fail(r, "documents", "documents must be a list");
    struct jinja_value list = chat_value(&r->arena, documents);
    return list.type == JINJA_ABSENT ? is_full(r, "documents") : set(r, r->variables, "documents", list);
}

/* Fields of chat_template_kwargs come first: what we set ourselves they cannot change. */
static bool get_variables(struct rendering *r, const struct chat_template *chat, json_t *body)
{
    json_t *given = json_object_get(body, "chat_template_kwargs"), *value;
    json_t *prompts = json_object_get(body, "add_generation_prompt");
    const char *key;
    if (given != NULL && !json_is_null(given) && !json_is_object(given))
        return fail(r, "chat_template_kwargs", "chat_template_kwargs must be an object");
    if (prompts != NULL && !json_is_null(prompts) && !json_is_boolean(prompts))
        return fail(r, "add_generation_prompt", "add_generation_prompt must be true or false");
    struct jinja_value dict = jinja_new_dict(&r->arena, 16);
    if (dict.type == JINJA_ABSENT)
        return is_full(r, "messages");
    r->variables = dict.dict;
    if (json_is_object(given))
        json_object_foreach(given, key, value)
            if (!set(r, r->variables, key, chat_value(&r->arena, value)))
                return false;
    return set(r, r->variables, "bos_token", jinja_trusted(&r->arena, chat->begin.data, chat->begin.size)) &&
           set(r, r->variables, "eos_token", jinja_trusted(&r->arena, chat->end.data, chat->end.size)) &&
           set(r, r->variables, "add_generation_prompt", jinja_bool(!json_is_false(prompts))) &&
           get_messages(r, body) && get_tools(r, chat, body) && get_documents(r, body);
}

/* How the answer to a prompt is to be read: tool calls in the way of the model's family, reasoning where it has any. */
static struct message_format message_format(const struct chat_template *chat, json_t *body, struct jinja_text prompt)
{
    static const char opened[] = "<think>";
    size_t size = prompt.size;
    while (size > 0 && (prompt.data[size - 1] == '\n' || prompt.data[size - 1] == ' '))
        size--;
    bool is_opened = size >= sizeof(opened) - 1 &&
                     memcmp(prompt.data + size - (sizeof(opened) - 1), opened, sizeof(opened) - 1) == 0;
    return (struct message_format){.calls = !has_tools(body)   ? MESSAGE_NO_CALLS
                                            : chat->tags_calls ? MESSAGE_CALLS_TAGGED
                                                               : MESSAGE_CALLS_JSON,
                                   .has_reasoning = chat->thinks,
                                   .begins_thinking = chat->thinks && is_opened};
}

/* Runs of bytes that are the template's own. False: there are too many. */
static bool find_ranges(const struct chat_template *chat, struct jinja_text text, uint32_t *count)
{
    *count = 0;
    for (size_t at = 0; text.trust != NULL && at < text.size;) {
        size_t end = at;
        while (end < text.size && text.trust[end])
            end++;
        if (end > at && *count == CHAT_RANGES_MAX)
            return false;
        if (end > at)
            chat->ranges[(*count)++] = (struct tok_range){at, end - at};
        at = end + 1;
    }
    return true;
}

bool chat_render(const struct chat_template *chat, json_t *body, uint64_t now_s, char *text, size_t text_max,
                 struct chat_prompt *prompt, struct chat_error *error)
{
    struct rendering r = {.arena = chat->arena, .error = error};
    struct jinja_text rendered;
    struct err err = {0};
    *error = (struct chat_error){0};
    if (chat->program == NULL)
        return fail(&r, "messages", "the model has no chat template; /v1/completions works, or --chat-template FILE");
    if (!get_variables(&r, chat, body))
        return false;
    enum jinja_result result = jinja_render(chat->program, &r.arena, r.variables, now_s, &rendered, &err);
    if (result == JINJA_RAISED)
        return fail(&r, "messages", "the model's chat template refuses this conversation: %s", err.text);
    if (result != JINJA_OK)
        return fail(&r, "messages", "the model's chat template cannot render this conversation: %s", err.text);
    if (rendered.size > text_max || !find_ranges(chat, rendered, &prompt->range_count)) {
        error->is_too_large = true;
        return fail(&r, "messages", "the conversation is longer than this server takes");
    }
    memcpy(text, rendered.data, rendered.size);
    prompt->size = rendered.size;
    prompt->ranges = chat->ranges;
    prompt->message = message_format(chat, body, rendered);
    return true;
}
