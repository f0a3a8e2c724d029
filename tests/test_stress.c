/* test_stress.c - evenflow stress for a while, on both back ends: somebody dies at every named point (EVENFLOW_KILLS,
 * EVENFLOW_SEED); then with spares, and with upgrades in the middle. */
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

static json_t *run_stress(const char *folder, const char *options)
{
    char command[1024], text[32768];
    snprintf(command, sizeof(command),
             "%s/points/evenflow stress --json --seconds 120 --seed %s --artefacts %s -p 3 --backend timed --cost "
             "tests/data/timed_fast.pipeline.json --num-blocks 400 %s %s",
             setting("EVENFLOW_BUILD", "build"), setting("EVENFLOW_SEED", "1"), folder, options, engine_model_path());
    FILE *pipe = popen(command, "re");
    cr_assert_not_null(pipe);
    size_t size = fread(text, 1, sizeof(text) - 1, pipe);
    text[size] = '\0';
    int status = pclose(pipe);
    fprintf(stderr, "%s: %s", options, text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d; see %s", command, status, folder);
    return json_loads(text, 0, NULL);
}

static json_int_t figure(json_t *verdict, const char *name)
{
    return json_integer_value(json_object_get(verdict, name));
}

static char folder[] = "/tmp/evenflow-stress-XXXXXX";

static json_t *stress_cleanly(const char *options)
{
    cr_assert_not_null(mkdtemp(folder));
    json_t *verdict = run_stress(folder, options);
    cr_assert_not_null(verdict);
    cr_assert_str_eq(json_string_value(json_object_get(verdict, "verdict")), "clean", "see %s", folder);
    cr_expect_geq(figure(verdict, "rounds"), 1);
    return verdict;
}

static void remove_artefacts(void) /* what is left of a failure stays */
{
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", folder);
    cr_expect_eq(system(command), 0);
}

static void die_at_every_point(const char *io)
{
    char options[128];
    snprintf(options, sizeof(options), "--io %s --every-point --kills %s", io, setting("EVENFLOW_KILLS", "100"));
    json_t *verdict = stress_cleanly(options);
    cr_expect_gt(figure(verdict, "kills_at_points"), figure(verdict, "points_within_reach") - 1);
    cr_expect_eq(figure(verdict, "points_died_at"), figure(verdict, "points_within_reach"));
    cr_expect_gt(figure(verdict, "answers"), 200);
    json_decref(verdict);
    remove_artefacts();
}

Test(stress, no_answer_is_lost_repeated_or_changed_on_io_uring, .timeout = 200)
{
    die_at_every_point("uring");
}

Test(stress, no_answer_is_lost_repeated_or_changed_on_epoll, .timeout = 200)
{
    die_at_every_point("epoll");
}

Test(stress, spares_die_too_while_programs_are_replaced, .timeout = 200)
{
    json_t *verdict = stress_cleanly("--spares 1 --upgrade-every 5 --kills 60");
    cr_expect_gt(figure(verdict, "upgrades"), 2);
    cr_expect_gt(figure(verdict, "answers"), 200);
    json_decref(verdict);
    remove_artefacts();
}

Test(stress, one_engine_lasts_where_no_supervisor_dies_together_with_another, .timeout = 200)
{
    json_t *verdict = stress_cleanly("--lasting --kills 40 --round 20");
    cr_expect_eq(figure(verdict, "ended_with_supervisor"), 0);
    cr_expect_geq(figure(verdict, "rounds"), 2);
    json_decref(verdict);
    remove_artefacts();
}
