#include "ipc/ring.h"

#include <string.h>

#include "ipc/base.h"
#include "ipc/fault.h"

static void check_slot_count(uint32_t slot_count)
{
    check(slot_count > 0);
    check((slot_count & (slot_count - 1)) == 0);
}

void ring_producer_attach(struct ring_producer *ring, struct ring_slot_shm *slots, uint32_t slot_count,
                          const _Atomic uint64_t *consumed)
{
    check_slot_count(slot_count);
    *ring = (struct ring_producer){.slots = slots, .consumed = consumed, .slot_count = slot_count};
    for (uint32_t i = 0; i < slot_count; i++) {
        /* relaxed: only the producer, dead or ourselves, ever wrote these words */
        uint64_t commit = atomic_load_explicit(&slots[i].commit, memory_order_relaxed);
        ring->next = max_u64(ring->next, commit);
    }
    /* acquire: as in ring_push() */
    ring->consumed_seen = atomic_load_explicit(consumed, memory_order_acquire);
}

void ring_consumer_attach(struct ring_consumer *ring, const struct ring_slot_shm *slots, uint32_t slot_count,
                          _Atomic uint64_t *consumed)
{
    check_slot_count(slot_count);
    *ring = (struct ring_consumer){.slots = slots, .consumed = consumed, .slot_count = slot_count};
    /* relaxed: our own word, written by us or by our predecessor */
    ring->next = atomic_load_explicit(consumed, memory_order_relaxed);
}

bool ring_is_full(struct ring_producer *ring)
{
    if (ring->next - ring->consumed_seen < ring->slot_count)
        return false;
    /* acquire: pairs with the release in ring_release(): the consumer's reads of the slot before our writes to it */
    ring->consumed_seen = atomic_load_explicit(ring->consumed, memory_order_acquire);
    return ring->next - ring->consumed_seen >= ring->slot_count;
}

enum ring_result ring_push(struct ring_producer *ring, const void *payload)
{
    if (ring_is_full(ring))
        return RING_FULL;
    struct ring_slot_shm *slot = &ring->slots[ring->next & (ring->slot_count - 1)];
    memcpy(slot->payload, payload, RING_PAYLOAD_BYTES);
    /* release: pairs with the acquire in ring_look(): payload before commit */
    fault_point(FAULT_RING_PUSH);
    atomic_store_explicit(&slot->commit, ring->next + 1, memory_order_release);
    fault_point(FAULT_RING_PUSH);
    ring->next++;
    return RING_OK;
}

enum ring_result ring_look(const struct ring_slot_shm *slots, uint32_t slot_count, uint64_t position, void *payload)
{
    const struct ring_slot_shm *slot = &slots[position & (slot_count - 1)];
    /* acquire: pairs with the release in ring_push(): payload after commit */
    if (atomic_load_explicit(&slot->commit, memory_order_acquire) != position + 1)
        return RING_EMPTY;
    memcpy(payload, slot->payload, RING_PAYLOAD_BYTES);
    return RING_OK;
}

enum ring_result ring_peek(const struct ring_consumer *ring, void *payload)
{
    return ring_look(ring->slots, ring->slot_count, ring->next, payload);
}

void ring_release(struct ring_consumer *ring)
{
    ring->next++;
    /* release: pairs with the acquire in ring_push(): our reads of the slot, and everything that was published because of
     * them, before the licence to overwrite it */
    fault_point(FAULT_RING_RELEASE);
    atomic_store_explicit(ring->consumed, ring->next, memory_order_release);
    fault_point(FAULT_RING_RELEASE);
}

bool ring_is_empty(const struct ring_consumer *ring)
{
    const struct ring_slot_shm *slot = &ring->slots[ring->next & (ring->slot_count - 1)];
    /* acquire: as in ring_look(); the answer decides about sleeping, see bell.h */
    return atomic_load_explicit(&slot->commit, memory_order_acquire) != ring->next + 1;
}
