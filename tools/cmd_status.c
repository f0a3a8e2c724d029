/* cmd_status.c - evenflow status: what a running engine says of itself (GET /status). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/config.h"
#include "tools/commands.h"

struct values {
    char socket[OPTION_TEXT_MAX];
    bool json;
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"json", NULL, 0, OPTION_FLAG, AT(json), NULL, 0, 0, "", "For programs"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

static const char *text_of(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

static void print_group(json_t *status, const char *name)
{
    json_t *group = json_object_get(status, name);
    if (!json_is_object(group))
        return;
    printf("%-10s", name);
    const char *key;
    json_t *value;
    json_object_foreach(group, key, value) {
        if (json_is_real(value))
            printf("  %s %.2f", key, json_real_value(value));
        else
            printf("  %s %lld", key, (long long)json_integer_value(value));
    }
    putchar('\n');
}

/* Shares of the time of the last few hundred steps. */
static void print_stages(json_t *stages)
{
    static const char *const columns[] = {"busy",     "no_work",         "uneven",
                                          "hand_off", "waiting_for_cpu", "prediction_error"};
    size_t i;
    json_t *stage;
    printf("%-8s %-8s %-8s", "stage", "device", "edge");
    for (size_t column = 0; column < ARRAY_COUNT(columns); column++)
        printf(" %16s", columns[column]);
    putchar('\n');
    json_array_foreach(stages, i, stage) {
        printf("%-8lld %-8s %-8s", (long long)json_integer_value(json_object_get(stage, "index")),
               text_of(stage, "device"), text_of(stage, "edge"));
        for (size_t column = 0; column < ARRAY_COUNT(columns); column++)
            printf(" %14.1f %%", 100 * json_number_value(json_object_get(stage, columns[column])));
        putchar('\n');
    }
    putchar('\n');
}

static void print_status(json_t *status)
{
    printf("evenflow %s, results identical for: %s\n\n", text_of(status, "version"), text_of(status, "fingerprint"));
    printf("%-12s %5s %8s %-9s %8s %10s %8s\n", "process", "index", "pid", "state", "restarts", "steps", "spare");
    size_t i;
    json_t *process;
    json_array_foreach(json_object_get(status, "processes"), i, process)
        printf("%-12s %5lld %8lld %-9s %8lld %10lld %8lld\n", text_of(process, "role"),
               (long long)json_integer_value(json_object_get(process, "index")),
               (long long)json_integer_value(json_object_get(process, "pid")), text_of(process, "state"),
               (long long)json_integer_value(json_object_get(process, "restarts")),
               (long long)json_integer_value(json_object_get(process, "steps")),
               (long long)json_integer_value(json_object_get(process, "spare")));
    putchar('\n');
    print_stages(json_object_get(status, "stages"));
    const char *key;
    json_t *value;
    json_object_foreach(status, key, value)
        if (json_is_object(value))
            print_group(status, key);
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional;
    (void)positional_count;
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    config_socket_path(socket, sizeof(socket), values->socket);
    struct err err;
    json_t *status = command_get(socket, "/status", &err);
    if (status == NULL)
        return command_fail(1, "status", err.text);
    if (values->json) {
        json_dumpf(status, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        print_status(status);
    }
    json_decref(status);
    return 0;
}

const struct subcommand command_status = {.name = "status",
                                          .usage = "[OPTIONS]",
                                          .help = "Shows the processes, queues and blocks of a running engine",
                                          .options = &table,
                                          .values_bytes = sizeof(struct values),
                                          .run = run};
