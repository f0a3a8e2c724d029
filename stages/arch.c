#include "stages/arch.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- gemma3 ---- */

/* Of every `period` layers the last attends to all positions, the others to a window, with a rotary base of their own
 * and unscaled positions. The embedding is scaled; the 27B model scales its scores by the width instead of the head. */
#define GEMMA3_PERIOD        6u
#define GEMMA3_WINDOW_BASE   10000.0
#define GEMMA3_LAYERS_OF_27B 62u

static bool gemma3_has_window(const struct gguf *gguf, uint32_t layer)
{
    uint64_t period = GEMMA3_PERIOD;
    struct gguf_array pattern;
    if (gguf_get_array(gguf, "gemma3.attention.sliding_window_pattern", &pattern))
        return layer < pattern.count && gguf_array_i64(&pattern, layer) != 0;
    gguf_get_u64(gguf, "gemma3.attention.sliding_window_pattern", &period);
    return period == 0 || layer % period + 1 < period;
}

static int refine_gemma3(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    double base = GEMMA3_WINDOW_BASE;
    gguf_get_f64(gguf, "gemma3.rope.freq_base_swa", &base);
    if (!(base >= 1 && base <= 1e12))
        return err_set(err, -EBADMSG, "gemma3.rope.freq_base_swa is %g", base);
    model_rope_plain(&desc->ropes[1], base, desc->head_dim);
    for (uint32_t i = 0; i < desc->layers; i++) {
        bool has_window = desc->layer[i].window != MODEL_NO_WINDOW && gemma3_has_window(gguf, i);
        desc->layer[i].rope = has_window;
        if (!has_window)
            desc->layer[i].window = MODEL_NO_WINDOW;
    }
    desc->embedding_scale = sqrtf((float)desc->width);
    if (desc->layers == GEMMA3_LAYERS_OF_27B)
        desc->score_scale = 1.0f / sqrtf((float)(desc->width / desc->heads));
    return 0;
}

/* ---- the table ---- */

static const struct arch archs[] = {
    {.name = "llama", .has_interleaved_pairs = true}, /* Llama 2 and 3, Mistral, SmolLM2, TinyLlama */
    {.name = "qwen2"},                                /* with biases; those are read wherever a file has them */
    {.name = "qwen3", .has_qk_norm = true},
    {.name = "gemma3", .has_qk_norm = true, .has_post_norms = true, .gate = MODEL_GELU, .refine = refine_gemma3},
};

const struct arch *arch_find(const char *name, size_t size)
{
    for (size_t i = 0; i < ARRAY_COUNT(archs); i++)
        if (strlen(archs[i].name) == size && memcmp(archs[i].name, name, size) == 0)
            return &archs[i];
    return NULL;
}

void arch_names(char *text, size_t room)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < ARRAY_COUNT(archs) && used < room; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%s", i > 0 ? ", " : "", archs[i].name);
}
