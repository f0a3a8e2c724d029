/* gguf.h - reads a GGUF model file: metadata and the table of tensors. Defensive: a hostile file gets an error.
 *
 * Used by: stages (weights), the launcher and tools (model description, vocabulary).
 * Owns: a read-only mapping of the file, from open to close; everything returned points into it.   Blocks: page faults.
 *
 * Format: GGUF v2 and v3, little endian (ggml's docs/gguf.md). All counts, lengths, offsets and products are checked
 * against the file's size before they are used; strings are (pointer, length), not terminated, and may be unaligned.
 */
#ifndef EVENFLOW_GGUF_H
#define EVENFLOW_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/base.h"

struct gguf; /* an open file */

struct gguf_string {
    const char *data;
    uint64_t size;
};

struct gguf_tensor {
    struct gguf_string name;
    uint32_t dims;    /* 1..4 */
    uint64_t ne[4];   /* ne[0] is the contiguous dimension (inputs); absent dimensions are 1 */
    uint32_t type;    /* GGML type number; may be one that kernels cannot take */
    const void *data; /* inside the mapping; NULL when this build does not know the type's size */
    uint64_t bytes;
};

#define GGUF_STRING 8u /* the GGUF value type */

/* An array in the metadata; elements are read one by one with gguf_array_...() */
struct gguf_array {
    uint32_t element_type; /* GGUF value type */
    uint64_t count;
    const uint8_t *data;
    uint64_t bytes; /* of all elements */
};

/* Opens by path or by descriptor (the descriptor stays the caller's). A file that says it is the first of several parts
 * (name-00001-of-00003.gguf) opens them all, beside it by the name: they are one model. 0, or -errno with err saying what
 * is wrong. */
int gguf_open(struct gguf **gguf, const char *path, struct err *err);
int gguf_open_fd(struct gguf **gguf, int fd, const char *name_for_errors, struct err *err);
void gguf_close(struct gguf *gguf);

/* Another file, or this one after a change of any kind, has another: from number, size, times and header of every part. */
uint64_t gguf_identity(const struct gguf *gguf);

bool gguf_has(const struct gguf *gguf, const char *key);

/* Metadata. False when the key is absent or of another kind. Any integer width is accepted where the value fits. */
bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value);
bool gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *value);
bool gguf_get_f64(const struct gguf *gguf, const char *key, double *value);
bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *value);
bool gguf_get_array(const struct gguf *gguf, const char *key, struct gguf_array *array);

/* Walks a string array in order (strings have no index). cursor starts at 0; false at the end. */
bool gguf_array_next_string(const struct gguf_array *array, uint64_t *cursor, struct gguf_string *value);
/* Element of an array of numbers: the first takes integers (one beyond INT64_MAX is INT64_MAX), the second floats too. */
int64_t gguf_array_i64(const struct gguf_array *array, uint64_t index);
double gguf_array_f64(const struct gguf_array *array, uint64_t index);

/* For inspect: entry `index` of the metadata; false past the end. type is the GGUF value type. */
bool gguf_metadata(const struct gguf *gguf, uint64_t index, struct gguf_string *key, uint32_t *type);

uint64_t gguf_tensor_count(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, uint64_t index);
const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name); /* NULL when absent; by hash */

/* "Q4_1" for 3 and so on; "type 99" for one unknown (static storage). */
const char *gguf_type_name(uint32_t type);

#endif
