/* words.h - last words: a process that faults, or whose check() fails, leaves in its own region why.
 *
 * Used by: every process (arena_inherit() opens it), supervisor (reads, of the dead).   Owns: nothing.   Never blocks.
 *
 * The kernel says of a signal where it comes from: an instruction of this process, or somebody's kill(). Only the former is
 * the process's own doing. After its words it dies of the same signal, as it would have without them.
 */
#ifndef EVENFLOW_WORDS_H
#define EVENFLOW_WORDS_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#define WORDS_TEXT_MAX 96u

struct words_shm {
    uint32_t signal;           /* W: the process, in its last moments   R: supervisor, after its death; 0: none */
    int32_t code;              /* si_code: above 0 the kernel's, of an instruction */
    uint32_t sender;           /* process that sent it, when one did */
    uint32_t epoch;            /* whose words these are */
    uint64_t address;          /* at which it faulted */
    uint64_t instruction;      /* where */
    char text[WORDS_TEXT_MAX]; /* the broken promise of a check(); "" when it was none */
};
static_assert(sizeof(struct words_shm) == 128, "shared");

/* Once, at start. */
void words_open(struct words_shm *words, uint32_t epoch);

/* What was read of somebody's: it died of its own doing. signal: what it died of. */
bool words_are_own_fault(const struct words_shm *words, uint32_t epoch, int signal);

#endif
