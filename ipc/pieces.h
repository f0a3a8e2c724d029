/* pieces.h - the bytes of every token: the part of the vocabulary's tables that the last stage reads too.
 *
 * Used by: front and tools (engine/tok.h), the last stage (stages/mask.h).   Owns: nothing.   Never blocks.
 * First in the region vocab; offsets are from its start.
 */
#ifndef EVENFLOW_PIECES_H
#define EVENFLOW_PIECES_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PIECES_MAGIC   0x3630424b4f544645ull /* "EFTOKB06" */
#define PIECE_SIZE_MAX 256u                  /* bytes of one token */

/* GGUF's token types. */
enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN = 2,
    PIECE_CONTROL = 3,
    PIECE_USER_DEFINED = 4,
    PIECE_UNUSED = 5,
    PIECE_BYTE = 6
};

struct pieces_shm { /* W: launcher, before it is sealed   R: front, last stage */
    uint64_t magic;
    uint64_t bytes; /* of all tables */
    uint32_t count; /* tokens */
    uint32_t order_count;
    uint64_t starts; /* uint32_t (count + 1), into text */
    uint64_t text;   /* raw bytes of all tokens */
    uint64_t types;  /* uint8_t (count), enum piece_type */
    uint64_t order;  /* uint32_t (order_count): tokens with text, in the order of their bytes; equal ones by id */
    uint64_t shared; /* uint16_t (order_count): bytes that one begins with as the one before it does */
};
static_assert(sizeof(struct pieces_shm) == 64, "shared");

/* The tables lie within so many bytes, and no token leads out of them. */
bool pieces_are_sound(const struct pieces_shm *pieces, size_t bytes);

static inline const uint8_t *piece_bytes(const struct pieces_shm *pieces, uint32_t id, uint32_t *size)
{
    const uint32_t *starts = (const void *)((const uint8_t *)pieces + pieces->starts);
    *size = starts[id + 1] - starts[id];
    return (const uint8_t *)pieces + pieces->text + starts[id];
}

static inline enum piece_type piece_type(const struct pieces_shm *pieces, uint32_t id)
{
    return (enum piece_type)((const uint8_t *)pieces + pieces->types)[id];
}

/* Control tokens, and the unknown one, have no text in an answer. */
static inline bool piece_is_control(const struct pieces_shm *pieces, uint32_t id)
{
    return piece_type(pieces, id) == PIECE_CONTROL || piece_type(pieces, id) == PIECE_UNKNOWN;
}

static inline const uint32_t *pieces_order(const struct pieces_shm *pieces)
{
    return (const void *)((const uint8_t *)pieces + pieces->order);
}

static inline const uint16_t *pieces_shared(const struct pieces_shm *pieces)
{
    return (const void *)((const uint8_t *)pieces + pieces->shared);
}

/* An answer that goes on may have it as text. */
static inline bool piece_is_text(const struct pieces_shm *pieces, uint32_t id)
{
    uint32_t size;
    piece_bytes(pieces, id, &size);
    return size > 0 && !piece_is_control(pieces, id) && piece_type(pieces, id) != PIECE_UNUSED;
}

#endif
