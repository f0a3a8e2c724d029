/* cmd_completion.c - evenflow completion: what a shell needs to complete commands and options, from the parser's tables. */
#include <stdio.h>
#include <string.h>

#include "tools/commands.h"

static const struct option_table no_options = {.specs = NULL, .count = 0};

/* As it is typed: a flag that is on by default is given to turn it off. */
static void print_option(const struct option_spec *spec, const char *before)
{
    bool is_on = spec->kind == OPTION_FLAG && spec->standard != NULL && strcmp(spec->standard, "true") == 0;
    printf("%s%s%s", before, is_on ? "no-" : "", spec->name);
}

static void print_bash(void)
{
    printf("_evenflow()\n{\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} options=\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W '--help --version");
    for (size_t i = 0; commands[i] != NULL; i++)
        printf(" %s", commands[i]->name);
    printf("' -- \"$word\"))\n        return\n    fi\n    case ${COMP_WORDS[1]} in\n");
    for (size_t i = 0; commands[i] != NULL; i++) {
        printf("    %s) options='--help", commands[i]->name);
        const struct option_spec *spec;
        for (size_t k = 0; (spec = options_at(commands[i]->options, k)) != NULL; k++)
            print_option(spec, " --");
        printf("' ;;\n");
    }
    printf("    esac\n"
           "    case $word in\n"
           "    -*) COMPREPLY=($(compgen -W \"$options\" -- \"$word\")) ;;\n"
           "    esac\n"
           "}\n"
           "complete -o bashdefault -o default -F _evenflow evenflow\n");
}

static void print_zsh(void)
{
    printf("#compdef evenflow\nautoload -U +X bashcompinit && bashcompinit\n");
    print_bash();
}

/* In single quotes of fish. */
static void print_quoted(const char *text)
{
    putchar('\'');
    for (; *text != '\0'; text++)
        printf(*text == '\'' || *text == '\\' ? "\\%c" : "%c", *text);
    putchar('\'');
}

static void print_fish(void)
{
    for (size_t i = 0; commands[i] != NULL; i++) {
        printf("complete -c evenflow -n __fish_use_subcommand -f -a %s -d ", commands[i]->name);
        print_quoted(commands[i]->help);
        putchar('\n');
        const struct option_spec *spec;
        for (size_t k = 0; (spec = options_at(commands[i]->options, k)) != NULL; k++) {
            printf("complete -c evenflow -n '__fish_seen_subcommand_from %s'", commands[i]->name);
            print_option(spec, " -l ");
            printf("%s -d ", spec->kind == OPTION_FLAG ? "" : " -r");
            print_quoted(spec->help);
            putchar('\n');
        }
    }
}

static int run(const void *values, char **positional, int positional_count)
{
    (void)values;
    (void)positional_count;
    static const struct {
        const char *shell;
        void (*print)(void);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    for (size_t i = 0; i < ARRAY_COUNT(shells); i++)
        if (strcmp(positional[0], shells[i].shell) == 0) {
            shells[i].print();
            return 0;
        }
    return command_fail(2, "completion", "the shells it knows are bash, zsh and fish");
}

const struct subcommand command_completion = {.name = "completion",
                                              .usage = "bash|zsh|fish",
                                              .help = "Prints what the shell needs to complete commands and options",
                                              .options = &no_options,
                                              .values_bytes = 1,
                                              .positional_min = 1,
                                              .positional_max = 1,
                                              .run = run};
