/* test_json_reader.c - bodies as they come are read, with jansson's meaning; of everything else jansson has the word. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_reader.h"
#include "ipc/base.h"

static json_t *read_text(const char *text, size_t size)
{
    char *scratch = malloc(size + 1), *exact = malloc(size + 1);
    memcpy(exact, text, size);
    json_t *value = json_read(exact, size, scratch);
    free(scratch);
    free(exact);
    return value;
}

static void expect_like_jansson(const char *text, bool is_read)
{
    json_t *ours = read_text(text, strlen(text));
    json_t *theirs = json_loads(text, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);
    cr_expect_eq(ours != NULL, is_read, "%s", text);
    cr_expect(ours == NULL || json_equal(ours, theirs), "%s", text);
    json_decref(ours);
    json_decref(theirs);
}

Test(json_reader, reads_what_clients_send)
{
    static const char *const texts[] = {
        "{\"prompt\":\"Hello there\",\"max_tokens\":1,\"temperature\":0}",
        " { \"a\" : [ 1 , -2 , 0 , -0, 9223372036854775807 ] ,\t\"b\"\r\n: { } , \"c\":[] } ",
        "[0.5,1e3,-1.25E-2,1E+2,0.1,2.2250738585072014e-308,4.9e-324,1e-400]",
        "[true,false,null]",
        "\"\"",
        "7",
        "{\"\":{\"\":\"\"}}",
        "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\",\"a\\u0041\\u00e4\\u20ac\\ud83d\\ude00z\",\"\\u0000\"]",
        "[\"\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80\"]",
        "{\"k\\u0041\":{\"x\\ny\":\"\\n\"},\"k\":1}",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\\nb\"},{\"role\":\"assistant\",\"content\":null}]}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        expect_like_jansson(texts[i], true);
}

Test(json_reader, gives_up_at_what_is_wrong_or_rare)
{
    static const char *const texts[] = {
        "",
        " ",
        "{",
        "}",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:2}",
        "[1]x",
        "{\"a\":1,\"a\":2}",
        "{\"a\\u0000\":1}",
        "01",
        "-",
        "1.",
        ".5",
        "+1",
        "1e",
        "1e+",
        "0x1",
        "9223372036854775808",
        "1e999",
        "-1e999",
        "nul",
        "nulL",
        "tru",
        "True",
        "NaN",
        "Infinity",
        "\"",
        "\"a",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud83d\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\n\"",
        "\"\\ud83d\\u0041\"",
        "\"\\ude00\"",
        "\"a\nb\"",
        "\"\x01\"",
        "\"\xff\"",
        "\"\xc3\"",
        "\"\xc0\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "'a'",
        "[1}",
        "/**/1",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        expect_like_jansson(texts[i], false);
    cr_expect_null(read_text("1\0", 2));
    cr_expect_null(read_text("\"a\0b\"", 5));
}

Test(json_reader, leaves_deep_nesting_and_long_numbers_to_jansson)
{
    char text[200] = "";
    for (size_t depth = 60; depth < 70; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        expect_like_jansson(text, depth <= 64);
    }
    memset(text, '0', 80);
    memcpy(text, "0.", 2);
    text[80] = '\0';
    expect_like_jansson(text, false);
}

Test(json_reader, every_beginning_of_a_body_is_given_up)
{
    static const char text[] = "{\"a\":[1.5e3,true,\"x\\u20acy\xe2\x82\xac\",{\"b\":null}]}";
    for (size_t size = 0; size < sizeof(text) - 1; size++)
        cr_expect_null(read_text(text, size), "%zu", size);
    json_t *whole = read_text(text, sizeof(text) - 1);
    cr_expect_not_null(whole);
    json_decref(whole);
}
