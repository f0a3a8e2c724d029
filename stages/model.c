#include "stages/model.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* A required number within its limits. */
static int get_number(const struct gguf *gguf, const char *key, uint32_t min, uint32_t max, uint32_t *value,
                      struct err *err)
{
    uint64_t read;
    struct gguf_array array;
    if (gguf_get_array(gguf, key, &array))
        return err_set(err, -ENOTSUP, "%s is one number per layer, which this build does not compute", key);
    if (!gguf_get_u64(gguf, key, &read))
        return err_set(err, -EINVAL, "%s is missing or not a whole number", key);
    if (read < min || read > max)
        return err_set(err, -EINVAL, "%s is %" PRIu64 "; from %u to %u are possible", key, read, min, max);
    *value = (uint32_t)read;
    return 0;
}

static bool has_key(const struct gguf *gguf, const char *key)
{
    struct gguf_string wanted;
    uint32_t type;
    for (uint64_t i = 0; gguf_metadata(gguf, i, &wanted, &type); i++)
        if (wanted.size == strlen(key) && memcmp(wanted.data, key, wanted.size) == 0)
            return true;
    return false;
}

/* Like get_number(), but the file may leave it out. */
static int get_optional(const struct gguf *gguf, const char *key, uint32_t min, uint32_t max, uint32_t otherwise,
                        uint32_t *value, struct err *err)
{
    *value = otherwise;
    return has_key(gguf, key) ? get_number(gguf, key, min, max, value, err) : 0;
}

static int refuse_other_models(const struct gguf *gguf, struct err *err)
{
    struct gguf_string text;
    if (!gguf_get_string(gguf, "general.architecture", &text))
        return err_set(err, -EINVAL, "general.architecture is missing: not a language model");
    if (text.size != 5 || memcmp(text.data, "llama", 5) != 0)
        return err_set(err, -ENOTSUP, "architecture \"%.*s\": this build computes \"llama\" only",
                       (int)min_u64(text.size, 64), text.data);
    uint64_t experts;
    if (gguf_get_u64(gguf, "llama.expert_count", &experts) && experts > 0)
        return err_set(err, -ENOTSUP, "llama.expert_count is %" PRIu64 ": mixtures of experts are not computed",
                       experts);
    double factor;
    if (gguf_get_string(gguf, "llama.rope.scaling.type", &text)) {
        if (text.size != 4 || memcmp(text.data, "none", 4) != 0)
            return err_set(err, -ENOTSUP, "llama.rope.scaling.type is \"%.*s\": RoPE scaling is not computed",
                           (int)min_u64(text.size, 64), text.data);
    } else if ((gguf_get_f64(gguf, "llama.rope.scaling.factor", &factor) && factor != 1 && factor != 0) ||
               (gguf_get_f64(gguf, "llama.rope.scale_linear", &factor) && factor != 1 && factor != 0)) {
        return err_set(err, -ENOTSUP, "RoPE is scaled by %g: RoPE scaling is not computed", factor);
    }
    return 0;
}

static int describe_numbers(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    int ret = get_number(gguf, "llama.block_count", 1, MODEL_LAYERS_MAX, &desc->layers, err);
    if (ret == 0)
        ret = get_number(gguf, "llama.embedding_length", 16, 1 << 16, &desc->width, err);
    if (ret == 0)
        ret = get_number(gguf, "llama.feed_forward_length", 16, 1 << 18, &desc->feed_forward, err);
    if (ret == 0)
        ret = get_number(gguf, "llama.context_length", 1, 1 << 26, &desc->context_length, err);
    if (ret == 0)
        ret = get_number(gguf, "llama.attention.head_count", 1, 1 << 10, &desc->heads, err);
    if (ret == 0)
        ret = get_optional(gguf, "llama.attention.head_count_kv", 1, 1 << 10, desc->heads, &desc->kv_heads, err);
    if (ret == 0 && desc->heads % desc->kv_heads != 0)
        ret = err_set(err, -EINVAL, "llama.attention.head_count %u is not a multiple of head_count_kv %u", desc->heads,
                      desc->kv_heads);
    if (ret < 0)
        return ret;

    uint32_t value_length, rope_count;
    if (!has_key(gguf, "llama.attention.key_length") && desc->width % desc->heads != 0)
        return err_set(err, -EINVAL, "llama.embedding_length %u is not a multiple of head_count %u", desc->width,
                       desc->heads);
    ret = get_optional(gguf, "llama.attention.key_length", 1, 1 << 16, desc->width / desc->heads, &desc->head_dim, err);
    if (ret == 0)
        ret = get_optional(gguf, "llama.attention.value_length", 1, 1 << 16, desc->head_dim, &value_length, err);
    if (ret == 0)
        ret = get_optional(gguf, "llama.rope.dimension_count", 1, 1 << 16, desc->head_dim, &rope_count, err);
    if (ret < 0)
        return ret;
    if (desc->head_dim % 16 != 0 || desc->head_dim < 16 || desc->head_dim > 2 * MODEL_ROPE_PAIRS_MAX)
        return err_set(err, -ENOTSUP, "heads of %u numbers: multiples of 16 up to %u are computed", desc->head_dim,
                       2 * MODEL_ROPE_PAIRS_MAX);
    if (value_length != desc->head_dim)
        return err_set(err, -ENOTSUP, "llama.attention.value_length %u differs from key_length %u", value_length,
                       desc->head_dim);
    if (rope_count != desc->head_dim)
        return err_set(err, -ENOTSUP, "llama.rope.dimension_count %u differs from the head's %u", rope_count,
                       desc->head_dim);

    double value = 10000.0; /* the format's default */
    if (has_key(gguf, "llama.rope.freq_base") && !gguf_get_f64(gguf, "llama.rope.freq_base", &value))
        return err_set(err, -EINVAL, "llama.rope.freq_base is not a number");
    if (!(value >= 1 && value <= 1e12))
        return err_set(err, -EINVAL, "llama.rope.freq_base is %g", value);
    desc->rope_base = value;
    if (!gguf_get_f64(gguf, "llama.attention.layer_norm_rms_epsilon", &value))
        return err_set(err, -EINVAL, "llama.attention.layer_norm_rms_epsilon is missing or not a number");
    if (!(value >= 0 && value <= 1))
        return err_set(err, -EINVAL, "llama.attention.layer_norm_rms_epsilon is %g", value);
    desc->norm_eps = (float)value;
    return 0;
}

/* The tensor of this name, of this shape (rows 1: a vector). */
static int find_tensor(const struct gguf *gguf, const char *name, uint32_t columns, uint32_t rows,
                       const struct gguf_tensor **tensor, struct err *err)
{
    *tensor = gguf_tensor_find(gguf, name);
    if (*tensor == NULL)
        return err_set(err, -EINVAL, "tensor %s is missing", name);
    const uint64_t *ne = (*tensor)->ne;
    if (ne[0] != columns || ne[1] != rows || ne[2] != 1 || ne[3] != 1)
        return err_set(err, -EINVAL,
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
        return err_set(err, -ENOTSUP, "tensor %s is of type %s; F32, F16, Q4_0, Q4_1 and Q8_0 are computed", name,
                       gguf_type_name(tensor->type));
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

static int describe_layer(struct model_desc *desc, uint32_t layer, const struct gguf *gguf, struct err *err)
{
    char name[TENSOR_NAME_MAX];
    int ret = find_vector(gguf, layer_tensor_name(name, layer, "attn_norm"), desc->width, err);
    if (ret == 0)
        ret = find_vector(gguf, layer_tensor_name(name, layer, "ffn_norm"), desc->width, err);
    for (uint32_t which = 0; which < MODEL_MATRIX_COUNT && ret == 0; which++)
        ret = find_matrix(gguf, layer_tensor_name(name, layer, matrix_names[which]), matrix_inputs(desc, which),
                          matrix_outputs(desc, which), &desc->forms[layer][which], err);
    return ret;
}

static int describe_rope_factors(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    uint32_t pairs = desc->head_dim / 2;
    for (uint32_t i = 0; i < pairs; i++)
        desc->rope_factors[i] = 1;
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, "rope_freqs.weight");
    if (tensor == NULL)
        return 0;
    int ret = find_vector(gguf, "rope_freqs.weight", pairs, err);
    for (uint32_t i = 0; i < pairs && ret == 0; i++) {
        float factor;
        memcpy(&factor, (const uint8_t *)tensor->data + i * sizeof(float), sizeof(float));
        if (!(factor > 0 && factor < 1e9f))
            return err_set(err, -EINVAL, "tensor rope_freqs.weight: factor %u is %g", i, (double)factor);
        desc->rope_factors[i] = (double)factor;
    }
    return ret;
}

/* A tensor that is not one of ours would be left out of the computation, so its presence is a refusal. Every tensor
 * of ours has been found by now: it is enough that there are no more than those. */
static int refuse_other_tensors(const struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    static const char *const alone[] = {"token_embd.weight", "output_norm.weight", "output.weight",
                                        "rope_freqs.weight"};
    static const char *const norms[] = {"attn_norm", "ffn_norm"};
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        char text[TENSOR_NAME_MAX + 1], ours[TENSOR_NAME_MAX];
        const struct gguf_string *name = &gguf_tensor_at(gguf, i)->name;
        size_t size = (size_t)min_u64(name->size, TENSOR_NAME_MAX);
        memcpy(text, name->data, size);
        text[size] = '\0';
        bool is_known = false;
        for (uint32_t j = 0; j < ARRAY_COUNT(alone); j++)
            is_known |= strcmp(text, alone[j]) == 0;
        unsigned layer = 0;
        if (!is_known && sscanf(text, "blk.%u.", &layer) == 1 && layer < desc->layers) {
            for (uint32_t j = 0; j < ARRAY_COUNT(norms); j++)
                is_known |= strcmp(text, layer_tensor_name(ours, layer, norms[j])) == 0;
            for (uint32_t j = 0; j < MODEL_MATRIX_COUNT; j++)
                is_known |= strcmp(text, layer_tensor_name(ours, layer, matrix_names[j])) == 0;
        }
        if (!is_known)
            return err_set(err, -ENOTSUP, "tensor %s is not computed by this build", text);
    }
    return 0;
}

int model_describe(struct model_desc *desc, const struct gguf *gguf, struct err *err)
{
    *desc = (struct model_desc){0};
    int ret = refuse_other_models(gguf, err);
    if (ret == 0)
        ret = describe_numbers(desc, gguf, err);
    if (ret < 0)
        return ret;

    const struct gguf_tensor *embedding = gguf_tensor_find(gguf, "token_embd.weight");
    if (embedding == NULL)
        return err_set(err, -EINVAL, "tensor token_embd.weight is missing");
    if (embedding->ne[1] < 2 || embedding->ne[1] > 1 << 24)
        return err_set(err, -EINVAL, "tensor token_embd.weight has %" PRIu64 " rows", embedding->ne[1]);
    desc->vocab_size = (uint32_t)embedding->ne[1];
    ret = find_matrix(gguf, "token_embd.weight", desc->width, desc->vocab_size, &desc->embedding_form, err);
    if (ret == 0)
        ret = find_vector(gguf, "output_norm.weight", desc->width, err);
    desc->tied = gguf_tensor_find(gguf, "output.weight") == NULL;
    desc->head_form = desc->embedding_form;
    if (ret == 0 && !desc->tied)
        ret = find_matrix(gguf, "output.weight", desc->width, desc->vocab_size, &desc->head_form, err);
    for (uint32_t layer = 0; layer < desc->layers && ret == 0; layer++)
        ret = describe_layer(desc, layer, gguf, err);
    if (ret == 0)
        ret = describe_rope_factors(desc, gguf, err);
    if (ret == 0)
        ret = refuse_other_tensors(desc, gguf, err);
    return ret;
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

static bool is_quantized(enum matrix_form form)
{
    return form == MATRIX_Q4 || form == MATRIX_Q8;
}

/* Matrices first..last of a layer side by side; neighbours of one form become one matrix. */
static struct model_product take_product(struct packer *packer, const struct model_desc *desc, uint32_t layer,
                                         uint32_t first, uint32_t last)
{
    struct model_product product = {0};
    uint32_t k = matrix_inputs(desc, first);
    for (uint32_t which = first; which <= last;) {
        enum matrix_form form = desc->forms[layer][which];
        uint32_t n = 0;
        /* cppcheck-suppress arrayIndexOutOfBoundsCond ; looked at only up to last */
        for (; which <= last && desc->forms[layer][which] == form; which++)
            n += matrix_outputs(desc, which);
        product.column[product.part_count] = product.columns;
        product.parts[product.part_count++] = take_matrix(packer, form, n, k);
        product.columns += n;
        product.quantized |= is_quantized(form);
    }
    return product;
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
        layer.attn_norm = take(&packer, desc->width * sizeof(float));
        layer.qkv = take_product(&packer, desc, first + i, MODEL_Q, MODEL_V);
        layer.out = take_product(&packer, desc, first + i, MODEL_OUT, MODEL_OUT);
        layer.ffn_norm = take(&packer, desc->width * sizeof(float));
        layer.gate_up = take_product(&packer, desc, first + i, MODEL_GATE, MODEL_UP);
        layer.down = take_product(&packer, desc, first + i, MODEL_DOWN, MODEL_DOWN);
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

void model_pack_matrix(const struct matrix *w, const struct gguf_tensor *tensor)
{
    for (uint32_t row = 0; row < w->n; row++)
        matrix_pack_row(w, row, (enum gguf_type)tensor->type, tensor_row(tensor, row));
}

/* The file's Q and K rows are ordered for rotary pairs (2i, 2i + 1) within a head; the kernels rotate (i, i + half). */
static uint32_t source_row(const struct model_desc *desc, enum model_matrix which, uint32_t row)
{
    if (which != MODEL_Q && which != MODEL_K)
        return row;
    uint32_t half = desc->head_dim / 2;
    uint32_t in_head = row % desc->head_dim;
    return row - in_head + (in_head < half ? 2 * in_head : 2 * (in_head - half) + 1);
}

static void pack_product(const struct model_product *product, const struct model_desc *desc, uint32_t layer,
                         uint32_t first, uint32_t last, const struct gguf *gguf)
{
    uint32_t part = 0, row_in_part = 0;
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
    char name[TENSOR_NAME_MAX];
    pack_vector(layer->attn_norm, gguf, layer_tensor_name(name, number, "attn_norm"));
    pack_product(&layer->qkv, desc, number, MODEL_Q, MODEL_V, gguf);
    pack_product(&layer->out, desc, number, MODEL_OUT, MODEL_OUT, gguf);
    pack_vector(layer->ffn_norm, gguf, layer_tensor_name(name, number, "ffn_norm"));
    pack_product(&layer->gate_up, desc, number, MODEL_GATE, MODEL_UP, gguf);
    pack_product(&layer->down, desc, number, MODEL_DOWN, MODEL_DOWN, gguf);
}

int model_load(struct model_slice *slice, const struct model_desc *desc, uint32_t first, uint32_t count, void *memory,
               const struct gguf *gguf, struct err *err)
{
    /* The description may be older than the file that is open now. */
    struct model_desc *now = malloc(sizeof(*now));
    check(now != NULL);
    int ret = model_describe(now, gguf, err);
    if (ret == 0 && memcmp(now, desc, sizeof(*now)) != 0)
        ret = err_set(err, -EINVAL, "the model file is not the one that was described; was it replaced?");
    free(now);
    if (ret < 0)
        return ret;

    model_bind(slice, desc, first, count, memory);
    if (slice->is_first)
        model_pack_matrix(&slice->embedding, gguf_tensor_find(gguf, "token_embd.weight"));
    for (uint32_t i = 0; i < count; i++)
        model_pack_layer(&slice->layers[i], desc, first + i, gguf);
    if (slice->is_last) {
        pack_vector(slice->output_norm, gguf, "output_norm.weight");
        if (slice->head.panels != slice->embedding.panels)
            model_pack_matrix(&slice->head, gguf_tensor_find(gguf, desc->tied ? "token_embd.weight" : "output.weight"));
    }
    return 0;
}

/* ---- rotary positions ---- */

void model_rope_table(const struct model_desc *desc, float *cos_sin, uint32_t positions)
{
    uint32_t half = desc->head_dim / 2;
    double frequency[MODEL_ROPE_PAIRS_MAX];
    for (uint32_t i = 0; i < half; i++)
        frequency[i] = pow(desc->rope_base, -2.0 * i / desc->head_dim) / desc->rope_factors[i];
    for (uint32_t position = 0; position < positions; position++) {
        float *row = cos_sin + (size_t)position * desc->head_dim;
        for (uint32_t i = 0; i < half; i++) {
            row[i] = (float)cos(position * frequency[i]);
            row[half + i] = (float)sin(position * frequency[i]);
        }
    }
}
