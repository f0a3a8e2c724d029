#include "tools/sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/journal.h"

/* ---- requests; slot i is request i ---- */

static void write_prompt(struct sim *sim, uint32_t index, uint32_t *next_page)
{
    const struct sim_request *request = &sim->scenario.requests[index];
    for (uint32_t page = 0; page < div_up_u64(request->prompt_tokens, PAGE_TOKENS); page++)
        arena_prompt_list(&sim->arena, index)[page] = (*next_page)++;
    uint32_t position = 0;
    size_t i;
    json_t *segment;
    json_array_foreach(request->prompt, i, segment) {
        uint64_t start = (uint64_t)json_integer_value(json_array_get(segment, 0));
        uint64_t length = (uint64_t)json_integer_value(json_array_get(segment, 1));
        for (uint64_t j = 0; j < length; j++) {
            uint32_t token = (uint32_t)((start + j) % 50000 + 100);
            journal_prompt_write(&sim->arena, index, position++, 1, &token);
        }
    }
}

static void prepare_requests(struct sim *sim)
{
    uint32_t next_page = 0;
    for (uint32_t i = 0; i < sim->scenario.request_count; i++) {
        struct request_shm *shm = arena_request(&sim->arena, i);
        shm->generation = 1;
        shm->order = i + 1;
        shm->priority = sim->scenario.requests[i].priority;
        shm->prompt_tokens = sim->scenario.requests[i].prompt_tokens;
        shm->max_tokens = sim->scenario.requests[i].max_tokens;
        shm->choices = 1;
        shm->top_p = 1;
        write_prompt(sim, i, &next_page);
    }
}

static struct sequence_shm *sequence_of(const struct sim *sim, uint32_t index)
{
    const struct answer_shm *answer = arena_answer(&sim->arena, index);
    return answer->sequence_count > 0 ? arena_sequence(&sim->arena, answer->sequences[0]) : NULL;
}

static void end_request(struct sim *sim, uint32_t index, const char *end)
{
    struct sim_request *request = &sim->scenario.requests[index];
    request->is_over = true;
    request->end = end;
    request->end_step = (int64_t)sim->step;
    request->tokens = journal_log_committed(sequence_of(sim, index));
    request->preemptions = sequence_of(sim, index)->preemptions;
    sim->unfinished--;
}

/* ---- a line per step ---- */

static json_t *list_in_line(struct sim *sim, const char *key)
{
    json_t *list = json_object_get(sim->line, key);
    if (list == NULL && sim->line != NULL) {
        list = json_array();
        json_object_set_new(sim->line, key, list);
    }
    return list;
}

static void add_id(struct sim *sim, const char *key, uint32_t index)
{
    if (sim->line == NULL)
        return;
    json_array_append_new(list_in_line(sim, key), json_string(sim->scenario.requests[index].id));
}

void sim_accept(struct sim *sim, uint32_t index)
{
    sim->scenario.requests[index].has_arrived = true;
    sim->unfinished++;
    journal_request_set_state(arena_request(&sim->arena, index), REQUEST_ACCEPTED);
    sched_accept(&sim->sched, index);
    add_id(sim, "arrived", index);
}

void sim_abort(struct sim *sim, uint32_t index, const char *key)
{
    sched_cancel(&sim->sched, index);
    end_request(sim, index, "abort");
    add_id(sim, key, index);
}

void sim_note_running(struct sim *sim)
{
    memset(sim->was_running, 0, sim->scenario.request_count);
    for (uint32_t s = sim->sched.table.running.first; s != SEQ_NONE; s = sim->sched.table.seqs[s].next)
        sim->was_running[arena_sequence(&sim->arena, s)->request] = 1;
}

static const char *kind_of(const struct sim *sim, uint32_t index)
{
    if (sim->was_running[index])
        return "running";
    return sequence_of(sim, index)->preemptions > 0 ? "resumed" : "new";
}

void sim_note_preempted(struct sim *sim)
{
    if (sim->out == NULL)
        return;
    if (sim->preempted == NULL)
        sim->preempted = json_array();
    for (uint32_t i = 0; i < sim->sched.preempted_count; i++) {
        uint32_t index = arena_sequence(&sim->arena, sim->sched.preempted[i])->request;
        json_array_append_new(sim->preempted, json_string(sim->scenario.requests[index].id));
    }
}

void sim_describe_rows(struct sim *sim, const struct step_shm *record)
{
    json_t *scheduled = list_in_line(sim, "scheduled"), *hits = sim->line != NULL ? json_object() : NULL;
    const struct row_shm *rows = record != NULL ? arena_step_rows(&sim->arena, record) : NULL;
    for (uint32_t i = 0; record != NULL && i < record->row_count; i++) {
        uint32_t index = arena_sequence(&sim->arena, rows[i].sequence)->request;
        struct sim_request *request = &sim->scenario.requests[index];
        const char *kind = kind_of(sim, index);
        uint32_t end = rows[i].first_pos + rows[i].token_count;
        sim->recomputed_tokens +=
            min_u64(rows[i].token_count, request->computed_max - min_u64(request->computed_max, rows[i].first_pos));
        request->computed_max = (uint32_t)max_u64(request->computed_max, end);
        if (scheduled != NULL)
            json_array_append_new(scheduled, json_pack("[s, i, i, s]", request->id, (int)rows[i].token_count,
                                                       (int)rows[i].first_pos, kind));
        if (sim->was_running[index])
            continue;
        if (hits != NULL)
            json_object_set_new(hits, request->id, json_integer(rows[i].first_pos));
        if (request->admitted_step < 0) {
            request->admitted_step = (int64_t)sim->step;
            request->hit_tokens = rows[i].first_pos;
        }
    }
    if (sim->line == NULL)
        return;
    sim_note_preempted(sim);
    json_object_set_new(sim->line, "preempted", sim->preempted);
    sim->preempted = NULL;
    json_object_set_new(sim->line, "prefix_hit", hits);
}

/* The results of a step, by the formula; before: (rows) how many tokens each sequence had. */
static void compute_results(struct sim *sim, const struct step_shm *record, uint32_t *before)
{
    const struct row_shm *rows = arena_step_rows(&sim->arena, record);
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct sequence_shm *shm = arena_sequence(&sim->arena, rows[i].sequence);
        before[i] = journal_log_committed(shm);
        if (rows[i].result_count == 1) {
            uint32_t token = scenario_token_at(&sim->scenario, shm->request, rows[i].first_pos + rows[i].token_count);
            sim->results[rows[i].result_first] = (struct token_shm){.token = token, .top_token = token};
        }
    }
}

static void note_token(struct sim *sim, struct sim_request *request)
{
    if (request->first_token_step < 0) {
        request->first_token_step = (int64_t)sim->step;
        request->first_token_us = sim->now_us;
    } else if (sim->itl_us != NULL) {
        check(sim->itl_count < sim->itl_room);
        sim->itl_us[sim->itl_count++] = sim->now_us - request->last_token_us;
    }
    request->last_token_us = sim->now_us;
}

void sim_return_step(struct sim *sim, uint64_t step)
{
    const struct step_shm *record = arena_step(&sim->arena, step);
    const struct row_shm *rows = arena_step_rows(&sim->arena, record);
    json_t *emitted = list_in_line(sim, "emitted"), *finished = list_in_line(sim, "finished");
    compute_results(sim, record, sim->before);
    check(sched_return(&sim->sched, step, sim->results, record->result_count));
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct sequence_shm *shm = arena_sequence(&sim->arena, rows[i].sequence);
        struct sim_request *request = &sim->scenario.requests[shm->request];
        if (journal_log_committed(shm) == sim->before[i])
            continue;
        add_id(sim, "emitted", shm->request);
        note_token(sim, request);
        if (!request->is_over && journal_sequence_state(shm) == SEQUENCE_DONE) {
            const char *reason = shm->finish_reason == FINISH_STOP ? "stop" : "length";
            end_request(sim, shm->request, reason);
            if (finished != NULL)
                json_array_append_new(finished, json_pack("[s, s]", request->id, reason));
        }
    }
    (void)emitted; /* the list is there even when it is empty */
}

void sim_write_line(struct sim *sim)
{
    if (sim->line == NULL)
        return;
    json_object_set_new(sim->line, "free", json_integer(sim->sched.kv.free_count));
    json_object_set_new(sim->line, "running", json_integer(sim->sched.table.running.count));
    json_object_set_new(sim->line, "waiting", json_integer(sim->sched.table.waiting.count));
    if (sim->out != NULL) {
        json_dumpf(sim->line, sim->out, JSON_COMPACT);
        fputc('\n', sim->out);
    }
}

static json_t *step_or_null(int64_t step)
{
    return step >= 0 ? json_integer(step) : json_null();
}

void sim_write_end(struct sim *sim)
{
    if (sim->out == NULL)
        return;
    json_t *ends = json_object();
    for (uint32_t i = 0; i < sim->scenario.request_count; i++) {
        const struct sim_request *r = &sim->scenario.requests[i];
        json_object_set_new(ends, r->id,
                            json_pack("{s:s, s:i, s:i, s:o, s:o, s:o, s:o}", "end", r->end, "tokens", (int)r->tokens,
                                      "preempted", (int)r->preemptions, "admitted_step", step_or_null(r->admitted_step),
                                      "first_token_step", step_or_null(r->first_token_step), "end_step",
                                      step_or_null(r->end_step), "hit_tokens",
                                      step_or_null(r->hit_tokens < 0 ? 0 : r->hit_tokens)));
    }
    json_t *line = json_pack("{s:o, s:I, s:i, s:i}", "end", ends, "steps", (json_int_t)sim->steps_run, "depth",
                             (int)sim->scenario.depth, "max_model_len", (int)sim->plan.max_model_len);
    json_dumpf(line, sim->out, JSON_COMPACT);
    fputc('\n', sim->out);
    json_decref(line);
}

/* ---- opening and closing ---- */

int sim_open(struct sim *sim, json_t *root, const struct policy *policy, const struct timing *timing, struct err *err)
{
    *sim = (struct sim){.out = sim->out, .keeps_spans = sim->keeps_spans};
    int ret = scenario_read(&sim->scenario, &sim->plan, root, timing, policy->chooses_window, err);
    if (ret != 0) {
        scenario_free(&sim->scenario);
        return ret;
    }
    arena_in_memory(&sim->arena, &sim->plan);
    sched_init(&sim->sched, &sim->arena, policy);
    sim->queue = base_alloc((sim->plan.window + 1) * sizeof(*sim->queue));
    sim->results = base_alloc(sim->arena.layout.step_results_max * sizeof(*sim->results));
    sim->before = base_alloc(sim->plan.max_num_seqs * sizeof(*sim->before));
    sim->was_running = base_alloc(sim->scenario.request_count);
    if (timing != NULL) {
        for (uint32_t i = 0; i < sim->scenario.request_count; i++)
            sim->itl_room += sim->scenario.requests[i].max_tokens;
        sim->itl_us = base_alloc(sim->itl_room * sizeof(*sim->itl_us));
    }
    prepare_requests(sim);
    return 0;
}

void sim_close(struct sim *sim)
{
    sched_fini(&sim->sched);
    arena_in_memory_free(&sim->arena);
    scenario_free(&sim->scenario);
    free(sim->queue);
    free(sim->results);
    free(sim->before);
    free(sim->was_running);
    free(sim->itl_us);
    free(sim->slot_us);
    free(sim->spans);
    json_decref(sim->preempted);
    *sim = (struct sim){0};
}
