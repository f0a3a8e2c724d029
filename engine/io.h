/* io.h - what the front asks of the kernel, and how it hears of it: one interface, two back ends.
 *
 * Used by: front.   Owns: what its back end opened; descriptors and buffers are the caller's.   Blocks: io_turn() when it may.
 *
 *   io_uring.c   an io_uring whose queues lie in the region `io`: one system call a turn
 *   io_epoll.c   epoll, recvmmsg and sendmmsg of one message each, whose header lies there: for systems without the former
 *
 * Operations are named by (kind, slot, tag), never by a pointer; the tag, 24 bits, is the caller's way to recognise them.
 * Per slot at most one operation of each kind is in flight, and its buffer must stay where it is until the operation's
 * event. Nothing is submitted before io_turn().
 *
 * With both back ends it is the kernel that writes the result of a receive or a send into shared memory, before the
 * process can be gone. After a death the region says of every operation whether it happened, and with how many bytes:
 * io_past(). Every life has fresh memory, since the kernel may still write into a dead one's.
 */
#ifndef EVENFLOW_IO_H
#define EVENFLOW_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/layout.h"

enum io_kind {
    IO_ACCEPT = 1, /* slot: listener; result: a new connection's descriptor; is_last: accepting has ended, ask again */
    IO_RECEIVE,    /* result: bytes, 0: the other side sends no more */
    IO_SEND,       /* result: bytes that the kernel has taken; may be fewer than asked */
    IO_HANGUP,     /* result: 1, the other side has closed the connection for good; 0, it only sends no more */
    IO_BELL,       /* the doorbell was rung */
    IO_ROOM,       /* the descriptor takes more */
};

struct io_event {
    enum io_kind kind;
    uint32_t slot;
    uint32_t tag;
    int32_t result; /* or -errno */
    bool is_last;   /* no more events of this operation */
};

#define IO_TAG_MASK   0xffffffu
#define IO_LISTENERS  2u /* Unix socket, TCP */
#define IO_NO_SLEEP   0u
#define IO_NO_TIMEOUT UINT64_MAX

struct io;

/* On the region `io` of this life, which is zero. IO_ANY: the first of io_uring and epoll that this system has; which one it
 * became and why is logged. 0, or -errno with err: which limit or refusal of the kernel it was. */
int io_open(struct io **io, enum io_choice choice, uint8_t *region, const struct layout *layout,
            uint32_t connections_max, struct err *err);
const char *io_name(const struct io *io);
void io_close(struct io *io);

/* A listening socket, made to block or not as the back end needs it; before the sandbox. */
void io_listener(struct io *io, uint32_t listener, int fd);

/* Accepts until an event with is_last (or io_accept_stop()). */
void io_accept(struct io *io, uint32_t listener);
void io_accept_stop(struct io *io, uint32_t listener);

/* Events of the bell, until io_close(). The eventfd is never read: each ring is an event, and more is not needed. */
void io_bell(struct io *io, int bell_fd);

/* One event when the descriptor takes more. */
void io_watch_room(struct io *io, int fd);

void io_receive(struct io *io, uint32_t slot, uint32_t tag, int fd, void *data, size_t size);
void io_send(struct io *io, uint32_t slot, uint32_t tag, int fd, const void *data, size_t size);
/* One event, or several. is_half_closed: that it sends no more has been reported, and is not what is waited for. */
void io_watch_hangup(struct io *io, uint32_t slot, uint32_t tag, int fd, bool is_half_closed);

/* Ends the watch; its last event comes as ever. The connection is over, shut down or left by the other side, so what else
 * is in flight on it comes to its end as well. */
void io_unwatch_hangup(struct io *io, uint32_t slot, uint32_t tag);

/* Submits what was asked for and takes what is done, at most `max` events. If there is nothing it sleeps until there is, or
 * until the deadline (clock_ns()); IO_NO_SLEEP: not at all. What the events of the turn before said has been noted by now:
 * they are given up. */
uint32_t io_turn(struct io *io, uint64_t deadline_ns, struct io_event *events, uint32_t max);

/* What came of a former life's receives and sends, from its region: each result that the kernel wrote, whether that life
 * had noticed it or not, in the order of completion. */
typedef void io_past_fn(void *context, const struct io_event *event);
void io_past(const uint8_t *region, const struct layout *layout, uint32_t connections_max, io_past_fn *take,
             void *context);

#endif
