/* fuzz.h - what the fuzz targets share. Each fuzz_*.c is one target: a function of bytes that check()s what must hold.
 *
 * libFuzzer drives them in `make fuzz`, fuzz_main.c in `make test`.
 */
#ifndef EVENFLOW_TESTS_FUZZ_H
#define EVENFLOW_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An input that is taken apart from its front; zeros once it is used up. */
struct fuzz_input {
    const uint8_t *data;
    size_t size;
};

static inline uint8_t fuzz_byte(struct fuzz_input *input)
{
    if (input->size == 0)
        return 0;
    input->size--;
    return *input->data++;
}

/* From 0 to max. */
static inline uint32_t fuzz_number(struct fuzz_input *input, uint32_t max)
{
    uint32_t value = fuzz_byte(input);
    if (max > UINT8_MAX)
        value = value << 8 | fuzz_byte(input);
    return value % (max + 1);
}

#endif
