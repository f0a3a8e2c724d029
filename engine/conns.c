#include "engine/conns.h"

#include <stddef.h>
#include <string.h>

#include "ipc/commit.h"

void conn_open(struct conn_shm *conn, bool is_tcp)
{
    check(!conn->is_open);
    /* generations and serial numbers go on: what is late of another connection in this slot must not be taken for ours */
    conn->generation = (conn->generation + 1) & CONN_TAG_MASK;
    conn->is_tcp = is_tcp;
    memset(&conn->receive, 0, sizeof(*conn) - offsetof(struct conn_shm, receive));
    commit_u32(&conn->is_open, 1, FAULT_CONN_OPEN);
}

void conn_close(struct conn_shm *conn)
{
    commit_u32(&conn->is_open, 0, FAULT_CONN_CLOSE);
}

/* ---- operations ---- */

static uint32_t begin_op(struct conn_shm *conn, struct conn_op_shm *op, uint64_t count)
{
    check(op->serial == 0);
    uint32_t serial = (conn->last_serial + 1) & CONN_TAG_MASK;
    serial += serial == 0;
    conn->last_serial = serial;
    op->base = count;
    commit_u32(&op->serial, serial, FAULT_CONN_OP_BEGIN);
    return serial;
}

static bool end_op(struct conn_op_shm *op, uint64_t *count, uint32_t serial, int32_t result)
{
    if (op->serial != serial || serial == 0)
        return false;
    if (result > 0)
        commit_u64(count, op->base + (uint32_t)result, FAULT_CONN_OP_COUNT);
    commit_u32(&op->serial, 0, FAULT_CONN_OP_END);
    return true;
}

uint32_t conn_begin_receive(struct conn_shm *conn)
{
    return begin_op(conn, &conn->receive, conn->received);
}

uint32_t conn_begin_send(struct conn_shm *conn)
{
    return begin_op(conn, &conn->send, conn->sent);
}

bool conn_end_receive(struct conn_shm *conn, uint32_t serial, int32_t result)
{
    return end_op(&conn->receive, &conn->received, serial, result);
}

bool conn_end_send(struct conn_shm *conn, uint32_t serial, int32_t result)
{
    return end_op(&conn->send, &conn->sent, serial, result);
}

/* ---- input ---- */

void conn_move_message(struct conn_shm *conn)
{
    check(conn->receive.serial == 0);
    if (conn->in_origin == conn->message_first)
        return;
    commit_u64(&conn->in_moved, 0, FAULT_CONN_MOVE_BEGIN);
    commit_u64(&conn->in_move_to, conn->message_first, FAULT_CONN_MOVE_TO);
    conn_end_move(conn);
}

void conn_end_move(struct conn_shm *conn)
{
    if (conn->in_move_to == conn->in_origin)
        return;
    /* pieces no longer than the way they go: one that is copied twice is copied from where nothing has been put yet */
    uint8_t *in = conns_in(conn);
    uint64_t way = conn->in_move_to - conn->in_origin, size = conn->received - conn->in_move_to;
    while (conn->in_moved < size) {
        uint64_t piece = min_u64(way, size - conn->in_moved);
        memcpy(in + conn->in_moved, in + way + conn->in_moved, piece);
        commit_u64(&conn->in_moved, conn->in_moved + piece, FAULT_CONN_MOVED);
    }
    commit_u64(&conn->in_origin, conn->in_move_to, FAULT_CONN_MOVE_END);
}

/* ---- output ---- */

void conn_put_interim(struct conn_shm *conn, uint32_t size)
{
    check(conn->reply == CONN_NO_REPLY);
    commit_u64(&conn->interim_end, conn->interim_end + size, FAULT_CONN_INTERIM);
}

void conn_reply_fixed(struct conn_shm *conn, uint64_t message_end, bool closes, uint32_t size)
{
    check(conn->reply == CONN_NO_REPLY);
    conn->message_end = message_end;
    conn->closes = closes;
    conn->reply_end = conn->interim_end + size;
    commit_u32(&conn->reply, CONN_FIXED, FAULT_CONN_REPLY_FIXED);
}

void conn_reply_answer(struct conn_shm *conn, uint64_t message_end, bool closes, uint32_t request, uint32_t generation)
{
    check(conn->reply == CONN_NO_REPLY);
    conn->message_end = message_end;
    conn->closes = closes;
    conn->request = request;
    conn->request_generation = generation;
    commit_u32(&conn->reply, CONN_ANSWER, FAULT_CONN_REPLY_ANSWER);
}

void conn_reply_withdraw(struct conn_shm *conn)
{
    check(conn->reply == CONN_ANSWER);
    commit_u32(&conn->reply, CONN_NO_REPLY, FAULT_CONN_REPLY_WITHDRAW);
}

void conn_reply_sent(struct conn_shm *conn)
{
    check(conn->reply == CONN_FIXED || conn->reply == CONN_ANSWER);
    commit_u32(&conn->reply, CONN_SENT, FAULT_CONN_REPLY_SENT);
}

void conn_drop_input(struct conn_shm *conn)
{
    check(conn->reply == CONN_SENT && conn->closes);
    commit_u64(&conn->message_first, conn->received, FAULT_CONN_DROP_INPUT);
    conn_move_message(conn);
}

void conn_next_message(struct conn_shm *conn)
{
    check(conn->reply == CONN_SENT && conn->send.serial == 0);
    /* all of it may be done again: nothing moves these places before `reply` says that a message begins */
    commit_u64(&conn->message_first, conn->message_end, FAULT_CONN_NEXT_IN);
    commit_u64(&conn->out_begin, conn->sent, FAULT_CONN_NEXT_OUT);
    commit_u64(&conn->interim_end, conn->sent, FAULT_CONN_NEXT_INTERIM);
    commit_u32(&conn->reply, CONN_NO_REPLY, FAULT_CONN_NEXT);
}
