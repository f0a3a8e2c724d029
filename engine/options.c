#include "engine/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG "config" /* where a table has this option, it names a file of options */

const struct option_spec *options_at(const struct option_table *table, size_t index)
{
    if (index < table->count)
        return &table->specs[index];
    return table->also != NULL ? options_at(table->also, index - table->count) : NULL;
}

/* By a name as a user writes it: an option's, its alias, or a flag's after "no-". NULL: there is none. */
static const struct option_spec *find(const struct option_table *table, const char *name, size_t length,
                                      bool *is_negated)
{
    const struct option_spec *spec;
    *is_negated = false;
    for (size_t i = 0; (spec = options_at(table, i)) != NULL; i++) {
        if (strlen(spec->name) == length && strncmp(spec->name, name, length) == 0)
            return spec;
        if (spec->alias != NULL && strlen(spec->alias) == length && strncmp(spec->alias, name, length) == 0)
            return spec;
    }
    spec = length > 3 && strncmp(name, "no-", 3) == 0 ? find(table, name + 3, length - 3, is_negated) : NULL;
    if (spec == NULL || spec->kind != OPTION_FLAG)
        return NULL;
    *is_negated = !*is_negated;
    return spec;
}

static bool is_refused(const struct option_table *table, const char *name, size_t length)
{
    for (const char *const *refused = table->refused; refused != NULL && *refused != NULL; refused++)
        if (strlen(*refused) == length && strncmp(*refused, name, length) == 0)
            return true;
    return table->also != NULL && is_refused(table->also, name, length);
}

static int parse_number(const struct option_spec *spec, const char *text, uint64_t *value, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (end != text && *end != '\0' && end[1] == '\0') {
        const char *suffixes = "KMG";
        const char *suffix = strchr(suffixes, toupper((unsigned char)*end));
        if (suffix != NULL) {
            shift = 10 * (unsigned)(suffix - suffixes + 1);
            end++;
        }
    }
    bool is_number = end != text && *end == '\0' && errno == 0 && text[0] != '-' && number <= (UINT64_MAX >> shift);
    if (is_number)
        *value = (uint64_t)number << shift;
    if (!is_number || (double)*value < spec->min || (double)*value > spec->max)
        return err_set(err, -EINVAL, "--%s %s: must be a number from %.0f to %.0f", spec->name, text, spec->min,
                       spec->max);
    return 0;
}

static int parse_decimal(const struct option_spec *spec, const char *text, double *value, struct err *err)
{
    char *end;
    *value = strtod(text, &end);
    if (end == text || *end != '\0' || !(*value >= spec->min && *value <= spec->max))
        return err_set(err, -EINVAL, "--%s %s: must be a number from %g to %g", spec->name, text, spec->min, spec->max);
    return 0;
}

/* NULL: a flag by its name alone. */
static int store(const struct option_spec *spec, bool is_negated, void *values, const char *text, struct err *err)
{
    void *at = (char *)values + spec->offset;
    switch (spec->kind) {
    case OPTION_TEXT:
        if (strlen(text) >= OPTION_TEXT_MAX)
            return err_set(err, -EINVAL, "--%s: longer than %u bytes", spec->name, OPTION_TEXT_MAX - 1);
        strcpy(at, text);
        return 0;
    case OPTION_NUMBER:
        return parse_number(spec, text, at, err);
    case OPTION_DECIMAL:
        return parse_decimal(spec, text, at, err);
    case OPTION_FLAG:
        if (text == NULL || strcmp(text, "true") == 0 || strcmp(text, "1") == 0)
            *(bool *)at = !is_negated;
        else if (strcmp(text, "false") == 0 || strcmp(text, "0") == 0)
            *(bool *)at = is_negated;
        else
            return err_set(err, -EINVAL, "--%s%s %s: must be true or false", is_negated ? "no-" : "", spec->name, text);
        return 0;
    }
    return 0;
}

static int unknown(const struct option_table *table, const char *name, size_t length, const char *where,
                   struct err *err)
{
    if (is_refused(table, name, length))
        return err_set(err, -EINVAL, "%s--%.*s: this build cannot honour that option; leave it out", where, (int)length,
                       name);
    return err_set(err, -EINVAL, "%s--%.*s: no such option; --help lists them", where, (int)length, name);
}

/* "name = value" or "name" (a flag) per line; # begins a comment. */
static int read_file(const struct option_table *table, void *values, const char *path, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return err_set(err, -errno, "--config %s: cannot open it: %s", path, strerror(errno));
    char line[OPTION_TEXT_MAX + 128];
    int ret = 0;
    for (int number = 1; ret == 0 && fgets(line, sizeof(line), file) != NULL; number++) {
        char *comment = strchr(line, '#');
        if (comment != NULL)
            *comment = '\0';
        char *name = line + strspn(line, " \t\r\n");
        size_t length = strcspn(name, " \t\r\n=");
        if (length == 0)
            continue;
        if (comment == NULL && strchr(line, '\n') == NULL && !feof(file)) {
            ret = err_set(err, -EINVAL, "%.200s:%d: longer than %zu bytes", path, number, sizeof(line) - 1);
            break;
        }
        char *value = name + length;
        value += strspn(value, " \t=");
        for (size_t end = strlen(value); end > 0 && isspace((unsigned char)value[end - 1]); end--)
            value[end - 1] = '\0';
        char where[OPTION_TEXT_MAX / 4];
        snprintf(where, sizeof(where), "%.200s:%d: ", path, number);
        bool is_negated;
        const struct option_spec *spec = find(table, name, length, &is_negated);
        const char *text = spec != NULL && spec->kind == OPTION_FLAG && *value == '\0' ? NULL : value;
        if (spec == NULL)
            ret = unknown(table, name, length, where, err);
        else if (strcmp(spec->name, CONFIG) == 0)
            ret = err_set(err, -EINVAL, "%s--config: a file names no other file", where);
        else if ((ret = store(spec, is_negated, values, text, err)) != 0)
            err_prefix(err, ret, "%.200s:%d", path, number);
    }
    fclose(file);
    return ret;
}

/* EVENFLOW_NAME, upper case, dashes as underscores. */
static int read_variable(const struct option_spec *spec, bool is_negated, const char *option, void *values,
                         struct err *err)
{
    char name[128];
    snprintf(name, sizeof(name), "EVENFLOW_%s%s", is_negated ? "NO_" : "", option);
    for (char *c = name; *c != '\0'; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    const char *text = getenv(name);
    if (text == NULL || *text == '\0')
        return 0;
    int ret = store(spec, is_negated, values, text, err);
    return ret != 0 ? err_prefix(err, ret, "environment %s", name) : 0;
}

static int read_environment(const struct option_table *table, void *values, struct err *err)
{
    const struct option_spec *spec;
    int ret = 0;
    for (size_t i = 0; ret == 0 && (spec = options_at(table, i)) != NULL; i++) {
        ret = spec->alias != NULL ? read_variable(spec, false, spec->alias, values, err) : 0;
        ret = ret ? ret : read_variable(spec, false, spec->name, values, err);
        if (ret == 0 && spec->kind == OPTION_FLAG)
            ret = read_variable(spec, true, spec->name, values, err);
    }
    return ret;
}

/* One argument that begins with a dash. Sets *used_next when it took the following one as its value. */
static int parse_argument(const struct option_table *table, void *values, const char *argument, const char *next,
                          bool *used_next, struct err *err)
{
    const struct option_spec *spec = NULL;
    const char *value = NULL;
    bool is_negated = false;
    if (argument[1] == '-') {
        const char *name = argument + 2;
        size_t length = strcspn(name, "=");
        spec = find(table, name, length, &is_negated);
        if (spec == NULL)
            return unknown(table, name, length, "", err);
        value = name[length] == '=' ? name + length + 1 : NULL;
    } else {
        for (size_t i = 0; (spec = options_at(table, i)) != NULL; i++)
            if (spec->letter != 0 && spec->letter == argument[1])
                break;
        if (spec == NULL)
            return err_set(err, -EINVAL, "%s: no such option; --help lists them", argument);
        value = argument[2] != '\0' ? argument + 2 : NULL;
    }
    if (spec->kind != OPTION_FLAG && value == NULL) {
        if (next == NULL)
            return err_set(err, -EINVAL, "--%s: needs a value (%s)", spec->name, spec->value_name);
        value = next;
        *used_next = true;
    }
    return store(spec, is_negated, values, value, err);
}

static void take_defaults(const struct option_table *table, void *values)
{
    const struct option_spec *spec;
    for (size_t i = 0; (spec = options_at(table, i)) != NULL; i++) {
        static const char *const empty[] = {[OPTION_TEXT] = "", [OPTION_FLAG] = "false"};
        const char *standard = spec->standard != NULL ? spec->standard : empty[spec->kind];
        check(standard != NULL); /* a number's default is written in its table */
        check(store(spec, false, values, standard, NULL) == 0);
    }
}

static int parse_arguments(const struct option_table *table, void *values, int argc, char **argv, char **positional,
                           int *positional_count, struct err *err)
{
    bool only_positional = false;
    int ret = 0;
    *positional_count = 0;
    for (int i = 0; i < argc && ret == 0; i++) {
        if (only_positional || argv[i][0] != '-' || argv[i][1] == '\0') {
            positional[(*positional_count)++] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            only_positional = true;
        } else {
            bool used_next = false;
            ret = parse_argument(table, values, argv[i], i + 1 < argc ? argv[i + 1] : NULL, &used_next, err);
            i += used_next;
        }
    }
    return ret;
}

int options_parse(const struct option_table *table, void *values, int argc, char **argv, char **positional,
                  int *positional_count, struct err *err)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return 1;
    take_defaults(table, values);
    bool is_negated;
    const struct option_spec *config = find(table, CONFIG, strlen(CONFIG), &is_negated);
    int ret = config != NULL ? read_environment(table, values, err) : 0;
    ret = ret ? ret : parse_arguments(table, values, argc, argv, positional, positional_count, err);
    const char *file = config != NULL ? (const char *)values + config->offset : "";
    if (ret != 0 || *file == '\0')
        return ret;
    /* the file's name is known now; what was said beside it counts more, and is taken again */
    ret = read_file(table, values, file, err);
    ret = ret ? ret : read_environment(table, values, err);
    return ret ? ret : parse_arguments(table, values, argc, argv, positional, positional_count, err);
}

/* "-p, --pipeline-parallel-size N": how a user writes it. A flag that is on by default is written as its negation. */
static int format_names(const struct option_spec *spec, char *text, size_t size)
{
    bool is_flag = spec->kind == OPTION_FLAG;
    bool is_on = is_flag && spec->standard != NULL && strcmp(spec->standard, "true") == 0;
    char letter[8] = "";
    if (spec->letter != 0)
        snprintf(letter, sizeof(letter), "-%c, ", spec->letter);
    return snprintf(text, size, "%s--%s%s%s%s", letter, is_on ? "no-" : "", spec->name, is_flag ? "" : " ",
                    is_flag ? "" : spec->value_name);
}

/* What it does, its other name, its default (a flag's is that it is not given). */
static void print_meaning(const struct option_spec *spec, FILE *out)
{
    fputs(spec->help, out);
    if (spec->alias != NULL)
        fprintf(out, " (also --%s)", spec->alias);
    if (spec->standard != NULL && spec->kind != OPTION_FLAG && spec->standard[0] != '\0')
        fprintf(out, " [%s]", spec->standard);
    fputc('\n', out);
}

static void print_own_help(const struct option_table *table, FILE *out)
{
    for (size_t i = 0; i < table->count; i++) {
        char names[192];
        int used = format_names(&table->specs[i], names, sizeof(names));
        fprintf(out, "  %-34s%s", names, used >= 34 ? "\n                                    " : "");
        print_meaning(&table->specs[i], out);
    }
}

void options_print_help(const struct option_table *table, FILE *out)
{
    print_own_help(table, out);
    fprintf(out, "  %-34s%s\n", "-h, --help", "Prints this and exits");
    if (table->also != NULL) {
        fprintf(out, "\n%s:\n\n", table->also->title);
        print_own_help(table->also, out);
    }
}

void options_print_man(const struct option_table *table, FILE *out)
{
    for (size_t i = 0; i < table->count; i++) {
        char names[192];
        format_names(&table->specs[i], names, sizeof(names));
        fprintf(out, ".TP\n.B %s\n", names);
        print_meaning(&table->specs[i], out);
    }
    if (table->also != NULL)
        fprintf(out, ".PP\n%s, as above.\n", table->also->title);
}
