/* sim_ticks.c - time in engine steps: vLLM's loop, exactly, empty batches included (step_with_batch_queue()). */
#include <stdlib.h>
#include <string.h>

#include "tools/sim.h"

static void take_arrivals(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        if (!sim->scenario.requests[i].has_arrived && sim->scenario.requests[i].arrival_step == sim->step)
            sim_accept(sim, i);
}

static void take_aborts(struct sim *sim, bool is_before_update)
{
    for (uint32_t i = 0; i < sim->scenario.request_count; i++) {
        struct sim_request *request = &sim->scenario.requests[i];
        if (!request->has_abort || request->abort_step != sim->step ||
            request->aborts_before_update != is_before_update || !request->has_arrived || request->is_over)
            continue;
        sim_abort(sim, i, is_before_update ? "aborted_before_update" : "aborted");
    }
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Ids that ended since the last schedule(), sorted. */
static bool tell_finished(struct sim *sim)
{
    const char **ids = base_alloc((sim->scenario.request_count + 1) * sizeof(*ids));
    size_t count = 0;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        if (sim->scenario.requests[i].is_over && !sim->scenario.requests[i].is_told) {
            sim->scenario.requests[i].is_told = true;
            ids[count++] = sim->scenario.requests[i].id;
        }
    qsort(ids, count, sizeof(*ids), compare_ids);
    json_t *told = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(told, json_string(ids[i]));
    json_object_set_new(sim->line, "told_finished", told);
    free(ids);
    return count > 0;
}

static bool has_untold(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        if (sim->scenario.requests[i].is_over && !sim->scenario.requests[i].is_told)
            return true;
    return false;
}

/* One schedule(): the batch joins the queue even when it is empty. True when it is not. */
static bool schedule(struct sim *sim)
{
    sim_note_running(sim);
    json_object_set_new(sim->line, "seq", json_integer((json_int_t)sim->seq));
    sim->sched.preempted_count = 0;
    struct step_shm *record = sched_plan(&sim->sched);
    if (record != NULL)
        step_publish(record);
    sim_describe_rows(sim, record);
    tell_finished(sim);
    json_object_set_new(sim->line, "free_after_schedule", json_integer(sim->sched.kv.free_count));
    sim->queue[sim->queued++] = (struct batch){.seq = sim->seq++, .step = record != NULL ? record->step : 0};
    return record != NULL;
}

/* One update_from_output() of the oldest batch. */
static void update(struct sim *sim)
{
    struct batch batch = sim->queue[0];
    memmove(sim->queue, sim->queue + 1, --sim->queued * sizeof(*sim->queue));
    json_object_set_new(sim->line, "updated", json_integer((json_int_t)batch.seq));
    if (batch.step != 0)
        sim_return_step(sim, batch.step);
}

/* One engine step. False when there was nothing to do. */
static bool run_step(struct sim *sim)
{
    bool has_requests = sim->unfinished > 0 || has_untold(sim);
    if (!has_requests && sim->queued == 0)
        return false;
    if (has_requests) {
        bool is_filled = schedule(sim);
        if (sim->queued < sim->scenario.depth && (is_filled || sim->unfinished > 0 || has_untold(sim)))
            return true;
    }
    take_aborts(sim, true);
    update(sim);
    return true;
}

static bool is_all_over(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        if (!sim->scenario.requests[i].has_arrived || !sim->scenario.requests[i].is_told)
            return false;
    return sim->queued == 0;
}

/* Idle steps until the next arrival take no time to simulate. */
static void pass_idle_time(struct sim *sim)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++)
        if (!sim->scenario.requests[i].has_arrived)
            next = min_u64(next, sim->scenario.requests[i].arrival_step);
    check(next != UINT64_MAX);
    sim->step = next - 1;
}

void sim_run_ticks(struct sim *sim)
{
    for (; !is_all_over(sim); sim->step++) {
        sim->line = json_pack("{s:I}", "step", (json_int_t)sim->step);
        take_arrivals(sim);
        take_aborts(sim, false);
        if (run_step(sim)) {
            sim_write_line(sim);
            sim->steps_run++;
        } else {
            pass_idle_time(sim);
        }
        json_decref(sim->line);
        sim->line = NULL;
    }
    sim_write_end(sim);
}
