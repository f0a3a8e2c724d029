#include "ipc/lifeline.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int lifeline_open(struct lifeline *line, struct err *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_set(err, -errno, "lifeline: cannot create a pipe: %s", strerror(errno));
    *line = (struct lifeline){.reader = ends[0], .writer = ends[1]};
    return 0;
}

bool lifeline_hold(int reader)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", reader);
    /* opened again: owner and signal belong to the open file, not to the number */
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    bool is_set = fd >= 0 && fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_SETSIG, SIGKILL) == 0 &&
                  fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC) == 0;
    if (!is_set)
        return false;
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 0;
}
