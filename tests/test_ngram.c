#include <criterion/criterion.h>
#include <stdbool.h>

#include "engine/ngram.h"
#include "ipc/base.h"

static struct ngram ngram;

static void append(const char *text)
{
    for (; *text != '\0'; text++)
        ngram_append(&ngram, (uint32_t)*text);
}

static void expect_guess(const char *guess, uint32_t agree)
{
    uint32_t tokens[8];
    uint32_t count = 0;
    while (guess[count] != '\0')
        count++;
    cr_expect_eq(ngram_guess(&ngram, tokens, count), agree, "%s", guess);
    for (uint32_t i = 0; i < count && agree > 0; i++)
        cr_expect_eq(tokens[i], (uint32_t)guess[i], "%s: token %u is %c", guess, i, (char)tokens[i]);
}

Test(ngram, guesses_what_followed_the_last_time)
{
    ngram_init(&ngram, 64);
    expect_guess("?", 0);
    append("ab");
    expect_guess("?", 0);
    append(".ab");
    expect_guess(".ab.", 2); /* where the text ends, the guess goes on with itself */
    append(",ab");
    expect_guess(",ab,", 2); /* the last time counts */
    append("c");
    expect_guess("?", 0);
    ngram_free(&ngram);
}

Test(ngram, three_tokens_count_more_than_two)
{
    ngram_init(&ngram, 64);
    append("xab1 yab2 xab");
    expect_guess("1 yab2 x", 3);
    append("3 y3 zab"); /* three of these were never there: two of them were */
    expect_guess("3 y", 2);
    ngram_free(&ngram);
}

Test(ngram, says_how_much_agrees)
{
    ngram_init(&ngram, 64);
    append("one two three. one two thr");
    expect_guess("ee. one ", 11);
    append("ee. one two three. one two thr");
    expect_guess("ee. one ", NGRAM_AGREE_MAX);
    ngram_free(&ngram);
}

Test(ngram, one_token_again_and_again_is_guessed_on)
{
    ngram_init(&ngram, 64);
    append("aaa");
    expect_guess("aaaaaaa", 2);
    append("a");
    expect_guess("aaaaaaa", 3);
    ngram_free(&ngram);
}

Test(ngram, another_text_knows_nothing_of_the_one_before)
{
    ngram_init(&ngram, 64);
    append("abcdefg abcdefg");
    ngram_clear(&ngram);
    append("xabc");
    expect_guess("?", 0);
    append("-abc");
    expect_guess("-abc", 3);
    ngram_free(&ngram);
}

/* A text of few letters beside a plain search through what is kept of it. */
Test(ngram, what_it_says_is_true_of_any_text)
{
    enum { LENGTH = 20000, REACH = 256 };
    static uint32_t text[LENGTH];
    uint32_t guess[4], missed = 0, found = 0;
    ngram_init(&ngram, REACH);
    cr_assert_eq(ngram.reach, REACH);
    uint64_t state = 7;
    for (uint32_t i = 0; i < LENGTH; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        text[i] = i % 1000 < 700 ? (uint32_t)(state >> 60) : text[i - 37];
        uint32_t agree = ngram_guess(&ngram, guess, 4), from = i > REACH ? i - REACH : 0, last = 0;
        for (uint32_t place = from + 2; place < i; place++)
            if (text[place - 1] == text[i - 1] && text[place - 2] == text[i - 2])
                last = place;
        missed += agree == 0 && last > 0;
        if (agree > 0) {
            bool is_somewhere = false;
            for (uint32_t place = from + agree; place < i && !is_somewhere; place++) {
                bool is_here = true;
                for (uint32_t k = 0; k < agree; k++)
                    is_here = is_here && text[place - 1 - k] == text[i - 1 - k];
                for (uint32_t k = 0; k < 4; k++)
                    is_here = is_here && guess[k] == (place + k < i ? text[place + k] : guess[place + k - i]);
                is_somewhere = is_here;
            }
            cr_assert(is_somewhere, "at %u", i);
            found++;
        }
        ngram_append(&ngram, text[i]);
    }
    cr_expect_gt(found, LENGTH / 4);
    cr_expect_lt(missed, found / 2); /* places that others have taken */
    ngram_free(&ngram);
}
