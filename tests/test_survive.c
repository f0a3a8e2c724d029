/* test_survive.c - the front, supervisors and several processes at once die, processes stop, requests are poison: who has an
 * answer coming gets it, with the same tokens. On timed stages, whose tokens follow from a formula. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/stats.h"
#include "tests/engine.h"
#include "tools/inside.h"

#define REQUESTS 24u
#define OPTIONS  "--log-level error --backend timed --cost tests/data/timed_fast.pipeline.json --num-blocks 400 "
#define POISON   4711u

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];
static struct own_engine engine;
/* Its connections stay open from the first run on: of those, nothing may be lost. A new one, of which no byte was read yet, may
 * be closed by the death of the front. */
static struct client *client;

static void start(const char *options)
{
    engine_start(&engine, options);
    for (unsigned i = 0; i < REQUESTS; i++) {
        bodies[i] = malloc(256);
        snprintf(bodies[i], 256,
                 "{\"prompt\":[%u,%u,%u,5],\"max_tokens\":%u,\"temperature\":0,\"ignore_eos\":true,"
                 "\"return_token_ids\":true}",
                 100 + i % 3, 200 + i, 300 + i, 150 + i);
    }
    struct err err;
    client = client_open(engine.socket, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    engine_complete_with(client, bodies, REQUESTS, 12, truth);
}

static void expect_the_truth(void)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        cr_expect_eq(seen[i].count, truth[i].count, "answer %u: %u tokens, not %u", i, seen[i].count, truth[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0, "answer %u", i);
        cr_expect_str_eq(seen[i].text, truth[i].text);
    }
}

static pid_t pid_of(const char *role, int index)
{
    json_t *status = engine_status(&engine), *process;
    size_t i;
    pid_t pid = 0;
    if (strcmp(role, "standby") == 0)
        pid = (pid_t)json_integer_value(json_object_get(status, "standby"));
    json_array_foreach(json_object_get(status, "processes"), i, process)
        if (strcmp(json_string_value(json_object_get(process, "role")), role) == 0 &&
            json_integer_value(json_object_get(process, "index")) == index)
            pid = (pid_t)json_integer_value(json_object_get(process, "pid"));
    json_decref(status);
    cr_assert_gt(pid, 0, "/status names no %s %d", role, index);
    return pid;
}

static pid_t await_other(const char *role, int index, pid_t than)
{
    pid_t pid;
    for (int tries = 0; (pid = pid_of(role, index)) == than && tries < 2000; tries++)
        wait_ms(5);
    cr_assert_neq(pid, than, "%s %d has no successor", role, index);
    return pid;
}

static void await_ready(const char *role, int index)
{
    for (int tries = 0; !engine_is_ready(&engine, role, index); tries++, wait_ms(5))
        cr_assert_lt(tries, 4000, "%s %d does not become ready", role, index);
}

/* Whoever supervises now. */
static void stop(void)
{
    pid_t supervisor = pid_of("supervisor", 0);
    if (supervisor == engine.pid) {
        cr_expect_eq(own_engine_stop(&engine), 0);
        return;
    }
    kill(supervisor, SIGTERM);
    for (int tries = 0; tries < 2000 && !engine_process_is_gone(supervisor); tries++)
        wait_ms(5);
    cr_expect(engine_process_is_gone(supervisor));
    waitpid(engine.pid, NULL, 0);
    cr_expect_eq(access(engine.socket, F_OK), -1, "the socket is left");
    own_engine_forget(&engine);
}

struct blow {
    const char *role;
    int index;
    int signal;
};

static _Atomic bool is_over;

static void *strike(void *pointer)
{
    for (const struct blow *blow = pointer; blow->role != NULL; blow++) {
        pid_t victim = pid_of(blow->role, blow->index);
        wait_ms(30);
        kill(victim, blow->signal);
        await_other(blow->role, blow->index, victim);
        if (strcmp(blow->role, "supervisor") == 0)
            wait_ms(150); /* who dies sooner died together with it, which is another test */
    }
    atomic_store(&is_over, true);
    return NULL;
}

/* Requests run until every blow has fallen and been got over. */
static void survive_what(void *(*strikes)(void *), void *argument)
{
    pthread_t thread;
    atomic_store(&is_over, false);
    cr_assert_eq(pthread_create(&thread, NULL, strikes, argument), 0);
    while (!atomic_load(&is_over)) {
        engine_complete_with(client, bodies, REQUESTS, 12, seen);
        expect_the_truth();
    }
    pthread_join(thread, NULL);
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
}

static void survive(struct blow *blows)
{
    survive_what(strike, blows);
}

Test(survive, answers_go_on_over_the_deaths_of_any_process, .timeout = 120)
{
    struct blow blows[] = {{"front", 0, SIGKILL},      {"stage", 1, SIGKILL}, {"front", 0, SIGSEGV},
                           {"sched", 0, SIGKILL},      {"front", 0, SIGKILL}, {"stage", 0, SIGABRT},
                           {"supervisor", 0, SIGKILL}, {"front", 0, SIGKILL}, {"stage", 2, SIGBUS},
                           {"supervisor", 0, SIGKILL}, {"sched", 0, SIGSEGV}, {"standby", 0, SIGKILL},
                           {"supervisor", 0, SIGKILL}, {NULL, 0, 0}};
    start(OPTIONS);
    survive(blows);
    stop();
}

Test(survive, stopped_processes_are_replaced, .timeout = 120)
{
    struct blow blows[] = {
        {"stage", 1, SIGSTOP}, {"sched", 0, SIGSTOP}, {"stage", 0, SIGSTOP}, {"stage", 0, SIGSTOP},
        {"stage", 0, SIGSTOP}, {"stage", 2, SIGSTOP}, {NULL, 0, 0}}; /* by somebody, not by a request */
    start(OPTIONS);
    survive(blows);
    stop();
}

/* Nobody misses it, until there is work for it. */
Test(survive, a_process_that_was_stopped_while_idle_is_replaced_when_work_comes, .timeout = 120)
{
    static const struct blow blows[] = {{"stage", 1, SIGSTOP}, {"sched", 0, SIGSTOP}, {"front", 0, SIGSTOP}};
    start(OPTIONS);
    for (size_t i = 0; i < ARRAY_COUNT(blows); i++) {
        pid_t victim = pid_of(blows[i].role, blows[i].index);
        kill(victim, blows[i].signal);
        engine_complete_with(client, bodies, REQUESTS, 12, seen);
        expect_the_truth();
        cr_expect_neq(await_other(blows[i].role, blows[i].index, victim), victim);
    }
    stop();
}

Test(survive, a_kill_every_now_and_then_is_survived_for_ever_by_an_idle_engine, .timeout = 120)
{
    start(OPTIONS);
    pid_t victim = pid_of("stage", 1);
    for (int i = 0; i < 20; i++) {
        kill(victim, SIGKILL);
        victim = await_other("stage", 1, victim);
        await_ready("stage", 1); /* one that dies while it starts has lived in vain */
    }
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
    stop();
}

static pid_t all[7];

static void read_all(void)
{
    const pid_t pids[] = {pid_of("front", 0), pid_of("sched", 0),   pid_of("stage", 0),     pid_of("stage", 1),
                          pid_of("stage", 2), pid_of("standby", 0), pid_of("supervisor", 0)};
    memcpy(all, pids, sizeof(all));
}

/* What a process has waited for a processor; as before when it is gone. */
static void read_wait(pid_t pid, unsigned long long *ns)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/schedstat", (int)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return;
    if (fscanf(file, "%*u %llu", ns) != 1)
        cr_log_info("%s holds something else", path);
    fclose(file);
}

/* Within a second from now, without the time in which one of them waited for a processor: that is the machine's, which others
 * use, too. */
static void expect_the_end(const char *of)
{
    uint64_t start_ns = clock_ns(), now_ns, waited_ns;
    unsigned long long before[ARRAY_COUNT(all)] = {0}, waits[ARRAY_COUNT(all)];
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        read_wait(all[i], &before[i]);
    memcpy(waits, before, sizeof(waits));
    size_t left;
    do {
        now_ns = clock_ns();
        left = waited_ns = 0;
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        for (size_t i = 0; i < ARRAY_COUNT(all); i++) {
            left += !engine_process_is_gone(all[i]);
            read_wait(all[i], &waits[i]);
            waited_ns += waits[i] - before[i];
        }
        wait_ms(1);
    } while (left > 0 && now_ns - start_ns < 1000000000u + waited_ns && now_ns - start_ns < 30000000000u);
    cr_expect_eq(left, 0, "%zu processes outlive supervisor and %s: after %u ms, %u of them without a processor", left,
                 of, (unsigned)((now_ns - start_ns) / 1000000), (unsigned)(waited_ns / 1000000));
    own_engine_forget(&engine);
}

/* The supervisor and another process, lost at the same moment. */
static void check_loss_with(const char *role)
{
    start(OPTIONS);
    read_all();
    pid_t other = pid_of(role, 0);
    kill(engine.pid, SIGSTOP); /* or it would have another standby before its own turn comes */
    kill(other, SIGKILL);
    kill(engine.pid, SIGKILL);
    expect_the_end(role);
}

Test(survive, nothing_is_left_when_the_supervisor_dies_together_with_another, .timeout = 120)
{
    check_loss_with("front");
    check_loss_with("stage");
    check_loss_with("standby");
}

/* Its clients' connections are nobody's then: an engine that went on would have lost their requests without a word. */
Test(survive, nothing_is_left_when_front_dies_before_a_new_supervisor_has_its_connections, .timeout = 120)
{
    struct arena inside;
    struct err err;
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* or the kernel would let the stopped one continue when the supervisor dies */
    start(OPTIONS);
    read_all();
    cr_assert_eq(inside_open(&inside, engine.pid, &err), 0, "%s", err.text);
    cr_expect(arena_is_kept(&inside));
    kill(all[0], SIGSTOP); /* it gives nothing */
    kill(engine.pid, SIGKILL);
    for (int tries = 0; arena_is_kept(&inside) && tries < 2000; tries++)
        wait_ms(1);
    cr_expect(!arena_is_kept(&inside));
    cr_expect_eq(arena_process_id(&inside, 0), (uint32_t)all[5], "the standby has not taken over");
    wait_ms(150); /* by no measure at the same moment */
    kill(all[0], SIGKILL);
    expect_the_end("a front that had given nothing");
    inside_close(&inside);
}

/* Who is stopped is ended for it. A supervisor that takes over at that time ends it soon after its predecessor's death, or
 * finds it ended. */
static void *stop_stage_and_kill_supervisor(void *unused)
{
    for (int i = 0; i < 5; i++) {
        pid_t stage = pid_of("stage", 1), standby = pid_of("standby", 0), supervisor = pid_of("supervisor", 0);
        uint64_t stopped_ns = clock_ns();
        kill(stage, SIGSTOP);
        wait_ms(220);
        kill(standby, SIGKILL); /* the next one has seen that stage stopped */
        await_other("standby", 0, standby);
        while (clock_ns() - stopped_ns < 300000000u + (uint64_t)i * 30000000u)
            wait_ms(1);
        kill(supervisor, SIGKILL);
        await_other("stage", 1, stage);
        await_ready("stage", 1);
        await_other("supervisor", 0, supervisor);
        wait_ms(150);
    }
    atomic_store(&is_over, true);
    return unused;
}

Test(survive, a_supervisor_dies_alone_while_a_process_is_ended_for_being_stopped, .timeout = 120)
{
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* or the kernel would let the stopped one continue when the supervisor dies */
    start(OPTIONS);
    survive_what(stop_stage_and_kill_supervisor, NULL);
    stop();
}

/* ---- a process is at something, and its supervisor dies ---- */

static struct arena inside;

static void start_and_look_inside(const char *options)
{
    struct err err;
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* or the kernel would let a stopped one continue when the supervisor dies */
    start(options);
    cr_assert_eq(inside_open(&inside, engine.pid, &err), 0, "%s", err.text);
}

/* Whoever takes over has front's connections and a standby, and all are ready. */
static void kill_supervisor(void)
{
    uint32_t supervisor = arena_process_id(&inside, ROLE_SUPERVISOR);
    kill((pid_t)supervisor, SIGKILL);
    for (int tries = 0; arena_process_id(&inside, ROLE_SUPERVISOR) == supervisor || !arena_is_kept(&inside) ||
                        arena_standby(&inside) == arena_process_id(&inside, ROLE_SUPERVISOR);
         tries++, wait_ms(1))
        cr_assert_lt(tries, 20000, "nobody supervises front's connections");
}

static void await_all(void)
{
    for (int tries = 0; tries < 20000 && !arena_is_ready(&inside); tries++)
        wait_ms(1);
    cr_assert(arena_is_ready(&inside), "the engine does not become ready");
    wait_ms(150); /* who dies sooner after a supervisor died together with it */
}

/* What happens to one process, to one of each sort in turn. */
static void survive_it_at_each_sort(void *(*happen)(void *number))
{
    static const uint32_t sorts[] = {ROLE_FRONT, ROLE_SCHED, ROLE_STAGE, ROLE_STAGE + 2};
    start_and_look_inside(OPTIONS);
    for (size_t i = 0; i < ARRAY_COUNT(sorts); i++) {
        uint32_t number = sorts[i];
        survive_what(happen, &number);
    }
    inside_close(&inside);
    stop();
}

/* The process is only stopped (front has connections then that nobody else has), is about to be ended for it, is
 * ended, or has a successor. */
static void *stop_and_kill_supervisor(void *pointer)
{
    const uint32_t *number = pointer;
    for (int i = 0; i < 6; i++) {
        kill((pid_t)arena_process_id(&inside, *number), SIGSTOP);
        wait_ms(i < 1 ? 0 : 270 + i * 30);
        kill_supervisor();
        await_ready("front", 0); /* it answers */
        await_all();
    }
    atomic_store(&is_over, true);
    return NULL;
}

Test(survive, a_supervisor_dies_alone_while_any_process_is_stopped_or_ended_for_it, .timeout = 120)
{
    survive_it_at_each_sort(stop_and_kill_supervisor);
}

/* The process begins its next life, and does not get on with it. */
static void *stop_successor_and_kill_supervisor(void *pointer)
{
    const uint32_t *number = pointer;
    uint32_t pid = arena_process_id(&inside, *number), standby = arena_standby(&inside);
    kill((pid_t)pid, SIGKILL);
    while (arena_process_id(&inside, *number) == pid)
        wait_ms(1);
    kill((pid_t)arena_process_id(&inside, *number), SIGSTOP);
    while (arena_standby(&inside) == standby) /* it knows of that one */
        wait_ms(1);
    kill_supervisor();
    await_ready("front", 0);
    await_all();
    atomic_store(&is_over, true);
    return NULL;
}

Test(survive, a_supervisor_dies_alone_while_any_process_begins_its_next_life, .timeout = 120)
{
    survive_it_at_each_sort(stop_successor_and_kill_supervisor);
}

/* Who dies again and again before it can do anything waits for its next life: nobody dies with the supervisor then. */
static void *let_wait_and_kill_supervisor(void *pointer)
{
    const uint32_t *number = pointer;
    uint64_t dead_ns = 0;
    for (uint32_t pid = 0; dead_ns == 0 || clock_ns() - dead_ns < 100000000u;) {
        uint32_t next = arena_process_id(&inside, *number), standby = arena_standby(&inside);
        if (next == pid)
            continue;
        pid = next;
        kill((pid_t)pid, SIGSTOP); /* it does not become ready */
        kill((pid_t)standby, SIGKILL);
        while (arena_standby(&inside) == standby) /* the next one knows that it was born */
            wait_ms(1);
        kill((pid_t)pid, SIGKILL);
        dead_ns = clock_ns();
    }
    kill_supervisor();
    await_ready("front", 0);
    await_all();
    atomic_store(&is_over, true);
    return NULL;
}

Test(survive, a_supervisor_dies_alone_while_any_process_waits_for_its_next_life, .timeout = 120)
{
    survive_it_at_each_sort(let_wait_and_kill_supervisor);
}

static void *complete_all(void *unused)
{
    engine_complete_with(client, bodies, REQUESTS, REQUESTS, seen);
    return unused;
}

/* The engine drains, or is about to end. */
static void check_end_without_supervisor(bool is_drained)
{
    pthread_t thread;
    start_and_look_inside(OPTIONS);
    read_all();
    cr_assert_eq(pthread_create(&thread, NULL, complete_all, NULL), 0);
    const struct process_shm *front = arena_process(&inside, ROLE_FRONT, 0);
    while (counter_read(front, COUNTER_FRONT_REQUESTS_ACTIVE) < REQUESTS)
        sched_yield();
    kill(engine.pid, SIGTERM);
    while (arena_command(&inside) == COMMAND_RUN || (is_drained && arena_command(&inside) != COMMAND_STOP))
        sched_yield();
    kill(engine.pid, SIGKILL);
    pthread_join(thread, NULL);
    expect_the_truth();
    for (int tries = 0; tries < 20000 && access(engine.socket, F_OK) == 0; tries++)
        wait_ms(1);
    cr_expect_eq(access(engine.socket, F_OK), -1, "the socket is left");
    expect_the_end("its requests");
    inside_close(&inside);
}

Test(survive, a_supervisor_dies_alone_while_the_engine_drains_or_ends, .timeout = 120)
{
    check_end_without_supervisor(false);
    check_end_without_supervisor(true);
}

/* ---- two at once ---- */

static void *kill_pairs(void *unused)
{
    static const uint32_t numbers[] = {ROLE_FRONT, ROLE_SCHED, ROLE_STAGE, ROLE_STAGE + 2, ROLE_SUPERVISOR};
    static const int signals[] = {SIGKILL, SIGSTOP, SIGSEGV};
    uint32_t count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        for (size_t j = i + 1; j < ARRAY_COUNT(numbers); j++) {
            bool is_standby = numbers[j] == ROLE_SUPERVISOR; /* it stands for it: the two are another test */
            pid_t first = (pid_t)arena_process_id(&inside, numbers[i]);
            pid_t second = (pid_t)(is_standby ? arena_standby(&inside) : arena_process_id(&inside, numbers[j]));
            kill(first, SIGKILL);
            kill(second, signals[count++ % ARRAY_COUNT(signals)]);
            while (!engine_process_is_gone(first) || !engine_process_is_gone(second))
                wait_ms(1);
            await_ready("front", 0);
            await_all();
        }
    }
    atomic_store(&is_over, true);
    return unused;
}

Test(survive, any_two_processes_die_at_once, .timeout = 120)
{
    start_and_look_inside(OPTIONS);
    survive_what(kill_pairs, NULL);
    inside_close(&inside);
    stop();
}

/* The kernel hangs up on a process group that loses its last tie to the session while somebody in it is stopped. */
Test(survive, an_engine_is_not_hung_up_on_when_a_supervisor_dies_while_a_process_is_stopped, .timeout = 120)
{
    start(OPTIONS);
    kill(pid_of("stage", 1), SIGSTOP);
    kill(engine.pid, SIGKILL);
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
    stop();
}

Test(survive, a_terminal_that_hangs_up_drains_the_engine, .timeout = 120)
{
    int status;
    signal(SIGHUP, SIG_DFL); /* under nohup(1) an engine stays */
    start(OPTIONS);
    read_all();
    kill(-engine.pid, SIGHUP);
    cr_expect_eq(waitpid(engine.pid, &status, 0), engine.pid);
    cr_expect_eq(status, 0);
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        cr_expect(engine_process_is_gone(all[i]));
    own_engine_forget(&engine);
}

Test(survive, a_standby_that_was_stopped_is_replaced, .timeout = 120)
{
    start(OPTIONS);
    pid_t standby = pid_of("standby", 0);
    kill(standby, SIGSTOP);
    cr_expect_neq(await_other("standby", 0, standby), standby);
    stop();
}

/* ---- programs that fail ---- */

static char points_path[64];

/* Where programs that come to named points take their orders from. */
static struct fault_page_shm *open_points(void)
{
    strcpy(points_path, "/tmp/evenflow-points-XXXXXX");
    int fd = mkstemp(points_path);
    cr_assert(fd >= 0 && ftruncate(fd, sizeof(struct fault_page_shm)) == 0);
    struct fault_page_shm *page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(page, MAP_FAILED);
    close(fd);
    setenv("EVENFLOW_FAULT_PAGE", points_path, 1);
    return page;
}

/* Of another build, in a folder beside the programs'. */
static void use_programs(const char *name)
{
    char directory[512], program_dir[600];
    const char *build = getenv("EVENFLOW_BUILD");
    cr_assert_not_null(getcwd(directory, sizeof(directory)));
    snprintf(program_dir, sizeof(program_dir), "%s/%s/%s", directory, build != NULL ? build : "build", name);
    setenv("EVENFLOW_TEST_PROGRAMS", program_dir, 1);
}

static void use_poison(const char *way, unsigned stage)
{
    char poison[64];
    snprintf(poison, sizeof(poison), "%u:%s:%u", stage, way, POISON);
    setenv("EVENFLOW_POISON", poison, 1);
    use_programs("poison");
}

static struct client_call poisoned[2];

static void *send_poison(void *pointer)
{
    const size_t count = *(const size_t *)pointer;
    static char body[128];
    snprintf(body, sizeof(body), "{\"prompt\":[9,%u,7],\"max_tokens\":20}", POISON);
    wait_ms(20);
    for (size_t i = 0; i < count; i++)
        poisoned[i] =
            (struct client_call){.method = "POST", .path = "/v1/completions", .body = body, .body_size = strlen(body)};
    client_run(engine.socket, poisoned, count, 1);
    return NULL;
}

/* So many poisoned requests, one after the other, among those that are answered as always. */
static void complete_with_poison(size_t count, const char *what)
{
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, send_poison, &count), 0);
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
    pthread_join(thread, NULL);
    for (size_t i = 0; i < count; i++) {
        cr_expect_eq(poisoned[i].status, 500, "%s: status %d %s", what, poisoned[i].status, poisoned[i].err.text);
        client_call_free(&poisoned[i]);
    }
}

/* words: what the stage must have left; NULL: anything. */
static void check_poison(const char *way, unsigned stage, const char *why, const char *words)
{
    use_poison(way, stage);
    start(OPTIONS);
    complete_with_poison(ARRAY_COUNT(poisoned), way);
    json_t *status = engine_status(&engine), *deaths = json_object_get(status, "deaths");
    json_t *death = json_array_get(deaths, 0);
    cr_expect_eq(json_array_size(deaths), 4, "%s: %zu deaths", way, json_array_size(deaths)); /* two for each */
    cr_expect_str_eq(json_string_value(json_object_get(death, "why")), why);
    cr_expect_str_eq(json_string_value(json_object_get(death, "role")), "stage");
    if (words != NULL)
        cr_expect_str_eq(json_string_value(json_object_get(death, "words")), words);
    cr_expect_gt(json_integer_value(json_object_get(death, "step")), 0);
    json_decref(status);
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
    stop();
}

Test(survive, a_request_that_makes_a_stage_fault_fails_alone, .timeout = 120)
{
    check_poison("segv", 1, "fault", NULL);
}

/* The stage is nobody's child by then, and until somebody has waited for it the kernel does not say how it ended. */
Test(survive, a_request_that_makes_a_stage_fault_fails_alone_under_a_supervisor_that_has_not_started_it, .timeout = 120)
{
    use_poison("segv", 1);
    start_and_look_inside(OPTIONS); /* its processes become ours, and we do not wait for them */
    kill_supervisor();
    wait_ms(150); /* by no measure at the same moment */
    complete_with_poison(1, "a stage of a supervisor before");
    cr_assert_eq(arena_death_count(&inside), 2);
    const struct death_shm death = arena_death(&inside, 0);
    cr_expect_eq(death.number, process_number(ROLE_STAGE, 1));
    cr_expect_eq(death.kind, DEATH_FAULT);
    cr_expect_eq(death.signal, SIGSEGV);
    inside_close(&inside);
    stop();
}

Test(survive, a_request_that_breaks_a_check_fails_alone, .timeout = 120)
{
    check_poison("check", 1, "fault", NULL);
}

Test(survive, a_request_that_makes_a_stage_run_for_ever_fails_alone, .timeout = 120)
{
    check_poison("spin", 1, "hung", NULL);
}

Test(survive, a_request_that_makes_a_stage_sleep_for_ever_fails_alone, .timeout = 120)
{
    check_poison("sleep", 1, "hung", NULL);
}

/* No word says that it has work: all results are taken, nothing is in flight, and it sleeps. */
Test(survive, a_scheduler_that_plans_nothing_for_sequences_that_run_is_replaced, .timeout = 120)
{
    setenv("EVENFLOW_IDLE_FROM", "100", 1);
    use_programs("poison");
    start(OPTIONS);
    json_t *status = engine_status(&engine), *deaths = json_object_get(status, "deaths");
    json_t *death = json_array_get(deaths, 0);
    cr_expect_eq(json_array_size(deaths), 1);
    cr_expect_str_eq(json_string_value(json_object_get(death, "role")), "sched");
    cr_expect_str_eq(json_string_value(json_object_get(death, "why")), "hung");
    json_decref(status);
    engine_complete_with(client, bodies, REQUESTS, 12, seen);
    expect_the_truth();
    stop();
}

/* It has taken all that there was for it, and what it is about to do no word shows: the first step of a request, with nothing
 * else running, and any step behind the last results. */
Test(survive, a_scheduler_that_is_stopped_before_it_has_planned_is_replaced, .timeout = 120)
{
    static const uint32_t points[] = {FAULT_JOURNAL_ANSWER, FAULT_JOURNAL_ORDER, FAULT_STEP_BEGIN, FAULT_JOURNAL_LOG};
    struct fault_page_shm *page = open_points();
    use_programs("points");
    start(OPTIONS);
    for (size_t i = 0; i < ARRAY_COUNT(points); i++) {
        pid_t victim = pid_of("sched", 0);
        fault_order(page, process_number(ROLE_SCHED, 0), points[i], 1, SIGSTOP);
        engine_complete_with(client, bodies, 1, 1, seen); /* alone: nothing else can wake anybody */
        cr_expect_eq(memcmp(seen[0].tokens, truth[0].tokens, truth[0].count * sizeof(uint32_t)), 0);
        cr_expect_neq(pid_of("sched", 0), victim, "not stopped at %s", fault_names[points[i]]);
    }
    stop();
    unlink(points_path);
}

static const char *const mixed_programs[][2] = {
    {"points", "supervisor"}, {"points", "front"}, {"points", "sched"}, {"poison", "stage"}};

/* Processes that were started with the fault page of this test. */
static size_t count_with_points(void)
{
    char path[300], text[16384];
    size_t count = 0;
    DIR *folder = opendir("/proc");
    cr_assert_not_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(path, sizeof(path), "/proc/%s/environ", entry->d_name);
        FILE *file = strtol(entry->d_name, NULL, 10) > 0 ? fopen(path, "r") : NULL;
        if (file == NULL)
            continue;
        size_t size = fread(text, 1, sizeof(text), file);
        fclose(file);
        count += memmem(text, size, points_path, strlen(points_path)) != NULL;
    }
    closedir(folder);
    return count;
}

/* While weights are loaded, at a birth, before it has a standby: an engine whose supervisor dies says that it did
 * not start, and is gone. With a standby it is there. */
Test(survive, a_supervisor_that_dies_while_its_engine_starts_leaves_nothing, .timeout = 120)
{
    static const struct {
        uint32_t point, countdown;
        bool is_survived;
    } moments[] = {{FAULT_SUPERVISOR_FORK, 3, false},    {FAULT_SUPERVISOR_FORK, 10, false},
                   {FAULT_SUPERVISOR_BIRTH, 4, false},   {FAULT_SUPERVISOR_BIRTH, 10, false},
                   {FAULT_SUPERVISOR_STANDBY, 1, false}, {FAULT_SUPERVISOR_STANDBY, 2, true}};
    struct fault_page_shm *page = open_points();
    use_programs("points");
    for (size_t i = 0; i < ARRAY_COUNT(moments); i++) {
        struct err err = {0};
        fault_order(page, process_number(ROLE_SUPERVISOR, 0), moments[i].point, moments[i].countdown, SIGKILL);
        int ret = engine_try(&engine, OPTIONS, engine_model_path(), &err);
        cr_expect_eq(fault_order_left(page, process_number(ROLE_SUPERVISOR, 0)), 0);
        cr_expect_eq(ret == 0, moments[i].is_survived, "at %s, %u: %s", fault_names[moments[i].point],
                     moments[i].countdown, err.text);
        if (ret == 0)
            stop();
        for (int tries = 0; tries < 20000 && count_with_points() > 0; tries++)
            wait_ms(1);
        cr_expect_eq(count_with_points(), 0, "at %s, %u: processes are left", fault_names[moments[i].point],
                     moments[i].countdown);
    }
    unlink(points_path);
}

/* Programs that come to named points, and stages that a token makes fail. */
static void use_poison_and_points(char *folder)
{
    char directory[512], target[640], path[128];
    const char *build = getenv("EVENFLOW_BUILD");
    use_poison("segv", 1);
    cr_assert_not_null(getcwd(directory, sizeof(directory)));
    cr_assert_not_null(mkdtemp(folder));
    for (size_t i = 0; i < ARRAY_COUNT(mixed_programs); i++) {
        const char *kind = mixed_programs[i][0], *role = mixed_programs[i][1];
        snprintf(target, sizeof(target), "%s/%s/%s/evenflow-%s", directory, build != NULL ? build : "build", kind,
                 role);
        snprintf(path, sizeof(path), "%s/evenflow-%s", folder, role);
        cr_assert_eq(symlink(target, path), 0);
    }
    setenv("EVENFLOW_TEST_PROGRAMS", folder, 1);
}

static void remove_mixed_programs(const char *folder)
{
    char path[128];
    for (size_t i = 0; i < ARRAY_COUNT(mixed_programs); i++) {
        snprintf(path, sizeof(path), "%s/evenflow-%s", folder, mixed_programs[i][1]);
        unlink(path);
    }
    rmdir(folder);
}

/* What else dies while the scheduler deals with a stage's death. */
struct trouble {
    uint32_t point, countdown; /* the scheduler, there */
    int signal;
    bool is_supervisor_meant; /* it dies while the stage waits for the scheduler */
};

/* The supervisor dies when there is a standby that knows of the stage's death. */
static void *kill_supervisor_behind_stage(void *pointer)
{
    const uint64_t *first = pointer;
    uint32_t standby, supervisor = arena_process_id(&inside, ROLE_SUPERVISOR);
    do {
        standby = arena_standby(&inside);
        wait_ms(1);
    } while (arena_death_count(&inside) == *first);
    while (arena_standby(&inside) == standby)
        wait_ms(1);
    kill((pid_t)supervisor, SIGKILL);
    while (arena_process_id(&inside, ROLE_SUPERVISOR) == supervisor)
        wait_ms(1);
    return NULL;
}

static uint32_t stage_deaths_since(uint64_t first)
{
    uint32_t count = 0;
    cr_assert_leq(arena_death_count(&inside) - first, DEATHS_KEPT);
    for (uint64_t k = first; k < arena_death_count(&inside); k++)
        count += arena_death(&inside, k).number >= ROLE_STAGE;
    return count;
}

Test(survive, a_poisoned_request_costs_two_lives_whatever_else_dies, .timeout = 120)
{
    static const struct trouble troubles[] = {
        {FAULT_STEP_CANCEL, 1, SIGKILL, false}, {FAULT_STEP_CANCEL, 2, SIGKILL, false},
        {FAULT_DEAL_WITH, 1, SIGKILL, false},   {FAULT_DEAL_WITH, 2, SIGKILL, false},
        {FAULT_DEAL_WITH, 3, SIGKILL, false},   {FAULT_DEAL_WITH, 4, SIGKILL, false},
        {FAULT_DEAL_WITH, 1, SIGSTOP, false},   {FAULT_STEP_CANCEL, 1, SIGSTOP, true},
        {FAULT_DEAL_WITH, 1, SIGSTOP, true},    {FAULT_DEAL_WITH, 3, SIGSTOP, false}};
    char folder[] = "/tmp/evenflow-programs-XXXXXX", what[64];
    struct err err;
    struct fault_page_shm *page = open_points();
    use_poison_and_points(folder);
    start(OPTIONS);
    cr_assert_eq(inside_open(&inside, engine.pid, &err), 0, "%s", err.text);
    for (size_t i = 0; i < ARRAY_COUNT(troubles); i++) {
        const struct trouble *trouble = &troubles[i];
        uint32_t restarts = arena_process_restarts(&inside, ROLE_STAGE + 1);
        uint64_t first = arena_death_count(&inside);
        pthread_t thread;
        snprintf(what, sizeof(what), "sched at %s, %u, signal %d%s", fault_names[trouble->point], trouble->countdown,
                 trouble->signal, trouble->is_supervisor_meant ? ", supervisor" : "");
        fault_order(page, process_number(ROLE_SCHED, 0), trouble->point, trouble->countdown, trouble->signal);
        if (trouble->is_supervisor_meant)
            cr_assert_eq(pthread_create(&thread, NULL, kill_supervisor_behind_stage, &first), 0);
        complete_with_poison(1, what);
        if (trouble->is_supervisor_meant)
            pthread_join(thread, NULL);
        while (arena_process_restarts(&inside, ROLE_STAGE + 1) < restarts + 2 || !arena_is_ready(&inside))
            wait_ms(1);
        cr_expect_eq(fault_order_left(page, process_number(ROLE_SCHED, 0)), 0, "%s: did not come there", what);
        cr_expect_eq(stage_deaths_since(first), 2, "%s: %u lives of stages", what, stage_deaths_since(first));
    }
    inside_close(&inside);
    stop();
    unlink(points_path);
    remove_mixed_programs(folder);
}

/* 8 places of others' memory, 64 descriptors, and what else there is; each tried from within the last stage. */
Test(survive, a_stage_that_was_taken_over_can_reach_nothing, .timeout = 120)
{
    check_poison("escape", 2, "fault", "escape:0: 366 attempts refused, 0 not");
}
