#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "stages/adjust.h"

#define VOCAB 8u

static const float logits[VOCAB] = {1, -1, 2, 0.5f, -3, 4, 0, 2.5f};

/* Prompt 5 2 5, generated 2 7 7. */
static const uint32_t tokens[] = {5, 2, 5, 2, 7, 7};
static const uint32_t ends[] = {1, 5, 1000};
static const struct adjust_bias biases[] = {{4, 10}, {6, -INFINITY}, {1000, 1}};

static const float *adjusted(struct adjuster *adjuster, struct row_shm row)
{
    const struct adjust_history history = {.tokens = tokens,
                                           .prompt_tokens = 3,
                                           .token_count = 6,
                                           .biases = biases,
                                           .bias_count = row.bias_count,
                                           .ends = ends,
                                           .end_count = row.flags & ROW_NO_END ? 3 : 0};
    row.flags |= ROW_SAMPLE;
    return adjust_logits(adjuster, logits, &row, &history);
}

static void expect(const float *got, const float *wanted)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        cr_expect(got[i] == wanted[i], "logit %u is %g, not %g", i, (double)got[i], (double)wanted[i]);
}

Test(adjust, each_of_them_changes_what_it_should_and_nothing_else)
{
    struct adjuster adjuster;
    adjust_init(&adjuster, VOCAB);
    expect(adjusted(&adjuster, (struct row_shm){.frequency_penalty = 0.5f}),
           (const float[]){1, -1, 1.5f, 0.5f, -3, 4, 0, 1.5f});
    expect(adjusted(&adjuster, (struct row_shm){.presence_penalty = 0.25f}),
           (const float[]){1, -1, 1.75f, 0.5f, -3, 4, 0, 2.25f});
    expect(adjusted(&adjuster, (struct row_shm){.repetition_penalty = 2}),
           (const float[]){1, -1, 1, 0.5f, -3, 2, 0, 1.25f});
    expect(adjusted(&adjuster, (struct row_shm){.bias_count = 3}),
           (const float[]){1, -1, 2, 0.5f, 7, 4, -INFINITY, 2.5f});
    expect(adjusted(&adjuster,
                    (struct row_shm){.repetition_penalty = 2, .frequency_penalty = 0.5f, .presence_penalty = 1}),
           (const float[]){1, -1, -0.5f, 0.5f, -3, 2, 0, -0.75f});
    expect(adjusted(&adjuster, (struct row_shm){.repetition_penalty = 1}), logits);
    expect(adjusted(&adjuster, (struct row_shm){.flags = ROW_NO_END}),
           (const float[]){1, -INFINITY, 2, 0.5f, -3, -INFINITY, 0, 2.5f});
    expect(adjusted(&adjuster, (struct row_shm){.flags = ROW_NO_END, .repetition_penalty = 2, .bias_count = 1}),
           (const float[]){1, -INFINITY, 1, 0.5f, 7, -INFINITY, 0, 1.25f});
    adjust_free(&adjuster);
}

Test(adjust, a_negative_logit_that_repeats_sinks_too)
{
    struct adjuster adjuster;
    adjust_init(&adjuster, 2);
    const float low[2] = {-2, 1};
    const uint32_t first[] = {0};
    const struct adjust_history history = {.tokens = first, .prompt_tokens = 1, .token_count = 1};
    const float *got =
        adjust_logits(&adjuster, low, &(struct row_shm){.flags = ROW_SAMPLE, .repetition_penalty = 1.5f}, &history);
    cr_expect(got[0] == -3.0f && got[1] == 1.0f);
    adjust_free(&adjuster);
}

Test(adjust, nothing_is_remembered_from_one_row_to_the_next)
{
    struct adjuster adjuster;
    adjust_init(&adjuster, VOCAB);
    float first[VOCAB];
    const struct row_shm row = {.frequency_penalty = 1, .repetition_penalty = 1.3f, .bias_count = 2};
    memcpy(first, adjusted(&adjuster, row), sizeof(first));
    for (int i = 0; i < 3; i++)
        expect(adjusted(&adjuster, row), first);
    adjust_free(&adjuster);
}

Test(adjust, it_is_wanted_only_where_something_is_asked_for_and_a_token_is_drawn)
{
    cr_expect_not(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE, .repetition_penalty = 1}));
    cr_expect(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE, .repetition_penalty = 1.1f}));
    cr_expect(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE, .presence_penalty = -1}));
    cr_expect(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE, .frequency_penalty = 1}));
    cr_expect(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE, .bias_count = 1}));
    cr_expect(adjust_is_wanted(&(struct row_shm){.flags = ROW_SAMPLE | ROW_NO_END}));
    cr_expect_not(adjust_is_wanted(&(struct row_shm){.flags = ROW_SCORE, .bias_count = 1}));
}
