/* simd.h - sixteen lanes, as one AVX-512 register or two AVX2 ones, so that both paths are one source and give equal bits.
 *
 * Used by: cpu_simd.h, which is compiled once per path (cpu_avx512.c, cpu_avx2.c) with that path's flags.
 * Every operation acts lane by lane; sums over lanes fold in one tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
 */
#ifndef EVENFLOW_KERNELS_SIMD_H
#define EVENFLOW_KERNELS_SIMD_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES           16u
#define INLINE          static inline __attribute__((always_inline))
#define UNROLL(n)       _Pragma(STRINGIFY(GCC unroll n))
#define STRINGIFY(text) #text

/* Calls of vi_dot_u4() from one that opens to the one that closes, for u up to `most`: each adds two products with q of at most
 * 127 to a sum in 16 bits. */
#define DOTS_OPEN_MAX(most) (32767u / (2 * 127 * (most)))

INLINE float fold8(__m256 v)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

INLINE float fold8_max(__m256 v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* clang-format off: one operation a line */

#ifdef __AVX512F__

typedef __m512 vf;
typedef __m512i vi;

INLINE vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE vf vf_load_n(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
INLINE void vf_store_n(float *p, vf v, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
}
INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
INLINE vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_from_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE vf vf_from_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vf vf_from_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
INLINE vf vf_from_i8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
INLINE void vf_to_f16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Eight signed bytes from each of two places. */
INLINE vf vf_from_i8_halves(const uint8_t *p, const uint8_t *q)
{
    __m128i low = _mm_loadl_epi64((const __m128i *)(const void *)p);
    __m128i high = _mm_loadl_epi64((const __m128i *)(const void *)q);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi64(low, high)));
}
/* Eight floats from each of two places. */
INLINE vf vf_load_halves(const float *p, const float *q)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(q), 1);
}
/* Eight f16 from each of two places. */
INLINE vf vf_from_f16_halves(const uint16_t *p, const uint16_t *q)
{
    __m128i low = _mm_loadu_si128((const __m128i *)(const void *)p);
    __m128i high = _mm_loadu_si128((const __m128i *)(const void *)q);
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
INLINE vf vf_from_vi(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
INLINE float vf_sum(vf v)
{
    return fold8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
INLINE float vf_greatest(vf v)
{
    return fold8_max(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
/* 2^n for whole n in -126..127. */
INLINE vf vf_power2(vf n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
/* a > b ? x : y */
INLINE vf vf_select_greater(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
INLINE uint32_t vf_equal_mask(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

INLINE vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
INLINE vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
INLINE vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
INLINE vi vi_low_nibbles(vi v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
INLINE vi vi_high_nibbles(vi v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
INLINE vi vi_and(vi v, char mask)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(mask));
}
INLINE vi vi_shift_left(vi v, const uint32_t bits)
{
    return _mm512_sll_epi16(v, _mm_cvtsi32_si128((int)bits));
}
INLINE vi vi_shift_right(vi v, const uint32_t bits)
{
    return _mm512_srl_epi16(v, _mm_cvtsi32_si128((int)bits));
}
/* Whole numbers of v, rounded to nearest even, as bytes; returns their sum. */
INLINE int32_t vf_to_i8(int8_t *p, vf v)
{
    __m512i whole = _mm512_cvtps_epi32(v);
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtsepi32_epi8(whole));
    return _mm512_reduce_add_epi32(whole);
}
/* Lane o of acc: + sum over j of u(o, j) * q(j), four unsigned bytes a lane with the same four signed ones. What the other path
 * needs besides is not needed here. Written as an instruction because gcc 12 copies the accumulator around the intrinsic. */
INLINE void vi_dot_u4(vi *acc, vi *pairs, vi u, const int8_t *q, const bool opens, const bool closes)
{
    typedef int32_t unaligned_int __attribute__((aligned(1), may_alias));
    (void)pairs, (void)opens, (void)closes;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*acc) : "v"(u), "m"(*(const unaligned_int *)(const void *)q));
}
/* Lane o: acc + sum over j of (u(o, j) - 128) * q(j), when the first acc is centred_start(-128 * sum of all q). */
INLINE vi vi_dot_centred(vi acc, vi u, const int8_t *q)
{
    vi_dot_u4(&acc, NULL, u, q, true, true);
    return acc;
}
INLINE int32_t centred_start(int32_t start)
{
    return start;
}
INLINE vi vi_add_u8(vi a, vi b)
{
    return _mm512_add_epi8(a, b);
}
/* Lane o: acc + u(o, 0) + .. + u(o, 3). */
INLINE vi vi_sum_u8(vi acc, vi u)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(_mm512_set1_epi8(1)));
    return acc;
}

#else /* two AVX2 registers */

typedef struct {
    __m256 a, b;
} vf;
typedef struct {
    __m256i a, b;
} vi;

#define EACH(x, y)   ((vf){(x), (y)})
#define EACH_I(x, y) ((vi){(x), (y)})

INLINE vf vf_zero(void)
{
    return EACH(_mm256_setzero_ps(), _mm256_setzero_ps());
}
INLINE vf vf_set1(float x)
{
    return EACH(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
INLINE vf vf_load(const float *p)
{
    return EACH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
INLINE vf vf_load_n(const float *p, uint32_t n)
{
    if (n == LANES)
        return vf_load(p);
    float lanes[LANES] = {0};
    memcpy(lanes, p, n * sizeof(float));
    return vf_load(lanes);
}
INLINE void vf_store_n(float *p, vf v, uint32_t n)
{
    if (n == LANES) {
        vf_store(p, v);
        return;
    }
    float lanes[LANES];
    vf_store(lanes, v);
    memcpy(p, lanes, n * sizeof(float));
}
INLINE vf vf_add(vf x, vf y)
{
    return EACH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
INLINE vf vf_sub(vf x, vf y)
{
    return EACH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
INLINE vf vf_mul(vf x, vf y)
{
    return EACH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
INLINE vf vf_div(vf x, vf y)
{
    return EACH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
INLINE vf vf_fma(vf x, vf y, vf z)
{
    return EACH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
INLINE vf vf_max(vf x, vf y)
{
    return EACH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
INLINE vf vf_min(vf x, vf y)
{
    return EACH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
INLINE vf vf_round(vf x)
{
    return EACH(_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_from_f16_halves(const uint16_t *p, const uint16_t *q)
{
    return EACH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)q)));
}
INLINE vf vf_from_f16(const uint16_t *p)
{
    return vf_from_f16_halves(p, p + 8);
}
INLINE vf vf_from_bf16(const uint16_t *p)
{
    __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 8)));
    return EACH(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)));
}
INLINE vf vf_from_u8(const uint8_t *p)
{
    return EACH(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 8)))));
}
INLINE vf vf_from_i8_halves(const uint8_t *p, const uint8_t *q)
{
    return EACH(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)q))));
}
INLINE vf vf_from_i8(const uint8_t *p)
{
    return vf_from_i8_halves(p, p + 8);
}
INLINE vf vf_load_halves(const float *p, const float *q)
{
    return EACH(_mm256_loadu_ps(p), _mm256_loadu_ps(q));
}
INLINE void vf_to_f16(uint16_t *p, vf v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(void *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vf vf_from_vi(vi v)
{
    return EACH(_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b));
}
INLINE float vf_sum(vf v)
{
    return fold8(_mm256_add_ps(v.a, v.b));
}
INLINE float vf_greatest(vf v)
{
    return fold8_max(_mm256_max_ps(v.a, v.b));
}
INLINE __m256 power2_half(__m256 n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE vf vf_power2(vf n)
{
    return EACH(power2_half(n.a), power2_half(n.b));
}
INLINE vf vf_select_greater(vf p, vf q, vf x, vf y)
{
    return EACH(_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_GT_OQ)),
                _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_GT_OQ)));
}
INLINE uint32_t vf_equal_mask(vf x, vf y)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)) << 8;
}

INLINE vi vi_set1(int32_t x)
{
    return EACH_I(_mm256_set1_epi32(x), _mm256_set1_epi32(x));
}
INLINE vi vi_load(const void *p)
{
    return EACH_I(_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)((const uint8_t *)p + 32)));
}
INLINE vi vi_sub(vi x, vi y)
{
    return EACH_I(_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b));
}
INLINE __m256i low_half(__m256i v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}
INLINE vi vi_low_nibbles(vi v)
{
    return EACH_I(low_half(v.a), low_half(v.b));
}
INLINE vi vi_high_nibbles(vi v)
{
    return EACH_I(low_half(_mm256_srli_epi16(v.a, 4)), low_half(_mm256_srli_epi16(v.b, 4)));
}
INLINE vi vi_and(vi v, char mask)
{
    __m256i all = _mm256_set1_epi8(mask);
    return EACH_I(_mm256_and_si256(v.a, all), _mm256_and_si256(v.b, all));
}
INLINE vi vi_shift_left(vi v, const uint32_t bits)
{
    __m128i by = _mm_cvtsi32_si128((int)bits);
    return EACH_I(_mm256_sll_epi16(v.a, by), _mm256_sll_epi16(v.b, by));
}
INLINE vi vi_shift_right(vi v, const uint32_t bits)
{
    __m128i by = _mm_cvtsi32_si128((int)bits);
    return EACH_I(_mm256_srl_epi16(v.a, by), _mm256_srl_epi16(v.b, by));
}
INLINE int32_t vf_to_i8(int8_t *p, vf v)
{
    __m256i a = _mm256_cvtps_epi32(v.a), b = _mm256_cvtps_epi32(v.b);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)(void *)p, bytes);
    int32_t lanes[8], sum = 0;
    _mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_add_epi32(a, b));
    for (uint32_t i = 0; i < 8; i++)
        sum += lanes[i];
    return sum;
}
INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof(four));
    return _mm256_set1_epi32(four);
}
INLINE __m256i sum_pairs(__m256i acc, __m256i pairs)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* Written as instructions because gcc 12 makes trees of such sums, whose leaves find no registers. */
INLINE void add_pairs(__m256i *pairs, __m256i u, __m256i q)
{
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(*pairs), "=&x"(products) : "x"(u), "x"(q));
}
/* Lane o of acc: + sum over j of u(o, j) * q(j), for every call from one that opens to the one that closes. Until then products
 * are added by pairs, in 16 bits: as many calls as u is small enough for (DOTS_OPEN_MAX). */
INLINE void vi_dot_u4(vi *acc, vi *pairs, vi u, const int8_t *q, const bool opens, const bool closes)
{
    __m256i four = broadcast4(q);
    if (opens) {
        *pairs = EACH_I(_mm256_maddubs_epi16(u.a, four), _mm256_maddubs_epi16(u.b, four));
    } else {
        add_pairs(&pairs->a, u.a, four);
        add_pairs(&pairs->b, u.b, four);
    }
    if (closes)
        *acc = EACH_I(sum_pairs(acc->a, pairs->a), sum_pairs(acc->b, pairs->b));
}
/* Lane o: acc + sum over j of (u(o, j) - 128) * q(j). As |u - 128| times q with the sign of u - 128: two products of at
 * most 128 * 127 fit 16 bits. */
INLINE __m256i dot_centred_half(__m256i acc, __m256i u, __m256i q)
{
    __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(-128)), products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc), "=&x"(products)
            : "x"(_mm256_abs_epi8(w)), "x"(_mm256_sign_epi8(q, w)), "x"(_mm256_set1_epi16(1)));
    return acc;
}
INLINE vi vi_dot_centred(vi acc, vi u, const int8_t *q)
{
    __m256i four = broadcast4(q);
    return EACH_I(dot_centred_half(acc.a, u.a, four), dot_centred_half(acc.b, u.b, four));
}
INLINE int32_t centred_start(int32_t start)
{
    (void)start; /* the products above are centred already */
    return 0;
}
INLINE vi vi_add_u8(vi x, vi y)
{
    return EACH_I(_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b));
}
INLINE vi vi_sum_u8(vi acc, vi u)
{
    __m256i ones = _mm256_set1_epi8(1);
    return EACH_I(sum_pairs(acc.a, _mm256_maddubs_epi16(u.a, ones)), sum_pairs(acc.b, _mm256_maddubs_epi16(u.b, ones)));
}

#endif
/* clang-format on */

/* In every byte, the field of `mask` (at bits 4 and up) that stands at bit `bit` now. */
INLINE vi vi_field_to_4(vi v, const uint32_t bit, char mask)
{
    return vi_and(bit < 4 ? vi_shift_left(v, 4 - bit) : vi_shift_right(v, bit - 4), mask);
}

#endif
