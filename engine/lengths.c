#include "engine/lengths.h"

#include "ipc/base.h"

/* Observations that are remembered: older ones count half when there are so many. */
#define OBSERVATIONS_MAX 2048.0
/* Fewer at risk in a bucket say nothing. */
#define AT_RISK_MIN 4.0

/* 1, 2, 3, 4, then four buckets an octave: [4, 5), [5, 6), [6, 7), [7, 8), [8, 10), ... */
static uint32_t bucket_of(uint32_t tokens)
{
    if (tokens < 4)
        return tokens;
    uint32_t octave = 31u - (uint32_t)__builtin_clz(tokens);
    uint32_t bucket = 4 * (octave - 1) + ((tokens >> (octave - 2)) & 3);
    return bucket < LENGTHS_BUCKETS ? bucket : LENGTHS_BUCKETS - 1;
}

static uint32_t first_of(uint32_t bucket)
{
    return bucket < 4 ? bucket : (4u + bucket % 4) << (bucket / 4 - 1);
}

void lengths_observe(struct lengths *lengths, uint32_t tokens, int was_cut)
{
    if (was_cut)
        lengths->cut[bucket_of(tokens)]++;
    else
        lengths->ended[bucket_of(tokens)]++;
    if (++lengths->count < OBSERVATIONS_MAX)
        return;
    for (uint32_t i = 0; i < LENGTHS_BUCKETS; i++) {
        lengths->ended[i] /= 2;
        lengths->cut[i] /= 2;
    }
    lengths->count /= 2;
}

void lengths_reset_running(struct lengths *lengths)
{
    for (uint32_t i = 0; i < LENGTHS_BUCKETS; i++)
        lengths->passed[i] = 0;
}

void lengths_running(struct lengths *lengths, uint32_t tokens)
{
    uint32_t bucket = bucket_of(tokens);
    if (bucket > 0)
        lengths->passed[bucket - 1]++;
}

void lengths_estimate(struct lengths *lengths)
{
    double beyond = 0; /* seen to go beyond the bucket */
    for (uint32_t i = LENGTHS_BUCKETS; i-- > 0;) {
        beyond += lengths->passed[i];
        double at_risk = beyond + lengths->ended[i];
        lengths->alive[i] = at_risk >= AT_RISK_MIN ? beyond / at_risk : 1;
        beyond += lengths->ended[i] + lengths->cut[i];
    }
    double share = 1;
    for (uint32_t i = 0; i < LENGTHS_BUCKETS; i++)
        share = lengths->alive[i] *= share;
}

/* Share of all answers that have more than `tokens` tokens, straight lines within a bucket. */
static double survival(const struct lengths *lengths, uint32_t tokens)
{
    uint32_t bucket = bucket_of(tokens);
    double before = bucket > 0 ? lengths->alive[bucket - 1] : 1, behind = lengths->alive[bucket];
    uint32_t first = first_of(bucket), width = first_of(bucket + 1) - first;
    return before + (behind - before) * (double)(tokens + 1 - first) / (double)width;
}

double lengths_survival(const struct lengths *lengths, uint32_t tokens, uint32_t later)
{
    double now = survival(lengths, tokens), then = survival(lengths, later);
    return now > 1e-9 ? then / now : 1;
}

double lengths_mean(const struct lengths *lengths, uint32_t limit)
{
    double sum = 0;
    for (uint32_t i = 0; i < LENGTHS_BUCKETS && first_of(i) < limit; i++) {
        double before = i > 0 ? lengths->alive[i - 1] : 1;
        sum += (before + lengths->alive[i]) / 2 * (double)(min_u64(first_of(i + 1), limit) - first_of(i));
    }
    return sum;
}
