#include "ipc/arena.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/fault.h"
#include "ipc/shm.h"
#include "ipc/words.h"

static const char *region_name(uint32_t id)
{
    static const char *const names[] = {"plan", "vocab", "sup", "front", "conns", "io", "io past", "sched"};
    if (id < ARRAY_COUNT(names))
        return names[id];
    return id >= REGION_WEIGHTS ? "weights" : id >= REGION_KV ? "kv" : "stage";
}

static bool region_has_head(uint32_t id)
{
    return id == REGION_SUP || id == REGION_FRONT || id == REGION_SCHED || (id >= REGION_STAGE && id < REGION_KV);
}

static int map_plan(struct arena *arena, const struct birth *birth, const int *fds, struct err *err)
{
    for (uint32_t i = 0; i < birth->item_count; i++) {
        if (birth->items[i].kind != BIRTH_REGION_READ || birth->items[i].number != REGION_PLAN)
            continue;
        arena->regions[REGION_PLAN] = shm_map(fds[i], align_up_u64(sizeof(struct plan), 4096), SHM_READ, "plan", err);
        if (arena->regions[REGION_PLAN] == NULL)
            return -EPROTO;
        arena->plan = (const struct plan *)(const void *)arena->regions[REGION_PLAN];
        int ret = plan_validate(arena->plan, err);
        if (ret == 0)
            layout_compute(&arena->layout, arena->plan);
        return ret;
    }
    return err_set(err, -EPROTO, "birth message: holds no plan; mixed builds?");
}

static int map_region(struct arena *arena, uint32_t id, int fd, bool is_writable, bool must_load, struct err *err)
{
    if (id >= REGION_COUNT || arena->layout.region_bytes[id] == 0)
        return err_set(err, -EPROTO, "birth message: region %u is not in the plan; mixed builds?", id);
    size_t bytes = arena->layout.region_bytes[id];
    /* What a process writes is there before it serves; what others write is faulted in as they fill it. Connection buffers
     * are taken as connections come: all of them at once would be memory for clients that nobody has. For a successor the
     * memory is there; to map every page of it before the first step would take longer than all the rest of its start. */
    bool must_take = (arena->epoch == 1 || id == REGION_IO) && id != REGION_CONNS;
    int access = is_writable ? SHM_WRITE | (must_take ? SHM_POPULATE : 0) : SHM_READ;
    arena->regions[id] = shm_map(fd, bytes, access, region_name(id), err);
    if (arena->regions[id] == NULL)
        return -EPROTO;
    const struct region_head *head = (const struct region_head *)(const void *)arena->regions[id];
    if (region_has_head(id) &&
        (head->magic != REGION_MAGIC || head->layout_hash != LAYOUT_HASH || head->bytes != bytes || head->id != id))
        return err_set(err, -EPROTO, "region %s: its head is not this build's; mixed builds?", region_name(id));
    if (must_load)
        arena->weights = fd;
    else
        close(fd);
    return 0;
}

/* Descriptors of memory that is not ours to map. */
static int take_device(struct arena *arena, uint32_t id, int fd, bool is_loaded, struct err *err)
{
    int *const to = id == REGION_KV + arena->index        ? &arena->device_kv
                    : id == REGION_WEIGHTS + arena->index ? &arena->device_weights
                                                          : NULL;
    if (to == NULL)
        return err_set(err, -EPROTO, "birth message: region %u is not this stage's; mixed builds?", id);
    *to = fd;
    arena->is_device_loaded = is_loaded;
    return 0;
}

static const struct arena nothing = {.listener = -1,
                                     .listener_tcp = -1,
                                     .keys = -1,
                                     .model = -1,
                                     .record = -1,
                                     .keep = -1,
                                     .ledger = -1,
                                     .weights = -1,
                                     .device_kv = -1,
                                     .device_weights = -1};

int arena_inherit(struct arena *arena, int birth_socket, struct err *err)
{
    *arena = nothing;
    for (uint32_t i = 0; i < PROCESSES_MAX; i++)
        arena->bells[i] = -1;
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
    int ret = birth_receive(birth_socket, &birth, fds, err);
    if (ret < 0)
        return ret;
    close(birth_socket);
    arena->role = (enum role)birth.role;
    arena->index = birth.index;
    arena->epoch = birth.epoch;
    fault_begin(process_number(arena->role, arena->index));
    ret = map_plan(arena, &birth, fds, err);
    for (uint32_t i = 0; i < birth.item_count && ret == 0; i++) {
        const struct birth_item *item = &birth.items[i];
        fault_point(FAULT_ARENA_MAP);
        switch (item->kind) {
        case BIRTH_REGION_READ:
        case BIRTH_REGION_WRITE:
            if (item->number == REGION_PLAN)
                close(fds[i]);
            else
                ret = map_region(arena, item->number, fds[i], item->kind == BIRTH_REGION_WRITE,
                                 item->number >= REGION_WEIGHTS && !birth.weights_loaded, err);
            break;
        case BIRTH_BELL:
            check(item->number < PROCESSES_MAX);
            arena->bells[item->number] = fds[i];
            break;
        case BIRTH_LISTENER:
            *(item->number == 0 ? &arena->listener : &arena->listener_tcp) = fds[i];
            break;
        case BIRTH_KEYS:
            arena->keys = fds[i];
            break;
        case BIRTH_MODEL:
            arena->model = fds[i];
            break;
        case BIRTH_RECORD:
            arena->record = fds[i];
            break;
        case BIRTH_KEEP:
            arena->keep = fds[i];
            break;
        case BIRTH_LEDGER:
            arena->ledger = fds[i];
            break;
        case BIRTH_DEVICE:
            ret = take_device(arena, item->number, fds[i], birth.weights_loaded, err);
            break;
        default:
            ret = err_set(err, -EPROTO, "birth message: item of kind %u; mixed builds?", item->kind);
        }
    }
    if (ret == 0)
        words_open(&arena_process(arena, arena->role, arena->index)->words, arena->epoch);
    return ret;
}

void arena_in_memory(struct arena *arena, const struct plan *plan)
{
    struct err err = {0};
    if (plan_validate(plan, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    *arena = nothing;
    arena->plan = plan;
    arena->epoch = 1;
    for (uint32_t i = 0; i < PROCESSES_MAX; i++)
        arena->bells[i] = -1;
    layout_compute(&arena->layout, plan);
    for (uint32_t id = REGION_SUP; id < REGION_COUNT; id++) {
        size_t bytes = arena->layout.region_bytes[id];
        if (bytes == 0 || id == REGION_IO_PAST)
            continue;
        /* mapped, not allocated: large regions cost nothing until they are touched */
        arena->regions[id] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(arena->regions[id] != MAP_FAILED);
        if (region_has_head(id))
            *(struct region_head *)(void *)arena->regions[id] = (struct region_head){
                .magic = REGION_MAGIC, .layout_hash = LAYOUT_HASH, .bytes = bytes, .id = id, .epoch = 1};
    }
}

void arena_in_memory_free(struct arena *arena)
{
    for (uint32_t id = REGION_SUP; id < REGION_COUNT; id++)
        if (arena->regions[id] != NULL)
            munmap(arena->regions[id], arena->layout.region_bytes[id]);
    *arena = (struct arena){0};
}

struct process_shm *arena_process(const struct arena *arena, enum role role, uint32_t index)
{
    switch (role) {
    case ROLE_FRONT:
        return (struct process_shm *)(void *)(arena->regions[REGION_FRONT] + arena->layout.front_process);
    case ROLE_SCHED:
        return (struct process_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_process);
    case ROLE_STAGE:
        check(index < arena->plan->stage_count);
        check(arena->regions[REGION_STAGE + index] != NULL);
        return (struct process_shm *)(void *)(arena->regions[REGION_STAGE + index] + arena->layout.stage_process);
    default:
        check(role != ROLE_SUPERVISOR); /* it has no process block */
        abort();
    }
}

struct bell arena_bell(const struct arena *arena)
{
    return (struct bell){.fd = arena->bells[process_number(arena->role, arena->index)],
                         .sleeping = &arena_process(arena, arena->role, arena->index)->sleeping};
}

struct bell_pull arena_pull(const struct arena *arena, enum role role, uint32_t index)
{
    return (struct bell_pull){.fd = arena->bells[process_number(role, index)],
                              .sleeping =
                                  role == ROLE_SUPERVISOR ? NULL : &arena_process(arena, role, index)->sleeping};
}

enum command arena_command(const struct arena *arena)
{
    /* acquire: pairs with the release in the supervisor's command_set() */
    return (enum command)atomic_load_explicit(&arena_sup(arena)->command, memory_order_acquire);
}

bool arena_is_ready(const struct arena *arena)
{
    /* relaxed, here and below: shown to people, decides nothing */
    return atomic_load_explicit(&arena_sup(arena)->ready, memory_order_relaxed) != 0;
}

uint32_t arena_process_id(const struct arena *arena, uint32_t number)
{
    check(number < PROCESSES_MAX);
    return atomic_load_explicit(&arena_sup(arena)->processes[number].pid, memory_order_relaxed);
}

uint32_t arena_process_restarts(const struct arena *arena, uint32_t number)
{
    check(number < PROCESSES_MAX);
    return atomic_load_explicit(&arena_sup(arena)->processes[number].restarts, memory_order_relaxed);
}

uint64_t arena_suspect(const struct arena *arena, uint32_t stage, uint64_t *step)
{
    const struct suspect_shm *suspect = &arena_sup(arena)->suspects[stage];
    /* acquire: pairs with the release in the supervisor's raise_suspicion(); a later step with an earlier count is looked
     * at again with its own */
    uint64_t count = atomic_load_explicit(&suspect->count, memory_order_acquire);
    *step = atomic_load_explicit(&suspect->step, memory_order_relaxed);
    return count;
}

uint32_t arena_standby(const struct arena *arena)
{
    /* relaxed: shown to people, decides nothing */
    return atomic_load_explicit(&arena_sup(arena)->standby, memory_order_relaxed);
}

uint64_t arena_death_count(const struct arena *arena)
{
    /* acquire: pairs with the release in the supervisor's report_death() */
    return atomic_load_explicit(&arena_sup(arena)->death_count, memory_order_acquire);
}

struct death_shm arena_death(const struct arena *arena, uint64_t k)
{
    return arena_sup(arena)->deaths[k % DEATHS_KEPT];
}

void arena_set_state(const struct arena *arena, enum process_state state)
{
    /* release: pairs with the acquire in arena_state() */
    fault_point(FAULT_ARENA_STATE);
    atomic_store_explicit(&arena_process(arena, arena->role, arena->index)->state, (uint32_t)state,
                          memory_order_release);
    fault_point(FAULT_ARENA_STATE);
    struct bell_pull supervisor = arena_pull(arena, ROLE_SUPERVISOR, 0);
    bell_ring(&supervisor);
}

enum process_state arena_state(const struct arena *arena, enum role role, uint32_t index)
{
    /* acquire: pairs with arena_set_state() */
    return (enum process_state)atomic_load_explicit(&arena_process(arena, role, index)->state, memory_order_acquire);
}

static struct ring_slot_shm *slots_at(const struct arena *arena, uint32_t region, size_t offset)
{
    return (struct ring_slot_shm *)(void *)(arena->regions[region] + offset);
}

void arena_ring_front_to_sched_producer(const struct arena *arena, struct ring_producer *ring)
{
    ring_producer_attach(ring, slots_at(arena, REGION_FRONT, arena->layout.front_ring), arena->layout.front_ring_slots,
                         &arena_process(arena, ROLE_SCHED, 0)->consumed);
}

void arena_ring_front_to_sched_consumer(const struct arena *arena, struct ring_consumer *ring)
{
    ring_consumer_attach(ring, slots_at(arena, REGION_FRONT, arena->layout.front_ring), arena->layout.front_ring_slots,
                         &arena_process(arena, ROLE_SCHED, 0)->consumed);
}

void arena_ring_sched_to_front_producer(const struct arena *arena, struct ring_producer *ring)
{
    ring_producer_attach(ring, slots_at(arena, REGION_SCHED, arena->layout.sched_ring), arena->layout.sched_ring_slots,
                         &arena_process(arena, ROLE_FRONT, 0)->consumed);
}

void arena_ring_sched_to_front_consumer(const struct arena *arena, struct ring_consumer *ring)
{
    ring_consumer_attach(ring, slots_at(arena, REGION_SCHED, arena->layout.sched_ring), arena->layout.sched_ring_slots,
                         &arena_process(arena, ROLE_FRONT, 0)->consumed);
}

/* The consumer's word of stage i's ring: stage i + 1's own, or sched's second (its first is the front's ring). */
static _Atomic uint64_t *stage_consumed(const struct arena *arena, uint32_t stage)
{
    if (stage + 1 == arena->plan->stage_count)
        return &arena_process(arena, ROLE_SCHED, 0)->consumed_second;
    return &arena_process(arena, ROLE_STAGE, stage + 1)->consumed;
}

void arena_ring_stage_producer(const struct arena *arena, uint32_t stage, struct ring_producer *ring)
{
    ring_producer_attach(ring, slots_at(arena, REGION_STAGE + stage, arena->layout.stage_ring),
                         arena->layout.stage_ring_slots, stage_consumed(arena, stage));
}

void arena_ring_stage_consumer(const struct arena *arena, uint32_t stage, struct ring_consumer *ring)
{
    ring_consumer_attach(ring, slots_at(arena, REGION_STAGE + stage, arena->layout.stage_ring),
                         arena->layout.stage_ring_slots, stage_consumed(arena, stage));
}
