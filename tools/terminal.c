#include "tools/terminal.h"

#include <sys/ioctl.h>

#define USUAL_COLUMNS 80u

uint32_t terminal_columns(int fd)
{
    struct winsize window;
    return ioctl(fd, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : USUAL_COLUMNS;
}
