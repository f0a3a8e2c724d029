#include "tests/simulate/actor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/base.h"

#define STACK_BYTES ((size_t)1 << 20)

struct actor *actor_at_hand;
static ucontext_t world;
static void (*first_run)(void *);
static void *first_argument;

/* ---- running ---- */

static void begin(void)
{
    first_run(first_argument);
    check(!"an actor ran to its end");
}

void actor_start(struct actor *actor, void (*run)(void *argument), void *argument)
{
    check(actor->state == ACTOR_DEAD);
    if (actor->stack == NULL) {
        actor->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(actor->stack != MAP_FAILED && mprotect(actor->stack, 4096, PROT_NONE) == 0);
    }
    check(getcontext(&actor->context) == 0);
    actor->context.uc_stack = (stack_t){.ss_sp = actor->stack, .ss_size = STACK_BYTES};
    actor->context.uc_link = NULL;
    makecontext(&actor->context, begin, 0);
    actor->state = ACTOR_READY;
    /* its first words: it is run at once, so that nobody else's can come between */
    first_run = run;
    first_argument = argument;
    actor_resume(actor);
}

void actor_resume(struct actor *actor)
{
    check(actor_at_hand == NULL && actor->state != ACTOR_DEAD);
    actor->state = ACTOR_READY;
    actor_at_hand = actor;
    swapcontext(&world, &actor->context);
    actor_at_hand = NULL;
}

static void leave(enum actor_state state)
{
    struct actor *actor = actor_at_hand;
    actor->state = state;
    swapcontext(&actor->context, &world);
}

void actor_yield(void)
{
    leave(ACTOR_READY);
}

void actor_sleep(int fd, uint64_t until_ns)
{
    actor_at_hand->wake_fd = fd;
    actor_at_hand->wake_ns = until_ns;
    leave(ACTOR_ASLEEP);
}

void actor_die(void)
{
    leave(ACTOR_DEAD);
    abort();
}

/* ---- what it has taken ---- */

int __real_posix_memalign(void **memory, size_t align, size_t bytes);
int __wrap_posix_memalign(void **memory, size_t align, size_t bytes);
void __real_free(void *memory);
void __wrap_free(void *memory);
int __real_close(int fd);
int __wrap_close(int fd);
int __real_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags);
int __real_epoll_create1(int flags);
int __wrap_epoll_create1(int flags);
ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);

int __wrap_posix_memalign(void **memory, size_t align, size_t bytes)
{
    int ret = __real_posix_memalign(memory, align, bytes);
    struct actor *actor = actor_at_hand;
    if (ret != 0 || actor == NULL)
        return ret;
    if (actor->memory_count == actor->memory_max) {
        actor->memory_max = actor->memory_max * 2 + 64;
        actor->memory = realloc(actor->memory, actor->memory_max * sizeof(*actor->memory));
        check(actor->memory != NULL);
    }
    actor->memory[actor->memory_count++] = *memory;
    return 0;
}

void __wrap_free(void *memory)
{
    struct actor *actor = actor_at_hand;
    for (uint32_t i = actor != NULL ? actor->memory_count : 0; i-- > 0;)
        if (actor->memory[i] == memory) {
            actor->memory[i] = actor->memory[--actor->memory_count];
            break;
        }
    __real_free(memory);
}

void actor_own(struct actor *actor, int fd)
{
    if (actor->file_count == actor->file_max) {
        actor->file_max = actor->file_max * 2 + 64;
        actor->files = realloc(actor->files, actor->file_max * sizeof(*actor->files));
        check(actor->files != NULL);
    }
    actor->files[actor->file_count++] = fd;
}

static int own(int fd)
{
    if (fd >= 0 && actor_at_hand != NULL)
        actor_own(actor_at_hand, fd);
    return fd;
}

int __wrap_close(int fd)
{
    struct actor *actor = actor_at_hand;
    for (uint32_t i = actor != NULL ? actor->file_count : 0; i-- > 0;)
        if (actor->files[i] == fd) {
            actor->files[i] = actor->files[--actor->file_count];
            break;
        }
    return __real_close(fd);
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    return own(__real_accept4(fd, address, size, flags));
}

int __wrap_epoll_create1(int flags)
{
    return own(__real_epoll_create1(flags));
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t got = __real_recvmsg(fd, message, flags);
    if (got < 0 || actor_at_hand == NULL)
        return got;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int received;
            memcpy(&received, CMSG_DATA(c) + at, sizeof(received));
            own(received);
        }
    }
    return got;
}

void actor_clear(struct actor *actor)
{
    check(actor_at_hand == NULL);
    actor->state = ACTOR_DEAD;
    while (actor->memory_count > 0)
        __real_free(actor->memory[--actor->memory_count]);
    while (actor->file_count > 0)
        check(__real_close(actor->files[--actor->file_count]) == 0);
}
