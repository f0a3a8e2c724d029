/* line.h - lines that a person types: editing and history on a terminal (libedit), plain reading elsewhere.
 *
 * Used by: evenflow chat, evenflow run.   Owns: the last line read.   Blocks: for the person.
 *
 * On a terminal SIGINT is blocked from line_open() to line_close(): Ctrl-C while typing gives the line up, and whoever works
 * between two lines decides what it ends. The history is $XDG_STATE_HOME/evenflow/chat_history (~/.local/state), for its
 * owner alone.
 */
#ifndef EVENFLOW_LINE_H
#define EVENFLOW_LINE_H

#include <stdbool.h>

struct line;

/* program: the name that ~/.editrc may use. */
struct line *line_open(const char *program);
void line_close(struct line *line);

bool line_is_on_terminal(const struct line *line);

/* The next line without its newline, until the next call; "" also after Ctrl-C; NULL: the input has ended. */
const char *line_read(struct line *line, const char *prompt);

#endif
