#include "engine/supervisor_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "ipc/control.h"
#include "ipc/log.h"

#define LISTEN_BACKLOG 1024
#define GIVEN_FD       3 /* the first that sd_listen_fds(3) speaks of */

static int make_parent_directory(const char *path, struct err *err)
{
    char directory[PATH_MAX_BYTES];
    snprintf(directory, sizeof(directory), "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash == NULL || slash == directory)
        return 0;
    *slash = '\0';
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return err_set(err, -errno, "socket %s: cannot create its directory: %s; choose another with --socket", path,
                       strerror(errno));
    return 0;
}

/* The lock file beside the socket says whether an engine lives there. It is removed at the end, so whoever has locked it
 * looks whether the name still means the file that was locked. */
static int take_socket_lock(struct supervisor *s, struct err *err)
{
    const char *path = s->plan->socket_path;
    char lock_path[PATH_MAX_BYTES + 8];
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    for (;;) {
        struct stat locked, named;
        s->socket_lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (s->socket_lock < 0)
            return err_set(err, -errno, "socket %s: cannot open %s: %s; choose another with --socket", path, lock_path,
                           strerror(errno));
        if (flock(s->socket_lock, LOCK_EX | LOCK_NB) != 0) {
            close(s->socket_lock);
            return err_set(err, -EADDRINUSE,
                           "socket %s: another engine serves there; stop it or choose another with --socket", path);
        }
        if (fstat(s->socket_lock, &locked) == 0 && stat(lock_path, &named) == 0 && locked.st_ino == named.st_ino)
            return 0;
        close(s->socket_lock);
    }
}

void supervisor_remove_socket(const struct supervisor *s)
{
    char lock_path[PATH_MAX_BYTES + 8];
    if (!s->is_listener_given)
        unlink(s->plan->socket_path);
    if (control_path(lock_path, sizeof(lock_path), s->plan->socket_path, NULL) == 0)
        unlink(lock_path);
    snprintf(lock_path, sizeof(lock_path), "%s.lock", s->plan->socket_path);
    unlink(lock_path);
}

/* How many sockets a service manager has given to this process. */
static long given_count(void)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    long given = pid != NULL && count != NULL && strtoll(pid, NULL, 10) == getpid() ? strtol(count, NULL, 10) : 0;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return given;
}

/* It must be the socket of the plan, or the lock beside that would protect another one. */
static int take_given_socket(struct supervisor *s, long count, struct err *err)
{
    const char *path = s->plan->socket_path;
    struct sockaddr_un address = {0};
    socklen_t address_size = sizeof(address), size = sizeof(int);
    int type = 0, is_listening = 0;
    if (count != 1)
        return err_set(err, -EINVAL, "LISTEN_FDS=%ld: the socket unit must give one socket, the engine's", count);
    bool is_fit = getsockname(GIVEN_FD, (struct sockaddr *)&address, &address_size) == 0 &&
                  address.sun_family == AF_UNIX && getsockopt(GIVEN_FD, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
                  type == SOCK_STREAM && getsockopt(GIVEN_FD, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &size) == 0 &&
                  is_listening;
    if (!is_fit)
        return err_set(err, -EINVAL, "LISTEN_FDS: descriptor %d is no listening Unix stream socket; %s", GIVEN_FD,
                       "the socket unit needs ListenStream= with a path");
    if (strncmp(address.sun_path, path, sizeof(address.sun_path)) != 0)
        return err_set(err, -EINVAL, "LISTEN_FDS: the socket given is %.*s, --socket is %s; they must be the same",
                       (int)sizeof(address.sun_path), address.sun_path, path);
    if (fcntl(GIVEN_FD, F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(GIVEN_FD, F_SETFL, fcntl(GIVEN_FD, F_GETFL) | O_NONBLOCK) != 0)
        return err_set(err, -errno, "LISTEN_FDS: descriptor %d: %s", GIVEN_FD, strerror(errno));
    s->listener = GIVEN_FD;
    s->is_listener_given = true;
    return 0;
}

int supervisor_listen(struct supervisor *s, struct err *err)
{
    const char *path = s->plan->socket_path;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return err_set(err, -ENAMETOOLONG, "socket %s: longer than %zu bytes; choose another with --socket", path,
                       sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    int ret = make_parent_directory(path, err);
    if (ret != 0)
        return ret;
    ret = take_socket_lock(s, err);
    if (ret != 0)
        return ret;
    long given = given_count();
    if (given != 0)
        return take_given_socket(s, given, err);
    struct stat stat;
    if (lstat(path, &stat) == 0 && !S_ISSOCK(stat.st_mode))
        return err_set(err, -EEXIST, "socket %s: there is a file that is no socket; choose another with --socket",
                       path);
    unlink(path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    bool is_bound = s->listener >= 0 && bind(s->listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
                    listen(s->listener, LISTEN_BACKLOG) == 0;
    int error = errno;
    umask(mask);
    if (!is_bound)
        return err_set(err, -error, "socket %s: cannot listen there: %s", path, strerror(error));
    return 0;
}

int supervisor_take_orders(struct supervisor *s, struct err *err)
{
    char path[PATH_MAX_BYTES];
    if (control_path(path, sizeof(path), s->plan->socket_path, err) != 0) {
        log_warn("%s", err->text);
        return 0;
    }
    s->control = control_listen(path, err);
    return s->control < 0 ? s->control : 0;
}
