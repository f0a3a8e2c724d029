/* conns.h - connections in shared memory: the bytes of clients and to clients, and how far they have come.
 *
 * Used by: front, and its successors.   Owns: nothing; the memory is the region `conns`.   Never blocks.
 *
 * One slot per connection. With the counts and the buffers, whoever holds the connection's descriptor can parse the
 * received bytes again, render the answer again (answer.h) and go on behind the last byte that the kernel took.
 *
 *   slot:  [ struct conn_shm | in: bytes received, not yet parsed to the end | out: bytes rendered, not yet sent ]
 */
#ifndef EVENFLOW_CONNS_H
#define EVENFLOW_CONNS_H

#include <assert.h>
#include <stdalign.h>
#include <stdint.h>

#include "engine/answer.h"
#include "engine/http.h"
#include "ipc/plan.h"

#define CONN_OUT_BYTES 65536u  /* at least two pieces of an answer */
#define CONN_EXTRA     131072u /* of a slot, beyond one body: head, framing of the request, `out` */

enum conn_reply {
    CONN_NO_REPLY,
    CONN_FIXED,  /* all of it is in `out` */
    CONN_ANSWER, /* of a request in the journal: rendered from its log as there is room */
};

struct conn_shm {
    alignas(128) uint32_t is_open; /* W: front (all fields)   R: its successor */
    uint32_t generation;
    uint64_t received;         /* bytes taken from the client since it connected */
    uint64_t sent;             /* bytes that the kernel took from us */
    uint32_t in_first, in_end; /* of `in`: the message that is being read or answered starts at in_first */
    uint32_t out_first, out_end;
    uint32_t reply;              /* enum conn_reply */
    uint32_t request;            /* CONN_ANSWER: slot */
    uint32_t request_generation; /* likewise */
    uint64_t answer_first;       /* likewise: `sent` when the answer's first byte goes out */
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

static inline uint8_t *conns_in(struct conn_shm *conn)
{
    return (uint8_t *)(conn + 1);
}

static inline uint8_t *conns_out(struct conn_shm *conn, const struct plan *plan)
{
    return (uint8_t *)(conn + 1) + conns_in_bytes(plan);
}

#endif
