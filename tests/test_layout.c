#include <criterion/criterion.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc/arena.h"
#include "ipc/birth.h"
#include "ipc/journal.h"
#include "ipc/shm.h"
#include "ipc/steps.h"
#include "tests/plans.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

Test(plan, is_refused_with_the_field_named)
{
    struct plan plan = plan_for_tests();
    struct err err;
    cr_assert_eq(plan_validate(&plan, &err), 0);
    plan.block_size = 0;
    cr_assert_lt(plan_validate(&plan, &err), 0);
    cr_assert(strstr(err.text, "block_size is 0"));
    plan = plan_for_tests();
    plan.slices[1].first_layer = 1;
    cr_assert_lt(plan_validate(&plan, &err), 0);
    cr_assert(strstr(err.text, "slice 1"));
    plan = plan_for_tests();
    plan.magic++;
    cr_assert_lt(plan_validate(&plan, &err), 0);
    cr_assert(strstr(err.text, "mixed builds"));
    plan = plan_for_tests();
    memset(plan.isa, 'x', sizeof(plan.isa));
    cr_assert_lt(plan_validate(&plan, &err), 0);
    cr_assert(strstr(err.text, "isa"));
}

/* Writes a pattern to every element of every table through the accessors, then reads all of it back: no two overlap. */
Test(layout, tables_do_not_overlap)
{
    struct plan plan = plan_for_tests();
    struct arena arena;
    arena_in_memory(&arena, &plan);
    for (uint32_t i = 0; i < plan.requests_max; i++) {
        arena_request(&arena, i)->generation = 0x1000 + i;
        arena_prompt_list(&arena, i)[arena.layout.prompt_pages_per_request - 1] = 0x2000 + i;
        arena_answer(&arena, i)->sequence_count = 0x3000 + i;
    }
    for (uint32_t i = 0; i < plan.sequences_max; i++) {
        arena_sequence(&arena, i)->generation = 0x4000 + i;
        arena_block_table(&arena, i)[arena.layout.blocks_per_sequence - 1] = 0x5000 + i;
        arena_log_list(&arena, i)[arena.layout.log_pages_per_sequence - 1] = 0x6000 + i;
    }
    for (uint32_t i = 0; i < plan.prompt_pages; i++)
        arena_prompt_page(&arena, i)[PAGE_TOKENS - 1] = 0x70000 + i;
    for (uint32_t i = 0; i < plan.log_pages; i++)
        arena_log_page(&arena, i)[LOG_PAGE_TOKENS - 1].token = 0x80000 + i;
    for (uint32_t i = 0; i < arena.layout.step_slots; i++) {
        struct step_shm *step = arena_step(&arena, i);
        step->token_count = 0x90 + i;
        arena_step_rows(&arena, step)[arena.layout.step_rows_max - 1].result_first = 0xa0 + i;
        arena_step_tokens(&arena, step)[arena.layout.step_tokens_max - 1] = 0xb0 + i;
        arena_step_blocks(&arena, step)[arena.layout.step_blocks_max - 1] = 0xc0 + i;
        arena_results(&arena, i)[arena.layout.step_results_max - 1].token = 0xd0 + i;
    }
    size_t row = (size_t)plan.max_num_batched_tokens * plan.width - 1;
    for (uint32_t i = 0; i < arena.layout.activation_slots; i++)
        arena_activations(&arena, 0, i)[row] = (float)i;

    for (uint32_t i = 0; i < plan.requests_max; i++) {
        cr_assert_eq(arena_request(&arena, i)->generation, 0x1000 + i);
        cr_assert_eq(arena_prompt_list(&arena, i)[arena.layout.prompt_pages_per_request - 1], 0x2000 + i);
        cr_assert_eq(arena_answer(&arena, i)->sequence_count, 0x3000 + i);
    }
    for (uint32_t i = 0; i < plan.sequences_max; i++) {
        cr_assert_eq(arena_sequence(&arena, i)->generation, 0x4000 + i);
        cr_assert_eq(arena_block_table(&arena, i)[arena.layout.blocks_per_sequence - 1], 0x5000 + i);
        cr_assert_eq(arena_log_list(&arena, i)[arena.layout.log_pages_per_sequence - 1], 0x6000 + i);
    }
    for (uint32_t i = 0; i < plan.prompt_pages; i++)
        cr_assert_eq(arena_prompt_page(&arena, i)[PAGE_TOKENS - 1], 0x70000 + i);
    for (uint32_t i = 0; i < plan.log_pages; i++)
        cr_assert_eq(arena_log_page(&arena, i)[LOG_PAGE_TOKENS - 1].token, 0x80000 + i);
    for (uint32_t i = 0; i < arena.layout.step_slots; i++) {
        struct step_shm *step = arena_step(&arena, i);
        cr_assert_eq(step->token_count, 0x90 + i);
        cr_assert_eq(arena_step_rows(&arena, step)[arena.layout.step_rows_max - 1].result_first, 0xa0 + i);
        cr_assert_eq(arena_step_tokens(&arena, step)[arena.layout.step_tokens_max - 1], 0xb0 + i);
        cr_assert_eq(arena_step_blocks(&arena, step)[arena.layout.step_blocks_max - 1], 0xc0 + i);
        cr_assert_eq(arena_results(&arena, i)[arena.layout.step_results_max - 1].token, 0xd0 + i);
    }
    for (uint32_t i = 0; i < arena.layout.activation_slots; i++)
        cr_assert_eq(arena_activations(&arena, 0, i)[row], (float)i);
    arena_in_memory_free(&arena);
}

Test(journal, prompts_cross_pages_and_logs_grow_by_one)
{
    struct plan plan = plan_for_tests();
    struct arena arena;
    arena_in_memory(&arena, &plan);
    uint32_t tokens[512], read[512];
    for (uint32_t i = 0; i < 512; i++)
        tokens[i] = i * 7 + 1;
    arena_prompt_list(&arena, 3)[0] = 5;
    arena_prompt_list(&arena, 3)[1] = 2;
    journal_prompt_write(&arena, 3, 0, 512, tokens);
    journal_prompt_read(&arena, 3, 0, 512, read);
    cr_assert_arr_eq(read, tokens, sizeof(tokens));
    journal_prompt_read(&arena, 3, 250, 20, read);
    cr_assert_arr_eq(read, tokens + 250, 20 * sizeof(uint32_t));

    arena_log_list(&arena, 1)[0] = 9;
    arena_log_list(&arena, 1)[1] = 4;
    for (uint32_t i = 0; i < LOG_PAGE_TOKENS + 3; i++) {
        cr_assert_eq(journal_log_committed(arena_sequence(&arena, 1)), i);
        journal_log_append(&arena, 1, &(struct token_shm){.token = i + 100}, NULL);
    }
    for (uint32_t i = 0; i < LOG_PAGE_TOKENS + 3; i++)
        cr_assert_eq(journal_log_entry(&arena, 1, i)->token, i + 100);
    arena_in_memory_free(&arena);
}

Test(steps, a_record_is_that_step_and_no_other)
{
    struct plan plan = plan_for_tests();
    struct arena arena;
    arena_in_memory(&arena, &plan);
    cr_assert_not(step_is_published(&arena, 1));
    struct step_shm *record = step_begin(&arena, 1);
    cr_assert_not(step_is_published(&arena, 1));
    step_publish(record);
    cr_assert(step_is_published(&arena, 1));
    cr_assert_not(step_is_published(&arena, 1 + arena.layout.step_slots));
    step_begin(&arena, 1 + arena.layout.step_slots);
    cr_assert_not(step_is_published(&arena, 1));
    arena_in_memory_free(&arena);
}

Test(shm, a_read_only_descriptor_cannot_be_mapped_for_writing)
{
    struct err err;
    int fd = shm_create("test", 4096, &err);
    cr_assert_geq(fd, 0);
    int read_only = shm_read_only(fd, &err);
    cr_assert_geq(read_only, 0);
    cr_assert_null(shm_map(read_only, 4096, SHM_WRITE, "test", &err));
    cr_assert_not_null(shm_map(read_only, 4096, SHM_READ, "test", &err));
    cr_assert_neq(ftruncate(fd, 8192), 0);
    cr_assert_null(shm_map(fd, 8192, SHM_READ, "test", &err));
    cr_assert(strstr(err.text, "is 4096 bytes, not 8192"));
}

Test(shm, a_sealed_region_cannot_be_written_by_anybody)
{
    struct err err;
    int fd = shm_create("test", 4096, &err);
    uint8_t *memory = shm_map(fd, 4096, SHM_WRITE, "test", &err);
    memory[0] = 7;
    cr_assert_lt(shm_seal(fd, &err), 0); /* still mapped for writing */
    munmap(memory, 4096);
    cr_assert_eq(shm_seal(fd, &err), 0);
    cr_assert_null(shm_map(fd, 4096, SHM_WRITE, "test", &err));
    memory = shm_map(fd, 4096, SHM_READ, "test", &err);
    cr_assert_eq(memory[0], 7);
}

Test(birth, carries_regions_and_bells_to_the_child)
{
    struct plan plan = plan_for_tests();
    struct layout layout;
    layout_compute(&layout, &plan);
    struct err err = {0};
    int plan_fd = shm_create("plan", layout.region_bytes[REGION_PLAN], &err);
    cr_assert_eq(pwrite(plan_fd, &plan, sizeof(plan), 0), (ssize_t)sizeof(plan));
    int sched_fd = shm_create("sched", layout.region_bytes[REGION_SCHED], &err);
    struct region_head head = {.magic = REGION_MAGIC,
                               .layout_hash = LAYOUT_HASH,
                               .bytes = layout.region_bytes[REGION_SCHED],
                               .id = REGION_SCHED};
    cr_assert_eq(pwrite(sched_fd, &head, sizeof(head), 0), (ssize_t)sizeof(head));

    int sockets[2], bell = eventfd(0, 0);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    for (uint32_t part = BIRTH_TO_SEE; part <= BIRTH_TO_DO; part++) {
        struct birth birth = {.magic = BIRTH_MAGIC, .role = ROLE_SCHED, .part = part, .epoch = part};
        int fds[BIRTH_ITEMS_MAX];
        birth_add(&birth, fds, BIRTH_REGION_READ, REGION_PLAN, plan_fd);
        birth_add(&birth, fds, BIRTH_REGION_WRITE, REGION_SCHED, sched_fd);
        birth_add(&birth, fds, BIRTH_BELL, 2, bell);
        cr_expect_eq(birth.item_count, part == BIRTH_TO_SEE ? 1 : 2);
        cr_assert_eq(birth_send(sockets[0], &birth, fds, &err), 0);
    }
    struct arena arena;
    char byte;
    cr_assert_eq(arena_inherit(&arena, sockets[1], &err), 0, "%s", err.text);
    cr_assert(arena.is_spare && arena.role == ROLE_SCHED);
    cr_assert_eq(arena.plan->num_blocks, plan.num_blocks);
    cr_assert_null(arena.regions[REGION_SCHED], "nothing that it could write");
    cr_assert_eq(arena.bells[2], -1);
    cr_assert_eq(recv(sockets[0], &byte, 1, MSG_DONTWAIT), -1);
    cr_assert_eq(arena_take_over(&arena, &err), 0, "%s", err.text);
    cr_assert_eq(recv(sockets[0], &byte, 1, MSG_DONTWAIT), 1, "a spare says that it is prepared");
    cr_assert_eq(arena.epoch, 1);
    arena_sequence(&arena, 1)->generation = 77; /* writable */
    cr_assert_null(arena.regions[REGION_FRONT]);
    cr_assert_geq(arena.bells[2], 0);
    cr_assert_eq(arena.bells[1], -1);
}

Test(birth, of_another_build_is_refused)
{
    struct plan plan = plan_for_tests();
    plan.layout_hash ^= 1;
    struct err err = {0};
    int plan_fd = shm_create("plan", align_up_u64(sizeof(plan), 4096), &err);
    cr_assert_eq(pwrite(plan_fd, &plan, sizeof(plan), 0), (ssize_t)sizeof(plan));
    struct birth birth = {.magic = BIRTH_MAGIC, .role = ROLE_SCHED, .epoch = 1};
    int fds[BIRTH_ITEMS_MAX], sockets[2];
    birth_add(&birth, fds, BIRTH_REGION_READ, REGION_PLAN, plan_fd);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    cr_assert_eq(birth_send(sockets[0], &birth, fds, &err), 0);
    struct arena arena;
    cr_assert_lt(arena_inherit(&arena, sockets[1], &err), 0);
    cr_assert(strstr(err.text, "mixed builds"));
}
