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
#include "tests/tiny_model.h"
#include "tests/tiny_vocab.h"

static const char *setting(const char *name, const char *otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? text : otherwise;
}

#define TIMED "-p 3 --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 "

static json_t *run_stress(const char *folder, const char *options, const char *model)
{
    char command[1024], text[32768];
    snprintf(command, sizeof(command), "%s/points/evenflow stress --json --seconds 120 --seed %s --artefacts %s %s %s",
             setting("EVENFLOW_BUILD", "build"), setting("EVENFLOW_SEED", "1"), folder, options, model);
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

static json_t *stress_cleanly(const char *options, const char *model)
{
    cr_assert_not_null(mkdtemp(folder));
    json_t *verdict = run_stress(folder, options, model);
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
    char options[256];
    snprintf(options, sizeof(options), TIMED "--io %s --every-point --kills %s", io, setting("EVENFLOW_KILLS", "100"));
    json_t *verdict = stress_cleanly(options, engine_model_path());
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
    json_t *verdict = stress_cleanly(TIMED "--spares 1 --upgrade-every 5 --kills 60", engine_model_path());
    cr_expect_gt(figure(verdict, "upgrades"), 2);
    cr_expect_gt(figure(verdict, "answers"), 200);
    json_decref(verdict);
    remove_artefacts();
}

Test(stress, one_engine_lasts_where_no_supervisor_dies_together_with_another, .timeout = 200)
{
    json_t *verdict = stress_cleanly(TIMED "--lasting --kills 40 --round 20", engine_model_path());
    cr_expect_eq(figure(verdict, "ended_with_supervisor"), 0);
    cr_expect_geq(figure(verdict, "rounds"), 2);
    json_decref(verdict);
    remove_artefacts();
}

Test(stress, stages_that_compute_go_on_with_the_same_bits_drafts_and_a_cache_of_bytes_included, .timeout = 200)
{
    char path[] = "/tmp/evenflow-tiny-XXXXXX";
    struct tiny_model tiny = tiny_model_variant(0);
    int fd = mkstemp(path);
    tiny.has_tokenizer = true;
    tiny.vocab_size = TINY_COUNT;
    cr_assert_geq(fd, 0);
    tiny_model_write(&tiny, path);
    json_t *verdict =
        stress_cleanly("-p 2 --num-blocks 400 --no-weights-cache --kv-type q8 --speculate ngram --kills 40", path);
    cr_expect_gt(figure(verdict, "answers"), 100);
    json_decref(verdict);
    remove_artefacts();
    close(fd);
    unlink(path);
}
