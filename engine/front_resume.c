/* front_resume.c - a successor goes on where its forerunner was: with the same connections, behind the last byte that the
 * kernel has taken or given.
 *
 * What there is: the regions of the former life (front, conns), what the kernel wrote about its last operations (io past),
 * and, from the keeper, the connections themselves. Private memory is gone and is made anew from these.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/front_inside.h"
#include "ipc/commit.h"
#include "ipc/journal.h"
#include "ipc/log.h"

/* ---- what the kernel did ---- */

static void note(void *context, const struct io_event *event)
{
    struct conn_shm *shm = shm_of(context, event->slot);
    if (!shm->is_open)
        return;
    /* false: the former life had noted it */
    if (event->kind == IO_RECEIVE)
        conn_end_receive(shm, event->tag, event->result);
    else
        conn_end_send(shm, event->tag, event->result);
}

static void note_results(struct front *f)
{
    const uint8_t *past = f->arena->regions[REGION_IO_PAST];
    if (past != NULL)
        io_past(past, &f->arena->layout, f->plan->connections_max, note, f);
    for (uint32_t slot = 0; slot < f->plan->connections_max; slot++) {
        struct conn_shm *shm = shm_of(f, slot);
        if (!shm->is_open)
            continue;
        /* of what has no result nothing has happened */
        conn_end_receive(shm, shm->receive.serial, 0);
        conn_end_send(shm, shm->send.serial, 0);
        conn_end_move(shm);
    }
    struct io_head_shm *head = (struct io_head_shm *)(void *)f->arena->regions[REGION_IO];
    commit_u32(&head->is_begun, 1, FAULT_IO_BEGUN);
}

/* ---- connections ---- */

int front_take_back(struct front *f, struct err *err)
{
    bool is_end = f->arena->keep < 0;
    while (!is_end) {
        struct keep_message message;
        int fds[KEEP_ENTRIES_MAX];
        const int *fd = fds;
        int ret = keep_receive(f->arena->keep, true, &message, fds);
        if (ret != 1)
            return err_set(err, ret ? ret : -EPIPE, "kept connections: cannot take them back: %s",
                           ret ? strerror(-ret) : "the keeper is gone");
        for (uint32_t i = 0; i < message.entry_count; i++) {
            const struct keep_entry *entry = &message.entries[i];
            is_end = is_end || entry->kind == KEEP_END;
            if (entry->kind != KEEP_HOLD)
                continue;
            check(entry->slot < f->plan->connections_max);
            struct conn_shm *shm = shm_of(f, entry->slot);
            if (shm->is_open && shm->generation == entry->generation && f->connections[entry->slot].fd < 0) {
                f->connections[entry->slot].fd = *fd++;
                continue;
            }
            shutdown(*fd, SHUT_RDWR);
            close(*fd++);
            front_keep_order(f, KEEP_DROP, entry->slot, entry->generation);
        }
    }
    return 0;
}

/* ---- replies ---- */

static bool is_accepted(const struct front *f, const struct conn_shm *shm)
{
    check(shm->request < f->plan->requests_max);
    const struct request_shm *request = arena_request(f->arena, shm->request);
    return request->generation == shm->request_generation && journal_request_state(request) == REQUEST_ACCEPTED;
}

/* The same bytes again from the first one, up to what has been sent: they were there before, so they are now. */
static void resume_answer(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    answer_begin(&c->answer, f->arena, &f->tok, &shm->format, shm->request, f->choices);
    if (shm->sent <= shm->interim_end)
        return;
    char *out = (char *)out_of(f, slot);
    size_t size = 0;
    for (uint64_t skip = shm->sent - shm->interim_end; skip > 0;) {
        c->is_rendered = answer_render(&c->answer, out, CONN_OUT_BYTES, &size) == ANSWER_COMPLETE;
        check(size > 0);
        size_t passed = min_u64(skip, size);
        skip -= passed;
        size -= passed;
        memmove(out, out + passed, size);
    }
    c->out_origin = shm->sent;
    c->rendered = shm->sent + size;
}

static void resume_connection(struct front *f, uint32_t slot)
{
    struct connection *c = &f->connections[slot];
    struct conn_shm *shm = shm_of(f, slot);
    int fd = c->fd;
    c->fd = -1;
    front_connection_adopt(f, slot, fd);
    switch (shm->reply) {
    case CONN_NO_REPLY:
        front_connection_set_phase(f, slot, CONN_READING);
        front_send_out(f, slot); /* an interim response */
        front_read_next(f, slot);
        break;
    case CONN_FIXED:
        c->rendered = shm->reply_end;
        c->is_rendered = true;
        front_connection_set_phase(f, slot, CONN_ANSWERING);
        front_pump(f, slot);
        break;
    case CONN_ANSWER:
        resume_answer(f, slot);
        front_connection_set_phase(f, slot, CONN_ANSWERING);
        front_pump(f, slot);
        break;
    case CONN_SENT:
        front_reply_done(f, slot);
        break;
    default:
        check(shm->reply <= CONN_SENT);
    }
}

void front_resume(struct front *f)
{
    uint32_t resumed = 0;
    note_results(f);
    for (uint32_t slot = 0; slot < f->plan->connections_max; slot++) {
        struct conn_shm *shm = shm_of(f, slot);
        if (f->connections[slot].fd < 0) {
            if (shm->is_open) /* nobody kept it yet: nothing of it was read */
                conn_close(shm);
        } else if (shm->reply == CONN_ANSWER) {
            if (is_accepted(f, shm))
                intake_adopt(&f->intake, shm->request, slot);
            else /* death came before the request did: the message is taken again */
                conn_reply_withdraw(shm);
        }
    }
    intake_resume(&f->intake);
    f->free_connection_count = 0;
    for (uint32_t slot = f->plan->connections_max; slot-- > 0;)
        if (f->connections[slot].fd < 0)
            f->free_connections[f->free_connection_count++] = slot;
    for (uint32_t slot = 0; slot < f->plan->connections_max; slot++)
        if (f->connections[slot].fd >= 0) {
            resume_connection(f, slot);
            resumed++;
        }
    if (f->arena->epoch > 1)
        log_info("goes on with %u connections and %u requests", resumed, f->intake.active);
}
