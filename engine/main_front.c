/* main_front.c - the process that clients talk to: see front.h. */
#include "engine/front.h"
#include "ipc/birth.h"
#include "ipc/control.h"
#include "ipc/log.h"
#include "ipc/sandbox.h"

int main(int argc, char **argv)
{
    int birth_socket = birth_argument(argc, argv);
    struct arena arena;
    struct front *front;
    struct err err = {0};
    log_open("evenflow-front", LOG_INFO);
    if (birth_socket < 0 && (birth_socket = control_attach(ROLE_FRONT, argc, argv, &err)) == -1)
        return birth_usage("evenflow-front", argc, argv);
    if (birth_socket < 0 || arena_inherit(&arena, birth_socket, &err) != 0 ||
        front_prepare(&front, &arena, &err) != 0 || arena_take_over(&arena, &err) != 0 ||
        front_begin(front, &err) != 0) {
        log_error("%s", err.text);
        return 1;
    }
    log_open("evenflow-front", (enum log_level)arena.plan->log_level);
    base_seal();
    if (sandbox_enter(ROLE_FRONT, &err) != 0) {
        log_error("%s", err.text);
        return 1;
    }
    front_start(front);
    arena_set_state(&arena, PROCESS_READY);
    while (front_do_work(front, true) >= 0) {
    }
    front_free(front);
    return 0;
}
