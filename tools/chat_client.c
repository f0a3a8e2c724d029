#include "tools/chat_client.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/line.h"
#include "tools/live.h"

struct chat {
    const struct chat_options *options;
    json_t *messages;
};

static void begin(struct chat *chat)
{
    const char *system = chat->options->system;
    json_decref(chat->messages);
    chat->messages = json_array();
    if (system != NULL && system[0] != '\0')
        json_array_append_new(chat->messages, json_pack("{s:s, s:s}", "role", "system", "content", system));
}

/* One question. It and its answer join the conversation; a question that was refused does not. */
static enum live_result ask(struct chat *chat, const char *question)
{
    const struct chat_options *options = chat->options;
    json_t *message = json_pack("{s:s, s:s}", "role", "user", "content", question);
    if (message == NULL) {
        command_fail(1, options->command, "the text is not valid UTF-8");
        return LIVE_REFUSED;
    }
    json_array_append_new(chat->messages, message);
    json_t *body = json_pack("{s:O, s:f, s:I}", "messages", chat->messages, "temperature", options->temperature, "seed",
                             (json_int_t)options->seed);
    if (options->max_tokens != 0)
        json_object_set_new(body, "max_tokens", json_integer((json_int_t)options->max_tokens));
    struct live_answer answer;
    enum live_result result = live_ask(&answer, options->socket, "/v1/chat/completions", body);
    live_print_rate(&answer, result);
    if (result >= LIVE_REFUSED) {
        command_fail(1, options->command, answer.err.text);
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
    } else {
        json_array_append_new(chat->messages, json_pack("{s:s, s:s}", "role", "assistant", "content",
                                                        answer.text != NULL ? answer.text : ""));
    }
    live_free(&answer);
    json_decref(body);
    return result;
}

/* The next question, its lines joined; NULL: there is none. To be freed. */
static char *read_question(struct line *input)
{
    char *question = NULL;
    size_t size = 0;
    for (bool goes_on = true; goes_on;) {
        const char *text = line_read(input, question == NULL ? "> " : ". ");
        if (text == NULL)
            break;
        size_t length = strlen(text);
        goes_on = length > 0 && text[length - 1] == '\\';
        char *joined = realloc(question, size + length + 1);
        check(joined != NULL);
        question = joined;
        memcpy(question + size, text, length + 1);
        size += length;
        if (goes_on)
            question[size - 1] = '\n';
    }
    return question;
}

static enum live_result converse(struct chat *chat, struct line *input)
{
    bool is_person = line_is_on_terminal(input);
    enum live_result result = LIVE_ANSWERED;
    while (is_person || result == LIVE_ANSWERED) {
        char *question = read_question(input);
        if (question == NULL)
            break;
        if (is_person && strcmp(question, "/new") == 0)
            begin(chat);
        else if (question[0] != '\0')
            result = ask(chat, question);
        free(question);
    }
    if (is_person)
        putchar('\n');
    return is_person ? LIVE_ANSWERED : result;
}

int chat_client_run(const struct chat_options *options, const char *prompt, bool reads_more)
{
    struct chat chat = {.options = options};
    begin(&chat);
    enum live_result result = prompt != NULL ? ask(&chat, prompt) : LIVE_ANSWERED;
    if (reads_more) {
        struct line *input = line_open("evenflow");
        if (line_is_on_terminal(input) && prompt == NULL)
            fputs(
                "\33[2mOne question a line. Ctrl-C ends an answer, /new forgets what was said, Ctrl-D leaves.\33[0m\n",
                stderr);
        if (line_is_on_terminal(input) || result == LIVE_ANSWERED)
            result = converse(&chat, input);
        line_close(input);
    }
    json_decref(chat.messages);
    return live_exit_status(result);
}
