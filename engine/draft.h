/* draft.h - guesses at the next tokens of decoding rows, which a step computes along with what it has to: speculative decoding
 * by prompt lookup (--speculate ngram).
 *
 * Used by: sched.   Owns: the texts of running sequences, as far as guessing needs them.   Never blocks, never allocates after
 * init.
 *
 * When a policy has planned a step, each row that draws one token behind one known token may get drafts: what followed in the
 * sequence's own text when its last tokens stood there before (ngram.h). The last stage draws a token at every draft's place,
 * as if the draft were known; sched takes over the results up to the first one that the draft behind it is not. So what is
 * committed is what would have been without, only sooner, whatever was guessed: nothing here can change a bit of an answer.
 *
 * How many: a draft is right with a probability that is learned for each sequence, by how long the match is, from what came,
 * drafted or not. Drafts are taken in the order of the probability that all up to them are right, as many as make the most
 * tokens per predicted time of the step (timing.h), prompt tokens included. So a step that waits for the weights anyway has
 * many, and one that computes all the time has none.
 *
 * `computed` of a sequence never counts a draft before it is committed; its KV lies behind, where the next row overwrites it.
 */
#ifndef EVENFLOW_DRAFT_H
#define EVENFLOW_DRAFT_H

#include <stdint.h>

#include "engine/ngram.h"
#include "ipc/arena.h"

#define DRAFTS_MAX    7u /* of a row: with its own token, two tiles of the kernels */
#define DRAFT_CLASSES 4u /* of matches, by length */

struct sched;

struct draft_text {
    uint32_t sequence, generation; /* whose it is; generation 0: nobody's */
    struct ngram ngram;
    double rate[DRAFT_CLASSES]; /* of guesses that were right, of late */
    uint32_t guess[DRAFTS_MAX]; /* what comes behind the text */
    uint32_t guess_first;       /* index in the text of the first of them */
    uint32_t guess_count, guess_class;
};

/* Of a row of the step being planned. */
struct draft_row {
    const struct draft_text *text; /* NULL: nothing is guessed */
    uint32_t most;                 /* drafts that it may have */
    uint32_t count;                /* that it gets */
    uint32_t blocks;               /* that it needs for them, beyond its own */
};

struct drafts {
    struct draft_text *texts; /* (text_count), as many as run at most; NULL: there is no speculation */
    uint32_t text_count;
    uint32_t *text_of;      /* (sequences_max): where to look for its text */
    uint32_t next_text;     /* where to look for one that nobody needs */
    struct draft_row *rows; /* (max_num_seqs) */
    uint64_t drafted, accepted;
};

void drafts_init(struct drafts *drafts, const struct plan *plan);
void drafts_fini(struct drafts *drafts);

/* Adds drafts to the rows of the step that was just planned. */
void drafts_add(struct sched *sched);

#endif
