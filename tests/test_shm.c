#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "ipc/shm.h"

#define BYTES (4 * HUGE_PAGE_BYTES + 4096)

/* Whether the system puts shared memory into huge pages when it is told to. */
static bool has_huge_pages(void)
{
    char line[128] = "";
    unsigned major = 0, minor = 0;
    struct utsname system;
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "r");
    if (file != NULL) {
        if (fgets(line, sizeof(line), file) == NULL)
            line[0] = '\0';
        fclose(file);
    }
    cr_assert_eq(uname(&system), 0);
    cr_assert_eq(sscanf(system.release, "%u.%u", &major, &minor), 2);
    return line[0] != '\0' && strstr(line, "[deny]") == NULL && (major > 6 || (major == 6 && minor >= 1));
}

/* Bytes of this mapping that huge pages map. */
static size_t huge_bytes(const void *memory)
{
    char line[256];
    bool is_inside = false;
    size_t kilobytes = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    cr_assert_not_null(file);
    while (fgets(line, sizeof(line), file) != NULL) {
        uintptr_t from, to;
        size_t here;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            is_inside = (uintptr_t)memory >= from && (uintptr_t)memory < to;
        else if (is_inside && sscanf(line, "ShmemPmdMapped: %zu kB", &here) == 1)
            kilobytes += here;
    }
    fclose(file);
    return kilobytes << 10;
}

Test(shm, large_memory_lies_in_huge_pages_where_the_system_has_them_and_stays_there_when_sealed)
{
    struct err err = {0};
    int fd = shm_create("test", BYTES, &err);
    cr_assert_geq(fd, 0, "%s", err.text);
    uint8_t *memory = shm_map(fd, BYTES, SHM_WRITE | SHM_POPULATE, "test", &err);
    cr_assert_not_null(memory, "%s", err.text);
    for (size_t i = 0; i < BYTES; i += 4096)
        cr_assert_eq(memory[i], 0);
    bool is_huge = huge_bytes(memory) > 0;
    memset(memory, 7, BYTES);
    munmap(memory, BYTES);
    cr_assert_eq(shm_seal(fd, &err), 0, "%s", err.text);
    memory = shm_map(fd, BYTES, SHM_READ | SHM_POPULATE, "test", &err);
    cr_assert_not_null(memory, "%s", err.text);
    for (size_t i = 0; i < BYTES; i += 4096)
        cr_assert_eq(memory[i], 7);
    if (!has_huge_pages())
        cr_skip_test(
            "this system has no huge pages for shared memory: Linux before 6.1, or it denies them (shmem_enabled)");
    cr_expect(is_huge, "none while it is filled");
    cr_expect_gt(huge_bytes(memory), 0, "none behind the seal");
    munmap(memory, BYTES);
    close(fd);
}

Test(shm, a_region_of_another_size_is_refused_with_a_text)
{
    struct err err = {0};
    int fd = shm_create("test", 8192, &err);
    cr_assert_geq(fd, 0, "%s", err.text);
    cr_expect_null(shm_map(fd, 4096, SHM_READ, "test", &err));
    cr_expect_not_null(strstr(err.text, "8192"), "%s", err.text);
    close(fd);
}
