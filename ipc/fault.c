#include "ipc/fault.h"

const char *const fault_names[FAULT_COUNT] = {
#define X(id, name, by) name,
    FAULT_TABLE(X)
#undef X
};

const uint32_t fault_by[FAULT_COUNT] = {
#define X(id, name, by) by,
    FAULT_TABLE(X)
#undef X
};

void fault_order(struct fault_page_shm *page, uint32_t process, uint32_t point, uint32_t countdown, int signal)
{
    struct fault_order_shm *order = &page->orders[process];
    /* release, both: pairs with the acquire in obey(): what is meant before that it is */
    atomic_store_explicit(&order->countdown, 0, memory_order_release);
    order->point = point;
    order->signal = (uint32_t)signal;
    atomic_store_explicit(&order->countdown, countdown, memory_order_release);
}

uint32_t fault_order_left(const struct fault_page_shm *page, uint32_t process)
{
    /* acquire: pairs with the release in obey(): where it died before that it does */
    return atomic_load_explicit(&page->orders[process].countdown, memory_order_acquire);
}

bool fault_take_back(struct fault_page_shm *page, uint32_t process)
{
    /* acquire: as above */
    return atomic_exchange_explicit(&page->orders[process].countdown, 0, memory_order_acquire) > 0;
}

uint64_t fault_hits(const struct fault_page_shm *page, uint32_t process, uint32_t point)
{
    /* relaxed, here and below: statistics */
    return atomic_load_explicit(&page->hits[process][point], memory_order_relaxed);
}

uint64_t fault_deaths(const struct fault_page_shm *page, uint32_t process, uint32_t point)
{
    return atomic_load_explicit(&page->deaths[process][point], memory_order_relaxed);
}

#ifdef EVENFLOW_FAULTS
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/clock.h"

void (*fault_hook)(const char *name);
static struct fault_page_shm *page;
static uint32_t own;

void fault_begin(uint32_t process)
{
    const char *path = getenv("EVENFLOW_FAULT_PAGE");
    if (path == NULL || process >= FAULT_PROCESSES_MAX)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *memory = fd >= 0 ? mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    check(memory != MAP_FAILED);
    close(fd);
    page = memory;
    own = process;
}

static void obey(enum fault_id point)
{
    struct fault_order_shm *order = &page->orders[own];
    atomic_fetch_add_explicit(&page->hits[own][point], 1, memory_order_relaxed); /* relaxed: statistics */
    /* acquire: pairs with the release in fault_order() */
    uint32_t left = atomic_load_explicit(&order->countdown, memory_order_acquire);
    if (left == 0 || (order->point != FAULT_ANYWHERE && order->point != point))
        return;
    if (left == 1) {
        order->died_at = point;
        order->died_ns = clock_ns();
        order->died_pid = (uint32_t)getpid();
    }
    /* release: pairs with the acquire in fault_order_left() and fault_take_back(); it may have been taken back meanwhile */
    if (!atomic_compare_exchange_strong_explicit(&order->countdown, &left, left - 1, memory_order_release,
                                                 memory_order_relaxed) ||
        left > 1)
        return;
    atomic_fetch_add_explicit(&page->deaths[own][point], 1, memory_order_relaxed);
    if (order->signal == SIGILL)
        __builtin_trap(); /* a fault of its own, not a signal that somebody sent */
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), (int)order->signal);
}

void fault_point(enum fault_id point)
{
    if (fault_hook != NULL)
        fault_hook(fault_names[point]);
    if (page != NULL)
        obey(point);
}
#endif
