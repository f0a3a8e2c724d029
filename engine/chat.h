/* chat.h - a conversation to the prompt that the model was trained on.
 *
 * Used by: front, evenflow render.   Owns: nothing.   Never blocks.
 *
 * The template is the model's own (tokenizer.chat_template). This build knows one family, ChatML as SmolLM2 has it: a turn
 * is "<|im_start|>" role "\n" content "<|im_end|>\n", and a default system turn, whose text is taken from the template,
 * stands in front when the first message is no system message. What clients write can never become a control token: only
 * the template's own words lie in trusted ranges (tok.h).
 */
#ifndef EVENFLOW_CHAT_H
#define EVENFLOW_CHAT_H

#include "engine/tok.h"

#define CHAT_RANGES_PER_MESSAGE 2u

/* Not to be copied: it points into itself. */
struct chat_template {
    bool is_known;
    struct tok_text default_system; /* its turn's content, in storage; size 0 and data NULL: no default turn */
    char storage[1024];
};

struct chat_message {
    struct tok_text role, content;
};

/* 0; -ENOTSUP with err when the template is not of the family: completions work, chat does not. */
int chat_template_parse(struct chat_template *chat, struct tok_text source, struct err *err);

/* The prompt's text and its trusted ranges (room for CHAT_RANGES_PER_MESSAGE * (count + 2)), with the beginning of the
 * assistant's turn at its end. False when it does not fit text_max. */
bool chat_render(const struct chat_template *chat, const struct chat_message *messages, uint32_t count, char *text,
                 size_t text_max, size_t *text_size, struct tok_range *ranges, uint32_t *range_count);

#endif
