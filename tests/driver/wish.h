/* wish.h - what a test wants of a stand-in: "name=number,..." in an environment variable.
 *
 * Used by: libcuda.c, libnccl.c.
 */
#ifndef EVENFLOW_TESTS_WISH_H
#define EVENFLOW_TESTS_WISH_H

#include <stdlib.h>
#include <string.h>

static unsigned long long wish_in(const char *variable, const char *name, unsigned long long otherwise)
{
    const char *all = getenv(variable);
    size_t length = strlen(name);
    for (const char *word = all; word != NULL && *word != '\0'; word = strchr(word, ',')) {
        word += *word == ',';
        if (strncmp(word, name, length) == 0 && word[length] == '=')
            return strtoull(word + length + 1, NULL, 10);
    }
    return otherwise;
}

#endif
