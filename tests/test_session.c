/* test_session.c - how two stages agree on a connection. */
#include <criterion/criterion.h>
#include <string.h>

#include "ipc/session.h"

static struct session_shm writer, reader;

Test(session, nothing_is_asked_and_nobody_lives_at_first)
{
    cr_expect_eq(session_life(&writer), 0);
    cr_expect_eq(session_number(&reader), 0);
    cr_expect_eq(session_asked(&reader).number, 0);
}

Test(session, numbers_are_used_once_in_all_lives)
{
    uint64_t last = 0;
    for (uint32_t epoch = 1; epoch < 5; epoch++)
        for (uint64_t number = session_next(epoch, 0), count = 0; count < 3;
             number = session_next(epoch, number), count++) {
            cr_expect_gt(number, last);
            last = number;
        }
}

Test(session, what_is_asked_is_what_the_writer_finds)
{
    struct session asked = {.number = session_next(3, 0), .life = session_next(2, 0), .first_step = 77};
    memset(asked.id, 0xa5, sizeof(asked.id));
    session_live(&writer, asked.life);
    cr_expect_eq(session_life(&writer), asked.life);
    session_ask(&reader, &asked);
    struct session found = session_asked(&reader);
    cr_expect_eq(memcmp(&found, &asked, sizeof(found)), 0);
    cr_expect_eq(session_number(&reader), asked.number);
}
