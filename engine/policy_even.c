/* policy_even.c - microbatches of equal predicted time.
 *
 * What a pipeline needs is that every microbatch in flight takes its servers, stages and links, for the same time, that there
 * are as many of them as a traversal has room for, and that the KV cache is full but not too full. So, once per step:
 *
 *   1 census    which sequences decode (their next token is ready or in flight), which still have prompt to compute
 *   2 memory    who waits and fits the forecast of the KV cache
 *   3 pattern   how many slots share the decoding rows, how much prompt a slot carries and whether it does so beside decoding
 *               rows or alone: the shortest cycle that keeps up with the prompts, or the most work per time
 *   4 decode    a slot's share of the decoding rows by cost, oldest first, rounding carried over
 *   5 prompts   begun ones first, then new ones
 *   6 relief    who finds no block sits out; only when too many do is a sequence preempted, never one in flight
 *
 * docs/scheduling.md derives it. The state here is what is known of the past; losing it costs evenness for a moment, no bits.
 */
#include <math.h>
#include <string.h>

#include "engine/forecast.h"
#include "engine/pattern.h"
#include "engine/policy_rules.h"
#include "ipc/journal.h"

#define AGES         64u
#define LOOK_AGAIN   8 /* steps */
#define ADMITTED_MAX 32

/* For what the pattern in use was chosen, and when. */
struct choice {
    struct pattern pattern;
    struct load load;
    uint64_t step;
    double prompt_rate, waiting;
};

/* A decoding row that could go now. */
struct ready {
    uint32_t sequence, age; /* steps since its last row, at most AGES - 1 */
    double cost;
};

struct even {
    const struct timing *timing; /* how long things take, as far as it is known now */
    struct timing plain;         /* where nothing is known */
    struct lengths lengths;
    double deficit;       /* cost of decoding rows that earlier slots took too few of (positive) or too many */
    uint64_t *planned_at; /* (sequences_max): step of its last row */
    uint64_t *held_at;    /* (sequences_max): step that passed it over although it was ready */
    bool *is_prompt_slot; /* (window): by step, whether it carries prompt */
    bool *is_decode_slot; /* (window): likewise, decoding rows */

    /* what comes and goes */
    uint64_t arrived, ended; /* sequences so far */
    double arriving;         /* tokens of prompt per microsecond, of late */
    uint64_t arriving_at_us; /* when that was so */
    bool is_crowded;         /* more than a CROWD waited, and not all of them have been served since */

    /* admission: who waits and fits the forecast, looked at now and then */
    struct forecast forecast;
    uint32_t admissible;        /* at the front of those that wait */
    uint64_t admissible_tokens; /* their prompts */
    uint64_t looked_at_step, looked_at_changes;
    bool is_full; /* nobody behind the admissible fits, as far as the last look went or an admission that failed */

    /* of the plan being made */
    struct ready *ready;   /* (sequences_max): decoding rows, oldest first */
    struct ready *scratch; /* (sequences_max) */
    uint32_t *begun;       /* (sequences_max): sequences with prompt left, in order of admission */
    uint32_t ready_count, begun_count, decoding;
    double decoding_cost, decoding_context;
    uint64_t begun_tokens;
    uint32_t decode_slots, prompt_slots, alone_slots; /* in flight; alone: with prompt and nothing else */
    uint32_t stalled;                                 /* rows that found no block */
    double row_us[TIMING_STAGES_MAX];                 /* of a row in each stage, and its result, without its context */
    struct choice choice;
};

static struct even *state_of(const struct sched *sched)
{
    return sched->policy_state;
}

static size_t state_bytes(const struct plan *plan)
{
    return sizeof(struct even) +
           plan->sequences_max * (2 * sizeof(uint64_t) + 2 * sizeof(struct ready) + sizeof(uint32_t)) +
           2 * plan->window * sizeof(bool);
}

/* Where nothing is known of the machine: what most have in common, a read of the weights that many rows share. */
static struct timing plain_timing(const struct plan *plan)
{
    struct timing timing = {.stage_count = min_u64(plan->window, TIMING_STAGES_MAX)};
    for (uint64_t i = 0; i < timing.stage_count; i++)
        timing.stages[i] =
            (struct timing_stage){.row_us = 10, .weights_us = 10000, .token_us = 100, .context_us = 0.02};
    return timing;
}

static void open_even(struct sched *sched)
{
    struct even *even = state_of(sched);
    uint8_t *at = (uint8_t *)(even + 1);
    even->plain = plain_timing(sched->plan);
    even->planned_at = (uint64_t *)(void *)at;
    even->held_at = even->planned_at + sched->plan->sequences_max;
    even->ready = (struct ready *)(void *)(even->held_at + sched->plan->sequences_max);
    even->scratch = even->ready + sched->plan->sequences_max;
    even->begun = (uint32_t *)(void *)(even->scratch + sched->plan->sequences_max);
    even->is_prompt_slot = (bool *)(even->begun + sched->plan->sequences_max);
    even->is_decode_slot = even->is_prompt_slot + sched->plan->window;
}

/* ---- what comes and goes ---- */

#define ARRIVING_US 6e7 /* what came so long ago counts a third */

static void age_arriving(struct even *even, uint64_t now_us)
{
    even->arriving *= exp(-(double)(now_us - even->arriving_at_us) / ARRIVING_US);
    even->arriving_at_us = now_us;
}

static void arrived(struct sched *sched, uint32_t sequence)
{
    struct even *even = state_of(sched);
    age_arriving(even, sched->now_us);
    even->arriving += sched->table.seqs[sequence].prompt_tokens / ARRIVING_US;
    even->arrived++;
}

static void ended(struct sched *sched, uint32_t sequence)
{
    struct even *even = state_of(sched);
    uint32_t tokens = sched->table.seqs[sequence].known - sched->table.seqs[sequence].prompt_tokens;
    even->ended++;
    if (policy_request(sched, sequence)->max_tokens > 0)
        lengths_observe(&even->lengths, tokens, arena_sequence(sched->arena, sequence)->finish_reason == FINISH_LENGTH);
}

/* ---- 1: census ---- */

static double row_cost(const struct even *even, double context)
{
    double most = 0;
    for (uint64_t i = 0; i < even->timing->stage_count; i++) {
        double us = even->row_us[i] + even->timing->stages[i].context_us * context;
        most = us > most ? us : most;
    }
    return most > 0 ? most : 1;
}

static void look_at_timing(const struct sched *sched, struct even *even)
{
    even->timing = policy_timing(sched)->stage_count > 0 ? policy_timing(sched) : &even->plain;
    for (uint64_t i = 0; i < even->timing->stage_count; i++)
        even->row_us[i] =
            even->timing->stages[i].row_us + even->timing->stages[i].result_us + even->timing->stages[i].token_us / 8;
}

/* Decoding rows that are ready, by the age of their last row, oldest first: those of one age in order of admission.
 * starts: by age, how many there are of it. */
static void sort_ready(struct even *even, uint32_t *starts)
{
    struct ready *unsorted = even->ready;
    for (uint32_t age = AGES, sum = 0; age-- > 0;) {
        sum += starts[age];
        starts[age] = sum - starts[age];
    }
    for (uint32_t i = 0; i < even->ready_count; i++)
        even->scratch[starts[unsorted[i].age]++] = unsorted[i];
    even->ready = even->scratch;
    even->scratch = unsorted;
}

static void take_census(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t by_age[AGES] = {0}, youngest = AGES, decoding = 0, ready_count = 0;
    double cost_sum = 0, context = 0;
    bool is_sorted = true;
    even->begun_count = 0;
    even->begun_tokens = 0;
    look_at_timing(sched, even);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next) {
        const struct seq *seq = &table->seqs[s];
        uint32_t tokens = policy_schedulable(sched, s);
        if (tokens > 1 || (tokens == 1 && seq->computed < seq->prompt_tokens)) { /* it has prompt left */
            even->begun[even->begun_count++] = s;
            even->begun_tokens += tokens;
            continue;
        }
        double cost = row_cost(even, seq->known);
        decoding++;
        context += seq->known;
        cost_sum += cost;
        if (tokens > 0) {
            uint32_t age = (uint32_t)min_u64(sched->next_step - even->planned_at[s], AGES - 1);
            even->ready[ready_count++] = (struct ready){s, age, cost};
            by_age[age]++;
            is_sorted = is_sorted && age <= youngest;
            youngest = age;
        }
    }
    even->ready_count = ready_count;
    even->decoding = decoding;
    even->decoding_cost = cost_sum;
    even->decoding_context = context;
    if (!is_sorted)
        sort_ready(even, by_age);
}

/* ---- 2: memory ---- */

static struct outlook outlook_of(const struct sched *sched, uint32_t sequence)
{
    const struct seq *seq = &sched->table.seqs[sequence];
    uint32_t generated = seq->known - seq->prompt_tokens;
    uint32_t max_tokens = policy_request(sched, sequence)->max_tokens;
    return (struct outlook){.known = seq->known,
                            .generated = generated,
                            .more = max_tokens == 0 ? 0 : max_tokens - generated - 1}; /* the last is never computed */
}

static void forecast_running(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t horizon = 1;
    double held = 0;
    lengths_reset_running(&even->lengths);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next) {
        struct outlook outlook = outlook_of(sched, s);
        horizon = (uint32_t)max_u64(horizon, outlook.more);
        lengths_running(&even->lengths, outlook.generated);
        held += table->seqs[s].block_count;
    }
    for (uint32_t s = table->waiting.first, i = 0; s != SEQ_NONE && i < ADMITTED_MAX; s = table->seqs[s].next, i++)
        horizon = (uint32_t)max_u64(horizon, outlook_of(sched, s).more);
    lengths_estimate(&even->lengths);
    forecast_begin(&even->forecast, &even->lengths, sched->plan->block_size, horizon);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next) {
        struct outlook outlook = outlook_of(sched, s);
        forecast_add(&even->forecast, &outlook);
    }
    forecast_share(&even->forecast, held - (double)(sched->plan->num_blocks - policy_free_blocks(sched)));
}

static bool has_room_for(struct sched *sched, uint32_t sequence, const struct policy_hit *hit)
{
    struct even *even = state_of(sched);
    struct outlook outlook = outlook_of(sched, sequence);
    double blocks = (double)sched->plan->num_blocks - policy_blocks_reserved(sched);
    blocks += hit->blocks - hit->free_blocks;                                 /* somebody holds them anyway */
    bool is_alone = sched->table.running.count == 0 && even->admissible == 0; /* then it always fits */
    return forecast_try(&even->forecast, &outlook, blocks) || is_alone;
}

static bool is_time_to_look(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    if (even->admissible > 0 || sched->table.waiting.count == 0 ||
        sched->table.running.count == sched->plan->max_num_seqs)
        return false;
    return even->arrived + even->ended != even->looked_at_changes || !even->is_full || sched->in_flight == 0 ||
           sched->next_step >= even->looked_at_step + LOOK_AGAIN;
}

/* How many of those that wait may be admitted. */
static void look_who_fits(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    if (!is_time_to_look(sched))
        return;
    even->looked_at_step = sched->next_step;
    even->looked_at_changes = even->arrived + even->ended;
    even->admissible_tokens = 0;
    even->is_full = false;
    forecast_running(sched);
    for (uint32_t s = table->waiting.first; s != SEQ_NONE && even->admissible < ADMITTED_MAX; s = table->seqs[s].next) {
        if (table->seqs[s].in_flight > 0)
            continue;
        struct policy_hit hit = policy_find_prefix(sched, s);
        if (table->running.count + even->admissible >= sched->plan->max_num_seqs || !has_room_for(sched, s, &hit)) {
            even->is_full = true;
            break;
        }
        even->admissible++;
        even->admissible_tokens += table->seqs[s].known - hit.tokens;
    }
    even->is_full = even->is_full || even->admissible == 0;
}

static bool may_admit(const struct sched *sched)
{
    return state_of(sched)->admissible > 0 && sched->preempted_count == 0 &&
           sched->table.running.count < sched->plan->max_num_seqs;
}

/* ---- 3: pattern ---- */

#define NEAR         16  /* a sixteenth more or less is nearly the same */
#define CHOICE_STEPS 64  /* after which it is chosen anew in any case */
#define CROWD        32u /* so many waiting are too many for any rate to matter: the most that can be */

/* Prompts of those that may be admitted. Unless the last look found one that does not fit, those behind, whom it did not see
 * or who came later, are taken to be like those that it saw. */
static uint64_t admissible_prompt(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    if (!may_admit(sched))
        return 0;
    uint64_t behind = even->is_full ? 0 : sched->table.waiting.count - even->admissible;
    return even->admissible_tokens + even->admissible_tokens / even->admissible * behind;
}

/* Prompt that could be computed now: of begun sequences, and of those that may be admitted. */
static struct load load_of(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    struct load load = {.rows = even->decoding,
                        .context = even->decoding_context,
                        .backlog = even->begun_tokens + admissible_prompt(sched)};
    if (even->begun_count > 0)
        load.prompt_past = sched->table.seqs[even->begun[0]].computed;
    return load;
}

/* From the moment that a crowd waits until nobody does: were prompts slower when few of it are left, these would end late. */
static void note_crowd(struct sched *sched)
{
    struct even *even = state_of(sched);
    uint32_t waiting = sched->table.waiting.count;
    even->is_crowded = waiting > CROWD || (even->is_crowded && waiting + even->begun_count > 0);
}

/* Tokens of prompt per microsecond that keep up with what arrives; with a target, that serve those that wait in time. */
static double prompt_rate(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    double tokens = (double)even->begun_tokens, target_us = sched->plan->ttft_slo_ms * 1e3;
    age_arriving(even, sched->now_us);
    if (even->is_crowded)
        return INFINITY;
    if (target_us == 0)
        return even->arriving;
    for (uint32_t s = table->waiting.first; s != SEQ_NONE; s = table->seqs[s].next)
        tokens += table->seqs[s].known;
    uint32_t oldest = even->begun_count > 0 ? even->begun[0] : table->waiting.first;
    double age_us = (double)(sched->now_us - table->seqs[oldest].arrived_us);
    double patience_us = fmax(0.05 * target_us, 0.5 * (target_us - age_us));
    return fmax(even->arriving, tokens / patience_us);
}

/* Requests without their first token. */
static double waiting_count(const struct sched *sched)
{
    return state_of(sched)->begun_count + sched->table.waiting.count;
}

/* Decoding rows that there could be: as many as blocks suffice for. */
static double rows_later(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    double running = sched->table.running.count;
    double blocks = (double)(sched->plan->num_blocks - policy_free_blocks(sched)) / fmax(1, running);
    double most = fmin(sched->plan->max_num_seqs, running + sched->table.waiting.count);
    return fmax(1, fmax(even->decoding, fmin(most, sched->plan->num_blocks / fmax(1, blocks))));
}

/* Tokens of prompt per token of an answer, of those that wait. */
static double prompt_share(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t s = table->waiting.count > 0 ? table->waiting.first : even->begun[0];
    double prompt = 0, answer = 0, mean = 0;
    for (uint32_t i = 0, limit = 0; s != SEQ_NONE && i < ADMITTED_MAX; s = table->seqs[s].next, i++) {
        uint32_t more = outlook_of(sched, s).more + 1;
        mean = i > 0 && more == limit ? mean : lengths_mean(&even->lengths, more);
        limit = more;
        prompt += table->seqs[s].prompt_tokens;
        answer += mean;
    }
    return prompt / fmax(1, answer);
}

static bool is_near(double a, double b)
{
    return a == b || fabs(a - b) <= fabs(b) / NEAR;
}

/* The load is nearly what the pattern was chosen for: choosing costs more than planning. */
static bool is_still_right(const struct sched *sched, const struct load *load, double rate, double waiting)
{
    const struct even *even = state_of(sched);
    const struct choice *choice = &even->choice;
    bool has_backlog = load->backlog > 0, had_backlog = choice->load.backlog > 0;
    return choice->pattern.cycle_us > 0 && sched->next_step < choice->step + CHOICE_STEPS &&
           has_backlog == had_backlog && load->backlog <= choice->load.backlog + choice->load.backlog / NEAR &&
           2 * load->backlog >= choice->load.backlog && is_near(load->rows, choice->load.rows) &&
           is_near(load->context, choice->load.context) &&
           (!has_backlog || (is_near(rate, choice->prompt_rate) && is_near(waiting, choice->waiting)));
}

static const struct pattern *choose_pattern(struct sched *sched, const struct load *load)
{
    struct even *even = state_of(sched);
    double rate = load->backlog > 0 ? prompt_rate(sched) : 0, waiting = waiting_count(sched);
    if (is_still_right(sched, load, rate, waiting))
        return &even->choice.pattern;
    struct aims aims = {.depth = sched->plan->window,
                        .tokens_max = sched->plan->max_num_batched_tokens,
                        .slots_now = even->choice.pattern.decode_slots,
                        .rows_later = rows_later(sched),
                        .prompt_share = load->backlog > 0 ? prompt_share(sched) : 0,
                        .prompt_rate = rate,
                        .has_target = sched->plan->ttft_slo_ms > 0,
                        .waiting = waiting,
                        .lone_speed = sched->lone_speed,
                        .cycle_max_us = sched->plan->itl_slo_ms * 1e3};
    even->choice = (struct choice){.pattern = pattern_choose(even->timing, load, &aims),
                                   .load = *load,
                                   .step = sched->next_step,
                                   .prompt_rate = rate,
                                   .waiting = waiting};
    return &even->choice.pattern;
}

static void count_slots(const struct sched *sched)
{
    struct even *even = state_of(sched);
    even->decode_slots = even->prompt_slots = even->alone_slots = 0;
    for (uint32_t back = 1; back <= sched->in_flight; back++) {
        uint32_t at = (sched->next_step - back) % sched->plan->window;
        even->decode_slots += even->is_decode_slot[at];
        even->prompt_slots += even->is_prompt_slot[at];
        even->alone_slots += even->is_prompt_slot[at] && !even->is_decode_slot[at];
    }
}

/* ---- 4: decode ---- */

/* Rows that this slot passes over go with the next one, whatever its share. */
static void hold(struct sched *sched, uint32_t from)
{
    struct even *even = state_of(sched);
    for (uint32_t i = from; i < even->ready_count; i++)
        even->held_at[even->ready[i].sequence] = sched->next_step;
}

static bool was_held(const struct sched *sched, uint32_t sequence)
{
    return state_of(sched)->held_at[sequence] + 1 == sched->next_step;
}

/* How many rows, oldest first, are a slot's share; the first of the age at which it ends. */
static uint32_t rows_of_share(const struct sched *sched, double target, uint32_t *first)
{
    const struct even *even = state_of(sched);
    const struct ready *ready = even->ready;
    uint32_t count = (uint32_t)min_u64(even->ready_count, policy_budget(sched)), i = 0;
    *first = 0;
    for (double taken = 0; i < count; taken += ready[i++].cost) {
        if (taken > 0 && taken + ready[i].cost / 2 > target && !was_held(sched, ready[i].sequence))
            break;
        *first = ready[i].age != ready[*first].age ? i : *first;
    }
    return i;
}

/* Where a share ends among rows of one age, each time others of them are passed over: who always is falls behind and ends
 * alone. How many rows are the share then. */
static uint32_t pass_over_in_turn(const struct sched *sched, double target)
{
    struct ready *ready = state_of(sched)->ready;
    uint32_t first, count = rows_of_share(sched, target, &first), end = count;
    while (end < state_of(sched)->ready_count && ready[end].age == ready[first].age)
        end++;
    if (end == count || count == first || was_held(sched, ready[first].sequence))
        return count;
    for (uint32_t i = count; i < end; i++) {
        uint32_t other = first + (uint32_t)(sched->next_step + i) % (end - first);
        struct ready row = ready[i];
        ready[i] = ready[other];
        ready[other] = row;
    }
    return rows_of_share(sched, target, &first);
}

static void take_decodes(struct sched *sched, const struct pattern *pattern)
{
    struct even *even = state_of(sched);
    uint32_t slots = pattern->decode_slots > 0 ? pattern->decode_slots : 1;
    double share = even->decoding_cost / slots, target = share + even->deficit, taken = 0;
    uint32_t count = pass_over_in_turn(sched, target);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t sequence = even->ready[i].sequence;
        if (!policy_add_row(sched, sequence, 1)) {
            even->stalled++;
            continue;
        }
        even->planned_at[sequence] = sched->next_step;
        taken += even->ready[i].cost;
    }
    if (even->decode_slots + 1 >= slots)
        hold(sched, count);
    double most = even->decoding > 0 ? even->decoding_cost / even->decoding / 2 : 0; /* half a row */
    even->deficit = fmax(-most, fmin(most, target - taken));
}

/* ---- 5: prompts ---- */

/* How much of so many tokens of one prompt goes into a slot that has room for so many. 0: none. */
static uint32_t cut(const struct sched *sched, uint32_t tokens, uint32_t room)
{
    if (!sched->plan->enable_chunked_prefill)
        return tokens <= policy_budget(sched) ? tokens : 0;
    room = (uint32_t)min_u64(room, rules_prefill_limit(sched));
    return (uint32_t)min_u64(min_u64(tokens, room), policy_budget(sched));
}

static bool admit_one(struct sched *sched, uint32_t sequence, uint32_t room, uint32_t *taken)
{
    struct even *even = state_of(sched);
    uint32_t known = sched->table.seqs[sequence].known;
    struct policy_hit hit = policy_find_prefix(sched, sequence);
    uint32_t tokens = cut(sched, known - hit.tokens, room);
    uint32_t reach = sched->plan->reserve_full_isl ? known : hit.tokens + tokens;
    uint32_t needed = (uint32_t)div_up_u64(reach, sched->plan->block_size) - hit.blocks + hit.free_blocks;
    if (tokens == 0)
        return false;
    if (needed + policy_blocks_reserved(sched) > policy_free_blocks(sched) ||
        !policy_admit(sched, sequence, &hit, tokens)) {
        even->admissible = 0;
        even->is_full = true;
        return false;
    }
    even->admissible--;
    even->admissible_tokens -= min_u64(even->admissible_tokens, known - hit.tokens);
    even->planned_at[sequence] = sched->next_step;
    *taken = tokens;
    return true;
}

static uint32_t take_prompts(struct sched *sched, uint32_t room)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < even->begun_count && room > 0 && policy_budget(sched) > 0; i++) {
        uint32_t tokens = cut(sched, policy_schedulable(sched, even->begun[i]), room);
        if (tokens == 0)
            return sum;
        if (!policy_add_row(sched, even->begun[i], tokens)) {
            even->stalled++;
            continue;
        }
        even->planned_at[even->begun[i]] = sched->next_step;
        sum += tokens;
        room -= min_u64(tokens, room);
    }
    for (uint32_t s = table->waiting.first, next; s != SEQ_NONE && even->stalled == 0; s = next) {
        uint32_t tokens = 0;
        next = table->seqs[s].next;
        if (room == 0 || policy_budget(sched) == 0 || !may_admit(sched))
            return sum;
        if (table->seqs[s].in_flight > 0)
            continue; /* preempted with a token in flight: its turn comes when the token is back */
        if (!admit_one(sched, s, room, &tokens))
            return sum;
        sum += tokens;
        room -= min_u64(tokens, room);
    }
    return sum;
}

/* ---- 6: relief ---- */

/* Somebody has to go so that others find blocks. Never a sequence in flight, nor one of this step. */
static void preempt_one(struct sched *sched)
{
    const struct seq_table *table = &sched->table;
    uint32_t victim = SEQ_NONE;
    for (uint32_t s = table->running.last; s != SEQ_NONE; s = table->seqs[s].previous) {
        if (table->seqs[s].in_flight > 0 || policy_has_row(sched, s))
            continue;
        if (victim == SEQ_NONE || (sched->plan->uses_priority && seq_comes_before(table, victim, s)))
            victim = s;
    }
    if (victim != SEQ_NONE && table->running.count > 1)
        policy_preempt(sched, victim);
}

/* One that finds no block waits for those that end; when many do, or nothing else is left, somebody has to go. */
static void relieve(struct sched *sched)
{
    const struct even *even = state_of(sched);
    bool is_stuck = sched->record->row_count == 0 && sched->in_flight == 0;
    if (even->stalled > 0 && (is_stuck || even->stalled > even->decoding / 16 + 1))
        preempt_one(sched);
}

/* ---- the plan ---- */

/* A slot for a part of a share would be read the weights for as well: such rows wait for those of the next slot. */
static bool is_worth_a_slot(const struct even *even, const struct pattern *pattern)
{
    return even->ready_count > 0 &&
           (even->decode_slots == 0 || 2 * even->ready_count * pattern->decode_slots >= even->decoding);
}

/* Whether the turn is the prompts': in proportion to the slots in flight of either kind. */
static bool is_turn_of_prompts(const struct sched *sched, const struct pattern *pattern)
{
    const struct even *even = state_of(sched);
    return even->ready_count == 0 ||
           (!was_held(sched, even->ready[0].sequence) &&
            even->decode_slots * pattern->in_flight >= even->prompt_slots * pattern->decode_slots);
}

/* Prompt that is to ride beside decoding rows waits for some, but where there are too few of them for every slot to have one,
 * and for slots that there are more of than of theirs. */
static bool may_go_alone(const struct sched *sched, const struct pattern *pattern)
{
    const struct even *even = state_of(sched);
    return sched->in_flight == 0 || even->decoding < pattern->prompt_slots ||
           pattern->prompt_slots > pattern->decode_slots + even->alone_slots;
}

static void fill_slot(struct sched *sched, const struct pattern *pattern, uint64_t backlog)
{
    struct even *even = state_of(sched);
    bool is_rest =
        (uint64_t)pattern->prompt_slots * pattern->prompt_tokens >= backlog; /* what is in flight came before it */
    bool has_prompt = backlog > 0 && (is_rest || even->prompt_slots < pattern->in_flight), has_decode = false;
    uint32_t taken = 0;
    if (pattern->is_apart && has_prompt && is_turn_of_prompts(sched, pattern)) {
        taken = take_prompts(sched, pattern->prompt_tokens);
        if (taken > 0 && even->decode_slots + 1 >= pattern->decode_slots)
            hold(sched, 0);
    }
    bool is_ride = has_prompt && !pattern->is_apart; /* beside prompt, few rows are worth it as well */
    bool must_ride = backlog > 0 && !pattern->is_apart && pattern->prompt_slots >= pattern->decode_slots;
    if (taken == 0 && even->decode_slots < pattern->decode_slots && even->ready_count > 0 &&
        (is_ride || (!must_ride && is_worth_a_slot(even, pattern)))) {
        take_decodes(sched, pattern);
        has_decode = true;
    }
    bool may_prompt = pattern->is_apart ? !has_decode : has_decode || may_go_alone(sched, pattern);
    if (taken == 0 && has_prompt && may_prompt)
        taken = take_prompts(sched, pattern->prompt_tokens);
    even->is_decode_slot[sched->next_step % sched->plan->window] = has_decode;
    even->is_prompt_slot[sched->next_step % sched->plan->window] = taken > 0;
}

/* Nothing in flight will come back: whatever can be computed is. */
static void take_anything(struct sched *sched)
{
    const struct pattern all = {.decode_slots = 1};
    take_decodes(sched, &all);
    take_prompts(sched, sched->plan->max_num_batched_tokens);
}

static void plan(struct sched *sched)
{
    struct even *even = state_of(sched);
    take_census(sched);
    count_slots(sched);
    look_who_fits(sched);
    note_crowd(sched);
    struct load load = load_of(sched);
    const struct pattern *pattern = choose_pattern(sched, &load);
    even->stalled = 0;
    if (sched->in_flight < sched->plan->window)
        fill_slot(sched, pattern, load.backlog);
    if (sched->record->row_count == 0 && sched->in_flight == 0)
        take_anything(sched);
    relieve(sched);
}

const struct policy policy_even = {.name = "even",
                                   .source = "docs/scheduling.md",
                                   .plan = plan,
                                   .state_bytes = state_bytes,
                                   .open = open_even,
                                   .arrived = arrived,
                                   .ended = ended,
                                   .chooses_window = true};
