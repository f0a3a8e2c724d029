#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/jinja_internal.h"
#include "engine/unicode.h"

#define POOL_CHUNK ((size_t)1 << 16)

/* ---- memory of a compiled template ---- */

struct jinja_pool {
    struct jinja_pool *next; /* chunks, the first is this one's own */
    size_t used, bytes;
    max_align_t data[];
};

static struct jinja_pool *new_chunk(size_t bytes)
{
    struct jinja_pool *chunk = base_alloc(sizeof(*chunk) + bytes);
    chunk->bytes = bytes;
    return chunk;
}

struct jinja_pool *jinja_pool_new(void)
{
    return new_chunk(POOL_CHUNK);
}

void *jinja_pool_take(struct jinja_pool *pool, size_t bytes)
{
    bytes = align_up_u64(bytes, sizeof(max_align_t));
    struct jinja_pool *chunk = pool->next != NULL ? pool->next : pool;
    if (bytes > chunk->bytes - chunk->used) {
        chunk = new_chunk(max_u64(bytes, POOL_CHUNK));
        chunk->next = pool->next;
        pool->next = chunk;
    }
    void *memory = (uint8_t *)chunk->data + chunk->used;
    chunk->used += bytes;
    return memory;
}

void jinja_pool_free(struct jinja_pool *pool)
{
    for (struct jinja_pool *next; pool != NULL; pool = next) {
        next = pool->next;
        free(pool);
    }
}

/* ---- the lexer ---- */

struct lexer {
    struct jinja_pool *pool;
    const char *source;
    size_t size, at;
    uint32_t line;
    bool is_line_start; /* nothing but a line's end lies before `at` */
    struct jinja_token *tokens;
    size_t count, room;
    struct err *err;
};

static int fail(const struct lexer *lexer, const char *what)
{
    return err_set(lexer->err, -EINVAL, "line %u: %s", lexer->line, what);
}

static struct jinja_token *push(struct lexer *lexer, enum jinja_token_kind kind, const char *text, size_t size)
{
    if (lexer->count == lexer->room) {
        size_t room = lexer->room ? 2 * lexer->room : 256;
        struct jinja_token *larger = jinja_pool_take(lexer->pool, room * sizeof(*larger));
        if (lexer->count > 0)
            memcpy(larger, lexer->tokens, lexer->count * sizeof(*larger));
        lexer->tokens = larger;
        lexer->room = room;
    }
    struct jinja_token *token = &lexer->tokens[lexer->count++];
    *token = (struct jinja_token){.kind = kind, .line = lexer->line, .text = text, .size = size};
    return token;
}

/* Moves on, counting lines. */
static void advance(struct lexer *lexer, size_t size)
{
    for (size_t i = 0; i < size; i++)
        lexer->line += lexer->source[lexer->at + i] == '\n';
    lexer->at += size;
}

static bool looks_at(const struct lexer *lexer, size_t at, const char *text)
{
    size_t size = strlen(text);
    return size <= lexer->size - at && memcmp(lexer->source + at, text, size) == 0;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}

/* Bytes of white space at `at`. */
static size_t space_at(const struct lexer *lexer, size_t at)
{
    size_t begin = at;
    for (uint32_t code, length; at < lexer->size; at += length) {
        length = unicode_decode((const uint8_t *)lexer->source + at, lexer->size - at, &code, NULL);
        if (length == 0 || !is_python_space(code))
            break;
    }
    return at - begin;
}

/* Text up to a tag, less what the tag takes: '-' all white space before it; else, for a block or comment, the blanks
 * that stand alone before it in its line. */
static size_t kept_size(const struct lexer *lexer, size_t begin, size_t end, char mark, bool is_print)
{
    const char *text = lexer->source;
    if (mark == '-') {
        struct lexer part = *lexer;
        part.size = end;
        size_t kept = begin;
        for (size_t at = begin; at < end;) {
            size_t space = space_at(&part, at);
            at += space;
            if (at < end) {
                at++;
                kept = at;
            }
        }
        return kept - begin;
    }
    if (mark == '+' || is_print)
        return end - begin;
    size_t line = end;
    while (line > begin && text[line - 1] != '\n')
        line--;
    if (line == begin && !lexer->is_line_start)
        return end - begin;
    return space_at(&(struct lexer){.source = text, .size = end}, line) == end - line ? line - begin : end - begin;
}

/* The end of a tag at `at`: "%}" with '-' or '+' before it. Its bytes, and what it swallows behind it; 0: none. */
static size_t tag_end(const struct lexer *lexer, size_t at, const char *end, bool trims_newline)
{
    bool strips = looks_at(lexer, at, "-"), keeps = trims_newline && looks_at(lexer, at, "+");
    size_t size = strips || keeps;
    if (!looks_at(lexer, at + size, end))
        return 0;
    size += strlen(end);
    if (strips)
        return size + space_at(lexer, at + size);
    return size + (trims_newline && !keeps && looks_at(lexer, at + size, "\n"));
}

static void close_tag(struct lexer *lexer, size_t size)
{
    advance(lexer, size);
    lexer->is_line_start = lexer->source[lexer->at - 1] == '\n';
}

static int put_code(char *target, uint32_t code)
{
    if (code < 0x80) {
        target[0] = (char)code;
        return 1;
    }
    int size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = size - 1; i > 0; i--, code >>= 6)
        target[i] = (char)(0x80 | (code & 0x3f));
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    target[0] = (char)(lead[size] | code);
    return size;
}

/* A number of so many digits at most in base 8 or 16; the count of digits. */
static size_t digits(const char *text, size_t size, size_t max, uint32_t base, uint32_t *value)
{
    size_t count = 0;
    for (*value = 0; count < max && count < size; count++) {
        char c = (char)(text[count] | 0x20);
        uint32_t digit = text[count] >= '0' && text[count] <= '9' ? (uint32_t)(text[count] - '0')
                         : c >= 'a' && c <= 'f'                   ? (uint32_t)(c - 'a' + 10)
                                                                  : 99;
        if (digit >= base)
            break;
        *value = *value * base + digit;
    }
    return count;
}

/* Resolves the escapes of Python's string literals. */
static int lex_string(struct lexer *lexer)
{
    char quote = lexer->source[lexer->at];
    const char *from = lexer->source + lexer->at + 1, *limit = lexer->source + lexer->size, *end = from;
    while (end < limit && *end != quote)
        end += *end == '\\' && end + 1 < limit ? 2 : 1;
    if (end >= limit)
        return fail(lexer, "a string does not end");
    char *text = jinja_pool_take(lexer->pool, (size_t)(end - from) + 4);
    size_t size = 0;
    static const char plain[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    for (const char *c = from; c < end;) {
        if (*c != '\\') {
            text[size++] = *c++;
            continue;
        }
        c++;
        const char *known = NULL;
        for (size_t i = 0; i < sizeof(plain) - 1; i += 2)
            if (plain[i] == *c)
                known = &plain[i + 1];
        size_t wanted = *c == 'x' ? 2 : *c == 'u' ? 4 : *c == 'U' ? 8 : 0;
        uint32_t code;
        if (known != NULL) {
            text[size++] = *known;
            c++;
        } else if (*c == '\n') {
            c++;
        } else if (wanted > 0) {
            if (digits(c + 1, (size_t)(end - c - 1), wanted, 16, &code) != wanted || code > 0x10ffff ||
                (code >= 0xd800 && code < 0xe000))
                return fail(lexer, "a string has an escape that is no character");
            size += (size_t)put_code(text + size, code);
            c += 1 + wanted;
        } else if (*c >= '0' && *c <= '7') {
            c += digits(c, (size_t)(end - c), 3, 8, &code);
            size += (size_t)put_code(text + size, code);
        } else if (*c == 'N') {
            return fail(lexer, "\\N escapes are not supported");
        } else {
            text[size++] = '\\';
        }
    }
    push(lexer, TOKEN_STRING, text, size);
    advance(lexer, (size_t)(end - from) + 2);
    return 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_';
}

static int lex_number(struct lexer *lexer)
{
    const char *text = lexer->source + lexer->at;
    char digits_only[64];
    size_t left = lexer->size - lexer->at, size = 0, count = 0;
    bool is_float = false;
    for (; size < left; size++) {
        char c = text[size], next = size + 1 < left ? text[size + 1] : '\0';
        if (is_digit(c)) {
        } else if (c == '_' && is_digit(next)) {
            continue;
        } else if (c == '.' && is_digit(next) && !is_float) {
            is_float = true;
        } else if ((c | 0x20) == 'e' &&
                   (is_digit(next) || ((next == '+' || next == '-') && size + 2 < left && is_digit(text[size + 2])))) {
            is_float = true;
            digits_only[count++] = c;
            c = text[++size];
        } else {
            break;
        }
        if (count >= sizeof(digits_only) - 2)
            return fail(lexer, "a number is too long");
        digits_only[count++] = c;
    }
    digits_only[count] = '\0';
    if (size < left && is_word(text[size]))
        return fail(lexer, "a number is followed by letters");
    struct jinja_token *token = push(lexer, is_float ? TOKEN_FLOAT : TOKEN_INTEGER, text, size);
    errno = 0;
    if (is_float)
        token->number = strtod(digits_only, NULL);
    else
        token->integer = strtoll(digits_only, NULL, 10);
    if (errno == ERANGE)
        return fail(lexer, "a number is too large");
    advance(lexer, size);
    return 0;
}

static int lex_sign(struct lexer *lexer)
{
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    for (size_t i = 0; i < ARRAY_COUNT(two); i++)
        if (looks_at(lexer, lexer->at, two[i])) {
            push(lexer, TOKEN_SIGN, lexer->source + lexer->at, 2);
            lexer->at += 2;
            return 0;
        }
    if (strchr("+-*/%~<>=()[]{}.,:|;", lexer->source[lexer->at]) == NULL)
        return fail(lexer, "a character that means nothing in Jinja");
    push(lexer, TOKEN_SIGN, lexer->source + lexer->at, 1);
    lexer->at++;
    return 0;
}

/* What lies between the two ends of a tag. */
static int lex_tag(struct lexer *lexer, bool is_print)
{
    uint32_t open = 0; /* brackets: inside them "}}" is two signs */
    while (lexer->at < lexer->size) {
        char c = lexer->source[lexer->at];
        size_t end = open > 0 ? 0 : tag_end(lexer, lexer->at, is_print ? "}}" : "%}", !is_print);
        if (end > 0) {
            push(lexer, is_print ? TOKEN_PRINT_END : TOKEN_BLOCK_END, NULL, 0);
            close_tag(lexer, end);
            return 0;
        }
        int ret = 0;
        if (is_blank(c)) {
            advance(lexer, 1);
        } else if (c == '"' || c == '\'') {
            ret = lex_string(lexer);
        } else if (is_digit(c)) {
            ret = lex_number(lexer);
        } else if (is_word(c)) {
            size_t size = 1;
            while (lexer->at + size < lexer->size && is_word(lexer->source[lexer->at + size]))
                size++;
            push(lexer, TOKEN_NAME, lexer->source + lexer->at, size);
            lexer->at += size;
        } else {
            open += c == '(' || c == '[' || c == '{';
            if (c == ')' || c == ']' || c == '}') {
                if (open == 0)
                    return fail(lexer, "a bracket closes nothing");
                open--;
            }
            ret = lex_sign(lexer);
        }
        if (ret != 0)
            return ret;
    }
    return fail(lexer, "a tag does not end");
}

/* The word of a tag at `at` ("{%- raw"), with what follows it; 0: another one. */
static size_t raw_tag(const struct lexer *lexer, size_t at, const char *word, bool trims_newline)
{
    size_t begin = at;
    at += 2;
    at += looks_at(lexer, at, "-") || looks_at(lexer, at, "+");
    at += space_at(lexer, at);
    if (!looks_at(lexer, at, word))
        return 0;
    at += strlen(word);
    at += space_at(lexer, at);
    size_t end = tag_end(lexer, at, "%}", trims_newline);
    return end > 0 ? at + end - begin : 0;
}

static char mark_at(const struct lexer *lexer, size_t at)
{
    return looks_at(lexer, at, "-") ? '-' : looks_at(lexer, at, "+") ? '+' : '\0';
}

static int lex_raw(struct lexer *lexer, size_t head)
{
    close_tag(lexer, head);
    for (size_t at = lexer->at; at < lexer->size; at++) {
        size_t tail = looks_at(lexer, at, "{%") ? raw_tag(lexer, at, "endraw", true) : 0;
        if (tail == 0)
            continue;
        size_t kept = kept_size(lexer, lexer->at, at, mark_at(lexer, at + 2), false);
        push(lexer, TOKEN_DATA, lexer->source + lexer->at, kept);
        advance(lexer, at - lexer->at);
        close_tag(lexer, tail);
        return 0;
    }
    return fail(lexer, "raw does not end");
}

static int lex_comment(struct lexer *lexer)
{
    size_t mark = mark_at(lexer, lexer->at + 2) != '\0';
    for (size_t at = lexer->at + 2 + mark; at < lexer->size; at++) {
        size_t end = tag_end(lexer, at, "#}", true);
        if (end > 0) {
            close_tag(lexer, at + end - lexer->at);
            return 0;
        }
    }
    return fail(lexer, "a comment does not end");
}

/* Text up to the next tag, and the tag. */
static int lex_next(struct lexer *lexer)
{
    size_t at = lexer->at;
    while (at < lexer->size && !looks_at(lexer, at, "{{") && !looks_at(lexer, at, "{%") && !looks_at(lexer, at, "{#"))
        at++;
    bool is_tag = at < lexer->size;
    char kind = is_tag ? lexer->source[at + 1] : '\0';
    size_t kept = is_tag ? kept_size(lexer, lexer->at, at, mark_at(lexer, at + 2), kind == '{') : at - lexer->at;
    if (kept > 0)
        push(lexer, TOKEN_DATA, lexer->source + lexer->at, kept);
    advance(lexer, at - lexer->at);
    if (!is_tag)
        return 0;
    if (kind == '#')
        return lex_comment(lexer);
    size_t raw = kind == '%' ? raw_tag(lexer, at, "raw", false) : 0;
    if (raw > 0)
        return lex_raw(lexer, raw);
    push(lexer, kind == '{' ? TOKEN_PRINT : TOKEN_BLOCK, NULL, 0);
    lexer->at += 2 + (mark_at(lexer, at + 2) != '\0');
    return lex_tag(lexer, kind == '{');
}

/* Line ends become '\n', and the last one goes. */
static char *normalised(struct jinja_pool *pool, const char *source, size_t *size)
{
    char *text = jinja_pool_take(pool, *size + 1);
    size_t count = 0;
    for (size_t i = 0; i < *size; i++) {
        bool is_return = source[i] == '\r';
        text[count++] = is_return ? '\n' : source[i];
        i += is_return && i + 1 < *size && source[i + 1] == '\n';
    }
    *size = count > 0 && text[count - 1] == '\n' ? count - 1 : count;
    return text;
}

int jinja_lex(struct jinja_pool *pool, const char *source, size_t size, struct jinja_token **tokens, struct err *err)
{
    struct lexer lexer = {.pool = pool, .line = 1, .is_line_start = true, .err = err};
    for (size_t at = 0; at < size;) {
        uint32_t code, length = unicode_decode((const uint8_t *)source + at, size - at, &code, NULL);
        if (length == 0)
            return err_set(err, -EINVAL, "byte %zu is not UTF-8", at);
        at += length;
    }
    lexer.source = normalised(pool, source, &size);
    lexer.size = size;
    while (lexer.at < lexer.size) {
        int ret = lex_next(&lexer);
        if (ret != 0)
            return ret;
    }
    push(&lexer, TOKEN_END, NULL, 0);
    *tokens = lexer.tokens;
    return 0;
}
