/* cuda_simt.h - the words that CUDA kernels are written in, each with two bodies: nvcc's, for a GPU, and plain C, for the
 * library that stands in for a driver in tests. A kernel is a block of threads in phases: EACH_THREAD is a phase, and what
 * one phase leaves in SHARED memory the next finds there.
 *
 * Used by: cuda_kernels.cu.   Owns: nothing.   Never blocks.
 *
 *                    nvcc                                      C
 *   EACH_THREAD(t)   this thread, then a barrier               a loop over the block's threads
 *   EACH_WARP(w)     the warp that this thread is in           a loop over the block's warps
 *   EACH_LANE(l)     in EACH_WARP: this thread                 a loop over 32
 *   tile             fragments of a tensor core's operation    16 x 16 floats, of which C computes the rows that are there
 *
 * Nothing else of a GPU is used, so both bodies compute the same sums in the same order; a tensor core's own order of 16
 * products is the one exception.
 */
#ifndef EVENFLOW_KERNELS_CUDA_SIMT_H
#define EVENFLOW_KERNELS_CUDA_SIMT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define TILE 16u /* rows, columns and depth of one operation of a tensor core */

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <mma.h>

#define DEVICE          static __device__ __forceinline__
#define SHARED          __shared__ __align__(32) /* what a tile is loaded from */
#define KERNEL(name)    extern "C" __global__ void name(const struct name##_args a)
#define EACH_THREAD(t)  for (uint32_t t = threadIdx.x, t##_on = 1; t##_on; t##_on = 0, __syncthreads())
#define EACH_WARP(w)    for (uint32_t w = threadIdx.x / 32, w##_on = 1; w##_on; w##_on = 0, __syncthreads())
#define EACH_LANE(l)    for (uint32_t l = lane_begin(), l##_on = 1; l##_on; l##_on = 0, __syncwarp())
#define PER_WARP(warps) /* a variable of each warp lies in its threads' registers */
#define OF_WARP(x, w)   (x)

DEVICE uint32_t lane_begin(void)
{
    __syncwarp(); /* the lanes have read what this phase writes over */
    return threadIdx.x % 32;
}

DEVICE float half_float(half x)
{
    return __half2float(x);
}

DEVICE half float_half_bits(float x)
{
    return __float2half_rn(x);
}

DEVICE float bits_float(uint32_t bits)
{
    return __uint_as_float(bits);
}

typedef nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> tile;

DEVICE void tile_zero(tile *sum)
{
    nvcuda::wmma::fill_fragment(*sum, 0.0f);
}

/* sum += x(16, 16) * w(16, 16); rows of x are stride apart, those of w 16. The first `rows` of sum are of use. */
DEVICE void tile_multiply(tile *sum, const half *x, uint32_t stride, const half *w, uint32_t rows)
{
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, half, row_major> left;
    fragment<matrix_b, 16, 16, 16, half, row_major> right;
    (void)rows; /* it costs the same for sixteen */
    load_matrix_sync(left, x, stride);
    load_matrix_sync(right, w, TILE);
    mma_sync(*sum, left, right, *sum);
}

DEVICE void tile_store(float *out, const tile *sum)
{
    nvcuda::wmma::store_matrix_sync(out, *sum, TILE, nvcuda::wmma::mem_row_major);
}

#else

typedef _Float16 half;

struct simt_index {
    uint32_t x, y, z;
};
extern _Thread_local struct simt_index blockIdx, blockDim, gridDim; /* of the block that this thread of ours runs */

/* What the stand-in for a driver finds a kernel by: its entry, and how large its arguments are. */
struct simt_kernel {
    void (*run)(const void *args);
    size_t args_bytes;
};

#define DEVICE          static inline
#define SHARED          /* a block's memory lies on the stack */
#define EACH_THREAD(t)  for (uint32_t t = 0; t < blockDim.x; t++)
#define EACH_WARP(w)    for (uint32_t w = 0; w < blockDim.x / 32; w++)
#define EACH_LANE(l)    for (uint32_t l = 0; l < 32; l++)
#define PER_WARP(warps) [warps]
#define OF_WARP(x, w)   ((x)[w])
#define KERNEL(name)                                                                                                   \
    static void name(struct name##_args a);                                                                            \
    static void name##_run(const void *args)                                                                           \
    {                                                                                                                  \
        name(*(const struct name##_args *)args);                                                                       \
    }                                                                                                                  \
    const struct simt_kernel simt_##name = {name##_run, sizeof(struct name##_args)};                                   \
    static void name(struct name##_args a)

DEVICE float half_float(half x)
{
    return (float)x;
}

DEVICE half float_half_bits(float x)
{
    return (half)x;
}

DEVICE float bits_float(uint32_t bits)
{
    union {
        uint32_t bits;
        float value;
    } out = {bits};
    return out.value;
}

typedef struct {
    float at[TILE][TILE];
} tile;

DEVICE void tile_zero(tile *sum)
{
    *sum = (tile){0};
}

DEVICE void tile_multiply(tile *sum, const half *x, uint32_t stride, const half *w, uint32_t rows)
{
    float right[TILE][TILE];
    for (uint32_t k = 0; k < TILE; k++)
        for (uint32_t i = 0; i < TILE; i++)
            right[k][i] = (float)w[k * TILE + i];
    for (uint32_t r = 0; r < rows && r < TILE; r++)
        for (uint32_t k = 0; k < TILE; k++) {
            float left = (float)x[(size_t)r * stride + k];
            for (uint32_t i = 0; i < TILE; i++)
                sum->at[r][i] += left * right[k][i];
        }
}

DEVICE void tile_store(float *out, const tile *sum)
{
    for (uint32_t r = 0; r < TILE; r++)
        for (uint32_t i = 0; i < TILE; i++)
            out[r * TILE + i] = sum->at[r][i];
}

#endif

/* To nearest even; what is beyond the largest half becomes that. */
DEVICE half float_half(float x)
{
    return float_half_bits(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

#endif
