/* fuzz_json.c - JSON as it is written here is read back by others: any text, any 32-bit float. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_writer.h"
#include "tests/fuzz.h"

static void text_comes_back(const uint8_t *data, size_t size)
{
    char *valid = malloc(3 * size + 1), *json = malloc(3 * JSON_ESCAPE_MAX * size + 16);
    check(valid != NULL && json != NULL);
    size_t valid_size = json_valid_utf8(valid, data, size);
    check(valid_size <= 3 * size);
    struct json_writer writer = {json, 0, 3 * JSON_ESCAPE_MAX * size + 16};
    json_text(&writer, "[");
    json_quoted(&writer, valid, valid_size);
    json_text(&writer, "]");
    json_t *root = json_loadb(json, writer.size, JSON_ALLOW_NUL, NULL);
    json_t *text = json_array_get(root, 0);
    check(json_is_string(text) && json_string_length(text) == valid_size);
    check(memcmp(json_string_value(text), valid, valid_size) == 0);
    json_t *given = json_stringn((const char *)data, size);
    if (given != NULL) /* it was valid: nothing may have changed */
        check(valid_size == size && memcmp(valid, data, size) == 0);
    json_decref(given);
    json_decref(root);
    free(valid);
    free(json);
}

static void float_comes_back(const uint8_t *data)
{
    float value;
    char json[64];
    memcpy(&value, data, sizeof(value));
    if (isnan(value))
        return;
    struct json_writer writer = {json, 0, sizeof(json)};
    json_text(&writer, "[");
    json_float(&writer, value);
    json_text(&writer, "]");
    json_t *root = json_loadb(json, writer.size, JSON_DECODE_INT_AS_REAL, NULL);
    json_t *number = json_array_get(root, 0);
    check(json_is_number(number));
    if (isinf(value))
        check(fabs(json_number_value(number)) == 9999 && (json_number_value(number) > 0) == (value > 0));
    else
        check((float)json_number_value(number) == value);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    text_comes_back(data, size);
    for (size_t i = 0; i + 4 <= size; i += 4)
        float_comes_back(data + i);
    return 0;
}
