/* bound.h - the least time that a pipeline needs for some work, however it is cut into microbatches.
 *
 * Used by: sched's account of itself, the simulator.   Owns: nothing.   Never blocks.
 *
 * With m microbatches two things hold, and the bound is the least, over m, of the longer one:
 *
 *   work      the busiest stage reads its weights m times and does everything else once
 *   latency   a decoding row is on its way for a whole traversal, and only so many are at a time: as many as there are
 *             requests, and as the KV cache holds. Rows share a traversal, the more the fewer microbatches there are.
 *
 * Work rises with m, latency falls.
 */
#ifndef EVENFLOW_BOUND_H
#define EVENFLOW_BOUND_H

#include <stdbool.h>

#include "ipc/timing.h"

/* Sums over the work that a bound is about. */
struct bound_load {
    const struct timing *timing;
    double tokens, rows, context, pairs, results; /* as in struct shape */
    double decode_rows;                           /* rows that wait for the token before */
    double requests;                              /* that are there at a time */
    double longest;                               /* most decoding rows of one request */
    double kv_blocks;                             /* of the cache */
    double block_sum, block_min;                  /* held, summed over decoding rows; by one at least */
    double context_min;                           /* of a decoding row */
    bool is_whole;                                /* begins and ends with an empty pipeline */
};

/* No schedule is faster. */
double bound_strict_us(const struct bound_load *load);
/* As if every decoding row held the mean of blocks and had the mean context: nearer, but no proof. */
double bound_mean_field_us(const struct bound_load *load);

#endif
