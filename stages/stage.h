/* stage.h - one stage of the pipeline: takes steps in order, computes its slice, hands the result on.
 *
 * Used by: evenflow-stage, tests (in plain memory).   Owns: its copies of a step record and what forward.h owns.
 * Blocks: stage_wait() only.
 *
 *   step table (sched) ──record──► every stage
 *   stage i-1: activations ──► read in place ── forward ──► written in place: activations (or results of the last)
 *              ring ──msg_step──► stage i ──msg_step──► stage i+1, or sched
 *
 * Between two stages on devices (EDGE_DEVICE) activations lie in the reader's device. There a stage puts a step into its
 * device's stream as soon as there is a record of it, behind a wait for a word beside the activations, which the device of the
 * stage before writes: no processor is on the way. Messages follow as for all others, and are what a stage goes by: it
 * finishes a step that the stage before has published. Where one device does not reach the other (EDGE_NCCL), activations lie
 * in the writer's, and carriers bring them to the reader's (carrier.h): a step is computed when its own have come.
 *
 * Steps are numbered from 1 without gaps and every stage publishes each exactly once, so message k of its ring (from 0)
 * is step k + 1: the ring itself says which step is next, in the first life and in every later one. Order within a step:
 * write KV, write output, push the message, release the input. Whoever dies in between leaves either the input or
 * the message, and computing a step again writes the same bits.
 */
#ifndef EVENFLOW_STAGE_H
#define EVENFLOW_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"
#include "ipc/bell.h"
#include "ipc/ring.h"
#include "stages/carrier.h"
#include "stages/forward.h"
#include "stages/forward_cuda.h"
#include "stages/gguf.h"
#include "stages/mask.h"
#include "stages/model.h"
#include "stages/timed.h"

struct stage {
    const struct arena *arena;
    uint32_t index;
    bool is_timed, is_on_device, is_last;
    struct model_desc desc;
    struct model_slice slice;
    struct forward forward;
    struct cuda cuda; /* with forward_cuda in place of forward, when the plan puts the slice on a device */
    struct forward_cuda forward_cuda;
    cuda_address edge_in, edge_out; /* memory of devices that its input comes through, its output goes to; 0: none */
    struct nccl nccl;               /* where it is needed, as these two are */
    struct carrier carriers[CARRIERS];
    bool begins_early;
    struct {
        uint64_t step; /* the last one that was begun before its input was said to be there */
        uint64_t at_ns;
    } begun;
    struct masker masker;    /* last stage: its answers may have to keep to grammars */
    struct timed timed;      /* in place of all of these, when the plan says so */
    struct ring_consumer in; /* not in stage 0, which looks at the step table */
    struct ring_producer out;
    struct bell bell;
    struct bell_pull next; /* the next stage, or sched */
    struct process_shm *process;
    uint64_t idle_since_ns; /* 0: not idle */

    /* The record of the step at hand: copied once, checked, then used. */
    struct forward_step step;
    uint32_t block_count;
    uint32_t result_count;
    struct row_shm *rows;       /* (step_rows_max) */
    uint32_t *tokens;           /* (step_tokens_max) */
    uint32_t *blocks;           /* (step_blocks_max) */
    uint32_t *history;          /* (max_model_len): tokens before the one that is drawn */
    struct adjust_bias *biases; /* (LOGIT_BIAS_MAX) */
    uint32_t ends[END_TOKENS_MAX + STOP_TOKENS_MAX];
};

/* Takes all memory, and needs nothing but what others write: a spare prepares so. A stage that computes checks the
 * model against the plan; when arena->weights is a descriptor, the weights are packed into their region, which is
 * then sealed against writing and mapped read-only; else they are there already. The file may be closed
 * afterwards. A timed stage looks at neither kernels nor file. 0, or -errno with err. */
int stage_init(struct stage *stage, struct arena *arena, const struct kernels *kernels, struct team *team,
               const struct gguf *gguf, struct err *err);

/* Its place in the pipeline is its own now: KV, rings, bells. */
void stage_begin(struct stage *stage);

/* In an engine's first life, joins its neighbours where that takes anything, and waits for it: that it can be done at all is
 * to be known at the start. Later their deaths are no reason to wait. 0, or -errno (logged). */
int stage_join(struct stage *stage);

/* One step, if there is one: 1 when it computed, 0 when there is nothing to do, -errno when a record or a message is
 * not what it can be (logged). */
int stage_do_work(struct stage *stage);

/* After a 0 of stage_do_work(): looks again for the plan's spin time (returning each time), then sleeps until its bell is
 * rung. */
void stage_wait(struct stage *stage);

/* Before it leaves: lets go of what its device waits for. */
void stage_end(struct stage *stage);

/* Gives everything back. For tests. */
void stage_free(struct stage *stage);

#endif
