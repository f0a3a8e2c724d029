/* inside.h - a running engine's shared memory, read-only, from outside: for who checks that all of it comes back.
 *
 * Used by: evenflow stress, evenflow upgrade.   Owns: its mappings.   Never blocks; reads /proc.
 *
 * The regions stay the same in every life of every process, so they are looked up once. Only a supervisor of the same user,
 * which holds them all, can be asked.
 */
#ifndef EVENFLOW_INSIDE_H
#define EVENFLOW_INSIDE_H

#include <sys/types.h>

#include "ipc/arena.h"

/* The plan alone, mapped until the end. NULL with err. */
const struct plan *inside_plan(pid_t supervisor, struct err *err);

/* Maps what the supervisor holds. 0, or -errno with err. */
int inside_open(struct arena *arena, pid_t supervisor, struct err *err);
void inside_close(struct arena *arena);

/* Open descriptors of a process, and its own memory in kB; -1: it is gone. */
int64_t inside_files_of(pid_t pid);
int64_t inside_memory_kb_of(pid_t pid);
/* Memory of all memfds that a process holds, as far as it is filled in, in kB. */
int64_t inside_shared_kb_of(pid_t pid);

#endif
