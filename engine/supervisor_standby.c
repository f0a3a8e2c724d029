#include "engine/supervisor_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/log.h"

#define STANDBY_WAIT_NS 50000000ull /* before another standby, when one did not live longer than this */
#define STOP_WAIT_NS    50000000ull /* for front to stop; it takes microseconds */

/* A fork of this process: it has every descriptor and knows every process, as they are now. So there is a new one for every
 * birth, between the start of a program and its birth message. `standby` in the region sup names the one that counts:
 *
 *   start the program | fork the new standby | name it | birth message | end the one before
 *
 * If the supervisor dies before the naming, the standby before knows nothing of the new program, which gets no message and
 * leaves; if behind it, the new standby knows of it. */

uint64_t supervisor_standby_due_ns(const struct supervisor *s)
{
    bool is_wanted = s->is_standby_outdated && (s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING);
    if (!is_wanted)
        return 0;
    return s->standby_pidfd >= 0 ? 1 : s->standby_born_ns + STANDBY_WAIT_NS;
}

static void end_process(int *pidfd)
{
    if (*pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, *pidfd, SIGKILL, NULL, 0);
    waitid(P_PIDFD, (id_t)*pidfd, &(siginfo_t){0}, WEXITED);
    close(*pidfd);
    *pidfd = -1;
}

void supervisor_end_former_standby(struct supervisor *s)
{
    end_process(&s->former_standby_pidfd);
}

void supervisor_end_standby(struct supervisor *s)
{
    end_process(&s->former_standby_pidfd);
    end_process(&s->standby_pidfd);
}

/* Somebody here ends it, because it hangs or makes room. */
static bool is_ended_by_us(const struct child *child)
{
    return child->is_replaced || child->hung != WATCH_FINE;
}

void supervisor_take_over(struct supervisor *s)
{
    const struct process_shm *front = s->processes[process_number(ROLE_FRONT, 0)];
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        /* was meant for the one before, which had its own */
    }
    log_open("evenflow-supervisor", (enum log_level)s->plan->log_level);
    log_warn("the supervisor is gone; process %d takes over", (int)getpid());
    s->takeover_ns = clock_ns();
    for (uint32_t i = 1; i < s->process_count; i++) { /* however long it takes until one gets round to it */
        struct pollfd poll_fd = {.fd = s->children[i].pidfd, .events = POLLIN};
        s->children[i].died_with_supervisor = poll(&poll_fd, 1, 0) == 1;
        if (is_ended_by_us(&s->children[i]) && s->children[i].pidfd >= 0) /* or was about to be */
            syscall(SYS_pidfd_send_signal, s->children[i].pidfd, SIGKILL, NULL, 0);
    }
    /* relaxed, all three: shown to people, or written by supervisors alone */
    uint32_t takeovers = atomic_load_explicit(&s->shm->processes[0].restarts, memory_order_relaxed) + 1;
    atomic_store_explicit(&s->shm->processes[0].pid, (uint32_t)getpid(), memory_order_relaxed);
    atomic_store_explicit(&s->shm->processes[0].restarts, takeovers, memory_order_relaxed);
    char lines[64];
    snprintf(lines, sizeof(lines), "MAINPID=%d\nWATCHDOG=1", (int)getpid());
    notify_send(&s->notify, lines);
    enum command command = (enum command)atomic_load_explicit(&s->shm->command, memory_order_relaxed);
    if (command == COMMAND_DRAIN)
        supervisor_drain(s);
    else if (command == COMMAND_STOP)
        supervisor_stop(s, 1);
    /* acquire: pairs with the release in arena_set_state() */
    bool is_front_starting = atomic_load_explicit(&front->state, memory_order_acquire) == PROCESS_STARTING;
    struct child *child = &s->children[process_number(ROLE_FRONT, 0)];
    if (child->pidfd < 0) {
        /* its successor, which has not begun, gets what is kept */
    } else if (is_front_starting && s->is_keeping) {
        child->is_replaced = true; /* it may have been given some of its connections: another one gets all */
        syscall(SYS_pidfd_send_signal, child->pidfd, SIGKILL, NULL, 0);
    } else if (is_front_starting) {
        log_error("front was about to start again: its connections went with the supervisor; ending the engine");
        supervisor_end_now(s);
    } else if (!is_ended_by_us(child)) {
        keeper_forget(&s->keeper); /* it hands over all of them again */
    }
    bool knows_of_upgrade = supervisor_is_preparing(s) || s->upgrade.phase == UPGRADE_REPLACING;
    if (command == COMMAND_FINISH && !knows_of_upgrade)
        supervisor_command(s, COMMAND_RUN);
    if (s->upgrade.phase == UPGRADE_LAST)
        supervisor_end_upgrade(
            s, "the new supervisor has not come up, and a standby of the old one has taken over; every other "
               "process is of the new programs");
    fault_point(FAULT_SUPERVISOR_TAKEOVER);
    s->shm->head.epoch++; /* front hands over every connection again */
    keeper_take_over(&s->keeper, s->shm->head.epoch);
    bell_ring_always(&(struct bell_pull){.fd = s->bells[process_number(ROLE_FRONT, 0)]});
}

static void forget_process(int *pidfd)
{
    if (*pidfd >= 0)
        close(*pidfd);
    *pidfd = -1;
}

/* In the standby. Returns when it has become the supervisor. */
static void stand_by(struct supervisor *s, int supervisor_pidfd)
{
    log_open("evenflow-standby", (enum log_level)s->plan->log_level);
    prctl(PR_SET_NAME, "evenflow-standby");
    for (uint32_t i = 1; i < s->process_count; i++) {
        s->children[i].is_unborn = s->children[i].birth_socket >= 0;
        if (s->children[i].is_unborn)
            supervisor_close_birth(s, &s->children[i]);
    }
    if (!s->is_keeping)
        keeper_forget(&s->keeper);
    forget_process(&s->standby_pidfd);
    forget_process(&s->former_standby_pidfd);
    struct pollfd poll_fd = {.fd = supervisor_pidfd, .events = POLLIN};
    while (poll(&poll_fd, 1, -1) != 1)
        check(errno == EINTR);
    close(supervisor_pidfd);
    /* acquire: pairs with the release in name_standby() */
    if (atomic_load_explicit(&s->shm->standby, memory_order_acquire) != (uint32_t)getpid())
        _exit(0);
    supervisor_take_over(s);
}

/* Client connections are front's and ours; while front is ended or begins, a standby has to have them, too. */
static bool is_front_away(const struct supervisor *s)
{
    const uint32_t number = process_number(ROLE_FRONT, 0);
    const struct child *front = &s->children[number];
    /* acquire: pairs with the release in arena_set_state() */
    return front->pidfd < 0 || is_ended_by_us(front) || front->birth_socket >= 0 ||
           atomic_load_explicit(&s->processes[number]->state, memory_order_acquire) == PROCESS_STARTING;
}

void supervisor_front_is_back(struct supervisor *s)
{
    if (s->is_keeping && !is_front_away(s))
        s->is_standby_outdated = true;
}

/* It counts from now on; the one before is about to be ended. */
static void name_standby(struct supervisor *s, pid_t standby, int pidfd)
{
    /* release: pairs with the acquire in stand_by() and supervisor_attach() */
    fault_point(FAULT_SUPERVISOR_STANDBY);
    atomic_store_explicit(&s->shm->standby, standby > 0 ? (uint32_t)standby : 0, memory_order_release);
    fault_point(FAULT_SUPERVISOR_STANDBY);
    supervisor_end_former_standby(s);
    s->former_standby_pidfd = s->standby_pidfd;
    s->standby = standby;
    s->standby_pidfd = pidfd;
    s->standby_born_ns = clock_ns();
    s->is_standby_outdated = false;
}

static void hang_up(struct supervisor *s)
{
    if (s->outsider >= 0)
        close(s->outsider);
    s->outsider = -1;
}

int supervisor_adopt_standby(struct supervisor *s, int connection, struct err *err)
{
    pid_t pid = 0;
    if (s->phase != PHASE_SERVING && s->phase != PHASE_DRAINING)
        return err_set(err, -EAGAIN, "the engine starts or ends; try again");
    if (s->outsider >= 0)
        return err_set(err, -EEXIST, "there is one that somebody else has started");
    int pidfd = supervisor_peer(connection, &pid);
    if (pidfd < 0)
        return err_set(err, -errno, "process %d cannot be watched: %s", (int)pid, strerror(errno));
    fcntl(connection, F_SETFL, O_NONBLOCK);
    s->outsider = connection;
    s->is_keeping = is_front_away(s);
    if (!supervisor_tell_outsider(s)) {
        s->outsider = -1;
        close(pidfd);
        return err_set(err, -EPIPE, "process %d cannot be told what it has to know", (int)pid);
    }
    log_info("process %d, which somebody else has started, is the standby", (int)pid);
    name_standby(s, pid, pidfd);
    return 0;
}

void supervisor_renew_standby(struct supervisor *s)
{
    s->is_keeping = is_front_away(s);
    s->is_standby_outdated = false;
    if (s->outsider >= 0 && supervisor_tell_outsider(s))
        return;
    hang_up(s);
    int own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    pid_t standby = own >= 0 ? fork() : -1;
    if (standby == 0) {
        stand_by(s, own);
        s->is_standby_outdated = true;
        return;
    }
    int pidfd = standby > 0 ? (int)syscall(SYS_pidfd_open, standby, 0) : -1;
    if (pidfd < 0)
        log_error("cannot start a standby: %s; the engine would not survive its supervisor", strerror(errno));
    name_standby(s, standby, pidfd);
    if (own >= 0)
        close(own);
}

/* Front gives us no more connections from now on, and we have taken all that it gave: a standby that is forked now
 * has them, too. A process that does not stop at once is ended as it is. */
static void silence(struct supervisor *s, const struct child *front)
{
    struct watch_look look = {0};
    syscall(SYS_pidfd_send_signal, front->pidfd, SIGSTOP, NULL, 0);
    for (uint64_t end_ns = clock_ns() + STOP_WAIT_NS; clock_ns() < end_ns;)
        if (!watch_read((int)front->pid, &look) || strchr("TZX", look.state) != NULL)
            break;
    keeper_turn(&s->keeper);
}

void supervisor_end_child(struct supervisor *s, const struct child *child)
{
    if (child->role == ROLE_FRONT)
        silence(s, child);
    supervisor_renew_standby(s);
    syscall(SYS_pidfd_send_signal, child->pidfd, SIGKILL, NULL, 0);
}

void supervisor_look_at_standby(const struct supervisor *s)
{
    if (s->standby_pidfd >= 0 && !supervisor_is_able(s->standby))
        syscall(SYS_pidfd_send_signal, s->standby_pidfd, SIGKILL, NULL, 0);
}

/* The standby died: there is another one, though not without a pause if they do not live. */
void supervisor_on_standby_death(struct supervisor *s)
{
    supervisor_end_standby(s);
    hang_up(s);
    s->is_standby_outdated = true;
}
