/* tiny_model.h - small random GGUF models, made in memory: one field changed at a time, tests see what is refused. */
#ifndef EVENFLOW_TESTS_TINY_MODEL_H
#define EVENFLOW_TESTS_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "stages/gguf.h"

struct tiny_model {
    const char *architecture;
    uint32_t layers, width, heads, kv_heads, head_dim, feed_forward, vocab_size, context_length;
    uint32_t rope_count;
    double rope_base;
    bool tied;
    bool has_rope_factors;
    /* GGUF types: attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, embedding, head */
    uint32_t types[9];
    const char *scaling_type;   /* NULL: no such key; else by a factor of 4, from 64 positions */
    uint32_t window;            /* 0: no such key */
    uint32_t window_pattern;    /* likewise */
    bool has_biases;            /* of Q, K, V and down */
    const char *extra_key;      /* NULL: none; else a float of 30 */
    uint32_t expert_count;      /* 0: no such key */
    const char *missing_key;    /* left out */
    const char *missing_tensor; /* left out */
    const char *extra_tensor;   /* put in, 16 floats */
    const char *longer_tensor;  /* has one row more than it should */
    const char *flipped_tensor; /* the lowest bit of its last byte is flipped */
    bool has_tokenizer;         /* the first vocab_size tokens of tiny_vocab.h's: an engine can serve it */
    uint32_t seed;
};

/* Three layers of width 64, 4 heads over 2, vocabulary of 160, Q4_1 with a tied Q8_0 embedding. */
struct tiny_model tiny_model(void);

/* Every architecture, every type of tensor, heads of their own and tied ones, odd widths, windows, scaled positions. */
#define TINY_MODEL_VARIANTS 10u
struct tiny_model tiny_model_variant(uint32_t variant);

/* What its architecture has beside the common part. */
bool tiny_model_has_qk_norm(const struct tiny_model *tiny);
bool tiny_model_has_post_norms(const struct tiny_model *tiny);

/* The file, in a memfd that the caller closes. */
int tiny_model_fd(const struct tiny_model *tiny);
/* The same as a file. */
void tiny_model_write(const struct tiny_model *tiny, const char *path);
/* The same, opened; the test fails when it cannot be. */
struct gguf *tiny_model_open(const struct tiny_model *tiny);

#endif
