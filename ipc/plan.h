/* plan.h - every number the engine is built from, decided once by the launcher and then sealed.
 *
 * Used by: every process, read only.   Owns: nothing.   Never blocks.
 *
 * The launcher reads the options and the model's header, fills this struct, writes it into a memfd, seals it and starts
 * the supervisor with it. From then on it never changes: region sizes, offsets and limits all follow from it
 * (layout.h), so every process computes the same layout by itself.
 */
#ifndef EVENFLOW_PLAN_H
#define EVENFLOW_PLAN_H

#include <assert.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/timing.h"

#define PLAN_MAGIC         0x31304e414c504645ull /* "EFPLAN01" */
#define STAGES_MAX         32u
#define CHOICES_MAX        16u    /* sequences of one request (the API's n) */
#define PROMPTS_MAX        128u   /* of one body of the API: each is a request of its own in the journal */
#define END_TOKENS_MAX     16u    /* tokens that end an answer: the model's own */
#define STOP_TOKENS_MAX    16u    /* stop_token_ids of one request */
#define API_KEYS_BYTES_MAX 16384u /* of the file of API keys */
#define CONNECTIONS_MAX    16000u /* what can be in flight on them fits an io_uring's completion queue */
#define NAME_MAX_BYTES     256u
#define PATH_MAX_BYTES     1024u
#define PAGE_TOKENS        256u /* token ids in one page of the prompt pool */
#define LOG_PAGE_TOKENS    64u  /* entries in one page of the token log pool */

enum backend {
    BACKEND_MODEL, /* stages compute the model */
    BACKEND_TIMED, /* stages take the described times and make tokens by a formula (stages/timed.h) */
};

/* How the front asks the kernel. */
enum io_choice { IO_ANY, IO_URING, IO_EPOLL };

/* Guesses at an answer's next tokens, computed along with what has to be (engine/draft.h). */
enum speculation { SPECULATE_NONE, SPECULATE_NGRAM };

/* What a stage computes on: the processor, or CUDA device number device - 1. */
#define DEVICE_CPU  0u
#define DEVICES_MAX 64u

/* What memory of CUDA devices lives with. */
enum device_memory {
    DEVICE_MEMORY_VMM, /* its descriptors, which the supervisor holds */
    DEVICE_MEMORY_IPC, /* a process that holds it, and which ends with the last supervisor; descriptors are of its names */
};

/* How a stage hands its activations to the next one. */
enum edge {
    EDGE_HOST, /* through its region of shared memory */
    EDGE_DEVICE, /* through memory of the next one's CUDA device: what it enqueues there waits for what this one enqueues */
    EDGE_NCCL, /* through memory of its own CUDA device, from where NCCL carries it to the next one's */
};

struct plan_slice {
    uint32_t first_layer;
    uint32_t layer_count;
    uint32_t device;        /* DEVICE_CPU, or of a CUDA device: its memory holds the slice's weights and KV */
    uint32_t edge;          /* enum edge; of the last one: EDGE_HOST */
    uint64_t weights_bytes; /* packed weights of this slice, embedding or head included */
};

struct plan {
    uint64_t magic;
    uint64_t layout_hash; /* LAYOUT_HASH of the build that wrote it */

    /* model */
    uint32_t layers;
    uint32_t width; /* embedding length: floats of one row of activations */
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t vocab_size;
    uint32_t context_length; /* of the model */
    uint32_t end_token_count;
    uint32_t end_tokens[END_TOKENS_MAX];

    /* pipeline */
    uint32_t backend; /* enum backend */
    uint32_t stage_count;
    uint32_t window;  /* steps in flight at most */
    uint32_t spin_ns; /* how long a process looks again before it sleeps; 0 when processes outnumber cores */
    uint32_t pin;     /* 1: every thread of every stage is pinned to an allowed core of its own (there are enough) */
    uint32_t threads_per_stage;
    uint32_t lone_threads; /* while no other stage has anything to do; threads_per_stage: no more than ever */
    uint32_t pipeline_pad;
    uint64_t device_page_bytes; /* memory on devices comes in multiples of it; 0: no stage is on one */
    struct plan_slice slices[STAGES_MAX];

    /* limits */
    uint32_t max_model_len;
    uint32_t max_num_seqs;
    uint32_t max_num_batched_tokens;
    uint32_t long_prefill_token_threshold; /* 0: none */
    uint32_t long_prefill_token_threshold_adaptive;
    uint32_t enable_chunked_prefill;
    uint32_t enable_prefix_caching;
    uint32_t uses_priority;    /* 0: first come, first served; 1: smaller priority first */
    uint32_t reserve_full_isl; /* admission needs blocks for all that is known of a sequence */
    uint32_t watermark_blocks; /* kept free when a sequence is admitted beside running ones */
    uint32_t block_size;       /* positions in a KV block */
    uint32_t num_blocks;       /* usable KV blocks */
    uint32_t kv_type;          /* enum kv_type of the kernels: how K and V are kept */
    uint64_t kv_block_bytes;   /* one block of one layer */
    uint32_t requests_max;     /* request slots: running, waiting and being drained */
    uint32_t sequences_max;    /* sequence slots */
    uint32_t prompt_pages;     /* pages of PAGE_TOKENS ids */
    uint32_t log_pages;        /* pages of LOG_PAGE_TOKENS entries */
    uint32_t connections_max;
    uint32_t io;             /* enum io_choice */
    uint32_t body_bytes_max; /* of one HTTP request */

    /* scheduling by time; see timing.h */
    struct timing timing;   /* what is known at start; stage_count 0: nothing. Timed stages take these times */
    uint32_t freeze_timing; /* 1: it stays as it is, whatever the stages measure */
    uint32_t itl_slo_ms;    /* time between two tokens of an answer that is aimed at; 0: none */
    uint32_t ttft_slo_ms;   /* time to the first token that is aimed at; 0: none */

    /* times, milliseconds */
    uint32_t request_timeout_ms; /* a connection without progress for so long is dropped */
    uint32_t header_timeout_ms;  /* a header section that is not complete so long after its first byte is refused */
    uint32_t drain_timeout_ms;   /* after SIGTERM; 0: no limit */

    uint32_t log_level;     /* enum log_level */
    uint32_t spares;        /* of each process: prepared to take over; 0 or 1 */
    uint32_t speculate;     /* enum speculation */
    uint32_t device_memory; /* enum device_memory */
    uint32_t cuda_graphs;   /* 1: stages on devices record the kernels of their steps */
    uint64_t vocab_bytes;
    uint64_t prefix_key[2]; /* of the hashes of KV blocks; drawn at start */
    uint64_t created_s;     /* wall clock at start: "created" of the model */

    char isa[16];
    char policy[32];
    char version[64];
    char fingerprint[512]; /* build, instruction path, backend of each layer, KV type: what results are identical for */
    char served_model_name[NAME_MAX_BYTES];
    char model_path[PATH_MAX_BYTES];
    char weights_cache[PATH_MAX_BYTES]; /* a file of packed weights to copy from; "": none */
    char socket_path[PATH_MAX_BYTES];
    char allowed_origins[PATH_MAX_BYTES]; /* of pages that may ask over TCP: separated by commas, or "*" */
    char program_dir[PATH_MAX_BYTES];     /* where evenflow-front and its siblings are */
};

static_assert(sizeof(struct plan) % 8 == 0, "the plan is shared by processes");

/* 0, or -EINVAL with err naming the field: every number within its limits and consistent with the others. */
int plan_validate(const struct plan *plan, struct err *err);

/* Whether a stage begins with a step as soon as there is a record of it: the first one, and those whose device waits for their
 * input. The others are woken by it. */
bool plan_begins_with_record(const struct plan *plan, uint32_t stage);

/* Whether an edge of this stage's is EDGE_NCCL. */
bool plan_uses_nccl(const struct plan *plan, uint32_t stage);

/* Whether some stage computes on this device; on any. And "cpu" or "cuda:1". */
bool plan_uses_device(const struct plan *plan, uint32_t device);
bool plan_uses_devices(const struct plan *plan);
const char *plan_device_name(uint32_t device, char name[16]);
const char *plan_edge_name(uint32_t edge); /* "host" */

#endif
