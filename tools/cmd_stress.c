/* cmd_stress.c - evenflow stress: an engine of its own under load while its processes die; every answer is compared.
 *
 * First every request is answered undisturbed: the reference. Then fault after fault, drawn from the seed and its number: one
 * process or two, a signal, at any instant or, in an engine built with named points (make points), at one of them; sometimes
 * a successor dies while it starts. Every other fault aims at a point where nobody has died so far, or, when there is none
 * any more, at the next one in turn. When processes are back, the time to the next byte of an answer is noted, part by part. At
 * the end of each round everything that was taken must have come back.
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
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/config.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/ledger.h"
#include "ipc/stats.h"
#include "tools/commands.h"
#include "tools/inside.h"
#include "tools/launch.h"
#include "tools/random.h"
#include "tools/samples.h"
#include "tools/stress_load.h"
#include "tools/stress_points.h"

#define POINT_WAIT_NS 150000000ull   /* it does not come to its point: it dies here, and its successor there perhaps */
#define AIM_WAIT_NS   1500000000ull  /* likewise, when it is that point that is wanted */
#define BACK_WAIT_NS  60000000000ull /* a process that has no successor by then will have none */
#define SETTLE_NS     30000000000ull
#define SUSPECT_NS    5000000000ull /* so long the rows of a step that made a stage fault may be suspect */
#define STOPPED_NS    3000000000ull
#define NEXT_BYTE_NS  2000000000ull
#define TOGETHER_NS   250000000ull /* who dies so soon after a supervisor died together with it */
#define MEMORY_SLACK  1024         /* kB */
#define PART_COUNT    5u

/* The options of serve, and more; the struct begins with serve's so that one table reaches both. */
struct values {
    struct config config;
    uint64_t seconds, kills, seed, from, clients, round;
    char artefacts[OPTION_TEXT_MAX], point[OPTION_TEXT_MAX];
    bool json, single, every_point;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec own_specs[] = {
    {"kills", NULL, 0, OPTION_NUMBER, AT(kills), "200", 0, 1e9, "N", "Faults"},
    {"seconds", NULL, 0, OPTION_NUMBER, AT(seconds), "0", 0, 1e9, "N", "Ends after so long at the latest; 0: no limit"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "1", 0, 9e15, "N", "The same seed gives the same requests and faults"},
    {"from", NULL, 0, OPTION_NUMBER, AT(from), "0", 0, 1e9, "N", "Begins with this fault of the seed's"},
    {"clients", NULL, 0, OPTION_NUMBER, AT(clients), "12", 1, 256, "N", "Conversations at once"},
    {"round", NULL, 0, OPTION_NUMBER, AT(round), "500", 1, 1e9, "N",
     "After so many faults each, everything that was taken must have come back"},
    {"every-point", NULL, 0, OPTION_FLAG, AT(every_point), NULL, 0, 0, "",
     "Goes on until somebody has died at every named point, for twice as many faults at most; else it has failed"},
    {"point", NULL, 0, OPTION_TEXT, AT(point), "", 0, 0, "NAME", "Every fault at this named point"},
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

#define POINT_NONE UINT32_MAX

/* What is to become of a process. */
struct doom {
    uint32_t process; /* its number */
    int signal;
    uint32_t point; /* where; POINT_NONE: at any instant */
    uint32_t countdown;
    bool is_at_once; /* what it leads to is waited for: that somebody comes to the point */
};

struct fault {
    uint64_t number;
    struct doom dooms[2];
    uint32_t count;
    uint32_t delay_us;
    uint32_t point_behind; /* where the successor of the first one dies, then; POINT_NONE: nowhere */
    bool is_aimed;
};

struct stress {
    const struct values *values;
    const char *model_path;
    struct own_engine engine;
    struct arena inside;
    struct load *load;
    struct stress_points points;
    bool has_points;
    uint32_t only_point;   /* POINT_NONE: no such order */
    uint64_t own_fault_ns; /* when a stage last died of its own */
    FILE *plan;            /* faults and what came of them */
    uint32_t process_count;
    uint64_t kills, at_points, rounds, engines, ends_with_supervisor, begin_ns;
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
    config.max_body = LOAD_BODY_BYTES;
    snprintf(config.state, sizeof(config.state), "%s", s->values->artefacts);
    if (own_engine_start(&s->engine, &config, s->model_path, &err) != 0 ||
        inside_open(&s->inside, s->engine.pid, &err) != 0)
        return fail(s, "the engine does not start: %s", err.text);
    s->engines++;
    s->supervisor_status = -1;
    s->process_count = ROLE_STAGE + s->inside.plan->stage_count;
    points_begin(&s->points, s->process_count);
    s->has_points = points_are_there(&s->points);
    return true;
}

static bool turn(struct stress *s, uint32_t wait_us, bool is_over)
{
    reap(s);
    return load_turn(s->load, wait_us, is_over) || fail(s, "%.200s", load_failure(s->load));
}

/* ---- faults ---- */

/* At a point that is wanted: whoever comes there, and what makes it. */
static void aim(const struct stress *s, struct fault *fault, uint64_t *random)
{
    uint32_t point = s->only_point != POINT_NONE ? s->only_point : points_target(&s->points, fault->number / 2);
    if (point == FAULT_STEP_CANCEL &&
        clock_ns() - s->own_fault_ns < SUSPECT_NS) /* a second one would be that request's */
        point = FAULT_STEP_BEGIN;
    uint32_t process = points_victim(&s->points, point, (uint32_t)random_next(random));
    uint32_t countdown = 1 + (uint32_t)(random_next(random) % 2);
    uint32_t other = 1 + (uint32_t)(random_next(random) % (s->process_count - 1));
    uint32_t stage = ROLE_STAGE + (uint32_t)(random_next(random) % (s->process_count - ROLE_STAGE));
    fault->is_aimed = true;
    fault->count = 1;
    fault->dooms[0] = (struct doom){.process = process, .signal = SIGKILL, .point = point, .countdown = countdown};
    switch (point) {
    case FAULT_ARENA_MAP: /* these are passed by a successor, when it starts */
    case FAULT_ARENA_STATE:
    case FAULT_IO_BEGUN:
    case FAULT_IO_OPENED:
    case FAULT_SUPERVISOR_TAKEOVER: /* the standby */
        fault->dooms[0].countdown = 1;
        fault->dooms[0].is_at_once = true;
        break;
    case FAULT_STEP_CANCEL: /* a stage faults over its step */
        fault->dooms[1] =
            (struct doom){.process = stage, .signal = SIGILL, .point = FAULT_STAGE_BEGIN, .countdown = countdown};
        fault->count = 2;
        break;
    case FAULT_CONN_REPLY_WITHDRAW: /* a request that was not accepted when front died */
        fault->dooms[0].point = FAULT_CONN_REPLY_ANSWER;
        fault->dooms[0].countdown = 2;
        fault->point_behind = point;
        break;
    default:
        if (process != ROLE_SUPERVISOR || point == FAULT_SUPERVISOR_KEEP)
            break;
        if (fault_by[point] & FAULT_BY_FRONT) /* it gives a new front what it keeps */
            other = ROLE_FRONT;
        fault->dooms[1] = (struct doom){.process = other, .signal = SIGKILL, .point = POINT_NONE, .is_at_once = true};
        fault->count = 2;
    }
}

static struct fault draw(const struct stress *s, uint64_t number)
{
    static const int signals[] = {SIGKILL, SIGKILL, SIGKILL, SIGKILL, SIGKILL, SIGSEGV, SIGABRT, SIGBUS, SIGSTOP};
    uint64_t random = s->values->seed * 0x9E3779B97F4A7C15ull + number;
    random_next(&random);
    const uint32_t others = s->process_count - 1;
    struct fault fault = {.number = number, .count = 1, .point_behind = POINT_NONE};
    struct doom *first = &fault.dooms[0], *second = &fault.dooms[1];
    *first = *second = (struct doom){.signal = SIGKILL, .point = POINT_NONE};
    first->process = 1 + (uint32_t)(random_next(&random) % others);
    if (random_next(&random) % 3 == 0) /* front and sched are as many as all stages */
        first->process = 1 + (uint32_t)(random_next(&random) % 2);
    fault.delay_us = (uint32_t)(random_next(&random) % 20000);
    if (s->values->single)
        return fault;
    if (s->has_points && (number % 2 == 0 || s->only_point != POINT_NONE)) {
        aim(s, &fault, &random);
        return fault;
    }
    uint64_t kind = random_next(&random) % 24;
    bool is_at_point = s->has_points && random_next(&random) % 6 != 0;
    first->signal = second->signal = signals[random_next(&random) % ARRAY_COUNT(signals)];
    if (kind == 0) {
        *first = (struct doom){.process = ROLE_SUPERVISOR, .signal = SIGKILL, .point = POINT_NONE};
        second->process = 2 + (uint32_t)(random_next(&random) % (others - 1));
        fault.count = is_at_point ? 2 : 1; /* at a point only together with another death */
    } else if (kind < 5 && others > 1) {
        second->process = 1 + (first->process + (uint32_t)(random_next(&random) % (others - 1))) % others;
        fault.count = 2;
    }
    for (uint32_t i = 0; i < fault.count && is_at_point; i++) {
        struct doom *doom = &fault.dooms[i];
        doom->point = points_known_to(&s->points, doom->process, (uint32_t)random_next(&random));
        doom->countdown = 1 + (uint32_t)(random_next(&random) % (random_next(&random) % 2 ? 4 : 40));
    }
    return fault;
}

static bool is_gone(pid_t pid)
{
    return kill(pid, 0) != 0;
}

struct victim {
    const struct doom *doom;
    uint32_t number;
    pid_t pid;
    int pidfd;
    bool is_stopped;
    bool is_taken_back; /* its order, before it came to its point */
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

static void strike(struct stress *s, struct victim *v)
{
    v->is_stopped = v->doom->signal == SIGSTOP;
    v->dead_ns = clock_ns();
    if (pid_of(s, v->number) == v->pid)
        kill(v->pid, v->doom->signal);
}

/* Until every victim has a successor, and all are ready; after the death of a supervisor long enough for what died with it. */
static bool await_all(struct stress *s, struct victim *victims, const struct fault *fault, const pid_t *pids,
                      bool *is_ended)
{
    bool may_end = fault->dooms[0].process == ROLE_SUPERVISOR;
    for (uint64_t begin_ns = clock_ns(), done_ns = 0;;) {
        bool is_done = true;
        if (!turn(s, 200, false)) {
            *is_ended = may_end && wait_for_end(s, pids);
            return *is_ended;
        }
        for (uint32_t i = 0; i < fault->count; i++) {
            look_at_victim(s, &victims[i]);
            is_done = is_done && victims[i].parts_ns[1] != 0;
            if (victims[i].is_stopped && victims[i].parts_ns[0] == 0 && clock_ns() - begin_ns > STOPPED_NS)
                kill(victims[i].pid, SIGKILL); /* it has no work that could be missed */
        }
        if (may_end && has_ended(s, pids)) {
            *is_ended = wait_for_end(s, pids);
            return *is_ended;
        }
        if (!is_done || !are_all_ready(s))
            done_ns = 0;
        else if (done_ns == 0)
            done_ns = clock_ns();
        if (done_ns != 0 && (!may_end || clock_ns() - done_ns > TOGETHER_NS))
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

static bool is_ordered(const struct victim *v)
{
    return v->doom->point != POINT_NONE;
}

static bool was_at_point(const struct stress *s, const struct victim *v)
{
    return is_ordered(v) && !v->is_taken_back && fault_order_left(s->points.page, v->number) == 0;
}

/* Orders for those that die at points; they have some time to come there. */
static bool wait_at_points(struct stress *s, struct victim *victims, const struct fault *fault)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < fault->count; i++)
        if (is_ordered(&victims[i]))
            fault_order(s->points.page, victims[i].number, victims[i].doom->point, victims[i].doom->countdown,
                        victims[i].doom->signal);
    for (uint32_t i = 0; i < fault->count; i++) {
        left += is_ordered(&victims[i]);
        if (victims[i].doom->is_at_once)
            strike(s, &victims[i]);
    }
    for (uint64_t end_ns = clock_ns() + (fault->is_aimed ? AIM_WAIT_NS : POINT_WAIT_NS);
         left > 0 && clock_ns() < end_ns;) {
        if (!turn(s, 200, false)) {
            if (fault->dooms[0].process != ROLE_SUPERVISOR)
                return false;
            s->failure[0] = '\0'; /* it may have ended with its supervisor, which the caller looks at */
            break;
        }
        left = 0;
        for (uint32_t i = 0; i < fault->count; i++)
            left += is_ordered(&victims[i]) && !was_at_point(s, &victims[i]);
    }
    for (uint32_t i = 0; i < fault->count; i++)
        if (was_at_point(s, &victims[i]))
            victims[i].dead_ns = s->points.page->orders[victims[i].number].died_ns;
    if (fault->point_behind != POINT_NONE && left == 0)
        fault_order(s->points.page, victims[0].number, fault->point_behind, 1, SIGKILL);
    return true;
}

/* What became of it, for the plan; orders are taken back. */
static void note_fault(struct stress *s, struct victim *victims, const struct fault *fault)
{
    for (uint32_t i = 0; i < fault->count; i++) {
        struct victim *v = &victims[i];
        bool is_there = was_at_point(s, v);
        s->kills++;
        s->at_points += is_there;
        if (v->doom->signal == SIGILL)
            s->own_fault_ns = clock_ns();
        note(s, "fault %llu: %s %u, signal %d%s%s%s", (unsigned long long)fault->number, role_name(role_of(v->number)),
             v->number < ROLE_STAGE ? 0 : v->number - ROLE_STAGE, v->doom->signal,
             is_there        ? " at "
             : is_ordered(v) ? ", not at "
                             : "",
             is_there        ? fault_names[s->points.page->orders[v->number].died_at]
             : is_ordered(v) ? v->doom->point == FAULT_ANYWHERE ? "any point" : fault_names[v->doom->point]
                             : "",
             v->doom->is_at_once ? ", for another to come there" : "");
        fault_order(s->points.page, v->number, FAULT_ANYWHERE, 0, 0);
        if (v->number == ROLE_FRONT)
            load_note_front_death(s->load);
    }
}

/* One process, killed, that had work: how long it took until the next byte of an answer. */
static bool measure_recovery(struct stress *s, struct victim *v)
{
    bool is_good = true;
    for (uint64_t end_ns = clock_ns() + NEXT_BYTE_NS; is_good && v->parts_ns[4] == 0 && clock_ns() < end_ns;) {
        is_good = turn(s, 200, false);
        look_at_victim(s, v);
    }
    for (uint32_t part = 0; v->parts_ns[4] != 0 && part < PART_COUNT; part++)
        samples_add(&s->recovery[role_of(v->number)][part], (double)(v->parts_ns[part] - v->dead_ns) / 1e6);
    return is_good;
}

static bool commit_fault(struct stress *s, const struct fault *fault)
{
    struct victim victims[2] = {0};
    pid_t pids[PROCESSES_MAX] = {0};
    bool is_ended = false;
    for (uint32_t i = 0; i < s->process_count; i++)
        pids[i] = pid_of(s, i);
    for (uint32_t i = 0; i < fault->count; i++) {
        uint32_t number = fault->dooms[i].process;
        victims[i] = (struct victim){.doom = &fault->dooms[i], .number = number, .pid = pids[number]};
        victims[i].pidfd = (int)syscall(SYS_pidfd_open, victims[i].pid, 0);
        if (number == ROLE_FRONT)
            load_note_front_death(s->load);
    }
    bool is_good = pass_time(s, fault->delay_us * 1000ull) && wait_at_points(s, victims, fault);
    for (uint32_t i = 0; i < fault->count && is_good; i++) {
        if (victims[i].dead_ns != 0)
            continue;
        /* its successor's death would be another one, with a wait of its own */
        if (victims[i].number == ROLE_SUPERVISOR) {
            fault_order(s->points.page, ROLE_SUPERVISOR, FAULT_ANYWHERE, 0, 0);
            victims[i].is_taken_back = true;
        }
        strike(s, &victims[i]);
    }
    is_good = is_good && await_all(s, victims, fault, pids, &is_ended);
    note_fault(s, victims, fault);
    if (is_good && is_ended) {
        note(s, "the engine has ended with its supervisor; another one");
        is_good = begin_another_engine(s);
    } else if (is_good && fault->count == 1 && fault->dooms[0].process != ROLE_SUPERVISOR &&
               fault->dooms[0].signal == SIGKILL) {
        is_good = measure_recovery(s, &victims[0]);
    }
    for (uint32_t i = 0; i < fault->count; i++)
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

/* The engine has ended in order: it lists nothing as accepted and not finished. */
static bool is_ledger_empty(struct stress *s)
{
    struct ledger_entry_shm entry;
    struct err err;
    int fd = ledger_open(s->values->artefacts, &err), left = 0;
    if (fd < 0)
        return fail(s, "%s", err.text);
    for (uint32_t i = 0; left == 0; i++)
        left = ledger_left(fd, i, &entry);
    close(fd);
    return left == -ENOENT || fail(s, "the engine has left the list of accepted requests with entries");
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
    if (is_left)
        return fail(s, "the engine has left its socket behind");
    return is_ledger_empty(s);
}

/* ---- the run ---- */

/* Each process has died in this engine: a successor holds a little more than a first life does (front, what its forerunner
 * left, from the third life on). */
static bool warm_up(struct stress *s)
{
    for (uint32_t process = 1; process < s->process_count; process++)
        while (arena_process_restarts(&s->inside, process) < (process == ROLE_FRONT ? 2 : 1)) {
            struct fault fault = {.count = 1, .point_behind = POINT_NONE};
            fault.dooms[0] = (struct doom){.process = process, .signal = SIGKILL, .point = POINT_NONE};
            if (!commit_fault(s, &fault))
                return false;
        }
    return true;
}

/* Everything is as it was when each process had died once. */
static bool end_round(struct stress *s, const struct holdings *first, const struct holdings *warm)
{
    struct holdings now;
    if (!warm_up(s) || !quiet_down(s, warm, &now) || !have_pools_come_back(s, first, &now, "at the end of a round") ||
        !have_processes_come_back(s, warm, &now))
        return false;
    s->rounds++;
    note(s, "round %llu is clean: %llu kills, %llu at points", (unsigned long long)s->rounds,
         (unsigned long long)s->kills, (unsigned long long)s->at_points);
    return true;
}

/* Kills enough; with --every-point also at every point, or so many that there is no hope. */
static bool are_kills_done(const struct stress *s)
{
    char names[256];
    if (s->kills < s->values->kills)
        return false;
    return !s->values->every_point || s->kills >= 2 * s->values->kills ||
           points_missed(&s->points, names, sizeof(names)) == 0;
}

static bool run_faults(struct stress *s)
{
    const struct values *values = s->values;
    struct holdings first, warm;
    struct err err;
    if (!s->has_points && (values->every_point || s->only_point != POINT_NONE))
        return fail(s, "this engine has no named points; make points, and run build/points/evenflow");
    load_begin(s->load, s->engine.socket);
    if (load_learn(s->load, NULL, NULL, &err) != 0)
        return fail(s, "%s", err.text);
    if (!quiet_down(s, NULL, &first) || !warm_up(s) || !quiet_down(s, &first, &warm) ||
        !have_pools_come_back(s, &first, &warm, "after each process has died once"))
        return false;
    uint64_t limit_ns = values->seconds ? s->begin_ns + values->seconds * 1000000000ull : UINT64_MAX;
    uint64_t since_round = 0;
    for (uint64_t k = values->from; !are_kills_done(s) && clock_ns() < limit_ns; k++) {
        struct fault fault = draw(s, k);
        if (!commit_fault(s, &fault))
            return false;
        if (++since_round < values->round)
            continue;
        since_round = 0;
        if (!end_round(s, &first, &warm))
            return false;
    }
    if (since_round > 0 && !end_round(s, &first, &warm))
        return false;
    char names[256];
    if (values->every_point && points_missed(&s->points, names, sizeof(names)) > 0)
        return fail(s, "nobody came to die at %s", names);
    return true;
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

static void print_verdict(struct stress *s, bool is_good)
{
    const struct load_totals *totals = load_totals(s->load);
    char missed[4096];
    uint32_t missed_count = points_missed(&s->points, missed, sizeof(missed));
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        for (uint32_t part = 0; part < PART_COUNT; part++)
            samples_sort(&s->recovery[role][part]);
    if (s->values->json) {
        json_t *out =
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:s, s:o, s:o}", "verdict",
                      is_good ? "clean" : "failed", "seed", (json_int_t)s->values->seed, "kills", (json_int_t)s->kills,
                      "kills_at_points", (json_int_t)s->at_points, "rounds", (json_int_t)s->rounds,
                      "points_within_reach", (int)s->points.target_count, "points_died_at",
                      (int)(s->points.target_count - missed_count), "answers", (json_int_t)totals->answers, "bytes",
                      (json_int_t)totals->bytes, "left", (json_int_t)totals->left, "closed_unread",
                      (json_int_t)totals->closed_unread, "ended_with_supervisor", (json_int_t)s->ends_with_supervisor,
                      "failure", s->failure, "points", points_json(&s->points), "recovery_ms", recovery_json(s));
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(out);
    } else {
        if (s->has_points)
            points_print(&s->points, stdout);
        print_recovery(s, stdout);
        printf("%s: %llu kills (%llu at %u of %u named points within reach), %llu rounds, %llu answers (%.1f MB) "
               "compared, %llu clients left, %llu "
               "closed unread, %llu engines ended with their supervisor\n",
               is_good ? "clean" : "FAILED", (unsigned long long)s->kills, (unsigned long long)s->at_points,
               s->points.target_count - missed_count, s->points.target_count, (unsigned long long)s->rounds,
               (unsigned long long)totals->answers, (double)totals->bytes / 1e6, (unsigned long long)totals->left,
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
    if (points_open(&s->points, path, err) != 0)
        return false;
    snprintf(path, sizeof(path), "%s/log", folder);
    int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (s->plan == NULL || log < 0)
        return err_set(err, -errno, "--artefacts %.300s: cannot write there: %s", folder, strerror(errno)) == 0;
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
    *s = (struct stress){.values = pointer, .model_path = positional[0], .only_point = POINT_NONE};
    s->begin_ns = clock_ns();
    for (uint32_t point = 0; point < FAULT_COUNT; point++)
        if (strcmp(fault_names[point], s->values->point) == 0)
            s->only_point = point;
    if (s->values->point[0] != '\0' && s->only_point == POINT_NONE)
        return command_fail(2, "stress", "--point: there is no such point; ipc/fault.h lists them");
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
