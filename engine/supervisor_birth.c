#include "engine/supervisor_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/log.h"
#include "ipc/shm.h"

#define BIRTH_FD 3 /* where a child finds its birth socket */

/* A birth that is being written. */
struct delivery {
    const struct supervisor *s;
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
    bool is_new;      /* of the programs that an upgrade brings */
    bool is_outsider; /* somebody else has started it */
};

static const struct region *region_for(const struct delivery *d, uint32_t id)
{
    if (d->is_new && id == REGION_PLAN)
        return &d->s->upgrade.plan;
    if (d->is_new && id >= REGION_WEIGHTS && d->s->upgrade.computes_otherwise)
        return &d->s->upgrade.weights[id - REGION_WEIGHTS];
    return &d->s->regions[id];
}

static void add(struct delivery *d, enum birth_kind kind, uint32_t number, int fd)
{
    birth_add(&d->birth, d->fds, kind, number, fd);
}

static void add_region(struct delivery *d, enum birth_kind kind, uint32_t id)
{
    if (d->s->layout.region_bytes[id] == 0)
        return;
    const struct region *region = region_for(d, id);
    add(d, kind, id, kind == BIRTH_REGION_WRITE ? region->fd : region->read_only);
}

static void add_bell(struct delivery *d, enum role role, uint32_t index)
{
    uint32_t number = process_number(role, index);
    add(d, BIRTH_BELL, number, d->s->bells[number]);
}

/* A stage's edges in devices' memory. What NCCL carries comes into the reader's own, and both ends call each other. */
static void add_edges(struct delivery *d, uint32_t stage)
{
    const struct supervisor *s = d->s;
    const uint32_t in = stage > 0 ? s->plan->slices[stage - 1].edge : EDGE_HOST;
    if (in == EDGE_DEVICE)
        add(d, BIRTH_DEVICE, REGION_EDGE + stage - 1, s->regions[REGION_EDGE + stage - 1].fd);
    if (in == EDGE_NCCL)
        add_bell(d, ROLE_STAGE, stage - 1);
    if (s->plan->slices[stage].edge != EDGE_HOST)
        add(d, BIRTH_DEVICE, REGION_EDGE + stage, s->regions[REGION_EDGE + stage].fd);
}

/* A stage's KV and weights. In a device's memory, its predecessor's word says whether the weights are there. */
static void add_memory(struct delivery *d, uint32_t stage)
{
    const struct supervisor *s = d->s;
    const uint32_t kv = REGION_KV + stage, weights = REGION_WEIGHTS + stage;
    if (s->plan->slices[stage].device != DEVICE_CPU) {
        d->birth.weights_loaded = WORD(s, ROLE_STAGE, stage, weights_on_device) != 0;
        add(d, BIRTH_DEVICE, kv, s->regions[kv].fd);
        add(d, BIRTH_DEVICE, weights, s->regions[weights].fd);
        return;
    }
    add_region(d, BIRTH_REGION_WRITE, kv);
    d->birth.weights_loaded = shm_is_sealed(region_for(d, weights)->fd);
    add_region(d, d->birth.weights_loaded ? BIRTH_REGION_READ : BIRTH_REGION_WRITE, weights);
}

/* Who sees what: the table in layout.h, as descriptors. */
static void fill_birth(struct delivery *d, const struct child *child)
{
    const struct supervisor *s = d->s;
    const uint32_t stages = s->plan->stage_count;
    add_region(d, BIRTH_REGION_READ, REGION_PLAN);
    add_region(d, BIRTH_REGION_READ, REGION_SUP);
    if (d->is_outsider)
        add(d, BIRTH_LIFELINE, 0, s->lifeline.reader);
    add_bell(d, ROLE_SUPERVISOR, 0);
    add_bell(d, child->role, child->index);
    switch (child->role) {
    case ROLE_FRONT:
        add_region(d, BIRTH_REGION_READ, REGION_VOCAB);
        add_region(d, BIRTH_REGION_WRITE, REGION_FRONT);
        add_region(d, BIRTH_REGION_WRITE, REGION_CONNS);
        add_region(d, BIRTH_REGION_WRITE, REGION_IO);
        add_region(d, BIRTH_REGION_READ, REGION_SCHED);
        for (uint32_t i = 0; i < stages; i++) /* counters */
            add_region(d, BIRTH_REGION_READ, REGION_STAGE + i);
        add_bell(d, ROLE_SCHED, 0);
        add(d, BIRTH_LISTENER, 0, s->listener);
        if (s->listener_tcp >= 0)
            add(d, BIRTH_LISTENER, 1, s->listener_tcp);
        if (s->keys >= 0)
            add(d, BIRTH_KEYS, 0, s->keys);
        add(d, BIRTH_KEEP, 0, s->front_keep);
        if (s->ledger >= 0)
            add(d, BIRTH_LEDGER, 0, s->ledger);
        if (s->regions[REGION_IO_PAST].fd > 0)
            add_region(d, BIRTH_REGION_READ, REGION_IO_PAST);
        break;
    case ROLE_SCHED:
        add_region(d, BIRTH_REGION_READ, REGION_FRONT);
        add_region(d, BIRTH_REGION_WRITE, REGION_SCHED);
        for (uint32_t i = 0; i < stages; i++) /* times; of the last one also results */
            add_region(d, BIRTH_REGION_READ, REGION_STAGE + i);
        add_bell(d, ROLE_FRONT, 0);
        for (uint32_t i = 0; i < stages; i++)
            if (plan_begins_with_record(s->plan, i))
                add_bell(d, ROLE_STAGE, i);
        if (s->record >= 0)
            add(d, BIRTH_RECORD, 0, s->record);
        break;
    case ROLE_STAGE: {
        uint32_t i = child->index;
        bool is_last = i + 1 == stages;
        add_region(d, BIRTH_REGION_READ, REGION_SCHED);
        if (is_last) { /* prompts, for penalties and grammars; the bytes of tokens, for grammars */
            add_region(d, BIRTH_REGION_READ, REGION_FRONT);
            add_region(d, BIRTH_REGION_READ, REGION_VOCAB);
        }
        add_region(d, BIRTH_REGION_WRITE, REGION_STAGE + i);
        if (i > 0)
            add_region(d, BIRTH_REGION_READ, REGION_STAGE + i - 1);
        if (!is_last)
            add_region(d, BIRTH_REGION_READ, REGION_STAGE + i + 1);
        add_memory(d, i);
        add_edges(d, i);
        add_bell(d, is_last ? ROLE_SCHED : ROLE_STAGE, is_last ? 0 : i + 1);
        add(d, BIRTH_MODEL, 0, s->model);
        break;
    }
    default:
        check(child->role != ROLE_SUPERVISOR);
    }
}

/* One half of a birth. epoch: 0 for a spare. 0, or -errno with err. */
static int deliver(const struct supervisor *s, const struct child *child, enum birth_part part, uint32_t epoch,
                   bool is_new, int socket, struct err *err)
{
    struct delivery d = {
        .s = s,
        .birth = {.magic = BIRTH_MAGIC, .role = child->role, .index = child->index, .epoch = epoch, .part = part},
        .is_new = is_new};
    fill_birth(&d, child);
    return birth_send(socket, &d.birth, d.fds, err);
}

/* In the child, between fork and exec: nothing but system calls. */
_Noreturn static void exec_child(const struct supervisor *s, const struct child *child, int program, int birth_socket)
{
    char name[PATH_MAX_BYTES + 64];
    char index[16];
    snprintf(name, sizeof(name), "%s/evenflow-%s", s->plan->program_dir, role_name(child->role));
    snprintf(index, sizeof(index), "%u", child->index);
    close(s->lifeline.writer);
    if (!lifeline_hold(s->lifeline.reader))
        _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Terminal signals go to the whole group; what to do about them is the supervisor's to say. So does a SIGHUP of the
     * kernel's, when a supervisor dies that was the group's last tie to its session while a process of it is stopped. */
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (birth_socket == BIRTH_FD)
        fcntl(BIRTH_FD, F_SETFD, 0);
    else
        dup2(birth_socket, BIRTH_FD); /* `program` is another one: descriptors of programs are above it */
    char *const argv[] = {name, "--birth", "3", "--index", index, NULL};
    char start[2];
    bool is_script = pread(program, start, sizeof(start), 0) == sizeof(start) && start[0] == '#' && start[1] == '!';
    if (is_script)
        fcntl(program, F_SETFD, 0); /* its interpreter opens it again */
    syscall(SYS_execveat, program, "", argv, environ, AT_EMPTY_PATH);
    dprintf(STDERR_FILENO, "evenflow-supervisor: cannot start %s: %s; is the installation complete?\n", name,
            strerror(errno));
    _exit(127);
}

/* The region that a process writes, and where its process block is. */
static uint32_t region_of(const struct supervisor *s, const struct child *child, size_t *process_block)
{
    *process_block = child->role == ROLE_FRONT   ? s->layout.front_process
                     : child->role == ROLE_SCHED ? s->layout.sched_process
                                                 : s->layout.stage_process;
    return child->role == ROLE_FRONT   ? REGION_FRONT
           : child->role == ROLE_SCHED ? REGION_SCHED
                                       : REGION_STAGE + child->index;
}

/* A new front sees what the kernel wrote for the one before, and has memory of its own: the kernel may still write there. */
static int renew_io(struct supervisor *s, bool is_first, struct err *err)
{
    struct region *io = &s->regions[REGION_IO], *past = &s->regions[REGION_IO_PAST];
    struct io_head_shm head = {0};
    int ret = keeper_begin_life(&s->keeper, &s->front_keep, err);
    if (ret != 0 || is_first)
        return ret;
    if (pread(io->read_only, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return err_set(err, -errno, "shared memory: cannot read region io: %s", strerror(errno));
    /* A front that has not begun has left nothing there, and not taken in all that its forerunner left: that comes again. */
    struct region *given_up = head.is_begun ? past : io;
    if (given_up->fd > 0) {
        close(given_up->fd);
        close(given_up->read_only);
    }
    if (head.is_begun)
        *past = *io;
    return supervisor_create_region(s, REGION_IO, "evenflow-io", err);
}

/* Nobody writes the region now: the one that did is proven dead. The next one is born into a new epoch, and is not ready. */
static int begin_life(struct supervisor *s, struct child *child, struct err *err)
{
    size_t process_block;
    uint32_t region = region_of(s, child, &process_block), starting = PROCESS_STARTING;
    off_t state = (off_t)(process_block + offsetof(struct process_shm, state));
    child->born_ns = clock_ns();
    child->successor_ns = 0;
    child->hung = WATCH_FINE;
    watch_begin(&child->watch);
    child->epoch++;
    if (child->role == ROLE_FRONT && renew_io(s, child->epoch == 1, err) != 0)
        return -EIO;
    if (child->epoch == 1)
        return 0; /* the region is new */
    if (pwrite(s->regions[region].fd, &starting, sizeof(starting), state) != (ssize_t)sizeof(starting))
        return err_set(err, -errno, "shared memory: cannot write region %u: %s", region, strerror(errno));
    return supervisor_write_head(s, region, child->epoch, err);
}

int supervisor_show_all(struct supervisor *s, const struct child *child, int birth_socket, struct err *err)
{
    struct delivery d = {
        .s = s,
        .birth = {.magic = BIRTH_MAGIC, .role = child->role, .index = child->index, .part = BIRTH_TO_SEE},
        .is_outsider = true};
    fill_birth(&d, child);
    return birth_send(birth_socket, &d.birth, d.fds, err);
}

int supervisor_start_program(struct supervisor *s, const struct child *child, uint32_t epoch, struct born *born,
                             struct err *err)
{
    int sockets[2];
    bool is_new = epoch == 0 && supervisor_is_preparing(s);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "%s: cannot create its birth socket: %s", role_name(child->role), strerror(errno));
    fault_point(FAULT_SUPERVISOR_FORK);
    born->pid = fork();
    if (born->pid == 0)
        exec_child(s, child, is_new ? s->upgrade.programs[child->role] : s->programs[child->role], sockets[1]);
    fault_point(FAULT_SUPERVISOR_FORK);
    close(sockets[1]);
    born->birth_socket = sockets[0];
    int ret = born->pid < 0 ? err_set(err, -errno, "%s: cannot fork: %s", role_name(child->role), strerror(errno)) : 0;
    born->pidfd = ret == 0 ? (int)syscall(SYS_pidfd_open, born->pid, 0) : -1;
    if (ret == 0 && born->pidfd < 0) {
        ret = err_set(err, -errno, "%s: cannot watch process %d: %s; Linux 5.3 or later is needed",
                      role_name(child->role), (int)born->pid, strerror(errno));
        kill(born->pid, SIGKILL);
        waitpid(born->pid, NULL, 0);
    }
    if (ret != 0) {
        close(sockets[0]);
        return ret;
    }
    fcntl(born->pidfd, F_SETFD, FD_CLOEXEC);
    if (deliver(s, child, BIRTH_TO_SEE, epoch, is_new, born->birth_socket, err) != 0)
        log_warn("%s", err->text); /* it has died already, which is the next thing that is noticed */
    return 0;
}

int supervisor_start_child(struct supervisor *s, struct child *child, struct err *err)
{
    struct born born;
    if (begin_life(s, child, err) != 0)
        return -EIO;
    if (!supervisor_use_spare(s, child, &born) && supervisor_start_program(s, child, child->epoch, &born, err) != 0)
        return -EIO;
    child->is_new = s->upgrade.phase == UPGRADE_REPLACING;
    child->pid = born.pid;
    child->pidfd = born.pidfd;
    child->birth_socket = born.birth_socket;
    /* relaxed: shown to people, decides nothing */
    atomic_store_explicit(&s->shm->processes[process_number(child->role, child->index)].pid, (uint32_t)child->pid,
                          memory_order_relaxed);
    s->is_standby_outdated = true;
    return 0;
}

void supervisor_close_birth(struct supervisor *s, struct child *child)
{
    close(child->birth_socket);
    child->birth_socket = -1;
    if (child->role == ROLE_FRONT)
        close(s->front_keep);
}

int supervisor_deliver_births(struct supervisor *s, struct err *err)
{
    int ret = 0;
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        if (child->birth_socket < 0)
            continue;
        fault_point(FAULT_SUPERVISOR_BIRTH);
        struct err later;
        if (deliver(s, child, BIRTH_TO_DO, child->epoch, false, child->birth_socket, ret == 0 ? err : &later) != 0)
            ret = -EPIPE;
        fault_point(FAULT_SUPERVISOR_BIRTH);
        supervisor_close_birth(s, child);
    }
    return ret;
}
