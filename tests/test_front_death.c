/* test_front_death.c - the front is killed, again and again, at named points and at any instant, on both back ends; its
 * clients must not notice. This process plays supervisor, scheduler and all clients.
 *
 * First every conversation is held once without deaths: its bytes are the reference. Then clients hold random ones, cut and
 * pipelined at random, some leaving, some reading slowly, while one front after the other dies. Every byte that arrives is
 * compared. Built with fault.h's points. EVENFLOW_KILLS: how many deaths on each back end; EVENFLOW_SEED: another run.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/conns.h"
#include "engine/front.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/journal.h"
#include "ipc/keep.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"
#include "tests/fake_sched.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

#define CLIENTS      10u
#define REQUESTS     60u
#define CONNECTIONS  12u
#define TALK_MAX     6u /* requests on one connection */
#define STREAM_BYTES (4u << 20)
#define PATIENCE_NS  20000000000ull
#define POINTS_MAX   128u

/* ---- what children say before they die ---- */

struct point {
    const char *name; /* literals: the same address in every child */
    uint64_t hits;
    uint32_t deaths;
};

struct shared {
    struct point points[POINTS_MAX];
    uint32_t point_count;
    const char *die_at; /* NULL: at any point */
    uint64_t countdown; /* hits until death; 0: none planned */
    const char *died_at;
    bool is_up;
};
static struct shared *shared;

static void on_point(const char *name)
{
    uint32_t i = 0;
    while (i < shared->point_count && shared->points[i].name != name)
        i++;
    if (i == shared->point_count) {
        check(i < POINTS_MAX);
        shared->points[shared->point_count++].name = name;
    }
    shared->points[i].hits++;
    if (shared->countdown == 0 || (shared->die_at != NULL && shared->die_at != name) || --shared->countdown > 0)
        return;
    shared->points[i].deaths++;
    shared->died_at = name;
    syscall(SYS_tgkill, getpid(), getpid(), SIGKILL);
}

struct client {
    int fd; /* -1: none */
    uint32_t talks[TALK_MAX];
    uint32_t talk_count;
    char *out;
    size_t out_size, sent;
    size_t holds[TALK_MAX]
                [2]; /* bytes of `out` that go only after so many of `in` have come: a body that waits for 100 */
    uint32_t hold_count;
    char *in, *expected;
    size_t in_size, expected_size;
    size_t leaves_at; /* bytes after which it closes; SIZE_MAX: never */
    bool is_slow;
    uint32_t born; /* in which life of the front */
    uint64_t progress_ns;
};
static struct client clients[CLIENTS];

/* ---- the engine around the front ---- */

static struct plan plan;
static struct arena arena;
static struct keep_table kept;
static int keep_socket = -1; /* the supervisor's end */
static struct ring_producer to_front;
static struct ring_consumer from_front;
static struct bell_pull front_bell;
static char directory[] = "/tmp/evenflow-test-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static pid_t front_pid;
static uint32_t lives;
static uint64_t random_state = 1;

static uint32_t dice(uint32_t sides)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((random_state >> 33) % sides);
}

static uint8_t *fresh_region(enum region_id id, uint8_t *at)
{
    uint8_t *memory = mmap(at, arena.layout.region_bytes[id], PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS | (at != NULL ? MAP_FIXED : 0), -1, 0);
    cr_assert_neq(memory, MAP_FAILED);
    return memory;
}

/* The regions of arena_in_memory(), shared with children. */
static void share_regions(void)
{
    static const enum region_id ids[] = {REGION_SUP, REGION_FRONT, REGION_CONNS, REGION_SCHED};
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        struct region_head head = *(struct region_head *)(void *)arena.regions[ids[i]];
        fresh_region(ids[i], arena.regions[ids[i]]);
        if (ids[i] != REGION_CONNS)
            *(struct region_head *)(void *)arena.regions[ids[i]] = head;
    }
    arena.regions[REGION_IO] = NULL;
}

static void set_up_engine(enum io_choice choice)
{
    plan = plan_for_tests();
    plan.connections_max = CONNECTIONS;
    plan.requests_max = REQUESTS;
    plan.prompt_pages = 4 * REQUESTS; /* never the reason for a 429 */
    plan.io = choice;
    plan.request_timeout_ms = plan.header_timeout_ms = 60000;
    size_t vocab_bytes;
    void *vocab = tiny_vocab_build(&vocab_bytes);
    log_open("test", LOG_ERROR);
    tiny_vocab_plan(&plan, vocab_bytes);
    fake_sched_plan(&plan);
    arena_in_memory(&arena, &plan);
    share_regions();
    arena.role = ROLE_FRONT;
    arena.epoch = 0;
    arena.regions[REGION_VOCAB] = vocab;
    arena.bells[process_number(ROLE_FRONT, 0)] = eventfd(0, EFD_CLOEXEC);
    arena.bells[process_number(ROLE_SCHED, 0)] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    /* it always sleeps, in poll() */
    atomic_store(&arena_process(&arena, ROLE_SCHED, 0)->sleeping, 1);
    atomic_store(&arena_sup(&arena)->ready, 1);
    atomic_store(&arena_sup(&arena)->has_started, 1);
    cr_assert_not_null(mkdtemp(directory));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", directory);
    arena.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_eq(bind(arena.listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(arena.listener, 128), 0);
    arena_ring_sched_to_front_producer(&arena, &to_front);
    arena_ring_front_to_sched_consumer(&arena, &from_front);
    front_bell = arena_pull(&arena, ROLE_FRONT, 0);
    keep_table_open(&kept, CONNECTIONS);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* What the parent holds is not a front's: the clients' ends, and what is kept. */
static void close_others(void)
{
    close(keep_socket);
    for (uint32_t i = 0; i < CONNECTIONS; i++)
        if (kept.slots[i].fd >= 0)
            close(kept.slots[i].fd);
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (clients[i].fd >= 0)
            close(clients[i].fd);
}

_Noreturn static void be_front(void)
{
    struct front *front;
    struct err err = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close_others();
    fault_hook = on_point;
    if (front_init(&front, &arena, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        _exit(3);
    }
    base_seal();
    if (sandbox_is_possible() && sandbox_enter(ROLE_FRONT, &err) != 0)
        _exit(4);
    front_start(front);
    shared->is_up = true;
    while (front_do_work(front, true) >= 0) {
    }
    _exit(0);
}

/* The next life: its forerunner is proven dead. die_after: hits of the point (NULL: any) it dies at; 0: at no point. */
static void start_front(const char *die_at, uint64_t die_after)
{
    int pair[2];
    uint32_t next = 0;
    const struct io_head_shm *last = (const struct io_head_shm *)(const void *)arena.regions[REGION_IO];
    enum region_id given_up = last != NULL && last->is_begun ? REGION_IO_PAST : REGION_IO;
    if (arena.regions[given_up] != NULL)
        munmap(arena.regions[given_up], arena.layout.region_bytes[REGION_IO]);
    if (given_up == REGION_IO_PAST)
        arena.regions[REGION_IO_PAST] = arena.regions[REGION_IO];
    arena.regions[REGION_IO] = fresh_region(REGION_IO, NULL);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    keep_socket = pair[0];
    arena.keep = pair[1];
    arena.epoch++;
    lives++;
    shared->die_at = die_at;
    shared->countdown = die_after;
    shared->died_at = NULL;
    shared->is_up = false;
    cr_assert_eq(keep_table_give(&kept, keep_socket, &next), 0);
    fflush(NULL);
    front_pid = fork();
    cr_assert_geq(front_pid, 0);
    if (front_pid == 0)
        be_front();
    close(pair[1]);
}

static void take_kept(void)
{
    struct keep_message message;
    int fds[KEEP_ENTRIES_MAX], ret;
    while ((ret = keep_receive(keep_socket, false, &message, fds)) == 1)
        cr_assert(keep_table_take(&kept, &message, fds));
    cr_assert(ret == 0 || ret == -EAGAIN, "keep: %d", ret);
}

static bool is_front_dead(void)
{
    siginfo_t info = {0};
    cr_assert_eq(waitid(P_PID, (id_t)front_pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    return info.si_pid == front_pid;
}

/* True when the front is dead, and collected. */
static bool collect_front(bool may_wait)
{
    int status;
    pid_t got = waitpid(front_pid, &status, may_wait ? 0 : WNOHANG);
    cr_assert_geq(got, 0);
    if (got == 0)
        return false;
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "life %u ended by itself: %s %d", lives,
              WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    take_kept();
    close(keep_socket);
    return true;
}

/* ---- the scheduler ---- */

static uint32_t held_back[REQUESTS]; /* kind of the message for which there was no room */

static void hint(enum msg_request_kind kind, uint32_t slot)
{
    struct msg_request msg = {.kind = kind, .slot = slot, .generation = arena_request(&arena, slot)->generation};
    held_back[slot] = ring_push(&to_front, &msg) == RING_OK ? 0 : (uint32_t)kind;
    bell_ring_always(&front_bell);
}

/* Tokens that depend on the prompt and on nothing else. */
static uint32_t token_of(uint32_t slot, uint32_t choice, uint32_t index)
{
    uint32_t first;
    journal_prompt_read(&arena, slot, arena_request(&arena, slot)->prompt_tokens - 1, 1, &first);
    return TINY_BYTE_FIRST + 'a' + (first * 7 + choice * 5 + index * index) % 26;
}

static void sched_look(uint32_t slot)
{
    const struct request_shm *request = arena_request(&arena, slot);
    const struct answer_shm *answer = arena_answer(&arena, slot);
    bool is_taken = journal_answer_generation(answer) == request->generation;
    switch (journal_request_state(request)) {
    case REQUEST_ACCEPTED:
        if (!is_taken)
            fake_sched_take(&arena, slot);
        if (!journal_request_is_cancelled(request) && journal_request_stopped(request) == 0)
            break;
        for (uint32_t c = 0; c < request->choices; c++) {
            bool is_stopped = journal_request_stopped(request) >> c & 1;
            if (journal_sequence_state(arena_sequence(&arena, answer->sequences[c])) != SEQUENCE_DONE &&
                (is_stopped || journal_request_is_cancelled(request)))
                fake_sched_end(&arena, slot, c, is_stopped ? FINISH_STOP : FINISH_ABORT);
        }
        hint(MSG_REQUEST_TOKENS, slot);
        break;
    case REQUEST_DRAINED:
        if (is_taken)
            fake_sched_forget(&arena, slot);
        hint(MSG_REQUEST_FORGOTTEN, slot);
        break;
    case REQUEST_FREE:
        break;
    }
}

/* A few tokens for one of those that run. */
static bool sched_compute(uint32_t slot)
{
    const struct request_shm *request = arena_request(&arena, slot);
    const struct answer_shm *answer = arena_answer(&arena, slot);
    if (journal_request_state(request) != REQUEST_ACCEPTED || journal_answer_generation(answer) != request->generation)
        return false;
    bool is_busy = false;
    for (uint32_t c = 0; c < request->choices; c++) {
        const struct sequence_shm *sequence = arena_sequence(&arena, answer->sequences[c]);
        if (journal_sequence_state(sequence) == SEQUENCE_DONE)
            continue;
        is_busy = true;
        uint32_t index = journal_log_committed(sequence);
        for (uint32_t count = 1 + dice(20); count > 0 && index < request->max_tokens; count--, index++) {
            struct token_shm token = {.token = token_of(slot, c, index), .logprob = -0.25f * (float)(index % 7)};
            fake_sched_commit(&arena, slot, c, &token);
        }
        if (index == request->max_tokens)
            fake_sched_end(&arena, slot, c, FINISH_LENGTH);
    }
    if (is_busy)
        hint(MSG_REQUEST_TOKENS, slot);
    return is_busy;
}

static bool sched_turn(void)
{
    bool is_busy = false;
    struct msg_request msg;
    for (; ring_peek(&from_front, &msg) == RING_OK; ring_release(&from_front)) {
        sched_look(msg.slot);
        is_busy = true;
    }
    for (uint32_t slot = 0; slot < plan.requests_max; slot++)
        if (held_back[slot] != 0)
            hint((enum msg_request_kind)held_back[slot], slot);
    for (uint32_t slot = 0; slot < plan.requests_max; slot++)
        if (dice(3) == 0)
            is_busy |= sched_compute(slot);
    return is_busy;
}

/* ---- conversations ---- */

#define COMPLETIONS "POST /v1/completions HTTP/1.1\r\n"

static struct talk {
    const char *head; /* without its last, empty line */
    const char *body; /* NULL: none */
    bool is_chunked;
    bool closes; /* the connection */
    char *request, *answer;
    size_t answer_size;
} talks[] = {
    {.head = "GET /health HTTP/1.1\r\n"},
    {.head = "GET /nothing HTTP/1.1\r\nX-Request-Id: one\r\n"},
    {.head = "HEAD /version HTTP/1.1\r\n"},
    {.head = "POST /tokenize HTTP/1.1\r\n", .body = "{\"prompt\":\"hello\"}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":5x"},
    {.head = COMPLETIONS, .body = "{\"prompt\":\"ab\",\"max_tokens\":200}"},
    {.head = COMPLETIONS "X-Request-Id: two\r\n", .body = "{\"prompt\":\"ac\",\"max_tokens\":150,\"stream\":true}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":\"ad\",\"max_tokens\":90,\"stream\":true,\"n\":3,\"ignore_eos\":true}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":\"ae\",\"max_tokens\":400,\"n\":16,\"return_token_ids\":true}"},
    {.head = "POST /v1/chat/completions HTTP/1.1\r\n",
     .body =
         "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,\"max_tokens\":40,\"logprobs\":true}",
     .is_chunked = true},
    {.head = COMPLETIONS, .body = "{\"prompt\":\"af\",\"max_tokens\":300,\"stream\":true,\"stop\":[\"abc\",\"xu\"]}"},
    {.head = COMPLETIONS,
     .body = "{\"prompt\":\"ai\",\"max_tokens\":200,\"stream\":true,\"n\":3,\"stop\":[\"q\",\"kf\"]}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":\"aj\",\"max_tokens\":200,\"n\":3,\"stop\":[\"hz\",\"ub\",\"tt\"]}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":[\"ak\",\"al\",\"am\"],\"max_tokens\":60,\"stream\":true,\"n\":2}"},
    {.head = COMPLETIONS,
     .body = "{\"prompt\":[\"ao\",\"ap\"],\"max_tokens\":60,\"stream\":true,\"n\":2,\"echo\":true}"},
    {.head = COMPLETIONS, .body = "{\"prompt\":[[9,8],\"an\"],\"max_tokens\":150,\"stop\":[\"hz\",\"ub\",\"tt\"]}"},
    {.head = COMPLETIONS "Expect: 100-continue\r\n", .body = "{\"prompt\":\"ag\",\"max_tokens\":120}"},
    {.head = "POST /v1/completions HTTP/1.0\r\n",
     .body = "{\"prompt\":\"ah\",\"max_tokens\":70,\"stream\":true}",
     .closes = true},
    {.head = "GET /health HTTP/1.1\r\nConnection: close\r\n", .closes = true},
    {.head = "BROKEN\r\n", .closes = true},
};

static void write_requests(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(talks); i++) {
        struct talk *talk = &talks[i];
        int size = 0, half = talk->body != NULL ? (int)strlen(talk->body) / 3 : 0;
        if (talk->body == NULL)
            size = asprintf(&talk->request, "%s\r\n", talk->head);
        else if (talk->is_chunked)
            size = asprintf(&talk->request, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%.*s\r\n%zx\r\n%s\r\n0\r\n\r\n",
                            talk->head, half, half, talk->body, strlen(talk->body) - (size_t)half, talk->body + half);
        else
            size =
                asprintf(&talk->request, "%sContent-Length: %zu\r\n\r\n%s", talk->head, strlen(talk->body), talk->body);
        cr_assert_gt(size, 0);
    }
}

/* What differs from run to run becomes x: ids (the same throughout an answer) and times. True: ids are consistent. */
static bool normalise(char *text, size_t size)
{
    static const char created[] = "\"created\":";
    const char *id = NULL;
    bool is_good = true;
    for (char *at = text; at < text + size; at++) {
        size_t left = size - (size_t)(at - text);
        if (left >= 9 && memcmp(at, "HTTP/1.1 ", 9) == 0)
            id = NULL;
        if (left > 40 && memcmp(at, "\"id\":\"", 6) == 0) {
            char *end = memchr(at + 6, '"', left - 6), *dash = memchr(at + 6, '-', left - 6);
            if (dash == NULL || end == NULL || dash > end)
                continue; /* of something else */
            static char first[64];
            size_t length = (size_t)(end - dash) - 1;
            is_good = is_good && length < sizeof(first) && (id == NULL || memcmp(first, dash + 1, length) == 0);
            if (id == NULL && length < sizeof(first))
                memcpy(first, dash + 1, length);
            id = first;
            memset(dash + 1, 'x', length);
        }
        if (left > sizeof(created) + 10 && memcmp(at, created, sizeof(created) - 1) == 0)
            memset(at + sizeof(created) - 1, '0', 10);
    }
    return is_good;
}

/* ---- clients ---- */

static struct {
    uint64_t bytes;
    uint32_t answers, conversations, left, closed_unread;
} seen;

static void client_begin(struct client *client)
{
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        cr_assert_eq(errno, EAGAIN);
        close(client->fd);
        client->fd = -1;
        return;
    }
    client->out_size = client->sent = client->in_size = client->expected_size = 0;
    client->hold_count = 0;
    client->progress_ns = clock_ns();
    client->born = lives;
    client->is_slow = dice(4) == 0;
    for (uint32_t i = 0; i < client->talk_count; i++) {
        const struct talk *talk = &talks[client->talks[i]];
        if (strstr(talk->request, "100-continue") != NULL) {
            size_t *hold = client->holds[client->hold_count++];
            hold[0] = client->out_size + (size_t)(strstr(talk->request, "\r\n\r\n") + 4 - talk->request);
            hold[1] = client->expected_size + strlen("HTTP/1.1 100 Continue\r\n\r\n");
        }
        client->out_size = (size_t)(stpcpy(client->out + client->out_size, talk->request) - client->out);
        if (talk->answer == NULL)
            continue;
        cr_assert_leq(client->expected_size + talk->answer_size, STREAM_BYTES);
        memcpy(client->expected + client->expected_size, talk->answer, talk->answer_size);
        client->expected_size += talk->answer_size;
    }
    client->leaves_at = dice(8) == 0 && client->expected_size > 0 ? dice((uint32_t)client->expected_size) : SIZE_MAX;
}

static void client_choose(struct client *client)
{
    client->talk_count = 0;
    uint32_t count = 1 + dice(TALK_MAX);
    do
        client->talks[client->talk_count++] = dice(ARRAY_COUNT(talks));
    while (client->talk_count < count && !talks[client->talks[client->talk_count - 1]].closes);
}

static void client_end(struct client *client)
{
    close(client->fd);
    client->fd = -1;
}

static void client_finish(struct client *client)
{
    cr_assert(normalise(client->in, client->in_size), "an answer changed its id");
    for (size_t i = 0; i < client->expected_size; i++)
        if (client->in[i] != client->expected[i])
            cr_assert_fail("life %u: byte %zu of %zu differs:\n...%.200s\ninstead of\n...%.200s", lives, i,
                           client->expected_size, client->in + (i > 60 ? i - 60 : 0),
                           client->expected + (i > 60 ? i - 60 : 0));
    seen.bytes += client->in_size;
    seen.answers += client->talk_count;
    seen.conversations++;
    client_end(client);
}

static bool client_send(struct client *client, size_t max)
{
    size_t end = min_u64(client->out_size, client->sent + max);
    for (uint32_t i = 0; i < client->hold_count; i++)
        if (client->in_size < client->holds[i][1])
            end = min_u64(end, client->holds[i][0]);
    ssize_t sent =
        end > client->sent ? send(client->fd, client->out + client->sent, end - client->sent, MSG_NOSIGNAL) : 0;
    client->sent += sent > 0 ? (size_t)sent : 0;
    return sent > 0;
}

/* For the report of a failure. */
static void print_connections(void)
{
    for (uint32_t slot = 0; slot < CONNECTIONS; slot++) {
        struct conn_shm *conn = conns_slot(arena.regions[REGION_CONNS], &plan, slot);
        if (conn->is_open)
            fprintf(
                stderr,
                "slot %u generation %u (kept %d: %u): received %lu sent %lu, reply %u, message %lu..%lu, out from %lu, "
                "reply from %lu to %lu, ops %u %u, request %u state %u done %d, origin %lu move %lu: %.*s\n",
                slot, conn->generation, kept.slots[slot].fd, kept.slots[slot].generation, conn->received, conn->sent,
                conn->reply, conn->message_first, conn->message_end, conn->out_begin, conn->interim_end,
                conn->reply_end, conn->receive.serial, conn->send.serial, conn->request,
                journal_request_state(arena_request(&arena, conn->request)),
                journal_answer_generation(arena_answer(&arena, conn->request)) ==
                    arena_request(&arena, conn->request)->generation,
                conn->in_origin, conn->in_move_to, (int)conn_message_bytes(conn), conn_message(conn));
    }
}

static bool client_turn(struct client *client)
{
    bool is_busy = false, is_closed = false;
    if (dice(2))
        is_busy = client_send(client, 1 + dice(dice(3) ? 400 : 8));
    if (!client->is_slow || dice(6) == 0) {
        size_t room = min_u64(STREAM_BYTES - client->in_size, client->is_slow ? 3000 : 100000);
        ssize_t got = recv(client->fd, client->in + client->in_size, room, 0);
        is_closed = got == 0 || (got < 0 && errno != EAGAIN);
        if (got > 0) {
            client->in_size += (size_t)got;
            client->in[client->in_size] = '\0';
            is_busy = true;
        }
    }
    if (is_busy)
        client->progress_ns = clock_ns();
    if (clock_ns() - client->progress_ns >= PATIENCE_NS)
        print_connections();
    cr_assert_lt(clock_ns() - client->progress_ns, PATIENCE_NS,
                 "life %u: no progress: %zu of %zu bytes, sent %zu of %zu", lives, client->in_size,
                 client->expected_size, client->sent, client->out_size);
    cr_assert_leq(client->in_size, client->expected_size, "life %u: more than was asked for: %s", lives,
                  client->in + client->expected_size);
    if (client->in_size == client->expected_size) {
        client_finish(client);
    } else if (client->in_size >= client->leaves_at) {
        seen.left++;
        client_end(client);
    } else if (is_closed) {
        /* the one thing that may be lost: a connection of which nothing was read */
        cr_assert_eq(client->in_size, 0,
                     "life %u, born in %u: closed after %zu of %zu bytes (sent %zu of %zu):\n%.*s\n---\n%s", lives,
                     client->born, client->in_size, client->expected_size, client->sent, client->out_size,
                     (int)client->sent, client->out, client->in + (client->in_size > 600 ? client->in_size - 600 : 0));
        if (client->born == lives && !is_front_dead())
            return is_busy; /* it is dying, or time will tell */
        seen.closed_unread++;
        client_end(client);
    }
    return is_busy;
}

/* ---- the loop around all of it ---- */

static void turn(bool may_sleep)
{
    bool is_busy = sched_turn();
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (clients[i].fd >= 0)
            is_busy |= client_turn(&clients[i]);
    take_kept();
    struct pollfd polls[] = {{arena.bells[process_number(ROLE_SCHED, 0)], POLLIN, 0}, {keep_socket, POLLIN, 0}};
    if (!is_busy && may_sleep)
        poll(polls, ARRAY_COUNT(polls), 1);
    uint64_t rings;
    ssize_t got = read(polls[0].fd, &rings, sizeof(rings));
    (void)got;
}

static void open_clients(void)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        clients[i] = (struct client){.fd = -1, .out = malloc(65536)};
        clients[i].in = malloc(STREAM_BYTES + 1);
        clients[i].expected = malloc(STREAM_BYTES);
    }
}

static uint64_t gauge(enum counter_id id)
{
    return counter_read(arena_process(&arena, ROLE_FRONT, 0), id);
}

/* Every talk once, alone, undisturbed. */
static void learn_answers(void)
{
    struct client *client = &clients[0];
    for (uint32_t i = 0; i < ARRAY_COUNT(talks); i++) {
        client->talk_count = 1;
        client->talks[0] = i;
        client_begin(client);
        client->leaves_at = SIZE_MAX;
        client->expected_size = STREAM_BYTES;
        size_t size = 0;
        for (uint32_t quiet = 0; quiet < 20;) {
            size = client->in_size;
            ssize_t got = recv(client->fd, client->in + size, STREAM_BYTES - size, 0);
            client->in_size += got > 0 ? (size_t)got : 0;
            client_send(client, SIZE_MAX / 2);
            if (got == 0)
                break;
            int fd = client->fd;
            client->fd = -1;
            turn(true);
            client->fd = fd;
            bool is_quiet = client->in_size == size && size > 0 && gauge(COUNTER_FRONT_REQUESTS_ACTIVE) == 0;
            quiet = is_quiet ? quiet + 1 : 0;
            cr_assert_lt(clock_ns() - client->progress_ns, PATIENCE_NS, "no answer to %s", talks[i].request);
        }
        client->in[client->in_size] = '\0';
        cr_assert(normalise(client->in, client->in_size));
        talks[i].answer = strndup(client->in, client->in_size);
        talks[i].answer_size = client->in_size;
        client_end(client);
    }
}

static bool is_at_rest(void)
{
    return gauge(COUNTER_FRONT_REQUESTS_ACTIVE) == 0 && gauge(COUNTER_FRONT_CONNECTIONS_OPEN) == 0 &&
           gauge(COUNTER_FRONT_REQUEST_SLOTS_FREE) == plan.requests_max &&
           gauge(COUNTER_FRONT_PROMPT_PAGES_FREE) == plan.prompt_pages && kept.kept_count == 0 && shared->is_up;
}

static uint32_t number_from(const char *name, uint32_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? (uint32_t)strtoul(text, NULL, 10) : otherwise;
}

/* How the next life ends: a third each at the k-th point, at the k-th time it comes to a named one, at any instant. */
static uint64_t start_doomed_front(void)
{
    switch (dice(3)) {
    case 0:
        start_front(NULL, 1 + dice(dice(4) ? 1500 : 40));
        return 0;
    case 1:
        start_front(shared->points[dice(shared->point_count)].name, 1 + dice(dice(2) ? 4 : 40));
        return 0;
    default:
        start_front(NULL, 0);
        return clock_ns() + dice(8000) * 1000ull;
    }
}

static void kill_again_and_again(enum io_choice choice)
{
    uint32_t kills = number_from("EVENFLOW_KILLS", 250), at_points = 0;
    random_state = number_from("EVENFLOW_SEED", 20261127);
    set_up_engine(choice);
    write_requests();
    open_clients();
    start_front(NULL, 0);
    learn_answers();
    kill(front_pid, SIGKILL);
    collect_front(true);
    while (lives <= kills) {
        uint64_t until = start_doomed_front(), latest = clock_ns() + 300000000ull;
        while (!collect_front(false)) {
            for (uint32_t i = 0; i < CLIENTS; i++)
                if (clients[i].fd < 0) {
                    client_choose(&clients[i]);
                    client_begin(&clients[i]);
                }
            turn(true);
            /* it does not come to its point: then here */
            if (clock_ns() > (until != 0 ? until : latest))
                kill(front_pid, SIGKILL);
        }
        at_points += shared->died_at != NULL;
    }
    start_front(NULL, 0);
    uint32_t open = CLIENTS;
    for (uint64_t end = clock_ns() + PATIENCE_NS; (open > 0 || !is_at_rest()) && clock_ns() < end;) {
        turn(true);
        open = 0;
        for (uint32_t i = 0; i < CLIENTS; i++)
            open += clients[i].fd >= 0;
    }
    cr_expect_eq(open, 0);
    cr_expect(is_at_rest(), "left: %lu requests, %lu connections, %u kept", gauge(COUNTER_FRONT_REQUESTS_ACTIVE),
              gauge(COUNTER_FRONT_CONNECTIONS_OPEN), kept.kept_count);
    atomic_store(&arena_sup(&arena)->command, COMMAND_STOP);
    bell_ring_always(&front_bell);
    int status;
    waitpid(front_pid, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint32_t never = 0;
    for (uint32_t i = 0; i < shared->point_count; i++)
        never += shared->points[i].deaths == 0;
    fprintf(stderr,
            "%s: %u deaths (%u at %u of %u named points), %u answers on %u connections, %.1f MB compared; %u clients "
            "left, %u closed unread\n",
            choice == IO_URING ? "io_uring" : "epoll", lives - 1, at_points, shared->point_count - never,
            shared->point_count, seen.answers, seen.conversations, (double)seen.bytes / 1e6, seen.left,
            seen.closed_unread);
    for (uint32_t i = 0; i < shared->point_count && getenv("EVENFLOW_POINTS") != NULL; i++)
        fprintf(stderr, "%-28s %8lu hits %5u deaths\n", shared->points[i].name, shared->points[i].hits,
                shared->points[i].deaths);
    unlink(address.sun_path);
    rmdir(directory);
}

Test(front_death, no_byte_is_lost_repeated_or_changed_on_epoll)
{
    kill_again_and_again(IO_EPOLL);
}

Test(front_death, no_byte_is_lost_repeated_or_changed_on_io_uring)
{
    kill_again_and_again(IO_URING);
}
