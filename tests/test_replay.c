/* test_replay.c - what serve --record wrote is planned again, step for step. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/record.h"
#include "tests/engine.h"
#include "tools/replay.h"

static void ignore_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    (void)context;
    (void)data;
    (void)size;
}

/* A recording of an engine under some load: preemptions, aborts, several choices. */
static void make_recording(char *path, const char *policy, const char *speculate)
{
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    char options[256];
    snprintf(options, sizeof(options), "-p 2 --policy %s --speculate %s --num-blocks 30 --max-num-seqs 16 --record %s",
             policy, speculate, path);
    struct own_engine engine;
    engine_start(&engine, options);
    enum { CALLS = 40 };
    static char bodies[CALLS][200];
    struct client_call calls[CALLS];
    for (int i = 0; i < CALLS; i++) {
        snprintf(bodies[i], sizeof(bodies[i]),
                 "{\"prompt\":\"Story %d of a long and winding road that leads to\",\"max_tokens\":%d,\"n\":%d,"
                 "\"stream\":true,\"ignore_eos\":true}",
                 i, 20 + i, 1 + (i % 5 == 0));
        calls[i] = (struct client_call){.method = "POST",
                                        .path = "/v1/completions",
                                        .body = bodies[i],
                                        .body_size = strlen(bodies[i]),
                                        .on_event = ignore_event,
                                        .abandon_after_events = i % 7 == 6 ? 4 : 0};
    }
    client_run(engine.socket, calls, CALLS, 20);
    if (strcmp(policy, "default") == 0)
        cr_assert_gt(engine_metric(&engine, "evenflow_preemptions_total"), 0);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(replay, plans_every_recorded_step_again, .timeout = 180)
{
    char path[] = "/tmp/evenflow-recording-XXXXXX";
    make_recording(path, "default", "none");
    struct replay_result result;
    struct err err;
    cr_assert_eq(replay_file(&result, path, &err), 0, "%s", err.text);
    cr_assert_eq(result.first_difference, 0, "%s", result.err.text);
    cr_assert_eq(result.requests, 40);
    cr_assert_gt(result.steps, 50);
    fprintf(stderr, "replay: %llu steps, the same\n", (unsigned long long)result.steps);

    /* what shows that it compares: one recorded token changed */
    FILE *file = fopen(path, "r+e");
    cr_assert_eq(fseek(file, sizeof(struct record_head) + sizeof(struct plan), SEEK_SET), 0);
    struct record_entry entry;
    int steps = 0;
    while (fread(&entry, sizeof(entry), 1, file) == 1) {
        if (entry.kind == RECORD_STEP && entry.step != 0 && ++steps == 20) {
            cr_assert_eq(fseek(file, (long)entry.bytes - 1, SEEK_CUR), 0);
            cr_assert_eq(fputc(0x7f, file), 0x7f);
            break;
        }
        cr_assert_eq(fseek(file, (long)entry.bytes, SEEK_CUR), 0);
    }
    fclose(file);
    cr_assert_eq(replay_file(&result, path, &err), 0, "%s", err.text);
    cr_assert_eq(result.first_difference, entry.step, "%llu, not %llu", (unsigned long long)result.first_difference,
                 (unsigned long long)entry.step);

    cr_assert_eq(truncate(path, 100), 0);
    cr_assert_lt(replay_file(&result, path, &err), 0);
    unlink(path);
    cr_assert_lt(replay_file(&result, path, &err), 0);
    cr_assert_lt(replay_file(&result, "README.md", &err), 0);
    cr_assert(strstr(err.text, "no recording"));
}

Test(replay, plans_every_step_again_that_followed_from_measured_times, .timeout = 120)
{
    char path[] = "/tmp/evenflow-recording-XXXXXX";
    struct replay_result result;
    struct err err = {0};
    make_recording(path, "even", "ngram"); /* drafts too */
    cr_assert_eq(replay_file(&result, path, &err), 0, "%s", err.text);
    cr_assert_eq(result.first_difference, 0, "%s", result.err.text);
    cr_assert_gt(result.steps, 50);
    unlink(path);
}
