#include "engine/io.h"

#include <errno.h>

#include "engine/io_back.h"
#include "ipc/log.h"

int io_open(struct io **io, enum io_choice choice, uint8_t *region, const struct layout *layout,
            uint32_t connections_max, struct err *err)
{
    int ret = -ENOSYS;
    if (choice != IO_EPOLL)
        ret = io_back_uring.open(io, region, layout, connections_max, err);
    if (choice == IO_EPOLL || (choice == IO_ANY && ret != 0)) {
        if (choice == IO_ANY)
            log_info("%s; using epoll", err->text);
        ret = io_back_epoll.open(io, region, layout, connections_max, err);
    }
    return ret;
}

const char *io_name(const struct io *io)
{
    return io->back->name;
}

void io_close(struct io *io)
{
    io->back->close(io);
}

void io_listener(struct io *io, uint32_t listener, int fd)
{
    check(listener < IO_LISTENERS);
    io->back->listener(io, listener, fd);
}

void io_accept(struct io *io, uint32_t listener)
{
    check(listener < IO_LISTENERS);
    io->back->accept(io, listener);
}

void io_accept_stop(struct io *io, uint32_t listener)
{
    check(listener < IO_LISTENERS);
    io->back->accept_stop(io, listener);
}

void io_bell(struct io *io, int bell_fd)
{
    io->back->bell(io, bell_fd);
}

void io_watch_room(struct io *io, int fd)
{
    io->back->watch_room(io, fd);
}

void io_receive(struct io *io, uint32_t slot, uint32_t tag, int fd, void *data, size_t size)
{
    io->back->receive(io, slot, tag, fd, data, size);
}

void io_send(struct io *io, uint32_t slot, uint32_t tag, int fd, const void *data, size_t size)
{
    io->back->send(io, slot, tag, fd, data, size);
}

void io_watch_hangup(struct io *io, uint32_t slot, uint32_t tag, int fd, bool is_half_closed)
{
    io->back->watch_hangup(io, slot, tag, fd, is_half_closed);
}

void io_unwatch_hangup(struct io *io, uint32_t slot, uint32_t tag)
{
    io->back->unwatch_hangup(io, slot, tag);
}

uint32_t io_turn(struct io *io, uint64_t deadline_ns, struct io_event *events, uint32_t max)
{
    return io->back->turn(io, deadline_ns, events, max);
}

void io_past(const uint8_t *region, const struct layout *layout, uint32_t connections_max, io_past_fn *take,
             void *context)
{
    /* whichever it was: the other one's part of the region is still zero */
    io_back_uring.past(region, layout, connections_max, take, context);
    io_back_epoll.past(region, layout, connections_max, take, context);
}
