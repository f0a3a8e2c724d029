/* birth.h - what a process is born with: descriptors over a socket, in two messages.
 *
 *   BIRTH_TO_SEE   what it may look at; nobody can do harm with it, so a spare has it while another process does the work
 *   BIRTH_TO_DO    what it writes, rings and listens on; when nobody else has it: the process before is proven dead
 *
 * Used by: supervisor (sends), every other process (receives, in arena_inherit()).
 * Owns: nothing; received descriptors belong to the receiver.   birth_receive() blocks until the message is there.
 */
#ifndef EVENFLOW_BIRTH_H
#define EVENFLOW_BIRTH_H

#include <stdint.h>

#include "ipc/base.h"
#include "ipc/layout.h"

#define BIRTH_ITEMS_MAX 250u /* the kernel passes 253 descriptors in one message */

enum birth_kind {
    BIRTH_REGION_READ,  /* number: enum region_id */
    BIRTH_REGION_WRITE, /* likewise */
    BIRTH_BELL,         /* number: process_number() */
    BIRTH_LISTENER,     /* number: 0 the Unix socket, 1 TCP */
    BIRTH_MODEL,
    BIRTH_RECORD,
    BIRTH_KEYS, /* front: the API keys of the TCP listener */
    BIRTH_KEEP, /* front's end of its keep sockets, see keep.h */
    BIRTH_LEDGER,
    BIRTH_DEVICE,     /* number: enum region_id, KV, weights or edge: memory of a CUDA device */
    BIRTH_PROGRAM,    /* number: enum role; a file to execute */
    BIRTH_DESCRIPTOR, /* number: that it has in the supervisor; for a standby (supervisor_outside.c) */
    BIRTH_LIFELINE,   /* for a process that the supervisor has not started: see lifeline.h */
};

enum birth_part {
    BIRTH_TO_SEE,
    BIRTH_TO_DO,
    BIRTH_WHOLE,  /* no birth: descriptors of any kind (control.h, memory of devices) */
    BIRTH_WANTED, /* no birth: a process that wants one, of this role and index (control.h) */
};

struct birth_item {
    uint16_t kind; /* enum birth_kind */
    uint16_t number;
};

struct birth {
    uint64_t magic;
    uint32_t role; /* enum role */
    uint32_t index;
    uint32_t epoch;          /* number of the life that begins; 0: a spare, whose life begins with the second message */
    uint32_t part;           /* enum birth_part */
    uint32_t weights_loaded; /* stages: 1 when the weights region is complete; and sealed, where it is shared memory */
    uint32_t item_count;
    struct birth_item items[BIRTH_ITEMS_MAX]; /* item i goes with descriptor i */
};

/* The descriptor behind --birth in a program's arguments; -1 when there is none. */
int birth_argument(int argc, char **argv);

/* With --build among the arguments, a line that says which build this is, for `evenflow upgrade`: true. */
#define BIRTH_BUILD_FORMAT "build %s layout %llx numerics %s"
bool birth_build(int argc, char **argv);

/* What a program that was not born says of itself: exit status 0 for --help and --build, else 2. */
int birth_usage(const char *program, int argc, char **argv);

#define BIRTH_MAGIC 0x3130485452494245ull /* "EBIRTH01" */

/* Passes over what belongs to the other part. */
void birth_add(struct birth *birth, int *fds, enum birth_kind kind, uint32_t number, int fd);

/* 0, or -errno with err. */
int birth_send(int socket, const struct birth *birth, const int *fds, struct err *err);
int birth_receive(int socket, struct birth *birth, int *fds, struct err *err);

#endif
