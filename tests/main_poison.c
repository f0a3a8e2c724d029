/* main_poison.c - linked into a stage in place of what computes a step: a token of the test's choice makes it fail.
 *
 * EVENFLOW_POISON names the stage, the way and the token: "1:segv:77". Ways: segv, check, spin, sleep. Everything else of the
 * program is as it is installed; see the Makefile.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stages/stage.h"

struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);
struct timed_span __real_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);

static void fail(const char *way)
{
    volatile int *nowhere = NULL;
    volatile bool for_ever = true;
    if (strcmp(way, "segv") == 0)
        *nowhere = 1;
    check(strcmp(way, "check") != 0);
    while (for_ever)
        if (strcmp(way, "sleep") == 0)
            usleep(100000000);
}

struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns)
{
    const char *poison = getenv("EVENFLOW_POISON");
    char way[16];
    unsigned stage, token;
    bool is_poisoned = poison != NULL && sscanf(poison, "%u:%15[a-z]:%u", &stage, way, &token) == 3;
    for (uint32_t i = 0; is_poisoned && i < step->token_count; i++)
        if (step->tokens[i] == token && timed->index == stage)
            fail(way);
    return __real_timed_step(timed, step, input_ns);
}
