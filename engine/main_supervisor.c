/* main_supervisor.c - the process that holds everything and does nothing: see supervisor.h. */
#include <stdlib.h>
#include <string.h>

#include "engine/options.h"
#include "engine/supervisor.h"
#include "ipc/birth.h"
#include "ipc/control.h"
#include "ipc/log.h"
#include "ipc/version.h"

struct arguments {
    uint64_t plan, vocab, model, record, listen, keys, ledger, devices, ready_fd, carried;
};

static const struct option_spec specs[] = {
    {"plan-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, plan), "0", 0, 65535, "FD", "The sealed plan"},
    {"vocab-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, vocab), "0", 0, 65535, "FD",
     "The sealed vocabulary"},
    {"model-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, model), "0", 0, 65535, "FD", "The model file"},
    {"record-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, record), "0", 0, 65535, "FD",
     "What the scheduler records to; 0: nothing"},
    {"listen-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, listen), "0", 0, 65535, "FD",
     "A listening TCP socket; 0: none"},
    {"keys-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, keys), "0", 0, 65535, "FD",
     "The API keys for it; 0: none"},
    {"ledger-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, ledger), "0", 0, 65535, "FD",
     "The list of requests; 0: none is kept"},
    {"devices-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, devices), "0", 0, 65535, "FD",
     "A socket that holds descriptors of memory on devices; 0: none"},
    {"ready-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, ready_fd), "0", 0, 65535, "FD",
     "Gets a newline when everything is ready; 0: none"},
    {"carried-fd", NULL, 0, OPTION_NUMBER, offsetof(struct arguments, carried), "0", 0, 65535, "FD",
     "What the supervisor before has left in this process; instead of all others"},
};

int main(int argc, char **argv)
{
    const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};
    struct arguments arguments;
    struct err err = {0};
    char *positional[32];
    int positional_count;
    if (argc > 32)
        argc = 32;
    if (birth_build(argc, argv))
        return 0;
    int connection = control_attach(ROLE_SUPERVISOR, argc, argv, &err);
    if (connection != -1) {
        struct supervisor *attached;
        log_open("evenflow-standby", LOG_INFO);
        int outcome = connection < 0 ? connection : supervisor_attach(&attached, connection, &err);
        if (outcome == 0)
            return supervisor_run(attached);
        log_error("%s", err.text);
        return 1;
    }
    int ret = options_parse(&table, &arguments, argc - 1, argv + 1, positional, &positional_count, &err);
    if (ret == 1) {
        printf("usage: evenflow-supervisor --plan-fd FD --vocab-fd FD --model-fd FD\n"
               "       evenflow-supervisor --attach SOCKET\n"
               "Started by evenflow serve; with --attach the next supervisor of the engine there; "
               "version " EVENFLOW_VERSION "\n");
        options_print_help(&table, stdout);
        return 0;
    }
    if (ret == 0 && !arguments.carried &&
        (positional_count != 0 || !arguments.plan || !arguments.vocab || !arguments.model))
        ret = err_set(&err, -1, "needs --plan-fd, --vocab-fd and --model-fd; evenflow serve starts it with them");
    if (ret != 0) {
        fprintf(stderr, "evenflow-supervisor: %s\n", err.text);
        return 2;
    }
    struct supervisor_start start = {.plan = (int)arguments.plan,
                                     .vocab = (int)arguments.vocab,
                                     .model = (int)arguments.model,
                                     .record = arguments.record ? (int)arguments.record : -1,
                                     .listen = arguments.listen ? (int)arguments.listen : -1,
                                     .keys = arguments.keys ? (int)arguments.keys : -1,
                                     .ledger = arguments.ledger ? (int)arguments.ledger : -1,
                                     .devices = arguments.devices ? (int)arguments.devices : -1,
                                     .ready_fd = arguments.ready_fd ? (int)arguments.ready_fd : -1};
    struct supervisor *supervisor;
    log_open("evenflow-supervisor", LOG_INFO);
    ret = arguments.carried ? supervisor_resume(&supervisor, (int)arguments.carried, &err)
                            : supervisor_init(&supervisor, &start, &err);
    if (ret != 0) {
        log_error("%s", err.text);
        return 1;
    }
    return supervisor_run(supervisor);
}
