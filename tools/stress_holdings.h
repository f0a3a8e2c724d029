/* stress_holdings.h - what an engine under evenflow stress holds (pools, descriptors, memory), and whether all has come back.
 *
 * Used by: evenflow stress.   Owns: nothing.   Never blocks.
 */
#ifndef EVENFLOW_STRESS_HOLDINGS_H
#define EVENFLOW_STRESS_HOLDINGS_H

#include <jansson.h>

#include "ipc/arena.h"

#define HOLDINGS_POOLS 10u

struct holdings {
    uint32_t process_count;
    uint64_t pools[HOLDINGS_POOLS];
    int64_t files[PROCESSES_MAX], own_kb[PROCESSES_MAX]; /* by process number; memory that is not shared */
    int64_t shared_kb;                                   /* of all regions, as far as the kernel has filled them in */
};

void holdings_take(struct holdings *holdings, const struct arena *inside);

/* No connection, request or step is open, and whoever shall have a spare has one that is prepared. */
bool holdings_are_quiet(const struct holdings *holdings, const struct arena *inside);

bool holdings_have_pools_of(const struct holdings *holdings, const struct holdings *before);
bool holdings_have_files_of(const struct holdings *holdings, const struct holdings *before);
/* As full as before; otherwise the text says what is not. */
bool holdings_check_pools(const struct holdings *holdings, const struct holdings *before, char *text, size_t size);
/* As many descriptors in every process, and no more memory. */
bool holdings_check_processes(const struct holdings *holdings, const struct holdings *before, char *text, size_t size);

/* Memory and descriptors, for people and for programs. */
void holdings_describe(const struct holdings *holdings, char *text, size_t size);
json_t *holdings_json(const struct holdings *holdings);

#endif
