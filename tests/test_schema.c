#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/automaton.h"
#include "engine/regex.h"
#include "engine/schema.h"

#define MEMORY_BYTES ((size_t)64 << 20)
#define TEXT_MAX     65536u

static uint8_t *memory;
static struct automaton_builder builder;
static struct err err;
static uint64_t seed = 1;

static void set_up(void)
{
    memory = aligned_alloc(64, MEMORY_BYTES);
}

TestSuite(schema, .init = set_up, .timeout = 120);
TestSuite(regex, .init = set_up, .timeout = 60);

static uint32_t random_below(uint32_t count)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % count;
}

/* ---- automata ---- */

static bool matches(const struct automaton *a, const char *text)
{
    uint32_t state = AUTOMATON_START;
    for (const char *at = text; *at != '\0'; at++)
        state = automaton_step(a, state, (uint8_t)*at);
    return automaton_accepts(a)[state];
}

/* Steps to the nearest end, for every state. */
static uint32_t *distances(const struct automaton *a)
{
    uint32_t *steps = malloc(a->state_count * sizeof(*steps));
    for (uint32_t s = 0; s < a->state_count; s++)
        steps[s] = automaton_accepts(a)[s] ? 0 : UINT32_MAX;
    for (bool is_changed = true; is_changed;) {
        is_changed = false;
        for (uint32_t s = 1; s < a->state_count; s++)
            for (uint32_t k = 0; k < a->class_count; k++) {
                uint32_t next = steps[a->next[(size_t)s * a->class_count + k]];
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
    for (uint32_t state = AUTOMATON_START; !(automaton_accepts(a)[state] && (size > 200 || random_below(3) == 0));) {
        uint8_t bytes[256];
        uint32_t count = 0;
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t next = automaton_step(a, state, (uint8_t)byte);
            bool is_same = count > 0 && a->class_of[bytes[count - 1]] == a->class_of[byte];
            if (next != AUTOMATON_DEAD && (size < 200 || steps[next] < steps[state]) &&
                (!is_same || random_below(3) == 0))
                bytes[is_same ? count - 1 : count++] = (uint8_t)byte;
        }
        if (count == 0) { /* nothing may follow */
            cr_assert(automaton_accepts(a)[state], "%.*s can be neither ended nor gone on with", (int)size, text);
            break;
        }
        uint8_t byte = bytes[random_below(count)];
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
    automaton_begin(&builder, memory, MEMORY_BYTES);
    err.text[0] = '\0';
    return schema_build(&builder, schema, &whole, &err) == 0 ? automaton_finish(&builder, whole) : NULL;
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
    automaton_begin(&builder, memory, MEMORY_BYTES);
    err.text[0] = '\0';
    return regex_build(&builder, pattern, strlen(pattern), is_search, &whole, &err) == 0
               ? automaton_finish(&builder, whole)
               : NULL;
}

/* ---- a validator of the subset, written from the specification ---- */

static size_t characters(json_t *string)
{
    size_t count = 0;
    for (const char *at = json_string_value(string); *at != '\0'; at++)
        count += ((uint8_t)*at & 0xc0) != 0x80;
    return count;
}

static bool is_of_type(json_t *value, const char *type)
{
    return strcmp(type, "string") == 0    ? json_is_string(value)
           : strcmp(type, "number") == 0  ? json_is_number(value)
           : strcmp(type, "integer") == 0 ? json_is_integer(value)
           : strcmp(type, "boolean") == 0 ? json_is_boolean(value)
           : strcmp(type, "null") == 0    ? json_is_null(value)
           : strcmp(type, "array") == 0   ? json_is_array(value)
                                          : json_is_object(value);
}

static json_int_t limit(json_t *schema, const char *name, json_int_t fallback)
{
    json_t *value = json_object_get(schema, name);
    return value != NULL ? json_integer_value(value) : fallback;
}

static bool validates(json_t *root, json_t *schema, json_t *value)
{
    json_t *word, *one, *member;
    const char *key;
    size_t i;
    if (json_is_true(schema))
        return true;
    if ((word = json_object_get(schema, "$ref")) != NULL)
        return validates(root, json_object_get(json_object_get(root, "$defs"), json_string_value(word) + 8), value);
    if ((word = json_object_get(schema, "const")) != NULL && !json_equal(word, value))
        return false;
    if ((word = json_object_get(schema, "enum")) != NULL) {
        bool is_there = false;
        json_array_foreach(word, i, one)
            is_there = is_there || json_equal(one, value);
        if (!is_there)
            return false;
    }
    if ((word = json_object_get(schema, "anyOf")) != NULL) {
        bool is_there = false;
        json_array_foreach(word, i, one)
            is_there = is_there || validates(root, one, value);
        if (!is_there)
            return false;
    }
    if ((word = json_object_get(schema, "type")) != NULL) {
        bool fits = json_is_string(word) && is_of_type(value, json_string_value(word));
        json_array_foreach(word, i, one)
            fits = fits || is_of_type(value, json_string_value(one));
        if (!fits)
            return false;
    }
    if (json_is_string(value))
        return (json_int_t)characters(value) >= limit(schema, "minLength", 0) &&
               (json_int_t)characters(value) <= limit(schema, "maxLength", INT64_MAX);
    if (json_is_array(value)) {
        if ((json_int_t)json_array_size(value) < limit(schema, "minItems", 0) ||
            (json_int_t)json_array_size(value) > limit(schema, "maxItems", INT64_MAX))
            return false;
        json_array_foreach(value, i, one)
            if ((word = json_object_get(schema, "items")) != NULL && !validates(root, word, one))
                return false;
    }
    if (!json_is_object(value))
        return true;
    json_array_foreach(json_object_get(schema, "required"), i, one)
        if (json_object_get(value, json_string_value(one)) == NULL)
            return false;
    json_t *properties = json_object_get(schema, "properties"), *more = json_object_get(schema, "additionalProperties");
    json_object_foreach(value, key, member) {
        word = json_object_get(properties, key);
        if (word != NULL ? !validates(root, word, member)
                         : json_is_false(more) || (json_is_object(more) && !validates(root, more, member)))
            return false;
    }
    return true;
}

/* ---- random schemas ---- */

static json_t *random_schema(uint32_t depth);

static json_t *random_value(void)
{
    switch (random_below(7)) {
    case 0:
        return json_null();
    case 1:
        return json_integer((json_int_t)random_below(2000) - 1000);
    case 2:
        return json_real((double)random_below(1000) / 8 - 50.1);
    case 3:
        return json_boolean(random_below(2));
    case 4:
        return json_pack("[i, s, {s: i}]", 1, "x\n\"", "k", 2);
    default:
        return json_sprintf("w%u \"\\ \xc3\xa9\xf0\x9f\x99\x82\n\x01/", random_below(100));
    }
}

static json_t *random_object(uint32_t depth)
{
    json_t *properties = json_object(), *required = json_array();
    uint32_t count = random_below(5);
    for (uint32_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof(name), random_below(4) ? "p%u" : "p \"%u\"\xc3\xa9", i);
        json_object_set_new(properties, name, random_schema(depth - 1));
        if (random_below(2))
            json_array_append_new(required, json_string(name));
    }
    json_t *schema = json_pack("{s: s, s: o, s: o}", "type", "object", "properties", properties, "required", required);
    if (random_below(2))
        json_object_set_new(schema, "additionalProperties", count > 0 ? json_false() : random_schema(depth - 1));
    return schema;
}

static json_t *random_schema(uint32_t depth)
{
    static const char *const simple[] = {"string", "number", "integer", "boolean", "null"};
    json_t *list = json_array();
    uint32_t count = 1 + random_below(3), min = random_below(4);
    switch (random_below(depth > 0 ? 12 : 6)) {
    case 0:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, random_value());
        return json_pack("{s: o}", "enum", list);
    case 1:
        return json_pack("{s: o, s: s}", "const", random_value(), "title", "what");
    case 2:
        return json_pack("{s: s, s: i, s: i}", "type", "string", "minLength", min, "maxLength", min + random_below(6));
    case 3:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, json_string(simple[(min + i) % 5]));
        return json_pack("{s: o}", "type", list);
    case 4:
    case 5:
        return json_pack("{s: s, s: s}", "type", simple[random_below(5)], "description", "any");
    case 6:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, random_schema(depth - 1));
        return json_pack("{s: o}", "anyOf", list);
    case 7:
        return json_pack("{s: s, s: o}", "type", "array", "items", random_schema(depth - 1));
    case 8:
        return json_pack("{s: s, s: o, s: i, s: i}", "type", "array", "items", random_schema(depth - 1), "minItems",
                         min, "maxItems", min + random_below(3));
    case 9:
        return json_pack("{s: s, s: o, s: i}", "type", "array", "items", random_schema(depth - 1), "minItems", min);
    default:
        return random_object(depth);
    }
}

Test(schema, every_text_of_500_random_schemas_parses_and_validates)
{
    static char text[TEXT_MAX];
    size_t states = 0, texts = 0;
    for (uint32_t n = 0; n < 500; n++) {
        json_t *schema = random_schema(3);
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
            cr_assert(validates(schema, schema, value), "%s gives %s", words, text);
            json_decref(value);
        }
        free(steps);
        free(words);
        json_decref(schema);
    }
    cr_expect_eq(texts, 10000);
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
    automaton_begin(&builder, memory, MEMORY_BYTES);
    whole = schema_any_object(&builder);
    a = automaton_finish(&builder, whole);
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
        {"{\"not\":{}}", "'not'"},
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
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
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
