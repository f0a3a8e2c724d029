#include "engine/kv.h"

#include <stdlib.h>

#include "ipc/base.h"

void kv_init(struct kv *kv, uint32_t block_count)
{
    check(block_count > 0);
    *kv = (struct kv){.block_count = block_count,
                      .free_count = block_count,
                      .blocks = base_alloc(block_count * sizeof(*kv->blocks)),
                      .bucket_count = 1,
                      .last_free = block_count - 1};
    /* mostly nobody else is in a bucket: another one is another line of memory */
    while (kv->bucket_count / 4 < block_count)
        kv->bucket_count *= 2;
    kv->buckets = base_alloc(kv->bucket_count * sizeof(*kv->buckets));
    for (uint32_t i = 0; i < kv->bucket_count; i++)
        kv->buckets[i] = KV_NONE;
    for (uint32_t i = 0; i < block_count; i++)
        kv->blocks[i] = (struct kv_block){
            .next = i + 1 < block_count ? i + 1 : KV_NONE, .previous = i > 0 ? i - 1 : KV_NONE, .bucket_next = KV_NONE};
}

void kv_fini(struct kv *kv)
{
    free(kv->blocks);
    free(kv->buckets);
    *kv = (struct kv){0};
}

/* ---- the free list ---- */

static void link_between(struct kv *kv, uint32_t block, uint32_t previous, uint32_t next)
{
    kv->blocks[block].previous = previous;
    kv->blocks[block].next = next;
    *(previous != KV_NONE ? &kv->blocks[previous].next : &kv->first_free) = block;
    *(next != KV_NONE ? &kv->blocks[next].previous : &kv->last_free) = block;
    kv->free_count++;
}

static void unlink_free(struct kv *kv, uint32_t block)
{
    uint32_t previous = kv->blocks[block].previous, next = kv->blocks[block].next;
    *(previous != KV_NONE ? &kv->blocks[previous].next : &kv->first_free) = next;
    *(next != KV_NONE ? &kv->blocks[next].previous : &kv->last_free) = previous;
    kv->free_count--;
}

bool kv_take(struct kv *kv, uint32_t *table, uint32_t more)
{
    if (more > kv->free_count)
        return false;
    for (uint32_t i = 0; i < more; i++) {
        table[i] = kv->first_free;
        unlink_free(kv, table[i]);
        check(kv->blocks[table[i]].references == 0);
        kv->blocks[table[i]].references = 1;
        if (kv->blocks[table[i]].is_published)
            kv_unpublish(kv, table[i]);
    }
    return true;
}

void kv_give_back(struct kv *kv, const uint32_t *table, uint32_t count)
{
    uint32_t head = KV_NONE; /* the last block that went to the head: the next one goes behind it */
    while (count-- > 0) {
        uint32_t block = table[count];
        check(block < kv->block_count);
        check(kv->blocks[block].references > 0);
        if (--kv->blocks[block].references > 0)
            continue;
        if (kv->blocks[block].is_published) {
            link_between(kv, block, kv->last_free, KV_NONE);
        } else {
            link_between(kv, block, head, head != KV_NONE ? kv->blocks[head].next : kv->first_free);
            head = block;
        }
    }
}

void kv_hold(struct kv *kv, uint32_t block)
{
    check(block < kv->block_count);
    if (kv->blocks[block].references++ == 0)
        unlink_free(kv, block);
}

/* ---- hashes ---- */

static uint32_t *bucket_of(const struct kv *kv, const struct block_hash_shm *hash)
{
    return &kv->buckets[hash->low & (kv->bucket_count - 1)];
}

void kv_expect(const struct kv *kv, const struct block_hash_shm *hash)
{
    __builtin_prefetch(bucket_of(kv, hash), 1);
}

uint32_t kv_find(const struct kv *kv, const struct block_hash_shm *hash)
{
    uint32_t block = *bucket_of(kv, hash);
    while (block != KV_NONE && (kv->blocks[block].hash.low != hash->low || kv->blocks[block].hash.high != hash->high))
        block = kv->blocks[block].bucket_next;
    return block;
}

void kv_publish(struct kv *kv, uint32_t block, const struct block_hash_shm *hash)
{
    check(kv->blocks[block].references > 0);
    check(!kv->blocks[block].is_published);
    uint32_t *link = bucket_of(kv, hash);
    while (*link != KV_NONE)
        link = &kv->blocks[*link].bucket_next;
    *link = block;
    kv->blocks[block].is_published = true;
    kv->blocks[block].hash = *hash;
    kv->blocks[block].bucket_next = KV_NONE;
}

void kv_unpublish(struct kv *kv, uint32_t block)
{
    check(kv->blocks[block].is_published);
    uint32_t *link = bucket_of(kv, &kv->blocks[block].hash);
    while (*link != block)
        link = &kv->blocks[*link].bucket_next;
    *link = kv->blocks[block].bucket_next;
    kv->blocks[block].is_published = false;
    kv->blocks[block].bucket_next = KV_NONE;
}

void kv_unpublish_all(struct kv *kv)
{
    for (uint32_t block = 0; block < kv->block_count; block++)
        if (kv->blocks[block].is_published)
            kv_unpublish(kv, block);
}
