/* automaton.h - which bytes may come next: fragments of a grammar to one table of states.
 *
 * Used by: regex.c, schema.c.   Owns: nothing; memory is the caller's.   Never blocks, never allocates.
 *
 * A grammar is put together from fragments, as Thompson (1968) does, over the bytes of UTF-8; automaton_finish() makes the
 * deterministic automaton of it. States from which no accepted text can be reached are left out: wherever a text stands, it
 * can be finished. The table is position-independent plain data, and the state after a text a pure function of its bytes.
 * Everything is bounded: what does not fit into memory, nodes, states or steps is an outcome.
 */
#ifndef EVENFLOW_AUTOMATON_H
#define EVENFLOW_AUTOMATON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUTOMATON_STATES_MAX 16384u
#define AUTOMATON_NODES_MAX  200000u
#define AUTOMATON_STEPS_MAX  40000000u /* of building: about 0.2 s */
#define AUTOMATON_DEAD       0u
#define AUTOMATON_START      1u

/* next of a state by the class of a byte; then one byte per state: 1 where a text may end. */
struct automaton {
    uint32_t state_count; /* DEAD included */
    uint32_t class_count;
    uint8_t class_of[256];
    uint16_t next[]; /* (state_count, class_count) */
};

static inline const uint8_t *automaton_accepts(const struct automaton *automaton)
{
    return (const uint8_t *)(automaton->next + (size_t)automaton->state_count * automaton->class_count);
}

static inline uint32_t automaton_step(const struct automaton *automaton, uint32_t state, uint8_t byte)
{
    return automaton->next[(size_t)state * automaton->class_count + automaton->class_of[byte]];
}

size_t automaton_bytes(const struct automaton *automaton);

/* ---- building ---- */

struct automaton_node;

/* A part of a grammar: what leads from one node to another. */
struct fragment {
    uint32_t from, to;
};

struct automaton_builder {
    uint8_t *memory; /* all that building takes, the result included */
    size_t bytes, used;
    struct automaton_node *nodes;
    uint32_t node_count;
    uint64_t steps;
    bool is_json_text; /* characters are those of a JSON string: what must be escaped there is */
    bool has_failed;   /* something did not fit: whatever was built means nothing */
};

void automaton_begin(struct automaton_builder *builder, uint8_t *memory, size_t bytes);

struct fragment fragment_empty(struct automaton_builder *builder);
struct fragment fragment_bytes(struct automaton_builder *builder, uint8_t first, uint8_t last);
/* One character of a range of code points. */
struct fragment fragment_characters(struct automaton_builder *builder, uint32_t first, uint32_t last);
/* Exactly these bytes. */
struct fragment fragment_text(struct automaton_builder *builder, const char *text, size_t size);
struct fragment fragment_then(struct automaton_builder *builder, struct fragment a, struct fragment b);
struct fragment fragment_or(struct automaton_builder *builder, struct fragment a, struct fragment b);
struct fragment fragment_optional(struct automaton_builder *builder, struct fragment a);
/* Any number of times, none included. */
struct fragment fragment_repeated(struct automaton_builder *builder, struct fragment a);
/* Another way from a node to one, by nothing. */
void fragment_link(struct automaton_builder *builder, uint32_t from, uint32_t to);

/* The table, in the builder's memory. NULL: it did not fit. */
struct automaton *automaton_finish(struct automaton_builder *builder, struct fragment whole);

#endif
