/* main_sched.c - evenflow-sched: see sched_process.h. */
#include "engine/sched_process.h"
#include "ipc/birth.h"
#include "ipc/control.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"

int main(int argc, char **argv)
{
    static struct arena arena;
    static struct sched_process process;
    struct err err = {0};
    int socket = birth_argument(argc, argv);
    log_open("evenflow-sched", LOG_INFO);
    if (socket < 0 && (socket = control_attach(ROLE_SCHED, argc, argv, &err)) == -1)
        return birth_usage("evenflow-sched", argc, argv);
    if (socket < 0 || arena_inherit(&arena, socket, &err) != 0 || arena_take_over(&arena, &err) != 0) {
        log_error("%s", err.text);
        return 1;
    }
    log_open("evenflow-sched", (enum log_level)arena.plan->log_level);
    if (sched_process_open(&process, &arena, &err) != 0 || sandbox_enter(ROLE_SCHED, &err) != 0) {
        log_error("%s", err.text);
        return 1;
    }
    base_seal();
    arena_set_state(&arena, PROCESS_READY);
    while (arena_command(&arena) != COMMAND_STOP)
        if (sched_process_do_work(&process) == 0)
            sched_process_wait(&process);
    return sched_process_end(&process) ? 0 : 1;
}
