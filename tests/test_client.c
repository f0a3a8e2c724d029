#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "tools/client.h"

/* A server that answers every request with the same bytes, in pieces that the client sees one by one. */
struct server {
    char path[64];
    int listener;
    const char *answer;
    size_t piece;      /* bytes; 0: all at once */
    bool closes_early; /* after the answer's bytes, whatever they say */
    int connections;   /* that it takes; then it ends */
    int requests_per_connection;
    int requests_seen, hangups_seen;
    pthread_t thread;
};

static bool read_request(int fd)
{
    char text[4096];
    size_t size = 0;
    while (size < sizeof(text) - 1) {
        ssize_t got = recv(fd, text + size, 1, 0);
        if (got <= 0)
            return false;
        size++;
        if (size >= 4 && memcmp(text + size - 4, "\r\n\r\n", 4) == 0)
            return true;
    }
    return false;
}

static void send_piece(struct server *server, int fd, const char *bytes, size_t size)
{
    int unread = 1;
    if (send(fd, bytes, size, MSG_NOSIGNAL) < 0)
        server->hangups_seen++;
    while (server->piece > 0 && unread > 0 && ioctl(fd, SIOCOUTQ, &unread) == 0)
        sched_yield();
}

static void *serve(void *context)
{
    struct server *server = context;
    for (int c = 0; c < server->connections; c++) {
        int fd = accept(server->listener, NULL, NULL);
        for (int r = 0; r < server->requests_per_connection && read_request(fd); r++) {
            server->requests_seen++;
            size_t size = strlen(server->answer), piece = server->piece > 0 ? server->piece : size;
            for (size_t at = 0; at < size; at += piece)
                send_piece(server, fd, server->answer + at, min_u64(piece, size - at));
        }
        char byte;
        if (!server->closes_early && recv(fd, &byte, 1, 0) == 0)
            server->hangups_seen++;
        close(fd);
    }
    return NULL;
}

static void server_start(struct server *server, int backlog)
{
    snprintf(server->path, sizeof(server->path), "/tmp/evenflow-test-client-%d.sock", (int)getpid());
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, server->path);
    unlink(server->path);
    server->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(server->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(server->listener, backlog), 0);
    if (server->requests_per_connection == 0)
        server->requests_per_connection = 1;
    pthread_create(&server->thread, NULL, serve, server);
}

static void server_end(struct server *server)
{
    pthread_join(server->thread, NULL);
    close(server->listener);
    unlink(server->path);
}

struct seen {
    char text[1024];
    struct client *client;
    int cancel_after;
};

static void take_event(struct client_call *call, void *context, const char *data, size_t size)
{
    struct seen *seen = context;
    cr_assert_eq(strlen(data), size);
    snprintf(seen->text + strlen(seen->text), sizeof(seen->text) - strlen(seen->text), "[%s]", data);
    if (seen->cancel_after > 0 && --seen->cancel_after == 0)
        client_cancel(seen->client, call);
}

#define STREAM_HEAD                                                                                                    \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"

static const char stream[] = STREAM_HEAD "000f\r\ndata: {\"a\":1}\n\n\r\n0017\r\n: a comment\ndata: two\n\n\r\n"
                                         "0008\r\ndata: th\r\n0005\r\nree\n\n\r\n000e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

Test(client, gives_the_same_events_however_the_bytes_arrive)
{
    static const size_t pieces[] = {0, 1, 2, 3, 7, 19, 64};
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++) {
        struct server server = {.answer = stream, .piece = pieces[i], .connections = 1};
        server_start(&server, 8);
        struct seen seen = {0};
        struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
        client_run(server.path, &call, 1, 1);
        server_end(&server);
        cr_assert_eq(call.status, 200, "%s", call.err.text);
        cr_assert_str_eq(seen.text, "[{\"a\":1}][two][three][[DONE]]", "in pieces of %zu: %s", pieces[i], seen.text);
        cr_assert_eq(call.event_count, 4);
        cr_assert(call.start_ns < call.first_event_ns && call.first_event_ns <= call.last_event_ns);
        cr_assert_leq(call.last_event_ns, call.end_ns);
    }
}

Test(client, gives_a_body_as_one_text)
{
    struct server server = {
        .answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", .piece = 1, .connections = 1};
    server_start(&server, 8);
    struct client_call call = {.method = "GET", .path = "/"};
    client_run(server.path, &call, 1, 1);
    server_end(&server);
    cr_assert_eq(call.status, 404);
    cr_assert_str_eq(call.answer, "hello");
    client_call_free(&call);
}

Test(client, says_that_an_answer_is_not_complete)
{
    struct server server = {.answer = STREAM_HEAD "0009\r\ndata: a\n\n\r\n", .connections = 1, .closes_early = true};
    server_start(&server, 8);
    struct seen seen = {0};
    struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
    client_run(server.path, &call, 1, 1);
    server_end(&server);
    cr_assert_eq(call.status, 0);
    cr_assert_str_eq(seen.text, "[a]");
    cr_assert(strstr(call.err.text, "not complete") != NULL, "%s", call.err.text);
}

Test(client, says_what_to_do_where_no_engine_is)
{
    struct client_call call = {.method = "GET", .path = "/"};
    client_run("/tmp/evenflow-test-client-nobody.sock", &call, 1, 1);
    cr_assert_eq(call.status, 0);
    cr_assert(strstr(call.err.text, "evenflow serve") != NULL, "%s", call.err.text);
    char path[300];
    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    client_run(path, &call, 1, 1);
    cr_assert(strstr(call.err.text, "longer than") != NULL, "%s", call.err.text);
}

static void count_done(struct client_call *call, void *context)
{
    cr_assert_eq(call->status, 200, "%s", call->err.text);
    ++*(int *)context;
}

Test(client, uses_a_connection_again_when_it_may)
{
    struct server server = {.answer = stream, .connections = 1, .requests_per_connection = 5};
    server_start(&server, 8);
    struct err err;
    struct client *client = client_open(server.path, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    int done = 0;
    for (int i = 0; i < 5; i++) {
        struct client_call call = {.method = "GET", .path = "/", .on_done = count_done, .context = &done};
        client_start(client, &call);
        while (client_active(client) > 0)
            client_turn(client, UINT64_MAX);
        client_call_free(&call);
    }
    client_close(client);
    server_end(&server);
    cr_assert_eq(done, 5);
    cr_assert_eq(server.requests_seen, 5);
}

Test(client, may_be_cancelled_by_the_event_it_tells_of)
{
    struct server server = {.answer = stream, .connections = 1};
    server_start(&server, 8);
    struct err err;
    struct seen seen = {.client = client_open(server.path, false, &err), .cancel_after = 2};
    struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
    client_start(seen.client, &call);
    while (client_active(seen.client) > 0)
        client_turn(seen.client, UINT64_MAX);
    client_close(seen.client);
    server_end(&server);
    cr_assert_str_eq(seen.text, "[{\"a\":1}][two]");
    cr_assert_eq(call.status, 0);
    cr_assert_eq(server.hangups_seen, 1);
}

Test(client, a_call_that_waits_for_its_connection_can_be_cancelled)
{
    struct server server = {.answer = stream, .connections = 2};
    server_start(&server, 8);
    struct err err;
    struct client *client = client_open(server.path, false, &err);
    int done = 0;
    struct client_call calls[3];
    for (int i = 0; i < 3; i++) {
        calls[i] = (struct client_call){.method = "GET", .path = "/", .on_done = count_done, .context = &done};
        client_start(client, &calls[i]);
    }
    client_cancel(client, &calls[2]);
    cr_assert_eq(client_active(client), 2);
    client_start(client, &calls[2]);
    client_cancel(client, &calls[0]);
    while (client_active(client) > 0)
        client_turn(client, UINT64_MAX);
    client_close(client);
    server_end(&server);
    cr_assert_eq(done, 2);
    for (int i = 0; i < 3; i++)
        client_call_free(&calls[i]);
}

Test(client, waits_where_the_queue_of_the_listener_is_full)
{
    struct server server = {.answer = stream, .connections = 100};
    server_start(&server, 1);
    static struct client_call calls[100];
    for (int i = 0; i < 100; i++)
        calls[i] = (struct client_call){.method = "GET", .path = "/"};
    client_run(server.path, calls, 100, 100);
    server_end(&server);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(calls[i].status, 200, "%s", calls[i].err.text);
        client_call_free(&calls[i]);
    }
    cr_assert_eq(server.requests_seen, 100);
}
