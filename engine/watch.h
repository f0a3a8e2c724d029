/* watch.h - tells a process that hangs from one that only waits for its turn.
 *
 * Used by: supervisor.   Owns: nothing.   Never blocks; watch_read() reads one file of /proc.
 *
 * Judged only while there is work for it and it finishes none. Since then it
 *
 *   was stopped all the time                                              for a while            -> hangs
 *   sleeps since it last ran (or has never run, however it waits)          its allowance          -> hangs
 *   ran, and has used more processor time than the work could take        its allowance          -> hangs
 *   ran, but the processor was others'                                    as long as it takes    -> is left alone
 *
 * If this process itself was not there for a while, the whole machine was paused: judging begins anew.
 */
#ifndef EVENFLOW_WATCH_H
#define EVENFLOW_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#define WATCH_TICK_NS    100000000ull /* how often one looks while there is work */
#define WATCH_PAUSE_NS   500000000ull /* a look that comes so late: the machine was paused */
#define WATCH_STOPPED_NS 300000000ull
#define WATCH_BASE_NS    2000000000ull /* allowance: this, and WATCH_FACTOR times what was predicted */
#define WATCH_FACTOR     20u

struct watch_look {
    uint64_t now_ns;
    bool has_work;
    uint64_t progress;     /* changes when work is finished */
    uint64_t predicted_us; /* of the work at hand; 0: nothing is known */
    char state;            /* as /proc has it: R, S, D, T, t, Z; 0: not to be read */
    uint64_t cpu_ns;       /* used so far */
};

enum watch_verdict { WATCH_FINE, WATCH_STOPPED, WATCH_SLEEPS, WATCH_SPINS };

struct watch {
    bool is_waiting; /* since the fields below were set it has had work and finished none */
    uint64_t last_ns, progress, cpu_ns;
    uint64_t stopped_ns;         /* found stopped for so long; a look that came late counts as one in time */
    uint64_t ran_ns, ran_cpu_ns; /* when it was last seen running, or waiting for a disk; what it had used then */
    bool has_run;                /* it was seen running or used processor time */
};

void watch_begin(struct watch *watch);
enum watch_verdict watch_judge(struct watch *watch, const struct watch_look *look);

/* State and processor time of a process; false: it cannot be read. */
bool watch_read(int pid, struct watch_look *look);

/* By a signal or a tracer. */
bool watch_is_stopped(const struct watch_look *look);

extern const char *const watch_words[]; /* by verdict: "was stopped" ... */

#endif
