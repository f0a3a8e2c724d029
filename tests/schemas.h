/* schemas.h - random JSON schemas of what engine/schema.h supports, and a validator that knows nothing of it. */
#ifndef EVENFLOW_TESTS_SCHEMAS_H
#define EVENFLOW_TESTS_SCHEMAS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Less than count; always the same row of numbers. */
uint32_t schemas_random(uint32_t count);

/* Nested depth deep at most. */
json_t *schemas_make(uint32_t depth);

/* Written from the specification. root: where $ref points into. */
bool schemas_validates(json_t *root, json_t *schema, json_t *value);

#endif
