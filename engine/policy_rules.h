/* policy_rules.h - rules of vLLM's scheduler that several policies share.
 *
 * Used by: policies.   Owns: nothing.   Source: vllm/v1/core/sched/scheduler.py, version 0.32.
 */
#ifndef EVENFLOW_POLICY_RULES_H
#define EVENFLOW_POLICY_RULES_H

#include "engine/policy.h"

/* How many tokens of one prompt a step may have; UINT32_MAX: any number. */
uint32_t rules_prefill_limit(const struct sched *sched);

/* Its next token is all that is missing: prompt and answer so far are computed, or will be by steps in flight. */
bool rules_is_decoding(const struct sched *sched, uint32_t sequence);

/* Steps that should be in flight: one per stage; where there are no stages, the window. */
uint32_t rules_depth(const struct sched *sched);

/* Whom preemption takes: the last admitted, or of the least priority. SEQ_NONE: nobody runs. */
uint32_t rules_victim(const struct sched *sched);

/* Blocks for the row, preempting as long as there are too few. False: the sequence itself had to go. */
bool rules_add_or_preempt(struct sched *sched, uint32_t sequence, uint32_t tokens);

/* Tokens that a waiting sequence gets in its first step, under the limit and `room`; 0: it does not fit, and nobody
 * overtakes it. hit: what the cache holds of it. */
uint32_t rules_admissible(const struct sched *sched, uint32_t sequence, uint32_t limit, uint32_t room,
                          struct policy_hit *hit);

/* The waiting ones in order, as long as they fit and there is room. Nothing once somebody was preempted in this plan. */
void rules_admit_waiting(struct sched *sched, uint32_t limit, uint32_t room);

#endif
