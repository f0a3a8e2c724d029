/* stress_load.h - the clients of evenflow stress: what they ask, how they behave, and whether every byte is right.
 *
 * Used by: evenflow stress, tests/simulate.   Owns: its sockets and buffers.   Blocks: load_turn(), as long as it is told.
 *
 * Requests are drawn from a seed. load_learn() holds each of them once, undisturbed: its head and body are the reference.
 * Then clients send them again and again: at once or in pieces, several on a connection, reading slowly, leaving in the
 * middle, closing their own side after the last one. Ids, times and counts of cached tokens differ from run to run and are
 * left out of the comparison; nothing else is.
 */
#ifndef EVENFLOW_STRESS_LOAD_H
#define EVENFLOW_STRESS_LOAD_H

#include "ipc/base.h"

/* The longest body: what the engine must allow, and no more. */
#define LOAD_BODY_BYTES 65536u

/* Mixed: short and long, with errors, of clients that behave in all those ways. Streams: long answers that are read as they
 * come, one behind the other, so that a token is due nearly always: for times from a death to the next one. */
enum load_kind { LOAD_MIXED, LOAD_STREAMS };

struct load;

struct load_totals {
    uint64_t answers, bytes, connections;
    uint64_t left;          /* in the middle of an answer */
    uint64_t closed_unread; /* the documented exception: before the first byte of a new connection was read */
    uint64_t last_byte_ns;  /* when the last byte of any answer came */
};

/* vocab_size: of the prompts given as ids. */
struct load *load_open(enum load_kind kind, uint64_t seed, uint32_t clients, uint32_t vocab_size);
void load_close(struct load *load);

/* Another engine: connections of the one before are forgotten. */
void load_begin(struct load *load, const char *socket_path);
/* Clients begin anew, as this seed has it. */
void load_seed(struct load *load, uint64_t seed);
/* Every request once, alone. While no byte is there it calls `meanwhile`, which lets the engine go on; NULL: the engine does so
 * by itself, and load_learn() sleeps. 0, or -errno with err. */
int load_learn(struct load *load, void (*meanwhile)(void *context), void *context, struct err *err);

/* Does what can be done, and waits up to wait_us for more. is_over: no new conversations. False: a byte was wrong, a connection
 * was lost, or nobody answered; load_failure() says which. */
bool load_turn(struct load *load, uint32_t wait_us, bool is_over);
/* Front has died since: connections that it had not read from may be closed. */
void load_note_front_death(struct load *load);

uint32_t load_active(const struct load *load);
const struct load_totals *load_totals(const struct load *load);
/* What was sent, what was expected, what came. */
const char *load_failure(const struct load *load);

#endif
