#include "tools/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "tools/terminal.h"

#define FIRST_NS  1000000000u
#define PERIOD_NS 500000000u
#define BAR_MIN   10u
#define BAR_MAX   40u

void progress_begin(struct progress *progress, const char *what, uint64_t total, const char *unit)
{
    uint64_t now_ns = clock_ns();
    *progress = (struct progress){.what = what,
                                  .total = total,
                                  .unit = unit,
                                  .start_ns = now_ns,
                                  .counted_ns = now_ns,
                                  .next_ns = isatty(STDERR_FILENO) ? now_ns + FIRST_NS : UINT64_MAX};
}

/* Adds ", about 0:12 left" or its like, where it fits. */
static void add(char *text, size_t room, const char *more)
{
    if (strlen(text) + strlen(more) < room)
        strcat(text, more);
}

static void add_bar(char *line, double share, uint32_t width)
{
    char *at = line + strlen(line);
    uint32_t full = (uint32_t)(share * (width - 1));
    *at++ = '[';
    memset(at, '=', full);
    at[full] = '>';
    memset(at + full + 1, ' ', width - 1 - full);
    strcpy(at + width, "]");
}

void progress_line(const struct progress *progress, uint64_t now_ns, uint64_t done, uint64_t counted, uint32_t columns,
                   char line[PROGRESS_LINE_MAX])
{
    char right[PROGRESS_LINE_MAX] = "", text[64];
    size_t room = min_u64(columns, PROGRESS_LINE_MAX), used;
    double elapsed_s = (double)(now_ns - progress->start_ns) / 1e9;
    double share = progress->total > 0 ? (double)min_u64(done, progress->total) / (double)progress->total : 0;
    uint64_t seconds = (uint64_t)(share > 0 ? elapsed_s / share * (1 - share) : elapsed_s);

    snprintf(line, room, "%s  ", progress->what);
    used = strlen(line);
    room -= min_u64(used, room);
    if (progress->total > 0) {
        snprintf(text, sizeof(text), "%3.0f %%", 100 * share);
        add(right, room, text);
    }
    if (share > 0 || progress->total == 0) {
        snprintf(text, sizeof(text), progress->total > 0 ? ", about %u:%02u left" : "%u:%02u", (unsigned)(seconds / 60),
                 (unsigned)(seconds % 60));
        add(right, room, text);
    }
    if (progress->unit != NULL && now_ns > progress->counted_ns) {
        double rate = (double)(counted - progress->counted_before) * 1e9 / (double)(now_ns - progress->counted_ns);
        snprintf(text, sizeof(text), ", %.0f %s", rate, progress->unit);
        add(right, room, text);
    }
    room -= min_u64(strlen(right), room);
    if (progress->total > 0 && room >= BAR_MIN + 4) { /* brackets, a blank behind them, the end of the string */
        add_bar(line, share, (uint32_t)min_u64(room - 4, BAR_MAX));
        strcat(line, " ");
    }
    strcat(line, right);
}

bool progress_is_due(const struct progress *progress)
{
    return progress->next_ns != UINT64_MAX && clock_ns() >= progress->next_ns;
}

int progress_wait_ms(const struct progress *progress)
{
    uint64_t now_ns = clock_ns();
    if (progress->next_ns == UINT64_MAX)
        return -1;
    return progress->next_ns > now_ns ? (int)div_up_u64(progress->next_ns - now_ns, 1000000) : 0;
}

void progress_show(struct progress *progress, uint64_t done, uint64_t counted)
{
    char line[PROGRESS_LINE_MAX];
    if (!progress_is_due(progress))
        return;
    uint64_t now_ns = clock_ns();
    progress_line(progress, now_ns, done, counted, terminal_columns(STDERR_FILENO), line);
    fprintf(stderr, "\r\33[K%s", line);
    fflush(stderr);
    progress->counted_before = counted;
    progress->counted_ns = now_ns;
    progress->next_ns = now_ns + PERIOD_NS;
    progress->is_shown = true;
}

void progress_end(struct progress *progress)
{
    if (progress->is_shown)
        fputs("\r\33[K", stderr);
    progress->is_shown = false;
}
