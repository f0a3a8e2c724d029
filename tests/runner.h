/* runner.h - a whole model in one process, cut into slices or not: generation without an engine. */
#ifndef EVENFLOW_TESTS_RUNNER_H
#define EVENFLOW_TESTS_RUNNER_H

#include "stages/forward.h"
#include "stages/forward_cuda.h"

#define RUNNER_STAGES_MAX   8u
#define RUNNER_REQUESTS_MAX 64u
#define RUNNER_TOKENS_MAX   1024u /* of a sequence */
#define RUNNER_STEP_MAX     2048u /* tokens of a step */

struct runner {
    const struct kernels *kernels;
    struct team *team;
    struct team *lone_team; /* of runner_lend() */
    uint32_t asked;         /* how often one could have put it to work */
    struct model_desc desc;
    uint32_t stage_count;
    uint32_t block_size;
    enum kv_type kv_type;
    uint32_t blocks_per_sequence;
    struct model_slice slices[RUNNER_STAGES_MAX];
    struct forward stages[RUNNER_STAGES_MAX];
    struct cuda *cuda; /* NULL: on the processor; else forward_cuda in place of forward */
    struct forward_cuda on_device[RUNNER_STAGES_MAX];
    void *weights[RUNNER_STAGES_MAX];
    uint8_t *kv[RUNNER_STAGES_MAX];
    float *activations[RUNNER_STAGES_MAX];
    struct token_shm *results;
    struct top_shm *tops;
    uint32_t *blocks;
};

struct runner_request {
    uint32_t tokens[RUNNER_TOKENS_MAX]; /* the prompt, and what was generated behind it */
    uint32_t prompt_count;
    uint32_t generate; /* tokens to generate; 0 with is_score */
    bool is_bare;      /* tokens are all that is asked for: no log-probabilities, no hashes */
    bool is_score;     /* results of every prompt token but the last, against the next one */
    struct sample_params params;
    const struct token_shm *guesses; /* drafts: of the results; NULL: none. One in seven is made wrong */
    uint32_t drafts_max;             /* beside one known token, with guesses */
    uint32_t drafted, accepted;
    struct token_shm results[RUNNER_TOKENS_MAX]; /* entry i: of generated token i, or of prompt token i + 1 */
    uint32_t result_count;
};

/* isa NULL: the best. Layers are spread evenly over the stages, which share a team of so many threads. Fails the test if it
 * cannot. */
void runner_open(struct runner *runner, const struct gguf *gguf, const char *isa, uint32_t stage_count,
                 uint32_t block_size, enum kv_type kv_type, uint32_t threads);
/* All stages on that device, which is the caller's; what they compute is recorded unless runner_records says otherwise. */
extern bool runner_records;
void runner_open_cuda(struct runner *runner, const struct gguf *gguf, struct cuda *cuda, uint32_t stage_count,
                      uint32_t block_size);
/* Every other layer is computed by another team, of so many threads. On the processor. */
void runner_lend(struct runner *runner, uint32_t threads);
void runner_close(struct runner *runner);

/* All requests together, prompts in chunks of `chunk` tokens; request i joins `stagger` steps after request i - 1. */
void runner_run(struct runner *runner, struct runner_request *requests, uint32_t count, uint32_t chunk,
                uint32_t stagger);

#endif
