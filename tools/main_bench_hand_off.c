/* main_bench_hand_off.c - how long activations take from one stage's device to the next one's: make bench-hand-off.
 *
 * Two processes, each with a stream that writes into the other's slot and then its word, and waits for its own: as stages
 * do, enqueued ahead, so no processor is on the way. A third one has taken the memory. Half a round is a hand-off: a copy as
 * long as the activations, and what the words add. On what stands in for a driver its times mean nothing.
 *
 *   bench-hand-off [DEVICE [DEVICE [ipc]]] */
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

struct players {
    uint32_t ordinals[2]; /* of their devices */
    enum cuda_memory memory;
};

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

/* Takes the memory and gives its descriptor over the socket, whose end it then waits for. */
static int hold(const struct players *players, int socket)
{
    struct birth birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    struct err err = {0};
    char byte;
    if (cuda_open(&cuda, players->ordinals[1]) != 0)
        return fail(cuda.error);
    cuda.memory = players->memory;
    const size_t bytes = align_up_u64(4096 + 2 * SLOT_BYTES, cuda.granularity);
    int descriptor = cuda_create(&cuda, bytes, 4096);
    if (descriptor < 0)
        return fail(cuda.error);
    birth.epoch = (uint32_t)bytes;
    birth_add(&birth, fds, BIRTH_DEVICE, 0, descriptor);
    if (birth_send(socket, &birth, fds, &err) != 0)
        return fail(err.text);
    return read(socket, &byte, 1) == 0 ? 0 : 1;
}

/* One of the two that hand on to each other. */
static int be_player(const struct players *players, int which, int descriptor, size_t bytes)
{
    if (cuda_open(&cuda, players->ordinals[which]) != 0)
        return fail(cuda.error);
    cuda.memory = players->memory;
    cuda_address memory = cuda_map(&cuda, descriptor, bytes);
    if (cuda.failed != 0)
        return fail(cuda.error);
    if (which == 0)
        printf("cuda:%u to cuda:%u, memory by %s, %s%s\n", players->ordinals[0], players->ordinals[1],
               players->memory == CUDA_MEMORY_IPC ? "ipc" : "vmm", cuda.name,
               strncmp(cuda.name, "stand-in", 8) == 0 ? ": stand-in, no GPU result" : "");
    fflush(stdout);
    play_all(memory, which == 0);
    return 0;
}

int main(int argc, char **argv)
{
    struct players players = {.memory = CUDA_MEMORY_VMM};
    int sockets[2], fds[BIRTH_ITEMS_MAX], status = 1;
    struct birth birth;
    struct err err = {0};
    for (int i = 0; i < 2 && argc > 1; i++)
        players.ordinals[i] = (uint32_t)strtoul(argv[argc > 1 + i ? 1 + i : 1], NULL, 10);
    if (argc > 3 && strcmp(argv[3], "ipc") == 0)
        players.memory = CUDA_MEMORY_IPC;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return fail(strerror(errno));
    if (fork() == 0) { /* all before this process knows of any device, as the driver wants it */
        close(sockets[0]);
        _exit(hold(&players, sockets[1]));
    }
    close(sockets[1]);
    if (birth_receive(sockets[0], &birth, fds, &err) != 0)
        return fail(err.text);
    pid_t second = fork();
    if (second == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(be_player(&players, 1, fds[0], birth.epoch));
    }
    int ret = be_player(&players, 0, fds[0], birth.epoch);
    if (ret != 0)
        kill(second, SIGKILL);
    waitpid(second, &status, 0);
    return ret != 0 || status != 0;
}
