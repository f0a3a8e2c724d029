#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "stages/cost.h"
#include "stages/model.h"
#include "tests/tiny_model.h"

static int describe(const struct tiny_model *tiny, struct model_desc *desc, struct err *err)
{
    struct gguf *gguf = tiny_model_open(tiny);
    int ret = model_describe(desc, gguf, err);
    gguf_close(gguf);
    return ret;
}

Test(model, describes_what_the_file_says)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    cr_assert_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_eq(desc.layers, 3);
    cr_expect_eq(desc.width, 64);
    cr_expect_eq(desc.heads, 4);
    cr_expect_eq(desc.kv_heads, 2);
    cr_expect_eq(desc.head_dim, 16);
    cr_expect_eq(desc.feed_forward, 96);
    cr_expect_eq(desc.vocab_size, 160);
    cr_expect_eq(desc.context_length, 512);
    cr_expect_float_eq(desc.ropes[0].frequency[7], pow(10000, -14.0 / 16), 1e-15);
    cr_expect_eq(desc.ropes[0].magnitude, 1);
    cr_expect_eq(desc.layer[1].window, MODEL_NO_WINDOW);
    cr_expect_float_eq(desc.norm_eps, 1e-5f, 1e-12f);
    cr_expect(desc.tied);
    cr_expect_eq(desc.embedding_form, MATRIX_Q8);
    cr_expect_eq(desc.layer[2].forms[MODEL_DOWN], MATRIX_Q4);
}

Test(model, takes_defaults_for_what_may_be_left_out)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    tiny.missing_key = "llama.attention.key_length";
    cr_expect_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_eq(desc.head_dim, 16); /* width / heads */
    tiny.missing_key = "llama.rope.dimension_count";
    cr_expect_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    tiny.missing_key = "llama.rope.freq_base";
    cr_expect_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_float_eq(desc.ropes[0].frequency[7], pow(10000, -14.0 / 16), 1e-15);
    tiny.missing_key = "llama.attention.head_count_kv";
    tiny.kv_heads = tiny.heads;
    cr_expect_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_eq(desc.kv_heads, 4);
    tiny.scaling_type = "none";
    cr_expect_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
}

/* What is refused, with what the text must name. */
static void expect_refused(const struct tiny_model *tiny, int code, const char *named)
{
    struct model_desc desc;
    struct err err = {0};
    int ret = describe(tiny, &desc, &err);
    cr_expect_eq(ret, code, "%d instead of %d: \"%s\" (%s)", ret, code, err.text, named);
    cr_expect_not_null(strstr(err.text, named), "\"%s\" does not name %s", err.text, named);
}

#define EXPECT_REFUSED(change, code, named)                                                                            \
    do {                                                                                                               \
        struct tiny_model tiny = tiny_model();                                                                         \
        change;                                                                                                        \
        expect_refused(&tiny, code, named);                                                                            \
    } while (0)

Test(model, refuses_by_name_what_it_would_not_compute)
{
    EXPECT_REFUSED(tiny.architecture = "mamba", -ENOTSUP, "mamba");
    EXPECT_REFUSED(tiny.architecture = "mamba", -ENOTSUP, "llama, qwen2, qwen3, gemma3");
    EXPECT_REFUSED(tiny.expert_count = 8, -ENOTSUP, "llama.expert_count");
    EXPECT_REFUSED(tiny.scaling_type = "longrope", -ENOTSUP, "longrope");
    EXPECT_REFUSED(tiny.extra_key = "llama.attn_logit_softcapping", -ENOTSUP,
                   "attn_logit_softcapping is 30: soft caps");
    EXPECT_REFUSED(tiny.extra_key = "llama.logit_scale", -ENOTSUP, "llama.logit_scale");
    EXPECT_REFUSED(tiny.architecture = "gemma3";
                   tiny.extra_key = "gemma3.final_logit_softcapping", -ENOTSUP, "gemma3.final_logit_softcapping");
    EXPECT_REFUSED(tiny.rope_count = 8, -ENOTSUP, "llama.rope.dimension_count");
    EXPECT_REFUSED(tiny.head_dim = tiny.rope_count = 24, -ENOTSUP, "heads of 24");
    EXPECT_REFUSED(tiny.types[MODEL_DOWN] = 10, -ENOTSUP, "blk.0.ffn_down.weight");
    EXPECT_REFUSED(tiny.types[MODEL_DOWN] = 10, -ENOTSUP, "Q2_K");
    EXPECT_REFUSED(tiny.types[MODEL_DOWN] = 99, -ENOTSUP, "type 99");
    EXPECT_REFUSED(tiny.extra_tensor = "blk.1.attn_q.bias", -EBADMSG, "blk.1.attn_q.bias"); /* 16 of 64 */
    EXPECT_REFUSED(tiny.extra_tensor = "blk.1.attn_q_norm.weight", -ENOTSUP, "blk.1.attn_q_norm.weight");
    EXPECT_REFUSED(tiny.extra_tensor = "blk.1.attn_norm.bias", -ENOTSUP, "blk.1.attn_norm.bias");
    EXPECT_REFUSED(tiny.extra_tensor = "blk.3.attn_norm.weight", -ENOTSUP, "blk.3.attn_norm.weight");
    EXPECT_REFUSED(tiny.extra_tensor = "blk.0.ffn_gate_inp.weight", -ENOTSUP, "blk.0.ffn_gate_inp.weight");
}

Test(model, refuses_by_name_what_contradicts_itself)
{
    static const char *const keys[] = {"general.architecture",
                                       "llama.block_count",
                                       "llama.context_length",
                                       "llama.embedding_length",
                                       "llama.feed_forward_length",
                                       "llama.attention.head_count",
                                       "llama.attention.layer_norm_rms_epsilon"};
    static const char *const tensors[] = {"token_embd.weight",     "output_norm.weight",   "blk.0.attn_norm.weight",
                                          "blk.2.ffn_norm.weight", "blk.1.attn_q.weight",  "blk.2.attn_k.weight",
                                          "blk.0.attn_v.weight",   "blk.0.ffn_up.weight",  "blk.2.attn_output.weight",
                                          "blk.1.ffn_gate.weight", "blk.2.ffn_down.weight"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        EXPECT_REFUSED(tiny.missing_key = keys[i], -EBADMSG, keys[i]);
    for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
        EXPECT_REFUSED(tiny.missing_tensor = tensors[i], -EBADMSG, tensors[i]);
        if (i > 0) /* another row of the embedding is another vocabulary */
            EXPECT_REFUSED(tiny.longer_tensor = tensors[i], -EBADMSG, tensors[i]);
    }
    EXPECT_REFUSED(tiny.kv_heads = 3, -EBADMSG, "head_count_kv 3");
    EXPECT_REFUSED(tiny.tied = false; tiny.longer_tensor = "output.weight", -EBADMSG, "output.weight");
    EXPECT_REFUSED(tiny.layers = 0, -EBADMSG, "llama.block_count");
    EXPECT_REFUSED(tiny.rope_base = NAN, -EBADMSG, "llama.rope.freq_base");
}

/* ---- packing ---- */

static void expect_row(const struct gguf *gguf, const char *name, uint64_t row, const struct matrix *w,
                       uint32_t packed_row)
{
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
    float expected[256], got[256];
    uint32_t k = (uint32_t)tensor->ne[0];
    cr_assert(k == w->k && k <= 256);
    gguf_dequantize_row(expected, (enum gguf_type)tensor->type,
                        (const uint8_t *)tensor->data + row * gguf_row_bytes((enum gguf_type)tensor->type, k), k);
    matrix_unpack_row(got, w, packed_row);
    for (uint32_t i = 0; i < k; i++)
        cr_assert_float_eq(got[i], expected[i], 1e-6f, "%s row %u, element %u", name, (unsigned)row, i);
}

Test(model, matrices_of_one_form_become_one_and_rotary_pairs_are_half_a_head_apart)
{
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct model_desc desc;
    struct model_slice slice;
    struct err err = {0};
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    void *memory = base_alloc(model_slice_bytes(&desc, 0, 3));
    cr_assert_eq(model_load(&slice, &desc, 0, 3, memory, gguf, &err), 0, "%s", err.text);

    const struct model_product *qkv = &slice.layers[1].qkv;
    cr_assert_eq(qkv->part_count, 1);
    cr_expect_eq(qkv->columns, 64 + 32 + 32);
    cr_expect(qkv->quantized);
    expect_row(gguf, "blk.1.attn_q.weight", 0, &qkv->parts[0], 0);
    expect_row(gguf, "blk.1.attn_q.weight", 1, &qkv->parts[0], 8); /* pair (0, 1) of head 0 */
    expect_row(gguf, "blk.1.attn_q.weight", 16 + 6, &qkv->parts[0], 16 + 3);
    expect_row(gguf, "blk.1.attn_k.weight", 16 + 15, &qkv->parts[0], 64 + 16 + 15);
    expect_row(gguf, "blk.1.attn_k.weight", 13, &qkv->parts[0], 64 + 14);
    expect_row(gguf, "blk.1.attn_v.weight", 13, &qkv->parts[0], 64 + 32 + 13);
    expect_row(gguf, "blk.2.ffn_up.weight", 95, &slice.layers[2].gate_up.parts[0], 96 + 95);
    expect_row(gguf, "blk.2.ffn_down.weight", 7, &slice.layers[2].down.parts[0], 7);
    expect_row(gguf, "token_embd.weight", 159, &slice.embedding, 159);
    cr_expect_eq(slice.head.panels, slice.embedding.panels); /* one copy serves both */
    model_unbind(&slice);
    free(memory);
    gguf_close(gguf);
}

Test(model, matrices_of_several_forms_stand_side_by_side)
{
    struct tiny_model tiny = tiny_model();
    tiny.types[MODEL_K] = GGUF_TYPE_F16;
    tiny.types[MODEL_V] = GGUF_TYPE_Q8_0;
    tiny.types[MODEL_GATE] = tiny.types[MODEL_UP] = GGUF_TYPE_F32;
    tiny.tied = false;
    struct gguf *gguf = tiny_model_open(&tiny);
    struct model_desc desc;
    struct model_slice slice;
    struct err err = {0};
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    void *memory = base_alloc(model_slice_bytes(&desc, 0, 3));
    cr_assert_eq(model_load(&slice, &desc, 0, 3, memory, gguf, &err), 0, "%s", err.text);
    const struct model_product *qkv = &slice.layers[0].qkv;
    cr_assert_eq(qkv->part_count, 3);
    cr_expect_eq(qkv->column[1], 64);
    cr_expect_eq(qkv->column[2], 96);
    expect_row(gguf, "blk.0.attn_k.weight", 3, &qkv->parts[1], 9);
    expect_row(gguf, "blk.0.attn_v.weight", 3, &qkv->parts[2], 3);
    cr_expect_eq(slice.layers[0].gate_up.part_count, 1);
    cr_expect_not(slice.layers[0].gate_up.quantized);
    cr_expect_neq(slice.head.panels, slice.embedding.panels);
    expect_row(gguf, "output.weight", 100, &slice.head, 100);
    model_unbind(&slice);
    free(memory);
    gguf_close(gguf);
}

Test(model, a_successor_finds_every_weight_where_its_predecessor_packed_it)
{
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct model_desc desc;
    struct err err = {0};
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    static const struct {
        uint32_t first, count;
    } slices[] = {{0, 3}, {0, 1}, {1, 1}, {1, 2}, {2, 1}};
    for (size_t i = 0; i < ARRAY_COUNT(slices); i++) {
        size_t bytes = model_slice_bytes(&desc, slices[i].first, slices[i].count);
        uint8_t *memory = base_alloc(bytes + 64);
        memset(memory + bytes, 0xa5, 64);
        struct model_slice loaded, bound;
        cr_assert_eq(model_load(&loaded, &desc, slices[i].first, slices[i].count, memory, gguf, &err), 0);
        model_bind(&bound, &desc, slices[i].first, slices[i].count, memory);
        cr_expect_arr_eq(loaded.layers, bound.layers, slices[i].count * sizeof(*bound.layers));
        cr_expect_eq(loaded.embedding.panels, bound.embedding.panels);
        cr_expect_eq(loaded.head.panels, bound.head.panels);
        cr_expect_eq(loaded.output_norm, bound.output_norm);
        cr_expect_eq(bound.is_first, slices[i].first == 0);
        cr_expect_eq(bound.is_last, slices[i].first + slices[i].count == 3);
        for (int j = 0; j < 64; j++)
            cr_assert_eq(memory[bytes + j], 0xa5, "slice %zu was packed beyond its size", i);
        model_unbind(&loaded);
        model_unbind(&bound);
        free(memory);
    }
    gguf_close(gguf);
}

Test(model, another_file_than_the_described_one_is_refused)
{
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct model_desc desc;
    struct model_slice slice;
    struct err err = {0};
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    gguf_close(gguf);
    tiny.feed_forward = 128;
    gguf = tiny_model_open(&tiny);
    void *memory = base_alloc(model_slice_bytes(&desc, 0, 3));
    cr_expect_eq(model_load(&slice, &desc, 0, 3, memory, gguf, &err), -EBADMSG);
    free(memory);
    gguf_close(gguf);
}

Test(model, rope_angles_are_cosines_and_sines_of_every_position)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    cr_assert_eq(describe(&tiny, &desc, &err), 0);
    desc.ropes[0].frequency[3] /= 8;
    float table[40 * 16];
    model_rope_angles(&desc.ropes[0], desc.head_dim, table, 0, 40);
    for (uint32_t position = 0; position < 40; position++) {
        for (uint32_t i = 0; i < 8; i++) {
            double angle = position * pow(10000, -(double)i / 8) / (i == 3 ? 8 : 1);
            cr_expect_float_eq(table[position * 16 + i], cos(angle), 1e-6);
            cr_expect_float_eq(table[position * 16 + 8 + i], sin(angle), 1e-6);
        }
    }
    float part[3 * 16];
    model_rope_angles(&desc.ropes[0], desc.head_dim, part, 20, 3);
    cr_expect_eq(memcmp(part, table + 20 * 16, sizeof(part)), 0);
}

/* Against the formula as it stands in the paper (Peng et al. 2023, section 3.2), from its definition of a turn: pair i of
 * d / 2 turns original / wavelength times within the original context. Here 64 positions and a head of 16. */
Test(model, yarn_slows_down_what_turns_seldom)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    tiny.scaling_type = "yarn";
    cr_assert_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_float_eq(desc.ropes[0].magnitude, 0.1 * log(4) + 1, 1e-12);
    /* 64 / (2 pi) turns of pair 0: 10.2, between 32 and 1; the limits are whole pairs: 32 turns are before pair 0, one
     * turn is at 8 * ln(64 / 2 pi) / ln 10000 = 2.02, so pair 3 is the first that is slowed down wholly */
    for (uint32_t i = 0; i < 8; i++) {
        double plain = pow(10000, -2.0 * i / 16), kept = i >= 3 ? 0 : 1 - i / 3.0;
        cr_expect_float_eq(desc.ropes[0].frequency[i], plain * (kept + (1 - kept) / 4), 1e-12, "pair %u", i);
    }
    tiny.scaling_type = "linear";
    cr_assert_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_float_eq(desc.ropes[0].frequency[1], pow(10000, -2.0 / 16) / 4, 1e-12);
    cr_expect_eq(desc.ropes[0].magnitude, 1);
}

Test(model, gemma3_has_a_window_and_positions_of_their_own_in_all_but_every_sixth_layer)
{
    struct tiny_model tiny = tiny_model();
    struct model_desc desc;
    struct err err = {0};
    tiny.architecture = "gemma3";
    tiny.layers = 7;
    tiny.window = 24;
    tiny.rope_base = 1e6;
    cr_assert_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    for (uint32_t i = 0; i < tiny.layers; i++) {
        cr_expect_eq(desc.layer[i].window, i == 5 ? MODEL_NO_WINDOW : 24, "layer %u", i);
        cr_expect_eq(desc.layer[i].rope, i != 5, "layer %u", i);
    }
    cr_expect_float_eq(desc.ropes[1].frequency[1], pow(10000, -2.0 / 16), 1e-12);
    cr_expect_float_eq(desc.ropes[0].frequency[1], pow(1e6, -2.0 / 16), 1e-12);
    cr_expect_eq(desc.embedding_scale, 8); /* the root of 64 */
    tiny.window_pattern = 2;
    cr_assert_eq(describe(&tiny, &desc, &err), 0, "%s", err.text);
    cr_expect_eq(desc.layer[1].window, MODEL_NO_WINDOW);
    cr_expect_eq(desc.layer[2].window, 24);
}

/* ---- split ---- */

static double slowest(const struct cost *const *costs, uint32_t stages, const uint32_t *counts)
{
    double worst = 0;
    for (uint32_t i = 0; i < stages; i++) {
        const struct timing_stage stage = cost_stage(costs[i], counts[i], i == 0, i + 1 == stages);
        worst = fmax(worst, cost_usual_us(&stage));
    }
    return worst;
}

/* Every way to give `left` layers to stages i..: the smallest slowest stage. */
static double best_of_all(const struct cost *const *costs, uint32_t stages, uint32_t i, uint32_t left, uint32_t *counts)
{
    if (i + 1 == stages) {
        counts[i] = left;
        return slowest(costs, stages, counts);
    }
    double best = INFINITY;
    for (counts[i] = 1; counts[i] <= left - (stages - 1 - i); counts[i]++)
        best = fmin(best, best_of_all(costs, stages, i + 1, left - counts[i], counts));
    return best;
}

Test(cost, split_is_the_best_of_all_splits)
{
    static const double times[][3] = {{100, 800, 1},   {100, 0, 0}, {100, 5000, 0}, /* layer, head, embedding */
                                      {100, 250, 370}, {1, 0, 0},   {7, 50, 3}};
    for (size_t i = 0; i < ARRAY_COUNT(times); i++) {
        const struct cost cost = {
            .layer = {.base_us = times[i][0]}, .head = {.base_us = times[i][1]}, .embedding = {.base_us = times[i][2]}};
        /* every other stage on something faster, which takes a while to be given a step */
        const struct cost device = {.layer = {.base_us = times[i][0] / 7},
                                    .head = {.base_us = times[i][1] / 9},
                                    .stage = {.base_us = 3 * times[i][0]}};
        const struct cost *const alike[] = {&cost, &cost, &cost, &cost, &cost};
        const struct cost *const mixed[] = {&device, &cost, &device, &cost, &device};
        for (uint32_t layers = 1; layers <= 12; layers++) {
            for (uint32_t run = 0; run < 2 * min_u64(layers, 5); run++) {
                const struct cost *const *costs = run % 2 ? mixed : alike;
                uint32_t counts[5], other[5], sum = 0, stages = 1 + run / 2;
                cost_split(costs, layers, stages, counts);
                for (uint32_t j = 0; j < stages; j++) {
                    cr_assert_geq(counts[j], 1);
                    sum += counts[j];
                }
                cr_assert_eq(sum, layers);
                cr_assert_eq(slowest(costs, stages, counts), best_of_all(costs, stages, 0, layers, other));
            }
        }
    }
}

Test(cost, measurement_gives_times_for_layer_and_head)
{
    struct tiny_model tiny = tiny_model();
    struct gguf *gguf = tiny_model_open(&tiny);
    struct model_desc desc;
    struct cost cost = {0};
    struct err err = {0};
    cr_assert_eq(model_describe(&desc, gguf, &err), 0);
    cr_assert_eq(cost_measure(&cost, gguf, &desc, kernels_pick(NULL), KV_F16, &err), 0, "%s", err.text);
    cr_expect_gt(cost_usual_us(&cost.layer), 0);
    cr_expect_gt(cost_usual_us(&cost.head), 0);
    gguf_close(gguf);
}
