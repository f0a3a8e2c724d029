/* front.h - the process that clients talk to: HTTP on the Unix socket, text to tokens, tokens to text.
 *
 * Used by: main_front.c, tests.   Owns: its memory and its kernel ring; the arena is the caller's.
 * Blocks: front_do_work() when it may sleep.
 *
 *   connection:  kept ──► reading ──request──► answering ──all sent──► reading ... ──► closing ──operations over──► free
 *   request:     free ──► accepted (journal.h) ──answer sent, or client gone and sequences done──► drained ──► free
 *
 * One thread, one loop. A turn takes the kernel's events and the scheduler's hints, does what follows from them, and
 * sleeps when nothing does. Hints only say where to look: what is done follows from the journal and the token logs.
 */
#ifndef EVENFLOW_FRONT_H
#define EVENFLOW_FRONT_H

#include <stdbool.h>

#include "ipc/arena.h"

struct front;

/* Takes memory, and needs nothing but what others write: a spare prepares so. 0, or -errno with err. */
int front_prepare(struct front **front, const struct arena *arena, struct err *err);
/* Its place is its own now. Takes the connections of a former life: blocks until the keeper has given them all. Before
 * base_seal() and the sandbox. 0, or -errno with err. */
int front_begin(struct front *front, struct err *err);
/* Both. */
int front_init(struct front **front, const struct arena *arena, struct err *err);

/* Goes on with what a former life has left, then starts to accept. */
void front_start(struct front *front);

/* One turn. Sleeps for events if it may and nothing is to be done. The number of things done, or -1: told to leave. */
int front_do_work(struct front *front, bool may_sleep);

void front_free(struct front *front);

#endif
