/* tok_build.c - compiles a vocabulary's tables (tok_tables.h) from what the model's file says. */
#include "engine/tok_tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/unicode.h"

#define TOK_TOKENS_MAX (1u << 24)
#define TOK_SPM_SPACE  "\xe2\x96\x81" /* U+2581 */

/* GPT-2's printable characters for bytes: '!'..'~', U+A1..U+AC and U+AE..U+FF stand for themselves, the others, in
 * order, for U+0100 and up. */
static int byte_of_character(uint32_t code)
{
    static int16_t of_shifted[68];
    static bool is_filled;
    if (!is_filled) {
        int next = 0;
        for (int byte = 0; byte < 256; byte++)
            if (!((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae))
                of_shifted[next++] = (int16_t)byte;
        is_filled = true;
    }
    if (code >= 256)
        return code < 256 + 68 ? of_shifted[code - 256] : -1;
    bool is_itself = (code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code <= 0xac) || code >= 0xae;
    return is_itself ? (int)code : -1;
}

/* A normal token's bytes from its printable form. -1 when a character stands for no byte. */
static int decode_piece(struct tok_text text, uint8_t *bytes)
{
    int size = 0;
    for (size_t i = 0; i < text.size;) {
        uint32_t code, length = unicode_decode((const uint8_t *)text.data + i, text.size - i, &code, NULL);
        int byte = length > 0 ? byte_of_character(code) : -1;
        if (byte < 0 || size == TOK_PIECE_MAX)
            return -1;
        bytes[size++] = (uint8_t)byte;
        i += length;
    }
    return size;
}

struct string_table {
    uint32_t *slots; /* id + 1; 0: empty */
    uint32_t count;  /* power of two */
    const struct tok_text *tokens;
};

static uint32_t hash_text(struct tok_text text)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < text.size; i++)
        hash = (hash ^ (uint8_t)text.data[i]) * 16777619u;
    return hash;
}

static uint32_t *find_slot(const struct string_table *table, struct tok_text text)
{
    uint32_t slot = hash_text(text) & (table->count - 1);
    while (table->slots[slot] != 0) {
        struct tok_text other = table->tokens[table->slots[slot] - 1];
        if (other.size == text.size && memcmp(other.data, text.data, text.size) == 0)
            break;
        slot = (slot + 1) & (table->count - 1);
    }
    return &table->slots[slot];
}

static uint32_t id_of(const struct string_table *table, const char *data, size_t size)
{
    uint32_t found = *find_slot(table, (struct tok_text){data, size});
    return found != 0 ? found - 1 : TOK_NONE;
}

static void index_tokens(struct string_table *table, const struct tok_source *source)
{
    table->tokens = source->tokens;
    table->count = 1;
    while (table->count < 2 * source->token_count)
        table->count *= 2;
    table->slots = base_alloc(table->count * sizeof(*table->slots));
    for (uint32_t id = 0; id < source->token_count; id++) {
        uint32_t *slot = find_slot(table, source->tokens[id]);
        if (*slot == 0) /* a repeated string: the first one counts */
            *slot = id + 1;
    }
}

static bool is_special(const struct tok_source *source, uint32_t id)
{
    return source->types[id] == PIECE_CONTROL || source->types[id] == PIECE_USER_DEFINED ||
           source->types[id] == PIECE_UNKNOWN;
}

/* SPM writes spaces as U+2581. */
static int decode_spm_piece(struct tok_text text, uint8_t *bytes)
{
    size_t size = 0;
    for (size_t i = 0; i < text.size; size++) {
        bool is_space = text.size - i >= 3 && memcmp(text.data + i, TOK_SPM_SPACE, 3) == 0;
        if (size == TOK_PIECE_MAX)
            return -1;
        bytes[size] = is_space ? ' ' : (uint8_t)text.data[i];
        i += is_space ? 3 : 1;
    }
    return (int)size;
}

/* "<0x0A>". -1 when it is no such name. */
static int decode_byte_name(struct tok_text text, uint8_t *bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (text.size != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    const char *high = memchr(digits, text.data[3], 16), *low = memchr(digits, text.data[4], 16);
    if (high == NULL || low == NULL)
        return -1;
    bytes[0] = (uint8_t)((high - digits) << 4 | (low - digits));
    return 1;
}

static int decode_raw(struct tok_text text, uint8_t *bytes)
{
    if (text.size > TOK_PIECE_MAX)
        return -1;
    memcpy(bytes, text.data, text.size);
    return (int)text.size;
}

/* A token's bytes. -1 when it is too long or not written as such tokens are. */
static int decode_token(const struct tok_source *source, uint32_t id, uint8_t *bytes)
{
    struct tok_text text = source->tokens[id];
    if (source->kind == TOK_SPM && source->types[id] == PIECE_BYTE)
        return decode_byte_name(text, bytes);
    if (source->types[id] != PIECE_NORMAL)
        return decode_raw(text, bytes);
    return source->kind == TOK_SPM ? decode_spm_piece(text, bytes) : decode_piece(text, bytes);
}

static int fill_pieces(struct tok_blob *blob, const struct tok_source *source, struct err *err)
{
    uint32_t *starts = (uint32_t *)(uintptr_t)tok_at(blob, blob->pieces.starts), end = 0;
    uint8_t *pieces = (uint8_t *)(uintptr_t)tok_at(blob, blob->pieces.text);
    uint8_t *types = (uint8_t *)(uintptr_t)tok_at(blob, blob->pieces.types);
    memset(blob->byte_tokens, 0xff, sizeof(blob->byte_tokens));
    for (uint32_t id = 0; id < source->token_count; id++) {
        starts[id] = end;
        types[id] = source->types[id];
        int size = decode_token(source, id, pieces + end);
        if (size < 0)
            return err_set(err, -ENOTSUP, "vocabulary: token %u is longer than %u bytes or not in the byte alphabet",
                           id, TOK_PIECE_MAX);
        bool is_byte = source->types[id] == (source->kind == TOK_SPM ? PIECE_BYTE : PIECE_NORMAL);
        if (is_byte && size == 1)
            blob->byte_tokens[pieces[end]] = id;
        end += (uint32_t)size;
    }
    starts[source->token_count] = end;
    return 0;
}

/* By bytes, a shorter one before those that go on from it, equal ones by id. */
static int compare_texts(struct tok_text x, struct tok_text y, uint32_t left, uint32_t right)
{
    int order = memcmp(x.data, y.data, min_u64(x.size, y.size));
    if (order == 0)
        order = (x.size > y.size) - (x.size < y.size);
    return order != 0 ? order : (left > right) - (left < right);
}

static struct tok_text piece_text(const struct pieces_shm *pieces, uint32_t id)
{
    uint32_t size;
    const uint8_t *bytes = piece_bytes(pieces, id, &size);
    return (struct tok_text){(const char *)bytes, size};
}

static int compare_pieces(const void *a, const void *b, void *pieces)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return compare_texts(piece_text(pieces, left), piece_text(pieces, right), left, right);
}

static void fill_order(struct pieces_shm *pieces)
{
    uint32_t *order = (uint32_t *)(uintptr_t)pieces_order(pieces), count = 0;
    uint16_t *shared = (uint16_t *)(uintptr_t)pieces_shared(pieces);
    for (uint32_t id = 0; id < pieces->count; id++)
        if (piece_is_text(pieces, id))
            order[count++] = id;
    qsort_r(order, count, sizeof(*order), compare_pieces, pieces);
    for (uint32_t i = 1; i < count; i++) {
        struct tok_text before = piece_text(pieces, order[i - 1]), text = piece_text(pieces, order[i]);
        while (shared[i] < before.size && shared[i] < text.size && text.data[shared[i]] == before.data[shared[i]])
            shared[i]++;
    }
    pieces->order_count = count;
}

/* Only what text may become is found there: never a control token, never the name of a byte. A user-defined token of SPM
 * with a space in it is found before the spaces are looked at. */
static bool is_text(const struct tok_source *source, uint32_t id)
{
    struct tok_text text = source->tokens[id];
    if (source->types[id] == PIECE_USER_DEFINED)
        return source->kind == TOK_SPM && memchr(text.data, ' ', text.size) == NULL;
    return source->types[id] == PIECE_NORMAL || source->types[id] == PIECE_UNUSED;
}

static void fill_texts(struct tok_blob *blob, const struct tok_source *source)
{
    struct tok_text_slot *slots = (struct tok_text_slot *)(uintptr_t)tok_at(blob, blob->texts);
    for (uint32_t id = 0; id < source->token_count; id++) {
        uint32_t size;
        const uint8_t *piece = piece_bytes(&blob->pieces, id, &size);
        if (!is_text(source, id) || size == 0 || tok_find_text(blob, piece, size) != TOK_NONE)
            continue; /* of repeated texts the first one counts */
        uint32_t hash = tok_hash_bytes(piece, size), at = hash & (blob->text_slots - 1);
        while (slots[at].next_id != 0)
            at = (at + 1) & (blob->text_slots - 1);
        slots[at] = (struct tok_text_slot){hash, id + 1};
        blob->longest = size > blob->longest ? size : blob->longest;
    }
}

/* By score, the better first. */
static int compare_scores(const void *a, const void *b, void *scores)
{
    float x = ((const float *)scores)[*(const uint32_t *)a], y = ((const float *)scores)[*(const uint32_t *)b];
    return (x < y) - (x > y);
}

static void fill_ranks(struct tok_blob *blob, const struct tok_source *source)
{
    uint32_t *ranks = (uint32_t *)(uintptr_t)tok_at(blob, blob->ranks), rank = 0;
    uint32_t *order = base_alloc(source->token_count * sizeof(*order));
    for (uint32_t id = 0; id < source->token_count; id++)
        order[id] = id;
    qsort_r(order, source->token_count, sizeof(*order), compare_scores, (void *)(uintptr_t)source->scores);
    for (uint32_t i = 0; i < source->token_count; i++) {
        rank += i > 0 && source->scores[order[i]] < source->scores[order[i - 1]];
        ranks[order[i]] = rank;
    }
    free(order);
}

static int fill_merges(struct tok_blob *blob, const struct tok_source *source, const struct string_table *table,
                       struct err *err)
{
    struct merge *merges = (struct merge *)(uintptr_t)tok_at(blob, blob->merges);
    memset(merges, 0xff, blob->merge_slots * sizeof(*merges));
    for (uint32_t rank = 0; rank < source->merge_count; rank++) {
        struct tok_text text = source->merges[rank];
        const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
        char joined[4 * TOK_PIECE_MAX];
        if (space == NULL || text.size > sizeof(joined))
            return err_set(err, -EBADMSG, "vocabulary: merge %u is not \"left right\"", rank);
        size_t left_size = (size_t)(space - text.data), right_size = text.size - left_size - 1;
        memcpy(joined, text.data, left_size);
        memcpy(joined + left_size, space + 1, right_size);
        uint32_t left = id_of(table, text.data, left_size), right = id_of(table, space + 1, right_size);
        uint32_t merged = id_of(table, joined, left_size + right_size);
        if (left == TOK_NONE || right == TOK_NONE || merged == TOK_NONE)
            return err_set(err, -EBADMSG, "vocabulary: merge %u names what is no token", rank);
        if (source->types[merged] == PIECE_CONTROL || source->types[merged] == PIECE_UNKNOWN)
            return err_set(err, -EBADMSG, "vocabulary: merge %u makes a control token out of text", rank);
        uint32_t slot = tok_hash_pair(left, right) & (blob->merge_slots - 1);
        while (merges[slot].left != TOK_NONE && (merges[slot].left != left || merges[slot].right != right))
            slot = (slot + 1) & (blob->merge_slots - 1);
        if (merges[slot].left == TOK_NONE) /* a repeated pair: the better rank counts */
            merges[slot] = (struct merge){left, right, rank, merged};
    }
    return 0;
}

static int compare_specials(const void *a, const void *b, void *tokens)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return compare_texts(((const struct tok_text *)tokens)[left], ((const struct tok_text *)tokens)[right], left,
                         right);
}

static void fill_specials(struct tok_blob *blob, const struct tok_source *source)
{
    uint32_t *specials = (uint32_t *)(uintptr_t)tok_at(blob, blob->specials);
    uint32_t count = 0;
    for (uint32_t id = 0; id < source->token_count; id++)
        if (is_special(source, id) && source->tokens[id].size > 0) {
            specials[count++] = id;
            blob->special_first[(uint8_t)source->tokens[id].data[0]] = 1;
        }
    qsort_r(specials, count, sizeof(*specials), compare_specials, (void *)(uintptr_t)source->tokens);
    blob->special_count = count;
}

static void fill_ends(struct tok_blob *blob, const struct tok_source *source, const struct string_table *table)
{
    /* Names under which published models end a turn or a text, besides their eos. */
    static const char *const names[] = {
        "<|im_end|>", "<|endoftext|>", "<|end_of_text|>",    "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>",
        "<eos>",      "</s>",          "<end_of_utterance>", "<EOT>",      "<|return|>",
    };
    uint32_t candidates[TOK_END_TOKENS_MAX + ARRAY_COUNT(names) + 1], count = 0;
    candidates[count++] = source->eos;
    for (uint32_t i = 0; i < source->end_count; i++)
        candidates[count++] = source->ends[i];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        uint32_t id = id_of(table, names[i], strlen(names[i]));
        if (id != TOK_NONE && source->types[id] == PIECE_CONTROL)
            candidates[count++] = id;
    }
    for (uint32_t i = 0; i < count; i++) {
        bool is_new = candidates[i] < source->token_count;
        for (uint32_t j = 0; j < blob->end_count; j++)
            is_new = is_new && blob->ends[j] != candidates[i];
        if (is_new && blob->end_count < TOK_END_TOKENS_MAX)
            blob->ends[blob->end_count++] = candidates[i];
    }
}

static int find_pre_tokenizer(struct tok_text name, uint32_t *pre, struct err *err)
{
    enum pretok found;
    if (!pretok_find(name.data, name.size, &found))
        return err_set(err, -ENOTSUP,
                       "vocabulary: pre-tokenizer \"%.*s\" is not supported; this build has smollm, gpt-2, llama-bpe "
                       "and qwen2",
                       (int)min_u64(name.size, 64), name.data);
    *pre = found;
    return 0;
}

static uint64_t take(uint64_t *end, uint64_t bytes)
{
    uint64_t at = align_up_u64(*end, 64);
    *end = at + bytes;
    return at;
}

static int check_source(const struct tok_source *source, struct err *err)
{
    uint64_t bytes = TOK_PIECE_MAX;
    if (source->token_count > TOK_TOKENS_MAX)
        return err_set(err, -EBADMSG, "vocabulary: more than %u tokens", TOK_TOKENS_MAX);
    for (uint32_t id = 0; id < source->token_count; id++)
        bytes += source->tokens[id].size;
    if (source->token_count == 0 || bytes > UINT32_MAX || source->chat_template.size > UINT32_MAX)
        return err_set(err, -EBADMSG, "vocabulary: no tokens, or more than 4 GiB of them");
    if ((source->bos != TOK_NONE && source->bos >= source->token_count) ||
        (source->eos != TOK_NONE && source->eos >= source->token_count))
        return err_set(err, -EBADMSG, "vocabulary: %u tokens, but a text is to begin with token %d and to end with %d",
                       source->token_count, (int)source->bos, (int)source->eos);
    return 0;
}

/* Where every table will lie. */
static struct tok_blob lay_out(const struct tok_source *source, uint32_t pre)
{
    uint32_t special_count = 0;
    uint64_t piece_bytes = TOK_PIECE_MAX;
    for (uint32_t id = 0; id < source->token_count; id++) {
        special_count += is_special(source, id);
        piece_bytes += source->tokens[id].size; /* raw bytes are never more than the printable form's */
    }
    struct tok_blob head = {.pieces.magic = PIECES_MAGIC,
                            .kind = source->kind,
                            .pieces.count = source->token_count,
                            .merge_slots = 16,
                            .text_slots = 16,
                            .pre = pre,
                            .bos = source->bos,
                            .eos = source->eos,
                            .whole_pieces = source->kind == TOK_BPE && pre == PRETOK_LLAMA3,
                            .adds_space = source->kind == TOK_SPM && source->adds_space,
                            .template_size = (uint32_t)source->chat_template.size};
    while (head.merge_slots < 2 * (uint64_t)source->merge_count)
        head.merge_slots *= 2;
    while (head.text_slots < 2 * (uint64_t)source->token_count)
        head.text_slots *= 2;
    /* where the file does not say: SPM and Llama 3 begin with it */
    bool adds_bos = source->bos_rule == TOK_BOS_UNSAID ? source->kind == TOK_SPM || pre == PRETOK_LLAMA3
                                                       : source->bos_rule == TOK_BOS_FIRST;
    head.adds_bos = adds_bos && source->bos != TOK_NONE;
    uint64_t end = sizeof(head);
    head.pieces.starts = take(&end, (source->token_count + 1) * sizeof(uint32_t));
    head.pieces.text = take(&end, piece_bytes);
    head.pieces.types = take(&end, source->token_count);
    head.pieces.order = take(&end, source->token_count * sizeof(uint32_t));
    head.pieces.shared = take(&end, source->token_count * sizeof(uint16_t));
    head.merges = take(&end, head.merge_slots * sizeof(struct merge));
    head.texts = take(&end, head.text_slots * sizeof(struct tok_text_slot));
    head.ranks = take(&end, source->kind == TOK_SPM ? source->token_count * sizeof(uint32_t) : 0);
    head.specials = take(&end, special_count * sizeof(uint32_t) + 1);
    head.chat_template = take(&end, source->chat_template.size + 1);
    head.pieces.bytes = align_up_u64(end, 64);
    return head;
}

int tok_build(const struct tok_source *source, void **out, size_t *out_bytes, struct err *err)
{
    uint32_t pre = PRETOK_GPT2;
    int ret = source->kind == TOK_BPE ? find_pre_tokenizer(source->pre, &pre, err) : 0;
    ret = ret ? ret : check_source(source, err);
    if (ret != 0)
        return ret;
    const struct tok_blob head = lay_out(source, pre);
    struct tok_blob *blob = base_alloc(head.pieces.bytes);
    *blob = head;
    struct string_table table = {0};
    index_tokens(&table, source);
    if (source->chat_template.size > 0)
        memcpy((char *)(uintptr_t)tok_at(blob, blob->chat_template), source->chat_template.data,
               source->chat_template.size);
    ret = fill_pieces(blob, source, err);
    ret = ret ? ret : fill_merges(blob, source, &table, err);
    if (ret == 0) {
        fill_order(&blob->pieces);
        fill_texts(blob, source);
    }
    if (source->kind == TOK_SPM)
        fill_ranks(blob, source);
    fill_specials(blob, source);
    fill_ends(blob, source, &table);
    free(table.slots);
    if (ret != 0) {
        free(blob);
        return ret;
    }
    *out = blob;
    *out_bytes = blob->pieces.bytes;
    return 0;
}
