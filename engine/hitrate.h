/* hitrate.h - how much of recent prompts the prefix cache held.
 *
 * Used by: sched.   Owns: nothing.   Never blocks.
 * Observations cover one or more requests each; the oldest are dropped while all together cover more than the window, as in
 * vLLM's PrefixCacheMetrics.
 */
#ifndef EVENFLOW_HITRATE_H
#define EVENFLOW_HITRATE_H

#include <stdint.h>

#define HITRATE_WINDOW_MAX 1000u /* requests */

struct hitrate_observation {
    uint32_t requests;
    uint64_t queried_tokens, hit_tokens;
};

struct hitrate {
    uint32_t window; /* requests, 1..HITRATE_WINDOW_MAX */
    uint32_t first, count;
    struct hitrate_observation observations[HITRATE_WINDOW_MAX + 1]; /* a ring: oldest at first */
    uint64_t requests, queried_tokens, hit_tokens;                   /* of all that are kept */
};

void hitrate_init(struct hitrate *rate, uint32_t window);

/* requests: at least 1. */
void hitrate_observe(struct hitrate *rate, uint32_t requests, uint64_t queried_tokens, uint64_t hit_tokens);

/* Hit tokens per thousand queried ones; 0 when nothing was queried. */
uint32_t hitrate_permille(const struct hitrate *rate);

#endif
