#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/http.h"

#define BODY_MAX 1000u

/* Reads one message that arrives in pieces: cuts[i] true means that a piece ends before byte i. NULL: in one. */
static struct http_reader read_pieces(const char *message, size_t size, const bool *cuts)
{
    struct http_reader reader;
    http_reader_init(&reader, BODY_MAX);
    for (size_t end = 1; end <= size; end++)
        if (end == size || (cuts != NULL && cuts[end]))
            if (http_reader_feed(&reader, (const uint8_t *)message, end) != HTTP_MORE)
                break;
    return reader;
}

static struct http_reader read_at_once(const char *message)
{
    return read_pieces(message, strlen(message), NULL);
}

static void expect_same(const struct http_reader *a, const struct http_reader *b, const char *message)
{
    cr_assert_eq(a->result, b->result, "result of %.60s", message);
    cr_assert_eq(a->status, b->status, "status of %.60s: %d %d", message, a->status, b->status);
    cr_assert_eq(a->reason == NULL, b->reason == NULL);
    if (a->reason != NULL)
        cr_assert_str_eq(a->reason, b->reason);
    if (a->result != HTTP_READY)
        return;
    cr_assert_eq(a->parsed, b->parsed, "length of %.60s: %zu %zu", message, a->parsed, b->parsed);
    cr_assert_eq(a->verb, b->verb);
    cr_assert_str_eq(a->path, b->path);
    cr_assert_str_eq(a->request_id, b->request_id);
    cr_assert_eq(a->expects_continue, b->expects_continue);
    cr_assert_eq(a->keeps_alive, b->keeps_alive);
    cr_assert_eq(a->is_version_1_0, b->is_version_1_0);
    cr_assert_eq(a->body_size, b->body_size);
    static uint8_t body_a[BODY_MAX + 1], body_b[BODY_MAX + 1];
    http_body_copy(a, (const uint8_t *)message, body_a);
    http_body_copy(b, (const uint8_t *)message, body_b);
    cr_assert_eq(memcmp(body_a, body_b, a->body_size), 0);
}

Test(http, reads_a_request_with_its_body)
{
    const char *message = "POST /v1/completions?x=1 HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: abc-7\r\n"
                          "Content-Length: 5\r\n\r\nhello";
    struct http_reader reader = read_at_once(message);
    cr_assert_eq(reader.result, HTTP_READY);
    cr_expect_eq(reader.verb, HTTP_VERB_POST);
    cr_expect_str_eq(reader.path, "/v1/completions");
    cr_expect_str_eq(reader.request_id, "abc-7");
    cr_expect(reader.keeps_alive);
    cr_expect_not(reader.is_version_1_0);
    cr_expect_eq(reader.body_size, 5);
    cr_expect_eq(memcmp(message + reader.body_first, "hello", 5), 0);
    cr_expect_eq(reader.parsed, strlen(message));
}

Test(http, stops_after_one_message_of_a_pipeline)
{
    const char *first = "GET /health HTTP/1.1\r\n\r\n";
    char both[256];
    snprintf(both, sizeof(both), "%sPOST /b HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET /c HTTP/1.1\r\n\r\n", first);
    struct http_reader reader = read_at_once(both);
    cr_assert_eq(reader.result, HTTP_READY);
    cr_assert_eq(reader.parsed, strlen(first));
    const char *rest = both + reader.parsed;
    reader = read_at_once(rest);
    cr_assert_eq(reader.result, HTTP_READY);
    cr_expect_str_eq(reader.path, "/b");
    cr_expect_eq(rest[reader.body_first], 'x');
    rest += reader.parsed;
    reader = read_at_once(rest);
    cr_assert_eq(reader.result, HTTP_READY);
    cr_expect_str_eq(reader.path, "/c");
    cr_expect_eq(rest[reader.parsed], '\0');
}

Test(http, joins_a_chunked_body)
{
    const char *message = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                          "3\r\nabc\r\n1;name=value\r\nd\r\n2\r\nef\r\n0\r\nTrailer: x\r\n\r\n";
    struct http_reader reader = read_at_once(message);
    cr_assert_eq(reader.result, HTTP_READY);
    cr_expect_eq(reader.parsed, strlen(message));
    cr_assert_eq(reader.body_size, 6);
    uint8_t body[7] = {0};
    http_body_copy(&reader, (const uint8_t *)message, body);
    cr_expect_str_eq((char *)body, "abcdef");
}

Test(http, knows_when_a_connection_ends)
{
    static const struct {
        const char *message;
        bool keeps_alive;
    } cases[] = {{"GET / HTTP/1.1\r\n\r\n", true},
                 {"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false},
                 {"GET / HTTP/1.0\r\n\r\n", false},
                 {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct http_reader reader = read_at_once(cases[i].message);
        cr_assert_eq(reader.result, HTTP_READY, "%s", cases[i].message);
        cr_expect_eq(reader.keeps_alive, cases[i].keeps_alive, "%s", cases[i].message);
    }
}

static char long_head[40000], many_headers[8000], long_target[2000];

static const char *messages[40];
static size_t message_count;

static void add_messages(void)
{
    static const char *const fixed[] = {
        "GET / HTTP/1.1\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET /v1/models/a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://localhost/health HTTP/1.1\r\n\r\n",
        "GET http://localhost HTTP/1.1\r\n\r\n",
        "GET /a%zz HTTP/1.1\r\n\r\n",
        "GET /a%00 HTTP/1.1\r\n\r\n",
        "HEAD /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        "DELETE / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 7\r\nExpect: 100-continue\r\nX-Request-Id: 1234\r\n\r\n{\"a\":1}",
        "POST / HTTP/1.1\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n{\"a\":1}",
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\nGET",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / HTTP/1.7\r\n\r\n",
        "GET /\r\n\r\n",
        "BREW /coffee HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        "GET / HTTP/1.1\r\nBad He\x1f"
        "ader: x\r\n\r\n", /* two faults in one name */
        "GET / HTTP/1.1\r\nX-Request-Id: has blanks\r\n\r\n",
        "GET / HTTP/1.1\r\nX-Request-Id:\r\nAccept: */*\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "\x16\x03\x01\x02",
        "{}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(fixed); i++)
        messages[message_count++] = fixed[i];
    strcpy(long_head, "GET / HTTP/1.1\r\nX: ");
    memset(long_head + strlen(long_head), 'a', sizeof(long_head) - 1 - strlen(long_head));
    messages[message_count++] = long_head;
    int used = sprintf(many_headers, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 101; i++)
        used += sprintf(many_headers + used, "Header-Number-%d: %d\r\n", i, i);
    sprintf(many_headers + used, "\r\n");
    messages[message_count++] = many_headers;
    memset(long_target, 'b', 600);
    memcpy(long_target, "GET /", 5);
    strcpy(long_target + 600, " HTTP/1.1\r\n\r\n");
    messages[message_count++] = long_target;
}

Test(http, gives_the_same_result_however_the_bytes_are_cut)
{
    add_messages();
    srandom(7);
    static bool cuts[sizeof(long_head) + 1];
    for (size_t m = 0; m < message_count; m++) {
        size_t size = strlen(messages[m]);
        struct http_reader whole = read_at_once(messages[m]);
        memset(cuts, true, sizeof(cuts));
        struct http_reader bytewise = read_pieces(messages[m], size, cuts);
        expect_same(&whole, &bytewise, messages[m]);
        for (int round = 0; round < 50; round++) {
            for (size_t i = 0; i < size; i++)
                cuts[i] = random() % (1 + round) == 0;
            struct http_reader pieces = read_pieces(messages[m], size, cuts);
            expect_same(&whole, &pieces, messages[m]);
        }
    }
}

Test(http, refuses_with_the_status_that_fits)
{
    add_messages();
    static const struct {
        const char *prefix;
        int status;
    } cases[] = {
        {"POST / HTTP/1.1\r\nContent-Length: 1001\r\n", 413},
        {"POST / HTTP/1.1\r\nContent-Length: -1", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 7\r\nContent-Length: 8", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding", 400},
        {"GET / HTTP/2.0", 505},
        {"GET / HTTP/1.7", 505},
        {"BREW", 400},
        {"GET / HTTP/1.1\r\nBad Header", 400},
        {"GET /a%zz", 400},
        {"GET / HTTP/1.1\r\nX: aaaa", 431},
        {"GET / HTTP/1.1\r\nHeader-Number-0", 431},
        {"GET /bbbb", 414},
        {"{}", 400},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *message = NULL;
        for (size_t m = 0; m < message_count && message == NULL; m++)
            if (strncmp(messages[m], cases[i].prefix, strlen(cases[i].prefix)) == 0)
                message = messages[m];
        cr_assert_not_null(message, "%s", cases[i].prefix);
        struct http_reader reader = read_at_once(message);
        cr_expect_eq(reader.result, HTTP_REFUSED, "%s", cases[i].prefix);
        cr_expect_eq(reader.status, cases[i].status, "%s: %d %s", cases[i].prefix, reader.status, reader.reason);
    }
}

Test(http, a_chunked_body_over_the_limit_is_refused)
{
    char message[4096];
    int used = sprintf(message, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 101; i++)
        used += sprintf(message + used, "a\r\n0123456789\r\n");
    sprintf(message + used, "0\r\n\r\n");
    struct http_reader reader = read_at_once(message);
    cr_expect_eq(reader.result, HTTP_REFUSED);
    cr_expect_eq(reader.status, 413);
}

Test(http, asks_for_the_body_only_when_there_is_one)
{
    struct http_reader reader = read_at_once("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    cr_expect_eq(reader.result, HTTP_MORE);
    cr_expect(reader.has_head && reader.expects_continue);
    reader = read_at_once("POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n");
    cr_expect_eq(reader.result, HTTP_READY);
    cr_expect_not(reader.expects_continue);
    reader = read_at_once("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    cr_expect_not(reader.expects_continue);
}

Test(http, writes_heads)
{
    char head[HTTP_RESPONSE_HEAD_MAX + 1];
    struct http_response response = {.status = 200,
                                     .content_type = "application/json",
                                     .framing = HTTP_LENGTH,
                                     .content_length = 12,
                                     .request_id = "r1"};
    size_t size = http_write_head(head, &response);
    head[size] = '\0';
    cr_expect_str_eq(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n"
                           "X-Request-Id: r1\r\n\r\n");
    response = (struct http_response){
        .status = 429, .content_type = "application/json", .framing = HTTP_LENGTH, .closes = true, .retry_after_s = 1};
    head[http_write_head(head, &response)] = '\0';
    cr_expect_str_eq(head, "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 0\r\n"
                           "Retry-After: 1\r\nConnection: close\r\n\r\n");
}
