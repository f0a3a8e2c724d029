#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#include "ipc/ring.h"

#define SLOTS 8u

struct fixture {
    struct ring_slot_shm slots[SLOTS];
    _Atomic uint64_t consumed;
    struct ring_producer producer;
    struct ring_consumer consumer;
};

static void attach(struct fixture *f)
{
    ring_producer_attach(&f->producer, f->slots, SLOTS, &f->consumed);
    ring_consumer_attach(&f->consumer, f->slots, SLOTS, &f->consumed);
}

static void push(struct fixture *f, uint64_t value)
{
    uint64_t payload[7] = {value, ~value};
    cr_assert_eq(ring_push(&f->producer, payload), RING_OK);
}

static uint64_t take(struct fixture *f)
{
    uint64_t payload[7];
    cr_assert_eq(ring_peek(&f->consumer, payload), RING_OK);
    cr_assert_eq(payload[1], ~payload[0]);
    ring_release(&f->consumer);
    return payload[0];
}

Test(ring, gives_back_payloads_in_order_over_many_laps)
{
    static struct fixture f;
    attach(&f);
    for (uint64_t i = 0; i < 1000; i++) {
        push(&f, 2 * i);
        push(&f, 2 * i + 1);
        cr_assert_eq(take(&f), 2 * i);
        cr_assert_eq(take(&f), 2 * i + 1);
    }
    cr_assert(ring_is_empty(&f.consumer));
}

Test(ring, push_fails_when_full_and_changes_nothing)
{
    static struct fixture f, before;
    attach(&f);
    for (uint64_t i = 0; i < SLOTS; i++)
        push(&f, i);
    memcpy(before.slots, f.slots, sizeof(f.slots));
    uint64_t payload[7] = {99};
    cr_assert_eq(ring_push(&f.producer, payload), RING_FULL);
    cr_assert_eq(memcmp(before.slots, f.slots, sizeof(f.slots)), 0);
    cr_assert_eq(take(&f), 0);
    push(&f, SLOTS);
    for (uint64_t i = 1; i <= SLOTS; i++)
        cr_assert_eq(take(&f), i);
}

Test(ring, peek_of_an_empty_ring_says_so)
{
    static struct fixture f;
    attach(&f);
    uint64_t payload[7];
    cr_assert_eq(ring_peek(&f.consumer, payload), RING_EMPTY);
    push(&f, 7);
    take(&f);
    cr_assert_eq(ring_peek(&f.consumer, payload), RING_EMPTY);
}

Test(ring, a_successor_goes_on_where_the_dead_stopped)
{
    static struct fixture f;
    attach(&f);
    uint64_t expected = 0, next = 0;
    for (uint64_t life = 0; life < 50; life++) {
        attach(&f); /* both ends anew: all they know is in shared memory */
        for (uint64_t i = 0; i < 1 + life % SLOTS; i++)
            if (next - expected < SLOTS)
                push(&f, next++);
        attach(&f);
        for (uint64_t i = 0; i < life % 3 && expected < next; i++)
            cr_assert_eq(take(&f), expected++);
    }
    while (expected < next)
        cr_assert_eq(take(&f), expected++);
}

Test(ring, what_was_peeked_but_not_released_is_given_to_the_successor_again)
{
    static struct fixture f;
    attach(&f);
    push(&f, 5);
    uint64_t payload[7];
    cr_assert_eq(ring_peek(&f.consumer, payload), RING_OK);
    attach(&f);
    cr_assert_eq(take(&f), 5);
}

#define THREAD_MESSAGES 200000u

static void *produce(void *context)
{
    struct fixture *f = context;
    for (uint64_t i = 0; i < THREAD_MESSAGES;) {
        uint64_t payload[7] = {i, ~i, i * 3, i * 5, i * 7, i * 11, i * 13};
        if (ring_push(&f->producer, payload) == RING_OK)
            i++;
        else
            sched_yield();
    }
    return NULL;
}

/* As two threads, so that the thread sanitizer sees both ends. */
Test(ring, two_threads_lose_repeat_and_tear_nothing)
{
    static struct fixture f;
    attach(&f);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, produce, &f), 0);
    for (uint64_t i = 0; i < THREAD_MESSAGES;) {
        uint64_t payload[7];
        if (ring_peek(&f.consumer, payload) != RING_OK) {
            sched_yield();
            continue;
        }
        uint64_t expected[7] = {i, ~i, i * 3, i * 5, i * 7, i * 11, i * 13};
        cr_assert_eq(memcmp(payload, expected, sizeof(expected)), 0);
        ring_release(&f.consumer);
        i++;
    }
    pthread_join(thread, NULL);
}
