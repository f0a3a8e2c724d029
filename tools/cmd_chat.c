/* cmd_chat.c - evenflow chat: talk to a running engine. */
#include <unistd.h>

#include "engine/config.h"
#include "tools/chat_client.h"
#include "tools/commands.h"

struct values {
    char socket[OPTION_TEXT_MAX];
    char system[OPTION_TEXT_MAX];
    uint64_t max_tokens;
    double temperature;
    uint64_t seed;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"system", NULL, 0, OPTION_TEXT, AT(system), NULL, 0, 0, "TEXT", "System message (default: the model's own)"},
    {"max-tokens", NULL, 0, OPTION_NUMBER, AT(max_tokens), "0", 0, 1 << 22, "N",
     "Tokens of one answer at most; 0: up to the limit"},
    {"temperature", NULL, 0, OPTION_DECIMAL, AT(temperature), "0", 0, 100, "X", "0 is greedy"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "0", 0, 9e18, "N", "Of the random numbers, with --temperature"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

static int run(const void *pointer, char **positional, int positional_count)
{
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    config_socket_path(socket, sizeof(socket), values->socket);
    const struct chat_options options = {.command = "chat",
                                         .socket = socket,
                                         .system = values->system,
                                         .max_tokens = values->max_tokens,
                                         .temperature = values->temperature,
                                         .seed = values->seed};
    const char *prompt = positional_count > 0 ? positional[0] : NULL;
    bool is_terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    return chat_client_run(&options, prompt, prompt == NULL || is_terminal);
}

const struct subcommand command_chat = {
    .name = "chat",
    .usage = "[OPTIONS] [PROMPT]",
    .help = "Talks to a running engine: one question a line, Ctrl-C ends an answer, Ctrl-D the chat",
    .options = &table,
    .values_bytes = sizeof(struct values),
    .positional_max = 1,
    .run = run};
