#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/jinja_internal.h"
#include "engine/unicode.h"

/* ---- arguments ---- */

static bool is_given(struct jinja_value value)
{
    return value.type != JINJA_ABSENT;
}

static bool flag(struct jinja_value value, bool fallback)
{
    return is_given(value) ? value_is_true(value) : fallback;
}

/* An argument that must be a whole number. */
static int64_t integer(struct jinja_run *run, const struct jinja_call *call, uint32_t index, int64_t fallback)
{
    struct jinja_value value = call->args[index];
    if (!is_given(value) || value.type == JINJA_NONE)
        return fallback;
    if (value.type != JINJA_INTEGER && value.type != JINJA_BOOLEAN) {
        jinja_fail(run, "%s: an integer is wanted, not %s", call->builtin->name, value_type_name(value));
        return fallback;
    }
    return value.type == JINJA_BOOLEAN ? value.boolean : value.integer;
}

/* An argument that must be a string. */
static struct jinja_text string(struct jinja_run *run, const struct jinja_call *call, uint32_t index)
{
    struct jinja_value value = call->args[index];
    if (value.type == JINJA_STRING)
        return value.text;
    jinja_fail(run, "%s: a string is wanted, not %s", call->builtin->name, value_type_name(value));
    return (struct jinja_text){.data = ""};
}

/* ---- characters ---- */

/* Case of the alphabets that have simple rules: Latin, Greek, Cyrillic. Other characters stay as they are. */
static uint32_t lower_of(uint32_t c)
{
    if ((c >= 'A' && c <= 'Z') || (c >= 0xc0 && c <= 0xde && c != 0xd7) || (c >= 0x391 && c <= 0x3a9 && c != 0x3a2) ||
        (c >= 0x410 && c <= 0x42f))
        return c + 32;
    if (c >= 0x400 && c <= 0x40f)
        return c + 80;
    if ((c >= 0x100 && c <= 0x137 && c != 0x130) || (c >= 0x14a && c <= 0x177) || (c >= 0x460 && c <= 0x481))
        return c | 1;
    return c >= 0x139 && c <= 0x148 ? c + (c & 1) : c;
}

static uint32_t upper_of(uint32_t c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 0xe0 && c <= 0xfe && c != 0xf7) || (c >= 0x3b1 && c <= 0x3c9 && c != 0x3c2) ||
        (c >= 0x430 && c <= 0x44f))
        return c - 32;
    if (c >= 0x450 && c <= 0x45f)
        return c - 80;
    if ((c >= 0x100 && c <= 0x137 && c != 0x131) || (c >= 0x14a && c <= 0x177) || (c >= 0x460 && c <= 0x481))
        return c & ~1u;
    return c >= 0x139 && c <= 0x148 ? c - !(c & 1) : c;
}

static bool is_cased(uint32_t c)
{
    return lower_of(c) != c || upper_of(c) != c || c == 0xdf;
}

static uint32_t character(struct jinja_text text, size_t at, uint32_t *length)
{
    uint32_t code;
    *length = unicode_decode((const uint8_t *)text.data + at, text.size - at, &code, NULL);
    check(*length > 0); /* what comes in is UTF-8, and is cut between characters only */
    return code;
}

/* The same characters in another case; the mark of each is its first byte's. */
static void put_cased(struct jinja_run *run, struct jinja_builder *out, struct jinja_text text, bool is_upper)
{
    for (size_t at = 0; at < text.size && jinja_is_on(run);) {
        uint32_t length, code = character(text, at, &length);
        uint32_t changed = is_upper ? upper_of(code) : lower_of(code);
        bool is_sharp_s = is_upper && code == 0xdf; /* its capital is two letters */
        if (changed == code && !is_sharp_s) {
            builder_put(run, out, text_part(text, at, length));
        } else { /* at most two bytes before and after */
            char bytes[2] = {(char)changed, 0};
            if (is_sharp_s) {
                memcpy(bytes, "SS", 2);
            } else if (changed >= 0x80) {
                bytes[0] = (char)(0xc0 | changed >> 6);
                bytes[1] = (char)(0x80 | (changed & 0x3f));
            }
            uint8_t trust[2] = {0};
            if (text.trust != NULL)
                trust[0] = trust[1] = text.trust[at];
            builder_put(run, out, (struct jinja_text){bytes, trust, changed < 0x80 && !is_sharp_s ? 1 : 2});
        }
        at += length;
    }
}

static struct jinja_value cased(struct jinja_run *run, struct jinja_text text, bool is_upper)
{
    struct jinja_builder out = {0};
    put_cased(run, &out, text, is_upper);
    return builder_value(&out);
}

static struct jinja_value do_upper(struct jinja_run *run, const struct jinja_call *call)
{
    return cased(run, value_str(run, call->self), true);
}

static struct jinja_value do_lower(struct jinja_run *run, const struct jinja_call *call)
{
    return cased(run, value_str(run, call->self), false);
}

static void put_capitalized(struct jinja_run *run, struct jinja_builder *out, struct jinja_text text)
{
    size_t first = text_offset(text, 1);
    put_cased(run, out, text_part(text, 0, first), true);
    put_cased(run, out, text_part(text, first, text.size - first), false);
}

static struct jinja_value do_capitalize(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_builder out = {0};
    put_capitalized(run, &out, value_str(run, call->self));
    return builder_value(&out);
}

/* Words begin behind blanks, '-' and opening brackets (the filter), or behind whatever is no letter (the method). */
static struct jinja_value title(struct jinja_run *run, struct jinja_text text, bool is_method)
{
    struct jinja_builder out = {0};
    bool is_first = true;
    for (size_t at = 0; at < text.size && jinja_is_on(run);) {
        uint32_t length, code = character(text, at, &length);
        bool divides = is_method
                           ? !is_cased(code)
                           : is_python_space(code) || (code > 0 && code < 0x80 && strchr("-({[<", (int)code) != NULL);
        put_cased(run, &out, text_part(text, at, length), is_first);
        is_first = divides;
        at += length;
    }
    return builder_value(&out);
}

static struct jinja_value do_title(struct jinja_run *run, const struct jinja_call *call)
{
    return title(run, value_str(run, call->self), false);
}

static struct jinja_value str_title(struct jinja_run *run, const struct jinja_call *call)
{
    return title(run, call->self.text, true);
}

/* ---- stripping and splitting ---- */

enum { STRIP_LEFT = 1, STRIP_RIGHT = 2 };

static bool is_stripped(struct jinja_text text, size_t at, uint32_t length, uint32_t code, const struct jinja_text *set)
{
    return set == NULL ? is_python_space(code) : memmem(set->data, set->size, text.data + at, length) != NULL;
}

static struct jinja_text strip(struct jinja_text text, int sides, const struct jinja_text *set)
{
    uint32_t length;
    while ((sides & STRIP_LEFT) && text.size > 0) {
        uint32_t code = character(text, 0, &length);
        if (!is_stripped(text, 0, length, code, set))
            break;
        text = text_part(text, length, text.size - length);
    }
    while ((sides & STRIP_RIGHT) && text.size > 0) {
        size_t at = text.size - 1;
        while (at > 0 && ((uint8_t)text.data[at] & 0xc0) == 0x80)
            at--;
        uint32_t code = character(text, at, &length);
        if (!is_stripped(text, at, length, code, set))
            break;
        text.size = at;
    }
    return text;
}

static struct jinja_value strip_call(struct jinja_run *run, const struct jinja_call *call, int sides)
{
    struct jinja_text text = value_str(run, call->self), set;
    bool has_set = is_given(call->args[0]) && call->args[0].type != JINJA_NONE;
    if (has_set)
        set = string(run, call, 0);
    jinja_step(run, text.size / 64);
    return jinja_is_on(run) ? value_text(strip(text, sides, has_set ? &set : NULL)) : call->self;
}

static struct jinja_value do_trim(struct jinja_run *run, const struct jinja_call *call)
{
    return strip_call(run, call, STRIP_LEFT | STRIP_RIGHT);
}

static struct jinja_value str_lstrip(struct jinja_run *run, const struct jinja_call *call)
{
    return strip_call(run, call, STRIP_LEFT);
}

static struct jinja_value str_rstrip(struct jinja_run *run, const struct jinja_call *call)
{
    return strip_call(run, call, STRIP_RIGHT);
}

/* Where other stands in text from `from` on; text.size + 1: nowhere. */
static size_t find(struct jinja_text text, size_t from, struct jinja_text other)
{
    const char *at = memmem(text.data + from, text.size - from, other.data, other.size);
    return at != NULL ? (size_t)(at - text.data) : text.size + 1;
}

static struct jinja_value split_words(struct jinja_run *run, struct jinja_text text, int64_t limit)
{
    struct jinja_value list = value_list(run, 0);
    text = strip(text, STRIP_LEFT, NULL);
    while (text.size > 0 && jinja_is_on(run)) {
        size_t at = 0;
        for (uint32_t length; at < text.size; at += length)
            if (is_python_space(character(text, at, &length)))
                break;
        if (limit-- == 0)
            at = text.size;
        struct jinja_text word = text_part(text, 0, at);
        value_append(run, list, value_text(at == text.size ? strip(word, STRIP_RIGHT, NULL) : word));
        text = strip(text_part(text, at, text.size - at), STRIP_LEFT, NULL);
    }
    return list;
}

static struct jinja_value str_split(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text;
    int64_t limit = integer(run, call, 1, -1);
    jinja_step(run, text.size / 64);
    if (!is_given(call->args[0]) || call->args[0].type == JINJA_NONE)
        return split_words(run, text, limit);
    struct jinja_text divider = string(run, call, 0);
    if (divider.size == 0)
        return jinja_fail(run, "split: the separator is empty");
    struct jinja_value list = value_list(run, 0);
    size_t from = 0, at;
    while (jinja_is_on(run) && limit-- != 0 && (at = find(text, from, divider)) <= text.size) {
        value_append(run, list, value_text(text_part(text, from, at - from)));
        from = at + divider.size;
    }
    value_append(run, list, value_text(text_part(text, from, text.size - from)));
    return list;
}

static struct jinja_value str_rsplit(struct jinja_run *run, const struct jinja_call *call)
{
    int64_t limit = integer(run, call, 1, -1);
    struct jinja_call all = *call;
    all.args[1] = (struct jinja_value){.type = JINJA_ABSENT};
    struct jinja_value parts = str_split(run, &all);
    if (!jinja_is_on(run) || limit < 0 || parts.list->count <= limit + 1)
        return parts;
    /* the first ones are one part: the text up to where the last of them ends */
    uint32_t joined = parts.list->count - (uint32_t)limit;
    struct jinja_text first = parts.list->items[0].text, last = parts.list->items[joined - 1].text;
    first.size = (size_t)(last.data + last.size - first.data);
    struct jinja_value list = value_list(run, 0);
    value_append(run, list, value_text(first));
    for (uint32_t i = joined; i < parts.list->count && jinja_is_on(run); i++)
        value_append(run, list, parts.list->items[i]);
    return list;
}

/* Bytes of the line end at `at`: as Python's splitlines() knows them; 0: none. */
static uint32_t line_end(struct jinja_text text, size_t at)
{
    uint32_t length, code = character(text, at, &length);
    if (code == '\r' && at + 1 < text.size && text.data[at + 1] == '\n')
        return 2;
    bool is_end = (code >= 10 && code <= 13) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
                  code == 0x2029;
    return is_end ? length : 0;
}

static struct jinja_value split_lines(struct jinja_run *run, struct jinja_text text, bool keeps_ends)
{
    struct jinja_value list = value_list(run, 0);
    size_t from = 0;
    jinja_step(run, text.size / 64);
    for (size_t at = 0; at < text.size && jinja_is_on(run);) {
        uint32_t end = line_end(text, at), length;
        if (end > 0) {
            value_append(run, list, value_text(text_part(text, from, at - from + (keeps_ends ? end : 0))));
            from = at + end;
        } else {
            character(text, at, &length);
            end = length;
        }
        at += end;
    }
    if (from < text.size)
        value_append(run, list, value_text(text_part(text, from, text.size - from)));
    return list;
}

static struct jinja_value str_splitlines(struct jinja_run *run, const struct jinja_call *call)
{
    return split_lines(run, call->self.text, flag(call->args[0], false));
}

static struct jinja_value partition(struct jinja_run *run, const struct jinja_call *call, bool is_last)
{
    struct jinja_text text = call->self.text, divider = string(run, call, 0);
    struct jinja_value parts = value_list(run, 3);
    if (!jinja_is_on(run) || divider.size == 0)
        return jinja_fail(run, "partition: the separator is empty");
    size_t at = find(text, 0, divider);
    for (size_t next = at; is_last && next <= text.size; next = find(text, next + 1, divider))
        at = next;
    bool is_found = at <= text.size;
    struct jinja_text none = {.data = ""};
    struct jinja_text before = is_found ? text_part(text, 0, at) : is_last ? none : text;
    struct jinja_text middle = is_found ? text_part(text, at, divider.size) : none;
    size_t behind = at + divider.size;
    struct jinja_text after = is_found ? text_part(text, behind, text.size - behind) : is_last ? text : none;
    parts.is_tuple = true;
    value_append(run, parts, value_text(before));
    value_append(run, parts, value_text(middle));
    value_append(run, parts, value_text(after));
    return parts;
}

static struct jinja_value str_partition(struct jinja_run *run, const struct jinja_call *call)
{
    return partition(run, call, false);
}

static struct jinja_value str_rpartition(struct jinja_run *run, const struct jinja_call *call)
{
    return partition(run, call, true);
}

static bool has_end(struct jinja_text text, struct jinja_text end, bool is_prefix)
{
    return end.size <= text.size && memcmp(text.data + (is_prefix ? 0 : text.size - end.size), end.data, end.size) == 0;
}

static struct jinja_value ends_call(struct jinja_run *run, const struct jinja_call *call, bool is_prefix)
{
    struct jinja_value end = call->args[0];
    if (end.type != JINJA_LIST)
        return jinja_bool(has_end(call->self.text, string(run, call, 0), is_prefix) && jinja_is_on(run));
    for (uint32_t i = 0; i < end.list->count; i++)
        if (end.list->items[i].type == JINJA_STRING && has_end(call->self.text, end.list->items[i].text, is_prefix))
            return jinja_bool(true);
    return jinja_bool(false);
}

static struct jinja_value str_startswith(struct jinja_run *run, const struct jinja_call *call)
{
    return ends_call(run, call, true);
}

static struct jinja_value str_endswith(struct jinja_run *run, const struct jinja_call *call)
{
    return ends_call(run, call, false);
}

static struct jinja_value str_removeprefix(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text, end = string(run, call, 0);
    return value_text(has_end(text, end, true) ? text_part(text, end.size, text.size - end.size) : text);
}

static struct jinja_value str_removesuffix(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text, end = string(run, call, 0);
    return value_text(has_end(text, end, false) ? text_part(text, 0, text.size - end.size) : text);
}

static struct jinja_value replace(struct jinja_run *run, const struct jinja_call *call, struct jinja_text text)
{
    struct jinja_text old = value_str(run, call->args[0]), new = value_str(run, call->args[1]);
    int64_t left = integer(run, call, 2, -1);
    struct jinja_builder out = {0};
    jinja_step(run, text.size / 64);
    for (size_t at = 0; jinja_is_on(run);) {
        size_t found = left == 0 ? text.size + 1 : find(text, at, old);
        if (found > text.size) {
            builder_put(run, &out, text_part(text, at, text.size - at));
            break;
        }
        left--;
        builder_put(run, &out, text_part(text, at, found - at));
        builder_put(run, &out, new);
        jinja_step(run, 1);
        at = found + old.size;
        if (old.size == 0) { /* between all characters, and at both ends */
            if (at == text.size)
                break;
            size_t one = text_offset(text_part(text, at, text.size - at), 1);
            builder_put(run, &out, text_part(text, at, one));
            at += one;
        }
    }
    return builder_value(&out);
}

static struct jinja_value do_replace(struct jinja_run *run, const struct jinja_call *call)
{
    return replace(run, call, value_str(run, call->self));
}

static struct jinja_value str_replace(struct jinja_run *run, const struct jinja_call *call)
{
    string(run, call, 0);
    string(run, call, 1);
    return replace(run, call, call->self.text);
}

/* The place of an argument in characters; -1: nowhere. */
static int64_t position(struct jinja_run *run, const struct jinja_call *call, bool is_last)
{
    struct jinja_text text = call->self.text, other = string(run, call, 0);
    size_t at = find(text, 0, other);
    jinja_step(run, text.size / 64);
    if (!jinja_is_on(run) || at > text.size)
        return -1;
    for (size_t next = at; is_last && next <= text.size;
         next = next < text.size ? find(text, next + 1, other) : next + 1)
        at = next;
    return (int64_t)text_length(text_part(text, 0, at));
}

static struct jinja_value str_find(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_integer(position(run, call, false));
}

static struct jinja_value str_rfind(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_integer(position(run, call, true));
}

static struct jinja_value str_index(struct jinja_run *run, const struct jinja_call *call)
{
    int64_t at = position(run, call, false);
    return at < 0 ? jinja_fail(run, "index: the text is not there") : jinja_integer(at);
}

static struct jinja_value str_count(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text, other = string(run, call, 0);
    int64_t count = 0;
    jinja_step(run, text.size / 64);
    if (other.size == 0)
        return jinja_integer((int64_t)text_length(text) + 1);
    for (size_t at = find(text, 0, other); at <= text.size; at = find(text, at + other.size, other))
        count++;
    return jinja_integer(count);
}

static struct jinja_value pad(struct jinja_run *run, const struct jinja_call *call, bool left, bool right)
{
    struct jinja_text text = value_str(run, call->self), blank = text_of(" ");
    int64_t width = integer(run, call, 0, 80), length = (int64_t)text_length(text);
    if (is_given(call->args[1]))
        blank = string(run, call, 1);
    if (text_length(blank) != 1)
        return jinja_fail(run, "%s: one character is wanted to fill with", call->builtin->name);
    int64_t missing = width > length ? width - length : 0;
    int64_t before = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
    struct jinja_builder out = {0};
    for (int64_t i = 0; i < missing && jinja_step(run, 1); i++) {
        if (i == before)
            builder_put(run, &out, text);
        builder_put(run, &out, blank);
    }
    if (before == missing)
        builder_put(run, &out, text);
    return builder_value(&out);
}

static struct jinja_value do_center(struct jinja_run *run, const struct jinja_call *call)
{
    return pad(run, call, true, true);
}

static struct jinja_value str_ljust(struct jinja_run *run, const struct jinja_call *call)
{
    return pad(run, call, false, true);
}

static struct jinja_value str_rjust(struct jinja_run *run, const struct jinja_call *call)
{
    return pad(run, call, true, false);
}

static struct jinja_value str_zfill(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text;
    int64_t missing = integer(run, call, 0, 0) - (int64_t)text_length(text);
    struct jinja_builder out = {0};
    size_t sign = text.size > 0 && (text.data[0] == '-' || text.data[0] == '+');
    builder_put(run, &out, text_part(text, 0, sign));
    for (int64_t i = 0; i < missing && jinja_step(run, 1); i++)
        builder_put_plain(run, &out, "0", 1);
    builder_put(run, &out, text_part(text, sign, text.size - sign));
    return builder_value(&out);
}

/* What every character of a text that is not empty must be. */
enum character_kind { IS_DIGIT = 1, IS_LETTER = 2, IS_SPACE = 4 };

static struct jinja_value all_are(struct jinja_run *run, const struct jinja_call *call, int kinds)
{
    struct jinja_text text = call->self.text;
    uint32_t length;
    jinja_step(run, text.size / 64);
    for (size_t at = 0; at < text.size; at += length) {
        uint32_t code = character(text, at, &length);
        enum unicode_class class = unicode_class_of(code);
        bool fits = ((kinds & IS_DIGIT) && class == UNICODE_NUMBER) ||
                    ((kinds & IS_LETTER) && class == UNICODE_LETTER) || ((kinds & IS_SPACE) && is_python_space(code));
        if (!fits)
            return jinja_bool(false);
    }
    return jinja_bool(text.size > 0);
}

static struct jinja_value str_isdigit(struct jinja_run *run, const struct jinja_call *call)
{
    return all_are(run, call, IS_DIGIT);
}

static struct jinja_value str_isalpha(struct jinja_run *run, const struct jinja_call *call)
{
    return all_are(run, call, IS_LETTER);
}

static struct jinja_value str_isalnum(struct jinja_run *run, const struct jinja_call *call)
{
    return all_are(run, call, IS_DIGIT | IS_LETTER);
}

static struct jinja_value str_isspace(struct jinja_run *run, const struct jinja_call *call)
{
    return all_are(run, call, IS_SPACE);
}

/* Has characters with case, and all of this one. */
static bool is_all_case(struct jinja_text text, bool is_upper)
{
    bool has_case = false;
    uint32_t length;
    for (size_t at = 0; at < text.size; at += length) {
        uint32_t code = character(text, at, &length);
        if (is_cased(code) && (is_upper ? upper_of(code) : lower_of(code)) != code)
            return false;
        has_case = has_case || is_cased(code);
    }
    return has_case;
}

static struct jinja_value is_upper(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(is_all_case(value_str(run, call->self), true));
}

static struct jinja_value is_lower(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(is_all_case(value_str(run, call->self), false));
}

/* ---- formatting ---- */

/* One conversion of '%': its flags, and the value as it stands there. */
static void put_conversion(struct jinja_run *run, struct jinja_builder *out, const char *spec, size_t size,
                           struct jinja_value value)
{
    char format[32], text[512];
    char kind = spec[size - 1];
    if (size > 16) {
        jinja_fail(run, "format: a conversion is too long");
        return;
    }
    memcpy(format, spec, size);
    if (kind == 's') {
        struct jinja_text shown = value_str(run, value);
        if (size == 2) {
            builder_put(run, out, shown);
            return;
        }
        char *dot = memchr(format, '.', size);
        int64_t width = strtol(format + 1 + (format[1] == '-'), NULL, 10);
        if (dot != NULL)
            shown = text_part(shown, 0, text_offset(shown, (size_t)strtoul(dot + 1, NULL, 10)));
        int64_t missing = width - (int64_t)text_length(shown);
        for (int64_t i = 0; i < missing && format[1] != '-' && jinja_step(run, 1); i++)
            builder_put_plain(run, out, " ", 1);
        builder_put(run, out, shown);
        for (int64_t i = 0; i < missing && format[1] == '-' && jinja_step(run, 1); i++)
            builder_put_plain(run, out, " ", 1);
        return;
    }
    if (!value_is_number(value)) {
        jinja_fail(run, "format: %%%c needs a number, not %s", kind, value_type_name(value));
        return;
    }
    int written;
    if (strchr("dixX", kind) != NULL) {
        memcpy(format + size - 1, "ll", 2);
        format[size + 1] = kind;
        format[size + 2] = '\0';
        double number = value_number(value);
        if (value.type == JINJA_FLOAT && !(fabs(number) < 9e18)) {
            jinja_fail(run, "format: a number is too large");
            return;
        }
        long long whole = value.type == JINJA_INTEGER ? value.integer : (long long)number;
        written = snprintf(text, sizeof(text), format, whole); /* NOLINT: checked by put_format() */
    } else {
        format[size] = '\0';
        written = snprintf(text, sizeof(text), format, value_number(value)); /* NOLINT: likewise */
    }
    builder_put_plain(run, out, text, min_u64((uint64_t)written, sizeof(text) - 1));
}

/* '%' conversions s d i x X f e g with flags, width and precision. */
static struct jinja_value do_format(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = value_str(run, call->self);
    struct jinja_builder out = {0};
    uint32_t next = 0;
    if (call->named != NULL && call->named->count > 0)
        return jinja_fail(run, "format: names are not supported");
    for (size_t at = 0, end; at < text.size && jinja_is_on(run); at = end) {
        const char *percent = memchr(text.data + at, '%', text.size - at);
        end = percent != NULL ? (size_t)(percent - text.data) : text.size;
        builder_put(run, &out, text_part(text, at, end - at));
        if (percent == NULL)
            break;
        size_t size = 1;
        while (end + size < text.size && strchr("-+ 0123456789.", percent[size]) != NULL && percent[size] != '\0')
            size++;
        char kind = end + size < text.size ? percent[size++] : '\0';
        if (kind == '%' && size == 2)
            builder_put(run, &out, text_part(text, end, 1));
        else if (kind == '\0' || strchr("sdixXfeg", kind) == NULL)
            jinja_fail(run, "format: a conversion that is not supported");
        else if (next >= call->all->count)
            jinja_fail(run, "format: more conversions than values");
        else
            put_conversion(run, &out, percent, size, call->all->items[next++]);
        end += size;
    }
    if (next < call->all->count)
        jinja_fail(run, "format: more values than conversions");
    return builder_value(&out);
}

/* '{}', '{0}' and '{name}', without format specifications. */
static struct jinja_value str_format(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text;
    struct jinja_builder out = {0};
    uint32_t next = 0;
    for (size_t at = 0; at < text.size && jinja_is_on(run);) {
        char c = text.data[at];
        bool is_double = at + 1 < text.size && text.data[at + 1] == c;
        if ((c != '{' && c != '}') || is_double) {
            builder_put(run, &out, text_part(text, at, 1));
            at += c == '{' || c == '}' ? 2 : 1;
            continue;
        }
        const char *close = c == '{' ? memchr(text.data + at, '}', text.size - at) : NULL;
        if (close == NULL)
            return jinja_fail(run, "format: a brace is alone");
        struct jinja_text name = text_part(text, at + 1, (size_t)(close - text.data) - at - 1);
        bool is_index = name.size > 0 && strspn(name.data, "0123456789") >= name.size;
        uint64_t index = name.size == 0              ? next++
                         : is_index && name.size < 6 ? strtoul(name.data, NULL, 10)
                                                     : UINT32_MAX;
        const struct jinja_value *value = name.size == 0 || is_index
                                              ? index < call->all->count ? &call->all->items[index] : NULL
                                          : call->named != NULL ? jinja_find(call->named, name.data, name.size)
                                                                : NULL;
        if (value == NULL)
            return jinja_fail(run, "format: no value for {%.*s}", (int)min_u64(name.size, 32), name.data);
        builder_put(run, &out, value_str(run, *value));
        at += name.size + 2;
    }
    return builder_value(&out);
}

static struct jinja_value do_string(struct jinja_run *run, const struct jinja_call *call)
{
    return value_text(value_str(run, call->self));
}

static struct jinja_value do_safe(struct jinja_run *run, const struct jinja_call *call)
{
    (void)run;
    return call->self;
}

static struct jinja_value do_indent(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = call->self.text;
    if (call->self.type != JINJA_STRING)
        return jinja_fail(run, "indent: a string is wanted, not %s", value_type_name(call->self));
    bool indents_first = flag(call->args[1], false), indents_blank = flag(call->args[2], false);
    struct jinja_builder blanks = {0}, out = {0};
    if (call->args[0].type == JINJA_STRING)
        builder_put(run, &blanks, call->args[0].text);
    int64_t width = call->args[0].type == JINJA_STRING ? 0 : integer(run, call, 0, 4);
    for (int64_t i = 0; i < width && jinja_step(run, 1); i++)
        builder_put_plain(run, &blanks, " ", 1);
    struct jinja_text indent = builder_value(&blanks).text;
    struct jinja_value lines = split_lines(run, text, false);
    /* jinja2 adds a newline before it splits: a last empty line counts, and an empty text has one */
    bool has_last = text.size == 0 || (jinja_is_on(run) && text.data[text.size - 1] == '\n');
    if (has_last)
        value_append(run, lines, jinja_string("", 0));
    for (uint32_t i = 0; jinja_is_on(run) && i < lines.list->count; i++) {
        struct jinja_text line = lines.list->items[i].text;
        if (i > 0)
            builder_put_plain(run, &out, "\n", 1);
        if (i == 0 ? indents_first : indents_blank || line.size > 0)
            builder_put(run, &out, indent);
        builder_put(run, &out, line);
    }
    return builder_value(&out);
}

/* ---- numbers ---- */

static struct jinja_value do_abs(struct jinja_run *run, const struct jinja_call *call)
{
    if (call->self.type == JINJA_FLOAT)
        return jinja_float(fabs(call->self.number));
    if (!value_is_number(call->self) || (call->self.type == JINJA_INTEGER && call->self.integer == INT64_MIN))
        return jinja_fail(run, "abs: a number is wanted, not %s", value_type_name(call->self));
    return jinja_integer(llabs(call->self.type == JINJA_INTEGER ? call->self.integer : call->self.boolean));
}

/* Text as a number in all its length, blanks around it aside. */
static bool parse_number(struct jinja_text text, double *number, int64_t *whole, bool *is_whole)
{
    char copy[128], *end;
    text = strip(text, STRIP_LEFT | STRIP_RIGHT, NULL);
    if (text.size == 0 || text.size >= sizeof(copy))
        return false;
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    errno = 0;
    *whole = strtoll(copy, &end, 10);
    *is_whole = end == copy + text.size && errno == 0;
    *number = strtod(copy, &end);
    return end == copy + text.size && strpbrk(copy, "xXpP") == NULL;
}

static struct jinja_value do_int(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_value value = call->self, fallback = is_given(call->args[0]) ? call->args[0] : jinja_integer(0);
    double number = value_is_number(value) ? value_number(value) : NAN;
    int64_t whole;
    bool is_whole = false;
    if (integer(run, call, 1, 10) != 10)
        return jinja_fail(run, "int: bases other than 10 are not supported");
    if (value.type == JINJA_INTEGER)
        return value;
    if (value.type == JINJA_STRING && !parse_number(value.text, &number, &whole, &is_whole))
        return fallback;
    if (is_whole)
        return jinja_integer(whole);
    return fabs(number) < 9.2e18 ? jinja_integer((int64_t)number) : fallback;
}

static struct jinja_value do_float(struct jinja_run *run, const struct jinja_call *call)
{
    double number = value_is_number(call->self) ? value_number(call->self) : 0;
    int64_t whole;
    bool is_whole;
    (void)run;
    bool is_number = value_is_number(call->self) ||
                     (call->self.type == JINJA_STRING && parse_number(call->self.text, &number, &whole, &is_whole));
    return is_number ? jinja_float(number) : is_given(call->args[0]) ? call->args[0] : jinja_float(0);
}

static struct jinja_value do_round(struct jinja_run *run, const struct jinja_call *call)
{
    int64_t precision = integer(run, call, 0, 0);
    struct jinja_text method = is_given(call->args[1]) ? string(run, call, 1) : text_of("common");
    if (!value_is_number(call->self) || precision < -300 || precision > 300)
        return jinja_fail(run, "round: a number is wanted, not %s", value_type_name(call->self));
    double number = value_number(call->self), scale = pow(10, (double)precision);
    if (text_is(method, "ceil") || text_is(method, "floor"))
        return jinja_float((method.data[0] == 'c' ? ceil(number * scale) : floor(number * scale)) / scale);
    if (!text_is(method, "common"))
        return jinja_fail(run, "round: common, ceil or floor");
    if (call->self.type != JINJA_FLOAT && precision >= 0)
        return call->self.type == JINJA_INTEGER ? call->self : jinja_integer(call->self.boolean);
    if (precision < 0)
        return jinja_float(nearbyint(number * scale) / scale);
    char text[700]; /* printing rounds the exact value, halves to even: what Python does */
    snprintf(text, sizeof(text), "%.*f", (int)precision, number);
    return jinja_float(strtod(text, NULL));
}

/* ---- lists ---- */

static struct jinja_list *items_of(struct jinja_run *run, struct jinja_value value)
{
    struct jinja_list *items = jinja_is_on(run) ? value_items(run, value) : NULL;
    static struct jinja_list none; /* after a failure: nothing to walk over */
    return items != NULL ? items : &none;
}

/* item.one.two of a path "one.two"; numbers are indices. */
static struct jinja_value follow(struct jinja_run *run, struct jinja_value item, struct jinja_value path)
{
    if (path.type == JINJA_INTEGER)
        return value_item(run, item, path);
    if (path.type != JINJA_STRING)
        return jinja_fail(run, "an attribute must be a name, not %s", value_type_name(path));
    struct jinja_text rest = path.text;
    while (jinja_is_on(run)) {
        size_t dot = min_u64(find(rest, 0, text_of(".")), rest.size);
        struct jinja_text name = text_part(rest, 0, dot);
        bool is_index = name.size > 0 && name.size < 10;
        int64_t index = 0;
        for (size_t i = 0; i < name.size && is_index; i++) {
            is_index = isdigit((unsigned char)name.data[i]);
            index = 10 * index + (name.data[i] - '0');
        }
        item = value_item(run, item, is_index ? jinja_integer(index) : value_text(name));
        if (dot == rest.size)
            break;
        rest = text_part(rest, dot + 1, rest.size - dot - 1);
    }
    return item;
}

static struct jinja_value do_length(struct jinja_run *run, const struct jinja_call *call)
{
    switch (call->self.type) {
    case JINJA_STRING:
        jinja_step(run, call->self.text.size / 64);
        return jinja_integer((int64_t)text_length(call->self.text));
    case JINJA_LIST:
        return jinja_integer(call->self.list->count);
    case JINJA_DICT:
        return jinja_integer(call->self.dict->count);
    case JINJA_UNDEFINED:
        return jinja_integer(0);
    default:
        return jinja_fail(run, "%s has no length", value_type_name(call->self));
    }
}

static struct jinja_value do_first(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self);
    return items->count > 0 ? items->items[0] : value_undefined(text_of("the first of nothing"));
}

static struct jinja_value do_last(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self);
    return items->count > 0 ? items->items[items->count - 1] : value_undefined(text_of("the last of nothing"));
}

static struct jinja_value do_list(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self);
    return (struct jinja_value){.type = JINJA_LIST, .list = items};
}

static struct jinja_value do_reverse(struct jinja_run *run, const struct jinja_call *call)
{
    const struct jinja_value bounds[3] = {{.type = JINJA_ABSENT}, {.type = JINJA_ABSENT}, jinja_integer(-1)};
    if (call->self.type == JINJA_STRING)
        return value_slice(run, call->self, bounds);
    struct jinja_list *items = items_of(run, call->self);
    return jinja_is_on(run) ? value_slice(run, (struct jinja_value){.type = JINJA_LIST, .list = items}, bounds)
                            : call->self;
}

static struct jinja_value join(struct jinja_run *run, struct jinja_list *items, struct jinja_text between,
                               struct jinja_value attribute)
{
    struct jinja_builder out = {0};
    for (uint32_t i = 0; i < items->count && jinja_step(run, 1); i++) {
        struct jinja_value item = items->items[i];
        if (is_given(attribute) && attribute.type != JINJA_NONE)
            item = follow(run, item, attribute);
        if (i > 0)
            builder_put(run, &out, between);
        if (jinja_is_on(run))
            builder_put(run, &out, value_str(run, item));
    }
    return builder_value(&out);
}

static struct jinja_value do_join(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text between = is_given(call->args[0]) ? value_str(run, call->args[0]) : text_of("");
    return join(run, items_of(run, call->self), between, call->args[1]);
}

static struct jinja_value str_join(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->args[0]);
    for (uint32_t i = 0; i < items->count; i++)
        if (items->items[i].type != JINJA_STRING)
            return jinja_fail(run, "join: strings are wanted, not %s", value_type_name(items->items[i]));
    return join(run, items, call->self.text, (struct jinja_value){.type = JINJA_ABSENT});
}

/* What a value is compared by: an attribute, in small letters unless case counts. */
static struct jinja_value sort_key(struct jinja_run *run, struct jinja_value item, struct jinja_value attribute,
                                   bool is_case_sensitive)
{
    if (is_given(attribute) && attribute.type != JINJA_NONE)
        item = follow(run, item, attribute);
    return item.type == JINJA_STRING && !is_case_sensitive ? cased(run, item.text, false) : item;
}

/* Merges sorted halves of items and their keys, through scratch of the same size. Equal keys keep their order. */
static void merge_sort(struct jinja_run *run, struct jinja_value *items, struct jinja_value *keys,
                       struct jinja_value *scratch, uint32_t count, bool is_reverse)
{
    if (count < 2 || !jinja_step(run, count))
        return;
    uint32_t half = count / 2, left = 0, right = half;
    merge_sort(run, items, keys, scratch, half, is_reverse);
    merge_sort(run, items + half, keys + half, scratch, count - half, is_reverse);
    for (uint32_t i = 0; i < count && jinja_is_on(run); i++) {
        bool takes_left = left < half;
        if (takes_left && right < count) {
            int order = value_order(run, keys[left], keys[right]);
            takes_left = is_reverse ? order >= 0 : order <= 0;
        }
        uint32_t from = takes_left ? left++ : right++;
        scratch[2 * i] = items[from];
        scratch[2 * i + 1] = keys[from];
    }
    for (uint32_t i = 0; i < count && jinja_is_on(run); i++) {
        items[i] = scratch[2 * i];
        keys[i] = scratch[2 * i + 1];
    }
}

static struct jinja_value sorted(struct jinja_run *run, struct jinja_list *items, struct jinja_value attribute,
                                 bool is_case_sensitive, bool is_reverse)
{
    struct jinja_value list = value_list(run, items->count), keys = value_list(run, items->count);
    for (uint32_t i = 0; i < items->count && jinja_is_on(run); i++) {
        value_append(run, list, items->items[i]);
        value_append(run, keys, sort_key(run, items->items[i], attribute, is_case_sensitive));
    }
    struct jinja_value *scratch = jinja_run_take(run, 2 * items->count * sizeof(*scratch));
    if (scratch != NULL)
        merge_sort(run, list.list->items, keys.list->items, scratch, items->count, is_reverse);
    return list;
}

static struct jinja_value do_sort(struct jinja_run *run, const struct jinja_call *call)
{
    return sorted(run, items_of(run, call->self), call->args[2], flag(call->args[1], false),
                  flag(call->args[0], false));
}

static struct jinja_value pair_of(struct jinja_run *run, const struct jinja_pair *pair)
{
    struct jinja_value tuple = value_list(run, 2);
    tuple.is_tuple = true;
    value_append(run, tuple, pair->key);
    value_append(run, tuple, pair->value);
    return tuple;
}

static struct jinja_value pairs_of(struct jinja_run *run, struct jinja_value value)
{
    if (value.type == JINJA_UNDEFINED)
        return value_list(run, 0);
    if (value.type != JINJA_DICT)
        return jinja_fail(run, "a mapping is wanted, not %s", value_type_name(value));
    struct jinja_value list = value_list(run, value.dict->count);
    for (uint32_t i = 0; i < value.dict->count && jinja_is_on(run); i++)
        value_append(run, list, pair_of(run, &value.dict->pairs[i]));
    return list;
}

static struct jinja_value do_items(struct jinja_run *run, const struct jinja_call *call)
{
    return pairs_of(run, call->self);
}

static struct jinja_value do_dictsort(struct jinja_run *run, const struct jinja_call *call)
{
    bool by_value = is_given(call->args[1]) && text_is(string(run, call, 1), "value");
    struct jinja_value pairs = pairs_of(run, call->self);
    if (!jinja_is_on(run))
        return pairs;
    return sorted(run, pairs.list, jinja_integer(by_value), flag(call->args[0], false), flag(call->args[2], false));
}

static struct jinja_value do_unique(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self);
    struct jinja_value list = value_list(run, 0), seen = value_list(run, 0);
    for (uint32_t i = 0; i < items->count && jinja_is_on(run); i++) {
        struct jinja_value key = sort_key(run, items->items[i], call->args[1], flag(call->args[0], false));
        if (!jinja_is_on(run) || value_contains(run, seen, key))
            continue;
        value_append(run, seen, key);
        value_append(run, list, items->items[i]);
    }
    return list;
}

static struct jinja_value extreme(struct jinja_run *run, const struct jinja_call *call, int wanted)
{
    struct jinja_list *items = items_of(run, call->self);
    struct jinja_value best = value_undefined(text_of("the extreme of nothing")), best_key = best;
    for (uint32_t i = 0; i < items->count && jinja_is_on(run); i++) {
        struct jinja_value key = sort_key(run, items->items[i], call->args[1], flag(call->args[0], false));
        if (i == 0 || value_order(run, key, best_key) * wanted > 0) {
            best = items->items[i];
            best_key = key;
        }
    }
    return best;
}

static struct jinja_value do_max(struct jinja_run *run, const struct jinja_call *call)
{
    return extreme(run, call, 1);
}

static struct jinja_value do_min(struct jinja_run *run, const struct jinja_call *call)
{
    return extreme(run, call, -1);
}

static struct jinja_value do_sum(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self);
    struct jinja_value sum = is_given(call->args[1]) ? call->args[1] : jinja_integer(0);
    for (uint32_t i = 0; i < items->count && jinja_step(run, 1); i++) {
        struct jinja_value item = items->items[i];
        if (is_given(call->args[0]) && call->args[0].type != JINJA_NONE)
            item = follow(run, item, call->args[0]);
        sum = jinja_arithmetic(run, SIGN_ADD, sum, item);
    }
    return sum;
}

/* The arguments of a call from `first` on. */
static struct jinja_list rest_of(const struct jinja_list *all, uint32_t first)
{
    uint32_t skipped = (uint32_t)min_u64(first, all->count);
    return (struct jinja_list){.items = all->items + skipped, .count = all->count - skipped};
}

static struct jinja_value do_map(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_list *items = items_of(run, call->self), rest = rest_of(call->all, 1);
    const struct jinja_value *attribute = call->named != NULL ? jinja_find(call->named, "attribute", 9) : NULL;
    const struct jinja_value *fallback = call->named != NULL ? jinja_find(call->named, "default", 7) : NULL;
    const struct jinja_builtin *filter = NULL;
    if (attribute == NULL && call->all->count > 0 && call->all->items[0].type == JINJA_STRING)
        filter = jinja_filter(call->all->items[0].text);
    if (attribute == NULL && filter == NULL)
        return jinja_fail(run, "map: an attribute or the name of a filter is wanted");
    struct jinja_value list = value_list(run, 0);
    for (uint32_t i = 0; i < items->count && jinja_is_on(run); i++) {
        struct jinja_value item = items->items[i];
        if (filter != NULL)
            item = jinja_call_builtin(run, filter, item, &rest, call->named);
        else
            item = follow(run, item, *attribute);
        if (filter == NULL && item.type == JINJA_UNDEFINED && fallback != NULL)
            item = *fallback;
        value_append(run, list, item);
    }
    return list;
}

/* Items that pass a test (or do not), themselves or by an attribute; without a test: that are true. */
static struct jinja_value selected(struct jinja_run *run, const struct jinja_call *call, bool by_attribute, bool wanted)
{
    struct jinja_list *items = items_of(run, call->self);
    uint32_t test_index = by_attribute ? 1 : 0;
    struct jinja_list rest = rest_of(call->all, test_index + 1);
    const struct jinja_builtin *test = NULL;
    if (call->all->count > test_index) {
        struct jinja_value name = call->all->items[test_index];
        test = name.type == JINJA_STRING ? jinja_test(name.text) : NULL;
        if (test == NULL)
            return jinja_fail(run, "%s: the name of a test is wanted", call->builtin->name);
    }
    struct jinja_value list = value_list(run, 0);
    for (uint32_t i = 0; i < items->count && jinja_is_on(run); i++) {
        struct jinja_value item = items->items[i];
        if (by_attribute)
            item = follow(run, item, call->all->items[0]);
        if (test != NULL && jinja_is_on(run))
            item = jinja_call_builtin(run, test, item, &rest, NULL);
        if (jinja_is_on(run) && value_is_true(item) == wanted)
            value_append(run, list, items->items[i]);
    }
    return list;
}

static struct jinja_value do_select(struct jinja_run *run, const struct jinja_call *call)
{
    return selected(run, call, false, true);
}

static struct jinja_value do_reject(struct jinja_run *run, const struct jinja_call *call)
{
    return selected(run, call, false, false);
}

static struct jinja_value do_selectattr(struct jinja_run *run, const struct jinja_call *call)
{
    return selected(run, call, true, true);
}

static struct jinja_value do_rejectattr(struct jinja_run *run, const struct jinja_call *call)
{
    return selected(run, call, true, false);
}

static struct jinja_value do_default(struct jinja_run *run, const struct jinja_call *call)
{
    bool is_missing = call->self.type == JINJA_UNDEFINED || (flag(call->args[1], false) && !value_is_true(call->self));
    (void)run;
    return !is_missing ? call->self : is_given(call->args[0]) ? call->args[0] : jinja_string("", 0);
}

static struct jinja_value do_attr(struct jinja_run *run, const struct jinja_call *call)
{
    return call->self.type == JINJA_DICT ? value_undefined(string(run, call, 0))
                                         : value_attribute(run, call->self, string(run, call, 0));
}

static struct jinja_value do_wordcount(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text text = value_str(run, call->self);
    int64_t count = 0;
    bool is_inside = false;
    uint32_t length;
    for (size_t at = 0; at < text.size && jinja_is_on(run); at += length) {
        uint32_t code = character(text, at, &length);
        enum unicode_class class = unicode_class_of(code);
        bool is_word = class == UNICODE_LETTER || class == UNICODE_NUMBER || code == '_';
        count += is_word && !is_inside;
        is_inside = is_word;
    }
    return jinja_integer(count);
}

static struct jinja_value do_tojson(struct jinja_run *run, const struct jinja_call *call)
{
    struct json_style style = {.indent = integer(run, call, 1, -1),
                               .is_ascii = flag(call->args[0], false),
                               .sorts_keys = flag(call->args[3], false)};
    style.item_separator = text_of(style.indent >= 0 ? "," : ", ");
    style.key_separator = text_of(": ");
    struct jinja_value separators = call->args[2];
    if (separators.type == JINJA_LIST && separators.list->count == 2) {
        style.item_separator = value_str(run, separators.list->items[0]);
        style.key_separator = value_str(run, separators.list->items[1]);
    }
    struct jinja_builder out = {0};
    value_json(run, &out, call->self, &style, 0);
    return builder_value(&out);
}

static struct jinja_value list_count(struct jinja_run *run, const struct jinja_call *call)
{
    int64_t count = 0;
    for (uint32_t i = 0; i < call->self.list->count && jinja_is_on(run); i++)
        count += value_equal(run, call->self.list->items[i], call->args[0]);
    return jinja_integer(count);
}

static struct jinja_value list_index(struct jinja_run *run, const struct jinja_call *call)
{
    for (uint32_t i = 0; i < call->self.list->count && jinja_is_on(run); i++)
        if (value_equal(run, call->self.list->items[i], call->args[0]))
            return jinja_integer(i);
    return jinja_fail(run, "index: it is not in the list");
}

static struct jinja_value dict_get(struct jinja_run *run, const struct jinja_call *call)
{
    if (value_contains(run, call->self, call->args[0])) {
        /* an item, never a method of that name */
        for (uint32_t i = 0; i < call->self.dict->count; i++)
            if (value_equal(run, call->self.dict->pairs[i].key, call->args[0]))
                return call->self.dict->pairs[i].value;
    }
    return is_given(call->args[1]) ? call->args[1] : jinja_none();
}

static struct jinja_value dict_keys(struct jinja_run *run, const struct jinja_call *call)
{
    return (struct jinja_value){.type = JINJA_LIST, .list = items_of(run, call->self)};
}

static struct jinja_value dict_values(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_value list = value_list(run, call->self.dict->count);
    for (uint32_t i = 0; i < call->self.dict->count && jinja_is_on(run); i++)
        value_append(run, list, call->self.dict->pairs[i].value);
    return list;
}

static struct jinja_value loop_cycle(struct jinja_run *run, const struct jinja_call *call)
{
    if (call->all->count == 0)
        return jinja_fail(run, "cycle: no values");
    return call->all->items[call->self.loop->index % call->all->count];
}

static struct jinja_value loop_changed(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_value now = {.type = JINJA_LIST, .list = call->all};
    struct jinja_value *last = &call->self.loop->changed;
    bool is_changed = last->type != JINJA_LIST || !value_equal(run, *last, now);
    *last = now;
    return jinja_bool(is_changed);
}

/* ---- tests ---- */

#define TYPE_TEST(name, condition)                                                                                     \
    static struct jinja_value name(struct jinja_run *run, const struct jinja_call *call)                               \
    {                                                                                                                  \
        struct jinja_value self = call->self;                                                                          \
        (void)run;                                                                                                     \
        return jinja_bool(condition);                                                                                  \
    }

TYPE_TEST(is_defined, self.type != JINJA_UNDEFINED)
TYPE_TEST(is_undefined, self.type == JINJA_UNDEFINED)
TYPE_TEST(is_none, self.type == JINJA_NONE)
TYPE_TEST(is_boolean, self.type == JINJA_BOOLEAN)
TYPE_TEST(is_true, self.type == JINJA_BOOLEAN && self.boolean)
TYPE_TEST(is_false, self.type == JINJA_BOOLEAN && !self.boolean)
TYPE_TEST(is_integer, self.type == JINJA_INTEGER)
TYPE_TEST(is_float, self.type == JINJA_FLOAT)
TYPE_TEST(is_number, value_is_number(self))
TYPE_TEST(is_string, self.type == JINJA_STRING)
TYPE_TEST(is_mapping, self.type == JINJA_DICT)
TYPE_TEST(is_iterable, self.type == JINJA_STRING || self.type == JINJA_LIST || self.type == JINJA_DICT ||
                           self.type == JINJA_UNDEFINED || self.type == JINJA_LOOP)
TYPE_TEST(is_sequence, self.type == JINJA_STRING || self.type == JINJA_LIST || self.type == JINJA_DICT ||
                           self.type == JINJA_UNDEFINED)
TYPE_TEST(is_callable, self.type == JINJA_MACRO || self.type == JINJA_FUNCTION || self.type == JINJA_METHOD)

/* self modulo a divisor is this rest. */
static struct jinja_value has_rest(struct jinja_run *run, const struct jinja_call *call, int64_t divisor, int64_t rest)
{
    struct jinja_value value = jinja_arithmetic(run, SIGN_MODULO, call->self, jinja_integer(divisor));
    return jinja_bool(value_is_number(value) && value_number(value) == (double)rest);
}

static struct jinja_value is_odd(struct jinja_run *run, const struct jinja_call *call)
{
    return has_rest(run, call, 2, 1);
}

static struct jinja_value is_even(struct jinja_run *run, const struct jinja_call *call)
{
    return has_rest(run, call, 2, 0);
}

static struct jinja_value is_divisible(struct jinja_run *run, const struct jinja_call *call)
{
    return has_rest(run, call, integer(run, call, 0, 0), 0);
}

static struct jinja_value is_equal(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_equal(run, call->self, call->args[0]));
}

static struct jinja_value is_not_equal(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(!value_equal(run, call->self, call->args[0]));
}

static struct jinja_value is_less(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_order(run, call->self, call->args[0]) < 0);
}

static struct jinja_value is_at_most(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_order(run, call->self, call->args[0]) <= 0);
}

static struct jinja_value is_greater(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_order(run, call->self, call->args[0]) > 0);
}

static struct jinja_value is_at_least(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_order(run, call->self, call->args[0]) >= 0);
}

static struct jinja_value is_in(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(value_contains(run, call->args[0], call->self));
}

static struct jinja_value is_same(struct jinja_run *run, const struct jinja_call *call)
{
    return jinja_bool(call->self.type == call->args[0].type && value_equal(run, call->self, call->args[0]));
}

/* ---- functions ---- */

static struct jinja_value fn_range(struct jinja_run *run, const struct jinja_call *call)
{
    bool has_two = is_given(call->args[1]);
    int64_t first = has_two ? integer(run, call, 0, 0) : 0, last = integer(run, call, has_two ? 1 : 0, 0);
    int64_t step = integer(run, call, 2, 1);
    if (step == 0)
        return jinja_fail(run, "range: step 0");
    struct jinja_value list = value_list(run, 0);
    for (int64_t i = first; jinja_is_on(run) && (step > 0 ? i < last : i > last);) {
        value_append(run, list, jinja_integer(i));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return list;
}

static struct jinja_value fn_dict(struct jinja_run *run, const struct jinja_call *call)
{
    const struct jinja_dict *given =
        call->all->count > 0 && call->all->items[0].type == JINJA_DICT ? call->all->items[0].dict : NULL;
    struct jinja_value dict = jinja_new_dict(run->arena, 8);
    bool has_room = dict.type != JINJA_ABSENT;
    if (call->all->count > (given != NULL))
        return jinja_fail(run, "%s: arguments have names here", call->builtin->name);
    for (uint32_t i = 0; given != NULL && has_room && i < given->count; i++)
        has_room = jinja_set(run->arena, dict.dict, given->pairs[i].key, given->pairs[i].value);
    for (uint32_t i = 0; call->named != NULL && has_room && i < call->named->count; i++)
        has_room = jinja_set(run->arena, dict.dict, call->named->pairs[i].key, call->named->pairs[i].value);
    return has_room ? dict : jinja_fail(run, "it needs more memory than there is");
}

static struct jinja_value fn_namespace(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_value space = fn_dict(run, call);
    if (jinja_is_on(run))
        space.type = JINJA_NAMESPACE;
    return space;
}

static struct jinja_value fn_raise(struct jinja_run *run, const struct jinja_call *call)
{
    struct jinja_text words = value_str(run, call->args[0]);
    if (!jinja_is_on(run))
        return call->self;
    err_set(run->err, -EINVAL, "%.*s", (int)min_u64(words.size, ERR_TEXT_MAX / 2), words.data);
    run->result = JINJA_RAISED;
    return call->self;
}

/* strftime() without the locale and the time zone that the C library would look up in files. */
static struct jinja_value fn_strftime(struct jinja_run *run, const struct jinja_call *call)
{
    static const char *const days[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
    static const char *const months[] = {"January", "February", "March",     "April",   "May",      "June",
                                         "July",    "August",   "September", "October", "November", "December"};
    struct jinja_text format = string(run, call, 0);
    time_t now = (time_t)run->now_s;
    struct tm t;
    gmtime_r(&now, &t);
    struct jinja_builder out = {0};
    for (size_t i = 0; i < format.size && jinja_is_on(run); i++) {
        if (format.data[i] != '%') {
            builder_put(run, &out, text_part(format, i, 1));
            continue;
        }
        bool is_bare = i + 1 < format.size && format.data[i + 1] == '-';
        i += 1 + is_bare;
        char text[32];
        int number = -1, width = 2;
        int hour = t.tm_hour % 12 == 0 ? 12 : t.tm_hour % 12;
        switch (i < format.size ? format.data[i] : '\0') {
        case 'Y':
            number = t.tm_year + 1900;
            break;
        case 'y':
            number = t.tm_year % 100;
            break;
        case 'm':
            number = t.tm_mon + 1;
            break;
        case 'd':
            number = t.tm_mday;
            break;
        case 'H':
            number = t.tm_hour;
            break;
        case 'I':
            number = hour;
            break;
        case 'M':
            number = t.tm_min;
            break;
        case 'S':
            number = t.tm_sec;
            break;
        case 'j':
            number = t.tm_yday + 1;
            width = 3;
            break;
        case 'a':
        case 'A':
            snprintf(text, sizeof(text), "%.*s", format.data[i] == 'a' ? 3 : 9, days[t.tm_wday]);
            break;
        case 'b':
        case 'B':
            snprintf(text, sizeof(text), "%.*s", format.data[i] == 'b' ? 3 : 9, months[t.tm_mon]);
            break;
        case 'p':
            snprintf(text, sizeof(text), "%s", t.tm_hour < 12 ? "AM" : "PM");
            break;
        case '%':
            snprintf(text, sizeof(text), "%%");
            break;
        default:
            return jinja_fail(run, "strftime_now: a conversion that is not supported");
        }
        if (number >= 0)
            snprintf(text, sizeof(text), "%0*d", is_bare ? 1 : width, number);
        builder_put_plain(run, &out, text, strlen(text));
    }
    return builder_value(&out);
}

/* ---- the tables ---- */

static const struct jinja_builtin filters[] = {
    {"abs", "", 0, do_abs},
    {"attr", "name", 1, do_attr},
    {"capitalize", "", 0, do_capitalize},
    {"center", "width", 0, do_center},
    {"count", "", 0, do_length},
    {"d", "default_value boolean", 0, do_default},
    {"default", "default_value boolean", 0, do_default},
    {"dictsort", "case_sensitive by reverse", 0, do_dictsort},
    {"first", "", 0, do_first},
    {"float", "default", 0, do_float},
    {"format", "*", 0, do_format},
    {"indent", "width first blank", 0, do_indent},
    {"int", "default base", 0, do_int},
    {"items", "", 0, do_items},
    {"join", "d attribute", 0, do_join},
    {"last", "", 0, do_last},
    {"length", "", 0, do_length},
    {"list", "", 0, do_list},
    {"lower", "", 0, do_lower},
    {"map", "*", 1, do_map},
    {"max", "case_sensitive attribute", 0, do_max},
    {"min", "case_sensitive attribute", 0, do_min},
    {"reject", "*", 0, do_reject},
    {"rejectattr", "*", 1, do_rejectattr},
    {"replace", "old new count", 2, do_replace},
    {"reverse", "", 0, do_reverse},
    {"round", "precision method", 0, do_round},
    {"safe", "", 0, do_safe},
    {"select", "*", 0, do_select},
    {"selectattr", "*", 1, do_selectattr},
    {"sort", "reverse case_sensitive attribute", 0, do_sort},
    {"string", "", 0, do_string},
    {"sum", "attribute start", 0, do_sum},
    {"title", "", 0, do_title},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, do_tojson},
    {"trim", "chars", 0, do_trim},
    {"unique", "case_sensitive attribute", 0, do_unique},
    {"upper", "", 0, do_upper},
    {"wordcount", "", 0, do_wordcount},
};

static const struct jinja_builtin tests[] = {
    {"defined", "", 0, is_defined},
    {"undefined", "", 0, is_undefined},
    {"none", "", 0, is_none},
    {"boolean", "", 0, is_boolean},
    {"true", "", 0, is_true},
    {"false", "", 0, is_false},
    {"integer", "", 0, is_integer},
    {"float", "", 0, is_float},
    {"number", "", 0, is_number},
    {"string", "", 0, is_string},
    {"mapping", "", 0, is_mapping},
    {"iterable", "", 0, is_iterable},
    {"sequence", "", 0, is_sequence},
    {"callable", "", 0, is_callable},
    {"odd", "", 0, is_odd},
    {"even", "", 0, is_even},
    {"divisibleby", "num", 1, is_divisible},
    {"eq", "b", 1, is_equal},
    {"equalto", "b", 1, is_equal},
    {"==", "b", 1, is_equal},
    {"ne", "b", 1, is_not_equal},
    {"!=", "b", 1, is_not_equal},
    {"lt", "b", 1, is_less},
    {"lessthan", "b", 1, is_less},
    {"<", "b", 1, is_less},
    {"le", "b", 1, is_at_most},
    {"<=", "b", 1, is_at_most},
    {"gt", "b", 1, is_greater},
    {"greaterthan", "b", 1, is_greater},
    {">", "b", 1, is_greater},
    {"ge", "b", 1, is_at_least},
    {">=", "b", 1, is_at_least},
    {"in", "seq", 1, is_in},
    {"sameas", "other", 1, is_same},
    {"lower", "", 0, is_lower},
    {"upper", "", 0, is_upper},
};

static const struct jinja_builtin functions[] = {
    {"range", "start stop step", 1, fn_range},  {"dict", "*", 0, fn_dict},
    {"namespace", "*", 0, fn_namespace},        {"raise_exception", "message", 1, fn_raise},
    {"strftime_now", "format", 1, fn_strftime},
};

static const struct jinja_builtin string_methods[] = {
    {"capitalize", "", 0, do_capitalize},
    {"center", "width fillchar", 1, do_center},
    {"count", "sub", 1, str_count},
    {"endswith", "suffix", 1, str_endswith},
    {"find", "sub", 1, str_find},
    {"format", "*", 0, str_format},
    {"index", "sub", 1, str_index},
    {"isalnum", "", 0, str_isalnum},
    {"isalpha", "", 0, str_isalpha},
    {"isdecimal", "", 0, str_isdigit},
    {"isdigit", "", 0, str_isdigit},
    {"islower", "", 0, is_lower},
    {"isnumeric", "", 0, str_isdigit},
    {"isspace", "", 0, str_isspace},
    {"isupper", "", 0, is_upper},
    {"join", "iterable", 1, str_join},
    {"ljust", "width fillchar", 1, str_ljust},
    {"lower", "", 0, do_lower},
    {"lstrip", "chars", 0, str_lstrip},
    {"partition", "sep", 1, str_partition},
    {"removeprefix", "prefix", 1, str_removeprefix},
    {"removesuffix", "suffix", 1, str_removesuffix},
    {"replace", "old new count", 2, str_replace},
    {"rfind", "sub", 1, str_rfind},
    {"rjust", "width fillchar", 1, str_rjust},
    {"rpartition", "sep", 1, str_rpartition},
    {"rsplit", "sep maxsplit", 0, str_rsplit},
    {"rstrip", "chars", 0, str_rstrip},
    {"split", "sep maxsplit", 0, str_split},
    {"splitlines", "keepends", 0, str_splitlines},
    {"startswith", "prefix", 1, str_startswith},
    {"strip", "chars", 0, do_trim},
    {"title", "", 0, str_title},
    {"upper", "", 0, do_upper},
    {"zfill", "width", 1, str_zfill},
};

static const struct jinja_builtin dict_methods[] = {
    {"get", "key default", 1, dict_get},
    {"items", "", 0, do_items},
    {"keys", "", 0, dict_keys},
    {"values", "", 0, dict_values},
};

static const struct jinja_builtin list_methods[] = {
    {"copy", "", 0, do_list},
    {"count", "value", 1, list_count},
    {"index", "value", 1, list_index},
};

static const struct jinja_builtin loop_methods[] = {
    {"cycle", "*", 1, loop_cycle},
    {"changed", "*", 0, loop_changed},
};

/* Names that exist in Python and change their value, which a template may not: a key of that name is hidden by them. */
static const char *const dict_changers[] = {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"};
static const char *const list_changers[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};

static const struct jinja_builtin *look(const struct jinja_builtin *table, size_t count, struct jinja_text name)
{
    for (size_t i = 0; i < count; i++)
        if (text_is(name, table[i].name))
            return &table[i];
    return NULL;
}

#define LOOK(table, name) look(table, ARRAY_COUNT(table), name)

const struct jinja_builtin *jinja_filter(struct jinja_text name)
{
    return LOOK(filters, name);
}

const struct jinja_builtin *jinja_test(struct jinja_text name)
{
    return LOOK(tests, name);
}

const struct jinja_builtin *jinja_function(struct jinja_text name)
{
    return LOOK(functions, name);
}

bool jinja_is_method(struct jinja_text name)
{
    return LOOK(string_methods, name) != NULL || LOOK(dict_methods, name) != NULL || LOOK(list_methods, name) != NULL ||
           LOOK(loop_methods, name) != NULL;
}

const struct jinja_builtin *jinja_method_of(struct jinja_value value, struct jinja_text name, bool *found)
{
    const struct jinja_builtin *method = NULL;
    const char *const *changers = NULL;
    size_t changer_count = 0;
    if (value.type == JINJA_STRING) {
        method = LOOK(string_methods, name);
    } else if (value.type == JINJA_DICT) {
        method = LOOK(dict_methods, name);
        changers = dict_changers;
        changer_count = ARRAY_COUNT(dict_changers);
    } else if (value.type == JINJA_LIST) {
        method = LOOK(list_methods, name);
        changers = list_changers;
        changer_count = ARRAY_COUNT(list_changers);
    } else if (value.type == JINJA_LOOP) {
        method = LOOK(loop_methods, name);
    }
    *found = method != NULL;
    for (size_t i = 0; i < changer_count && !*found; i++)
        *found = text_is(name, changers[i]);
    return method;
}
