#include "engine/table.h"

#include <assert.h>
#include <string.h>

#include "ipc/base.h"

void *scratch_take(struct scratch *scratch, size_t bytes)
{
    size_t at = align_up_u64(scratch->used, 16);
    if (bytes > scratch->bytes || at > scratch->bytes - bytes)
        return NULL;
    scratch->used = at + bytes;
    return scratch->memory + at;
}

static uint16_t *row_of(const struct table *table, uint32_t state)
{
    return table->next + (size_t)state * table->class_count;
}

/* ---- where steps come from ---- */

/* Steps that do not lead to DEAD, by class and target. */
struct sources {
    uint32_t *first;  /* (class_count * state_count + 1): where those of a class and target begin */
    uint16_t *states; /* that they come from */
};

static bool find_sources(const struct table *table, struct scratch *scratch, struct sources *sources)
{
    uint32_t n = table->state_count, classes = table->class_count;
    size_t lists = (size_t)n * classes;
    sources->first = scratch_take(scratch, (lists + 2) * sizeof(*sources->first));
    if (sources->first == NULL)
        return false;
    memset(sources->first, 0, (lists + 2) * sizeof(*sources->first));
    uint32_t *count = sources->first + 2; /* one place on: filling moves each list's begin to its own place */
    for (uint32_t s = 1; s < n; s++)
        for (uint32_t k = 0; k < classes; k++)
            if (row_of(table, s)[k] != AUTOMATON_DEAD)
                count[(size_t)k * n + row_of(table, s)[k]]++;
    for (size_t i = 1; i < lists; i++)
        count[i] += count[i - 1];
    sources->states = scratch_take(scratch, count[lists - 1] * sizeof(*sources->states));
    if (sources->states == NULL)
        return false;
    for (uint32_t s = 1; s < n; s++)
        for (uint32_t k = 0; k < classes; k++)
            if (row_of(table, s)[k] != AUTOMATON_DEAD)
                sources->states[sources->first[(size_t)k * n + row_of(table, s)[k] + 1]++] = (uint16_t)s;
    return true;
}

/* ---- what can be finished ---- */

bool table_trim(struct table *table, struct scratch scratch)
{
    struct sources sources;
    uint32_t n = table->state_count, depth = 0;
    uint8_t *is_living = scratch_take(&scratch, n);
    uint16_t *stack = scratch_take(&scratch, n * sizeof(*stack));
    if (is_living == NULL || stack == NULL || !find_sources(table, &scratch, &sources))
        return false;
    memcpy(is_living, table->accepts, n);
    is_living[AUTOMATON_DEAD] = 0;
    for (uint32_t s = 1; s < n; s++)
        if (is_living[s])
            stack[depth++] = (uint16_t)s;
    while (depth > 0) {
        uint32_t target = stack[--depth];
        for (uint32_t k = 0; k < table->class_count; k++) {
            size_t list = (size_t)k * n + target;
            for (uint32_t i = sources.first[list]; i < sources.first[list + 1]; i++)
                if (!is_living[sources.states[i]]) {
                    is_living[sources.states[i]] = 1;
                    stack[depth++] = sources.states[i];
                }
        }
    }
    for (size_t i = 0; i < (size_t)n * table->class_count; i++)
        if (!is_living[table->next[i]])
            table->next[i] = AUTOMATON_DEAD;
    return true;
}

static bool leads_nowhere(const struct table *table, uint32_t state)
{
    for (uint32_t k = 0; k < table->class_count; k++)
        if (row_of(table, state)[k] != AUTOMATON_DEAD)
            return false;
    return !table->accepts[state];
}

bool table_is_empty(const struct table *table)
{
    return leads_nowhere(table, AUTOMATON_START);
}

/* ---- states that no text tells apart (Hopcroft 1971) ---- */

/* A partition of the states into blocks, each a run of `order`; those of a block that are marked stand at its beginning. */
struct partition {
    uint16_t *order, *place, *block_of; /* (n): states by block; where a state stands; its block */
    uint16_t *first, *end, *marked;     /* (n): of a block; n itself fits, being no more than 2^15 */
    uint32_t block_count;
};

static bool take_arrays(struct scratch *scratch, uint16_t **arrays[], uint32_t count, uint32_t n)
{
    for (uint32_t i = 0; i < count; i++)
        if ((*arrays[i] = scratch_take(scratch, n * sizeof(uint16_t))) == NULL)
            return false;
    return true;
}

static void mark(struct partition *p, uint16_t state)
{
    uint16_t block = p->block_of[state], to = (uint16_t)(p->first[block] + p->marked[block]), from = p->place[state];
    if (from < to) /* it is already */
        return;
    uint16_t other = p->order[to];
    p->order[to] = state;
    p->order[from] = other;
    p->place[state] = to;
    p->place[other] = from;
    p->marked[block]++;
}

/* Makes a block of the marked ones, or of the others where those are fewer. Its number; that of `block` when all or none are
 * marked. */
static uint16_t divide(struct partition *p, uint16_t block)
{
    uint16_t size = (uint16_t)(p->end[block] - p->first[block]), marked = p->marked[block];
    p->marked[block] = 0;
    if (marked == 0 || marked == size)
        return block;
    uint16_t new = (uint16_t)p->block_count++, middle = (uint16_t)(p->first[block] + marked);
    bool takes_marked = marked <= size - marked;
    p->first[new] = takes_marked ? p->first[block] : middle;
    p->end[new] = takes_marked ? middle : p->end[block];
    p->marked[new] = 0;
    if (takes_marked)
        p->first[block] = middle;
    else
        p->end[block] = middle;
    for (uint32_t i = p->first[new]; i < p->end[new]; i++)
        p->block_of[p->order[i]] = new;
    return new;
}

/* Blocks of states that agree on where a text may end, before any step. Those from which nothing can be finished are with
 * DEAD: they differ from all others. */
static void begin(struct partition *p, const struct table *table)
{
    p->block_count = 1;
    p->first[0] = p->marked[0] = 0;
    p->end[0] = (uint16_t)table->state_count;
    for (uint32_t s = 0; s < table->state_count; s++) {
        p->order[s] = p->place[s] = (uint16_t)s;
        p->block_of[s] = 0;
    }
    for (uint32_t s = 0; s < table->state_count; s++)
        if (leads_nowhere(table, s))
            mark(p, (uint16_t)s);
    divide(p, 0);
    for (uint32_t s = 1; s < table->state_count; s++)
        if (table->accepts[s])
            mark(p, (uint16_t)s);
    divide(p, p->block_of[AUTOMATON_START]);
}

static bool refine(struct partition *p, const struct table *table, const struct sources *sources,
                   struct scratch *scratch)
{
    uint32_t n = table->state_count, waiting_count = 0;
    uint16_t *waiting, *members, *touched;
    uint8_t *waits = scratch_take(scratch, n);
    if (waits == NULL || !take_arrays(scratch, (uint16_t * *[]){&waiting, &members, &touched}, 3, n))
        return false;
    for (uint32_t block = 0; block < n; block++)
        waits[block] = block < p->block_count;
    while (waiting_count < p->block_count) {
        waiting[waiting_count] = (uint16_t)waiting_count;
        waiting_count++;
    }
    while (waiting_count > 0) {
        uint16_t splitter = waiting[--waiting_count];
        uint32_t member_count = p->end[splitter] - p->first[splitter];
        waits[splitter] = 0;
        memcpy(members, p->order + p->first[splitter], member_count * sizeof(*members)); /* it may be divided itself */
        for (uint32_t k = 0; k < table->class_count; k++) {
            uint32_t touched_count = 0;
            for (uint32_t m = 0; m < member_count; m++) {
                size_t list = (size_t)k * n + members[m];
                for (uint32_t i = sources->first[list]; i < sources->first[list + 1]; i++) {
                    uint16_t block = p->block_of[sources->states[i]];
                    if (p->marked[block] == 0)
                        touched[touched_count++] = block;
                    mark(p, sources->states[i]);
                }
            }
            while (touched_count > 0) {
                uint16_t block = touched[--touched_count], part = divide(p, block);
                if (part != block && !waits[part]) { /* the smaller part is enough; of a block that waits both wait */
                    waits[part] = 1;
                    waiting[waiting_count++] = part;
                }
            }
        }
    }
    return true;
}

/* One row for each block, in the order of their first states, which keeps DEAD and START where they are. */
static void join(struct table *table, const struct partition *p, uint16_t *number_of)
{
    uint32_t count = 0;
    memset(number_of, 0xff, p->block_count * sizeof(*number_of));
    for (uint32_t s = 0; s < table->state_count; s++)
        if (number_of[p->block_of[s]] == UINT16_MAX) {
            number_of[p->block_of[s]] = (uint16_t)count;
            memmove(row_of(table, count), row_of(table, s), table->class_count * sizeof(*table->next));
            table->accepts[count++] = table->accepts[s];
        }
    table->state_count = count;
    for (size_t i = 0; i < (size_t)count * table->class_count; i++)
        table->next[i] = number_of[p->block_of[table->next[i]]];
}

static bool is_same_class(const struct table *table, uint32_t a, uint32_t b)
{
    for (uint32_t s = 0; s < table->state_count; s++)
        if (row_of(table, s)[a] != row_of(table, s)[b])
            return false;
    return true;
}

static void join_classes(struct table *table)
{
    uint8_t number_of[256] = {0}, kept[256];
    uint32_t count = 0, classes = table->class_count;
    for (uint32_t k = 0; k < classes; k++) {
        uint32_t like = 0;
        while (like < count && !is_same_class(table, kept[like], k))
            like++;
        number_of[k] = (uint8_t)like;
        if (like == count)
            kept[count++] = (uint8_t)k;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        table->class_of[byte] = number_of[table->class_of[byte]];
    for (uint32_t s = 0; s < table->state_count; s++)
        for (uint32_t k = 0; k < count; k++)
            table->next[(size_t)s * count + k] = table->next[(size_t)s * classes + kept[k]];
    table->class_count = count;
}

bool table_minimise(struct table *table, struct scratch scratch)
{
    struct partition p;
    struct sources sources;
    static_assert(AUTOMATON_STATES_MAX <= 1u << 15, "a count of states, and a number that is none, are of 16 bits");
    if (!take_arrays(&scratch, (uint16_t * *[]){&p.order, &p.place, &p.block_of, &p.first, &p.end, &p.marked}, 6,
                     table->state_count) ||
        !find_sources(table, &scratch, &sources))
        return false;
    begin(&p, table);
    if (!refine(&p, table, &sources, &scratch))
        return false;
    join(table, &p, p.place);
    join_classes(table);
    return true;
}

/* ---- packing ---- */

/* The ways of a state: its targets, each once, and which of them each class takes. */
static uint32_t find_ways(const struct table *table, uint32_t state, uint16_t *ways, uint8_t *pattern)
{
    uint32_t count = 0;
    for (uint32_t k = 0; k < table->class_count; k++) {
        uint16_t target = row_of(table, state)[k];
        uint32_t way = 0;
        while (way < count && ways[way] != target)
            way++;
        if (way == count)
            ways[count++] = target;
        pattern[k] = (uint8_t)way;
    }
    return count;
}

/* The patterns of all states, each once. */
struct patterns {
    uint8_t *bytes; /* (count, class_count) */
    uint16_t *of;   /* (state_count) */
    uint16_t *slots;
    uint32_t slot_mask, count;
};

static uint16_t pattern_number(struct patterns *p, const uint8_t *pattern, uint32_t classes)
{
    uint32_t hash = 2166136261u;
    for (uint32_t k = 0; k < classes; k++)
        hash = (hash ^ pattern[k]) * 16777619u;
    uint32_t slot = (hash ^ hash >> 15) & p->slot_mask;
    for (; p->slots[slot] != UINT16_MAX; slot = (slot + 1) & p->slot_mask)
        if (memcmp(p->bytes + (size_t)p->slots[slot] * classes, pattern, classes) == 0)
            return p->slots[slot];
    memcpy(p->bytes + (size_t)p->count * classes, pattern, classes);
    p->slots[slot] = (uint16_t)p->count;
    return (uint16_t)p->count++;
}

static bool open_patterns(struct patterns *p, const struct table *table, struct scratch *scratch)
{
    uint32_t slots = 16;
    while (slots < 2 * table->state_count)
        slots *= 2;
    *p = (struct patterns){.slot_mask = slots - 1};
    p->slots = scratch_take(scratch, slots * sizeof(*p->slots));
    p->of = scratch_take(scratch, table->state_count * sizeof(*p->of));
    p->bytes = scratch_take(scratch, (size_t)table->state_count * table->class_count);
    if (p->slots == NULL || p->of == NULL || p->bytes == NULL)
        return false;
    memset(p->slots, 0xff, slots * sizeof(*p->slots));
    return true;
}

struct automaton *table_pack(const struct table *table, struct scratch *scratch)
{
    uint16_t ways[256];
    uint8_t pattern[256];
    struct patterns patterns;
    struct automaton head = {.state_count = table->state_count, .class_count = table->class_count};
    if (!open_patterns(&patterns, table, scratch))
        return NULL;
    for (uint32_t s = 0; s < table->state_count; s++) {
        head.way_count += find_ways(table, s, ways, pattern);
        patterns.of[s] = pattern_number(&patterns, pattern, table->class_count);
    }
    head.pattern_count = patterns.count;
    struct automaton *a = scratch_take(scratch, automaton_bytes(&head));
    if (a == NULL)
        return NULL;
    *a = head;
    memcpy(a->class_of, table->class_of, sizeof(a->class_of));
    uint16_t *all_ways = (uint16_t *)(uintptr_t)automaton_ways(a);
    for (uint32_t s = 0, first = 0; s < table->state_count; s++) {
        a->states[s] =
            (struct automaton_state){.way_first = first, .pattern = patterns.of[s], .accepts = table->accepts[s]};
        first += find_ways(table, s, all_ways + first, pattern);
    }
    memcpy((uint8_t *)(uintptr_t)automaton_patterns(a), patterns.bytes, (size_t)patterns.count * table->class_count);
    return a;
}
