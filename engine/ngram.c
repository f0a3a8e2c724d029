#include "engine/ngram.h"

#include <stdbool.h>
#include <stdlib.h>

#include "ipc/base.h"

void ngram_init(struct ngram *ngram, uint32_t tokens)
{
    uint32_t reach = 2 * NGRAM_AGREE_MAX;
    while (reach < tokens)
        reach *= 2;
    *ngram = (struct ngram){.reach = reach,
                            .tokens = base_alloc(reach * sizeof(uint32_t)),
                            .behind = base_alloc(2 * reach * sizeof(uint32_t))};
}

void ngram_free(struct ngram *ngram)
{
    free(ngram->tokens);
    free(ngram->behind);
    *ngram = (struct ngram){0};
}

/* Places of the text before stay: they are compared like any other. */
void ngram_clear(struct ngram *ngram)
{
    ngram->count = 0;
}

static uint32_t token_at(const struct ngram *ngram, uint32_t index)
{
    return ngram->tokens[index & (ngram->reach - 1)];
}

/* The place of the `size` tokens in front of index `end`. */
static uint32_t *place_of(const struct ngram *ngram, uint32_t end, uint32_t size)
{
    uint64_t hash = size;
    for (uint32_t i = 1; i <= size; i++)
        hash = (hash ^ token_at(ngram, end - i)) * 0x9E3779B97F4A7C15ull; /* 2^64 / golden ratio */
    return &ngram->behind[hash >> 32 & (2 * ngram->reach - 1)];
}

void ngram_append(struct ngram *ngram, uint32_t token)
{
    for (uint32_t size = NGRAM_SHORT; size <= NGRAM_LONG && size <= ngram->count; size++)
        *place_of(ngram, ngram->count, size) = ngram->count;
    ngram->tokens[ngram->count++ & (ngram->reach - 1)] = token;
}

/* Tokens in front of `place` that are those at the end. */
static uint32_t agreement(const struct ngram *ngram, uint32_t place)
{
    uint32_t kept_from = ngram->count > ngram->reach ? ngram->count - ngram->reach : 0, agree = 0;
    while (agree < NGRAM_AGREE_MAX && place - agree > kept_from &&
           token_at(ngram, place - agree - 1) == token_at(ngram, ngram->count - agree - 1))
        agree++;
    return agree;
}

uint32_t ngram_guess(const struct ngram *ngram, uint32_t *guess, uint32_t count)
{
    for (uint32_t size = NGRAM_LONG; size >= NGRAM_SHORT; size--) {
        uint32_t place = ngram->count >= size ? *place_of(ngram, ngram->count, size) : 0;
        if (place == 0 || place >= ngram->count)
            continue;
        uint32_t agree = agreement(ngram, place);
        if (agree < size)
            continue;
        for (uint32_t i = 0; i < count; i++) /* where the text ends, the guess goes on with itself */
            guess[i] = place + i < ngram->count ? token_at(ngram, place + i) : guess[place + i - ngram->count];
        return agree;
    }
    return 0;
}
