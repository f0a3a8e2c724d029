/* front_inside.h - what the parts of the front share.
 *
 * Used by: front*.c alone.
 *
 *   front.c              the loop: events and hints in, what follows from them; start and end
 *   front_connection.c   a connection's life: opening, receiving, sending, time limits, closing
 *   front_routes.c       a request's life: which path does what, replies, errors
 *   front_keep.c         connections in somebody else's keeping
 *   front_resume.c       a successor goes on where its forerunner was
 *   front_expect.c       memory that tokens lead to, asked for before it is needed
 */
#ifndef EVENFLOW_FRONT_INSIDE_H
#define EVENFLOW_FRONT_INSIDE_H

#include "engine/access.h"
#include "engine/answer.h"
#include "engine/api.h"
#include "engine/conns.h"
#include "engine/front.h"
#include "engine/intake.h"
#include "engine/io.h"
#include "ipc/keep.h"

#define NO_SLOT     UINT32_MAX
#define WAITING_MAX 1024u /* accepted connections that have no slot yet: the backlog's size once more */
#define REPLY_MAX   (CONN_OUT_BYTES - HTTP_RESPONSE_HEAD_MAX - 64u) /* 64: an interim response may stand before it */

/*   FREE ─accepted─► KEEPING ─kept─► READING ◄─► ANSWERING ─last reply sent─► LINGERING
 *     ▲                 └───────────────┴────────────┴──► CLOSING ◄─────────────────┘
 *     └────────────────────── nothing in flight ─────────────┘
 */
enum phase {
    CONN_FREE,      /* no connection */
    CONN_KEEPING,   /* nothing is read before somebody keeps it */
    CONN_READING,   /* a message is being received */
    CONN_ANSWERING, /* it has a reply, which is being rendered and sent */
    CONN_LINGERING, /* we say no more; what the client still says is dropped, so that its kernel keeps our reply for it */
    CONN_CLOSING,   /* shut down; operations are coming to their ends */
};

/* What a connection is waited for. */
enum wait {
    WAIT_NOT,     /* it has time: it waits for tokens */
    WAIT_REQUEST, /* the first byte of a message */
    WAIT_HEAD,    /* the rest of the header section: has its own limit, from the first byte on */
    WAIT_BODY,    /* the rest of the message, from the header section on */
    WAIT_READER,  /* the client takes bytes of the reply: from the last progress on */
    WAIT_END,     /* the client closes too, after the last reply */
};

/* What is under way: a slot is used again only when nothing is. */
enum {
    OP_RECEIVE = 1 << 0,
    OP_SEND = 1 << 1,
    OP_HANGUP = 1 << 2,
    OP_CLOSE = 1 << 3, /* it is in `closing` */
};

/* What a successor could find out again; the rest is in struct conn_shm. What every token looks at comes first. */
struct connection {
    alignas(64) enum phase phase;
    int fd;
    uint32_t ops;
    bool said_continue;
    bool is_shut;     /* nobody can send or receive: we have shut it down, or the client is gone */
    bool closes;      /* after this reply */
    bool is_rendered; /* the whole reply is in `out` */
    enum wait wait;
    uint64_t wait_ns;      /* since when */
    uint32_t older, newer; /* in the list of those with the same limit */
    uint64_t out_origin;   /* out[0] is this byte of the stream */
    uint64_t rendered;     /* the byte behind the last one in `out` */
    struct answer answer;
    struct http_reader reader;
};

/* Connections with the same time limit, in the order of their deadlines. */
struct wait_list {
    uint32_t oldest, newest;
    uint64_t limit_ns;
};

enum { LISTENER_UNIX, LISTENER_TCP };

struct waiting_connection {
    int fd;
    uint32_t listener;
};

/* One listening socket. */
struct front_listener {
    int fd;            /* -1: none */
    bool is_accepting; /* the operation is in flight */
    bool is_stopping;  /* its cancellation too */
};

struct keep_order {
    enum keep_kind kind;
    uint32_t slot;
    uint32_t generation;
};

struct front {
    const struct arena *arena;
    const struct plan *plan;
    struct process_shm *process;
    struct bell bell;
    struct bell_pull supervisor;
    struct ring_consumer hints;
    struct intake intake;
    struct ledger ledger; /* what the next engine is told of, should this one end without warning */
    struct api api;
    struct tok tok;
    struct access access; /* over TCP */
    uint32_t user;        /* who may ask over the Unix socket, beside root */
    struct io *io;
    uint32_t sched_epoch, sup_epoch;
    enum command command;
    bool is_told_drained;

    struct answer_choice *choices;  /* (CHOICES_MAX, requests_max): of the answers in progress */
    struct connection *connections; /* (connections_max) */
    uint32_t *free_connections;     /* stack */
    uint32_t free_connection_count;
    uint32_t connections_possible; /* with the descriptors that this process may have */
    uint32_t *closing;             /* (connections_max) closed during this turn; to be shut down at its end */
    uint32_t closing_count;
    uint32_t open_count;
    uint32_t answering_count;
    struct front_listener listeners[IO_LISTENERS];
    struct waiting_connection waiting[WAITING_MAX]; /* ring: accepted, no slot yet */
    uint32_t waiting_first, waiting_count;
    uint64_t
        accept_again_ns; /* accepting has failed for want of descriptors or memory: when to try again; 0: it has not */

    uint64_t sweep_ns, sweeps_end_ns; /* when the listeners are looked at unasked; 0: no more */

    struct wait_list heads, ends, others; /* by limit: WAIT_HEAD, WAIT_END, everything else */

    struct keep_order *keep_orders; /* ring (keep_order_max): what the keeper has not been told yet */
    uint32_t keep_order_max, keep_first, keep_count;
    uint32_t keep_hold_count; /* of these: no DROP, so that somebody waits for it */
    uint64_t keep_drop_ns;    /* when the oldest DROP is told at the latest */
    uint32_t keep_sent;       /* entries since the keeper was woken */
    bool is_keeper_full;      /* until IO_ROOM */
    bool is_keeper_gone;      /* said once; connections are not kept until there is another */

    uint8_t *body; /* a chunked body put together (body_bytes_max) */
    char *reply;   /* the body of a reply that is no answer (REPLY_MAX) */
};

static inline struct conn_shm *shm_of(const struct front *f, uint32_t slot)
{
    return conns_slot(f->arena->regions[REGION_CONNS], f->plan, slot);
}

static inline uint8_t *out_of(const struct front *f, uint32_t slot)
{
    return conns_out(shm_of(f, slot));
}

/* ---- front_connection.c ---- */

void front_connection_open(struct front *f, int fd, uint32_t listener);
/* It is kept: its bytes may be read. */
void front_connection_begin(struct front *f, uint32_t slot);
/* Takes a descriptor that a former life had in this slot. */
void front_connection_adopt(struct front *f, uint32_t slot, int fd);
void front_connection_close(struct front *f, uint32_t slot);
/* At the end of a turn, when it is known of which connections the client is gone: ends what has been closed. */
void front_end_closing(struct front *f);
void front_connection_free(struct front *f, uint32_t slot);
void front_connection_set_phase(struct front *f, uint32_t slot, enum phase phase);

/* is_half_closed: the client sends no more, which is known. */
void front_watch_hangup(struct front *f, uint32_t slot, bool is_half_closed);

/* A message from its first byte, and from what has been received of it. */
void front_read_next(struct front *f, uint32_t slot);
void front_read_more(struct front *f, uint32_t slot);
void front_send_out(struct front *f, uint32_t slot);
/* Renders and sends what there is of the reply in progress. */
void front_pump(struct front *f, uint32_t slot);
/* CONN_SENT: ends the connection or begins the next message. */
void front_reply_done(struct front *f, uint32_t slot);
/* CONN_LINGERING: takes what the client still sends. */
void front_linger(struct front *f, uint32_t slot);

/* The earliest deadline of all; IO_NO_TIMEOUT: there is none. And what has passed one. */
uint64_t front_next_deadline(const struct front *f);
void front_end_waits(struct front *f, uint64_t now_ns);

/* ---- front_routes.c ---- */

/* Answers a message whose body is this. */
void front_route(struct front *f, uint32_t slot, const char *body, size_t size);
/* Refuses one; the connection ends with the reply. */
void front_refuse(struct front *f, uint32_t slot, int status, const char *reason);

/* ---- front_keep.c ---- */

void front_keep_open(struct front *f);
void front_keep_order(struct front *f, enum keep_kind kind, uint32_t slot, uint32_t generation);
/* At the end of a turn: tells the keeper; what it has is begun. */
void front_keep_flush(struct front *f);
void front_keep_all_again(struct front *f);
/* When there is something to tell at the latest; IO_NO_TIMEOUT: nothing. */
uint64_t front_keep_deadline(const struct front *f);

/* ---- front_resume.c ---- */

/* At init: takes back what is kept; what is not of a connection that is open goes. Blocks until it has all. 0, or -errno
 * with err. */
int front_take_back(struct front *f, struct err *err);
/* At start: goes on with connections, requests and replies of the former life. */
void front_resume(struct front *f);

/* ---- front_expect.c ---- */

#define EXPECTED_MAX 32u

/* What the next EXPECTED_MAX hints will lead to is on its way from memory. */
void front_expect(struct front *f);

/* ---- front.c ---- */

void front_take_connections(struct front *f);

#endif
