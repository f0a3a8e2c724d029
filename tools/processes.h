/* processes.h - the processes of a running engine, as GET /status lists them, and the CPU time that each has used.
 *
 * Used by: evenflow bench, evenflow top.   Owns: nothing.   Blocks: as reading /proc does.
 */
#ifndef EVENFLOW_PROCESSES_H
#define EVENFLOW_PROCESSES_H

#include <jansson.h>
#include <stdint.h>

#define ENGINE_PROCESSES_MAX 40u

struct engine_process {
    char role[16];
    char state[16];
    uint32_t index, pid;
    uint64_t restarts, steps;
    uint64_t cpu_ns; /* of all its threads since it began; 0: not to be read from here */
};

struct engine_processes {
    struct engine_process list[ENGINE_PROCESSES_MAX];
    uint32_t count;
};

void engine_processes_read(struct engine_processes *processes, json_t *status);

#endif
