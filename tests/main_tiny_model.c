/* main_tiny_model.c - writes a tiny random model that an engine can serve. usage: tiny-model FILE.gguf */
#include <stdio.h>

#include "tests/tiny_model.h"
#include "tests/tiny_vocab.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: tiny-model FILE.gguf\n");
        return 2;
    }
    struct tiny_model tiny = tiny_model_variant(0);
    tiny.vocab_size = TINY_COUNT;
    tiny.has_tokenizer = true;
    tiny_model_write(&tiny, argv[1]);
    return 0;
}
