/* test_pretok.c - pieces against the regular expressions of the models' files, run by Python (data/pretok_cases.jsonl). */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/pretok.h"
#include "ipc/base.h"

static void expect_pieces(json_t *line, const char *field, enum pretok pre)
{
    const uint8_t *text = (const uint8_t *)json_string_value(json_object_get(line, "text"));
    size_t size = json_string_length(json_object_get(line, "text")), at = 0, count = 0;
    json_t *sizes = json_object_get(line, field);
    for (; at < size; count++) {
        size_t piece = pretok_piece(pre, text + at, size - at);
        cr_assert(piece > 0 && piece <= size - at);
        cr_expect_eq((json_int_t)piece, json_integer_value(json_array_get(sizes, count)), "%s, piece %zu of: %s", field,
                     count, (const char *)text);
        at += piece;
    }
    cr_expect_eq(count, json_array_size(sizes), "%s: %s", field, (const char *)text);
}

Test(pretok, cuts_where_the_regular_expressions_cut)
{
    FILE *file = fopen("tests/data/pretok_cases.jsonl", "re");
    cr_assert_not_null(file);
    char *text = NULL;
    size_t room = 0, cases = 0;
    for (; getline(&text, &room, file) > 0; cases++) {
        json_t *line = json_loads(text, JSON_ALLOW_NUL, NULL);
        cr_assert_not_null(line);
        expect_pieces(line, "gpt2", PRETOK_GPT2);
        expect_pieces(line, "smollm", PRETOK_SMOLLM);
        expect_pieces(line, "llama3", PRETOK_LLAMA3);
        expect_pieces(line, "qwen2", PRETOK_QWEN2);
        json_decref(line);
    }
    fclose(file);
    free(text);
    cr_assert_geq(cases, 700);
}

Test(pretok, any_bytes_are_cut_into_pieces_that_are_not_empty)
{
    uint8_t text[64];
    uint64_t random = 7;
    for (uint32_t round = 0; round < 20000; round++) {
        for (size_t i = 0; i < sizeof(text); i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            text[i] = round % 2 ? (uint8_t)(random >> 56) : (uint8_t) " \n'sL9\xc3\xa9"[random >> 61];
        }
        for (int pre = PRETOK_GPT2; pre <= PRETOK_QWEN2; pre++)
            for (size_t at = 0; at < sizeof(text);) {
                size_t piece = pretok_piece((enum pretok)pre, text + at, sizeof(text) - at);
                cr_assert(piece > 0 && piece <= sizeof(text) - at);
                at += piece;
            }
    }
}

Test(pretok, names_of_files_are_known)
{
    enum pretok pre;
    cr_assert(pretok_find("llama-bpe", 9, &pre) && pre == PRETOK_LLAMA3);
    cr_assert(pretok_find("qwen2", 5, &pre) && pre == PRETOK_QWEN2);
    cr_assert(pretok_find("smollm", 6, &pre) && pre == PRETOK_SMOLLM);
    cr_assert_not(pretok_find("qwen", 4, &pre));
}
