/* record.h - everything that went into the scheduler and every step that came out, in a file: `serve --record`.
 *
 * Used by: the scheduler's process (writes), evenflow sim --replay (reads).   Owns: a buffer, taken at start.
 * Blocks: record_flush() as write(2) does. The file is for one build: it holds the structs of ipc/ as they are.
 *
 *   file:   struct record_head, then the plan, then entries: { struct record_entry | payload of `bytes` }
 *
 *   ACCEPT   struct request_shm | prompt page numbers | prompt ids         STEP    struct record_step | rows | tokens | blocks
 *   CANCEL   -                                                             RETURN  entries of struct token_shm
 *   DRAINED  -                                                         MEASURE entries of struct step_time_shm, one a stage
 *   STOP     -
 *
 * A STEP entry stands for every call that planned, those that gave no step included (step 0).
 */
#ifndef EVENFLOW_RECORD_H
#define EVENFLOW_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"

#define RECORD_MAGIC 0x3130434552465645ull /* "EVFREC01" */

enum record_kind {
    RECORD_ACCEPT = 1,
    RECORD_CANCEL,
    RECORD_DRAINED,
    RECORD_STEP,
    RECORD_RETURN,
    RECORD_MEASURE,
    RECORD_STOP
};

struct record_head {
    uint64_t magic;
    uint64_t layout_hash;
    uint64_t plan_bytes;
};

struct record_entry {
    uint32_t kind;   /* enum record_kind */
    uint32_t slot;   /* of the request; ACCEPT, CANCEL, STOP, DRAINED */
    uint64_t step;   /* STEP (0: none was planned), RETURN, MEASURE; STOP: bits of choices */
    uint64_t now_us; /* what the scheduler was last told */
    uint64_t bytes;
};

struct record_step {
    uint32_t row_count, token_count, block_count, result_count;
};

struct record {
    int fd; /* -1: nothing is recorded */
    const struct arena *arena;
    uint8_t *buffer;
    size_t used;
    uint64_t now_us; /* what the scheduler was last told: record_time() */
    bool has_failed; /* the disk is full, say: recording has stopped, and a line said so */
};

/* fd: open for writing, or -1. Writes head and plan. */
void record_open(struct record *record, int fd, const struct arena *arena);

void record_time(struct record *record, uint64_t now_us);
void record_accept(struct record *record, uint32_t slot);
void record_cancel(struct record *record, uint32_t slot);
void record_stop(struct record *record, uint32_t slot, uint32_t choices);
void record_drained(struct record *record, uint32_t slot);
void record_step(struct record *record, const struct step_shm *step); /* NULL: none was planned */
void record_measure(struct record *record, uint64_t step, const struct step_time_shm *times);
void record_return(struct record *record, uint64_t step, const struct token_shm *results, uint32_t count);

/* What is buffered goes to the file: before sleeping, and at the end. */
void record_flush(struct record *record);

#endif
