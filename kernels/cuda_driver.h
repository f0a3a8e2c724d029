/* cuda_driver.h - the part of CUDA's driver interface that is used, declared here: nothing of CUDA is needed to build.
 *
 * Used by: cuda.c, and what stands in for the driver in tests.   Owns: nothing.
 *
 * Numbers and structs as in cuda.h of CUDA 13; all of them are the same since CUDA 11.4. Functions are looked up by the names
 * of the versions that are meant: without its suffix, cuStreamWriteValue32 is another one, which drivers refuse.
 */
#ifndef EVENFLOW_KERNELS_CUDA_DRIVER_H
#define EVENFLOW_KERNELS_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

enum cuda_result {
    CUDA_OK = 0,
    CUDA_INVALID_VALUE = 1,
    CUDA_OUT_OF_MEMORY = 2,
    CUDA_STUB_LIBRARY = 34,
    CUDA_DEVICE_UNAVAILABLE = 46,
    CUDA_NO_DEVICE = 100,
    CUDA_INVALID_DEVICE = 101,
    CUDA_NOT_FOUND = 500,
    CUDA_NOT_READY = 600,
    CUDA_NOT_SUPPORTED = 801,
};

enum cuda_attribute {
    CUDA_ATTRIBUTE_MULTIPROCESSORS = 16,
    CUDA_ATTRIBUTE_CAPABILITY_MAJOR = 75,
    CUDA_ATTRIBUTE_CAPABILITY_MINOR = 76,
    CUDA_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES = 98,
    CUDA_ATTRIBUTE_HAS_VIRTUAL_MEMORY = 102,
    CUDA_ATTRIBUTE_EXPORTS_DESCRIPTORS = 103,
};

#define CUDA_MEMORY_PINNED     1
#define CUDA_LOCATION_DEVICE   1
#define CUDA_HANDLE_DESCRIPTOR 1 /* a POSIX file descriptor */
#define CUDA_READ_WRITE        3
#define CUDA_HANDLE_PEERS      1u         /* opened for every device that reaches the memory */
#define CUDA_STREAM_ALONE      1u         /* waits for no other stream */
#define CUDA_CAPTURE_THREAD    1          /* what other threads do is no part of it */
#define CUDA_WAIT_REACHED      0u         /* until (int32_t)(word - value) >= 0 */
#define CUDA_WAIT_FLUSH        (1u << 30) /* and until what other devices wrote before it has arrived */

typedef uint64_t cuda_address; /* in a device's memory */

struct cuda_location {
    int type, id;
};

struct cuda_allocation {
    int type, handle_types;
    struct cuda_location location;
    void *unused;
    uint8_t flags[8];
};

struct cuda_access {
    struct cuda_location location;
    int flags;
};

/* Names memory of one process to others. */
struct cuda_handle {
    uint8_t bytes[64];
};

struct cuda_context;
struct cuda_module;
struct cuda_function;
struct cuda_stream;
struct cuda_recording;
struct cuda_graph; /* cuda.h's CUgraphExec: what can be run again and again */

/* X(field, symbol, parameters) */
#define CUDA_FUNCTIONS(X)                                                                                              \
    X(init, cuInit, (unsigned flags))                                                                                  \
    X(driver_version, cuDriverGetVersion, (int *version))                                                              \
    X(error_name, cuGetErrorName, (int result, const char **name))                                                     \
    X(device_count, cuDeviceGetCount, (int *count))                                                                    \
    X(device_get, cuDeviceGet, (int *device, int ordinal))                                                             \
    X(device_name, cuDeviceGetName, (char *name, int size, int device))                                                \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))                                 \
    X(context_retain, cuDevicePrimaryCtxRetain, (struct cuda_context * *context, int device))                          \
    X(context_set, cuCtxSetCurrent, (struct cuda_context * context))                                                   \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int device))                                                     \
    X(memory_info, cuMemGetInfo_v2, (size_t * free, size_t * total))                                                   \
    X(module_load, cuModuleLoadData, (struct cuda_module * *module, const void *image))                                \
    X(module_function, cuModuleGetFunction,                                                                            \
      (struct cuda_function * *function, struct cuda_module * module, const char *name))                               \
    X(stream_create, cuStreamCreate, (struct cuda_stream * *stream, unsigned flags))                                   \
    X(stream_wait, cuStreamSynchronize, (struct cuda_stream * stream))                                                 \
    X(stream_query, cuStreamQuery, (struct cuda_stream * stream))                                                      \
    X(stream_destroy, cuStreamDestroy_v2, (struct cuda_stream * stream))                                               \
    X(memory_alloc, cuMemAlloc_v2, (cuda_address * address, size_t bytes))                                             \
    X(host_alloc, cuMemAllocHost_v2, (void **memory, size_t bytes))                                                    \
    X(host_free, cuMemFreeHost, (void *memory))                                                                        \
    X(host_register, cuMemHostRegister_v2, (void *memory, size_t bytes, unsigned flags))                               \
    X(copy_to_device, cuMemcpyHtoDAsync_v2,                                                                            \
      (cuda_address to, const void *from, size_t bytes, struct cuda_stream *stream))                                   \
    X(copy_to_host, cuMemcpyDtoHAsync_v2, (void *to, cuda_address from, size_t bytes, struct cuda_stream *stream))     \
    X(copy_on_device, cuMemcpyDtoDAsync_v2,                                                                            \
      (cuda_address to, cuda_address from, size_t bytes, struct cuda_stream * stream))                                 \
    X(clear, cuMemsetD8Async, (cuda_address at, uint8_t value, size_t bytes, struct cuda_stream * stream))             \
    X(wait_word, cuStreamWaitValue32_v2,                                                                               \
      (struct cuda_stream * stream, cuda_address word, uint32_t value, unsigned flags))                                \
    X(write_word, cuStreamWriteValue32_v2,                                                                             \
      (struct cuda_stream * stream, cuda_address word, uint32_t value, unsigned flags))                                \
    X(peer_access, cuDeviceCanAccessPeer, (int *is_possible, int device, int peer))                                    \
    X(memory_granularity, cuMemGetAllocationGranularity,                                                               \
      (size_t * bytes, const struct cuda_allocation *allocation, int option))                                          \
    X(memory_create, cuMemCreate,                                                                                      \
      (uint64_t * handle, size_t bytes, const struct cuda_allocation *allocation, unsigned long long flags))           \
    X(memory_release, cuMemRelease, (uint64_t handle))                                                                 \
    X(memory_export, cuMemExportToShareableHandle,                                                                     \
      (void *descriptor, uint64_t handle, int type, unsigned long long flags))                                         \
    X(memory_import, cuMemImportFromShareableHandle, (uint64_t * handle, void *descriptor, int type))                  \
    X(address_reserve, cuMemAddressReserve,                                                                            \
      (cuda_address * address, size_t bytes, size_t alignment, cuda_address wish, unsigned long long flags))           \
    X(memory_map, cuMemMap,                                                                                            \
      (cuda_address address, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags))                  \
    X(memory_set_access, cuMemSetAccess,                                                                               \
      (cuda_address address, size_t bytes, const struct cuda_access *access, size_t count))                            \
    X(handle_get, cuIpcGetMemHandle, (struct cuda_handle * handle, cuda_address address))                              \
    X(handle_open, cuIpcOpenMemHandle_v2, (cuda_address * address, struct cuda_handle handle, unsigned flags))         \
    X(capture_begin, cuStreamBeginCapture_v2, (struct cuda_stream * stream, int mode))                                 \
    X(capture_end, cuStreamEndCapture, (struct cuda_stream * stream, struct cuda_recording * *recording))              \
    X(graph_make, cuGraphInstantiateWithFlags,                                                                         \
      (struct cuda_graph * *graph, struct cuda_recording * recording, unsigned long long flags))                       \
    X(recording_free, cuGraphDestroy, (struct cuda_recording * recording))                                             \
    X(graph_upload, cuGraphUpload, (struct cuda_graph * graph, struct cuda_stream * stream))                           \
    X(graph_launch, cuGraphLaunch, (struct cuda_graph * graph, struct cuda_stream * stream))                           \
    X(graph_free, cuGraphExecDestroy, (struct cuda_graph * graph))                                                     \
    X(launch, cuLaunchKernel,                                                                                          \
      (struct cuda_function * function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,           \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, struct cuda_stream *stream, void **parameters,       \
       void **extra))

struct cuda_driver {
#define CUDA_FIELD(field, symbol, parameters) int(*field) parameters;
    CUDA_FUNCTIONS(CUDA_FIELD)
#undef CUDA_FIELD
};

#endif
