#include "ipc/stats.h"

#include "ipc/fault.h"
#include "ipc/layout.h"

const struct counter_info counter_table[COUNTER_ID_COUNT] = {
#define X(id, kind, role, name, help) [COUNTER_##id] = {name, help, kind, role},
    COUNTER_TABLE(X)
#undef X
};

const char *const stage_time_labels[STAGE_TIME_COUNT] = {
#define X(id, label) [STAGE_TIME_##id] = label,
    STAGE_TIME_TABLE(X)
#undef X
};

/* relaxed throughout: one writer, and a reader that wants no more than a recent value */

void counter_add(struct process_shm *process, enum counter_id id, uint64_t delta)
{
    uint64_t value = atomic_load_explicit(&process->counters[id], memory_order_relaxed);
    atomic_store_explicit(&process->counters[id], value + delta, memory_order_relaxed);
}

void counter_set(struct process_shm *process, enum counter_id id, uint64_t value)
{
    atomic_store_explicit(&process->counters[id], value, memory_order_relaxed);
}

uint64_t counter_read(const struct process_shm *process, enum counter_id id)
{
    return atomic_load_explicit(&process->counters[id], memory_order_relaxed);
}

void account_set(_Atomic uint64_t *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

void account_add(_Atomic uint64_t *word, uint64_t delta)
{
    account_set(word, account_read(word) + delta);
}

uint64_t account_read(const _Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

void process_note(_Atomic uint64_t *word, uint64_t value)
{
    account_set(word, value);
    fault_point(FAULT_PROCESS_NOTE);
}

void progress_add(struct process_shm *process, uint64_t delta)
{
    uint64_t value = atomic_load_explicit(&process->progress, memory_order_relaxed);
    atomic_store_explicit(&process->progress, value + delta, memory_order_relaxed);
}

uint64_t progress_read(const struct process_shm *process)
{
    /* relaxed: shown to people, decides nothing */
    return atomic_load_explicit(&process->progress, memory_order_relaxed);
}
