/* chat_client.h - a conversation with a running engine, streamed to standard output.
 *
 * Used by: evenflow chat, evenflow run.   Owns: the conversation so far.   Blocks: for the engine and for the person.
 *
 * On a terminal each line is a question (one that ends in a backslash goes on in the next), /new forgets what was said,
 * Ctrl-C ends the answer, Ctrl-D the conversation, and each answer is followed by its speed, on standard error. From a file
 * or a pipe the lines come the same way and only the answers are written.
 */
#ifndef EVENFLOW_CHAT_CLIENT_H
#define EVENFLOW_CHAT_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

struct chat_options {
    const char *command; /* "chat", for errors */
    const char *socket;
    const char *system;  /* NULL or "": the model's own */
    uint64_t max_tokens; /* 0: up to the limit */
    double temperature;
    uint64_t seed; /* with temperature > 0 */
};

/* Asks `prompt` first when it is not NULL; then, when reads_more, what standard input says until it ends. 0; 1 when an answer
 * failed and nobody sits at the terminal to ask again (its error is on standard error); 130 when Ctrl-C ended one. */
int chat_client_run(const struct chat_options *options, const char *prompt, bool reads_more);

#endif
