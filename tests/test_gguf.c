#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stages/gguf.h"

/* A file under construction. */
struct file {
    uint8_t bytes[65536 * 2];
    size_t size;
};

static struct file file;

static void put(const void *bytes, size_t size)
{
    cr_assert_leq(file.size + size, sizeof(file.bytes));
    memcpy(file.bytes + file.size, bytes, size);
    file.size += size;
}

static void put_u32(uint32_t value)
{
    put(&value, 4);
}

static void put_u64(uint64_t value)
{
    put(&value, 8);
}

static void put_string(const char *text)
{
    put_u64(strlen(text));
    put(text, strlen(text));
}

static void put_head(uint32_t version, uint64_t tensors, uint64_t entries)
{
    file.size = 0;
    put("GGUF", 4);
    put_u32(version);
    put_u64(tensors);
    put_u64(entries);
}

static void put_tensor(const char *name, uint32_t type, uint64_t columns, uint64_t rows, uint64_t offset)
{
    put_string(name);
    put_u32(2);
    put_u64(columns);
    put_u64(rows);
    put_u32(type);
    put_u64(offset);
}

static int open_file(struct gguf **gguf, struct err *err)
{
    int fd = memfd_create("gguf", 0);
    cr_assert_eq(write(fd, file.bytes, file.size), (ssize_t)file.size);
    err->text[0] = '\0';
    int ret = gguf_open_fd(gguf, fd, "test", err);
    close(fd);
    return ret;
}

static void expect_refusal(const char *what)
{
    struct gguf *gguf;
    struct err err;
    cr_expect_lt(open_file(&gguf, &err), 0, "accepted, but: %s", what);
    cr_expect(strstr(err.text, what) != NULL, "\"%s\" does not say: %s", err.text, what);
}

/* Metadata of every kind and two tensors. */
static void put_sound_file(void)
{
    put_head(3, 2, 9);
    put_string("general.architecture");
    put_u32(8);
    put_string("llama");
    put_string("a.u8");
    put_u32(0);
    put("\x07", 1);
    put_string("a.i32");
    put_u32(5);
    put_u32((uint32_t)-3);
    put_string("a.u64");
    put_u32(10);
    put_u64(1ull << 40);
    put_string("a.f32");
    put_u32(6);
    float f = 2.5f;
    put(&f, 4);
    put_string("a.bool");
    put_u32(7);
    put("\x01", 1);
    put_string("a.strings");
    put_u32(9);
    put_u32(8);
    put_u64(3);
    put_string("one");
    put_string("");
    put_string("three");
    put_string("a.ints");
    put_u32(9);
    put_u32(5);
    put_u64(2);
    put_u32((uint32_t)-1);
    put_u32(8);
    put_string("a.floats");
    put_u32(9);
    put_u32(6);
    put_u64(1);
    put(&f, 4);
    put_tensor("first", 0, 4, 2, 0);
    put_tensor("second", 3, 32, 2, 32);
    while (file.size % 32 != 0)
        put("", 1);
    for (int i = 0; i < 32 + 40; i++)
        put("\x5a", 1);
}

Test(gguf, reads_what_is_there)
{
    put_sound_file();
    struct gguf *gguf;
    struct err err;
    cr_assert_eq(open_file(&gguf, &err), 0, "%s", err.text);
    struct gguf_string string;
    struct gguf_array array;
    uint64_t u64;
    double f64;
    bool flag = false;
    cr_assert(gguf_get_string(gguf, "general.architecture", &string));
    cr_assert_eq(string.size, 5);
    cr_assert(gguf_get_u64(gguf, "a.u8", &u64));
    cr_assert_eq(u64, 7);
    cr_assert(gguf_get_u64(gguf, "a.u64", &u64));
    cr_assert_eq(u64, 1ull << 40);
    cr_assert_not(gguf_get_u64(gguf, "a.i32", &u64), "a negative number is no length");
    cr_assert(gguf_get_f64(gguf, "a.i32", &f64));
    cr_assert_eq(f64, -3);
    cr_assert(gguf_get_f64(gguf, "a.f32", &f64));
    cr_assert_eq(f64, 2.5);
    cr_assert(gguf_get_bool(gguf, "a.bool", &flag) && flag);
    cr_assert_not(gguf_get_string(gguf, "a.u8", &string));
    cr_assert_not(gguf_get_u64(gguf, "absent", &u64));
    cr_assert_not(gguf_get_array(gguf, "a.u8", &array));

    cr_assert(gguf_get_array(gguf, "a.strings", &array));
    uint64_t cursor = 0, sizes[4] = {0}, count = 0;
    while (gguf_array_next_string(&array, &cursor, &string))
        sizes[count++] = string.size;
    cr_assert(count == 3 && sizes[0] == 3 && sizes[1] == 0 && sizes[2] == 5);
    cr_assert(gguf_get_array(gguf, "a.ints", &array));
    cr_assert_eq(gguf_array_i64(&array, 0), -1);
    cr_assert_eq(gguf_array_i64(&array, 1), 8);
    cr_assert(gguf_get_array(gguf, "a.floats", &array));
    cr_assert_eq(gguf_array_f64(&array, 0), 2.5);

    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, "second");
    cr_assert_not_null(tensor);
    cr_assert(tensor->ne[0] == 32 && tensor->ne[1] == 2 && tensor->ne[2] == 1 && tensor->bytes == 40);
    cr_assert_eq(*(const uint8_t *)tensor->data, 0x5a);
    cr_assert_null(gguf_tensor_find(gguf, "third"));
    gguf_close(gguf);
}

Test(gguf, every_integer_width_is_read_with_its_sign)
{
    static const struct {
        const char *key;
        uint32_t type, bytes;
        uint64_t bits;
        bool fits;      /* it is no negative number */
        int64_t number; /* as an array's element */
    } cases[] = {
        {"u8", 0, 1, 0xff, true, 255},
        {"i8", 1, 1, 0x80, false, -128},
        {"u16", 2, 2, 0xffff, true, 65535},
        {"i16", 3, 2, 0x8000, false, -32768},
        {"u32", 4, 4, 0xffffffff, true, 4294967295},
        {"i32", 5, 4, 0x7fffffff, true, INT32_MAX},
        {"i32 negative", 5, 4, 0xfffffffe, false, -2},
        {"u64", 10, 8, 1ull << 62, true, 1ll << 62},
        {"u64 beyond i64", 10, 8, UINT64_MAX, true, INT64_MAX},
        {"i64", 11, 8, 1ull << 63, false, INT64_MIN},
    };
    put_head(3, 0, 2 * ARRAY_COUNT(cases));
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char key[64];
        put_string(cases[i].key);
        put_u32(cases[i].type);
        put(&cases[i].bits, cases[i].bytes);
        snprintf(key, sizeof(key), "array of %s", cases[i].key);
        put_string(key);
        put_u32(9);
        put_u32(cases[i].type);
        put_u64(2);
        put("\0\0\0\0\0\0\0", cases[i].bytes);
        put(&cases[i].bits, cases[i].bytes);
    }
    struct gguf *gguf;
    struct err err;
    cr_assert_eq(open_file(&gguf, &err), 0, "%s", err.text);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct gguf_array array;
        uint64_t value = 0;
        double real;
        char key[64];
        cr_expect_eq(gguf_get_u64(gguf, cases[i].key, &value), cases[i].fits, "%s", cases[i].key);
        cr_expect_eq(value, cases[i].fits ? cases[i].bits : 0, "%s", cases[i].key);
        snprintf(key, sizeof(key), "array of %s", cases[i].key);
        cr_assert(gguf_get_array(gguf, key, &array));
        cr_expect_eq(array.bytes, 2 * cases[i].bytes);
        cr_expect_eq(gguf_array_i64(&array, 0), 0);
        cr_expect_eq(gguf_array_i64(&array, 1), cases[i].number, "%s", key);
        double expected = cases[i].fits ? (double)cases[i].bits : (double)cases[i].number;
        cr_expect_eq(gguf_array_f64(&array, 1), expected, "%s", key);
        cr_expect(gguf_get_f64(gguf, cases[i].key, &real) && real == expected, "%s", cases[i].key);
    }
    gguf_close(gguf);
}

/* 2^24 strings: more than a packed cursor could count. Most of the file is a hole. */
Test(gguf, an_array_of_very_many_strings_ends, .timeout = 60)
{
    const uint64_t count = (1ull << 24) + 3;
    put_head(3, 0, 1);
    put_string("many");
    put_u32(9);
    put_u32(8);
    put_u64(count);
    int fd = memfd_create("gguf", 0);
    cr_assert_eq(write(fd, file.bytes, file.size), (ssize_t)file.size);
    cr_assert_eq(ftruncate(fd, (off_t)(file.size + 8 * count)), 0);
    struct gguf *gguf;
    struct gguf_array array;
    struct gguf_string string;
    struct err err;
    cr_assert_eq(gguf_open_fd(&gguf, fd, "test", &err), 0, "%s", err.text);
    cr_assert(gguf_get_array(gguf, "many", &array));
    uint64_t cursor = 0, seen = 0;
    while (seen <= count && gguf_array_next_string(&array, &cursor, &string))
        seen++;
    cr_assert_eq(seen, count);
    gguf_close(gguf);
    close(fd);
}

Test(gguf, counts_that_only_a_hole_could_back_are_refused)
{
    for (int which = 0; which < 2; which++) {
        put_head(3, which == 0 ? 1ull << 33 : 0, which == 0 ? 0 : 1ull << 33);
        int fd = memfd_create("gguf", 0);
        cr_assert_eq(write(fd, file.bytes, file.size), (ssize_t)file.size);
        cr_assert_eq(ftruncate(fd, 1ll << 40), 0);
        struct gguf *gguf;
        struct err err;
        cr_assert_lt(gguf_open_fd(&gguf, fd, "test", &err), 0);
        cr_expect(strstr(err.text, "do not fit") != NULL, "%s", err.text);
        close(fd);
    }
}

static uint64_t touch_everything(const struct gguf *gguf)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, i);
        for (uint64_t byte = 0; tensor->data != NULL && byte < tensor->bytes; byte++)
            sum += ((const uint8_t *)tensor->data)[byte];
        sum += (uint64_t)(uint8_t)gguf_type_name(tensor->type)[0];
    }
    struct gguf_string key;
    uint32_t type;
    for (uint64_t i = 0; gguf_metadata(gguf, i, &key, &type); i++) {
        struct gguf_array array;
        char name[64];
        snprintf(name, sizeof(name), "%.*s", (int)(key.size < 63 ? key.size : 63), key.data);
        if (!gguf_get_array(gguf, name, &array))
            continue;
        struct gguf_string string;
        for (uint64_t cursor = 0;
             array.element_type == GGUF_STRING && gguf_array_next_string(&array, &cursor, &string);)
            sum += string.size > 0 ? (uint8_t)string.data[string.size - 1] : 0;
        for (uint64_t at = 0; array.element_type != GGUF_STRING && at < array.count; at++)
            sum += (uint64_t)(int64_t)gguf_array_f64(&array, at);
    }
    return sum;
}

/* Any one byte changed, any end cut off: an error, or a file all of whose parts can be read. */
Test(gguf, damage_never_leads_outside_the_file, .timeout = 120)
{
    put_sound_file();
    const struct file sound = file;
    uint64_t sum = 0;
    struct gguf *gguf;
    struct err err;
    for (size_t size = 0; size < sound.size; size++) {
        file = sound;
        file.size = size;
        cr_expect_lt(open_file(&gguf, &err), 0, "cut after %zu of %zu bytes", size, sound.size);
        cr_expect_gt(strlen(err.text), 10);
    }
    static const uint8_t changes[] = {0x01, 0x80, 0xff, 0x40};
    for (size_t at = 0; at < sound.size; at++)
        for (size_t i = 0; i < sizeof(changes); i++) {
            file = sound;
            file.bytes[at] ^= changes[i];
            if (open_file(&gguf, &err) == 0) {
                sum += touch_everything(gguf);
                gguf_close(gguf);
            } else {
                cr_expect_gt(strlen(err.text), 10);
            }
        }
    cr_assert_neq(sum, 0);
}

Test(gguf, says_what_is_wrong)
{
    put_head(1, 0, 0);
    expect_refusal("version 1");
    put_head(0x03000000, 0, 0);
    expect_refusal("big-endian");
    put_head(3, 0, 0);
    file.bytes[0] = 'X';
    expect_refusal("no GGUF file");
    put_head(3, 0, UINT64_MAX);
    expect_refusal("do not fit");
    put_head(3, UINT64_MAX, 0);
    expect_refusal("do not fit");

    put_head(3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_string("same");
        put_u32(0);
        put("", 1);
    }
    expect_refusal("same stands twice");

    put_head(3, 0, 1);
    put_string("nested");
    put_u32(9);
    put_u32(9);
    put_u64(1);
    put_u64(0);
    put_u64(0);
    expect_refusal("entry 0");

    static char key[70000];
    memset(key, 'k', sizeof(key) - 1);
    put_head(3, 0, 1);
    put_string(key);
    put_u32(0);
    put("", 1);
    expect_refusal("entry 0");

    put_head(3, 2, 0);
    put_tensor("t", 0, 1, 1, 0);
    put_tensor("t", 0, 1, 1, 0);
    for (int i = 0; i < 64; i++)
        put("", 1);
    expect_refusal("t stands twice");

    put_head(3, 1, 0);
    put_tensor("t", 3, 33, 1, 0);
    for (int i = 0; i < 128; i++)
        put("", 1);
    expect_refusal("33 columns");

    put_head(3, 1, 0);
    put_tensor("t", 0, 1ull << 40, 1ull << 40, 0);
    expect_refusal("impossible shapes");

    put_head(3, 1, 0);
    put_tensor("t", 0, 8, 1, 16);
    for (int i = 0; i < 128; i++)
        put("", 1);
    expect_refusal("outside the file");

    put_head(3, 1, 1);
    put_string("general.alignment");
    put_u32(4);
    put_u32(24);
    put_tensor("t", 0, 1, 1, 0);
    for (int i = 0; i < 128; i++)
        put("", 1);
    expect_refusal("general.alignment is 24");
    put_head(3, 1, 1);
    put_string("general.alignment");
    put_u32(10);
    put_u64(1ull << 63);
    put_tensor("t", 0, 1, 1, 0);
    expect_refusal("general.alignment is 9223372036854775808");
    put_head(3, 1, 1);
    put_string("general.alignment");
    put_u32(8);
    put_string("32");
    put_tensor("t", 0, 1, 1, 0);
    expect_refusal("general.alignment is no whole number");
}

Test(gguf, a_tensor_of_an_unknown_type_is_listed_without_data)
{
    put_head(3, 1, 0);
    put_tensor("t", 99, 7, 1, 0);
    for (int i = 0; i < 64; i++)
        put("", 1);
    struct gguf *gguf;
    struct err err;
    cr_assert_eq(open_file(&gguf, &err), 0, "%s", err.text);
    cr_assert_null(gguf_tensor_find(gguf, "t")->data);
    cr_assert_str_eq(gguf_type_name(99), "type 99");
    gguf_close(gguf);
}

Test(gguf, only_regular_files_are_opened)
{
    struct gguf *gguf;
    struct err err;
    cr_assert_lt(gguf_open(&gguf, "/tmp", &err), 0);
    cr_assert(strstr(err.text, "/tmp"));
    cr_assert_lt(gguf_open(&gguf, "/no/such/file", &err), 0);
    char path[] = "/tmp/evenflow-fifo-XXXXXX";
    cr_assert_not_null(mkdtemp(path));
    char fifo[64];
    snprintf(fifo, sizeof(fifo), "%s/fifo", path);
    cr_assert_eq(mkfifo(fifo, 0600), 0);
    cr_assert_lt(gguf_open(&gguf, fifo, &err), 0); /* and does not wait for a writer */
    unlink(fifo);
    rmdir(path);
    file.size = 0;
    cr_assert_lt(open_file(&gguf, &err), 0);
    cr_assert(strstr(err.text, "empty"));
}

/* ---- files in parts ---- */

static void put_u16_entry(const char *key, uint16_t value)
{
    put_string(key);
    put_u32(2);
    put(&value, sizeof(value));
}

/* A part with one tensor of four floats, all of them its number. */
static void write_part(const char *folder, uint16_t number, uint16_t count, uint16_t claimed_number)
{
    char path[128], name[32];
    snprintf(path, sizeof(path), "%s/m-%05u-of-%05u.gguf", folder, number, count);
    snprintf(name, sizeof(name), "t%u", number);
    put_head(3, 1, 2);
    put_u16_entry("split.no", (uint16_t)(claimed_number - 1));
    put_u16_entry("split.count", count);
    put_tensor(name, 0, 4, 1, 0);
    while (file.size % 32 != 0)
        put("", 1);
    for (int i = 0; i < 4; i++) {
        float value = number;
        put(&value, sizeof(value));
    }
    FILE *out = fopen(path, "we");
    cr_assert_not_null(out);
    cr_assert_eq(fwrite(file.bytes, 1, file.size, out), file.size);
    fclose(out);
}

static int open_parts(const char *folder, uint32_t number, struct gguf **gguf, struct err *err)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/m-%05u-of-00003.gguf", folder, number);
    return gguf_open(gguf, path, err);
}

Test(gguf, parts_are_one_model_and_a_missing_or_mistaken_one_is_named)
{
    char folder[] = "/tmp/evenflow-parts-XXXXXX", path[128];
    struct gguf *gguf;
    struct err err = {0};
    cr_assert_not_null(mkdtemp(folder));
    for (uint16_t number = 1; number <= 3; number++)
        write_part(folder, number, 3, number);
    cr_assert_eq(open_parts(folder, 1, &gguf, &err), 0, "%s", err.text);
    cr_assert_eq(gguf_tensor_count(gguf), 3);
    for (uint32_t number = 1; number <= 3; number++) {
        char name[32];
        float value;
        snprintf(name, sizeof(name), "t%u", number);
        const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
        cr_assert_not_null(tensor);
        memcpy(&value, tensor->data, sizeof(value));
        cr_expect_eq(value, number);
    }
    gguf_close(gguf);
    cr_expect_lt(open_parts(folder, 2, &gguf, &err), 0);
    cr_expect(strstr(err.text, "part 2 of 3"), "%s", err.text);
    write_part(folder, 3, 3, 2);
    cr_expect_lt(open_parts(folder, 1, &gguf, &err), 0);
    cr_expect(strstr(err.text, "not part 3"), "%s", err.text);
    for (uint32_t number = 3; number >= 1; number--) {
        snprintf(path, sizeof(path), "%s/m-%05u-of-00003.gguf", folder, number);
        unlink(path);
        if (number == 1)
            break;
        cr_expect_lt(open_parts(folder, 1, &gguf, &err), 0);
        cr_expect(strstr(err.text, "is missing"), "%s", err.text);
    }
    rmdir(folder);
}
