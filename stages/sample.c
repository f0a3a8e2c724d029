#include "stages/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"

struct candidate {
    uint32_t id;
    uint32_t key;    /* grows with the logit */
    uint64_t weight; /* its share, as draw.h has it */
};

#define DIGIT_BITS  11u
#define DIGIT_COUNT (1u << DIGIT_BITS)

struct digit {
    uint64_t mass;
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

/* Cuts the kept candidates to the first ones of the order (logit descending, id ascending): the fewest with a count of
 * at least `count`, or, when by_mass, with a mass of at least `mass`. Digit by digit from the top: a histogram finds the
 * digit in which the goal is reached, and only candidates with that digit go on. Returns how many are kept. */
static uint32_t cut(struct sampler *sampler, uint32_t kept_count, bool by_mass, uint64_t mass, uint32_t count)
{
    uint32_t selected_count = kept_count;
    for (uint32_t i = 0; i < kept_count; i++)
        sampler->selected[i] = i;
    uint64_t mass_above = 0; /* of candidates that are in for certain */
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
            digit->mass += candidate->weight;
            digit->count++;
        }
        /* Down from the top until the goal is reached. */
        uint32_t goal_digit = 0, count_before = count_above;
        uint64_t mass_before = mass_above;
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
        mass_above += sampler->kept[sampler->selected[i]].weight;
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

static uint64_t mass_of(const struct candidate *candidates, uint32_t count)
{
    uint64_t mass = 0;
    for (uint32_t i = 0; i < count; i++)
        mass += candidates[i].weight;
    return mass;
}

uint32_t sampler_draw(struct sampler *sampler, const float *logits, const struct sample_params *params)
{
    uint32_t best = sampler_greedy(sampler, logits);
    if (draw_is_greedy(params) || !isfinite(logits[best]))
        return best;
    sampler->kernels->sum_exp(sampler->probs, logits, sampler->vocab_size, logits[best], 1.0f / params->temperature);
    uint32_t kept = 0;
    float least = params->min_p > 0 ? params->min_p : 0;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (isnan(logits[id]))
            return best;
        uint64_t weight = draw_weight(sampler->probs[id]);
        if (weight > 0 && sampler->probs[id] >= least)
            sampler->kept[kept++] = (struct candidate){.id = id, .key = draw_key(logits[id]), .weight = weight};
    }
    if (kept == 0)
        return best; /* min_p above 1 */
    if (params->top_k > 0 && params->top_k < kept)
        kept = cut(sampler, kept, false, 0, params->top_k);
    uint64_t mass = mass_of(sampler->kept, kept);
    if (params->top_p < 1) {
        kept = cut(sampler, kept, true, draw_share(params->top_p, mass), 0);
        mass = mass_of(sampler->kept, kept);
    }
    uint64_t goal = draw_goal(params, mass), seen = 0;
    uint32_t drawn = 0;
    while ((seen += sampler->kept[drawn].weight) <= goal)
        drawn++; /* all of them are more than the goal */
    return sampler->kept[drawn].id;
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
        sampler->kept[id] = (struct candidate){.id = id, .key = draw_key(logits[id])};
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
