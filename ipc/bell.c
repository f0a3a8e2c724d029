#include "ipc/bell.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "ipc/fault.h"

void bell_announce(struct bell *bell)
{
    /* relaxed, then a full fence: pairs with the fence in bell_ring(). Either the waker sees 1, or our next look sees
     * its data. */
    atomic_store_explicit(bell->sleeping, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

void bell_retract(struct bell *bell)
{
    /* relaxed: a waker that still sees 1 rings for nothing, which is harmless */
    atomic_store_explicit(bell->sleeping, 0, memory_order_relaxed);
}

void bell_wait(struct bell *bell)
{
    uint64_t rings;
    ssize_t got;
    fault_point(FAULT_BELL_WAIT);
    do {
        got = read(bell->fd, &rings, sizeof(rings));
    } while (got < 0 && errno == EINTR);
    check(got == sizeof(rings));
    fault_point(FAULT_BELL_WAIT);
    bell_retract(bell);
}

bool bell_wait_until(struct bell *bell, uint64_t moment_ns)
{
    struct pollfd poll_fd = {.fd = bell->fd, .events = POLLIN};
    for (uint64_t now_ns; (now_ns = clock_ns()) < moment_ns;) {
        uint64_t left_ns = moment_ns - now_ns;
        const struct timespec left = {(time_t)(left_ns / 1000000000u), (long)(left_ns % 1000000000u)};
        int rung = ppoll(&poll_fd, 1, &left, NULL);
        check(rung >= 0 || errno == EINTR);
        if (rung == 1) {
            bell_drain(bell);
            return true;
        }
    }
    return false;
}

void bell_drain(struct bell *bell)
{
    struct pollfd poll_fd = {.fd = bell->fd, .events = POLLIN};
    if (poll(&poll_fd, 1, 0) == 1) {
        uint64_t rings;
        ssize_t got = read(bell->fd, &rings, sizeof(rings));
        check(got == sizeof(rings) || errno == EINTR);
    }
}

void bell_ring_always(const struct bell_pull *pull)
{
    if (pull->fd < 0)
        return; /* memory of this process alone: nobody sleeps */
    const uint64_t one = 1;
    ssize_t put;
    fault_point(FAULT_BELL_RING);
    do {
        put = write(pull->fd, &one, sizeof(one));
    } while (put < 0 && errno == EINTR);
    check(put == sizeof(one));
    fault_point(FAULT_BELL_RING);
}

void bell_ring(const struct bell_pull *pull)
{
    if (pull->sleeping == NULL) {
        bell_ring_always(pull);
        return;
    }
    /* Full fence: pairs with the one in bell_announce(): our commit before this look at the word. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(pull->sleeping, memory_order_relaxed) != 0)
        bell_ring_always(pull);
}
