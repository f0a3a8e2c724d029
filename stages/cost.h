/* cost.h - what a layer and the head cost on this machine, and the split of the layers that follows from it.
 *
 * Used by: the launcher, at start.   Owns: nothing.   cost_measure() takes about 0.1 s (more with the
 * reference kernels) and some memory, which it gives back.
 *
 * Times are of this machine at this moment, so two starts may split differently. Results do not: a token's bits do not
 * depend on the split.
 */
#ifndef EVENFLOW_COST_H
#define EVENFLOW_COST_H

#include <stdint.h>

#include "ipc/base.h"
#include "kernels/kernels.h"
#include "stages/gguf.h"
#include "stages/model.h"

struct cost {
    uint64_t layer_ns; /* one layer, for a step of `rows` sequences that generate one token each */
    uint64_t head_ns;  /* final norm and head, for the same */
    uint64_t embed_ns; /* embedding, likewise */
};

/* Times the model's first layer and a part of its head with their real weights, read from memory rather than from a cache
 * as while serving: the shortest of several runs, because what disturbs a run only makes it longer.
 * rows: 1..FORWARD_HEAD_ROWS. */
int cost_measure(struct cost *cost, const struct gguf *gguf, const struct model_desc *desc,
                 const struct kernels *kernels, uint32_t rows, struct err *err);

/* Layers per stage so that the slowest stage is as fast as possible; every stage has at least one. The first stage
 * carries the embedding, the last one the head. Among equal splits, later stages are relieved first.
 * stage_count: 1..layers. */
void cost_split(const struct cost *cost, uint32_t layers, uint32_t stage_count, uint32_t counts[]);

#endif
