/* main_evenflow.c - evenflow: the user's command. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/version.h"
#include "tools/commands.h"

static void print_usage(FILE *out)
{
    fprintf(out, "usage: evenflow COMMAND [OPTIONS] ...\n\n"
                 "evenflow serves a language model over a pipeline of processes.\n\n");
    for (size_t i = 0; commands[i] != NULL; i++)
        fprintf(out, "  %-15s %s\n", commands[i]->name, commands[i]->help);
    fprintf(out, "\nevenflow COMMAND --help tells more; evenflow --version which build this is.\n");
}

static int run_command(const struct subcommand *command, int argc, char **argv)
{
    void *values = base_alloc(command->values_bytes);
    char **positional = base_alloc((size_t)(argc + 1) * sizeof(*positional));
    int positional_count;
    struct err err;
    int ret = options_parse(command->options, values, argc, argv, positional, &positional_count, &err);
    if (ret == 1) {
        printf("usage: evenflow %s%s%s\n\n%s.\n\n", command->name, command->usage[0] != '\0' ? " " : "", command->usage,
               command->help);
        options_print_help(command->options, stdout);
        return 0;
    }
    if (ret < 0)
        return command_fail_for(ret, command->name, &err);
    if (positional_count < command->positional_min || positional_count > command->positional_max) {
        fprintf(stderr, "usage: evenflow %s %s; --help tells more\n", command->name, command->usage);
        return 2;
    }
    return command->run(values, positional, positional_count);
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    bool is_help = strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0;
    if (is_help && argc == 2) {
        print_usage(stdout);
        return 0;
    }
    char help[] = "--help", *help_argv[] = {argv[0], argv[argc > 2 ? 2 : 1], help, NULL};
    if (is_help) { /* evenflow help serve */
        argv = help_argv;
        argc = 3;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("evenflow " EVENFLOW_VERSION " (numerics %s)\n", version_numerics);
        return 0;
    }
    for (size_t i = 0; commands[i] != NULL; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return run_command(commands[i], argc - 2, argv + 2);
    fprintf(stderr, "evenflow: no command '%s'; evenflow --help lists them\n", argv[1]);
    return 2;
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a limit on files (ulimit -f) is then an error with a text, here and in all processes */
    int status = run(argc, argv);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    fprintf(stderr, "evenflow: cannot write to standard output\n"); /* a full disk, or nobody who reads */
    return 1;
}
