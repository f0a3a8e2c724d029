/* automaton.h - which bytes may come next in a text that has to keep to a grammar: a table of states.
 *
 * Used by: front, which makes them (engine/fragment.h); the last stage, which goes by them.
 * Owns: nothing.   Never blocks.
 *
 * Position-independent plain data: it lies in a request's prompt pages, behind ids and biases. The state after a text is a
 * pure function of its bytes. From every state but DEAD an accepted text can be reached: wherever a text stands, it can be
 * finished.
 */
#ifndef EVENFLOW_AUTOMATON_H
#define EVENFLOW_AUTOMATON_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUTOMATON_STATES_MAX 16384u
#define AUTOMATON_DEAD       0u
#define AUTOMATON_START      1u

/* Where a step leads: a state has few different targets, its ways, and a pattern says which of them each class of bytes
 * takes. Many states share a pattern. */
struct automaton_state {
    uint32_t way_first; /* in ways */
    uint16_t pattern;
    uint8_t accepts; /* 1: a text may end here */
    uint8_t reserved;
};

static_assert(sizeof(struct automaton_state) == 8, "layout is shared by processes");

struct automaton {
    uint32_t state_count; /* DEAD included */
    uint32_t class_count;
    uint32_t way_count;
    uint32_t pattern_count;
    uint8_t class_of[256];
    struct automaton_state states[]; /* (state_count); then the ways, uint16_t (way_count): states; then the patterns,
                                      * uint8_t (pattern_count, class_count): a way's number among its state's */
};

static inline const uint16_t *automaton_ways(const struct automaton *automaton)
{
    return (const uint16_t *)(automaton->states + automaton->state_count);
}

static inline const uint8_t *automaton_patterns(const struct automaton *automaton)
{
    return (const uint8_t *)(automaton_ways(automaton) + automaton->way_count);
}

static inline bool automaton_accepts(const struct automaton *automaton, uint32_t state)
{
    return automaton->states[state].accepts;
}

static inline uint32_t automaton_step(const struct automaton *automaton, uint32_t state, uint8_t byte)
{
    const struct automaton_state *from = &automaton->states[state];
    size_t at = (size_t)from->pattern * automaton->class_count + automaton->class_of[byte];
    return automaton_ways(automaton)[from->way_first + automaton_patterns(automaton)[at]];
}

size_t automaton_bytes(const struct automaton *automaton);

/* A text that stands here is accepted, and nothing can follow. */
bool automaton_is_final(const struct automaton *automaton, uint32_t state);

/* What lies in so many bytes is one: no step leads out of the table. */
bool automaton_is_sound(const struct automaton *automaton, size_t bytes);

#endif
