/* version.h - which build this is.   Used by: every process and tool. */
#ifndef EVENFLOW_VERSION_H
#define EVENFLOW_VERSION_H

#define EVENFLOW_VERSION "0.1.0"

/* Hash of everything that can change a bit of an answer (kernels and stages): the build's part of the fingerprint. */
extern const char version_numerics[];

#endif
