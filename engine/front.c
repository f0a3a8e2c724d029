#include "engine/front.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/answer.h"
#include "engine/api.h"
#include "engine/conns.h"
#include "engine/intake.h"
#include "engine/io.h"
#include "engine/report.h"
#include "ipc/clock.h"
#include "ipc/journal.h"
#include "ipc/log.h"

#define EVENTS_PER_TURN 256u
#define WAITING_MAX     1024u /* accepted connections that have no slot yet: the backlog's size once more */
#define NO_SLOT         UINT32_MAX
#define RETRY_AFTER_S   1u
#define RETRY_ACCEPT_NS 100000000ull

enum phase { CONN_FREE, CONN_READING, CONN_ANSWERING, CONN_CLOSING };

/* Operations in flight: a slot is used again only when none is. */
enum { OP_RECEIVE = 1 << 0, OP_SEND = 1 << 1, OP_HANGUP = 1 << 2, OP_CANCEL = 1 << 3 };

/* What a successor could find out again; the rest is in struct conn_shm. */
struct connection {
    enum phase phase;
    int fd;
    uint32_t ops;
    bool said_continue;
    bool closes;      /* after this reply */
    bool is_rendered; /* the whole reply is in `out` */
    bool is_timed;    /* in the list of connections that must make progress */
    uint32_t older, newer;
    uint64_t progress_ns;
    struct http_reader reader;
    struct answer answer;
};

struct front {
    const struct arena *arena;
    const struct plan *plan;
    struct process_shm *process;
    struct bell bell;
    struct ring_consumer hints;
    struct intake intake;
    struct api api;
    struct tok tok;
    struct io *io;
    uint32_t sched_epoch;
    enum command command;

    struct connection *connections; /* (connections_max) */
    uint32_t *free_connections;     /* stack */
    uint32_t free_connection_count;
    uint32_t open_count;
    uint32_t answering_count;
    int waiting[WAITING_MAX]; /* ring: accepted, no slot yet */
    uint32_t waiting_first, waiting_count;
    bool is_accepting;       /* the operation is in flight */
    bool is_stopping_accept; /* its cancellation too */
    bool must_retry_accept;  /* it has failed for want of descriptors or memory */

    uint32_t oldest, newest; /* of the timed connections, by progress */
    bool is_timer_armed;

    uint8_t *body; /* a chunked body put together (body_bytes_max) */
    char *reply;   /* the body of a reply that is no answer (REPLY_MAX) */
    bool is_told_drained;
};

#define REPLY_MAX (CONN_OUT_BYTES - HTTP_RESPONSE_HEAD_MAX)

static struct conn_shm *shm_of(const struct front *f, uint32_t slot)
{
    return conns_slot(f->arena->regions[REGION_CONNS], f->plan, slot);
}

static uint8_t *out_of(const struct front *f, uint32_t slot)
{
    return conns_out(shm_of(f, slot), f->plan);
}

/* ---- timeouts: one limit for all, so the list is in the order of deadlines ---- */

static void timed_remove(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    if (!c->is_timed)
        return;
    c->is_timed = false;
    *(c->older != NO_SLOT ? &f->connections[c->older].newer : &f->oldest) = c->newer;
    *(c->newer != NO_SLOT ? &f->connections[c->newer].older : &f->newest) = c->older;
}

static uint64_t deadline_of(const struct front *f, const struct connection *c)
{
    return c->progress_ns + f->plan->request_timeout_ms * 1000000ull;
}

static void arm_timer(struct front *f)
{
    if (f->is_timer_armed || f->oldest == NO_SLOT)
        return;
    f->is_timer_armed = true;
    io_timer(f->io, deadline_of(f, &f->connections[f->oldest]));
}

/* The connection has made progress and must make more. */
static void timed_touch(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    timed_remove(f, slot);
    c->is_timed = true;
    c->progress_ns = clock_ns();
    c->older = f->newest;
    c->newer = NO_SLOT;
    *(f->newest != NO_SLOT ? &f->connections[f->newest].newer : &f->oldest) = slot;
    f->newest = slot;
    arm_timer(f);
}

/* ---- a connection's life ---- */

static void count_open(struct front *f)
{
    counter_set(f->process, COUNTER_FRONT_CONNECTIONS_OPEN, f->open_count);
}

static void set_phase(struct front *f, uint32_t slot, enum phase phase)
{
    struct connection *c = &f->connections[slot];
    f->answering_count += (phase == CONN_ANSWERING) - (c->phase == CONN_ANSWERING);
    c->phase = phase;
}

static void connection_start(struct front *f, int fd)
{
    uint32_t slot = f->free_connections[--f->free_connection_count];
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    check(c->phase == CONN_FREE && c->ops == 0);
    uint32_t generation = (shm->generation + 1) & IO_GENERATION_MASK;
    *shm = (struct conn_shm){.is_open = 1, .generation = generation};
    c->fd = fd;
    c->closes = c->said_continue = c->is_rendered = false;
    set_phase(f, slot, CONN_READING);
    http_reader_init(&c->reader, f->plan->body_bytes_max);
    f->open_count++;
    counter_add(f->process, COUNTER_FRONT_CONNECTIONS, 1);
    count_open(f);
    c->ops |= OP_HANGUP;
    io_watch_hangup(f->io, slot, generation, fd);
    c->ops |= OP_RECEIVE;
    io_receive(f->io, slot, generation, fd, conns_in(shm), conns_in_bytes(f->plan));
    timed_touch(f, slot);
}

static void take_connections(struct front *f)
{
    while (f->waiting_count > 0 && f->free_connection_count > 0) {
        int fd = f->waiting[f->waiting_first];
        f->waiting_first = (f->waiting_first + 1) % WAITING_MAX;
        f->waiting_count--;
        connection_start(f, fd);
    }
    if (f->free_connection_count > 0 && !f->is_accepting) {
        f->is_accepting = true;
        f->must_retry_accept = false;
        io_accept(f->io, f->arena->listener);
    } else if (f->free_connection_count == 0 && f->is_accepting && !f->is_stopping_accept) {
        f->is_stopping_accept = true; /* the next ones wait in the socket's backlog */
        io_accept_stop(f->io);
    }
}

static void connection_free(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    close(c->fd);
    c->fd = -1;
    set_phase(f, slot, CONN_FREE);
    shm_of(f, slot)->is_open = 0;
    f->free_connections[f->free_connection_count++] = slot;
    f->open_count--;
    count_open(f);
    take_connections(f);
}

/* The request whose answer this connection gets needs it no more. */
static void end_request(struct front *f, uint32_t slot)
{
    struct conn_shm *shm = shm_of(f, slot);
    if (shm->reply == CONN_ANSWER)
        intake_end(&f->intake, shm->request);
    shm->reply = CONN_NO_REPLY;
}

static void connection_close(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if (c->phase == CONN_CLOSING)
        return;
    if (shm->reply == CONN_ANSWER)
        counter_add(f->process, COUNTER_FRONT_REQUESTS_ABORTED, 1); /* a complete one was ended before */
    end_request(f, slot);
    timed_remove(f, slot);
    set_phase(f, slot, CONN_CLOSING);
    /* shutdown() first: whoever else holds this socket must not keep it open for the client */
    shutdown(c->fd, SHUT_RDWR);
    if (c->ops == 0) {
        connection_free(f, slot);
        return;
    }
    c->ops |= OP_CANCEL;
    io_cancel(f->io, slot, shm->generation, c->fd);
}

/* ---- sending ---- */

static void send_out(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if ((c->ops & OP_SEND) || shm->out_first == shm->out_end)
        return;
    c->ops |= OP_SEND;
    io_send(f->io, slot, shm->generation, c->fd, out_of(f, slot) + shm->out_first, shm->out_end - shm->out_first);
    timed_touch(f, slot);
}

static void read_next(struct front *f, uint32_t slot);

/* Everything of the reply has been taken by the kernel. */
static void reply_is_sent(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    end_request(f, slot);
    c->is_rendered = false;
    if (c->closes) {
        connection_close(f, slot);
        return;
    }
    set_phase(f, slot, CONN_READING);
    read_next(f, slot);
}

/* Makes room for a piece, if that can be done: never under the kernel's hands. */
static void compact_out(const struct front *f, uint32_t slot)
{
    const struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if ((c->ops & OP_SEND) || shm->out_first == 0)
        return;
    memmove(out_of(f, slot), out_of(f, slot) + shm->out_first, shm->out_end - shm->out_first);
    shm->out_end -= shm->out_first;
    shm->out_first = 0;
}

/* Renders and sends what there is of the reply in progress. */
static void pump(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    check(c->phase == CONN_ANSWERING);
    if (shm->reply == CONN_ANSWER && !c->is_rendered) {
        if (CONN_OUT_BYTES - shm->out_end < ANSWER_PIECE_MAX)
            compact_out(f, slot);
        size_t size;
        enum answer_result result =
            answer_render(&c->answer, (char *)out_of(f, slot) + shm->out_end, CONN_OUT_BYTES - shm->out_end, &size);
        shm->out_end += (uint32_t)size;
        c->is_rendered = result == ANSWER_COMPLETE;
        if (answer_needs_no_more(&c->answer))
            intake_cancel(&f->intake, shm->request);
    }
    send_out(f, slot);
    if (c->ops & OP_SEND)
        return;
    if (c->is_rendered)
        reply_is_sent(f, slot);
    else
        timed_remove(f, slot); /* it waits for tokens, which is not its fault */
}

/* Puts a whole reply into `out`. */
static void reply_with(struct front *f, uint32_t slot, struct http_response *response, const char *body, size_t size)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    c->closes = c->closes || !c->reader.keeps_alive;
    response->framing = HTTP_LENGTH;
    response->content_length = size;
    response->request_id = c->reader.request_id;
    response->closes = c->closes;
    response->is_version_1_0 = c->reader.is_version_1_0;
    compact_out(f, slot);
    check(shm->out_end + HTTP_RESPONSE_HEAD_MAX + size <= CONN_OUT_BYTES);
    char *out = (char *)out_of(f, slot);
    shm->out_end += (uint32_t)http_write_head(out + shm->out_end, response);
    if (c->reader.verb != HTTP_VERB_HEAD) {
        memcpy(out + shm->out_end, body, size);
        shm->out_end += (uint32_t)size;
    }
    shm->reply = CONN_FIXED;
    c->is_rendered = true;
    set_phase(f, slot, CONN_ANSWERING);
    pump(f, slot);
}

static void reply_json(struct front *f, uint32_t slot, int status, const struct json_writer *body)
{
    struct http_response response = {.status = status, .content_type = "application/json"};
    reply_with(f, slot, &response, body->data, body->size);
}

static struct json_writer reply_body(struct front *f)
{
    return (struct json_writer){f->reply, 0, REPLY_MAX - 64}; /* 64: what an interim response may have left in `out` */
}

static void reply_error(struct front *f, uint32_t slot, const struct api_error *error, const char *allow)
{
    struct json_writer body = reply_body(f);
    api_write_error(&body, error);
    counter_add(f->process, COUNTER_FRONT_REQUESTS_FAILED, 1);
    log_debug("connection %u: %d %s", slot, error->status, error->message);
    struct http_response response = {
        .status = error->status,
        .content_type = "application/json",
        .retry_after_s = error->status == 429 || error->status == 503 ? RETRY_AFTER_S : 0,
        .allow = allow,
    };
    reply_with(f, slot, &response, body.data, body.size);
}

/* ---- requests ---- */

static bool is_draining(const struct front *f)
{
    return f->command != COMMAND_RUN;
}

static void begin_answer(struct front *f, uint32_t slot, uint32_t request, const struct answer_format *format)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    /* a stream to HTTP/1.0 has no other end than the connection's */
    c->closes = !c->reader.keeps_alive || (format->is_stream && c->reader.is_version_1_0);
    shm->format = *format;
    shm->format.closes = c->closes;
    shm->format.is_version_1_0 = c->reader.is_version_1_0;
    strcpy(shm->format.request_id, c->reader.request_id);
    shm->request = request;
    shm->request_generation = arena_request(f->arena, request)->generation;
    shm->answer_first = shm->sent + (shm->out_end - shm->out_first);
    shm->reply = CONN_ANSWER;
    answer_begin(&c->answer, f->arena, &f->tok, &shm->format, request);
    set_phase(f, slot, CONN_ANSWERING);
    pump(f, slot);
}

static void complete(struct front *f, uint32_t slot, enum api_endpoint endpoint, const char *body, size_t size)
{
    struct api_request asked;
    struct api_error error;
    uint32_t request;
    if (is_draining(f)) {
        api_fail(&error, 503, "", "shutting_down", "the server is shutting down and takes no new requests");
        reply_error(f, slot, &error, NULL);
        return;
    }
    f->api.now_s = clock_wall_s();
    if (api_parse(&f->api, endpoint, body, size, &asked, &error) != 0) {
        reply_error(f, slot, &error, NULL);
        return;
    }
    counter_add(f->process, COUNTER_FRONT_UNKNOWN_FIELDS, asked.unknown_fields);
    if (intake_accept(&f->intake, &asked, slot, &request) != 0) {
        api_fail(&error, 429, "", "too_many_requests",
                 "%u requests are running or waiting, and no more fit; try again later", f->intake.active);
        reply_error(f, slot, &error, NULL);
        return;
    }
    begin_answer(f, slot, request, &asked.format);
}

typedef void handler_fn(struct front *f, uint32_t slot, const char *body, size_t size);

static void handle_completions(struct front *f, uint32_t slot, const char *body, size_t size)
{
    complete(f, slot, API_COMPLETIONS, body, size);
}

static void handle_chat(struct front *f, uint32_t slot, const char *body, size_t size)
{
    complete(f, slot, API_CHAT_COMPLETIONS, body, size);
}

static void handle_tokenize(struct front *f, uint32_t slot, const char *body, size_t size)
{
    struct json_writer writer = reply_body(f);
    struct api_error error;
    if (api_tokenize(&f->api, body, size, &writer, &error) != 0)
        reply_error(f, slot, &error, NULL);
    else
        reply_json(f, slot, 200, &writer);
}

static void handle_detokenize(struct front *f, uint32_t slot, const char *body, size_t size)
{
    struct json_writer writer = reply_body(f);
    struct api_error error;
    if (api_detokenize(&f->api, body, size, &writer, &error) != 0)
        reply_error(f, slot, &error, NULL);
    else
        reply_json(f, slot, 200, &writer);
}

static void reply_state(struct front *f, uint32_t slot, bool is_good, const char *bad)
{
    struct json_writer writer = reply_body(f);
    json_format(&writer, "{\"status\":\"%s\"}", is_good ? "ok" : bad);
    reply_json(f, slot, is_good ? 200 : 503, &writer);
}

static void handle_health(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    reply_state(f, slot, !is_draining(f), "shutting down");
}

static void handle_ready(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    reply_state(f, slot, arena_is_ready(f->arena) && !is_draining(f), is_draining(f) ? "shutting down" : "starting");
}

static void handle_report(struct front *f, uint32_t slot, void (*report)(struct json_writer *, const struct arena *))
{
    struct json_writer writer = reply_body(f);
    report(&writer, f->arena);
    reply_json(f, slot, 200, &writer);
}

static void handle_models(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_models);
}

static void handle_version(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_version);
}

static void handle_status(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_status);
}

static void handle_metrics(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    struct json_writer writer = reply_body(f);
    report_metrics(&writer, f->arena);
    struct http_response response = {.status = 200, .content_type = "text/plain; version=0.0.4; charset=utf-8"};
    reply_with(f, slot, &response, writer.data, writer.size);
}

static const struct route {
    const char *path;
    bool is_post; /* else GET and HEAD */
    handler_fn *handle;
} routes[] = {
    {"/v1/chat/completions", true, handle_chat},
    {"/v1/completions", true, handle_completions},
    {"/v1/models", false, handle_models},
    {"/health", false, handle_health},
    {"/ready", false, handle_ready},
    {"/version", false, handle_version},
    {"/status", false, handle_status},
    {"/metrics", false, handle_metrics},
    {"/tokenize", true, handle_tokenize},
    {"/detokenize", true, handle_detokenize},
};

#define MODEL_PATH "/v1/models/"

static bool is_model_path(const char *path)
{
    return strncmp(path, MODEL_PATH, strlen(MODEL_PATH)) == 0;
}

static void route_request(struct front *f, uint32_t slot, const char *body, size_t size)
{
    const struct http_reader *reader = &f->connections[slot].reader;
    static const struct route model_route = {MODEL_PATH, false, NULL};
    const struct route *route = is_model_path(reader->path) ? &model_route : NULL;
    struct api_error error;
    for (size_t i = 0; i < ARRAY_COUNT(routes) && route == NULL; i++)
        if (strcmp(reader->path, routes[i].path) == 0)
            route = &routes[i];
    if (route == NULL) {
        api_fail(&error, 404, "", "not_found", "there is nothing at %.200s", reader->path);
        reply_error(f, slot, &error, NULL);
    } else if (route->is_post ? reader->verb != HTTP_VERB_POST
                              : reader->verb != HTTP_VERB_GET && reader->verb != HTTP_VERB_HEAD) {
        api_fail(&error, 405, "", "method_not_allowed", "%.200s: only %s is allowed", reader->path,
                 route->is_post ? "POST" : "GET");
        reply_error(f, slot, &error, route->is_post ? "POST" : "GET, HEAD");
    } else if (route->handle != NULL) {
        route->handle(f, slot, body, size);
    } else if (strcmp(reader->path + strlen(MODEL_PATH), f->plan->served_model_name) == 0) {
        handle_report(f, slot, report_model);
    } else {
        api_fail(&error, 404, "model", "model_not_found", "the model '%.100s' does not exist here; '%.100s' does",
                 reader->path + strlen(MODEL_PATH), f->plan->served_model_name);
        reply_error(f, slot, &error, NULL);
    }
}

/* ---- receiving ---- */

static void refuse_message(struct front *f, uint32_t slot, int status, const char *reason)
{
    struct connection *c = &f->connections[slot];
    struct api_error error;
    api_fail(&error, status, "", NULL, "%s", reason);
    c->closes = true; /* where the next message starts is not known */
    reply_error(f, slot, &error, NULL);
}

static void say_continue(struct front *f, uint32_t slot)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    c->said_continue = true;
    check(shm->out_end == 0); /* the reply before has been sent whole */
    memcpy(out_of(f, slot), text, sizeof(text) - 1);
    shm->out_end = sizeof(text) - 1;
    send_out(f, slot);
}

/* A whole message is there: its bytes are given up once the request has been taken out of them. */
static void take_message(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    const uint8_t *message = conns_in(shm) + shm->in_first;
    const char *body = (const char *)message + c->reader.body_first;
    if (c->reader.is_chunked) {
        http_body_copy(&c->reader, message, f->body);
        body = (const char *)f->body;
    }
    shm->in_first += (uint32_t)c->reader.parsed;
    route_request(f, slot, body, c->reader.body_size);
}

/* Looks at what has been received; asks for more when it is not a whole message. */
static void read_more(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    check(c->phase == CONN_READING);
    uint8_t *in = conns_in(shm);
    switch (http_reader_feed(&c->reader, in + shm->in_first, shm->in_end - shm->in_first)) {
    case HTTP_READY:
        take_message(f, slot);
        return;
    case HTTP_REFUSED:
        refuse_message(f, slot, c->reader.status, c->reader.reason);
        return;
    case HTTP_MORE:
        break;
    }
    if (c->reader.expects_continue && !c->said_continue)
        say_continue(f, slot);
    if (shm->in_first > 0) {
        memmove(in, in + shm->in_first, shm->in_end - shm->in_first);
        shm->in_end -= shm->in_first;
        shm->in_first = 0;
    }
    if (shm->in_end == conns_in_bytes(f->plan)) {
        refuse_message(f, slot, 413, "the body's chunks are too small for its size");
        return;
    }
    c->ops |= OP_RECEIVE;
    io_receive(f->io, slot, shm->generation, c->fd, in + shm->in_end, conns_in_bytes(f->plan) - shm->in_end);
    timed_touch(f, slot);
}

static void read_next(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    http_reader_init(&c->reader, f->plan->body_bytes_max);
    c->said_continue = false;
    read_more(f, slot);
}

/* ---- events ---- */

static void on_accept(struct front *f, const struct io_event *event)
{
    if (event->result >= 0) {
        if (f->waiting_count < WAITING_MAX) {
            f->waiting[(f->waiting_first + f->waiting_count++) % WAITING_MAX] = event->result;
        } else {
            log_warn("more than %u connections wait for a slot: one is closed", WAITING_MAX);
            close(event->result);
        }
    }
    if (event->is_last) {
        f->is_accepting = false;
        f->is_stopping_accept = false;
        if (event->result == -EMFILE || event->result == -ENFILE || event->result == -ENOMEM ||
            event->result == -ENOBUFS) {
            log_warn("cannot accept: %s; raise the limit of open files", strerror(-event->result));
            f->must_retry_accept = true; /* when a connection closes, or a little later: at once would fail at once */
            if (f->open_count == 0 && !f->is_timer_armed) {
                f->is_timer_armed = true;
                io_timer(f->io, clock_ns() + RETRY_ACCEPT_NS);
            }
            return;
        }
    }
    take_connections(f);
}

static void on_receive(struct front *f, uint32_t slot, int32_t result)
{
    struct conn_shm *shm = shm_of(f, slot);
    if (result <= 0) { /* 0: no request will follow; what was asked before has been answered */
        connection_close(f, slot);
        return;
    }
    shm->received += (uint32_t)result;
    shm->in_end += (uint32_t)result;
    read_more(f, slot);
}

static void on_send(struct front *f, uint32_t slot, int32_t result)
{
    struct conn_shm *shm = shm_of(f, slot);
    if (result < 0) {
        connection_close(f, slot);
        return;
    }
    shm->sent += (uint32_t)result;
    shm->out_first += (uint32_t)result;
    if (shm->out_first == shm->out_end)
        shm->out_first = shm->out_end = 0;
    if (f->connections[slot].phase == CONN_ANSWERING)
        pump(f, slot);
    else
        send_out(f, slot);
}

static void on_timer(struct front *f)
{
    f->is_timer_armed = false;
    uint64_t now = clock_ns();
    while (f->oldest != NO_SLOT && deadline_of(f, &f->connections[f->oldest]) <= now)
        connection_close(f, f->oldest);
    arm_timer(f);
    if (f->must_retry_accept)
        take_connections(f);
}

static void on_connection_event(struct front *f, const struct io_event *event)
{
    static const uint32_t ops[] = {
        [IO_RECEIVE] = OP_RECEIVE, [IO_SEND] = OP_SEND, [IO_HANGUP] = OP_HANGUP, [IO_CANCEL] = OP_CANCEL};
    uint32_t slot = event->slot;
    struct connection *c = &f->connections[slot];
    check(slot < f->plan->connections_max && (c->ops & ops[event->kind]));
    check(event->generation == shm_of(f, slot)->generation);
    if (event->is_last)
        c->ops &= ~ops[event->kind];
    if (c->phase == CONN_CLOSING) {
        if (event->kind == IO_SEND && event->result > 0)
            shm_of(f, slot)->sent += (uint32_t)event->result;
        if (c->ops == 0)
            connection_free(f, slot);
    } else if (event->kind == IO_RECEIVE) {
        on_receive(f, slot, event->result);
    } else if (event->kind == IO_SEND) {
        on_send(f, slot, event->result);
    } else if (event->result != 0) {
        connection_close(f, slot); /* the client is gone */
    } else if (event->is_last) {
        c->ops |= OP_HANGUP; /* half-closed, it still listens: watch on */
        io_watch_hangup(f->io, slot, event->generation, c->fd);
    }
}

static void on_event(struct front *f, const struct io_event *event)
{
    switch (event->kind) {
    case IO_ACCEPT:
        on_accept(f, event);
        break;
    case IO_TIMER:
        on_timer(f);
        break;
    case IO_BELL:
        break; /* it says "look", and every turn looks */
    default:
        on_connection_event(f, event);
    }
}

/* ---- what sched says ---- */

static void look_at_request(struct front *f, uint32_t request)
{
    uint32_t slot = f->intake.connections[request];
    if (slot == INTAKE_NO_CONNECTION) {
        intake_look(&f->intake, request);
        return;
    }
    if (journal_request_state(arena_request(f->arena, request)) == REQUEST_ACCEPTED)
        pump(f, slot);
}

static uint32_t take_hints(struct front *f)
{
    uint32_t count = 0;
    struct msg_request msg;
    for (; ring_peek(&f->hints, &msg) == RING_OK; count++) {
        check(msg.slot < f->plan->requests_max);
        look_at_request(f, msg.slot);
        ring_release(&f->hints);
    }
    if (count >= f->hints.slot_count) /* sched may hold back what a full ring had no room for */
        bell_ring(&f->intake.sched);
    /* a new life of sched may have taken hints of the old one with it: look everywhere */
    const struct region_head *head = (const struct region_head *)(const void *)f->arena->regions[REGION_SCHED];
    if (head->epoch != f->sched_epoch) {
        f->sched_epoch = head->epoch;
        for (uint32_t i = 0; i < f->plan->requests_max; i++)
            look_at_request(f, i);
    }
    return count;
}

/* ---- the loop ---- */

static void take_command(struct front *f)
{
    f->command = arena_command(f->arena);
    if (f->command == COMMAND_DRAIN && !f->is_told_drained && f->intake.active == 0 && f->answering_count == 0) {
        f->is_told_drained = true;
        arena_set_state(f->arena, PROCESS_DRAINED);
    }
}

int front_do_work(struct front *f, bool may_sleep)
{
    struct io_event events[EVENTS_PER_TURN];
    bool sleeps = false;
    if (may_sleep) {
        bell_announce(&f->bell);
        sleeps = ring_is_empty(&f->hints) && arena_command(f->arena) == f->command;
    }
    uint32_t count = io_turn(f->io, sleeps, events, EVENTS_PER_TURN);
    if (may_sleep)
        bell_retract(&f->bell);
    for (uint32_t i = 0; i < count; i++)
        on_event(f, &events[i]);
    uint32_t hints = take_hints(f);
    take_command(f);
    if (f->command == COMMAND_STOP)
        return -1;
    progress_add(f->process, count + hints);
    return (int)(count + hints);
}

/* ---- start and end ---- */

int front_init(struct front **front, const struct arena *arena, struct err *err)
{
    const struct plan *plan = arena->plan;
    struct front *f = base_alloc(sizeof(*f));
    *front = f;
    *f = (struct front){.arena = arena, .plan = plan, .oldest = NO_SLOT, .newest = NO_SLOT};
    if (conns_region_bytes(plan) > arena->layout.region_bytes[REGION_CONNS])
        return err_set(err, -EPROTO, "region conns: has %zu bytes, %llu are needed; mixed builds?",
                       arena->layout.region_bytes[REGION_CONNS], (unsigned long long)conns_region_bytes(plan));
    int ret = tok_attach(&f->tok, arena->regions[REGION_VOCAB], plan->vocab_bytes, api_text_bytes(plan), err);
    ret = ret ? ret : io_open(&f->io, plan->connections_max, err);
    if (ret != 0)
        return ret;
    if (tok_vocab_size(&f->tok) < plan->vocab_size)
        return err_set(err, -EPROTO, "vocabulary: has %u tokens, the model %u; mixed files?", tok_vocab_size(&f->tok),
                       plan->vocab_size);
    f->process = arena_process(arena, ROLE_FRONT, 0);
    f->bell = arena_bell(arena);
    f->sched_epoch = ((const struct region_head *)(const void *)arena->regions[REGION_SCHED])->epoch;
    arena_ring_sched_to_front_consumer(arena, &f->hints);
    intake_open(&f->intake, arena);
    ret = api_open(&f->api, plan, &f->tok, err);
    if (ret != 0)
        return ret;
    f->connections = base_alloc(plan->connections_max * sizeof(*f->connections));
    f->free_connections = base_alloc(plan->connections_max * sizeof(uint32_t));
    for (uint32_t i = plan->connections_max; i-- > 0;) {
        f->connections[i].fd = -1;
        f->free_connections[f->free_connection_count++] = i;
    }
    f->body = base_alloc(plan->body_bytes_max);
    f->reply = base_alloc(REPLY_MAX);
    return 0;
}

void front_start(struct front *f)
{
    /* io_uring waits for a blocking socket; a non-blocking one would only be asked once */
    int flags = fcntl(f->arena->listener, F_GETFL);
    fcntl(f->arena->listener, F_SETFL, flags & ~O_NONBLOCK);
    io_bell(f->io, f->bell.fd);
    take_connections(f);
}

void front_free(struct front *f)
{
    for (uint32_t i = 0; i < f->plan->connections_max; i++)
        if (f->connections[i].fd >= 0)
            shutdown(f->connections[i].fd, SHUT_RDWR);
    io_close(f->io);
}
