#include "engine/forecast.h"

#include <math.h>

#include "ipc/base.h"

#define CERTAINTY 1.5 /* standard deviations that are kept free */

void forecast_begin(struct forecast *forecast, const struct lengths *lengths, uint32_t block_size, uint32_t horizon)
{
    *forecast = (struct forecast){.lengths = lengths, .block_size = block_size, .horizon = horizon};
}

void forecast_add(struct forecast *forecast, const struct outlook *outlook)
{
    uint32_t from = 0;
    for (uint32_t point = 0; point < FORECAST_POINTS && from <= outlook->more; point++) {
        uint32_t to = (uint32_t)((uint64_t)forecast->horizon * (point + 1) / FORECAST_POINTS);
        double alive =
            from == 0 ? 1 : lengths_survival(forecast->lengths, outlook->generated, outlook->generated + from - 1);
        double blocks = (double)div_up_u64(outlook->known + min_u64(to, outlook->more), forecast->block_size);
        forecast->usage[point] += alive * blocks;
        forecast->variance[point] += alive * (1 - alive) * blocks * blocks;
        from = to;
    }
}

void forecast_share(struct forecast *forecast, double blocks)
{
    double now = fmax(1, forecast->usage[0]);
    for (uint32_t point = 0; point < FORECAST_POINTS && blocks > 0; point++)
        forecast->usage[point] -= blocks * fmin(1, forecast->usage[point] / now);
}

bool forecast_try(struct forecast *forecast, const struct outlook *outlook, double blocks)
{
    struct forecast with = *forecast;
    forecast_add(&with, outlook);
    for (uint32_t point = 0; point < FORECAST_POINTS; point++)
        if (with.usage[point] + CERTAINTY * sqrt(with.variance[point]) > blocks)
            return false;
    *forecast = with;
    return true;
}
