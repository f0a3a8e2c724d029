/* libcuda.c - stands in for CUDA's driver where there is no GPU: the functions that kernels/cuda.c calls, with threads as
 * streams, memfds as exported memory, and the same kernels compiled as C. Copies from and to host memory that is not pinned
 * keep who calls until they are done, as a real driver's may. Built as libcuda.so.1; EVENFLOW_LIBCUDA names it.
 *
 * EVENFLOW_FAKE_CUDA, words separated by commas, makes a device that is not as it should be:
 *   devices=N (2)   how many        driver=11080   of which CUDA the driver is      memory=BYTES   what can be taken
 *   export=0        no memory as descriptors       vanish=N   gone behind N kernels of a process
 *   peer=0          no device reaches another's memory       pin=0   no memory of the caller's can be pinned
 *   graphs=0        launches cannot be recorded
 *   die=N           the process is killed in the middle of the Nth operation in its streams, with half of it done
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cuda.h"
#include "kernels/cuda_simt.h"
#include "tests/driver/wish.h"

#define GRANULARITY (2u << 20)
#define QUEUE_MAX   1024u
#define ARGS_MAX    256u
#define HANDLE_BASE 1000u /* a handle is a descriptor above it */

_Thread_local struct simt_index blockIdx, blockDim, gridDim;

/* ---- what the environment wants ---- */

static unsigned long long wish(const char *name, unsigned long long otherwise)
{
    return wish_in("EVENFLOW_FAKE_CUDA", name, otherwise);
}

static _Atomic unsigned long long launches;
static size_t taken_bytes;

/* What any call answers. */
static int state(void)
{
    return launches >= wish("vanish", UINT64_MAX) ? CUDA_DEVICE_UNAVAILABLE : CUDA_OK;
}

/* ---- streams ---- */

struct operation {
    enum {
        OPERATION_KERNEL,
        OPERATION_COPY,
        OPERATION_FILL,
        OPERATION_WAIT,
        OPERATION_WRITE,
        OPERATION_CALL,
        OPERATION_GRAPH
    } kind;
    const struct simt_kernel *kernel;
    const struct cuda_graph *graph;
    uint32_t grid[3], threads;
    uint8_t args[ARGS_MAX];
    void *to;
    const void *from;
    size_t bytes;
    _Atomic uint32_t *word; /* in memory that processes share: whoever waits for it sleeps there */
    uint32_t value;
    void (*call)(void *context); /* with `to` */
};

/* Kernels one behind the other: while they are recorded, and then as often as they are to run. */
struct cuda_graph {
    struct operation *operations;
    uint32_t count, room;
};

struct cuda_stream {
    struct cuda_stream *next; /* of all */
    pthread_t thread;
    struct cuda_graph *recording; /* NULL: what is put is done */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct operation queue[QUEUE_MAX];
    uint64_t put, done; /* operations so far */
    bool is_begun, is_ended;
};

static void wait_for(_Atomic uint32_t *word, uint32_t value)
{
    uint32_t seen;
    while ((int32_t)((seen = atomic_load(word)) - value) < 0)
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static _Atomic unsigned long long operations;

static void run(const struct operation *o)
{
    if (o->kind == OPERATION_GRAPH) {
        for (uint32_t i = 0; i < o->graph->count; i++)
            run(&o->graph->operations[i]);
        return;
    }
    const bool dies = ++operations == wish("die", UINT64_MAX);
    switch (o->kind) {
    case OPERATION_COPY:
        memcpy(o->to, o->from, dies ? o->bytes / 2 : o->bytes);
        if (dies)
            raise(SIGKILL);
        return;
    case OPERATION_FILL:
        memset(o->to, (int)o->value, o->bytes);
        return;
    case OPERATION_WAIT:
        if (dies)
            raise(SIGKILL);
        wait_for(o->word, o->value);
        return;
    case OPERATION_WRITE:
        atomic_store(o->word, o->value);
        if (dies)
            raise(SIGKILL);
        syscall(SYS_futex, o->word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
        return;
    case OPERATION_CALL:
        if (dies)
            raise(SIGKILL);
        o->call(o->to);
        return;
    case OPERATION_KERNEL:
    case OPERATION_GRAPH:
        break;
    }
    blockDim = (struct simt_index){o->threads, 1, 1};
    gridDim = (struct simt_index){o->grid[0], o->grid[1], o->grid[2]};
    for (uint32_t z = 0; z < o->grid[2]; z++)
        for (uint32_t y = 0; y < o->grid[1]; y++)
            for (uint32_t x = 0; x < o->grid[0]; x++) {
                if (dies && x == o->grid[0] / 2)
                    raise(SIGKILL);
                blockIdx = (struct simt_index){x, y, z};
                o->kernel->run(o->args);
            }
}

static void *run_stream(void *pointer)
{
    struct cuda_stream *stream = pointer;
    pthread_mutex_lock(&stream->lock);
    stream->is_begun = true;
    pthread_cond_broadcast(&stream->changed);
    for (;;) {
        while (stream->done == stream->put && !stream->is_ended)
            pthread_cond_wait(&stream->changed, &stream->lock);
        if (stream->done == stream->put)
            break;
        const struct operation *operation = &stream->queue[stream->done % QUEUE_MAX];
        pthread_mutex_unlock(&stream->lock);
        run(operation);
        pthread_mutex_lock(&stream->lock);
        stream->done++;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

/* Copies and words of pageable or other processes' memory are not what graphs are used for here. */
static int record(struct cuda_graph *graph, const struct operation *operation)
{
    if (operation->kind != OPERATION_KERNEL)
        return CUDA_NOT_SUPPORTED;
    if (graph->count == graph->room) {
        graph->room = 2 * graph->room + 64;
        graph->operations = realloc(graph->operations, graph->room * sizeof(*graph->operations));
    }
    graph->operations[graph->count++] = *operation;
    return CUDA_OK;
}

static int put(struct cuda_stream *stream, const struct operation *operation)
{
    if (state() != CUDA_OK)
        return state();
    if (stream->recording != NULL)
        return record(stream->recording, operation);
    pthread_mutex_lock(&stream->lock);
    while (stream->put - stream->done == QUEUE_MAX)
        pthread_cond_wait(&stream->changed, &stream->lock);
    stream->queue[stream->put++ % QUEUE_MAX] = *operation;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return CUDA_OK;
}

static struct cuda_stream *all_streams;
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;

int cuStreamCreate(struct cuda_stream **stream, unsigned flags)
{
    (void)flags;
    *stream = calloc(1, sizeof(**stream));
    pthread_mutex_lock(&all_lock);
    (*stream)->next = all_streams;
    all_streams = *stream;
    pthread_mutex_unlock(&all_lock);
    pthread_mutex_init(&(*stream)->lock, NULL);
    pthread_cond_init(&(*stream)->changed, NULL);
    if (pthread_create(&(*stream)->thread, NULL, run_stream, *stream) != 0)
        return CUDA_OUT_OF_MEMORY;
    pthread_mutex_lock(&(*stream)->lock);
    while (!(*stream)->is_begun) /* in a sandbox a thread cannot begin */
        pthread_cond_wait(&(*stream)->changed, &(*stream)->lock);
    pthread_mutex_unlock(&(*stream)->lock);
    return CUDA_OK;
}

int cuStreamSynchronize(struct cuda_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    while (stream->done != stream->put)
        pthread_cond_wait(&stream->changed, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
    return state();
}

int cuStreamQuery(struct cuda_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    bool is_done = stream->done == stream->put;
    pthread_mutex_unlock(&stream->lock);
    return state() != CUDA_OK ? state() : is_done ? CUDA_OK : CUDA_NOT_READY;
}

/* Waits for all of them, as taking and giving back memory may. */
int cuCtxSynchronize(void)
{
    pthread_mutex_lock(&all_lock);
    for (struct cuda_stream *stream = all_streams; stream != NULL; stream = stream->next)
        cuStreamSynchronize(stream);
    pthread_mutex_unlock(&all_lock);
    return state();
}

int cuLaunchHostFunc(struct cuda_stream *stream, void (*call)(void *context), void *context)
{
    return put(stream, &(struct operation){.kind = OPERATION_CALL, .call = call, .to = context});
}

int cuStreamDestroy_v2(struct cuda_stream *stream)
{
    pthread_mutex_lock(&all_lock);
    struct cuda_stream **link = &all_streams;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    pthread_mutex_unlock(&all_lock);
    pthread_mutex_lock(&stream->lock);
    stream->is_ended = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return CUDA_OK;
}

/* ---- host memory ---- */

static struct {
    const uint8_t *memory;
    size_t bytes;
} pinned[64];
static uint32_t pinned_count;

static int pin(const void *memory, size_t bytes)
{
    if (memory == NULL || pinned_count == sizeof(pinned) / sizeof(pinned[0]))
        return CUDA_OUT_OF_MEMORY;
    pinned[pinned_count].memory = memory;
    pinned[pinned_count++].bytes = bytes;
    return state();
}

static bool is_pinned(const void *memory)
{
    for (uint32_t i = 0; i < pinned_count; i++)
        if ((const uint8_t *)memory >= pinned[i].memory && (const uint8_t *)memory < pinned[i].memory + pinned[i].bytes)
            return true;
    return false;
}

int cuMemAllocHost_v2(void **memory, size_t bytes)
{
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return pin(*memory, bytes);
}

int cuMemFreeHost(void *memory)
{
    for (uint32_t i = 0; i < pinned_count; i++)
        if (pinned[i].memory == memory) {
            pinned[i] = pinned[--pinned_count];
            free(memory);
            return CUDA_OK;
        }
    return CUDA_INVALID_VALUE;
}

int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags)
{
    return wish("pin", 1) == 0 || flags != 0 || (uintptr_t)memory % 4096 != 0 ? CUDA_NOT_SUPPORTED : pin(memory, bytes);
}

static int put_copy(struct cuda_stream *stream, void *to, const void *from, size_t bytes)
{
    return put(stream, &(struct operation){.kind = OPERATION_COPY, .to = to, .from = from, .bytes = bytes});
}

int cuMemcpyHtoDAsync_v2(cuda_address to, const void *from, size_t bytes, struct cuda_stream *stream)
{
    int result = put_copy(stream, (void *)to, from, bytes);
    return result != CUDA_OK || is_pinned(from) ? result : cuStreamSynchronize(stream);
}

int cuMemcpyDtoHAsync_v2(void *to, cuda_address from, size_t bytes, struct cuda_stream *stream)
{
    int result = put_copy(stream, to, (const void *)from, bytes);
    return result != CUDA_OK || is_pinned(to) ? result : cuStreamSynchronize(stream);
}

int cuMemcpyDtoDAsync_v2(cuda_address to, cuda_address from, size_t bytes, struct cuda_stream *stream)
{
    return put_copy(stream, (void *)to, (const void *)from, bytes);
}

int cuMemsetD8Async(cuda_address at, uint8_t value, size_t bytes, struct cuda_stream *stream)
{
    return put(stream, &(struct operation){.kind = OPERATION_FILL, .to = (void *)at, .bytes = bytes, .value = value});
}

static int put_word(struct cuda_stream *stream, int kind, cuda_address word, uint32_t value)
{
    return word % sizeof(uint32_t) != 0
               ? CUDA_INVALID_VALUE
               : put(stream, &(struct operation){.kind = kind, .word = (_Atomic uint32_t *)word, .value = value});
}

int cuStreamWaitValue32_v2(struct cuda_stream *stream, cuda_address word, uint32_t value, unsigned flags)
{
    return flags & ~CUDA_WAIT_FLUSH ? CUDA_INVALID_VALUE : put_word(stream, OPERATION_WAIT, word, value);
}

int cuStreamWriteValue32_v2(struct cuda_stream *stream, cuda_address word, uint32_t value, unsigned flags)
{
    return flags != 0 ? CUDA_INVALID_VALUE : put_word(stream, OPERATION_WRITE, word, value);
}

/* ---- kernels ---- */

struct cuda_function {
    const char *name;
    const struct simt_kernel *kernel;
};

#define DECLARE(name) extern const struct simt_kernel simt_cuda_##name;
CUDA_KERNELS(DECLARE)
#define ENTRY(name) {"cuda_" #name, &simt_cuda_##name},
static struct cuda_function functions[] = {CUDA_KERNELS(ENTRY)};

int cuModuleLoadData(struct cuda_module **module, const void *image)
{
    *module = (struct cuda_module *)(uintptr_t)image; /* which is not looked at */
    return state();
}

int cuModuleGetFunction(struct cuda_function **function, struct cuda_module *module, const char *name)
{
    (void)module;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        if (strcmp(functions[i].name, name) == 0) {
            *function = &functions[i];
            return CUDA_OK;
        }
    return CUDA_NOT_FOUND;
}

int cuLaunchKernel(struct cuda_function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, struct cuda_stream *stream,
                   void **parameters, void **extra)
{
    struct operation operation = {
        .kind = OPERATION_KERNEL, .kernel = function->kernel, .grid = {grid_x, grid_y, grid_z}, .threads = block_x};
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535 || block_x > 1024 ||
        block_y * block_z != 1 || shared_bytes != 0 || extra != NULL || function->kernel->args_bytes > ARGS_MAX)
        return CUDA_INVALID_VALUE;
    memcpy(operation.args, parameters[0], function->kernel->args_bytes);
    launches += stream->recording == NULL;
    return put(stream, &operation);
}

int cuStreamBeginCapture_v2(struct cuda_stream *stream, int mode)
{
    if (wish("graphs", 1) == 0 || mode != CUDA_CAPTURE_THREAD || stream->recording != NULL)
        return CUDA_NOT_SUPPORTED;
    stream->recording = calloc(1, sizeof(*stream->recording));
    return state();
}

int cuStreamEndCapture(struct cuda_stream *stream, struct cuda_recording **recording)
{
    *recording = (struct cuda_recording *)stream->recording;
    stream->recording = NULL;
    return *recording != NULL ? state() : CUDA_INVALID_VALUE;
}

/* What was recorded is copied: the recording may go. */
int cuGraphInstantiateWithFlags(struct cuda_graph **graph, struct cuda_recording *recording, unsigned long long flags)
{
    const struct cuda_graph *from = (const struct cuda_graph *)recording;
    size_t bytes = from->count * sizeof(*from->operations);
    *graph = calloc(1, sizeof(**graph));
    **graph = (struct cuda_graph){.operations = malloc(bytes + 1), .count = from->count};
    memcpy((*graph)->operations, from->operations, bytes);
    return flags == 0 ? state() : CUDA_INVALID_VALUE;
}

int cuGraphExecDestroy(struct cuda_graph *graph)
{
    free(graph->operations);
    free(graph);
    return CUDA_OK;
}

int cuGraphDestroy(struct cuda_recording *recording)
{
    return cuGraphExecDestroy((struct cuda_graph *)recording);
}

int cuGraphUpload(struct cuda_graph *graph, struct cuda_stream *stream)
{
    return graph != NULL && stream->recording == NULL ? state() : CUDA_INVALID_VALUE;
}

int cuGraphLaunch(struct cuda_graph *graph, struct cuda_stream *stream)
{
    launches += graph->count;
    return put(stream, &(struct operation){.kind = OPERATION_GRAPH, .graph = graph});
}

/* ---- memory ---- */

/* Large memory of cuMemAlloc(), which other processes may be told of. */
struct block {
    void *memory;
    int descriptor;
};

static struct block blocks[1024];
static uint32_t block_count;

/* What a handle says: /proc/PROCESS/fd/DESCRIPTOR, there as long as the process is. */
struct name {
    int process, descriptor;
    size_t bytes;
};

static int take(size_t bytes)
{
    taken_bytes += bytes;
    return taken_bytes <= wish("memory", 1ull << 40) ? state() : CUDA_OUT_OF_MEMORY;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    *total = wish("memory", 1ull << 40);
    *free_bytes = *total - taken_bytes;
    return state();
}

static void *alloc_block(size_t bytes)
{
    struct block *block = &blocks[block_count];
    block->descriptor = memfd_create("device memory", MFD_CLOEXEC);
    if (block_count + 1 == sizeof(blocks) / sizeof(blocks[0]) || ftruncate(block->descriptor, (off_t)bytes) != 0)
        return NULL;
    block->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, block->descriptor, 0);
    return block->memory == MAP_FAILED ? NULL : blocks[block_count++].memory;
}

int cuIpcGetMemHandle(struct cuda_handle *handle, cuda_address address)
{
    for (uint32_t i = 0; i < block_count; i++) {
        if (blocks[i].memory != (void *)address)
            continue;
        struct stat stat;
        fstat(blocks[i].descriptor, &stat);
        const struct name name = {(int)getpid(), blocks[i].descriptor, (size_t)stat.st_size};
        *handle = (struct cuda_handle){{0}};
        memcpy(handle, &name, sizeof(name));
        return state();
    }
    return CUDA_INVALID_VALUE;
}

int cuIpcOpenMemHandle_v2(cuda_address *address, struct cuda_handle handle, unsigned flags)
{
    struct name name;
    char path[64];
    memcpy(&name, &handle, sizeof(name));
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", name.process, name.descriptor);
    int descriptor = name.process != (int)getpid() && flags == CUDA_HANDLE_PEERS ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0)
        return CUDA_INVALID_VALUE;
    void *memory = mmap(NULL, name.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    *address = (cuda_address)(uintptr_t)memory;
    return memory != MAP_FAILED ? state() : CUDA_OUT_OF_MEMORY;
}

int cuMemAlloc_v2(cuda_address *address, size_t bytes)
{
    int result = take(bytes);
    bool is_block = bytes > 0 && bytes % GRANULARITY == 0;
    void *memory = result != CUDA_OK ? NULL
                   : is_block        ? alloc_block(bytes)
                                     : aligned_alloc(256, (bytes + 255) / 256 * 256);
    *address = (cuda_address)(uintptr_t)memory;
    if (memory != NULL && !is_block)
        memset(memory, 0xff, bytes); /* what nobody has written is no number */
    return result != CUDA_OK ? result : memory != NULL ? CUDA_OK : CUDA_OUT_OF_MEMORY;
}

int cuMemGetAllocationGranularity(size_t *bytes, const struct cuda_allocation *allocation, int option)
{
    (void)allocation;
    (void)option;
    *bytes = GRANULARITY;
    return state();
}

int cuMemCreate(uint64_t *handle, size_t bytes, const struct cuda_allocation *allocation, unsigned long long flags)
{
    if (bytes == 0 || bytes % GRANULARITY != 0 || flags != 0 || allocation->type != CUDA_MEMORY_PINNED ||
        allocation->location.type != CUDA_LOCATION_DEVICE)
        return CUDA_INVALID_VALUE;
    int result = take(bytes);
    if (result != CUDA_OK)
        return result;
    int descriptor = memfd_create("device memory", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, (off_t)bytes) != 0)
        return CUDA_OUT_OF_MEMORY;
    *handle = HANDLE_BASE + (uint64_t)descriptor;
    return CUDA_OK;
}

int cuMemRelease(uint64_t handle)
{
    return close((int)(handle - HANDLE_BASE)) == 0 ? CUDA_OK : CUDA_INVALID_VALUE;
}

int cuMemExportToShareableHandle(void *descriptor, uint64_t handle, int type, unsigned long long flags)
{
    if (type != CUDA_HANDLE_DESCRIPTOR || flags != 0)
        return CUDA_INVALID_VALUE;
    *(int *)descriptor = fcntl((int)(handle - HANDLE_BASE), F_DUPFD_CLOEXEC, 0);
    return *(int *)descriptor >= 0 ? state() : CUDA_INVALID_VALUE;
}

int cuMemImportFromShareableHandle(uint64_t *handle, void *descriptor, int type)
{
    int copy = type == CUDA_HANDLE_DESCRIPTOR ? fcntl((int)(intptr_t)descriptor, F_DUPFD_CLOEXEC, 0) : -1;
    *handle = HANDLE_BASE + (uint64_t)copy;
    return copy >= 0 ? state() : CUDA_INVALID_VALUE;
}

int cuMemAddressReserve(cuda_address *address, size_t bytes, size_t alignment, cuda_address wanted,
                        unsigned long long flags)
{
    void *memory = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *address = (cuda_address)(uintptr_t)memory;
    return memory != MAP_FAILED && alignment == 0 && wanted == 0 && flags == 0 ? state() : CUDA_INVALID_VALUE;
}

int cuMemMap(cuda_address address, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags)
{
    void *memory = mmap((void *)address, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, (int)(handle - HANDLE_BASE), 0);
    return memory != MAP_FAILED && offset == 0 && flags == 0 ? state() : CUDA_INVALID_VALUE;
}

int cuMemSetAccess(cuda_address address, size_t bytes, const struct cuda_access *access, size_t count)
{
    if (count != 1 || access->flags != CUDA_READ_WRITE)
        return CUDA_INVALID_VALUE;
    return mprotect((void *)address, bytes, PROT_READ | PROT_WRITE) == 0 ? state() : CUDA_INVALID_VALUE;
}

/* ---- the device ---- */

int cuInit(unsigned flags)
{
    return flags != 0 ? CUDA_INVALID_VALUE : wish("devices", 2) == 0 ? CUDA_NO_DEVICE : CUDA_OK;
}

int cuDriverGetVersion(int *version)
{
    *version = (int)wish("driver", 13000);
    return CUDA_OK;
}

int cuGetErrorName(int result, const char **name)
{
    *name = result == CUDA_OUT_OF_MEMORY        ? "CUDA_ERROR_OUT_OF_MEMORY"
            : result == CUDA_DEVICE_UNAVAILABLE ? "CUDA_ERROR_DEVICE_UNAVAILABLE"
            : result == CUDA_INVALID_VALUE      ? "CUDA_ERROR_INVALID_VALUE"
                                                : NULL;
    return *name != NULL ? CUDA_OK : CUDA_INVALID_VALUE;
}

int cuDeviceGetCount(int *count)
{
    *count = (int)wish("devices", 2);
    return CUDA_OK;
}

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return (unsigned)ordinal < wish("devices", 2) ? CUDA_OK : CUDA_INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int size, int device)
{
    (void)device; /* they are all alike */
    snprintf(name, (size_t)size, "stand-in");
    return CUDA_OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == CUDA_ATTRIBUTE_CAPABILITY_MAJOR      ? 8
             : attribute == CUDA_ATTRIBUTE_CAPABILITY_MINOR    ? 0
             : attribute == CUDA_ATTRIBUTE_EXPORTS_DESCRIPTORS ? (int)wish("export", 1)
                                                               : 1;
    return CUDA_OK;
}

int cuDeviceCanAccessPeer(int *is_possible, int device, int peer)
{
    *is_possible = device != peer && wish("peer", 1) != 0;
    return state();
}

int cuDevicePrimaryCtxRetain(struct cuda_context **context, int device)
{
    *context = (struct cuda_context *)(uintptr_t)(device + 1);
    return state();
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    (void)device;
    return CUDA_OK;
}

static _Thread_local struct cuda_context *current;

int cuCtxGetDevice(int *device)
{
    *device = (int)(uintptr_t)current - 1;
    return current != NULL ? state() : CUDA_INVALID_VALUE;
}

int cuCtxSetCurrent(struct cuda_context *context)
{
    current = context;
    return context != NULL ? state() : CUDA_INVALID_VALUE;
}
