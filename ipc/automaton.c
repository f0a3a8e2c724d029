#include "ipc/automaton.h"

size_t automaton_bytes(const struct automaton *a)
{
    return sizeof(*a) + (size_t)a->state_count * sizeof(a->states[0]) + (size_t)a->way_count * sizeof(uint16_t) +
           (size_t)a->pattern_count * a->class_count;
}

bool automaton_is_final(const struct automaton *a, uint32_t state)
{
    const uint8_t *pattern = automaton_patterns(a) + (size_t)a->states[state].pattern * a->class_count;
    for (uint32_t k = 0; k < a->class_count; k++)
        if (automaton_ways(a)[a->states[state].way_first + pattern[k]] != AUTOMATON_DEAD)
            return false;
    return automaton_accepts(a, state);
}

/* A number of ways that every state of this pattern must have. */
static uint32_t ways_of(const struct automaton *a, uint32_t pattern)
{
    const uint8_t *ways = automaton_patterns(a) + (size_t)pattern * a->class_count;
    uint32_t count = 0;
    for (uint32_t k = 0; k < a->class_count; k++)
        count = ways[k] >= count ? ways[k] + 1u : count;
    return count;
}

bool automaton_is_sound(const struct automaton *a, size_t bytes)
{
    if (bytes < sizeof(*a) || a->state_count <= AUTOMATON_START || a->state_count > AUTOMATON_STATES_MAX ||
        a->class_count == 0 || a->class_count > 256 || automaton_bytes(a) > bytes)
        return false;
    for (uint32_t byte = 0; byte < 256; byte++)
        if (a->class_of[byte] >= a->class_count)
            return false;
    for (uint32_t s = 0; s < a->state_count; s++)
        if (a->states[s].pattern >= a->pattern_count ||
            (uint64_t)a->states[s].way_first + ways_of(a, a->states[s].pattern) > a->way_count)
            return false;
    for (uint32_t i = 0; i < a->way_count; i++)
        if (automaton_ways(a)[i] >= a->state_count)
            return false;
    return true;
}
