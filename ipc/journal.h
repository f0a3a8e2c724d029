/* journal.h - requests and token logs: what must survive, and the orders in which it becomes true.
 *
 * Used by: front (writes requests), sched (writes sequences and logs), both read the other's.
 * Owns: nothing.   Never blocks.
 *
 *   request, W front:    FREE -> ACCEPTED -> DRAINED -> FREE
 *   sequence, W sched:   FREE -> WAITING <-> RUNNING -> DONE -> FREE
 *
 * A request exists once its state is ACCEPTED: everything else in the slot was written before and never changes until
 * DRAINED. A token exists once `committed` has passed it: its log entry was written before and never changes.
 * The slot of a DRAINED request may be used again when the answer of sched no longer names its generation.
 */
#ifndef EVENFLOW_JOURNAL_H
#define EVENFLOW_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"
#include "ipc/fault.h"

/* front: the state word, release. Everything written to the slot before is visible to who reads the state. */
void journal_request_set_state(struct request_shm *request, enum request_state state);
enum request_state journal_request_state(const struct request_shm *request); /* acquire */
/* front, on a FREE slot: a new generation, not cancelled, nothing stopped; published with the state. */
void journal_request_renew(struct request_shm *request);
void journal_request_cancel(struct request_shm *request);
bool journal_request_is_cancelled(const struct request_shm *request);
/* front: stop strings have ended these choices (bits); others that were stay so. */
void journal_request_stop(struct request_shm *request, uint32_t choices);
uint32_t journal_request_stopped(const struct request_shm *request);

/* The requests of a client's list of prompts, from the one of its last prompt: their slots, in the order of the prompts, into
 * slots (PROMPTS_MAX); how many. Their words are those of accepted requests, or of ones that front prepares. */
uint32_t journal_request_chain(const struct arena *arena, uint32_t last, uint32_t *slots);

/* Words of a request's prompt pages: its ids, the pairs of its logit_bias, its grammar. */
static inline uint32_t journal_prompt_words(const struct request_shm *request)
{
    return request->prompt_tokens + 2 * request->bias_count + request->grammar_words;
}

/* Copies prompt ids (words) [first, first + count) of a request out of its pages. */
void journal_prompt_read(const struct arena *arena, uint32_t request_slot, uint32_t first, uint32_t count,
                         uint32_t *tokens);
/* front, before ACCEPTED: the pages are in the list already. */
void journal_prompt_write(const struct arena *arena, uint32_t request_slot, uint32_t first, uint32_t count,
                          const uint32_t *tokens);

/* What stands before in the program is in memory before what follows, whatever the compiler would like: for words that nobody
 * reads while their writer lives, but a successor does. */
static inline void journal_order(void)
{
    /* acq_rel: a signal fence orders the compiler alone, and a process's own death cuts its stores in program order */
    atomic_signal_fence(memory_order_acq_rel);
    fault_point(FAULT_JOURNAL_ORDER);
    atomic_signal_fence(memory_order_acq_rel);
}

/* sched: the state word of a sequence, release; front: acquire. */
void journal_sequence_set_state(struct sequence_shm *sequence, enum sequence_state state);
enum sequence_state journal_sequence_state(const struct sequence_shm *sequence);

/* Entry of a log that holds the answer's first token: before it, a scored prompt has entries for all its tokens but the
 * first. */
static inline uint32_t journal_log_first(const struct request_shm *request)
{
    return request->flags & REQUEST_SCORE ? request->prompt_tokens - 1 : 0;
}

/* Entries that the log of one of a request's sequences can come to, and the pages they need, lists of most probable tokens
 * included. */
uint32_t journal_log_entries(const struct request_shm *request);
uint32_t journal_log_pages(const struct request_shm *request);
/* sched: writes entry `committed` (its pages are in the list already) and makes it exist. tops: (request's top_logprobs), or
 * NULL when it asks for none. */
void journal_log_append(const struct arena *arena, uint32_t sequence, const struct token_shm *token,
                        const struct top_shm *tops);
/* sched, for a new sequence: the log is empty. */
void journal_log_clear(struct sequence_shm *sequence);
static inline uint32_t journal_log_committed(const struct sequence_shm *sequence)
{
    /* acquire: pairs with journal_log_append() */
    return atomic_load_explicit(&sequence->committed, memory_order_acquire);
}
const struct token_shm *journal_log_entry(const struct arena *arena, uint32_t sequence, uint32_t index);
/* The tokens of entries first..first + count - 1. */
void journal_log_read(const struct arena *arena, uint32_t sequence, uint32_t first, uint32_t count, uint32_t *tokens);
/* (request's top_logprobs), which is more than 0. */
const struct top_shm *journal_log_tops(const struct arena *arena, uint32_t sequence, uint32_t index);

/* sched: answers for this generation of the request exist from now on (release); 0: none. front: acquire. */
void journal_answer_set(struct answer_shm *answer, uint32_t request_generation);
uint32_t journal_answer_generation(const struct answer_shm *answer);

#endif
