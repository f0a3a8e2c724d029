#include "engine/bound.h"

#include <math.h>

/* What does not depend on the number of microbatches. */
struct sums {
    double fixed[TIMING_STAGES_MAX],
        ramp[TIMING_STAGES_MAX]; /* least time of a microbatch; of it on the other servers */
    double alpha, beta;          /* traversal: fixed, and per decoding row */
};

static struct sums sums_of(const struct bound_load *load, bool is_strict)
{
    const struct timing *t = load->timing;
    struct sums sums = {0};
    double latencies = 0, all = 0, link_tokens = 0, rows = 0, contexts = 0;
    for (uint64_t i = 0; i < t->stage_count; i++) {
        sums.fixed[i] = t->stages[i].base_us + t->stages[i].head_us + t->stages[i].weights_us;
        all += sums.fixed[i];
        rows += t->stages[i].row_us + t->stages[i].result_us;
        contexts += t->stages[i].context_us;
        if (i + 1 < t->stage_count) {
            latencies += t->links[i].latency_us;
            link_tokens += t->links[i].token_us;
        }
    }
    sums.alpha = all + latencies + t->return_us;
    for (uint64_t i = 0; i < t->stage_count && load->is_whole; i++)
        sums.ramp[i] = sums.alpha - sums.fixed[i];
    double context = is_strict ? load->context_min : load->context / fmax(load->rows, 1);
    sums.beta = rows + contexts * context + link_tokens;
    return sums;
}

static double work_us(const struct bound_load *load, const struct sums *sums, double m)
{
    double most = 0;
    for (uint64_t i = 0; i < load->timing->stage_count; i++) {
        const struct timing_stage *s = &load->timing->stages[i];
        double products = fmax(m * sums->fixed[i], m * (s->base_us + s->head_us) + load->tokens * s->token_us);
        most = fmax(most, sums->ramp[i] + products + load->rows * s->row_us + load->context * s->context_us +
                              load->pairs * s->pair_us + load->results * s->result_us);
    }
    return most;
}

static double latency_us(const struct bound_load *load, const struct sums *sums, double m, bool is_strict)
{
    double rows = load->decode_rows, alone = sums->alpha * rows, shared = sums->beta * rows * rows / m;
    if (rows == 0)
        return 0;
    double mean_blocks = load->block_sum / rows;
    double kv = is_strict ? sums->alpha * load->block_sum + shared * load->block_min : (alone + shared) * mean_blocks;
    return fmax(kv / load->kv_blocks, (alone + shared) / load->requests);
}

static double work_and_latency_us(const struct bound_load *load, bool is_strict)
{
    const struct sums sums = sums_of(load, is_strict);
    double low = fmax(load->longest, 1), high = fmax(load->decode_rows, 1), least = low;
    while (low < high) {
        double middle = floor((low + high) / 2);
        if (work_us(load, &sums, middle) >= latency_us(load, &sums, middle, is_strict))
            high = middle;
        else
            low = middle + 1;
    }
    double best = fmax(work_us(load, &sums, low), latency_us(load, &sums, low, is_strict));
    if (low - 1 >= least)
        best = fmin(best, fmax(work_us(load, &sums, low - 1), latency_us(load, &sums, low - 1, is_strict)));
    return best;
}

double bound_strict_us(const struct bound_load *load)
{
    return work_and_latency_us(load, true);
}

double bound_mean_field_us(const struct bound_load *load)
{
    return work_and_latency_us(load, false);
}
