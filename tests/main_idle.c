/* main_idle.c - linked into a scheduler: from a step of the test's choice on its first life plans nothing, whatever runs. */
#include <stdlib.h>

#include "engine/sched.h"

struct step_shm *__real_sched_plan(struct sched *sched);
struct step_shm *__wrap_sched_plan(struct sched *sched);

struct step_shm *__wrap_sched_plan(struct sched *sched)
{
    const char *step = getenv("EVENFLOW_IDLE_FROM");
    bool is_idle = step != NULL && sched->arena->epoch == 1 && sched->next_step >= strtoull(step, NULL, 10);
    return is_idle ? NULL : __real_sched_plan(sched);
}
