#include "engine/record.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "ipc/journal.h"
#include "ipc/log.h"

#define BUFFER_BYTES (1u << 20)

static void write_out(struct record *record, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    while (size > 0 && !record->has_failed) {
        ssize_t written = write(record->fd, at, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            log_error("--record: cannot write: %s; recording ends here, serving goes on", strerror(errno));
            record->has_failed = true;
            return;
        }
        at += written;
        size -= (size_t)written;
    }
}

void record_flush(struct record *record)
{
    if (record->fd < 0 || record->used == 0)
        return;
    write_out(record, record->buffer, record->used);
    record->used = 0;
}

static void put(struct record *record, const void *bytes, size_t size)
{
    if (record->used + size > BUFFER_BYTES)
        record_flush(record);
    if (size > BUFFER_BYTES) {
        write_out(record, bytes, size);
        return;
    }
    memcpy(record->buffer + record->used, bytes, size);
    record->used += size;
}

void record_open(struct record *record, int fd, const struct arena *arena)
{
    *record = (struct record){.fd = fd, .arena = arena};
    if (fd < 0)
        return;
    record->buffer = base_alloc(BUFFER_BYTES);
    const struct record_head head = {
        .magic = RECORD_MAGIC, .layout_hash = LAYOUT_HASH, .plan_bytes = sizeof(struct plan)};
    put(record, &head, sizeof(head));
    put(record, arena->plan, sizeof(struct plan));
}

static void put_entry(struct record *record, enum record_kind kind, uint32_t slot, uint64_t step, uint64_t bytes)
{
    const struct record_entry entry = {
        .kind = kind, .slot = slot, .step = step, .now_us = record->now_us, .bytes = bytes};
    put(record, &entry, sizeof(entry));
}

/* Front's word, before the core has looked at it. */
static bool is_readable(const struct arena *arena, uint32_t slot)
{
    uint32_t tokens = arena_request(arena, slot)->prompt_tokens;
    if (tokens > arena->plan->max_model_len)
        return false;
    for (uint32_t page = 0; page < div_up_u64(tokens, PAGE_TOKENS); page++)
        if (arena_prompt_list(arena, slot)[page] >= arena->plan->prompt_pages)
            return false;
    return true;
}

void record_time(struct record *record, uint64_t now_us)
{
    record->now_us = now_us;
}

void record_accept(struct record *record, uint32_t slot)
{
    if (record->fd < 0)
        return;
    const struct request_shm *request = arena_request(record->arena, slot);
    if (!is_readable(record->arena, slot)) { /* the core refuses it without its prompt, then and now */
        put_entry(record, RECORD_ACCEPT, slot, 0, sizeof(*request));
        put(record, request, sizeof(*request));
        return;
    }
    uint32_t pages = (uint32_t)div_up_u64(request->prompt_tokens, PAGE_TOKENS);
    put_entry(record, RECORD_ACCEPT, slot, 0,
              sizeof(*request) + ((uint64_t)pages + request->prompt_tokens) * sizeof(uint32_t));
    put(record, request, sizeof(*request));
    put(record, arena_prompt_list(record->arena, slot), pages * sizeof(uint32_t));
    for (uint32_t first = 0; first < request->prompt_tokens; first += PAGE_TOKENS) {
        uint32_t tokens[PAGE_TOKENS], count = (uint32_t)min_u64(PAGE_TOKENS, request->prompt_tokens - first);
        journal_prompt_read(record->arena, slot, first, count, tokens);
        put(record, tokens, count * sizeof(uint32_t));
    }
}

void record_cancel(struct record *record, uint32_t slot)
{
    if (record->fd >= 0)
        put_entry(record, RECORD_CANCEL, slot, 0, 0);
}

void record_stop(struct record *record, uint32_t slot, uint32_t choices)
{
    if (record->fd >= 0)
        put_entry(record, RECORD_STOP, slot, choices, 0);
}

void record_drained(struct record *record, uint32_t slot)
{
    if (record->fd >= 0)
        put_entry(record, RECORD_DRAINED, slot, 0, 0);
}

void record_step(struct record *record, const struct step_shm *step)
{
    if (record->fd < 0)
        return;
    if (step == NULL) {
        put_entry(record, RECORD_STEP, 0, 0, 0);
        return;
    }
    const struct record_step counts = {step->row_count, step->token_count, step->block_count, step->result_count};
    size_t rows = counts.row_count * sizeof(struct row_shm), tokens = counts.token_count * sizeof(uint32_t);
    size_t blocks = counts.block_count * sizeof(uint32_t);
    put_entry(record, RECORD_STEP, 0, step->step, sizeof(counts) + rows + tokens + blocks);
    put(record, &counts, sizeof(counts));
    put(record, arena_step_rows(record->arena, step), rows);
    put(record, arena_step_tokens(record->arena, step), tokens);
    put(record, arena_step_blocks(record->arena, step), blocks);
}

void record_measure(struct record *record, uint64_t step, const struct step_time_shm *times)
{
    if (record->fd < 0)
        return;
    put_entry(record, RECORD_MEASURE, 0, step, record->arena->plan->stage_count * sizeof(*times));
    put(record, times, record->arena->plan->stage_count * sizeof(*times));
}

void record_return(struct record *record, uint64_t step, const struct token_shm *results, uint32_t count)
{
    if (record->fd < 0)
        return;
    put_entry(record, RECORD_RETURN, 0, step, count * sizeof(*results));
    put(record, results, count * sizeof(*results));
}
