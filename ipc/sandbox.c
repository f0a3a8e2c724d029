#include "ipc/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* A call, and what its arguments must be: (argument & mask) == value, where mask is not 0. */
struct permission {
    int call;
    struct {
        uint32_t argument;
        uint64_t mask, value;
    } conditions[2];
};

#define CALL(name)                                                                                                     \
    {                                                                                                                  \
        .call = SCMP_SYS(name)                                                                                         \
    }

/* Work on descriptors that are there, waiting, telling the time, dying. Memory: the C library's own, never executable,
 * never a descriptor's. */
static const struct permission everybody[] = {
    CALL(read),
    CALL(write),
    CALL(writev),
    CALL(close),
    CALL(poll),
    CALL(ppoll),
    CALL(futex),
    CALL(futex_waitv),
    CALL(sched_yield),
    CALL(clock_gettime),
    CALL(gettimeofday),
    CALL(getrandom),
    CALL(restart_syscall),
    CALL(rt_sigreturn),
    CALL(rt_sigaction),
    CALL(rt_sigprocmask),
    CALL(sigaltstack),
    CALL(getpid),
    CALL(gettid),
    CALL(exit),
    CALL(exit_group),
    CALL(brk),
    CALL(munmap),
    {SCMP_SYS(mmap), {{2, PROT_EXEC, 0}, {3, MAP_ANONYMOUS, MAP_ANONYMOUS}}},
};

/* Clients: taking connections, their bytes, their end. With either back end of engine/io.h. */
static const struct permission front[] = {
    CALL(accept4),
    CALL(shutdown),
    CALL(recvmmsg),
    CALL(sendmmsg),
    CALL(sendmsg), /* to the keeper of connections */
    CALL(io_uring_enter),
    CALL(epoll_ctl),
    CALL(epoll_wait),
    CALL(epoll_pwait),
    {SCMP_SYS(getsockopt), {{1, UINT32_MAX, SOL_SOCKET}, {2, UINT32_MAX, SO_PEERCRED}}},
    {SCMP_SYS(setsockopt), {{1, UINT32_MAX, IPPROTO_TCP}, {2, UINT32_MAX, TCP_NODELAY}}},
};

/* What a driver of devices asks for. Which of it one really does is in its maker's hands. */
static const struct permission device[] = {
    CALL(ioctl),
    CALL(openat),
    CALL(fstat),
    CALL(newfstatat),
    CALL(lseek),
    CALL(pread64),
    CALL(madvise),
    CALL(eventfd2),
    CALL(clock_nanosleep),
    CALL(nanosleep),
    CALL(sched_getaffinity),
    {SCMP_SYS(mmap), {{2, PROT_EXEC, 0}}},
    {SCMP_SYS(mprotect), {{2, PROT_EXEC, 0}}},
    {SCMP_SYS(fcntl), {{1, UINT32_MAX, F_GETFL}}},
    {SCMP_SYS(fcntl), {{1, UINT32_MAX, F_SETFL}}},
    {SCMP_SYS(fcntl), {{1, UINT32_MAX, F_SETFD}}},
};

/* What NCCL asks for when it connects two processes on this machine. Likewise. */
static const struct permission nccl[] = {
    CALL(socket),
    CALL(socketpair),
    CALL(bind),
    CALL(listen),
    CALL(connect),
    CALL(accept),
    CALL(accept4),
    CALL(shutdown),
    CALL(getsockname),
    CALL(getpeername),
    CALL(getsockopt),
    CALL(setsockopt),
    CALL(sendto),
    CALL(recvfrom),
    CALL(sendmsg),
    CALL(recvmsg),
    CALL(pipe2),
    CALL(set_robust_list),
    CALL(rseq),
    CALL(sched_setaffinity),
    CALL(get_mempolicy),
    CALL(set_mempolicy),
    CALL(ftruncate),
    CALL(fallocate),
    CALL(unlink),
    CALL(access),
    CALL(readlink),
    CALL(getdents64),
    CALL(uname),
    CALL(sysinfo),
    CALL(getuid),
    CALL(geteuid),
    {SCMP_SYS(clone), {{0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM}}},
    {SCMP_SYS(prctl), {{0, UINT32_MAX, PR_SET_NAME}}},
    {SCMP_SYS(fcntl), {{1, UINT32_MAX, F_GETFD}}},
    {SCMP_SYS(fcntl), {{1, UINT32_MAX, F_DUPFD_CLOEXEC}}},
};

static int permit(scmp_filter_ctx filter, const struct permission *list, size_t count)
{
    int ret = 0;
    for (size_t i = 0; i < count && ret == 0; i++) {
        struct scmp_arg_cmp conditions[ARRAY_COUNT(list->conditions)];
        unsigned condition_count = 0;
        for (size_t k = 0; k < ARRAY_COUNT(list->conditions) && list[i].conditions[k].mask != 0; k++)
            conditions[condition_count++] = SCMP_CMP64(list[i].conditions[k].argument, SCMP_CMP_MASKED_EQ,
                                                       list[i].conditions[k].mask, list[i].conditions[k].value);
        ret = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, list[i].call, condition_count, conditions);
    }
    return ret;
}

bool sandbox_is_possible(void)
{
    /* asking for a filter at address 0 fails with EFAULT where there are filters */
    return prctl(PR_SET_SECCOMP, 2 /* SECCOMP_MODE_FILTER */, NULL, 0, 0) == -1 && errno == EFAULT;
}

enum exception { EXCEPTION_NONE, EXCEPTION_DEVICE, EXCEPTION_NCCL };

static int enter(enum role role, enum exception exception, struct err *err)
{
    check(role != ROLE_SUPERVISOR);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (filter == NULL)
        return err_set(err, -ENOMEM, "sandbox: cannot make a filter");
    /* all threads, no new privileges (the library's default), and the kernel's own word for what failed */
    int ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    ret = ret ? ret : seccomp_attr_set(filter, SCMP_FLTATR_API_SYSRAWRC, 1);
    ret = ret ? ret : permit(filter, everybody, ARRAY_COUNT(everybody));
    /* abort() and raise(): signals to itself alone */
    ret = ret ? ret
              : seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
                                 SCMP_CMP64(0, SCMP_CMP_EQ, (scmp_datum_t)getpid(), 0));
    if (role == ROLE_FRONT)
        ret = ret ? ret : permit(filter, front, ARRAY_COUNT(front));
    if (exception >= EXCEPTION_DEVICE)
        ret = ret ? ret : permit(filter, device, ARRAY_COUNT(device));
    if (exception >= EXCEPTION_NCCL) {
        ret = ret ? ret : permit(filter, nccl, ARRAY_COUNT(nccl));
        /* its flags lie in memory, where no filter looks: the C library takes clone() then */
        ret = ret ? ret : seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    }
    ret = ret ? ret : seccomp_load(filter);
    seccomp_release(filter);
    if (ret != 0)
        return err_set(err, ret, "sandbox: the kernel does not take the filter: %s", strerror(-ret));
    return 0;
}

int sandbox_enter(enum role role, struct err *err)
{
    return enter(role, EXCEPTION_NONE, err);
}

int sandbox_enter_with_device(struct err *err)
{
    return enter(ROLE_STAGE, EXCEPTION_DEVICE, err);
}

int sandbox_enter_with_nccl(struct err *err)
{
    return enter(ROLE_STAGE, EXCEPTION_NCCL, err);
}
