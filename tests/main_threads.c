/* main_threads.c - rings and doorbells between two threads of one process, for the thread sanitizer: it cannot see across
 * processes, and Criterion does not run under it. Exits 0 when nothing was lost, repeated or torn. */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>

#include "ipc/base.h"
#include "ipc/bell.h"
#include "ipc/ring.h"

#define SLOTS    8u
#define MESSAGES 300000u
#define ROUNDS   30000u

struct channel {
    struct ring_slot_shm slots[SLOTS];
    _Atomic uint64_t consumed;
    _Atomic uint32_t sleeping; /* of the consumer */
    int bell;
};

static struct channel one_way, there, back;

static void *produce(void *unused)
{
    (void)unused;
    struct ring_producer ring;
    ring_producer_attach(&ring, one_way.slots, SLOTS, &one_way.consumed);
    for (uint64_t i = 0; i < MESSAGES;) {
        uint64_t payload[7] = {i, ~i, i * 3, i * 5, i * 7, i * 11, i * 13};
        if (ring_push(&ring, payload) == RING_OK)
            i++;
        else
            sched_yield();
    }
    return NULL;
}

static void stream_through_one_ring(void)
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, produce, NULL) == 0);
    struct ring_consumer ring;
    ring_consumer_attach(&ring, one_way.slots, SLOTS, &one_way.consumed);
    for (uint64_t i = 0; i < MESSAGES;) {
        uint64_t payload[7];
        if (ring_peek(&ring, payload) != RING_OK) {
            sched_yield();
            continue;
        }
        check(payload[0] == i);
        check(payload[1] == ~i);
        check(payload[6] == i * 13);
        ring_release(&ring);
        i++;
    }
    pthread_join(thread, NULL);
}

static uint64_t wait_for(struct ring_consumer *ring, struct channel *channel)
{
    struct bell bell = {.fd = channel->bell, .sleeping = &channel->sleeping};
    uint64_t payload[7];
    while (ring_peek(ring, payload) != RING_OK) {
        bell_announce(&bell);
        if (!ring_is_empty(ring))
            bell_retract(&bell);
        else
            bell_wait(&bell);
    }
    ring_release(ring);
    return payload[0];
}

static void send_to(struct ring_producer *ring, struct channel *channel, uint64_t value)
{
    uint64_t payload[7] = {value};
    check(ring_push(ring, payload) == RING_OK);
    bell_ring(&(struct bell_pull){.fd = channel->bell, .sleeping = &channel->sleeping});
}

static void *echo(void *unused)
{
    (void)unused;
    struct ring_consumer in;
    struct ring_producer out;
    ring_consumer_attach(&in, there.slots, SLOTS, &there.consumed);
    ring_producer_attach(&out, back.slots, SLOTS, &back.consumed);
    for (uint64_t i = 0; i < ROUNDS; i++)
        send_to(&out, &back, wait_for(&in, &there) + 1);
    return NULL;
}

static void go_to_and_fro_asleep(void)
{
    there.bell = eventfd(0, 0);
    back.bell = eventfd(0, 0);
    pthread_t thread;
    check(pthread_create(&thread, NULL, echo, NULL) == 0);
    struct ring_producer out;
    struct ring_consumer in;
    ring_producer_attach(&out, there.slots, SLOTS, &there.consumed);
    ring_consumer_attach(&in, back.slots, SLOTS, &back.consumed);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        send_to(&out, &there, i);
        check(wait_for(&in, &back) == i + 1);
    }
    pthread_join(thread, NULL);
}

int main(void)
{
    stream_through_one_ring();
    go_to_and_fro_asleep();
    printf("threads: %u messages and %u rounds passed\n", MESSAGES, ROUNDS);
    return 0;
}
