#include "stages/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/kernels.h"

#define GGUF_MAGIC         0x46554747u /* "GGUF", little endian */
#define KEY_BYTES_MAX      65535u
#define TENSOR_NAME_MAX    64u
#define ENTRIES_MAX        (1u << 20) /* real files have tens of entries, thousands of tensors; a sparse file that */
#define TENSORS_MAX        (1u << 20) /* claims more than memory holds is refused, not tried */
#define DIMS_MAX           4u
#define PARTS_MAX          999u
#define PART_PATH_MAX      4096u
#define ALIGNMENT_STANDARD 32u
#define METADATA_BYTES_MIN 13u /* the shortest entry: empty key, type, one byte */
#define TENSOR_BYTES_MIN   32u /* the shortest entry: empty name, one dimension, type, offset */

enum value_type {
    VALUE_U8,
    VALUE_I8,
    VALUE_U16,
    VALUE_I16,
    VALUE_U32,
    VALUE_I32,
    VALUE_F32,
    VALUE_BOOL,
    VALUE_STRING,
    VALUE_ARRAY,
    VALUE_U64,
    VALUE_I64,
    VALUE_F64,
    VALUE_TYPE_COUNT,
};

static const uint8_t value_bytes[VALUE_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

struct tensor_type {
    uint32_t number;
    const char *name;
    uint32_t block; /* elements */
    uint32_t bytes; /* of a block */
};

/* Numbers, block lengths and sizes: ggml's ggml.h and ggml-common.h. */
static const struct tensor_type tensor_types[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34},    {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}, {20, "IQ4_NL", 32, 18}, {30, "BF16", 1, 2},
};

/* Types that are only named: nothing computes them. */
static const struct {
    uint32_t number;
    const char *name;
} other_types[] = {
    {9, "Q8_1"},   {10, "Q2_K"},  {11, "Q3_K"},  {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
    {19, "IQ1_S"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},    {26, "I32"},
    {27, "I64"},   {28, "F64"},   {29, "IQ1_M"}, {34, "TQ1_0"},  {35, "TQ2_0"},   {39, "MXFP4"},  {40, "NVFP4"},
};

struct entry {
    struct gguf_string key;
    uint32_t type;        /* enum value_type */
    const uint8_t *value; /* for an array: its element type */
    const uint8_t *end;   /* behind the value */
};

struct gguf {
    const uint8_t *file;
    uint64_t size;
    uint64_t header_bytes;  /* before the tensors' data */
    uint64_t number;        /* of the file, on its disk */
    uint64_t changed_ns[2]; /* its content; anything about it */
    uint64_t entry_count;
    struct entry *entries;
    uint64_t tensor_count;
    struct gguf_tensor *tensors;
    uint32_t *buckets; /* tensor index + 1 by hash of the name; open addressing */
    uint32_t bucket_count;
    struct gguf **parts; /* of a split file, the second and on; their tensors are in the table above too */
    uint32_t part_count;
};

/* ---- reading; every read is checked against the end ---- */

struct cursor {
    const uint8_t *at, *end;
};

static uint64_t left(const struct cursor *cursor)
{
    return (uint64_t)(cursor->end - cursor->at);
}

static bool read_bytes(struct cursor *cursor, void *value, uint64_t bytes)
{
    if (left(cursor) < bytes)
        return false;
    memcpy(value, cursor->at, bytes);
    cursor->at += bytes;
    return true;
}

static bool read_string(struct cursor *cursor, struct gguf_string *string)
{
    if (!read_bytes(cursor, &string->size, sizeof(string->size)) || left(cursor) < string->size)
        return false;
    string->data = (const char *)cursor->at;
    cursor->at += string->size;
    return true;
}

static bool skip_strings(struct cursor *cursor, uint64_t count)
{
    struct gguf_string string;
    for (uint64_t i = 0; i < count; i++)
        if (!read_string(cursor, &string))
            return false;
    return true;
}

/* Passes over a value whose type has been read. False: truncated, or of a type that does not exist. */
static bool skip_value(struct cursor *cursor, uint32_t type)
{
    struct gguf_string string;
    uint32_t element_type;
    uint64_t count;
    if (type >= VALUE_TYPE_COUNT)
        return false;
    if (type == VALUE_STRING)
        return read_string(cursor, &string);
    if (type != VALUE_ARRAY) {
        if (left(cursor) < value_bytes[type])
            return false;
        cursor->at += value_bytes[type];
        return true;
    }
    if (!read_bytes(cursor, &element_type, sizeof(element_type)) || !read_bytes(cursor, &count, sizeof(count)))
        return false;
    if (element_type == VALUE_STRING)
        return count <= left(cursor) / 8 && skip_strings(cursor, count);
    if (element_type >= VALUE_TYPE_COUNT || element_type == VALUE_ARRAY)
        return false; /* arrays of arrays do not occur in model files */
    if (count > left(cursor) / value_bytes[element_type])
        return false;
    cursor->at += count * value_bytes[element_type];
    return true;
}

static bool strings_equal(const struct gguf_string *a, const char *b, uint64_t size)
{
    return a->size == size && memcmp(a->data, b, size) == 0;
}

static int printable(const struct gguf_string *string)
{
    return (int)(string->size < 100 ? string->size : 100);
}

/* ---- opening ---- */

static int compare_keys(const void *a, const void *b)
{
    const struct gguf_string *x = &((const struct entry *)a)->key, *y = &((const struct entry *)b)->key;
    uint64_t size = x->size < y->size ? x->size : y->size;
    int order = memcmp(x->data, y->data, size);
    return order != 0 ? order : (x->size > y->size) - (x->size < y->size);
}

static const struct entry *find_entry(const struct gguf *gguf, const char *key)
{
    const struct entry wanted = {.key = {.data = key, .size = strlen(key)}};
    if (gguf->entry_count == 0)
        return NULL;
    return bsearch(&wanted, gguf->entries, gguf->entry_count, sizeof(wanted), compare_keys);
}

static int read_metadata(struct gguf *gguf, struct cursor *cursor, const char *name, struct err *err)
{
    if (gguf->entry_count > left(cursor) / METADATA_BYTES_MIN || gguf->entry_count > ENTRIES_MAX)
        return err_set(err, -EBADMSG, "model %s: %llu metadata entries do not fit the file; it is damaged", name,
                       (unsigned long long)gguf->entry_count);
    gguf->entries = base_alloc(gguf->entry_count * sizeof(*gguf->entries));
    for (uint64_t i = 0; i < gguf->entry_count; i++) {
        struct entry *entry = &gguf->entries[i];
        bool is_read = read_string(cursor, &entry->key) && entry->key.size <= KEY_BYTES_MAX &&
                       read_bytes(cursor, &entry->type, sizeof(entry->type));
        entry->value = cursor->at;
        if (!is_read || !skip_value(cursor, entry->type))
            return err_set(err, -EBADMSG, "model %s: metadata entry %llu is truncated or of an unknown type", name,
                           (unsigned long long)i);
        entry->end = cursor->at;
    }
    qsort(gguf->entries, gguf->entry_count, sizeof(*gguf->entries), compare_keys);
    for (uint64_t i = 1; i < gguf->entry_count; i++)
        if (compare_keys(&gguf->entries[i - 1], &gguf->entries[i]) == 0)
            return err_set(err, -EBADMSG, "model %s: metadata key %.*s stands twice", name,
                           printable(&gguf->entries[i].key), gguf->entries[i].key.data);
    return 0;
}

static const struct tensor_type *type_of(uint32_t number)
{
    for (size_t i = 0; i < ARRAY_COUNT(tensor_types); i++)
        if (tensor_types[i].number == number)
            return &tensor_types[i];
    return NULL;
}

static int read_tensor(struct gguf_tensor *tensor, struct cursor *cursor, uint64_t *offset, const char *name,
                       struct err *err)
{
    bool is_read = read_string(cursor, &tensor->name) && tensor->name.size < TENSOR_NAME_MAX &&
                   read_bytes(cursor, &tensor->dims, sizeof(tensor->dims)) && tensor->dims >= 1 &&
                   tensor->dims <= DIMS_MAX;
    uint64_t elements = 1;
    for (uint32_t d = 0; d < DIMS_MAX && is_read; d++) {
        tensor->ne[d] = 1;
        if (d < tensor->dims)
            is_read = read_bytes(cursor, &tensor->ne[d], sizeof(tensor->ne[d])) && tensor->ne[d] > 0 &&
                      !__builtin_mul_overflow(elements, tensor->ne[d], &elements);
    }
    if (!is_read || !read_bytes(cursor, &tensor->type, sizeof(tensor->type)) ||
        !read_bytes(cursor, offset, sizeof(*offset)))
        return err_set(err, -EBADMSG, "model %s: the table of tensors is truncated or holds impossible shapes", name);
    const struct tensor_type *type = type_of(tensor->type);
    if (type == NULL)
        return 0; /* whoever needs the tensor says so by name */
    if (tensor->ne[0] % type->block != 0 || __builtin_mul_overflow(elements / type->block, type->bytes, &tensor->bytes))
        return err_set(err, -EBADMSG, "model %s: tensor %.*s: %llu columns are no whole blocks of %s", name,
                       printable(&tensor->name), tensor->name.data, (unsigned long long)tensor->ne[0], type->name);
    return 0;
}

static uint32_t hash_name(const char *data, uint64_t size)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (uint64_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)data[i]) * 16777619u;
    return hash;
}

static uint32_t *find_bucket(const struct gguf *gguf, const char *data, uint64_t size)
{
    uint32_t at = hash_name(data, size) & (gguf->bucket_count - 1);
    while (gguf->buckets[at] != 0 && !strings_equal(&gguf->tensors[gguf->buckets[at] - 1].name, data, size))
        at = (at + 1) & (gguf->bucket_count - 1);
    return &gguf->buckets[at];
}

static void take_buckets(struct gguf *gguf)
{
    gguf->bucket_count = 1;
    while (gguf->bucket_count < 2 * gguf->tensor_count)
        gguf->bucket_count *= 2;
    gguf->buckets = base_alloc(gguf->bucket_count * sizeof(*gguf->buckets));
}

static int index_tensor(struct gguf *gguf, const struct gguf_tensor *tensor, const char *name, struct err *err)
{
    uint32_t *bucket = find_bucket(gguf, tensor->name.data, tensor->name.size);
    if (*bucket != 0)
        return err_set(err, -EBADMSG, "model %s: tensor %.*s stands twice", name, printable(&tensor->name),
                       tensor->name.data);
    *bucket = (uint32_t)(tensor - gguf->tensors) + 1;
    return 0;
}

static int place_tensor(struct gguf *gguf, struct gguf_tensor *tensor, uint64_t data_start, uint64_t alignment,
                        uint64_t offset, const char *name, struct err *err)
{
    uint64_t room = gguf->size - data_start;
    if (offset % alignment != 0 || offset > room || tensor->bytes > room - offset)
        return err_set(err, -EBADMSG, "model %s: tensor %.*s lies outside the file; is the download complete?", name,
                       printable(&tensor->name), tensor->name.data);
    if (type_of(tensor->type) != NULL)
        tensor->data = gguf->file + data_start + offset;
    return index_tensor(gguf, tensor, name, err);
}

static int read_tensors(struct gguf *gguf, struct cursor *cursor, const char *name, struct err *err)
{
    if (gguf->tensor_count > left(cursor) / TENSOR_BYTES_MIN || gguf->tensor_count > TENSORS_MAX)
        return err_set(err, -EBADMSG, "model %s: %llu tensors do not fit the file; it is damaged", name,
                       (unsigned long long)gguf->tensor_count);
    gguf->tensors = base_alloc(gguf->tensor_count * sizeof(*gguf->tensors));
    uint64_t *offsets = base_alloc(gguf->tensor_count * sizeof(*offsets));
    take_buckets(gguf);
    int ret = 0;
    for (uint64_t i = 0; i < gguf->tensor_count && ret == 0; i++)
        ret = read_tensor(&gguf->tensors[i], cursor, &offsets[i], name, err);
    uint64_t alignment = ALIGNMENT_STANDARD;
    bool is_number =
        find_entry(gguf, "general.alignment") == NULL || gguf_get_u64(gguf, "general.alignment", &alignment);
    if (ret == 0 && !is_number)
        ret = err_set(err, -EBADMSG, "model %s: general.alignment is no whole number", name);
    if (ret == 0 && (alignment < 8 || alignment > 1u << 20 || (alignment & (alignment - 1)) != 0))
        ret = err_set(err, -EBADMSG, "model %s: general.alignment is %llu: must be a power of two from 8 to 2^20", name,
                      (unsigned long long)alignment);
    uint64_t data_start = 0;
    if (ret == 0) {
        data_start = align_up_u64((uint64_t)(cursor->at - gguf->file), alignment);
        if (data_start > gguf->size)
            data_start = gguf->size;
        gguf->header_bytes = data_start;
    }
    for (uint64_t i = 0; i < gguf->tensor_count && ret == 0; i++)
        ret = place_tensor(gguf, &gguf->tensors[i], data_start, alignment, offsets[i], name, err);
    free(offsets);
    return ret;
}

static int read_file(struct gguf *gguf, const char *name, struct err *err)
{
    struct cursor cursor = {gguf->file, gguf->file + gguf->size};
    uint32_t magic = 0, version = 0;
    if (!read_bytes(&cursor, &magic, sizeof(magic)) || magic != GGUF_MAGIC)
        return err_set(err, -EBADMSG, "model %s: this is no GGUF file", name);
    if (!read_bytes(&cursor, &version, sizeof(version)))
        return err_set(err, -EBADMSG, "model %s: truncated after its first bytes", name);
    if (version != 2 && version != 3) {
        if (__builtin_bswap32(version) == 2 || __builtin_bswap32(version) == 3)
            return err_set(err, -ENOTSUP, "model %s: a big-endian GGUF file; convert it to little-endian", name);
        return err_set(err, -ENOTSUP, "model %s: GGUF version %u; versions 2 and 3 are read", name, version);
    }
    if (!read_bytes(&cursor, &gguf->tensor_count, sizeof(gguf->tensor_count)) ||
        !read_bytes(&cursor, &gguf->entry_count, sizeof(gguf->entry_count)))
        return err_set(err, -EBADMSG, "model %s: truncated after its first bytes", name);
    int ret = read_metadata(gguf, &cursor, name, err);
    return ret ? ret : read_tensors(gguf, &cursor, name, err);
}

/* ---- files in parts: name-00001-of-00003.gguf, each a GGUF file, the metadata in the first ---- */

/* The path of part `number`, from the first one's. False when that is not named like a first part of so many. */
static bool part_path(char path[PART_PATH_MAX], const char *first, uint32_t number, uint32_t count)
{
    char ending[32];
    size_t size = strlen(first), ending_size = (size_t)snprintf(ending, sizeof(ending), "-00001-of-%05u.gguf", count);
    if (size < ending_size || size >= PART_PATH_MAX || strcmp(first + size - ending_size, ending) != 0)
        return false;
    strcpy(path, first);
    snprintf(path + size - ending_size, PART_PATH_MAX - (size - ending_size), "-%05u-of-%05u.gguf", number, count);
    return true;
}

static int open_one(struct gguf **out, int fd, const char *name, struct err *err);

static int open_part(struct gguf *gguf, const char *name, uint32_t number, uint32_t count, struct err *err)
{
    char path[PART_PATH_MAX];
    uint64_t index = 0;
    if (!part_path(path, name, number, count))
        return err_set(err, -EBADMSG, "model %s: this is one of %u parts; name the first, ...-00001-of-%05u.gguf", name,
                       count, count);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, -errno, "model %s: part %u of %u is missing: %s", path, number, count, strerror(errno));
    struct gguf *part;
    int ret = open_one(&part, fd, path, err);
    close(fd);
    if (ret != 0)
        return ret;
    gguf->parts[gguf->part_count++] = part;
    if (!gguf_get_u64(part, "split.no", &index) || index != number - 1)
        return err_set(err, -EBADMSG, "model %s: this is not part %u of %u by its metadata", path, number, count);
    return 0;
}

/* The tensors of all parts, in one table. */
static int join_tables(struct gguf *gguf, const char *name, struct err *err)
{
    uint64_t count = gguf->tensor_count, expected, at = 0;
    for (uint32_t i = 0; i < gguf->part_count; i++)
        count += gguf->parts[i]->tensor_count;
    if (gguf_get_u64(gguf, "split.tensors.count", &expected) && expected != count)
        return err_set(err, -EBADMSG, "model %s: its parts hold %llu tensors instead of %llu", name,
                       (unsigned long long)count, (unsigned long long)expected);
    if (count > TENSORS_MAX)
        return err_set(err, -EBADMSG, "model %s: more than %u tensors", name, TENSORS_MAX);
    struct gguf_tensor *all = base_alloc(count * sizeof(*all));
    memcpy(all, gguf->tensors, gguf->tensor_count * sizeof(*all));
    at = gguf->tensor_count;
    for (uint32_t i = 0; i < gguf->part_count; i++) {
        memcpy(all + at, gguf->parts[i]->tensors, gguf->parts[i]->tensor_count * sizeof(*all));
        at += gguf->parts[i]->tensor_count;
    }
    free(gguf->tensors);
    free(gguf->buckets);
    gguf->tensors = all;
    gguf->tensor_count = count;
    take_buckets(gguf);
    int ret = 0;
    for (uint64_t i = 0; i < count && ret == 0; i++)
        ret = index_tensor(gguf, &all[i], name, err);
    return ret;
}

static int open_parts(struct gguf *gguf, const char *name, struct err *err)
{
    uint64_t count = 0, index = 0;
    if (!gguf_get_u64(gguf, "split.count", &count) || count <= 1)
        return 0;
    if (count > PARTS_MAX)
        return err_set(err, -EBADMSG, "model %s: %llu parts; up to %u are read", name, (unsigned long long)count,
                       PARTS_MAX);
    if (gguf_get_u64(gguf, "split.no", &index) && index != 0)
        return err_set(err, -EBADMSG, "model %s: this is part %llu of %llu; name the first", name,
                       (unsigned long long)index + 1, (unsigned long long)count);
    gguf->parts = base_alloc(count * sizeof(struct gguf *));
    int ret = 0;
    for (uint32_t number = 2; number <= count && ret == 0; number++)
        ret = open_part(gguf, name, number, (uint32_t)count, err);
    return ret ? ret : join_tables(gguf, name, err);
}

int gguf_open_fd(struct gguf **out, int fd, const char *name, struct err *err)
{
    struct gguf *gguf;
    int ret = open_one(&gguf, fd, name, err);
    if (ret != 0)
        return ret;
    ret = open_parts(gguf, name, err);
    if (ret != 0)
        gguf_close(gguf);
    else
        *out = gguf;
    return ret;
}

static int open_one(struct gguf **out, int fd, const char *name, struct err *err)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return err_set(err, -errno, "model %s: %s", name, strerror(errno));
    if (!S_ISREG(stat.st_mode))
        return err_set(err, -EBADMSG, "model %s: this is no regular file", name);
    if (stat.st_size == 0)
        return err_set(err, -EBADMSG, "model %s: the file is empty", name);
    struct gguf *gguf = base_alloc(sizeof(*gguf));
    gguf->size = (uint64_t)stat.st_size;
    gguf->number = stat.st_ino;
    gguf->changed_ns[0] = (uint64_t)stat.st_mtim.tv_sec * 1000000000 + (uint64_t)stat.st_mtim.tv_nsec;
    gguf->changed_ns[1] = (uint64_t)stat.st_ctim.tv_sec * 1000000000 + (uint64_t)stat.st_ctim.tv_nsec;
    void *file = mmap(NULL, gguf->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED) {
        int ret = err_set(err, -errno, "model %s: cannot map it: %s", name, strerror(errno));
        free(gguf);
        return ret;
    }
    gguf->file = file;
    int ret = read_file(gguf, name, err);
    if (ret != 0)
        gguf_close(gguf);
    else
        *out = gguf;
    return ret;
}

int gguf_open(struct gguf **gguf, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block: it is refused */
    if (fd < 0)
        return err_set(err, -errno, "model %s: cannot open it: %s", path, strerror(errno));
    int ret = gguf_open_fd(gguf, fd, path, err);
    close(fd);
    return ret;
}

void gguf_close(struct gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->part_count; i++)
        gguf_close(gguf->parts[i]);
    free(gguf->parts);
    munmap((void *)(uintptr_t)gguf->file, gguf->size);
    free(gguf->entries);
    free(gguf->tensors);
    free(gguf->buckets);
    free(gguf);
}

uint64_t gguf_identity(const struct gguf *gguf)
{
    uint64_t words[] = {gguf->size,
                        gguf->number,
                        gguf->changed_ns[0],
                        gguf->changed_ns[1],
                        hash_floats((const float *)(const void *)gguf->file, gguf->header_bytes / sizeof(float)),
                        0};
    for (uint32_t i = 0; i < gguf->part_count; i++)
        words[5] = words[5] * 31 + gguf_identity(gguf->parts[i]);
    return hash_floats((const float *)(const void *)words, 2 * ARRAY_COUNT(words));
}

/* ---- looking things up ---- */

bool gguf_has(const struct gguf *gguf, const char *key)
{
    return find_entry(gguf, key) != NULL;
}

bool gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *value)
{
    const struct entry *entry = find_entry(gguf, key);
    if (entry == NULL || entry->type != VALUE_STRING)
        return false;
    struct cursor cursor = {entry->value, gguf->file + gguf->size};
    return read_string(&cursor, value);
}

/* An integer of any width, as 64 bits of two's complement. */
struct integer {
    uint64_t bits;
    bool is_negative;
};

/* False for a float, a string, an array. */
static bool integer_at(uint32_t type, const uint8_t *at, struct integer *value)
{
    if (type >= VALUE_TYPE_COUNT || type == VALUE_STRING || type == VALUE_ARRAY || type == VALUE_F32 ||
        type == VALUE_F64)
        return false;
    bool is_signed = type == VALUE_I8 || type == VALUE_I16 || type == VALUE_I32 || type == VALUE_I64;
    uint32_t bytes = value_bytes[type];
    *value = (struct integer){0};
    memcpy(&value->bits, at, bytes);
    value->is_negative = is_signed && (at[bytes - 1] & 0x80) != 0;
    if (value->is_negative && bytes < sizeof(value->bits))
        value->bits |= UINT64_MAX << 8 * bytes;
    return true;
}

static bool float_at(uint32_t type, const uint8_t *at, double *value)
{
    if (type == VALUE_F32) {
        float single;
        memcpy(&single, at, sizeof(single));
        *value = single;
        return true;
    }
    if (type == VALUE_F64) {
        memcpy(value, at, sizeof(*value));
        return true;
    }
    struct integer integer;
    if (!integer_at(type, at, &integer))
        return false;
    *value = integer.is_negative ? (double)(int64_t)integer.bits : (double)integer.bits;
    return true;
}

bool gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *value)
{
    const struct entry *entry = find_entry(gguf, key);
    struct integer integer;
    if (entry == NULL || entry->type == VALUE_BOOL || !integer_at(entry->type, entry->value, &integer) ||
        integer.is_negative)
        return false;
    *value = integer.bits;
    return true;
}

bool gguf_get_f64(const struct gguf *gguf, const char *key, double *value)
{
    const struct entry *entry = find_entry(gguf, key);
    return entry != NULL && entry->type != VALUE_BOOL && float_at(entry->type, entry->value, value);
}

bool gguf_get_bool(const struct gguf *gguf, const char *key, bool *value)
{
    const struct entry *entry = find_entry(gguf, key);
    if (entry == NULL || entry->type != VALUE_BOOL)
        return false;
    *value = *entry->value != 0;
    return true;
}

bool gguf_get_array(const struct gguf *gguf, const char *key, struct gguf_array *array)
{
    const struct entry *entry = find_entry(gguf, key);
    if (entry == NULL || entry->type != VALUE_ARRAY)
        return false;
    memcpy(&array->element_type, entry->value, sizeof(array->element_type));
    memcpy(&array->count, entry->value + sizeof(array->element_type), sizeof(array->count));
    array->data = entry->value + sizeof(array->element_type) + sizeof(array->count);
    array->bytes = (uint64_t)(entry->end - array->data);
    return true;
}

bool gguf_array_next_string(const struct gguf_array *array, uint64_t *cursor, struct gguf_string *value)
{
    /* The cursor is the offset of the next string; lengths were checked when the file was opened. */
    check(array->element_type == VALUE_STRING);
    if (*cursor == array->bytes)
        return false;
    memcpy(&value->size, array->data + *cursor, sizeof(value->size));
    value->data = (const char *)array->data + *cursor + sizeof(value->size);
    *cursor += sizeof(value->size) + value->size;
    return true;
}

int64_t gguf_array_i64(const struct gguf_array *array, uint64_t index)
{
    check(index < array->count);
    struct integer value;
    check(integer_at(array->element_type, array->data + index * value_bytes[array->element_type], &value));
    return value.is_negative ? (int64_t)value.bits : (int64_t)min_u64(value.bits, INT64_MAX);
}

double gguf_array_f64(const struct gguf_array *array, uint64_t index)
{
    check(index < array->count);
    double value = 0;
    check(float_at(array->element_type, array->data + index * value_bytes[array->element_type], &value));
    return value;
}

bool gguf_metadata(const struct gguf *gguf, uint64_t index, struct gguf_string *key, uint32_t *type)
{
    if (index >= gguf->entry_count)
        return false;
    *key = gguf->entries[index].key;
    *type = gguf->entries[index].type;
    return true;
}

uint64_t gguf_tensor_count(const struct gguf *gguf)
{
    return gguf->tensor_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, uint64_t index)
{
    check(index < gguf->tensor_count);
    return &gguf->tensors[index];
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name)
{
    uint32_t bucket = *find_bucket(gguf, name, strlen(name));
    return bucket != 0 ? &gguf->tensors[bucket - 1] : NULL;
}

const char *gguf_type_name(uint32_t type)
{
    static char unknown[32];
    const struct tensor_type *known = type_of(type);
    if (known != NULL)
        return known->name;
    for (size_t i = 0; i < ARRAY_COUNT(other_types); i++)
        if (other_types[i].number == type)
            return other_types[i].name;
    snprintf(unknown, sizeof(unknown), "type %u", type);
    return unknown;
}
