/* The forward pass, top to bottom: forward_run() cuts the step into tiles of tokens; each tile goes through embedding,
 * layers and, where its tokens ask for logits, head and sampling. */
#include "stages/forward.h"

#include <stdlib.h>
#include <string.h>

#include "ipc/base.h"
#include "ipc/clock.h"

/* ---- start ---- */

size_t forward_block_stride(const struct model_desc *desc, uint32_t layer_count, const struct forward_limits *limits)
{
    return layer_count * kv_block_bytes(limits->kv_type, desc->kv_heads, desc->head_dim, limits->block_size);
}

static float *floats(size_t rows, size_t width)
{
    return base_alloc_aligned(KERNEL_ALIGN, align_up_u64(rows * width * sizeof(float), KERNEL_ALIGN));
}

static uint32_t widest_input(const struct model_desc *desc)
{
    return (uint32_t)max_u64(max_u64(desc->width, desc->heads * desc->head_dim), desc->feed_forward);
}

static void open_desk(struct forward *forward, uint32_t part, uint32_t rows)
{
    const struct model_desc *desc = forward->desc;
    uint32_t widest = widest_input(desc), groups = widest / KERNEL_GROUP + 1;
    forward->desks[part] = (struct forward_desk){
        .residual = part > 0 ? floats(1, desc->width) : NULL,
        .normed = floats(rows, desc->width),
        .inner = floats(min_u64(rows, FORWARD_TILE), desc->feed_forward),
        .quant = base_alloc_aligned(KERNEL_ALIGN, align_up_u64((size_t)rows * widest, KERNEL_ALIGN)),
        .quant_scale = floats(rows, groups),
        .quant_offset = floats(rows, groups),
        .quant_total = floats(rows, groups),
        .quant_start = (int32_t *)(void *)floats(rows, groups),
        .quant_half = (int32_t *)(void *)floats(rows, groups),
    };
}

static void free_desk(struct forward_desk *desk)
{
    void *const taken[] = {desk->residual,     desk->normed,      desk->inner,       desk->quant,     desk->quant_scale,
                           desk->quant_offset, desk->quant_total, desk->quant_start, desk->quant_half};
    for (uint32_t i = 0; i < ARRAY_COUNT(taken); i++)
        free(taken[i]);
}

void forward_init(struct forward *forward, const struct kernels *kernels, struct team *team,
                  const struct model_desc *desc, const struct model_slice *slice, const struct forward_limits *limits,
                  uint8_t *kv)
{
    uint32_t q_width = desc->heads * desc->head_dim;
    *forward = (struct forward){
        .kernels = kernels,
        .team = team,
        .own_team = team,
        .desc = desc,
        .slice = slice,
        .limits = *limits,
        .kv = kv,
        .layer_block_bytes = forward_block_stride(desc, 1, limits),
        .qkv = floats(FORWARD_TILE, q_width + 2 * desc->kv_heads * desc->head_dim),
        .mixed = floats(FORWARD_TILE, q_width),
        .gate_up = floats(FORWARD_TILE, 2 * desc->feed_forward),
        .branch = floats(FORWARD_TILE, desc->width),
    };
    for (uint32_t part = 0; part < team_size(team); part++) {
        forward->attention_scratch[part] = floats(attention_scratch_floats(limits->positions_max, desc->heads), 1);
        open_desk(forward, part, part > 0 ? 1 : (uint32_t)max_u64(FORWARD_TILE, FORWARD_HEAD_ROWS));
    }
    for (uint32_t i = 0; i < slice->layer_count; i++) {
        uint32_t rope = desc->layer[slice->first_layer + i].rope;
        if (forward->cos_sin[rope] == NULL)
            forward->cos_sin[rope] = floats(FORWARD_TILE, desc->head_dim);
    }
    if (slice->is_last) {
        judge_init(&forward->judge, kernels, desc->vocab_size);
        forward->residual = floats(FORWARD_TILE, desc->width);
        forward->wanted_rows = floats(FORWARD_HEAD_ROWS, desc->width);
        forward->logits = floats(FORWARD_HEAD_ROWS, desc->vocab_size);
    }
}

/* Their scratch takes pages as contexts grow: with many stages, there are many of them. */
void forward_lend(struct forward *forward, struct team *team)
{
    size_t floats_each = attention_scratch_floats(forward->limits.positions_max, forward->desc->heads);
    check(forward->lone_team == NULL);
    forward->lone_team = team;
    for (uint32_t part = team_size(forward->own_team); part < team_size(team); part++) {
        forward->attention_scratch[part] = base_reserve(KERNEL_ALIGN, floats_each * sizeof(float));
        open_desk(forward, part, 1);
    }
}

void forward_free(struct forward *forward)
{
    void *const taken[] = {forward->cos_sin[0], forward->cos_sin[1],  forward->residual,
                           forward->qkv,        forward->mixed,       forward->gate_up,
                           forward->branch,     forward->wanted_rows, forward->logits};
    for (uint32_t i = 0; i < ARRAY_COUNT(taken); i++)
        free(taken[i]);
    for (uint32_t part = 0; part < TEAM_MAX; part++) {
        free(forward->attention_scratch[part]);
        free_desk(&forward->desks[part]);
    }
    if (forward->slice->is_last)
        judge_free(&forward->judge);
    *forward = (struct forward){0};
}

/* ---- a member's share ---- */

/* A tile on its way through the layers: what every member of the team is given. */
struct tile {
    struct forward *forward;
    const struct forward_step *step;
    float *x;                          // (count, width): the residuals
    uint32_t first, count;             /* tokens of the step */
    uint32_t first_layer, layer_count; /* of the slice: the part of its way that is next */
};

/* Rows that belong to one member, in every operation that works row by row: what it writes there it alone reads until the
 * next meeting. A row alone belongs to everybody, each at its own desk. */
struct rows {
    uint32_t first, count;
};

static struct rows rows_of(const struct forward *forward, uint32_t part, uint32_t count)
{
    struct rows rows = {0, 1};
    if (count == 1)
        return rows;
    rows.count = team_share(forward->team, part, count, 1, &rows.first);
    return rows;
}

static struct forward_desk *desk_of(struct forward *forward, uint32_t part, uint32_t count)
{
    return &forward->desks[count == 1 ? part : 0];
}

/* Waits for what the others did with their rows; nobody needs it of a row alone. */
static void meet_over_rows(const struct forward *forward, uint32_t count)
{
    if (count > 1)
        team_meet(forward->team);
}

/* out(count, product->columns) = x(count, k) * weights + bias. The member has written its own rows of x; behind the meeting
 * at the end everybody finds all of out. */
static void multiply(struct forward *forward, uint32_t part, float *out, const struct model_product *product,
                     const float *x, uint32_t count)
{
    uint32_t k = product->parts[0].k, groups = k / KERNEL_GROUP;
    struct rows own = rows_of(forward, part, count);
    const struct forward_desk *desk = desk_of(forward, part, count);
    struct activations a = {
        .rows = count,
        .k = k,
        .f32 = x,
        .q = desk->quant,
        .scale = desk->quant_scale,
        .offset = desk->quant_offset,
        .total = desk->quant_total,
        .start = desk->quant_start,
        .half = desk->quant_half,
    };
    if (product->quantized) {
        struct activations mine = {
            .rows = own.count,
            .k = k,
            .f32 = x + (size_t)own.first * k,
            .q = a.q + (size_t)own.first * k,
            .scale = a.scale + (size_t)own.first * groups,
            .offset = a.offset + (size_t)own.first * groups,
            .total = a.total + (size_t)own.first * groups,
            .start = a.start + (size_t)own.first * groups,
            .half = a.half + (size_t)own.first * groups,
        };
        forward->kernels->quantize(&mine);
    }
    meet_over_rows(forward, count);
    for (uint32_t i = 0; i < product->part_count; i++) {
        const struct matrix *whole = &product->parts[i];
        uint32_t first, outputs = team_share(forward->team, part, whole->n, KERNEL_PANEL, &first);
        struct matrix mine = matrix_part(whole, first, outputs);
        uint32_t column = product->column[i] + first;
        forward->kernels->matmul(out + column, product->columns, &mine, &a);
        for (uint32_t row = 0; row < count && product->bias != NULL; row++)
            forward->kernels->add(out + (size_t)row * product->columns + column, product->bias + column, outputs);
    }
    team_meet(forward->team);
}

/* ---- a tile ---- */

/* The rows' parts of tokens first..first + count - 1, and the angles of their positions. row is where to start looking;
 * returns the row in which the tile ends. */
static uint32_t gather_segments(struct forward *forward, const struct forward_step *step, uint32_t row, uint32_t first,
                                uint32_t count)
{
    const struct model_desc *desc = forward->desc;
    forward->segment_count = 0;
    uint32_t end = first + count;
    for (; row < step->row_count; row++) {
        const struct row_shm *r = &step->rows[row];
        uint32_t from = (uint32_t)max_u64(r->token_first, first);
        uint32_t to = (uint32_t)min_u64(r->token_first + r->token_count, end);
        if (from < to) {
            forward->segments[forward->segment_count++] =
                (struct forward_segment){.row = row, .first_token = from, .token_count = to - from};
            uint32_t position = r->first_pos + (from - r->token_first);
            for (uint32_t rope = 0; rope < ARRAY_COUNT(forward->cos_sin); rope++)
                if (forward->cos_sin[rope] != NULL)
                    model_rope_angles(&desc->ropes[rope], desc->head_dim,
                                      forward->cos_sin[rope] + (size_t)(from - first) * desc->head_dim, position,
                                      to - from);
        }
        if (r->token_first + r->token_count >= end)
            break;
    }
    return row;
}

static const struct model_layer_desc *described(const struct forward *forward, uint32_t index)
{
    return &forward->desc->layer[forward->slice->first_layer + index];
}

/* The segment's part that lies in these rows of the tile; 0 tokens when none does. */
static struct forward_segment segment_in(const struct forward_segment *segment, const struct tile *tile,
                                         struct rows rows)
{
    uint32_t first = tile->first + rows.first, end = first + rows.count;
    uint32_t from = (uint32_t)max_u64(segment->first_token, first);
    uint32_t to = (uint32_t)min_u64(segment->first_token + segment->token_count, end);
    return (struct forward_segment){.row = segment->row, .first_token = from, .token_count = to > from ? to - from : 0};
}

static struct attention attention_of(const struct tile *tile, uint32_t index, uint32_t part,
                                     const struct forward_segment *segment)
{
    const struct forward *forward = tile->forward;
    const struct model_desc *desc = forward->desc;
    const struct row_shm *row = &tile->step->rows[segment->row];
    uint32_t q_width = desc->heads * desc->head_dim, in_tile = segment->first_token - tile->first;
    size_t stride = q_width + 2 * desc->kv_heads * desc->head_dim;
    return (struct attention){
        .out = forward->mixed + (size_t)in_tile * q_width, // (token_count, q_width)
        .q = forward->qkv + in_tile * stride,
        .q_stride = stride,
        .rows = segment->token_count,
        .heads = desc->heads,
        .kv_heads = desc->kv_heads,
        .head_dim = desc->head_dim,
        .first_pos = row->first_pos + (segment->first_token - row->token_first),
        .window = described(forward, index)->window,
        .scale = desc->score_scale,
        .blocks = tile->step->blocks + row->block_first,
        .block_size = forward->limits.block_size,
        .kv_type = forward->limits.kv_type,
        .kv = forward->kv + index * forward->layer_block_bytes,
        .block_stride = forward->slice->layer_count * forward->layer_block_bytes,
        .scratch = forward->attention_scratch[part],
    };
}

/* KV heads, with their query heads. */
struct heads {
    uint32_t first, count;
};

/* Those of one row that belong to this member. */
static struct heads heads_of(const struct forward *forward, uint32_t part)
{
    struct heads heads;
    heads.count = team_share(forward->team, part, forward->desc->kv_heads, 1, &heads.first);
    return heads;
}

/* Of one row, leaves these heads. */
static void keep_heads(struct attention *attention, struct heads heads)
{
    uint32_t group = attention->heads / attention->kv_heads;
    check(attention->rows == 1);
    attention->out += (size_t)heads.first * group * attention->head_dim;
    attention->q += (size_t)heads.first * group * attention->head_dim;
    attention->kv += heads.first * kv_block_bytes(attention->kv_type, 1, attention->head_dim, attention->block_size);
    attention->heads = heads.count * group;
    attention->kv_heads = heads.count;
}

/* Attention over the tile's segments, into mixed: each member takes its rows, or of every row its heads where there are fewer
 * rows than members. */
static void attend(const struct tile *tile, uint32_t index, uint32_t part)
{
    const struct forward *forward = tile->forward;
    bool by_heads = tile->count < team_size(forward->team);
    struct rows rows = by_heads ? (struct rows){0, tile->count} : rows_of(forward, part, tile->count);
    for (uint32_t i = 0; i < forward->segment_count; i++) {
        struct forward_segment segment = segment_in(&forward->segments[i], tile, rows);
        if (!by_heads) {
            struct attention attention = attention_of(tile, index, part, &segment);
            if (segment.token_count > 0)
                forward->kernels->attention(&attention);
            continue;
        }
        struct forward_segment token = {.row = segment.row, .token_count = 1};
        for (uint32_t j = 0; j < segment.token_count; j++) {
            token.first_token = segment.first_token + j;
            struct attention attention = attention_of(tile, index, part, &token);
            keep_heads(&attention, heads_of(forward, part));
            if (attention.kv_heads > 0)
                forward->kernels->attention(&attention);
        }
    }
}

/* out = x, normed: both (count, width). out may be x. */
static void norm(const struct forward *forward, float *out, const float *x, const float *gain, uint32_t count)
{
    forward->kernels->rms_norm(out, x, gain, count, forward->desc->width, forward->desc->norm_eps);
}

/* x += branch, normed first where gain is not NULL, into normed; the member's own rows of all of them, of width. */
static void add_branch(const struct forward *forward, float *x, const float *branch, float *normed, const float *gain,
                       uint32_t count)
{
    if (gain != NULL)
        norm(forward, normed, branch, gain, count);
    forward->kernels->add(x, gain != NULL ? normed : branch, (size_t)count * forward->desc->width);
}

/* Norms, where gain is not NULL, and rotates `heads` heads of every row. */
static void turn_heads(const struct forward *forward, float *x, size_t stride, const float *gain, const float *cos_sin,
                       uint32_t count, uint32_t heads)
{
    const struct model_desc *desc = forward->desc;
    for (uint32_t row = 0; row < count && gain != NULL; row++)
        forward->kernels->rms_norm(x + row * stride, x + row * stride, gain, heads, desc->head_dim, desc->norm_eps);
    forward->kernels->rope(x, stride, cos_sin, count, heads, desc->head_dim);
}

/* The residuals that the member works on: a row alone at its own desk, which the first member has in its place. */
static float *residual_of(const struct tile *tile, uint32_t part)
{
    return tile->count == 1 && part > 0 ? desk_of(tile->forward, part, 1)->residual : tile->x;
}

/* Rotates Q and K, and stores K and V: of the member's rows, or of its heads of a row alone. */
static void store_keys(const struct tile *tile, uint32_t index, uint32_t part)
{
    struct forward *forward = tile->forward;
    const struct model_desc *desc = forward->desc;
    const struct model_layer *layer = &forward->slice->layers[index];
    struct rows own = rows_of(forward, part, tile->count);
    struct heads heads = tile->count == 1 ? heads_of(forward, part) : (struct heads){0, desc->kv_heads};
    uint32_t group = desc->heads / desc->kv_heads, q_width = desc->heads * desc->head_dim;
    uint32_t kv_width = desc->kv_heads * desc->head_dim;
    size_t stride = q_width + 2 * kv_width, key_at = q_width + heads.first * desc->head_dim;
    const float *cos_sin = forward->cos_sin[described(forward, index)->rope] + (size_t)own.first * desc->head_dim;
    float *qkv = forward->qkv + own.first * stride;

    turn_heads(forward, qkv + heads.first * group * desc->head_dim, stride, layer->q_norm, cos_sin, own.count,
               heads.count * group);
    turn_heads(forward, qkv + key_at, stride, layer->k_norm, cos_sin, own.count, heads.count);
    for (uint32_t i = 0; i < forward->segment_count; i++) {
        struct forward_segment segment = segment_in(&forward->segments[i], tile, own);
        struct attention attention = attention_of(tile, index, part, &segment);
        const float *keys = attention.q + key_at;
        if (segment.token_count == 0)
            continue;
        if (tile->count == 1)
            keep_heads(&attention, heads);
        forward->kernels->kv_store(&attention, keys, keys + kv_width, stride);
    }
}

/* x += attention over the tile's segments; their K and V are stored first. */
static void attention_branch(const struct tile *tile, uint32_t index, uint32_t part)
{
    struct forward *forward = tile->forward;
    const struct model_layer *layer = &forward->slice->layers[index];
    struct rows own = rows_of(forward, part, tile->count);
    size_t at = (size_t)own.first * forward->desc->width;
    float *x = residual_of(tile, part) + at, *normed = desk_of(forward, part, tile->count)->normed;

    norm(forward, normed + at, x, layer->attn_norm, own.count);
    // (count, (heads + 2 * kv_heads) * head_dim): Q (heads, head_dim) | K (kv_heads, head_dim) | V likewise
    multiply(forward, part, forward->qkv, &layer->qkv, normed, tile->count);
    store_keys(tile, index, part);
    meet_over_rows(forward, tile->count);
    attend(tile, index, part);
    team_meet(forward->team);
    multiply(forward, part, forward->branch, &layer->out, forward->mixed, tile->count); // (count, width)
    add_branch(forward, x, forward->branch + at, normed + at, layer->attn_post_norm, own.count);
}

/* x += down(f(gate) * up), f the model's gate. */
static void feed_forward_branch(const struct tile *tile, uint32_t index, uint32_t part)
{
    struct forward *forward = tile->forward;
    const struct kernels *kernels = forward->kernels;
    const struct model_desc *desc = forward->desc;
    const struct model_layer *layer = &forward->slice->layers[index];
    struct rows own = rows_of(forward, part, tile->count);
    size_t at = (size_t)own.first * desc->width, inner_at = (size_t)own.first * desc->feed_forward;
    const struct forward_desk *desk = desk_of(forward, part, tile->count);
    float *x = residual_of(tile, part) + at;
    void (*gate)(float *, const float *, uint32_t, uint32_t) =
        desc->gate == MODEL_GELU ? kernels->geglu : kernels->swiglu;

    norm(forward, desk->normed + at, x, layer->ffn_norm, own.count);
    multiply(forward, part, forward->gate_up, &layer->gate_up, desk->normed, tile->count); // (count, 2 * feed_forward)
    gate(desk->inner + inner_at, forward->gate_up + 2 * inner_at, own.count, desc->feed_forward);
    multiply(forward, part, forward->branch, &layer->down, desk->inner, tile->count); // (count, width)
    add_branch(forward, x, forward->branch + at, desk->normed + at, layer->ffn_post_norm, own.count);
}

/* One member's part of the layers that are next. */
static void run_layers(void *context, uint32_t part)
{
    const struct tile *tile = context;
    float *x = residual_of(tile, part);
    if (x != tile->x)
        memcpy(x, tile->x, tile->forward->desc->width * sizeof(float));
    for (uint32_t index = tile->first_layer; index < tile->first_layer + tile->layer_count; index++) {
        attention_branch(tile, index, part);
        feed_forward_branch(tile, index, part);
    }
}

static bool is_helped(const struct forward *forward)
{
    return forward->lone_team != NULL && forward->team == forward->lone_team;
}

/* Layers, or the head, begin: what was before counts for neither team. */
static void begin_timing(struct forward *forward)
{
    if (forward->lone_team != NULL)
        forward->help.since_ns = clock_cpu_ns();
}

/* The time up to now is that of the team at work. */
static void note_time(struct forward *forward)
{
    if (forward->lone_team == NULL)
        return;
    uint64_t now_ns = clock_cpu_ns(), took_ns = now_ns - forward->help.since_ns;
    if (is_helped(forward))
        forward->help.lent_ns += took_ns;
    else
        forward->help.alone_ns += took_ns;
    forward->help.since_ns = now_ns;
}

static void set_team(struct forward *forward, struct team *team)
{
    if (team == forward->team)
        return;
    note_time(forward);
    forward->team = team;
}

/* Who computes what is next: stages that helped may have work of their own by now. */
static void choose_team(struct forward *forward, const struct forward_step *step)
{
    bool is_lone = forward->lone_team != NULL && step->is_lone != NULL && step->is_lone(step->context);
    set_team(forward, is_lone ? forward->lone_team : forward->own_team);
}

/* Through all layers of the slice; one by one where the team may change. */
static void run_tile(struct forward *forward, const struct forward_step *step, float *x, uint32_t first, uint32_t count)
{
    uint32_t layers = forward->slice->layer_count, at_once = forward->lone_team != NULL ? 1 : layers;
    struct tile tile = {
        .forward = forward, .step = step, .x = x, .first = first, .count = count, .layer_count = at_once};
    begin_timing(forward);
    for (; tile.first_layer < layers; tile.first_layer += at_once) {
        choose_team(forward, step);
        team_run(forward->team, run_layers, &tile);
        *(is_helped(forward) ? &forward->help.lent_work : &forward->help.alone_work) += count;
    }
    note_time(forward);
}

uint64_t forward_cost_ns(const struct forward *forward, uint64_t cpu_ns)
{
    const struct forward_help *help = &forward->help;
    if (help->lent_ns == 0)
        return cpu_ns;
    if (help->is_head_lent || help->alone_work < help->lent_work)
        return 0;
    return cpu_ns - help->lent_ns +
           (uint64_t)((double)help->alone_ns * (double)help->lent_work / (double)help->alone_work);
}

/* ---- head ---- */

struct head {
    struct forward *forward;
    const float *residual; // (count, width)
    uint32_t count;
};

static void run_head(void *context, uint32_t part)
{
    const struct head *head = context;
    struct forward *forward = head->forward;
    const struct model_desc *desc = forward->desc;
    const struct model_slice *slice = forward->slice;
    const struct model_product product = {
        .part_count = 1,
        .columns = desc->vocab_size,
        .quantized = matrix_is_quantized(slice->head.form),
        .parts = {slice->head},
    };
    struct rows own = rows_of(forward, part, head->count);
    size_t at = (size_t)own.first * desc->width;
    float *normed = desk_of(forward, part, head->count)->normed;
    norm(forward, normed + at, head->residual + at, slice->output_norm, own.count);
    multiply(forward, part, forward->logits, &product, normed, head->count); // (count, vocab_size)
}

const float *forward_logits(struct forward *forward, const float *residual, uint32_t count)
{
    check(count <= FORWARD_HEAD_ROWS);
    team_run(forward->team, run_head, &(struct head){.forward = forward, .residual = residual, .count = count});
    return forward->logits;
}

/* Logits and results of the tokens gathered so far. */
static void flush_wanted(struct forward *forward, const struct forward_step *step, struct token_shm *results,
                         struct top_shm *tops)
{
    if (forward->wanted_count == 0)
        return;
    begin_timing(forward);
    choose_team(forward, step);
    const float *logits = forward_logits(forward, forward->wanted_rows, forward->wanted_count);
    for (uint32_t i = 0; i < forward->wanted_count; i++)
        results[forward->wanted[i].result] =
            judge_token(&forward->judge, step, &forward->wanted[i], logits + (size_t)i * forward->desc->vocab_size,
                        tops + (size_t)forward->wanted[i].result * LOGPROBS_MAX);
    if (is_helped(forward)) {
        forward->help.is_head_lent = true;
        note_time(forward);
    }
    forward->wanted_count = 0;
}

/* Of the tile's residuals x (count, width), keeps those whose logits are wanted. */
static void gather_wanted(struct forward *forward, const struct forward_step *step, const float *x, uint32_t first,
                          struct token_shm *results, struct top_shm *tops)
{
    uint32_t width = forward->desc->width;
    for (uint32_t i = 0; i < forward->segment_count; i++) {
        const struct forward_segment *segment = &forward->segments[i];
        const struct row_shm *row = &step->rows[segment->row];
        uint32_t wanted_from = judge_first(row);
        for (uint32_t j = 0; j < segment->token_count; j++) {
            uint32_t token = segment->first_token + j;
            if (token < wanted_from)
                continue;
            if (forward->wanted_count == FORWARD_HEAD_ROWS)
                flush_wanted(forward, step, results, tops);
            memcpy(forward->wanted_rows + (size_t)forward->wanted_count * width, x + (size_t)(token - first) * width,
                   width * sizeof(float));
            forward->wanted[forward->wanted_count++] = (struct forward_wanted){
                .row = segment->row, .token = token, .result = row->result_first + (token - wanted_from)};
        }
    }
}

/* ---- the pass ---- */

static void embed(const struct forward *forward, float *x, const uint32_t *tokens, uint32_t count)
{
    const struct model_desc *desc = forward->desc;
    for (uint32_t i = 0; i < count; i++, x += desc->width) {
        matrix_unpack_row(x, &forward->slice->embedding, tokens[i]);
        for (uint32_t j = 0; j < desc->width && desc->embedding_scale != 1; j++)
            x[j] *= desc->embedding_scale;
    }
}

void forward_run(struct forward *forward, const struct forward_step *step, const float *in, float *out,
                 struct token_shm *results, struct top_shm *tops)
{
    const struct model_slice *slice = forward->slice;
    uint32_t width = forward->desc->width;
    uint32_t row = 0;
    check(slice->is_first == (in == NULL));
    check(slice->is_last == (out == NULL));
    forward->wanted_count = 0;
    forward->help = (struct forward_help){0};
    /* A later tile of a row finds the KV of its earlier tiles stored, in every layer: a chunk of the prompt gives the same
     * bits however it is cut. */
    for (uint32_t first = 0; first < step->token_count; first += FORWARD_TILE) {
        uint32_t count = (uint32_t)min_u64(step->token_count - first, FORWARD_TILE);
        float *x = slice->is_last ? forward->residual : out + (size_t)first * width; // (count, width)
        row = gather_segments(forward, step, row, first, count);
        if (slice->is_first)
            embed(forward, x, step->tokens + first, count);
        else
            memcpy(x, in + (size_t)first * width, (size_t)count * width * sizeof(float));
        run_tile(forward, step, x, first, count);
        if (slice->is_last)
            gather_wanted(forward, step, x, first, results, tops);
    }
    if (slice->is_last)
        flush_wanted(forward, step, results, tops);
    set_team(forward, forward->own_team);
}
