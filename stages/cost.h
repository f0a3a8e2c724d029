/* cost.h - what a layer, the head and the embedding cost on this machine, on its processor and on its devices; the split of
 * the layers and the start-up table of stage times that follow from it.
 *
 * Used by: the launcher, at start.   Owns: nothing.   cost_measure() takes about 0.2 s (more with the
 * reference kernels) and some memory, which it gives back.
 *
 * Times are of this machine at this moment, so two starts may split differently. Results do not: a token's bits do not
 * depend on the split, unless some layers are on a device and some on the processor.
 */
#ifndef EVENFLOW_COST_H
#define EVENFLOW_COST_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/timing.h"
#include "kernels/cuda.h"
#include "kernels/kernels.h"
#include "stages/gguf.h"
#include "stages/model.h"

struct cost {
    struct timing_stage layer, head, embedding;
    struct timing_stage stage; /* what a step costs beside those: on a device, to be given it */
};

/* Times the model's first layer and a part of its head with their real weights, read from memory rather than from a cache
 * as while serving: steps of one row and of many, with little and much context, and chunks of a prompt. Of each the
 * shortest time on a processor out of several rounds. */
int cost_measure(struct cost *cost, const struct gguf *gguf, const struct model_desc *desc,
                 const struct kernels *kernels, enum kv_type kv_type, struct err *err);

/* The same of a device, whose memory it uses: the caller closes it then. A whole layer and the whole head, on weights of any
 * bits. The embedding is a row of memory there, and counts as nothing. About 0.3 s. */
int cost_measure_cuda(struct cost *cost, struct cuda *cuda, const struct model_desc *desc,
                      const struct kernels *kernels, struct err *err);

/* A stage of so many layers; the first one carries the embedding, the last one the head and sampling. */
struct timing_stage cost_stage(const struct cost *cost, uint32_t layers, bool is_first, bool is_last);

/* The time of a usual step, 16 sequences that generate: what a split evens out. */
double cost_usual_us(const struct timing_stage *stage);

/* Layers per stage, each with costs of its own, so that the slowest stage is as fast as possible; every stage has at least
 * one. Among equal splits, later stages are relieved first. stage_count: 1..layers. */
void cost_split(const struct cost *const costs[], uint32_t layers, uint32_t stage_count, uint32_t counts[]);

#endif
