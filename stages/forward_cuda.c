/* The forward pass on a device, top to bottom: a step is uploaded and cut into tiles of tokens; each goes through embedding,
 * layers and, where its tokens ask for logits, head and judgement. All of it is put into one stream, and only results are
 * waited for. */
#include "stages/forward_cuda.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"

#define HALF_BYTES sizeof(uint16_t)

/* ---- start ---- */

int forward_cuda_supports(const struct model_desc *desc, struct err *err)
{
    const char *what = NULL;
    if (desc->head_dim > CUDA_HEAD_FLOATS_MAX)
        what = "heads so wide";
    else if (desc->width % 16 != 0 || desc->feed_forward % 16 != 0)
        what = "widths that are no multiple of 16";
    return what == NULL ? 0 : err_set(err, -ENOTSUP, "the kernels for devices do not compute %s", what);
}

/* Memory on the device; an address there, which nothing here reads or writes. */
static void *take(struct forward_cuda *f, size_t bytes)
{
    return (void *)(uintptr_t)cuda_alloc(f->cuda, bytes);
}

static cuda_address at(const void *on_device)
{
    return (cuda_address)(uintptr_t)on_device;
}

static void upload_angles(struct forward_cuda *f)
{
    const struct model_desc *desc = f->desc;
    size_t floats = (size_t)f->limits.common.positions_max * desc->head_dim;
    float *table = base_alloc(floats * sizeof(float));
    for (uint32_t i = 0; i < f->slice->layer_count; i++) {
        uint32_t rope = desc->layer[f->slice->first_layer + i].rope;
        if (f->cos_sin[rope] != NULL)
            continue;
        f->cos_sin[rope] = take(f, floats * sizeof(float));
        model_rope_angles(&desc->ropes[rope], desc->head_dim, table, 0, f->limits.common.positions_max);
        cuda_upload(f->cuda, at(f->cos_sin[rope]), table, floats * sizeof(float));
        cuda_wait(f->cuda);
    }
    free(table);
}

static uint32_t parts_of(uint32_t positions)
{
    return (uint32_t)div_up_u64(positions, CUDA_SPLIT);
}

int forward_cuda_init(struct forward_cuda *forward, struct cuda *cuda, const struct kernels *kernels,
                      const struct model_desc *desc, const struct model_slice *slice,
                      const struct forward_cuda_limits *limits, cuda_address kv, struct err *err)
{
    struct forward_cuda *f = forward;
    size_t q_width = desc->heads * desc->head_dim, rows = CUDA_ROWS;
    *f = (struct forward_cuda){
        .cuda = cuda,
        .desc = desc,
        .slice = slice,
        .limits = *limits,
        .kv = (uint8_t *)(uintptr_t)kv,
        .layer_block_bytes = kv_block_bytes(KV_F16, desc->kv_heads, desc->head_dim, limits->common.block_size),
    };
    f->rows = take(f, limits->step_tokens_max * sizeof(struct cuda_row));
    f->tokens = take(f, limits->step_tokens_max * sizeof(uint32_t));
    f->blocks = take(f, limits->step_blocks_max * sizeof(uint32_t));
    f->x = take(f, rows * desc->width * sizeof(float));
    f->normed = take(f, rows * desc->width * HALF_BYTES);
    f->qkv = take(f, rows * (q_width + 2 * desc->kv_heads * desc->head_dim) * sizeof(float));
    f->parts =
        take(f, rows * desc->heads * parts_of(limits->common.positions_max) * (2 + desc->head_dim) * sizeof(float));
    f->mixed = take(f, rows * q_width * HALF_BYTES);
    f->gate_up = take(f, rows * 2 * desc->feed_forward * sizeof(float));
    f->inner = take(f, rows * desc->feed_forward * HALF_BYTES);
    f->branch = take(f, rows * desc->width * sizeof(float));
    f->sheet = take(f, sizeof(*f->sheet));
    f->host_sheet = cuda_alloc_host(cuda, sizeof(*f->host_sheet));
    f->host_rows = cuda_alloc_host(cuda, limits->step_tokens_max * sizeof(*f->host_rows));
    upload_angles(f);
    if (slice->is_last) {
        f->drawn = take(f, rows * sizeof(uint32_t));
        f->logits = take(f, rows * desc->vocab_size * sizeof(float));
        f->host_drawn = cuda_alloc_host(cuda, rows * sizeof(uint32_t));
        f->host_logits = cuda_alloc_host(cuda, align_up_u64(rows * desc->vocab_size * sizeof(float), KERNEL_ALIGN));
        f->judgings = base_alloc(rows * sizeof(*f->judgings));
        judge_init(&f->judge, kernels, desc->vocab_size);
    }
    int ret = cuda_wait(cuda);
    return ret == 0 ? 0 : err_set(err, ret, "%s", cuda->error);
}

void forward_cuda_free(struct forward_cuda *forward)
{
    for (uint32_t i = 0; i < FORWARD_CUDA_GRAPHS; i++)
        cuda_free_graph(forward->cuda, forward->graphs[i]);
    cuda_free_host(forward->cuda, forward->host_rows);
    cuda_free_host(forward->cuda, forward->host_sheet);
    if (forward->slice->is_last) {
        cuda_free_host(forward->cuda, forward->host_drawn);
        cuda_free_host(forward->cuda, forward->host_logits);
        free(forward->judgings);
        judge_free(&forward->judge);
    }
    *forward = (struct forward_cuda){0};
}

/* ---- a tile ---- */

#define LAUNCH(f, kernel, x, y, z, ...)                                                                                \
    cuda_launch((f)->cuda, CUDA_KERNEL_##kernel, x, y, z, &(const struct cuda_##kernel##_args){__VA_ARGS__})

/* x += branch, where there is one; normed = x, normed, of all rows or of those that index names. */
static void norm(struct forward_cuda *f, const float *branch, const float *gain, const uint32_t *index,
                 struct forward_cuda_span rows)
{
    LAUNCH(f, norm, rows.count, 1, 1, .out = f->normed, .x = f->x, .branch = branch, .gain = gain, .index = index,
           .width = f->desc->width, .eps = f->desc->norm_eps, .count = rows.there);
}

/* x(rows, heads, width) normed in place, where there is a gain. */
static void renorm(struct forward_cuda *f, float *x, const float *gain, uint32_t width, uint32_t stride, uint32_t heads)
{
    if (gain != NULL)
        LAUNCH(f, renorm, f->tile.rows.count, heads, 1, .x = x, .gain = gain, .width = width, .stride = stride,
               .eps = f->desc->norm_eps, .count = f->tile.rows.there);
}

static void multiply_by(struct forward_cuda *f, float *out, uint32_t stride, const struct matrix *w, const float *bias,
                        const void *x, struct forward_cuda_span rows)
{
    LAUNCH(f, gemm, (uint32_t)div_up_u64(w->n, KERNEL_PANEL), (uint32_t)div_up_u64(rows.count, CUDA_ROWS), 1,
           .w = cuda_matrix_of(w), .out = out, .x = x, .bias = bias, .rows = rows.count, .out_stride = stride,
           .count = rows.there);
}

/* out(rows, product->columns) = x(rows, k) * weights + bias. */
static void multiply(struct forward_cuda *f, float *out, const struct model_product *product, const void *x)
{
    for (uint32_t i = 0; i < product->part_count; i++)
        multiply_by(f, out + product->column[i], product->columns, &product->parts[i],
                    product->bias != NULL ? product->bias + product->column[i] : NULL, x, f->tile.rows);
}

/* How many blocks share the parts of one row's and head's attention, of so many in all: as many as a device has use for. */
static uint32_t blocks_for(uint32_t all)
{
    return (uint32_t)div_up_u64(CUDA_ATTEND_BLOCKS, all);
}

/* branch = attention over what x, to which branch is added first, makes of the tile; their K and V are stored before. */
static void attention_branch(struct forward_cuda *f, uint32_t index, const float *branch)
{
    const struct forward_cuda_tile *tile = &f->tile;
    const struct model_desc *desc = f->desc;
    const struct model_layer *layer = &f->slice->layers[index];
    const struct model_layer_desc *described = &desc->layer[f->slice->first_layer + index];
    const struct cuda_row *rows = f->rows + tile->first;
    const uint32_t q_width = desc->heads * desc->head_dim, count = tile->rows.count, *there = tile->rows.there;
    const struct cuda_kv kv = {.layer = f->kv + index * f->layer_block_bytes,
                               .blocks = f->blocks,
                               .block_stride = f->slice->layer_count * f->layer_block_bytes,
                               .block_size = f->limits.common.block_size,
                               .heads = desc->heads,
                               .kv_heads = desc->kv_heads,
                               .head_dim = desc->head_dim};
    const uint32_t parts_max = parts_of(f->limits.common.positions_max);
    norm(f, branch, layer->attn_norm, NULL, tile->rows);
    multiply(f, f->qkv, &layer->qkv, f->normed);
    renorm(f, f->qkv, layer->q_norm, desc->head_dim, layer->qkv.columns, desc->heads);
    renorm(f, f->qkv + q_width, layer->k_norm, desc->head_dim, layer->qkv.columns, desc->kv_heads);
    LAUNCH(f, rope, count, 1, 1, .kv = kv, .qkv = f->qkv, .cos_sin = f->cos_sin[described->rope], .rows = rows,
           .count = there);
    LAUNCH(f, attend, count, desc->heads, (uint32_t)min_u64(tile->parts, blocks_for(desc->heads * count)), .kv = kv,
           .qkv = f->qkv, .rows = rows, .parts = f->parts, .scale = desc->score_scale, .window = described->window,
           .parts_max = parts_max, .count = there);
    LAUNCH(f, combine, count, desc->heads, 1, .out = f->mixed, .rows = rows, .parts = f->parts, .heads = desc->heads,
           .head_dim = desc->head_dim, .window = described->window, .parts_max = parts_max, .count = there);
    multiply(f, f->branch, &layer->out, f->mixed);
    renorm(f, f->branch, layer->attn_post_norm, desc->width, desc->width, 1);
}

/* branch = down(f(gate) * up) of x + branch, f the model's gate. */
static void feed_forward_branch(struct forward_cuda *f, uint32_t index)
{
    const struct forward_cuda_tile *tile = &f->tile;
    const struct model_layer *layer = &f->slice->layers[index];
    norm(f, f->branch, layer->ffn_norm, NULL, tile->rows);
    multiply(f, f->gate_up, &layer->gate_up, f->normed);
    LAUNCH(f, gate, tile->rows.count, 1, 1, .out = f->inner, .in = f->gate_up, .width = f->desc->feed_forward,
           .is_gelu = f->desc->gate == MODEL_GELU, .count = tile->rows.there);
    multiply(f, f->branch, &layer->down, f->inner);
    renorm(f, f->branch, layer->ffn_post_norm, f->desc->width, f->desc->width, 1);
}

/* ---- head ---- */

/* The tile's tokens whose logits are wanted, as indices in it and as what they are wanted for: those that the device can draw
 * alone, or the others. */
static void gather(struct forward_cuda *f, bool only_drawn)
{
    const struct forward_step *step = f->step;
    struct forward_cuda_tile *tile = &f->tile;
    for (uint32_t r = 0; r < step->row_count; r++) {
        const struct row_shm *row = &step->rows[r];
        uint32_t first = judge_first(row);
        for (uint32_t i = 0; i < row->result_count; i++) {
            uint32_t token = first + i, index = token - row->token_first;
            if (token < tile->first || token >= tile->first + tile->count || judge_only_draws(row, index) != only_drawn)
                continue;
            f->host_sheet->index[tile->wanted] = token - tile->first;
            f->host_sheet->params[tile->wanted] = only_drawn ? judge_params(row, index) : (struct sample_params){0};
            f->judgings[tile->wanted++] =
                (struct forward_wanted){.row = r, .token = token, .result = row->result_first + i};
        }
    }
}

static void gather_asked(struct forward_cuda *f)
{
    struct forward_cuda_tile *tile = &f->tile;
    gather(f, false);
    tile->judged = tile->wanted;
    gather(f, true);
    tile->heads.count = tile->wanted;
}

/* Logits of the tile's tokens that ask for them, and a token from each. */
static void put_head(struct forward_cuda *f)
{
    const struct forward_cuda_span heads = f->tile.heads;
    const uint32_t vocab_size = f->desc->vocab_size;
    norm(f, f->branch, f->slice->output_norm, f->sheet->index, heads);
    multiply_by(f, f->logits, vocab_size, &f->slice->head, NULL, f->normed, heads);
    LAUNCH(f, draw, heads.count, 1, 1, .drawn = f->drawn, .logits = f->logits, .params = f->sheet->params,
           .vocab_size = vocab_size, .count = heads.there);
}

/* To the host: logits of those that are judged there, of the others their tokens. */
static void give_results(struct forward_cuda *f)
{
    const struct forward_cuda_tile *tile = &f->tile;
    if (tile->judged > 0)
        cuda_download(f->cuda, f->host_logits, at(f->logits),
                      (size_t)tile->judged * f->desc->vocab_size * sizeof(float));
    if (tile->wanted > tile->judged)
        cuda_download(f->cuda, f->host_drawn, at(f->drawn), tile->wanted * sizeof(uint32_t));
}

/* Their results. */
static void judge_tile(struct forward_cuda *f, struct token_shm *results, struct top_shm *tops)
{
    const struct forward_cuda_tile *tile = &f->tile;
    if (tile->wanted == 0 || cuda_wait(f->cuda) != 0)
        return;
    for (uint32_t i = 0; i < tile->judged; i++)
        results[f->judgings[i].result] =
            judge_token(&f->judge, f->step, &f->judgings[i], f->host_logits + (size_t)i * f->desc->vocab_size,
                        tops + (size_t)f->judgings[i].result * LOGPROBS_MAX);
    for (uint32_t i = tile->judged; i < tile->wanted; i++)
        results[f->judgings[i].result] = judge_drawn(f->host_drawn[i]);
    f->drawn_count += tile->wanted - tile->judged;
}

/* ---- the pass ---- */

/* Tokens, positions and block tables of the whole step. */
static void upload_step(struct forward_cuda *f)
{
    const struct forward_step *step = f->step;
    uint32_t block_count = 0;
    for (uint32_t r = 0; r < step->row_count; r++) {
        const struct row_shm *row = &step->rows[r];
        for (uint32_t i = 0; i < row->token_count; i++)
            f->host_rows[row->token_first + i] =
                (struct cuda_row){.position = row->first_pos + i, .block_first = row->block_first};
        block_count = (uint32_t)max_u64(block_count, row->block_first + row->block_count);
    }
    check(step->token_count <= f->limits.step_tokens_max && block_count <= f->limits.step_blocks_max);
    cuda_upload(f->cuda, at(f->rows), f->host_rows, step->token_count * sizeof(struct cuda_row));
    cuda_upload(f->cuda, at(f->blocks), step->blocks, block_count * sizeof(uint32_t));
    if (f->slice->is_first)
        cuda_upload(f->cuda, at(f->tokens), step->tokens, step->token_count * sizeof(uint32_t));
}

/* The residual of the tile's tokens, where another stage has made it. A copy: the input stays as it is, for whoever computes
 * the step again. */
static void take_input(struct forward_cuda *f)
{
    const struct forward_cuda_tile *tile = &f->tile;
    const size_t first = tile->first * f->desc->width, bytes = tile->count * f->desc->width * sizeof(float);
    if (f->in.host != NULL)
        cuda_upload(f->cuda, at(f->x), f->in.host + first, bytes);
    else if (f->in.floats != 0)
        cuda_copy(f->cuda, at(f->x), f->in.floats + first * sizeof(float), bytes);
}

/* Whoever waits for the step in a device's slot goes on. */
static void write_word(struct forward_cuda *f)
{
    if (f->out.word != 0)
        cuda_write_word(f->cuda, f->out.word, f->out.value);
}

/* What the slice makes of it, and, behind the last tile, the word that says that all is there. */
static void give_output(struct forward_cuda *f)
{
    const struct forward_cuda_tile *tile = &f->tile;
    const size_t width = f->desc->width, first = tile->first * width;
    float *out = f->out.host != NULL ? f->x : (float *)(uintptr_t)f->out.floats + first;
    LAUNCH(f, add, tile->count, 1, 1, .out = out, .x = f->x, .branch = f->branch, .width = (uint32_t)width);
    if (f->out.host != NULL)
        cuda_download(f->cuda, f->out.host + first, at(f->x), tile->count * width * sizeof(float));
    else if (tile->first + tile->count == f->step->token_count)
        write_word(f);
}

/* What of a tile is the same for every step but for what lies in memory. */
static void put_kernels(struct forward_cuda *f)
{
    const struct forward_cuda_tile *tile = &f->tile;
    if (f->slice->is_first)
        LAUNCH(f, embed, tile->rows.count, 1, 1, .embedding = cuda_matrix_of(&f->slice->embedding), .x = f->x,
               .tokens = f->tokens + tile->first, .scale = f->desc->embedding_scale, .count = tile->rows.there);
    for (uint32_t index = 0; index < f->slice->layer_count; index++) {
        attention_branch(f, index, index > 0 ? f->branch : NULL);
        feed_forward_branch(f, index);
    }
    if (tile->heads.count > 0)
        put_head(f);
}

bool forward_cuda_record(struct forward_cuda *forward)
{
    struct forward_cuda *f = forward;
    for (uint32_t i = 0; i < FORWARD_CUDA_GRAPHS && cuda_record_begin(f->cuda); i++) {
        f->tile = (struct forward_cuda_tile){.rows = {1u << i, &f->sheet->count},
                                             .heads = {f->slice->is_last ? 1u << i : 0, &f->sheet->wanted},
                                             .parts = parts_of(f->limits.common.positions_max)};
        put_kernels(f);
        f->graphs[i] = cuda_record_end(f->cuda);
    }
    return f->graphs[0] != NULL;
}

/* What was recorded of a step of one tile; NULL: nothing. */
static struct cuda_graph *graph_for(const struct forward_cuda *f)
{
    uint32_t number = 0;
    while (1u << number < f->tile.count)
        number++;
    return f->step->token_count <= CUDA_ROWS ? f->graphs[number] : NULL;
}

static void put_tile(struct forward_cuda *f, uint32_t first)
{
    struct forward_cuda_tile *tile = &f->tile;
    const uint32_t count = (uint32_t)min_u64(f->step->token_count - first, CUDA_ROWS);
    *tile = (struct forward_cuda_tile){.first = first, .count = count, .rows = {count, NULL}};
    for (uint32_t i = first; i < first + count; i++)
        tile->parts = (uint32_t)max_u64(tile->parts, parts_of(f->host_rows[i].position + 1));
    if (f->slice->is_last)
        gather_asked(f);
    struct cuda_graph *graph = graph_for(f);
    if (graph != NULL || tile->wanted > 0) {
        f->host_sheet->count = count;
        f->host_sheet->wanted = tile->wanted;
        cuda_upload(f->cuda, at(f->sheet), f->host_sheet, sizeof(*f->sheet));
    }
    take_input(f);
    f->is_replayed = graph != NULL;
    if (graph != NULL)
        cuda_replay(f->cuda, graph);
    else
        put_kernels(f);
    if (f->slice->is_last)
        give_results(f);
    else
        give_output(f);
}

void forward_cuda_begin(struct forward_cuda *forward, const struct forward_step *step,
                        const struct forward_cuda_place *in, const struct forward_cuda_place *out)
{
    struct forward_cuda *f = forward;
    check(f->slice->is_first == (in == NULL));
    check(f->slice->is_last == (out == NULL));
    f->step = step;
    f->drawn_count = 0;
    f->in = in != NULL ? *in : (struct forward_cuda_place){0};
    f->out = out != NULL ? *out : (struct forward_cuda_place){0};
    upload_step(f);
    if (in != NULL && in->host == NULL)
        cuda_wait_word(f->cuda, in->word, in->value);
    f->tile = (struct forward_cuda_tile){0};
    if (step->token_count > 0)
        put_tile(f, 0);
    else
        write_word(f);
}

int forward_cuda_finish(struct forward_cuda *forward, struct token_shm *results, struct top_shm *tops)
{
    struct forward_cuda *f = forward;
    judge_tile(f, results, tops);
    for (uint32_t first = CUDA_ROWS; first < f->step->token_count && f->cuda->failed == 0; first += CUDA_ROWS) {
        put_tile(f, first);
        judge_tile(f, results, tops);
    }
    return cuda_wait(f->cuda);
}

int forward_cuda_pass(struct forward_cuda *forward, const struct forward_cuda_place *out)
{
    forward->out = out != NULL ? *out : (struct forward_cuda_place){0};
    write_word(forward);
    return cuda_wait(forward->cuda);
}

void forward_cuda_release(struct forward_cuda *forward)
{
    if (forward->in.word != 0)
        cuda_write_word_aside(forward->cuda, forward->in.word, forward->in.value);
    cuda_wait(forward->cuda);
}
