#include "engine/notify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/log.h"

/* Microseconds; 0: no watchdog, or one that waits for another process. */
static uint64_t watchdog_us(void)
{
    const char *us = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    if (us == NULL || (pid != NULL && strtoll(pid, NULL, 10) != getpid()))
        return 0;
    return min_u64(strtoull(us, NULL, 10), UINT64_MAX / 1000);
}

int notify_open(struct notify *notify, struct err *err)
{
    const char *path = getenv("NOTIFY_SOCKET");
    *notify = (struct notify){.socket = -1, .address = {.sun_family = AF_UNIX}};
    if (path == NULL)
        return 0;
    size_t length = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || length >= sizeof(notify->address.sun_path))
        return err_set(err, -EINVAL, "NOTIFY_SOCKET=%s: neither a path of at most %zu bytes nor @ and a name; unset it",
                       path, sizeof(notify->address.sun_path) - 1);
    memcpy(notify->address.sun_path, path, length);
    if (path[0] == '@') /* a name in the kernel's own space begins with a zero byte, and ends where its size says */
        notify->address.sun_path[0] = '\0';
    notify->address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    notify->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (notify->socket < 0)
        return err_set(err, -errno, "NOTIFY_SOCKET=%s: cannot create a socket: %s", path, strerror(errno));
    notify->alive_every_ns = watchdog_us() * 1000 / 2;
    notify->alive_ns = notify->alive_every_ns ? clock_ns() + notify->alive_every_ns : 0;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return 0;
}

void notify_send(struct notify *notify, const char *lines)
{
    if (notify->socket < 0)
        return;
    bool is_heard = sendto(notify->socket, lines, strlen(lines), MSG_NOSIGNAL,
                           (const struct sockaddr *)&notify->address, notify->address_size) >= 0;
    if (!is_heard && !notify->is_unheard)
        log_warn("the service manager does not hear %s: %s; going on without it", lines, strerror(errno));
    notify->is_unheard = !is_heard;
}

void notify_alive(struct notify *notify)
{
    if (notify->alive_ns == 0 || clock_ns() < notify->alive_ns)
        return;
    notify->alive_ns = clock_ns() + notify->alive_every_ns;
    notify_send(notify, "WATCHDOG=1");
}
