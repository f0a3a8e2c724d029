#include "engine/fragment.h"

#include <string.h>

#include "engine/table.h"
#include "ipc/base.h"

#define NOWHERE UINT32_MAX

/* Either one step by a byte of a range, or up to two ways by nothing. */
struct fragment_node {
    uint32_t to, other; /* NOWHERE: none */
    uint8_t first, last;
    bool is_step;
};

void fragment_begin(struct fragment_builder *b, uint8_t *memory, size_t bytes)
{
    *b = (struct fragment_builder){.memory = memory, .bytes = bytes};
}

static void *take(struct fragment_builder *b, size_t bytes)
{
    struct scratch scratch = {b->memory, b->bytes, b->used};
    void *memory = b->has_failed ? NULL : scratch_take(&scratch, bytes);
    b->has_failed = memory == NULL;
    b->used = scratch.used;
    return memory;
}

static bool step(struct fragment_builder *b, uint64_t steps)
{
    b->steps += steps;
    if (b->steps > FRAGMENT_STEPS_MAX)
        b->has_failed = true;
    return !b->has_failed;
}

static uint32_t new_node(struct fragment_builder *b)
{
    if (b->nodes == NULL)
        b->nodes = take(b, FRAGMENT_NODES_MAX * sizeof(*b->nodes));
    if (b->has_failed || b->node_count == FRAGMENT_NODES_MAX) {
        b->has_failed = true;
        return 0;
    }
    b->nodes[b->node_count] = (struct fragment_node){.to = NOWHERE, .other = NOWHERE};
    return b->node_count++;
}

void fragment_link(struct fragment_builder *b, uint32_t from, uint32_t to)
{
    if (b->has_failed)
        return;
    while (b->nodes[from].to != NOWHERE && b->nodes[from].other != NOWHERE)
        from = b->nodes[from].other; /* a chain of nodes where ways are many */
    struct fragment_node *node = &b->nodes[from];
    check(!node->is_step);
    if (node->to == NOWHERE) {
        node->to = to;
        return;
    }
    uint32_t more = new_node(b);
    if (b->has_failed)
        return;
    b->nodes[more].to = to;
    b->nodes[from].other = more;
}

struct fragment fragment_empty(struct fragment_builder *b)
{
    uint32_t node = new_node(b);
    return (struct fragment){node, node};
}

struct fragment fragment_bytes(struct fragment_builder *b, uint8_t first, uint8_t last)
{
    struct fragment f = {new_node(b), new_node(b)};
    if (!b->has_failed)
        b->nodes[f.from] = (struct fragment_node){f.to, NOWHERE, first, last, true};
    return f;
}

struct fragment fragment_then(struct fragment_builder *builder, struct fragment a, struct fragment b)
{
    fragment_link(builder, a.to, b.from);
    return (struct fragment){a.from, b.to};
}

struct fragment fragment_or(struct fragment_builder *builder, struct fragment a, struct fragment b)
{
    struct fragment f = {new_node(builder), new_node(builder)};
    fragment_link(builder, f.from, a.from);
    fragment_link(builder, f.from, b.from);
    fragment_link(builder, a.to, f.to);
    fragment_link(builder, b.to, f.to);
    return f;
}

struct fragment fragment_optional(struct fragment_builder *b, struct fragment a)
{
    struct fragment f = {new_node(b), new_node(b)};
    fragment_link(b, f.from, a.from);
    fragment_link(b, f.from, f.to);
    fragment_link(b, a.to, f.to);
    return f;
}

struct fragment fragment_repeated(struct fragment_builder *b, struct fragment a)
{
    struct fragment f = {new_node(b), new_node(b)};
    fragment_link(b, f.from, a.from);
    fragment_link(b, f.from, f.to);
    fragment_link(b, a.to, f.from);
    return f;
}

struct fragment fragment_text(struct fragment_builder *b, const char *text, size_t size)
{
    struct fragment f = fragment_empty(b);
    for (size_t i = 0; i < size && !b->has_failed; i++)
        f = fragment_then(b, f, fragment_bytes(b, (uint8_t)text[i], (uint8_t)text[i]));
    return f;
}

/* ---- characters ---- */

static uint32_t encode(uint32_t code, uint8_t bytes[4])
{
    uint32_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (uint32_t i = size - 1; i > 0; i--, code >>= 6)
        bytes[i] = (uint8_t)(0x80 | (code & 0x3f));
    bytes[0] = (uint8_t)(lead[size] | code);
    return size;
}

/* Adds the sequences of a range of code points between two nodes. The range is split until each of its bytes is one range of
 * bytes (Cox 2010, "Regular expression matching in the wild"). */
static void add_range(struct fragment_builder *b, struct fragment f, uint32_t first, uint32_t last)
{
    static const uint32_t limits[] = {0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff};
    if (b->has_failed || first > last || (first >= 0xd800 && last <= 0xdfff))
        return;
    for (uint32_t i = 0; i < ARRAY_COUNT(limits); i++)
        if (first <= limits[i] && limits[i] < last) {
            add_range(b, f, first, limits[i]);
            add_range(b, f, limits[i] + 1, last);
            return;
        }
    for (uint32_t i = 1; i < 4 && last > 0x7f; i++) {
        uint32_t mask = (1u << (6 * i)) - 1;
        if ((first & ~mask) == (last & ~mask))
            continue;
        uint32_t middle = (first & mask) != 0 ? first | mask : (last & mask) != mask ? (last & ~mask) - 1 : last;
        if (middle == last)
            continue;
        add_range(b, f, first, middle);
        add_range(b, f, middle + 1, last);
        return;
    }
    uint8_t low[4], high[4];
    uint32_t size = encode(first, low);
    encode(last, high);
    struct fragment sequence = fragment_bytes(b, low[0], high[0]);
    for (uint32_t i = 1; i < size; i++)
        sequence = fragment_then(b, sequence, fragment_bytes(b, low[i], high[i]));
    fragment_link(b, f.from, sequence.from);
    fragment_link(b, sequence.to, f.to);
}

static void add_text(struct fragment_builder *b, struct fragment f, const char *text)
{
    struct fragment escape = fragment_text(b, text, strlen(text));
    fragment_link(b, f.from, escape.from);
    fragment_link(b, escape.to, f.to);
}

/* How a character that must be escaped stands in a JSON string: the short form where there is one. */
static void add_escaped(struct fragment_builder *b, struct fragment f, uint32_t code)
{
    static const char hex[] = "0123456789abcdef", plain[] = "\"\"\\\\\nn\rr\tt\bb\ff";
    for (uint32_t i = 0; i < sizeof(plain) - 1; i += 2)
        if (code == (uint8_t)plain[i]) {
            const char text[] = {'\\', plain[i + 1], '\0'};
            add_text(b, f, text);
            return;
        }
    const char text[] = {'\\', 'u', '0', '0', hex[code >> 4 & 15], hex[code & 15], '\0'};
    add_text(b, f, text);
}

struct fragment fragment_characters(struct fragment_builder *b, uint32_t first, uint32_t last)
{
    struct fragment f = {new_node(b), new_node(b)};
    if (!b->is_json_text) {
        add_range(b, f, first, last);
        return f;
    }
    for (uint32_t code = first; code <= last && code <= '\\'; code++)
        if (code < 0x20 || code == '"' || code == '\\')
            add_escaped(b, f, code);
    static const uint32_t pieces[][2] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10ffff}};
    for (uint32_t i = 0; i < ARRAY_COUNT(pieces); i++)
        add_range(b, f, (uint32_t)max_u64(first, pieces[i][0]), (uint32_t)min_u64(last, pieces[i][1]));
    return f;
}

/* ---- to one state at a time ---- */

/* Bytes that no step tells apart are one class. */
static uint32_t find_classes(const struct fragment_builder *b, uint8_t class_of[256], uint8_t representative[256])
{
    bool begins[257] = {true};
    uint32_t count = 0;
    for (uint32_t i = 0; i < b->node_count; i++)
        if (b->nodes[i].is_step)
            begins[b->nodes[i].first] = begins[b->nodes[i].last + 1] = true;
    for (uint32_t byte = 0; byte < 256; byte++) {
        if (begins[byte] || b->is_left_out[byte] != b->is_left_out[byte - 1])
            representative[count++] = (uint8_t)byte;
        class_of[byte] = (uint8_t)(count - 1);
    }
    return count;
}

/* A state is the set of nodes with steps (and the last node) that a text can stand at, in the order of their numbers. */
struct subset {
    uint32_t *nodes;
    uint32_t count;
    bool accepts;
};

struct construction {
    struct fragment_builder *b;
    uint32_t last;   /* node of the whole */
    uint32_t *marks; /* (node_count) the round in which a node was met */
    uint32_t *stack; /* (node_count) */
    uint32_t *found; /* (node_count) */
    uint32_t round;
    uint32_t found_count;
    struct subset *states; /* (AUTOMATON_STATES_MAX) */
    uint32_t state_count;
    uint32_t *slots; /* hash table of states; 0: empty */
};

#define SLOTS (4 * AUTOMATON_STATES_MAX)

/* Follows ways by nothing; steps and the last node are found. */
static void follow(struct construction *c, uint32_t from)
{
    const struct fragment_node *nodes = c->b->nodes;
    uint32_t depth = 0;
    if (c->marks[from] == c->round)
        return;
    c->marks[from] = c->round;
    c->stack[depth++] = from;
    while (depth > 0) {
        uint32_t at = c->stack[--depth];
        if (nodes[at].is_step || at == c->last)
            c->found[c->found_count++] = at;
        const uint32_t ways[2] = {nodes[at].to, nodes[at].other};
        for (uint32_t i = 0; i < 2 && !nodes[at].is_step; i++)
            if (ways[i] != NOWHERE && c->marks[ways[i]] != c->round) {
                c->marks[ways[i]] = c->round;
                c->stack[depth++] = ways[i];
            }
        c->b->steps++;
    }
}

static void sort(uint32_t *values, uint32_t count)
{
    for (uint32_t gap = count / 2; gap > 0; gap /= 2) /* Shell's: no memory, and short lists mostly */
        for (uint32_t i = gap; i < count; i++)
            for (uint32_t j = i; j >= gap && values[j - gap] > values[j]; j -= gap) {
                uint32_t swapped = values[j];
                values[j] = values[j - gap];
                values[j - gap] = swapped;
            }
}

/* The number of the state that was found; a new one when there is none yet. */
static uint32_t intern(struct construction *c)
{
    if (c->found_count == 0)
        return AUTOMATON_DEAD;
    sort(c->found, c->found_count);
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < c->found_count; i++)
        hash = (hash ^ c->found[i]) * 16777619u;
    step(c->b, c->found_count);
    uint32_t slot = (hash ^ hash >> 15) % SLOTS;
    for (; c->slots[slot] != 0; slot = (slot + 1) % SLOTS) {
        const struct subset *state = &c->states[c->slots[slot]];
        if (state->count == c->found_count && memcmp(state->nodes, c->found, c->found_count * sizeof(*c->found)) == 0)
            return c->slots[slot];
    }
    uint32_t *nodes = take(c->b, c->found_count * sizeof(*nodes));
    if (nodes == NULL || c->state_count == AUTOMATON_STATES_MAX) {
        c->b->has_failed = true;
        return AUTOMATON_DEAD;
    }
    memcpy(nodes, c->found, c->found_count * sizeof(*nodes));
    struct subset *state = &c->states[c->state_count];
    *state = (struct subset){.nodes = nodes, .count = c->found_count};
    for (uint32_t i = 0; i < c->found_count; i++)
        state->accepts = state->accepts || c->found[i] == c->last;
    c->slots[slot] = c->state_count;
    return c->state_count++;
}

static uint32_t next_state(struct construction *c, uint32_t state, uint8_t byte)
{
    const struct subset *from = &c->states[state];
    c->round++;
    c->found_count = 0;
    for (uint32_t i = 0; i < from->count; i++) {
        const struct fragment_node *node = &c->b->nodes[from->nodes[i]];
        if (node->is_step && byte >= node->first && byte <= node->last)
            follow(c, node->to);
    }
    step(c->b, from->count);
    return intern(c);
}

/* Small, where there is memory for that; one that is not is as good. */
static struct automaton *make_automaton(struct fragment_builder *b, struct table *table)
{
    struct scratch scratch = {b->memory, b->bytes, b->used};
    b->has_failed = !table_trim(table, scratch);
    if (b->has_failed || table_is_empty(table))
        return NULL;
    table_minimise(table, scratch);
    struct automaton *automaton = table_pack(table, &scratch);
    b->has_failed = automaton == NULL;
    b->used = scratch.used;
    return automaton;
}

struct automaton *fragment_finish(struct fragment_builder *b, struct fragment whole)
{
    uint8_t class_of[256], representative[256];
    if (b->has_failed)
        return NULL;
    uint32_t classes = find_classes(b, class_of, representative);
    struct construction c = {.b = b, .last = whole.to, .state_count = 1, .round = 1};
    c.marks = take(b, b->node_count * sizeof(uint32_t));
    c.stack = take(b, b->node_count * sizeof(uint32_t));
    c.found = take(b, b->node_count * sizeof(uint32_t));
    c.states = take(b, AUTOMATON_STATES_MAX * sizeof(*c.states));
    c.slots = take(b, SLOTS * sizeof(*c.slots));
    uint16_t *next = take(b, (size_t)AUTOMATON_STATES_MAX * classes * sizeof(*next));
    if (b->has_failed)
        return NULL;
    memset(c.marks, 0, b->node_count * sizeof(uint32_t));
    memset(c.slots, 0, SLOTS * sizeof(*c.slots));
    memset(next, 0, classes * sizeof(*next));
    follow(&c, whole.from);
    intern(&c);
    for (uint32_t s = AUTOMATON_START; s < c.state_count && !b->has_failed; s++)
        for (uint32_t k = 0; k < classes && !b->has_failed; k++)
            next[(size_t)s * classes + k] =
                b->is_left_out[representative[k]] ? AUTOMATON_DEAD : (uint16_t)next_state(&c, s, representative[k]);
    struct table table = {.state_count = c.state_count, .class_count = classes, .next = next};
    table.accepts = take(b, c.state_count);
    if (b->has_failed)
        return NULL;
    memcpy(table.class_of, class_of, sizeof(class_of));
    table.accepts[AUTOMATON_DEAD] = 0;
    for (uint32_t s = AUTOMATON_START; s < c.state_count; s++)
        table.accepts[s] = c.states[s].accepts;
    return make_automaton(b, &table);
}
