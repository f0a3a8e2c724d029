#include "engine/hitrate.h"

#include "ipc/base.h"

void hitrate_init(struct hitrate *rate, uint32_t window)
{
    check(window >= 1);
    check(window <= HITRATE_WINDOW_MAX);
    *rate = (struct hitrate){.window = window};
}

void hitrate_observe(struct hitrate *rate, uint32_t requests, uint64_t queried_tokens, uint64_t hit_tokens)
{
    check(requests >= 1); /* so that no more observations are kept than the window has requests, and one */
    const uint32_t room = ARRAY_COUNT(rate->observations);
    rate->observations[(rate->first + rate->count++) % room] =
        (struct hitrate_observation){requests, queried_tokens, hit_tokens};
    rate->requests += requests;
    rate->queried_tokens += queried_tokens;
    rate->hit_tokens += hit_tokens;
    while (rate->count > 1 && rate->requests > rate->window) {
        const struct hitrate_observation *oldest = &rate->observations[rate->first];
        rate->requests -= oldest->requests;
        rate->queried_tokens -= oldest->queried_tokens;
        rate->hit_tokens -= oldest->hit_tokens;
        rate->first = (rate->first + 1) % room;
        rate->count--;
    }
}

uint32_t hitrate_permille(const struct hitrate *rate)
{
    return rate->queried_tokens > 0 ? (uint32_t)(1000 * rate->hit_tokens / rate->queried_tokens) : 0;
}
