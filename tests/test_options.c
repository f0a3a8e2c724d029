#include <criterion/criterion.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/config.h"

static int parse(struct config *config, struct err *err, int argc, char **argv)
{
    char *positional[16];
    int count;
    return options_parse(&config_table, config, argc, argv, positional, &count, err);
}

#define PARSE(config, err, ...) parse(config, err, (int)ARRAY_COUNT(((char *[]){__VA_ARGS__})), (char *[]){__VA_ARGS__})

Test(options, defaults_are_those_of_the_table)
{
    struct config config;
    struct err err;
    cr_assert_eq(parse(&config, &err, 0, NULL), 0);
    cr_assert_eq(config.pipeline_parallel_size, 2);
    cr_assert_eq(config.kv_memory, 512ull << 20);
    cr_assert(config.enable_chunked_prefill);
    cr_assert_str_eq(config.policy, "even");
}

Test(options, letters_aliases_and_negations_are_understood)
{
    struct config config;
    struct err err;
    cr_assert_eq(PARSE(&config, &err, "-p", "5", "--no-enable-chunked-prefill", "--kv-memory=2G"), 0);
    cr_assert_eq(config.pipeline_parallel_size, 5);
    cr_assert_not(config.enable_chunked_prefill);
    cr_assert_eq(config.kv_memory, 2ull << 30);
    cr_assert_eq(PARSE(&config, &err, "--stages", "3", "-p4"), 0);
    cr_assert_eq(config.pipeline_parallel_size, 4);
}

Test(options, errors_name_the_option_and_what_is_allowed)
{
    struct config config;
    struct err err;
    cr_assert_lt(PARSE(&config, &err, "--stages", "99"), 0);
    cr_assert_str_eq(err.text, "--pipeline-parallel-size 99: must be a number from 1 to 32");
    cr_assert_lt(PARSE(&config, &err, "--stages", "-1"), 0);
    cr_assert_lt(PARSE(&config, &err, "--stages"), 0);
    cr_assert(strstr(err.text, "needs a value"));
    cr_assert_lt(PARSE(&config, &err, "--nonsense"), 0);
    cr_assert(strstr(err.text, "--nonsense: no such option"));
    cr_assert_lt(PARSE(&config, &err, "--kv-memory", "18446744073709551615G"), 0);
}

Test(options, what_this_build_cannot_honour_is_refused_by_name)
{
    struct config config;
    struct err err;
    cr_assert_lt(PARSE(&config, &err, "--enable-lora"), 0);
    cr_assert(strstr(err.text, "--enable-lora: this build cannot honour"));
}

/* A file with that text, named as `path` says; a descriptor of it. */
static int write_file(char *path, const char *text)
{
    int fd = mkstemp(path);
    cr_assert_eq(write(fd, text, strlen(text)), strlen(text));
    return fd;
}

Test(options, command_line_beats_environment_beats_file)
{
    char path[] = "/tmp/evenflow-test-XXXXXX";
    const char text[] = "# a comment\nstages = 3\n\nmax-num-seqs=7 # so many\nlog-level debug\nno-such = 1\n";
    int fd = write_file(path, text);
    struct config config;
    struct err err;
    cr_assert_lt(PARSE(&config, &err, "--config", path), 0);
    cr_assert(strstr(err.text, ":6: --no-such"));
    cr_assert_eq(ftruncate(fd, (off_t)strlen(text) - 12), 0);
    setenv("EVENFLOW_MAX_NUM_SEQS", "9", 1);
    setenv("EVENFLOW_BLOCK_SIZE", "32", 1);
    cr_assert_eq(PARSE(&config, &err, "--config", path, "--block-size", "64"), 0, "%s", err.text);
    cr_assert_eq(config.pipeline_parallel_size, 3);
    cr_assert_eq(config.max_num_seqs, 9);
    cr_assert_eq(config.block_size, 64);
    cr_assert_str_eq(config.log_level, "debug");
    unlink(path);
}

Test(options, file_and_environment_know_the_names_of_the_command_line)
{
    char path[] = "/tmp/evenflow-test-XXXXXX";
    int fd = write_file(path, "no-enable-prefix-caching\n"
                              "no-weights-cache = false\n"
                              "enable-chunked-prefill = false\n");
    struct config config;
    struct err err;
    cr_assert_eq(PARSE(&config, &err, "--config", path), 0, "%s", err.text);
    cr_assert_not(config.enable_prefix_caching);
    cr_assert(config.weights_cache);
    cr_assert_not(config.enable_chunked_prefill);
    setenv("EVENFLOW_STAGES", "7", 1);
    setenv("EVENFLOW_NO_WEIGHTS_CACHE", "1", 1);
    setenv("EVENFLOW_ENABLE_PREFIX_CACHING", "true", 1);
    setenv("EVENFLOW_CONFIG", path, 1);
    cr_assert_eq(PARSE(&config, &err, "--no-enable-chunked-prefill=false"), 0, "%s", err.text);
    cr_assert_eq(config.pipeline_parallel_size, 7);
    cr_assert_not(config.weights_cache);
    cr_assert(config.enable_prefix_caching);
    cr_assert(config.enable_chunked_prefill);
    for (int i = 0; i < 2000; i++)
        cr_assert_eq(pwrite(fd, "x", 1, i), 1);
    cr_assert_eq(PARSE(&config, &err, "--config", path), -EINVAL);
    cr_assert(strstr(err.text, ":1: longer than"), "%s", err.text);
    unlink(path);
    cr_assert_eq(PARSE(&config, &err, "--config", path), -ENOENT);
}

Test(options, of_another_table_are_taken_behind_a_commands_own)
{
    struct values {
        struct config config;
        bool json;
    } values;
    static const struct option_spec specs[] = {
        {"json", NULL, 0, OPTION_FLAG, offsetof(struct values, json), NULL, 0, 0, "", "For programs"}};
    const struct option_table table = {.specs = specs, .count = 1, .also = &config_table};
    char *argv[] = {"--json", "-p", "3", "model.gguf"}, *refused[] = {"--enable-lora"}, *positional[4];
    int count;
    struct err err;
    cr_assert_eq(options_parse(&table, &values, 4, argv, positional, &count, &err), 0, "%s", err.text);
    cr_assert(values.json && values.config.pipeline_parallel_size == 3 && count == 1);
    cr_assert_str_eq(options_at(&table, 0)->name, "json");
    cr_assert_str_eq(options_at(&table, 1)->name, "socket");
    cr_assert_null(options_at(&table, 1 + config_table.count));
    cr_assert_eq(options_parse(&table, &values, 1, refused, positional, &count, &err), -EINVAL);
    cr_assert(strstr(err.text, "cannot honour"));
}

Test(options, the_socket_is_where_users_expect_it)
{
    char path[OPTION_TEXT_MAX];
    config_socket_path(path, sizeof(path), "/a/b.sock");
    cr_assert_str_eq(path, "/a/b.sock");
    unsetenv("EVENFLOW_SOCKET");
    setenv("XDG_RUNTIME_DIR", "/run/user/1", 1);
    config_socket_path(path, sizeof(path), "");
    cr_assert_str_eq(path, "/run/user/1/evenflow/evenflow.sock");
    setenv("EVENFLOW_SOCKET", "/x.sock", 1);
    config_socket_path(path, sizeof(path), "");
    cr_assert_str_eq(path, "/x.sock");
}
