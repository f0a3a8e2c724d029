#include "ipc/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static bool base_sealed;
static char *check_text;
static size_t check_text_size;

int err_set(struct err *err, int code, const char *format, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
    }
    return code;
}

int err_prefix(struct err *err, int code, const char *format, ...)
{
    if (err != NULL) {
        char prefix[ERR_TEXT_MAX / 2];
        char text[ERR_TEXT_MAX];
        va_list args;
        va_start(args, format);
        vsnprintf(prefix, sizeof(prefix), format, args);
        va_end(args);
        memcpy(text, err->text, sizeof(text));
        size_t used = (size_t)snprintf(err->text, sizeof(err->text), "%s: ", prefix);
        size_t room = sizeof(err->text) - used - 1;
        size_t length = strnlen(text, sizeof(text));
        if (length > room)
            length = room;
        memcpy(err->text + used, text, length);
        err->text[used + length] = '\0';
    }
    return code;
}

void base_set_check_text(char *text, size_t size)
{
    check_text = text;
    check_text_size = size;
}

void check_failed(const char *condition, const char *file, int line)
{
    if (check_text != NULL)
        snprintf(check_text, check_text_size, "%s:%d: %s", file, line, condition);
    fprintf(stderr, "evenflow: bug: %s:%d: %s does not hold\n", file, line, condition);
    abort();
}

void *base_alloc(size_t bytes)
{
    return base_alloc_aligned(64, bytes);
}

void *base_reserve(size_t align, size_t bytes)
{
    check(!base_sealed);
    void *memory = NULL;
    if (posix_memalign(&memory, align, bytes ? bytes : 1) != 0) {
        fprintf(stderr, "evenflow: out of memory: cannot take %zu bytes at start\n", bytes);
        exit(1);
    }
    return memory;
}

void *base_alloc_aligned(size_t align, size_t bytes)
{
    bool is_large = bytes >= HUGE_PAGE_BYTES;
    void *memory = base_reserve(is_large && align < HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : align, bytes);
    if (is_large)
        madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: where there are none, small pages do, one fault each */
    memset(memory, 0, bytes ? bytes : 1);
    return memory;
}

void base_seal(void)
{
    base_sealed = true;
}
