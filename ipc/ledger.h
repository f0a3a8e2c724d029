/* ledger.h - a file that outlives the whole engine: which requests it has accepted and not finished.
 *
 * Used by: the launcher (opens the file, tells what a former engine has left there, begins a new list), front (writes it),
 * supervisor (holds it for every front to come).
 * Owns: the front its mapping; descriptors are the caller's.   Never blocks, but as the file system does.
 *
 *   DIR/requests:  [ head, a page | an entry for every request slot ]
 *
 * Front writes an entry before its request is accepted and takes it away before it is drained, each with one store: a
 * checksum of the entry, or 0. The list is a mapped file, so it is what it was when every process has been killed; after a
 * crash of the machine it is what the kernel had written back, and an entry that is there in part does not match its
 * checksum. It is bounded, and takes all its room at start.
 *
 * The file is locked while any process of the engine has it, so a second engine is refused.
 */
#ifndef EVENFLOW_LEDGER_H
#define EVENFLOW_LEDGER_H

#include <assert.h>
#include <stdint.h>

#include "ipc/base.h"
#include "ipc/layout.h"

#define LEDGER_MAGIC         0x3152454744454c45ull /* "ELEDGER1" */
#define LEDGER_HEAD_BYTES    4096u
#define LEDGER_CLIENT_ID_MAX 128u
#define LEDGER_ENTRIES_MAX   (1u << 17)

struct ledger_head_shm {
    uint64_t magic;       /* W: launcher   R: the next launcher */
    uint32_t entry_bytes; /* likewise */
    uint32_t entry_count; /* likewise */
    uint64_t begun_s;     /* likewise; wall clock */
};
static_assert(sizeof(struct ledger_head_shm) == 24, "a file");

struct ledger_entry_shm {
    uint64_t commit;     /* W: front: checksum of the rest, never 0; 0: no entry   R: the next launcher */
    uint64_t id;         /* W: front, before commit, as all below: random bits of the response id */
    uint64_t accepted_s; /* wall clock */
    uint32_t is_chat;
    uint32_t prompt_tokens;
    uint32_t max_tokens;
    uint32_t choices;
    char client_id[LEDGER_CLIENT_ID_MAX + 8]; /* X-Request-Id; "": the client gave none */
    uint8_t pad[16];
};
static_assert(sizeof(struct ledger_entry_shm) == 192, "a file");

/* ---- launcher ---- */

/* DIR/requests, made where there is none, and locked. fd, or -errno with err: a running engine has it, or it is no list. */
int ledger_open(const char *directory, struct err *err);

/* Entry `index` of what the former engine left. 1: there is one; 0: there is none; -EBADMSG: there was one, and it is
 * damaged; -ENOENT: behind the last one. */
int ledger_left(int fd, uint32_t index, struct ledger_entry_shm *entry);

/* Forgets what was there; room for `entry_count` entries. 0, or -errno with err. */
int ledger_begin(int fd, uint32_t entry_count, struct err *err);

/* ---- front ---- */

struct ledger {
    struct ledger_entry_shm *entries; /* NULL: no list is kept */
    uint32_t count;
};

/* fd: -1 where no list is kept. The descriptor stays the caller's. 0, or -errno with err. */
int ledger_map(struct ledger *ledger, int fd, uint32_t entry_count, struct err *err);

/* The request in this slot is about to be accepted. client_id: its X-Request-Id. */
void ledger_put(struct ledger *ledger, uint32_t slot, const struct request_shm *request, bool is_chat,
                const char *client_id);
/* It is about to be over, or a life of front ended before it was accepted. */
void ledger_clear(struct ledger *ledger, uint32_t slot);

#endif
