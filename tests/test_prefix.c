#include <criterion/criterion.h>
#include <string.h>

#include "engine/prefix.h"

/* The first of the vectors published with SipHash's 128-bit variant: key 00..0f, no input. */
Test(prefix, the_hash_is_siphash_with_128_bits)
{
    const uint64_t key[2] = {0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};
    static const uint8_t expected[16] = {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                         0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    struct block_hash_shm hash = prefix_siphash(key, "", 0);
    cr_assert_eq(memcmp(&hash, expected, sizeof(expected)), 0);
}

Test(prefix, a_hash_depends_on_key_parent_and_every_token)
{
    const uint64_t key[2] = {1, 2}, other_key[2] = {1, 3};
    uint32_t tokens[16] = {0};
    struct block_hash_shm base = prefix_hash(key, NULL, tokens, 16), child = prefix_hash(key, &base, tokens, 16);
    struct block_hash_shm keyed = prefix_hash(other_key, NULL, tokens, 16);
    cr_assert(base.low != child.low && base.high != child.high);
    cr_assert(base.low != keyed.low && base.high != keyed.high);
    for (uint32_t count = 1; count <= 16; count++) { /* the last token counts, whether their number is odd or even */
        struct block_hash_shm before = prefix_hash(key, NULL, tokens, count);
        tokens[count - 1] = 9;
        struct block_hash_shm after = prefix_hash(key, NULL, tokens, count);
        cr_assert(before.low != after.low && before.high != after.high, "%u tokens", count);
        tokens[count - 1] = 0;
    }
    for (int i = 0; i < 16; i++) {
        tokens[i] = 1;
        struct block_hash_shm changed = prefix_hash(key, NULL, tokens, 16);
        cr_assert(base.low != changed.low && base.high != changed.high);
        tokens[i] = 0;
    }
}
