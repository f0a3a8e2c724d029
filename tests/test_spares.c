/* test_spares.c - a process that waits beside each one and takes over when it dies: who it is, what becomes of it, how fast. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "tests/engine.h"

#define REQUESTS 12u
#define OPTIONS                                                                                                        \
    "--log-level error --spares 1 --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 "

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];
static struct own_engine engine;
static struct client *client;

/* A number that /status has of a process: "pid", "spare", "restarts". */
static long number_of(const char *role, int index, const char *what)
{
    for (int tries = 0; tries < 2000; tries++, wait_ms(5)) {
        int status_code;
        size_t i;
        json_t *status = engine_get(&engine, "/status", &status_code), *process;
        long number = -1;
        json_array_foreach(json_object_get(status, "processes"), i, process)
            if (strcmp(json_string_value(json_object_get(process, "role")), role) == 0 &&
                json_integer_value(json_object_get(process, "index")) == index)
                number = (long)json_integer_value(json_object_get(process, what));
        json_decref(status);
        if (status_code == 200 && number >= 0)
            return number;
    }
    cr_assert(false, "/status does not say %s of %s %d", what, role, index);
    return -1;
}

static pid_t await_spare(const char *role, int index, pid_t other_than)
{
    long spare = 0;
    for (int tries = 0; tries < 4000; tries++, wait_ms(5))
        if ((spare = number_of(role, index, "spare")) != 0 && spare != other_than)
            return (pid_t)spare;
    cr_assert(false, "%s %d has no spare", role, index);
    return 0;
}

static pid_t await_other(const char *role, int index, pid_t than)
{
    pid_t pid;
    for (int tries = 0; (pid = (pid_t)number_of(role, index, "pid")) == than && tries < 2000; tries++)
        wait_ms(2);
    cr_assert_neq(pid, than, "%s %d has no successor", role, index);
    return pid;
}

static pid_t standby_pid(void)
{
    json_t *status = engine_get(&engine, "/status", NULL);
    pid_t standby = (pid_t)json_integer_value(json_object_get(status, "standby"));
    json_decref(status);
    cr_assert_gt(standby, 0);
    return standby;
}

static void start(const char *options, unsigned tokens)
{
    engine_start(&engine, options);
    for (unsigned i = 0; i < REQUESTS; i++) {
        bodies[i] = malloc(256);
        snprintf(bodies[i], 256,
                 "{\"prompt\":[504,338,%u,5],\"max_tokens\":%u,\"temperature\":0,\"ignore_eos\":true,"
                 "\"return_token_ids\":true,\"return_logits_hash\":true}",
                 300 + i, tokens + i);
    }
    struct err err;
    client = client_open(engine.socket, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    engine_complete_with(client, bodies, REQUESTS, REQUESTS, truth);
}

static void expect_the_truth(void)
{
    engine_complete_with(client, bodies, REQUESTS, REQUESTS, seen);
    for (unsigned i = 0; i < REQUESTS; i++) {
        cr_expect_eq(seen[i].count, truth[i].count, "answer %u: %u tokens, not %u", i, seen[i].count, truth[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0, "answer %u", i);
        cr_expect_eq(memcmp(seen[i].hashes, truth[i].hashes, truth[i].count * sizeof(uint64_t)), 0, "answer %u", i);
        cr_expect_str_eq(seen[i].text, truth[i].text);
    }
}

static _Atomic bool is_over;

static void *strike(void *pointer)
{
    static const struct {
        const char *role;
        int index;
    } victims[] = {{"stage", 1}, {"front", 0}, {"sched", 0}, {"stage", 0}, {"stage", 2}, {"front", 0}, {"sched", 0}};
    (void)pointer;
    for (size_t i = 0; i < ARRAY_COUNT(victims); i++) {
        const char *role = victims[i].role;
        int index = victims[i].index;
        pid_t victim = (pid_t)number_of(role, index, "pid"), spare = await_spare(role, index, 0);
        kill(victim, SIGKILL);
        pid_t next = await_other(role, index, victim);
        cr_expect_eq(next, spare, "the next life of %s %d is not its spare's", role, index);
        await_spare(role, index, spare);
    }
    atomic_store(&is_over, true);
    return NULL;
}

Test(spares, take_over_from_every_role_and_have_spares_themselves, .timeout = 120)
{
    pthread_t thread;
    start(OPTIONS, 150);
    cr_assert_eq(pthread_create(&thread, NULL, strike, NULL), 0);
    while (!atomic_load(&is_over))
        expect_the_truth();
    pthread_join(thread, NULL);
    expect_the_truth();
    pid_t spare = await_spare("stage", 1, 0);
    cr_expect_eq(number_of("stage", 1, "restarts"), 1);
    cr_expect_eq(own_engine_stop(&engine), 0);
    cr_expect(engine_process_is_gone(spare), "a spare is left");
}

/* On the kernel's clock, which also runs while a machine sleeps. */
static uint64_t start_ns(pid_t pid)
{
    char path[32], text[512] = "";
    unsigned long long ticks = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    cr_assert_not_null(fgets(text, sizeof(text), file));
    fclose(file);
    cr_assert_eq(sscanf(strrchr(text, ')') + 1,
                        " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &ticks),
                 1);
    return ticks * (1000000000ull / (uint64_t)sysconf(_SC_CLK_TCK));
}

Test(spares, are_not_started_in_the_first_moments_of_a_life_whose_steps_need_the_core, .timeout = 120)
{
    const uint64_t tick_ns = 1000000000ull / (uint64_t)sysconf(_SC_CLK_TCK);
    struct timespec now;
    start(OPTIONS, 150);
    pid_t stage = (pid_t)number_of("stage", 1, "pid"), spare = await_spare("stage", 1, 0);
    clock_gettime(CLOCK_BOOTTIME, &now);
    uint64_t death_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    kill(stage, SIGKILL);
    expect_the_truth();
    pid_t next_spare = await_spare("stage", 1, spare);
    cr_expect_eq(number_of("stage", 1, "pid"), spare);
    cr_expect_geq(start_ns(next_spare) + tick_ns, death_ns + 200000000u);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(spares, that_die_or_stop_are_replaced_and_nobody_else_notices, .timeout = 120)
{
    start(OPTIONS, 150);
    pid_t stage = (pid_t)number_of("stage", 1, "pid"), spare = await_spare("stage", 1, 0);
    for (int i = 0; i < 4; i++) {
        kill(spare, i % 2 ? SIGKILL : SIGSTOP);
        spare = await_spare("stage", 1, spare);
    }
    cr_expect_eq(number_of("stage", 1, "pid"), stage);
    cr_expect_eq(number_of("stage", 1, "restarts"), 0);
    kill(spare, SIGSTOP);
    kill(stage, SIGKILL); /* at once: whoever takes over can work */
    expect_the_truth();
    cr_expect_neq(await_other("stage", 1, stage), spare);
    cr_expect(engine_process_is_gone(spare));
    expect_the_truth();
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* They leave, since nobody knows them, or are known; whoever takes over has some in the end. */
Test(spares, that_are_not_prepared_when_a_supervisor_dies_are_followed_by_others, .timeout = 120)
{
    start(OPTIONS, 150);
    for (int i = 0; i < 4; i++) {
        pid_t supervisor = (pid_t)number_of("supervisor", 0, "pid"), stage = (pid_t)number_of("stage", 1, "pid");
        kill(supervisor, SIGKILL);
        await_other("supervisor", 0, supervisor);
        wait_ms(150);         /* who dies sooner died together with it */
        kill(stage, SIGKILL); /* its spare is wanted, and perhaps not prepared */
        expect_the_truth();
        await_other("stage", 1, stage);
    }
    await_spare("front", 0, 0);
    await_spare("sched", 0, 0);
    await_spare("stage", 1, 0);
    pid_t supervisor = (pid_t)number_of("supervisor", 0, "pid");
    kill(supervisor, SIGTERM);
    while (!engine_process_is_gone(supervisor))
        wait_ms(1);
    own_engine_forget(&engine);
}

Test(spares, outlive_a_supervisor_and_end_with_the_last_one, .timeout = 120)
{
    start(OPTIONS, 150);
    pid_t stage = (pid_t)number_of("stage", 1, "pid"), spare = await_spare("stage", 1, 0);
    await_spare("stage", 2, 0);
    await_spare("front", 0, 0);
    await_spare("sched", 0, 0);
    await_spare("stage", 0, 0);
    kill(engine.pid, SIGKILL);
    waitpid(engine.pid, NULL, 0);
    pid_t supervisor = await_other("supervisor", 0, engine.pid);
    wait_ms(150); /* who dies sooner died together with it */
    kill(stage, SIGKILL);
    cr_expect_eq(await_other("stage", 1, stage), spare);
    expect_the_truth();
    spare = await_spare("stage", 1, spare);
    pid_t standby = standby_pid();
    kill(supervisor, SIGSTOP); /* or it would have another standby */
    kill(standby, SIGKILL);
    kill(supervisor, SIGKILL);
    uint64_t start_ns = clock_ns();
    while (!engine_process_is_gone(spare) && clock_ns() - start_ns < 1000000000u)
        wait_ms(1);
    cr_expect(engine_process_is_gone(spare), "a spare outlives the last supervisor");
    own_engine_forget(&engine);
}

/* ---- started by somebody else ---- */

/* As a service manager does it: a program that is told where the engine is. */
static pid_t attach(const char *role, const char *index)
{
    char program[512];
    const char *build = getenv("EVENFLOW_BUILD");
    snprintf(program, sizeof(program), "%s/bin/evenflow-%s", build != NULL ? build : "build", role);
    pid_t pid = fork();
    if (pid == 0 && strcmp(index, "adopt") == 0) {
        *strrchr(program, '-') = '\0';
        execl(program, program, "serve", "--adopt", "--socket", engine.socket, (char *)NULL);
    }
    if (pid == 0) {
        execl(program, program, "--attach", engine.socket, "--index", index, (char *)NULL);
        _exit(127);
    }
    cr_assert_gt(pid, 0);
    return pid;
}

static int status_of(pid_t pid)
{
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return status;
}

Test(spares, may_be_started_by_somebody_else, .timeout = 120)
{
    start("--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 ", 150);
    pid_t attached[] = {attach("stage", "1"), attach("sched", "0"), attach("front", "0")};
    static const char *const roles[] = {"stage", "sched", "front"};
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(await_spare(roles[i], i == 0, 0), attached[i]);
        kill((pid_t)number_of(roles[i], i == 0, "pid"), SIGKILL);
        expect_the_truth();
        cr_expect_eq(number_of(roles[i], i == 0, "pid"), attached[i]);
    }
    expect_the_truth();
    kill(attached[0], SIGTERM); /* its service is stopped: it is followed like any other */
    cr_expect(WIFSIGNALED(status_of(attached[0])));
    expect_the_truth();
    pid_t spare = attach("stage", "2");
    cr_assert_eq(await_spare("stage", 2, 0), spare);
    cr_expect_eq(WEXITSTATUS(status_of(attach("stage", "2"))), 1, "there is one already");
    cr_expect_eq(WEXITSTATUS(status_of(attach("stage", "3"))), 1, "there is no such stage");
    cr_expect_eq(own_engine_stop(&engine), 0);
    cr_expect(WIFSIGNALED(status_of(spare)), "a spare outlives the engine");
    status_of(attached[1]);
    status_of(attached[2]);
    cr_expect_eq(WEXITSTATUS(status_of(attach("stage", "0"))), 1, "there is no engine");
}

static void await_standby(pid_t wanted)
{
    for (int tries = 0; standby_pid() != wanted; tries++, wait_ms(5))
        cr_assert_lt(tries, 2000, "process %d does not become the standby", (int)wanted);
}

Test(spares, of_the_supervisor_may_be_started_by_somebody_else, .timeout = 120)
{
    start("--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 ", 150);
    pid_t gone = attach("supervisor", "0");
    await_standby(gone);
    cr_expect_eq(WEXITSTATUS(status_of(attach("supervisor", "0"))), 1, "there is one already");
    kill(gone, SIGTERM); /* its service is stopped: the supervisor has another one */
    cr_expect(WIFSIGNALED(status_of(gone)));
    pid_t outsider = attach("supervisor", "0");
    await_standby(outsider);
    for (int i = 0; i < 3; i++) { /* it learns of each */
        pid_t stage = (pid_t)number_of("stage", i, "pid");
        kill(stage, SIGKILL);
        await_other("stage", i, stage);
    }
    pid_t front = (pid_t)number_of("front", 0, "pid");
    kill(front, SIGKILL);
    await_other("front", 0, front);
    expect_the_truth();
    cr_expect_eq(standby_pid(), outsider);
    kill(engine.pid, SIGKILL);
    expect_the_truth();
    cr_expect_eq(number_of("supervisor", 0, "pid"), outsider);
    cr_expect_eq(number_of("supervisor", 0, "restarts"), 1);
    pid_t next = attach("supervisor", "adopt");
    await_standby(next);
    const char *const roles[] = {"stage", "sched", "front"};
    for (int i = 0; i < 3; i++) {
        pid_t victim = (pid_t)number_of(roles[i], 0, "pid");
        kill(victim, SIGKILL);
        await_other(roles[i], 0, victim);
        expect_the_truth();
    }
    kill(outsider, SIGKILL);
    cr_expect(WIFSIGNALED(status_of(outsider)));
    expect_the_truth();
    cr_expect_eq(number_of("supervisor", 0, "pid"), next);
    kill(next, SIGTERM);
    cr_expect_eq(status_of(next), 0);
    waitpid(engine.pid, NULL, 0);
    own_engine_forget(&engine);
}

Test(spares, that_somebody_else_has_started_end_with_the_last_supervisor, .timeout = 120)
{
    start("--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 ", 50);
    pid_t stage = (pid_t)number_of("stage", 1, "pid"), spare = attach("stage", "1");
    cr_assert_eq(await_spare("stage", 1, 0), spare);
    kill(stage, SIGKILL);
    cr_assert_eq(await_other("stage", 1, stage), spare);
    pid_t standby = standby_pid();
    kill(engine.pid, SIGSTOP); /* or it would have another standby */
    kill(standby, SIGKILL);
    kill(engine.pid, SIGKILL);
    int end = status_of(spare); /* it may not have had the second half of its birth: then it sees its socket close */
    cr_expect(WIFSIGNALED(end) || WEXITSTATUS(end) == 1, "status %#x", (unsigned)end);
    waitpid(engine.pid, NULL, 0);
    own_engine_forget(&engine);
}

Test(spares, of_real_stages_go_on_with_the_same_bits, .timeout = 120)
{
    start("--log-level error --spares 1 -p 2", 6);
    for (int i = 0; i < 4; i++) {
        pid_t spare = await_spare("stage", i % 2, 0), stage = (pid_t)number_of("stage", i % 2, "pid");
        kill(stage, SIGKILL);
        expect_the_truth();
        cr_expect_eq(await_other("stage", i % 2, stage), spare);
    }
    cr_expect_eq(own_engine_stop(&engine), 0);
}
