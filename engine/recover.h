/* recover.h - a scheduler that goes on where a dead one stopped.
 *
 * Used by: sched_process.c, at start, tests.   Owns: nothing.   Never blocks; takes scratch memory, before base_seal().
 *
 * Everything the dead scheduler knew follows from shared memory: requests (front's), sequences with their token logs and
 * block tables, and the step table. Between any two of its stores it may have died, so:
 *
 *   a step that was not published never was      its rows are taken back from `computed`; who was admitted in it waits again,
 *                                                because it may stand on blocks that this very step was to compute
 *   a sequence that no answer names              was being made: it is forgotten, and its request taken in again
 *   a RUNNING one without blocks                 was being preempted, or was finishing: it waits, or is done if its last token
 *                                                ends it
 *   results that are there still                 come again; tokens that are committed already are passed over
 *   blocks that no live sequence names           are free. Which prefixes they held is not known any more: that costs time,
 *                                                no bits
 *
 * What a policy remembered of the past is gone, which costs evenness for a moment. A client's cancellation and the end of
 * an answer are found in the requests, which the caller looks through afterwards, in order of acceptance.
 */
#ifndef EVENFLOW_RECOVER_H
#define EVENFLOW_RECOVER_H

#include <stdint.h>

#include "engine/sched.h"

/* After sched_init(), before anything else; in a first life it finds nothing. returned: steps whose results have been taken
 * (the position in the ring of results). */
void sched_recover(struct sched *sched, uint64_t returned);

/* ---- what sched.c lends for it ---- */

/* What only the scheduler keeps of a sequence, from its shared record, its request and its log; it is in no list. */
void sched_describe(struct sched *sched, uint32_t sequence);
/* Tokens known at positions first.. of a sequence: prompt, then the committed ones. */
void sched_copy_tokens(const struct sched *sched, uint32_t sequence, uint32_t first, uint32_t count, uint32_t *tokens);
/* Hashes of the blocks that have become full. */
void sched_extend_hashes(struct sched *sched, uint32_t sequence);
/* Blocks that are full once the steps so far are computed can be found from now on: whoever is given one runs behind those
 * rows, in the same step or in a later one. */
void sched_publish_blocks(struct sched *sched, uint32_t sequence);
/* The step in sched->record, of shape sched->shape, is in flight. Tokens of prompts in it. */
uint64_t sched_note_flight(struct sched *sched);
/* Ends a sequence whose last committed token is its end. */
void sched_finish_if_ended(struct sched *sched, uint32_t sequence);
/* A running sequence gives its blocks back and waits at the front. */
void sched_take_back(struct sched *sched, uint32_t sequence);
/* A sequence ends. */
void sched_finish(struct sched *sched, uint32_t sequence, enum finish_reason reason);
void sched_add_news(struct sched *sched, uint32_t slot);

#endif
