/* base.h - what every process links: checks, error texts, small arithmetic.
 *
 * Used by: every process and tool.   Owns: nothing.   Never blocks.
 *
 * Two failures, two tools. A bug (a broken promise between our own functions) is check(): always on, ends the process
 * with a report. An outcome of the outside world is a negative errno or an enum; at start-up it also carries a text
 * for a human, which says what to do, in struct err.
 */
#ifndef EVENFLOW_BASE_H
#define EVENFLOW_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ERR_TEXT_MAX    512
#define HUGE_PAGE_BYTES ((size_t)2 << 20) /* of x86-64 */

struct err {
    char text[ERR_TEXT_MAX]; /* one line for a human: what is wrong and what to do; "" when nothing was */
};

/* Stores the text and returns code (a negative errno), so that `return err_set(err, -EPROTO, "...")` reads well.
 * err may be NULL. */
int err_set(struct err *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the text that is there. Returns code. */
int err_prefix(struct err *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A promise between our own functions. Broken: prints the condition and its place, then abort(). */
#define check(condition)                                                                                               \
    do {                                                                                                               \
        if (__builtin_expect(!(condition), 0))                                                                         \
            check_failed(#condition, __FILE__, __LINE__);                                                              \
    } while (0)

/* Where else the broken promise is written down; for a process that leaves last words. */
void base_set_check_text(char *text, size_t size);

_Noreturn void check_failed(const char *condition, const char *file, int line);

#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t div_up_u64(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit;
}

static inline uint64_t align_up_u64(uint64_t value, uint64_t unit)
{
    return div_up_u64(value, unit) * unit;
}

/* Asks for memory that will be needed soon: it comes while something else is done. Reads nothing, so any address will do. */
static inline void base_expect(const void *memory, size_t size)
{
    for (size_t i = 0; i < size; i += 64)
        __builtin_prefetch((const char *)memory + i);
}

/* Memory for start-up: zeroed, never NULL (out of memory ends the process with a clear line). After base_seal() a
 * call is a bug: nothing is allocated in a loop that serves tokens. */
void *base_alloc(size_t bytes);
void *base_alloc_aligned(size_t align, size_t bytes);

/* The same, but not zeroed, and it takes pages only where it is written: for what few ever need as a whole. */
void *base_reserve(size_t align, size_t bytes);
void base_seal(void);

#endif
