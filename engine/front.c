#include "engine/front.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/front_inside.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/journal.h"
#include "ipc/log.h"

#define EVENTS_PER_TURN 256u
#define ACCEPT_AGAIN_NS 100000000ull
#define SWEEP_EVERY_NS  10000000ull
#define SWEEP_FOR_NS    2000000000ull
#define LINGER_NS       2000000000ull
#define OTHER_FDS       96u /* descriptors beside those of connections: bells, listeners, rings, and a reserve */

/* ---- accepting ---- */

static bool has_room(const struct front *f)
{
    return f->free_connection_count > 0 && !f->is_keeper_full && f->accept_again_ns == 0;
}

void front_take_connections(struct front *f)
{
    while (f->waiting_count > 0 && f->free_connection_count > 0 && !f->is_keeper_full) {
        struct waiting_connection next = f->waiting[f->waiting_first];
        f->waiting_first = (f->waiting_first + 1) % WAITING_MAX;
        f->waiting_count--;
        front_connection_open(f, next.fd, next.listener);
    }
    for (uint32_t i = 0; i < IO_LISTENERS; i++) {
        struct front_listener *listener = &f->listeners[i];
        if (listener->fd >= 0 && has_room(f) && !listener->is_accepting) {
            listener->is_accepting = true;
            io_accept(f->io, i);
        } else if (listener->is_accepting && !has_room(f) && !listener->is_stopping) {
            listener->is_stopping = true; /* the next ones wait in the socket's backlog */
            io_accept_stop(f->io, i);
        }
    }
}

/* The socket's permissions let nobody else in; they may have been changed. */
static bool is_welcome(const struct front *f, int fd, uint32_t listener)
{
    if (listener == LISTENER_TCP) {
        int one = 1; /* events of a stream are small, and each is waited for */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        return true;
    }
    struct ucred peer;
    socklen_t size = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == f->user || peer.uid == 0))
        return true;
    log_warn("a process of user %u is not let in: the socket is for user %u", peer.uid, f->user);
    return false;
}

static void on_accept(struct front *f, const struct io_event *event)
{
    struct front_listener *listener = &f->listeners[event->slot];
    if (event->result >= 0) {
        if (!is_welcome(f, event->result, event->slot)) {
            close(event->result);
        } else if (f->waiting_count < WAITING_MAX) {
            f->waiting[(f->waiting_first + f->waiting_count++) % WAITING_MAX] =
                (struct waiting_connection){event->result, event->slot};
        } else {
            log_warn("more than %u connections wait for a slot: one is closed", WAITING_MAX);
            close(event->result);
        }
    }
    if (event->is_last) {
        listener->is_accepting = listener->is_stopping = false;
        if (event->result == -EMFILE || event->result == -ENFILE || event->result == -ENOMEM ||
            event->result == -ENOBUFS) {
            log_warn("cannot accept: %s; raise the limit of open files", strerror(-event->result));
            f->accept_again_ns = clock_ns() + ACCEPT_AGAIN_NS; /* at once would fail at once */
        }
    }
    front_take_connections(f);
}

/* ---- events ---- */

static void on_receive(struct front *f, uint32_t slot, const struct io_event *event)
{
    bool is_noted = conn_end_receive(shm_of(f, slot), event->tag, event->result);
    check(is_noted);
    bool is_lingering = f->connections[slot].phase == CONN_LINGERING;
    if (f->connections[slot].phase != CONN_READING && !is_lingering)
        return; /* it came too late: the message has been refused */
    if (event->result <= 0)
        front_connection_close(f, slot); /* no request will follow; what was asked before has been answered */
    else if (is_lingering)
        front_linger(f, slot);
    else
        front_read_more(f, slot);
}

static void on_send(struct front *f, uint32_t slot, const struct io_event *event)
{
    bool is_noted = conn_end_send(shm_of(f, slot), event->tag, event->result);
    check(is_noted);
    if (f->connections[slot].phase == CONN_CLOSING)
        return;
    if (event->result < 0)
        front_connection_close(f, slot);
    else if (f->connections[slot].phase == CONN_ANSWERING)
        front_pump(f, slot);
    else
        front_send_out(f, slot);
}

static void on_hangup(struct front *f, uint32_t slot, const struct io_event *event)
{
    struct connection *c = &f->connections[slot];
    /* a Unix socket's other side takes ours with it; over TCP we might still be heard */
    c->is_shut = c->is_shut || (event->result > 0 && !shm_of(f, slot)->is_tcp);
    if (c->phase == CONN_CLOSING || c->phase == CONN_LINGERING)
        return; /* a lingering one ends when all it has sent is received */
    if (event->result != 0)
        front_connection_close(f, slot); /* the client is gone */
    else if (event->is_last)
        front_watch_hangup(f, slot, true); /* half-closed, it still listens: watch on */
}

static void on_connection_event(struct front *f, const struct io_event *event)
{
    static const uint32_t ops[] = {[IO_RECEIVE] = OP_RECEIVE, [IO_SEND] = OP_SEND, [IO_HANGUP] = OP_HANGUP};
    uint32_t slot = event->slot;
    check(slot < f->plan->connections_max && (f->connections[slot].ops & ops[event->kind]));
    if (event->is_last)
        f->connections[slot].ops &= ~ops[event->kind];
    if (event->kind == IO_RECEIVE)
        on_receive(f, slot, event);
    else if (event->kind == IO_SEND)
        on_send(f, slot, event);
    else if (event->kind == IO_HANGUP)
        on_hangup(f, slot, event);
    if (f->connections[slot].phase == CONN_CLOSING && f->connections[slot].ops == 0)
        front_connection_free(f, slot);
}

static void on_event(struct front *f, const struct io_event *event)
{
    switch (event->kind) {
    case IO_ACCEPT:
        on_accept(f, event);
        break;
    case IO_BELL:
        break; /* it says "look", and every turn looks */
    case IO_ROOM:
        f->is_keeper_full = false;
        front_take_connections(f);
        break;
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
        front_pump(f, slot);
}

static uint32_t take_hints(struct front *f)
{
    uint32_t count = 0;
    struct msg_request msg;
    for (; ring_peek(&f->hints, &msg) == RING_OK; count++) {
        check(msg.slot < f->plan->requests_max);
        if (count % EXPECTED_MAX == 0)
            front_expect(f);
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
    uint32_t epoch = arena_sup(f->arena)->head.epoch;
    if (epoch != f->sup_epoch) { /* a new life of the supervisor: it has what it is given */
        f->sup_epoch = epoch;
        front_keep_all_again(f);
    }
}

/* The ring of a front that has died may still be there for a while, and is woken for a connection in our place: it waits until
 * the next one comes. So a successor looks for itself, at first. */
static void sweep_listeners(struct front *f, uint64_t now)
{
    f->sweep_ns = now < f->sweeps_end_ns ? now + SWEEP_EVERY_NS : 0;
    for (uint32_t i = 0; i < IO_LISTENERS; i++) {
        struct io_event event = {.kind = IO_ACCEPT, .slot = i};
        struct pollfd poll_fd = {.fd = f->listeners[i].fd, .events = POLLIN}; /* accept4() might wait */
        while (has_room(f) && poll(&poll_fd, 1, 0) == 1 &&
               (event.result = accept4(poll_fd.fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
            on_accept(f, &event);
    }
}

static void end_waits(struct front *f)
{
    uint64_t deadline = front_next_deadline(f);
    uint64_t now = deadline != IO_NO_TIMEOUT ? clock_ns() : 0;
    if (deadline > now)
        return;
    front_end_waits(f, now);
    if (f->intake.wake_ns != 0 && f->intake.wake_ns <= now)
        intake_wake_sched(&f->intake);
    if (f->sweep_ns != 0 && f->sweep_ns <= now)
        sweep_listeners(f, now);
    if (f->accept_again_ns != 0 && f->accept_again_ns <= now) {
        f->accept_again_ns = 0;
        front_take_connections(f);
    }
}

int front_do_work(struct front *f, bool may_sleep)
{
    struct io_event events[EVENTS_PER_TURN];
    uint64_t deadline = IO_NO_SLEEP;
    if (may_sleep) {
        bell_announce(&f->bell);
        if (ring_is_empty(&f->hints) && arena_command(f->arena) == f->command)
            deadline = front_next_deadline(f);
    }
    uint32_t count = io_turn(f->io, deadline, events, EVENTS_PER_TURN);
    if (may_sleep)
        bell_retract(&f->bell);
    uint32_t hints = take_hints(f); /* first: slots that sched has forgotten are free for new requests */
    for (uint32_t i = 0; i < count; i++)
        on_event(f, &events[i]);
    end_waits(f);
    take_command(f);
    intake_catch_up(&f->intake);
    front_end_closing(f);
    front_keep_flush(f);
    if (f->command == COMMAND_STOP)
        return -1;
    progress_add(f->process, count + hints);
    return (int)(count + hints);
}

/* ---- start and end ---- */

/* Every connection needs a descriptor. */
static uint32_t connections_possible(const struct plan *plan)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return plan->connections_max;
    if (limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            getrlimit(RLIMIT_NOFILE, &limit);
    }
    uint64_t possible = limit.rlim_cur > OTHER_FDS ? limit.rlim_cur - OTHER_FDS : 1;
    if (possible < plan->connections_max)
        log_warn("the limit of %llu open files allows %llu connections, not %u; raise it (ulimit -n)",
                 (unsigned long long)limit.rlim_cur, (unsigned long long)possible, plan->connections_max);
    return (uint32_t)min_u64(possible, plan->connections_max);
}

int front_prepare(struct front **front, const struct arena *arena, struct err *err)
{
    const struct plan *plan = arena->plan;
    struct front *f = base_alloc(sizeof(*f));
    *front = f;
    *f = (struct front){.arena = arena, .plan = plan};
    f->heads = (struct wait_list){NO_SLOT, NO_SLOT, plan->header_timeout_ms * 1000000ull};
    f->others = (struct wait_list){NO_SLOT, NO_SLOT, plan->request_timeout_ms * 1000000ull};
    f->ends = (struct wait_list){NO_SLOT, NO_SLOT, min_u64(LINGER_NS, f->others.limit_ns)};
    if (conns_region_bytes(plan) > arena->layout.region_bytes[REGION_CONNS])
        return err_set(err, -EPROTO, "region conns: has %zu bytes, %llu are needed; mixed builds?",
                       arena->layout.region_bytes[REGION_CONNS], (unsigned long long)conns_region_bytes(plan));
    int ret = tok_attach(&f->tok, arena->regions[REGION_VOCAB], plan->vocab_bytes, api_text_bytes(plan), err);
    if (ret != 0)
        return ret;
    if (tok_vocab_size(&f->tok) < plan->vocab_size)
        return err_set(err, -EPROTO, "vocabulary: has %u tokens, the model %u; mixed files?", tok_vocab_size(&f->tok),
                       plan->vocab_size);
    ret = api_open(&f->api, plan, &f->tok, err);
    ret = ret ? ret : access_open(&f->access, arena->keys, plan->allowed_origins, err);
    if (ret != 0)
        return ret;
    /* answer_begin() writes those of its answer; few requests have many */
    f->choices = base_reserve(64, (size_t)plan->requests_max * CHOICES_MAX * sizeof(*f->choices));
    f->connections = base_alloc_aligned(64, plan->connections_max * sizeof(*f->connections));
    f->free_connections = base_alloc(plan->connections_max * sizeof(uint32_t));
    f->closing = base_alloc(plan->connections_max * sizeof(uint32_t));
    for (uint32_t i = 0; i < plan->connections_max; i++)
        f->connections[i].fd = -1;
    f->connections_possible = connections_possible(plan);
    f->user = geteuid();
    front_keep_open(f);
    f->body = base_alloc(plan->body_bytes_max);
    f->reply = base_alloc(REPLY_MAX);
    return 0;
}

int front_begin(struct front *f, struct err *err)
{
    const struct arena *arena = f->arena;
    int ret = io_open(&f->io, (enum io_choice)f->plan->io, arena->regions[REGION_IO], &arena->layout,
                      f->plan->connections_max, err);
    ret = ret ? ret : ledger_map(&f->ledger, arena->ledger, f->plan->requests_max, err);
    if (ret != 0)
        return ret;
    f->process = arena_process(arena, ROLE_FRONT, 0);
    f->bell = arena_bell(arena);
    f->supervisor = arena_pull(arena, ROLE_SUPERVISOR, 0);
    f->sched_epoch = ((const struct region_head *)(const void *)arena->regions[REGION_SCHED])->epoch;
    f->sup_epoch = arena_sup(arena)->head.epoch;
    arena_ring_sched_to_front_consumer(arena, &f->hints);
    intake_open(&f->intake, arena, &f->ledger);
    f->listeners[0].fd = arena->listener;
    f->listeners[LISTENER_TCP].fd = arena->listener_tcp;
    for (uint32_t i = 0; i < IO_LISTENERS; i++)
        if (f->listeners[i].fd >= 0)
            io_listener(f->io, i, f->listeners[i].fd);
    return front_take_back(f, err);
}

int front_init(struct front **front, const struct arena *arena, struct err *err)
{
    int ret = front_prepare(front, arena, err);
    return ret ? ret : front_begin(*front, err);
}

void front_start(struct front *f)
{
    io_bell(f->io, f->bell.fd);
    front_resume(f);
    front_end_closing(f);
    /* those at the top of the stack are taken first: the highest slots stay unused */
    uint32_t excess = f->plan->connections_max - f->connections_possible;
    if (f->free_connection_count > 0 && excess > 0) {
        excess = (uint32_t)min_u64(excess, f->free_connection_count - 1);
        memmove(f->free_connections, f->free_connections + excess,
                (f->free_connection_count - excess) * sizeof(uint32_t));
        f->free_connection_count -= excess;
    }
    front_take_connections(f);
    if (f->arena->epoch > 1) {
        f->sweep_ns = clock_ns() + SWEEP_EVERY_NS;
        f->sweeps_end_ns = clock_ns() + SWEEP_FOR_NS;
    }
}

void front_free(struct front *f)
{
    for (uint32_t i = 0; i < f->plan->connections_max; i++)
        if (f->connections[i].fd >= 0)
            shutdown(f->connections[i].fd, SHUT_RDWR);
    io_close(f->io);
}
