/* front_keep.c - connections in somebody else's keeping: see keep.h. Orders are collected during a turn and given at its
 * end, so that one system call does for all of a turn's connections. */
#include <errno.h>
#include <string.h>

#include "engine/front_inside.h"
#include "ipc/clock.h"
#include "ipc/log.h"

#define DROP_LATER_NS 50000000ull            /* a DROP waits so long for something to go with */
#define SENT_MAX      (KEEP_ENTRIES_MAX / 2) /* entries that may wait for the keeper */

void front_keep_open(struct front *f)
{
    /* a HOLD and a DROP of every slot in a turn; while the keeper takes none, another DROP of each at most, since no
     * connection is opened; and a HOLD of all again with the END of it, which takes the place of all that was before */
    f->keep_order_max = 4 * f->plan->connections_max + 1;
    f->keep_orders = base_alloc(f->keep_order_max * sizeof(*f->keep_orders));
}

void front_keep_order(struct front *f, enum keep_kind kind, uint32_t slot, uint32_t generation)
{
    check(f->keep_count < f->keep_order_max);
    if (f->keep_count == 0)
        f->keep_drop_ns = clock_ns() + DROP_LATER_NS;
    f->keep_hold_count += kind != KEEP_DROP;
    f->keep_orders[(f->keep_first + f->keep_count++) % f->keep_order_max] = (struct keep_order){kind, slot, generation};
}

static const struct keep_order *order_at(const struct front *f, uint32_t index)
{
    return &f->keep_orders[(f->keep_first + index) % f->keep_order_max];
}

/* The connection of a HOLD may be gone by now, and another in its slot. */
static bool is_current(const struct front *f, const struct keep_order *order)
{
    const struct conn_shm *shm = shm_of(f, order->slot);
    return shm->is_open && shm->generation == order->generation && f->connections[order->slot].phase != CONN_CLOSING;
}

/* As many orders as a message holds. Their number. */
static uint32_t write_message(const struct front *f, struct keep_message *message, int *fds)
{
    uint32_t count = 0;
    keep_begin(message);
    for (; count < f->keep_count; count++) {
        const struct keep_order *order = order_at(f, count);
        if (order->kind == KEEP_HOLD && !is_current(f, order))
            continue;
        int fd = order->kind == KEEP_HOLD ? f->connections[order->slot].fd : -1;
        if (!keep_add(message, fds, order->kind, order->slot, order->generation, fd))
            break;
    }
    return count;
}

/* These orders have been carried out. */
static void finish(struct front *f, uint32_t count)
{
    for (; count > 0; count--) {
        const struct keep_order order = *order_at(f, 0);
        f->keep_first = (f->keep_first + 1) % f->keep_order_max;
        f->keep_count--;
        f->keep_hold_count -= order.kind != KEEP_DROP;
        if (order.kind == KEEP_HOLD && is_current(f, &order) && f->connections[order.slot].phase == CONN_KEEPING)
            front_connection_begin(f, order.slot);
    }
}

uint64_t front_keep_deadline(const struct front *f)
{
    return f->keep_count == 0 || f->is_keeper_full ? IO_NO_TIMEOUT : f->keep_drop_ns;
}

/* Connections wait for a HOLD; nobody waits for a DROP. */
static bool is_time(const struct front *f)
{
    return f->keep_hold_count > 0 || f->keep_count >= SENT_MAX || (f->keep_count > 0 && clock_ns() >= f->keep_drop_ns);
}

static bool has_end(const struct keep_message *message)
{
    bool has = false;
    for (uint32_t i = 0; i < message->entry_count; i++)
        has = has || message->entries[i].kind == KEEP_END;
    return has;
}

void front_keep_flush(struct front *f)
{
    while (is_time(f) && !f->is_keeper_full) {
        struct keep_message message;
        int fds[KEEP_ENTRIES_MAX];
        uint32_t count = write_message(f, &message, fds);
        int ret = 0;
        if (message.entry_count > 0 && f->arena->keep >= 0 && !f->is_keeper_gone)
            ret = keep_send(f->arena->keep, &message, fds);
        f->keep_sent += message.entry_count;
        /* what is sent is safe, and need not be looked at, but for the room that it takes, or when the keeper waits for it */
        if (ret == -EAGAIN || f->keep_sent > SENT_MAX || has_end(&message)) {
            bell_ring(&f->supervisor);
            f->keep_sent = 0;
        }
        if (ret == -EAGAIN) {
            f->is_keeper_full = true;
            io_watch_room(f->io, f->arena->keep);
            return;
        }
        if (ret != 0) { /* better to serve them than not to: they are lost only if this process dies as well */
            log_warn("nobody keeps client connections (%s): they would not survive this process", strerror(-ret));
            f->is_keeper_gone = true;
        }
        finish(f, count);
    }
}

void front_keep_all_again(struct front *f)
{
    f->is_keeper_gone = false;
    f->keep_count = f->keep_hold_count = 0; /* a HOLD comes again; what a DROP is about a new keeper does not have */
    for (uint32_t slot = 0; slot < f->plan->connections_max; slot++)
        if (f->connections[slot].phase != CONN_FREE)
            front_keep_order(f, KEEP_HOLD, slot, shm_of(f, slot)->generation);
    front_keep_order(f, KEEP_END, 0, f->sup_epoch);
}
