/* cmd_run.c - evenflow run: an engine, an answer (a chat on a terminal), and nothing left behind. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/chat_client.h"
#include "tools/commands.h"
#include "tools/own_engine.h"

static const struct option_table table = {.also = &config_table};
static struct own_engine engine;

/* Two signals make the engine stop at once; see supervisor.h. Only async-signal-safe calls. */
static void on_signal(int signal_number)
{
    kill(engine.pid, SIGTERM);
    own_engine_stop(&engine);
    _exit(128 + signal_number);
}

static int run(const void *values, char **positional, int positional_count)
{
    struct err err;
    int ret = own_engine_start(&engine, values, positional[0], &err);
    if (ret != 0)
        return command_fail_for(ret, "run", &err);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    const struct chat_options options = {.command = "run", .socket = engine.socket};
    const char *prompt = positional_count > 1 ? positional[1] : NULL;
    bool is_terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    int answer = chat_client_run(&options, prompt, prompt == NULL || is_terminal);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    int status = own_engine_stop(&engine);
    if (status != 0)
        fprintf(stderr, "evenflow run: the engine ended with status %d\n", status);
    return answer != 0 ? answer : status != 0;
}

const struct subcommand command_run_model = {.name = "run",
                                             .usage = "[OPTIONS] MODEL.gguf [PROMPT]",
                                             .help =
                                                 "Starts an engine, answers (or chats, on a terminal), and stops it",
                                             .options = &table,
                                             .values_bytes = sizeof(struct config),
                                             .positional_min = 1,
                                             .positional_max = 2,
                                             .run = run};
