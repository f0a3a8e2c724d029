#include "engine/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/keeper.h"
#include "engine/lifeline.h"
#include "engine/watch.h"
#include "ipc/arena.h"
#include "ipc/birth.h"
#include "ipc/clock.h"
#include "ipc/layout.h"
#include "ipc/log.h"
#include "ipc/shm.h"

#define BIRTH_FD        3            /* where a child finds its birth socket */
#define TOGETHER_NS     100000000ull /* a process that dies so soon after a supervisor died together with it */
#define STANDBY_WAIT_NS 50000000ull  /* before another standby, when one did not live longer than this */
#define LISTEN_BACKLOG  1024
#define STOP_GRACE_NS   5000000000ull /* after COMMAND_STOP a process has so long to leave by itself */

/* A life is fruitless when it ended without progress, before it had lasted. A successor starts at once after the first of
 * them in a row, then later and later; at the end there is no point in another one. */
#define LASTING_NS        1000000000ull
#define BACK_OFF_NS       50000000ull
#define BACK_OFF_MAX_NS   5000000000ull
#define FRUITLESS_SUSPECT 3u /* from so many on, what it was at is suspect, whoever ended it */
#define FRUITLESS_MAX     8u

enum phase { PHASE_STARTING, PHASE_SERVING, PHASE_DRAINING, PHASE_STOPPING };

struct region {
    int fd;        /* writable */
    int read_only; /* a second descriptor that is not */
};

struct child {
    enum role role;
    uint32_t index;
    pid_t pid;
    int pidfd;             /* -1: not running */
    uint32_t epoch;        /* number of its life, from 1 */
    uint64_t born_ns;      /* this life */
    uint64_t progress;     /* of all lives before */
    uint32_t fruitless;    /* lives in a row */
    uint64_t successor_ns; /* when the next life begins; 0: it has begun */
    int birth_socket;      /* -1: it has got its birth message */
    struct watch watch;
    enum watch_verdict hung; /* it was ended for it */
    bool is_unborn;          /* as a standby knows it: perhaps the message never came */
};

struct supervisor {
    const struct plan *plan;
    struct layout layout;
    struct region regions[REGION_COUNT];
    struct sup_shm *shm;
    const struct process_shm *processes[PROCESSES_MAX]; /* by process number; read-only views */
    int bells[PROCESSES_MAX];
    struct lifeline lifeline;
    struct child children[PROCESSES_MAX]; /* by process number; [0] is unused */
    uint32_t process_count;
    int model;
    int record;       /* -1: nothing is recorded */
    int listener_tcp; /* -1: none */
    int keys;         /* for it; -1: none */
    struct keeper keeper;
    int front_keep; /* the end of the keep sockets that the next life of front is born with */
    int listener;
    int socket_lock;
    int ready_fd;
    int signals;
    enum phase phase;
    int exit_status;
    uint64_t look_ns;     /* when it is looked whether a process hangs */
    uint64_t deadline_ns; /* of the drain or of the stop; 0: none */

    /* the standby: a fork of this process that sleeps until this one is gone */
    pid_t standby;
    int standby_pidfd;        /* -1: there is none */
    bool is_standby_outdated; /* there were births since */
    uint64_t standby_born_ns;
    uint64_t takeover_ns; /* when this process took over; 0: it is the first supervisor */
};

/* ---- creation ---- */

static int create_region(struct supervisor *s, uint32_t id, const char *name, struct err *err)
{
    struct region *region = &s->regions[id];
    size_t bytes = s->layout.region_bytes[id];
    if (bytes == 0)
        return 0;
    region->fd = shm_create(name, bytes, err);
    if (region->fd < 0)
        return region->fd;
    region->read_only = shm_read_only(region->fd, err);
    return region->read_only < 0 ? region->read_only : 0;
}

static int write_head(struct supervisor *s, uint32_t id, uint32_t epoch, struct err *err)
{
    struct region_head head = {.magic = REGION_MAGIC,
                               .layout_hash = LAYOUT_HASH,
                               .bytes = s->layout.region_bytes[id],
                               .id = id,
                               .epoch = epoch};
    if (pwrite(s->regions[id].fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return err_set(err, -errno, "shared memory: cannot write the head of region %u: %s", id, strerror(errno));
    return 0;
}

/* The process block of a region, mapped read-only together with what stands before it. */
static int watch_process(struct supervisor *s, enum role role, uint32_t index, uint32_t region, size_t offset,
                         struct err *err)
{
    size_t bytes = offset + sizeof(struct process_shm);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, s->regions[region].read_only, 0);
    if (memory == MAP_FAILED)
        return err_set(err, -errno, "shared memory: cannot map region %u: %s", region, strerror(errno));
    s->processes[process_number(role, index)] = (const struct process_shm *)(const void *)(memory + offset);
    return 0;
}

static int create_regions(struct supervisor *s, struct err *err)
{
    static const struct {
        uint32_t id;
        const char *name;
        bool has_head;
    } single[] = {{REGION_SUP, "evenflow-sup", true},
                  {REGION_FRONT, "evenflow-front", true},
                  {REGION_CONNS, "evenflow-conns", false},
                  {REGION_IO, "evenflow-io", false},
                  {REGION_SCHED, "evenflow-sched", true}};
    int ret = 0;
    for (size_t i = 0; i < ARRAY_COUNT(single) && ret == 0; i++) {
        ret = create_region(s, single[i].id, single[i].name, err);
        if (ret == 0 && single[i].has_head)
            ret = write_head(s, single[i].id, 1, err);
    }
    for (uint32_t stage = 0; stage < s->plan->stage_count && ret == 0; stage++) {
        ret = create_region(s, REGION_STAGE + stage, "evenflow-stage", err);
        ret = ret ? ret : write_head(s, REGION_STAGE + stage, 1, err);
        ret = ret ? ret : create_region(s, REGION_KV + stage, "evenflow-kv", err);
        ret = ret ? ret : create_region(s, REGION_WEIGHTS + stage, "evenflow-weights", err);
        ret = ret ? ret : watch_process(s, ROLE_STAGE, stage, REGION_STAGE + stage, s->layout.stage_process, err);
    }
    ret = ret ? ret : watch_process(s, ROLE_FRONT, 0, REGION_FRONT, s->layout.front_process, err);
    ret = ret ? ret : watch_process(s, ROLE_SCHED, 0, REGION_SCHED, s->layout.sched_process, err);
    if (ret != 0)
        return ret;
    s->shm =
        shm_map(s->regions[REGION_SUP].fd, s->layout.region_bytes[REGION_SUP], SHM_WRITE | SHM_POPULATE, "sup", err);
    return s->shm != NULL ? 0 : -EPROTO;
}

static int create_bells(struct supervisor *s, struct err *err)
{
    for (uint32_t i = 0; i < s->process_count; i++) {
        s->bells[i] = eventfd(0, EFD_CLOEXEC);
        if (s->bells[i] < 0)
            return err_set(err, -errno, "doorbell: cannot create an eventfd: %s", strerror(errno));
    }
    return 0;
}

static int make_parent_directory(const char *path, struct err *err)
{
    char directory[PATH_MAX_BYTES];
    snprintf(directory, sizeof(directory), "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash == NULL || slash == directory)
        return 0;
    *slash = '\0';
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return err_set(err, -errno, "socket %s: cannot create its directory: %s; choose another with --socket", path,
                       strerror(errno));
    return 0;
}

/* The lock file beside the socket says whether an engine lives there. It is removed at the end, so whoever has locked it
 * looks whether the name still means the file that was locked. */
static int take_socket_lock(struct supervisor *s, struct err *err)
{
    const char *path = s->plan->socket_path;
    char lock_path[PATH_MAX_BYTES + 8];
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    for (;;) {
        struct stat locked, named;
        s->socket_lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (s->socket_lock < 0)
            return err_set(err, -errno, "socket %s: cannot open %s: %s; choose another with --socket", path, lock_path,
                           strerror(errno));
        if (flock(s->socket_lock, LOCK_EX | LOCK_NB) != 0) {
            close(s->socket_lock);
            return err_set(err, -EADDRINUSE,
                           "socket %s: another engine serves there; stop it or choose another with --socket", path);
        }
        if (fstat(s->socket_lock, &locked) == 0 && stat(lock_path, &named) == 0 && locked.st_ino == named.st_ino)
            return 0;
        close(s->socket_lock);
    }
}

static void remove_socket(const struct supervisor *s)
{
    char lock_path[PATH_MAX_BYTES + 8];
    snprintf(lock_path, sizeof(lock_path), "%s.lock", s->plan->socket_path);
    unlink(s->plan->socket_path);
    unlink(lock_path);
}

static int create_listener(struct supervisor *s, struct err *err)
{
    const char *path = s->plan->socket_path;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "socket %s: longer than %zu bytes; choose another with --socket", path,
                       sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    int ret = make_parent_directory(path, err);
    if (ret != 0)
        return ret;
    ret = take_socket_lock(s, err);
    if (ret != 0)
        return ret;
    struct stat stat;
    if (lstat(path, &stat) == 0 && !S_ISSOCK(stat.st_mode))
        return err_set(err, -EEXIST, "socket %s: there is a file that is no socket; choose another with --socket",
                       path);
    unlink(path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    bool is_bound = s->listener >= 0 && bind(s->listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                    listen(s->listener, LISTEN_BACKLOG) == 0;
    int error = errno;
    umask(mask);
    if (!is_bound)
        return err_set(err, -error, "socket %s: cannot listen there: %s", path, strerror(error));
    return 0;
}

static int create_signals(struct supervisor *s, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return s->signals >= 0 ? 0 : err_set(err, -errno, "signals: %s", strerror(errno));
}

/* ---- children ---- */

static void add_region(const struct supervisor *s, struct birth *birth, int *fds, enum birth_kind kind, uint32_t id)
{
    if (s->layout.region_bytes[id] == 0)
        return;
    birth_add(birth, fds, kind, id, kind == BIRTH_REGION_WRITE ? s->regions[id].fd : s->regions[id].read_only);
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
        add_region(s, birth, fds, BIRTH_REGION_WRITE, REGION_KV + i);
        birth->weights_loaded = shm_is_sealed(s->regions[REGION_WEIGHTS + i].fd);
        add_region(s, birth, fds, birth->weights_loaded ? BIRTH_REGION_READ : BIRTH_REGION_WRITE, REGION_WEIGHTS + i);
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
    return create_region(s, REGION_IO, "evenflow-io", err);
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
    return write_head(s, region, child->epoch, err);
}

/* The next life of a process, as far as a new program that waits for its birth message. */
static int start_child(struct supervisor *s, struct child *child, struct err *err)
{
    int sockets[2];
    if (begin_life(s, child, err) != 0)
        return -EIO;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "%s: cannot create its birth socket: %s", role_name(child->role), strerror(errno));
    child->birth_socket = sockets[0];
    child->pid = fork();
    if (child->pid == 0)
        exec_child(s, child, sockets[1]);
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

static void close_birth_socket(struct supervisor *s, struct child *child)
{
    close(child->birth_socket);
    child->birth_socket = -1;
    if (child->role == ROLE_FRONT)
        close(s->front_keep);
}

/* What was started may begin: whoever would take over knows of it by now. */
static int deliver_births(struct supervisor *s, struct err *err)
{
    int ret = 0;
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        struct birth birth;
        int fds[BIRTH_ITEMS_MAX];
        if (child->birth_socket < 0)
            continue;
        fill_birth(s, child, &birth, fds);
        struct err later;
        if (birth_send(child->birth_socket, &birth, fds, ret == 0 ? err : &later) != 0)
            ret = -EPIPE;
        close_birth_socket(s, child);
    }
    return ret;
}

static void kill_all(struct supervisor *s)
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

/* ---- commands ---- */

static void command_set(struct supervisor *s, enum command command)
{
    /* release: pairs with the acquire in arena_command() */
    atomic_store_explicit(&s->shm->command, (uint32_t)command, memory_order_release);
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct bell_pull pull = {.fd = s->bells[i]};
        bell_ring_always(&pull);
    }
}

static void stop(struct supervisor *s, int exit_status)
{
    if (exit_status != 0)
        s->exit_status = exit_status;
    if (s->phase == PHASE_STOPPING)
        return;
    s->phase = PHASE_STOPPING;
    s->look_ns = 0;
    s->deadline_ns = clock_ns() + STOP_GRACE_NS;
    atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: shown to clients, decides nothing */
    command_set(s, COMMAND_STOP);
}

static void drain(struct supervisor *s)
{
    log_info("draining: no new requests, the others finish; a second signal stops at once");
    s->phase = PHASE_DRAINING;
    s->deadline_ns = s->plan->drain_timeout_ms ? clock_ns() + s->plan->drain_timeout_ms * 1000000ull : 0;
    atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: as in stop() */
    command_set(s, COMMAND_DRAIN);
}

/* ---- events ---- */

static void on_signal(struct supervisor *s)
{
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        switch (s->phase) {
        case PHASE_STARTING: /* nothing was accepted: nothing to drain */
            log_info("stopping before the start was complete");
            stop(s, 0);
            kill_all(s);
            break;
        case PHASE_SERVING:
            drain(s);
            break;
        case PHASE_DRAINING:
        case PHASE_STOPPING:
            log_warn("stopping at once: requests in progress are cut off");
            stop(s, s->phase == PHASE_DRAINING ? 1 : 0);
            kill_all(s);
            break;
        }
    }
}

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

static uint64_t word_of(const struct supervisor *s, enum role role, uint32_t index, size_t offset)
{
    const struct process_shm *process = s->processes[process_number(role, index)];
    /* relaxed: one writer, and what follows from it is looked at again */
    return atomic_load_explicit((const _Atomic uint64_t *)(const void *)((const uint8_t *)process + offset),
                                memory_order_relaxed);
}

#define WORD(s, role, index, field) word_of(s, role, index, offsetof(struct process_shm, field))

/* The step that a dead process was busy with; 0: none, or nobody knows. */
static uint64_t step_at_hand(const struct supervisor *s, const struct child *child)
{
    if (child->role != ROLE_STAGE)
        return 0;
    uint64_t done = WORD(s, ROLE_STAGE, child->index, step);
    uint64_t given = child->index > 0 ? WORD(s, ROLE_STAGE, child->index - 1, step) : WORD(s, ROLE_SCHED, 0, step);
    return given > done ? done + 1 : 0;
}

/* What is known of a death, for people: kept for `status`, and said. */
static enum death_kind report_death(struct supervisor *s, struct child *child, const siginfo_t *info, const char *what)
{
    uint32_t number = process_number(child->role, child->index);
    const struct words_shm words = s->processes[number]->words; /* copied: a dead process's, but not one of ours */
    bool is_killed = info->si_code == CLD_KILLED || info->si_code == CLD_DUMPED;
    bool has_words = words.epoch == child->epoch && words.signal != 0;
    struct death_shm death = {.at_s = (uint64_t)time(NULL),
                              .number = number,
                              .pid = (uint32_t)child->pid,
                              .signal = is_killed ? (uint32_t)info->si_status : 0,
                              .step = step_at_hand(s, child),
                              .kind = DEATH_OUTSIDE};
    if (child->hung != WATCH_FINE) {
        death.kind = DEATH_HUNG;
        snprintf(death.text, sizeof(death.text), "%s", watch_words[child->hung]);
    } else if (is_killed && words_are_own_fault(&words, child->epoch, info->si_status)) {
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

/* What there is for a process to do, and what it has done. */
static struct watch_look look_at(const struct supervisor *s, const struct child *child)
{
    const uint32_t i = child->index, last = s->plan->stage_count - 1;
    struct watch_look look = {.now_ns = clock_ns()};
    switch (child->role) {
    case ROLE_FRONT:
        look.progress = WORD(s, ROLE_FRONT, 0, consumed);
        look.has_work = WORD(s, ROLE_SCHED, 0, told) > look.progress;
        break;
    case ROLE_SCHED:
        look.progress = WORD(s, ROLE_SCHED, 0, consumed) + WORD(s, ROLE_SCHED, 0, consumed_second);
        look.has_work = WORD(s, ROLE_STAGE, last, step) > WORD(s, ROLE_SCHED, 0, consumed_second) ||
                        WORD(s, ROLE_FRONT, 0, told) > WORD(s, ROLE_SCHED, 0, consumed);
        break;
    default:
        look.progress = WORD(s, ROLE_STAGE, i, step);
        look.has_work = step_at_hand(s, child) != 0;
        look.predicted_us = WORD(s, ROLE_STAGE, i, predicted_us);
    }
    /* acquire: pairs with the release in arena_set_state() */
    if (atomic_load_explicit(&s->processes[process_number(child->role, i)]->state, memory_order_acquire) ==
        PROCESS_STARTING)
        look.has_work = true;
    if (look.has_work)
        watch_read((int)child->pid, &look);
    return look;
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
    bool was_idle = !look_at(s, child).has_work; /* it could do no more than be ready */
    bool was_fruitful = progress != child->progress || was_idle || now_ns - child->born_ns >= LASTING_NS;
    child->progress = progress;
    child->fruitless = was_fruitful ? 0 : child->fruitless + 1;
    if (child->fruitless > FRUITLESS_MAX)
        return false;
    if (child->fruitless > 1)
        wait_ns = min_u64(BACK_OFF_NS << (child->fruitless - 2), BACK_OFF_MAX_NS);
    child->successor_ns = now_ns + wait_ns;
    return true;
}

static void begin_successors(struct supervisor *s)
{
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        struct err err;
        if (child->successor_ns == 0 || child->successor_ns > now_ns || s->phase == PHASE_STOPPING)
            continue;
        if (start_child(s, child, &err) != 0) {
            log_error("%s; ending the engine", err.text);
            stop(s, 1);
            continue;
        }
        /* relaxed: shown to people, decides nothing */
        atomic_store_explicit(&s->shm->processes[i].restarts, child->epoch - 1, memory_order_relaxed);
    }
}

/* A stage that died of the step at hand makes its rows suspect; one that was ended from outside does only when several in a
 * row got nowhere with it. */
static void raise_suspicion(struct supervisor *s, const struct child *child, enum death_kind kind)
{
    bool is_suspect = kind == DEATH_FAULT || kind == DEATH_HUNG || child->fruitless >= FRUITLESS_SUSPECT;
    if (child->role != ROLE_STAGE || !is_suspect)
        return;
    struct suspect_shm *suspect = &s->shm->suspects[child->index];
    uint64_t step = WORD(s, ROLE_STAGE, child->index, step) + 1;
    /* relaxed, then release: pairs with the acquire in arena_suspect(): the step before the count */
    atomic_store_explicit(&suspect->step, step, memory_order_relaxed);
    atomic_store_explicit(&suspect->count, atomic_load_explicit(&suspect->count, memory_order_relaxed) + 1,
                          memory_order_release);
    bell_ring_always(&(struct bell_pull){.fd = s->bells[process_number(ROLE_SCHED, 0)]});
}

/* The pidfd has fired: the process is gone and nothing of it writes any more. */
static void on_death(struct supervisor *s, struct child *child)
{
    siginfo_t info = {0};
    if (waitid(P_PIDFD, (id_t)child->pidfd, &info, WEXITED) != 0)
        ask_pidfd(child->pidfd, &info);
    close(child->pidfd);
    child->pidfd = -1;
    if (child->birth_socket >= 0)
        close_birth_socket(s, child);
    char end[128];
    describe_end(&info, end, sizeof(end));
    bool is_together = s->takeover_ns != 0 && clock_ns() - s->takeover_ns < TOGETHER_NS && !child->is_unborn;
    child->is_unborn = false;
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
        stop(s, 1);
        kill_all(s);
        return;
    }
    bool can_go_on = (s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING);
    enum death_kind kind = report_death(s, child, &info, end);
    if (can_go_on && plan_successor(s, child)) {
        raise_suspicion(s, child, kind);
        atomic_store_explicit(&s->shm->ready, 0, memory_order_relaxed); /* relaxed: as in stop() */
        return;
    }
    log_error("%s %u (process %d) %s; ending the engine%s", role_name(child->role), child->index, (int)child->pid, end,
              can_go_on ? ": its lives end without progress" : "");
    stop(s, 1);
}

static bool all_ready(const struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        /* acquire: pairs with the release in arena_set_state() */
        if (atomic_load_explicit(&s->processes[i]->state, memory_order_acquire) != PROCESS_READY)
            return false;
    return true;
}

static void on_bell(struct supervisor *s)
{
    uint64_t rings;
    ssize_t got = read(s->bells[0], &rings, sizeof(rings));
    check(got == (ssize_t)sizeof(rings));
    if (s->phase == PHASE_SERVING && all_ready(s))
        atomic_store_explicit(&s->shm->ready, 1, memory_order_relaxed); /* relaxed: as in stop() */
    if (s->phase == PHASE_STARTING && all_ready(s)) {
        s->phase = PHASE_SERVING;
        s->look_ns = clock_ns() + WATCH_TICK_NS;
        atomic_store_explicit(&s->shm->ready, 1, memory_order_relaxed); /* relaxed: as in stop() */
        log_info("ready: %u stages on %s", s->plan->stage_count, s->plan->socket_path);
        if (s->ready_fd >= 0) {
            if (write(s->ready_fd, "\n", 1) != 1)
                log_warn("ready descriptor %d: cannot write to it: %s", s->ready_fd, strerror(errno));
            close(s->ready_fd);
            s->ready_fd = -1;
        }
    }
    const struct process_shm *front = s->processes[process_number(ROLE_FRONT, 0)];
    /* acquire: pairs with the release in arena_set_state() */
    if (s->phase == PHASE_DRAINING && atomic_load_explicit(&front->state, memory_order_acquire) == PROCESS_DRAINED) {
        log_info("drained");
        stop(s, 0);
    }
}

/* ---- who hangs ---- */

static void look_who_hangs(struct supervisor *s)
{
    if (s->look_ns == 0 || clock_ns() < s->look_ns)
        return;
    s->look_ns = clock_ns() + WATCH_TICK_NS;
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        if (child->pidfd < 0 || child->hung != WATCH_FINE)
            continue;
        struct watch_look look = look_at(s, child);
        child->hung = watch_judge(&child->watch, &look);
        if (child->hung != WATCH_FINE)
            syscall(SYS_pidfd_send_signal, child->pidfd, SIGKILL, NULL, 0);
    }
}

static void on_deadline(struct supervisor *s)
{
    s->deadline_ns = 0;
    if (s->phase == PHASE_DRAINING) {
        log_warn("the drain timeout has passed: requests in progress are cut off");
        stop(s, 1);
        return;
    }
    log_warn("%u processes did not leave by themselves; killing them", running_count(s));
    s->exit_status = 1;
    kill_all(s);
}

/* When another standby is to be forked; 0: no need. */
static uint64_t standby_due_ns(const struct supervisor *s)
{
    bool is_wanted = s->is_standby_outdated && (s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING);
    if (!is_wanted)
        return 0;
    return s->standby_pidfd >= 0 ? 1 : s->standby_born_ns + STANDBY_WAIT_NS;
}

static int milliseconds_to(uint64_t deadline_ns)
{
    uint64_t now = clock_ns();
    return now >= deadline_ns ? 0 : (int)min_u64((deadline_ns - now) / 1000000 + 1, INT32_MAX);
}

/* Until something has to be done unasked; -1: nothing. */
static void earliest(uint64_t *next_ns, uint64_t moment_ns)
{
    if (moment_ns != 0 && (*next_ns == 0 || moment_ns < *next_ns))
        *next_ns = moment_ns;
}

static int milliseconds_left(const struct supervisor *s)
{
    uint64_t next_ns = s->deadline_ns;
    earliest(&next_ns, s->look_ns);
    earliest(&next_ns, standby_due_ns(s));
    for (uint32_t i = 1; i < s->process_count; i++)
        earliest(&next_ns, s->children[i].successor_ns);
    return next_ns == 0 ? -1 : milliseconds_to(next_ns);
}

/* ---- the standby ---- */

/* A fork of this process: it has every descriptor and knows every process, as they are now. So there is a new one for every
 * birth, between the start of a program and its birth message. `standby` in the region sup names the one that counts:
 *
 *   start the program | fork the new standby | name it | end the one before | birth message
 *
 * If the supervisor dies before the naming, the standby before knows nothing of the new program, which gets no message and
 * leaves; if behind it, the new standby knows of it. */
static void end_standby(struct supervisor *s)
{
    if (s->standby_pidfd < 0)
        return;
    syscall(SYS_pidfd_send_signal, s->standby_pidfd, SIGKILL, NULL, 0);
    waitid(P_PIDFD, (id_t)s->standby_pidfd, &(siginfo_t){0}, WEXITED);
    close(s->standby_pidfd);
    s->standby_pidfd = -1;
}

/* The supervisor before is proven dead. */
static void take_over(struct supervisor *s)
{
    const struct process_shm *front = s->processes[process_number(ROLE_FRONT, 0)];
    struct signalfd_siginfo info;
    while (read(s->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        /* was meant for the one before, which had its own */
    }
    log_open("evenflow-supervisor", (enum log_level)s->plan->log_level);
    log_warn("the supervisor is gone; process %d takes over", (int)getpid());
    s->takeover_ns = clock_ns();
    /* relaxed, all three: shown to people, or written by supervisors alone */
    uint32_t takeovers = atomic_load_explicit(&s->shm->processes[0].restarts, memory_order_relaxed) + 1;
    atomic_store_explicit(&s->shm->processes[0].pid, (uint32_t)getpid(), memory_order_relaxed);
    atomic_store_explicit(&s->shm->processes[0].restarts, takeovers, memory_order_relaxed);
    enum command command = (enum command)atomic_load_explicit(&s->shm->command, memory_order_relaxed);
    if (command == COMMAND_DRAIN)
        drain(s);
    else if (command == COMMAND_STOP)
        stop(s, 1);
    /* acquire: pairs with the release in arena_set_state() */
    if (atomic_load_explicit(&front->state, memory_order_acquire) == PROCESS_STARTING) {
        log_error("front was about to start again: its connections went with the supervisor; ending the engine");
        stop(s, 1);
        kill_all(s);
    }
    s->shm->head.epoch++; /* front hands over every connection again */
    bell_ring_always(&(struct bell_pull){.fd = s->bells[process_number(ROLE_FRONT, 0)]});
}

/* In the standby. Returns when it has become the supervisor. */
static void stand_by(struct supervisor *s, int supervisor_pidfd)
{
    log_open("evenflow-standby", (enum log_level)s->plan->log_level);
    prctl(PR_SET_NAME, "evenflow-standby");
    for (uint32_t i = 1; i < s->process_count; i++) {
        s->children[i].is_unborn = s->children[i].birth_socket >= 0;
        if (s->children[i].is_unborn)
            close_birth_socket(s, &s->children[i]);
    }
    keeper_forget(&s->keeper);
    if (s->standby_pidfd >= 0)
        close(s->standby_pidfd);
    s->standby_pidfd = -1;
    struct pollfd poll_fd = {.fd = supervisor_pidfd, .events = POLLIN};
    while (poll(&poll_fd, 1, -1) != 1)
        check(errno == EINTR);
    close(supervisor_pidfd);
    /* acquire: pairs with the release in renew_standby() */
    if (atomic_load_explicit(&s->shm->standby, memory_order_acquire) != (uint32_t)getpid())
        _exit(0);
    take_over(s);
}

/* Returns in this process, and later perhaps in the standby, which is the supervisor then. */
static void renew_standby(struct supervisor *s)
{
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
    /* release: pairs with the acquire in stand_by() */
    atomic_store_explicit(&s->shm->standby, standby > 0 ? (uint32_t)standby : 0, memory_order_release);
    end_standby(s);
    if (own >= 0)
        close(own);
    s->standby = standby;
    s->standby_pidfd = pidfd;
    s->standby_born_ns = clock_ns();
    s->is_standby_outdated = false;
}

/* The standby died: there is another one, though not without a pause if they do not live. */
static void on_standby_death(struct supervisor *s)
{
    end_standby(s);
    s->is_standby_outdated = true;
}

/* ---- life ---- */

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
    for (int i = 0; i < 2; i++)
        fcntl(s->regions[i].fd, F_SETFD, FD_CLOEXEC);
    fcntl(start->model, F_SETFD, FD_CLOEXEC);
    if (start->record >= 0)
        fcntl(start->record, F_SETFD, FD_CLOEXEC);
    if (start->listen >= 0)
        fcntl(start->listen, F_SETFD, FD_CLOEXEC);
    if (start->keys >= 0)
        fcntl(start->keys, F_SETFD, FD_CLOEXEC);
    if (start->ready_fd >= 0)
        fcntl(start->ready_fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit); /* children inherit it; a refusal leaves the old limit, which io reports */
    }
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
    s->ready_fd = start->ready_fd;
    s->standby_pidfd = -1;
    raise_descriptor_limit();
    int ret = load_plan(s, start, err);
    ret = ret ? ret : lifeline_open(&s->lifeline, err);
    ret = ret ? ret : create_listener(s, err);
    ret = ret ? ret : create_regions(s, err);
    ret = ret ? ret : create_bells(s, err);
    ret = ret ? ret : create_signals(s, err);
    if (ret != 0) {
        if (s->listener >= 0)
            remove_socket(s);
        return ret;
    }
    keeper_open(&s->keeper, s->plan->connections_max);
    s->shm->process_count = s->process_count;
    for (uint32_t i = 0; i < s->process_count; i++) {
        enum role role = i < ROLE_STAGE ? (enum role)i : ROLE_STAGE;
        uint32_t index = i < ROLE_STAGE ? 0 : i - ROLE_STAGE;
        s->children[i] = (struct child){.role = role, .index = index, .pidfd = -1, .birth_socket = -1};
        s->shm->processes[i].role = role;
        s->shm->processes[i].index = index;
    }
    atomic_store_explicit(&s->shm->processes[0].pid, (uint32_t)getpid(), memory_order_relaxed); /* relaxed: shown */
    for (uint32_t i = 1; i < s->process_count && ret == 0; i++)
        ret = start_child(s, &s->children[i], err);
    ret = ret ? ret : deliver_births(s, err);
    if (ret != 0) {
        kill_all(s);
        remove_socket(s);
    }
    return ret;
}

int supervisor_run(struct supervisor *s)
{
    while (running_count(s) > 0 || (s->phase != PHASE_STOPPING && milliseconds_left(s) >= 0)) {
        struct pollfd polls[PROCESSES_MAX + 3];
        const uint32_t keeper = s->process_count + 1, standby = keeper + 1;
        polls[0] = (struct pollfd){.fd = s->bells[0], .events = POLLIN};
        polls[1] = (struct pollfd){.fd = s->signals, .events = POLLIN};
        for (uint32_t i = 1; i < s->process_count; i++)
            polls[i + 1] = (struct pollfd){.fd = s->children[i].pidfd, .events = POLLIN}; /* -1 is passed over */
        polls[keeper] = keeper_poll(&s->keeper);
        polls[standby] = (struct pollfd){.fd = s->standby_pidfd, .events = POLLIN};
        if (poll(polls, standby + 1, milliseconds_left(s)) < 0) {
            check(errno == EINTR);
            continue;
        }
        if (s->deadline_ns != 0 && milliseconds_to(s->deadline_ns) == 0)
            on_deadline(s);
        if (polls[1].revents)
            on_signal(s);
        for (uint32_t i = 1; i < s->process_count; i++)
            if (polls[i + 1].revents)
                on_death(s, &s->children[i]);
        if (polls[0].revents)
            on_bell(s);
        if (polls[standby].revents)
            on_standby_death(s);
        keeper_turn(&s->keeper);
        look_who_hangs(s);
        begin_successors(s);
        uint64_t due_ns = standby_due_ns(s);
        if (due_ns != 0 && due_ns <= clock_ns())
            renew_standby(s);
        struct err err;
        if (deliver_births(s, &err) != 0)
            log_warn("%s", err.text); /* it has died already, which is the next thing that is noticed */
    }
    end_standby(s);
    remove_socket(s);
    log_info("ended with status %d", s->exit_status);
    return s->exit_status;
}
