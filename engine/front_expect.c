/* front_expect.c - memory that tokens lead to, asked for before it is needed.
 *
 * Between two steps the stages have read all their weights, so nothing that front looked at last time is in a cache. A
 * token leads from place to place, and nothing of that is near what the next one leads to: who looked after each in turn
 * would wait for memory a dozen times for every token. So all hints that are there are followed together, link by link, and
 * only what the link before has brought is read:
 *
 *   request, answer, number of the connection ─► connection, choice, sequence, its list of pages ─► log entry ─► text
 *
 * Nothing is decided here, and nothing is written.
 */
#include "engine/front_inside.h"
#include "ipc/journal.h"
#include "ipc/pieces.h"

#define LINE         64u
#define EVENT_BYTES  256u /* of a token, as it usually is */
#define PREFIX_BYTES 192u /* of it, likewise */

static void want_to_write(void *memory, size_t size)
{
    for (size_t i = 0; i < size; i += LINE)
        __builtin_prefetch((char *)memory + i, 1);
}

/* The sequence of its first choice; NULL: there is none (yet). */
static const struct sequence_shm *sequence_of(const struct front *f, uint32_t request, uint32_t *sequence)
{
    const struct answer_shm *answer = arena_answer(f->arena, request);
    bool is_taken_in = journal_answer_generation(answer) == arena_request(f->arena, request)->generation;
    if (!is_taken_in || answer->sequence_count == 0)
        return NULL;
    *sequence = answer->sequences[0];
    check(*sequence < f->plan->sequences_max);
    return arena_sequence(f->arena, *sequence);
}

/* The last entry of its log; NULL: there is none, or nobody who waits for it. */
static const struct token_shm *entry_of(const struct front *f, uint32_t request)
{
    uint32_t sequence;
    if (f->intake.connections[request] == INTAKE_NO_CONNECTION)
        return NULL;
    const struct sequence_shm *shm = sequence_of(f, request, &sequence);
    uint32_t committed = shm != NULL ? journal_log_committed(shm) : 0;
    return committed > 0 ? journal_log_entry(f->arena, sequence, committed - 1) : NULL;
}

static void expect_request(struct front *f, uint32_t request)
{
    base_expect(&f->intake.connections[request], 1);
    base_expect(arena_request(f->arena, request), sizeof(struct request_shm));
    base_expect(arena_answer(f->arena, request), LINE);
}

static void expect_connection(struct front *f, uint32_t request)
{
    uint32_t sequence, slot = f->intake.connections[request];
    if (slot == INTAKE_NO_CONNECTION)
        return;
    struct connection *c = &f->connections[slot];
    want_to_write(c, offsetof(struct connection, answer.slots) + 1);
    base_expect(&c->answer.prefix_size, PREFIX_BYTES);
    want_to_write(shm_of(f, slot), offsetof(struct conn_shm, format));
    base_expect(&shm_of(f, slot)->format, LINE);
    want_to_write(out_of(f, slot), EVENT_BYTES);
    struct answer_choice *choice = answer_choice_at(f->choices, f->plan, request, 0);
    want_to_write(choice, offsetof(struct answer_choice, scan.held));
    base_expect(&choice->message, LINE);
    const struct sequence_shm *shm = sequence_of(f, request, &sequence);
    if (shm != NULL) {
        base_expect(shm, sizeof(*shm));
        base_expect(arena_log_list(f->arena, sequence), LINE);
    }
}

static void expect_entry(struct front *f, uint32_t request)
{
    const struct token_shm *entry = entry_of(f, request);
    if (entry != NULL)
        base_expect(entry, sizeof(*entry));
}

static void expect_text(struct front *f, uint32_t request)
{
    const struct pieces_shm *pieces = (const struct pieces_shm *)(const void *)f->arena->regions[REGION_VOCAB];
    const struct token_shm *entry = entry_of(f, request);
    if (entry == NULL)
        return;
    base_expect((const uint8_t *)pieces + pieces->starts + entry->token * sizeof(uint32_t), 2 * sizeof(uint32_t));
    base_expect((const uint8_t *)pieces + pieces->types + entry->token, 1);
}

void front_expect(struct front *f)
{
    static void (*const links[])(struct front *, uint32_t) = {expect_request, expect_connection, expect_entry,
                                                              expect_text};
    uint32_t requests[EXPECTED_MAX], count = 0;
    struct msg_request msg;
    const struct ring_consumer *hints = &f->hints;
    while (count < EXPECTED_MAX && ring_look(hints->slots, hints->slot_count, hints->next + count, &msg) == RING_OK &&
           msg.slot < f->plan->requests_max)
        requests[count++] = msg.slot;
    for (size_t link = 0; link < ARRAY_COUNT(links); link++)
        for (uint32_t i = 0; i < count; i++)
            links[link](f, requests[i]);
}
