/* pack.c - GGUF rows in, panels out: the one layout that every path reads; and the conversions that belong to it.
 *
 * A panel holds KERNEL_PANEL outputs side by side. For the quantised forms it is a run of records, one per group of 32
 * along k, so that a product streams through memory from front to back (o: output, v: 0..3, j: 0..3):
 *
 *   low bits    4 x 64 bytes: byte 64 v + 4 o + j has u(o, 4 v + j) in its low nibble, u(o, 16 + 4 v + j) in its high one
 *   fifth bits  64 bytes: byte 4 o + j has them at bit 2 v, for 16 + 4 v + j at bit 2 v + 1                  (Q5, Q5K)
 *   bits 4, 5   2 x 64 bytes: byte 4 o + j has them at bit 2 v; the second 64 for 16 + 4 v + j, bits of u + 32    (Q6K)
 *   whole       8 x 64 bytes in place of all these: byte 64 v + 4 o + j is u(o, 4 v + j) + 128, v to 7            (Q8)
 *   scales      Q4, Q5: 16 x f16 D | 16 x f16 M            Q4K, Q5K: 16 x f16 d | 16 x f16 e | 16 x s | 16 x t
 *               Q6K: 16 x f16 d | 16 x s of the first half | 16 x s of the second      Q8: 16 x f16 D
 *
 *   F16, BF16, F32: k rows of 16 values
 *
 * Block layouts of the GGUF types: ggml's ggml-common.h.
 */
#include "kernels/internal.h"

#include <string.h>

float bf16_to_f32(uint16_t bits)
{
    union {
        uint32_t bits;
        float value;
    } out = {.bits = (uint32_t)bits << 16};
    return out.value;
}

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

/* ---- what the file holds ---- */

struct type {
    enum gguf_type number;
    enum matrix_form form;
    uint32_t block, bytes; /* elements and bytes of a block */
};

static const struct type types[] = {
    {GGUF_TYPE_F32, MATRIX_F32, 1, 4},      {GGUF_TYPE_F16, MATRIX_F16, 1, 2},
    {GGUF_TYPE_BF16, MATRIX_BF16, 1, 2},    {GGUF_TYPE_Q4_0, MATRIX_Q4, 32, 18},
    {GGUF_TYPE_Q4_1, MATRIX_Q4, 32, 20},    {GGUF_TYPE_Q5_0, MATRIX_Q5, 32, 22},
    {GGUF_TYPE_Q5_1, MATRIX_Q5, 32, 24},    {GGUF_TYPE_Q8_0, MATRIX_Q8, 32, 34},
    {GGUF_TYPE_Q4_K, MATRIX_Q4K, 256, 144}, {GGUF_TYPE_Q5_K, MATRIX_Q5K, 256, 176},
    {GGUF_TYPE_Q6_K, MATRIX_Q6K, 256, 210}, {GGUF_TYPE_IQ4_NL, MATRIX_Q8, 32, 18},
};

static const struct type *type_of(enum gguf_type number)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (types[i].number == number)
            return &types[i];
    return NULL;
}

bool matrix_form_of(enum gguf_type type, enum matrix_form *form)
{
    const struct type *known = type_of(type);
    if (known != NULL)
        *form = known->form;
    return known != NULL;
}

size_t gguf_row_bytes(enum gguf_type type, uint32_t k)
{
    const struct type *known = type_of(type);
    return known != NULL && k % known->block == 0 ? (size_t)k / known->block * known->bytes : 0;
}

/* 32 weights of a row: D * u + M. D is d, or d * s of the half; M is m, or -m * t. */
struct group {
    int16_t u[KERNEL_GROUP];
    uint16_t d, m; /* f16 */
    int16_t s[2];
    uint8_t t;
};

static void read_nibbles(struct group *group, const uint8_t *at, uint32_t fifth_bits)
{
    for (uint32_t i = 0; i < 16; i++) {
        group->u[i] = (int16_t)((at[i] & 15) | (fifth_bits >> i & 1) << 4);
        group->u[16 + i] = (int16_t)(at[i] >> 4 | (fifth_bits >> (16 + i) & 1) << 4);
    }
}

/* Group j of the eight of a K block: its scale and minimum, six bits each, from 12 bytes. */
static void read_k_scales(struct group *group, const uint8_t *packed, uint32_t j)
{
    if (j < 4) {
        group->s[0] = packed[j] & 63;
        group->t = packed[j + 4] & 63;
    } else {
        group->s[0] = (int16_t)((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4);
        group->t = (uint8_t)(packed[j + 4] >> 4 | packed[j] >> 6 << 4);
    }
}

static void read_k_group(struct group *group, enum gguf_type type, const uint8_t *block, uint32_t j)
{
    const uint8_t *high = block + 16, *low = block + (type == GGUF_TYPE_Q5_K ? 48 : 16) + j / 2 * 32;
    group->d = load_u16(block);
    group->m = load_u16(block + 2);
    read_k_scales(group, block + 4, j);
    for (uint32_t i = 0; i < KERNEL_GROUP; i++) {
        group->u[i] = (int16_t)(low[i] >> (j % 2 * 4) & 15);
        if (type == GGUF_TYPE_Q5_K)
            group->u[i] |= (int16_t)((high[i] >> j & 1) << 4);
    }
}

static void read_q6_k_group(struct group *group, const uint8_t *block, uint32_t j)
{
    const uint8_t *low = block + j / 4 * 64 + j % 2 * 32, *high = block + 128 + j / 4 * 32;
    group->d = load_u16(block + 208);
    for (uint32_t half = 0; half < 2; half++)
        group->s[half] = (int8_t)block[192 + 2 * j + half];
    for (uint32_t i = 0; i < KERNEL_GROUP; i++)
        group->u[i] = (int16_t)((low[i] >> (j % 4 / 2 * 4) & 15) | (high[i] >> (j % 4 * 2) & 3) << 4) - 32;
}

static const int8_t iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Group g of a row of a quantised type. */
static void read_group(struct group *group, enum gguf_type type, const uint8_t *row, uint32_t g)
{
    const struct type *known = type_of(type);
    const uint8_t *at = row + (size_t)g * KERNEL_GROUP / known->block * known->bytes;
    uint32_t fifth_bits;
    group->d = load_u16(at);
    switch (type) {
    case GGUF_TYPE_Q4_0:
        read_nibbles(group, at + 2, 0);
        group->m = f32_to_f16(-8.0f * f16_to_f32(group->d));
        break;
    case GGUF_TYPE_Q4_1:
        read_nibbles(group, at + 4, 0);
        group->m = load_u16(at + 2);
        break;
    case GGUF_TYPE_Q5_0:
        memcpy(&fifth_bits, at + 2, 4);
        read_nibbles(group, at + 6, fifth_bits);
        group->m = f32_to_f16(-16.0f * f16_to_f32(group->d));
        break;
    case GGUF_TYPE_Q5_1:
        memcpy(&fifth_bits, at + 4, 4);
        read_nibbles(group, at + 8, fifth_bits);
        group->m = load_u16(at + 2);
        break;
    case GGUF_TYPE_Q8_0:
        for (uint32_t i = 0; i < KERNEL_GROUP; i++)
            group->u[i] = (int8_t)at[2 + i];
        break;
    case GGUF_TYPE_IQ4_NL:
        read_nibbles(group, at + 2, 0);
        for (uint32_t i = 0; i < KERNEL_GROUP; i++)
            group->u[i] = iq4_nl_values[group->u[i]];
        break;
    case GGUF_TYPE_Q4_K:
    case GGUF_TYPE_Q5_K:
        read_k_group(group, type, at, g % 8);
        break;
    case GGUF_TYPE_Q6_K:
        read_q6_k_group(group, at, g % 8);
        break;
    default:
        break;
    }
}

static void group_scales(const struct group *group, enum matrix_form form, uint32_t i, float *d, float *m)
{
    *d = f16_to_f32(group->d);
    *m = 0;
    if (form == MATRIX_Q4 || form == MATRIX_Q5)
        *m = f16_to_f32(group->m);
    if (form == MATRIX_Q4K || form == MATRIX_Q5K) {
        *d *= (float)group->s[0];
        *m = -f16_to_f32(group->m) * (float)group->t;
    }
    if (form == MATRIX_Q6K)
        *d *= (float)group->s[i / 16];
}

static float read_float(enum gguf_type type, const uint8_t *at)
{
    float value;
    if (type == GGUF_TYPE_F32)
        memcpy(&value, at, sizeof(value));
    else
        value = type == GGUF_TYPE_F16 ? f16_to_f32(load_u16(at)) : bf16_to_f32(load_u16(at));
    return value;
}

void gguf_dequantize_row(float *dst, enum gguf_type type, const void *src, uint32_t k)
{
    const struct type *known = type_of(type);
    if (!matrix_is_quantized(known->form)) {
        for (uint32_t i = 0; i < k; i++)
            dst[i] = read_float(type, (const uint8_t *)src + (size_t)i * known->bytes);
        return;
    }
    for (uint32_t g = 0; g < k / KERNEL_GROUP; g++, dst += KERNEL_GROUP) {
        struct group group;
        read_group(&group, type, src, g);
        for (uint32_t i = 0; i < KERNEL_GROUP; i++) {
            float d, m;
            group_scales(&group, known->form, i, &d, &m);
            dst[i] = d * (float)group.u[i] + m;
        }
    }
}

/* ---- packed matrices ---- */

static size_t float_bytes(enum matrix_form form)
{
    return form == MATRIX_F32 ? 4 : 2;
}

size_t panel_bytes(enum matrix_form form, uint32_t k)
{
    return matrix_is_quantized(form) ? k / KERNEL_GROUP * record_bytes_of(form)
                                     : (size_t)k * KERNEL_PANEL * float_bytes(form);
}

size_t matrix_bytes(enum matrix_form form, uint32_t n, uint32_t k)
{
    size_t bytes = (size_t)((n + KERNEL_PANEL - 1) / KERNEL_PANEL) * panel_bytes(form, k);
    return (bytes + KERNEL_ALIGN - 1) / KERNEL_ALIGN * KERNEL_ALIGN;
}

/* Where element e of a group stands in a record: its byte in each 64, its vector, and whether it is of the second half. */
static uint32_t byte_of(uint32_t lane, uint32_t e)
{
    return 4 * lane + e % 4;
}

static void write_integers(uint8_t *record, enum matrix_form form, uint32_t lane, const struct group *group)
{
    for (uint32_t e = 0; e < KERNEL_GROUP; e++) {
        uint32_t v = e % 16 / 4, half = e / 16, u = (uint32_t)(group->u[e] + (form == MATRIX_Q6K ? 32 : 0));
        if (form == MATRIX_Q8) {
            record[64 * (e / 4) + byte_of(lane, e)] = (uint8_t)(group->u[e] + 128);
            continue;
        }
        record[64 * v + byte_of(lane, e)] |= (uint8_t)((u & 15) << 4 * half);
        if (form == MATRIX_Q5 || form == MATRIX_Q5K)
            record[NIBBLE_BYTES + byte_of(lane, e)] |= (uint8_t)(u >> 4 << (2 * v + half));
        if (form == MATRIX_Q6K)
            record[NIBBLE_BYTES + 64 * half + byte_of(lane, e)] |= (uint8_t)(u >> 4 << 2 * v);
    }
}

static void write_scales(uint8_t *scales, enum matrix_form form, uint32_t lane, const struct group *group)
{
    memcpy(scales + 2 * lane, &group->d, 2);
    if (form == MATRIX_Q6K) {
        scales[32 + lane] = (uint8_t)group->s[0];
        scales[48 + lane] = (uint8_t)group->s[1];
    } else if (form != MATRIX_Q8) {
        memcpy(scales + 32 + 2 * lane, &group->m, 2);
    }
    if (form == MATRIX_Q4K || form == MATRIX_Q5K) {
        scales[64 + lane] = (uint8_t)group->s[0];
        scales[80 + lane] = group->t;
    }
}

void matrix_pack_row(const struct matrix *w, uint32_t row, enum gguf_type type, const void *src)
{
    uint8_t *panel = (uint8_t *)(uintptr_t)w->panels + (row / KERNEL_PANEL) * panel_bytes(w->form, w->k);
    uint32_t lane = row % KERNEL_PANEL;
    if (!matrix_is_quantized(w->form)) {
        size_t bytes = float_bytes(w->form);
        for (uint32_t i = 0; i < w->k; i++)
            memcpy(panel + ((size_t)i * KERNEL_PANEL + lane) * bytes, (const uint8_t *)src + i * bytes, bytes);
        return;
    }
    for (uint32_t g = 0; g < w->k / KERNEL_GROUP; g++, panel += record_bytes_of(w->form)) {
        struct group group;
        read_group(&group, type, src, g);
        write_integers(panel, w->form, lane, &group);
        write_scales(panel + scales_offset(w->form), w->form, lane, &group);
    }
}

int matrix_element(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i)
{
    const uint8_t *record = panel + i / KERNEL_GROUP * record_bytes_of(w->form);
    uint32_t e = i % KERNEL_GROUP, v = e % 16 / 4, half = e / 16;
    if (w->form == MATRIX_Q8)
        return record[64 * (e / 4) + byte_of(lane, e)] - 128;
    int u = record[64 * v + byte_of(lane, e)] >> 4 * half & 15;
    if (w->form == MATRIX_Q5 || w->form == MATRIX_Q5K)
        u |= (record[NIBBLE_BYTES + byte_of(lane, e)] >> (2 * v + half) & 1) << 4;
    if (w->form == MATRIX_Q6K)
        u = (u | (record[NIBBLE_BYTES + 64 * half + byte_of(lane, e)] >> 2 * v & 3) << 4) - 32;
    return u;
}

void matrix_scales(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i, float *d, float *m)
{
    const uint8_t *scales = panel + i / KERNEL_GROUP * record_bytes_of(w->form) + scales_offset(w->form);
    struct group group = {.d = load_u16(scales + 2 * lane)};
    if (w->form == MATRIX_Q6K) {
        group.s[0] = (int8_t)scales[32 + lane];
        group.s[1] = (int8_t)scales[48 + lane];
    } else if (w->form != MATRIX_Q8) {
        group.m = load_u16(scales + 32 + 2 * lane);
    }
    if (w->form == MATRIX_Q4K || w->form == MATRIX_Q5K) {
        group.s[0] = scales[64 + lane];
        group.t = scales[80 + lane];
    }
    group_scales(&group, w->form, i % KERNEL_GROUP, d, m);
}

float matrix_float(const struct matrix *w, const uint8_t *panel, uint32_t lane, uint32_t i)
{
    static const enum gguf_type of[] = {
        [MATRIX_F16] = GGUF_TYPE_F16, [MATRIX_BF16] = GGUF_TYPE_BF16, [MATRIX_F32] = GGUF_TYPE_F32};
    return read_float(of[w->form], panel + ((size_t)i * KERNEL_PANEL + lane) * float_bytes(w->form));
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
        if (matrix_is_quantized(w->form)) {
            float d, m;
            matrix_scales(w, panel, lane, i, &d, &m);
            dst[i] = d * (float)matrix_element(w, panel, lane, i) + m;
        } else {
            dst[i] = matrix_float(w, panel, lane, i);
        }
    }
}

size_t kv_block_bytes(enum kv_type type, uint32_t kv_heads, uint32_t head_dim, uint32_t block_size)
{
    return kv_heads * kv_head_bytes(type, head_dim, block_size);
}

static const char *const kv_type_names[KV_TYPES] = {[KV_F16] = "f16", [KV_Q8] = "q8"};

const char *kv_type_name(enum kv_type type)
{
    return kv_type_names[type];
}

bool kv_type_of(const char *name, enum kv_type *type)
{
    for (uint32_t i = 0; i < KV_TYPES; i++)
        if (strcmp(name, kv_type_names[i]) == 0) {
            *type = (enum kv_type)i;
            return true;
        }
    return false;
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
