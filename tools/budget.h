/* budget.h - what an engine takes of the machine: said before it starts, and refused where it cannot be had.
 *
 * Used by: the launcher, evenflow upgrade.   Owns: nothing.   Never blocks.
 */
#ifndef EVENFLOW_BUDGET_H
#define EVENFLOW_BUDGET_H

#include "ipc/plan.h"

/* Prints the model, its split and what memory they take (log level info and above). 0, or -ENOMEM or -EMFILE with err. */
int budget_say(const struct plan *plan, struct err *err);

/* Memory that the machine can still give; 0: it does not say. */
uint64_t budget_available_bytes(void);

#endif
