/* test_commands.c - what scripts rely on: exit statuses, and which stream says what. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/base.h"
#include "tests/command.h"
#include "tests/tiny_model.h"
#include "tests/tiny_vocab.h"
#include "tools/commands.h"

static struct outcome outcome;

static int run(const char *arguments)
{
    return command_run(&outcome, arguments, NULL);
}

Test(commands, help_is_no_failure_and_goes_to_standard_output)
{
    cr_expect_eq(run("--help"), 0);
    for (size_t i = 0; commands[i] != NULL; i++)
        cr_expect(strstr(outcome.out, commands[i]->help) != NULL, "%s", commands[i]->name);
    for (size_t i = 0; commands[i] != NULL; i++) {
        static struct outcome help;
        char arguments[64];
        snprintf(arguments, sizeof(arguments), "%s --help", commands[i]->name);
        cr_expect_eq(run(arguments), 0, "%s", arguments);
        cr_expect(strncmp(outcome.out, "usage: evenflow ", 16) == 0, "%s: %s", arguments, outcome.out);
        cr_expect_str_empty(outcome.err, "%s: %s", arguments, outcome.err);
        const struct option_spec *spec;
        for (size_t k = 0; (spec = options_at(commands[i]->options, k)) != NULL; k++)
            cr_expect(strstr(outcome.out, spec->name) != NULL);
        help = outcome;
        snprintf(arguments, sizeof(arguments), "help %s", commands[i]->name);
        cr_expect_eq(run(arguments), 0);
        cr_expect_str_eq(outcome.out, help.out);
    }
}

Test(commands, wrong_usage_is_status_2_with_a_word_about_help)
{
    static const char *const wrong[] = {"",      "nonsense",        "help nonsense", "complete",
                                        "serve", "completion tcsh", "completion"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        cr_expect_eq(run(wrong[i]), 2, "'%s' ends with %d", wrong[i], outcome.status);
        cr_expect_str_empty(outcome.out, "'%s' writes to standard output: %s", wrong[i], outcome.out);
        cr_expect_str_not_empty(outcome.err);
    }
    for (size_t i = 0; commands[i] != NULL; i++) {
        char arguments[64];
        snprintf(arguments, sizeof(arguments), "%s --no-such-option", commands[i]->name);
        cr_expect_eq(run(arguments), 2, "%s", arguments);
        cr_expect(strstr(outcome.err, "--no-such-option") != NULL, "%s", outcome.err);
        cr_expect_str_empty(outcome.out);
    }
}

static char directory[] = "/tmp/evenflow-test-XXXXXX";

static void make_model(const char *name)
{
    char path[64];
    struct tiny_model tiny = tiny_model_variant(0);
    tiny.vocab_size = TINY_COUNT;
    tiny.has_tokenizer = true;
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    tiny_model_write(&tiny, path);
}

static void make_directory(void)
{
    char path[64];
    cr_assert_not_null(mkdtemp(directory));
    make_model("model.gguf");
    make_model("half.gguf");
    snprintf(path, sizeof(path), "%s/half.gguf", directory);
    cr_assert_eq(truncate(path, 4000), 0);
    snprintf(path, sizeof(path), "%s/template", directory);
    FILE *file = fopen(path, "we");
    cr_assert_not_null(file);
    fputs("{% nonsense %}", file);
    fclose(file);
}

static void remove_directory(void)
{
    char command[64];
    snprintf(command, sizeof(command), "rm -r %s", directory);
    cr_expect_eq(system(command), 0);
}

/* What a command does on a file or a limit that is not as it should be: a status, and words that say which. %s in its arguments
 * is the folder. */
static void expect_failure(int status, const char *words, const char *format)
{
    char arguments[256];
    snprintf(arguments, sizeof(arguments), format, directory);
    cr_expect_eq(run(arguments), status, "%s ends with %d: %s", arguments, outcome.status, outcome.err);
    cr_expect(strstr(outcome.err, words) != NULL, "%s: %s", arguments, outcome.err);
}

Test(commands, what_the_user_asked_for_wrongly_is_status_2_and_what_the_world_lacks_is_status_1)
{
    static const struct {
        const char *command, *text;
    } starting[] = {
        {"serve", ""}, {"run", ""}, {"perplexity", "/etc/passwd"}, {"stress --artefacts %1$s/artefacts", ""}};
    static const struct {
        int status;
        const char *words, *options;
    } wrong[] = {
        {2, "--policy nonsense: must be", "--policy nonsense %1$s/model.gguf"},
        {1, "/nowhere: cannot open it: No such file", "--config /nowhere %1$s/model.gguf"},
        {1, "model /nowhere: cannot open it: No such file", "/nowhere"},
        {1, "trunc", "%1$s/half.gguf"},
    };
    make_directory();
    for (size_t i = 0; i < ARRAY_COUNT(starting); i++)
        for (size_t k = 0; k < ARRAY_COUNT(wrong); k++) {
            char format[128];
            snprintf(format, sizeof(format), "%s %s %s", starting[i].command, wrong[k].options, starting[i].text);
            expect_failure(wrong[k].status, wrong[k].words, format);
        }
    expect_failure(1, "/nowhere: cannot open it: No such file", "serve --backend timed --cost /nowhere %s/model.gguf");
    expect_failure(1, "text /nowhere: cannot open it: No such file", "perplexity %s/model.gguf /nowhere");
    expect_failure(1, "prompt is empty", "perplexity %s/model.gguf /dev/null");
    expect_failure(1, "/nowhere: cannot open it: No such file", "sim /nowhere");
    expect_failure(1, "the tag 'nonsense' is not supported", "serve --chat-template %1$s/template %1$s/model.gguf");
    expect_failure(2, "give --api-key-file", "serve --listen 0.0.0.0:1 %s/model.gguf");
    remove_directory();
}

Test(commands, a_limit_on_open_files_that_is_too_low_is_said_before_the_start)
{
    make_directory();
    const struct rlimit few = {100, 100};
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    expect_failure(1, "may have 100 files open", "serve --socket %1$s/nobody.sock --no-weights-cache %1$s/model.gguf");
    remove_directory();
}

Test(commands, without_an_engine_clients_fail_and_say_how_to_start_one)
{
    static const char *const clients[] = {"chat hello", "complete hello", "status", "status --json", "top", "bench"};
    for (size_t i = 0; i < ARRAY_COUNT(clients); i++) {
        char arguments[128];
        snprintf(arguments, sizeof(arguments), "%s --socket /tmp/evenflow-test-nobody.sock", clients[i]);
        cr_expect_eq(run(arguments), 1, "%s ends with %d", clients[i], outcome.status);
        cr_expect_str_empty(outcome.out, "%s: %s", clients[i], outcome.out);
        cr_expect(strstr(outcome.err, "evenflow serve") != NULL, "%s: %s", clients[i], outcome.err);
    }
}

Test(commands, a_full_disk_is_a_failure)
{
    const char *build = getenv("EVENFLOW_BUILD");
    char command[256];
    snprintf(command, sizeof(command), "%s/bin/evenflow man >/dev/full 2>/dev/null", build ? build : "build");
    int status = system(command);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

Test(commands, manual_page_and_completions_know_every_command_and_option)
{
    static const char *const texts[] = {"man", "completion bash", "completion zsh", "completion fish"}; /* man: once */
    for (size_t t = 0; t < ARRAY_COUNT(texts); t++) {
        cr_expect_eq(run(texts[t]), 0);
        for (size_t i = 0; commands[i] != NULL; i++) {
            cr_expect(strstr(outcome.out, commands[i]->name) != NULL, "%s: %s", texts[t], commands[i]->name);
            const struct option_spec *spec;
            for (size_t k = 0; t > 0 && (spec = options_at(commands[i]->options, k)) != NULL; k++)
                cr_expect(strstr(outcome.out, spec->name) != NULL, "%s: %s", texts[t], spec->name);
            for (size_t k = 0; k < commands[i]->options->count; k++)
                cr_expect(strstr(outcome.out, commands[i]->options->specs[k].name) != NULL);
        }
    }
}
