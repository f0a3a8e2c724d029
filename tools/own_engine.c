#include "tools/own_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/launch.h"
#include "tools/progress.h"

/* The engine has removed its socket, unless it was killed. */
void own_engine_forget(const struct own_engine *engine)
{
    char path[128];
    unlink(engine->socket);
    snprintf(path, sizeof(path), "%s.lock", engine->socket);
    unlink(path);
    snprintf(path, sizeof(path), "%s.control", engine->socket);
    unlink(path);
    rmdir(engine->directory);
}

_Noreturn static void be_engine(const struct launch *launch, pid_t parent, int ready_fd)
{
    struct err err;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    setpgid(0, 0); /* signals of the terminal are for the command, which passes them on */
    launch_exec(launch, ready_fd, &err);
    fprintf(stderr, "evenflow: %s\n", err.text);
    _exit(1);
}

static int wait_until_ready(int ready_fd, struct err *err)
{
    char byte;
    ssize_t got;
    struct progress progress;
    struct pollfd ready = {.fd = ready_fd, .events = POLLIN};
    progress_begin(&progress, "loading", 0, NULL);
    while (poll(&ready, 1, progress_wait_ms(&progress)) <= 0)
        progress_show(&progress, 0, 0);
    progress_end(&progress);
    do {
        got = read(ready_fd, &byte, 1);
    } while (got < 0 && errno == EINTR);
    return got == 1 ? 0 : err_set(err, -ECHILD, "the engine ended before it was ready; its last words are above");
}

int own_engine_start(struct own_engine *engine, const struct config *config, const char *model_path, struct err *err)
{
    const char *temporary = getenv("TMPDIR");
    if (temporary == NULL || strlen(temporary) > 32)
        temporary = "/tmp";
    snprintf(engine->directory, sizeof(engine->directory), "%s/evenflow-XXXXXX", temporary);
    if (mkdtemp(engine->directory) == NULL)
        return err_set(err, -errno, "%s: cannot create a folder there: %s", engine->directory, strerror(errno));
    snprintf(engine->socket, sizeof(engine->socket), "%s/evenflow.sock", engine->directory);
    struct config own = *config;
    snprintf(own.socket, sizeof(own.socket), "%s", engine->socket);
    struct launch launch;
    int ready[2] = {-1, -1};
    int ret = launch_prepare(&launch, &own, model_path, err);
    if (ret == 0 && pipe2(ready, O_CLOEXEC) != 0)
        ret = err_set(err, -errno, "pipe: %s", strerror(errno));
    if (ret == 0) {
        pid_t parent = getpid();
        engine->pid = fork();
        if (engine->pid == 0)
            be_engine(&launch, parent, ready[1]);
        if (engine->pid < 0)
            ret = err_set(err, -errno, "fork: %s", strerror(errno));
        close(ready[1]);
        ret = ret ? ret : wait_until_ready(ready[0], err);
        close(ready[0]);
        if (ret != 0 && engine->pid > 0)
            waitpid(engine->pid, NULL, 0);
    }
    const int ours[] = {launch.plan_fd,   launch.vocab_fd, launch.model_fd,  launch.record_fd,
                        launch.listen_fd, launch.keys_fd,  launch.ledger_fd, launch.devices_fd};
    for (size_t i = 0; i < ARRAY_COUNT(ours); i++)
        if (ours[i] >= 0)
            close(ours[i]);
    if (ret != 0)
        own_engine_forget(engine);
    return ret;
}

int own_engine_stop(struct own_engine *engine)
{
    int status;
    kill(engine->pid, SIGTERM);
    while (waitpid(engine->pid, &status, 0) < 0)
        check(errno == EINTR);
    own_engine_forget(engine);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
