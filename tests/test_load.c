/* test_load.c - many clients, and clients that misbehave: nothing leaks, and whoever reads properly does not notice.
 *
 * A real engine on timed stages, so that the work is the front's and the scheduler's. Here a small form of it; make bench-load
 * (EVENFLOW_LOAD=full) is 5,000 connections, 20,000 requests and 500 clients of each kind, and tells what it measured.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "tests/engine.h"
#include "tools/processes.h"

#define OTHERS_TOKENS 300
#define SLOW_TOKENS   800 /* with everything that can be asked for: more than a socket's buffer holds */
#define SETTLE_NS     30000000000u

static const struct sizes {
    int open, one_after_another, bad, others;
} small = {300, 400, 30, 8}, full = {5000, 20000, 500, 16};
static const struct sizes *sizes;

static struct own_engine engine;

static void set_up(void)
{
    const char *wanted = getenv("EVENFLOW_LOAD");
    sizes = wanted != NULL && strcmp(wanted, "full") == 0 ? &full : &small;
    engine_start(&engine, "-p 2 --backend timed --cost tests/data/quick.pipeline.json --max-connections 8000 "
                          "--max-queued-requests 4000 --max-num-seqs 256 --num-blocks 20000 --max-model-len 2048");
}

static void tear_down(void)
{
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* ---- what must come back to where it was ---- */

struct holdings {
    int64_t connections, slots_free, blocks_free, sequences;
    int64_t front_files, supervisor_files, front_kb, sched_kb;
};

static int64_t number_of(json_t *status, const char *group, const char *key)
{
    json_t *value = json_object_get(json_object_get(status, group), key);
    cr_assert(json_is_integer(value), "/status has no %s.%s", group, key);
    return json_integer_value(value);
}

static int64_t files_of(pid_t pid)
{
    char command[128];
    long long count = -1;
    snprintf(command, sizeof(command), "ls /proc/%d/fd | wc -l", pid);
    FILE *pipe = popen(command, "r");
    cr_assert(pipe != NULL && fscanf(pipe, "%lld", &count) == 1);
    pclose(pipe);
    return count;
}

/* Memory of its own: what is shared was taken at the start. */
static int64_t memory_kb_of(pid_t pid)
{
    char path[64], line[256];
    long long kb = -1;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    while (fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "RssAnon: %lld", &kb) == 1)
            break;
    fclose(file);
    return kb;
}

static struct holdings holdings_now(void)
{
    int status_code;
    json_t *status = engine_get(&engine, "/status", &status_code);
    cr_assert_eq(status_code, 200);
    struct holdings now = {.connections = number_of(status, "connections", "open"),
                           .slots_free = number_of(status, "requests", "slots_free"),
                           .blocks_free = number_of(status, "blocks", "free"),
                           .sequences =
                               number_of(status, "sequences", "running") + number_of(status, "sequences", "waiting")};
    json_decref(status);
    return now;
}

static void measure_processes(struct holdings *now)
{
    pid_t front = engine_pid(&engine, "front", 0), sched = engine_pid(&engine, "sched", 0);
    now->front_files = files_of(front);
    now->supervisor_files = files_of(engine_pid(&engine, "supervisor", 0));
    now->front_kb = memory_kb_of(front);
    now->sched_kb = memory_kb_of(sched);
}

static bool is_settled(const struct holdings *now, const struct holdings *before)
{
    return now->connections == before->connections && now->slots_free == before->slots_free &&
           now->blocks_free == before->blocks_free && now->sequences == before->sequences;
}

/* Each look is a request to the engine, which takes its turn behind what is still to be cleaned up. */
static void expect_settled(const struct holdings *before, const char *after_what)
{
    uint64_t deadline_ns = clock_ns() + SETTLE_NS;
    struct holdings now;
    do {
        now = holdings_now();
    } while (!is_settled(&now, before) && clock_ns() < deadline_ns);
    cr_assert_eq(now.connections, before->connections, "%s: %lld connections", after_what, (long long)now.connections);
    cr_assert_eq(now.sequences, before->sequences, "%s: %lld sequences", after_what, (long long)now.sequences);
    cr_assert_eq(now.slots_free, before->slots_free, "%s: %lld slots free", after_what, (long long)now.slots_free);
    cr_assert_eq(now.blocks_free, before->blocks_free, "%s: %lld blocks free", after_what, (long long)now.blocks_free);
}

static uint64_t front_cpu_ns(void)
{
    struct engine_processes processes;
    int status_code;
    json_t *status = engine_get(&engine, "/status", &status_code);
    engine_processes_read(&processes, status);
    json_decref(status);
    for (uint32_t i = 0; i < processes.count; i++)
        if (strcmp(processes.list[i].role, "front") == 0)
            return processes.list[i].cpu_ns;
    return 0;
}

/* ---- clients that are no clients ---- */

static int connect_plainly(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, engine.socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_geq(fd, 0, "%s", strerror(errno));
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0, "%s", strerror(errno));
    return fd;
}

static void send_plainly(int fd, const char *text)
{
    cr_assert_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text), "%s", strerror(errno));
}

/* Everything until the server closes or, with `until`, until the text ends with it. Terminated; the size. */
static size_t read_plainly(int fd, char *text, size_t room, const char *until)
{
    size_t size = 0, end = until != NULL ? strlen(until) : 0;
    for (;;) {
        ssize_t got = recv(fd, text + size, room - 1 - size, 0);
        cr_assert_geq(got, 0, "%s", strerror(errno));
        size += (size_t)got;
        text[size] = '\0';
        cr_assert_lt(size, room - 1);
        if (got == 0 || (until != NULL && size >= end && memcmp(text + size - end, until, end) == 0))
            return size;
    }
}

static void many_connections_at_once(void)
{
    int *fds = base_alloc((size_t)sizes->open * sizeof(*fds));
    for (int i = 0; i < sizes->open; i++)
        fds[i] = connect_plainly();
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < sizes->open; i++)
            send_plainly(fds[i], "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for (int i = 0; i < sizes->open; i++) {
            char text[2048];
            ssize_t size = recv(fds[i], text, sizeof(text) - 1, 0);
            cr_assert_gt(size, 12, "connection %d", i);
            cr_assert_eq(strncmp(text, "HTTP/1.1 200", 12), 0);
        }
        cr_assert_geq(holdings_now().connections, sizes->open);
    }
    for (int i = 0; i < sizes->open; i++)
        close(fds[i]);
    free(fds);
}

static const char short_body[] = "{\"prompt\":[5,6,7],\"max_tokens\":1,\"ignore_eos\":true}";

static void requests_one_after_another(void)
{
    struct err err;
    uint64_t cpu_ns = front_cpu_ns(), begin_ns = clock_ns();
    struct client *clients[2] = {client_open(engine.socket, false, &err), client_open(engine.socket, true, &err)};
    for (int i = 0; i < sizes->one_after_another; i++) {
        struct client_call call = {
            .method = "POST", .path = "/v1/completions", .body = short_body, .body_size = strlen(short_body)};
        client_start(clients[i % 2], &call);
        while (client_active(clients[i % 2]) > 0)
            client_turn(clients[i % 2], UINT64_MAX);
        cr_assert_eq(call.status, 200, "request %d: %s", i, call.err.text);
        client_call_free(&call);
    }
    double count = sizes->one_after_another;
    fprintf(stderr, "load: %.0f requests one after another: %.0f us each, the front's CPU time %.1f us each\n", count,
            (double)(clock_ns() - begin_ns) / 1e3 / count, (double)(front_cpu_ns() - cpu_ns) / 1e3 / count);
    client_close(clients[0]);
    client_close(clients[1]);
}

/* ---- clients beside each other ---- */

enum manners { WELL_BEHAVED, MISBEHAVED };

static void count_token(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    if (client_event_has_token(data, size))
        ++*(int *)context;
}

static char *body_of(int number, int tokens, bool is_large)
{
    char *body = base_alloc(512);
    snprintf(body, 512, "{\"prompt\":[%d,%d,%d,7],\"max_tokens\":%d,\"ignore_eos\":true,\"stream\":true%s}",
             100 + number, 200 + number, 300 + number, tokens,
             is_large ? ",\"logprobs\":1,\"return_token_ids\":true,\"return_logits_hash\":true" : "");
    return body;
}

struct crowd {
    struct client_call *others, *leavers, *readers;
    int *others_tokens, *leavers_tokens, *readers_tokens;
    int *slow, *dripping; /* descriptors of those that misbehave */
    char **bodies;
    int body_count;
};

static struct client_call streaming(struct crowd *crowd, int tokens, bool is_large, int *count)
{
    char *body = crowd->bodies[crowd->body_count] = body_of(crowd->body_count, tokens, is_large);
    crowd->body_count++;
    return (struct client_call){.method = "POST",
                                .path = "/v1/completions",
                                .body = body,
                                .body_size = strlen(body),
                                .on_event = count_token,
                                .context = count};
}

/* A byte of a request from each that drips, a byte of the answer to each that reads slowly. */
static void drip(const struct crowd *crowd, size_t second)
{
    static const char request[] =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{\"prompt\":\"";
    for (int i = 0; i < sizes->bad; i++) {
        char byte;
        cr_assert_eq(send(crowd->dripping[i], request + second % (sizeof(request) - 1), 1, MSG_NOSIGNAL), 1);
        cr_assert(recv(crowd->slow[i], &byte, 1, MSG_DONTWAIT) == 1 || errno == EAGAIN);
    }
}

static void start_slow(struct crowd *crowd, size_t i)
{
    char head[256];
    char *body = crowd->bodies[crowd->body_count] = body_of(crowd->body_count, SLOW_TOKENS, true);
    crowd->body_count++;
    crowd->slow[i] = connect_plainly();
    crowd->dripping[i] = connect_plainly();
    snprintf(head, sizeof(head),
             "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    send_plainly(crowd->slow[i], head);
    send_plainly(crowd->slow[i], body);
}

/* Their sequences have ended and their blocks are free long before they have read what they were sent. */
static void finish_slow(struct crowd *crowd, const struct holdings *before)
{
    uint64_t deadline_ns = clock_ns() + SETTLE_NS;
    struct holdings now;
    do {
        now = holdings_now();
    } while (now.sequences > 0 && clock_ns() < deadline_ns);
    cr_assert_eq(now.sequences, 0, "slow readers are waited for: %lld sequences", (long long)now.sequences);
    cr_expect_eq(now.blocks_free, before->blocks_free);
    static char text[2u << 20];
    for (int i = 0; i < sizes->bad; i++) {
        size_t size = read_plainly(crowd->slow[i], text, sizeof(text), NULL);
        cr_assert(size > 100 && strstr(text + size - 40, "data: [DONE]") != NULL, "slow reader %d: %zu bytes", i, size);
        close(crowd->slow[i]);
        close(crowd->dripping[i]);
    }
}

/* The others' tokens a second while a crowd does as it does. */
static double rate_beside(enum manners manners, const struct holdings *before)
{
    struct err err;
    struct client *client = client_open(engine.socket, false, &err);
    size_t bad = (size_t)sizes->bad, others = (size_t)sizes->others;
    struct crowd crowd = {.others = base_alloc(others * sizeof(struct client_call)),
                          .leavers = base_alloc(bad * sizeof(struct client_call)),
                          .readers = base_alloc(bad * sizeof(struct client_call)),
                          .others_tokens = base_alloc(others * sizeof(int)),
                          .leavers_tokens = base_alloc(bad * sizeof(int)),
                          .readers_tokens = base_alloc(bad * sizeof(int)),
                          .slow = base_alloc(bad * sizeof(int)),
                          .dripping = base_alloc(bad * sizeof(int)),
                          .bodies = base_alloc((others + 3 * bad) * sizeof(char *))};
    for (size_t i = 0; i < others; i++) {
        crowd.others[i] = streaming(&crowd, OTHERS_TOKENS, false, &crowd.others_tokens[i]);
        client_start(client, &crowd.others[i]);
    }
    /* both crowds come in the same order, so that the same rows share the others' steps */
    for (size_t i = 0; i < bad; i++) {
        uint64_t events = 1 + i % 5;
        crowd.leavers[i] =
            streaming(&crowd, manners == MISBEHAVED ? OTHERS_TOKENS : (int)events, false, &crowd.leavers_tokens[i]);
        crowd.leavers[i].abandon_after_events = manners == MISBEHAVED ? events : 0;
        client_start(client, &crowd.leavers[i]);
        client_turn(client, 0);
        if (manners == MISBEHAVED) {
            start_slow(&crowd, i);
            continue;
        }
        crowd.readers[i] = streaming(&crowd, SLOW_TOKENS, true, &crowd.readers_tokens[i]);
        client_start(client, &crowd.readers[i]);
    }
    uint64_t next_ns = clock_ns();
    for (size_t second = 0; client_active(client) > 0;) {
        if (manners == MISBEHAVED && clock_ns() >= next_ns) {
            drip(&crowd, second++);
            next_ns += 1000000000u;
        }
        client_turn(client, manners == MISBEHAVED ? next_ns : UINT64_MAX);
    }
    uint64_t first_ns = UINT64_MAX, last_ns = 0;
    for (size_t i = 0; i < others; i++) {
        const struct client_call *call = &crowd.others[i];
        cr_assert_eq(call->status, 200, "%s", call->err.text);
        cr_assert_eq(crowd.others_tokens[i], OTHERS_TOKENS);
        first_ns = min_u64(first_ns, call->first_event_ns);
        last_ns = max_u64(last_ns, call->last_event_ns);
    }
    for (size_t i = 0; i < bad && manners == WELL_BEHAVED; i++)
        cr_assert_eq(crowd.readers_tokens[i], SLOW_TOKENS, "%s", crowd.readers[i].err.text);
    if (manners == MISBEHAVED)
        finish_slow(&crowd, before);
    client_close(client);
    for (int i = 0; i < crowd.body_count; i++)
        free(crowd.bodies[i]);
    void *const parts[] = {crowd.others,        crowd.leavers,        crowd.readers,
                           crowd.others_tokens, crowd.leavers_tokens, crowd.readers_tokens,
                           crowd.slow,          crowd.dripping,       crowd.bodies};
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        free(parts[i]);
    return (double)(others * OTHERS_TOKENS) * 1e9 / (double)(last_ns - first_ns);
}

static void everything_once(const struct holdings *before)
{
    many_connections_at_once();
    expect_settled(before, "after many connections");
    requests_one_after_another();
    expect_settled(before, "after requests one after another");
    double well = rate_beside(WELL_BEHAVED, before);
    expect_settled(before, "after a crowd that behaves");
    double badly = rate_beside(MISBEHAVED, before);
    expect_settled(before, "after a crowd that does not");
    fprintf(stderr,
            "load: others get %.0f tok/s beside %d clients that leave, %d slow readers and %d that send a byte a "
            "second, %.0f beside as many that behave: %.1f %%\n",
            badly, sizes->bad, sizes->bad, sizes->bad, well, 100 * badly / well);
}

Test(load, leaves_nothing_behind_and_disturbs_nobody, .init = set_up, .fini = tear_down, .timeout = 900)
{
    struct holdings before = holdings_now();
    everything_once(&before); /* pages that are touched for the first time are no leak */
    measure_processes(&before);
    everything_once(&before);
    struct holdings after = holdings_now();
    measure_processes(&after);
    cr_expect_eq(after.front_files, before.front_files, "%lld", (long long)after.front_files);
    cr_expect_eq(after.supervisor_files, before.supervisor_files, "%lld", (long long)after.supervisor_files);
    cr_expect_leq(after.front_kb, before.front_kb + 256, "%lld kB", (long long)after.front_kb);
    cr_expect_leq(after.sched_kb, before.sched_kb + 256, "%lld kB", (long long)after.sched_kb);
    fprintf(stderr,
            "load: %lld files and %lld kB of the front, %lld files of the supervisor, before and after the same\n",
            (long long)after.front_files, (long long)after.front_kb, (long long)after.supervisor_files);
}
