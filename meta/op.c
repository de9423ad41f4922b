/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests at work.  An op is in one of these:
 *
 *   running      its handler is on the stack
 *   waiting      its node is in a queue: a serial's, a probe's, a takeover's, its session's; or its
 *                timer runs
 *   ready        its node is in core->ready: the handler runs again at the end of this turn
 *   committing   the store has it; nothing ends it but the completion
 *
 * A session that goes away ends its ops, committing ones apart: those go on without a session, and
 * nobody is answered.
 */
#include <stdlib.h>

#include "common/assert.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/recovery.h"
#include "meta/schema.h"

/* --- serials --- */

void
meta_serial_init(struct meta_serial *serial)
{
    serial->holder = NULL;
    list_init(&serial->waiting);
}

/* All of them: the first may find that it wants something else by now. */
void
meta_serial_wake_all(struct meta_serial *serial)
{
    while (!list_is_empty(&serial->waiting))
        meta_op_run_soon(list_first_entry(&serial->waiting, struct meta_op, node));
}

bool
meta_op_take(struct meta_op *op, struct meta_serial *serial)
{
    if (serial->holder == op)
        return true;
    dl_assert(op->serial == NULL);
    if (serial->holder != NULL) {
        meta_op_wait(op, &serial->waiting);
        return false;
    }
    serial->holder = op;
    op->serial = serial;
    return true;
}

void
meta_op_release(struct meta_op *op)
{
    struct meta_serial *serial = op->serial;

    if (serial == NULL)
        return;
    dl_assert(serial->holder == op);
    dl_assert(!op->committing);
    serial->holder = NULL;
    op->serial = NULL;
    meta_serial_wake_all(serial);
}

/* --- life --- */

static struct meta_op *
op_create(struct meta_core *core, const struct meta_handler *handler)
{
    struct meta_op *op = meta_alloc(sizeof(*op));

    op->core = core;
    op->handler = handler;
    list_push_back(&core->ops, &op->core_node);
    return op;
}

struct meta_op *
meta_op_create_internal(struct meta_core *core, const struct meta_handler *handler)
{
    struct meta_op *op = op_create(core, handler);

    meta_op_run_soon(op);
    return op;
}

void
meta_op_start(struct meta_session *session, const struct meta_handler *handler, uint64_t request_id,
              ProtobufCMessage *message)
{
    struct meta_op *op = op_create(session->core, handler);

    op->session = session;
    op->request_id = request_id;
    op->message = message;
    list_push_back(&session->ops, &op->session_node);
    session->op_count++;
    meta_session_update_flow(session);
    if ((handler->flags & ASKED_BACK) != 0)
        meta_session_ask_back(session, op);
    else
        handler->run(op);
}

static void
op_leave_session(struct meta_op *op)
{
    struct meta_session *session = op->session;

    if (session == NULL)
        return;
    list_remove(&op->session_node);
    op->session = NULL;
    dl_assert(session->op_count > 0);
    session->op_count--;
    meta_session_update_flow(session);
}

void
meta_op_end(struct meta_op *op)
{
    dl_assert(!op->committing);
    if (list_is_linked(&op->node))
        list_remove(&op->node);
    env_timer_stop(op->core->env, &op->timer);
    meta_op_release(op);
    op_leave_session(op);
    list_remove(&op->core_node);
    if (op->message != NULL)
        protobuf_c_message_free_unpacked(op->message, NULL);
    store_batch_fini(&op->batch);
    meta_change_free(op->change);
    free(op->desc);
    free(op->scratch);
    free(op);
}

void
meta_op_session_down(struct meta_op *op)
{
    if (op->committing)
        op_leave_session(op);
    else
        meta_op_end(op);
}

/* --- waiting --- */

void
meta_op_wait(struct meta_op *op, struct list *queue)
{
    dl_assert(!op->committing);
    dl_assert(!list_is_linked(&op->node));
    list_push_back(queue, &op->node);
}

void
meta_op_run_soon(struct meta_op *op)
{
    dl_assert(!op->committing);
    if (list_is_linked(&op->node))
        list_remove(&op->node);
    list_push_back(&op->core->ready, &op->node);
    env_defer(op->core->env, &op->core->ready_task);
}

/*
 * A service that stops begins nothing: a long deletion goes on after the start, and who waited here
 * asks again.
 */
static void
op_refuse_stopping(struct meta_op *op)
{
    struct dl_error error;

    (void)dl_error_set(&error, -DL_E_SHUTTING_DOWN, "this metadata service is shutting down");
    meta_op_fail(op, &error);
}

void
meta_op_run_ready(struct meta_core *core)
{
    struct list batch;

    /* What becomes ready meanwhile comes in the next task. */
    list_init(&batch);
    list_splice_back(&batch, &core->ready);
    while (!list_is_empty(&batch) && core->phase != META_FAILED) {
        struct meta_op *op = list_first_entry(&batch, struct meta_op, node);

        list_remove(&op->node);
        if (core->phase == META_STOPPING)
            op_refuse_stopping(op);
        else
            op->handler->run(op);
    }
    list_splice_back(&core->ready, &batch);
}

/* --- committing --- */

static void
op_on_committed(struct store_commit *commit, int err)
{
    struct meta_op *op = list_entry(commit, struct meta_op, commit);
    struct meta_core *core = op->core;
    struct dl_error error;

    dl_assert(op->committing);
    op->committing = false;
    store_batch_fini(&op->batch);
    core->stats.commits++;
    if (err == 0 && core->phase != META_FAILED) {
        if (op->event_sequence != 0)
            meta_event_committed(core, op->event_sequence);
        op->event_sequence = 0;
        op->on_committed(op);
        meta_core_commit_ended(core);
        return;
    }
    if (err != 0) {
        (void)dl_error_set(&error, err, "the metadata store could not commit a change: %s",
                           dl_err_str(err));
        dl_error_hint(&error,
                      err == -DL_E_STORE_CONFLICT
                          ? "only one dlblk-meta may serve a cluster at a time"
                          : "check the disk that holds the metadata, then start dlblk-meta again");
        meta_core_fail(core, &error);
    }
    meta_op_end(op);
    meta_core_commit_ended(core);
}

void
meta_op_commit(struct meta_op *op, void (*on_committed)(struct meta_op *op))
{
    static const char leader[] = "leader";
    struct meta_core *core = op->core;

    dl_assert(!op->committing);
    dl_assert(op->batch.count > 0);
    dl_assert(op->serial != NULL);
    op->committing = true;
    op->on_committed = on_committed;
    op->commit = (struct store_commit){
        .batch = &op->batch,
        .guard = {.key = {.bytes = leader, .length_bytes = sizeof(leader) - 1},
                  .revision = core->leader_revision},
        .on_done = op_on_committed,
    };
    core->commits_in_flight++;
    store_commit_start(core->store, &op->commit);
}

/* --- answers --- */

void
meta_op_reply(struct meta_op *op, const ProtobufCMessage *reply)
{
    struct frame_out *frame;
    struct dl_error error;

    if (op->session == NULL) {
        meta_op_end(op);
        return;
    }
    frame = frame_out_create_message(op->handler->opcode, FRAME_REPLY, op->request_id, 0, reply);
    if (frame == NULL) {
        (void)dl_error_set(&error, -DL_E_FRAME_TOO_LARGE,
                           "the answer to %s does not fit into a frame",
                           opcode_name(op->handler->opcode));
        meta_op_fail(op, &error);
        return;
    }
    meta_session_send(op->session, frame);
    meta_op_end(op);
}

void
meta_op_fail(struct meta_op *op, const struct dl_error *err)
{
    dl_assert(err->code < 0);
    if (op->session != NULL)
        meta_session_fail(op->session, op->handler->opcode, op->request_id, err);
    meta_op_end(op);
}
