/* nccl.h - NCCL: connections of two devices that do not reach each other's memory.
 *
 * Used by: stages on devices; the launcher's child that opens them (nccl_is_there() alone).   Owns: the library, connections.
 * Blocks: nccl_open() (a second or so on a real device), nccl_abort() until NCCL has given its memory on the device back, for
 * which no stream of this process may wait for another process but in the connections that are aborted. All else only begins
 * something.
 *
 * The library is found at run time (libnccl.so.2, or what EVENFLOW_LIBNCCL names); nothing is linked. Like cuda.h's, its calls
 * belong to the thread that has opened the device.
 */
#ifndef EVENFLOW_KERNELS_NCCL_H
#define EVENFLOW_KERNELS_NCCL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/nccl_library.h"

struct nccl {
    struct nccl_library library;
    void *handle;
    int version; /* 22809: 2.28.9 */
    char error[256];
};

/* One end of a connection of two. */
struct nccl_connection {
    struct nccl *nccl;
    struct nccl_comm *comm; /* NULL: there is none */
    int rank;               /* 0 sends, 1 receives */
};

enum nccl_state {
    NCCL_BUSY,   /* it is being made, or the operation that was begun last is not in its stream yet */
    NCCL_READY,  /* what was begun is in its stream, and nothing has failed */
    NCCL_FAILED, /* its reason is in nccl->error: it is to be aborted */
};

/* Whether the library can be had, of a version that does what is needed: 0, or -errno with nccl->error. */
int nccl_is_there(struct nccl *nccl);

/* Loads it, and whatever it loads in turn, for the device whose context is current. 0, or -errno with nccl->error.
 * host_name: NULL, or what this process is to be taken for in place of this machine: NCCL refuses two ends on one device of one
 * machine. */
int nccl_open(struct nccl *nccl, const char *host_name);

/* A name for a connection, for both ends. 0, or -errno with nccl->error. */
int nccl_make_id(struct nccl *nccl, struct nccl_id *id);

/* Begins to connect: rank 0 will send, rank 1 receive. 0, or -errno with nccl->error. */
int nccl_connect(struct nccl *nccl, struct nccl_connection *connection, const struct nccl_id *id, int rank);

enum nccl_state nccl_look(struct nccl_connection *connection);

/* Puts floats into the stream of one end, which are to be taken out by the other in the same order. What stands behind them in
 * the stream may only be put there once nccl_look() says NCCL_READY. 0, or -errno with nccl->error. */
int nccl_carry(struct nccl_connection *connection, cuda_address floats, size_t count, struct cuda_stream *stream);

/* Ends them, those that there are, together, and frees what waits in streams for their other ends. */
void nccl_abort(struct nccl *nccl, struct nccl_connection *const connections[], uint32_t count);

#endif
