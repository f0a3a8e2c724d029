#include "ipc/fault.h"

#ifdef EVENFLOW_FAULTS
void (*fault_hook)(const char *name);

void fault_point(const char *name)
{
    if (fault_hook != 0)
        fault_hook(name);
}
#endif
