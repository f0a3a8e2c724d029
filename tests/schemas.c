#include "tests/schemas.h"

#include <stdio.h>
#include <string.h>

static uint64_t seed = 1;

uint32_t schemas_random(uint32_t count)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % count;
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

bool schemas_validates(json_t *root, json_t *schema, json_t *value)
{
    json_t *word, *one, *member;
    const char *key;
    size_t i;
    if (json_is_true(schema))
        return true;
    if ((word = json_object_get(schema, "$ref")) != NULL)
        return schemas_validates(root, json_object_get(json_object_get(root, "$defs"), json_string_value(word) + 8),
                                 value);
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
            is_there = is_there || schemas_validates(root, one, value);
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
            if ((word = json_object_get(schema, "items")) != NULL && !schemas_validates(root, word, one))
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
        if (word != NULL ? !schemas_validates(root, word, member)
                         : json_is_false(more) || (json_is_object(more) && !schemas_validates(root, more, member)))
            return false;
    }
    return true;
}

/* ---- random schemas ---- */

static json_t *random_value(void)
{
    switch (schemas_random(7)) {
    case 0:
        return json_null();
    case 1:
        return json_integer((json_int_t)schemas_random(2000) - 1000);
    case 2:
        return json_real((double)schemas_random(1000) / 8 - 50.1);
    case 3:
        return json_boolean(schemas_random(2));
    case 4:
        return json_pack("[i, s, {s: i}]", 1, "x\n\"", "k", 2);
    default:
        return json_sprintf("w%u \"\\ \xc3\xa9\xf0\x9f\x99\x82\n\x01/", schemas_random(100));
    }
}

static json_t *random_object(uint32_t depth)
{
    json_t *properties = json_object(), *required = json_array();
    uint32_t count = schemas_random(5);
    for (uint32_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof(name), schemas_random(4) ? "p%u" : "p \"%u\"\xc3\xa9", i);
        json_object_set_new(properties, name, schemas_make(depth - 1));
        if (schemas_random(2))
            json_array_append_new(required, json_string(name));
    }
    json_t *schema = json_pack("{s: s, s: o, s: o}", "type", "object", "properties", properties, "required", required);
    if (schemas_random(2))
        json_object_set_new(schema, "additionalProperties", count > 0 ? json_false() : schemas_make(depth - 1));
    return schema;
}

json_t *schemas_make(uint32_t depth)
{
    static const char *const simple[] = {"string", "number", "integer", "boolean", "null"};
    json_t *list = json_array();
    uint32_t count = 1 + schemas_random(3), min = schemas_random(4);
    switch (schemas_random(depth > 0 ? 12 : 6)) {
    case 0:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, random_value());
        return json_pack("{s: o}", "enum", list);
    case 1:
        return json_pack("{s: o, s: s}", "const", random_value(), "title", "what");
    case 2:
        return json_pack("{s: s, s: i, s: i}", "type", "string", "minLength", min, "maxLength",
                         min + schemas_random(6));
    case 3:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, json_string(simple[(min + i) % 5]));
        return json_pack("{s: o}", "type", list);
    case 4:
    case 5:
        return json_pack("{s: s, s: s}", "type", simple[schemas_random(5)], "description", "any");
    case 6:
        for (uint32_t i = 0; i < count; i++)
            json_array_append_new(list, schemas_make(depth - 1));
        return json_pack("{s: o}", "anyOf", list);
    case 7:
        return json_pack("{s: s, s: o}", "type", "array", "items", schemas_make(depth - 1));
    case 8:
        return json_pack("{s: s, s: o, s: i, s: i}", "type", "array", "items", schemas_make(depth - 1), "minItems", min,
                         "maxItems", min + schemas_random(3));
    case 9:
        return json_pack("{s: s, s: o, s: i}", "type", "array", "items", schemas_make(depth - 1), "minItems", min);
    default:
        return random_object(depth);
    }
}
