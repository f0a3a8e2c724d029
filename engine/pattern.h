/* pattern.h - ways to spread work over the slots of a pipeline's window, and which of them is best.
 *
 * Used by: policy even.   Owns: nothing; pure functions of their arguments.   Never blocks.
 *
 * In one cycle every decoding row gets one token, and some slots carry prompt besides. What a cycle takes follows from the
 * stage-time model: the longest way of a slot through the pipeline, or the work of the busiest stage or link, whichever is
 * more. docs/scheduling.md derives it.
 */
#ifndef EVENFLOW_PATTERN_H
#define EVENFLOW_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/timing.h"

struct load {
    double rows, context; /* decoding rows; tokens that all of them look at */
    double prompt_past;   /* tokens in front of the prompt that is next */
    uint64_t backlog;     /* tokens of prompt that could be computed now */
};

struct aims {
    uint32_t depth;      /* slots in flight at most */
    uint32_t tokens_max; /* of one slot */
    uint32_t slots_now;  /* that share the decoding rows so far; 0: none do */
    double rows_later;   /* decoding rows that there could be at once: what work costs then is its worth */
    double prompt_share; /* tokens of prompt that there are for every token of an answer */
    double prompt_rate; /* tokens of prompt per microsecond that are needed; where nothing has it: most work per time */
    bool has_target;    /* what prompt_rate says is a promise: where nothing keeps it, prompts come first */
    double waiting;     /* for the first token of an answer: so many */
    double lone_speed;  /* times that a slot is faster while it is the only one: stages that wait help; 1: no faster */
    double cycle_max_us; /* between two tokens of an answer, where that is possible; 0: any */
};

struct pattern {
    uint32_t decode_slots;  /* share the decoding rows; 0: there are none */
    uint32_t prompt_slots;  /* carry prompt: the same ones, as far as there are as many, or others */
    uint32_t prompt_tokens; /* each */
    bool is_apart;          /* prompt slots carry nothing else */
    uint32_t in_flight;     /* prompt slots that are under way at a time: their way may be longer than a cycle */
    double cycle_us;
};

/* The one with which everybody together waits least; where prompts come faster than that, or many at once, the one that gets
 * most work done per time. */
struct pattern pattern_choose(const struct timing *timing, const struct load *load, const struct aims *aims);

#endif
