/* test_stress.c - evenflow stress for a while, on both back ends: somebody dies at every named point (EVENFLOW_KILLS,
 * EVENFLOW_SEED). */
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine.h"

static const char *setting(const char *name, const char *otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? text : otherwise;
}

static json_t *run_stress(const char *io, const char *folder)
{
    char command[1024], text[32768];
    snprintf(
        command, sizeof(command),
        "%s/points/evenflow stress --json --every-point --kills %s --seconds 120 --seed %s --artefacts %s --io %s -p 3 "
        "--backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 %s",
        setting("EVENFLOW_BUILD", "build"), setting("EVENFLOW_KILLS", "100"), setting("EVENFLOW_SEED", "1"), folder, io,
        engine_model_path());
    FILE *pipe = popen(command, "re");
    cr_assert_not_null(pipe);
    size_t size = fread(text, 1, sizeof(text) - 1, pipe);
    text[size] = '\0';
    int status = pclose(pipe);
    fprintf(stderr, "stress, %s: %s", io, text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d; see %s", command, status, folder);
    return json_loads(text, 0, NULL);
}

static json_int_t figure(json_t *verdict, const char *name)
{
    return json_integer_value(json_object_get(verdict, name));
}

static void check_stress(const char *io)
{
    char folder[] = "/tmp/evenflow-stress-XXXXXX", command[128];
    cr_assert_not_null(mkdtemp(folder));
    json_t *verdict = run_stress(io, folder);
    cr_assert_not_null(verdict);
    cr_assert_str_eq(json_string_value(json_object_get(verdict, "verdict")), "clean", "see %s", folder);
    cr_expect_gt(figure(verdict, "kills_at_points"), figure(verdict, "points_within_reach") - 1);
    cr_expect_eq(figure(verdict, "points_died_at"), figure(verdict, "points_within_reach"));
    cr_expect_geq(figure(verdict, "rounds"), 1);
    cr_expect_gt(figure(verdict, "answers"), 200);
    json_decref(verdict);
    snprintf(command, sizeof(command), "rm -r %s", folder); /* what is left of a failure stays */
    cr_expect_eq(system(command), 0);
}

Test(stress, no_answer_is_lost_repeated_or_changed_on_io_uring, .timeout = 200)
{
    check_stress("uring");
}

Test(stress, no_answer_is_lost_repeated_or_changed_on_epoll, .timeout = 200)
{
    check_stress("epoll");
}
