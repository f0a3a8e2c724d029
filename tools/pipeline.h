/* pipeline.h - PIPELINE.json: a machine described by the times of its stages and links, and how fast it could be at best.
 *
 * Used by: evenflow sim and bench-policies, serve --backend timed.   Owns: nothing.
 * Format: docs/simulator.md; times in microseconds, meanings in ipc/timing.h.
 */
#ifndef EVENFLOW_PIPELINE_H
#define EVENFLOW_PIPELINE_H

#include "ipc/timing.h"
#include "tools/scenario.h"

/* A file, or the name of a machine that is built in: 13b, four nodes with a 12 GB GPU each on 1 GbE and a model of 13 billion
 * parameters; 32b, four GPUs of 40 GB on 10 GbE and one of 32 billion. 0, or -EBADMSG with err naming file and field. */
int pipeline_read(struct timing *timing, const char *path, struct err *err);
#define PIPELINE_NAMES "13b or 32b"

/* No schedule can end before `strict`; `mean_field` counts KV memory as if every request always held its mean, which
 * is nearer but no proof. docs/scheduling.md derives both. Lengths are the true ones; the prefix cache counts as off. */
struct pipeline_bounds {
    double strict_us, mean_field_us;
    const char *reason; /* what holds the strict one up */
};
struct pipeline_bounds pipeline_bounds(const struct timing *timing, const struct scenario *scenario,
                                       const struct plan *plan);

#endif
