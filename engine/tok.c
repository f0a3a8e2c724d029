#include "engine/tok.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/unicode.h"

#define TOK_MAGIC 0x3330424b4f544645ull /* "EFTOKB03" */

enum pre_tokenizer {
    PRE_GPT2,   /* GPT-2's pattern */
    PRE_SMOLLM, /* every number character alone, then GPT-2's pattern on what lies between */
};

struct merge {
    uint32_t left, right; /* TOK_NONE: empty place of the table */
    uint32_t rank, merged;
};

/* The tables: this head, then arrays at byte offsets from its start. */
struct tok_blob {
    uint64_t magic;
    uint64_t bytes;
    uint32_t token_count;
    uint32_t merge_slots; /* power of two */
    uint32_t special_count;
    uint32_t end_count;
    uint32_t pre; /* enum pre_tokenizer */
    uint32_t bos, adds_bos, eos;
    uint32_t template_size;
    uint64_t piece_starts; /* uint32_t (token_count + 1), into pieces */
    uint64_t pieces;       /* raw bytes of all tokens */
    uint64_t types;        /* uint8_t (token_count) */
    uint64_t merges;       /* struct merge (merge_slots): open addressing by (left, right) */
    uint64_t specials;     /* uint32_t (special_count): control and user-defined tokens, in order of their bytes */
    uint64_t chat_template;
    uint32_t ends[TOK_END_TOKENS_MAX];
    uint32_t byte_tokens[256];  /* the token of each single byte; TOK_NONE where the vocabulary has none */
    uint8_t special_first[256]; /* 1: some special token begins with this byte */
};

struct tok_symbol {
    uint32_t id;
    uint32_t previous, next; /* index; TOK_NONE at the ends */
};

static const void *at_offset(const struct tok_blob *blob, uint64_t offset)
{
    return (const uint8_t *)blob + offset;
}

static const uint8_t *piece_of(const struct tok_blob *blob, uint32_t id, uint32_t *size)
{
    const uint32_t *starts = at_offset(blob, blob->piece_starts);
    *size = starts[id + 1] - starts[id];
    return (const uint8_t *)at_offset(blob, blob->pieces) + starts[id];
}

static uint8_t type_of(const struct tok_blob *blob, uint32_t id)
{
    return ((const uint8_t *)at_offset(blob, blob->types))[id];
}

static uint32_t hash_pair(uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(hash >> 32);
}

static const struct merge *find_merge(const struct tok_blob *blob, uint32_t left, uint32_t right)
{
    const struct merge *merges = at_offset(blob, blob->merges);
    uint32_t slot = hash_pair(left, right) & (blob->merge_slots - 1);
    while (merges[slot].left != TOK_NONE) {
        if (merges[slot].left == left && merges[slot].right == right)
            return &merges[slot];
        slot = (slot + 1) & (blob->merge_slots - 1);
    }
    return NULL;
}

/* ---- building ---- */

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
    return source->types[id] == TOK_CONTROL || source->types[id] == TOK_USER_DEFINED;
}

static int fill_pieces(struct tok_blob *blob, const struct tok_source *source, struct err *err)
{
    uint32_t *starts = (uint32_t *)(uintptr_t)at_offset(blob, blob->piece_starts), end = 0;
    uint8_t *pieces = (uint8_t *)(uintptr_t)at_offset(blob, blob->pieces);
    uint8_t *types = (uint8_t *)(uintptr_t)at_offset(blob, blob->types);
    memset(blob->byte_tokens, 0xff, sizeof(blob->byte_tokens));
    for (uint32_t id = 0; id < source->token_count; id++) {
        struct tok_text text = source->tokens[id];
        starts[id] = end;
        types[id] = source->types[id];
        int size = (int)text.size;
        bool is_raw = source->types[id] != TOK_NORMAL;
        if (is_raw && text.size <= TOK_PIECE_MAX)
            memcpy(pieces + end, text.data, text.size);
        else
            size = is_raw ? -1 : decode_piece(text, pieces + end);
        if (size < 0)
            return err_set(err, -ENOTSUP, "vocabulary: token %u is longer than %u bytes or not in the byte alphabet",
                           id, TOK_PIECE_MAX);
        if (!is_raw && size == 1)
            blob->byte_tokens[pieces[end]] = id;
        end += (uint32_t)size;
    }
    starts[source->token_count] = end;
    return 0;
}

static int fill_merges(struct tok_blob *blob, const struct tok_source *source, const struct string_table *table,
                       struct err *err)
{
    struct merge *merges = (struct merge *)(uintptr_t)at_offset(blob, blob->merges);
    memset(merges, 0xff, blob->merge_slots * sizeof(*merges));
    for (uint32_t rank = 0; rank < source->merge_count; rank++) {
        struct tok_text text = source->merges[rank];
        const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
        char joined[4 * TOK_PIECE_MAX];
        if (space == NULL || text.size > sizeof(joined))
            return err_set(err, -EINVAL, "vocabulary: merge %u is not \"left right\"", rank);
        size_t left_size = (size_t)(space - text.data), right_size = text.size - left_size - 1;
        memcpy(joined, text.data, left_size);
        memcpy(joined + left_size, space + 1, right_size);
        uint32_t left = id_of(table, text.data, left_size), right = id_of(table, space + 1, right_size);
        uint32_t merged = id_of(table, joined, left_size + right_size);
        if (left == TOK_NONE || right == TOK_NONE || merged == TOK_NONE)
            return err_set(err, -EINVAL, "vocabulary: merge %u names what is no token", rank);
        uint32_t slot = hash_pair(left, right) & (blob->merge_slots - 1);
        while (merges[slot].left != TOK_NONE && (merges[slot].left != left || merges[slot].right != right))
            slot = (slot + 1) & (blob->merge_slots - 1);
        if (merges[slot].left == TOK_NONE) /* a repeated pair: the better rank counts */
            merges[slot] = (struct merge){left, right, rank, merged};
    }
    return 0;
}

/* By bytes, a shorter one before those that go on from it, equal ones by id. */
static int compare_specials(const void *a, const void *b, void *tokens)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    const struct tok_text *x = (const struct tok_text *)tokens + left, *y = (const struct tok_text *)tokens + right;
    int order = memcmp(x->data, y->data, min_u64(x->size, y->size));
    if (order == 0)
        order = (x->size > y->size) - (x->size < y->size);
    return order != 0 ? order : (left > right) - (left < right);
}

static void fill_specials(struct tok_blob *blob, const struct tok_source *source)
{
    uint32_t *specials = (uint32_t *)(uintptr_t)at_offset(blob, blob->specials);
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
    static const char *const names[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>",
                                        "<|eom_id|>", "<|end|>",       "<end_of_turn>"};
    uint32_t candidates[TOK_END_TOKENS_MAX + ARRAY_COUNT(names) + 1], count = 0;
    candidates[count++] = source->eos;
    for (uint32_t i = 0; i < source->end_count; i++)
        candidates[count++] = source->ends[i];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        uint32_t id = id_of(table, names[i], strlen(names[i]));
        if (id != TOK_NONE && source->types[id] == TOK_CONTROL)
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
    static const struct {
        const char *name;
        enum pre_tokenizer pre;
    } known[] = {{"smollm", PRE_SMOLLM}, {"gpt-2", PRE_GPT2}, {"gpt2", PRE_GPT2}};
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (strlen(known[i].name) == name.size && memcmp(known[i].name, name.data, name.size) == 0) {
            *pre = known[i].pre;
            return 0;
        }
    return err_set(err, -ENOTSUP,
                   "vocabulary: pre-tokenizer \"%.*s\" is not supported; this build has smollm and gpt-2",
                   (int)min_u64(name.size, 64), name.data);
}

static uint64_t take(uint64_t *end, uint64_t bytes)
{
    uint64_t at = align_up_u64(*end, 64);
    *end = at + bytes;
    return at;
}

int tok_build(const struct tok_source *source, void **out, size_t *out_bytes, struct err *err)
{
    uint32_t pre = PRE_GPT2, special_count = 0;
    uint64_t piece_bytes = TOK_PIECE_MAX;
    int ret = find_pre_tokenizer(source->pre, &pre, err);
    if (ret != 0)
        return ret;
    for (uint32_t id = 0; id < source->token_count; id++) {
        special_count += is_special(source, id);
        piece_bytes += source->tokens[id].size; /* raw bytes are never more than the printable form's */
    }
    if (source->token_count == 0 || piece_bytes > UINT32_MAX || source->chat_template.size > UINT32_MAX)
        return err_set(err, -EINVAL, "vocabulary: no tokens, or more than 4 GiB of them");
    if ((source->bos != TOK_NONE && source->bos >= source->token_count) ||
        (source->eos != TOK_NONE && source->eos >= source->token_count))
        return err_set(err, -EINVAL, "vocabulary: %u tokens, but a text is to begin with token %d and to end with %d",
                       source->token_count, (int)source->bos, (int)source->eos);
    struct tok_blob head = {.magic = TOK_MAGIC,
                            .token_count = source->token_count,
                            .merge_slots = 16,
                            .pre = pre,
                            .bos = source->bos,
                            .adds_bos = source->adds_bos && source->bos != TOK_NONE,
                            .eos = source->eos,
                            .template_size = (uint32_t)source->chat_template.size};
    while (head.merge_slots < 2 * (uint64_t)source->merge_count)
        head.merge_slots *= 2;
    uint64_t end = sizeof(head);
    head.piece_starts = take(&end, (source->token_count + 1) * sizeof(uint32_t));
    head.pieces = take(&end, piece_bytes);
    head.types = take(&end, source->token_count);
    head.merges = take(&end, head.merge_slots * sizeof(struct merge));
    head.specials = take(&end, special_count * sizeof(uint32_t) + 1);
    head.chat_template = take(&end, source->chat_template.size + 1);
    head.bytes = align_up_u64(end, 64);

    struct tok_blob *blob = base_alloc(head.bytes);
    *blob = head;
    struct string_table table = {0};
    index_tokens(&table, source);
    if (source->chat_template.size > 0)
        memcpy((char *)(uintptr_t)at_offset(blob, blob->chat_template), source->chat_template.data,
               source->chat_template.size);
    ret = fill_pieces(blob, source, err);
    ret = ret ? ret : fill_merges(blob, source, &table, err);
    fill_specials(blob, source);
    fill_ends(blob, source, &table);
    free(table.slots);
    if (ret != 0) {
        free(blob);
        return ret;
    }
    *out = blob;
    *out_bytes = blob->bytes;
    return 0;
}

/* ---- attaching ---- */

static bool lies_inside(const struct tok_blob *blob, uint64_t offset, uint64_t bytes)
{
    return offset <= blob->bytes && bytes <= blob->bytes - offset;
}

int tok_attach(struct tok *tok, const void *memory, size_t bytes, size_t text_bytes_max, struct err *err)
{
    const struct tok_blob *blob = memory;
    bool is_sound = bytes >= sizeof(*blob) && blob->magic == TOK_MAGIC && blob->bytes <= bytes &&
                    blob->merge_slots > 0 && (blob->merge_slots & (blob->merge_slots - 1)) == 0 &&
                    lies_inside(blob, blob->piece_starts, (blob->token_count + 1ull) * sizeof(uint32_t)) &&
                    lies_inside(blob, blob->types, blob->token_count) &&
                    lies_inside(blob, blob->merges, (uint64_t)blob->merge_slots * sizeof(struct merge)) &&
                    lies_inside(blob, blob->specials, (uint64_t)blob->special_count * sizeof(uint32_t)) &&
                    lies_inside(blob, blob->chat_template, blob->template_size) &&
                    blob->end_count <= TOK_END_TOKENS_MAX;
    if (!is_sound)
        return err_set(err, -EPROTO, "vocabulary: the tables are not this build's; mixed builds?");
    const uint32_t *starts = at_offset(blob, blob->piece_starts);
    if (!lies_inside(blob, blob->pieces, starts[blob->token_count]))
        return err_set(err, -EPROTO, "vocabulary: the tables are damaged");
    *tok = (struct tok){.blob = blob, .text_bytes_max = text_bytes_max};
    tok->symbols = base_alloc((text_bytes_max + 1) * sizeof(*tok->symbols));
    /* n symbols give n - 1 candidates; each of at most n - 1 merges uses one up and gives at most two */
    tok->heap = base_alloc((2 * text_bytes_max + 1) * sizeof(*tok->heap));
    return 0;
}

void tok_detach(struct tok *tok)
{
    free(tok->symbols);
    free(tok->heap);
    *tok = (struct tok){0};
}

/* ---- encoding ---- */

struct encoder {
    const struct tok *tok;
    uint32_t *ids;
    uint32_t count, ids_max;
};

/* A candidate is the merge's rank (upper half) and the index of its left symbol (lower half): the smallest is next. */
static void heap_push(uint64_t *heap, uint32_t *count, uint64_t candidate)
{
    uint32_t at = (*count)++;
    for (; at > 0 && candidate < heap[(at - 1) / 2]; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
}

static uint64_t heap_pop(uint64_t *heap, uint32_t *count)
{
    uint64_t first = heap[0], last = heap[--*count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= *count)
            break;
        if (child + 1 < *count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= last)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

/* The merge of a symbol and its next one; NULL when there is none. */
static const struct merge *merge_at(const struct tok *tok, uint32_t left)
{
    const struct tok_symbol *symbols = tok->symbols;
    uint32_t right = symbols[left].next;
    return right != TOK_NONE ? find_merge(tok->blob, symbols[left].id, symbols[right].id) : NULL;
}

static void push_candidate(const struct tok *tok, uint32_t *count, uint32_t left)
{
    const struct merge *merge = merge_at(tok, left);
    if (merge != NULL)
        heap_push(tok->heap, count, (uint64_t)merge->rank << 32 | left);
}

/* One piece of the pre-tokenizer: its bytes, then the best merge again and again, the leftmost among equals. Bytes that
 * the vocabulary has no token for are left out first, as in the library that models are trained with (tokenizers). */
static void encode_piece(struct encoder *e, const uint8_t *text, size_t size)
{
    const struct tok *tok = e->tok;
    struct tok_symbol *symbols = tok->symbols;
    uint32_t candidates = 0;
    check(size <= tok->text_bytes_max);
    uint32_t count = 0;
    for (size_t i = 0; i < size; i++) {
        uint32_t id = tok->blob->byte_tokens[text[i]];
        if (id == TOK_NONE)
            continue;
        symbols[count] = (struct tok_symbol){.id = id, .previous = count > 0 ? count - 1 : TOK_NONE, .next = count + 1};
        count++;
    }
    if (count == 0)
        return;
    symbols[count - 1].next = TOK_NONE;
    for (uint32_t i = 0; i + 1 < count; i++)
        push_candidate(tok, &candidates, i);
    while (candidates > 0) {
        uint64_t best = heap_pop(tok->heap, &candidates);
        uint32_t at = (uint32_t)best;
        struct tok_symbol *left = &symbols[at];
        const struct merge *merge = left->id != TOK_NONE ? merge_at(tok, at) : NULL;
        if (merge == NULL || merge->rank != best >> 32)
            continue; /* one of the two has been merged already */
        uint32_t gone = left->next;
        left->id = merge->merged;
        left->next = symbols[gone].next;
        symbols[gone].id = TOK_NONE;
        if (left->next != TOK_NONE)
            symbols[left->next].previous = at;
        push_candidate(tok, &candidates, at);
        if (left->previous != TOK_NONE)
            push_candidate(tok, &candidates, left->previous);
    }
    for (uint32_t i = 0; i != TOK_NONE && e->count < e->ids_max; i = symbols[i].next)
        e->ids[e->count++] = symbols[i].id;
}

/* The character at text and its class; bytes that are no character have none. */
static uint32_t next_character(const uint8_t *text, size_t size, enum unicode_class *kind)
{
    uint32_t code, length = unicode_decode(text, size, &code, NULL);
    *kind = length > 0 ? unicode_class_of(code) : UNICODE_OTHER;
    return length > 0 ? length : 1;
}

/* Bytes of the run of characters of a class that begins at text. */
static size_t run_of(const uint8_t *text, size_t size, enum unicode_class wanted, size_t *last_start)
{
    size_t at = 0;
    while (at < size) {
        enum unicode_class kind;
        uint32_t length = next_character(text + at, size - at, &kind);
        if (kind != wanted)
            break;
        *last_start = at;
        at += length;
    }
    return at;
}

static size_t contraction(const uint8_t *text, size_t size)
{
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    for (size_t i = 0; i < ARRAY_COUNT(endings); i++) {
        size_t length = strlen(endings[i]);
        if (size > length && memcmp(text + 1, endings[i], length) == 0)
            return 1 + length;
    }
    return 0;
}

/* GPT-2's pattern at the beginning of a non-empty text:
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2_piece(const uint8_t *text, size_t size)
{
    enum unicode_class kind;
    size_t last_start = 0;
    if (text[0] == '\'') {
        size_t length = contraction(text, size);
        if (length > 0)
            return length;
    }
    size_t space = text[0] == ' ' && size > 1;
    next_character(text + space, size - space, &kind);
    if (kind != UNICODE_SPACE)
        return space + run_of(text + space, size - space, kind, &last_start);
    size_t run = run_of(text, size, UNICODE_SPACE, &last_start);
    /* White space before something leaves its last character to it, unless it is the only one. */
    return run == size || last_start == 0 ? run : last_start;
}

static void encode_fragment(struct encoder *e, const uint8_t *text, size_t size)
{
    while (size > 0 && e->count < e->ids_max) {
        size_t piece = gpt2_piece(text, size);
        encode_piece(e, text, piece);
        text += piece;
        size -= piece;
    }
}

/* Text without special tokens. */
static void encode_text(struct encoder *e, const uint8_t *text, size_t size)
{
    if (e->tok->blob->pre == PRE_GPT2) {
        encode_fragment(e, text, size);
        return;
    }
    size_t from = 0, at = 0;
    while (at < size) {
        enum unicode_class kind;
        uint32_t length = next_character(text + at, size - at, &kind);
        if (kind == UNICODE_NUMBER) {
            encode_fragment(e, text + from, at - from);
            encode_fragment(e, text + at, length);
            from = at + length;
        }
        at += length;
    }
    encode_fragment(e, text + from, size - from);
}

/* First of the specials [low, high), which are equal before `depth` and longer, whose byte there is at least `byte`. */
static uint32_t first_special(const struct tok_blob *blob, uint32_t low, uint32_t high, uint32_t depth, uint32_t byte)
{
    const uint32_t *specials = at_offset(blob, blob->specials);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, size;
        if (piece_of(blob, specials[middle], &size)[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token at text, TOK_NONE if there is none. Control tokens only where trusted. Each byte narrows
 * the sorted specials down to those that go on with it, so that time hardly depends on how many there are. */
static uint32_t special_at(const struct tok_blob *blob, const uint8_t *text, size_t size, size_t trusted_size,
                           uint32_t *length)
{
    uint32_t found = TOK_NONE, low = 0, high = blob->special_count;
    *length = 0;
    if (!blob->special_first[text[0]])
        return TOK_NONE;
    const uint32_t *specials = at_offset(blob, blob->specials);
    for (uint32_t depth = 0; depth < size; depth++) {
        low = first_special(blob, low, high, depth, text[depth]);
        high = first_special(blob, low, high, depth, text[depth] + 1u);
        for (uint32_t piece_size; low < high; low++) { /* those that end here come first */
            piece_of(blob, specials[low], &piece_size);
            if (piece_size != depth + 1)
                break;
            bool may_be = type_of(blob, specials[low]) != TOK_CONTROL || piece_size <= trusted_size;
            if (may_be && piece_size > *length) {
                found = specials[low];
                *length = piece_size;
            }
        }
        if (low == high)
            break;
    }
    return found;
}

uint32_t tok_encode(const struct tok *tok, const char *data, size_t size, const struct tok_range *trusted,
                    uint32_t trusted_count, uint32_t *ids, uint32_t ids_max)
{
    const uint8_t *text = (const uint8_t *)data;
    struct encoder e = {.tok = tok, .ids = ids, .ids_max = ids_max};
    check(size <= tok->text_bytes_max);
    if (tok->blob->adds_bos && ids_max > 0)
        e.ids[e.count++] = tok->blob->bos;
    size_t from = 0;
    uint32_t range = 0;
    for (size_t at = 0; at < size && e.count < ids_max;) {
        while (range < trusted_count && trusted[range].first + trusted[range].size <= at)
            range++;
        bool is_trusted = range < trusted_count && trusted[range].first <= at;
        size_t trusted_size = is_trusted ? trusted[range].first + trusted[range].size - at : 0;
        uint32_t length, special = special_at(tok->blob, text + at, size - at, trusted_size, &length);
        if (special == TOK_NONE) {
            at++;
            continue;
        }
        encode_text(&e, text + from, at - from);
        if (e.count < ids_max)
            e.ids[e.count++] = special;
        at += length;
        from = at;
    }
    if (e.count < ids_max)
        encode_text(&e, text + from, size - from);
    return e.count;
}

/* ---- looking up ---- */

size_t tok_blob_bytes(const struct tok *tok)
{
    return tok->blob->bytes;
}

uint32_t tok_vocab_size(const struct tok *tok)
{
    return tok->blob->token_count;
}

size_t tok_piece(const struct tok *tok, uint32_t id, uint8_t *bytes)
{
    uint32_t size;
    check(id < tok->blob->token_count);
    const uint8_t *piece = piece_of(tok->blob, id, &size);
    check(size <= TOK_PIECE_MAX);
    memcpy(bytes, piece, size);
    return size;
}

bool tok_is_control(const struct tok *tok, uint32_t id)
{
    check(id < tok->blob->token_count);
    return type_of(tok->blob, id) == TOK_CONTROL;
}

uint32_t tok_end_tokens(const struct tok *tok, uint32_t ids[TOK_END_TOKENS_MAX])
{
    memcpy(ids, tok->blob->ends, tok->blob->end_count * sizeof(*ids));
    return tok->blob->end_count;
}

uint32_t tok_begin_token(const struct tok *tok)
{
    return tok->blob->bos;
}

uint32_t tok_end_token(const struct tok *tok)
{
    return tok->blob->eos;
}

struct tok_text tok_chat_template(const struct tok *tok)
{
    return (struct tok_text){at_offset(tok->blob, tok->blob->chat_template), tok->blob->template_size};
}

/* ---- decoding ---- */

static size_t put_replacement(char *text)
{
    memcpy(text, "\xef\xbf\xbd", 3);
    return 3;
}

size_t tok_decoder_push(struct tok_decoder *decoder, const struct tok *tok, uint32_t id, char *text)
{
    uint8_t bytes[4 + TOK_PIECE_MAX];
    if (tok_is_control(tok, id))
        return 0;
    memcpy(bytes, decoder->held, decoder->held_size);
    size_t size = decoder->held_size + tok_piece(tok, id, bytes + decoder->held_size), at = 0, out = 0;
    decoder->held_size = 0;
    while (at < size) {
        uint32_t code, length;
        int needs_more;
        length = unicode_decode(bytes + at, size - at, &code, &needs_more);
        if (length > 0) {
            memcpy(text + out, bytes + at, length);
            out += length;
            at += length;
        } else if (needs_more) {
            decoder->held_size = (uint32_t)(size - at);
            memcpy(decoder->held, bytes + at, decoder->held_size);
            break;
        } else {
            out += put_replacement(text + out);
            at += unicode_cut_off_size(bytes + at, size - at);
        }
    }
    return out;
}

size_t tok_decoder_end(struct tok_decoder *decoder, char *text)
{
    size_t out = decoder->held_size > 0 ? put_replacement(text) : 0; /* one character, cut off */
    decoder->held_size = 0;
    return out;
}
