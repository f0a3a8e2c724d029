#include "engine/policy.h"

#include <string.h>

const struct policy *policy_find(const char *name)
{
    static const struct policy *const policies[] = {&policy_even,
                                                    &policy_batch,
                                                    &policy_default,
                                                    &policy_decode_cap,
                                                    &policy_throttle,
                                                    &policy_chunked,
                                                    &policy_batch_as_published,
                                                    &policy_fastpp};
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}
