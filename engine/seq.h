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

struct seq {
    uint32_t next, previous; /* in the list it is in; SEQ_NONE at the ends */
    uint32_t known;          /* tokens whose KV can be computed: prompt and committed ones (scored: all but the last) */
    uint32_t in_flight;      /* steps in flight that hold a row of it */
    uint32_t log_capacity;   /* entries reserved in the token log */
};

struct seq_list {
    uint32_t first, last, count;
};

struct seq_table {
    const struct arena *arena;
    struct seq *seqs; /* (sequences_max) */
    struct seq_list free, waiting, running;
};

void seq_init(struct seq_table *table, const struct arena *arena);
void seq_fini(struct seq_table *table);

void seq_list_append(struct seq_table *table, struct seq_list *list, uint32_t sequence);
void seq_list_prepend(struct seq_table *table, struct seq_list *list, uint32_t sequence);
void seq_list_remove(struct seq_table *table, struct seq_list *list, uint32_t sequence);

/* The one place where a state changes; checks that the figure above has the arrow. Lists are the caller's. */
void seq_set_state(struct seq_table *table, uint32_t sequence, enum sequence_state state);

#endif
