/* json_writer.h - JSON text into a buffer of known room.
 *
 * Used by: front.   Owns: nothing; the buffer is the caller's.   Never blocks, never allocates.
 *
 * Running out of room is a bug of the caller, who knows how much a piece can need. Strings are escaped as RFC 8259 wants
 * and otherwise left as they are: the caller's text is valid UTF-8.
 */
#ifndef EVENFLOW_JSON_WRITER_H
#define EVENFLOW_JSON_WRITER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ipc/base.h"

/* A byte of text needs at most so many of JSON ("\u001f"). */
#define JSON_ESCAPE_MAX 6u

struct json_writer {
    char *data;
    size_t size, room;
};

void json_raw(struct json_writer *writer, const char *text, size_t size);
/* Here, so that the compiler knows the sizes of constant texts. */
static inline void json_text(struct json_writer *writer, const char *text)
{
    json_raw(writer, text, strlen(text));
}

void json_format(struct json_writer *writer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The escaped text without quotes, and with them. */
void json_escaped(struct json_writer *writer, const char *text, size_t size);
void json_quoted(struct json_writer *writer, const char *text, size_t size);

void json_number(struct json_writer *writer, uint64_t value);
void json_hex(struct json_writer *writer, uint64_t value); /* 16 digits */
/* The shortest decimal that gives back the same 32-bit float. JSON has no infinities: they become +-9999. */
void json_float(struct json_writer *writer, float value);

/* Copies text as UTF-8: bytes that belong to no character become U+FFFD each. At most 3 * size bytes; the size. */
size_t json_valid_utf8(char *target, const uint8_t *text, size_t size);

#endif
