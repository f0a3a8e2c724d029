/* control.h - orders to a running engine, over a socket beside its own: PATH.control.
 *
 * Used by: supervisor (listens), evenflow upgrade, processes that somebody else has started (ask).   Owns: nothing;
 * descriptors are the caller's. Blocks: control_ask() until the engine takes the connection.
 *
 * An order is one message of fixed size, a birth message's (birth.h) with descriptors: programs, and a plan. The
 * answer is text, a line for each thing that happens, and ends with a line that begins with CONTROL_DONE or
 * CONTROL_FAILED; then the connection ends. There is one order at a time. A process that wants to be a spare says so
 * here, and its connection is its birth socket.
 */
#ifndef EVENFLOW_CONTROL_H
#define EVENFLOW_CONTROL_H

#include "ipc/base.h"
#include "ipc/birth.h"

#define CONTROL_DONE   "done: "
#define CONTROL_FAILED "failed: "

/* Where the engine on this socket listens for orders. -ENAMETOOLONG with err. */
int control_path(char *path, size_t size, const char *socket_path, struct err *err);

/* A listening socket for its user alone, in place of what is there. fd, or -errno with err. */
int control_listen(const char *path, struct err *err);

/* Takes a connection of the same user's, or of root's. fd; -EAGAIN: there is none; -EACCES: somebody else's, closed. */
int control_accept(int listener);

/* Connects and gives an order. The connection, or -errno with err. */
int control_ask(const char *path, const struct birth *order, const int *fds, struct err *err);

/* A program whose arguments are --attach SOCKET [--index N] asks the engine there for a birth as a spare of this
 * role. The birth socket; -1: these are not its arguments; else -errno with err. */
int control_attach(enum role role, int argc, char **argv, struct err *err);

/* Says a line; what nobody hears goes missing. */
void control_say(int connection, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
