#include "engine/supervisor_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/log.h"

#define LASTING_NS      1000000000ull
#define BACK_OFF_NS     50000000ull
#define BACK_OFF_MAX_NS 5000000000ull
#define HEAD_START_NS   200000000ull /* of a life: what preparing its spare takes of a core its first steps would lack */

/* A spare is the same program as its child, with the first half of a birth: it maps what others write, prepares
 * whatever it can, says so and sleeps. Whatever could be done wrong with a process that has not died needs the
 * second half, which it gets when supervisor_on_death() has seen the pidfd of its forerunner fire, as a new
 * program would. */

static void show(struct supervisor *s, const struct child *child, uint32_t pid)
{
    /* relaxed: shown to people, decides nothing */
    atomic_store_explicit(&s->shm->processes[process_number(child->role, child->index)].spare, pid,
                          memory_order_relaxed);
}

static bool is_wanted(const struct supervisor *s, const struct child *child)
{
    bool is_serving = s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING;
    if ((s->plan->spares == 0 && !supervisor_is_preparing(s)) || !is_serving || child->role == ROLE_SUPERVISOR ||
        child->pidfd < 0 || child->birth_socket >= 0 || child->spare.pidfd >= 0)
        return false;
    /* acquire: pairs with the release in arena_set_state(); before that its weights may not be there */
    return atomic_load_explicit(&s->processes[process_number(child->role, child->index)]->state,
                                memory_order_acquire) != PROCESS_STARTING;
}

uint64_t supervisor_spare_due_ns(const struct supervisor *s, const struct child *child)
{
    return is_wanted(s, child) ? max_u64(child->spare.next_ns, child->born_ns + HEAD_START_NS) : 0;
}

void supervisor_begin_spares(struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        struct spare *spare = &child->spare;
        struct born born;
        struct err err;
        uint64_t now_ns = clock_ns(), due_ns = supervisor_spare_due_ns(s, child);
        if (due_ns == 0 || due_ns > now_ns)
            continue;
        show(s, child, 0);
        if (supervisor_start_program(s, child, 0, &born, &err) != 0) {
            log_warn("%s; going on without a spare for now", err.text);
            spare->next_ns = now_ns + BACK_OFF_MAX_NS;
            continue;
        }
        *spare = (struct spare){.pid = born.pid,
                                .pidfd = born.pidfd,
                                .birth_socket = born.birth_socket,
                                .is_new = supervisor_is_preparing(s),
                                .born_ns = now_ns,
                                .died_young = spare->died_young};
        s->is_standby_outdated = true;
    }
}

int supervisor_peer(int connection, pid_t *pid)
{
    struct ucred peer;
    socklen_t size = sizeof(peer), pidfd_size = sizeof(int);
    int pidfd = -1;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return -1;
    *pid = peer.pid;
    if (getsockopt(connection, SOL_SOCKET, 77 /* SO_PEERPIDFD, Linux 6.5 */, &pidfd, &pidfd_size) != 0)
        pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    if (pidfd >= 0)
        fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    return pidfd;
}

int supervisor_adopt_spare(struct supervisor *s, uint32_t role, uint32_t index, int connection, struct err *err)
{
    uint32_t number = role < ROLE_COUNT && index < STAGES_MAX ? process_number((enum role)role, index) : 0;
    if (number == 0 || number >= s->process_count || (role != ROLE_STAGE && index != 0))
        return err_set(err, -EINVAL, "the engine has no such process");
    struct child *child = &s->children[number];
    bool is_serving = s->phase == PHASE_SERVING || s->phase == PHASE_DRAINING;
    if (!is_serving || child->pidfd < 0 || child->birth_socket >= 0)
        return err_set(err, -EAGAIN, "%s %u is about to begin; try again", role_name(child->role), index);
    if (child->spare.pidfd >= 0)
        return err_set(err, -EEXIST, "%s %u has a spare", role_name(child->role), index);
    pid_t pid = 0;
    int pidfd = supervisor_peer(connection, &pid);
    int ret = pidfd < 0 ? err_set(err, -errno, "process %d cannot be watched: %s", (int)pid, strerror(errno))
                        : supervisor_show_all(s, child, connection, err);
    if (ret != 0) {
        if (pidfd >= 0)
            close(pidfd);
        return ret;
    }
    log_info("%s %u: process %d, which somebody else has started, is its spare", role_name(child->role), index,
             (int)pid);
    show(s, child, 0);
    child->spare = (struct spare){.pid = pid,
                                  .pidfd = pidfd,
                                  .birth_socket = connection,
                                  .born_ns = clock_ns(),
                                  .died_young = child->spare.died_young};
    s->is_standby_outdated = true;
    return 0;
}

void supervisor_hear_spare(struct supervisor *s, struct child *child)
{
    char byte;
    /* its word stays there: a standby that takes over has not heard it */
    bool is_prepared = recv(child->spare.birth_socket, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1;
    child->spare.is_heard = true;
    if (!is_prepared)
        return; /* it ends */
    child->spare.died_young = 0;
    child->spare.is_prepared = true;
    show(s, child, (uint32_t)child->spare.pid);
}

bool supervisor_is_able(pid_t pid)
{
    struct watch_look look;
    return watch_read((int)pid, &look) && strchr("RSD", look.state) != NULL;
}

static void kill_spare(const struct spare *spare)
{
    syscall(SYS_pidfd_send_signal, spare->pidfd, SIGKILL, NULL, 0);
}

bool supervisor_use_spare(struct supervisor *s, struct child *child, struct born *born)
{
    struct spare *spare = &child->spare;
    if (spare->pidfd < 0 || (spare->is_new && s->upgrade.phase != UPGRADE_REPLACING))
        return false;
    if (!supervisor_is_able(spare->pid)) {
        kill_spare(spare);
        return false;
    }
    *born = (struct born){spare->pid, spare->pidfd, spare->birth_socket};
    *spare = (struct spare){.pidfd = -1};
    show(s, child, 0);
    return true;
}

static void forget(struct supervisor *s, struct child *child)
{
    close(child->spare.pidfd);
    close(child->spare.birth_socket);
    child->spare.pidfd = -1;
    show(s, child, 0);
}

void supervisor_on_spare_death(struct supervisor *s, struct child *child)
{
    struct spare *spare = &child->spare;
    uint64_t now_ns = clock_ns(), wait_ns = 0;
    siginfo_t info = {0};
    waitid(P_PIDFD, (id_t)spare->pidfd, &info,
           WEXITED); /* or somebody else's, who started it: it is gone all the same */
    if (spare->is_new && supervisor_is_preparing(s))
        supervisor_end_upgrade(s, "one of the new programs ended before it was prepared; nothing has changed");
    log_warn("the spare of %s %u (process %d) ended before its turn", role_name(child->role), child->index,
             (int)spare->pid);
    spare->died_young = now_ns - spare->born_ns < LASTING_NS ? spare->died_young + 1 : 0;
    if (spare->died_young > 1)
        wait_ns = min_u64(BACK_OFF_NS << min_u64(spare->died_young - 2, 16), BACK_OFF_MAX_NS);
    spare->next_ns = now_ns + wait_ns;
    forget(s, child);
}

void supervisor_look_at_spares(struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        if (s->children[i].spare.pidfd >= 0 && !supervisor_is_able(s->children[i].spare.pid))
            kill_spare(&s->children[i].spare);
}

void supervisor_end_spares(struct supervisor *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        if (s->children[i].spare.pidfd >= 0)
            kill_spare(&s->children[i].spare);
    for (uint32_t i = 1; i < s->process_count; i++) {
        struct child *child = &s->children[i];
        if (child->spare.pidfd < 0)
            continue;
        struct pollfd poll_fd = {.fd = child->spare.pidfd, .events = POLLIN};
        while (poll(&poll_fd, 1, -1) != 1)
            check(errno == EINTR);
        waitid(P_PIDFD, (id_t)child->spare.pidfd, &(siginfo_t){0}, WEXITED);
        forget(s, child);
    }
}
