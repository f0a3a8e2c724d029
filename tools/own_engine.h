/* own_engine.h - an engine of one's own: a child on a private socket, for commands and tests that need it for themselves.
 *
 * Used by: evenflow run, perplexity, stress; tests.   Owns: the child, and the folder in $TMPDIR or /tmp of its socket.
 * Blocks: until the engine is ready, or has ended.
 */
#ifndef EVENFLOW_OWN_ENGINE_H
#define EVENFLOW_OWN_ENGINE_H

#include <sys/types.h>

#include "engine/config.h"

struct own_engine {
    pid_t pid;
    char directory[64];
    char socket[96];
};

/* Returns when it is ready. config's socket is not looked at. 0, or -errno with err (nothing is left then). */
int own_engine_start(struct own_engine *engine, const struct config *config, const char *model_path, struct err *err);

/* For one that has ended by itself: removes what stood in its folder. */
void own_engine_forget(const struct own_engine *engine);

/* Drains and ends it. Its exit status, or 128 + signal. */
int own_engine_stop(struct own_engine *engine);

#endif
