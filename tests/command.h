/* command.h - the user's command in a process of its own, as a script runs it. */
#ifndef EVENFLOW_TESTS_COMMAND_H
#define EVENFLOW_TESTS_COMMAND_H

struct outcome {
    int status;
    char out[262144], err[65536];
};

/* Runs evenflow with the arguments, as a shell has them, and input (NULL: none) on its standard input. Returns the status. */
int command_run(struct outcome *outcome, const char *arguments, const char *input);

#endif
