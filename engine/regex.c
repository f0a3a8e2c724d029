#include "engine/regex.h"

#include <errno.h>
#include <string.h>

#include "engine/unicode.h"

#define DEPTH_MAX  50u
#define REPEAT_MAX 4096u
#define DIGITS_MAX 16u
#define RANGES_MAX 128u
#define LAST_CODE  0x10ffffu
#define NO_MAX     UINT32_MAX

struct regex {
    struct fragment_builder *b;
    const char *text;
    size_t size, at;
    uint32_t depth;
    int status;
    struct err *err;
};

struct range {
    uint32_t first, last;
};

struct class
{
    struct range ranges[RANGES_MAX];
    uint32_t count;
};

static void fail(struct regex *r, const char *what)
{
    if (r->status == 0)
        r->status = err_set(r->err, -EINVAL, "the pattern, at byte %zu: %s", r->at, what);
}

static bool is_on(const struct regex *r)
{
    return r->status == 0 && !r->b->has_failed;
}

static bool looks_at(const struct regex *r, char c)
{
    return r->at < r->size && r->text[r->at] == c;
}

static bool take(struct regex *r, char c)
{
    bool is_there = looks_at(r, c);
    r->at += is_there;
    return is_there;
}

static uint32_t take_character(struct regex *r)
{
    uint32_t code = 0, length = 0;
    if (r->at < r->size)
        length = unicode_decode((const uint8_t *)r->text + r->at, r->size - r->at, &code, NULL);
    if (length == 0)
        fail(r, "a character is missing");
    r->at += length;
    return code;
}

/* ---- classes ---- */

static void add(struct regex *r, struct class *class, uint32_t first, uint32_t last)
{
    if (class->count == RANGES_MAX)
        fail(r, "a class has too many ranges");
    else
        class->ranges[class->count++] = (struct range){first, last};
}

/* What is in none of the ranges. */
static void negate(struct regex *r, struct class *class)
{
    struct class other = {.count = 0};
    uint32_t next = 0;
    for (bool is_more = true; is_more;) {
        uint32_t first = LAST_CODE + 1, last = 0;
        for (uint32_t i = 0; i < class->count; i++)
            if (class->ranges[i].last >= next && class->ranges[i].first < first) {
                first = class->ranges[i].first;
                last = class->ranges[i].last;
            }
        is_more = first <= LAST_CODE;
        if (first > next)
            add(r, &other, next, first - 1);
        next = (uint32_t)max_u64(next, last + 1ull);
        is_more = is_more && next <= LAST_CODE;
    }
    *class = other;
}

/* \d and its like. False: no class. */
static bool named_class(struct regex *r, char name, struct class *class)
{
    class->count = 0;
    switch (name | 0x20) {
    case 'd':
        add(r, class, '0', '9');
        break;
    case 'w':
        add(r, class, '0', '9');
        add(r, class, 'A', 'Z');
        add(r, class, '_', '_');
        add(r, class, 'a', 'z');
        break;
    case 's':
        add(r, class, '\t', '\r');
        add(r, class, ' ', ' ');
        break;
    default:
        return false;
    }
    if (name < 'a')
        negate(r, class);
    return true;
}

static uint32_t take_hex(struct regex *r, uint32_t digits)
{
    uint32_t code = 0;
    for (uint32_t i = 0; i < digits; i++) {
        char c = r->at < r->size ? r->text[r->at] : '\0';
        uint32_t digit = c >= '0' && c <= '9'                     ? (uint32_t)(c - '0')
                         : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (uint32_t)((c | 0x20) - 'a' + 10)
                                                                  : 16;
        if (digit == 16)
            fail(r, "hexadecimal digits are missing");
        code = code << 4 | digit;
        r->at++;
    }
    if (code >= 0xd800 && code <= 0xdfff)
        fail(r, "half of a surrogate pair is no character");
    return code;
}

/* The character that stands behind a backslash. */
static uint32_t take_escaped(struct regex *r)
{
    static const char known[] = "n\nr\rt\tf\fv\va\a";
    uint32_t code = take_character(r);
    if (code == 'x' || code == 'u')
        return take_hex(r, code == 'x' ? 2 : 4);
    for (size_t i = 0; i < sizeof(known) - 1; i += 2)
        if (code == (uint8_t)known[i])
            return (uint8_t)known[i + 1];
    bool is_word = (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z');
    if (is_word)
        fail(r, "this escape is not supported");
    return code;
}

static struct class take_class(struct regex *r)
{
    struct class class = {.count = 0}, named;
    bool is_negated = take(r, '^'), is_first = true;
    while (is_on(r) && (is_first || !looks_at(r, ']'))) {
        is_first = false;
        bool is_escape = take(r, '\\');
        if (is_escape && r->at < r->size && named_class(r, r->text[r->at], &named)) {
            r->at++;
            for (uint32_t i = 0; i < named.count; i++)
                add(r, &class, named.ranges[i].first, named.ranges[i].last);
            continue;
        }
        uint32_t first = is_escape ? take_escaped(r) : take_character(r), last = first;
        if (looks_at(r, '-') && r->at + 1 < r->size && r->text[r->at + 1] != ']') {
            r->at++;
            last = take(r, '\\') ? take_escaped(r) : take_character(r);
        }
        if (last < first)
            fail(r, "a range goes backwards");
        add(r, &class, first, last);
    }
    if (!take(r, ']'))
        fail(r, "']' is missing");
    if (is_negated)
        negate(r, &class);
    return class;
}

static struct fragment class_fragment(struct regex *r, const struct class *class)
{
    struct fragment whole = fragment_empty(r->b), f;
    bool is_first = true;
    for (uint32_t i = 0; i < class->count && is_on(r); i++) {
        f = fragment_characters(r->b, class->ranges[i].first, class->ranges[i].last);
        whole = is_first ? f : fragment_or(r->b, whole, f);
        is_first = false;
    }
    if (is_first)
        fail(r, "a class has no characters");
    return whole;
}

/* ---- expressions ---- */

static struct fragment parse_choice(struct regex *r);

static struct fragment parse_group(struct regex *r)
{
    if (take(r, '?') && !take(r, ':'))
        fail(r, "groups that begin with '?' are not supported, but for '(?:'");
    if (++r->depth > DEPTH_MAX)
        fail(r, "groups are nested too deeply");
    struct fragment f = is_on(r) ? parse_choice(r) : fragment_empty(r->b);
    r->depth--;
    if (!take(r, ')'))
        fail(r, "')' is missing");
    return f;
}

static struct fragment parse_atom(struct regex *r)
{
    struct class class = {.count = 0};
    if (take(r, '('))
        return parse_group(r);
    if (take(r, '[')) {
        class = take_class(r);
        return class_fragment(r, &class);
    }
    if (take(r, '.')) {
        add(r, &class, '\n', '\n');
        negate(r, &class);
        return class_fragment(r, &class);
    }
    if (take(r, '\\')) {
        if (r->at < r->size && named_class(r, r->text[r->at], &class)) {
            r->at++;
            return class_fragment(r, &class);
        }
        uint32_t code = take_escaped(r);
        return fragment_characters(r->b, code, code);
    }
    if (r->at < r->size && strchr("*+?{^$", r->text[r->at]) != NULL && r->text[r->at] != '\0')
        fail(r, "there is nothing to repeat, or an anchor inside the pattern");
    uint32_t code = take_character(r);
    return fragment_characters(r->b, code, code);
}

/* So many digits at most: what is repeated is read again each time. */
static bool take_number(struct regex *r, uint32_t *number)
{
    size_t begin = r->at, end = min_u64(r->size, begin + DIGITS_MAX);
    for (*number = 0; r->at < end && r->text[r->at] >= '0' && r->text[r->at] <= '9'; r->at++)
        *number = (uint32_t)min_u64(*number * 10ull + (uint32_t)(r->text[r->at] - '0'), NO_MAX - 1);
    return r->at > begin;
}

/* How often: false when no quantifier stands here. */
static bool take_counts(struct regex *r, uint32_t *min, uint32_t *max)
{
    *max = NO_MAX;
    *min = 0;
    if (take(r, '*'))
        return true;
    if (take(r, '+')) {
        *min = 1;
        return true;
    }
    if (take(r, '?')) {
        *max = 1;
        return true;
    }
    if (!take(r, '{'))
        return false;
    bool has_min = take_number(r, min), has_max = false;
    if (take(r, ','))
        has_max = take_number(r, max);
    else
        *max = *min;
    if (!take(r, '}') || (!has_min && !has_max))
        fail(r, "{m}, {m,} or {m,n} is wanted");
    if (!has_max && r->text[r->at - 2] == ',')
        *max = NO_MAX;
    if (*min > *max || *min > REPEAT_MAX || (*max != NO_MAX && *max > REPEAT_MAX))
        fail(r, "a count is too large, or the first is larger than the second");
    return true;
}

/* A fragment can be walked through once only: what is repeated is parsed again and again. */
static struct fragment parse_repeated(struct regex *r)
{
    size_t begin = r->at;
    uint32_t min, max;
    struct fragment f = parse_atom(r);
    if (!is_on(r) || !take_counts(r, &min, &max))
        return f;
    take(r, '?'); /* lazy: of the same language */
    size_t end = r->at;
    struct fragment whole = fragment_empty(r->b), rest = fragment_empty(r->b);
    uint32_t copies = max == NO_MAX ? min + 1 : max;
    for (uint32_t i = 0; i < copies && is_on(r); i++) {
        r->at = begin;
        struct fragment one = parse_atom(r);
        if (i >= min && max == NO_MAX)
            one = fragment_repeated(r->b, one);
        else if (i >= min) /* the first that is left out is the last that there is */
            fragment_link(r->b, whole.to, rest.from);
        whole = fragment_then(r->b, whole, one);
    }
    r->at = end;
    return fragment_then(r->b, whole, rest);
}

static struct fragment parse_sequence(struct regex *r)
{
    struct fragment whole = fragment_empty(r->b);
    while (is_on(r) && r->at < r->size && !looks_at(r, '|') && !looks_at(r, ')'))
        whole = fragment_then(r->b, whole, parse_repeated(r));
    return whole;
}

static struct fragment parse_choice(struct regex *r)
{
    struct fragment whole = parse_sequence(r);
    while (is_on(r) && take(r, '|'))
        whole = fragment_or(r->b, whole, parse_sequence(r));
    return whole;
}

static struct fragment anything(struct fragment_builder *b)
{
    return fragment_repeated(b, fragment_characters(b, 0, LAST_CODE));
}

int regex_build(struct fragment_builder *b, const char *pattern, size_t size, bool is_search, struct fragment *fragment,
                struct err *err)
{
    struct regex r = {.b = b, .text = pattern, .size = size, .err = err};
    bool begins = take(&r, '^');
    bool ends = r.size > r.at && pattern[size - 1] == '$' && (size < 2 || pattern[size - 2] != '\\');
    r.size -= ends;
    bool has_choice = (begins || ends) && memchr(pattern, '|', size) != NULL;
    *fragment = parse_choice(&r);
    if (is_on(&r) && r.at < r.size)
        fail(&r, "')' closes nothing");
    if (has_choice && memchr(pattern, '(', size) == NULL)
        fail(&r, "'^' or '$' beside '|': put the alternatives into a group");
    if (is_search && !begins)
        *fragment = fragment_then(b, anything(b), *fragment);
    if (is_search && !ends)
        *fragment = fragment_then(b, *fragment, anything(b));
    return r.status;
}
