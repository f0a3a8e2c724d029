#include "engine/unicode.h"

#include <string.h>

enum unicode_class unicode_class_of(uint32_t code)
{
    uint32_t low = 0, high = unicode_range_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (code > unicode_ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < unicode_range_count && code >= unicode_ranges[low].first)
        return unicode_ranges[low].kind;
    return UNICODE_OTHER;
}

uint32_t unicode_decode(const uint8_t *text, size_t size, uint32_t *code, int *needs_more)
{
    uint32_t length, value;
    uint8_t lead = text[0];
    if (needs_more != NULL)
        *needs_more = 0;
    if (lead < 0x80) {
        *code = lead;
        return 1;
    }
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
        value = lead & 0x1f;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        value = lead & 0x0f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        value = lead & 0x07;
    } else {
        return 0;
    }
    /* The second byte's limits exclude overlong forms, surrogates and what lies beyond U+10FFFF. */
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (uint32_t i = 1; i < length; i++, low = 0x80, high = 0xbf) {
        if (i == size) {
            if (needs_more != NULL)
                *needs_more = 1;
            return 0;
        }
        if (text[i] < low || text[i] > high)
            return 0;
        value = value << 6 | (text[i] & 0x3f);
    }
    *code = value;
    return length;
}

size_t unicode_cut_off_size(const uint8_t *text, size_t size)
{
    size_t part = 1;
    for (size_t more = 2; more < 4 && more <= size; more++) {
        uint32_t code;
        int needs_more;
        if (unicode_decode(text, more, &code, &needs_more) == 0 && needs_more)
            part = more;
        else
            break;
    }
    return part;
}

size_t unicode_repair(uint8_t *target, const uint8_t *text, size_t size)
{
    size_t out = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code, length = unicode_decode(text + at, size - at, &code, NULL);
        if (length > 0) {
            memcpy(target + out, text + at, length);
            out += length;
            at += length;
        } else {
            memcpy(target + out, "\xef\xbf\xbd", 3);
            out += 3;
            at += unicode_cut_off_size(text + at, size - at);
        }
    }
    return out;
}
