#include "stages/stage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc/clock.h"
#include "ipc/fault.h"
#include "ipc/journal.h"
#include "ipc/log.h"
#include "ipc/shm.h"
#include "ipc/steps.h"
#include "stages/packed.h"

/* ---- start ---- */

static int check_plan(const struct stage *stage, struct err *err)
{
    const struct plan *plan = stage->arena->plan;
    const struct model_desc *desc = &stage->desc;
    const struct plan_slice *slice = &plan->slices[stage->index];
    if (desc->layers != plan->layers || desc->width != plan->width || desc->heads != plan->heads ||
        desc->kv_heads != plan->kv_heads || desc->head_dim != plan->head_dim || desc->vocab_size != plan->vocab_size)
        return err_set(err, -EPROTO, "the model file is not the one that the plan was made for; was it replaced?");
    if (slice->first_layer >= desc->layers || slice->layer_count == 0 ||
        slice->layer_count > desc->layers - slice->first_layer || (stage->index == 0) != (slice->first_layer == 0) ||
        (stage->index + 1 == plan->stage_count) != (slice->first_layer + slice->layer_count == desc->layers))
        return err_set(err, -EPROTO, "stage %u of %u: layers %u + %u of %u do not fit", stage->index, plan->stage_count,
                       slice->first_layer, slice->layer_count, desc->layers);
    if (slice->weights_bytes != model_slice_bytes(desc, slice->first_layer, slice->layer_count) ||
        plan->kv_type >= KV_TYPES ||
        plan->kv_block_bytes != kv_block_bytes(plan->kv_type, desc->kv_heads, desc->head_dim, plan->block_size))
        return err_set(err, -EPROTO, "stage %u: the plan's sizes are not this build's; mixed builds?", stage->index);
    return 0;
}

/* A copy of what another start has packed, or packed anew. */
static int fill_weights(struct stage *stage, const struct arena *arena, uint8_t *memory, const struct gguf *gguf,
                        struct err *err)
{
    const struct plan_slice *slice = &arena->plan->slices[stage->index];
    const char *cache = arena->plan->weights_cache;
    if (cache[0] != '\0') {
        int ret = packed_copy(cache, &stage->desc, gguf, slice->first_layer, slice->layer_count, memory);
        if (ret == 0)
            return 0;
        log_warn("weights cache %s: %s; packing the weights instead", cache, strerror(-ret));
        memset(memory, 0, slice->weights_bytes);
    }
    int ret = model_load(&stage->slice, &stage->desc, slice->first_layer, slice->layer_count, memory, gguf, err);
    if (ret == 0)
        model_unbind(&stage->slice);
    return ret;
}

/* Fills the weights' region, then gives up the right to write them, for good and for everybody. */
static int load_weights(struct stage *stage, struct arena *arena, const struct gguf *gguf, struct err *err)
{
    uint32_t region = REGION_WEIGHTS + stage->index;
    size_t bytes = arena->layout.region_bytes[region];
    int ret = fill_weights(stage, arena, arena->regions[region], gguf, err);
    if (ret < 0)
        return ret;
    munmap(arena->regions[region], bytes);
    arena->regions[region] = NULL;
    fault_point(FAULT_STAGE_WEIGHTS);
    ret = shm_seal(arena->weights, err);
    fault_point(FAULT_STAGE_WEIGHTS);
    if (ret < 0)
        return ret;
    arena->regions[region] = shm_map(arena->weights, bytes, SHM_READ | SHM_POPULATE, "weights", err);
    if (arena->regions[region] == NULL)
        return -ENOMEM;
    close(arena->weights);
    arena->weights = -1;
    return 0;
}

/* Fills the weights' memory on the device, and says so for successors. */
static int upload_weights(struct stage *stage, const struct arena *arena, cuda_address weights, size_t bytes,
                          const struct gguf *gguf, struct err *err)
{
    void *packed = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (packed == MAP_FAILED)
        return err_set(err, -errno, "no memory to pack %zu MiB of weights in: %s", bytes >> 20, strerror(errno));
    int ret = fill_weights(stage, arena, packed, gguf, err);
    if (ret == 0) {
        cuda_upload(&stage->cuda, weights, packed, bytes);
        ret = cuda_wait(&stage->cuda);
        if (ret != 0)
            err_set(err, ret, "%s", stage->cuda.error);
    }
    munmap(packed, bytes);
    if (ret == 0)
        process_note(&arena_process(arena, ROLE_STAGE, stage->index)->weights_on_device, 1);
    return ret;
}

/* Memory of a device that two stages share; 0: there is none, or it cannot be mapped, which the device remembers. */
static cuda_address map_edge(struct stage *stage, int descriptor, uint32_t from)
{
    if (descriptor < 0)
        return 0;
    cuda_address edge = cuda_map(&stage->cuda, descriptor, stage->arena->layout.region_bytes[REGION_EDGE + from]);
    close(descriptor);
    return edge;
}

/* Edges that NCCL carries: what comes, into memory of this stage's own. */
static int open_carriers(struct stage *stage, struct err *err)
{
    const struct arena *arena = stage->arena;
    const struct plan_slice *slice = &arena->plan->slices[stage->index];
    bool has_in = stage->index > 0 && slice[-1].edge == EDGE_NCCL, has_out = slice->edge == EDGE_NCCL;
    bool is_joined_to_itself =
        (has_in && slice[-1].device == slice->device) || (has_out && slice[1].device == slice->device);
    char host_name[32];
    if (!has_in && !has_out)
        return 0;
    snprintf(host_name, sizeof(host_name), "evenflow-stage-%u", stage->index);
    int ret = nccl_open(&stage->nccl, is_joined_to_itself ? host_name : NULL);
    if (ret < 0)
        return err_set(err, ret, "%s", stage->nccl.error);
    if (has_in) {
        stage->edge_in = cuda_alloc(&stage->cuda, arena->layout.region_bytes[REGION_EDGE + stage->index - 1]);
        carrier_open(&stage->carriers[CARRIER_IN], arena, true, &stage->cuda, &stage->nccl, stage->edge_in);
    }
    if (has_out)
        carrier_open(&stage->carriers[CARRIER_OUT], arena, false, &stage->cuda, &stage->nccl, stage->edge_out);
    return stage->cuda.failed == 0 ? 0 : err_set(err, stage->cuda.failed, "%s", stage->cuda.error);
}

/* Those in shared memory that this stage writes. */
static bool pin_activations(struct stage *stage)
{
    const struct layout *layout = &stage->arena->layout;
    return cuda_pin(&stage->cuda, arena_activations(stage->arena, stage->index, 0),
                    layout->activation_slots * layout->activation_stride);
}

/* The slice on a device, whose memory for weights and KV outlives this process. */
static int open_device(struct stage *stage, struct arena *arena, const struct kernels *kernels, const struct gguf *gguf,
                       struct err *err)
{
    const struct plan *plan = arena->plan;
    const struct layout *layout = &arena->layout;
    const struct plan_slice *slice = &plan->slices[stage->index];
    size_t kv_bytes = layout->region_bytes[REGION_KV + stage->index];
    size_t weights_bytes = layout->region_bytes[REGION_WEIGHTS + stage->index];
    int ret = forward_cuda_supports(&stage->desc, err);
    if (ret < 0)
        return ret;
    cuda_open(&stage->cuda, slice->device - 1);
    stage->cuda.memory = plan->device_memory == DEVICE_MEMORY_IPC ? CUDA_MEMORY_IPC : CUDA_MEMORY_VMM;
    cuda_address kv = cuda_map(&stage->cuda, arena->device_kv, kv_bytes);
    cuda_address weights = cuda_map(&stage->cuda, arena->device_weights, weights_bytes);
    stage->edge_in = map_edge(stage, arena->device_in, stage->index - 1);
    stage->edge_out = map_edge(stage, arena->device_out, stage->index);
    if (stage->cuda.failed != 0)
        return err_set(err, stage->cuda.failed, "%s", stage->cuda.error);
    close(arena->device_kv);
    close(arena->device_weights);
    ret = open_carriers(stage, err);
    if (ret == 0 && !arena->is_device_loaded)
        ret = upload_weights(stage, arena, weights, weights_bytes, gguf, err);
    if (ret < 0)
        return ret;
    /* a copy out to memory that is not pinned would wait for the input, in the driver; so would the end of a connection */
    bool has_output = stage->is_last || stage->edge_out != 0 || pin_activations(stage);
    stage->begins_early = plan_begins_with_record(plan, stage->index) && stage->edge_in != 0 && has_output &&
                          slice->edge != EDGE_NCCL && slice->layer_count <= FORWARD_CUDA_EARLY_LAYERS_MAX;
    model_bind(&stage->slice, &stage->desc, slice->first_layer, slice->layer_count, (const void *)(uintptr_t)weights);
    const struct forward_cuda_limits limits = {
        .common = {.positions_max = plan->max_model_len, .block_size = plan->block_size},
        .step_tokens_max = layout->step_tokens_max,
        .step_blocks_max = layout->step_blocks_max};
    ret = forward_cuda_init(&stage->forward_cuda, &stage->cuda, kernels, &stage->desc, &stage->slice, &limits, kv, err);
    if (ret == 0 && plan->cuda_graphs && !forward_cuda_record(&stage->forward_cuda))
        log_info("cuda:%u records no graphs: kernels are launched one by one", slice->device - 1);
    return ret;
}

/* The slice on the processor, its weights and KV in shared memory. */
static int open_processor(struct stage *stage, struct arena *arena, const struct kernels *kernels, struct team *team,
                          const struct gguf *gguf, struct err *err)
{
    const struct plan *plan = arena->plan;
    const struct plan_slice *slice = &plan->slices[stage->index];
    const struct forward_limits limits = {
        .positions_max = plan->max_model_len, .block_size = plan->block_size, .kv_type = plan->kv_type};
    int ret = arena->weights >= 0 ? load_weights(stage, arena, gguf, err) : 0;
    if (ret < 0)
        return ret;
    model_bind(&stage->slice, &stage->desc, slice->first_layer, slice->layer_count,
               arena->regions[REGION_WEIGHTS + stage->index]);
    forward_init(&stage->forward, kernels, team, &stage->desc, &stage->slice, &limits, NULL);
    return 0;
}

/* What computes: the slice of the model that the plan gives to this stage. */
static int open_model(struct stage *stage, struct arena *arena, const struct kernels *kernels, struct team *team,
                      const struct gguf *gguf, struct err *err)
{
    const struct plan *plan = arena->plan;
    int ret = model_describe(&stage->desc, gguf, err);
    if (ret == 0)
        ret = check_plan(stage, err);
    if (ret < 0)
        return ret;
    const struct pieces_shm *pieces = (const void *)arena->regions[REGION_VOCAB];
    if (pieces != NULL && plan->vocab_bytes > 0 && !pieces_are_sound(pieces, plan->vocab_bytes))
        return err_set(err, -EPROTO, "vocabulary: the tables are not this build's; mixed builds?");
    if (stage->is_last)
        mask_init(&stage->masker, plan->vocab_bytes > 0 ? pieces : NULL, plan);
    return stage->is_on_device ? open_device(stage, arena, kernels, gguf, err)
                               : open_processor(stage, arena, kernels, team, gguf, err);
}

int stage_init(struct stage *stage, struct arena *arena, const struct kernels *kernels, struct team *team,
               const struct gguf *gguf, struct err *err)
{
    const struct plan *plan = arena->plan;
    const struct layout *layout = &arena->layout;
    *stage = (struct stage){.arena = arena,
                            .index = arena->index,
                            .is_timed = plan->backend == BACKEND_TIMED,
                            .is_on_device = plan->slices[arena->index].device != DEVICE_CPU,
                            .is_last = arena->index + 1 == plan->stage_count};
    int ret = stage->is_timed ? 0 : open_model(stage, arena, kernels, team, gguf, err);
    if (ret < 0)
        return ret;
    timed_init(&stage->timed, plan, stage->index);
    stage->rows = base_alloc(layout->step_rows_max * sizeof(*stage->rows));
    stage->tokens = base_alloc(layout->step_tokens_max * sizeof(*stage->tokens));
    stage->blocks = base_alloc(layout->step_blocks_max * sizeof(*stage->blocks));
    stage->history = base_alloc(plan->max_model_len * sizeof(*stage->history));
    stage->biases = base_alloc(LOGIT_BIAS_MAX * sizeof(*stage->biases));
    return 0;
}

void stage_begin(struct stage *stage)
{
    const struct arena *arena = stage->arena;
    if (!stage->is_timed && !stage->is_on_device)
        stage->forward.kv = arena->regions[REGION_KV + stage->index];
    stage->process = arena_process(arena, ROLE_STAGE, stage->index);
    stage->bell = arena_bell(arena);
    if (stage->index > 0)
        arena_ring_stage_consumer(arena, stage->index - 1, &stage->in);
    arena_ring_stage_producer(arena, stage->index, &stage->out);
    stage->next = stage->is_last ? arena_pull(arena, ROLE_SCHED, 0) : arena_pull(arena, ROLE_STAGE, stage->index + 1);
    bell_ring(&stage->next); /* a predecessor may have published and died before it rang */
    process_note(&stage->process->step, stage->out.next);
    carriers_begin(stage->carriers);
}

int stage_join(struct stage *stage)
{
    const struct arena *arena = stage->arena;
    while (arena->epoch == 1 && !carriers_are_joined(stage->carriers) && arena_command(arena) != COMMAND_STOP) {
        int ret = carriers_do_work(stage->carriers, stage->out.next + 1);
        if (ret < 0)
            return ret;
        if (!carriers_are_joined(stage->carriers))
            stage_wait(stage);
    }
    return 0;
}

void stage_end(struct stage *stage)
{
    if (stage->begun.step == stage->out.next + 1)
        forward_cuda_release(&stage->forward_cuda);
    carriers_end(stage->carriers);
}

void stage_free(struct stage *stage)
{
    if (!stage->is_timed) {
        if (stage->is_on_device) {
            forward_cuda_free(&stage->forward_cuda);
            cuda_close(&stage->cuda);
        } else {
            forward_free(&stage->forward);
        }
        mask_free(&stage->masker);
        model_unbind(&stage->slice);
    }
    free(stage->rows);
    free(stage->tokens);
    free(stage->blocks);
    free(stage->history);
    free(stage->biases);
    *stage = (struct stage){0};
}

/* ---- the record ---- */

#define ROW_FLAGS_KNOWN (ROW_SAMPLE | ROW_SCORE | ROW_LOGITS_HASH | ROW_LOGPROB | ROW_NO_END)

/* NULL, or what is wrong with a row. token_first: where its tokens must start. */
static const char *row_fault(const struct stage *stage, const struct row_shm *row, uint32_t token_first)
{
    const struct plan *plan = stage->arena->plan;
    uint32_t tokens_left = stage->step.token_count - token_first;
    if (row->source_step != 0)
        return "its token is to come from another step";
    if (row->token_first != token_first)
        return "its tokens do not follow those of the row before";
    if (row->token_count == 0 || row->token_count > tokens_left)
        return "token count out of bounds";
    if (row->first_pos >= plan->max_model_len || row->token_count > plan->max_model_len - row->first_pos)
        return "positions beyond max_model_len";
    if (row->block_first > stage->block_count || row->block_count > stage->block_count - row->block_first)
        return "blocks out of bounds";
    if ((uint64_t)row->block_count * plan->block_size < (uint64_t)row->first_pos + row->token_count)
        return "blocks do not hold its positions";
    for (uint32_t i = 0; i < row->block_count; i++)
        if (stage->blocks[row->block_first + i] >= plan->num_blocks)
            return "block number out of bounds";
    if (row->flags & ~(uint32_t)ROW_FLAGS_KNOWN)
        return "flags out of bounds";
    if (row->result_first > stage->result_count || row->result_count > stage->result_count - row->result_first)
        return "results out of bounds";
    uint32_t least = row->flags & ROW_SCORE ? row->token_count : row->flags & ROW_SAMPLE ? 1 : 0;
    uint32_t most = row->flags & (ROW_SCORE | ROW_SAMPLE) ? row->token_count : 0;
    if (row->result_count < least || row->result_count > most)
        return "result count out of bounds";
    if (step_drafts(row) > 0 && (adjust_is_wanted(row) || row->grammar_words > 0))
        return "drafts where a token depends on those before it";
    if (row->flags & ROW_SCORE && !(row->flags & ROW_SAMPLE) && row->score_next >= plan->vocab_size)
        return "scored token out of bounds";
    if (row->top_logprobs > LOGPROBS_MAX)
        return "more log-probabilities than there are places";
    if (row->grammar_words > 0 && stage->is_last && stage->masker.pieces == NULL)
        return "it has to keep to a grammar, and there is no vocabulary";
    bool has_grammar = row->flags & ROW_SAMPLE && row->grammar_words > 0;
    if ((adjust_is_wanted(row) || has_grammar) &&
        (row->request >= plan->requests_max || row->sequence >= plan->sequences_max ||
         row->prompt_tokens > row->first_pos + row->token_count || row->log_first > row->prompt_tokens ||
         row->bias_count > LOGIT_BIAS_MAX || row->grammar_words > GRAMMAR_WORDS_MAX))
        return "history out of bounds";
    return NULL;
}

/* Tokens that would end the row's answer: the model's own, whether or not they are to be ignored, and the request's. */
static uint32_t find_ends(struct stage *stage, const struct row_shm *row)
{
    const struct plan *plan = stage->arena->plan;
    const struct request_shm *request = arena_request(stage->arena, row->request);
    uint32_t own = plan->end_token_count, stops = (uint32_t)min_u64(request->stop_token_count, STOP_TOKENS_MAX);
    memcpy(stage->ends, plan->end_tokens, own * sizeof(*stage->ends));
    memcpy(stage->ends + own, request->stop_tokens, stops * sizeof(*stage->ends));
    return own + stops;
}

/* Token `index` of the answer that a row goes on with. */
static uint32_t answered_token(const struct stage *stage, const struct row_shm *row, uint32_t index)
{
    return journal_log_entry(stage->arena, row->sequence, row->log_first + index)->token;
}

/* The tokens before a row's next one: prompt and log, which do not change while the row's result is of use to anybody. Where it
 * is not, the slots may have new owners: what is read then are numbers of no meaning, within bounds all the same. */
static void find_history(void *context, const struct row_shm *row, struct adjust_history *history)
{
    struct stage *stage = context;
    uint32_t count = row->first_pos + row->token_count;
    journal_prompt_read(stage->arena, row->request, 0, row->prompt_tokens, stage->history);
    for (uint32_t i = row->prompt_tokens; i < count; i++)
        stage->history[i] = answered_token(stage, row, i - row->prompt_tokens);
    journal_prompt_read(stage->arena, row->request, row->prompt_tokens, 2 * row->bias_count,
                        (uint32_t *)(void *)stage->biases);
    *history = (struct adjust_history){.tokens = stage->history,
                                       .prompt_tokens = row->prompt_tokens,
                                       .token_count = count,
                                       .biases = stage->biases,
                                       .bias_count = row->bias_count,
                                       .ends = stage->ends,
                                       .end_count = row->flags & ROW_NO_END ? find_ends(stage, row) : 0};
}

/* Where a row's sequence stands in its grammar: behind all that its log has. Read as find_history() reads, so it may be
 * none. */
static struct mask_place *find_place(void *context, const struct row_shm *row)
{
    struct stage *stage = context;
    struct masker *masker = &stage->masker;
    uint32_t generated = row->first_pos + row->token_count - row->prompt_tokens;
    struct mask_place *place = mask_find(masker, row->sequence, row->sequence_generation);
    if (place == NULL || place->tokens > generated) {
        journal_prompt_read(stage->arena, row->request, row->prompt_tokens + 2 * row->bias_count, row->grammar_words,
                            masker->incoming);
        place = mask_learn(masker, row->sequence, row->sequence_generation, row->grammar_words);
    }
    while (place != NULL && place->tokens < generated)
        mask_take(masker, place, answered_token(stage, row, place->tokens));
    return place;
}

/* The masks that the tokens just drawn will need: while the others work, not when their next row is here. */
static void prepare_masks(struct stage *stage, uint64_t number)
{
    const struct token_shm *results = arena_results(stage->arena, number);
    for (uint32_t i = 0; i < stage->step.row_count; i++) {
        const struct row_shm *row = &stage->rows[i];
        bool is_drawn = row->flags & ROW_SAMPLE && row->temperature >= SAMPLE_TEMPERATURE_MIN;
        const struct mask_place *place = row->grammar_words > 0 && is_drawn
                                             ? mask_find(&stage->masker, row->sequence, row->sequence_generation)
                                             : NULL;
        const struct token_shm *drawn = &results[row->result_first + row->result_count - 1];
        if (place == NULL || drawn->flags & TOKEN_LAST)
            continue;
        struct mask_place behind = *place;
        mask_take(&stage->masker, &behind, drawn->token);
        mask_bits(&stage->masker, &behind);
    }
}

static bool is_lone(void *context)
{
    const struct stage *stage = context;
    return step_is_lone(stage->arena, stage->out.next + 1);
}

/* Copies the record out of shared memory and checks every field of the copy. */
static int take_record(struct stage *stage, uint64_t number)
{
    const struct arena *arena = stage->arena;
    const struct layout *layout = &arena->layout;
    const struct step_shm *record = arena_step(arena, number);
    struct forward_step step = {.rows = stage->rows,
                                .row_count = record->row_count,
                                .tokens = stage->tokens,
                                .token_count = record->token_count,
                                .blocks = stage->blocks,
                                .history = find_history,
                                .place = find_place,
                                .masker = &stage->masker,
                                .is_lone = is_lone,
                                .context = stage};
    stage->step = step;
    stage->block_count = record->block_count;
    stage->result_count = record->result_count;
    if (record->step != number || stage->step.row_count > layout->step_rows_max ||
        stage->step.token_count > layout->step_tokens_max || stage->block_count > layout->step_blocks_max ||
        stage->result_count > layout->step_results_max) {
        log_error("step %" PRIu64 ": its record is out of bounds", number);
        return -EPROTO;
    }
    memcpy(stage->rows, arena_step_rows(arena, record), stage->step.row_count * sizeof(*stage->rows));
    memcpy(stage->tokens, arena_step_tokens(arena, record), stage->step.token_count * sizeof(*stage->tokens));
    memcpy(stage->blocks, arena_step_blocks(arena, record), stage->block_count * sizeof(*stage->blocks));

    uint32_t token_first = 0;
    for (uint32_t i = 0; i < stage->step.row_count; i++) {
        const char *fault = row_fault(stage, &stage->rows[i], token_first);
        if (fault != NULL) {
            log_error("step %" PRIu64 ", row %u: %s", number, i, fault);
            return -EPROTO;
        }
        token_first += stage->rows[i].token_count;
    }
    if (token_first != stage->step.token_count) {
        log_error("step %" PRIu64 ": tokens that belong to no row", number);
        return -EPROTO;
    }
    for (uint32_t i = 0; i < stage->step.token_count; i++) {
        if (stage->tokens[i] >= arena->plan->vocab_size) {
            log_error("step %" PRIu64 ", token %u: not in the vocabulary", number, i);
            return -EPROTO;
        }
    }
    return 0;
}

/* ---- work ---- */

/* The message that announces the input of step `number`: 1 when it is there, and what is carried has come, 0 when not yet,
 * -errno when the ring holds something else. */
static int find_input(struct stage *stage, uint64_t number, struct msg_step *message)
{
    while (ring_peek(&stage->in, message) == RING_OK) {
        if (message->step == number && carriers_have(stage->carriers, number))
            return 1;
        if (message->step == number) {
            process_note(&stage->process->predicted_us, CARRIER_PATIENCE_US); /* the supervisor's, too */
            return 0;
        }
        if (message->step > number) {
            log_error("step %" PRIu64 ": the stage before is at %" PRIu64 " already", number, message->step);
            return -EPROTO;
        }
        ring_release(&stage->in); /* a predecessor computed it and died before it let go of the input */
    }
    return 0;
}

/* What the plan's times say of the step at hand. */
static uint64_t predicted_us(const struct stage *stage)
{
    struct shape shape = {0};
    for (uint32_t i = 0; i < stage->step.row_count; i++)
        step_shape_add(&shape, &stage->rows[i]);
    return (uint64_t)timing_stage_us(&stage->arena->plan->timing.stages[stage->index], &shape);
}

/* Where activations between stage `from` and the next one lie. edge: 0, or memory of a device. */
static struct forward_cuda_place place_of(const struct stage *stage, uint32_t from, uint64_t number, cuda_address edge)
{
    const struct layout *layout = &stage->arena->layout;
    const uint64_t slot = number & (layout->activation_slots - 1);
    if (edge == 0)
        return (struct forward_cuda_place){.host = arena_activations(stage->arena, from, number)};
    return (struct forward_cuda_place){.floats = edge + layout->edge_activations + slot * layout->activation_stride,
                                       .word = edge + slot * sizeof(uint32_t),
                                       .value = (uint32_t)number};
}

/* NULL: this stage has none. */
static struct forward_cuda_place *input_of(const struct stage *stage, uint64_t number, struct forward_cuda_place *place)
{
    if (stage->index == 0)
        return NULL;
    *place = place_of(stage, stage->index - 1, number, stage->edge_in);
    return place;
}

static struct forward_cuda_place *output_of(const struct stage *stage, uint64_t number,
                                            struct forward_cuda_place *place)
{
    if (stage->is_last)
        return NULL;
    *place = place_of(stage, stage->index, number, stage->edge_out);
    return place;
}

static void begin_on_device(struct stage *stage, uint64_t number)
{
    struct forward_cuda_place in, out;
    forward_cuda_begin(&stage->forward_cuda, &stage->step, input_of(stage, number, &in),
                       output_of(stage, number, &out));
}

/* The next step's record is there, its device could wait for its input, and it does not yet. */
static bool can_begin_early(const struct stage *stage)
{
    uint64_t number = stage->out.next + 1;
    return stage->begins_early && stage->begun.step != number && step_is_published(stage->arena, number) &&
           !step_is_cancelled(arena_step(stage->arena, number));
}

/* Puts it into the device's stream. */
static int begin_early(struct stage *stage)
{
    uint64_t number = stage->out.next + 1;
    int ret = take_record(stage, number);
    if (ret < 0)
        return ret;
    fault_point(FAULT_STAGE_BEGIN);
    stage->begun.step = number;
    stage->begun.at_ns = clock_ns();
    begin_on_device(stage, number);
    return 0;
}

/* Computes the step at hand. 0, or -errno when the device failed (logged). */
static int compute(struct stage *stage, uint64_t number)
{
    const struct arena *arena = stage->arena;
    struct token_shm *results = stage->is_last ? arena_results(arena, number) : NULL;
    struct top_shm *tops = stage->is_last ? arena_tops(arena, number) : NULL;
    if (!stage->is_on_device) {
        const float *in = stage->index == 0 ? NULL : arena_activations(arena, stage->index - 1, number);
        float *out = stage->is_last ? NULL : arena_activations(arena, stage->index, number);
        forward_run(&stage->forward, &stage->step, in, out, results, tops);
        return 0;
    }
    if (stage->begun.step != number)
        begin_on_device(stage, number);
    int ret = forward_cuda_finish(&stage->forward_cuda, results, tops);
    if (ret < 0)
        log_error("step %" PRIu64 ": %s", number, stage->cuda.error);
    return ret;
}

/* Lets the described time pass instead. False: the engine ends meanwhile. */
static bool let_pass(struct stage *stage, uint64_t number, struct timed_span span)
{
    while (bell_wait_until(&stage->bell, span.sent_ns))
        if (arena_command(stage->arena) == COMMAND_STOP)
            return false;
    if (stage->is_last)
        timed_results(stage->arena->plan, &stage->step, arena_results(stage->arena, number));
    return true;
}

/* Tells the next one that the step at hand is done here, and only then lets go of what came for it. */
static int hand_on(struct stage *stage, const struct msg_step *message)
{
    process_note(&stage->process->step, message->step); /* before the next stage can be at it */
    if (ring_push(&stage->out, message) != RING_OK) {
        log_error("step %" PRIu64 ": the ring is full: more steps in flight than the window", message->step);
        return -EPROTO;
    }
    if (stage->index > 0)
        ring_release(&stage->in);
    bell_ring(&stage->next);
    stage->idle_since_ns = 0;
    return 0;
}

/* Its results would mean nothing; the step is handed on all the same, since steps follow one another. */
static int pass_over(struct stage *stage, uint64_t number)
{
    int ret = 0;
    if (stage->is_on_device) {
        struct forward_cuda_place out;
        ret = forward_cuda_pass(&stage->forward_cuda, output_of(stage, number, &out));
        if (ret < 0)
            log_error("step %" PRIu64 ": %s", number, stage->cuda.error);
    }
    const struct msg_step message = {.step = number, .epoch = stage->arena->epoch, .sent_ns = clock_ns()};
    ret = ret ? ret : hand_on(stage, &message);
    if (ret < 0)
        return ret;
    trace_note(&stage->process->trace, TRACE_PASS, number);
    return 1;
}

int stage_do_work(struct stage *stage)
{
    const struct arena *arena = stage->arena;
    uint64_t number = stage->out.next + 1;
    struct msg_step message = {0};
    int ret = carriers_do_work(stage->carriers, number);
    if (ret < 0)
        return ret;
    if (stage->index > 0) {
        ret = find_input(stage, number, &message);
        if (ret == 0)
            return can_begin_early(stage) ? begin_early(stage) : 0;
        if (ret < 0)
            return ret;
    }
    if (!step_is_published(arena, number)) {
        if (stage->index == 0)
            return 0;
        log_error("step %" PRIu64 ": activations came without a record", number);
        return -EPROTO;
    }
    if (step_is_cancelled(arena_step(arena, number)))
        return pass_over(stage, number);
    /* what others say of time counts only as far as it is past */
    uint64_t begin_ns = clock_ns(), begin_cpu_ns = clock_cpu_ns();
    const bool is_begun = stage->begun.step == number;
    if (is_begun)
        begin_ns = min_u64(begin_ns, max_u64(stage->begun.at_ns, message.sent_ns));
    uint64_t input_ns = stage->index == 0 ? arena_step(arena, number)->planned_us * 1000 : message.sent_ns;
    struct step_time_shm time = {.step = number, .input_ns = min_u64(input_ns, begin_ns), .begin_ns = begin_ns};
    ret = is_begun ? 0 : take_record(stage, number);
    if (ret == 0 && stage->index > 0 && message.count != stage->step.token_count) {
        log_error("step %" PRIu64 ": activations of %u tokens, %u expected", number, message.count,
                  stage->step.token_count);
        ret = -EPROTO;
    }
    if (ret < 0)
        return ret;

    trace_note(&stage->process->trace, TRACE_BEGIN, number);
    fault_point(FAULT_STAGE_BEGIN);
    process_note(&stage->process->predicted_us, predicted_us(stage));
    message = (struct msg_step){
        .step = number, .count = stage->is_last ? stage->result_count : stage->step.token_count, .epoch = arena->epoch};
    if (stage->is_timed) {
        struct timed_span span = timed_step(&stage->timed, &stage->step, time.input_ns);
        time.input_ns = span.input_ns;
        time.begin_ns = span.begin_ns;
        time.end_ns = span.end_ns;
        time.cpu_ns = time.cost_ns = span.end_ns - span.begin_ns;
        message.sent_ns = span.sent_ns;
        if (span.sent_ns > begin_ns) /* it sleeps until then: for the link too, and for what is before it there */
            process_note(&stage->process->predicted_us, (span.sent_ns - begin_ns) / 1000);
        if (!let_pass(stage, number, span))
            return 0;
    } else {
        ret = compute(stage, number);
        if (ret < 0)
            return ret;
        time.end_ns = message.sent_ns = clock_ns();
        time.cpu_ns = clock_cpu_ns() - begin_cpu_ns;
        time.lent_ns = stage->is_on_device ? 0 : stage->forward.help.lent_ns;
        time.cost_ns = stage->is_on_device ? time.cpu_ns : forward_cost_ns(&stage->forward, time.cpu_ns);
    }
    fault_point(FAULT_STAGE_COMPUTED);
    *arena_step_time(arena, stage->index, number) = time;
    fault_point(FAULT_STAGE_MEASURED);
    ret = hand_on(stage, &message);
    if (ret < 0)
        return ret;
    if (stage->is_last && !stage->is_timed)
        prepare_masks(stage, number);
    trace_note(&stage->process->trace, TRACE_END, number);
    counter_add(stage->process, COUNTER_STAGE_STEPS, 1);
    counter_add(stage->process, COUNTER_STAGE_TOKENS, stage->step.token_count);
    counter_add(stage->process, COUNTER_STAGE_EARLY, is_begun);
    counter_add(stage->process, COUNTER_STAGE_DRAWN, stage->forward_cuda.drawn_count);
    counter_add(stage->process, COUNTER_STAGE_REPLAYED, stage->forward_cuda.is_replayed);
    counter_add(stage->process, COUNTER_STAGE_BUSY_NS, time.end_ns - time.begin_ns);
    counter_add(stage->process, COUNTER_STAGE_LONE_STEPS, time.lent_ns > 0);
    progress_add(stage->process, 1);
    return 1;
}

static bool has_work(const struct stage *stage)
{
    return stage->index == 0 ? step_is_published(stage->arena, stage->out.next + 1)
                             : (!ring_is_empty(&stage->in) && carriers_have(stage->carriers, stage->out.next + 1)) ||
                                   can_begin_early(stage);
}

void stage_wait(struct stage *stage)
{
    uint32_t spin_ns = stage->arena->plan->spin_ns;
    if (spin_ns > 0) {
        uint64_t now_ns = clock_ns();
        if (stage->idle_since_ns == 0)
            stage->idle_since_ns = now_ns;
        if (now_ns - stage->idle_since_ns < spin_ns) {
            __builtin_ia32_pause();
            return;
        }
    }
    const uint64_t look_ns = carriers_look_ns(stage->carriers);
    bell_announce(&stage->bell);
    if (has_work(stage) || arena_command(stage->arena) == COMMAND_STOP) {
        bell_retract(&stage->bell);
    } else if (look_ns > 0) {
        bell_wait_until(&stage->bell, clock_ns() + look_ns);
        bell_retract(&stage->bell);
    } else {
        bell_wait(&stage->bell);
    }
    stage->idle_since_ns = 0;
}
