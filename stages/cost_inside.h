/* cost_inside.h - what measuring costs on a processor and on a device have in common; cost.h is for everybody else.
 *
 * Used by: cost.c, cost_cuda.c.   Owns: nothing.   Never blocks. */
#ifndef EVENFLOW_COST_INSIDE_H
#define EVENFLOW_COST_INSIDE_H

#include "stages/cost.h"

/* What is measured of a layer: a row alone, a usual step, the same behind more context, and chunks of a prompt. */
#define COST_ROWS       16u
#define COST_SHORT_PAST 127u
#define COST_LONG_PAST  511u
#define COST_CHUNK      64u
#define COST_CHUNK_PAST 448u

enum { COST_ALONE, COST_MANY, COST_CONTEXT, COST_PROMPT, COST_PROMPT_PAST, COST_STEPS };

/* `rows` rows of `tokens` tokens each, behind `past` others. */
static const struct cost_step {
    uint32_t rows, past, tokens;
} cost_steps[COST_STEPS] = {
    [COST_ALONE] = {1, COST_SHORT_PAST, 1},
    [COST_MANY] = {COST_ROWS, COST_SHORT_PAST, 1},
    [COST_CONTEXT] = {COST_ROWS, COST_LONG_PAST, 1},
    [COST_PROMPT] = {1, 0, COST_CHUNK},
    [COST_PROMPT_PAST] = {1, COST_CHUNK_PAST, COST_CHUNK},
};

/* The terms of timing.h from what these steps take, microseconds. */
struct timing_stage cost_layer(const double us[COST_STEPS]);
/* From what the head takes for one row, and for COST_ROWS. */
struct timing_stage cost_head(double alone_us, double rows_us);

#endif
