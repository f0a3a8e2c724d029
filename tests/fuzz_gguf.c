/* fuzz_gguf.c - a model file as anybody may hand it over: an error with a text, or a description and tables that work. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/tok.h"
#include "stages/gguf.h"
#include "stages/model.h"
#include "tests/fuzz.h"
#include "tools/vocab.h"

/* Of what a small file can hold; a description that asks for more than its file has was not checked against it. */
#define WEIGHTS_MAX (64u << 20)

static void describe(const struct gguf *gguf)
{
    static struct model_desc desc;
    struct model_slice slice;
    struct err err = {.text = ""};
    if (model_describe(&desc, gguf, &err) != 0) {
        check(err.text[0] != '\0');
        return;
    }
    size_t bytes = model_slice_bytes(&desc, 0, desc.layers);
    check(bytes <= WEIGHTS_MAX);
    void *memory = base_alloc(bytes);
    check(model_load(&slice, &desc, 0, desc.layers, memory, gguf, &err) == 0);
    model_unbind(&slice);
    free(memory);
}

static void use_vocabulary(const struct gguf *gguf)
{
    static const char text[] = " ab  ab\n<end>c \xff\xc4\xa0 123 's";
    const struct tok_range all = {0, sizeof(text) - 1};
    struct tok tok;
    struct err err = {.text = ""};
    void *blob;
    size_t bytes;
    uint32_t ids[128];
    if (vocab_from_gguf(gguf, NULL, &blob, &bytes, &err) != 0) {
        check(err.text[0] != '\0');
        return;
    }
    check(tok_attach(&tok, blob, bytes, sizeof(text), &err) == 0);
    for (uint32_t trusted = 0; trusted < 2; trusted++) {
        struct tok_decoder decoder = {0};
        char out[3 * (TOK_PIECE_MAX + 4)];
        uint32_t count = tok_encode(&tok, text, sizeof(text) - 1, &all, trusted, ids, 128);
        for (uint32_t i = 0; i < count; i++) {
            check(ids[i] < tok_vocab_size(&tok));
            tok_decoder_push(&decoder, &tok, ids[i], out);
        }
    }
    tok_detach(&tok);
    free(blob);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *gguf;
    struct err err = {.text = ""};
    int fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    int ret = gguf_open_fd(&gguf, fd, "fuzz.gguf", &err);
    close(fd);
    if (ret != 0) {
        check(err.text[0] != '\0');
        return 0;
    }
    describe(gguf);
    use_vocabulary(gguf);
    gguf_close(gguf);
    return 0;
}
