#include "ipc/control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int control_path(char *path, size_t size, const char *socket_path, struct err *err)
{
    int length = snprintf(path, size, "%s.control", socket_path);
    if (length < 0 || (size_t)length >= size || (size_t)length >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return err_set(err, -ENAMETOOLONG,
                       "socket %s: too long for orders to its engine, at %s.control: there will be none", socket_path,
                       socket_path);
    return 0;
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    return address;
}

int control_listen(const char *path, struct err *err)
{
    struct sockaddr_un address = address_of(path);
    unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    bool is_bound = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 1) == 0;
    int error = errno;
    umask(mask);
    if (is_bound)
        return fd;
    if (fd >= 0)
        close(fd);
    return err_set(err, -error, "socket %s: cannot listen there: %s", path, strerror(error));
}

int control_accept(int listener)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return -EAGAIN;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == geteuid() || peer.uid == 0))
        return fd;
    close(fd);
    return -EACCES;
}

int control_ask(const char *path, const struct birth *order, const int *fds, struct err *err)
{
    struct sockaddr_un address = address_of(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ret = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0
                  ? birth_send(fd, order, fds, err)
                  : err_set(err, -errno, "%s: no engine takes orders there: %s", path, strerror(errno));
    if (ret != 0 && fd >= 0)
        close(fd);
    return ret ? ret : fd;
}

static const char *argument(int argc, char **argv, const char *name)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return NULL;
}

int control_attach(enum role role, int argc, char **argv, struct err *err)
{
    const char *socket_path = argument(argc, argv, "--attach"), *index = argument(argc, argv, "--index");
    struct birth wish = {.magic = BIRTH_MAGIC, .part = BIRTH_WANTED, .role = role};
    char path[256];
    if (socket_path == NULL)
        return -1;
    char *end = NULL;
    unsigned long number = index != NULL ? strtoul(index, &end, 10) : 0;
    if (number >= STAGES_MAX || (end != NULL && (*end != '\0' || end == index)))
        return err_set(err, -EINVAL, "--index %s: must be a number below %u", index, STAGES_MAX);
    wish.index = (uint32_t)number;
    int ret = control_path(path, sizeof(path), socket_path, err);
    return ret ? ret : control_ask(path, &wish, NULL, err);
}

void control_say(int connection, const char *format, ...)
{
    char line[600];
    va_list args;
    if (connection < 0)
        return;
    va_start(args, format);
    int size = vsnprintf(line, sizeof(line) - 1, format, args);
    va_end(args);
    size = size < (int)sizeof(line) - 1 ? size : (int)sizeof(line) - 2;
    line[size] = '\n';
    ssize_t sent = send(connection, line, (size_t)size + 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent;
}
