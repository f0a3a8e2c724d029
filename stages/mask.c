#include "stages/mask.h"

#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"

#define GRAMMARS_KEPT   32u /* 18 MB */
#define MASK_BYTES_KEPT ((size_t)16 << 20)
#define MASKS_KEPT_MIN  64u

/* A copy. */
struct mask_grammar {
    uint64_t serial; /* 0: none */
    uint64_t turn;   /* of its last use */
    uint32_t words;
    uint32_t *table;   /* (GRAMMAR_WORDS_MAX): the automaton */
    uint32_t *mask_of; /* (AUTOMATON_STATES_MAX): where its mask may lie */
};

/* Whose mask lies there. */
struct mask_kept {
    uint64_t serial; /* of the grammar; 0: none */
    uint32_t state;
};

/* ---- start ---- */

static bool is_end_token(const struct masker *masker, uint32_t token)
{
    for (uint32_t i = 0; i < masker->end_token_count; i++)
        if (masker->end_tokens[i] == token)
            return true;
    return false;
}

/* An answer that goes on has it as text. */
static bool is_text(const struct masker *masker, uint32_t token)
{
    return piece_is_text(masker->pieces, token) && !is_end_token(masker, token);
}

void mask_init(struct masker *masker, const struct pieces_shm *pieces, const struct plan *plan)
{
    uint32_t vocab_size = plan->vocab_size;
    *masker = (struct masker){.pieces = pieces,
                              .vocab_size = vocab_size,
                              .end_tokens = plan->end_tokens,
                              .end_token_count = plan->end_token_count,
                              .words = (uint32_t)div_up_u64(vocab_size, 64)};
    if (pieces == NULL)
        return;
    masker->places = base_alloc(plan->sequences_max * sizeof(*masker->places));
    masker->incoming = base_reserve(64, GRAMMAR_WORDS_MAX * sizeof(*masker->incoming));
    masker->grammars = base_alloc(GRAMMARS_KEPT * sizeof(*masker->grammars));
    for (uint32_t i = 0; i < GRAMMARS_KEPT; i++) {
        masker->grammars[i].table = base_reserve(64, GRAMMAR_WORDS_MAX * sizeof(uint32_t));
        masker->grammars[i].mask_of = base_alloc(AUTOMATON_STATES_MAX * sizeof(uint32_t));
    }
    masker->kept_max = (uint32_t)max_u64(MASK_BYTES_KEPT / (masker->words * sizeof(uint64_t)), MASKS_KEPT_MIN);
    masker->kept = base_alloc(masker->kept_max * sizeof(*masker->kept));
    masker->bits = base_reserve(64, (size_t)masker->kept_max * masker->words * sizeof(*masker->bits));
}

void mask_free(struct masker *masker)
{
    for (uint32_t i = 0; i < GRAMMARS_KEPT && masker->grammars != NULL; i++) {
        free(masker->grammars[i].table);
        free(masker->grammars[i].mask_of);
    }
    free(masker->places);
    free(masker->incoming);
    free(masker->grammars);
    free(masker->kept);
    free(masker->bits);
    *masker = (struct masker){0};
}

/* ---- places ---- */

static const struct automaton *automaton_of(const struct masker *masker, const struct mask_place *place)
{
    return (const struct automaton *)(const void *)masker->grammars[place->grammar].table;
}

struct mask_place *mask_find(struct masker *masker, uint32_t sequence, uint32_t generation)
{
    struct mask_place *place = &masker->places[sequence];
    if (place->generation != generation || place->serial == 0 ||
        masker->grammars[place->grammar].serial != place->serial)
        return NULL;
    masker->grammars[place->grammar].turn = ++masker->turn;
    return place;
}

/* The copy of what came in: there already, or in the place of the one that was not used for the longest time. */
static uint32_t keep_grammar(struct masker *masker, uint32_t words)
{
    uint32_t oldest = 0;
    for (uint32_t i = 0; i < GRAMMARS_KEPT; i++) {
        const struct mask_grammar *grammar = &masker->grammars[i];
        if (grammar->serial != 0 && grammar->words == words &&
            memcmp(grammar->table, masker->incoming, words * sizeof(uint32_t)) == 0)
            return i;
        if (grammar->turn < masker->grammars[oldest].turn)
            oldest = i;
    }
    struct mask_grammar *grammar = &masker->grammars[oldest];
    memcpy(grammar->table, masker->incoming, words * sizeof(uint32_t));
    grammar->words = words;
    grammar->serial = ++masker->serial;
    return oldest;
}

struct mask_place *mask_learn(struct masker *masker, uint32_t sequence, uint32_t generation, uint32_t words)
{
    const struct automaton *incoming = (const struct automaton *)(const void *)masker->incoming;
    if (!automaton_is_sound(incoming, words * sizeof(uint32_t)))
        return NULL;
    uint32_t index = keep_grammar(masker, words);
    masker->places[sequence] = (struct mask_place){
        .generation = generation, .grammar = index, .serial = masker->grammars[index].serial, .state = AUTOMATON_START};
    return mask_find(masker, sequence, generation);
}

/* DEAD: not all of it may come. */
static uint32_t state_behind(const struct masker *masker, const struct mask_place *place, uint32_t token)
{
    const struct automaton *automaton = automaton_of(masker, place);
    uint32_t size, state = place->state;
    const uint8_t *bytes = piece_bytes(masker->pieces, token, &size);
    for (uint32_t i = 0; i < size && state != AUTOMATON_DEAD; i++)
        state = automaton_step(automaton, state, bytes[i]);
    return state;
}

void mask_take(struct masker *masker, struct mask_place *place, uint32_t token)
{
    if (token < masker->pieces->count && is_text(masker, token)) /* an end token leads nowhere */
        place->state = state_behind(masker, place, token);
    place->tokens++;
}

/* ---- masks ---- */

static void set_bit(uint64_t *bits, uint32_t token, bool is_set)
{
    const uint64_t bit = 1ull << (token % 64);
    bits[token / 64] = is_set ? bits[token / 64] | bit : bits[token / 64] & ~bit;
}

static void compute(struct masker *masker, const struct automaton *automaton, uint32_t state, uint64_t *bits)
{
    const uint32_t *order = pieces_order(masker->pieces);
    const uint16_t *shared = pieces_shared(masker->pieces);
    /* behind each byte of the last token that was led through, as far as it came: `alive` bytes */
    uint16_t states[PIECE_SIZE_MAX + 1];
    uint32_t alive = 0;
    memset(bits, 0, masker->words * sizeof(*bits));
    states[0] = (uint16_t)state;
    for (uint32_t i = 0; i < masker->pieces->order_count; i++) {
        uint32_t at = shared[i], size;
        if (at > alive) /* it has the byte that the other could not have */
            continue;
        const uint8_t *bytes = piece_bytes(masker->pieces, order[i], &size);
        uint32_t next = states[at];
        for (; at < size; at++) {
            next = automaton_step(automaton, next, bytes[at]);
            if (next == AUTOMATON_DEAD)
                break;
            states[at + 1] = (uint16_t)next;
        }
        alive = at;
        if (at == size && order[i] < masker->vocab_size)
            set_bit(bits, order[i], true);
    }
    for (uint32_t i = 0; i < masker->end_token_count; i++) /* whatever bytes they have */
        set_bit(bits, masker->end_tokens[i], automaton_accepts(automaton, state));
    masker->computed++;
}

const uint64_t *mask_bits(struct masker *masker, const struct mask_place *place)
{
    struct mask_grammar *grammar = &masker->grammars[place->grammar];
    uint32_t at = grammar->mask_of[place->state];
    if (masker->kept[at].serial == place->serial && masker->kept[at].state == place->state)
        return masker->bits + (size_t)at * masker->words;
    at = masker->kept_next;
    masker->kept_next = (at + 1) % masker->kept_max;
    masker->kept[at] = (struct mask_kept){place->serial, place->state};
    grammar->mask_of[place->state] = at;
    uint64_t *bits = masker->bits + (size_t)at * masker->words;
    compute(masker, automaton_of(masker, place), place->state, bits);
    return bits;
}

bool mask_allows(const struct masker *masker, const struct mask_place *place, uint32_t token)
{
    if (is_end_token(masker, token))
        return automaton_accepts(automaton_of(masker, place), place->state);
    return token < masker->pieces->count && is_text(masker, token) &&
           state_behind(masker, place, token) != AUTOMATON_DEAD;
}

bool mask_is_final(const struct masker *masker, const struct mask_place *place)
{
    return automaton_is_final(automaton_of(masker, place), place->state);
}
