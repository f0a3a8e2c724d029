#include "tools/stress_load.h"

#include <errno.h>
#include <http_parser.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "tools/random.h"

#define REQUESTS      48u
#define STREAMS       4u /* requests, where all are long streams */
#define STREAM_TOKENS 300u
#define ANSWER_BYTES  (1u << 20)
#define TALK_MAX      5u
#define LONG_NUMBER   4u             /* the request whose body is as long as one may be: mostly blanks */
#define PATIENCE_NS   60000000000ull /* a machine that is busy with other things is slow, not wrong */
#define FRESH_NS      5000000000ull  /* so long after a death of front its effects may show */
#define FAILURE_MAX   65536u

struct request {
    char *text;
    size_t size;
    size_t head_size; /* what is sent before the server has said that it wants the rest; 0: all */
    char *reference;  /* head and body as compare_form() makes them */
    size_t reference_size;
};

struct talker {
    struct load *load;
    int fd; /* -1: none */
    uint64_t random;
    const struct request *request;
    uint32_t requests_left;
    const struct request *following; /* sent without waiting for the answer to the one before; NULL: none */
    size_t sent_ahead;               /* of it */
    size_t sent, leaves_at;          /* bytes of the answer after which it leaves; SIZE_MAX: never */
    bool is_slow, is_trickling;
    bool half_closes, is_half_closed; /* says that nothing follows its last request, and listens */
    bool has_read;                    /* something on this connection */
    uint64_t moved_ns;                /* when it last got on */

    http_parser parser;
    bool is_head_done, is_complete, closes;
    bool is_continued; /* the server has said that it wants the rest */
    char *answer;      /* head as it came, then the body without chunks */
    size_t answer_size;
};

struct load {
    struct sockaddr_un address;
    enum load_kind kind;
    struct request requests[REQUESTS];
    uint32_t request_count;
    struct talker *talkers;
    uint32_t talker_count;
    uint64_t front_death_ns;
    struct load_totals totals;
    char failure[FAILURE_MAX];
    char *form; /* scratch of compare_form() */
};

/* ---- what is asked ---- */

static size_t put_ids(char *text, uint64_t *random, uint32_t count, uint32_t vocab_size)
{
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++)
        used += (size_t)sprintf(text + used, "%s%u", i ? "," : "", (uint32_t)(random_next(random) % vocab_size));
    return used;
}

/* A prompt of ids: some share long beginnings. */
static void put_prompt(char *text, uint64_t *random, uint32_t vocab_size)
{
    uint64_t beginning = 1 + random_next(random) % 3;
    uint32_t shared = random_next(random) % 2 ? 40 + 24 * (uint32_t)beginning : 0;
    size_t used = put_ids(text, &beginning, shared, vocab_size);
    if (shared > 0)
        text[used++] = ',';
    put_ids(text + used, random, 1 + (uint32_t)(random_next(random) % 30), vocab_size);
}

static void put_body(char *body, size_t size, uint64_t *random, uint32_t vocab_size)
{
    /* each says how it is sampled, so that the answer follows from the request alone */
    static const char *const more[] = {
        ",\"temperature\":0",
        ",\"seed\":3,\"stream\":true",
        ",\"seed\":5,\"stream\":true,\"return_token_ids\":true,\"return_logits_hash\":true",
        ",\"n\":3,\"stream\":true,\"temperature\":0.8,\"seed\":7",
        ",\"temperature\":0,\"logprobs\":2,\"return_logits_hash\":true",
        ",\"temperature\":0.9,\"seed\":11,\"top_p\":0.9,\"presence_penalty\":0.5",
        ",\"seed\":13,\"stream\":true,\"stop\":[\"ou\",\"in\"]"};
    char prompt[4096];
    uint32_t lengths[] = {1, 6, 30, 120}, length = lengths[random_next(random) % ARRAY_COUNT(lengths)];
    put_prompt(prompt, random, vocab_size);
    snprintf(body, size, "{\"prompt\":[%s],\"max_tokens\":%u,\"ignore_eos\":true%s}", prompt,
             length + (uint32_t)(random_next(random) % 10), more[random_next(random) % ARRAY_COUNT(more)]);
}

static void make_request(struct request *request, uint32_t number, uint64_t *random, uint32_t vocab_size)
{
    static const char *const malformed[] = {"{\"prompt\":5x", "{\"prompt\":[]}", "[1,2", "{\"max_tokens\":-1}",
                                            "{\"prompt\":\"a\",\"n\":1000}"};
    char body[8192], head[256] = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n";
    if (number % 12 == 0)
        snprintf(body, sizeof(body), "%s", malformed[number / 12 % ARRAY_COUNT(malformed)]);
    else if (number % 12 == 1)
        snprintf(body, sizeof(body),
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"Number %u, please.\"}],\"max_tokens\":%u,"
                 "\"temperature\":0,\"stream\":%s}",
                 number, 10 + number, number % 2 ? "true" : "false");
    else
        put_body(body, sizeof(body), random, vocab_size);
    if (number % 12 == 1)
        strcpy(head, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n");
    if (number % 12 == 3)
        strcat(head, "Expect: 100-continue\r\n");
    if (number % 12 == 5)
        strcat(head, "Connection: close\r\n");
    int size = number % 12 == 2 ? asprintf(&request->text, "GET /no/such/path HTTP/1.1\r\nHost: localhost\r\n\r\n")
                                : asprintf(&request->text, "%sContent-Length: %zu\r\n\r\n%s", head, strlen(body), body);
    if (number == LONG_NUMBER) {
        free(request->text);
        size = asprintf(&request->text, "%sContent-Length: %u\r\n\r\n%*s", head, LOAD_BODY_BYTES, (int)LOAD_BODY_BYTES,
                        body);
    }
    check(size > 0);
    request->size = (size_t)size;
    request->head_size = number % 12 == 3 ? request->size - strlen(body) : 0;
}

/* A token is due at any time, but for a moment between two answers. */
static void make_stream(struct request *request, uint64_t *random, uint32_t vocab_size)
{
    char prompt[256], body[512];
    put_ids(prompt, random, 8, vocab_size);
    snprintf(body, sizeof(body),
             "{\"prompt\":[%s],\"max_tokens\":%u,\"ignore_eos\":true,\"temperature\":0,\"stream\":true}", prompt,
             STREAM_TOKENS);
    int size =
        asprintf(&request->text, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(body), body);
    check(size > 0);
    request->size = (size_t)size;
}

/* ---- what is compared ---- */

/* Without what differs from run to run: ids, times, how much of a prompt was cached, and with it the length. */
static size_t compare_form(const char *text, size_t size, char *form)
{
    static const struct {
        const char *before;
        const char *set; /* characters that are left out behind it */
    } variable[] = {{"\"id\":\"cmpl-", "0123456789abcdef"},
                    {"\"id\":\"chatcmpl-", "0123456789abcdef"},
                    {"\"created\":", "0123456789"},
                    {"\"cached_tokens\":", "0123456789"},
                    {"Content-Length: ", "0123456789"}};
    size_t used = 0;
    for (size_t at = 0; at < size;) {
        size_t i = 0, length = 0;
        for (; i < ARRAY_COUNT(variable); i++) {
            length = strlen(variable[i].before);
            if (size - at >= length && memcmp(text + at, variable[i].before, length) == 0)
                break;
        }
        if (i == ARRAY_COUNT(variable)) {
            form[used++] = text[at++];
            continue;
        }
        memcpy(form + used, text + at, length);
        used += length;
        for (at += length; at < size && strchr(variable[i].set, text[at]) != NULL && text[at] != '\0';)
            at++;
    }
    return used;
}

static bool fail(struct load *load, const struct talker *t, const char *what, size_t place)
{
    if (load->failure[0] != '\0')
        return false;
    size_t from = place > 200 ? place - 200 : 0;
    snprintf(
        load->failure, sizeof(load->failure),
        "%s\n--- sent %zu of %zu bytes:\n%.4000s\n--- received %zu bytes, from byte %zu:\n%.8000s\n--- expected %zu "
        "bytes:\n%.8000s\n",
        what, t->sent, t->request->size, t->request->text, t->answer_size, from,
        t->answer_size > from ? t->answer + from : "", t->request->reference_size,
        t->request->reference != NULL && t->request->reference_size > from ? t->request->reference + from : "");
    return false;
}

/* What came so far is the beginning of what should; all of it, if it is complete. */
static bool is_right(struct load *load, struct talker *t)
{
    const struct request *request = t->request;
    size_t size = compare_form(t->answer, t->answer_size, load->form);
    /* the last characters of a piece may belong to something that is left out */
    size_t compared = t->is_complete ? size : size > 64 ? size - 64 : 0;
    if (t->is_complete && size != request->reference_size)
        return fail(load, t, "an answer has another length", min_u64(size, request->reference_size));
    for (size_t i = 0; i < compared; i++)
        if (i >= request->reference_size || load->form[i] != request->reference[i])
            return fail(load, t, "an answer has another byte", i);
    return true;
}

/* ---- receiving ---- */

static void append(struct talker *t, const char *data, size_t size)
{
    check(t->answer_size + size < ANSWER_BYTES);
    memcpy(t->answer + t->answer_size, data, size);
    t->answer_size += size;
    t->answer[t->answer_size] = '\0';
}

static int on_headers(http_parser *parser)
{
    ((struct talker *)parser->data)->is_head_done = true;
    return 0;
}

static int on_body(http_parser *parser, const char *at, size_t length)
{
    append(parser->data, at, length);
    return 0;
}

static int on_complete(http_parser *parser)
{
    struct talker *t = parser->data;
    if (parser->status_code == 100) { /* the answer follows */
        t->is_continued = true;
        t->is_head_done = false;
        return 0;
    }
    t->is_complete = true;
    t->closes = !http_should_keep_alive(parser);
    http_parser_pause(parser, 1);
    return 0;
}

static const http_parser_settings settings = {
    .on_headers_complete = on_headers, .on_body = on_body, .on_message_complete = on_complete};

/* The head byte by byte, so that it is known where it ends; the body at once. Bytes taken, up to the end of the answer at most;
 * SIZE_MAX: it is no HTTP. */
static size_t parse(struct talker *t, const char *data, size_t size)
{
    size_t at = 0;
    for (; at < size && !t->is_head_done && !t->is_complete; at++) {
        append(t, data + at, 1);
        if (http_parser_execute(&t->parser, &settings, data + at, 1) != 1 && !t->is_complete)
            return SIZE_MAX;
    }
    if (at < size && !t->is_complete)
        at += http_parser_execute(&t->parser, &settings, data + at, size - at);
    return at == size || t->is_complete ? at : SIZE_MAX;
}

/* ---- a conversation ---- */

static uint32_t dice(struct talker *t, uint32_t sides)
{
    return (uint32_t)(random_next(&t->random) % sides);
}

static bool is_long(const struct request *request)
{
    return request->size > LOAD_BODY_BYTES;
}

static void next_request(struct talker *t)
{
    t->request = t->following != NULL ? t->following : &t->load->requests[dice(t, t->load->request_count)];
    t->sent = t->following != NULL ? t->sent_ahead : 0;
    t->following = t->requests_left > 1 && dice(t, 3) == 0 ? &t->load->requests[dice(t, t->load->request_count)] : NULL;
    if (is_long(t->request)) {
        t->following = t->requests_left > 1 ? t->request : NULL; /* front has no room for both at once */
        t->is_trickling = false;
    }
    t->requests_left--;
    t->answer_size = t->sent_ahead = 0;
    t->is_head_done = t->is_complete = t->closes = t->is_continued = false;
    bool leaves = t->load->kind == LOAD_MIXED && dice(t, 10) == 0;
    t->leaves_at = leaves ? 1 + dice(t, (uint32_t)t->request->reference_size + 1) : SIZE_MAX;
    t->moved_ns = clock_ns();
    http_parser_init(&t->parser, HTTP_RESPONSE);
    t->parser.data = t;
}

static bool connect_to(struct talker *t)
{
    t->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    check(t->fd >= 0);
    if (connect(t->fd, (const struct sockaddr *)&t->load->address, sizeof(t->load->address)) == 0)
        return true;
    close(t->fd);
    t->fd = -1;
    return false;
}

static void begin(struct talker *t)
{
    if (!connect_to(t))
        return; /* its queue is full: in the next turn */
    t->load->totals.connections++;
    t->has_read = false;
    t->following = NULL;
    bool is_mixed = t->load->kind == LOAD_MIXED;
    t->is_slow = is_mixed && dice(t, 5) == 0;
    t->is_trickling = is_mixed && dice(t, 6) == 0;
    t->half_closes = is_mixed && dice(t, 6) == 0;
    t->is_half_closed = false;
    t->requests_left = is_mixed ? 1 + dice(t, TALK_MAX) : 1;
    next_request(t);
}

static void end(struct talker *t)
{
    close(t->fd);
    t->fd = -1;
}

/* What the server wants of a request; a body only when it has said so. */
static size_t wanted(const struct request *request, bool is_continued)
{
    return request->head_size > 0 && !is_continued ? request->head_size : request->size;
}

static void half_close(struct talker *t)
{
    bool is_all = t->requests_left == 0 && t->following == NULL && t->sent == t->request->size;
    if (!t->half_closes || t->is_half_closed || !is_all)
        return;
    t->is_half_closed = true;
    shutdown(t->fd, SHUT_WR);
}

/* What is left of the request, and with its last byte the beginning of the following one. */
static void send_some(struct talker *t)
{
    const struct request *request = t->request, *following = t->following;
    half_close(t);
    size_t left = wanted(request, t->is_continued) - t->sent;
    bool goes_on = following != NULL && t->sent + left == request->size;
    size_t ahead = goes_on ? wanted(following, false) - t->sent_ahead : 0;
    if (t->is_trickling) {
        left = min_u64(left, 1 + dice(t, 60));
        ahead = left > 0 ? 0 : min_u64(ahead, 1 + dice(t, 60));
    }
    struct iovec pieces[] = {{request->text + t->sent, left}, {NULL, ahead}};
    if (ahead > 0)
        pieces[1].iov_base = following->text + t->sent_ahead;
    const struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    ssize_t sent = left + ahead > 0 ? sendmsg(t->fd, &message, MSG_NOSIGNAL) : 0;
    if (sent <= 0)
        return;
    t->sent += min_u64((size_t)sent, left);
    t->sent_ahead += (size_t)sent > left ? (size_t)sent - left : 0;
    t->moved_ns = clock_ns();
}

static bool on_closed(struct load *load, struct talker *t)
{
    bool is_excused = !t->has_read && clock_ns() - load->front_death_ns < FRESH_NS;
    if (!is_excused)
        return fail(load, t, "a connection was closed before its answer was complete", t->answer_size);
    load->totals.closed_unread++;
    end(t);
    return true;
}

static bool on_complete_answer(struct load *load, struct talker *t)
{
    load->totals.answers++;
    if (t->requests_left > 0 && !t->closes && t->sent == t->request->size)
        next_request(t);
    else
        end(t);
    return true;
}

static bool receive_some(struct load *load, struct talker *t)
{
    static char data[65536];
    size_t room = t->is_slow ? 1 + dice(t, 500) : sizeof(data);
    ssize_t got = recv(t->fd, data, room, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return clock_ns() - t->moved_ns < PATIENCE_NS || fail(load, t, "no answer comes", t->answer_size);
    if (got <= 0)
        return on_closed(load, t);
    t->has_read = true;
    load->totals.bytes += (uint64_t)got;
    load->totals.last_byte_ns = t->moved_ns = clock_ns();
    for (size_t at = 0, taken; at < (size_t)got && t->fd >= 0; at += taken) {
        taken = parse(t, data + at, (size_t)got - at);
        if (taken == SIZE_MAX)
            return fail(load, t, "an answer is no HTTP", t->answer_size);
        if (t->is_complete && !(is_right(load, t) && on_complete_answer(load, t)))
            return false;
    }
    if (t->fd >= 0 && t->answer_size >= t->leaves_at) {
        load->totals.left++;
        bool was_right = is_right(load, t);
        end(t);
        return was_right;
    }
    return true;
}

bool load_turn(struct load *load, uint32_t wait_us, bool is_over)
{
    struct pollfd polls[256];
    for (uint32_t i = 0; i < load->talker_count; i++) {
        struct talker *t = &load->talkers[i];
        if (t->fd < 0 && !is_over)
            begin(t);
        if (t->fd >= 0)
            send_some(t);
        bool wants_to_read = !t->is_slow || dice(t, 4) == 0;
        polls[i] = (struct pollfd){.fd = t->fd, .events = wants_to_read ? POLLIN : 0};
    }
    const struct timespec wait = {.tv_nsec = (long)wait_us * 1000};
    if (ppoll(polls, load->talker_count, &wait, NULL) < 0)
        check(errno == EINTR);
    for (uint32_t i = 0; i < load->talker_count; i++)
        if (load->talkers[i].fd >= 0 && !(load->talkers[i].is_slow && polls[i].events == 0) &&
            !receive_some(load, &load->talkers[i]))
            return false;
    return true;
}

/* ---- the whole ---- */

struct load *load_open(enum load_kind kind, uint64_t seed, uint32_t clients, uint32_t vocab_size)
{
    struct load *load = base_alloc(sizeof(*load));
    uint64_t random = seed;
    check(clients <= 256);
    load->kind = kind;
    load->request_count = kind == LOAD_MIXED ? REQUESTS : STREAMS;
    for (uint32_t i = 0; i < load->request_count; i++)
        if (kind == LOAD_MIXED)
            make_request(&load->requests[i], i, &random, vocab_size);
        else
            make_stream(&load->requests[i], &random, vocab_size);
    load->form = base_alloc(ANSWER_BYTES);
    load->talkers = base_alloc(clients * sizeof(*load->talkers));
    load->talker_count = clients;
    for (uint32_t i = 0; i < clients; i++)
        load->talkers[i] = (struct talker){.load = load, .fd = -1, .answer = base_alloc(ANSWER_BYTES)};
    load_seed(load, seed);
    return load;
}

void load_seed(struct load *load, uint64_t seed)
{
    for (uint32_t i = 0; i < load->talker_count; i++)
        load->talkers[i].random = seed * 1000003 + i;
}

void load_begin(struct load *load, const char *socket_path)
{
    load->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    check(strlen(socket_path) < sizeof(load->address.sun_path));
    strcpy(load->address.sun_path, socket_path);
    load->failure[0] = '\0';
    for (uint32_t i = 0; i < load->talker_count; i++)
        if (load->talkers[i].fd >= 0)
            end(&load->talkers[i]);
}

/* Some bytes of the answer, with patience; 0 or less: there are none. */
static ssize_t talk_calmly(struct talker *t, char *data, size_t size, void (*meanwhile)(void *context), void *context)
{
    const int fd = t->fd;
    ssize_t got;
    for (t->moved_ns = clock_ns(); send_some(t), (got = recv(fd, data, size, 0)) < 0 && errno == EAGAIN;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN | (t->sent < t->request->size ? POLLOUT : 0)};
        if (clock_ns() - t->moved_ns > PATIENCE_NS)
            return -1;
        if (meanwhile == NULL) {
            poll(&poll_fd, 1, 1000);
            continue;
        }
        t->fd = -1; /* meanwhile it is nobody's conversation */
        meanwhile(context);
        t->fd = fd;
    }
    return got;
}

int load_learn(struct load *load, void (*meanwhile)(void *context), void *context, struct err *err)
{
    struct talker *t = &load->talkers[0];
    for (uint32_t i = 0; i < load->request_count; i++) {
        struct request *request = &load->requests[i];
        if (!connect_to(t))
            return err_set(err, -errno, "nobody listens on %s", load->address.sun_path);
        request->reference_size = ANSWER_BYTES;
        t->is_slow = t->is_trickling = t->half_closes = false;
        t->requests_left = 1;
        t->following = NULL;
        next_request(t);
        t->request = request;
        while (!t->is_complete) {
            static char data[65536];
            ssize_t got = talk_calmly(t, data, sizeof(data), meanwhile, context);
            if (got <= 0 || parse(t, data, (size_t)got) == SIZE_MAX)
                return err_set(err, -EPROTO, "no complete answer to %.300s", request->text);
        }
        request->reference = base_alloc(t->answer_size + 1);
        request->reference_size = compare_form(t->answer, t->answer_size, request->reference);
        end(t);
    }
    return 0;
}

void load_note_front_death(struct load *load)
{
    load->front_death_ns = clock_ns();
}

uint32_t load_active(const struct load *load)
{
    uint32_t active = 0;
    for (uint32_t i = 0; i < load->talker_count; i++)
        active += load->talkers[i].fd >= 0;
    return active;
}

const struct load_totals *load_totals(const struct load *load)
{
    return &load->totals;
}

const char *load_failure(const struct load *load)
{
    return load->failure;
}

void load_close(struct load *load)
{
    for (uint32_t i = 0; i < load->request_count; i++) {
        free(load->requests[i].text);
        free(load->requests[i].reference);
    }
    for (uint32_t i = 0; i < load->talker_count; i++) {
        if (load->talkers[i].fd >= 0)
            end(&load->talkers[i]);
        free(load->talkers[i].answer);
    }
    free(load->talkers);
    free(load->form);
    free(load);
}
