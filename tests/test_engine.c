/* test_engine.c - the whole engine from outside: answers, status, aborts, leaks, the end. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <poll.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/sandbox.h"
#include "tests/engine.h"
#include "tests/forbid.h"

static uint32_t open_descriptors(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    cr_assert_not_null(directory);
    uint32_t count = 0;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* User and system time of a process, in ticks. */
static unsigned long cpu_ticks(pid_t pid)
{
    char path[64], line[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    cr_assert_not_null(fgets(line, sizeof(line), file));
    fclose(file);
    unsigned long user, system;
    cr_assert_eq(sscanf(strrchr(line, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system),
                 2);
    return user + system;
}

static const char chat_body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"What is the capital of France.\"}],"
                                "\"max_tokens\":40,\"temperature\":0}";

Test(engine, answers_a_question_over_the_socket, .timeout = 120)
{
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    int status;
    json_t *answer = engine_post(&engine, "/v1/chat/completions", chat_body, &status);
    cr_assert_eq(status, 200);
    json_t *choice = json_array_get(json_object_get(answer, "choices"), 0);
    const char *text = json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
    cr_assert_not_null(text);
    cr_expect(strstr(text, "Paris") != NULL, "the answer is: %s", text);
    json_decref(answer);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(engine, shows_every_process, .timeout = 120)
{
    struct own_engine engine;
    engine_start(&engine, "-p 3");
    cr_assert_eq(engine_pid(&engine, "supervisor", 0), engine.pid);
    engine_pid(&engine, "front", 0);
    engine_pid(&engine, "sched", 0);
    for (int stage = 0; stage < 3; stage++)
        engine_pid(&engine, "stage", stage);
    int status;
    json_decref(engine_get(&engine, "/ready", &status));
    cr_assert_eq(status, 200);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

/* A number of /proc/PID/status. */
static long status_number(pid_t pid, const char *name)
{
    char path[64], line[256];
    long value = -1;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file);
    while (value < 0 && fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            value = strtol(line + strlen(name) + 1, NULL, 10);
    fclose(file);
    return value;
}

Test(engine, who_reads_what_clients_send_has_no_way_out, .timeout = 120)
{
    static const char *const roles[] = {"front", "sched", "stage"};
    struct own_engine engine;
    if (!sandbox_is_possible())
        cr_skip_test("this system has no system call filters");
    engine_start(&engine, "-p 2 --backend timed --cost tests/data/quick.pipeline.json");
    for (size_t i = 0; i < ARRAY_COUNT(roles); i++) {
        pid_t pid = engine_pid(&engine, roles[i], 0);
        cr_expect_eq(status_number(pid, "NoNewPrivs"), 1, "%s", roles[i]);
        cr_expect_eq(status_number(pid, "Seccomp"), 2, "%s", roles[i]); /* 2: a filter */
    }
    struct stat socket;
    cr_assert_eq(stat(engine.socket, &socket), 0);
    cr_expect(S_ISSOCK(socket.st_mode) && (socket.st_mode & 0777) == 0600, "%o", socket.st_mode);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(engine, refuses_wrong_input_with_an_error_object, .timeout = 120)
{
    static const struct {
        const char *path, *body, *param;
        int status;
    } cases[] = {
        {"/v1/completions", "{", "", 400},
        {"/v1/completions", "[]", "", 400},
        {"/v1/completions", "{}", "prompt", 400},
        {"/v1/completions", "{\"prompt\":7}", "prompt", 400},
        {"/v1/completions", "{\"prompt\":[49152]}", "prompt", 400},
        {"/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":\"x\"}", "max_tokens", 400},
        {"/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":100000}", "max_tokens", 400},
        {"/v1/completions", "{\"prompt\":\"a\",\"temperature\":-1}", "temperature", 400},
        {"/v1/completions", "{\"prompt\":\"a\",\"model\":\"other\"}", "model", 404},
        {"/v1/chat/completions", "{\"messages\":[]}", "messages", 400},
        {"/v1/chat/completions", "{\"messages\":[{\"role\":\"user\"}]}", "messages", 400},
        {"/v1/nothing", "{}", "", 404},
    };
    struct own_engine engine;
    engine_start(&engine, "-p 1");
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int status;
        json_t *answer = engine_post(&engine, cases[i].path, cases[i].body, &status);
        cr_expect_eq(status, cases[i].status, "%s %s: %d", cases[i].path, cases[i].body, status);
        json_t *error = json_object_get(answer, "error");
        cr_expect(json_is_string(json_object_get(error, "message")), "%s", cases[i].body);
        const char *param = json_string_value(json_object_get(error, "param"));
        if (cases[i].param[0] != '\0')
            cr_expect(param != NULL && strncmp(param, cases[i].param, strlen(cases[i].param)) == 0, "%s: param is %s",
                      cases[i].body, param);
        json_decref(answer);
    }
    cr_assert_eq(own_engine_stop(&engine), 0);
}

/* Its first choice's ids; how many. */
static uint32_t ids_of(const struct own_engine *engine, const char *body, uint32_t *ids, uint32_t ids_max)
{
    int status;
    json_t *answer = engine_post(engine, "/v1/completions", body, &status);
    cr_assert_eq(status, 200, "%s", body);
    json_t *list = json_object_get(json_array_get(json_object_get(answer, "choices"), 0), "token_ids"), *id;
    size_t i;
    cr_assert_leq(json_array_size(list), ids_max);
    json_array_foreach(list, i, id)
        ids[i] = (uint32_t)json_integer_value(id);
    uint32_t count = (uint32_t)json_array_size(list);
    json_decref(answer);
    return count;
}

/* Its end tokens are 0 and 2. */
Test(engine, no_token_that_ends_an_answer_is_drawn_before_min_tokens, .timeout = 120)
{
    struct own_engine engine;
    uint32_t ids[16], first;
    char body[256];
    engine_start(&engine, "-p 2");
#define BODY "{\"prompt\":\"The capital of France is\",\"temperature\":0,\"return_token_ids\":true,\"max_tokens\":12"
    ids_of(&engine, BODY "}", ids, 16);
    first = ids[0];
    cr_expect_eq(ids_of(&engine, BODY ",\"logit_bias\":{\"2\":100}}", ids, 16), 1);
    cr_expect_eq(ids_of(&engine, BODY ",\"logit_bias\":{\"2\":100},\"min_tokens\":5}", ids, 16), 6);
    for (uint32_t i = 0; i < 6; i++)
        cr_expect_eq(ids[i] == 0 || ids[i] == 2, i == 5, "token %u is %u", i, ids[i]);
    /* vLLM's too: with ignore_eos they are not drawn either */
    cr_expect_eq(ids_of(&engine, BODY ",\"logit_bias\":{\"2\":100},\"min_tokens\":5,\"ignore_eos\":true}", ids, 16),
                 12);
    for (uint32_t i = 0; i < 12; i++)
        cr_expect_eq(ids[i] == 2, i >= 5, "token %u is %u", i, ids[i]);
    snprintf(body, sizeof(body), BODY ",\"stop_token_ids\":[%u],\"logit_bias\":{\"%u\":100},\"min_tokens\":3}", first,
             first);
    cr_expect_eq(ids_of(&engine, body, ids, 16), 4);
    for (uint32_t i = 0; i < 4; i++)
        cr_expect_eq(ids[i] == first, i == 3, "token %u is %u", i, ids[i]);
#undef BODY
    cr_assert_eq(own_engine_stop(&engine), 0);
}

/* The text of a choice and its number of ids. */
static uint32_t choice_of(json_t *answer, size_t choice, const char **text)
{
    json_t *one = json_array_get(json_object_get(answer, "choices"), choice);
    *text = json_string_value(json_object_get(one, "text"));
    cr_assert_not_null(*text);
    return (uint32_t)json_array_size(json_object_get(one, "token_ids"));
}

Test(engine, a_stop_string_ends_the_work_for_its_choice_alone, .timeout = 120)
{
    struct own_engine engine;
    int status;
    engine_start(&engine, "-p 2");
#define BODY                                                                                                           \
    "\"prompt\":\"Once upon a time\",\"temperature\":1,\"seed\":5,\"n\":2,\"max_tokens\":120,\"ignore_eos\":true,"     \
    "\"return_token_ids\":true"
    json_t *plain = engine_post(&engine, "/v1/completions", "{" BODY "}", &status);
    const char *ended, *other, *text;
    choice_of(plain, 0, &ended);
    choice_of(plain, 1, &other);
    char stop[7] = "";
    for (size_t at = 20; at < 120 && (stop[0] == '\0' || strstr(other, stop) != NULL || strstr(stop, "\n") != NULL);
         at++)
        memcpy(stop, ended + at, 6);
    uint64_t before = engine_metric(&engine, "evenflow_generation_tokens_total");
    json_t *body = json_loads("{" BODY "}", 0, NULL);
    json_object_set_new(body, "stop", json_string(stop));
    char *body_text = json_dumps(body, 0);
    json_t *answer = engine_post(&engine, "/v1/completions", body_text, &status);
    cr_assert_eq(status, 200, "%s", body_text);
    uint32_t few = choice_of(answer, 0, &text);
    cr_expect_eq(strncmp(ended, text, strlen(text)), 0);
    cr_expect_eq(strncmp(ended + strlen(text), stop, 6), 0, "%s, not '%s'", text, stop);
    cr_expect_lt(few, 60);
    cr_expect_eq(choice_of(answer, 1, &text), 120);
    cr_expect_str_eq(text, other);
    json_t *usage = json_object_get(answer, "usage");
    cr_expect_eq(json_integer_value(json_object_get(usage, "completion_tokens")), few + 120);
    /* beyond what counts, only what was under way when the stop string was found; an answer may be there before the counter */
    uint64_t generated = 0;
    for (uint64_t end = clock_ns() + 5000000000ull; generated < few + 120 && clock_ns() < end;)
        generated = engine_metric(&engine, "evenflow_generation_tokens_total") - before;
    cr_expect(generated >= few + 120 && generated < few + 120 + 20, "%llu tokens for %u", (unsigned long long)generated,
              few + 120);
    free(body_text);
    json_decref(body);
    json_decref(answer);
    json_decref(plain);
#undef BODY
    cr_assert_eq(own_engine_stop(&engine), 0);
}

/* Whether a process has such a descriptor open. */
static bool has_descriptor(pid_t pid, const char *name)
{
    char path[64], target[256];
    bool is_there = false;
    for (int fd = 0; fd < 256 && !is_there; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
        ssize_t size = readlink(path, target, sizeof(target) - 1);
        target[size > 0 ? size : 0] = '\0';
        is_there = strcmp(target, name) == 0;
    }
    return is_there;
}

Test(engine, serves_with_epoll_where_io_uring_is_forbidden, .timeout = 120)
{
    struct own_engine engine;
    int status;
    forbid_call(SYS_io_uring_setup, EPERM);
    engine_start(&engine, "-p 2");
    json_decref(engine_post(&engine, "/v1/chat/completions", chat_body, &status));
    cr_expect_eq(status, 200);
    pid_t front = engine_pid(&engine, "front", 0);
    cr_expect(has_descriptor(front, "anon_inode:[eventpoll]"));
    cr_expect_not(has_descriptor(front, "anon_inode:[io_uring]"));
    cr_assert_eq(own_engine_stop(&engine), 0);
}

static uint32_t ended[8], ended_count;

static void note_end(struct client_call *call, void *context)
{
    (void)call;
    ended[ended_count++] = *(uint32_t *)context;
}

/* Of several that wait behind one that runs. */
Test(engine, by_priority_the_smaller_number_comes_first, .timeout = 120)
{
    static const int priorities[] = {-7, 5, 3, 4, 1, 2};
    static const uint32_t expected[] = {0, 4, 5, 2, 3, 1};
    struct client_call calls[ARRAY_COUNT(priorities)];
    char bodies[ARRAY_COUNT(priorities)][160];
    uint32_t numbers[ARRAY_COUNT(priorities)];
    struct own_engine engine;
    engine_start(&engine, "-p 1 --max-num-seqs 1 --scheduling-policy priority");
    for (uint32_t i = 0; i < ARRAY_COUNT(priorities); i++) {
        numbers[i] = i;
        snprintf(bodies[i], sizeof(bodies[i]),
                 "{\"prompt\":\"Number\",\"max_tokens\":%u,\"ignore_eos\":true,\"priority\":%d}", i == 0 ? 60 : 2,
                 priorities[i]);
        calls[i] = (struct client_call){.method = "POST",
                                        .path = "/v1/completions",
                                        .body = bodies[i],
                                        .body_size = strlen(bodies[i]),
                                        .on_done = note_end,
                                        .context = &numbers[i]};
    }
    client_run(engine.socket, calls, ARRAY_COUNT(priorities), ARRAY_COUNT(priorities));
    cr_assert_eq(ended_count, ARRAY_COUNT(priorities));
    for (uint32_t i = 0; i < ARRAY_COUNT(priorities); i++) {
        cr_expect_eq(calls[i].status, 200);
        cr_expect_eq(ended[i], expected[i], "place %u: request %u, not %u", i, ended[i], expected[i]);
        client_call_free(&calls[i]);
    }
    cr_assert_eq(own_engine_stop(&engine), 0);
}

static void count_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    (void)context;
    (void)data;
    (void)size;
}

struct levels {
    uint32_t descriptors[5];
    uint64_t blocks, request_slots, sequence_slots, prompt_pages, log_pages;
};

/* A client sees the end of an answer before front has closed the connection, so the least of some counts is taken: a
 * descriptor that is leaked is there in all of them. */
static void measure_levels(const struct own_engine *engine, const pid_t *pids, struct levels *levels)
{
    for (int i = 0; i < 5; i++)
        levels->descriptors[i] = open_descriptors(pids[i]);
    for (int round = 0; round < 20; round++) {
        engine_metric(engine, "evenflow_connections_open");
        for (int i = 0; i < 5; i++)
            levels->descriptors[i] = (uint32_t)min_u64(levels->descriptors[i], open_descriptors(pids[i]));
    }
    levels->blocks = engine_metric(engine, "evenflow_kv_blocks_free");
    levels->request_slots = engine_metric(engine, "evenflow_request_slots_free");
    levels->sequence_slots = engine_metric(engine, "evenflow_sequence_slots_free");
    levels->prompt_pages = engine_metric(engine, "evenflow_prompt_pages_free");
    levels->log_pages = engine_metric(engine, "evenflow_log_pages_free");
}

static bool are_same(const struct levels *a, const struct levels *b)
{
    return memcmp(a->descriptors, b->descriptors, sizeof(a->descriptors)) == 0 && a->blocks == b->blocks &&
           a->request_slots == b->request_slots && a->sequence_slots == b->sequence_slots &&
           a->prompt_pages == b->prompt_pages && a->log_pages == b->log_pages;
}

static void check_no_leak(const struct levels *before, const struct levels *after)
{
    for (int i = 0; i < 5; i++)
        cr_expect_eq(before->descriptors[i], after->descriptors[i], "process %d: %u descriptors, before %u", i,
                     after->descriptors[i], before->descriptors[i]);
    cr_expect_eq(before->blocks, after->blocks);
    cr_expect_eq(before->request_slots, after->request_slots);
    cr_expect_eq(before->sequence_slots, after->sequence_slots);
    cr_expect_eq(before->prompt_pages, after->prompt_pages);
    cr_expect_eq(before->log_pages, after->log_pages);
}

/* Until every accepted request is drained: an abort is done when its step is back. */
static void wait_until_quiet(const struct own_engine *engine)
{
    uint64_t deadline_ns = clock_ns() + 60000000000ull;
    while (engine_metric(engine, "evenflow_requests_active") != 0 ||
           engine_metric(engine, "evenflow_steps_in_flight") != 0)
        cr_assert_lt(clock_ns(), deadline_ns, "requests stay active");
}

#define REQUESTS 1000u
#define ABORTS   50u

Test(engine, a_thousand_requests_and_fifty_aborts_leave_nothing_behind, .timeout = 600)
{
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    const pid_t pids[5] = {engine.pid, engine_pid(&engine, "front", 0), engine_pid(&engine, "sched", 0),
                           engine_pid(&engine, "stage", 0), engine_pid(&engine, "stage", 1)};
    struct levels before, after;
    measure_levels(&engine, pids, &before);

    struct client_call *calls = base_alloc((REQUESTS + ABORTS) * sizeof(*calls));
    static char bodies[REQUESTS + ABORTS][160];
    for (uint32_t i = 0; i < REQUESTS + ABORTS; i++) {
        bool is_abort = i % 21 == 20;
        snprintf(bodies[i], sizeof(bodies[i]),
                 "{\"prompt\":\"Number %u is\",\"max_tokens\":%u,\"stream\":%s,\"ignore_eos\":true}", i,
                 is_abort ? 400 : 1 + i % 4, is_abort || i % 2 ? "true" : "false");
        calls[i] = (struct client_call){.method = "POST",
                                        .path = "/v1/completions",
                                        .body = bodies[i],
                                        .body_size = strlen(bodies[i]),
                                        .on_event = count_event,
                                        .abandon_after_events = is_abort ? 1 + i % 3 : 0};
    }
    client_run(engine.socket, calls, REQUESTS + ABORTS, 32);
    uint32_t answered = 0, aborted = 0;
    for (uint32_t i = 0; i < REQUESTS + ABORTS; i++) {
        answered += calls[i].status == 200;
        aborted += calls[i].status == 0 && calls[i].abandon_after_events != 0;
        client_call_free(&calls[i]);
    }
    cr_expect_eq(answered, REQUESTS, "%u of %u were answered", answered, REQUESTS);
    cr_expect_eq(aborted, ABORTS, "%u of %u were aborted", aborted, ABORTS);
    wait_until_quiet(&engine);
    /* on a busy machine every round of a measurement may come before a close: what is late comes, what is leaked does not */
    uint64_t deadline_ns = clock_ns() + 10000000000ull;
    do
        measure_levels(&engine, pids, &after);
    while (!are_same(&before, &after) && clock_ns() < deadline_ns);
    check_no_leak(&before, &after);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

Test(engine, takes_no_processor_time_while_idle, .timeout = 120)
{
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    int status;
    json_decref(engine_post(&engine, "/v1/chat/completions", chat_body, &status));
    const pid_t pids[5] = {engine.pid, engine_pid(&engine, "front", 0), engine_pid(&engine, "sched", 0),
                           engine_pid(&engine, "stage", 0), engine_pid(&engine, "stage", 1)};
    unsigned long before = 0, after = 0;
    for (int i = 0; i < 5; i++)
        before += cpu_ticks(pids[i]);
    poll(NULL, 0, 3000); /* three seconds of nothing: what is measured */
    for (int i = 0; i < 5; i++)
        after += cpu_ticks(pids[i]);
    /* 1 % of one core is 3 ticks of 10 ms */
    cr_expect_leq(after - before, 3, "%lu ticks in 3 s", after - before);
    cr_assert_eq(own_engine_stop(&engine), 0);
}

struct stop_during_answer {
    const struct own_engine *engine;
    int signals;
    bool is_sent;
};

static void stop_on_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    (void)data;
    (void)size;
    struct stop_during_answer *stop = context;
    if (stop->is_sent)
        return;
    stop->is_sent = true;
    for (int i = 0; i < stop->signals; i++) {
        kill(stop->engine->pid, SIGTERM);
        int status = 200; /* two signals are two only when the first has been seen */
        while (i + 1 < stop->signals && status == 200)
            json_decref(engine_get(stop->engine, "/health", &status));
    }
}

static struct client_call stream_long_answer(const struct own_engine *engine, struct stop_during_answer *stop)
{
    static const char body[] =
        "{\"prompt\":\"Once upon a time\",\"max_tokens\":200,\"stream\":true,\"ignore_eos\":true}";
    struct client_call call = {.method = "POST",
                               .path = "/v1/completions",
                               .body = body,
                               .body_size = sizeof(body) - 1,
                               .on_event = stop_on_event,
                               .context = stop};
    client_run(engine->socket, &call, 1, 1);
    return call;
}

static int wait_for_end(const struct own_engine *engine)
{
    int status;
    cr_assert_eq(waitpid(engine->pid, &status, 0), engine->pid);
    cr_expect_neq(access(engine->socket, F_OK), 0, "the socket is still there");
    own_engine_forget(engine);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Test(engine, a_first_signal_drains_and_a_request_in_progress_is_finished, .timeout = 120)
{
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    struct stop_during_answer stop = {.engine = &engine, .signals = 1};
    struct client_call call = stream_long_answer(&engine, &stop);
    cr_expect_eq(call.status, 200);
    cr_expect_geq(call.event_count, 201, "%llu events", (unsigned long long)call.event_count);
    cr_expect_eq(wait_for_end(&engine), 0);
}

Test(engine, a_second_signal_stops_at_once, .timeout = 120)
{
    struct own_engine engine;
    engine_start(&engine, "-p 2");
    struct stop_during_answer stop = {.engine = &engine, .signals = 2};
    struct client_call call = stream_long_answer(&engine, &stop);
    cr_expect_eq(call.status, 0);
    cr_expect_lt(call.event_count, 200);
    wait_for_end(&engine);
}
