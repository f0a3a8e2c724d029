/* config.h - the options of `evenflow serve`, as --help has them.
 *
 * Used by: the launcher (tools), which turns them into a plan.   Owns: nothing.   Never blocks.
 */
#ifndef EVENFLOW_CONFIG_H
#define EVENFLOW_CONFIG_H

#include "engine/options.h"

struct config {
    char socket[OPTION_TEXT_MAX];
    uint64_t pipeline_parallel_size, threads_per_stage, lone_threads;
    char split[OPTION_TEXT_MAX];
    char devices[OPTION_TEXT_MAX];
    char gpu_memory[OPTION_TEXT_MAX];
    char edges[OPTION_TEXT_MAX];
    char policy[OPTION_TEXT_MAX];
    bool use_batch_scheduler;
    uint64_t itl_slo;
    uint64_t ttft_slo;
    uint64_t max_num_batched_tokens;
    uint64_t max_num_seqs;
    uint64_t max_model_len;
    uint64_t block_size;
    uint64_t num_blocks;
    uint64_t kv_memory;
    char kv_type[OPTION_TEXT_MAX];
    bool weights_cache;
    bool cuda_graphs;
    char window[OPTION_TEXT_MAX];
    uint64_t long_prefill_token_threshold;
    bool long_prefill_token_threshold_adaptive;
    bool enable_chunked_prefill;
    bool enable_prefix_caching;
    char scheduling_policy[OPTION_TEXT_MAX];
    double watermark;
    bool scheduler_reserve_full_isl;
    char speculate[OPTION_TEXT_MAX];
    uint64_t max_queued_requests;
    uint64_t max_connections;
    uint64_t max_body;
    uint64_t request_timeout_s;
    uint64_t header_timeout_s;
    char listen[OPTION_TEXT_MAX];
    char api_key_file[OPTION_TEXT_MAX];
    char allowed_origins[OPTION_TEXT_MAX];
    uint64_t drain_timeout_s;
    char served_model_name[OPTION_TEXT_MAX];
    char chat_template[OPTION_TEXT_MAX];
    char isa[OPTION_TEXT_MAX];
    char io[OPTION_TEXT_MAX];
    char backend[OPTION_TEXT_MAX];
    char cost[OPTION_TEXT_MAX];
    bool freeze_model;
    char record[OPTION_TEXT_MAX];
    char state[OPTION_TEXT_MAX];
    uint64_t spares;
    bool adopt;
    char log_level[OPTION_TEXT_MAX];
    uint64_t ready_fd;
    char config[OPTION_TEXT_MAX];
};

extern const struct option_table config_table;

/* The socket that `--socket`, EVENFLOW_SOCKET or the default names: $XDG_RUNTIME_DIR/evenflow/evenflow.sock, else
 * /run/evenflow/evenflow.sock for root, else /tmp/evenflow-UID/evenflow.sock. given may be "". */
void config_socket_path(char *path, size_t size, const char *given);

#endif
