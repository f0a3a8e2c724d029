/* arch.h - the architectures that are computed: what each one's layer does beside what all of them share.
 *
 * Used by: model.c.   Owns: nothing.   Never blocks.
 *
 * All are RMSNorm, grouped-query attention with rotary positions, a gated feed-forward, residuals around both. A new one is
 * an entry of the table in arch.c, and, where its file's keys say more than the common ones, a function.
 */
#ifndef EVENFLOW_ARCH_H
#define EVENFLOW_ARCH_H

#include <stdbool.h>

#include "ipc/base.h"
#include "stages/gguf.h"
#include "stages/model.h"

struct arch {
    const char *name;           /* general.architecture, and what the keys of its numbers begin with */
    bool has_interleaved_pairs; /* the file's Q and K rows are ordered for rotary pairs (2i, 2i + 1) */
    bool has_qk_norm;           /* every head of Q and K is normed before it is rotated */
    bool has_post_norms;        /* what a branch adds to the residual is normed first */
    enum model_gate gate;
    /* What the table does not say, from the file: called last. NULL: nothing. */
    int (*refine)(struct model_desc *desc, const struct gguf *gguf, struct err *err);
};

const struct arch *arch_find(const char *name, size_t size); /* NULL: not computed */

/* "llama, qwen2, ...": for an error's text. */
void arch_names(char *text, size_t room);

#endif
