/* kv.h - the block manager: which KV blocks are free, who holds the others, and which still hold a known prefix.
 *
 * Used by: sched.   Owns: the free list, reference counts and the table of hashes; block numbers are handed out, memory is
 * the stages'.   Never blocks, never allocates after kv_init().
 *
 * Free blocks are a list, taken from its head; taking one drops its hash. A block is published under the hash of the prefix
 * that it ends (prefix.h); free or held, it can be found by it until it is taken for something else. Blocks come back last one
 * first: those with a hash go to the tail, so that what was used longest ago goes first and the end of a sequence before its
 * beginning; those without go to the head. This is vLLM's order (vllm/v1/core/block_pool.py).
 */
#ifndef EVENFLOW_KV_H
#define EVENFLOW_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/layout.h"

struct kv_block {
    uint32_t next, previous; /* in the free list; KV_NONE at its ends */
    uint32_t references;     /* sequences that hold it; 0: free */
    bool is_published;
    struct block_hash_shm hash;
    uint32_t bucket_next; /* of the same bucket, in the order of publication */
};

struct kv {
    struct kv_block *blocks;
    uint32_t *buckets; /* (bucket_count): first block, KV_NONE */
    uint32_t bucket_count;
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

/* The block published first under this hash; KV_NONE: there is none. */
uint32_t kv_find(const struct kv *kv, const struct block_hash_shm *hash);

/* This hash will be looked for, or published, soon: its place is fetched meanwhile. */
void kv_expect(const struct kv *kv, const struct block_hash_shm *hash);

/* One more sequence holds a block that was found. */
void kv_hold(struct kv *kv, uint32_t block);

/* A held block can be found from now on. Others may be published under the same hash. */
void kv_publish(struct kv *kv, uint32_t block, const struct block_hash_shm *hash);

/* No longer: what it was to hold will not be computed. */
void kv_unpublish(struct kv *kv, uint32_t block);
void kv_unpublish_all(struct kv *kv);

#endif
