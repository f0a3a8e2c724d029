/* progress.h - one line on standard error while work is long: how far, how fast, how long still.
 *
 * Used by: evenflow bench, evenflow complete.   Owns: nothing.   Shows nothing where standard error is no terminal, nor
 * within the first second.
 */
#ifndef EVENFLOW_PROGRESS_H
#define EVENFLOW_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress {
    size_t total; /* requests */
    bool is_shown;
    uint64_t start_ns;
    uint64_t next_ns;                  /* when the line is due again; UINT64_MAX: never */
    uint64_t tokens_before, tokens_ns; /* tokens a second are those since the line before */
};

void progress_begin(struct progress *progress, size_t total);
/* Draws the line if it is due. */
void progress_show(struct progress *progress, size_t done, uint64_t tokens);
/* Takes the line away. */
void progress_end(struct progress *progress);

#endif
