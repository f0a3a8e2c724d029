#include "tools/devices.h"

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
#include "ipc/layout.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"
#include "kernels/cuda.h"
#include "kernels/nccl.h"

/* ---- the option ---- */

/* What a word of the option names; false when that is nothing. */
static bool parse_one(const char *word, size_t length, uint32_t *device)
{
    char copy[16], *end;
    if (length >= sizeof(copy))
        return false;
    snprintf(copy, sizeof(copy), "%.*s", (int)length, word);
    *device = DEVICE_CPU;
    if (strcmp(copy, "cpu") == 0)
        return true;
    if (strncmp(copy, "cuda:", 5) != 0 || copy[5] < '0' || copy[5] > '9')
        return false;
    unsigned long number = strtoul(copy + 5, &end, 10);
    *device = 1 + (uint32_t)number;
    return *end == '\0' && number < DEVICES_MAX;
}

int devices_parse(const char *text, uint32_t stage_count, uint32_t devices[STAGES_MAX], struct err *err)
{
    uint32_t count = 0;
    memset(devices, 0, stage_count * sizeof(*devices));
    if (text[0] == '\0')
        return 0;
    for (const char *word = text;; count++) {
        size_t length = strcspn(word, ",");
        uint32_t device;
        if (!parse_one(word, length, &device))
            return err_set(err, -EINVAL, "--devices: \"%.*s\" is no device; must be cpu or cuda:0 to cuda:%u",
                           (int)length, word, DEVICES_MAX - 1);
        if (count < stage_count)
            devices[count] = device;
        if (word[length] == '\0')
            break;
        word += length + 1;
    }
    count++;
    if (count != 1 && count != stage_count)
        return err_set(err, -EINVAL, "--devices %s: names %u for %u stages; one for each stage, or one for all", text,
                       count, stage_count);
    for (uint32_t stage = 1; stage < stage_count && count == 1; stage++)
        devices[stage] = devices[0];
    return 0;
}

static int parse_name(const char *option, const char *text, const char *const *names, int count, struct err *err)
{
    char all[64] = "";
    for (int i = 0; i < count; i++) {
        if (strcmp(text, names[i]) == 0)
            return i;
        strcat(strcat(all, i == 0 ? "" : i + 1 < count ? ", " : " or "), names[i]);
    }
    return err_set(err, -EINVAL, "%s %s: must be %s", option, text, all);
}

int devices_parse_wish(struct devices_wish *wish, const char *edges, const char *memory, struct err *err)
{
    static const char *const edge_names[] = {
        [EDGES_AUTO] = "auto", [EDGES_HOST] = "host", [EDGES_DEVICE] = "device", [EDGES_NCCL] = "nccl"};
    static const char *const memory_names[] = {[MEMORY_AUTO] = "auto", [MEMORY_VMM] = "vmm", [MEMORY_IPC] = "ipc"};
    int edge = parse_name("--edges", edges, edge_names, ARRAY_COUNT(edge_names), err);
    int kind = edge < 0 ? edge : parse_name("--gpu-memory", memory, memory_names, ARRAY_COUNT(memory_names), err);
    *wish = (struct devices_wish){(enum edges_wish)edge, (enum memory_wish)kind};
    return kind < 0 ? kind : 0;
}

/* ---- the child ---- */

/* What it says before it sends descriptors. */
struct answer {
    int code;                /* 0, or -errno with text */
    char text[ERR_TEXT_MAX]; /* with 0, something that one may want to know: "" is nothing */
    uint64_t page_bytes;
    struct device_kind kinds[DEVICES_MAX];
    uint32_t edges[STAGES_MAX]; /* enum edge */
    uint32_t memory;            /* enum device_memory */
};

/* Opens each device once; the largest of their pages counts. */
static bool open_devices(struct cuda *cuda, const struct plan *plan, struct answer *answer)
{
    for (uint32_t i = 0; i < DEVICES_MAX && answer->code == 0; i++) {
        if (!plan_uses_device(plan, i + 1))
            continue;
        answer->code = cuda_open(&cuda[i], i);
        snprintf(answer->text, sizeof(answer->text), "%s%s", cuda[i].error,
                 answer->code == -ENOENT ? "; is it installed? Stages on cpu need none" : "");
        snprintf(answer->kinds[i].text, sizeof(answer->kinds[i].text), "cuda%d", cuda[i].capability);
        answer->page_bytes = max_u64(answer->page_bytes, cuda[i].granularity);
    }
    return answer->code == 0;
}

/* What memory lives with: the same for all devices. */
static void choose_memory(struct cuda *cuda, struct plan *plan, enum memory_wish wish, struct answer *answer)
{
    plan->device_memory = wish == MEMORY_IPC ? DEVICE_MEMORY_IPC : DEVICE_MEMORY_VMM;
    for (uint32_t i = 0; i < DEVICES_MAX && answer->code == 0; i++) {
        if (!plan_uses_device(plan, i + 1) || cuda[i].can_export)
            continue;
        plan->device_memory = DEVICE_MEMORY_IPC;
        if (wish == MEMORY_VMM) {
            answer->code = -ENOTSUP;
            snprintf(answer->text, sizeof(answer->text),
                     "cuda:%u (%s) cannot export memory as descriptors; try --gpu-memory ipc", i, cuda[i].name);
        }
    }
    for (uint32_t i = 0; i < DEVICES_MAX; i++)
        cuda[i].memory = plan->device_memory == DEVICE_MEMORY_IPC ? CUDA_MEMORY_IPC : CUDA_MEMORY_VMM;
    answer->memory = plan->device_memory;
}

/* How each stage hands its activations to the next one. */
static void choose_edges(struct cuda *cuda, struct plan *plan, enum edges_wish wish, struct answer *answer)
{
    struct nccl nccl = {0};
    int has_nccl = 1; /* not looked for */
    for (uint32_t stage = 0; stage + 1 < plan->stage_count && answer->code == 0; stage++) {
        struct plan_slice *slice = &plan->slices[stage];
        bool joins_devices = slice->device != DEVICE_CPU && slice[1].device != DEVICE_CPU;
        bool reaches = joins_devices && cuda_reaches(&cuda[slice->device - 1], &cuda[slice[1].device - 1]);
        if (has_nccl > 0 && joins_devices && (wish == EDGES_NCCL || (wish == EDGES_AUTO && !reaches)))
            has_nccl = nccl_is_there(&nccl);
        slice->edge = wish == EDGES_HOST || !joins_devices ? EDGE_HOST
                      : reaches && wish != EDGES_NCCL      ? EDGE_DEVICE
                      : has_nccl == 0                      ? EDGE_NCCL
                                                           : EDGE_HOST;
        answer->edges[stage] = slice->edge;
        char names[2][16];
        const char *name = plan_device_name(slice->device, names[0]);
        const char *next = plan_device_name(slice[1].device, names[1]);
        if (wish == EDGES_DEVICE && slice->edge != EDGE_DEVICE) {
            answer->code = -ENOTSUP;
            snprintf(answer->text, sizeof(answer->text), "--edges device: %s cannot write to memory of %s; try auto",
                     name, next);
        } else if (wish == EDGES_NCCL && slice->edge != EDGE_NCCL) {
            answer->code = -ENOTSUP;
            snprintf(answer->text, sizeof(answer->text), "--edges nccl: %s to %s: %s; try auto", name, next,
                     joins_devices ? nccl.error : "NCCL joins CUDA devices");
        } else if (wish == EDGES_AUTO && joins_devices && slice->edge == EDGE_HOST && answer->text[0] == '\0') {
            snprintf(answer->text, sizeof(answer->text),
                     "%s does not reach memory of %s, and there is %s; activations go through shared memory", name,
                     next, nccl.error);
        }
    }
}

/* Memory for one region. */
static void take_region(struct cuda *cuda, uint32_t region, const struct layout *layout, struct birth *birth, int *fds,
                        struct answer *answer)
{
    const bool is_weights = region >= REGION_WEIGHTS, is_kv = !is_weights && region >= REGION_KV;
    const size_t bytes = layout->region_bytes[region];
    /* an edge's words: no step has come */
    const size_t cleared = is_weights || is_kv ? 0 : layout->edge_activations;
    int fd = answer->code == 0 ? cuda_create(cuda, bytes, cleared) : -1;
    if (fd >= 0) {
        birth_add(birth, fds, BIRTH_DEVICE, region, fd);
    } else if (answer->code == 0) {
        answer->code = fd;
        snprintf(answer->text, sizeof(answer->text), "%s: no %zu MiB for %s; %zu MiB were free at the start%s",
                 cuda->error, bytes >> 20,
                 is_weights ? "the weights of a stage"
                 : is_kv    ? "a stage's part of the KV cache"
                            : "activations between two stages",
                 cuda->free_bytes >> 20,
                 is_weights ? ""
                 : is_kv    ? "; lower --kv-memory"
                            : "; lower --max-num-batched-tokens");
    }
}

/* All that stages find on their devices. An edge lies on the device of its reader, or of its writer, where NCCL carries it. */
static void take_regions(struct cuda *cuda, const struct plan *plan, struct birth *birth, int *fds,
                         struct answer *answer)
{
    static const uint32_t own[] = {REGION_WEIGHTS, REGION_KV};
    struct layout layout;
    layout_compute(&layout, plan);
    for (uint32_t stage = 0; stage < plan->stage_count; stage++) {
        const struct plan_slice *slice = &plan->slices[stage];
        for (size_t i = 0; i < ARRAY_COUNT(own) && slice->device != DEVICE_CPU; i++)
            take_region(&cuda[slice->device - 1], own[i] + stage, &layout, birth, fds, answer);
        if (slice->edge != EDGE_HOST)
            take_region(&cuda[slice[slice->edge == EDGE_DEVICE].device - 1], REGION_EDGE + stage, &layout, birth, fds,
                        answer);
    }
}

/* Until nobody is left whose memory this is. */
_Noreturn static void hold(int socket)
{
    struct err err;
    char byte;
    ssize_t got;
    if (sandbox_enter_with_device(&err) != 0) {
        fprintf(stderr, "evenflow: %s\n", err.text);
        _exit(1); /* which the supervisor notices */
    }
    do {
        got = read(socket, &byte, 1);
    } while (got < 0 && errno == EINTR);
    _exit(0);
}

/* Nothing of the launcher's but the socket, no signals that are for others. */
static void be_alone(int socket)
{
    prctl(PR_SET_NAME, "evenflow-holder");
    setpgid(0, 0);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    if (socket > STDERR_FILENO + 1)
        close_range(STDERR_FILENO + 1, (unsigned)socket - 1, 0);
    close_range((unsigned)socket + 1, ~0u, 0);
}

_Noreturn static void be_child(const struct plan *given, const struct devices_wish *wish, int socket)
{
    static struct cuda cuda[DEVICES_MAX];
    static struct answer answer;
    static struct plan plan;
    struct birth birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    plan = *given;
    be_alone(socket);
    if (open_devices(cuda, &plan, &answer)) {
        plan.device_page_bytes = answer.page_bytes;
        choose_memory(cuda, &plan, wish->memory, &answer);
        choose_edges(cuda, &plan, wish->edges, &answer);
        take_regions(cuda, &plan, &birth, fds, &answer);
    }
    struct err err;
    bool is_sent = write(socket, &answer, sizeof(answer)) == (ssize_t)sizeof(answer) &&
                   (answer.code != 0 || birth_send(socket, &birth, fds, &err) == 0);
    if (is_sent && answer.code == 0 && answer.memory == DEVICE_MEMORY_IPC)
        hold(socket);
    _exit(is_sent ? 0 : 1);
}

/* ---- what they cost ---- */

struct measurement {
    int code; /* 0, or -errno with text: one cannot be opened */
    char text[ERR_TEXT_MAX];
    char failures[DEVICES_MAX][ERR_TEXT_MAX]; /* why one that was opened could not be measured; "": it was */
    struct cost costs[DEVICES_MAX];
};

/* The first of those before it that is the same; itself: none is. */
static uint32_t like(const struct cuda *cuda, uint32_t device)
{
    for (uint32_t i = 0; i < device; i++)
        if (cuda[i].library != NULL && cuda[i].capability == cuda[device].capability &&
            strncmp(cuda[i].name, cuda[device].name, sizeof(cuda[i].name)) == 0)
            return i;
    return device;
}

_Noreturn static void be_measuring(const bool is_used[DEVICES_MAX], const struct model_desc *desc,
                                   const struct kernels *kernels, int to)
{
    static struct cuda cuda[DEVICES_MAX];
    static struct measurement m;
    struct err err = {0};
    for (uint32_t i = 0; i < DEVICES_MAX && m.code == 0; i++) {
        if (!is_used[i])
            continue;
        m.code = cuda_open(&cuda[i], i);
        const uint32_t same = like(cuda, i);
        if (m.code != 0)
            err_set(&err, m.code, "%s%s", cuda[i].error,
                    m.code == -ENOENT ? "; is it installed? Stages on cpu need none" : "");
        else if (same != i)
            m.costs[i] = m.costs[same], memcpy(m.failures[i], m.failures[same], sizeof(m.failures[i]));
        else if (cost_measure_cuda(&m.costs[i], &cuda[i], desc, kernels, &err) != 0)
            memcpy(m.failures[i], err.text, sizeof(err.text));
    }
    snprintf(m.text, sizeof(m.text), "%s", err.text);
    _exit(write(to, &m, sizeof(m)) == (ssize_t)sizeof(m) ? 0 : 1);
}

/* In a child, which takes the devices' memory with it when it ends: nobody else is to know of the driver. A measurement that
 * fails is no reason not to start: whatever is wrong will be said by whoever computes there. */
static int measure_all(const bool is_used[DEVICES_MAX], const struct model_desc *desc, const struct kernels *kernels,
                       const struct cost *processor, struct cost costs[DEVICES_MAX], struct err *err)
{
    static struct measurement m;
    int sockets[2];
    ssize_t got;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "--devices: cannot create a socket: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0)
        be_measuring(is_used, desc, kernels, sockets[1]);
    int error = errno;
    close(sockets[1]);
    do {
        got = child < 0 ? 0 : recv(sockets[0], &m, sizeof(m), MSG_WAITALL);
    } while (got < 0 && errno == EINTR);
    close(sockets[0]);
    if (child < 0)
        return err_set(err, -error, "--devices: cannot fork: %s", strerror(error));
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        continue;
    const bool is_whole = got == (ssize_t)sizeof(m);
    if (is_whole && m.code != 0)
        return err_set(err, m.code, "--devices: %s", m.text);
    for (uint32_t i = 0; i < DEVICES_MAX; i++) {
        const bool is_measured = is_whole && m.failures[i][0] == '\0';
        costs[i] = is_measured ? m.costs[i] : *processor;
        if (is_used[i] && !is_measured)
            log_warn(
                "cuda:%u cannot be measured (%s); layers are split as if it were a processor: --split says otherwise",
                i, is_whole ? m.failures[i] : "the process that does it was lost");
    }
    return 0;
}

int devices_measure(const uint32_t devices[STAGES_MAX], uint32_t stage_count, const struct model_desc *desc,
                    const struct kernels *kernels, const struct cost *processor, struct cost measured[DEVICES_MAX],
                    const struct cost *costs[STAGES_MAX], struct err *err)
{
    bool is_used[DEVICES_MAX] = {false}, are_any = false;
    for (uint32_t stage = 0; stage < stage_count; stage++) {
        const uint32_t device = devices[stage];
        costs[stage] = device == DEVICE_CPU ? processor : &measured[device - 1];
        if (device != DEVICE_CPU)
            are_any = is_used[device - 1] = true;
    }
    return are_any ? measure_all(is_used, desc, kernels, processor, measured, err) : 0;
}

/* ---- the launcher ---- */

static int ask(int socket, pid_t child, struct answer *answer, struct err *err)
{
    ssize_t got;
    int status = 0;
    do {
        got = recv(socket, answer, sizeof(*answer), MSG_WAITALL);
    } while (got < 0 && errno == EINTR);
    bool stays = got == (ssize_t)sizeof(*answer) && answer->code == 0 && answer->memory == DEVICE_MEMORY_IPC;
    while (!stays && waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (got != (ssize_t)sizeof(*answer) || status != 0)
        return err_set(err, -ECHILD, "--devices: the process that opens them %s %d; does the driver work at all?",
                       WIFSIGNALED(status) ? "was ended by signal" : "left with status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return answer->code == 0 ? 0 : err_set(err, answer->code, "--devices: %s", answer->text);
}

int devices_take(struct plan *plan, const struct devices_wish *wish, struct device_kind kinds[DEVICES_MAX],
                 struct err *err)
{
    struct answer answer = {0};
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "--devices: cannot create a socket: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        close(sockets[0]);
        be_child(plan, wish, sockets[1]);
    }
    int error = errno;
    close(sockets[1]);
    int ret = child < 0 ? err_set(err, -error, "--devices: cannot fork: %s", strerror(error))
                        : ask(sockets[0], child, &answer, err);
    if (ret < 0) {
        close(sockets[0]);
        return ret;
    }
    plan->device_page_bytes = answer.page_bytes;
    plan->device_memory = answer.memory;
    if (answer.text[0] != '\0' && plan->log_level >= LOG_WARN)
        fprintf(stderr, "evenflow: %s\n", answer.text);
    memcpy(kinds, answer.kinds, sizeof(answer.kinds));
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        plan->slices[stage].edge = answer.edges[stage];
    return sockets[0];
}
