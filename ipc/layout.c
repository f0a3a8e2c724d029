#include "ipc/layout.h"

#define PAGE_BYTES 4096u

static uint32_t power_of_two_at_least(uint32_t value)
{
    uint32_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

/* Takes the next `bytes` of a region, on a boundary that keeps writers and tensors apart. */
static size_t take(size_t *offset, size_t bytes)
{
    *offset = align_up_u64(*offset, 128);
    size_t at = *offset;
    *offset += bytes;
    return at;
}

static void layout_front(struct layout *l, const struct plan *plan)
{
    size_t offset = sizeof(struct region_head);
    /* accepted, stopped, cancelled, drained: four messages in the life of a slot (more where stop strings end its choices one
     * by one), and the next life may begin before they are read */
    l->front_ring_slots = power_of_two_at_least(8 * plan->requests_max);
    l->prompt_pages_per_request = (uint32_t)div_up_u64(plan->max_model_len + PROMPT_MORE_WORDS_MAX, PAGE_TOKENS);
    l->front_process = take(&offset, sizeof(struct process_shm));
    l->front_ring = take(&offset, (size_t)l->front_ring_slots * sizeof(struct ring_slot_shm));
    l->front_requests = take(&offset, (size_t)plan->requests_max * sizeof(struct request_shm));
    l->front_prompt_lists = take(&offset, (size_t)plan->requests_max * l->prompt_pages_per_request * sizeof(uint32_t));
    l->front_prompt_pages = take(&offset, (size_t)plan->prompt_pages * PAGE_TOKENS * sizeof(uint32_t));
    l->region_bytes[REGION_FRONT] = align_up_u64(offset, PAGE_BYTES);
    /* per connection: one request's body, and room for headers, the send buffer and counters */
    l->region_bytes[REGION_CONNS] =
        align_up_u64((size_t)plan->connections_max * ((size_t)plan->body_bytes_max + 131072) + 4096, PAGE_BYTES);
}

/* Completions beyond the queue's size would lie in kernel memory and die with their process: it holds all that can be in
 * flight, which is a receive, a send, a watch and a cancellation of every connection, and the loop's own. */
static void layout_io(struct layout *l, const struct plan *plan)
{
    size_t offset = PAGE_BYTES; /* the first page says where in the queues things are */
#ifdef EVENFLOW_FAULTS
    l->io_submissions_max = 16; /* few: a turn may want more, and the points there are passed */
#else
    l->io_submissions_max = IO_SUBMISSIONS_MAX;
#endif
    l->io_completions_max =
        power_of_two_at_least((uint32_t)max_u64(4ull * plan->connections_max + 1024, 2ull * IO_SUBMISSIONS_MAX));
    l->io_rings = offset;
    /* heads and tails, completions of 16 bytes, an index of 4 for every submission */
    offset += align_up_u64(PAGE_BYTES + l->io_completions_max * 16ull + l->io_submissions_max * 4ull, PAGE_BYTES);
    l->io_submissions = offset;
    offset += align_up_u64(l->io_submissions_max * 64ull, PAGE_BYTES);
    l->io_calls = offset;
    offset += (size_t)plan->connections_max * IO_CALLS_PER_CONNECTION * IO_CALL_BYTES;
    l->region_bytes[REGION_IO] = l->region_bytes[REGION_IO_PAST] = align_up_u64(offset, PAGE_BYTES);
}

static void layout_sched(struct layout *l, const struct plan *plan)
{
    l->blocks_per_sequence = (uint32_t)div_up_u64(plan->max_model_len, plan->block_size);
    l->log_pages_per_sequence = (uint32_t)(div_up_u64(plan->max_model_len, LOG_PAGE_TOKENS) +
                                           div_up_u64(plan->max_model_len, TOPS_PER_PAGE(LOGPROBS_MAX)));
    l->sched_ring_slots = power_of_two_at_least(4 * plan->requests_max);
    l->step_slots = power_of_two_at_least(2 * plan->window);
    l->step_rows_max = plan->max_num_seqs;
    l->step_tokens_max = plan->max_num_batched_tokens;
    l->step_blocks_max = plan->max_num_seqs * l->blocks_per_sequence;
    l->step_results_max =
        (uint32_t)max_u64(plan->max_num_seqs, plan->max_num_batched_tokens); /* scored rows: one a token */

    size_t in_step = sizeof(struct step_shm);
    l->step_rows = take(&in_step, (size_t)l->step_rows_max * sizeof(struct row_shm));
    l->step_tokens = take(&in_step, (size_t)l->step_tokens_max * sizeof(uint32_t));
    l->step_blocks = take(&in_step, (size_t)l->step_blocks_max * sizeof(uint32_t));
    l->step_stride = align_up_u64(in_step, 128);

    size_t offset = sizeof(struct region_head);
    l->sched_process = take(&offset, sizeof(struct process_shm));
    l->sched_timing = take(&offset, sizeof(struct timing));
    l->sched_fits = take(&offset, plan->stage_count * sizeof(struct stage_fit_shm));
    l->sched_accounts = take(&offset, plan->stage_count * sizeof(struct stage_account_shm));
    l->sched_ring = take(&offset, (size_t)l->sched_ring_slots * sizeof(struct ring_slot_shm));
    l->sched_answers = take(&offset, (size_t)plan->requests_max * sizeof(struct answer_shm));
    l->sched_sequences = take(&offset, (size_t)plan->sequences_max * sizeof(struct sequence_shm));
    l->sched_marks = take(&offset, (size_t)plan->sequences_max * sizeof(struct mark_shm));
    l->sched_block_tables = take(&offset, (size_t)plan->sequences_max * l->blocks_per_sequence * sizeof(uint32_t));
    l->sched_block_hashes =
        take(&offset, (size_t)plan->sequences_max * l->blocks_per_sequence * sizeof(struct block_hash_shm));
    l->sched_log_lists = take(&offset, (size_t)plan->sequences_max * l->log_pages_per_sequence * sizeof(uint32_t));
    l->sched_log_pages = take(&offset, (size_t)plan->log_pages * LOG_PAGE_TOKENS * sizeof(struct token_shm));
    l->sched_steps = take(&offset, (size_t)l->step_slots * l->step_stride);
    l->region_bytes[REGION_SCHED] = align_up_u64(offset, PAGE_BYTES);
}

static void layout_stages(struct layout *l, const struct plan *plan)
{
    /* a stage has at most `window` steps to tell of; twice that leaves room for what a successor repeats */
    l->stage_ring_slots = power_of_two_at_least(2 * plan->window);
    /* in-flight steps are consecutive, at most `window`: none shares a buffer with another */
    l->activation_slots = power_of_two_at_least(plan->window);
    l->activation_stride = align_up_u64((size_t)plan->max_num_batched_tokens * plan->width * sizeof(float), PAGE_BYTES);
    l->result_stride = align_up_u64((size_t)l->step_results_max * sizeof(struct token_shm), 128);
    l->tops_stride = align_up_u64((size_t)l->step_results_max * LOGPROBS_MAX * sizeof(struct top_shm), 128);
    l->edge_activations = align_up_u64(l->activation_slots * sizeof(uint32_t), PAGE_BYTES);
    for (uint32_t stage = 0; stage < plan->stage_count; stage++) {
        bool is_last = stage + 1 == plan->stage_count;
        size_t offset = sizeof(struct region_head);
        l->stage_process = take(&offset, sizeof(struct process_shm));
        l->stage_session = take(&offset, sizeof(struct session_shm));
        l->stage_times = take(&offset, (size_t)l->step_slots * sizeof(struct step_time_shm));
        l->stage_ring = take(&offset, (size_t)l->stage_ring_slots * sizeof(struct ring_slot_shm));
        size_t rest = align_up_u64(offset, PAGE_BYTES);
        bool is_on_device = plan->slices[stage].edge != EDGE_HOST;
        size_t activations = l->activation_slots * l->activation_stride;
        /* the last stage returns results where the others keep activations */
        l->stage_activations = l->stage_results = rest;
        rest += is_last ? l->step_slots * l->result_stride : is_on_device ? 0 : activations;
        l->stage_tops = l->stage_results + l->step_slots * l->result_stride;
        rest += is_last ? l->step_slots * l->tops_stride : 0;
        l->region_bytes[REGION_STAGE + stage] = align_up_u64(rest, PAGE_BYTES);
        uint64_t page = plan->slices[stage].device == DEVICE_CPU ? PAGE_BYTES : plan->device_page_bytes;
        l->region_bytes[REGION_EDGE + stage] =
            is_on_device ? align_up_u64(l->edge_activations + activations, plan->device_page_bytes) : 0;
        l->region_bytes[REGION_KV + stage] =
            align_up_u64((uint64_t)plan->num_blocks * plan->slices[stage].layer_count * plan->kv_block_bytes, page);
        l->region_bytes[REGION_WEIGHTS + stage] = align_up_u64(plan->slices[stage].weights_bytes, page);
    }
}

void layout_compute(struct layout *layout, const struct plan *plan)
{
    *layout = (struct layout){0};
    layout->region_bytes[REGION_PLAN] = align_up_u64(sizeof(struct plan), PAGE_BYTES);
    layout->region_bytes[REGION_VOCAB] = align_up_u64(plan->vocab_bytes, PAGE_BYTES);
    layout->region_bytes[REGION_SUP] = align_up_u64(sizeof(struct sup_shm), PAGE_BYTES);
    layout_front(layout, plan);
    layout_io(layout, plan);
    layout_sched(layout, plan);
    layout_stages(layout, plan);
}

const char *role_name(enum role role)
{
    static const char *const names[ROLE_COUNT] = {"supervisor", "front", "sched", "stage"};
    check(role < ROLE_COUNT);
    return names[role];
}
