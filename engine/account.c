#include "engine/account.h"

#include "ipc/stats.h"

#include <math.h>

#define LATELY           256u       /* steps: what is further back counts ever less */
#define GAP_MAX_NS       1000000000 /* of one gap, for what is shown as lately: an idle night does not hide a busy minute */
#define BOUND_STEPS      128u       /* that a bound is about */
#define ALIKE            32         /* a part in so many more or less makes next to no difference in time */
#define MICROSECONDS     1000000.0
#define REPEAT_ERROR_MAX 1000.0 /* of one pair of steps, whose times are what a stage says */

void account_init(struct account *account, const struct arena *arena)
{
    *account = (struct account){.arena = arena};
}

bool account_is_sound(const struct step_time_shm *time, uint64_t number)
{
    return time->step == number && time->input_ns <= time->begin_ns && time->begin_ns <= time->end_ns;
}

/* Part of from..to that lies within begin..end. */
static uint64_t overlap(uint64_t from, uint64_t to, uint64_t begin, uint64_t end)
{
    uint64_t first = max_u64(from, begin), last = min_u64(to, end);
    return last > first ? last - first : 0;
}

/* from..input: the stage waits for this step. */
static void split_waiting(const struct account *account, uint32_t stage, const struct account_step *step,
                          const struct step_time_shm *times, uint64_t number, uint64_t from, uint64_t *ns)
{
    uint64_t input = times[stage].input_ns, planned = step->planned_us * 1000;
    enum stage_time cause =
        step->sequences < account->arena->plan->stage_count ? STAGE_TIME_NO_WORK : STAGE_TIME_UNEVEN;
    uint64_t before = overlap(from, input, 0, planned), after = overlap(from, input, planned, UINT64_MAX);
    uint64_t results = overlap(from, min_u64(input, planned), step->results_us * 1000, planned);
    if (cause == STAGE_TIME_NO_WORK)
        results = 0;
    ns[cause] += before - results;
    ns[STAGE_TIME_HAND_OFF] += results;
    for (uint32_t other = 0; other < stage; other++) {
        if (!account_is_sound(&times[other], number))
            continue;
        uint64_t computed =
            min_u64(overlap(max_u64(from, planned), input, times[other].begin_ns, times[other].end_ns), after);
        ns[cause] += computed;
        after -= computed;
    }
    ns[STAGE_TIME_HAND_OFF] += after;
}

static void show(const struct account *account, uint32_t stage, const uint64_t *ns)
{
    struct stage_account_shm *shm = &arena_accounts(account->arena)[stage];
    const double *recent = account->recent_ns[stage];
    double all = 0;
    for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++)
        all += recent[i];
    for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++) {
        account_add(&shm->ns[i], ns[i]);
        account_set(&shm->recent[i], all > 0 ? (uint64_t)(MICROSECONDS * recent[i] / all) : 0);
    }
}

static void account_stage(struct account *account, uint32_t stage, const struct account_step *step,
                          const struct step_time_shm *times, uint64_t number)
{
    const struct step_time_shm *time = &times[stage];
    uint64_t ns[STAGE_TIME_COUNT] = {0}, from = account->ended_ns[stage];
    account->ended_ns[stage] = time->end_ns;
    if (from == 0 || from > time->end_ns)
        from = time->begin_ns;
    if (from < time->input_ns)
        split_waiting(account, stage, step, times, number, from, ns);
    uint64_t could_run = time->end_ns - max_u64(from, time->input_ns);
    ns[STAGE_TIME_BUSY] = min_u64(time->cpu_ns, could_run);
    ns[STAGE_TIME_WAITING_FOR_CPU] = could_run - ns[STAGE_TIME_BUSY];
    for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++)
        account->recent_ns[stage][i] += (double)min_u64(ns[i], GAP_MAX_NS) - account->recent_ns[stage][i] / LATELY;
    show(account, stage, ns);
}

/* The prediction that the step was planned by, beside what came of it: nothing has been learned from it yet. */
static void account_error(struct account *account, uint32_t stage, double predicted_us, uint64_t measured_ns)
{
    struct stage_account_shm *shm = &arena_accounts(account->arena)[stage];
    double measured_us = (double)measured_ns / 1000, error = predicted_us / measured_us - 1;
    error = error < 0 ? -error : error;
    account->recent_error[stage] +=
        account_read(&shm->predicted_steps) == 0 ? error : (error - account->recent_error[stage]) / LATELY;
    account_add(&shm->predicted_steps, 1);
    account_add(&shm->error_millionths, (uint64_t)(MICROSECONDS * error));
    account_set(&shm->recent_error, (uint64_t)(MICROSECONDS * account->recent_error[stage]));
}

static bool is_near(double a, double b)
{
    return fabs(a - b) * ALIKE <= a;
}

/* By what two steps that do the same differ, no model can know: the machine was not the same. */
static void account_repeat(struct account *account, uint32_t stage, const struct shape *now, uint64_t cost_ns)
{
    struct stage_account_shm *shm = &arena_accounts(account->arena)[stage];
    const struct shape *before = &account->shape;
    uint64_t before_ns = account->cost_ns[stage];
    account->cost_ns[stage] = cost_ns;
    if (before_ns == 0 || cost_ns == 0 || before->rows != now->rows || before->tokens != now->tokens ||
        before->results != now->results || !is_near(before->context, now->context) ||
        !is_near(before->pairs, now->pairs))
        return;
    double error = fmin(fabs((double)before_ns / (double)cost_ns - 1), REPEAT_ERROR_MAX);
    account_add(&shm->repeated_steps, 1);
    account_add(&shm->repeat_millionths, (uint64_t)(MICROSECONDS * error));
}

/* Every so many steps: the least time for what they did, beside the time they took. */
static void account_bound(struct account *account)
{
    struct bound_load *load = &account->load;
    load->timing = arena_timing(account->arena);
    load->kv_blocks = account->arena->plan->num_blocks;
    load->requests = account->loaded_us > 0 ? account->request_us / account->loaded_us : 0;
    if (account->loaded_us > 0 && load->requests > 0 && load->timing->stage_count > 0) {
        double bound_us = bound_mean_field_us(load);
        account->all_loaded_us += (uint64_t)account->loaded_us;
        account->all_bound_us += (uint64_t)bound_us;
        account->efficiency_permille = (uint64_t)(1000 * bound_us / account->loaded_us);
    }
    account->load = (struct bound_load){0};
    account->steps = 0;
    account->loaded_us = account->request_us = 0;
}

/* Stages that lend all their time to one step are no pipeline: the bound does not hold for them. */
static void account_load(struct account *account, const struct account_step *step, bool is_lone, uint64_t now_us)
{
    uint64_t from = max_u64(account->returned_us, step->planned_us);
    double loaded_us = now_us > from ? (double)(now_us - from) : 0;
    double flight_us = now_us > step->planned_us ? (double)(now_us - step->planned_us) : 0;
    account->returned_us = now_us;
    account->step_us += (uint64_t)flight_us;
    account->recent_loaded_us += loaded_us - account->recent_loaded_us / LATELY;
    account->recent_flight_us += flight_us - account->recent_flight_us / LATELY;
    if (is_lone)
        return;
    struct bound_load *load = &account->load;
    load->tokens += step->shape.tokens;
    load->rows += step->shape.rows;
    load->context += step->shape.context;
    load->pairs += step->shape.pairs;
    load->results += step->shape.results;
    load->decode_rows += step->decode_rows;
    load->block_sum += (double)step->decode_blocks;
    account->loaded_us += loaded_us;
    account->request_us += loaded_us * step->sequences;
    if (++account->steps == BOUND_STEPS)
        account_bound(account);
}

void account_step(struct account *account, uint64_t number, const struct account_step *step,
                  const struct step_time_shm *times, uint64_t now_us)
{
    const struct plan *plan = account->arena->plan;
    uint32_t lone_stages = 0;
    for (uint32_t stage = 0; stage < plan->stage_count; stage++) {
        bool is_sound = account_is_sound(&times[stage], number);
        uint64_t cost_ns = is_sound ? times[stage].cost_ns : 0;
        account_repeat(account, stage, &step->shape, cost_ns);
        if (!is_sound)
            continue;
        lone_stages += cost_ns == 0;
        account_stage(account, stage, step, times, number);
        if (step->predicted_us[stage] > 0 && cost_ns > 0)
            account_error(account, stage, step->predicted_us[stage], cost_ns);
    }
    account->shape = step->shape;
    account_load(account, step, lone_stages == plan->stage_count, now_us);
}

uint64_t account_depth_milli(const struct account *account)
{
    return account->recent_loaded_us > 0 ? (uint64_t)(1000 * account->recent_flight_us / account->recent_loaded_us) : 0;
}
