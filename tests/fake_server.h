/* fake_server.h - a server on a Unix socket that answers every request with the same bytes, for tests of clients. */
#ifndef EVENFLOW_TESTS_FAKE_SERVER_H
#define EVENFLOW_TESTS_FAKE_SERVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* Zero it, set the first block, start it. */
struct fake_server {
    const char *answer;
    size_t piece;                /* the answer goes out in pieces of so many bytes, seen one by one; 0: at once */
    bool closes_early;           /* after the answer's bytes, whatever they say */
    int connections;             /* that it takes, one after the other; then it ends */
    int requests_per_connection; /* 0: 1 */
    const char *first_answer;    /* of the first connection, where it differs */

    char path[64];
    char body[4096]; /* of the last request */
    int requests_seen, hangups_seen;
    int listener;
    pthread_t thread;
};

void fake_server_start(struct fake_server *server, int backlog);
/* Returns when it has seen all its connections. */
void fake_server_end(struct fake_server *server);

#define FAKE_STREAM_HEAD                                                                                               \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"

#endif
