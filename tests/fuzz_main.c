/* fuzz_main.c - drives a fuzz target without libFuzzer: fuzz_http SECONDS CORPUS...
 *
 * Runs every file of the folders, then mutations of them until the time is up. What is tried is the same every time, only how
 * far it gets depends on the machine. An input that ends the process is left in crash-TARGET.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sanitizer/common_interface_defs.h>

#include "ipc/clock.h"
#include "tests/fuzz.h"

#define INPUT_MAX 8192u
#define FILES_MAX 4096u

struct input {
    uint8_t *bytes;
    size_t size;
};

static struct input corpus[FILES_MAX];
static size_t corpus_count;
static struct input current; /* what the target is given */
static char crash_path[256];

static void keep_current(void)
{
    FILE *file = fopen(crash_path, "we");
    if (file == NULL)
        return;
    fwrite(current.bytes, 1, current.size, file);
    fclose(file);
    fprintf(stderr, "the input is in %s\n", crash_path);
}

static void read_file(const char *path)
{
    FILE *file = fopen(path, "re");
    check(file != NULL && corpus_count < FILES_MAX);
    struct input *input = &corpus[corpus_count++];
    input->bytes = malloc(INPUT_MAX);
    check(input->bytes != NULL);
    input->size = fread(input->bytes, 1, INPUT_MAX, file);
    fclose(file);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of their names: what is tried must not depend on the file system. */
static void read_folder(const char *folder)
{
    static char *names[FILES_MAX];
    size_t count = 0;
    DIR *entries = opendir(folder);
    if (entries == NULL) {
        fprintf(stderr, "%s: there is no such folder\n", folder);
        exit(2);
    }
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        if (entry->d_name[0] != '.' && count < FILES_MAX)
            names[count++] = strdup(entry->d_name);
    closedir(entries);
    qsort(names, count, sizeof(names[0]), compare_names);
    for (size_t i = 0; i < count; i++) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        read_file(path);
        free(names[i]);
    }
}

static void run(const uint8_t *bytes, size_t size)
{
    /* its own memory, as large as the input: a read behind its end is seen */
    current = (struct input){malloc(size > 0 ? size : 1), size};
    check(current.bytes != NULL);
    memcpy(current.bytes, bytes, size);
    LLVMFuzzerTestOneInput(current.bytes, size);
    free(current.bytes);
}

/* ---- mutations ---- */

static uint64_t state = 1;

static uint32_t below(size_t limit)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return limit > 0 ? (uint32_t)((state >> 33) % limit) : 0;
}

/* Makes room for `more` bytes at `at`; how many there is room for. */
static size_t open_gap(struct input *input, size_t at, size_t more)
{
    more = min_u64(more, INPUT_MAX - input->size);
    memmove(input->bytes + at + more, input->bytes + at, input->size - at);
    input->size += more;
    return more;
}

static void mutate(struct input *input)
{
    static const uint8_t interesting[] = {0,    1,   0x7f, 0x80, 0xc0, 0xe2, 0xf0, 0xff, '"',
                                          '\\', '{', '[',  '\r', '\n', ' ',  '-',  '9'};
    const struct input *other = &corpus[below(corpus_count)];
    size_t at = below(input->size), length = 1 + below(below(8) == 0 ? 512 : 8), from;
    switch (below(8)) {
    case 0:
        if (input->size > 0)
            input->bytes[at] ^= (uint8_t)(1u << below(8));
        break;
    case 1:
        if (input->size > 0)
            input->bytes[at] = interesting[below(sizeof(interesting))];
        break;
    case 2:
        length = open_gap(input, at, length);
        for (size_t i = 0; i < length; i++)
            input->bytes[at + i] = (uint8_t)below(256);
        break;
    case 3: /* a part goes */
        length = min_u64(length, input->size - at);
        memmove(input->bytes + at, input->bytes + at + length, input->size - at - length);
        input->size -= length;
        break;
    case 4: /* a part comes twice */
        length = min_u64(length, input->size - at);
        length = open_gap(input, at, length);
        memcpy(input->bytes + at, input->bytes + at + length, min_u64(length, input->size - at - length));
        break;
    case 5: /* a part of another input */
        from = below(other->size);
        length = open_gap(input, at, min_u64(length * 4, other->size - from));
        memcpy(input->bytes + at, other->bytes + from, length);
        break;
    case 6: /* ends early */
        input->size = below(8) == 0 ? at : input->size;
        break;
    default: /* a digit more or less */
        for (size_t i = at; i < input->size; i++)
            if (input->bytes[i] >= '0' && input->bytes[i] <= '9') {
                input->bytes[i] = (uint8_t)('0' + below(10));
                break;
            }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s SECONDS CORPUS...\n", argv[0]);
        return 2;
    }
    const char *name = strrchr(argv[0], '/');
    name = name != NULL ? name + 1 : argv[0];
    snprintf(crash_path, sizeof(crash_path), "crash-%s", name);
    __sanitizer_set_death_callback(keep_current);
    for (int i = 2; i < argc; i++)
        read_folder(argv[i]);
    if (corpus_count == 0) {
        fprintf(stderr, "%s: the corpus is empty\n", name);
        return 2;
    }
    for (size_t i = 0; i < corpus_count; i++)
        run(corpus[i].bytes, corpus[i].size);
    static uint8_t bytes[INPUT_MAX];
    uint64_t end_ns = clock_ns() + (uint64_t)(strtod(argv[1], NULL) * 1e9), runs = 0;
    for (; clock_ns() < end_ns; runs++) {
        const struct input *seed = &corpus[below(corpus_count)];
        struct input input = {bytes, seed->size};
        memcpy(bytes, seed->bytes, seed->size);
        for (uint32_t i = 1 + below(6); i > 0; i--)
            mutate(&input);
        run(input.bytes, input.size);
    }
    for (size_t i = 0; i < corpus_count; i++)
        free(corpus[i].bytes);
    printf("%zu files, %llu mutations\n", corpus_count, (unsigned long long)runs);
    return 0;
}
