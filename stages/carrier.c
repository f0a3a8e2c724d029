#include "stages/carrier.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "ipc/clock.h"
#include "ipc/log.h"

#define FAILURES_MAX      8u
#define RETRY_NS          1000000ull /* behind the first failure; doubled with each one more */
#define LOOK_CARRYING_NS  50000ull
#define LOOK_OTHERWISE_NS 1000000ull

static_assert(sizeof(struct nccl_id) == SESSION_ID_BYTES, "a session's identifier is NCCL's");

void carrier_open(struct carrier *carrier, const struct arena *arena, bool is_reader, struct cuda *cuda,
                  struct nccl *nccl, cuda_address edge)
{
    *carrier = (struct carrier){.arena = arena,
                                .edge = arena->index - is_reader,
                                .is_reader = is_reader,
                                .state = CARRIER_APART,
                                .cuda = cuda,
                                .nccl = nccl,
                                .connection = {.nccl = nccl},
                                .stream = cuda_stream_open(cuda),
                                .slots = edge + arena->layout.edge_activations,
                                .words = edge};
}

static void begin(struct carrier *c)
{
    uint32_t other = c->is_reader ? c->edge : c->edge + 1;
    c->ring = arena_stage_messages(c->arena, c->edge);
    c->own = arena_session(c->arena, c->arena->index);
    c->theirs = arena_session(c->arena, other);
    c->other = arena_pull(c->arena, ROLE_STAGE, other);
    if (!c->is_reader) {
        c->life = session_next(c->arena->epoch, 0);
        session_live(c->own, c->life);
        bell_ring_always(&c->other);
    }
}

void carriers_begin(struct carrier carriers[CARRIERS])
{
    for (int i = 0; i < CARRIERS; i++)
        if (carriers[i].state != CARRIER_OFF)
            begin(&carriers[i]);
}

/* ---- together and apart ---- */

/* The other end has another life, or asks for another session. */
static bool is_outdated(const struct carrier *c)
{
    return c->is_reader ? session_life(c->theirs) != c->life : session_number(c->theirs) != c->number;
}

static bool is_connected(const struct carrier *c)
{
    return c->state == CARRIER_JOINING || c->state == CARRIER_TOGETHER;
}

/* Something of it waits in a stream for the other end. */
static bool is_on_its_way(const struct carrier *c)
{
    return c->state == CARRIER_TOGETHER && c->begun > c->carried;
}

/* This end cannot go on, or not be joined. Another try, later each time. */
static int fail(struct carrier *c)
{
    c->state = CARRIER_PARTING;
    if (++c->failures > FAILURES_MAX) {
        log_error("edge %u: %s; for the %uth time, without a step in between", c->edge, c->nccl->error, c->failures);
        return -EIO;
    }
    log_warn("edge %u: %s; connecting again", c->edge, c->nccl->error);
    c->retry_ns = clock_ns() + (RETRY_NS << (c->failures - 1));
    if (!c->is_reader) { /* which the reader sees, and asks anew */
        session_live(c->own, ++c->life);
        bell_ring_always(&c->other);
    }
    return 0;
}

/* Ends what is to end, unless something is on its way over the other edge. False: later. */
static bool part(struct carrier carriers[CARRIERS])
{
    struct nccl_connection *connections[CARRIERS];
    uint32_t count = 0;
    for (int i = 0; i < CARRIERS; i++)
        if (carriers[i].state == CARRIER_PARTING)
            connections[count++] = &carriers[i].connection;
    if (count == 0)
        return true;
    if (is_on_its_way(&carriers[CARRIER_IN]) || is_on_its_way(&carriers[CARRIER_OUT]))
        return false;
    nccl_abort(connections[0]->nccl, connections, count);
    for (int i = 0; i < CARRIERS; i++) {
        if (carriers[i].state == CARRIER_PARTING)
            carriers[i].state = CARRIER_APART;
        carriers[i].is_entering &= carriers[i].state != CARRIER_APART;
    }
    return true;
}

/* What this end is to join now: the reader asks for it, if there is somebody to join; the writer takes what is asked of its
 * life. False: nothing yet. */
static bool find_session(struct carrier *c, uint64_t next_step, struct session *session, int *ret)
{
    if (!c->is_reader) {
        *session = session_asked(c->theirs);
        return session->number != 0 && session->life == c->life;
    }
    *session = (struct session){
        .life = session_life(c->theirs), .number = session_next(c->arena->epoch, c->number), .first_step = next_step};
    if (session->life == 0)
        return false;
    struct nccl_id id;
    *ret = nccl_make_id(c->nccl, &id);
    if (*ret != 0)
        return false;
    memcpy(session->id, &id, sizeof(id));
    session_ask(c->own, session);
    bell_ring_always(&c->other);
    return true;
}

static int join(struct carrier *c, uint64_t next_step)
{
    struct session session;
    struct nccl_id id;
    int ret = 0;
    if (clock_ns() < c->retry_ns)
        return 0;
    if (!find_session(c, next_step, &session, &ret))
        return ret < 0 ? fail(c) : 0;
    memcpy(&id, session.id, sizeof(id));
    c->life = session.life;
    c->number = session.number;
    c->begun = c->carried = session.first_step - 1;
    c->is_entering = false;
    c->state = CARRIER_JOINING;
    return nccl_connect(c->nccl, &c->connection, &id, c->is_reader) < 0 ? fail(c) : 0;
}

/* ---- carrying ---- */

/* Nothing has failed until now, and if the stream was done before, what it brought is whole. */
static void go_on(struct carrier *c, bool was_done)
{
    if (c->state == CARRIER_JOINING)
        log_debug("edge %u: NCCL carries from step %" PRIu64 " on", c->edge, c->begun + 1);
    c->state = CARRIER_TOGETHER;
    if (c->is_entering && c->is_reader) {
        uint64_t slot = c->begun & (c->arena->layout.activation_slots - 1);
        cuda_stream_write_word(c->cuda, c->stream, c->words + slot * sizeof(uint32_t), (uint32_t)c->begun);
    } else if (!c->is_entering && was_done && c->begun > c->carried) {
        c->carried = c->begun;
        c->failures = 0;
    }
    c->is_entering = false;
}

/* The next step that a message says is there, if this end may begin it: 1; 0: not yet. */
static int begin_next(struct carrier *c)
{
    const struct layout *layout = &c->arena->layout;
    struct msg_step message;
    if (c->is_reader && c->begun > c->carried)
        return 0; /* one by one: a step is computed as soon as its own have come */
    if (ring_look(c->ring, layout->stage_ring_slots, c->begun, &message) != RING_OK)
        return 0;
    if (message.step != c->begun + 1 || message.count > layout->step_tokens_max) {
        log_error("edge %u: message %" PRIu64 " is of step %" PRIu64 " with %u tokens", c->edge, c->begun, message.step,
                  message.count);
        return -EPROTO;
    }
    c->begun++;
    if (message.count == 0) { /* passed over */
        c->carried += c->carried + 1 == c->begun;
        return 1;
    }
    uint64_t slot = c->begun & (layout->activation_slots - 1);
    c->is_entering = true;
    int ret = nccl_carry(&c->connection, c->slots + slot * layout->activation_stride,
                         (size_t)message.count * c->arena->plan->width, c->stream);
    return ret < 0 ? fail(c) : 1;
}

/* What NCCL says of it by now: 1 when something may be begun, 0 when not yet, -errno when it failed too often. */
static int look(struct carrier *c)
{
    if (is_connected(c) && is_outdated(c))
        c->state = CARRIER_PARTING;
    if (!is_connected(c))
        return 0;
    bool was_done = cuda_stream_is_done(c->cuda, c->stream); /* before one looks for failures */
    enum nccl_state state = nccl_look(&c->connection);
    if (state == NCCL_FAILED)
        return fail(c);
    if (state == NCCL_READY)
        go_on(c, was_done);
    return state == NCCL_READY;
}

static int work(struct carrier *c, uint64_t next_step)
{
    int more = c->state == CARRIER_APART ? join(c, next_step) : 0;
    while (more >= 0 && (more = look(c)) > 0 && (more = begin_next(c)) > 0)
        continue;
    return more;
}

int carriers_do_work(struct carrier carriers[CARRIERS], uint64_t next_step)
{
    int ret = 0;
    for (int i = 0; i < CARRIERS && ret >= 0; i++)
        ret = look(&carriers[i]);
    bool is_parted = ret >= 0 && part(carriers);
    for (int i = 0; i < CARRIERS && ret >= 0 && is_parted; i++)
        ret = work(&carriers[i], next_step);
    for (int i = 0; i < CARRIERS && ret >= 0; i++)
        if (carriers[i].state != CARRIER_OFF && carriers[i].cuda->failed != 0) {
            log_error("edge %u: %s", carriers[i].edge, carriers[i].cuda->error);
            ret = carriers[i].cuda->failed;
        }
    return ret < 0 ? ret : 0;
}

bool carriers_are_joined(const struct carrier carriers[CARRIERS])
{
    for (int i = 0; i < CARRIERS; i++)
        if (carriers[i].state != CARRIER_OFF && carriers[i].state != CARRIER_TOGETHER)
            return false;
    return true;
}

bool carriers_have(const struct carrier carriers[CARRIERS], uint64_t step)
{
    const struct carrier *c = &carriers[CARRIER_IN];
    return c->state == CARRIER_OFF || (c->state == CARRIER_TOGETHER && c->carried >= step);
}

static uint64_t look_ns(const struct carrier *c)
{
    switch (c->state) {
    case CARRIER_TOGETHER:
        return is_on_its_way(c) ? LOOK_CARRYING_NS : 0;
    case CARRIER_PARTING:
    case CARRIER_JOINING:
        return LOOK_OTHERWISE_NS;
    case CARRIER_APART:
        return c->retry_ns > clock_ns() ? LOOK_OTHERWISE_NS : 0;
    default:
        return 0;
    }
}

uint64_t carriers_look_ns(const struct carrier carriers[CARRIERS])
{
    uint64_t in_ns = look_ns(&carriers[CARRIER_IN]), out_ns = look_ns(&carriers[CARRIER_OUT]);
    return in_ns == 0 ? out_ns : out_ns == 0 ? in_ns : min_u64(in_ns, out_ns);
}

void carriers_end(struct carrier carriers[CARRIERS])
{
    for (int i = 0; i < CARRIERS; i++)
        if (carriers[i].state != CARRIER_OFF)
            carriers[i].state = CARRIER_PARTING;
    part(carriers);
    for (int i = 0; i < CARRIERS; i++) {
        if (carriers[i].state != CARRIER_OFF)
            cuda_stream_close(carriers[i].cuda, carriers[i].stream);
        carriers[i].state = CARRIER_OFF;
    }
}
