#include "engine/supervisor_inside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/log.h"
#include "ipc/shm.h"

#define STOP_GRACE_NS 5000000000ull /* after COMMAND_STOP a process has so long to leave by itself */

int supervisor_create_signals(struct supervisor *s, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* as nohup(1) has it */
        sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->signals >= 0 ? 0 : err_set(err, -errno, "signals: %s", strerror(errno));
}

void supervisor_kill_all(struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        if (s->children[i].pidfd >= 0)
            syscall(SYS_pidfd_send_signal, s->children[i].pidfd, SIGKILL, NULL, 0);
}

static uint32_t running_count(const struct supervisor *s)
{
    uint32_t running = 0;
    for (uint32_t i = 1; i < s->process_count; i++)
        running += s->children[i].pidfd >= 0;
    return running;
}

void supervisor_command(struct supervisor *s, enum command command)
{
    /* release: pairs with the acquire in arena_command() */
    atomic_store_explicit(&s->shm->command, (uint32_t)command, memory_order_release);
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct bell_pull pull = {.fd = s->bells[i]};
        bell_ring_always(&pull);
    }
}

void supervisor_stop(struct supervisor *s, int exit_status)
{
    if (exit_status != 0)
        s->exit_status = exit_status;
    if (s->phase == PHASE_STOPPING)
        return;
    s->phase = PHASE_STOPPING;
    s->look_ns = 0;
    s->deadline_ns = clock_ns() + STOP_GRACE_NS;
    notify_send(&s->notify, "STOPPING=1");
    atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: shown to clients, decides nothing */
    supervisor_command(s, COMMAND_STOP);
    if (s->upgrade.phase != UPGRADE_NOT)
        supervisor_end_upgrade(s, "the engine ends");
    supervisor_end_spares(s);
}

void supervisor_end_now(struct supervisor *s)
{
    supervisor_kill_all(s);
    supervisor_stop(s, 1);
}

void supervisor_drain(struct supervisor *s)
{
    log_info("draining: no new requests, the others finish; a second signal stops at once");
    s->phase = PHASE_DRAINING;
    s->deadline_ns = s->plan->drain_timeout_ms ? clock_ns() + s->plan->drain_timeout_ms * 1000000ull : 0;
    notify_send(&s->notify, "STOPPING=1");
    atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: as in supervisor_stop() */
    supervisor_command(s, COMMAND_DRAIN);
    if (s->upgrade.phase != UPGRADE_NOT)
        supervisor_end_upgrade(s, "the engine is about to end");
}

static void on_signal(struct supervisor *s)
{
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        switch (s->phase) {
        case PHASE_STARTING: /* nothing was accepted: nothing to drain */
            log_info("stopping before the start was complete");
            supervisor_stop(s, 0);
            supervisor_kill_all(s);
            break;
        case PHASE_SERVING:
            supervisor_drain(s);
            break;
        case PHASE_DRAINING:
        case PHASE_STOPPING:
            log_warn("stopping at once: requests in progress are cut off");
            supervisor_stop(s, s->phase == PHASE_DRAINING ? 1 : 0);
            supervisor_kill_all(s);
            break;
        }
    }
}

static bool all_ready(const struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        /* acquire: pairs with the release in arena_set_state(); what stands there may be a dead process's */
        if (s->children[i].pidfd < 0 ||
            atomic_load_explicit(&s->processes[i]->state, memory_order_acquire) != PROCESS_READY)
            return false;
    return true;
}

static void show_state(struct supervisor *s)
{
    if (s->phase == PHASE_SERVING && all_ready(s))
        atomic_store_explicit(&s->shm->ready, 1, memory_order_relaxed); /* relaxed: as in supervisor_stop() */
    if (s->keeper.is_whole)
        atomic_store_explicit(&s->shm->kept, s->shm->head.epoch, memory_order_relaxed); /* relaxed: likewise */
}

/* A standby first: requests are accepted from has_started on. One that takes over in here goes on here, so there is another one
 * as soon as all is said. */
static void begin_to_serve(struct supervisor *s)
{
    s->phase = PHASE_SERVING;
    s->look_ns = clock_ns() + WATCH_TICK_NS;
    supervisor_renew_standby(s);
    s->is_standby_outdated = true;
    atomic_store_explicit(&s->shm->has_started, 1, memory_order_relaxed); /* relaxed: as in supervisor_stop() */
    show_state(s);
    if (s->phase != PHASE_SERVING)
        return; /* it took over to drain or to stop */
    log_info("ready: %u stages on %s", s->plan->stage_count, s->plan->socket_path);
    notify_send(&s->notify, "READY=1");
    if (s->ready_fd < 0)
        return;
    if (write(s->ready_fd, "\n", 1) != 1 && errno != EPIPE)
        log_warn("ready descriptor %d: cannot write to it: %s", s->ready_fd, strerror(errno));
    close(s->ready_fd);
    s->ready_fd = -1;
}

static void on_bell(struct supervisor *s)
{
    uint64_t rings;
    ssize_t got = read(s->bells[0], &rings, sizeof(rings));
    check(got == (ssize_t)sizeof(rings));
    supervisor_front_is_back(s);
    if (s->phase == PHASE_STARTING && all_ready(s))
        begin_to_serve(s);
    const struct process_shm *front = s->processes[process_number(ROLE_FRONT, 0)];
    /* acquire: pairs with the release in arena_set_state() */
    if (s->phase == PHASE_DRAINING && atomic_load_explicit(&front->state, memory_order_acquire) == PROCESS_DRAINED) {
        log_info("drained");
        supervisor_stop(s, 0);
    }
}

static void on_deadline(struct supervisor *s)
{
    s->deadline_ns = 0;
    if (s->phase == PHASE_DRAINING) {
        log_warn("the drain timeout has passed: requests in progress are cut off");
        supervisor_stop(s, 1);
        return;
    }
    log_warn("%u processes did not leave by themselves; killing them", running_count(s));
    s->exit_status = 1;
    supervisor_kill_all(s);
}

/* Weights and KV on devices have gone with it: there is nothing to go on from. */
static void on_holder_death(struct supervisor *s)
{
    log_error(
        "the process that held the memory of devices is gone, and weights and KV cache with it; ending the engine");
    close(s->holder);
    s->holder = -1;
    supervisor_stop(s, 1);
    supervisor_kill_all(s);
}

static int milliseconds_to(uint64_t deadline_ns)
{
    uint64_t now = clock_ns();
    return now >= deadline_ns ? 0 : (int)min_u64((deadline_ns - now) / 1000000 + 1, INT32_MAX);
}

static void earliest(uint64_t *next_ns, uint64_t moment_ns)
{
    if (moment_ns != 0 && (*next_ns == 0 || moment_ns < *next_ns))
        *next_ns = moment_ns;
}

/* Until something has to be done unasked; -1: nothing. */
static int milliseconds_left(const struct supervisor *s)
{
    uint64_t next_ns = s->deadline_ns;
    earliest(&next_ns, s->look_ns);
    earliest(&next_ns, s->notify.alive_ns);
    earliest(&next_ns, supervisor_standby_due_ns(s));
    earliest(&next_ns, s->upgrade.deadline_ns);
    for (uint32_t i = 1; i < s->process_count; i++) {
        if (!supervisor_is_suspected(s, &s->children[i])) /* else the scheduler rings, or dies */
            earliest(&next_ns, s->children[i].successor_ns);
        earliest(&next_ns, supervisor_spare_due_ns(s, &s->children[i]));
    }
    return next_ns == 0 ? -1 : milliseconds_to(next_ns);
}

static int load_plan(struct supervisor *s, const struct supervisor_start *start, struct err *err)
{
    s->plan = shm_map(start->plan, align_up_u64(sizeof(struct plan), 4096), SHM_READ, "plan", err);
    if (s->plan == NULL)
        return -EPROTO;
    int ret = plan_validate(s->plan, err);
    if (ret != 0)
        return ret;
    log_open("evenflow-supervisor", (enum log_level)s->plan->log_level);
    layout_compute(&s->layout, s->plan);
    s->process_count = process_number(ROLE_STAGE, 0) + s->plan->stage_count;
    s->regions[REGION_PLAN] = (struct region){start->plan, shm_read_only(start->plan, err)};
    s->regions[REGION_VOCAB] = (struct region){start->vocab, shm_read_only(start->vocab, err)};
    if (s->regions[REGION_PLAN].read_only < 0 || s->regions[REGION_VOCAB].read_only < 0)
        return -EPROTO;
    return 0;
}

void supervisor_raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit); /* children inherit it; a refusal leaves the old limit, which io reports */
    }
}

void supervisor_set_close_on_exec(bool is_closed)
{
    DIR *folder = opendir("/proc/self/fd");
    check(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        int fd = (int)strtol(entry->d_name, NULL, 10); /* 0 for . and .. */
        if (fd != dirfd(folder) && (fd > STDERR_FILENO || !is_closed))
            fcntl(fd, F_SETFD, is_closed ? FD_CLOEXEC : 0);
    }
    closedir(folder);
}

int supervisor_init(struct supervisor **supervisor, const struct supervisor_start *start, struct err *err)
{
    struct supervisor *s = base_alloc(sizeof(*s));
    *supervisor = s;
    s->listener = -1;
    s->model = start->model;
    s->record = start->record;
    s->listener_tcp = start->listen;
    s->keys = start->keys;
    s->ledger = start->ledger;
    s->holder = -1;
    s->ready_fd = start->ready_fd;
    s->standby_pidfd = s->former_standby_pidfd = s->outsider = -1;
    s->control = s->upgrade.connection = -1;
    supervisor_raise_descriptor_limit();
    supervisor_set_close_on_exec(true); /* what somebody left open for this process is not for its children */
    int ret = load_plan(s, start, err);
    ret = ret ? ret : lifeline_open(&s->lifeline, err);
    ret = ret ? ret : notify_open(&s->notify, err);
    ret = ret ? ret : supervisor_open_programs(s->programs, s->plan->program_dir, err);
    ret = ret ? ret : supervisor_listen(s, err);
    ret = ret ? ret : supervisor_take_orders(s, err);
    ret = ret ? ret : supervisor_create_regions(s, start->devices, err);
    ret = ret ? ret : supervisor_create_bells(s, err);
    ret = ret ? ret : supervisor_create_signals(s, err);
    if (ret != 0) {
        if (s->listener >= 0)
            supervisor_remove_socket(s);
        return ret;
    }
    fault_begin(process_number(ROLE_SUPERVISOR, 0));
    keeper_open(&s->keeper, s->plan->connections_max);
    s->shm->process_count = s->process_count;
    for (uint32_t i = 0; i < s->process_count; i++) {
        enum role role = i < ROLE_STAGE ? (enum role)i : ROLE_STAGE;
        uint32_t index = i < ROLE_STAGE ? 0 : i - ROLE_STAGE;
        s->children[i] =
            (struct child){.role = role, .index = index, .pidfd = -1, .birth_socket = -1, .spare = {.pidfd = -1}};
        s->shm->processes[i].role = role;
        s->shm->processes[i].index = index;
    }
    atomic_store_explicit(&s->shm->processes[0].pid, (uint32_t)getpid(), memory_order_relaxed); /* relaxed: shown */
    for (uint32_t i = 1; i < s->process_count && ret == 0; i++)
        ret = supervisor_start_child(s, &s->children[i], err);
    ret = ret ? ret : supervisor_deliver_births(s, err);
    if (ret != 0) {
        supervisor_kill_all(s);
        supervisor_remove_socket(s);
    }
    return ret;
}

/* What one turn of the loop sleeps on: by process number, but for the last two. */
struct polls {
    struct pollfd children[PROCESSES_MAX]; /* [0]: the supervisor's own bell */
    struct pollfd spares[PROCESSES_MAX];   /* [0]: signals */
    struct pollfd words[PROCESSES_MAX];    /* of spares that are not prepared yet; [0] is unused */
    struct pollfd keeper, standby, holder, control;
};

static void fill_polls(const struct supervisor *s, struct polls *polls)
{
    for (uint32_t i = 0; i < PROCESSES_MAX; i++) { /* -1 is passed over */
        const struct child *child = &s->children[i];
        bool is_child = i > 0 && i < s->process_count, has_spare = is_child && child->spare.pidfd >= 0;
        polls->children[i] = (struct pollfd){.fd = is_child ? child->pidfd : -1, .events = POLLIN};
        polls->spares[i] = (struct pollfd){.fd = has_spare ? child->spare.pidfd : -1, .events = POLLIN};
        polls->words[i] = (struct pollfd){.fd = has_spare && !child->spare.is_heard ? child->spare.birth_socket : -1,
                                          .events = POLLIN};
    }
    polls->children[0].fd = s->bells[0];
    /* who would end it has to wait the moment that it takes until every process is of the same programs */
    polls->spares[0].fd = s->upgrade.phase == UPGRADE_REPLACING ? -1 : s->signals;
    polls->keeper = keeper_poll(&s->keeper);
    polls->standby = (struct pollfd){.fd = s->standby_pidfd, .events = POLLIN};
    polls->holder = (struct pollfd){.fd = s->holder, .events = POLLIN};
    bool is_asked = s->upgrade.phase == UPGRADE_ASKED, takes_orders = s->upgrade.phase == UPGRADE_NOT;
    polls->control = (struct pollfd){.fd = is_asked       ? s->upgrade.connection
                                           : takes_orders ? s->control
                                                          : -1,
                                     .events = POLLIN};
}

int supervisor_run(struct supervisor *s)
{
    while (running_count(s) > 0 || (s->phase != PHASE_STOPPING && milliseconds_left(s) >= 0)) {
        struct polls polls;
        fill_polls(s, &polls);
        if (poll((struct pollfd *)&polls, sizeof(polls) / sizeof(struct pollfd), milliseconds_left(s)) < 0) {
            check(errno == EINTR);
            continue;
        }
        if (s->deadline_ns != 0 && milliseconds_to(s->deadline_ns) == 0)
            on_deadline(s);
        if (polls.spares[0].revents)
            on_signal(s);
        for (uint32_t i = 1; i < s->process_count; i++) {
            if (polls.spares[i].revents) /* before its child: it is no help to it */
                supervisor_on_spare_death(s, &s->children[i]);
            else if (polls.words[i].revents)
                supervisor_hear_spare(s, &s->children[i]);
            if (polls.children[i].revents)
                supervisor_on_death(s, &s->children[i]);
        }
        if (polls.children[0].revents)
            on_bell(s);
        if (polls.standby.revents)
            supervisor_on_standby_death(s);
        if (polls.holder.revents)
            on_holder_death(s);
        if (polls.control.revents && s->upgrade.phase == UPGRADE_ASKED)
            supervisor_on_order(s);
        else if (polls.control.revents && s->upgrade.phase == UPGRADE_NOT)
            supervisor_on_connection(s);
        notify_alive(&s->notify);
        keeper_turn(&s->keeper);
        show_state(s);
        fault_point(FAULT_SUPERVISOR_KEEP);
        supervisor_look_who_hangs(s);
        supervisor_begin_successors(s);
        supervisor_begin_spares(s);
        supervisor_turn_upgrade(s);
        uint64_t due_ns = supervisor_standby_due_ns(s);
        if (due_ns != 0 && due_ns <= clock_ns())
            supervisor_renew_standby(s);
        struct err err;
        if (supervisor_deliver_births(s, &err) != 0)
            log_warn("%s", err.text); /* it has died already, which is the next thing that is noticed */
        supervisor_end_former_standby(s);
    }
    supervisor_end_standby(s);
    supervisor_remove_socket(s);
    log_info("ended with status %d", s->exit_status);
    return s->exit_status;
}
