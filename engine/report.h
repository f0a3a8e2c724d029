/* report.h - what the engine says of itself: /status, /metrics, /v1/models, /version.
 *
 * Used by: front.   Owns: nothing; everything is read from shared memory.   Never blocks.
 */
#ifndef EVENFLOW_REPORT_H
#define EVENFLOW_REPORT_H

#include <stdbool.h>

#include "engine/json_writer.h"
#include "ipc/arena.h"

void report_status(struct json_writer *writer, const struct arena *arena);
void report_metrics(struct json_writer *writer, const struct arena *arena); /* Prometheus' text format 0.0.4 */
void report_models(struct json_writer *writer, const struct arena *arena);
void report_model(struct json_writer *writer, const struct arena *arena);
void report_version(struct json_writer *writer, const struct arena *arena);

#endif
