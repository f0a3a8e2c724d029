/* commands.h - the user's command: one table of subcommands, each with its table of options.
 *
 * Used by: main_evenflow.c, the man page.   A command returns its exit status: 0, 1 for a failure, 2 for wrong usage.
 */
#ifndef EVENFLOW_COMMANDS_H
#define EVENFLOW_COMMANDS_H

#include <jansson.h>

#include "engine/options.h"
#include "tools/client.h"

struct subcommand {
    const char *name;
    const char *usage; /* what follows the name */
    const char *help;  /* one sentence */
    const struct option_table *options;
    size_t values_bytes; /* of the struct that the options fill */
    int positional_min, positional_max;
    int (*run)(const void *values, char **positional, int positional_count);
};

extern const struct subcommand *const commands[]; /* NULL-terminated */

/* "evenflow complete: text", on standard error. Returns status. */
int command_fail(int status, const char *command, const char *text);
/* The same after a function that gave -errno: -EINVAL is what the user asked for, everything else what the world answered. */
int command_fail_for(int ret, const char *command, const struct err *err);
/* "prompt is missing (status 400)": why a call has not been answered with 200. */
void command_describe_failure(const struct client_call *call, struct err *err);

/* What a running engine answers to GET: a new value, or NULL with err. */
json_t *command_get(const char *socket_path, const char *path, struct err *err);

extern const struct subcommand command_serve, command_run_model, command_chat, command_complete, command_tokenize,
    command_detokenize, command_render, command_perplexity, command_inspect, command_status, command_top,
    command_completion, command_bench, command_sim, command_stress, command_bench_policies, command_man,
    command_upgrade;

#endif
