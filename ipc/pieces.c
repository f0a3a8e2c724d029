#include "ipc/pieces.h"

static bool lies_inside(const struct pieces_shm *p, uint64_t offset, uint64_t bytes)
{
    return offset <= p->bytes && bytes <= p->bytes - offset;
}

bool pieces_are_sound(const struct pieces_shm *p, size_t bytes)
{
    if (bytes < sizeof(*p) || p->magic != PIECES_MAGIC || p->bytes > bytes || p->count == 0 ||
        p->order_count > p->count || (p->starts | p->order | p->shared) % sizeof(uint32_t) != 0 ||
        !lies_inside(p, p->starts, (p->count + 1ull) * sizeof(uint32_t)) || !lies_inside(p, p->types, p->count) ||
        !lies_inside(p, p->order, p->order_count * sizeof(uint32_t)) ||
        !lies_inside(p, p->shared, p->order_count * sizeof(uint16_t)))
        return false;
    const uint32_t *starts = (const void *)((const uint8_t *)p + p->starts);
    for (uint32_t id = 0; id < p->count; id++)
        if (starts[id + 1] < starts[id] || starts[id + 1] - starts[id] > PIECE_SIZE_MAX)
            return false;
    for (uint32_t i = 0; i < p->order_count; i++) {
        uint32_t id = pieces_order(p)[i], previous = i > 0 ? pieces_order(p)[i - 1] : id;
        if (id >= p->count || pieces_shared(p)[i] > starts[id + 1] - starts[id] ||
            (i > 0 ? pieces_shared(p)[i] > starts[previous + 1] - starts[previous] : pieces_shared(p)[i] > 0))
            return false;
    }
    return lies_inside(p, p->text, starts[p->count]);
}
