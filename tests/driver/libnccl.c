/* libnccl.c - stands in for NCCL where there is no GPU: the functions that kernels/nccl.c calls, for connections of two.
 * Sockets carry what streams of the stand-in for the driver send and receive. Built as libnccl.so.2; EVENFLOW_LIBNCCL names it.
 *
 * As hard to please as NCCL: connecting takes a thread and both ends, and whoever waits for the other end waits until the
 * connection is aborted, also when that end has died, of which nobody is told; a send ends when its floats were received; the
 * first operation of a connection is not in its stream when the call returns; whoever connects or aborts waits for all streams
 * of the process; two ends on one device of one host are refused.
 *
 * EVENFLOW_FAKE_NCCL, words separated by commas, makes it fail:
 *   version=21600   of which version it is        init=N      the first N connections of a process
 *   error=N         in the middle of every Nth operation of a process
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernels/nccl_library.h"
#include "tests/driver/wish.h"

#define LISTENERS_MAX 64u

/* Of the driver. */
int cuCtxGetDevice(int *device);
int cuCtxSynchronize(void);
int cuLaunchHostFunc(struct cuda_stream *stream, void (*call)(void *context), void *context);

static unsigned long long wish(const char *name, unsigned long long otherwise)
{
    return wish_in("EVENFLOW_FAKE_NCCL", name, otherwise);
}

/* ---- a connection ---- */

/* An identifier: where its maker listens. */
struct place {
    uint64_t magic;
    uint16_t port;
};

/* What both ends tell each other first. */
struct hello {
    uint64_t magic;
    int device;
    char host[64];
};

struct transfer {
    struct nccl_comm *comm;
    bool is_send;
    uint8_t *memory;
    size_t bytes;
    struct cuda_stream *stream;
};

struct nccl_comm {
    struct place place;
    struct hello own;
    pthread_t thread;
    bool has_thread, is_used;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct transfer *first; /* what the thread is to put into its stream */
    uint32_t in_streams;    /* operations */
    int socket, abort;      /* abort: readable once it is */
    _Atomic int result;
    _Atomic bool is_aborted;
};

static struct {
    uint64_t magic;
    int socket;
} listeners[LISTENERS_MAX];
static _Atomic unsigned connections, operations;

static int fail(struct nccl_comm *comm, int result)
{
    comm->result = result;
    return result;
}

/* Until the descriptor is ready; false: the connection is aborted. */
static bool wait_for(struct nccl_comm *comm, int fd, short events)
{
    struct pollfd both[] = {{.fd = comm->abort, .events = POLLIN}, {.fd = fd, .events = events}};
    while (poll(both, 2, -1) < 0 && errno == EINTR)
        continue;
    return both[0].revents == 0;
}

/* All of it, to or from the other end; false: the connection is aborted, which may be long after that end has gone. */
static bool move(struct nccl_comm *comm, bool is_send, void *memory, size_t bytes)
{
    uint8_t *at = memory;
    while (bytes > 0) {
        ssize_t moved = 0;
        if (!wait_for(comm, comm->socket, is_send ? POLLOUT : POLLIN))
            return false;
        moved = is_send ? send(comm->socket, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT)
                        : recv(comm->socket, at, bytes, MSG_DONTWAIT);
        if (moved < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (moved <= 0)
            return wait_for(comm, -1, 0);
        at += moved;
        bytes -= (size_t)moved;
    }
    return true;
}

static int listener_of(uint64_t magic)
{
    for (uint32_t i = 0; i < LISTENERS_MAX; i++)
        if (listeners[i].magic == magic)
            return listeners[i].socket;
    return -1;
}

static void forget_listener(uint64_t magic)
{
    for (uint32_t i = 0; i < LISTENERS_MAX; i++)
        if (listeners[i].magic == magic) {
            close(listeners[i].socket);
            listeners[i].magic = 0;
        }
}

/* The other end's socket; -1: the connection is aborted, or has failed. */
static int find_other(struct nccl_comm *comm)
{
    int listener = listener_of(comm->place.magic);
    if (listener >= 0)
        return wait_for(comm, listener, POLLIN) ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = comm->place.port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    fail(comm, NCCL_SYSTEM_ERROR);
    return -1;
}

static void connect_both(struct nccl_comm *comm)
{
    struct hello theirs;
    cuCtxSynchronize();
    if (connections++ < wish("init", 0)) {
        fail(comm, NCCL_SYSTEM_ERROR);
        return;
    }
    int one = 1;
    comm->socket = find_other(comm);
    setsockopt(comm->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (comm->socket < 0 || !move(comm, true, &comm->own, sizeof(comm->own)) ||
        !move(comm, false, &theirs, sizeof(theirs)))
        return;
    bool is_same = theirs.device == comm->own.device && strcmp(theirs.host, comm->own.host) == 0;
    comm->result = theirs.magic != comm->own.magic ? NCCL_INTERNAL_ERROR : is_same ? NCCL_INVALID_USAGE : NCCL_OK;
}

/* ---- what it carries ---- */

static void carry(void *context)
{
    struct transfer *transfer = context;
    struct nccl_comm *comm = transfer->comm;
    uint64_t bytes = transfer->bytes;
    uint8_t taken = 1;
    bool fails = ++operations % wish("error", UINT64_MAX) == 0;
    if (fails) {
        fail(comm, NCCL_SYSTEM_ERROR);
        wait_for(comm, -1, 0);
    } else if (transfer->is_send) {
        (void)(move(comm, true, &bytes, sizeof(bytes)) && move(comm, true, transfer->memory, transfer->bytes) &&
               move(comm, false, &taken, 1));
    } else if (move(comm, false, &bytes, sizeof(bytes)) && bytes != transfer->bytes) {
        fail(comm, NCCL_INVALID_ARGUMENT); /* the two do not agree, which NCCL would not even see */
        wait_for(comm, -1, 0);
    } else {
        (void)(move(comm, false, transfer->memory, transfer->bytes) && move(comm, true, &taken, 1));
    }
    pthread_mutex_lock(&comm->lock);
    comm->in_streams--;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    free(transfer);
}

static void put(struct transfer *transfer)
{
    pthread_mutex_lock(&transfer->comm->lock);
    transfer->comm->in_streams++;
    pthread_mutex_unlock(&transfer->comm->lock);
    cuLaunchHostFunc(transfer->stream, carry, transfer);
}

/* Connects, and puts the first operation into its stream: it has to find its way, as NCCL's does. */
static void *run_connection(void *context)
{
    struct nccl_comm *comm = context;
    connect_both(comm);
    pthread_mutex_lock(&comm->lock);
    while (comm->first == NULL && !comm->is_aborted)
        pthread_cond_wait(&comm->changed, &comm->lock);
    struct transfer *first = comm->first;
    bool is_aborted = comm->is_aborted;
    pthread_mutex_unlock(&comm->lock);
    if (first != NULL && !is_aborted) {
        put(first);
        int in_progress = NCCL_IN_PROGRESS;
        atomic_compare_exchange_strong(&comm->result, &in_progress, NCCL_OK);
    } else {
        free(first);
    }
    return NULL;
}

static int begin_transfer(struct nccl_comm *comm, bool is_send, void *memory, size_t count, int type, int rank,
                          struct cuda_stream *stream)
{
    if (comm->result != NCCL_OK || type != NCCL_FLOATS || rank < 0 || rank > 1 || memory == NULL)
        return NCCL_INVALID_USAGE;
    struct transfer *transfer = malloc(sizeof(*transfer));
    *transfer = (struct transfer){
        .comm = comm, .is_send = is_send, .memory = memory, .bytes = count * sizeof(float), .stream = stream};
    if (comm->is_used) {
        put(transfer);
        return NCCL_OK;
    }
    comm->is_used = true;
    comm->result = NCCL_IN_PROGRESS;
    pthread_mutex_lock(&comm->lock);
    comm->first = transfer;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    return NCCL_IN_PROGRESS;
}

/* ---- the library ---- */

int ncclGetVersion(int *version)
{
    *version = (int)wish("version", 22809);
    return NCCL_OK;
}

const char *ncclGetErrorString(int result)
{
    static const char *const texts[] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};
    return result >= 0 && (size_t)result < sizeof(texts) / sizeof(texts[0]) ? texts[result] : "unknown result";
}

const char *ncclGetLastError(struct nccl_comm *comm)
{
    (void)comm;
    return "";
}

int ncclGetUniqueId(struct nccl_id *id)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    struct place place = {0};
    uint32_t at = 0;
    while (at < LISTENERS_MAX && listeners[at].magic != 0)
        at++;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (at == LISTENERS_MAX || fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 4) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0 ||
        getrandom(&place.magic, sizeof(place.magic), 0) != sizeof(place.magic)) {
        if (fd >= 0)
            close(fd);
        return NCCL_SYSTEM_ERROR;
    }
    place.port = address.sin_port;
    listeners[at].magic = place.magic;
    listeners[at].socket = fd;
    memset(id, 0, sizeof(*id));
    memcpy(id, &place, sizeof(place));
    return NCCL_OK;
}

int ncclCommInitRankConfig(struct nccl_comm **result, int ranks, struct nccl_id id, int rank,
                           struct nccl_config *config)
{
    const char *host = getenv("NCCL_HOSTID");
    if (config->bytes < sizeof(*config) || config->magic != NCCL_CONFIG_MAGIC || config->blocks_max != 1 ||
        config->is_blocking != (ranks == 1) || ranks < 1 || ranks > 2 || rank >= ranks)
        return NCCL_INVALID_ARGUMENT;
    struct nccl_comm *comm = *result = calloc(1, sizeof(*comm));
    memcpy(&comm->place, &id, sizeof(comm->place));
    comm->own.magic = comm->place.magic;
    snprintf(comm->own.host, sizeof(comm->own.host), "%s", host != NULL ? host : "");
    comm->socket = -1;
    comm->abort = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&comm->lock, NULL);
    pthread_cond_init(&comm->changed, NULL);
    if (comm->abort < 0 || cuCtxGetDevice(&comm->own.device) != CUDA_OK)
        return NCCL_CUDA_ERROR;
    if (ranks == 1)
        return NCCL_OK;
    comm->result = NCCL_IN_PROGRESS;
    comm->has_thread = pthread_create(&comm->thread, NULL, run_connection, comm) == 0;
    return comm->has_thread ? NCCL_IN_PROGRESS : fail(comm, NCCL_SYSTEM_ERROR);
}

int ncclCommGetAsyncError(struct nccl_comm *comm, int *result)
{
    *result = comm->result;
    return NCCL_OK;
}

/* Frees what waits for the other end. */
static void let_go(struct nccl_comm *comm)
{
    const uint64_t one = 1;
    pthread_mutex_lock(&comm->lock);
    comm->is_aborted = true;
    pthread_cond_broadcast(&comm->changed);
    pthread_mutex_unlock(&comm->lock);
    if (write(comm->abort, &one, sizeof(one)) != sizeof(one))
        abort();
}

/* Gives back what it has taken. */
static void reclaim(struct nccl_comm *comm)
{
    if (comm->has_thread)
        pthread_join(comm->thread, NULL);
    pthread_mutex_lock(&comm->lock);
    while (comm->in_streams > 0)
        pthread_cond_wait(&comm->changed, &comm->lock);
    pthread_mutex_unlock(&comm->lock);
    cuCtxSynchronize();
    forget_listener(comm->place.magic);
    if (comm->socket >= 0)
        close(comm->socket);
    close(comm->abort);
    free(comm);
}

static struct nccl_comm *group[8];
static uint32_t group_depth, group_count;

int ncclGroupStart(void)
{
    group_depth++;
    return NCCL_OK;
}

int ncclGroupEnd(void)
{
    if (--group_depth == 0)
        while (group_count > 0)
            reclaim(group[--group_count]);
    return NCCL_OK;
}

int ncclCommAbort(struct nccl_comm *comm)
{
    if (group_count == sizeof(group) / sizeof(group[0]))
        return NCCL_INVALID_USAGE;
    ncclGroupStart();
    let_go(comm);
    group[group_count++] = comm;
    return ncclGroupEnd();
}

int ncclCommDestroy(struct nccl_comm *comm)
{
    return ncclCommAbort(comm);
}

int ncclSend(const void *from, size_t count, int type, int rank, struct nccl_comm *comm, struct cuda_stream *stream)
{
    return begin_transfer(comm, true, (void *)(uintptr_t)from, count, type, rank, stream);
}

int ncclRecv(void *to, size_t count, int type, int rank, struct nccl_comm *comm, struct cuda_stream *stream)
{
    return begin_transfer(comm, false, to, count, type, rank, stream);
}
