#include "engine/watch.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ipc/base.h"

const char *const watch_words[] = {[WATCH_FINE] = "works",
                                   [WATCH_STOPPED] = "was stopped",
                                   [WATCH_SLEEPS] = "slept over its work",
                                   [WATCH_SPINS] = "ran without an end"};

void watch_begin(struct watch *watch)
{
    *watch = (struct watch){0};
}

static void start_waiting(struct watch *watch, const struct watch_look *look)
{
    *watch = (struct watch){.is_waiting = true,
                            .last_ns = look->now_ns,
                            .progress = look->progress,
                            .cpu_ns = look->cpu_ns,
                            .ran_ns = look->now_ns,
                            .ran_cpu_ns = look->cpu_ns};
}

bool watch_is_stopped(const struct watch_look *look)
{
    return look->state == 'T' || look->state == 't';
}

enum watch_verdict watch_judge(struct watch *watch, const struct watch_look *look)
{
    if (!look->has_work || look->state == 0) {
        watch_begin(watch);
        return WATCH_FINE;
    }
    if (!watch->is_waiting || look->progress != watch->progress || look->now_ns - watch->last_ns > WATCH_PAUSE_NS) {
        start_waiting(watch, look);
        return WATCH_FINE;
    }
    bool is_stopped = watch_is_stopped(look);
    watch->stopped_ns = is_stopped ? watch->stopped_ns + min_u64(look->now_ns - watch->last_ns, WATCH_TICK_NS) : 0;
    watch->last_ns = look->now_ns;
    if (watch->stopped_ns >= WATCH_STOPPED_NS)
        return WATCH_STOPPED;
    uint64_t allowance_ns = WATCH_BASE_NS + WATCH_FACTOR * look->predicted_us * 1000;
    uint64_t used_ns = look->cpu_ns - watch->cpu_ns;
    watch->has_run = watch->has_run || look->state == 'R' || used_ns > 0;
    if (look->state == 'R' || look->cpu_ns > watch->ran_cpu_ns || (look->state == 'D' && watch->has_run)) {
        watch->ran_ns = look->now_ns;
        watch->ran_cpu_ns = look->cpu_ns;
    }
    if (used_ns > allowance_ns)
        return WATCH_SPINS;
    if (!is_stopped && look->now_ns - watch->ran_ns > allowance_ns)
        return WATCH_SLEEPS;
    return WATCH_FINE;
}

bool watch_read(int pid, struct watch_look *look)
{
    char path[32], text[512];
    look->state = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (got <= 0)
        return false;
    text[got] = '\0';
    const char *behind_name = strrchr(text, ')'); /* the name may hold anything */
    unsigned long long user, system;
    if (behind_name == NULL || sscanf(behind_name + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu",
                                      &look->state, &user, &system) != 3)
        return false;
    look->cpu_ns = (user + system) * (1000000000ull / (uint64_t)sysconf(_SC_CLK_TCK));
    return true;
}
