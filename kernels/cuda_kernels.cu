/* cuda_kernels.cu - the kernels of a slice on a GPU. Compiled by nvcc for the device, and as C for tests (cuda_simt.h): C, but
 * for what nvcc makes of it. Arguments, grids and the order of every sum: cuda_kernels.h. */
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_simt.h"

/* Whether this block's row is one of a recorded launch that is not there this time. */
#define IS_NOT_THERE(a) ((a).count != 0 && blockIdx.x >= *(a).count)

/* ---- weights ---- */

/* 16-bit and 32-bit words of a panel; records begin at multiples of 32 bytes. */
DEVICE float half_at(const uint8_t *at)
{
    return half_float(*(const half *)at);
}

DEVICE uint32_t word_at(const uint8_t *at)
{
    return *(const uint32_t *)at;
}

/* Scale and minimum of an output's weights in one half of a group (pack.c). */
DEVICE void scales_of(const struct cuda_matrix *m, const uint8_t *record, uint32_t output, uint32_t part, float *scale,
                      float *minimum)
{
    const uint8_t *scales = record + m->scales;
    *scale = half_at(scales + 2 * output);
    *minimum = 0;
    if (m->form == MATRIX_Q4 || m->form == MATRIX_Q5) {
        *minimum = half_at(scales + 32 + 2 * output);
    } else if (m->form == MATRIX_Q4K || m->form == MATRIX_Q5K) {
        *scale *= (float)scales[64 + output];
        *minimum = -half_at(scales + 32 + 2 * output) * (float)scales[80 + output];
    } else if (m->form == MATRIX_Q6K) {
        *scale *= (float)(int8_t)scales[32 + 16 * part + output];
    }
}

/* Element e = 16 * part + 4 * v + j of a group, out of the words that hold it: the low bits, and what is above them. */
DEVICE float integer_of(const struct cuda_matrix *m, const uint8_t *record, uint32_t output, uint32_t part, uint32_t v,
                        uint32_t j)
{
    if (m->form == MATRIX_Q8)
        return (float)((int)(word_at(record + 64 * (4 * part + v) + 4 * output) >> 8 * j & 255) - 128);
    uint32_t u = word_at(record + 64 * v + 4 * output) >> (8 * j + 4 * part) & 15;
    if (m->form == MATRIX_Q5 || m->form == MATRIX_Q5K)
        u |= (word_at(record + 256 + 4 * output) >> (8 * j + 2 * v + part) & 1) << 4;
    if (m->form == MATRIX_Q6K) {
        u |= (word_at(record + 256 + 64 * part + 4 * output) >> (8 * j + 2 * v) & 3) << 4;
        return (float)((int)u - 32);
    }
    return (float)u;
}

/* Value k of an output in the float forms. */
DEVICE float float_of(const struct cuda_matrix *m, const uint8_t *panel, uint32_t output, uint32_t k)
{
    const uint8_t *at = panel + ((size_t)k * KERNEL_PANEL + output) * m->float_bytes;
    if (m->form == MATRIX_F16)
        return half_at(at);
    return bits_float(m->form == MATRIX_BF16 ? (uint32_t) * (const uint16_t *)at << 16 : word_at(at));
}

DEVICE const uint8_t *panel_of(const struct cuda_matrix *m, uint32_t panel)
{
    size_t bytes = m->record_bytes != 0 ? (size_t)m->k / KERNEL_GROUP * m->record_bytes
                                        : (size_t)m->k * KERNEL_PANEL * m->float_bytes;
    return m->panels + panel * bytes;
}

/* A lane's share of a group of 16 outputs: 16 of the 512 weights, to w (32, 16). */
DEVICE void unpack_group(half *w, const struct cuda_matrix *m, const uint8_t *panel, uint32_t group, uint32_t lane)
{
    if (m->record_bytes == 0) {
        uint32_t k = group * KERNEL_GROUP + lane;
        for (uint32_t i = 0; i < KERNEL_PANEL; i++)
            w[lane * KERNEL_PANEL + i] = float_half(k < m->k ? float_of(m, panel, i, k) : 0);
        return;
    }
    const uint8_t *record = panel + (size_t)group * m->record_bytes;
    uint32_t output = lane / 2, part = lane % 2;
    float scale, minimum;
    scales_of(m, record, output, part, &scale, &minimum);
    for (uint32_t v = 0; v < 4; v++)
        for (uint32_t j = 0; j < 4; j++)
            w[(16 * part + 4 * v + j) * KERNEL_PANEL + output] =
                float_half(fmaf(scale, integer_of(m, record, output, part, v, j), minimum));
}

/* Weight k of an output, unrounded. */
DEVICE float weight_of(const struct cuda_matrix *m, uint32_t output, uint32_t k)
{
    const uint8_t *panel = panel_of(m, output / KERNEL_PANEL);
    uint32_t lane = output % KERNEL_PANEL, e = k % KERNEL_GROUP;
    if (m->record_bytes == 0)
        return float_of(m, panel, lane, k);
    const uint8_t *record = panel + (size_t)(k / KERNEL_GROUP) * m->record_bytes;
    float scale, minimum;
    scales_of(m, record, lane, e / 16, &scale, &minimum);
    return fmaf(scale, integer_of(m, record, lane, e / 16, e % 16 / 4, e % 4), minimum);
}

KERNEL(cuda_embed)
{
    if (IS_NOT_THERE(a))
        return;
    uint32_t row = blockIdx.x;
    EACH_THREAD(t)
    {
        for (uint32_t i = t; i < a.embedding.k; i += CUDA_THREADS)
            a.x[(size_t)row * a.embedding.k + i] = weight_of(&a.embedding, a.tokens[row], i) * a.scale;
    }
}

KERNEL(cuda_gemm)
{
    SHARED half weights[CUDA_GEMM_WARPS][KERNEL_GROUP * KERNEL_PANEL];
    SHARED float part[CUDA_GEMM_WARPS][TILE * TILE];
    tile sums PER_WARP(CUDA_GEMM_WARPS)[CUDA_ROWS / TILE];
    const uint8_t *panel = panel_of(&a.w, blockIdx.x);
    uint32_t first = blockIdx.y * CUDA_ROWS, groups = (a.w.k + KERNEL_GROUP - 1) / KERNEL_GROUP;
    uint32_t all = a.count != 0 ? *a.count : a.rows;
    if (first >= all)
        return;
    uint32_t rows = all - first < CUDA_ROWS ? all - first : CUDA_ROWS, tiles = (rows + TILE - 1) / TILE;
    EACH_WARP(w)
    {
        for (uint32_t i = 0; i < CUDA_ROWS / TILE; i++)
            tile_zero(&OF_WARP(sums, w)[i]);
        for (uint32_t group = w; group < groups; group += CUDA_GEMM_WARPS) {
            EACH_LANE(l)
            {
                unpack_group(weights[w], &a.w, panel, group, l);
            }
            for (uint32_t k = 0; k < KERNEL_GROUP && group * KERNEL_GROUP + k < a.w.k; k += TILE) {
                const half *x = (const half *)a.x + (size_t)first * a.w.k + group * KERNEL_GROUP + k;
#pragma unroll
                for (uint32_t i = 0; i < CUDA_ROWS / TILE; i++)
                    if (i < tiles)
                        tile_multiply(&OF_WARP(sums, w)[i], x + (size_t)i * TILE * a.w.k, a.w.k,
                                      weights[w] + k * KERNEL_PANEL, rows - i * TILE);
            }
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < CUDA_ROWS / TILE; i++) {
        if (i >= tiles)
            continue;
        EACH_WARP(w)
        {
            tile_store(part[w], &OF_WARP(sums, w)[i]);
        }
        EACH_THREAD(t)
        {
            uint32_t row = i * TILE + t / TILE, output = blockIdx.x * KERNEL_PANEL + t % TILE;
            float sum = part[0][t];
            for (uint32_t w = 1; w < CUDA_GEMM_WARPS; w++)
                sum += part[w][t];
            if (row < rows && output < a.w.n && a.bias != 0)
                sum += a.bias[output];
            if (row < rows && output < a.w.n)
                a.out[(size_t)(first + row) * a.out_stride + output] = sum;
        }
    }
}

/* ---- rows ---- */

KERNEL(cuda_norm)
{
    SHARED float sums[CUDA_THREADS];
    if (IS_NOT_THERE(a))
        return;
    uint32_t row = a.index != 0 ? a.index[blockIdx.x] : blockIdx.x;
    float *x = a.x + (size_t)row * a.width;
    half *out = (half *)a.out + (size_t)blockIdx.x * a.width;
    EACH_THREAD(t)
    {
        float sum = 0;
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS) {
            if (a.branch != 0)
                x[i] += a.branch[(size_t)row * a.width + i];
            sum = fmaf(x[i], x[i], sum);
        }
        sums[t] = sum;
    }
    for (uint32_t step = CUDA_THREADS / 2; step > 0; step /= 2) {
        EACH_THREAD(t)
        {
            if (t < step)
                sums[t] += sums[t + step];
        }
    }
    EACH_THREAD(t)
    {
        float factor = 1 / sqrtf(sums[0] / (float)a.width + a.eps);
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS)
            out[i] = float_half(x[i] * factor * a.gain[i]);
    }
}

KERNEL(cuda_renorm)
{
    SHARED float sums[CUDA_THREADS];
    if (IS_NOT_THERE(a))
        return;
    float *x = a.x + (size_t)blockIdx.x * a.stride + (size_t)blockIdx.y * a.width;
    EACH_THREAD(t)
    {
        float sum = 0;
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS)
            sum = fmaf(x[i], x[i], sum);
        sums[t] = sum;
    }
    for (uint32_t step = CUDA_THREADS / 2; step > 0; step /= 2) {
        EACH_THREAD(t)
        {
            if (t < step)
                sums[t] += sums[t + step];
        }
    }
    EACH_THREAD(t)
    {
        float factor = 1 / sqrtf(sums[0] / (float)a.width + a.eps);
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS)
            x[i] = x[i] * factor * a.gain[i];
    }
}

KERNEL(cuda_add)
{
    size_t first = (size_t)blockIdx.x * a.width;
    EACH_THREAD(t)
    {
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS)
            a.out[first + i] = a.x[first + i] + a.branch[first + i];
    }
}

/* How much of x a gate lets through. */
DEVICE float share_of(float x, uint32_t is_gelu)
{
    float y = is_gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x; /* 2 * sqrt(2 / pi) */
    return 1 / (1 + expf(-y));
}

KERNEL(cuda_gate)
{
    if (IS_NOT_THERE(a))
        return;
    const float *in = a.in + (size_t)blockIdx.x * 2 * a.width;
    half *out = (half *)a.out + (size_t)blockIdx.x * a.width;
    EACH_THREAD(t)
    {
        for (uint32_t i = t; i < a.width; i += CUDA_THREADS)
            out[i] = float_half(in[i] * share_of(in[i], a.is_gelu) * in[a.width + i]);
    }
}

/* ---- attention ---- */

/* K of a KV head in the block that holds a position; V is behind it. */
DEVICE half *keys_of(const struct cuda_kv *kv, const struct cuda_row *row, uint32_t kv_head, uint32_t position)
{
    uint32_t block = kv->blocks[row->block_first + position / kv->block_size];
    return (half *)(kv->layer + (size_t)block * kv->block_stride) + (size_t)kv_head * 2 * kv->head_dim * kv->block_size;
}

KERNEL(cuda_rope)
{
    if (IS_NOT_THERE(a))
        return;
    const struct cuda_row *row = &a.rows[blockIdx.x];
    uint32_t pairs = a.kv.head_dim / 2, head_dim = a.kv.head_dim, in_block = row->position % a.kv.block_size;
    float *qkv = a.qkv + (size_t)blockIdx.x * (a.kv.heads + 2 * a.kv.kv_heads) * head_dim;
    const float *cos_sin = a.cos_sin + (size_t)row->position * head_dim;
    EACH_THREAD(t)
    {
        for (uint32_t i = t; i < (a.kv.heads + a.kv.kv_heads) * pairs; i += CUDA_THREADS) {
            uint32_t head = i / pairs, pair = i % pairs;
            float *at = qkv + head * head_dim + pair, x = at[0], y = at[pairs];
            float rotated_x = x * cos_sin[pair] - y * cos_sin[pairs + pair];
            float rotated_y = y * cos_sin[pair] + x * cos_sin[pairs + pair];
            if (head < a.kv.heads) {
                at[0] = rotated_x;
                at[pairs] = rotated_y;
                continue;
            }
            half *keys = keys_of(&a.kv, row, head - a.kv.heads, row->position) + in_block;
            keys[(size_t)pair * a.kv.block_size] = float_half(rotated_x);
            keys[(size_t)(pairs + pair) * a.kv.block_size] = float_half(rotated_y);
        }
        const float *values = qkv + (a.kv.heads + a.kv.kv_heads) * head_dim;
        for (uint32_t i = t; i < a.kv.kv_heads * head_dim; i += CUDA_THREADS) {
            half *to = keys_of(&a.kv, row, i / head_dim, row->position) + (size_t)head_dim * a.kv.block_size;
            to[(size_t)in_block * head_dim + i % head_dim] = float_half(values[i]);
        }
    }
}

/* The positions of a part that a row attends to. */
DEVICE uint32_t part_first(uint32_t part, uint32_t position, uint32_t window)
{
    uint32_t first = position >= window ? position - window + 1 : 0;
    return first > part * CUDA_SPLIT ? first : part * CUDA_SPLIT;
}

DEVICE uint32_t part_end(uint32_t part, uint32_t position)
{
    return position + 1 < (part + 1) * CUDA_SPLIT ? position + 1 : (part + 1) * CUDA_SPLIT;
}

KERNEL(cuda_attend)
{
    SHARED float q[CUDA_HEAD_FLOATS_MAX], scores[CUDA_SPLIT], tree[CUDA_SPLIT];
    if (IS_NOT_THERE(a))
        return;
    const struct cuda_row *row = &a.rows[blockIdx.x];
    uint32_t head = blockIdx.y, head_dim = a.kv.head_dim, kv_head = head / (a.kv.heads / a.kv.kv_heads);
    float *parts = a.parts + ((size_t)blockIdx.x * a.kv.heads + head) * a.parts_max * (2 + head_dim);
    if (blockIdx.z * CUDA_SPLIT > row->position)
        return;
    EACH_THREAD(t)
    {
        for (uint32_t i = t; i < head_dim; i += CUDA_THREADS)
            q[i] = a.qkv[((size_t)blockIdx.x * (a.kv.heads + 2 * a.kv.kv_heads) + head) * head_dim + i];
    }
    for (uint32_t part = blockIdx.z; part * CUDA_SPLIT <= row->position; part += gridDim.z) {
        uint32_t first = part_first(part, row->position, a.window), end = part_end(part, row->position);
        uint32_t base = part * CUDA_SPLIT;
        float *out = parts + (size_t)part * (2 + head_dim);
        if (first >= end)
            continue;
        EACH_THREAD(t)
        {
            uint32_t position = base + t;
            float score = -INFINITY;
            if (position >= first && position < end) {
                const half *keys = keys_of(&a.kv, row, kv_head, position) + position % a.kv.block_size;
                score = 0;
#pragma unroll 8
                for (uint32_t i = 0; i < head_dim; i++)
                    score = fmaf(q[i], half_float(keys[(size_t)i * a.kv.block_size]), score);
                score *= a.scale;
            }
            scores[t] = tree[t] = score;
        }
        for (uint32_t step = CUDA_SPLIT / 2; step > 0; step /= 2) {
            EACH_THREAD(t)
            {
                if (t < step)
                    tree[t] = fmaxf(tree[t], tree[t + step]);
            }
        }
        EACH_THREAD(t)
        {
            if (t == 0)
                out[0] = tree[0];
            scores[t] = expf(scores[t] - tree[0]); /* 0 where there is no position */
        }
        EACH_THREAD(t)
        {
            tree[t] = scores[t];
        }
        for (uint32_t step = CUDA_SPLIT / 2; step > 0; step /= 2) {
            EACH_THREAD(t)
            {
                if (t < step)
                    tree[t] += tree[t + step];
            }
        }
        EACH_THREAD(t)
        {
            if (t == 0)
                out[1] = tree[0];
            for (uint32_t i = t; i < head_dim; i += CUDA_THREADS) {
                float value = 0;
#pragma unroll 8
                for (uint32_t position = first; position < end; position++) {
                    const half *values = keys_of(&a.kv, row, kv_head, position) + (size_t)head_dim * a.kv.block_size;
                    value = fmaf(scores[position - base],
                                 half_float(values[(size_t)(position % a.kv.block_size) * head_dim + i]), value);
                }
                out[2 + i] = value;
            }
        }
    }
}

KERNEL(cuda_combine)
{
    if (IS_NOT_THERE(a))
        return;
    uint32_t position = a.rows[blockIdx.x].position;
    uint32_t from = part_first(0, position, a.window) / CUDA_SPLIT, count = position / CUDA_SPLIT + 1;
    size_t row = (size_t)blockIdx.x * a.heads + blockIdx.y, stride = 2 + a.head_dim;
    const float *parts = a.parts + row * a.parts_max * stride;
    half *out = (half *)a.out + row * a.head_dim;
    EACH_THREAD(t)
    {
        float max = -INFINITY, sum = 0;
        for (uint32_t i = from; i < count; i++)
            max = fmaxf(max, parts[i * stride]);
        for (uint32_t i = from; i < count; i++)
            sum = fmaf(expf(parts[i * stride] - max), parts[i * stride + 1], sum);
        for (uint32_t d = t; d < a.head_dim; d += CUDA_THREADS) {
            float value = 0;
            for (uint32_t i = from; i < count; i++)
                value = fmaf(expf(parts[i * stride] - max), parts[i * stride + 2 + d], value);
            out[d] = float_half(value / sum);
        }
    }
}

/* ---- drawing ---- */

/* Candidates whose keys lie in a range; among those with the least key, up to an id. */
struct candidates {
    const float *logits;
    uint32_t count;
    float greatest, inv_temperature, share_min;
    uint32_t key_min, key_max, id_max;
};

/* What one of them counts: its weight, or one; nothing where it is none. */
DEVICE uint64_t amount_of(const struct candidates *c, uint32_t id, uint32_t by_weight)
{
    uint32_t key = draw_key(c->logits[id]);
    if (key < c->key_min || key > c->key_max || (key == c->key_min && id > c->id_max))
        return 0;
    float share = draw_exp((c->logits[id] - c->greatest) * c->inv_temperature);
    uint64_t weight = share >= c->share_min ? draw_weight(share) : 0;
    return by_weight ? weight : weight > 0;
}

/* The sum of what threads have left in the tree, for all of them. */
DEVICE uint64_t sum_of(uint64_t *tree)
{
    uint64_t sum = 0;
    for (uint32_t step = CUDA_THREADS / 2; step > 0; step /= 2) {
        EACH_THREAD(t)
        {
            if (t < step)
                tree[t] += tree[t + step];
        }
    }
    EACH_THREAD(t)
    {
        sum = tree[0]; /* all have it before the tree is written again */
    }
    return sum;
}

DEVICE uint64_t sum_between(uint64_t *tree, const struct candidates *c, uint32_t first, uint32_t end,
                            uint32_t by_weight)
{
    EACH_THREAD(t)
    {
        uint64_t sum = 0;
        for (uint32_t id = first + t; id < end; id += CUDA_THREADS)
            sum += amount_of(c, id, by_weight);
        tree[t] = sum;
    }
    return sum_of(tree);
}

DEVICE uint64_t sum_of_all(uint64_t *tree, const struct candidates *c, uint32_t by_weight)
{
    return sum_between(tree, c, 0, c->count, by_weight);
}

#define SPAN (32u * CUDA_THREADS) /* ids that are looked through together */

/* The first id, all of them in order, up to which there is more than `goal`, which all are. */
DEVICE uint32_t find(uint64_t *tree, uint32_t *found, const struct candidates *c, uint64_t goal, uint32_t by_weight)
{
    uint32_t first = 0, id = 0;
    uint64_t sum = 0, next = sum_between(tree, c, 0, c->count < SPAN ? c->count : SPAN, by_weight);
    while (sum + next <= goal && first + SPAN < c->count) {
        sum += next;
        first += SPAN;
        next = sum_between(tree, c, first, c->count - first < SPAN ? c->count : first + SPAN, by_weight);
    }
    EACH_THREAD(t)
    {
        uint32_t from = first + 32 * t;
        tree[t] = 0;
        for (uint32_t i = from; i < from + 32 && i < c->count; i++)
            tree[t] += amount_of(c, i, by_weight);
    }
    EACH_THREAD(t)
    {
        if (t == 0) {
            uint32_t part = 0;
            while (part + 1 < CUDA_THREADS && sum + tree[part] <= goal)
                sum += tree[part++];
            uint32_t i = first + 32 * part;
            while (i + 1 < c->count && (sum += amount_of(c, i, by_weight)) <= goal)
                i++;
            *found = i;
        }
    }
    EACH_THREAD(t)
    {
        id = *found;
    }
    return id;
}

/* Those of them whose keys are at least so great. */
DEVICE struct candidates from_key(const struct candidates *c, uint32_t key)
{
    struct candidates above = *c;
    above.key_min = key > c->key_min ? key : c->key_min;
    above.id_max = key > c->key_min ? UINT32_MAX : c->id_max;
    return above;
}

/* Leaves the first ones of the order (logit descending, id ascending), the fewest that are at least `goal`, which all are. The
 * least of their keys is found bit by bit. */
DEVICE void cut(uint64_t *tree, uint32_t *found, struct candidates *c, uint64_t goal, uint32_t by_weight)
{
    struct candidates some;
    uint32_t key = 0;
    for (uint32_t bit = 0x80000000u; bit > 0; bit /= 2) {
        some = from_key(c, key | bit);
        if (sum_of_all(tree, &some, by_weight) >= goal)
            key |= bit;
    }
    some = from_key(c, key + 1); /* a finite logit has not the greatest key */
    goal -= sum_of_all(tree, &some, by_weight);
    some = from_key(c, key);
    some.key_max = key;
    c->id_max = find(tree, found, &some, goal - 1, by_weight);
    c->key_min = key;
}

KERNEL(cuda_draw)
{
    SHARED uint64_t tree[CUDA_THREADS];
    SHARED uint32_t found, odd;
    if (IS_NOT_THERE(a))
        return;
    const struct sample_params *params = &a.params[blockIdx.x];
    struct candidates c;
    uint64_t best = 0;
    c.logits = a.logits + (size_t)blockIdx.x * a.vocab_size;
    c.count = a.vocab_size;
    EACH_THREAD(t)
    {
        if (t == 0)
            odd = 0;
    }
    EACH_THREAD(t)
    {
        uint64_t first = 0; /* key, and behind it the id upside down */
        for (uint32_t id = t; id < a.vocab_size; id += CUDA_THREADS) {
            uint64_t place = (uint64_t)draw_key(c.logits[id]) << 32 | (uint32_t)~id;
            first = place > first ? place : first;
            if (place >> 32 == 0)
                odd = 1; /* not a number */
        }
        tree[t] = first;
    }
    for (uint32_t step = CUDA_THREADS / 2; step > 0; step /= 2) {
        EACH_THREAD(t)
        {
            if (t < step && tree[t + step] > tree[t])
                tree[t] = tree[t + step];
        }
    }
    EACH_THREAD(t)
    {
        best = tree[0];
    }
    uint32_t drawn = ~(uint32_t)best;
    c.greatest = c.logits[drawn];
    c.inv_temperature = 1.0f / params->temperature;
    c.share_min = params->min_p > 0 ? params->min_p : 0;
    c.key_min = 0;
    c.key_max = c.id_max = UINT32_MAX;
    uint32_t is_greedy = draw_is_greedy(params) || odd || !(fabsf(c.greatest) < INFINITY);
    uint64_t count = is_greedy ? 0 : sum_of_all(tree, &c, 0);
    if (count > 0) { /* none: min_p is above 1 */
        if (params->top_k > 0 && params->top_k < count)
            cut(tree, &found, &c, params->top_k, 0);
        uint64_t mass = sum_of_all(tree, &c, 1);
        if (params->top_p < 1) {
            cut(tree, &found, &c, draw_share(params->top_p, mass), 1);
            mass = sum_of_all(tree, &c, 1);
        }
        drawn = find(tree, &found, &c, draw_goal(params, mass), 1);
    }
    EACH_THREAD(t)
    {
        if (t == 0)
            a.drawn[blockIdx.x] = drawn;
    }
}
