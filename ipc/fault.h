/* fault.h - named points at which a test lets a process die.
 *
 * Used by: front, and what it shares with others.   Owns: nothing.   Never blocks.
 *
 * Only in objects that are built with EVENFLOW_FAULTS; in all others a point is nothing at all. A point stands before
 * or after whatever a successor could find half done: a store to shared memory that decides something, a system call.
 */
#ifndef EVENFLOW_FAULT_H
#define EVENFLOW_FAULT_H

#ifdef EVENFLOW_FAULTS
/* Called at every point when set; the test's own. */
extern void (*fault_hook)(const char *name);
void fault_point(const char *name);
#else
static inline void fault_point(const char *name)
{
    (void)name;
}
#endif

#endif
