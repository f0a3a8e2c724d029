/* main_bench_journal.c - what surviving costs while nobody dies: make bench-journal.
 *
 * The functions by which the scheduler, the front and stages write down what a successor goes by, on memory laid out as an
 * engine's. Two threads take turns as scheduler and front do, so that a log's lines travel between cores as they do
 * there. Cycle counters stand around SEQUENCES calls of each; every round has all of them, and the median of the rounds counts,
 * less that of calls of nothing.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/conns.h"
#include "ipc/clock.h"
#include "ipc/journal.h"
#include "ipc/ledger.h"
#include "ipc/stats.h"
#include "ipc/trace.h"

#define SEQUENCES     256u
#define ROUNDS        400u
#define PROMPT        64u
#define ANSWER_TOKENS 128u /* over which what is done once for a request is spread */
#define STAGES        2u

static struct plan plan = {.magic = PLAN_MAGIC,
                           .layout_hash = LAYOUT_HASH,
                           .layers = STAGES,
                           .width = 64,
                           .heads = 1,
                           .kv_heads = 1,
                           .head_dim = 64,
                           .vocab_size = 50000,
                           .stage_count = STAGES,
                           .threads_per_stage = 1,
                           .lone_threads = 1,
                           .window = STAGES,
                           .slices = {{.layer_count = 1}, {.first_layer = 1, .layer_count = 1}},
                           .max_model_len = 1024,
                           .max_num_seqs = SEQUENCES,
                           .max_num_batched_tokens = SEQUENCES,
                           .block_size = 16,
                           .num_blocks = SEQUENCES * 64,
                           .requests_max = SEQUENCES,
                           .sequences_max = SEQUENCES,
                           .prompt_pages = SEQUENCES,
                           .log_pages = SEQUENCES * 16,
                           .connections_max = SEQUENCES,
                           .body_bytes_max = 1024};
static struct arena arena;
static struct ledger ledger;
static uint32_t ids[PROMPT];

/* The compiler has to come by it. */
static void use(uint64_t value)
{
    __asm__ __volatile__("" : : "r"(value) : "memory");
}

static uint64_t cycles(void)
{
#ifdef __x86_64__
    return __builtin_ia32_rdtsc();
#else
    return clock_ns();
#endif
}

/* ---- the parts: what is done for sequence (request, connection) i in a round ---- */

static void do_nothing(uint32_t i)
{
    use(i);
}

static void append_token(uint32_t i)
{
    const struct token_shm token = {.token = i};
    journal_log_append(&arena, i, &token, NULL);
}

static void read_token(uint32_t i)
{
    const struct answer_shm *answer = arena_answer(&arena, i);
    const struct sequence_shm *sequence = arena_sequence(&arena, i);
    use(journal_answer_generation(answer) + (uint32_t)journal_sequence_state(sequence));
    use(journal_log_entry(&arena, i, journal_log_committed(sequence) - 1)->token);
}

static void send_bytes(uint32_t i)
{
    struct conn_shm *conn = conns_slot(arena.regions[REGION_CONNS], &plan, i);
    check(conn_end_send(conn, conn_begin_send(conn), 200));
}

static void check_epochs(uint32_t i)
{
    const struct region_head *sched = (const struct region_head *)(const void *)arena.regions[REGION_SCHED];
    use(i + sched->epoch + arena_sup(&arena)->head.epoch + (uint32_t)arena_command(&arena));
}

/* Of the scheduler, for a step. */
static void note_plan(uint32_t i)
{
    struct process_shm *process = arena_process(&arena, ROLE_SCHED, 0);
    trace_note(&process->trace, TRACE_PLAN, i);
    trace_note(&process->trace, TRACE_RESULTS, i);
    progress_add(process, 2);
}

/* Of every stage, for a step. */
static void note_step(uint32_t i)
{
    for (uint32_t stage = 0; stage < STAGES; stage++) {
        struct process_shm *process = arena_process(&arena, ROLE_STAGE, stage);
        trace_note(&process->trace, TRACE_BEGIN, i);
        trace_note(&process->trace, TRACE_END, i);
        process_note(&process->step, i);
        progress_add(process, 1);
    }
}

/* Of front, for a request: prompt, list of what is not finished, state. */
static void accept_request(uint32_t i)
{
    struct request_shm *request = arena_request(&arena, i);
    journal_request_set_state(request, REQUEST_FREE);
    journal_request_renew(request);
    journal_prompt_write(&arena, i, 0, PROMPT, ids);
    ledger_put(&ledger, i, request, false, "");
    journal_request_set_state(request, REQUEST_ACCEPTED);
    ledger_clear(&ledger, i);
    journal_request_set_state(request, REQUEST_DRAINED);
}

/* Of the scheduler, for a request. */
static void accept_sequence(uint32_t i)
{
    struct sequence_shm *sequence = arena_sequence(&arena, i);
    journal_prompt_read(&arena, i, 0, PROMPT, ids);
    journal_sequence_set_state(sequence, SEQUENCE_WAITING);
    journal_answer_set(arena_answer(&arena, i), arena_request(&arena, i)->generation);
    journal_sequence_set_state(sequence, SEQUENCE_RUNNING);
    journal_order();
    journal_sequence_set_state(sequence, SEQUENCE_DONE);
    journal_sequence_set_state(sequence, SEQUENCE_FREE);
}

enum per { PER_NOTHING, PER_TOKEN, PER_STEP, PER_REQUEST };
static struct part {
    const char *name;
    enum per per;
    bool is_front;
    void (*run)(uint32_t i);
    uint64_t cycles[ROUNDS];
} parts[] = {
    {"nothing", PER_NOTHING, false, do_nothing, {0}},
    {"sched: an entry of a token log, committed", PER_TOKEN, false, append_token, {0}},
    {"sched: flight recorder, progress", PER_STEP, false, note_plan, {0}},
    {"stages: flight recorder, progress (two stages)", PER_STEP, false, note_step, {0}},
    {"sched: a request's sequence from first to last", PER_REQUEST, false, accept_sequence, {0}},
    {"nothing", PER_NOTHING, true, do_nothing, {0}},
    {"front: that entry, read", PER_TOKEN, true, read_token, {0}},
    {"front: a send noted, and its result", PER_TOKEN, true, send_bytes, {0}},
    {"front: epochs and orders looked at", PER_TOKEN, true, check_epochs, {0}},
    {"front: a request's journal and ledger", PER_REQUEST, true, accept_request, {0}},
};

static _Atomic uint32_t turn; /* round * 2: the scheduler's; + 1: front's */

static void take_turns(bool is_front)
{
    for (uint32_t round = 0; round < ROUNDS; round++) {
        while (atomic_load(&turn) != 2 * round + is_front) {
        }
        for (size_t p = 0; p < ARRAY_COUNT(parts); p++) {
            if (parts[p].is_front != is_front)
                continue;
            uint64_t begin = cycles();
            for (uint32_t i = 0; i < SEQUENCES; i++)
                parts[p].run(i);
            parts[p].cycles[round] = cycles() - begin;
        }
        atomic_store(&turn, 2 * round + is_front + 1);
    }
}

static void *be_front(void *pointer)
{
    (void)pointer;
    take_turns(true);
    return NULL;
}

static void set_up(void)
{
    struct err err = {0};
    strcpy(plan.policy, "even");
    arena_in_memory(&arena, &plan);
    if (arena.regions[REGION_CONNS] == NULL)
        arena.regions[REGION_CONNS] = base_alloc(conns_region_bytes(&plan));
    char folder[] = "/tmp/evenflow-bench-XXXXXX", path[64];
    check(mkdtemp(folder) != NULL);
    int fd = ledger_open(folder, &err);
    check(fd >= 0 && ledger_begin(fd, SEQUENCES, &err) == 0 && ledger_map(&ledger, fd, SEQUENCES, &err) == 0);
    snprintf(path, sizeof(path), "%s/requests", folder);
    unlink(path);
    rmdir(folder);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        *arena_request(&arena, i) =
            (struct request_shm){.generation = 1, .prompt_tokens = PROMPT, .max_tokens = 800, .choices = 1};
        arena_prompt_list(&arena, i)[0] = i;
        arena_sequence(&arena, i)->request = i;
        for (uint32_t page = 0; page < 16; page++)
            arena_log_list(&arena, i)[page] = i * 16 + page;
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    static const char *const per_names[] = {"", "token", "step", "request"};
    double nothing[2] = {0}, token = 0, step = 0, request = 0;
    pthread_t front;
    set_up();
    uint64_t begin_ns = clock_ns(), begin = cycles();
    check(pthread_create(&front, NULL, be_front, NULL) == 0);
    take_turns(false);
    pthread_join(front, NULL);
    double ns_per_cycle = (double)(clock_ns() - begin_ns) / (double)(cycles() - begin);
    printf("%-50s %8s %8s\n", "of an engine's processors, while nobody dies", "cycles", "ns");
    for (size_t p = 0; p < ARRAY_COUNT(parts); p++) {
        struct part *part = &parts[p];
        qsort(part->cycles, ROUNDS, sizeof(part->cycles[0]), compare);
        double each = (double)part->cycles[ROUNDS / 2] / SEQUENCES;
        if (part->per == PER_NOTHING) {
            nothing[part->is_front] = each;
            continue;
        }
        each -= nothing[part->is_front];
        *(part->per == PER_TOKEN ? &token : part->per == PER_STEP ? &step : &request) += each;
        printf("%-50s %8.0f %8.1f  a %s\n", part->name, each, each * ns_per_cycle, per_names[part->per]);
    }
    for (uint32_t batch = 1; batch <= 32; batch *= 32) {
        double all = token + step / batch + request / ANSWER_TOKENS;
        printf("%-43s %6u %8.0f %8.1f  a token\n", "all, answers of 128 tokens, steps of", batch, all,
               all * ns_per_cycle);
    }
    return 0;
}
