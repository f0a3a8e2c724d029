/* http.h - HTTP/1.x requests out of bytes, heads of responses into bytes.
 *
 * Used by: front.   Owns: nothing; the bytes belong to the connection.   Never blocks, never allocates.
 *
 * Reading is a pure function of the bytes of one message: the same bytes give the same request or the same refusal,
 * however they were cut when they arrived. So whoever holds the bytes can parse them again. Grammar: RFC 9112, by
 * libhttp-parser; what is stricter here: header section and counts are limited, HTTP/1.0 and 1.1 only.
 */
#ifndef EVENFLOW_HTTP_H
#define EVENFLOW_HTTP_H

#include <http_parser.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

#define HTTP_HEAD_BYTES_MAX    16384u /* request line and header section; beyond: 431 */
#define HTTP_HEADERS_MAX       100u   /* beyond: 431 */
#define HTTP_PATH_MAX          512u   /* beyond: 414 */
#define HTTP_REQUEST_ID_MAX    128u   /* a longer X-Request-Id is not given back */
#define HTTP_ORIGIN_MAX        128u   /* a longer Origin is none that is allowed */
#define HTTP_CREDENTIALS_MAX   300u   /* of Authorization; longer ones are wrong ones */
#define HTTP_CHUNK_BYTES_MAX   16384u /* what chunked coding may add to a body */
#define HTTP_RESPONSE_HEAD_MAX 1024u  /* of the heads written here */

enum http_result {
    HTTP_MORE,    /* the message is not complete */
    HTTP_READY,   /* method, path, body are there; `parsed` bytes belong to the message */
    HTTP_REFUSED, /* `status` and `reason` say why; the connection cannot go on */
};

enum http_verb { HTTP_VERB_GET, HTTP_VERB_HEAD, HTTP_VERB_POST, HTTP_VERB_OPTIONS, HTTP_VERB_OTHER };

/* One message being read, from its first byte. */
struct http_reader {
    http_parser parser;
    uint32_t body_bytes_max;
    enum http_result result;
    int status;         /* HTTP_REFUSED */
    const char *reason; /* HTTP_REFUSED: static text */

    size_t parsed; /* bytes of the message that have been looked at */
    enum http_verb verb;
    bool has_origin;       /* a browser says where its page is from */
    bool has_head;         /* the header section is complete */
    bool expects_continue; /* "Expect: 100-continue" and a body to come */
    bool keeps_alive;      /* the client lets the connection be used again */
    bool is_version_1_0;   /* no chunked answers */
    bool is_chunked;       /* the body's bytes are not contiguous: http_body_copy() */
    size_t body_first;     /* from the start of the message; not for chunked ones */
    size_t body_size;      /* decoded */

    /* while reading */
    uint32_t header_count;
    uint32_t url_size, name_size, value_size;
    bool in_value;
    bool in_trailer;
    bool in_chunk;        /* of a chunked body: its data have begun */
    size_t chunk_end;     /* in_chunk: behind what has come of them, from the start of the message */
    const uint8_t *bytes; /* of the message, during a call */
    uint8_t *body_target; /* http_body_copy(): where the body goes */

    /* texts, last: http_reader_init() only ends them */
    char path[HTTP_PATH_MAX + 1]; /* without query; decoded where percent signs stand for printable characters */
    char request_id[HTTP_REQUEST_ID_MAX + 1];
    char origin[HTTP_ORIGIN_MAX + 1];
    char credentials[HTTP_CREDENTIALS_MAX + 1]; /* the value of Authorization */
    char url[HTTP_PATH_MAX + 1];                /* while reading, and the next two */
    char name[24];                              /* of a header, lower case; longer ones do not matter here */
    char value[HTTP_CREDENTIALS_MAX + 1];
};

void http_reader_init(struct http_reader *reader, uint32_t body_bytes_max);

/* Looks at a message's first `size` bytes; those that were looked at before must be the same. */
enum http_result http_reader_feed(struct http_reader *reader, const uint8_t *bytes, size_t size);

/* HTTP_READY: writes the decoded body to target (body_size bytes; may not overlap the message). */
void http_body_copy(const struct http_reader *reader, const uint8_t *bytes, uint8_t *target);

/* ---- responses ---- */

enum http_framing {
    HTTP_LENGTH,      /* Content-Length */
    HTTP_CHUNKED,     /* Transfer-Encoding: chunked */
    HTTP_UNTIL_CLOSE, /* the body ends with the connection (HTTP/1.0) */
    HTTP_NO_BODY,     /* 204 */
};

struct http_response {
    int status;
    const char *content_type;
    enum http_framing framing;
    uint64_t content_length;
    const char *request_id;   /* "" or NULL: none */
    bool closes;              /* Connection: close */
    bool is_version_1_0;      /* the client's; a connection that is kept then says so */
    uint32_t retry_after_s;   /* 0: none */
    const char *allow;        /* NULL: none */
    const char *allow_origin; /* "" or NULL: none; the page from there may read the response */
    bool is_preflight;        /* with allow_origin: what such a page may ask for */
    bool wants_credentials;   /* 401 */
};

/* Writes the head, blank line included; at most HTTP_RESPONSE_HEAD_MAX bytes. The size. */
size_t http_write_head(char *target, const struct http_response *response);

const char *http_status_text(int status);

#endif
