/* commit.h - words that a successor goes by: stores to shared memory that decide what has happened.
 *
 * Used by: front.   Owns: nothing.   Never blocks.
 *
 * Nobody else reads such a word while its writer lives; the successor reads it when the writer is proven dead. All stores
 * that were executed before are there then, in the order of the program; so the compiler alone must keep that order, and
 * a word is stored whole. Tests can let the process die before and after each commit.
 */
#ifndef EVENFLOW_COMMIT_H
#define EVENFLOW_COMMIT_H

#include <stdatomic.h>
#include <stdint.h>

#include "ipc/fault.h"

/* signal fences: what stands before is stored before, what stands behind is stored after; no instruction is needed */
#define COMMIT_FUNCTION(name, type)                                                                                    \
    static inline void name(type *word, type value, enum fault_id point)                                               \
    {                                                                                                                  \
        atomic_signal_fence(memory_order_seq_cst);                                                                     \
        fault_point(point);                                                                                            \
        __atomic_store_n(word, value, __ATOMIC_RELAXED);                                                               \
        fault_point(point);                                                                                            \
        atomic_signal_fence(memory_order_seq_cst);                                                                     \
    }
COMMIT_FUNCTION(commit_u32, uint32_t)
COMMIT_FUNCTION(commit_u64, uint64_t)
#undef COMMIT_FUNCTION

#endif
