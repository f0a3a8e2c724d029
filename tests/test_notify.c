/* test_notify.c - the engine under a service manager, which the test is: sd_notify(3), sd_listen_fds(3). */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "tests/engine.h"

#define WATCHDOG_MS 1000
#define PATIENCE_MS 20000

static struct own_engine engine;
static int listener, words;
static char words_path[96];

static int bound_socket(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0, "%s", path);
    return fd;
}

static void set_up(void)
{
    snprintf(engine.directory, sizeof(engine.directory), "/tmp/evenflow-test-XXXXXX");
    cr_assert_not_null(mkdtemp(engine.directory));
    snprintf(engine.socket, sizeof(engine.socket), "%s/evenflow.sock", engine.directory);
    snprintf(words_path, sizeof(words_path), "%s/notify", engine.directory);
    listener = bound_socket(engine.socket, SOCK_STREAM);
    cr_assert_eq(listen(listener, 16), 0);
    words = bound_socket(words_path, SOCK_DGRAM);
}

static void tear_down(void)
{
    unlink(words_path);
    own_engine_forget(&engine);
}

/* As a service manager starts it, with `given` as its descriptor 3. */
static void start(const char *socket_path, int given)
{
    const char *build = getenv("EVENFLOW_BUILD"), *model = engine_model_path();
    char program[512], number[32];
    snprintf(program, sizeof(program), "%s/bin/evenflow", build != NULL ? build : "build");
    engine.pid = fork();
    cr_assert_geq(engine.pid, 0);
    if (engine.pid > 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int other = fcntl(given, F_DUPFD_CLOEXEC, 10);
    dup2(other, 3);
    snprintf(number, sizeof(number), "%d", (int)getpid());
    setenv("LISTEN_PID", number, 1);
    setenv("WATCHDOG_PID", number, 1);
    setenv("LISTEN_FDS", "1", 1);
    setenv("NOTIFY_SOCKET", words_path, 1);
    snprintf(number, sizeof(number), "%d", WATCHDOG_MS * 1000);
    setenv("WATCHDOG_USEC", number, 1);
    execl(program, program, "serve", model, "--socket", socket_path, "--log-level", "error", "--backend", "timed",
          "--cost", "tests/data/quick.pipeline.json", "-p", "2", (char *)NULL);
    _exit(127);
}

/* The next words of the engine; they stay until the next call. */
static const char *hear(int patience_ms)
{
    static char text[256];
    struct pollfd poll_fd = {.fd = words, .events = POLLIN};
    cr_assert_eq(poll(&poll_fd, 1, patience_ms), 1, "the engine says nothing for %d ms", patience_ms);
    ssize_t size = recv(words, text, sizeof(text) - 1, 0);
    cr_assert_gt(size, 0);
    text[size] = '\0';
    return text;
}

/* Passes over signs of life. */
static const char *hear_news(void)
{
    const char *text;
    do {
        text = hear(PATIENCE_MS);
    } while (strcmp(text, "WATCHDOG=1") == 0);
    return text;
}

/* Each in the time after which a service manager would end the engine. */
static void expect_signs_of_life(int count)
{
    for (int i = 0; i < count; i++)
        cr_expect_str_eq(hear(WATCHDOG_MS), "WATCHDOG=1");
}

static void expect_answer(void)
{
    int status;
    json_t *answer = engine_post(&engine, "/v1/completions", "{\"prompt\":\"one two\",\"max_tokens\":4}", &status);
    cr_expect_eq(status, 200);
    json_decref(answer);
}

static int watch_for(pid_t pid)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    cr_assert_geq(pidfd, 0);
    return pidfd;
}

static void expect_end(int pidfd)
{
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    cr_expect_eq(poll(&poll_fd, 1, PATIENCE_MS), 1, "it does not end");
}

static void expect_only_the_given_socket(void)
{
    char lock[128];
    snprintf(lock, sizeof(lock), "%s.lock", engine.socket);
    cr_expect_eq(access(engine.socket, F_OK), 0, "the socket belongs to the service manager");
    cr_expect_eq(access(lock, F_OK), -1, "the lock is left");
}

Test(notify, an_engine_on_a_given_socket_says_when_it_is_ready_and_alive_and_stopping, .init = set_up,
     .fini = tear_down, .timeout = 120)
{
    int status;
    start(engine.socket, listener);
    cr_expect_str_eq(hear_news(), "READY=1");
    json_decref(engine_get(&engine, "/ready", &status));
    cr_expect_eq(status, 200, "/ready says %d after READY=1", status);
    expect_answer();
    expect_signs_of_life(3);
    kill(engine.pid, SIGTERM);
    cr_expect_str_eq(hear_news(), "STOPPING=1");
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect_eq(status, 0);
    expect_only_the_given_socket();
}

Test(notify, whoever_connects_before_the_engine_listens_waits_and_is_answered, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    int status;
    start(engine.socket, listener); /* the connection waits in the given socket, whatever the engine is at */
    json_decref(engine_get(&engine, "/version", &status));
    cr_expect_eq(status, 200);
    kill(engine.pid, SIGTERM);
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect_eq(status, 0);
}

/* The programs once more, with stages that begin when somebody writes a line each into `gate`. */
static char programs[128], gate[160];
static const char *const others[] = {"evenflow-supervisor", "evenflow-front", "evenflow-sched"};

static void make_programs(void)
{
    char from[640], to[160],
        *here = realpath(getenv("EVENFLOW_BUILD") != NULL ? getenv("EVENFLOW_BUILD") : "build", NULL);
    snprintf(programs, sizeof(programs), "%s/programs", engine.directory);
    snprintf(gate, sizeof(gate), "%s/gate", programs);
    cr_assert_eq(mkdir(programs, 0700), 0);
    cr_assert_eq(mkfifo(gate, 0600), 0);
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        snprintf(from, sizeof(from), "%s/bin/%s", here, others[i]);
        snprintf(to, sizeof(to), "%s/%s", programs, others[i]);
        cr_assert_eq(symlink(from, to), 0);
    }
    snprintf(to, sizeof(to), "%s/evenflow-stage", programs);
    FILE *script = fopen(to, "we");
    fprintf(script, "#!/bin/sh\nread line <%s\nexec %s/bin/evenflow-stage \"$@\"\n", gate, here);
    fclose(script);
    cr_assert_eq(chmod(to, 0700), 0);
    setenv("EVENFLOW_PROGRAM_DIR", programs, 1);
    free(here);
}

static void remove_programs(void)
{
    char path[160];
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        snprintf(path, sizeof(path), "%s/%s", programs, others[i]);
        unlink(path);
    }
    snprintf(path, sizeof(path), "%s/evenflow-stage", programs);
    unlink(path);
    unlink(gate);
    rmdir(programs);
}

Test(notify, who_asks_before_the_engine_is_ready_is_told_to_come_again, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    int status;
    make_programs();
    start(engine.socket, listener);
    json_t *answer = engine_post(&engine, "/v1/completions", "{\"prompt\":\"one two\"}", &status);
    const char *code = json_string_value(json_object_get(json_object_get(answer, "error"), "code"));
    cr_expect_eq(status, 503);
    cr_expect(code != NULL && strcmp(code, "starting") == 0, "%s", code);
    json_decref(engine_get(&engine, "/ready", &status));
    cr_expect_eq(status, 503);
    json_decref(engine_get(&engine, "/health", &status));
    cr_expect_eq(status, 200);
    json_decref(answer);
    int fd = open(gate, O_WRONLY | O_CLOEXEC); /* waits until a stage is there */
    cr_assert_eq(write(fd, "\n\n", 2), 2);     /* a line for each */
    cr_expect_str_eq(hear_news(), "READY=1");
    close(fd);
    expect_answer();
    kill(engine.pid, SIGTERM);
    cr_expect_str_eq(hear_news(), "STOPPING=1");
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect_eq(status, 0);
    remove_programs();
}

Test(notify, a_supervisor_that_takes_over_says_so_and_goes_on_saying_that_it_lives, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    int pid = 0;
    start(engine.socket, listener);
    cr_expect_str_eq(hear_news(), "READY=1");
    expect_signs_of_life(2); /* one turn of its loop later there is a standby */
    kill(engine.pid, SIGKILL);
    cr_assert_eq(sscanf(hear_news(), "MAINPID=%d\nWATCHDOG=1", &pid), 1);
    cr_assert_eq(pid, engine_pid(&engine, "supervisor", 0));
    int pidfd = watch_for(pid);
    expect_answer();
    expect_signs_of_life(3);
    kill(pid, SIGTERM);
    cr_expect_str_eq(hear_news(), "STOPPING=1");
    expect_end(pidfd);
    waitpid(engine.pid, NULL, 0);
    expect_only_the_given_socket();
}

Test(notify, a_given_socket_that_is_not_the_engines_is_refused, .init = set_up, .fini = tear_down, .timeout = 120)
{
    int status;
    char other[128];
    snprintf(other, sizeof(other), "%s/other.sock", engine.directory);
    start(other, listener);
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1, "another path: status %d", status);
    start(engine.socket, words);
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1, "no stream: status %d", status);
    cr_expect_eq(access(other, F_OK), -1);
}
