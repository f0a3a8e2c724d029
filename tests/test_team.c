#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>

#include "ipc/team.h"

#define ROUNDS 6000u
#define PARTS  4u

struct board {
    struct team *team;
    uint64_t values[PARTS][16]; /* each member's own line */
    uint32_t faults;
    pthread_t seen[PARTS];
};

static void nothing(void *context, uint32_t part)
{
    (void)context;
    (void)part;
}

/* In every round each member writes the number of the round; behind the meeting everybody must see everybody's. */
static void write_and_look(void *context, uint32_t part)
{
    struct board *board = context;
    uint32_t size = team_size(board->team);
    board->seen[part] = pthread_self();
    for (uint64_t round = 1; round <= ROUNDS / size; round++) {
        board->values[part][0] = round;
        team_meet(board->team);
        for (uint32_t other = 0; other < size; other++)
            if (board->values[other][0] != round)
                __atomic_fetch_add(&board->faults, 1, __ATOMIC_RELAXED);
        team_meet(board->team);
    }
}

Test(team, members_see_at_a_meeting_what_the_others_wrote_before)
{
    for (uint32_t size = 1; size <= PARTS; size++) {
        struct board board = {0};
        cr_assert_eq(team_open(&board.team, size, nothing, NULL, NULL), 0);
        for (int run = 0; run < 3; run++)
            team_run(board.team, write_and_look, &board);
        cr_expect_eq(board.faults, 0u);
        for (uint32_t part = 0; part < size; part++)
            cr_expect_eq(board.values[part][0], ROUNDS / size, "part %u of %u", part, size);
        cr_expect(pthread_equal(board.seen[0], pthread_self()), "the caller is part 0");
        for (uint32_t part = 1; part < size; part++)
            cr_expect(!pthread_equal(board.seen[part], board.seen[0]), "part %u is a thread of its own", part);
        team_close(board.team);
    }
}

static void note(void *context, uint32_t part)
{
    uint32_t *started = context;
    started[part]++;
}

Test(team, every_thread_is_prepared_once_before_its_first_work)
{
    struct team *team;
    uint32_t started[PARTS] = {0};
    cr_assert_eq(team_open(&team, PARTS, note, started, NULL), 0);
    team_run(team, nothing, NULL);
    team_run(team, nothing, NULL);
    for (uint32_t part = 1; part < PARTS; part++)
        cr_expect_eq(started[part], 1u);
    cr_expect_eq(started[0], 0u, "the caller looks after itself");
    team_close(team);
}

Test(team, shares_cover_everything_once_in_order_and_in_whole_units)
{
    for (uint32_t size = 1; size <= PARTS; size++) {
        struct team *team;
        cr_assert_eq(team_open(&team, size, nothing, NULL, NULL), 0);
        for (uint32_t count = 0; count < 200; count++)
            for (uint32_t unit = 1; unit <= 16; unit *= 4) {
                uint32_t next = 0;
                for (uint32_t part = 0; part < size; part++) {
                    uint32_t first, share = team_share(team, part, count, unit, &first);
                    cr_assert_eq(first, next);
                    cr_assert(first % unit == 0 || share == 0);
                    next = first + share;
                }
                cr_assert_eq(next, count);
            }
        team_close(team);
    }
}
