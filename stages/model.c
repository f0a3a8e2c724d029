#include "stages/model.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stages/arch.h"

#define PIECE_ROWS 1024u /* of a matrix, packed between two words to an onlooker */

/* ---- description ---- */

static const char *const matrix_names[MODEL_MATRIX_COUNT] = {
    [MODEL_Q] = "attn_q",      [MODEL_K] = "attn_k",  [MODEL_V] = "attn_v",      [MODEL_OUT] = "attn_output",
    [MODEL_GATE] = "ffn_gate", [MODEL_UP] = "ffn_up", [MODEL_DOWN] = "ffn_down",
};

static uint32_t matrix_outputs(const struct model_desc *desc, enum model_matrix which)
{
    switch (which) {
    case MODEL_Q:
        return desc->heads * desc->head_dim;
    case MODEL_K:
    case MODEL_V:
        return desc->kv_heads * desc->head_dim;
    case MODEL_GATE:
    case MODEL_UP:
        return desc->feed_forward;
    default:
        return desc->width;
    }
}

static uint32_t matrix_inputs(const struct model_desc *desc, enum model_matrix which)
{
    switch (which) {
    case MODEL_OUT:
        return desc->heads * desc->head_dim;
    case MODEL_DOWN:
        return desc->feed_forward;
    default:
        return desc->width;
    }
}

/* Reads the numbers of one architecture: their keys begin with its name. */
struct reader {
    const struct gguf *gguf;
    const struct arch *arch;
    struct err *err;
    char key[128]; /* of the last number that was looked for */
};

static const char *key_of(struct reader *reader, const char *name)
{
    snprintf(reader->key, sizeof(reader->key), "%s.%s", reader->arch->name, name);
    return reader->key;
}

/* One number for all layers may stand in the file as an array of equal ones. */
static bool read_same_in_all(const struct gguf_array *array, uint64_t *value)
{
    if (array->count == 0 || array->element_type == GGUF_STRING || gguf_array_i64(array, 0) < 0)
        return false;
    for (uint64_t i = 1; i < array->count; i++)
        if (gguf_array_i64(array, i) != gguf_array_i64(array, 0))
            return false;
    *value = (uint64_t)gguf_array_i64(array, 0);
    return true;
}

/* A required number within its limits. */
static int get_number(struct reader *reader, const char *name, uint32_t min, uint32_t max, uint32_t *value)
{
    const char *key = key_of(reader, name);
    uint64_t read;
    struct gguf_array array;
    if (gguf_get_array(reader->gguf, key, &array)) {
        if (!read_same_in_all(&array, &read))
            return err_set(reader->err, -ENOTSUP, "%s differs from layer to layer, which this build does not compute",
                           key);
    } else if (!gguf_get_u64(reader->gguf, key, &read)) {
        return err_set(reader->err, -EBADMSG, "%s is missing or not a whole number", key);
    }
    if (read < min || read > max)
        return err_set(reader->err, -EBADMSG, "%s is %" PRIu64 "; from %u to %u are possible", key, read, min, max);
    *value = (uint32_t)read;
    return 0;
}

/* Like get_number(), but the file may leave it out. */
static int get_optional(struct reader *reader, const char *name, uint32_t min, uint32_t max, uint32_t otherwise,
                        uint32_t *value)
{
    *value = otherwise;
    return gguf_has(reader->gguf, key_of(reader, name)) ? get_number(reader, name, min, max, value) : 0;
}

static int get_float(struct reader *reader, const char *name, double min, double max, double otherwise, double *value)
{
    const char *key = key_of(reader, name);
    *value = otherwise;
    if (gguf_has(reader->gguf, key) && !gguf_get_f64(reader->gguf, key, value))
        return err_set(reader->err, -EBADMSG, "%s is not a number", key);
    if (!(*value >= min && *value <= max))
        return err_set(reader->err, -EBADMSG, "%s is %g", key, *value);
    return 0;
}

static int find_arch(struct reader *reader)
{
    struct gguf_string name;
    char names[128];
    if (!gguf_get_string(reader->gguf, "general.architecture", &name))
        return err_set(reader->err, -EBADMSG, "general.architecture is missing: not a language model");
    reader->arch = arch_find(name.data, name.size);
    arch_names(names, sizeof(names));
    if (reader->arch == NULL)
        return err_set(reader->err, -ENOTSUP, "architecture \"%.*s\": this build computes %s",
                       (int)min_u64(name.size, 64), name.data, names);
    return 0;
}

/* Keys under which files say that something more is to be computed. */
static int refuse_other_models(struct reader *reader)
{
    static const struct {
        const char *name, *what;
        double usual; /* besides 0: as if it were not there */
    } others[] = {
        {"expert_count", "mixtures of experts", 0},
        {"attn_logit_softcapping", "soft caps", 0},
        {"final_logit_softcapping", "soft caps", 0},
        {"attention.clamp_kqv", "clamped Q, K and V", 0},
        {"attention.scale", "another scale of attention", 0},
        {"attention.max_alibi_bias", "ALiBi", 0},
        {"attention.temperature_length", "scaled queries", 0},
        {"embedding_scale", "a scaled embedding", 1},
        {"residual_scale", "scaled residuals", 1},
        {"logit_scale", "scaled logits", 1},
    };
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        double value;
        const char *key = key_of(reader, others[i].name);
        if (gguf_get_f64(reader->gguf, key, &value) && value != 0 && value != others[i].usual)
            return err_set(reader->err, -ENOTSUP, "%s is %g: %s are not computed", key, value, others[i].what);
    }
    bool is_causal;
    if (gguf_get_bool(reader->gguf, key_of(reader, "attention.causal"), &is_causal) && !is_causal)
        return err_set(reader->err, -ENOTSUP, "%s is false: attention to later tokens is not computed", reader->key);
    return 0;
}

static int describe_heads(struct model_desc *desc, struct reader *reader)
{
    struct err *err = reader->err;
    const char *name = reader->arch->name;
    uint32_t value_length, rope_count;
    int ret = get_number(reader, "attention.head_count", 1, 1 << 10, &desc->heads);
    if (ret == 0)
        ret = get_optional(reader, "attention.head_count_kv", 1, 1 << 10, desc->heads, &desc->kv_heads);
    if (ret == 0 && desc->heads % desc->kv_heads != 0)
        ret = err_set(err, -EBADMSG, "%s.attention.head_count %u is not a multiple of head_count_kv %u", name,
                      desc->heads, desc->kv_heads);
    if (ret == 0 && !gguf_has(reader->gguf, key_of(reader, "attention.key_length")) && desc->width % desc->heads != 0)
        ret = err_set(err, -EBADMSG, "%s.embedding_length %u is not a multiple of head_count %u", name, desc->width,
                      desc->heads);
    if (ret == 0)
        ret = get_optional(reader, "attention.key_length", 1, 1 << 16, desc->width / desc->heads, &desc->head_dim);
    if (ret == 0)
        ret = get_optional(reader, "attention.value_length", 1, 1 << 16, desc->head_dim, &value_length);
    if (ret == 0)
        ret = get_optional(reader, "rope.dimension_count", 1, 1 << 16, desc->head_dim, &rope_count);
    if (ret < 0)
        return ret;
    if (desc->head_dim % 16 != 0 || desc->head_dim < 16 || desc->head_dim > 2 * MODEL_ROPE_PAIRS_MAX)
        return err_set(err, -ENOTSUP, "heads of %u numbers: multiples of 16 up to %u are computed", desc->head_dim,
                       2 * MODEL_ROPE_PAIRS_MAX);
    if (value_length != desc->head_dim)
        return err_set(err, -ENOTSUP, "%s.attention.value_length %u differs from key_length %u", name, value_length,
                       desc->head_dim);
    if (rope_count != desc->head_dim)
        return err_set(err, -ENOTSUP, "%s.rope.dimension_count %u differs from the head's %u", name, rope_count,
                       desc->head_dim);
    desc->score_scale = 1.0f / sqrtf((float)desc->head_dim);
    return 0;
}

static int describe_numbers(struct model_desc *desc, struct reader *reader)
{
    uint32_t window = 0;
    double eps;
    int ret = get_number(reader, "block_count", 1, MODEL_LAYERS_MAX, &desc->layers);
    if (ret == 0)
        ret = get_number(reader, "embedding_length", 16, 1 << 16, &desc->width);
    if (ret == 0)
        ret = get_number(reader, "feed_forward_length", 16, 1 << 18, &desc->feed_forward);
    if (ret == 0)
        ret = get_number(reader, "context_length", 1, 1 << 26, &desc->context_length);
    if (ret == 0)
        ret = describe_heads(desc, reader);
    if (ret == 0 && !gguf_has(reader->gguf, key_of(reader, "attention.layer_norm_rms_epsilon")))
        ret = err_set(reader->err, -EBADMSG, "%s is missing", reader->key);
    if (ret == 0)
        ret = get_float(reader, "attention.layer_norm_rms_epsilon", 0, 1, 0, &eps);
    if (ret == 0)
        ret = get_optional(reader, "attention.sliding_window", 0, 1 << 26, 0, &window);
    if (ret < 0)
        return ret;
    desc->norm_eps = (float)eps;
    desc->embedding_scale = 1;
    desc->gate = reader->arch->gate;
    desc->has_interleaved_pairs = reader->arch->has_interleaved_pairs;
    desc->has_qk_norm = reader->arch->has_qk_norm;
    desc->has_post_norms = reader->arch->has_post_norms;
    for (uint32_t layer = 0; layer < desc->layers; layer++)
        desc->layer[layer].window = window > 0 ? window : MODEL_NO_WINDOW;
    return 0;
}

/* The tensor of this name, of this shape (rows 1: a vector). */
static int find_tensor(const struct gguf *gguf, const char *name, uint32_t columns, uint32_t rows,
                       const struct gguf_tensor **tensor, struct err *err)
{
    *tensor = gguf_tensor_find(gguf, name);
    if (*tensor == NULL)
        return err_set(err, -EBADMSG, "tensor %s is missing", name);
    const uint64_t *ne = (*tensor)->ne;
    if (ne[0] != columns || ne[1] != rows || ne[2] != 1 || ne[3] != 1)
        return err_set(err, -EBADMSG,
                       "tensor %s is %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64 "; %u x %u is expected", name,
                       ne[0], ne[1], ne[2], ne[3], columns, rows);
    return 0;
}

static int find_matrix(const struct gguf *gguf, const char *name, uint32_t k, uint32_t n, enum matrix_form *form,
                       struct err *err)
{
    const struct gguf_tensor *tensor;
    int ret = find_tensor(gguf, name, k, n, &tensor, err);
    if (ret < 0)
        return ret;
    size_t row_bytes = gguf_row_bytes((enum gguf_type)tensor->type, k);
    if (!matrix_form_of((enum gguf_type)tensor->type, form) || row_bytes == 0 || tensor->data == NULL ||
        tensor->bytes != row_bytes * n)
        return err_set(err, -ENOTSUP,
                       "tensor %s is of type %s; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and "
                       "IQ4_NL are computed",
                       name, gguf_type_name(tensor->type));
    return 0;
}

static int find_vector(const struct gguf *gguf, const char *name, uint32_t n, struct err *err)
{
    const struct gguf_tensor *tensor;
    int ret = find_tensor(gguf, name, n, 1, &tensor, err);
    if (ret == 0 && (tensor->type != GGUF_TYPE_F32 || tensor->data == NULL))
        ret = err_set(err, -ENOTSUP, "tensor %s is of type %s; F32 is expected", name, gguf_type_name(tensor->type));
    return ret;
}

#define TENSOR_NAME_MAX 64

static const char *layer_tensor_name(char *text, uint32_t layer, const char *name)
{
    snprintf(text, TENSOR_NAME_MAX, "blk.%u.%s.weight", layer, name);
    return text;
}

static const char *bias_name(char *text, uint32_t layer, enum model_matrix which)
{
    snprintf(text, TENSOR_NAME_MAX, "blk.%u.%s.bias", layer, matrix_names[which]);
    return text;
}

/* The vectors of a layer, in the order in which they lie in memory. */
enum layer_vector { ATTN_NORM, Q_NORM, K_NORM, ATTN_POST_NORM, FFN_NORM, FFN_POST_NORM, LAYER_VECTOR_COUNT };

static const char *const vector_names[LAYER_VECTOR_COUNT] = {
    [ATTN_NORM] = "attn_norm", [Q_NORM] = "attn_q_norm",
    [K_NORM] = "attn_k_norm",  [ATTN_POST_NORM] = "post_attention_norm",
    [FFN_NORM] = "ffn_norm",   [FFN_POST_NORM] = "post_ffw_norm",
};

/* Its floats; 0: the architecture has none. */
static uint32_t vector_width(const struct model_desc *desc, enum layer_vector which)
{
    switch (which) {
    case Q_NORM:
    case K_NORM:
        return desc->has_qk_norm ? desc->head_dim : 0;
    case ATTN_POST_NORM:
    case FFN_POST_NORM:
        return desc->has_post_norms ? desc->width : 0;
    default:
        return desc->width;
    }
}

static int describe_layer(struct model_desc *desc, uint32_t layer, const struct gguf *gguf, struct err *err)
{
    struct model_layer_desc *described = &desc->layer[layer];
    char name[TENSOR_NAME_MAX];
    int ret = 0;
    for (uint32_t which = 0; which < LAYER_VECTOR_COUNT && ret == 0; which++)
        if (vector_width(desc, which) > 0)
            ret =
                find_vector(gguf, layer_tensor_name(name, layer, vector_names[which]), vector_width(desc, which), err);
    for (uint32_t which = 0; which < MODEL_MATRIX_COUNT && ret == 0; which++) {
        ret = find_matrix(gguf, layer_tensor_name(name, layer, matrix_names[which]), matrix_inputs(desc, which),
                          matrix_outputs(desc, which), &described->forms[which], err);
        if (ret == 0 && gguf_tensor_find(gguf, bias_name(name, layer, which)) != NULL) {
            described->biases |= 1u << which;
            ret = find_vector(gguf, name, matrix_outputs(desc, which), err);
        }
    }
    return ret;
}

/* A tensor that is not one of ours would be left out of the computation, so its presence is a refusal. */
static bool is_computed(const struct model_desc *desc, const char *name)
{
    static const char *const alone[] = {"token_embd.weight", "output_norm.weight", "output.weight",
                                        "rope_freqs.weight"};
    char ours[TENSOR_NAME_MAX];
    for (uint32_t i = 0; i < ARRAY_COUNT(alone); i++)
        if (strcmp(name, alone[i]) == 0)
            return true;
    unsigned layer = 0;
    if (sscanf(name, "blk.%u.", &layer) != 1 || layer >= desc->layers)
        return false;
    for (uint32_t which = 0; which < LAYER_VECTOR_COUNT; which++)
        if (vector_width(desc, which) > 0 && strcmp(name, layer_tensor_name(ours, layer, vector_names[which])) == 0)
            return true;
    for (uint32_t which = 0; which < MODEL_MATRIX_COUNT; which++)
        if (strcmp(name, layer_tensor_name(ours, layer, matrix_names[which])) == 0 ||
            strcmp(name, bias_name(ours, layer, which)) == 0)
            return true;
    return false;
}

static int refuse_other_tensors(const struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        char text[TENSOR_NAME_MAX + 1];
        const struct gguf_string *name = &gguf_tensor_at(gguf, i)->name;
        size_t size = (size_t)min_u64(name->size, TENSOR_NAME_MAX);
        memcpy(text, name->data, size);
        text[size] = '\0';
        if (!is_computed(desc, text))
            return err_set(err, -ENOTSUP, "tensor %s is not computed by this build", text);
    }
    return 0;
}

/* ---- rotary positions ---- */

void model_rope_plain(struct model_rope *rope, double base, uint32_t head_dim)
{
    rope->magnitude = 1;
    for (uint32_t i = 0; i < head_dim / 2; i++)
        rope->frequency[i] = pow(base, -2.0 * i / head_dim);
}

/* YaRN (Peng et al. 2023): pairs that turn often within the original context keep their frequency, those that turn
 * less than once are slowed down by the factor, between them it goes over evenly. */
static int scale_by_yarn(struct model_desc *desc, struct reader *reader, double base, double factor)
{
    uint32_t original;
    double fast, slow, extrapolated, magnitude;
    int ret = get_optional(reader, "rope.scaling.original_context_length", 1, 1 << 26, desc->context_length, &original);
    if (ret == 0)
        ret = get_float(reader, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32, &fast);
    if (ret == 0)
        ret = get_float(reader, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1, &slow);
    if (ret == 0)
        ret = get_float(reader, "rope.scaling.yarn_ext_factor", 0, 1, 1, &extrapolated);
    if (ret == 0)
        ret = get_float(reader, "rope.scaling.attn_factor", 1e-6, 1e6, 1, &magnitude);
    if (ret < 0)
        return ret;
    double per_turn = desc->head_dim / (2 * log(base)); /* pairs, for turns e times as many */
    double low = fmax(0, floor(per_turn * log(original / (fast * 2 * M_PI))));
    double high = fmin(desc->head_dim - 1, ceil(per_turn * log(original / (slow * 2 * M_PI))));
    struct model_rope *rope = &desc->ropes[0];
    for (uint32_t i = 0; i < desc->head_dim / 2; i++) {
        double kept = extrapolated * (1 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low))));
        rope->frequency[i] *= kept + (1 - kept) / factor;
    }
    rope->magnitude = magnitude * (factor > 1 ? 0.1 * log(factor) + 1 : 1);
    return 0;
}

static int scale_positions(struct model_desc *desc, struct reader *reader, double base)
{
    struct gguf_string type = {"linear", 6}; /* what older files mean by a factor alone */
    double factor, old_factor;
    int ret = get_float(reader, "rope.scale_linear", 0, 1e6, 0, &old_factor);
    if (ret == 0)
        ret = get_float(reader, "rope.scaling.factor", 0, 1e6, old_factor, &factor);
    if (ret < 0)
        return ret;
    factor = factor == 0 ? 1 : factor;
    gguf_get_string(reader->gguf, key_of(reader, "rope.scaling.type"), &type);
    if (type.size == 4 && memcmp(type.data, "none", 4) == 0)
        return 0;
    if (type.size == 4 && memcmp(type.data, "yarn", 4) == 0)
        return scale_by_yarn(desc, reader, base, factor);
    if (type.size != 6 || memcmp(type.data, "linear", 6) != 0)
        return err_set(reader->err, -ENOTSUP, "%s is \"%.*s\": none, linear and yarn are computed", reader->key,
                       (int)min_u64(type.size, 64), type.data);
    for (uint32_t i = 0; i < desc->head_dim / 2; i++)
        desc->ropes[0].frequency[i] /= factor;
    return 0;
}

/* Llama 3's way of scaling: a factor for every pair, as a tensor. */
static int divide_by_factors(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    uint32_t pairs = desc->head_dim / 2;
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, "rope_freqs.weight");
    if (tensor == NULL)
        return 0;
    int ret = find_vector(gguf, "rope_freqs.weight", pairs, err);
    for (uint32_t i = 0; i < pairs && ret == 0; i++) {
        float factor;
        memcpy(&factor, (const uint8_t *)tensor->data + i * sizeof(float), sizeof(float));
        if (!(factor > 0 && factor < 1e9f))
            return err_set(err, -EBADMSG, "tensor rope_freqs.weight: factor %u is %g", i, (double)factor);
        desc->ropes[0].frequency[i] /= (double)factor;
    }
    return ret;
}

static int describe_positions(struct model_desc *desc, struct reader *reader)
{
    double base; /* the default is the format's */
    int ret = get_float(reader, "rope.freq_base", 1, 1e12, 10000, &base);
    if (ret < 0)
        return ret;
    model_rope_plain(&desc->ropes[0], base, desc->head_dim);
    ret = scale_positions(desc, reader, base);
    return ret ? ret : divide_by_factors(desc, reader->gguf, reader->err);
}

void model_rope_angles(const struct model_rope *rope, uint32_t head_dim, float *cos_sin, uint32_t first, uint32_t count)
{
    uint32_t half = head_dim / 2;
    for (uint32_t k = 0; k < count; k++, cos_sin += head_dim)
        for (uint32_t i = 0; i < half; i++) {
            double angle = (first + k) * rope->frequency[i];
            cos_sin[i] = (float)(rope->magnitude * cos(angle));
            cos_sin[half + i] = (float)(rope->magnitude * sin(angle));
        }
}

/* ---- all of it ---- */

static int describe_ends(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    const struct gguf_tensor *embedding = gguf_tensor_find(gguf, "token_embd.weight");
    if (embedding == NULL)
        return err_set(err, -EBADMSG, "tensor token_embd.weight is missing");
    if (embedding->ne[1] < 2 || embedding->ne[1] > 1 << 24)
        return err_set(err, -EBADMSG, "tensor token_embd.weight has %" PRIu64 " rows", embedding->ne[1]);
    desc->vocab_size = (uint32_t)embedding->ne[1];
    int ret = find_matrix(gguf, "token_embd.weight", desc->width, desc->vocab_size, &desc->embedding_form, err);
    if (ret == 0)
        ret = find_vector(gguf, "output_norm.weight", desc->width, err);
    desc->tied = gguf_tensor_find(gguf, "output.weight") == NULL;
    desc->head_form = desc->embedding_form;
    if (ret == 0 && !desc->tied)
        ret = find_matrix(gguf, "output.weight", desc->width, desc->vocab_size, &desc->head_form, err);
    return ret;
}

int model_describe(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    struct reader reader = {.gguf = gguf, .err = err};
    memset(desc, 0, sizeof(*desc)); /* descriptions are compared by their bytes */
    int ret = find_arch(&reader);
    ret = ret ? ret : refuse_other_models(&reader);
    ret = ret ? ret : describe_numbers(desc, &reader);
    ret = ret ? ret : describe_ends(desc, gguf, err);
    for (uint32_t layer = 0; layer < desc->layers && ret == 0; layer++)
        ret = describe_layer(desc, layer, gguf, err);
    ret = ret ? ret : describe_positions(desc, &reader);
    if (ret == 0 && reader.arch->refine != NULL)
        ret = reader.arch->refine(desc, gguf, err);
    return ret ? ret : refuse_other_tensors(desc, gguf, err);
}

/* ---- where a slice's weights lie ---- */

/* Hands out memory from the front; with a NULL base it only counts. */
struct packer {
    const uint8_t *base;
    size_t used;
};

static const void *take(struct packer *packer, size_t bytes)
{
    const uint8_t *at = packer->base == NULL ? NULL : packer->base + packer->used;
    packer->used += align_up_u64(bytes, KERNEL_ALIGN);
    return at;
}

static struct matrix take_matrix(struct packer *packer, enum matrix_form form, uint32_t n, uint32_t k)
{
    return (struct matrix){.form = form, .n = n, .k = k, .panels = take(packer, matrix_bytes(form, n, k))};
}

/* Matrices first..last of a layer side by side; neighbours of one form become one matrix. */
static struct model_product take_product(struct packer *packer, const struct model_desc *desc, uint32_t layer,
                                         uint32_t first, uint32_t last)
{
    const struct model_layer_desc *described = &desc->layer[layer];
    struct model_product product = {0};
    uint32_t k = matrix_inputs(desc, first);
    for (uint32_t which = first; which <= last;) {
        enum matrix_form form = described->forms[which];
        uint32_t n = 0;
        /* cppcheck-suppress arrayIndexOutOfBoundsCond ; looked at only up to last */
        for (; which <= last && described->forms[which] == form; which++)
            n += matrix_outputs(desc, which);
        product.column[product.part_count] = product.columns;
        product.parts[product.part_count++] = take_matrix(packer, form, n, k);
        product.columns += n;
        product.quantized |= matrix_is_quantized(form);
    }
    if ((described->biases & ((2u << last) - (1u << first))) != 0) /* zeros for those without one */
        product.bias = take(packer, product.columns * sizeof(float));
    return product;
}

static const float *take_vector(struct packer *packer, const struct model_desc *desc, enum layer_vector which)
{
    uint32_t width = vector_width(desc, which);
    return width > 0 ? take(packer, width * sizeof(float)) : NULL;
}

/* The one place that knows the order of things in a weights region. Returns its size. */
static size_t lay_out(struct model_slice *slice, struct model_layer *layers, const struct model_desc *desc,
                      uint32_t first, uint32_t count, const void *memory)
{
    check(count >= 1);
    check(first < desc->layers && count <= desc->layers - first);
    struct packer packer = {.base = memory};
    *slice = (struct model_slice){.first_layer = first,
                                  .layer_count = count,
                                  .is_first = first == 0,
                                  .is_last = first + count == desc->layers,
                                  .layers = layers};
    if (slice->is_first)
        slice->embedding = take_matrix(&packer, desc->embedding_form, desc->vocab_size, desc->width);
    for (uint32_t i = 0; i < count; i++) {
        struct model_layer layer;
        layer.attn_norm = take_vector(&packer, desc, ATTN_NORM);
        layer.qkv = take_product(&packer, desc, first + i, MODEL_Q, MODEL_V);
        layer.q_norm = take_vector(&packer, desc, Q_NORM);
        layer.k_norm = take_vector(&packer, desc, K_NORM);
        layer.out = take_product(&packer, desc, first + i, MODEL_OUT, MODEL_OUT);
        layer.attn_post_norm = take_vector(&packer, desc, ATTN_POST_NORM);
        layer.ffn_norm = take_vector(&packer, desc, FFN_NORM);
        layer.gate_up = take_product(&packer, desc, first + i, MODEL_GATE, MODEL_UP);
        layer.down = take_product(&packer, desc, first + i, MODEL_DOWN, MODEL_DOWN);
        layer.ffn_post_norm = take_vector(&packer, desc, FFN_POST_NORM);
        if (layers != NULL)
            layers[i] = layer;
    }
    if (slice->is_last) {
        slice->output_norm = take(&packer, desc->width * sizeof(float));
        slice->head = slice->is_first && desc->tied
                          ? slice->embedding
                          : take_matrix(&packer, desc->head_form, desc->vocab_size, desc->width);
    }
    return packer.used;
}

size_t model_slice_bytes(const struct model_desc *desc, uint32_t first, uint32_t count)
{
    struct model_slice slice;
    return lay_out(&slice, NULL, desc, first, count, NULL);
}

uint32_t model_slice_ranges(const struct model_desc *desc, uint32_t first, uint32_t count,
                            struct model_range ranges[MODEL_RANGES_MAX])
{
    const size_t whole = model_slice_bytes(desc, 0, desc->layers);
    const size_t embedding =
        align_up_u64(matrix_bytes(desc->embedding_form, desc->vocab_size, desc->width), KERNEL_ALIGN);
    const size_t head =
        desc->tied ? 0 : align_up_u64(matrix_bytes(desc->head_form, desc->vocab_size, desc->width), KERNEL_ALIGN);
    const size_t norm = align_up_u64(desc->width * sizeof(float), KERNEL_ALIGN);
    const bool is_first = first == 0, is_last = first + count == desc->layers;
    /* slices from layer 0 on are beginnings of the whole */
    size_t from = is_first ? embedding : model_slice_bytes(desc, 0, first);
    size_t to = is_last ? whole - head - norm : model_slice_bytes(desc, 0, first + count);
    uint32_t range_count = 0;
    if (is_first)
        ranges[range_count++] = (struct model_range){0, embedding};
    ranges[range_count++] = (struct model_range){from, to - from};
    if (is_last)
        ranges[range_count++] = (struct model_range){to, norm + head};
    if (is_last && desc->tied && !is_first)
        ranges[range_count++] = (struct model_range){0, embedding};
    return range_count;
}

void model_bind(struct model_slice *slice, const struct model_desc *desc, uint32_t first, uint32_t count,
                const void *memory)
{
    check(((uintptr_t)memory & (KERNEL_ALIGN - 1)) == 0);
    struct model_layer *layers = base_alloc(count * sizeof(*layers));
    lay_out(slice, layers, desc, first, count, memory);
}

void model_unbind(struct model_slice *slice)
{
    free(slice->layers);
    *slice = (struct model_slice){0};
}

/* ---- packing ---- */

static const uint8_t *tensor_row(const struct gguf_tensor *tensor, uint64_t row)
{
    return (const uint8_t *)tensor->data + row * gguf_row_bytes((enum gguf_type)tensor->type, (uint32_t)tensor->ne[0]);
}

static void pack_rows(const struct matrix *w, const struct gguf_tensor *tensor, uint32_t first, uint32_t count)
{
    for (uint32_t row = first; row < first + count; row++)
        matrix_pack_row(w, row, (enum gguf_type)tensor->type, tensor_row(tensor, row));
}

void model_pack_matrix(const struct matrix *w, const struct gguf_tensor *tensor)
{
    pack_rows(w, tensor, 0, w->n);
}

/* Where the file's Q and K rows are ordered for rotary pairs (2i, 2i + 1) within a head: the kernels rotate (i, i + half). */
static uint32_t source_row(const struct model_desc *desc, enum model_matrix which, uint32_t row)
{
    if (!desc->has_interleaved_pairs || (which != MODEL_Q && which != MODEL_K))
        return row;
    uint32_t half = desc->head_dim / 2;
    uint32_t in_head = row % desc->head_dim;
    return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

/* Outputs of the product from `column` on. */
static void pack_bias(const struct model_product *product, uint32_t column, const struct model_desc *desc,
                      uint32_t layer, enum model_matrix which, const struct gguf *gguf)
{
    char name[TENSOR_NAME_MAX];
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, bias_name(name, layer, which));
    uint32_t rows = matrix_outputs(desc, which);
    for (uint32_t row = 0; row < rows && tensor != NULL; row++)
        memcpy((float *)(uintptr_t)product->bias + column + row,
               (const uint8_t *)tensor->data + source_row(desc, which, row) * sizeof(float), sizeof(float));
}

static void pack_product(const struct model_product *product, const struct model_desc *desc, uint32_t layer,
                         uint32_t first, uint32_t last, const struct gguf *gguf)
{
    uint32_t part = 0, row_in_part = 0, column = 0;
    for (uint32_t which = first; which <= last; which++) {
        char name[TENSOR_NAME_MAX];
        const struct gguf_tensor *tensor = gguf_tensor_find(gguf, layer_tensor_name(name, layer, matrix_names[which]));
        uint32_t rows = matrix_outputs(desc, which);
        for (uint32_t row = 0; row < rows; row++) {
            if (row_in_part == product->parts[part].n) {
                part++;
                row_in_part = 0;
            }
            matrix_pack_row(&product->parts[part], row_in_part++, (enum gguf_type)tensor->type,
                            tensor_row(tensor, source_row(desc, which, row)));
        }
        if (product->bias != NULL)
            pack_bias(product, column, desc, layer, which, gguf);
        column += rows;
    }
}

/* The slice's pointers are const because nobody writes through them later; here the memory is still the caller's. */
static void pack_vector(const float *to, const struct gguf *gguf, const char *name)
{
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
    memcpy((float *)(uintptr_t)to, tensor->data, tensor->ne[0] * sizeof(float));
}

void model_pack_layer(const struct model_layer *layer, const struct model_desc *desc, uint32_t number,
                      const struct gguf *gguf)
{
    const float *const vectors[LAYER_VECTOR_COUNT] = {
        [ATTN_NORM] = layer->attn_norm,           [Q_NORM] = layer->q_norm,     [K_NORM] = layer->k_norm,
        [ATTN_POST_NORM] = layer->attn_post_norm, [FFN_NORM] = layer->ffn_norm, [FFN_POST_NORM] = layer->ffn_post_norm,
    };
    char name[TENSOR_NAME_MAX];
    for (uint32_t which = 0; which < LAYER_VECTOR_COUNT; which++)
        if (vectors[which] != NULL)
            pack_vector(vectors[which], gguf, layer_tensor_name(name, number, vector_names[which]));
    pack_product(&layer->qkv, desc, number, MODEL_Q, MODEL_V, gguf);
    pack_product(&layer->out, desc, number, MODEL_OUT, MODEL_OUT, gguf);
    pack_product(&layer->gate_up, desc, number, MODEL_GATE, MODEL_UP, gguf);
    pack_product(&layer->down, desc, number, MODEL_DOWN, MODEL_DOWN, gguf);
}

/* How far a member is with the bytes of a slice. Shares are alike, so member 0 speaks for all. */
struct packing {
    const struct onlooker *onlooker; /* NULL: none, or another member's part */
    uint64_t done, total;
};

static void advance(struct packing *packing, uint64_t bytes)
{
    packing->done += bytes;
    if (packing->onlooker != NULL)
        packing->onlooker->tell(packing->onlooker->context, packing->done, packing->total);
}

static void pack_shared(const struct matrix *w, const struct gguf *gguf, const char *name, const struct team *team,
                        uint32_t part, struct packing *packing)
{
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
    uint32_t first, count = team_share(team, part, w->n, KERNEL_PANEL, &first); /* no two members in one panel */
    for (uint32_t done = 0, rows; done < count; done += rows) {
        rows = (uint32_t)min_u64(count - done, PIECE_ROWS);
        pack_rows(w, tensor, first + done, rows);
        advance(packing, matrix_bytes(w->form, w->n, w->k) * rows / count);
    }
}

void model_pack(const struct model_slice *slice, const struct model_desc *desc, const struct gguf *gguf,
                const struct team *team, uint32_t part, const struct onlooker *onlooker)
{
    struct packing packing = {.onlooker = part == 0 ? onlooker : NULL,
                              .total = model_slice_bytes(desc, slice->first_layer, slice->layer_count)};
    const struct matrix *head = slice->head.panels != slice->embedding.panels ? &slice->head : NULL;
    uint64_t ends = slice->is_first ? matrix_bytes(desc->embedding_form, desc->vocab_size, desc->width) : 0;
    if (slice->is_last && head != NULL)
        ends += matrix_bytes(desc->head_form, desc->vocab_size, desc->width);
    uint32_t first, count = team_share(team, part, slice->layer_count, 1, &first);
    if (slice->is_first)
        pack_shared(&slice->embedding, gguf, "token_embd.weight", team, part, &packing);
    for (uint32_t i = first; i < first + count; i++) {
        model_pack_layer(&slice->layers[i], desc, slice->first_layer + i, gguf);
        advance(&packing, (packing.total - ends) / count);
    }
    if (!slice->is_last)
        return;
    if (part == 0)
        pack_vector(slice->output_norm, gguf, "output_norm.weight");
    if (head != NULL)
        pack_shared(head, gguf, desc->tied ? "token_embd.weight" : "output.weight", team, part, &packing);
}

int model_load(struct model_slice *slice, const struct model_desc *desc, uint32_t first, uint32_t count, void *memory,
               const struct gguf *gguf, struct err *err)
{
    /* The description may be older than the file that is open now. */
    struct model_desc *now = malloc(sizeof(*now));
    check(now != NULL);
    int ret = model_describe(now, gguf, err);
    if (ret == 0 && memcmp(now, desc, sizeof(*now)) != 0)
        ret = err_set(err, -EBADMSG, "the model file is not the one that was described; was it replaced?");
    free(now);
    if (ret < 0)
        return ret;

    model_bind(slice, desc, first, count, memory);
    model_pack(slice, desc, gguf, NULL, 0, NULL);
    return 0;
}
