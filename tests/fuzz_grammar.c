/* fuzz_grammar.c - what clients want answers to keep to: refused with a text, or an automaton that is sound, by which
 * whatever way a text goes it can end, and is a JSON document where a schema was given.
 */
#include <jansson.h>
#include <string.h>
#include <time.h>

#include "engine/grammar.h"
#include "engine/json_arena.h"
#include "ipc/automaton.h"
#include "ipc/layout.h"
#include "tests/fuzz.h"
#include "tests/tiny_vocab.h"

#define TEXT_MAX     4096u
#define VALUES_BYTES ((size_t)16 << 20)
#define SECONDS_MAX  8 /* of the processor, under sanitizers; FRAGMENT_STEPS_MAX are about one */

static struct tok tok;
static struct grammar grammar;

static void set_up(void)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err;
    check(tok_attach(&tok, blob, vocab_bytes, TEXT_MAX, &err) == 0);
    json_arena_open(VALUES_BYTES);
    grammar_open(&grammar, &tok);
}

/* Bytes from a state: the turn-th of those that lead on, or NO_BYTE. */
#define NO_BYTE 256u
static uint32_t way_on(const struct automaton *automaton, uint32_t state, uint32_t turn)
{
    uint32_t found = NO_BYTE;
    for (uint32_t i = 0; i < 256 && found == NO_BYTE; i++) {
        uint32_t byte = (turn + i) % 256;
        if (automaton_step(automaton, state, (uint8_t)byte) != AUTOMATON_DEAD)
            found = byte;
    }
    return found;
}

/* A text that goes ways the input says until it may end. The size, or 0 where it became too long. */
static size_t walk(const struct automaton *automaton, struct fuzz_input *ways, char *text)
{
    uint32_t state = AUTOMATON_START;
    for (size_t size = 0; size < TEXT_MAX; size++) {
        uint32_t byte = way_on(automaton, state, fuzz_byte(ways));
        if (automaton_accepts(automaton, state) && (byte == NO_BYTE || size > TEXT_MAX / 2 || fuzz_byte(ways) % 4 == 0))
            return size;
        check(byte != NO_BYTE); /* wherever a text stands, it can be finished */
        text[size] = (char)byte;
        state = automaton_step(automaton, state, (uint8_t)byte);
    }
    return 0;
}

static void use(enum grammar_kind kind, json_t *value, struct fuzz_input ways)
{
    static char text[TEXT_MAX];
    struct err err = {.text = ""};
    clock_t begin = clock();
    int ret = grammar_make(&grammar, kind, value, &err);
    check(clock() - begin < SECONDS_MAX * CLOCKS_PER_SEC);
    if (ret != 0) {
        check(err.text[0] != '\0');
        return;
    }
    const struct automaton *automaton = (const void *)grammar.words;
    check(grammar.word_count <= GRAMMAR_WORDS_MAX);
    check(automaton_is_sound(automaton, grammar.word_count * sizeof(uint32_t)));
    size_t size = walk(automaton, &ways, text);
    if (size > 0 && (kind == GRAMMAR_SCHEMA || kind == GRAMMAR_OBJECT))
        check(json_loadb(text, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) != NULL);
}

/* The kind, then the value: a pattern as it is, the others as JSON. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char kinds[] = {
        [GRAMMAR_OBJECT] = 'o', [GRAMMAR_SCHEMA] = 's', [GRAMMAR_REGEX] = 'r', [GRAMMAR_CHOICE] = 'c'};
    if (grammar.tok == NULL)
        set_up();
    struct fuzz_input input = {data, size};
    const char *kind = memchr(kinds, fuzz_byte(&input), sizeof(kinds));
    if (kind == NULL)
        return 0;
    const char *bytes = (const char *)input.data;
    json_arena_reset();
    json_t *value = *kind == 'r' ? json_stringn(bytes, input.size)
                                 : json_loadb(bytes, input.size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (value != NULL || *kind == 'o')
        use((enum grammar_kind)(kind - kinds), value, (struct fuzz_input){data, size});
    return 0;
}
