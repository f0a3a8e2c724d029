#include "engine/http.h"

#include <stddef.h>
#include <string.h>

#include "engine/json_writer.h"

static int refuse(struct http_reader *reader, int status, const char *reason)
{
    if (reader->status == 0) {
        reader->status = status;
        reader->reason = reason;
    }
    return -1; /* stops the parser */
}

static const char *text_of(enum http_errno error)
{
    switch (error) {
    case HPE_INVALID_METHOD:
        return "the request line does not begin with a method";
    case HPE_INVALID_URL:
        return "the request line's target is none";
    case HPE_INVALID_CONTENT_LENGTH:
        return "Content-Length, or a chunk's size, is no number or too large a one";
    case HPE_UNEXPECTED_CONTENT_LENGTH:
        return "Content-Length is there twice, or together with Transfer-Encoding";
    case HPE_INVALID_TRANSFER_ENCODING:
        return "Transfer-Encoding must be chunked";
    case HPE_INVALID_CHUNK_SIZE:
        return "a chunk must begin with its size, a hexadecimal number, and end where that says";
    default:
        return http_errno_description(error);
    }
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* ---- called by the parser; strings come in any number of pieces ---- */

static int on_url(http_parser *parser, const char *at, size_t length)
{
    struct http_reader *r = parser->data;
    if (r->url_size + length > HTTP_PATH_MAX)
        return refuse(r, 414, "the request target is longer than 512 bytes");
    memcpy(r->url + r->url_size, at, length);
    r->url_size += (uint32_t)length;
    r->url[r->url_size] = '\0';
    return 0;
}

static int take_header(struct http_reader *r)
{
    if (!r->in_value)
        return 0;
    r->in_value = false;
    if (r->name_size < sizeof(r->name)) {
        r->name[r->name_size] = '\0';
        while (r->value_size > 0 && r->value_size <= HTTP_CREDENTIALS_MAX && r->value[r->value_size - 1] == ' ')
            r->value_size--;
        bool fits = r->value_size <= HTTP_CREDENTIALS_MAX;
        r->value[fits ? r->value_size : 0] = '\0';
        bool is_short_word = r->value_size <= HTTP_REQUEST_ID_MAX && strchr(r->value, ' ') == NULL;
        if (!r->in_trailer && strcmp(r->name, "x-request-id") == 0)
            strcpy(r->request_id, is_short_word ? r->value : "");
        if (!r->in_trailer && strcmp(r->name, "origin") == 0) {
            r->has_origin = true;
            strcpy(r->origin, is_short_word ? r->value : "");
        }
        if (!r->in_trailer && strcmp(r->name, "authorization") == 0)
            strcpy(r->credentials, r->value);
        bool is_encoded = !r->in_trailer && strcmp(r->name, "content-encoding") == 0;
        if (is_encoded && strcasecmp(r->value, "identity") != 0)
            return refuse(r, 415, "the body must come as it is, without a Content-Encoding");
        if (!r->in_trailer && strcmp(r->name, "expect") == 0) {
            r->expects_continue = strcasecmp(r->value, "100-continue") == 0;
            if (!r->expects_continue)
                return refuse(r, 417, "Expect must be 100-continue");
        }
    }
    r->name_size = 0;
    r->value_size = 0;
    return 0;
}

static int on_header_field(http_parser *parser, const char *at, size_t length)
{
    struct http_reader *r = parser->data;
    if (take_header(r) != 0)
        return -1;
    if (r->name_size == 0 && ++r->header_count > HTTP_HEADERS_MAX)
        return refuse(r, 431, "more than 100 header fields");
    if (memchr(at, ' ', length) != NULL) /* RFC 9112 5.1; the parser lets it pass */
        return refuse(r, 400, "a header field's name holds a blank");
    for (size_t i = 0; i < length; i++, r->name_size += r->name_size < sizeof(r->name))
        if (r->name_size < sizeof(r->name))
            r->name[r->name_size] = lower(at[i]);
    return 0;
}

static int on_header_value(http_parser *parser, const char *at, size_t length)
{
    struct http_reader *r = parser->data;
    r->in_value = true;
    for (size_t i = 0; i < length; i++) {
        bool is_printable = at[i] >= 0x20 && at[i] < 0x7f;
        if (r->value_size < HTTP_CREDENTIALS_MAX && is_printable)
            r->value[r->value_size++] = at[i];
        else
            r->value_size = HTTP_CREDENTIALS_MAX + 1; /* not a value that matters here, and none to give back */
    }
    return 0;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The target's path: origin form, or absolute form with its scheme and host passed over. */
static int take_path(struct http_reader *r)
{
    const char *from = r->url;
    if (strncasecmp(from, "http://", 7) == 0) {
        from = strchr(from + 7, '/');
        if (from == NULL)
            from = "/";
    }
    size_t size = 0;
    for (; *from != '\0' && *from != '?' && *from != '#'; from++) {
        char c = *from;
        if (c == '%') {
            int high = hex_digit(from[1]);
            int low = high < 0 ? -1 : hex_digit(from[2]);
            if (low < 0 || high * 16 + low < 0x20 || high * 16 + low >= 0x7f)
                return refuse(r, 400, "the path holds a percent sign that stands for no printable character");
            c = (char)(high * 16 + low);
            from += 2;
        }
        r->path[size++] = c;
    }
    r->path[size] = '\0';
    return 0;
}

/* What the parser lets pass: any letters for "HTTP", any number of blanks, any byte for the LF behind a CR. */
static bool is_plain_head(const struct http_reader *r)
{
    const char *at = (const char *)r->bytes + strspn((const char *)r->bytes, "\r\n");
    const char *parts[] = {http_method_str(r->parser.method), " ", r->url,
                           r->parser.http_minor == 0 ? " HTTP/1.0" : " HTTP/1.1"};
    for (size_t i = 0; i < ARRAY_COUNT(parts); at += strlen(parts[i++]))
        if (strncmp(at, parts[i], strlen(parts[i])) != 0)
            return false;
    if (*at != '\r' && *at != '\n')
        return false;
    for (;; at++) { /* up to the blank line */
        bool is_return = *at == '\r';
        at += is_return;
        if (is_return && *at != '\n')
            return false;
        if (*at == '\n' && (at[1] == '\n' || (at[1] == '\r' && at[2] == '\n')))
            return true;
    }
}

static int on_headers_complete(http_parser *parser)
{
    struct http_reader *r = parser->data;
    if (take_header(r) != 0)
        return -1;
    r->has_head = true;
    r->in_trailer = true;
    if (parser->http_major != 1 || parser->http_minor > 1)
        return refuse(r, 505, "HTTP/1.0 and HTTP/1.1 are spoken here");
    if (!is_plain_head(r))
        return refuse(r, 400, "the request line must be METHOD TARGET HTTP/1.1, and lines must end in CR LF");
    r->is_version_1_0 = parser->http_minor == 0;
    switch (parser->method) {
    case HTTP_GET:
        r->verb = HTTP_VERB_GET;
        break;
    case HTTP_HEAD:
        r->verb = HTTP_VERB_HEAD;
        break;
    case HTTP_POST:
        r->verb = HTTP_VERB_POST;
        break;
    case HTTP_OPTIONS:
        r->verb = HTTP_VERB_OPTIONS;
        break;
    default:
        r->verb = HTTP_VERB_OTHER;
    }
    r->is_chunked = (parser->flags & F_CHUNKED) != 0;
    bool has_length = (parser->flags & F_CONTENTLENGTH) != 0;
    if (has_length && parser->content_length > r->body_bytes_max)
        return refuse(r, 413, "the body is too long");
    r->expects_continue =
        r->expects_continue && !r->is_version_1_0 && (r->is_chunked || (has_length && parser->content_length > 0));
    r->keeps_alive = http_should_keep_alive(parser) && parser->method != HTTP_CONNECT;
    return take_path(r);
}

static int on_body(http_parser *parser, const char *at, size_t length)
{
    struct http_reader *r = parser->data;
    if (length > r->body_bytes_max - r->body_size)
        return refuse(r, 413, "the body is too long");
    const char *before = at - 2;
    if (r->is_chunked && !r->in_chunk && memcmp(before, "\r\n", 2) != 0)
        return refuse(r, 400, text_of(HPE_INVALID_CHUNK_SIZE));
    r->in_chunk = r->is_chunked;
    r->chunk_end = (size_t)((const uint8_t *)at + length - r->bytes);
    if (r->body_target != NULL)
        memcpy(r->body_target + r->body_size, at, length);
    else if (r->body_size == 0)
        r->body_first = (size_t)((const uint8_t *)at - r->bytes);
    r->body_size += length;
    return 0;
}

/* Any two bytes would do for the parser. */
static int on_chunk_complete(http_parser *parser)
{
    struct http_reader *r = parser->data;
    if (r->in_chunk && memcmp(r->bytes + r->chunk_end, "\r\n", 2) != 0)
        return refuse(r, 400, text_of(HPE_INVALID_CHUNK_SIZE));
    r->in_chunk = false;
    return 0;
}

static int on_message_complete(http_parser *parser)
{
    struct http_reader *r = parser->data;
    r->result = HTTP_READY;
    http_parser_pause(parser, 1); /* what follows is the next message */
    return 0;
}

static const http_parser_settings settings = {.on_url = on_url,
                                              .on_header_field = on_header_field,
                                              .on_header_value = on_header_value,
                                              .on_headers_complete = on_headers_complete,
                                              .on_body = on_body,
                                              .on_chunk_complete = on_chunk_complete,
                                              .on_message_complete = on_message_complete};

/* ---- reading ---- */

void http_reader_init(struct http_reader *reader, uint32_t body_bytes_max)
{
    memset(reader, 0, offsetof(struct http_reader, path));
    reader->path[0] = reader->request_id[0] = reader->origin[0] = reader->credentials[0] = reader->url[0] = '\0';
    reader->body_bytes_max = body_bytes_max;
    reader->result = HTTP_MORE;
    http_parser_init(&reader->parser, HTTP_REQUEST);
}

static enum http_result refuse_message(struct http_reader *r, int status, const char *reason)
{
    refuse(r, status, reason);
    r->result = HTTP_REFUSED;
    return r->result;
}

/* The parser tells of a name or target when it is over, or of the part that has come when bytes end: so which of several
 * faults it meets first depends on where they end. */
static enum http_result feed(struct http_reader *r, const uint8_t *bytes, size_t size)
{
    while (r->result == HTTP_MORE && r->parsed < size) {
        size_t end = size;
        if (!r->has_head && end > HTTP_HEAD_BYTES_MAX)
            end = HTTP_HEAD_BYTES_MAX;
        if (end == r->parsed)
            return refuse_message(r, 431, "the header section is longer than 16384 bytes");
        r->parser.data = r;
        r->bytes = bytes;
        size_t taken = http_parser_execute(&r->parser, &settings, (const char *)bytes + r->parsed, end - r->parsed);
        r->bytes = NULL;
        r->parsed += taken;
        enum http_errno error = HTTP_PARSER_ERRNO(&r->parser);
        if (r->result == HTTP_READY)
            break;
        if (error == HPE_HEADER_OVERFLOW)
            return refuse_message(r, 431, "the header section is too long");
        if (error != HPE_OK)
            return refuse_message(r, 400, text_of(error));
        check(r->parsed == end);
    }
    return r->result;
}

enum http_result http_reader_feed(struct http_reader *r, const uint8_t *bytes, size_t size)
{
    check(size >= r->parsed);
    if (r->result != HTTP_MORE || feed(r, bytes, size) != HTTP_REFUSED)
        return r->result;
    /* which fault counts must not depend on how the bytes arrived: the first that shows when they come one by one */
    struct http_reader single;
    http_reader_init(&single, r->body_bytes_max);
    for (size_t end = 1; end <= size && single.result == HTTP_MORE; end++)
        feed(&single, bytes, end);
    check(single.result == HTTP_REFUSED);
    *r = single;
    return r->result;
}

void http_body_copy(const struct http_reader *reader, const uint8_t *bytes, uint8_t *target)
{
    check(reader->result == HTTP_READY);
    if (!reader->is_chunked) {
        memcpy(target, bytes + reader->body_first, reader->body_size);
        return;
    }
    /* the pieces lie between chunk headers: read the message again, with a place for them */
    struct http_reader again;
    http_reader_init(&again, reader->body_bytes_max);
    again.body_target = target;
    enum http_result result = http_reader_feed(&again, bytes, reader->parsed);
    check(result == HTTP_READY && again.body_size == reader->body_size);
}

/* ---- responses ---- */

const char *http_status_text(int status)
{
    switch (status) {
#define XX(number, name, text)                                                                                         \
    case number:                                                                                                       \
        return #text;
        HTTP_STATUS_MAP(XX)
#undef XX
    default:
        return "Unknown";
    }
}

static void add_field(struct json_writer *w, const char *name, const char *value)
{
    json_text(w, name);
    json_text(w, value);
}

size_t http_write_head(char *target, const struct http_response *response)
{
    struct json_writer w = {target, 0, HTTP_RESPONSE_HEAD_MAX};
    json_text(&w, "HTTP/1.1 ");
    json_number(&w, (uint64_t)response->status);
    json_text(&w, " ");
    json_text(&w, http_status_text(response->status));
    if (response->content_type != NULL)
        add_field(&w, "\r\nContent-Type: ", response->content_type);
    if (response->framing == HTTP_LENGTH) {
        json_text(&w, "\r\nContent-Length: ");
        json_number(&w, response->content_length);
    }
    if (response->framing == HTTP_CHUNKED)
        json_text(&w, "\r\nTransfer-Encoding: chunked");
    if (response->allow != NULL)
        add_field(&w, "\r\nAllow: ", response->allow);
    if (response->allow_origin != NULL && response->allow_origin[0] != '\0') {
        add_field(&w, "\r\nAccess-Control-Allow-Origin: ", response->allow_origin);
        json_text(&w, "\r\nVary: Origin");
        if (!response->is_preflight)
            json_text(&w, "\r\nAccess-Control-Expose-Headers: Retry-After, X-Request-Id");
    }
    if (response->is_preflight)
        json_text(&w, "\r\nAccess-Control-Allow-Methods: GET, POST, OPTIONS"
                      "\r\nAccess-Control-Allow-Headers: Authorization, *"
                      "\r\nAccess-Control-Max-Age: 600");
    if (response->wants_credentials)
        json_text(&w, "\r\nWWW-Authenticate: Bearer");
    if (response->retry_after_s != 0) {
        json_text(&w, "\r\nRetry-After: ");
        json_number(&w, response->retry_after_s);
    }
    if (response->request_id != NULL && response->request_id[0] != '\0')
        add_field(&w, "\r\nX-Request-Id: ", response->request_id);
    if (response->closes)
        json_text(&w, "\r\nConnection: close");
    else if (response->is_version_1_0)
        json_text(&w, "\r\nConnection: keep-alive");
    json_text(&w, "\r\n\r\n");
    return w.size;
}
