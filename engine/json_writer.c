#include "engine/json_writer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void json_raw(struct json_writer *writer, const char *text, size_t size)
{
    check(size <= writer->room - writer->size);
    memcpy(writer->data + writer->size, text, size);
    writer->size += size;
}

void json_format(struct json_writer *writer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int size = vsnprintf(writer->data + writer->size, writer->room - writer->size, format, args);
    va_end(args);
    check(size >= 0 && (size_t)size < writer->room - writer->size);
    writer->size += (size_t)size;
}

void json_escaped(struct json_writer *writer, const char *text, size_t size)
{
    static const char short_forms[0x20] = {
        ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't',
    };
    static const char hex[] = "0123456789abcdef";
    size_t plain = 0; /* start of the run that needs no escape */
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        json_raw(writer, text + plain, i - plain);
        plain = i + 1;
        if (c >= 0x20)
            json_raw(writer, (char[]){'\\', (char)c}, 2);
        else if (short_forms[c] != 0)
            json_raw(writer, (char[]){'\\', short_forms[c]}, 2);
        else
            json_raw(writer, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
    }
    json_raw(writer, text + plain, size - plain);
}

void json_quoted(struct json_writer *writer, const char *text, size_t size)
{
    json_raw(writer, "\"", 1);
    json_escaped(writer, text, size);
    json_raw(writer, "\"", 1);
}

void json_number(struct json_writer *writer, uint64_t value)
{
    char digits[20];
    size_t first = sizeof(digits);
    do {
        digits[--first] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    json_raw(writer, digits + first, sizeof(digits) - first);
}

void json_hex(struct json_writer *writer, uint64_t value)
{
    char digits[16];
    for (size_t i = sizeof(digits); i-- > 0; value >>= 4)
        digits[i] = "0123456789abcdef"[value & 15];
    json_raw(writer, digits, sizeof(digits));
}

void json_float(struct json_writer *writer, float value)
{
    if (isnan(value) || isinf(value))
        value = value > 0 ? 9999.0f : -9999.0f;
    char text[32];
    /* 9 digits always do (IEEE 754 binary32); the fewest that do are the shortest decimal */
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    json_text(writer, text);
}

/* Bytes of the well-formed sequence at text (Unicode 15, table 3-7); 0: there is none. */
static size_t utf8_length(const uint8_t *text, size_t size)
{
    uint8_t c = text[0];
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (length == 0 || length > size)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    bool is_overlong = (c == 0xe0 && text[1] < 0xa0) || (c == 0xf0 && text[1] < 0x90);
    bool is_beyond = (c == 0xed && text[1] >= 0xa0) || (c == 0xf4 && text[1] >= 0x90);
    return is_overlong || is_beyond ? 0 : length;
}

size_t json_valid_utf8(char *target, const uint8_t *text, size_t size)
{
    size_t written = 0;
    while (size > 0) {
        size_t length = utf8_length(text, size);
        if (length > 0) {
            memcpy(target + written, text, length);
            written += length;
        } else {
            memcpy(target + written, "\xef\xbf\xbd", 3);
            written += 3;
            length = 1;
        }
        text += length;
        size -= length;
    }
    return written;
}
