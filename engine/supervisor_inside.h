/* supervisor_inside.h - what the parts of the supervisor share.
 *
 * Used by: supervisor*.c alone.
 *
 *   supervisor.c           the loop: what happens and what follows; phases, signals, start and end
 *   supervisor_memory.c    regions and bells, made once
 *   supervisor_socket.c    the engine's socket, and who may have it
 *   supervisor_birth.c     who is born with what; a program started, its birth message
 *   supervisor_watch.c     what a process has to do, and whether it hangs
 *   supervisor_death.c     who died of what; whether there is another life, and when
 *   supervisor_standby.c   the next supervisor, should this one die
 */
#ifndef EVENFLOW_SUPERVISOR_INSIDE_H
#define EVENFLOW_SUPERVISOR_INSIDE_H

#include <sys/types.h>

#include "engine/keeper.h"
#include "engine/lifeline.h"
#include "engine/notify.h"
#include "engine/supervisor.h"
#include "engine/watch.h"
#include "ipc/arena.h"
#include "ipc/layout.h"

enum phase { PHASE_STARTING, PHASE_SERVING, PHASE_DRAINING, PHASE_STOPPING };

struct region {
    int fd;        /* writable */
    int read_only; /* a second descriptor that is not; -1 for memory of a device */
};

struct child {
    enum role role;
    uint32_t index;
    pid_t pid;
    int pidfd;             /* -1: not running */
    uint32_t epoch;        /* number of its life, from 1 */
    uint64_t born_ns;      /* this life */
    uint64_t progress;     /* of all lives before */
    uint32_t fruitless;    /* lives in a row */
    uint64_t successor_ns; /* when the next life begins; 0: it has begun */
    int birth_socket;      /* -1: it has got its birth message */
    struct watch watch;
    enum watch_verdict hung;   /* it was ended for it */
    bool is_unborn;            /* as a standby knows it: perhaps the message never came */
    bool died_with_supervisor; /* it was dead when this supervisor took over */
};

struct supervisor {
    const struct plan *plan;
    struct layout layout;
    struct region regions[REGION_COUNT];
    struct sup_shm *shm;
    const struct process_shm *processes[PROCESSES_MAX]; /* by process number; read-only views */
    int bells[PROCESSES_MAX];
    struct lifeline lifeline;
    struct child children[PROCESSES_MAX]; /* by process number; [0] is unused */
    uint32_t process_count;
    int model;
    int record;       /* -1: nothing is recorded */
    int listener_tcp; /* -1: none */
    int keys;         /* for it; -1: none */
    int ledger;       /* -1: none is kept */
    struct keeper keeper;
    int front_keep; /* the end of the keep sockets that the next life of front is born with */
    int listener;
    bool is_listener_given; /* by a service manager, whose socket stays */
    struct notify notify;
    int socket_lock;
    int ready_fd;
    int signals;
    enum phase phase;
    int exit_status;
    uint64_t look_ns;     /* when it is looked whether a process hangs */
    uint64_t deadline_ns; /* of the drain or of the stop; 0: none */

    /* the standby: a fork of this process that sleeps until this one is gone */
    pid_t standby;
    int standby_pidfd;        /* -1: there is none */
    bool is_standby_outdated; /* there were births since */
    uint64_t standby_born_ns;
    uint64_t takeover_ns; /* when this process took over; 0: it is the first supervisor */
};

/* ---- supervisor_memory.c: 0, or -errno with err ---- */

int supervisor_create_regions(struct supervisor *s, int devices, struct err *err);
int supervisor_create_bells(struct supervisor *s, struct err *err);
int supervisor_create_region(struct supervisor *s, uint32_t id, const char *name, struct err *err);
int supervisor_write_head(struct supervisor *s, uint32_t id, uint32_t epoch, struct err *err);

/* ---- supervisor_socket.c ---- */

/* Listens on the socket of the plan, which no other engine may have, or takes it over from the service manager that listens
 * there already (LISTEN_FDS, sd_listen_fds(3)). 0, or -errno with err. */
int supervisor_listen(struct supervisor *s, struct err *err);
void supervisor_remove_socket(const struct supervisor *s);

/* ---- supervisor_birth.c ---- */

/* The next life of a process, as far as a new program that waits for its birth message. 0, or -errno with err. */
int supervisor_start_child(struct supervisor *s, struct child *child, struct err *err);
/* What was started may begin: whoever would take over knows of it by now. */
int supervisor_deliver_births(struct supervisor *s, struct err *err);
/* It will get no message, or has got it. */
void supervisor_close_birth(struct supervisor *s, struct child *child);

/* ---- supervisor_watch.c ---- */

uint64_t supervisor_word(const struct supervisor *s, enum role role, uint32_t index, size_t offset);
#define WORD(s, role, index, field) supervisor_word(s, role, index, offsetof(struct process_shm, field))

/* The step that a stage is busy with, or died of; 0: none, or nobody knows. */
uint64_t supervisor_step_at_hand(const struct supervisor *s, const struct child *child);
/* What there is for a process to do, and what it has done. */
struct watch_look supervisor_look_at(const struct supervisor *s, const struct child *child);
/* Ends who hangs. */
void supervisor_look_who_hangs(struct supervisor *s);

/* ---- supervisor_death.c ---- */

/* The pidfd has fired: the process is gone and nothing of it writes any more. */
void supervisor_on_death(struct supervisor *s, struct child *child);
/* Starts those whose time has come. */
void supervisor_begin_successors(struct supervisor *s);

/* ---- supervisor_standby.c ---- */

/* Returns in this process, and later perhaps in the standby, which is the supervisor then. */
void supervisor_renew_standby(struct supervisor *s);
/* When another standby is to be forked; 0: no need. */
uint64_t supervisor_standby_due_ns(const struct supervisor *s);
void supervisor_on_standby_death(struct supervisor *s);
void supervisor_end_standby(struct supervisor *s);

/* ---- supervisor.c ---- */

void supervisor_drain(struct supervisor *s);
/* An exit status that is not 0 stays. */
void supervisor_stop(struct supervisor *s, int exit_status);
void supervisor_kill_all(struct supervisor *s);

#endif
