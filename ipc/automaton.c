#include "ipc/automaton.h"

size_t automaton_bytes(const struct automaton *a)
{
    return sizeof(*a) + (size_t)a->state_count * a->class_count * sizeof(a->next[0]) + a->state_count;
}

bool automaton_is_final(const struct automaton *a, uint32_t state)
{
    for (uint32_t k = 0; k < a->class_count; k++)
        if (a->next[(size_t)state * a->class_count + k] != AUTOMATON_DEAD)
            return false;
    return automaton_accepts(a)[state] != 0;
}

bool automaton_is_sound(const struct automaton *a, size_t bytes)
{
    if (bytes < sizeof(*a) || a->state_count <= AUTOMATON_START || a->state_count > AUTOMATON_STATES_MAX ||
        a->class_count == 0 || a->class_count > 256 || automaton_bytes(a) > bytes)
        return false;
    for (uint32_t byte = 0; byte < 256; byte++)
        if (a->class_of[byte] >= a->class_count)
            return false;
    for (size_t i = 0; i < (size_t)a->state_count * a->class_count; i++)
        if (a->next[i] >= a->state_count)
            return false;
    return true;
}
