/* test_keep.c - connections kept by somebody else than the front: the messages and the table. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/keep.h"

#define SLOTS 300u

static int sockets[2];
static struct keep_message message;
static int fds[KEEP_ENTRIES_MAX];

static void set_up(void)
{
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
    keep_begin(&message);
}

static int fresh_fd(void)
{
    int pair[2];
    cr_assert_eq(pipe(pair), 0);
    close(pair[0]);
    return pair[1];
}

static void put(enum keep_kind kind, uint32_t slot, uint32_t generation)
{
    int fd = kind == KEEP_HOLD ? fresh_fd() : -1;
    cr_assert(keep_add(&message, fds, kind, slot, generation, fd));
}

/* From one end to the table at the other. */
static bool pass_on(struct keep_table *table)
{
    int received[KEEP_ENTRIES_MAX];
    struct keep_message copy;
    cr_assert_eq(keep_send(sockets[0], &message, fds), 0);
    for (uint32_t i = 0; i < message.fd_count; i++)
        close(fds[i]);
    keep_begin(&message);
    cr_assert_eq(keep_receive(sockets[1], false, &copy, received), 1);
    return keep_table_take(table, &copy, received);
}

Test(keep, holds_replace_and_late_drops_do_nothing, .init = set_up)
{
    struct keep_table table;
    keep_table_open(&table, SLOTS);
    put(KEEP_HOLD, 7, 1);
    put(KEEP_HOLD, 9, 1);
    cr_expect(pass_on(&table));
    cr_expect_eq(table.kept_count, 2);
    int first = table.slots[7].fd;
    put(KEEP_HOLD, 7, 2);
    put(KEEP_DROP, 7, 1);
    cr_expect(pass_on(&table));
    cr_expect_eq(table.kept_count, 2);
    cr_expect_eq(table.slots[7].generation, 2);
    cr_expect_neq(table.slots[7].fd, -1);
    put(KEEP_DROP, 7, 2);
    put(KEEP_DROP, 7, 2);
    cr_expect(pass_on(&table));
    cr_expect_eq(table.kept_count, 1);
    cr_expect_eq(write(first, "x", 1), -1, "what was replaced is closed");
}

Test(keep, slots_that_do_not_exist_are_refused_and_their_descriptors_closed, .init = set_up)
{
    struct keep_table table;
    keep_table_open(&table, SLOTS);
    put(KEEP_HOLD, SLOTS, 1);
    put(KEEP_HOLD, 1, 1);
    cr_expect_not(pass_on(&table));
    cr_expect_eq(table.kept_count, 1);
    cr_expect_geq(table.slots[1].fd, 0, "the second descriptor goes with the second entry");
}

Test(keep, a_successor_gets_everything_and_then_the_end, .init = set_up)
{
    struct keep_table table, again;
    keep_table_open(&table, SLOTS);
    keep_table_open(&again, SLOTS);
    for (uint32_t slot = 0; slot < SLOTS; slot += slot % 7 ? 1 : 2) {
        put(KEEP_HOLD, slot, slot * 3);
        pass_on(&table);
    }
    uint32_t next = 0;
    bool has_end = false;
    while (!has_end) {
        int ret = keep_table_give(&table, sockets[1], &next), received[KEEP_ENTRIES_MAX];
        cr_assert(ret == 0 || ret == -EAGAIN);
        while (keep_receive(sockets[0], false, &message, received) == 1) {
            cr_assert_not(has_end);
            cr_assert(keep_table_take(&again, &message, received));
            has_end = message.entries[message.entry_count - 1].kind == KEEP_END;
        }
    }
    cr_expect_eq(again.kept_count, table.kept_count);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        cr_expect_eq(again.slots[slot].fd >= 0, table.slots[slot].fd >= 0);
        cr_expect(again.slots[slot].fd < 0 || again.slots[slot].generation == slot * 3);
    }
}

Test(keep, what_was_sent_is_there_after_the_sender_is_gone, .init = set_up)
{
    struct keep_table table;
    int received[KEEP_ENTRIES_MAX];
    keep_table_open(&table, SLOTS);
    put(KEEP_HOLD, 3, 5);
    cr_assert_eq(keep_send(sockets[0], &message, fds), 0);
    close(fds[0]);
    close(sockets[0]);
    cr_assert_eq(keep_receive(sockets[1], false, &message, received), 1);
    keep_table_take(&table, &message, received);
    cr_expect_eq(table.slots[3].generation, 5);
    cr_expect_eq(keep_receive(sockets[1], false, &message, received), 0);
    keep_begin(&message);
    put(KEEP_HOLD, 4, 5);
    cr_expect_eq(keep_send(sockets[1], &message, fds), -EPIPE);
}

Test(keep, other_bytes_are_no_message, .init = set_up)
{
    int received[KEEP_ENTRIES_MAX];
    cr_assert_eq(send(sockets[0], "nonsense", 8, 0), 8);
    cr_expect_eq(keep_receive(sockets[1], false, &message, received), -EPROTO);
    keep_begin(&message);
    put(KEEP_HOLD, 1, 1);
    message.magic++;
    cr_assert_eq(keep_send(sockets[0], &message, fds), 0);
    cr_expect_eq(keep_receive(sockets[1], false, &message, received), -EPROTO);
    cr_expect_eq(keep_receive(sockets[1], false, &message, received), -EAGAIN);
}
