#include "ipc/shm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u /* Linux 6.3; older kernels answer EINVAL */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; likewise */
#endif

int shm_create(const char *name, size_t bytes, struct err *err)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_set(err, -errno, "shared memory %s: cannot create it: %s", name, strerror(errno));
    int ret;
    if (ftruncate(fd, (off_t)bytes) != 0) {
        ret = err_set(err, -errno, "shared memory %s: cannot size it to %zu bytes: %s", name, bytes, strerror(errno));
        goto out_close;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
        ret = err_set(err, -errno, "shared memory %s: cannot seal its size: %s", name, strerror(errno));
        goto out_close;
    }
    return fd;
out_close:
    close(fd);
    return ret;
}

int shm_read_only(int fd, struct err *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int read_only = open(path, O_RDONLY | O_CLOEXEC);
    if (read_only < 0)
        return err_set(err, -errno, "shared memory: cannot open %s read-only: %s; is /proc mounted?", path,
                       strerror(errno));
    return read_only;
}

/* Large ones at addresses that huge pages need. */
static void *map(int fd, size_t bytes, int protection)
{
    if (bytes < HUGE_PAGE_BYTES)
        return mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    uint8_t *room = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    size_t before = align_up_u64((uintptr_t)room, HUGE_PAGE_BYTES) - (uintptr_t)room;
    void *memory = mmap(room + before, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    int error = errno;
    size_t end = before + align_up_u64(bytes, 4096);
    if (memory == MAP_FAILED || before > 0)
        munmap(room, memory == MAP_FAILED ? bytes + HUGE_PAGE_BYTES : before);
    if (memory != MAP_FAILED && end < bytes + HUGE_PAGE_BYTES)
        munmap(room + end, bytes + HUGE_PAGE_BYTES - end);
    errno = error;
    return memory;
}

/* Takes memory in huge pages as far as it goes: who streams through the weights looks up an address every 2 MiB, not every
 * 4 KiB. The system seldom gives them to shared memory unasked (transparent_hugepage/shmem_enabled: never), but where something
 * is there already, it puts it together when it is told to. All of it is a wish. */
static void take_huge_pages(uint8_t *memory, size_t bytes)
{
    size_t whole = bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    madvise(memory, bytes, MADV_HUGEPAGE);
    for (size_t at = 0; at < whole; at += HUGE_PAGE_BYTES)
        madvise(memory + at, 4096, MADV_POPULATE_WRITE);
    if (whole > 0)
        madvise(memory, whole, MADV_COLLAPSE);
}

void *shm_map(int fd, size_t bytes, int access, const char *name, struct err *err)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0) {
        err_set(err, -errno, "region %s: cannot look at descriptor %d: %s", name, fd, strerror(errno));
        return NULL;
    }
    if ((size_t)stat.st_size != bytes) {
        err_set(err, -EPROTO, "region %s: is %lld bytes, not %zu; mixed builds?", name, (long long)stat.st_size, bytes);
        return NULL;
    }
    int protection = PROT_READ | ((access & SHM_WRITE) ? PROT_WRITE : 0);
    void *memory = map(fd, bytes, protection);
    if (memory == MAP_FAILED) {
        err_set(err, -errno, "region %s: cannot map %zu bytes: %s", name, bytes, strerror(errno));
        return NULL;
    }
    if ((access & SHM_POPULATE) && (access & SHM_WRITE))
        take_huge_pages(memory, bytes);
    if ((access & SHM_POPULATE) &&
        madvise(memory, bytes, (access & SHM_WRITE) ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) != 0) {
        err_set(err, -errno, "region %s: cannot take %zu bytes of memory: %s", name, bytes, strerror(errno));
        munmap(memory, bytes);
        return NULL;
    }
    return memory;
}

int shm_seal(int fd, struct err *err)
{
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) != 0)
        return err_set(err, -errno, "shared memory: cannot seal descriptor %d: %s", fd, strerror(errno));
    return 0;
}

int shm_sealed_copy(const char *name, const void *content, size_t bytes, struct err *err)
{
    size_t room = align_up_u64(bytes, 4096);
    int fd = shm_create(name, room, err);
    if (fd < 0)
        return fd;
    void *memory = shm_map(fd, room, SHM_WRITE, name, err);
    int ret = memory != NULL ? 0 : -ENOMEM;
    if (ret == 0) {
        memcpy(memory, content, bytes);
        munmap(memory, room);
        ret = shm_seal(fd, err);
    }
    if (ret != 0) {
        close(fd);
        return ret;
    }
    return fd;
}

bool shm_is_sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_WRITE);
}
