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
    cr_assert(a[0] == 0 && a[1] == 1 && a[2] == 2 && a[3] == 5);
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
