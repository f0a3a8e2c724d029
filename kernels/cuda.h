/* cuda.h - a CUDA device: memory that outlives the processes that use it, one stream, our kernels.
 *
 * Used by: stages on devices; the launcher's child that takes their memory.   Owns: what cuda_open() and the calls behind it
 * take, until cuda_close() or the end of the process; descriptors are the caller's.
 * Blocks: cuda_open() (a second or so on a real device), cuda_wait(). All else only puts work into the stream.
 *
 * The driver is found at run time (libcuda.so.1, or what EVENFLOW_LIBCUDA names); nothing is linked.
 * The first call that fails is remembered, with its text in `error`, and those behind it do nothing: cuda_wait() tells.
 */
#ifndef EVENFLOW_KERNELS_CUDA_H
#define EVENFLOW_KERNELS_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda_driver.h"
#include "kernels/cuda_kernels.h"

#define CUDA_KERNELS(X) X(embed) X(norm) X(renorm) X(add) X(gemm) X(rope) X(attend) X(combine) X(gate) X(draw)

enum cuda_kernel {
#define CUDA_NUMBER(name) CUDA_KERNEL_##name,
    CUDA_KERNELS(CUDA_NUMBER)
#undef CUDA_NUMBER
        CUDA_KERNEL_COUNT,
};

/* How several processes have the same memory, and what keeps it. */
enum cuda_memory {
    CUDA_MEMORY_VMM, /* a descriptor of it, in whatever process */
    CUDA_MEMORY_IPC, /* the process that has taken it; its name for others lies in a file of its own */
};

struct cuda {
    struct cuda_driver driver;
    void *library;
    int device;
    struct cuda_context *context;
    struct cuda_stream *stream, *aside; /* aside: for what must not stand behind what waits in the other */
    unsigned wait_flags;
    struct cuda_function *kernels[CUDA_KERNEL_COUNT];
    char name[64];           /* of the device */
    int capability;          /* 90: compute capability 9.0 */
    bool can_export;         /* memory as descriptors */
    enum cuda_memory memory; /* W: the caller, before cuda_create() and cuda_map(); VMM otherwise */
    size_t granularity;      /* sizes of memory for several processes are multiples of it */
    size_t free_bytes;       /* when it was opened */
    int failed;              /* -errno of what failed first; 0: nothing has */
    char error[256];         /* its text */
};

/* 0, or -errno with cuda->error: -ENOENT no driver, -ENODEV no such device, -ENOTSUP not one that we can use. */
int cuda_open(struct cuda *cuda, uint32_t ordinal);
void cuda_close(struct cuda *cuda);

/* Whether it can read and write memory on another device, or on itself. */
bool cuda_reaches(struct cuda *cuda, const struct cuda *other);

/* Memory for several processes: a descriptor for cuda_map(), or -errno. It lives as long as a descriptor of it (VMM), or as
 * this process (IPC). bytes: a multiple of the granularity. The first `cleared` of them are 0. */
int cuda_create(struct cuda *cuda, size_t bytes, size_t cleared);
/* The whole of it in this process, or, by IPC, in another one than has created it; 0 when that failed. The descriptor may be
 * closed. */
cuda_address cuda_map(struct cuda *cuda, int descriptor, size_t bytes);

/* This process's own. */
cuda_address cuda_alloc(struct cuda *cuda, size_t bytes);

/* Host memory that devices read and write by themselves. A copy from or to any other may keep who calls until the stream has
 * come to it. NULL when there is none. */
void *cuda_alloc_host(struct cuda *cuda, size_t bytes);
void cuda_free_host(struct cuda *cuda, void *memory);
/* Makes whole pages of the caller's such memory; false: it stays as it was, which is no failure. */
bool cuda_pin(struct cuda *cuda, void *memory, size_t bytes);

/* In the order of the stream. Host memory stays untouched until cuda_wait(). */
void cuda_upload(struct cuda *cuda, cuda_address to, const void *from, size_t bytes);
void cuda_download(struct cuda *cuda, void *to, cuda_address from, size_t bytes);
void cuda_copy(struct cuda *cuda, cuda_address to, cuda_address from, size_t bytes);
void cuda_launch(struct cuda *cuda, enum cuda_kernel kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z,
                 const void *args);

/* What is put into the stream between the two is not done but recorded, with all its arguments: a graph, which the device then
 * runs at one word from the processor. Only launches can be. false, NULL: this device does not do that, which is no failure. */
bool cuda_record_begin(struct cuda *cuda);
struct cuda_graph *cuda_record_end(struct cuda *cuda);
void cuda_replay(struct cuda *cuda, struct cuda_graph *graph);
void cuda_free_graph(struct cuda *cuda, struct cuda_graph *graph);

/* Words in a device's memory, which order the streams of several processes: nothing behind a wait begins before its word is
 * `value` or beyond it (as numbers that wrap); a write is seen behind all that stands before it in its stream. */
void cuda_wait_word(struct cuda *cuda, cuda_address word, uint32_t value);
void cuda_write_word(struct cuda *cuda, cuda_address word, uint32_t value);
/* The same at once, beside the stream: lets go of a wait in it. */
void cuda_write_word_aside(struct cuda *cuda, cuda_address word, uint32_t value);

/* All of it is done: 0, or -errno of the first failure since cuda_open(). */
int cuda_wait(struct cuda *cuda);

/* Another stream, for what others put there (nccl.h); NULL when there is none. */
struct cuda_stream *cuda_stream_open(struct cuda *cuda);
void cuda_stream_close(struct cuda *cuda, struct cuda_stream *stream);
void cuda_stream_write_word(struct cuda *cuda, struct cuda_stream *stream, cuda_address word, uint32_t value);
/* All of it is done, as far as one knows. Never blocks. */
bool cuda_stream_is_done(struct cuda *cuda, struct cuda_stream *stream);

/* A matrix whose panels lie on the device. */
struct cuda_matrix cuda_matrix_of(const struct matrix *matrix);

/* Whether this build has kernels for devices: nvcc was there. */
bool cuda_is_built(void);

#endif
