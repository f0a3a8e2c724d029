#include "ipc/session.h"

void session_live(struct session_shm *own, uint64_t life)
{
    /* release: pairs with session_life(): whoever sees the life finds nothing of the one before */
    atomic_store_explicit(&own->life, life, memory_order_release);
}

uint64_t session_life(const struct session_shm *theirs)
{
    /* acquire: pairs with session_live() */
    return atomic_load_explicit(&theirs->life, memory_order_acquire);
}

void session_ask(struct session_shm *own, const struct session *session)
{
    own->asked = *session;
    /* release: pairs with the acquire in session_number(): what is asked before its number */
    atomic_store_explicit(&own->number, session->number, memory_order_release);
}

uint64_t session_number(const struct session_shm *theirs)
{
    /* acquire: pairs with session_ask() */
    return atomic_load_explicit(&theirs->number, memory_order_acquire);
}

struct session session_asked(const struct session_shm *theirs)
{
    uint64_t number = session_number(theirs);
    struct session session = {0};
    if (number != 0)
        session = theirs->asked;
    session.number = number;
    return session;
}
