#include "engine/message.h"

#include <string.h>

#include "ipc/base.h"

enum state {
    STATE_TEXT,      /* content or reasoning; held: the beginning of a marker */
    STATE_HEAD,      /* held: a call up to its arguments, without its tag */
    STATE_ARGUMENTS, /* inside their brackets */
    STATE_TAIL,      /* behind them; held: the beginning of the end tag */
};

static const char think_begin[] = "<think>", think_end[] = "</think>";
static const char call_begin[] = "<tool_call>", call_end[] = "</tool_call>";

bool message_is_marker(const char *name, size_t size)
{
    static const char *const markers[] = {think_begin, think_end, call_begin, call_end};
    for (size_t i = 0; i < ARRAY_COUNT(markers); i++)
        if (strlen(markers[i]) == size && memcmp(markers[i], name, size) == 0)
            return true;
    return false;
}

void message_begin(struct message *m, const struct message_format *format)
{
    *m = (struct message){.is_thinking = format->has_reasoning && format->begins_thinking};
    m->is_fresh = m->is_thinking;
}

/* ---- output ---- */

static void put(struct message *m, struct message_output *out, enum message_part part, const char *text, size_t size)
{
    struct message_piece *last = out->count > 0 ? &out->pieces[out->count - 1] : NULL;
    uint32_t call = part >= MESSAGE_CALL ? m->calls - 1 : 0;
    if (last == NULL || last->part != part || last->call != call) {
        check(out->count < MESSAGE_PIECES_MAX);
        last = &out->pieces[out->count++];
        *last = (struct message_piece){.part = part, .first = out->size, .call = call};
    }
    memcpy(out->text + out->size, text, size);
    out->size += (uint32_t)size;
    last->size += (uint32_t)size;
}

static void put_newlines(struct message *m, struct message_output *out)
{
    for (; m->newlines > 0; m->newlines--)
        put(m, out, m->is_thinking ? MESSAGE_REASONING : MESSAGE_CONTENT, "\n", 1);
}

/* A byte of content or reasoning. Newlines wait: the last ones before a marker are part of it. */
static void put_text(struct message *m, struct message_output *out, char c)
{
    if (c == '\n') {
        if (m->is_fresh)
            return;
        if (m->newlines == MESSAGE_NEWLINES_MAX)
            put_newlines(m, out);
        m->newlines++;
        return;
    }
    put_newlines(m, out);
    m->is_fresh = false;
    m->is_begun = m->is_begun || (c != ' ' && c != '\t' && c != '\r');
    *(m->is_thinking ? &m->has_reasoning : &m->has_content) = true;
    put(m, out, m->is_thinking ? MESSAGE_REASONING : MESSAGE_CONTENT, &c, 1);
}

/* What was held is text; the first byte at once, the others may begin something. */
static void push_byte(struct message *m, const struct message_format *format, struct message_output *out, char c);

static void release(struct message *m, const struct message_format *format, struct message_output *out)
{
    char held[MESSAGE_HEAD_MAX];
    uint32_t size = m->held_size;
    memcpy(held, m->held, size);
    m->held_size = 0;
    m->state = STATE_TEXT;
    put_text(m, out, held[0]);
    for (uint32_t i = 1; i < size; i++)
        push_byte(m, format, out, held[i]);
}

/* ---- calls ---- */

enum match { MATCH_NONE, MATCH_BEGINNING, MATCH_WHOLE };

struct cursor {
    const char *at, *end;
};

static void skip_blanks(struct cursor *cursor)
{
    while (cursor->at < cursor->end && strchr(" \t\r\n", *cursor->at) != NULL && *cursor->at != '\0')
        cursor->at++;
}

/* The word at the cursor, behind blanks. */
static enum match take(struct cursor *cursor, const char *word)
{
    skip_blanks(cursor);
    for (; *word != '\0'; word++, cursor->at++) {
        if (cursor->at == cursor->end)
            return MATCH_BEGINNING;
        if (*cursor->at != *word)
            return MATCH_NONE;
    }
    return MATCH_WHOLE;
}

/* {"name": "f", "arguments": {   (or "parameters") with blanks anywhere. The name when it is whole. */
static enum match match_head(const char *text, size_t size, const char **name, size_t *name_size)
{
    struct cursor cursor = {text, text + size};
    static const char *const before[] = {"{", "\"name\"", ":", "\""}, *const behind[] = {":", "{"};
    enum match match;
    for (size_t i = 0; i < ARRAY_COUNT(before); i++)
        if ((match = take(&cursor, before[i])) != MATCH_WHOLE)
            return match;
    *name = cursor.at;
    while (cursor.at < cursor.end && *cursor.at != '"' && *cursor.at != '\\' && (uint8_t)*cursor.at >= 0x20)
        cursor.at++;
    *name_size = (size_t)(cursor.at - *name);
    if ((match = take(&cursor, "\"")) != MATCH_WHOLE || (match = take(&cursor, ",")) != MATCH_WHOLE)
        return match;
    struct cursor other = cursor;
    match = take(&cursor, "\"arguments\"");
    if (match == MATCH_NONE) {
        cursor = other;
        match = take(&cursor, "\"parameters\"");
    }
    for (size_t i = 0; i < ARRAY_COUNT(behind) && match == MATCH_WHOLE; i++)
        match = take(&cursor, behind[i]);
    return match;
}

static void begin_arguments(struct message *m, struct message_output *out, const char *name, size_t name_size)
{
    m->newlines = 0;
    m->calls++;
    put(m, out, MESSAGE_CALL, name, name_size);
    put(m, out, MESSAGE_ARGUMENTS, "{", 1);
    m->state = STATE_ARGUMENTS;
    m->held_size = 0;
    m->depth = 1;
    m->is_quoted = m->is_escaped = false;
}

static void push_head(struct message *m, const struct message_format *format, struct message_output *out, char c)
{
    const char *name = NULL;
    size_t name_size = 0;
    uint32_t tag = format->calls == MESSAGE_CALLS_TAGGED ? (uint32_t)sizeof(call_begin) - 1 : 0; /* held with it */
    m->held[m->held_size++] = c;
    enum match match = match_head(m->held + tag, m->held_size - tag, &name, &name_size);
    if (match == MATCH_WHOLE)
        begin_arguments(m, out, name, name_size);
    else if (match == MATCH_NONE || m->held_size == MESSAGE_HEAD_MAX)
        release(m, format, out);
}

static void push_arguments(struct message *m, struct message_output *out, char c)
{
    put(m, out, MESSAGE_ARGUMENTS, &c, 1);
    if (m->is_escaped) {
        m->is_escaped = false;
    } else if (m->is_quoted) {
        m->is_escaped = c == '\\';
        m->is_quoted = c != '"';
    } else {
        m->is_quoted = c == '"';
        m->depth += c == '{' || c == '[';
        m->depth -= c == '}' || c == ']';
    }
    if (m->depth == 0)
        m->state = STATE_TAIL;
}

static void end_call(struct message *m)
{
    m->state = STATE_TEXT;
    m->held_size = 0;
    m->is_fresh = true;
    m->is_begun = false;
}

/* Up to the end tag nothing counts; without tags the closing bracket ends the call. */
static void push_tail(struct message *m, const struct message_format *format, char c)
{
    if (format->calls == MESSAGE_CALLS_JSON) {
        if (c == '}')
            end_call(m);
        return;
    }
    m->held_size = c == call_end[m->held_size] ? m->held_size + 1 : c == call_end[0];
    if (m->held_size == sizeof(call_end) - 1)
        end_call(m);
}

/* ---- text ---- */

/* The markers that mean something here. */
static enum match match_marker(const struct message *m, const struct message_format *format, const char **marker)
{
    const char *candidates[3];
    size_t count = 0;
    if (format->has_reasoning && !m->is_begun && m->calls == 0 && !m->has_content)
        candidates[count++] = think_begin;
    if (m->is_thinking)
        candidates[count++] = think_end;
    else if (format->calls == MESSAGE_CALLS_TAGGED)
        candidates[count++] = call_begin;
    for (size_t i = 0; i < count; i++)
        if (strncmp(candidates[i], m->held, m->held_size) == 0) {
            *marker = candidates[i];
            return strlen(candidates[i]) == m->held_size ? MATCH_WHOLE : MATCH_BEGINNING;
        }
    return MATCH_NONE;
}

static void push_text(struct message *m, const struct message_format *format, struct message_output *out, char c)
{
    const char *marker = NULL;
    bool may_call = format->calls == MESSAGE_CALLS_JSON && !m->is_thinking && !m->is_begun;
    if (may_call && m->held_size == 0 && m->calls > 0 && (c == ';' || c == ',' || c == ' '))
        return; /* between two calls */
    m->held[m->held_size++] = c;
    if (may_call && c == '{' && m->held_size == 1) {
        m->state = STATE_HEAD;
        return;
    }
    enum match match = match_marker(m, format, &marker);
    if (match == MATCH_BEGINNING)
        return;
    if (match == MATCH_NONE) {
        release(m, format, out);
    } else if (marker == call_begin) {
        m->state = STATE_HEAD; /* the tag stays held: it may be text after all */
    } else {
        m->held_size = 0;
        m->newlines = 0;
        m->is_fresh = true;
        m->is_begun = false;
        m->is_thinking = marker == think_begin;
    }
}

static void push_byte(struct message *m, const struct message_format *format, struct message_output *out, char c)
{
    switch (m->state) {
    case STATE_TEXT:
        push_text(m, format, out, c);
        break;
    case STATE_HEAD:
        push_head(m, format, out, c);
        break;
    case STATE_ARGUMENTS:
        push_arguments(m, out, c);
        break;
    default:
        push_tail(m, format, c);
    }
}

void message_push(struct message *m, const struct message_format *format, const char *text, size_t size,
                  struct message_output *out)
{
    if (format->calls == MESSAGE_NO_CALLS && !format->has_reasoning) {
        m->has_content = m->has_content || size > 0;
        if (size > 0)
            put(m, out, MESSAGE_CONTENT, text, size);
        return;
    }
    for (size_t i = 0; i < size; i++)
        push_byte(m, format, out, text[i]);
}

void message_end(struct message *m, const struct message_format *format, struct message_output *out)
{
    if (m->state <= STATE_HEAD)
        while (m->held_size > 0)
            release(m, format, out); /* each takes at least one byte away */
    m->has_content = m->has_content || (m->newlines > 0 && !m->is_thinking && m->calls == 0);
    if (m->is_thinking || m->calls == 0)
        put_newlines(m, out);
    m->newlines = 0;
}
