/* test_state.c - the list of accepted, unfinished requests: what is left of an engine that was killed as a whole. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/ledger.h"
#include "tests/engine.h"

#define ENTRIES 8u

static char directory[64], file[96], log_path[96];
static struct err err;

static void set_up(void)
{
    strcpy(directory, "/tmp/evenflow-test-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    snprintf(file, sizeof(file), "%s/requests", directory);
    snprintf(log_path, sizeof(log_path), "%s/log", directory);
}

static void tear_down(void)
{
    char command[96];
    snprintf(command, sizeof(command), "rm -r %s", directory);
    cr_expect_eq(system(command), 0);
}

/* ---- the file ---- */

static const struct request_shm request = {
    .id = 0x123456789abcdef0, .created_s = 1000, .prompt_tokens = 5, .max_tokens = 7, .choices = 2};

static int begin(struct ledger *ledger)
{
    int fd = ledger_open(directory, &err);
    cr_assert_geq(fd, 0, "%s", err.text);
    cr_assert_eq(ledger_begin(fd, ENTRIES, &err), 0, "%s", err.text);
    cr_assert_eq(ledger_map(ledger, fd, ENTRIES, &err), 0, "%s", err.text);
    return fd;
}

Test(state, an_entry_is_there_from_put_to_clear, .init = set_up, .fini = tear_down)
{
    struct ledger ledger;
    struct ledger_entry_shm entry;
    int fd = begin(&ledger);
    for (uint32_t i = 0; i < ENTRIES; i++)
        cr_expect_eq(ledger_left(fd, i, &entry), 0);
    cr_expect_eq(ledger_left(fd, ENTRIES, &entry), -ENOENT);
    ledger_put(&ledger, 3, &request, true, "mine");
    ledger_put(&ledger, ENTRIES - 1, &request, false, "");
    cr_assert_eq(ledger_left(fd, 3, &entry), 1);
    cr_expect(entry.id == request.id && entry.accepted_s == 1000 && entry.prompt_tokens == 5 && entry.max_tokens == 7 &&
              entry.choices == 2 && entry.is_chat == 1);
    cr_expect_str_eq(entry.client_id, "mine");
    cr_expect_eq(ledger_left(fd, ENTRIES - 1, &entry), 1);
    ledger_clear(&ledger, 3);
    cr_expect_eq(ledger_left(fd, 3, &entry), 0);
    cr_assert_eq(ledger_begin(fd, ENTRIES, &err), 0);
    cr_expect_eq(ledger_left(fd, ENTRIES - 1, &entry), 0, "a new list begins with nothing");
}

Test(state, an_entry_that_is_there_in_part_is_damaged, .init = set_up, .fini = tear_down)
{
    struct ledger ledger;
    struct ledger_entry_shm entry;
    int fd = begin(&ledger);
    ledger_put(&ledger, 0, &request, true, "mine");
    for (size_t at = 0; at < sizeof(entry); at++) {
        uint8_t *byte = (uint8_t *)&ledger.entries[0] + at;
        *byte ^= 0x10;
        cr_expect_eq(ledger_left(fd, 0, &entry), -EBADMSG, "byte %zu", at);
        *byte ^= 0x10;
    }
    cr_expect_eq(ledger_left(fd, 0, &entry), 1);
}

Test(state, a_list_that_somebody_keeps_is_refused_until_all_of_them_are_gone, .init = set_up, .fini = tear_down)
{
    int said[2];
    char byte;
    cr_assert_eq(pipe(said), 0);
    pid_t keeper = fork();
    if (keeper == 0) { /* has it mapped, and no descriptor of it */
        struct ledger ledger;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(begin(&ledger));
        if (write(said[1], "x", 1) == 1)
            pause();
        _exit(0);
    }
    cr_assert_eq(read(said[0], &byte, 1), 1);
    cr_expect_eq(ledger_open(directory, &err), -EBUSY);
    cr_expect(strstr(err.text, "a running engine"), "%s", err.text);
    kill(keeper, SIGKILL);
    waitpid(keeper, NULL, 0);
    cr_expect_geq(ledger_open(directory, &err), 0, "%s", err.text);
}

Test(state, a_file_that_is_no_list_is_left_alone, .init = set_up, .fini = tear_down)
{
    static const char text[] = "somebody's diary, of more than twenty-four bytes";
    char seen[sizeof(text)];
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    cr_assert_eq(write(fd, text, sizeof(text)), (ssize_t)sizeof(text));
    cr_expect_eq(ledger_open(directory, &err), -EPROTO);
    cr_expect(strstr(err.text, "is no list"), "%s", err.text);
    cr_expect_eq(pread(fd, seen, sizeof(seen), 0), (ssize_t)sizeof(seen));
    cr_expect_str_eq(seen, text);
    struct ledger_head_shm head = {.magic = LEDGER_MAGIC, .entry_bytes = 64, .entry_count = 1};
    cr_assert_eq(pwrite(fd, &head, sizeof(head), 0), (ssize_t)sizeof(head));
    cr_expect_eq(ledger_open(directory, &err), -EPROTO, "entries of another build");
    unlink(file);
    cr_assert_eq(mkfifo(file, 0600), 0);
    cr_expect_lt(ledger_open(directory, &err), 0, "no file");
}

/* ---- engines ---- */

static pid_t engine;
static int ready;
static char log_text[65536], socket_path[96];

/* In a process group of its own, so that all of it can be killed at once. Its standard error goes to a file. */
static void start_engine(void)
{
    const char *build = getenv("EVENFLOW_BUILD"), *model = engine_model_path();
    char program[512], ready_option[32], state_option[96];
    int ends[2], log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
    snprintf(program, sizeof(program), "%s/bin/evenflow", build != NULL ? build : "build");
    snprintf(ready_option, sizeof(ready_option), "--ready-fd=%d", 3);
    snprintf(state_option, sizeof(state_option), "--state=%s", directory);
    snprintf(socket_path, sizeof(socket_path), "%s/socket", directory);
    engine = fork();
    cr_assert_geq(engine, 0);
    if (engine == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        setpgid(0, 0);
        dup2(log, STDERR_FILENO);
        if (ends[1] != 3)
            dup2(ends[1], 3);
        else
            fcntl(3, F_SETFD, 0);
        execl(program, program, "serve", model, "--socket", socket_path, "--log-level", "error", "--backend", "timed",
              "--cost", "tests/data/timed_fast.pipeline.json", "--num-blocks", "400", ready_option, state_option,
              (char *)NULL);
        _exit(127);
    }
    setpgid(engine, engine);
    close(log);
    close(ends[1]);
    ready = ends[0];
}

static bool becomes_ready(void)
{
    char byte;
    bool is_ready = read(ready, &byte, 1) == 1;
    close(ready);
    return is_ready;
}

/* What it has said. */
static const char *read_log(void)
{
    FILE *log = fopen(log_path, "re");
    cr_assert_not_null(log);
    log_text[fread(log_text, 1, sizeof(log_text) - 1, log)] = '\0';
    fclose(log);
    return log_text;
}

static int end_engine(int signal)
{
    int status;
    kill(signal == SIGKILL ? -engine : engine, signal);
    cr_assert_eq(waitpid(engine, &status, 0), engine);
    return status;
}

static int send_request(const char *client_id, const char *body)
{
    char text[1024];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    int size = snprintf(text, sizeof(text),
                        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\nContent-Length: %zu\r\n\r\n%s",
                        client_id, strlen(body), body);
    cr_assert_eq(send(fd, text, (size_t)size, 0), size);
    return fd;
}

/* The first bytes of an answer: its request has been accepted. */
static void await_bytes(int fd, char *text, size_t room)
{
    ssize_t got = recv(fd, text, room - 1, 0);
    cr_assert_gt(got, 0);
    text[got] = '\0';
}

static void await_active(json_int_t count)
{
    struct own_engine here = {0};
    snprintf(here.socket, sizeof(here.socket), "%s", socket_path);
    for (json_int_t active = -1; active != count;) {
        json_t *status = engine_get(&here, "/status", NULL);
        active = json_integer_value(json_object_get(json_object_get(status, "requests"), "active"));
        json_decref(status);
    }
}

static unsigned count_of(const char *text, const char *what)
{
    unsigned count = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at += strlen(what))
        count++;
    return count;
}

#define LONG_STREAM "{\"prompt\":[9,8,7],\"max_tokens\":6000,\"ignore_eos\":true,\"stream\":true}"

Test(state, what_an_engine_had_accepted_when_it_was_killed_is_named_by_the_next_one, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    char text[65536], id[32] = "";
    start_engine();
    cr_assert(becomes_ready(), "%s", read_log());
    int first = send_request("first-of-mine", LONG_STREAM), second = send_request("second-of-mine", LONG_STREAM);
    int finished = send_request("finished", "{\"prompt\":[9,8,7],\"max_tokens\":2,\"ignore_eos\":true}");
    await_bytes(finished, text, sizeof(text));
    cr_assert(strstr(text, "200 OK"), "%s", text);
    await_bytes(second, text, sizeof(text));
    do {
        await_bytes(first, text, sizeof(text));
    } while (strstr(text, "\"id\":\"cmpl-") == NULL);
    cr_assert_eq(sscanf(strstr(text, "cmpl-"), "%30[^\"]", id), 1);
    await_active(2); /* a client can have its last byte before front knows */
    end_engine(SIGKILL);

    start_engine();
    cr_assert(becomes_ready(), "%s", read_log());
    read_log();
    cr_expect(strstr(log_text, id), "%s is not named:\n%s", id, log_text);
    cr_expect(strstr(log_text, "X-Request-Id first-of-mine"), "%s", log_text);
    cr_expect(strstr(log_text, "X-Request-Id second-of-mine"), "%s", log_text);
    cr_expect(strstr(log_text, "2 requests accepted and not finished"), "%s", log_text);
    cr_expect(strstr(log_text, "have to ask again"), "%s", log_text);
    cr_expect_not(strstr(log_text, "X-Request-Id finished"), "%s", log_text);
    cr_expect_eq(count_of(log_text, "\n"), 3, "%s", log_text);
    end_engine(SIGKILL);

    start_engine();
    cr_assert(becomes_ready(), "%s", read_log());
    cr_expect_not(strstr(read_log(), "lost"), "named once, and idle since: %s", log_text);
    close(send_request("gone", LONG_STREAM)); /* a client that leaves has lost nothing */
    cr_expect_eq(end_engine(SIGTERM), 0);

    start_engine();
    cr_assert(becomes_ready(), "%s", read_log());
    cr_expect_not(strstr(read_log(), "lost"), "after an orderly end: %s", log_text);
    cr_expect_eq(end_engine(SIGTERM), 0);
    close(first);
    close(second);
    close(finished);
}

Test(state, a_second_engine_and_a_file_of_somebody_elses_are_refused, .init = set_up, .fini = tear_down, .timeout = 120)
{
    start_engine();
    cr_assert(becomes_ready(), "%s", read_log());
    pid_t running = engine;
    start_engine();
    cr_expect_not(becomes_ready());
    int status;
    waitpid(engine, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    cr_expect(strstr(read_log(), "a running engine keeps its list there"), "%s", log_text);
    engine = running;
    cr_expect_eq(end_engine(SIGTERM), 0);
    cr_assert_eq(truncate(file, 10), 0);
    start_engine();
    cr_expect_not(becomes_ready());
    waitpid(engine, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    cr_expect(strstr(read_log(), "is no list of requests"), "%s", log_text);
}
