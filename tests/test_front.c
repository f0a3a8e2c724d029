/* test_front.c - the front over a real socket, on both back ends, with the scheduler's side played by hand. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <liburing.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine/conns.h"
#include "engine/front.h"
#include "ipc/clock.h"
#include "ipc/journal.h"
#include "ipc/keep.h"
#include "ipc/log.h"
#include "ipc/shm.h"
#include "tests/fake_sched.h"
#include "tests/forbid.h"
#include "tests/hostile.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

#define ANSWER_BYTES (8u << 20)

static struct plan plan;
static struct arena arena;
static struct front *front;
static struct ring_producer to_front;
static struct ring_consumer from_front;
static char directory[] = "/tmp/evenflow-test-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static uint32_t cancelled_count, stopped_count;
static enum io_choice io_choice;
static enum log_level log_level = LOG_ERROR;
static int keep_socket = -1;  /* the keeper's end, where a test has one */
static uint32_t is_ready = 1; /* every process, before the test begins */
static uint32_t epoch = 1;    /* which life of the front it is */

/* A test for each back end. */
#define FRONT_TEST(name, set_up)                                                                                       \
    static void name(void);                                                                                            \
    Test(front_uring, name, .fini = tear_down)                                                                         \
    {                                                                                                                  \
        io_choice = IO_URING;                                                                                          \
        set_up();                                                                                                      \
        name();                                                                                                        \
    }                                                                                                                  \
    Test(front_epoll, name, .fini = tear_down)                                                                         \
    {                                                                                                                  \
        io_choice = IO_EPOLL;                                                                                          \
        set_up();                                                                                                      \
        name();                                                                                                        \
    }                                                                                                                  \
    static void name(void)

static void set_up_plan(void)
{
    plan = plan_for_tests();
    plan.request_timeout_ms = 60000;
}

static bool has_tcp;
static struct sockaddr_in tcp_address = {.sin_family = AF_INET};

/* On a free port of this machine, with two keys. */
static void open_tcp(void)
{
    static const char keys[] = "# ours\nsecret-one\r\n\nsecret-two";
    struct err err = {0};
    socklen_t size = sizeof(tcp_address);
    tcp_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    arena.listener_tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_eq(bind(arena.listener_tcp, (struct sockaddr *)&tcp_address, size), 0);
    cr_assert_eq(listen(arena.listener_tcp, 128), 0);
    cr_assert_eq(getsockname(arena.listener_tcp, (struct sockaddr *)&tcp_address, &size), 0);
    arena.keys = shm_create("keys", 4096, &err);
    cr_assert_eq(pwrite(arena.keys, keys, sizeof(keys), 0), (ssize_t)sizeof(keys));
}

static bool has_others;

/* A keeper with nothing to give back, and the bells of the supervisor and of a scheduler that always sleeps. */
static void open_others(void)
{
    int pair[2];
    struct keep_table nothing = {0};
    uint32_t next = 0;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    keep_socket = pair[0];
    arena.keep = pair[1];
    cr_assert_eq(keep_table_give(&nothing, keep_socket, &next), 0);
    arena.bells[process_number(ROLE_SUPERVISOR, 0)] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    arena.bells[process_number(ROLE_SCHED, 0)] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&arena_process(&arena, ROLE_SCHED, 0)->sleeping, 1);
}

static void start(void)
{
    struct err err = {0};
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    log_open("test", log_level);
    tiny_vocab_plan(&plan, vocab_bytes);
    fake_sched_plan(&plan);
    arena_in_memory(&arena, &plan);
    arena.role = ROLE_FRONT;
    arena.regions[REGION_VOCAB] = blob;
    arena.bells[process_number(ROLE_FRONT, 0)] = eventfd(0, EFD_CLOEXEC);
    cr_assert_not_null(mkdtemp(directory));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", directory);
    arena.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_eq(bind(arena.listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(arena.listener, 128), 0);
    if (has_tcp)
        open_tcp();
    if (has_others)
        open_others();
    arena_ring_sched_to_front_producer(&arena, &to_front);
    arena_ring_front_to_sched_consumer(&arena, &from_front);
    atomic_store(&arena_sup(&arena)->ready, is_ready);
    atomic_store(&arena_sup(&arena)->has_started, is_ready);
    arena.epoch = epoch;
    plan.io = io_choice;
    int ret = front_init(&front, &arena, &err);
    if (io_choice == IO_URING && (ret == -EPERM || ret == -ENOSYS || ret == -EINVAL))
        cr_skip_test("%s", err.text);
    cr_assert_eq(ret, 0, "%s", err.text);
    front_start(front);
}

static void set_up(void)
{
    set_up_plan();
    start();
}

static void set_up_with_others(void)
{
    has_others = true;
    set_up_plan();
    plan.connections_max = 128;
    start();
}

static void tear_down(void)
{
    front_free(front);
    unlink(address.sun_path);
    rmdir(directory);
}

/* ---- the scheduler's side ---- */

static void hint(enum msg_request_kind kind, uint32_t slot)
{
    struct msg_request msg = {.kind = kind, .slot = slot, .generation = arena_request(&arena, slot)->generation};
    cr_assert_eq(ring_push(&to_front, &msg), RING_OK);
}

static void sched_turn(void)
{
    struct msg_request msg;
    for (; ring_peek(&from_front, &msg) == RING_OK; ring_release(&from_front)) {
        const struct request_shm *request = arena_request(&arena, msg.slot);
        switch (msg.kind) {
        case MSG_REQUEST_ACCEPTED:
            cr_assert_eq(journal_request_state(request), REQUEST_ACCEPTED);
            fake_sched_take(&arena, msg.slot);
            break;
        case MSG_REQUEST_CANCELLED:
            cr_assert(journal_request_is_cancelled(request));
            cancelled_count++;
            for (uint32_t c = 0; c < request->choices; c++)
                fake_sched_end(&arena, msg.slot, c, FINISH_ABORT);
            hint(MSG_REQUEST_TOKENS, msg.slot);
            break;
        case MSG_REQUEST_STOPPED:
            stopped_count++;
            for (uint32_t c = 0; c < request->choices; c++)
                if (journal_request_stopped(request) >> c & 1)
                    fake_sched_end(&arena, msg.slot, c, FINISH_STOP);
            hint(MSG_REQUEST_TOKENS, msg.slot);
            break;
        case MSG_REQUEST_DRAINED:
            cr_assert_eq(journal_request_state(request), REQUEST_DRAINED);
            fake_sched_forget(&arena, msg.slot);
            hint(MSG_REQUEST_FORGOTTEN, msg.slot);
            break;
        }
    }
}

/* Until neither side has anything to do. */
static void settle(void)
{
    for (int idle = 0; idle < 3;) {
        int done = front_do_work(front, false);
        cr_assert_geq(done, 0);
        bool has_messages = !ring_is_empty(&from_front);
        sched_turn();
        idle = done == 0 && !has_messages ? idle + 1 : 0;
    }
}

static void commit_text(uint32_t slot, const char *text)
{
    uint32_t ids[4096];
    uint32_t count = tiny_vocab_bytes(text, ids);
    for (uint32_t i = 0; i < count; i++) {
        struct token_shm token = {.token = ids[i]};
        fake_sched_commit(&arena, slot, 0, &token);
    }
    hint(MSG_REQUEST_TOKENS, slot);
}

static void end_sequence(uint32_t slot)
{
    fake_sched_end(&arena, slot, 0, FINISH_LENGTH);
    hint(MSG_REQUEST_TOKENS, slot);
}

/* ---- the client's side ---- */

static int connect_client(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void send_text(int fd, const char *text)
{
    for (size_t sent = 0, size = strlen(text); sent < size;) {
        ssize_t more = send(fd, text + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        cr_assert(more > 0 || errno == EAGAIN);
        sent += more > 0 ? (size_t)more : 0;
        settle();
    }
    settle();
}

/* What has arrived by now; *is_closed when nothing more will. */
static char *receive(int fd, bool *is_closed)
{
    static char text[ANSWER_BYTES];
    size_t size = 0;
    bool closed = false;
    for (;;) {
        ssize_t got = recv(fd, text + size, sizeof(text) - size - 1, MSG_DONTWAIT);
        closed = got == 0 || (got < 0 && errno != EAGAIN);
        if (got <= 0)
            break;
        size += (size_t)got;
        settle();
    }
    text[size] = '\0';
    if (is_closed != NULL)
        *is_closed = closed;
    return text;
}

static const char *ask(int fd, const char *request)
{
    send_text(fd, request);
    return receive(fd, NULL);
}

static const char *post(const char *path, const char *body)
{
    static char text[200000];
    snprintf(text, sizeof(text), "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s", path, strlen(body),
             body);
    return text;
}

static int status_of(const char *answer)
{
    int status = 0;
    sscanf(answer, "HTTP/1.1 %d ", &status);
    return status;
}

static uint32_t descriptor_count(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t count = 0;
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static uint64_t counter(enum counter_id id)
{
    return counter_read(arena_process(&arena, ROLE_FRONT, 0), id);
}

static void expect_nothing_left(void)
{
    settle();
    cr_expect_eq(counter(COUNTER_FRONT_REQUESTS_ACTIVE), 0);
    cr_expect_eq(counter(COUNTER_FRONT_REQUEST_SLOTS_FREE), plan.requests_max);
    cr_expect_eq(counter(COUNTER_FRONT_PROMPT_PAGES_FREE), plan.prompt_pages);
    cr_expect_eq(counter(COUNTER_FRONT_CONNECTIONS_OPEN), 0);
}

/* ---- tests ---- */

FRONT_TEST(answers_what_it_knows_by_itself, set_up)
{
    static const struct {
        const char *request, *says;
        int status;
    } cases[] = {
        {"GET /health HTTP/1.1\r\n\r\n", "\"ok\"", 200},
        {"GET /ready HTTP/1.1\r\n\r\n", "\"ok\"", 200},
        {"GET /version HTTP/1.1\r\n\r\n", "\"version\":\"test\"", 200},
        {"GET /v1/models HTTP/1.1\r\n\r\n", "\"id\":\"test-model\"", 200},
        {"GET /v1/models/test-model HTTP/1.1\r\n\r\n", "\"id\":\"test-model\"", 200},
        {"GET /v1/models/other HTTP/1.1\r\n\r\n", "model_not_found", 404},
        {"GET /status HTTP/1.1\r\n\r\n", "\"processes\":[", 200},
        {"GET /metrics HTTP/1.1\r\n\r\n", "evenflow_request_slots_free 16\n", 200},
        {"GET /metrics HTTP/1.1\r\n\r\n", "evenflow_stage_steps_total{stage=\"1\"} 0\n", 200},
        {"GET /nothing HTTP/1.1\r\n\r\n", "\"error\":{", 404},
        {"GET /v1/completions HTTP/1.1\r\n\r\n", "Allow: POST\r\n", 405},
        {"POST /health HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "Allow: GET, HEAD\r\n", 405},
        {"GET /health HTTP/1.1\r\nX-Request-Id: r-1\r\n\r\n", "X-Request-Id: r-1\r\n", 200},
        {"POST /tokenize HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"prompt\":\"hello\"}", "\"tokens\":[262]", 200},
        {"POST /detokenize HTTP/1.1\r\nContent-Length: 16\r\n\r\n{\"tokens\":[262]}", "\"prompt\":\"hello\"", 200},
    };
    int fd = connect_client();
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *answer = ask(fd, cases[i].request);
        cr_expect_eq(status_of(answer), cases[i].status, "%s%s", cases[i].request, answer);
        cr_expect_not_null(strstr(answer, cases[i].says), "%s%s", cases[i].request, answer);
    }
    const char *head = ask(fd, "HEAD /health HTTP/1.1\r\n\r\n");
    cr_expect_eq(status_of(head), 200);
    cr_expect_not_null(strstr(head, "Content-Length: 15\r\n"), "%s", head);
    cr_expect_str_eq(strstr(head, "\r\n\r\n"), "\r\n\r\n");
    close(fd);
    expect_nothing_left();
}

/* What promtool would say of it: each family has its help, then its type, then its samples, all in one place; counters end in
 * _total, and nothing else does. */
FRONT_TEST(metrics_have_the_form_that_prometheus_reads, set_up)
{
    int fd = connect_client();
    const char *answer = ask(fd, "GET /metrics HTTP/1.1\r\n\r\n");
    char *text = strdup(strstr(answer, "\r\n\r\n") + 4), *rest = text, family[128] = "", seen[16384] = " ";
    bool has_type = false;
    uint32_t families = 0, samples = 1;
    cr_expect_not_null(strstr(answer, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    cr_assert(text[0] != '\0' && text[strlen(text) - 1] == '\n');
    for (char *line; (line = strsep(&rest, "\n")) != NULL && *line != '\0';) {
        char name[128], kind[16], said[130];
        double value;
        int end = 0;
        if (sscanf(line, "# HELP %127s %n", name, &end) == 1 && end > 0) {
            cr_expect(samples > 0 && line[end] != '\0', "%s", line);
            snprintf(said, sizeof(said), " %s ", name);
            cr_expect_null(strstr(seen, said), "twice: %s", line);
            cr_assert_lt(strlen(seen) + strlen(said), sizeof(seen));
            strcat(seen, said);
            strcpy(family, name);
            families++;
            has_type = false;
            samples = 0;
        } else if (sscanf(line, "# TYPE %127s %15s%n", name, kind, &end) == 2) {
            size_t size = strlen(name);
            bool is_total = size > 6 && strcmp(name + size - 6, "_total") == 0;
            cr_expect(!has_type && samples == 0 && strcmp(name, family) == 0 && line[end] == '\0', "%s", line);
            cr_expect_eq(is_total, strcmp(kind, "counter") == 0, "%s", line);
            cr_expect(is_total || strcmp(kind, "gauge") == 0, "%s", line);
            has_type = true;
        } else {
            bool is_plain = sscanf(line, "%127[a-z0-9_] %lf%n", name, &value, &end) == 2;
            bool has_labels = !is_plain && sscanf(line, "%127[a-z0-9_]{%*[^}]} %lf%n", name, &value, &end) == 2;
            cr_expect((is_plain || has_labels) && line[end] == '\0', "%s", line);
            cr_expect(has_type && strcmp(name, family) == 0, "%s", line);
            samples++;
        }
    }
    cr_expect_gt(families, 20);
    free(text);
    close(fd);
    expect_nothing_left();
}

/* Whether a bell has been rung since the last question. */
static bool has_rung(enum role role)
{
    uint64_t rings;
    return read(arena.bells[process_number(role, 0)], &rings, sizeof(rings)) == sizeof(rings);
}

FRONT_TEST(the_keeper_has_every_connection_and_is_woken_for_many_or_when_it_waits_for_them, set_up_with_others)
{
    int clients[100], fds[KEEP_ENTRIES_MAX];
    struct keep_message message;
    uint32_t kept = 0;
    clients[0] = connect_client();
    settle();
    cr_expect_not(has_rung(ROLE_SUPERVISOR));
    arena_sup(&arena)->head.epoch++; /* a new one, which has none */
    settle();
    cr_expect(has_rung(ROLE_SUPERVISOR));
    for (uint32_t i = 1; i < ARRAY_COUNT(clients); i++) {
        clients[i] = connect_client();
        settle();
        cr_expect_eq(has_rung(ROLE_SUPERVISOR), i == 65, "connection %u", i);
    }
    for (; keep_receive(keep_socket, false, &message, fds) == 1; kept += message.fd_count)
        for (uint32_t i = 0; i < message.fd_count; i++)
            close(fds[i]);
    cr_expect_eq(kept, 101); /* the first one twice */
    for (uint32_t i = 0; i < ARRAY_COUNT(clients); i++)
        close(clients[i]);
    expect_nothing_left();
}

FRONT_TEST(sched_is_not_woken_to_forget_before_there_is_something_else_or_a_while_has_passed, set_up_with_others)
{
    int fd = connect_client();
    for (uint32_t i = 0; i < 3; i++) {
        send_text(fd, post("/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}"));
        cr_expect(has_rung(ROLE_SCHED));
        commit_text(0, "x");
        end_sequence(0);
        settle();
        cr_expect_eq(status_of(receive(fd, NULL)), 200);
        cr_expect_not(has_rung(ROLE_SCHED));
    }
    struct pollfd bell = {.fd = arena.bells[process_number(ROLE_SCHED, 0)], .events = POLLIN};
    for (uint64_t begin = clock_ns(); poll(&bell, 1, 0) == 0 && clock_ns() - begin < 5000000000ull;)
        settle();
    cr_expect(has_rung(ROLE_SCHED));
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(status_is_json, set_up)
{
    arena_sup(&arena)->process_count = 5;
    for (uint32_t i = 0; i < 5; i++)
        arena_sup(&arena)->processes[i] =
            (struct process_entry_shm){.pid = 100 + i, .role = i < 3 ? i : ROLE_STAGE, .index = i < 3 ? 0 : i - 3};
    int fd = connect_client();
    const char *answer = ask(fd, "GET /status HTTP/1.1\r\n\r\n");
    json_t *status = json_loads(strstr(answer, "\r\n\r\n") + 4, 0, NULL);
    cr_assert_not_null(status, "%s", answer);
    json_t *processes = json_object_get(status, "processes");
    cr_assert_eq(json_array_size(processes), 5);
    cr_expect_str_eq(json_string_value(json_object_get(json_array_get(processes, 4), "role")), "stage");
    cr_expect_eq(json_integer_value(json_object_get(json_array_get(processes, 4), "index")), 1);
    cr_expect_eq(json_integer_value(json_object_get(json_array_get(processes, 4), "pid")), 104);
    cr_expect_str_eq(json_string_value(json_object_get(json_array_get(processes, 4), "state")), "starting");
    close(fd);
}

FRONT_TEST(answers_a_pipeline_in_order, set_up)
{
    int fd = connect_client();
    const char *answer = ask(fd, "GET /health HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\nGET /version HTTP/1.1\r\n"
                                 "Connection: close\r\n\r\nGET /health HTTP/1.1\r\n\r\n");
    const char *first = strstr(answer, "200 OK"), *second = strstr(answer, "404 Not Found");
    const char *third = strstr(answer, "\"fingerprint\"");
    cr_expect(first != NULL && second > first && third > second, "%s", answer);
    bool is_closed;
    receive(fd, &is_closed);
    cr_expect(is_closed);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_request_goes_through_the_journal_and_its_answer_comes_back, set_up)
{
    int fd = connect_client();
    const char *nothing =
        ask(fd, post("/v1/completions", "{\"prompt\":\"ab\",\"max_tokens\":3,\"seed\":9,\"temperature\":0.5}"));
    cr_expect_str_eq(nothing, "");
    const struct request_shm *request = arena_request(&arena, 0);
    cr_assert_eq(journal_request_state(request), REQUEST_ACCEPTED);
    cr_expect_eq(request->order, 1);
    cr_expect_eq(request->prompt_tokens, 2);
    cr_expect_eq(request->max_tokens, 3);
    cr_expect_eq(request->seed, 9);
    cr_expect_eq(request->temperature, 0.5f);
    cr_expect_neq(request->id, 0);
    uint32_t prompt[2];
    journal_prompt_read(&arena, 0, 0, 2, prompt);
    cr_expect_eq(prompt[1], TINY_BYTE_FIRST + 'b');
    commit_text(0, "xyz");
    settle();
    cr_expect_str_eq(receive(fd, NULL), "");
    end_sequence(0);
    settle();
    const char *answer = receive(fd, NULL);
    cr_expect_eq(status_of(answer), 200);
    cr_expect_not_null(strstr(answer, "\"text\":\"xyz\""), "%s", answer);
    cr_expect_not_null(strstr(answer, "\"finish_reason\":\"length\""));
    cr_expect_eq(status_of(ask(fd, "GET /health HTTP/1.1\r\n\r\n")), 200);
    close(fd);
    expect_nothing_left();
    cr_expect_eq(cancelled_count, 0);
}

FRONT_TEST(a_stream_comes_token_by_token, set_up)
{
    int fd = connect_client();
    const char *answer = ask(fd, post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],"
                                                              "\"stream\":true,\"max_tokens\":8}"));
    cr_expect_not_null(strstr(answer, "text/event-stream"), "%s", answer);
    cr_expect_null(strstr(answer, "data:"));
    for (int i = 0; i < 5; i++) {
        commit_text(0, "q");
        settle();
        answer = receive(fd, NULL);
        cr_expect_not_null(strstr(answer, "\"delta\":{\"content\":\"q\"}"), "%s", answer);
        cr_expect_eq(strstr(answer, "\"role\":\"assistant\"") != NULL, i == 0, "%s", answer);
    }
    end_sequence(0);
    settle();
    answer = receive(fd, NULL);
    cr_expect_not_null(strstr(answer, "data: [DONE]\n\n\r\n0\r\n\r\n"), "%s", answer);
    cr_expect_eq(status_of(ask(fd, "GET /health HTTP/1.1\r\n\r\n")), 200);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_stream_to_an_old_client_ends_with_the_connection, set_up)
{
    int fd = connect_client();
    send_text(fd, "POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 28\r\n\r\n"
                  "{\"prompt\":\"a\",\"stream\":true}");
    commit_text(0, "q");
    end_sequence(0);
    settle();
    bool is_closed;
    const char *answer = receive(fd, &is_closed);
    cr_expect_null(strstr(answer, "chunked"));
    cr_expect_str_eq(answer + strlen(answer) - 14, "data: [DONE]\n\n");
    cr_expect(is_closed);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_request_may_come_byte_by_byte_and_chunked, set_up)
{
    int fd = connect_client();
    const char *request = "POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                          "5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n";
    for (const char *at = request; *at != '\0'; at++) {
        cr_assert_eq(send(fd, at, 1, MSG_NOSIGNAL), 1);
        settle();
    }
    cr_assert_eq(journal_request_state(arena_request(&arena, 0)), REQUEST_ACCEPTED);
    commit_text(0, "q");
    end_sequence(0);
    settle();
    cr_expect_not_null(strstr(receive(fd, NULL), "\"text\":\"q\""));
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(tells_a_polite_client_to_go_on, set_up)
{
    int fd = connect_client();
    const char *answer = ask(fd, "POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n");
    cr_expect_str_eq(answer, "HTTP/1.1 100 Continue\r\n\r\n");
    ask(fd, "{\"prompt\":\"a\"}");
    commit_text(0, "q");
    end_sequence(0);
    settle();
    cr_expect_eq(status_of(receive(fd, NULL)), 200);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_client_that_leaves_cancels_its_request, set_up)
{
    static const char *const bodies[] = {"{\"prompt\":\"ab\",\"stream\":true}", "{\"prompt\":\"ab\"}"};
    for (uint32_t when = 0; when < 3; when++)
        for (uint32_t i = 0; i < 2; i++) {
            int fd = connect_client();
            ask(fd, post("/v1/completions", bodies[i]));
            if (when > 0)
                commit_text(0, "q");
            if (when > 1)
                settle();
            close(fd);
            expect_nothing_left();
        }
    cr_expect_eq(cancelled_count, 6);
    cr_expect_eq(counter(COUNTER_FRONT_REQUESTS_ABORTED), 6);
}

FRONT_TEST(a_client_that_only_stops_talking_gets_its_answer, set_up)
{
    int fd = connect_client();
    send_text(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    shutdown(fd, SHUT_WR);
    settle();
    commit_text(0, "q");
    end_sequence(0);
    settle();
    bool is_closed;
    cr_expect_not_null(strstr(receive(fd, &is_closed), "\"text\":\"q\""));
    receive(fd, &is_closed);
    cr_expect(is_closed);
    cr_expect_eq(cancelled_count, 0);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_request_cancelled_before_it_was_taken_in_comes_to_an_end, set_up)
{
    int fd = connect_client();
    const char *request = post("/v1/completions", "{\"prompt\":\"ab\"}");
    cr_assert_eq(send(fd, request, strlen(request), MSG_NOSIGNAL), (ssize_t)strlen(request));
    while (journal_request_state(arena_request(&arena, 0)) != REQUEST_ACCEPTED)
        front_do_work(front, true);
    close(fd);
    while (!journal_request_is_cancelled(arena_request(&arena, 0)))
        front_do_work(front, true);
    struct msg_request msg;
    while (ring_peek(&from_front, &msg) == RING_OK)
        ring_release(&from_front);
    arena_answer(&arena, 0)->sequence_count = 0;
    journal_answer_set(arena_answer(&arena, 0), msg.generation);
    hint(MSG_REQUEST_TOKENS, 0);
    expect_nothing_left();
}

FRONT_TEST(a_stop_string_ends_the_request, set_up)
{
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\",\"stop\":\"lo\",\"max_tokens\":100}"));
    commit_text(0, "hello world");
    settle();
    const char *answer = receive(fd, NULL);
    cr_expect_not_null(strstr(answer, "\"text\":\"hel\""), "%s", answer);
    cr_expect_not_null(strstr(answer, "\"finish_reason\":\"stop\""));
    cr_expect_not_null(strstr(answer, "\"completion_tokens\":5,"));
    cr_expect_eq(stopped_count, 1);
    cr_expect_eq(counter(COUNTER_FRONT_REQUESTS_ABORTED), 0);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_stop_string_ends_its_choice_while_another_keeps_the_stream_waiting, set_up)
{
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\",\"stop\":\"lo\",\"max_tokens\":100,\"n\":2,\"stream\":true}"));
    commit_text(0, "hello world");
    settle();
    cr_expect_eq(stopped_count, 1);
    cr_expect_eq(journal_request_stopped(arena_request(&arena, 0)), 1);
    cr_expect_not(journal_request_is_cancelled(arena_request(&arena, 0)));
    const char *answer = receive(fd, NULL);
    cr_expect_null(strstr(answer, "\"finish_reason\":\"stop\""), "%s", answer);
    fake_sched_commit(&arena, 0, 1, &(struct token_shm){.token = TINY_HELLO});
    hint(MSG_REQUEST_TOKENS, 0);
    settle();
    cr_expect_not_null(strstr(receive(fd, NULL), "data: [DONE]"));
    cr_expect_eq(cancelled_count, 0);
    close(fd);
    expect_nothing_left();
}

/* Three prompts of two choices each: choice c of prompt p says "pc". */
static const char *answer_of_prompts(int fd, const char *more)
{
    char body[256];
    snprintf(body, sizeof(body), "{\"prompt\":[\"ab\",[9],\"hello\"],\"n\":2,\"max_tokens\":2%s}", more);
    ask(fd, post("/v1/completions", body));
    for (uint32_t left = 6; left-- > 0;) { /* the last one is done first */
        uint32_t prompt = left / 2, choice = left % 2, slot = UINT32_MAX;
        for (uint32_t i = 0; i < plan.requests_max; i++)
            if (journal_request_state(arena_request(&arena, i)) == REQUEST_ACCEPTED &&
                arena_request(&arena, i)->prompt == prompt)
                slot = i;
        cr_assert_neq(slot, UINT32_MAX);
        fake_sched_commit(&arena, slot, choice, &(struct token_shm){.token = TINY_BYTE_FIRST + '0' + prompt});
        fake_sched_commit(&arena, slot, choice, &(struct token_shm){.token = TINY_BYTE_FIRST + 'a' + choice});
        fake_sched_end(&arena, slot, choice, FINISH_LENGTH);
        hint(MSG_REQUEST_TOKENS, slot);
        settle();
    }
    return receive(fd, NULL);
}

FRONT_TEST(choices_of_several_prompts_are_numbered_through, set_up)
{
    static const char *const texts[] = {"0a", "0b", "1a", "1b", "2a", "2b"};
    int fd = connect_client();
    const char *answer = answer_of_prompts(fd, "");
    json_t *root = json_loads(strstr(answer, "\r\n\r\n") + 4, 0, NULL), *one;
    json_t *choices = json_object_get(root, "choices"), *usage = json_object_get(root, "usage");
    size_t i;
    cr_assert_eq(json_array_size(choices), 6, "%s", answer);
    json_array_foreach(choices, i, one) {
        cr_expect_eq(json_integer_value(json_object_get(one, "index")), (json_int_t)i);
        cr_expect_str_eq(json_string_value(json_object_get(one, "text")), texts[i]);
    }
    cr_expect_eq(json_integer_value(json_object_get(usage, "prompt_tokens")), 2 + 1 + 1);
    cr_expect_eq(json_integer_value(json_object_get(usage, "completion_tokens")), 12);
    json_decref(root);
    answer = answer_of_prompts(fd, ",\"stream\":true");
    for (i = 0; i < 6; i++) {
        char event[64];
        snprintf(event, sizeof(event), "{\"index\":%zu,\"text\":\"%c\"", i, texts[i][1]);
        cr_expect(strstr(answer, event) != NULL, "%s", answer);
    }
    cr_expect_not_null(strstr(answer, "data: [DONE]"));
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_list_with_one_wrong_prompt_or_too_many_leaves_nothing_behind, set_up)
{
    int fd = connect_client();
    cr_expect_eq(status_of(ask(fd, post("/v1/completions", "{\"prompt\":[\"a\",\"b\",[1,100000]]}"))), 400);
    /* slots for 15 are free: 16 are not refused for good, but now */
    send_text(fd, post("/v1/completions", "{\"prompt\":\"a\"}"));
    int other = connect_client();
    const char *sixteen = "{\"prompt\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
                          "\"a\",\"a\",\"a\"]}";
    cr_expect_eq(status_of(ask(other, post("/v1/completions", sixteen))), 429);
    cr_expect_eq(counter(COUNTER_FRONT_REQUEST_SLOTS_FREE), plan.requests_max - 1);
    close(fd);
    settle();
    send_text(other, post("/v1/completions", sixteen));
    cr_expect_eq(counter(COUNTER_FRONT_REQUEST_SLOTS_FREE), 0);
    close(other); /* a client that leaves: all of its prompts are cancelled */
    expect_nothing_left();
}

FRONT_TEST(a_slow_reader_is_not_waited_for_and_loses_nothing, set_up)
{
    /* with logprobs and hashes an event has about 500 bytes: together more than `out` and the socket take at once */
    int slow = connect_client(), quick = connect_client();
    send_text(slow,
              post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stream\":true,"
                                           "\"max_tokens\":400,\"logprobs\":true,\"return_logits_hash\":true,"
                                           "\"return_token_ids\":true}"));
    for (int i = 0; i < 400; i++) {
        commit_text(0, "w");
        if (i % 10 == 0)
            settle();
    }
    end_sequence(0);
    settle();
    cr_expect_eq(status_of(ask(quick, "GET /health HTTP/1.1\r\n\r\n")), 200);
    char *answer = receive(slow, NULL);
    uint32_t events = 0;
    for (const char *at = answer; (at = strstr(at, "\"content\":\"w\"")) != NULL; at++)
        events++;
    cr_expect_eq(events, 400);
    cr_expect_not_null(strstr(answer, "data: [DONE]"));
    close(slow);
    close(quick);
    expect_nothing_left();
}

FRONT_TEST(an_answer_larger_than_every_buffer_comes_whole, set_up)
{
    int fd = connect_client();
    send_text(fd, post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":16,"
                                               "\"logprobs\":true,\"max_tokens\":400}"));
    for (uint32_t c = 0; c < 16; c++) {
        for (uint32_t i = 0; i < 400; i++) {
            struct token_shm token = {.token = TINY_HELLO, .logprob = -1.0f / (float)(i + 3)};
            fake_sched_commit(&arena, 0, c, &token);
        }
        fake_sched_end(&arena, 0, c, FINISH_LENGTH);
    }
    hint(MSG_REQUEST_TOKENS, 0);
    settle();
    char *answer = receive(fd, NULL);
    char *body = strstr(answer, "\r\n\r\n") + 4;
    size_t length = strtoul(strstr(answer, "Content-Length: ") + 16, NULL, 10);
    cr_assert_eq(strlen(body), length);
    cr_expect_gt(length, 500000);
    char *copy = strdup(body);
    cr_expect_eq(copy[length - 1], '}');
    uint32_t words = 0;
    for (const char *at = copy; (at = strstr(at, "\"token\":\"hello\"")) != NULL; at++)
        words++;
    cr_expect_eq(words, 16 * 400);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(an_empty_pool_is_a_429, set_up_plan)
{
    plan.requests_max = 2;
    start();
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = connect_client();
        const char *answer = ask(fds[i], post("/v1/completions", "{\"prompt\":\"ab\"}"));
        cr_expect_eq(status_of(answer), i < 2 ? 0 : 429, "%s", answer);
        cr_expect_eq(strstr(answer, "Retry-After: 1\r\n") != NULL, i == 2);
    }
    close(fds[0]);
    settle();
    cr_expect_str_eq(ask(fds[2], post("/v1/completions", "{\"prompt\":\"ab\"}")), "");
    close(fds[1]);
    close(fds[2]);
    expect_nothing_left();
}

FRONT_TEST(more_clients_than_slots_wait_their_turn, set_up)
{
    int fds[30];
    for (int i = 0; i < 30; i++) {
        fds[i] = connect_client();
        settle();
        cr_assert_eq(send(fds[i], "GET /health HTTP/1.1\r\n\r\n", 24, 0), 24);
    }
    settle();
    for (int i = 0; i < 30; i++) {
        const char *answer = receive(fds[i], NULL);
        cr_expect_eq(status_of(answer), 200, "client %d: %s", i, answer);
        close(fds[i]);
        settle();
    }
    expect_nothing_left();
}

FRONT_TEST(draining_finishes_what_is_there_and_refuses_the_rest, set_up)
{
    int first = connect_client(), second = connect_client();
    ask(first, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    atomic_store(&arena_sup(&arena)->command, COMMAND_DRAIN);
    settle();
    cr_expect_eq(status_of(ask(second, post("/v1/completions", "{\"prompt\":\"ab\"}"))), 503);
    const char *health = ask(second, "GET /health HTTP/1.1\r\n\r\n");
    cr_expect(status_of(health) == 503 && strstr(health, "Retry-After: 1\r\n") != NULL, "%s", health);
    cr_expect_neq(arena_state(&arena, ROLE_FRONT, 0), PROCESS_DRAINED);
    commit_text(0, "q");
    end_sequence(0);
    settle();
    cr_expect_eq(status_of(receive(first, NULL)), 200);
    settle();
    cr_expect_eq(arena_state(&arena, ROLE_FRONT, 0), PROCESS_DRAINED);
    atomic_store(&arena_sup(&arena)->command, COMMAND_STOP);
    cr_expect_eq(front_do_work(front, true), -1);
    close(first);
    close(second);
}

FRONT_TEST(wrong_messages_are_refused_and_the_connection_ends, set_up)
{
    static const struct {
        const char *request;
        int status;
    } cases[] = {{"NONSENSE\r\n\r\n", 400},
                 {"GET / HTTP/3.0\r\n\r\n", 505},
                 {"POST /v1/completions HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413},
                 {"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int fd = connect_client();
        const char *answer = ask(fd, cases[i].request);
        cr_expect_eq(status_of(answer), cases[i].status, "%s%s", cases[i].request, answer);
        cr_expect_not_null(strstr(answer, "Connection: close\r\n"));
        cr_expect_not_null(strstr(answer, "{\"error\":{\"message\":"));
        bool is_closed;
        receive(fd, &is_closed);
        cr_expect(is_closed);
        close(fd);
    }
    expect_nothing_left();
}

FRONT_TEST(an_idle_client_is_dropped_and_one_that_waits_for_tokens_is_not, set_up_plan)
{
    plan.request_timeout_ms = 30;
    start();
    int idle = connect_client(), waiting = connect_client();
    ask(waiting, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    bool is_closed = false;
    for (uint64_t end = clock_ns() + 5000000000ull; !is_closed && clock_ns() < end;) {
        cr_assert_geq(front_do_work(front, true), 0); /* sleeps until the deadline */
        cr_expect_str_eq(receive(idle, &is_closed), "");
    }
    cr_expect(is_closed);
    receive(waiting, &is_closed);
    cr_expect_not(is_closed, "who waits for tokens was dropped");
    commit_text(0, "q");
    end_sequence(0);
    settle();
    cr_expect_eq(status_of(receive(waiting, NULL)), 200);
    close(idle);
    close(waiting);
    expect_nothing_left();
}

/* Sends a byte a turn until there is an answer. */
static void trickle(const char *begin)
{
    int fd = connect_client();
    send_text(fd, begin);
    bool is_closed = false;
    char answer[4096] = "";
    for (uint64_t end = clock_ns() + 5000000000ull; !is_closed && clock_ns() < end;) {
        send(fd, "x", 1, MSG_NOSIGNAL);
        settle();
        const char *part = receive(fd, &is_closed);
        strncat(answer, part, sizeof(answer) - strlen(answer) - 1);
    }
    cr_expect(is_closed);
    const char *refusal = strstr(answer, "HTTP/1.1 408 ");
    cr_expect_not_null(refusal, "%s", answer);
    cr_expect(refusal != NULL && strstr(refusal, "Connection: close\r\n") != NULL);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_header_section_that_trickles_in_is_refused, set_up_plan)
{
    plan.header_timeout_ms = 30;
    start();
    trickle("POST /v1/completions HTTP/1.1\r\nContent-Le");
}

FRONT_TEST(a_body_that_trickles_in_is_refused, set_up_plan)
{
    plan.request_timeout_ms = 30;
    start();
    trickle("POST /v1/completions HTTP/1.1\r\nContent-Length: 60000\r\n\r\n");
    trickle("POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 60000\r\n\r\n");
}

FRONT_TEST(nothing_is_accepted_before_every_process_was_ready, set_up_plan)
{
    is_ready = 0;
    start();
    int fd = connect_client();
    const char *answer = ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    cr_expect_eq(status_of(answer), 503);
    cr_expect_not_null(strstr(answer, "Retry-After: 1\r\n"));
    cr_expect_eq(status_of(ask(fd, "GET /ready HTTP/1.1\r\n\r\n")), 503);
    cr_expect_eq(status_of(ask(fd, "GET /health HTTP/1.1\r\n\r\n")), 200);
    atomic_store(&arena_sup(&arena)->has_started,
                 1); /* a stage starts anew, whether or not front has looked: requests wait */
    cr_expect_str_eq(ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}")), "");
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_successor_accepts_nothing_either_before_every_process_was_ready, set_up_plan)
{
    is_ready = 0;
    epoch = 2;
    start();
    int fd = connect_client();
    const char *answer = ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    cr_expect_eq(status_of(answer), 503, "%s", answer);
    cr_expect_not_null(strstr(answer, "Retry-After: 1\r\n"));
    close(fd);
    expect_nothing_left();
}

static int connect_tcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&tcp_address, sizeof(tcp_address)), 0);
    return fd;
}

/* Over TCP a settled front may still wait for the kernel. */
static const char *ask_tcp(int fd, const char *request)
{
    static char answer[65536];
    size_t size = 0;
    send_text(fd, request);
    for (uint64_t end = clock_ns() + 5000000000ull; clock_ns() < end;) {
        settle();
        ssize_t got = recv(fd, answer + size, sizeof(answer) - size - 1, MSG_DONTWAIT);
        if (got <= 0 && size > 0)
            break;
        size += got > 0 ? (size_t)got : 0;
    }
    answer[size] = '\0';
    return answer;
}

/* Sends up to `size` bytes, all that the client can; how many. */
static size_t send_much(int fd, size_t size)
{
    static const char noise[65536];
    size_t sent = 0;
    for (uint64_t end = clock_ns() + 20000000000ull; sent < size && clock_ns() < end;) {
        ssize_t more = send(fd, noise, min_u64(sizeof(noise), size - sent), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (more < 0 && errno != EAGAIN)
            break;
        sent += more > 0 ? (size_t)more : 0;
        cr_assert_geq(front_do_work(front, false), 0);
    }
    return sent;
}

#define TOO_MUCH "POST /v1/completions HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n"

FRONT_TEST(a_refused_client_that_goes_on_sending_gets_its_answer, set_up_plan)
{
    has_tcp = true;
    start();
    for (int i = 0; i < 2; i++) {
        char answer[4096];
        size_t size = 0;
        ssize_t got = -1;
        int fd = i == 0 ? connect_tcp() : connect_client();
        send_text(fd, TOO_MUCH);
        cr_expect_eq(send_much(fd, 4000000), 4000000);
        for (uint64_t end = clock_ns() + 5000000000ull; got != 0 && clock_ns() < end;) {
            settle();
            got = recv(fd, answer + size, sizeof(answer) - size - 1, MSG_DONTWAIT);
            cr_assert(got >= 0 || errno == EAGAIN, "%s", strerror(errno));
            size += got > 0 ? (size_t)got : 0;
        }
        answer[size] = '\0';
        cr_expect_eq(got, 0, "not closed");
        cr_expect_eq(status_of(answer), 413, "%s", answer);
        close(fd);
    }
    for (uint64_t end = clock_ns() + 5000000000ull; counter(COUNTER_FRONT_CONNECTIONS_OPEN) > 0 && clock_ns() < end;)
        settle();
    expect_nothing_left();
}

FRONT_TEST(a_refused_client_cannot_send_for_ever, set_up)
{
    int fd = connect_client();
    send_text(fd, TOO_MUCH);
    size_t sent = send_much(fd, 1u << 30);
    cr_expect(sent > (8u << 20) && sent < (64u << 20), "%zu bytes were taken", sent);
    expect_nothing_left();
    close(fd);
}

FRONT_TEST(a_refused_client_that_does_not_close_is_dropped, set_up_plan)
{
    plan.request_timeout_ms = 30;
    start();
    int fd = connect_client();
    send_text(fd, TOO_MUCH);
    for (uint64_t end = clock_ns() + 5000000000ull; counter(COUNTER_FRONT_CONNECTIONS_OPEN) > 0 && clock_ns() < end;)
        cr_assert_geq(front_do_work(front, true), 0); /* sleeps until the deadline */
    expect_nothing_left();
    cr_expect_eq(status_of(receive(fd, NULL)), 413);
    close(fd);
}

FRONT_TEST(over_tcp_a_key_is_needed, set_up_plan)
{
    static const struct {
        const char *request;
        int status;
    } cases[] = {{"GET /version HTTP/1.1\r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Bearer secret-on\r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Bearer secret-onee\r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Bearer \r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Basic secret-one\r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Bearer # ours\r\n\r\n", 401},
                 {"OPTIONS /version HTTP/1.1\r\n\r\n", 401},
                 {"GET /version HTTP/1.1\r\nAuthorization: Bearer secret-one\r\n\r\n", 200},
                 {"GET /version HTTP/1.1\r\nauthorization: bearer secret-two \r\n\r\n", 200},
                 {"GET /health HTTP/1.1\r\n\r\n", 200}};
    has_tcp = true;
    start();
    int fd = connect_tcp(), local = connect_client();
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *answer = ask_tcp(fd, cases[i].request);
        cr_expect_eq(status_of(answer), cases[i].status, "%s%s", cases[i].request, answer);
        cr_expect_eq(strstr(answer, "WWW-Authenticate: Bearer\r\n") != NULL, cases[i].status == 401);
    }
    cr_expect_eq(status_of(ask(local, cases[0].request)), 200, "the Unix socket needs none");
    close(fd);
    close(local);
}

FRONT_TEST(over_tcp_pages_of_allowed_origins_may_ask, set_up_plan)
{
    static const struct {
        const char *request;
        int status;
        bool is_allowed;
    } cases[] = {{"GET /health HTTP/1.1\r\nOrigin: https://chat.example\r\n\r\n", 200, true},
                 {"GET /health HTTP/1.1\r\nOrigin: http://localhost:3000\r\n\r\n", 200, true},
                 {"GET /health HTTP/1.1\r\nOrigin: https://chat.example.org\r\n\r\n", 403, false},
                 {"GET /health HTTP/1.1\r\nOrigin: https://chat\r\n\r\n", 403, false},
                 {"GET /health HTTP/1.1\r\nOrigin: null\r\n\r\n", 403, false},
                 {"OPTIONS /v1/completions HTTP/1.1\r\nOrigin: https://chat.example\r\n"
                  "Access-Control-Request-Method: POST\r\n\r\n",
                  204, true},
                 {"OPTIONS /v1/completions HTTP/1.1\r\nOrigin: https://other.example\r\n\r\n", 403, false},
                 {"GET /health HTTP/1.1\r\n\r\n", 200, false}};
    static const char stream[] =
        "POST /v1/completions HTTP/1.1\r\nOrigin: https://chat.example\r\nAuthorization: Bearer secret-one\r\n"
        "Content-Length: 29\r\n\r\n{\"prompt\":\"ab\",\"stream\":true}";
    strcpy(plan.allowed_origins, "https://chat.example,http://localhost:3000");
    has_tcp = true;
    start();
    int fd = connect_tcp();
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *answer = ask_tcp(fd, cases[i].request);
        cr_expect_eq(status_of(answer), cases[i].status, "%s%s", cases[i].request, answer);
        cr_expect_eq(strstr(answer, "Access-Control-Allow-Origin: http") != NULL, cases[i].is_allowed, "%s", answer);
        /* clients in pages send fields of their own; the wildcard does not stand for Authorization (Fetch standard) */
        cr_expect_eq(strstr(answer, "Access-Control-Allow-Headers: Authorization, *\r\n") != NULL,
                     cases[i].status == 204);
        cr_expect_eq(strstr(answer, "Access-Control-Expose-Headers: Retry-After, X-Request-Id\r\n") != NULL,
                     cases[i].is_allowed && cases[i].status == 200);
        cr_expect(cases[i].status != 204 || strstr(answer, "Content-Length") == NULL);
    }
    const char *answer = ask_tcp(fd, stream);
    cr_expect_not_null(strstr(answer, "Access-Control-Allow-Origin: https://chat.example\r\n"), "%s", answer);
    int local = connect_client();
    answer = ask(local, cases[0].request);
    cr_expect_null(strstr(answer, "Access-Control"), "of the Unix socket pages know nothing");
    close(fd);
    close(local);
}

FRONT_TEST(a_reader_that_stops_reading_is_dropped, set_up_plan)
{
    plan.request_timeout_ms = 30;
    start();
    int fd = connect_client();
    send_text(fd, post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":16,"
                                               "\"logprobs\":true,\"max_tokens\":400}"));
    for (uint32_t c = 0; c < 16; c++) {
        for (uint32_t i = 0; i < 400; i++)
            fake_sched_commit(&arena, 0, c, &(struct token_shm){.token = TINY_HELLO});
        fake_sched_end(&arena, 0, c, FINISH_LENGTH);
    }
    hint(MSG_REQUEST_TOKENS, 0);
    settle();
    for (uint64_t end = clock_ns() + 5000000000ull; counter(COUNTER_FRONT_CONNECTIONS_OPEN) > 0 && clock_ns() < end;)
        cr_assert_geq(front_do_work(front, true), 0);
    cr_expect_eq(counter(COUNTER_FRONT_REQUESTS_ABORTED), 1);
    expect_nothing_left();
    close(fd);
}

FRONT_TEST(the_bell_wakes_it, set_up)
{
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    commit_text(0, "q");
    end_sequence(0);
    struct bell_pull pull = arena_pull(&arena, ROLE_FRONT, 0);
    for (int i = 0; i < 3; i++) { /* rung while awake, and again: an event each time, never a missed one */
        bell_ring_always(&pull);
        cr_assert_gt(front_do_work(front, true), 0);
    }
    settle();
    cr_expect_eq(status_of(receive(fd, NULL)), 200);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_thousand_requests_and_aborts_leave_nothing_behind, set_up)
{
    close(connect_client());
    settle();
    uint32_t descriptors = descriptor_count();
    srandom(11);
    for (uint32_t i = 0; i < 1000; i++) {
        int fds[4];
        uint32_t count = 1 + (uint32_t)random() % 4;
        for (uint32_t k = 0; k < count; k++) {
            fds[k] = connect_client();
            send_text(fds[k], post("/v1/completions", random() % 2 ? "{\"prompt\":\"ab\",\"stream\":true,\"n\":2}"
                                                                   : "{\"prompt\":\"abc\"}"));
        }
        for (uint32_t slot = 0; slot < plan.requests_max; slot++) {
            const struct request_shm *request = arena_request(&arena, slot);
            if (journal_request_state(request) != REQUEST_ACCEPTED || journal_request_is_cancelled(request))
                continue;
            for (uint32_t c = 0; c < request->choices; c++) {
                fake_sched_commit(&arena, slot, c, &(struct token_shm){.token = TINY_HELLO});
                if (random() % 8 != 0)
                    fake_sched_end(&arena, slot, c, FINISH_LENGTH);
            }
            hint(MSG_REQUEST_TOKENS, slot);
        }
        if (random() % 2)
            settle();
        for (uint32_t k = 0; k < count; k++) {
            if (random() % 4)
                receive(fds[k], NULL);
            close(fds[k]);
        }
        settle();
    }
    expect_nothing_left();
    cr_expect_eq(descriptor_count(), descriptors);
}

FRONT_TEST(noise_does_no_harm, set_up)
{
    static const char seed[] = "POST /v1/completions HTTP/1.1\r\nContent-Length: 14\r\n\r\n{\"prompt\":\"a\"}"
                               "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n";
    srandom(5);
    for (uint32_t i = 0; i < 2000; i++) {
        char text[sizeof(seed)];
        memcpy(text, seed, sizeof(seed));
        for (long k = random() % 6; k >= 0; k--)
            text[(size_t)random() % (sizeof(text) - 1)] = (char)random();
        int fd = connect_client();
        size_t size = i % 3 ? sizeof(text) - 1 : (size_t)random() % sizeof(text);
        cr_assert_geq(send(fd, text, size, MSG_NOSIGNAL), 0);
        settle();
        close(fd);
    }
    expect_nothing_left();
    int fd = connect_client();
    cr_expect_eq(status_of(ask(fd, "GET /health HTTP/1.1\r\n\r\n")), 200);
    close(fd);
}

/* ---- where there is no io_uring ---- */

static void expect_epoll_instead(int call, int error, const char *says)
{
    static char log[4096];
    int errors = dup(STDERR_FILENO), file = memfd_create("log", MFD_CLOEXEC);
    cr_assert(errors >= 0 && dup2(file, STDERR_FILENO) >= 0);
    log_level = LOG_INFO;
    io_choice = IO_ANY;
    forbid_call(call, error);
    set_up();
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    commit_text(0, "q");
    end_sequence(0);
    settle();
    int status = status_of(receive(fd, NULL));
    close(fd);
    settle();
    dup2(errors, STDERR_FILENO);
    cr_expect_eq(status, 200);
    log[pread(file, log, sizeof(log) - 1, 0)] = '\0';
    const char *said = strstr(log, says), *chosen = strstr(log, "; using epoll\n");
    cr_expect(said != NULL && chosen > said && strstr(chosen + 3, "using epoll") == NULL, "not said, or not once: %s",
              log);
    expect_nothing_left();
    tear_down();
}

Test(front_any, where_io_uring_is_forbidden_epoll_serves)
{
    expect_epoll_instead(SYS_io_uring_setup, EPERM, "io_uring: this system does not allow it");
}

Test(front_any, where_there_is_no_io_uring_epoll_serves)
{
    expect_epoll_instead(SYS_io_uring_setup, ENOSYS, "io_uring: this system does not allow it");
}

Test(front_any, where_io_uring_is_too_old_epoll_serves)
{
    expect_epoll_instead(SYS_io_uring_setup, EINVAL, "io_uring: this kernel cannot keep its queues in given memory");
}

Test(front_any, where_io_uring_cannot_be_restricted_epoll_serves)
{
    expect_epoll_instead(SYS_io_uring_register, EINVAL, "io_uring: cannot restrict it");
}

/* ---- what a front that has been taken over could ask of the kernel ---- */

static int ring_descriptor(void)
{
    for (int fd = 0; fd < 1024; fd++) {
        char path[64], target[64] = "";
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof(target) - 1) > 0 && strcmp(target, "anon_inode:[io_uring]") == 0)
            return fd;
    }
    return -1;
}

Test(front_uring, its_ring_opens_no_file_and_can_be_given_nothing, .fini = tear_down)
{
    io_choice = IO_URING;
    set_up();
    settle();
    int ring = ring_descriptor();
    cr_assert_geq(ring, 0);
    /* another one of the same kind and sizes tells where the words of the queues lie */
    struct io_uring_params twin = {.flags =
                                       IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                                   .cq_entries = arena.layout.io_completions_max};
    cr_assert_geq(syscall(SYS_io_uring_setup, arena.layout.io_submissions_max, &twin), 0);
    uint8_t *queues = arena.regions[REGION_IO] + arena.layout.io_rings;
    struct io_uring_sqe *submissions = (void *)(arena.regions[REGION_IO] + arena.layout.io_submissions);
    const struct io_uring_cqe *completions = (const void *)(queues + twin.cq_off.cqes);
    uint32_t *tail = (void *)(queues + twin.sq_off.tail);
    const uint32_t *done = (const void *)(queues + twin.cq_off.tail);
    struct io_uring_sqe *one = &submissions[*tail & (twin.sq_entries - 1)];
    io_uring_prep_openat(one, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    one->user_data = 77;
    uint32_t done_before = *done;
    (*tail)++;
    cr_assert_eq(syscall(SYS_io_uring_enter, ring, 1, 0, IORING_ENTER_GETEVENTS, NULL, 0), 1);
    cr_assert_eq(*done, done_before + 1);
    const struct io_uring_cqe *result = &completions[done_before & (twin.cq_entries - 1)];
    cr_expect(result->user_data == 77 && result->res == -EACCES, "%d", result->res);
    cr_expect_eq(syscall(SYS_io_uring_register, ring, IORING_REGISTER_PERSONALITY, NULL, 0), -1);
    cr_expect_eq(errno, EACCES);
}

/* ---- the table of malformed requests ---- */

#define PIECES_MAX 1000u

/* Sends it in pieces of `piece` bytes, as far as it is wanted, and waits until there is a whole answer. */
static const char *put_to(int fd, const struct hostile_case *c, size_t piece, bool *is_closed)
{
    static char answer[65536];
    size_t size = 0;
    *is_closed = false;
    for (size_t sent = 0; sent < c->request_size && !*is_closed;) {
        ssize_t more = send(fd, c->request + sent, min_u64(piece, c->request_size - sent), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (more < 0 && errno != EAGAIN)
            break;
        sent += more > 0 ? (size_t)more : 0;
        settle();
    }
    for (uint64_t end = clock_ns() + 5000000000ull; clock_ns() < end && (size == 0 || (c->closes && !*is_closed));) {
        front_do_work(front, false);
        const char *part = receive(fd, is_closed);
        size_t part_size = strlen(part);
        cr_assert_lt(size + part_size, sizeof(answer));
        memcpy(answer + size, part, part_size);
        size += part_size;
        if (*is_closed)
            break;
    }
    answer[size] = '\0';
    return answer;
}

/* Every case of the situation, in one piece and in many, mostly of a byte: the same answer, and a connection that goes on or
 * ends as the answer says. */
static void expect_exact_answers(const char *when, int (*connect_to)(void), size_t count_min)
{
    size_t count;
    const struct hostile_case *cases = hostile_cases(when, &count);
    cr_assert_geq(count, count_min, "%zu cases %s", count, when);
    for (size_t i = 0; i < 2 * count; i++) {
        const struct hostile_case *c = &cases[i / 2];
        size_t piece = i % 2 ? c->request_size / PIECES_MAX + 1 : c->request_size;
        int fd = connect_to();
        bool is_closed;
        const char *answer = put_to(fd, c, piece, &is_closed);
        bool is_right = c->answer != NULL ? strcmp(answer, c->answer) == 0 : status_of(answer) == c->status;
        cr_expect(is_right, "data/hostile.txt:%d: in pieces of %zu bytes the answer is\n%s", c->line, piece, answer);
        cr_expect_eq(is_closed, c->closes, "data/hostile.txt:%d: %s", c->line, is_closed ? "closed" : "not closed");
        if (!is_closed && strcmp(when, "serving") == 0)
            cr_expect_eq(status_of(ask(fd, "GET /health HTTP/1.1\r\n\r\n")), 200, "data/hostile.txt:%d", c->line);
        close(fd);
        settle();
    }
}

FRONT_TEST(malformed_requests_have_their_exact_answers, set_up)
{
    uint64_t failed = counter(COUNTER_FRONT_REQUESTS_FAILED);
    expect_exact_answers("serving", connect_client, 100);
    cr_expect_gt(counter(COUNTER_FRONT_REQUESTS_FAILED), failed);
    expect_nothing_left();
}

FRONT_TEST(late_clients_have_their_exact_answers, set_up_plan)
{
    plan.header_timeout_ms = plan.request_timeout_ms = 30;
    start();
    expect_exact_answers("clients are late", connect_client, 2);
    expect_nothing_left();
}

FRONT_TEST(a_full_server_has_its_exact_answer, set_up_plan)
{
    plan.requests_max = 1;
    start();
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    expect_exact_answers("no request fits", connect_client, 1);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(a_starting_server_has_its_exact_answer, set_up_plan)
{
    is_ready = 0;
    start();
    expect_exact_answers("starting", connect_client, 1);
    expect_nothing_left();
}

FRONT_TEST(a_server_that_shuts_down_has_its_exact_answers, set_up)
{
    int fd = connect_client();
    ask(fd, post("/v1/completions", "{\"prompt\":\"ab\"}"));
    atomic_store(&arena_sup(&arena)->command, COMMAND_DRAIN);
    settle();
    expect_exact_answers("shutting down", connect_client, 2);
    close(fd);
    expect_nothing_left();
}

FRONT_TEST(strangers_over_tcp_have_their_exact_answers, set_up_plan)
{
    has_tcp = true;
    strcpy(plan.allowed_origins, "https://chat.example");
    start();
    expect_exact_answers("asked over TCP", connect_tcp, 3);
}
