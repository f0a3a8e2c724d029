#include "engine/intake.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "ipc/clock.h"
#include "ipc/journal.h"

#define WAKE_LATER_NS 50000000ull

static uint32_t pages_of(const struct request_shm *request)
{
    return (uint32_t)div_up_u64(journal_prompt_words(request), PAGE_TOKENS);
}

static struct process_shm *process_of(const struct intake *intake)
{
    return arena_process(intake->arena, ROLE_FRONT, 0);
}

static void update_gauges(const struct intake *intake)
{
    counter_set(process_of(intake), COUNTER_FRONT_REQUESTS_ACTIVE, intake->active);
    counter_set(process_of(intake), COUNTER_FRONT_REQUEST_SLOTS_FREE, intake->free_slot_count);
    counter_set(process_of(intake), COUNTER_FRONT_PROMPT_PAGES_FREE, intake->free_page_count);
}

static void put_message(struct intake *intake, enum msg_request_kind kind, uint32_t slot)
{
    struct msg_request msg = {.kind = kind, .slot = slot, .generation = arena_request(intake->arena, slot)->generation};
    /* sized for the messages of every slot's life, twice (layout.c): full only after several lives of front that sched has not
     * listened to, or of very many choices that stop strings end at once */
    if (ring_push(&intake->ring, &msg) != RING_OK)
        intake->is_sched_behind = true;
}

void intake_wake_sched(struct intake *intake)
{
    intake->wake_ns = 0;
    process_note(&process_of(intake)->told, intake->ring.next);
    bell_ring(&intake->sched);
}

static void tell_sched(struct intake *intake, enum msg_request_kind kind, uint32_t slot)
{
    put_message(intake, kind, slot);
    intake_wake_sched(intake);
}

/* Nobody waits for what these messages are about, and there is enough of it: the next one for which sched is woken goes with
 * them, or in a while they go by themselves. */
static void tell_sched_later(struct intake *intake, enum msg_request_kind kind, uint32_t slot)
{
    const struct plan *plan = intake->arena->plan;
    const struct process_shm *sched = arena_process(intake->arena, ROLE_SCHED, 0);
    put_message(intake, kind, slot);
    if (intake->free_slot_count < plan->requests_max / 2 || intake->free_page_count < plan->prompt_pages / 2 ||
        counter_read(sched, COUNTER_SCHED_WAITING) > 0)
        intake_wake_sched(intake);
    else if (intake->wake_ns == 0)
        intake->wake_ns = clock_ns() + WAKE_LATER_NS;
}

void intake_open(struct intake *intake, const struct arena *arena, struct ledger *ledger)
{
    const struct plan *plan = arena->plan;
    *intake = (struct intake){.arena = arena, .ledger = ledger, .sched = arena_pull(arena, ROLE_SCHED, 0)};
    arena_ring_front_to_sched_producer(arena, &intake->ring);
    intake->free_slots = base_alloc(plan->requests_max * sizeof(uint32_t));
    intake->free_pages = base_alloc(plan->prompt_pages * sizeof(uint32_t));
    intake->connections = base_alloc(plan->requests_max * sizeof(uint32_t));

    /* the free lists are the complement of what living requests name; the lowest numbers come out first */
    uint8_t *is_taken = base_alloc(plan->prompt_pages);
    for (uint32_t i = plan->requests_max; i-- > 0;) {
        const struct request_shm *request = arena_request(arena, i);
        enum request_state state = journal_request_state(request);
        intake->connections[i] = INTAKE_NO_CONNECTION;
        intake->next_order = max_u64(intake->next_order, request->order);
        if (state != REQUEST_ACCEPTED)
            ledger_clear(ledger, i);
        if (state == REQUEST_FREE) {
            intake->free_slots[intake->free_slot_count++] = i;
            continue;
        }
        intake->active += state == REQUEST_ACCEPTED;
        for (uint32_t p = 0; p < pages_of(request); p++) {
            check(arena_prompt_list(arena, i)[p] < plan->prompt_pages);
            is_taken[arena_prompt_list(arena, i)[p]] = 1;
        }
    }
    for (uint32_t i = plan->prompt_pages; i-- > 0;)
        if (!is_taken[i])
            intake->free_pages[intake->free_page_count++] = i;
    intake->next_order++;
    update_gauges(intake);
}

void intake_adopt(struct intake *intake, uint32_t slot, uint32_t connection)
{
    uint32_t chain[PROMPTS_MAX], count = journal_request_chain(intake->arena, slot, chain);
    for (uint32_t i = 0; i < count; i++) {
        check(journal_request_state(arena_request(intake->arena, chain[i])) == REQUEST_ACCEPTED);
        intake->connections[chain[i]] = connection;
    }
}

/* What to do follows from the slot: the message only says where to look. */
static void tell_all(struct intake *intake)
{
    intake->is_sched_behind = false;
    for (uint32_t i = 0; i < intake->arena->plan->requests_max && !intake->is_sched_behind; i++)
        switch (journal_request_state(arena_request(intake->arena, i))) {
        case REQUEST_ACCEPTED:
            tell_sched(intake, MSG_REQUEST_ACCEPTED, i);
            break;
        case REQUEST_DRAINED:
            tell_sched(intake, MSG_REQUEST_DRAINED, i);
            break;
        case REQUEST_FREE:
            break;
        }
}

void intake_resume(struct intake *intake)
{
    for (uint32_t i = 0; i < intake->arena->plan->requests_max; i++)
        if (journal_request_state(arena_request(intake->arena, i)) == REQUEST_ACCEPTED &&
            intake->connections[i] == INTAKE_NO_CONNECTION)
            intake_cancel(intake, i);
    tell_all(intake);
    for (uint32_t i = 0; i < intake->arena->plan->requests_max; i++)
        intake_look(intake, i);
}

void intake_catch_up(struct intake *intake)
{
    if (intake->is_sched_behind && !ring_is_full(&intake->ring))
        tell_all(intake);
}

static uint64_t random_u64(struct intake *intake)
{
    if (intake->random_left == 0) {
        ssize_t got;
        do {
            got = getrandom(intake->random, sizeof(intake->random), 0);
        } while (got < 0 && errno == EINTR);
        check(got == sizeof(intake->random)); /* as much as 256 bytes and more come whole once the pool is ready */
        intake->random_left = ARRAY_COUNT(intake->random);
    }
    return intake->random[--intake->random_left];
}

int intake_prepare(struct intake *intake, const struct api_request *asked, uint32_t connection, uint32_t *slot)
{
    const struct arena *arena = intake->arena;
    uint32_t pages = (uint32_t)div_up_u64((uint64_t)asked->prompt_tokens + 2 * asked->bias_count + asked->grammar_words,
                                          PAGE_TOKENS);
    if (intake->free_slot_count == 0 || intake->free_page_count < pages) {
        if (asked->prompt_index > 0)
            intake_withdraw(intake, *slot);
        return -EAGAIN;
    }
    uint32_t previous = asked->prompt_index > 0 ? *slot : UINT32_MAX;
    *slot = intake->free_slots[--intake->free_slot_count];
    struct request_shm *request = arena_request(arena, *slot);
    for (uint32_t p = 0; p < pages; p++)
        arena_prompt_list(arena, *slot)[p] = intake->free_pages[--intake->free_page_count];
    journal_prompt_write(arena, *slot, 0, asked->prompt_tokens, asked->prompt);
    journal_prompt_write(arena, *slot, asked->prompt_tokens, 2 * asked->bias_count, asked->biases);
    journal_prompt_write(arena, *slot, asked->prompt_tokens + 2 * asked->bias_count, asked->grammar_words,
                         asked->grammar);

    journal_request_renew(request);
    request->connection = connection;
    request->order = intake->next_order++;
    request->id = random_u64(intake);
    request->created_s = asked->created_s;
    request->seed = asked->has_seed ? asked->seed : random_u64(intake);
    request->priority = asked->priority;
    request->prompt_tokens = asked->prompt_tokens;
    request->max_tokens = asked->max_tokens;
    request->min_tokens = asked->min_tokens;
    request->choices = asked->choices;
    request->flags = asked->flags;
    request->temperature = asked->temperature;
    request->top_p = asked->top_p;
    request->min_p = asked->min_p;
    request->top_k = asked->top_k;
    request->presence_penalty = asked->presence_penalty;
    request->frequency_penalty = asked->frequency_penalty;
    request->repetition_penalty = asked->repetition_penalty;
    request->bias_count = asked->bias_count;
    request->top_logprobs = asked->top_logprobs;
    request->grammar_words = asked->grammar_words;
    request->stop_token_count = asked->stop_token_count;
    memcpy(request->stop_tokens, asked->stop_tokens, sizeof(request->stop_tokens));
    request->prompt = asked->prompt_index;
    request->previous = previous;
    return 0;
}

/* Slot and pages are free again; what state the slot has is the caller's. */
static void give_back(struct intake *intake, uint32_t slot)
{
    for (uint32_t p = pages_of(arena_request(intake->arena, slot)); p-- > 0;)
        intake->free_pages[intake->free_page_count++] = arena_prompt_list(intake->arena, slot)[p];
    intake->free_slots[intake->free_slot_count++] = slot;
}

void intake_withdraw(struct intake *intake, uint32_t slot)
{
    uint32_t chain[PROMPTS_MAX], count = journal_request_chain(intake->arena, slot, chain);
    while (count > 0)
        give_back(intake, chain[--count]);
}

void intake_commit(struct intake *intake, uint32_t slot, bool is_chat, const char *client_id)
{
    uint32_t chain[PROMPTS_MAX], count = journal_request_chain(intake->arena, slot, chain);
    for (uint32_t i = 0; i < count; i++) {
        struct request_shm *request = arena_request(intake->arena, chain[i]);
        intake->connections[chain[i]] = request->connection;
        intake->active++;
        counter_add(process_of(intake), COUNTER_FRONT_REQUESTS, 1);
        update_gauges(intake);

        ledger_put(intake->ledger, chain[i], request, is_chat, client_id);
        journal_request_set_state(request, REQUEST_ACCEPTED);
        tell_sched(intake, MSG_REQUEST_ACCEPTED, chain[i]);
    }
}

void intake_cancel(struct intake *intake, uint32_t slot)
{
    struct request_shm *request = arena_request(intake->arena, slot);
    check(journal_request_state(request) == REQUEST_ACCEPTED);
    if (journal_request_is_cancelled(request) || intake_is_done(intake, slot))
        return;
    journal_request_cancel(request);
    tell_sched(intake, MSG_REQUEST_CANCELLED, slot);
}

void intake_stop(struct intake *intake, uint32_t slot, uint32_t choices)
{
    struct request_shm *request = arena_request(intake->arena, slot);
    check(journal_request_state(request) == REQUEST_ACCEPTED);
    if ((choices & ~journal_request_stopped(request)) == 0 || intake_is_done(intake, slot))
        return;
    journal_request_stop(request, choices);
    tell_sched(intake, MSG_REQUEST_STOPPED, slot);
}

bool intake_is_done(const struct intake *intake, uint32_t slot)
{
    const struct arena *arena = intake->arena;
    const struct answer_shm *answer = arena_answer(arena, slot);
    const struct request_shm *request = arena_request(arena, slot);
    if (journal_answer_generation(answer) != request->generation)
        return false;
    check(answer->sequence_count <= CHOICES_MAX);
    for (uint32_t c = 0; c < answer->sequence_count; c++) { /* none: refused, or cancelled before it had any */
        check(answer->sequences[c] < arena->plan->sequences_max);
        if (journal_sequence_state(arena_sequence(arena, answer->sequences[c])) != SEQUENCE_DONE)
            return false;
    }
    return true;
}

static void drain(struct intake *intake, uint32_t slot)
{
    ledger_clear(intake->ledger, slot);
    journal_request_set_state(arena_request(intake->arena, slot), REQUEST_DRAINED);
    intake->active--;
    update_gauges(intake);
    tell_sched_later(intake, MSG_REQUEST_DRAINED, slot);
}

static void set_free(struct intake *intake, uint32_t slot)
{
    journal_request_set_state(arena_request(intake->arena, slot), REQUEST_FREE);
    give_back(intake, slot);
    update_gauges(intake);
}

void intake_end(struct intake *intake, uint32_t slot)
{
    uint32_t chain[PROMPTS_MAX], count = journal_request_chain(intake->arena, slot, chain);
    for (uint32_t i = 0; i < count; i++) {
        intake->connections[chain[i]] = INTAKE_NO_CONNECTION;
        intake_cancel(intake, chain[i]);
        intake_look(intake, chain[i]);
    }
}

void intake_look(struct intake *intake, uint32_t slot)
{
    const struct request_shm *request = arena_request(intake->arena, slot);
    if (journal_request_state(request) == REQUEST_ACCEPTED && intake->connections[slot] == INTAKE_NO_CONNECTION &&
        intake_is_done(intake, slot))
        drain(intake, slot);
    else if (journal_request_state(request) == REQUEST_DRAINED &&
             journal_answer_generation(arena_answer(intake->arena, slot)) != request->generation)
        set_free(intake, slot);
}
