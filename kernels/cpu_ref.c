/* cpu_ref.c - the truth: every kernel as plain loops, sums in double. Slow on purpose; the fast paths are tested against it. */
#include "kernels/internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

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

/* K and V of a head in the block that holds a position. */
static uint16_t *kv_of(const struct attention *a, uint32_t head, uint32_t position)
{
    uint8_t *block = a->kv + (size_t)a->blocks[position / a->block_size] * a->block_stride;
    return (uint16_t *)(void *)block + (size_t)head * 2 * a->head_dim * a->block_size;
}

static void kv_store(const struct attention *a, const float *k, const float *v, size_t stride)
{
    for (uint32_t r = 0; r < a->rows; r++, k += stride, v += stride) {
        uint32_t position = a->first_pos + r, in_block = position % a->block_size;
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            uint16_t *keys = kv_of(a, h, position), *values = keys + (size_t)a->head_dim * a->block_size;
            for (uint32_t i = 0; i < a->head_dim; i++) {
                keys[(size_t)i * a->block_size + in_block] = f32_to_f16(k[h * a->head_dim + i]);
                values[(size_t)in_block * a->head_dim + i] = f32_to_f16(v[h * a->head_dim + i]);
            }
        }
    }
}

static void attend_one(const struct attention *a, const float *q, float *out, uint32_t head, uint32_t positions)
{
    uint32_t first = positions > a->window ? positions - a->window : 0;
    double max = -INFINITY, sum = 0;
    for (uint32_t p = first; p < positions; p++) {
        const uint16_t *keys = kv_of(a, head, p);
        double score = 0;
        for (uint32_t i = 0; i < a->head_dim; i++)
            score += (double)q[i] * f16_to_f32(keys[(size_t)i * a->block_size + p % a->block_size]);
        a->scratch[p] = (float)(score * a->scale);
        max = fmax(max, a->scratch[p]);
    }
    for (uint32_t p = first; p < positions; p++)
        sum += exp(a->scratch[p] - max);
    for (uint32_t i = 0; i < a->head_dim; i++) {
        double value = 0;
        for (uint32_t p = first; p < positions; p++) {
            const uint16_t *values = kv_of(a, head, p) + (size_t)a->head_dim * a->block_size;
            value += exp(a->scratch[p] - max) * f16_to_f32(values[(size_t)(p % a->block_size) * a->head_dim + i]);
        }
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
        double term = exp(((double)logits[i] - max) * inv_temperature);
        if (probs != NULL)
            probs[i] = (float)term;
        sum += term;
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
