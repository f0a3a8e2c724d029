#include "engine/sched.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "engine/fit.h"
#include "engine/policy.h"
#include "engine/prefix.h"
#include "engine/recover.h"
#include "ipc/journal.h"

void sched_init(struct sched *sched, const struct arena *arena, const struct policy *policy)
{
    const struct plan *plan = arena->plan;
    *sched = (struct sched){
        .arena = arena,
        .plan = plan,
        .policy = policy,
        .next_step = 1,
        .lone_speed = 1,
        .intake_first = SEQ_NONE,
        .intake_last = SEQ_NONE,
        .requests = base_alloc(plan->requests_max * sizeof(*sched->requests)),
        .free_log_pages = base_alloc(plan->log_pages * sizeof(uint32_t)),
        .flights = base_alloc(plan->window * sizeof(*sched->flights)),
        .preempted = base_alloc(plan->max_num_seqs * sizeof(uint32_t)),
        .block_tokens = base_alloc(plan->block_size * sizeof(uint32_t)),
        .news = base_alloc(plan->requests_max * sizeof(uint32_t)),
        .tops = base_alloc((size_t)arena->layout.step_results_max * LOGPROBS_MAX * sizeof(struct top_shm)),
        .policy_state = policy->state_bytes != NULL ? base_alloc(policy->state_bytes(plan)) : NULL};
    kv_init(&sched->kv, plan->num_blocks);
    drafts_init(&sched->drafts, plan);
    hitrate_init(&sched->hitrate, HITRATE_WINDOW_MAX);
    seq_init(&sched->table, arena);
    for (uint32_t page = plan->log_pages; page-- > 0;)
        sched->free_log_pages[sched->free_log_page_count++] = page;
    if (arena_timing(arena)->stage_count == 0)
        *arena_timing(arena) = plan->timing;
    for (uint32_t i = 0; i < plan->stage_count; i++)
        if (arena_fits(arena)[i].speed == 0) /* a predecessor's is kept */
            fit_init(&arena_fits(arena)[i]);
    account_init(&sched->account, arena);
    if (policy->open != NULL)
        policy->open(sched);
}

void sched_set_time(struct sched *sched, uint64_t now_us)
{
    sched->now_us = max_u64(sched->now_us, now_us);
}

void sched_fini(struct sched *sched)
{
    free(sched->requests);
    free(sched->free_log_pages);
    free(sched->flights);
    free(sched->preempted);
    free(sched->block_tokens);
    free(sched->news);
    free(sched->tops);
    free(sched->policy_state);
    kv_fini(&sched->kv);
    drafts_fini(&sched->drafts);
    seq_fini(&sched->table);
    *sched = (struct sched){0};
}

static struct seq *seq_of(const struct sched *sched, uint32_t sequence)
{
    return &sched->table.seqs[sequence];
}

/* ---- news ---- */

void sched_add_news(struct sched *sched, uint32_t slot)
{
    if (sched->requests[slot].has_news)
        return;
    sched->requests[slot].has_news = true;
    sched->news[sched->news_count++] = slot;
}

bool sched_next_news(struct sched *sched, uint32_t *slot)
{
    if (sched->news_count == 0)
        return false;
    *slot = sched->news[--sched->news_count];
    sched->requests[*slot].has_news = false;
    return true;
}

/* ---- requests ---- */

/* Tokens whose KV can be computed when so many entries are committed; nothing follows the last one of a prompt that is only
 * scored. */
static uint32_t known_of(const struct request_shm *request, uint32_t committed)
{
    uint32_t first = journal_log_first(request), generated = committed > first ? committed - first : 0;
    return request->prompt_tokens + generated - (request->max_tokens == 0);
}

void sched_describe(struct sched *sched, uint32_t sequence)
{
    const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    const struct request_shm *request = arena_request(sched->arena, shm->request);
    uint32_t committed = journal_log_committed(shm), log_first = journal_log_first(request);
    struct seq *seq = seq_of(sched, sequence);
    *seq = (struct seq){
        .known = known_of(request, committed),
        .computed = shm->computed,
        .block_count = shm->block_count,
        .prompt_tokens = shm->prompt_tokens,
        .last_token = committed > log_first ? journal_log_entry(sched->arena, sequence, committed - 1)->token : 0,
        .no_end_before = shm->prompt_tokens + request->min_tokens,
        .has_answer = request->max_tokens > 0,
        .priority = request->priority,
        .order = request->order,
        .arrived_us = sched->now_us,
        .row = {.sequence = sequence,
                .sequence_generation = shm->generation,
                .flags = (request->flags & REQUEST_LOGITS_HASH ? ROW_LOGITS_HASH : 0u) |
                         (request->flags & REQUEST_LOGPROB ? ROW_LOGPROB : 0u),
                .choice = shm->choice,
                .top_k = request->top_k,
                .seed = request->seed,
                .temperature = request->temperature,
                .top_p = request->top_p,
                .min_p = request->min_p,
                .presence_penalty = request->presence_penalty,
                .frequency_penalty = request->frequency_penalty,
                .repetition_penalty = request->repetition_penalty,
                .request = shm->request,
                .prompt_tokens = shm->prompt_tokens,
                .bias_count = request->bias_count,
                .top_logprobs = request->top_logprobs,
                .grammar_words = request->grammar_words,
                .log_first = log_first},
    };
}

/* What front promised; another process's word is looked at before it is used. */
static bool is_sound(const struct sched *sched, const struct request_shm *request)
{
    uint64_t capacity =
        min_u64(sched->plan->max_model_len, (uint64_t)sched->plan->num_blocks * sched->plan->block_size);
    return request->generation != 0 && request->choices >= 1 && request->choices <= CHOICES_MAX &&
           request->prompt_tokens >= 1 && (uint64_t)request->prompt_tokens + request->max_tokens <= capacity &&
           journal_log_entries(request) >= 1 && request->stop_token_count <= STOP_TOKENS_MAX &&
           request->bias_count <= LOGIT_BIAS_MAX && request->top_logprobs <= LOGPROBS_MAX &&
           request->grammar_words <= GRAMMAR_WORDS_MAX;
}

/* Its pages exist and hold tokens of the vocabulary: a stage ends the engine over any other. */
static bool is_prompt_sound(const struct sched *sched, uint32_t slot)
{
    const struct request_shm *request = arena_request(sched->arena, slot);
    uint32_t count = request->prompt_tokens;
    for (uint32_t page = 0; page < div_up_u64(journal_prompt_words(request), PAGE_TOKENS); page++)
        if (arena_prompt_list(sched->arena, slot)[page] >= sched->plan->prompt_pages)
            return false;
    for (uint32_t first = 0, run; first < count; first += run) {
        run = (uint32_t)min_u64(count - first, sched->plan->block_size);
        journal_prompt_read(sched->arena, slot, first, run, sched->block_tokens);
        for (uint32_t i = 0; i < run; i++)
            if (sched->block_tokens[i] >= sched->plan->vocab_size)
                return false;
    }
    return true;
}

/* Some day there will be logs and slots for it: one that waits for more than there are would hold up all behind it. */
static bool can_be_taken_in(const struct sched *sched, const struct request_shm *request)
{
    return request->choices <= sched->plan->sequences_max &&
           (uint64_t)request->choices * journal_log_pages(request) <= sched->plan->log_pages;
}

void sched_copy_tokens(const struct sched *sched, uint32_t sequence, uint32_t first, uint32_t count, uint32_t *tokens)
{
    const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    uint32_t log_first = journal_log_first(arena_request(sched->arena, shm->request));
    uint32_t from_prompt = first < shm->prompt_tokens ? (uint32_t)min_u64(count, shm->prompt_tokens - first) : 0;
    if (from_prompt > 0)
        journal_prompt_read(sched->arena, shm->request, first, from_prompt, tokens);
    journal_log_read(sched->arena, sequence, log_first + first + from_prompt - shm->prompt_tokens, count - from_prompt,
                     tokens + from_prompt);
}

void sched_extend_hashes(struct sched *sched, uint32_t sequence)
{
    struct seq *seq = seq_of(sched, sequence);
    struct block_hash_shm *hashes = arena_block_hashes(sched->arena, sequence);
    uint32_t block_size = sched->plan->block_size;
    if (!sched->plan->enable_prefix_caching)
        return;
    for (; (seq->hashed + 1) * block_size <= seq->known; seq->hashed++) {
        sched_copy_tokens(sched, sequence, seq->hashed * block_size, block_size, sched->block_tokens);
        hashes[seq->hashed] = prefix_hash(sched->plan->prefix_key, seq->hashed > 0 ? &hashes[seq->hashed - 1] : NULL,
                                          sched->block_tokens, block_size);
        kv_expect(&sched->kv, &hashes[seq->hashed]);
    }
}

static void start_waiting(struct sched *sched, uint32_t sequence, bool was_preempted)
{
    struct seq_table *table = &sched->table;
    if (sched->plan->uses_priority)
        seq_list_insert(table, &table->waiting, sequence);
    else if (was_preempted)
        seq_list_prepend(table, &table->waiting, sequence);
    else
        seq_list_append(table, &table->waiting, sequence);
    seq_set_state(table, sequence, SEQUENCE_WAITING);
}

static void create_sequence(struct sched *sched, uint32_t slot, uint32_t choice)
{
    const struct arena *arena = sched->arena;
    const struct request_shm *request = arena_request(arena, slot);
    uint32_t sequence = sched->table.free.first;
    seq_list_remove(&sched->table, sequence);
    struct sequence_shm *shm = arena_sequence(arena, sequence);
    check(journal_sequence_state(shm) == SEQUENCE_FREE);
    shm->generation++;
    shm->request = slot;
    shm->request_generation = request->generation;
    shm->choice = choice;
    shm->finish_reason = FINISH_NONE;
    shm->prompt_tokens = request->prompt_tokens;
    shm->computed = shm->block_count = shm->preemptions = shm->cached_tokens = 0;
    arena_mark(arena, sequence)->until = 0;
    journal_log_clear(shm);
    shm->log_page_count = journal_log_pages(request);
    for (uint32_t i = 0; i < shm->log_page_count; i++)
        arena_log_list(arena, sequence)[i] = sched->free_log_pages[--sched->free_log_page_count];
    sched_describe(sched, sequence);
    sched_extend_hashes(sched, sequence);
    arena_answer(arena, slot)->sequences[choice] = sequence;
    start_waiting(sched, sequence, false);
    if (sched->policy->arrived != NULL)
        sched->policy->arrived(sched, sequence);
}

/* Requests become sequences in the order of acceptance, as long as logs and slots suffice. */
static void take_in(struct sched *sched)
{
    while (sched->intake_first != SEQ_NONE && !sched->is_finishing) {
        uint32_t slot = sched->intake_first;
        const struct request_shm *request = arena_request(sched->arena, slot);
        uint32_t pages = request->choices * journal_log_pages(request);
        if (pages > sched->free_log_page_count || request->choices > sched->table.free.count)
            return;
        sched->intake_first = sched->requests[slot].next;
        if (sched->intake_first == SEQ_NONE)
            sched->intake_last = SEQ_NONE;
        sched->requests[slot].is_in_intake = false;
        struct answer_shm *answer = arena_answer(sched->arena, slot);
        for (uint32_t choice = 0; choice < request->choices; choice++)
            create_sequence(sched, slot, choice);
        answer->sequence_count = request->choices;
        journal_answer_set(answer, request->generation);
    }
}

static void put_into_intake(struct sched *sched, uint32_t slot)
{
    sched->requests[slot].is_in_intake = true;
    sched->requests[slot].next = SEQ_NONE;
    if (sched->intake_last != SEQ_NONE)
        sched->requests[sched->intake_last].next = slot;
    else
        sched->intake_first = slot;
    sched->intake_last = slot;
}

static void remove_from_intake(struct sched *sched, uint32_t slot)
{
    uint32_t before = SEQ_NONE;
    for (uint32_t at = sched->intake_first; at != slot; at = sched->requests[at].next)
        before = at;
    if (before != SEQ_NONE)
        sched->requests[before].next = sched->requests[slot].next;
    else
        sched->intake_first = sched->requests[slot].next;
    if (sched->intake_last == slot)
        sched->intake_last = before;
    sched->requests[slot].is_in_intake = false;
}

/* A request that never gets a sequence has an answer all the same: no choices. */
static void answer_with_nothing(struct sched *sched, uint32_t slot)
{
    struct answer_shm *answer = arena_answer(sched->arena, slot);
    answer->sequence_count = 0;
    journal_answer_set(answer, sched->requests[slot].generation);
    sched_add_news(sched, slot);
}

void sched_accept(struct sched *sched, uint32_t slot)
{
    check(slot < sched->plan->requests_max);
    const struct request_shm *request = arena_request(sched->arena, slot);
    if (journal_request_state(request) != REQUEST_ACCEPTED || sched->requests[slot].generation == request->generation)
        return; /* a repeated hint, or one that came late */
    check(sched->requests[slot].generation == 0);
    sched->requests[slot].generation = request->generation;
    if (!is_sound(sched, request) || !can_be_taken_in(sched, request) || !is_prompt_sound(sched, slot)) {
        answer_with_nothing(sched, slot);
        return;
    }
    put_into_intake(sched, slot);
    take_in(sched);
}

/* ---- nothing begins any more ---- */

/* Something of its request was computed, and may be in an answer by now. */
static bool has_begun(const struct sched *sched, uint32_t sequence)
{
    const struct answer_shm *answer = arena_answer(sched->arena, arena_sequence(sched->arena, sequence)->request);
    for (uint32_t i = 0; i < answer->sequence_count; i++) {
        const struct sequence_shm *shm = arena_sequence(sched->arena, answer->sequences[i]);
        if (journal_sequence_state(shm) != SEQUENCE_WAITING || journal_log_committed(shm) > 0 ||
            seq_of(sched, answer->sequences[i])->in_flight > 0 || suspect_is(sched, answer->sequences[i]))
            return true;
    }
    return false;
}

void sched_finish_begun(struct sched *sched, bool is_on)
{
    struct seq_table *table = &sched->table;
    struct seq_list *from = is_on ? &table->waiting : &table->held;
    sched->is_finishing = is_on;
    for (uint32_t sequence = from->first, next; sequence != SEQ_NONE; sequence = next) {
        next = table->seqs[sequence].next;
        if (is_on && has_begun(sched, sequence))
            continue;
        seq_list_remove(table, sequence);
        if (is_on || !sched->plan->uses_priority)
            seq_list_append(table, is_on ? &table->held : &table->waiting, sequence);
        else
            seq_list_insert(table, &table->waiting, sequence);
    }
    take_in(sched);
}

bool sched_has_finished(const struct sched *sched)
{
    return sched->is_finishing && sched->table.running.count + sched->table.waiting.count + sched->in_flight == 0;
}

/* ---- the end of a sequence ---- */

static void release_blocks(struct sched *sched, uint32_t sequence)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    struct seq *seq = seq_of(sched, sequence);
    kv_give_back(&sched->kv, arena_block_table(sched->arena, sequence), seq->block_count);
    shm->block_count = seq->block_count = 0;
    shm->computed = seq->computed = 0;
    journal_order(); /* nobody else's table names these blocks before ours no longer does */
    seq->published = 0;
}

void sched_finish(struct sched *sched, uint32_t sequence, enum finish_reason reason)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    seq_list_remove(&sched->table, sequence);
    release_blocks(sched, sequence);
    shm->finish_reason = reason;
    seq_set_state(&sched->table, sequence, SEQUENCE_DONE);
    suspect_forget(sched, sequence);
    if (sched->policy->ended != NULL && reason != FINISH_ABORT)
        sched->policy->ended(sched, sequence);
    sched_add_news(sched, shm->request);
}

void sched_cancel(struct sched *sched, uint32_t slot)
{
    check(slot < sched->plan->requests_max);
    const struct answer_shm *answer = arena_answer(sched->arena, slot);
    uint32_t generation = sched->requests[slot].generation;
    if (generation == 0 || generation != arena_request(sched->arena, slot)->generation)
        return;
    if (sched->requests[slot].is_in_intake) {
        remove_from_intake(sched, slot);
        answer_with_nothing(sched, slot);
        take_in(sched);
        return;
    }
    for (uint32_t i = 0; i < answer->sequence_count; i++)
        if (seq_is_live(&sched->table, answer->sequences[i]))
            sched_finish(sched, answer->sequences[i], FINISH_ABORT);
}

void sched_stop(struct sched *sched, uint32_t slot, uint32_t choices)
{
    check(slot < sched->plan->requests_max);
    const struct answer_shm *answer = arena_answer(sched->arena, slot);
    uint32_t generation = sched->requests[slot].generation;
    if (generation == 0 || generation != arena_request(sched->arena, slot)->generation ||
        sched->requests[slot].is_in_intake) /* nothing of it can have been found */
        return;
    for (uint32_t i = 0; i < answer->sequence_count; i++)
        if (choices >> i & 1 && seq_is_live(&sched->table, answer->sequences[i]))
            sched_finish(sched, answer->sequences[i], FINISH_STOP);
}

void sched_drained(struct sched *sched, uint32_t slot)
{
    check(slot < sched->plan->requests_max);
    const struct arena *arena = sched->arena;
    const struct request_shm *request = arena_request(arena, slot);
    struct answer_shm *answer = arena_answer(arena, slot);
    if (sched->requests[slot].generation == 0 || journal_request_state(request) != REQUEST_DRAINED ||
        sched->requests[slot].generation != request->generation)
        return;
    sched_cancel(sched, slot); /* front drains only what is done; a successor of it may not know */
    for (uint32_t i = 0; i < answer->sequence_count; i++) {
        uint32_t sequence = answer->sequences[i];
        struct sequence_shm *shm = arena_sequence(arena, sequence);
        if (journal_sequence_state(shm) == SEQUENCE_FREE)
            continue; /* a predecessor came so far */
        for (uint32_t page = shm->log_page_count; page-- > 0;)
            sched->free_log_pages[sched->free_log_page_count++] = arena_log_list(arena, sequence)[page];
        shm->log_page_count = 0;
        seq_set_state(&sched->table, sequence, SEQUENCE_FREE);
        seq_list_append(&sched->table, &sched->table.free, sequence);
    }
    answer->sequence_count = 0;
    sched->requests[slot].generation = 0;
    journal_answer_set(answer, 0);
    sched_add_news(sched, slot);
    take_in(sched);
}

/* ---- planning: what policies ask for (policy.h) ---- */

const struct request_shm *policy_request(const struct sched *sched, uint32_t sequence)
{
    return arena_request(sched->arena, seq_of(sched, sequence)->row.request);
}

uint32_t policy_free_blocks(const struct sched *sched)
{
    return sched->kv.free_count;
}

uint32_t policy_blocks_for(const struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    uint64_t room = (uint64_t)seq_of(sched, sequence)->block_count * sched->plan->block_size;
    return tokens > room ? (uint32_t)div_up_u64(tokens - room, sched->plan->block_size) : 0;
}

uint32_t policy_blocks_reserved(const struct sched *sched)
{
    return sched->table.running.count > 0 ? sched->plan->watermark_blocks : 0;
}

struct policy_hit policy_find_prefix(const struct sched *sched, uint32_t sequence)
{
    struct policy_hit hit = {0};
    const struct seq *seq = seq_of(sched, sequence);
    const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    /* Scores of cached tokens would have to be cached too. */
    if (journal_log_committed(shm) < journal_log_first(arena_request(sched->arena, shm->request)))
        return hit;
    uint32_t most = (uint32_t)min_u64(seq->hashed, (seq->known - 1) / sched->plan->block_size);
    for (; hit.blocks < most; hit.blocks++) {
        uint32_t block = kv_find(&sched->kv, &arena_block_hashes(sched->arena, sequence)[hit.blocks]);
        if (block == KV_NONE)
            break;
        hit.free_blocks += sched->kv.blocks[block].references == 0;
    }
    hit.tokens = hit.blocks * sched->plan->block_size;
    return hit;
}

const struct timing *policy_timing(const struct sched *sched)
{
    return arena_timing(sched->arena);
}

const struct shape *policy_shape(const struct sched *sched)
{
    return &sched->shape;
}

const struct flight *policy_flight(const struct sched *sched, uint32_t back)
{
    check(back >= 1 && back <= sched->in_flight);
    return &sched->flights[(sched->next_step - back) % sched->plan->window];
}

bool policy_has_row(const struct sched *sched, uint32_t sequence)
{
    return seq_of(sched, sequence)->row_of_plan != 0;
}

/* Blocks that hold so many tokens, which it has; mostly all of its blocks. */
static uint32_t blocks_of(const struct sched *sched, const struct seq *seq, uint32_t tokens)
{
    uint32_t block_size = sched->plan->block_size;
    bool is_all = (uint64_t)seq->block_count * block_size - tokens < block_size;
    return is_all ? seq->block_count : (uint32_t)div_up_u64(tokens, block_size);
}

static void fill_row(struct sched *sched, struct row_shm *row, uint32_t sequence, uint32_t tokens)
{
    const struct seq *seq = seq_of(sched, sequence);
    struct step_shm *record = sched->record;
    uint32_t end = seq->computed + tokens, block_count = blocks_of(sched, seq, end), result_count = 1;
    *row = seq->row;
    row->first_pos = seq->computed;
    row->token_count = tokens;
    row->token_first = record->token_count;
    row->block_first = record->block_count;
    row->block_count = block_count;
    row->result_first = record->result_count;
    if (tokens == 1 && end == seq->known && end > seq->prompt_tokens) { /* most of them: on with an answer */
        row->flags = seq->row.flags | ROW_SAMPLE | (end < seq->no_end_before ? ROW_NO_END : 0u);
        sched->tokens[record->token_count] = seq->last_token;
    } else {
        bool is_score = seq->computed < seq->row.log_first, samples = seq->has_answer && end == seq->known;
        result_count = is_score ? tokens : samples;
        row->flags = seq->row.flags | (is_score ? ROW_SCORE : 0u) | (samples ? ROW_SAMPLE : 0u) |
                     (samples && end < seq->no_end_before ? ROW_NO_END : 0u);
        sched_copy_tokens(sched, sequence, seq->computed, tokens, sched->tokens + record->token_count);
        if (is_score && !samples)
            sched_copy_tokens(sched, sequence, end, 1, &row->score_next);
    }
    row->result_count = result_count;
    memcpy(sched->blocks + record->block_count, arena_block_table(sched->arena, sequence),
           block_count * sizeof(uint32_t));
    record->token_count += tokens;
    record->block_count += block_count;
    record->result_count += result_count;
    shape_add(&sched->shape, seq->computed, tokens, result_count);
}

void sched_publish_blocks(struct sched *sched, uint32_t sequence)
{
    struct seq *seq = seq_of(sched, sequence);
    uint32_t full = seq->computed / sched->plan->block_size;
    for (; seq->published < full && seq->published < seq->hashed; seq->published++) {
        uint32_t block = arena_block_table(sched->arena, sequence)[seq->published];
        /* after a predecessor's death several sequences may hold it unpublished */
        if (!sched->kv.blocks[block].is_published)
            kv_publish(&sched->kv, block, &arena_block_hashes(sched->arena, sequence)[seq->published]);
    }
}

bool policy_take_blocks(struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    struct seq *seq = seq_of(sched, sequence);
    uint32_t more = policy_blocks_for(sched, sequence, seq->computed + tokens);
    if (more == 0)
        return true;
    check(seq->block_count + more <= sched->arena->layout.blocks_per_sequence);
    if (!kv_take(&sched->kv, arena_block_table(sched->arena, sequence) + seq->block_count, more))
        return false;
    journal_order(); /* numbers of blocks before their count */
    arena_sequence(sched->arena, sequence)->block_count = seq->block_count += more;
    return true;
}

bool policy_add_row(struct sched *sched, uint32_t sequence, uint32_t tokens)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    struct seq *seq = seq_of(sched, sequence);
    check(tokens > 0);
    check(tokens <= policy_budget(sched));
    check(tokens <= policy_schedulable(sched, sequence));
    check(seq->row_of_plan == 0);
    bool has_blocks = seq->computed + tokens <= (uint64_t)seq->block_count * sched->plan->block_size;
    if (!has_blocks && !policy_take_blocks(sched, sequence, tokens))
        return false;
    fill_row(sched, sched->rows + sched->record->row_count, sequence, tokens);
    seq->row_of_plan = ++sched->record->row_count;
    shm->computed_before = seq->computed;
    journal_order();
    shm->planned_step = (uint32_t)sched->next_step;
    journal_order();
    shm->computed = seq->computed += tokens;
    if (seq->published != seq->hashed)
        sched_publish_blocks(sched, sequence);
    return true;
}

bool policy_admit_blocks(struct sched *sched, uint32_t sequence, const struct policy_hit *hit, uint32_t tokens)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    struct seq *seq = seq_of(sched, sequence);
    check(journal_sequence_state(shm) == SEQUENCE_WAITING);
    check(seq->block_count == 0);
    uint32_t needed = (uint32_t)div_up_u64(hit->tokens + tokens, sched->plan->block_size) - hit->blocks;
    if (seq->in_flight > 0) /* the token that is on its way would be computed a second time */
        return false;
    if (sched->table.running.count == sched->plan->max_num_seqs || needed + hit->free_blocks > sched->kv.free_count)
        return false;
    shm->admitted_step = (uint32_t)sched->next_step;
    journal_order();
    for (uint32_t i = 0; i < hit->blocks; i++) {
        uint32_t block = kv_find(&sched->kv, &arena_block_hashes(sched->arena, sequence)[i]);
        kv_hold(&sched->kv, block);
        arena_block_table(sched->arena, sequence)[i] = block;
    }
    shm->block_count = seq->block_count = hit->blocks;
    shm->computed = seq->computed = hit->tokens;
    seq->published = hit->blocks;
    if (shm->preemptions == 0) {
        shm->cached_tokens = (uint32_t)min_u64(hit->tokens, shm->prompt_tokens);
        sched->cached_tokens += shm->cached_tokens;
        hitrate_observe(&sched->hitrate, 1, shm->prompt_tokens, shm->cached_tokens);
    }
    check(policy_take_blocks(sched, sequence, tokens));
    seq_list_remove(&sched->table, sequence);
    seq_list_append(&sched->table, &sched->table.running, sequence);
    seq_set_state(&sched->table, sequence, SEQUENCE_RUNNING);
    return true;
}

bool policy_admit(struct sched *sched, uint32_t sequence, const struct policy_hit *hit, uint32_t tokens)
{
    if (!policy_admit_blocks(sched, sequence, hit, tokens))
        return false;
    check(policy_add_row(sched, sequence, tokens));
    return true;
}

/* Takes a row out of the step again: those behind it move up, tokens, blocks and results with them. */
static void undo_row(struct sched *sched, uint32_t sequence)
{
    struct step_shm *record = sched->record;
    struct row_shm *rows = sched->rows;
    uint32_t *tokens = sched->tokens, *blocks = sched->blocks;
    struct seq *seq = seq_of(sched, sequence);
    uint32_t index = seq->row_of_plan - 1;
    struct row_shm gone = rows[index];
    uint32_t token_end = gone.token_first + gone.token_count, block_end = gone.block_first + gone.block_count;
    memmove(tokens + gone.token_first, tokens + token_end, (record->token_count - token_end) * sizeof(*tokens));
    memmove(blocks + gone.block_first, blocks + block_end, (record->block_count - block_end) * sizeof(*blocks));
    for (uint32_t i = index + 1; i < record->row_count; i++) {
        rows[i].token_first -= gone.token_count;
        rows[i].block_first -= gone.block_count;
        rows[i].result_first -= gone.result_count;
        rows[i - 1] = rows[i];
        seq_of(sched, rows[i].sequence)->row_of_plan--;
    }
    /* what this row was to compute will not be: nobody may find it */
    for (uint32_t first = gone.first_pos / sched->plan->block_size; seq->published > first;) {
        uint32_t block = arena_block_table(sched->arena, sequence)[--seq->published];
        check(sched->kv.blocks[block].references == 1); /* nobody was admitted upon it in this step */
        kv_unpublish(&sched->kv, block);
    }
    shape_remove(&sched->shape, gone.first_pos, gone.token_count, gone.result_count);
    record->row_count--;
    record->token_count -= gone.token_count;
    record->block_count -= gone.block_count;
    record->result_count -= gone.result_count;
    seq->row_of_plan = 0;
}

void sched_take_back(struct sched *sched, uint32_t sequence)
{
    struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
    check(journal_sequence_state(shm) == SEQUENCE_RUNNING);
    release_blocks(sched, sequence);
    shm->preemptions++;
    sched->preemptions++;
    seq_list_remove(&sched->table, sequence);
    start_waiting(sched, sequence, true);
}

void policy_preempt(struct sched *sched, uint32_t sequence)
{
    if (policy_has_row(sched, sequence))
        undo_row(sched, sequence);
    check(sched->preempted_count < sched->plan->max_num_seqs);
    sched->preempted[sched->preempted_count++] = sequence;
    sched_take_back(sched, sequence);
}

/* ---- planning: the step ---- */

/* What the account will want to know of a step; of its rows later. */
static void note_account(struct sched *sched, struct account_step *step)
{
    const struct timing *timing = arena_timing(sched->arena);
    *step = (struct account_step){.shape = sched->shape,
                                  .planned_us = sched->record->planned_us,
                                  .results_us = sched->results_us,
                                  .sequences = sched->table.running.count + sched->table.waiting.count};
    for (uint64_t stage = 0; stage < timing->stage_count; stage++)
        step->predicted_us[stage] = timing_stage_us(&timing->stages[stage], &sched->shape);
}

uint64_t sched_note_flight(struct sched *sched)
{
    uint64_t prompt_tokens = 0;
    const struct step_shm *record = sched->record;
    struct flight *flight = &sched->flights[record->step % sched->plan->window];
    flight->step = record->step;
    flight->rows = arena_step_rows(sched->arena, record);
    flight->row_count = record->row_count;
    flight->result_count = record->result_count;
    flight->is_cancelled = step_is_cancelled(record);
    flight->shape = sched->shape;
    flight->has_tops = false;
    note_account(sched, &flight->account);
    for (uint32_t i = 0; i < record->row_count; i++) {
        const struct row_shm *row = &flight->rows[i];
        struct seq *seq = seq_of(sched, row->sequence);
        flight->has_tops = flight->has_tops || row->top_logprobs > 0;
        seq->row_of_plan = 0;
        /* another one may have the slot, in a step that was planned before */
        if (seq->row.sequence_generation == row->sequence_generation)
            seq->in_flight++;
        if (row->first_pos >= row->prompt_tokens) {
            flight->account.decode_rows++;
            flight->account.decode_blocks += row->block_count;
        } else {
            prompt_tokens += min_u64(row->token_count, row->prompt_tokens - row->first_pos);
        }
    }
    sched->in_flight++;
    return prompt_tokens;
}

struct step_shm *sched_plan(struct sched *sched)
{
    uint32_t running = sched->table.running.count;
    sched->preempted_count = 0;
    sched->wants_another_plan = false;
    uint32_t window = sched->suspects.is_on ? 1 : sched->plan->window;
    if (sched->in_flight >= window || running + sched->table.waiting.count == 0)
        return NULL;
    sched->record = step_begin(sched->arena, sched->next_step);
    sched->rows = arena_step_rows(sched->arena, sched->record);
    sched->tokens = arena_step_tokens(sched->arena, sched->record);
    sched->blocks = arena_step_blocks(sched->arena, sched->record);
    sched->record->planned_us = sched->now_us;
    sched->record->row_count = sched->record->token_count = 0;
    sched->record->block_count = sched->record->result_count = 0;
    sched->shape = (struct shape){0};
    if (sched->suspects.is_on)
        suspect_plan(sched);
    if (!sched->suspects.is_on) {
        sched->policy->plan(sched);
        drafts_add(sched);
    }
    if (sched->record->row_count == 0) {
        sched->wants_another_plan = sched->table.running.count < running; /* so it comes to an end */
        return NULL;
    }
    sched->prompt_tokens += sched_note_flight(sched);
    sched->next_step++;
    sched->steps++;
    return sched->record;
}

/* ---- results ---- */

/* What the last of `generated` tokens makes of its sequence; FINISH_NONE: it goes on. */
static enum finish_reason end_by(const struct plan *plan, const struct request_shm *request,
                                 const struct token_shm *last, uint32_t generated)
{
    for (uint32_t i = 0; i < request->stop_token_count; i++)
        if (request->stop_tokens[i] == last->token && generated >= request->min_tokens)
            return FINISH_STOP;
    bool can_end = !(request->flags & REQUEST_IGNORE_EOS) && generated >= request->min_tokens;
    for (uint32_t i = 0; i < plan->end_token_count && can_end; i++)
        if (plan->end_tokens[i] == last->token)
            return FINISH_STOP;
    if (last->flags & TOKEN_LAST)
        return FINISH_STOP;
    return generated == request->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

/* last: the last one of `committed` entries, at least one. */
static void finish_if_ended_by(struct sched *sched, uint32_t sequence, uint32_t committed, const struct token_shm *last)
{
    const struct request_shm *request = policy_request(sched, sequence);
    uint32_t log_first = seq_of(sched, sequence)->row.log_first;
    enum finish_reason reason = FINISH_NONE;
    if (committed > log_first)
        reason = end_by(sched->plan, request, last, committed - log_first);
    else if (committed == log_first && request->max_tokens == 0)
        reason = FINISH_LENGTH;
    if (reason != FINISH_NONE)
        sched_finish(sched, sequence, reason);
}

void sched_finish_if_ended(struct sched *sched, uint32_t sequence)
{
    uint32_t committed = journal_log_committed(arena_sequence(sched->arena, sequence));
    if (committed > 0)
        finish_if_ended_by(sched, sequence, committed, journal_log_entry(sched->arena, sequence, committed - 1));
}

/* The list of most probable tokens beside a row's result; NULL when none was asked for. */
static const struct top_shm *tops_of(const struct sched *sched, const struct row_shm *row, uint32_t result)
{
    return row->top_logprobs > 0 ? sched->tops + (size_t)(row->result_first + result) * LOGPROBS_MAX : NULL;
}

/* Results of a row that mean something: behind a draft that is not what came, or behind an end, there are none. */
static uint32_t count_results(const struct sched *sched, const struct flight *flight, const struct row_shm *row,
                              const struct token_shm *results)
{
    const uint32_t *tokens = arena_step_tokens(sched->arena, arena_step(sched->arena, flight->step)) + row->token_first;
    const struct request_shm *request = policy_request(sched, row->sequence);
    uint32_t count = step_drafts(row), sure = row->token_count - count; /* tokens that are no drafts */
    uint32_t generated = row->first_pos + sure - request->prompt_tokens;
    for (uint32_t i = 0; i < count; i++)
        if (results[i].token != tokens[sure + i] ||
            end_by(sched->plan, request, &results[i], generated + i + 1) != FINISH_NONE)
            return i + 1;
    return row->result_count;
}

/* Drafts that were right are computed like any other token, once they are committed; unless it was preempted, or a predecessor
 * had come so far. */
static void keep_drafts(struct sched *sched, const struct row_shm *row)
{
    struct seq *seq = seq_of(sched, row->sequence);
    if (seq->computed != row->first_pos + row->token_count - step_drafts(row))
        return;
    journal_order(); /* the tokens before what stands on them */
    sched->drafts.accepted += seq->known - 1 - seq->computed;
    arena_sequence(sched->arena, row->sequence)->computed = seq->computed = seq->known - 1;
}

/* What a row gave: into the sequence's log first, then everything that follows from it. Entries that are there already are the
 * same bits again: scores from before a preemption, or what a predecessor committed that died before it let go of the step's
 * results; what follows from these was made up for at the start. */
static void commit_row(struct sched *sched, const struct flight *flight, const struct row_shm *row,
                       const struct token_shm *results)
{
    struct seq *seq = seq_of(sched, row->sequence);
    uint32_t position = row->first_pos + row->token_count - row->result_count + 1; /* of the first result's token */
    uint32_t entry = seq->row.log_first + position - seq->prompt_tokens;
    uint32_t committed = journal_log_committed(arena_sequence(sched->arena, row->sequence));
    uint32_t drafts = step_drafts(row), count = row->result_count;
    if (drafts > 0)
        count = count_results(sched, flight, row, results);
    check(entry <= committed);                                  /* results come in order */
    uint32_t first = committed - entry, end = position + count; /* of the new ones; tokens known with them */
    for (uint32_t i = first; i < count; i++)
        journal_log_append(sched->arena, row->sequence, &results[i], tops_of(sched, row, i));
    if (first < count && end > seq->prompt_tokens) { /* of the answer */
        sched->generated_tokens += end - (uint32_t)max_u64(position + first, seq->prompt_tokens);
        seq->known = end;
        seq->last_token = results[count - 1].token;
    }
    if (drafts > 0)
        keep_drafts(sched, row);
    if (first >= count)
        return;
    if ((seq->hashed + 1) * sched->plan->block_size <= seq->known)
        sched_extend_hashes(sched, row->sequence);
    sched_add_news(sched, seq->row.request);
    finish_if_ended_by(sched, row->sequence, entry + count, &results[count - 1]);
}

static bool results_are_sound(const struct sched *sched, const struct flight *flight, const struct token_shm *results,
                              uint32_t count)
{
    if (flight->is_cancelled)
        return true; /* some stage passed over it, or none did */
    if (count != flight->result_count)
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (results[i].token >= sched->plan->vocab_size || results[i].top_token >= sched->plan->vocab_size)
            return false;
    return true;
}

/* Lists of most probable tokens, copied before they are looked at. */
static bool take_tops(struct sched *sched, const struct flight *flight)
{
    for (uint32_t i = 0; i < flight->row_count && flight->has_tops; i++) {
        const struct row_shm *row = &flight->rows[i];
        for (uint32_t j = 0; j < row->result_count && row->top_logprobs > 0; j++) {
            size_t at = (size_t)(row->result_first + j) * LOGPROBS_MAX;
            memcpy(sched->tops + at, arena_tops(sched->arena, flight->step) + at,
                   row->top_logprobs * sizeof(*sched->tops));
            for (uint32_t k = 0; k < row->top_logprobs; k++)
                if (sched->tops[at + k].token >= sched->plan->vocab_size)
                    return false;
        }
    }
    return true;
}

/* Between two steps the stages have read all their weights: nothing that a step's return looks at is in a cache any more. It is
 * asked for at once, what all steps look at and what the rows' numbers lead to, ... */
void sched_expect(struct sched *sched, uint64_t step)
{
    const struct arena *arena = sched->arena;
    const struct flight *flight = &sched->flights[step % sched->plan->window];
    if (sched->in_flight == 0 || flight->step != step)
        return; /* sched_return() will say so */
    base_expect(arena_fits(arena), sched->plan->stage_count * sizeof(struct stage_fit_shm));
    base_expect(&sched->account, sizeof(sched->account));
    for (uint32_t i = 0; i < flight->row_count; i++) {
        const struct row_shm *row = &flight->rows[i];
        const struct request_shm *request = arena_request(arena, row->request);
        base_expect(seq_of(sched, row->sequence), offsetof(struct seq, priority));
        base_expect(arena_sequence(arena, row->sequence), sizeof(struct sequence_shm));
        base_expect(arena_log_list(arena, row->sequence), sizeof(uint32_t));
        base_expect(arena_block_table(arena, row->sequence), row->block_count * sizeof(uint32_t));
        base_expect(&request->max_tokens, sizeof(*request) - offsetof(struct request_shm, max_tokens));
        base_expect(&sched->requests[row->request], sizeof(struct sched_request));
    }
}

/* ... and then the log entries, to which some of it leads. */
static void expect_entries(const struct sched *sched, const struct flight *flight)
{
    for (uint32_t i = 0; i < flight->row_count; i++) {
        uint32_t sequence = flight->rows[i].sequence;
        const struct sequence_shm *shm = arena_sequence(sched->arena, sequence);
        uint32_t committed = journal_log_committed(shm);
        if (committed / LOG_PAGE_TOKENS < shm->log_page_count)
            base_expect(journal_log_entry(sched->arena, sequence, committed), sizeof(struct token_shm));
    }
}

#define LONE_GAIN (1.0 / 8) /* of the newest step, in the speed of those that are alone */

/* All stages had the cores of the others nearly all the time: how much faster was the step for that, from plan to results? */
static void measure_lone(struct sched *sched, const struct flight *flight, const struct step_time_shm *times)
{
    const uint32_t stages = sched->plan->stage_count;
    for (uint32_t i = 0; i < stages; i++)
        if (!account_is_sound(&times[i], flight->step) || times[i].lent_ns == 0 ||
            times[i].lent_ns < times[i].cpu_ns - times[i].cpu_ns / 8)
            return;
    double took_us = (double)(times[stages - 1].end_ns / 1000) - (double)flight->account.planned_us;
    double speed = timing_traversal_us(arena_timing(sched->arena), &flight->shape) / took_us;
    if (took_us <= 0 || !(speed > 0))
        return;
    sched->lone_speed = sched->lone_speed == 1 ? speed : sched->lone_speed + LONE_GAIN * (speed - sched->lone_speed);
}

void sched_measure(struct sched *sched, uint64_t step, const struct step_time_shm *times)
{
    const struct flight *flight = &sched->flights[step % sched->plan->window];
    struct timing *timing = arena_timing(sched->arena);
    const struct step_time_shm *last = &times[sched->plan->stage_count - 1];
    if (sched->in_flight == 0 || flight->step != step)
        return; /* sched_return() will say so */
    account_step(&sched->account, step, &flight->account, times, sched->now_us);
    if (account_is_sound(last, step))
        sched->results_us = last->end_ns / 1000;
    measure_lone(sched, flight, times);
    for (uint64_t i = 0; i < timing->stage_count && !sched->plan->freeze_timing; i++) {
        if (!account_is_sound(&times[i], step))
            continue;
        struct stage_fit_shm *fit = &arena_fits(sched->arena)[i];
        fit_observe(fit, &sched->plan->timing.stages[i], &flight->shape, (double)times[i].cost_ns / 1000);
        timing->stages[i] = fit_timing(fit, &sched->plan->timing.stages[i]);
    }
}

bool sched_return(struct sched *sched, uint64_t step, const struct token_shm *results, uint32_t count)
{
    const struct flight *flight = &sched->flights[step % sched->plan->window];
    if (sched->in_flight == 0 || step != sched->next_step - sched->in_flight || flight->step != step ||
        !results_are_sound(sched, flight, results, count) || (!flight->is_cancelled && !take_tops(sched, flight)))
        return false;
    expect_entries(sched, flight);
    sched->in_flight--;
    for (uint32_t i = 0; i < flight->row_count; i++) {
        const struct row_shm *row = &flight->rows[i];
        struct seq *seq = seq_of(sched, row->sequence);
        if (seq->row.sequence_generation != row->sequence_generation)
            continue; /* the slot has another sequence by now */
        seq->in_flight--;
        if (!seq_is_live(&sched->table, row->sequence))
            continue; /* aborted meanwhile, perhaps forgotten already */
        if (row->result_count > 0 && !flight->is_cancelled)
            commit_row(sched, flight, row, results + row->result_first);
    }
    return true;
}
