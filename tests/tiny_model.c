#include "tests/tiny_model.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "tests/tiny_vocab.h"

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

static void set_types(struct tiny_model *tiny, uint32_t type)
{
    for (int i = 0; i < 9; i++)
        tiny->types[i] = type;
}

struct tiny_model tiny_model_variant(uint32_t variant)
{
    struct tiny_model tiny = tiny_model();
    static const uint32_t mixed[] = {GGUF_TYPE_Q4_0, GGUF_TYPE_F16,  GGUF_TYPE_Q8_0, GGUF_TYPE_F32, GGUF_TYPE_Q8_0,
                                     GGUF_TYPE_Q4_1, GGUF_TYPE_Q8_0, GGUF_TYPE_F16,  GGUF_TYPE_Q4_0};
    static const uint32_t more[] = {GGUF_TYPE_Q5_0, GGUF_TYPE_Q5_1, GGUF_TYPE_IQ4_NL, GGUF_TYPE_BF16, GGUF_TYPE_Q5_0,
                                    GGUF_TYPE_Q5_1, GGUF_TYPE_Q5_0, GGUF_TYPE_BF16,   GGUF_TYPE_Q5_1};
    static const uint32_t k[] = {GGUF_TYPE_Q4_K, GGUF_TYPE_Q4_K, GGUF_TYPE_Q6_K, GGUF_TYPE_Q5_K, GGUF_TYPE_Q4_K,
                                 GGUF_TYPE_Q5_K, GGUF_TYPE_Q6_K, GGUF_TYPE_Q4_K, GGUF_TYPE_Q6_K};
    switch (variant) {
    case 1: /* every type, no two neighbours alike, a head of its own, RoPE factors */
        memcpy(tiny.types, mixed, sizeof(mixed));
        tiny.tied = false;
        tiny.has_rope_factors = true;
        break;
    case 2: /* floats throughout, odd widths; one KV head, wide heads */
        set_types(&tiny, GGUF_TYPE_F32);
        tiny.width = 75;
        tiny.feed_forward = 93;
        tiny.vocab_size = 163;
        tiny.heads = 2;
        tiny.kv_heads = 1;
        tiny.head_dim = tiny.rope_count = 48;
        break;
    case 3: /* types of five bits */
        memcpy(tiny.types, more, sizeof(more));
        tiny.tied = false;
        break;
    case 4: /* K types */
        memcpy(tiny.types, k, sizeof(k));
        tiny.tied = false;
        tiny.width = tiny.feed_forward = 256;
        tiny.head_dim = tiny.rope_count = 64;
        break;
    case 5:
        set_types(&tiny, GGUF_TYPE_F32);
        tiny.architecture = "qwen2";
        tiny.has_biases = true;
        tiny.scaling_type = "yarn";
        break;
    case 6:
        set_types(&tiny, GGUF_TYPE_F32);
        tiny.architecture = "qwen3";
        tiny.head_dim = tiny.rope_count = 32;
        tiny.tied = false;
        break;
    case 7: /* windows that end inside of chunks, blocks and vectors */
    case 8:
        set_types(&tiny, variant == 7 ? GGUF_TYPE_F32 : GGUF_TYPE_Q5_0);
        tiny.architecture = "gemma3";
        tiny.window = variant == 7 ? 13 : 20;
        tiny.window_pattern = 2;
        tiny.rope_base = 1e6;
        break;
    case 9: /* every layer with a window, as Mistral's first */
        set_types(&tiny, GGUF_TYPE_F16);
        tiny.window = 19;
        tiny.tied = false;
        break;
    default:
        break;
    }
    return tiny;
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

bool tiny_model_has_qk_norm(const struct tiny_model *tiny)
{
    return strcmp(tiny->architecture, "qwen3") == 0 || tiny_model_has_post_norms(tiny);
}

bool tiny_model_has_post_norms(const struct tiny_model *tiny)
{
    return strcmp(tiny->architecture, "gemma3") == 0;
}

/* A key that begins with a dot gets the architecture's name in front. */
static bool begin_key(struct builder *b, const char *name, uint32_t type)
{
    char key[128];
    snprintf(key, sizeof(key), "%s%s", name[0] == '.' ? b->tiny->architecture : "", name);
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

static void key_strings(struct builder *b, const char *key, const struct tok_text *texts, uint32_t count)
{
    if (!begin_key(b, key, 9))
        return;
    put_u32(b, 8);
    put_u64(b, count);
    for (uint32_t i = 0; i < count; i++) {
        put_u64(b, texts[i].size);
        put(b, texts[i].data, texts[i].size);
    }
}

/* The first tokens of the tiny vocabulary; merges make the last ones. */
static void put_tokenizer(struct builder *b)
{
    const struct tok_source *vocabulary = tiny_vocab_source();
    uint32_t count = b->tiny->vocab_size;
    cr_assert_leq(count, vocabulary->token_count);
    key_string(b, "tokenizer.ggml.model", "gpt2");
    key_string(b, "tokenizer.ggml.pre", "gpt-2");
    key_strings(b, "tokenizer.ggml.tokens", vocabulary->tokens, count);
    key_strings(b, "tokenizer.ggml.merges", vocabulary->merges,
                count == vocabulary->token_count ? vocabulary->merge_count : 0);
    key_u32(b, "tokenizer.ggml.eos_token_id", vocabulary->eos);
    if (begin_key(b, "tokenizer.ggml.token_type", 9)) {
        put_u32(b, 4);
        put_u64(b, count);
        for (uint32_t i = 0; i < count; i++) /* no answer has the byte 0, which jansson takes in no key */
            put_u32(b, i == TINY_BYTE_FIRST ? PIECE_CONTROL : vocabulary->types[i]);
    }
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

/* Elements of a block of a quantised type: K blocks have 256, others 32. */
static uint64_t block_elements(uint32_t type)
{
    bool is_float = type == GGUF_TYPE_F32 || type == GGUF_TYPE_F16 || type == GGUF_TYPE_BF16;
    return is_float ? 1 : type >= GGUF_TYPE_Q4_K && type <= GGUF_TYPE_Q6_K ? 256 : 32;
}

static uint64_t block_bytes(uint32_t type)
{
    uint64_t bytes = gguf_row_bytes((enum gguf_type)type, (uint32_t)block_elements(type));
    return bytes > 0 ? bytes : 34; /* of a type that is refused */
}

static void put_block(struct builder *b, uint32_t type, bool is_gain)
{
    float value = is_gain ? 1 + next_float(b, 0.5f) : next_float(b, 0.2f);
    uint8_t block[256];
    uint64_t bytes = block_bytes(type);
    switch (type) {
    case GGUF_TYPE_F32:
        put(b, &value, sizeof(value));
        return;
    case GGUF_TYPE_F16:
        put_half(b, value);
        return;
    case GGUF_TYPE_BF16:
        put(b, (const uint8_t *)&value + 2, 2);
        return;
    default:
        break;
    }
    for (uint64_t i = 0; i < bytes; i++)
        block[i] = (uint8_t)next_random(b);
    bool has_minimum =
        type == GGUF_TYPE_Q4_1 || type == GGUF_TYPE_Q5_1 || type == GGUF_TYPE_Q4_K || type == GGUF_TYPE_Q5_K;
    bool has_wide_integers = type == GGUF_TYPE_Q8_0 || type == GGUF_TYPE_IQ4_NL;
    bool is_k = block_elements(type) == 256;
    bool has_five_bits = type == GGUF_TYPE_Q5_0 || type == GGUF_TYPE_Q5_1 || type == GGUF_TYPE_Q5_K;
    float scale = is_k ? 0.0002f : has_wide_integers ? 0.0015f : 0.02f + next_float(b, 0.01f);
    uint16_t d = f32_to_f16(type == GGUF_TYPE_Q6_K ? scale / 8 : has_five_bits ? scale / 2 : scale);
    uint16_t m = f32_to_f16(is_k ? 8 * scale : -0.15f + next_float(b, 0.05f));
    memcpy(block + (type == GGUF_TYPE_Q6_K ? 208 : 0), &d, 2);
    if (has_minimum)
        memcpy(block + 2, &m, 2);
    put(b, block, bytes);
}

static uint64_t tensor_blocks(const struct tensor *tensor)
{
    return tensor->ne[0] * tensor->ne[1] / block_elements(tensor->type);
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
        if (tiny_model_has_qk_norm(t)) {
            snprintf(name, sizeof(name), "blk.%u.attn_q_norm.weight", layer);
            add_tensor(b, name, t->head_dim, 1, GGUF_TYPE_F32);
            snprintf(name, sizeof(name), "blk.%u.attn_k_norm.weight", layer);
            add_tensor(b, name, t->head_dim, 1, GGUF_TYPE_F32);
        }
        if (tiny_model_has_post_norms(t)) {
            snprintf(name, sizeof(name), "blk.%u.post_attention_norm.weight", layer);
            add_tensor(b, name, t->width, 1, GGUF_TYPE_F32);
            snprintf(name, sizeof(name), "blk.%u.post_ffw_norm.weight", layer);
            add_tensor(b, name, t->width, 1, GGUF_TYPE_F32);
        }
        for (int i = 0; i < 7; i++) {
            snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, names[i]);
            add_tensor(b, name, columns[i], rows[i], t->types[i]);
            snprintf(name, sizeof(name), "blk.%u.%s.bias", layer, names[i]);
            if (t->has_biases && (i < 3 || i == 6))
                add_tensor(b, name, rows[i], 1, GGUF_TYPE_F32);
        }
    }
    if (t->extra_tensor != NULL)
        add_tensor(b, t->extra_tensor, 16, 1, GGUF_TYPE_F32);
}

static void put_keys(struct builder *b)
{
    const struct tiny_model *t = b->tiny;
    key_string(b, "general.architecture", t->architecture);
    key_u32(b, ".block_count", t->layers);
    key_u32(b, ".context_length", t->context_length);
    key_u32(b, ".embedding_length", t->width);
    key_u32(b, ".feed_forward_length", t->feed_forward);
    key_u32(b, ".attention.head_count", t->heads);
    key_u32(b, ".attention.head_count_kv", t->kv_heads);
    key_u32(b, ".attention.key_length", t->head_dim);
    key_u32(b, ".attention.value_length", t->head_dim);
    key_u32(b, ".rope.dimension_count", t->rope_count);
    key_f32(b, ".rope.freq_base", (float)t->rope_base);
    key_f32(b, ".attention.layer_norm_rms_epsilon", 1e-5f);
    if (t->scaling_type != NULL) {
        key_string(b, ".rope.scaling.type", t->scaling_type);
        key_f32(b, ".rope.scaling.factor", 4);
        key_u32(b, ".rope.scaling.original_context_length", 64);
    }
    if (t->window > 0)
        key_u32(b, ".attention.sliding_window", t->window);
    if (t->window_pattern > 0)
        key_u32(b, ".attention.sliding_window_pattern", t->window_pattern);
    if (t->extra_key != NULL)
        key_f32(b, t->extra_key, 30);
    if (t->expert_count > 0)
        key_u32(b, ".expert_count", t->expert_count);
    if (t->has_tokenizer)
        put_tokenizer(b);
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

void tiny_model_write(const struct tiny_model *tiny, const char *path)
{
    int from = tiny_model_fd(tiny), to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t bytes = lseek(from, 0, SEEK_END), at = 0;
    cr_assert(to >= 0);
    cr_assert_eq(sendfile(to, from, &at, (size_t)bytes), bytes);
    close(from);
    close(to);
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
