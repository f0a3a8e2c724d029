/* fragment.h - grammars put together from fragments, and made into one table of states (ipc/automaton.h).
 *
 * Used by: regex.c, schema.c, grammar.c.   Owns: nothing; memory is the caller's.   Never blocks, never allocates.
 *
 * Fragments are joined as Thompson (1968) does, over the bytes of UTF-8; fragment_finish() makes the deterministic automaton
 * of the whole. States from which no accepted text can be reached are left out. Everything is bounded: what does not fit into
 * memory, nodes, states or steps is an outcome.
 */
#ifndef EVENFLOW_FRAGMENT_H
#define EVENFLOW_FRAGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/automaton.h"

#define FRAGMENT_NODES_MAX 200000u
#define FRAGMENT_STEPS_MAX 40000000u /* of building: about 0.2 s */

struct fragment_node;

/* A part of a grammar: what leads from one node to another. */
struct fragment {
    uint32_t from, to;
};

struct fragment_builder {
    uint8_t *memory; /* all that building takes, the result included */
    size_t bytes, used;
    struct fragment_node *nodes;
    uint32_t node_count;
    uint64_t steps;
    bool is_left_out[256]; /* bytes that no text may have; all may, unless the caller says so after fragment_begin() */
    bool is_json_text;     /* characters are those of a JSON string: what must be escaped there is */
    bool has_failed;       /* something did not fit: whatever was built means nothing */
};

void fragment_begin(struct fragment_builder *builder, uint8_t *memory, size_t bytes);

struct fragment fragment_empty(struct fragment_builder *builder);
struct fragment fragment_bytes(struct fragment_builder *builder, uint8_t first, uint8_t last);
/* One character of a range of code points. */
struct fragment fragment_characters(struct fragment_builder *builder, uint32_t first, uint32_t last);
/* Exactly these bytes. */
struct fragment fragment_text(struct fragment_builder *builder, const char *text, size_t size);
struct fragment fragment_then(struct fragment_builder *builder, struct fragment a, struct fragment b);
struct fragment fragment_or(struct fragment_builder *builder, struct fragment a, struct fragment b);
struct fragment fragment_optional(struct fragment_builder *builder, struct fragment a);
/* Any number of times, none included. */
struct fragment fragment_repeated(struct fragment_builder *builder, struct fragment a);
/* Another way from a node to one, by nothing. */
void fragment_link(struct fragment_builder *builder, uint32_t from, uint32_t to);

/* The table, in the builder's memory. NULL: it did not fit. */
struct automaton *fragment_finish(struct fragment_builder *builder, struct fragment whole);

#endif
