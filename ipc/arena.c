#include "ipc/arena.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/fault.h"
#include "ipc/lifeline.h"
#include "ipc/shm.h"
#include "ipc/version.h"
#include "ipc/words.h"

static const char *region_name(uint32_t id)
{
    static const char *const names[] = {"plan", "vocab", "sup", "front", "conns", "io", "io past", "sched"};
    if (id < ARRAY_COUNT(names))
        return names[id];
    return id >= REGION_WEIGHTS ? "weights" : id >= REGION_KV ? "kv" : id >= REGION_EDGE ? "edge" : "stage";
}

static bool region_has_head(uint32_t id)
{
    return id == REGION_SUP || id == REGION_FRONT || id == REGION_SCHED || (id >= REGION_STAGE && id < REGION_EDGE);
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
        /* who has started it may have taken another build */
        if (ret == 0 && arena->plan->fingerprint[0] != '\0' &&
            strstr(arena->plan->fingerprint, version_numerics) == NULL)
            ret = err_set(err, -EPROTO, "this program computes other bits (%s) than the engine, %s; evenflow upgrade",
                          version_numerics, arena->plan->fingerprint);
        if (ret == 0)
            layout_compute(&arena->layout, arena->plan);
        return ret;
    }
    return err_set(err, -EPROTO, "birth message: holds no plan; mixed builds?");
}

/* What a process writes is there before it serves, but for connection buffers, which are taken as connections
 * come: all of them at once would be memory for clients that nobody has. A successor finds the pages that a
 * forerunner has filled, and mapping them all at once would take longer than those that it needs first; only
 * region io is new in every life. What others write is faulted in as they fill it; a spare has time to map all of
 * its weights. */
static int access_to(const struct arena *arena, uint32_t id, bool is_writable)
{
    if (!is_writable)
        return arena->is_spare && id >= REGION_WEIGHTS ? SHM_READ | SHM_POPULATE : SHM_READ;
    bool is_filled = arena->epoch > 1 && id != REGION_IO;
    return SHM_WRITE | (id == REGION_CONNS || is_filled ? 0 : SHM_POPULATE);
}

static int map_region(struct arena *arena, uint32_t id, int fd, bool is_writable, struct err *err)
{
    if (id >= REGION_COUNT || arena->layout.region_bytes[id] == 0)
        return err_set(err, -EPROTO, "birth message: region %u is not in the plan; mixed builds?", id);
    size_t bytes = arena->layout.region_bytes[id];
    arena->regions[id] = shm_map(fd, bytes, access_to(arena, id, is_writable), region_name(id), err);
    if (arena->regions[id] == NULL)
        return -EPROTO;
    const struct region_head *head = (const struct region_head *)(const void *)arena->regions[id];
    if (region_has_head(id) &&
        (head->magic != REGION_MAGIC || head->layout_hash != LAYOUT_HASH || head->bytes != bytes || head->id != id))
        return err_set(err, -EPROTO, "region %s: its head is not this build's; mixed builds?", region_name(id));
    if (id >= REGION_WEIGHTS && is_writable) /* to be loaded, then sealed */
        arena->weights = fd;
    else
        close(fd);
    return 0;
}

/* Descriptors of memory that is not ours to map. */
static int take_device(struct arena *arena, uint32_t id, int fd, bool is_loaded, struct err *err)
{
    int *const to = id == REGION_KV + arena->index         ? &arena->device_kv
                    : id == REGION_WEIGHTS + arena->index  ? &arena->device_weights
                    : id == REGION_EDGE + arena->index     ? &arena->device_out
                    : id + 1 == REGION_EDGE + arena->index ? &arena->device_in
                                                           : NULL;
    if (to == NULL)
        return err_set(err, -EPROTO, "birth message: region %u is not this stage's; mixed builds?", id);
    *to = fd;
    arena->is_device_loaded = is_loaded;
    return 0;
}

static int take_item(struct arena *arena, const struct birth *birth, uint32_t index, int fd, struct err *err)
{
    const struct birth_item *item = &birth->items[index];
    switch (item->kind) {
    case BIRTH_REGION_READ:
    case BIRTH_REGION_WRITE:
        if (item->number != REGION_PLAN)
            return map_region(arena, item->number, fd, item->kind == BIRTH_REGION_WRITE, err);
        close(fd);
        return 0;
    case BIRTH_BELL:
        check(item->number < PROCESSES_MAX);
        arena->bells[item->number] = fd;
        return 0;
    case BIRTH_LISTENER:
        *(item->number == 0 ? &arena->listener : &arena->listener_tcp) = fd;
        return 0;
    case BIRTH_KEYS:
        arena->keys = fd;
        return 0;
    case BIRTH_MODEL:
        arena->model = fd;
        return 0;
    case BIRTH_RECORD:
        arena->record = fd;
        return 0;
    case BIRTH_KEEP:
        arena->keep = fd;
        return 0;
    case BIRTH_LEDGER:
        arena->ledger = fd;
        return 0;
    case BIRTH_LIFELINE:
        if (!lifeline_hold(fd))
            return err_set(err, -EPIPE, "the supervisor has gone");
        close(fd);
        return 0;
    case BIRTH_DEVICE:
        return take_device(arena, item->number, fd, birth->weights_loaded, err);
    default:
        return err_set(err, -EPROTO, "birth message: item of kind %u; mixed builds?", item->kind);
    }
}

static int take_items(struct arena *arena, const struct birth *birth, const int *fds, struct err *err)
{
    int ret = 0;
    for (uint32_t i = 0; i < birth->item_count && ret == 0; i++) {
        fault_point(FAULT_ARENA_MAP);
        ret = take_item(arena, birth, i, fds[i], err);
    }
    return ret;
}

static int receive_part(int socket, enum birth_part part, struct birth *birth, int *fds, struct err *err)
{
    int ret = birth_receive(socket, birth, fds, err);
    if (ret == 0 && birth->part != (uint32_t)part)
        return err_set(err, -EPROTO, "birth message: part %u in place of part %u; mixed builds?", birth->part, part);
    return ret;
}

static const struct arena nothing = {.birth_socket = -1,
                                     .listener = -1,
                                     .listener_tcp = -1,
                                     .keys = -1,
                                     .model = -1,
                                     .record = -1,
                                     .keep = -1,
                                     .ledger = -1,
                                     .weights = -1,
                                     .device_kv = -1,
                                     .device_weights = -1,
                                     .device_in = -1,
                                     .device_out = -1};

int arena_inherit(struct arena *arena, int birth_socket, struct err *err)
{
    *arena = nothing;
    arena->birth_socket = birth_socket;
    for (uint32_t i = 0; i < PROCESSES_MAX; i++)
        arena->bells[i] = -1;
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
    int ret = receive_part(birth_socket, BIRTH_TO_SEE, &birth, fds, err);
    if (ret < 0)
        return ret;
    arena->role = (enum role)birth.role;
    arena->index = birth.index;
    arena->is_spare = birth.epoch == 0;
    char name[16]; /* programs are executed by descriptor, which would be what they are called */
    snprintf(name, sizeof(name), "evenflow-%s", role_name(arena->role));
    prctl(PR_SET_NAME, name);
    if (!arena->is_spare)
        fault_begin(process_number(arena->role, arena->index));
    ret = map_plan(arena, &birth, fds, err);
    return ret ? ret : take_items(arena, &birth, fds, err);
}

int arena_take_over(struct arena *arena, struct err *err)
{
    struct birth birth;
    int fds[BIRTH_ITEMS_MAX];
    if (arena->is_spare && send(arena->birth_socket, "", 1, MSG_NOSIGNAL) != 1)
        return err_set(err, -EPIPE, "birth message: the supervisor has gone, or has no use for this process any more");
    int ret = receive_part(arena->birth_socket, BIRTH_TO_DO, &birth, fds, err);
    if (ret < 0)
        return ret;
    close(arena->birth_socket);
    arena->birth_socket = -1;
    arena->epoch = birth.epoch;
    if (arena->is_spare)
        fault_begin(process_number(arena->role, arena->index));
    ret = take_items(arena, &birth, fds, err);
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
    /* acquire: pairs with the release in supervisor_command() */
    return (enum command)atomic_load_explicit(&arena_sup(arena)->command, memory_order_acquire);
}

bool arena_is_ready(const struct arena *arena)
{
    /* relaxed, here and below: shown to people, decides nothing */
    return atomic_load_explicit(&arena_sup(arena)->ready, memory_order_relaxed) != 0;
}

bool arena_has_started(const struct arena *arena)
{
    return atomic_load_explicit(&arena_sup(arena)->has_started, memory_order_relaxed) != 0;
}

bool arena_is_kept(const struct arena *arena)
{
    const struct sup_shm *sup = arena_sup(arena);
    return atomic_load_explicit(&sup->kept, memory_order_relaxed) == sup->head.epoch;
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

uint32_t arena_process_spare(const struct arena *arena, uint32_t number)
{
    check(number < PROCESSES_MAX);
    return atomic_load_explicit(&arena_sup(arena)->processes[number].spare, memory_order_relaxed);
}

bool arena_suspect(const struct arena *arena, uint32_t stage, uint64_t *life, uint64_t *step)
{
    const struct suspect_shm *suspect = &arena_sup(arena)->suspects[stage];
    /* acquire: pairs with the release in the supervisor's raise_suspicion(). relaxed: the caller's own word, or its
     * predecessor's; there is no later step before it says that life is dealt with */
    *life = atomic_load_explicit(&suspect->life, memory_order_acquire);
    *step = atomic_load_explicit(&suspect->step, memory_order_relaxed);
    return *life != atomic_load_explicit(&arena_process(arena, ROLE_SCHED, 0)->dealt_with[stage], memory_order_relaxed);
}

void arena_deal_with(const struct arena *arena, uint32_t stage, uint64_t life)
{
    /* release: pairs with the acquire in supervisor_is_suspected(): who is born then finds what follows from it */
    fault_point(FAULT_DEAL_WITH);
    atomic_store_explicit(&arena_process(arena, ROLE_SCHED, 0)->dealt_with[stage], life, memory_order_release);
    fault_point(FAULT_DEAL_WITH);
    struct bell_pull supervisor = arena_pull(arena, ROLE_SUPERVISOR, 0);
    bell_ring(&supervisor);
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
    struct process_shm *process = arena_process(arena, arena->role, arena->index);
    if (state == PROCESS_READY)
        trace_note(&process->trace, TRACE_READY, 0);
    /* release: pairs with the acquire in arena_state() */
    fault_point(FAULT_ARENA_STATE);
    atomic_store_explicit(&process->state, (uint32_t)state, memory_order_release);
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

const struct ring_slot_shm *arena_stage_messages(const struct arena *arena, uint32_t stage)
{
    return slots_at(arena, REGION_STAGE + stage, arena->layout.stage_ring);
}
