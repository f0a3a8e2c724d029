#include "tools/stress_points.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static_assert(FAULT_BY_FRONT == 1u << ROLE_FRONT && FAULT_BY_STAGE == 1u << ROLE_STAGE, "a bit for each role");

int points_open(struct stress_points *points, const char *path, struct err *err)
{
    *points = (struct stress_points){0};
    int page = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    void *memory = page >= 0 && ftruncate(page, sizeof(*points->page)) == 0
                       ? mmap(NULL, sizeof(*points->page), PROT_READ | PROT_WRITE, MAP_SHARED, page, 0)
                       : MAP_FAILED;
    if (memory == MAP_FAILED)
        return err_set(err, -errno, "%.300s: cannot write there: %s", path, strerror(errno));
    close(page);
    points->page = memory;
    char *absolute = realpath(path, NULL);
    setenv("EVENFLOW_FAULT_PAGE", absolute != NULL ? absolute : path, 1);
    free(absolute);
    return 0;
}

static enum role role_of(uint32_t process)
{
    return process < ROLE_STAGE ? (enum role)process : ROLE_STAGE;
}

static bool can_come(uint32_t process, uint32_t point)
{
    return fault_by[point] >> role_of(process) & 1;
}

void points_begin(struct stress_points *points, uint32_t process_count)
{
    points->process_count = process_count;
    points->target_count = 0;
    bool is_uring = points_hits(points, FAULT_IO_OPENED) > 0;
    const uint32_t absent = FAULT_AT_FIRST | (is_uring ? FAULT_WITH_EPOLL : FAULT_WITH_URING);
    for (uint32_t point = 0; point < FAULT_COUNT; point++)
        if (!(fault_by[point] & absent))
            points->targets[points->target_count++] = point;
}

uint64_t points_hits(const struct stress_points *points, uint32_t point)
{
    uint64_t hits = 0;
    for (uint32_t process = 0; process < points->process_count; process++)
        hits += fault_hits(points->page, process, point);
    return hits;
}

uint64_t points_deaths(const struct stress_points *points, uint32_t point)
{
    uint64_t deaths = 0;
    for (uint32_t process = 0; process < points->process_count; process++)
        deaths += fault_deaths(points->page, process, point);
    return deaths;
}

bool points_are_there(const struct stress_points *points)
{
    return points_hits(points, FAULT_ARENA_STATE) > 0;
}

uint32_t points_target(const struct stress_points *points, uint64_t turn)
{
    const uint32_t first = (uint32_t)(turn % points->target_count);
    for (uint32_t i = 0; i < points->target_count; i++) {
        uint32_t point = points->targets[(first + i) % points->target_count];
        if (points_deaths(points, point) == 0)
            return point;
    }
    return points->targets[first];
}

uint32_t points_victim(const struct stress_points *points, uint32_t point, uint32_t pick)
{
    uint32_t been[FAULT_PROCESSES_MAX] = {0}, able[FAULT_PROCESSES_MAX] = {0}, been_count = 0, able_count = 0;
    for (uint32_t process = 0; process < points->process_count; process++) {
        if (!can_come(process, point))
            continue;
        able[able_count++] = process;
        if (fault_hits(points->page, process, point) > 0)
            been[been_count++] = process;
    }
    return been_count > 0 ? been[pick % been_count] : able[pick % able_count];
}

uint32_t points_known_to(const struct stress_points *points, uint32_t process, uint32_t pick)
{
    uint32_t known[FAULT_COUNT] = {0}, count = 0;
    for (uint32_t point = 0; point < FAULT_COUNT; point++)
        if (fault_hits(points->page, process, point) > 0)
            known[count++] = point;
    return count > 0 ? known[pick % count] : FAULT_ANYWHERE;
}

uint32_t points_missed(const struct stress_points *points, char *names, size_t size)
{
    uint32_t count = 0;
    size_t used = 0;
    names[0] = '\0';
    for (uint32_t i = 0; i < points->target_count; i++) {
        if (points_deaths(points, points->targets[i]) > 0)
            continue;
        count++;
        if (used < size)
            used +=
                (size_t)snprintf(names + used, size - used, "%s%s", used ? ", " : "", fault_names[points->targets[i]]);
    }
    return count;
}

/* NULL: it is within reach. */
static const char *why_not(const struct stress_points *points, uint32_t point)
{
    for (uint32_t i = 0; i < points->target_count; i++)
        if (points->targets[i] == point)
            return NULL;
    return fault_by[point] & FAULT_AT_FIRST     ? "only while an engine starts: a death ends it"
           : fault_by[point] & FAULT_WITH_URING ? "only with --io uring"
                                                : "only with --io epoll";
}

void points_print(const struct stress_points *points, FILE *out)
{
    fprintf(out, "%-28s %12s %7s of which front, scheduler, stages, supervisor\n", "named point", "hits", "deaths");
    for (uint32_t point = 0; point < FAULT_COUNT; point++) {
        const char *reason = why_not(points, point);
        uint64_t deaths[ROLE_COUNT] = {0};
        for (uint32_t process = 0; process < points->process_count; process++)
            deaths[role_of(process)] += fault_deaths(points->page, process, point);
        fprintf(out, "%-28s %12llu %7llu", fault_names[point], (unsigned long long)points_hits(points, point),
                (unsigned long long)points_deaths(points, point));
        if (reason != NULL)
            fprintf(out, "   (%s)\n", reason);
        else
            fprintf(out, " %7llu %7llu %7llu %7llu\n", (unsigned long long)deaths[ROLE_FRONT],
                    (unsigned long long)deaths[ROLE_SCHED], (unsigned long long)deaths[ROLE_STAGE],
                    (unsigned long long)deaths[ROLE_SUPERVISOR]);
    }
}

json_t *points_json(const struct stress_points *points)
{
    json_t *all = json_object();
    for (uint32_t point = 0; point < FAULT_COUNT; point++) {
        const char *reason = why_not(points, point);
        json_t *one = json_pack("{s:I, s:I}", "hits", (json_int_t)points_hits(points, point), "deaths",
                                (json_int_t)points_deaths(points, point));
        if (reason != NULL)
            json_object_set_new(one, "out_of_reach", json_string(reason));
        json_object_set_new(all, fault_names[point], one);
    }
    return all;
}
