/* test_sim.c - the scheduler against recorded decisions of vLLM's, step by step (tests/data/sched/README.md). */
#include <criterion/criterion.h>
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc/base.h"

#define FOLDER        "tests/data/sched"
#define SCENARIOS_MAX 64

static const char *program(void)
{
    static char path[512];
    const char *build = getenv("EVENFLOW_BUILD");
    snprintf(path, sizeof(path), "%s/bin/evenflow", build != NULL ? build : "build");
    return path;
}

/* Lines of a step file in which something happened, and its last line. */
struct recording {
    json_t *steps; /* array */
    json_t *end;
};

static bool something_happened(json_t *line)
{
    static const char *const keys[] = {"scheduled", "emitted", "preempted", "aborted"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        if (json_array_size(json_object_get(line, keys[i])) > 0)
            return true;
    return false;
}

static struct recording read_recording(const char *command)
{
    struct recording recording = {.steps = json_array()};
    FILE *file = popen(command, "r");
    cr_assert_not_null(file);
    char *text = NULL;
    size_t room = 0;
    while (getline(&text, &room, file) > 0) {
        json_t *line = json_loads(text, 0, NULL);
        cr_assert_not_null(line, "%s: %s", command, text);
        if (json_object_get(line, "end") != NULL)
            recording.end = json_incref(json_object_get(line, "end"));
        else if (something_happened(line))
            json_array_append(recording.steps, line);
        json_decref(line);
    }
    free(text);
    cr_assert_eq(pclose(file), 0, "%s", command);
    return recording;
}

static bool is_empty(json_t *value)
{
    return value == NULL || (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

static void compare_steps(const char *name, json_t *expected, json_t *got)
{
    static const char *const fields[] = {"scheduled", "preempted", "prefix_hit", "finished", "free",
                                         "running",   "waiting",   "aborted",    "emitted",  "told_finished",
                                         "arrived",   "step",      "updated",    "seq",      "free_after_schedule"};
    for (size_t i = 0; i < json_array_size(expected) && i < json_array_size(got); i++) {
        json_t *a = json_array_get(expected, i), *b = json_array_get(got, i);
        for (size_t f = 0; f < ARRAY_COUNT(fields); f++) {
            json_t *x = json_object_get(a, fields[f]), *y = json_object_get(b, fields[f]);
            if ((is_empty(x) && is_empty(y)) || json_equal(x, y))
                continue;
            char *p = json_dumps(x, JSON_COMPACT | JSON_ENCODE_ANY), *q = json_dumps(y, JSON_COMPACT | JSON_ENCODE_ANY);
            cr_assert_fail("%s, step %lld: %s: expected %.300s, got %.300s", name,
                           (long long)json_integer_value(json_object_get(a, "step")), fields[f], p ? p : "nothing",
                           q ? q : "nothing");
        }
    }
    cr_assert_eq(json_array_size(expected), json_array_size(got), "%s: %zu steps, not %zu", name, json_array_size(got),
                 json_array_size(expected));
}

static void compare_ends(const char *name, json_t *expected, json_t *got)
{
    const char *id;
    json_t *end;
    cr_assert_gt(json_object_size(expected), 0);
    json_object_foreach(expected, id, end) {
        json_t *other = json_object_get(got, id);
        char *p = json_dumps(end, JSON_COMPACT), *q = json_dumps(other, JSON_COMPACT);
        cr_assert(json_equal(end, other), "%s: request %s: expected %s, got %s", name, id, p, q);
        free(p);
        free(q);
    }
}

static char names[SCENARIOS_MAX][64];

static size_t find_scenarios(void)
{
    size_t count = 0;
    DIR *folder = opendir(FOLDER);
    if (folder == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL && count < SCENARIOS_MAX;) {
        size_t size = strlen(entry->d_name);
        if (size > 5 && size < 64 && strcmp(entry->d_name + size - 5, ".json") == 0)
            snprintf(names[count++], sizeof(names[0]), "%.*s", (int)size - 5, entry->d_name);
    }
    closedir(folder);
    return count;
}

static void compare_scenario(const char *name)
{
    char expected_command[512], got_command[1024];
    const char *reader = "cat", *suffix = "";
    snprintf(expected_command, sizeof(expected_command), FOLDER "/%s.steps.jsonl", name);
    if (access(expected_command, R_OK) != 0) {
        reader = "gzip -dc";
        suffix = ".gz";
    }
    snprintf(expected_command, sizeof(expected_command), "%s " FOLDER "/%s.steps.jsonl%s", reader, name, suffix);
    snprintf(got_command, sizeof(got_command), "%s sim " FOLDER "/%s.json --policy default --steps - 2>/dev/null",
             program(), name);
    struct recording expected = read_recording(expected_command), got = read_recording(got_command);
    compare_steps(name, expected.steps, got.steps);
    compare_ends(name, expected.end, got.end);
}

Test(sim, decides_what_vllm_decided_in_every_recorded_scenario, .timeout = 300)
{
    size_t count = find_scenarios();
    cr_assert_geq(count, 25);
    for (size_t i = 0; i < count; i++)
        compare_scenario(names[i]);
    fprintf(stderr, "sim: %zu scenarios, every step the same\n", count);
}

static int run_text(const char *scenario, char *output, size_t size)
{
    char path[] = "/tmp/evenflow-scenario-XXXXXX", command[1024];
    int fd = mkstemp(path);
    cr_assert_eq(write(fd, scenario, strlen(scenario)), (ssize_t)strlen(scenario));
    close(fd);
    snprintf(command, sizeof(command), "%s sim %s --json 2>&1", program(), path);
    FILE *file = popen(command, "r");
    size_t got = fread(output, 1, size - 1, file);
    output[got] = '\0';
    int status = pclose(file);
    unlink(path);
    return status;
}

Test(sim, small_and_odd_blocks_and_limits_beyond_the_cache_are_simulated_the_same_every_time)
{
    static const char scenario[] =
        "{\"config\":{\"block_size\":3,\"num_blocks\":20,\"pipeline_depth\":2},\"requests\":["
        "{\"id\":\"a\",\"prompt\":[[0,20]],\"max_tokens\":90,\"eos_after\":4},"
        "{\"id\":\"b\",\"arrival_step\":1,\"prompt\":[[0,20],[7,3]],\"max_tokens\":5}]}";
    char first[4096], second[4096];
    cr_assert_eq(run_text(scenario, first, sizeof(first)), 0, "%s", first);
    cr_assert_eq(run_text(scenario, second, sizeof(second)), 0);
    cr_assert_str_eq(first, second);
    cr_assert(strstr(first, "\"generated_tokens\":9") != NULL, "%s", first);
    cr_assert(strstr(first, "\"cached_tokens\":18") != NULL, "%s", first);
}

Test(sim, a_broken_scenario_is_refused_with_field_and_value)
{
    static const struct {
        const char *scenario, *expected;
    } cases[] = {
        {"{", "line 1"},
        {"[]", "must be an object"},
        {"{\"requests\":[]}", "requests: must be a list of 1"},
        {"{\"requests\":[{\"prompt\":[[0,4]]}]}", "requests[0]: id"},
        {"{\"requests\":[{\"id\":\"a\",\"prompt\":[[0,-4]]}]}", "requests[0]: prompt: segment 0"},
        {"{\"requests\":[{\"id\":\"a\",\"prompt\":[]}]}", "requests[0]: prompt: has 0 tokens"},
        {"{\"requests\":[{\"id\":\"a\",\"prompt\":[[0,4]],\"max_tokens\":0}]}",
         "requests[0]: max_tokens: 0 must be a whole number from 1"},
        {"{\"config\":{\"num_blocks\":1},\"requests\":[{\"id\":\"a\",\"prompt\":[[0,40]],\"max_tokens\":4}]}",
         "requests[0]: 40 + 4 tokens can never run"},
        {"{\"config\":{\"colour\":1},\"requests\":[{\"id\":\"a\",\"prompt\":[[0,4]]}]}", "config: colour"},
        {"{\"config\":{\"policy\":\"best\"},\"requests\":[{\"id\":\"a\",\"prompt\":[[0,4]]}]}",
         "policy: \"best\" must be"},
    };
    char output[4096];
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        cr_expect_neq(run_text(cases[i].scenario, output, sizeof(output)), 0, "%s", cases[i].scenario);
        cr_expect(strstr(output, cases[i].expected) != NULL, "%s: %s", cases[i].scenario, output);
    }
    cr_expect_eq(
        run_text("{\"requests\":[{\"id\":\"a\",\"prompt\":[[0,4]],\"max_tokens\":3}]}", output, sizeof(output)), 0);
    cr_expect(strstr(output, "\"generated_tokens\":3") != NULL, "%s", output);
}
