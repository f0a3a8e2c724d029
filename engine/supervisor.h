/* supervisor.h - creates all shared memory, starts the processes, watches them, ends them.
 *
 * Used by: main_supervisor.c alone.   Owns: every region's descriptors, the listening socket, the children.
 * Blocks: supervisor_run() sleeps in poll(2) until a signal, a death, a bell or a deadline.
 *
 * It parses no input, touches no ring, loads no model. What it is given are numbers (the plan) and descriptors, and by a
 * service manager what sd_notify(3) and sd_listen_fds(3) say.
 *
 *             all ready            SIGTERM            drained
 *   STARTING -----------> SERVING ---------> DRAINING ---------> STOPPING -> exit 0
 *      |                     |                   |                  ^
 *      +- a process dies ----+- it dies in vain -+------------------+          exit 1
 *
 * While it serves and drains, a process that dies has a successor, at once or, when lives end without progress, later; in
 * the end not at all (docs/death.md).
 */
#ifndef EVENFLOW_SUPERVISOR_H
#define EVENFLOW_SUPERVISOR_H

#include "ipc/base.h"
#include "ipc/plan.h"

struct supervisor;

/* What the launcher hands over. The descriptors become the supervisor's. */
struct supervisor_start {
    int plan;     /* sealed memfd */
    int vocab;    /* sealed memfd */
    int model;    /* the model file, read-only */
    int record;   /* what the scheduler records to; -1: nothing */
    int listen;   /* a listening TCP socket; -1: none */
    int devices;  /* a socket in which descriptors of memory on devices lie (tools/devices.h); -1: none */
    int keys;     /* the API keys for it; -1: none */
    int ledger;   /* the list of requests (ipc/ledger.h); -1: none is kept */
    int ready_fd; /* gets a newline when everything is ready; -1: none */
};

/* The programs of the engine are the files that are opened at its start: whatever becomes of their names, every
 * life of a process is the same build, until `evenflow upgrade` gives it other files (supervisor_upgrade.c).
 * Creates regions, bells and the socket, starts the processes. 0, or -errno with err; nothing is left behind then. */
int supervisor_init(struct supervisor **supervisor, const struct supervisor_start *start, struct err *err);

/* Goes on where a supervisor of an older program has left off, in the same process. carried: see
 * supervisor_upgrade.c. 0, or -errno with err. */
int supervisor_resume(struct supervisor **supervisor, int carried, struct err *err);

/* A standby that somebody else has started, and that the supervisor at the other end of this connection may have taken for
 * one: returns when that is dead and this process is the supervisor. 0, or -errno with err. */
int supervisor_attach(struct supervisor **supervisor, int connection, struct err *err);

/* Until the end. The exit status: 0 after an orderly stop, 1 after a failure. */
int supervisor_run(struct supervisor *supervisor);

#endif
