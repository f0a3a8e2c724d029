#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/jinja_internal.h"
#include "engine/unicode.h"

/* ---- making them ---- */

void *jinja_take(struct jinja_arena *arena, size_t bytes)
{
    size_t at = align_up_u64(arena->used, 16);
    if (bytes > arena->bytes || at > arena->bytes - bytes)
        return NULL;
    arena->used = at + bytes;
    return arena->memory + at;
}

struct jinja_value value_text(struct jinja_text text)
{
    return (struct jinja_value){.type = JINJA_STRING, .text = text};
}

struct jinja_value value_undefined(struct jinja_text name)
{
    return (struct jinja_value){.type = JINJA_UNDEFINED, .text = name};
}

struct jinja_value jinja_string(const char *data, size_t size)
{
    return value_text((struct jinja_text){.data = data, .size = size});
}

struct jinja_value jinja_trusted(struct jinja_arena *arena, const char *data, size_t size)
{
    uint8_t *trust = jinja_take(arena, size);
    if (trust == NULL)
        return (struct jinja_value){.type = JINJA_ABSENT};
    memset(trust, 1, size);
    return value_text((struct jinja_text){data, trust, size});
}

struct jinja_value jinja_bool(bool value)
{
    return (struct jinja_value){.type = JINJA_BOOLEAN, .boolean = value};
}

struct jinja_value jinja_integer(int64_t value)
{
    return (struct jinja_value){.type = JINJA_INTEGER, .integer = value};
}

struct jinja_value jinja_float(double value)
{
    return (struct jinja_value){.type = JINJA_FLOAT, .number = value};
}

struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.type = JINJA_NONE};
}

struct jinja_value jinja_new_list(struct jinja_arena *arena, uint32_t room)
{
    struct jinja_list *list = jinja_take(arena, sizeof(*list));
    struct jinja_value *items = jinja_take(arena, room * sizeof(*items));
    if (list == NULL || items == NULL)
        return (struct jinja_value){.type = JINJA_ABSENT};
    *list = (struct jinja_list){.items = items, .room = room};
    return (struct jinja_value){.type = JINJA_LIST, .list = list};
}

struct jinja_value jinja_new_dict(struct jinja_arena *arena, uint32_t room)
{
    struct jinja_dict *dict = jinja_take(arena, sizeof(*dict));
    struct jinja_pair *pairs = jinja_take(arena, room * sizeof(*pairs));
    if (dict == NULL || pairs == NULL)
        return (struct jinja_value){.type = JINJA_ABSENT};
    *dict = (struct jinja_dict){.pairs = pairs, .room = room};
    return (struct jinja_value){.type = JINJA_DICT, .dict = dict};
}

/* A table twice as large, with what the old one holds. NULL: the arena is full. */
static void *grown(struct jinja_arena *arena, const void *old, uint32_t *room, uint32_t count, size_t element_bytes)
{
    uint32_t larger = *room < 4 ? 8 : 2 * *room;
    void *table = *room < UINT32_MAX / 2 ? jinja_take(arena, larger * element_bytes) : NULL;
    if (table == NULL)
        return NULL;
    if (count > 0)
        memcpy(table, old, count * element_bytes);
    *room = larger;
    return table;
}

bool jinja_append(struct jinja_arena *arena, struct jinja_list *list, struct jinja_value value)
{
    if (list->count == list->room) {
        void *items = grown(arena, list->items, &list->room, list->count, sizeof(*list->items));
        if (items == NULL)
            return false;
        list->items = items;
    }
    list->items[list->count++] = value;
    return true;
}

static bool is_key(struct jinja_value key, const char *text, size_t size)
{
    return key.type == JINJA_STRING && key.text.size == size && memcmp(key.text.data, text, size) == 0;
}

const struct jinja_value *jinja_find(const struct jinja_dict *dict, const char *key, size_t size)
{
    for (uint32_t i = 0; i < dict->count; i++)
        if (is_key(dict->pairs[i].key, key, size))
            return &dict->pairs[i].value;
    return NULL;
}

static bool is_same_key(struct jinja_value a, struct jinja_value b)
{
    if (a.type == JINJA_STRING)
        return is_key(b, a.text.data, a.text.size);
    if (value_is_number(a) && value_is_number(b))
        return value_number(a) == value_number(b);
    return a.type == JINJA_NONE && b.type == JINJA_NONE;
}

bool jinja_set(struct jinja_arena *arena, struct jinja_dict *dict, struct jinja_value key, struct jinja_value value)
{
    for (uint32_t i = 0; i < dict->count; i++)
        if (is_same_key(dict->pairs[i].key, key)) {
            dict->pairs[i].value = value;
            return true;
        }
    if (dict->count == dict->room) {
        void *pairs = grown(arena, dict->pairs, &dict->room, dict->count, sizeof(*dict->pairs));
        if (pairs == NULL)
            return false;
        dict->pairs = pairs;
    }
    dict->pairs[dict->count++] = (struct jinja_pair){key, value};
    return true;
}

static struct jinja_value taken(struct jinja_run *run, struct jinja_value value)
{
    return value.type == JINJA_ABSENT ? jinja_fail(run, "it needs more memory than there is") : value;
}

struct jinja_value value_list(struct jinja_run *run, uint32_t room)
{
    return taken(run, jinja_new_list(run->arena, room));
}

void value_append(struct jinja_run *run, struct jinja_value list, struct jinja_value value)
{
    if (jinja_is_on(run) && jinja_step(run, 1) && !jinja_append(run->arena, list.list, value))
        jinja_fail(run, "it needs more memory than there is");
}

/* ---- text ---- */

struct jinja_text text_of(const char *text)
{
    return (struct jinja_text){.data = text, .size = strlen(text)};
}

struct jinja_text text_part(struct jinja_text text, size_t first, size_t size)
{
    return (struct jinja_text){text.data + first, text.trust != NULL ? text.trust + first : NULL, size};
}

bool text_is(struct jinja_text text, const char *other)
{
    return text.size == strlen(other) && memcmp(text.data, other, text.size) == 0;
}

bool text_equal(struct jinja_text a, struct jinja_text b)
{
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

static bool begins_character(char byte)
{
    return ((uint8_t)byte & 0xc0) != 0x80;
}

size_t text_length(struct jinja_text text)
{
    size_t count = 0;
    for (size_t i = 0; i < text.size; i++)
        count += begins_character(text.data[i]);
    return count;
}

size_t text_offset(struct jinja_text text, size_t characters)
{
    for (size_t i = 0; i < text.size; i++)
        if (begins_character(text.data[i]) && characters-- == 0)
            return i;
    return text.size;
}

bool is_python_space(uint32_t code)
{
    return (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f ||
           code == 0x205f || code == 0x3000;
}

/* ---- what they are ---- */

const char *value_type_name(struct jinja_value value)
{
    static const char *const names[] = {
        [JINJA_ABSENT] = "nothing",     [JINJA_UNDEFINED] = "an undefined value",
        [JINJA_NONE] = "none",          [JINJA_BOOLEAN] = "a boolean",
        [JINJA_INTEGER] = "an integer", [JINJA_FLOAT] = "a float",
        [JINJA_STRING] = "a string",    [JINJA_LIST] = "a list",
        [JINJA_DICT] = "a mapping",     [JINJA_NAMESPACE] = "a namespace",
        [JINJA_MACRO] = "a macro",      [JINJA_FUNCTION] = "a function",
        [JINJA_METHOD] = "a method",    [JINJA_LOOP] = "a loop",
    };
    return names[value.type];
}

bool value_is_true(struct jinja_value value)
{
    switch (value.type) {
    case JINJA_ABSENT:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOLEAN:
        return value.boolean;
    case JINJA_INTEGER:
        return value.integer != 0;
    case JINJA_FLOAT:
        return value.number != 0;
    case JINJA_STRING:
        return value.text.size > 0;
    case JINJA_LIST:
        return value.list->count > 0;
    case JINJA_DICT:
        return value.dict->count > 0;
    default:
        return true;
    }
}

bool value_is_number(struct jinja_value value)
{
    return value.type == JINJA_BOOLEAN || value.type == JINJA_INTEGER || value.type == JINJA_FLOAT;
}

double value_number(struct jinja_value value)
{
    return value.type == JINJA_FLOAT     ? value.number
           : value.type == JINJA_INTEGER ? (double)value.integer
                                         : (double)value.boolean;
}

/* A whole number: booleans and integers. */
static int64_t whole(struct jinja_value value)
{
    return value.type == JINJA_BOOLEAN ? value.boolean : value.integer;
}

static bool lists_equal(struct jinja_run *run, const struct jinja_list *a, const struct jinja_list *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count && jinja_is_on(run); i++)
        if (!value_equal(run, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool dicts_equal(struct jinja_run *run, const struct jinja_dict *a, const struct jinja_dict *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count && jinja_step(run, 1 + b->count / 16); i++) {
        uint32_t j = 0;
        while (j < b->count && !is_same_key(a->pairs[i].key, b->pairs[j].key))
            j++;
        if (j == b->count || !value_equal(run, a->pairs[i].value, b->pairs[j].value))
            return false;
    }
    return true;
}

/* One level deeper in a value; false when there are too many. Pairs with leave(). */
static bool enter(struct jinja_run *run)
{
    if (++run->depth > JINJA_DEPTH_MAX)
        jinja_fail(run, "values or calls are nested deeper than %u", JINJA_DEPTH_MAX);
    return jinja_step(run, 1);
}

static void leave(struct jinja_run *run)
{
    run->depth--;
}

bool value_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    bool is_equal = false;
    if (value_is_number(a) && value_is_number(b)) {
        bool are_whole = a.type != JINJA_FLOAT && b.type != JINJA_FLOAT;
        return are_whole ? whole(a) == whole(b) : value_number(a) == value_number(b);
    }
    if (a.type != b.type)
        return false;
    if (!enter(run)) {
        leave(run);
        return false;
    }
    switch (a.type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        is_equal = true;
        break;
    case JINJA_STRING:
        is_equal = jinja_step(run, a.text.size / 64) && text_equal(a.text, b.text);
        break;
    case JINJA_LIST:
        is_equal = a.is_tuple == b.is_tuple && lists_equal(run, a.list, b.list);
        break;
    case JINJA_DICT:
        is_equal = dicts_equal(run, a.dict, b.dict);
        break;
    default:
        is_equal = a.dict == b.dict; /* the same object: every pointer of the union */
    }
    leave(run);
    return is_equal;
}

int value_order(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    if (value_is_number(a) && value_is_number(b)) {
        if (a.type != JINJA_FLOAT && b.type != JINJA_FLOAT)
            return (whole(a) > whole(b)) - (whole(a) < whole(b));
        return (value_number(a) > value_number(b)) - (value_number(a) < value_number(b));
    }
    if (a.type == JINJA_STRING && b.type == JINJA_STRING) { /* UTF-8 is in the order of its characters */
        jinja_step(run, min_u64(a.text.size, b.text.size) / 64);
        int order = memcmp(a.text.data, b.text.data, min_u64(a.text.size, b.text.size));
        return order != 0 ? order : (a.text.size > b.text.size) - (a.text.size < b.text.size);
    }
    if (a.type == JINJA_LIST && b.type == JINJA_LIST && a.is_tuple == b.is_tuple) {
        for (uint32_t i = 0; i < a.list->count && i < b.list->count && jinja_step(run, 1); i++)
            if (!value_equal(run, a.list->items[i], b.list->items[i])) {
                int order = enter(run) ? value_order(run, a.list->items[i], b.list->items[i]) : 0;
                leave(run);
                return order;
            }
        return (a.list->count > b.list->count) - (a.list->count < b.list->count);
    }
    jinja_fail(run, "%s and %s have no order", value_type_name(a), value_type_name(b));
    return 0;
}

bool value_contains(struct jinja_run *run, struct jinja_value container, struct jinja_value item)
{
    if (container.type == JINJA_STRING && item.type == JINJA_STRING)
        return jinja_step(run, container.text.size / 64) &&
               memmem(container.text.data, container.text.size, item.text.data, item.text.size) != NULL;
    if (container.type == JINJA_DICT) {
        jinja_step(run, container.dict->count / 16);
        for (uint32_t i = 0; i < container.dict->count; i++)
            if (is_same_key(container.dict->pairs[i].key, item))
                return true;
        return false;
    }
    if (container.type != JINJA_LIST && container.type != JINJA_UNDEFINED) {
        jinja_fail(run, "%s cannot be in %s", value_type_name(item), value_type_name(container));
        return false;
    }
    for (uint32_t i = 0; container.type == JINJA_LIST && i < container.list->count && jinja_is_on(run); i++)
        if (value_equal(run, container.list->items[i], item))
            return true;
    return false;
}

/* ---- printing ---- */

/* As Python's repr() prints a float: the shortest digits that give it back. */
static void put_float(struct jinja_run *run, struct jinja_builder *out, double number, bool is_json)
{
    char digits[40], text[64];
    if (isnan(number) || isinf(number)) {
        const char *name = isnan(number) ? (is_json ? "NaN" : "nan") : is_json ? "Infinity" : "inf";
        snprintf(text, sizeof(text), "%s%s", !isnan(number) && number < 0 ? "-" : "", name);
        builder_put_plain(run, out, text, strlen(text));
        return;
    }
    int precision = 1;
    do {
        snprintf(digits, sizeof(digits), "%.*e", precision - 1, number);
    } while (strtod(digits, NULL) != number && precision++ < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - 1 - exponent;
        snprintf(text, sizeof(text), "%.*f", decimals > 1 ? decimals : 1, number);
    } else {
        *strchr(digits, 'e') = '\0';
        snprintf(text, sizeof(text), "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
    }
    builder_put_plain(run, out, text, strlen(text));
}

static void put_integer(struct jinja_run *run, struct jinja_builder *out, int64_t integer)
{
    char text[32];
    builder_put_plain(run, out, text, (size_t)snprintf(text, sizeof(text), "%lld", (long long)integer));
}

/* Characters that repr() escapes although they are not of ASCII: controls and separators of Latin-1 and beyond. */
static bool is_hidden(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0xa0) || code == 0xad ||
           (code > 0xff &&
            (is_python_space(code) || (code >= 0x200b && code <= 0x200f) || (code >= 0x2028 && code <= 0x202e) ||
             (code >= 0x2060 && code <= 0x206f) || (code >= 0xe000 && code <= 0xf8ff) || code == 0xfeff));
}

static void put_repr_text(struct jinja_run *run, struct jinja_builder *out, struct jinja_text text)
{
    bool has_single = memchr(text.data, '\'', text.size) != NULL,
         has_double = memchr(text.data, '"', text.size) != NULL;
    char quote = has_single && !has_double ? '"' : '\'';
    builder_put_plain(run, out, &quote, 1);
    for (size_t i = 0; i < text.size && jinja_is_on(run);) {
        uint32_t code, length = unicode_decode((const uint8_t *)text.data + i, text.size - i, &code, NULL);
        char escape[16];
        if (length == 0)
            length = 1;
        if (code == '\\' || code == (uint8_t)quote)
            snprintf(escape, sizeof(escape), "\\%c", (char)code);
        else if (code == '\n' || code == '\r' || code == '\t')
            snprintf(escape, sizeof(escape), "\\%c", code == '\n' ? 'n' : code == '\r' ? 'r' : 't');
        else if (is_hidden(code))
            snprintf(escape, sizeof(escape), code < 0x100 ? "\\x%02x" : "\\u%04x", code);
        else
            escape[0] = '\0';
        if (escape[0] != '\0')
            builder_put_plain(run, out, escape, strlen(escape));
        else
            builder_put(run, out, text_part(text, i, length));
        i += length;
    }
    builder_put_plain(run, out, &quote, 1);
}

static void put_value(struct jinja_run *run, struct jinja_builder *out, struct jinja_value value, bool is_inside);

static void put_list(struct jinja_run *run, struct jinja_builder *out, struct jinja_value value)
{
    builder_put_plain(run, out, value.is_tuple ? "(" : "[", 1);
    for (uint32_t i = 0; i < value.list->count && jinja_is_on(run); i++) {
        builder_put_plain(run, out, ", ", i > 0 ? 2 : 0);
        put_value(run, out, value.list->items[i], true);
    }
    builder_put_plain(run, out, ",)", value.is_tuple && value.list->count == 1 ? 1 : 0);
    builder_put_plain(run, out, value.is_tuple ? ")" : "]", 1);
}

static void put_dict(struct jinja_run *run, struct jinja_builder *out, const struct jinja_dict *dict)
{
    builder_put_plain(run, out, "{", 1);
    for (uint32_t i = 0; i < dict->count && jinja_is_on(run); i++) {
        builder_put_plain(run, out, ", ", i > 0 ? 2 : 0);
        put_value(run, out, dict->pairs[i].key, true);
        builder_put_plain(run, out, ": ", 2);
        put_value(run, out, dict->pairs[i].value, true);
    }
    builder_put_plain(run, out, "}", 1);
}

/* str(), and inside of lists and mappings repr(). */
static void put_value(struct jinja_run *run, struct jinja_builder *out, struct jinja_value value, bool is_inside)
{
    if (!enter(run)) {
        leave(run);
        return;
    }
    switch (value.type) {
    case JINJA_UNDEFINED:
        builder_put_plain(run, out, "Undefined", is_inside ? 9 : 0);
        break;
    case JINJA_NONE:
        builder_put_plain(run, out, "None", 4);
        break;
    case JINJA_BOOLEAN:
        builder_put_plain(run, out, value.boolean ? "True" : "False", value.boolean ? 4 : 5);
        break;
    case JINJA_INTEGER:
        put_integer(run, out, value.integer);
        break;
    case JINJA_FLOAT:
        put_float(run, out, value.number, false);
        break;
    case JINJA_STRING:
        if (is_inside)
            put_repr_text(run, out, value.text);
        else
            builder_put(run, out, value.text);
        break;
    case JINJA_LIST:
        put_list(run, out, value);
        break;
    case JINJA_DICT:
        put_dict(run, out, value.dict);
        break;
    default:
        jinja_fail(run, "%s has no text", value_type_name(value));
    }
    leave(run);
}

struct jinja_text value_str(struct jinja_run *run, struct jinja_value value)
{
    if (value.type == JINJA_STRING)
        return value.text;
    struct jinja_builder out = {0};
    put_value(run, &out, value, false);
    return builder_value(&out).text;
}

/* ---- JSON, as Python's json.dumps() writes it ---- */

static void put_json_text(struct jinja_run *run, struct jinja_builder *out, struct jinja_text text,
                          const struct json_style *style)
{
    builder_put_plain(run, out, "\"", 1);
    for (size_t i = 0, length; i < text.size && jinja_is_on(run); i += length) {
        static const char plain[] = "\"\"\\\\\nn\rr\tt\bb\ff";
        uint32_t code;
        char escape[16] = "";
        length = max_u64(unicode_decode((const uint8_t *)text.data + i, text.size - i, &code, NULL), 1);
        for (size_t e = 0; e < sizeof(plain) - 1; e += 2)
            if (code == (uint8_t)plain[e])
                snprintf(escape, sizeof(escape), "\\%c", plain[e + 1]);
        if (escape[0] == '\0' && (code < 0x20 || (style->is_ascii && code > 0x7e))) {
            if (code < 0x10000)
                snprintf(escape, sizeof(escape), "\\u%04x", code);
            else
                snprintf(escape, sizeof(escape), "\\u%04x\\u%04x", 0xd7c0 + (code >> 10), 0xdc00 | (code & 0x3ff));
        }
        if (escape[0] != '\0') {
            builder_put_plain(run, out, escape, strlen(escape));
            continue;
        }
        while (i + length < text.size && !((uint8_t)text.data[i + length] < 0x20) && text.data[i + length] != '"' &&
               text.data[i + length] != '\\' && (uint8_t)text.data[i + length] < 0x7f)
            length++;
        builder_put(run, out, text_part(text, i, length));
    }
    builder_put_plain(run, out, "\"", 1);
}

static void json_line(struct jinja_run *run, struct jinja_builder *out, const struct json_style *style, uint32_t level)
{
    if (style->indent < 0)
        return;
    builder_put_plain(run, out, "\n", 1);
    for (int64_t i = 0; i < style->indent * level && jinja_is_on(run); i++)
        builder_put_plain(run, out, " ", 1);
}

static void put_json_key(struct jinja_run *run, struct jinja_builder *out, struct jinja_value key,
                         const struct json_style *style)
{
    bool is_text = key.type == JINJA_STRING;
    builder_put_plain(run, out, "\"", is_text ? 0 : 1);
    value_json(run, out, key, style, 0);
    builder_put_plain(run, out, "\"", is_text ? 0 : 1);
}

/* The pair of the smallest key after the one given (NULL: the first): sorting without memory, for few keys. */
static const struct jinja_pair *next_pair(struct jinja_run *run, const struct jinja_dict *dict,
                                          const struct jinja_pair *last)
{
    const struct jinja_pair *best = NULL;
    for (uint32_t i = 0; i < dict->count && jinja_is_on(run); i++) {
        const struct jinja_pair *pair = &dict->pairs[i];
        if ((last == NULL || value_order(run, pair->key, last->key) > 0) &&
            (best == NULL || value_order(run, pair->key, best->key) < 0))
            best = pair;
    }
    jinja_step(run, dict->count);
    return best;
}

static void put_json_dict(struct jinja_run *run, struct jinja_builder *out, const struct jinja_dict *dict,
                          const struct json_style *style, uint32_t level)
{
    builder_put_plain(run, out, "{", 1);
    const struct jinja_pair *pair = NULL;
    for (uint32_t i = 0; i < dict->count && jinja_is_on(run); i++) {
        pair = style->sorts_keys ? next_pair(run, dict, pair) : &dict->pairs[i];
        if (pair == NULL)
            break;
        if (i > 0)
            builder_put(run, out, style->item_separator);
        json_line(run, out, style, level + 1);
        put_json_key(run, out, pair->key, style);
        builder_put(run, out, style->key_separator);
        value_json(run, out, pair->value, style, level + 1);
    }
    if (dict->count > 0)
        json_line(run, out, style, level);
    builder_put_plain(run, out, "}", 1);
}

static void put_json_list(struct jinja_run *run, struct jinja_builder *out, const struct jinja_list *list,
                          const struct json_style *style, uint32_t level)
{
    builder_put_plain(run, out, "[", 1);
    for (uint32_t i = 0; i < list->count && jinja_is_on(run); i++) {
        if (i > 0)
            builder_put(run, out, style->item_separator);
        json_line(run, out, style, level + 1);
        value_json(run, out, list->items[i], style, level + 1);
    }
    if (list->count > 0)
        json_line(run, out, style, level);
    builder_put_plain(run, out, "]", 1);
}

void value_json(struct jinja_run *run, struct jinja_builder *out, struct jinja_value value,
                const struct json_style *style, uint32_t level)
{
    if (!enter(run)) {
        leave(run);
        return;
    }
    switch (value.type) {
    case JINJA_NONE:
        builder_put_plain(run, out, "null", 4);
        break;
    case JINJA_BOOLEAN:
        builder_put_plain(run, out, value.boolean ? "true" : "false", value.boolean ? 4 : 5);
        break;
    case JINJA_INTEGER:
        put_integer(run, out, value.integer);
        break;
    case JINJA_FLOAT:
        put_float(run, out, value.number, true);
        break;
    case JINJA_STRING:
        put_json_text(run, out, value.text, style);
        break;
    case JINJA_LIST:
        put_json_list(run, out, value.list, style, level);
        break;
    case JINJA_DICT:
        put_json_dict(run, out, value.dict, style, level);
        break;
    default:
        jinja_fail(run, "%s cannot be written as JSON", value_type_name(value));
    }
    leave(run);
}

/* ---- looking into them ---- */

struct jinja_list *value_items(struct jinja_run *run, struct jinja_value value)
{
    if (value.type == JINJA_LIST)
        return value.list;
    struct jinja_value list = value_list(run, 0);
    if (!jinja_is_on(run))
        return NULL;
    if (value.type == JINJA_DICT) {
        for (uint32_t i = 0; i < value.dict->count && jinja_is_on(run); i++)
            value_append(run, list, value.dict->pairs[i].key);
    } else if (value.type == JINJA_STRING) {
        for (size_t i = 0, length; i < value.text.size && jinja_is_on(run); i += length) {
            struct jinja_text rest = text_part(value.text, i, value.text.size - i);
            length = text_offset(rest, 1);
            value_append(run, list, value_text(text_part(rest, 0, length)));
        }
    } else if (value.type != JINJA_UNDEFINED) {
        jinja_fail(run, "%s has no items", value_type_name(value));
    }
    return jinja_is_on(run) ? list.list : NULL;
}

static struct jinja_value loop_attribute(struct jinja_run *run, struct jinja_loop *loop, struct jinja_text name,
                                         bool *is_known)
{
    uint32_t count = loop->items->count;
    (void)run;
    *is_known = true;
    if (text_is(name, "index"))
        return jinja_integer(loop->index + 1);
    if (text_is(name, "index0"))
        return jinja_integer(loop->index);
    if (text_is(name, "first"))
        return jinja_bool(loop->index == 0);
    if (text_is(name, "last"))
        return jinja_bool(loop->index + 1 == count);
    if (text_is(name, "length"))
        return jinja_integer(count);
    if (text_is(name, "revindex"))
        return jinja_integer(count - loop->index);
    if (text_is(name, "revindex0"))
        return jinja_integer(count - loop->index - 1);
    if (text_is(name, "depth"))
        return jinja_integer(1); /* it grows in recursive loops only */
    if (text_is(name, "depth0"))
        return jinja_integer(0);
    if (text_is(name, "previtem"))
        return loop->index > 0 ? loop->items->items[loop->index - 1] : value_undefined(name);
    if (text_is(name, "nextitem"))
        return loop->index + 1 < count ? loop->items->items[loop->index + 1] : value_undefined(name);
    *is_known = false;
    return value_undefined(name);
}

static struct jinja_value bound_method(struct jinja_run *run, struct jinja_value self,
                                       const struct jinja_builtin *builtin)
{
    struct jinja_method *method = jinja_run_take(run, sizeof(*method));
    if (method == NULL)
        return jinja_none();
    *method = (struct jinja_method){self, builtin};
    return (struct jinja_value){.type = JINJA_METHOD, .method = method};
}

static const struct jinja_value *find_key(struct jinja_run *run, const struct jinja_dict *dict, struct jinja_value key)
{
    jinja_step(run, dict->count / 16);
    for (uint32_t i = 0; i < dict->count; i++)
        if (is_same_key(dict->pairs[i].key, key))
            return &dict->pairs[i].value;
    return NULL;
}

struct jinja_value value_attribute(struct jinja_run *run, struct jinja_value value, struct jinja_text name)
{
    bool is_known = false;
    if (value.type == JINJA_UNDEFINED)
        return jinja_fail(run, "'%.*s' is undefined", (int)min_u64(value.text.size, 64), value.text.data);
    if (value.type == JINJA_LOOP) {
        struct jinja_value found = loop_attribute(run, value.loop, name, &is_known);
        if (is_known)
            return found;
    }
    const struct jinja_builtin *builtin = jinja_method_of(value, name, &is_known);
    if (is_known)
        return bound_method(run, value, builtin);
    if (value.type != JINJA_DICT && value.type != JINJA_NAMESPACE)
        return value_undefined(name);
    const struct jinja_value *found = find_key(run, value.dict, value_text(name));
    return found != NULL ? *found : value_undefined(name);
}

/* An index as Python has it: from the end when negative. False: beyond either end. */
static bool real_index(int64_t index, size_t count, size_t *real)
{
    if (index < 0)
        index += (int64_t)count;
    *real = (size_t)index;
    return index >= 0 && (uint64_t)index < count;
}

struct jinja_value value_item(struct jinja_run *run, struct jinja_value value, struct jinja_value key)
{
    size_t at;
    static const struct jinja_text element = {.data = "an element", .size = 10};
    if (value.type == JINJA_UNDEFINED)
        return jinja_fail(run, "'%.*s' is undefined", (int)min_u64(value.text.size, 64), value.text.data);
    bool is_index = key.type == JINJA_INTEGER || key.type == JINJA_BOOLEAN;
    if (value.type == JINJA_LIST && is_index)
        return real_index(whole(key), value.list->count, &at) ? value.list->items[at] : value_undefined(element);
    if (value.type == JINJA_STRING && is_index) {
        jinja_step(run, value.text.size / 64);
        if (!real_index(whole(key), text_length(value.text), &at))
            return value_undefined(element);
        at = text_offset(value.text, at);
        struct jinja_text rest = text_part(value.text, at, value.text.size - at);
        return value_text(text_part(rest, 0, text_offset(rest, 1)));
    }
    if (value.type == JINJA_DICT) {
        const struct jinja_value *found = find_key(run, value.dict, key);
        if (found != NULL)
            return *found;
    }
    if (key.type == JINJA_STRING)
        return value_attribute(run, value, key.text);
    return value_undefined(element);
}

/* A bound of a slice as Python adjusts it. */
static int64_t slice_bound(struct jinja_run *run, struct jinja_value bound, int64_t fallback, int64_t count,
                           bool is_down)
{
    if (bound.type == JINJA_ABSENT || bound.type == JINJA_NONE)
        return fallback;
    if (bound.type != JINJA_INTEGER && bound.type != JINJA_BOOLEAN) {
        jinja_fail(run, "a slice needs integers, not %s", value_type_name(bound));
        return 0;
    }
    int64_t index = whole(bound);
    if (index < 0)
        index += count;
    if (index < 0)
        return is_down ? -1 : 0;
    return index >= count ? (is_down ? count - 1 : count) : index;
}

struct jinja_value value_slice(struct jinja_run *run, struct jinja_value value, const struct jinja_value bounds[3])
{
    if (value.type != JINJA_LIST && value.type != JINJA_STRING)
        return value.type == JINJA_UNDEFINED || value.type == JINJA_DICT
                   ? jinja_fail(run, "%s cannot be sliced", value_type_name(value))
                   : value_undefined(text_of("a slice"));
    bool is_list = value.type == JINJA_LIST;
    jinja_step(run, is_list ? 1 : value.text.size / 64);
    int64_t count = is_list ? value.list->count : (int64_t)text_length(value.text), step = 1;
    if (bounds[2].type == JINJA_INTEGER)
        step = bounds[2].integer;
    else if (bounds[2].type != JINJA_ABSENT && bounds[2].type != JINJA_NONE)
        return jinja_fail(run, "a slice needs integers, not %s", value_type_name(bounds[2]));
    if (step == 0)
        return jinja_fail(run, "a slice cannot have step 0");
    int64_t first = slice_bound(run, bounds[0], step > 0 ? 0 : count - 1, count, step < 0);
    int64_t last = slice_bound(run, bounds[1], step > 0 ? count : -1, count, step < 0);
    if (!is_list && step == 1) {
        size_t from = text_offset(value.text, (size_t)first), to = text_offset(value.text, (size_t)last);
        return value_text(text_part(value.text, from, to > from ? to - from : 0));
    }
    struct jinja_value result = value_list(run, 0);
    struct jinja_list *items = value_items(run, value);
    if (step < -count)
        step = -count - 1; /* no sum can overflow, and the same elements are met */
    if (step > count)
        step = count + 1;
    for (int64_t i = first; jinja_is_on(run) && (step > 0 ? i < last : i > last); i += step)
        value_append(run, result, items->items[i]);
    if (is_list) {
        result.is_tuple = value.is_tuple;
        return result;
    }
    struct jinja_builder out = {0};
    for (uint32_t i = 0; jinja_is_on(run) && i < result.list->count; i++)
        builder_put(run, &out, result.list->items[i].text);
    return builder_value(&out);
}
