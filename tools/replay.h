/* replay.h - plans again from what serve --record wrote, and compares.
 *
 * Used by: evenflow sim --replay, tests.   Owns: its memory until it returns.
 */
#ifndef EVENFLOW_REPLAY_H
#define EVENFLOW_REPLAY_H

#include <stdint.h>

#include "ipc/base.h"
#include "ipc/plan.h"

struct replay_result {
    uint64_t requests, steps, tokens;
    uint32_t stages;
    double
        prediction_errors[STAGES_MAX]; /* mean relative error of the stage-time model, before it learned from a step */
    uint64_t repeated_steps[STAGES_MAX]; /* that did the same as the one before */
    double repeat_errors[STAGES_MAX];    /* the same error of predicting those by the one before */
    uint64_t first_difference;           /* step number; 0: every step is the same */
    struct err err;                      /* what differs */
};

/* 0 when the file could be read to its end or to the first difference; -errno with err. */
int replay_file(struct replay_result *result, const char *path, struct err *err);

#endif
