/* prefix.h - names of KV blocks by what is in them: a keyed 128-bit hash over everything up to the block's end.
 *
 * Used by: sched.   Owns: nothing.   Never blocks.
 *
 * The hash of a block covers its tokens and the hash of the block before it, so equal hashes mean equal prefixes. It is
 * SipHash-2-4 with 128 bits of output (Aumasson and Bernstein 2012; https://131002.net/siphash) under a key that the launcher
 * draws for each start: a client who does not know the key cannot make two prefixes collide, and by chance they do not.
 */
#ifndef EVENFLOW_PREFIX_H
#define EVENFLOW_PREFIX_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/layout.h"

/* parent: of the block before; NULL for the first. */
struct block_hash_shm prefix_hash(const uint64_t key[2], const struct block_hash_shm *parent, const uint32_t *tokens,
                                  uint32_t count);

/* SipHash-2-4-128 of bytes, for its published test vectors. */
struct block_hash_shm prefix_siphash(const uint64_t key[2], const void *bytes, size_t size);

#endif
