#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fake_server.h"
#include "tools/client.h"

struct seen {
    char text[1024];
    struct client *client;
    int cancel_after;
};

static void take_event(struct client_call *call, void *context, const char *data, size_t size)
{
    struct seen *seen = context;
    cr_assert_eq(strlen(data), size);
    snprintf(seen->text + strlen(seen->text), sizeof(seen->text) - strlen(seen->text), "[%s]", data);
    if (seen->cancel_after > 0 && --seen->cancel_after == 0)
        client_cancel(seen->client, call);
}

static const char stream[] =
    FAKE_STREAM_HEAD "000f\r\ndata: {\"a\":1}\n\n\r\n0017\r\n: a comment\ndata: two\n\n\r\n"
                     "0008\r\ndata: th\r\n0005\r\nree\n\n\r\n000e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

Test(client, gives_the_same_events_however_the_bytes_arrive)
{
    static const size_t pieces[] = {0, 1, 2, 3, 7, 19, 64};
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++) {
        struct fake_server server = {.answer = stream, .piece = pieces[i], .connections = 1};
        fake_server_start(&server, 8);
        struct seen seen = {0};
        struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
        client_run(server.path, &call, 1, 1);
        fake_server_end(&server);
        cr_assert_eq(call.status, 200, "%s", call.err.text);
        cr_assert_str_eq(seen.text, "[{\"a\":1}][two][three][[DONE]]", "in pieces of %zu: %s", pieces[i], seen.text);
        cr_assert_eq(call.event_count, 4);
        cr_assert(call.start_ns < call.first_event_ns && call.first_event_ns <= call.last_event_ns);
        cr_assert_leq(call.last_event_ns, call.end_ns);
    }
}

Test(client, gives_a_body_as_one_text)
{
    struct fake_server server = {
        .answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", .piece = 1, .connections = 1};
    fake_server_start(&server, 8);
    struct client_call call = {.method = "GET", .path = "/"};
    client_run(server.path, &call, 1, 1);
    fake_server_end(&server);
    cr_assert_eq(call.status, 404);
    cr_assert_str_eq(call.answer, "hello");
    client_call_free(&call);
}

Test(client, says_that_an_answer_is_not_complete)
{
    struct fake_server server = {
        .answer = FAKE_STREAM_HEAD "0009\r\ndata: a\n\n\r\n", .connections = 1, .closes_early = true};
    fake_server_start(&server, 8);
    struct seen seen = {0};
    struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
    client_run(server.path, &call, 1, 1);
    fake_server_end(&server);
    cr_assert_eq(call.status, 0);
    cr_assert_str_eq(seen.text, "[a]");
    cr_assert(strstr(call.err.text, "not complete") != NULL, "%s", call.err.text);
}

Test(client, says_what_to_do_where_no_engine_is)
{
    struct client_call call = {.method = "GET", .path = "/"};
    client_run("/tmp/evenflow-test-client-nobody.sock", &call, 1, 1);
    cr_assert_eq(call.status, 0);
    cr_assert(strstr(call.err.text, "evenflow serve") != NULL, "%s", call.err.text);
    char path[300];
    memset(path, 'x', sizeof(path));
    path[sizeof(path) - 1] = '\0';
    client_run(path, &call, 1, 1);
    cr_assert(strstr(call.err.text, "longer than") != NULL, "%s", call.err.text);
}

static void count_done(struct client_call *call, void *context)
{
    cr_assert_eq(call->status, 200, "%s", call->err.text);
    ++*(int *)context;
}

Test(client, uses_a_connection_again_when_it_may)
{
    struct fake_server server = {.answer = stream, .connections = 1, .requests_per_connection = 5};
    fake_server_start(&server, 8);
    struct err err;
    struct client *client = client_open(server.path, true, &err);
    cr_assert_not_null(client, "%s", err.text);
    int done = 0;
    for (int i = 0; i < 5; i++) {
        struct client_call call = {.method = "GET", .path = "/", .on_done = count_done, .context = &done};
        client_start(client, &call);
        while (client_active(client) > 0)
            client_turn(client, UINT64_MAX);
        client_call_free(&call);
    }
    client_close(client);
    fake_server_end(&server);
    cr_assert_eq(done, 5);
    cr_assert_eq(server.requests_seen, 5);
}

Test(client, may_be_cancelled_by_the_event_it_tells_of)
{
    struct fake_server server = {.answer = stream, .connections = 1};
    fake_server_start(&server, 8);
    struct err err;
    struct seen seen = {.client = client_open(server.path, false, &err), .cancel_after = 2};
    struct client_call call = {.method = "GET", .path = "/", .on_event = take_event, .context = &seen};
    client_start(seen.client, &call);
    while (client_active(seen.client) > 0)
        client_turn(seen.client, UINT64_MAX);
    client_close(seen.client);
    fake_server_end(&server);
    cr_assert_str_eq(seen.text, "[{\"a\":1}][two]");
    cr_assert_eq(call.status, 0);
    cr_assert_eq(server.hangups_seen, 1);
}

Test(client, a_call_that_waits_for_its_connection_can_be_cancelled)
{
    struct fake_server server = {.answer = stream, .connections = 2};
    fake_server_start(&server, 8);
    struct err err;
    struct client *client = client_open(server.path, false, &err);
    int done = 0;
    struct client_call calls[3];
    for (int i = 0; i < 3; i++) {
        calls[i] = (struct client_call){.method = "GET", .path = "/", .on_done = count_done, .context = &done};
        client_start(client, &calls[i]);
    }
    client_cancel(client, &calls[2]);
    cr_assert_eq(client_active(client), 2);
    client_start(client, &calls[2]);
    client_cancel(client, &calls[0]);
    while (client_active(client) > 0)
        client_turn(client, UINT64_MAX);
    client_close(client);
    fake_server_end(&server);
    cr_assert_eq(done, 2);
    for (int i = 0; i < 3; i++)
        client_call_free(&calls[i]);
}

Test(client, waits_where_the_queue_of_the_listener_is_full)
{
    struct fake_server server = {.answer = stream, .connections = 100};
    fake_server_start(&server, 1);
    static struct client_call calls[100];
    for (int i = 0; i < 100; i++)
        calls[i] = (struct client_call){.method = "GET", .path = "/"};
    client_run(server.path, calls, 100, 100);
    fake_server_end(&server);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(calls[i].status, 200, "%s", calls[i].err.text);
        client_call_free(&calls[i]);
    }
    cr_assert_eq(server.requests_seen, 100);
}
