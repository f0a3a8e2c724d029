/* cmd_sim.c - evenflow sim: the scheduler on a virtual clock, with a model that is a formula.
 *
 * The scheduler is the engine's own (engine/sched.c and its policies, in plain memory). Time is counted in engine steps: each
 * step schedules once and, when the queue of batches is full or nothing could be scheduled, processes the oldest batch; that
 * is vLLM's step_with_batch_queue(), empty batches included. Scenarios and step lines: docs/simulator.md.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/sched.h"
#include "ipc/journal.h"
#include "tools/commands.h"
#include "tools/replay.h"

#define VOCAB_SIZE  50100u
#define END_TOKEN   1u
#define TOKENS_MAX  (1u << 22) /* of one prompt */
#define REQUEST_MAX 100000u

struct values {
    char policy[OPTION_TEXT_MAX];
    char steps[OPTION_TEXT_MAX];
    char replay[OPTION_TEXT_MAX];
    bool json;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"policy", NULL, 0, OPTION_TEXT, AT(policy), "default", 0, 0, "NAME", "Scheduling policy: default"},
    {"steps", NULL, 0, OPTION_TEXT, AT(steps), NULL, 0, 0, "FILE", "Writes one line per step; - is standard output"},
    {"replay", NULL, 0, OPTION_TEXT, AT(replay), NULL, 0, 0, "FILE",
     "Plans again from what serve --record wrote, and says whether every step is the same"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "Prints the summary as JSON"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

struct sim_request {
    const char *id;
    json_t *prompt; /* [[start, length], ...] */
    uint64_t arrival_step, abort_step;
    bool has_abort, aborts_before_update;
    uint32_t prompt_tokens, max_tokens, eos_after; /* 0: never */
    int32_t priority;

    /* what became of it */
    bool has_arrived, is_over, is_told;
    const char *end;
    uint32_t tokens, preemptions;
    int64_t admitted_step, first_token_step, end_step, hit_tokens; /* -1: never */
};

struct batch {
    uint64_t seq, step; /* step 0: empty */
};

struct sim {
    struct plan plan;
    struct arena arena;
    struct sched sched;
    struct sim_request *requests;
    uint32_t request_count, depth, unfinished;
    struct batch *queue; /* (depth), oldest first */
    uint32_t queued;
    uint64_t step, seq, steps_run, preemptions, recomputed_tokens;
    struct token_shm *results;
    FILE *out;
    json_t *line;
};

/* ---- the scenario ---- */

/* "key: 7.5 must be ..." */
static void refuse_value(struct err *err, const char *key, json_t *value, const char *wanted)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    err_set(err, -EINVAL, "%s: %.80s must be %s", key, text != NULL ? text : "?", wanted);
    free(text);
}

static uint64_t number_of(json_t *object, const char *key, uint64_t standard, uint64_t min, uint64_t max,
                          struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (value == NULL)
        return standard;
    if (!json_is_integer(value) || json_integer_value(value) < (json_int_t)min ||
        json_integer_value(value) > (json_int_t)max) {
        char wanted[96];
        snprintf(wanted, sizeof(wanted), "a whole number from %llu to %llu", (unsigned long long)min,
                 (unsigned long long)max);
        refuse_value(err, key, value, wanted);
    }
    return (uint64_t)json_integer_value(value);
}

static bool flag_of(json_t *object, const char *key, bool standard, struct err *err)
{
    json_t *value = json_object_get(object, key);
    if (value == NULL)
        return standard;
    if (!json_is_boolean(value))
        refuse_value(err, key, value, "true or false");
    return json_is_true(value);
}

static int read_prompt(struct sim_request *request, json_t *prompt, struct err *err)
{
    size_t i;
    json_t *segment;
    uint64_t tokens = 0;
    if (!json_is_array(prompt))
        return err_set(err, -EINVAL, "prompt: must be a list of [start, length]");
    json_array_foreach(prompt, i, segment) {
        json_t *start = json_array_get(segment, 0), *length = json_array_get(segment, 1);
        if (!json_is_integer(start) || !json_is_integer(length) || json_integer_value(start) < 0 ||
            json_integer_value(length) < 0 || json_integer_value(length) > TOKENS_MAX)
            return err_set(err, -EINVAL, "prompt: segment %zu must be [start, length], two numbers of at least 0", i);
        tokens += (uint64_t)json_integer_value(length);
    }
    if (tokens == 0 || tokens > TOKENS_MAX)
        return err_set(err, -EINVAL, "prompt: has %llu tokens; 1 to %u are possible", (unsigned long long)tokens,
                       TOKENS_MAX);
    request->prompt = prompt;
    request->prompt_tokens = (uint32_t)tokens;
    return 0;
}

static int read_request(struct sim_request *request, json_t *object, struct err *err)
{
    *request = (struct sim_request){.admitted_step = -1, .first_token_step = -1, .end_step = -1, .hit_tokens = -1};
    request->id = json_string_value(json_object_get(object, "id"));
    if (request->id == NULL)
        return err_set(err, -EINVAL, "id: must be a text");
    request->arrival_step = number_of(object, "arrival_step", 0, 0, INT64_MAX, err);
    request->max_tokens = (uint32_t)number_of(object, "max_tokens", 16, 1, TOKENS_MAX, err);
    request->eos_after = (uint32_t)number_of(object, "eos_after", 0, 1, TOKENS_MAX, err);
    json_t *priority = json_object_get(object, "priority");
    if (priority != NULL && !json_is_integer(priority))
        err_set(err, -EINVAL, "priority: must be a whole number");
    request->priority = (int32_t)json_integer_value(priority);
    request->has_abort = json_object_get(object, "abort_at_step") != NULL;
    request->abort_step = number_of(object, "abort_at_step", 0, 0, INT64_MAX, err);
    json_t *phase = json_object_get(object, "abort_phase");
    const char *name = phase != NULL ? json_string_value(phase) : "input";
    if (name == NULL || (strcmp(name, "input") != 0 && strcmp(name, "output") != 0))
        return err_set(err, -EINVAL, "abort_phase: \"%.80s\" must be input or output", name != NULL ? name : "?");
    request->aborts_before_update = strcmp(name, "output") == 0;
    return err->text[0] != '\0' ? -EINVAL : read_prompt(request, json_object_get(object, "prompt"), err);
}

static int read_requests(struct sim *sim, json_t *requests, struct err *err)
{
    size_t i;
    json_t *object;
    if (!json_is_array(requests) || json_array_size(requests) == 0 || json_array_size(requests) > REQUEST_MAX)
        return err_set(err, -EINVAL, "requests: must be a list of 1 to %u", REQUEST_MAX);
    sim->requests = base_alloc(json_array_size(requests) * sizeof(*sim->requests));
    json_array_foreach(requests, i, object) {
        int ret = read_request(&sim->requests[i], object, err);
        if (ret != 0)
            return err_prefix(err, ret, "requests[%zu]", i);
        sim->request_count++;
    }
    return 0;
}

/* Knobs that would change decisions and are not there. */
static int refuse_unknown(json_t *config, struct err *err)
{
    static const char *const known[] = {"max_num_batched_tokens",
                                        "max_num_seqs",
                                        "block_size",
                                        "num_blocks",
                                        "enable_chunked_prefill",
                                        "long_prefill_token_threshold",
                                        "long_prefill_token_threshold_adaptive",
                                        "policy",
                                        "enable_prefix_caching",
                                        "pipeline_depth",
                                        "max_model_len",
                                        "watermark",
                                        "scheduler_reserve_full_isl",
                                        "async_scheduling"};
    const char *key;
    json_t *value;
    json_object_foreach(config, key, value) {
        bool is_known = false;
        for (size_t i = 0; i < ARRAY_COUNT(known); i++)
            is_known = is_known || strcmp(known[i], key) == 0;
        if (!is_known)
            return err_set(err, -EINVAL, "config: %s is not supported", key);
    }
    if (json_is_true(json_object_get(config, "async_scheduling")))
        return err_set(err, -EINVAL, "config: async_scheduling is not supported");
    return 0;
}

static int make_plan(struct sim *sim, json_t *config, struct err *err)
{
    struct plan *plan = &sim->plan;
    uint64_t longest = 0, prompt_tokens = 0, log_tokens = 0;
    for (uint32_t i = 0; i < sim->request_count; i++) {
        const struct sim_request *request = &sim->requests[i];
        longest = max_u64(longest, (uint64_t)request->prompt_tokens + request->max_tokens);
        prompt_tokens += align_up_u64(request->prompt_tokens, PAGE_TOKENS);
        log_tokens += align_up_u64(request->max_tokens, LOG_PAGE_TOKENS);
    }
    int ret = refuse_unknown(config, err);
    if (ret != 0)
        return ret;
    *plan = (struct plan){.magic = PLAN_MAGIC,
                          .layout_hash = LAYOUT_HASH,
                          .layers = 1,
                          .width = 1,
                          .heads = 1,
                          .kv_heads = 1,
                          .head_dim = 1,
                          .vocab_size = VOCAB_SIZE,
                          .end_token_count = 1,
                          .end_tokens = {END_TOKEN},
                          .stage_count = 1,
                          .slices = {{.layer_count = 1}},
                          .connections_max = 1,
                          .body_bytes_max = 1024};
    plan->max_num_batched_tokens = (uint32_t)number_of(config, "max_num_batched_tokens", 2048, 1, 1 << 18, err);
    plan->max_num_seqs = (uint32_t)number_of(config, "max_num_seqs", 256, 1, 4096, err);
    plan->block_size = (uint32_t)number_of(config, "block_size", 16, 1, 1024, err);
    plan->num_blocks = (uint32_t)number_of(config, "num_blocks", 1000, 1, 1 << 28, err);
    plan->enable_chunked_prefill = flag_of(config, "enable_chunked_prefill", true, err);
    plan->long_prefill_token_threshold =
        (uint32_t)number_of(config, "long_prefill_token_threshold", 0, 0, 1 << 20, err);
    plan->long_prefill_token_threshold_adaptive = flag_of(config, "long_prefill_token_threshold_adaptive", false, err);
    plan->enable_prefix_caching = flag_of(config, "enable_prefix_caching", true, err);
    plan->reserve_full_isl = flag_of(config, "scheduler_reserve_full_isl", true, err);
    double watermark = json_number_value(json_object_get(config, "watermark"));
    plan->watermark_blocks = (uint32_t)(watermark * (double)(plan->num_blocks + 1));
    const char *order = json_string_value(json_object_get(config, "policy"));
    plan->uses_priority = order != NULL && strcmp(order, "priority") == 0;
    if (order != NULL && !plan->uses_priority && strcmp(order, "fcfs") != 0)
        err_set(err, -EINVAL, "policy: \"%.80s\" must be fcfs or priority", order);
    sim->depth = (uint32_t)number_of(config, "pipeline_depth", 1, 1, 4 * STAGES_MAX, err);
    plan->window = sim->depth;
    uint64_t standard = max_u64(longest + 1, 64);
    if (!plan->enable_chunked_prefill)
        standard = min_u64(standard, plan->max_num_batched_tokens);
    plan->max_model_len = (uint32_t)number_of(config, "max_model_len", standard, 1, 1 << 22, err);
    if (err->text[0] != '\0')
        return err_prefix(err, -EINVAL, "config");
    uint64_t capacity = min_u64(plan->max_model_len, (uint64_t)plan->num_blocks * plan->block_size);
    for (uint32_t i = 0; i < sim->request_count; i++) {
        struct sim_request *request = &sim->requests[i];
        uint32_t output =
            request->eos_after ? (uint32_t)min_u64(request->eos_after, request->max_tokens) : request->max_tokens;
        if ((uint64_t)request->prompt_tokens + output > capacity)
            return err_set(err, -EINVAL, "requests[%u]: %u + %u tokens can never run: at most %llu fit", i,
                           request->prompt_tokens, output, (unsigned long long)capacity);
        /* a limit beyond what can be, which the end token comes before */
        request->max_tokens = (uint32_t)min_u64(request->max_tokens, capacity - request->prompt_tokens);
    }
    plan->requests_max = plan->sequences_max = sim->request_count;
    plan->prompt_pages = (uint32_t)(prompt_tokens / PAGE_TOKENS);
    plan->log_pages = (uint32_t)(log_tokens / LOG_PAGE_TOKENS);
    return plan_validate(plan, err);
}

/* ---- the model ---- */

/* Output of a request at a position of its sequence. */
static uint32_t token_at(const struct sim *sim, uint32_t index, uint32_t position)
{
    const struct sim_request *request = &sim->requests[index];
    if (request->eos_after != 0 && position - request->prompt_tokens + 1 == request->eos_after)
        return END_TOKEN;
    return (uint32_t)(((uint64_t)index * 7919 + position) % 50000 + 100);
}

/* ---- requests; slot i is request i ---- */

static void write_prompt(struct sim *sim, uint32_t index, uint32_t *next_page)
{
    const struct sim_request *request = &sim->requests[index];
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
    for (uint32_t i = 0; i < sim->request_count; i++) {
        struct request_shm *shm = arena_request(&sim->arena, i);
        shm->generation = 1;
        shm->order = i + 1;
        shm->priority = sim->requests[i].priority;
        shm->prompt_tokens = sim->requests[i].prompt_tokens;
        shm->max_tokens = sim->requests[i].max_tokens;
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
    struct sim_request *request = &sim->requests[index];
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
    if (list == NULL) {
        list = json_array();
        json_object_set_new(sim->line, key, list);
    }
    return list;
}

static void add_id(struct sim *sim, const char *key, uint32_t index)
{
    json_array_append_new(list_in_line(sim, key), json_string(sim->requests[index].id));
}

static void take_arrivals(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->request_count; i++) {
        if (sim->requests[i].has_arrived || sim->requests[i].arrival_step != sim->step)
            continue;
        sim->requests[i].has_arrived = true;
        sim->unfinished++;
        journal_request_set_state(arena_request(&sim->arena, i), REQUEST_ACCEPTED);
        sched_accept(&sim->sched, i);
        add_id(sim, "arrived", i);
    }
}

static void take_aborts(struct sim *sim, bool is_before_update)
{
    for (uint32_t i = 0; i < sim->request_count; i++) {
        struct sim_request *request = &sim->requests[i];
        if (!request->has_abort || request->abort_step != sim->step ||
            request->aborts_before_update != is_before_update || !request->has_arrived || request->is_over)
            continue;
        sched_cancel(&sim->sched, i);
        end_request(sim, i, "abort");
        add_id(sim, is_before_update ? "aborted_before_update" : "aborted", i);
    }
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Ids that ended since the last schedule(), sorted. */
static bool tell_finished(struct sim *sim)
{
    const char **ids = base_alloc((sim->request_count + 1) * sizeof(*ids));
    size_t count = 0;
    for (uint32_t i = 0; i < sim->request_count; i++)
        if (sim->requests[i].is_over && !sim->requests[i].is_told) {
            sim->requests[i].is_told = true;
            ids[count++] = sim->requests[i].id;
        }
    qsort(ids, count, sizeof(*ids), compare_ids);
    json_t *told = list_in_line(sim, "told_finished");
    for (size_t i = 0; i < count; i++)
        json_array_append_new(told, json_string(ids[i]));
    free(ids);
    return count > 0;
}

static bool has_untold(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->request_count; i++)
        if (sim->requests[i].is_over && !sim->requests[i].is_told)
            return true;
    return false;
}

static const char *kind_of(const struct sim *sim, uint32_t index, const uint8_t *was_running)
{
    if (was_running[index])
        return "running";
    return sequence_of(sim, index)->preemptions > 0 ? "resumed" : "new";
}

static void describe_rows(struct sim *sim, const struct step_shm *record, const uint8_t *was_running)
{
    json_t *scheduled = list_in_line(sim, "scheduled"), *hits = json_object();
    const struct row_shm *rows = record != NULL ? arena_step_rows(&sim->arena, record) : NULL;
    for (uint32_t i = 0; record != NULL && i < record->row_count; i++) {
        uint32_t index = arena_sequence(&sim->arena, rows[i].sequence)->request;
        struct sim_request *request = &sim->requests[index];
        const char *kind = kind_of(sim, index, was_running);
        json_array_append_new(
            scheduled, json_pack("[s, i, i, s]", request->id, (int)rows[i].token_count, (int)rows[i].first_pos, kind));
        if (was_running[index])
            continue;
        json_object_set_new(hits, request->id, json_integer(rows[i].first_pos));
        if (request->admitted_step < 0) {
            request->admitted_step = (int64_t)sim->step;
            request->hit_tokens = rows[i].first_pos;
        }
    }
    json_t *preempted = list_in_line(sim, "preempted");
    for (uint32_t i = 0; i < sim->sched.preempted_count; i++) {
        uint32_t index = arena_sequence(&sim->arena, sim->sched.preempted[i])->request;
        json_array_append_new(preempted, json_string(sim->requests[index].id));
    }
    json_object_set_new(sim->line, "prefix_hit", hits);
}

/* One schedule(): the batch joins the queue even when it is empty. True when it is not. */
static bool schedule(struct sim *sim)
{
    uint8_t *was_running = base_alloc(sim->request_count);
    for (uint32_t s = sim->sched.table.running.first; s != SEQ_NONE; s = sim->sched.table.seqs[s].next)
        was_running[arena_sequence(&sim->arena, s)->request] = 1;
    json_object_set_new(sim->line, "seq", json_integer((json_int_t)sim->seq));
    sim->sched.preempted_count = 0;
    struct step_shm *record = sched_plan(&sim->sched);
    if (record != NULL)
        step_publish(record);
    describe_rows(sim, record, was_running);
    tell_finished(sim);
    json_object_set_new(sim->line, "free_after_schedule", json_integer(sim->sched.kv.free_count));
    sim->queue[sim->queued++] = (struct batch){.seq = sim->seq++, .step = record != NULL ? record->step : 0};
    free(was_running);
    return record != NULL;
}

/* One update_from_output() of the oldest batch. */
static void update(struct sim *sim)
{
    struct batch batch = sim->queue[0];
    memmove(sim->queue, sim->queue + 1, --sim->queued * sizeof(*sim->queue));
    json_object_set_new(sim->line, "updated", json_integer((json_int_t)batch.seq));
    json_t *emitted = list_in_line(sim, "emitted"), *finished = list_in_line(sim, "finished");
    if (batch.step == 0)
        return;
    const struct step_shm *record = arena_step(&sim->arena, batch.step);
    const struct row_shm *rows = arena_step_rows(&sim->arena, record);
    uint32_t *before = base_alloc((record->row_count + 1) * sizeof(*before));
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct sequence_shm *shm = arena_sequence(&sim->arena, rows[i].sequence);
        before[i] = journal_log_committed(shm);
        if (rows[i].result_count == 1) {
            uint32_t token = token_at(sim, shm->request, rows[i].first_pos + rows[i].token_count);
            sim->results[rows[i].result_first] = (struct token_shm){.token = token, .top_token = token};
        }
    }
    check(sched_return(&sim->sched, batch.step, sim->results, record->result_count));
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct sequence_shm *shm = arena_sequence(&sim->arena, rows[i].sequence);
        struct sim_request *request = &sim->requests[shm->request];
        if (journal_log_committed(shm) == before[i])
            continue;
        json_array_append_new(emitted, json_string(request->id));
        if (request->first_token_step < 0)
            request->first_token_step = (int64_t)sim->step;
        if (!request->is_over && journal_sequence_state(shm) == SEQUENCE_DONE) {
            const char *reason = shm->finish_reason == FINISH_STOP ? "stop" : "length";
            end_request(sim, shm->request, reason);
            json_array_append_new(finished, json_pack("[s, s]", request->id, reason));
        }
    }
    free(before);
}

/* One engine step. False when there was nothing to do. */
static bool run_step(struct sim *sim)
{
    bool has_requests = sim->unfinished > 0 || has_untold(sim);
    if (!has_requests && sim->queued == 0)
        return false;
    if (has_requests) {
        bool is_filled = schedule(sim);
        if (sim->queued < sim->depth && (is_filled || sim->unfinished > 0 || has_untold(sim)))
            return true;
    }
    take_aborts(sim, true);
    update(sim);
    return true;
}

static void write_line(struct sim *sim)
{
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

static void write_end(struct sim *sim)
{
    json_t *ends = json_object();
    for (uint32_t i = 0; i < sim->request_count; i++) {
        const struct sim_request *r = &sim->requests[i];
        json_object_set_new(ends, r->id,
                            json_pack("{s:s, s:i, s:i, s:o, s:o, s:o, s:o}", "end", r->end, "tokens", (int)r->tokens,
                                      "preempted", (int)r->preemptions, "admitted_step", step_or_null(r->admitted_step),
                                      "first_token_step", step_or_null(r->first_token_step), "end_step",
                                      step_or_null(r->end_step), "hit_tokens",
                                      step_or_null(r->hit_tokens < 0 ? 0 : r->hit_tokens)));
    }
    json_t *line = json_pack("{s:o, s:I, s:i, s:i}", "end", ends, "steps", (json_int_t)sim->steps_run, "depth",
                             (int)sim->depth, "max_model_len", (int)sim->plan.max_model_len);
    if (sim->out != NULL) {
        json_dumpf(line, sim->out, JSON_COMPACT);
        fputc('\n', sim->out);
    }
    json_decref(line);
}

static bool is_all_over(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->request_count; i++)
        if (!sim->requests[i].has_arrived || !sim->requests[i].is_told)
            return false;
    return sim->queued == 0;
}

/* Idle steps until the next arrival take no time to simulate. */
static void pass_idle_time(struct sim *sim)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < sim->request_count; i++)
        if (!sim->requests[i].has_arrived)
            next = min_u64(next, sim->requests[i].arrival_step);
    check(next != UINT64_MAX);
    sim->step = next - 1;
}

static void run_all(struct sim *sim)
{
    for (; !is_all_over(sim); sim->step++) {
        sim->line = json_pack("{s:I}", "step", (json_int_t)sim->step);
        take_arrivals(sim);
        take_aborts(sim, false);
        if (run_step(sim)) {
            write_line(sim);
            sim->steps_run++;
        } else {
            pass_idle_time(sim);
        }
        json_decref(sim->line);
    }
    write_end(sim);
}

static void summarize(const struct sim *sim, const char *policy, bool is_json)
{
    json_t *summary = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I}", "policy", policy, "steps", (json_int_t)sim->steps_run, "preemptions",
        (json_int_t)sim->sched.preemptions, "prompt_tokens", (json_int_t)sim->sched.prompt_tokens, "cached_tokens",
        (json_int_t)sim->sched.cached_tokens, "generated_tokens", (json_int_t)sim->sched.generated_tokens);
    const char *key;
    json_t *value;
    if (is_json) {
        json_dumpf(summary, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        json_object_foreach(summary, key, value) {
            if (json_is_string(value))
                fprintf(stderr, "%-18s %s\n", key, json_string_value(value));
            else
                fprintf(stderr, "%-18s %lld\n", key, (long long)json_integer_value(value));
        }
    }
    json_decref(summary);
}

static int run_scenario(struct sim *sim, json_t *root, const struct policy *policy, struct err *err)
{
    err->text[0] = '\0';
    json_t *config = json_object_get(root, "config");
    if (!json_is_object(root) || (config != NULL && !json_is_object(config)))
        return err_set(err, -EINVAL, "must be an object with \"config\" and \"requests\"");
    int ret = read_requests(sim, json_object_get(root, "requests"), err);
    ret = ret ? ret : make_plan(sim, config, err);
    if (ret != 0)
        return ret;
    arena_in_memory(&sim->arena, &sim->plan);
    sched_init(&sim->sched, &sim->arena, policy);
    sim->queue = base_alloc((sim->depth + 1) * sizeof(*sim->queue));
    sim->results = base_alloc(sim->arena.layout.step_results_max * sizeof(*sim->results));
    prepare_requests(sim);
    run_all(sim);
    return 0;
}

static int run_replay(const char *path, bool is_json)
{
    struct replay_result result;
    struct err err;
    if (replay_file(&result, path, &err) != 0)
        return command_fail(1, "sim", err.text);
    if (is_json)
        printf("{\"requests\":%llu,\"steps\":%llu,\"tokens\":%llu,\"first_difference\":%llu}\n",
               (unsigned long long)result.requests, (unsigned long long)result.steps, (unsigned long long)result.tokens,
               (unsigned long long)result.first_difference);
    if (result.first_difference != 0)
        return command_fail(1, "sim", result.err.text);
    fprintf(stderr, "%llu steps of %llu requests, %llu tokens: the same\n", (unsigned long long)result.steps,
            (unsigned long long)result.requests, (unsigned long long)result.tokens);
    return 0;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    const struct values *values = pointer;
    const struct policy *policy = policy_find(values->policy);
    static struct sim sim;
    struct err err;
    json_error_t problem;
    if ((values->replay[0] != '\0') == (positional_count == 1))
        return command_fail(2, "sim", "give either SCENARIO.json or --replay FILE; see evenflow sim --help");
    if (values->replay[0] != '\0')
        return run_replay(values->replay, values->json);
    if (policy == NULL)
        return command_fail(2, "sim", "--policy: this build has: default");
    json_t *root = json_load_file(positional[0], 0, &problem);
    if (root == NULL) {
        err_set(&err, -EINVAL, "%s: line %d: %s", positional[0], problem.line, problem.text);
        return command_fail(1, "sim", err.text);
    }
    if (values->steps[0] != '\0')
        sim.out = strcmp(values->steps, "-") == 0 ? stdout : fopen(values->steps, "we");
    if (values->steps[0] != '\0' && sim.out == NULL)
        return command_fail(1, "sim", "--steps: cannot create the file");
    if (run_scenario(&sim, root, policy, &err) != 0) {
        err_prefix(&err, -EINVAL, "%s", positional[0]);
        return command_fail(1, "sim", err.text);
    }
    summarize(&sim, policy->name, values->json);
    if (sim.out != NULL && sim.out != stdout && fclose(sim.out) != 0)
        return command_fail(1, "sim", "--steps: cannot write the file");
    json_decref(root);
    return 0;
}

const struct subcommand command_sim = {.name = "sim",
                                       .usage = "[OPTIONS] SCENARIO.json | --replay FILE",
                                       .help = "Runs the scheduler alone, step by step, on a scenario",
                                       .options = &table,
                                       .values_bytes = sizeof(struct values),
                                       .positional_max = 1,
                                       .run = run};
