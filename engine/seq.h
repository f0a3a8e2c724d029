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

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"

#define SEQ_NONE UINT32_MAX

struct seq_list {
    uint32_t first, last, count;
};

struct seq {
    struct seq_list *in;     /* the list it is in */
    uint32_t next, previous; /* there; SEQ_NONE at the ends */
    int32_t priority;        /* smaller runs first, where priorities count */
    uint64_t order;          /* of its request: earlier runs first */
    uint64_t arrived_us;     /* when it was made, on the scheduler's clock */
    uint32_t known;          /* tokens whose KV can be computed: prompt and committed ones, see sched_known() */
    uint32_t in_flight;      /* steps in flight that hold a row of it */
    uint32_t hashed;         /* full blocks whose hash is known (arena_block_hashes) */
    uint32_t published;      /* of the blocks it holds, those that can be found by their hash */
};

struct seq_table {
    const struct arena *arena;
    struct seq *seqs; /* (sequences_max) */
    struct seq_list free, waiting, running;
    struct seq_list held; /* waiting too, but not for the policy: see sched_finish_begun() */
};

void seq_init(struct seq_table *table, const struct arena *arena);
void seq_fini(struct seq_table *table);

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
