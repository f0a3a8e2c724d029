/* notify.h - tells the service manager that started the engine how it is: the protocol of sd_notify(3), in words of ours.
 *
 * Used by: supervisor.   Owns: a datagram socket.   Never blocks.   Without NOTIFY_SOCKET in the environment it says nothing.
 */
#ifndef EVENFLOW_NOTIFY_H
#define EVENFLOW_NOTIFY_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "ipc/base.h"

struct notify {
    int socket;      /* -1: nobody wants to hear */
    bool is_unheard; /* the last words were not heard: said once */
    struct sockaddr_un address;
    socklen_t address_size;
    uint64_t alive_every_ns; /* half of WATCHDOG_USEC; 0: there is no watchdog */
    uint64_t alive_ns;       /* when it is said next that the engine lives; 0: never */
};

/* Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment, so that no child speaks too. 0, or -errno with
 * err. */
int notify_open(struct notify *notify, struct err *err);

/* Lines as sd_notify(3) lists them: "READY=1". What cannot be sent goes missing; that nobody hears is logged when it begins. */
void notify_send(struct notify *notify, const char *lines);

/* To be called at alive_ns, or whenever. */
void notify_alive(struct notify *notify);

#endif
