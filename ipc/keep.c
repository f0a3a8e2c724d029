#include "ipc/keep.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/fault.h"

union keep_control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(KEEP_ENTRIES_MAX * sizeof(int))];
};

void keep_begin(struct keep_message *message)
{
    message->magic = KEEP_MAGIC;
    message->entry_count = message->fd_count = 0;
}

bool keep_add(struct keep_message *message, int *fds, enum keep_kind kind, uint32_t slot, uint32_t generation, int fd)
{
    check((fd >= 0) == (kind == KEEP_HOLD));
    if (message->entry_count == KEEP_ENTRIES_MAX)
        return false;
    message->entries[message->entry_count++] =
        (struct keep_entry){.kind = kind, .slot = slot, .generation = generation};
    if (fd >= 0)
        fds[message->fd_count++] = fd;
    return true;
}

static size_t message_bytes(uint32_t entry_count)
{
    return offsetof(struct keep_message, entries) + entry_count * sizeof(struct keep_entry);
}

int keep_send(int socket, const struct keep_message *message, const int *fds)
{
    union keep_control control;
    memset(&control, 0, sizeof(control));
    struct iovec data = {.iov_base = (void *)(uintptr_t)message, .iov_len = message_bytes(message->entry_count)};
    struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
    if (message->fd_count > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(message->fd_count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(message->fd_count * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, message->fd_count * sizeof(int));
    }
    ssize_t sent;
    fault_point(FAULT_KEEP_BEFORE_SEND);
    do {
        sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    fault_point(FAULT_KEEP_AFTER_SEND);
    return sent >= 0 ? 0 : -errno;
}

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

int keep_receive(int socket, bool may_wait, struct keep_message *message, int *fds)
{
    union keep_control control;
    memset(&control, 0, sizeof(control));
    struct iovec data = {.iov_base = message, .iov_len = sizeof(*message)};
    struct msghdr header = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got;
    do {
        got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | (may_wait ? 0 : MSG_DONTWAIT));
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == ECONNRESET ? 0 : -errno; /* reset: it died with unread messages of ours */
    if (got == 0)
        return 0;
    const struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
    size_t fd_count = 0;
    if (rights != NULL && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS) {
        fd_count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(rights), fd_count * sizeof(int));
    }
    uint32_t holds = 0;
    bool is_whole = (size_t)got >= message_bytes(0) && message->magic == KEEP_MAGIC &&
                    message->entry_count <= KEEP_ENTRIES_MAX && (size_t)got == message_bytes(message->entry_count) &&
                    message->fd_count == fd_count && !(header.msg_flags & MSG_CTRUNC);
    for (uint32_t i = 0; is_whole && i < message->entry_count; i++)
        holds += message->entries[i].kind == KEEP_HOLD;
    if (is_whole && holds == fd_count)
        return 1;
    close_all(fds, fd_count);
    return -EPROTO;
}

/* ---- what is kept ---- */

void keep_table_open(struct keep_table *table, uint32_t slot_count)
{
    *table = (struct keep_table){.slots = base_alloc(slot_count * sizeof(*table->slots)), .slot_count = slot_count};
    for (uint32_t i = 0; i < slot_count; i++)
        table->slots[i].fd = -1;
}

static void forget(struct keep_table *table, uint32_t slot)
{
    if (table->slots[slot].fd < 0)
        return;
    close(table->slots[slot].fd);
    table->slots[slot].fd = -1;
    table->kept_count--;
}

void keep_table_forget(struct keep_table *table)
{
    for (uint32_t slot = 0; slot < table->slot_count; slot++)
        forget(table, slot);
}

bool keep_table_take(struct keep_table *table, const struct keep_message *message, const int *fds)
{
    bool is_good = true;
    for (uint32_t i = 0; i < message->entry_count; i++) {
        const struct keep_entry *entry = &message->entries[i];
        bool is_known = entry->slot < table->slot_count;
        is_good = is_good && (is_known || entry->kind == KEEP_END);
        if (entry->kind == KEEP_HOLD && is_known) {
            forget(table, entry->slot);
            table->slots[entry->slot] = (struct keep_slot){*fds++, entry->generation};
            table->kept_count++;
        } else if (entry->kind == KEEP_HOLD) {
            close(*fds++);
        } else if (entry->kind == KEEP_DROP && is_known && table->slots[entry->slot].generation == entry->generation) {
            forget(table, entry->slot);
        }
    }
    return is_good;
}

int keep_table_give(const struct keep_table *table, int socket, uint32_t *next)
{
    bool is_complete = false;
    while (!is_complete) {
        struct keep_message message;
        int fds[KEEP_ENTRIES_MAX];
        uint32_t slot = *next;
        keep_begin(&message);
        for (; slot < table->slot_count; slot++) {
            const struct keep_slot *kept = &table->slots[slot];
            if (kept->fd >= 0 && !keep_add(&message, fds, KEEP_HOLD, slot, kept->generation, kept->fd))
                break;
        }
        is_complete = slot == table->slot_count && keep_add(&message, fds, KEEP_END, 0, 0, -1);
        int ret = keep_send(socket, &message, fds);
        if (ret != 0)
            return ret;
        *next = slot;
    }
    return 0;
}
