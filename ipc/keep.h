/* keep.h - client connections outlive the front: it hands a second descriptor of each to the supervisor before it reads
 * the first byte, and a successor gets them all back.
 *
 * Used by: front (sends), supervisor (keeps, and hands over to the next front), tests that play supervisor.
 * Owns: keep_table its descriptors.   Blocks: keep_receive() when told to; nothing else.
 *
 * A pair of SOCK_SEQPACKET sockets per life of the front, the front's end among what it is born with (BIRTH_KEEP).
 *
 *   front                                          supervisor
 *   HOLD {slot, generation} + descriptor  ------>  keep_table_take(): keeps it under the slot's number
 *   DROP {slot, generation}               ------>  closes it, if the generation is still the one it keeps
 *                                         <------  keep_table_give(), to a successor: HOLD of each that is kept, then END
 *
 * Once keep_send() has returned the descriptor is safe: it lies in the supervisor's receive queue, and is taken from there
 * after the front's death too. So before a successor is started: its forerunner is proven dead, and its socket is read
 * until there is nothing more. A HOLD takes the place of what was kept in the slot. A DROP may be late or lost: the
 * connection has been shut down before, and the slot's next HOLD clears it away.
 * A front that notices a new life of the supervisor (the head of region sup) sends a HOLD of everything again, then END
 * with that life's number for a generation: not all that the life before was sent may still lie there.
 */
#ifndef EVENFLOW_KEEP_H
#define EVENFLOW_KEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/base.h"

#define KEEP_MAGIC       0x313050454b464556ull /* "VEFKEP01" */
#define KEEP_ENTRIES_MAX 128u                  /* of a message; the kernel passes 253 descriptors in one */

enum keep_kind {
    KEEP_HOLD, /* with a descriptor: the first HOLD goes with the first one, and so on */
    KEEP_DROP,
    KEEP_END, /* to a successor of either: these were all */
};

struct keep_entry {
    uint32_t kind; /* enum keep_kind */
    uint32_t slot;
    uint32_t generation; /* of the connection in that slot; END, from front: life of the supervisor */
};

struct keep_message {
    uint64_t magic;
    uint32_t entry_count;
    uint32_t fd_count; /* = number of HOLD entries */
    struct keep_entry entries[KEEP_ENTRIES_MAX];
};

/* An empty message, and one entry more; fd belongs to the caller still (HOLD) or is -1. False: it is full, send it. */
void keep_begin(struct keep_message *message);
bool keep_add(struct keep_message *message, int *fds, enum keep_kind kind, uint32_t slot, uint32_t generation, int fd);

/* Sends without waiting. 0: the other side has it; -EAGAIN: no room, poll for POLLOUT; else -errno, -EPIPE: nobody there. */
int keep_send(int socket, const struct keep_message *message, const int *fds);

/* Takes one message; descriptors become the caller's. 1; 0: the other side is gone and everything was taken; -EAGAIN:
 * nothing there (unless it may wait); -EPROTO: no message of this build; else -errno. */
int keep_receive(int socket, bool may_wait, struct keep_message *message, int *fds);

/* ---- what is kept ---- */

struct keep_slot {
    int fd; /* -1: nothing */
    uint32_t generation;
};

struct keep_table {
    struct keep_slot *slots; /* (slot_count) */
    uint32_t slot_count;     /* connections_max of the plan */
    uint32_t kept_count;
};

/* Takes memory; before base_seal(). */
void keep_table_open(struct keep_table *table, uint32_t slot_count);

/* Closes everything. */
void keep_table_forget(struct keep_table *table);

/* Does what a front's message says; its descriptors become the table's. False: it names slots that do not exist. */
bool keep_table_take(struct keep_table *table, const struct keep_message *message, const int *fds);

/* Sends all that is kept, then END, to a new front over its new socket. *next: 0 at first, where to go on. 0: all is
 * sent; -EAGAIN: call again when the socket has room; else -errno. The table keeps what it keeps. */
int keep_table_give(const struct keep_table *table, int socket, uint32_t *next);

#endif
