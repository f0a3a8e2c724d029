#include "engine/grammar.h"

#include <errno.h>
#include <string.h>

#include "engine/regex.h"
#include "engine/schema.h"
#include "ipc/layout.h"

#define MEMORY_BYTES ((size_t)24 << 20)

static int build_schema(struct fragment_builder *builder, json_t *value, struct fragment *whole, struct err *err)
{
    json_error_t problem;
    if (!json_is_string(value))
        return schema_build(builder, value, whole, err);
    json_t *schema = json_loadb(json_string_value(value), json_string_length(value), JSON_REJECT_DUPLICATES, &problem);
    if (schema == NULL)
        return err_set(err, -EINVAL, "the schema is not valid JSON: line %d, column %d: %.100s", problem.line,
                       problem.column, problem.text);
    return schema_build(builder, schema, whole, err);
}

static int build_regex(struct fragment_builder *builder, json_t *value, struct fragment *whole, struct err *err)
{
    if (!json_is_string(value))
        return err_set(err, -EINVAL, "a regular expression must be a string");
    return regex_build(builder, json_string_value(value), json_string_length(value), false, whole, err);
}

static int build_choice(struct fragment_builder *builder, json_t *value, struct fragment *whole, struct err *err)
{
    size_t i;
    json_t *one;
    if (!json_is_array(value) || json_array_size(value) == 0)
        return err_set(err, -EINVAL, "choices must be a list of strings");
    json_array_foreach(value, i, one) {
        if (!json_is_string(one) || json_string_length(one) == 0)
            return err_set(err, -EINVAL, "choice %zu must be a string that is not empty", i);
        struct fragment text = fragment_text(builder, json_string_value(one), json_string_length(one));
        *whole = i == 0 ? text : fragment_or(builder, *whole, text);
    }
    return 0;
}

/* The automaton of the whole, in grammar->words. */
static int finish(struct grammar *grammar, struct fragment_builder *builder, struct fragment whole, struct err *err)
{
    struct automaton *automaton = fragment_finish(builder, whole);
    if (automaton == NULL && !builder->has_failed)
        return err_set(err, -EINVAL, "no text at all is allowed by it");
    if (automaton == NULL || automaton_bytes(automaton) > GRAMMAR_WORDS_MAX * sizeof(uint32_t))
        return err_set(
            err, -EINVAL,
            "it is too large: an automaton of %u states and %zu KiB is allowed; fewer or shorter repetitions "
            "make a smaller one",
            AUTOMATON_STATES_MAX, GRAMMAR_WORDS_MAX * sizeof(uint32_t) / 1024);
    size_t bytes = automaton_bytes(automaton);
    grammar->words = (const uint32_t *)(const void *)automaton;
    grammar->word_count = (uint32_t)div_up_u64(bytes, sizeof(uint32_t));
    /* up to the next multiple of 16 the builder's memory is nobody's */
    memset((uint8_t *)automaton + bytes, 0, grammar->word_count * sizeof(uint32_t) - bytes);
    return 0;
}

/* The one that is the same for all who ask for it is made for the first of them. */
static int make_object(struct grammar *grammar, struct fragment_builder *builder, struct err *err)
{
    if (grammar->object_word_count == 0) {
        if (finish(grammar, builder, schema_any_object(builder), err) != 0)
            return err_set(err, -ENOTSUP, "the model has no tokens for any JSON object");
        memcpy(grammar->object_words, grammar->words, grammar->word_count * sizeof(uint32_t));
        grammar->object_word_count = grammar->word_count;
    }
    grammar->words = grammar->object_words;
    grammar->word_count = grammar->object_word_count;
    return 0;
}

int grammar_make(struct grammar *grammar, enum grammar_kind kind, json_t *value, struct err *err)
{
    struct fragment_builder builder;
    struct fragment whole = {0};
    int ret = 0;
    fragment_begin(&builder, grammar->memory, MEMORY_BYTES);
    for (uint32_t byte = 0; byte < 256; byte++)
        builder.is_left_out[byte] = !tok_has_byte(grammar->tok, (uint8_t)byte);
    switch (kind) {
    case GRAMMAR_OBJECT:
        return make_object(grammar, &builder, err);
    case GRAMMAR_SCHEMA:
        ret = build_schema(&builder, value, &whole, err);
        break;
    case GRAMMAR_REGEX:
        ret = build_regex(&builder, value, &whole, err);
        break;
    case GRAMMAR_CHOICE:
        ret = build_choice(&builder, value, &whole, err);
        break;
    }
    return ret ? ret : finish(grammar, &builder, whole, err);
}

void grammar_open(struct grammar *grammar, const struct tok *tok)
{
    *grammar = (struct grammar){.tok = tok,
                                .memory = base_reserve(64, MEMORY_BYTES),
                                .object_words = base_reserve(64, GRAMMAR_WORDS_MAX * sizeof(uint32_t))};
}
