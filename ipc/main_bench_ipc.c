/* main_bench_ipc.c - round trips of 64 bytes between two processes: make bench-ipc.
 *
 * Ours (ring.h, and bell.h where a side sleeps) beside the least that any way could take: a cache line that goes to and fro,
 * a futex that wakes and waits. Rounds of each take turns, on the same two cores; the ratio is of medians. */
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/bell.h"
#include "ipc/clock.h"
#include "ipc/ring.h"

#define ROUNDS     9u
#define BATCHES    20u /* of a round: the median of them, since some are interrupted */
#define SPIN_TRIPS 20000u
#define WAKE_TRIPS 4000u
#define SLOTS      64u

struct side {
    alignas(128) _Atomic uint32_t word; /* bare: W: this side, what it has sent */
    alignas(128) _Atomic uint32_t sleeping;
    alignas(128) _Atomic uint64_t consumed;
    alignas(128) struct ring_slot_shm slots[SLOTS]; /* what it sends */
};
struct shared {
    struct side sides[2];
};

struct end {
    struct side *mine, *theirs;
    struct ring_producer out;
    struct ring_consumer in;
    struct bell bell;
    struct bell_pull pull;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* ---- four ways to hand `turn` over and to wait for it ---- */

static void line_send(struct end *end, uint32_t turn)
{
    /* release: pairs with the acquire in line_wait(), as a ring's commit does */
    atomic_store_explicit(&end->mine->word, turn, memory_order_release);
}

static void line_wait(struct end *end, uint32_t turn)
{
    /* acquire: pairs with line_send() */
    while (atomic_load_explicit(&end->theirs->word, memory_order_acquire) != turn)
        relax();
}

static void ring_send(struct end *end, uint32_t turn)
{
    uint8_t payload[RING_PAYLOAD_BYTES] = {0};
    memcpy(payload, &turn, sizeof(turn));
    enum ring_result result = ring_push(&end->out, payload);
    check(result == RING_OK);
}

static bool ring_take(struct end *end, uint32_t turn)
{
    uint8_t payload[RING_PAYLOAD_BYTES];
    if (ring_peek(&end->in, payload) != RING_OK)
        return false;
    check(memcmp(payload, &turn, sizeof(turn)) == 0);
    ring_release(&end->in);
    return true;
}

static void ring_wait(struct end *end, uint32_t turn)
{
    while (!ring_take(end, turn))
        relax();
}

static void futex_send(struct end *end, uint32_t turn)
{
    line_send(end, turn);
    syscall(SYS_futex, &end->mine->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void futex_wait(struct end *end, uint32_t turn)
{
    /* acquire: pairs with line_send() */
    while (atomic_load_explicit(&end->theirs->word, memory_order_acquire) != turn)
        syscall(SYS_futex, &end->theirs->word, FUTEX_WAIT, turn - 1, NULL, NULL, 0);
}

static void bell_send(struct end *end, uint32_t turn)
{
    ring_send(end, turn);
    bell_ring(&end->pull);
}

static void bell_sleep(struct end *end, uint32_t turn)
{
    while (!ring_take(end, turn)) {
        bell_announce(&end->bell);
        if (ring_is_empty(&end->in))
            bell_wait(&end->bell);
        else
            bell_retract(&end->bell);
    }
}

static const struct way {
    const char *name;
    void (*send)(struct end *end, uint32_t turn);
    void (*wait)(struct end *end, uint32_t turn);
    uint32_t trips;
} ways[] = {
    {"cache line, spinning", line_send, line_wait, SPIN_TRIPS},
    {"ring, spinning", ring_send, ring_wait, SPIN_TRIPS},
    {"futex, asleep", futex_send, futex_wait, WAKE_TRIPS},
    {"ring and bell, asleep", bell_send, bell_sleep, WAKE_TRIPS},
};

/* ---- measuring ---- */

static cpu_set_t allowed; /* to this program when it started: before anything was pinned */

static void pin(uint32_t number)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &allowed) && number-- == 0)
            CPU_SET(core, &one);
    if (CPU_COUNT(&one) > 0)
        check(sched_setaffinity(0, sizeof(one), &one) == 0);
}

static void open_end(struct end *end, struct shared *shared, const int *bells, uint32_t side)
{
    *end = (struct end){.mine = &shared->sides[side], .theirs = &shared->sides[1 - side]};
    ring_producer_attach(&end->out, end->mine->slots, SLOTS, &end->theirs->consumed);
    ring_consumer_attach(&end->in, end->theirs->slots, SLOTS, &end->mine->consumed);
    end->bell = (struct bell){.fd = bells[side], .sleeping = &end->mine->sleeping};
    end->pull = (struct bell_pull){.fd = bells[1 - side], .sleeping = &end->theirs->sleeping};
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nanoseconds of a round trip. */
static double measure(const struct way *way)
{
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(shared != MAP_FAILED);
    memset(shared, 0, sizeof(*shared));
    const int bells[2] = {eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC)};
    struct end end;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(1);
        open_end(&end, shared, bells, 1);
        for (uint32_t turn = 1; turn <= way->trips; turn++) {
            way->wait(&end, turn);
            way->send(&end, turn);
        }
        _exit(0);
    }
    open_end(&end, shared, bells, 0);
    double batches[BATCHES];
    for (uint32_t batch = 0, turn = 1; batch < BATCHES; batch++) {
        uint64_t begin = clock_ns();
        for (uint32_t i = 0; i < way->trips / BATCHES; i++, turn++) {
            way->send(&end, turn);
            way->wait(&end, turn);
        }
        batches[batch] = (double)(clock_ns() - begin) / (way->trips / BATCHES);
    }
    int status;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (int i = 0; i < 2; i++)
        close(bells[i]);
    munmap(shared, sizeof(*shared));
    qsort(batches, BATCHES, sizeof(double), compare);
    return batches[BATCHES / 2];
}

int main(void)
{
    double rounds[ARRAY_COUNT(ways)][ROUNDS];
    check(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    if (CPU_COUNT(&allowed) < 2) {
        fputs("bench-ipc: two processors are needed, one to each side\n", stderr);
        return 1;
    }
    pin(0);
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (size_t i = 0; i < ARRAY_COUNT(ways); i++)
            rounds[i][round] = measure(&ways[i]);
    printf("round trip, ns            best   median    of the bare one\n");
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        qsort(rounds[i], ROUNDS, sizeof(double), compare);
        printf("%-22s %8.0f %8.0f", ways[i].name, rounds[i][0], rounds[i][ROUNDS / 2]);
        if (i % 2 == 1)
            printf("    %.2f (best: %.2f)", rounds[i][ROUNDS / 2] / rounds[i - 1][ROUNDS / 2],
                   rounds[i][0] / rounds[i - 1][0]);
        printf("\n");
    }
    return 0;
}
