/* ngram.h - what followed the last few tokens of a text when they stood there before.
 *
 * Used by: drafts.   Owns: its memory, taken at init.   Never blocks, never allocates after init.
 *
 * The text is kept as far back as `reach`. By the hash of every three and every two tokens of it there is one place, that of
 * their last occurrence; tokens are compared before a place counts, so what a place says is true or unused, whatever the
 * hashes are. Appending a token and looking take the same short time however long the text is.
 */
#ifndef EVENFLOW_NGRAM_H
#define EVENFLOW_NGRAM_H

#include <stdint.h>

#define NGRAM_LONG      3u
#define NGRAM_SHORT     2u
#define NGRAM_AGREE_MAX 16u

struct ngram {
    uint32_t reach;   /* a power of two */
    uint32_t count;   /* tokens of the text so far */
    uint32_t *tokens; /* (reach): token i at i % reach */
    uint32_t *behind; /* (2 * reach): by hash, index of the token that followed; 0: none did */
};

/* Room for texts of which the last `tokens` count: rounded up to a power of two. */
void ngram_init(struct ngram *ngram, uint32_t tokens);
void ngram_free(struct ngram *ngram); /* for tests and tools */

/* Another text begins. */
void ngram_clear(struct ngram *ngram);
void ngram_append(struct ngram *ngram, uint32_t token);

/* What may come next, into guess (count). How many tokens at the text's end agree with those in front of the place that it is
 * taken from, NGRAM_AGREE_MAX at most; 0: there is no such place, and no guess. */
uint32_t ngram_guess(const struct ngram *ngram, uint32_t *guess, uint32_t count);

#endif
