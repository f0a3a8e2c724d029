/* fake_sched.h - the scheduler's side of the journal, by hand: takes requests in, commits tokens, ends sequences. */
#ifndef EVENFLOW_TESTS_FAKE_SCHED_H
#define EVENFLOW_TESTS_FAKE_SCHED_H

#include "ipc/arena.h"

/* Room for every choice of every request. */
void fake_sched_plan(struct plan *plan);

/* Makes the request's sequences; number slot * CHOICES_MAX + choice, log pages at fixed places. */
void fake_sched_take(const struct arena *arena, uint32_t slot);
void fake_sched_commit(const struct arena *arena, uint32_t slot, uint32_t choice, const struct token_shm *token);
void fake_sched_end(const struct arena *arena, uint32_t slot, uint32_t choice, enum finish_reason reason);
void fake_sched_forget(const struct arena *arena, uint32_t slot);

#endif
