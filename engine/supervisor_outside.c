/* supervisor_outside.c - a standby that somebody else has started: evenflow-supervisor --attach SOCKET.
 *
 * A fork has every descriptor and knows all that the supervisor knows (supervisor_standby.c). One from outside is told, at
 * every moment at which there would be another fork: every descriptor under the number that it has in the supervisor, and what
 * the supervisor knows in a memfd, as over an exec (supervisor_upgrade.c). What it has been told lies in its socket, whether it
 * runs or not. It keeps the last that came whole, and puts the descriptors under their numbers when it takes over.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/supervisor_inside.h"
#include "ipc/birth.h"
#include "ipc/fault.h"
#include "ipc/log.h"

#define NUMBERS_MAX 65536u /* of descriptors that can be told */
#define GONE_MS     1000   /* from the end of its connection to the proof that a supervisor is gone */

/* Below the standard descriptors' numbers, which are everybody's own, there is room for two more. */
enum { NUMBER_SUPERVISOR, NUMBER_KNOWLEDGE, NUMBER_FIRST = 3 };

/* ---- the supervisor tells ---- */

struct package {
    int connection;
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
};

/* The last one of a whole says so in its epoch. */
static bool send_package(struct package *p, bool is_last)
{
    struct err err;
    p->birth.epoch = is_last;
    bool is_sent = birth_send(p->connection, &p->birth, p->fds, &err) == 0;
    p->birth = (struct birth){.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    return is_sent;
}

static bool put(struct package *p, uint32_t number, int fd)
{
    birth_add(&p->birth, p->fds, BIRTH_DESCRIPTOR, number, fd);
    return p->birth.item_count < BIRTH_ITEMS_MAX || send_package(p, false);
}

/* What is for this process alone, or for a program that has not begun; connections, unless it keeps them in front's place. */
static void mark_left_out(const struct supervisor *s, bool *is_left_out)
{
    int fds[PROCESSES_MAX + 5];
    uint32_t count = 0;
    memset(is_left_out, 0, NUMBERS_MAX);
    fds[count++] = s->outsider;
    fds[count++] = s->standby_pidfd;
    fds[count++] = s->former_standby_pidfd;
    fds[count++] = s->signals;
    for (uint32_t i = 1; i < s->process_count; i++)
        fds[count++] = s->children[i].birth_socket;
    if (s->children[process_number(ROLE_FRONT, 0)].birth_socket >= 0)
        fds[count++] = s->front_keep;
    for (uint32_t i = 0; i < count; i++)
        if (fds[i] >= 0 && (uint32_t)fds[i] < NUMBERS_MAX)
            is_left_out[fds[i]] = true;
    for (uint32_t slot = 0; !s->is_keeping && slot < s->keeper.table.slot_count; slot++) {
        int fd = s->keeper.table.slots[slot].fd;
        if (fd >= 0 && (uint32_t)fd < NUMBERS_MAX)
            is_left_out[fd] = true;
    }
}

bool supervisor_tell_outsider(const struct supervisor *s)
{
    static bool is_left_out[NUMBERS_MAX];
    struct package p = {.connection = s->outsider, .birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE}};
    int own = (int)syscall(SYS_pidfd_open, getpid(), 0), knowledge = supervisor_carry(s);
    DIR *folder = opendir("/proc/self/fd");
    bool is_good = own >= 0 && knowledge >= 0 && folder != NULL && put(&p, NUMBER_SUPERVISOR, own) &&
                   put(&p, NUMBER_KNOWLEDGE, knowledge);
    mark_left_out(s, is_left_out);
    for (struct dirent *entry; is_good && (entry = readdir(folder)) != NULL;) {
        int fd = (int)strtol(entry->d_name, NULL, 10); /* 0 for . and .. */
        if (fd < NUMBER_FIRST || fd == own || fd == knowledge || fd == dirfd(folder))
            continue;
        if ((uint32_t)fd >= NUMBERS_MAX)
            is_good = false;
        else if (!is_left_out[fd])
            is_good = put(&p, (uint32_t)fd, fd);
    }
    is_good = is_good && send_package(&p, true);
    if (folder != NULL)
        closedir(folder);
    if (own >= 0)
        close(own);
    if (knowledge >= 0)
        close(knowledge);
    return is_good;
}

/* ---- the one from outside ---- */

struct told {
    uint32_t count;
    int fds[NUMBERS_MAX];
    uint16_t numbers[NUMBERS_MAX];
};

static int fd_of(const struct told *told, uint32_t number)
{
    for (uint32_t i = 0; i < told->count; i++)
        if (told->numbers[i] == number)
            return told->fds[i];
    return -1;
}

static void forget(struct told *told)
{
    for (uint32_t i = 0; i < told->count; i++)
        close(told->fds[i]);
    told->count = 0;
}

/* 1: a whole is there; 0: not yet; -errno with err: nothing more will come. */
static int hear(int connection, struct told *told, struct err *err)
{
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
    int ret = birth_receive(connection, &birth, fds, err);
    if (ret != 0)
        return ret;
    for (uint32_t i = 0; i < birth.item_count; i++) {
        if (birth.part != BIRTH_WHOLE || birth.items[i].kind != BIRTH_DESCRIPTOR || told->count == NUMBERS_MAX)
            return err_set(err, -EPROTO, "what the supervisor says is not of this build");
        told->numbers[told->count] = birth.items[i].number;
        told->fds[told->count++] = fds[i];
    }
    return birth.epoch == 1;
}

static bool has_fired(int pidfd, int wait_ms)
{
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&poll_fd, 1, wait_ms) == 1;
}

/* Sleeps until the supervisor is proven dead; what it had told last. NULL with err: it has no use for this process. */
static struct told *wait_for_death(int connection, struct err *err)
{
    struct told *last = base_alloc(sizeof(*last)), *next = base_alloc(sizeof(*next));
    for (;;) {
        struct pollfd polls[] = {{.fd = connection, .events = POLLIN},
                                 {.fd = fd_of(last, NUMBER_SUPERVISOR), .events = POLLIN}};
        if (poll(polls, ARRAY_COUNT(polls), -1) < 0) {
            check(errno == EINTR);
            continue;
        }
        if (polls[0].revents == 0)
            break; /* it is gone, and all that it had said has been heard */
        int ret = hear(connection, next, err);
        if (ret < 0 && !has_fired(fd_of(last, NUMBER_SUPERVISOR), GONE_MS))
            return NULL;
        if (ret < 0)
            break;
        if (ret == 0)
            continue;
        struct told *before = last;
        forget(before);
        last = next;
        next = before;
    }
    forget(next);
    free(next);
    return last;
}

/* Every descriptor under its number. Where the knowledge is. */
static int place(struct told *told)
{
    int above = NUMBER_FIRST;
    for (uint32_t i = 0; i < told->count; i++)
        above = told->numbers[i] >= above ? told->numbers[i] + 1 : above;
    for (uint32_t i = 0; i < told->count; i++) {
        int fd = fcntl(told->fds[i], F_DUPFD_CLOEXEC, above);
        check(fd >= 0);
        close(told->fds[i]);
        told->fds[i] = fd;
    }
    for (uint32_t i = 0; i < told->count; i++) {
        if (told->numbers[i] < NUMBER_FIRST)
            continue;
        check(dup3(told->fds[i], told->numbers[i], O_CLOEXEC) >= 0);
        close(told->fds[i]);
    }
    close(fd_of(told, NUMBER_SUPERVISOR));
    return fd_of(told, NUMBER_KNOWLEDGE);
}

int supervisor_attach(struct supervisor **supervisor, int connection, struct err *err)
{
    supervisor_raise_descriptor_limit();
    struct told *told = wait_for_death(connection, err);
    if (told == NULL)
        return -EPIPE;
    close(connection);
    int knowledge = place(told);
    free(told);
    int ret = supervisor_unpack(supervisor, knowledge, err);
    if (ret != 0)
        return ret;
    struct supervisor *s = *supervisor;
    s->outsider = s->standby_pidfd = s->former_standby_pidfd = -1;
    for (uint32_t i = 1; i < s->process_count; i++) {
        s->children[i].is_unborn = s->children[i].birth_socket >= 0;
        s->children[i].birth_socket = -1;
    }
    for (uint32_t slot = 0; !s->is_keeping && slot < s->keeper.table.slot_count; slot++)
        s->keeper.table.slots[slot].fd = -1; /* they were left out */
    if (!s->is_keeping)
        keeper_forget(&s->keeper);
    /* acquire: pairs with the release in name_standby() */
    if (atomic_load_explicit(&s->shm->standby, memory_order_acquire) != (uint32_t)getpid())
        return err_set(err, -ESRCH, "the supervisor is gone; another standby takes over");
    fault_begin(process_number(ROLE_SUPERVISOR, 0));
    ret = supervisor_create_signals(s, err);
    if (ret != 0)
        return ret;
    supervisor_take_over(s);
    s->is_standby_outdated = true;
    return 0;
}
