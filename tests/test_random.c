#include <criterion/criterion.h>
#include <math.h>

#include "ipc/base.h"
#include "tools/random.h"

#define DRAWS 200000

Test(random, units_lie_above_zero_and_up_to_one)
{
    uint64_t state = 1;
    double sum = 0;
    for (int i = 0; i < DRAWS; i++) {
        double unit = random_unit(&state);
        cr_assert(unit > 0 && unit <= 1);
        sum += unit;
    }
    cr_expect_float_eq(sum / DRAWS, 0.5, 0.005);
}

Test(random, gamma_has_the_mean_and_the_variance_of_its_shape)
{
    static const double shapes[] = {0.2, 0.7, 1, 2.5, 40};
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        uint64_t state = 7;
        double shape = shapes[i], sum = 0, squares = 0;
        for (int k = 0; k < DRAWS; k++) {
            double value = random_gamma(&state, shape);
            cr_assert(value >= 0);
            sum += value;
            squares += value * value;
        }
        double mean = sum / DRAWS, variance = squares / DRAWS - mean * mean;
        /* five standard errors of a mean of so many draws; the variance's own is larger */
        cr_expect_float_eq(mean, shape, 5 * sqrt(shape / DRAWS), "shape %g: mean %g", shape, mean);
        cr_expect_float_eq(variance / shape, 1, 0.1, "shape %g: variance %g", shape, variance);
    }
}

Test(random, gamma_of_shape_one_is_exponential)
{
    uint64_t state = 3;
    int above = 0;
    for (int i = 0; i < DRAWS; i++)
        above += random_gamma(&state, 1) > 2;
    cr_expect_float_eq((double)above / DRAWS, exp(-2), 0.005);
}

Test(random, the_same_seed_gives_the_same_numbers)
{
    uint64_t a = 42, b = 42, c = 43;
    bool differs = false;
    for (int i = 0; i < 100; i++) {
        uint64_t value = random_next(&a);
        cr_assert_eq(value, random_next(&b));
        differs = differs || value != random_next(&c);
    }
    cr_expect(differs);
}
