#include "stages/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"

struct candidate {
    uint32_t id;
    uint32_t key; /* grows with the logit */
    float prob;   /* not normalised: the most probable one has 1 */
};

#define DIGIT_BITS  11u
#define DIGIT_COUNT (1u << DIGIT_BITS)

struct digit {
    double mass;
    uint32_t count;
};

void sampler_init(struct sampler *sampler, const struct kernels *kernels, uint32_t vocab_size)
{
    *sampler = (struct sampler){
        .kernels = kernels,
        .vocab_size = vocab_size,
        .probs = base_alloc_aligned(KERNEL_ALIGN, align_up_u64(vocab_size * sizeof(float), KERNEL_ALIGN)),
        .kept = base_alloc(vocab_size * sizeof(struct candidate)),
        .selected = base_alloc(vocab_size * sizeof(uint32_t)),
        .digits = base_alloc(DIGIT_COUNT * sizeof(struct digit)),
    };
}

void sampler_free(struct sampler *sampler)
{
    free(sampler->probs);
    free(sampler->kept);
    free(sampler->selected);
    free(sampler->digits);
    *sampler = (struct sampler){0};
}

/* ---- random numbers ---- */

/* Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3; constants there. */
void philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * x0;
        uint64_t b = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

/* Uniform in [0, 1), 53 bits. */
static double uniform(const struct sample_params *params)
{
    const uint32_t counter[4] = {params->position, params->choice, 0, 0};
    const uint32_t key[2] = {(uint32_t)params->seed, (uint32_t)(params->seed >> 32)};
    uint32_t words[4];
    philox(words, counter, key);
    uint64_t bits = ((uint64_t)words[1] << 32 | words[0]) >> 11;
    return (double)bits * 0x1p-53;
}

/* ---- greedy ---- */

uint32_t sampler_greedy(const struct sampler *sampler, const float *logits)
{
    uint32_t best = sampler->kernels->argmax(logits, sampler->vocab_size);
    if (best < sampler->vocab_size && isfinite(logits[best]) && !isnan(logits[0]))
        return best;
    /* Not numbers somewhere: whatever the kernel made of them, this is the one definition. */
    best = 0;
    bool is_found = false;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        if (isnan(logits[i]) || (is_found && !(logits[i] > logits[best])))
            continue;
        best = i;
        is_found = true;
    }
    return best;
}

/* ---- selection ---- */

/* Unsigned integers in the order of the floats. -0 and 0 are equal logits, so they get one key. */
static uint32_t key_of(float logit)
{
    uint32_t bits;
    logit += 0.0f;
    memcpy(&bits, &logit, sizeof(bits));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Cuts the kept candidates to the first ones of the order (logit descending, id ascending): the fewest with a count of
 * at least `count`, or, when by_mass, with a mass of at least `mass`. Digit by digit from the top: a histogram finds the
 * digit in which the goal is reached, and only candidates with that digit go on. Returns how many are kept. */
static uint32_t cut(struct sampler *sampler, uint32_t kept_count, bool by_mass, double mass, uint32_t count)
{
    uint32_t selected_count = kept_count;
    for (uint32_t i = 0; i < kept_count; i++)
        sampler->selected[i] = i;
    double mass_above = 0; /* of candidates that are in for certain */
    uint32_t count_above = 0;
    uint32_t key_high = 0; /* the digits found so far */
    static const uint32_t shifts[] = {21, 10, 0};
    for (uint32_t level = 0; level < ARRAY_COUNT(shifts); level++) {
        uint32_t shift = shifts[level];
        uint32_t mask = level == 2 ? 1023 : DIGIT_COUNT - 1;
        memset(sampler->digits, 0, DIGIT_COUNT * sizeof(struct digit));
        for (uint32_t i = 0; i < selected_count; i++) {
            const struct candidate *candidate = &sampler->kept[sampler->selected[i]];
            struct digit *digit = &sampler->digits[candidate->key >> shift & mask];
            digit->mass += (double)candidate->prob;
            digit->count++;
        }
        /* Down from the top until the goal is reached; should rounding keep the sum below the goal, it is reached in
         * the lowest digit that holds anything. */
        uint32_t goal_digit = 0, count_before = count_above;
        double mass_before = mass_above;
        for (uint32_t digit = mask + 1; digit-- > 0;) {
            const struct digit *found = &sampler->digits[digit];
            if (found->count == 0)
                continue;
            goal_digit = digit;
            mass_above = mass_before;
            count_above = count_before;
            mass_before += found->mass;
            count_before += found->count;
            if (by_mass ? mass_before >= mass : count_before >= count)
                break;
        }
        key_high |= goal_digit << shift;
        uint32_t next = 0;
        for (uint32_t i = 0; i < selected_count; i++)
            if ((sampler->kept[sampler->selected[i]].key >> shift & mask) == goal_digit)
                sampler->selected[next++] = sampler->selected[i];
        selected_count = next;
    }
    /* What is selected now has equal logits, ids ascending: take from the front until the goal is reached. */
    uint32_t last_id = 0;
    for (uint32_t i = 0; i < selected_count; i++) {
        last_id = sampler->kept[sampler->selected[i]].id;
        mass_above += (double)sampler->kept[sampler->selected[i]].prob;
        count_above++;
        if (by_mass ? mass_above >= mass : count_above >= count)
            break;
    }
    uint32_t left = 0;
    for (uint32_t i = 0; i < kept_count; i++) {
        const struct candidate *candidate = &sampler->kept[i];
        if (candidate->key > key_high || (candidate->key == key_high && candidate->id <= last_id))
            sampler->kept[left++] = *candidate;
    }
    return left;
}

static double mass_of(const struct candidate *candidates, uint32_t count)
{
    double mass = 0;
    for (uint32_t i = 0; i < count; i++)
        mass += (double)candidates[i].prob;
    return mass;
}

uint32_t sampler_draw(struct sampler *sampler, const float *logits, const struct sample_params *params)
{
    uint32_t best = sampler_greedy(sampler, logits);
    if (!(params->temperature >= SAMPLE_TEMPERATURE_MIN) || params->top_k == 1 || !isfinite(logits[best]))
        return best;
    float inv_temperature = 1.0f / params->temperature;
    float sum = sampler->kernels->sum_exp(sampler->probs, logits, sampler->vocab_size, logits[best], inv_temperature);
    if (!isfinite(sum))
        return best;

    uint32_t kept = 0;
    float least = params->min_p > 0 ? params->min_p : 0;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (isnan(logits[id]))
            return best;
        if (sampler->probs[id] > 0 && sampler->probs[id] >= least && logits[id] > -INFINITY)
            sampler->kept[kept++] = (struct candidate){.id = id, .key = key_of(logits[id]), .prob = sampler->probs[id]};
    }
    if (kept == 0)
        return best; /* min_p above 1 */
    if (params->top_k > 0 && params->top_k < kept)
        kept = cut(sampler, kept, false, 0, params->top_k);
    double mass = mass_of(sampler->kept, kept);
    if (params->top_p < 1) {
        kept = cut(sampler, kept, true, (double)params->top_p * mass, 0);
        mass = mass_of(sampler->kept, kept);
    }
    double goal = uniform(params) * mass, seen = 0;
    for (uint32_t i = 0; i < kept; i++) {
        seen += (double)sampler->kept[i].prob;
        if (seen > goal)
            return sampler->kept[i].id;
    }
    return sampler->kept[kept - 1].id; /* the same sum in the same order is above the goal: not reached */
}

/* ---- log-probabilities ---- */

double sampler_log_sum(const struct sampler *sampler, const float *logits)
{
    float max = logits[sampler_greedy(sampler, logits)];
    return (double)max + log((double)sampler->kernels->sum_exp(NULL, logits, sampler->vocab_size, max, 1.0f));
}

float sampler_logprob(const float *logits, double log_sum, uint32_t token)
{
    return (float)((double)logits[token] - log_sum);
}

void sampler_tops(struct sampler *sampler, const float *logits, double log_sum, uint32_t count, struct top_shm *tops)
{
    count = (uint32_t)min_u64(count, sampler->vocab_size);
    for (uint32_t id = 0; id < sampler->vocab_size; id++)
        sampler->kept[id] = (struct candidate){.id = id, .key = isnan(logits[id]) ? 0 : key_of(logits[id])};
    cut(sampler, sampler->vocab_size, false, 0, count);
    for (uint32_t i = 0; i < count; i++) { /* ids ascend, so behind its equals */
        struct candidate candidate = sampler->kept[i];
        uint32_t at = i;
        for (; at > 0 && sampler->kept[at - 1].key < candidate.key; at--)
            sampler->kept[at] = sampler->kept[at - 1];
        sampler->kept[at] = candidate;
    }
    for (uint32_t i = 0; i < count; i++)
        tops[i] = (struct top_shm){sampler->kept[i].id, sampler_logprob(logits, log_sum, sampler->kept[i].id)};
}
