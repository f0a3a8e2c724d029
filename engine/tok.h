/* tok.h - text to token ids and back: byte-level BPE and SentencePiece's, over tables that were built once, at launch.
 *
 * Used by: the launcher (tok_build), front and tools (the rest).
 * Owns: tok_attach() takes scratch memory; the tables are the caller's, read-only, position-independent.   Never blocks.
 *
 * Encoding: text is cut at special tokens (control tokens only inside ranges the caller trusts), the rest goes one of two
 * ways. BPE: it is cut by the vocabulary's pre-tokenizer (pretok.h), each piece becomes bytes, and pairs of bytes merge in
 * the order of the vocabulary's merges (Sennrich et al. 2016, on bytes as GPT-2 does). SPM: tok_spm.c. Bytes that are not
 * valid UTF-8 are kept as they are and belong to no class of characters; bytes that the vocabulary has no token for are
 * left out. Time is n log n in the longest piece.
 */
#ifndef EVENFLOW_TOK_H
#define EVENFLOW_TOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/pieces.h"

#define TOK_PIECE_MAX      PIECE_SIZE_MAX
#define TOK_END_TOKENS_MAX 16u
#define TOK_NONE           UINT32_MAX

struct tok_text {
    const char *data;
    size_t size;
};

enum tok_kind { TOK_BPE, TOK_SPM };

/* Whether a text begins with the begin token; where the file does not say, the kind of vocabulary does. */
enum tok_bos_rule { TOK_BOS_UNSAID, TOK_BOS_FIRST, TOK_BOS_NEVER };

/* What tok_build() compiles: plain arrays, in the encoding of GGUF files (BPE: bytes as GPT-2's printable characters; SPM:
 * spaces as U+2581, bytes by name). */
struct tok_source {
    enum tok_kind kind;
    uint32_t token_count;
    const struct tok_text *tokens; /* (token_count) */
    const uint8_t *types;          /* (token_count), enum piece_type */
    const float *scores;           /* SPM: (token_count) */
    uint32_t merge_count;          /* BPE */
    const struct tok_text *merges; /* (merge_count), "left right", in order of rank */
    struct tok_text pre;           /* BPE: name of the pre-tokenizer, see pretok.c */
    uint32_t bos, eos;             /* TOK_NONE: none */
    uint32_t end_count;            /* further tokens that end an answer */
    uint32_t ends[TOK_END_TOKENS_MAX];
    enum tok_bos_rule bos_rule;
    bool adds_space;               /* SPM: a text begins with a space */
    struct tok_text chat_template; /* size 0: none */
};

/* Compiles the tables into memory from malloc(); the caller frees it. 0, or -EINVAL / -ENOTSUP with err. */
int tok_build(const struct tok_source *source, void **blob, size_t *blob_bytes, struct err *err);

struct tok_blob; /* the tables; see tok_tables.h */

struct tok_symbol {
    uint32_t id;
    uint32_t previous, next; /* index; TOK_NONE at the ends */
};

struct tok {
    const struct tok_blob *blob;
    size_t text_bytes_max;
    struct tok_symbol *symbols; /* (text_bytes_max + 2), scratch for one piece */
    uint64_t *heap;             /* (2 * text_bytes_max + 3) */
    uint8_t *copy;              /* (text_bytes_max + 1): SPM */
};

/* Checks the tables and takes scratch for texts of up to text_bytes_max bytes: 29 bytes for each of them. 0, or -EPROTO
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

/* Some token is this byte and no more. */
bool tok_has_byte(const struct tok *tok, uint8_t byte);

/* The bytes of a token (at most TOK_PIECE_MAX); a special token's are its name. */
size_t tok_piece(const struct tok *tok, uint32_t id, uint8_t *bytes);

/* Control tokens, and the unknown one, have no text in an answer. */
bool tok_is_control(const struct tok *tok, uint32_t id);

/* Tokens that end an answer. Returns how many. */
uint32_t tok_end_tokens(const struct tok *tok, uint32_t ids[TOK_END_TOKENS_MAX]);

/* The tokens that the vocabulary names for the begin and the end of a text; TOK_NONE: none. */
uint32_t tok_begin_token(const struct tok *tok);
uint32_t tok_end_token(const struct tok *tok);

/* tok_encode() puts the begin token in front of every text. */
bool tok_adds_begin(const struct tok *tok);

/* The chat template's text; size 0: the vocabulary has none. */
struct tok_text tok_chat_template(const struct tok *tok);

/* Ids to valid UTF-8, a token at a time: bytes of a character that is not complete are held back; bytes that can belong
 * to none become U+FFFD, as in unicode_repair(). A pure function of the ids so far. Zero it to begin. */
struct tok_decoder {
    uint8_t held[4];
    uint32_t held_size;
    bool is_text_start; /* set for a whole text: the space that its encoding put in front is taken off */
};

/* Text that the token completes, into text (room for 3 * (TOK_PIECE_MAX + 4)); control tokens give none. Its size. */
size_t tok_decoder_push(struct tok_decoder *decoder, const struct tok *tok, uint32_t id, char *text);
/* What was held back, as U+FFFD. */
size_t tok_decoder_end(struct tok_decoder *decoder, char *text);

#endif
