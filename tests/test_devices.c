/* test_devices.c - engines with stages on devices, whole: what is asked for and cannot be had, answers, deaths. On what
 * stands in for CUDA's driver, or on a real one that EVENFLOW_LIBCUDA names; a tiny model. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/command.h"
#include "tests/engine.h"
#include "tests/fake_cuda.h"
#include "tests/tiny_model.h"
#include "tools/devices.h"

#define REQUESTS 12u
#define KILLS    24u

static struct completion truth[REQUESTS], seen[REQUESTS];
static char *bodies[REQUESTS];
static char folder[] = "/tmp/evenflow-test-devices-XXXXXX", model[64];
static struct own_engine engine;
static struct outcome outcome;

/* The second device, where there are two for sure. */
static const char *second;

static void use_devices(void)
{
    second = getenv("EVENFLOW_LIBCUDA") == NULL ? "cuda:1" : "cuda:0";
    fake_cuda_use();
}

/* Likewise with NCCL, where a real driver goes with one that is named as well. */
static void use_nccl(void)
{
    const char *other = getenv("EVENFLOW_SECOND_DEVICE");
    if (getenv("EVENFLOW_LIBCUDA") != NULL && getenv("EVENFLOW_LIBNCCL") == NULL)
        cr_skip_test("EVENFLOW_LIBNCCL names no NCCL for this driver");
    use_devices();
    if (other != NULL)
        second = other;
}

/* A model of four layers that an engine can serve, and requests for it. */
static void set_up(void)
{
    struct tiny_model tiny = tiny_model();
    tiny.layers = 4;
    tiny.has_tokenizer = true;
    cr_assert_not_null(mkdtemp(folder));
    snprintf(model, sizeof(model), "%s/tiny.gguf", folder);
    tiny_model_write(&tiny, model);
    for (unsigned i = 0; i < REQUESTS; i++) {
        static const char *const more[] = {"", ",\"temperature\":0.8", ",\"repetition_penalty\":1.3,\"logprobs\":3",
                                           ",\"temperature\":1,\"top_k\":20,\"n\":2"};
        bodies[i] = malloc(512);
        snprintf(bodies[i], 512,
                 "{\"prompt\":[%u,%u,%u,5,7,%u,9,3,2,8,11,12,13,14,15,16,17,18],\"max_tokens\":%u,\"seed\":%u,"
                 "\"ignore_eos\":true,\"return_token_ids\":true,\"return_logits_hash\":true%s%s}",
                 1 + i % 3, 20 + i, 30 + i, 40 + i, 20 + i, i, i % 4 == 0 || i % 4 == 2 ? ",\"temperature\":0" : "",
                 more[i % 4]);
    }
}

static void tear_down(void)
{
    unlink(model);
    rmdir(folder);
}

/* %s in the options: the second device. */
static void start(const char *options)
{
    char all[512] = "--isa ref --num-blocks 100 --no-weights-cache --max-num-seqs 8 ";
    size_t used = strlen(all);
    for (const char *c = options; *c != '\0' && used + 8 < sizeof(all); c++) {
        bool is_second = *c == '%';
        used += (size_t)snprintf(all + used, sizeof(all) - used, "%.*s", is_second ? 6 : 1, is_second ? second : c);
        c += is_second;
    }
    engine_start_model(&engine, all, model);
}

static void answers_of(const char *options, struct completion *answers)
{
    start(options);
    engine_complete(&engine, bodies, REQUESTS, 6, answers);
    cr_expect_eq(own_engine_stop(&engine), 0, "%s", options);
}

static void expect_the_truth(const char *what)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        cr_expect_eq(seen[i].count, 20 + i, "%s: answer %u has %u tokens", what, i, seen[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0,
                     "%s: tokens of answer %u", what, i);
        cr_expect_eq(memcmp(seen[i].hashes, truth[i].hashes, truth[i].count * sizeof(uint64_t)), 0,
                     "%s: logits of answer %u", what, i);
        cr_expect_eq(seen[i].choices, truth[i].choices, "%s: choices of answer %u", what, i);
    }
}

/* ---- what is asked for ---- */

Test(devices, a_list_names_one_for_each_stage_or_one_for_all)
{
    uint32_t devices[STAGES_MAX];
    struct err err = {0};
    cr_expect_eq(devices_parse("", 2, devices, &err), 0);
    cr_expect(devices[0] == DEVICE_CPU && devices[1] == DEVICE_CPU);
    cr_expect_eq(devices_parse("cuda:0,cpu,cuda:63", 3, devices, &err), 0, "%s", err.text);
    cr_expect(devices[0] == 1 && devices[1] == DEVICE_CPU && devices[2] == 64);
    cr_expect_eq(devices_parse("cuda:1", 3, devices, &err), 0, "%s", err.text);
    cr_expect(devices[0] == 2 && devices[1] == 2 && devices[2] == 2);
    static const char *const wrong[] = {"cuda", "cuda:", "cuda:64",  "cuda:-1", "cuda:0,",
                                        ",cpu", "gpu:0", "cuda:0x1", "cpu,cpu"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        cr_expect_lt(devices_parse(wrong[i], 3, devices, &err), 0, "%s", wrong[i]);
    cr_expect_not_null(strstr(err.text, "names 2 for 3 stages"), "%s", err.text);
}

static void no_nccl(void)
{
    setenv("EVENFLOW_LIBNCCL", "/nowhere/libnccl.so.2", 1);
}

static void expect_refusal(const char *wish, const char *options, int status, const char *words)
{
    char arguments[256];
    fake_cuda_wish(wish);
    snprintf(arguments, sizeof(arguments), "serve --no-weights-cache --socket %s/refused.sock %s %s", folder, options,
             model);
    cr_expect_eq(command_run(&outcome, arguments, NULL), status, "%s: status %d", options, outcome.status);
    cr_expect_not_null(strstr(outcome.err, words), "%s, %s: %s", wish, options, outcome.err);
}

Test(devices, what_cannot_be_had_is_refused_at_the_start_and_says_why, .init = set_up, .fini = tear_down)
{
    expect_refusal("devices=1", "--devices cuda:0,cuda:1", 1, "there is no device cuda:1: the CUDA driver finds 1");
    expect_refusal("devices=0", "--devices cuda:0", 1, "finds no device");
    expect_refusal("driver=11080", "--devices cuda:0", 1, "12.0 or later is needed");
    expect_refusal("export=0", "--devices cuda:0 --gpu-memory vmm", 1, "cannot export memory");
    expect_refusal("memory=4194304", "--devices cuda:0 --gpu-memory ipc", 1,
                   "the KV cache; 4 MiB were free at the start");
    expect_refusal("memory=4194304", "--devices cuda:0", 1, "the KV cache; 4 MiB were free at the start");
    expect_refusal("", "--devices cuda:0,cpu,cpu", 2, "names 3 for 2 stages");
    expect_refusal("", "--devices cuda:0 --gpu-memory managed", 2, "must be auto, vmm or ipc");
    expect_refusal("peer=0", "--devices cuda:0,cuda:1 --edges device", 1, "cuda:0 cannot write to memory of cuda:1");
    expect_refusal("", "--devices cuda:0,cpu --edges device", 1, "cuda:0 cannot write to memory of cpu");
    expect_refusal("", "--edges device", 2, "no stage is on a device");
    expect_refusal("", "--devices cuda:0 --edges wire", 2, "must be auto, host, device or nccl");
    expect_refusal("", "--devices cuda:0,cpu --edges nccl", 1, "cuda:0 to cpu: NCCL joins CUDA devices");
    expect_refusal("", "--edges nccl", 2, "--edges nccl: no stage is on a device");
    fake_nccl_wish("version=21603");
    expect_refusal("", "--devices cuda:0,cuda:1 --edges nccl", 1, "NCCL 2.16.3 is too old: 2.17 or later is needed");
    no_nccl();
    expect_refusal("", "--devices cuda:0,cuda:1 --edges nccl", 1,
                   "--edges nccl: cuda:0 to cuda:1: no NCCL: /nowhere/libnccl.so.2: cannot open");
    expect_refusal("", "--devices tpu:0", 2, "\"tpu:0\" is no device");
    expect_refusal("", "--devices cuda:0 --backend timed --cost tests/data/timed_fast.pipeline.json", 2,
                   "timed stages compute nothing");
    setenv("EVENFLOW_LIBCUDA", "libcuda-of-nobody.so.1", 1);
    char arguments[256];
    snprintf(arguments, sizeof(arguments), "serve --devices cuda:0 --socket %s/refused.sock %s", folder, model);
    cr_expect_eq(command_run(&outcome, arguments, NULL), 1);
    cr_expect_not_null(strstr(outcome.err, "no CUDA driver: libcuda-of-nobody.so.1"), "%s", outcome.err);
}

/* ---- answers ---- */

static bool maps_the_driver(const char *role, int index)
{
    char path[64], line[512];
    bool is_there = false;
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)engine_pid(&engine, role, index));
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    while (fgets(line, sizeof(line), file) != NULL)
        is_there = is_there || strstr(line, "libcuda") != NULL;
    fclose(file);
    return is_there;
}

/* Events of a streamed answer; the texts of its choice are put together. */
static void take_event(struct client_call *call, void *context, const char *data, size_t size)
{
    (void)call;
    json_t *event = json_loadb(data, size, 0, NULL);
    const char *text = json_string_value(json_object_get(json_array_get(json_object_get(event, "choices"), 0), "text"));
    strcat(context, text != NULL ? text : "");
    json_decref(event);
}

Test(devices, a_stage_on_a_device_beside_one_on_the_processor_serves_answers, .init = set_up, .fini = tear_down,
     .timeout = 60)
{
    use_devices();
    start("-p 2 --devices cuda:0,cpu");
    int status;
    json_t *report = engine_get(&engine, "/status", &status), *stages = json_object_get(report, "stages");
    cr_expect_str_eq(json_string_value(json_object_get(json_array_get(stages, 0), "device")), "cuda:0");
    cr_expect_str_eq(json_string_value(json_object_get(json_array_get(stages, 1), "device")), "cpu");
    const char *fingerprint = json_string_value(json_object_get(report, "fingerprint"));
    cr_expect_not_null(strstr(fingerprint, "backend=cuda"), "%s", fingerprint);
    cr_expect_not_null(strstr(fingerprint, "-3 kv=f16"), "%s", fingerprint);
    json_decref(report);
    /* nobody but the stage on it has anything to do with a device */
    cr_expect(maps_the_driver("stage", 0));
    cr_expect_not(maps_the_driver("stage", 1));
    cr_expect_not(maps_the_driver("supervisor", 0));
    cr_expect_not(maps_the_driver("front", 0));
    cr_expect_not(maps_the_driver("sched", 0));
    engine_complete(&engine, bodies, REQUESTS, 6, truth);
    engine_complete(&engine, bodies, REQUESTS, 1, seen);
    expect_the_truth("one after the other");
    char body[600], streamed[1024] = "";
    struct client_call call = {
        .method = "POST", .path = "/v1/completions", .on_event = take_event, .context = streamed};
    snprintf(body, sizeof(body), "{\"stream\":true,%s", bodies[0] + 1);
    call.body = body;
    call.body_size = strlen(body);
    client_run(engine.socket, &call, 1, 1);
    cr_expect_eq(call.status, 200);
    cr_expect_geq(call.event_count, 20u, "%llu events", (unsigned long long)call.event_count);
    cr_expect_str_eq(streamed, truth[0].text);
    client_call_free(&call);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* Greedy answers: where the most probable token is ahead by more than what halves and int8 differ by, both find it. Random
 * models of this size are not always so sure, so it is counted. */
Test(devices, most_greedy_tokens_are_those_of_the_processor, .init = set_up, .fini = tear_down, .timeout = 60)
{
    use_devices();
    answers_of("-p 2", truth);
    answers_of("-p 2 --devices cuda:0,%s", seen);
    uint32_t same = 0, count = 0;
    for (uint32_t i = 0; i < REQUESTS; i += 4) /* those without penalties */
        for (uint32_t j = 0; j < truth[i].count && truth[i].tokens[j] == seen[i].tokens[j]; j++)
            same++;
    for (uint32_t i = 0; i < REQUESTS; i += 4)
        count += truth[i].count;
    printf("%u of %u greedy tokens are the processor's\n", same, count);
    cr_expect_geq(same, count / 2);
}

Test(devices, the_same_bits_whatever_the_stages_and_devices, .init = set_up, .fini = tear_down, .timeout = 60)
{
    use_devices();
    answers_of("-p 1 --devices cuda:0", truth);
    answers_of("-p 2 --devices cuda:0,cuda:0 --no-cuda-graphs", seen);
    expect_the_truth("two stages on one device, kernels launched one by one");
    answers_of("-p 4 --devices cuda:0,%s,%s,cuda:0 --max-num-batched-tokens 8", seen);
    expect_the_truth("four stages on two");
}

/* Requests that ask for tokens alone; some have penalties or log-probabilities, and are judged on the processor as before. */
static void leave_out_hashes(void)
{
    static const char hash[] = ",\"return_logits_hash\":true";
    for (uint32_t i = 0; i < REQUESTS; i++) {
        char *at = strstr(bodies[i], hash);
        memmove(at, at + strlen(hash), strlen(at + strlen(hash)) + 1);
    }
}

Test(devices, tokens_are_the_same_whether_the_device_draws_them_or_the_processor, .init = set_up, .fini = tear_down,
     .timeout = 60)
{
    use_devices();
    start("-p 1 --devices cuda:0");
    engine_complete(&engine, bodies, REQUESTS, 6, truth);
    cr_expect_eq(engine_metric(&engine, "evenflow_stage_drawn_on_device_total"), 0);
    cr_expect_eq(own_engine_stop(&engine), 0);
    leave_out_hashes();
    start("-p 2 --devices cuda:0,%s --speculate ngram");
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    double drawn = 0;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        drawn += i % 4 == 2 ? 0 : seen[i].count;
        cr_expect_eq(seen[i].count, truth[i].count);
        cr_expect_eq(memcmp(seen[i].tokens, truth[i].tokens, truth[i].count * sizeof(uint32_t)), 0,
                     "tokens of answer %u", i);
    }
    cr_expect_geq(engine_metric(&engine, "evenflow_stage_drawn_on_device_total"), drawn);
    cr_expect_gt(engine_metric(&engine, "evenflow_stage_replayed_steps_total"), 0);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* What /status says of how stages hand activations on, in one word each. */
static void expect_edges(const char *options, const char *expected)
{
    char edges[64] = "";
    size_t i;
    json_t *stage;
    start(options);
    json_t *report = engine_get(&engine, "/status", NULL);
    json_array_foreach(json_object_get(report, "stages"), i, stage) {
        const char *edge = json_string_value(json_object_get(stage, "edge"));
        if (edge != NULL)
            strcat(strcat(edges, edge), " ");
    }
    json_decref(report);
    cr_expect_str_eq(edges, expected, "%s", options);
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    bool is_early = engine_metric(&engine, "evenflow_stage_early_steps_total") > 0;
    cr_expect_eq(is_early, strstr(expected, "device") != NULL, "%s", options); /* no processor was on the way */
    cr_expect_eq(own_engine_stop(&engine), 0, "%s", options);
    expect_the_truth(options);
}

Test(devices, activations_go_where_devices_reach_each_other_and_the_bits_are_the_same, .init = set_up,
     .fini = tear_down, .timeout = 90)
{
    use_devices();
    answers_of("-p 1 --devices cuda:0", truth);
    expect_edges("-p 3 --devices cuda:0", "device device ");
    expect_edges("-p 3 --devices cuda:0 --edges host", "host host ");
    fake_cuda_wish("peer=0");
    second = "cuda:1";
    answers_of("-p 1 --devices cuda:0", truth);
    expect_edges("-p 4 --devices cuda:0,cuda:0,%s,%s --window 1", "device nccl device ");
    expect_edges("-p 4 --devices cuda:0,cuda:0,%s,%s --edges host", "host host host ");
    no_nccl();
    expect_edges("-p 4 --devices cuda:0,cuda:0,%s,%s", "device host device ");
    fake_cuda_wish("");
    expect_edges("-p 4 --devices cuda:0,%s,cuda:0,%s --edges device --max-num-batched-tokens 8",
                 "device device device ");
    answers_of("-p 4 --devices cuda:0,%s,cpu,cuda:0", truth); /* with a stage on the processor bits are others */
    expect_edges("-p 4 --devices cuda:0,%s,cpu,cuda:0 --edges host", "host host host ");
    expect_edges("-p 4 --devices cuda:0,%s,cpu,cuda:0", "device host host ");
    fake_cuda_wish("pin=0"); /* what goes to the host then cannot stand behind a wait */
    answers_of("-p 4 --devices cuda:0,cuda:0,cuda:0,cpu --edges host", truth);
    expect_edges("-p 4 --devices cuda:0,cuda:0,cuda:0,cpu", "device device host ");
}

/* Also where the devices could do better, and where both ends are on one device, which NCCL takes for those of two machines. */
Test(devices, activations_that_nccl_carries_give_the_same_bits, .init = set_up, .fini = tear_down, .timeout = 90)
{
    use_nccl();
    answers_of("-p 1 --devices cuda:0", truth);
    expect_edges("-p 2 --devices cuda:0,%s --edges nccl", "nccl ");
    expect_edges("-p 3 --devices cuda:0,%s,cuda:0 --edges nccl --max-num-batched-tokens 8", "nccl nccl ");
    expect_edges("-p 4 --devices cuda:0 --edges nccl --window 1", "nccl nccl nccl ");
}

Test(devices, only_stages_and_the_launcher_hold_anything_of_cuda)
{
    static const char *const programs[] = {"supervisor", "front", "sched", "stage"};
    const char *build = getenv("EVENFLOW_BUILD");
    for (size_t i = 0; i < ARRAY_COUNT(programs); i++) {
        char command[256];
        snprintf(command, sizeof(command), "nm %s/bin/evenflow-%s | grep -Eq ' (cu[A-Z]|cuda_)|dlopen'",
                 build != NULL ? build : "build", programs[i]);
        bool has_cuda = system(command) == 0;
        cr_expect_eq(has_cuda, strcmp(programs[i], "stage") == 0, "%s", programs[i]);
    }
}

/* ---- deaths ---- */

static _Atomic bool is_over;

static void wait_a_little(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 2000000},
              NULL); /* /status is the only place that says what is waited for */
}

static json_int_t steps_of(int stage)
{
    json_t *report = engine_get(&engine, "/status", NULL), *process;
    json_int_t steps = 0;
    size_t i;
    json_array_foreach(json_object_get(report, "processes"), i, process)
        if (strcmp(json_string_value(json_object_get(process, "role")), "stage") == 0 &&
            json_integer_value(json_object_get(process, "index")) == stage)
            steps = json_integer_value(json_object_get(process, "steps"));
    json_decref(report);
    return steps;
}

static void *complete_on(void *nothing)
{
    (void)nothing;
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    is_over = true;
    return NULL;
}

/* Whoever would pack weights again would find none. */
static void spoil_the_model(void)
{
    struct stat stat;
    int fd = open(model, O_WRONLY | O_CLOEXEC);
    cr_assert_eq(fstat(fd, &stat), 0);
    char *nothing = calloc(1, (size_t)stat.st_size / 2);
    cr_assert_eq(pwrite(fd, nothing, (size_t)stat.st_size / 2, stat.st_size / 2), stat.st_size / 2);
    free(nothing);
    close(fd);
}

/* Stages are killed in turn in the middle of answers, which stay the truth. */
static void kill_stages(int stages, uint32_t count)
{
    uint32_t kills = 0;
    json_int_t steps[3] = {0}; /* that it had published when it was killed last */
    while (kills < count) {
        pthread_t thread;
        is_over = false;
        cr_assert_eq(pthread_create(&thread, NULL, complete_on, NULL), 0);
        while (!is_over && kills < count) {
            int victim = (int)kills % stages;
            pid_t pid = engine_pid(&engine, "stage", victim);
            if (steps_of(victim) == steps[victim]) { /* lives without a step would be a reason to end the engine */
                wait_a_little();
                continue;
            }
            kill(pid, SIGKILL);
            steps[victim] = steps_of(victim);
            kills++;
            while (engine_pid(&engine, "stage", victim) == pid)
                wait_a_little();
        }
        pthread_join(thread, NULL);
        expect_the_truth("killed");
    }
    printf("%u stages killed\n", kills);
}

Test(devices, successors_of_stages_go_on_from_what_lies_on_their_devices, .init = set_up, .fini = tear_down,
     .timeout = 90)
{
    use_devices();
    start("--log-level error -p 2 --devices cuda:0,%s");
    engine_complete(&engine, bodies, REQUESTS, 6, truth);
    spoil_the_model();
    kill_stages(2, KILLS);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* The process that holds memory of devices, a child of who has started the engine; 0: there is none. */
static pid_t holder(void)
{
    char path[64], name[32];
    snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    cr_assert_not_null(children);
    int pid = 0, found = 0;
    while (fscanf(children, "%d", &pid) == 1) {
        snprintf(path, sizeof(path), "/proc/%d/comm", pid);
        FILE *file = fopen(path, "re");
        if (file != NULL && fgets(name, sizeof(name), file) != NULL && strcmp(name, "evenflow-holder\n") == 0)
            found = pid;
        if (file != NULL)
            fclose(file);
    }
    fclose(children);
    return found;
}

static int wait_for_end(pid_t pid)
{
    int status = 0;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(devices, memory_that_a_process_holds_outlives_stages_and_supervisors_and_ends_with_the_engine, .init = set_up,
     .fini = tear_down, .timeout = 90)
{
    use_devices();
    answers_of("-p 2 --devices cuda:0,%s --gpu-memory vmm", truth);
    cr_expect_eq(holder(), 0);
    start("--log-level error -p 2 --devices cuda:0,%s --gpu-memory ipc");
    pid_t holds = holder();
    cr_assert_gt(holds, 0);
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    expect_the_truth("held");
    spoil_the_model();
    kill_stages(2, KILLS / 2);
    pid_t supervisor = engine_pid(&engine, "supervisor", 0);
    kill(supervisor, SIGKILL);
    while (engine_pid(&engine, "supervisor", 0) == supervisor)
        wait_a_little();
    engine_complete(&engine, bodies, REQUESTS, 6, seen); /* for a while: who dies with the supervisor ends the engine */
    wait_ms(150);
    kill_stages(2, 2);
    kill(engine_pid(&engine, "supervisor", 0), SIGTERM);
    cr_expect_eq(wait_for_end(holds), 0);
    wait_for_end(engine.pid);
    own_engine_forget(&engine);
}

Test(devices, a_device_that_exports_nothing_is_held_by_a_process_and_without_that_the_engine_ends, .init = set_up,
     .fini = tear_down, .timeout = 60)
{
    fake_cuda_wish("export=0");
    second = "cuda:1";
    start("--log-level error -p 2 --devices cuda:0,%s");
    pid_t holds = holder();
    cr_assert_gt(holds, 0);
    engine_complete(&engine, bodies, REQUESTS, 6, truth);
    kill(holds, SIGKILL);
    cr_expect_eq(wait_for_end(engine.pid), 1);
    cr_expect_eq(wait_for_end(holds), -1);
    own_engine_forget(&engine);
}

/* Of all processes, so far. */
static uint32_t count_restarts(void)
{
    json_t *report = engine_get(&engine, "/status", NULL), *process;
    size_t i;
    uint32_t restarts = 0;
    json_array_foreach(json_object_get(report, "processes"), i, process)
        restarts += (uint32_t)json_integer_value(json_object_get(process, "restarts"));
    json_decref(report);
    return restarts;
}

static void expect_the_truth_from_dying_streams(void)
{
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    expect_the_truth("killed");
    uint32_t restarts = count_restarts();
    cr_expect_geq(restarts, 10, "%u restarts", restarts);
    printf("%u stages killed by their streams\n", restarts);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* Every life of a process with a device ends in the middle of an operation there, another one each time: between activations
 * and their word, with half of them written, behind the word before anybody is woken. */
Test(devices, who_dies_in_the_middle_of_a_hand_off_is_followed_by_the_same_bits, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    fake_cuda_wish("");
    second = "cuda:1";
    answers_of("-p 3 --devices cuda:0,%s,%s", truth);
    fake_cuda_wish("die=311"); /* some four steps */
    start("--log-level error -p 3 --devices cuda:0,%s,%s --edges device");
    expect_the_truth_from_dying_streams();
}

/* ---- NCCL ---- */

/* Each end of an edge alone, and the one in the middle, which is an end of two. */
Test(devices, an_end_of_what_nccl_carries_that_is_killed_is_joined_again, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    use_nccl();
    answers_of("-p 3 --devices cuda:0,%s,cuda:0", truth);
    start("--log-level error -p 3 --devices cuda:0,%s,cuda:0 --edges nccl");
    kill_stages(3, KILLS);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(devices, both_ends_of_what_nccl_carries_may_be_killed_together, .init = set_up, .fini = tear_down, .timeout = 90)
{
    use_nccl();
    answers_of("-p 2 --devices cuda:0,%s", truth);
    start("--log-level error -p 2 --devices cuda:0,%s --edges nccl");
    for (uint32_t round = 0; round < 4; round++) {
        pthread_t thread;
        json_int_t before = steps_of(1);
        is_over = false;
        cr_assert_eq(pthread_create(&thread, NULL, complete_on, NULL), 0);
        while (steps_of(1) < before + 4 && !is_over)
            wait_a_little();
        pid_t pids[] = {engine_pid(&engine, "stage", 0), engine_pid(&engine, "stage", 1)};
        kill(pids[round % 2], SIGKILL);
        kill(pids[1 - round % 2], SIGKILL);
        pthread_join(thread, NULL);
        expect_the_truth("killed");
    }
    cr_expect_eq(own_engine_stop(&engine), 0);
}

/* Every life ends in the middle of an operation, sends and receives among them. */
Test(devices, who_dies_in_the_middle_of_sending_is_followed_by_the_same_bits, .init = set_up, .fini = tear_down,
     .timeout = 120)
{
    fake_cuda_wish("");
    answers_of("-p 3 --devices cuda:0,cuda:1,cuda:0", truth);
    fake_cuda_wish("die=331"); /* some four steps */
    start("--log-level error -p 3 --devices cuda:0,cuda:1,cuda:0 --edges nccl");
    expect_the_truth_from_dying_streams();
}

/* No process has to die for it: both give the connection up, and make another one. */
Test(devices, a_connection_that_fails_is_made_again_and_nothing_is_lost, .init = set_up, .fini = tear_down,
     .timeout = 90)
{
    fake_cuda_wish("");
    answers_of("-p 3 --devices cuda:0,cuda:1,cuda:0", truth);
    fake_nccl_wish("init=2,error=7");
    start("--log-level error -p 3 --devices cuda:0,cuda:1,cuda:0 --edges nccl");
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    expect_the_truth("failed");
    cr_expect_eq(count_restarts(), 0);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(devices, a_connection_that_always_fails_ends_the_engine_with_its_reason, .init = set_up, .fini = tear_down,
     .timeout = 90)
{
    fake_nccl_wish("error=1");
    start("--log-level error -p 2 --devices cuda:0,cuda:1 --edges nccl");
    int status;
    json_decref(engine_post(&engine, "/v1/completions", bodies[0], &status));
    cr_expect_neq(status, 200);
    cr_expect_eq(wait_for_end(engine.pid), 1);
    own_engine_forget(&engine);
}

Test(devices, a_device_that_is_lost_again_and_again_costs_no_request, .init = set_up, .fini = tear_down, .timeout = 90)
{
    fake_cuda_wish("devices=1");
    answers_of("-p 2 --split 2,2 --devices cuda:0,cpu", truth);
    fake_cuda_wish("vanish=700"); /* kernels of every life of a stage: some 30 steps */
    start("--log-level error -p 2 --split 2,2 --devices cuda:0,cpu");
    engine_complete(&engine, bodies, REQUESTS, 6, seen);
    expect_the_truth("lost");
    uint32_t restarts = count_restarts();
    cr_expect_geq(restarts, 1, "nothing was lost");
    printf("%u devices lost\n", restarts);
    cr_expect_eq(own_engine_stop(&engine), 0);
}

Test(devices, a_device_that_is_gone_for_good_costs_its_requests_and_no_more, .init = set_up, .fini = tear_down,
     .timeout = 90)
{
    fake_cuda_wish("vanish=1"); /* the first kernel of every life */
    start("--log-level error -p 2 --devices cuda:0,cpu");
    int status;
    json_t *answer = engine_post(&engine, "/v1/completions", bodies[0], &status);
    cr_expect_eq(status, 500);
    cr_expect_not_null(json_object_get(answer, "error"));
    json_decref(answer);
    cr_expect_eq(engine_pid(&engine, "sched", 0) > 0, true);
    own_engine_stop(&engine);
}
