/* mask.h - which tokens may come next in an answer that has to keep to a grammar.
 *
 * Used by: the last stage.   Owns: its copies of grammars and the masks it keeps, taken at init.
 * Never blocks, never allocates after init.
 *
 * A request's grammar (ipc/automaton.h) lies in its prompt pages. A sequence's state in it is a pure function of the bytes of
 * the tokens that were generated, so it is read off the token log and merely remembered: a successor, a preempted sequence or
 * another choice of the same request stands where it stood. Remembered are
 *
 *   grammars    by content, so that requests with the same one share all that follows
 *   places      of each sequence: how much of its log has been taken in, and the state behind it
 *   masks       of a state of a grammar: one bit a token. All tokens in the order of their bytes are led through the
 *               automaton; what several begin with is led through once
 *
 * and any of it may be forgotten at any time. A token is allowed when all its bytes are; the model's end tokens are where the
 * text may end. Bytes count, not characters: a token may end amid one.
 */
#ifndef EVENFLOW_MASK_H
#define EVENFLOW_MASK_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/automaton.h"
#include "ipc/layout.h"
#include "ipc/pieces.h"

struct mask_grammar;
struct mask_kept;

/* Where a sequence stands. */
struct mask_place {
    uint32_t generation; /* of the sequence; 0: none */
    uint32_t grammar;    /* index of the copy */
    uint64_t serial;     /* of the copy: another one may lie there by now */
    uint32_t tokens;     /* of its log, taken in */
    uint32_t state;      /* behind them */
};

struct masker {
    const struct pieces_shm *pieces; /* NULL: rows with grammars are not taken */
    uint32_t vocab_size;
    const uint32_t *end_tokens;
    uint32_t end_token_count;
    uint32_t words;            /* of one mask */
    struct mask_place *places; /* (sequences_max) */
    struct mask_grammar *grammars;
    uint32_t *incoming; /* (GRAMMAR_WORDS_MAX): of a grammar that comes in */
    struct mask_kept *kept;
    uint64_t *bits; /* (kept_max, words) */
    uint32_t kept_max, kept_next;
    uint64_t serial;   /* of the last grammar that came in */
    uint64_t turn;     /* of the last use of a grammar */
    uint64_t computed; /* masks so far */
};

/* pieces: NULL where no request has a grammar. */
void mask_init(struct masker *masker, const struct pieces_shm *pieces, const struct plan *plan);
void mask_free(struct masker *masker); /* for tests and tools */

/* The place of a sequence; NULL when its grammar has to be learned (again). */
struct mask_place *mask_find(struct masker *masker, uint32_t sequence, uint32_t generation);
/* masker->incoming holds so many words of its grammar. NULL: they are none. */
struct mask_place *mask_learn(struct masker *masker, uint32_t sequence, uint32_t generation, uint32_t words);

/* One more token of the log. */
void mask_take(struct masker *masker, struct mask_place *place, uint32_t token);

/* The tokens that may come next: (words), one bit a token; until the next call. */
const uint64_t *mask_bits(struct masker *masker, const struct mask_place *place);

static inline bool mask_has(const uint64_t *bits, uint32_t token)
{
    return bits[token / 64] >> (token % 64) & 1;
}

/* The same for one token, without its mask. */
bool mask_allows(const struct masker *masker, const struct mask_place *place, uint32_t token);

/* Nothing may follow. */
bool mask_is_final(const struct masker *masker, const struct mask_place *place);

#endif
