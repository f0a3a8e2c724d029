/* client.h - HTTP over the engine's Unix socket, many calls at once in one thread.
 *
 * Used by: the tools that talk to a running engine, tests.   Owns: its sockets and buffers.
 * Blocks: client_run() in poll(2).   HTTP is parsed by libhttp-parser.
 */
#ifndef EVENFLOW_CLIENT_H
#define EVENFLOW_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

struct client_call;

/* Called with each Server-Sent Event's data (without "data: "), "[DONE]" included; the text is terminated. */
typedef void client_event_fn(struct client_call *call, void *context, const char *data, size_t size);

/* One request and its answer. Zero it, set the first block, give it to client_run(). */
struct client_call {
    const char *method; /* "GET", "POST" */
    const char *path;   /* "/v1/models" */
    const char *body;   /* NULL: none */
    size_t body_size;
    client_event_fn *on_event; /* NULL: none wanted */
    void *context;
    uint64_t abandon_after_events; /* 0: never; else the client hangs up after so many (tests) */

    /* the answer */
    int status;   /* 0: none came, err says why */
    char *answer; /* the whole body, terminated; NULL when events were taken from it; freed by client_call_free() */
    size_t answer_size;
    uint64_t event_count;
    uint64_t start_ns;
    uint64_t first_event_ns; /* 0: none */
    uint64_t end_ns;
    struct err err;

    struct client_io *io; /* private */
};

/* Runs all calls, at most `concurrency` at once, started in order. Each ends by itself; calls[i].status tells how. */
void client_run(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency);

/* As client_run(), and tells of each call that ends, in any order. */
typedef void client_done_fn(struct client_call *call, size_t index, void *context);
void client_run_each(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency,
                     client_done_fn *on_done, void *context);

void client_call_free(struct client_call *call);

#endif
