#include "tools/bodies.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct body make_body(const char *line, size_t size)
{
    struct body body = {.path = "/v1/completions", .arrival_s = -1};
    json_t *root = json_loadb(line, size, 0, NULL);
    if (!json_is_object(root)) {
        json_decref(root);
        body.text = strndup(line, size);
        check(body.text != NULL);
        body.size = size;
        return body;
    }
    if (json_object_get(root, "messages") != NULL)
        body.path = "/v1/chat/completions";
    json_t *arrival = json_object_get(root, "arrival_s");
    if (json_is_number(arrival))
        body.arrival_s = json_number_value(arrival);
    json_object_del(root, "arrival_s");
    if (!json_is_true(json_object_get(root, "echo"))) {
        json_object_set_new(root, "stream", json_true());
        if (!json_is_object(json_object_get(root, "stream_options")))
            json_object_set_new(root, "stream_options", json_object());
        json_object_set_new(json_object_get(root, "stream_options"), "include_usage", json_true());
    }
    body.text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    check(body.text != NULL);
    body.size = strlen(body.text);
    json_decref(root);
    return body;
}

int bodies_read(struct bodies *bodies, const char *path, struct err *err)
{
    *bodies = (struct bodies){0};
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL)
        return err_set(err, -errno, "%s: cannot open it: %s", path, strerror(errno));
    char *line = NULL;
    size_t line_room = 0, room = 0;
    errno = 0;
    for (ssize_t size; (size = getline(&line, &line_room, file)) > 0;) {
        while (size > 0 && (line[size - 1] == '\n' || line[size - 1] == '\r'))
            size--;
        if (size == 0)
            continue;
        if (bodies->count == room) {
            room = 2 * room + 64;
            bodies->list = realloc(bodies->list, room * sizeof(*bodies->list));
            check(bodies->list != NULL);
        }
        bodies->list[bodies->count++] = make_body(line, (size_t)size);
    }
    int ret = ferror(file) ? err_set(err, -errno, "%s: cannot read it: %s", path, strerror(errno)) : 0;
    free(line);
    if (file != stdin)
        fclose(file);
    if (ret != 0)
        bodies_free(bodies);
    return ret;
}

void bodies_free(struct bodies *bodies)
{
    for (size_t i = 0; i < bodies->count; i++)
        free(bodies->list[i].text);
    free(bodies->list);
    *bodies = (struct bodies){0};
}
