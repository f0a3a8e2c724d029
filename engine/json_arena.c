#include "engine/json_arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "ipc/base.h"

static uint8_t *arena;
static size_t arena_bytes, arena_used;

void *json_arena_take(size_t bytes)
{
    size_t need = align_up_u64(bytes, alignof(max_align_t));
    if (bytes > arena_bytes || need > arena_bytes - arena_used)
        return NULL; /* jansson reports it as json_error_out_of_memory */
    void *memory = arena + arena_used;
    arena_used += need;
    return memory;
}

static void give_back(void *memory)
{
    (void)memory; /* json_arena_reset() forgets all at once */
}

void json_arena_open(size_t bytes)
{
    check(arena == NULL);
    /* mapped, not allocated: pages that no body has needed yet cost nothing */
    arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(arena != MAP_FAILED);
    arena_bytes = bytes;
    json_set_alloc_funcs(json_arena_take, give_back);
    /* jansson would open /dev/urandom with the first object; keys must not be predictable to clients */
    uint32_t seed = 0;
    while (seed == 0)
        if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
            seed = 0;
    json_object_seed(seed);
}

void json_arena_reset(void)
{
    arena_used = 0;
}
