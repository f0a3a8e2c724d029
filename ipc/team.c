#include "ipc/team.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOKS  400u /* some microseconds: what a meeting of members on cores of their own takes */
#define YIELDS 16u

struct team {
    uint32_t size;
    team_work work; /* W: the caller of team_run(), before the meeting that starts it   R: members, behind it */
    void *context;  /* likewise */
    bool is_closing;
    alignas(128) _Atomic uint32_t arrived; /* members that have come to this meeting */
    alignas(128) _Atomic uint32_t round;   /* meetings that are over: the word that members wait for, and sleep on */
    _Atomic uint32_t sleepers;
    pthread_t threads[TEAM_MAX];
    struct seat {
        struct team *team;
        uint32_t part;
    } seats[TEAM_MAX];
};

static void sleep_on(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); /* whatever it says, we look again */
}

static void wait_for_round(struct team *team, uint32_t seen)
{
    /* acquire, here and below: pairs with the release in team_meet(): what the others wrote before they came */
    for (uint32_t i = 0; i < LOOKS; i++) {
        if (atomic_load_explicit(&team->round, memory_order_acquire) != seen)
            return;
        __builtin_ia32_pause();
    }
    for (uint32_t i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(&team->round, memory_order_acquire) != seen)
            return;
        sched_yield();
    }
    /* seq_cst: pairs with team_meet(): either it sees a sleeper, or the kernel sees the new round and does not sleep */
    atomic_fetch_add_explicit(&team->sleepers, 1, memory_order_seq_cst);
    while (atomic_load_explicit(&team->round, memory_order_acquire) == seen)
        sleep_on(&team->round, seen);
    atomic_fetch_sub_explicit(&team->sleepers, 1, memory_order_relaxed);
}

void team_meet(struct team *team)
{
    if (team == NULL)
        return;
    /* relaxed: it cannot change before we have come ourselves */
    uint32_t seen = atomic_load_explicit(&team->round, memory_order_relaxed);
    /* acq_rel: the last one to come has seen what the others wrote, and hands it on with the round */
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 < team->size) {
        wait_for_round(team, seen);
        return;
    }
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed); /* before the round: nobody comes earlier */
    /* seq_cst store, seq_cst load: see wait_for_round(); the store is a release for everything before it */
    atomic_store_explicit(&team->round, seen + 1, memory_order_seq_cst);
    if (atomic_load_explicit(&team->sleepers, memory_order_seq_cst) > 0)
        syscall(SYS_futex, &team->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *member(void *pointer)
{
    const struct seat *seat = pointer;
    struct team *team = seat->team;
    if (team->work != NULL)
        team->work(team->context, seat->part); /* the start */
    team_meet(team);
    for (;;) {
        team_meet(team);
        if (team->is_closing)
            return NULL;
        team->work(team->context, seat->part);
        team_meet(team);
    }
}

int team_open(struct team **result, uint32_t size, team_work start, void *context, struct err *err)
{
    check(size >= 1 && size <= TEAM_MAX);
    *result = NULL;
    if (size == 1)
        return 0;
    struct team *team = base_alloc_aligned(128, sizeof(*team));
    team->size = size;
    team->work = start;
    team->context = context;
    for (uint32_t part = 1; part < size; part++) {
        team->seats[part] = (struct seat){.team = team, .part = part};
        int ret = pthread_create(&team->threads[part], NULL, member, &team->seats[part]);
        if (ret != 0) /* those that run already end with the process */
            return err_set(err, -ret, "cannot start thread %u of %u: %s", part + 1, size, strerror(ret));
    }
    team_meet(team); /* all have started: work and context are free for team_run() */
    *result = team;
    return 0;
}

void team_close(struct team *team)
{
    if (team == NULL)
        return;
    team->is_closing = true;
    team_meet(team);
    for (uint32_t part = 1; part < team->size; part++)
        pthread_join(team->threads[part], NULL);
    free(team);
}

uint32_t team_size(const struct team *team)
{
    return team != NULL ? team->size : 1;
}

void team_run(struct team *team, team_work work, void *context)
{
    if (team != NULL) {
        team->work = work;
        team->context = context;
    }
    team_meet(team);
    work(context, 0);
    team_meet(team);
}

uint32_t team_share(const struct team *team, uint32_t part, uint32_t count, uint32_t unit, uint32_t *first)
{
    uint64_t units = div_up_u64(count, unit), size = team_size(team);
    uint64_t from = units * part / size * unit, to = units * (part + 1) / size * unit;
    *first = (uint32_t)min_u64(from, count);
    return (uint32_t)min_u64(to, count) - *first;
}
