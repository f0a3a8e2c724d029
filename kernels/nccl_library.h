/* nccl_library.h - the part of NCCL's interface that is used, declared here: nothing of NCCL is needed to build.
 *
 * Used by: nccl.c, and what stands in for the library in tests.   Owns: nothing.
 *
 * Numbers and structs as in nccl.h of NCCL 2.28. Later versions take the settings of 2.17 by their size and version.
 */
#ifndef EVENFLOW_KERNELS_NCCL_LIBRARY_H
#define EVENFLOW_KERNELS_NCCL_LIBRARY_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda_driver.h"

enum nccl_result {
    NCCL_OK = 0,
    NCCL_CUDA_ERROR = 1,
    NCCL_SYSTEM_ERROR = 2,
    NCCL_INTERNAL_ERROR = 3,
    NCCL_INVALID_ARGUMENT = 4,
    NCCL_INVALID_USAGE = 5,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7, /* of a connection that does not block: ask again before anything else is done with it */
};

#define NCCL_FLOATS       7 /* a type: 32 bits */
#define NCCL_CONFIG_MAGIC 0xcafebeefu
#define NCCL_CONFIG_OF    21700u /* the version whose settings these are */
#define NCCL_CONFIG_ANY   INT_MIN

struct nccl_id {
    uint8_t bytes[128];
};

struct nccl_config {
    size_t bytes;
    unsigned magic, version;
    int is_blocking, cluster_size, blocks_min, blocks_max;
    const char *network;
};

struct nccl_comm;

/* X(field, symbol, result, parameters) */
#define NCCL_FUNCTIONS(X)                                                                                              \
    X(version, ncclGetVersion, int, (int *version))                                                                    \
    X(error_text, ncclGetErrorString, const char *, (int result))                                                      \
    X(last_error, ncclGetLastError, const char *, (struct nccl_comm * comm))                                           \
    X(id, ncclGetUniqueId, int, (struct nccl_id * id))                                                                 \
    X(init, ncclCommInitRankConfig, int,                                                                               \
      (struct nccl_comm * *comm, int ranks, struct nccl_id id, int rank, struct nccl_config *config))                  \
    X(async_error, ncclCommGetAsyncError, int, (struct nccl_comm * comm, int *result))                                 \
    X(destroy, ncclCommDestroy, int, (struct nccl_comm * comm))                                                        \
    X(abort, ncclCommAbort, int, (struct nccl_comm * comm))                                                            \
    X(group_begin, ncclGroupStart, int, (void))                                                                        \
    X(group_end, ncclGroupEnd, int, (void))                                                                            \
    X(send, ncclSend, int,                                                                                             \
      (const void *from, size_t count, int type, int rank, struct nccl_comm *comm, struct cuda_stream *stream))        \
    X(receive, ncclRecv, int,                                                                                          \
      (void *to, size_t count, int type, int rank, struct nccl_comm *comm, struct cuda_stream *stream))

struct nccl_library {
#define NCCL_FIELD(field, symbol, result, parameters) result(*field) parameters;
    NCCL_FUNCTIONS(NCCL_FIELD)
#undef NCCL_FIELD
};

#endif
