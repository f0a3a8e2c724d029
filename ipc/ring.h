/* ring.h - single-producer single-consumer ring of 64-byte slots in shared memory.
 *
 * Used by: front, sched, stages.   Owns: nothing; the memory belongs to the regions.   Never blocks (see bell.h).
 * Producer and consumer are fixed for life. The slots lie in the producer's region, the word `consumed` in the
 * consumer's, so that each side maps the other's memory read-only.
 *
 *   slot k:  [ commit = k + 1 when its payload is there | 56 bytes of payload ]   the commit word travels with the data
 *
 * Positions run freely from 0 and never repeat, so nothing needs zeroing and a successor finds its place from the
 * slots: the producer's is the largest commit, the consumer's is its own `consumed`.
 */
#ifndef EVENFLOW_RING_H
#define EVENFLOW_RING_H

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RING_PAYLOAD_BYTES 56u

struct ring_slot_shm {
    alignas(64) _Atomic uint64_t commit; /* W: producer, release   R: consumer, acquire */
    uint8_t payload[RING_PAYLOAD_BYTES]; /* W: producer            R: consumer, after commit */
};
static_assert(sizeof(struct ring_slot_shm) == 64, "layout is shared by processes");

enum ring_result { RING_OK, RING_FULL, RING_EMPTY };

struct ring_producer {
    struct ring_slot_shm *slots;
    const _Atomic uint64_t *consumed; /* W: consumer */
    uint64_t next;                    /* position of the next push */
    uint64_t consumed_seen;           /* what `consumed` was when last read */
    uint32_t slot_count;              /* power of two */
};

struct ring_consumer {
    const struct ring_slot_shm *slots;
    _Atomic uint64_t *consumed;
    uint64_t next;
    uint32_t slot_count;
};

/* Attaching finds the position from shared memory, so it serves the first life and every later one. */
void ring_producer_attach(struct ring_producer *ring, struct ring_slot_shm *slots, uint32_t slot_count,
                          const _Atomic uint64_t *consumed);
void ring_consumer_attach(struct ring_consumer *ring, const struct ring_slot_shm *slots, uint32_t slot_count,
                          _Atomic uint64_t *consumed);

/* Copies RING_PAYLOAD_BYTES in. RING_FULL: nothing changed, retry after the consumer moved. */
enum ring_result ring_push(struct ring_producer *ring, const void *payload);

/* Producer: the next push would fail. */
bool ring_is_full(struct ring_producer *ring);

/* Copies the oldest payload out and leaves it in the ring: what was done with it must be published before
 * ring_release(), so that a successor finds either the entry or its effect. */
enum ring_result ring_peek(const struct ring_consumer *ring, void *payload);
void ring_release(struct ring_consumer *ring);

bool ring_is_empty(const struct ring_consumer *ring);

/* Copies out what stands at a position, for either side: RING_EMPTY when it is not there, or not any more. */
enum ring_result ring_look(const struct ring_slot_shm *slots, uint32_t slot_count, uint64_t position, void *payload);

#endif
