#include "kernels/cuda.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/internal.h"

#define IPC_GRANULARITY    (2u << 20) /* smaller memory shares its block with others, which would go over with it */
#define DRIVER_VERSION_MIN 12000      /* CUDA 12.0, drivers from 525 on */

/* The kernels as nvcc made them: machine code for each capability, and PTX for those to come. */
#ifdef EVENFLOW_FATBIN
__asm__(".pushsection .rodata\n.balign 64\n.global cuda_image\ncuda_image:\n.incbin \"" EVENFLOW_FATBIN
        "\"\n.popsection");
extern const uint8_t cuda_image[];
#else
static const uint8_t cuda_image[64]; /* no driver takes it */
#endif

bool cuda_is_built(void)
{
#ifdef EVENFLOW_FATBIN
    return true;
#else
    return false;
#endif
}

/* ---- failures ---- */

__attribute__((format(printf, 3, 4))) static int fail(struct cuda *cuda, int code, const char *format, ...)
{
    if (cuda->failed != 0)
        return cuda->failed;
    va_list values;
    va_start(values, format);
    vsnprintf(cuda->error, sizeof(cuda->error), format, values);
    va_end(values);
    return cuda->failed = code;
}

#define NOT_CALLED (-1)

/* True when the call did what it should. */
static bool succeeded(struct cuda *cuda, int result, const char *what)
{
    const char *name = NULL;
    if (result == CUDA_OK || result == NOT_CALLED)
        return result == CUDA_OK;
    if (cuda->driver.error_name(result, &name) != CUDA_OK || name == NULL)
        name = "an unknown error";
    fail(cuda, result == CUDA_OUT_OF_MEMORY ? -ENOMEM : -EIO, "cuda:%d: %s: %s (%d)", cuda->device, what, name, result);
    return false;
}

/* Calls a function of the driver unless something has failed before. */
#define CALL(cuda, function, ...)                                                                                      \
    succeeded(cuda, (cuda)->failed != 0 ? NOT_CALLED : (cuda)->driver.function(__VA_ARGS__), #function)

/* ---- start ---- */

static int load_driver(struct cuda *cuda)
{
    const char *given = getenv("EVENFLOW_LIBCUDA");
    setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* no kernel is loaded behind a wait, while recording, or in a sandbox */
    cuda->library = dlopen(given != NULL ? given : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cuda->library == NULL)
        return fail(cuda, -ENOENT, "no CUDA driver: %s", dlerror());
#define FIND(field, symbol, parameters)                                                                                \
    *(void **)&cuda->driver.field = dlsym(cuda->library, #symbol);                                                     \
    if (cuda->driver.field == NULL)                                                                                    \
        return fail(cuda, -ENOTSUP, "the CUDA driver is too old: it has no %s", #symbol);
    CUDA_FUNCTIONS(FIND)
#undef FIND
    return 0;
}

static int attribute(struct cuda *cuda, enum cuda_attribute which)
{
    int value = 0;
    return CALL(cuda, device_attribute, &value, which, cuda->device) ? value : 0;
}

static struct cuda_allocation allocation_of(const struct cuda *cuda)
{
    return (struct cuda_allocation){.type = CUDA_MEMORY_PINNED,
                                    .handle_types = CUDA_HANDLE_DESCRIPTOR,
                                    .location = {CUDA_LOCATION_DEVICE, cuda->device}};
}

static int find_device(struct cuda *cuda, uint32_t ordinal)
{
    int version = 0, count = 0, result = cuda->driver.init(0);
    if (result == CUDA_STUB_LIBRARY || result == CUDA_NO_DEVICE)
        return fail(cuda, -ENODEV, "the CUDA driver finds no device");
    if (!succeeded(cuda, result, "init") || !CALL(cuda, driver_version, &version) || !CALL(cuda, device_count, &count))
        return cuda->failed;
    if (version < DRIVER_VERSION_MIN)
        return fail(cuda, -ENOTSUP, "the CUDA driver is of CUDA %d.%d: 12.0 or later is needed", version / 1000,
                    version % 1000 / 10);
    if (ordinal >= (uint32_t)count)
        return fail(cuda, -ENODEV, "there is no device cuda:%u: the CUDA driver finds %d", ordinal, count);
    CALL(cuda, device_get, &cuda->device, (int)ordinal);
    CALL(cuda, device_name, cuda->name, sizeof(cuda->name), cuda->device);
    cuda->capability =
        10 * attribute(cuda, CUDA_ATTRIBUTE_CAPABILITY_MAJOR) + attribute(cuda, CUDA_ATTRIBUTE_CAPABILITY_MINOR);
    if (cuda->failed == 0 && cuda->capability < 80)
        return fail(cuda, -ENOTSUP, "cuda:%u (%s) has compute capability %d.%d: 8.0 or later is needed", ordinal,
                    cuda->name, cuda->capability / 10, cuda->capability % 10);
    cuda->can_export =
        attribute(cuda, CUDA_ATTRIBUTE_HAS_VIRTUAL_MEMORY) && attribute(cuda, CUDA_ATTRIBUTE_EXPORTS_DESCRIPTORS);
    return cuda->failed;
}

static void load_kernels(struct cuda *cuda)
{
    struct cuda_module *module;
    if (!CALL(cuda, module_load, &module, cuda_image)) {
        if (!cuda_is_built())
            snprintf(cuda->error, sizeof(cuda->error),
                     "this build has no CUDA kernels: build it where there is nvcc (make CUDA=on)");
        return;
    }
#define LOAD(name) CALL(cuda, module_function, &cuda->kernels[CUDA_KERNEL_##name], module, "cuda_" #name);
    CUDA_KERNELS(LOAD)
#undef LOAD
}

int cuda_open(struct cuda *cuda, uint32_t ordinal)
{
    *cuda = (struct cuda){.device = (int)ordinal};
    if (load_driver(cuda) != 0 || find_device(cuda, ordinal) != 0)
        return cuda->failed;
    const struct cuda_allocation allocation = allocation_of(cuda);
    size_t total;
    CALL(cuda, context_retain, &cuda->context, cuda->device);
    CALL(cuda, context_set, cuda->context);
    CALL(cuda, stream_create, &cuda->stream, CUDA_STREAM_ALONE);
    CALL(cuda, stream_create, &cuda->aside, CUDA_STREAM_ALONE);
    cuda->wait_flags =
        CUDA_WAIT_REACHED | (attribute(cuda, CUDA_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES) ? CUDA_WAIT_FLUSH : 0);
    cuda->granularity = IPC_GRANULARITY;
    if (cuda->can_export)
        CALL(cuda, memory_granularity, &cuda->granularity, &allocation, 0);
    CALL(cuda, memory_info, &cuda->free_bytes, &total);
    if (cuda->failed == 0)
        load_kernels(cuda);
    return cuda->failed;
}

void cuda_close(struct cuda *cuda)
{
    if (cuda->stream != NULL)
        cuda->driver.stream_destroy(cuda->stream);
    if (cuda->aside != NULL)
        cuda->driver.stream_destroy(cuda->aside);
    if (cuda->context != NULL)
        cuda->driver.context_release(cuda->device);
    if (cuda->library != NULL)
        dlclose(cuda->library);
    *cuda = (struct cuda){0};
}

/* ---- memory ---- */

bool cuda_reaches(struct cuda *cuda, const struct cuda *other)
{
    int is_possible = cuda->device == other->device;
    if (!is_possible)
        CALL(cuda, peer_access, &is_possible, cuda->device, other->device);
    return is_possible != 0;
}

/* A handle as a file that a process can be given. */
static int write_handle(struct cuda *cuda, const struct cuda_handle *handle)
{
    int descriptor = memfd_create("evenflow-device", MFD_CLOEXEC);
    if (descriptor >= 0 && pwrite(descriptor, handle, sizeof(*handle), 0) == (ssize_t)sizeof(*handle))
        return descriptor;
    int error = errno;
    if (descriptor >= 0)
        close(descriptor);
    return fail(cuda, -error, "cuda:%d: no file for the name of its memory: %s", cuda->device, strerror(error));
}

static int export_handle(struct cuda *cuda, size_t bytes, cuda_address *address)
{
    struct cuda_handle handle;
    *address = cuda_alloc(cuda, bytes);
    CALL(cuda, handle_get, &handle, *address);
    return cuda->failed != 0 ? cuda->failed : write_handle(cuda, &handle);
}

static cuda_address map_handle(struct cuda *cuda, int descriptor)
{
    struct cuda_handle handle;
    cuda_address address = 0;
    if (pread(descriptor, &handle, sizeof(handle), 0) != (ssize_t)sizeof(handle))
        fail(cuda, -EPROTO, "cuda:%d: descriptor %d does not name memory; mixed builds?", cuda->device, descriptor);
    return CALL(cuda, handle_open, &address, handle, CUDA_HANDLE_PEERS) ? address : 0;
}

static int export_descriptor(struct cuda *cuda, size_t bytes)
{
    const struct cuda_allocation allocation = allocation_of(cuda);
    uint64_t handle;
    int descriptor = -1;
    if (!CALL(cuda, memory_create, &handle, bytes, &allocation, 0))
        return cuda->failed;
    CALL(cuda, memory_export, &descriptor, handle, CUDA_HANDLE_DESCRIPTOR, 0);
    CALL(cuda, memory_release, handle);
    return cuda->failed != 0 ? cuda->failed : descriptor;
}

static cuda_address map_descriptor(struct cuda *cuda, int descriptor, size_t bytes)
{
    const struct cuda_access access = {.location = {CUDA_LOCATION_DEVICE, cuda->device}, .flags = CUDA_READ_WRITE};
    uint64_t handle;
    cuda_address address = 0;
    if (!CALL(cuda, memory_import, &handle, (void *)(intptr_t)descriptor, CUDA_HANDLE_DESCRIPTOR))
        return 0;
    CALL(cuda, address_reserve, &address, bytes, 0, 0, 0);
    CALL(cuda, memory_map, address, bytes, 0, handle, 0);
    CALL(cuda, memory_set_access, address, bytes, &access, 1);
    CALL(cuda, memory_release, handle);
    return cuda->failed != 0 ? 0 : address;
}

int cuda_create(struct cuda *cuda, size_t bytes, size_t cleared)
{
    const bool is_ipc = cuda->memory == CUDA_MEMORY_IPC;
    cuda_address address;
    CALL(cuda, context_set, cuda->context); /* who takes memory may have opened other devices since */
    int descriptor = is_ipc ? export_handle(cuda, bytes, &address) : export_descriptor(cuda, bytes);
    if (descriptor < 0 || cleared == 0)
        return descriptor;
    if (!is_ipc)
        address = map_descriptor(cuda, descriptor, bytes);
    CALL(cuda, clear, address, 0, cleared, cuda->stream);
    if (cuda_wait(cuda) == 0)
        return descriptor;
    close(descriptor);
    return cuda->failed;
}

cuda_address cuda_map(struct cuda *cuda, int descriptor, size_t bytes)
{
    return cuda->memory == CUDA_MEMORY_IPC ? map_handle(cuda, descriptor) : map_descriptor(cuda, descriptor, bytes);
}

cuda_address cuda_alloc(struct cuda *cuda, size_t bytes)
{
    cuda_address address = 0;
    return CALL(cuda, memory_alloc, &address, bytes) ? address : 0;
}

void *cuda_alloc_host(struct cuda *cuda, size_t bytes)
{
    void *memory = NULL;
    return CALL(cuda, host_alloc, &memory, bytes) ? memory : NULL;
}

void cuda_free_host(struct cuda *cuda, void *memory)
{
    if (memory != NULL)
        cuda->driver.host_free(memory);
}

bool cuda_pin(struct cuda *cuda, void *memory, size_t bytes)
{
    return cuda->failed == 0 && cuda->driver.host_register(memory, bytes, 0) == CUDA_OK;
}

/* ---- the stream ---- */

void cuda_upload(struct cuda *cuda, cuda_address to, const void *from, size_t bytes)
{
    CALL(cuda, copy_to_device, to, from, bytes, cuda->stream);
}

void cuda_download(struct cuda *cuda, void *to, cuda_address from, size_t bytes)
{
    CALL(cuda, copy_to_host, to, from, bytes, cuda->stream);
}

void cuda_copy(struct cuda *cuda, cuda_address to, cuda_address from, size_t bytes)
{
    CALL(cuda, copy_on_device, to, from, bytes, cuda->stream);
}

void cuda_launch(struct cuda *cuda, enum cuda_kernel kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z,
                 const void *args)
{
    void *parameters[] = {(void *)(uintptr_t)args};
    CALL(cuda, launch, cuda->kernels[kernel], grid_x, grid_y, grid_z, CUDA_THREADS, 1, 1, 0, cuda->stream, parameters,
         NULL);
}

bool cuda_record_begin(struct cuda *cuda)
{
    return cuda->failed == 0 && cuda->driver.capture_begin(cuda->stream, CUDA_CAPTURE_THREAD) == CUDA_OK;
}

struct cuda_graph *cuda_record_end(struct cuda *cuda)
{
    struct cuda_recording *recording = NULL;
    struct cuda_graph *graph = NULL;
    if (cuda->driver.capture_end(cuda->stream, &recording) != CUDA_OK || recording == NULL)
        return NULL;
    if (cuda->driver.graph_make(&graph, recording, 0) != CUDA_OK)
        graph = NULL;
    cuda->driver.recording_free(recording);
    if (graph != NULL)
        CALL(cuda, graph_upload, graph, cuda->stream);
    return graph;
}

void cuda_replay(struct cuda *cuda, struct cuda_graph *graph)
{
    CALL(cuda, graph_launch, graph, cuda->stream);
}

void cuda_free_graph(struct cuda *cuda, struct cuda_graph *graph)
{
    if (graph != NULL)
        cuda->driver.graph_free(graph);
}

void cuda_wait_word(struct cuda *cuda, cuda_address word, uint32_t value)
{
    CALL(cuda, wait_word, cuda->stream, word, value, cuda->wait_flags);
}

void cuda_write_word(struct cuda *cuda, cuda_address word, uint32_t value)
{
    CALL(cuda, write_word, cuda->stream, word, value, 0);
}

void cuda_write_word_aside(struct cuda *cuda, cuda_address word, uint32_t value)
{
    CALL(cuda, write_word, cuda->aside, word, value, 0);
}

int cuda_wait(struct cuda *cuda)
{
    if (cuda->stream != NULL) /* behind a failure too: what is in the stream already reads and writes host memory */
        succeeded(cuda, cuda->driver.stream_wait(cuda->stream), "stream_wait");
    return cuda->failed;
}

struct cuda_stream *cuda_stream_open(struct cuda *cuda)
{
    struct cuda_stream *stream = NULL;
    return CALL(cuda, stream_create, &stream, CUDA_STREAM_ALONE) ? stream : NULL;
}

void cuda_stream_close(struct cuda *cuda, struct cuda_stream *stream)
{
    if (stream != NULL)
        cuda->driver.stream_destroy(stream);
}

void cuda_stream_write_word(struct cuda *cuda, struct cuda_stream *stream, cuda_address word, uint32_t value)
{
    CALL(cuda, write_word, stream, word, value, 0);
}

bool cuda_stream_is_done(struct cuda *cuda, struct cuda_stream *stream)
{
    int result = cuda->failed != 0 ? NOT_CALLED : cuda->driver.stream_query(stream);
    return result != CUDA_NOT_READY && succeeded(cuda, result, "stream_query");
}

struct cuda_matrix cuda_matrix_of(const struct matrix *matrix)
{
    return (struct cuda_matrix){.panels = matrix->panels,
                                .form = matrix->form,
                                .n = matrix->n,
                                .k = matrix->k,
                                .record_bytes = (uint32_t)record_bytes_of(matrix->form),
                                .scales = (uint32_t)scales_offset(matrix->form),
                                .float_bytes = matrix->form == MATRIX_F32 ? 4 : 2};
}
