/* sim_clock.c - time on the clock of a described pipeline: the engine's own driver over the formulas of ipc/timing.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/journal.h"
#include "tools/pipeline.h"
#include "tools/samples.h"
#include "tools/sim.h"

/* When each server is free again. */
struct servers {
    double stage_us[TIMING_STAGES_MAX], link_us[TIMING_STAGES_MAX];
};

static struct sim_span send_through(struct sim *sim, struct servers *free_at, const struct shape *shape)
{
    const struct timing *timing = &sim->plan.timing;
    struct sim_span span = {
        .rows = (uint32_t)shape->rows, .tokens = (uint32_t)shape->tokens, .planned_us = sim->now_us};
    double at = sim->now_us + timing->plan_us;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        double busy = timing_stage_us(&timing->stages[i], shape);
        span.start_us[i] = fmax(at, free_at->stage_us[i]);
        at = span.end_us[i] = free_at->stage_us[i] = span.start_us[i] + busy;
        sim->busy_us[i] += busy;
        if (i + 1 == timing->stage_count)
            break;
        span.link_start_us[i] = fmax(at, free_at->link_us[i]);
        at = span.link_end_us[i] = free_at->link_us[i] =
            span.link_start_us[i] + timing_link_us(&timing->links[i], shape);
    }
    span.returned_us = at + timing->return_us;
    return span;
}

static void keep(struct sim *sim, const struct sim_span *span)
{
    if (sim->span_count == sim->span_room) {
        sim->span_room = sim->span_room ? 2 * sim->span_room : 1024;
        sim->spans = realloc(sim->spans, sim->span_room * sizeof(*sim->spans));
        check(sim->spans != NULL);
    }
    sim->spans[sim->span_count++] = *span;
}

static void note_slot(struct sim *sim, double bottleneck_us)
{
    if (sim->steps_run == sim->slot_room) {
        sim->slot_room = sim->slot_room ? 2 * sim->slot_room : 1024;
        sim->slot_us = realloc(sim->slot_us, sim->slot_room * sizeof(*sim->slot_us));
        check(sim->slot_us != NULL);
    }
    sim->slot_us[sim->steps_run++] = bottleneck_us;
}

static uint32_t prefill_tokens(const struct sim *sim, const struct step_shm *record)
{
    const struct row_shm *rows = arena_step_rows(&sim->arena, record);
    uint32_t tokens = 0;
    for (uint32_t i = 0; i < record->row_count; i++)
        if (rows[i].token_count > 1 || rows[i].first_pos < arena_sequence(&sim->arena, rows[i].sequence)->prompt_tokens)
            tokens += rows[i].token_count;
    return tokens;
}

static void describe_times(struct sim *sim, const struct sim_span *span)
{
    json_t *stages = json_array();
    for (uint64_t i = 0; i < sim->plan.timing.stage_count; i++)
        json_array_append_new(stages, json_pack("[f, f]", span->start_us[i] / 1e6, span->end_us[i] / 1e6));
    json_object_set_new(sim->line, "planned_s", json_real(span->planned_us / 1e6));
    json_object_set_new(sim->line, "returned_s", json_real(span->returned_us / 1e6));
    json_object_set_new(sim->line, "stages", stages);
}

/* Plans one step and sends it through the pipeline. False: there was nothing to plan. */
static bool plan_one(struct sim *sim, struct servers *free_at)
{
    sim_note_running(sim);
    sched_set_time(&sim->sched, (uint64_t)sim->now_us);
    struct step_shm *record = sched_plan(&sim->sched);
    if (record == NULL) {
        sim_note_preempted(sim);
        return sim->sched.wants_another_plan;
    }
    step_publish(record);
    const struct shape shape = *policy_shape(&sim->sched);
    struct sim_span span = send_through(sim, free_at, &shape);
    span.step = record->step;
    span.prefill_tokens = prefill_tokens(sim, record);
    sim->step = record->step;
    sim->line = sim->out != NULL
                    ? json_pack("{s:I, s:I}", "step", (json_int_t)sim->steps_run, "seq", (json_int_t)sim->steps_run)
                    : NULL;
    sim_describe_rows(sim, record);
    if (sim->line != NULL)
        describe_times(sim, &span);
    sim_write_line(sim);
    json_decref(sim->line);
    sim->line = NULL;
    sim->queue[sim->queued++] = (struct batch){.step = record->step, .returned_us = span.returned_us};
    sim->window_area_us += span.returned_us - span.planned_us;
    sim->makespan_us = fmax(sim->makespan_us, span.returned_us);
    note_slot(sim, timing_bottleneck_us(&sim->plan.timing, &shape));
    if (sim->keeps_spans)
        keep(sim, &span);
    sim->now_us += sim->plan.timing.plan_us;
    return true;
}

static void take_results(struct sim *sim)
{
    while (sim->queued > 0 && sim->queue[0].returned_us <= sim->now_us) {
        struct batch batch = sim->queue[0];
        memmove(sim->queue, sim->queue + 1, --sim->queued * sizeof(*sim->queue));
        sim_return_step(sim, batch.step);
    }
}

/* Requests by arrival, those of one moment in the order of the scenario. */
struct arrivals {
    uint32_t *order; /* (request_count) */
    uint32_t next;
};

static const struct sim_request *sorted_requests; /* for compare_arrivals() alone */

static int compare_arrivals(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    double first = sorted_requests[x].arrival_us, second = sorted_requests[y].arrival_us;
    return first != second ? (first < second ? -1 : 1) : (x < y ? -1 : 1);
}

static struct arrivals sort_arrivals(const struct sim *sim)
{
    struct arrivals arrivals = {.order = base_alloc(sim->scenario.request_count * sizeof(uint32_t))};
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        arrivals.order[i] = i;
    sorted_requests = sim->scenario.requests;
    qsort(arrivals.order, sim->scenario.request_count, sizeof(uint32_t), compare_arrivals);
    return arrivals;
}

static void take_arrivals(struct sim *sim, struct arrivals *arrivals)
{
    for (; arrivals->next < sim->scenario.request_count; arrivals->next++) {
        uint32_t index = arrivals->order[arrivals->next];
        if (sim->scenario.requests[index].arrival_us > sim->now_us)
            return;
        sched_set_time(&sim->sched, (uint64_t)sim->scenario.requests[index].arrival_us);
        sim_accept(sim, index);
    }
}

/* Aborts whose time has come; when the next one comes. */
static double take_aborts(struct sim *sim)
{
    double next = INFINITY;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++) {
        const struct sim_request *request = &sim->scenario.requests[i];
        if (!request->has_abort || request->is_over)
            continue;
        if (request->abort_us > sim->now_us)
            next = fmin(next, request->abort_us);
        else if (request->has_arrived)
            sim_abort(sim, i, "aborted");
    }
    return next;
}

void sim_run_clock(struct sim *sim)
{
    struct arrivals arrivals = sort_arrivals(sim);
    struct servers free_at = {0};
    bool has_aborts = false;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        has_aborts = has_aborts || sim->scenario.requests[i].has_abort;
    for (;;) {
        take_arrivals(sim, &arrivals);
        double next = has_aborts ? take_aborts(sim) : INFINITY;
        take_results(sim);
        if (plan_one(sim, &free_at))
            continue;
        if (arrivals.next < sim->scenario.request_count)
            next = fmin(next, sim->scenario.requests[arrivals.order[arrivals.next]].arrival_us);
        if (sim->queued > 0)
            next = fmin(next, sim->queue[0].returned_us);
        if (isinf(next))
            break;
        sim->now_us = fmax(next, sim->now_us);
    }
    check(sim->unfinished == 0); /* every policy gets every request done */
    free(arrivals.order);
    sim_write_end(sim);
}

/* ---- the summary ---- */

static json_t *percentiles_ms(double *values_us, size_t count)
{
    struct samples samples = {.values = values_us, .count = count};
    samples_sort(&samples);
    return json_pack("{s:f, s:f, s:f}", "p50", samples_percentile(&samples, 0.5) / 1e3, "p90",
                     samples_percentile(&samples, 0.9) / 1e3, "p99", samples_percentile(&samples, 0.99) / 1e3);
}

/* How unequal the microbatches of a window are: standard deviation over mean, averaged over all windows. */
static double slot_cv(const struct sim *sim)
{
    uint64_t width = sim->plan.timing.stage_count > 1 ? sim->plan.timing.stage_count : 2, windows = 0;
    double sum = 0;
    for (uint64_t first = 0; first + width <= sim->steps_run; first++, windows++) {
        double mean = 0, variance = 0;
        for (uint64_t i = first; i < first + width; i++)
            mean += sim->slot_us[i] / (double)width;
        for (uint64_t i = first; i < first + width; i++)
            variance += (sim->slot_us[i] - mean) * (sim->slot_us[i] - mean) / (double)width;
        sum += sqrt(variance) / mean;
    }
    return windows > 0 ? sum / (double)windows : 0;
}

static double ttft_us(const struct sim_request *request)
{
    return request->first_token_us - request->arrival_us;
}

static double tpot_us(const struct sim_request *request)
{
    return request->tokens > 1 ? (request->last_token_us - request->first_token_us) / (double)(request->tokens - 1) : 0;
}

double sim_goodput(const struct sim *sim, double ttft_ms, double tpot_ms)
{
    uint32_t good = 0;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++) {
        const struct sim_request *r = &sim->scenario.requests[i];
        good += r->tokens > 0 && ttft_us(r) <= ttft_ms * 1e3 && tpot_us(r) <= tpot_ms * 1e3;
    }
    return (double)good / sim->scenario.request_count;
}

json_t *sim_summary(const struct sim *sim)
{
    uint32_t count = sim->scenario.request_count;
    double *ttft = base_alloc(count * sizeof(*ttft)), *tpot = base_alloc(count * sizeof(*tpot));
    size_t ttft_count = 0, tpot_count = 0;
    uint64_t preemptions = 0, output = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct sim_request *r = &sim->scenario.requests[i];
        preemptions += r->preemptions;
        output += r->tokens;
        if (r->tokens > 0)
            ttft[ttft_count++] = ttft_us(r);
        if (r->tokens > 1)
            tpot[tpot_count++] = tpot_us(r);
    }
    struct pipeline_bounds bounds = pipeline_bounds(&sim->plan.timing, &sim->scenario, &sim->plan);
    json_t *busy = json_array();
    for (uint64_t i = 0; i < sim->plan.timing.stage_count; i++)
        json_array_append_new(busy, json_real(sim->makespan_us > 0 ? sim->busy_us[i] / sim->makespan_us : 0));
    json_t *summary = json_pack(
        "{s:s, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I}", "policy", sim->sched.policy->name, "makespan_s",
        sim->makespan_us / 1e6, "lower_bound_s", bounds.strict_us / 1e6, "lower_bound_mean_field_s",
        bounds.mean_field_us / 1e6, "efficiency", sim->makespan_us > 0 ? bounds.strict_us / sim->makespan_us : 0,
        "output_tokens_per_s", sim->makespan_us > 0 ? (double)output / sim->makespan_us * 1e6 : 0, "output_tokens",
        (json_int_t)output, "steps", (json_int_t)sim->steps_run, "preemptions", (json_int_t)preemptions,
        "recomputed_tokens", (json_int_t)sim->recomputed_tokens, "cached_tokens", (json_int_t)sim->sched.cached_tokens);
    json_object_set_new(summary, "ttft_ms", percentiles_ms(ttft, ttft_count));
    json_object_set_new(summary, "tpot_ms", percentiles_ms(tpot, tpot_count));
    json_object_set_new(summary, "itl_ms", percentiles_ms(sim->itl_us, sim->itl_count));
    json_object_set_new(summary, "stage_busy", busy);
    json_object_set_new(summary, "slot_cv", json_real(slot_cv(sim)));
    json_object_set_new(summary, "window_mean",
                        json_real(sim->makespan_us > 0 ? sim->window_area_us / sim->makespan_us : 0));
    free(ttft);
    free(tpot);
    return summary;
}
