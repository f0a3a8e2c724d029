/* timed.h - a stage that computes nothing: it takes exactly the described time and makes tokens by a formula, so that a
 * pipeline of any size runs for real, processes, rings, socket and scheduler, on a machine that could not hold its model.
 *
 * Used by: stage.c; tests, for the formula.   Owns: nothing.   Never blocks: stage.c waits until `sent_ns` has come.
 *
 * Times are those of the plan (ipc/timing.h) and follow from the times before, not from when this process woke up, so that
 * being late does not add up. A stage and the link behind it deliver in order: waiting until a step is delivered, and only
 * then looking at the next one, whose times go by what has ended when, makes them overlap as they should.
 *
 *   stage 0:     its input is there plan_us behind the moment when the step was planned; plans come one after the other
 *   begin        the input is there and the step before has ended      end    begin + the stage's time
 *   sent         by a link, which begins when it has sent the step before; from the last stage, return_us later
 */
#ifndef EVENFLOW_TIMED_H
#define EVENFLOW_TIMED_H

#include <stdint.h>

#include "ipc/plan.h"
#include "stages/forward.h"

struct timed {
    const struct plan *plan;
    uint32_t index;
    uint64_t planned_ns, ended_ns, sent_ns; /* when the step before was */
};

struct timed_span {
    uint64_t input_ns, begin_ns, end_ns, sent_ns; /* monotonic clock */
};

void timed_init(struct timed *timed, const struct plan *plan, uint32_t index);

/* The next step. input_ns: when the step was planned (stage 0), or when the stage before sent it. */
struct timed_span timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);

/* The token at `position` of a sequence, behind `token`: (31 * token + 7919 * position) modulo the vocabulary, or the next one
 * that does not end an answer. Sampling parameters, seed and choice change nothing. */
uint32_t timed_token(const struct plan *plan, uint32_t token, uint32_t position);

/* The last stage's results. Log-probabilities are 0; hashes are of token and position. */
void timed_results(const struct plan *plan, const struct forward_step *step, struct token_shm *results);

#endif
