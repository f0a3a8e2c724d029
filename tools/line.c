#include "tools/line.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "ipc/base.h"

#define HISTORY_LINES 1000

struct line {
    EditLine *editor; /* NULL: standard input is no terminal */
    History *history;
    char history_path[512]; /* "": it is kept nowhere */
    char prompt[32];
    bool is_given_up; /* by Ctrl-C */
    sigset_t signals_before;
    char *text;
    size_t room;
};

static char *get_prompt(EditLine *editor)
{
    struct line *line;
    el_get(editor, EL_CLIENTDATA, &line);
    return line->prompt;
}

static unsigned char give_up(EditLine *editor, int key)
{
    (void)key;
    struct line *line;
    el_get(editor, EL_CLIENTDATA, &line);
    line->is_given_up = true;
    return CC_NEWLINE;
}

/* libedit's own handler puts the terminal right, before and after. */
static unsigned char suspend(EditLine *editor, int key)
{
    (void)editor;
    (void)key;
    raise(SIGTSTP);
    return CC_REFRESH;
}

/* Makes the folders of a path. */
static bool make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool is_there = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!is_there)
            return false;
    }
    return true;
}

static void open_history(struct line *line)
{
    HistEvent event;
    line->history = history_init();
    check(line->history != NULL);
    history(line->history, &event, H_SETSIZE, HISTORY_LINES);
    history(line->history, &event, H_SETUNIQUE, 1);
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int size = -1;
    if (state != NULL && state[0] == '/')
        size = snprintf(line->history_path, sizeof(line->history_path), "%s/evenflow/chat_history", state);
    else if (home != NULL && home[0] == '/')
        size = snprintf(line->history_path, sizeof(line->history_path), "%s/.local/state/evenflow/chat_history", home);
    if (size < 0 || (size_t)size >= sizeof(line->history_path) || !make_folders(line->history_path))
        line->history_path[0] = '\0';
    else
        history(line->history, &event, H_LOAD, line->history_path);
}

/* Saved with every line: a conversation may end by a signal. */
static void remember(struct line *line, const char *text)
{
    HistEvent event;
    history(line->history, &event, H_ENTER, text);
    if (line->history_path[0] == '\0')
        return;
    mode_t mask = umask(077);
    history(line->history, &event, H_SAVE, line->history_path);
    umask(mask);
}

/* libedit prints its prompt before it takes the terminal's own keys away: what is typed in between must not be a signal. */
static void set_signal_keys(bool are_on)
{
    struct termios mode;
    if (tcgetattr(STDIN_FILENO, &mode) != 0)
        return;
    mode.c_lflag = are_on ? mode.c_lflag | ISIG : mode.c_lflag & ~(tcflag_t)ISIG;
    tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

struct line *line_open(const char *program)
{
    struct line *line = base_alloc(sizeof(*line));
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return line;
    /* libedit reads characters, not bytes: of UTF-8, whatever the environment says */
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &line->signals_before);
    line->editor = el_init(program, stdin, stdout, stderr);
    check(line->editor != NULL);
    open_history(line);
    el_set(line->editor, EL_CLIENTDATA, line);
    el_set(line->editor, EL_PROMPT, get_prompt);
    el_set(line->editor, EL_EDITOR, "emacs");
    el_set(line->editor, EL_SIGNAL, 1); /* suspending, a new size of the window, SIGTERM: the terminal is put right */
    el_set(line->editor, EL_HIST, history, line->history);
    el_set(line->editor, EL_ADDFN, "give-up", "Gives the line up", give_up);
    el_set(line->editor, EL_ADDFN, "suspend", "Stops the program", suspend);
    el_set(line->editor, EL_SETTY, "-d", "-isig", NULL); /* Ctrl-C is a key like others while a line is edited */
    el_set(line->editor, EL_BIND, "^C", "give-up", NULL);
    el_set(line->editor, EL_BIND, "^Z", "suspend", NULL);
    el_set(line->editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(line->editor, EL_BIND, "\\e[3~", "ed-delete-next-char", NULL);
    el_set(line->editor, EL_BIND, "\\e[1;5C", "em-next-word", NULL);
    el_set(line->editor, EL_BIND, "\\e[1;5D", "ed-prev-word", NULL);
    el_source(line->editor, NULL);
    return line;
}

bool line_is_on_terminal(const struct line *line)
{
    return line->editor != NULL;
}

static const char *read_plainly(struct line *line)
{
    ssize_t size = getline(&line->text, &line->room, stdin);
    if (size <= 0)
        return NULL;
    line->text[strcspn(line->text, "\r\n")] = '\0';
    return line->text;
}

const char *line_read(struct line *line, const char *prompt)
{
    if (line->editor == NULL)
        return read_plainly(line);
    snprintf(line->prompt, sizeof(line->prompt), "%s", prompt);
    line->is_given_up = false;
    int count = 0;
    set_signal_keys(false);
    const char *typed = el_gets(line->editor, &count);
    set_signal_keys(true);
    if (line->is_given_up)
        puts("^C");
    else if (typed == NULL || count <= 0)
        return NULL;
    free(line->text);
    line->text = strdup(line->is_given_up ? "" : typed);
    check(line->text != NULL);
    line->text[strcspn(line->text, "\r\n")] = '\0';
    if (line->text[0] != '\0')
        remember(line, line->text);
    return line->text;
}

void line_close(struct line *line)
{
    if (line->editor != NULL) {
        history_end(line->history);
        el_end(line->editor);
        sigprocmask(SIG_SETMASK, &line->signals_before, NULL);
    }
    free(line->text);
    free(line);
}
