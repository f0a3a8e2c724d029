/* samples.h - a growing list of measurements and what is said of it.
 *
 * Used by: evenflow bench, evenflow sim.   Owns: the values.   Never blocks.
 */
#ifndef EVENFLOW_SAMPLES_H
#define EVENFLOW_SAMPLES_H

#include <stddef.h>

struct samples {
    double *values;
    size_t count, room;
};

void samples_add(struct samples *samples, double value);
void samples_free(struct samples *samples);

double samples_mean(const struct samples *samples); /* 0 of none, as all below */
double samples_std(const struct samples *samples);  /* of these values, not of what they were drawn from */

void samples_sort(struct samples *samples);
/* Of sorted values, between the two nearest ranks as numpy's percentile does; share from 0 to 1. */
double samples_percentile(const struct samples *samples, double share);

#endif
