/* session.h - how two stages agree on a connection that only they know of, and on what goes over it first.
 *
 * Used by: stages whose edge is EDGE_NCCL.   Owns: nothing.   Never blocks.
 *
 * A connection takes two processes, and none outlives either of them: every life, and every failure, needs another one. The
 * reader of an edge asks for it: a number that was never used, the writer's life that is meant, the first step that has to come
 * (the one that it publishes next), and an identifier that names the connection. The writer joins what is asked of its life.
 *
 *   writer   life ───────────────────────────────────────────►  the reader sees another life: gives up what it has, asks anew
 *   reader   life, first step, identifier, then the number ──►  the writer sees another number: gives up what it has, joins
 *
 * Each writes its own words only and no word of anybody's has to be cleared, so whoever dies at any of these stores is followed
 * by somebody with a life, or a number, of his own. A copy of what is asked that is torn belongs to a number that has changed
 * when one looks again: such a connection finds no second end, and is given up.
 */
#ifndef EVENFLOW_SESSION_H
#define EVENFLOW_SESSION_H

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#define SESSION_ID_BYTES 128u

struct session {
    uint64_t number; /* 0: none */
    uint64_t life;   /* of the writer */
    uint64_t first_step;
    uint8_t id[SESSION_ID_BYTES];
};
static_assert(sizeof(struct session) == 24 + SESSION_ID_BYTES, "shared");

/* A stage's: the one word for the edge that it writes, the others for the one that it reads. */
struct session_shm {
    alignas(128) _Atomic uint64_t life;   /* W: this stage, release   R: the next one, acquire; 0: it has not begun */
    alignas(128) _Atomic uint64_t number; /* W: this stage, release   R: the one before, acquire; 0: nothing is asked */
    struct session asked;                 /* W: this stage, before the number   R: the one before, after it */
    uint8_t pad[96];
};
static_assert(sizeof(struct session_shm) == 384, "shared");

/* A number that no life before had and no later one will have: of this life (epoch) the next one. */
static inline uint64_t session_next(uint32_t epoch, uint64_t last)
{
    return last == 0 ? (uint64_t)epoch << 32 | 1 : last + 1;
}

/* The writer: it has no connection and would join another one. */
void session_live(struct session_shm *own, uint64_t life);
/* The reader: the life of the writer, as it is now. */
uint64_t session_life(const struct session_shm *theirs);

/* The reader asks. */
void session_ask(struct session_shm *own, const struct session *session);
/* The writer: what is asked; number 0: nothing. */
struct session session_asked(const struct session_shm *theirs);
/* Its number alone. */
uint64_t session_number(const struct session_shm *theirs);

#endif
