#include "tools/client.h"

#include <errno.h>
#include <http_parser.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ipc/clock.h"

#define READ_BYTES       262144
#define TURN_EVENTS      256
#define CONNECT_RETRY_NS 1000000u /* the kernel tells nobody when a listener's queue has room again */

/* A connection belongs to a call, or is idle, or is closed and waits for the end of the turn. */
struct client_connection {
    struct client *client;
    int fd; /* -1: closed */
    struct client_call *call;
    struct client_connection *next; /* in the list of idle or closed ones */

    char head[512];
    size_t head_size, sent;
    bool waits_for_room;

    http_parser parser;
    bool is_complete;
    bool keeps_alive;
    bool is_event_stream;
    bool is_in_value; /* of a header field */
    size_t name_matched, value_matched;
    char *line; /* the beginning of a line of the event stream */
    size_t line_size, line_room;
};

struct client {
    struct sockaddr_un address;
    int epoll_fd;
    bool keeps_alive;
    size_t active_count;
    bool has_told;                              /* a call has ended in this turn */
    struct client_call *waiting, **waiting_end; /* for a connection, in order */
    struct client_connection *idle, *closed;
    uint64_t received_ns; /* when the bytes that are looked at arrived */
    char data[READ_BYTES];
};

static void append(char **buffer, size_t *size, size_t *room, const char *data, size_t more)
{
    if (*size + more + 1 > *room) {
        *room = 2 * (*size + more) + 256;
        *buffer = realloc(*buffer, *room);
        check(*buffer != NULL);
    }
    memcpy(*buffer + *size, data, more);
    *size += more;
    (*buffer)[*size] = '\0';
}

/* ---- called by the parser ---- */

/* A line, terminated, without its newline. */
static void take_event_line(struct client_connection *connection, const char *line, size_t size)
{
    struct client_call *call = connection->call;
    if (size < 6 || memcmp(line, "data: ", 6) != 0)
        return;
    call->last_event_ns = connection->client->received_ns;
    if (call->event_count++ == 0)
        call->first_event_ns = call->last_event_ns;
    call->on_event(call, call->context, line + 6, size - 6);
}

/* A name or value comes in any number of pieces: how much of `wanted` has come so far; NO_MATCH: it is another one. */
#define NO_MATCH SIZE_MAX

static size_t match(size_t matched, const char *wanted, const char *at, size_t length)
{
    if (matched == NO_MATCH || length > strlen(wanted) - matched || strncasecmp(wanted + matched, at, length) != 0)
        return NO_MATCH;
    return matched + length;
}

static int on_header_field(http_parser *parser, const char *at, size_t length)
{
    struct client_connection *connection = parser->data;
    if (connection->is_in_value)
        connection->name_matched = connection->value_matched = 0;
    connection->is_in_value = false;
    connection->name_matched = match(connection->name_matched, "content-type", at, length);
    return 0;
}

static int on_header_value(http_parser *parser, const char *at, size_t length)
{
    static const char wanted[] = "text/event-stream";
    struct client_connection *connection = parser->data;
    connection->is_in_value = true;
    if (connection->name_matched != strlen("content-type") || connection->is_event_stream)
        return 0;
    /* parameters may follow */
    size_t missing = sizeof(wanted) - 1 - connection->value_matched;
    connection->value_matched = match(connection->value_matched, wanted, at, min_u64(length, missing));
    connection->is_event_stream = connection->value_matched == sizeof(wanted) - 1;
    return 0;
}

/* The bytes lie in the client's own buffer: a line that is whole is terminated and handed over where it lies. */
static int take_events(struct client_connection *connection, char *at, size_t length)
{
    char *end = at + length;
    while (at < end && connection->call != NULL) { /* on_event may have cancelled it */
        char *newline = memchr(at, '\n', (size_t)(end - at));
        if (newline == NULL || connection->line_size > 0)
            append(&connection->line, &connection->line_size, &connection->line_room, at,
                   (size_t)((newline != NULL ? newline : end) - at));
        if (newline == NULL)
            break;
        *newline = '\0';
        if (connection->line_size == 0)
            take_event_line(connection, at, (size_t)(newline - at));
        else
            take_event_line(connection, connection->line, connection->line_size);
        connection->line_size = 0;
        at = newline + 1;
    }
    return connection->call == NULL ? -1 : 0;
}

static int on_body(http_parser *parser, const char *at, size_t length)
{
    struct client_connection *connection = parser->data;
    struct client_call *call = connection->call;
    if (connection->is_event_stream && call->on_event != NULL)
        return take_events(connection, (char *)at, length);
    append(&call->answer, &call->answer_size, &call->answer_room, at, length);
    return 0;
}

static int on_message_complete(http_parser *parser)
{
    struct client_connection *connection = parser->data;
    if (parser->status_code / 100 == 1) /* another answer follows */
        return 0;
    connection->is_complete = true;
    connection->keeps_alive = http_should_keep_alive(parser);
    http_parser_pause(parser, 1);
    return 0;
}

static const http_parser_settings parser_settings = {.on_header_field = on_header_field,
                                                     .on_header_value = on_header_value,
                                                     .on_body = on_body,
                                                     .on_message_complete = on_message_complete};

/* ---- connections ---- */

/* Events of this turn may still name it: it is freed when the turn is over. */
static void close_connection(struct client *client, struct client_connection *connection)
{
    close(connection->fd);
    connection->fd = -1;
    connection->call = NULL;
    connection->next = client->closed;
    client->closed = connection;
}

static void free_closed(struct client *client)
{
    while (client->closed != NULL) {
        struct client_connection *connection = client->closed;
        client->closed = connection->next;
        free(connection->line);
        free(connection);
    }
}

static void remove_idle(struct client *client, struct client_connection *connection)
{
    struct client_connection **at = &client->idle;
    while (*at != connection)
        at = &(*at)->next;
    *at = connection->next;
}

static void watch(struct client *client, struct client_connection *connection, int operation)
{
    struct epoll_event event = {.events = EPOLLIN | (connection->waits_for_room ? EPOLLOUT : 0),
                                .data.ptr = connection};
    check(epoll_ctl(client->epoll_fd, operation, connection->fd, &event) == 0);
}

/* An idle one or a new one. NULL with error: it cannot be made. */
static struct client_connection *get_connection(struct client *client, int *error)
{
    struct client_connection *connection = client->idle;
    if (connection != NULL) {
        client->idle = connection->next;
        return connection;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&client->address, sizeof(client->address)) != 0) {
        *error = errno;
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    connection = base_alloc(sizeof(*connection));
    connection->client = client;
    connection->fd = fd;
    watch(client, connection, EPOLL_CTL_ADD);
    return connection;
}

/* ---- a call's end ---- */

static void tell_done(struct client *client, struct client_call *call)
{
    call->end_ns = clock_ns();
    client->active_count--;
    client->has_told = true;
    if (call->on_done != NULL)
        call->on_done(call, call->context);
}

static void fail_call(struct client *client, struct client_call *call, const char *what, int error)
{
    call->status = 0;
    err_set(&call->err, -error, "the engine closed the connection: %s%s%s", what, error ? ": " : "",
            error ? strerror(error) : "");
    close_connection(client, call->connection);
    call->connection = NULL;
    tell_done(client, call);
}

static void complete_call(struct client *client, struct client_call *call, bool is_quiet)
{
    struct client_connection *connection = call->connection;
    call->status = (int)connection->parser.status_code;
    call->connection = NULL;
    connection->call = NULL;
    bool is_sent = connection->sent == connection->head_size + call->body_size;
    if (client->keeps_alive && connection->keeps_alive && is_sent && is_quiet) {
        connection->next = client->idle;
        client->idle = connection;
    } else {
        close_connection(client, connection);
    }
    tell_done(client, call);
}

/* ---- sending and receiving ---- */

static void send_more(struct client *client, struct client_connection *connection)
{
    struct client_call *call = connection->call;
    size_t size = connection->head_size + call->body_size;
    bool is_full = false;
    while (connection->sent < size && !is_full) {
        size_t head_sent = connection->sent < connection->head_size ? connection->sent : connection->head_size;
        size_t body_sent = connection->sent - head_sent;
        struct iovec parts[2] = {{connection->head + head_sent, connection->head_size - head_sent},
                                 {(char *)call->body + body_sent, call->body_size - body_sent}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = call->body_size > 0 ? 2 : 1};
        ssize_t sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL);
        if (sent >= 0) {
            connection->sent += (size_t)sent;
        } else if (errno == EAGAIN) {
            is_full = true;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            break; /* it may have refused the body and still have answered */
        } else if (errno != EINTR) {
            fail_call(client, call, "cannot send", errno);
            return;
        }
    }
    if (is_full != connection->waits_for_room) {
        connection->waits_for_room = is_full;
        watch(client, connection, EPOLL_CTL_MOD);
    }
}

static void receive_more(struct client *client, struct client_connection *connection)
{
    struct client_call *call = connection->call;
    ssize_t got = recv(connection->fd, client->data, sizeof(client->data), 0);
    if (call == NULL) { /* idle: the engine has closed it, or speaks out of turn */
        remove_idle(client, connection);
        close_connection(client, connection);
        return;
    }
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail_call(client, call, "cannot receive", errno);
        return;
    }
    client->received_ns = clock_ns();
    size_t parsed = http_parser_execute(&connection->parser, &parser_settings, client->data, (size_t)got);
    if (connection->call == NULL)
        return; /* cancelled by on_event */
    if (connection->is_complete)
        complete_call(client, call, parsed == (size_t)got);
    else if (got == 0)
        fail_call(client, call, "the answer is not complete", 0);
    else if (parsed != (size_t)got)
        fail_call(client, call, http_errno_description(HTTP_PARSER_ERRNO(&connection->parser)), 0);
    else if (call->abandon_after_events != 0 && call->event_count >= call->abandon_after_events)
        fail_call(client, call, "abandoned", 0);
}

/* ---- a call's beginning ---- */

static void send_call(struct client *client, struct client_connection *connection, struct client_call *call)
{
    connection->call = call;
    call->connection = connection;
    connection->sent = 0;
    connection->is_complete = connection->is_event_stream = connection->is_in_value = false;
    connection->name_matched = connection->value_matched = 0;
    connection->line_size = 0;
    http_parser_init(&connection->parser, HTTP_RESPONSE);
    connection->parser.data = connection;
    int size = snprintf(connection->head, sizeof(connection->head),
                        "%s %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n",
                        call->method, call->path, client->keeps_alive ? "" : "Connection: close\r\n", call->body_size);
    check(size > 0 && (size_t)size < sizeof(connection->head));
    connection->head_size = (size_t)size;
    send_more(client, connection);
}

static void refuse_call(struct client *client, struct client_call *call, int error)
{
    const char *path = client->address.sun_path;
    if (error == EMFILE || error == ENFILE)
        err_set(&call->err, -error, "%s: raise it with ulimit -n, or have fewer connections at once", strerror(error));
    else if (error == EACCES || error == EPERM)
        err_set(&call->err, -error, "socket %s: %s; the engine there is another user's", path, strerror(error));
    else
        err_set(
            &call->err, -error,
            "socket %s: no engine answers there (%s); start one with: evenflow serve MODEL.gguf, or name its socket "
            "with --socket",
            path, strerror(error));
    call->status = 0;
    tell_done(client, call);
}

/* Calls without a connection get one. False: the listener's queue is full. */
static bool start_waiting(struct client *client)
{
    while (client->waiting != NULL) {
        struct client_call *call = client->waiting;
        int error = 0;
        struct client_connection *connection = get_connection(client, &error);
        if (connection == NULL && error == EAGAIN)
            return false;
        client->waiting = call->next;
        if (client->waiting == NULL)
            client->waiting_end = &client->waiting;
        if (connection != NULL)
            send_call(client, connection, call);
        else
            refuse_call(client, call, error);
    }
    return true;
}

void client_start(struct client *client, struct client_call *call)
{
    check(call->connection == NULL);
    call->start_ns = clock_ns();
    call->next = NULL;
    *client->waiting_end = call;
    client->waiting_end = &call->next;
    client->active_count++;
}

void client_cancel(struct client *client, struct client_call *call)
{
    if (call->connection != NULL) {
        close_connection(client, call->connection);
        call->connection = NULL;
    } else {
        struct client_call **at = &client->waiting;
        while (*at != call)
            at = &(*at)->next;
        *at = call->next;
        if (*at == NULL)
            client->waiting_end = at;
    }
    call->end_ns = clock_ns();
    call->status = 0;
    err_set(&call->err, -ECANCELED, "cancelled");
    client->active_count--;
}

/* ---- the whole ---- */

struct client *client_open(const char *socket_path, bool keeps_alive, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof(address.sun_path)) {
        err_set(err, -ENAMETOOLONG, "socket %s: the path is longer than %zu bytes", socket_path,
                sizeof(address.sun_path) - 1);
        return NULL;
    }
    strcpy(address.sun_path, socket_path);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    struct client *client = base_alloc(sizeof(*client));
    client->address = address;
    client->keeps_alive = keeps_alive;
    client->waiting_end = &client->waiting;
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    check(client->epoll_fd >= 0);
    return client;
}

void client_turn(struct client *client, uint64_t until_ns)
{
    client->has_told = false;
    bool has_room = start_waiting(client);
    uint64_t now_ns = clock_ns();
    if (!has_room)
        until_ns = min_u64(until_ns, now_ns + CONNECT_RETRY_NS);
    if (client->has_told || until_ns < now_ns)
        until_ns = now_ns;
    struct timespec timeout = {.tv_sec = (time_t)((until_ns - now_ns) / 1000000000u),
                               .tv_nsec = (long)((until_ns - now_ns) % 1000000000u)};
    struct epoll_event events[TURN_EVENTS];
    int count = epoll_pwait2(client->epoll_fd, events, TURN_EVENTS, until_ns == UINT64_MAX ? NULL : &timeout, NULL);
    check(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; i++) {
        struct client_connection *connection = events[i].data.ptr;
        if (connection->fd >= 0 && connection->call != NULL && (events[i].events & EPOLLOUT))
            send_more(client, connection);
        if (connection->fd >= 0 && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            receive_more(client, connection);
    }
    free_closed(client);
}

size_t client_active(const struct client *client)
{
    return client->active_count;
}

int client_fd(const struct client *client)
{
    return client->epoll_fd;
}

void client_close(struct client *client)
{
    check(client->active_count == 0);
    while (client->idle != NULL) {
        struct client_connection *connection = client->idle;
        client->idle = connection->next;
        close_connection(client, connection);
    }
    free_closed(client);
    close(client->epoll_fd);
    free(client);
}

void client_run_with(struct client *client, struct client_call *calls, size_t count, size_t concurrency)
{
    size_t next = 0;
    while (next < count || client_active(client) > 0) {
        while (next < count && (concurrency == 0 || client_active(client) < concurrency))
            client_start(client, &calls[next++]);
        client_turn(client, UINT64_MAX);
    }
}

void client_run(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency)
{
    struct err err;
    struct client *client = client_open(socket_path, false, &err);
    for (size_t i = 0; client == NULL && i < count; i++)
        calls[i].err = err;
    if (client == NULL)
        return;
    client_run_with(client, calls, count, concurrency);
    client_close(client);
}

void client_call_free(struct client_call *call)
{
    free(call->answer);
    call->answer = NULL;
}

bool client_event_has_token(const char *data, size_t size)
{
    /* quotes within a text are escaped: these can only be keys */
    static const char unfinished[] = "\"finish_reason\":null", role[] = "\"delta\":{\"role\":";
    return memmem(data, size, unfinished, sizeof(unfinished) - 1) != NULL &&
           memmem(data, size, role, sizeof(role) - 1) == NULL;
}
