/* front_routes.c - a request's life: which path does what, replies, errors. */
#include <stdio.h>
#include <string.h>

#include "engine/front_inside.h"
#include "engine/report.h"
#include "ipc/clock.h"
#include "ipc/log.h"

#define RETRY_AFTER_S 1u

/* ---- replies ---- */

/* Where the message ends that is being replied to; of a refused one nobody knows. */
static uint64_t message_end_of(const struct front *f, uint32_t slot)
{
    const struct connection *c = &f->connections[slot];
    const struct conn_shm *shm = shm_of(f, slot);
    return c->reader.result == HTTP_READY ? shm->message_first + c->reader.parsed : shm->received;
}

/* Of a page that may read the reply; "": there is none. */
static const char *origin_of(const struct front *f, uint32_t slot)
{
    const struct http_reader *reader = &f->connections[slot].reader;
    bool is_allowed = shm_of(f, slot)->is_tcp && reader->has_origin && access_allows_origin(&f->access, reader->origin);
    return is_allowed ? reader->origin : "";
}

/* Puts a whole reply into `out`. */
static void reply_with(struct front *f, uint32_t slot, struct http_response *response, const char *body, size_t size)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    c->closes = c->closes || !c->reader.keeps_alive;
    response->framing = response->status == 204 ? HTTP_NO_BODY : HTTP_LENGTH;
    response->retry_after_s = response->status == 429 || response->status == 503 ? RETRY_AFTER_S : 0;
    response->content_length = size;
    response->request_id = c->reader.request_id;
    response->allow_origin = origin_of(f, slot);
    response->closes = c->closes;
    response->is_version_1_0 = c->reader.is_version_1_0;
    check(c->rendered == shm->interim_end && size <= REPLY_MAX);
    char *out = (char *)out_of(f, slot) + (c->rendered - c->out_origin);
    size_t reply_size = http_write_head(out, response);
    if (c->reader.verb != HTTP_VERB_HEAD) {
        memcpy(out + reply_size, body, size);
        reply_size += size;
    }
    conn_reply_fixed(shm, message_end_of(f, slot), c->closes, (uint32_t)reply_size);
    c->rendered = shm->reply_end;
    c->is_rendered = true;
    front_connection_set_phase(f, slot, CONN_ANSWERING);
    front_pump(f, slot);
}

static void reply_json(struct front *f, uint32_t slot, int status, const struct json_writer *body)
{
    struct http_response response = {.status = status, .content_type = "application/json"};
    reply_with(f, slot, &response, body->data, body->size);
}

static struct json_writer reply_body(struct front *f)
{
    return (struct json_writer){f->reply, 0, REPLY_MAX};
}

static void reply_error(struct front *f, uint32_t slot, const struct api_error *error, const char *allow)
{
    struct json_writer body = reply_body(f);
    api_write_error(&body, error);
    counter_add(f->process, COUNTER_FRONT_REQUESTS_FAILED, 1);
    log_debug("connection %u: %d %s", slot, error->status, error->message);
    struct http_response response = {
        .status = error->status,
        .content_type = "application/json",
        .allow = allow,
        .wants_credentials = error->status == 401,
    };
    reply_with(f, slot, &response, body.data, body.size);
}

/* ---- requests ---- */

static bool is_draining(const struct front *f)
{
    return f->command == COMMAND_DRAIN || f->command == COMMAND_STOP;
}

static void begin_answer(struct front *f, uint32_t slot, uint32_t request, const struct answer_format *format)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    /* a stream to HTTP/1.0 has no other end than the connection's */
    c->closes = !c->reader.keeps_alive || (format->is_stream && c->reader.is_version_1_0);
    shm->format = *format;
    shm->format.closes = c->closes;
    shm->format.is_version_1_0 = c->reader.is_version_1_0;
    strcpy(shm->format.request_id, c->reader.request_id);
    strcpy(shm->format.allow_origin, origin_of(f, slot));
    /* in this order: a successor that finds the reply without its request takes the message again */
    conn_reply_answer(shm, message_end_of(f, slot), c->closes, request, arena_request(f->arena, request)->generation);
    intake_commit(&f->intake, request, format->kind == ANSWER_CHAT, shm->format.request_id);
    answer_begin(&c->answer, f->arena, &f->tok, &shm->format, request, f->choices);
    c->is_rendered = false;
    front_connection_set_phase(f, slot, CONN_ANSWERING);
    front_pump(f, slot);
}

static void complete(struct front *f, uint32_t slot, enum api_endpoint endpoint, const char *body, size_t size)
{
    struct api_request asked;
    struct api_error error;
    uint32_t request;
    if (is_draining(f)) {
        api_fail(&error, 503, "", "shutting_down", "the server is shutting down and takes no new requests");
        reply_error(f, slot, &error, NULL);
        return;
    }
    if (!arena_has_started(f->arena)) {
        api_fail(&error, 503, "", "starting", "the server is starting; try again later");
        reply_error(f, slot, &error, NULL);
        return;
    }
    f->api.now_s = clock_wall_s();
    if (api_parse(&f->api, endpoint, body, size, &asked, &error) != 0) {
        reply_error(f, slot, &error, NULL);
        return;
    }
    counter_add(f->process, COUNTER_FRONT_UNKNOWN_FIELDS, asked.unknown_fields);
    int ret = intake_prepare(&f->intake, &asked, slot, &request);
    while (ret == 0 && asked.prompt_index + 1 < asked.prompt_count) {
        if (api_next_prompt(&f->api, &asked, &error) != 0) {
            intake_withdraw(&f->intake, request);
            reply_error(f, slot, &error, NULL);
            return;
        }
        ret = intake_prepare(&f->intake, &asked, slot, &request);
    }
    if (ret != 0) {
        api_fail(&error, 429, "", "too_many_requests",
                 "%u requests are running or waiting, and no more fit; try again later", f->intake.active);
        reply_error(f, slot, &error, NULL);
        return;
    }
    begin_answer(f, slot, request, &asked.format);
}

typedef void handler_fn(struct front *f, uint32_t slot, const char *body, size_t size);

static void handle_completions(struct front *f, uint32_t slot, const char *body, size_t size)
{
    complete(f, slot, API_COMPLETIONS, body, size);
}

static void handle_chat(struct front *f, uint32_t slot, const char *body, size_t size)
{
    complete(f, slot, API_CHAT_COMPLETIONS, body, size);
}

static void handle_tokenize(struct front *f, uint32_t slot, const char *body, size_t size)
{
    struct json_writer writer = reply_body(f);
    struct api_error error;
    f->api.now_s = clock_wall_s(); /* a template may ask for it */
    if (api_tokenize(&f->api, body, size, &writer, &error) != 0)
        reply_error(f, slot, &error, NULL);
    else
        reply_json(f, slot, 200, &writer);
}

static void handle_detokenize(struct front *f, uint32_t slot, const char *body, size_t size)
{
    struct json_writer writer = reply_body(f);
    struct api_error error;
    if (api_detokenize(&f->api, body, size, &writer, &error) != 0)
        reply_error(f, slot, &error, NULL);
    else
        reply_json(f, slot, 200, &writer);
}

static void reply_state(struct front *f, uint32_t slot, bool is_good, const char *bad)
{
    struct json_writer writer = reply_body(f);
    json_format(&writer, "{\"status\":\"%s\"}", is_good ? "ok" : bad);
    reply_json(f, slot, is_good ? 200 : 503, &writer);
}

static void handle_health(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    reply_state(f, slot, !is_draining(f), "shutting down");
}

static void handle_ready(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    reply_state(f, slot, arena_is_ready(f->arena) && !is_draining(f), is_draining(f) ? "shutting down" : "starting");
}

static void handle_report(struct front *f, uint32_t slot, void (*report)(struct json_writer *, const struct arena *))
{
    struct json_writer writer = reply_body(f);
    report(&writer, f->arena);
    reply_json(f, slot, 200, &writer);
}

static void handle_models(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_models);
}

static void handle_version(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_version);
}

static void handle_status(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    handle_report(f, slot, report_status);
}

static void handle_metrics(struct front *f, uint32_t slot, const char *body, size_t size)
{
    (void)body;
    (void)size;
    struct json_writer writer = reply_body(f);
    report_metrics(&writer, f->arena);
    struct http_response response = {.status = 200, .content_type = "text/plain; version=0.0.4; charset=utf-8"};
    reply_with(f, slot, &response, writer.data, writer.size);
}

static const struct route {
    const char *path;
    bool is_post; /* else GET and HEAD */
    handler_fn *handle;
} routes[] = {
    {"/v1/chat/completions", true, handle_chat},
    {"/v1/completions", true, handle_completions},
    {"/v1/models", false, handle_models},
    {"/health", false, handle_health},
    {"/ready", false, handle_ready},
    {"/version", false, handle_version},
    {"/status", false, handle_status},
    {"/metrics", false, handle_metrics},
    {"/tokenize", true, handle_tokenize},
    {"/detokenize", true, handle_detokenize},
};

#define MODEL_PATH "/v1/models/"

static bool is_model_path(const char *path)
{
    return strncmp(path, MODEL_PATH, strlen(MODEL_PATH)) == 0;
}

/* What TCP clients must pass: pages of other origins ask for nothing, and but for probes a key is needed. True: refused. */
static bool is_kept_out(struct front *f, uint32_t slot)
{
    const struct http_reader *reader = &f->connections[slot].reader;
    struct api_error error;
    if (!shm_of(f, slot)->is_tcp)
        return false;
    if (reader->has_origin && origin_of(f, slot)[0] == '\0') {
        api_fail(&error, 403, "", "origin_not_allowed", "pages from '%.128s' may not ask here; see --allowed-origins",
                 reader->origin);
    } else if (reader->verb == HTTP_VERB_OPTIONS && reader->has_origin) {
        struct http_response response = {.status = 204, .is_preflight = true};
        reply_with(f, slot, &response, "", 0);
        return true;
    } else if (f->access.key_count > 0 && strcmp(reader->path, "/health") != 0 && strcmp(reader->path, "/ready") != 0 &&
               !access_has_key(&f->access, reader->credentials)) {
        api_fail(&error, 401, "", "invalid_api_key", "an API key is needed: Authorization: Bearer KEY");
    } else {
        return false;
    }
    reply_error(f, slot, &error, NULL);
    return true;
}

void front_route(struct front *f, uint32_t slot, const char *body, size_t size)
{
    const struct http_reader *reader = &f->connections[slot].reader;
    if (is_kept_out(f, slot))
        return;
    static const struct route model_route = {MODEL_PATH, false, NULL};
    const struct route *route = is_model_path(reader->path) ? &model_route : NULL;
    struct api_error error;
    for (size_t i = 0; i < ARRAY_COUNT(routes) && route == NULL; i++)
        if (strcmp(reader->path, routes[i].path) == 0)
            route = &routes[i];
    if (route == NULL) {
        api_fail(&error, 404, "", "not_found", "there is nothing at %.200s", reader->path);
        reply_error(f, slot, &error, NULL);
    } else if (route->is_post ? reader->verb != HTTP_VERB_POST
                              : reader->verb != HTTP_VERB_GET && reader->verb != HTTP_VERB_HEAD) {
        api_fail(&error, 405, "", "method_not_allowed", "%.200s: only %s is allowed", reader->path,
                 route->is_post ? "POST" : "GET");
        reply_error(f, slot, &error, route->is_post ? "POST" : "GET, HEAD");
    } else if (route->handle != NULL) {
        route->handle(f, slot, body, size);
    } else if (strcmp(reader->path + strlen(MODEL_PATH), f->plan->served_model_name) == 0) {
        handle_report(f, slot, report_model);
    } else {
        api_fail(&error, 404, "model", "model_not_found", "the model '%.100s' does not exist here; '%.100s' does",
                 reader->path + strlen(MODEL_PATH), f->plan->served_model_name);
        reply_error(f, slot, &error, NULL);
    }
}

void front_refuse(struct front *f, uint32_t slot, int status, const char *reason)
{
    struct api_error error;
    if (status == 413)
        api_fail(&error, status, "", "body_too_large", "%s; at most %u bytes are taken", reason,
                 f->plan->body_bytes_max);
    else
        api_fail(&error, status, "", NULL, "%s", reason);
    f->connections[slot].closes = true; /* where the next message starts is not known */
    reply_error(f, slot, &error, NULL);
}
