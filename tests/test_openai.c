/* test_openai.c - other people's clients (clients.py) against the whole engine. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/engine.h"

#define PYTHON ".venv/bin/python"

Test(openai, the_official_package_curl_and_a_browser_get_what_they_ask_for, .timeout = 300)
{
    cr_assert_eq(access(PYTHON, X_OK), 0, "there is no %s: run `make venv`, which gets the openai package", PYTHON);
    struct own_engine engine;
    engine_start(&engine, "-p 2 --max-body 1000000 --served-model-name mine");
    char command[4096];
    snprintf(command, sizeof(command), PYTHON " tests/clients.py '%s'", engine.socket);
    cr_expect_eq(system(command), 0, "see the lines that begin with \"failed:\"");
    cr_expect_eq(own_engine_stop(&engine), 0);
}
