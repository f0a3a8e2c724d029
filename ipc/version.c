#include "ipc/version.h"

#ifndef EVENFLOW_NUMERICS
#error "the Makefile defines EVENFLOW_NUMERICS: a hash of the sources of kernels/ and stages/"
#endif

const char version_numerics[] = EVENFLOW_NUMERICS;
