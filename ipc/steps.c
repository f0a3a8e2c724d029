#include "ipc/steps.h"

#include "ipc/fault.h"

struct step_shm *step_begin(const struct arena *arena, uint64_t step)
{
    struct step_shm *record = arena_step(arena, step);
    /* relaxed: no stage looks at this slot before the new commit; the word is cleared for a successor's scan */
    atomic_store_explicit(&record->commit, 0, memory_order_relaxed);
    atomic_store_explicit(&record->cancelled, 0, memory_order_relaxed);
    fault_point(FAULT_STEP_BEGIN);
    record->step = step;
    for (uint32_t i = 0; i < STAGES_MAX; i++)
        record->attempts[i] = 0;
    return record;
}

void step_publish(struct step_shm *record)
{
    /* release: pairs with the acquire in step_is_published(): rows, tokens and blocks before the commit word */
    fault_point(FAULT_STEP_PUBLISH);
    atomic_store_explicit(&record->commit, record->step + 1, memory_order_release);
    fault_point(FAULT_STEP_PUBLISH);
}

bool step_is_published(const struct arena *arena, uint64_t step)
{
    /* acquire: pairs with step_publish() */
    return atomic_load_explicit(&arena_step(arena, step)->commit, memory_order_acquire) == step + 1;
}

bool step_is_lone(const struct arena *arena, uint64_t step)
{
    const struct process_shm *sched = arena_process(arena, ROLE_SCHED, 0);
    /* relaxed: a moment later it may be otherwise, and nothing but time depends on it */
    uint64_t returned = atomic_load_explicit(&sched->consumed_second, memory_order_relaxed);
    uint64_t planned = atomic_load_explicit(&sched->step, memory_order_relaxed);
    bool is_first = arena->index == 0, is_last = arena->index + 1 == arena->plan->stage_count;
    return (is_last || returned + 1 == step) && (is_first || planned == step);
}

void step_cancel(struct step_shm *record)
{
    /* relaxed: results of a cancelled step are ignored whether a stage saw it or not; one that did tells the next with its
     * message, so that the next sees it too */
    fault_point(FAULT_STEP_CANCEL);
    atomic_store_explicit(&record->cancelled, 1, memory_order_relaxed);
    fault_point(FAULT_STEP_CANCEL);
}

bool step_is_cancelled(const struct step_shm *record)
{
    /* relaxed: see step_cancel() */
    return atomic_load_explicit(&record->cancelled, memory_order_relaxed) != 0;
}
