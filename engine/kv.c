#include "engine/kv.h"

#include <stdlib.h>

#include "ipc/base.h"

void kv_init(struct kv *kv, uint32_t block_count)
{
    check(block_count > 0);
    *kv = (struct kv){.block_count = block_count,
                      .free_count = block_count,
                      .blocks = base_alloc(block_count * sizeof(*kv->blocks)),
                      .last_free = block_count - 1};
    for (uint32_t i = 0; i < block_count; i++)
        kv->blocks[i] =
            (struct kv_block){.next = i + 1 < block_count ? i + 1 : KV_NONE, .previous = i > 0 ? i - 1 : KV_NONE};
}

void kv_fini(struct kv *kv)
{
    free(kv->blocks);
    *kv = (struct kv){0};
}

static uint32_t pop_first(struct kv *kv)
{
    uint32_t block = kv->first_free;
    kv->first_free = kv->blocks[block].next;
    if (kv->first_free != KV_NONE)
        kv->blocks[kv->first_free].previous = KV_NONE;
    else
        kv->last_free = KV_NONE;
    kv->free_count--;
    return block;
}

static void push_first(struct kv *kv, uint32_t block)
{
    kv->blocks[block].next = kv->first_free;
    kv->blocks[block].previous = KV_NONE;
    if (kv->first_free != KV_NONE)
        kv->blocks[kv->first_free].previous = block;
    else
        kv->last_free = block;
    kv->first_free = block;
    kv->free_count++;
}

bool kv_take(struct kv *kv, uint32_t *table, uint32_t more)
{
    if (more > kv->free_count)
        return false;
    for (uint32_t i = 0; i < more; i++) {
        table[i] = pop_first(kv);
        check(kv->blocks[table[i]].references == 0);
        kv->blocks[table[i]].references = 1;
    }
    return true;
}

void kv_give_back(struct kv *kv, const uint32_t *table, uint32_t count)
{
    while (count-- > 0) {
        uint32_t block = table[count];
        check(block < kv->block_count);
        check(kv->blocks[block].references > 0);
        if (--kv->blocks[block].references == 0)
            push_first(kv, block);
    }
}
