#include "tools/live.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "tools/client.h"
#include "tools/commands.h"

#define POLL_MS 100

/* What a model writes may not move the cursor or ring the bell of who reads it on a terminal. */
static void write_text(const struct live_answer *answer, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        bool is_control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        if (is_control && answer->is_on_terminal)
            fputs("\ufffd", stdout);
        else
            putchar(c);
    }
    fflush(stdout);
}

static void take_text(struct live_answer *answer, json_t *text)
{
    size_t more = json_string_length(text);
    if (more == 0)
        return;
    if (answer->size + more + 1 > answer->room) {
        answer->room = 2 * (answer->size + more) + 256;
        answer->text = realloc(answer->text, answer->room);
        check(answer->text != NULL);
    }
    memcpy(answer->text + answer->size, json_string_value(text), more);
    answer->size += more;
    answer->text[answer->size] = '\0';
    write_text(answer, json_string_value(text), more);
}

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    struct live_answer *answer = context;
    json_t *event = json_loadb(data, size, 0, NULL); /* "[DONE]" is not JSON and says nothing more */
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    json_t *error = json_object_get(json_object_get(event, "error"), "message");
    const char *reason = json_string_value(json_object_get(choice, "finish_reason"));
    if (client_event_has_token(data, size)) {
        answer->last_ns = call->last_event_ns;
        if (answer->tokens++ == 0)
            answer->first_ns = answer->last_ns;
    }
    take_text(answer, json_object_get(choice, "text"));
    take_text(answer, json_object_get(json_object_get(choice, "delta"), "content"));
    if (json_is_string(error))
        err_set(&answer->err, -1, "%s", json_string_value(error));
    answer->is_cut = answer->is_cut || (reason != NULL && strcmp(reason, "length") == 0);
    json_decref(event);
}

/* What is typed meanwhile is not mixed into the answer; it is there for the next line. */
static void set_echo(bool is_on)
{
    struct termios mode;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &mode) != 0)
        return;
    mode.c_lflag = is_on ? mode.c_lflag | ECHO : mode.c_lflag & ~(tcflag_t)ECHO;
    tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

/* Runs the call until it has ended or Ctrl-C is pressed. True when it was. */
static bool run_call(struct client *client, struct client_call *call, int signals)
{
    client_start(client, call);
    while (client_active(client) > 0) {
        client_turn(client, 0);
        struct pollfd fds[2] = {{.fd = client_fd(client), .events = POLLIN}, {.fd = signals, .events = POLLIN}};
        /* a listener whose queue is full tells nobody when it has room: client_turn() looks again */
        if (client_active(client) > 0 && poll(fds, 2, POLL_MS) > 0 && fds[1].revents != 0) {
            client_cancel(client, call);
            return true;
        }
    }
    return false;
}

enum live_result live_ask(struct live_answer *answer, const char *socket_path, const char *path, json_t *body)
{
    *answer = (struct live_answer){.is_on_terminal = isatty(STDOUT_FILENO)};
    struct client *client = client_open(socket_path, false, &answer->err);
    if (client == NULL)
        return LIVE_BROKEN;
    json_object_set_new(body, "stream", json_true());
    char *text = json_dumps(body, JSON_COMPACT);
    check(text != NULL);
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    int signals = signalfd(-1, &interrupt, SFD_CLOEXEC | SFD_NONBLOCK);
    check(signals >= 0);
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof(info)) > 0) /* it was not meant for this answer */
        continue;
    struct client_call call = {.method = "POST",
                               .path = path,
                               .body = text,
                               .body_size = strlen(text),
                               .on_event = on_event,
                               .context = answer};
    set_echo(false);
    bool is_cancelled = run_call(client, &call, signals);
    set_echo(true);
    while (read(signals, &info, sizeof(info)) > 0)
        continue;
    close(signals);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (answer->size > 0 && answer->text[answer->size - 1] != '\n')
        putchar('\n');
    fflush(stdout);
    enum live_result result = LIVE_ANSWERED;
    if (is_cancelled)
        result = LIVE_CANCELLED;
    else if (call.status == 0)
        result = LIVE_BROKEN;
    else if (call.status != 200 || answer->err.text[0] != '\0')
        result = LIVE_REFUSED;
    if (result >= LIVE_REFUSED && answer->err.text[0] == '\0')
        command_describe_failure(&call, &answer->err);
    client_call_free(&call);
    client_close(client);
    free(text);
    return result;
}

void live_print_rate(const struct live_answer *answer, enum live_result result)
{
    if (!answer->is_on_terminal || !isatty(STDERR_FILENO) || result > LIVE_CANCELLED)
        return;
    fprintf(stderr, "\33[2m%llu token%s", (unsigned long long)answer->tokens, answer->tokens == 1 ? "" : "s");
    if (answer->tokens > 1)
        fprintf(stderr, ", %.1f tok/s",
                (double)(answer->tokens - 1) * 1e9 / (double)(answer->last_ns - answer->first_ns));
    fprintf(stderr, "%s\33[0m\n",
            result == LIVE_CANCELLED ? ", cancelled"
            : answer->is_cut         ? ", cut at the limit"
                                     : "");
}

int live_exit_status(enum live_result result)
{
    return result == LIVE_ANSWERED ? 0 : result == LIVE_CANCELLED ? 130 : 1;
}

void live_free(struct live_answer *answer)
{
    free(answer->text);
    *answer = (struct live_answer){0};
}
