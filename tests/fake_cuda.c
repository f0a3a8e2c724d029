#include "tests/fake_cuda.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void name_driver(int overwrite)
{
    const char *build = getenv("EVENFLOW_BUILD");
    char directory[512], path[640];
    cr_assert_not_null(getcwd(directory, sizeof(directory)));
    snprintf(path, sizeof(path), "%s/%s/tests/driver/libcuda.so.1", directory, build != NULL ? build : "build");
    cr_assert_eq(access(path, R_OK), 0, "%s is not there; run: make tests", path);
    setenv("EVENFLOW_LIBCUDA", path, overwrite);
}

void fake_cuda_use(void)
{
    name_driver(0);
}

void fake_cuda_wish(const char *words)
{
    name_driver(1);
    setenv("EVENFLOW_FAKE_CUDA", words, 1);
}
