/* cpu_avx2.c - the fast path of processors with AVX2, FMA and F16C. */
#define PATH_NAME        "avx2"
#define PATH_TABLE       kernels_avx2
#define PATH_ROWS_MAX    4
#define PATH_ROWS_AHEAD  1
#define PATH_QUERIES_MAX 6
#define PATH_CHAINS      4
#include "kernels/cpu_simd.h"
