/* forecast.h - how many KV blocks the running sequences will hold: who may be admitted so that nobody has to be preempted.
 *
 * Used by: policy even.   Owns: nothing; plain data in the policy's state.   Never blocks.
 *
 * Time is counted in tokens: each sequence gets one more until it ends, after as many as others had (lengths.h) or at its
 * limit. At a number of moments up to a horizon there is a mean and a variance of what is held.
 */
#ifndef EVENFLOW_FORECAST_H
#define EVENFLOW_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/lengths.h"

#define FORECAST_POINTS 32u

struct forecast {
    const struct lengths *lengths;
    uint32_t block_size;
    uint32_t horizon; /* tokens from now to the last point */
    double usage[FORECAST_POINTS], variance[FORECAST_POINTS];
};

/* What will become of a sequence: tokens it has, those of them that were generated, those to come at most. */
struct outlook {
    uint32_t known, generated, more;
};

void forecast_begin(struct forecast *forecast, const struct lengths *lengths, uint32_t block_size, uint32_t horizon);
void forecast_add(struct forecast *forecast, const struct outlook *outlook);

/* Blocks that several sequences hold were counted for each of them. */
void forecast_share(struct forecast *forecast, double blocks);

/* Adds the sequence if `blocks` suffice for everybody at every moment; else nothing is changed. */
bool forecast_try(struct forecast *forecast, const struct outlook *outlook, double blocks);

#endif
