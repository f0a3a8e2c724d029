/* launch.h - from options and a model file to a running engine: decides every number, then hands over.
 *
 * Used by: evenflow serve, inspect, own_engine.c; tests.   Owns: nothing after launch_exec().
 * Blocks: launch_prepare() reads the model's header, builds the vocabulary tables, measures the split (~0.3 s), and reads the
 * file of packed weights or makes it (packed.h).
 */
#ifndef EVENFLOW_LAUNCH_H
#define EVENFLOW_LAUNCH_H

#include "engine/config.h"
#include "ipc/plan.h"

struct launch {
    struct plan plan;
    int plan_fd;  /* sealed */
    int vocab_fd; /* sealed */
    int model_fd;
    int record_fd;  /* -1: nothing is recorded */
    int listen_fd;  /* -1: no TCP */
    int keys_fd;    /* sealed; -1: no API keys */
    int ledger_fd;  /* locked; -1: no list of requests is kept */
    int devices_fd; /* of devices_take(); -1: every stage runs on the processor */
};

/* "17,13": layers per stage. 0, or -EINVAL with err. */
int launch_parse_split(const char *text, uint32_t layers, uint32_t stages, uint32_t *counts, struct err *err);

/* Everything but the start. 0, or -errno with err; 'budget' goes to standard error at log level info and above. */
int launch_prepare(struct launch *launch, const struct config *config, const char *model_path, struct err *err);

/* Becomes the supervisor. Returns only on failure: -errno with err. */
int launch_exec(const struct launch *launch, int ready_fd, struct err *err);

/* Becomes a standby of the engine on that socket, for --adopt. Returns only on failure: -errno with err. */
int launch_adopt(const struct config *config, struct err *err);

#endif
