/* json_reader.h - the JSON of request bodies into jansson's values, several times as fast as jansson reads it.
 *
 * Used by: front.   Owns: nothing; values are the caller's.   Never blocks; allocates as jansson is told to (json_arena.h).
 *
 * What it reads has one meaning, which is jansson's (tests/fuzz_json.c compares). At anything else, be it wrong or merely rare
 * (deep nesting, keys twice, halves of characters, numbers out of range), it gives up: jansson then says what is wrong with it.
 */
#ifndef EVENFLOW_JSON_READER_H
#define EVENFLOW_JSON_READER_H

#include <jansson.h>
#include <stddef.h>

/* The value that text is, or NULL. scratch: of `size` bytes. */
json_t *json_read(const char *text, size_t size, char *scratch);

#endif
