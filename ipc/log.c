#include "ipc/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *log_name = "evenflow";
static enum log_level log_limit = LOG_INFO;
static const char *const level_names[LOG_LEVEL_COUNT] = {"error", "warn", "info", "debug"};

void log_open(const char *name, enum log_level level)
{
    log_name = name;
    log_limit = level;
}

void log_write(enum log_level level, const char *format, ...)
{
    if (level > log_limit)
        return;
    char line[1024];
    int used = snprintf(line, sizeof(line), "%s[%d] %s: ", log_name, (int)getpid(), level_names[level]);
    va_list args;
    va_start(args, format);
    used += vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
    va_end(args);
    if ((size_t)used > sizeof(line) - 2)
        used = (int)sizeof(line) - 2;
    line[used] = '\n';
    /* One write per line, so that lines of several processes do not mix. A closed standard error is nobody's fault. */
    ssize_t written = write(STDERR_FILENO, line, (size_t)used + 1);
    (void)written;
}

int log_level_of(const char *name)
{
    for (int i = 0; i < LOG_LEVEL_COUNT; i++)
        if (strcmp(name, level_names[i]) == 0)
            return i;
    return -1;
}
