/* arena.h - all of shared memory as one process sees it, and how it came by it.
 *
 * Used by: every process; tests and the simulator, which take plain memory instead (arena_in_memory).
 * Owns: the mappings, for the life of the process.
 * Blocks: arena_inherit() and arena_take_over(), until their birth messages are there.
 *
 * A process is born with one connected socket (descriptor number in its argument). Over it the supervisor sends first what
 * the process may see: read-only descriptors for what others write, by role the model file; then what it does its work with: a
 * writable descriptor for its own regions, doorbells, the listening socket. The process maps the regions and closes their
 * descriptors. A spare gets the second message when it is to take over from a process that has died, or never.
 */
#ifndef EVENFLOW_ARENA_H
#define EVENFLOW_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/bell.h"
#include "ipc/layout.h"
#include "ipc/plan.h"

struct arena {
    const struct plan *plan;
    struct layout layout;
    uint8_t *regions[REGION_COUNT]; /* NULL: not this process's business */
    enum role role;
    uint32_t index;           /* of the stage; 0 for the others */
    uint32_t epoch;           /* 1 in the first life; 0: its life has not begun */
    bool is_spare;            /* it prepares, and waits for its turn */
    int birth_socket;         /* until its life has begun */
    int bells[PROCESSES_MAX]; /* eventfds by process number; -1: not needed */
    int listener;             /* front: the listening socket; else -1 */
    int listener_tcp;         /* front: another, if there is one; else -1 */
    int keys;                 /* front: a file of API keys, one a line, for that one; else -1 */
    int model;                /* stages: the model file, read-only; else -1 */
    int record;               /* sched: where to record to; else -1 */
    int keep;                 /* front: its end of the keep sockets (keep.h); else -1 */
    int ledger;               /* front: the list of requests (ledger.h), if one is kept; else -1 */
    int weights;              /* stages: descriptor of their weights region while it is to be loaded; else -1 */
    int device_kv;            /* stages on devices: memory there for their KV; else -1 */
    int device_weights;       /* likewise for their weights */
    bool is_device_loaded;    /* likewise: a predecessor has put them there */
    int device_in;  /* likewise for the edge that their input comes through, where it is EDGE_DEVICE; else -1 */
    int device_out; /* likewise for the one that they write */
};

/* Number of a process: supervisor 0, front 1, sched 2, stage i 3 + i. */
static inline uint32_t process_number(enum role role, uint32_t index)
{
    return role == ROLE_STAGE ? ROLE_STAGE + index : (uint32_t)role;
}

/* Takes the first birth message from the socket and maps everything in it. 0, or -errno with err. */
int arena_inherit(struct arena *arena, int birth_socket, struct err *err);
/* Takes the second one: this is the process now. A spare says before that it is prepared. 0, or -errno with err. */
int arena_take_over(struct arena *arena, struct err *err);

/* For tests and the simulator: every region in this process's own memory, zeroed, heads written. */
void arena_in_memory(struct arena *arena, const struct plan *plan);
void arena_in_memory_free(struct arena *arena);

/* The bell of this process, and somebody else's. */
struct bell arena_bell(const struct arena *arena);
struct bell_pull arena_pull(const struct arena *arena, enum role role, uint32_t index);

/* What the supervisor wants (acquire; pairs with the release in supervisor_command()). */
enum command arena_command(const struct arena *arena);

/* What the supervisor says of the processes: all are ready; id and restarts of one, by process number. For people. */
bool arena_is_ready(const struct arena *arena);
/* Every process has been ready once: requests are accepted, and wait for one that is not. */
bool arena_has_started(const struct arena *arena);
/* Front may die without a loss: the supervisor of now has all of its connections. */
bool arena_is_kept(const struct arena *arena);
uint32_t arena_process_id(const struct arena *arena, uint32_t number);
uint32_t arena_process_restarts(const struct arena *arena, uint32_t number);
uint32_t arena_process_spare(const struct arena *arena, uint32_t number); /* 0: none is prepared */

/* The last life of a stage that died of a step, and that step; false: none has, or sched has dealt with it. For sched. */
bool arena_suspect(const struct arena *arena, uint32_t stage, uint64_t *life, uint64_t *step);
/* sched: it has dealt with that life; the supervisor is told. */
void arena_deal_with(const struct arena *arena, uint32_t stage, uint64_t life);

uint32_t arena_standby(const struct arena *arena); /* its process; 0: there is none */

/* A copy of death k, of those that have been so far (the last DEATHS_KEPT are there). For people. */
uint64_t arena_death_count(const struct arena *arena);
struct death_shm arena_death(const struct arena *arena, uint64_t k);

/* Tells the supervisor and everybody who looks what this process is up to. */
void arena_set_state(const struct arena *arena, enum process_state state);
enum process_state arena_state(const struct arena *arena, enum role role, uint32_t index);

/* ---- where things are; all of it plain address arithmetic ---- */

struct process_shm *arena_process(const struct arena *arena, enum role role, uint32_t index);

static inline struct sup_shm *arena_sup(const struct arena *arena)
{
    return (struct sup_shm *)(void *)arena->regions[REGION_SUP];
}

static inline struct request_shm *arena_request(const struct arena *arena, uint32_t slot)
{
    return (struct request_shm *)(void *)(arena->regions[REGION_FRONT] + arena->layout.front_requests) + slot;
}

/* (prompt_pages_per_request) page numbers of a request's prompt. */
static inline uint32_t *arena_prompt_list(const struct arena *arena, uint32_t slot)
{
    uint32_t *lists = (uint32_t *)(void *)(arena->regions[REGION_FRONT] + arena->layout.front_prompt_lists);
    return lists + (size_t)slot * arena->layout.prompt_pages_per_request;
}

/* (PAGE_TOKENS) ids. */
static inline uint32_t *arena_prompt_page(const struct arena *arena, uint32_t page)
{
    uint32_t *pages = (uint32_t *)(void *)(arena->regions[REGION_FRONT] + arena->layout.front_prompt_pages);
    return pages + (size_t)page * PAGE_TOKENS;
}

/* The stage-time model that the scheduler goes by. W: sched   R: front, for people */
static inline struct timing *arena_timing(const struct arena *arena)
{
    return (struct timing *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_timing);
}

/* (stage_count) */
static inline struct stage_fit_shm *arena_fits(const struct arena *arena)
{
    return (struct stage_fit_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_fits);
}

/* (stage_count) */
static inline struct stage_account_shm *arena_accounts(const struct arena *arena)
{
    return (struct stage_account_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_accounts);
}

static inline struct answer_shm *arena_answer(const struct arena *arena, uint32_t request_slot)
{
    return (struct answer_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_answers) + request_slot;
}

static inline struct sequence_shm *arena_sequence(const struct arena *arena, uint32_t sequence)
{
    return (struct sequence_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_sequences) + sequence;
}

static inline struct mark_shm *arena_mark(const struct arena *arena, uint32_t sequence)
{
    return (struct mark_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_marks) + sequence;
}

/* (blocks_per_sequence) block numbers. */
static inline uint32_t *arena_block_table(const struct arena *arena, uint32_t sequence)
{
    uint32_t *tables = (uint32_t *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_block_tables);
    return tables + (size_t)sequence * arena->layout.blocks_per_sequence;
}

/* (blocks_per_sequence) hashes of the full blocks of what is known of a sequence. */
static inline struct block_hash_shm *arena_block_hashes(const struct arena *arena, uint32_t sequence)
{
    struct block_hash_shm *hashes =
        (struct block_hash_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_block_hashes);
    return hashes + (size_t)sequence * arena->layout.blocks_per_sequence;
}

/* (log_pages_per_sequence) page numbers of a sequence's token log. */
static inline uint32_t *arena_log_list(const struct arena *arena, uint32_t sequence)
{
    uint32_t *lists = (uint32_t *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_log_lists);
    return lists + (size_t)sequence * arena->layout.log_pages_per_sequence;
}

/* (LOG_PAGE_TOKENS) entries. */
static inline struct token_shm *arena_log_page(const struct arena *arena, uint32_t page)
{
    struct token_shm *pages =
        (struct token_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_log_pages);
    return pages + (size_t)page * LOG_PAGE_TOKENS;
}

/* The record of a step; whether it is that step's is for step_is_published() to say. */
static inline struct step_shm *arena_step(const struct arena *arena, uint64_t step)
{
    size_t slot = step & (arena->layout.step_slots - 1);
    return (struct step_shm *)(void *)(arena->regions[REGION_SCHED] + arena->layout.sched_steps +
                                       slot * arena->layout.step_stride);
}

static inline struct row_shm *arena_step_rows(const struct arena *arena, const struct step_shm *step)
{
    return (struct row_shm *)(void *)((uint8_t *)(uintptr_t)step + arena->layout.step_rows);
}

static inline uint32_t *arena_step_tokens(const struct arena *arena, const struct step_shm *step)
{
    return (uint32_t *)(void *)((uint8_t *)(uintptr_t)step + arena->layout.step_tokens);
}

static inline uint32_t *arena_step_blocks(const struct arena *arena, const struct step_shm *step)
{
    return (uint32_t *)(void *)((uint8_t *)(uintptr_t)step + arena->layout.step_blocks);
}

/* (max_num_batched_tokens, width) floats: what stage `stage` hands to the next one for a step. */
static inline float *arena_activations(const struct arena *arena, uint32_t stage, uint64_t step)
{
    size_t slot = step & (arena->layout.activation_slots - 1);
    return (float *)(void *)(arena->regions[REGION_STAGE + stage] + arena->layout.stage_activations +
                             slot * arena->layout.activation_stride);
}

/* (step_results_max) entries: what the last stage returns for a step. */
static inline struct token_shm *arena_results(const struct arena *arena, uint64_t step)
{
    size_t slot = step & (arena->layout.step_slots - 1);
    return (struct token_shm *)(void *)(arena->regions[REGION_STAGE + arena->plan->stage_count - 1] +
                                        arena->layout.stage_results + slot * arena->layout.result_stride);
}

/* (step_results_max, LOGPROBS_MAX): the most probable tokens beside each result, where they were asked for. */
static inline struct top_shm *arena_tops(const struct arena *arena, uint64_t step)
{
    size_t slot = step & (arena->layout.step_slots - 1);
    return (struct top_shm *)(void *)(arena->regions[REGION_STAGE + arena->plan->stage_count - 1] +
                                      arena->layout.stage_tops + slot * arena->layout.tops_stride);
}

/* Of a stage's connections to its neighbours, where there are any. */
static inline struct session_shm *arena_session(const struct arena *arena, uint32_t stage)
{
    return (struct session_shm *)(void *)(arena->regions[REGION_STAGE + stage] + arena->layout.stage_session);
}

/* What stage `stage` measured of a step; whether it is that step's is for its field to say. */
static inline struct step_time_shm *arena_step_time(const struct arena *arena, uint32_t stage, uint64_t step)
{
    struct step_time_shm *times =
        (struct step_time_shm *)(void *)(arena->regions[REGION_STAGE + stage] + arena->layout.stage_times);
    return times + (step & (arena->layout.step_slots - 1));
}

/* ---- rings, from both ends ---- */

void arena_ring_front_to_sched_producer(const struct arena *arena, struct ring_producer *ring);
void arena_ring_front_to_sched_consumer(const struct arena *arena, struct ring_consumer *ring);
void arena_ring_sched_to_front_producer(const struct arena *arena, struct ring_producer *ring);
void arena_ring_sched_to_front_consumer(const struct arena *arena, struct ring_consumer *ring);
/* From stage i to stage i + 1, or from the last stage to sched. */
void arena_ring_stage_producer(const struct arena *arena, uint32_t stage, struct ring_producer *ring);
void arena_ring_stage_consumer(const struct arena *arena, uint32_t stage, struct ring_consumer *ring);
/* (stage_ring_slots): what stands in it, for ring_look(). */
const struct ring_slot_shm *arena_stage_messages(const struct arena *arena, uint32_t stage);

#endif
