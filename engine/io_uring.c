/* io_uring.c - io.h on an io_uring: one submission and one reaping per turn, in one system call. */
#include "engine/io.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>

#include "ipc/log.h"

#define SUBMISSIONS     1024u
#define COMPLETIONS_MAX 65536u

struct io {
    struct io_uring ring;
    int listener;
    int bell;
    struct __kernel_timespec deadline; /* read by the kernel when the timer is submitted */
};

/* user_data: kind in 8 bits, generation in 24, slot in 32 */
static uint64_t name_of(enum io_kind kind, uint32_t slot, uint32_t generation)
{
    return (uint64_t)kind << 56 | (uint64_t)(generation & IO_GENERATION_MASK) << 32 | slot;
}

static int open_ring(struct io_uring *ring, uint32_t completions)
{
    /* Wanted: work of the kernel runs only when we ask for it, one submission's error does not stop the others. A kernel
     * that does not know a flag refuses with EINVAL: ask for less. */
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int ret = -EINVAL;
    for (size_t i = 0; i < ARRAY_COUNT(flags) && ret == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flags[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
                                         .cq_entries = completions};
        ret = io_uring_queue_init_params(SUBMISSIONS, ring, &params);
    }
    return ret;
}

int io_open(struct io **io, uint32_t connections_max, struct err *err)
{
    struct io *new = base_alloc(sizeof(*new));
    new->listener = new->bell = -1;
    /* three operations and a cancellation per connection, and the four of the loop itself */
    uint32_t completions = (uint32_t)min_u64(4ull * connections_max + 64, COMPLETIONS_MAX);
    int ret = open_ring(&new->ring, (uint32_t)max_u64(completions, SUBMISSIONS));
    if (ret == -EPERM || ret == -ENOSYS)
        return err_set(err, ret,
                       "io_uring: this system does not allow it (%s); see kernel.io_uring_disabled and the "
                       "seccomp profile of your container",
                       strerror(-ret));
    if (ret < 0)
        return err_set(err, ret, "io_uring: cannot set it up: %s", strerror(-ret));
    io_uring_register_ring_fd(&new->ring); /* saves a look-up per turn; older kernels do without */
    *io = new;
    return 0;
}

void io_close(struct io *io)
{
    io_uring_queue_exit(&io->ring);
}

/* The kernel's answer to a submission; everything but these three is a bug of ours. */
static bool is_passing(int ret)
{
    return ret == -EINTR || ret == -EAGAIN || ret == -EBUSY;
}

static struct io_uring_sqe *next_submission(struct io *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
    while (sqe == NULL) {
        int ret = io_uring_submit(&io->ring);
        check(ret >= 0 || is_passing(ret));
        sqe = io_uring_get_sqe(&io->ring);
    }
    return sqe;
}

void io_accept(struct io *io, int listener)
{
    io->listener = listener;
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, name_of(IO_ACCEPT, 0, 0));
}

void io_accept_stop(struct io *io)
{
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_cancel64(sqe, name_of(IO_ACCEPT, 0, 0), 0);
    io_uring_sqe_set_data64(sqe, name_of(IO_CANCEL, UINT32_MAX, 0));
}

void io_bell(struct io *io, int bell_fd)
{
    io->bell = bell_fd;
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_poll_multishot(sqe, bell_fd, POLLIN);
    io_uring_sqe_set_data64(sqe, name_of(IO_BELL, 0, 0));
}

void io_timer(struct io *io, uint64_t deadline_ns)
{
    io->deadline = (struct __kernel_timespec){.tv_sec = (long long)(deadline_ns / 1000000000u),
                                              .tv_nsec = (long long)(deadline_ns % 1000000000u)};
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_timeout(sqe, &io->deadline, 0, IORING_TIMEOUT_ABS); /* of CLOCK_MONOTONIC, as clock_ns() */
    io_uring_sqe_set_data64(sqe, name_of(IO_TIMER, 0, 0));
}

void io_receive(struct io *io, uint32_t slot, uint32_t generation, int fd, void *data, size_t size)
{
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_recv(sqe, fd, data, size, 0);
    io_uring_sqe_set_data64(sqe, name_of(IO_RECEIVE, slot, generation));
}

void io_send(struct io *io, uint32_t slot, uint32_t generation, int fd, const void *data, size_t size)
{
    struct io_uring_sqe *sqe = next_submission(io);
    /* without MSG_WAITALL: a short count is progress, and progress is what a slow reader is judged by */
    io_uring_prep_send(sqe, fd, data, size, MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, name_of(IO_SEND, slot, generation));
}

void io_watch_hangup(struct io *io, uint32_t slot, uint32_t generation, int fd)
{
    struct io_uring_sqe *sqe = next_submission(io);
    /* POLLHUP, POLLERR and POLLRDHUP are always watched for. The last one, a half-close, is not the end: many shots, so that
     * the end is seen as well. */
    io_uring_prep_poll_multishot(sqe, fd, 0);
    io_uring_sqe_set_data64(sqe, name_of(IO_HANGUP, slot, generation));
}

void io_cancel(struct io *io, uint32_t slot, uint32_t generation, int fd)
{
    struct io_uring_sqe *sqe = next_submission(io);
    io_uring_prep_cancel_fd(sqe, fd, IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(sqe, name_of(IO_CANCEL, slot, generation));
}

static bool is_for_caller(struct io *io, const struct io_event *event)
{
    if (event->kind == IO_CANCEL && event->slot == UINT32_MAX)
        return false;
    if (event->kind == IO_BELL && event->is_last) {
        check(event->result >= 0); /* polling an eventfd cannot fail */
        io_bell(io, io->bell);     /* the kernel gives a multishot operation up when its queue runs full */
    }
    return true;
}

uint32_t io_turn(struct io *io, bool may_sleep, struct io_event *events, uint32_t max)
{
    int ret = may_sleep ? io_uring_submit_and_wait(&io->ring, 1) : io_uring_submit_and_get_events(&io->ring);
    check(ret >= 0 || is_passing(ret));
    /* copied first, handled after: handling asks for new operations */
    uint32_t count = 0, seen = 0;
    unsigned head;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(&io->ring, head, cqe)
    {
        if (seen == max)
            break;
        seen++;
        events[count++] = (struct io_event){.kind = (enum io_kind)(cqe->user_data >> 56),
                                            .slot = (uint32_t)cqe->user_data,
                                            .generation = (uint32_t)(cqe->user_data >> 32) & IO_GENERATION_MASK,
                                            .result = cqe->res,
                                            .is_last = !(cqe->flags & IORING_CQE_F_MORE)};
    }
    io_uring_cq_advance(&io->ring, seen);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (events[i].kind == IO_HANGUP && events[i].result > 0)
            events[i].result = (events[i].result & (POLLHUP | POLLERR)) != 0;
        if (is_for_caller(io, &events[i]))
            events[kept++] = events[i];
    }
    return kept;
}
