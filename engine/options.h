/* options.h - one table per command drives the parser, --help, the configuration file, the environment and man pages.
 *
 * Used by: the launcher and tools.   Owns: nothing; values land in the caller's struct.   Never blocks.
 *
 * A value comes from, later ones win: the table's default, the configuration file (--config), the environment
 * (EVENFLOW_NAME, upper case, dashes as underscores), the command line. File and environment are read where the table has an
 * option "config"; they know the same names as the command line, aliases and no-NAME too.
 */
#ifndef EVENFLOW_OPTIONS_H
#define EVENFLOW_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "ipc/base.h"

#define OPTION_TEXT_MAX 1024u

enum option_kind {
    OPTION_TEXT,    /* char[OPTION_TEXT_MAX] */
    OPTION_NUMBER,  /* uint64_t within min..max; K, M, G (1024) where the value is bytes */
    OPTION_DECIMAL, /* double within min..max */
    OPTION_FLAG,    /* bool: --name sets it, --no-name clears it */
};

struct option_spec {
    const char *name;  /* without the dashes */
    const char *alias; /* another full name, or NULL */
    char letter;       /* -p, or 0 */
    enum option_kind kind;
    size_t offset;        /* of the value in the caller's struct */
    const char *standard; /* the default, as text; NULL: zero, empty, false */
    double min, max;
    const char *value_name; /* "N", "PATH"; for help */
    const char *help;       /* one sentence, without the default; of a flag that is on: what --no-NAME does */
};

struct option_table {
    const struct option_spec *specs;
    size_t count;
    const char *const *refused; /* names users may know from elsewhere that this build cannot honour; NULL-terminated */
    const char *title; /* "The options of evenflow serve": what they are where they are also another command's */
    const struct option_table
        *also; /* taken too, behind these; their values lie at the beginning of the struct. Or NULL */
};

/* The table's option of that index, those of 'also' behind its own. NULL: there is none. */
const struct option_spec *options_at(const struct option_table *table, size_t index);

/* Fills *values. Positional arguments are moved to positional[0..*positional_count-1] (room for argc entries).
 * 0; 1 when --help was asked for; with err: -EINVAL naming the option and what is allowed, -errno when the configuration file
 * cannot be read. */
int options_parse(const struct option_table *table, void *values, int argc, char **argv, char **positional,
                  int *positional_count, struct err *err);

/* The options as --help prints them, its own first, or as a manual page has them. */
void options_print_help(const struct option_table *table, FILE *out);
void options_print_man(const struct option_table *table, FILE *out);

#endif
