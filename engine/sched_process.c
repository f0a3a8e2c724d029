#include "engine/sched_process.h"

#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/recover.h"
#include "ipc/clock.h"
#include "ipc/journal.h"
#include "ipc/log.h"
#include "ipc/steps.h"

/* An accepted request, seen now for the first time or again. */
static void look_at_request(struct sched_process *p, uint32_t slot)
{
    const struct request_shm *request = arena_request(p->arena, slot);
    if (p->core.requests[slot].generation != request->generation) {
        record_accept(&p->record, slot);
        sched_accept(&p->core, slot);
    }
    uint32_t stopped = journal_request_stopped(request);
    if (stopped != 0) {
        record_stop(&p->record, slot, stopped);
        sched_stop(&p->core, slot, stopped);
    }
    if (journal_request_is_cancelled(request)) {
        record_cancel(&p->record, slot);
        sched_cancel(&p->core, slot);
    }
}

/* What to do follows from the slot, not from who said that one should look at it. */
static void look_at_slot(struct sched_process *p, uint32_t slot)
{
    switch (journal_request_state(arena_request(p->arena, slot))) {
    case REQUEST_ACCEPTED:
        look_at_request(p, slot);
        break;
    case REQUEST_DRAINED:
        record_drained(&p->record, slot);
        sched_drained(&p->core, slot);
        break;
    case REQUEST_FREE:
        break;
    }
}

struct slot_order {
    uint64_t order;
    uint32_t slot;
};

static int compare_orders(const void *a, const void *b)
{
    const struct slot_order *x = a, *y = b;
    return (x->order > y->order) - (x->order < y->order);
}

/* Rings are hints: what was accepted or drained before we looked is found in the slots. In the order of acceptance. */
static void look_at_all_requests(struct sched_process *p)
{
    uint32_t count = p->arena->plan->requests_max;
    struct slot_order *orders = base_alloc(count * sizeof(*orders));
    for (uint32_t slot = 0; slot < count; slot++)
        orders[slot] = (struct slot_order){arena_request(p->arena, slot)->order, slot};
    qsort(orders, count, sizeof(*orders), compare_orders);
    for (uint32_t i = 0; i < count; i++)
        look_at_slot(p, orders[i].slot);
    free(orders);
}

static uint32_t take_requests(struct sched_process *p)
{
    struct msg_request message;
    uint32_t count = 0;
    for (; ring_peek(&p->requests, &message) == RING_OK; count++) {
        if (message.slot >= p->arena->plan->requests_max) {
            log_error("front names request slot %u of %u", message.slot, p->arena->plan->requests_max);
            exit(1);
        }
        look_at_slot(p, message.slot);
        ring_release(&p->requests);
    }
    return count;
}

/* Copied before they are looked at. */
static void take_times(struct sched_process *p, uint64_t step)
{
    struct step_time_shm times[STAGES_MAX];
    for (uint32_t stage = 0; stage < p->arena->plan->stage_count; stage++)
        times[stage] = *arena_step_time(p->arena, stage, step);
    record_measure(&p->record, step, times);
    sched_measure(&p->core, step, times);
}

static uint32_t take_results(struct sched_process *p)
{
    struct msg_step message;
    uint32_t count = 0;
    for (; ring_peek(&p->results, &message) == RING_OK; count++) {
        uint32_t results = message.count;
        sched_expect(&p->core, message.step);
        take_times(p, message.step);
        if (results <= p->arena->layout.step_results_max)
            memcpy(p->tokens, arena_results(p->arena, message.step), results * sizeof(*p->tokens));
        if (results > p->arena->layout.step_results_max || !sched_return(&p->core, message.step, p->tokens, results)) {
            log_error("the last stage returned something else than step %llu's results",
                      (unsigned long long)message.step);
            exit(1);
        }
        record_return(&p->record, message.step, p->tokens, results);
        ring_release(&p->results);
        trace_note(&p->shm->trace, TRACE_RESULTS, message.step);
    }
    return count;
}

/* A stage has died of a step: which of its rows is it? */
static uint32_t take_suspicions(struct sched_process *p)
{
    uint32_t count = 0;
    for (uint32_t stage = 0; stage < p->arena->plan->stage_count; stage++) {
        uint64_t life, step;
        if (!arena_suspect(p->arena, stage, &life, &step))
            continue;
        trace_note(&p->shm->trace, TRACE_ALONE, step);
        suspect_step(&p->core, step);
        arena_deal_with(p->arena, stage, life);
        if (p->record.fd >= 0) {
            log_warn("the recording ends here: it cannot say that a stage failed");
            record_flush(&p->record);
            p->record.fd = -1;
        }
        count++;
    }
    return count;
}

static bool has_suspicions(const struct sched_process *p)
{
    uint64_t life, step;
    for (uint32_t stage = 0; stage < p->arena->plan->stage_count; stage++)
        if (arena_suspect(p->arena, stage, &life, &step))
            return true;
    return false;
}

/* 1 when what may be planned is another than before. */
static uint32_t take_command(struct sched_process *p)
{
    bool is_finishing = arena_command(p->arena) == COMMAND_FINISH;
    if (is_finishing == p->core.is_finishing)
        return 0;
    if (p->record.fd >= 0) {
        log_warn("the recording ends here: it cannot say that nothing begins any more");
        record_flush(&p->record);
        p->record.fd = -1;
    }
    sched_finish_begun(&p->core, is_finishing);
    if (!is_finishing && arena_state(p->arena, ROLE_SCHED, 0) == PROCESS_FINISHED)
        arena_set_state(p->arena, PROCESS_READY);
    return 1;
}

static void tell_time(struct sched_process *p)
{
    uint64_t now_us = clock_ns() / 1000;
    sched_set_time(&p->core, now_us);
    record_time(&p->record, now_us);
}

static void ring_stages(const struct sched_process *p)
{
    for (uint32_t i = 0; i < p->stage_count; i++)
        bell_ring(&p->stages[i]);
}

static uint32_t plan_steps(struct sched_process *p)
{
    for (uint32_t count = 0;;) {
        tell_time(p);
        struct step_shm *record = sched_plan(&p->core);
        record_step(&p->record, record);
        if (record != NULL) {
            process_note(&p->shm->step, record->step); /* before stage 0 can be at it */
            step_publish(record);
            ring_stages(p);
            trace_note(&p->shm->trace, TRACE_PLAN, record->step);
            count++;
        } else if (!p->core.wants_another_plan) {
            return count;
        }
    }
}

/* A full ring keeps the rest for later: front rings our bell when it has emptied a full one. For slots whose sequences are
 * forgotten front is not woken while there is work, whose tokens wake it. */
static void tell_front(struct sched_process *p)
{
    uint32_t slot, told = 0, awaited = 0;
    while (p->core.news_count > 0 && !ring_is_full(&p->hints)) {
        check(sched_next_news(&p->core, &slot));
        const struct msg_request message = {
            .kind = MSG_REQUEST_TOKENS, .slot = slot, .generation = p->core.requests[slot].generation};
        check(ring_push(&p->hints, &message) == RING_OK);
        told++;
        awaited += journal_request_state(arena_request(p->arena, slot)) != REQUEST_DRAINED;
    }
    bool has_work = p->core.table.running.count + p->core.table.waiting.count > 0, is_full = p->core.news_count > 0;
    if (!is_full && (told == 0 || (awaited == 0 && has_work)))
        return;
    bell_ring(&p->front);
    process_note(&p->shm->told, p->hints.next);
}

static void update_counters(struct sched_process *p)
{
    const struct sched *core = &p->core;
    counter_set(p->shm, COUNTER_SCHED_STEPS, core->steps);
    counter_set(p->shm, COUNTER_SCHED_STEPS_IN_FLIGHT, core->in_flight);
    counter_set(p->shm, COUNTER_SCHED_STEP_US, core->account.step_us);
    counter_set(p->shm, COUNTER_SCHED_DEPTH_MILLI, account_depth_milli(&core->account));
    counter_set(p->shm, COUNTER_SCHED_LOADED_US, core->account.all_loaded_us);
    counter_set(p->shm, COUNTER_SCHED_BOUND_US, core->account.all_bound_us);
    counter_set(p->shm, COUNTER_SCHED_EFFICIENCY_PERMILLE, core->account.efficiency_permille);
    counter_set(p->shm, COUNTER_SCHED_PROMPT_TOKENS, core->prompt_tokens);
    counter_set(p->shm, COUNTER_SCHED_GENERATED_TOKENS, core->generated_tokens);
    counter_set(p->shm, COUNTER_SCHED_DRAFTED, core->drafts.drafted);
    counter_set(p->shm, COUNTER_SCHED_ACCEPTED, core->drafts.accepted);
    counter_set(p->shm, COUNTER_SCHED_PREEMPTIONS, core->preemptions);
    counter_set(p->shm, COUNTER_SCHED_RUNNING, core->table.running.count);
    counter_set(p->shm, COUNTER_SCHED_WAITING, core->table.waiting.count + core->table.held.count);
    counter_set(p->shm, COUNTER_SCHED_CACHED_TOKENS, core->cached_tokens);
    counter_set(p->shm, COUNTER_SCHED_HIT_PERMILLE, hitrate_permille(&core->hitrate));
    counter_set(p->shm, COUNTER_SCHED_BLOCKS_FREE, core->kv.free_count);
    counter_set(p->shm, COUNTER_SCHED_LOG_PAGES_FREE, core->free_log_page_count);
    counter_set(p->shm, COUNTER_SCHED_SEQUENCE_SLOTS_FREE, core->table.free.count);
}

/* Totals go on where a predecessor's were last shown. */
static void restore_counters(struct sched_process *p)
{
    p->core.steps = counter_read(p->shm, COUNTER_SCHED_STEPS);
    p->core.prompt_tokens = counter_read(p->shm, COUNTER_SCHED_PROMPT_TOKENS);
    p->core.generated_tokens = counter_read(p->shm, COUNTER_SCHED_GENERATED_TOKENS);
    p->core.drafts.drafted = counter_read(p->shm, COUNTER_SCHED_DRAFTED);
    p->core.drafts.accepted = counter_read(p->shm, COUNTER_SCHED_ACCEPTED);
    p->core.preemptions = counter_read(p->shm, COUNTER_SCHED_PREEMPTIONS);
    p->core.cached_tokens = counter_read(p->shm, COUNTER_SCHED_CACHED_TOKENS);
    p->core.account.step_us = counter_read(p->shm, COUNTER_SCHED_STEP_US);
    p->core.account.all_loaded_us = counter_read(p->shm, COUNTER_SCHED_LOADED_US);
    p->core.account.all_bound_us = counter_read(p->shm, COUNTER_SCHED_BOUND_US);
    p->core.account.efficiency_permille = counter_read(p->shm, COUNTER_SCHED_EFFICIENCY_PERMILLE);
}

uint32_t sched_process_do_work(struct sched_process *p)
{
    tell_time(p);
    uint32_t count = take_requests(p) + take_results(p) + take_suspicions(p) + take_command(p);
    uint32_t planned = count > 0 ? plan_steps(p) : 0; /* without news there is nothing else to plan than before */
    tell_front(p);
    if (count + planned > 0) {
        update_counters(p);
        progress_add(p->shm, count + planned);
    }
    if (sched_has_finished(&p->core) && arena_state(p->arena, ROLE_SCHED, 0) == PROCESS_READY)
        arena_set_state(p->arena, PROCESS_FINISHED);
    return count + planned;
}

/* Nobody would wake us to plan the next step: the supervisor's watch ends such a life, and this says what it was like. */
static void report_standstill(const struct sched_process *p)
{
    const struct sched *core = &p->core;
    uint32_t ready = 0, awaited = 0;
    for (uint32_t s = core->table.running.first; s != SEQ_NONE; s = core->table.seqs[s].next) {
        ready += policy_schedulable(core, s) > 0;
        awaited += core->table.seqs[s].in_flight > 0;
    }
    log_error(
        "bug: nothing is in flight behind step %llu and nothing is planned: %u sequences run, %u of them could go "
        "on, %u await a token; %u wait, %u blocks are free",
        (unsigned long long)core->next_step - 1, core->table.running.count, ready, awaited, core->table.waiting.count,
        core->kv.free_count);
}

void sched_process_wait(struct sched_process *p)
{
    if (p->core.in_flight == 0 && p->core.table.running.count > 0)
        report_standstill(p);
    uint32_t spin_ns = p->arena->plan->spin_ns;
    for (uint64_t start_ns = spin_ns ? clock_ns() : 0; spin_ns && clock_ns() - start_ns < spin_ns;)
        if (!ring_is_empty(&p->requests) || !ring_is_empty(&p->results))
            return;
    record_flush(&p->record);
    bell_announce(&p->bell);
    bool has_work = !ring_is_empty(&p->requests) || !ring_is_empty(&p->results) || has_suspicions(p) ||
                    (p->core.news_count > 0 && !ring_is_full(&p->hints));
    if (has_work || arena_command(p->arena) == COMMAND_STOP)
        bell_retract(&p->bell);
    else
        bell_wait(&p->bell);
}

int sched_process_open(struct sched_process *p, const struct arena *arena, struct err *err)
{
    *p = (struct sched_process){.arena = arena};
    const struct policy *policy = policy_find(p->arena->plan->policy);
    if (policy == NULL)
        return err_set(err, -1, "this build has no policy \"%s\"; mixed builds?", p->arena->plan->policy);
    sched_init(&p->core, p->arena, policy);
    p->shm = arena_process(p->arena, ROLE_SCHED, 0);
    p->bell = arena_bell(p->arena);
    p->front = arena_pull(p->arena, ROLE_FRONT, 0);
    for (uint32_t stage = 0; stage < p->arena->plan->stage_count; stage++)
        if (plan_begins_with_record(p->arena->plan, stage))
            p->stages[p->stage_count++] = arena_pull(p->arena, ROLE_STAGE, stage);
    arena_ring_front_to_sched_consumer(p->arena, &p->requests);
    arena_ring_sched_to_front_producer(p->arena, &p->hints);
    arena_ring_stage_consumer(p->arena, p->arena->plan->stage_count - 1, &p->results);
    bool is_successor = p->arena->epoch > 1;
    if (is_successor && p->arena->record >= 0)
        log_warn("the recording ends here: it cannot say what was in flight when a scheduler died");
    record_open(&p->record, is_successor ? -1 : p->arena->record, p->arena);
    p->tokens = base_alloc(p->arena->layout.step_results_max * sizeof(*p->tokens));
    tell_time(p);
    if (is_successor) {
        restore_counters(p);
        sched_recover(&p->core, p->results.next);
        process_note(&p->shm->step, p->core.next_step - 1);
        process_note(&p->shm->told, p->hints.next);
    }
    take_suspicions(p);
    take_command(p);
    look_at_all_requests(p);
    plan_steps(p);
    update_counters(p);
    /* A predecessor may have published and died before it rang. */
    ring_stages(p);
    bell_ring(&p->front);
    return 0;
}

bool sched_process_end(struct sched_process *p)
{
    record_flush(&p->record);
    return !p->record.has_failed;
}
