/* api.h - request bodies of OpenAI's API to what the journal holds, and errors in OpenAI's shape.
 *
 * Used by: front.   Owns: scratch memory taken in api_open().   Never blocks; values of jansson live in json_arena.h.
 *
 * Everything is checked before anything is changed: a body either gives a complete struct api_request or one error that
 * names the field and what is allowed. A field given as null is as good as absent. Fields that nobody knows are ignored
 * and counted; fields that OpenAI or vLLM know and this build cannot honour are refused unless they ask for nothing.
 */
#ifndef EVENFLOW_API_H
#define EVENFLOW_API_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/answer.h"
#include "engine/chat.h"
#include "engine/grammar.h"
#include "engine/json_writer.h"
#include "engine/tok.h"
#include "ipc/plan.h"

#define API_ERROR_JSON_MAX 4096u /* of api_write_error() */

struct api_error {
    int status;       /* HTTP */
    const char *type; /* "invalid_request_error", ...; static text */
    const char *code; /* or NULL; static text */
    char param[64];   /* "": null */
    char message[400];
};

/* What a client asked for, with one of its prompts, whose ids lie in the scratch memory of struct api until the next one is
 * asked for. */
struct api_request {
    struct answer_format format;
    const uint32_t *prompt;
    uint32_t prompt_tokens;
    uint32_t prompt_index; /* of */
    uint32_t prompt_count;
    uint64_t prompt_pages; /* of this one and those before */
    uint32_t max_tokens;   /* 0: an echoed prompt is scored, and that is all */
    uint32_t min_tokens;
    uint32_t choices;
    uint32_t flags; /* enum request_flag */
    float temperature;
    float top_p;
    float min_p;
    uint32_t top_k;
    float presence_penalty;
    float frequency_penalty;
    float repetition_penalty;
    uint32_t bias_count;
    const uint32_t *biases; /* (bias_count) pairs of a token and the bits of a float; in the scratch of struct api */
    uint32_t top_logprobs;
    uint32_t grammar_words;
    const uint32_t *grammar; /* (grammar_words): an automaton; likewise */
    int32_t priority;
    bool has_seed;
    uint64_t seed;
    uint32_t stop_token_count;
    uint32_t stop_tokens[STOP_TOKENS_MAX];
    uint64_t created_s;
    uint32_t unknown_fields;
};

struct api {
    const struct plan *plan;
    const struct tok *tok;
    uint32_t tokens_max; /* of prompt and answer together: the model's limit or the KV cache's */
    uint32_t *tokens;    /* (tokens_max + 2): one more shows that there were too many, another may not be wanted */
    uint32_t *biases;    /* (2 * LOGIT_BIAS_MAX) */
    char *text;          /* (text_bytes): a conversation as the template has it */
    size_t text_bytes;
    struct grammar grammar;    /* of the request at hand */
    struct chat_template chat; /* of the model, if it has one */
    struct json_t *root;       /* the body, until the next parse */
    uint64_t now_s;            /* wall clock, set by the caller before each api_parse(): what requests are dated with */
};

/* The longest text that the tokenizer is given: what tok_attach() must be told. */
size_t api_text_bytes(const struct plan *plan);

enum api_endpoint { API_COMPLETIONS, API_CHAT_COMPLETIONS };

/* Takes its memory; before base_seal(). Opens the arena of jansson. 0, or -errno with err: the chat template is none. */
int api_open(struct api *api, const struct plan *plan, const struct tok *tok, struct err *err);

/* 0, with the first prompt; or -1 with error. */
int api_parse(struct api *api, enum api_endpoint endpoint, const char *body, size_t size, struct api_request *request,
              struct api_error *error);

/* The same request with its next prompt; there is one more. 0; or -1 with error. */
int api_next_prompt(struct api *api, struct api_request *request, struct api_error *error);

/* POST /tokenize {"prompt": text, "add_special_tokens": bool, "parse_special": bool} and /detokenize {"tokens": [ids]}: the
 * answer's body into writer, whose room limits it. Without "add_special_tokens": false the ids are a completion's, with the
 * begin token where the model wants one. 0; or -1 with error. */
int api_tokenize(struct api *api, const char *body, size_t size, struct json_writer *writer, struct api_error *error);
int api_detokenize(struct api *api, const char *body, size_t size, struct json_writer *writer, struct api_error *error);

/* Fills error and returns -1. type is "invalid_request_error" for a status of 4xx. param may be "". */
int api_fail(struct api_error *error, int status, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* {"error":{"message":...,"type":...,"param":...,"code":...}} */
void api_write_error(struct json_writer *writer, const struct api_error *error);

#endif
