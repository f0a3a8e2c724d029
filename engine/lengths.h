/* lengths.h - how long answers are: what a forecast of the KV cache goes by when nobody says it.
 *
 * Used by: policies.   Owns: nothing; plain data in the policy's state.   Never blocks.
 *
 * The survival function of output lengths, estimated from those that ended and those that still run (Kaplan and Meier,
 * "Nonparametric estimation from incomplete observations", 1958): long answers are not forgotten because they have not
 * ended yet. Where nothing was seen, an answer is taken to go on to its limit. Lengths are kept in buckets, four an octave.
 */
#ifndef EVENFLOW_LENGTHS_H
#define EVENFLOW_LENGTHS_H

#include <stdint.h>

#define LENGTHS_BUCKETS 88u /* up to 4 million tokens */

struct lengths {
    double ended[LENGTHS_BUCKETS];  /* by an end token, in this bucket */
    double cut[LENGTHS_BUCKETS];    /* by their limit, in this bucket: they might have gone on */
    double passed[LENGTHS_BUCKETS]; /* of those that run, how many have gone beyond this bucket: lengths_running() */
    double alive[LENGTHS_BUCKETS];  /* share of all answers that go beyond this bucket: lengths_estimate() */
    double count;
};

/* One has ended after `tokens` tokens, of itself or cut by its limit. */
void lengths_observe(struct lengths *lengths, uint32_t tokens, int was_cut);

/* Before an estimate: forgets those that run; then each of them with what it has so far. */
void lengths_reset_running(struct lengths *lengths);
void lengths_running(struct lengths *lengths, uint32_t tokens);
void lengths_estimate(struct lengths *lengths);

/* Probability that an answer of `tokens` tokens so far comes to more than `later` tokens. 1 >= result >= 0. */
double lengths_survival(const struct lengths *lengths, uint32_t tokens, uint32_t later);

/* Tokens of an answer on average, when there are at most so many. */
double lengths_mean(const struct lengths *lengths, uint32_t limit);

#endif
