/* conns.h - connections in shared memory: the bytes of clients and to clients, and how far they have come.
 *
 * Used by: front, and its successors.   Owns: nothing; the memory is the region `conns`.   Never blocks.
 *
 * One slot per connection. Whoever holds the connection's descriptor finds here which bytes of the client have been
 * received and not yet answered, and behind which byte of the answer to go on; the answer's bytes themselves follow from
 * the journal and the token log (answer.h), or lie here. All places are counted in bytes of the stream since the client
 * connected, so a place is one word, and storing it twice does no harm.
 *
 *   in    origin <= message_first <= received              byte x lies in in[x - in_origin]
 *   out   out_begin <= interim_end <= sent, end of reply   byte x lies in out[x - out_begin], if the reply is CONN_FIXED
 *
 *   NO_REPLY ──message taken──► FIXED | ANSWER ──all bytes sent──► SENT ──next message──► NO_REPLY
 *
 * `reply` is the word that decides: what a state needs was stored before it. What the kernel has done is learnt from the
 * operation's result (io.h); a result that is found after a death is put in here just as in life, once: the serial number of
 * the operation in flight says whether it still counts.
 */
#ifndef EVENFLOW_CONNS_H
#define EVENFLOW_CONNS_H

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/answer.h"
#include "engine/http.h"
#include "ipc/plan.h"

#define CONN_OUT_BYTES 65536u  /* at least two pieces of an answer */
#define CONN_EXTRA     131072u /* of a slot, beyond one body: head, framing of the request, `out` */

enum conn_reply {
    CONN_NO_REPLY, /* a message is being received */
    CONN_FIXED,    /* the whole reply is in `out` */
    CONN_ANSWER,   /* of a request in the journal: rendered from its log as there is room */
    CONN_SENT,     /* the kernel has all of the reply; the next message begins at message_end */
};

/* An operation in flight on the connection, noted before the kernel is asked. */
struct conn_op_shm {
    uint32_t serial; /* 0: none */
    uint64_t base;   /* what the count was when it began */
};

struct conn_shm {
    alignas(128) uint32_t is_open; /* W: front (all fields)   R: its successor */
    uint32_t generation;           /* of the connection in this slot */
    uint32_t is_tcp;
    uint32_t last_serial;       /* of an operation of this slot */
    struct conn_op_shm receive; /* counts `received` */
    struct conn_op_shm send;    /* counts `sent` */
    uint64_t received;          /* bytes taken from the client */
    uint64_t sent;              /* bytes that the kernel took from us */

    uint64_t in_origin;
    uint64_t in_move_to; /* other than in_origin: bytes are being moved to the front of `in` */
    uint64_t in_moved;   /* of these, so many are there */
    uint64_t message_first;

    uint64_t out_begin;   /* where the output for the current message begins: an interim response, then the reply */
    uint64_t interim_end; /* where the reply begins */

    uint32_t reply;              /* enum conn_reply */
    uint32_t closes;             /* but for NO_REPLY: the connection ends with this reply */
    uint64_t message_end;        /* likewise */
    uint64_t reply_end;          /* FIXED */
    uint32_t request;            /* ANSWER: slot */
    uint32_t request_generation; /* likewise */
    struct answer_format format; /* likewise */
};

static_assert(sizeof(struct conn_shm) + CONN_OUT_BYTES + HTTP_HEAD_BYTES_MAX + HTTP_CHUNK_BYTES_MAX <= CONN_EXTRA,
              "a slot holds head, framing and out");
static_assert(CONN_OUT_BYTES >= 2 * ANSWER_PIECE_MAX, "a piece is rendered while another is sent");

/* Of the whole region. */
static inline uint64_t conns_region_bytes(const struct plan *plan)
{
    return (uint64_t)plan->connections_max * (plan->body_bytes_max + CONN_EXTRA);
}

static inline struct conn_shm *conns_slot(uint8_t *region, const struct plan *plan, uint32_t slot)
{
    /* slots start on 128 bytes: what rounding takes is within the region's spare page */
    uint64_t stride = (plan->body_bytes_max + CONN_EXTRA) & ~(uint64_t)127;
    return (struct conn_shm *)(void *)(region + slot * stride);
}

static inline uint32_t conns_in_bytes(const struct plan *plan)
{
    return ((plan->body_bytes_max + CONN_EXTRA) & ~127u) - CONN_OUT_BYTES - (uint32_t)sizeof(struct conn_shm);
}

/* Right behind the words of the connection: a token touches one page for both. */
static inline uint8_t *conns_out(struct conn_shm *conn)
{
    return (uint8_t *)(conn + 1);
}

static inline uint8_t *conns_in(struct conn_shm *conn)
{
    return conns_out(conn) + CONN_OUT_BYTES;
}

/* ---- a connection's life ---- */

/* Generations and serial numbers fit into an event's tag (io.h). */
#define CONN_TAG_MASK 0xffffffu

void conn_open(struct conn_shm *conn, bool is_tcp);
void conn_close(struct conn_shm *conn);

/* ---- operations ---- */

/* Notes an operation that the kernel will be asked for. Its serial number. */
uint32_t conn_begin_receive(struct conn_shm *conn);
uint32_t conn_begin_send(struct conn_shm *conn);

/* Its result: bytes (> 0), or that there were none. False: it is not the one in flight, and nothing was done. */
bool conn_end_receive(struct conn_shm *conn, uint32_t serial, int32_t result);
bool conn_end_send(struct conn_shm *conn, uint32_t serial, int32_t result);

/* ---- input ---- */

/* The bytes of the message that is being received. */
static inline const uint8_t *conn_message(struct conn_shm *conn)
{
    return conns_in(conn) + (conn->message_first - conn->in_origin);
}

static inline uint32_t conn_message_bytes(const struct conn_shm *conn)
{
    return (uint32_t)(conn->received - conn->message_first);
}

/* Room behind what has been received, and how much of it there is. */
static inline uint8_t *conn_room(struct conn_shm *conn)
{
    return conns_in(conn) + (conn->received - conn->in_origin);
}

static inline uint32_t conn_room_bytes(const struct conn_shm *conn, const struct plan *plan)
{
    return conns_in_bytes(plan) - (uint32_t)(conn->received - conn->in_origin);
}

/* Moves the message to the front of `in`; no receive is in flight. A death in between is made good by conn_end_move(). */
void conn_move_message(struct conn_shm *conn);
void conn_end_move(struct conn_shm *conn);

/* ---- output ---- */

/* `size` bytes of an interim response lie in `out` behind what it held; no reply has begun. */
void conn_put_interim(struct conn_shm *conn, uint32_t size);

/* The message up to message_end has its reply: `size` bytes in `out` behind the interim response, ... */
void conn_reply_fixed(struct conn_shm *conn, uint64_t message_end, bool closes, uint32_t size);
/* ... or the answer of a request, in the format that lies in conn->format already. */
void conn_reply_answer(struct conn_shm *conn, uint64_t message_end, bool closes, uint32_t request, uint32_t generation);

/* The request of a CONN_ANSWER was never accepted: its message has no reply. */
void conn_reply_withdraw(struct conn_shm *conn);

/* All of the reply is sent, or nobody wants it any more. */
void conn_reply_sent(struct conn_shm *conn);
/* It was the last one: whatever has come behind its message is of no use. No receive is in flight. */
void conn_drop_input(struct conn_shm *conn);
/* The next message. */
void conn_next_message(struct conn_shm *conn);

#endif
