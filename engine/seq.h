/* seq.h - the scheduler's view of sequences: the shared records, what only it needs beside them, and the lists they are in.
 *
 * Used by: sched, policies, tests.   Owns: the private half; the shared half is in the sched region.   Never blocks.
 *
 *            admitted                      last token committed, or aborted
 *   WAITING ----------> RUNNING ----------------------------------------------> DONE
 *      ^                   |                                                      ^
 *      +---- preempted ----+        (a waiting one can end too: its token in flight was the last, or the client left)
 */
#ifndef EVENFLOW_SEQ_H
#define EVENFLOW_SEQ_H

#include <assert.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/arena.h"

#define SEQ_NONE UINT32_MAX

struct seq_list {
    uint32_t first, last, count;
};

/* What every step looks at comes first, in one cache line. */
struct seq {
    alignas(64) struct seq_list *in; /* the list it is in */
    uint32_t next, previous;         /* there; SEQ_NONE at the ends */
    uint32_t known;                  /* tokens whose KV can be computed: prompt and committed ones, see known_of() */
    uint32_t computed, block_count;  /* as in the shared record, which is written for a successor and not read again */
    uint32_t prompt_tokens;          /* likewise */
    uint32_t last_token;             /* of the answer, once known > prompt_tokens */
    uint32_t no_end_before;          /* tokens, prompt included, that an answer has at least: see ROW_NO_END */
    bool has_answer;                 /* its request asks for tokens, not for scores alone */
    uint32_t row_of_plan;            /* its row + 1 in the step being planned, 0: none */
    uint32_t in_flight;              /* steps in flight that hold a row of it */
    uint32_t hashed;                 /* full blocks whose hash is known (arena_block_hashes) */
    uint32_t published;              /* of the blocks it holds, those that can be found by their hash */

    alignas(64) struct row_shm row; /* what all of its rows have in common; the rest is 0 */

    int32_t priority;    /* smaller runs first, where priorities count */
    uint64_t order;      /* of its request: earlier runs first */
    uint64_t arrived_us; /* when it was made, on the scheduler's clock */
};
static_assert(offsetof(struct seq, row) == 64, "one line");

struct seq_table {
    const struct arena *arena;
    struct seq *seqs; /* (sequences_max) */
    struct seq_list free, waiting, running;
    struct seq_list held; /* waiting too, but not for the policy: see sched_finish_begun() */
};

void seq_init(struct seq_table *table, const struct arena *arena);
void seq_fini(struct seq_table *table);

/* It waits or runs. */
static inline bool seq_is_live(const struct seq_table *table, uint32_t sequence)
{
    return table->seqs[sequence].in != NULL && table->seqs[sequence].in != &table->free;
}

void seq_list_append(struct seq_table *table, struct seq_list *list, uint32_t sequence);
void seq_list_prepend(struct seq_table *table, struct seq_list *list, uint32_t sequence);
/* In order of (priority, order of acceptance), behind its equals. */
void seq_list_insert(struct seq_table *table, struct seq_list *list, uint32_t sequence);
/* From the list it is in. */
void seq_list_remove(struct seq_table *table, uint32_t sequence);

/* a runs before b, where priorities count. */
bool seq_comes_before(const struct seq_table *table, uint32_t a, uint32_t b);

/* The one place where a state changes; checks that the figure above has the arrow. Lists are the caller's. */
void seq_set_state(struct seq_table *table, uint32_t sequence, enum sequence_state state);

#endif
