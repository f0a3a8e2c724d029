#include "tests/fake_cuda.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void name_library(const char *variable, const char *name)
{
    const char *build = getenv("EVENFLOW_BUILD");
    char directory[512], path[640];
    cr_assert_not_null(getcwd(directory, sizeof(directory)));
    snprintf(path, sizeof(path), "%s/%s/tests/driver/%s", directory, build != NULL ? build : "build", name);
    cr_assert_eq(access(path, R_OK), 0, "%s is not there; run: make tests", path);
    setenv(variable, path, 1);
}

static void name_both(void)
{
    name_library("EVENFLOW_LIBCUDA", "libcuda.so.1");
    name_library("EVENFLOW_LIBNCCL", "libnccl.so.2");
}

void fake_cuda_use(void)
{
    if (getenv("EVENFLOW_LIBCUDA") == NULL)
        name_both();
}

void fake_cuda_wish(const char *words)
{
    name_library("EVENFLOW_LIBCUDA", "libcuda.so.1");
    if (getenv("EVENFLOW_LIBNCCL") == NULL)
        name_library("EVENFLOW_LIBNCCL", "libnccl.so.2");
    setenv("EVENFLOW_FAKE_CUDA", words, 1);
}

void fake_nccl_wish(const char *words)
{
    name_both();
    setenv("EVENFLOW_FAKE_NCCL", words, 1);
}
