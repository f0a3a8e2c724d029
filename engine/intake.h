/* intake.h - requests into the journal and out of it: slots, prompt pages, and what the scheduler is told.
 *
 * Used by: front.   Owns: the free lists; slots and pages lie in the front's region.   Never blocks.
 *
 *   intake_accept()   FREE -> ACCEPTED   the request exists from here on
 *   intake_end()      ACCEPTED -> DRAINED, as soon as all its sequences are done; before that they are cancelled
 *   intake_look()     DRAINED -> FREE, once sched has forgotten the sequences
 *
 * A request is ended when its answer has been sent or its client is gone. Pools are sized once: an empty one is a refusal,
 * never a larger allocation. Messages to sched are hints; the ring has room for all that can be under way.
 */
#ifndef EVENFLOW_INTAKE_H
#define EVENFLOW_INTAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/api.h"
#include "ipc/arena.h"

#define INTAKE_NO_CONNECTION UINT32_MAX

struct intake {
    const struct arena *arena;
    struct ring_producer ring;
    struct bell_pull sched;
    uint64_t next_order;
    uint32_t *free_slots;  /* stack (requests_max) */
    uint32_t *free_pages;  /* stack (prompt_pages) */
    uint32_t *connections; /* (requests_max) whose answer it is; INTAKE_NO_CONNECTION: nobody's any more */
    uint32_t free_slot_count, free_page_count;
    uint32_t active; /* accepted and not drained */
    uint64_t random[64];
    uint32_t random_left;
};

/* Takes memory, and stock: what is not free belongs to requests of a former life, which have lost their clients. */
void intake_open(struct intake *intake, const struct arena *arena);

/* Puts a checked request into the journal and tells sched. 0 and the slot; -EAGAIN: a pool is empty. */
int intake_accept(struct intake *intake, const struct api_request *request, uint32_t connection, uint32_t *slot);

/* Stops computing for this request: nobody needs more of it. It is ended by intake_end(). */
void intake_cancel(struct intake *intake, uint32_t slot);

/* The connection needs the request no more: it is drained now, or cancelled and drained when its sequences are done. */
void intake_end(struct intake *intake, uint32_t slot);

/* Looks at a slot about which sched said something, or might have. */
void intake_look(struct intake *intake, uint32_t slot);

/* Every sequence of the request is done. */
bool intake_is_done(const struct intake *intake, uint32_t slot);

#endif
