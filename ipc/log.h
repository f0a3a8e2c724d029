/* log.h - one line per event on standard error: "evenflow-stage[2] 1234 info: text".
 *
 * Used by: every process.   Owns: nothing.   Blocks: as write(2) to standard error does.
 */
#ifndef EVENFLOW_LOG_H
#define EVENFLOW_LOG_H

#include "ipc/base.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_LEVEL_COUNT };

/* name is kept, not copied: "evenflow-front". */
void log_open(const char *name, enum log_level level);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

/* "info" -> LOG_INFO; -1 when there is no such level. */
int log_level_of(const char *name);

#endif
