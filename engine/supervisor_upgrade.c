/* supervisor_upgrade.c - other programs in place of those that run, without an end in between.
 *
 * Every process gets a spare of the new programs (supervisor_spare.c). When all are prepared, one after another is
 * ended and followed by its spare, as if it had died: nothing that a death does not do already. The supervisor itself
 * executes its new program: process, children and descriptors stay, and what it knows goes over in a memfd. A standby
 * is forked before each step, so an upgrade goes on when the supervisor dies.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/supervisor_inside.h"
#include "ipc/birth.h"
#include "ipc/clock.h"
#include "ipc/control.h"
#include "ipc/fault.h"
#include "ipc/log.h"
#include "ipc/shm.h"

#define ORDER_WAIT_NS   5000000000ull   /* from a connection to its order */
#define PREPARE_WAIT_NS 600000000000ull /* for all spares: those that compute otherwise pack weights of their own */
#define PROGRAM_FD_MIN  10              /* a child's birth socket goes below (exec_child()) */

static int raise_fd(int fd)
{
    int raised = fcntl(fd, F_DUPFD_CLOEXEC, PROGRAM_FD_MIN);
    close(fd);
    return raised;
}

int supervisor_open_programs(int *programs, const char *directory, struct err *err)
{
    for (uint32_t role = 0; role < ROLE_COUNT; role++) {
        char path[PATH_MAX_BYTES + 64];
        snprintf(path, sizeof(path), "%s/evenflow-%s", directory, role_name((enum role)role));
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return err_set(err, -errno, "cannot start %s: %s; is the installation complete?", path, strerror(errno));
        programs[role] = raise_fd(fd);
    }
    return 0;
}

/* ---- orders ---- */

void supervisor_on_connection(struct supervisor *s)
{
    int connection = control_accept(s->control);
    if (connection < 0)
        return;
    s->upgrade =
        (struct upgrade){.phase = UPGRADE_ASKED, .connection = connection, .deadline_ns = clock_ns() + ORDER_WAIT_NS};
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        s->upgrade.programs[role] = -1;
    s->upgrade.plan = (struct region){-1, -1};
    for (uint32_t stage = 0; stage < STAGES_MAX; stage++)
        s->upgrade.weights[stage] = (struct region){-1, -1};
}

static void close_if_open(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void forget_order(struct supervisor *s)
{
    for (uint32_t stage = 0; stage < STAGES_MAX; stage++) {
        close_if_open(&s->upgrade.weights[stage].fd);
        close_if_open(&s->upgrade.weights[stage].read_only);
    }
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        close_if_open(&s->upgrade.programs[role]);
    close_if_open(&s->upgrade.plan.fd);
    close_if_open(&s->upgrade.plan.read_only);
    close_if_open(&s->upgrade.connection);
    s->upgrade.phase = UPGRADE_NOT;
    s->upgrade.deadline_ns = 0;
}

void supervisor_end_upgrade(struct supervisor *s, const char *reason)
{
    if (s->upgrade.phase != UPGRADE_ASKED)
        log_warn("upgrade: %s", reason);
    control_say(s->upgrade.connection, CONTROL_FAILED "%s", reason);
    for (uint32_t i = 1; i < s->process_count; i++)
        if (s->children[i].spare.pidfd >= 0 && s->children[i].spare.is_new)
            syscall(SYS_pidfd_send_signal, s->children[i].spare.pidfd, SIGKILL, NULL, 0);
    if (s->upgrade.phase == UPGRADE_FINISHING && s->phase == PHASE_SERVING)
        supervisor_command(s, COMMAND_RUN);
    forget_order(s);
}

/* The descriptors of an order, by what they are. */
static int take_order(struct upgrade *upgrade, const struct birth *order, const int *fds)
{
    bool is_known = order->part == BIRTH_WHOLE;
    for (uint32_t i = 0; i < order->item_count; i++) {
        const struct birth_item *item = &order->items[i];
        int *place = item->kind == BIRTH_PROGRAM && item->number < ROLE_COUNT         ? &upgrade->programs[item->number]
                     : item->kind == BIRTH_REGION_READ && item->number == REGION_PLAN ? &upgrade->plan.fd
                                                                                      : NULL;
        if (place == NULL || *place >= 0) {
            is_known = false;
            close(fds[i]);
            continue;
        }
        *place = raise_fd(fds[i]);
    }
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        is_known = is_known && upgrade->programs[role] >= 0;
    return is_known && upgrade->plan.fd >= 0 ? 0 : -EPROTO;
}

/* What stands behind the version: kernels, instruction path, KV type. */
static bool computes_the_same(const struct plan *a, const struct plan *b)
{
    const char *x = strchr(a->fingerprint, '+'), *y = strchr(b->fingerprint, '+');
    return x != NULL && y != NULL && strcmp(x, y) == 0;
}

/* All that may differ are the words that say which build it is and where it is from. */
static int check_new_plan(struct supervisor *s, struct err *err)
{
    static struct plan ours, theirs; /* large */
    const size_t bytes = align_up_u64(sizeof(struct plan), 4096);
    const struct plan *plan = shm_map(s->upgrade.plan.fd, bytes, SHM_READ, "plan", err);
    if (plan == NULL)
        return -EPROTO;
    ours = *s->plan;
    theirs = *plan;
    munmap((void *)(uintptr_t)plan, bytes);
    s->upgrade.computes_otherwise = !computes_the_same(&ours, &theirs);
    int ret = shm_is_sealed(s->upgrade.plan.fd) ? plan_validate(&theirs, err) : -EPROTO;
    memcpy(ours.version, theirs.version, sizeof(ours.version));
    memcpy(ours.fingerprint, theirs.fingerprint, sizeof(ours.fingerprint));
    memcpy(ours.program_dir, theirs.program_dir, sizeof(ours.program_dir));
    if (ret == 0 && memcmp(&ours, &theirs, sizeof(ours)) != 0)
        ret = err_set(err, -EPROTO, "the new plan is not the engine's");
    return ret;
}

/* Weights are packed as the kernels want them: other kernels get memory of their own for theirs. */
static int create_weights(struct supervisor *s, struct err *err)
{
    int ret = 0;
    for (uint32_t stage = 0; stage < s->plan->stage_count && ret == 0; stage++) {
        if (s->plan->slices[stage].device != DEVICE_CPU)
            return err_set(
                err, -ENOTSUP,
                "the new programs compute other bits, and stage %u's weights lie in a device's memory; start "
                "another engine, send clients there, and stop this one",
                stage);
        struct region *weights = &s->upgrade.weights[stage];
        size_t bytes = s->layout.region_bytes[REGION_WEIGHTS + stage];
        if (bytes == 0)
            continue;
        weights->fd = shm_create("evenflow-weights", bytes, err);
        weights->read_only = weights->fd < 0 ? -1 : shm_read_only(weights->fd, err);
        ret = weights->read_only < 0 ? -ENOMEM : 0;
    }
    return ret;
}

void supervisor_on_order(struct supervisor *s)
{
    struct birth order;
    int fds[BIRTH_ITEMS_MAX];
    struct err err = {0};
    int ret = birth_receive(s->upgrade.connection, &order, fds, &err);
    if (ret == 0 && order.part == BIRTH_WANTED && order.item_count == 0) {
        if (order.role == ROLE_SUPERVISOR) {
            int connection = s->upgrade.connection;
            s->upgrade.connection = -1;
            forget_order(s);
            if (supervisor_adopt_standby(s, connection, &err) != 0) {
                log_info("a process that would be the standby is sent away: %s", err.text);
                close(connection);
            }
            return;
        }
        if (supervisor_adopt_spare(s, order.role, order.index, s->upgrade.connection, &err) == 0)
            s->upgrade.connection = -1; /* the spare's */
        else
            log_info("a process that would be a spare is sent away: %s", err.text);
        forget_order(s);
        return;
    }
    ret = ret ? ret : take_order(&s->upgrade, &order, fds);
    ret = ret ? ret : check_new_plan(s, &err);
    if (ret == 0 && s->upgrade.computes_otherwise)
        ret = create_weights(s, &err);
    if (ret == 0) {
        s->upgrade.plan.read_only = shm_read_only(s->upgrade.plan.fd, &err);
        ret = s->upgrade.plan.read_only < 0 ? s->upgrade.plan.read_only : 0;
    }
    if (ret != 0 || s->phase != PHASE_SERVING) {
        supervisor_end_upgrade(s, s->phase != PHASE_SERVING ? "the engine starts or ends"
                                  : err.text[0] != '\0'     ? err.text
                                                            : "the order is not one of this build's; mixed builds?");
        return;
    }
    log_info("upgrade: preparing new programs");
    s->upgrade.phase = UPGRADE_PREPARING;
    s->upgrade.deadline_ns = clock_ns() + PREPARE_WAIT_NS;
    for (uint32_t i = 1; i < s->process_count; i++) {
        s->children[i].is_new = false;
        s->children[i].spare.next_ns = 0;
        if (s->children[i].spare.pidfd >= 0) /* of the old programs */
            syscall(SYS_pidfd_send_signal, s->children[i].spare.pidfd, SIGKILL, NULL, 0);
    }
}

/* ---- one step after another ---- */

static bool are_all_prepared(const struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++) {
        const struct spare *spare = &s->children[i].spare;
        if (spare->pidfd < 0 || !spare->is_new || !spare->is_prepared)
            return false;
    }
    return true;
}

static void swap(int *a, int *b)
{
    int c = *a;
    *a = *b;
    *b = c;
}

static void begin_replacing(struct supervisor *s)
{
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        swap(&s->programs[role], &s->upgrade.programs[role]);
    swap(&s->regions[REGION_PLAN].fd, &s->upgrade.plan.fd);
    swap(&s->regions[REGION_PLAN].read_only, &s->upgrade.plan.read_only);
    for (uint32_t stage = 0; stage < s->plan->stage_count; stage++) {
        if (s->upgrade.weights[stage].fd < 0)
            continue;
        swap(&s->regions[REGION_WEIGHTS + stage].fd, &s->upgrade.weights[stage].fd);
        swap(&s->regions[REGION_WEIGHTS + stage].read_only, &s->upgrade.weights[stage].read_only);
    }
    s->upgrade.phase = UPGRADE_REPLACING;
    s->upgrade.deadline_ns = 0;
    s->upgrade.at = 0;
}

static void begin_finishing(struct supervisor *s)
{
    log_info("upgrade: the new programs compute other bits; what has begun is finished first");
    control_say(s->upgrade.connection, "they compute other bits: what has begun is finished first");
    s->upgrade.phase = UPGRADE_FINISHING;
    s->upgrade.deadline_ns = 0;
    s->is_standby_outdated = true;
    supervisor_command(s, COMMAND_FINISH);
}

static bool has_finished(const struct supervisor *s)
{
    /* acquire: pairs with the release in arena_set_state() */
    return atomic_load_explicit(&s->processes[process_number(ROLE_SCHED, 0)]->state, memory_order_acquire) ==
           PROCESS_FINISHED;
}

/* Stages first, front last: process_count - 1 of them. */
static struct child *child_at(struct supervisor *s, uint32_t at)
{
    const uint32_t stages = s->plan->stage_count;
    return at < stages ? &s->children[process_number(ROLE_STAGE, at)]
                       : &s->children[process_number(at == stages ? ROLE_SCHED : ROLE_FRONT, 0)];
}

static bool is_up(const struct supervisor *s, const struct child *child)
{
    /* acquire: pairs with the release in arena_set_state() */
    return child->pidfd >= 0 && child->birth_socket < 0 &&
           atomic_load_explicit(&s->processes[process_number(child->role, child->index)]->state,
                                memory_order_acquire) != PROCESS_STARTING;
}

/* Those that have been replaced are passed over; one that has not is ended, when it is up. */
static void replace_next(struct supervisor *s)
{
    struct child *child;
    while (s->upgrade.at + 1 < s->process_count && is_up(s, child_at(s, s->upgrade.at)) &&
           child_at(s, s->upgrade.at)->is_new) {
        child = child_at(s, s->upgrade.at++);
        control_say(s->upgrade.connection, "%s %u: process %d", role_name(child->role), child->index, (int)child->pid);
    }
    if (s->upgrade.at + 1 == s->process_count)
        return;
    child = child_at(s, s->upgrade.at);
    bool may_be_ended = child->role != ROLE_FRONT || s->keeper.is_whole; /* or its connections would be lost */
    if (!is_up(s, child) || child->is_replaced || !may_be_ended)
        return;
    child->is_replaced = true;
    supervisor_end_child(s, child);
}

/* ---- the supervisor itself ---- */

/* What goes over: first in the memfd, then the kept connections. */
struct carried {
    uint64_t layout_hash;
    uint64_t supervisor_bytes;
    uint64_t kept_slots;
    struct supervisor supervisor; /* its pointers mean nothing */
};

static bool write_all(int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t done = write(fd, at, bytes);
        if (done <= 0)
            return false;
        at += done;
        bytes -= (size_t)done;
    }
    return true;
}

int supervisor_carry(const struct supervisor *s)
{
    const struct carried carried = {.layout_hash = LAYOUT_HASH,
                                    .supervisor_bytes = sizeof(*s),
                                    .kept_slots = s->keeper.table.slot_count,
                                    .supervisor = *s};
    int fd = memfd_create("evenflow-carried", 0);
    if (fd >= 0 && write_all(fd, &carried, sizeof(carried)) &&
        write_all(fd, s->keeper.table.slots, s->keeper.table.slot_count * sizeof(struct keep_slot)))
        return fd;
    close_if_open(&fd);
    return -1;
}

/* Returns only when it has failed. */
static void become_new_program(struct supervisor *s)
{
    char name[PATH_MAX_BYTES + 64], option[32];
    s->upgrade.phase = UPGRADE_LAST;
    supervisor_renew_standby(s);
    if (s->upgrade.phase != UPGRADE_LAST)
        return; /* in a standby that has taken over: the new supervisor has not come up */
    snprintf(name, sizeof(name), "%s/evenflow-supervisor", s->plan->program_dir);
    int carried = supervisor_carry(s);
    snprintf(option, sizeof(option), "--carried-fd=%d", carried);
    char *const argv[] = {name, option, NULL};
    if (carried >= 0) {
        supervisor_set_close_on_exec(false);
        syscall(SYS_execveat, s->programs[ROLE_SUPERVISOR], "", argv, environ, AT_EMPTY_PATH);
        supervisor_set_close_on_exec(true);
        close(carried);
    }
    supervisor_end_upgrade(s, "the new supervisor cannot be executed; every other process is of the new programs");
}

int supervisor_unpack(struct supervisor **supervisor, int carried_fd, struct err *err)
{
    static struct carried carried;
    bool is_read = pread(carried_fd, &carried, sizeof(carried), 0) == (ssize_t)sizeof(carried);
    if (!is_read || carried.layout_hash != LAYOUT_HASH || carried.supervisor_bytes != sizeof(struct supervisor))
        return err_set(err, -EPROTO, "what the old supervisor has left is not for this build");
    supervisor_set_close_on_exec(true);
    struct supervisor *s = base_alloc(sizeof(*s));
    *s = carried.supervisor;
    *supervisor = s;
    s->plan = shm_map(s->regions[REGION_PLAN].fd, align_up_u64(sizeof(struct plan), 4096), SHM_READ, "plan", err);
    if (s->plan == NULL)
        return -EPROTO;
    log_open("evenflow-supervisor", (enum log_level)s->plan->log_level);
    int ret = supervisor_map(s, err);
    if (ret != 0)
        return ret;
    const size_t kept_bytes = carried.kept_slots * sizeof(struct keep_slot);
    keep_table_open(&s->keeper.table, (uint32_t)carried.kept_slots);
    if (pread(carried_fd, s->keeper.table.slots, kept_bytes, sizeof(carried)) != (ssize_t)kept_bytes)
        return err_set(err, -EPROTO, "what the old supervisor has left is not whole");
    s->keeper.table.kept_count = carried.supervisor.keeper.table.kept_count;
    close(carried_fd);
    return 0;
}

int supervisor_resume(struct supervisor **supervisor, int carried_fd, struct err *err)
{
    int ret = supervisor_unpack(supervisor, carried_fd, err);
    if (ret != 0)
        return ret;
    struct supervisor *s = *supervisor;
    close_if_open(&s->outsider); /* it is of the old program: whoever has started it starts the new one */
    fault_begin(process_number(ROLE_SUPERVISOR, 0));
    control_say(s->upgrade.connection, "supervisor 0: process %d", (int)getpid());
    control_say(s->upgrade.connection, CONTROL_DONE "%s", s->plan->fingerprint);
    log_info("upgrade: every process is of the new programs, %s", s->plan->fingerprint);
    forget_order(s);
    s->is_standby_outdated = true;
    return 0;
}

void supervisor_turn_upgrade(struct supervisor *s)
{
    struct upgrade *upgrade = &s->upgrade;
    if (upgrade->deadline_ns != 0 && clock_ns() >= upgrade->deadline_ns)
        supervisor_end_upgrade(s, upgrade->phase == UPGRADE_ASKED ? "no order has come"
                                                                  : "the new programs are not prepared in time");
    if (upgrade->phase == UPGRADE_PREPARING && are_all_prepared(s)) {
        control_say(upgrade->connection, "%u new programs are prepared", s->process_count - 1);
        if (upgrade->computes_otherwise)
            begin_finishing(s);
        else
            begin_replacing(s);
    }
    if (upgrade->phase == UPGRADE_FINISHING && has_finished(s) && are_all_prepared(s))
        begin_replacing(s);
    if (upgrade->phase == UPGRADE_REPLACING)
        replace_next(s);
    if (upgrade->phase == UPGRADE_REPLACING && upgrade->at + 1 == s->process_count) {
        if (upgrade->computes_otherwise)
            supervisor_command(s, COMMAND_RUN);
        become_new_program(s);
    }
}
