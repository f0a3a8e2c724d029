#include "engine/supervisor_inside.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc/birth.h"
#include "ipc/shm.h"

int supervisor_create_region(struct supervisor *s, uint32_t id, const char *name, struct err *err)
{
    struct region *region = &s->regions[id];
    size_t bytes = s->layout.region_bytes[id];
    if (bytes == 0)
        return 0;
    region->fd = shm_create(name, bytes, err);
    if (region->fd < 0)
        return region->fd;
    region->read_only = shm_read_only(region->fd, err);
    return region->read_only < 0 ? region->read_only : 0;
}

int supervisor_write_head(struct supervisor *s, uint32_t id, uint32_t epoch, struct err *err)
{
    struct region_head head = {.magic = REGION_MAGIC,
                               .layout_hash = LAYOUT_HASH,
                               .bytes = s->layout.region_bytes[id],
                               .id = id,
                               .epoch = epoch};
    if (pwrite(s->regions[id].fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head))
        return err_set(err, -errno, "shared memory: cannot write the head of region %u: %s", id, strerror(errno));
    return 0;
}

/* The process block of a region, mapped read-only together with what stands before it. */
static int watch_process(struct supervisor *s, enum role role, uint32_t index, uint32_t region, size_t offset,
                         struct err *err)
{
    size_t bytes = offset + sizeof(struct process_shm);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, s->regions[region].read_only, 0);
    if (memory == MAP_FAILED)
        return err_set(err, -errno, "shared memory: cannot map region %u: %s", region, strerror(errno));
    s->processes[process_number(role, index)] = (const struct process_shm *)(const void *)(memory + offset);
    return 0;
}

/* Memory of devices was taken before there was a supervisor, which knows nothing of any: its descriptors lie in a socket. The
 * socket's other end is the holder's, where there is one: it lives as long as this end is open somewhere. */
static int take_device_regions(struct supervisor *s, int devices, struct err *err)
{
    struct birth birth = {0};
    int fds[BIRTH_ITEMS_MAX];
    int ret = devices >= 0 ? birth_receive(devices, &birth, fds, err) : 0;
    if (devices >= 0 && s->plan->device_memory == DEVICE_MEMORY_IPC)
        s->holder = devices;
    else if (devices >= 0)
        close(devices);
    for (uint32_t i = 0; ret == 0 && i < birth.item_count; i++) {
        if (birth.items[i].kind != BIRTH_DEVICE || birth.items[i].number >= REGION_COUNT)
            ret = err_set(err, -EPROTO, "devices: item of kind %u; mixed builds?", birth.items[i].kind);
        else
            s->regions[birth.items[i].number] = (struct region){fds[i], -1};
    }
    for (uint32_t stage = 0; ret == 0 && stage < s->plan->stage_count; stage++)
        if (s->plan->slices[stage].device != DEVICE_CPU &&
            (s->regions[REGION_KV + stage].fd <= 0 || s->regions[REGION_WEIGHTS + stage].fd <= 0 ||
             (s->plan->slices[stage].edge != EDGE_HOST && s->regions[REGION_EDGE + stage].fd <= 0)))
            ret = err_set(err, -EPROTO, "devices: there is no memory for stage %u", stage);
    return ret;
}

int supervisor_create_regions(struct supervisor *s, int devices, struct err *err)
{
    static const struct {
        uint32_t id;
        const char *name;
        bool has_head;
    } single[] = {{REGION_SUP, "evenflow-sup", true},
                  {REGION_FRONT, "evenflow-front", true},
                  {REGION_CONNS, "evenflow-conns", false},
                  {REGION_IO, "evenflow-io", false},
                  {REGION_SCHED, "evenflow-sched", true}};
    int ret = take_device_regions(s, devices, err);
    for (size_t i = 0; i < ARRAY_COUNT(single) && ret == 0; i++) {
        ret = supervisor_create_region(s, single[i].id, single[i].name, err);
        if (ret == 0 && single[i].has_head)
            ret = supervisor_write_head(s, single[i].id, 1, err);
    }
    for (uint32_t stage = 0; stage < s->plan->stage_count && ret == 0; stage++) {
        ret = supervisor_create_region(s, REGION_STAGE + stage, "evenflow-stage", err);
        ret = ret ? ret : supervisor_write_head(s, REGION_STAGE + stage, 1, err);
        if (s->plan->slices[stage].device == DEVICE_CPU) {
            ret = ret ? ret : supervisor_create_region(s, REGION_KV + stage, "evenflow-kv", err);
            ret = ret ? ret : supervisor_create_region(s, REGION_WEIGHTS + stage, "evenflow-weights", err);
        }
    }
    return ret ? ret : supervisor_map(s, err);
}

int supervisor_map(struct supervisor *s, struct err *err)
{
    int ret = 0;
    for (uint32_t stage = 0; stage < s->plan->stage_count && ret == 0; stage++)
        ret = watch_process(s, ROLE_STAGE, stage, REGION_STAGE + stage, s->layout.stage_process, err);
    ret = ret ? ret : watch_process(s, ROLE_FRONT, 0, REGION_FRONT, s->layout.front_process, err);
    ret = ret ? ret : watch_process(s, ROLE_SCHED, 0, REGION_SCHED, s->layout.sched_process, err);
    if (ret != 0)
        return ret;
    s->shm =
        shm_map(s->regions[REGION_SUP].fd, s->layout.region_bytes[REGION_SUP], SHM_WRITE | SHM_POPULATE, "sup", err);
    return s->shm != NULL ? 0 : -EPROTO;
}

int supervisor_create_bells(struct supervisor *s, struct err *err)
{
    for (uint32_t i = 0; i < s->process_count; i++) {
        s->bells[i] = eventfd(0, EFD_CLOEXEC);
        if (s->bells[i] < 0)
            return err_set(err, -errno, "doorbell: cannot create an eventfd: %s", strerror(errno));
    }
    return 0;
}
