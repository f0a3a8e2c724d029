#include "engine/answer.h"

#include <stddef.h>
#include <string.h>

#include "engine/json_writer.h"
#include "ipc/journal.h"

/* A chunk's size line: four hexadecimal digits and CRLF, written when the chunk is complete. */
#define CHUNK_HEAD_BYTES 6u

/* What one token's text can begin: a call is at least as long as {"name":"","arguments":{}} */
#define CALL_BEGIN_MAX      160u
#define CALLS_PER_EVENT_MAX ((SCAN_TEXT_MAX + MESSAGE_ADDED_MAX) / 26u + 1)
#define SCAN_TEXT_MAX       (STOP_BYTES_MAX + TOKEN_TEXT_MAX)

#define ECHO_TEXT_MAX 4096u /* of an event that holds a part of the prompt and nothing else */

/* Of a token in a list of most probable ones so many bytes are shown: a vocabulary's longest, twenty times, would not fit. */
#define TOP_TEXT_MAX  48u
#define TOP_PIECE_MAX (TOP_TEXT_MAX * (JSON_ESCAPE_MAX + 4) + 64)

static_assert(ANSWER_PIECE_MAX < 0x10000, "a piece fits a chunk of four digits");
/* text, its token again with logprobs (characters and bytes), prefix, framing: see write_event() */
static_assert((STOP_BYTES_MAX + TOK_PIECE_MAX + MESSAGE_ADDED_MAX) * JSON_ESCAPE_MAX +
                      TOK_PIECE_MAX * (JSON_ESCAPE_MAX + 4) + ANSWER_PREFIX_MAX + HTTP_RESPONSE_HEAD_MAX +
                      CALL_BEGIN_MAX * CALLS_PER_EVENT_MAX + LOGPROBS_MAX * TOP_PIECE_MAX + 1024 <=
                  ANSWER_PIECE_MAX,
              "an event fits a piece");
static_assert(ECHO_TEXT_MAX * JSON_ESCAPE_MAX + ANSWER_PREFIX_MAX + HTTP_RESPONSE_HEAD_MAX + 1024 <= ANSWER_PIECE_MAX,
              "a part of the prompt fits a piece");

enum phase {
    PHASE_HEAD,     /* nothing is out */
    PHASE_EVENTS,   /* stream: choices taking turns */
    PHASE_STREAMED, /* stream: usage and the end */
    PHASE_ERROR,    /* no stream: an error object */
    PHASE_OPEN,     /* no stream: up to the choices */
    PHASE_LISTS,    /* no stream: the lists of a choice, element by element */
    PHASE_CLOSE,    /* no stream: usage and the end */
    PHASE_COMPLETE,
};

/* ---- what journal and log say ---- */

/* Of the first prompt: what does not depend on the prompt is the same in all. */
static const struct request_shm *request_of(const struct answer *a)
{
    return arena_request(a->arena, a->slots[0]);
}

/* The request of a choice's prompt. */
static uint32_t slot_of(const struct answer *a, uint32_t choice)
{
    return a->slots[choice / request_of(a)->choices];
}

static struct answer_choice *choice_at(const struct answer *a, uint32_t choice)
{
    return answer_choice_at(a->choices, a->arena->plan, slot_of(a, choice), choice % request_of(a)->choices);
}

/* Sched has looked at the request: its sequences exist, or it has refused to make any. */
static bool is_taken_in(const struct answer *a, uint32_t choice)
{
    uint32_t slot = slot_of(a, choice);
    return journal_answer_generation(arena_answer(a->arena, slot)) == arena_request(a->arena, slot)->generation;
}

/* NULL until sched has taken the request in, and for ever when it was refused or cancelled before. */
static const struct sequence_shm *sequence_of(const struct answer *a, uint32_t choice, uint32_t *sequence)
{
    const struct answer_shm *shm = arena_answer(a->arena, slot_of(a, choice));
    uint32_t index = choice % request_of(a)->choices;
    if (!is_taken_in(a, choice) || shm->sequence_count == 0)
        return NULL;
    *sequence = shm->sequences[index];
    check(index < shm->sequence_count && *sequence < a->arena->plan->sequences_max);
    return arena_sequence(a->arena, *sequence);
}

/* Entries of a choice's log that exist, and whether they are all there will be. */
static uint32_t committed_of(const struct answer *a, uint32_t choice, bool *is_done)
{
    /* asked once, and first: sched may take the request in between two questions */
    *is_done = is_taken_in(a, choice);
    if (!*is_done)
        return 0;
    uint32_t index;
    const struct sequence_shm *sequence = sequence_of(a, choice, &index);
    if (sequence == NULL)
        return 0;
    /* in this order: once the state is DONE the count is the last one */
    *is_done = journal_sequence_state(sequence) == SEQUENCE_DONE;
    return journal_log_committed(sequence);
}

static const struct token_shm *entry_of(const struct answer *a, uint32_t choice, uint32_t index)
{
    uint32_t sequence;
    check(sequence_of(a, choice, &sequence) != NULL);
    return journal_log_entry(a->arena, sequence, index);
}

static uint32_t log_first_of(const struct answer *a, uint32_t choice)
{
    return journal_log_first(arena_request(a->arena, slot_of(a, choice)));
}

/* Tokens of the answer itself that exist, and whether they are all there will be. */
static uint32_t generated_of(const struct answer *a, uint32_t choice, bool *is_done)
{
    uint32_t committed = committed_of(a, choice, is_done), first = log_first_of(a, choice);
    return committed > first ? committed - first : 0;
}

/* The answer's own token `index`. */
static uint32_t token_of(const struct answer *a, uint32_t choice, uint32_t index)
{
    return entry_of(a, choice, log_first_of(a, choice) + index)->token;
}

static uint32_t prompt_tokens_of(const struct answer *a, uint32_t choice)
{
    return arena_request(a->arena, slot_of(a, choice))->prompt_tokens;
}

static uint32_t prompt_token_of(const struct answer *a, uint32_t choice, uint32_t index)
{
    uint32_t token;
    journal_prompt_read(a->arena, slot_of(a, choice), index, 1, &token);
    return token;
}

static bool is_scored(const struct answer *a)
{
    return request_of(a)->flags & REQUEST_SCORE;
}

/* Tokens of the prompt that come before the answer: in its text, and in its lists. */
static uint32_t echo_of(const struct answer *a, uint32_t choice)
{
    return a->format->echoes ? prompt_tokens_of(a, choice) : 0;
}

static uint32_t listed_of(const struct answer *a, uint32_t choice)
{
    return is_scored(a) ? prompt_tokens_of(a, choice) : 0;
}

/* One element of a choice's lists. */
struct element {
    uint32_t token;
    uint32_t index;                /* in the log */
    const struct token_shm *entry; /* NULL: nothing predicted the token */
};

static struct element element_at(const struct answer *a, uint32_t choice, uint32_t i)
{
    if (is_scored(a) && i == 0)
        return (struct element){.token = prompt_token_of(a, choice, 0)};
    struct element element = {.index = i - is_scored(a)};
    element.entry = entry_of(a, choice, element.index);
    element.token = element.entry->token;
    return element;
}

static uint32_t finish_reason_of(const struct answer *a, uint32_t choice)
{
    uint32_t index;
    const struct sequence_shm *sequence = sequence_of(a, choice, &index);
    if (choice_at(a, choice)->scan.is_stopped)
        return FINISH_STOP;
    if (sequence == NULL)
        return journal_request_is_cancelled(arena_request(a->arena, slot_of(a, choice))) ? FINISH_ABORT : FINISH_ERROR;
    return sequence->finish_reason;
}

static const char *finish_reason_text(const struct answer *a, uint32_t choice)
{
    switch (finish_reason_of(a, choice)) {
    case FINISH_LENGTH:
        return "length";
    case FINISH_STOP:
        return choice_at(a, choice)->message.calls > 0 ? "tool_calls" : "stop";
    case FINISH_ABORT:
        return "abort";
    default:
        return "error";
    }
}

/* A token that ends an answer gives no text. */
static bool ends_answer(const struct answer *a, uint32_t token, uint32_t index)
{
    const struct request_shm *request = request_of(a);
    const struct plan *plan = a->arena->plan;
    if (index + 1 < request->min_tokens)
        return false;
    for (uint32_t i = 0; i < request->stop_token_count; i++)
        if (request->stop_tokens[i] == token)
            return true;
    for (uint32_t i = 0; i < plan->end_token_count && !(request->flags & REQUEST_IGNORE_EOS); i++)
        if (plan->end_tokens[i] == token)
            return true;
    return false;
}

/* ---- tokens to text ---- */

/* The first place where a stop string stands in text that ends behind the first `seen` bytes; size: there is none. */
static size_t find_stop(const struct answer_format *format, const char *text, size_t size, size_t seen)
{
    size_t first = size;
    const char *stop = format->stops;
    for (uint32_t i = 0; i < format->stop_count; stop += format->stop_size[i], i++) {
        size_t from = seen >= format->stop_size[i] ? seen + 1 - format->stop_size[i] : 0;
        const char *at = memmem(text + from, size - from, stop, format->stop_size[i]);
        if (at != NULL)
            first = min_u64(first, (size_t)(at - text));
    }
    return first;
}

/* The first place from which the rest of text is the beginning of a stop string; size: there is none. */
static size_t find_stop_beginning(const struct answer_format *format, const char *text, size_t size)
{
    for (size_t first = size > STOP_BYTES_MAX ? size - STOP_BYTES_MAX : 0; first < size; first++) {
        const char *stop = format->stops;
        for (uint32_t i = 0; i < format->stop_count; stop += format->stop_size[i], i++)
            if (size - first < format->stop_size[i] && memcmp(text + first, stop, size - first) == 0)
                return first;
    }
    return size;
}

/* Characters that a token completes, counted. */
static size_t decoded(const struct answer *a, struct answer_scan *scan, uint32_t token, char *target)
{
    size_t size = tok_decoder_push(&scan->decoder, a->tok, token, target);
    for (size_t i = 0; i < size; i++)
        scan->characters += ((unsigned char)target[i] & 0xc0) != 0x80;
    return size;
}

/* The text that a token gives. Some vocabularies have the markers of calls and reasoning as control tokens. */
static size_t token_text(const struct answer *a, struct answer_scan *scan, uint32_t token, char *target)
{
    const struct message_format *message = &a->format->message;
    uint8_t name[TOK_PIECE_MAX];
    if ((message->calls == MESSAGE_NO_CALLS && !message->has_reasoning) || !tok_is_control(a->tok, token))
        return decoded(a, scan, token, target);
    size_t size = tok_piece(a->tok, token, name);
    if (!message_is_marker((const char *)name, size))
        return 0;
    memcpy(target, name, size);
    return size;
}

/* Takes the next token in. Text that is certain goes to target (SCAN_TEXT_MAX bytes); its size. */
static size_t scan_token(const struct answer *a, struct answer_scan *scan, uint32_t token, char *target)
{
    check(!scan->is_stopped);
    uint32_t index = scan->tokens++;
    scan->offset = scan->characters;
    size_t held = scan->held_size, size = held;
    memcpy(target, scan->held, held);
    scan->held_size = 0;
    if (!ends_answer(a, token, index))
        size += token_text(a, scan, token, target + size);
    if (a->format->stop_count == 0)
        return size;
    /* one that is complete before there are min_tokens does not count; one that only began may */
    size_t stop = scan->tokens > request_of(a)->min_tokens ? find_stop(a->format, target, size, held) : size;
    if (stop < size) {
        scan->is_stopped = true;
        return stop;
    }
    size_t certain = find_stop_beginning(a->format, target, size);
    scan->held_size = (uint32_t)(size - certain);
    memcpy(scan->held, target + certain, scan->held_size);
    return certain;
}

/* Takes the next token of an echoed prompt in: its text ends with it, half a character too, and stop strings are not looked
 * for. What it gives goes to target (TOKEN_TEXT_MAX bytes); its size. */
static size_t scan_echo(const struct answer *a, struct answer_scan *scan, uint32_t choice, char *target)
{
    if (scan->echoed == 0)
        scan->decoder.is_text_start = true;
    scan->offset = scan->characters;
    size_t size = decoded(a, scan, prompt_token_of(a, choice, scan->echoed++), target);
    if (scan->echoed < echo_of(a, choice))
        return size;
    size_t rest = tok_decoder_end(&scan->decoder, target + size);
    scan->characters += rest > 0;
    scan->decoder = (struct tok_decoder){0};
    return size + rest;
}

/* No token follows: what was held back is text after all, and half a character becomes U+FFFD. */
static size_t scan_end(struct answer_scan *scan, char *target)
{
    if (scan->is_stopped)
        return 0;
    size_t size = scan->held_size;
    memcpy(target, scan->held, size);
    scan->held_size = 0;
    return size + tok_decoder_end(&scan->decoder, target + size);
}

/* What text has become of tokens, told apart. */
struct parts {
    struct message_output output;
    char text[SCAN_TEXT_MAX + MESSAGE_ADDED_MAX];
};

/* Takes the next token in, and says what has become certain by it. */
static void scan_parts(const struct answer *a, struct answer_scan *scan, struct message *message, uint32_t token,
                       struct parts *parts)
{
    char text[SCAN_TEXT_MAX];
    if (scan->tokens == 0)
        message_begin(message, &a->format->message);
    size_t size = scan_token(a, scan, token, text);
    message_output_begin(&parts->output, parts->text);
    message_push(message, &a->format->message, text, size, &parts->output);
}

/* No token follows: what was held back, by a stop string or a marker that did not come. */
static void scan_parts_end(const struct answer *a, struct answer_scan *scan, struct message *message,
                           struct parts *parts)
{
    char text[SCAN_TEXT_MAX];
    size_t size = scan_end(scan, text);
    message_output_begin(&parts->output, parts->text);
    message_push(message, &a->format->message, text, size, &parts->output);
    message_end(message, &a->format->message, &parts->output);
}

/* ---- pieces that both forms have ---- */

static void write_prefix(struct answer *a)
{
    static const char *const objects[][2] = {[ANSWER_COMPLETION] = {"text_completion", "text_completion"},
                                             [ANSWER_CHAT] = {"chat.completion", "chat.completion.chunk"}};
    const struct request_shm *request = request_of(a);
    const char *model = a->arena->plan->served_model_name;
    struct json_writer w = {a->prefix, 0, sizeof(a->prefix)};
    json_text(&w, a->format->kind == ANSWER_CHAT ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-");
    json_hex(&w, request->id);
    json_text(&w, "\",\"object\":\"");
    json_text(&w, objects[a->format->kind][a->format->is_stream]);
    json_text(&w, "\",\"created\":");
    json_number(&w, request->created_s);
    json_text(&w, ",\"model\":");
    json_quoted(&w, model, strlen(model));
    json_text(&w, ",\"choices\":[");
    a->prefix_size = (uint32_t)w.size;
}

static void write_usage(const struct answer *a, struct json_writer *w)
{
    uint64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
    for (uint32_t prompt = 0; prompt < a->prompt_count; prompt++) {
        uint32_t index;
        const struct sequence_shm *first = sequence_of(a, prompt * request_of(a)->choices, &index);
        prompt_tokens += arena_request(a->arena, a->slots[prompt])->prompt_tokens;
        cached_tokens += first != NULL ? first->cached_tokens : 0;
    }
    for (uint32_t c = 0; c < a->choice_count; c++)
        completion_tokens += choice_at(a, c)->scan.tokens;
    json_text(w, "\"usage\":{\"prompt_tokens\":");
    json_number(w, prompt_tokens);
    json_text(w, ",\"completion_tokens\":");
    json_number(w, completion_tokens);
    json_text(w, ",\"total_tokens\":");
    json_number(w, prompt_tokens + completion_tokens);
    json_text(w, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    json_number(w, cached_tokens);
    json_text(w, "}}");
}

static void write_hash(struct json_writer *w, uint64_t hash)
{
    json_text(w, "\"");
    json_hex(w, hash);
    json_text(w, "\"");
}

/* The token by itself; bytes that are no characters by themselves become U+FFFD. */
static void write_token_text(const struct answer *a, struct json_writer *w, uint32_t token)
{
    uint8_t bytes[TOK_PIECE_MAX];
    char text[TOKEN_TEXT_MAX];
    size_t size = tok_piece(a->tok, token, bytes);
    json_quoted(w, text, json_valid_utf8(text, bytes, size));
}

/* {"token":...,"logprob":...,"bytes":[...]  and what follows in it */
static void write_chat_token(const struct answer *a, struct json_writer *w, uint32_t token, float logprob,
                             size_t size_max)
{
    uint8_t bytes[TOK_PIECE_MAX];
    char text[TOKEN_TEXT_MAX];
    size_t size = min_u64(tok_piece(a->tok, token, bytes), size_max);
    json_text(w, "{\"token\":");
    json_quoted(w, text, json_valid_utf8(text, bytes, size));
    json_text(w, ",\"logprob\":");
    json_float(w, logprob);
    json_text(w, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) {
        json_raw(w, ",", i > 0);
        json_number(w, bytes[i]);
    }
    json_text(w, "]");
}

/* The most probable tokens where log entry `index` stands; NULL: none were asked for. */
static const struct top_shm *tops_of(const struct answer *a, uint32_t index)
{
    uint32_t sequence;
    if (request_of(a)->top_logprobs == 0)
        return NULL;
    check(sequence_of(a, a->choice, &sequence) != NULL);
    return journal_log_tops(a->arena, sequence, index);
}

static void write_chat_logprob(const struct answer *a, struct json_writer *w, const struct element *element)
{
    const struct top_shm *tops = tops_of(a, element->index);
    write_chat_token(a, w, element->token, element->entry->logprob, TOK_PIECE_MAX);
    json_text(w, ",\"top_logprobs\":[");
    for (uint32_t i = 0; tops != NULL && i < request_of(a)->top_logprobs; i++) {
        json_raw(w, ",", i > 0);
        write_chat_token(a, w, tops[i].token, tops[i].logprob, TOP_TEXT_MAX);
        json_text(w, "}");
    }
    json_text(w, "]}");
}

/* A completion's: what the entry says of a token, null where there is none. */
static void write_hash_of(struct json_writer *w, const struct element *element)
{
    if (element->entry != NULL)
        write_hash(w, element->entry->logits_hash);
    else
        json_text(w, "null");
}

static void write_logprob(struct json_writer *w, const struct element *element)
{
    if (element->entry != NULL)
        json_float(w, element->entry->logprob);
    else
        json_text(w, "null");
}

static void write_top(struct json_writer *w, const struct element *element)
{
    if (element->entry != NULL)
        json_number(w, element->entry->top_token);
    else
        json_text(w, "null");
}

/* {"token": logprob, ...}, the most probable one first. */
static void write_tops(const struct answer *a, struct json_writer *w, const struct element *element)
{
    if (element->entry == NULL) {
        json_text(w, "null");
        return;
    }
    const struct top_shm *tops = tops_of(a, element->index);
    json_text(w, "{");
    for (uint32_t i = 0; i < request_of(a)->top_logprobs; i++) {
        uint8_t bytes[TOK_PIECE_MAX];
        char text[TOKEN_TEXT_MAX];
        size_t size = min_u64(tok_piece(a->tok, tops[i].token, bytes), TOP_TEXT_MAX);
        json_raw(w, ",", i > 0);
        json_quoted(w, text, json_valid_utf8(text, bytes, size));
        json_text(w, ":");
        json_float(w, tops[i].logprob);
    }
    json_text(w, "}");
}

/* ---- streams ---- */

static void chunk_begin(const struct answer *a, struct json_writer *w)
{
    if (!a->format->is_version_1_0)
        json_text(w, "0000\r\n");
}

static void chunk_end(const struct answer *a, struct json_writer *w, size_t begin)
{
    if (a->format->is_version_1_0)
        return;
    static const char hex[] = "0123456789abcdef";
    size_t size = w->size - begin - CHUNK_HEAD_BYTES;
    check(size > 0 && size < 0x10000);
    for (size_t i = 0; i < 4; i++)
        w->data[begin + i] = hex[size >> (12 - 4 * i) & 15];
    json_text(w, "\r\n");
}

static void write_event_logprobs(const struct answer *a, struct json_writer *w, const struct element *element)
{
    json_text(w, ",\"logprobs\":");
    if (element == NULL || !a->format->returns_logprobs) {
        json_text(w, "null");
    } else if (a->format->kind == ANSWER_CHAT) {
        json_text(w, "{\"content\":[");
        write_chat_logprob(a, w, element);
        json_text(w, "]}");
    } else {
        json_text(w, "{\"tokens\":[");
        write_token_text(a, w, element->token);
        json_text(w, "],\"text_offset\":[");
        json_number(w, choice_at(a, a->choice)->scan.offset);
        json_text(w, "],\"token_logprobs\":[");
        write_logprob(w, element);
        if (request_of(a)->top_logprobs > 0) {
            json_text(w, "],\"top_logprobs\":[");
            write_tops(a, w, element);
        }
        if (is_scored(a)) {
            json_text(w, "],\"top_token_ids\":[");
            write_top(w, element);
        }
        json_text(w, "]}");
    }
}

/* {"id":...,"type":"function","function":{"name":"f","arguments":"   the arguments follow. The id follows from the journal. */
static void write_call_begin(const struct answer *a, struct json_writer *w, uint32_t call, const char *name,
                             size_t size)
{
    json_format(w, "\"id\":\"call_%016llx%02u%03u\",\"type\":\"function\",\"function\":{\"name\":",
                (unsigned long long)request_of(a)->id, a->choice, call);
    json_quoted(w, name, size);
    json_text(w, ",\"arguments\":\"");
}

/* Pieces of one kind, escaped, as one field of a delta. */
static bool write_delta_text(struct json_writer *w, const struct message_output *output, enum message_part part,
                             const char *opening)
{
    bool is_there = false;
    for (uint32_t i = 0; i < output->count; i++) {
        const struct message_piece *piece = &output->pieces[i];
        if (piece->part != part)
            continue;
        if (!is_there)
            json_text(w, opening);
        is_there = true;
        json_escaped(w, output->text + piece->first, piece->size);
    }
    json_text(w, is_there ? "\"" : "");
    return is_there;
}

static void write_delta_calls(const struct answer *a, struct json_writer *w, const struct message_output *output,
                              bool is_behind)
{
    bool is_there = false;
    for (uint32_t i = 0; i < output->count; i++) {
        const struct message_piece *piece = &output->pieces[i];
        if (piece->part != MESSAGE_CALL && piece->part != MESSAGE_ARGUMENTS)
            continue;
        json_text(w, is_there ? "," : is_behind ? ",\"tool_calls\":[" : "\"tool_calls\":[");
        is_there = true;
        json_format(w, "{\"index\":%u,", piece->call);
        if (piece->part == MESSAGE_CALL) {
            write_call_begin(a, w, piece->call, output->text + piece->first, piece->size);
            /* its arguments begin in the same piece of text: message.c */
            if (i + 1 < output->count && output->pieces[i + 1].part == MESSAGE_ARGUMENTS)
                piece = &output->pieces[++i];
        } else {
            json_text(w, "\"function\":{\"arguments\":\"");
        }
        if (piece->part == MESSAGE_ARGUMENTS)
            json_escaped(w, output->text + piece->first, piece->size);
        json_text(w, "\"}}");
    }
    json_text(w, is_there ? "]" : "");
}

/* What of a message has become certain. A token's event has content, even if it is empty, unless it has something else. */
static void write_delta(const struct answer *a, struct json_writer *w, const struct message_output *output,
                        const struct element *element)
{
    json_text(w, ",\"delta\":{");
    bool is_behind = write_delta_text(w, output, MESSAGE_REASONING, "\"reasoning_content\":\"");
    bool has_content = false;
    for (uint32_t i = 0; i < output->count; i++)
        has_content = has_content || output->pieces[i].part == MESSAGE_CONTENT;
    if (has_content) {
        json_text(w, is_behind ? "," : "");
        is_behind = write_delta_text(w, output, MESSAGE_CONTENT, "\"content\":\"");
    } else if (element != NULL && output->count == 0) {
        json_text(w, "\"content\":\"\"");
    }
    write_delta_calls(a, w, output, is_behind);
    json_text(w, "}");
}

/* One event of one choice. Without an element it is the first one of a chat (delta with the role), a part of the prompt or,
 * with a finish reason, the last one. */
static void write_event(const struct answer *a, struct json_writer *w, const struct message_output *output,
                        const struct element *element, const char *finish_reason)
{
    size_t begin = w->size;
    chunk_begin(a, w);
    json_text(w, "data: ");
    json_raw(w, a->prefix, a->prefix_size);
    json_text(w, "{\"index\":");
    json_number(w, a->choice);
    if (a->format->kind != ANSWER_CHAT) {
        json_text(w, ",\"text\":");
        json_quoted(w, output->text, output->size);
    } else if (output == NULL) {
        json_text(w, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    } else {
        write_delta(a, w, output, element);
    }
    write_event_logprobs(a, w, element);
    json_text(w, ",\"finish_reason\":");
    if (finish_reason != NULL)
        json_quoted(w, finish_reason, strlen(finish_reason));
    else
        json_text(w, "null");
    if (element != NULL && a->format->returns_token_ids) {
        json_text(w, ",\"token_ids\":[");
        json_number(w, element->token);
        json_text(w, "]");
    }
    if (element != NULL && a->format->returns_logits_hash) {
        json_text(w, ",\"logits_hash\":[");
        write_hash_of(w, element);
        json_text(w, "]");
    }
    json_text(w, a->format->includes_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
    chunk_end(a, w, begin);
}

static void write_error_object(struct json_writer *w)
{
    json_text(w, "{\"error\":{\"message\":\"the engine could not compute this answer\",\"type\":\"server_error\","
                 "\"param\":null,\"code\":\"internal_error\"}}");
}

static bool next_choice(struct answer *a)
{
    uint32_t choices = a->choice_count;
    for (uint32_t i = 1; i <= choices; i++) {
        uint32_t choice = (a->choice + i) % choices;
        if (!choice_at(a, choice)->has_ended) {
            a->choice = choice;
            return true;
        }
    }
    return false;
}

/* The event of the prompt's next token, or, where it is not scored, of so many of them as it holds. */
static void write_echo_event(const struct answer *a, struct json_writer *w)
{
    struct answer_scan *scan = &choice_at(a, a->choice)->scan;
    uint32_t first = scan->echoed, echo = echo_of(a, a->choice);
    char text[ECHO_TEXT_MAX];
    struct message_output output = {.text = text};
    do {
        output.size += (uint32_t)scan_echo(a, scan, a->choice, text + output.size);
    } while (!is_scored(a) && scan->echoed < echo && output.size <= ECHO_TEXT_MAX - TOKEN_TEXT_MAX);
    struct element element = {0};
    if (is_scored(a))
        element = element_at(a, a->choice, first);
    write_event(a, w, &output, is_scored(a) ? &element : NULL, NULL);
}

/* The next event of the choice in turn, if the log allows it. False: it has to wait. */
static bool render_turn(struct answer *a, struct json_writer *w)
{
    struct answer_scan *scan = &choice_at(a, a->choice)->scan;
    bool is_done;
    uint32_t committed = committed_of(a, a->choice, &is_done);
    /* what a scored prompt's token k shows is entry k - 1 */
    if (scan->echoed < echo_of(a, a->choice) && (!is_scored(a) || scan->echoed <= committed)) {
        write_echo_event(a, w);
        next_choice(a);
        return true;
    }
    bool has_token = !scan->is_stopped && log_first_of(a, a->choice) + scan->tokens < committed;
    if (!has_token && !scan->is_stopped && !is_done)
        return false;
    if (a->format->kind == ANSWER_CHAT && scan->tokens == 0 && !a->has_role) {
        a->has_role = true; /* a piece of its own; the token's event comes with the next call */
        write_event(a, w, NULL, NULL, NULL);
        return true;
    }
    a->has_role = false;
    struct parts parts;
    if (has_token) {
        const struct element element = element_at(a, a->choice, listed_of(a, a->choice) + scan->tokens);
        scan_parts(a, scan, &choice_at(a, a->choice)->message, element.token, &parts);
        write_event(a, w, &parts.output, &element, NULL);
    } else {
        uint32_t reason = finish_reason_of(a, a->choice);
        if (reason == FINISH_ERROR) {
            size_t begin = w->size;
            chunk_begin(a, w);
            json_text(w, "data: ");
            write_error_object(w);
            json_text(w, "\n\n");
            chunk_end(a, w, begin);
        }
        scan_parts_end(a, scan, &choice_at(a, a->choice)->message, &parts);
        write_event(a, w, &parts.output, NULL, finish_reason_text(a, a->choice));
        choice_at(a, a->choice)->has_ended = true;
    }
    if (!next_choice(a))
        a->phase = PHASE_STREAMED;
    return true;
}

/* Choices take turns and readers may be slow; a stop string is to be known when it is there. */
static void look_ahead(struct answer *a)
{
    char text[SCAN_TEXT_MAX];
    for (uint32_t c = 0; c < a->choice_count && a->format->stop_count > 0; c++) {
        struct answer_scan *scan = &choice_at(a, c)->ahead;
        bool is_done;
        uint32_t generated = generated_of(a, c, &is_done);
        while (!scan->is_stopped && scan->tokens < generated)
            scan_token(a, scan, token_of(a, c, scan->tokens), text);
    }
}

static void render_stream_end(struct answer *a, struct json_writer *w)
{
    size_t begin = w->size;
    if (a->format->includes_usage) {
        chunk_begin(a, w);
        json_text(w, "data: ");
        json_raw(w, a->prefix, a->prefix_size);
        json_text(w, "],");
        write_usage(a, w);
        json_text(w, "}\n\n");
        chunk_end(a, w, begin);
        begin = w->size;
    }
    chunk_begin(a, w);
    json_text(w, "data: [DONE]\n\n");
    chunk_end(a, w, begin);
    if (!a->format->is_version_1_0)
        json_text(w, "0\r\n\r\n");
    a->phase = PHASE_COMPLETE;
}

/* ---- answers that are no streams ---- */

/* Elements of a choice's lists, in this order. */
enum list {
    LIST_TEXT,
    LIST_REASONING,
    LIST_CALLS,
    LIST_TOKEN_IDS,
    LIST_HASHES,
    LIST_TOKENS,
    LIST_OFFSETS,
    LIST_LOGPROBS,
    LIST_TOPS,
    LIST_TOP,
    LIST_CHAT,
    LIST_COUNT
};

static const char *const list_opening[LIST_COUNT] = {
    [LIST_TEXT] = "",
    [LIST_REASONING] = ",\"reasoning_content\":\"",
    [LIST_CALLS] = ",\"tool_calls\":[",
    [LIST_TOKEN_IDS] = ",\"token_ids\":[",
    [LIST_HASHES] = ",\"logits_hash\":[",
    [LIST_TOKENS] = ",\"logprobs\":{\"tokens\":[",
    [LIST_OFFSETS] = ",\"text_offset\":[",
    [LIST_LOGPROBS] = ",\"token_logprobs\":[",
    [LIST_TOPS] = ",\"top_logprobs\":[",
    [LIST_TOP] = ",\"top_token_ids\":[",
    [LIST_CHAT] = ",\"logprobs\":{\"content\":[",
};

static bool has_list(const struct answer *a, enum list list)
{
    const struct answer_format *format = a->format;
    const struct message *message = &choice_at(a, a->choice)->message;
    bool is_chat = format->kind == ANSWER_CHAT;
    switch (list) {
    case LIST_TEXT:
        return true;
    case LIST_REASONING:
        return is_chat && message->has_reasoning;
    case LIST_CALLS:
        return is_chat && message->calls > 0;
    case LIST_TOKEN_IDS:
        return format->returns_token_ids;
    case LIST_HASHES:
        return format->returns_logits_hash;
    case LIST_TOKENS:
    case LIST_OFFSETS:
    case LIST_LOGPROBS:
        return format->returns_logprobs && !is_chat;
    case LIST_TOPS:
        return format->returns_logprobs && !is_chat && request_of(a)->top_logprobs > 0;
    case LIST_TOP:
        return format->returns_logprobs && !is_chat && is_scored(a);
    case LIST_CHAT:
        return format->returns_logprobs && is_chat;
    default:
        return false;
    }
}

/* A message that is nothing but calls has no content. */
static bool has_content(const struct answer *a)
{
    const struct message *message = &choice_at(a, a->choice)->message;
    return message->calls == 0 || message->has_content;
}

static const char *list_closing(const struct answer *a, enum list list)
{
    switch (list) {
    case LIST_TEXT:
        return has_content(a) ? "\"" : "null";
    case LIST_REASONING:
        return "\"";
    case LIST_CALLS:
        return "\"}}]";
    case LIST_LOGPROBS:
        return has_list(a, LIST_TOPS) || has_list(a, LIST_TOP) ? "]" : "]}";
    case LIST_TOPS:
        return has_list(a, LIST_TOP) ? "]" : "]}";
    case LIST_TOP:
    case LIST_CHAT:
        return "]}";
    default:
        return "]";
    }
}

static uint32_t element_count(const struct answer *a)
{
    uint32_t before = a->list <= LIST_CALLS ? echo_of(a, a->choice) : listed_of(a, a->choice);
    return before + choice_at(a, a->choice)->scan.tokens;
}

/* The pieces that belong to a list: a message is read once for its content, once for its reasoning, once for its calls. */
static void write_pieces(const struct answer *a, struct json_writer *w, enum list list,
                         const struct message_output *output)
{
    for (uint32_t i = 0; i < output->count; i++) {
        const struct message_piece *piece = &output->pieces[i];
        const char *text = output->text + piece->first;
        bool is_here = list == LIST_TEXT        ? piece->part == MESSAGE_CONTENT
                       : list == LIST_REASONING ? piece->part == MESSAGE_REASONING
                                                : piece->part == MESSAGE_ARGUMENTS;
        if (is_here) {
            json_escaped(w, text, piece->size);
        } else if (list == LIST_CALLS && piece->part == MESSAGE_CALL) {
            json_text(w, piece->call > 0 ? "\"}},{" : "{");
            write_call_begin(a, w, piece->call, text, piece->size);
        }
    }
}

static void write_text_element(struct answer *a, struct json_writer *w, enum list list, uint32_t i)
{
    uint32_t echo = echo_of(a, a->choice);
    if (i < echo) {
        char text[TOKEN_TEXT_MAX];
        json_escaped(w, text, scan_echo(a, &a->text_scan, a->choice, text));
        return;
    }
    struct parts parts;
    scan_parts(a, &a->text_scan, &a->text_message, token_of(a, a->choice, i - echo), &parts);
    write_pieces(a, w, list, &parts.output);
}

/* The list is read from its first token on, as the text is. */
static void write_offset(struct answer *a, struct json_writer *w, uint32_t i, uint32_t token)
{
    char text[TOKEN_TEXT_MAX];
    json_number(w, a->text_scan.characters);
    if (i < listed_of(a, a->choice))
        scan_echo(a, &a->text_scan, a->choice, text);
    else
        decoded(a, &a->text_scan, token, text);
}

static void write_element(struct answer *a, struct json_writer *w, enum list list, uint32_t i)
{
    if (list <= LIST_CALLS) {
        write_text_element(a, w, list, i);
        return;
    }
    const struct element element = element_at(a, a->choice, i);
    json_raw(w, ",", i > 0);
    if (list == LIST_TOKEN_IDS)
        json_number(w, element.token);
    else if (list == LIST_TOKENS)
        write_token_text(a, w, element.token);
    else if (list == LIST_OFFSETS)
        write_offset(a, w, i, element.token);
    else if (list == LIST_HASHES)
        write_hash_of(w, &element);
    else if (list == LIST_LOGPROBS)
        write_logprob(w, &element);
    else if (list == LIST_TOP)
        write_top(w, &element);
    else if (list == LIST_TOPS)
        write_tops(a, w, &element);
    else
        write_chat_logprob(a, w, &element);
}

static void open_choice(struct answer *a, struct json_writer *w)
{
    json_raw(w, ",", a->choice > 0);
    json_text(w, "{\"index\":");
    json_number(w, a->choice);
    json_text(w, a->format->kind == ANSWER_CHAT ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":");
    json_text(w, has_content(a) ? "\"" : "");
    a->list = LIST_TEXT;
    a->item = 0;
    a->text_scan = (struct answer_scan){0};
}

static void close_list(struct answer *a, struct json_writer *w)
{
    if (a->list <= LIST_CALLS) {
        struct parts parts;
        scan_parts_end(a, &a->text_scan, &a->text_message, &parts);
        write_pieces(a, w, (enum list)a->list, &parts.output);
        a->text_scan = (struct answer_scan){0};
    }
    json_text(w, list_closing(a, (enum list)a->list));
    a->item = 0;
    bool is_message = a->list <= LIST_CALLS;
    do {
        a->list++;
    } while (a->list < LIST_COUNT && !has_list(a, (enum list)a->list));
    if (is_message && a->list > LIST_CALLS && a->format->kind == ANSWER_CHAT)
        json_text(w, "}");
    if (a->list < LIST_COUNT) {
        json_text(w, list_opening[a->list]);
        return;
    }
    if (!has_list(a, LIST_LOGPROBS) && !has_list(a, LIST_CHAT))
        json_text(w, ",\"logprobs\":null");
    json_text(w, ",\"finish_reason\":\"");
    json_text(w, finish_reason_text(a, a->choice));
    json_text(w, "\"}");
    if (++a->choice < a->choice_count)
        open_choice(a, w);
    else
        a->phase = PHASE_CLOSE;
}

/* The next piece of the body. */
static void render_body_piece(struct answer *a, struct json_writer *w)
{
    switch (a->phase) {
    case PHASE_ERROR:
        write_error_object(w);
        a->phase = PHASE_COMPLETE;
        break;
    case PHASE_OPEN:
        json_raw(w, a->prefix, a->prefix_size);
        a->choice = 0;
        open_choice(a, w);
        a->phase = PHASE_LISTS;
        break;
    case PHASE_LISTS:
        if (a->item < element_count(a))
            write_element(a, w, (enum list)a->list, a->item++);
        else
            close_list(a, w);
        break;
    case PHASE_CLOSE:
        json_text(w, "],");
        write_usage(a, w);
        json_text(w, "}");
        a->phase = PHASE_COMPLETE;
        break;
    default:
        check(a->phase != PHASE_COMPLETE);
    }
}

/* Takes in what has been committed. True when every choice has ended. */
static bool scan_all(struct answer *a)
{
    const struct message_format *message = &a->format->message;
    bool is_plain = a->format->stop_count == 0 && message->calls == MESSAGE_NO_CALLS && !message->has_reasoning;
    bool have_all_ended = true;
    struct parts parts;
    for (uint32_t c = 0; c < a->choice_count; c++) {
        struct answer_scan *scan = &choice_at(a, c)->scan;
        bool is_done;
        uint32_t generated = generated_of(a, c, &is_done);
        if (is_plain)
            scan->tokens = generated;
        while (!scan->is_stopped && scan->tokens < generated)
            scan_parts(a, scan, &choice_at(a, c)->message, token_of(a, c, scan->tokens), &parts);
        if (scan->is_stopped || is_done)
            scan_parts_end(a, scan, &choice_at(a, c)->message, &parts);
        have_all_ended = have_all_ended && (scan->is_stopped || is_done);
    }
    return have_all_ended;
}

static bool has_failed(const struct answer *a)
{
    for (uint32_t c = 0; c < a->choice_count; c++) {
        if (finish_reason_of(a, c) == FINISH_ERROR)
            return true;
        bool is_done;
        if (committed_of(a, c, &is_done) < log_first_of(a, c)) /* there is no text without the scores before it */
            return true;
    }
    return false;
}

/* ---- the whole ---- */

void answer_begin(struct answer *answer, const struct arena *arena, const struct tok *tok,
                  const struct answer_format *format, uint32_t request_slot, struct answer_choice *choices)
{
    memset(answer, 0, offsetof(struct answer, prefix));
    answer->arena = arena;
    answer->tok = tok;
    answer->format = format;
    answer->choices = choices;
    answer->phase = PHASE_HEAD;
    answer->prompt_count = journal_request_chain(arena, request_slot, answer->slots);
    const struct request_shm *request = request_of(answer);
    answer->choice_count = answer->prompt_count * request->choices;
    for (uint32_t c = 0; c < answer->choice_count; c++)
        *choice_at(answer, c) = (struct answer_choice){0};
    write_prefix(answer);
}

static void render_head(struct answer *a, struct json_writer *w)
{
    const struct answer_format *format = a->format;
    struct http_response response = {.status = a->phase == PHASE_ERROR ? 500 : 200,
                                     .content_type = "application/json",
                                     .framing = HTTP_LENGTH,
                                     .content_length = a->length,
                                     .request_id = format->request_id,
                                     .allow_origin = format->allow_origin,
                                     .closes = format->closes,
                                     .is_version_1_0 = format->is_version_1_0};
    if (format->is_stream) {
        response.content_type = "text/event-stream; charset=utf-8";
        response.framing = format->is_version_1_0 ? HTTP_UNTIL_CLOSE : HTTP_CHUNKED;
    }
    check(w->room - w->size >= HTTP_RESPONSE_HEAD_MAX);
    w->size += http_write_head(w->data + w->size, &response);
}

/* Head and body: the body is rendered once to learn its length, and out with that if it is as small as most are. */
static void render_document(struct answer *a, struct json_writer *w)
{
    static char body[2 * ANSWER_PIECE_MAX]; /* one thread */
    const size_t kept_max = ANSWER_PIECE_MAX - HTTP_RESPONSE_HEAD_MAX;
    struct json_writer pieces = {body, 0, sizeof(body)};
    uint32_t first_phase = a->phase;
    a->length = 0;
    while (a->phase != PHASE_COMPLETE) {
        if (pieces.size > kept_max) {
            a->length += pieces.size;
            pieces.size = 0;
        }
        render_body_piece(a, &pieces);
    }
    bool is_whole = a->length == 0 && pieces.size <= kept_max;
    a->length += pieces.size;
    a->phase = first_phase; /* from where every place in the body is set anew */
    render_head(a, w);
    if (is_whole) {
        json_raw(w, body, pieces.size);
        a->phase = PHASE_COMPLETE;
    }
}

enum answer_result answer_render(struct answer *a, char *target, size_t room, size_t *size)
{
    struct json_writer w = {target, 0, room};
    enum answer_result result = ANSWER_HAS_MORE;
    if (a->format->is_stream)
        look_ahead(a);
    while (result == ANSWER_HAS_MORE && room - w.size >= ANSWER_PIECE_MAX) {
        switch (a->phase) {
        case PHASE_HEAD:
            if (a->format->is_stream) {
                render_head(a, &w);
                a->phase = PHASE_EVENTS;
            } else if (scan_all(a)) {
                a->phase = has_failed(a) ? PHASE_ERROR : PHASE_OPEN;
                render_document(a, &w);
            } else {
                result = ANSWER_WAITS;
            }
            break;
        case PHASE_EVENTS:
            if (!render_turn(a, &w))
                result = ANSWER_WAITS;
            break;
        case PHASE_STREAMED:
            render_stream_end(a, &w);
            break;
        case PHASE_COMPLETE:
            result = ANSWER_COMPLETE;
            break;
        default:
            render_body_piece(a, &w);
        }
    }
    if (a->phase == PHASE_COMPLETE)
        result = ANSWER_COMPLETE;
    a->written += w.size;
    *size = w.size;
    return result;
}

uint32_t answer_stopped(const struct answer *answer, uint32_t prompt)
{
    uint32_t stopped = 0, each = request_of(answer)->choices;
    for (uint32_t c = 0; c < each; c++) {
        const struct answer_choice *choice = choice_at(answer, prompt * each + c);
        stopped |= (uint32_t)(answer->format->is_stream ? choice->ahead : choice->scan).is_stopped << c;
    }
    return stopped;
}
