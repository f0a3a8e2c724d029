/* test_sandbox.c - what a process that has been taken over can still ask for. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ipc/sandbox.h"
#include "ipc/shm.h"

static int memory; /* a memfd, open in the child as if it had forgotten to close it */
static uint8_t *readable, *writable;
static int pair[2], listener;

/* Runs in a child: 0, or the number of the line where something was other than expected. */
typedef int body_fn(enum role role);

static void expect_inside(enum role role, body_fn *body)
{
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    pid_t child = fork();
    if (child == 0) {
        struct err err = {0};
        if (sandbox_enter(role, &err) != 0)
            _exit(255);
        _exit(body(role) & 0xff);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status), "signal %d", WTERMSIG(status));
    cr_expect_eq(WEXITSTATUS(status), 0, "role %s: line %d (modulo 256)", role_name(role), WEXITSTATUS(status));
}

#define REFUSED(call)                                                                                                  \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        if ((long)(call) != -1 || errno != EPERM)                                                                      \
            return __LINE__;                                                                                           \
    } while (0)
#define WORKS(call)                                                                                                    \
    do {                                                                                                               \
        if ((long)(call) < 0)                                                                                          \
            return __LINE__;                                                                                           \
    } while (0)

static int try_to_break_out(enum role role)
{
    char path[64];
    char *const arguments[] = {"/bin/true", NULL};
    struct iovec mine = {path, 1}, theirs = {readable, 1};
    snprintf(path, sizeof(path), "/proc/self/fd/%d", memory);
    REFUSED(open(path, O_RDWR));
    REFUSED(openat(AT_FDCWD, "/etc/passwd", O_RDONLY));
    REFUSED(creat("/tmp/evenflow-test-sandbox", 0600));
    REFUSED(unlink("/tmp/nothing"));
    REFUSED(execv("/bin/true", arguments));
    REFUSED(syscall(SYS_execveat, memory, "", arguments, NULL, 0x1000));
    REFUSED(fork());
    REFUSED(syscall(SYS_clone3, NULL, 0));
    REFUSED(socket(AF_INET, SOCK_STREAM, 0));
    REFUSED(socket(AF_UNIX, SOCK_STREAM, 0));
    REFUSED(connect(pair[0], (struct sockaddr *)path, sizeof(struct sockaddr)));
    REFUSED(bind(pair[0], (struct sockaddr *)path, sizeof(struct sockaddr)));
    REFUSED(kill(getppid(), 0));
    REFUSED(syscall(SYS_tgkill, getppid(), getppid(), SIGKILL));
    REFUSED(syscall(SYS_pidfd_open, getppid(), 0));
    REFUSED(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    REFUSED(process_vm_writev(getppid(), &mine, 1, &theirs, 1, 0));
    REFUSED(process_vm_readv(getppid(), &mine, 1, &theirs, 1, 0));
    REFUSED(mprotect(readable, 4096, PROT_READ | PROT_WRITE));
    REFUSED(mprotect(writable, 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0));
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REFUSED(mremap(writable, 4096, 8192, MREMAP_MAYMOVE));
    REFUSED(madvise(writable, 4096, MADV_REMOVE));
    REFUSED(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    REFUSED(ftruncate(memory, 0));
    REFUSED(pwrite(memory, path, 1, 0));
    REFUSED(fcntl(memory, F_ADD_SEALS, 0));
    REFUSED(dup(memory));
    REFUSED(syscall(SYS_memfd_create, "x", 0));
    REFUSED(syscall(SYS_userfaultfd, 0));
    REFUSED(syscall(SYS_bpf, 0, NULL, 0));
    REFUSED(syscall(SYS_io_uring_setup, 8, path));
    REFUSED(syscall(SYS_io_uring_register, 0, 0, NULL, 0));
    REFUSED(unshare(CLONE_NEWUSER));
    if (role == ROLE_FRONT)
        return 0;
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &mine, .msg_iovlen = 1}};
    REFUSED(accept4(listener, NULL, NULL, 0));
    REFUSED(send(pair[0], "x", 1, 0));
    REFUSED(sendmsg(pair[0], &message.msg_hdr, 0));
    REFUSED(sendmmsg(pair[0], &message, 1, 0));
    REFUSED(syscall(SYS_io_uring_enter, 0, 0, 0, 0, NULL, 0));
    return 0;
}

static int do_the_work(enum role role)
{
    char text[8] = "x";
    struct iovec data = {text, 1};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &data, .msg_iovlen = 1}};
    int one = 1;
    struct ucred peer;
    socklen_t size = sizeof(peer);
    struct timespec now;
    WORKS(clock_gettime(CLOCK_MONOTONIC, &now));
    WORKS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now));
    WORKS(write(pair[0], text, 1));
    WORKS(read(pair[1], text, 1));
    WORKS(getpid());
    WORKS(syscall(SYS_futex, writable, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0));
    void *more = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (more == MAP_FAILED || munmap(more, 4096) != 0)
        return __LINE__;
    if (role != ROLE_FRONT)
        return 0;
    WORKS(sendmmsg(pair[0], &message, 1, MSG_DONTWAIT));
    WORKS(recvmmsg(pair[1], &message, 1, MSG_DONTWAIT, NULL));
    WORKS(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &size));
    REFUSED(getsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &one, &size));
    REFUSED(setsockopt(pair[0], SOL_SOCKET, SO_RCVBUF, &one, sizeof(one)));
    WORKS(shutdown(pair[0], SHUT_RDWR));
    return 0;
}

static void set_up(void)
{
    struct err err = {0};
    if (!sandbox_is_possible())
        cr_skip_test("this system has no system call filters");
    memory = shm_create("evenflow-test", 4096, &err);
    cr_assert_geq(memory, 0);
    readable = shm_map(shm_read_only(memory, &err), 4096, SHM_READ, "test", &err);
    writable = shm_map(memory, 4096, SHM_WRITE, "test", &err);
    cr_assert(readable != NULL && writable != NULL);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
}

Test(sandbox, nothing_but_its_work_is_left_to_a_process, .init = set_up)
{
    for (enum role role = ROLE_FRONT; role < ROLE_COUNT; role++)
        expect_inside(role, try_to_break_out);
}

static int drive_a_device(void)
{
    char *const arguments[] = {"/bin/true", NULL};
    struct iovec mine = {writable, 1}, theirs = {readable, 1};
    int fd = open("/dev/zero", O_RDWR);
    WORKS(fd);
    WORKS(ioctl(memory, 0) == 0 || errno == ENOTTY ? 0 : -1);
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    WORKS(mapped == MAP_FAILED ? -1 : 0);
    WORKS(mprotect(mapped, 4096, PROT_READ));
    REFUSED(mprotect(mapped, 4096, PROT_READ | PROT_EXEC));
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, memory, 0));
    REFUSED(execv("/bin/true", arguments));
    REFUSED(fork());
    REFUSED(socket(AF_UNIX, SOCK_STREAM, 0));
    REFUSED(send(pair[0], "x", 1, 0));
    REFUSED(kill(getppid(), 0));
    REFUSED(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    REFUSED(process_vm_writev(getppid(), &mine, 1, &theirs, 1, 0));
    REFUSED(unlink("/tmp/nothing"));
    REFUSED(ftruncate(memory, 0));
    REFUSED(dup(memory));
    return do_the_work(ROLE_STAGE);
}

static void *do_nothing(void *nothing)
{
    return nothing;
}

static int connect_like_nccl(void)
{
    char *const arguments[] = {"/bin/true", NULL};
    struct iovec mine = {writable, 1}, theirs = {readable, 1};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    pthread_t thread;
    int waiting = socket(AF_INET, SOCK_STREAM, 0), calling = socket(AF_INET, SOCK_STREAM, 0);
    WORKS(waiting);
    WORKS(bind(waiting, (struct sockaddr *)&address, size));
    WORKS(listen(waiting, 1));
    WORKS(getsockname(waiting, (struct sockaddr *)&address, &size));
    WORKS(connect(calling, (struct sockaddr *)&address, size));
    WORKS(accept(waiting, NULL, NULL));
    WORKS(send(calling, "x", 1, 0));
    if (pthread_create(&thread, NULL, do_nothing, NULL) != 0)
        return __LINE__;
    pthread_join(thread, NULL);
    REFUSED(execv("/bin/true", arguments));
    REFUSED(fork());
    REFUSED(kill(getppid(), 0));
    REFUSED(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    REFUSED(process_vm_writev(getppid(), &mine, 1, &theirs, 1, 0));
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, memory, 0));
    REFUSED(mprotect(writable, 4096, PROT_READ | PROT_EXEC));
    return do_the_work(ROLE_STAGE);
}

static void expect_inside_exception(int (*enter)(struct err *err), int (*body)(void))
{
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    pid_t child = fork();
    if (child == 0) {
        struct err err = {0};
        _exit(enter(&err) != 0 ? 255 : body() & 0xff);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status), "signal %d", WTERMSIG(status));
    cr_expect_eq(WEXITSTATUS(status), 0, "line %d (modulo 256)", WEXITSTATUS(status));
}

Test(sandbox, a_stage_on_a_device_may_open_files_for_its_driver_and_no_more, .init = set_up)
{
    expect_inside_exception(sandbox_enter_with_device, drive_a_device);
}

Test(sandbox, a_stage_whose_activations_nccl_carries_may_open_sockets_and_threads_and_no_processes, .init = set_up)
{
    expect_inside_exception(sandbox_enter_with_nccl, connect_like_nccl);
}

Test(sandbox, every_role_can_do_its_work, .init = set_up)
{
    for (enum role role = ROLE_FRONT; role < ROLE_COUNT; role++)
        expect_inside(role, do_the_work);
}

Test(sandbox, a_process_can_still_die_of_its_own_bugs, .init = set_up)
{
    pid_t child = fork();
    if (child == 0) {
        if (sandbox_enter(ROLE_STAGE, NULL) == 0)
            abort();
        _exit(1);
    }
    int status;
    waitpid(child, &status, 0);
    cr_expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
