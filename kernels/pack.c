/* pack.c - GGUF rows in, panels out: the one layout that every path reads; and the conversions that belong to it.
 *
 * A panel holds KERNEL_PANEL outputs side by side. For the quantised forms it is a run of records, one per group of 32
 * along k, so that a product streams through memory from front to back:
 *
 *   Q4: 4 x 64 bytes of nibbles | 16 x f16 d | 16 x f16 m          (320 bytes)
 *       byte 64 v + 4 o + j: low nibble u(o, 4 v + j), high nibble u(o, 16 + 4 v + j)   o: output, v: vector, j: 0..3
 *   Q8: 8 x 64 bytes of u8 = q + 128 | 16 x f16 d                   (544 bytes)
 *       byte 64 v + 4 o + j: q(o, 4 v + j) + 128
 *   F16, F32: k rows of 16 values
 *
 * Block layouts of the GGUF types: ggml's ggml-common.h.
 */
#include "kernels/internal.h"

#include <string.h>

float f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    union {
        uint32_t bits;
        float value;
    } out;
    if (exponent == 31) {
        out.bits = sign | 0x7f800000 | mantissa << 13;
    } else if (exponent != 0) {
        out.bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        out.value = (float)mantissa * 0x1p-24f;
        out.bits |= sign;
    }
    return out.value;
}

uint16_t f32_to_f16(float x)
{
    union {
        float value;
        uint32_t bits;
    } in = {.value = x};
    uint32_t sign = in.bits >> 16 & 0x8000, magnitude = in.bits & 0x7fffffff;
    if (magnitude >= 0x7f800000) /* infinity, NaN */
        return (uint16_t)(sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0));
    if (magnitude >= 0x477ff000) /* rounds to more than 65504 */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x33000001) /* rounds to zero: at most half of the smallest */
        return (uint16_t)sign;
    uint32_t exponent = magnitude >> 23, mantissa = (magnitude & 0x7fffff) | 0x800000;
    uint32_t shift = exponent < 113 ? 126 - exponent : 13; /* denormals of f16 shift further */
    uint32_t half = 1u << (shift - 1), rest = mantissa & ((half << 1) - 1);
    uint32_t kept = mantissa >> shift;
    kept += rest > half || (rest == half && (kept & 1));
    return (uint16_t)(sign | (exponent < 113 ? kept : kept + ((exponent - 113) << 10)));
}

static uint16_t load_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

bool matrix_form_of(enum gguf_type type, enum matrix_form *form)
{
    switch (type) {
    case GGUF_TYPE_Q4_0:
    case GGUF_TYPE_Q4_1:
        *form = MATRIX_Q4;
        return true;
    case GGUF_TYPE_Q8_0:
        *form = MATRIX_Q8;
        return true;
    case GGUF_TYPE_F16:
        *form = MATRIX_F16;
        return true;
    case GGUF_TYPE_F32:
        *form = MATRIX_F32;
        return true;
    }
    return false;
}

size_t panel_bytes(enum matrix_form form, uint32_t k)
{
    switch (form) {
    case MATRIX_Q4:
        return (size_t)(k / KERNEL_GROUP) * Q4_RECORD_BYTES;
    case MATRIX_Q8:
        return (size_t)(k / KERNEL_GROUP) * Q8_RECORD_BYTES;
    case MATRIX_F16:
        return (size_t)k * KERNEL_PANEL * 2;
    case MATRIX_F32:
        return (size_t)k * KERNEL_PANEL * 4;
    }
    return 0;
}

size_t matrix_bytes(enum matrix_form form, uint32_t n, uint32_t k)
{
    size_t bytes = (size_t)((n + KERNEL_PANEL - 1) / KERNEL_PANEL) * panel_bytes(form, k);
    return (bytes + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
}

size_t gguf_row_bytes(enum gguf_type type, uint32_t k)
{
    bool is_whole = k % KERNEL_GROUP == 0;
    switch (type) {
    case GGUF_TYPE_F32:
        return (size_t)k * 4;
    case GGUF_TYPE_F16:
        return (size_t)k * 2;
    case GGUF_TYPE_Q4_0:
        return is_whole ? (size_t)k / KERNEL_GROUP * 18 : 0;
    case GGUF_TYPE_Q4_1:
        return is_whole ? (size_t)k / KERNEL_GROUP * 20 : 0;
    case GGUF_TYPE_Q8_0:
        return is_whole ? (size_t)k / KERNEL_GROUP * 34 : 0;
    }
    return 0;
}

static void pack_q4(uint8_t *panel, uint32_t lane, enum gguf_type type, const uint8_t *src, uint32_t groups)
{
    size_t head = type == GGUF_TYPE_Q4_1 ? 4 : 2, block = head + 16;
    for (uint32_t g = 0; g < groups; g++, src += block, panel += Q4_RECORD_BYTES) {
        /* byte i of a block: low nibble element i, high nibble element 16 + i, as in a record */
        for (uint32_t i = 0; i < 16; i++)
            panel[64 * (i / 4) + 4 * lane + i % 4] = src[head + i];
        uint16_t d = load_u16(src);
        uint16_t m = type == GGUF_TYPE_Q4_1 ? load_u16(src + 2) : f32_to_f16(-8.0f * f16_to_f32(d));
        memcpy(panel + 256 + 2 * lane, &d, 2);
        memcpy(panel + 288 + 2 * lane, &m, 2);
    }
}

static void pack_q8(uint8_t *panel, uint32_t lane, const uint8_t *src, uint32_t groups)
{
    for (uint32_t g = 0; g < groups; g++, src += 34, panel += Q8_RECORD_BYTES) {
        for (uint32_t i = 0; i < 32; i++)
            panel[64 * (i / 4) + 4 * lane + i % 4] = (uint8_t)(src[2 + i] ^ 0x80); /* q + 128 */
        memcpy(panel + 512 + 2 * lane, src, 2);
    }
}

static void pack_float(uint8_t *panel, uint32_t lane, const uint8_t *src, uint32_t k, size_t bytes)
{
    for (uint32_t i = 0; i < k; i++)
        memcpy(panel + (i * KERNEL_PANEL + lane) * bytes, src + i * bytes, bytes);
}

void matrix_pack_row(const struct matrix *w, uint32_t row, enum gguf_type type, const void *src)
{
    uint8_t *panel = (uint8_t *)(uintptr_t)w->panels + (row / KERNEL_PANEL) * panel_bytes(w->form, w->k);
    uint32_t lane = row % KERNEL_PANEL;
    switch (w->form) {
    case MATRIX_Q4:
        pack_q4(panel, lane, type, src, w->k / KERNEL_GROUP);
        break;
    case MATRIX_Q8:
        pack_q8(panel, lane, src, w->k / KERNEL_GROUP);
        break;
    case MATRIX_F16:
        pack_float(panel, lane, src, w->k, 2);
        break;
    case MATRIX_F32:
        pack_float(panel, lane, src, w->k, 4);
        break;
    }
}

int matrix_element(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i)
{
    uint32_t g = i / KERNEL_GROUP, e = i % KERNEL_GROUP;
    if (w->form == MATRIX_Q8)
        return panel[(size_t)g * Q8_RECORD_BYTES + 64 * (e / 4) + 4 * lane + e % 4] - 128;
    uint8_t byte = panel[(size_t)g * Q4_RECORD_BYTES + 64 * (e % 16 / 4) + 4 * lane + e % 4];
    return e < 16 ? byte & 15 : byte >> 4;
}

void matrix_scales(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t g, float *d, float *m)
{
    if (w->form == MATRIX_Q8) {
        *d = f16_to_f32(load_u16(panel + (size_t)g * Q8_RECORD_BYTES + 512 + 2 * lane));
        *m = 0;
    } else {
        *d = f16_to_f32(load_u16(panel + (size_t)g * Q4_RECORD_BYTES + 256 + 2 * lane));
        *m = f16_to_f32(load_u16(panel + (size_t)g * Q4_RECORD_BYTES + 288 + 2 * lane));
    }
}

struct matrix matrix_part(const struct matrix *w, uint32_t first, uint32_t count)
{
    size_t offset = first / KERNEL_PANEL * panel_bytes(w->form, w->k);
    return (struct matrix){.form = w->form, .n = count, .k = w->k, .panels = (const uint8_t *)w->panels + offset};
}

void matrix_unpack_row(float *dst, const struct matrix *w, uint32_t row)
{
    const uint8_t *panel = (const uint8_t *)w->panels + (row / KERNEL_PANEL) * panel_bytes(w->form, w->k);
    uint32_t lane = row % KERNEL_PANEL;
    for (uint32_t i = 0; i < w->k; i++) {
        if (w->form == MATRIX_F32) {
            memcpy(dst + i, panel + ((size_t)i * KERNEL_PANEL + lane) * 4, 4);
        } else if (w->form == MATRIX_F16) {
            dst[i] = f16_to_f32(load_u16(panel + ((size_t)i * KERNEL_PANEL + lane) * 2));
        } else {
            float d, m;
            matrix_scales(w, panel, lane, i / KERNEL_GROUP, &d, &m);
            dst[i] = d * (float)matrix_element(w, panel, lane, i) + m;
        }
    }
}

void gguf_dequantize_row(float *dst, enum gguf_type type, const void *src, uint32_t k)
{
    const uint8_t *at = src;
    if (type == GGUF_TYPE_F32) {
        memcpy(dst, src, (size_t)k * 4);
        return;
    }
    if (type == GGUF_TYPE_F16) {
        for (uint32_t i = 0; i < k; i++)
            dst[i] = f16_to_f32(load_u16(at + 2 * i));
        return;
    }
    for (uint32_t g = 0; g < k / KERNEL_GROUP; g++, dst += KERNEL_GROUP) {
        float d = f16_to_f32(load_u16(at));
        if (type == GGUF_TYPE_Q8_0) {
            for (uint32_t i = 0; i < 32; i++)
                dst[i] = d * (float)(int8_t)at[2 + i];
            at += 34;
            continue;
        }
        float m = type == GGUF_TYPE_Q4_1 ? f16_to_f32(load_u16(at + 2)) : -8.0f * d;
        at += type == GGUF_TYPE_Q4_1 ? 4 : 2;
        for (uint32_t i = 0; i < 16; i++) {
            dst[i] = d * (float)(at[i] & 15) + m;
            dst[16 + i] = d * (float)(at[i] >> 4) + m;
        }
        at += 16;
    }
}

size_t kv_block_bytes(uint32_t kv_heads, uint32_t head_dim, uint32_t block_size)
{
    return (size_t)kv_heads * 2 * head_dim * block_size * sizeof(uint16_t);
}

uint64_t hash_floats(const float *x, size_t n)
{
    /* Four independent multiply-rotate lanes over 8-byte words, then one avalanche; constants of splitmix64. */
    uint64_t lanes[4] = {0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0x2545f4914f6cdd1d};
    uint64_t hash = n;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t words[4];
        memcpy(words, x + i, sizeof(words));
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = (lanes[lane] ^ words[lane]) * 0x9e3779b97f4a7c15;
            lanes[lane] ^= lanes[lane] >> 29;
        }
    }
    for (; i < n; i++) {
        uint32_t word;
        memcpy(&word, x + i, sizeof(word));
        lanes[i % 4] = (lanes[i % 4] ^ word) * 0xbf58476d1ce4e5b9;
    }
    for (int lane = 0; lane < 4; lane++) {
        hash = (hash ^ lanes[lane]) * 0x94d049bb133111eb;
        hash ^= hash >> 32;
    }
    hash *= 0xbf58476d1ce4e5b9;
    return hash ^ hash >> 31;
}

size_t attention_scratch_floats(uint32_t positions_max, uint32_t heads)
{
    (void)heads; /* queries are taken a few at a time, whatever their number */
    return (size_t)(positions_max + KERNEL_PANEL) / KERNEL_PANEL * KERNEL_PANEL * ATTENTION_QUERIES_MAX;
}
