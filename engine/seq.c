#include "engine/seq.h"

#include <stdlib.h>

#include "ipc/journal.h"

void seq_init(struct seq_table *table, const struct arena *arena)
{
    uint32_t count = arena->plan->sequences_max;
    *table = (struct seq_table){.arena = arena, .seqs = base_alloc(count * sizeof(*table->seqs))};
    table->free = table->waiting = table->running = table->held = (struct seq_list){SEQ_NONE, SEQ_NONE, 0};
    for (uint32_t i = 0; i < count; i++)
        seq_list_append(table, &table->free, i);
}

void seq_fini(struct seq_table *table)
{
    free(table->seqs);
    *table = (struct seq_table){0};
}

static void link_between(struct seq_table *table, struct seq_list *list, uint32_t sequence, uint32_t previous,
                         uint32_t next)
{
    struct seq *seq = &table->seqs[sequence];
    check(seq->in == NULL);
    seq->in = list;
    seq->previous = previous;
    seq->next = next;
    *(previous != SEQ_NONE ? &table->seqs[previous].next : &list->first) = sequence;
    *(next != SEQ_NONE ? &table->seqs[next].previous : &list->last) = sequence;
    list->count++;
}

void seq_list_append(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    link_between(table, list, sequence, list->last, SEQ_NONE);
}

void seq_list_prepend(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    link_between(table, list, sequence, SEQ_NONE, list->first);
}

bool seq_comes_before(const struct seq_table *table, uint32_t a, uint32_t b)
{
    const struct seq *x = &table->seqs[a], *y = &table->seqs[b];
    return x->priority < y->priority || (x->priority == y->priority && x->order < y->order);
}

void seq_list_insert(struct seq_table *table, struct seq_list *list, uint32_t sequence)
{
    uint32_t previous = list->last;
    while (previous != SEQ_NONE && seq_comes_before(table, sequence, previous))
        previous = table->seqs[previous].previous;
    link_between(table, list, sequence, previous, previous != SEQ_NONE ? table->seqs[previous].next : list->first);
}

void seq_list_remove(struct seq_table *table, uint32_t sequence)
{
    struct seq *seq = &table->seqs[sequence];
    check(seq->in != NULL);
    *(seq->previous != SEQ_NONE ? &table->seqs[seq->previous].next : &seq->in->first) = seq->next;
    *(seq->next != SEQ_NONE ? &table->seqs[seq->next].previous : &seq->in->last) = seq->previous;
    seq->in->count--;
    seq->in = NULL;
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
