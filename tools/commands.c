#include "tools/commands.h"

#include <errno.h>

const struct subcommand *const commands[] = {
    &command_serve,
    &command_run_model,
    &command_chat,
    &command_complete,
    &command_status,
    &command_top,
    &command_upgrade,
    &command_bench,
    &command_stress,
    &command_tokenize,
    &command_detokenize,
    &command_render,
    &command_perplexity,
    &command_inspect,
    &command_sim,
    &command_bench_policies,
    &command_man,
    &command_completion,
    NULL,
};

int command_fail(int status, const char *command, const char *text)
{
    fprintf(stderr, "evenflow %s: %s\n", command, text);
    return status;
}

int command_fail_for(int ret, const char *command, const struct err *err)
{
    return command_fail(ret == -EINVAL ? 2 : 1, command, err->text);
}

void command_describe_failure(const struct client_call *call, struct err *err)
{
    if (call->status == 0) {
        *err = call->err;
        return;
    }
    json_t *answer = call->answer != NULL ? json_loadb(call->answer, call->answer_size, 0, NULL) : NULL;
    const char *message = json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
    if (message != NULL)
        err_set(err, -1, "%s (status %d)", message, call->status);
    else
        err_set(err, -1, "%s: the engine answered with status %d: %.300s", call->path, call->status,
                call->answer != NULL ? call->answer : "");
    json_decref(answer);
}

json_t *command_get(const char *socket_path, const char *path, struct err *err)
{
    struct client_call call = {.method = "GET", .path = path};
    client_run(socket_path, &call, 1, 1);
    json_t *answer = call.status == 200 ? json_loadb(call.answer, call.answer_size, 0, NULL) : NULL;
    if (answer == NULL)
        command_describe_failure(&call, err);
    client_call_free(&call);
    return answer;
}
