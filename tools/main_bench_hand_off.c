/* main_bench_hand_off.c - how long activations take from one stage's device to the next one's: make bench-hand-off.
 *
 * Two processes, each with a stream that writes into the other's slot and then its word, and waits for its own: as stages do,
 * enqueued ahead, so no processor is on the way. Half a round is a hand-off: a copy as long as the activations, and what the
 * words add. On what stands in for a driver its times mean nothing. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/clock.h"
#include "kernels/cuda.h"

#define ROUNDS     100u /* enqueued together: few enough to fit a stream */
#define BATCHES    20u
#define SLOT_BYTES (4u << 20)

static struct cuda cuda;

/* What both have mapped: a word and a slot for each direction. */
struct side {
    cuda_address word_out, slot_out, word_in, source;
};

static int fail(const char *text)
{
    fprintf(stderr, "bench-hand-off: %s\n", text);
    return 1;
}

static struct side side_of(cuda_address memory, bool is_first)
{
    cuda_address there = memory + (is_first ? 0 : 128), here = memory + (is_first ? 128 : 0);
    return (struct side){.word_out = there,
                         .word_in = here,
                         .slot_out = memory + 4096 + (is_first ? 0 : SLOT_BYTES),
                         .source = cuda_alloc(&cuda, SLOT_BYTES)};
}

static void send_activations(const struct side *side, size_t bytes, uint32_t round)
{
    cuda_copy(&cuda, side->slot_out, side->source, bytes);
    cuda_write_word(&cuda, side->word_out, round);
}

/* Rounds up to `last`; nanoseconds until the last batch but not the first, which is for warming up. */
static uint64_t play(const struct side *side, bool is_first, size_t bytes, uint32_t *round)
{
    uint64_t begin_ns = 0;
    for (uint32_t batch = 0; batch <= BATCHES; batch++) {
        if (batch == 1)
            begin_ns = clock_ns();
        for (uint32_t i = 0; i < ROUNDS; i++) {
            ++*round;
            if (is_first)
                send_activations(side, bytes, *round);
            cuda_wait_word(&cuda, side->word_in, *round);
            if (!is_first)
                send_activations(side, bytes, *round);
        }
        if (cuda_wait(&cuda) != 0)
            exit(fail(cuda.error));
    }
    return clock_ns() - begin_ns;
}

static void play_all(cuda_address memory, bool is_first)
{
    static const size_t sizes[] = {4, 10240, 10240 * 64};
    const struct side side = side_of(memory, is_first);
    uint32_t round = 0;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        uint64_t took_ns = play(&side, is_first, sizes[i], &round);
        if (is_first)
            printf("hand-off of %7zu bytes %10.1f us\n", sizes[i], (double)took_ns / 1e3 / (2.0 * ROUNDS * BATCHES));
    }
}

/* The second process: takes the memory, on its own device, and gives the descriptor to the first. */
static int be_second(uint32_t ordinal, int socket)
{
    struct birth birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    struct err err = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (cuda_open(&cuda, ordinal) != 0)
        return fail(cuda.error);
    size_t bytes = align_up_u64(4096 + 2 * SLOT_BYTES, cuda.granularity);
    int descriptor = cuda_create(&cuda, bytes);
    if (descriptor < 0)
        return fail(cuda.error);
    cuda_address memory = cuda_map(&cuda, descriptor, bytes);
    const uint8_t none[256] = {0};
    cuda_upload(&cuda, memory, none, sizeof(none));
    if (cuda_wait(&cuda) != 0)
        return fail(cuda.error);
    birth.epoch = (uint32_t)bytes;
    birth_add(&birth, fds, BIRTH_DEVICE, 0, descriptor);
    if (birth_send(socket, &birth, fds, &err) != 0)
        return fail(err.text);
    play_all(memory, false);
    return 0;
}

int main(int argc, char **argv)
{
    uint32_t first = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    uint32_t second = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : first;
    int sockets[2], fds[BIRTH_ITEMS_MAX];
    struct birth birth;
    struct err err = {0};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return fail(strerror(errno));
    pid_t other = fork(); /* before this process knows of any device, as the driver wants it */
    if (other == 0) {
        close(sockets[0]);
        return be_second(second, sockets[1]);
    }
    close(sockets[1]);
    if (cuda_open(&cuda, first) != 0)
        return fail(cuda.error);
    if (birth_receive(sockets[0], &birth, fds, &err) != 0)
        return fail(err.text);
    cuda_address memory = cuda_map(&cuda, fds[0], birth.epoch);
    printf("cuda:%u to cuda:%u, %s%s\n", first, second, cuda.name,
           strncmp(cuda.name, "stand-in", 8) == 0 ? ": stand-in, no GPU result" : "");
    fflush(stdout);
    if (cuda.failed != 0)
        return fail(cuda.error);
    play_all(memory, true);
    int status = 0;
    waitpid(other, &status, 0);
    return status == 0 ? 0 : 1;
}
