#include "tests/command.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void read_all(const char *folder, const char *name, char *text, size_t room)
{
    char path[96];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file);
    text[fread(text, 1, room - 1, file)] = '\0';
    fclose(file);
    unlink(path);
}

int command_run(struct outcome *outcome, const char *arguments, const char *input)
{
    const char *build = getenv("EVENFLOW_BUILD");
    char folder[] = "/tmp/evenflow-test-command-XXXXXX", command[1024], path[64];
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/in", folder);
    FILE *file = fopen(path, "we");
    cr_assert_not_null(file);
    fputs(input != NULL ? input : "", file);
    fclose(file);
    snprintf(command, sizeof(command), "%s/bin/evenflow %s <%s/in >%s/out 2>%s/err", build ? build : "build", arguments,
             folder, folder, folder);
    int status = system(command);
    cr_assert(WIFEXITED(status));
    read_all(folder, "out", outcome->out, sizeof(outcome->out));
    read_all(folder, "err", outcome->err, sizeof(outcome->err));
    unlink(path);
    rmdir(folder);
    return outcome->status = WEXITSTATUS(status);
}
