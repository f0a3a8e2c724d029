/* fit.h - learns how long a stage takes from what it measured: recursive least squares, and its speed of the moment.
 *
 * Used by: sched.   Owns: nothing; what is learned lies in sched's region.   Never blocks, reads no clock.
 *
 * A stage's time is what the start-up table says, with a weight for each of its terms (base, rows, weights or products,
 * context, pairs, head, results, three tails), times a speed:
 *
 *   weights   change slowly: least squares over all steps, relative to the time measured, old steps forgotten
 *   speed     changes fast: what else runs on the machine makes a stage slower, all of it, for seconds
 *
 * Guards: an error counts as 40 % at most, so one odd step changes little; no weight is negative, because no work takes
 * negative time; the covariance never exceeds what it was at the start, so that a long time of equal steps, which say
 * nothing of the other terms, does not make the next different one upset everything.
 */
#ifndef EVENFLOW_FIT_H
#define EVENFLOW_FIT_H

#include "ipc/timing.h"

/* Nothing learned: the start-up table as it is. */
void fit_init(struct stage_fit_shm *fit);

/* A step of this shape took so long. start: the start-up table. */
void fit_observe(struct stage_fit_shm *fit, const struct timing_stage *start, const struct shape *shape,
                 double measured_us);

/* The table that follows from what is learned. */
struct timing_stage fit_timing(const struct stage_fit_shm *fit, const struct timing_stage *start);

#endif
