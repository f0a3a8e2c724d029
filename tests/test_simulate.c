/* test_simulate.c - engines in one process, stepped by a seed, for a while (EVENFLOW_SEED); `make simulate` is more of it. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

Test(simulate, engines_whose_processes_die_anywhere_answer_as_undisturbed_ones_do, .timeout = 120)
{
    const char *build = getenv("EVENFLOW_BUILD"), *seed = getenv("EVENFLOW_SEED");
    char command[256], text[65536];
    snprintf(command, sizeof(command), "%s/bin/simulate --seconds 10 --seed %s 2>&1", build != NULL ? build : "build",
             seed != NULL ? seed : "1");
    FILE *pipe = popen(command, "re");
    cr_assert_not_null(pipe);
    text[fread(text, 1, sizeof(text) - 1, pipe)] = '\0';
    int status = pclose(pipe);
    fprintf(stderr, "%s", text);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d", command, status);
    unsigned engines = 0, deaths = 0;
    const char *verdict = strstr(text, "clean: ");
    cr_assert_not_null(verdict);
    cr_assert_eq(sscanf(verdict, "clean: %u engines, %u deaths", &engines, &deaths), 2);
    cr_expect_gt(engines, 0);
    cr_expect_geq(deaths, 40 * engines);
}
