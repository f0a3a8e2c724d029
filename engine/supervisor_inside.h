/* supervisor_inside.h - what the parts of the supervisor share.
 *
 * Used by: supervisor*.c alone.
 *
 *   supervisor.c           the loop: what happens and what follows; phases, signals, start and end
 *   supervisor_memory.c    regions and bells, made once
 *   supervisor_socket.c    the engine's socket, and who may have it
 *   supervisor_birth.c     who is born with what; a program started, its birth messages
 *   supervisor_spare.c     processes that wait to be the next life of another
 *   supervisor_watch.c     what a process has to do, and whether it hangs
 *   supervisor_death.c     who died of what; whether there is another life, and when
 *   supervisor_standby.c   the next supervisor, should this one die
 *   supervisor_outside.c   likewise, where somebody else has started it
 *   supervisor_upgrade.c   other programs in place of those that run
 */
#ifndef EVENFLOW_SUPERVISOR_INSIDE_H
#define EVENFLOW_SUPERVISOR_INSIDE_H

#include <sys/types.h>

#include "engine/keeper.h"
#include "engine/notify.h"
#include "engine/supervisor.h"
#include "engine/watch.h"
#include "ipc/arena.h"
#include "ipc/layout.h"
#include "ipc/lifeline.h"

enum phase { PHASE_STARTING, PHASE_SERVING, PHASE_DRAINING, PHASE_STOPPING };

struct region {
    int fd;        /* writable */
    int read_only; /* a second descriptor that is not; -1 for memory of a device */
};

/* A process that sees what its forerunner saw, can change nothing, and waits for the second half of its birth. */
struct spare {
    pid_t pid;
    int pidfd;        /* -1: there is none */
    int birth_socket; /* it says there that it is prepared, and is told there that its life begins */
    bool is_heard;    /* it has said so, or will say nothing more */
    bool is_prepared;
    bool is_new; /* of the programs that an upgrade brings */
    uint64_t born_ns;
    uint32_t died_young; /* in a row */
    uint64_t next_ns;    /* not before this moment is there another one */
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
    struct spare spare;
    bool is_new;      /* an upgrade has replaced it */
    bool is_replaced; /* an upgrade ends it: that is no death that says anything */
};

/*   NOT --connection--> ASKED --order--> PREPARING --> (FINISHING) --> REPLACING --> LAST --exec--> NOT
 *    ^                    |                  |              |                         |
 *    +----- no order -----+-- a spare dies --+--------------+--- the exec has failed -+
 */
enum upgrade_phase {
    UPGRADE_NOT,
    UPGRADE_ASKED,     /* somebody is connected, whose order has not come */
    UPGRADE_PREPARING, /* every process gets a spare of the new programs; nothing has changed yet */
    UPGRADE_FINISHING, /* they compute other bits: what has begun is finished first, nothing else begins */
    UPGRADE_REPLACING, /* one process after another is ended and followed by that spare */
    UPGRADE_LAST,      /* this process executes the new supervisor: seen by a standby alone, when that has failed */
};

struct upgrade {
    enum upgrade_phase phase;
    int connection;                    /* of who has asked; -1: nobody has */
    int programs[ROLE_COUNT];          /* PREPARING: the new ones; later the old ones */
    struct region plan;                /* likewise */
    bool computes_otherwise;           /* the new programs: they pack weights of their own */
    struct region weights[STAGES_MAX]; /* likewise; there only where they compute otherwise */
    uint32_t at;                       /* REPLACING: how many are done */
    uint64_t deadline_ns;              /* ASKED, PREPARING */
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
    int programs[ROLE_COUNT]; /* files to execute */
    int control;              /* listens for orders */
    struct upgrade upgrade;
    int model;
    int record;       /* -1: nothing is recorded */
    int listener_tcp; /* -1: none */
    int keys;         /* for it; -1: none */
    int ledger;       /* -1: none is kept */
    int holder;       /* a socket: the process that holds the devices' memory has the other end; -1: none is needed */
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

    /* the standby: a fork of this process that sleeps until this one is gone, or (outsider >= 0) a process that does so which
     * somebody else has started, and which is told all that a fork would know */
    int outsider; /* its connection; -1: the standby is a fork */
    pid_t standby;
    int standby_pidfd;        /* -1: there is none */
    int former_standby_pidfd; /* no longer named, and about to be ended: a birth does not wait for that; -1: none */
    bool is_standby_outdated; /* there were births since */
    /* There was no front when the last standby was forked: it (or this process, which was that one) has the connections. */
    bool is_keeping;
    uint64_t standby_born_ns;
    uint64_t takeover_ns; /* when this process took over; 0: it is the first supervisor */
};

/* ---- supervisor_memory.c: 0, or -errno with err ---- */

int supervisor_create_regions(struct supervisor *s, int devices, struct err *err);
int supervisor_create_bells(struct supervisor *s, struct err *err);
/* Maps what the supervisor itself looks at. */
int supervisor_map(struct supervisor *s, struct err *err);
int supervisor_create_region(struct supervisor *s, uint32_t id, const char *name, struct err *err);
int supervisor_write_head(struct supervisor *s, uint32_t id, uint32_t epoch, struct err *err);

/* ---- supervisor_socket.c ---- */

/* Listens on the socket of the plan, which no other engine may have, or takes it over from the service manager that listens
 * there already (LISTEN_FDS, sd_listen_fds(3)). 0, or -errno with err. */
int supervisor_listen(struct supervisor *s, struct err *err);
/* Listens beside it for orders to the engine itself (ipc/control.h). */
int supervisor_take_orders(struct supervisor *s, struct err *err);
void supervisor_remove_socket(const struct supervisor *s);

/* ---- supervisor_birth.c ---- */

/* A program that has the first half of its birth: of the next life, or (epoch 0) of a spare. 0, or -errno with err. */
struct born {
    pid_t pid;
    int pidfd, birth_socket;
};
/* The first half of the birth of a spare that somebody else has started. 0, or -errno with err. */
int supervisor_show_all(struct supervisor *s, const struct child *child, int birth_socket, struct err *err);
int supervisor_start_program(struct supervisor *s, const struct child *child, uint32_t epoch, struct born *born,
                             struct err *err);
/* The next life of a process, as far as a spare or a new program that waits for the second half of its birth. 0, or -errno
 * with err. */
int supervisor_start_child(struct supervisor *s, struct child *child, struct err *err);
/* What was started may begin: whoever would take over knows of it by now. */
int supervisor_deliver_births(struct supervisor *s, struct err *err);
/* It will get no message, or has got it. */
void supervisor_close_birth(struct supervisor *s, struct child *child);

/* ---- supervisor_spare.c ---- */

/* Starts spares where they are wanted and missing. */
void supervisor_begin_spares(struct supervisor *s);
/* When it has to be looked for that; 0: no need. */
uint64_t supervisor_spare_due_ns(const struct supervisor *s, const struct child *child);
/* The spare becomes the next life of its child. False: there is none that could. */
bool supervisor_use_spare(struct supervisor *s, struct child *child, struct born *born);
/* It has said something. */
void supervisor_hear_spare(struct supervisor *s, struct child *child);
void supervisor_on_spare_death(struct supervisor *s, struct child *child);
/* Who is at the other end, as a pidfd; -1: nobody knows. */
int supervisor_peer(int connection, pid_t *pid);
/* A process that waits to take over can run: it is neither stopped nor dead. */
bool supervisor_is_able(pid_t pid);
/* Ends those that are stopped: they could not take over. */
void supervisor_look_at_spares(struct supervisor *s);
void supervisor_end_spares(struct supervisor *s);
/* A process that somebody else has started becomes a spare, if one is missing there; its connection is its birth socket. 0, or
 * -errno with err. */
int supervisor_adopt_spare(struct supervisor *s, uint32_t role, uint32_t index, int connection, struct err *err);

/* ---- supervisor_upgrade.c ---- */

/* The programs in a directory. 0, or -errno with err. */
int supervisor_open_programs(int *programs, const char *directory, struct err *err);
/* Somebody connects; an order comes, or the connection's end. */
void supervisor_on_connection(struct supervisor *s);
void supervisor_on_order(struct supervisor *s);
/* Spares that are started now are of the new programs; lives are of the old ones. */
static inline bool supervisor_is_preparing(const struct supervisor *s)
{
    return s->upgrade.phase == UPGRADE_PREPARING || s->upgrade.phase == UPGRADE_FINISHING;
}
/* Whatever can be done now. */
void supervisor_turn_upgrade(struct supervisor *s);
/* What this process knows, for another that has its descriptors under the same numbers: a memfd, or -1. */
int supervisor_carry(const struct supervisor *s);
/* There. 0, or -errno with err. */
int supervisor_unpack(struct supervisor **supervisor, int carried, struct err *err);
/* Nothing comes of it, for this reason; what has been replaced stays so. */
void supervisor_end_upgrade(struct supervisor *s, const char *reason);

/* ---- supervisor_watch.c ---- */

uint64_t supervisor_word(const struct supervisor *s, enum role role, uint32_t index, size_t offset);
#define WORD(s, role, index, field) supervisor_word(s, role, index, offsetof(struct process_shm, field))

/* The step that a stage is busy with, or died of; 0: none, or nobody knows. */
uint64_t supervisor_step_at_hand(const struct supervisor *s, const struct child *child);
/* A stage has died of a step, and the scheduler has not dealt with that yet. The next life would begin the step again, so it
 * waits: the scheduler is there, or comes back, for which it needs no stage. */
bool supervisor_is_suspected(const struct supervisor *s, const struct child *child);
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
/* A process that somebody else has started becomes the standby. 0, or -errno with err: the connection stays the caller's. */
int supervisor_adopt_standby(struct supervisor *s, int connection, struct err *err);
/* In a standby: the supervisor before is proven dead. */
void supervisor_take_over(struct supervisor *s);
/* If the standby has client connections that it needs no longer, there will be another one. */
void supervisor_front_is_back(struct supervisor *s);
/* When another standby is to be forked; 0: no need. */
uint64_t supervisor_standby_due_ns(const struct supervisor *s);
void supervisor_on_standby_death(struct supervisor *s);
void supervisor_end_former_standby(struct supervisor *s);
void supervisor_end_standby(struct supervisor *s);
/* Ends a process whose fields say why, once there is a standby that knows it and has front's connections. */
void supervisor_end_child(struct supervisor *s, const struct child *child);
/* Ends one that is stopped, as with spares. */
void supervisor_look_at_standby(const struct supervisor *s);

/* ---- supervisor_outside.c ---- */

/* All that it has to know by now. False: it cannot be told. */
bool supervisor_tell_outsider(const struct supervisor *s);

/* ---- supervisor.c ---- */

int supervisor_create_signals(struct supervisor *s, struct err *err);
void supervisor_raise_descriptor_limit(void);

/* Every descriptor, over an exec or not; the three standard ones are children's, too. */
void supervisor_set_close_on_exec(bool is_closed);

void supervisor_drain(struct supervisor *s);
/* An exit status that is not 0 stays. */
void supervisor_stop(struct supervisor *s, int exit_status);
void supervisor_kill_all(struct supervisor *s);
/* What nobody can go on from: everybody is killed before anything else is done. */
void supervisor_end_now(struct supervisor *s);
/* For all processes. */
void supervisor_command(struct supervisor *s, enum command command);

#endif
