/* message.h - an assistant's text, as it comes, to content, reasoning and tool calls.
 *
 * Used by: answer.c.   Owns: nothing.   Never blocks, never allocates.
 *
 * A pure function of the text so far, however it was cut; what might be the beginning of a marker is held back until it is
 * known. Formats, as models were trained with them:
 *   - reasoning stands between <think> and </think> at the beginning; some prompts open it themselves;
 *   - calls of Hermes and Qwen:  <tool_call> {"name": "f", "arguments": {...}} </tool_call>, any number, behind content;
 *   - calls of Llama 3:          {"name": "f", "parameters": {...}} and nothing before it, further ones behind ';' or blanks.
 * Arguments are handed on as they are written. What begins like a call and is none stays content, to the last byte.
 */
#ifndef EVENFLOW_MESSAGE_H
#define EVENFLOW_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum message_calls { MESSAGE_NO_CALLS, MESSAGE_CALLS_TAGGED, MESSAGE_CALLS_JSON };

/* Plain data: part of an answer's format. */
struct message_format {
    uint8_t calls;           /* enum message_calls */
    uint8_t has_reasoning;   /* reasoning is told apart */
    uint8_t begins_thinking; /* the prompt has opened it */
    uint8_t pad;
};

#define MESSAGE_HEAD_MAX 256u /* of a call, up to its arguments */

struct message {
    uint8_t state; /* see message.c */
    bool is_thinking;
    bool is_fresh; /* newlines here belong to a marker */
    bool is_begun; /* a part has begun with something else than white space */
    bool has_content, has_reasoning;
    bool is_quoted, is_escaped; /* inside arguments: of a string */
    uint32_t depth;             /* of brackets in arguments */
    uint32_t calls;             /* that have begun */
    uint32_t newlines;          /* at the end of a part: text, unless a marker follows */
    uint32_t held_size;
    char held[MESSAGE_HEAD_MAX];
};

enum message_part {
    MESSAGE_CONTENT,
    MESSAGE_REASONING,
    MESSAGE_CALL,      /* the name of a function: a call begins */
    MESSAGE_ARGUMENTS, /* of the last call */
};

struct message_piece {
    enum message_part part;
    uint32_t first, size; /* of the output's text */
    uint32_t call;        /* index of the call */
};

#define MESSAGE_NEWLINES_MAX 64u
#define MESSAGE_ADDED_MAX    (MESSAGE_HEAD_MAX + MESSAGE_NEWLINES_MAX) /* text that was held, beyond what comes in */
#define MESSAGE_PIECES_MAX   256u

struct message_output {
    char *text; /* room for what is pushed and MESSAGE_ADDED_MAX */
    uint32_t size;
    uint32_t count;
    struct message_piece pieces[MESSAGE_PIECES_MAX];
};

/* Nothing is in it yet; what its pieces were does not matter. */
static inline void message_output_begin(struct message_output *output, char *text)
{
    output->text = text;
    output->size = output->count = 0;
}

void message_begin(struct message *message, const struct message_format *format);

/* Takes text in (at most 7 bytes for each of MESSAGE_PIECES_MAX): the output is what has become certain. */
void message_push(struct message *message, const struct message_format *format, const char *text, size_t size,
                  struct message_output *output);

/* Nothing follows: what was held is text after all. */
void message_end(struct message *message, const struct message_format *format, struct message_output *output);

/* The token text of a control token counts as text when it is one of the markers. */
bool message_is_marker(const char *name, size_t size);

#endif
