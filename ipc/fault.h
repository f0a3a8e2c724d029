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
#include <stdbool.h>
#include <stdint.h>

/* Who comes to a point, a bit for each role (enum role), and what else it takes. */
enum fault_by {
    FAULT_BY_SUPERVISOR = 1 << 0,
    FAULT_BY_FRONT = 1 << 1,
    FAULT_BY_SCHED = 1 << 2,
    FAULT_BY_STAGE = 1 << 3,
    FAULT_WITH_URING = 1 << 4, /* with this back end of front alone */
    FAULT_WITH_EPOLL = 1 << 5, /* likewise */
    FAULT_AT_FIRST = 1 << 6,   /* only while an engine starts, when it has promised nothing and a death ends it */
};

/* X(identifier, name, who) */
#define FAULT_TABLE(X)                                                                                                 \
    X(IO_BEGUN, "io/begun", FAULT_BY_FRONT)                                                                            \
    X(CONN_OPEN, "conn/open", FAULT_BY_FRONT)                                                                          \
    X(CONN_CLOSE, "conn/close", FAULT_BY_FRONT)                                                                        \
    X(CONN_OP_BEGIN, "conn/op-begin", FAULT_BY_FRONT)                                                                  \
    X(CONN_OP_COUNT, "conn/op-count", FAULT_BY_FRONT)                                                                  \
    X(CONN_OP_END, "conn/op-end", FAULT_BY_FRONT)                                                                      \
    X(CONN_MOVE_BEGIN, "conn/move-begin", FAULT_BY_FRONT)                                                              \
    X(CONN_MOVE_TO, "conn/move-to", FAULT_BY_FRONT)                                                                    \
    X(CONN_MOVED, "conn/moved", FAULT_BY_FRONT)                                                                        \
    X(CONN_MOVE_END, "conn/move-end", FAULT_BY_FRONT)                                                                  \
    X(CONN_INTERIM, "conn/interim", FAULT_BY_FRONT)                                                                    \
    X(CONN_REPLY_FIXED, "conn/reply-fixed", FAULT_BY_FRONT)                                                            \
    X(CONN_REPLY_ANSWER, "conn/reply-answer", FAULT_BY_FRONT)                                                          \
    X(CONN_REPLY_WITHDRAW, "conn/reply-withdraw", FAULT_BY_FRONT)                                                      \
    X(CONN_REPLY_SENT, "conn/reply-sent", FAULT_BY_FRONT)                                                              \
    X(CONN_NEXT_IN, "conn/next-in", FAULT_BY_FRONT)                                                                    \
    X(CONN_NEXT_OUT, "conn/next-out", FAULT_BY_FRONT)                                                                  \
    X(CONN_NEXT_INTERIM, "conn/next-interim", FAULT_BY_FRONT)                                                          \
    X(CONN_NEXT, "conn/next", FAULT_BY_FRONT)                                                                          \
    X(CONN_DROP_INPUT, "conn/drop-input", FAULT_BY_FRONT)                                                              \
    X(IO_OPENED, "io/opened", FAULT_BY_FRONT | FAULT_WITH_URING)                                                       \
    X(IO_BEFORE_SUBMIT, "io/before-submit", FAULT_BY_FRONT | FAULT_WITH_URING)                                         \
    X(IO_AFTER_SUBMIT, "io/after-submit", FAULT_BY_FRONT | FAULT_WITH_URING)                                           \
    X(IO_BEFORE_RELEASE, "io/before-release", FAULT_BY_FRONT | FAULT_WITH_URING)                                       \
    X(IO_BEFORE_TURN, "io/before-turn", FAULT_BY_FRONT | FAULT_WITH_URING)                                             \
    X(IO_AFTER_TURN, "io/after-turn", FAULT_BY_FRONT | FAULT_WITH_URING)                                               \
    X(CONNECTION_BEFORE_CLOSE, "connection/before-close", FAULT_BY_FRONT)                                              \
    X(CONNECTION_BEFORE_SHUTDOWN, "connection/before-shutdown", FAULT_BY_FRONT)                                        \
    X(CONNECTION_AFTER_SHUTDOWN, "connection/after-shutdown", FAULT_BY_FRONT)                                          \
    X(IO_CALL_NONE, "io/call-none", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                                 \
    X(IO_CALL, "io/call", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                                           \
    X(IO_AFTER_CALL, "io/after-call", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                               \
    X(IO_AFTER_ACCEPT, "io/after-accept", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                           \
    X(IO_BEFORE_WAIT, "io/before-wait", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                             \
    X(IO_AFTER_WAIT, "io/after-wait", FAULT_BY_FRONT | FAULT_WITH_EPOLL)                                               \
    X(KEEP_BEFORE_SEND, "keep/before-send", FAULT_BY_FRONT | FAULT_BY_SUPERVISOR)                                      \
    X(KEEP_AFTER_SEND, "keep/after-send", FAULT_BY_FRONT | FAULT_BY_SUPERVISOR)                                        \
    X(ARENA_MAP, "arena/map", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                        \
    X(ARENA_STATE, "arena/state", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                    \
    X(RING_PUSH, "ring/push", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                        \
    X(RING_RELEASE, "ring/release", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                  \
    X(BELL_RING, "bell/ring", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                        \
    X(BELL_WAIT, "bell/wait", FAULT_BY_SCHED | FAULT_BY_STAGE)                                                         \
    X(JOURNAL_REQUEST, "journal/request", FAULT_BY_FRONT)                                                              \
    X(JOURNAL_CANCEL, "journal/cancel", FAULT_BY_FRONT)                                                                \
    X(JOURNAL_STOP, "journal/stop", FAULT_BY_FRONT)                                                                    \
    X(JOURNAL_SEQUENCE, "journal/sequence", FAULT_BY_SCHED)                                                            \
    X(JOURNAL_ORDER, "journal/order", FAULT_BY_SCHED)                                                                  \
    X(JOURNAL_LOG, "journal/log", FAULT_BY_SCHED)                                                                      \
    X(JOURNAL_ANSWER, "journal/answer", FAULT_BY_SCHED)                                                                \
    X(STEP_BEGIN, "step/begin", FAULT_BY_SCHED)                                                                        \
    X(STEP_PUBLISH, "step/publish", FAULT_BY_SCHED)                                                                    \
    X(STEP_CANCEL, "step/cancel", FAULT_BY_SCHED)                                                                      \
    X(DEAL_WITH, "deal-with", FAULT_BY_SCHED)                                                                          \
    X(PROCESS_NOTE, "process/note", FAULT_BY_FRONT | FAULT_BY_SCHED | FAULT_BY_STAGE)                                  \
    X(STAGE_WEIGHTS, "stage/weights", FAULT_BY_STAGE | FAULT_AT_FIRST)                                                 \
    X(STAGE_BEGIN, "stage/begin", FAULT_BY_STAGE)                                                                      \
    X(STAGE_COMPUTED, "stage/computed", FAULT_BY_STAGE)                                                                \
    X(STAGE_MEASURED, "stage/measured", FAULT_BY_STAGE)                                                                \
    X(LEDGER_PUT, "ledger/put", FAULT_BY_FRONT)                                                                        \
    X(LEDGER_CLEAR, "ledger/clear", FAULT_BY_FRONT)                                                                    \
    X(SUPERVISOR_DEATH, "supervisor/death", FAULT_BY_SUPERVISOR)                                                       \
    X(SUPERVISOR_SUSPECT, "supervisor/suspect", FAULT_BY_SUPERVISOR)                                                   \
    X(SUPERVISOR_FORK, "supervisor/fork", FAULT_BY_SUPERVISOR)                                                         \
    X(SUPERVISOR_STANDBY, "supervisor/standby", FAULT_BY_SUPERVISOR)                                                   \
    X(SUPERVISOR_BIRTH, "supervisor/birth", FAULT_BY_SUPERVISOR)                                                       \
    X(SUPERVISOR_TAKEOVER, "supervisor/takeover", FAULT_BY_SUPERVISOR)                                                 \
    X(SUPERVISOR_KEEP, "supervisor/keep", FAULT_BY_SUPERVISOR)

enum fault_id {
#define X(id, name, by) FAULT_##id,
    FAULT_TABLE(X)
#undef X
        FAULT_COUNT
};
#define FAULT_ANYWHERE FAULT_COUNT

extern const char *const fault_names[FAULT_COUNT];
extern const uint32_t fault_by[FAULT_COUNT]; /* enum fault_by */

#define FAULT_PROCESSES_MAX 35u

/* "Die there": to one process, by process number; its successors are meant too, until it is done. */
struct fault_order_shm {
    _Atomic uint32_t countdown; /* W: who gives the order and the process, release: times it comes there, 0: no order */
    uint32_t point;             /* W: who gives the order, before; enum fault_id or FAULT_ANYWHERE */
    uint32_t signal;            /* likewise */
    uint32_t died_at;           /* W: the process, before the last countdown: the point */
    uint64_t died_ns;           /* likewise; monotonic clock */
    uint32_t died_pid;          /* likewise: who it was, of all lives */
    uint8_t pad[100];
};
static_assert(sizeof(struct fault_order_shm) == 128, "shared");

struct fault_page_shm {
    struct fault_order_shm orders[FAULT_PROCESSES_MAX];
    _Atomic uint64_t hits[FAULT_PROCESSES_MAX][FAULT_COUNT];   /* W: the process, relaxed   R: who gives orders */
    _Atomic uint64_t deaths[FAULT_PROCESSES_MAX][FAULT_COUNT]; /* likewise */
};
static_assert(sizeof(struct fault_page_shm) == FAULT_PROCESSES_MAX * (128 + 16ul * FAULT_COUNT), "shared");

/* For who gives orders: signal at the countdown-th time (0: never mind) that the process comes to the point. SIGILL: a fault of
 * its own there, which makes what it is at suspect. */
void fault_order(struct fault_page_shm *page, uint32_t process, uint32_t point, uint32_t countdown, int signal);
uint32_t fault_order_left(const struct fault_page_shm *page, uint32_t process);
/* True: nobody will die of it any more. False: there is none left, somebody has come there. */
bool fault_take_back(struct fault_page_shm *page, uint32_t process);
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
