/* cpu_simd.h - the fast paths' kernels, written once over simd.h. cpu_avx512.c and cpu_avx2.c include it, each with its
 * PATH_NAME and PATH_TABLE, and with what its registers hold: PATH_ROWS_MAX (rows of the largest tile of a product),
 * PATH_QUERIES_MAX (queries that attention takes together; 6 or 12) and PATH_CHAINS (sums that fewer queries fill up to).
 * PATH_ROWS_AHEAD: the fewest rows of a tile that asks for weights before it needs them.
 *
 * Used by: cpu_avx512.c, cpu_avx2.c.   Owns: nothing.   Never blocks, never allocates.
 *
 * What decides a bit is the order of operations on one output, and that is the same in every tile: tiles only choose how
 * many outputs are under way at once.
 */
#include "kernels/internal.h"
#include "kernels/simd.h"

#include <assert.h>
#include <float.h>
#include <math.h>

/* ---- products ---- */

#define SUMS_MAX 1024u /* k up to 32768, half of it in halves; where k is larger, every tile takes the sums anew */

/* Sums of a panel's integers, per group (or half of one) and lane, as floats: exact, and the same for every row. */
struct panel_sums {
    float lanes[SUMS_MAX][LANES] __attribute__((aligned(64)));
};

struct product {
    float *out; /* row r, output i of the panel: out[r * out_stride + i] */
    size_t out_stride;
    uint32_t outputs; /* of this panel that exist: 16, fewer in the last one */
    const uint8_t *panel;
    const struct activations *a;
    uint32_t groups;
};

/* t = scale * I + offset * U, then acc += D * t: of a group, or of half a group. */
INLINE vf chain(vf acc, vf d, vi dot, vf sum, const struct activations *a, size_t at)
{
    vf t = vf_fma(vf_set1(a->scale[at]), vf_from_vi(dot), vf_mul(vf_set1(a->offset[at]), sum));
    return vf_fma(d, t, acc);
}

/* The integers' sum of a panel's group: taken by the first tile, found by the later ones. */
INLINE vf kept_sum(struct panel_sums *sums, uint32_t index, vi sum, const bool is_first)
{
    float *kept = sums->lanes[index % SUMS_MAX];
    vf sum_f = is_first ? vf_from_vi(sum) : vf_load(kept);
    if (is_first)
        vf_store(kept, sum_f);
    return sum_f;
}

/* One group of one panel for `rows` rows, of the forms with nibbles and a minimum: integer sums, then the chain of fused
 * operations. is_first: the panel's integer sums are taken here and kept; later tiles of the panel find them. */
INLINE void nibble_group(const struct product *p, const enum matrix_form form, struct panel_sums *sums, uint32_t row,
                         uint32_t g, const uint32_t rows, const bool is_first, vf acc[])
{
    const bool has_fifth_bits = form == MATRIX_Q5 || form == MATRIX_Q5K;
    const struct activations *a = p->a;
    const uint8_t *record = p->panel + g * record_bytes_of(form), *scales = record + scales_offset(form);
    const uint32_t open = has_fifth_bits ? 4 : 8; /* dots */
    vi dot[PATH_ROWS_MAX], pairs[PATH_ROWS_MAX], sum = vi_set1(0);
    vi fifth = has_fifth_bits ? vi_load(record + NIBBLE_BYTES) : vi_set1(0);
    static_assert(DOTS_OPEN_MAX(31) >= 4 && DOTS_OPEN_MAX(15) >= 8, "they fit");
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++)
        dot[r] = vi_set1(0);
    UNROLL(4)
    for (uint32_t v = 0; v < 4; v++) {
        const int8_t *q = a->q + (size_t)row * a->k + g * KERNEL_GROUP + 4 * v;
        vi bytes = vi_load(record + 64 * v);
        UNROLL(2)
        for (uint32_t half = 0; half < 2; half++, q += KERNEL_GROUP / 2) { /* few registers are taken at a time */
            const uint32_t call = 2 * v + half;
            vi u = half == 0 ? vi_low_nibbles(bytes) : vi_high_nibbles(bytes);
            if (has_fifth_bits)
                u = vi_add_u8(u, vi_field_to_4(fifth, call, 0x10));
            if (is_first)
                sum = vi_add_u8(sum, u); /* bytes of at most 8 * 31 */
            UNROLL(16)
            for (uint32_t r = 0; r < rows; r++)
                vi_dot_u4(&dot[r], &pairs[r], u, q + (size_t)r * a->k, call % open == 0, (call + 1) % open == 0);
        }
    }
    vf sum_f = kept_sum(sums, g, is_first ? vi_sum_u8(vi_set1(0), sum) : sum, is_first);
    vf d = vf_from_f16((const uint16_t *)(const void *)scales);
    vf m = vf_from_f16((const uint16_t *)(const void *)(scales + 32));
    if (form == MATRIX_Q4K || form == MATRIX_Q5K) {
        d = vf_mul(d, vf_from_u8(scales + 64));
        m = vf_sub(vf_zero(), vf_mul(m, vf_from_u8(scales + 80)));
    }
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++) {
        size_t at = (size_t)(row + r) * p->groups + g;
        acc[r] = chain(acc[r], d, dot[r], sum_f, a, at);
        acc[r] = vf_fma(m, vf_set1(a->total[at]), acc[r]);
    }
}

/* Q6K: the halves of a group have scales of their own; the 32 that each u is short of is taken off their sums. */
INLINE void q6_group(const struct product *p, struct panel_sums *sums, uint32_t row, uint32_t g, const uint32_t rows,
                     const bool is_first, vf acc[])
{
    const struct activations *a = p->a;
    const uint8_t *record = p->panel + g * record_bytes_of(MATRIX_Q6K), *scales = record + scales_offset(MATRIX_Q6K);
    vf d = vf_from_f16((const uint16_t *)(const void *)scales);
    UNROLL(2)
    for (uint32_t half = 0; half < 2; half++) {
        vi dot[PATH_ROWS_MAX], pairs[PATH_ROWS_MAX], sum = vi_set1(0);
        vi bits = vi_load(record + NIBBLE_BYTES + 64 * half);
        static_assert(DOTS_OPEN_MAX(63) >= 2, "they fit");
        UNROLL(16)
        for (uint32_t r = 0; r < rows; r++) {
            size_t at = (size_t)(row + r) * p->groups + g;
            dot[r] = vi_set1(-32 * (half == 0 ? a->half[at] : a->start[at] / -128 - a->half[at]));
        }
        UNROLL(4)
        for (uint32_t v = 0; v < 4; v++) {
            vi bytes = vi_load(record + 64 * v);
            vi u =
                vi_add_u8(half == 0 ? vi_low_nibbles(bytes) : vi_high_nibbles(bytes), vi_field_to_4(bits, 2 * v, 0x30));
            if (is_first)
                sum = vi_add_u8(sum, u); /* bytes of at most 4 * 63 */
            UNROLL(16)
            for (uint32_t r = 0; r < rows; r++)
                vi_dot_u4(&dot[r], &pairs[r], u, a->q + (size_t)(row + r) * a->k + g * KERNEL_GROUP + 16 * half + 4 * v,
                          v % 2 == 0, v % 2 == 1);
        }
        vf sum_f = kept_sum(sums, 2 * g + half, is_first ? vi_sum_u8(vi_set1(-32 * 16), sum) : sum, is_first);
        vf d_half = vf_mul(d, vf_from_i8(scales + 32 + 16 * half));
        UNROLL(16)
        for (uint32_t r = 0; r < rows; r++)
            acc[r] = chain(acc[r], d_half, dot[r], sum_f, a, (size_t)(row + r) * p->groups + g);
    }
}

INLINE void q8_group(const struct product *p, struct panel_sums *sums, uint32_t row, uint32_t g, const uint32_t rows,
                     const bool is_first, vf acc[])
{
    const struct activations *a = p->a;
    const uint8_t *record = p->panel + g * record_bytes_of(MATRIX_Q8);
    vi dot[PATH_ROWS_MAX], sum = vi_set1(-128 * (int32_t)KERNEL_GROUP);
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++)
        dot[r] = vi_set1(centred_start(a->start[(size_t)(row + r) * p->groups + g]));
    UNROLL(8)
    for (uint32_t v = 0; v < 8; v++) {
        vi bytes = vi_load(record + 64 * v);
        if (is_first)
            sum = vi_sum_u8(sum, bytes);
        UNROLL(16)
        for (uint32_t r = 0; r < rows; r++)
            dot[r] = vi_dot_centred(dot[r], bytes, a->q + (size_t)(row + r) * a->k + g * KERNEL_GROUP + 4 * v);
    }
    vf sum_f = kept_sum(sums, g, sum, is_first);
    vf d = vf_from_f16((const uint16_t *)(const void *)(record + scales_offset(MATRIX_Q8)));
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++)
        acc[r] = chain(acc[r], d, dot[r], sum_f, a, (size_t)(row + r) * p->groups + g);
}

/* One float of k: w(., i) times x(r, i). */
INLINE void float_step(const struct product *p, const enum matrix_form form, uint32_t row, uint32_t i,
                       const uint32_t rows, vf acc[])
{
    size_t at = (size_t)i * KERNEL_PANEL;
    const void *panel = p->panel;
    vf w = form == MATRIX_F32   ? vf_load((const float *)panel + at)
           : form == MATRIX_F16 ? vf_from_f16((const uint16_t *)panel + at)
                                : vf_from_bf16((const uint16_t *)panel + at);
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++)
        acc[r] = vf_fma(w, vf_set1(p->a->f32[(size_t)(row + r) * p->a->k + i]), acc[r]);
}

/* How far ahead a tile of PATH_ROWS_AHEAD rows or more asks for weights: past the end of a page, where the processor's own
 * prefetch stops. */
#define PREFETCH_BYTES 4096

INLINE void tile(const struct product *p, const enum matrix_form form, struct panel_sums *sums, uint32_t row,
                 const uint32_t rows, const bool is_first)
{
    vf acc[PATH_ROWS_MAX];
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++)
        acc[r] = vf_zero();
    if (matrix_is_quantized(form)) {
        const size_t record_bytes = record_bytes_of(form);
        for (uint32_t g = 0; g < p->groups; g++) {
            if (is_first && rows >= PATH_ROWS_AHEAD)
                UNROLL(9)
            for (size_t line = 0; line < record_bytes; line += 64)
                _mm_prefetch((const char *)p->panel + g * record_bytes + PREFETCH_BYTES + line, _MM_HINT_T0);
            if (form == MATRIX_Q8)
                q8_group(p, sums, row, g, rows, is_first, acc);
            else if (form == MATRIX_Q6K)
                q6_group(p, sums, row, g, rows, is_first, acc);
            else
                nibble_group(p, form, sums, row, g, rows, is_first, acc);
        }
    } else {
        for (uint32_t i = 0; i < p->a->k; i++)
            float_step(p, form, row, i, rows, acc);
    }
    UNROLL(16)
    for (uint32_t r = 0; r < rows; r++) {
        float *out = p->out + (size_t)(row + r) * p->out_stride;
        if (p->outputs == LANES)
            vf_store(out, acc[r]);
        else
            vf_store_n(out, acc[r], p->outputs);
    }
}

INLINE void tile_of(const struct product *p, const enum matrix_form form, struct panel_sums *sums, uint32_t row,
                    const uint32_t rows)
{
    if (row == 0 || p->groups > (form == MATRIX_Q6K ? SUMS_MAX / 2 : SUMS_MAX))
        tile(p, form, sums, row, rows, true);
    else
        tile(p, form, sums, row, rows, false);
}

/* All rows of one panel, in tiles. */
INLINE void panel_rows(const struct product *p, const enum matrix_form form, struct panel_sums *sums)
{
    uint32_t row = 0, rows = p->a->rows;
#if PATH_ROWS_MAX >= 8
    for (; rows - row >= 8; row += 8)
        tile_of(p, form, sums, row, 8);
#endif
    for (; rows - row >= 4; row += 4)
        tile_of(p, form, sums, row, 4);
    for (; rows - row >= 2; row += 2)
        tile_of(p, form, sums, row, 2);
    if (rows > row)
        tile_of(p, form, sums, row, 1);
}

INLINE void matmul_form(float *out, size_t out_stride, const struct matrix *w, const struct activations *a,
                        enum matrix_form form)
{
    struct panel_sums sums;
    size_t bytes = panel_bytes(form, w->k);
    for (uint32_t first = 0; first < w->n; first += KERNEL_PANEL) {
        const struct product p = {.out = out + first,
                                  .out_stride = out_stride,
                                  .outputs = w->n - first < KERNEL_PANEL ? w->n - first : KERNEL_PANEL,
                                  .panel = (const uint8_t *)w->panels + (first / KERNEL_PANEL) * bytes,
                                  .a = a,
                                  .groups = w->k / KERNEL_GROUP};
        panel_rows(&p, form, &sums);
    }
}

/* One function a form, so that the compiler builds each from its own loops. */
#define MATMUL_OF(FORM)                                                                                                \
    static void matmul_##FORM(float *out, size_t out_stride, const struct matrix *w, const struct activations *a)      \
    {                                                                                                                  \
        matmul_form(out, out_stride, w, a, MATRIX_##FORM);                                                             \
    }
MATMUL_OF(Q4)
MATMUL_OF(Q5)
MATMUL_OF(Q4K)
MATMUL_OF(Q5K)
MATMUL_OF(Q6K)
MATMUL_OF(Q8)
MATMUL_OF(F16)
MATMUL_OF(BF16)
MATMUL_OF(F32)

static void matmul(float *out, size_t out_stride, const struct matrix *w, const struct activations *a)
{
    static void (*const of[])(float *, size_t, const struct matrix *, const struct activations *) = {
        [MATRIX_Q4] = matmul_Q4,   [MATRIX_Q5] = matmul_Q5,     [MATRIX_Q4K] = matmul_Q4K,
        [MATRIX_Q5K] = matmul_Q5K, [MATRIX_Q6K] = matmul_Q6K,   [MATRIX_Q8] = matmul_Q8,
        [MATRIX_F16] = matmul_F16, [MATRIX_BF16] = matmul_BF16, [MATRIX_F32] = matmul_F32,
    };
    of[w->form](out, out_stride, w, a);
}

/* ---- rows ---- */

/* exp(x): 2^n * p(r), n whole, r in -ln2/2..ln2/2; Taylor's polynomial of degree 6 there: relative error under 2e-7.
 * Below -87 the result is 0, above 88 it is that of 88. draw_exp() in draw.h is the same, to the bit. */
INLINE vf vf_exp(vf x)
{
    vf low = vf_set1(-87.0f);
    vf clamped = vf_min(vf_max(x, low), vf_set1(88.0f));
    vf n = vf_round(vf_mul(clamped, vf_set1(1.44269504f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), clamped); /* ln 2 in two parts */
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.0f / 720);
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_select_greater(low, x, vf_zero(), vf_mul(p, vf_power2(n)));
}

/* Squares in 16 lanes by index modulo 16, folded in the tree of vf_sum(). */
static void rms_norm(float *out, const float *x, const float *gain, uint32_t rows, uint32_t width, float eps)
{
    uint32_t whole = width / LANES * LANES;
    for (uint32_t r = 0; r < rows; r++, x += width, out += width) {
        vf sum = vf_zero();
        for (uint32_t i = 0; i < whole; i += LANES) {
            vf v = vf_load(x + i);
            sum = vf_fma(v, v, sum);
        }
        if (whole < width) {
            vf v = vf_load_n(x + whole, width - whole);
            sum = vf_fma(v, v, sum);
        }
        vf factor = vf_set1(1.0f / sqrtf(vf_sum(sum) / (float)width + eps));
        for (uint32_t i = 0; i < whole; i += LANES)
            vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), factor), vf_load(gain + i)));
        for (uint32_t i = whole; i < width; i++) {
            vf one = vf_mul(vf_mul(vf_set1(x[i]), factor), vf_set1(gain[i]));
            vf_store_n(out + i, one, 1);
        }
    }
}

static void quantize(struct activations *a)
{
    size_t groups = (size_t)a->rows * (a->k / KERNEL_GROUP);
    for (size_t g = 0; g < groups; g++) {
        vf x = vf_load(a->f32 + g * KERNEL_GROUP), y = vf_load(a->f32 + g * KERNEL_GROUP + LANES);
        float max = vf_greatest(vf_max(x, y));
        float min = -vf_greatest(vf_max(vf_sub(vf_zero(), x), vf_sub(vf_zero(), y)));
        float offset = 0.5f * max + 0.5f * min, scale = (0.5f * max - 0.5f * min) * (1.0f / 127);
        scale = scale < FLT_MIN ? 0 : scale; /* a denormal has no inverse */
        vf inverse = vf_set1(scale > 0 ? 1 / scale : 0), middle = vf_set1(offset);
        vf top = vf_set1(127), bottom = vf_set1(-127);
        x = vf_max(vf_min(vf_mul(vf_sub(x, middle), inverse), top), bottom);
        y = vf_max(vf_min(vf_mul(vf_sub(y, middle), inverse), top), bottom);
        int32_t half = vf_to_i8(a->q + g * KERNEL_GROUP, x);
        int32_t sum = half + vf_to_i8(a->q + g * KERNEL_GROUP + LANES, y);
        a->scale[g] = scale;
        a->offset[g] = offset;
        a->total[g] = __builtin_fmaf(scale, (float)sum, KERNEL_GROUP * offset);
        a->start[g] = -128 * sum;
        a->half[g] = half;
    }
}

static void add(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
    for (; i < n; i++)
        x[i] += y[i];
}

/* out = f(gate) * up, f(x) = x / (1 + exp(-y)): silu with y = x, gelu with tanh's polynomial. */
INLINE void gated(float *out, const float *in, uint32_t rows, uint32_t width, const bool is_gelu)
{
    for (uint32_t r = 0; r < rows; r++, in += 2 * (size_t)width, out += width)
        for (uint32_t i = 0; i < width; i += LANES) {
            uint32_t n = width - i < LANES ? width - i : LANES;
            vf gate = n == LANES ? vf_load(in + i) : vf_load_n(in + i, n);
            vf up = n == LANES ? vf_load(in + width + i) : vf_load_n(in + width + i, n);
            vf y = gate;
            if (is_gelu) {
                vf cube = vf_mul(vf_mul(gate, gate), gate);
                y = vf_mul(vf_fma(vf_set1(0.044715f), cube, gate), vf_set1(1.59576912f)); /* 2 * sqrt(2 / pi) */
            }
            vf activated = vf_div(gate, vf_add(vf_set1(1), vf_exp(vf_sub(vf_zero(), y))));
            if (n == LANES)
                vf_store(out + i, vf_mul(activated, up));
            else
                vf_store_n(out + i, vf_mul(activated, up), n);
        }
}

static void swiglu(float *out, const float *in, uint32_t rows, uint32_t width)
{
    gated(out, in, rows, width, false);
}

static void geglu(float *out, const float *in, uint32_t rows, uint32_t width)
{
    gated(out, in, rows, width, true);
}

static void rope(float *x, size_t stride, const float *cos_sin, uint32_t rows, uint32_t heads, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;
    for (uint32_t r = 0; r < rows; r++, x += stride, cos_sin += head_dim)
        for (uint32_t h = 0; h < heads; h++)
            for (uint32_t i = 0; i < half; i += LANES) {
                uint32_t n = half - i < LANES ? half - i : LANES;
                float *first = x + (size_t)h * head_dim + i, *second = first + half;
                vf a = vf_load_n(first, n), b = vf_load_n(second, n);
                vf c = vf_load_n(cos_sin + i, n), s = vf_load_n(cos_sin + half + i, n);
                vf_store_n(first, vf_fma(a, c, vf_sub(vf_zero(), vf_mul(b, s))), n);
                vf_store_n(second, vf_fma(b, c, vf_mul(a, s)), n);
            }
}

/* ---- attention ---- */

#define VECTORS_MAX 4u /* vectors of positions, or of head_dim, under way at once for each query */

INLINE size_t element_bytes(const enum kv_type type)
{
    return type == KV_Q8 ? 1 : 2;
}

/* K of a KV head in the block that holds a position; its V stands elements_bytes() behind, scales behind both. */
INLINE uint8_t *keys_of(const struct attention *a, const enum kv_type type, uint32_t head, uint32_t position)
{
    uint8_t *block = a->kv + (size_t)a->blocks[position / a->block_size] * a->block_stride;
    return block + head * kv_head_bytes(type, a->head_dim, a->block_size);
}

INLINE size_t elements_bytes(const struct attention *a, const enum kv_type type)
{
    return (size_t)a->head_dim * a->block_size * element_bytes(type);
}

/* The scales of K in the block that keys_of() points into, those of V behind them. */
INLINE float *scales_of(const struct attention *a, uint8_t *keys)
{
    return (float *)(void *)(keys + 2 * elements_bytes(a, KV_Q8));
}

/* Sixteen elements that follow one another. */
INLINE vf elements(const uint8_t *at, const enum kv_type type)
{
    return type == KV_Q8 ? vf_from_i8(at) : vf_from_f16((const uint16_t *)(const void *)at);
}

/* Eight from each of two places. */
INLINE vf elements_halves(const uint8_t *at, const uint8_t *more, const enum kv_type type)
{
    return type == KV_Q8 ? vf_from_i8_halves(at, more)
                         : vf_from_f16_halves((const uint16_t *)(const void *)at, (const uint16_t *)(const void *)more);
}

/* x as bytes; those of each 16 that follow one another stand step apart. Returns their scale. */
INLINE float store_bytes(int8_t *to, size_t step, const float *x, uint32_t count)
{
    vf most = vf_zero();
    for (uint32_t i = 0; i < count; i += LANES) {
        vf v = vf_load(x + i);
        most = vf_max(most, vf_max(v, vf_sub(vf_zero(), v)));
    }
    float scale = vf_greatest(most) * (1.0f / 127);
    scale = scale < FLT_MIN ? 0 : scale; /* a denormal has no inverse */
    vf inverse = vf_set1(scale > 0 ? 1 / scale : 0);
    for (uint32_t i = 0; i < count; i += LANES) {
        int8_t bytes[LANES];
        vf_to_i8(bytes, vf_mul(vf_load(x + i), inverse));
        for (uint32_t j = 0; j < LANES; j++)
            to[(i + j) * step] = bytes[j];
    }
    return scale;
}

static void store_q8(const struct attention *a, uint8_t *keys, uint32_t in_block, const float *k, const float *v)
{
    float *scales = scales_of(a, keys);
    int8_t *values = (int8_t *)keys + elements_bytes(a, KV_Q8) + (size_t)in_block * a->head_dim;
    scales[in_block] = store_bytes((int8_t *)keys + in_block, a->block_size, k, a->head_dim);
    scales[a->block_size + in_block] = store_bytes(values, 1, v, a->head_dim);
}

static void store_f16(const struct attention *a, uint16_t *keys, uint32_t in_block, const float *k, const float *v)
{
    uint16_t *values = keys + (size_t)a->head_dim * a->block_size + (size_t)in_block * a->head_dim;
    for (uint32_t i = 0; i < a->head_dim; i += LANES) {
        uint16_t halves[LANES];
        vf_to_f16(halves, vf_load(k + i));
        for (uint32_t j = 0; j < LANES; j++)
            keys[(size_t)(i + j) * a->block_size + in_block] = halves[j];
        vf_to_f16(values + i, vf_load(v + i));
    }
}

static void kv_store(const struct attention *a, const float *k, const float *v, size_t stride)
{
    for (uint32_t r = 0; r < a->rows; r++, k += stride, v += stride) {
        uint32_t position = a->first_pos + r, in_block = position % a->block_size;
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            const float *key = k + (size_t)h * a->head_dim, *value = v + (size_t)h * a->head_dim;
            if (a->kv_type == KV_Q8)
                store_q8(a, keys_of(a, KV_Q8, h, position), in_block, key, value);
            else
                store_f16(a, (uint16_t *)(void *)keys_of(a, KV_F16, h, position), in_block, key, value);
        }
    }
}

/* A query: one head of one row. */
struct query {
    const float *q;     /* (head_dim) */
    float *out;         /* (head_dim) */
    uint32_t first;     /* it attends to positions first.. */
    uint32_t positions; /* .. to before this one */
    float sum;
};

/* Queries are taken a few at a time, `count` of them, all of one KV head and in order of their rows. Their scores, later
 * their weights, stand side by side: of query i and position p at scratch[(p / 16 * count + i) * 16 + p % 16]. */
INLINE float *score_at(const struct attention *a, const uint32_t count, uint32_t i, uint32_t position)
{
    return a->scratch + ((size_t)(position / LANES) * count + i) * LANES + position % LANES;
}

/* How many vectors go with `count` queries. */
INLINE uint32_t vectors_for(const uint32_t count)
{
    return PATH_CHAINS / count < 1 ? 1 : PATH_CHAINS / count > VECTORS_MAX ? VECTORS_MAX : PATH_CHAINS / count;
}

#define QUERY_PART 128u /* floats of head_dim gathered at a time */

/* The scales of K of 16 positions. */
INLINE vf key_scales(const struct attention *a, uint32_t head, uint32_t at, uint32_t last, const bool is_split)
{
    const float *scales = scales_of(a, keys_of(a, KV_Q8, head, at));
    if (is_split)
        return vf_load_halves(scales, at + 8 <= last ? scales_of(a, keys_of(a, KV_Q8, head, at + 8)) : scales);
    return vf_load(scales + at % a->block_size);
}

/* Adds `dims` products of head_dim, from dim on, to the scores of `vectors` times 16 positions. part holds the queries'
 * floats: (count, QUERY_PART). One chain for each score, whatever the tile. */
INLINE void scores_of(const struct attention *a, const enum kv_type type, uint32_t head, const uint32_t count,
                      const uint32_t vectors, uint32_t position, uint32_t last, const bool is_split, const float *part,
                      uint32_t dim, uint32_t dims)
{
    vf acc[ATTENTION_QUERIES_MAX];
    const uint8_t *keys[VECTORS_MAX], *more[VECTORS_MAX];
    const size_t row = a->block_size * element_bytes(type);
    UNROLL(4)
    for (uint32_t v = 0; v < vectors; v++) {
        uint32_t at = position + v * LANES;
        keys[v] = keys_of(a, type, head, at) + at % a->block_size * element_bytes(type) + dim * row;
        if (is_split) /* blocks of eight: the other eight positions are in the next block, or nobody's */
            more[v] = at + 8 <= last ? keys_of(a, type, head, at + 8) + dim * row : keys[v];
        else
            more[v] = NULL;
        UNROLL(12)
        for (uint32_t i = 0; i < count; i++)
            acc[v * count + i] = dim == 0 ? vf_zero() : vf_load(score_at(a, count, i, at));
    }
    for (uint32_t d = 0; d < dims; d++) {
        vf k[VECTORS_MAX];
        UNROLL(4)
        for (uint32_t v = 0; v < vectors; v++)
            k[v] = is_split ? elements_halves(keys[v] + d * row, more[v] + d * row, type)
                            : elements(keys[v] + d * row, type);
        UNROLL(12)
        for (uint32_t i = 0; i < count; i++) {
            vf q = vf_set1(part[i * QUERY_PART + d]);
            UNROLL(4)
            for (uint32_t v = 0; v < vectors; v++)
                acc[v * count + i] = vf_fma(q, k[v], acc[v * count + i]);
        }
    }
    const bool is_whole = dim + dims == a->head_dim;
    vf scale = vf_set1(is_whole ? a->scale : 1);
    UNROLL(4)
    for (uint32_t v = 0; v < vectors; v++) {
        uint32_t at = position + v * LANES;
        vf key_scale = type == KV_Q8 && is_whole ? key_scales(a, head, at, last, is_split) : vf_set1(1);
        UNROLL(12)
        for (uint32_t i = 0; i < count; i++) {
            vf score = type == KV_Q8 ? vf_mul(acc[v * count + i], key_scale) : acc[v * count + i];
            vf_store(score_at(a, count, i, at), vf_mul(score, scale));
        }
    }
}

INLINE void all_scores(const struct attention *a, const enum kv_type type, uint32_t head, const struct query *queries,
                       const uint32_t count, const uint32_t vectors)
{
    float part[QUERY_PART * ATTENTION_QUERIES_MAX];
    uint32_t first = queries[0].first / LANES * LANES, last = queries[count - 1].positions - 1;
    for (uint32_t dim = 0; dim < a->head_dim; dim += QUERY_PART) {
        uint32_t dims = a->head_dim - dim < QUERY_PART ? a->head_dim - dim : QUERY_PART, p = first;
        for (uint32_t i = 0; i < count; i++)
            memcpy(part + i * QUERY_PART, queries[i].q + dim, dims * sizeof(float));
        for (; a->block_size < LANES && p <= last; p += LANES)
            scores_of(a, type, head, count, 1, p, last, true, part, dim, dims);
        for (; p + (vectors - 1) * LANES <= last; p += vectors * LANES)
            scores_of(a, type, head, count, vectors, p, last, false, part, dim, dims);
        if (vectors > 1)
            for (; p <= last; p += LANES)
                scores_of(a, type, head, count, 1, p, last, false, part, dim, dims);
    }
}

/* Scores to weights exp(score - max), 0 outside of the query's positions, and their sum in 16 lanes by position. */
INLINE void weights_of(const struct attention *a, struct query *query, const uint32_t count, uint32_t i)
{
    uint32_t begin = query->first / LANES * LANES, end = (query->positions + LANES - 1) / LANES * LANES;
    for (uint32_t p = begin; p < query->first; p++)
        *score_at(a, count, i, p) = -INFINITY; /* what stood there belongs to nobody */
    for (uint32_t p = query->positions; p < end; p++)
        *score_at(a, count, i, p) = -INFINITY;
    vf max = vf_set1(-INFINITY), sum = vf_zero();
    for (uint32_t p = begin; p < end; p += LANES)
        max = vf_max(max, vf_load(score_at(a, count, i, p)));
    vf greatest = vf_set1(vf_greatest(max));
    for (uint32_t p = begin; p < end; p += LANES) {
        vf weight = vf_exp(vf_sub(vf_load(score_at(a, count, i, p)), greatest));
        vf_store(score_at(a, count, i, p), weight);
        sum = vf_add(sum, weight);
    }
    query->sum = vf_sum(sum);
}

/* Adds weight * V of positions from..to - 1, in order, to `vectors` vectors of head_dim at dim, for `queries` queries
 * from the i-th of count on. */
INLINE void values_run(const struct attention *a, const enum kv_type type, uint32_t head, const uint32_t count,
                       uint32_t i, const uint32_t queries, const uint32_t vectors, uint32_t dim, uint32_t from,
                       uint32_t to, vf acc[])
{
    while (from < to) {
        uint32_t in_block = from % a->block_size, left = a->block_size - in_block, in_scores = LANES - from % LANES;
        uint32_t run = left < in_scores ? left : in_scores;
        run = run < to - from ? run : to - from;
        uint8_t *keys = keys_of(a, type, head, from);
        const size_t row = a->head_dim * element_bytes(type);
        const uint8_t *values = keys + elements_bytes(a, type) + in_block * row + dim * element_bytes(type);
        const float *scales = scales_of(a, keys) + a->block_size + in_block; /* of bytes */
        const float *weights = score_at(a, count, i, from);
        for (uint32_t p = 0; p < run; p++, values += row, weights++) {
            vf v[VECTORS_MAX];
            UNROLL(4)
            for (uint32_t j = 0; j < vectors; j++) {
                v[j] = elements(values + j * LANES * element_bytes(type), type);
                if (type == KV_Q8)
                    v[j] = vf_mul(v[j], vf_set1(scales[p]));
            }
            UNROLL(12)
            for (uint32_t r = 0; r < queries; r++) {
                vf weight = vf_set1(weights[r * LANES]);
                UNROLL(4)
                for (uint32_t j = 0; j < vectors; j++)
                    acc[r * vectors + j] = vf_fma(weight, v[j], acc[r * vectors + j]);
            }
        }
        from += run;
    }
}

/* What each query sees before the others, then the positions that all see, then what each sees behind them: for each query
 * the order of positions. */
INLINE void values_of(const struct attention *a, const enum kv_type type, uint32_t head, const struct query *queries,
                      const uint32_t count, const uint32_t vectors, uint32_t dim)
{
    vf acc[ATTENTION_QUERIES_MAX];
    uint32_t from = queries[count - 1].first, to = queries[0].positions; /* rows are in order, and so are these */
    from = from < to ? from : to;
    UNROLL(12)
    for (uint32_t i = 0; i < count * vectors; i++)
        acc[i] = vf_zero();
    if (queries[0].first < from)
        UNROLL(12)
    for (uint32_t i = 0; i < count; i++)
        values_run(a, type, head, count, i, 1, vectors, dim, queries[i].first, from, acc + i * vectors);
    values_run(a, type, head, count, 0, count, vectors, dim, from, to, acc);
    UNROLL(12)
    for (uint32_t i = 0; i < count; i++) {
        uint32_t alone = queries[i].first > to ? queries[i].first : to;
        values_run(a, type, head, count, i, 1, vectors, dim, alone, queries[i].positions, acc + i * vectors);
        vf inverse = vf_set1(1.0f / queries[i].sum);
        UNROLL(4)
        for (uint32_t j = 0; j < vectors; j++)
            vf_store(queries[i].out + dim + j * LANES, vf_mul(acc[i * vectors + j], inverse));
    }
}

INLINE void attend(const struct attention *a, const enum kv_type type, uint32_t head, struct query *queries,
                   const uint32_t count)
{
    const uint32_t vectors = vectors_for(count);
    all_scores(a, type, head, queries, count, vectors);
    for (uint32_t i = 0; i < count; i++)
        weights_of(a, &queries[i], count, i);
    uint32_t dim = 0;
    for (; dim + vectors * LANES <= a->head_dim; dim += vectors * LANES)
        values_of(a, type, head, queries, count, vectors, dim);
    if (vectors > 1)
        for (; dim < a->head_dim; dim += LANES)
            values_of(a, type, head, queries, count, 1, dim);
}

/* One function a count, so that the compiler builds each from its own loops. */
#define ATTEND_OF(COUNT)                                                                                               \
    static void attend_##COUNT(const struct attention *a, uint32_t head, struct query *queries)                        \
    {                                                                                                                  \
        if (a->kv_type == KV_Q8)                                                                                       \
            attend(a, KV_Q8, head, queries, COUNT);                                                                    \
        else                                                                                                           \
            attend(a, KV_F16, head, queries, COUNT);                                                                   \
    }
ATTEND_OF(1)
ATTEND_OF(3)
ATTEND_OF(6)
#if PATH_QUERIES_MAX >= 12
ATTEND_OF(12)
#endif

static void attention(const struct attention *a)
{
    uint32_t group = a->heads / a->kv_heads, total = a->rows * group;
    for (uint32_t head = 0; head < a->kv_heads; head++) {
        for (uint32_t first = 0; first < total;) {
            struct query queries[ATTENTION_QUERIES_MAX];
            uint32_t left = total - first, count = left >= 6 ? 6 : left >= 3 ? 3 : 1;
#if PATH_QUERIES_MAX >= 12
            count = left >= 12 ? 12 : count;
#endif
            for (uint32_t i = 0; i < count; i++) {
                uint32_t row = (first + i) / group, h = head * group + (first + i) % group;
                uint32_t end = a->first_pos + row + 1;
                queries[i] = (struct query){.q = a->q + row * a->q_stride + (size_t)h * a->head_dim,
                                            .out = a->out + ((size_t)row * a->heads + h) * a->head_dim,
                                            .first = end > a->window ? end - a->window : 0,
                                            .positions = end};
            }
            if (count == 1)
                attend_1(a, head, queries);
            else if (count == 3)
                attend_3(a, head, queries);
            else if (count == 6)
                attend_6(a, head, queries);
#if PATH_QUERIES_MAX >= 12
            else
                attend_12(a, head, queries);
#endif
            first += count;
        }
    }
}

/* ---- logits ---- */

static uint32_t argmax(const float *logits, uint32_t n)
{
    vf best = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < n; i += LANES) {
        if (n - i >= LANES) {
            vf v = vf_load(logits + i);
            best = vf_select_greater(v, best, v, best); /* a NaN is greater than nothing */
            continue;
        }
        for (uint32_t j = i; j < n; j++) {
            vf v = vf_set1(logits[j]);
            best = vf_select_greater(v, best, v, best);
        }
    }
    vf greatest = vf_set1(vf_greatest(best));
    for (uint32_t i = 0; i + LANES <= n; i += LANES) {
        uint32_t mask = vf_equal_mask(vf_load(logits + i), greatest);
        if (mask != 0)
            return i + (uint32_t)__builtin_ctz(mask);
    }
    for (uint32_t i = n / LANES * LANES; i < n; i++)
        if (logits[i] == vf_greatest(greatest))
            return i;
    return 0; /* nothing but NaN */
}

/* Four vectors of lanes by index modulo 64, added pairwise, then the tree of vf_sum(); a rest of under 16 one by one. */
static float sum_exp(float *probs, const float *logits, uint32_t n, float max, float inv_temperature)
{
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    vf m = vf_set1(max), t = vf_set1(inv_temperature);
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf term = vf_exp(vf_mul(vf_sub(vf_load(logits + i), m), t));
        if (probs != NULL)
            vf_store(probs + i, term);
        sums[i / LANES % 4] = vf_add(sums[i / LANES % 4], term);
    }
    float sum = vf_sum(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    for (; i < n; i++) {
        float lanes[LANES];
        vf_store(lanes, vf_exp(vf_mul(vf_sub(vf_set1(logits[i]), m), t)));
        if (probs != NULL)
            probs[i] = lanes[0];
        sum += lanes[0];
    }
    return sum;
}

const struct kernels PATH_TABLE = {
    .name = PATH_NAME,
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
