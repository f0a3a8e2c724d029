/* packed.h - the packed weights of a whole model, kept in a file: the next start copies them instead of packing again.
 *
 * Used by: the launcher (finds or makes the file), stages (copy their slice).   Owns: nothing.
 * Blocks: on the file; packed_make() packs the whole model, with a team.
 *
 *   [ struct packed_head, PACKED_START bytes | what model_bind() lays out for layers 0..layers - 1 ]
 *
 * The file is a copy and never the truth: whatever is wrong with it, weights are packed from the model. It belongs to one model
 * file (size, times and header of every part) and one build (its layout), and holds a hash of all that is in it. It comes into
 * being under another name and is renamed when it is whole. Stages copy from it into their sealed region and do not map it:
 * nobody can change, shorten or evict those pages while the engine serves, and a successor needs no file.
 *
 * onlooker (model.h): who is told how far it is; NULL for none.
 */
#ifndef EVENFLOW_PACKED_H
#define EVENFLOW_PACKED_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/team.h"
#include "stages/gguf.h"
#include "stages/model.h"

#define PACKED_START 4096u

struct packed_head {
    uint64_t magic;
    uint64_t key;   /* of model file and build */
    uint64_t bytes; /* behind PACKED_START */
    uint64_t hash;  /* of those */
};

/* $XDG_CACHE_HOME or ~/.cache, then evenflow/NAME-HASH.weights. False when there is no such folder to be named. */
bool packed_path(char *path, size_t size, const char *model_path);

/* 0: the file is there, belongs to the model as it is now, and is whole. -ENOENT: none, or of another model or build.
 * -EBADMSG: it is damaged. Reads all of it, with the team. */
int packed_check(const char *path, const struct model_desc *desc, const struct gguf *gguf, struct team *team,
                 const struct onlooker *onlooker);

/* Makes the file, and its folder; what stood there is replaced. -EBUSY: another process is at it. 0, or -errno with err. */
int packed_make(const char *path, const struct model_desc *desc, const struct gguf *gguf, struct team *team,
                const struct onlooker *onlooker, struct err *err);

/* Copies the weights of layers first..first + count - 1 into memory of model_slice_bytes(). 0, or -errno: then what is
 * in memory is not to be used. */
int packed_copy(const char *path, const struct model_desc *desc, const struct gguf *gguf, uint32_t first,
                uint32_t count, void *memory);

#endif
