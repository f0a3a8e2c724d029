#include "tools/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "ipc/clock.h"

#define FIRST_NS  1000000000u
#define PERIOD_NS 500000000u

void progress_begin(struct progress *progress, size_t total)
{
    uint64_t now_ns = clock_ns();
    *progress = (struct progress){.total = total,
                                  .start_ns = now_ns,
                                  .tokens_ns = now_ns,
                                  .next_ns = isatty(STDERR_FILENO) ? now_ns + FIRST_NS : UINT64_MAX};
}

void progress_show(struct progress *progress, size_t done, uint64_t tokens)
{
    uint64_t now_ns = progress->next_ns == UINT64_MAX ? 0 : clock_ns();
    if (now_ns < progress->next_ns)
        return;
    double rate = (double)(tokens - progress->tokens_before) * 1e9 / (double)(now_ns - progress->tokens_ns);
    fprintf(stderr, "\r\33[K%zu of %zu requests, %.0f tok/s", done, progress->total, rate);
    if (done > 0) {
        double elapsed_s = (double)(now_ns - progress->start_ns) / 1e9;
        unsigned long left_s = (unsigned long)(elapsed_s / (double)done * (double)(progress->total - done));
        fprintf(stderr, ", about %lu:%02lu left", left_s / 60, left_s % 60);
    }
    progress->tokens_before = tokens;
    progress->tokens_ns = now_ns;
    progress->next_ns = now_ns + PERIOD_NS;
    progress->is_shown = true;
}

void progress_end(struct progress *progress)
{
    if (progress->is_shown)
        fputs("\r\33[K", stderr);
    progress->is_shown = false;
}
