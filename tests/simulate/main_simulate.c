/* main_simulate.c - simulate: engine after engine in one process, each from a seed, each with deaths at points that the seed
 * chooses; every byte of every answer is compared with that of an undisturbed engine, and everything must come back.
 *
 *   simulate [--seed N] [--worlds N] [--seconds N] [--deaths N]     --worlds 1 with the seed of a failure shows it again
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/simulate/world.h"
#include "tests/tiny_vocab.h"

#define CLIENTS     8u
#define ANSWERS_MIN 40u       /* of a world, before its clients come to an end */
#define PATIENCE    20000000u /* turns of a world: what takes longer has no end */
#define LOAD_SEED   1u

struct totals {
    uint64_t worlds, turns, points, suspicions, stops, drafts, deaths[ROLE_COUNT], by_point[FAULT_COUNT + 1];
};

static struct world world;

static void say_seed(void)
{
    fprintf(stderr, "simulate: seed %llu, %s policy, %u stages, turn %llu, point %llu\n",
            (unsigned long long)world.seed, world.plan.policy, world.plan.stage_count, (unsigned long long)world.turns,
            (unsigned long long)world.points);
}

static void on_abort(int signal)
{
    say_seed(); /* a broken promise of the engine's: what it was is said already */
    _exit(128 + signal);
}

static double seconds(void)
{
    struct timespec now;
    struct world *at_hand = world_at_hand;
    world_at_hand = NULL; /* the real clock */
    clock_gettime(CLOCK_MONOTONIC, &now);
    world_at_hand = at_hand;
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void turn_while_learning(void *context)
{
    if (!world_turn(context, true))
        abort();
}

/* Every request once, without deaths. */
static bool learn(struct load *load)
{
    struct err err;
    world_open(&world, 0, load, 0);
    if (load_learn(load, turn_while_learning, &world, &err) != 0) {
        fprintf(stderr, "simulate: %s\n", err.text);
        return false;
    }
    world_close(&world);
    return true;
}

static bool fail(const char *text)
{
    fprintf(stderr, "%s\n", text);
    say_seed();
    return false;
}

/* Clients talk until all deaths have been died and enough was answered; then everything must come back. */
static bool run_world(uint64_t seed, struct load *load, uint32_t deaths)
{
    char text[256];
    uint64_t answers = load_totals(load)->answers;
    world_open(&world, seed, load, deaths);
    load_seed(load, seed);
    for (bool is_over = false; !is_over || load_active(load) > 0;) {
        if (!world_turn(&world, is_over))
            return fail(load_failure(load));
        is_over = is_over || (load_totals(load)->answers - answers >= ANSWERS_MIN && world.deaths_left == 0);
        if (world.turns > PATIENCE)
            return fail("there is no end to it");
    }
    for (uint64_t end = world.turns + 100000; !world_is_at_rest(&world, text, sizeof(text));) {
        if (!world_turn(&world, true))
            return fail(load_failure(load));
        if (world.turns > end)
            return fail(text);
    }
    return true;
}

static void add(struct totals *totals)
{
    totals->worlds++;
    totals->turns += world.turns;
    totals->points += world.points;
    totals->suspicions += world.suspicions;
    totals->stops += world.stops;
    totals->drafts += counter_read(arena_process(&world.arena, ROLE_SCHED, 0), COUNTER_SCHED_ACCEPTED);
    for (uint32_t role = 0; role < ROLE_COUNT; role++)
        totals->deaths[role] += world.deaths_of[role];
    for (uint32_t point = 0; point <= FAULT_COUNT; point++)
        totals->by_point[point] += world.deaths[point];
}

static void print(const struct totals *totals, const struct load *load, double took_s, bool is_good)
{
    uint32_t points = 0;
    for (uint32_t point = 0; point <= FAULT_COUNT; point++)
        points += totals->by_point[point] > 0;
    if (getenv("EVENFLOW_POINTS") != NULL)
        for (uint32_t point = 0; point <= FAULT_COUNT; point++)
            printf("%-28s %8llu deaths\n", point < FAULT_COUNT ? fault_names[point] : "inside of the model",
                   (unsigned long long)totals->by_point[point]);
    printf(
        "%s: %llu engines, %llu deaths (%llu of front, %llu of sched, %llu of stages) at %u points, %llu stops, %llu "
        "suspicions, %llu answers (%.1f MB) compared, %llu drafts right, %llu closed unread; %llu turns past %llu "
        "points in %.1f s\n",
        is_good ? "clean" : "FAILED", (unsigned long long)totals->worlds,
        (unsigned long long)(totals->deaths[ROLE_FRONT] + totals->deaths[ROLE_SCHED] + totals->deaths[ROLE_STAGE]),
        (unsigned long long)totals->deaths[ROLE_FRONT], (unsigned long long)totals->deaths[ROLE_SCHED],
        (unsigned long long)totals->deaths[ROLE_STAGE], points, (unsigned long long)totals->stops,
        (unsigned long long)totals->suspicions, (unsigned long long)load_totals(load)->answers,
        (double)load_totals(load)->bytes / 1e6, (unsigned long long)totals->drafts,
        (unsigned long long)load_totals(load)->closed_unread, (unsigned long long)totals->turns,
        (unsigned long long)totals->points, took_s);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"worlds", required_argument, NULL, 'w'},
                                            {"seconds", required_argument, NULL, 't'},
                                            {"deaths", required_argument, NULL, 'd'},
                                            {0}};
    uint64_t seed = 1, worlds = UINT64_MAX, limit_s = 10, deaths = 40;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        uint64_t *value = option == 's' ? &seed : option == 'w' ? &worlds : option == 't' ? &limit_s : &deaths;
        if (option == '?')
            return 2;
        *value = strtoull(optarg, NULL, 10);
    }
    if (worlds != UINT64_MAX)
        limit_s = UINT64_MAX / 2;
    signal(SIGABRT, on_abort);
    struct totals totals = {0};
    struct load *load = load_open(LOAD_MIXED, LOAD_SEED, CLIENTS, TINY_COUNT);
    double begin_s = seconds();
    bool is_good = learn(load);
    for (uint64_t i = 0; is_good && i < worlds && seconds() - begin_s < (double)limit_s; i++) {
        is_good = run_world(seed + i, load, (uint32_t)deaths);
        add(&totals);
        world_close(&world);
    }
    print(&totals, load, seconds() - begin_s, is_good);
    load_close(load);
    return is_good ? 0 : 1;
}
