#include <criterion/criterion.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ipc/bell.h"
#include "ipc/ring.h"

static bool is_rung(int fd)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

Test(bell, costs_nothing_while_the_other_side_is_awake)
{
    static _Atomic uint32_t sleeping;
    int fd = eventfd(0, 0);
    struct bell_pull pull = {.fd = fd, .sleeping = &sleeping};
    bell_ring(&pull);
    cr_assert_not(is_rung(fd));
    bell_ring_always(&pull);
    cr_assert(is_rung(fd));
    close(fd);
}

Test(bell, rings_for_who_announced_to_sleep)
{
    static _Atomic uint32_t sleeping;
    int fd = eventfd(0, 0);
    struct bell bell = {.fd = fd, .sleeping = &sleeping};
    struct bell_pull pull = {.fd = fd, .sleeping = &sleeping};
    bell_announce(&bell);
    bell_ring(&pull);
    bell_wait(&bell);
    cr_assert_eq(sleeping, 0);
    cr_assert_not(is_rung(fd));
    bell_announce(&bell);
    bell_retract(&bell);
    bell_ring(&pull);
    cr_assert_not(is_rung(fd));
    close(fd);
}

Test(bell, drain_takes_rings_without_sleeping)
{
    static _Atomic uint32_t sleeping;
    int fd = eventfd(0, 0);
    struct bell bell = {.fd = fd, .sleeping = &sleeping};
    struct bell_pull pull = {.fd = fd, .sleeping = &sleeping};
    bell_drain(&bell); /* returns at once */
    bell_ring_always(&pull);
    bell_ring_always(&pull);
    bell_drain(&bell);
    cr_assert_not(is_rung(fd));
    close(fd);
}

#define ROUNDS 50000u

struct pair {
    struct ring_slot_shm slots[2];
    _Atomic uint64_t consumed;
    _Atomic uint32_t sleeping[2];
    int bells[2];
};

/* The sleeper's half of the protocol, as every process has it. */
static uint64_t wait_for(struct ring_consumer *ring, struct bell *bell)
{
    uint64_t payload[7];
    while (ring_peek(ring, payload) != RING_OK) {
        bell_announce(bell);
        if (!ring_is_empty(ring))
            bell_retract(bell);
        else
            bell_wait(bell);
    }
    ring_release(ring);
    return payload[0];
}

static struct pair there, back;

static void *echo(void *context)
{
    (void)context;
    struct ring_consumer in;
    struct ring_producer out;
    ring_consumer_attach(&in, there.slots, 2, &there.consumed);
    ring_producer_attach(&out, back.slots, 2, &back.consumed);
    struct bell bell = {.fd = there.bells[1], .sleeping = &there.sleeping[1]};
    struct bell_pull pull = {.fd = back.bells[0], .sleeping = &back.sleeping[0]};
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t payload[7] = {wait_for(&in, &bell) + 1};
        while (ring_push(&out, payload) != RING_OK)
            ;
        bell_ring(&pull);
    }
    return NULL;
}

Test(bell, no_wake_up_is_lost_in_many_rounds, .timeout = 120)
{
    there.bells[1] = eventfd(0, 0);
    back.bells[0] = eventfd(0, 0);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, echo, NULL), 0);
    struct ring_producer out;
    struct ring_consumer in;
    ring_producer_attach(&out, there.slots, 2, &there.consumed);
    ring_consumer_attach(&in, back.slots, 2, &back.consumed);
    struct bell bell = {.fd = back.bells[0], .sleeping = &back.sleeping[0]};
    struct bell_pull pull = {.fd = there.bells[1], .sleeping = &there.sleeping[1]};
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t payload[7] = {i};
        cr_assert_eq(ring_push(&out, payload), RING_OK);
        bell_ring(&pull);
        cr_assert_eq(wait_for(&in, &bell), i + 1);
    }
    pthread_join(thread, NULL);
}
