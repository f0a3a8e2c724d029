/* table.h - a deterministic automaton while it is made: a plain table of steps, made small, then packed (ipc/automaton.h).
 *
 * Used by: fragment.c.   Owns: nothing; memory is the caller's.   Never blocks, never allocates.
 */
#ifndef EVENFLOW_TABLE_H
#define EVENFLOW_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/automaton.h"

/* Some of the caller's memory, handed out from its beginning. */
struct scratch {
    uint8_t *memory;
    size_t bytes, used;
};

/* NULL: there is not so much left. */
void *scratch_take(struct scratch *scratch, size_t bytes);

/* State 0 is DEAD and leads to itself, state 1 is START. */
struct table {
    uint32_t state_count, class_count;
    uint8_t class_of[256];
    uint16_t *next;   /* (state_count, class_count) */
    uint8_t *accepts; /* (state_count): a text may end there */
};

/* Leads what can never be finished to DEAD. False: memory is short. */
bool table_trim(struct table *table, struct scratch scratch);
/* Of a trimmed table: no text is accepted. */
bool table_is_empty(const struct table *table);

/* Of a trimmed table: makes one state of those that no text tells apart, and one class of the bytes that no state tells
 * apart. False, and the table is as it was: memory is short. */
bool table_minimise(struct table *table, struct scratch scratch);

/* NULL: memory is short. */
struct automaton *table_pack(const struct table *table, struct scratch *scratch);

#endif
