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
#include "ipc/shm.h"

#define BIRTH_FD 3 /* where a child finds its birth socket */

static void add_region(const struct supervisor *s, struct birth *birth, int *fds, enum birth_kind kind, uint32_t id)
{
    if (s->layout.region_bytes[id] == 0)
        return;
    birth_add(birth, fds, kind, id, kind == BIRTH_REGION_WRITE ? s->regions[id].fd : s->regions[id].read_only);
}

/* A stage's KV and weights. In a device's memory, its predecessor's word says whether the weights are there. */
static void add_memory(const struct supervisor *s, struct birth *birth, int *fds, uint32_t stage)
{
    const uint32_t kv = REGION_KV + stage, weights = REGION_WEIGHTS + stage;
    if (s->plan->slices[stage].device != DEVICE_CPU) {
        birth->weights_loaded = WORD(s, ROLE_STAGE, stage, weights_on_device) != 0;
        birth_add(birth, fds, BIRTH_DEVICE, kv, s->regions[kv].fd);
        birth_add(birth, fds, BIRTH_DEVICE, weights, s->regions[weights].fd);
        return;
    }
    add_region(s, birth, fds, BIRTH_REGION_WRITE, kv);
    birth->weights_loaded = shm_is_sealed(s->regions[weights].fd);
    add_region(s, birth, fds, birth->weights_loaded ? BIRTH_REGION_READ : BIRTH_REGION_WRITE, weights);
}

/* Who sees what: the table in layout.h, as descriptors. */
static void fill_birth(const struct supervisor *s, const struct child *child, struct birth *birth, int *fds)
{
    const uint32_t stages = s->plan->stage_count;
    *birth = (struct birth){.magic = BIRTH_MAGIC, .role = child->role, .index = child->index, .epoch = child->epoch};
    add_region(s, birth, fds, BIRTH_REGION_READ, REGION_PLAN);
    add_region(s, birth, fds, BIRTH_REGION_READ, REGION_SUP);
    birth_add(birth, fds, BIRTH_BELL, process_number(ROLE_SUPERVISOR, 0), s->bells[0]);
    birth_add(birth, fds, BIRTH_BELL, process_number(child->role, child->index),
              s->bells[process_number(child->role, child->index)]);
    switch (child->role) {
    case ROLE_FRONT:
        add_region(s, birth, fds, BIRTH_REGION_READ, REGION_VOCAB);
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_FRONT);
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_CONNS);
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_IO);
        add_region(s, birth, fds, BIRTH_REGION_READ, REGION_SCHED);
        for (uint32_t i = 0; i < stages; i++) /* counters */
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_STAGE + i);
        birth_add(birth, fds, BIRTH_BELL, process_number(ROLE_SCHED, 0), s->bells[process_number(ROLE_SCHED, 0)]);
        birth_add(birth, fds, BIRTH_LISTENER, 0, s->listener);
        if (s->listener_tcp >= 0)
            birth_add(birth, fds, BIRTH_LISTENER, 1, s->listener_tcp);
        if (s->keys >= 0)
            birth_add(birth, fds, BIRTH_KEYS, 0, s->keys);
        birth_add(birth, fds, BIRTH_KEEP, 0, s->front_keep);
        if (s->ledger >= 0)
            birth_add(birth, fds, BIRTH_LEDGER, 0, s->ledger);
        if (s->regions[REGION_IO_PAST].fd > 0)
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_IO_PAST);
        break;
    case ROLE_SCHED:
        add_region(s, birth, fds, BIRTH_REGION_READ, REGION_FRONT);
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_SCHED);
        for (uint32_t i = 0; i < stages; i++) /* times; of the last one also results */
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_STAGE + i);
        birth_add(birth, fds, BIRTH_BELL, process_number(ROLE_FRONT, 0), s->bells[process_number(ROLE_FRONT, 0)]);
        birth_add(birth, fds, BIRTH_BELL, process_number(ROLE_STAGE, 0), s->bells[process_number(ROLE_STAGE, 0)]);
        if (s->record >= 0)
            birth_add(birth, fds, BIRTH_RECORD, 0, s->record);
        break;
    case ROLE_STAGE: {
        uint32_t i = child->index;
        bool is_last = i + 1 == stages;
        add_region(s, birth, fds, BIRTH_REGION_READ, REGION_SCHED);
        if (is_last) { /* prompts, for penalties and grammars; the bytes of tokens, for grammars */
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_FRONT);
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_VOCAB);
        }
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_STAGE + i);
        if (i > 0)
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_STAGE + i - 1);
        if (!is_last)
            add_region(s, birth, fds, BIRTH_REGION_READ, REGION_STAGE + i + 1);
        add_memory(s, birth, fds, i);
        uint32_t next = is_last ? process_number(ROLE_SCHED, 0) : process_number(ROLE_STAGE, i + 1);
        birth_add(birth, fds, BIRTH_BELL, next, s->bells[next]);
        birth_add(birth, fds, BIRTH_MODEL, 0, s->model);
        break;
    }
    default:
        check(child->role != ROLE_SUPERVISOR);
    }
}

/* In the child, between fork and exec: nothing but system calls. */
_Noreturn static void exec_child(const struct supervisor *s, const struct child *child, int birth_socket)
{
    char program[PATH_MAX_BYTES + 64];
    char index[16];
    snprintf(program, sizeof(program), "%s/evenflow-%s", s->plan->program_dir, role_name(child->role));
    snprintf(index, sizeof(index), "%u", child->index);
    if (!lifeline_hold(&s->lifeline))
        _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Terminal signals go to the whole group; what to do about them is the supervisor's to say. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    if (birth_socket == BIRTH_FD)
        fcntl(BIRTH_FD, F_SETFD, 0);
    else
        dup2(birth_socket, BIRTH_FD);
    char *const argv[] = {program, "--birth", "3", "--index", index, NULL};
    execv(program, argv);
    dprintf(STDERR_FILENO, "evenflow-supervisor: cannot start %s: %s; is the installation complete?\n", program,
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

int supervisor_start_child(struct supervisor *s, struct child *child, struct err *err)
{
    int sockets[2];
    if (begin_life(s, child, err) != 0)
        return -EIO;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "%s: cannot create its birth socket: %s", role_name(child->role), strerror(errno));
    child->birth_socket = sockets[0];
    fault_point(FAULT_SUPERVISOR_FORK);
    child->pid = fork();
    if (child->pid == 0)
        exec_child(s, child, sockets[1]);
    fault_point(FAULT_SUPERVISOR_FORK);
    close(sockets[1]);
    if (child->pid < 0)
        return err_set(err, -errno, "%s: cannot fork: %s", role_name(child->role), strerror(errno));
    child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
    if (child->pidfd < 0) {
        int error = errno;
        kill(child->pid, SIGKILL);
        waitpid(child->pid, NULL, 0);
        return err_set(err, -error, "%s: cannot watch process %d: %s; Linux 5.3 or later is needed",
                       role_name(child->role), (int)child->pid, strerror(error));
    }
    fcntl(child->pidfd, F_SETFD, FD_CLOEXEC);
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
        struct birth birth;
        int fds[BIRTH_ITEMS_MAX];
        if (child->birth_socket < 0)
            continue;
        fill_birth(s, child, &birth, fds);
        fault_point(FAULT_SUPERVISOR_BIRTH);
        struct err later;
        if (birth_send(child->birth_socket, &birth, fds, ret == 0 ? err : &later) != 0)
            ret = -EPIPE;
        fault_point(FAULT_SUPERVISOR_BIRTH);
        supervisor_close_birth(s, child);
    }
    return ret;
}
