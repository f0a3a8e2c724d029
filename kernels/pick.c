/* pick.c - which path this processor runs. */
#include "kernels/internal.h"

#include <string.h>
#include <emmintrin.h>

static const char *names[4];

static bool runs(const struct kernels *path)
{
    if (path == &kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (path == &kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return true;
}

static const struct kernels *const paths[] = {&kernels_avx512, &kernels_avx2, &kernels_ref};

const struct kernels *kernels_pick(const char *name)
{
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
        if (runs(paths[i]) && (name == NULL || strcmp(name, paths[i]->name) == 0))
            return paths[i];
    return NULL;
}

const char *const *kernels_names(void)
{
    size_t count = 0;
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
        if (runs(paths[i]))
            names[count++] = paths[i]->name;
    names[count] = NULL;
    return names;
}

void kernels_thread_init(void)
{
    _mm_setcsr(_mm_getcsr() | 0x8040); /* FTZ, DAZ */
}

void kernels_forget(const void *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        _mm_clflush((const char *)memory + i);
    _mm_mfence();
}
