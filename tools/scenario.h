/* scenario.h - what the simulator is given: requests with their arrivals and lengths, and the scheduler's configuration.
 *
 * Used by: evenflow sim and its likes.   Owns: its requests; the JSON it was read from stays the caller's.
 * Format: docs/simulator.md. Errors name the field and what is allowed.
 */
#ifndef EVENFLOW_SCENARIO_H
#define EVENFLOW_SCENARIO_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/plan.h"

#define SCENARIO_END_TOKEN 1u

struct sim_request {
    const char *id;
    json_t *prompt; /* [[start, length], ...] */
    uint64_t arrival_step, abort_step;
    double arrival_us, abort_us; /* on the clock of a pipeline */
    bool has_abort, aborts_before_update;
    uint32_t prompt_tokens, max_tokens, eos_after; /* 0: never */
    int32_t priority;

    /* what became of it */
    bool has_arrived, is_over, is_told;
    const char *end;
    uint32_t tokens, preemptions;
    int64_t admitted_step, first_token_step, end_step, hit_tokens; /* -1: never */
    double first_token_us, last_token_us;
    uint32_t computed_max; /* tokens of it that were computed at least once */
};

struct scenario {
    struct sim_request *requests;
    uint32_t request_count;
    uint32_t depth; /* config.pipeline_depth */
};

/* A file's JSON: a new value, or NULL with err naming the file and what is wrong. */
json_t *scenario_load(const char *path, struct err *err);

/* Fills the plan from "config" and the requests from "requests" of an object. timing: of the pipeline, or NULL where time
 * is counted in steps. chooses_window: the policy does, unless config says. 0, or -EINVAL with err. */
int scenario_read(struct scenario *scenario, struct plan *plan, json_t *root, const struct timing *timing,
                  bool chooses_window, struct err *err);
void scenario_free(struct scenario *scenario);

/* Tokens that a request really has in the end, if nobody aborts it. */
uint32_t scenario_output_tokens(const struct sim_request *request);

/* The output token of request `index` at a position of its sequence: a formula. */
uint32_t scenario_token_at(const struct scenario *scenario, uint32_t index, uint32_t position);

#endif
