/* answer.h - the bytes of an answer, head and body, as a pure function of the journal and the token log.
 *
 * Used by: front.   Owns: nothing; struct answer is the caller's and can be made anew at any time.   Never blocks.
 *
 * The same request, format and log give the same bytes, however the tokens arrived, whoever renders them and however
 * large the pieces are. So an answer can be rendered again from its start and gone on with at any byte. To that end
 *   - a stream has one event per token, choices taking turns: token 0 of every choice, then token 1, ...; when a choice
 *     has ended its turn is one more event with the finish reason and what text was held back;
 *   - an answer that is no stream begins when its last token is there, and is written piece by piece;
 *   - an echoed prompt comes before the answer's own text. One that is scored has an element in every list and an event for
 *     each of its tokens, the first of them without a log entry: nothing predicts it. Any other is text alone, in events
 *     of a few thousand bytes.
 * Stop strings are found here: text that might be the beginning of one is held back until it is known. What passes them is
 * told apart into content, reasoning and tool calls (message.h) by the same rule.
 */
#ifndef EVENFLOW_ANSWER_H
#define EVENFLOW_ANSWER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/http.h"
#include "engine/message.h"
#include "engine/tok.h"
#include "ipc/arena.h"

#define STOP_STRINGS_MAX  16u
#define STOP_BYTES_MAX    256u   /* of one stop string */
#define STOP_ALL_MAX      1024u  /* of all stop strings of a request together */
#define ANSWER_PIECE_MAX  32768u /* a piece (an event, an element of a list) needs at most so much room */
#define ANSWER_PREFIX_MAX 2048u  /* of an event, up to its choices */
#define TOKEN_TEXT_MAX    (3 * (TOK_PIECE_MAX + 4)) /* what one token can give, see tok_decoder_push() */

enum answer_kind { ANSWER_COMPLETION, ANSWER_CHAT };

/* How the client wants it. Plain data: lies in the connection's shared memory, so that a successor can go on. */
struct answer_format {
    uint32_t kind; /* enum answer_kind */
    uint8_t is_stream;
    uint8_t includes_usage; /* of a stream; others always have it */
    uint8_t returns_token_ids;
    uint8_t returns_logits_hash;
    uint8_t returns_logprobs;
    uint8_t closes;                /* the connection ends with this answer */
    uint8_t is_version_1_0;        /* of HTTP */
    uint8_t echoes;                /* a completion: the prompt comes first */
    struct message_format message; /* of a chat: what is told apart from its content */
    uint32_t stop_count;
    uint32_t stop_size[STOP_STRINGS_MAX];
    char stops[STOP_ALL_MAX]; /* one behind the other; valid UTF-8 */
    char request_id[HTTP_REQUEST_ID_MAX + 1];
    char allow_origin[HTTP_ORIGIN_MAX + 1]; /* "": none */
};

/* What of one choice has been read. */
struct answer_scan {
    uint32_t echoed;            /* tokens of an echoed prompt taken in */
    uint32_t tokens;            /* the answer's own, behind them */
    bool is_stopped;            /* a stop string has ended it: the text is complete, later tokens do not count */
    struct tok_decoder decoder; /* bytes that are no character yet */
    uint32_t characters;        /* that the decoder has given */
    uint32_t offset;            /* of them, before the last token taken in */
    uint32_t held_size;         /* text that may become a stop string */
    char held[STOP_BYTES_MAX];
};

/* A choice of one of the prompts. Lies with its request's slot, not with the answer: there are fewer of them. */
struct answer_choice {
    bool has_ended;           /* streams: its last event is out */
    struct answer_scan scan;  /* streams: what has been rendered; others: what has been looked at */
    struct message message;   /* what of that text has been told apart */
    struct answer_scan ahead; /* streams with stop strings: what has been looked at, however slow the reader */
};

/* Most requests have one choice: those stand together. */
static inline struct answer_choice *answer_choice_at(struct answer_choice *choices, const struct plan *plan,
                                                     uint32_t request_slot, uint32_t choice)
{
    return &choices[(size_t)choice * plan->requests_max + request_slot];
}

/* What every token looks at comes first. */
struct answer {
    const struct arena *arena;
    const struct tok *tok;
    const struct answer_format *format;
    struct answer_choice *choices; /* (CHOICES_MAX, requests_max) */
    uint32_t prompt_count;
    uint32_t choice_count; /* of all prompts: choice c is the (c % n)th of prompt c / n */

    uint64_t length;  /* body of an answer that is no stream; 0: not known yet */
    uint64_t written; /* bytes rendered so far, head included */

    /* where rendering stands */
    uint32_t phase;
    uint32_t choice;
    uint32_t list;
    uint32_t item;
    bool has_role; /* streamed chat: the first event of the choice in turn is out */

    uint32_t slots[PROMPTS_MAX]; /* of the requests, one a prompt */
    uint32_t prefix_size;
    char prefix[ANSWER_PREFIX_MAX];

    struct answer_scan text_scan;
    struct message text_message;
};

enum answer_result {
    ANSWER_WAITS,    /* for tokens */
    ANSWER_HAS_MORE, /* needs room */
    ANSWER_COMPLETE, /* every byte is out */
};

/* Starts at the first byte. request_slot: of the last prompt, see journal_request_chain(). choices: (CHOICES_MAX,
 * requests_max), of all answers together; uses those of its requests. */
void answer_begin(struct answer *answer, const struct arena *arena, const struct tok *tok,
                  const struct answer_format *format, uint32_t request_slot, struct answer_choice *choices);

/* Renders what the log allows and the room holds: no piece is begun with less than ANSWER_PIECE_MAX of room left. */
enum answer_result answer_render(struct answer *answer, char *target, size_t room, size_t *size);

/* Choices (bits) of a prompt that stop strings have ended, as far as their logs were there in the last answer_render():
 * whatever their sequences still give is not looked at. */
uint32_t answer_stopped(const struct answer *answer, uint32_t prompt);

#endif
