/* clock.h - monotonic and wall-clock time.   Used by: all but the scheduler's core, which is handed its times. */
#ifndef EVENFLOW_CLOCK_H
#define EVENFLOW_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(void) /* monotonic */
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t clock_cpu_ns(void) /* of this thread: time that it ran */
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t clock_wall_s(void) /* seconds since 1970 */
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec;
}

#endif
