#include "tools/random.h"

#include <math.h>

/* splitmix64 (Steele, Lea, Flood 2014) */
uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double random_unit(uint64_t *state)
{
    return ((double)(random_next(state) >> 11) + 1) * 0x1p-53;
}

static double normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(random_unit(state)));
    return radius * cos(2 * M_PI * random_unit(state));
}

/* Marsaglia and Tsang 2000; a shape below 1 through shape + 1. */
double random_gamma(uint64_t *state, double shape)
{
    if (shape < 1) {
        double power = pow(random_unit(state), 1 / shape);
        return random_gamma(state, shape + 1) * power;
    }
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(state), v = 1 + c * x;
        v = v * v * v;
        if (v > 0 && log(random_unit(state)) < 0.5 * x * x + d - d * v + d * log(v))
            return d * v;
    }
}
