#include "tests/simulate/world.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "engine/front.h"
#include "engine/json_arena.h"
#include "engine/policy.h"
#include "ipc/log.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"
#include "tools/random.h"

#define START_NS      1000000000000ull
#define TURN_NS       500u       /* what a turn takes */
#define JUMP_NS       1000000u   /* at most, while clients may still do something */
#define YIELD_ONE_IN  6u         /* points */
#define PATIENCE      4000u      /* points until somebody dies elsewhere */
#define STOP_ONE_IN   3u         /* deaths: it is stopped, and ended when that has been noticed */
#define STARVE_ONE_IN 20000u     /* points: the processor is others' for as long */
#define STOP_NS       500000000u /* at most */
#define INSIDE        FAULT_COUNT
#define LAYERS        3u

struct world *world_at_hand;

static uint32_t dice(struct world *w, uint32_t sides)
{
    return (uint32_t)(random_next(&w->random) % sides);
}

static enum role role_of(uint32_t process)
{
    return process < ROLE_STAGE ? (enum role)process : ROLE_STAGE;
}

static uint32_t index_of(uint32_t process)
{
    return process < ROLE_STAGE ? 0 : process - ROLE_STAGE;
}

/* ---- time, and sleeping: in the place of the kernel's (--wrap) ---- */

int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
ssize_t __wrap_getrandom(void *memory, size_t size, unsigned int flags);
int __real_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
void __wrap_bell_wait(struct bell *bell);
bool __wrap_bell_wait_until(struct bell *bell, uint64_t moment_ns);

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    if (world_at_hand == NULL)
        return __real_clock_gettime(clock, time);
    uint64_t now_ns = world_at_hand->now_ns;
    *time = (struct timespec){.tv_sec = (time_t)(now_ns / 1000000000u), .tv_nsec = (long)(now_ns % 1000000000u)};
    return 0;
}

ssize_t __wrap_getrandom(void *memory, size_t size, unsigned int flags)
{
    (void)flags;
    for (size_t at = 0; at < size; at++)
        ((uint8_t *)memory)[at] = (uint8_t)random_next(&world_at_hand->random);
    return (ssize_t)size;
}

static bool is_readable(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms)
{
    check(actor_at_hand != NULL);
    uint64_t until_ns = timeout_ms < 0 ? UINT64_MAX : world_at_hand->now_ns + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        int count = __real_epoll_wait(fd, events, max, 0);
        if (count != 0 || world_at_hand->now_ns >= until_ns)
            return count;
        actor_sleep(fd, until_ns);
    }
}

void __wrap_bell_wait(struct bell *bell)
{
    fault_point(FAULT_BELL_WAIT);
    while (!is_readable(bell->fd))
        actor_sleep(bell->fd, UINT64_MAX);
    bell_drain(bell);
    fault_point(FAULT_BELL_WAIT);
    bell_retract(bell);
}

bool __wrap_bell_wait_until(struct bell *bell, uint64_t moment_ns)
{
    while (world_at_hand->now_ns < moment_ns) {
        if (is_readable(bell->fd)) {
            bell_drain(bell);
            return true;
        }
        actor_sleep(bell->fd, moment_ns);
    }
    return false;
}

/* A process takes this once; here every life of front does. */
void __real_json_arena_open(size_t bytes);
void __wrap_json_arena_open(size_t bytes);

void __wrap_json_arena_open(size_t bytes)
{
    static bool is_open;
    if (is_open)
        json_arena_reset();
    else
        __real_json_arena_open(bytes);
    is_open = true;
}

/* ---- dying ---- */

/* Anywhere soon, or at a point where few have died. */
static void plan_death(struct world *w)
{
    w->death_in = 0;
    if (w->deaths_left == 0)
        return;
    w->deaths_left--;
    w->meant_until = w->points + PATIENCE;
    w->death_point = FAULT_ANYWHERE;
    w->death_in = 1 + dice(w, dice(w, 2) ? 3000 : 200);
    if (dice(w, 2) == 0)
        return;
    uint32_t a = dice(w, FAULT_COUNT), b = dice(w, FAULT_COUNT);
    w->death_point = w->deaths[a] <= w->deaths[b] ? a : b;
    if (fault_by[w->death_point] & (FAULT_WITH_URING | FAULT_AT_FIRST) ||
        fault_by[w->death_point] == FAULT_BY_SUPERVISOR)
        w->death_point = FAULT_ANYWHERE;
    else
        w->death_in = 1 + dice(w, 4);
}

static uint32_t point_of(const char *name)
{
    uint32_t point = 0;
    while (point < INSIDE && fault_names[point] != name)
        point++;
    return point;
}

/* Whatever comes for it, it does nothing: stopped, or starved by others on the machine. */
static void stand_still(struct world *w)
{
    w->stops++;
    actor_sleep(-1, w->now_ns + 1 + dice(w, STOP_NS));
}

static uint32_t process_at_hand(const struct world *w)
{
    uint32_t process = 1;
    while (&w->processes[process].actor != actor_at_hand)
        process++;
    return process;
}

void world_point(const char *name)
{
    struct world *w = world_at_hand;
    if (actor_at_hand == NULL)
        return;
    w->points++;
    if (w->death_in > 0 && w->points > w->meant_until) /* nobody comes to that one */
        w->death_point = FAULT_ANYWHERE;
    bool is_meant = w->death_in > 0 && (w->death_point == FAULT_ANYWHERE || fault_names[w->death_point] == name);
    if (is_meant && --w->death_in == 0) {
        w->deaths[point_of(name)]++;
        w->deaths_of[role_of(process_at_hand(w))]++;
        plan_death(w);
        if (dice(w, STOP_ONE_IN) == 0)
            stand_still(w);
        actor_die();
    }
    if (dice(w, STARVE_ONE_IN) == 0)
        stand_still(w);
    else if (dice(w, YIELD_ONE_IN) == 0)
        actor_yield();
}

/* A stage whose successor waits for the scheduler. */
static bool is_suspected(const struct world *w, uint32_t process)
{
    uint64_t life, step;
    return role_of(process) == ROLE_STAGE && arena_suspect(&w->arena, index_of(process), &life, &step);
}

/* A fault of its own, as far as anybody can tell: but a sequence that is suspected already would be ended for it. */
static void suspect(struct world *w, uint32_t process)
{
    if (role_of(process) != ROLE_STAGE || dice(w, 4) != 0)
        return;
    for (uint32_t sequence = 0; sequence < w->plan.sequences_max; sequence++)
        if (arena_mark(&w->arena, sequence)->until != 0)
            return;
    for (uint32_t stage = 0; stage < w->plan.stage_count; stage++)
        if (is_suspected(w, ROLE_STAGE + stage))
            return;
    struct suspect_shm *shm = &arena_sup(&w->arena)->suspects[index_of(process)];
    shm->step = arena_process(&w->arena, ROLE_STAGE, index_of(process))->step + 1;
    shm->life = w->processes[process].arena.epoch;
    w->suspicions++;
    bell_ring_always(&(struct bell_pull){.fd = w->arena.bells[ROLE_SCHED]});
}

static void bury(struct world *w, uint32_t process)
{
    struct process *p = &w->processes[process];
    actor_clear(&p->actor);
    p->sched = NULL;
    if (process == ROLE_FRONT)
        load_note_front_death(w->load);
    p->born_ns = w->now_ns + (dice(w, 2) ? 0 : dice(w, 400000));
    suspect(w, process);
}

/* ---- lives ---- */

static void run_front(void *pointer)
{
    struct process *p = pointer;
    struct front *front;
    struct err err = {0};
    if (front_init(&front, &p->arena, &err) != 0)
        check(!"front does not start");
    front_start(front);
    arena_set_state(&p->arena, PROCESS_READY);
    for (;;)
        check(front_do_work(front, true) >= 0);
}

static void run_sched(void *pointer)
{
    struct process *p = pointer;
    struct err err = {0};
    struct sched_process *sched = base_alloc(sizeof(*sched));
    if (sched_process_open(sched, &p->arena, &err) != 0)
        check(!"the scheduler does not start");
    p->sched = sched;
    arena_set_state(&p->arena, PROCESS_READY);
    for (;;) {
        uint32_t done = sched_process_do_work(sched);
        const struct sched *core = &sched->core;
        /* where nothing is in flight, nobody would wake it to plan */
        check(core->in_flight > 0 || core->table.running.count + core->table.waiting.count == 0);
        if (done == 0)
            sched_process_wait(sched);
    }
}

static void run_stage(void *pointer)
{
    struct process *p = pointer;
    struct err err = {0};
    struct stage *stage = base_alloc(sizeof(*stage));
    check(stage_init(stage, &p->arena, NULL, NULL, NULL, &err) == 0);
    stage_begin(stage);
    arena_set_state(&p->arena, PROCESS_READY);
    for (;;) {
        int done = stage_do_work(stage);
        check(done >= 0);
        if (done == 0)
            stage_wait(stage);
    }
}

/* A front has memory of its own for what the kernel says, and sees what was said to the one before, if that had begun. */
static void renew_io(struct world *w)
{
    uint8_t **io = &w->arena.regions[REGION_IO], **past = &w->arena.regions[REGION_IO_PAST];
    size_t bytes = w->arena.layout.region_bytes[REGION_IO];
    bool has_begun = *io != NULL && ((const struct io_head_shm *)(const void *)*io)->is_begun;
    uint8_t **given_up = has_begun ? past : io;
    if (*given_up != NULL)
        munmap(*given_up, bytes);
    if (has_begun)
        *past = *io;
    *io = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(*io != MAP_FAILED);
}

static void give_birth(struct world *w, uint32_t process)
{
    static void (*const runs[ROLE_COUNT])(void *) = {
        [ROLE_FRONT] = run_front, [ROLE_SCHED] = run_sched, [ROLE_STAGE] = run_stage};
    static const enum region_id regions[ROLE_COUNT] = {
        [ROLE_FRONT] = REGION_FRONT, [ROLE_SCHED] = REGION_SCHED, [ROLE_STAGE] = REGION_STAGE};
    struct process *p = &w->processes[process];
    enum role role = role_of(process);
    uint32_t epoch = p->arena.epoch + 1;
    struct err err;
    if (role == ROLE_FRONT)
        renew_io(w);
    p->arena = w->arena;
    p->arena.role = role;
    p->arena.index = index_of(process);
    p->arena.epoch = epoch;
    if (role == ROLE_FRONT) {
        check(keeper_begin_life(&w->keeper, &p->arena.keep, &err) == 0);
        keeper_turn(&w->keeper); /* its connections are there before it asks for them */
        actor_own(&p->actor, p->arena.keep);
    }
    struct region_head *head =
        (struct region_head *)(void *)w->arena.regions[regions[role] + (role == ROLE_STAGE ? p->arena.index : 0)];
    head->epoch = epoch;
    arena_process(&w->arena, role, p->arena.index)->state = PROCESS_STARTING;
    actor_start(&p->actor, runs[role], p);
    if (p->actor.state == ACTOR_DEAD)
        bury(w, process);
}

/* ---- what happens ---- */

static bool is_awake(const struct world *w, const struct actor *actor)
{
    return actor->state == ACTOR_READY ||
           (actor->state == ACTOR_ASLEEP && (w->now_ns >= actor->wake_ns || is_readable(actor->wake_fd)));
}

static bool can_be_born(const struct world *w, uint32_t process)
{
    return w->now_ns >= w->processes[process].born_ns && !is_suspected(w, process);
}

static void turn_process(struct world *w, uint32_t process)
{
    struct process *p = &w->processes[process];
    if (p->actor.state == ACTOR_DEAD) {
        if (can_be_born(w, process))
            give_birth(w, process);
        return;
    }
    actor_resume(&p->actor);
    if (p->actor.state == ACTOR_DEAD)
        bury(w, process);
}

static bool can_turn(const struct world *w, uint32_t process)
{
    const struct process *p = &w->processes[process];
    return p->actor.state == ACTOR_DEAD ? can_be_born(w, process) : is_awake(w, &p->actor);
}

/* When the next one wakes or is born. */
static uint64_t next_moment(const struct world *w)
{
    uint64_t next_ns = w->now_ns + JUMP_NS;
    for (uint32_t process = 1; process < w->process_count; process++) {
        const struct process *p = &w->processes[process];
        uint64_t own_ns = p->actor.state == ACTOR_DEAD ? p->born_ns : p->actor.wake_ns;
        if (own_ns > w->now_ns)
            next_ns = min_u64(next_ns, own_ns);
    }
    return next_ns;
}

bool world_turn(struct world *w, bool is_over)
{
    w->turns++;
    w->now_ns += TURN_NS;
    uint32_t first = dice(w, w->process_count);
    for (uint32_t i = 0; i < w->process_count; i++) {
        uint32_t process = (first + i) % w->process_count;
        if (process == ROLE_SUPERVISOR) {
            keeper_turn(&w->keeper);
            if (!load_turn(w->load, 0, is_over))
                return false;
            if (i == 0)
                return true;
        } else if (can_turn(w, process)) {
            turn_process(w, process);
            return true;
        }
    }
    w->now_ns = next_moment(w);
    return true;
}

static const enum counter_id pools[] = {COUNTER_FRONT_PROMPT_PAGES_FREE, COUNTER_FRONT_REQUEST_SLOTS_FREE,
                                        COUNTER_SCHED_BLOCKS_FREE, COUNTER_SCHED_LOG_PAGES_FREE,
                                        COUNTER_SCHED_SEQUENCE_SLOTS_FREE};

bool world_is_at_rest(const struct world *w, char *text, size_t size)
{
    const struct plan *plan = &w->plan;
    const uint32_t wanted[] = {plan->prompt_pages, plan->requests_max, plan->num_blocks, plan->log_pages,
                               plan->sequences_max};
    for (size_t i = 0; i < ARRAY_COUNT(pools); i++) {
        uint64_t is = counter_read(arena_process(&w->arena, counter_table[pools[i]].role, 0), pools[i]);
        if (is == wanted[i])
            continue;
        snprintf(text, size, "%s is %llu, not %u", counter_table[pools[i]].name, (unsigned long long)is, wanted[i]);
        return false;
    }
    snprintf(text, size, "%u connections are kept", w->keeper.table.kept_count);
    return w->keeper.table.kept_count == 0;
}

/* ---- beginning and end ---- */

static void choose_plan(struct world *w, size_t vocab_bytes)
{
    static const char *const policies[] = {"even", "default", "batch", "decode-cap", "throttle", "chunked"};
    struct plan *plan = &w->plan;
    *plan = plan_for_tests();
    tiny_vocab_plan(plan, vocab_bytes);
    plan->backend = BACKEND_TIMED;
    plan->io = IO_EPOLL;
    plan->log_level = LOG_ERROR;
    plan->stage_count = 1 + dice(w, LAYERS);
    plan->window = plan->stage_count + dice(w, 3);
    plan->block_size = 8u << dice(w, 2);
    plan->kv_block_bytes = plan->block_size * sizeof(uint64_t);
    plan->layers = LAYERS;
    for (uint32_t i = 0, layer = 0; i < plan->stage_count; layer += plan->slices[i++].layer_count)
        plan->slices[i] = (struct plan_slice){
            .first_layer = layer, .layer_count = i + 1 < plan->stage_count ? 1 : LAYERS - layer, .weights_bytes = 4096};
    plan->num_blocks = (512 + dice(w, 1500)) / plan->block_size;
    plan->max_num_seqs = 2 + dice(w, 8);
    plan->max_num_batched_tokens = 16 + dice(w, 80);
    plan->enable_prefix_caching = dice(w, 3) != 0;
    plan->body_bytes_max = LOAD_BODY_BYTES;
    plan->connections_max = 6 + dice(w, 12);
    plan->requests_max = 40 + dice(w, 14); /* never the reason for a 429 */
    plan->prompt_pages = 2 * plan->requests_max;
    plan->sequences_max = 8 + dice(w, 24);
    plan->log_pages = 24 + dice(w, 100);
    plan->request_timeout_ms = plan->header_timeout_ms = 3600000;
    plan->timing.stage_count = plan->stage_count;
    for (uint32_t i = 0; i < plan->stage_count; i++) {
        plan->timing.stages[i] = (struct timing_stage){.base_us = 20 + dice(w, 50), .row_us = 2, .token_us = 1};
        plan->timing.links[i] = (struct timing_link){.latency_us = dice(w, 20), .token_us = 0.1};
    }
    plan->timing.return_us = dice(w, 10);
    plan->timing.plan_us = dice(w, 10);
    plan->speculate =
        w->seed != 0 && dice(w, 2) > 0 ? SPECULATE_NGRAM : SPECULATE_NONE; /* not where answers are learned */
    strcpy(plan->policy, policies[dice(w, ARRAY_COUNT(policies))]);
}

static void listen_on(struct world *w)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(w->folder, "/tmp/evenflow-simulate-XXXXXX");
    check(mkdtemp(w->folder) != NULL);
    snprintf(w->socket, sizeof(w->socket), "%s/s", w->folder);
    strcpy(address.sun_path, w->socket);
    w->arena.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(bind(w->arena.listener, (struct sockaddr *)&address, sizeof(address)) == 0);
    check(listen(w->arena.listener, 128) == 0);
}

void world_open(struct world *w, uint64_t seed, struct load *load, uint32_t deaths)
{
    static void *vocab;
    static size_t vocab_bytes;
    if (vocab == NULL)
        vocab = tiny_vocab_build(&vocab_bytes);
    *w = (struct world){.seed = seed, .random = seed * 0x9E3779B97F4A7C15ull, .now_ns = START_NS, .load = load};
    world_at_hand = w;
    fault_hook = world_point;
    log_open("simulate", LOG_ERROR);
    choose_plan(w, vocab_bytes);
    arena_in_memory(&w->arena, &w->plan);
    munmap(w->arena.regions[REGION_VOCAB], w->arena.layout.region_bytes[REGION_VOCAB]);
    w->arena.regions[REGION_VOCAB] = vocab;
    munmap(w->arena.regions[REGION_IO], w->arena.layout.region_bytes[REGION_IO]);
    w->arena.regions[REGION_IO] = NULL;
    w->process_count = ROLE_STAGE + w->plan.stage_count;
    for (uint32_t process = 0; process < w->process_count; process++)
        w->arena.bells[process] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    arena_sup(&w->arena)->ready = arena_sup(&w->arena)->has_started = 1;
    listen_on(w);
    keeper_open(&w->keeper, w->plan.connections_max);
    for (uint32_t process = 1; process < w->process_count; process++)
        give_birth(w, process);
    load_begin(load, w->socket);
    w->deaths_left = deaths;
    plan_death(w);
}

void world_close(struct world *w)
{
    for (uint32_t process = 1; process < w->process_count; process++) {
        actor_clear(&w->processes[process].actor);
        munmap(w->processes[process].actor.stack, (size_t)1 << 20);
        free(w->processes[process].actor.memory);
        free(w->processes[process].actor.files);
    }
    for (uint32_t process = 0; process < w->process_count; process++)
        close(w->arena.bells[process]);
    keeper_forget(&w->keeper);
    free(w->keeper.table.slots);
    close(w->arena.listener);
    unlink(w->socket);
    rmdir(w->folder);
    w->arena.regions[REGION_VOCAB] = NULL;
    if (w->arena.regions[REGION_IO_PAST] != NULL)
        munmap(w->arena.regions[REGION_IO_PAST], w->arena.layout.region_bytes[REGION_IO]);
    w->arena.regions[REGION_IO_PAST] = NULL;
    arena_in_memory_free(&w->arena);
    world_at_hand = NULL;
}
