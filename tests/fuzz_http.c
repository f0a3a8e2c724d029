/* fuzz_http.c - the reader of requests: the same messages come out however the bytes were cut. */
#include <string.h>

#include "engine/http.h"
#include "tests/fuzz.h"

#define BODY_MAX     2000u
#define MESSAGES_MAX 64u

/* Reads one message. cuts: where the pieces end; NULL: all bytes are there at once. */
static struct http_reader read_message(const uint8_t *bytes, size_t size, struct fuzz_input *cuts)
{
    struct http_reader reader;
    http_reader_init(&reader, BODY_MAX);
    for (size_t end = 0; end < size && reader.result == HTTP_MORE;) {
        end = cuts != NULL ? min_u64(size, end + 1 + fuzz_number(cuts, 31)) : size;
        http_reader_feed(&reader, bytes, end);
    }
    return reader;
}

static void expect_same(const struct http_reader *a, const struct http_reader *b, const uint8_t *bytes)
{
    check(a->result == b->result);
    check(a->status == b->status);
    check(a->reason == b->reason || strcmp(a->reason, b->reason) == 0);
    if (a->result != HTTP_READY)
        return;
    check(a->parsed == b->parsed);
    check(a->verb == b->verb);
    check(strcmp(a->path, b->path) == 0);
    check(strcmp(a->request_id, b->request_id) == 0);
    check(a->expects_continue == b->expects_continue);
    check(a->keeps_alive == b->keeps_alive);
    check(a->is_version_1_0 == b->is_version_1_0);
    check(a->is_chunked == b->is_chunked);
    check(a->body_size == b->body_size && a->body_size <= BODY_MAX);
    static uint8_t body_a[BODY_MAX], body_b[BODY_MAX];
    http_body_copy(a, bytes, body_a);
    http_body_copy(b, bytes, body_b);
    check(memcmp(body_a, body_b, a->body_size) == 0);
}

/* What is given back in a response head must not be able to end a line there. */
static void expect_plain(const struct http_reader *reader)
{
    for (const char *c = reader->request_id; *c != '\0'; c++)
        check(*c > 0x20 && *c < 0x7f);
    check(strpbrk(reader->path, "\r\n") == NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct fuzz_input cuts = {data, min_u64(1 + fuzz_byte(&input), size)};
    for (uint32_t i = 0; i < MESSAGES_MAX && input.size > 0; i++) {
        struct http_reader whole = read_message(input.data, input.size, NULL);
        struct http_reader pieces = read_message(input.data, input.size, &cuts);
        expect_same(&whole, &pieces, input.data);
        check(whole.parsed <= input.size);
        if (whole.result == HTTP_REFUSED)
            check(whole.status >= 400 && whole.status <= 599 && whole.reason != NULL);
        if (whole.result != HTTP_READY)
            break;
        expect_plain(&whole);
        check(whole.parsed > 0);
        input.data += whole.parsed;
        input.size -= whole.parsed;
    }
    return 0;
}
