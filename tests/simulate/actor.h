/* actor.h - processes of an engine as coroutines of one process: each runs until it yields, sleeps, or dies in the middle.
 *
 * Used by: simulate.   Owns: an actor's stack, and what it has taken: memory and descriptors.   Blocks: never for real.
 *
 * One that dies is not run any further; what it took goes, as the kernel would see to it, and what it has stored elsewhere
 * stays.
 */
#ifndef EVENFLOW_SIMULATE_ACTOR_H
#define EVENFLOW_SIMULATE_ACTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

enum actor_state {
    ACTOR_DEAD,
    ACTOR_READY,
    ACTOR_ASLEEP, /* until its descriptor is readable or its moment has come */
};

struct actor {
    enum actor_state state;
    int wake_fd;
    uint64_t wake_ns;
    ucontext_t context;
    void *stack;
    void **memory; /* what it has allocated */
    uint32_t memory_count, memory_max;
    int *files; /* what it has opened */
    uint32_t file_count, file_max;
};

/* The one that runs; NULL: none, but the world around them. */
extern struct actor *actor_at_hand;

/* A new life, which begins with the first actor_resume(). `run` does not return. */
void actor_start(struct actor *actor, void (*run)(void *argument), void *argument);
/* From the world: until it yields, sleeps or dies. */
void actor_resume(struct actor *actor);
/* It is dead: what it took goes. */
void actor_clear(struct actor *actor);

/* From an actor. */
void actor_yield(void);
void actor_sleep(int fd, uint64_t until_ns);
_Noreturn void actor_die(void);
/* This descriptor is its own. */
void actor_own(struct actor *actor, int fd);

#endif
