/* suspect.h - finds the one sequence of a step that a stage dies of, and fails it alone.
 *
 * Used by: sched.c, recover.c, sched_process.c, tests.   Owns: its marks (struct mark_shm).   Never blocks.
 *
 *   a stage died of its own fault in step s     every step in flight is cancelled: stages pass over them. Whoever ran waits
 *                                               again, without blocks, and no prefix is found any more: what the cancelled
 *                                               steps were to compute is not there. The rows of step s are suspects.
 *   then, one suspect after the other           runs alone, one step in flight, until it is past where it was
 *   a stage dies of a step with one row         that sequence ends with FINISH_ERROR, if it ran alone for being a suspect:
 *                                               the step was planned since it is one
 *   no suspect is left                          the policy plans again
 *
 * Computing again costs time; it changes no bit, since a token does not depend on what shares its step.
 */
#ifndef EVENFLOW_SUSPECT_H
#define EVENFLOW_SUSPECT_H

#include <stdbool.h>
#include <stdint.h>

struct sched;

struct suspects {
    uint32_t count;
    bool is_on; /* steps are planned here */
};

/* Step `step` has killed a stage. Of one that is not in flight nothing follows. Whoever dies in the middle is followed by a
 * scheduler that does it again, with the same end. */
void suspect_step(struct sched *sched, uint64_t step);

/* In a successor: this sequence, which waits or runs, is a suspect if it was one. */
void suspect_recover(struct sched *sched, uint32_t sequence);
bool suspect_is(const struct sched *sched, uint32_t sequence);

/* Cancels what is in flight and takes every running sequence back to where no step of it was ever planned. */
void suspect_start_over(struct sched *sched);

/* Fills the step that is being planned, with nothing in flight: one row, or none when no suspect is left. */
void suspect_plan(struct sched *sched);

/* A sequence has ended. Said behind its end: a scheduler that died in between is followed by one that finds it ended. */
void suspect_forget(struct sched *sched, uint32_t sequence);

#endif
