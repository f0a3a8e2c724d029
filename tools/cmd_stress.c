/* cmd_stress.c - evenflow stress: an engine of its own under load while its processes die; every answer is compared.
 *
 * First every request is answered undisturbed: the reference. Then fault after fault, each a function of the seed and its
 * number alone: one process or two, a signal, at any instant or, in an engine built with named points (make points), at one of
 * them; sometimes a successor dies while it starts. When processes are back, the time to the next byte of an answer is
 * noted, part by part. At the end everything that was taken must have come back.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/config.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/stats.h"
#include "tools/commands.h"
#include "tools/inside.h"
#include "tools/launch.h"
#include "tools/random.h"
#include "tools/samples.h"
#include "tools/stress_load.h"

#define WARM_FAULTS   6u             /* each role once, front twice: from then on what is held must stay as it is */
#define POINT_WAIT_NS 150000000ull   /* it does not come to its point: it dies here, and its successor there perhaps */
#define BACK_WAIT_NS  60000000000ull /* a process that has no successor by then will have none */
#define SETTLE_NS     30000000000ull
#define TOGETHER_NS   250000000ull /* who dies so soon after a supervisor died together with it */
#define MEMORY_SLACK  1024         /* kB */
#define PART_COUNT    5u

/* The options of serve, and more; the struct begins with serve's so that one table reaches both. */
struct values {
    struct config config;
    uint64_t seconds, kills, seed, from, clients;
    char artefacts[OPTION_TEXT_MAX];
    bool json, single;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec own_specs[] = {
    {"kills", NULL, 0, OPTION_NUMBER, AT(kills), "200", 0, 1e9, "N", "Faults"},
    {"seconds", NULL, 0, OPTION_NUMBER, AT(seconds), "0", 0, 1e9, "N", "Ends after so long at the latest; 0: no limit"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "1", 0, 9e15, "N", "The same seed gives the same requests and faults"},
    {"from", NULL, 0, OPTION_NUMBER, AT(from), "0", 0, 1e9, "N", "Begins with this fault of the seed's"},
    {"clients", NULL, 0, OPTION_NUMBER, AT(clients), "12", 1, 256, "N", "Conversations at once"},
    {"artefacts", NULL, 0, OPTION_TEXT, AT(artefacts), "stress-artefacts", 0, 0, "DIR",
     "Where plan, log and failure are left"},
    {"single", NULL, 0, OPTION_FLAG, AT(single), NULL, 0, 0, "",
     "SIGKILL of one front, scheduler or stage at a time, at any instant: for times to recover"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "One JSON object for programs"},
};
static struct option_spec specs[80];
static struct option_table table;

__attribute__((constructor)) static void extend_serve_table(void)
{
    check(config_table.count + ARRAY_COUNT(own_specs) <= ARRAY_COUNT(specs));
    memcpy(specs, config_table.specs, config_table.count * sizeof(specs[0]));
    memcpy(specs + config_table.count, own_specs, sizeof(own_specs));
    table = config_table;
    table.specs = specs;
    table.count += ARRAY_COUNT(own_specs);
}

/* From the moment of death: told by the kernel; a successor has been started; it is ready; it has done something; a byte of an
 * answer has come. */
static const char *const part_names[PART_COUNT] = {"reported", "started", "ready", "first work", "next byte"};

struct fault {
    uint64_t number;
    uint32_t victims[2]; /* process numbers */
    uint32_t victim_count;
    int signal;
    bool is_at_point;
    uint32_t point_pick, countdown, delay_us;
};

struct stress {
    const struct values *values;
    const char *model_path;
    struct own_engine engine;
    struct arena inside;
    struct load *load;
    struct fault_page_shm *page;
    bool has_points;
    FILE *plan; /* faults and what came of them */
    uint32_t process_count;
    uint64_t kills, at_points, engines, ends_with_supervisor, begin_ns;
    struct samples recovery[ROLE_COUNT][PART_COUNT]; /* ms */
    int supervisor_status;                           /* of the last one that ended; -1: none has */
    char failure[512];
};

static bool fail(struct stress *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool fail(struct stress *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (s->failure[0] == '\0')
        vsnprintf(s->failure, sizeof(s->failure), format, args);
    va_end(args);
    return false;
}

static void note(struct stress *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct stress *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(s->plan, "%9.3f  ", (double)(clock_ns() - s->begin_ns) / 1e9);
    vfprintf(s->plan, format, args);
    fputc('\n', s->plan);
    fflush(s->plan);
    va_end(args);
}

/* ---- the engine ---- */

static pid_t pid_of(const struct stress *s, uint32_t number)
{
    return (pid_t)arena_process_id(&s->inside, number);
}

static enum role role_of(uint32_t number)
{
    return number < ROLE_STAGE ? (enum role)number : ROLE_STAGE;
}

static const struct process_shm *block_of(const struct stress *s, uint32_t number)
{
    return arena_process(&s->inside, role_of(number), number < ROLE_STAGE ? 0 : number - ROLE_STAGE);
}

static bool is_ready(const struct stress *s, uint32_t number)
{
    return arena_state(&s->inside, role_of(number), number < ROLE_STAGE ? 0 : number - ROLE_STAGE) == PROCESS_READY;
}

/* Orphans of a supervisor come to us, and whoever asks the kernel for their end is told once they have been waited for. */
static void reap(struct stress *s)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == pid_of(s, 0))
            s->supervisor_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool begin_engine(struct stress *s)
{
    struct err err;
    struct config config = s->values->config;
    if (own_engine_start(&s->engine, &config, s->model_path, &err) != 0 ||
        inside_open(&s->inside, s->engine.pid, &err) != 0)
        return fail(s, "the engine does not start: %s", err.text);
    s->engines++;
    s->supervisor_status = -1;
    s->process_count = ROLE_STAGE + s->inside.plan->stage_count;
    return true;
}

static bool turn(struct stress *s, uint32_t wait_us, bool is_over)
{
    reap(s);
    return load_turn(s->load, wait_us, is_over) || fail(s, "%.200s", load_failure(s->load));
}

/* ---- faults ---- */

static struct fault draw(const struct stress *s, uint64_t number)
{
    static const int signals[] = {SIGKILL, SIGKILL, SIGKILL, SIGKILL, SIGKILL, SIGSEGV, SIGABRT, SIGBUS, SIGSTOP};
    uint64_t random = s->values->seed * 0x9E3779B97F4A7C15ull + number;
    random_next(&random);
    const uint32_t others = s->process_count - 1;
    struct fault fault = {.number = number, .victim_count = 1, .signal = SIGKILL};
    fault.victims[0] = 1 + (uint32_t)(random_next(&random) % others);
    if (random_next(&random) % 3 == 0) /* front and sched are as many as all stages */
        fault.victims[0] = 1 + (uint32_t)(random_next(&random) % 2);
    uint64_t kind = random_next(&random) % 24;
    fault.is_at_point = s->has_points && random_next(&random) % 3 != 0;
    fault.point_pick = (uint32_t)random_next(&random);
    fault.countdown = 1 + (uint32_t)(random_next(&random) % (random_next(&random) % 2 ? 4 : 40));
    fault.delay_us = (uint32_t)(random_next(&random) % 20000);
    if (number < WARM_FAULTS) { /* the same in every run */
        fault.is_at_point = false;
        fault.victims[0] = number < 3 ? 1 + (uint32_t)number % 2 : 1 + (uint32_t)number % others;
        return fault;
    }
    if (s->values->single) {
        fault.is_at_point = false;
        return fault;
    }
    fault.signal = signals[random_next(&random) % ARRAY_COUNT(signals)];
    if (kind == 0) {
        fault.victims[0] = 0; /* the supervisor; at a point only together with another death */
        fault.signal = SIGKILL;
        if (fault.is_at_point) {
            fault.victims[1] = 2 + (uint32_t)(random_next(&random) % (others - 1));
            fault.victim_count = 2;
        }
    } else if (kind < 5 && others > 1) {
        fault.victims[1] = 1 + (fault.victims[0] + (uint32_t)(random_next(&random) % (others - 1))) % others;
        fault.victim_count = 2;
    }
    return fault;
}

/* A point that its victims have been at. */
static uint32_t point_for(const struct stress *s, const struct fault *fault, uint32_t victim)
{
    uint32_t known[FAULT_COUNT], count = 0, rare = FAULT_ANYWHERE;
    for (uint32_t i = 0; i < FAULT_COUNT; i++)
        if (fault_hits(s->page, victim, i) > 0) {
            known[count++] = i;
            if (rare == FAULT_ANYWHERE && fault_deaths(s->page, victim, i) == 0)
                rare = i;
        }
    if (count == 0)
        return FAULT_ANYWHERE;
    return rare != FAULT_ANYWHERE && fault->point_pick % 2 ? rare : known[fault->point_pick % count];
}

static bool is_gone(pid_t pid)
{
    return kill(pid, 0) != 0;
}

struct victim {
    uint32_t number, point;
    pid_t pid;
    int pidfd;
    bool is_stopped;
    uint64_t epoch, progress, dead_ns, parts_ns[PART_COUNT];
};

static void look_at_victim(struct stress *s, struct victim *v)
{
    uint64_t now_ns = clock_ns();
    struct pollfd poll_fd = {.fd = v->pidfd, .events = POLLIN};
    if (v->parts_ns[0] == 0 && poll(&poll_fd, 1, 0) == 1)
        v->parts_ns[0] = now_ns;
    if (v->parts_ns[0] != 0 && v->parts_ns[1] == 0 && pid_of(s, v->number) != v->pid)
        v->parts_ns[1] = now_ns;
    if (v->number == 0)
        return;
    if (v->parts_ns[1] != 0 && v->parts_ns[2] == 0 && is_ready(s, v->number)) {
        v->parts_ns[2] = now_ns;
        v->progress = progress_read(block_of(s, v->number));
    }
    if (v->parts_ns[2] != 0 && v->parts_ns[3] == 0 && progress_read(block_of(s, v->number)) != v->progress)
        v->parts_ns[3] = now_ns;
    if (v->parts_ns[3] != 0 && v->parts_ns[4] == 0 && load_totals(s->load)->last_byte_ns >= v->parts_ns[3])
        v->parts_ns[4] = load_totals(s->load)->last_byte_ns;
}

static bool are_all_ready(const struct stress *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        if (!is_ready(s, i) || is_gone(pid_of(s, i)))
            return false;
    return true;
}

/* The engine may end when a supervisor and another process are lost together: then within a second, with a status other than
 * 0, and with nothing left. */
static bool has_ended(const struct stress *s, const pid_t *pids)
{
    for (uint32_t i = 0; i < s->process_count; i++)
        if (!is_gone(pids[i]) || (pid_of(s, i) != pids[i] && !is_gone(pid_of(s, i))))
            return false;
    uint32_t standby = arena_standby(&s->inside);
    return standby == 0 || is_gone((pid_t)standby);
}

/* True: so it is. */
static bool wait_for_end(struct stress *s, const pid_t *pids)
{
    uint64_t begin_ns = clock_ns();
    while (!has_ended(s, pids) && clock_ns() - begin_ns < 5000000000u) {
        poll(NULL, 0, 1);
        reap(s);
    }
    if (!has_ended(s, pids))
        return false;
    s->failure[0] = '\0';
    if (s->supervisor_status == 0)
        return fail(s, "the engine ended with its supervisor, but with status 0");
    uint64_t took_ns = clock_ns() - begin_ns;
    note(s, "the end with its supervisor took %.0f ms", (double)took_ns / 1e6);
    return took_ns < 2000000000u ||
           fail(s, "the end of the engine with its supervisor took %.1f s", (double)took_ns / 1e9);
}

static bool begin_another_engine(struct stress *s)
{
    s->ends_with_supervisor++;
    inside_close(&s->inside);
    own_engine_forget(&s->engine);
    if (!begin_engine(s))
        return false;
    load_begin(s->load, s->engine.socket);
    return true;
}

static void strike(struct stress *s, struct victim *v, const struct fault *fault)
{
    v->is_stopped = fault->signal == SIGSTOP;
    v->dead_ns = clock_ns();
    if (pid_of(s, v->number) == v->pid)
        kill(v->pid, fault->signal);
}

/* Until every victim has a successor, and all are ready. */
static bool await_all(struct stress *s, struct victim *victims, const struct fault *fault, const pid_t *pids,
                      bool *is_ended)
{
    bool may_end = fault->victims[0] == 0;
    for (uint64_t begin_ns = clock_ns();;) {
        bool is_done = true;
        if (!turn(s, 200, false)) {
            *is_ended = may_end && wait_for_end(s, pids);
            return *is_ended;
        }
        for (uint32_t i = 0; i < fault->victim_count; i++) {
            look_at_victim(s, &victims[i]);
            is_done = is_done && victims[i].parts_ns[1] != 0;
            if (victims[i].is_stopped && victims[i].parts_ns[0] == 0 && clock_ns() - begin_ns > 3000000000u)
                kill(victims[i].pid, SIGKILL); /* it has no work that could be missed */
        }
        if (may_end && has_ended(s, pids)) {
            *is_ended = wait_for_end(s, pids);
            return *is_ended;
        }
        if (is_done && are_all_ready(s))
            return true;
        if (clock_ns() - begin_ns > BACK_WAIT_NS)
            return fail(s, "fault %llu: there is no successor", (unsigned long long)fault->number);
    }
}

static bool pass_time(struct stress *s, uint64_t ns)
{
    for (uint64_t end_ns = clock_ns() + ns; clock_ns() < end_ns;)
        if (!turn(s, 500, false))
            return false;
    return true;
}

static bool pass_time_alone(struct stress *s, uint64_t ns)
{
    for (uint64_t end_ns = clock_ns() + ns; clock_ns() < end_ns;)
        if (!turn(s, 1000, true))
            return false;
    return true;
}

/* Orders for those that die at points; they have some time to come there. */
static bool wait_at_points(struct stress *s, struct victim *victims, const struct fault *fault)
{
    for (uint32_t i = 0; i < fault->victim_count; i++) {
        victims[i].point = point_for(s, fault, victims[i].number);
        fault_order(s->page, victims[i].number, victims[i].point, fault->countdown, fault->signal);
    }
    uint32_t left = fault->victim_count;
    for (uint64_t end_ns = clock_ns() + POINT_WAIT_NS; left > 0 && clock_ns() < end_ns;) {
        if (!turn(s, 200, false)) {
            if (fault->victims[0] != 0)
                return false;
            s->failure[0] = '\0'; /* it may have ended with its supervisor, which the caller looks at */
            break;
        }
        left = 0;
        for (uint32_t i = 0; i < fault->victim_count; i++)
            left += fault_order_left(s->page, victims[i].number) > 0;
    }
    for (uint32_t i = 0; i < fault->victim_count; i++)
        if (fault_order_left(s->page, victims[i].number) == 0)
            victims[i].dead_ns = s->page->orders[victims[i].number].died_ns;
    return true;
}

static bool commit_fault(struct stress *s, const struct fault *fault)
{
    struct victim victims[2] = {0};
    pid_t pids[PROCESSES_MAX] = {0};
    char text[160] = "";
    bool is_ended = false, is_good = true;
    for (uint32_t i = 0; i < s->process_count; i++)
        pids[i] = pid_of(s, i);
    for (uint32_t i = 0; i < fault->victim_count; i++) {
        uint32_t number = fault->victims[i];
        victims[i] = (struct victim){.number = number, .pid = pids[number], .point = FAULT_ANYWHERE};
        victims[i].pidfd = (int)syscall(SYS_pidfd_open, victims[i].pid, 0);
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s %u", i ? " and " : "",
                 role_name(role_of(number)), number < ROLE_STAGE ? 0 : number - ROLE_STAGE);
        if (number == ROLE_FRONT)
            load_note_front_death(s->load);
    }
    is_good = pass_time(s, fault->delay_us * 1000ull);
    if (is_good && fault->is_at_point)
        is_good = wait_at_points(s, victims, fault);
    for (uint32_t i = 0; i < fault->victim_count && is_good; i++)
        if (victims[i].dead_ns == 0)
            strike(s, &victims[i], fault);
    is_good = is_good && await_all(s, victims, fault, pids, &is_ended);
    for (uint32_t i = 0; i < fault->victim_count; i++) {
        bool was_at_point = fault->is_at_point && fault_order_left(s->page, victims[i].number) == 0;
        s->kills++;
        s->at_points += was_at_point;
        note(s, "fault %llu: %s, signal %d%s%s", (unsigned long long)fault->number, text, fault->signal,
             was_at_point ? " at " : "", was_at_point ? fault_names[s->page->orders[victims[i].number].died_at] : "");
        if (fault->is_at_point)
            fault_order(s->page, victims[i].number, FAULT_ANYWHERE, 0, 0);
        if (victims[i].number == ROLE_FRONT)
            load_note_front_death(s->load);
    }
    if (is_good && is_ended) {
        note(s, "the engine has ended with its supervisor; another one");
        is_good = begin_another_engine(s);
    } else if (is_good) {
        bool is_single = fault->victim_count == 1 && fault->signal == SIGKILL && victims[0].number != 0;
        struct victim *v = &victims[0];
        for (uint64_t end_ns = clock_ns() + 2000000000u;
             is_good && is_single && v->parts_ns[4] == 0 && clock_ns() < end_ns;) {
            is_good = turn(s, 200, false);
            look_at_victim(s, v);
        }
        for (uint32_t part = 0; is_single && v->parts_ns[4] != 0 && part < PART_COUNT; part++)
            samples_add(&s->recovery[role_of(v->number)][part], (double)(v->parts_ns[part] - v->dead_ns) / 1e6);
        if (fault->victims[0] == 0)
            is_good = is_good && pass_time(s, TOGETHER_NS);
    }
    for (uint32_t i = 0; i < fault->victim_count; i++)
        if (victims[i].pidfd >= 0)
            close(victims[i].pidfd);
    return is_good;
}

/* ---- what must come back ---- */

static const enum counter_id pools[] = {COUNTER_FRONT_CONNECTIONS_OPEN,  COUNTER_FRONT_REQUESTS_ACTIVE,
                                        COUNTER_FRONT_PROMPT_PAGES_FREE, COUNTER_FRONT_REQUEST_SLOTS_FREE,
                                        COUNTER_SCHED_STEPS_IN_FLIGHT,   COUNTER_SCHED_RUNNING,
                                        COUNTER_SCHED_WAITING,           COUNTER_SCHED_BLOCKS_FREE,
                                        COUNTER_SCHED_LOG_PAGES_FREE,    COUNTER_SCHED_SEQUENCE_SLOTS_FREE};

struct holdings {
    uint64_t pools[ARRAY_COUNT(pools)];
    int64_t files[PROCESSES_MAX], memory_kb[PROCESSES_MAX];
};

static void hold(const struct stress *s, struct holdings *h)
{
    for (size_t i = 0; i < ARRAY_COUNT(pools); i++)
        h->pools[i] = counter_read(block_of(s, counter_table[pools[i]].role), pools[i]);
    for (uint32_t i = 0; i < s->process_count; i++) {
        h->files[i] = inside_files_of(pid_of(s, i));
        h->memory_kb[i] = inside_memory_kb_of(pid_of(s, i));
    }
}

/* Conversations end, then what they held comes back: waits until it is as in `wanted` (NULL: until nothing is open), or long
 * enough. */
static bool quiet_down(struct stress *s, const struct holdings *wanted, struct holdings *now)
{
    for (uint64_t end_ns = clock_ns() + 2 * SETTLE_NS; load_active(s->load) > 0;) {
        if (!turn(s, 1000, true))
            return false;
        if (clock_ns() > end_ns)
            return fail(s, "%u conversations do not end", load_active(s->load));
    }
    for (uint64_t end_ns = clock_ns() + SETTLE_NS; clock_ns() < end_ns;) {
        hold(s, now);
        bool is_quiet = now->pools[0] == 0 && now->pools[1] == 0 && now->pools[4] == 0;
        if (is_quiet && (wanted == NULL || memcmp(now->pools, wanted->pools, sizeof(now->pools)) == 0))
            break;
        if (!turn(s, 1000, true))
            return false;
    }
    return pass_time_alone(s, 300000000u) && (hold(s, now), true); /* descriptors are given up one by one */
}

static bool have_pools_come_back(struct stress *s, const struct holdings *before, const struct holdings *now,
                                 const char *when)
{
    for (size_t i = 0; i < ARRAY_COUNT(pools); i++)
        if (now->pools[i] != before->pools[i])
            return fail(s, "%s: %s is %llu, not %llu", when, counter_table[pools[i]].name,
                        (unsigned long long)now->pools[i], (unsigned long long)before->pools[i]);
    return true;
}

static bool have_processes_come_back(struct stress *s, const struct holdings *before, const struct holdings *now)
{
    for (uint32_t i = 0; i < s->process_count; i++) {
        if (now->files[i] != before->files[i])
            return fail(s, "%s (process %u) has %lld descriptors, not %lld", role_name(role_of(i)), i,
                        (long long)now->files[i], (long long)before->files[i]);
        if (now->memory_kb[i] > before->memory_kb[i] + MEMORY_SLACK)
            return fail(s, "%s (process %u) has %lld kB of its own, not %lld", role_name(role_of(i)), i,
                        (long long)now->memory_kb[i], (long long)before->memory_kb[i]);
    }
    return true;
}

static bool stop_engine(struct stress *s)
{
    pid_t supervisor = pid_of(s, 0);
    s->supervisor_status = -1;
    kill(supervisor, SIGTERM);
    for (uint64_t end_ns = clock_ns() + SETTLE_NS; s->supervisor_status < 0 && clock_ns() < end_ns; reap(s))
        poll(NULL, 0, 1);
    int status = s->supervisor_status;
    bool is_left = access(s->engine.socket, F_OK) == 0;
    own_engine_forget(&s->engine);
    inside_close(&s->inside);
    if (status != 0)
        return fail(s, "the engine ended with status %d", status);
    return !is_left || fail(s, "the engine has left its socket behind");
}

/* ---- the run ---- */

/* Each role dies: a successor holds a little more than a first life does (front, what its forerunner left). */
static bool warm_up(struct stress *s)
{
    for (uint64_t k = 0; k < WARM_FAULTS; k++) {
        struct fault fault = draw(s, k);
        if (!commit_fault(s, &fault))
            return false;
    }
    return true;
}

static bool run_faults(struct stress *s)
{
    const struct values *values = s->values;
    struct holdings first, warm;
    struct err err;
    load_begin(s->load, s->engine.socket);
    if (load_learn(s->load, &err) != 0)
        return fail(s, "%s", err.text);
    for (uint32_t i = 0; i < s->process_count; i++)
        s->has_points = s->has_points || fault_hits(s->page, i, FAULT_RING_PUSH) > 0;
    if (!quiet_down(s, NULL, &first) || !warm_up(s) || !quiet_down(s, &first, &warm) ||
        !have_pools_come_back(s, &first, &warm, "after each process has died once"))
        return false;
    uint64_t limit_ns = values->seconds ? s->begin_ns + values->seconds * 1000000000ull : UINT64_MAX;
    for (uint64_t k = max_u64(values->from, WARM_FAULTS); s->kills < values->kills && clock_ns() < limit_ns; k++) {
        struct fault fault = draw(s, k);
        uint64_t engines = s->engines;
        if (!commit_fault(s, &fault) || (s->engines != engines && !warm_up(s)))
            return false;
    }
    struct holdings last;
    return quiet_down(s, &warm, &last) && have_pools_come_back(s, &first, &last, "at the end") &&
           have_processes_come_back(s, &warm, &last);
}

static void print_recovery(const struct stress *s, FILE *out)
{
    fprintf(out, "%-10s %6s", "ms, median/P99", "deaths");
    for (uint32_t part = 0; part < PART_COUNT; part++)
        fprintf(out, " %17s", part_names[part]);
    fputc('\n', out);
    for (uint32_t role = ROLE_FRONT; role < ROLE_COUNT; role++) {
        fprintf(out, "%-14s %6zu", role_name((enum role)role), s->recovery[role][0].count);
        for (uint32_t part = 0; part < PART_COUNT; part++)
            fprintf(out, " %8.1f %8.1f", samples_percentile(&s->recovery[role][part], 0.5),
                    samples_percentile(&s->recovery[role][part], 0.99));
        fputc('\n', out);
    }
}

static json_t *recovery_json(const struct stress *s)
{
    json_t *roles = json_object();
    for (uint32_t role = ROLE_FRONT; role < ROLE_COUNT; role++) {
        json_t *parts = json_pack("{s:I}", "deaths", (json_int_t)s->recovery[role][0].count);
        for (uint32_t part = 0; part < PART_COUNT; part++)
            json_object_set_new(parts, part_names[part],
                                json_pack("{s:f, s:f}", "p50", samples_percentile(&s->recovery[role][part], 0.5), "p99",
                                          samples_percentile(&s->recovery[role][part], 0.99)));
        json_object_set_new(roles, role_name((enum role)role), parts);
    }
    return roles;
}

static void count_points(const struct stress *s, uint32_t *known, uint32_t *died_at)
{
    *known = *died_at = 0;
    for (uint32_t i = 0; i < FAULT_COUNT && s->page != NULL; i++) {
        uint64_t hits = 0, deaths = 0;
        for (uint32_t process = 0; process < s->process_count; process++) {
            hits += fault_hits(s->page, process, i);
            deaths += fault_deaths(s->page, process, i);
        }
        *known += hits > 0;
        *died_at += deaths > 0;
    }
}

static void print_verdict(struct stress *s, bool is_good)
{
    const struct load_totals *totals = load_totals(s->load);
    uint32_t known, died_at;
    count_points(s, &known, &died_at);
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        for (uint32_t part = 0; part < PART_COUNT; part++)
            samples_sort(&s->recovery[role][part]);
    if (s->values->json) {
        json_t *out = json_pack(
            "{s:s, s:I, s:I, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:s, s:o}", "verdict",
            is_good ? "clean" : "failed", "seed", (json_int_t)s->values->seed, "kills", (json_int_t)s->kills,
            "kills_at_points", (json_int_t)s->at_points, "points_known", (int)known, "points_died_at", (int)died_at,
            "answers", (json_int_t)totals->answers, "bytes", (json_int_t)totals->bytes, "left",
            (json_int_t)totals->left, "closed_unread", (json_int_t)totals->closed_unread, "ended_with_supervisor",
            (json_int_t)s->ends_with_supervisor, "failure", s->failure, "recovery_ms", recovery_json(s));
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(out);
    } else {
        print_recovery(s, stdout);
        printf(
            "%s: %llu kills (%llu at %u of %u named points), %llu answers (%.1f MB) compared, %llu clients left, %llu "
            "closed unread, %llu engines ended with their supervisor\n",
            is_good ? "clean" : "FAILED", (unsigned long long)s->kills, (unsigned long long)s->at_points, died_at,
            known, (unsigned long long)totals->answers, (double)totals->bytes / 1e6, (unsigned long long)totals->left,
            (unsigned long long)totals->closed_unread, (unsigned long long)s->ends_with_supervisor);
    }
    if (!is_good)
        fprintf(stderr, "evenflow stress: %s\n(again: --seed %llu; plan, log and failure lie in %s)\n", s->failure,
                (unsigned long long)s->values->seed, s->values->artefacts);
}

/* ---- artefacts ---- */

static bool open_artefacts(struct stress *s, int *own_stderr, struct err *err)
{
    const char *folder = s->values->artefacts;
    char path[OPTION_TEXT_MAX + 16];
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return err_set(err, -errno, "--artefacts %.300s: %s", folder, strerror(errno)) == 0;
    snprintf(path, sizeof(path), "%s/failure", folder);
    unlink(path); /* of a run before */
    snprintf(path, sizeof(path), "%s/plan", folder);
    s->plan = fopen(path, "we");
    snprintf(path, sizeof(path), "%s/points", folder);
    int page = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    void *memory = page >= 0 && ftruncate(page, sizeof(*s->page)) == 0
                       ? mmap(NULL, sizeof(*s->page), PROT_READ | PROT_WRITE, MAP_SHARED, page, 0)
                       : MAP_FAILED;
    snprintf(path, sizeof(path), "%s/log", folder);
    int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (s->plan == NULL || memory == MAP_FAILED || log < 0)
        return err_set(err, -errno, "--artefacts %.300s: cannot write there: %s", folder, strerror(errno)) == 0;
    close(page);
    s->page = memory;
    snprintf(path, sizeof(path), "%s/points", folder);
    char *absolute = realpath(path, NULL);
    setenv("EVENFLOW_FAULT_PAGE", absolute != NULL ? absolute : path, 1);
    free(absolute);
    fflush(stderr);
    *own_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    dup2(log, STDERR_FILENO); /* the engine's words */
    close(log);
    return true;
}

static void write_failure(const struct stress *s)
{
    char path[OPTION_TEXT_MAX + 16];
    snprintf(path, sizeof(path), "%s/failure", s->values->artefacts);
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return;
    fprintf(file, "%s\n\n%s\n", s->failure, load_failure(s->load));
    fclose(file);
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    static struct stress stress;
    struct stress *s = &stress;
    struct err err;
    int own_stderr = -1;
    *s = (struct stress){.values = pointer, .model_path = positional[0]};
    s->begin_ns = clock_ns();
    if (!open_artefacts(s, &own_stderr, &err))
        return command_fail(1, "stress", err.text);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    bool is_good = begin_engine(s);
    s->load = load_open(s->values->seed, (uint32_t)s->values->clients, is_good ? s->inside.plan->vocab_size : 1);
    if (is_good) {
        is_good = run_faults(s);
        if (!is_good) {
            note(s, "%s", s->failure);
            write_failure(s);
        }
        bool is_stopped = stop_engine(s);
        is_good = is_good && is_stopped;
    }
    fflush(stderr);
    dup2(own_stderr, STDERR_FILENO);
    print_verdict(s, is_good);
    load_close(s->load);
    fclose(s->plan);
    return is_good ? 0 : 1;
}

const struct subcommand command_stress = {.name = "stress",
                                          .usage = "[OPTIONS] MODEL.gguf",
                                          .help = "Kills processes of an engine of its own and compares every answer",
                                          .options = &table,
                                          .values_bytes = sizeof(struct values),
                                          .positional_min = 1,
                                          .positional_max = 1,
                                          .run = run};
