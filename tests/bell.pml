/* bell.pml - the sleep protocol of bell.c on processors that keep a store back (x86's store buffers), wakers that die included.
 * Checked by Spin: the sleeper never sleeps for ever. Defined by tests, to see that the model notices: NO_FENCE, and
 * NO_RING_AT_START (a waker's successor that trusts its forerunner to have rung).
 */
#define DEATHS 1

bool sleeping, data, bell;            /* memory */
bool sleeping_kept, data_kept;        /* stores that are kept back */
bool is_waker_dead, has_woken;
byte deaths;

active [2] proctype store_buffer() /* at any time, a store gets through */
{
end:
    do
    :: atomic { sleeping_kept -> sleeping = true; sleeping_kept = false }
    :: atomic { data_kept -> data = true; data_kept = false }
    od
}

inline ring()
{
#ifndef NO_FENCE
    !data_kept; /* full fence */
#endif
    if :: sleeping -> bell = true :: else fi
}

active proctype sleeper()
{
    sleeping_kept = true;
#ifndef NO_FENCE
    !sleeping_kept; /* full fence */
#endif
    if
    :: data -> skip
    :: else -> bell; sleeping = false; data /* rung: it is there */
    fi;
    has_woken = true
}

active proctype waker()
{
    data_kept = true;
    if
    :: deaths < DEATHS -> deaths++; is_waker_dead = true /* its stores get through all the same */
    :: skip -> ring()
    fi
}

active proctype successor()
{
end:
    is_waker_dead;
#ifndef NO_RING_AT_START
    ring()
#endif
}
