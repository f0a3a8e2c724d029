/* test_packed.c - the cache of packed weights: it gives the bits that packing gives, or it is not used. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipc/plan.h"
#include "stages/packed.h"
#include "tests/engine.h"
#include "tests/tiny_model.h"

static char folder[64], path[512];
static struct gguf *gguf;
static struct model_desc desc;

static void setup(void)
{
    struct tiny_model tiny = tiny_model();
    struct err err = {0};
    strcpy(folder, "/tmp/evenflow-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    setenv("XDG_CACHE_HOME", folder, 1);
    cr_assert(packed_path(path, sizeof(path), "/models/tiny.gguf"));
    gguf = tiny_model_open(&tiny);
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
}

static void teardown(void)
{
    char inner[128], unfinished[600];
    snprintf(unfinished, sizeof(unfinished), "%s.new", path);
    snprintf(inner, sizeof(inner), "%s/evenflow", folder);
    unlink(path);
    unlink(unfinished);
    rmdir(inner);
    rmdir(folder);
    gguf_close(gguf);
}

static void make(void)
{
    struct err err = {0};
    cr_assert_eq(packed_make(path, &desc, gguf, NULL, NULL, &err), 0, "%s", err.text);
}

static void change_byte(off_t at)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;
    cr_assert_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

TestSuite(packed, .init = setup, .fini = teardown);

/* Every way to cut three layers, with a head of its own and with the embedding as head. */
static void expect_same_slices(void)
{
    for (uint32_t first = 0; first < desc.layers; first++)
        for (uint32_t count = 1; count <= desc.layers - first; count++) {
            size_t bytes = model_slice_bytes(&desc, first, count);
            uint8_t *packed = base_alloc(bytes), *copied = base_alloc(bytes);
            struct model_slice slice;
            struct err err = {0};
            cr_assert_eq(model_load(&slice, &desc, first, count, packed, gguf, &err), 0);
            cr_assert_eq(packed_copy(path, &desc, gguf, first, count, copied), 0);
            cr_expect_arr_eq(copied, packed, bytes, "layers %u + %u", first, count);
            model_unbind(&slice);
            free(packed);
            free(copied);
        }
}

Test(packed, a_copied_slice_is_what_packing_it_gives)
{
    make();
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), 0);
    expect_same_slices();
}

Test(packed, so_it_is_where_the_head_is_a_matrix_of_its_own)
{
    struct tiny_model tiny = tiny_model();
    struct err err = {0};
    tiny.tied = false;
    gguf_close(gguf);
    gguf = tiny_model_open(&tiny);
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    make();
    expect_same_slices();
}

struct seen {
    uint64_t calls, done, total;
};

static void see(void *context, uint64_t done, uint64_t total)
{
    struct seen *seen = context;
    cr_expect(done >= seen->done && done <= total && (seen->calls == 0 || total == seen->total));
    *seen = (struct seen){seen->calls + 1, done, total};
}

/* Shares of a team are alike but for a layer: what its first member says of all is right but for that. */
static void expect_seen(struct seen *seen, uint64_t calls_min)
{
    cr_expect_geq(seen->calls, calls_min);
    cr_expect_geq((double)seen->done, 0.99 * (double)seen->total, "%llu of %llu", (unsigned long long)seen->done,
                  (unsigned long long)seen->total);
    *seen = (struct seen){0};
}

Test(packed, an_onlooker_is_told_how_far_it_is)
{
    struct seen seen = {0};
    const struct onlooker onlooker = {see, &seen};
    struct team *team;
    struct err err = {0};
    make();
    cr_assert_eq(packed_make(path, &desc, gguf, NULL, &onlooker, &err), 0, "%s", err.text);
    expect_seen(&seen, desc.layers + 1);
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, &onlooker), 0);
    expect_seen(&seen, 1);
    cr_assert_eq(team_open(&team, 2, NULL, NULL, &err), 0);
    cr_assert_eq(packed_make(path, &desc, gguf, team, &onlooker, &err), 0, "%s", err.text);
    expect_seen(&seen, desc.layers / 2 + 1);
    team_close(team);
}

Test(packed, a_team_packs_the_same_file)
{
    struct team *team;
    struct err err = {0};
    make();
    struct packed_head alone, together;
    int fd = open(path, O_RDONLY);
    cr_assert_eq(pread(fd, &alone, sizeof(alone), 0), (ssize_t)sizeof(alone));
    close(fd);
    cr_assert_eq(team_open(&team, 3, NULL, NULL, &err), 0);
    cr_assert_eq(packed_make(path, &desc, gguf, team, NULL, &err), 0, "%s", err.text);
    cr_expect_eq(packed_check(path, &desc, gguf, team, NULL), 0);
    team_close(team);
    fd = open(path, O_RDONLY);
    cr_assert_eq(pread(fd, &together, sizeof(together), 0), (ssize_t)sizeof(together));
    close(fd);
    cr_expect_eq(together.hash, alone.hash);
}

Test(packed, one_changed_bit_is_seen)
{
    make();
    for (off_t at = PACKED_START; at < (off_t)PACKED_START + 5000; at += 997) {
        change_byte(at);
        cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), -EBADMSG, "byte %lld", (long long)at);
        change_byte(at);
    }
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), 0);
}

Test(packed, a_file_that_was_cut_short_is_damaged_and_not_copied)
{
    make();
    cr_assert_eq(truncate(path, PACKED_START + 100), 0);
    void *memory = base_alloc(model_slice_bytes(&desc, 0, 3));
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), -EBADMSG);
    cr_expect_lt(packed_copy(path, &desc, gguf, 0, 3, memory), 0);
    cr_assert_eq(truncate(path, 5), 0);
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), -ENOENT);
    free(memory);
}

Test(packed, a_model_with_one_other_weight_has_another_file)
{
    struct tiny_model tiny = tiny_model();
    tiny.flipped_tensor = "blk.1.ffn_up.weight";
    struct gguf *other = tiny_model_open(&tiny);
    make();
    cr_expect_eq(packed_check(path, &desc, other, NULL, NULL), -ENOENT);
    cr_expect_eq(packed_check("/nowhere/at/all", &desc, gguf, NULL, NULL), -ENOENT);
    gguf_close(other);
}

Test(packed, what_an_interrupted_engine_left_is_written_over)
{
    char unfinished[600];
    make();
    snprintf(unfinished, sizeof(unfinished), "%s.new", path);
    cr_assert_eq(rename(path, unfinished), 0);
    cr_assert_eq(truncate(unfinished, 1 << 20), 0);
    make();
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), 0);
    cr_expect_neq(access(unfinished, F_OK), 0);
}

Test(packed, of_two_engines_one_writes_and_the_other_goes_on_without)
{
    char unfinished[600];
    struct err err = {0};
    make();
    snprintf(unfinished, sizeof(unfinished), "%s.new", path);
    int other = open(unfinished, O_RDWR | O_CREAT, 0600);
    cr_assert_eq(flock(other, LOCK_EX), 0);
    cr_expect_eq(packed_make(path, &desc, gguf, NULL, NULL, &err), -EBUSY);
    cr_expect(strstr(err.text, "another engine"), "%s", err.text);
    cr_expect_eq(packed_check(path, &desc, gguf, NULL, NULL), 0, "what is there stays good meanwhile");
    close(other);
    cr_expect_eq(packed_make(path, &desc, gguf, NULL, NULL, &err), 0, "%s", err.text);
}

Test(packed, a_folder_that_cannot_be_made_is_named)
{
    struct err err = {0};
    cr_expect_lt(packed_make("/proc/none/evenflow/x.weights", &desc, gguf, NULL, NULL, &err), 0);
    cr_expect(strstr(err.text, "/proc/none/evenflow/x.weights"), "%s", err.text);
}

/* ---- real engines on the real model ---- */

#define STARTS 4u

Test(packed, an_engine_gives_the_same_bits_without_a_cache_making_it_from_it_and_from_a_damaged_one, .timeout = 120)
{
    static struct completion seen[STARTS];
    char *body = "{\"prompt\": \"The sea is\", \"max_tokens\": 12, \"temperature\": 0, \"return_token_ids\": true, "
                 "\"return_logits_hash\": true}";
    char real[PATH_MAX_BYTES];
    cr_assert_not_null(realpath(engine_model_path(), real));
    cr_assert(packed_path(path, sizeof(path), real));
    for (uint32_t i = 0; i < STARTS; i++) {
        struct own_engine engine;
        if (i == 3)
            change_byte(1 << 20);
        engine_start(&engine, i == 0 ? "--no-weights-cache" : "");
        cr_expect_eq(access(path, F_OK) == 0, i > 0);
        engine_complete(&engine, &body, 1, 1, &seen[i]);
        cr_assert_eq(own_engine_stop(&engine), 0);
        cr_assert_eq(seen[i].count, 12);
        cr_expect_arr_eq(seen[i].hashes, seen[0].hashes, 12 * sizeof(uint64_t), "start %u", i);
    }
}
