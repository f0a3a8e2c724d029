#include "kernels/nccl.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION_MIN 21700 /* connections that do not block, and how many blocks of threads serve one */

__attribute__((format(printf, 3, 4))) static int fail(struct nccl *nccl, int code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(nccl->error, sizeof(nccl->error), format, values);
    va_end(values);
    return code;
}

/* What a call says: 0, also when it goes on in the background. */
static int result_of(struct nccl *nccl, int result, const char *what)
{
    if (result == NCCL_OK || result == NCCL_IN_PROGRESS)
        return 0;
    const char *more = nccl->library.last_error(NULL);
    return fail(nccl, -EIO, "NCCL: %s: %s%s%s", what, nccl->library.error_text(result), more && *more ? ": " : "",
                more != NULL ? more : "");
}

static int load(struct nccl *nccl)
{
    const char *given = getenv("EVENFLOW_LIBNCCL");
    *nccl = (struct nccl){0};
    nccl->handle = dlopen(given != NULL ? given : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (nccl->handle == NULL)
        return fail(nccl, -ENOENT, "no NCCL: %s", dlerror());
#define FIND(field, symbol, result, parameters)                                                                        \
    *(void **)&nccl->library.field = dlsym(nccl->handle, #symbol);                                                     \
    if (nccl->library.field == NULL)                                                                                   \
        return fail(nccl, -ENOTSUP, "NCCL is too old: it has no %s", #symbol);
    NCCL_FUNCTIONS(FIND)
#undef FIND
    int ret = result_of(nccl, nccl->library.version(&nccl->version), "version");
    if (ret == 0 && nccl->version < VERSION_MIN)
        return fail(nccl, -ENOTSUP, "NCCL %d.%d.%d is too old: 2.17 or later is needed", nccl->version / 10000,
                    nccl->version / 100 % 100, nccl->version % 100);
    return ret;
}

int nccl_is_there(struct nccl *nccl)
{
    int ret = load(nccl);
    if (nccl->handle != NULL)
        dlclose(nccl->handle);
    nccl->handle = NULL;
    return ret;
}

static struct nccl_config config_of(bool is_blocking)
{
    return (struct nccl_config){.bytes = sizeof(struct nccl_config),
                                .magic = NCCL_CONFIG_MAGIC,
                                .version = NCCL_CONFIG_OF,
                                .is_blocking = is_blocking,
                                .cluster_size = NCCL_CONFIG_ANY,
                                .blocks_min = NCCL_CONFIG_ANY,
                                .blocks_max = 1}; /* the others compute */
}

/* All of an engine is on one machine: no network cards are looked for. Whoever has set it otherwise knows better. */
static void set_environment(const char *host_name)
{
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    setenv("NCCL_IB_DISABLE", "1", 0);
    if (host_name != NULL)
        setenv("NCCL_HOSTID", host_name, 1);
}

int nccl_open(struct nccl *nccl, const char *host_name)
{
    struct nccl_config config = config_of(true);
    struct nccl_id id;
    struct nccl_comm *alone;
    set_environment(host_name);
    int ret = load(nccl);
    /* a connection with nobody: NCCL loads more libraries for the first one, which a sandbox would not let it do later */
    ret = ret ? ret : nccl_make_id(nccl, &id);
    ret = ret ? ret : result_of(nccl, nccl->library.init(&alone, 1, id, 0, &config), "init");
    return ret ? ret : result_of(nccl, nccl->library.destroy(alone), "destroy");
}

int nccl_make_id(struct nccl *nccl, struct nccl_id *id)
{
    return result_of(nccl, nccl->library.id(id), "id");
}

int nccl_connect(struct nccl *nccl, struct nccl_connection *connection, const struct nccl_id *id, int rank)
{
    struct nccl_config config = config_of(false);
    *connection = (struct nccl_connection){.nccl = nccl, .rank = rank};
    return result_of(nccl, nccl->library.init(&connection->comm, 2, *id, rank, &config), "init");
}

enum nccl_state nccl_look(struct nccl_connection *connection)
{
    struct nccl *nccl = connection->nccl;
    int state = NCCL_INTERNAL_ERROR;
    int ret = result_of(nccl, nccl->library.async_error(connection->comm, &state), "async_error");
    if (ret == 0 && state == NCCL_IN_PROGRESS)
        return NCCL_BUSY;
    return ret == 0 && result_of(nccl, state, "connection") == 0 ? NCCL_READY : NCCL_FAILED;
}

int nccl_carry(struct nccl_connection *connection, cuda_address floats, size_t count, struct cuda_stream *stream)
{
    const struct nccl_library *library = &connection->nccl->library;
    void *memory = (void *)(uintptr_t)floats;
    int other = 1 - connection->rank;
    int result = connection->rank == 0 ? library->send(memory, count, NCCL_FLOATS, other, connection->comm, stream)
                                       : library->receive(memory, count, NCCL_FLOATS, other, connection->comm, stream);
    return result_of(connection->nccl, result, connection->rank == 0 ? "send" : "receive");
}

void nccl_abort(struct nccl *nccl, struct nccl_connection *const connections[], uint32_t count)
{
    nccl->library.group_begin(); /* the first would wait for what is in streams of the second */
    for (uint32_t i = 0; i < count; i++)
        if (connections[i]->comm != NULL)
            nccl->library.abort(connections[i]->comm);
    nccl->library.group_end();
    for (uint32_t i = 0; i < count; i++)
        connections[i]->comm = NULL;
}
