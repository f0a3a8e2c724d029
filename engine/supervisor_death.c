#include "engine/supervisor_inside.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/log.h"

/* Who lived when a supervisor died, and dies so soon after it, died together with it. */
#define TOGETHER_NS 100000000ull

/* A life is fruitless when it ended without progress, before it had lasted. A successor starts at once after the first of
 * them in a row, then later and later; at the end there is no point in another one. */
#define LASTING_NS        1000000000ull
#define BACK_OFF_NS       50000000ull
#define BACK_OFF_MAX_NS   5000000000ull
#define FRUITLESS_SUSPECT 4u /* after so many, and so many more, what it was at is suspect, whoever ended it */
#define FRUITLESS_MAX     8u

/* Of a process that a supervisor before this one has started, whose parent is somebody else now. */
static void ask_pidfd(int pidfd, siginfo_t *info)
{
    struct pidfd_exit {
        uint64_t mask, cgroup;
        uint32_t ids[11];
        int32_t exit_code;
    } exit = {.mask = 1u << 3};
    static_assert(sizeof(struct pidfd_exit) == 64, "the kernel's struct pidfd_info, first version");
    if (ioctl(pidfd, _IOWR(0xff, 11, struct pidfd_exit), &exit) != 0 || !(exit.mask & 1u << 3))
        return; /* Linux before 6.15 */
    info->si_code = WIFSIGNALED(exit.exit_code) ? CLD_KILLED : CLD_EXITED;
    info->si_status = WIFSIGNALED(exit.exit_code) ? WTERMSIG(exit.exit_code) : WEXITSTATUS(exit.exit_code);
}

static const char *const death_words[] = {
    [DEATH_OUTSIDE] = "ended from outside", [DEATH_FAULT] = "own fault", [DEATH_HUNG] = "hung", [DEATH_LEFT] = "left"};

/* What is known of a death, for people: kept for `status`, and said. */
static enum death_kind report_death(struct supervisor *s, struct child *child, const siginfo_t *info, const char *what)
{
    uint32_t number = process_number(child->role, child->index);
    const struct words_shm words = s->processes[number]->words; /* copied: a dead process's, but not one of ours */
    bool is_killed = info->si_code == CLD_KILLED || info->si_code == CLD_DUMPED;
    bool has_words = words.epoch == child->epoch && words.signal != 0;
    /* of a process that a supervisor before this one has started nobody may say how it ended, but itself */
    uint32_t signal = is_killed ? (uint32_t)info->si_status : info->si_code == 0 && has_words ? words.signal : 0;
    struct death_shm death = {.at_s = (uint64_t)time(NULL),
                              .number = number,
                              .pid = (uint32_t)child->pid,
                              .signal = signal,
                              .step = supervisor_step_at_hand(s, child),
                              .kind = DEATH_OUTSIDE};
    if (child->hung != WATCH_FINE) {
        death.kind = DEATH_HUNG;
        snprintf(death.text, sizeof(death.text), "%s", watch_words[child->hung]);
    } else if (words_are_own_fault(&words, child->epoch, (int)signal)) {
        death.kind = DEATH_FAULT;
        if (has_words && words.text[0] != '\0')
            snprintf(death.text, sizeof(death.text), "%.*s", (int)sizeof(words.text) - 1, words.text);
        else if (has_words)
            snprintf(death.text, sizeof(death.text), "address %#llx, instruction %#llx",
                     (unsigned long long)words.address, (unsigned long long)words.instruction);
    } else if (info->si_code == CLD_EXITED) {
        death.kind = DEATH_LEFT;
        snprintf(death.text, sizeof(death.text), "status %d", info->si_status);
    } else if (has_words) {
        snprintf(death.text, sizeof(death.text), "sent by process %u", words.sender);
    }
    char trace[512], step[48] = "";
    trace_print(&s->processes[number]->trace, 6, clock_ns(), trace, sizeof(trace));
    if (death.step != 0)
        snprintf(step, sizeof(step), ", step %llu at hand", (unsigned long long)death.step);
    log_warn("%s %u (process %d) %s: %s%s%s%s%s%s", role_name(child->role), child->index, (int)child->pid, what,
             death_words[death.kind], death.text[0] ? ", " : "", death.text, step, trace[0] ? "; last: " : "", trace);
    /* relaxed, then release: pairs with the acquire in arena_death(): the report before its count */
    uint64_t count = atomic_load_explicit(&s->shm->death_count, memory_order_relaxed);
    s->shm->deaths[count % DEATHS_KEPT] = death;
    atomic_store_explicit(&s->shm->death_count, count + 1, memory_order_release);
    return (enum death_kind)death.kind;
}

static void describe_end(const siginfo_t *info, char *text, size_t size)
{
    if (info->si_code == 0)
        snprintf(text, size, "ended");
    else if (info->si_code == CLD_EXITED)
        snprintf(text, size, "left with status %d", info->si_status);
    else
        snprintf(text, size, "was ended by signal %d (%s)%s", info->si_status, strsignal(info->si_status),
                 info->si_code == CLD_DUMPED ? ", core dumped" : "");
}

static uint64_t progress_of(const struct supervisor *s, const struct child *child)
{
    /* relaxed: its writer is dead */
    return atomic_load_explicit(&s->processes[process_number(child->role, child->index)]->progress,
                                memory_order_relaxed);
}

/* When a successor begins; false: there is no point in another one. */
static bool plan_successor(struct supervisor *s, struct child *child)
{
    uint64_t progress = progress_of(s, child), now_ns = clock_ns(), wait_ns = 0;
    bool was_idle = !supervisor_look_at(s, child).has_work; /* it could do no more than be ready */
    bool was_fruitful = progress != child->progress || was_idle || now_ns - child->born_ns >= LASTING_NS;
    child->progress = progress;
    child->fruitless = was_fruitful ? 0 : child->fruitless + 1;
    if (child->fruitless > FRUITLESS_MAX)
        return false;
    if (child->fruitless > 1)
        wait_ns = min_u64(BACK_OFF_NS << (child->fruitless - 2), BACK_OFF_MAX_NS);
    child->successor_ns = now_ns + wait_ns;
    if (wait_ns > 0) /* a standby that does not know of this death would take it for one together with a supervisor */
        s->is_standby_outdated = true;
    return true;
}

void supervisor_begin_successors(struct supervisor *s)
{
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        struct err err;
        if (child->successor_ns == 0 || child->successor_ns > now_ns || s->phase == PHASE_STOPPING ||
            supervisor_is_suspected(s, child))
            continue;
        if (supervisor_start_child(s, child, &err) != 0) {
            log_error("%s; ending the engine", err.text);
            supervisor_stop(s, 1);
            continue;
        }
        /* relaxed: shown to people, decides nothing */
        atomic_store_explicit(&s->shm->processes[i].restarts, child->epoch - 1, memory_order_relaxed);
    }
}

/* A stage that died of the step at hand makes its rows suspect; one that was ended, or stopped, from outside does only when
 * several in a row got nowhere with it. One that was not ready yet had not looked at any step. */
static void raise_suspicion(struct supervisor *s, const struct child *child, enum death_kind kind)
{
    /* acquire: pairs with the release in arena_set_state() */
    bool was_ready = atomic_load_explicit(&s->processes[process_number(child->role, child->index)]->state,
                                          memory_order_acquire) != PROCESS_STARTING;
    bool is_own = kind == DEATH_FAULT || (kind == DEATH_HUNG && child->hung != WATCH_STOPPED);
    bool is_fruitless = child->fruitless > 0 && child->fruitless % FRUITLESS_SUSPECT == 0;
    if (child->role != ROLE_STAGE || !was_ready || !(is_own || is_fruitless))
        return;
    struct suspect_shm *suspect = &s->shm->suspects[child->index];
    uint64_t step = WORD(s, ROLE_STAGE, child->index, step) + 1;
    /* relaxed, then release: pairs with the acquire in arena_suspect(): the step before the life. Another supervisor that
     * finds the same death stores the same. */
    fault_point(FAULT_SUPERVISOR_SUSPECT);
    atomic_store_explicit(&suspect->step, step, memory_order_relaxed);
    atomic_store_explicit(&suspect->life, child->epoch, memory_order_release);
    fault_point(FAULT_SUPERVISOR_SUSPECT);
    bell_ring_always(&(struct bell_pull){.fd = s->bells[process_number(ROLE_SCHED, 0)]});
    s->is_standby_outdated = true; /* its successor waits for the scheduler: see supervisor_is_suspected() */
}

void supervisor_on_death(struct supervisor *s, struct child *child)
{
    siginfo_t info = {0};
    fault_point(FAULT_SUPERVISOR_DEATH);
    if (waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED) != 0)
        ask_pidfd(child->pidfd, &info);
    close(child->pidfd);
    child->pidfd = -1;
    if (child->birth_socket >= 0)
        supervisor_close_birth(s, child);
    char end[128];
    describe_end(&info, end, sizeof(end));
    if (child->role == ROLE_FRONT)
        keeper_turn(&s->keeper); /* what it gave last */
    bool is_soon = child->born_ns < s->takeover_ns && clock_ns() - s->takeover_ns < TOGETHER_NS;
    /* however late: connections that it had not given to this supervisor are lost */
    bool is_lost = child->role == ROLE_FRONT && !s->keeper.is_whole;
    /* it was ended, by this supervisor or the one before, and nobody else has died */
    bool is_ours =
        (child->is_replaced && (child->role != ROLE_FRONT || s->is_keeping)) || (child->hung != WATCH_FINE && !is_lost);
    bool is_together = (is_soon || is_lost || child->died_with_supervisor) && !child->is_unborn && !is_ours;
    child->is_unborn = child->died_with_supervisor = false;
    bool is_known = info.si_code != 0; /* not always, of a process that a supervisor before this one has started */
    bool is_orderly = s->phase == PHASE_STOPPING && (!is_known || (info.si_code == CLD_EXITED && info.si_status == 0));
    bool was_killed_by_us = s->phase == PHASE_STOPPING && info.si_code == CLD_KILLED && info.si_status == SIGKILL;
    if (is_orderly || was_killed_by_us) {
        log_debug("%s %u (process %d) %s", role_name(child->role), child->index, (int)child->pid, end);
        return;
    }
    if (is_together && s->phase != PHASE_STOPPING) {
        log_error("%s %u (process %d) %s together with a supervisor; ending the engine", role_name(child->role),
                  child->index, (int)child->pid, end);
        supervisor_end_now(s);
        return;
    }
    if (child->is_replaced && s->phase != PHASE_STOPPING) {
        log_info("%s %u (process %d) makes room for its successor", role_name(child->role), child->index,
                 (int)child->pid);
        atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: as in supervisor_stop() */
        child->is_replaced = false;
        child->progress = progress_of(s, child);
        child->successor_ns = clock_ns();
        return;
    }
    bool can_go_on = (s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING);
    enum death_kind kind = report_death(s, child, &info, end);
    if (can_go_on && plan_successor(s, child)) {
        raise_suspicion(s, child, kind);
        atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: as in supervisor_stop() */
        return;
    }
    log_error("%s %u (process %d) %s; ending the engine%s", role_name(child->role), child->index, (int)child->pid, end,
              can_go_on ? ": its lives end without progress" : "");
    supervisor_stop(s, 1);
}
