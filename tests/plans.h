/* plans.h - small valid plans for tests that work in plain memory. */
#ifndef EVENFLOW_TESTS_PLANS_H
#define EVENFLOW_TESTS_PLANS_H

#include <string.h>

#include "ipc/layout.h"
#include "ipc/plan.h"

/* Two stages of two layers each, 64 blocks of 16 positions, room for 16 requests. Change what a test is about. */
static inline struct plan plan_for_tests(void)
{
    struct plan plan = {.magic = PLAN_MAGIC,
                        .layout_hash = LAYOUT_HASH,
                        .layers = 4,
                        .width = 64,
                        .heads = 4,
                        .kv_heads = 2,
                        .head_dim = 16,
                        .vocab_size = 1000,
                        .context_length = 512,
                        .stage_count = 2,
                        .window = 2,
                        .threads_per_stage = 1,
                        .lone_threads = 1,
                        .slices = {{.first_layer = 0, .layer_count = 2, .weights_bytes = 4096},
                                   {.first_layer = 2, .layer_count = 2, .weights_bytes = 4096}},
                        .max_model_len = 512,
                        .max_num_seqs = 8,
                        .max_num_batched_tokens = 64,
                        .enable_chunked_prefill = 1,
                        .reserve_full_isl = 1,
                        .block_size = 16,
                        .num_blocks = 64,
                        .kv_block_bytes = 2048,
                        .requests_max = 16,
                        .sequences_max = 32,
                        .prompt_pages = 64,
                        .log_pages = 256,
                        .connections_max = 8,
                        .body_bytes_max = 65536,
                        .request_timeout_ms = 10000,
                        .header_timeout_ms = 10000};
    strcpy(plan.policy, "default");
    strcpy(plan.isa, "ref");
    strcpy(plan.version, "test");
    strcpy(plan.served_model_name, "test-model");
    return plan;
}

#endif
