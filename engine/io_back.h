/* io_back.h - what a back end of io.h is.   Used by: io.c, io_uring.c, io_epoll.c. */
#ifndef EVENFLOW_IO_BACK_H
#define EVENFLOW_IO_BACK_H

#include "engine/io.h"

struct io_back {
    const char *name;
    int (*open)(struct io **io, uint8_t *region, const struct layout *layout, uint32_t connections_max,
                struct err *err);
    void (*close)(struct io *io);
    void (*listener)(struct io *io, uint32_t listener, int fd);
    void (*accept)(struct io *io, uint32_t listener);
    void (*accept_stop)(struct io *io, uint32_t listener);
    void (*bell)(struct io *io, int bell_fd);
    void (*watch_room)(struct io *io, int fd);
    void (*receive)(struct io *io, uint32_t slot, uint32_t tag, int fd, void *data, size_t size);
    void (*send)(struct io *io, uint32_t slot, uint32_t tag, int fd, const void *data, size_t size);
    void (*watch_hangup)(struct io *io, uint32_t slot, uint32_t tag, int fd, bool is_half_closed);
    void (*unwatch_hangup)(struct io *io, uint32_t slot, uint32_t tag);
    uint32_t (*turn)(struct io *io, uint64_t deadline_ns, struct io_event *events, uint32_t max);
    void (*past)(const uint8_t *region, const struct layout *layout, uint32_t connections_max, io_past_fn *take,
                 void *context);
};

/* First in every back end's own struct. */
struct io {
    const struct io_back *back;
};

extern const struct io_back io_back_uring, io_back_epoll;

/* An operation in one word: kind in 8 bits, tag in 24, slot in 32. */
static inline uint64_t io_pack(enum io_kind kind, uint32_t slot, uint32_t tag)
{
    return (uint64_t)kind << 56 | (uint64_t)(tag & IO_TAG_MASK) << 32 | slot;
}

static inline struct io_event io_unpack(uint64_t name)
{
    return (struct io_event){
        .kind = (enum io_kind)(name >> 56), .slot = (uint32_t)name, .tag = (uint32_t)(name >> 32) & IO_TAG_MASK};
}

#endif
