#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/regex.h"
#include "engine/schema.h"
#include "stages/mask.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

static struct plan plan;
static struct masker masker;
static struct tok tok;
static const struct automaton *automaton; /* in masker.incoming */
static uint32_t words;

static void set_up(void)
{
    size_t bytes;
    struct err err;
    void *blob = tiny_vocab_build(&bytes);
    plan = plan_for_tests();
    tiny_vocab_plan(&plan, bytes);
    cr_assert_eq(tok_attach(&tok, blob, bytes, 1024, &err), 0, "%s", err.text);
    mask_init(&masker, blob, &plan);
    automaton = (const struct automaton *)(const void *)masker.incoming;
}

TestSuite(mask, .init = set_up, .timeout = 60);

static void bring(const char *pattern)
{
    static uint8_t memory[16 << 20];
    struct fragment_builder builder;
    struct fragment whole;
    struct err err;
    fragment_begin(&builder, memory, sizeof(memory));
    cr_assert_eq(regex_build(&builder, pattern, strlen(pattern), false, &whole, &err), 0, "%s", err.text);
    const struct automaton *made = fragment_finish(&builder, whole);
    cr_assert_not_null(made);
    words = (uint32_t)div_up_u64(automaton_bytes(made), sizeof(uint32_t));
    memset(masker.incoming, 0, words * sizeof(uint32_t));
    memcpy(masker.incoming, made, automaton_bytes(made));
}

/* By the definition: all its bytes may come, or it is an end token where the text may end. */
static bool may_come(uint32_t state, uint32_t token)
{
    uint8_t bytes[TOK_PIECE_MAX];
    if (token == TINY_IM_END || token == TINY_END || token == TINY_IM_START)
        return token == TINY_IM_END && automaton_accepts(automaton, state);
    size_t size = tok_piece(&tok, token, bytes);
    for (size_t i = 0; i < size && state != AUTOMATON_DEAD; i++)
        state = automaton_step(automaton, state, bytes[i]);
    return size > 0 && state != AUTOMATON_DEAD;
}

static void expect_mask_of_definition(const struct mask_place *place, const char *what)
{
    const uint64_t *bits = mask_bits(&masker, place);
    for (uint32_t token = 0; token < TINY_COUNT; token++) {
        cr_expect_eq(mask_has(bits, token), may_come(place->state, token), "%s, state %u: token %u", what, place->state,
                     token);
        cr_expect_eq(mask_allows(&masker, place, token), may_come(place->state, token), "%s, state %u: token %u", what,
                     place->state, token);
    }
}

Test(mask, lets_come_what_all_bytes_of_may_come_and_ends_where_the_text_may_end)
{
    static const char *const patterns[] = {"hello", "(he|hell)o?", "[a-z\xe2\x82\xac]{2,4}", "", ".*", "(hello )+x"};
    cr_assert_eq(plan.end_token_count, 1);
    cr_assert_eq(plan.end_tokens[0], TINY_IM_END);
    for (uint32_t i = 0; i < ARRAY_COUNT(patterns); i++) {
        bring(patterns[i]);
        struct mask_place *place = mask_learn(&masker, 0, i + 1, words);
        cr_assert_not_null(place);
        for (uint32_t state = AUTOMATON_START; state < automaton->state_count; state++) {
            place->state = state;
            expect_mask_of_definition(place, patterns[i]);
        }
    }
}

Test(mask, a_character_may_come_in_several_tokens)
{
    bring("\xe2\x82\xac");
    struct mask_place *place = mask_learn(&masker, 0, 1, words);
    cr_expect(mask_allows(&masker, place, TINY_EURO));
    cr_expect(mask_allows(&masker, place, TINY_BYTE_FIRST + 0xe2));
    mask_take(&masker, place, TINY_BYTE_FIRST + 0xe2);
    cr_expect_not(mask_allows(&masker, place, TINY_EURO));
    mask_take(&masker, place, TINY_BYTE_FIRST + 0x82);
    cr_expect_not(mask_is_final(&masker, place));
    mask_take(&masker, place, TINY_BYTE_FIRST + 0xac);
    cr_expect(mask_is_final(&masker, place));
    cr_expect_eq(place->tokens, 3);
}

Test(mask, what_was_forgotten_is_learned_again_and_the_same)
{
    enum { MANY = 100 };
    uint64_t computed = 0;
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t i = 0; i < MANY; i++) {
            char pattern[32];
            snprintf(pattern, sizeof(pattern), "a{%u}hello", i + 1);
            bring(pattern);
            cr_expect_null(mask_find(&masker, i % plan.sequences_max, i + 1 + MANY * round));
            struct mask_place *place = mask_learn(&masker, i % plan.sequences_max, i + 1 + MANY * round, words);
            for (uint32_t k = 0; k <= i; k++)
                mask_take(&masker, place, TINY_BYTE_FIRST + 'a');
            computed = masker.computed;
            expect_mask_of_definition(place, pattern);
            cr_expect(mask_allows(&masker, place, TINY_HELLO));
            cr_expect_eq(masker.computed, computed + 1, "it was kept");
            cr_expect_eq(mask_find(&masker, i % plan.sequences_max, i + 1 + MANY * round), place);
        }
    /* two sequences with the same one share its masks */
    bring("a{1}hello");
    struct mask_place *one = mask_learn(&masker, 1, 1000, words), *other = mask_learn(&masker, 2, 1001, words);
    mask_bits(&masker, one);
    computed = masker.computed;
    mask_bits(&masker, other);
    cr_expect_eq(masker.computed, computed);
}

Test(mask, what_is_no_grammar_is_not_taken)
{
    bring("abc");
    struct automaton *a = (struct automaton *)(void *)masker.incoming;
    cr_expect_null(mask_learn(&masker, 0, 1, words - 1));
    uint16_t *ways = (uint16_t *)(uintptr_t)automaton_ways(a), way = ways[a->way_count - 1];
    ways[a->way_count - 1] = (uint16_t)a->state_count;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    ways[a->way_count - 1] = way;
    a->states[2].pattern = (uint16_t)a->pattern_count;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    a->states[2].pattern = 0;
    a->states[2].way_first = a->way_count;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    a->states[2].way_first = UINT32_MAX;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    a->states[2].way_first = 0;
    uint8_t *patterns = (uint8_t *)(uintptr_t)automaton_patterns(a);
    patterns[0] = 255;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    patterns[0] = 0;
    a->class_of[7] = (uint8_t)a->class_count;
    cr_expect_null(mask_learn(&masker, 0, 1, words));
    a->class_of[7] = 0;
    cr_expect_not_null(mask_learn(&masker, 0, 1, words));
    a->state_count = UINT32_MAX;
    cr_expect_null(mask_learn(&masker, 0, 2, words));
    cr_expect_null(mask_find(&masker, 0, 2));
}
