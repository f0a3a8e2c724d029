/* vocab.h - the tokenizer's tables out of a model file.
 *
 * Used by: the launcher, evenflow tokenize, tests.   Owns: the memory it returns, until the caller frees it.
 */
#ifndef EVENFLOW_VOCAB_H
#define EVENFLOW_VOCAB_H

#include <stddef.h>

#include "ipc/base.h"
#include "stages/gguf.h"

/* Builds the tables (tok.h), with the chat template that is in the file template_path instead of the model's unless the path
 * is "" or NULL. 0, or -errno with err. */
int vocab_from_gguf(const struct gguf *gguf, const char *template_path, void **blob, size_t *blob_bytes,
                    struct err *err);

/* That this build can run the tables' chat template, if there is one: said at start, to somebody who can change it. 0, or
 * -errno with err, which names the line. */
int vocab_check_template(const void *blob, size_t blob_bytes, const char *template_path, struct err *err);

/* Tokens that end an answer. Returns how many. */
uint32_t vocab_end_tokens(const void *blob, size_t blob_bytes, uint32_t *ids, uint32_t ids_max);

#endif
