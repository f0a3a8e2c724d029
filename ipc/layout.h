/* layout.h - the map of shared memory: which regions exist, who writes them, what is where.
 *
 * Used by: every process.   Owns: nothing; the supervisor holds the memory.   Never blocks.
 *
 * One region, one writer; everybody else maps it read-only:
 *
 *   region     writer      readers              content
 *   plan       launcher    all                  struct plan; sealed
 *   vocab      launcher    front, last stage    tokenizer tables (engine/tok.h; the last stage: pieces.h alone); sealed
 *   sup        supervisor  all                  struct sup_shm: commands, the table of processes
 *   front      front       sched, last stage    process block, requests, prompt pages, ring front -> sched
 *   conns      front       front's successor    connection buffers: the only shared memory that holds text
 *   io         front, and   front's successor    what the kernel says of front's operations, see engine/io.h; fresh memory for
 *              kernel                           every life of front, which also sees (io past) what the life before left
 *   sched      sched       front, stages        process block, stage-time model, accounts of the stages' time, answers,
 *                                               sequences, block tables, token logs, step table, ring sched -> front
 *   stage i    stage i     neighbours, sched    process block, times of steps, ring to the next, activations out, results (last
 *                                               stage)
 *   edge i     stage i     stage i + 1          in place of those activations, where both are on CUDA devices: see EDGE_DEVICE;
 *                          (of EDGE_NCCL: -)    with EDGE_NCCL its content is carried from there into the reader's own memory
 *   kv i       stage i     -                    KV blocks of the slice
 *   weights i  stage i     its successors       packed weights of the slice; sealed once loaded
 *
 * kv and weights of a stage on a CUDA device lie in the device's memory, an edge in that of its reader's (EDGE_NCCL: of its
 * writer's): the supervisor holds descriptors of it like any other, and only stages can map them.
 *
 * Regions are the truth; rings only say where to look. Offsets follow from the plan (layout_compute) and from nothing
 * else. All offsets are in bytes from the start of the region. Words of two writers are never within 128 bytes.
 */
#ifndef EVENFLOW_LAYOUT_H
#define EVENFLOW_LAYOUT_H

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/plan.h"
#include "ipc/ring.h"
#include "ipc/session.h"
#include "ipc/stats.h"
#include "ipc/trace.h"
#include "ipc/words.h"

#define REGION_MAGIC 0x3130474552465645ull /* "EVFREG01" */
#define LAYOUT_HASH  0x0000000000000022ull /* raised by hand with every change of a shared struct */

enum role { ROLE_SUPERVISOR, ROLE_FRONT, ROLE_SCHED, ROLE_STAGE, ROLE_COUNT };

enum region_id {
    REGION_PLAN,
    REGION_VOCAB,
    REGION_SUP,
    REGION_FRONT,
    REGION_CONNS,
    REGION_IO,
    REGION_IO_PAST, /* the REGION_IO of the life before; not there in the first one */
    REGION_SCHED,
    REGION_STAGE,                            /* + stage index */
    REGION_EDGE = REGION_STAGE + STAGES_MAX, /* + index of the stage that writes */
    REGION_KV = REGION_EDGE + STAGES_MAX,    /* + stage index */
    REGION_WEIGHTS = REGION_KV + STAGES_MAX, /* + stage index */
    REGION_COUNT = REGION_WEIGHTS + STAGES_MAX,
};

/* First in every region of a process (sup, front, sched, stage); the others hold their content from offset 0. */
struct region_head {
    uint64_t magic;       /* W: supervisor at creation   R: all */
    uint64_t layout_hash; /* likewise */
    uint64_t bytes;       /* likewise */
    uint32_t id;          /* likewise */
    uint32_t epoch;       /* likewise; W: supervisor before it starts a successor of the writer */
    uint8_t pad[96];
};
static_assert(sizeof(struct region_head) == 128, "shared");

enum process_state {
    PROCESS_STARTING, /* exec'ed, not yet able to work */
    PROCESS_READY,    /* does its work */
    PROCESS_DRAINED,  /* front: was told to drain and holds no request any more */
    PROCESS_FINISHED, /* sched: was told to let finish what has begun, and it has */
};

/* First after the head in the region of front, sched and every stage. */
struct process_shm {
    alignas(128) _Atomic uint32_t sleeping; /* W: this process, see bell.h   R: whoever rings its bell */
    alignas(128) _Atomic uint32_t state;    /* W: this process, release      R: supervisor, front (status) */
    _Atomic uint64_t progress;              /* W: this process, relaxed; steps or events done   R: supervisor, status */
    _Atomic uint64_t counters[COUNTERS_MAX]; /* W: this process, relaxed     R: front (metrics); see stats.h */
    alignas(
        128) _Atomic uint64_t consumed; /* W: this process: its position in its input ring   R: that ring's producer */
    alignas(128) _Atomic uint64_t consumed_second; /* likewise, for a process with two input rings (sched: results) */
    /* For the supervisor, which asks whether there is work, and why a process died: */
    alignas(128) _Atomic uint64_t step; /* W: this process, relaxed: the last step that it has published */
    _Atomic uint64_t told;              /* W: front, sched, relaxed: messages to the other so far */
    _Atomic uint64_t predicted_us;      /* W: stages, relaxed: of the step at hand */
    _Atomic uint64_t weights_on_device; /* W: stages on devices   R: supervisor; relaxed: 1 once they are complete */
    /* W: sched, release: of each stage the last life that died of a step and has been dealt with (struct suspect_shm)
     * R: supervisor, acquire */
    _Atomic uint64_t dealt_with[STAGES_MAX];
    struct trace_shm trace;
    struct words_shm words;
    uint8_t pad[96];
};

enum command {
    COMMAND_RUN,    /* serve */
    COMMAND_DRAIN,  /* take no new requests, finish the others */
    COMMAND_STOP,   /* leave with status 0 */
    COMMAND_FINISH, /* sched: requests of which nothing was computed wait; the others serve */
};

enum death_kind {
    DEATH_OUTSIDE, /* somebody ended it */
    DEATH_FAULT,   /* its own instruction, or a check() that failed */
    DEATH_HUNG,    /* the supervisor ended it, because it did nothing about its work */
    DEATH_LEFT,    /* it left by itself, with an error */
};

/* The last deaths, for people. */
#define DEATHS_KEPT 16u
struct death_shm {
    uint64_t at_s;   /* W: supervisor (all), before the count   R: front (status); wall clock */
    uint32_t number; /* of the process */
    uint32_t pid;
    uint32_t kind; /* enum death_kind */
    uint32_t signal;
    uint64_t step; /* the one at hand; 0: none */
    char text[WORDS_TEXT_MAX];
};
static_assert(sizeof(struct death_shm) == 128, "shared");

/* What a stage died of: sched looks when its bell rings. The stage's next life begins when sched has dealt with it. */
struct suspect_shm {
    _Atomic uint64_t life; /* W: supervisor, release: the last that died of a step; 0: none   R: sched, acquire */
    _Atomic uint64_t step; /* W: supervisor, before the life: the one that was at hand   R: sched */
};
static_assert(sizeof(struct suspect_shm) == 16, "shared");

struct process_entry_shm {
    _Atomic uint32_t pid;      /* W: supervisor   R: front (status) */
    _Atomic uint32_t restarts; /* likewise */
    _Atomic uint32_t spare;    /* likewise: process that is prepared to be the next life; 0: none is */
    uint32_t role;             /* once */
    uint32_t index;            /* once */
};

#define PROCESSES_MAX (3u + STAGES_MAX)

/* First in the region io. A front that dies before is_begun has not taken in all that its forerunner left: the next one gets
 * the same io past again, beside fresh memory of its own. */
struct io_head_shm {
    uint32_t is_begun; /* W: front, before its first operation   R: supervisor, after front's death */
};
static_assert(sizeof(struct io_head_shm) == 4, "shared");

#define IO_SUBMISSIONS_MAX      1024u
#define IO_CALLS_PER_CONNECTION 2u /* receiving, sending */
#define IO_CALL_BYTES           128u

struct sup_shm {
    struct region_head head;
    alignas(128) _Atomic uint32_t command; /* W: supervisor, release   R: all, acquire, whenever they wake */
    _Atomic uint32_t ready;                /* W: supervisor: 1 while every process is PROCESS_READY   R: front */
    _Atomic uint32_t has_started;          /* W: supervisor: 1 once every process has been   R: front */
    uint32_t process_count;                /* once */
    _Atomic uint32_t kept; /* W: supervisor: its life (head.epoch), once it has all of front's connections   R: tools */
    _Atomic uint32_t standby; /* W: supervisor, release: which standby counts   R: standbys, acquire */
    alignas(128) struct process_entry_shm processes[PROCESSES_MAX];
    alignas(128) struct suspect_shm suspects[STAGES_MAX];
    alignas(128) _Atomic uint64_t
        death_count; /* W: supervisor, release   R: front, acquire; death k at k % DEATHS_KEPT */
    struct death_shm deaths[DEATHS_KEPT];
};

/* ---- requests: front writes (journal.h has the accessors) ---- */

enum request_state {
    REQUEST_FREE,     /* nothing here */
    REQUEST_ACCEPTED, /* complete and immutable: the journal holds it, sched will run it */
    REQUEST_DRAINED,  /* the client has its answer (or is gone): sched may forget its sequences */
};

#define LOGPROBS_MAX   20u   /* most probable tokens that can be asked for beside each token */
#define LOGIT_BIAS_MAX 1024u /* entries of a request's logit_bias */

/* Words of a request's grammar: an automaton (automaton.h). */
#define GRAMMAR_WORDS_MAX 131072u
/* What its prompt pages hold behind the prompt's ids: pairs (token, bits of a float), then the grammar. */
#define PROMPT_MORE_WORDS_MAX (2 * LOGIT_BIAS_MAX + GRAMMAR_WORDS_MAX)

enum request_flag {
    REQUEST_IGNORE_EOS = 1 << 0,  /* the model's end tokens do not end it */
    REQUEST_LOGITS_HASH = 1 << 1, /* hash of the row of logits with every token */
    REQUEST_LOGPROB = 1 << 2,     /* log-probability of every token */
    REQUEST_SCORE = 1 << 3, /* the log holds entry i for prompt token i + 1, and then those of the answer, if any */
};

struct request_shm {
    alignas(64) _Atomic uint32_t state; /* W: front, release   R: sched, acquire: everything below it */
    _Atomic uint32_t cancelled;         /* W: front: 1 when the client is gone   R: sched */
    _Atomic uint32_t stopped;           /* W: front: bit c when a stop string has ended choice c   R: sched */
    uint32_t generation;                /* W: front before ACCEPTED; grows with every use of the slot, never 0 */
    uint32_t connection;
    uint32_t prompt;    /* of a client's list of prompts: which one */
    uint64_t order;     /* acceptance number, from 1; first come, first served follows it */
    uint64_t id;        /* random bits of the response id */
    uint64_t created_s; /* wall clock at acceptance: "created" */
    uint64_t seed;      /* given, or drawn at acceptance */
    int32_t priority;
    uint32_t prompt_tokens;
    uint32_t max_tokens;
    uint32_t min_tokens;
    uint32_t choices;         /* n */
    uint32_t flags;           /* enum request_flag */
    float temperature;        /* 0: greedy */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    uint32_t top_k;           /* 0: off */
    float presence_penalty;   /* 0: off */
    float frequency_penalty;  /* 0: off */
    float repetition_penalty; /* 1: off */
    uint32_t bias_count;      /* pairs (token, bits of a float) behind the prompt's ids, in the same pages */
    uint32_t top_logprobs;    /* of the most probable tokens, with every token; 0: none */
    uint32_t stop_token_count;
    uint32_t stop_tokens[STOP_TOKENS_MAX];
    uint32_t grammar_words; /* behind the biases: what the answer has to keep to; 0: nothing */
    uint32_t previous; /* slot of the request of the prompt before, accepted before this one; of the first: nothing */
};
static_assert(sizeof(struct request_shm) == 192, "shared");
static_assert(CHOICES_MAX <= 32, "a bit for each choice in `stopped`");

/* ---- sequences: sched writes ---- */

enum sequence_state {
    SEQUENCE_FREE,    /* nothing here */
    SEQUENCE_WAITING, /* known, holds no blocks: new or preempted */
    SEQUENCE_RUNNING, /* holds blocks */
    SEQUENCE_DONE,    /* finished; its token log stays until the request is DRAINED */
};

enum finish_reason {
    FINISH_NONE,
    FINISH_LENGTH, /* max_tokens or the model's limit */
    FINISH_STOP,   /* an end token or a stop token */
    FINISH_ABORT,  /* the client is gone */
    FINISH_ERROR,  /* makes a stage fail; see engine/suspect.h */
};

struct sequence_shm {
    alignas(64) _Atomic uint32_t state; /* W: sched, release   R: front, acquire */
    _Atomic uint32_t committed;         /* W: sched, release: entries of the token log that exist   R: front, acquire */
    uint32_t generation;                /* grows with every use of the slot */
    uint32_t request;                   /* slot of its request */
    uint32_t request_generation;
    uint32_t choice;
    uint32_t finish_reason; /* W: sched before DONE */
    uint32_t prompt_tokens;
    uint32_t computed;    /* tokens whose KV is computed or planned in a step in flight */
    uint32_t block_count; /* entries of its block table */
    uint32_t log_page_count;
    uint32_t preemptions;
    uint32_t cached_tokens; /* prompt tokens found in the prefix cache at admission */
    /* For a successor, which takes back what a step did that was never published (low halves of step numbers): */
    uint32_t admitted_step;   /* in which it began to run */
    uint32_t planned_step;    /* of its last row */
    uint32_t computed_before; /* `computed` without that row */
};
static_assert(sizeof(struct sequence_shm) == 64, "shared");

/* W: sched   R: its successor. Of a sequence that may be what a stage died of; see engine/suspect.h. */
struct mark_shm {
    uint32_t until; /* tokens that it has to be computed to, to be cleared; 0: it is no suspect */
    uint32_t from;  /* before it: steps from this one (its low half) on are planned since */
};
static_assert(sizeof(struct mark_shm) == 8, "shared");

/* What sched knows of a request slot: where its sequences are. */
struct answer_shm {
    _Atomic uint32_t generation; /* W: sched, release: the request's generation it has taken in   R: front, acquire */
    uint32_t sequence_count;
    uint32_t sequences[CHOICES_MAX];
    uint32_t pad[14];
};
static_assert(sizeof(struct answer_shm) == 128, "shared");

/* Names the prefix that ends with a block; see engine/prefix.h. */
struct block_hash_shm {
    uint64_t low, high;
};
static_assert(sizeof(struct block_hash_shm) == 16, "shared");

enum token_flag {
    TOKEN_LAST = 1 << 0, /* the answer's grammar lets nothing follow: it ends here */
};

/* One token: an entry of a token log, and what the last stage returns for a row. */
struct token_shm {
    uint32_t token;
    uint32_t top_token; /* the most probable one, where log-probabilities are asked for; else the token itself */
    float logprob;      /* natural log, of `token`, before temperature; 0 unless asked for */
    float top_logprob;
    uint64_t logits_hash; /* 0 unless asked for */
    uint32_t flags;       /* enum token_flag */
    uint32_t pad;
};
static_assert(sizeof(struct token_shm) == 32, "shared");

/* One of the most probable tokens at a place, the first one first. Of a result, or, in pages of the same pool, of a log
 * entry. */
struct top_shm {
    uint32_t token;
    float logprob;
};
static_assert(sizeof(struct top_shm) == 8, "shared");

/* Lists of so many of them in a page of the log pool; a list lies in one page. */
#define TOPS_PER_PAGE(count) ((uint32_t)(LOG_PAGE_TOKENS * sizeof(struct token_shm) / sizeof(struct top_shm)) / (count))

/* ---- steps: sched writes (steps.h has the accessors) ---- */

enum row_flag {
    ROW_SAMPLE = 1 << 0, /* its last token gives a new one; without ROW_SCORE, so does each that has a result */
    ROW_SCORE = 1 << 1,  /* its tokens are scored against the ones behind them; with ROW_SAMPLE all but the last */
    ROW_LOGITS_HASH = 1 << 2,
    ROW_LOGPROB = 1 << 3,
    ROW_NO_END = 1 << 4, /* no token is drawn that would end the answer: min_tokens are not there yet */
};

/* One sequence's share of a step: token_count tokens at positions first_pos.. With ROW_SAMPLE alone, the last result_count - 1
 * of them are *drafts*: guesses at what comes next (engine/draft.h). The result at a draft's place means something only if
 * every guess up to there is what came. */
struct row_shm {
    uint32_t sequence;
    uint32_t sequence_generation;
    uint32_t first_pos;
    uint32_t token_count;
    uint32_t token_first;  /* index of its first token in the step's tokens */
    uint32_t source_row;   /* with source_step */
    uint64_t source_step;  /* 0: tokens are literal; else the only token is what row source_row of that step returned */
    uint32_t block_first;  /* index of its block table in the step's blocks */
    uint32_t block_count;  /* blocks that hold positions 0..first_pos + token_count - 1 */
    uint32_t result_first; /* index of its first entry in the step's results */
    uint32_t result_count; /* of its last tokens: with ROW_SCORE all, with ROW_SAMPLE alone one and drafts, else none */
    uint32_t flags;        /* enum row_flag */
    uint32_t score_next;   /* ROW_SCORE alone: the token behind the row's last one */
    uint32_t choice;
    uint32_t top_k;
    uint64_t seed; /* the sampled token is a function of (logits, seed, choice, its position) */
    float temperature;
    float top_p;
    float min_p;
    /* What changes the logits before a token is drawn: see sample.h. History and biases are found by these, in the prompt pages
     * of `request` and in the log of `sequence`, where they do not change while the row's result is of use to anybody. */
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint32_t request;
    uint32_t prompt_tokens;
    uint32_t bias_count;
    uint32_t top_logprobs;  /* entries of the result's list of most probable tokens */
    uint32_t grammar_words; /* what the token has to keep to; found as history and biases are. 0: nothing */
    uint32_t log_first;     /* entry of the log that holds the token behind the prompt */
};
static_assert(sizeof(struct row_shm) == 120, "shared");

struct step_shm {
    alignas(
        128) _Atomic uint64_t commit; /* W: sched, release: step + 1 when the record is complete   R: stages, acquire */
    uint64_t step;                    /* from 1, only grows; slot = step & (step_slots - 1) */
    uint32_t row_count;
    uint32_t token_count;
    uint32_t block_count;
    uint32_t result_count;
    uint64_t planned_us;                     /* sched's time when it was planned */
    alignas(128) _Atomic uint32_t cancelled; /* W: sched: 1 = its results will not be used   R: stages */
    uint32_t attempts[STAGES_MAX];           /* W: sched: how often each stage has been given it again */
    uint8_t pad[124];
};

/* What a stage measured of a step: slot as in the step table. Monotonic clock. It is there when the results are: each stage
 * writes its own before its message, and the messages follow one another. */
struct step_time_shm {
    uint64_t step;     /* W: stage   R: sched, once the step's results are back */
    uint64_t input_ns; /* likewise: when its input was there */
    uint64_t begin_ns; /* likewise: when the stage began with it */
    uint64_t end_ns;   /* likewise: when its output was there */
    uint64_t cpu_ns;   /* likewise: of that time, on a processor */
    uint64_t lent_ns;  /* likewise: of cpu_ns, while other stages' cores helped */
    uint64_t cost_ns;  /* likewise: what it would have been without their help; 0: nobody knows */
    uint64_t pad;
};
static_assert(sizeof(struct step_time_shm) == 64, "shared");

/* A message that a step's activations (or, from the last stage, its results) are there. */
struct msg_step {
    uint64_t step;
    uint32_t count;   /* tokens, or result entries */
    uint32_t epoch;   /* of the sender */
    uint64_t sent_ns; /* monotonic clock: when it was there for the receiver */
    uint64_t pad[4];
};
static_assert(sizeof(struct msg_step) == RING_PAYLOAD_BYTES, "shared");

enum msg_request_kind {
    MSG_REQUEST_ACCEPTED = 1, /* front -> sched: look at this slot */
    MSG_REQUEST_CANCELLED,    /* front -> sched: the client is gone */
    MSG_REQUEST_STOPPED,      /* front -> sched: stop strings have ended some of its choices */
    MSG_REQUEST_DRAINED,      /* front -> sched: forget it */
    MSG_REQUEST_TOKENS,       /* sched -> front: its log has grown, or it is done */
    MSG_REQUEST_FORGOTTEN,    /* sched -> front: the sequences are gone, the slot may be used again */
};

struct msg_request {
    uint32_t kind; /* enum msg_request_kind */
    uint32_t slot;
    uint32_t generation;
    uint32_t pad;
    uint64_t more[5];
};
static_assert(sizeof(struct msg_request) == RING_PAYLOAD_BYTES, "shared");

/* Offsets and counts that follow from the plan. */
struct layout {
    size_t region_bytes[REGION_COUNT]; /* 0: no such region (stages beyond stage_count; KV and weights of timed ones) */

    /* front */
    size_t front_process, front_ring, front_requests, front_prompt_lists, front_prompt_pages;
    uint32_t prompt_pages_per_request;
    uint32_t front_ring_slots;

    /* io: the rings of an io_uring and its submissions, or a record of every call (io_epoll.c) */
    size_t io_rings, io_submissions, io_calls;
    uint32_t io_completions_max, io_submissions_max;

    /* sched */
    size_t sched_process, sched_timing, sched_fits, sched_accounts, sched_ring, sched_answers, sched_sequences,
        sched_marks, sched_block_tables, sched_block_hashes, sched_log_lists, sched_log_pages;
    size_t sched_steps, step_stride, step_rows, step_tokens, step_blocks; /* the last three from the start of a step */
    uint32_t blocks_per_sequence, log_pages_per_sequence;
    uint32_t sched_ring_slots;
    uint32_t step_slots; /* power of two, >= 2 * window */
    uint32_t step_rows_max, step_tokens_max, step_blocks_max, step_results_max;

    /* stage (the same for each) */
    size_t stage_process, stage_session, stage_times, stage_ring, stage_activations, activation_stride, stage_results,
        result_stride, stage_tops, tops_stride;
    size_t edge_activations; /* behind a word for each slot */
    uint32_t stage_ring_slots;
    uint32_t activation_slots; /* = step_slots: buffer of a step is step & (slots - 1) */
};

void layout_compute(struct layout *layout, const struct plan *plan);

/* "front", "stage 1": for people. Static storage per role; stage texts hold the index. */
const char *role_name(enum role role);

#endif
