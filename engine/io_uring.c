/* io_uring.c - io.h on an io_uring: one submission and one reaping per turn, in one system call. Its queues lie in the
 * region `io`, so that what the kernel has completed is known when this process is not there any more. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/io_back.h"
#include "ipc/clock.h"
#include "ipc/commit.h"
#include "ipc/log.h"

#ifndef IORING_SETUP_NO_MMAP
#define IORING_SETUP_NO_MMAP (1U << 14) /* Linux 6.5; the queues' addresses go where later headers say user_addr */
#endif

#define CANCELLATION                                                                                                   \
    0 /* the name of what ends an operation: one that came too late has a completion, which says nothing */

/* At the start of the region: where a successor finds the completions. */
struct uring_shm {
    struct io_head_shm head_of_region;
    uint32_t is_there;                /* W: front (all fields), last   R: its successor */
    uint32_t head, tail, completions; /* from the start of the queues */
    uint32_t completion_count;
};

struct uring {
    struct io io;
    struct io_uring ring;
    int listeners[IO_LISTENERS];
    int bell;
    uint32_t taken; /* completions that the caller is busy with */
};

static struct uring *uring_of(struct io *io)
{
    return (struct uring *)io;
}

/* What liburing 2.3 does in io_uring_queue_mmap(), for queues that are there already. */
static void attach(struct io_uring *ring, const struct io_uring_params *p, uint8_t *queues, void *submissions)
{
    memset(ring, 0, sizeof(*ring));
#define WORD(offset) ((unsigned *)(void *)(queues + (offset)))
    ring->sq.khead = WORD(p->sq_off.head);
    ring->sq.ktail = WORD(p->sq_off.tail);
    ring->sq.kring_mask = WORD(p->sq_off.ring_mask);
    ring->sq.kring_entries = WORD(p->sq_off.ring_entries);
    ring->sq.kflags = WORD(p->sq_off.flags);
    ring->sq.kdropped = WORD(p->sq_off.dropped);
    ring->sq.array = WORD(p->sq_off.array);
    ring->sq.sqes = submissions;
    ring->sq.ring_mask = *ring->sq.kring_mask;
    ring->sq.ring_entries = *ring->sq.kring_entries;
    ring->cq.khead = WORD(p->cq_off.head);
    ring->cq.ktail = WORD(p->cq_off.tail);
    ring->cq.kring_mask = WORD(p->cq_off.ring_mask);
    ring->cq.kring_entries = WORD(p->cq_off.ring_entries);
    ring->cq.koverflow = WORD(p->cq_off.overflow);
    ring->cq.kflags = WORD(p->cq_off.flags);
    ring->cq.cqes = (struct io_uring_cqe *)(void *)(queues + p->cq_off.cqes);
    ring->cq.ring_mask = *ring->cq.kring_mask;
    ring->cq.ring_entries = *ring->cq.kring_entries;
#undef WORD
    for (unsigned i = 0; i < ring->sq.ring_entries; i++) /* in the order in which they are prepared */
        ring->sq.array[i] = i;
    ring->flags = p->flags;
    ring->features = p->features;
}

/* Nothing but what this file asks for, from now on. */
static int restrict_operations(struct io_uring *ring)
{
    static const uint8_t opcodes[] = {IORING_OP_ACCEPT, IORING_OP_RECV, IORING_OP_SEND, IORING_OP_POLL_ADD,
                                      IORING_OP_ASYNC_CANCEL};
    struct io_uring_restriction allowed[ARRAY_COUNT(opcodes) + 2];
    memset(allowed, 0, sizeof(allowed));
    for (size_t i = 0; i < ARRAY_COUNT(opcodes); i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = opcodes[i];
    }
    allowed[ARRAY_COUNT(opcodes)].opcode = IORING_RESTRICTION_REGISTER_OP;
    allowed[ARRAY_COUNT(opcodes)].register_op = IORING_REGISTER_ENABLE_RINGS;
    allowed[ARRAY_COUNT(opcodes) + 1].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    allowed[ARRAY_COUNT(opcodes) + 1].sqe_flags = IOSQE_CQE_SKIP_SUCCESS;
    int fd = ring->ring_fd; /* liburing 2.3 declares functions for these and does not export them */
    bool is_done =
        syscall(__NR_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, allowed, ARRAY_COUNT(allowed)) == 0 &&
        syscall(__NR_io_uring_register, fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0;
    return is_done ? 0 : -errno;
}

static int uring_open(struct io **io, uint8_t *region, const struct layout *layout, uint32_t connections_max,
                      struct err *err)
{
    (void)connections_max; /* the layout has counted them */
    struct uring *new = base_alloc(sizeof(*new));
    *new = (struct uring){.io.back = &io_back_uring, .listeners = {-1, -1}, .bell = -1};
    uint8_t *queues = region + layout->io_rings;
    void *submissions = region + layout->io_submissions;
    /* Work of the kernel runs only when we ask for it; one submission's error does not stop the others. */
    struct io_uring_params params = {.flags = IORING_SETUP_NO_MMAP | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL |
                                              IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                              IORING_SETUP_R_DISABLED,
                                     .cq_entries = layout->io_completions_max};
    params.cq_off.resv2 = (uint64_t)(uintptr_t)queues;
    params.sq_off.resv2 = (uint64_t)(uintptr_t)submissions;
    int fd = (int)syscall(__NR_io_uring_setup, layout->io_submissions_max, &params);
    if (fd < 0) {
        int ret = -errno;
        free(new);
        if (ret == -EINVAL)
            return err_set(err, ret,
                           "io_uring: this kernel cannot keep its queues in given memory; Linux 6.5 or later can");
        return err_set(err, ret,
                       "io_uring: this system does not allow it (%s); see kernel.io_uring_disabled and the seccomp "
                       "profile of your container",
                       strerror(-ret));
    }
    attach(&new->ring, &params, queues, submissions);
    new->ring.ring_fd = new->ring.enter_ring_fd = fd;
    io_uring_register_ring_fd(&new->ring); /* saves a look-up per turn; a refusal costs no more than that */
    int ret = restrict_operations(&new->ring);
    if (ret < 0) {
        io_uring_unregister_ring_fd(&new->ring);
        close(fd);
        free(new);
        return err_set(err, ret, "io_uring: cannot restrict it to what is needed: %s", strerror(-ret));
    }
    struct uring_shm *shm = (struct uring_shm *)(void *)region;
    shm->head = params.cq_off.head;
    shm->tail = params.cq_off.tail;
    shm->completions = params.cq_off.cqes;
    shm->completion_count = params.cq_entries;
    commit_u32(&shm->is_there, 1, FAULT_IO_OPENED);
    *io = &new->io;
    return 0;
}

static void uring_close(struct io *io)
{
    close(uring_of(io)->ring.ring_fd);
}

/* The kernel's answer to a submission; everything but these is a bug of ours. */
static bool is_passing(int ret)
{
    return ret == -EINTR || ret == -EAGAIN || ret == -EBUSY || ret == -ETIME;
}

static struct io_uring_sqe *next_submission(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    while (sqe == NULL) {
        fault_point(FAULT_IO_BEFORE_SUBMIT);
        int ret = io_uring_submit(&u->ring);
        fault_point(FAULT_IO_AFTER_SUBMIT);
        check(ret >= 0 || is_passing(ret));
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

#define SUBMIT(u, name, prepare, ...)                                                                                  \
    do {                                                                                                               \
        struct io_uring_sqe *sqe = next_submission(u);                                                                 \
        prepare(sqe, __VA_ARGS__);                                                                                     \
        io_uring_sqe_set_data64(sqe, name);                                                                            \
    } while (0)

static void uring_listener(struct io *io, uint32_t listener, int fd)
{
    /* of a socket that does not block the kernel would ask but once */
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    uring_of(io)->listeners[listener] = fd;
}

static void uring_accept(struct io *io, uint32_t listener)
{
    struct uring *u = uring_of(io);
    SUBMIT(u, io_pack(IO_ACCEPT, listener, 0), io_uring_prep_multishot_accept, u->listeners[listener], NULL, NULL,
           SOCK_CLOEXEC);
}

/* By its name: to look for the operations of a descriptor the kernel would look through those of all descriptors. */
static void cancel(struct uring *u, uint64_t name)
{
    struct io_uring_sqe *sqe = next_submission(u);
    io_uring_prep_cancel64(sqe, name, 0);
    io_uring_sqe_set_data64(sqe, CANCELLATION);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

static void uring_accept_stop(struct io *io, uint32_t listener)
{
    cancel(uring_of(io), io_pack(IO_ACCEPT, listener, 0));
}

static void uring_bell(struct io *io, int bell_fd)
{
    struct uring *u = uring_of(io);
    u->bell = bell_fd;
    SUBMIT(u, io_pack(IO_BELL, 0, 0), io_uring_prep_poll_multishot, bell_fd, POLLIN);
}

static void uring_watch_room(struct io *io, int fd)
{
    SUBMIT(uring_of(io), io_pack(IO_ROOM, 0, 0), io_uring_prep_poll_add, fd, POLLOUT);
}

static void uring_receive(struct io *io, uint32_t slot, uint32_t tag, int fd, void *data, size_t size)
{
    SUBMIT(uring_of(io), io_pack(IO_RECEIVE, slot, tag), io_uring_prep_recv, fd, data, size, 0);
}

static void uring_send(struct io *io, uint32_t slot, uint32_t tag, int fd, const void *data, size_t size)
{
    /* without MSG_WAITALL: a short count is progress, and progress is what a slow reader is judged by */
    SUBMIT(uring_of(io), io_pack(IO_SEND, slot, tag), io_uring_prep_send, fd, data, size, MSG_NOSIGNAL);
}

static void uring_watch_hangup(struct io *io, uint32_t slot, uint32_t tag, int fd, bool is_half_closed)
{
    /* POLLHUP, POLLERR and POLLRDHUP are always watched for. One shot, so that the end leaves nothing to be ended; but the
     * last one, a half-close, would set it off again at once: from there on many shots, of which the end is one. */
    uint64_t name = io_pack(IO_HANGUP, slot, tag);
    if (is_half_closed)
        SUBMIT(uring_of(io), name, io_uring_prep_poll_multishot, fd, 0);
    else
        SUBMIT(uring_of(io), name, io_uring_prep_poll_add, fd, 0);
}

static void uring_unwatch_hangup(struct io *io, uint32_t slot, uint32_t tag)
{
    cancel(uring_of(io), io_pack(IO_HANGUP, slot, tag));
}

static int submit_and_wait(struct uring *u, uint64_t deadline_ns)
{
    if (deadline_ns == IO_NO_SLEEP)
        return io_uring_submit_and_get_events(&u->ring);
    if (deadline_ns == IO_NO_TIMEOUT)
        return io_uring_submit_and_wait(&u->ring, 1);
    uint64_t now = clock_ns(), left = deadline_ns > now ? deadline_ns - now : 1;
    struct __kernel_timespec timeout = {.tv_sec = (long long)(left / 1000000000u),
                                        .tv_nsec = (long long)(left % 1000000000u)};
    struct io_uring_cqe *first;
    return io_uring_submit_and_wait_timeout(&u->ring, &first, 1, &timeout, NULL);
}

static uint32_t uring_turn(struct io *io, uint64_t deadline_ns, struct io_event *events, uint32_t max)
{
    struct uring *u = uring_of(io);
    fault_point(FAULT_IO_BEFORE_RELEASE);
    io_uring_cq_advance(&u->ring, u->taken); /* only now: until here a successor had to find them */
    u->taken = 0;
    fault_point(FAULT_IO_BEFORE_TURN);
    int ret = submit_and_wait(u, deadline_ns);
    fault_point(FAULT_IO_AFTER_TURN);
    check(ret >= 0 || is_passing(ret));
    uint32_t kept = 0;
    unsigned head;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        if (u->taken == max)
            break;
        u->taken++;
        if (cqe->user_data == CANCELLATION)
            continue;
        struct io_event event = io_unpack(cqe->user_data);
        event.result = cqe->res;
        event.is_last = !(cqe->flags & IORING_CQE_F_MORE);
        if (event.kind == IO_HANGUP && event.result > 0)
            event.result = (event.result & (POLLHUP | POLLERR)) != 0;
        if (event.kind == IO_BELL && event.is_last) {
            check(event.result >= 0);    /* polling an eventfd cannot fail */
            uring_bell(&u->io, u->bell); /* the kernel gives a multishot operation up when its queue runs full */
        }
        events[kept++] = event;
    }
    return kept;
}

static void uring_past(const uint8_t *region, const struct layout *layout, uint32_t connections_max, io_past_fn *take,
                       void *context)
{
    const struct uring_shm *shm = (const struct uring_shm *)(const void *)region;
    if (!shm->is_there)
        return;
    check(shm->completion_count == layout->io_completions_max);
    const uint8_t *queues = region + layout->io_rings;
    uint32_t head = *(const uint32_t *)(const void *)(queues + shm->head);
    uint32_t tail = *(const uint32_t *)(const void *)(queues + shm->tail);
    const struct io_uring_cqe *cqes = (const struct io_uring_cqe *)(const void *)(queues + shm->completions);
    check(tail - head <= shm->completion_count);
    for (; head != tail; head++) {
        const struct io_uring_cqe *cqe = &cqes[head & (shm->completion_count - 1)];
        struct io_event event = io_unpack(cqe->user_data);
        event.result = cqe->res;
        if ((event.kind == IO_RECEIVE || event.kind == IO_SEND) && event.slot < connections_max)
            take(context, &event);
    }
}

const struct io_back io_back_uring = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .listener = uring_listener,
    .accept = uring_accept,
    .accept_stop = uring_accept_stop,
    .bell = uring_bell,
    .watch_room = uring_watch_room,
    .receive = uring_receive,
    .send = uring_send,
    .watch_hangup = uring_watch_hangup,
    .unwatch_hangup = uring_unwatch_hangup,
    .turn = uring_turn,
    .past = uring_past,
};
