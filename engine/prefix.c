#include "engine/prefix.h"

#include <string.h>

/* Everything about it is inline, so that it stays in registers. */
struct sip {
    uint64_t v0, v1, v2, v3;
};

#define INLINE static inline __attribute__((always_inline))

INLINE uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

INLINE void sip_rounds(struct sip *s, int rounds)
{
    while (rounds-- > 0) {
        s->v0 += s->v1;
        s->v1 = rotate(s->v1, 13) ^ s->v0;
        s->v0 = rotate(s->v0, 32);
        s->v2 += s->v3;
        s->v3 = rotate(s->v3, 16) ^ s->v2;
        s->v0 += s->v3;
        s->v3 = rotate(s->v3, 21) ^ s->v0;
        s->v2 += s->v1;
        s->v1 = rotate(s->v1, 17) ^ s->v2;
        s->v2 = rotate(s->v2, 32);
    }
}

INLINE void sip_begin(struct sip *s, const uint64_t key[2])
{
    *s = (struct sip){.v0 = 0x736f6d6570736575ull ^ key[0],
                      .v1 = 0x646f72616e646f6dull ^ key[1] ^ 0xee,
                      .v2 = 0x6c7967656e657261ull ^ key[0],
                      .v3 = 0x7465646279746573ull ^ key[1]};
}

INLINE void sip_word(struct sip *s, uint64_t word)
{
    s->v3 ^= word;
    sip_rounds(s, 2);
    s->v0 ^= word;
}

/* last: the bytes that make no whole word, size: of everything. */
INLINE struct block_hash_shm sip_end(struct sip *s, uint64_t last, uint64_t size)
{
    struct block_hash_shm hash;
    sip_word(s, size << 56 | last);
    s->v2 ^= 0xee;
    sip_rounds(s, 4);
    hash.low = s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
    s->v1 ^= 0xdd;
    sip_rounds(s, 4);
    hash.high = s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
    return hash;
}

struct block_hash_shm prefix_siphash(const uint64_t key[2], const void *bytes, size_t size)
{
    struct sip s;
    const uint8_t *at = bytes;
    uint64_t word = 0;
    sip_begin(&s, key);
    for (size_t left = size; left >= 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        sip_word(&s, word);
    }
    word = 0;
    if (size % 8 != 0)
        memcpy(&word, at, size % 8);
    return sip_end(&s, word, size);
}

struct block_hash_shm prefix_hash(const uint64_t key[2], const struct block_hash_shm *parent, const uint32_t *tokens,
                                  uint32_t count)
{
    struct sip s;
    uint64_t word;
    sip_begin(&s, key);
    sip_word(&s, parent != NULL ? parent->low : 0);
    sip_word(&s, parent != NULL ? parent->high : 0);
    for (uint32_t i = 0; i + 1 < count; i += 2) {
        memcpy(&word, tokens + i, 8);
        sip_word(&s, word);
    }
    return sip_end(&s, count % 2 ? tokens[count - 1] : 0, 16 + (uint64_t)count * sizeof(*tokens) + (parent != NULL));
}
