/* kv.h - the block manager: which KV blocks are free, and who holds the others.
 *
 * Used by: sched.   Owns: the free list and the reference counts; block numbers are handed out, memory is the stages'.
 * Never blocks, never allocates after kv_init().
 *
 * Free blocks are a list, taken from its head. A sequence's blocks come back last one first, at the head: what was used
 * most lately is used next, as in vLLM for blocks without a cached prefix.
 */
#ifndef EVENFLOW_KV_H
#define EVENFLOW_KV_H

#include <stdbool.h>
#include <stdint.h>

struct kv_block {
    uint32_t next, previous; /* in the free list; KV_NONE at its ends */
    uint32_t references;     /* sequences that hold it; 0: free */
};

struct kv {
    struct kv_block *blocks;
    uint32_t block_count;
    uint32_t free_count;
    uint32_t first_free, last_free;
};

#define KV_NONE UINT32_MAX

/* All free, in the order 0, 1, 2, ... */
void kv_init(struct kv *kv, uint32_t block_count);
void kv_fini(struct kv *kv);

/* Takes `more` free blocks into table[0..more - 1]. False, and nothing is taken, when there are fewer. */
bool kv_take(struct kv *kv, uint32_t *table, uint32_t more);

/* Gives table[0..count - 1] back, the last one first. */
void kv_give_back(struct kv *kv, const uint32_t *table, uint32_t count);

#endif
