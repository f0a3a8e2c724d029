/* devices.h - which device each stage computes on, and the memory there that outlives every stage.
 *
 * Used by: the launcher, evenflow inspect.   Owns: nothing; the socket is the caller's. Blocks: devices_measure() and
 * devices_take(), while a child opens the devices (a second or so for each).
 *
 * The supervisor knows nothing of CUDA and cannot: so, before there is one, a child of the launcher opens the devices, takes
 * memory there for weights and KV of every stage and for what stages hand on without the processor, and leaves its
 * descriptors in a socket (a birth message of BIRTH_DEVICE items). Where memory lives as long as a descriptor of it does
 * (DEVICE_MEMORY_VMM), the child ends. Where it lives as long as the process that has taken it (DEVICE_MEMORY_IPC), the child
 * stays, as the holder: it does nothing, in a stage's sandbox, and ends when nobody has the socket's other end any more.
 */
#ifndef EVENFLOW_TOOLS_DEVICES_H
#define EVENFLOW_TOOLS_DEVICES_H

#include "ipc/plan.h"
#include "stages/cost.h"

/* "cuda:0,cpu,cuda:1" or "cuda:0": one for each stage, or one for all; "": all on the processor. 0, or -EINVAL with err. */
int devices_parse(const char *text, uint32_t stage_count, uint32_t devices[STAGES_MAX], struct err *err);

/* Of which kind a device is: "cuda90", compute capability 9.0. */
struct device_kind {
    char text[16];
};

/* How neighbours on devices hand activations on. */
enum edges_wish {
    EDGES_AUTO, /* through the reader's device where the writer's reaches it, else by NCCL if there is any, else by host */
    EDGES_HOST,   /* through shared memory */
    EDGES_DEVICE, /* through the reader's device, or not at all */
    EDGES_NCCL,   /* from the writer's device to the reader's by NCCL, or not at all */
};

/* What memory on devices is to live with. */
enum memory_wish {
    MEMORY_AUTO, /* with descriptors where every device can do that, else with a holder */
    MEMORY_VMM,
    MEMORY_IPC,
};

struct devices_wish {
    enum edges_wish edges;
    enum memory_wish memory;
};

/* "auto", "host", "device" or "nccl"; "auto", "vmm" or "ipc". 0, or -EINVAL with err. */
int devices_parse_wish(struct devices_wish *wish, const char *edges, const char *memory, struct err *err);

/* What layer and head cost on what each stage computes on, costs[stage]: `processor`, or what a child measures on its device,
 * one of each kind (a second or so for each device). `measured` is room for devices. 0, or -errno with err: one cannot be
 * opened. A device that cannot be measured is said, and taken for a processor. */
int devices_measure(const uint32_t devices[STAGES_MAX], uint32_t stage_count, const struct model_desc *desc,
                    const struct kernels *kernels, const struct cost *processor, struct cost measured[DEVICES_MAX],
                    const struct cost *costs[STAGES_MAX], struct err *err);

/* Takes the memory that the plan's slices need on their devices, and completes the plan: pages, edges, what memory lives
 * with, and in `kinds` of which kind each device is, by number. The socket, or -errno with err. */
int devices_take(struct plan *plan, const struct devices_wish *wish, struct device_kind kinds[DEVICES_MAX],
                 struct err *err);

#endif
