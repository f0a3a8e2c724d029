#include "tools/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/policy.h"
#include "ipc/clock.h"
#include "ipc/layout.h"
#include "ipc/ledger.h"
#include "ipc/log.h"
#include "ipc/shm.h"
#include "ipc/team.h"
#include "ipc/version.h"
#include "kernels/kernels.h"
#include "stages/cost.h"
#include "stages/forward_cuda.h"
#include "stages/gguf.h"
#include "stages/model.h"
#include "stages/packed.h"
#include "tools/budget.h"
#include "tools/devices.h"
#include "tools/pipeline.h"
#include "tools/progress.h"
#include "tools/vocab.h"

#define LOG_TOKENS_MAX       (1u << 20) /* the token logs' pool, in tokens: 32 MB */
#define GRAMMAR_PAGES        16384u /* of the prompt pool, beside those for prompts: 16 MB, 32 of the largest grammars */
#define LISTEN_BACKLOG       1024
#define LONE_THREADS_MAX     16u /* unless asked for: each stage has so many */
#define BODY_BYTES_BASE      65536u
#define BODY_BYTES_PER_TOKEN 16u

static uint32_t core_count(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

/* ---- the plan, block by block ---- */

static void plan_model(struct plan *plan, const struct model_desc *desc)
{
    plan->layers = desc->layers;
    plan->width = desc->width;
    plan->heads = desc->heads;
    plan->kv_heads = desc->kv_heads;
    plan->head_dim = desc->head_dim;
    plan->vocab_size = desc->vocab_size;
    plan->context_length = desc->context_length;
}

int launch_parse_split(const char *text, uint32_t layers, uint32_t stages, uint32_t *counts, struct err *err)
{
    uint32_t sum = 0, stage = 0;
    const char *at = text;
    while (*at != '\0') {
        char *end;
        unsigned long count = strtoul(at, &end, 10);
        bool is_ok = end != at && (*end == ',' || *end == '\0') && count >= 1 && count <= layers && stage < stages;
        if (!is_ok)
            break;
        counts[stage++] = (uint32_t)count;
        sum += (uint32_t)count;
        at = *end == ',' ? end + 1 : end;
    }
    if (*at != '\0' || stage != stages || sum != layers)
        return err_set(err, -EINVAL, "--split %s: must be %u numbers of layers, each at least 1, that add up to %u",
                       text, stages, layers);
    return 0;
}

/* Which stage computes on what. */
static int plan_devices(const struct plan *plan, const struct config *config, const struct model_desc *desc,
                        uint32_t devices[STAGES_MAX], struct err *err)
{
    int ret = devices_parse(config->devices, plan->stage_count, devices, err);
    for (uint32_t stage = 0; stage < plan->stage_count && ret == 0; stage++) {
        if (devices[stage] == DEVICE_CPU)
            continue;
        if (plan->kv_type != KV_F16)
            return err_set(err, -EINVAL, "--kv-type %s: stages on devices keep f16", config->kv_type);
        ret = forward_cuda_supports(desc, err);
        if (ret != 0)
            err_prefix(err, ret, "--devices %s", config->devices);
    }
    return ret;
}

static int plan_slices(struct plan *plan, const struct config *config, const struct gguf *gguf,
                       const struct model_desc *desc, const struct kernels *kernels, struct err *err)
{
    uint32_t stages = (uint32_t)config->pipeline_parallel_size;
    if (stages > desc->layers || stages > STAGES_MAX)
        return err_set(err, -EINVAL, "--pipeline-parallel-size %u: the model has %u layers, and %u stages are possible",
                       stages, desc->layers, STAGES_MAX);
    uint32_t counts[STAGES_MAX] = {desc->layers}, devices[STAGES_MAX];
    static struct cost measured[DEVICES_MAX];
    const struct cost *costs[STAGES_MAX];
    struct cost processor;
    plan->stage_count = stages;
    int ret = plan_devices(plan, config, desc, devices, err);
    ret = ret ? ret : cost_measure(&processor, gguf, desc, kernels, plan->kv_type, err);
    ret = ret ? ret : devices_measure(devices, stages, desc, kernels, &processor, measured, costs, err);
    if (ret == 0)
        cost_split(costs, desc->layers, stages, counts);
    if (ret == 0 && config->split[0] != '\0')
        ret = launch_parse_split(config->split, desc->layers, stages, counts, err);
    plan->timing.stage_count = stages;
    for (uint32_t stage = 0, first = 0; stage < stages && ret == 0; first += counts[stage++]) {
        plan->slices[stage] = (struct plan_slice){.first_layer = first,
                                                  .layer_count = counts[stage],
                                                  .weights_bytes = model_slice_bytes(desc, first, counts[stage]),
                                                  .device = devices[stage]};
        plan->timing.stages[stage] = cost_stage(costs[stage], counts[stage], stage == 0, stage + 1 == stages);
    }
    return ret;
}

static const char *kind_of(const struct plan *plan, const struct device_kind *kinds, uint32_t stage)
{
    uint32_t device = plan->slices[stage].device;
    return plan->backend == BACKEND_TIMED ? "timed" : device == DEVICE_CPU ? "cpu" : kinds[device - 1].text;
}

/* What results are identical for: build, instruction path, what computes each layer, KV type. */
static void plan_fingerprint(struct plan *plan, const struct kernels *kernels, const struct device_kind *kinds)
{
    bool is_timed = plan->backend == BACKEND_TIMED;
    size_t size = sizeof(plan->fingerprint), used = 0;
    used += (size_t)snprintf(plan->fingerprint, size, "evenflow-%s+%s isa=%s backend=", EVENFLOW_VERSION,
                             version_numerics, is_timed ? "none" : kernels->name);
    for (uint32_t stage = 0, next; stage < plan->stage_count; stage = next) {
        const char *kind = kind_of(plan, kinds, stage);
        for (next = stage + 1; next < plan->stage_count && strcmp(kind, kind_of(plan, kinds, next)) == 0; next++)
            continue;
        used += (size_t)snprintf(plan->fingerprint + used, size - used, "%s%s", stage > 0 ? "," : "", kind);
        const struct plan_slice *last = &plan->slices[next - 1];
        if (next - stage < plan->stage_count)
            used += (size_t)snprintf(plan->fingerprint + used, size - used, ":%u-%u", plan->slices[stage].first_layer,
                                     last->first_layer + last->layer_count - 1);
    }
    snprintf(plan->fingerprint + used, size - used, " kv=%s", is_timed ? "none" : kv_type_name(plan->kv_type));
}

/* A described pipeline in place of the model's: its stages, no weights, no KV cache, nothing in activations. The model file
 * gives vocabulary and chat template, and the size of the cache where --num-blocks does not. */
static int plan_timed(struct plan *plan, const struct config *config, struct err *err)
{
    if (config->devices[0] != '\0')
        return err_set(err, -EINVAL, "--devices: timed stages compute nothing; leave it out");
    if (config->cost[0] == '\0')
        return err_set(err, -EINVAL, "--backend timed: needs --cost FILE, the times of its stages");
    int ret = pipeline_read(&plan->timing, config->cost, err);
    if (ret != 0)
        return err_prefix(err, ret, "--cost");
    plan->stage_count = plan->layers = (uint32_t)plan->timing.stage_count;
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        plan->slices[stage] = (struct plan_slice){.first_layer = stage, .layer_count = 1};
    plan->width = plan->heads = plan->kv_heads = plan->head_dim = 1;
    plan->kv_block_bytes = 0;
    return 0;
}

/* Threads of a stage while the others wait: it has their cores too. Not where stages wait otherwise than asleep, or do not
 * compute. */
static uint32_t lone_threads(const struct plan *plan, const struct config *config, uint32_t cores)
{
    uint32_t threads = plan->threads_per_stage;
    uint64_t all = min_u64(min_u64(cores, plan->stage_count * threads), LONE_THREADS_MAX);
    if (plan->backend == BACKEND_TIMED || plan->stage_count == 1 || plan_uses_devices(plan))
        return threads;
    return (uint32_t)max_u64(threads, config->lone_threads ? config->lone_threads : all);
}

static int plan_window(struct plan *plan, const struct config *config, struct err *err)
{
    plan->window = policy_find(plan->policy)->chooses_window ? 2 * plan->stage_count : plan->stage_count;
    if (strcmp(config->window, "auto") != 0) {
        char *end;
        unsigned long window = strtoul(config->window, &end, 10);
        if (*end != '\0' || window < 1 || window > 4 * plan->stage_count)
            return err_set(err, -EINVAL, "--window %s: must be auto or a number from 1 to %u", config->window,
                           4 * plan->stage_count);
        plan->window = (uint32_t)window;
    }
    uint32_t cores = core_count();
    bool is_timed = plan->backend == BACKEND_TIMED; /* stages that sleep */
    plan->threads_per_stage = (uint32_t)config->threads_per_stage;
    uint32_t threads = plan->stage_count * plan->threads_per_stage;
    plan->spin_ns = is_timed || ROLE_STAGE + threads > cores ? 0 : 5000;
    plan->pin = !is_timed && cores >= threads;
    plan->lone_threads = lone_threads(plan, config, cores);
    return 0;
}

/* Blocks, and how long a sequence in them may be. */
static int plan_cache(struct plan *plan, const struct config *config, struct err *err)
{
    if (plan->head_dim % 16 != 0)
        return err_set(err, -ENOTSUP, "heads of %u floats are not supported: must be a multiple of 16", plan->head_dim);
    if ((config->block_size & (config->block_size - 1)) != 0)
        return err_set(err, -EINVAL, "--block-size %llu: must be 8, 16, 32, 64, 128 or 256",
                       (unsigned long long)config->block_size);
    plan->block_size = (uint32_t)config->block_size;
    plan->kv_block_bytes = kv_block_bytes(plan->kv_type, plan->kv_heads, plan->head_dim, plan->block_size);
    uint64_t blocks =
        config->num_blocks ? config->num_blocks : config->kv_memory / (plan->kv_block_bytes * plan->layers);
    if (blocks == 0)
        return err_set(err, -EINVAL, "--kv-memory %llu: one block of %u positions takes %llu bytes",
                       (unsigned long long)config->kv_memory, plan->block_size,
                       (unsigned long long)(plan->kv_block_bytes * plan->layers));
    plan->num_blocks = (uint32_t)min_u64(blocks, UINT32_MAX);
    uint64_t kv_tokens = blocks * plan->block_size;
    uint64_t longest = min_u64(plan->context_length, kv_tokens);
    if (config->max_model_len > longest)
        return err_set(err, -EINVAL, "--max-model-len %llu: the model's limit is %u tokens, the KV cache holds %llu",
                       (unsigned long long)config->max_model_len, plan->context_length, (unsigned long long)kv_tokens);
    plan->max_model_len = (uint32_t)(config->max_model_len ? config->max_model_len : longest);
    plan->watermark_blocks = (uint32_t)(config->watermark * (double)(plan->num_blocks + 1));
    plan->enable_prefix_caching = config->enable_prefix_caching;
    if (getrandom(plan->prefix_key, sizeof(plan->prefix_key), 0) != (ssize_t)sizeof(plan->prefix_key))
        return err_set(err, -errno, "getrandom: %s", strerror(errno));
    return 0;
}

/* What goes into a step. */
static int plan_steps(struct plan *plan, const struct config *config, struct err *err)
{
    plan->max_num_seqs = (uint32_t)config->max_num_seqs;
    plan->max_num_batched_tokens = (uint32_t)config->max_num_batched_tokens;
    plan->long_prefill_token_threshold = (uint32_t)config->long_prefill_token_threshold;
    plan->long_prefill_token_threshold_adaptive = config->long_prefill_token_threshold_adaptive;
    plan->enable_chunked_prefill = config->enable_chunked_prefill;
    plan->reserve_full_isl = config->scheduler_reserve_full_isl;
    plan->uses_priority = strcmp(config->scheduling_policy, "priority") == 0;
    if (!plan->uses_priority && strcmp(config->scheduling_policy, "fcfs") != 0)
        return err_set(err, -EINVAL, "--scheduling-policy %s: must be fcfs or priority", config->scheduling_policy);
    if (!plan->enable_chunked_prefill && plan->max_num_batched_tokens < plan->max_model_len)
        return err_set(err, -EINVAL,
                       "--no-enable-chunked-prefill: needs --max-num-batched-tokens of at least --max-model-len (%u)",
                       plan->max_model_len);
    if (plan->max_num_batched_tokens < plan->max_num_seqs)
        return err_set(err, -EINVAL, "--max-num-batched-tokens %u: must be at least --max-num-seqs (%u)",
                       plan->max_num_batched_tokens, plan->max_num_seqs);
    return 0;
}

/* How many requests there may be, and the pools that hold their prompts and answers. */
static void plan_pools(struct plan *plan, const struct config *config)
{
    plan->requests_max = (uint32_t)config->max_queued_requests;
    plan->sequences_max = plan->requests_max + plan->max_num_seqs + CHOICES_MAX;
    /* prompts: the KV cache full of them twice over, one of the longest, or a page for every request */
    uint64_t kv_tokens = (uint64_t)plan->num_blocks * plan->block_size;
    uint64_t prompt_tokens = max_u64(2 * min_u64(kv_tokens, 1u << 22), plan->max_model_len + PAGE_TOKENS);
    plan->prompt_pages = (uint32_t)max_u64(div_up_u64(prompt_tokens, PAGE_TOKENS), plan->requests_max);
    plan->prompt_pages += GRAMMAR_PAGES;
    /* logs: everything that can run at once, within a bound, but at least one sequence of the longest */
    uint64_t log_tokens = min_u64((uint64_t)plan->max_num_seqs * plan->max_model_len, LOG_TOKENS_MAX);
    log_tokens = max_u64(log_tokens, (uint64_t)plan->max_model_len * CHOICES_MAX);
    plan->log_pages = (uint32_t)div_up_u64(log_tokens, LOG_PAGE_TOKENS) + plan->sequences_max;
}

/* What a client may do, and for how long. */
static void plan_clients(struct plan *plan, const struct config *config)
{
    uint64_t body_bytes = min_u64(BODY_BYTES_BASE + (uint64_t)plan->max_model_len * BODY_BYTES_PER_TOKEN, 1u << 28);
    plan->connections_max = (uint32_t)config->max_connections;
    plan->body_bytes_max = (uint32_t)(config->max_body ? config->max_body : body_bytes);
    plan->request_timeout_ms = (uint32_t)(config->request_timeout_s * 1000);
    plan->header_timeout_ms = (uint32_t)(config->header_timeout_s * 1000);
    plan->drain_timeout_ms = (uint32_t)(config->drain_timeout_s * 1000);
}

static int plan_backend(struct plan *plan, const struct config *config, struct err *err)
{
    bool is_timed = strcmp(config->backend, "timed") == 0;
    if (!is_timed && strcmp(config->backend, "model") != 0)
        return err_set(err, -EINVAL, "--backend %s: must be model or timed", config->backend);
    if (!is_timed && config->cost[0] != '\0')
        return err_set(err, -EINVAL, "--cost: is for --backend timed");
    plan->backend = is_timed ? BACKEND_TIMED : BACKEND_MODEL;
    plan->freeze_timing = config->freeze_model;
    if (is_timed)
        plan->context_length = 1u << 22; /* no tensor limits it */
    return 0;
}

static int find_programs(char directory[PATH_MAX_BYTES], struct err *err)
{
    ssize_t size = readlink("/proc/self/exe", directory, PATH_MAX_BYTES - 1);
    if (size <= 0)
        return err_set(err, -errno, "/proc/self/exe: %s; is /proc mounted?", strerror(errno));
    directory[size] = '\0';
    *strrchr(directory, '/') = '\0';
    /* tests run from the folder beside bin/ */
    const char *given = getenv("EVENFLOW_PROGRAM_DIR");
    if (given != NULL)
        snprintf(directory, PATH_MAX_BYTES, "%s", given);
    return 0;
}

static int plan_names(struct plan *plan, const struct config *config, const char *model_path, struct err *err)
{
    const struct policy *policy = policy_find(config->use_batch_scheduler ? "batch" : config->policy);
    if (policy == NULL || policy->only_simulated)
        return err_set(err, -EINVAL, "--policy %s: must be " POLICY_NAMES, config->policy);
    plan->itl_slo_ms = (uint32_t)config->itl_slo;
    plan->ttft_slo_ms = (uint32_t)config->ttft_slo;
    enum kv_type kv_type;
    if (!kv_type_of(config->kv_type, &kv_type))
        return err_set(err, -EINVAL, "--kv-type %s: must be f16 or q8", config->kv_type);
    plan->kv_type = kv_type;
    if (strcmp(config->speculate, "none") != 0 && strcmp(config->speculate, "ngram") != 0)
        return err_set(err, -EINVAL, "--speculate %s: must be none or ngram", config->speculate);
    plan->cuda_graphs = config->cuda_graphs;
    plan->speculate = strcmp(config->speculate, "ngram") == 0 ? SPECULATE_NGRAM : SPECULATE_NONE;
    static const char *const io_names[] = {[IO_ANY] = "auto", [IO_URING] = "uring", [IO_EPOLL] = "epoll"};
    while (plan->io < ARRAY_COUNT(io_names) && strcmp(config->io, io_names[plan->io]) != 0)
        plan->io++;
    if (plan->io == ARRAY_COUNT(io_names))
        return err_set(err, -EINVAL, "--io %s: must be auto, uring or epoll", config->io);
    int level = log_level_of(config->log_level);
    if (level < 0)
        return err_set(err, -EINVAL, "--log-level %s: must be error, warn, info or debug", config->log_level);
    plan->log_level = (uint32_t)level;
    log_open("evenflow", (enum log_level)level);
    snprintf(plan->policy, sizeof(plan->policy), "%s", policy->name);
    snprintf(plan->version, sizeof(plan->version), "%s", EVENFLOW_VERSION);
    if (strlen(config->served_model_name) >= sizeof(plan->served_model_name))
        return err_set(err, -EINVAL, "--served-model-name: longer than %zu bytes", sizeof(plan->served_model_name) - 1);
    if (config->served_model_name[0] != '\0') {
        strcpy(plan->served_model_name, config->served_model_name);
    } else {
        const char *slash = strrchr(model_path, '/');
        snprintf(plan->served_model_name, sizeof(plan->served_model_name), "%s", slash ? slash + 1 : model_path);
        char *suffix = strstr(plan->served_model_name, ".gguf");
        if (suffix != NULL)
            *suffix = '\0';
    }
    if (realpath(model_path, plan->model_path) == NULL)
        return err_set(err, -errno, "model %s: %s", model_path, strerror(errno));
    config_socket_path(plan->socket_path, sizeof(plan->socket_path), config->socket);
    return find_programs(plan->program_dir, err);
}

/* ---- TCP ---- */

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

/* ADDR:PORT or [ADDR]:PORT, numbers only. */
static int listen_on(const char *text, bool has_keys, struct err *err)
{
    char host[256];
    const char *colon = strrchr(text, ':');
    bool is_bracketed = colon != NULL && text[0] == '[' && colon > text + 1 && colon[-1] == ']';
    size_t size = colon == NULL ? sizeof(host) : (size_t)(colon - text) - (is_bracketed ? 2 : 0);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE};
    struct addrinfo *address = NULL;
    if (size < sizeof(host))
        snprintf(host, sizeof(host), "%.*s", (int)size, text + is_bracketed);
    if (size >= sizeof(host) || getaddrinfo(host, colon + 1, &hints, &address) != 0)
        return err_set(err, -EINVAL, "--listen %s: must be an address and a port, such as 127.0.0.1:8000 or [::1]:8000",
                       text);
    int fd = -1, one = 1, ret = 0;
    if (!has_keys && !is_loopback(address->ai_addr))
        ret = err_set(err, -EINVAL,
                      "--listen %s: anybody on the network could use this server; give --api-key-file, or listen on "
                      "127.0.0.1",
                      text);
    if (ret == 0) {
        fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
            bind(fd, address->ai_addr, address->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0)
            ret = err_set(err, -errno, "--listen %s: %s%s", text, strerror(errno),
                          errno == EADDRINUSE ? "; stop what listens there, or choose another port"
                          : errno == EACCES   ? "; ports below 1024 are root's, choose another"
                                              : "");
    }
    freeaddrinfo(address);
    if (ret != 0 && fd >= 0)
        close(fd);
    return ret ? ret : fd;
}

static int read_keys(const char *path, struct err *err)
{
    char keys[API_KEYS_BYTES_MAX + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd >= 0 ? read(fd, keys, sizeof(keys)) : -1;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (size < 0)
        return err_set(err, -error, "--api-key-file %s: %s", path, strerror(error));
    if (size == 0 || size > API_KEYS_BYTES_MAX)
        return err_set(err, -EINVAL, "--api-key-file %s: has %s; one key a line, %u bytes at most", path,
                       size == 0 ? "nothing in it" : "too much in it", API_KEYS_BYTES_MAX);
    return shm_sealed_copy("evenflow-keys", keys, (size_t)size, err);
}

static int open_tcp(struct launch *launch, const struct config *config, struct err *err)
{
    bool has_keys = config->api_key_file[0] != '\0';
    if (config->listen[0] == '\0') {
        if (has_keys || config->allowed_origins[0] != '\0')
            return err_set(err, -EINVAL, "--%s: is about TCP clients; give --listen too",
                           has_keys ? "api-key-file" : "allowed-origins");
        return 0;
    }
    if (strlen(config->allowed_origins) >= sizeof(launch->plan.allowed_origins))
        return err_set(err, -EINVAL, "--allowed-origins: longer than %zu bytes",
                       sizeof(launch->plan.allowed_origins) - 1);
    strcpy(launch->plan.allowed_origins, config->allowed_origins);
    if (has_keys) {
        launch->keys_fd = read_keys(config->api_key_file, err);
        if (launch->keys_fd < 0)
            return launch->keys_fd;
    }
    launch->listen_fd = listen_on(config->listen, has_keys, err);
    return launch->listen_fd < 0 ? launch->listen_fd : 0;
}

/* ---- what a former engine has left ---- */

static void say_lost(const struct ledger_entry_shm *entry)
{
    char accepted[32];
    time_t accepted_s = (time_t)entry->accepted_s;
    struct tm calendar;
    gmtime_r(&accepted_s, &calendar);
    strftime(accepted, sizeof(accepted), "%Y-%m-%dT%H:%M:%SZ", &calendar);
    fprintf(stderr, "lost         %s-%016llx accepted %s, prompt of %u tokens, up to %u tokens, %u choice%s%s%s\n",
            entry->is_chat ? "chatcmpl" : "cmpl", (unsigned long long)entry->id, accepted, entry->prompt_tokens,
            entry->max_tokens, entry->choices, entry->choices == 1 ? "" : "s",
            entry->client_id[0] != '\0' ? ", X-Request-Id " : "", entry->client_id);
}

/* Said to people, whatever the log level: nobody else knows of these requests any more. */
static int open_ledger(struct launch *launch, const char *directory, struct err *err)
{
    uint32_t lost = 0, damaged = 0;
    launch->ledger_fd = ledger_open(directory, err);
    if (launch->ledger_fd < 0)
        return launch->ledger_fd;
    struct ledger_entry_shm entry;
    int ret;
    for (uint32_t i = 0; (ret = ledger_left(launch->ledger_fd, i, &entry)) != -ENOENT; i++) {
        lost += ret == 1;
        damaged += ret == -EBADMSG;
        if (ret == 1)
            say_lost(&entry);
    }
    if (lost + damaged > 0)
        fprintf(
            stderr,
            "lost         the engine that kept %s ended at once, with %u requests accepted and not finished%s: their "
            "clients saw their connections end and have to ask again\n",
            directory, lost + damaged, damaged > 0 ? ", some of which cannot be read" : "");
    ret = ledger_begin(launch->ledger_fd, launch->plan.requests_max, err);
    return ret ? err_prefix(err, ret, "--state %s", directory) : 0;
}

/* ---- packed weights ---- */

static void show(void *context, uint64_t done, uint64_t total)
{
    struct progress *progress = context;
    progress->total = total;
    progress_show(progress, done, 0);
}

/* A file of packed weights for this model, made now where there is none. Without one, stages pack for themselves: whatever is
 * wrong here is said, and is no reason not to start. */
static void plan_weights_cache(struct plan *plan, const struct model_desc *desc, const struct gguf *gguf)
{
    char path[PATH_MAX_BYTES];
    struct err err = {0};
    struct team *team;
    if (!packed_path(path, sizeof(path), plan->model_path) ||
        team_open(&team, (uint32_t)min_u64(core_count(), TEAM_MAX), NULL, NULL, &err) != 0)
        return;
    struct progress progress;
    const struct onlooker onlooker = {show, &progress};
    progress_begin(&progress, "reading packed weights", 0, NULL);
    int ret = packed_check(path, desc, gguf, team, &onlooker);
    progress_end(&progress);
    if (ret == -EBADMSG)
        log_warn("weights cache %s is damaged; it is made anew", path);
    if (ret != 0) {
        progress_begin(&progress, "packing weights", 0, NULL);
        ret = packed_make(path, desc, gguf, team, &onlooker, &err);
        progress_end(&progress);
    }
    team_close(team);
    if (ret == 0)
        strcpy(plan->weights_cache, path);
    else
        log_warn("weights cache: %s; going on without (--no-weights-cache: without a word)", err.text);
}

/* ---- all of it ---- */

/* What has to be there before anything is measured. */
static int open_files(struct launch *launch, const struct config *config, const char *model_path, struct err *err)
{
    if (config->record[0] != '\0') {
        launch->record_fd = open(config->record, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (launch->record_fd < 0)
            return err_set(err, -errno, "--record %s: cannot create it: %s", config->record, strerror(errno));
    }
    int ret = open_tcp(launch, config, err);
    if (ret != 0)
        return ret;
    launch->model_fd = open(model_path, O_RDONLY | O_CLOEXEC);
    if (launch->model_fd < 0)
        return err_set(err, -errno, "model %s: cannot open it: %s", model_path, strerror(errno));
    return 0;
}

/* Every number that does not come from the vocabulary or from devices. */
static int make_plan(struct plan *plan, const struct config *config, const char *model_path, const struct gguf *gguf,
                     const struct model_desc *desc, const struct kernels *kernels, struct err *err)
{
    plan_model(plan, desc);
    snprintf(plan->isa, sizeof(plan->isa), "%s", kernels->name);
    plan->spares = (uint32_t)config->spares;
    int ret = plan_backend(plan, config, err);
    ret = ret ? ret : plan_names(plan, config, model_path, err);
    ret = ret ? ret : plan_cache(plan, config, err);
    ret = ret ? ret : plan_steps(plan, config, err);
    if (ret != 0)
        return ret;
    plan_pools(plan, config);
    plan_clients(plan, config);
    ret = plan->backend == BACKEND_TIMED ? plan_timed(plan, config, err)
                                         : plan_slices(plan, config, gguf, desc, kernels, err);
    return ret ? ret : plan_window(plan, config, err);
}

static int plan_vocabulary(struct plan *plan, const struct config *config, const struct gguf *gguf, void **vocab,
                           struct err *err)
{
    size_t bytes = 0;
    int ret = vocab_from_gguf(gguf, config->chat_template, vocab, &bytes, err);
    ret = ret ? ret : vocab_check_template(*vocab, bytes, config->chat_template, err);
    if (ret != 0)
        return ret;
    plan->vocab_bytes = bytes;
    plan->end_token_count = vocab_end_tokens(*vocab, bytes, plan->end_tokens, END_TOKENS_MAX);
    return 0;
}

/* Memory of devices, where stages are on some. */
static int take_devices(struct launch *launch, const struct config *config, struct device_kind *kinds, struct err *err)
{
    struct devices_wish wish;
    int ret = devices_parse_wish(&wish, config->edges, config->gpu_memory, err);
    if (ret != 0)
        return ret;
    if (plan_uses_devices(&launch->plan)) {
        launch->devices_fd = devices_take(&launch->plan, &wish, kinds, err);
        return launch->devices_fd < 0 ? launch->devices_fd : 0;
    }
    if (wish.edges == EDGES_DEVICE || wish.edges == EDGES_NCCL)
        return err_set(err, -EINVAL, "--edges %s: no stage is on a device; say which with --devices", config->edges);
    return 0;
}

static int seal(struct launch *launch, const void *vocab, struct err *err)
{
    launch->vocab_fd = shm_sealed_copy("evenflow-vocab", vocab, launch->plan.vocab_bytes, err);
    if (launch->vocab_fd < 0)
        return launch->vocab_fd;
    launch->plan_fd = shm_sealed_copy("evenflow-plan", &launch->plan, sizeof(launch->plan), err);
    return launch->plan_fd < 0 ? launch->plan_fd : 0;
}

int launch_prepare(struct launch *launch, const struct config *config, const char *model_path, struct err *err)
{
    struct plan *plan = &launch->plan;
    *launch = (struct launch){.plan = {.magic = PLAN_MAGIC, .layout_hash = LAYOUT_HASH, .created_s = clock_wall_s()},
                              .plan_fd = -1,
                              .vocab_fd = -1,
                              .model_fd = -1,
                              .record_fd = -1,
                              .listen_fd = -1,
                              .keys_fd = -1,
                              .ledger_fd = -1,
                              .devices_fd = -1};
    if (config->adopt)
        return err_set(err, -EINVAL, "--adopt is for evenflow serve alone");
    const struct kernels *kernels = kernels_pick(strcmp(config->isa, "auto") == 0 ? NULL : config->isa);
    if (kernels == NULL)
        return err_set(err, -EINVAL, "--isa %s: this processor has no such path; auto picks the best one it has",
                       config->isa);
    struct gguf *gguf;
    int ret = open_files(launch, config, model_path, err);
    ret = ret ? ret : gguf_open_fd(&gguf, launch->model_fd, model_path, err);
    if (ret != 0)
        return ret;
    struct model_desc *desc = base_alloc(sizeof(*desc));
    struct device_kind kinds[DEVICES_MAX];
    void *vocab = NULL;
    ret = model_describe(desc, gguf, err);
    ret = ret ? ret : make_plan(plan, config, model_path, gguf, desc, kernels, err);
    ret = ret ? ret : plan_vocabulary(plan, config, gguf, &vocab, err);
    ret = ret ? ret : take_devices(launch, config, kinds, err);
    if (ret == 0)
        plan_fingerprint(plan, kernels, kinds);
    ret = ret ? ret : plan_validate(plan, err);
    ret = ret ? ret : budget_say(plan, err);
    if (ret == 0 && config->weights_cache && plan->backend == BACKEND_MODEL)
        plan_weights_cache(plan, desc, gguf);
    ret = ret ? ret : seal(launch, vocab, err);
    if (ret == 0 && config->state[0] != '\0') /* last: what is forgotten then has been said, and the start goes on */
        ret = open_ledger(launch, config->state, err);
    free(vocab);
    free(desc);
    gguf_close(gguf);
    return ret;
}

int launch_exec(const struct launch *launch, int ready_fd, struct err *err)
{
    const struct {
        const char *option;
        int fd;
    } given[] = {
        {"--plan-fd", launch->plan_fd},     {"--vocab-fd", launch->vocab_fd},     {"--model-fd", launch->model_fd},
        {"--record-fd", launch->record_fd}, {"--listen-fd", launch->listen_fd},   {"--keys-fd", launch->keys_fd},
        {"--ledger-fd", launch->ledger_fd}, {"--devices-fd", launch->devices_fd}, {"--ready-fd", ready_fd}};
    char program[PATH_MAX_BYTES + 32], options[ARRAY_COUNT(given)][32];
    char *argv[ARRAY_COUNT(given) + 2] = {program};
    size_t count = 1;
    snprintf(program, sizeof(program), "%s/evenflow-supervisor", launch->plan.program_dir);
    for (size_t i = 0; i < ARRAY_COUNT(given); i++) {
        if (given[i].fd <= 0)
            continue;
        fcntl(given[i].fd, F_SETFD, 0);
        snprintf(options[i], sizeof(options[i]), "%s=%d", given[i].option, given[i].fd);
        argv[count++] = options[i];
    }
    execv(program, argv);
    return err_set(err, -errno, "cannot start %s: %s; is the installation complete?", program, strerror(errno));
}

int launch_adopt(const struct config *config, struct err *err)
{
    char socket[OPTION_TEXT_MAX], directory[PATH_MAX_BYTES], program[PATH_MAX_BYTES + 32];
    config_socket_path(socket, sizeof(socket), config->socket);
    int ret = find_programs(directory, err);
    if (ret != 0)
        return ret;
    snprintf(program, sizeof(program), "%s/evenflow-supervisor", directory);
    execl(program, program, "--attach", socket, (char *)NULL);
    return err_set(err, -errno, "cannot start %s: %s; is the installation complete?", program, strerror(errno));
}
