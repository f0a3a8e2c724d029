/* progress.h - one line on standard error while work is long: how far, how fast, how long still.
 *
 *   packing weights  [==========>               ]  42 %, about 0:12 left
 *
 * Used by: whatever may take more than a second: starting an engine, evenflow bench, complete, perplexity, tokenize.
 * Owns: nothing.   Shows nothing where standard error is no terminal, nor within the first second.
 */
#ifndef EVENFLOW_PROGRESS_H
#define EVENFLOW_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRESS_LINE_MAX 256u

struct progress {
    const char *what;
    uint64_t total;   /* of what is to be done; 0: nobody knows */
    const char *unit; /* of what is counted a second; NULL: nothing is */
    bool is_shown;
    uint64_t start_ns;
    uint64_t next_ns;                    /* when the line is due again; UINT64_MAX: never */
    uint64_t counted_before, counted_ns; /* the rate is of what was counted since the line before */
};

void progress_begin(struct progress *progress, const char *what, uint64_t total, const char *unit);
bool progress_is_due(const struct progress *progress);
/* How long the line is not due: for poll(2); -1: for ever. */
int progress_wait_ms(const struct progress *progress);
/* Draws the line if it is due. */
void progress_show(struct progress *progress, uint64_t done, uint64_t counted);
/* Takes the line away. */
void progress_end(struct progress *progress);

/* The line as it stands at a time, shorter than `columns`: what does not fit is left out, the bar first. */
void progress_line(const struct progress *progress, uint64_t now_ns, uint64_t done, uint64_t counted, uint32_t columns,
                   char line[PROGRESS_LINE_MAX]);

#endif
