/* steps.h - the step table: sched publishes a record once, every stage reads it.
 *
 * Used by: sched (writes), stages (read).   Owns: nothing.   Never blocks.
 * A record is immutable from its commit until its results are back; then its slot may take a later step.
 */
#ifndef EVENFLOW_STEPS_H
#define EVENFLOW_STEPS_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"

/* sched: the record to fill for a new step; its commit word is cleared first. */
struct step_shm *step_begin(const struct arena *arena, uint64_t step);
/* sched: everything in the record is there. */
void step_publish(struct step_shm *record);
/* stages: true when the record of `step` is there (acquire). */
bool step_is_published(const struct arena *arena, uint64_t step);

/* A stage that is at `step`: true while no other one has anything to do, as far as sched has said. Later stages have not once
 * all steps before are back, earlier ones have not while none behind is planned. */
bool step_is_lone(const struct arena *arena, uint64_t step);

/* Tokens at a row's end that are guesses. */
static inline uint32_t step_drafts(const struct row_shm *row)
{
    return row->flags & ROW_SAMPLE && !(row->flags & ROW_SCORE) ? row->result_count - 1 : 0;
}
/* Adds a row to a step's shape. A draft counts as one: in a described pipeline a row's time is that of its logits, too. */
static inline void step_shape_add(struct shape *shape, const struct row_shm *row)
{
    shape_add(shape, row->first_pos, row->token_count, row->result_count);
    shape->rows += step_drafts(row);
}

void step_cancel(struct step_shm *record);
bool step_is_cancelled(const struct step_shm *record);

#endif
