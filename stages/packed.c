#include "stages/packed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "ipc/version.h"

#define PACKED_MAGIC 0x3130474b43415045ull /* "EPACKG01" */
#define PIECE_BYTES  (1u << 20)            /* is hashed at a time */
#define PATH_BYTES   1024u

/* ---- names ---- */

static uint64_t hash_bytes(const void *data, size_t bytes) /* a multiple of four */
{
    return hash_floats(data, bytes / sizeof(float));
}

static uint64_t hash_text(const char *text)
{
    char room[PATH_BYTES] = {0};
    strncpy(room, text, sizeof(room) - 1);
    return hash_bytes(room, sizeof(room));
}

bool packed_path(char *path, size_t size, const char *model_path)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool has_cache = cache != NULL && cache[0] == '/'; /* others are to be ignored, the XDG specification says */
    if (!has_cache && (home == NULL || home[0] != '/'))
        return false;
    const char *slash = strrchr(model_path, '/'), *name = slash != NULL ? slash + 1 : model_path;
    int length = snprintf(path, size, "%s%s/evenflow/%.100s-%08x.weights", has_cache ? cache : home,
                          has_cache ? "" : "/.cache", name, (unsigned)hash_text(model_path));
    return length > 0 && (size_t)length < size;
}

static uint64_t key_of(const struct model_desc *desc, const struct gguf *gguf)
{
    const uint64_t words[] = {gguf_identity(gguf), hash_text(version_numerics),
                              model_slice_bytes(desc, 0, desc->layers)};
    return hash_bytes(words, sizeof(words));
}

/* ---- what is in it ---- */

/* The content, and what each member of a team makes of it. */
struct content {
    uint8_t *memory;
    size_t bytes;
    uint64_t *hashes; /* of each piece */
    struct team *team;
    struct model_slice slice; /* to be packed */
    const struct model_desc *desc;
    const struct gguf *gguf;
    const struct onlooker *onlooker; /* NULL: none */
};

static void hash_pieces(void *context, uint32_t part)
{
    struct content *content = context;
    uint32_t first,
        count = team_share(content->team, part, (uint32_t)div_up_u64(content->bytes, PIECE_BYTES), 1, &first);
    for (uint32_t i = first; i < first + count; i++) {
        size_t at = (size_t)i * PIECE_BYTES;
        content->hashes[i] = hash_bytes(content->memory + at, min_u64(content->bytes - at, PIECE_BYTES));
        if (part == 0 && content->onlooker != NULL)
            content->onlooker->tell(content->onlooker->context, i + 1, count);
    }
}

static uint64_t hash_content(struct content *content)
{
    uint32_t pieces = (uint32_t)div_up_u64(content->bytes, PIECE_BYTES);
    content->hashes = base_alloc(pieces * sizeof(*content->hashes));
    team_run(content->team, hash_pieces, content);
    uint64_t hash = hash_bytes(content->hashes, pieces * sizeof(*content->hashes));
    free(content->hashes);
    return hash;
}

static void pack_share(void *context, uint32_t part)
{
    const struct content *content = context;
    model_pack(&content->slice, content->desc, content->gguf, content->team, part, content->onlooker);
}

/* ---- reading ---- */

/* The head of an open file. -ENOENT: it is not what is looked for. */
static int read_head(int fd, uint64_t key, uint64_t bytes, struct packed_head *head)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0 || pread(fd, head, sizeof(*head), 0) != (ssize_t)sizeof(*head))
        return -ENOENT;
    if (head->magic != PACKED_MAGIC || head->key != key)
        return -ENOENT;
    return head->bytes == bytes && (uint64_t)stat.st_size == PACKED_START + bytes ? 0 : -EBADMSG;
}

static int open_file(const char *path, const struct model_desc *desc, const struct gguf *gguf, struct packed_head *head)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -ENOENT;
    int ret = read_head(fd, key_of(desc, gguf), model_slice_bytes(desc, 0, desc->layers), head);
    if (ret < 0)
        close(fd);
    return ret < 0 ? ret : fd;
}

int packed_check(const char *path, const struct model_desc *desc, const struct gguf *gguf, struct team *team,
                 const struct onlooker *onlooker)
{
    struct packed_head head;
    int fd = open_file(path, desc, gguf, &head);
    if (fd < 0)
        return fd;
    void *file = mmap(NULL, PACKED_START + head.bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED)
        return -ENOENT;
    struct content content = {
        .memory = (uint8_t *)file + PACKED_START, .bytes = head.bytes, .team = team, .onlooker = onlooker};
    int ret = hash_content(&content) == head.hash ? 0 : -EBADMSG;
    munmap(file, PACKED_START + head.bytes);
    return ret;
}

static int read_all(int fd, void *memory, size_t bytes, size_t from)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, (uint8_t *)memory + done, bytes - done, (off_t)(PACKED_START + from + done));
        if (got <= 0 && errno != EINTR)
            return got < 0 ? -errno : -EIO;
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

int packed_copy(const char *path, const struct model_desc *desc, const struct gguf *gguf, uint32_t first,
                uint32_t count, void *memory)
{
    struct packed_head head;
    struct model_range ranges[MODEL_RANGES_MAX];
    int fd = open_file(path, desc, gguf, &head), ret = 0;
    if (fd < 0)
        return fd;
    uint32_t range_count = model_slice_ranges(desc, first, count, ranges);
    uint8_t *to = memory;
    for (uint32_t i = 0; i < range_count && ret == 0; i++) {
        ret = read_all(fd, to, ranges[i].bytes, ranges[i].from);
        to += ranges[i].bytes;
    }
    close(fd);
    return ret;
}

/* ---- writing ---- */

/* The file under its other name, locked. Whoever published it meanwhile took the name away from what we locked. */
static int open_unfinished(const char *path, struct err *err)
{
    for (;;) {
        struct stat locked, named;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return err_set(err, -errno, "cannot create %s: %s", path, strerror(errno));
        int ret = flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : err_set(err, -EBUSY, "another engine is writing it");
        if (ret == 0 && fstat(fd, &locked) == 0 && stat(path, &named) == 0 && locked.st_ino == named.st_ino)
            return fd;
        close(fd);
        if (ret < 0)
            return ret;
    }
}

/* Blocks on the disk for all of it, or none: memory that is mapped to a full disk would end the process. */
static int take_room(int fd, const char *path, size_t bytes, struct err *err)
{
    struct statvfs disk;
    if (ftruncate(fd, 0) != 0 || fstatvfs(fd, &disk) != 0)
        return err_set(err, -errno, "cannot write %s: %s", path, strerror(errno));
    if ((uint64_t)disk.f_bavail * disk.f_frsize < 2 * bytes)
        return err_set(err, -ENOSPC, "%s would take %zu MiB of %llu that are free", path, bytes >> 20,
                       (unsigned long long)disk.f_bavail * disk.f_frsize >> 20);
    int ret = posix_fallocate(fd, 0, (off_t)bytes);
    return ret == 0 ? 0 : err_set(err, -ret, "cannot write %s: %s", path, strerror(ret));
}

static int fill(int fd, const struct model_desc *desc, const struct gguf *gguf, struct team *team, size_t bytes,
                const struct onlooker *onlooker, struct err *err)
{
    uint8_t *file = mmap(NULL, PACKED_START + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED)
        return err_set(err, -errno, "cannot map it: %s", strerror(errno));
    struct content content = {
        .memory = file + PACKED_START, .bytes = bytes, .team = team, .desc = desc, .gguf = gguf, .onlooker = onlooker};
    model_bind(&content.slice, desc, 0, desc->layers, content.memory);
    team_run(team, pack_share, &content);
    model_unbind(&content.slice);
    content.onlooker = NULL; /* what is left is short */
    *(struct packed_head *)(void *)file = (struct packed_head){
        .magic = PACKED_MAGIC, .key = key_of(desc, gguf), .bytes = bytes, .hash = hash_content(&content)};
    munmap(file, PACKED_START + bytes);
    return 0;
}

/* The folder of the file, and the one above it. */
static void make_folders(const char *path)
{
    char folder[PATH_BYTES];
    snprintf(folder, sizeof(folder), "%s", path);
    *strrchr(folder, '/') = '\0';
    if (mkdir(folder, 0700) == 0 || errno != ENOENT)
        return;
    char *slash = strrchr(folder, '/');
    *slash = '\0';
    mkdir(folder, 0700);
    *slash = '/';
    mkdir(folder, 0700); /* what could not be made is said when the file cannot */
}

int packed_make(const char *path, const struct model_desc *desc, const struct gguf *gguf, struct team *team,
                const struct onlooker *onlooker, struct err *err)
{
    char unfinished[PATH_BYTES + 8];
    size_t bytes = model_slice_bytes(desc, 0, desc->layers);
    make_folders(path);
    snprintf(unfinished, sizeof(unfinished), "%s.new", path);
    int fd = open_unfinished(unfinished, err);
    if (fd < 0)
        return fd;
    int ret = take_room(fd, unfinished, PACKED_START + bytes, err);
    ret = ret ? ret : fill(fd, desc, gguf, team, bytes, onlooker, err);
    if (ret == 0 && rename(unfinished, path) != 0)
        ret = err_set(err, -errno, "cannot rename %s: %s", unfinished, strerror(errno));
    if (ret != 0)
        unlink(unfinished);
    close(fd); /* and with it the lock */
    return ret;
}
