/* schema.h - JSON Schema to a grammar of the documents that validate.
 *
 * Used by: grammar.c.   Owns: nothing; the schema is the caller's.   Never blocks.
 *
 * The subset is that of OpenAI's strict mode and a little more: type (one or several), properties, required,
 * additionalProperties, items, minItems, maxItems, minLength, maxLength, pattern, enum, const, anyOf, $ref into $defs that does
 * not come back to itself. Any other keyword that would have to be checked is refused by its name; words for people (title,
 * description, default, ...) are passed over.
 *
 * Not every document that validates is of the grammar, but every one of the grammar validates: properties come in the order
 * of the schema and no others are added, there is at most one blank behind ',' and ':' and none elsewhere, numbers have at
 * most 15 digits, and what a schema leaves open is nested SCHEMA_ANY_DEPTH deep at most, an object of which nothing is said at
 * all SCHEMA_OBJECT_DEPTH deep.
 */
#ifndef EVENFLOW_SCHEMA_H
#define EVENFLOW_SCHEMA_H

#include <jansson.h>

#include "engine/fragment.h"
#include "ipc/base.h"

#define SCHEMA_ANY_DEPTH    3u
#define SCHEMA_OBJECT_DEPTH 6u
#define SCHEMA_DEPTH_MAX    32u

/* 0; -ENOTSUP or -EINVAL with err, which names the keyword. What did not fit is for fragment_finish() to say. */
int schema_build(struct fragment_builder *builder, json_t *schema, struct fragment *fragment, struct err *err);

/* Any JSON object. */
struct fragment schema_any_object(struct fragment_builder *builder);

#endif
