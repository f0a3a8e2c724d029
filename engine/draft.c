#include "engine/draft.h"

#include <stdlib.h>
#include <string.h>

#include "engine/policy.h"
#include "engine/recover.h"
#include "ipc/journal.h"

#define REACH_MAX 16384u /* tokens of a text that are looked through */
#define CATCH_UP  1024u  /* tokens of a text that are taken in, in one step */
#define RATE_GAIN 0.125  /* of a guess in the rate of those like it */

/* Of a new text. */
static const double first_rates[DRAFT_CLASSES] = {0.3, 0.5, 0.7, 0.9};

void drafts_init(struct drafts *drafts, const struct plan *plan)
{
    *drafts = (struct drafts){0};
    if (plan->speculate == SPECULATE_NONE)
        return;
    drafts->text_count = plan->max_num_seqs;
    drafts->texts = base_alloc(plan->max_num_seqs * sizeof(*drafts->texts));
    drafts->text_of = base_alloc(plan->sequences_max * sizeof(*drafts->text_of));
    drafts->rows = base_alloc(plan->max_num_seqs * sizeof(*drafts->rows));
    for (uint32_t i = 0; i < plan->max_num_seqs; i++)
        ngram_init(&drafts->texts[i].ngram, (uint32_t)min_u64(plan->max_model_len, REACH_MAX));
}

void drafts_fini(struct drafts *drafts)
{
    for (uint32_t i = 0; i < drafts->text_count; i++)
        ngram_free(&drafts->texts[i].ngram);
    free(drafts->texts);
    free(drafts->text_of);
    free(drafts->rows);
    *drafts = (struct drafts){0};
}

/* ---- texts ---- */

static bool is_needed(const struct sched *sched, const struct draft_text *text)
{
    const struct sequence_shm *shm = arena_sequence(sched->arena, text->sequence);
    return text->generation != 0 && text->generation == shm->generation &&
           journal_sequence_state(shm) == SEQUENCE_RUNNING;
}

/* The text of a running sequence, with nothing in it if it had none. No more run than there are texts. */
static struct draft_text *text_of(struct sched *sched, uint32_t sequence)
{
    struct drafts *drafts = &sched->drafts;
    uint32_t generation = arena_sequence(sched->arena, sequence)->generation;
    struct draft_text *text = &drafts->texts[drafts->text_of[sequence]];
    if (text->sequence == sequence && text->generation == generation)
        return text;
    for (uint32_t tries = 0; is_needed(sched, &drafts->texts[drafts->next_text]); tries++) {
        check(tries < drafts->text_count);
        drafts->next_text = (drafts->next_text + 1) % drafts->text_count;
    }
    drafts->text_of[sequence] = drafts->next_text;
    text = &drafts->texts[drafts->next_text];
    text->sequence = sequence;
    text->generation = generation;
    text->guess_count = 0;
    memcpy(text->rate, first_rates, sizeof(text->rate));
    ngram_clear(&text->ngram);
    return text;
}

/* A token has come: was it guessed? */
static void observe(struct draft_text *text, uint32_t token)
{
    uint32_t at = text->ngram.count - text->guess_first;
    if (at >= text->guess_count)
        return;
    bool is_right = text->guess[at] == token;
    text->rate[text->guess_class] += RATE_GAIN * (is_right - text->rate[text->guess_class]);
    if (!is_right)
        text->guess_count = 0;
}

/* Takes in what has become known of the sequence. False: there is more of it than fits a step. */
static bool catch_up(struct sched *sched, struct draft_text *text)
{
    uint32_t tokens[64], known = sched->table.seqs[text->sequence].known;
    for (uint32_t left = CATCH_UP; text->ngram.count < known && left > 0;) {
        uint32_t count = (uint32_t)min_u64(min_u64(known - text->ngram.count, left), ARRAY_COUNT(tokens));
        sched_copy_tokens(sched, text->sequence, text->ngram.count, count, tokens);
        for (uint32_t i = 0; i < count; i++) {
            observe(text, tokens[i]);
            ngram_append(&text->ngram, tokens[i]);
        }
        left -= count;
    }
    return text->ngram.count == known;
}

static uint32_t class_of(uint32_t agree)
{
    return agree >= 8 ? 3 : agree >= 4 ? 2 : agree - NGRAM_SHORT;
}

static void guess(struct draft_text *text)
{
    uint32_t agree = ngram_guess(&text->ngram, text->guess, DRAFTS_MAX);
    text->guess_first = text->ngram.count;
    text->guess_count = agree > 0 ? DRAFTS_MAX : 0;
    text->guess_class = agree > 0 ? class_of(agree) : 0;
}

/* ---- rows ---- */

/* It draws one token behind one that is known, and how it does so does not depend on the tokens before. */
static bool can_have_drafts(const struct row_shm *row)
{
    return row->flags & ROW_SAMPLE && !(row->flags & (ROW_SCORE | ROW_NO_END)) && row->token_count == 1 &&
           row->grammar_words == 0 && row->bias_count == 0 && row->presence_penalty == 0 &&
           row->frequency_penalty == 0 && (row->repetition_penalty == 0 || row->repetition_penalty == 1);
}

/* Drafts that a row may have: a token follows each of them, and the answer has no more than max_tokens. */
static uint32_t most_drafts(const struct sched *sched, const struct row_shm *row)
{
    uint32_t generated = row->first_pos + 1 - row->prompt_tokens;
    return (uint32_t)min_u64(DRAFTS_MAX, policy_request(sched, row->sequence)->max_tokens - generated - 1);
}

static void look_at_rows(struct sched *sched)
{
    const struct row_shm *rows = arena_step_rows(sched->arena, sched->record);
    for (uint32_t i = 0; i < sched->record->row_count; i++) {
        struct draft_row *draft = &sched->drafts.rows[i];
        *draft = (struct draft_row){0};
        if (!can_have_drafts(&rows[i]))
            continue;
        struct draft_text *text = text_of(sched, rows[i].sequence);
        if (!catch_up(sched, text))
            continue;
        guess(text);
        if (text->guess_count > 0)
            *draft = (struct draft_row){.text = text, .most = most_drafts(sched, &rows[i])};
    }
}

/* ---- how many ---- */

/* Drafts by the probability that they and all in front of them are right: a level for every factor of LEVEL_RATIO. */
#define LEVELS      20u
#define LEVEL_RATIO 0.87

struct level {
    struct shape more; /* what its drafts add to the step's shape */
    double right;      /* of them, on average */
};

static double rate_of(const struct draft_row *draft)
{
    return draft->text->rate[draft->text->guess_class];
}

static void add_to_levels(struct level *levels, const struct draft_row *draft, uint32_t past)
{
    double right = rate_of(draft), least = LEVEL_RATIO;
    for (uint32_t i = 0, level = 0; i < draft->most; i++, right *= rate_of(draft)) {
        for (; right < least; least *= LEVEL_RATIO)
            if (++level == LEVELS)
                return;
        shape_remove(&levels[level].more, past, i + 1, i + 1);
        shape_add(&levels[level].more, past, i + 2, i + 2);
        levels[level].more.rows++; /* as step_shape_add() has it */
        levels[level].right += right;
    }
}

static void join(struct shape *shape, const struct shape *more)
{
    shape->rows += more->rows;
    shape->tokens += more->tokens;
    shape->context += more->context;
    shape->pairs += more->pairs;
    shape->results += more->results;
}

/* How probable a draft has to be; more than 1 when none is worth its time. */
static double choose_least(const struct sched *sched)
{
    const struct row_shm *rows = arena_step_rows(sched->arena, sched->record);
    const struct timing *timing = policy_timing(sched);
    struct level levels[LEVELS] = {0};
    for (uint32_t i = 0; i < sched->record->row_count; i++)
        if (sched->drafts.rows[i].text != NULL)
            add_to_levels(levels, &sched->drafts.rows[i], rows[i].first_pos);
    struct shape shape = sched->shape;
    double tokens = shape.tokens, best = tokens / timing_traversal_us(timing, &shape), least = 1, chosen = 2;
    for (uint32_t level = 0; level < LEVELS; level++) {
        join(&shape, &levels[level].more);
        tokens += levels[level].right;
        least *= LEVEL_RATIO;
        if (shape.tokens > sched->plan->max_num_batched_tokens)
            break;
        double speed = tokens / timing_traversal_us(timing, &shape);
        if (speed > best) {
            best = speed;
            chosen = least;
        }
    }
    return chosen;
}

/* Blocks for a row's drafts: another one only while there are enough for everybody's next token. */
static void take_room(struct sched *sched, const struct row_shm *row, struct draft_row *draft)
{
    uint32_t behind = row->first_pos + 1, more = policy_blocks_for(sched, row->sequence, behind + draft->count);
    uint32_t needed = more + sched->table.running.count + sched->plan->watermark_blocks;
    if (more > 0 && (policy_free_blocks(sched) < needed || !policy_take_blocks(sched, row->sequence, draft->count))) {
        uint32_t room = sched->table.seqs[row->sequence].block_count * sched->plan->block_size;
        draft->count = (uint32_t)min_u64(draft->count, room - behind);
    }
    draft->blocks = (uint32_t)div_up_u64(behind + draft->count, sched->plan->block_size) - row->block_count;
}

static void count_drafts(struct sched *sched, double least)
{
    const struct row_shm *rows = arena_step_rows(sched->arena, sched->record);
    for (uint32_t i = 0; i < sched->record->row_count; i++) {
        struct draft_row *draft = &sched->drafts.rows[i];
        if (draft->text == NULL)
            continue;
        for (double right = rate_of(draft); draft->count < draft->most && right >= least; right *= rate_of(draft))
            draft->count++;
        if (draft->count > 0)
            take_room(sched, &rows[i], draft);
    }
}

/* ---- the record ---- */

/* Puts drafts and blocks behind those of their rows: from the last row to the first, each moves up by what those before it
 * get. */
static void widen_rows(struct sched *sched)
{
    struct step_shm *record = sched->record;
    struct row_shm *rows = arena_step_rows(sched->arena, record);
    uint32_t *tokens = arena_step_tokens(sched->arena, record), *blocks = arena_step_blocks(sched->arena, record);
    uint32_t more = 0, more_blocks = 0;
    for (uint32_t i = 0; i < record->row_count; i++) {
        more += sched->drafts.rows[i].count;
        more_blocks += sched->drafts.rows[i].blocks;
    }
    sched->drafts.drafted += more;
    record->token_count += more;
    record->result_count += more;
    record->block_count += more_blocks;
    for (uint32_t i = record->row_count; more > 0;) {
        struct row_shm *row = &rows[--i];
        const struct draft_row *draft = &sched->drafts.rows[i];
        more -= draft->count;
        more_blocks -= draft->blocks;
        memmove(tokens + row->token_first + more, tokens + row->token_first, row->token_count * sizeof(*tokens));
        memmove(blocks + row->block_first + more_blocks, blocks + row->block_first, row->block_count * sizeof(*blocks));
        row->token_first += more;
        row->result_first += more;
        row->block_first += more_blocks;
        if (draft->count == 0)
            continue;
        memcpy(tokens + row->token_first + row->token_count, draft->text->guess, draft->count * sizeof(*tokens));
        memcpy(blocks + row->block_first + row->block_count,
               arena_block_table(sched->arena, row->sequence) + row->block_count, draft->blocks * sizeof(*blocks));
        shape_remove(&sched->shape, row->first_pos, row->token_count, row->result_count);
        row->token_count += draft->count;
        row->result_count += draft->count;
        row->block_count += draft->blocks;
        step_shape_add(&sched->shape, row);
    }
}

void drafts_add(struct sched *sched)
{
    if (sched->drafts.texts == NULL || sched->record->row_count == 0)
        return;
    look_at_rows(sched);
    if (policy_timing(sched)->stage_count == 0) /* nobody knows what they would cost */
        return;
    count_drafts(sched, choose_least(sched));
    widen_rows(sched);
}
