/* cpu_avx512.c - the fast path of processors with AVX-512 and VNNI. */
#define PATH_NAME     "avx512"
#define PATH_TABLE    kernels_avx512
#define PATH_ROWS_MAX 8
#include "kernels/cpu_simd.h"
