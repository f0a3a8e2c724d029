/* fault.h - named points at which a process can be let die, to see that nothing follows from it.
 *
 * Used by: every process; tests and evenflow stress, which say who dies where.   Owns: nothing.   Never blocks.
 *
 * Only in objects that are built with EVENFLOW_FAULTS; in all others a point is nothing at all. A point stands before
 * or after whatever a successor could find half done: a store to shared memory that decides something, a system call. One
 * that stands around a store has one name for both: every other time the store is not there yet.
 *
 * A whole engine of such objects (make points) takes its orders from a file that EVENFLOW_FAULT_PAGE names.
 */
#ifndef EVENFLOW_FAULT_H
#define EVENFLOW_FAULT_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

/* X(identifier, name) */
#define FAULT_TABLE(X)                                                                                                 \
    X(IO_BEGUN, "io/begun")                                                                                            \
    X(CONN_OPEN, "conn/open")                                                                                          \
    X(CONN_CLOSE, "conn/close")                                                                                        \
    X(CONN_OP_BEGIN, "conn/op-begin")                                                                                  \
    X(CONN_OP_COUNT, "conn/op-count")                                                                                  \
    X(CONN_OP_END, "conn/op-end")                                                                                      \
    X(CONN_MOVE_BEGIN, "conn/move-begin")                                                                              \
    X(CONN_MOVE_TO, "conn/move-to")                                                                                    \
    X(CONN_MOVED, "conn/moved")                                                                                        \
    X(CONN_MOVE_END, "conn/move-end")                                                                                  \
    X(CONN_INTERIM, "conn/interim")                                                                                    \
    X(CONN_REPLY_FIXED, "conn/reply-fixed")                                                                            \
    X(CONN_REPLY_ANSWER, "conn/reply-answer")                                                                          \
    X(CONN_REPLY_WITHDRAW, "conn/reply-withdraw")                                                                      \
    X(CONN_REPLY_SENT, "conn/reply-sent")                                                                              \
    X(CONN_NEXT_IN, "conn/next-in")                                                                                    \
    X(CONN_NEXT_OUT, "conn/next-out")                                                                                  \
    X(CONN_NEXT_INTERIM, "conn/next-interim")                                                                          \
    X(CONN_NEXT, "conn/next")                                                                                          \
    X(CONN_DROP_INPUT, "conn/drop-input")                                                                              \
    X(IO_OPENED, "io/opened")                                                                                          \
    X(IO_BEFORE_SUBMIT, "io/before-submit")                                                                            \
    X(IO_AFTER_SUBMIT, "io/after-submit")                                                                              \
    X(IO_BEFORE_RELEASE, "io/before-release")                                                                          \
    X(IO_BEFORE_TURN, "io/before-turn")                                                                                \
    X(IO_AFTER_TURN, "io/after-turn")                                                                                  \
    X(CONNECTION_BEFORE_CLOSE, "connection/before-close")                                                              \
    X(CONNECTION_BEFORE_SHUTDOWN, "connection/before-shutdown")                                                        \
    X(CONNECTION_AFTER_SHUTDOWN, "connection/after-shutdown")                                                          \
    X(IO_CALL_NONE, "io/call-none")                                                                                    \
    X(IO_CALL, "io/call")                                                                                              \
    X(IO_AFTER_CALL, "io/after-call")                                                                                  \
    X(IO_AFTER_ACCEPT, "io/after-accept")                                                                              \
    X(IO_BEFORE_WAIT, "io/before-wait")                                                                                \
    X(IO_AFTER_WAIT, "io/after-wait")                                                                                  \
    X(KEEP_BEFORE_SEND, "keep/before-send")                                                                            \
    X(KEEP_AFTER_SEND, "keep/after-send")                                                                              \
    X(ARENA_MAP, "arena/map")                                                                                          \
    X(ARENA_STATE, "arena/state")                                                                                      \
    X(RING_PUSH, "ring/push")                                                                                          \
    X(RING_RELEASE, "ring/release")                                                                                    \
    X(BELL_RING, "bell/ring")                                                                                          \
    X(BELL_WAIT, "bell/wait")                                                                                          \
    X(JOURNAL_REQUEST, "journal/request")                                                                              \
    X(JOURNAL_CANCEL, "journal/cancel")                                                                                \
    X(JOURNAL_SEQUENCE, "journal/sequence")                                                                            \
    X(JOURNAL_ORDER, "journal/order")                                                                                  \
    X(JOURNAL_LOG, "journal/log")                                                                                      \
    X(JOURNAL_ANSWER, "journal/answer")                                                                                \
    X(LEDGER_PUT, "ledger/put")                                                                                        \
    X(LEDGER_CLEAR, "ledger/clear")                                                                                    \
    X(STEP_BEGIN, "step/begin")                                                                                        \
    X(STEP_PUBLISH, "step/publish")                                                                                    \
    X(STEP_CANCEL, "step/cancel")                                                                                      \
    X(PROCESS_NOTE, "process/note")                                                                                    \
    X(STAGE_WEIGHTS, "stage/weights")                                                                                  \
    X(STAGE_BEGIN, "stage/begin")                                                                                      \
    X(STAGE_COMPUTED, "stage/computed")                                                                                \
    X(STAGE_MEASURED, "stage/measured")                                                                                \
    X(SUPERVISOR_DEATH, "supervisor/death")                                                                            \
    X(SUPERVISOR_FORK, "supervisor/fork")                                                                              \
    X(SUPERVISOR_STANDBY, "supervisor/standby")                                                                        \
    X(SUPERVISOR_BIRTH, "supervisor/birth")                                                                            \
    X(SUPERVISOR_TAKEOVER, "supervisor/takeover")                                                                      \
    X(SUPERVISOR_KEEP, "supervisor/keep")

enum fault_id {
#define X(id, name) FAULT_##id,
    FAULT_TABLE(X)
#undef X
        FAULT_COUNT
};
#define FAULT_ANYWHERE FAULT_COUNT

extern const char *const fault_names[FAULT_COUNT];

#define FAULT_PROCESSES_MAX 35u

/* "Die there": to one process, by process number; its successors are meant too, until it is done. */
struct fault_order_shm {
    _Atomic uint32_t
        countdown;    /* W: who gives the order, release; then the process: times it comes there, 0: no order */
    uint32_t point;   /* W: who gives the order, before; enum fault_id or FAULT_ANYWHERE */
    uint32_t signal;  /* likewise */
    uint32_t died_at; /* W: the process: the point */
    uint64_t died_ns; /* likewise; monotonic clock */
    uint8_t pad[104];
};
static_assert(sizeof(struct fault_order_shm) == 128, "shared");

struct fault_page_shm {
    struct fault_order_shm orders[FAULT_PROCESSES_MAX];
    _Atomic uint64_t hits[FAULT_PROCESSES_MAX][FAULT_COUNT];   /* W: the process, relaxed   R: who gives orders */
    _Atomic uint64_t deaths[FAULT_PROCESSES_MAX][FAULT_COUNT]; /* likewise */
};
static_assert(sizeof(struct fault_page_shm) == FAULT_PROCESSES_MAX * (128 + 16ul * FAULT_COUNT), "shared");

/* For who gives orders: signal at the countdown-th time (0: never mind) that the process comes to the point. */
void fault_order(struct fault_page_shm *page, uint32_t process, uint32_t point, uint32_t countdown, int signal);
uint32_t fault_order_left(const struct fault_page_shm *page, uint32_t process);
uint64_t fault_hits(const struct fault_page_shm *page, uint32_t process, uint32_t point);
uint64_t fault_deaths(const struct fault_page_shm *page, uint32_t process, uint32_t point);

#ifdef EVENFLOW_FAULTS
/* Called at every point when set; a test's own. */
extern void (*fault_hook)(const char *name);
void fault_point(enum fault_id point);
/* This process, by number, looks for its orders from now on. */
void fault_begin(uint32_t process);
#else
static inline void fault_point(enum fault_id point)
{
    (void)point;
}
static inline void fault_begin(uint32_t process)
{
    (void)process;
}
#endif

#endif
