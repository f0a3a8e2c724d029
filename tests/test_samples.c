#include <criterion/criterion.h>
#include <math.h>

#include "ipc/base.h"
#include "tools/samples.h"

Test(samples, agree_with_numpy)
{
    /* numpy.percentile, numpy.mean, numpy.std of the same seven */
    static const double values[] = {4, 1, 15, 3, 9, 2, 8};
    struct samples samples = {0};
    for (size_t i = 0; i < ARRAY_COUNT(values); i++)
        samples_add(&samples, values[i]);
    samples_sort(&samples);
    cr_expect_float_eq(samples_mean(&samples), 6.0, 1e-12);
    cr_expect_float_eq(samples_std(&samples), 4.598136, 1e-6);
    cr_expect_float_eq(samples_percentile(&samples, 0), 1, 1e-12);
    cr_expect_float_eq(samples_percentile(&samples, 0.5), 4, 1e-12);
    cr_expect_float_eq(samples_percentile(&samples, 0.9), 11.4, 1e-12);
    cr_expect_float_eq(samples_percentile(&samples, 0.99), 14.64, 1e-12);
    cr_expect_float_eq(samples_percentile(&samples, 1), 15, 1e-12);
    samples_free(&samples);
}

Test(samples, of_nothing_are_zero)
{
    struct samples samples = {0};
    samples_sort(&samples);
    cr_expect_eq(samples_mean(&samples), 0);
    cr_expect_eq(samples_std(&samples), 0);
    cr_expect_eq(samples_percentile(&samples, 0.99), 0);
}
