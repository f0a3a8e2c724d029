#include "ipc/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ipc/commit.h"

static size_t file_bytes(uint32_t entry_count)
{
    return LEDGER_HEAD_BYTES + (size_t)entry_count * sizeof(struct ledger_entry_shm);
}

/* FNV-1a of all but the commit word. */
static uint64_t checksum(const struct ledger_entry_shm *entry)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = sizeof(entry->commit); i < sizeof(*entry); i++)
        hash = (hash ^ ((const uint8_t *)entry)[i]) * 0x100000001b3;
    return hash ? hash : 1;
}

/* ---- launcher ---- */

static int check_file(int fd, const char *path, struct err *err)
{
    struct stat stat;
    struct ledger_head_shm head;
    if (fstat(fd, &stat) != 0)
        return err_set(err, -errno, "--state: %s: %s", path, strerror(errno));
    if (S_ISREG(stat.st_mode) && stat.st_size == 0)
        return 0; /* just made */
    bool is_list = S_ISREG(stat.st_mode) && pread(fd, &head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
                   head.magic == LEDGER_MAGIC && head.entry_bytes == sizeof(struct ledger_entry_shm) &&
                   head.entry_count <= LEDGER_ENTRIES_MAX;
    if (!is_list)
        return err_set(err, -EPROTO,
                       "--state: %s is no list of requests of this build; move it away, or give another directory",
                       path);
    return 0;
}

int ledger_open(const char *directory, struct err *err)
{
    char path[1200];
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return err_set(err, -errno, "--state %s: cannot create it: %s", directory, strerror(errno));
    snprintf(path, sizeof(path), "%s/requests", directory);
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, -errno, "--state: cannot open %s: %s", path, strerror(errno));
    int ret = flock(fd, LOCK_EX | LOCK_NB) == 0
                  ? check_file(fd, path, err)
                  : err_set(err, -EBUSY, "--state %s: a running engine keeps its list there; give another directory",
                            directory);
    if (ret != 0)
        close(fd);
    return ret ? ret : fd;
}

int ledger_left(int fd, uint32_t index, struct ledger_entry_shm *entry)
{
    struct ledger_head_shm head;
    if (pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) || index >= head.entry_count ||
        pread(fd, entry, sizeof(*entry), (off_t)file_bytes(index)) != (ssize_t)sizeof(*entry))
        return -ENOENT;
    if (entry->commit == 0)
        return 0;
    return entry->commit == checksum(entry) && memchr(entry->client_id, '\0', sizeof(entry->client_id)) ? 1 : -EBADMSG;
}

int ledger_begin(int fd, uint32_t entry_count, struct err *err)
{
    struct ledger_head_shm head = {.magic = LEDGER_MAGIC,
                                   .entry_bytes = sizeof(struct ledger_entry_shm),
                                   .entry_count = entry_count,
                                   .begun_s = (uint64_t)time(NULL)};
    check(entry_count <= LEDGER_ENTRIES_MAX);
    int error = ftruncate(fd, 0) != 0 || pwrite(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) ? errno : 0;
    /* all of it now: a page that a full disk had no room for would be the end of whoever writes there */
    error = error ? error : posix_fallocate(fd, 0, (off_t)file_bytes(entry_count));
    if (error != 0)
        return err_set(err, -error, "cannot begin a list of %u requests (%zu KiB): %s", entry_count,
                       file_bytes(entry_count) >> 10, strerror(error));
    return 0;
}

/* ---- front ---- */

int ledger_map(struct ledger *ledger, int fd, uint32_t entry_count, struct err *err)
{
    struct stat stat;
    *ledger = (struct ledger){0};
    if (fd < 0)
        return 0;
    if (fstat(fd, &stat) != 0 || (size_t)stat.st_size < file_bytes(entry_count))
        return err_set(err, -EPROTO, "the list of requests has no room for %u; was it changed by somebody?",
                       entry_count);
    uint8_t *memory = mmap(NULL, file_bytes(entry_count), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return err_set(err, -errno, "the list of requests: cannot map it: %s", strerror(errno));
    *ledger = (struct ledger){(struct ledger_entry_shm *)(void *)(memory + LEDGER_HEAD_BYTES), entry_count};
    return 0;
}

void ledger_put(struct ledger *ledger, uint32_t slot, const struct request_shm *request, bool is_chat,
                const char *client_id)
{
    if (ledger->entries == NULL)
        return;
    check(slot < ledger->count);
    struct ledger_entry_shm entry = {.id = request->id,
                                     .accepted_s = request->created_s,
                                     .is_chat = is_chat,
                                     .prompt_tokens = request->prompt_tokens,
                                     .max_tokens = request->max_tokens,
                                     .choices = request->choices};
    snprintf(entry.client_id, sizeof(entry.client_id), "%s", client_id);
    ledger->entries[slot] = entry;
    commit_u64(&ledger->entries[slot].commit, checksum(&entry), FAULT_LEDGER_PUT);
}

void ledger_clear(struct ledger *ledger, uint32_t slot)
{
    if (ledger->entries == NULL)
        return;
    check(slot < ledger->count);
    if (ledger->entries[slot].commit != 0)
        commit_u64(&ledger->entries[slot].commit, 0, FAULT_LEDGER_CLEAR);
}
