#include "tools/client.h"

#include <errno.h>
#include <fcntl.h>
#include <http_parser.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ipc/clock.h"

#define READ_BYTES 65536

struct client_io {
    int fd;
    http_parser parser;
    char *request;
    size_t request_size, sent;
    bool is_complete;
    bool is_event_stream;
    bool header_is_content_type;
    char *line; /* of the event stream, not yet complete */
    size_t line_size, line_room;
    size_t answer_room;
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

static void take_event_line(struct client_call *call, const char *line, size_t size)
{
    if (size < 6 || memcmp(line, "data: ", 6) != 0)
        return;
    if (call->first_event_ns == 0)
        call->first_event_ns = clock_ns();
    call->event_count++;
    call->on_event(call, call->context, line + 6, size - 6);
}

static int on_header_field(http_parser *parser, const char *at, size_t length)
{
    struct client_call *call = parser->data;
    call->io->header_is_content_type = length == 12 && strncasecmp(at, "content-type", 12) == 0;
    return 0;
}

static int on_header_value(http_parser *parser, const char *at, size_t length)
{
    struct client_call *call = parser->data;
    if (call->io->header_is_content_type)
        call->io->is_event_stream = length >= 17 && strncasecmp(at, "text/event-stream", 17) == 0;
    return 0;
}

static int on_body(http_parser *parser, const char *at, size_t length)
{
    struct client_call *call = parser->data;
    struct client_io *io = call->io;
    if (!io->is_event_stream || call->on_event == NULL) {
        append(&call->answer, &call->answer_size, &io->answer_room, at, length);
        return 0;
    }
    for (size_t i = 0; i < length; i++) {
        if (at[i] != '\n') {
            append(&io->line, &io->line_size, &io->line_room, at + i, 1);
        } else if (io->line_size > 0) {
            take_event_line(call, io->line, io->line_size);
            io->line_size = 0;
        }
    }
    return 0;
}

static int on_message_complete(http_parser *parser)
{
    struct client_call *call = parser->data;
    call->status = (int)parser->status_code;
    call->io->is_complete = true;
    return 0;
}

static const http_parser_settings parser_settings = {.on_header_field = on_header_field,
                                                     .on_header_value = on_header_value,
                                                     .on_body = on_body,
                                                     .on_message_complete = on_message_complete};

static int connect_to(const char *socket_path, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(socket_path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "socket %s: the path is too long", socket_path);
    strcpy(address.sun_path, socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(err, -errno, "socket: %s", strerror(errno));
    int ret = connect(fd, (struct sockaddr *)&address, sizeof(address));
    if (ret != 0) {
        ret = err_set(err, -errno, "socket %s: no engine answers there (%s); start one with: evenflow serve MODEL.gguf",
                      socket_path, strerror(errno));
        close(fd);
        return ret;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void start_call(const char *socket_path, struct client_call *call)
{
    call->start_ns = clock_ns();
    int fd = connect_to(socket_path, &call->err);
    if (fd < 0)
        return;
    struct client_io *io = base_alloc(sizeof(*io));
    call->io = io;
    io->fd = fd;
    http_parser_init(&io->parser, HTTP_RESPONSE);
    io->parser.data = call;
    char head[512];
    int head_size = snprintf(head, sizeof(head),
                             "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                             "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                             call->method, call->path, call->body_size);
    io->request_size = (size_t)head_size + call->body_size;
    io->request = base_alloc(io->request_size + 1);
    memcpy(io->request, head, (size_t)head_size);
    if (call->body_size > 0)
        memcpy(io->request + head_size, call->body, call->body_size);
}

static void end_call(struct client_call *call)
{
    struct client_io *io = call->io;
    call->end_ns = clock_ns();
    close(io->fd);
    free(io->request);
    free(io->line);
    free(io);
    call->io = NULL;
}

static void fail_call(struct client_call *call, const char *what, int error)
{
    call->status = 0;
    err_set(&call->err, -error, "the engine closed the connection: %s%s%s", what, error ? ": " : "",
            error ? strerror(error) : "");
    end_call(call);
}

static void send_more(struct client_call *call)
{
    struct client_io *io = call->io;
    ssize_t sent = send(io->fd, io->request + io->sent, io->request_size - io->sent, MSG_NOSIGNAL);
    if (sent > 0)
        io->sent += (size_t)sent;
    else if (errno == EPIPE)
        io->sent = io->request_size; /* it may have refused the body and still have answered */
    else if (errno != EAGAIN && errno != EINTR)
        fail_call(call, "cannot send", errno);
}

static void receive_more(struct client_call *call)
{
    struct client_io *io = call->io;
    char data[READ_BYTES];
    ssize_t got = recv(io->fd, data, sizeof(data), 0);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail_call(call, "cannot receive", errno);
        return;
    }
    size_t parsed = http_parser_execute(&io->parser, &parser_settings, data, (size_t)got);
    if (io->is_complete)
        end_call(call);
    else if (got == 0)
        fail_call(call, "the answer is not complete", 0);
    else if (parsed != (size_t)got)
        fail_call(call, http_errno_description(HTTP_PARSER_ERRNO(&io->parser)), 0);
    else if (call->abandon_after_events != 0 && call->event_count >= call->abandon_after_events)
        fail_call(call, "abandoned", 0);
}

void client_run_each(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency,
                     client_done_fn *on_done, void *context)
{
    if (concurrency == 0 || concurrency > count)
        concurrency = count;
    struct pollfd *polls = base_alloc((concurrency + 1) * sizeof(*polls));
    size_t *active = base_alloc((concurrency + 1) * sizeof(*active));
    size_t active_count = 0, next = 0;
    while (next < count || active_count > 0) {
        while (next < count && active_count < concurrency) {
            start_call(socket_path, &calls[next]);
            if (calls[next].io != NULL)
                active[active_count++] = next;
            else if (on_done != NULL)
                on_done(&calls[next], next, context);
            next++;
        }
        for (size_t i = 0; i < active_count; i++) {
            const struct client_io *io = calls[active[i]].io;
            short events = (short)(POLLIN | (io->sent < io->request_size ? POLLOUT : 0));
            polls[i] = (struct pollfd){.fd = io->fd, .events = events};
        }
        if (active_count == 0 || poll(polls, active_count, -1) <= 0)
            continue;
        size_t kept = 0;
        for (size_t i = 0; i < active_count; i++) {
            struct client_call *call = &calls[active[i]];
            if (polls[i].revents & POLLOUT)
                send_more(call);
            if (call->io != NULL && (polls[i].revents & (POLLIN | POLLHUP | POLLERR)))
                receive_more(call);
            if (call->io != NULL)
                active[kept++] = active[i];
            else if (on_done != NULL)
                on_done(call, active[i], context);
        }
        active_count = kept;
    }
    free(polls);
    free(active);
}

void client_run(const char *socket_path, struct client_call *calls, size_t count, size_t concurrency)
{
    client_run_each(socket_path, calls, count, concurrency, NULL, NULL);
}

void client_call_free(struct client_call *call)
{
    free(call->answer);
    call->answer = NULL;
}
