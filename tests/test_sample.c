#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stages/sample.h"

#define VOCAB 1000u

static struct sampler sampler;

static void setup(void)
{
    const struct kernels *kernels = kernels_pick("ref");
    cr_assert_not_null(kernels);
    sampler_init(&sampler, kernels, VOCAB);
}

static void teardown(void)
{
    sampler_free(&sampler);
}

TestSuite(sample, .init = setup, .fini = teardown);

static uint64_t random_state = 12345;

static float random_logit(void) /* -10..10, in steps that make some equal */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((int)(random_state >> 40 & 2047) - 1024) / 102.4f;
}

static void random_logits(float *logits)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = random_logit();
}

/* Plain parameters: temperature 1, nothing cut. */
static struct sample_params plain(void)
{
    return (struct sample_params){.temperature = 1, .top_p = 1, .seed = 7, .position = 3};
}

/* The published vectors of Random123 1.14, tests/kat_vectors, "philox4x32 10". */
Test(sample, philox_gives_its_published_vectors)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        uint32_t out[4];
        philox(out, vectors[i].counter, vectors[i].key);
        cr_expect_arr_eq(out, vectors[i].out, sizeof(out));
    }
}

Test(sample, temperature_zero_takes_the_largest_and_the_lowest_id_among_equals)
{
    float logits[VOCAB] = {0};
    logits[400] = logits[700] = 5;
    struct sample_params params = plain();
    params.temperature = 0;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 400);
    params.temperature = 1e-30f;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 400);
    params.temperature = 1;
    params.top_k = 1;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 400);
    params.top_k = 0;
    params.top_p = 1e-9f;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 400);
    params.top_p = 1;
    params.min_p = 1;
    for (params.position = 0; params.position < 50; params.position++) {
        uint32_t token = sampler_draw(&sampler, logits, &params);
        cr_expect(token == 400 || token == 700);
    }
}

Test(sample, a_row_with_one_finite_logit_gives_that_one)
{
    float logits[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = -INFINITY;
    logits[321] = -3;
    struct sample_params params = plain();
    for (params.position = 0; params.position < 100; params.position++)
        cr_expect_eq(sampler_draw(&sampler, logits, &params), 321);
}

Test(sample, rows_that_are_no_numbers_give_the_largest_number_or_zero)
{
    float logits[VOCAB];
    struct sample_params params = plain();
    random_logits(logits);
    logits[0] = logits[999] = NAN;
    logits[500] = 50;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 500);
    params.top_k = 10;
    params.top_p = 0.5f;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 500);
    logits[600] = INFINITY;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 600);
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = NAN;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 0);
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = -INFINITY;
    cr_expect_eq(sampler_draw(&sampler, logits, &params), 0);
}

Test(sample, parameters_that_are_no_numbers_do_no_harm)
{
    float logits[VOCAB];
    random_logits(logits);
    static const float odd[] = {NAN, -1, -INFINITY, INFINITY, 0, 1e30f, 1e-30f};
    for (size_t t = 0; t < sizeof(odd) / sizeof(odd[0]); t++) {
        for (size_t p = 0; p < sizeof(odd) / sizeof(odd[0]); p++) {
            for (size_t m = 0; m < sizeof(odd) / sizeof(odd[0]); m++) {
                struct sample_params params = plain();
                params.temperature = odd[t];
                params.top_p = odd[p];
                params.min_p = odd[m];
                cr_expect_lt(sampler_draw(&sampler, logits, &params), VOCAB);
            }
        }
    }
}

Test(sample, a_very_high_temperature_reaches_everything)
{
    float logits[VOCAB];
    random_logits(logits);
    bool seen[VOCAB] = {false};
    struct sample_params params = plain();
    params.temperature = 1e6f;
    uint32_t distinct = 0;
    for (params.position = 0; params.position < 10000; params.position++) {
        uint32_t token = sampler_draw(&sampler, logits, &params);
        distinct += !seen[token];
        seen[token] = true;
    }
    cr_expect_geq(distinct, VOCAB - 2, "%u of %u", distinct, VOCAB); /* 1000 * exp(-10) is 0.05 */
}

/* ---- against a plain definition: sort everything, then cut ---- */

static const float *sorted_by;

static int descending(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    if (sorted_by[left] != sorted_by[right])
        return sorted_by[left] > sorted_by[right] ? -1 : 1;
    return left < right ? -1 : 1;
}

/* Probabilities after the cuts, by the definition in sample.h. A share within 1e-6 of top_p is too near to call: the
 * caller chooses others. */
static void plain_probabilities(const float *logits, const struct sample_params *params, double *probs, bool *is_near)
{
    uint32_t order[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++)
        order[i] = i;
    sorted_by = logits;
    qsort(order, VOCAB, sizeof(order[0]), descending);
    double terms[VOCAB], sum = 0;
    uint32_t kept = VOCAB;
    for (uint32_t i = 0; i < kept; i++)
        terms[i] = exp(((double)logits[order[i]] - (double)logits[order[0]]) / (double)params->temperature);
    while (kept > 1 && terms[kept - 1] < (double)params->min_p)
        kept--;
    if (params->top_k > 0 && params->top_k < kept)
        kept = params->top_k;
    for (uint32_t i = 0; i < kept; i++)
        sum += terms[i];
    if (params->top_p < 1) {
        double mass = 0;
        for (uint32_t i = 0; i < kept; i++) {
            mass += terms[i];
            *is_near |= fabs(mass / sum - (double)params->top_p) < 1e-6;
            if (mass >= (double)params->top_p * sum) {
                kept = i + 1;
                break;
            }
        }
        sum = mass;
    }
    memset(probs, 0, VOCAB * sizeof(probs[0]));
    for (uint32_t i = 0; i < kept; i++)
        probs[order[i]] = terms[i] / sum;
}

Test(sample, only_what_the_cuts_leave_is_drawn_and_all_of_it)
{
    float logits[VOCAB];
    double probs[VOCAB];
    static const uint32_t top_ks[] = {0, 2, 7, 50, 999, 5000};
    static const float top_ps[] = {1, 0.999f, 0.9f, 0.5f, 0.1f}, min_ps[] = {0, 0.01f, 0.3f},
                       temperatures[] = {0.3f, 1, 3};
    for (uint32_t round = 0; round < 6 * 5 * 3 * 3; round++) {
        random_logits(logits);
        struct sample_params params = {.temperature = temperatures[round % 3],
                                       .min_p = min_ps[round / 3 % 3],
                                       .top_p = top_ps[round / 9 % 5],
                                       .top_k = top_ks[round / 45],
                                       .seed = round};
        bool is_near = false;
        plain_probabilities(logits, &params, probs, &is_near);
        if (is_near)
            continue;
        bool seen[VOCAB] = {false};
        for (params.position = 0; params.position < 400; params.position++) {
            uint32_t token = sampler_draw(&sampler, logits, &params);
            cr_assert(probs[token] > 0, "round %u drew %u, which the cuts take away", round, token);
            seen[token] = true;
        }
        for (uint32_t i = 0; i < VOCAB; i++) /* what has one chance in ten stays away 400 times with 5e-19 */
            cr_assert(probs[i] < 0.1 || seen[i], "round %u never drew %u, which has %g", round, i, probs[i]);
    }
}

Test(sample, draws_follow_the_distribution)
{
    float logits[VOCAB];
    double probs[VOCAB];
    const uint32_t draws = 100000;
    static uint32_t counts[VOCAB];
    random_logits(logits);
    struct sample_params params = plain();
    params.temperature = 2;
    params.top_k = 100;
    bool is_near = false;
    plain_probabilities(logits, &params, probs, &is_near);
    for (params.position = 0; params.position < draws; params.position++)
        counts[sampler_draw(&sampler, logits, &params)]++;
    double chi_square = 0;
    uint32_t cells = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expected = probs[i] * draws;
        if (expected < 5)
            continue;
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
        cells++;
    }
    /* Mean cells - 1, standard deviation sqrt(2 cells): five of them are one in millions, and the seed is fixed. */
    cr_expect(fabs(chi_square - cells) < 5 * sqrt(2.0 * cells), "chi-square %g over %u cells", chi_square, cells);
    cr_expect_gt(cells, 50);
}

Test(sample, the_token_is_a_function_of_seed_choice_and_position)
{
    float logits[VOCAB];
    random_logits(logits);
    struct sample_params params = plain();
    params.temperature = 5;
    uint32_t differ_seed = 0, differ_choice = 0, differ_position = 0;
    for (uint32_t i = 0; i < 100; i++) {
        params.position = i;
        uint32_t token = sampler_draw(&sampler, logits, &params);
        cr_expect_eq(sampler_draw(&sampler, logits, &params), token);
        struct sample_params other = params;
        other.seed = params.seed + (1ull << 32);
        differ_seed += sampler_draw(&sampler, logits, &other) != token;
        other = params;
        other.choice = 1;
        differ_choice += sampler_draw(&sampler, logits, &other) != token;
        other = params;
        other.position += 1000;
        differ_position += sampler_draw(&sampler, logits, &other) != token;
    }
    cr_expect_gt(differ_seed, 90);
    cr_expect_gt(differ_choice, 90);
    cr_expect_gt(differ_position, 90);
}

Test(sample, logprobs_are_those_of_the_softmax)
{
    float logits[VOCAB];
    random_logits(logits);
    double sum = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i]);
    double log_sum = sampler_log_sum(&sampler, logits);
    for (uint32_t i = 0; i < VOCAB; i += 37)
        cr_expect_float_eq(sampler_logprob(logits, log_sum, i), (double)logits[i] - log(sum), 1e-5);
}

Test(sample, the_most_probable_tokens_come_in_order_and_equals_by_their_ids)
{
    static float logits[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 2654435761u >> 20) % 50) / 7.0f - 3; /* many equals */
    logits[77] = NAN;
    double log_sum = 5;
    struct top_shm tops[LOGPROBS_MAX];
    for (uint32_t count = 1; count <= LOGPROBS_MAX; count++) {
        sampler_tops(&sampler, logits, log_sum, count, tops);
        bool is_taken[VOCAB] = {false};
        for (uint32_t k = 0; k < count; k++) {
            uint32_t best = VOCAB;
            for (uint32_t i = 0; i < VOCAB; i++)
                if (!is_taken[i] && !isnan(logits[i]) && (best == VOCAB || logits[i] > logits[best]))
                    best = i;
            is_taken[best] = true;
            cr_assert_eq(tops[k].token, best, "place %u of %u", k, count);
            cr_assert_float_eq(tops[k].logprob, logits[best] - (float)log_sum, 1e-6);
        }
    }
}
