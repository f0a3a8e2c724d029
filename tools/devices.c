#include "tools/devices.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/layout.h"
#include "kernels/cuda.h"

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

/* ---- the child ---- */

/* What it says before it sends descriptors. */
struct answer {
    int code; /* 0, or -errno with text */
    char text[ERR_TEXT_MAX];
    uint64_t page_bytes;
    struct device_kind kinds[DEVICES_MAX];
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

/* Memory for one region of a stage. */
static void take_region(struct cuda *cuda, uint32_t region, size_t bytes, struct birth *birth, int *fds,
                        struct answer *answer)
{
    int fd = answer->code == 0 ? cuda_create(cuda, bytes) : -1;
    if (fd >= 0) {
        birth_add(birth, fds, BIRTH_DEVICE, region, fd);
    } else if (answer->code == 0) {
        answer->code = fd;
        snprintf(answer->text, sizeof(answer->text), "%s: no %zu MiB for %s; %zu MiB were free at the start%s",
                 cuda->error, bytes >> 20,
                 region >= REGION_WEIGHTS ? "the weights of a stage" : "a stage's part of the KV cache",
                 cuda->free_bytes >> 20, region >= REGION_WEIGHTS ? "" : "; lower --kv-memory");
    }
}

_Noreturn static void be_child(const struct plan *given, int socket)
{
    static struct cuda cuda[DEVICES_MAX];
    static struct answer answer;
    static struct plan plan;
    struct layout layout;
    struct birth birth = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    plan = *given;
    if (open_devices(cuda, &plan, &answer)) {
        plan.device_page_bytes = answer.page_bytes;
        layout_compute(&layout, &plan);
        for (uint32_t stage = 0; stage < plan.stage_count; stage++) {
            if (plan.slices[stage].device == DEVICE_CPU)
                continue;
            struct cuda *device = &cuda[plan.slices[stage].device - 1];
            static const uint32_t regions[] = {REGION_WEIGHTS, REGION_KV};
            for (size_t i = 0; i < ARRAY_COUNT(regions); i++)
                take_region(device, regions[i] + stage, layout.region_bytes[regions[i] + stage], &birth, fds, &answer);
        }
    }
    struct err err;
    bool is_sent = write(socket, &answer, sizeof(answer)) == (ssize_t)sizeof(answer) &&
                   (answer.code != 0 || birth_send(socket, &birth, fds, &err) == 0);
    _exit(is_sent ? 0 : 1);
}

/* ---- the launcher ---- */

static int ask(int socket, pid_t child, struct answer *answer, struct err *err)
{
    ssize_t got;
    int status = 0;
    do {
        got = recv(socket, answer, sizeof(*answer), MSG_WAITALL);
    } while (got < 0 && errno == EINTR);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        continue;
    if (got != (ssize_t)sizeof(*answer) || status != 0)
        return err_set(err, -ECHILD, "--devices: the process that opens them %s %d; does the driver work at all?",
                       WIFSIGNALED(status) ? "was ended by signal" : "left with status",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return answer->code == 0 ? 0 : err_set(err, answer->code, "--devices: %s", answer->text);
}

int devices_take(struct plan *plan, struct device_kind kinds[DEVICES_MAX], struct err *err)
{
    struct answer answer = {0};
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
        return err_set(err, -errno, "--devices: cannot create a socket: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        close(sockets[0]);
        be_child(plan, sockets[1]);
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
    memcpy(kinds, answer.kinds, sizeof(answer.kinds));
    return sockets[0];
}
