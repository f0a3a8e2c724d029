/* jinja.h - an interpreter of Jinja as published chat templates use it, bounded in time, depth and memory.
 *
 * Used by: chat.c.   Owns: the compiled template; memory for a rendering is the caller's.   Never blocks.
 *
 * The template is the model's own and is compiled once, at start, with the settings that transformers has (trim_blocks,
 * lstrip_blocks, loop controls, `generation` blocks, its tojson). What it uses and this build does not know (a tag, filter,
 * test, function, method, keyword) is refused there, with the line. jinja2 3.1 is the reference: same bytes, or an error.
 *
 * Every byte of every string carries a mark: whether it is the template's own. Marks go wherever bytes go, through slices,
 * joins, filters and methods, and nothing ever sets one; so the marks of the result say which of its words may be control
 * tokens, whatever the template did with what clients wrote. Numbers and what tojson adds are unmarked.
 */
#ifndef EVENFLOW_JINJA_H
#define EVENFLOW_JINJA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

#define JINJA_SOURCE_MAX ((size_t)1 << 20) /* bytes of a template */
#define JINJA_STEPS_MAX  4000000u          /* of one rendering: nodes visited, and every 64 bytes copied or compared */
#define JINJA_DEPTH_MAX  400u              /* of nested expressions, blocks and calls */

enum jinja_type {
    JINJA_ABSENT, /* an argument that was not given; never inside a list */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOLEAN,
    JINJA_INTEGER,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST, /* and tuples */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global function */
    JINJA_METHOD,   /* of the value it was taken from */
    JINJA_LOOP,
};

/* trust[i] is 1 when byte i is the template's own. NULL: none is. */
struct jinja_text {
    const char *data;
    const uint8_t *trust;
    size_t size;
};

struct jinja_value {
    enum jinja_type type;
    bool is_tuple; /* of a list */
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct jinja_text text; /* STRING; UNDEFINED: the name that was looked for */
        struct jinja_list *list;
        struct jinja_dict *dict; /* DICT, NAMESPACE */
        struct jinja_macro *macro;
        struct jinja_method *method; /* METHOD; FUNCTION: without a value */
        struct jinja_loop *loop;
    };
};

struct jinja_list {
    struct jinja_value *items;
    uint32_t count, room;
};

struct jinja_pair {
    struct jinja_value key, value;
};

/* In the order of insertion. */
struct jinja_dict {
    struct jinja_pair *pairs;
    uint32_t count, room;
};

/* Memory of one rendering. Whatever is taken stays until the arena is begun anew. */
struct jinja_arena {
    uint8_t *memory;
    size_t bytes, used;
};

void *jinja_take(struct jinja_arena *arena, size_t bytes); /* NULL: there is no more */

/* Values for a template; false, or a value of type ABSENT: the arena is full. Strings are not copied. */
struct jinja_value jinja_string(const char *data, size_t size); /* a client's: no byte is trusted */
struct jinja_value jinja_trusted(struct jinja_arena *arena, const char *data, size_t size);
struct jinja_value jinja_bool(bool value);
struct jinja_value jinja_integer(int64_t value);
struct jinja_value jinja_float(double value);
struct jinja_value jinja_none(void);
struct jinja_value jinja_new_list(struct jinja_arena *arena, uint32_t room);
struct jinja_value jinja_new_dict(struct jinja_arena *arena, uint32_t room);
bool jinja_append(struct jinja_arena *arena, struct jinja_list *list, struct jinja_value value);
bool jinja_set(struct jinja_arena *arena, struct jinja_dict *dict, struct jinja_value key, struct jinja_value value);
/* NULL: no such key. */
const struct jinja_value *jinja_find(const struct jinja_dict *dict, const char *key, size_t size);

struct jinja_program;

/* Takes memory from malloc(). 0; -ENOTSUP or -EINVAL with err, which names the line. */
int jinja_parse(struct jinja_program **program, const char *source, size_t size, struct err *err);
void jinja_free(struct jinja_program *program);

/* The template mentions a variable of this name. */
bool jinja_mentions(const struct jinja_program *program, const char *name);

enum jinja_result {
    JINJA_OK,
    JINJA_RAISED, /* the template called raise_exception(): err holds its words */
    JINJA_FAILED, /* an error of the template, or it ran into a limit: err says which and where */
};

/* Renders with these variables; now_s is what strftime_now() shows (UTC). The text lies in the arena. */
enum jinja_result jinja_render(const struct jinja_program *program, struct jinja_arena *arena,
                               const struct jinja_dict *variables, uint64_t now_s, struct jinja_text *text,
                               struct err *err);

#endif
