/* cmd_serve.c - evenflow serve: the engine in the foreground. */
#include "tools/commands.h"
#include "tools/launch.h"

static int run(const void *values, char **positional, int positional_count)
{
    const struct config *config = values;
    struct launch launch;
    struct err err;
    if ((positional_count == 0) != config->adopt)
        return command_fail(2, "serve",
                            config->adopt ? "--adopt: the model is the running engine's; leave it out"
                                          : "needs MODEL.gguf; evenflow serve --help");
    if (config->adopt) {
        launch_adopt(config, &err);
        return command_fail(1, "serve", err.text);
    }
    int ret = launch_prepare(&launch, config, positional[0], &err);
    if (ret == 0)
        ret = launch_exec(&launch, (int)config->ready_fd, &err);
    return command_fail_for(ret, "serve", &err);
}

const struct subcommand command_serve = {.name = "serve",
                                         .usage = "[OPTIONS] MODEL.gguf | --adopt",
                                         .help = "Runs the engine in the foreground, until SIGTERM drains it",
                                         .options = &config_table,
                                         .values_bytes = sizeof(struct config),
                                         .positional_max = 1,
                                         .run = run};
