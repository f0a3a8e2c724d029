#include "tools/samples.h"

#include <math.h>
#include <stdlib.h>

#include "ipc/base.h"

void samples_add(struct samples *samples, double value)
{
    if (samples->count == samples->room) {
        samples->room = 2 * samples->room + 64;
        samples->values = realloc(samples->values, samples->room * sizeof(*samples->values));
        check(samples->values != NULL);
    }
    samples->values[samples->count++] = value;
}

void samples_free(struct samples *samples)
{
    free(samples->values);
    *samples = (struct samples){0};
}

double samples_mean(const struct samples *samples)
{
    double sum = 0;
    for (size_t i = 0; i < samples->count; i++)
        sum += samples->values[i];
    return samples->count > 0 ? sum / (double)samples->count : 0;
}

double samples_std(const struct samples *samples)
{
    double mean = samples_mean(samples), sum = 0;
    for (size_t i = 0; i < samples->count; i++)
        sum += (samples->values[i] - mean) * (samples->values[i] - mean);
    return samples->count > 0 ? sqrt(sum / (double)samples->count) : 0;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void samples_sort(struct samples *samples)
{
    if (samples->count > 0)
        qsort(samples->values, samples->count, sizeof(*samples->values), compare);
}

double samples_percentile(const struct samples *samples, double share)
{
    if (samples->count == 0)
        return 0;
    double rank = share * (double)(samples->count - 1);
    size_t below = (size_t)rank, above = below + 1 < samples->count ? below + 1 : below;
    return samples->values[below] + (rank - (double)below) * (samples->values[above] - samples->values[below]);
}
