/* front_connection.c - a connection's life: opening, receiving, sending, time limits, closing. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/front_inside.h"
#include "ipc/clock.h"
#include "ipc/fault.h"

#define IN_ROOM_MIN      4096u       /* less room behind the received bytes: the message moves to the front */
#define LINGER_BYTES_MAX (16u << 20) /* what a client may still send behind its last reply */

/* ---- time limits ---- */

static struct wait_list *list_of(struct front *f, enum wait wait)
{
    return wait == WAIT_HEAD ? &f->heads : wait == WAIT_END ? &f->ends : &f->others;
}

static void wait_end(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    if (c->wait == WAIT_NOT)
        return;
    struct wait_list *list = list_of(f, c->wait);
    c->wait = WAIT_NOT;
    *(c->older != NO_SLOT ? &f->connections[c->older].newer : &list->oldest) = c->newer;
    *(c->newer != NO_SLOT ? &f->connections[c->newer].older : &list->newest) = c->older;
}

/* From now on the connection is waited for, with a limit. */
static void wait_begin(struct front *f, uint32_t slot, enum wait wait)
{
    struct connection *c = &f->connections[slot];
    wait_end(f, slot);
    struct wait_list *list = list_of(f, wait);
    c->wait = wait;
    c->wait_ns = clock_ns();
    c->older = list->newest;
    c->newer = NO_SLOT;
    *(list->newest != NO_SLOT ? &f->connections[list->newest].newer : &list->oldest) = slot;
    list->newest = slot;
}

static uint64_t deadline_of(const struct front *f, const struct wait_list *list)
{
    return list->oldest == NO_SLOT ? IO_NO_TIMEOUT : f->connections[list->oldest].wait_ns + list->limit_ns;
}

uint64_t front_next_deadline(const struct front *f)
{
    uint64_t next = f->accept_again_ns != 0 ? f->accept_again_ns : IO_NO_TIMEOUT;
    next = min_u64(next, f->sweep_ns != 0 ? f->sweep_ns : IO_NO_TIMEOUT);
    next = min_u64(next, front_keep_deadline(f));
    next = min_u64(next, f->intake.wake_ns != 0 ? f->intake.wake_ns : IO_NO_TIMEOUT);
    next = min_u64(next, deadline_of(f, &f->ends));
    return min_u64(next, min_u64(deadline_of(f, &f->heads), deadline_of(f, &f->others)));
}

static void give_up(struct front *f, uint32_t slot)
{
    enum wait wait = f->connections[slot].wait;
    wait_end(f, slot);
    switch (wait) {
    case WAIT_HEAD:
        front_refuse(f, slot, 408, "the header section was not complete in time");
        break;
    case WAIT_BODY:
        front_refuse(f, slot, 408, "the body was not complete in time");
        break;
    default: /* nothing was asked, nobody reads, or all is said */
        front_connection_close(f, slot);
    }
}

void front_end_waits(struct front *f, uint64_t now_ns)
{
    struct wait_list *lists[] = {&f->heads, &f->ends, &f->others};
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++)
        while (deadline_of(f, lists[i]) <= now_ns)
            give_up(f, lists[i]->oldest);
}

/* ---- opening and closing ---- */

static void count_open(struct front *f)
{
    counter_set(f->process, COUNTER_FRONT_CONNECTIONS_OPEN, f->open_count);
}

void front_connection_set_phase(struct front *f, uint32_t slot, enum phase phase)
{
    struct connection *c = &f->connections[slot];
    f->answering_count += (phase == CONN_ANSWERING) - (c->phase == CONN_ANSWERING);
    c->phase = phase;
}

void front_watch_hangup(struct front *f, uint32_t slot, bool is_half_closed)
{
    struct connection *c = &f->connections[slot];
    c->ops |= OP_HANGUP;
    io_watch_hangup(f->io, slot, shm_of(f, slot)->generation, c->fd, is_half_closed);
}

void front_connection_adopt(struct front *f, uint32_t slot, int fd)
{
    struct connection *c = &f->connections[slot];
    check(c->phase == CONN_FREE && c->ops == 0);
    c->fd = fd;
    c->closes = c->is_rendered = c->is_shut = false;
    c->out_origin = shm_of(f, slot)->out_begin;
    c->rendered = shm_of(f, slot)->interim_end;
    f->open_count++;
    count_open(f);
    front_watch_hangup(f, slot, false);
}

void front_connection_open(struct front *f, int fd, uint32_t listener)
{
    uint32_t slot = f->free_connections[--f->free_connection_count];
    conn_open(shm_of(f, slot), listener == LISTENER_TCP);
    front_connection_adopt(f, slot, fd);
    counter_add(f->process, COUNTER_FRONT_CONNECTIONS, 1);
    front_connection_set_phase(f, slot, CONN_KEEPING);
    front_keep_order(f, KEEP_HOLD, slot, shm_of(f, slot)->generation);
}

void front_connection_begin(struct front *f, uint32_t slot)
{
    check(f->connections[slot].phase == CONN_KEEPING);
    front_connection_set_phase(f, slot, CONN_READING);
    front_read_next(f, slot);
}

void front_connection_free(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    fault_point(FAULT_CONNECTION_BEFORE_CLOSE);
    close(c->fd);
    c->fd = -1;
    front_connection_set_phase(f, slot, CONN_FREE);
    conn_close(shm_of(f, slot));
    front_keep_order(f, KEEP_DROP, slot, shm_of(f, slot)->generation);
    f->free_connections[f->free_connection_count++] = slot;
    f->open_count--;
    count_open(f);
    front_take_connections(f);
}

/* The connection needs its request no more: first it names it no longer, so that a successor ends it too. */
static void end_request(struct front *f, uint32_t slot)
{
    struct conn_shm *shm = shm_of(f, slot);
    uint32_t request = shm->request;
    bool is_answer = shm->reply == CONN_ANSWER;
    conn_reply_sent(shm);
    if (is_answer)
        intake_end(&f->intake, request);
}

/* Before it is closed: whoever else holds this socket must not keep it open for the client. It also brings what is in
 * flight on it to its end. */
static void shut_down(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    if (c->is_shut)
        return;
    fault_point(FAULT_CONNECTION_BEFORE_SHUTDOWN);
    shutdown(c->fd, SHUT_RDWR);
    fault_point(FAULT_CONNECTION_AFTER_SHUTDOWN);
    c->is_shut = true;
}

void front_connection_close(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if (c->phase == CONN_CLOSING)
        return;
    if (shm->reply == CONN_ANSWER)
        counter_add(f->process, COUNTER_FRONT_REQUESTS_ABORTED, 1); /* a complete one was ended before */
    if (shm->reply == CONN_ANSWER || shm->reply == CONN_FIXED) {
        shut_down(f, slot); /* first: what is rendered from now on reaches nobody */
        end_request(f, slot);
    }
    wait_end(f, slot);
    front_connection_set_phase(f, slot, CONN_CLOSING);
    c->ops |= OP_CLOSE;
    f->closing[f->closing_count++] = slot;
}

void front_end_closing(struct front *f)
{
    while (f->closing_count > 0) {
        uint32_t slot = f->closing[--f->closing_count];
        struct connection *c = &f->connections[slot];
        shut_down(f, slot);
        c->ops &= ~OP_CLOSE;
        if (c->ops & OP_HANGUP)
            io_unwatch_hangup(f->io, slot, shm_of(f, slot)->generation);
        if (c->ops == 0)
            front_connection_free(f, slot);
    }
}

/* ---- sending ---- */

void front_send_out(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if ((c->ops & OP_SEND) || shm->sent == c->rendered)
        return;
    c->ops |= OP_SEND;
    uint32_t serial = conn_begin_send(shm);
    io_send(f->io, slot, serial, c->fd, out_of(f, slot) + (shm->sent - c->out_origin), c->rendered - shm->sent);
    if (c->phase == CONN_ANSWERING)
        wait_begin(f, slot, WAIT_READER);
}

void front_reply_done(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    if (shm->closes) {
        shutdown(c->fd, SHUT_WR);
        front_connection_set_phase(f, slot, CONN_LINGERING);
        wait_begin(f, slot, WAIT_END);
        front_linger(f, slot);
        return;
    }
    conn_next_message(shm);
    c->out_origin = c->rendered = shm->sent;
    c->is_rendered = false;
    front_connection_set_phase(f, slot, CONN_READING);
    front_read_next(f, slot);
}

/* Room in `out` for a piece of the answer. Never under the kernel's hands, and never what a successor could not render
 * again. */
static void compact_out(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    const struct conn_shm *shm = shm_of(f, slot);
    if ((c->ops & OP_SEND) || shm->sent < shm->interim_end)
        return;
    memmove(out_of(f, slot), out_of(f, slot) + (shm->sent - c->out_origin), c->rendered - shm->sent);
    c->out_origin = shm->sent;
}

static void render(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    bool is_all_sent = shm_of(f, slot)->sent == c->rendered; /* the same few bytes of `out` do for every token */
    if (is_all_sent || CONN_OUT_BYTES - (c->rendered - c->out_origin) < ANSWER_PIECE_MAX)
        compact_out(f, slot);
    uint32_t used = (uint32_t)(c->rendered - c->out_origin);
    size_t size;
    enum answer_result result = answer_render(&c->answer, (char *)out_of(f, slot) + used, CONN_OUT_BYTES - used, &size);
    c->rendered += size;
    c->is_rendered = result == ANSWER_COMPLETE;
    for (uint32_t prompt = 0; prompt < c->answer.prompt_count; prompt++)
        intake_stop(&f->intake, c->answer.slots[prompt], answer_stopped(&c->answer, prompt));
}

void front_pump(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    check(c->phase == CONN_ANSWERING);
    if (!c->is_rendered)
        render(f, slot);
    front_send_out(f, slot);
    if (c->ops & OP_SEND) {
        if (c->wait != WAIT_READER) /* an interim response is still under way */
            wait_begin(f, slot, WAIT_READER);
    } else if (c->is_rendered) {
        end_request(f, slot);
        front_reply_done(f, slot);
    } else {
        wait_end(f, slot); /* it waits for tokens, which is not its fault */
    }
}

/* ---- receiving ---- */

static void say_continue(struct front *f, uint32_t slot)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    c->said_continue = true;
    check(c->rendered == shm->interim_end && shm->interim_end == shm->out_begin);
    memcpy(out_of(f, slot), text, sizeof(text) - 1);
    conn_put_interim(shm, sizeof(text) - 1);
    c->rendered = shm->interim_end;
    front_send_out(f, slot);
}

static void begin_receive(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    c->ops |= OP_RECEIVE;
    uint32_t serial = conn_begin_receive(shm);
    io_receive(f->io, slot, serial, c->fd, conn_room(shm), conn_room_bytes(shm, f->plan));
}

void front_linger(struct front *f, uint32_t slot)
{
    struct conn_shm *shm = shm_of(f, slot);
    if (shm->received - shm->message_end > LINGER_BYTES_MAX) {
        front_connection_close(f, slot);
    } else if (!(f->connections[slot].ops & OP_RECEIVE)) { /* else one that a time limit has overtaken */
        conn_drop_input(shm);
        begin_receive(f, slot);
    }
}

static void receive(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    uint32_t size = conn_message_bytes(shm);
    if (size == 0 || conn_room_bytes(shm, f->plan) < IN_ROOM_MIN)
        conn_move_message(shm);
    if (conn_room_bytes(shm, f->plan) == 0) {
        front_refuse(f, slot, 413, "the body's chunks add too many bytes to it");
        return;
    }
    begin_receive(f, slot);
    enum wait wait = size == 0 ? WAIT_REQUEST : c->reader.has_head ? WAIT_BODY : WAIT_HEAD;
    if (c->wait != wait)
        wait_begin(f, slot, wait);
}

void front_read_more(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    check(c->phase == CONN_READING);
    const uint8_t *message = conn_message(shm);
    switch (http_reader_feed(&c->reader, message, conn_message_bytes(shm))) {
    case HTTP_READY:
        if (c->reader.is_chunked)
            http_body_copy(&c->reader, message, f->body);
        front_route(f, slot, (const char *)(c->reader.is_chunked ? f->body : message + c->reader.body_first),
                    c->reader.body_size);
        return;
    case HTTP_REFUSED:
        front_refuse(f, slot, c->reader.status, c->reader.reason);
        return;
    case HTTP_MORE:
        break;
    }
    if (c->reader.expects_continue && !c->said_continue)
        say_continue(f, slot);
    receive(f, slot);
}

void front_read_next(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    const struct conn_shm *shm = shm_of(f, slot);
    http_reader_init(&c->reader, f->plan->body_bytes_max);
    c->said_continue = shm->interim_end > shm->out_begin; /* in a former life */
    c->closes = false;
    wait_end(f, slot); /* each message has its own limits */
    front_read_more(f, slot);
}
