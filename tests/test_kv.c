#include <criterion/criterion.h>

#include "engine/kv.h"
#include "ipc/base.h"

Test(kv, blocks_come_in_order_and_the_last_given_back_comes_first)
{
    struct kv kv;
    uint32_t a[4], b[4];
    kv_init(&kv, 8);
    cr_assert(kv_take(&kv, a, 3));
    cr_assert(a[0] == 0 && a[1] == 1 && a[2] == 2);
    cr_assert(kv_take(&kv, b, 2));
    kv_give_back(&kv, a, 3);
    cr_assert_eq(kv.free_count, 6);
    cr_assert(kv_take(&kv, a, 4));
    cr_assert(a[0] == 2 && a[1] == 1 && a[2] == 0 && a[3] == 5);
    kv_fini(&kv);
}

Test(kv, too_many_takes_nothing)
{
    struct kv kv;
    uint32_t table[8];
    kv_init(&kv, 4);
    cr_assert(kv_take(&kv, table, 3));
    cr_assert_not(kv_take(&kv, table + 3, 2));
    cr_assert_eq(kv.free_count, 1);
    cr_assert(kv_take(&kv, table + 3, 1));
    cr_assert_not(kv_take(&kv, table + 4, 1));
    cr_assert(kv_take(&kv, table + 4, 0));
    kv_give_back(&kv, table, 4);
    cr_assert_eq(kv.free_count, 4);
    kv_fini(&kv);
}

Test(kv, no_block_has_two_owners)
{
    struct kv kv;
    enum { TABLES = 7, BLOCKS = 50 };
    uint32_t tables[TABLES][BLOCKS], counts[TABLES] = {0};
    uint64_t random = 1;
    kv_init(&kv, BLOCKS);
    for (int round = 0; round < 20000; round++) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t t = (uint32_t)(random >> 40) % TABLES, more = (uint32_t)(random >> 50) % 9;
        if (counts[t] > 0 && (random >> 33) % 3 == 0) {
            kv_give_back(&kv, tables[t], counts[t]);
            counts[t] = 0;
        } else if (kv_take(&kv, tables[t] + counts[t], more)) {
            counts[t] += more;
        }
        uint8_t owners[BLOCKS] = {0};
        uint32_t held = 0;
        for (uint32_t i = 0; i < TABLES; i++)
            for (uint32_t j = 0; j < counts[i]; j++, held++)
                cr_assert_eq(owners[tables[i][j]]++, 0);
        cr_assert_eq(held + kv.free_count, BLOCKS);
    }
    kv_fini(&kv);
}

static struct block_hash_shm hash(uint64_t n)
{
    return (struct block_hash_shm){.low = n, .high = ~n};
}

Test(kv, a_published_block_is_found_until_it_is_taken_again)
{
    struct kv kv;
    uint32_t table[4], other[4];
    kv_init(&kv, 4);
    cr_assert(kv_take(&kv, table, 2));
    struct block_hash_shm first = hash(5), second = hash(5 + (1 << 16)),
                          none = hash(77); /* the first two share a bucket */
    kv_publish(&kv, table[0], &first);
    kv_publish(&kv, table[1], &second);
    cr_assert_eq(kv_find(&kv, &first), table[0]);
    cr_assert_eq(kv_find(&kv, &second), table[1]);
    cr_assert_eq(kv_find(&kv, &none), KV_NONE);
    kv_give_back(&kv, table, 2);
    cr_assert_eq(kv_find(&kv, &first), table[0]); /* free, and still known */
    kv_hold(&kv, table[0]);
    cr_assert_eq(kv.free_count, 3);
    cr_assert(kv_take(&kv, other, 3)); /* takes the one that nobody holds */
    cr_assert_eq(kv_find(&kv, &second), KV_NONE);
    cr_assert_eq(kv_find(&kv, &first), table[0]);
    kv_fini(&kv);
}

Test(kv, known_blocks_are_evicted_oldest_and_tail_first_and_after_unknown_ones)
{
    struct kv kv;
    uint32_t a[3], b[3], taken[6];
    kv_init(&kv, 6);
    cr_assert(kv_take(&kv, a, 3));
    cr_assert(kv_take(&kv, b, 3));
    for (uint32_t i = 0; i < 2; i++) {
        struct block_hash_shm x = hash(10 + i), y = hash(20 + i);
        kv_publish(&kv, a[i], &x);
        kv_publish(&kv, b[i], &y);
    }
    kv_give_back(&kv, a, 3);
    kv_give_back(&kv, b, 3);
    cr_assert(kv_take(&kv, taken, 6));
    const uint32_t expected[6] = {b[2], a[2], a[1], a[0], b[1], b[0]};
    cr_assert_arr_eq(taken, expected, sizeof(expected));
    kv_fini(&kv);
}

Test(kv, of_two_blocks_with_one_hash_the_one_published_first_is_found)
{
    struct kv kv;
    uint32_t table[2], other[2];
    kv_init(&kv, 2);
    cr_assert(kv_take(&kv, table, 2));
    struct block_hash_shm same = hash(3);
    kv_publish(&kv, table[1], &same);
    kv_publish(&kv, table[0], &same);
    cr_assert_eq(kv_find(&kv, &same), table[1]);
    kv_give_back(&kv, &table[1], 1);
    cr_assert(kv_take(&kv, other, 1)); /* the first one goes, the second stays */
    cr_assert_eq(kv_find(&kv, &same), table[0]);
    kv_fini(&kv);
}

/* ---- vLLM's own cases (tests/v1/core/test_prefix_caching.py); block numbers are one less here ---- */

static void publish_all(struct kv *kv, const uint32_t *table, uint32_t count, uint64_t first_hash)
{
    for (uint32_t i = 0; i < count; i++) {
        struct block_hash_shm h = hash(first_hash + i);
        kv_publish(kv, table[i], &h);
    }
}

Test(kv, vllm_test_prefill)
{
    struct kv kv;
    uint32_t first[4], second[4], third[4], rest[10];
    kv_init(&kv, 10);
    cr_assert(kv_take(&kv, first, 4)); /* 55 tokens, three full blocks */
    publish_all(&kv, first, 3, 100);
    for (uint32_t i = 0; i < 3; i++) {
        struct block_hash_shm h = hash(100 + i);
        second[i] = kv_find(&kv, &h);
        cr_assert_eq(second[i], i);
        kv_hold(&kv, second[i]);
    }
    cr_assert(kv_take(&kv, second + 3, 1));
    cr_assert_eq(second[3], 4);
    cr_assert_eq(kv.free_count, 5);
    kv_give_back(&kv, first, 4);
    kv_give_back(&kv, second, 4);
    for (uint32_t i = 0; i < 3; i++)
        kv_hold(&kv, third[i] = i);
    cr_assert(kv_take(&kv, third + 3, 1));
    cr_assert_eq(third[3], 4);
    cr_assert_eq(kv.free_count, 6);
    kv_give_back(&kv, third, 4);
    cr_assert(kv_take(&kv, rest, 10));
    const uint32_t expected[10] = {4, 3, 5, 6, 7, 8, 9, 2, 1, 0};
    cr_assert_arr_eq(rest, expected, sizeof(expected));
    kv_fini(&kv);
}

Test(kv, vllm_test_evict)
{
    struct kv kv;
    uint32_t first[6], second[3], third[3], rest[7];
    kv_init(&kv, 10);
    cr_assert(kv_take(&kv, first, 6)); /* 87 tokens */
    publish_all(&kv, first, 5, 100);
    cr_assert(kv_take(&kv, second, 3)); /* 48 tokens */
    publish_all(&kv, second, 3, 200);
    kv_give_back(&kv, first, 6);
    kv_give_back(&kv, second, 3);
    kv_hold(&kv, third[0] = 0);
    kv_hold(&kv, third[1] = 1);
    cr_assert(kv_take(&kv, third + 2, 1));
    cr_assert_eq(third[2], 5);
    cr_assert_eq(kv.free_count, 7);
    cr_assert(kv_take(&kv, rest, 7));
    const uint32_t expected[7] = {9, 4, 3, 2, 8, 7, 6};
    cr_assert_arr_eq(rest, expected, sizeof(expected));
    kv_fini(&kv);
}

Test(kv, vllm_test_computed_blocks_not_evicted)
{
    struct kv kv;
    uint32_t table[2], taken;
    kv_init(&kv, 2);
    cr_assert(kv_take(&kv, table, 1));
    cr_assert(kv_take(&kv, table + 1, 1));
    publish_all(&kv, table, 2, 100);
    kv_give_back(&kv, table, 1);
    kv_give_back(&kv, table + 1, 1);
    kv_hold(&kv, 0);
    cr_assert(kv_take(&kv, &taken, 1));
    cr_assert_eq(taken, 1);
    kv_fini(&kv);
}
