#include "engine/seq.h"

#include <stdlib.h>

#include "ipc/journal.h"

void seq_init(struct seq_table *table, const struct arena *arena)
{
    uint32_t count = arena->plan->sequences_max;
    *table = (struct seq_table){.arena = arena, .seqs = base_alloc(count * sizeof(*table->seqs))};
    table->free = table->waiting = table->running = (struct seq_list){SEQ_NONE, SEQ_NONE, 0};
    for (uint32_t i = 0; i < count; i++)
        seq_list_append(table, &table->free, i);
}

void seq_fini(struct seq_table *table)
{
    free(table->seqs);
    *table = (struct seq_table){0};
}

void seq_list_append(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    struct seq *seq = &table->seqs[sequence];
    seq->next = SEQ_NONE;
    seq->previous = list->last;
    if (list->last != SEQ_NONE)
        table->seqs[list->last].next = sequence;
    else
        list->first = sequence;
    list->last = sequence;
    list->count++;
}

void seq_list_prepend(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    struct seq *seq = &table->seqs[sequence];
    seq->previous = SEQ_NONE;
    seq->next = list->first;
    if (list->first != SEQ_NONE)
        table->seqs[list->first].previous = sequence;
    else
        list->last = sequence;
    list->first = sequence;
    list->count++;
}

void seq_list_remove(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    const struct seq *seq = &table->seqs[sequence];
    if (seq->previous != SEQ_NONE)
        table->seqs[seq->previous].next = seq->next;
    else
        list->first = seq->next;
    if (seq->next != SEQ_NONE)
        table->seqs[seq->next].previous = seq->previous;
    else
        list->last = seq->previous;
    check(list->count > 0);
    list->count--;
}

void seq_set_state(struct seq_table *table, uint32_t sequence, enum sequence_state state)
{
    struct sequence_shm *shm = arena_sequence(table->arena, sequence);
    enum sequence_state from = journal_sequence_state(shm);
    static const uint8_t arrows[] = {[SEQUENCE_FREE] = 1 << SEQUENCE_WAITING,
                                     [SEQUENCE_WAITING] = 1 << SEQUENCE_RUNNING | 1 << SEQUENCE_DONE,
                                     [SEQUENCE_RUNNING] = 1 << SEQUENCE_WAITING | 1 << SEQUENCE_DONE,
                                     [SEQUENCE_DONE] = 1 << SEQUENCE_FREE};
    check(from < ARRAY_COUNT(arrows));
    check(arrows[from] & 1 << state);
    journal_sequence_set_state(shm, state);
}
