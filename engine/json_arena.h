/* json_arena.h - jansson on memory of a fixed size: one request body is parsed at a time, then everything is forgotten.
 *
 * Used by: front (and tests of its parts).   Owns: the memory.   Never blocks.
 * The process serves after base_seal(): jansson takes nothing from the heap. A body whose values need more memory than
 * there is cannot be parsed, and is refused.
 */
#ifndef EVENFLOW_JSON_ARENA_H
#define EVENFLOW_JSON_ARENA_H

#include <jansson.h>
#include <stddef.h>

/* Takes the memory and makes jansson use it, for the whole process. */
void json_arena_open(size_t bytes);

/* Memory until the next reset; NULL: there is no more. */
void *json_arena_take(size_t bytes);

/* Forgets every value: to be called before each parse. */
void json_arena_reset(void);

#endif
