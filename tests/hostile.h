/* hostile.h - the table of malformed requests and their exact answers: data/hostile.txt, which says how to read it. */
#ifndef EVENFLOW_TESTS_HOSTILE_H
#define EVENFLOW_TESTS_HOSTILE_H

#include <stdbool.h>
#include <stddef.h>

struct hostile_case {
    int line; /* of the table, for messages */
    char when[32];
    char *request;
    size_t request_size;
    int status;
    char *answer; /* every byte of it; NULL: only the status is said */
    bool closes;
};

/* Those of one situation. The caller's until the process ends. Fails the test when the table is not one. */
struct hostile_case *hostile_cases(const char *when, size_t *count);

#endif
