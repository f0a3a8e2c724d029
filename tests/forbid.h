/* forbid.h - a system call that this process, and all it starts, may use no more: as on an older or a locked system. */
#ifndef EVENFLOW_TESTS_FORBID_H
#define EVENFLOW_TESTS_FORBID_H

/* The call fails with `error` from now on. Number as in <sys/syscall.h>. */
void forbid_call(int number, int error);

#endif
