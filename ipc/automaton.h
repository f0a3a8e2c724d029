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

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AUTOMATON_STATES_MAX 16384u
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

/* A text that stands here is accepted, and nothing can follow. */
bool automaton_is_final(const struct automaton *automaton, uint32_t state);

/* What lies in so many bytes is one: no step leads out of the table. */
bool automaton_is_sound(const struct automaton *automaton, size_t bytes);

#endif
