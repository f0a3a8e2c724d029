/* cmd_man.c - evenflow man: the manual page, from the tables that drive the parser. */
#include <stdio.h>

#include "ipc/version.h"
#include "tools/commands.h"

static const struct option_table no_options = {.specs = NULL, .count = 0};

static int run(const void *values, char **positional, int positional_count)
{
    (void)values;
    (void)positional;
    (void)positional_count;
    printf(".TH EVENFLOW 1 \"\" \"evenflow " EVENFLOW_VERSION "\" \"User Commands\"\n"
           ".SH NAME\nevenflow \\- serve a language model over a pipeline of processes\n"
           ".SH SYNOPSIS\n.B evenflow\n.I COMMAND\n[OPTIONS] ...\n"
           ".SH DESCRIPTION\n"
           "evenflow cuts a model into stages, each a process of its own, and answers OpenAI's HTTP API on a Unix\n"
           "socket. A value of an option of\n.B evenflow serve\ncomes from, later ones win: the default (in brackets), "
           "the\n"
           "file that \\-\\-config names, EVENFLOW_NAME in the environment, the command line. Every command has\n"
           "\\-\\-help too.\n"
           ".SH COMMANDS\n");
    for (size_t i = 0; commands[i] != NULL; i++) {
        printf(".SS evenflow %s %s\n%s.\n", commands[i]->name, commands[i]->usage, commands[i]->help);
        options_print_man(commands[i]->options, stdout);
    }
    printf(".SH EXIT STATUS\n0 on success, 1 on a failure, 2 on wrong usage, 130 where Ctrl\\-C ended an answer.\n"
           ".SH ENVIRONMENT\n.TP\nEVENFLOW_SOCKET\nThe socket of the engine, where \\-\\-socket is not given.\n"
           ".TP\nEVENFLOW_...\nOptions of\n.BR \"evenflow serve\" ,\nupper case, dashes as underscores.\n");
    return 0;
}

const struct subcommand command_man = {.name = "man",
                                       .usage = "",
                                       .help = "Prints this manual page (troff)",
                                       .options = &no_options,
                                       .values_bytes = 1,
                                       .run = run};
