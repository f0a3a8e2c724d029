/* stress_points.h - the named points of an engine under evenflow stress: at which of them somebody has died, and which is next.
 *
 * Used by: evenflow stress.   Owns: the page of orders.   Never blocks.
 *
 * A point is within reach when some process of this engine can come to it: not those of the other back end of front, nor those
 * that are passed only while an engine starts. Everybody in reach of a point is asked about its hits and deaths.
 */
#ifndef EVENFLOW_STRESS_POINTS_H
#define EVENFLOW_STRESS_POINTS_H

#include <jansson.h>
#include <stdio.h>

#include "ipc/fault.h"
#include "ipc/layout.h"

struct stress_points {
    struct fault_page_shm *page; /* shared with every process of the engine */
    uint32_t process_count;
    uint32_t targets[FAULT_COUNT]; /* those within reach */
    uint32_t target_count;
};

/* A new page, in a file that processes started from now on find by their environment. 0, or -errno with err. */
int points_open(struct stress_points *points, const char *path, struct err *err);

/* An engine is ready: so many processes. Which back end its front has is seen from where it has been. */
void points_begin(struct stress_points *points, uint32_t process_count);

/* Processes of the engine come to points: it was built with them. */
bool points_are_there(const struct stress_points *points);

uint64_t points_hits(const struct stress_points *points, uint32_t point);
uint64_t points_deaths(const struct stress_points *points, uint32_t point);

/* The turn-th target, or the next one behind it at which nobody has died so far. */
uint32_t points_target(const struct stress_points *points, uint64_t turn);

/* The process that dies at a point: one of those that have been there, else of those that can come there. */
uint32_t points_victim(const struct stress_points *points, uint32_t point, uint32_t pick);

/* One that this process has been at; FAULT_ANYWHERE: there is none. */
uint32_t points_known_to(const struct stress_points *points, uint32_t process, uint32_t pick);

/* Targets at which nobody has died; their names, as far as there is room. */
uint32_t points_missed(const struct stress_points *points, char *names, size_t size);

/* Point by point: hits, deaths by role; or why it is out of reach. */
void points_print(const struct stress_points *points, FILE *out);
json_t *points_json(const struct stress_points *points);

#endif
