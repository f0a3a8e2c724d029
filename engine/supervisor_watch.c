#include "engine/supervisor_inside.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/log.h"
#include "ipc/stats.h"

#define DEVICE_START_US 1000000u /* opening a device takes processor time, some seconds where there are many */

uint64_t supervisor_word(const struct supervisor *s, enum role role, uint32_t index, size_t offset)
{
    const struct process_shm *process = s->processes[process_number(role, index)];
    /* relaxed: one writer, and what follows from it is looked at again */
    return atomic_load_explicit((const _Atomic uint64_t *)(const void *)((const uint8_t *)process + offset),
                                memory_order_relaxed);
}

uint64_t supervisor_step_at_hand(const struct supervisor *s, const struct child *child)
{
    if (child->role != ROLE_STAGE)
        return 0;
    uint64_t done = WORD(s, ROLE_STAGE, child->index, step);
    uint64_t given = child->index > 0 ? WORD(s, ROLE_STAGE, child->index - 1, step) : WORD(s, ROLE_SCHED, 0, step);
    return given > done ? done + 1 : 0;
}

bool supervisor_is_suspected(const struct supervisor *s, const struct child *child)
{
    const struct process_shm *sched = s->processes[process_number(ROLE_SCHED, 0)];
    /* acquire: pairs with the release in arena_deal_with(). relaxed: supervisors write it */
    return child->role == ROLE_STAGE &&
           atomic_load_explicit(&sched->dealt_with[child->index], memory_order_acquire) !=
               atomic_load_explicit(&s->shm->suspects[child->index].life, memory_order_relaxed);
}

static uint32_t suspected_count(const struct supervisor *s)
{
    uint32_t count = 0;
    for (uint32_t i = 1; i < s->process_count; i++)
        count += supervisor_is_suspected(s, &s->children[i]);
    return count;
}

static bool is_readable(int fd)
{
    return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1; /* -1 never is */
}

/* A client connects, or has sent something. Asked only for a front that is stopped: one that runs takes them when it can. */
static bool does_a_client_wait(const struct supervisor *s)
{
    const struct keep_table *kept = &s->keeper.table;
    if (is_readable(s->listener) || is_readable(s->listener_tcp))
        return true;
    for (uint32_t slot = 0; slot < kept->slot_count; slot++)
        if (is_readable(kept->slots[slot].fd))
            return true;
    return false;
}

/* Something is under way somewhere. Front counts a request from its acceptance until its answer is out: a scheduler that is
 * stopped between taking it in and planning its first step shows nothing of it yet. */
static bool is_busy(const struct supervisor *s)
{
    return counter_read(s->processes[process_number(ROLE_FRONT, 0)], COUNTER_FRONT_REQUESTS_ACTIVE) > 0 ||
           WORD(s, ROLE_SCHED, 0, step) > WORD(s, ROLE_SCHED, 0, consumed_second) ||
           WORD(s, ROLE_FRONT, 0, told) > WORD(s, ROLE_SCHED, 0, consumed) ||
           WORD(s, ROLE_SCHED, 0, told) > WORD(s, ROLE_FRONT, 0, consumed);
}

/* Though sequences run: the next step is the scheduler's to plan. */
static bool has_nothing_in_flight(const struct supervisor *s)
{
    return counter_read(s->processes[process_number(ROLE_SCHED, 0)], COUNTER_SCHED_RUNNING) > 0 &&
           WORD(s, ROLE_SCHED, 0, step) == WORD(s, ROLE_SCHED, 0, consumed_second);
}

struct watch_look supervisor_look_at(const struct supervisor *s, const struct child *child)
{
    const uint32_t i = child->index, last = s->plan->stage_count - 1;
    struct watch_look look = {.now_ns = clock_ns()};
    uint32_t suspected = suspected_count(s);
    switch (child->role) {
    case ROLE_FRONT:
        look.progress = WORD(s, ROLE_FRONT, 0, consumed);
        look.has_work = WORD(s, ROLE_SCHED, 0, told) > look.progress ||
                        (watch_read((int)child->pid, &look) && watch_is_stopped(&look) &&
                         (!s->keeper.is_whole || does_a_client_wait(s)));
        break;
    case ROLE_SCHED:
        /* a stage whose death has been dealt with is progress */
        look.progress = WORD(s, ROLE_SCHED, 0, consumed) + WORD(s, ROLE_SCHED, 0, consumed_second) - suspected;
        look.has_work = suspected > 0 || WORD(s, ROLE_STAGE, last, step) > WORD(s, ROLE_SCHED, 0, consumed_second) ||
                        WORD(s, ROLE_FRONT, 0, told) > WORD(s, ROLE_SCHED, 0, consumed) || has_nothing_in_flight(s);
        break;
    default:
        look.progress = WORD(s, ROLE_STAGE, i, step);
        look.has_work = supervisor_step_at_hand(s, child) != 0;
        look.predicted_us = WORD(s, ROLE_STAGE, i, predicted_us);
    }
    /* acquire: pairs with the release in arena_set_state() */
    if (atomic_load_explicit(&s->processes[process_number(child->role, i)]->state, memory_order_acquire) ==
        PROCESS_STARTING) {
        look.has_work = true;
        if (child->role == ROLE_STAGE && s->plan->slices[i].device != DEVICE_CPU)
            look.predicted_us = max_u64(look.predicted_us, DEVICE_START_US);
    }
    /* One that was stopped between what it says of itself and what it does has work that no word shows: where something is
     * under way, who is stopped is in its way. */
    bool may_have_work = look.has_work || is_busy(s);
    if (may_have_work && watch_read((int)child->pid, &look))
        look.has_work = look.has_work || watch_is_stopped(&look);
    return look;
}

/* Front was stopped before it had given its connections to this supervisor: they would be lost with it. */
static void go_on(struct child *front)
{
    log_warn("front (process %d) was stopped before its connections were safe; it is told to go on", (int)front->pid);
    syscall(SYS_pidfd_send_signal, front->pidfd, SIGCONT, NULL, 0);
    front->hung = WATCH_FINE;
    watch_begin(&front->watch);
}

void supervisor_look_who_hangs(struct supervisor *s)
{
    if (s->look_ns == 0 || clock_ns() < s->look_ns)
        return;
    s->look_ns = clock_ns() + WATCH_TICK_NS;
    supervisor_look_at_spares(s);
    supervisor_look_at_standby(s);
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        if (child->pidfd < 0 || child->hung != WATCH_FINE)
            continue;
        struct watch_look look = supervisor_look_at(s, child);
        child->hung = watch_judge(&child->watch, &look);
        if (child->hung == WATCH_FINE)
            continue;
        if (child->role == ROLE_FRONT && child->hung == WATCH_STOPPED && !s->keeper.is_whole)
            go_on(child);
        else
            supervisor_end_child(s, child);
    }
}
