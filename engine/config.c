#include "engine/config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/policy.h"

#define AT(field) offsetof(struct config, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH",
     "Unix socket to listen on (default: $XDG_RUNTIME_DIR, /run or /tmp/evenflow-UID, then evenflow.sock)"},
    {"listen", NULL, 0, OPTION_TEXT, AT(listen), NULL, 0, 0, "ADDR:PORT",
     "Listens there as well, for TCP: 127.0.0.1:8000, [::1]:8000, 0.0.0.0:8000; other machines only with "
     "--api-key-file"},
    {"api-key-file", NULL, 0, OPTION_TEXT, AT(api_key_file), NULL, 0, 0, "FILE",
     "Clients over TCP must have one of the keys in this file, one a line: Authorization: Bearer KEY"},
    {"allowed-origins", NULL, 0, OPTION_TEXT, AT(allowed_origins), NULL, 0, 0, "ORIGINS",
     "Pages from these origins, separated by commas, may ask over TCP; *: from everywhere"},
    {"pipeline-parallel-size", "stages", 'p', OPTION_NUMBER, AT(pipeline_parallel_size), "2", 1, 32, "N",
     "Stages, each a process with its slice of the layers"},
    {"split", NULL, 0, OPTION_TEXT, AT(split), NULL, 0, 0, "A,B,...",
     "Layers of each stage (default: measured at start so that stages take equal time, output head included)"},
    {"devices", NULL, 0, OPTION_TEXT, AT(devices), NULL, 0, 0, "A,B,...",
     "What each stage computes on, cpu or cuda:0, cuda:1, ...: one for each stage, or one for all (default: cpu)"},
    {"gpu-memory", NULL, 0, OPTION_TEXT, AT(gpu_memory), "auto", 0, 0, "NAME",
     "How memory of devices outlives stages: vmm (virtual memory management: descriptors that the supervisor keeps), "
     "ipc (a "
     "process of its own holds it, and names it to stages by CUDA IPC) or auto (vmm, where devices can do that)"},
    {"edges", NULL, 0, OPTION_TEXT, AT(edges), "auto", 0, 0, "NAME",
     "How stages on devices hand activations on: device (into the next one's device, where no processor is on the "
     "way), nccl (NCCL carries them from one to the other), host (through shared memory) or auto (device where the one "
     "reaches the other, else nccl if there is libnccl.so.2, else host)"},
    {"cuda-graphs", NULL, 0, OPTION_FLAG, AT(cuda_graphs), "true", 0, 0, "",
     "Launches every kernel of a step on a device by itself, in place of all those of a step of up to 64 tokens "
     "together, as recorded at the start. Results are the same bits"},
    {"threads-per-stage", NULL, 0, OPTION_NUMBER, AT(threads_per_stage), "1", 1, 64, "N",
     "Threads that compute in each stage; results are the same bits for any number"},
    {"lone-threads", NULL, 0, OPTION_NUMBER, AT(lone_threads), "0", 0, 64, "N",
     "Threads that compute in a stage while no other stage has anything to do, on their cores as well; 0: as many as "
     "there are cores for all stages, up to 16; 1: no more than ever. Results are the same bits for any number"},
    {"policy", NULL, 0, OPTION_TEXT, AT(policy), "even", 0, 0, "NAME", "Scheduling policy: " POLICY_NAMES},
    {"use-batch-scheduler", NULL, 0, OPTION_FLAG, AT(use_batch_scheduler), NULL, 0, 0, "",
     "The same as --policy batch"},
    {"itl-slo", NULL, 0, OPTION_NUMBER, AT(itl_slo), "0", 0, 1 << 20, "MS",
     "Time between two tokens of an answer that policy even aims at; 0: none, as many tokens a second as possible"},
    {"ttft-slo", NULL, 0, OPTION_NUMBER, AT(ttft_slo), "0", 0, 1 << 30, "MS",
     "Time to an answer's first token that policy even aims at; 0: none"},
    {"max-num-batched-tokens", NULL, 0, OPTION_NUMBER, AT(max_num_batched_tokens), "512", 1, 65536, "N",
     "Tokens of one step at most: the budget that prompts are cut to"},
    {"max-num-seqs", NULL, 0, OPTION_NUMBER, AT(max_num_seqs), "128", 1, 4096, "N",
     "Sequences running at once at most"},
    {"max-model-len", NULL, 0, OPTION_NUMBER, AT(max_model_len), "0", 0, 1 << 22, "N",
     "Tokens of prompt and answer together at most; 0: the model's own limit, or what the KV cache holds"},
    {"block-size", NULL, 0, OPTION_NUMBER, AT(block_size), "16", 8, 256, "N",
     "Positions in one KV block: 8, 16, 32, 64, 128 or 256"},
    {"num-blocks", NULL, 0, OPTION_NUMBER, AT(num_blocks), "0", 0, 1 << 28, "N",
     "KV blocks; 0: as many as --kv-memory holds"},
    {"kv-memory", NULL, 0, OPTION_NUMBER, AT(kv_memory), "512M", 1, 1e15, "BYTES",
     "Memory of the KV cache over all stages; K, M and G are understood"},
    {"kv-type", NULL, 0, OPTION_TEXT, AT(kv_type), "f16", 0, 0, "TYPE",
     "How the KV cache keeps K and V: f16, or q8, which takes about half the memory"},
    {"weights-cache", NULL, 0, OPTION_FLAG, AT(weights_cache), "true", 0, 0, "",
     "Packs weights anew at every start, keeping none in $XDG_CACHE_HOME/evenflow or ~/.cache/evenflow for the next"},
    {"window", NULL, 0, OPTION_TEXT, AT(window), "auto", 0, 0, "N",
     "Steps in flight at most; auto: one per stage, or, where the policy chooses, up to two per stage"},
    {"long-prefill-token-threshold", NULL, 0, OPTION_NUMBER, AT(long_prefill_token_threshold), "0", 0, 1 << 20, "N",
     "Tokens of one prompt in one step at most while others wait or run; 0: no limit"},
    {"long-prefill-token-threshold-adaptive", NULL, 0, OPTION_FLAG, AT(long_prefill_token_threshold_adaptive), NULL, 0,
     0, "", "That limit is at least the budget over the number of sequences"},
    {"enable-chunked-prefill", NULL, 0, OPTION_FLAG, AT(enable_chunked_prefill), "true", 0, 0, "",
     "Computes each prompt in one step, for which it may have to wait, instead of cutting it to the budget"},
    {"enable-prefix-caching", NULL, 0, OPTION_FLAG, AT(enable_prefix_caching), "true", 0, 0, "",
     "Computes what prompts have in common for each of them, not once for all; results are the same bits"},
    {"scheduling-policy", NULL, 0, OPTION_TEXT, AT(scheduling_policy), "fcfs", 0, 0, "NAME",
     "Order of requests: fcfs (first come, first served) or priority (the smaller number first)"},
    {"watermark", NULL, 0, OPTION_DECIMAL, AT(watermark), "0", 0, 1, "X",
     "Share of the KV blocks that stays free when a sequence is admitted beside running ones"},
    {"scheduler-reserve-full-isl", NULL, 0, OPTION_FLAG, AT(scheduler_reserve_full_isl), "true", 0, 0, "",
     "Admits a sequence when blocks for its first step are free, instead of for all that is known of it"},
    {"speculate", NULL, 0, OPTION_TEXT, AT(speculate), "none", 0, 0, "NAME",
     "Guesses at next tokens, computed along while that costs little time: none, or ngram (what followed an answer's "
     "last tokens when they stood in it or its prompt before); results are the same bits"},
    {"max-queued-requests", NULL, 0, OPTION_NUMBER, AT(max_queued_requests), "1024", 1, 100000, "N",
     "Requests running and waiting at most; one more is answered with 429"},
    {"max-connections", NULL, 0, OPTION_NUMBER, AT(max_connections), "512", 1, 16000, "N",
     "Client connections at most; more wait in the socket's backlog"},
    {"max-body", NULL, 0, OPTION_NUMBER, AT(max_body), "0", 0, 1 << 28, "BYTES",
     "Body of one request at most, a longer one is answered with 413; 0: 64 KiB and 16 bytes a token of the longest "
     "prompt"},
    {"request-timeout", NULL, 0, OPTION_NUMBER, AT(request_timeout_s), "60", 1, 86400, "SECONDS",
     "A connection that makes no progress for so long is dropped; so long a request's body may take"},
    {"header-timeout", NULL, 0, OPTION_NUMBER, AT(header_timeout_s), "20", 1, 86400, "SECONDS",
     "A request's header section is complete so long after its first byte, or refused with 408"},
    {"drain-timeout", NULL, 0, OPTION_NUMBER, AT(drain_timeout_s), "0", 0, 86400, "SECONDS",
     "After SIGTERM, requests are given so long to finish; 0: as long as they take"},
    {"served-model-name", NULL, 0, OPTION_TEXT, AT(served_model_name), NULL, 0, 0, "NAME",
     "The model's name in the API (default: the file's name without .gguf)"},
    {"chat-template", NULL, 0, OPTION_TEXT, AT(chat_template), NULL, 0, 0, "FILE",
     "Jinja template of conversations in place of the model's own; an empty file: no chat, completions only"},
    {"isa", NULL, 0, OPTION_TEXT, AT(isa), "auto", 0, 0, "NAME",
     "Instruction path of the kernels: auto, avx512, avx2 or ref"},
    {"io", NULL, 0, OPTION_TEXT, AT(io), "auto", 0, 0, "NAME",
     "How the front does its input and output: uring, epoll, or auto: epoll where io_uring is not to be had"},
    {"backend", NULL, 0, OPTION_TEXT, AT(backend), "model", 0, 0, "NAME",
     "What stages do: model (compute it) or timed (take the times that --cost describes, make tokens by a formula)"},
    {"cost", NULL, 0, OPTION_TEXT, AT(cost), NULL, 0, 0, "FILE",
     "Times of stages and links for --backend timed; its stages are the pipeline's"},
    {"freeze-model", NULL, 0, OPTION_FLAG, AT(freeze_model), NULL, 0, 0, "",
     "Schedules by the stage times known at start, whatever the stages measure"},
    {"record", NULL, 0, OPTION_TEXT, AT(record), NULL, 0, 0, "FILE",
     "Writes all that goes into the scheduler and all its steps to a file, for evenflow sim --replay"},
    {"spares", NULL, 0, OPTION_NUMBER, AT(spares), "0", 0, 1, "N",
     "Processes that wait beside each one, prepared to take over at once should it die"},
    {"adopt", NULL, 0, OPTION_FLAG, AT(adopt), NULL, 0, 0, "",
     "No engine of its own: waits beside the one on this socket to be its next supervisor (no model, no other "
     "options)"},
    {"state", NULL, 0, OPTION_TEXT, AT(state), NULL, 0, 0, "DIR",
     "Keeps a list of accepted, unfinished requests there; the next start says which of them were lost"},
    {"log-level", NULL, 0, OPTION_TEXT, AT(log_level), "info", 0, 0, "LEVEL", "error, warn, info or debug"},
    {"ready-fd", NULL, 0, OPTION_NUMBER, AT(ready_fd), "0", 0, 65535, "FD",
     "Writes a newline to this descriptor once every process is ready, then closes it; 0: none"},
    {"config", NULL, 0, OPTION_TEXT, AT(config), NULL, 0, 0, "FILE",
     "Reads options from a file first, one \"name = value\" a line; EVENFLOW_NAME in the environment comes next"},
};

static const char *const refused[] = {
    "enable-lora", "lora-modules", "kv-transfer-config", "limit-mm-per-prompt", "async-scheduling", NULL,
};

const struct option_table config_table = {
    .specs = specs, .count = ARRAY_COUNT(specs), .refused = refused, .title = "The options of evenflow serve"};

void config_socket_path(char *path, size_t size, const char *given)
{
    const char *environment = getenv("EVENFLOW_SOCKET");
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (given[0] != '\0')
        snprintf(path, size, "%s", given);
    else if (environment != NULL && environment[0] != '\0')
        snprintf(path, size, "%s", environment);
    else if (runtime != NULL && runtime[0] != '\0')
        snprintf(path, size, "%s/evenflow/evenflow.sock", runtime);
    else if (getuid() == 0)
        snprintf(path, size, "/run/evenflow/evenflow.sock");
    else
        snprintf(path, size, "/tmp/evenflow-%u/evenflow.sock", (unsigned)getuid());
}
