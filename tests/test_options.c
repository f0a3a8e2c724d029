#include <criterion/criterion.h>
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

Test(options, command_line_beats_environment_beats_file)
{
    char path[] = "/tmp/evenflow-test-XXXXXX";
    int fd = mkstemp(path);
    const char text[] = "# a comment\nstages = 3\n\nmax-num-seqs=7 # so many\nlog-level debug\nno-such = 1\n";
    cr_assert_gt(write(fd, text, strlen(text)), 0);
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
