/* test_commands.c - what scripts rely on: exit statuses, and which stream says what. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "ipc/base.h"
#include "tests/command.h"
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
        for (size_t k = 0; k < commands[i]->options->count; k++)
            cr_expect(strstr(outcome.out, commands[i]->options->specs[k].name) != NULL);
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
    static const char *const texts[] = {"man", "completion bash", "completion zsh", "completion fish"};
    for (size_t t = 0; t < ARRAY_COUNT(texts); t++) {
        cr_expect_eq(run(texts[t]), 0);
        for (size_t i = 0; commands[i] != NULL; i++) {
            cr_expect(strstr(outcome.out, commands[i]->name) != NULL, "%s: %s", texts[t], commands[i]->name);
            for (size_t k = 0; k < commands[i]->options->count; k++)
                cr_expect(strstr(outcome.out, commands[i]->options->specs[k].name) != NULL, "%s: %s", texts[t],
                          commands[i]->options->specs[k].name);
        }
    }
}
