/* lifeline.h - nothing outlives the last supervisor.
 *
 * Used by: supervisor, its children between fork and exec, processes that somebody else has started
 * (arena_inherit()).   Owns: a pipe.   Never blocks.
 *
 * Whoever supervises, or stands by to, holds the pipe's writing end; nobody ever writes. Every other process holds a reading
 * end of its own on which the kernel has been told to send it SIGKILL when something happens there: when the last writer is
 * gone, however it went. No process has to watch anything for that, a stopped one dies as well, and one of several
 * supervisors may die alone, which PR_SET_PDEATHSIG would not allow.
 */
#ifndef EVENFLOW_LIFELINE_H
#define EVENFLOW_LIFELINE_H

#include <stdbool.h>

#include "ipc/base.h"

struct lifeline {
    int reader, writer;
};

int lifeline_open(struct lifeline *line, struct err *err);

/* System calls only: from now on this process, which has no writing end, ends with the last writer. The reading
 * end stays open over exec. False: it cannot be had, or there is no writer any more. */
bool lifeline_hold(int reader);

#endif
