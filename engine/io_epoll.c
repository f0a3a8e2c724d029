/* io_epoll.c - io.h on epoll, for systems without an io_uring that outlives its process.
 *
 * A receive or a send is tried when it is asked for and, if it would block, again when epoll (edge-triggered) says so.
 * It is a recvmmsg or sendmmsg of one message whose header lies in the region `io`, one for each operation of a connection:
 * the kernel stores the count there within the call. What it has not touched did not happen.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/io_back.h"
#include "ipc/clock.h"
#include "ipc/commit.h"
#include "ipc/log.h"

#define READY_PER_TURN      256
#define EVENTS_PER_SLOT_MAX 3u /* receive, send, hangup */
#define NOT_TOUCHED         UINT32_MAX

/* The header's addresses are those of the process that made the call; nobody else follows them. */
struct io_call_shm {
    uint64_t name; /* W: front   R: its successor; 0: no call */
    struct iovec data;
    struct mmsghdr header; /* msg_len: W: kernel, or front: NOT_TOUCHED */
};
static_assert(sizeof(struct io_call_shm) <= IO_CALL_BYTES, "layout.c takes room for it");

struct wanted {
    bool is_wanted;
    uint32_t tag;
    uint8_t *data;
    size_t size;
};

struct slot {
    int fd; /* -1: not with epoll */
    struct wanted receive, send;
    bool is_watched, is_over;
    uint32_t watch_tag;
    uint32_t seen;  /* EPOLL...: what has been reported and not been acted upon */
    bool is_listed; /* in `listed` */
};

struct listener {
    int fd;
    bool is_accepting, is_stopped;
};

struct epoll {
    struct io io;
    int epoll, bell, room;
    uint8_t *calls;
    struct slot *slots; /* (slot_count) */
    uint32_t slot_count;
    uint32_t *listed; /* ring (slot_count): slots on which something can be tried */
    uint32_t listed_first, listed_count;
    struct listener listeners[IO_LISTENERS];
    bool bell_rang, has_room;
};

/* epoll's word for what is ready: a slot, or one of these and a number. */
enum { NAME_SLOT, NAME_LISTENER, NAME_BELL, NAME_ROOM };

static struct epoll *epoll_of(struct io *io)
{
    return (struct epoll *)io;
}

static void control(const struct epoll *e, int operation, int fd, uint32_t events, uint64_t name, uint32_t number)
{
    struct epoll_event event = {.events = events, .data.u64 = name << 32 | number};
    int ret = epoll_ctl(e->epoll, operation, fd, &event);
    check(ret == 0 || errno == ENOMEM || errno == ENOSPC);
    if (ret != 0)
        log_error("epoll: %s; a connection will not be served", strerror(errno));
}

static int epoll_open(struct io **io, uint8_t *region, const struct layout *layout, uint32_t connections_max,
                      struct err *err)
{
    struct epoll *new = base_alloc(sizeof(*new));
    *new = (struct epoll){.io.back = &io_back_epoll,
                          .bell = -1,
                          .room = -1,
                          .listeners = {{.fd = -1}, {.fd = -1}},
                          .slot_count = connections_max};
    new->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (new->epoll < 0)
        return err_set(err, -errno, "epoll: %s", strerror(errno));
    new->calls = region + layout->io_calls;
    new->slots = base_alloc(connections_max * sizeof(*new->slots));
    new->listed = base_alloc(connections_max * sizeof(uint32_t));
    for (uint32_t i = 0; i < connections_max; i++)
        new->slots[i].fd = -1;
    *io = &new->io;
    return 0;
}

static void epoll_close(struct io *io)
{
    close(epoll_of(io)->epoll);
}

/* ---- what is asked for ---- */

static void list(struct epoll *e, uint32_t slot)
{
    if (e->slots[slot].is_listed)
        return;
    e->slots[slot].is_listed = true;
    e->listed[(e->listed_first + e->listed_count++) % e->slot_count] = slot;
}

/* A connection's descriptor joins epoll with its first operation and leaves with its watch. */
static struct slot *join(struct epoll *e, uint32_t slot, int fd)
{
    check(slot < e->slot_count);
    struct slot *s = &e->slots[slot];
    if (s->fd < 0) {
        s->fd = fd;
        control(e, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, NAME_SLOT, slot);
    }
    check(s->fd == fd);
    list(e, slot);
    return s;
}

static void epoll_listener(struct io *io, uint32_t listener, int fd)
{
    /* accepting must not block when a client has gone again meanwhile */
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    epoll_of(io)->listeners[listener].fd = fd;
}

static void epoll_accept(struct io *io, uint32_t listener)
{
    struct epoll *e = epoll_of(io);
    struct listener *l = &e->listeners[listener];
    l->is_accepting = true;
    control(e, EPOLL_CTL_ADD, l->fd, EPOLLIN, NAME_LISTENER, listener);
}

static void epoll_accept_stop(struct io *io, uint32_t listener)
{
    struct listener *l = &epoll_of(io)->listeners[listener];
    l->is_stopped = l->is_accepting;
}

static void epoll_bell(struct io *io, int bell_fd)
{
    control(epoll_of(io), EPOLL_CTL_ADD, bell_fd, EPOLLIN | EPOLLET, NAME_BELL, 0);
}

static void epoll_watch_room(struct io *io, int fd)
{
    struct epoll *e = epoll_of(io);
    control(e, e->room == fd ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLONESHOT, NAME_ROOM, 0);
    e->room = fd;
}

static void epoll_receive(struct io *io, uint32_t slot, uint32_t tag, int fd, void *data, size_t size)
{
    struct slot *s = join(epoll_of(io), slot, fd);
    check(!s->receive.is_wanted);
    s->receive = (struct wanted){.is_wanted = true, .tag = tag, .data = data, .size = size};
    s->seen |= EPOLLIN;
}

static void epoll_send(struct io *io, uint32_t slot, uint32_t tag, int fd, const void *data, size_t size)
{
    struct slot *s = join(epoll_of(io), slot, fd);
    check(!s->send.is_wanted);
    s->send = (struct wanted){.is_wanted = true, .tag = tag, .data = (void *)(uintptr_t)data, .size = size};
    s->seen |= EPOLLOUT;
}

static void epoll_watch_hangup(struct io *io, uint32_t slot, uint32_t tag, int fd, bool is_half_closed)
{
    (void)is_half_closed; /* edges: each is reported once */
    struct slot *s = join(epoll_of(io), slot, fd);
    s->is_watched = true;
    s->watch_tag = tag;
}

static void epoll_unwatch_hangup(struct io *io, uint32_t slot, uint32_t tag)
{
    struct epoll *e = epoll_of(io);
    check(e->slots[slot].is_watched && e->slots[slot].watch_tag == tag);
    e->slots[slot].is_over = true;
    list(e, slot);
}

/* ---- what is done ---- */

/* False: it would block. */
static bool call(struct epoll *e, uint32_t slot, enum io_kind kind, const struct wanted *wanted, int32_t *result)
{
    size_t index = (size_t)slot * IO_CALLS_PER_CONNECTION + (kind == IO_SEND);
    struct io_call_shm *shm = (struct io_call_shm *)(void *)(e->calls + index * IO_CALL_BYTES);
    int fd = e->slots[slot].fd, ret;
    commit_u64(&shm->name, 0, FAULT_IO_CALL_NONE);
    shm->data = (struct iovec){.iov_base = wanted->data, .iov_len = wanted->size};
    shm->header = (struct mmsghdr){.msg_hdr = {.msg_iov = &shm->data, .msg_iovlen = 1}, .msg_len = NOT_TOUCHED};
    commit_u64(&shm->name, io_pack(kind, slot, wanted->tag), FAULT_IO_CALL);
    do {
        ret = kind == IO_SEND ? sendmmsg(fd, &shm->header, 1, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : recvmmsg(fd, &shm->header, 1, MSG_DONTWAIT, NULL);
    } while (ret < 0 && errno == EINTR);
    fault_point(FAULT_IO_AFTER_CALL);
    *result = ret == 1 ? (int32_t)shm->header.msg_len : -errno;
    return ret == 1 || errno != EAGAIN;
}

static uint32_t put(struct io_event *event, enum io_kind kind, uint32_t slot, uint32_t tag, int32_t result,
                    bool is_last)
{
    *event = (struct io_event){.kind = kind, .slot = slot, .tag = tag, .result = result, .is_last = is_last};
    return 1;
}

static uint32_t end_all(struct epoll *e, uint32_t slot, struct io_event *events)
{
    struct slot *s = &e->slots[slot];
    uint32_t count = 0;
    if (s->receive.is_wanted)
        count += put(events + count, IO_RECEIVE, slot, s->receive.tag, -ECANCELED, true);
    if (s->send.is_wanted)
        count += put(events + count, IO_SEND, slot, s->send.tag, -ECANCELED, true);
    if (s->is_watched)
        count += put(events + count, IO_HANGUP, slot, s->watch_tag, -ECANCELED, true);
    control(e, EPOLL_CTL_DEL, s->fd, 0, NAME_SLOT, slot); /* others hold the socket: closing it would not do */
    *s = (struct slot){.fd = -1};
    return count;
}

/* Tries what can be tried on a slot; at most EVENTS_PER_SLOT_MAX events. */
static uint32_t try_slot(struct epoll *e, uint32_t slot, struct io_event *events)
{
    struct slot *s = &e->slots[slot];
    uint32_t count = 0;
    int32_t result;
    s->is_listed = false;
    uint32_t seen = s->seen;
    s->seen = 0;
    if (s->is_over)
        return end_all(e, slot, events);
    if (s->receive.is_wanted && (seen & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) &&
        call(e, slot, IO_RECEIVE, &s->receive, &result)) {
        s->receive.is_wanted = false;
        count += put(events + count, IO_RECEIVE, slot, s->receive.tag, result, true);
    }
    if (s->send.is_wanted && (seen & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && call(e, slot, IO_SEND, &s->send, &result)) {
        s->send.is_wanted = false;
        count += put(events + count, IO_SEND, slot, s->send.tag, result, true);
    }
    if (s->is_watched && (seen & (EPOLLHUP | EPOLLERR)))
        count += put(events + count, IO_HANGUP, slot, s->watch_tag, 1, false);
    else if (s->is_watched && (seen & EPOLLRDHUP))
        count += put(events + count, IO_HANGUP, slot, s->watch_tag, 0, false);
    return count;
}

static uint32_t accept_some(struct epoll *e, uint32_t listener, struct io_event *events, uint32_t max)
{
    struct listener *l = &e->listeners[listener];
    uint32_t count = 0;
    while (l->is_accepting && count < max) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
        fault_point(FAULT_IO_AFTER_ACCEPT);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0 && errno == EAGAIN)
            break;
        int error = errno;
        if (fd < 0) {
            l->is_accepting = false;
            control(e, EPOLL_CTL_DEL, l->fd, 0, NAME_LISTENER, listener);
        }
        count += put(events + count, IO_ACCEPT, listener, 0, fd < 0 ? -error : fd, fd < 0);
    }
    return count;
}

static uint32_t stop_accepting(struct epoll *e, struct io_event *events)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < IO_LISTENERS; i++) {
        struct listener *l = &e->listeners[i];
        if (!l->is_stopped)
            continue;
        l->is_stopped = false;
        if (l->is_accepting)
            control(e, EPOLL_CTL_DEL, l->fd, 0, NAME_LISTENER, i);
        l->is_accepting = false;
        count += put(events + count, IO_ACCEPT, i, 0, -ECANCELED, true);
    }
    return count;
}

/* Every slot that is listed now, as far as there is room for events. */
static uint32_t try_listed(struct epoll *e, struct io_event *events, uint32_t max)
{
    uint32_t count = 0;
    for (uint32_t left = e->listed_count; left > 0 && count + EVENTS_PER_SLOT_MAX <= max; left--) {
        uint32_t slot = e->listed[e->listed_first];
        e->listed_first = (e->listed_first + 1) % e->slot_count;
        e->listed_count--;
        count += try_slot(e, slot, events + count);
    }
    return count;
}

static int milliseconds_until(uint64_t deadline_ns)
{
    if (deadline_ns == IO_NO_SLEEP)
        return 0;
    if (deadline_ns == IO_NO_TIMEOUT)
        return -1;
    uint64_t now = clock_ns();
    return deadline_ns <= now ? 0 : (int)min_u64((deadline_ns - now) / 1000000 + 1, INT32_MAX);
}

static uint32_t epoll_turn(struct io *io, uint64_t deadline_ns, struct io_event *events, uint32_t max)
{
    struct epoll *e = epoll_of(io);
    check(max >= 2 * EVENTS_PER_SLOT_MAX + IO_LISTENERS);
    uint32_t count = stop_accepting(e, events);
    /* first what was asked for: most of it can be done at once, and then there is no need to sleep */
    count += try_listed(e, events + count, max - count);
    struct epoll_event ready[READY_PER_TURN];
    bool is_busy = count > 0 || e->listed_count > 0;
    fault_point(FAULT_IO_BEFORE_WAIT);
    int ready_count = epoll_wait(e->epoll, ready, READY_PER_TURN, is_busy ? 0 : milliseconds_until(deadline_ns));
    fault_point(FAULT_IO_AFTER_WAIT);
    check(ready_count >= 0 || errno == EINTR);
    for (int i = 0; i < ready_count; i++) {
        uint32_t number = (uint32_t)ready[i].data.u64;
        switch (ready[i].data.u64 >> 32) {
        case NAME_SLOT: /* tried below, or in the next turn */
            e->slots[number].seen |= ready[i].events;
            list(e, number);
            break;
        case NAME_LISTENER: /* stays ready until all are accepted */
            count += accept_some(e, number, events + count, max - count);
            break;
        case NAME_BELL:
            e->bell_rang = true;
            break;
        case NAME_ROOM:
            e->has_room = true;
            break;
        }
    }
    if (e->bell_rang && count < max) {
        e->bell_rang = false;
        count += put(events + count, IO_BELL, 0, 0, 0, false);
    }
    if (e->has_room && count < max) {
        e->has_room = false;
        count += put(events + count, IO_ROOM, 0, 0, 0, true);
    }
    return count + try_listed(e, events + count, max - count);
}

static void epoll_past(const uint8_t *region, const struct layout *layout, uint32_t connections_max, io_past_fn *take,
                       void *context)
{
    for (size_t i = 0; i < (size_t)connections_max * IO_CALLS_PER_CONNECTION; i++) {
        const struct io_call_shm *shm =
            (const struct io_call_shm *)(const void *)(region + layout->io_calls + i * IO_CALL_BYTES);
        if (shm->name == 0 || shm->header.msg_len == NOT_TOUCHED)
            continue;
        struct io_event event = io_unpack(shm->name);
        event.result = (int32_t)shm->header.msg_len;
        if (event.slot < connections_max)
            take(context, &event);
    }
}

const struct io_back io_back_epoll = {
    .name = "epoll",
    .open = epoll_open,
    .close = epoll_close,
    .listener = epoll_listener,
    .accept = epoll_accept,
    .accept_stop = epoll_accept_stop,
    .bell = epoll_bell,
    .watch_room = epoll_watch_room,
    .receive = epoll_receive,
    .send = epoll_send,
    .watch_hangup = epoll_watch_hangup,
    .unwatch_hangup = epoll_unwatch_hangup,
    .turn = epoll_turn,
    .past = epoll_past,
};
