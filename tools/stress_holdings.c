#include "tools/stress_holdings.h"

#include <string.h>

#include "tools/inside.h"

#define OWN_SLACK_KB    1024
#define SHARED_SLACK_KB 8192 /* slots of connections are filled in as they are first used */

static const enum counter_id pools[] = {COUNTER_FRONT_CONNECTIONS_OPEN,
                                        COUNTER_FRONT_REQUESTS_ACTIVE,
                                        COUNTER_SCHED_STEPS_IN_FLIGHT,
                                        COUNTER_FRONT_PROMPT_PAGES_FREE,
                                        COUNTER_FRONT_REQUEST_SLOTS_FREE,
                                        COUNTER_SCHED_RUNNING,
                                        COUNTER_SCHED_WAITING,
                                        COUNTER_SCHED_BLOCKS_FREE,
                                        COUNTER_SCHED_LOG_PAGES_FREE,
                                        COUNTER_SCHED_SEQUENCE_SLOTS_FREE};
static_assert(ARRAY_COUNT(pools) == HOLDINGS_POOLS, "one of each");
#define OPEN_COUNT 3u /* the first ones are 0 when nothing is open */

static const char *name_of(uint32_t process)
{
    return role_name(process < ROLE_STAGE ? (enum role)process : ROLE_STAGE);
}

void holdings_take(struct holdings *h, const struct arena *inside)
{
    *h = (struct holdings){.process_count = ROLE_STAGE + inside->plan->stage_count};
    for (size_t i = 0; i < HOLDINGS_POOLS; i++)
        h->pools[i] = counter_read(arena_process(inside, (enum role)counter_table[pools[i]].role, 0), pools[i]);
    for (uint32_t i = 0; i < h->process_count; i++) {
        pid_t pid = (pid_t)arena_process_id(inside, i);
        h->files[i] = inside_files_of(pid);
        h->own_kb[i] = inside_memory_kb_of(pid);
    }
    h->shared_kb = inside_shared_kb_of((pid_t)arena_process_id(inside, 0));
}

bool holdings_are_quiet(const struct holdings *h, const struct arena *inside)
{
    bool is_quiet = true;
    for (size_t i = 0; i < OPEN_COUNT; i++)
        is_quiet = is_quiet && h->pools[i] == 0;
    for (uint32_t i = 1; i < h->process_count && inside->plan->spares > 0; i++)
        is_quiet = is_quiet && arena_process_spare(inside, i) != 0;
    return is_quiet;
}

bool holdings_have_pools_of(const struct holdings *h, const struct holdings *before)
{
    return memcmp(h->pools, before->pools, sizeof(h->pools)) == 0;
}

bool holdings_have_files_of(const struct holdings *h, const struct holdings *before)
{
    return memcmp(h->files, before->files, h->process_count * sizeof(h->files[0])) == 0;
}

bool holdings_check_pools(const struct holdings *h, const struct holdings *before, char *text, size_t size)
{
    for (size_t i = 0; i < HOLDINGS_POOLS; i++) {
        if (h->pools[i] == before->pools[i])
            continue;
        snprintf(text, size, "%s is %llu, not %llu", counter_table[pools[i]].name, (unsigned long long)h->pools[i],
                 (unsigned long long)before->pools[i]);
        return false;
    }
    return true;
}

bool holdings_check_processes(const struct holdings *h, const struct holdings *before, char *text, size_t size)
{
    for (uint32_t i = 0; i < h->process_count; i++) {
        bool has_files = h->files[i] == before->files[i], has_memory = h->own_kb[i] <= before->own_kb[i] + OWN_SLACK_KB;
        if (!has_files)
            snprintf(text, size, "%s (process %u) has %lld descriptors, not %lld", name_of(i), i,
                     (long long)h->files[i], (long long)before->files[i]);
        else if (!has_memory)
            snprintf(text, size, "%s (process %u) has %lld kB of its own, not %lld", name_of(i), i,
                     (long long)h->own_kb[i], (long long)before->own_kb[i]);
        if (!has_files || !has_memory)
            return false;
    }
    if (h->shared_kb <= before->shared_kb + SHARED_SLACK_KB)
        return true;
    snprintf(text, size, "the regions hold %lld kB, not %lld", (long long)h->shared_kb, (long long)before->shared_kb);
    return false;
}

void holdings_describe(const struct holdings *h, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "kB/descriptors:");
    for (uint32_t i = 0; i < h->process_count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, " %s %lld/%lld", name_of(i), (long long)h->own_kb[i],
                                 (long long)h->files[i]);
    if (used < size)
        snprintf(text + used, size - used, ", shared %lld", (long long)h->shared_kb);
}

json_t *holdings_json(const struct holdings *h)
{
    json_t *processes = json_array();
    for (uint32_t i = 0; i < h->process_count; i++)
        json_array_append_new(processes, json_pack("{s:s, s:I, s:I}", "role", name_of(i), "own_kb",
                                                   (json_int_t)h->own_kb[i], "descriptors", (json_int_t)h->files[i]));
    return json_pack("{s:o, s:I}", "processes", processes, "shared_kb", (json_int_t)h->shared_kb);
}
