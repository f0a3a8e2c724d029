/* world.h - a whole engine in one process: the real front, scheduler and stages on shared memory's real layout, stepped by a
 * seed.
 *
 * Used by: simulate.   Owns: everything in it.   Blocks: never; its clock is its own.
 *
 *   front, sched, stages   the real code, as actors: at every named point (ipc/fault.h) one may be put aside for others, or die
 *   clients                those of evenflow stress, over real Unix sockets of this process
 *   supervisor             played here: proves deaths, starts successors, keeps connections, suspects steps
 *   time                   passes a little with every turn; when everybody sleeps, at once to whatever is next
 *
 * The seed decides everything, so a failure comes again. What is not here: processors that reorder stores, the supervisor's own
 * death, the other back end of front; for these there is evenflow stress.
 */
#ifndef EVENFLOW_SIMULATE_WORLD_H
#define EVENFLOW_SIMULATE_WORLD_H

#include "engine/keeper.h"
#include "engine/sched_process.h"
#include "ipc/arena.h"
#include "ipc/fault.h"
#include "stages/stage.h"
#include "tests/simulate/actor.h"
#include "tools/stress_load.h"

/* One of the engine's processes. */
struct process {
    struct actor actor;
    struct arena arena;
    uint64_t born_ns;            /* when its successor starts, while it is dead */
    struct sched_process *sched; /* of the scheduler: looked into */
};

struct world {
    uint64_t seed, random;
    struct plan plan;
    struct arena arena;
    struct keeper keeper;
    struct process processes[PROCESSES_MAX];
    uint32_t process_count;
    struct load *load;
    char folder[64], socket[96];
    uint64_t now_ns, turns, points;

    uint32_t deaths_left;             /* so many more are to die */
    uint64_t death_in;                /* points until the next one, of those that are meant */
    uint32_t death_point;             /* which are meant: FAULT_ANYWHERE, or this one */
    uint64_t meant_until;             /* points past which it is anywhere */
    uint64_t deaths[FAULT_COUNT + 1]; /* by point; the last one: inside of the model */
    uint64_t deaths_of[ROLE_COUNT], suspicions;
    uint64_t stops; /* for a long time: ended then, or not */
};

/* What the engine's code is inside of, once it runs. */
extern struct world *world_at_hand;

/* Chooses sizes, policy and times by the seed. load: its clients, which begin anew. */
void world_open(struct world *w, uint64_t seed, struct load *load, uint32_t deaths);
void world_close(struct world *w);

/* Something happens somewhere. False: an answer was wrong, see load_failure(). */
bool world_turn(struct world *w, bool is_over);

/* All that was taken has come back; else what has not, as text. */
bool world_is_at_rest(const struct world *w, char *text, size_t size);

/* A place where an actor may be put aside or die, beside the named points. */
void world_point(const char *name);

#endif
