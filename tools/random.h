/* random.h - random numbers for workloads: the same seed gives the same numbers on every machine.
 *
 * Used by: evenflow bench.   Owns: nothing; the state is one word, any value is a seed.   Never blocks.
 */
#ifndef EVENFLOW_RANDOM_H
#define EVENFLOW_RANDOM_H

#include <stdint.h>

uint64_t random_next(uint64_t *state);
double random_unit(uint64_t *state);                /* above 0, at most 1 */
double random_gamma(uint64_t *state, double shape); /* scale 1, mean `shape`; shape 1 is the exponential distribution */

#endif
