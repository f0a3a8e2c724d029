#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "engine/table.h"
#include "ipc/base.h"
#include "tests/schemas.h"

#define STATES_MAX 60u
#define TEXTS      300u
#define TEXT_SIZE  30u

static uint8_t memory[1 << 20];
static const struct scratch scratch = {.memory = memory, .bytes = sizeof(memory)};

/* A table by chance, with many states that mean the same: rows are copies of few, and some lead nowhere. */
static struct table random_table(void)
{
    struct table table = {.state_count = 2 + schemas_random(STATES_MAX - 2), .class_count = 1 + schemas_random(4)};
    uint32_t n = table.state_count, kinds = 1 + schemas_random(n), classes = table.class_count;
    table.next = calloc((size_t)n * classes, sizeof(*table.next));
    table.accepts = calloc(n, 1);
    for (uint32_t byte = 0; byte < 256; byte++)
        table.class_of[byte] = (uint8_t)(byte % classes);
    for (uint32_t s = 1; s < n; s++) {
        uint32_t like = s > kinds ? 1 + schemas_random(kinds) : s;
        table.accepts[s] = like < s ? table.accepts[like] : schemas_random(5) == 0;
        for (uint32_t k = 0; k < classes; k++)
            table.next[s * classes + k] = (uint16_t)(like < s                 ? table.next[like * classes + k]
                                                     : schemas_random(3) == 0 ? AUTOMATON_DEAD
                                                                              : schemas_random(n));
    }
    return table;
}

static bool accepts(const struct table *table, const uint8_t *text, uint32_t size)
{
    uint32_t state = AUTOMATON_START;
    for (uint32_t i = 0; i < size; i++)
        state = table->next[state * table->class_count + table->class_of[text[i]]];
    return table->accepts[state];
}

static bool automaton_takes(const struct automaton *a, const uint8_t *text, uint32_t size)
{
    uint32_t state = AUTOMATON_START;
    for (uint32_t i = 0; i < size; i++)
        state = automaton_step(a, state, text[i]);
    return automaton_accepts(a, state);
}

/* How many states there must be (Moore 1956): what k steps do not tell apart, for more and more steps. */
static uint32_t states_needed(const struct table *table)
{
    uint32_t block_of[STATES_MAX], before = 0, count = 0;
    for (uint32_t s = 0; s < table->state_count; s++)
        block_of[s] = table->accepts[s];
    do {
        uint32_t next_of[STATES_MAX];
        before = count;
        count = 0;
        for (uint32_t s = 0; s < table->state_count; s++) {
            uint32_t like = 0;
            for (; like < s; like++) {
                bool is_same = block_of[like] == block_of[s];
                for (uint32_t k = 0; k < table->class_count; k++)
                    is_same = is_same && block_of[table->next[like * table->class_count + k]] ==
                                             block_of[table->next[s * table->class_count + k]];
                if (is_same)
                    break;
            }
            next_of[s] = like < s ? next_of[like] : count++;
        }
        memcpy(block_of, next_of, sizeof(block_of));
    } while (count != before);
    return count;
}

Test(table, means_the_same_when_it_has_been_made_small_and_packed)
{
    uint32_t smaller = 0, full = 0;
    for (uint32_t n = 0; n < 2000; n++) {
        static uint8_t texts[TEXTS][TEXT_SIZE];
        static bool is_good[TEXTS];
        struct table table = random_table();
        for (uint32_t i = 0; i < TEXTS; i++) {
            for (uint32_t k = 0; k < TEXT_SIZE; k++)
                texts[i][k] = (uint8_t)schemas_random(256);
            is_good[i] = accepts(&table, texts[i], i % TEXT_SIZE);
        }
        cr_assert(table_trim(&table, scratch));
        if (table_is_empty(&table)) {
            for (uint32_t i = 0; i < TEXTS; i++)
                cr_assert_not(is_good[i]);
            free(table.next);
            free(table.accepts);
            continue;
        }
        uint32_t needed = states_needed(&table), before = table.state_count;
        cr_assert(table_minimise(&table, scratch));
        cr_assert_eq(table.state_count, needed, "table %u: %u states, %u would do", n, table.state_count, needed);
        cr_assert_eq(states_needed(&table), needed);
        smaller += needed < before;
        full += needed == before;
        struct scratch room = scratch;
        const struct automaton *a = table_pack(&table, &room);
        cr_assert_not_null(a);
        cr_assert(automaton_is_sound(a, automaton_bytes(a)));
        cr_assert_not(automaton_is_sound(a, automaton_bytes(a) - 1));
        for (uint32_t i = 0; i < TEXTS; i++) {
            cr_assert_eq(accepts(&table, texts[i], i % TEXT_SIZE), is_good[i], "table %u", n);
            cr_assert_eq(automaton_takes(a, texts[i], i % TEXT_SIZE), is_good[i], "table %u", n);
        }
        free(table.next);
        free(table.accepts);
    }
    cr_expect(smaller > 500 && full > 20, "%u became smaller, %u not", smaller, full);
}

Test(table, too_little_memory_changes_nothing)
{
    for (uint32_t n = 0; n < 200; n++) {
        struct table table = random_table();
        size_t bytes = (size_t)table.state_count * table.class_count * sizeof(*table.next);
        uint16_t *before = malloc(bytes);
        cr_assert(table_trim(&table, scratch));
        memcpy(before, table.next, bytes);
        uint32_t states = table.state_count;
        for (size_t room = 0; !table_minimise(&table, (struct scratch){.memory = memory, .bytes = room}); room += 64) {
            cr_assert_eq(table.state_count, states);
            cr_assert_arr_eq(table.next, before, bytes);
            cr_assert_lt(room, sizeof(memory));
        }
        struct scratch none = {.memory = memory, .bytes = 16};
        cr_expect_null(table_pack(&table, &none));
        free(before);
        free(table.next);
        free(table.accepts);
    }
}
