#include "tools/inside.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipc/shm.h"

/* A descriptor of that process with that name and number of bytes (0: any), opened anew for reading; -1: there is none.
 */
static int open_memory(pid_t pid, const char *name, size_t bytes)
{
    char folder[64], path[128], link[128], wanted[64];
    snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)pid);
    snprintf(wanted, sizeof(wanted), "/memfd:%s (deleted)", name);
    DIR *dir = opendir(folder);
    int found = -1;
    for (struct dirent *entry; dir != NULL && found < 0 && (entry = readdir(dir)) != NULL;) {
        struct stat stat;
        snprintf(path, sizeof(path), "%s/%.20s", folder, entry->d_name);
        ssize_t size = readlink(path, link, sizeof(link) - 1);
        if (size <= 0)
            continue;
        link[size] = '\0';
        if (strcmp(link, wanted) != 0)
            continue;
        found = open(path, O_RDONLY | O_CLOEXEC);
        if (found >= 0 && bytes != 0 && (fstat(found, &stat) != 0 || (size_t)stat.st_size != bytes)) {
            close(found);
            found = -1;
        }
    }
    if (dir != NULL)
        closedir(dir);
    return found;
}

/* Every region of stages has the same name: its head says which it is. */
static int map_stages(struct arena *arena, pid_t pid)
{
    char folder[64], path[128], link[128];
    snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(folder);
    uint32_t found = 0;
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        snprintf(path, sizeof(path), "%s/%.20s", folder, entry->d_name);
        ssize_t size = readlink(path, link, sizeof(link) - 1);
        if (size <= 0 || strncmp(link, "/memfd:evenflow-stage ", 22) != 0)
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct region_head head;
        bool is_read = fd >= 0 && pread(fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head);
        if (is_read && head.id >= REGION_STAGE && head.id < REGION_STAGE + arena->plan->stage_count &&
            arena->regions[head.id] == NULL) {
            arena->regions[head.id] = shm_map(fd, arena->layout.region_bytes[head.id], SHM_READ, "stage", NULL);
            found += arena->regions[head.id] != NULL;
        }
        if (fd >= 0)
            close(fd);
    }
    if (dir != NULL)
        closedir(dir);
    return found == arena->plan->stage_count ? 0 : -ENOENT;
}

const struct plan *inside_plan(pid_t supervisor, struct err *err)
{
    int fd = open_memory(supervisor, "evenflow-plan", 0);
    if (fd < 0) {
        err_set(err, -ENOENT, "process %d: its shared memory cannot be opened: %s", (int)supervisor, strerror(errno));
        return NULL;
    }
    const struct plan *plan = shm_map(fd, align_up_u64(sizeof(struct plan), 4096), SHM_READ, "plan", err);
    close(fd);
    return plan;
}

int inside_open(struct arena *arena, pid_t supervisor, struct err *err)
{
    static const struct {
        enum region_id id;
        const char *name;
    } single[] = {{REGION_SUP, "evenflow-sup"}, {REGION_FRONT, "evenflow-front"}, {REGION_SCHED, "evenflow-sched"}};
    *arena = (struct arena){.epoch = 1};
    arena->plan = inside_plan(supervisor, err);
    if (arena->plan == NULL)
        return -EPROTO;
    arena->regions[REGION_PLAN] = (uint8_t *)(uintptr_t)arena->plan;
    layout_compute(&arena->layout, arena->plan);
    for (size_t i = 0; i < ARRAY_COUNT(single); i++) {
        size_t bytes = arena->layout.region_bytes[single[i].id];
        int fd = open_memory(supervisor, single[i].name, bytes);
        arena->regions[single[i].id] = fd >= 0 ? shm_map(fd, bytes, SHM_READ, single[i].name, err) : NULL;
        if (fd >= 0)
            close(fd);
        if (arena->regions[single[i].id] == NULL)
            return err_set(err, -ENOENT, "process %d has no region %s; mixed builds?", (int)supervisor, single[i].name);
    }
    if (map_stages(arena, supervisor) != 0)
        return err_set(err, -ENOENT, "process %d: not every stage's region is there", (int)supervisor);
    return 0;
}

void inside_close(struct arena *arena)
{
    for (uint32_t id = 0; id < REGION_COUNT; id++)
        if (arena->regions[id] != NULL)
            munmap(arena->regions[id],
                   id == REGION_PLAN ? align_up_u64(sizeof(struct plan), 4096) : arena->layout.region_bytes[id]);
    *arena = (struct arena){0};
}

int64_t inside_files_of(pid_t pid)
{
    char folder[64];
    int64_t count = 0;
    snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(folder);
    if (dir == NULL)
        return -1;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

int64_t inside_memory_kb_of(pid_t pid)
{
    char path[64], line[256];
    long long kb = -1;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "RssAnon: %lld", &kb) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kb;
}

int64_t inside_shared_kb_of(pid_t pid)
{
    char folder[64], path[128], link[128];
    ino_t seen[4 * REGION_COUNT];
    size_t count = 0;
    int64_t blocks = 0;
    snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        struct stat info;
        snprintf(path, sizeof(path), "%s/%.20s", folder, entry->d_name);
        ssize_t size = readlink(path, link, sizeof(link) - 1);
        bool is_memory = size > 7 && memcmp(link, "/memfd:", 7) == 0 && stat(path, &info) == 0;
        for (size_t i = 0; is_memory && i < count; i++) /* most are open twice */
            is_memory = seen[i] != info.st_ino;
        if (!is_memory || count == ARRAY_COUNT(seen))
            continue;
        seen[count++] = info.st_ino;
        blocks += info.st_blocks;
    }
    if (dir != NULL)
        closedir(dir);
    return blocks / 2;
}
