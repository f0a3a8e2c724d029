#include "ipc/journal.h"

#include <string.h>

#include "ipc/fault.h"

void journal_request_set_state(struct request_shm *request, enum request_state state)
{
    /* release: pairs with the acquire in journal_request_state(): the slot's content before its state */
    fault_point(FAULT_JOURNAL_REQUEST);
    atomic_store_explicit(&request->state, (uint32_t)state, memory_order_release);
    fault_point(FAULT_JOURNAL_REQUEST);
}

enum request_state journal_request_state(const struct request_shm *request)
{
    /* acquire: pairs with journal_request_set_state() */
    return (enum request_state)atomic_load_explicit(&request->state, memory_order_acquire);
}

void journal_request_renew(struct request_shm *request)
{
    check(journal_request_state(request) == REQUEST_FREE);
    request->generation++;
    if (request->generation == 0)
        request->generation = 1;
    /* relaxed: published with the state */
    atomic_store_explicit(&request->cancelled, 0, memory_order_relaxed);
    atomic_store_explicit(&request->stopped, 0, memory_order_relaxed);
}

void journal_request_cancel(struct request_shm *request)
{
    /* relaxed: a flag that only ever goes to 1 and carries no data */
    fault_point(FAULT_JOURNAL_CANCEL);
    atomic_store_explicit(&request->cancelled, 1, memory_order_relaxed);
    fault_point(FAULT_JOURNAL_CANCEL);
}

bool journal_request_is_cancelled(const struct request_shm *request)
{
    /* relaxed: see journal_request_cancel() */
    return atomic_load_explicit(&request->cancelled, memory_order_relaxed) != 0;
}

void journal_request_stop(struct request_shm *request, uint32_t choices)
{
    /* relaxed: bits that only ever go to 1 and carry no data; we are the only writer */
    fault_point(FAULT_JOURNAL_STOP);
    atomic_store_explicit(&request->stopped, journal_request_stopped(request) | choices, memory_order_relaxed);
    fault_point(FAULT_JOURNAL_STOP);
}

uint32_t journal_request_stopped(const struct request_shm *request)
{
    /* relaxed: see journal_request_stop() */
    return atomic_load_explicit(&request->stopped, memory_order_relaxed);
}

uint32_t journal_request_chain(const struct arena *arena, uint32_t last, uint32_t *slots)
{
    uint32_t count = arena_request(arena, last)->prompt + 1;
    check(count >= 1 && count <= PROMPTS_MAX);
    for (uint32_t i = count, slot = last; i-- > 0; slot = arena_request(arena, slot)->previous) {
        check(slot < arena->plan->requests_max && arena_request(arena, slot)->prompt == i);
        slots[i] = slot;
    }
    return count;
}

static uint32_t *prompt_run(const struct arena *arena, uint32_t slot, uint32_t position, uint32_t wanted,
                            uint32_t *count)
{
    uint32_t in_page = position % PAGE_TOKENS;
    uint32_t page = arena_prompt_list(arena, slot)[position / PAGE_TOKENS];
    check(page < arena->plan->prompt_pages);
    *count = (uint32_t)min_u64(wanted, PAGE_TOKENS - in_page);
    return arena_prompt_page(arena, page) + in_page;
}

void journal_prompt_read(const struct arena *arena, uint32_t slot, uint32_t first, uint32_t count, uint32_t *tokens)
{
    check((uint64_t)first + count <= arena->plan->max_model_len + PROMPT_MORE_WORDS_MAX);
    while (count > 0) {
        uint32_t run;
        const uint32_t *source = prompt_run(arena, slot, first, count, &run);
        memcpy(tokens, source, run * sizeof(*tokens));
        tokens += run;
        first += run;
        count -= run;
    }
}

void journal_prompt_write(const struct arena *arena, uint32_t slot, uint32_t first, uint32_t count,
                          const uint32_t *tokens)
{
    check((uint64_t)first + count <= arena->plan->max_model_len + PROMPT_MORE_WORDS_MAX);
    while (count > 0) {
        uint32_t run;
        uint32_t *target = prompt_run(arena, slot, first, count, &run);
        memcpy(target, tokens, run * sizeof(*tokens));
        tokens += run;
        first += run;
        count -= run;
    }
}

void journal_sequence_set_state(struct sequence_shm *sequence, enum sequence_state state)
{
    /* release: pairs with the acquire in journal_sequence_state(): finish reason and log before DONE */
    fault_point(FAULT_JOURNAL_SEQUENCE);
    atomic_store_explicit(&sequence->state, (uint32_t)state, memory_order_release);
    fault_point(FAULT_JOURNAL_SEQUENCE);
}

enum sequence_state journal_sequence_state(const struct sequence_shm *sequence)
{
    /* acquire: pairs with journal_sequence_set_state() */
    return (enum sequence_state)atomic_load_explicit(&sequence->state, memory_order_acquire);
}

static inline struct token_shm *log_entry(const struct arena *arena, uint32_t sequence, uint32_t index)
{
    check(index / LOG_PAGE_TOKENS < arena->layout.log_pages_per_sequence);
    uint32_t page = arena_log_list(arena, sequence)[index / LOG_PAGE_TOKENS];
    check(page < arena->plan->log_pages);
    return arena_log_page(arena, page) + index % LOG_PAGE_TOKENS;
}

uint32_t journal_log_entries(const struct request_shm *request)
{
    return journal_log_first(request) + request->max_tokens;
}

static uint32_t entry_pages(const struct request_shm *request)
{
    return (uint32_t)div_up_u64(journal_log_entries(request), LOG_PAGE_TOKENS);
}

uint32_t journal_log_pages(const struct request_shm *request)
{
    uint32_t tops = request->top_logprobs;
    return entry_pages(request) +
           (tops > 0 ? (uint32_t)div_up_u64(journal_log_entries(request), TOPS_PER_PAGE(tops)) : 0);
}

/* The lists stand in the pages behind those of the entries. */
static struct top_shm *log_tops(const struct arena *arena, uint32_t sequence, uint32_t index)
{
    const struct request_shm *request = arena_request(arena, arena_sequence(arena, sequence)->request);
    check(request->top_logprobs >= 1 && request->top_logprobs <= LOGPROBS_MAX);
    uint32_t per_page = TOPS_PER_PAGE(request->top_logprobs), at = entry_pages(request) + index / per_page;
    check(at < arena->layout.log_pages_per_sequence);
    uint32_t page = arena_log_list(arena, sequence)[at];
    check(page < arena->plan->log_pages);
    return (struct top_shm *)(void *)arena_log_page(arena, page) + (size_t)(index % per_page) * request->top_logprobs;
}

/* Few have them: kept apart, so that the others pay nothing for it. */
static __attribute__((noinline)) void write_tops(const struct arena *arena, uint32_t sequence, uint32_t index,
                                                 const struct top_shm *tops)
{
    const struct request_shm *request = arena_request(arena, arena_sequence(arena, sequence)->request);
    memcpy(log_tops(arena, sequence, index), tops, request->top_logprobs * sizeof(*tops));
}

void journal_log_append(const struct arena *arena, uint32_t sequence, const struct token_shm *token,
                        const struct top_shm *tops)
{
    struct sequence_shm *shm = arena_sequence(arena, sequence);
    /* relaxed: our own word */
    uint32_t index = atomic_load_explicit(&shm->committed, memory_order_relaxed);
    *log_entry(arena, sequence, index) = *token;
    if (tops != NULL)
        write_tops(arena, sequence, index, tops);
    /* release: pairs with the acquire in journal_log_committed(): the entry (and its page number) before its count */
    fault_point(FAULT_JOURNAL_LOG);
    atomic_store_explicit(&shm->committed, index + 1, memory_order_release);
    fault_point(FAULT_JOURNAL_LOG);
}

void journal_log_clear(struct sequence_shm *sequence)
{
    /* relaxed: nobody looks before the answer names the sequence, with release, in journal_answer_set() */
    atomic_store_explicit(&sequence->committed, 0, memory_order_relaxed);
}

const struct token_shm *journal_log_entry(const struct arena *arena, uint32_t sequence, uint32_t index)
{
    return log_entry(arena, sequence, index);
}

void journal_log_read(const struct arena *arena, uint32_t sequence, uint32_t first, uint32_t count, uint32_t *tokens)
{
    while (count > 0) {
        const struct token_shm *entry = log_entry(arena, sequence, first);
        uint32_t run = (uint32_t)min_u64(count, LOG_PAGE_TOKENS - first % LOG_PAGE_TOKENS);
        for (uint32_t i = 0; i < run; i++)
            tokens[i] = entry[i].token;
        tokens += run;
        first += run;
        count -= run;
    }
}

const struct top_shm *journal_log_tops(const struct arena *arena, uint32_t sequence, uint32_t index)
{
    return log_tops(arena, sequence, index);
}

void journal_answer_set(struct answer_shm *answer, uint32_t request_generation)
{
    /* release: pairs with the acquire in journal_answer_generation(): the list of sequences before its owner */
    fault_point(FAULT_JOURNAL_ANSWER);
    atomic_store_explicit(&answer->generation, request_generation, memory_order_release);
    fault_point(FAULT_JOURNAL_ANSWER);
}

uint32_t journal_answer_generation(const struct answer_shm *answer)
{
    /* acquire: pairs with journal_answer_set() */
    return atomic_load_explicit(&answer->generation, memory_order_acquire);
}
