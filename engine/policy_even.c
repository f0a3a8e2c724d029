/* policy_even.c - microbatches of equal predicted time.
 *
 * What a pipeline needs is that every microbatch in flight takes its servers, stages and links, for the same time, that there
 * are as many of them as a traversal has room for, and that the KV cache is full but not too full. So, once per step:
 *
 *   1 census    which sequences decode (their next token is ready or in flight), which still have prompt to compute
 *   2 shape     how many slots share the decoding rows, how much prompt a slot carries and whether it does so beside decoding
 *               rows or alone: the shape that gets most work done per time, by the stage-time model
 *   3 decode    a slot's share of the decoding rows by cost, oldest first, rounding carried over
 *   4 prompts   begun ones first, then new ones, for which the forecast of the KV cache has room
 *   5 memory    who finds no block sits out; only when too many do is a sequence preempted, never one in flight
 *
 * docs/scheduling.md derives it. The state here is what is known of the past; losing it costs evenness for a moment, no bits.
 */
#include <math.h>
#include <string.h>

#include "engine/lengths.h"
#include "engine/policy.h"
#include "ipc/journal.h"

#define DEPTH_MAX      64u
#define HORIZON_POINTS 32u /* moments at which the KV cache is forecast */
#define AGES           64u
#define CRUMB          64u /* tokens: fewer of a prompt are not worth a row */
#define LOOK_AGAIN     8   /* steps */
#define ADMITTED_MAX   32
#define TOGETHER       16

/* A way to spread the work over the slots of one cycle, in which every decoding row gets one token. */
struct pattern {
    double decode_slots;    /* share the decoding rows; with a fraction, some rows wait for the next slot */
    uint32_t prompt_slots;  /* carry prompt: the same ones, as far as there are as many, or others */
    uint32_t prompt_tokens; /* each */
    bool is_apart;          /* prompt slots carry nothing else */
    uint32_t in_flight;     /* prompt slots that are under way at a time: their way may be longer than a cycle */
};

struct even {
    struct timing timing;
    struct lengths lengths;
    double deficit; /* cost of decoding rows that earlier slots took too few of (positive) or too many */
    uint64_t last_is_apart;
    uint64_t *planned_at; /* (sequences_max): step of its last row */
    uint64_t *held_at;    /* (sequences_max): step that passed it over although it was ready */
    bool *is_prompt_slot; /* (window): by step, whether it carries prompt */
    bool *is_decode_slot; /* (window): likewise, decoding rows */
    uint64_t ended;       /* sequences so far */

    /* admission: who waits and fits the forecast, looked at now and then */
    uint32_t admissible;        /* at the front of those that wait */
    uint64_t admissible_tokens; /* their prompts */
    uint64_t looked_at_step, looked_at_ended;
    bool has_more; /* the last look stopped for its limit, not for want of room */

    /* of the plan being made */
    uint32_t *ready; /* (sequences_max): decoding rows, oldest first */
    uint32_t *begun; /* (sequences_max): sequences with prompt left, in order of admission */
    uint32_t ready_count, begun_count, decoding;
    double decoding_cost, decoding_context;
    uint64_t begun_tokens;
    double usage[HORIZON_POINTS], variance[HORIZON_POINTS]; /* forecast of held blocks */
    uint32_t horizon;                                       /* tokens from now to the last point */
};

static struct even *state_of(const struct sched *sched)
{
    return sched->policy_state;
}

static size_t state_bytes(const struct plan *plan)
{
    return sizeof(struct even) + plan->sequences_max * (2 * sizeof(uint64_t) + 2 * sizeof(uint32_t)) +
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
    even->planned_at = (uint64_t *)(void *)at;
    even->held_at = even->planned_at + sched->plan->sequences_max;
    even->ready = (uint32_t *)(void *)(even->held_at + sched->plan->sequences_max);
    even->begun = even->ready + sched->plan->sequences_max;
    even->is_prompt_slot = (bool *)(even->begun + sched->plan->sequences_max);
    even->is_decode_slot = even->is_prompt_slot + sched->plan->window;
}

static void ended(struct sched *sched, uint32_t sequence)
{
    struct even *even = state_of(sched);
    const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    uint32_t tokens = sched->table.seqs[sequence].known - shm->prompt_tokens;
    even->ended++;
    if (!(policy_request(sched, sequence)->flags & REQUEST_SCORE))
        lengths_observe(&even->lengths, tokens, shm->finish_reason == FINISH_LENGTH);
}

/* ---- 1: census ---- */

static bool has_prompt_left(const struct sched *sched, uint32_t sequence)
{
    return policy_schedulable(sched, sequence) > 1 ||
           arena_sequence(sched->arena, sequence)->computed < arena_sequence(sched->arena, sequence)->prompt_tokens;
}

static double row_cost(const struct timing *timing, double context)
{
    double most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++)
        most = fmax(most,
                    timing->stages[i].row_us + timing->stages[i].token_us / 8 + timing->stages[i].context_us * context);
    return most > 0 ? most : 1;
}

/* Decoding rows that are ready, by the age of their last row, oldest first: those of one age in order of admission. */
static void sort_ready(struct even *even, uint64_t next_step, uint32_t *scratch)
{
    uint32_t starts[AGES + 1] = {0};
    for (uint32_t i = 0; i < even->ready_count; i++)
        starts[AGES - min_u64(next_step - even->planned_at[even->ready[i]], AGES - 1)]++;
    for (uint32_t age = 1; age <= AGES; age++)
        starts[age] += starts[age - 1];
    for (uint32_t i = even->ready_count; i-- > 0;)
        scratch[--starts[AGES - min_u64(next_step - even->planned_at[even->ready[i]], AGES - 1)]] = even->ready[i];
    memcpy(even->ready, scratch, even->ready_count * sizeof(*scratch));
}

static void take_census(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    even->ready_count = even->begun_count = even->decoding = 0;
    even->decoding_cost = even->decoding_context = 0;
    even->begun_tokens = 0;
    even->timing = *policy_timing(sched);
    if (even->timing.stage_count == 0)
        even->timing = plain_timing(sched->plan);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next) {
        uint32_t tokens = policy_schedulable(sched, s);
        if (tokens > 0 && has_prompt_left(sched, s)) {
            even->begun[even->begun_count++] = s;
            even->begun_tokens += tokens;
            continue;
        }
        even->decoding++;
        even->decoding_context += table->seqs[s].known;
        even->decoding_cost += row_cost(&even->timing, table->seqs[s].known);
        if (tokens > 0)
            even->ready[even->ready_count++] = s;
    }
    sort_ready(even, sched->next_step, even->begun + even->begun_count);
}

/* ---- 5: memory ---- */

/* Adds what a sequence will hold at the points of the horizon: known tokens now, at most `more` to come. */
static void add_forecast(const struct even *even, const struct sched *sched, uint32_t known, uint32_t generated,
                         uint32_t more, double *usage, double *variance)
{
    uint32_t block_size = sched->plan->block_size, from = 0;
    for (uint32_t point = 0; point < HORIZON_POINTS && from <= more; point++) {
        uint32_t to = (uint32_t)((uint64_t)even->horizon * (point + 1) / HORIZON_POINTS);
        double alive = from == 0 ? 1 : lengths_survival(&even->lengths, generated, generated + from - 1);
        double blocks = (double)div_up_u64(known + min_u64(to, more), block_size);
        usage[point] += alive * blocks;
        variance[point] += alive * (1 - alive) * blocks * blocks;
        from = to;
    }
}

static uint32_t tokens_to_come(const struct sched *sched, uint32_t sequence)
{
    const struct seq *seq = &sched->table.seqs[sequence];
    uint32_t generated = seq->known - arena_sequence(sched->arena, sequence)->prompt_tokens;
    if (policy_request(sched, sequence)->flags & REQUEST_SCORE)
        return 0;
    return seq->log_capacity - generated - 1; /* the last token is never computed */
}

static void forecast(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    double held = 0;
    even->horizon = 1;
    lengths_reset_running(&even->lengths);
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next) {
        even->horizon = (uint32_t)max_u64(even->horizon, tokens_to_come(sched, s));
        lengths_running(&even->lengths, table->seqs[s].known - arena_sequence(sched->arena, s)->prompt_tokens);
        held += arena_sequence(sched->arena, s)->block_count;
    }
    for (uint32_t s = table->waiting.first, i = 0; s != SEQ_NONE && i < 16; s = table->seqs[s].next, i++)
        even->horizon = (uint32_t)max_u64(even->horizon, tokens_to_come(sched, s));
    lengths_estimate(&even->lengths);
    for (uint32_t point = 0; point < HORIZON_POINTS; point++)
        even->usage[point] = even->variance[point] = 0;
    for (uint32_t s = table->running.first; s != SEQ_NONE; s = table->seqs[s].next)
        add_forecast(even, sched, table->seqs[s].known,
                     table->seqs[s].known - arena_sequence(sched->arena, s)->prompt_tokens, tokens_to_come(sched, s),
                     even->usage, even->variance);
    /* Blocks that several hold were counted for each of them. */
    double shared = held - (double)(sched->plan->num_blocks - policy_free_blocks(sched));
    for (uint32_t point = 0; point < HORIZON_POINTS && shared > 0; point++)
        even->usage[point] -= shared * fmin(1, even->usage[point] / fmax(1, even->usage[0]));
}

#define CERTAINTY 1.5 /* standard deviations of the forecast that are kept free */

static bool has_room_for(struct sched *sched, uint32_t sequence, const struct policy_hit *hit)
{
    struct even *even = state_of(sched);
    double usage[HORIZON_POINTS], variance[HORIZON_POINTS], room = sched->plan->num_blocks;
    const struct seq *seq = &sched->table.seqs[sequence];
    uint32_t prompt = arena_sequence(sched->arena, sequence)->prompt_tokens;
    memcpy(usage, even->usage, sizeof(usage));
    memcpy(variance, even->variance, sizeof(variance));
    add_forecast(even, sched, seq->known, seq->known - prompt, tokens_to_come(sched, sequence), usage, variance);
    room -= policy_blocks_reserved(sched);
    room += hit->blocks - hit->free_blocks; /* somebody holds them anyway */
    for (uint32_t point = 0; point < HORIZON_POINTS; point++)
        if (usage[point] + CERTAINTY * sqrt(variance[point]) > room)
            return sched->table.running.count == 0 && even->admissible == 0; /* alone it always fits */
    memcpy(even->usage, usage, sizeof(usage));
    memcpy(even->variance, variance, sizeof(variance));
    return true;
}

/* How many of those that wait may be admitted. Prompts hold everybody up, many at once hardly more than one: so a few are
 * let come together. */
static void look_who_fits(struct sched *sched)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t together = 1 + table->running.count / TOGETHER, eligible = 0;
    bool is_time = even->ended != even->looked_at_ended || sched->next_step >= even->looked_at_step + LOOK_AGAIN ||
                   table->running.count == 0 || even->has_more || sched->in_flight == 0;
    if (even->admissible > 0 || table->waiting.count == 0 || !is_time)
        return;
    even->looked_at_step = sched->next_step;
    even->looked_at_ended = even->ended;
    even->admissible_tokens = 0;
    even->has_more = true; /* unless one is found that does not fit */
    forecast(sched);
    for (uint32_t s = table->waiting.first; s != SEQ_NONE && even->admissible < ADMITTED_MAX; s = table->seqs[s].next) {
        if (table->seqs[s].in_flight > 0)
            continue;
        struct policy_hit hit = policy_find_prefix(sched, s);
        eligible++;
        if (table->running.count + even->admissible >= sched->plan->max_num_seqs || !has_room_for(sched, s, &hit)) {
            even->has_more = false;
            break;
        }
        even->admissible++;
        even->admissible_tokens += table->seqs[s].known - hit.tokens;
    }
    if (even->admissible < together && even->admissible < eligible && sched->in_flight > 0)
        even->admissible = 0;
    even->has_more = even->has_more && even->admissible == ADMITTED_MAX;
}

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

/* ---- 2: shape ---- */

struct load {
    double rows, context; /* of all decoding rows */
    double prompt_rows, prompt_past;
    uint64_t backlog; /* tokens of prompt that could be computed */
};

static struct shape decode_share(const struct load *load, double slots)
{
    return (struct shape){.rows = load->rows / slots, .tokens = load->rows / slots, .context = load->context / slots};
}

static struct shape with_prompt(struct shape shape, const struct load *load, double tokens)
{
    shape.rows += 1;
    shape.tokens += tokens;
    shape.context += load->prompt_past + tokens;
    shape.pairs += tokens * (load->prompt_past + tokens / 2);
    return shape;
}

/* The longest that one server is busy with so many of the one and so many of the other. */
static double busiest_us(const struct timing *timing, const struct shape *a, double count_a, const struct shape *b,
                         double count_b)
{
    double most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        double stage = (count_a > 0 ? count_a * timing_stage_us(&timing->stages[i], a) : 0) +
                       (count_b > 0 ? count_b * timing_stage_us(&timing->stages[i], b) : 0);
        most = fmax(most, stage);
        if (i + 1 < timing->stage_count)
            most = fmax(most, (count_a > 0 ? count_a * timing_link_us(&timing->links[i], a) : 0) +
                                  (count_b > 0 ? count_b * timing_link_us(&timing->links[i], b) : 0));
    }
    return most;
}

/* How much longer a slot takes that enters right behind another: nobody overtakes, so a slow one in front holds it up. The
 * longest path through the grid of servers, as in a flow shop of two jobs. */
static double delay_behind_us(const struct timing *timing, const struct shape *front, const struct shape *behind)
{
    double entered = timing_stage_us(&timing->stages[0], front), front_sum = 0, behind_sum = 0, most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        front_sum += timing_stage_us(&timing->stages[i], front);
        most = fmax(most, front_sum - behind_sum);
        behind_sum += timing_stage_us(&timing->stages[i], behind);
        if (i + 1 == timing->stage_count)
            break;
        front_sum += timing_link_us(&timing->links[i], front);
        most = fmax(most, front_sum - behind_sum);
        behind_sum += timing_link_us(&timing->links[i], behind);
    }
    return fmax(0, most - entered);
}

/* Time in which every decoding row gets a token and the prompt slots are computed; how many of those are under way. */
static double cycle_us(const struct timing *timing, const struct load *load, uint32_t depth, struct pattern *p)
{
    p->in_flight = p->prompt_slots;
    struct shape none = {0};
    if (load->rows == 0) {
        struct shape prompt = with_prompt(none, load, p->prompt_tokens);
        return fmax(timing_traversal_us(timing, &prompt), busiest_us(timing, &prompt, p->prompt_slots, &none, 0));
    }
    struct shape decode = decode_share(load, p->decode_slots);
    double latency = timing_traversal_us(timing, &decode);
    if (p->prompt_slots == 0)
        return fmax(latency, busiest_us(timing, &decode, p->decode_slots, &none, 0));
    struct shape apart = with_prompt(none, load, p->prompt_tokens), both = with_prompt(decode, load, p->prompt_tokens);
    double way = timing_traversal_us(timing, &apart);
    if (p->is_apart) {
        latency += delay_behind_us(timing, &apart, &decode);
        double cycle = fmax(latency, busiest_us(timing, &decode, p->decode_slots, &apart, p->prompt_slots));
        double room = depth - ceil(p->decode_slots);
        cycle = fmax(cycle, way * p->prompt_slots / room);
        p->in_flight = (uint32_t)fmin(room, ceil(way * p->prompt_slots / cycle));
        return cycle;
    }
    double latency_both = timing_traversal_us(timing, &both);
    if (p->prompt_slots >= p->decode_slots) {
        double sum = busiest_us(timing, &both, p->decode_slots, &apart, p->prompt_slots - p->decode_slots);
        if (p->prompt_slots > p->decode_slots)
            latency_both += delay_behind_us(timing, &apart, &both);
        return fmax(fmax(latency_both, sum), way * p->prompt_slots / depth);
    }
    double sum = busiest_us(timing, &decode, p->decode_slots - p->prompt_slots, &both, p->prompt_slots);
    double share = (double)p->prompt_slots / p->decode_slots;
    latency += delay_behind_us(timing, &both, &decode);
    return share * fmax(latency_both, sum) + (1 - share) * fmax(latency, sum);
}

static void try_decode_slots(const struct timing *timing, const struct load *load, uint32_t depth, double slots,
                             double *best, double *best_slots)
{
    struct pattern pattern = {.decode_slots = slots};
    double cycle = cycle_us(timing, load, depth, &pattern);
    if (cycle < *best * 0.999) {
        *best = cycle;
        *best_slots = slots;
    }
}

/* Cycle with the best number of slots, for so many rows and no prompt. */
static double decode_cycle_us(const struct timing *timing, const struct load *load, uint32_t depth, double *slots)
{
    double best = INFINITY;
    for (uint32_t g = 1; g <= depth && g <= fmax(1, load->rows); g++)
        try_decode_slots(timing, load, depth, g, &best, slots);
    return best;
}

static const uint32_t chunk_sizes[] = {16,  32,  48,  64,   80,   96,   128,  160,  192,  256,
                                       384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384};

struct worth {
    double row_us, token_us; /* of bottleneck time: what a token of an answer and one of a prompt cost at best */
};

static struct worth worth_of(const struct sched *sched, const struct load *load, uint32_t depth)
{
    const struct even *even = state_of(sched);
    struct worth worth = {.token_us = INFINITY};
    struct shape none = {0};
    for (size_t i = 0; i < ARRAY_COUNT(chunk_sizes) && chunk_sizes[i] <= sched->plan->max_num_batched_tokens; i++) {
        struct shape prompt = with_prompt(none, load, chunk_sizes[i]);
        worth.token_us = fmin(worth.token_us, timing_bottleneck_us(&even->timing, &prompt) / chunk_sizes[i]);
    }
    /* as many rows as could decode at once */
    double blocks = (double)(sched->plan->num_blocks - policy_free_blocks(sched)) / fmax(1, sched->table.running.count);
    double most = fmin(sched->plan->max_num_seqs, load->rows + even->begun_count + sched->table.waiting.count);
    most = fmax(1, fmax(load->rows, fmin(most, sched->plan->num_blocks / fmax(1, blocks))));
    struct load full = {.rows = most, .context = most * (load->rows > 0 ? load->context / load->rows : 0)};
    double slots = 1;
    worth.row_us = decode_cycle_us(&even->timing, &full, depth, &slots) / most;
    return worth;
}

#define CANDIDATES_MAX 1024u
#define NEARLY_BEST    0.97 /* of the work per time: for so little, a shorter cycle is worth more */

struct candidates {
    uint32_t count;
    double best_rate;
    struct pattern patterns[CANDIDATES_MAX];
    float rates[CANDIDATES_MAX], cycles[CANDIDATES_MAX];
};

static void try_pattern(const struct sched *sched, const struct load *load, const struct worth *worth, uint32_t depth,
                        struct pattern *pattern, struct candidates *candidates)
{
    double cycle = cycle_us(&state_of(sched)->timing, load, depth, pattern);
    double tokens = fmin((double)pattern->prompt_slots * pattern->prompt_tokens, (double)load->backlog);
    double rate = (load->rows * worth->row_us + tokens * worth->token_us) / cycle;
    if (candidates->count == CANDIDATES_MAX)
        return;
    candidates->patterns[candidates->count] = *pattern;
    candidates->rates[candidates->count] = (float)rate;
    candidates->cycles[candidates->count++] = (float)cycle;
    candidates->best_rate = fmax(candidates->best_rate, rate);
}

static void try_slots(const struct sched *sched, const struct load *load, const struct worth *worth, double slots,
                      uint32_t depth, uint32_t tokens, struct candidates *candidates)
{
    uint32_t needed = (uint32_t)min_u64(div_up_u64(load->backlog, tokens), depth);
    uint32_t whole = (uint32_t)ceil(slots);
    const uint32_t mixed[] = {needed, (uint32_t)min_u64(needed, whole), 1};
    const uint32_t apart[] = {(uint32_t)min_u64(needed, depth - whole), 2, 1};
    struct pattern pattern = {.decode_slots = slots, .prompt_tokens = tokens};
    for (uint32_t i = 0; i < ARRAY_COUNT(mixed) && slots > 0; i++) {
        pattern.prompt_slots = mixed[i];
        if (i == 0 || mixed[i] < mixed[i - 1])
            try_pattern(sched, load, worth, depth, &pattern, candidates);
    }
    pattern.is_apart = true;
    for (uint32_t i = 0; i < ARRAY_COUNT(apart); i++) {
        pattern.prompt_slots = apart[i];
        if (apart[i] > 0 && apart[i] <= needed && whole + apart[i] <= depth && (i == 0 || apart[i] < apart[0]))
            try_pattern(sched, load, worth, depth, &pattern, candidates);
    }
}

/* Tokens that a stage computes in the time that it reads its weights: fewer are no faster. */
static double ridge_tokens(const struct timing *timing)
{
    double least = INFINITY;
    for (uint64_t i = 0; i < timing->stage_count; i++)
        if (timing->stages[i].token_us > 0)
            least = fmin(least, timing->stages[i].weights_us / timing->stages[i].token_us);
    return isinf(least) ? 0 : least;
}

static struct pattern choose_pattern(const struct sched *sched, const struct load *load, uint32_t depth)
{
    struct even *even = state_of(sched);
    struct pattern best = {.decode_slots = 1};
    if (load->rows > 0)
        decode_cycle_us(&even->timing, load, depth, &best.decode_slots);
    if (load->backlog == 0)
        return best;
    struct worth worth = worth_of(sched, load, depth);
    struct candidates candidates;
    candidates.count = 0;
    candidates.best_rate = 0;
    uint32_t first = load->rows > 0 ? 1 : 0, last = load->rows > 0 ? (uint32_t)fmin(depth, load->rows) : 0;
    double ridge = ridge_tokens(&even->timing);
    for (size_t i = 0; i < ARRAY_COUNT(chunk_sizes); i++) {
        uint32_t tokens = (uint32_t)min_u64(chunk_sizes[i], sched->plan->max_num_batched_tokens);
        if (tokens < load->backlog && tokens < ridge / 2 && tokens < sched->plan->max_num_batched_tokens)
            continue; /* crumbs: the rest would need a slot as well */
        for (uint32_t slots = first; slots <= last; slots++)
            try_slots(sched, load, &worth, slots, depth, tokens, &candidates);
        if (chunk_sizes[i] >= load->backlog || chunk_sizes[i] >= sched->plan->max_num_batched_tokens)
            break;
    }
    float shortest = INFINITY;
    for (uint32_t i = 0; i < candidates.count; i++)
        if (candidates.rates[i] >= NEARLY_BEST * candidates.best_rate && candidates.cycles[i] < shortest) {
            shortest = candidates.cycles[i];
            best = candidates.patterns[i];
        }
    return best;
}

/* ---- 3: decode ---- */

static void take_decodes(struct sched *sched, const struct pattern *pattern, bool is_last_slot, uint32_t *stalled)
{
    struct even *even = state_of(sched);
    double share = even->decoding_cost / pattern->decode_slots, target = share + even->deficit, taken = 0;
    uint32_t i = 0;
    for (; i < even->ready_count && policy_budget(sched) > 0; i++) {
        uint32_t sequence = even->ready[i];
        double cost = row_cost(&even->timing, sched->table.seqs[sequence].known);
        bool must_go = even->held_at[sequence] + 1 == sched->next_step;
        if (taken > 0 && taken + cost / 2 > target && !must_go)
            break;
        if (!policy_add_row(sched, sequence, 1)) {
            (*stalled)++;
            continue;
        }
        even->planned_at[sequence] = sched->next_step;
        taken += cost;
    }
    for (; i < even->ready_count && is_last_slot; i++)
        even->held_at[even->ready[i]] = sched->next_step;
    double most = even->decoding > 0 ? even->decoding_cost / even->decoding : 0;
    even->deficit = fmax(-most, fmin(most, target - taken));
}

/* ---- 4: prompts ---- */

/* How much of so many tokens goes into a slot that has room for so many of `full`: equal parts, and no crumbs at the end
 * of a slot. 0: none. */
static uint32_t cut(const struct sched *sched, uint32_t tokens, uint32_t room, uint32_t full)
{
    uint32_t limit = sched->plan->long_prefill_token_threshold;
    bool is_first = room == full;
    if (!sched->plan->enable_chunked_prefill)
        return tokens <= policy_budget(sched) ? tokens : 0;
    if (is_first && tokens > full)
        room = (uint32_t)div_up_u64(tokens, div_up_u64(tokens, full));
    room = (uint32_t)min_u64(room, policy_budget(sched));
    if (limit > 0 && sched->table.running.count + sched->table.waiting.count > 1)
        room = (uint32_t)min_u64(room, limit);
    if (tokens <= room)
        return tokens;
    return is_first || room >= CRUMB || room * 8 >= full ? room : 0;
}

static bool admit_one(struct sched *sched, uint32_t sequence, uint32_t room, uint32_t full, uint32_t *taken)
{
    struct even *even = state_of(sched);
    uint32_t known = sched->table.seqs[sequence].known;
    struct policy_hit hit = policy_find_prefix(sched, sequence);
    uint32_t tokens = cut(sched, known - hit.tokens, room, full);
    uint32_t reach = sched->plan->reserve_full_isl ? known : hit.tokens + tokens;
    uint32_t needed = (uint32_t)div_up_u64(reach, sched->plan->block_size) - hit.blocks + hit.free_blocks;
    if (tokens == 0)
        return false;
    if (needed + policy_blocks_reserved(sched) > policy_free_blocks(sched) ||
        !policy_admit(sched, sequence, &hit, tokens)) {
        even->admissible = 0;
        return false;
    }
    even->admissible--;
    even->admissible_tokens -= min_u64(even->admissible_tokens, known - hit.tokens);
    even->planned_at[sequence] = sched->next_step;
    *taken = tokens;
    return true;
}

static bool may_admit(const struct sched *sched)
{
    return state_of(sched)->admissible > 0 && sched->preempted_count == 0 &&
           sched->table.running.count < sched->plan->max_num_seqs;
}

static uint32_t take_prompts(struct sched *sched, uint32_t full, uint32_t *stalled)
{
    struct even *even = state_of(sched);
    const struct seq_table *table = &sched->table;
    uint32_t room = full, sum = 0;
    for (uint32_t i = 0; i < even->begun_count && room > 0 && policy_budget(sched) > 0; i++) {
        uint32_t tokens = cut(sched, policy_schedulable(sched, even->begun[i]), room, full);
        if (tokens == 0)
            return sum;
        if (!policy_add_row(sched, even->begun[i], tokens)) {
            (*stalled)++;
            continue;
        }
        even->planned_at[even->begun[i]] = sched->next_step;
        sum += tokens;
        room -= min_u64(tokens, room);
    }
    for (uint32_t s = table->waiting.first, next; s != SEQ_NONE && *stalled == 0; s = next) {
        uint32_t tokens = 0;
        next = table->seqs[s].next;
        if (room == 0 || policy_budget(sched) == 0 || !may_admit(sched))
            return sum;
        if (table->seqs[s].in_flight > 0)
            continue; /* preempted with a token in flight: its turn comes when the token is back */
        if (!admit_one(sched, s, room, full, &tokens))
            return sum;
        sum += tokens;
        room -= min_u64(tokens, room);
    }
    return sum;
}

/* ---- the plan ---- */

/* Prompt that could be computed now: of begun sequences, and of those that may be admitted. */
static struct load load_of(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    struct load load = {.rows = even->decoding, .context = even->decoding_context, .backlog = even->begun_tokens};
    if (even->begun_count > 0)
        load.prompt_past = arena_sequence(sched->arena, even->begun[0])->computed;
    if (may_admit(sched))
        load.backlog += even->admissible_tokens;
    return load;
}

static void count_slots(const struct sched *sched, uint32_t *decode_slots, uint32_t *prompt_slots)
{
    const struct even *even = state_of(sched);
    for (uint32_t back = 1; back <= sched->in_flight; back++) {
        uint32_t at = (sched->next_step - back) % sched->plan->window;
        *decode_slots += even->is_decode_slot[at];
        *prompt_slots += even->is_prompt_slot[at];
    }
}

static bool must_go(const struct sched *sched)
{
    const struct even *even = state_of(sched);
    return even->ready_count > 0 && even->held_at[even->ready[0]] + 1 == sched->next_step;
}

/* A slot for a part of a share would be read the weights for as well: such rows wait for those of the next slot. */
static bool is_worth_a_slot(const struct even *even, const struct pattern *pattern)
{
    double share = even->decoding / pattern->decode_slots;
    return even->ready_count > 0 && even->ready_count >= share / 2;
}

static void plan(struct sched *sched)
{
    struct even *even = state_of(sched);
    uint32_t decode_slots = 0, prompt_slots = 0, stalled = 0, taken = 0, depth = sched->plan->window;
    take_census(sched);
    count_slots(sched, &decode_slots, &prompt_slots);
    look_who_fits(sched);
    struct load load = load_of(sched);
    struct pattern pattern = choose_pattern(sched, &load, depth);
    bool has_prompt = load.backlog > 0 && prompt_slots < pattern.in_flight;
    bool is_apart = pattern.is_apart && has_prompt && !must_go(sched) &&
                    (even->ready_count == 0 || decode_slots * pattern.in_flight >= prompt_slots * pattern.decode_slots);
    bool has_decode = !is_apart && decode_slots < pattern.decode_slots &&
                      (is_worth_a_slot(even, &pattern) || (decode_slots == 0 && even->ready_count > 0));
    if (has_decode)
        take_decodes(sched, &pattern, decode_slots + 1 >= pattern.decode_slots, &stalled);
    if (has_prompt && (is_apart || !pattern.is_apart || !has_decode))
        taken = take_prompts(sched, pattern.prompt_tokens, &stalled);
    if (is_apart && taken == 0 && even->ready_count > 0) {
        has_decode = true;
        take_decodes(sched, &pattern, true, &stalled);
    }
    if (is_apart && taken > 0)
        for (uint32_t i = 0; i < even->ready_count && decode_slots + 1 >= pattern.decode_slots; i++)
            even->held_at[even->ready[i]] = sched->next_step;
    even->is_decode_slot[sched->next_step % depth] = has_decode;
    even->is_prompt_slot[sched->next_step % depth] = taken > 0;
    if (sched->record->row_count == 0 &&
        sched->in_flight == 0) { /* nothing will come back: whatever can be computed is */
        pattern = (struct pattern){.decode_slots = 1, .prompt_tokens = sched->plan->max_num_batched_tokens};
        take_decodes(sched, &pattern, true, &stalled);
        take_prompts(sched, pattern.prompt_tokens, &stalled);
    }
    bool is_stuck = sched->record->row_count == 0 && sched->in_flight == 0;
    if (stalled > 0 && (is_stuck || stalled > even->decoding / 16 + 1))
        preempt_one(sched);
}

const struct policy policy_even = {.name = "even",
                                   .source = "docs/scheduling.md",
                                   .plan = plan,
                                   .state_bytes = state_bytes,
                                   .open = open_even,
                                   .ended = ended,
                                   .chooses_window = true};
