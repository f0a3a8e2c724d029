/* cpu_avx512.c - the fast path of processors with AVX-512 and VNNI. */
#define PATH_NAME        "avx512"
#define PATH_TABLE       kernels_avx512
#define PATH_ROWS_MAX    8
#define PATH_ROWS_AHEAD  8
#define PATH_QUERIES_MAX 12
#define PATH_CHAINS      12
#include "kernels/cpu_simd.h"
