/* cmd_top.c - evenflow top: a running engine at a glance, drawn again every second.
 *
 * Everything comes from GET /status, twice: rates are differences. No terminal library: a few escape sequences that every
 * terminal of the last decades knows. Where standard output is no terminal, one picture is written and that is all.
 */
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "engine/config.h"
#include "ipc/clock.h"
#include "tools/commands.h"
#include "tools/processes.h"

#define HISTORY 60u

struct values {
    char socket[OPTION_TEXT_MAX];
    double interval_s;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"interval", NULL, 0, OPTION_DECIMAL, AT(interval_s), "1", 0.1, 3600, "SECONDS", "Time between two pictures"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* What the engine said at one time. */
struct sample {
    uint64_t at_ns;
    json_t *status;
    struct engine_processes processes;
};

struct top {
    char socket[OPTION_TEXT_MAX];
    struct sample before, now; /* before.status NULL: there is no rate yet */
    double rates[HISTORY];     /* tokens a second, the latest last */
    uint32_t rate_count;
    char *text; /* the picture; written in one go, so that it does not flicker */
    size_t size;
    bool is_terminal;
};

/* ---- numbers ---- */

static uint64_t value(const struct sample *sample, const char *group, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(json_object_get(sample->status, group), key));
}

static double per_second(const struct top *top, uint64_t before, uint64_t now)
{
    if (top->before.status == NULL || now < before)
        return 0;
    return (double)(now - before) * 1e9 / (double)(top->now.at_ns - top->before.at_ns);
}

static double rate(const struct top *top, const char *group, const char *key)
{
    return per_second(top, value(&top->before, group, key), value(&top->now, group, key));
}

/* 1,234,567 */
static const char *grouped(char text[32], uint64_t number)
{
    char digits[24];
    int count = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)number), at = 0;
    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = '\0';
    return text;
}

/* ---- drawing ---- */

#define BOLD  "\33[1m"
#define DIM   "\33[2m"
#define RED   "\33[31m"
#define PLAIN "\33[0m"

static const char *style(const struct top *top, const char *sequence)
{
    return top->is_terminal ? sequence : "";
}

static void end_line(const struct top *top, FILE *out)
{
    fputs(top->is_terminal ? "\33[K\r\n" : "\n", out);
}

static void draw_bar(FILE *out, double share)
{
    uint32_t full = (uint32_t)(share * 24 + 0.5);
    for (uint32_t i = 0; i < 24; i++)
        fputs(i < full ? "\u2588" : "\u2591", out);
}

static void draw_history(const struct top *top, FILE *out)
{
    static const char *const heights[] = {"\u2581", "\u2582", "\u2583", "\u2584",
                                          "\u2585", "\u2586", "\u2587", "\u2588"};
    double most = 1;
    for (uint32_t i = 0; i < top->rate_count; i++)
        most = top->rates[i] > most ? top->rates[i] : most;
    for (uint32_t i = 0; i < top->rate_count; i++)
        fputs(heights[(uint32_t)(top->rates[i] / most * 7 + 0.5)], out);
}

static void draw_title(const struct top *top, FILE *out)
{
    const char *version = json_string_value(json_object_get(top->now.status, "version"));
    const char *model = json_string_value(json_object_get(top->now.status, "model"));
    time_t now = time(NULL);
    struct tm parts;
    char clock[16];
    strftime(clock, sizeof(clock), "%H:%M:%S", localtime_r(&now, &parts));
    fprintf(out, "%sevenflow %s%s  %s  %s%s%s", style(top, BOLD), version ? version : "", style(top, PLAIN),
            model ? model : "", style(top, DIM), clock, style(top, PLAIN));
    end_line(top, out);
    end_line(top, out);
}

static void draw_engine(const struct top *top, FILE *out)
{
    const struct sample *now = &top->now;
    char a[32], b[32], c[32];
    uint64_t total = value(now, "blocks", "total"), free_blocks = value(now, "blocks", "free");
    fprintf(out, "tokens     %s%8.1f/s%s generated  %8.1f/s prompt   %s generated, %s prompt in all", style(top, BOLD),
            rate(top, "tokens", "generated"), style(top, PLAIN), rate(top, "tokens", "prompt"),
            grouped(a, value(now, "tokens", "generated")), grouped(b, value(now, "tokens", "prompt")));
    end_line(top, out);
    fprintf(out, "           %s", style(top, DIM));
    draw_history(top, out);
    fputs(style(top, PLAIN), out);
    end_line(top, out);
    fprintf(out, "sequences  %8s running  %8s waiting   %s preemptions", grouped(a, value(now, "sequences", "running")),
            grouped(b, value(now, "sequences", "waiting")), grouped(c, value(now, "sequences", "preemptions")));
    end_line(top, out);
    fprintf(out, "steps      %8.1f/s          %8s in flight", rate(top, "steps", "planned"),
            grouped(a, value(now, "steps", "in_flight")));
    end_line(top, out);
    fprintf(out, "requests   %8s active   %8.1f/s          %s accepted", grouped(a, value(now, "requests", "active")),
            rate(top, "requests", "accepted"), grouped(b, value(now, "requests", "accepted")));
    fprintf(out, ", %s refused", grouped(a, value(now, "requests", "refused")));
    fprintf(out, ", %s aborted", grouped(a, value(now, "requests", "aborted")));
    end_line(top, out);
    fprintf(out, "clients    %8s connected", grouped(a, value(now, "connections", "open")));
    end_line(top, out);
    fputs("KV blocks  ", out);
    draw_bar(out, total > 0 ? (double)(total - free_blocks) / (double)total : 0);
    fprintf(out, "  %s of %s", grouped(a, total - free_blocks), grouped(b, total));
    end_line(top, out);
    end_line(top, out);
}

static void draw_processes(const struct top *top, FILE *out)
{
    fprintf(out, "%s%-12s %8s  %-9s %8s %12s %9s %6s%s", style(top, DIM), "process", "pid", "state", "restarts",
            "steps", "steps/s", "cpu", style(top, PLAIN));
    end_line(top, out);
    for (uint32_t i = 0; i < top->now.processes.count; i++) {
        const struct engine_process *now = &top->now.processes.list[i];
        const struct engine_process *before = i < top->before.processes.count ? &top->before.processes.list[i] : now;
        bool is_same = before->pid == now->pid;
        bool is_ready = strcmp(now->state, "ready") == 0;
        char name[32], steps[32];
        snprintf(name, sizeof(name), strcmp(now->role, "stage") == 0 ? "%s %u" : "%s", now->role, now->index);
        fprintf(out, "%-12s %8u  %s%-9s%s %s%8llu%s %12s", name, now->pid, is_ready ? "" : style(top, RED), now->state,
                style(top, PLAIN), now->restarts > 0 ? style(top, RED) : "", (unsigned long long)now->restarts,
                style(top, PLAIN), grouped(steps, now->steps));
        fprintf(out, " %9.1f", is_same ? per_second(top, before->steps, now->steps) : 0);
        if (now->cpu_ns != 0)
            fprintf(out, " %5.0f%%", is_same ? per_second(top, before->cpu_ns, now->cpu_ns) / 1e7 : 0);
        end_line(top, out);
    }
}

/* The picture, as many lines of it as the terminal has. */
static void draw(struct top *top, const char *problem)
{
    FILE *out = open_memstream(&top->text, &top->size);
    check(out != NULL);
    if (top->now.status != NULL) {
        draw_title(top, out);
        draw_engine(top, out);
        draw_processes(top, out);
    }
    if (problem != NULL) {
        end_line(top, out);
        fprintf(out, "%s%s%s", style(top, RED), problem, style(top, PLAIN));
        end_line(top, out);
    }
    fclose(out);
    struct winsize window;
    size_t shown = top->size;
    if (top->is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_row > 0) {
        uint32_t lines = 0;
        for (size_t i = 0; i < top->size && shown == top->size; i++)
            if (top->text[i] == '\n' && ++lines == window.ws_row)
                shown = i - 1; /* the last line has no newline: it would scroll */
        fputs("\33[H", stdout);
    }
    fwrite(top->text, 1, shown, stdout);
    if (top->is_terminal)
        fputs("\33[J", stdout);
    fflush(stdout);
    free(top->text);
}

/* ---- taking samples ---- */

static void forget(struct sample *sample)
{
    json_decref(sample->status);
    *sample = (struct sample){0};
}

static bool take_sample(struct top *top, struct err *err)
{
    json_t *status = command_get(top->socket, "/status", err);
    if (status == NULL) {
        forget(&top->before); /* whoever answers next begins anew */
        forget(&top->now);
        top->rate_count = 0;
        return false;
    }
    forget(&top->before);
    top->before = top->now;
    top->now = (struct sample){.at_ns = clock_ns(), .status = status};
    engine_processes_read(&top->now.processes, status);
    if (top->before.status != NULL) {
        if (top->rate_count == HISTORY)
            memmove(top->rates, top->rates + 1, --top->rate_count * sizeof(top->rates[0]));
        top->rates[top->rate_count++] = rate(top, "tokens", "generated");
    }
    return true;
}

/* ---- the terminal ---- */

/* Until q is pressed or a signal comes. */
static void watch(struct top *top, double interval_s)
{
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGHUP);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    check(signals >= 0);
    struct termios before, keys;
    bool has_keys = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &before) == 0;
    if (has_keys) {
        keys = before;
        keys.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSANOW, &keys);
    }
    fputs("\33[?1049h\33[?25l", stdout); /* a screen of our own, without a cursor */
    uint64_t next_ns = clock_ns();
    for (bool goes_on = true; goes_on;) {
        struct err err;
        draw(top, take_sample(top, &err) ? NULL : err.text);
        next_ns = max_u64(next_ns + (uint64_t)(interval_s * 1e9), clock_ns());
        for (uint64_t now_ns = clock_ns(); goes_on && now_ns < next_ns; now_ns = clock_ns()) {
            struct pollfd fds[2] = {{.fd = signals, .events = POLLIN},
                                    {.fd = has_keys ? STDIN_FILENO : -1, .events = POLLIN}};
            char key = 0;
            if (poll(fds, 2, (int)((next_ns - now_ns + 999999) / 1000000)) <= 0)
                continue;
            if (fds[1].revents != 0 && read(STDIN_FILENO, &key, 1) <= 0)
                has_keys = false;
            goes_on = fds[0].revents == 0 && key != 'q' && key != 'Q';
        }
    }
    fputs("\33[?25h\33[?1049l", stdout);
    fflush(stdout);
    if (has_keys)
        tcsetattr(STDIN_FILENO, TCSANOW, &before);
    close(signals);
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional;
    (void)positional_count;
    const struct values *values = pointer;
    static struct top top;
    config_socket_path(top.socket, sizeof(top.socket), values->socket);
    top.is_terminal = isatty(STDOUT_FILENO);
    struct err err;
    if (!take_sample(&top, &err))
        return command_fail(1, "top", err.text);
    if (top.is_terminal) {
        watch(&top, values->interval_s);
    } else {
        poll(NULL, 0, (int)(values->interval_s * 1e3)); /* rates are differences */
        if (!take_sample(&top, &err))
            return command_fail(1, "top", err.text);
        draw(&top, NULL);
    }
    forget(&top.before);
    forget(&top.now);
    return 0;
}

const struct subcommand command_top = {.name = "top",
                                       .usage = "[OPTIONS]",
                                       .help = "Shows a running engine at a glance, drawn again every second; q leaves",
                                       .options = &table,
                                       .values_bytes = sizeof(struct values),
                                       .run = run};
