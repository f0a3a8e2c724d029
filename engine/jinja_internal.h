/* jinja_internal.h - what the parts of the interpreter share: tokens, nodes, a rendering in progress.
 *
 * Used by: jinja_*.c.   Owns: nothing.   Never blocks.
 *
 *   source --jinja_lex.c--> tokens --jinja_parse.c--> nodes --jinja_eval.c--> text
 *                                       |                        |
 *                                       +--- jinja_builtin.c ----+   filters, tests, methods and functions, in tables
 *                                              jinja_value.c         what a value is: equal, ordered, printed, as JSON
 */
#ifndef EVENFLOW_JINJA_INTERNAL_H
#define EVENFLOW_JINJA_INTERNAL_H

#include "engine/jinja.h"

/* ---- tokens ---- */

enum jinja_token_kind {
    TOKEN_END,
    TOKEN_DATA,  /* text between tags */
    TOKEN_BLOCK, /* {% */
    TOKEN_BLOCK_END,
    TOKEN_PRINT, /* {{ */
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_STRING, /* escapes resolved */
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_SIGN, /* an operator: one or two characters */
};

struct jinja_token {
    enum jinja_token_kind kind;
    uint32_t line;
    const char *text;
    size_t size;
    int64_t integer;
    double number;
};

struct jinja_pool; /* memory of a compiled template: pool_take() never fails, pool_free() gives all back */
struct jinja_pool *jinja_pool_new(void);
void *jinja_pool_take(struct jinja_pool *pool, size_t bytes);
void jinja_pool_free(struct jinja_pool *pool);

/* All tokens of a template, the last one END. */
int jinja_lex(struct jinja_pool *pool, const char *source, size_t size, struct jinja_token **tokens, struct err *err);

/* ---- nodes ---- */

enum jinja_kind {
    /* expressions */
    NODE_CONSTANT,    /* value */
    NODE_NAME,        /* text */
    NODE_LIST,        /* items */
    NODE_TUPLE,       /* items */
    NODE_DICT,        /* items: key, value, key, value, ... */
    NODE_ATTRIBUTE,   /* a.text */
    NODE_ITEM,        /* a[b] */
    NODE_SLICE,       /* a[items[0]:items[1]:items[2]], each may be NULL */
    NODE_CALL,        /* a(items, named) */
    NODE_FILTER,      /* a | builtin(items, named); a NULL: of a block's text */
    NODE_TEST,        /* a is builtin(items, named) */
    NODE_NOT,         /* a */
    NODE_NEGATIVE,    /* a */
    NODE_POSITIVE,    /* a */
    NODE_AND,         /* a, b */
    NODE_OR,          /* a, b */
    NODE_CONDITIONAL, /* a if b else c, which may be NULL */
    NODE_COMPARE,     /* a, then items each with its operator: chained comparisons */
    NODE_ARITHMETIC,  /* a sign b */
    NODE_CONCAT,      /* items, joined by ~ */
    /* statements */
    NODE_DATA,     /* value */
    NODE_OUTPUT,   /* a */
    NODE_BODY,     /* items */
    NODE_IF,       /* a ? b : c, which may be NULL */
    NODE_FOR,      /* a: targets, b: over what, c: body, d: else or NULL, filter or NULL */
    NODE_SET,      /* a: targets, b: value */
    NODE_SET_TEXT, /* a: target, c: body, b: filters over it or NULL */
    NODE_MACRO,    /* text: its name, params, c: body */
    NODE_CALLING,  /* {% call %}: a: the call, params, c: body */
    NODE_FILTERED, /* {% filter %}: b: filters, c: body */
    NODE_WITH,     /* items: target, value, ...; c: body */
    NODE_BREAK,
    NODE_CONTINUE,
};

enum jinja_sign {
    SIGN_ADD,
    SIGN_SUBTRACT,
    SIGN_MULTIPLY,
    SIGN_DIVIDE,
    SIGN_FLOOR,
    SIGN_MODULO,
    SIGN_POWER,
    SIGN_EQUAL,
    SIGN_NOT_EQUAL,
    SIGN_LESS,
    SIGN_LESS_EQUAL,
    SIGN_GREATER,
    SIGN_GREATER_EQUAL,
    SIGN_IN,
    SIGN_NOT_IN,
};

/* A named argument of a call, or a parameter with its default (which may be NULL). */
struct jinja_named {
    struct jinja_text name;
    struct jinja_node *value;
};

struct jinja_node {
    enum jinja_kind kind;
    uint32_t line;
    enum jinja_sign sign;     /* ARITHMETIC */
    enum jinja_sign *signs;   /* COMPARE: (item_count) */
    struct jinja_value value; /* CONSTANT, DATA */
    struct jinja_text text;
    struct jinja_node *a, *b, *c, *d, *filter;
    struct jinja_node **items;
    uint32_t item_count;
    uint32_t named_count;
    struct jinja_named *named; /* CALL, FILTER, TEST: arguments; MACRO, CALLING: parameters */
    const struct jinja_builtin *builtin;
    bool is_negated; /* TEST */
};

struct jinja_program {
    struct jinja_pool *pool;
    struct jinja_node *body;
    struct jinja_token *tokens;
};

/* ---- a rendering in progress ---- */

struct jinja_binding {
    struct jinja_text name;
    struct jinja_value value;
    struct jinja_binding *next;
};

struct jinja_scope {
    struct jinja_scope *parent;
    struct jinja_binding *bindings;
};

struct jinja_macro {
    const struct jinja_node *node;
    struct jinja_scope *scope; /* where it was defined */
};

struct jinja_loop {
    struct jinja_list *items;
    uint32_t index;
    struct jinja_value changed; /* what loop.changed() saw last */
};

struct jinja_method {
    struct jinja_value self;
    const struct jinja_builtin *builtin; /* NULL: a method that nothing may call */
};

/* Text that grows in the arena. */
struct jinja_builder {
    char *data;
    uint8_t *trust;
    size_t size, room;
};

enum jinja_jump { JUMP_NONE, JUMP_BREAK, JUMP_CONTINUE };

struct jinja_run {
    struct jinja_arena *arena;
    const struct jinja_dict *variables;
    uint64_t now_s;
    struct err *err;
    enum jinja_result result; /* not OK: everything unwinds, values mean nothing */
    uint32_t line;
    uint32_t depth;
    uint32_t steps_left;
    enum jinja_jump jump;
    struct jinja_scope *scope;
    struct jinja_builder *out;
};

/* Ends the rendering; the first reason is kept. Returns an undefined value. */
struct jinja_value jinja_fail(struct jinja_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline bool jinja_is_on(const struct jinja_run *run)
{
    return run->result == JINJA_OK;
}

/* Counts work. False: the limit is reached, or the rendering has ended. */
bool jinja_step(struct jinja_run *run, uint64_t steps);

/* Memory; NULL after jinja_fail(). */
void *jinja_run_take(struct jinja_run *run, size_t bytes);

void builder_put(struct jinja_run *run, struct jinja_builder *builder, struct jinja_text text);
void builder_put_plain(struct jinja_run *run, struct jinja_builder *builder, const char *text, size_t size);
struct jinja_value builder_value(const struct jinja_builder *builder);

/* ---- values (jinja_value.c) ---- */

struct jinja_value value_undefined(struct jinja_text name);
struct jinja_value value_text(struct jinja_text text);
struct jinja_value value_list(struct jinja_run *run, uint32_t room);
void value_append(struct jinja_run *run, struct jinja_value list, struct jinja_value value);
struct jinja_text text_of(const char *text); /* unmarked */
struct jinja_text text_part(struct jinja_text text, size_t first, size_t size);
bool text_is(struct jinja_text text, const char *other);
bool text_equal(struct jinja_text a, struct jinja_text b);

const char *value_type_name(struct jinja_value value);
bool value_is_true(struct jinja_value value);
bool value_is_number(struct jinja_value value); /* booleans too, as in Python */
double value_number(struct jinja_value value);
bool value_equal(struct jinja_run *run, struct jinja_value a, struct jinja_value b);
int value_order(struct jinja_run *run, struct jinja_value a, struct jinja_value b); /* <0, 0, >0 */
bool value_contains(struct jinja_run *run, struct jinja_value container, struct jinja_value item);

/* What str() gives. */
struct jinja_text value_str(struct jinja_run *run, struct jinja_value value);

struct json_style {
    int64_t indent; /* negative: on one line */
    struct jinja_text item_separator, key_separator;
    bool sorts_keys, is_ascii;
};
void value_json(struct jinja_run *run, struct jinja_builder *out, struct jinja_value value,
                const struct json_style *style, uint32_t level);

/* The values that a loop over it takes, in a list that is not to be changed. */
struct jinja_list *value_items(struct jinja_run *run, struct jinja_value value);

/* value.name and value[key]; undefined where there is none. */
struct jinja_value value_attribute(struct jinja_run *run, struct jinja_value value, struct jinja_text name);
struct jinja_value value_item(struct jinja_run *run, struct jinja_value value, struct jinja_value key);
/* Bounds may be ABSENT or NONE. */
struct jinja_value value_slice(struct jinja_run *run, struct jinja_value value, const struct jinja_value bounds[3]);

size_t text_length(struct jinja_text text); /* characters */
/* Bytes of the first `characters` characters. */
size_t text_offset(struct jinja_text text, size_t characters);
bool is_python_space(uint32_t code);

/* ---- filters, tests, methods, functions (jinja_builtin.c) ---- */

#define CALL_ARGS_MAX 8u

struct jinja_call {
    const struct jinja_builtin *builtin;
    struct jinja_value self;
    struct jinja_value args[CALL_ARGS_MAX]; /* by the builtin's parameters; ABSENT: not given */
    struct jinja_list *all;                 /* positional ones as they came: builtins that take any number */
    struct jinja_dict *named;               /* likewise */
};

typedef struct jinja_value jinja_builtin_fn(struct jinja_run *run, const struct jinja_call *call);

struct jinja_builtin {
    const char *name;
    const char *params; /* names, separated by blanks; "*": any number, and any names */
    uint32_t required;
    jinja_builtin_fn *fn;
};

const struct jinja_builtin *jinja_filter(struct jinja_text name);
const struct jinja_builtin *jinja_test(struct jinja_text name);
const struct jinja_builtin *jinja_function(struct jinja_text name);
/* Any type has a method of this name. */
bool jinja_is_method(struct jinja_text name);
/* The method of this value's type; found is false when the type has none. A method that exists in Python and may not be
 * called is found, and NULL. */
const struct jinja_builtin *jinja_method_of(struct jinja_value value, struct jinja_text name, bool *found);

/* Why these arguments do not fit, or NULL. */
const char *jinja_misfit(const struct jinja_builtin *builtin, uint32_t count, const struct jinja_named *named,
                         uint32_t named_count);

/* ---- evaluation (jinja_eval.c) ---- */

struct jinja_value jinja_call_builtin(struct jinja_run *run, const struct jinja_builtin *builtin,
                                      struct jinja_value self, struct jinja_list *args, struct jinja_dict *named);
struct jinja_value jinja_arithmetic(struct jinja_run *run, enum jinja_sign sign, struct jinja_value a,
                                    struct jinja_value b);

#endif
