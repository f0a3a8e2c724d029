/* stats.h - the one table of counters: shared memory, /metrics and `evenflow status` come from it.
 *
 * Used by: every process.   Owns: nothing.   Never blocks.
 * Each counter has one writer, the process of its role; a reader sums over stages where there are several.
 */
#ifndef EVENFLOW_STATS_H
#define EVENFLOW_STATS_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#define COUNTERS_MAX 48u

enum counter_kind { COUNTER, GAUGE };

/* X(identifier, kind, role that writes it, name in /metrics, what it counts) */
#define COUNTER_TABLE(X)                                                                                               \
    X(FRONT_CONNECTIONS, COUNTER, ROLE_FRONT, "connections_total", "Connections accepted")                             \
    X(FRONT_CONNECTIONS_OPEN, GAUGE, ROLE_FRONT, "connections_open", "Connections open now")                           \
    X(FRONT_REQUESTS, COUNTER, ROLE_FRONT, "requests_total", "Completion requests accepted into the journal")          \
    X(FRONT_REQUESTS_FAILED, COUNTER, ROLE_FRONT, "requests_refused_total", "Requests answered with an error")         \
    X(FRONT_REQUESTS_ABORTED, COUNTER, ROLE_FRONT, "requests_aborted_total", "Requests whose client went away")        \
    X(FRONT_REQUESTS_ACTIVE, GAUGE, ROLE_FRONT, "requests_active", "Requests accepted and not yet drained")            \
    X(FRONT_UNKNOWN_FIELDS, COUNTER, ROLE_FRONT, "unknown_fields_total", "Fields of request bodies that were ignored") \
    X(FRONT_PROMPT_PAGES_FREE, GAUGE, ROLE_FRONT, "prompt_pages_free", "Free pages of the prompt pool")                \
    X(FRONT_REQUEST_SLOTS_FREE, GAUGE, ROLE_FRONT, "request_slots_free", "Free request slots")                         \
    X(SCHED_STEPS, COUNTER, ROLE_SCHED, "steps_total", "Steps planned")                                                \
    X(SCHED_STEPS_IN_FLIGHT, GAUGE, ROLE_SCHED, "steps_in_flight", "Steps planned and not yet returned")               \
    X(SCHED_PROMPT_TOKENS, COUNTER, ROLE_SCHED, "prompt_tokens_total", "Prompt tokens computed")                       \
    X(SCHED_CACHED_TOKENS, COUNTER, ROLE_SCHED, "cached_tokens_total", "Prompt tokens found in the prefix cache")      \
    X(SCHED_HIT_PERMILLE, GAUGE, ROLE_SCHED, "prefix_cache_hit_permille",                                              \
      "Of a thousand prompt tokens of the last 1000 sequences, those found in the prefix cache")                       \
    X(SCHED_GENERATED_TOKENS, COUNTER, ROLE_SCHED, "generation_tokens_total", "Tokens generated")                      \
    X(SCHED_DRAFTED, COUNTER, ROLE_SCHED, "draft_tokens_total", "Guesses at next tokens that were computed")           \
    X(SCHED_ACCEPTED, COUNTER, ROLE_SCHED, "draft_tokens_accepted_total", "Guesses that were the tokens that came")    \
    X(SCHED_PREEMPTIONS, COUNTER, ROLE_SCHED, "preemptions_total", "Sequences that gave their blocks back")            \
    X(SCHED_RUNNING, GAUGE, ROLE_SCHED, "sequences_running", "Sequences that hold KV blocks")                          \
    X(SCHED_WAITING, GAUGE, ROLE_SCHED, "sequences_waiting", "Sequences that wait for KV blocks")                      \
    X(SCHED_BLOCKS_FREE, GAUGE, ROLE_SCHED, "kv_blocks_free", "Free KV blocks")                                        \
    X(SCHED_LOG_PAGES_FREE, GAUGE, ROLE_SCHED, "log_pages_free", "Free pages of the token log pool")                   \
    X(SCHED_SEQUENCE_SLOTS_FREE, GAUGE, ROLE_SCHED, "sequence_slots_free", "Free sequence slots")                      \
    X(SCHED_STEP_US, COUNTER, ROLE_SCHED, "step_microseconds_total",                                                   \
      "Time that steps were in flight, summed: per elapsed time, the mean number in flight")                           \
    X(SCHED_DEPTH_MILLI, GAUGE, ROLE_SCHED, "depth_thousandths", "Thousandths of the mean number in flight, lately")   \
    X(SCHED_LOADED_US, COUNTER, ROLE_SCHED, "loaded_microseconds_total", "Time in which steps were in flight")         \
    X(SCHED_BOUND_US, COUNTER, ROLE_SCHED, "lower_bound_microseconds_total",                                           \
      "The least time that the same work could have taken; over the time loaded, the efficiency")                      \
    X(SCHED_EFFICIENCY_PERMILLE, GAUGE, ROLE_SCHED, "efficiency_permille",                                             \
      "Thousandths: lower bound over time loaded, lately")                                                             \
    X(STAGE_STEPS, COUNTER, ROLE_STAGE, "stage_steps_total", "Steps computed by a stage")                              \
    X(STAGE_TOKENS, COUNTER, ROLE_STAGE, "stage_tokens_total", "Tokens that went through a stage")                     \
    X(STAGE_BUSY_NS, COUNTER, ROLE_STAGE, "stage_busy_nanoseconds_total", "Time a stage spent computing")              \
    X(STAGE_LONE_STEPS, COUNTER, ROLE_STAGE, "stage_lone_steps_total",                                                 \
      "Steps for which a stage had the cores of the others, which had none, for some time or all")                     \
    X(STAGE_EARLY, COUNTER, ROLE_STAGE, "stage_early_steps_total",                                                     \
      "Steps that a stage's device had before their input was there")                                                  \
    X(STAGE_DRAWN, COUNTER, ROLE_STAGE, "stage_drawn_on_device_total",                                                 \
      "Tokens that the last stage's device has drawn")                                                                 \
    X(STAGE_REPLAYED, COUNTER, ROLE_STAGE, "stage_replayed_steps_total", "Steps whose kernels ran as a CUDA graph")

enum counter_id {
#define X(id, kind, role, name, help) COUNTER_##id,
    COUNTER_TABLE(X)
#undef X
        COUNTER_ID_COUNT
};
static_assert(COUNTER_ID_COUNT <= COUNTERS_MAX, "counters fit the process block");

/* Where a stage's time goes; sched works it out from what the stages measured (engine/account.h). Every moment is exactly
 * one of the first five. X(identifier, value of the label "is" in /metrics) */
#define STAGE_TIME_TABLE(X)                                                                                            \
    X(BUSY, "busy")                                                                                                    \
    X(NO_WORK, "no_work")                                                                                              \
    X(UNEVEN, "uneven")                                                                                                \
    X(HAND_OFF, "hand_off")                                                                                            \
    X(WAITING_FOR_CPU, "waiting_for_cpu")

enum stage_time {
#define X(id, label) STAGE_TIME_##id,
    STAGE_TIME_TABLE(X)
#undef X
        STAGE_TIME_COUNT
};

struct stage_account_shm {
    _Atomic uint64_t ns[STAGE_TIME_COUNT];     /* W: sched, relaxed   R: front; since the start */
    _Atomic uint64_t recent[STAGE_TIME_COUNT]; /* likewise; millionths of the time lately */
    _Atomic uint64_t predicted_steps;          /* likewise; steps with a prediction and a measured time */
    _Atomic uint64_t error_millionths;         /* likewise; their relative errors, summed */
    _Atomic uint64_t recent_error;             /* likewise; millionths, on average lately */
    _Atomic uint64_t repeated_steps;           /* likewise; like the step before */
    _Atomic uint64_t repeat_millionths;        /* likewise; what predicting them by that one is off by, summed */
    uint8_t pad[8];
};
static_assert(sizeof(struct stage_account_shm) == 128, "shared");

extern const char *const stage_time_labels[STAGE_TIME_COUNT];

struct counter_info {
    const char *name;
    const char *help;
    enum counter_kind kind;
    uint32_t role; /* enum role */
};

extern const struct counter_info counter_table[COUNTER_ID_COUNT];

struct process_shm;
void counter_add(struct process_shm *process, enum counter_id id, uint64_t delta);
void counter_set(struct process_shm *process, enum counter_id id, uint64_t value);
uint64_t counter_read(const struct process_shm *process, enum counter_id id);

/* Likewise, for a word of an account. */
void account_set(_Atomic uint64_t *word, uint64_t value);
void account_add(_Atomic uint64_t *word, uint64_t delta);
uint64_t account_read(const _Atomic uint64_t *word);

/* The process's own words for the supervisor (layout.h: step, told, predicted_us). */
void process_note(_Atomic uint64_t *word, uint64_t value);

/* The process's own: so many steps or events are done. */
void progress_add(struct process_shm *process, uint64_t delta);
uint64_t progress_read(const struct process_shm *process);

#endif
