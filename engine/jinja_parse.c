#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/jinja_internal.h"

#define PARSE_DEPTH_MAX 100u

/* A name that is called, to be checked when all names that the template gives are known. */
struct mention {
    struct jinja_text name;
    uint32_t line;
    struct mention *next;
};

struct parser {
    struct jinja_pool *pool;
    struct jinja_token *token; /* the current one; the last is TOKEN_END */
    uint32_t depth;
    uint32_t loop_depth;
    struct mention *called, *given;
    int status; /* not 0: the first error, err holds it */
    struct err *err;
};

/* Parsing goes on with what is there until somebody looks at the status; the first error counts. */
__attribute__((format(printf, 3, 4))) static void fail_at(struct parser *p, uint32_t line, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (p->status == 0)
        p->status = err_set(p->err, -ENOTSUP, "line %u: %s", line, text);
}

#define FAIL(p, ...) fail_at(p, (p)->token->line, __VA_ARGS__)

static bool is_on(const struct parser *p)
{
    return p->status == 0;
}

/* ---- tokens ---- */

static struct jinja_text token_text(const struct jinja_token *token)
{
    return (struct jinja_text){.data = token->text, .size = token->size};
}

static bool at_sign(const struct parser *p, const char *sign)
{
    return p->token->kind == TOKEN_SIGN && text_is(token_text(p->token), sign);
}

static bool at_name(const struct parser *p, const char *name)
{
    return p->token->kind == TOKEN_NAME && text_is(token_text(p->token), name);
}

static void next(struct parser *p)
{
    if (p->token->kind != TOKEN_END)
        p->token++;
}

static bool take_sign(struct parser *p, const char *sign)
{
    bool is_there = at_sign(p, sign);
    if (is_there)
        next(p);
    return is_there;
}

static bool take_name(struct parser *p, const char *name)
{
    bool is_there = at_name(p, name);
    if (is_there)
        next(p);
    return is_there;
}

static void expect_sign(struct parser *p, const char *sign)
{
    if (!take_sign(p, sign))
        FAIL(p, "'%s' is missing", sign);
}

static void expect_name(struct parser *p, const char *name)
{
    if (!take_name(p, name))
        FAIL(p, "'%s' is missing", name);
}

static void expect_block_end(struct parser *p)
{
    if (p->token->kind != TOKEN_BLOCK_END)
        FAIL(p, "the tag should end here");
    else
        next(p);
}

static struct jinja_text expect_any_name(struct parser *p)
{
    struct jinja_text name = {.data = "", .size = 0};
    if (p->token->kind != TOKEN_NAME)
        FAIL(p, "a name is missing");
    else
        name = token_text(p->token);
    next(p);
    return name;
}

/* ---- nodes ---- */

static struct jinja_node *new_node(struct parser *p, enum jinja_kind kind)
{
    struct jinja_node *node = jinja_pool_take(p->pool, sizeof(*node));
    *node = (struct jinja_node){.kind = kind, .line = p->token->line};
    return node;
}

static void add_item(struct parser *p, struct jinja_node *node, struct jinja_node *item)
{
    uint32_t count = node->item_count;
    if ((count & (count - 1)) == 0) { /* full: 0, 1, 2, 4, ... */
        struct jinja_node **items = jinja_pool_take(p->pool, 2 * (count + 1) * sizeof(struct jinja_node *));
        if (count > 0)
            memcpy(items, node->items, count * sizeof(struct jinja_node *));
        node->items = items;
    }
    node->items[node->item_count++] = item;
}

static void add_named(struct parser *p, struct jinja_node *node, struct jinja_text name, struct jinja_node *value)
{
    struct jinja_named *named = jinja_pool_take(p->pool, (node->named_count + 1) * sizeof(*named));
    if (node->named_count > 0)
        memcpy(named, node->named, node->named_count * sizeof(*named));
    named[node->named_count++] = (struct jinja_named){name, value};
    node->named = named;
}

/* Text of the template: every byte is its own. */
static struct jinja_value own_text(struct parser *p, const char *data, size_t size)
{
    uint8_t *trust = jinja_pool_take(p->pool, size + 1);
    memset(trust, 1, size);
    return value_text((struct jinja_text){data, trust, size});
}

static void mention(struct parser *p, struct mention **list, struct jinja_text name)
{
    struct mention *mention = jinja_pool_take(p->pool, sizeof(*mention));
    *mention = (struct mention){name, p->token->line, *list};
    *list = mention;
}

/* ---- expressions ---- */

static struct jinja_node *parse_expression(struct parser *p);
static struct jinja_node *parse_unary(struct parser *p, bool with_filters);

/* a, b, c: a tuple as soon as there is a comma. */
static struct jinja_node *parse_tuple(struct parser *p, struct jinja_node *(*parse)(struct parser *))
{
    struct jinja_node *first = parse(p);
    if (!at_sign(p, ","))
        return first;
    struct jinja_node *tuple = new_node(p, NODE_TUPLE);
    add_item(p, tuple, first);
    while (is_on(p) && take_sign(p, ",")) {
        if (p->token->kind == TOKEN_PRINT_END || p->token->kind == TOKEN_BLOCK_END || at_sign(p, ")"))
            break;
        add_item(p, tuple, parse(p));
    }
    return tuple;
}

static struct jinja_node *parse_list(struct parser *p)
{
    struct jinja_node *list = new_node(p, NODE_LIST);
    next(p);
    while (is_on(p) && !at_sign(p, "]")) {
        add_item(p, list, parse_expression(p));
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, "]");
    return list;
}

static struct jinja_node *parse_dict(struct parser *p)
{
    struct jinja_node *dict = new_node(p, NODE_DICT);
    next(p);
    while (is_on(p) && !at_sign(p, "}")) {
        add_item(p, dict, parse_expression(p));
        expect_sign(p, ":");
        add_item(p, dict, parse_expression(p));
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, "}");
    return dict;
}

static struct jinja_node *parse_parenthesis(struct parser *p)
{
    next(p);
    if (take_sign(p, ")"))
        return new_node(p, NODE_TUPLE);
    struct jinja_node *node = parse_tuple(p, parse_expression);
    expect_sign(p, ")");
    return node;
}

static struct jinja_node *parse_word(struct parser *p)
{
    static const struct {
        const char *name;
        struct jinja_value value;
    } words[] = {{"true", {.type = JINJA_BOOLEAN, .boolean = true}},
                 {"True", {.type = JINJA_BOOLEAN, .boolean = true}},
                 {"false", {.type = JINJA_BOOLEAN}},
                 {"False", {.type = JINJA_BOOLEAN}},
                 {"none", {.type = JINJA_NONE}},
                 {"None", {.type = JINJA_NONE}}};
    struct jinja_node *node = new_node(p, NODE_NAME);
    node->text = token_text(p->token);
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (text_is(node->text, words[i].name)) {
            node->kind = NODE_CONSTANT;
            node->value = words[i].value;
        }
    next(p);
    return node;
}

static struct jinja_node *parse_string(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_CONSTANT);
    size_t size = 0, count = 0;
    for (; p->token[count].kind == TOKEN_STRING; count++)
        size += p->token[count].size;
    char *text = jinja_pool_take(p->pool, size + 1);
    node->value = own_text(p, text, size);
    for (; p->token->kind == TOKEN_STRING; next(p)) {
        memcpy(text, p->token->text, p->token->size);
        text += p->token->size;
    }
    return node;
}

static struct jinja_node *parse_primary(struct parser *p)
{
    struct jinja_node *node;
    switch (p->token->kind) {
    case TOKEN_NAME:
        return parse_word(p);
    case TOKEN_STRING:
        return parse_string(p);
    case TOKEN_INTEGER:
        node = new_node(p, NODE_CONSTANT);
        node->value = jinja_integer(p->token->integer);
        next(p);
        return node;
    case TOKEN_FLOAT:
        node = new_node(p, NODE_CONSTANT);
        node->value = jinja_float(p->token->number);
        next(p);
        return node;
    default:
        if (at_sign(p, "("))
            return parse_parenthesis(p);
        if (at_sign(p, "["))
            return parse_list(p);
        if (at_sign(p, "{"))
            return parse_dict(p);
        FAIL(p, "an expression is missing");
        node = new_node(p, NODE_CONSTANT);
        node->value = jinja_none();
        next(p);
        return node;
    }
}

/* The arguments of a call, into items and named. */
static void parse_arguments(struct parser *p, struct jinja_node *call)
{
    expect_sign(p, "(");
    while (is_on(p) && !at_sign(p, ")")) {
        bool is_named = p->token->kind == TOKEN_NAME && p->token[1].kind == TOKEN_SIGN && p->token[1].size == 1 &&
                        p->token[1].text[0] == '=';
        if (at_sign(p, "*") || at_sign(p, "**")) {
            FAIL(p, "arguments with * are not supported");
        } else if (is_named) {
            struct jinja_text name = expect_any_name(p);
            next(p);
            add_named(p, call, name, parse_expression(p));
        } else {
            if (call->named_count > 0)
                FAIL(p, "an argument without a name follows one with a name");
            add_item(p, call, parse_expression(p));
        }
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, ")");
}

static void check_builtin(struct parser *p, const struct jinja_node *node, const struct jinja_builtin *builtin,
                          const char *what, struct jinja_text name)
{
    const char *misfit =
        builtin != NULL ? jinja_misfit(builtin, node->item_count, node->named, node->named_count) : NULL;
    if (builtin == NULL)
        fail_at(p, node->line, "the %s '%.*s' is not supported", what, (int)name.size, name.data);
    else if (misfit != NULL)
        fail_at(p, node->line, "the %s '%.*s': %s", what, (int)name.size, name.data, misfit);
}

static struct jinja_node *parse_call(struct parser *p, struct jinja_node *target)
{
    struct jinja_node *call = new_node(p, NODE_CALL);
    call->a = target;
    parse_arguments(p, call);
    if (target->kind == NODE_NAME) {
        mention(p, &p->called, target->text);
        if (jinja_function(target->text) != NULL)
            check_builtin(p, call, jinja_function(target->text), "function", target->text);
    } else if (target->kind == NODE_ATTRIBUTE && !jinja_is_method(target->text)) {
        fail_at(p, target->line, "the method '%.*s' is not supported", (int)target->text.size, target->text.data);
    }
    return call;
}

static struct jinja_node *parse_subscript(struct parser *p, struct jinja_node *target)
{
    struct jinja_node *node = new_node(p, NODE_ITEM);
    node->a = target;
    next(p);
    struct jinja_node *bounds[3] = {NULL};
    uint32_t colons = 0;
    while (is_on(p) && !at_sign(p, "]")) {
        if (take_sign(p, ":")) {
            if (++colons > 2)
                FAIL(p, "a slice has three parts at most");
            continue;
        }
        if (bounds[min_u64(colons, 2)] != NULL)
            FAIL(p, "']' is missing");
        bounds[min_u64(colons, 2)] = parse_expression(p);
    }
    expect_sign(p, "]");
    node->b = bounds[0];
    if (colons > 0) {
        node->kind = NODE_SLICE;
        for (uint32_t i = 0; i < 3; i++)
            add_item(p, node, bounds[i]);
    } else if (node->b == NULL) {
        FAIL(p, "an index is missing");
    }
    return node;
}

static struct jinja_node *parse_attribute(struct parser *p, struct jinja_node *target)
{
    next(p);
    struct jinja_node *node = new_node(p, NODE_ATTRIBUTE);
    node->a = target;
    if (p->token->kind != TOKEN_INTEGER) {
        node->text = expect_any_name(p);
        return node;
    }
    node->kind = NODE_ITEM;
    node->b = parse_primary(p);
    return node;
}

static struct jinja_node *parse_postfix(struct parser *p, struct jinja_node *node)
{
    while (is_on(p)) {
        if (at_sign(p, "."))
            node = parse_attribute(p, node);
        else if (at_sign(p, "["))
            node = parse_subscript(p, node);
        else if (at_sign(p, "("))
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

/* What stands behind '|' or begins {% filter %}. */
static struct jinja_node *parse_filter(struct parser *p, struct jinja_node *target)
{
    struct jinja_node *node = new_node(p, NODE_FILTER);
    node->a = target;
    node->text = expect_any_name(p);
    node->builtin = jinja_filter(node->text);
    if (at_sign(p, "("))
        parse_arguments(p, node);
    check_builtin(p, node, node->builtin, "filter", node->text);
    return node;
}

static bool begins_argument(const struct parser *p)
{
    switch (p->token->kind) {
    case TOKEN_NAME:
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and") && !at_name(p, "is") &&
               !at_name(p, "if") && !at_name(p, "in") && !at_name(p, "not");
    case TOKEN_STRING:
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        return true;
    default:
        return at_sign(p, "[") || at_sign(p, "{");
    }
}

static struct jinja_node *parse_test(struct parser *p, struct jinja_node *target)
{
    next(p);
    struct jinja_node *node = new_node(p, NODE_TEST);
    node->a = target;
    node->is_negated = take_name(p, "not");
    node->text = expect_any_name(p);
    node->builtin = jinja_test(node->text);
    if (at_sign(p, "("))
        parse_arguments(p, node);
    else if (begins_argument(p))
        add_item(p, node, parse_postfix(p, parse_primary(p)));
    check_builtin(p, node, node->builtin, "test", node->text);
    return node;
}

static struct jinja_node *parse_filters(struct parser *p, struct jinja_node *node)
{
    while (is_on(p)) {
        if (take_sign(p, "|"))
            node = parse_filter(p, node);
        else if (at_name(p, "is"))
            node = parse_test(p, node);
        else if (at_sign(p, "("))
            node = parse_call(p, node);
        else
            break;
    }
    return node;
}

static struct jinja_node *parse_unary(struct parser *p, bool with_filters)
{
    struct jinja_node *node;
    if (++p->depth > PARSE_DEPTH_MAX)
        FAIL(p, "expressions are nested deeper than %u", PARSE_DEPTH_MAX);
    if (is_on(p) && (at_sign(p, "-") || at_sign(p, "+"))) {
        node = new_node(p, at_sign(p, "-") ? NODE_NEGATIVE : NODE_POSITIVE);
        next(p);
        node->a = parse_unary(p, false);
    } else if (is_on(p)) {
        node = parse_primary(p);
    } else {
        node = new_node(p, NODE_CONSTANT);
    }
    node = parse_postfix(p, node);
    p->depth--;
    return with_filters ? parse_filters(p, node) : node;
}

static struct jinja_node *parse_operand(struct parser *p)
{
    return parse_unary(p, true);
}

struct operator
{
    const char *text;
    enum jinja_sign sign;
};

/* operand (sign operand)*, from the left. */
static struct jinja_node *parse_left(struct parser *p, struct jinja_node *(*parse)(struct parser *),
                                     const struct operator* operators, size_t count)
{
    struct jinja_node *left = parse(p);
    while (is_on(p)) {
        size_t i = 0;
        while (i < count && !at_sign(p, operators[i].text))
            i++;
        if (i == count)
            break;
        struct jinja_node *node = new_node(p, NODE_ARITHMETIC);
        next(p);
        node->sign = operators[i].sign;
        node->a = left;
        node->b = parse(p);
        left = node;
    }
    return left;
}

static struct jinja_node *parse_power(struct parser *p)
{
    static const struct operator operators[] = {{"**", SIGN_POWER}};
    return parse_left(p, parse_operand, operators, ARRAY_COUNT(operators));
}

static struct jinja_node *parse_product(struct parser *p)
{
    static const struct operator operators[] = {
        {"*", SIGN_MULTIPLY}, {"/", SIGN_DIVIDE}, {"//", SIGN_FLOOR}, {"%", SIGN_MODULO}};
    return parse_left(p, parse_power, operators, ARRAY_COUNT(operators));
}

static struct jinja_node *parse_concat(struct parser *p)
{
    struct jinja_node *first = parse_product(p);
    if (!at_sign(p, "~"))
        return first;
    struct jinja_node *node = new_node(p, NODE_CONCAT);
    add_item(p, node, first);
    while (is_on(p) && take_sign(p, "~"))
        add_item(p, node, parse_product(p));
    return node;
}

static struct jinja_node *parse_sum(struct parser *p)
{
    static const struct operator operators[] = {{"+", SIGN_ADD}, {"-", SIGN_SUBTRACT}};
    return parse_left(p, parse_concat, operators, ARRAY_COUNT(operators));
}

/* The sign of a comparison that stands here is taken; false: there is none. */
static bool take_comparison(struct parser *p, enum jinja_sign *sign)
{
    static const struct operator operators[] = {{"==", SIGN_EQUAL},  {"!=", SIGN_NOT_EQUAL},
                                                {"<", SIGN_LESS},    {"<=", SIGN_LESS_EQUAL},
                                                {">", SIGN_GREATER}, {">=", SIGN_GREATER_EQUAL}};
    for (size_t i = 0; i < ARRAY_COUNT(operators); i++)
        if (take_sign(p, operators[i].text)) {
            *sign = operators[i].sign;
            return true;
        }
    bool is_not = at_name(p, "not") && p->token[1].kind == TOKEN_NAME && text_is(token_text(p->token + 1), "in");
    if (is_not)
        next(p);
    *sign = is_not ? SIGN_NOT_IN : SIGN_IN;
    return take_name(p, "in");
}

static struct jinja_node *parse_comparison(struct parser *p)
{
    struct jinja_node *first = parse_sum(p), *node = NULL;
    enum jinja_sign sign;
    while (is_on(p) && take_comparison(p, &sign)) {
        if (node == NULL) {
            node = new_node(p, NODE_COMPARE);
            node->a = first;
        }
        uint32_t count = node->item_count;
        enum jinja_sign *signs = jinja_pool_take(p->pool, (count + 1) * sizeof(*signs));
        if (count > 0)
            memcpy(signs, node->signs, count * sizeof(*signs));
        signs[count] = sign;
        node->signs = signs;
        add_item(p, node, parse_sum(p));
    }
    return node != NULL ? node : first;
}

static struct jinja_node *parse_not(struct parser *p)
{
    if (!at_name(p, "not"))
        return parse_comparison(p);
    struct jinja_node *node = new_node(p, NODE_NOT);
    next(p);
    if (++p->depth > PARSE_DEPTH_MAX)
        FAIL(p, "expressions are nested deeper than %u", PARSE_DEPTH_MAX);
    node->a = is_on(p) ? parse_not(p) : new_node(p, NODE_CONSTANT);
    p->depth--;
    return node;
}

static struct jinja_node *parse_word_chain(struct parser *p, struct jinja_node *(*parse)(struct parser *),
                                           const char *word, enum jinja_kind kind)
{
    struct jinja_node *left = parse(p);
    while (is_on(p) && at_name(p, word)) {
        struct jinja_node *node = new_node(p, kind);
        next(p);
        node->a = left;
        node->b = parse(p);
        left = node;
    }
    return left;
}

static struct jinja_node *parse_and(struct parser *p)
{
    return parse_word_chain(p, parse_not, "and", NODE_AND);
}

static struct jinja_node *parse_or(struct parser *p)
{
    return parse_word_chain(p, parse_and, "or", NODE_OR);
}

static struct jinja_node *parse_expression(struct parser *p)
{
    if (++p->depth > PARSE_DEPTH_MAX)
        FAIL(p, "expressions are nested deeper than %u", PARSE_DEPTH_MAX);
    struct jinja_node *node = is_on(p) ? parse_or(p) : new_node(p, NODE_CONSTANT);
    while (is_on(p) && at_name(p, "if")) {
        struct jinja_node *conditional = new_node(p, NODE_CONDITIONAL);
        next(p);
        conditional->a = node;
        conditional->b = parse_or(p);
        conditional->c = take_name(p, "else") ? parse_expression(p) : NULL;
        node = conditional;
    }
    p->depth--;
    return node;
}

/* ---- statements ---- */

static struct jinja_node *parse_body(struct parser *p, const char *const *ends, size_t end_count);

#define BODY(p, ...)                                                                                                   \
    parse_body(p, (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

/* A name, names with commas, or namespace.name. */
static struct jinja_node *parse_target(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_NAME);
    bool is_bracketed = take_sign(p, "(");
    node->text = expect_any_name(p);
    if (at_sign(p, ".")) {
        node = parse_attribute(p, node);
        if (node->kind != NODE_ATTRIBUTE)
            FAIL(p, "only a namespace's attributes can be set");
        return node;
    }
    mention(p, &p->given, node->text);
    if (at_sign(p, ",")) {
        struct jinja_node *tuple = new_node(p, NODE_TUPLE);
        add_item(p, tuple, node);
        while (is_on(p) && take_sign(p, ",") && p->token->kind == TOKEN_NAME && !at_name(p, "in")) {
            node = new_node(p, NODE_NAME);
            node->text = expect_any_name(p);
            mention(p, &p->given, node->text);
            add_item(p, tuple, node);
        }
        node = tuple;
    }
    if (is_bracketed)
        expect_sign(p, ")");
    return node;
}

static struct jinja_node *parse_for(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_FOR);
    node->a = parse_target(p);
    expect_name(p, "in");
    node->b = parse_tuple(p, parse_or);
    if (take_name(p, "if"))
        node->filter = parse_expression(p);
    if (at_name(p, "recursive"))
        FAIL(p, "recursive loops are not supported");
    expect_block_end(p);
    p->loop_depth++;
    node->c = BODY(p, "else", "endfor");
    p->loop_depth--;
    if (take_name(p, "else")) {
        expect_block_end(p);
        node->d = BODY(p, "endfor");
    }
    expect_name(p, "endfor");
    return node;
}

static struct jinja_node *parse_if(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_IF), *last = node;
    last->a = parse_tuple(p, parse_expression);
    expect_block_end(p);
    last->b = BODY(p, "elif", "else", "endif");
    while (is_on(p) && at_name(p, "elif")) {
        last->c = new_node(p, NODE_IF);
        last = last->c;
        next(p);
        last->a = parse_tuple(p, parse_expression);
        expect_block_end(p);
        last->b = BODY(p, "elif", "else", "endif");
    }
    if (take_name(p, "else")) {
        expect_block_end(p);
        last->c = BODY(p, "endif");
    }
    expect_name(p, "endif");
    return node;
}

static struct jinja_node *parse_filter_chain(struct parser *p)
{
    struct jinja_node *chain = parse_filter(p, NULL);
    while (is_on(p) && take_sign(p, "|"))
        chain = parse_filter(p, chain);
    return chain;
}

static struct jinja_node *parse_set(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_SET);
    node->a = parse_target(p);
    if (take_sign(p, "=")) {
        node->b = parse_tuple(p, parse_expression);
        return node;
    }
    node->kind = NODE_SET_TEXT;
    if (take_sign(p, "|"))
        node->b = parse_filter_chain(p);
    expect_block_end(p);
    node->c = BODY(p, "endset");
    next(p);
    return node;
}

static void parse_parameters(struct parser *p, struct jinja_node *node)
{
    expect_sign(p, "(");
    while (is_on(p) && !at_sign(p, ")")) {
        struct jinja_text name = expect_any_name(p);
        struct jinja_node *value = take_sign(p, "=") ? parse_expression(p) : NULL;
        if (value == NULL && node->named_count > 0 && node->named[node->named_count - 1].value != NULL)
            FAIL(p, "a parameter without a default follows one with a default");
        mention(p, &p->given, name);
        add_named(p, node, name, value);
        if (!take_sign(p, ","))
            break;
    }
    expect_sign(p, ")");
}

static struct jinja_node *parse_macro(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_MACRO);
    uint32_t loop_depth = p->loop_depth;
    node->text = expect_any_name(p);
    mention(p, &p->given, node->text);
    parse_parameters(p, node);
    expect_block_end(p);
    p->loop_depth = 0;
    node->c = BODY(p, "endmacro");
    p->loop_depth = loop_depth;
    next(p);
    return node;
}

static struct jinja_node *parse_calling(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_CALLING);
    uint32_t loop_depth = p->loop_depth;
    if (at_sign(p, "("))
        parse_parameters(p, node);
    node->a = parse_unary(p, false);
    if (node->a->kind != NODE_CALL)
        FAIL(p, "{%% call %%} needs a call");
    expect_block_end(p);
    p->loop_depth = 0;
    node->c = BODY(p, "endcall");
    p->loop_depth = loop_depth;
    next(p);
    return node;
}

static struct jinja_node *parse_with(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_WITH);
    while (is_on(p) && p->token->kind != TOKEN_BLOCK_END) {
        struct jinja_node *target = new_node(p, NODE_NAME);
        target->text = expect_any_name(p);
        mention(p, &p->given, target->text);
        add_item(p, node, target);
        expect_sign(p, "=");
        add_item(p, node, parse_expression(p));
        if (!take_sign(p, ","))
            break;
    }
    expect_block_end(p);
    node->c = BODY(p, "endwith");
    next(p);
    return node;
}

static struct jinja_node *parse_filtered(struct parser *p)
{
    struct jinja_node *node = new_node(p, NODE_FILTERED);
    node->b = parse_filter_chain(p);
    expect_block_end(p);
    node->c = BODY(p, "endfilter");
    next(p);
    return node;
}

/* What transformers marks as the assistant's own words, for training: here just text. */
static struct jinja_node *parse_generation(struct parser *p)
{
    expect_block_end(p);
    struct jinja_node *body = BODY(p, "endgeneration");
    next(p);
    return body;
}

static struct jinja_node *parse_jump(struct parser *p, enum jinja_kind kind)
{
    if (p->loop_depth == 0)
        FAIL(p, "there is no loop here to leave");
    return new_node(p, kind);
}

static struct jinja_node *parse_break(struct parser *p)
{
    return parse_jump(p, NODE_BREAK);
}

static struct jinja_node *parse_continue(struct parser *p)
{
    return parse_jump(p, NODE_CONTINUE);
}

static struct jinja_node *parse_statement(struct parser *p)
{
    static const struct {
        const char *name;
        struct jinja_node *(*parse)(struct parser *);
    } statements[] = {{"for", parse_for},         {"if", parse_if},
                      {"set", parse_set},         {"macro", parse_macro},
                      {"call", parse_calling},    {"with", parse_with},
                      {"filter", parse_filtered}, {"generation", parse_generation},
                      {"break", parse_break},     {"continue", parse_continue}};
    struct jinja_text name = token_text(p->token);
    uint32_t line = p->token->line;
    next(p);
    for (size_t i = 0; i < ARRAY_COUNT(statements); i++)
        if (text_is(name, statements[i].name)) {
            struct jinja_node *node = statements[i].parse(p);
            node->line = line;
            expect_block_end(p);
            return node;
        }
    fail_at(p, line, "the tag '%.*s' is not supported here", (int)min_u64(name.size, 64), name.data);
    return new_node(p, NODE_CONSTANT);
}

static bool at_end(const struct parser *p, const char *const *ends, size_t end_count)
{
    for (size_t i = 0; i < end_count; i++)
        if (p->token[1].kind == TOKEN_NAME && text_is(token_text(p->token + 1), ends[i]))
            return true;
    return false;
}

/* Up to a tag of one of these names, whose name is then the current token; without any, to the end. */
static struct jinja_node *parse_body(struct parser *p, const char *const *ends, size_t end_count)
{
    struct jinja_node *body = new_node(p, NODE_BODY), *node;
    if (++p->depth > PARSE_DEPTH_MAX)
        FAIL(p, "blocks are nested deeper than %u", PARSE_DEPTH_MAX);
    while (is_on(p)) {
        switch (p->token->kind) {
        case TOKEN_DATA:
            node = new_node(p, NODE_DATA);
            node->value = own_text(p, p->token->text, p->token->size);
            next(p);
            add_item(p, body, node);
            break;
        case TOKEN_PRINT:
            next(p);
            node = new_node(p, NODE_OUTPUT);
            node->a = parse_tuple(p, parse_expression);
            if (p->token->kind != TOKEN_PRINT_END)
                FAIL(p, "'}}' should stand here");
            next(p);
            add_item(p, body, node);
            break;
        case TOKEN_BLOCK:
            if (at_end(p, ends, end_count)) {
                next(p);
                p->depth--;
                return body;
            }
            next(p);
            add_item(p, body, parse_statement(p));
            break;
        default:
            if (end_count > 0)
                FAIL(p, "'%s' is missing", ends[end_count - 1]);
            p->depth--;
            return body;
        }
    }
    p->depth--;
    return body;
}

static bool is_given(const struct parser *p, struct jinja_text name)
{
    for (const struct mention *given = p->given; given != NULL; given = given->next)
        if (text_equal(given->name, name))
            return true;
    return text_is(name, "caller") || jinja_function(name) != NULL;
}

int jinja_parse(struct jinja_program **program, const char *source, size_t size, struct err *err)
{
    if (size > JINJA_SOURCE_MAX)
        return err_set(err, -ENOTSUP, "longer than %zu bytes", JINJA_SOURCE_MAX);
    struct parser p = {.pool = jinja_pool_new(), .err = err};
    p.status = jinja_lex(p.pool, source, size, &p.token, err);
    struct jinja_token *tokens = p.token;
    struct jinja_node *body = is_on(&p) ? parse_body(&p, NULL, 0) : NULL;
    for (const struct mention *called = p.called; called != NULL && is_on(&p); called = called->next)
        if (!is_given(&p, called->name))
            fail_at(&p, called->line, "the function '%.*s' is not supported", (int)called->name.size,
                    called->name.data);
    if (p.status != 0) {
        jinja_pool_free(p.pool);
        return p.status;
    }
    *program = jinja_pool_take(p.pool, sizeof(**program));
    **program = (struct jinja_program){.pool = p.pool, .body = body, .tokens = tokens};
    return 0;
}

void jinja_free(struct jinja_program *program)
{
    if (program != NULL)
        jinja_pool_free(program->pool);
}

bool jinja_mentions(const struct jinja_program *program, const char *name)
{
    for (const struct jinja_token *token = program->tokens; token->kind != TOKEN_END; token++)
        if (token->kind == TOKEN_NAME && text_is(token_text(token), name))
            return true;
    return false;
}
