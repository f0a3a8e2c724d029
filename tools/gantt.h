/* gantt.h - a picture of stages over time: what runs where, and where nothing does. SVG, readable without a manual.
 *
 * Used by: evenflow sim.   Owns: nothing.
 *
 * One panel per run, one under the other on one time axis. A row is a stage, a thin row between two a link; a bar is a
 * microbatch, coloured by what it computes, white is idle. Where bars would be thinner than a pixel, the height of the
 * colour is the share of the time.
 */
#ifndef EVENFLOW_GANTT_H
#define EVENFLOW_GANTT_H

#include "tools/sim.h"

/* The runs must have kept their spans. to_s 0: to the end of the longest run. 0, or a negative errno with err. */
int gantt_write(const char *path, const struct sim *runs, uint32_t count, double from_s, double to_s, struct err *err);

#endif
