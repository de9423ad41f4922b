/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pending_op.c: PENDING of a new owner: what FENCE says, of one chunk.  See core_internal.h,
 * docs/recovery.md, rule 18.
 *
 * It is for a slot that was promoted after the fence; as long as this server has not heard of the
 * promotion it answers NOT_YET.  The volume's fence rises, and the answer comes when all that was
 * accepted before is durable or aborted.
 */
#include <stdlib.h>

#include "chunkserver/core_internal.h"
#include "common/assert.h"
#include "dlblk/error.h"

#define FIRST_CONFIG_EPOCH  1u
#define PENDING_PART_WRITES (PENDING_PART_BYTES / PENDING_WRITE_BYTES)

/* Whether it can be answered: before the fence, and again after it. */
static int
pending_op_check(struct chunkserver_core *core, const struct stable_op *op)
{
    const struct chunk *chunk = chunk_table_find(core->chunks, &op->key);

    if (op->change.lease_epoch < chunk_table_fence(core->chunks, op->key.volume)) {
        core->stats.refused_lease++;
        return -DL_E_LEASE_OLD;
    }
    if (chunk == NULL && op->config_epoch != FIRST_CONFIG_EPOCH)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk != NULL && op->config_epoch < chunk->config_epoch)
        return -DL_E_EPOCH_OLD;
    if (slot_is_beginning(core, &op->key) || (chunk != NULL && chunk->attempt != 0)) {
        core->stats.refused_attempt++;
        return -DL_E_NOT_YET;
    }
    return 0;
}

/* NULL: no memory. */
static struct frame_out *
pending_op_reply(const struct stable_op *op, const struct chunk *chunk)
{
    Dl__PendingChunk reply = DL__PENDING_CHUNK__INIT;
    struct pending_slice slice;
    bool more;
    Dl__PendingWrite *writes;
    Dl__PendingWrite **pointers;
    struct frame_out *frame = NULL;

    if (chunk == NULL) {
        reply.segment = op->key.segment;
        reply.slot = op->key.slot;
        reply.config_epoch = op->config_epoch;
        return frame_out_create_message(OP_PENDING, FRAME_REPLY, op->request_id, 0, &reply.base);
    }
    slice = pending_slice_of(chunk, op->first_version, op->change.lease_epoch);
    more = slice.count > PENDING_PART_WRITES;
    slice.count = more ? PENDING_PART_WRITES : slice.count;
    writes = calloc(slice.count + 1, sizeof(*writes));
    pointers = calloc(slice.count + 1, sizeof(struct _Dl__PendingWrite *));
    if (writes != NULL && pointers != NULL) {
        (void)pending_chunk_fill(&reply, chunk, slice, writes, pointers);
        reply.more = more;
        reply.next_version = more ? chunk->pending[slice.first + slice.count].version : 0;
        frame = frame_out_create_message(OP_PENDING, FRAME_REPLY, op->request_id, 0, &reply.base);
    }
    free(writes);
    free(pointers);
    return frame;
}

static void
pending_op_finish(struct stable_op *op, int err)
{
    struct chunkserver_core *core = op->session->core;
    struct frame_out *reply = NULL;

    if (err == 0)
        err = pending_op_check(core, op);
    if (err == 0) {
        reply = pending_op_reply(op, chunk_table_find(core->chunks, &op->key));
        err = reply == NULL ? -DL_E_NO_MEMORY : 0;
    }
    if (err != 0)
        reply = frame_out_create_error(OP_PENDING, op->request_id, err, NULL, NULL);
    session_send(op->session, reply);
    stable_op_release(op);
}

static void
pending_op_on_fenced(struct store_change *change, int err)
{
    pending_op_finish(list_entry(change, struct stable_op, change), err);
}

static void
pending_op_start(struct session *session, const struct frame *frame, const Dl__Pending *message)
{
    struct chunkserver_core *core = session->core;
    struct stable_op *op = stable_op_acquire(core, session);
    int err;

    op->request_id = frame->request_id;
    op->config_epoch = message->config_epoch;
    op->first_version = message->first_version;
    op->key = (struct chunk_key){
        .volume = message->volume,
        .segment = message->segment,
        .slot = message->slot,
    };
    op->change = (struct store_change){
        .kind = STORE_FENCE,
        .key = {.volume = message->volume},
        .lease_epoch = message->lease_epoch,
        .on_done = pending_op_on_fenced,
    };
    err = pending_op_check(core, op);
    if (err != 0) {
        pending_op_finish(op, err);
        return;
    }
    core->store->ops->change_start(core->store, &op->change);
    core_store_started(core);
}

void
pending_op_receive(struct session *session, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__pending__descriptor);
    const Dl__Pending *pending = (const void *)message;

    session->core->stats.pendings++;
    if (message == NULL || pending->volume == 0 || pending->slot >= WIRE_SLOTS_MAX ||
        pending->config_epoch == 0 || pending->lease_epoch == 0 ||
        pending->lease_epoch > WIRE_LEASE_EPOCH_MAX)
        session_refuse(session, frame, -DL_E_MESSAGE_MALFORMED);
    else
        pending_op_start(session, frame, pending);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}
