#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ipc/base.h"
#include "ipc/clock.h"
#include "tools/progress.h"

#define SECOND_NS 1000000000u

static struct progress progress;
static char line[PROGRESS_LINE_MAX];

static const char *line_of(uint64_t after_ns, uint64_t done, uint64_t counted, uint32_t columns)
{
    progress_line(&progress, progress.start_ns + after_ns, done, counted, columns, line);
    return line;
}

Test(progress, says_how_far_how_fast_and_how_long_still)
{
    progress = (struct progress){.what = "requests", .total = 200, .unit = "tok/s", .start_ns = 5, .counted_ns = 5};
    cr_expect_str_eq(line_of(30ull * SECOND_NS, 50, 3000, 80),
                     "requests  [========>                        ]  25 %, about 1:30 left, 100 tok/s");
    cr_expect_str_eq(line_of(30ull * SECOND_NS, 0, 0, 50), "requests  [>                     ]   0 %, 0 tok/s");
    cr_expect_str_eq(line_of(60ull * SECOND_NS, 999, 0, 60),
                     "requests  [==============>] 100 %, about 0:00 left, 0 tok/s");
    progress = (struct progress){.what = "starting", .start_ns = 5};
    cr_expect_str_eq(line_of(63ull * SECOND_NS, 7, 0, 80), "starting  1:03");
}

Test(progress, what_does_not_fit_is_left_out_and_no_line_fills_the_last_column)
{
    progress = (struct progress){.what = "packing weights", .total = 1000, .unit = "tok/s"};
    for (uint32_t columns = 1; columns < 400; columns++)
        for (uint64_t done = 0; done <= 1000; done += 125)
            cr_assert_lt(strlen(line_of(SECOND_NS * 100ull, done, done, columns)), columns);
    cr_expect_str_eq(line_of(SECOND_NS, 500, 0, 30), "packing weights   50 %");
}

/* What the work writes to a standard error that is a terminal (or is none). */
static size_t written(bool is_terminal, uint64_t begin_before_ns, char *text, size_t room)
{
    int ours, theirs;
    if (is_terminal) {
        if (openpty(&ours, &theirs, NULL, NULL, &(struct winsize){.ws_row = 24, .ws_col = 60}) != 0)
            cr_skip_test("no terminal to draw on, so this was not tested: %s (is devpts mounted?)", strerror(errno));
    } else {
        int ends[2];
        cr_assert_eq(pipe(ends), 0);
        ours = ends[0], theirs = ends[1];
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(theirs, STDERR_FILENO);
        progress_begin(&progress, "work", 100, NULL);
        if (progress.next_ns != UINT64_MAX)
            progress.next_ns -= begin_before_ns;
        progress_show(&progress, 20, 0);
        progress_show(&progress, 40, 0); /* not due yet */
        progress_end(&progress);
        _exit(0);
    }
    size_t size = 0;
    waitpid(child, NULL, 0);
    fcntl(ours, F_SETFL, O_NONBLOCK);
    for (ssize_t got; size + 1 < room && (got = read(ours, text + size, room - 1 - size)) > 0;)
        size += (size_t)got;
    text[size] = '\0';
    close(ours);
    close(theirs);
    return size;
}

Test(progress, is_drawn_once_it_is_due_on_a_terminal_and_taken_away)
{
    char text[1024];
    cr_assert_gt(written(true, SECOND_NS, text, sizeof(text)), 0);
    cr_expect(strstr(text, "\r\33[Kwork  [") == text, "%s", text);
    cr_expect(strstr(text, " 20 %") != NULL, "%s", text);
    cr_expect_null(strstr(text, "40 %"), "%s", text);
    cr_expect_str_eq(text + strlen(text) - 4, "\r\33[K");
    cr_expect_eq(written(true, 0, text, sizeof(text)), 0, "too early: %s", text);
}

Test(progress, is_not_drawn_where_there_is_no_terminal)
{
    char text[1024];
    cr_expect_eq(written(false, SECOND_NS, text, sizeof(text)), 0, "%s", text);
}
