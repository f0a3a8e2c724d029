/* io.h - what the front asks of the kernel, and how it hears of it: one interface, one back end so far (io_uring.c).
 *
 * Used by: front.   Owns: its kernel ring; descriptors and buffers are the caller's.   Blocks: io_turn() when it may.
 *
 * Operations are named by (kind, slot, generation), never by a pointer: an event of a connection that is gone is
 * recognised by its generation. Per connection at most one operation of each kind is in flight, and its buffer must stay
 * where it is until the operation's event. Nothing is submitted before io_turn().
 */
#ifndef EVENFLOW_IO_H
#define EVENFLOW_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

enum io_kind {
    IO_ACCEPT = 1, /* result: a new connection's descriptor; is_last: accepting has ended, ask again */
    IO_RECEIVE,    /* result: bytes, 0: the other side sends no more */
    IO_SEND,       /* result: bytes that the kernel has taken; may be fewer than asked */
    IO_HANGUP,     /* result: 1, the other side has closed the connection for good; 0, it only sends no more */
    IO_CANCEL,     /* a cancellation is done; the operations it ended have events of their own */
    IO_BELL,       /* the doorbell was rung */
    IO_TIMER,      /* the deadline has passed */
};

struct io_event {
    enum io_kind kind;
    uint32_t slot;
    uint32_t generation; /* of the connection, its low 24 bits */
    int32_t result;      /* or -errno */
    bool is_last;        /* no more events of this operation */
};

#define IO_GENERATION_MASK 0xffffffu

struct io;

/* 0, or -errno with err: which limit or refusal of the kernel it was. */
int io_open(struct io **io, uint32_t connections_max, struct err *err);
void io_close(struct io *io);

/* Accepts until an event with is_last (or io_accept_stop()). */
void io_accept(struct io *io, int listener);
void io_accept_stop(struct io *io);

/* Events of the bell, until io_close(). The eventfd is never read: each ring is an event, and more is not needed. */
void io_bell(struct io *io, int bell_fd);

/* One event when the deadline (clock_ns()) has passed. One timer at most is in flight. */
void io_timer(struct io *io, uint64_t deadline_ns);

void io_receive(struct io *io, uint32_t slot, uint32_t generation, int fd, void *data, size_t size);
void io_send(struct io *io, uint32_t slot, uint32_t generation, int fd, const void *data, size_t size);
void io_watch_hangup(struct io *io, uint32_t slot, uint32_t generation, int fd);

/* Ends everything in flight on this descriptor. */
void io_cancel(struct io *io, uint32_t slot, uint32_t generation, int fd);

/* Submits what was asked for and takes what is done, at most `max` events; sleeps until there is one if it may. */
uint32_t io_turn(struct io *io, bool may_sleep, struct io_event *events, uint32_t max);

#endif
