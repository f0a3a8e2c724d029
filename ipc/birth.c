#include "ipc/birth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/version.h"

union birth_control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(BIRTH_ITEMS_MAX * sizeof(int))];
};

static enum birth_part part_of(enum birth_kind kind, uint32_t number)
{
    /* weights that are to be loaded yet are nobody else's */
    bool is_to_see = (kind == BIRTH_REGION_READ && number != REGION_IO_PAST) || kind == BIRTH_MODEL ||
                     kind == BIRTH_KEYS || kind == BIRTH_LIFELINE ||
                     (kind == BIRTH_REGION_WRITE && number >= REGION_WEIGHTS);
    return is_to_see ? BIRTH_TO_SEE : BIRTH_TO_DO;
}

void birth_add(struct birth *birth, int *fds, enum birth_kind kind, uint32_t number, int fd)
{
    if (birth->part != BIRTH_WHOLE && part_of(kind, number) != (enum birth_part)birth->part)
        return;
    check(birth->item_count < BIRTH_ITEMS_MAX);
    birth->items[birth->item_count] = (struct birth_item){.kind = (uint16_t)kind, .number = (uint16_t)number};
    fds[birth->item_count++] = fd;
}

int birth_send(int socket, const struct birth *birth, const int *fds, struct err *err)
{
    union birth_control control;
    memset(&control, 0, sizeof(control));
    struct iovec data = {.iov_base = (void *)(uintptr_t)birth, .iov_len = sizeof(*birth)};
    size_t fd_bytes = birth->item_count * sizeof(int);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (birth->item_count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_bytes);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_bytes);
        memcpy(CMSG_DATA(header), fds, fd_bytes);
    }
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    if (sent != (ssize_t)sizeof(*birth))
        return err_set(err, -EPIPE, "birth message: cannot send it: %s", strerror(errno));
    return 0;
}

int birth_receive(int socket, struct birth *birth, int *fds, struct err *err)
{
    union birth_control control;
    memset(&control, 0, sizeof(control));
    struct iovec data = {.iov_base = birth, .iov_len = sizeof(*birth)};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got;
    do {
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    } while (got < 0 && errno == EINTR);
    if (got == 0)
        return err_set(err, -EPIPE, "birth message: the supervisor has gone, or has no use for this process any more");
    if (got < 0)
        return err_set(err, -errno,
                       "birth message: cannot read descriptor %d: %s; this program is started by evenflow serve",
                       socket, strerror(errno));
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (got == (ssize_t)sizeof(*birth) && birth->magic == BIRTH_MAGIC && birth->item_count == 0 && header == NULL)
        return 0;
    if (got != (ssize_t)sizeof(*birth) || birth->magic != BIRTH_MAGIC || birth->item_count > BIRTH_ITEMS_MAX ||
        header == NULL || header->cmsg_type != SCM_RIGHTS || (message.msg_flags & MSG_CTRUNC) ||
        header->cmsg_len != CMSG_LEN(birth->item_count * sizeof(int)))
        return err_set(err, -EPROTO, "birth message: not one of this build's; mixed builds?");
    memcpy(fds, CMSG_DATA(header), birth->item_count * sizeof(int));
    return 0;
}

int birth_argument(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--birth") != 0)
            continue;
        char *end;
        long fd = strtol(argv[i + 1], &end, 10);
        return *end == '\0' && end != argv[i + 1] && fd >= 0 && fd < 1 << 20 ? (int)fd : -1;
    }
    return -1;
}

bool birth_build(int argc, char **argv)
{
    if (argc != 2 || strcmp(argv[1], "--build") != 0)
        return false;
    printf(BIRTH_BUILD_FORMAT "\n", EVENFLOW_VERSION, (unsigned long long)LAYOUT_HASH, version_numerics);
    return true;
}

int birth_usage(const char *program, int argc, char **argv)
{
    if (birth_build(argc, argv))
        return 0;
    bool wants_help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    fprintf(wants_help ? stdout : stderr,
            "usage: %s --birth FD\n       %s --attach SOCKET [--index N]\n"
            "Started by evenflow-supervisor, over a socket; or by anybody, as a spare that takes over from a process "
            "of the\n"
            "engine that listens on SOCKET; version " EVENFLOW_VERSION "\n",
            program, program);
    return wants_help ? 0 : 2;
}
