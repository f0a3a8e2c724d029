/* main_front.c - the process that clients talk to: see front.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/front.h"
#include "ipc/log.h"
#include "ipc/version.h"

int main(int argc, char **argv)
{
    int birth_socket = -1;
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--birth") == 0)
            birth_socket = atoi(argv[i + 1]);
    if (birth_socket < 0) {
        bool wants_help = argc > 1 && strcmp(argv[1], "--help") == 0;
        fprintf(wants_help ? stdout : stderr,
                "usage: evenflow-front --birth FD\nStarted by evenflow-supervisor; version " EVENFLOW_VERSION "\n");
        return wants_help ? 0 : 2;
    }

    struct arena arena;
    struct front *front;
    struct err err = {0};
    log_open("evenflow-front", LOG_INFO);
    if (arena_inherit(&arena, birth_socket, &err) != 0 || front_init(&front, &arena, &err) != 0) {
        log_error("%s", err.text);
        return 1;
    }
    log_open("evenflow-front", (enum log_level)arena.plan->log_level);
    base_seal();
    front_start(front);
    arena_set_state(&arena, PROCESS_READY);
    while (front_do_work(front, true) >= 0) {
    }
    front_free(front);
    return 0;
}
