/* team.h - threads of one process that do one piece of work together, in lockstep.
 *
 * Used by: stages (--threads-per-stage).   Owns: its threads.   Blocks: team_run() and team_meet(), until the others are there.
 *
 *   team_run(work):   every member runs work(context, part), part 0 being the caller;
 *                     team_meet() inside it: nobody passes before all have come
 *
 * What a member wrote before a meeting every member sees behind it. NULL is the team of one: its caller.
 *
 * Waiting is made for cores that are not ours alone: a member that waits looks for a moment, then lets others run, then sleeps
 * in the kernel. It never keeps a core from the one it waits for.
 */
#ifndef EVENFLOW_TEAM_H
#define EVENFLOW_TEAM_H

#include <stdint.h>

#include "ipc/base.h"

#define TEAM_MAX 64u

struct team;
typedef void (*team_work)(void *context, uint32_t part);

/* Starts size - 1 threads; each calls start(context, its part) first, where there is one. *team is NULL for a size of 1.
 * 0, or -errno with err. */
int team_open(struct team **team, uint32_t size, team_work start, void *context, struct err *err);

/* Ends and joins the threads. */
void team_close(struct team *team);

uint32_t team_size(const struct team *team);

/* Returns when every member is done. Never called by two at a time. */
void team_run(struct team *team, team_work work, void *context);

/* By every member of a running piece of work, as often as by every other. */
void team_meet(struct team *team);

/* The share of part `part` of `count` things: *first .. *first + result - 1. Shares are whole units (the last one may be
 * cut), next to each other in the order of parts, and differ by one unit at most. */
uint32_t team_share(const struct team *team, uint32_t part, uint32_t count, uint32_t unit, uint32_t *first);

#endif
