#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/fragment.h"
#include "engine/regex.h"
#include "engine/schema.h"
#include "ipc/clock.h"
#include "ipc/layout.h"
#include "tests/schemas.h"

#define MEMORY_BYTES ((size_t)64 << 20)
#define TEXT_MAX     65536u

static uint8_t *memory;
static struct fragment_builder builder;
static struct err err;

static void set_up(void)
{
    memory = aligned_alloc(64, MEMORY_BYTES);
}

TestSuite(schema, .init = set_up, .timeout = 120);
TestSuite(regex, .init = set_up, .timeout = 60);

/* ---- automata ---- */

static bool matches(const struct automaton *a, const char *text)
{
    uint32_t state = AUTOMATON_START;
    for (const char *at = text; *at != '\0'; at++)
        state = automaton_step(a, state, (uint8_t)*at);
    return automaton_accepts(a, state);
}

/* Steps to the nearest end, for every state. */
static uint32_t *distances(const struct automaton *a)
{
    uint32_t *steps = malloc(a->state_count * sizeof(*steps));
    uint8_t byte_of[256];
    for (uint32_t byte = 0; byte < 256; byte++)
        byte_of[a->class_of[byte]] = (uint8_t)byte;
    for (uint32_t s = 0; s < a->state_count; s++)
        steps[s] = automaton_accepts(a, s) ? 0 : UINT32_MAX;
    for (bool is_changed = true; is_changed;) {
        is_changed = false;
        for (uint32_t s = 1; s < a->state_count; s++)
            for (uint32_t k = 0; k < a->class_count; k++) {
                uint32_t next = steps[automaton_step(a, s, byte_of[k])];
                if (next != UINT32_MAX && next + 1 < steps[s]) {
                    steps[s] = next + 1;
                    is_changed = true;
                }
            }
    }
    return steps;
}

/* A text of the language: by chance, and the nearest way to an end once it is long. */
static size_t random_text(const struct automaton *a, const uint32_t *steps, char *text)
{
    size_t size = 0;
    for (uint32_t state = AUTOMATON_START; !(automaton_accepts(a, state) && (size > 200 || schemas_random(3) == 0));) {
        uint8_t bytes[256];
        uint32_t count = 0;
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t next = automaton_step(a, state, (uint8_t)byte);
            bool is_same = count > 0 && a->class_of[bytes[count - 1]] == a->class_of[byte];
            if (next != AUTOMATON_DEAD && (size < 200 || steps[next] < steps[state]) &&
                (!is_same || schemas_random(3) == 0))
                bytes[is_same ? count - 1 : count++] = (uint8_t)byte;
        }
        if (count == 0) { /* nothing may follow */
            cr_assert(automaton_accepts(a, state), "%.*s can be neither ended nor gone on with", (int)size, text);
            break;
        }
        uint8_t byte = bytes[schemas_random(count)];
        text[size++] = (char)byte;
        state = automaton_step(a, state, byte);
        cr_assert_lt(size, TEXT_MAX);
    }
    text[size] = '\0';
    return size;
}

static struct automaton *compile_schema(json_t *schema)
{
    struct fragment whole;
    fragment_begin(&builder, memory, MEMORY_BYTES);
    err.text[0] = '\0';
    return schema_build(&builder, schema, &whole, &err) == 0 ? fragment_finish(&builder, whole) : NULL;
}

static struct automaton *compile_text(const char *schema)
{
    json_t *json = json_loads(schema, 0, NULL);
    cr_assert_not_null(json, "%s", schema);
    struct automaton *a = compile_schema(json);
    json_decref(json);
    return a;
}

static struct automaton *compile_regex(const char *pattern, bool is_search)
{
    struct fragment whole;
    fragment_begin(&builder, memory, MEMORY_BYTES);
    err.text[0] = '\0';
    return regex_build(&builder, pattern, strlen(pattern), is_search, &whole, &err) == 0
               ? fragment_finish(&builder, whole)
               : NULL;
}

Test(schema, every_text_of_500_random_schemas_parses_and_validates)
{
    static char text[TEXT_MAX];
    size_t states = 0, texts = 0;
    for (uint32_t n = 0; n < 500; n++) {
        json_t *schema = schemas_make(3);
        char *words = json_dumps(schema, 0);
        const struct automaton *a = compile_schema(schema);
        cr_assert_not_null(a, "%s: %s", words, err.text);
        uint32_t *steps = distances(a);
        states += a->state_count;
        for (uint32_t i = 0; i < 20; i++, texts++) {
            size_t size = random_text(a, steps, text);
            json_error_t problem;
            json_t *value = json_loadb(text, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &problem);
            cr_assert_not_null(value, "%s gives %s: %s", words, text, problem.text);
            cr_assert(schemas_validates(schema, schema, value), "%s gives %s", words, text);
            json_decref(value);
        }
        free(steps);
        free(words);
        json_decref(schema);
    }
    cr_expect_eq(texts, 10000);
    printf("%zu states each\n", states / 500);
    cr_expect_lt(states / 500, 2000, "%zu states each", states / 500);
}

Test(schema, documents_as_models_write_them_are_of_the_grammar)
{
    static const char object[] =
        "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":"
        "\"integer\"},\"tags\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/tag\"}}},"
        "\"required\":[\"name\",\"tags\"],\"additionalProperties\":false,"
        "\"$defs\":{\"tag\":{\"enum\":[\"a\",\"b c\",3]}}}";
    static const struct {
        const char *text;
        bool is_good;
    } cases[] = {
        {"{\"name\": \"J\xc3\xbcrgen \\\"x\\\" \\u00e9\\n\", \"age\": -4, \"tags\": [\"a\", 3]}", true},
        {"{\"name\":\"\",\"tags\":[]}", true},
        {"{\"name\":\"x\",\"age\":4}", false},
        {"{\"age\":4,\"tags\":[]}", false},
        {"{\"tags\":[],\"name\":\"x\"}", false},
        {"{\"name\":\"x\",\"tags\":[\"c\"]}", false},
        {"{\"name\":\"x\",\"tags\":[\"a\",]}", false},
        {"{\"name\":\"x\n\",\"tags\":[]}", false},
        {"{\"name\":\"x\\ud800\",\"tags\":[]}", false},
        {"{\"name\":\"x\",\"age\":04,\"tags\":[]}", false},
        {"{\"name\":\"x\",\"age\":4.0,\"tags\":[]}", false},
        {"{\"name\":\"x\",\"tags\":[]} ", false},
        {"{\"name\":\"\xff\",\"tags\":[]}", false},
        {"", false},
    };
    const struct automaton *a = compile_text(object);
    cr_assert_not_null(a, "%s", err.text);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        cr_expect_eq(matches(a, cases[i].text), cases[i].is_good, "%s", cases[i].text);
    struct fragment whole;
    fragment_begin(&builder, memory, MEMORY_BYTES);
    whole = schema_any_object(&builder);
    a = fragment_finish(&builder, whole);
    cr_assert_not_null(a);
    cr_expect(matches(a, "{\"a\": [1, {\"b\": [null, true, -1.5e+10, \"\"]}], \"c\": {}}"));
    cr_expect_not(matches(a, "[1]"));
    cr_expect_not(matches(a, "{\"a\": }"));
}

Test(schema, patterns_are_of_the_strings_characters_not_of_its_escapes)
{
    const struct automaton *a = compile_text("{\"type\":\"string\",\"pattern\":\"^[^a]+$\"}");
    cr_assert_not_null(a, "%s", err.text);
    cr_expect(matches(a, "\"b\\\"\\\\\\n\xc3\xa9\""));
    cr_expect_not(matches(a, "\"\""));
    cr_expect_not(matches(a, "\"ba\""));
    cr_expect_not(matches(a, "\"b\"c\""));
    a = compile_text("{\"type\":\"string\",\"pattern\":\"b[0-9]{2}\"}");
    cr_assert_not_null(a, "%s", err.text);
    cr_expect(matches(a, "\"ab12c\""));
    cr_expect_not(matches(a, "\"ab1\""));
}

Test(schema, what_is_not_supported_is_refused_by_name)
{
    static const struct {
        const char *schema, *why;
    } cases[] = {
        {"{\"type\":\"integer\",\"minimum\":3}", "'minimum'"},
        {"{\"type\":\"string\",\"format\":\"date\"}", "'format'"},
        {"{\"oneOf\":[{}]}", "'oneOf'"},
        {"{\"not\":{}}", "the keyword 'not' is not supported"},
        {"{\"type\":\"object\",\"patternProperties\":{}}", "'patternProperties'"},
        {"{\"type\":\"array\",\"items\":{\"type\":\"array\",\"uniqueItems\":true}}", "'uniqueItems'"},
        {"{\"type\":\"what\"}", "'what'"},
        {"{\"type\":3}", "type"},
        {"{\"enum\":[]}", "enum"},
        {"{\"enum\":[1],\"type\":\"string\"}", "not of the type"},
        {"{\"anyOf\":[{}],\"type\":\"string\"}", "beside anyOf"},
        {"{\"type\":\"string\",\"minLength\":5,\"maxLength\":2}", "maxLength"},
        {"{\"type\":\"string\",\"maxLength\":100000}", "maxLength"},
        {"{\"type\":\"string\",\"pattern\":\"(?=a)\"}", "'?'"},
        {"{\"type\":\"object\",\"properties\":{},\"required\":[\"x\"]}", "'x'"},
        {"{\"$ref\":\"#/$defs/x\"}", "'#/$defs/x'"},
        {"{\"$ref\":\"#/$defs/x\",\"$defs\":{\"x\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/x\"}}}}",
         "itself"},
        {"{\"items\":{}}", "'items'"},
        {"3", "object"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *schema = json_loads(cases[i].schema, JSON_DECODE_ANY, NULL);
        cr_expect_null(compile_schema(schema), "%s", cases[i].schema);
        cr_expect(strstr(err.text, cases[i].why) != NULL, "%s: %s", cases[i].schema, err.text);
        json_decref(schema);
    }
}

static double cpu_s(void)
{
    return (double)clock_cpu_ns() / 1e9;
}

Test(schema, what_is_too_large_ends_soon_and_says_so)
{
    static const char *const schemas[] = {
        "{\"type\":\"array\",\"minItems\":1024,\"items\":{\"type\":\"string\",\"minLength\":1024}}",
        "{\"type\":\"string\",\"pattern\":\"(a|b)*a(a|b){20}\"}",
        "{\"type\":\"string\",\"pattern\":\"((((a{0,99}){0,99}){0,99}){0,99}){0,99}\"}",
        "{\"$ref\":\"#/$defs/x\",\"$defs\":{\"x\":{\"anyOf\":[{\"$ref\":\"#/$defs/x\"},{\"$ref\":\"#/$defs/x\"}]}}}",
    };
    for (size_t i = 0; i < sizeof(schemas) / sizeof(schemas[0]); i++) {
        double begin_s = cpu_s();
        cr_expect_null(compile_text(schemas[i]), "%s", schemas[i]);
        cr_expect(builder.has_failed || err.text[0] != '\0', "%s", schemas[i]);
        cr_expect_lt(cpu_s() - begin_s, 5, "%s: %.1f s", schemas[i], cpu_s() - begin_s);
    }
}

static json_t *long_list(const char *item, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++)
        json_array_append_new(list, json_string(item));
    return list;
}

static void expect_soon_refused(json_t *schema, const char *why)
{
    double begin_s = cpu_s();
    cr_expect_null(compile_schema(schema), "%s", why);
    cr_expect(strstr(err.text, why) != NULL, "%s: %s", why, err.text);
    cr_expect_lt(cpu_s() - begin_s, 1, "%s: %.1f s", why, cpu_s() - begin_s);
    json_decref(schema);
}

/* Each of them is looked at again and again: for every value, for every property. */
Test(schema, lists_that_say_the_same_again_are_refused_before_they_cost_anything)
{
    json_t *values = long_list("a", 20000), *any = json_array();
    expect_soon_refused(json_pack("{s:o,s:o}", "enum", values, "type", long_list("null", 100000)), "type");
    for (uint32_t i = 0; i < 3000; i++)
        json_array_append_new(any, json_pack("{s:s}", "$ref", "#/$defs/x"));
    json_t *one = json_pack("{s:s,s:{s:{s:i}},s:o}", "type", "object", "properties", "a", "const", 1, "required",
                            long_list("a", 100000));
    expect_soon_refused(json_pack("{s:o,s:{s:o}}", "anyOf", any, "$defs", "x", one), "required");
}

/* What a request's pages hold of one at most. */
#define WORDS_BYTES (GRAMMAR_WORDS_MAX * sizeof(uint32_t))

static void expect_fits(const char *what, const struct automaton *a)
{
    cr_assert_not_null(a, "%s: %s", what, err.text);
    printf("%s: %u states, %u patterns, %zu KiB, %llu steps, %u nodes\n", what, a->state_count, a->pattern_count,
           automaton_bytes(a) / 1024, (unsigned long long)builder.steps, builder.node_count);
    cr_expect_leq(automaton_bytes(a), WORDS_BYTES, "%s: %zu bytes", what, automaton_bytes(a));
}

Test(schema, long_texts_and_deep_objects_fit)
{
    static char text[8192];
    const struct automaton *a = compile_text("{\"type\":\"string\",\"maxLength\":1024}");
    expect_fits("a string of up to 1024 characters", a);
    memset(text, 'x', sizeof(text));
    text[0] = text[1025] = '"';
    text[1026] = '\0';
    cr_expect(matches(a, text));
    text[1025] = 'x';
    text[1026] = '"';
    text[1027] = '\0';
    cr_expect_not(matches(a, text));
    expect_fits("two of up to 250, and a list of numbers",
                compile_text(
                    "{\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":250},\"b\":{\"type\":\"string\","
                    "\"maxLength\":250},\"c\":{\"type\":\"array\",\"maxItems\":50,\"items\":{\"type\":\"number\"}}}}"));
    fragment_begin(&builder, memory, MEMORY_BYTES);
    a = fragment_finish(&builder, schema_any_object(&builder));
    expect_fits("any object", a);
    cr_expect(matches(a, "{\"a\":[[{\"b\":[{\"c\":-1.5e+7},true]}]]}"));
    cr_expect_not(matches(a, "{\"a\":[[{\"b\":[{\"c\":[1]}]}]]}"), "7 deep");
}

Test(schema, what_means_the_same_is_as_small)
{
    static const char *const pairs[][2] = {{"(a|b)*", "(a*b*)*"},
                                           {"abc|abd|ab", "ab[cd]?"},
                                           {"(foo|boo|zoo)bar", "[fbz]oobar"},
                                           {"x{3,5}", "xxx(x(x)?)?"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        const struct automaton *one = compile_regex(pairs[i][0], false);
        cr_assert_not_null(one);
        size_t bytes = automaton_bytes(one);
        void *copy = malloc(bytes);
        memcpy(copy, one, bytes);
        const struct automaton *other = compile_regex(pairs[i][1], false);
        cr_assert_not_null(other);
        cr_expect_eq(automaton_bytes(other), bytes, "%s and %s", pairs[i][0], pairs[i][1]);
        cr_expect_eq(other->state_count, ((struct automaton *)copy)->state_count);
        free(copy);
    }
}

/* ---- regular expressions ---- */

Test(regex, means_what_it_means_elsewhere)
{
    static const struct {
        const char *pattern, *good[4], *bad[4];
    } cases[] = {
        {"abc", {"abc"}, {"", "ab", "abcd"}},
        {"^a|b", {NULL}, {NULL}},
        {"a|bc|", {"a", "bc", ""}, {"b", "abc"}},
        {"(?:ab)+c?", {"ab", "ababc"}, {"", "abcc"}},
        {"[a-c1-3_-]{2,3}", {"a1", "_-b"}, {"a", "a1b2", "d1"}},
        {"[^a-y]", {"z", "\xc3\xa9", "\xf0\x9f\x99\x82", "\n"}, {"a", "", "zz"}},
        {".", {"x", "\xe2\x82\xac"}, {"\n", "", "\xff"}},
        {"\\d{3}-\\w+\\s\\D", {"123-a_9 x"}, {"12-a x", "123- x", "123-a 1"}},
        {"\\x41\\u00e9\\n\\.\\\\", {"A\xc3\xa9\n.\\"}, {"A\xc3\xa9\nx\\"}},
        {"a{2}b{0,1}c{1,}d*?", {"aac", "aabccdd"}, {"abc", "aabbc"}},
        {"[]a]", {"]", "a"}, {"b"}},
        {"[\\d\\s]", {"1", " "}, {"a"}},
        {"[\xc3\xa0-\xc3\xbf]", {"\xc3\xa9"}, {"e", "\xc3\x80"}},
        {"^(yes|no)$", {"yes", "no"}, {"", "yesno"}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct automaton *a = compile_regex(cases[i].pattern, false);
        cr_expect_eq(a != NULL, cases[i].good[0] != NULL, "%s: %s", cases[i].pattern, err.text);
        for (size_t k = 0; a != NULL && k < 4; k++) {
            if (cases[i].good[k] != NULL)
                cr_expect(matches(a, cases[i].good[k]), "%s does not match %s", cases[i].pattern, cases[i].good[k]);
            if (cases[i].bad[k] != NULL)
                cr_expect_not(matches(a, cases[i].bad[k]), "%s matches %s", cases[i].pattern, cases[i].bad[k]);
        }
    }
}

/* What is repeated is read again each time. */
Test(regex, a_count_of_many_digits_is_refused_before_it_costs_anything)
{
    static const char begin[] = "((a{", end[] = "1}){0,150}){0,150}";
    static char pattern[1 << 20];
    memset(pattern, '0', sizeof(pattern));
    memcpy(pattern, begin, sizeof(begin) - 1);
    memcpy(pattern + sizeof(pattern) - sizeof(end), end, sizeof(end));
    double begin_s = cpu_s();
    cr_expect_null(compile_regex(pattern, false));
    cr_expect(strstr(err.text, "{m}") != NULL, "%s", err.text);
    cr_expect_lt(cpu_s() - begin_s, 1, "%.1f s", cpu_s() - begin_s);
    cr_expect_not_null(compile_regex("a{0000000012}", false), "%s", err.text);
}

Test(regex, damaged_patterns_are_refused_or_make_automata)
{
    static const char whole[] = "^(?:a[b-d\\d]{1,3}|[^\\x41]+?\\.)*\xc3\xa9(x|y)?$";
    char pattern[sizeof(whole)];
    uint32_t refused = 0, made = 0;
    for (size_t at = 0; at < sizeof(whole) - 1; at++)
        for (uint32_t byte = 1; byte < 256; byte += 3) {
            memcpy(pattern, whole, sizeof(whole));
            pattern[at] = (char)byte;
            bool is_made = compile_regex(pattern, true) != NULL;
            made += is_made;
            refused += !is_made;
            cr_expect(is_made || err.text[0] != '\0' || builder.has_failed, "%s", pattern);
        }
    cr_expect(made > 200 && refused > 200, "%u made, %u refused", made, refused);
}
