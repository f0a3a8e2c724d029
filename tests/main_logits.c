/* main_logits.c - the logits behind every token of a text, for comparisons with other implementations
 * (data/reference_nll.py --logits).
 *
 *   logits MODEL.gguf < IDS     ids as `evenflow tokenize` prints them; rows of 32-bit floats (vocabulary) to standard output
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "stages/forward.h"

#define BLOCK_SIZE 32u

static uint32_t read_ids(uint32_t **ids)
{
    uint32_t count = 0, room = 0, id;
    *ids = NULL;
    while (scanf("%*[^0-9]") != EOF && scanf("%u", &id) == 1) {
        if (count == room) {
            room = 2 * room + 1024;
            *ids = realloc(*ids, room * sizeof(**ids));
            check(*ids != NULL);
        }
        (*ids)[count++] = id;
    }
    return count;
}

int main(int argc, char **argv)
{
    struct gguf *gguf;
    struct err err = {0};
    struct model_slice slice;
    struct forward forward;
    uint32_t *ids;
    struct model_desc *desc = base_alloc(sizeof(*desc));
    if (argc != 2 || isatty(STDOUT_FILENO)) {
        fprintf(stderr, "usage: %s MODEL.gguf < IDS > FLOATS\n", argv[0]);
        return 2;
    }
    if (gguf_open(&gguf, argv[1], &err) != 0 || model_describe(desc, gguf, &err) != 0) {
        fprintf(stderr, "%s: %s\n", argv[1], err.text);
        return 1;
    }
    uint32_t count = read_ids(&ids), blocks = (uint32_t)div_up_u64(count, BLOCK_SIZE);
    check(count > 0);
    void *weights = base_alloc_aligned(KERNEL_ALIGN, model_slice_bytes(desc, 0, desc->layers));
    if (model_load(&slice, desc, 0, desc->layers, weights, gguf, &err) != 0) {
        fprintf(stderr, "%s: %s\n", argv[1], err.text);
        return 1;
    }
    kernels_thread_init();
    const struct forward_limits limits = {.positions_max = blocks * BLOCK_SIZE, .block_size = BLOCK_SIZE};
    forward_init(&forward, kernels_pick(getenv("EVENFLOW_ISA")), NULL, desc, &slice, &limits,
                 base_alloc_aligned(4096, blocks * forward_block_stride(desc, desc->layers, &limits)));
    uint32_t *table = base_alloc(blocks * sizeof(*table));
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = i;
    struct token_shm results[FORWARD_HEAD_ROWS];
    for (uint32_t at = 0, tokens; at < count; at += tokens) {
        tokens = (uint32_t)min_u64(count - at, FORWARD_HEAD_ROWS);
        /* scored against any token: the logits are all that is wanted */
        const struct row_shm row = {.first_pos = at,
                                    .token_count = tokens,
                                    .block_count = (uint32_t)div_up_u64(at + tokens, BLOCK_SIZE),
                                    .flags = ROW_SCORE,
                                    .result_count = tokens};
        const struct forward_step step = {
            .rows = &row, .row_count = 1, .tokens = ids + at, .token_count = tokens, .blocks = table};
        forward_run(&forward, &step, NULL, NULL, results, NULL);
        if (fwrite(forward.logits, desc->vocab_size * sizeof(float), tokens, stdout) != tokens)
            return 1;
    }
    return 0;
}
