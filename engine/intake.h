/* intake.h - requests into the journal and out of it: slots, prompt pages, and what the scheduler is told.
 *
 * Used by: front.   Owns: the free lists; slots and pages lie in the front's region.   Never blocks.
 *
 *   intake_commit()   FREE -> ACCEPTED   the request exists from here on; intake_prepare() has written it before
 *                     a client's list of prompts is a chain of requests, the last one prepared and committed last: it stands
 *                     for all, and functions that end or adopt one take the chain behind it
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
#include "ipc/ledger.h"

#define INTAKE_NO_CONNECTION UINT32_MAX

struct intake {
    const struct arena *arena;
    struct ledger *ledger;
    struct ring_producer ring;
    struct bell_pull sched;
    uint64_t next_order;
    uint32_t *free_slots;  /* stack (requests_max) */
    uint32_t *free_pages;  /* stack (prompt_pages) */
    uint32_t *connections; /* (requests_max) whose answer it is; INTAKE_NO_CONNECTION: nobody's any more */
    uint32_t free_slot_count, free_page_count;
    uint32_t active;      /* accepted and not drained */
    uint64_t wake_ns;     /* when sched is woken for messages that were not worth it; 0: there are none */
    bool is_sched_behind; /* its ring was full: all is told again when there is room */
    uint64_t random[64];
    uint32_t random_left;
};

/* Takes memory, and stock: what is not free belongs to requests of a former life. */
void intake_open(struct intake *intake, const struct arena *arena, struct ledger *ledger);

/* A request of a former life whose connection goes on; after all of them intake_resume(): the others have lost their
 * clients and are cancelled, and sched hears of every one again. */
void intake_adopt(struct intake *intake, uint32_t slot, uint32_t connection);
void intake_resume(struct intake *intake);

/* Writes a checked request into a slot, behind that of the prompt before; it does not exist yet. 0 and the slot in *slot,
 * which held the one before; -EAGAIN: a pool is empty, and all of the chain is as if it had never been prepared. */
int intake_prepare(struct intake *intake, const struct api_request *request, uint32_t connection, uint32_t *slot);
/* Gives back a chain that was prepared and not committed. */
void intake_withdraw(struct intake *intake, uint32_t slot);
/* They exist, and sched is told. is_chat, client_id: for the ledger. */
void intake_commit(struct intake *intake, uint32_t slot, bool is_chat, const char *client_id);

/* Sched looks at all messages. */
void intake_wake_sched(struct intake *intake);

/* Once a turn: tells sched what it could not be told before. */
void intake_catch_up(struct intake *intake);

/* Stops computing for this request: nobody needs more of it. It is ended by intake_end(). */
void intake_cancel(struct intake *intake, uint32_t slot);

/* Stops computing for these choices (bits): stop strings have ended them. */
void intake_stop(struct intake *intake, uint32_t slot, uint32_t choices);

/* The connection needs the request no more: it is drained now, or cancelled and drained when its sequences are done. */
void intake_end(struct intake *intake, uint32_t slot);

/* Looks at a slot about which sched said something, or might have. */
void intake_look(struct intake *intake, uint32_t slot);

/* Every sequence of the request is done. */
bool intake_is_done(const struct intake *intake, uint32_t slot);

#endif
