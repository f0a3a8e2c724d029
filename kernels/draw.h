/* draw.h - what drawing a token is made of, in one definition for processors and devices: the same bits everywhere.
 *
 * Used by: the sampler (stages/sample.c), the plain path's sum_exp(), cuda_kernels.cu.   Owns: nothing.   Never blocks.
 *
 * Shares are floats, each from one exponential; sums are of whole numbers, so that no order of adding them leaves a trace.
 */
#ifndef EVENFLOW_KERNELS_DRAW_H
#define EVENFLOW_KERNELS_DRAW_H

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define DRAW static __device__ __forceinline__
#else
#define DRAW static inline
#endif

/* Temperatures below this are greedy: 1 / temperature times a difference of logits must stay a number. */
#define SAMPLE_TEMPERATURE_MIN 1e-5f

struct sample_params {
    float temperature; /* below SAMPLE_TEMPERATURE_MIN: greedy */
    float top_p;       /* 1 or more: off. Keeps the fewest candidates whose share is at least top_p; at least one */
    float min_p;       /* 0: off. Keeps candidates at least min_p times as probable as the first */
    uint32_t top_k;    /* 0: off */
    uint64_t seed;
    uint32_t choice;   /* which of a request's answers */
    uint32_t position; /* of the token that is drawn, in its sequence */
};

DRAW int draw_is_greedy(const struct sample_params *params)
{
    return !(params->temperature >= SAMPLE_TEMPERATURE_MIN) || params->top_k == 1;
}

union draw_bits {
    float value;
    uint32_t bits;
};

/* Unsigned integers in the order of the floats; -0 and 0 are equal logits, so they get one. 0: not a number. */
DRAW uint32_t draw_key(float logit)
{
    union draw_bits as;
    as.value = logit + 0.0f;
    if (logit != logit)
        return 0;
    return as.bits & 0x80000000u ? ~as.bits : as.bits | 0x80000000u;
}

/* exp(x) as cpu_simd.h's vf_exp() has it, to the bit: 2^n * p(r), n whole, r in -ln2/2..ln2/2. Below -87 the result is 0, above
 * 88 it is that of 88. */
DRAW float draw_exp(float x)
{
    float clamped = fminf(fmaxf(x, -87.0f), 88.0f), n = rintf(clamped * 1.44269504f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, clamped)); /* ln 2 in two parts */
    float p = 1.0f / 720;
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    union draw_bits power;
    power.bits = (uint32_t)((int32_t)n + 127) << 23;
    return x < -87.0f ? 0 : p * power.value;
}

/* A candidate's share of the first one's, 0..1, as a whole number; under a millionth of a millionth it is none. */
DRAW uint64_t draw_weight(float share)
{
    return (uint64_t)(int64_t)(share * 0x1p40f);
}

/* How much of all weight top_p asks for: at least something. */
DRAW uint64_t draw_share(float top_p, uint64_t mass)
{
    double goal = top_p > 0 ? ceil((double)top_p * (double)mass) : 0;
    return goal > 1 ? (uint64_t)goal : 1;
}

/* Philox4x32-10: four random words from a counter and a key. Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as
 * 1, 2, 3", SC 2011, section 3.3; constants there. */
DRAW void philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * x0;
        uint64_t b = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)a;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

/* Where the draw falls: uniform in 0..mass - 1. The first candidate, by id, up to which there is more weight than that is
 * drawn. */
DRAW uint64_t draw_goal(const struct sample_params *params, uint64_t mass)
{
    const uint32_t counter[4] = {params->position, params->choice, 0, 0};
    const uint32_t key[2] = {(uint32_t)params->seed, (uint32_t)(params->seed >> 32)};
    uint32_t words[4];
    philox(words, counter, key);
    uint64_t low = words[0] * (mass & 0xffffffffu), middle = words[0] * (mass >> 32) + (low >> 32);
    uint64_t other = words[1] * (mass & 0xffffffffu) + (middle & 0xffffffffu);
    return words[1] * (mass >> 32) + (middle >> 32) + (other >> 32); /* words * mass / 2^64 */
}

#endif
