/* stage_death.pml - a stage between two rings dies at any store, several times; its successors go on. Checked by Spin.
 *
 * ring.c, stage.c: what follows from a message is published before the message is released; a successor finds its place by
 * the commit words. The supervisor starts it only when the dead one is proven dead. Every step comes out once, in order, with
 * its own value. Defined by tests, to see that the model notices: RELEASE_FIRST (the other order), NO_FENCE (a successor on
 * the alarm alone, while the old life still makes stores).
 */
#define STEPS 4
#define SLOTS 2
#define DEATHS 2

byte in_commit[SLOTS], in_value[SLOTS], in_consumed;
byte out_commit[SLOTS], out_value[SLOTS], out_consumed;
byte deaths;
bool is_dead = true, is_over;

#define MAY_DIE if :: deaths < DEATHS -> deaths++; goto dead :: skip fi

proctype stage()
{
    byte in_next, out_next, i, value;
    in_next = in_consumed;
    for (i : 0 .. SLOTS - 1) {
        if :: out_commit[i] > out_next -> out_next = out_commit[i] :: else fi
    }
    do
    :: atomic { in_next == STEPS -> goto left }
    :: in_next < STEPS && in_commit[in_next % SLOTS] == in_next + 1 ->
        if
        :: in_next < out_next -> skip /* a life before has published it */
        :: else ->
            value = in_value[in_next % SLOTS] + 100;
            MAY_DIE;
#ifdef RELEASE_FIRST
            in_consumed = in_next + 1;
            MAY_DIE;
#endif
            out_next - out_consumed < SLOTS;
            out_value[out_next % SLOTS] = value;
            MAY_DIE;
            out_commit[out_next % SLOTS] = out_next + 1;
            out_next++;
            MAY_DIE
        fi;
        in_consumed = in_next + 1;
        in_next++;
        MAY_DIE
    od;
dead:
#ifdef NO_FENCE
    is_dead = true;
    out_value[out_next % SLOTS] = 0; /* its last store */
#endif
    is_dead = true;
    goto gone;
left:
    is_over = true;
gone:
    skip
}

active proctype supervisor()
{
    do
    :: is_dead -> is_dead = false; run stage()
    :: is_over -> break
    od
}

active proctype before()
{
    byte i;
    for (i : 0 .. STEPS - 1) {
        i - in_consumed < SLOTS;
        in_value[i % SLOTS] = i;
        in_commit[i % SLOTS] = i + 1
    }
}

active proctype after()
{
    byte i;
    for (i : 0 .. STEPS - 1) {
        out_commit[i % SLOTS] == i + 1;
        assert(out_value[i % SLOTS] == i + 100);
        out_consumed = i + 1
    }
}
