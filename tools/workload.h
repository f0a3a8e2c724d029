/* workload.h - requests to schedule: made up by a seeded generator, or read from a trace.
 *
 * Used by: evenflow sim and bench-policies.   Owns: nothing; what it makes is the caller's.
 *
 * A workload is three distributions: tokens of prompts, tokens of answers, gaps between arrivals. They follow what is
 * published of real traces; docs/simulator.md says which. The same name, seed and count give the same requests, and another
 * rate the same ones at other times.
 */
#ifndef EVENFLOW_WORKLOAD_H
#define EVENFLOW_WORKLOAD_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "ipc/base.h"

/* The scenario of a workload: "config" and "requests". requests 0: as many as the workload has of itself. rate: requests a
 * second; 0: the workload's own; INFINITY: all at once. NULL with err when there is no such workload. */
json_t *workload_generate(const char *name, uint64_t seed, double rate, uint32_t requests, struct err *err);

/* The scenario of a CSV file with the header arrival_s,prompt_tokens,output_tokens. rate as above. NULL with err naming file,
 * line and field. */
json_t *workload_read_trace(const char *path, double rate, struct err *err);

/* One line each, for people. */
void workload_print_list(FILE *out);

/* The name of the workload at an index, in the order of the list; NULL behind the last. */
const char *workload_name(size_t index);

#endif
