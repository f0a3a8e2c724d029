/* keeper.h - the supervisor's side of keep.h: client connections stay open while one life of the front follows another.
 *
 * Used by: supervisor.   Owns: kept descriptors, its end of the socket to the front.   Never blocks.
 *
 *   keeper_begin_life()  the life before is proven dead: its last orders are taken, then there is a new pair of sockets
 *   keeper_turn()        takes orders; gives a new front all that is kept, as fast as it takes them
 *
 * Orders wake nobody: they are safe where they are, and are taken whenever the supervisor is awake. Front rings its bell when
 * many have come together.
 */
#ifndef EVENFLOW_KEEPER_H
#define EVENFLOW_KEEPER_H

#include <poll.h>

#include "ipc/keep.h"

struct keeper {
    struct keep_table table;
    int socket; /* -1: the front is gone */
    uint32_t next;
    bool is_giving;
    bool is_whole;  /* all that front has is kept; not so in a new supervisor before KEEP_END */
    uint32_t epoch; /* of the supervisor for whom front does that */
};

void keeper_open(struct keeper *keeper, uint32_t connections_max);

/* *front: the new front's end, the caller's to hand over and to close. 0, or -errno with err. */
int keeper_begin_life(struct keeper *keeper, int *front, struct err *err);

/* In a fork that keeps nothing itself. */
void keeper_forget(struct keeper *keeper);
/* In a new supervisor, whose epoch front sees. */
void keeper_take_over(struct keeper *keeper, uint32_t epoch);

/* Wakes when there is room to give, or the front's end is gone. */
struct pollfd keeper_poll(const struct keeper *keeper);
void keeper_turn(struct keeper *keeper);

#endif
