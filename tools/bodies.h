/* bodies.h - request bodies out of JSON lines, and where each of them goes.
 *
 * Used by: evenflow complete, evenflow bench.   Owns: the texts.   Blocks: as reading a file does.
 *
 * Each becomes a stream with its usage at the end, so that the time of every token can be told; one that echoes its prompt
 * has no stream and goes as it is. A line that is not JSON goes as it is too: the engine says what is wrong with it.
 */
#ifndef EVENFLOW_BODIES_H
#define EVENFLOW_BODIES_H

#include "ipc/base.h"

struct body {
    const char *path; /* a line with "messages" is a chat, another a completion */
    char *text;
    size_t size;
    double arrival_s; /* what "arrival_s" said, which is taken out; below 0: nothing */
};

struct bodies {
    struct body *list;
    size_t count;
};

/* "-" is standard input; empty lines are passed over. 0, or -errno with err. */
int bodies_read(struct bodies *bodies, const char *path, struct err *err);
void bodies_free(struct bodies *bodies);

#endif
