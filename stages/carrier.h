/* carrier.h - an end of an edge that NCCL carries (EDGE_NCCL): from slots in the writer's device to slots in the reader's.
 * A stage has two, for what comes and for what goes, each of which may be off.
 *
 * Used by: stages on devices.   Owns: its connection, and a stream of its own; slots and devices are the stage's.
 * Blocks: carriers_end(), and carriers_do_work() when a connection ends, until NCCL has given its memory back.
 *
 *   writer: step computed into its slot ── message in the ring ──► reader
 *             carrier: sends what messages say ═══► carrier: receives what messages say, in order ── step computed
 *
 * The ring between both stages says what goes over: of every message its step's activations, nothing where it counts no
 * tokens. So the two need no word beside it, and agree after any death on the first step that has to come again: the one that
 * the reader publishes next (session.h). The writer's slots hold it and all behind it: they outlive the writer, and are not
 * written again while one of their steps is in flight.
 *
 * No stage waits in its driver for what another process has to do: it looks, and computes a step once its activations have
 * come. NCCL takes and gives back memory of the device when a connection begins and ends, and that waits for all streams of
 * the process. So none of them may wait for somebody who might be dead, but those of connections that end together: while
 * something is on its way over the other edge, the end of one is put off until it has come, or that one has to end too.
 */
#ifndef EVENFLOW_CARRIER_H
#define EVENFLOW_CARRIER_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/arena.h"
#include "ipc/bell.h"
#include "kernels/cuda.h"
#include "kernels/nccl.h"

/* How long what is said to be there may take to come: a successor of the writer, and a connection. */
#define CARRIER_PATIENCE_US 1000000u

enum carrier_state {
    CARRIER_OFF,      /* there is no such edge */
    CARRIER_APART,    /* no connection; the other end, or a moment, is waited for */
    CARRIER_JOINING,  /* NCCL connects the two */
    CARRIER_TOGETHER, /* it carries */
    CARRIER_PARTING,  /* the connection is of no use any more, and ends as soon as it can */
};

enum { CARRIER_IN, CARRIER_OUT, CARRIERS };

struct carrier {
    const struct arena *arena;
    uint32_t edge; /* the stage that writes */
    bool is_reader;
    enum carrier_state state;
    struct cuda *cuda;
    struct nccl *nccl;
    struct nccl_connection connection;
    struct cuda_stream *stream;
    cuda_address slots;               /* activation_slots * activation_stride bytes, this end's */
    cuda_address words;               /* reader: one for each slot, reaches the step's number behind its activations */
    const struct ring_slot_shm *ring; /* W: the writer's stage */
    struct session_shm *own;
    const struct session_shm *theirs;
    struct bell_pull other;
    uint64_t life;           /* of the writer, that this connection is for */
    uint64_t number;         /* of the session */
    uint64_t begun, carried; /* steps, up to which this end has begun, and is done */
    bool is_entering;        /* what was begun last may not be in the stream yet */
    uint32_t failures;       /* without anything carried in between */
    uint64_t retry_ns;       /* not before */
};

/* edge: memory laid out as REGION_EDGE's. The device remembers what fails. */
void carrier_open(struct carrier *carrier, const struct arena *arena, bool is_reader, struct cuda *cuda,
                  struct nccl *nccl, cuda_address edge);

/* They belong to this process now. */
void carriers_begin(struct carrier carriers[CARRIERS]);

/* Goes on with whatever can be gone on with. next_step: that this stage publishes next. 0, or -errno (logged): one fails again
 * and again, or the device did. */
int carriers_do_work(struct carrier carriers[CARRIERS], uint64_t next_step);

/* Nothing is missing that the stage needs to begin. */
bool carriers_are_joined(const struct carrier carriers[CARRIERS]);

/* A step's activations have come, as far as it is the carrier that brings them. */
bool carriers_have(const struct carrier carriers[CARRIERS], uint64_t step);

/* How soon one has to look again although no bell is rung: nobody rings for a device. 0: a bell is enough. */
uint64_t carriers_look_ns(const struct carrier carriers[CARRIERS]);

void carriers_end(struct carrier carriers[CARRIERS]);

#endif
