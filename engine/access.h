/* access.h - who may ask over TCP: API keys, and the pages that a browser may ask from.
 *
 * Used by: front.   Owns: its copy of the keys.   Never blocks after access_open().
 * The Unix socket needs none of it: its permissions and its peer's user decide (front.c).
 */
#ifndef EVENFLOW_ACCESS_H
#define EVENFLOW_ACCESS_H

#include <stdbool.h>

#include "ipc/base.h"

#define ACCESS_KEYS_MAX      64u
#define ACCESS_KEY_BYTES_MAX 256u

struct access {
    uint8_t (*keys)[ACCESS_KEY_BYTES_MAX]; /* (key_count), filled up with zeros */
    uint32_t key_count;                    /* 0: no key is asked for */
    const char *origins;                   /* the plan's */
};

/* Reads keys, one a line, from keys_fd (-1: none) and closes it. Blank lines and those that begin with # do not count. 0, or
 * -errno with err. */
int access_open(struct access *access, int keys_fd, const char *origins, struct err *err);

/* Authorization's value names one of the keys. Takes as long for a wrong key as for a right one. */
bool access_has_key(const struct access *access, const char *credentials);

/* A page from this origin may ask. */
bool access_allows_origin(const struct access *access, const char *origin);

#endif
