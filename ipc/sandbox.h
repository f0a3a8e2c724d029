/* sandbox.h - what a process may still ask of the kernel once it has started: its work, and nothing else.
 *
 * Used by: front, sched, stages; the supervisor is outside, since a filter outlives exec.   Owns: nothing.   Never blocks.
 *
 * A process takes everything it needs at start: memory, descriptors, threads. Then it enters: no new privileges, and a
 * filter of system calls for all its threads, for good. Whatever is not on its role's list fails with EPERM and changes
 * nothing: opening files, sockets to elsewhere, exec, fork, ptrace, other processes' memory, executable memory,
 * mapping a descriptor or changing a mapping, punching holes. What memory it can write was decided before, by the
 * descriptors it was given (layout.h).
 */
#ifndef EVENFLOW_SANDBOX_H
#define EVENFLOW_SANDBOX_H

#include "ipc/base.h"
#include "ipc/layout.h"

/* Whether filters can be had here; said where one would be missed. */
bool sandbox_is_possible(void);

/* 0, or -errno with err. From ROLE_SUPERVISOR: a bug. */
int sandbox_enter(enum role role, struct err *err);

/* The one exception: a stage that computes on a CUDA device. Its driver goes on asking the kernel while it serves: ioctl(),
 * opening files, mapping what they stand for. So these are left to it, and what they reach is limited by the user that it runs
 * as alone. Never executable memory, and all else as for other stages. */
int sandbox_enter_with_device(struct err *err);

/* And one in it: a stage whose activations NCCL carries. Each connection takes sockets to the other end and threads of its own,
 * and there is another one after every death of a neighbour: so sockets, threads and files of shared memory are left to it.
 * Never other programs or processes. */
int sandbox_enter_with_nccl(struct err *err);

#endif
