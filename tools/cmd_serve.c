/* cmd_serve.c - evenflow serve: the engine in the foreground. */
#include <errno.h>

#include "tools/commands.h"
#include "tools/launch.h"

static int run(const void *values, char **positional, int positional_count)
{
    (void)positional_count;
    const struct config *config = values;
    struct launch launch;
    struct err err;
    int ret = launch_prepare(&launch, config, positional[0], &err);
    if (ret == 0)
        ret = launch_exec(&launch, (int)config->ready_fd, &err);
    /* -EINVAL is what the user asked for, everything else what the world answered */
    return command_fail(ret == -EINVAL ? 2 : 1, "serve", err.text);
}

const struct subcommand command_serve = {.name = "serve",
                                         .usage = "[OPTIONS] MODEL.gguf",
                                         .help = "Runs the engine in the foreground, until SIGTERM drains it",
                                         .options = &config_table,
                                         .values_bytes = sizeof(struct config),
                                         .positional_min = 1,
                                         .positional_max = 1,
                                         .run = run};
