#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/jinja_internal.h"

/* ---- a rendering's limits ---- */

struct jinja_value jinja_fail(struct jinja_run *run, const char *format, ...)
{
    if (jinja_is_on(run)) {
        char text[ERR_TEXT_MAX / 2];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof(text), format, args);
        va_end(args);
        err_set(run->err, -EINVAL, "line %u: %s", run->line, text);
        run->result = JINJA_FAILED;
    }
    return value_undefined((struct jinja_text){.data = ""});
}

bool jinja_step(struct jinja_run *run, uint64_t steps)
{
    if (steps > run->steps_left)
        jinja_fail(run, "it takes more than %u steps", JINJA_STEPS_MAX);
    else
        run->steps_left -= (uint32_t)steps;
    return jinja_is_on(run);
}

void *jinja_run_take(struct jinja_run *run, size_t bytes)
{
    void *memory = jinja_is_on(run) ? jinja_take(run->arena, bytes) : NULL;
    if (memory == NULL)
        jinja_fail(run, "it needs more memory than there is");
    return memory;
}

static bool builder_grow(struct jinja_run *run, struct jinja_builder *builder, size_t size)
{
    if (size <= builder->room - builder->size)
        return true;
    size_t room = max_u64(builder->size + size, 2 * builder->room);
    room = max_u64(room, 64);
    char *data = jinja_run_take(run, room);
    uint8_t *trust = data != NULL ? jinja_run_take(run, room) : NULL;
    if (trust == NULL)
        return false;
    if (builder->size > 0) {
        memcpy(data, builder->data, builder->size);
        memcpy(trust, builder->trust, builder->size);
    }
    builder->data = data;
    builder->trust = trust;
    builder->room = room;
    return true;
}

void builder_put(struct jinja_run *run, struct jinja_builder *builder, struct jinja_text text)
{
    if (text.size == 0 || !jinja_step(run, text.size / 64) || !builder_grow(run, builder, text.size))
        return;
    memcpy(builder->data + builder->size, text.data, text.size);
    if (text.trust != NULL)
        memcpy(builder->trust + builder->size, text.trust, text.size);
    else
        memset(builder->trust + builder->size, 0, text.size);
    builder->size += text.size;
}

void builder_put_plain(struct jinja_run *run, struct jinja_builder *builder, const char *text, size_t size)
{
    builder_put(run, builder, (struct jinja_text){.data = text, .size = size});
}

struct jinja_value builder_value(const struct jinja_builder *builder)
{
    struct jinja_text text = {builder->data != NULL ? builder->data : "", builder->trust, builder->size};
    return value_text(text);
}

/* ---- names ---- */

static bool push_scope(struct jinja_run *run, struct jinja_scope *parent)
{
    struct jinja_scope *scope = jinja_run_take(run, sizeof(*scope));
    if (scope == NULL)
        return false;
    *scope = (struct jinja_scope){.parent = parent};
    run->scope = scope;
    return true;
}

/* Sets a name in the innermost scope: what a loop or a macro sets is gone when it is over. */
static void bind(struct jinja_run *run, struct jinja_text name, struct jinja_value value)
{
    for (struct jinja_binding *b = run->scope->bindings; b != NULL; b = b->next)
        if (text_equal(b->name, name)) {
            b->value = value;
            return;
        }
    struct jinja_binding *binding = jinja_run_take(run, sizeof(*binding));
    if (binding == NULL)
        return;
    *binding = (struct jinja_binding){name, value, run->scope->bindings};
    run->scope->bindings = binding;
}

static struct jinja_value look_up(struct jinja_run *run, struct jinja_text name)
{
    for (const struct jinja_scope *scope = run->scope; scope != NULL; scope = scope->parent)
        for (const struct jinja_binding *b = scope->bindings; b != NULL; b = b->next)
            if (text_equal(b->name, name))
                return b->value;
    const struct jinja_value *variable = jinja_find(run->variables, name.data, name.size);
    if (variable != NULL)
        return *variable;
    const struct jinja_builtin *function = jinja_function(name);
    if (function == NULL)
        return value_undefined(name);
    struct jinja_method *method = jinja_run_take(run, sizeof(*method));
    if (method == NULL)
        return jinja_none();
    *method = (struct jinja_method){.self = jinja_none(), .builtin = function};
    return (struct jinja_value){.type = JINJA_FUNCTION, .method = method};
}

/* ---- expressions ---- */

static struct jinja_value evaluate(struct jinja_run *run, const struct jinja_node *node);
static void execute(struct jinja_run *run, const struct jinja_node *node);

static struct jinja_value whole_arithmetic(struct jinja_run *run, enum jinja_sign sign, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool is_too_large = false;
    switch (sign) {
    case SIGN_ADD:
        is_too_large = __builtin_add_overflow(a, b, &result);
        break;
    case SIGN_SUBTRACT:
        is_too_large = __builtin_sub_overflow(a, b, &result);
        break;
    case SIGN_MULTIPLY:
        is_too_large = __builtin_mul_overflow(a, b, &result);
        break;
    case SIGN_FLOOR:
    case SIGN_MODULO:
        if (b == 0)
            return jinja_fail(run, "division by zero");
        if (b == -1) { /* INT64_MIN / -1 does not exist */
            is_too_large = sign == SIGN_FLOOR && __builtin_sub_overflow((int64_t)0, a, &result);
            break;
        }
        result = a % b;
        if (result != 0 && (result < 0) != (b < 0))
            result += b;
        if (sign == SIGN_FLOOR)
            result = (a - result) / b;
        break;
    default:
        check(sign == SIGN_POWER && b >= 0);
        result = 1;
        for (int64_t i = 0; i < b && !is_too_large && jinja_step(run, 1); i++)
            is_too_large = __builtin_mul_overflow(result, a, &result);
    }
    return is_too_large ? jinja_fail(run, "a number is too large") : jinja_integer(result);
}

static struct jinja_value float_arithmetic(struct jinja_run *run, enum jinja_sign sign, double a, double b)
{
    if (b == 0 && (sign == SIGN_DIVIDE || sign == SIGN_FLOOR || sign == SIGN_MODULO))
        return jinja_fail(run, "division by zero");
    switch (sign) {
    case SIGN_ADD:
        return jinja_float(a + b);
    case SIGN_SUBTRACT:
        return jinja_float(a - b);
    case SIGN_MULTIPLY:
        return jinja_float(a * b);
    case SIGN_DIVIDE:
        return jinja_float(a / b);
    case SIGN_POWER:
        return jinja_float(pow(a, b));
    default: {
        double rest = fmod(a, b);
        if (rest != 0 && (rest < 0) != (b < 0))
            rest += b;
        return jinja_float(sign == SIGN_MODULO ? rest : round((a - rest) / b));
    }
    }
}

static struct jinja_value repeat(struct jinja_run *run, struct jinja_value value, int64_t times)
{
    if (value.type == JINJA_STRING) {
        struct jinja_builder out = {0};
        for (int64_t i = 0; i < times && value.text.size > 0 && jinja_step(run, 1); i++)
            builder_put(run, &out, value.text);
        return builder_value(&out);
    }
    struct jinja_value list = value_list(run, 0);
    list.is_tuple = value.is_tuple;
    for (int64_t i = 0; i < times && value.list->count > 0 && jinja_is_on(run); i++)
        for (uint32_t j = 0; j < value.list->count && jinja_is_on(run); j++)
            value_append(run, list, value.list->items[j]);
    return list;
}

static struct jinja_value joined(struct jinja_run *run, struct jinja_value a, struct jinja_value b)
{
    if (a.type == JINJA_STRING) {
        struct jinja_builder out = {0};
        builder_put(run, &out, a.text);
        builder_put(run, &out, b.text);
        return builder_value(&out);
    }
    struct jinja_value list = value_list(run, a.list->count + b.list->count);
    list.is_tuple = a.is_tuple;
    for (uint32_t i = 0; i < a.list->count && jinja_is_on(run); i++)
        value_append(run, list, a.list->items[i]);
    for (uint32_t i = 0; i < b.list->count && jinja_is_on(run); i++)
        value_append(run, list, b.list->items[i]);
    return list;
}

static bool is_whole(struct jinja_value value)
{
    return value.type == JINJA_INTEGER || value.type == JINJA_BOOLEAN;
}

static int64_t whole(struct jinja_value value)
{
    return value.type == JINJA_BOOLEAN ? value.boolean : value.integer;
}

struct jinja_value jinja_arithmetic(struct jinja_run *run, enum jinja_sign sign, struct jinja_value a,
                                    struct jinja_value b)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (!jinja_is_on(run))
        return jinja_none();
    if (is_whole(a) && is_whole(b) && sign != SIGN_DIVIDE && (sign != SIGN_POWER || whole(b) >= 0))
        return whole_arithmetic(run, sign, whole(a), whole(b));
    if (value_is_number(a) && value_is_number(b))
        return float_arithmetic(run, sign, value_number(a), value_number(b));
    bool is_sequence = a.type == JINJA_STRING || a.type == JINJA_LIST;
    if (sign == SIGN_ADD && is_sequence && a.type == b.type && a.is_tuple == b.is_tuple)
        return joined(run, a, b);
    if (sign == SIGN_MULTIPLY && is_sequence && is_whole(b))
        return repeat(run, a, whole(b));
    if (sign == SIGN_MULTIPLY && is_whole(a) && (b.type == JINJA_STRING || b.type == JINJA_LIST))
        return repeat(run, b, whole(a));
    if (sign == SIGN_MODULO && a.type == JINJA_STRING) {
        struct jinja_value arguments = b;
        if (b.type != JINJA_LIST || !b.is_tuple) {
            arguments = value_list(run, 1);
            value_append(run, arguments, b);
        }
        return jinja_is_on(run) ? jinja_call_builtin(run, jinja_filter(text_of("format")), a, arguments.list, NULL) : a;
    }
    return jinja_fail(run, "%s %s %s: these do not fit", value_type_name(a), signs[sign], value_type_name(b));
}

static bool compare(struct jinja_run *run, enum jinja_sign sign, struct jinja_value a, struct jinja_value b)
{
    switch (sign) {
    case SIGN_EQUAL:
        return value_equal(run, a, b);
    case SIGN_NOT_EQUAL:
        return !value_equal(run, a, b);
    case SIGN_IN:
        return value_contains(run, b, a);
    case SIGN_NOT_IN:
        return !value_contains(run, b, a);
    case SIGN_LESS:
        return value_order(run, a, b) < 0;
    case SIGN_LESS_EQUAL:
        return value_order(run, a, b) <= 0;
    case SIGN_GREATER:
        return value_order(run, a, b) > 0;
    default:
        return value_order(run, a, b) >= 0;
    }
}

static struct jinja_value evaluate_comparison(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value left = evaluate(run, node->a);
    for (uint32_t i = 0; i < node->item_count; i++) {
        struct jinja_value right = evaluate(run, node->items[i]);
        if (!jinja_is_on(run) || !compare(run, node->signs[i], left, right))
            return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

static struct jinja_value evaluate_list(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value list = value_list(run, node->item_count);
    list.is_tuple = node->kind == NODE_TUPLE;
    for (uint32_t i = 0; i < node->item_count && jinja_is_on(run); i++)
        value_append(run, list, evaluate(run, node->items[i]));
    return list;
}

static void set_pair(struct jinja_run *run, struct jinja_dict *dict, struct jinja_value key, struct jinja_value value)
{
    if (!jinja_step(run, 1 + dict->count / 16))
        return;
    if (key.type != JINJA_STRING && key.type != JINJA_NONE && !value_is_number(key))
        jinja_fail(run, "%s cannot be a key", value_type_name(key));
    else if (!jinja_set(run->arena, dict, key, value))
        jinja_fail(run, "it needs more memory than there is");
}

static struct jinja_value new_dict(struct jinja_run *run, uint32_t room)
{
    struct jinja_value dict = jinja_new_dict(run->arena, room);
    return dict.type == JINJA_ABSENT ? jinja_fail(run, "it needs more memory than there is") : dict;
}

static struct jinja_value evaluate_dict(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value dict = new_dict(run, node->item_count / 2);
    for (uint32_t i = 0; i + 1 < node->item_count && jinja_is_on(run); i += 2) {
        struct jinja_value key = evaluate(run, node->items[i]), value = evaluate(run, node->items[i + 1]);
        if (jinja_is_on(run))
            set_pair(run, dict.dict, key, value);
    }
    return dict;
}

static struct jinja_value evaluate_concat(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_builder out = {0};
    for (uint32_t i = 0; i < node->item_count && jinja_is_on(run); i++) {
        struct jinja_value value = evaluate(run, node->items[i]);
        if (jinja_is_on(run))
            builder_put(run, &out, value_str(run, value));
    }
    return builder_value(&out);
}

static struct jinja_value evaluate_slice(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value value = evaluate(run, node->a), bounds[3];
    for (uint32_t i = 0; i < 3; i++)
        bounds[i] = node->items[i] != NULL ? evaluate(run, node->items[i]) : (struct jinja_value){.type = JINJA_ABSENT};
    return jinja_is_on(run) ? value_slice(run, value, bounds) : value;
}

/* ---- calls ---- */

/* The index of a parameter in "one two three". */
static uint32_t parameter_index(const char *params, struct jinja_text name)
{
    uint32_t index = 0;
    for (const char *at = params; *at != '\0'; index++) {
        size_t size = strcspn(at, " ");
        if (size == name.size && memcmp(at, name.data, size) == 0)
            return index;
        at += size + (at[size] == ' ');
    }
    return UINT32_MAX;
}

static uint32_t parameter_count(const char *params)
{
    uint32_t count = 0;
    for (const char *at = params; *at != '\0'; count++) {
        at += strcspn(at, " ");
        at += *at == ' ';
    }
    return count;
}

const char *jinja_misfit(const struct jinja_builtin *builtin, uint32_t count, const struct jinja_named *named,
                         uint32_t named_count)
{
    if (strcmp(builtin->params, "*") == 0)
        return count + named_count < builtin->required ? "an argument is missing" : NULL;
    if (count > parameter_count(builtin->params))
        return "too many arguments";
    for (uint32_t i = 0; i < named_count; i++)
        if (parameter_index(builtin->params, named[i].name) == UINT32_MAX)
            return "an argument of a name that is not supported";
    return count + named_count < builtin->required ? "an argument is missing" : NULL;
}

struct jinja_value jinja_call_builtin(struct jinja_run *run, const struct jinja_builtin *builtin,
                                      struct jinja_value self, struct jinja_list *args, struct jinja_dict *named)
{
    struct jinja_call call = {.builtin = builtin, .self = self, .all = args, .named = named};
    bool takes_any = strcmp(builtin->params, "*") == 0;
    uint32_t room = takes_any ? CALL_ARGS_MAX : parameter_count(builtin->params);
    check(room <= CALL_ARGS_MAX);
    if (!jinja_step(run, 1))
        return jinja_none();
    if (args->count > room && !takes_any)
        return jinja_fail(run, "%s: too many arguments", builtin->name);
    for (uint32_t i = 0; i < args->count && i < room; i++)
        call.args[i] = args->items[i];
    for (uint32_t i = 0; named != NULL && i < named->count && !takes_any; i++) {
        uint32_t index = parameter_index(builtin->params, named->pairs[i].key.text);
        if (index == UINT32_MAX || call.args[index].type != JINJA_ABSENT)
            return jinja_fail(run, "%s: an argument that is not supported, or given twice", builtin->name);
        call.args[index] = named->pairs[i].value;
    }
    for (uint32_t i = 0; i < builtin->required && i < CALL_ARGS_MAX && !takes_any; i++)
        if (call.args[i].type == JINJA_ABSENT)
            return jinja_fail(run, "%s: an argument is missing", builtin->name);
    /* cppcheck-suppress returnDanglingLifetime; no builtin keeps its call */
    return builtin->fn(run, &call);
}

/* The evaluated arguments of a node. */
static bool evaluate_arguments(struct jinja_run *run, const struct jinja_node *node, struct jinja_list **args,
                               struct jinja_dict **named)
{
    struct jinja_value list = value_list(run, node->item_count), dict = new_dict(run, node->named_count);
    for (uint32_t i = 0; i < node->item_count && jinja_is_on(run); i++)
        value_append(run, list, evaluate(run, node->items[i]));
    for (uint32_t i = 0; i < node->named_count && jinja_is_on(run); i++) {
        struct jinja_value value = evaluate(run, node->named[i].value);
        if (jinja_is_on(run))
            set_pair(run, dict.dict, value_text(node->named[i].name), value);
    }
    if (!jinja_is_on(run))
        return false;
    *args = list.list;
    *named = dict.dict;
    return true;
}

/* Runs a body into a string of its own, in a scope of its own. */
static struct jinja_value capture(struct jinja_run *run, const struct jinja_node *body)
{
    struct jinja_builder out = {0}, *outer = run->out;
    run->out = &out;
    execute(run, body);
    run->out = outer;
    return builder_value(&out);
}

static struct jinja_value call_macro(struct jinja_run *run, const struct jinja_macro *macro, struct jinja_list *args,
                                     struct jinja_dict *named)
{
    const struct jinja_node *node = macro->node;
    struct jinja_scope *caller = run->scope;
    if (args->count > node->named_count)
        return jinja_fail(run, "the macro takes %u arguments, not %u", node->named_count, args->count);
    if (!push_scope(run, macro->scope))
        return jinja_none();
    uint32_t used = 0;
    for (uint32_t i = 0; i < node->named_count && jinja_is_on(run); i++) {
        const struct jinja_named *param = &node->named[i];
        const struct jinja_value *given = jinja_find(named, param->name.data, param->name.size);
        used += given != NULL;
        if (i < args->count && given != NULL)
            jinja_fail(run, "the macro's argument '%.*s' is given twice", (int)param->name.size, param->name.data);
        bind(run, param->name,
             i < args->count        ? args->items[i]
             : given != NULL        ? *given
             : param->value != NULL ? evaluate(run, param->value)
                                    : value_undefined(param->name));
    }
    const struct jinja_value *block = jinja_find(named, "caller", 6);
    if (block != NULL && jinja_is_on(run))
        bind(run, text_of("caller"), *block);
    if (used + (block != NULL) != named->count)
        jinja_fail(run, "the macro has no argument of such a name");
    struct jinja_value text = jinja_is_on(run) ? capture(run, node->c) : jinja_none();
    run->scope = caller;
    return text;
}

static struct jinja_value call(struct jinja_run *run, const struct jinja_node *node, const struct jinja_value *caller)
{
    struct jinja_value target = evaluate(run, node->a);
    struct jinja_list *args;
    struct jinja_dict *named;
    if (!jinja_is_on(run) || !evaluate_arguments(run, node, &args, &named))
        return jinja_none();
    if (caller != NULL)
        set_pair(run, named, value_text(text_of("caller")), *caller);
    run->line = node->line;
    if (!jinja_is_on(run))
        return jinja_none();
    if (target.type == JINJA_MACRO)
        return call_macro(run, target.macro, args, named);
    if (target.type != JINJA_METHOD && target.type != JINJA_FUNCTION)
        return target.type == JINJA_UNDEFINED
                   ? jinja_fail(run, "'%.*s' is undefined", (int)min_u64(target.text.size, 64), target.text.data)
                   : jinja_fail(run, "%s cannot be called", value_type_name(target));
    if (target.method->builtin == NULL)
        return jinja_fail(run, "this method is not supported: it changes its value");
    return jinja_call_builtin(run, target.method->builtin, target.method->self, args, named);
}

static struct jinja_value apply(struct jinja_run *run, const struct jinja_node *node, struct jinja_value self)
{
    struct jinja_list *args;
    struct jinja_dict *named;
    if (!jinja_is_on(run) || !evaluate_arguments(run, node, &args, &named))
        return jinja_none();
    run->line = node->line;
    return jinja_call_builtin(run, node->builtin, self, args, named);
}

/* A chain of filters over a block's text. */
static struct jinja_value apply_chain(struct jinja_run *run, const struct jinja_node *chain, struct jinja_value text)
{
    return apply(run, chain, chain->a != NULL ? apply_chain(run, chain->a, text) : text);
}

static struct jinja_value negative(struct jinja_run *run, struct jinja_value value)
{
    if (is_whole(value))
        return whole_arithmetic(run, SIGN_SUBTRACT, 0, whole(value));
    if (value.type == JINJA_FLOAT)
        return jinja_float(-value.number);
    return jinja_is_on(run) ? jinja_fail(run, "- %s: this does not fit", value_type_name(value)) : value;
}

static struct jinja_value positive(struct jinja_run *run, struct jinja_value value)
{
    if (!value_is_number(value) && jinja_is_on(run))
        return jinja_fail(run, "+ %s: this does not fit", value_type_name(value));
    return is_whole(value) ? jinja_integer(whole(value)) : value;
}

static struct jinja_value evaluate_node(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value value;
    switch (node->kind) {
    case NODE_CONSTANT:
        return node->value;
    case NODE_NAME:
        return look_up(run, node->text);
    case NODE_LIST:
    case NODE_TUPLE:
        return evaluate_list(run, node);
    case NODE_DICT:
        return evaluate_dict(run, node);
    case NODE_ATTRIBUTE:
        value = evaluate(run, node->a);
        return jinja_is_on(run) ? value_attribute(run, value, node->text) : value;
    case NODE_ITEM: {
        value = evaluate(run, node->a);
        struct jinja_value key = evaluate(run, node->b);
        return jinja_is_on(run) ? value_item(run, value, key) : value;
    }
    case NODE_SLICE:
        return evaluate_slice(run, node);
    case NODE_CALL:
        return call(run, node, NULL);
    case NODE_FILTER:
        return apply(run, node, evaluate(run, node->a));
    case NODE_TEST:
        value = apply(run, node, evaluate(run, node->a));
        return jinja_bool(value_is_true(value) != node->is_negated);
    case NODE_NOT:
        return jinja_bool(!value_is_true(evaluate(run, node->a)));
    case NODE_NEGATIVE:
        return negative(run, evaluate(run, node->a));
    case NODE_POSITIVE:
        return positive(run, evaluate(run, node->a));
    case NODE_AND:
        value = evaluate(run, node->a);
        return value_is_true(value) ? evaluate(run, node->b) : value;
    case NODE_OR:
        value = evaluate(run, node->a);
        return value_is_true(value) ? value : evaluate(run, node->b);
    case NODE_CONDITIONAL:
        if (value_is_true(evaluate(run, node->b)))
            return evaluate(run, node->a);
        return node->c != NULL ? evaluate(run, node->c) : value_undefined(text_of("a condition without else"));
    case NODE_COMPARE:
        return evaluate_comparison(run, node);
    case NODE_ARITHMETIC: {
        value = evaluate(run, node->a);
        struct jinja_value other = evaluate(run, node->b);
        run->line = node->line;
        return jinja_arithmetic(run, node->sign, value, other);
    }
    case NODE_CONCAT:
        return evaluate_concat(run, node);
    default:
        check(!"a statement is no expression");
        return jinja_none();
    }
}

static struct jinja_value evaluate(struct jinja_run *run, const struct jinja_node *node)
{
    if (!jinja_step(run, 1))
        return jinja_none();
    run->line = node->line;
    if (run->depth >= JINJA_DEPTH_MAX)
        return jinja_fail(run, "values or calls are nested deeper than %u", JINJA_DEPTH_MAX);
    run->depth++;
    struct jinja_value value = evaluate_node(run, node);
    run->depth--;
    return value;
}

/* ---- statements ---- */

static void assign(struct jinja_run *run, const struct jinja_node *target, struct jinja_value value)
{
    if (!jinja_is_on(run))
        return;
    if (target->kind == NODE_NAME) {
        bind(run, target->text, value);
        return;
    }
    if (target->kind == NODE_ATTRIBUTE) {
        struct jinja_value space = evaluate(run, target->a);
        if (space.type == JINJA_NAMESPACE)
            set_pair(run, space.dict, value_text(target->text), value);
        else
            jinja_fail(run, "only a namespace's attributes can be set, not those of %s", value_type_name(space));
        return;
    }
    struct jinja_list *items = value_items(run, value);
    if (items != NULL && items->count != target->item_count)
        jinja_fail(run, "%u names for %u values", target->item_count, items->count);
    for (uint32_t i = 0; i < target->item_count && jinja_is_on(run); i++)
        assign(run, target->items[i], items->items[i]);
}

/* The items that a loop's filter lets through. */
static struct jinja_list *filtered_items(struct jinja_run *run, const struct jinja_node *node, struct jinja_list *items)
{
    struct jinja_scope *outer = run->scope;
    struct jinja_value kept = value_list(run, 0);
    for (uint32_t i = 0; i < items->count && jinja_is_on(run) && push_scope(run, outer); i++) {
        assign(run, node->a, items->items[i]);
        if (jinja_is_on(run) && value_is_true(evaluate(run, node->filter)) && jinja_is_on(run))
            value_append(run, kept, items->items[i]);
    }
    run->scope = outer;
    return jinja_is_on(run) ? kept.list : NULL;
}

static void execute_for(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_scope *outer = run->scope;
    struct jinja_value over = evaluate(run, node->b);
    struct jinja_list *items = jinja_is_on(run) ? value_items(run, over) : NULL;
    if (items != NULL && node->filter != NULL)
        items = filtered_items(run, node, items);
    struct jinja_loop *loop = jinja_run_take(run, sizeof(*loop));
    if (items == NULL || loop == NULL)
        return;
    *loop = (struct jinja_loop){.items = items};
    for (; loop->index < items->count && jinja_is_on(run) && push_scope(run, outer); loop->index++) {
        bind(run, text_of("loop"), (struct jinja_value){.type = JINJA_LOOP, .loop = loop});
        assign(run, node->a, items->items[loop->index]);
        execute(run, node->c);
        enum jinja_jump jump = run->jump;
        run->jump = JUMP_NONE;
        if (jump == JUMP_BREAK)
            break;
    }
    run->scope = outer;
    if (items->count == 0 && node->d != NULL)
        execute(run, node->d);
}

static struct jinja_value new_macro(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_macro *macro = jinja_run_take(run, sizeof(*macro));
    if (macro == NULL)
        return jinja_none();
    *macro = (struct jinja_macro){node, run->scope};
    return (struct jinja_value){.type = JINJA_MACRO, .macro = macro};
}

static void put_value(struct jinja_run *run, struct jinja_value value)
{
    if (jinja_is_on(run))
        builder_put(run, run->out, value_str(run, value));
}

/* A block in a scope of its own whose text somebody takes. */
static struct jinja_value capture_block(struct jinja_run *run, const struct jinja_node *body)
{
    struct jinja_scope *outer = run->scope;
    struct jinja_value text = push_scope(run, outer) ? capture(run, body) : jinja_none();
    run->scope = outer;
    return text;
}

static void execute_with(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_scope *outer = run->scope;
    struct jinja_value values = value_list(run, 0);
    for (uint32_t i = 0; i + 1 < node->item_count && jinja_is_on(run); i += 2)
        value_append(run, values, evaluate(run, node->items[i + 1]));
    if (jinja_is_on(run) && push_scope(run, outer)) {
        for (uint32_t i = 0; i + 1 < node->item_count; i += 2)
            assign(run, node->items[i], values.list->items[i / 2]);
        execute(run, node->c);
    }
    run->scope = outer;
}

static void execute_node(struct jinja_run *run, const struct jinja_node *node)
{
    struct jinja_value value;
    switch (node->kind) {
    case NODE_DATA:
        builder_put(run, run->out, node->value.text);
        break;
    case NODE_OUTPUT:
        value = evaluate(run, node->a);
        run->line = node->line;
        put_value(run, value);
        break;
    case NODE_BODY:
        for (uint32_t i = 0; i < node->item_count && jinja_is_on(run) && run->jump == JUMP_NONE; i++)
            execute(run, node->items[i]);
        break;
    case NODE_IF:
        if (value_is_true(evaluate(run, node->a)))
            execute(run, node->b);
        else if (node->c != NULL)
            execute(run, node->c);
        break;
    case NODE_FOR:
        execute_for(run, node);
        break;
    case NODE_SET:
        value = evaluate(run, node->b);
        assign(run, node->a, value);
        break;
    case NODE_SET_TEXT:
        value = capture_block(run, node->c);
        assign(run, node->a, node->b != NULL ? apply_chain(run, node->b, value) : value);
        break;
    case NODE_MACRO:
        bind(run, node->text, new_macro(run, node));
        break;
    case NODE_CALLING:
        value = new_macro(run, node);
        put_value(run, call(run, node->a, &value));
        break;
    case NODE_FILTERED:
        put_value(run, apply_chain(run, node->b, capture_block(run, node->c)));
        break;
    case NODE_WITH:
        execute_with(run, node);
        break;
    case NODE_BREAK:
    case NODE_CONTINUE:
        run->jump = node->kind == NODE_BREAK ? JUMP_BREAK : JUMP_CONTINUE;
        break;
    default:
        check(!"an expression is no statement");
    }
}

static void execute(struct jinja_run *run, const struct jinja_node *node)
{
    if (!jinja_step(run, 1))
        return;
    run->line = node->line;
    if (run->depth >= JINJA_DEPTH_MAX) {
        jinja_fail(run, "values or calls are nested deeper than %u", JINJA_DEPTH_MAX);
        return;
    }
    run->depth++;
    execute_node(run, node);
    run->depth--;
}

enum jinja_result jinja_render(const struct jinja_program *program, struct jinja_arena *arena,
                               const struct jinja_dict *variables, uint64_t now_s, struct jinja_text *text,
                               struct err *err)
{
    struct jinja_builder out = {0};
    struct jinja_run run = {.arena = arena,
                            .variables = variables,
                            .now_s = now_s,
                            .err = err,
                            .result = JINJA_OK,
                            .steps_left = JINJA_STEPS_MAX,
                            .out = &out};
    if (push_scope(&run, NULL))
        execute(&run, program->body);
    *text = builder_value(&out).text;
    return run.result;
}
