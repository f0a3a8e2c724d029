#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/message.h"
#include "ipc/base.h"

/* A message as it was told apart: "content|reasoning|name(arguments)name(arguments)". */
struct result {
    char content[4096], reasoning[4096], calls[4096];
    struct message message;
};

static void take(struct result *result, const struct message_output *output)
{
    for (uint32_t i = 0; i < output->count; i++) {
        const struct message_piece *piece = &output->pieces[i];
        const char *text = output->text + piece->first;
        if (piece->part == MESSAGE_CONTENT)
            strncat(result->content, text, piece->size);
        else if (piece->part == MESSAGE_REASONING)
            strncat(result->reasoning, text, piece->size);
        else if (piece->part == MESSAGE_ARGUMENTS)
            strncat(result->calls, text, piece->size);
        else
            sprintf(result->calls + strlen(result->calls), " %u:%.*s=", piece->call, (int)piece->size, text);
    }
}

/* Pushes the text cut at these places. */
static struct result read_message(struct message_format format, const char *text, size_t first, size_t second)
{
    static char room[8192];
    struct result result = {.content = ""};
    const size_t cuts[] = {0, first, second, strlen(text)};
    message_begin(&result.message, &format);
    for (size_t i = 0; i < 3; i++) {
        struct message_output output = {.text = room};
        message_push(&result.message, &format, text + cuts[i], cuts[i + 1] - cuts[i], &output);
        take(&result, &output);
    }
    struct message_output output = {.text = room};
    message_end(&result.message, &format, &output);
    take(&result, &output);
    return result;
}

static const struct message_format tagged = {.calls = MESSAGE_CALLS_TAGGED, .has_reasoning = 1};
static const struct message_format opened = {.calls = MESSAGE_CALLS_TAGGED, .has_reasoning = 1, .begins_thinking = 1};
static const struct message_format json = {.calls = MESSAGE_CALLS_JSON};
static const struct message_format plain = {0};

#define CALL(name, arguments) "<tool_call>\n{\"name\": \"" name "\", \"arguments\": " arguments "}\n</tool_call>"

static const struct {
    const struct message_format *format;
    const char *text, *content, *reasoning, *calls;
} cases[] = {
    {&plain, "<think>a</think>" CALL("f", "{}"), "<think>a</think>" CALL("f", "{}"), "", ""},
    {&tagged, "just text\n\nmore\n", "just text\n\nmore\n", "", ""},
    {&tagged, "", "", "", ""},
    {&tagged, "\n", "\n", "", ""},
    {&tagged, "<think>\nhm\n\nhm\n</think>\n\nyes\n", "yes\n", "hm\n\nhm", ""},
    {&tagged, "<think>\n\n</think>\n\nyes", "yes", "", ""},
    {&tagged, "<think>never closed", "", "never closed", ""},
    {&tagged, "text <think>is text</think>", "text <think>is text</think>", "", ""},
    {&opened, "hm\n</think>\n\nyes", "yes", "hm", ""},
    {&opened, "<think>\nhm</think>yes</think>", "yes</think>", "hm", ""},
    {&tagged, CALL("f", "{\"a\": [1, {\"b\": \"}\\\"]\"}]}"), "", "", " 0:f={\"a\": [1, {\"b\": \"}\\\"]\"}]}"},
    {&tagged, "I look.\n\n" CALL("f", "{}") "\n" CALL("g_2", "{ }") "\n", "I look.", "", " 0:f={} 1:g_2={ }"},
    {&tagged, "<think>\nhm\n</think>\n\n" CALL("f", "{\"x\":1}"), "", "hm", " 0:f={\"x\":1}"},
    {&tagged, "<tool_call>{\"name\":\"f\",\"parameters\":{\"a\":1}}</tool_call>", "", "", " 0:f={\"a\":1}"},
    {&tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"cut o", "", "", " 0:f={\"a\": \"cut o"},
    {&tagged, "<tool_call>\n{\"name\": \"f\", \"argu", "<tool_call>\n{\"name\": \"f\", \"argu", "", ""},
    {&tagged, "<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", "", ""},
    {&tagged, "a <tool_call> b <tool_cal <", "a <tool_call> b <tool_cal <", "", ""},
    {&tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": \"text\"}\n</tool_call>",
     "<tool_call>\n{\"name\": \"f\", \"arguments\": \"text\"}\n</tool_call>", "", ""},
    {&tagged, "<tool_call>" CALL("f", "{}"), "<tool_call>", "", " 0:f={}"},
    {&tagged, CALL("f", "{}") "\nand text", "and text", "", " 0:f={}"},
    {&tagged, "\xf0\x9f\x99\x82<" CALL("f", "{\"\xc3\xa9\":\"\xf0\x9f\x99\x82\"}"), "\xf0\x9f\x99\x82<", "",
     " 0:f={\"\xc3\xa9\":\"\xf0\x9f\x99\x82\"}"},
    {&json, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", "", " 0:f={\"a\": 1}"},
    {&json, "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {\"b\": {}}}", "", "",
     " 0:f={} 1:g={\"b\": {}}"},
    {&json, "{\"answer\": 42}", "{\"answer\": 42}", "", ""},
    {&json, "see {\"name\": \"f\", \"parameters\": {}}", "see {\"name\": \"f\", \"parameters\": {}}", "", ""},
    {&json, "{\"name\": \"f\"}", "{\"name\": \"f\"}", "", ""},
};

Test(message, parts_are_the_same_however_the_text_was_cut)
{
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        size_t size = strlen(cases[i].text);
        for (size_t first = 0; first <= size; first++)
            for (size_t second = first; second <= size; second++) {
                struct result result = read_message(*cases[i].format, cases[i].text, first, second);
                bool is_right = strcmp(result.content, cases[i].content) == 0 &&
                                strcmp(result.reasoning, cases[i].reasoning) == 0 &&
                                strcmp(result.calls, cases[i].calls) == 0;
                cr_assert(is_right, "%s cut at %zu and %zu: content \"%s\" reasoning \"%s\" calls \"%s\"",
                          cases[i].text, first, second, result.content, result.reasoning, result.calls);
            }
    }
}

Test(message, a_head_that_does_not_end_becomes_text)
{
    static char text[4096];
    char *at = stpcpy(text, "<tool_call>\n{\"name\": \"");
    for (int i = 0; i < 2000; i++)
        *at++ = 'x';
    strcpy(at, "\", \"arguments\": {}}</tool_call>");
    struct result result = read_message(tagged, text, 17, 300);
    cr_expect_str_eq(result.content, text);
    cr_expect_eq(result.message.calls, 0);
}

/* Whatever comes: nothing is lost but markers and what belongs to them, and no more pieces than there is room for. */
Test(message, random_text_from_markers_stays_within_bounds)
{
    static const char *const words[] = {"<think>",
                                        "</think>",
                                        "<tool_call>",
                                        "</tool_call>",
                                        "{\"name\":\"f\",",
                                        "\"arguments\":{",
                                        "}",
                                        "\n",
                                        "<",
                                        "x",
                                        "\"",
                                        "\\",
                                        "{",
                                        "]"};
    static const struct message_format *const formats[] = {&tagged, &opened, &json};
    uint64_t seed = 1;
    for (int n = 0; n < 20000; n++) {
        char text[1100] = "";
        size_t size = 0;
        for (int i = 0; i < 80; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const char *word = words[(seed >> 33) % (sizeof(words) / sizeof(words[0]))];
            size += strlen(strcpy(text + size, word));
        }
        for (size_t f = 0; f < 3; f++) {
            struct result whole = read_message(*formats[f], text, size, size);
            struct result cut = read_message(*formats[f], text, size / 3, size / 2);
            cr_assert_str_eq(whole.content, cut.content, "%s", text);
            cr_assert_str_eq(whole.reasoning, cut.reasoning, "%s", text);
            cr_assert_str_eq(whole.calls, cut.calls, "%s", text);
            cr_assert_eq(whole.message.has_reasoning, whole.reasoning[0] != '\0', "%s", text);
        }
    }
}
