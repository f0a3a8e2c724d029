#include "engine/pattern.h"

#include <math.h>

static const uint32_t chunk_sizes[] = {16,  32,  48,  64,   80,   96,   128,  160,  192,  256,
                                       384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384};
#define SLOTS_MAX 16u /* of decoding rows that are looked at: a window is at most twice as deep as the pipeline */

/* What one slot takes of every server, and its way through all of them. */
struct times {
    double stage_us[TIMING_STAGES_MAX], link_us[TIMING_STAGES_MAX];
    double most_us, way_us; /* of one server; of the whole way */
};

static struct times times_of(const struct timing *timing, const struct shape *shape)
{
    struct times times = {.most_us = timing_bottleneck_us(timing, shape), .way_us = timing_traversal_us(timing, shape)};
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        times.stage_us[i] = timing_stage_us(&timing->stages[i], shape);
        if (i + 1 < timing->stage_count)
            times.link_us[i] = timing_link_us(&timing->links[i], shape);
    }
    return times;
}

/* Without a result: that of the last chunk alone. */
static struct shape with_prompt(struct shape shape, const struct load *load, double tokens)
{
    shape.rows += 1;
    shape.tokens += tokens;
    shape.context += load->prompt_past + tokens;
    shape.pairs += tokens * (load->prompt_past + tokens / 2);
    return shape;
}

static struct shape decode_share(const struct load *load, uint32_t slots)
{
    double rows = load->rows / slots;
    return (struct shape){.rows = rows, .tokens = rows, .context = load->context / slots, .results = rows};
}

/* The longest that one server is busy with so many of the one and so many of the other. */
static double busiest_us(const struct timing *timing, const struct times *a, double count_a, const struct times *b,
                         double count_b)
{
    double most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        most = fmax(most, count_a * a->stage_us[i] + count_b * b->stage_us[i]);
        if (i + 1 < timing->stage_count)
            most = fmax(most, count_a * a->link_us[i] + count_b * b->link_us[i]);
    }
    return most;
}

/* How much longer a slot takes that enters right behind another: nobody overtakes, so a slow one in front holds it up. The
 * longest path through the grid of servers, as in a flow shop of two jobs. */
static double delay_behind_us(const struct timing *timing, const struct times *front, const struct times *behind)
{
    double front_sum = 0, behind_sum = 0, most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        front_sum += front->stage_us[i];
        most = fmax(most, front_sum - behind_sum);
        behind_sum += behind->stage_us[i];
        if (i + 1 == timing->stage_count)
            break;
        front_sum += front->link_us[i];
        most = fmax(most, front_sum - behind_sum);
        behind_sum += behind->link_us[i];
    }
    return fmax(0, most - front->stage_us[0]);
}

#define SURPRISE                                                                                                       \
    0.5 /* of its time: so much an additional slot holds up others, since it comes at no particular moment */

#define CANDIDATES_MAX (ARRAY_COUNT(chunk_sizes) * SLOTS_MAX * 5)

/* What is compared. */
struct candidates {
    const struct timing *timing;
    const struct load *load;
    const struct aims *aims;
    double row_worth_us, token_worth_us; /* bottleneck time of a token of an answer and of a prompt, at best */
    uint32_t slots_min, slots_max;       /* of decoding rows */
    struct times decode[SLOTS_MAX + 1];  /* by number of slots that share the rows */
    struct times apart;                  /* of the prompt tokens that are looked at */
    double best_rate;
    uint32_t count;
    double rates[CANDIDATES_MAX]; /* work per time */
    struct pattern patterns[CANDIDATES_MAX];
};

static double prompt_tokens_of(const struct candidates *c, const struct pattern *pattern)
{
    return fmin((double)pattern->prompt_slots * pattern->prompt_tokens, (double)c->load->backlog);
}

static void add(struct candidates *c, const struct pattern *pattern, double rate)
{
    check(c->count < CANDIDATES_MAX);
    c->patterns[c->count] = *pattern;
    c->rates[c->count++] = rate;
    c->best_rate = fmax(c->best_rate, rate);
}

static void consider(struct candidates *c, const struct pattern *pattern)
{
    double work_us = c->load->rows * c->row_worth_us + prompt_tokens_of(c, pattern) * c->token_worth_us;
    add(c, pattern, work_us / pattern->cycle_us);
}

/* Prompts in slots that decode as well. */
static void consider_mixed(struct candidates *c, uint32_t decode_slots, uint32_t prompt_slots, uint32_t tokens,
                           const struct times *both)
{
    const struct times *decode = &c->decode[decode_slots];
    struct pattern pattern = {
        .decode_slots = decode_slots, .prompt_slots = prompt_slots, .prompt_tokens = tokens, .in_flight = prompt_slots};
    if (prompt_slots >= decode_slots) {
        uint32_t more = prompt_slots - decode_slots;
        double way = both->way_us;
        if (more > 0)
            way += delay_behind_us(c->timing, &c->apart, both) + SURPRISE * c->apart.most_us;
        double sum = busiest_us(c->timing, both, decode_slots, &c->apart, more);
        pattern.cycle_us = fmax(fmax(way, sum), c->apart.way_us * prompt_slots / c->aims->depth);
    } else {
        double share = (double)prompt_slots / decode_slots;
        double sum = busiest_us(c->timing, decode, decode_slots - prompt_slots, both, prompt_slots);
        double way = decode->way_us + delay_behind_us(c->timing, both, decode);
        pattern.cycle_us = share * fmax(both->way_us, sum) + (1 - share) * fmax(way, sum);
    }
    consider(c, &pattern);
}

/* Prompts in slots of their own. */
static void consider_apart(struct candidates *c, uint32_t decode_slots, uint32_t prompt_slots, uint32_t tokens)
{
    const struct times *decode = &c->decode[decode_slots];
    struct pattern pattern = {
        .decode_slots = decode_slots, .prompt_slots = prompt_slots, .prompt_tokens = tokens, .is_apart = true};
    double room = c->aims->depth - decode_slots;
    double way = decode->way_us + delay_behind_us(c->timing, &c->apart, decode) + SURPRISE * c->apart.most_us;
    pattern.cycle_us = fmax(way, busiest_us(c->timing, decode, decode_slots, &c->apart, prompt_slots));
    pattern.cycle_us = fmax(pattern.cycle_us, c->apart.way_us * prompt_slots / room);
    pattern.in_flight = (uint32_t)fmin(room, ceil(c->apart.way_us * prompt_slots / pattern.cycle_us));
    consider(c, &pattern);
}

/* Prompts while nothing decodes. The pipeline is empty before them: what counts is when the last of them is through. */
static void consider_prompts_alone(struct candidates *c, uint32_t prompt_slots, uint32_t tokens)
{
    struct pattern pattern = {.prompt_slots = prompt_slots, .prompt_tokens = tokens, .in_flight = c->aims->depth};
    double backlog = (double)c->load->backlog, others = (double)div_up_u64(c->load->backlog, tokens) - 1;
    pattern.cycle_us = fmax(c->apart.way_us, busiest_us(c->timing, &c->apart, prompt_slots, &c->apart, 0));
    add(c, &pattern, backlog * c->token_worth_us / (c->apart.way_us + others * c->apart.most_us));
}

static uint32_t decode_slots_max(const struct load *load, const struct aims *aims)
{
    return (uint32_t)fmin(fmin(aims->depth, SLOTS_MAX), ceil(load->rows));
}

/* Every number of slots, for so much prompt in each that has some. */
static void consider_tokens(struct candidates *c, uint32_t tokens)
{
    uint32_t depth = c->aims->depth, needed = (uint32_t)min_u64(div_up_u64(c->load->backlog, tokens), depth);
    struct shape prompt = with_prompt((struct shape){0}, c->load, tokens);
    c->apart = times_of(c->timing, &prompt);
    if (c->load->rows == 0) {
        consider_prompts_alone(c, needed, tokens);
        return;
    }
    for (uint32_t slots = c->slots_min; slots <= c->slots_max; slots++) {
        struct shape shape = with_prompt(decode_share(c->load, slots), c->load, tokens);
        struct times both = times_of(c->timing, &shape);
        consider_mixed(c, slots, needed, tokens, &both);
        if (needed > slots)
            consider_mixed(c, slots, slots, tokens, &both);
        if (needed > 1 && slots > 1)
            consider_mixed(c, slots, 1, tokens, &both);
        if (slots == depth)
            break;
        consider_apart(c, slots, (uint32_t)min_u64(needed, depth - slots), tokens);
        if (needed > 1 && depth - slots > 1)
            consider_apart(c, slots, 1, tokens);
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

static void consider_all(struct candidates *c)
{
    double ridge = ridge_tokens(c->timing);
    for (size_t i = 0; i < ARRAY_COUNT(chunk_sizes); i++) {
        uint32_t tokens = (uint32_t)min_u64(chunk_sizes[i], c->aims->tokens_max);
        bool is_last = tokens == c->aims->tokens_max || tokens >= c->load->backlog;
        if (is_last || tokens >= ridge / 2) /* less would be crumbs: the rest needs a slot as well */
            consider_tokens(c, tokens);
        if (is_last)
            return;
    }
}

/* The number of slots that give every decoding row its token soonest. */
static struct pattern decode_only(const struct timing *timing, const struct load *load, const struct aims *aims)
{
    struct pattern best = {.cycle_us = INFINITY};
    for (uint32_t slots = 1; slots <= decode_slots_max(load, aims); slots++) {
        struct shape shape = decode_share(load, slots);
        struct times times = times_of(timing, &shape);
        double cycle = slots == 1 ? times.way_us / aims->lone_speed
                                  : fmax(times.way_us, busiest_us(timing, &times, slots, &times, 0));
        if (cycle < best.cycle_us * 0.999)
            best = (struct pattern){.decode_slots = slots, .cycle_us = cycle};
    }
    return best;
}

/* What work costs where everything runs that can, and prompts come as fast as answers end: tokens of prompt cost their part of
 * a large chunk, the rest of a cycle is what the answers cost. */
static void find_worth(struct candidates *c)
{
    double rows = c->aims->rows_later, least = INFINITY;
    struct load later = {.rows = rows, .context = c->load->rows > 0 ? c->load->context / c->load->rows * rows : 0};
    c->token_worth_us = INFINITY;
    for (size_t i = 0; i < ARRAY_COUNT(chunk_sizes); i++) {
        uint32_t tokens = (uint32_t)min_u64(chunk_sizes[i], c->aims->tokens_max);
        struct shape prompt = with_prompt((struct shape){0}, c->load, tokens);
        c->token_worth_us = fmin(c->token_worth_us, timing_bottleneck_us(c->timing, &prompt) / tokens);
    }
    for (uint32_t slots = 1; slots <= decode_slots_max(&later, c->aims); slots++) {
        double tokens = fmin(rows * c->aims->prompt_share / slots, c->aims->tokens_max);
        struct shape shape = with_prompt(decode_share(&later, slots), c->load, tokens);
        struct times times = times_of(c->timing, &shape);
        double cycle = fmax(times.way_us, busiest_us(c->timing, &times, slots, &times, 0));
        least = fmin(least, cycle - slots * tokens * c->token_worth_us);
    }
    c->row_worth_us = fmax(least / rows, c->token_worth_us);
    if (c->aims->has_target && c->aims->prompt_rate * c->token_worth_us > 1)
        c->row_worth_us = c->token_worth_us;
}

#define TRANSIENT   8 /* times what is computed while weights are read: for so little prompt rows are not regrouped */
#define NEARLY_BEST 0.97 /* of the work per time: for so little a shorter cycle is worth more to those who decode */
#define PATIENCE    2    /* as many times those who wait for their first token count as those who have it */

static bool keeps_up(const struct candidates *c, const struct pattern *pattern)
{
    return (double)pattern->prompt_slots * pattern->prompt_tokens >= c->aims->prompt_rate * pattern->cycle_us;
}

/* What everybody together loses until the prompts that are there are through: those who decode, in longer cycles; those who
 * wait, until half of them have had their turn and for a cycle of their own. */
static double delay_us(const struct candidates *c, const struct pattern *pattern, double decode_us)
{
    double cycles = (double)c->load->backlog / prompt_tokens_of(c, pattern);
    return c->load->rows * fmax(0, pattern->cycle_us - decode_us) * cycles +
           PATIENCE * c->aims->waiting * pattern->cycle_us * (cycles / 2 + 1);
}

/* The least delay of those that keep up with the prompts; UINT32_MAX: there is none. */
static uint32_t least_delay_within(const struct candidates *c, double cycle_us, double decode_us)
{
    uint32_t best = UINT32_MAX;
    double least = INFINITY;
    for (uint32_t i = 0; i < c->count; i++) {
        const struct pattern *pattern = &c->patterns[i];
        double delay = delay_us(c, pattern, decode_us);
        if (pattern->cycle_us <= cycle_us && keeps_up(c, pattern) && delay < least) {
            least = delay;
            best = i;
        }
    }
    return best;
}

/* The one that gets most work done per time, or nearly the most where that makes a shorter cycle. */
static uint32_t most_work_within(const struct candidates *c, double cycle_us)
{
    uint32_t best = UINT32_MAX;
    double share = c->load->rows > 0 ? NEARLY_BEST : 1, enough_us = INFINITY;
    for (uint32_t i = 0; i < c->count; i++)
        if (c->rates[i] >= share * c->best_rate)
            enough_us = fmin(enough_us, c->patterns[i].cycle_us);
    for (uint32_t i = 0; i < c->count; i++)
        if (c->patterns[i].cycle_us <= fmin(enough_us, cycle_us) &&
            (best == UINT32_MAX || c->rates[i] > c->rates[best]))
            best = i;
    return best;
}

static struct pattern best_of(const struct candidates *c, double decode_us)
{
    double shortest_us = INFINITY;
    for (uint32_t i = 0; i < c->count; i++)
        shortest_us = fmin(shortest_us, c->patterns[i].cycle_us);
    double cycle_us = c->aims->cycle_max_us > 0 ? fmax(shortest_us, c->aims->cycle_max_us) : INFINITY;
    uint32_t best = c->load->rows > 0 ? least_delay_within(c, cycle_us, decode_us) : UINT32_MAX;
    return c->patterns[best != UINT32_MAX ? best : most_work_within(c, cycle_us)];
}

struct pattern pattern_choose(const struct timing *timing, const struct load *load, const struct aims *aims)
{
    if (load->backlog == 0)
        return load->rows > 0 ? decode_only(timing, load, aims) : (struct pattern){.decode_slots = 1};
    struct candidates c;
    c.timing = timing;
    c.load = load;
    c.aims = aims;
    c.best_rate = c.count = 0;
    find_worth(&c);
    struct pattern plain = load->rows > 0 ? decode_only(timing, load, aims) : (struct pattern){0};
    c.slots_min = 1;
    c.slots_max = decode_slots_max(load, aims);
    if (load->rows > 0 && (double)load->backlog <= TRANSIENT * ridge_tokens(timing))
        c.slots_min = c.slots_max =
            aims->slots_now > 0 ? (uint32_t)min_u64(aims->slots_now, c.slots_max) : plain.decode_slots;
    for (uint32_t slots = c.slots_min; slots <= c.slots_max; slots++) {
        struct shape shape = decode_share(load, slots);
        c.decode[slots] = times_of(timing, &shape);
    }
    consider_all(&c);
    return best_of(&c, plain.cycle_us);
}
