/* tok.h - text to token ids and back: byte-level BPE over tables that were built once, at launch.
 *
 * Used by: the launcher (tok_build), front and tools (the rest).
 * Owns: tok_attach() takes scratch memory; the tables are the caller's, read-only, position-independent.   Never blocks.
 *
 * Encoding: text is cut at special tokens (only inside ranges the caller trusts), the rest by the vocabulary's
 * pre-tokenizer, each piece becomes bytes, and pairs of bytes merge in the order of the vocabulary's merges (Sennrich et
 * al. 2016, on bytes as GPT-2 does). Bytes that are not valid UTF-8 are kept as they are and belong to no class of
 * characters; bytes that the vocabulary has no token for are left out. Time is n log n in the longest piece.
 */
#ifndef EVENFLOW_TOK_H
#define EVENFLOW_TOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"

#define TOK_PIECE_MAX      256u /* bytes of one token */
#define TOK_END_TOKENS_MAX 16u
#define TOK_NONE           UINT32_MAX

/* GGUF's token types. */
enum tok_type { TOK_NORMAL = 1, TOK_UNKNOWN = 2, TOK_CONTROL = 3, TOK_USER_DEFINED = 4, TOK_UNUSED = 5, TOK_BYTE = 6 };

struct tok_text {
    const char *data;
    size_t size;
};

/* What tok_build() compiles: plain arrays, in the encoding of GGUF files (bytes as GPT-2's printable characters). */
struct tok_source {
    uint32_t token_count;
    const struct tok_text *tokens; /* (token_count) */
    const uint8_t *types;          /* (token_count), enum tok_type */
    uint32_t merge_count;
    const struct tok_text *merges; /* (merge_count), "left right", in order of rank */
    struct tok_text pre;           /* name of the pre-tokenizer: smollm, gpt-2 */
    uint32_t bos, eos;             /* TOK_NONE: none */
    uint32_t end_count;            /* further tokens that end an answer */
    uint32_t ends[TOK_END_TOKENS_MAX];
    bool adds_bos;
    struct tok_text chat_template; /* size 0: none */
};

/* Compiles the tables into memory from malloc(); the caller frees it. 0, or -EINVAL / -ENOTSUP with err. */
int tok_build(const struct tok_source *source, void **blob, size_t *blob_bytes, struct err *err);

struct tok_blob; /* the tables; see tok.c */

struct tok {
    const struct tok_blob *blob;
    size_t text_bytes_max;
    struct tok_symbol *symbols; /* (text_bytes_max + 1), scratch for one piece */
    uint64_t *heap;             /* (2 * text_bytes_max + 1) */
};

/* Checks the tables and takes scratch for texts of up to text_bytes_max bytes: 28 bytes for each of them. 0, or -EPROTO
 * with err. */
int tok_attach(struct tok *tok, const void *blob, size_t blob_bytes, size_t text_bytes_max, struct err *err);
void tok_detach(struct tok *tok);

/* A part of a text in which special tokens are meant as such. */
struct tok_range {
    size_t first, size;
};

/* Encodes a text of at most text_bytes_max bytes. Special tokens are recognised where they lie wholly inside one of the
 * ranges (in order, not overlapping); elsewhere their characters are text like any other. The vocabulary's begin token
 * comes first where the vocabulary says so. Returns the number of ids written: at most ids_max, where it stops. */
uint32_t tok_encode(const struct tok *tok, const char *text, size_t size, const struct tok_range *trusted,
                    uint32_t trusted_count, uint32_t *ids, uint32_t ids_max);

/* Bytes of the tables. */
size_t tok_blob_bytes(const struct tok *tok);

uint32_t tok_vocab_size(const struct tok *tok);

/* The bytes of a token (at most TOK_PIECE_MAX); a special token's are its name. */
size_t tok_piece(const struct tok *tok, uint32_t id, uint8_t *bytes);

/* Control tokens have no text in an answer. */
bool tok_is_control(const struct tok *tok, uint32_t id);

/* Tokens that end an answer. Returns how many. */
uint32_t tok_end_tokens(const struct tok *tok, uint32_t ids[TOK_END_TOKENS_MAX]);

/* The tokens that the vocabulary names for the begin and the end of a text; TOK_NONE: none. */
uint32_t tok_begin_token(const struct tok *tok);
uint32_t tok_end_token(const struct tok *tok);

/* The chat template's text; size 0: the vocabulary has none. */
struct tok_text tok_chat_template(const struct tok *tok);

/* Ids to valid UTF-8, a token at a time: bytes of a character that is not complete are held back; bytes that can belong
 * to none become U+FFFD, as in unicode_repair(). A pure function of the ids so far. Zero it to begin. */
struct tok_decoder {
    uint8_t held[4];
    uint32_t held_size;
};

/* Text that the token completes, into text (room for 3 * (TOK_PIECE_MAX + 4)); control tokens give none. Its size. */
size_t tok_decoder_push(struct tok_decoder *decoder, const struct tok *tok, uint32_t id, char *text);
/* What was held back, as U+FFFD. */
size_t tok_decoder_end(struct tok_decoder *decoder, char *text);

#endif
