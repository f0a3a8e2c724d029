/* cmd_upgrade.c - evenflow upgrade: new programs for a running engine, which goes on serving.
 *
 * It asks each program which build it is, and refuses what could not work before anything is touched. What happens then is the
 * supervisor's (engine/supervisor_upgrade.c): its answer is shown line by line.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/config.h"
#include "ipc/birth.h"
#include "ipc/control.h"
#include "ipc/shm.h"
#include "tools/commands.h"
#include "tools/inside.h"
#include "tools/budget.h"

struct values {
    char socket[OPTION_TEXT_MAX], from[OPTION_TEXT_MAX];
};

#define AT(field) offsetof(struct values, field)

static const struct option_spec specs[] = {
    {"socket", NULL, 0, OPTION_TEXT, AT(socket), NULL, 0, 0, "PATH", "The engine's socket (default: as for serve)"},
    {"from", NULL, 0, OPTION_TEXT, AT(from), NULL, 0, 0, "DIR",
     "Where the new programs are (default: where the engine's programs were when it started)"},
};
static const struct option_table table = {.specs = specs, .count = ARRAY_COUNT(specs)};

/* Which build a program is. */
struct build {
    char version[32], numerics[32];
    unsigned long long layout;
};

static int ask_build(const char *path, struct build *build, struct err *err)
{
    char line[160] = "";
    int ends[2], status = -1;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execl(path, path, "--build", (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    FILE *from = fdopen(ends[0], "r");
    bool is_said = child > 0 && from != NULL && fgets(line, sizeof(line), from) != NULL;
    if (from != NULL)
        fclose(from);
    if (child > 0)
        waitpid(child, &status, 0);
    if (!is_said || status != 0 ||
        sscanf(line, "build %31s layout %llx numerics %31s", build->version, &build->layout, build->numerics) != 3)
        return err_set(err, -ENOEXEC, "%s: does not say which build it is; is it one of evenflow's programs?", path);
    return 0;
}

static void program_path(char *path, size_t size, const char *directory, uint32_t role)
{
    snprintf(path, size, "%s/evenflow-%s", directory, role_name((enum role)role));
}

/* They can take over from the engine's: all of one build, and of the same layout. */
static int check_builds(const char *directory, const struct plan *plan, struct build *build, struct err *err)
{
    char path[PATH_MAX_BYTES + 64];
    for (uint32_t role = 0; role < ROLE_COUNT; role++) {
        struct build other;
        program_path(path, sizeof(path), directory, role);
        int ret = ask_build(path, role == 0 ? build : &other, err);
        if (ret != 0)
            return ret;
        if (role > 0 && (other.layout != build->layout || strcmp(other.numerics, build->numerics) != 0))
            return err_set(err, -EINVAL,
                           "%s: its programs are of different builds; install all of them, then try again", directory);
    }
    if (build->layout != plan->layout_hash)
        return err_set(
            err, -EINVAL,
            "%s: its programs share memory in layout %#llx, the running ones in %#llx, so they cannot go on "
            "where those are; start another engine on another socket, send clients there, and stop this one: "
            "SIGTERM lets its requests finish",
            directory, build->layout, (unsigned long long)plan->layout_hash);
    return 0;
}

/* Programs that compute other bits pack weights of their own, while the engine still has its. */
static int check_memory(const struct plan *plan, const struct build *build, struct err *err)
{
    char running[64] = "";
    const char *plus = strchr(plan->fingerprint, '+');
    uint64_t weights = 0, available = budget_available_bytes();
    if (plus != NULL)
        sscanf(plus, "+%63[^ ]", running);
    for (uint32_t stage = 0; stage < plan->stage_count; stage++)
        weights += plan->slices[stage].weights_bytes;
    if (strcmp(running, build->numerics) == 0 || available == 0 || weights <= available)
        return 0;
    return err_set(
        err, -ENOMEM,
        "the new programs compute other bits and pack weights of their own: %llu MiB, of which %llu are free",
        (unsigned long long)(weights >> 20), (unsigned long long)(available >> 20));
}

/* The engine's plan, with other words for where its programs are from. fd, or -errno with err. */
static int make_plan(const struct plan *plan, const struct build *build, const char *directory, struct err *err)
{
    struct plan *next = base_alloc(sizeof(*next));
    *next = *plan;
    const char *rest = strchr(plan->fingerprint, ' ');
    memset(next->version, 0, sizeof(next->version));
    memset(next->fingerprint, 0, sizeof(next->fingerprint));
    memset(next->program_dir, 0, sizeof(next->program_dir));
    snprintf(next->version, sizeof(next->version), "%s", build->version);
    snprintf(next->fingerprint, sizeof(next->fingerprint), "evenflow-%s+%s%s", build->version, build->numerics,
             rest != NULL ? rest : "");
    snprintf(next->program_dir, sizeof(next->program_dir), "%s", directory);
    int fd = shm_sealed_copy("evenflow-plan", next, sizeof(*next), err);
    free(next);
    return fd;
}

static int give_order(const char *socket_path, const char *directory, int plan_fd, struct err *err)
{
    struct birth order = {.magic = BIRTH_MAGIC, .part = BIRTH_WHOLE};
    int fds[BIRTH_ITEMS_MAX];
    char path[PATH_MAX_BYTES + 64];
    for (uint32_t role = 0; role < ROLE_COUNT; role++) {
        program_path(path, sizeof(path), directory, role);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return err_set(err, -errno, "%s: %s", path, strerror(errno));
        birth_add(&order, fds, BIRTH_PROGRAM, role, fd);
    }
    birth_add(&order, fds, BIRTH_REGION_READ, REGION_PLAN, plan_fd);
    int ret = control_path(path, sizeof(path), socket_path, err);
    return ret ? ret : control_ask(path, &order, fds, err);
}

/* Shows what the supervisor says. 0 when it ends well. */
static int follow(int connection, struct err *err)
{
    char line[600];
    FILE *from = fdopen(connection, "r");
    while (fgets(line, sizeof(line), from) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, CONTROL_FAILED, strlen(CONTROL_FAILED)) == 0)
            return err_set(err, -ECANCELED, "%s", line + strlen(CONTROL_FAILED));
        puts(line);
        fflush(stdout);
        if (strncmp(line, CONTROL_DONE, strlen(CONTROL_DONE)) == 0)
            return 0;
    }
    return err_set(err, -EPIPE, "the engine has hung up before it was done; evenflow status shows what runs");
}

static int upgrade(const char *socket_path, const char *from, struct err *err)
{
    struct build build = {0};
    char directory[PATH_MAX_BYTES];
    json_t *status = command_get(socket_path, "/status", err);
    if (status == NULL)
        return -ENOTCONN;
    json_t *supervisor = json_array_get(json_object_get(status, "processes"), 0);
    const struct plan *plan = inside_plan((pid_t)json_integer_value(json_object_get(supervisor, "pid")), err);
    json_decref(status);
    if (plan == NULL)
        return -ENOENT;
    if (from[0] == '\0')
        from = plan->program_dir;
    int ret = realpath(from, directory) != NULL ? 0 : err_set(err, -errno, "%s: %s", from, strerror(errno));
    ret = ret ? ret : check_builds(directory, plan, &build, err);
    ret = ret ? ret : check_memory(plan, &build, err);
    int plan_fd = ret ? ret : make_plan(plan, &build, directory, err);
    int connection = plan_fd < 0 ? plan_fd : give_order(socket_path, directory, plan_fd, err);
    return connection < 0 ? connection : follow(connection, err);
}

static int run(const void *pointer, char **positional, int positional_count)
{
    (void)positional;
    (void)positional_count;
    const struct values *values = pointer;
    char socket[OPTION_TEXT_MAX];
    struct err err = {0};
    config_socket_path(socket, sizeof(socket), values->socket);
    return upgrade(socket, values->from, &err) == 0 ? 0 : command_fail(1, "upgrade", err.text);
}

const struct subcommand command_upgrade = {.name = "upgrade",
                                           .usage = "[OPTIONS]",
                                           .help = "Replaces the programs of a running engine, which goes on serving",
                                           .options = &table,
                                           .values_bytes = sizeof(struct values),
                                           .run = run};
