/* picture.h - a split of a model over stages, in plain text.
 *
 * Used by: evenflow inspect.   Owns: nothing.   Never blocks.
 *
 *   stage    layers      weights           KV       step  share
 *       0      0-16     48.2 MiB      6.4 MiB    3.21 ms   51 %  E#################.............
 *       1     17-29     60.1 MiB      4.9 MiB    3.05 ms   49 %   .................#############H
 *
 * A '#' is a layer of the stage's, a '.' one of another's, several where there is no room for all of them; E is the
 * embedding and H the head. Where lines are short the picture stands below its stage's numbers, and these below each other.
 */
#ifndef EVENFLOW_PICTURE_H
#define EVENFLOW_PICTURE_H

#include <stdint.h>
#include <stdio.h>

struct picture_stage {
    uint32_t first_layer, layer_count;
    uint64_t weights_bytes, kv_bytes;
    double step_us;
};

/* No line is longer than `columns`, from PICTURE_COLUMNS_MIN on. */
void picture_split(FILE *out, const struct picture_stage *stages, uint32_t count, uint32_t layers, uint32_t columns);

#define PICTURE_COLUMNS_MIN 24u

#endif
