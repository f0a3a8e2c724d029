/* chat.h - a conversation, as clients send it, to the prompt that the model was trained on.
 *
 * Used by: front, the launcher (to check a template), evenflow render.   Owns: the compiled template, scratch for a rendering.
 * Never blocks. Nothing is allocated once the template is open; jansson's values are the caller's.
 *
 * The template is the model's own (tokenizer.chat_template), or the one that --chat-template names. It is given what
 * transformers gives: messages, tools, documents (or none), add_generation_prompt, bos_token, eos_token, and the fields of
 * chat_template_kwargs. What clients write can never become a control token: only bytes that the template itself holds lie
 * in trusted ranges (tok.h). Of a message, a role of OpenAI's is our own word; everything else is the client's.
 */
#ifndef EVENFLOW_CHAT_H
#define EVENFLOW_CHAT_H

#include <jansson.h>

#include "engine/jinja.h"
#include "engine/message.h"
#include "engine/tok.h"

#define CHAT_MESSAGES_MAX 4096u
#define CHAT_RANGES_MAX   65536u

struct chat_template {
    struct jinja_program *program; /* NULL: the model has none */
    bool takes_tools;
    bool tags_calls;            /* it writes calls between <tool_call> and </tool_call> */
    bool thinks;                /* it knows reasoning between <think> and </think> */
    struct tok_text begin, end; /* bos_token and eos_token */
    struct jinja_arena arena;   /* scratch of one rendering */
    struct tok_range *ranges;   /* (CHAT_RANGES_MAX) */
};

/* Compiles the template that the vocabulary holds, with scratch for conversations of up to body_bytes of JSON. 0, also
 * when it holds none; -ENOTSUP or -EINVAL with err, which names the line. */
int chat_template_open(struct chat_template *chat, const struct tok *tok, size_t body_bytes, struct err *err);
void chat_template_close(struct chat_template *chat);

/* Why there is no prompt: whose fault it is decides the status. */
struct chat_error {
    bool is_too_large; /* the conversation is longer than the room for it */
    char param[64];    /* the field at fault */
    char message[400];
};

struct chat_prompt {
    size_t size;                    /* of the text */
    const struct tok_range *ranges; /* trusted ones; of the template, until the next rendering */
    uint32_t range_count;
    struct message_format message; /* how the answer is to be read */
};

/* The prompt of a request's body: its messages, tools, tool_choice, documents, add_generation_prompt and
 * chat_template_kwargs. now_s is the time that the template may ask for. False with error when a field is not as it should
 * be, when the template refuses the conversation, or when it runs into a limit. */
bool chat_render(const struct chat_template *chat, json_t *body, uint64_t now_s, char *text, size_t text_max,
                 struct chat_prompt *prompt, struct chat_error *error);

/* A value of JSON for a template; strings stay where they are. Type JINJA_ABSENT: the arena is full, or nested deeper than
 * templates may look. */
struct jinja_value chat_value(struct jinja_arena *arena, json_t *json);

#endif
