#include "engine/report.h"

#include <string.h>

static void write_name(struct json_writer *w, const char *name, const char *value)
{
    json_format(w, "\"%s\":", name);
    json_quoted(w, value, strlen(value));
}

static uint64_t front_counter(const struct arena *arena, enum counter_id id)
{
    return counter_read(arena_process(arena, ROLE_FRONT, 0), id);
}

static uint64_t sched_counter(const struct arena *arena, enum counter_id id)
{
    return counter_read(arena_process(arena, ROLE_SCHED, 0), id);
}

static void write_process(struct json_writer *w, const struct arena *arena, uint32_t number)
{
    static const char *const states[] = {[PROCESS_STARTING] = "starting",
                                         [PROCESS_READY] = "ready",
                                         [PROCESS_DRAINED] = "drained",
                                         [PROCESS_FINISHED] = "finished"};
    const struct process_entry_shm *entry = &arena_sup(arena)->processes[number];
    enum role role = (enum role)entry->role;
    const char *state = "ready";
    uint64_t steps = 0;
    if (role != ROLE_SUPERVISOR) { /* which has no process block; who can be asked is served by a living one */
        enum process_state state_number = arena_state(arena, role, entry->index);
        state = state_number < ARRAY_COUNT(states) ? states[state_number] : "?";
        steps = progress_read(arena_process(arena, role, entry->index));
    }
    json_format(
        w, "{\"role\":\"%s\",\"index\":%u,\"pid\":%u,\"state\":\"%s\",\"restarts\":%u,\"steps\":%llu,\"spare\":%u}",
        role_name(role), entry->index, arena_process_id(arena, number), state, arena_process_restarts(arena, number),
        (unsigned long long)steps, arena_process_spare(arena, number));
}

static const char *const death_kinds[] = {
    [DEATH_OUTSIDE] = "outside", [DEATH_FAULT] = "fault", [DEATH_HUNG] = "hung", [DEATH_LEFT] = "left"};

/* The last ones, oldest first. */
static void write_deaths(struct json_writer *w, const struct arena *arena)
{
    uint64_t count = arena_death_count(arena);
    json_text(w, ",\"deaths\":[");
    for (uint64_t k = count > DEATHS_KEPT ? count - DEATHS_KEPT : 0, first = k; k < count; k++) {
        struct death_shm death = arena_death(arena, k);
        if (death.number >= PROCESSES_MAX || death.kind >= ARRAY_COUNT(death_kinds))
            continue;
        const struct process_entry_shm *entry = &arena_sup(arena)->processes[death.number];
        death.text[sizeof(death.text) - 1] = '\0';
        json_raw(w, ",", k > first);
        json_format(w,
                    "{\"role\":\"%s\",\"index\":%u,\"pid\":%u,\"at\":%llu,\"why\":\"%s\",\"signal\":%u,\"step\":%llu,",
                    role_name((enum role)entry->role), entry->index, death.pid, (unsigned long long)death.at_s,
                    death_kinds[death.kind], death.signal, (unsigned long long)death.step);
        write_name(w, "words", death.text);
        json_text(w, "}");
    }
    json_format(w, "],\"standby\":%u", arena_standby(arena));
}

static double share(const _Atomic uint64_t *millionths)
{
    return (double)account_read(millionths) / 1e6;
}

/* Lately; docs/timing.md defines every word. */
static void write_stages(struct json_writer *w, const struct arena *arena)
{
    json_text(w, ",\"stages\":[");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++) {
        const struct stage_account_shm *account = &arena_accounts(arena)[stage];
        json_raw(w, ",", stage > 0);
        char name[16];
        json_format(w, "{\"index\":%u,\"device\":\"%s\"", stage,
                    plan_device_name(arena->plan->slices[stage].device, name));
        if (stage + 1 < arena->plan->stage_count)
            json_format(w, ",\"edge\":\"%s\"", plan_edge_name(arena->plan->slices[stage].edge));
        for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++)
            json_format(w, ",\"%s\":%.4f", stage_time_labels[i], share(&account->recent[i]));
        json_format(w, ",\"prediction_error\":%.4f}", share(&account->recent_error));
    }
    json_format(w, "],\"pipeline\":{\"depth\":%.3f,\"efficiency\":%.3f}",
                (double)sched_counter(arena, COUNTER_SCHED_DEPTH_MILLI) / 1e3,
                (double)sched_counter(arena, COUNTER_SCHED_EFFICIENCY_PERMILLE) / 1e3);
}

static const char *const engine_states[] = {[COMMAND_RUN] = "serving",
                                            [COMMAND_DRAIN] = "draining",
                                            [COMMAND_STOP] = "stopping",
                                            [COMMAND_FINISH] = "finishing"};

void report_status(struct json_writer *w, const struct arena *arena)
{
    enum command command = arena_command(arena);
    const struct sup_shm *sup = arena_sup(arena);
    json_text(w, "{");
    write_name(w, "version", arena->plan->version);
    json_text(w, ",");
    write_name(w, "fingerprint", arena->plan->fingerprint);
    json_text(w, ",");
    write_name(w, "model", arena->plan->served_model_name);
    json_text(w, ",");
    write_name(w, "state", command < ARRAY_COUNT(engine_states) ? engine_states[command] : "?");
    json_text(w, ",\"processes\":[");
    for (uint32_t i = 0; i < sup->process_count && i < PROCESSES_MAX; i++) {
        json_raw(w, ",", i > 0);
        write_process(w, arena, i);
    }
    uint64_t free_blocks = sched_counter(arena, COUNTER_SCHED_BLOCKS_FREE);
    json_format(
        w, "],\"requests\":{\"active\":%llu,\"accepted\":%llu,\"refused\":%llu,\"aborted\":%llu,\"slots_free\":%llu}",
        (unsigned long long)front_counter(arena, COUNTER_FRONT_REQUESTS_ACTIVE),
        (unsigned long long)front_counter(arena, COUNTER_FRONT_REQUESTS),
        (unsigned long long)front_counter(arena, COUNTER_FRONT_REQUESTS_FAILED),
        (unsigned long long)front_counter(arena, COUNTER_FRONT_REQUESTS_ABORTED),
        (unsigned long long)front_counter(arena, COUNTER_FRONT_REQUEST_SLOTS_FREE));
    json_format(w, ",\"sequences\":{\"running\":%llu,\"waiting\":%llu,\"preemptions\":%llu}",
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_RUNNING),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_WAITING),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_PREEMPTIONS));
    json_format(w, ",\"tokens\":{\"prompt\":%llu,\"generated\":%llu,\"drafted\":%llu,\"accepted\":%llu}",
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_PROMPT_TOKENS),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_GENERATED_TOKENS),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_DRAFTED),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_ACCEPTED));
    json_format(w, ",\"steps\":{\"planned\":%llu,\"in_flight\":%llu}",
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_STEPS),
                (unsigned long long)sched_counter(arena, COUNTER_SCHED_STEPS_IN_FLIGHT));
    json_format(w, ",\"blocks\":{\"total\":%u,\"free\":%llu,\"size\":%u}", arena->plan->num_blocks,
                (unsigned long long)free_blocks, arena->plan->block_size);
    write_stages(w, arena);
    write_deaths(w, arena);
    json_format(w, ",\"connections\":{\"open\":%llu,\"accepted\":%llu}}",
                (unsigned long long)front_counter(arena, COUNTER_FRONT_CONNECTIONS_OPEN),
                (unsigned long long)front_counter(arena, COUNTER_FRONT_CONNECTIONS));
}

static void write_accounts(struct json_writer *w, const struct arena *arena)
{
    json_text(w, "# HELP evenflow_stage_time_seconds_total Where a stage's time went\n"
                 "# TYPE evenflow_stage_time_seconds_total counter\n");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
        for (uint32_t i = 0; i < STAGE_TIME_COUNT; i++)
            json_format(w, "evenflow_stage_time_seconds_total{stage=\"%u\",is=\"%s\"} %.6f\n", stage,
                        stage_time_labels[i], (double)account_read(&arena_accounts(arena)[stage].ns[i]) / 1e9);
    json_text(w, "# HELP evenflow_stage_predicted_steps_total Steps whose time was predicted and measured\n"
                 "# TYPE evenflow_stage_predicted_steps_total counter\n");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
        json_format(w, "evenflow_stage_predicted_steps_total{stage=\"%u\"} %llu\n", stage,
                    (unsigned long long)account_read(&arena_accounts(arena)[stage].predicted_steps));
    json_text(w, "# HELP evenflow_stage_prediction_error_total Relative errors of those predictions, summed\n"
                 "# TYPE evenflow_stage_prediction_error_total counter\n");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
        json_format(w, "evenflow_stage_prediction_error_total{stage=\"%u\"} %.6f\n", stage,
                    share(&arena_accounts(arena)[stage].error_millionths));
    json_text(w, "# HELP evenflow_stage_repeated_steps_total Steps that did the same as the step before\n"
                 "# TYPE evenflow_stage_repeated_steps_total counter\n");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
        json_format(w, "evenflow_stage_repeated_steps_total{stage=\"%u\"} %llu\n", stage,
                    (unsigned long long)account_read(&arena_accounts(arena)[stage].repeated_steps));
    json_text(
        w, "# HELP evenflow_stage_repeat_error_total Relative errors of predicting those by the step before, summed\n"
           "# TYPE evenflow_stage_repeat_error_total counter\n");
    for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
        json_format(w, "evenflow_stage_repeat_error_total{stage=\"%u\"} %.6f\n", stage,
                    share(&arena_accounts(arena)[stage].repeat_millionths));
}

void report_metrics(struct json_writer *w, const struct arena *arena)
{
    for (uint32_t id = 0; id < COUNTER_ID_COUNT; id++) {
        const struct counter_info *info = &counter_table[id];
        json_format(w, "# HELP evenflow_%s %s\n# TYPE evenflow_%s %s\n", info->name, info->help, info->name,
                    info->kind == COUNTER ? "counter" : "gauge");
        if (info->role != ROLE_STAGE) {
            json_format(
                w, "evenflow_%s %llu\n", info->name,
                (unsigned long long)counter_read(arena_process(arena, (enum role)info->role, 0), (enum counter_id)id));
            continue;
        }
        for (uint32_t stage = 0; stage < arena->plan->stage_count; stage++)
            json_format(w, "evenflow_%s{stage=\"%u\"} %llu\n", info->name, stage,
                        (unsigned long long)counter_read(arena_process(arena, ROLE_STAGE, stage), (enum counter_id)id));
    }
    write_accounts(w, arena);
}

void report_model(struct json_writer *w, const struct arena *arena)
{
    json_text(w, "{");
    write_name(w, "id", arena->plan->served_model_name);
    json_format(w, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"evenflow\",\"max_model_len\":%u}",
                (unsigned long long)arena->plan->created_s, arena->plan->max_model_len);
}

void report_models(struct json_writer *w, const struct arena *arena)
{
    json_text(w, "{\"object\":\"list\",\"data\":[");
    report_model(w, arena);
    json_text(w, "]}");
}

void report_version(struct json_writer *w, const struct arena *arena)
{
    json_text(w, "{");
    write_name(w, "version", arena->plan->version);
    json_text(w, ",");
    write_name(w, "fingerprint", arena->plan->fingerprint);
    json_text(w, "}");
}
