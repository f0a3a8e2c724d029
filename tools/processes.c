#include "tools/processes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t cpu_ns_of(uint32_t pid)
{
    char path[320];
    snprintf(path, sizeof(path), "/proc/%u/task", pid);
    DIR *tasks = opendir(path);
    uint64_t sum = 0;
    for (struct dirent *task; tasks != NULL && (task = readdir(tasks)) != NULL;) {
        unsigned long long cpu_ns;
        snprintf(path, sizeof(path), "/proc/%u/task/%s/schedstat", pid, task->d_name);
        FILE *file = task->d_name[0] != '.' ? fopen(path, "re") : NULL;
        if (file != NULL && fscanf(file, "%llu", &cpu_ns) == 1)
            sum += cpu_ns;
        if (file != NULL)
            fclose(file);
    }
    if (tasks != NULL)
        closedir(tasks);
    return sum;
}

static void take_text(char *target, size_t size, json_t *value)
{
    snprintf(target, size, "%s", json_is_string(value) ? json_string_value(value) : "?");
}

void engine_processes_read(struct engine_processes *processes, json_t *status)
{
    json_t *list = json_object_get(status, "processes");
    processes->count = 0;
    for (size_t i = 0; i < json_array_size(list) && i < ENGINE_PROCESSES_MAX; i++) {
        json_t *from = json_array_get(list, i);
        struct engine_process *process = &processes->list[processes->count++];
        take_text(process->role, sizeof(process->role), json_object_get(from, "role"));
        take_text(process->state, sizeof(process->state), json_object_get(from, "state"));
        process->index = (uint32_t)json_integer_value(json_object_get(from, "index"));
        process->pid = (uint32_t)json_integer_value(json_object_get(from, "pid"));
        process->restarts = (uint64_t)json_integer_value(json_object_get(from, "restarts"));
        process->steps = (uint64_t)json_integer_value(json_object_get(from, "steps"));
        process->cpu_ns = cpu_ns_of(process->pid);
    }
}
