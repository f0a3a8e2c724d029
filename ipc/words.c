#include "ipc/words.h"

#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "ipc/base.h"

static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};

static struct words_shm *own;
static uint8_t alternate_stack[16384];

static uint64_t instruction_of(const void *context)
{
#if defined(__x86_64__)
    return (uint64_t)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#else
    (void)context;
    return 0;
#endif
}

/* The disposition is the default one again: an instruction that faulted does so once more, whatever else came is raised. */
static void on_fault(int signal, siginfo_t *info, void *context)
{
    own->signal = (uint32_t)signal;
    own->code = info->si_code;
    own->sender = info->si_code <= 0 ? (uint32_t)info->si_pid : 0;
    own->address = info->si_code > 0 ? (uint64_t)(uintptr_t)info->si_addr : 0;
    own->instruction = instruction_of(context);
    if (info->si_code <= 0)
        raise(signal);
}

void words_open(struct words_shm *words, uint32_t epoch)
{
    *words = (struct words_shm){.epoch = epoch};
    own = words;
    base_set_check_text(words->text, sizeof(words->text));
    const stack_t stack = {.ss_sp = alternate_stack, .ss_size = sizeof(alternate_stack)};
    sigaltstack(&stack, NULL); /* a stack that overflowed is no place for a handler */
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_RESETHAND | SA_ONSTACK};
    for (size_t i = 0; i < ARRAY_COUNT(signals); i++)
        sigaction(signals[i], &action, NULL);
}

bool words_are_own_fault(const struct words_shm *words, uint32_t epoch, int signal)
{
    bool is_fault = false;
    for (size_t i = 0; i < ARRAY_COUNT(signals); i++)
        is_fault = is_fault || signals[i] == signal;
    if (!is_fault)
        return false;
    if (words->epoch != epoch || words->signal != (uint32_t)signal)
        return true; /* it had no time for words: nobody's kill() takes that from it */
    return words->code > 0 || words->text[0] != '\0';
}
