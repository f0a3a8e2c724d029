/* cmd_stress.c - evenflow stress: an engine of its own under load while its processes die; every answer is compared.
 *
 * First every request is answered undisturbed: the reference. Then fault after fault, drawn from the seed and its number: one
 * process or two, a signal, at any instant or, in an engine built with named points (make points), at one of them; sometimes
 * a successor dies while it starts. Every other fault aims at a point where nobody has died so far, or, when there is none
 * any more, at the next one in turn. When processes are back, the time to the next byte of an answer is noted, part by part. At
 * the end of each round everything that was taken must have come back. Where there are spares they die, too, alone or with
 * the process that they wait for; now and then the programs are replaced (evenflow upgrade) while somebody dies.
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
#include "engine/watch.h"
#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/ledger.h"
#include "ipc/stats.h"
#include "tools/commands.h"
#include "tools/inside.h"
#include "tools/own_engine.h"
#include "tools/random.h"
#include "tools/samples.h"
#include "tools/stress_holdings.h"
#include "tools/stress_load.h"
#include "tools/stress_points.h"

#define POINT_WAIT_NS 150000000ull   /* it does not come to its point: it dies here, and its successor there perhaps */
#define AIM_WAIT_NS   1500000000ull  /* likewise, when it is that point that is wanted */
#define BACK_WAIT_NS  60000000000ull /* a process that has no successor by then will have none */
#define SETTLE_NS     30000000000ull
#define SUSPECT_NS    5000000000ull /* so long the rows of a step that made a stage fault may be suspect */
#define STOPPED_NS    3000000000ull
#define NEXT_BYTE_NS  2000000000ull
#define TOGETHER_NS   250000000ull  /* who dies so soon after a supervisor died together with it */
#define END_NS        1000000000ull /* when supervisor and another process are lost together */
#define UPGRADE_NS    60000000000ull
#define PROGRESS_NS   60000000000ull
#define CALM_NS       60000000ull
#define FAILURES_MAX  50u
#define PART_COUNT    5u
#define FIGURE_COUNT  (PART_COUNT + 1u) /* to the end of each part, and from the first one's to the last one's */

/* Its own, and those of serve. */
struct values {
    struct config config;
    uint64_t seconds, kills, seed, from, clients, round, every, upgrade_every;
    char artefacts[OPTION_TEXT_MAX], point[OPTION_TEXT_MAX];
    bool json, single, every_point, lasting, keep_going;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"kills", NULL, 0, OPTION_NUMBER, AT(kills), "200", 0, 1e9, "N", "Faults"},
    {"seconds", NULL, 0, OPTION_NUMBER, AT(seconds), "0", 0, 1e9, "N", "Ends after so long at the latest; 0: no limit"},
    {"seed", NULL, 0, OPTION_NUMBER, AT(seed), "1", 0, 9e15, "N", "The same seed gives the same requests and faults"},
    {"from", NULL, 0, OPTION_NUMBER, AT(from), "0", 0, 1e9, "N", "Begins with this fault of the seed's"},
    {"clients", NULL, 0, OPTION_NUMBER, AT(clients), "12", 1, 256, "N", "Conversations at once"},
    {"round", NULL, 0, OPTION_NUMBER, AT(round), "500", 1, 1e9, "N",
     "After so many faults each, everything that was taken must have come back"},
    {"every", NULL, 0, OPTION_NUMBER, AT(every), "0", 0, 1e9, "MS",
     "From one fault to the next at least; 0: as soon as everybody is back"},
    {"upgrade-every", NULL, 0, OPTION_NUMBER, AT(upgrade_every), "0", 0, 1e9, "N",
     "With one fault in N, evenflow upgrade replaces every program by itself; 0: never"},
    {"lasting", NULL, 0, OPTION_FLAG, AT(lasting), NULL, 0, 0, "",
     "No supervisor dies together with another process, which ends an engine: one engine lasts all the time"},
    {"keep-going", NULL, 0, OPTION_FLAG, AT(keep_going), NULL, 0, 0, "",
     "After a failure, which is counted and kept, another engine takes the faults that follow"},
    {"every-point", NULL, 0, OPTION_FLAG, AT(every_point), NULL, 0, 0, "",
     "Goes on until somebody has died at every named point, for twice as many faults at most; else it has failed"},
    {"point", NULL, 0, OPTION_TEXT, AT(point), "", 0, 0, "NAME", "Every fault at this named point"},
    {"artefacts", NULL, 0, OPTION_TEXT, AT(artefacts), "stress-artefacts", 0, 0, "DIR",
     "Where plan, log and failure are left"},
    {"single", NULL, 0, OPTION_FLAG, AT(single), NULL, 0, 0, "",
     "SIGKILL of one front, scheduler or stage at a time, at any instant, of clients that read streams: for times to "
     "recover"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "One JSON object for programs"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs), .also = &config_table};

/* From the moment of death: told by the kernel; a successor has been started; it is ready; it has done something; a byte of an
 * answer has come, which in front's case is before it counts anything as done. */
static const char *const figure_names[FIGURE_COUNT] = {"reported",   "started",   "ready",
                                                       "first work", "next byte", "since reported"};

#define POINT_NONE UINT32_MAX

/* What is to become of a process. */
struct doom {
    uint32_t process; /* its number */
    bool is_spare;    /* not that process dies, but the one that waits for it to: a spare, or the standby */
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
    bool is_upgrade; /* meanwhile the programs are replaced */
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
    uint64_t kills, at_points, rounds, engines, ends_with_supervisor, upgrades, begin_ns, progress_ns;
    struct samples recovery[ROLE_COUNT][FIGURE_COUNT]; /* ms */
    struct samples calm;                               /* likewise; --single */
    int supervisor_status;                             /* of the last one that ended; -1: none has */
    pid_t upgrade;                                     /* the command; 0: none runs */
    int upgrade_status;
    int own_stderr;
    struct holdings first, warm, last; /* once quiet: nobody has died; everybody has; at the end of the last round */
    uint64_t failures;
    int start_error; /* of own_engine_start() */
    char failure[512], first_failure[512];
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

/* Who waits to be the next life of a process; 0: nobody is prepared. */
static pid_t spare_of(const struct stress *s, uint32_t number)
{
    return (pid_t)(number == ROLE_SUPERVISOR ? arena_standby(&s->inside) : arena_process_spare(&s->inside, number));
}

/* There should be somebody. */
static bool has_spare(const struct stress *s, uint32_t number)
{
    return number == ROLE_SUPERVISOR || s->inside.plan->spares > 0;
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
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        int exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (pid == s->upgrade) {
            s->upgrade = 0;
            s->upgrade_status = exit_status;
        } else if (pid == pid_of(s, 0)) {
            s->supervisor_status = exit_status;
        }
    }
}

static bool begin_engine(struct stress *s)
{
    struct err err;
    struct config config = s->values->config;
    config.max_body = LOAD_BODY_BYTES;
    snprintf(config.state, sizeof(config.state), "%s", s->values->artefacts);
    s->start_error = own_engine_start(&s->engine, &config, s->model_path, &err);
    if (s->start_error != 0)
        return fail(s, "the engine does not start: %s", err.text);
    if (inside_open(&s->inside, s->engine.pid, &err) != 0) {
        inside_close(&s->inside);
        return fail(s, "the engine cannot be seen: %s", err.text);
    }
    s->engines++;
    s->supervisor_status = -1;
    s->process_count = ROLE_STAGE + s->inside.plan->stage_count;
    points_begin(&s->points, s->process_count);
    s->has_points = points_are_there(&s->points);
    return true;
}

/* A line a minute for whoever waits: `what` there is at that moment. */
static void say_progress(struct stress *s)
{
    char names[64], holdings_text[512];
    struct holdings now;
    uint64_t now_ns = clock_ns();
    if (now_ns - s->progress_ns < PROGRESS_NS)
        return;
    s->progress_ns = now_ns;
    holdings_take(&now, &s->inside);
    holdings_describe(&now, holdings_text, sizeof(holdings_text));
    uint64_t seconds = (now_ns - s->begin_ns) / 1000000000u;
    dprintf(
        s->own_stderr,
        "%3llu min: %llu kills (%.1f a second), %llu at %u of %u points, %llu answers, %llu upgrades, %llu ends with "
        "the supervisor, %llu rounds, %llu failures; %s\n",
        (unsigned long long)seconds / 60, (unsigned long long)s->kills, (double)s->kills / (double)seconds,
        (unsigned long long)s->at_points, s->points.target_count - points_missed(&s->points, names, sizeof(names)),
        s->points.target_count, (unsigned long long)load_totals(s->load)->answers, (unsigned long long)s->upgrades,
        (unsigned long long)s->ends_with_supervisor, (unsigned long long)s->rounds, (unsigned long long)s->failures,
        holdings_text);
}

static _Atomic bool is_interrupted;

static void interrupt(int signal)
{
    (void)signal;
    is_interrupted = true;
}

static bool turn(struct stress *s, uint32_t wait_us, bool is_over)
{
    reap(s);
    if (is_interrupted)
        return fail(s, "interrupted");
    return load_turn(s->load, wait_us, is_over) || fail(s, "%.200s", load_failure(s->load));
}

/* ---- faults ---- */

/* Somebody comes there when a stage faults over its step. */
static bool is_behind_own_fault(uint32_t point)
{
    return point == FAULT_STEP_CANCEL || point == FAULT_DEAL_WITH || point == FAULT_SUPERVISOR_SUSPECT;
}

/* At a point that is wanted: whoever comes there, and what makes it. */
static void aim(const struct stress *s, struct fault *fault, uint64_t *random)
{
    uint32_t point = s->only_point != POINT_NONE ? s->only_point : points_target(&s->points, fault->number / 2);
    uint64_t since_ns = clock_ns() - s->own_fault_ns;
    if (is_behind_own_fault(point) && since_ns < SUSPECT_NS) { /* a second one would be that request's */
        if (points_deaths(&s->points, point) == 0)
            fault->delay_us = (uint32_t)((SUSPECT_NS - since_ns) / 1000);
        else
            point = FAULT_STEP_BEGIN;
    }
    uint32_t process = points_victim(&s->points, point, (uint32_t)random_next(random));
    uint32_t countdown = 1 + (uint32_t)(random_next(random) % 2);
    uint32_t other = 1 + (uint32_t)(random_next(random) % (s->process_count - 1));
    uint32_t stage = ROLE_STAGE + (uint32_t)(random_next(random) % (s->process_count - ROLE_STAGE));
    if (s->values->lasting && process == ROLE_SUPERVISOR && point != FAULT_SUPERVISOR_KEEP) {
        process = ROLE_SCHED; /* a supervisor comes to other points when another process has died */
        point = FAULT_STEP_PUBLISH;
    }
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
    case FAULT_STEP_CANCEL:
    case FAULT_DEAL_WITH:
    case FAULT_SUPERVISOR_SUSPECT:
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
    if (s->values->upgrade_every > 0 && number % s->values->upgrade_every == s->values->upgrade_every - 1) {
        fault.is_upgrade = true; /* which takes about so long */
        fault.delay_us = (uint32_t)(random_next(&random) % 300000);
    }
    if (s->has_points && !fault.is_upgrade && (number % 2 == 0 || s->only_point != POINT_NONE)) {
        aim(s, &fault, &random);
        return fault;
    }
    uint64_t kind = random_next(&random) % 24;
    bool is_at_point = s->has_points && random_next(&random) % 6 != 0;
    first->signal = second->signal = signals[random_next(&random) % ARRAY_COUNT(signals)];
    if (kind == 0) {
        *first = (struct doom){.process = ROLE_SUPERVISOR, .signal = SIGKILL, .point = POINT_NONE};
        second->process = 2 + (uint32_t)(random_next(&random) % (others - 1));
        is_at_point = is_at_point && !s->values->lasting;
        fault.count = is_at_point ? 2 : 1; /* at a point only together with another death */
    } else if (kind < 5 && others > 1) {
        second->process = 1 + (first->process + (uint32_t)(random_next(&random) % (others - 1))) % others;
        fault.count = 2;
    } else if (kind < 10 && s->inside.plan->spares > 0) {
        *second = *first;
        first->is_spare = true;
        fault.count = kind < 7 ? 1 : 2;
        is_at_point = false;
    } else if (kind == 10) {
        *first =
            (struct doom){.process = ROLE_SUPERVISOR, .is_spare = true, .signal = first->signal, .point = POINT_NONE};
        is_at_point = false;
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
    bool is_spare;
    bool is_struck, is_stopped;
    bool is_taken_back; /* its order, before it came to its point */
    uint64_t epoch, progress, dead_ns, parts_ns[PART_COUNT];
};

static void look_at_victim(struct stress *s, struct victim *v)
{
    uint64_t now_ns = clock_ns();
    struct pollfd poll_fd = {.fd = v->pidfd, .events = POLLIN};
    if (v->parts_ns[0] == 0 && poll(&poll_fd, 1, 0) == 1)
        v->parts_ns[0] = now_ns;
    pid_t spare = spare_of(s, v->number);
    bool is_followed =
        v->is_spare ? !has_spare(s, v->number) || (spare != 0 && spare != v->pid) : pid_of(s, v->number) != v->pid;
    if (v->parts_ns[0] != 0 && v->parts_ns[1] == 0 && is_followed)
        v->parts_ns[1] = now_ns;
    if (v->number == 0 || v->is_spare)
        return;
    /* What it has noted itself: we look but now and then. */
    const uint32_t work = v->number == ROLE_SCHED ? 1u << TRACE_RESULTS | 1u << TRACE_PLAN : 1u << TRACE_END;
    const struct process_shm *block = block_of(s, v->number);
    if (v->parts_ns[1] != 0 && v->parts_ns[2] == 0 && is_ready(s, v->number)) {
        v->parts_ns[2] = trace_first_ns(&block->trace, 1u << TRACE_READY, v->dead_ns);
        v->progress = progress_read(block);
    }
    if (v->parts_ns[2] == 0)
        return;
    if (v->parts_ns[3] == 0 && v->number == ROLE_FRONT)
        v->parts_ns[3] = progress_read(block) != v->progress ? now_ns : 0;
    else if (v->parts_ns[3] == 0)
        v->parts_ns[3] = trace_first_ns(&block->trace, work, v->parts_ns[2]);
    /* front and scheduler hand on what stages have done meanwhile; of a stage that is a step before its own */
    uint64_t since_ns = v->parts_ns[v->number < ROLE_STAGE ? 2 : 3], byte_ns = load_totals(s->load)->last_byte_ns;
    if (since_ns != 0 && v->parts_ns[4] == 0 && byte_ns >= since_ns)
        v->parts_ns[4] = byte_ns;
}

static bool is_back(const struct victim *v)
{
    return v->parts_ns[3] != 0 && v->parts_ns[4] != 0;
}

static bool are_all_ready(const struct stress *s)
{
    for (uint32_t i = 1; i < s->process_count; i++)
        if (!is_ready(s, i) || is_gone(pid_of(s, i)))
            return false;
    return arena_is_ready(&s->inside) && arena_is_kept(&s->inside);
}

/* Who belongs to an engine: at the moment of a fault, or now. */
struct members {
    pid_t processes[PROCESSES_MAX], spares[PROCESSES_MAX], standby; /* 0: there is none */
};

static struct members read_members(const struct stress *s)
{
    struct members members = {.standby = (pid_t)arena_standby(&s->inside)};
    for (uint32_t i = 0; i < s->process_count; i++) {
        members.processes[i] = pid_of(s, i);
        members.spares[i] = (pid_t)arena_process_spare(&s->inside, i);
    }
    return members;
}

static bool are_gone(const struct stress *s, const struct members *members)
{
    for (uint32_t i = 0; i < s->process_count; i++)
        if (!is_gone(members->processes[i]) || (members->spares[i] != 0 && !is_gone(members->spares[i])))
            return false;
    return members->standby == 0 || is_gone(members->standby);
}

/* The engine may end when a supervisor and another process are lost together: then within a second, with a status other than
 * 0, and with nothing left. */
static bool has_ended(const struct stress *s, const struct members *before)
{
    const struct members now = read_members(s);
    return are_gone(s, before) && are_gone(s, &now);
}

/* Within a second from the last death. True: so it is. */
static bool wait_for_end(struct stress *s, const struct members *before, uint64_t begin_ns)
{
    while (!has_ended(s, before) && clock_ns() - begin_ns < 5 * END_NS) {
        poll(NULL, 0, 1);
        reap(s);
    }
    if (!has_ended(s, before))
        return false;
    s->failure[0] = '\0';
    if (s->supervisor_status == 0)
        return fail(s, "the engine ended with its supervisor, but with status 0");
    uint64_t took_ns = clock_ns() - begin_ns;
    note(s, "the end with its supervisor took %.0f ms", (double)took_ns / 1e6);
    s->ends_with_supervisor++;
    return took_ns < END_NS || fail(s, "the end of the engine with its supervisor took %.1f s", (double)took_ns / 1e9);
}

static bool begin_another_engine(struct stress *s)
{
    if (s->inside.plan != NULL) { /* it has ended by itself */
        inside_close(&s->inside);
        own_engine_forget(&s->engine);
    }
    if (!begin_engine(s))
        return false;
    load_begin(s->load, s->engine.socket);
    return true;
}

static void strike(struct stress *s, struct victim *v)
{
    look_at_victim(s, v);
    v->is_stopped = v->doom->signal == SIGSTOP;
    v->dead_ns = clock_ns();
    v->is_struck = v->parts_ns[0] == 0 && syscall(SYS_pidfd_send_signal, v->pidfd, v->doom->signal, NULL, 0) == 0;
}

static bool is_ordered(const struct victim *v)
{
    return v->doom->point != POINT_NONE;
}

static bool was_at_point(const struct stress *s, const struct victim *v)
{
    return is_ordered(v) && !v->is_taken_back && fault_order_left(s->points.page, v->number) == 0;
}

/* Nobody dies of this fault from now on. False: somebody just has, and has no successor yet. */
static bool take_back_orders(const struct stress *s, struct victim *victims, uint32_t count)
{
    bool is_over = true;
    for (uint32_t i = 0; i < count; i++) {
        struct victim *v = &victims[i];
        if (!is_ordered(v) || v->is_taken_back)
            continue;
        v->is_taken_back = fault_take_back(s->points.page, v->number);
        is_over = is_over &&
                  (v->is_taken_back || s->points.page->orders[v->number].died_pid != (uint32_t)pid_of(s, v->number));
    }
    return is_over;
}

/* Until every victim has a successor, and all are ready; after the death of a supervisor long enough for what died with it. */
static bool await_all(struct stress *s, struct victim *victims, const struct fault *fault, const struct members *before,
                      bool *is_ended)
{
    bool is_supervisor = fault->dooms[0].process == ROLE_SUPERVISOR && !fault->dooms[0].is_spare;
    /* a supervisor alone ends nothing; at this point it is the standby that dies, too */
    bool may_end = is_supervisor && (fault->count > 1 || fault->dooms[0].point == FAULT_SUPERVISOR_TAKEOVER);
    uint64_t last_ns = max_u64(victims[0].dead_ns, victims[1].dead_ns);
    for (uint64_t begin_ns = clock_ns(), done_ns = 0;;) {
        bool is_done = true;
        if (!turn(s, 200, false)) {
            *is_ended = may_end && wait_for_end(s, before, last_ns);
            return *is_ended;
        }
        for (uint32_t i = 0; i < fault->count; i++) {
            look_at_victim(s, &victims[i]);
            is_done = is_done && victims[i].parts_ns[1] != 0;
            if (victims[i].is_stopped && victims[i].parts_ns[0] == 0 && clock_ns() - begin_ns > STOPPED_NS)
                syscall(SYS_pidfd_send_signal, victims[i].pidfd, SIGKILL, NULL, 0); /* no work that could be missed */
        }
        if (may_end && has_ended(s, before)) {
            *is_ended = wait_for_end(s, before, last_ns);
            return *is_ended;
        }
        if (!is_done || !are_all_ready(s) || !take_back_orders(s, victims, fault->count) || !are_all_ready(s))
            done_ns = 0;
        else if (done_ns == 0)
            done_ns = clock_ns();
        if (done_ns != 0 && (!is_supervisor || clock_ns() - done_ns > TOGETHER_NS))
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

/* What became of it, for the plan; orders are taken back, if it has not come to that. */
static void note_fault(struct stress *s, struct victim *victims, const struct fault *fault)
{
    for (uint32_t i = 0; i < fault->count; i++) {
        struct victim *v = &victims[i];
        bool is_there = was_at_point(s, v);
        s->kills += is_there || v->is_struck;
        s->at_points += is_there;
        if (v->doom->signal == SIGILL && is_there)
            s->own_fault_ns = clock_ns();
        note(s, "fault %llu: %s%s %u, signal %d%s%s%s", (unsigned long long)fault->number,
             v->is_spare ? "spare of " : "", role_name(role_of(v->number)),
             v->number < ROLE_STAGE ? 0 : v->number - ROLE_STAGE, v->doom->signal,
             is_there        ? " at "
             : is_ordered(v) ? ", not at "
                             : "",
             is_there        ? fault_names[s->points.page->orders[v->number].died_at]
             : is_ordered(v) ? v->doom->point == FAULT_ANYWHERE ? "any point" : fault_names[v->doom->point]
                             : "",
             v->doom->is_at_once ? ", for another to come there" : "");
        fault_take_back(s->points.page, v->number);
        if (v->number == ROLE_FRONT)
            load_note_front_death(s->load);
    }
}

/* One process, killed, that had work: how long it took until the next byte of an answer. */
static bool measure_recovery(struct stress *s, struct victim *v)
{
    bool is_good = true;
    for (uint64_t end_ns = clock_ns() + NEXT_BYTE_NS; is_good && !is_back(v) && clock_ns() < end_ns;) {
        is_good = turn(s, 200, false);
        look_at_victim(s, v);
    }
    struct samples *figures = s->recovery[role_of(v->number)];
    for (uint32_t part = 0; is_back(v) && part < PART_COUNT; part++)
        samples_add(&figures[part], (double)(v->parts_ns[part] - v->dead_ns) / 1e6);
    uint64_t reported_ns = v->parts_ns[0], byte_ns = v->parts_ns[4]; /* seen late, perhaps */
    if (is_back(v))
        samples_add(&figures[PART_COUNT], byte_ns > reported_ns ? (double)(byte_ns - reported_ns) / 1e6 : 0);
    return is_good;
}

/* ---- other programs ---- */

/* evenflow upgrade with the programs that are there; what it says goes to the log. */
static void begin_upgrade(struct stress *s)
{
    s->upgrade_status = -1;
    s->upgrade = fork();
    if (s->upgrade == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execl("/proc/self/exe", "evenflow", "upgrade", "--socket", s->engine.socket, (char *)NULL);
        _exit(127);
    }
    check(s->upgrade > 0);
    load_note_front_death(s->load);
}

/* It ends, well unless somebody has died without whom it cannot, and then everybody is there. */
static bool await_upgrade(struct stress *s, const struct victim *victims, const struct fault *fault, bool is_ended)
{
    bool may_fail = is_ended;
    for (uint32_t i = 0; i < fault->count; i++)
        may_fail = may_fail || victims[i].is_spare || victims[i].number == ROLE_SUPERVISOR;
    for (uint64_t end_ns = clock_ns() + UPGRADE_NS; s->upgrade != 0 || (!is_ended && !are_all_ready(s));) {
        load_note_front_death(s->load);
        if (is_ended)
            reap(s);
        else if (!turn(s, 500, false))
            return false;
        if (clock_ns() > end_ns)
            return fail(s, "fault %llu: the upgrade does not end", (unsigned long long)fault->number);
    }
    note(s, "the upgrade has ended with status %d", s->upgrade_status);
    s->upgrades += s->upgrade_status == 0;
    return s->upgrade_status == 0 || may_fail ||
           fail(s, "fault %llu: the upgrade has failed", (unsigned long long)fault->number);
}

/* ---- a fault from beginning to end ---- */

/* Who it is by now: alive, or dead and not yet followed; one that its parent has taken note of has no descriptor any more, and
 * the next one a moment later. False: there is nobody. */
static bool find_victim(struct stress *s, struct victim *v, const struct doom *doom)
{
    *v = (struct victim){.doom = doom, .number = doom->process, .pidfd = -1};
    for (uint64_t end_ns = clock_ns() + BACK_WAIT_NS;;) {
        pid_t spare = doom->is_spare ? spare_of(s, v->number) : 0;
        v->is_spare = spare != 0; /* an upgrade's may have become the process itself */
        v->pid = v->is_spare ? spare : pid_of(s, v->number);
        if (v->is_spare || !doom->is_spare || !has_spare(s, v->number))
            v->pidfd = (int)syscall(SYS_pidfd_open, v->pid, 0);
        if (v->pidfd >= 0)
            break;
        if (clock_ns() > end_ns || !turn(s, 500, false))
            return fail(s, "process %u has no %s", v->number, doom->is_spare ? "spare" : "successor");
    }
    if (v->number == ROLE_FRONT)
        load_note_front_death(s->load);
    return true;
}

/* Those that have not come to their points die where they are. */
static void strike_all(struct stress *s, struct victim *victims, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (victims[i].dead_ns != 0)
            continue;
        /* its successor's death would be another one, with a wait of its own */
        if (victims[i].number == ROLE_SUPERVISOR && !victims[i].is_spare)
            victims[i].is_taken_back = fault_take_back(s->points.page, ROLE_SUPERVISOR);
        strike(s, &victims[i]);
    }
}

/* Where times are taken, nobody dies before those that wait to follow are prepared. */
static bool await_spares(struct stress *s)
{
    for (uint64_t end_ns = clock_ns() + BACK_WAIT_NS;;) {
        uint32_t prepared = 1;
        while (prepared < s->process_count && (s->inside.plan->spares == 0 || spare_of(s, prepared) != 0))
            prepared++;
        if (prepared == s->process_count)
            return true;
        if (!turn(s, 1000, false))
            return false;
        if (clock_ns() > end_ns)
            return fail(s, "process %u has no spare", prepared);
    }
}

/* What the times of a recovery are to be read beside: from one byte of an answer to the next while nobody dies. */
static bool measure_calm(struct stress *s)
{
    uint64_t last_ns = 0;
    for (uint64_t end_ns = clock_ns() + CALM_NS; clock_ns() < end_ns;) {
        if (!turn(s, 200, false))
            return false;
        uint64_t byte_ns = load_totals(s->load)->last_byte_ns;
        if (last_ns != 0 && byte_ns != last_ns)
            samples_add(&s->calm, (double)(byte_ns - last_ns) / 1e6);
        last_ns = byte_ns;
    }
    return true;
}

static bool commit_fault(struct stress *s, const struct fault *fault)
{
    struct victim victims[2] = {{.pidfd = -1}, {.pidfd = -1}};
    struct members before = read_members(s);
    bool is_ended = false, is_good = true;
    if (fault->is_upgrade)
        begin_upgrade(s);
    is_good = (!s->values->single || (await_spares(s) && measure_calm(s))) && pass_time(s, fault->delay_us * 1000ull);
    for (uint32_t i = 0; i < fault->count && is_good; i++)
        is_good = find_victim(s, &victims[i], &fault->dooms[i]);
    if (fault->is_upgrade)
        before = read_members(s);
    is_good = is_good && wait_at_points(s, victims, fault);
    if (is_good)
        strike_all(s, victims, fault->count);
    is_good = is_good && await_all(s, victims, fault, &before, &is_ended);
    if (victims[0].doom != NULL && (fault->count == 1 || victims[1].doom != NULL))
        note_fault(s, victims, fault);
    if (fault->is_upgrade)
        is_good = await_upgrade(s, victims, fault, is_ended) && is_good;
    if (is_good && is_ended) {
        note(s, "the engine has ended with its supervisor; another one");
        is_good = begin_another_engine(s);
    } else if (is_good && fault->count == 1 && !fault->is_upgrade && fault->dooms[0].process != ROLE_SUPERVISOR &&
               !victims[0].is_spare && fault->dooms[0].signal == SIGKILL) {
        is_good = measure_recovery(s, &victims[0]);
    }
    for (uint32_t i = 0; i < fault->count; i++)
        if (victims[i].pidfd >= 0)
            close(victims[i].pidfd);
    return is_good;
}

/* ---- what must come back ---- */

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
        holdings_take(now, &s->inside);
        if (holdings_are_quiet(now, &s->inside) && (wanted == NULL || holdings_have_pools_of(now, wanted)))
            break;
        if (!turn(s, 1000, true))
            return false;
    }
    for (uint64_t end_ns = clock_ns() + SETTLE_NS;;) { /* descriptors are given up one by one, and taken for a moment */
        struct holdings before = *now;
        if (!pass_time_alone(s, 300000000u))
            return false;
        holdings_take(now, &s->inside);
        if (holdings_have_files_of(now, &before) || clock_ns() > end_ns)
            return true;
    }
}

static bool have_pools_come_back(struct stress *s, const struct holdings *now, const char *when)
{
    char text[256];
    return holdings_check_pools(now, &s->first, text, sizeof(text)) || fail(s, "%s: %s", when, text);
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
static bool end_round(struct stress *s)
{
    char text[512];
    if (!warm_up(s) || !quiet_down(s, &s->warm, &s->last) ||
        !have_pools_come_back(s, &s->last, "at the end of a round"))
        return false;
    if (!holdings_check_processes(&s->last, &s->warm, text, sizeof(text)))
        return fail(s, "at the end of a round: %s", text);
    s->rounds++;
    holdings_describe(&s->last, text, sizeof(text));
    note(s, "round %llu is clean: %llu kills, %llu at points; %s", (unsigned long long)s->rounds,
         (unsigned long long)s->kills, (unsigned long long)s->at_points, text);
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

/* The references, and what the engine holds before and after the first deaths. */
static bool learn(struct stress *s)
{
    struct err err;
    if (!s->has_points && (s->values->every_point || s->only_point != POINT_NONE))
        return fail(s, "this engine has no named points; make points, and run build/points/evenflow");
    load_begin(s->load, s->engine.socket);
    if (load_learn(s->load, NULL, NULL, &err) != 0)
        return fail(s, "%s", err.text);
    return quiet_down(s, NULL, &s->first) && warm_up(s) && quiet_down(s, &s->first, &s->warm) &&
           have_pools_come_back(s, &s->warm, "after each process has died once");
}

/* Nothing of an engine that has failed is left. */
static bool kill_engine(struct stress *s)
{
    const struct members members = read_members(s);
    for (uint64_t end_ns = clock_ns() + SETTLE_NS; !has_ended(s, &members) && clock_ns() < end_ns; reap(s)) {
        const struct members now = read_members(s);
        if (now.standby != 0)
            kill(now.standby, SIGKILL); /* the others end with the last of these two */
        kill(now.processes[0], SIGKILL);
        poll(NULL, 0, 1);
    }
    if (!has_ended(s, &members))
        return fail(s, "an engine that has failed cannot be ended");
    own_engine_forget(&s->engine);
    inside_close(&s->inside);
    return true;
}

/* What everybody was at: words that others go by, and the last of what it noted itself. */
static void write_processes(const struct stress *s, FILE *file)
{
    const struct sup_shm *sup = arena_sup(&s->inside);
    fprintf(file, "\nengine: ready %u, kept %u of %u, standby %u, %llu deaths\n", sup->ready, sup->kept,
            sup->head.epoch, sup->standby, (unsigned long long)sup->death_count);
    for (uint32_t number = 0; number < s->process_count; number++) {
        struct watch_look look = {0};
        char trace[1024];
        watch_read(pid_of(s, number), &look);
        fprintf(file, "%s %u: process %d (%c, %llu ms of processor time), %u lives before", role_name(role_of(number)),
                number < ROLE_STAGE ? 0 : number - ROLE_STAGE, pid_of(s, number), look.state ? look.state : '-',
                (unsigned long long)look.cpu_ns / 1000000, arena_process_restarts(&s->inside, number));
        if (number > 0) {
            const struct process_shm *p = block_of(s, number);
            trace_print(&p->trace, 12, clock_ns(), trace, sizeof(trace));
            fprintf(file, ", state %u, sleeping %u, step %llu, consumed %llu and %llu, told %llu; %s", p->state,
                    p->sleeping, (unsigned long long)p->step, (unsigned long long)p->consumed,
                    (unsigned long long)p->consumed_second, (unsigned long long)p->told, trace);
        }
        fputc('\n', file);
    }
}

/* The first one is `failure`, others have a number. */
static void write_failure(const struct stress *s)
{
    char path[OPTION_TEXT_MAX + 32], number[24] = "";
    if (s->failures > 1)
        snprintf(number, sizeof(number), "-%llu", (unsigned long long)s->failures);
    snprintf(path, sizeof(path), "%s/failure%s", s->values->artefacts, number);
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return;
    fprintf(file, "%s\n(after %llu bytes of the log)\n\n%s\n", s->failure,
            (unsigned long long)lseek(STDERR_FILENO, 0, SEEK_CUR), load_failure(s->load));
    if (s->inside.plan != NULL)
        write_processes(s, file);
    fclose(file);
}

/* It has failed: that is written down. True: another engine goes on. */
static bool get_over_failure(struct stress *s)
{
    if (s->failures++ == 0)
        snprintf(s->first_failure, sizeof(s->first_failure), "%s", s->failure);
    note(s, "FAILED: %s", s->failure);
    dprintf(s->own_stderr, "evenflow stress: %s\n", s->failure);
    write_failure(s);
    if (!s->values->keep_going || is_interrupted || s->failures == FAILURES_MAX)
        return false;
    for (uint32_t i = 0; i < s->process_count; i++)
        fault_take_back(s->points.page, i);
    s->failure[0] = '\0';
    bool goes_on = kill_engine(s) && begin_another_engine(s);
    if (!goes_on)
        dprintf(s->own_stderr, "evenflow stress: %s\n", s->failure);
    return goes_on;
}

static bool pause_between(struct stress *s, uint64_t begin_ns)
{
    const uint64_t next_ns = begin_ns + s->values->every * 1000000u;
    return clock_ns() >= next_ns || pass_time(s, next_ns - clock_ns());
}

/* False: it had to stop. */
static bool run_faults(struct stress *s)
{
    const struct values *values = s->values;
    if (!learn(s)) {
        get_over_failure(s);
        return false;
    }
    uint64_t limit_ns = values->seconds ? s->begin_ns + values->seconds * 1000000000ull : UINT64_MAX;
    uint64_t since_round = 0;
    for (uint64_t k = values->from; !are_kills_done(s) && clock_ns() < limit_ns; k++) {
        uint64_t begin_ns = clock_ns();
        struct fault fault = draw(s, k);
        bool is_good = commit_fault(s, &fault) && pause_between(s, begin_ns);
        if (++since_round >= values->round) {
            since_round = 0;
            is_good = is_good && end_round(s);
        }
        say_progress(s);
        if (!is_good && !get_over_failure(s))
            return false;
    }
    if (since_round > 0 && !end_round(s) && !get_over_failure(s))
        return false;
    char names[256];
    if (!values->every_point || points_missed(&s->points, names, sizeof(names)) == 0)
        return true;
    fail(s, "nobody came to die at %s", names);
    get_over_failure(s);
    return false;
}

static void print_percentiles(const struct samples *samples, FILE *out)
{
    fprintf(out, " %8.1f %8.1f", samples_percentile(samples, 0.5), samples_percentile(samples, 0.99));
}

static void print_recovery(const struct stress *s, FILE *out)
{
    fprintf(out, "%-14s %6s", "ms, median/P99", "deaths");
    for (uint32_t figure = 0; figure < FIGURE_COUNT; figure++)
        fprintf(out, " %17s", figure_names[figure]);
    fputc('\n', out);
    for (uint32_t role = ROLE_FRONT; role < ROLE_COUNT; role++) {
        fprintf(out, "%-14s %6zu", role_name((enum role)role), s->recovery[role][0].count);
        for (uint32_t figure = 0; figure < FIGURE_COUNT; figure++)
            print_percentiles(&s->recovery[role][figure], out);
        fputc('\n', out);
    }
    if (s->calm.count == 0)
        return;
    fprintf(out, "%-14s %6s", "nobody dies", "");
    print_percentiles(&s->calm, out);
    fprintf(out, " from byte to byte\n");
}

static json_t *recovery_json(const struct stress *s)
{
    json_t *roles = json_object();
    for (uint32_t role = ROLE_FRONT; role < ROLE_COUNT; role++) {
        json_t *parts = json_pack("{s:I}", "deaths", (json_int_t)s->recovery[role][0].count);
        for (uint32_t figure = 0; figure < FIGURE_COUNT; figure++)
            json_object_set_new(parts, figure_names[figure],
                                json_pack("{s:f, s:f}", "p50", samples_percentile(&s->recovery[role][figure], 0.5),
                                          "p99", samples_percentile(&s->recovery[role][figure], 0.99)));
        json_object_set_new(roles, role_name((enum role)role), parts);
    }
    return roles;
}

static void print_verdict(struct stress *s)
{
    const struct load_totals *totals = load_totals(s->load);
    char missed[4096];
    uint32_t missed_count = points_missed(&s->points, missed, sizeof(missed));
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        for (uint32_t figure = 0; figure < FIGURE_COUNT; figure++)
            samples_sort(&s->recovery[role][figure]);
    samples_sort(&s->calm);
    const bool is_good = s->failures == 0;
    if (s->values->json) {
        json_t *out = json_pack(
            "{s:s, s:I, s:I, s:I, s:I, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "verdict",
            is_good ? "clean" : "failed", "seed", (json_int_t)s->values->seed, "kills", (json_int_t)s->kills,
            "kills_at_points", (json_int_t)s->at_points, "rounds", (json_int_t)s->rounds, "points_within_reach",
            (int)s->points.target_count, "points_died_at", (int)(s->points.target_count - missed_count), "answers",
            (json_int_t)totals->answers, "bytes", (json_int_t)totals->bytes, "left", (json_int_t)totals->left,
            "closed_unread", (json_int_t)totals->closed_unread, "ended_with_supervisor",
            (json_int_t)s->ends_with_supervisor, "upgrades", (json_int_t)s->upgrades, "failures",
            (json_int_t)s->failures, "failure", s->first_failure);
        json_object_set_new(out, "points", points_json(&s->points));
        json_object_set_new(out, "recovery_ms", recovery_json(s));
        json_object_set_new(out, "held_before", holdings_json(&s->warm));
        json_object_set_new(out, "held_after", holdings_json(&s->last));
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(out);
    } else {
        char text[512];
        if (s->has_points)
            points_print(&s->points, stdout);
        print_recovery(s, stdout);
        holdings_describe(&s->warm, text, sizeof(text));
        printf("held before    %s\n", text);
        holdings_describe(&s->last, text, sizeof(text));
        printf("held after     %s\n", text);
        printf(
            "%s: %llu kills (%llu at %u of %u named points within reach), %llu rounds, %llu answers (%.1f MB) "
            "compared, %llu clients left, %llu closed unread, %llu upgrades, %llu engines ended with their supervisor, "
            "%llu failures\n",
            is_good ? "clean" : "FAILED", (unsigned long long)s->kills, (unsigned long long)s->at_points,
            s->points.target_count - missed_count, s->points.target_count, (unsigned long long)s->rounds,
            (unsigned long long)totals->answers, (double)totals->bytes / 1e6, (unsigned long long)totals->left,
            (unsigned long long)totals->closed_unread, (unsigned long long)s->upgrades,
            (unsigned long long)s->ends_with_supervisor, (unsigned long long)s->failures);
    }
    if (!is_good)
        fprintf(stderr, "evenflow stress: %s\n(again: --seed %llu; plan, log and failure lie in %s)\n",
                s->first_failure, (unsigned long long)s->values->seed, s->values->artefacts);
}

/* ---- artefacts ---- */

static bool open_artefacts(struct stress *s, struct err *err)
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
    int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (s->plan == NULL || log < 0)
        return err_set(err, -errno, "--artefacts %.300s: cannot write there: %s", folder, strerror(errno)) == 0;
    fflush(stderr);
    s->own_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    dup2(log, STDERR_FILENO); /* the engine's words */
    close(log);
    return true;
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional_count;
    static struct stress stress;
    struct stress *s = &stress;
    struct err err;
    *s = (struct stress){.values = pointer, .model_path = positional[0], .only_point = POINT_NONE};
    s->begin_ns = s->progress_ns = clock_ns();
    for (uint32_t point = 0; point < FAULT_COUNT; point++)
        if (strcmp(fault_names[point], s->values->point) == 0)
            s->only_point = point;
    if (s->values->point[0] != '\0' && s->only_point == POINT_NONE)
        return command_fail(2, "stress", "--point: there is no such point; ipc/fault.h lists them");
    if (s->values->lasting && s->values->every_point)
        return command_fail(2, "stress", "--lasting leaves out points: not with --every-point");
    if (!open_artefacts(s, &err))
        return command_fail(1, "stress", err.text);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    if (!begin_engine(s)) {
        fflush(stderr);
        dup2(s->own_stderr, STDERR_FILENO);
        return command_fail(s->start_error == -EINVAL ? 2 : 1, "stress", s->failure);
    }
    s->load = load_open(s->values->single ? LOAD_STREAMS : LOAD_MIXED, s->values->seed, (uint32_t)s->values->clients,
                        s->inside.plan->vocab_size);
    if (run_faults(s) ? !stop_engine(s) : (s->inside.plan != NULL && !kill_engine(s)))
        get_over_failure(s);
    fflush(stderr);
    dup2(s->own_stderr, STDERR_FILENO);
    print_verdict(s);
    load_close(s->load);
    fclose(s->plan);
    return s->failures == 0 ? 0 : 1;
}

const struct subcommand command_stress = {.name = "stress",
                                          .usage = "[OPTIONS] MODEL.gguf",
                                          .help = "Kills processes of an engine of its own and compares every answer",
                                          .options = &table,
                                          .values_bytes = sizeof(struct values),
                                          .positional_min = 1,
                                          .positional_max = 1,
                                          .run = run};
