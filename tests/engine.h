/* engine.h - a real engine for end-to-end tests: real processes, the real small model, a private socket. */
#ifndef EVENFLOW_TESTS_ENGINE_H
#define EVENFLOW_TESTS_ENGINE_H

#include <jansson.h>
#include <stdint.h>

#include "tools/client.h"
#include "tools/own_engine.h"

/* models/SmolLM2-135M-Instruct.Q4_1.gguf, or what EVENFLOW_TEST_MODEL names; a test fails when there is none. */
const char *engine_model_path(void);

/* Starts an engine with the options of `evenflow serve`, as one string separated by blanks. Fails the test if it cannot. */
void engine_start(struct own_engine *engine, const char *options);
/* Likewise; 0, or what own_engine_start() says. */
int engine_try(struct own_engine *engine, const char *options, const char *model_path, struct err *err);
void engine_start_model(struct own_engine *engine, const char *options, const char *model_path);

/* GET or POST; the parsed answer (NULL when it is no JSON) and the status. */
json_t *engine_get(const struct own_engine *engine, const char *path, int *status);
json_t *engine_post(const struct own_engine *engine, const char *path, const char *body, int *status);

/* A value of /metrics, summed over labels; fails the test when there is none. */
uint64_t engine_metric(const struct own_engine *engine, const char *name);

/* Members of a body, each behind a comma, that change what is drawn, how many choices there are or what is shown of them:
 * another mixture for every index, none for some. */
const char *engine_parameters(uint32_t index);

/* One completion: what exactness is about. Tokens, hashes and text are those of the first choice. */
struct completion {
    uint64_t choices; /* a hash of all choices as the API gave them: texts, tokens, log-probabilities */
    uint32_t count;
    uint32_t tokens[512];
    uint64_t hashes[512];
    char text[8192];
    char finish_reason[32];
};

/* Runs completions of the bodies, at most `concurrency` at once; every one must be answered with 200. */
void engine_complete(const struct own_engine *engine, char **bodies, size_t count, size_t concurrency,
                     struct completion *completions);

/* The same with a client of the caller's, whose connections may have been open for long. */
void engine_complete_with(struct client *client, char **bodies, size_t count, size_t concurrency,
                          struct completion *completions);

/* As /status says it; false too when nobody answers. */
bool engine_is_ready(const struct own_engine *engine, const char *role, int index);

/* What /status says. Asked again until it is answered: a new call is sometimes the one whose first byte was not read when a
 * front died. */
json_t *engine_status(const struct own_engine *engine);

/* It has ended, even if nobody has waited for it. */
bool engine_process_is_gone(pid_t pid);

void wait_ms(long ms);

/* Process id of a role from /status. */
pid_t engine_pid(const struct own_engine *engine, const char *role, int index);

#endif
