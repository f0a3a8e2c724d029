#include "engine/keeper.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/log.h"

void keeper_open(struct keeper *keeper, uint32_t connections_max)
{
    *keeper = (struct keeper){.socket = -1, .is_whole = true};
    keep_table_open(&keeper->table, connections_max);
}

static void hang_up(struct keeper *keeper)
{
    close(keeper->socket);
    keeper->socket = -1;
    keeper->is_giving = false;
}

static void take(struct keeper *keeper)
{
    int ret;
    do {
        struct keep_message message;
        int fds[KEEP_ENTRIES_MAX];
        ret = keep_receive(keeper->socket, false, &message, fds);
        if (ret == -EPROTO || (ret == 1 && !keep_table_take(&keeper->table, &message, fds)))
            log_error("front sent an order about its connections that cannot be; it is passed over");
        for (uint32_t i = 0; ret == 1 && i < message.entry_count; i++)
            if (message.entries[i].kind == KEEP_END && message.entries[i].generation == keeper->epoch)
                keeper->is_whole = true;
    } while (ret == 1 || ret == -EPROTO);
    if (ret != -EAGAIN)
        hang_up(keeper);
}

static void give(struct keeper *keeper)
{
    int ret = keep_table_give(&keeper->table, keeper->socket, &keeper->next);
    if (ret == -EAGAIN)
        return;
    keeper->is_giving = false;
    if (ret != 0 && ret != -EPIPE) /* EPIPE: it died; its successor gets them */
        log_error("cannot give kept connections to the front: %s", strerror(-ret));
}

int keeper_begin_life(struct keeper *keeper, int *front, struct err *err)
{
    int sockets[2];
    if (keeper->socket >= 0)
        take(keeper);
    if (keeper->socket >= 0)
        hang_up(keeper);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "front: cannot create its keep sockets: %s", strerror(errno));
    keeper->socket = sockets[0];
    keeper->next = 0;
    keeper->is_giving = true;
    keeper->is_whole = true; /* what is not here is nowhere */
    *front = sockets[1];
    return 0;
}

void keeper_forget(struct keeper *keeper)
{
    keep_table_forget(&keeper->table);
    keeper->is_giving = keeper->is_whole = false;
}

void keeper_take_over(struct keeper *keeper, uint32_t epoch)
{
    keeper->epoch = epoch;
}

struct pollfd keeper_poll(const struct keeper *keeper)
{
    return (struct pollfd){.fd = keeper->socket, .events = keeper->is_giving ? POLLOUT : 0};
}

void keeper_turn(struct keeper *keeper)
{
    if (keeper->socket >= 0)
        take(keeper);
    if (keeper->socket >= 0 && keeper->is_giving)
        give(keeper);
}
