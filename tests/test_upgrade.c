/* test_upgrade.c - evenflow upgrade: other programs in place of those that run, under load, with deaths in the middle, and
 * programs that are refused. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/layout.h"
#include "ipc/version.h"
#include "tests/command.h"
#include "tests/engine.h"

#define REQUESTS  16u
#define PROCESSES 6u /* with three stages */
#define OPTIONS   "--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 "

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];
static struct own_engine engine;
static struct client *client;
static struct outcome outcome;

static void start(const char *options, unsigned tokens)
{
    engine_start(&engine, options);
    for (unsigned i = 0; i < REQUESTS; i++) {
        bodies[i] = malloc(256);
        snprintf(bodies[i], 256,
                 "{\"prompt\":[504,338,%u,5],\"max_tokens\":%u,\"temperature\":%s,\"seed\":%u,\"ignore_eos\":true,"
                 "\"return_token_ids\":true,\"return_logits_hash\":true}",
                 300 + i, tokens + i, i % 2 ? "0.8" : "0", i);
    }
    struct err err;
    client = client_open(engine.socket, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    engine_complete_with(client, bodies, REQUESTS, 8, truth);
}

static void expect_the_truth(void)
{
    engine_complete_with(client, bodies, REQUESTS, 8, seen);
    for (unsigned i = 0; i < REQUESTS; i++) {
        cr_expect_eq(seen[i].count, truth[i].count, "answer %u: %u tokens, not %u", i, seen[i].count, truth[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0, "answer %u", i);
        cr_expect_eq(memcmp(seen[i].hashes, truth[i].hashes, truth[i].count * sizeof(uint64_t)), 0, "answer %u", i);
        cr_expect_str_eq(seen[i].text, truth[i].text);
    }
}

/* Of every process, by number; the standby's last. */
static void read_pids(pid_t *pids)
{
    json_t *status = engine_status(&engine), *processes = json_object_get(status, "processes");
    size_t count = json_array_size(processes);
    cr_assert_leq(count, PROCESSES);
    for (size_t i = 0; i < PROCESSES; i++)
        pids[i] = (pid_t)json_integer_value(json_object_get(json_array_get(processes, i), "pid"));
    pids[PROCESSES] = (pid_t)json_integer_value(json_object_get(status, "standby"));
    json_decref(status);
}

static int upgrade(const char *options)
{
    char arguments[512];
    snprintf(arguments, sizeof(arguments), "upgrade --socket %s %s", engine.socket, options);
    return command_run(&outcome, arguments, NULL);
}

static _Atomic bool is_over;

static void *upgrade_twice(void *pointer)
{
    const unsigned *processes = pointer;
    for (int i = 0; i < 2; i++) {
        pid_t before[PROCESSES + 1], after[PROCESSES + 1];
        wait_ms(50);
        read_pids(before);
        cr_expect_eq(upgrade(""), 0, "%s%s", outcome.out, outcome.err);
        cr_expect(strstr(outcome.out, "done: evenflow-"), "%s", outcome.out);
        read_pids(after);
        cr_expect_eq(after[0], before[0], "the supervisor stays the same process");
        for (unsigned number = 1; number < *processes; number++)
            cr_expect_neq(after[number], before[number], "process %u is the old one", number);
        for (int tries = 0; after[PROCESSES] == before[PROCESSES] && tries < 400; tries++, wait_ms(5))
            read_pids(after);
        cr_expect_neq(after[PROCESSES], before[PROCESSES], "the standby is the old one");
    }
    atomic_store(&is_over, true);
    return NULL;
}

static void upgrade_under_load(unsigned processes)
{
    pthread_t thread;
    atomic_store(&is_over, false);
    cr_assert_eq(pthread_create(&thread, NULL, upgrade_twice, &processes), 0);
    while (!atomic_load(&is_over))
        expect_the_truth();
    pthread_join(thread, NULL);
    expect_the_truth();
}

static pid_t await_other(unsigned number, pid_t than)
{
    pid_t pids[PROCESSES + 1];
    for (int tries = 0; tries < 2000; tries++, wait_ms(5)) {
        read_pids(pids);
        if (pids[number] != than)
            return pids[number];
    }
    cr_assert(false, "process %u has no successor", number);
    return 0;
}

static void await_ready(void)
{
    int status = 0;
    for (int tries = 0; status != 200 && tries < 2000; tries++, wait_ms(5))
        json_decref(engine_get(&engine, "/ready", &status));
    cr_assert_eq(status, 200);
}

Test(upgrade, every_program_is_replaced_under_load_and_no_byte_changes, .timeout = 120)
{
    char orders[128];
    pid_t pids[PROCESSES + 1];
    start(OPTIONS, 150);
    upgrade_under_load(PROCESSES);
    /* the new ones can die as the old ones could */
    read_pids(pids);
    kill(pids[4], SIGKILL);
    await_other(4, pids[4]);
    await_ready();
    kill(pids[0], SIGKILL);
    waitpid(pids[0], NULL, 0);
    pid_t supervisor = await_other(0, pids[0]);
    wait_ms(150); /* who dies sooner died together with it */
    expect_the_truth();
    cr_expect_eq(upgrade(""), 0, "%s%s", outcome.out, outcome.err);
    expect_the_truth();
    kill(supervisor, SIGTERM);
    for (int tries = 0; access(engine.socket, F_OK) == 0 && tries < 2000; tries++)
        wait_ms(5);
    cr_expect_eq(access(engine.socket, F_OK), -1, "the socket is left");
    snprintf(orders, sizeof(orders), "%s.control", engine.socket);
    cr_expect_eq(access(orders, F_OK), -1, "the socket for orders is left");
    own_engine_forget(&engine);
}

Test(upgrade, of_real_stages_changes_no_bit, .timeout = 120)
{
    start("--log-level error -p 2", 12);
    upgrade_under_load(5);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* ---- what is refused ---- */

static char fakes[64];

/* Programs that say which build they are, and nothing else: a shell script each. */
static void write_programs(unsigned long long layout, const char *numerics)
{
    static const char *const roles[] = {"supervisor", "front", "sched", "stage"};
    for (size_t i = 0; i < ARRAY_COUNT(roles); i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s/evenflow-%s", fakes, roles[i]);
        FILE *file = fopen(path, "we");
        cr_assert_not_null(file);
        fprintf(file, "#!/bin/sh\necho build 9.9 layout %llx numerics %s\n", layout, numerics);
        fclose(file);
        chmod(path, 0700);
    }
}

/* The engine's own programs, each behind a script. */
static void write_wrappers(void)
{
    char path[160], *here = realpath(getenv("EVENFLOW_BUILD") != NULL ? getenv("EVENFLOW_BUILD") : "build", NULL);
    for (uint32_t role = 0; role < ROLE_COUNT; role++) {
        snprintf(path, sizeof(path), "%s/evenflow-%s", fakes, role_name((enum role)role));
        FILE *file = fopen(path, "we");
        cr_assert_not_null(file);
        fprintf(file, "#!/bin/sh\nexec %s/bin/evenflow-%s \"$@\"\n", here, role_name((enum role)role));
        fclose(file);
    }
    free(here);
}

static void remove_programs(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", fakes);
    cr_expect_eq(system(command), 0);
}

static void expect_refusal(const char *why)
{
    char options[96];
    pid_t before[PROCESSES + 1], after[PROCESSES + 1];
    snprintf(options, sizeof(options), "--from %s", fakes);
    read_pids(before);
    cr_expect_eq(upgrade(options), 1, "%s%s", outcome.out, outcome.err);
    cr_expect(strstr(outcome.err, why), "%s", outcome.err);
    read_pids(after);
    for (unsigned number = 0; number < PROCESSES; number++)
        cr_expect_eq(after[number], before[number], "process %u has been replaced", number);
}

Test(upgrade, programs_that_could_not_go_on_are_refused_and_nothing_changes, .timeout = 120)
{
    start(OPTIONS, 50);
    strcpy(fakes, "/tmp/evenflow-test-XXXXXX");
    cr_assert_not_null(mkdtemp(fakes));
    expect_refusal("does not say which build");
    write_programs(LAYOUT_HASH + 1, version_numerics);
    expect_refusal("share memory in layout");
    write_programs(LAYOUT_HASH, version_numerics); /* it says the right thing, and cannot be a process of the engine */
    expect_refusal("nothing has changed");
    expect_the_truth();
    char options[96];
    snprintf(options, sizeof(options), "--from %s", fakes);
    write_wrappers();
    cr_expect_eq(upgrade(options), 0, "scripts: %s%s", outcome.out, outcome.err);
    remove_programs();
    expect_the_truth();
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* ---- programs that compute other bits ---- */

static void others(char *options, size_t size, const char *folder)
{
    const char *build = getenv("EVENFLOW_BUILD");
    snprintf(options, size, "--from %s/%s", build != NULL ? build : "build", folder);
}

static void expect_fingerprint(const char *numerics)
{
    json_t *version = engine_get(&engine, "/version", NULL);
    const char *fingerprint = json_string_value(json_object_get(version, "fingerprint"));
    cr_expect(fingerprint != NULL && strstr(fingerprint, numerics), "%s is not of %s", fingerprint, numerics);
    json_decref(version);
}

struct stream {
    struct client_call call;
    char body[160];
    _Atomic uint64_t events;
    uint64_t first_ns, end_ns;
};

static void on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    struct stream *stream = context;
    (void)call;
    if (!client_event_has_token(data, size))
        return;
    stream->end_ns = clock_ns();
    if (atomic_fetch_add(&stream->events, 1) == 0)
        stream->first_ns = stream->end_ns;
}

static void *run_stream(void *pointer)
{
    struct stream *stream = pointer;
    client_run(engine.socket, &stream->call, 1, 1);
    return NULL;
}

static void begin_stream(struct stream *stream, pthread_t *thread, unsigned tokens)
{
    int size = snprintf(stream->body, sizeof(stream->body),
                        "{\"prompt\":[5,6,7],\"max_tokens\":%u,\"ignore_eos\":true,\"stream\":true}", tokens);
    stream->call = (struct client_call){.method = "POST",
                                        .path = "/v1/completions",
                                        .body = stream->body,
                                        .body_size = (size_t)size,
                                        .on_event = on_event,
                                        .context = stream};
    cr_assert_eq(pthread_create(thread, NULL, run_stream, stream), 0);
}

static int other_status = -1;

static void *upgrade_to_others(void *pointer)
{
    (void)pointer;
    char options[256];
    others(options, sizeof(options), "others");
    other_status = upgrade(options);
    return NULL;
}

static bool is_finishing(void)
{
    json_t *status = engine_status(&engine);
    bool is_finishing = strcmp(json_string_value(json_object_get(status, "state")), "finishing") == 0;
    json_decref(status);
    return is_finishing;
}

static bool is_held(void)
{
    json_t *status = engine_status(&engine), *sequences = json_object_get(status, "sequences");
    bool is_held = json_integer_value(json_object_get(sequences, "running")) == 1 &&
                   json_integer_value(json_object_get(json_object_get(status, "requests"), "active")) == 2;
    json_decref(status);
    return is_held;
}

/* One answer has begun before the upgrade, another one is asked for while it waits for the first one's end. */
Test(upgrade, to_other_bits_waits_for_what_has_begun_and_holds_back_the_rest, .timeout = 120)
{
    static struct stream before, behind;
    pthread_t threads[3];
    char options[256];
    start(OPTIONS, 50);
    begin_stream(&before, &threads[0], 2500);
    while (atomic_load(&before.events) == 0)
        wait_ms(1);
    cr_assert_eq(pthread_create(&threads[1], NULL, upgrade_to_others, NULL), 0);
    while (!is_finishing() && atomic_load(&before.events) < 2500)
        wait_ms(1);
    begin_stream(&behind, &threads[2], 20);
    while (!is_held() && atomic_load(&before.events) < 2500)
        wait_ms(1);
    cr_expect_lt(atomic_load(&before.events), 2500, "it was over too soon to see anything");
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    cr_expect_eq(other_status, 0, "%s%s", outcome.out, outcome.err);
    cr_expect(strstr(outcome.out, "what has begun is finished first"), "%s", outcome.out);
    cr_expect(before.call.status == 200 && atomic_load(&before.events) == 2500);
    cr_expect(behind.call.status == 200 && atomic_load(&behind.events) == 20);
    cr_expect_geq(behind.first_ns, before.end_ns, "it did not wait");
    expect_fingerprint("0therb1tsbad");
    expect_the_truth();
    others(options, sizeof(options), "bin");
    cr_expect_eq(upgrade(options), 0, "%s%s", outcome.out, outcome.err); /* and back, with nothing to wait for */
    expect_fingerprint(version_numerics);
    expect_the_truth();
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(upgrade, of_real_stages_to_other_bits_packs_weights_anew, .timeout = 120)
{
    start("--log-level error -p 2", 6);
    upgrade_to_others(NULL);
    cr_expect_eq(other_status, 0, "%s%s", outcome.out, outcome.err);
    expect_fingerprint("0therb1tsbad");
    expect_the_truth(); /* what it says of its bits is not so: the sources are the same */
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* ---- deaths in the middle ---- */

static void *upgrade_once(void *pointer)
{
    *(int *)pointer = upgrade("");
    atomic_store(&is_over, true);
    return NULL;
}

/* The process dies `after_ms` after an upgrade was asked for. */
static void check_death_in_the_middle(unsigned number, long after_ms)
{
    int status = -1;
    pid_t pids[PROCESSES + 1];
    pthread_t thread;
    atomic_store(&is_over, false);
    read_pids(pids);
    cr_assert_eq(pthread_create(&thread, NULL, upgrade_once, &status), 0);
    wait_ms(after_ms);
    kill(pids[number], SIGKILL);
    while (!atomic_load(&is_over))
        expect_the_truth();
    pthread_join(thread, NULL);
    expect_the_truth();
    await_ready();
    wait_ms(150);
    cr_expect(status == 0 || strstr(outcome.err, "evenflow upgrade: "), "status %d: %s", status, outcome.err);
    cr_expect_eq(upgrade(""), 0, "%s%s", outcome.out, outcome.err); /* whatever became of that one */
    expect_the_truth();
}

Test(upgrade, deaths_in_the_middle_lose_nothing, .timeout = 120)
{
    start(OPTIONS, 150);
    for (long after_ms = 10; after_ms <= 90; after_ms += 20)
        check_death_in_the_middle(1 + (unsigned)after_ms / 20 % 5, after_ms);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(upgrade, supervisors_die_in_the_middle, .timeout = 120)
{
    start(OPTIONS, 150);
    for (long after_ms = 10; after_ms <= 130; after_ms += 30)
        check_death_in_the_middle(ROLE_SUPERVISOR, after_ms);
    pid_t pids[PROCESSES + 1];
    read_pids(pids);
    kill(pids[0], SIGTERM);
    while (!engine_process_is_gone(pids[0]))
        wait_ms(1);
    own_engine_forget(&engine);
}
