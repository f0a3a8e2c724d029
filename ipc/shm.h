/* shm.h - memory shared by processes: sealed memfds, mapped once.
 *
 * Used by: launcher and supervisor (create), every process (map).   Owns: nothing; fds and mappings are the caller's.
 * Blocks: shm_map() with SHM_POPULATE takes the page faults at once.
 */
#ifndef EVENFLOW_SHM_H
#define EVENFLOW_SHM_H

#include <stddef.h>

#include "ipc/base.h"

enum shm_access {
    SHM_READ = 0,
    SHM_WRITE = 1 << 0,
    SHM_POPULATE = 1 << 1, /* every page is there when shm_map() returns */
};

/* A memfd of exactly this size, zero, close-on-exec, never executable, size sealed. fd, or -errno with err. */
int shm_create(const char *name, size_t bytes, struct err *err);

/* A memfd with this content, in whole pages, sealed against every change. fd, or -errno with err. */
int shm_sealed_copy(const char *name, const void *content, size_t bytes, struct err *err);

/* A second descriptor of the same memory that cannot be mapped for writing. fd, or -errno with err. */
int shm_read_only(int fd, struct err *err);

/* Maps all of it. err names `name`. NULL with err. */
void *shm_map(int fd, size_t bytes, int access, const char *name, struct err *err);

/* No more writing by anybody, ever; the caller has unmapped its writable view. 0, or -errno with err. */
int shm_seal(int fd, struct err *err);
bool shm_is_sealed(int fd);

#endif
