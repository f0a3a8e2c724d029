/* main_bench_front.c - the front's own processor time: make bench-front.
 *
 * A front in a process of its own, on both back ends, with a model's vocabulary; this process plays scheduler, keeper and
 * clients. What the front has used is the kernel's account of it (/proc/PID/schedstat), system calls included; the others'
 * time is not in it, so it may be measured beside a load. "cold": between two tokens somebody reads more than every cache
 * holds on the front's processor, as stages read their weights. The last line is the floor: a process that makes the blocking
 * system calls without which it cannot be done, with as many bytes, and does nothing else. usage: bench-front MODEL.gguf */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/front.h"
#include "ipc/journal.h"
#include "ipc/keep.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"
#include "stages/gguf.h"
#include "tests/fake_sched.h"
#include "tests/plans.h"
#include "tools/vocab.h"

#define CLIENTS_MAX  64u
#define TOKENS       2000u
#define COLD_STREAMS 16u /* of 32 in two steps that follow each other */
#define COLD_TOKENS  300u
#define WEIGHT_BYTES ((size_t)96 << 20)
#define REQUESTS     5000u
#define EVENT_BYTES  230 /* of a token's event, and of a small answer: what front sends */
#define REPLY_BYTES  430

static struct plan plan;
static struct arena arena;
static struct keep_table kept;
static int keep_socket;
static struct ring_producer to_front;
static struct ring_consumer from_front;
static struct bell_pull front_bell;
static char directory[] = "/tmp/evenflow-bench-XXXXXX";
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static pid_t front_pid;
static bool is_bare; /* front is the floor */
static enum io_choice choice;
static void *vocab;
static size_t vocab_bytes;

static void set_up(void)
{
    plan = plan_for_tests();
    plan.connections_max = CLIENTS_MAX + 8;
    plan.requests_max = 2 * CLIENTS_MAX;
    plan.prompt_pages = 4 * CLIENTS_MAX;
    plan.max_model_len = plan.context_length = TOKENS + 64;
    plan.num_blocks = 4096;
    plan.io = choice;
    plan.request_timeout_ms = plan.header_timeout_ms = 60000;
    plan.vocab_bytes = vocab_bytes;
    plan.vocab_size = 1; /* fewer than the vocabulary has is no matter */
    fake_sched_plan(&plan);
    arena_in_memory(&arena, &plan);
    for (uint32_t id = REGION_SUP; id <= REGION_SCHED; id++) { /* the same, shared with the front's process */
        if (arena.regions[id] == NULL)
            continue;
        struct region_head head = *(struct region_head *)(void *)arena.regions[id];
        void *memory = mmap(arena.regions[id], arena.layout.region_bytes[id], PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        check(memory == arena.regions[id]);
        if (head.magic == REGION_MAGIC)
            *(struct region_head *)memory = head;
    }
    arena.role = ROLE_FRONT;
    arena.regions[REGION_VOCAB] = vocab;
    arena.bells[process_number(ROLE_FRONT, 0)] = eventfd(0, EFD_CLOEXEC);
    arena.bells[process_number(ROLE_SCHED, 0)] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    arena.bells[process_number(ROLE_SUPERVISOR, 0)] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&arena_process(&arena, ROLE_SCHED, 0)->sleeping, 1); /* it always sleeps, in poll() */
    atomic_store(&arena_sup(&arena)->ready, 1);
    atomic_store(&arena_sup(&arena)->has_started, 1);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", directory);
    unlink(address.sun_path);
    arena.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(bind(arena.listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(arena.listener, 128) == 0);
    arena_ring_sched_to_front_producer(&arena, &to_front);
    arena_ring_front_to_sched_consumer(&arena, &from_front);
    front_bell = arena_pull(&arena, ROLE_FRONT, 0);
    keep_table_open(&kept, plan.connections_max);
}

static void start_front(uint32_t clients)
{
    (void)clients;
    int pair[2];
    uint32_t next = 0;
    set_up();
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    keep_socket = pair[0];
    arena.keep = pair[1];
    check(keep_table_give(&kept, keep_socket, &next) == 0);
    front_pid = fork();
    if (front_pid == 0) {
        struct front *front;
        struct err err = {0};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (front_init(&front, &arena, &err) != 0 || sandbox_enter(ROLE_FRONT, &err) != 0) {
            fprintf(stderr, "%s\n", err.text);
            _exit(1);
        }
        front_start(front);
        while (front_do_work(front, true) >= 0) {
        }
        _exit(0);
    }
    close(pair[1]);
}

/* ---- the floor ---- */

static char bare_bytes[4096];

static void bare_wait(void)
{
    uint64_t rings;
    check(read(arena.bells[process_number(ROLE_FRONT, 0)], &rings, sizeof(rings)) == sizeof(rings));
}

static void bare_send(int fd, size_t size)
{
    check(send(fd, bare_bytes, size, MSG_NOSIGNAL) == (ssize_t)size);
}

static int bare_accept(void)
{
    struct keep_message message;
    struct ucred peer;
    socklen_t size = sizeof(peer);
    int fds[KEEP_ENTRIES_MAX], fd = accept4(arena.listener, NULL, NULL, SOCK_CLOEXEC);
    check(fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0);
    keep_begin(&message);
    keep_add(&message, fds, KEEP_HOLD, (uint32_t)fd % plan.connections_max, 1, fd);
    check(keep_send(arena.keep, &message, fds) == 0);
    return fd;
}

static void bare_stream(uint32_t clients)
{
    int fds[CLIENTS_MAX];
    for (uint32_t i = 0; i < clients; i++) {
        fds[i] = bare_accept();
        check(recv(fds[i], bare_bytes, sizeof(bare_bytes), 0) > 0);
        bare_send(fds[i], EVENT_BYTES);
    }
    for (;;) {
        bare_wait();
        for (uint32_t i = 0; i < clients; i++)
            bare_send(fds[i], EVENT_BYTES);
    }
}

static void bare_requests(uint32_t clients)
{
    (void)clients;
    for (;;) {
        int fd = bare_accept();
        while (recv(fd, bare_bytes, sizeof(bare_bytes), 0) > 0) {
            bell_ring_always(&(struct bell_pull){.fd = arena.bells[process_number(ROLE_SCHED, 0)]});
            bare_wait();
            bare_send(fd, REPLY_BYTES);
        }
        close(fd);
    }
}

static void start_bare(void (*serve)(uint32_t clients), uint32_t clients)
{
    int pair[2];
    set_up();
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    keep_socket = pair[0];
    arena.keep = pair[1];
    atomic_store(&arena_process(&arena, ROLE_FRONT, 0)->sleeping,
                 1); /* a bell that is rung before it is waited for waits */
    front_pid = fork();
    if (front_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(clients);
    }
    close(pair[1]);
}

static void start_bare_stream(uint32_t clients)
{
    start_bare(bare_stream, clients);
}

static void start_bare_requests(uint32_t clients)
{
    start_bare(bare_requests, clients);
}

static void stop_front(void)
{
    int status;
    kill(front_pid, SIGKILL);
    waitpid(front_pid, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(keep_socket);
    close(arena.listener);
    for (uint32_t role = ROLE_SUPERVISOR; role <= ROLE_SCHED; role++)
        close(arena.bells[process_number(role, 0)]);
    arena_in_memory_free(&arena);
}

static double front_us(void)
{
    char path[64], text[128] = "";
    snprintf(path, sizeof(path), "/proc/%d/schedstat", (int)front_pid);
    int fd = open(path, O_RDONLY);
    ssize_t size = read(fd, text, sizeof(text) - 1);
    check(size > 0);
    close(fd);
    return strtod(text, NULL) / 1000;
}

/* ---- the scheduler and the keeper ---- */

static void hint(enum msg_request_kind kind, uint32_t slot)
{
    struct msg_request msg = {.kind = kind, .slot = slot, .generation = arena_request(&arena, slot)->generation};
    check(ring_push(&to_front, &msg) == RING_OK);
}

static void commit(uint32_t slot, uint32_t token, bool is_last)
{
    fake_sched_commit(&arena, slot, 0, &(struct token_shm){.token = token});
    if (is_last)
        fake_sched_end(&arena, slot, 0, FINISH_LENGTH);
    hint(MSG_REQUEST_TOKENS, slot);
}

/* Takes what front says. Answers with one token at once if told to. */
static void sched_turn(bool answers)
{
    struct msg_request msg;
    struct keep_message message;
    int fds[KEEP_ENTRIES_MAX];
    uint64_t rings;
    ssize_t got = read(arena.bells[process_number(ROLE_SUPERVISOR, 0)], &rings, sizeof(rings));
    got = read(arena.bells[process_number(ROLE_SCHED, 0)], &rings, sizeof(rings));
    bool wakes = is_bare && got == sizeof(rings);
    for (; ring_peek(&from_front, &msg) == RING_OK; ring_release(&from_front)) {
        if (msg.kind == MSG_REQUEST_ACCEPTED) {
            wakes = true; /* for what is forgotten, sched does not */
            fake_sched_take(&arena, msg.slot);
            if (answers)
                commit(msg.slot, 100, true);
        } else if (msg.kind == MSG_REQUEST_DRAINED) {
            fake_sched_forget(&arena, msg.slot);
            hint(MSG_REQUEST_FORGOTTEN, msg.slot);
        }
    }
    if (wakes)
        bell_ring(&front_bell);
    while (keep_receive(keep_socket, false, &message, fds) == 1)
        check(keep_table_take(&kept, &message, fds));
}

/* ---- clients ---- */

static int connect_client(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    return fd;
}

static void ask(int fd, const char *body)
{
    char text[1024];
    int size = snprintf(text, sizeof(text),
                        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s",
                        strlen(body), body);
    check(send(fd, text, (size_t)size, MSG_NOSIGNAL) == size);
}

/* Sleeps until the client has bytes, and takes them. */
static void await(int fd, bool answers)
{
    static char text[1 << 16];
    struct pollfd polls[] = {{fd, POLLIN, 0},
                             {arena.bells[process_number(ROLE_SCHED, 0)], POLLIN, 0},
                             {arena.bells[process_number(ROLE_SUPERVISOR, 0)], POLLIN, 0}};
    while (!(polls[0].revents & POLLIN)) {
        check(poll(polls, ARRAY_COUNT(polls), 10000) > 0);
        sched_turn(answers);
    }
    ssize_t got = recv(fd, text, sizeof(text) - 1, 0);
    check(got > 0);
    text[got] = '\0';
    if (!is_bare && strncmp(text, "HTTP/1.1 ", 9) == 0 && strncmp(text + 9, "200", 3) != 0) {
        fprintf(stderr, "%s\n", text);
        exit(1);
    }
}

static void read_weights(void)
{
    static volatile uint64_t sum;
    static uint64_t *weights;
    if (weights == NULL) {
        weights = base_reserve(64, WEIGHT_BYTES);
        memset(weights, 1, WEIGHT_BYTES);
    }
    for (size_t i = 0; i < WEIGHT_BYTES / sizeof(*weights); i += 64 / sizeof(*weights))
        sum = sum + weights[i];
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median step's: others may have interrupted some of them. */
static double streamed_token_us(uint32_t clients, uint32_t tokens, bool is_cold)
{
    static double steps_us[TOKENS];
    int fds[CLIENTS_MAX];
    for (uint32_t i = 0; i < clients; i++) {
        char body[128];
        fds[i] = connect_client();
        snprintf(body, sizeof(body), "{\"prompt\":\"Hello there\",\"stream\":true,\"max_tokens\":%u}", tokens);
        ask(fds[i], body);
        await(fds[i], false); /* the head */
    }
    double before = front_us();
    for (uint32_t t = 0; t < tokens; t++) {
        if (is_cold)
            read_weights();
        for (uint32_t slot = 0; slot < plan.requests_max; slot++)
            if (journal_request_state(arena_request(&arena, slot)) == REQUEST_ACCEPTED)
                commit(slot, 100 + t % 1000, t + 1 == tokens);
        bell_ring(&front_bell);
        for (uint32_t i = 0; i < clients; i++)
            await(fds[i], false);
        double now = front_us();
        steps_us[t] = now - before;
        before = now;
    }
    for (uint32_t i = 0; i < clients; i++)
        close(fds[i]);
    qsort(steps_us, tokens, sizeof(*steps_us), compare_doubles);
    return steps_us[tokens / 2] / clients;
}

static double small_request_us(bool reconnects)
{
    int fd = connect_client();
    double before = front_us();
    for (uint32_t i = 0; i < REQUESTS; i++) {
        ask(fd, "{\"prompt\":\"Hello there\",\"max_tokens\":1,\"temperature\":0}");
        await(fd, true);
        if (reconnects) {
            close(fd);
            fd = connect_client();
        }
    }
    double used = front_us() - before;
    close(fd);
    return used / REQUESTS;
}

static void stay_on_one_processor(cpu_set_t all)
{
    for (int cpu = CPU_SETSIZE; cpu-- > 0 && CPU_COUNT(&all) > 1;)
        CPU_CLR(cpu, &all);
    check(sched_setaffinity(0, sizeof(all), &all) == 0);
}

/* One line of the table. Each figure has a front of its own, which start() begins. */
static void print_figures(const char *name, void (*start_stream)(uint32_t clients),
                          void (*start_requests)(uint32_t clients))
{
    static const uint32_t streams[] = {1, 16, 64};
    cpu_set_t all;
    printf("%-12s", name);
    for (size_t i = 0; i < ARRAY_COUNT(streams); i++) {
        start_stream(streams[i]);
        printf("%10.2f", streamed_token_us(streams[i], TOKENS, false));
        stop_front();
    }
    check(sched_getaffinity(0, sizeof(all), &all) == 0);
    stay_on_one_processor(all);
    start_stream(COLD_STREAMS);
    printf("%10.2f", streamed_token_us(COLD_STREAMS, COLD_TOKENS, true));
    stop_front();
    check(sched_setaffinity(0, sizeof(all), &all) == 0);
    for (int reconnects = 0; reconnects < 2; reconnects++) {
        start_requests(1);
        printf("%*.1f", reconnects ? 10 : 20, small_request_us(reconnects));
        stop_front();
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    struct gguf *gguf;
    struct err err = {0};
    log_open("bench-front", LOG_ERROR);
    setvbuf(stdout, NULL, _IONBF, 0); /* each figure as it comes */
    if (argc != 2 || gguf_open(&gguf, argv[1], &err) != 0 ||
        vocab_from_gguf(gguf, NULL, &vocab, &vocab_bytes, &err) != 0) {
        fprintf(stderr, "usage: bench-front MODEL.gguf\n%s\n", err.text);
        return 2;
    }
    check(mkdtemp(directory) != NULL);
    printf(
        "microseconds of the front's processor time, system calls included\n"
        "              a streamed token: 1, 16 and 64 streams, 16 cold   a small request: one connection, one each\n");
    for (choice = IO_URING; choice <= IO_EPOLL; choice++)
        print_figures(choice == IO_URING ? "io_uring" : "epoll", start_front, start_front);
    is_bare = true;
    choice = IO_ANY;
    print_figures("bare calls", start_bare_stream, start_bare_requests);
    unlink(address.sun_path);
    rmdir(directory);
    return 0;
}
