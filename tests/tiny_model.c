#include "tests/tiny_model.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct tensor {
    char name[64];
    uint64_t ne[2];
    uint32_t dims;
    uint32_t type;
};

struct builder {
    const struct tiny_model *tiny;
    uint8_t *data;
    size_t size, room;
    uint64_t keys;
    struct tensor tensors[128];
    uint32_t tensor_count;
    uint64_t random;
};

struct tiny_model tiny_model(void)
{
    return (struct tiny_model){
        .architecture = "llama",
        .layers = 3,
        .width = 64,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 16,
        .feed_forward = 96,
        .vocab_size = 160,
        .context_length = 512,
        .rope_count = 16,
        .rope_base = 10000,
        .tied = true,
        .types = {GGUF_TYPE_Q4_1, GGUF_TYPE_Q4_1, GGUF_TYPE_Q4_1, GGUF_TYPE_Q4_1, GGUF_TYPE_Q4_1, GGUF_TYPE_Q4_1,
                  GGUF_TYPE_Q4_1, GGUF_TYPE_Q8_0, GGUF_TYPE_Q8_0},
        .seed = 1,
    };
}

static void put(struct builder *b, const void *bytes, size_t size)
{
    if (b->size + size > b->room) {
        b->room = 2 * (b->room + size);
        b->data = realloc(b->data, b->room);
        cr_assert_not_null(b->data);
    }
    memcpy(b->data + b->size, bytes, size);
    b->size += size;
}

static void put_u32(struct builder *b, uint32_t value)
{
    put(b, &value, sizeof(value));
}

static void put_u64(struct builder *b, uint64_t value)
{
    put(b, &value, sizeof(value));
}

static void put_string(struct builder *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static bool begin_key(struct builder *b, const char *key, uint32_t type)
{
    if (b->tiny->missing_key != NULL && strcmp(key, b->tiny->missing_key) == 0)
        return false;
    put_string(b, key);
    put_u32(b, type);
    b->keys++;
    return true;
}

static void key_u32(struct builder *b, const char *key, uint32_t value)
{
    if (begin_key(b, key, 4))
        put_u32(b, value);
}

static void key_f32(struct builder *b, const char *key, float value)
{
    if (begin_key(b, key, 6))
        put(b, &value, sizeof(value));
}

static void key_string(struct builder *b, const char *key, const char *value)
{
    if (begin_key(b, key, 8))
        put_string(b, value);
}

static void add_tensor(struct builder *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type)
{
    const struct tiny_model *tiny = b->tiny;
    if (tiny->missing_tensor != NULL && strcmp(name, tiny->missing_tensor) == 0)
        return;
    cr_assert(b->tensor_count < sizeof(b->tensors) / sizeof(b->tensors[0]));
    struct tensor *tensor = &b->tensors[b->tensor_count++];
    bool is_longer = tiny->longer_tensor != NULL && strcmp(name, tiny->longer_tensor) == 0;
    *tensor = (struct tensor){.ne = {columns, rows + is_longer}, .dims = rows > 1 ? 2 : 1, .type = type};
    if (is_longer && rows == 1)
        *tensor = (struct tensor){.ne = {columns + 1, 1}, .dims = 1, .type = type};
    snprintf(tensor->name, sizeof(tensor->name), "%s", name);
}

static uint32_t next_random(struct builder *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(b->random >> 33);
}

static float next_float(struct builder *b, float scale) /* about -scale..scale */
{
    return ((float)(next_random(b) & 0xffff) / 32768.0f - 1) * scale;
}

static void put_half(struct builder *b, float value)
{
    uint16_t bits = f32_to_f16(value);
    put(b, &bits, sizeof(bits));
}

static uint64_t block_bytes(uint32_t type)
{
    switch (type) {
    case GGUF_TYPE_F32:
        return 4;
    case GGUF_TYPE_F16:
        return 2;
    case GGUF_TYPE_Q4_1:
        return 20;
    case GGUF_TYPE_Q8_0:
        return 34;
    case GGUF_TYPE_Q4_0:
        return 18;
    default: /* Q5_0, which is refused */
        return 22;
    }
}

static void put_block(struct builder *b, uint32_t type, bool is_gain)
{
    switch (type) {
    case GGUF_TYPE_F32: {
        float value = is_gain ? 1 + next_float(b, 0.5f) : next_float(b, 0.2f);
        put(b, &value, sizeof(value));
        return;
    }
    case GGUF_TYPE_F16:
        put_half(b, next_float(b, 0.2f));
        return;
    default:
        break;
    }
    put_half(b, type == GGUF_TYPE_Q8_0 ? 0.0015f : 0.02f + next_float(b, 0.01f));
    if (type == GGUF_TYPE_Q4_1)
        put_half(b, -0.15f + next_float(b, 0.05f));
    uint64_t head = type == GGUF_TYPE_Q4_1 ? 4 : 2;
    for (uint64_t i = head; i < block_bytes(type); i++) {
        uint8_t byte = (uint8_t)next_random(b);
        put(b, &byte, 1);
    }
}

static uint64_t tensor_blocks(const struct tensor *tensor)
{
    uint64_t elements = tensor->ne[0] * tensor->ne[1];
    return tensor->type == GGUF_TYPE_F32 || tensor->type == GGUF_TYPE_F16 ? elements : elements / 32;
}

static uint64_t align32(uint64_t value)
{
    return (value + 31) / 32 * 32;
}

static void add_tensors(struct builder *b)
{
    static const char *const names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    const struct tiny_model *t = b->tiny;
    uint32_t q = t->heads * t->head_dim, kv = t->kv_heads * t->head_dim;
    const uint32_t columns[] = {t->width, t->width, t->width, q, t->width, t->width, t->feed_forward};
    const uint32_t rows[] = {q, kv, kv, t->width, t->feed_forward, t->feed_forward, t->width};
    char name[64];
    add_tensor(b, "token_embd.weight", t->width, t->vocab_size, t->types[7]);
    add_tensor(b, "output_norm.weight", t->width, 1, GGUF_TYPE_F32);
    if (!t->tied)
        add_tensor(b, "output.weight", t->width, t->vocab_size, t->types[8]);
    if (t->has_rope_factors)
        add_tensor(b, "rope_freqs.weight", t->head_dim / 2, 1, GGUF_TYPE_F32);
    for (uint32_t layer = 0; layer < t->layers; layer++) {
        snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", layer);
        add_tensor(b, name, t->width, 1, GGUF_TYPE_F32);
        snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", layer);
        add_tensor(b, name, t->width, 1, GGUF_TYPE_F32);
        for (int i = 0; i < 7; i++) {
            snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, names[i]);
            add_tensor(b, name, columns[i], rows[i], t->types[i]);
        }
    }
    if (t->extra_tensor != NULL)
        add_tensor(b, t->extra_tensor, 16, 1, GGUF_TYPE_F32);
}

static void put_keys(struct builder *b)
{
    const struct tiny_model *t = b->tiny;
    key_string(b, "general.architecture", t->architecture);
    key_u32(b, "llama.block_count", t->layers);
    key_u32(b, "llama.context_length", t->context_length);
    key_u32(b, "llama.embedding_length", t->width);
    key_u32(b, "llama.feed_forward_length", t->feed_forward);
    key_u32(b, "llama.attention.head_count", t->heads);
    key_u32(b, "llama.attention.head_count_kv", t->kv_heads);
    key_u32(b, "llama.attention.key_length", t->head_dim);
    key_u32(b, "llama.attention.value_length", t->head_dim);
    key_u32(b, "llama.rope.dimension_count", t->rope_count);
    key_f32(b, "llama.rope.freq_base", (float)t->rope_base);
    key_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (t->scaling_type != NULL) {
        key_string(b, "llama.rope.scaling.type", t->scaling_type);
        key_f32(b, "llama.rope.scaling.factor", 4);
    }
    if (t->expert_count > 0)
        key_u32(b, "llama.expert_count", t->expert_count);
}

int tiny_model_fd(const struct tiny_model *tiny)
{
    struct builder *b = calloc(1, sizeof(*b));
    cr_assert_not_null(b);
    b->tiny = tiny;
    b->random = tiny->seed;
    add_tensors(b);
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, b->tensor_count);
    size_t count_at = b->size;
    put_u64(b, 0);
    put_keys(b);
    memcpy(b->data + count_at, &b->keys, sizeof(b->keys));
    uint64_t offset = 0;
    for (uint32_t i = 0; i < b->tensor_count; i++) {
        const struct tensor *tensor = &b->tensors[i];
        put_string(b, tensor->name);
        put_u32(b, tensor->dims);
        for (uint32_t j = 0; j < tensor->dims; j++)
            put_u64(b, tensor->ne[j]);
        put_u32(b, tensor->type);
        put_u64(b, offset);
        offset = align32(offset + tensor_blocks(tensor) * block_bytes(tensor->type));
    }
    static const uint8_t zeros[32];
    put(b, zeros, align32(b->size) - b->size);
    for (uint32_t i = 0; i < b->tensor_count; i++) {
        const struct tensor *tensor = &b->tensors[i];
        bool is_gain = strstr(tensor->name, "norm") != NULL || strstr(tensor->name, "rope") != NULL;
        for (uint64_t j = 0; j < tensor_blocks(tensor); j++)
            put_block(b, tensor->type, is_gain);
        if (tiny->flipped_tensor != NULL && strcmp(tensor->name, tiny->flipped_tensor) == 0)
            b->data[b->size - 1] ^= 1;
        put(b, zeros, align32(b->size) - b->size);
    }
    int fd = memfd_create("tiny.gguf", MFD_CLOEXEC);
    cr_assert(fd >= 0);
    cr_assert_eq(write(fd, b->data, b->size), (ssize_t)b->size);
    free(b->data);
    free(b);
    return fd;
}

struct gguf *tiny_model_open(const struct tiny_model *tiny)
{
    struct err err = {0};
    struct gguf *gguf = NULL;
    int fd = tiny_model_fd(tiny);
    cr_assert_eq(gguf_open_fd(&gguf, fd, "tiny.gguf", &err), 0, "%s", err.text);
    close(fd);
    return gguf;
}
