#include "tools/replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/record.h"
#include "engine/sched.h"
#include "ipc/journal.h"
#include "ipc/stats.h"

struct replay {
    FILE *file;
    struct plan plan;
    struct arena arena;
    struct sched sched;
    uint8_t *payload;
    size_t payload_room;
    struct replay_result *result;
};

static int read_exactly(struct replay *r, void *bytes, size_t size, struct err *err)
{
    if (fread(bytes, 1, size, r->file) == size)
        return 0;
    return err_set(err, -EPROTO, "the recording ends in the middle of an entry");
}

static int read_head(struct replay *r, struct err *err)
{
    struct record_head head;
    int ret = read_exactly(r, &head, sizeof(head), err);
    if (ret == 0 && head.magic != RECORD_MAGIC)
        ret = err_set(err, -EPROTO, "this is no recording of the scheduler");
    if (ret == 0 && (head.layout_hash != LAYOUT_HASH || head.plan_bytes != sizeof(struct plan)))
        ret = err_set(err, -EPROTO, "the recording is of another build; replay it with that one");
    ret = ret ? ret : read_exactly(r, &r->plan, sizeof(r->plan), err);
    return ret ? ret : plan_validate(&r->plan, err);
}

static int load_request(struct replay *r, const struct record_entry *entry, struct err *err)
{
    struct request_shm request;
    memcpy(&request, r->payload, min_u64(sizeof(request), entry->bytes));
    if (entry->slot < r->plan.requests_max && entry->bytes == sizeof(request) && request.prompt_tokens > 0) {
        request.prompt_tokens = UINT32_MAX; /* it was refused for its prompt: as now */
        *arena_request(&r->arena, entry->slot) = request;
        journal_request_set_state(arena_request(&r->arena, entry->slot), REQUEST_ACCEPTED);
        return 0;
    }
    uint64_t pages = div_up_u64(request.prompt_tokens, PAGE_TOKENS);
    if (entry->slot >= r->plan.requests_max || entry->bytes < sizeof(request) ||
        request.prompt_tokens > r->plan.max_model_len ||
        entry->bytes != sizeof(request) + (pages + request.prompt_tokens) * sizeof(uint32_t))
        return err_set(err, -EPROTO, "an accepted request is out of bounds");
    const uint8_t *at = r->payload + sizeof(request);
    memcpy(arena_prompt_list(&r->arena, entry->slot), at, pages * sizeof(uint32_t));
    for (uint64_t page = 0; page < pages; page++)
        if (arena_prompt_list(&r->arena, entry->slot)[page] >= r->plan.prompt_pages)
            return err_set(err, -EPROTO, "a prompt page is out of bounds");
    *arena_request(&r->arena, entry->slot) = request;
    journal_prompt_write(&r->arena, entry->slot, 0, request.prompt_tokens,
                         (const uint32_t *)(const void *)(at + pages * sizeof(uint32_t)));
    journal_request_set_state(arena_request(&r->arena, entry->slot), REQUEST_ACCEPTED);
    return 0;
}

static void differ(struct replay *r, uint64_t step, const char *what)
{
    r->result->first_difference = step;
    err_set(&r->result->err, -EINVAL, "step %llu: %s", (unsigned long long)step, what);
}

/* Plans as the recorded call did, and compares every byte of the record. */
static void replay_step(struct replay *r, const struct record_entry *entry)
{
    struct step_shm *step = sched_plan(&r->sched);
    if ((step != NULL ? step->step : 0) != entry->step) {
        differ(r, entry->step ? entry->step : step->step,
               entry->step ? "was planned, now nothing is" : "nothing was planned, now a step is");
        return;
    }
    if (step == NULL)
        return;
    step_publish(step);
    struct record_step counts;
    memcpy(&counts, r->payload, sizeof(counts));
    if (counts.row_count != step->row_count || counts.token_count != step->token_count ||
        counts.block_count != step->block_count || counts.result_count != step->result_count) {
        differ(r, step->step, "rows, tokens, blocks or results are not as many");
        return;
    }
    const uint8_t *at = r->payload + sizeof(counts);
    size_t rows = step->row_count * sizeof(struct row_shm), tokens = step->token_count * sizeof(uint32_t);
    if (memcmp(at, arena_step_rows(&r->arena, step), rows) != 0)
        differ(r, step->step, "the rows differ");
    else if (memcmp(at + rows, arena_step_tokens(&r->arena, step), tokens) != 0)
        differ(r, step->step, "the tokens differ");
    else if (memcmp(at + rows + tokens, arena_step_blocks(&r->arena, step), step->block_count * sizeof(uint32_t)) != 0)
        differ(r, step->step, "the blocks differ");
    r->result->steps++;
    r->result->tokens += step->token_count;
}

static int replay_entry(struct replay *r, const struct record_entry *entry, struct err *err)
{
    bool names_slot = entry->kind == RECORD_CANCEL || entry->kind == RECORD_STOP || entry->kind == RECORD_DRAINED;
    int ret = 0;
    if (names_slot && entry->slot >= r->plan.requests_max)
        return err_set(err, -EPROTO, "a request slot is out of bounds");
    sched_set_time(&r->sched, entry->now_us);
    switch (entry->kind) {
    case RECORD_ACCEPT:
        ret = load_request(r, entry, err);
        if (ret == 0)
            sched_accept(&r->sched, entry->slot);
        r->result->requests++;
        break;
    case RECORD_CANCEL:
        sched_cancel(&r->sched, entry->slot);
        break;
    case RECORD_STOP:
        sched_stop(&r->sched, entry->slot, (uint32_t)entry->step);
        break;
    case RECORD_DRAINED:
        journal_request_set_state(arena_request(&r->arena, entry->slot), REQUEST_DRAINED);
        sched_drained(&r->sched, entry->slot);
        break;
    case RECORD_STEP:
        replay_step(r, entry);
        break;
    case RECORD_MEASURE:
        if (entry->bytes != r->plan.stage_count * sizeof(struct step_time_shm))
            return err_set(err, -EPROTO, "measured times of %llu bytes; mixed builds?",
                           (unsigned long long)entry->bytes);
        sched_measure(&r->sched, entry->step, (const struct step_time_shm *)(const void *)r->payload);
        break;
    case RECORD_RETURN:
        if (!sched_return(&r->sched, entry->step, (const struct token_shm *)(const void *)r->payload,
                          (uint32_t)(entry->bytes / sizeof(struct token_shm))))
            differ(r, entry->step, "its results do not fit the step");
        break;
    default:
        ret = err_set(err, -EPROTO, "an entry of kind %u; mixed builds?", entry->kind);
    }
    uint32_t slot;
    while (sched_next_news(&r->sched, &slot)) {
    }
    return ret;
}

static int replay_entries(struct replay *r, struct err *err)
{
    struct record_entry entry;
    int ret = 0;
    while (ret == 0 && r->result->first_difference == 0 && fread(&entry, sizeof(entry), 1, r->file) == 1) {
        if (entry.bytes > 1u << 30)
            return err_set(err, -EPROTO, "an entry of %llu bytes; the recording is damaged",
                           (unsigned long long)entry.bytes);
        if (entry.bytes > r->payload_room || r->payload == NULL) {
            free(r->payload);
            r->payload_room = entry.bytes + 4096;
            r->payload = base_alloc(r->payload_room);
        }
        ret = read_exactly(r, r->payload, entry.bytes, err);
        ret = ret ? ret : replay_entry(r, &entry, err);
    }
    return ret;
}

static void note_errors(struct replay *r)
{
    r->result->stages = r->plan.stage_count;
    for (uint32_t stage = 0; stage < r->plan.stage_count; stage++) {
        const struct stage_account_shm *account = &arena_accounts(&r->arena)[stage];
        double steps = (double)account_read(&account->predicted_steps);
        if (steps > 0)
            r->result->prediction_errors[stage] = (double)account_read(&account->error_millionths) / 1e6 / steps;
        uint64_t repeated = r->result->repeated_steps[stage] = account_read(&account->repeated_steps);
        if (repeated > 0)
            r->result->repeat_errors[stage] =
                (double)account_read(&account->repeat_millionths) / 1e6 / (double)repeated;
    }
}

int replay_file(struct replay_result *result, const char *path, struct err *err)
{
    struct replay *r = base_alloc(sizeof(*r));
    *result = (struct replay_result){0};
    r->result = result;
    r->file = fopen(path, "re");
    if (r->file == NULL) {
        free(r);
        return err_set(err, -errno, "%s: cannot open it: %s", path, strerror(errno));
    }
    int ret = read_head(r, err);
    const struct policy *policy = ret == 0 ? policy_find(r->plan.policy) : NULL;
    if (ret == 0 && policy == NULL)
        ret = err_set(err, -EPROTO, "this build has no policy \"%s\"", r->plan.policy);
    if (ret == 0) {
        arena_in_memory(&r->arena, &r->plan);
        sched_init(&r->sched, &r->arena, policy);
        ret = replay_entries(r, err);
        note_errors(r);
        sched_fini(&r->sched);
        arena_in_memory_free(&r->arena);
    }
    fclose(r->file);
    free(r->payload);
    free(r);
    return ret < 0 ? err_prefix(err, ret, "%s", path) : 0;
}
