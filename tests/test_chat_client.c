#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "tests/fake_server.h"

/* evenflow chat beside a server that speaks as the engine does: what a person sees on a terminal, and a script on a pipe. */

#define TOKEN(size, text)                                                                                              \
    size "\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" text "\"},\"finish_reason\":null}]}\n\n\r\n"
#define END                                                                                                            \
    "43\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\r\n"                        \
    "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

static const char begun[] = FAKE_STREAM_HEAD TOKEN("51", "once");
static const char whole[] = FAKE_STREAM_HEAD TOKEN("51", "very") TOKEN("51", "well") END;
static const char refusal[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 37\r\n\r\n"
                              "{\"error\":{\"message\":\"far too long!\"}}";

struct terminal {
    int fd;
    pid_t child;
    char seen[16384];
    size_t size, from; /* what was waited for ended at `from` */
};

static const char *program(void)
{
    static char path[256];
    const char *build = getenv("EVENFLOW_BUILD");
    snprintf(path, sizeof(path), "%s/bin/evenflow", build != NULL ? build : "build");
    return path;
}

static struct terminal start(const struct fake_server *server)
{
    struct terminal terminal = {0};
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    terminal.child = forkpty(&terminal.fd, NULL, NULL, &size);
    if (terminal.child < 0)
        cr_skip_test("no terminal to chat on, so this was not tested: %s (is devpts mounted?)", strerror(errno));
    if (terminal.child == 0) {
        setenv("TERM", "xterm", 1);
        setenv("XDG_STATE_HOME", "/nonexistent", 1);
        execl(program(), "evenflow", "chat", "--socket", server->path, NULL);
        _exit(127);
    }
    return terminal;
}

/* Waits until the terminal has shown the text behind what was waited for before. */
static void expect(struct terminal *terminal, const char *text)
{
    uint64_t deadline_ns = clock_ns() + 20000000000u;
    for (;;) {
        terminal->seen[terminal->size] = '\0';
        const char *at = strstr(terminal->seen + terminal->from, text);
        if (at != NULL) {
            terminal->from = (size_t)(at - terminal->seen) + strlen(text);
            return;
        }
        struct pollfd fd = {.fd = terminal->fd, .events = POLLIN};
        cr_assert_lt(clock_ns(), deadline_ns, "'%s' does not come: %s", text, terminal->seen);
        if (poll(&fd, 1, 1000) <= 0)
            continue;
        ssize_t got = read(terminal->fd, terminal->seen + terminal->size, sizeof(terminal->seen) - 1 - terminal->size);
        cr_assert_gt(got, 0, "the chat has ended; '%s' did not come: %s", text, terminal->seen);
        terminal->size += (size_t)got;
    }
}

static void type(struct terminal *terminal, const char *keys)
{
    cr_assert_eq(write(terminal->fd, keys, strlen(keys)), (ssize_t)strlen(keys));
}

/* Ctrl-D until it is taken: between the prompt and the moment in which keys are read one by one the terminal makes another
 * character of it, which Ctrl-U takes off the line. */
static int leave(struct terminal *terminal)
{
    int status;
    char rest[256];
    struct pollfd fd = {.fd = terminal->fd, .events = POLLIN};
    do {
        if (write(terminal->fd, "\x15\x04", 2) != 2)
            break; /* it has left */
        while (poll(&fd, 1, 500) > 0 && read(terminal->fd, rest, sizeof(rest)) > 0)
            continue;
    } while (!(fd.revents & (POLLHUP | POLLERR)));
    cr_assert_eq(waitpid(terminal->child, &status, 0), terminal->child);
    close(terminal->fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Test(chat_client, ctrl_c_ends_the_answer_and_not_the_program)
{
    struct fake_server server = {.first_answer = begun, .answer = whole, .connections = 2};
    fake_server_start(&server, 8);
    struct terminal terminal = start(&server);
    expect(&terminal, "> ");
    type(&terminal, "a question\r");
    expect(&terminal, "once");
    type(&terminal, "\x03");
    expect(&terminal, "1 token, cancelled");
    expect(&terminal, "> ");
    type(&terminal, "another\r");
    expect(&terminal, "verywell");
    expect(&terminal, "2 tokens, ");
    expect(&terminal, "tok/s");
    expect(&terminal, "> ");
    cr_expect_eq(leave(&terminal), 0);
    fake_server_end(&server);
    cr_expect(strstr(server.body, "{\"role\":\"assistant\",\"content\":\"once\"}") != NULL, "%s", server.body);
    cr_expect(strstr(server.body, "{\"role\":\"user\",\"content\":\"another\"}") != NULL, "%s", server.body);
}

Test(chat_client, ctrl_c_gives_up_the_line_that_is_typed)
{
    struct fake_server server = {.answer = whole, .connections = 1};
    fake_server_start(&server, 8);
    struct terminal terminal = start(&server);
    expect(&terminal, "> ");
    type(&terminal, "\x03");
    expect(&terminal, "> ");
    type(&terminal, "never sent\x03");
    expect(&terminal, "^C");
    expect(&terminal, "> ");
    type(&terminal, "sent\r");
    expect(&terminal, "verywell");
    expect(&terminal, "> ");
    cr_expect_eq(leave(&terminal), 0);
    fake_server_end(&server);
    cr_expect(strstr(server.body, "[{\"role\":\"user\",\"content\":\"sent\"}]") != NULL, "%s", server.body);
}

Test(chat_client, a_refused_question_leaves_the_conversation_and_new_forgets_it)
{
    struct fake_server server = {.first_answer = refusal, .answer = whole, .connections = 3};
    fake_server_start(&server, 8);
    struct terminal terminal = start(&server);
    expect(&terminal, "> ");
    type(&terminal, "a question\r");
    expect(&terminal, "far too long! (status 400)");
    expect(&terminal, "> ");
    type(&terminal, "two \\\rlines\r");
    expect(&terminal, "verywell");
    expect(&terminal, "> ");
    cr_expect(strstr(server.body, "[{\"role\":\"user\",\"content\":\"two \\nlines\"}]") != NULL, "%s", server.body);
    type(&terminal, "/new\r");
    expect(&terminal, "> ");
    type(&terminal, "fresh\r");
    expect(&terminal, "verywell");
    expect(&terminal, "> ");
    cr_expect_eq(leave(&terminal), 0);
    fake_server_end(&server);
    cr_expect(strstr(server.body, "[{\"role\":\"user\",\"content\":\"fresh\"}]") != NULL, "%s", server.body);
}

/* Standard output and the exit status of the chat with lines from a pipe. */
static int run_piped(const struct fake_server *server, const char *lines, char *output, size_t room)
{
    char command[512];
    snprintf(command, sizeof(command), "printf '%s' | %s chat --socket %s 2>/dev/null; echo \"status $?\"", lines,
             program(), server->path);
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    output[fread(output, 1, room - 1, pipe)] = '\0';
    return pclose(pipe);
}

Test(chat_client, on_a_pipe_writes_answers_alone)
{
    struct fake_server server = {.answer = whole, .connections = 2};
    fake_server_start(&server, 8);
    char output[1024];
    run_piped(&server, "one\\ntwo\\n", output, sizeof(output));
    fake_server_end(&server);
    cr_expect_str_eq(output, "verywell\nverywell\nstatus 0\n");
}

Test(chat_client, on_a_pipe_ends_with_the_first_failure)
{
    struct fake_server server = {.answer = refusal, .connections = 1};
    fake_server_start(&server, 8);
    char output[1024];
    run_piped(&server, "one\\ntwo\\n", output, sizeof(output));
    fake_server_end(&server);
    cr_expect_str_eq(output, "status 1\n");
}
