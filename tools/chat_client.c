#include "tools/chat_client.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/client.h"

struct answer {
    char *text;
    size_t size, room;
};

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    struct answer *answer = context;
    json_t *event = json_loadb(data, size, 0, NULL); /* "[DONE]" is not JSON and says nothing more */
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    const char *text = json_string_value(json_object_get(json_object_get(choice, "delta"), "content"));
    if (text != NULL) {
        fputs(text, stdout);
        fflush(stdout);
        size_t more = strlen(text);
        if (answer->size + more + 1 > answer->room) {
            answer->room = 2 * (answer->size + more) + 256;
            answer->text = realloc(answer->text, answer->room);
            check(answer->text != NULL);
        }
        memcpy(answer->text + answer->size, text, more + 1);
        answer->size += more;
    }
    json_decref(event);
}

/* One question. The answer joins the conversation. */
static int ask(const struct chat_options *options, json_t *messages, const char *question)
{
    json_t *message = json_pack("{s:s, s:s}", "role", "user", "content", question);
    if (message == NULL) {
        fprintf(stderr, "evenflow: the text is not valid UTF-8\n");
        return 1;
    }
    json_array_append_new(messages, message);
    json_t *body = json_pack("{s:O, s:b, s:f, s:I}", "messages", messages, "stream", 1, "temperature",
                             options->temperature, "seed", (json_int_t)options->seed);
    if (options->max_tokens != 0)
        json_object_set_new(body, "max_tokens", json_integer((json_int_t)options->max_tokens));
    char *text = json_dumps(body, JSON_COMPACT);
    struct answer answer = {0};
    struct client_call call = {.method = "POST",
                               .path = "/v1/chat/completions",
                               .body = text,
                               .body_size = strlen(text),
                               .on_event = on_event,
                               .context = &answer};
    client_run(options->socket, &call, 1, 1);
    putchar('\n');
    fflush(stdout);
    int status = call.status == 200 ? 0 : 1;
    if (status != 0)
        fprintf(stderr, "evenflow: %s\n", call.status == 0 ? call.err.text : call.answer);
    else
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", "assistant", "content", answer.text ? answer.text : ""));
    client_call_free(&call);
    free(answer.text);
    free(text);
    json_decref(body);
    return status;
}

int chat_client_run(const struct chat_options *options, const char *prompt, int is_interactive)
{
    json_t *messages = json_array();
    if (options->system != NULL && options->system[0] != '\0')
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", options->system));
    int status = prompt != NULL ? ask(options, messages, prompt) : 0;
    char *line = NULL;
    size_t room = 0;
    while (is_interactive && status == 0) {
        fputs("\n> ", stdout);
        fflush(stdout);
        if (getline(&line, &room, stdin) <= 0) {
            putchar('\n');
            break;
        }
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] != '\0')
            status = ask(options, messages, line);
    }
    free(line);
    json_decref(messages);
    return status;
}
