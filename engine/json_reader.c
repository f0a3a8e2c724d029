#include "engine/json_reader.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json_writer.h"

#define DEPTH_MAX        64u
#define NUMBER_BYTES_MAX 64u

struct reader {
    const char *at, *end;
    char *scratch; /* what is left of it */
};

static json_t *read_value(struct reader *r, uint32_t depth);

/* The next byte; 0 at the end. No byte of JSON's structure is 0. */
static char peek(const struct reader *r)
{
    return r->at < r->end ? *r->at : '\0';
}

static void skip_blanks(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t'))
        r->at++;
}

static bool take(struct reader *r, char c)
{
    if (peek(r) != c)
        return false;
    r->at++;
    return true;
}

static bool take_word(struct reader *r, const char *word, size_t size)
{
    if ((size_t)(r->end - r->at) < size || memcmp(r->at, word, size) != 0)
        return false;
    r->at += size;
    return true;
}

/* ---- strings ---- */

/* Four hexadecimal digits; -1: they are not there. */
static int32_t take_hex(struct reader *r)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = peek(r), letter = (char)(c | 0x20);
        int digit = c >= '0' && c <= '9' ? c - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
        r->at++;
    }
    return value;
}

/* The character behind "\u". -1: none. */
static int32_t take_unicode(struct reader *r)
{
    int32_t value = take_hex(r);
    if (value < 0xd800 || value > 0xdfff)
        return value;
    if (value > 0xdbff || !take(r, '\\') || !take(r, 'u'))
        return -1;
    int32_t low = take_hex(r);
    return low >= 0xdc00 && low <= 0xdfff ? 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00) : -1;
}

static size_t put_character(char *target, int32_t c)
{
    if (c < 0x80) {
        target[0] = (char)c;
        return 1;
    }
    size_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t heads[] = {[2] = 0xc0, [3] = 0xe0, [4] = 0xf0};
    for (size_t i = size; i-- > 1; c >>= 6)
        target[i] = (char)(0x80 | (c & 0x3f));
    target[0] = (char)(heads[size] | c);
    return size;
}

/* What follows a backslash, as bytes: it never has more than it took. 0: nothing that is known. */
static size_t take_escape(struct reader *r, char *target)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *name = memchr(names, peek(r), sizeof(names) - 1);
    if (name != NULL) {
        r->at++;
        target[0] = values[name - names];
        return 1;
    }
    int32_t c = take(r, 'u') ? take_unicode(r) : -1;
    return c >= 0 ? put_character(target, c) : 0;
}

/* Bytes up to a quote, a backslash or something that no string has. */
static size_t plain_size(const struct reader *r)
{
    const char *at = r->at;
    while (at < r->end && *at != '"' && *at != '\\' && (uint8_t)*at >= 0x20) {
        size_t size = (uint8_t)*at < 0x80 ? 1 : json_utf8_length((const uint8_t *)at, (size_t)(r->end - at));
        if (size == 0)
            break;
        at += size;
    }
    return (size_t)(at - r->at);
}

/* Behind the first quote. The text, in place or, where it has escapes, in the scratch; NULL: it is no string. */
static const char *take_string(struct reader *r, size_t *size)
{
    const char *first = r->at;
    *size = plain_size(r);
    r->at += *size;
    if (take(r, '"'))
        return first;
    char *target = r->scratch;
    memcpy(target, first, *size);
    while (!take(r, '"')) {
        size_t more = take(r, '\\') ? take_escape(r, target + *size) : 0;
        if (more == 0)
            return NULL;
        *size += more;
        size_t plain = plain_size(r);
        memcpy(target + *size, r->at, plain);
        *size += plain;
        r->at += plain;
    }
    r->scratch += *size; /* a key stays while its value is read */
    return target;
}

static json_t *read_string(struct reader *r)
{
    size_t size;
    const char *text = take_string(r, &size);
    return text != NULL ? json_stringn_nocheck(text, size) : NULL;
}

/* ---- numbers ---- */

static bool take_digits(struct reader *r)
{
    const char *first = r->at;
    while (peek(r) >= '0' && peek(r) <= '9')
        r->at++;
    return r->at > first;
}

static json_t *read_number(struct reader *r)
{
    char text[NUMBER_BYTES_MAX];
    const char *first = r->at;
    bool is_real = false;
    take(r, '-');
    if (!take(r, '0') && !take_digits(r))
        return NULL;
    if (take(r, '.')) {
        is_real = true;
        if (!take_digits(r))
            return NULL;
    }
    if (take(r, 'e') || take(r, 'E')) {
        is_real = true;
        if (!take(r, '-'))
            take(r, '+');
        if (!take_digits(r))
            return NULL;
    }
    size_t size = (size_t)(r->at - first);
    if (size >= sizeof(text))
        return NULL;
    memcpy(text, first, size);
    text[size] = '\0';
    errno = 0;
    if (!is_real) {
        long long integer = strtoll(text, NULL, 10);
        return errno == 0 ? json_integer(integer) : NULL;
    }
    double real = strtod(text, NULL);
    return isinf(real) ? NULL : json_real(real);
}

/* ---- arrays and objects ---- */

static json_t *give_up(json_t *value)
{
    json_decref(value);
    return NULL;
}

static json_t *read_array(struct reader *r, uint32_t depth)
{
    json_t *array = json_array();
    skip_blanks(r);
    if (take(r, ']'))
        return array;
    do {
        json_t *value = read_value(r, depth);
        if (value == NULL || json_array_append_new(array, value) != 0)
            return give_up(array);
    } while (take(r, ','));
    return take(r, ']') ? array : give_up(array);
}

static bool read_member(struct reader *r, json_t *object, uint32_t depth)
{
    size_t size;
    skip_blanks(r);
    const char *key = take(r, '"') ? take_string(r, &size) : NULL;
    if (key == NULL || memchr(key, '\0', size) != NULL || json_object_getn(object, key, size) != NULL)
        return false;
    skip_blanks(r);
    json_t *value = take(r, ':') ? read_value(r, depth) : NULL;
    return value != NULL && json_object_setn_new_nocheck(object, key, size, value) == 0;
}

static json_t *read_object(struct reader *r, uint32_t depth)
{
    json_t *object = json_object();
    skip_blanks(r);
    if (take(r, '}'))
        return object;
    do {
        if (!read_member(r, object, depth))
            return give_up(object);
    } while (take(r, ','));
    return take(r, '}') ? object : give_up(object);
}

/* With the blanks around it. */
static json_t *read_value(struct reader *r, uint32_t depth)
{
    json_t *value = NULL;
    skip_blanks(r);
    if (depth == DEPTH_MAX)
        return NULL;
    if (take(r, '"'))
        value = read_string(r);
    else if (take(r, '{'))
        value = read_object(r, depth + 1);
    else if (take(r, '['))
        value = read_array(r, depth + 1);
    else if (take_word(r, "true", 4))
        value = json_true();
    else if (take_word(r, "false", 5))
        value = json_false();
    else if (take_word(r, "null", 4))
        value = json_null();
    else
        value = read_number(r);
    skip_blanks(r);
    return value;
}

json_t *json_read(const char *text, size_t size, char *scratch)
{
    struct reader reader = {text, text + size, scratch};
    json_t *value = read_value(&reader, 0);
    return reader.at == reader.end ? value : give_up(value);
}
