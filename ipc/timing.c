#include "ipc/timing.h"

#include <errno.h>
#include <math.h>

static double tail_us(const struct timing_stage *stage, double tokens)
{
    uint64_t whole = (uint64_t)tokens, rest = whole % TIMING_TILE;
    if (tokens == (double)whole)
        return rest == 0 ? 0 : stage->tail_us[rest - 1];
    return (stage->tail_us[0] + stage->tail_us[1] + stage->tail_us[2]) / TIMING_TILE;
}

double timing_stage_us(const struct timing_stage *stage, const struct shape *shape)
{
    double products = stage->token_us * shape->tokens;
    return stage->base_us + stage->row_us * shape->rows +
           (products > stage->weights_us ? products : stage->weights_us) + stage->context_us * shape->context +
           stage->pair_us * shape->pairs + (shape->results > 0 ? stage->head_us : 0) +
           stage->result_us * shape->results + tail_us(stage, shape->tokens);
}

double timing_link_us(const struct timing_link *link, const struct shape *shape)
{
    return link->latency_us + link->token_us * shape->tokens;
}

double timing_bottleneck_us(const struct timing *timing, const struct shape *shape)
{
    double most = 0;
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        double stage = timing_stage_us(&timing->stages[i], shape);
        double link = i + 1 < timing->stage_count ? timing_link_us(&timing->links[i], shape) : 0;
        most = stage > most ? stage : most;
        most = link > most ? link : most;
    }
    return most;
}

double timing_traversal_us(const struct timing *timing, const struct shape *shape)
{
    double sum = timing->plan_us + timing->return_us;
    for (uint64_t i = 0; i < timing->stage_count; i++)
        sum += timing_stage_us(&timing->stages[i], shape) +
               (i + 1 < timing->stage_count ? timing_link_us(&timing->links[i], shape) : 0);
    return sum;
}

static int check_time(const char *what, uint64_t index, const char *field, double value, struct err *err)
{
    if (isfinite(value) && value >= 0)
        return 0;
    return err_set(err, -EINVAL, "%s[%llu].%s: %g must be a time of at least 0 microseconds", what,
                   (unsigned long long)index, field, value);
}

int timing_validate(const struct timing *timing, struct err *err)
{
    if (timing->stage_count < 1 || timing->stage_count > TIMING_STAGES_MAX)
        return err_set(err, -EINVAL, "stages: there are %llu; 1 to %u are possible",
                       (unsigned long long)timing->stage_count, TIMING_STAGES_MAX);
    for (uint64_t i = 0; i < timing->stage_count; i++) {
        const struct timing_stage *s = &timing->stages[i];
        const struct timing_link *l = &timing->links[i];
        bool is_last = i + 1 == timing->stage_count;
        if (check_time("stages", i, "base_us", s->base_us, err) || check_time("stages", i, "row_us", s->row_us, err) ||
            check_time("stages", i, "weights_us", s->weights_us, err) ||
            check_time("stages", i, "token_us", s->token_us, err) ||
            check_time("stages", i, "context_us", s->context_us, err) ||
            check_time("stages", i, "pair_us", s->pair_us, err) ||
            check_time("stages", i, "head_us", s->head_us, err) ||
            check_time("stages", i, "result_us", s->result_us, err) ||
            check_time("stages", i, "tail_us", s->tail_us[0] + s->tail_us[1] + s->tail_us[2], err) ||
            (!is_last && (check_time("links", i, "latency_us", l->latency_us, err) ||
                          check_time("links", i, "token_us", l->token_us, err))))
            return -EINVAL;
        if (s->base_us + s->row_us + s->weights_us + s->token_us <= 0)
            return err_set(err, -EINVAL, "stages[%llu]: takes no time at all", (unsigned long long)i);
    }
    if (!isfinite(timing->return_us) || timing->return_us < 0 || !isfinite(timing->plan_us) || timing->plan_us < 0)
        return err_set(err, -EINVAL, "return_us and plan_us must be times of at least 0 microseconds");
    return 0;
}
