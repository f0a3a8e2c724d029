/* chat_client.h - a conversation with a running engine, streamed to standard output.
 *
 * Used by: evenflow chat, evenflow run.   Owns: the conversation so far.   Blocks: for the engine and for the terminal.
 */
#ifndef EVENFLOW_CHAT_CLIENT_H
#define EVENFLOW_CHAT_CLIENT_H

#include <stdint.h>

struct chat_options {
    const char *socket;
    const char *system;  /* NULL or "": the model's own */
    uint64_t max_tokens; /* 0: up to the limit */
    double temperature;
    uint64_t seed; /* with temperature > 0 */
};

/* Asks `prompt` first when it is not NULL; then, when is_interactive, one question per line until the end of input.
 * 0, or 1 when an answer failed (its error is on standard error). */
int chat_client_run(const struct chat_options *options, const char *prompt, int is_interactive);

#endif
