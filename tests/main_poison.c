/* main_poison.c - linked into a stage in place of what computes a step: a token of the test's choice makes it fail.
 *
 * EVENFLOW_POISON names the stage, the way and the token: "1:segv:77". Ways: segv, check, spin, sleep, and escape: what
 * somebody who has taken the process over would try; its last words say whether all was refused. Everything else of the
 * program is as it is installed; see the Makefile.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ipc/steps.h"
#include "stages/stage.h"

struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);
struct timed_span __real_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);

bool __wrap_step_is_published(const struct arena *arena, uint64_t step);
bool __real_step_is_published(const struct arena *arena, uint64_t step);

static const struct arena *own_arena;

bool __wrap_step_is_published(const struct arena *arena, uint64_t step)
{
    own_arena = arena;
    return __real_step_is_published(arena, step);
}

/* ---- escaping ---- */

static uint32_t refused, escapes;

static void expect_refused(bool is_refused)
{
    refused += is_refused;
    escapes += !is_refused;
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        expect_refused((long)(call) == -1 && (errno == EPERM || errno == EACCES));                                     \
    } while (0)

/* The kernel writes for whoever asks, where that process may write itself. */
static void try_to_write(void *memory)
{
    errno = 0;
    expect_refused(getrandom(memory, 8, 0) == -1 && errno == EFAULT);
    uint8_t *page = (uint8_t *)((uintptr_t)memory & ~(uintptr_t)4095);
    TRY(mprotect(page, 4096, PROT_READ | PROT_WRITE));
    TRY(mremap(page, 4096, 8192, MREMAP_MAYMOVE));
    TRY(madvise(page, 4096, MADV_REMOVE));
}

/* From the last stage, which sees most: journal, sequences, logs, steps, the stage before, the supervisor's words, the plan. */
static void try_to_escape(void)
{
    const struct arena *arena = own_arena;
    char path[64] = "x";
    struct iovec mine = {path, 1}, theirs = {(void *)(uintptr_t)arena->plan, 1};
    void *const others[] = {arena_request(arena, 0),  arena_prompt_page(arena, 0),
                            arena_sequence(arena, 0), arena_log_page(arena, 0),
                            arena_step(arena, 0),     arena_activations(arena, arena->index - 1, 0),
                            arena_sup(arena),         (void *)(uintptr_t)arena->plan};
    for (size_t i = 0; i < ARRAY_COUNT(others); i++)
        try_to_write(others[i]);
    for (int fd = 0; fd < 64; fd++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        TRY(open(path, O_RDWR));
        TRY(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        TRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
        TRY(pwrite(fd, path, 1, 0));
        TRY(ftruncate(fd, 0));
    }
    snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
    TRY(open(path, O_RDWR));
    TRY(open("/etc/passwd", O_RDONLY));
    TRY(process_vm_writev(getppid(), &mine, 1, &theirs, 1, 0));
    TRY(process_vm_readv(getppid(), &mine, 1, &theirs, 1, 0));
    TRY(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    TRY(ptrace(PTRACE_SEIZE, getppid(), NULL, NULL));
    TRY(kill(getppid(), SIGKILL));
    TRY(syscall(SYS_pidfd_open, getppid(), 0));
    TRY(syscall(SYS_pidfd_getfd, 0, 0, 0));
    TRY(socket(AF_UNIX, SOCK_STREAM, 0));
    TRY(syscall(SYS_memfd_create, "x", 0));
    TRY(syscall(SYS_execve, "/bin/true", NULL, NULL));
    TRY(syscall(SYS_clone3, NULL, 0));
    TRY(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    snprintf(path, sizeof(path), "%u attempts refused, %u not", refused, escapes);
    check_failed(path, "escape", 0);
}

static void fail(const char *way)
{
    volatile int *nowhere = NULL;
    volatile bool for_ever = true;
    if (strcmp(way, "segv") == 0)
        *nowhere = 1;
    check(strcmp(way, "check") != 0);
    if (strcmp(way, "escape") == 0)
        try_to_escape();
    while (for_ever)
        if (strcmp(way, "sleep") == 0)
            usleep(100000000);
}

struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns)
{
    const char *poison = getenv("EVENFLOW_POISON");
    char way[16];
    unsigned stage, token;
    bool is_poisoned = poison != NULL && sscanf(poison, "%u:%15[a-z]:%u", &stage, way, &token) == 3;
    for (uint32_t i = 0; is_poisoned && i < step->token_count; i++)
        if (step->tokens[i] == token && timed->index == stage)
            fail(way);
    return __real_timed_step(timed, step, input_ns);
}
