#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/answer.h"
#include "engine/json_writer.h"
#include "ipc/journal.h"
#include "tests/fake_sched.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

#define BYTES_MAX (4u << 20)

static struct plan plan;
static struct arena arena;
static struct tok tok;
static struct answer_format format;
static struct answer_choice choices[16 * CHOICES_MAX];
static struct request_shm *request;

static void set_up(void)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err = {0};
    plan = plan_for_tests();
    tiny_vocab_plan(&plan, vocab_bytes);
    fake_sched_plan(&plan);
    arena_in_memory(&arena, &plan);
    cr_assert_eq(tok_attach(&tok, blob, vocab_bytes, 65536, &err), 0, "%s", err.text);
    format = (struct answer_format){.kind = ANSWER_COMPLETION};
    request = arena_request(&arena, 0);
    request->generation = 1;
    request->id = 0x0123456789abcdef;
    request->created_s = 1700000000;
    request->choices = 1;
    request->prompt_tokens = 5;
    request->max_tokens = 400;
    journal_request_set_state(request, REQUEST_ACCEPTED);
}

static void add_stop(const char *text)
{
    size_t used = 0;
    for (uint32_t i = 0; i < format.stop_count; i++)
        used += format.stop_size[i];
    memcpy(format.stops + used, text, strlen(text));
    format.stop_size[format.stop_count++] = (uint32_t)strlen(text);
}

static struct token_shm entry(uint32_t token)
{
    return (struct token_shm){.token = token,
                              .top_token = token,
                              .logprob = -0.125f * (float)(token % 7),
                              .logits_hash = 0xabcd000000000000u + token};
}

static void commit(uint32_t choice, uint32_t token)
{
    struct token_shm e = entry(token);
    fake_sched_commit(&arena, 0, choice, &e);
}

static void commit_text(uint32_t choice, const char *text)
{
    uint32_t ids[1024];
    uint32_t count = tiny_vocab_bytes(text, ids);
    for (uint32_t i = 0; i < count; i++)
        commit(choice, ids[i]);
}

/* What can be rendered now, appended to bytes. */
static enum answer_result render(struct answer *answer, char *bytes, size_t *size, size_t room)
{
    size_t more;
    enum answer_result result;
    do {
        cr_assert_leq(*size + room, BYTES_MAX);
        result = answer_render(answer, bytes + *size, room, &more);
        cr_assert_leq(more, room);
        *size += more;
    } while (result == ANSWER_HAS_MORE);
    bytes[*size] = '\0';
    return result;
}

static char *render_all(size_t room)
{
    static struct answer answer;
    char *bytes = malloc(BYTES_MAX);
    size_t size = 0;
    answer_begin(&answer, &arena, &tok, &format, 0, choices);
    cr_assert_eq(render(&answer, bytes, &size, room), ANSWER_COMPLETE);
    cr_assert_eq(answer.written, size);
    return bytes;
}

/* The body with its chunk framing taken off. */
static char *body_of(const char *bytes)
{
    const char *at = strstr(bytes, "\r\n\r\n");
    cr_assert_not_null(at);
    at += 4;
    if (strstr(bytes, "Transfer-Encoding: chunked") == NULL) {
        const char *length = strstr(bytes, "Content-Length: ");
        if (length != NULL)
            cr_assert_eq(strtoul(length + 16, NULL, 10), strlen(at), "%s", bytes);
        return strdup(at);
    }
    char *body = calloc(1, strlen(at) + 1);
    for (;;) {
        char *end;
        size_t size = strtoul(at, &end, 16);
        cr_assert_eq(strncmp(end, "\r\n", 2), 0);
        at = end + 2;
        strncat(body, at, size);
        at += size;
        cr_assert_eq(strncmp(at, "\r\n", 2), 0);
        at += 2;
        if (size == 0)
            break;
    }
    cr_assert_eq(*at, '\0');
    return body;
}

/* Text of a choice over all events, or of the document; every piece must be valid JSON with valid UTF-8. */
static char *text_of(const char *body, uint32_t choice, char *finish_reason, uint32_t *tokens)
{
    char *text = calloc(1, BYTES_MAX / 16);
    *tokens = 0;
    finish_reason[0] = '\0';
    bool is_stream = strncmp(body, "data: ", 6) == 0;
    for (const char *at = body; *at != '\0';) {
        const char *end = is_stream ? strstr(at, "\n\n") : at + strlen(at);
        cr_assert_not_null(end);
        if (is_stream && strncmp(at, "data: [DONE]", 12) == 0) {
            cr_assert_eq(end[2], '\0', "something follows the end");
            break;
        }
        const char *first = at + (is_stream ? 6 : 0);
        json_error_t error;
        json_t *event = json_loadb(first, (size_t)(end - first), 0, &error);
        cr_assert_not_null(event, "%s in %.*s", error.text, (int)(end - first), first);
        size_t i;
        json_t *one;
        json_array_foreach(json_object_get(event, "choices"), i, one) {
            if (json_integer_value(json_object_get(one, "index")) != choice)
                continue;
            json_t *piece = json_object_get(one, "text");
            json_t *holder = json_object_get(one, is_stream ? "delta" : "message");
            if (piece == NULL)
                piece = json_object_get(holder, "content");
            strcat(text, json_is_string(piece) ? json_string_value(piece) : "");
            *tokens += (uint32_t)json_array_size(json_object_get(one, "token_ids"));
            const char *reason = json_string_value(json_object_get(one, "finish_reason"));
            if (reason != NULL)
                strcpy(finish_reason, reason);
        }
        json_decref(event);
        at = is_stream ? end + 2 : end;
    }
    return text;
}

static void expect_text(const char *expected, const char *expected_reason)
{
    for (int is_stream = 0; is_stream < 2; is_stream++) {
        char reason[32];
        uint32_t tokens;
        format.is_stream = (uint8_t)is_stream;
        char *body = body_of(render_all(65536));
        char *text = text_of(body, 0, reason, &tokens);
        cr_expect_str_eq(text, expected, "stream %d: %s", is_stream, text);
        cr_expect_str_eq(reason, expected_reason);
    }
}

Test(answer, streams_one_event_per_token, .init = set_up)
{
    format.is_stream = 1;
    format.includes_usage = 1;
    format.returns_token_ids = 1;
    format.returns_logits_hash = 1;
    fake_sched_take(&arena, 0);
    commit(0, TINY_HELLO);
    commit(0, TINY_IM_END);
    fake_sched_end(&arena, 0, 0, FINISH_STOP);
    const char *bytes = render_all(65536);
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n00f9\r\ndata: {";
    cr_expect_eq(strncmp(bytes, head, sizeof(head) - 1), 0, "%s", bytes);
#define PREFIX                                                                                                         \
    "data: {\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1700000000,"                   \
    "\"model\":\"test-model\",\"choices\":["
    cr_expect_str_eq(body_of(bytes),
                     PREFIX "{\"index\":0,\"text\":\"hello\",\"logprobs\":null,\"finish_reason\":null,"
                            "\"token_ids\":[262],\"logits_hash\":[\"abcd000000000106\"]}],\"usage\":null}\n\n" PREFIX
                            "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":null,"
                            "\"token_ids\":[2],\"logits_hash\":[\"abcd000000000002\"]}],\"usage\":null}\n\n" PREFIX
                            "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                            "\"usage\":null}\n\n" PREFIX
                            "],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,"
                            "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\ndata: [DONE]\n\n");
}

Test(answer, chat_streams_begin_with_the_role_and_have_an_end, .init = set_up)
{
    format.kind = ANSWER_CHAT;
    format.is_stream = 1;
    fake_sched_take(&arena, 0);
    commit(0, TINY_HE);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *body = body_of(render_all(65536));
#undef PREFIX
#define PREFIX                                                                                                         \
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"         \
    "\"model\":\"test-model\",\"choices\":["
    cr_expect_str_eq(
        body,
        PREFIX "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
               "\"finish_reason\":null}]}\n\n" PREFIX
               "{\"index\":0,\"delta\":{\"content\":\"he\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n" PREFIX
               "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n");
}

Test(answer, a_document_has_every_list_and_its_length, .init = set_up)
{
    format.kind = ANSWER_CHAT;
    format.returns_token_ids = format.returns_logits_hash = format.returns_logprobs = 1;
    strcpy(format.request_id, "id-9");
    fake_sched_take(&arena, 0);
    commit(0, TINY_EURO);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    const char *bytes = render_all(65536);
    cr_expect_not_null(strstr(bytes, "X-Request-Id: id-9\r\n"));
    cr_expect_str_eq(
        body_of(bytes),
        "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"test-model\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
        "\"content\":\"\xe2\x82\xac\"},\"token_ids\":[263],\"logits_hash\":[\"abcd000000000107\"],"
        "\"logprobs\":{\"content\":[{\"token\":\"\xe2\x82\xac\",\"logprob\":-0.5,\"bytes\":[226,130,172],"
        "\"top_logprobs\":[]}]},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,"
        "\"total_tokens\":6,\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
}

Test(answer, waits_for_the_last_token_when_it_is_no_stream, .init = set_up)
{
    static struct answer answer;
    char *bytes = malloc(BYTES_MAX);
    size_t size = 0;
    answer_begin(&answer, &arena, &tok, &format, 0, choices);
    cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_WAITS);
    fake_sched_take(&arena, 0);
    commit(0, TINY_HE);
    cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_WAITS);
    cr_expect_eq(size, 0);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_COMPLETE);
}

static void make_mixed_log(void)
{
    /* three choices of different lengths: ASCII, a split character, bytes that are no character, something like a stop */
    fake_sched_take(&arena, 0);
}

static const char *const mixed[3] = {"plain text \"quoted\" \\ \x01 with STO and STOP at its end",
                                     "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xff\xfe STOS", "x\xe2\x82"};

Test(answer, gives_the_same_bytes_however_the_tokens_arrive, .init = set_up)
{
    add_stop("STOP");
    format.returns_token_ids = format.returns_logprobs = format.includes_usage = 1;
    for (uint32_t variant = 0; variant < 8; variant++) {
        format.is_stream = variant & 1;
        format.kind = variant & 2 ? ANSWER_CHAT : ANSWER_COMPLETION;
        format.is_version_1_0 = variant & 4 ? 1 : 0;
        char *whole = NULL;
        for (uint32_t round = 0; round < 40; round++) {
            srandom(round);
            static struct answer answer;
            char *bytes = malloc(BYTES_MAX);
            size_t size = 0, done[3] = {0};
            bool has_ended[3] = {false};
            request->generation++; /* what was taken in belongs to nobody now */
            request->choices = 3;
            answer_begin(&answer, &arena, &tok, &format, 0, choices);
            if (round % 3 == 1)
                render(&answer, bytes, &size, ANSWER_PIECE_MAX);
            make_mixed_log();
            enum answer_result result = ANSWER_WAITS;
            while (!has_ended[0] || !has_ended[1] || !has_ended[2]) {
                uint32_t c = (uint32_t)random() % 3;
                if (has_ended[c])
                    continue;
                if (mixed[c][done[c]] != '\0')
                    commit(c, TINY_BYTE_FIRST + (uint8_t)mixed[c][done[c]++]);
                else if ((has_ended[c] = true))
                    fake_sched_end(&arena, 0, c, FINISH_LENGTH);
                if (round > 0 && random() % (long)(1 + round / 4) == 0)
                    result = render(&answer, bytes, &size, ANSWER_PIECE_MAX + (size_t)random() % 4096);
            }
            if (result != ANSWER_COMPLETE)
                cr_assert_eq(render(&answer, bytes, &size, 65536), ANSWER_COMPLETE);
            if (whole == NULL)
                whole = bytes;
            else
                cr_assert_str_eq(bytes, whole, "variant %u round %u", variant, round);
        }
        if (variant & 4)
            continue;
        char reason[32];
        uint32_t tokens;
        char *body = body_of(whole);
        cr_expect_str_eq(text_of(body, 0, reason, &tokens), "plain text \"quoted\" \\ \x01 with STO and ");
        cr_expect_str_eq(reason, "stop");
        cr_expect_eq(tokens, strlen(mixed[0]) - strlen(" at its end"));
        cr_expect_str_eq(text_of(body, 1, reason, &tokens),
                         "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xef\xbf\xbd\xef\xbf\xbd STOS");
        cr_expect_str_eq(reason, "length");
        cr_expect_str_eq(text_of(body, 2, reason, &tokens), "x\xef\xbf\xbd");
    }
}

Test(answer, no_event_holds_half_a_character, .init = set_up)
{
    format.is_stream = 1;
    fake_sched_take(&arena, 0);
    commit_text(0, "\xe2\x82\xac");
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *body = body_of(render_all(65536));
    const char *first = strstr(body, "\"text\":\"\""), *second = strstr(first + 1, "\"text\":\"\"");
    cr_assert(first != NULL && second != NULL, "%s", body);
    cr_expect_not_null(strstr(second + 1, "\"text\":\"\xe2\x82\xac\""), "%s", body);
}

Test(answer, a_stop_string_is_found_across_tokens_and_cut_off, .init = set_up)
{
    add_stop("lo w");
    add_stop("zzz");
    fake_sched_take(&arena, 0);
    commit(0, TINY_HELLO);
    commit_text(0, " world");
    expect_text("hel", "stop");
}

Test(answer, the_first_of_several_stop_strings_counts, .init = set_up)
{
    add_stop("lo");
    add_stop("el");
    fake_sched_take(&arena, 0);
    commit(0, TINY_HELLO);
    expect_text("h", "stop");
}

Test(answer, what_only_looked_like_a_stop_string_is_given_in_the_end, .init = set_up)
{
    add_stop("abcabd");
    fake_sched_take(&arena, 0);
    commit_text(0, "xabcabcab");
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    expect_text("xabcabcab", "length");
}

Test(answer, says_which_choices_stop_strings_have_ended, .init = set_up)
{
    static struct answer answer;
    static char bytes[65536];
    size_t size;
    add_stop("b");
    request->choices = 3;
    for (uint32_t is_stream = 0; is_stream < 2; is_stream++) {
        format.is_stream = (uint8_t)is_stream;
        request->generation++;
        fake_sched_take(&arena, 0);
        answer_begin(&answer, &arena, &tok, &format, 0, choices);
        commit_text(2, "aa");
        cr_expect_eq(answer_render(&answer, bytes, sizeof(bytes), &size), ANSWER_WAITS);
        cr_expect_eq(answer_stopped(&answer, 0), 0);
        commit_text(2, "bcd"); /* long before its turn in a stream: nothing of choice 0 is there */
        cr_expect_eq(answer_render(&answer, bytes, sizeof(bytes), &size), ANSWER_WAITS);
        cr_expect_eq(answer_stopped(&answer, 0), 4);
        commit_text(0, "b");
        /* a stream's reader that leaves no room does not matter either */
        answer_render(&answer, bytes, is_stream ? 0 : sizeof(bytes), &size);
        cr_expect_eq(answer_stopped(&answer, 0), 5);
        commit_text(1, "bb");
        cr_expect_eq(answer_render(&answer, bytes, sizeof(bytes), &size), ANSWER_COMPLETE);
        cr_expect_eq(answer_stopped(&answer, 0), 7);
    }
}

Test(answer, stop_strings_count_only_behind_the_least_number_of_tokens, .init = set_up)
{
    add_stop("b");
    request->min_tokens = 3;
    fake_sched_take(&arena, 0);
    commit_text(0, "abcba");
    expect_text("abc", "stop");
}

Test(answer, a_stop_string_that_begins_within_the_least_number_of_tokens_counts, .init = set_up)
{
    add_stop("b");
    add_stop("bcd");
    request->min_tokens = 3;
    fake_sched_take(&arena, 0);
    commit_text(0, "abcda");
    expect_text("a", "stop");
}

Test(answer, end_tokens_give_no_text_and_stop_tokens_neither, .init = set_up)
{
    request->stop_tokens[request->stop_token_count++] = TINY_EURO;
    fake_sched_take(&arena, 0);
    commit(0, TINY_HE);
    commit(0, TINY_EURO);
    fake_sched_end(&arena, 0, 0, FINISH_STOP);
    expect_text("he", "stop");
}

Test(answer, a_failed_one_is_an_error, .init = set_up)
{
    fake_sched_take(&arena, 0);
    fake_sched_end(&arena, 0, 0, FINISH_ERROR);
    const char *bytes = render_all(65536);
    cr_expect_eq(strncmp(bytes, "HTTP/1.1 500 ", 13), 0);
    cr_expect_eq(strncmp(body_of(bytes), "{\"error\":", 9), 0);
}

Test(answer, a_request_that_gets_no_sequence_is_an_error, .init = set_up)
{
    arena_answer(&arena, 0)->sequence_count = 0;
    journal_answer_set(arena_answer(&arena, 0), request->generation);
    cr_expect_eq(strncmp(render_all(65536), "HTTP/1.1 500 ", 13), 0);
    format.is_stream = 1;
    char *body = body_of(render_all(65536));
    cr_expect_eq(strncmp(body, "data: {\"error\":", 15), 0, "%s", body);
    cr_expect_not_null(strstr(body, "\"finish_reason\":\"error\""));
}

/* ---- echo ---- */

/* The prompt, in the answer too. */
static void set_prompt(const uint32_t *prompt, uint32_t count)
{
    for (uint32_t page = 0; page * PAGE_TOKENS < count; page++)
        arena_prompt_list(&arena, 0)[page] = page;
    request->prompt_tokens = count;
    journal_prompt_write(&arena, 0, 0, count, prompt);
    format.echoes = 1;
}

static uint32_t count_of(const char *text, const char *part)
{
    uint32_t count = 0;
    for (; (text = strstr(text, part)) != NULL; text += strlen(part))
        count++;
    return count;
}

/* Half a character ends with the prompt; what looks like a stop string within it or across its end is none. */
Test(answer, an_echoed_prompt_comes_before_the_answer, .init = set_up)
{
    const uint32_t prompt[] = {TINY_IM_START, TINY_HE, TINY_LLO, TINY_BYTE_FIRST + 0xe2};
    set_prompt(prompt, 4);
    add_stop("ello");
    add_stop("\xef\xbf\xbdq");
    format.returns_token_ids = format.returns_logits_hash = 1;
    fake_sched_take(&arena, 0);
    commit(0, TINY_BYTE_FIRST + 'q');
    commit(0, TINY_BYTE_FIRST + 'r');
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *body = body_of(render_all(65536));
    cr_expect_not_null(strstr(body, "{\"index\":0,\"text\":\"hello\xef\xbf\xbdqr\",\"token_ids\":[116,117],"
                                    "\"logits_hash\":[\"abcd000000000074\",\"abcd000000000075\"],"
                                    "\"logprobs\":null,\"finish_reason\":\"length\"}"),
                       "%s", body);
    cr_expect_not_null(strstr(body, "\"prompt_tokens\":4,\"completion_tokens\":2,\"total_tokens\":6"), "%s", body);
    format.is_stream = 1;
    body = body_of(render_all(65536));
    cr_expect_not_null(strstr(body, "{\"index\":0,\"text\":\"hello\xef\xbf\xbd\",\"logprobs\":null,"
                                    "\"finish_reason\":null}]}"),
                       "%s", body);
    cr_expect_eq(count_of(body, "\"token_ids\":["), 2, "%s", body);
}

Test(answer, an_echoed_prompt_is_sent_before_there_is_a_token, .init = set_up)
{
    static struct answer answer;
    char *bytes = malloc(BYTES_MAX);
    size_t size = 0;
    set_prompt((const uint32_t[]){TINY_HELLO}, 1);
    format.is_stream = 1;
    request->choices = 2;
    answer_begin(&answer, &arena, &tok, &format, 0, choices);
    cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_WAITS);
    cr_expect_eq(count_of(bytes, "\"text\":\"hello\""), 2, "one of each choice: %s", bytes);
}

Test(answer, a_long_echoed_prompt_needs_little_room, .init = set_up)
{
    static uint32_t prompt[3000];
    char reason[32], *wanted = calloc(1, 20000);
    uint32_t tokens;
    for (uint32_t i = 0; i < ARRAY_COUNT(prompt); i++) {
        prompt[i] = i % 2 ? TINY_HELLO : TINY_BYTE_FIRST + 1; /* six bytes in JSON */
        strcat(wanted, i % 2 ? "hello" : "\x01");
    }
    strcat(wanted, "q");
    set_prompt(prompt, ARRAY_COUNT(prompt));
    request->choices = 3;
    fake_sched_take(&arena, 0);
    for (uint32_t c = 0; c < 3; c++) {
        commit(c, TINY_BYTE_FIRST + 'q');
        fake_sched_end(&arena, 0, c, FINISH_LENGTH);
    }
    for (uint32_t is_stream = 0; is_stream < 2; is_stream++) {
        format.is_stream = (uint8_t)is_stream;
        char *small = render_all(ANSWER_PIECE_MAX), *large = render_all(1u << 20);
        cr_expect_str_eq(small, large);
        for (uint32_t c = 0; c < 3; c++)
            cr_expect_str_eq(text_of(body_of(small), c, reason, &tokens), wanted);
    }
    uint32_t events = count_of(body_of(render_all(65536)), "\"index\":2,");
    cr_expect(events > 3 && events < 10, "%u events", events);
}

/* Committed one by one or at once, in turns of two choices; streamed or not: each list has the prompt's tokens first. */
Test(answer, a_scored_prompt_may_have_an_answer, .init = set_up)
{
    const uint32_t prompt[] = {TINY_HE, TINY_BYTE_FIRST + 0xe2, TINY_LLO}, own[] = {TINY_EURO, TINY_BYTE_FIRST + '!'};
    set_prompt(prompt, 3);
    request->flags = REQUEST_SCORE | REQUEST_LOGPROB;
    request->choices = 2;
    add_stop("llo");
    format.returns_logprobs = format.returns_token_ids = format.returns_logits_hash = 1;
    for (uint32_t is_stream = 0; is_stream < 2; is_stream++) {
        static struct answer answer;
        char *bytes = malloc(BYTES_MAX);
        size_t size = 0;
        format.is_stream = (uint8_t)is_stream;
        request->generation++;
        answer_begin(&answer, &arena, &tok, &format, 0, choices);
        cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_WAITS);
        fake_sched_take(&arena, 0);
        for (uint32_t i = 1; i < 5; i++)
            for (uint32_t c = 2; c-- > 0;) {
                commit(c, i < 3 ? prompt[i] : own[i - 3]);
                cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_WAITS);
            }
        fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
        fake_sched_end(&arena, 0, 1, FINISH_LENGTH);
        cr_expect_eq(render(&answer, bytes, &size, 65536), ANSWER_COMPLETE);
        cr_expect_str_eq(bytes, render_all(ANSWER_PIECE_MAX));
        char reason[32], *body = body_of(bytes);
        uint32_t tokens;
        cr_expect_str_eq(text_of(body, 1, reason, &tokens), "he\xef\xbf\xbdllo\xe2\x82\xac!");
        cr_expect_eq(tokens, 5);
        if (is_stream) {
            cr_expect_not_null(
                strstr(body, "{\"index\":1,\"text\":\"he\",\"logprobs\":{\"tokens\":[\"he\"],\"text_offset\":[0],"
                             "\"token_logprobs\":[null],\"top_token_ids\":[null]},\"finish_reason\":null,"
                             "\"token_ids\":[259],\"logits_hash\":[null]}"),
                "%s", body);
            cr_expect_not_null(
                strstr(body, "{\"index\":1,\"text\":\"\xe2\x82\xac\",\"logprobs\":{\"tokens\":[\"\xe2\x82\xac\"],"
                             "\"text_offset\":[6],\"token_logprobs\":[-0.5],\"top_token_ids\":[263]},"),
                "%s", body);
        } else {
            cr_expect_not_null(
                strstr(body,
                       "\"token_ids\":[259,229,261,263,36],\"logits_hash\":[null,\"abcd0000000000e5\","
                       "\"abcd000000000105\",\"abcd000000000107\",\"abcd000000000024\"],\"logprobs\":{\"tokens\":["
                       "\"he\",\"\xef\xbf\xbd\",\"llo\",\"\xe2\x82\xac\",\"!\"],\"text_offset\":[0,2,2,6,7],"
                       "\"token_logprobs\":[null,-0.625,-0.25,-0.5,-0.125],"
                       "\"top_token_ids\":[null,229,261,263,36]},\"finish_reason\":\"length\"}"),
                "%s", body);
            cr_expect_not_null(strstr(body, "\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7"));
        }
    }
}

Test(answer, a_scored_prompt_has_an_element_for_each_token, .init = set_up)
{
    const uint32_t prompt[3] = {TINY_HE, TINY_LLO, TINY_BYTE_FIRST + '!'};
    set_prompt(prompt, 3);
    request->max_tokens = 0;
    request->flags = REQUEST_SCORE | REQUEST_LOGPROB;
    format.returns_logprobs = 1;
    fake_sched_take(&arena, 0);
    struct token_shm first = {.token = TINY_LLO, .top_token = TINY_LL, .logprob = -1.5f};
    struct token_shm second = {.token = prompt[2], .top_token = prompt[2], .logprob = -0.1f};
    fake_sched_commit(&arena, 0, 0, &first);
    fake_sched_commit(&arena, 0, 0, &second);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *body = body_of(render_all(65536));
    cr_expect_not_null(
        strstr(body, "{\"index\":0,\"text\":\"hello!\",\"logprobs\":{\"tokens\":[\"he\",\"llo\",\"!\"],"
                     "\"text_offset\":[0,2,5],\"token_logprobs\":[null,-1.5,-0.1],\"top_token_ids\":[null,260,36]},"
                     "\"finish_reason\":\"length\"}"),
        "%s", body);
    cr_expect_not_null(strstr(body, "\"completion_tokens\":0,\"total_tokens\":3"));
}

/* The second character is in three tokens: it begins where the first of them stands and counts once it is whole. */
Test(answer, text_offsets_count_whole_characters, .init = set_up)
{
    format.returns_logprobs = 1;
    fake_sched_take(&arena, 0);
    const uint32_t tokens[] = {
        TINY_EURO, TINY_BYTE_FIRST + 0xe2, TINY_BYTE_FIRST + 0x82, TINY_BYTE_FIRST + 0xac, TINY_HE, TINY_LLO};
    for (uint32_t i = 0; i < 6; i++)
        commit(0, tokens[i]);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *body = body_of(render_all(65536));
    cr_expect_not_null(strstr(body, "],\"text_offset\":[0,1,1,1,2,4],\"token_logprobs\":["), "%s", body);
    format.is_stream = 1;
    body = body_of(render_all(65536));
    const uint32_t offsets[] = {0, 1, 1, 1, 2, 4};
    for (uint32_t i = 0; i < 6; i++) {
        char expected[64];
        snprintf(expected, sizeof(expected), "],\"text_offset\":[%u],", offsets[i]);
        body = strstr(body, "],\"text_offset\":");
        cr_assert_not_null(body);
        cr_expect_eq(strncmp(body, expected, strlen(expected)), 0, "event %u: %.40s", i, body);
        body++;
    }
}

Test(answer, a_long_one_needs_little_room, .init = set_up)
{
    format.returns_token_ids = 1;
    fake_sched_take(&arena, 0);
    for (uint32_t i = 0; i < 500; i++)
        commit(0, TINY_BYTE_FIRST + 1 + i % 255);
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    char *small = render_all(ANSWER_PIECE_MAX), *large = render_all(1u << 20);
    cr_expect_str_eq(small, large);
    char reason[32];
    uint32_t tokens;
    text_of(body_of(small), 0, reason, &tokens);
    cr_expect_eq(tokens, 500);
}

/* ---- the writer ---- */

static const char *float_text(float value)
{
    static char text[64];
    struct json_writer w = {text, 0, sizeof(text) - 1};
    json_float(&w, value);
    text[w.size] = '\0';
    return text;
}

Test(json_writer, floats_are_the_shortest_that_give_back_the_same_bits)
{
    cr_expect_str_eq(float_text(-0.1f), "-0.1");
    cr_expect_str_eq(float_text(0), "0");
    cr_expect_str_eq(float_text(16777216.0f), "16777216");
    cr_expect_str_eq(float_text(-INFINITY), "-9999");
    srandom(3);
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = (uint32_t)random() ^ (uint32_t)random() << 16;
        float value;
        memcpy(&value, &bits, sizeof(value));
        if (!isfinite(value))
            continue;
        const char *text = float_text(value);
        cr_assert_eq(strtof(text, NULL), value, "%s", text);
        json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
        cr_assert(json_is_number(json), "%s", text);
        json_decref(json);
    }
}

Test(json_writer, escapes_are_what_a_parser_takes_back)
{
    for (int c = 1; c < 0x80; c++) {
        char text[64], in[3] = {'a', (char)c, 'b'};
        struct json_writer w = {text, 0, sizeof(text)};
        json_quoted(&w, in, 3);
        json_t *json = json_loadb(text, w.size, JSON_DECODE_ANY, NULL);
        cr_assert(json_is_string(json), "%d", c);
        cr_expect_eq(memcmp(json_string_value(json), in, 3), 0);
        json_decref(json);
    }
}

Test(json_writer, bytes_that_are_no_characters_are_replaced)
{
    static const struct {
        const char *in, *out;
    } cases[] = {{"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
                 {"\xff", "\xef\xbf\xbd"},
                 {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd"},
                 {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char out[64];
        size_t size = json_valid_utf8(out, (const uint8_t *)cases[i].in, strlen(cases[i].in));
        cr_expect_eq(size, strlen(cases[i].out), "case %zu", i);
        cr_expect_eq(memcmp(out, cases[i].out, size), 0, "case %zu", i);
    }
}

/* ---- messages: reasoning and tool calls ---- */

static const char calling[] =
    "<think>\nwhich \"city\"?\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": "
    "{\"city\": \"A\\\"b\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n"
    "</tool_call>";

static void set_up_calling(void)
{
    set_up();
    format.kind = ANSWER_CHAT;
    format.message = (struct message_format){.calls = MESSAGE_CALLS_TAGGED, .has_reasoning = 1};
    fake_sched_take(&arena, 0);
    commit_text(0, calling);
    commit(0, TINY_IM_END);
    fake_sched_end(&arena, 0, 0, FINISH_STOP);
}

static const char *text_at(json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

Test(answer, tool_calls_and_reasoning_are_fields_of_the_message, .init = set_up_calling)
{
    json_t *root = json_loads(body_of(render_all(ANSWER_PIECE_MAX)), 0, NULL);
    json_t *choice = json_array_get(json_object_get(root, "choices"), 0), *message = json_object_get(choice, "message");
    json_t *calls = json_object_get(message, "tool_calls"), *first = json_array_get(calls, 0);
    cr_expect_str_eq(text_at(choice, "finish_reason"), "tool_calls");
    cr_expect_str_eq(text_at(message, "content"), "I look.");
    cr_expect_str_eq(text_at(message, "reasoning_content"), "which \"city\"?");
    cr_assert_eq(json_array_size(calls), 2);
    cr_expect_str_eq(text_at(first, "id"), "call_0123456789abcdef00000");
    cr_expect_str_eq(text_at(first, "type"), "function");
    cr_expect_str_eq(text_at(json_object_get(first, "function"), "name"), "weather");
    cr_expect_str_eq(text_at(json_object_get(first, "function"), "arguments"), "{\"city\": \"A\\\"b\"}");
    cr_expect_str_eq(text_at(json_object_get(json_array_get(calls, 1), "function"), "name"), "add");
}

Test(answer, a_stream_of_tool_calls_adds_up_to_the_whole_message, .init = set_up_calling)
{
    format.is_stream = 1;
    char content[512] = "", reasoning[512] = "", calls[512] = "", finish_reason[32] = "";
    for (char *at = body_of(render_all(ANSWER_PIECE_MAX)); (at = strstr(at, "data: {")) != NULL; at++) {
        json_t *root = json_loads(at + 6, JSON_DISABLE_EOF_CHECK, NULL), *call;
        cr_assert_not_null(root, "%.300s", at);
        json_t *choice = json_array_get(json_object_get(root, "choices"), 0), *delta = json_object_get(choice, "delta");
        size_t i;
        strcat(content, text_at(delta, "content"));
        strcat(reasoning, text_at(delta, "reasoning_content"));
        strcat(finish_reason, text_at(choice, "finish_reason"));
        json_array_foreach(json_object_get(delta, "tool_calls"), i, call) {
            json_t *function = json_object_get(call, "function");
            if (json_object_get(function, "name") != NULL)
                sprintf(calls + strlen(calls), " %d %s %s=", (int)json_integer_value(json_object_get(call, "index")),
                        text_at(call, "id"), text_at(function, "name"));
            strcat(calls, text_at(function, "arguments"));
        }
    }
    cr_expect_str_eq(content, "I look.");
    cr_expect_str_eq(reasoning, "which \"city\"?");
    cr_expect_str_eq(finish_reason, "tool_calls");
    cr_expect_str_eq(calls, " 0 call_0123456789abcdef00000 weather={\"city\": \"A\\\"b\"}"
                            " 1 call_0123456789abcdef00001 add={}");
}

Test(answer, a_message_of_nothing_but_calls_has_no_content, .init = set_up)
{
    format.kind = ANSWER_CHAT;
    format.message = (struct message_format){.calls = MESSAGE_CALLS_JSON};
    fake_sched_take(&arena, 0);
    commit_text(0, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}");
    fake_sched_end(&arena, 0, 0, FINISH_STOP);
    const char *body = body_of(render_all(ANSWER_PIECE_MAX));
    cr_expect(strstr(body, "\"content\":null,\"tool_calls\":[{\"id\":\"call_0123456789abcdef00000\"") != NULL, "%s",
              body);
    cr_expect(strstr(body, "\"arguments\":\"{\\\"a\\\": 1}\"}}]}") != NULL, "%s", body);
}

Test(answer, a_message_that_was_cut_off_keeps_its_finish_reason, .init = set_up)
{
    format.kind = ANSWER_CHAT;
    format.message = (struct message_format){.calls = MESSAGE_CALLS_TAGGED, .has_reasoning = 1};
    fake_sched_take(&arena, 0);
    commit_text(0, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a");
    fake_sched_end(&arena, 0, 0, FINISH_LENGTH);
    const char *body = body_of(render_all(ANSWER_PIECE_MAX));
    cr_expect(strstr(body, "\"arguments\":\"{\\\"a\"}}]}") != NULL, "%s", body);
    cr_expect(strstr(body, "\"finish_reason\":\"length\"") != NULL, "%s", body);
}
