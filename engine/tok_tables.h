/* tok_tables.h - the tables of a vocabulary, as tok_build() lays them out and the rest of tok reads them.
 *
 * Used by: tok_build.c, tok.c, tok_spm.c.   Owns: nothing.   Never blocks.
 *
 * One block of memory: a head, then arrays at byte offsets from its start.
 */
#ifndef EVENFLOW_TOK_TABLES_H
#define EVENFLOW_TOK_TABLES_H

#include "engine/pretok.h"
#include "engine/tok.h"

struct merge {
    uint32_t left, right; /* TOK_NONE: empty place of the table */
    uint32_t rank, merged;
};

/* A token by its bytes. The hash tells most that are not meant without a look at theirs. */
struct tok_text_slot {
    uint32_t hash;
    uint32_t next_id; /* id + 1; 0: empty */
};

struct tok_blob {
    struct pieces_shm pieces;
    uint32_t kind;        /* enum tok_kind */
    uint32_t merge_slots; /* power of two */
    uint32_t text_slots;  /* power of two */
    uint32_t special_count;
    uint32_t end_count;
    uint32_t pre; /* enum pretok */
    uint32_t bos, adds_bos, eos;
    uint32_t whole_pieces; /* BPE: a piece that is a token is that token, whatever its merges */
    uint32_t adds_space;   /* SPM: a text, and what follows a special token, begins with a space */
    uint32_t longest;      /* bytes of the longest token that text can become */
    uint32_t template_size;
    uint64_t merges;   /* BPE: struct merge (merge_slots): open addressing by (left, right) */
    uint64_t texts;    /* struct tok_text_slot (text_slots): tokens that text can become; open addressing */
    uint64_t ranks;    /* SPM: uint32_t (token_count): a token of a better score has a smaller one */
    uint64_t specials; /* uint32_t (special_count): tokens that are looked for in the text, in order of their bytes */
    uint64_t chat_template;
    uint32_t ends[TOK_END_TOKENS_MAX];
    uint32_t byte_tokens[256];  /* the token of each single byte; TOK_NONE where the vocabulary has none */
    uint8_t special_first[256]; /* 1: some special token begins with this byte */
};

/* What tok.c and tok_spm.c write to. */
struct encoder {
    const struct tok *tok;
    uint32_t *ids;
    uint32_t count, ids_max;
};

static inline const void *tok_at(const struct tok_blob *blob, uint64_t offset)
{
    return (const uint8_t *)blob + offset;
}

static inline uint32_t tok_hash_pair(uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(hash >> 32);
}

/* Eight bytes at a time: texts are looked up at every step of an SPM merge. */
static inline uint32_t tok_hash_bytes(const uint8_t *bytes, size_t size)
{
    uint64_t hash = size, word = 0;
    for (; size >= 8; size -= 8, bytes += 8) {
        __builtin_memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
        hash ^= hash >> 32;
    }
    word = 0;
    __builtin_memcpy(&word, bytes, size);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(hash ^ hash >> 32);
}

/* The token with these bytes; TOK_NONE when text cannot become one. */
uint32_t tok_find_text(const struct tok_blob *blob, const uint8_t *bytes, size_t size);

/* The heap of both ways of merging: the smallest candidate is next. */
void tok_heap_push(uint64_t *heap, uint32_t *count, uint64_t candidate);
uint64_t tok_heap_pop(uint64_t *heap, uint32_t *count);

void tok_put(struct encoder *e, uint32_t id); /* TOK_NONE is left out */

/* Text without special tokens, for a vocabulary of kind TOK_SPM. */
void tok_spm_encode(struct encoder *e, const uint8_t *text, size_t size);

#endif
