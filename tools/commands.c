#include "tools/commands.h"

const struct subcommand *const commands[] = {
    &command_serve,    &command_run_model,
    &command_chat,     &command_complete,
    &command_status,   &command_bench,
    &command_tokenize, &command_detokenize,
    &command_render,   &command_perplexity,
    &command_inspect,  &command_sim,
    &command_man,      NULL,
};

int command_fail(int status, const char *command, const char *text)
{
    fprintf(stderr, "evenflow %s: %s\n", command, text);
    return status;
}
