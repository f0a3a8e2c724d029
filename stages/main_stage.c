/* evenflow-stage: one stage of the pipeline. Started by the supervisor, with one socket to be born from. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "ipc/arena.h"
#include "ipc/birth.h"
#include "ipc/control.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"
#include "stages/stage.h"

/* The calling thread on the index-th core that this process may use. */
static void pin(uint32_t index)
{
    cpu_set_t allowed, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
        return;
    for (int core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &allowed) || index-- > 0)
            continue;
        CPU_SET(core, &one);
        if (sched_setaffinity(0, sizeof(one), &one) != 0)
            log_warn("cannot be pinned to core %d", core);
        return;
    }
}

static int fail(const struct err *err)
{
    log_error("%s", err->text);
    return 1;
}

/* Each thread of a stage has a core of its own, where there are enough; those for while the others wait have the next
 * stages', behind the last one the first one's. */
static void start_thread(void *context, uint32_t part)
{
    const struct arena *arena = context;
    const struct plan *plan = arena->plan;
    if (plan->pin)
        pin((arena->index * plan->threads_per_stage + part) % (plan->stage_count * plan->threads_per_stage));
    kernels_thread_init();
}

static bool is_on_device(const struct arena *arena)
{
    return arena->plan->slices[arena->index].device != DEVICE_CPU;
}

/* A spare does all that it can before its life begins; memory of a device is mapped by whoever may write it. */
static bool can_prepare(const struct arena *arena)
{
    return arena->is_spare && !is_on_device(arena);
}

static int open_teams(struct arena *arena, struct team **own, struct team **lone, struct err *err)
{
    const struct plan *plan = arena->plan;
    if (is_on_device(arena)) {
        kernels_thread_init(); /* not pinned: the driver's threads would inherit its core */
        return 0;
    }
    int ret = team_open(own, plan->threads_per_stage, start_thread, arena, err);
    if (ret == 0 && plan->lone_threads > plan->threads_per_stage)
        ret = team_open(lone, plan->lone_threads, start_thread, arena, err);
    if (ret == 0)
        start_thread(arena, 0); /* behind the others: they would inherit its core */
    return ret;
}

static int open_model(struct stage *stage, struct arena *arena, struct err *err)
{
    const struct kernels *kernels = kernels_pick(arena->plan->isa);
    if (kernels == NULL)
        return err_set(err, -ENOTSUP, "instruction path \"%s\" is not one of this processor", arena->plan->isa);
    struct team *own = NULL, *lone = NULL;
    int teams = open_teams(arena, &own, &lone, err);
    if (teams < 0)
        return teams;
    struct gguf *gguf;
    int ret = gguf_open_fd(&gguf, arena->model, arena->plan->model_path, err);
    if (ret < 0)
        return ret;
    ret = stage_init(stage, arena, kernels, own, gguf, err);
    if (ret == 0 && lone != NULL)
        forward_lend(&stage->forward, lone);
    gguf_close(gguf);
    close(arena->model);
    return ret;
}

static int open_timed(struct stage *stage, struct arena *arena, struct err *err)
{
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond: sleep until the moment, not until it suits others too */
    close(arena->model);
    return stage_init(stage, arena, NULL, NULL, NULL, err);
}

int main(int argc, char **argv)
{
    static struct arena arena;
    static struct stage stage;
    static char name[32] = "evenflow-stage";
    struct err err = {0};

    int socket = birth_argument(argc, argv);
    log_open(name, LOG_INFO);
    if (socket < 0 && (socket = control_attach(ROLE_STAGE, argc, argv, &err)) == -1)
        return birth_usage("evenflow-stage", argc, argv);
    if (socket < 0 || arena_inherit(&arena, socket, &err) < 0 ||
        (!can_prepare(&arena) && arena_take_over(&arena, &err) < 0))
        return fail(&err);
    snprintf(name, sizeof(name), "evenflow-stage[%u]", arena.index);
    log_open(name, (enum log_level)arena.plan->log_level);

    int ret =
        arena.plan->backend == BACKEND_TIMED ? open_timed(&stage, &arena, &err) : open_model(&stage, &arena, &err);
    if (ret < 0 || (can_prepare(&arena) && arena_take_over(&arena, &err) < 0))
        return fail(&err);
    stage_begin(&stage);
    ret = plan_uses_nccl(arena.plan, arena.index) ? sandbox_enter_with_nccl(&err)
          : is_on_device(&arena)                  ? sandbox_enter_with_device(&err)
                                                  : sandbox_enter(ROLE_STAGE, &err);
    if (ret != 0)
        return fail(&err);
    base_seal();
    if (stage_join(&stage) < 0)
        return 1;
    arena_set_state(&arena, PROCESS_READY);

    while (arena_command(&arena) != COMMAND_STOP) {
        int done = stage_do_work(&stage);
        if (done < 0)
            return 1;
        if (done == 0)
            stage_wait(&stage);
    }
    stage_end(&stage);
    return 0;
}
