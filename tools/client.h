/* client.h - HTTP/1.1 over the engine's Unix socket: thousands of calls at once in one thread.
 *
 * Used by: every tool that talks to a running engine, tests.   Owns: its sockets and buffers.
 * Blocks: client_turn() in epoll(7), until something arrives or the time that it is given.   HTTP is parsed by
 * libhttp-parser, Server-Sent Events here, both as the bytes come; a body is sent from where it lies.
 *
 *   client_start() ... client_turn() until client_active() is 0; what happens meanwhile is told to the calls' functions
 */
#ifndef EVENFLOW_CLIENT_H
#define EVENFLOW_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

struct client;
struct client_call;

/* With each Server-Sent Event's data (without "data: "), "[DONE]" included; the text is terminated. */
typedef void client_event_fn(struct client_call *call, void *context, const char *data, size_t size);
/* The call has ended: it may be freed, or zeroed and started again. */
typedef void client_done_fn(struct client_call *call, void *context);

/* One request and its answer. Zero it, set the first block, start it; the texts must stay until it has ended. */
struct client_call {
    const char *method; /* "GET", "POST" */
    const char *path;   /* "/v1/models" */
    const char *body;   /* NULL: none */
    size_t body_size;
    client_event_fn *on_event; /* NULL: none wanted */
    client_done_fn *on_done;   /* likewise */
    void *context;
    uint64_t abandon_after_events; /* 0: never; else the client hangs up after so many (tests) */

    /* the answer */
    int status;   /* 0: none came, err says why */
    char *answer; /* the whole body, terminated; NULL when events were taken from it; freed by client_call_free() */
    size_t answer_size;
    uint64_t event_count;
    uint64_t start_ns;
    uint64_t first_event_ns; /* when the bytes arrived, as the kernel handed them over; 0: no event */
    uint64_t last_event_ns;  /* of the event that on_event is called with */
    uint64_t end_ns;
    struct err err;

    struct client_connection *connection; /* private */
    struct client_call *next;             /* private */
    size_t answer_room;                   /* private */
};

/* keeps_alive: connections are used again, one call after the other. Raises the soft limit of descriptors to the hard
 * one. Nothing is connected yet. NULL with err when the path cannot be a socket's. */
struct client *client_open(const char *socket_path, bool keeps_alive, struct err *err);
/* Every call has ended. */
void client_close(struct client *client);

/* Never blocks; a connection that cannot be made is told of in client_turn(). May be called from on_event and on_done. */
void client_start(struct client *client, struct client_call *call);
/* Hangs up; nobody is told. May be called from on_event and on_done. */
void client_cancel(struct client *client, struct client_call *call);

/* Takes what has arrived; with nothing there sleeps until something arrives, a signal comes or until_ns (clock_ns();
 * UINT64_MAX: for ever). */
void client_turn(struct client *client, uint64_t until_ns);

/* Calls started and not ended. */
size_t client_active(const struct client *client);
/* Readable when client_turn() has something to take: for poll(2) together with others. */
int client_fd(const struct client *client);

/* Runs all calls with a client that has no others. */
void client_run_with(struct client *client, struct client_call *calls, size_t count, size_t concurrency);

/* Runs all calls, at most `concurrency` at once, started in order. Each ends by itself; calls[i].status tells how. */
void client_run(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency);

void client_call_free(struct client_call *call);

/* In streams of OpenAI's API: whether an event carries a token. A chat's first event (the role) does not, nor does the one
 * with the finish reason, nor usage. */
bool client_event_has_token(const char *data, size_t size);

#endif
