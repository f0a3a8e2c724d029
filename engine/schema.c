#include "engine/schema.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/regex.h"
#include "engine/unicode.h"

#define COUNT_MAX      1024u /* of items or characters that a schema counts */
#define NO_MAX         UINT32_MAX
#define WHOLE_DIGITS   15u
#define PROPERTIES_MAX 4096u /* of an object */
#define TYPES_MAX      7u    /* that JSON has */

struct schema {
    struct fragment_builder *b;
    json_t *root;
    uint32_t depth;
    int status;
    struct err *err;
};

__attribute__((format(printf, 2, 3))) static void fail(struct schema *s, const char *format, ...)
{
    if (s->status != 0)
        return;
    char text[ERR_TEXT_MAX / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    s->status = err_set(s->err, -ENOTSUP, "%s", text);
}

static bool is_on(const struct schema *s)
{
    return s->status == 0 && !s->b->has_failed;
}

/* ---- pieces of JSON ---- */

static struct fragment text(struct fragment_builder *b, const char *words)
{
    return fragment_text(b, words, strlen(words));
}

/* ',' or ':' and perhaps a blank. */
static struct fragment separator(struct fragment_builder *b, const char *sign)
{
    return fragment_then(b, text(b, sign), fragment_optional(b, text(b, " ")));
}

static struct fragment digits(struct fragment_builder *b, uint8_t first, uint32_t min, uint32_t max)
{
    struct fragment f = fragment_empty(b);
    for (uint32_t i = 0; i < max; i++) {
        struct fragment digit = fragment_bytes(b, i == 0 ? first : '0', '9');
        f = fragment_then(b, f, i < min ? digit : fragment_optional(b, digit));
    }
    return f;
}

static struct fragment number(struct fragment_builder *b, bool is_whole)
{
    struct fragment whole = fragment_or(b, text(b, "0"), digits(b, '1', 1, WHOLE_DIGITS));
    struct fragment f = fragment_then(b, fragment_optional(b, text(b, "-")), whole);
    if (is_whole)
        return f;
    struct fragment part = fragment_then(b, text(b, "."), digits(b, '0', 1, WHOLE_DIGITS));
    struct fragment sign = fragment_optional(b, fragment_or(b, text(b, "+"), text(b, "-")));
    struct fragment power = fragment_then(b, fragment_or(b, text(b, "e"), text(b, "E")), sign);
    power = fragment_then(b, power, digits(b, '0', 1, 2));
    return fragment_then(b, fragment_then(b, f, fragment_optional(b, part)), fragment_optional(b, power));
}

/* Another way from a node to one, by a byte of a range. */
static void way(struct fragment_builder *b, uint32_t from, uint8_t first, uint8_t last, uint32_t to)
{
    struct fragment byte = fragment_bytes(b, first, last);
    fragment_link(b, from, byte.from);
    fragment_link(b, byte.to, to);
}

/* Any character that stands for itself, in UTF-8, with few states: what is left of long ones is shared. */
static struct fragment plain_character(struct fragment_builder *b)
{
    uint32_t from = fragment_empty(b).from, to = fragment_empty(b).from, left[4] = {to};
    for (uint32_t i = 1; i < 4; i++) {
        left[i] = fragment_empty(b).from;
        way(b, left[i], 0x80, 0xbf, left[i - 1]);
    }
    static const struct {
        uint8_t lead_first, lead_last, second_first, second_last, left;
    } leads[] = {{0xe0, 0xe0, 0xa0, 0xbf, 1},
                 {0xed, 0xed, 0x80, 0x9f, 1},
                 {0xf0, 0xf0, 0x90, 0xbf, 2},
                 {0xf4, 0xf4, 0x80, 0x8f, 2}};
    way(b, from, 0x20, '"' - 1, to);
    way(b, from, '"' + 1, '\\' - 1, to);
    way(b, from, '\\' + 1, 0x7f, to);
    way(b, from, 0xc2, 0xdf, left[1]);
    way(b, from, 0xe1, 0xec, left[2]);
    way(b, from, 0xee, 0xef, left[2]);
    way(b, from, 0xf1, 0xf3, left[3]);
    for (size_t i = 0; i < ARRAY_COUNT(leads); i++) {
        uint32_t second = fragment_empty(b).from;
        way(b, from, leads[i].lead_first, leads[i].lead_last, second);
        way(b, second, leads[i].second_first, leads[i].second_last, left[leads[i].left]);
    }
    return (struct fragment){from, to};
}

static void hex_ways(struct fragment_builder *b, uint32_t from, uint32_t to)
{
    way(b, from, '0', '9', to);
    way(b, from, 'a', 'f', to);
    way(b, from, 'A', 'F', to);
}

/* What stands behind a backslash: one of eight letters and signs, or u and four digits that are no half of a surrogate pair. */
static void escape_ways(struct fragment_builder *b, uint32_t from, uint32_t to)
{
    static const char single[] = "\"\\/bfnrt", first[] = "09acefACEF"; /* ranges of the first digit, but for d */
    uint32_t node[5];
    for (uint32_t i = 0; i < ARRAY_COUNT(node); i++)
        node[i] = fragment_empty(b).from;
    for (size_t i = 0; i < sizeof(single) - 1; i++)
        way(b, from, (uint8_t)single[i], (uint8_t)single[i], to);
    way(b, from, 'u', 'u', node[0]);
    for (size_t i = 0; i < sizeof(first) - 1; i += 2)
        way(b, node[0], (uint8_t)first[i], (uint8_t)first[i + 1], node[2]);
    way(b, node[0], 'd', 'd', node[1]);
    way(b, node[0], 'D', 'D', node[1]);
    way(b, node[1], '0', '7', node[3]);
    hex_ways(b, node[2], node[3]);
    hex_ways(b, node[3], node[4]);
    hex_ways(b, node[4], to);
}

static struct fragment any_character(struct fragment_builder *b)
{
    struct fragment f = plain_character(b);
    uint32_t escape = fragment_empty(b).from;
    way(b, f.from, '\\', '\\', escape);
    escape_ways(b, escape, f.to);
    return f;
}

static struct fragment quoted(struct fragment_builder *b, struct fragment inside)
{
    return fragment_then(b, fragment_then(b, text(b, "\""), inside), text(b, "\""));
}

static struct fragment any_string(struct fragment_builder *b)
{
    return quoted(b, fragment_repeated(b, any_character(b)));
}

/* Exactly this string, escaped where it must be. */
static struct fragment literal_string(struct fragment_builder *b, const char *words, size_t size)
{
    struct fragment f = fragment_empty(b);
    bool was_json_text = b->is_json_text;
    b->is_json_text = true;
    for (size_t i = 0; i < size && !b->has_failed;) {
        uint32_t code, length = unicode_decode((const uint8_t *)words + i, size - i, &code, NULL);
        check(length > 0); /* jansson's strings are UTF-8 */
        f = fragment_then(b, f, fragment_characters(b, code, code));
        i += length;
    }
    b->is_json_text = was_json_text;
    return quoted(b, f);
}

/* '[' element, element ']' or with braces; of any number, or none. */
static struct fragment list_of(struct fragment_builder *b, const char *brackets, struct fragment element)
{
    const char open[] = {brackets[0], '\0'}, close[] = {brackets[1], '\0'};
    struct fragment begin = text(b, open), end = text(b, close), between = separator(b, ",");
    fragment_link(b, begin.to, end.from);
    fragment_link(b, begin.to, element.from);
    fragment_link(b, element.to, end.from);
    fragment_link(b, element.to, between.from);
    fragment_link(b, between.to, element.from);
    return (struct fragment){begin.from, end.to};
}

static struct fragment member_of(struct fragment_builder *b, struct fragment key, struct fragment value)
{
    return fragment_then(b, fragment_then(b, key, separator(b, ":")), value);
}

static struct fragment any_value(struct fragment_builder *b, uint32_t depth)
{
    struct fragment f = fragment_or(b, any_string(b), number(b, false));
    f = fragment_or(b, f, fragment_or(b, text(b, "true"), text(b, "false")));
    f = fragment_or(b, f, text(b, "null"));
    if (depth == 0)
        return f;
    f = fragment_or(b, f, list_of(b, "[]", any_value(b, depth - 1)));
    return fragment_or(b, f, list_of(b, "{}", member_of(b, any_string(b), any_value(b, depth - 1))));
}

struct fragment schema_any_object(struct fragment_builder *b)
{
    return list_of(b, "{}", member_of(b, any_string(b), any_value(b, SCHEMA_OBJECT_DEPTH - 1)));
}

/* ---- enum and const ---- */

static struct fragment literal(struct schema *s, json_t *value, uint32_t depth)
{
    struct fragment_builder *b = s->b;
    struct fragment f;
    char digits_text[64];
    size_t i;
    json_t *item;
    const char *key;
    if (depth > SCHEMA_DEPTH_MAX)
        fail(s, "enum: a value is nested deeper than %u", SCHEMA_DEPTH_MAX);
    if (!is_on(s))
        return fragment_empty(b);
    switch (json_typeof(value)) {
    case JSON_NULL:
        return text(b, "null");
    case JSON_TRUE:
        return text(b, "true");
    case JSON_FALSE:
        return text(b, "false");
    case JSON_STRING:
        return literal_string(b, json_string_value(value), json_string_length(value));
    case JSON_INTEGER:
        snprintf(digits_text, sizeof(digits_text), "%lld", (long long)json_integer_value(value));
        return text(b, digits_text);
    case JSON_REAL:
        for (int precision = 15; precision <= 17; precision++) {
            snprintf(digits_text, sizeof(digits_text), "%.*g", precision, json_real_value(value));
            if (strtod(digits_text, NULL) == json_real_value(value))
                break;
        }
        if (strpbrk(digits_text, ".e") == NULL)
            strcat(digits_text, ".0");
        return text(b, digits_text);
    case JSON_ARRAY:
        f = text(b, "[");
        json_array_foreach(value, i, item) {
            if (i > 0)
                f = fragment_then(b, f, separator(b, ","));
            f = fragment_then(b, f, literal(s, item, depth + 1));
        }
        return fragment_then(b, f, text(b, "]"));
    default:
        f = text(b, "{");
        i = 0;
        json_object_foreach(value, key, item) {
            if (i++ > 0)
                f = fragment_then(b, f, separator(b, ","));
            f = fragment_then(b, f, member_of(b, literal_string(b, key, strlen(key)), literal(s, item, depth + 1)));
        }
        return fragment_then(b, f, text(b, "}"));
    }
}

/* ---- keywords ---- */

/* Words for people, and where referred schemas lie. */
static bool is_annotation(const char *key)
{
    static const char *const known[] = {"title", "description", "default",    "examples", "$schema",
                                        "$id",   "$comment",    "deprecated", "readOnly", "writeOnly",
                                        "$defs", "definitions", "strict"};
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (strcmp(key, known[i]) == 0)
            return true;
    return false;
}

/* Words that are separated by blanks. */
static bool is_among(const char *words, const char *word)
{
    size_t size = strlen(word);
    for (const char *at = words; *at != '\0'; at += strspn(at, " ")) {
        size_t length = strcspn(at, " ");
        if (length == size && memcmp(at, word, size) == 0)
            return true;
        at += length;
    }
    return false;
}

/* Refuses what is neither an annotation nor in the list of words that are understood here. */
static void check_keywords(struct schema *s, json_t *schema, const char *known, const char *where)
{
    static const char elsewhere[] = "type minLength maxLength pattern items minItems maxItems properties required "
                                    "additionalProperties enum const anyOf $ref";
    const char *key;
    json_t *value;
    json_object_foreach(schema, key, value)
        if (!is_annotation(key) && !is_among(known, key))
            fail(s, "the keyword '%.64s' is not supported%s%s", key, is_among(elsewhere, key) ? " " : "",
                 is_among(elsewhere, key) ? where : "");
}

static void get_count(struct schema *s, json_t *schema, const char *name, uint32_t *count)
{
    json_t *value = json_object_get(schema, name);
    if (value == NULL)
        return;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > COUNT_MAX)
        fail(s, "%s must be an integer from 0 to %u", name, COUNT_MAX);
    else
        *count = (uint32_t)json_integer_value(value);
}

static struct fragment build(struct schema *s, json_t *schema);

static struct fragment build_string(struct schema *s, json_t *schema)
{
    uint32_t min = 0, max = NO_MAX;
    json_t *pattern = json_object_get(schema, "pattern");
    get_count(s, schema, "minLength", &min);
    get_count(s, schema, "maxLength", &max);
    struct fragment f = fragment_empty(s->b);
    if (pattern != NULL) {
        struct err err;
        if (!json_is_string(pattern) || min > 0 || max != NO_MAX) {
            fail(s, "pattern must be a string, without minLength and maxLength beside it");
            return f;
        }
        s->b->is_json_text = true;
        if (regex_build(s->b, json_string_value(pattern), json_string_length(pattern), true, &f, &err) != 0)
            fail(s, "%s", err.text);
        s->b->is_json_text = false;
        return quoted(s->b, f);
    }
    if (max < min)
        fail(s, "maxLength is less than minLength");
    struct fragment rest = fragment_empty(s->b);
    for (uint32_t i = 0; i < (max == NO_MAX ? min : max) && is_on(s); i++) {
        if (i >= min) /* the first that is left out is the last that there is */
            fragment_link(s->b, f.to, rest.from);
        f = fragment_then(s->b, f, any_character(s->b));
    }
    if (max == NO_MAX)
        f = fragment_then(s->b, f, fragment_repeated(s->b, any_character(s->b)));
    return quoted(s->b, fragment_then(s->b, f, rest));
}

static struct fragment build_item(struct schema *s, json_t *items)
{
    return items != NULL ? build(s, items) : any_value(s->b, SCHEMA_ANY_DEPTH - 1);
}

static struct fragment build_array(struct schema *s, json_t *schema)
{
    struct fragment_builder *b = s->b;
    json_t *items = json_object_get(schema, "items");
    uint32_t min = 0, max = NO_MAX;
    get_count(s, schema, "minItems", &min);
    get_count(s, schema, "maxItems", &max);
    if (max < min)
        fail(s, "maxItems is less than minItems");
    if (!is_on(s))
        return fragment_empty(b);
    if (min == 0 && max == NO_MAX)
        return list_of(b, "[]", build_item(s, items));
    /* one copy after the other; from any that is not below the least number the list may end */
    struct fragment begin = text(b, "["), end = text(b, "]");
    uint32_t at = begin.to, copies = max == NO_MAX ? min : max;
    if (min == 0)
        fragment_link(b, at, end.from);
    for (uint32_t i = 0; i < copies && is_on(s); i++) {
        struct fragment item = build_item(s, items);
        if (i > 0) {
            struct fragment between = separator(b, ",");
            fragment_link(b, at, between.from);
            at = between.to;
        }
        fragment_link(b, at, item.from);
        at = item.to;
        if (i + 1 >= min)
            fragment_link(b, at, end.from);
        if (max == NO_MAX && i + 1 == copies) { /* the last copy again and again */
            struct fragment between = separator(b, ",");
            fragment_link(b, at, between.from);
            fragment_link(b, between.to, item.from);
        }
    }
    return (struct fragment){begin.from, end.to};
}

static bool is_required(json_t *required, const char *key)
{
    size_t i;
    json_t *name;
    json_array_foreach(required, i, name)
        if (json_is_string(name) && strcmp(json_string_value(name), key) == 0)
            return true;
    return false;
}

/* Each name once: they are looked through at every property. So one of the first that are more than the properties is none
 * of these, or comes twice. */
static void check_required(struct schema *s, json_t *required, json_t *properties)
{
    size_t count = json_array_size(required), property_count = json_object_size(properties);
    if (required != NULL && !json_is_array(required))
        fail(s, "required must be a list of names");
    if (property_count > PROPERTIES_MAX)
        fail(s, "there are %zu properties; at most %u are supported", property_count, PROPERTIES_MAX);
    for (size_t i = 0; i < count && i <= property_count && s->status == 0; i++) {
        json_t *name = json_array_get(required, i);
        if (!json_is_string(name) || json_object_get(properties, json_string_value(name)) == NULL)
            fail(s, "required: '%.64s' is not among the properties",
                 json_is_string(name) ? json_string_value(name) : "");
    }
    if (count > property_count)
        fail(s, "required: a name comes twice");
}

/* Members in the order of the schema. Before each of them either nothing has been written yet, or a comma is due; behind it
 * a comma is. An optional one is passed by. */
static struct fragment build_object(struct schema *s, json_t *schema)
{
    struct fragment_builder *b = s->b;
    json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required"), *value;
    json_t *more = json_object_get(schema, "additionalProperties");
    const char *key;
    check_required(s, required, properties);
    if (properties != NULL && !json_is_object(properties))
        fail(s, "properties must be an object");
    if (more != NULL && !json_is_boolean(more) && !json_is_object(more))
        fail(s, "additionalProperties must be true, false or a schema");
    if (!is_on(s))
        return fragment_empty(b);
    if (json_object_size(properties) == 0 && !json_is_false(more))
        return list_of(b, "{}", member_of(b, any_string(b), build_item(s, json_is_object(more) ? more : NULL)));
    struct fragment begin = text(b, "{"), end = text(b, "}");
    uint32_t nothing = begin.to, something = fragment_empty(b).from;
    bool may_be_nothing = true;
    json_object_foreach(properties, key, value) {
        struct fragment member = member_of(b, literal_string(b, key, strlen(key)), build(s, value));
        struct fragment comma = separator(b, ",");
        uint32_t after = fragment_empty(b).from, still_nothing = fragment_empty(b).from;
        if (!is_on(s))
            return begin;
        if (may_be_nothing)
            fragment_link(b, nothing, member.from);
        fragment_link(b, something, comma.from);
        fragment_link(b, comma.to, member.from);
        fragment_link(b, member.to, after);
        if (is_required(required, key)) {
            may_be_nothing = false;
        } else {
            fragment_link(b, something, after);
            fragment_link(b, nothing, still_nothing);
        }
        something = after;
        nothing = still_nothing;
    }
    fragment_link(b, something, end.from);
    if (may_be_nothing)
        fragment_link(b, nothing, end.from);
    return (struct fragment){begin.from, end.to};
}

static struct fragment build_type(struct schema *s, json_t *schema, const char *type)
{
    static const struct {
        const char *name, *keywords, *where;
    } types[] = {{"string", "type minLength maxLength pattern", "for strings"},
                 {"number", "type", "for numbers"},
                 {"integer", "type", "for integers"},
                 {"boolean", "type", "for booleans"},
                 {"null", "type", "for null"},
                 {"array", "type items minItems maxItems", "for arrays"},
                 {"object", "type properties required additionalProperties", "for objects"}};
    size_t kind = 0;
    while (kind < ARRAY_COUNT(types) && strcmp(types[kind].name, type) != 0)
        kind++;
    if (kind == ARRAY_COUNT(types))
        fail(s, "type: '%.64s' is none of JSON's", type);
    else if (json_is_string(json_object_get(schema, "type")) || json_object_get(schema, "type") == NULL)
        check_keywords(s, schema, types[kind].keywords, types[kind].where);
    if (!is_on(s))
        return fragment_empty(s->b);
    switch (kind) {
    case 0:
        return build_string(s, schema);
    case 1:
        return number(s->b, false);
    case 2:
        return number(s->b, true);
    case 3:
        return fragment_or(s->b, text(s->b, "true"), text(s->b, "false"));
    case 4:
        return text(s->b, "null");
    case 5:
        return build_array(s, schema);
    default:
        return build_object(s, schema);
    }
}

/* One schema of a list is enough. */
static struct fragment build_any_of(struct schema *s, json_t *list)
{
    struct fragment f = fragment_empty(s->b);
    size_t i;
    json_t *one;
    if (!json_is_array(list) || json_array_size(list) == 0)
        fail(s, "anyOf must be a list of schemas");
    json_array_foreach(list, i, one)
        if (is_on(s))
            f = i == 0 ? build(s, one) : fragment_or(s->b, f, build(s, one));
    return f;
}

static bool has_type(json_t *value, const char *type)
{
    return strcmp(type, "string") == 0    ? json_is_string(value)
           : strcmp(type, "number") == 0  ? json_is_number(value)
           : strcmp(type, "integer") == 0 ? json_is_integer(value)
           : strcmp(type, "boolean") == 0 ? json_is_boolean(value)
           : strcmp(type, "null") == 0    ? json_is_null(value)
           : strcmp(type, "array") == 0   ? json_is_array(value)
                                          : json_is_object(value);
}

/* A value of enum or const that the type beside it forbids can never be given. */
static struct fragment literal_of(struct schema *s, json_t *value, json_t *type)
{
    bool fits = type == NULL || (json_is_string(type) && has_type(value, json_string_value(type)));
    for (size_t i = 0; i < json_array_size(type); i++)
        fits = fits ||
               (json_is_string(json_array_get(type, i)) && has_type(value, json_string_value(json_array_get(type, i))));
    if (!fits)
        fail(s, "enum or const: a value is not of the type beside it");
    return literal(s, value, 0);
}

static struct fragment build_enum(struct schema *s, json_t *list, json_t *type)
{
    struct fragment f = fragment_empty(s->b);
    size_t i;
    json_t *value;
    if (!json_is_array(list) || json_array_size(list) == 0)
        fail(s, "enum must be a list of values");
    json_array_foreach(list, i, value)
        if (is_on(s))
            f = i == 0 ? literal_of(s, value, type) : fragment_or(s->b, f, literal_of(s, value, type));
    return f;
}

/* The schema that "#", "#/$defs/name" or "#/definitions/name" names. */
static json_t *resolve(struct schema *s, json_t *reference)
{
    static const char *const places[] = {"$defs", "definitions"};
    const char *path = json_string_value(reference);
    for (size_t i = 0; path != NULL && i < ARRAY_COUNT(places); i++) {
        size_t size = strlen(places[i]);
        if (strncmp(path, "#/", 2) == 0 && strncmp(path + 2, places[i], size) == 0 && path[2 + size] == '/') {
            json_t *found = json_object_get(json_object_get(s->root, places[i]), path + 3 + size);
            if (found != NULL)
                return found;
        }
    }
    fail(s, "$ref: '%.64s' is no schema in $defs", path != NULL ? path : "");
    return NULL;
}

static struct fragment build_types(struct schema *s, json_t *schema, json_t *types)
{
    struct fragment f = fragment_empty(s->b);
    size_t i;
    json_t *type;
    check_keywords(s, schema,
                   "type minLength maxLength pattern items minItems maxItems properties required additionalProperties",
                   "here");
    json_array_foreach(types, i, type) {
        if (!json_is_string(type))
            fail(s, "type must be a name or a list of names");
        if (is_on(s))
            f = i == 0 ? build_type(s, schema, json_string_value(type))
                       : fragment_or(s->b, f, build_type(s, schema, json_string_value(type)));
    }
    return f;
}

static struct fragment build_object_schema(struct schema *s, json_t *schema)
{
    json_t *type = json_object_get(schema, "type"), *found;
    if (json_array_size(type) > TYPES_MAX)
        fail(s, "type must be a name or a list of names, each once");
    if (!is_on(s))
        return fragment_empty(s->b);
    if ((found = json_object_get(schema, "$ref")) != NULL) {
        check_keywords(s, schema, "$ref", "beside $ref");
        found = is_on(s) ? resolve(s, found) : NULL;
        return found != NULL ? build(s, found) : fragment_empty(s->b);
    }
    if ((found = json_object_get(schema, "const")) != NULL) {
        check_keywords(s, schema, "const type", "beside const");
        return literal_of(s, found, type);
    }
    if ((found = json_object_get(schema, "enum")) != NULL) {
        check_keywords(s, schema, "enum type", "beside enum");
        return build_enum(s, found, type);
    }
    if ((found = json_object_get(schema, "anyOf")) != NULL) {
        check_keywords(s, schema, "anyOf", "beside anyOf");
        return build_any_of(s, found);
    }
    if (json_is_array(type) && json_array_size(type) > 0)
        return build_types(s, schema, type);
    if (json_is_string(type))
        return build_type(s, schema, json_string_value(type));
    if (type != NULL)
        fail(s, "type must be a name or a list of names");
    if (json_object_get(schema, "properties") != NULL)
        return build_type(s, schema, "object");
    check_keywords(s, schema, "", "without a type");
    return any_value(s->b, SCHEMA_ANY_DEPTH - 1);
}

static struct fragment build(struct schema *s, json_t *schema)
{
    if (++s->depth > SCHEMA_DEPTH_MAX)
        fail(s, "schemas are nested deeper than %u, or a $ref comes back to itself", SCHEMA_DEPTH_MAX);
    if (!json_is_object(schema) && !json_is_true(schema))
        fail(s, "a schema must be an object");
    struct fragment f = !is_on(s)              ? fragment_empty(s->b)
                        : json_is_true(schema) ? any_value(s->b, SCHEMA_ANY_DEPTH - 1)
                                               : build_object_schema(s, schema);
    s->depth--;
    return f;
}

int schema_build(struct fragment_builder *b, json_t *schema, struct fragment *fragment, struct err *err)
{
    struct schema s = {.b = b, .root = schema, .err = err};
    *fragment = build(&s, schema);
    return s.status;
}
