/* terminal.h - how much fits on a line.
 *
 * Used by: what draws (picture.c, progress.c).   Owns: nothing.   Never blocks.
 */
#ifndef EVENFLOW_TERMINAL_H
#define EVENFLOW_TERMINAL_H

#include <stdint.h>

/* Columns of the terminal that a descriptor is; where it is none or does not say, 80. */
uint32_t terminal_columns(int fd);

#endif
