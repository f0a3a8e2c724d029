/* sched.h - the scheduler's core: requests in, steps out, results in, tokens committed.
 *
 * Used by: sched_process.c, tests, the simulator.   Owns: lists and free lists; records lie in the arena.
 * Never blocks, never allocates after sched_init(). Deterministic: no socket, no text, no clock but the one it is told; the
 * same calls in the same order give the same steps.
 *
 *   sched_accept()  ->  intake -> waiting -> running        sched_plan()    a step record, published by the caller
 *   sched_cancel()      (engine/seq.h has the states)       sched_return()  its results, strictly in the order of steps
 *   sched_drained()                                         sched_news()    requests that front should look at
 *
 * A request waits in the intake until the token logs of all its sequences are reserved, so that what runs can always
 * finish. Only then does a policy see its sequences.
 *
 * Blocks that an aborted or preempted sequence gives back may be taken by the next step at once, although a step in flight
 * still writes to them: every stage computes steps in order, so the old step's writes come before the new one's.
 */
#ifndef EVENFLOW_SCHED_H
#define EVENFLOW_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/account.h"
#include "engine/draft.h"
#include "engine/hitrate.h"
#include "engine/kv.h"
#include "engine/seq.h"
#include "engine/suspect.h"
#include "ipc/arena.h"
#include "ipc/steps.h"
#include "ipc/timing.h"

struct policy;

struct flight {
    uint64_t step;
    uint32_t row_count, result_count;
    bool is_cancelled; /* its results mean nothing */
    bool has_tops;     /* some rows ask for lists of most probable tokens */
    struct shape shape;
    struct account_step account;
    const struct row_shm *rows; /* (row_count): in its record, which stays as it is until its results are back */
};

/* What only the scheduler knows of a request slot. */
struct sched_request {
    uint32_t next;       /* in the intake, by order of acceptance; SEQ_NONE at its end */
    uint32_t generation; /* that was taken in; 0: none */
    bool is_in_intake;
    bool has_news; /* it is in the list of news */
};

struct sched {
    const struct arena *arena;
    const struct plan *plan;
    const struct policy *policy;
    void *policy_state; /* (policy->state_bytes()) */
    uint64_t now_us;    /* as the caller last said: sched_set_time() */
    struct kv kv;
    struct seq_table table;
    struct sched_request *requests; /* (requests_max) */
    uint32_t intake_first, intake_last;
    uint32_t *free_log_pages; /* stack */
    uint32_t free_log_page_count;

    uint64_t next_step;
    struct flight *flights; /* (window): step s at s % window */
    uint32_t in_flight;

    /* the step that is being planned */
    struct step_shm *record;
    struct row_shm *rows;      /* of the record */
    uint32_t *tokens, *blocks; /* likewise */
    struct shape shape;        /* of the rows so far */
    uint32_t *preempted;       /* (max_num_seqs): in the order of their preemption */
    uint32_t preempted_count;
    bool is_finishing;       /* see sched_finish_begun() */
    bool wants_another_plan; /* the last plan gave no step, but preempted: the blocks may serve others at once */
    uint32_t *block_tokens;  /* (block_size): scratch for a hash */

    struct top_shm *tops; /* (step_results_max, LOGPROBS_MAX): of the results at hand */

    struct suspects suspects;

    struct drafts drafts;

    uint32_t *news; /* (requests_max): slots, oldest first */
    uint32_t news_count;

    double lone_speed;   /* times that a step alone in flight is faster than predicted, of late; 1: nothing is known */
    uint64_t results_us; /* when the last results had ended; 0: there were none */
    struct account account;

    /* counters */
    struct hitrate hitrate;
    uint64_t steps, prompt_tokens, generated_tokens, preemptions, cached_tokens;
};

void sched_init(struct sched *sched, const struct arena *arena, const struct policy *policy);
void sched_fini(struct sched *sched);

/* The request in this slot is ACCEPTED. Repeating it changes nothing. */
void sched_accept(struct sched *sched, uint32_t slot);
/* Its client is gone: its sequences end at once. Whoever accepts a request looks whether it is cancelled already. */
void sched_cancel(struct sched *sched, uint32_t slot);
/* Front has found stop strings in the text of these choices (bits): their sequences end. */
void sched_stop(struct sched *sched, uint32_t slot, uint32_t choices);
/* Its answer is delivered: its sequences and their logs are forgotten. */
void sched_drained(struct sched *sched, uint32_t slot);

/* From now on nothing begins: sequences of requests of which nothing was computed are held, new requests stay in
 * the intake. Off: they go on. Whoever asks for it replaces the stages when all that has begun has ended, or
 * thinks better of it. */
void sched_finish_begun(struct sched *sched, bool is_on);
bool sched_has_finished(const struct sched *sched);

/* The time that passes is an input like any other: microseconds since a moment of the caller's choice, never back. */
void sched_set_time(struct sched *sched, uint64_t now_us);

/* Plans the next step if fewer than the window are in flight and there is anything to compute: its filled record, which
 * the caller publishes; else NULL. After NULL with wants_another_plan the caller asks once more: with nothing in flight,
 * nothing else would make it ask again. */
struct step_shm *sched_plan(struct sched *sched);

/* The oldest step in flight has come back: what that leads to is on its way from memory. Changes nothing. */
void sched_expect(struct sched *sched, uint64_t step);

/* What the stages measured of the oldest step in flight, one entry a stage; called before its results are returned.
 * Entries that are of another step, or cannot be, are passed over: a stage may have died between its message and now. */
void sched_measure(struct sched *sched, uint64_t step, const struct step_time_shm *times);

/* Results of the oldest step in flight. False when they are not what that step returns: count or a token out of bounds. */
bool sched_return(struct sched *sched, uint64_t step, const struct token_shm *results, uint32_t count);

/* Takes one slot off the list of requests with news; false when it is empty. */
bool sched_next_news(struct sched *sched, uint32_t *slot);

#endif
