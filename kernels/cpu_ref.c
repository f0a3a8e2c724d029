/* cpu_ref.c - the truth: every kernel as plain loops, sums in double. Slow on purpose; the fast paths are tested against it. */
#include "kernels/internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/draw.h"

static void rms_norm(float *out, const float *x, const float *gain, uint32_t rows, uint32_t width, float eps)
{
    for (uint32_t r = 0; r < rows; r++, x += width, out += width) {
        double sum = 0;
        for (uint32_t i = 0; i < width; i++)
            sum += (double)x[i] * x[i];
        double factor = 1 / sqrt(sum / width + eps);
        for (uint32_t i = 0; i < width; i++)
            out[i] = (float)(x[i] * factor) * gain[i];
    }
}

static void quantize(struct activations *a)
{
    for (size_t g = 0; g < (size_t)a->rows * (a->k / KERNEL_GROUP); g++) {
        const float *x = a->f32 + g * KERNEL_GROUP;
        float min = x[0], max = x[0];
        for (uint32_t i = 1; i < KERNEL_GROUP; i++) {
            min = x[i] < min ? x[i] : min;
            max = x[i] > max ? x[i] : max;
        }
        float offset = 0.5f * max + 0.5f * min, scale = (0.5f * max - 0.5f * min) * (1.0f / 127);
        scale = scale < FLT_MIN ? 0 : scale; /* a denormal has no inverse */
        float inverse = scale > 0 ? 1 / scale : 0;
        int32_t sum = 0;
        for (uint32_t i = 0; i < KERNEL_GROUP; i++) {
            if (i == KERNEL_GROUP / 2)
                a->half[g] = sum;
            float q = rintf((x[i] - offset) * inverse);
            a->q[g * KERNEL_GROUP + i] = (int8_t)(q < 127 ? q > -127 ? q : -127 : 127);
            sum += a->q[g * KERNEL_GROUP + i];
        }
        a->scale[g] = scale;
        a->offset[g] = offset;
        a->total[g] = fmaf(scale, (float)sum, KERNEL_GROUP * offset);
        a->start[g] = -128 * sum;
    }
}

static double dot_quantised(const struct matrix *w, const uint8_t *panel, uint32_t lane, const struct activations *a,
                            uint32_t row)
{
    const uint32_t part = w->form == MATRIX_Q6K ? KERNEL_GROUP / 2 : KERNEL_GROUP; /* what shares D and M */
    double sum = 0;
    for (uint32_t first = 0; first < w->k; first += part) {
        size_t g = (size_t)row * (w->k / KERNEL_GROUP) + first / KERNEL_GROUP;
        int32_t product = 0, weights = 0;
        for (uint32_t i = first; i < first + part; i++) {
            int u = matrix_element(w, panel, lane, i);
            product += u * a->q[(size_t)row * w->k + i];
            weights += u;
        }
        float d, m;
        matrix_scales(w, panel, lane, first, &d, &m);
        sum += d * ((double)a->scale[g] * product + (double)a->offset[g] * weights) + (double)m * a->total[g];
    }
    return sum;
}

static double dot_float(const struct matrix *w, const uint8_t *panel, uint32_t lane, const float *x)
{
    double sum = 0;
    for (uint32_t i = 0; i < w->k; i++)
        sum += (double)matrix_float(w, panel, lane, i) * x[i];
    return sum;
}

static void matmul(float *out, size_t out_stride, const struct matrix *w, const struct activations *a)
{
    bool is_quantised = matrix_is_quantized(w->form);
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t i = 0; i < w->n; i++) {
            const uint8_t *panel = (const uint8_t *)w->panels + (i / KERNEL_PANEL) * panel_bytes(w->form, w->k);
            uint32_t lane = i % KERNEL_PANEL;
            out[r * out_stride + i] = (float)(is_quantised ? dot_quantised(w, panel, lane, a, r)
                                                           : dot_float(w, panel, lane, a->f32 + (size_t)r * w->k));
        }
}

static void add(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void swiglu(float *out, const float *in, uint32_t rows, uint32_t width)
{
    for (uint32_t r = 0; r < rows; r++, in += 2 * (size_t)width, out += width)
        for (uint32_t i = 0; i < width; i++)
            out[i] = (float)(in[i] / (1 + exp(-(double)in[i])) * in[width + i]);
}

static void geglu(float *out, const float *in, uint32_t rows, uint32_t width)
{
    for (uint32_t r = 0; r < rows; r++, in += 2 * (size_t)width, out += width)
        for (uint32_t i = 0; i < width; i++) {
            double x = in[i], u = M_SQRT2 * M_2_SQRTPI / 2 * (x + 0.044715 * x * x * x); /* sqrt(2 / pi) * (..) */
            out[i] = (float)(x / (1 + exp(-2 * u)) * in[width + i]);
        }
}

static void rope(float *x, size_t stride, const float *cos_sin, uint32_t rows, uint32_t heads, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;
    for (uint32_t r = 0; r < rows; r++, x += stride, cos_sin += head_dim)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t i = 0; i < half; i++) {
                float *first = x + h * head_dim + i, *second = first + half;
                double a = *first, b = *second, c = cos_sin[i], s = cos_sin[half + i];
                *first = (float)(a * c - b * s);
                *second = (float)(b * c + a * s);
            }
}

/* K and V of a head in the block that holds a position, of either type; the scales of its bytes, first those of K. */
struct held {
    uint16_t *half_keys, *half_values;
    int8_t *byte_keys, *byte_values;
    float *scales;
};

static struct held held_of(const struct attention *a, uint32_t head, uint32_t position)
{
    uint8_t *block = a->kv + (size_t)a->blocks[position / a->block_size] * a->block_stride;
    uint8_t *at = block + head * kv_head_bytes(a->kv_type, a->head_dim, a->block_size);
    size_t elements = (size_t)a->head_dim * a->block_size;
    struct held held = {.half_keys = (uint16_t *)(void *)at, .byte_keys = (int8_t *)at};
    held.half_values = held.half_keys + elements;
    held.byte_values = held.byte_keys + elements;
    held.scales = (float *)(void *)(held.byte_values + elements);
    return held;
}

/* x as bytes that are step apart; returns their scale. */
static float store_bytes(int8_t *to, size_t step, const float *x, uint32_t count)
{
    float most = 0;
    for (uint32_t i = 0; i < count; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float scale = most * (1.0f / 127);
    scale = scale < FLT_MIN ? 0 : scale; /* a denormal has no inverse */
    float inverse = scale > 0 ? 1 / scale : 0;
    for (uint32_t i = 0; i < count; i++)
        to[i * step] = (int8_t)rintf(x[i] * inverse);
    return scale;
}

static void kv_store(const struct attention *a, const float *k, const float *v, size_t stride)
{
    for (uint32_t r = 0; r < a->rows; r++, k += stride, v += stride) {
        uint32_t position = a->first_pos + r, in_block = position % a->block_size;
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            struct held held = held_of(a, h, position);
            const float *key = k + h * a->head_dim, *value = v + h * a->head_dim;
            size_t values_at = (size_t)in_block * a->head_dim;
            if (a->kv_type == KV_Q8) {
                held.scales[in_block] = store_bytes(held.byte_keys + in_block, a->block_size, key, a->head_dim);
                held.scales[a->block_size + in_block] =
                    store_bytes(held.byte_values + values_at, 1, value, a->head_dim);
                continue;
            }
            for (uint32_t i = 0; i < a->head_dim; i++) {
                held.half_keys[(size_t)i * a->block_size + in_block] = f32_to_f16(key[i]);
                held.half_values[values_at + i] = f32_to_f16(value[i]);
            }
        }
    }
}

static double key_of(const struct attention *a, uint32_t head, uint32_t position, uint32_t i)
{
    struct held held = held_of(a, head, position);
    uint32_t in_block = position % a->block_size;
    size_t at = (size_t)i * a->block_size + in_block;
    return a->kv_type == KV_Q8 ? (double)held.byte_keys[at] * held.scales[in_block] : f16_to_f32(held.half_keys[at]);
}

static double value_of(const struct attention *a, uint32_t head, uint32_t position, uint32_t i)
{
    struct held held = held_of(a, head, position);
    uint32_t in_block = position % a->block_size;
    size_t at = (size_t)in_block * a->head_dim + i;
    return a->kv_type == KV_Q8 ? (double)held.byte_values[at] * held.scales[a->block_size + in_block]
                               : f16_to_f32(held.half_values[at]);
}

static void attend_one(const struct attention *a, const float *q, float *out, uint32_t head, uint32_t positions)
{
    uint32_t first = positions > a->window ? positions - a->window : 0;
    double max = -INFINITY, sum = 0;
    for (uint32_t p = first; p < positions; p++) {
        double score = 0;
        for (uint32_t i = 0; i < a->head_dim; i++)
            score += q[i] * key_of(a, head, p, i);
        a->scratch[p] = (float)(score * a->scale);
        max = fmax(max, a->scratch[p]);
    }
    for (uint32_t p = first; p < positions; p++)
        sum += exp(a->scratch[p] - max);
    for (uint32_t i = 0; i < a->head_dim; i++) {
        double value = 0;
        for (uint32_t p = first; p < positions; p++)
            value += exp(a->scratch[p] - max) * value_of(a, head, p, i);
        out[i] = (float)(value / sum);
    }
}

static void attention(const struct attention *a)
{
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t h = 0; h < a->heads; h++)
            attend_one(a, a->q + r * a->q_stride + h * a->head_dim, a->out + ((size_t)r * a->heads + h) * a->head_dim,
                       h / (a->heads / a->kv_heads), a->first_pos + r + 1);
}

static uint32_t argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || logits[best] != logits[best])
            best = i;
    return best;
}

static float sum_exp(float *probs, const float *logits, uint32_t n, float max, float inv_temperature)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        float term = draw_exp((logits[i] - max) * inv_temperature);
        if (probs != NULL)
            probs[i] = term;
        sum += (double)term;
    }
    return (float)sum;
}

const struct kernels kernels_ref = {
    .name = "ref",
    .rms_norm = rms_norm,
    .quantize = quantize,
    .matmul = matmul,
    .add = add,
    .swiglu = swiglu,
    .geglu = geglu,
    .rope = rope,
    .kv_store = kv_store,
    .attention = attention,
    .argmax = argmax,
    .sum_exp = sum_exp,
};
