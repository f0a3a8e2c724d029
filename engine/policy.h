/* policy.h - what decides which rows a step has. sched.c executes; a policy only asks.
 *
 * Used by: sched (calls policies), policies (call back).   Owns: nothing.   Never blocks; reads no clock and no text.
 *
 * sched_plan() opens an empty step and calls policy->plan() once. The policy looks at the lists of running and waiting
 * sequences and asks, one sequence at a time:
 *
 *   policy_schedulable()   how many tokens of it could be computed now (0: its last token is in flight)
 *   policy_add_row()       takes the blocks for so many tokens and adds the row; false changes nothing
 *   policy_find_prefix()   how much of a waiting sequence the cache holds
 *   policy_admit()         likewise for a waiting sequence, which then runs, beginning behind what the cache holds
 *   policy_preempt()       a running sequence gives its blocks back and waits at the front; its row in this step, if
 *                          there is one, is undone
 *
 * It preempts before it admits: a row cannot be undone once another sequence was admitted upon its blocks. A sequence whose
 * token is in flight is not admitted. Whatever else it does, what sched promises holds: rows are of different sequences, a
 * block that several hold has the same prefix for all of them, a token is never computed before those in front of it, and
 * a step with no rows is not published.
 */
#ifndef EVENFLOW_POLICY_H
#define EVENFLOW_POLICY_H

#include "engine/sched.h"

struct policy {
    const char *name;
    const char *source; /* where it is described */
    void (*plan)(struct sched *sched);
    size_t (*state_bytes)(const struct plan *plan);          /* NULL: it has no state; else zeroed memory for it */
    void (*open)(struct sched *sched);                       /* NULL, or fills the state at start */
    void (*arrived)(struct sched *sched, uint32_t sequence); /* NULL, or told of a new sequence, which waits */
    void (*ended)(struct sched *sched, uint32_t sequence);   /* NULL, or told of a sequence that had its last token */
    bool chooses_window; /* how many steps are in flight, up to the plan's window, is up to it */
    bool only_simulated; /* for comparison: the engine does not offer it */
};

extern const struct policy policy_even, policy_batch, policy_default, policy_decode_cap, policy_throttle,
    policy_chunked;
/* For comparison, in the simulator alone: */
extern const struct policy policy_batch_as_published, policy_fastpp;

/* What there is, for texts: --policy of the engine, and of the simulator. */
#define POLICY_NAMES           "even, batch, default, decode-cap, throttle or chunked"
#define POLICY_NAMES_SIMULATED "even, batch, default, decode-cap, throttle, chunked, batch-as-published or fastpp"

/* By name, as --policy has it; NULL when there is none. All of them, those for the simulator included: see only_simulated. */
const struct policy *policy_find(const char *name);

/* ---- looking ---- */

static inline uint32_t policy_schedulable(const struct sched *sched, uint32_t sequence)
{
    return sched->table.seqs[sequence].known - sched->table.seqs[sequence].computed;
}
const struct request_shm *policy_request(const struct sched *sched, uint32_t sequence); /* what the client asked for */
/* Tokens that still fit the step. */
static inline uint32_t policy_budget(const struct sched *sched)
{
    bool has_room = sched->record->row_count < sched->plan->max_num_seqs;
    return has_room ? sched->plan->max_num_batched_tokens - sched->record->token_count : 0;
}
uint32_t policy_free_blocks(const struct sched *sched);
/* Blocks that a sequence needs beyond those it holds, to hold so many tokens. */
uint32_t policy_blocks_for(const struct sched *sched, uint32_t sequence, uint32_t tokens);
/* Blocks to be kept free when a sequence is admitted beside running ones. */
uint32_t policy_blocks_reserved(const struct sched *sched);

/* What the cache holds of a waiting sequence: whole blocks, never its last token. */
struct policy_hit {
    uint32_t tokens, blocks;
    uint32_t free_blocks; /* of the blocks, those that nobody holds: they count as free until they are taken */
};
struct policy_hit policy_find_prefix(const struct sched *sched, uint32_t sequence);
/* How long things take; stage_count 0: nothing is known. */
const struct timing *policy_timing(const struct sched *sched);
/* The rows so far, as their time is computed from. */
const struct shape *policy_shape(const struct sched *sched);
/* Of the step so many before the one being planned, among those in flight: 1 is the last one planned. */
const struct flight *policy_flight(const struct sched *sched, uint32_t back);
bool policy_has_row(const struct sched *sched, uint32_t sequence);

/* ---- doing ---- */

bool policy_add_row(struct sched *sched, uint32_t sequence, uint32_t tokens);
/* hit: what policy_find_prefix() just said. False, and nothing is changed: no blocks, as many run as may, or a token of it
 * is in flight. */
bool policy_admit(struct sched *sched, uint32_t sequence, const struct policy_hit *hit, uint32_t tokens);
/* As policy_admit() and policy_add_row(), but for blocks only: the row may follow in this step or in a later one. The
 * sequence runs from now on. */
bool policy_admit_blocks(struct sched *sched, uint32_t sequence, const struct policy_hit *hit, uint32_t tokens);
bool policy_take_blocks(struct sched *sched, uint32_t sequence, uint32_t tokens);
void policy_preempt(struct sched *sched, uint32_t sequence);

#endif
