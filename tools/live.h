/* live.h - one answer of a running engine, written to standard output as it comes.
 *
 * Used by: evenflow chat, complete and run.   Owns: the text, until live_free().
 * Blocks: until the answer is complete; SIGINT (Ctrl-C) ends the answer and not the program.
 */
#ifndef EVENFLOW_LIVE_H
#define EVENFLOW_LIVE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

enum live_result {
    LIVE_ANSWERED,
    LIVE_CANCELLED, /* by SIGINT; what came until then is in the text */
    LIVE_REFUSED,   /* err says why; the engine is there */
    LIVE_BROKEN,    /* err says why; no engine, or it went away */
};

struct live_answer {
    char *text; /* terminated; NULL: none came */
    size_t size, room;
    uint64_t tokens, first_ns, last_ns;
    bool is_cut; /* by max_tokens or the model's limit */
    bool is_on_terminal;
    struct err err;
};

/* Sends body (a completion or a chat; made a stream here) to path. */
enum live_result live_ask(struct live_answer *answer, const char *socket_path, const char *path, json_t *body);

/* On a terminal, one line on standard error: how many tokens, how fast. */
void live_print_rate(const struct live_answer *answer, enum live_result result);

/* 0, 130 (ended by Ctrl-C) or 1. */
int live_exit_status(enum live_result result);

void live_free(struct live_answer *answer);

#endif
