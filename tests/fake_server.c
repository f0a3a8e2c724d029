#include "tests/fake_server.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "ipc/base.h"

/* False: the client has closed. */
static bool read_request(struct fake_server *server, int fd)
{
    char head[4096];
    size_t size = 0;
    do {
        if (size == sizeof(head) - 1 || recv(fd, head + size, 1, 0) != 1)
            return false;
        head[++size] = '\0';
    } while (size < 4 || memcmp(head + size - 4, "\r\n\r\n", 4) != 0);
    const char *length = strcasestr(head, "content-length:");
    size_t body_size = length != NULL ? strtoul(length + 15, NULL, 10) : 0;
    if (body_size >= sizeof(server->body) ||
        (body_size > 0 && recv(fd, server->body, body_size, MSG_WAITALL) != (ssize_t)body_size))
        return false;
    server->body[body_size] = '\0';
    return true;
}

static void send_piece(struct fake_server *server, int fd, const char *bytes, size_t size)
{
    int unread = 1;
    if (send(fd, bytes, size, MSG_NOSIGNAL) < 0)
        return;
    while (server->piece > 0 && unread > 0 && ioctl(fd, SIOCOUTQ, &unread) == 0)
        sched_yield();
}

static void *serve(void *context)
{
    struct fake_server *server = context;
    for (int c = 0; c < server->connections; c++) {
        const char *answer = c == 0 && server->first_answer != NULL ? server->first_answer : server->answer;
        int fd = accept(server->listener, NULL, NULL);
        for (int r = 0; r < server->requests_per_connection && read_request(server, fd); r++) {
            server->requests_seen++;
            size_t size = strlen(answer), piece = server->piece > 0 ? server->piece : size;
            for (size_t at = 0; at < size; at += piece)
                send_piece(server, fd, answer + at, min_u64(piece, size - at));
        }
        char byte;
        if (!server->closes_early && recv(fd, &byte, 1, 0) <= 0)
            server->hangups_seen++;
        close(fd);
    }
    return NULL;
}

void fake_server_start(struct fake_server *server, int backlog)
{
    snprintf(server->path, sizeof(server->path), "/tmp/evenflow-test-server-%d.sock", (int)getpid());
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, server->path);
    unlink(server->path);
    server->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(server->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    cr_assert_eq(listen(server->listener, backlog), 0);
    if (server->requests_per_connection == 0)
        server->requests_per_connection = 1;
    cr_assert_eq(pthread_create(&server->thread, NULL, serve, server), 0);
}

void fake_server_end(struct fake_server *server)
{
    pthread_join(server->thread, NULL);
    close(server->listener);
    unlink(server->path);
}
