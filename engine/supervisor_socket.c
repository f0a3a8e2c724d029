#include "engine/supervisor_inside.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_BACKLOG 1024

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
    snprintf(lock_path, sizeof(lock_path), "%s.lock", s->plan->socket_path);
    unlink(s->plan->socket_path);
    unlink(lock_path);
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
