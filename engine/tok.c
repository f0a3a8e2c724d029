#include "engine/tok.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tok_tables.h"
#include "engine/unicode.h"

/* ---- attaching ---- */

static bool lies_inside(const struct tok_blob *blob, uint64_t offset, uint64_t bytes)
{
    return offset <= blob->pieces.bytes && bytes <= blob->pieces.bytes - offset;
}

int tok_attach(struct tok *tok, const void *memory, size_t bytes, size_t text_bytes_max, struct err *err)
{
    const struct tok_blob *blob = memory;
    bool is_sound = bytes >= sizeof(*blob) && pieces_are_sound(&blob->pieces, bytes) && blob->merge_slots > 0 &&
                    (blob->merge_slots & (blob->merge_slots - 1)) == 0 &&
                    lies_inside(blob, blob->merges, (uint64_t)blob->merge_slots * sizeof(struct merge)) &&
                    blob->text_slots > 0 && (blob->text_slots & (blob->text_slots - 1)) == 0 &&
                    lies_inside(blob, blob->texts, (uint64_t)blob->text_slots * sizeof(struct tok_text_slot)) &&
                    lies_inside(blob, blob->ranks, blob->kind == TOK_SPM ? blob->pieces.count * 4ull : 0) &&
                    lies_inside(blob, blob->specials, (uint64_t)blob->special_count * sizeof(uint32_t)) &&
                    lies_inside(blob, blob->chat_template, blob->template_size) &&
                    blob->end_count <= TOK_END_TOKENS_MAX;
    if (!is_sound)
        return err_set(err, -EPROTO, "vocabulary: the tables are not this build's; mixed builds?");
    *tok = (struct tok){.blob = blob, .text_bytes_max = text_bytes_max};
    /* scratch, written before it is read: few texts are as long */
    tok->symbols = base_reserve(64, (text_bytes_max + 2) * sizeof(*tok->symbols));
    /* n symbols give n - 1 candidates; each of at most n - 1 merges uses one up and gives at most two */
    tok->heap = base_reserve(64, (2 * text_bytes_max + 3) * sizeof(*tok->heap));
    if (blob->kind == TOK_SPM)
        tok->copy = base_alloc(text_bytes_max + 1);
    return 0;
}

void tok_detach(struct tok *tok)
{
    free(tok->symbols);
    free(tok->heap);
    free(tok->copy);
    *tok = (struct tok){0};
}

/* ---- encoding ---- */

uint32_t tok_find_text(const struct tok_blob *blob, const uint8_t *bytes, size_t size)
{
    const struct tok_text_slot *slots = tok_at(blob, blob->texts);
    uint32_t hash = tok_hash_bytes(bytes, size), at = hash & (blob->text_slots - 1);
    for (; slots[at].next_id != 0; at = (at + 1) & (blob->text_slots - 1)) {
        uint32_t other_size;
        if (slots[at].hash != hash)
            continue;
        const uint8_t *other = piece_bytes(&blob->pieces, slots[at].next_id - 1, &other_size);
        if (other_size == size && memcmp(other, bytes, size) == 0)
            return slots[at].next_id - 1;
    }
    return TOK_NONE;
}

void tok_heap_push(uint64_t *heap, uint32_t *count, uint64_t candidate)
{
    uint32_t at = (*count)++;
    for (; at > 0 && candidate < heap[(at - 1) / 2]; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
}

uint64_t tok_heap_pop(uint64_t *heap, uint32_t *count)
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

void tok_put(struct encoder *e, uint32_t id)
{
    if (id != TOK_NONE && e->count < e->ids_max)
        e->ids[e->count++] = id;
}

/* ---- byte pairs ---- */

static const struct merge *find_merge(const struct tok_blob *blob, uint32_t left, uint32_t right)
{
    const struct merge *merges = tok_at(blob, blob->merges);
    uint32_t slot = tok_hash_pair(left, right) & (blob->merge_slots - 1);
    while (merges[slot].left != TOK_NONE) {
        if (merges[slot].left == left && merges[slot].right == right)
            return &merges[slot];
        slot = (slot + 1) & (blob->merge_slots - 1);
    }
    return NULL;
}

/* The merge of a symbol and its next one; NULL when there is none. */
static const struct merge *merge_at(const struct tok *tok, uint32_t left)
{
    const struct tok_symbol *symbols = tok->symbols;
    uint32_t right = symbols[left].next;
    return right != TOK_NONE ? find_merge(tok->blob, symbols[left].id, symbols[right].id) : NULL;
}

/* A candidate is the merge's rank (upper half) and the index of its left symbol (lower half). */
static void push_candidate(const struct tok *tok, uint32_t *count, uint32_t left)
{
    const struct merge *merge = merge_at(tok, left);
    if (merge != NULL)
        tok_heap_push(tok->heap, count, (uint64_t)merge->rank << 32 | left);
}

/* One piece of the pre-tokenizer: its bytes, then the best merge again and again, the leftmost among equals. Bytes that
 * the vocabulary has no token for are left out first, as in the library that models are trained with (tokenizers). */
static void encode_piece(struct encoder *e, const uint8_t *text, size_t size)
{
    const struct tok *tok = e->tok;
    struct tok_symbol *symbols = tok->symbols;
    uint32_t candidates = 0;
    check(size <= tok->text_bytes_max);
    uint32_t count = 0, whole = tok->blob->whole_pieces ? tok_find_text(tok->blob, text, size) : TOK_NONE;
    if (whole != TOK_NONE) {
        tok_put(e, whole);
        return;
    }
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
        uint64_t best = tok_heap_pop(tok->heap, &candidates);
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
        tok_put(e, symbols[i].id);
}

/* Text without special tokens. */
static void encode_text(struct encoder *e, const uint8_t *text, size_t size)
{
    const struct tok_blob *blob = e->tok->blob;
    if (blob->kind == TOK_SPM && size > 0)
        tok_spm_encode(e, text, size);
    while (blob->kind == TOK_BPE && size > 0 && e->count < e->ids_max) {
        size_t piece = pretok_piece((enum pretok)blob->pre, text, size);
        encode_piece(e, text, piece);
        text += piece;
        size -= piece;
    }
}

/* First of the specials [low, high), which are equal before `depth` and longer, whose byte there is at least `byte`. */
static uint32_t first_special(const struct tok_blob *blob, uint32_t low, uint32_t high, uint32_t depth, uint32_t byte)
{
    const uint32_t *specials = tok_at(blob, blob->specials);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, size;
        if (piece_bytes(&blob->pieces, specials[middle], &size)[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest special token at text, TOK_NONE if there is none. User-defined ones anywhere, others only where trusted. Each
 * byte narrows the sorted specials down to those that go on with it, so that time hardly depends on how many there are. */
static uint32_t special_at(const struct tok_blob *blob, const uint8_t *text, size_t size, size_t trusted_size,
                           uint32_t *length)
{
    uint32_t found = TOK_NONE, low = 0, high = blob->special_count;
    *length = 0;
    if (!blob->special_first[text[0]])
        return TOK_NONE;
    const uint32_t *specials = tok_at(blob, blob->specials);
    for (uint32_t depth = 0; depth < size; depth++) {
        low = first_special(blob, low, high, depth, text[depth]);
        high = first_special(blob, low, high, depth, text[depth] + 1u);
        for (uint32_t piece_size; low < high; low++) { /* those that end here come first */
            piece_bytes(&blob->pieces, specials[low], &piece_size);
            if (piece_size != depth + 1)
                break;
            bool may_be = piece_type(&blob->pieces, specials[low]) == PIECE_USER_DEFINED || piece_size <= trusted_size;
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
        tok_put(&e, tok->blob->bos);
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
        tok_put(&e, special);
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
    return tok->blob->pieces.bytes;
}

uint32_t tok_vocab_size(const struct tok *tok)
{
    return tok->blob->pieces.count;
}

bool tok_has_byte(const struct tok *tok, uint8_t byte)
{
    return tok->blob->byte_tokens[byte] != TOK_NONE;
}

size_t tok_piece(const struct tok *tok, uint32_t id, uint8_t *bytes)
{
    uint32_t size;
    check(id < tok->blob->pieces.count);
    const uint8_t *piece = piece_bytes(&tok->blob->pieces, id, &size);
    check(size <= TOK_PIECE_MAX);
    memcpy(bytes, piece, size);
    return size;
}

bool tok_is_control(const struct tok *tok, uint32_t id)
{
    check(id < tok->blob->pieces.count);
    return piece_is_control(&tok->blob->pieces, id);
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

bool tok_adds_begin(const struct tok *tok)
{
    return tok->blob->adds_bos != 0;
}

uint32_t tok_end_token(const struct tok *tok)
{
    return tok->blob->eos;
}

struct tok_text tok_chat_template(const struct tok *tok)
{
    return (struct tok_text){tok_at(tok->blob, tok->blob->chat_template), tok->blob->template_size};
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
    size_t size = decoder->held_size + tok_piece(tok, id, bytes + decoder->held_size), out = 0;
    size_t at = decoder->is_text_start && tok->blob->adds_space && size > 0 && bytes[0] == ' ';
    decoder->held_size = 0;
    decoder->is_text_start = false;
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
