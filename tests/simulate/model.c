/* model.c - a trivial model in place of what timed stages do: tokens that depend on every token before them, through KV blocks
 * and activations in their real places. Whoever reads a block that was not written, or another's, gives another answer.
 *
 *   value of a layer at a position = mix(value of the layer before, or the token; values of this layer at all positions before)
 *
 * Three tokens in four are those of five places before, so that there is something to guess.
 *
 * The linker puts these functions in the place of those of stages/timed.c (--wrap).
 */
#include <string.h>

#include "stages/stage.h"
#include "tests/simulate/world.h"

struct timed_span __real_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);
struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns);
void __wrap_timed_results(const struct plan *plan, const struct forward_step *step, struct token_shm *results);

static uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 31) * 0x7fb5d329728ea185ull;
    value = (value ^ value >> 27) * 0x81dadef4bc2dd44dull;
    return value ^ value >> 33;
}

/* Where a stage keeps the value of a layer, of its own, at a position of a row. */
static uint64_t *value_at(const struct stage *stage, uint32_t layer, const struct row_shm *row, uint32_t position)
{
    const struct plan *plan = stage->arena->plan;
    uint32_t block = stage->blocks[row->block_first + position / plan->block_size];
    uint64_t *values = (uint64_t *)(void *)stage->arena->regions[REGION_KV + stage->index];
    return values + ((size_t)layer * plan->num_blocks + block) * plan->block_size + position % plan->block_size;
}

static uint64_t *activation_at(const struct stage *stage, uint32_t of, uint64_t number, uint32_t token)
{
    return (uint64_t *)(void *)(arena_activations(stage->arena, of, number) +
                                (size_t)token * stage->arena->plan->width);
}

static const struct plan_slice *slice_of(const struct stage *stage)
{
    return &stage->arena->plan->slices[stage->index];
}

static void compute_row(const struct stage *stage, const struct row_shm *row, uint64_t number)
{
    for (uint32_t i = 0; i < row->token_count; i++) {
        uint32_t token = row->token_first + i, position = row->first_pos + i;
        uint64_t value =
            stage->index == 0 ? stage->tokens[token] + 1 : *activation_at(stage, stage->index - 1, number, token);
        for (uint32_t layer = 0; layer < slice_of(stage)->layer_count; layer++) {
            for (uint32_t before = 0; before < position; before++)
                value += *value_at(stage, layer, row, before) * (2 * (uint64_t)(position - before) + 1);
            value = mix(value + slice_of(stage)->first_layer + layer);
            *value_at(stage, layer, row, position) = value;
            world_point("model/kv");
        }
        if (!stage->is_last)
            *activation_at(stage, stage->index, number, token) = value;
    }
}

struct timed_span __wrap_timed_step(struct timed *timed, const struct forward_step *step, uint64_t input_ns)
{
    struct stage *stage = (struct stage *)(void *)((uint8_t *)timed - offsetof(struct stage, timed));
    for (uint32_t i = 0; i < step->row_count; i++)
        compute_row(stage, &step->rows[i], stage->out.next + 1);
    return __real_timed_step(timed, step, input_ns);
}

static struct token_shm result_at(const struct stage *stage, const struct row_shm *row, uint32_t at,
                                  struct top_shm *tops)
{
    const struct plan *plan = stage->arena->plan;
    uint64_t value = *value_at(stage, slice_of(stage)->layer_count - 1, row, row->first_pos + at);
    uint64_t source = value % 4 > 0 ? mix((row->first_pos + at) % 5) : value;
    uint32_t top = (uint32_t)(source % plan->vocab_size);
    uint64_t drawn = row->temperature > 0 ? mix(source ^ (row->seed * 31 + row->choice)) : source;
    struct token_shm result = {.token = (uint32_t)(drawn % plan->vocab_size), .top_token = top};
    if (row->flags & ROW_LOGITS_HASH)
        result.logits_hash = value;
    if (row->flags & ROW_LOGPROB)
        result.logprob = result.top_logprob = -(float)(value % 64) / 8;
    for (uint32_t i = 0; i < row->top_logprobs; i++)
        tops[i] = (struct top_shm){.token = (top + i) % plan->vocab_size, .logprob = -(float)(value % 64 + i) / 8};
    return result;
}

void __wrap_timed_results(const struct plan *plan, const struct forward_step *step, struct token_shm *results)
{
    const struct stage *stage =
        (const struct stage *)(const void *)((const uint8_t *)step - offsetof(struct stage, step));
    struct top_shm *tops = arena_tops(stage->arena, stage->out.next + 1);
    (void)plan;
    for (uint32_t i = 0; i < step->row_count; i++) {
        const struct row_shm *row = &step->rows[i];
        check(!(row->flags & ROW_SCORE)); /* nobody asks for scores here */
        for (uint32_t j = 0; j < row->result_count; j++) {
            uint32_t result = row->result_first + j;
            results[result] =
                result_at(stage, row, row->token_count - row->result_count + j, tops + (size_t)result * LOGPROBS_MAX);
            world_point("model/result");
        }
    }
}
