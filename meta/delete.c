/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deletion of a volume.
 *
 *   commit `deleting`: the name is free, the answer goes out
 *   for each server of the map, independent of the others:
 *     FENCE with the tombstone's lease epoch: no owner can write there any more, nor make a chunk
 *     CHUNK_DELETE, some thousands at a time
 *   when all have answered: the segments' records, some thousands per commit; the volume's with the
 *     last of them
 *
 * A restart of the service begins anew with the FENCE; all of it is idempotent.  A server that is
 * down holds its volumes' records back until it returns.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/recovery.h"
#include "meta/schema.h"

struct target {
    struct meta_command command;
    struct meta_deletion *deletion;
    uint32_t server_id;
    bool fenced;
    bool done;
    uint32_t first; /* segments below it are deleted here */
    uint32_t next;  /* of the batch in flight: where the one after it begins */
    bool last;      /* of the batch in flight: there is none after it */
};

struct meta_deletion {
    struct meta_core *core;
    struct meta_volume *volume;
    struct target *targets;
    uint32_t target_count;
    uint32_t done_count;
};

/* --- the records --- */

static void
records_on_committed(struct meta_op *op)
{
    struct meta_core *core = op->core;
    struct meta_volume *volume = op->volume;

    for (uint32_t i = 0; i < op->scratch_count; i++) {
        struct segment *segment = meta_segments_at_or_after(&volume->segments, 0);

        meta_volume_count_slots(core, volume, segment, -1);
        meta_segments_remove(&volume->segments, segment->index);
        core->segment_count--;
    }
    if (!op->verdict) {
        meta_op_run_soon(op); /* holds the serial on */
        return;
    }
    meta_log(core, META_LOG_INFO, "delete",
             "volume %s (%" PRIu64 "): all of its chunks are deleted", volume->desc.name,
             volume->desc.id);
    meta_op_end(op);
    meta_volume_destroy(core, volume);
}

/* The core's own op: op->request_id is the volume's id. */
static void
records_run(struct meta_op *op)
{
    struct meta_volume *volume = meta_volume_by_id(op->core, op->request_id);
    const struct segment *segment;
    struct schema_key key;

    dl_assert(volume != NULL && volume->desc.deleting);
    if (!meta_op_take(op, &volume->serial))
        return;
    op->volume = volume;
    op->scratch_count = 0;
    segment = meta_segments_at_or_after(&volume->segments, 0);
    while (segment != NULL && op->scratch_count < META_DELETE_BATCH) {
        key = schema_key_segment(volume->desc.id, segment->index);
        store_batch_delete(&op->batch, schema_bytes(&key));
        op->scratch_count++;
        segment = meta_segments_after(&volume->segments, segment->index);
    }
    op->verdict = segment == NULL; /* the last of it */
    if (op->verdict) {
        key = schema_key_volume(volume->desc.id);
        store_batch_delete(&op->batch, schema_bytes(&key));
    }
    meta_op_commit(op, records_on_committed);
}

static const struct meta_handler records_handler = {.run = records_run};

static void
deletion_finish(struct meta_deletion *deletion)
{
    struct meta_op *op = meta_op_create_internal(deletion->core, &records_handler);

    op->request_id = deletion->volume->desc.id;
}

/* --- the servers --- */

static bool
segment_has_server(const struct meta_volume *volume, const struct segment *segment,
                   uint32_t server_id, uint32_t *ret_place)
{
    for (uint32_t i = 0; i < volume->segments.place_count; i++) {
        if (segment->slots[i].server_id == server_id) {
            *ret_place = i;
            return true;
        }
    }
    return false;
}

static void
target_send_delete(struct target *target)
{
    const struct meta_volume *volume = target->deletion->volume;
    const struct segment *segment = meta_segments_at_or_after(&volume->segments, target->first);
    Dl__ChunkRef *refs = meta_alloc(META_DELETE_BATCH * sizeof(*refs));
    Dl__ChunkRef **pointers = meta_alloc(META_DELETE_BATCH * sizeof(Dl__ChunkRef *));
    Dl__ChunkDelete message = DL__CHUNK_DELETE__INIT;
    uint32_t place;

    /* Up to the chunk behind a full batch: so that a batch follows only if there is one for it. */
    while (segment != NULL) {
        if (segment_has_server(volume, segment, target->server_id, &place)) {
            Dl__ChunkRef *ref = &refs[message.n_chunks];

            if (message.n_chunks == META_DELETE_BATCH)
                break;

            dl__chunk_ref__init(ref);
            ref->volume = volume->desc.id;
            ref->segment = segment->index;
            ref->slot = segment->slots[place].number;
            ref->incarnation = segment->slots[place].incarnation;
            pointers[message.n_chunks++] = ref;
        }
        target->next = segment->index + 1;
        segment = meta_segments_after(&volume->segments, segment->index);
    }
    target->last = segment == NULL;
    message.chunks = pointers;
    target->command.name = "CHUNK_DELETE";
    meta_command_send(&target->command, OP_CHUNK_DELETE, &message.base);
    free(pointers);
    free(refs);
}

static void
target_send(struct meta_command *command)
{
    struct target *target = list_entry(command, struct target, command);
    Dl__Fence fence = DL__FENCE__INIT;

    if (target->fenced) {
        target_send_delete(target);
        return;
    }
    fence.volume = target->deletion->volume->desc.id;
    fence.lease_epoch = META_LEASE_EPOCH_TOMBSTONE;
    meta_command_send(command, OP_FENCE, &fence.base);
}

static bool
target_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct target *target = list_entry(command, struct target, command);
    struct meta_deletion *deletion = target->deletion;
    struct meta_server *server = meta_server_by_id(deletion->core, target->server_id);

    if (frame->opcode != (target->fenced ? OP_CHUNK_DELETE : OP_FENCE))
        return false;
    if (!target->fenced) {
        target->fenced = true;
        meta_command_start(command, server, false);
        return true;
    }
    target->first = target->next;
    if (!target->last) {
        meta_command_start(command, server, false);
        return true;
    }
    target->done = true;
    if (++deletion->done_count == deletion->target_count)
        deletion_finish(deletion);
    return true;
}

void
meta_deletion_start(struct meta_core *core, struct meta_volume *volume)
{
    struct meta_deletion *deletion = meta_alloc(sizeof(*deletion));

    dl_assert(volume->deletion == NULL);
    meta_recovery_forget_volume(core, volume);
    meta_scrub_free(volume);
    deletion->core = core;
    deletion->volume = volume;
    deletion->target_count = volume->server_count;
    deletion->targets = meta_alloc(volume->server_count * sizeof(*deletion->targets));
    volume->deletion = deletion;
    for (uint32_t i = 0; i < deletion->target_count; i++) {
        struct target *target = &deletion->targets[i];

        target->deletion = deletion;
        target->server_id = volume->servers[i].server_id;
        target->command.name = "FENCE";
        target->command.volume_id = volume->desc.id;
        target->command.send = target_send;
        target->command.on_reply = target_on_reply;
    }
    for (uint32_t i = 0; i < deletion->target_count; i++) {
        struct meta_server *server = meta_server_by_id(core, deletion->targets[i].server_id);

        if (server->desc.admin_state == META_ADMIN_REMOVING)
            deletion->done_count += deletion->targets[i].done = true;
        else
            meta_command_start(&deletion->targets[i].command, server, false);
    }
    if (deletion->done_count == deletion->target_count)
        deletion_finish(deletion);
}

void
meta_deletion_server_removed(struct meta_core *core, const struct meta_server *server)
{
    struct meta_volume *volume, *following;

    HASH_ITER (hh, core->volumes, volume, following) {
        struct meta_deletion *deletion = volume->deletion;

        for (uint32_t i = 0; deletion != NULL && i < deletion->target_count; i++) {
            struct target *target = &deletion->targets[i];

            if (target->server_id != server->desc.id || target->done)
                continue;
            meta_command_cancel(&target->command);
            target->done = true;
            if (++deletion->done_count == deletion->target_count)
                deletion_finish(deletion);
        }
    }
}

void
meta_deletion_free(struct meta_volume *volume)
{
    struct meta_deletion *deletion = volume->deletion;

    if (deletion == NULL)
        return;
    for (uint32_t i = 0; i < deletion->target_count; i++)
        meta_command_cancel(&deletion->targets[i].command);
    free(deletion->targets);
    free(deletion);
    volume->deletion = NULL;
}

void
meta_deletion_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                   size_t text_bytes)
{
    const struct meta_deletion *deletion = volume->deletion;

    text[0] = '\0';
    for (uint32_t i = 0; deletion != NULL && i < deletion->target_count; i++) {
        const struct meta_server *server = core->servers[deletion->targets[i].server_id];

        if (deletion->targets[i].done || server->session != NULL)
            continue;
        (void)snprintf(text, text_bytes,
                       "volume %s is deleted, but its chunks on server %s stay until that returns",
                       volume->desc.name, meta_server_text(server));
        return;
    }
}

/* --- VOLUME_DELETE --- */

static void
delete_on_committed(struct meta_op *op)
{
    struct meta_core *core = op->core;
    struct meta_volume *volume = op->volume;
    Dl__VolumeDeleteReply reply = DL__VOLUME_DELETE_REPLY__INIT;
    struct dl_error err;

    meta_log(core, META_LOG_INFO, "delete",
             "volume %s (%" PRIu64 "): deleted; %" PRIu32 " segments on %" PRIu32
             " servers go in the background",
             volume->desc.name, volume->desc.id, volume->segments.count, volume->server_count);
    volume->desc = *op->desc;
    meta_name_remove(core, volume->desc.name);
    (void)dl_error_set(&err, -DL_E_VOLUME_DELETED, "volume %s was deleted", volume->desc.name);
    meta_lease_probe_cancel(core, volume);
    meta_takeover_end(core, volume, &err);
    meta_volume_notify(volume, volume->owner_session, true);
    meta_lease_set_owner_session(volume, NULL);
    /* The serial first: a volume without chunks is gone in the next task. */
    meta_op_release(op);
    meta_deletion_start(core, volume);
    meta_op_reply(op, &reply.base);
}

/* The name is not there: perhaps because this very deletion was done before. */
static bool
delete_is_repeated(struct meta_op *op)
{
    const Dl__VolumeDelete *message = (const Dl__VolumeDelete *)op->message;
    Dl__VolumeDeleteReply reply = DL__VOLUME_DELETE_REPLY__INIT;
    struct meta_volume *volume, *following;

    if (!meta_id_is_valid(message->change_id))
        return false;
    HASH_ITER (hh, op->core->volumes, volume, following) {
        if (!volume->desc.deleting || !volume->desc.has_change_id ||
            memcmp(volume->desc.change_id, message->change_id.data, META_ID_BYTES) != 0)
            continue;
        meta_op_reply(op, &reply.base);
        return true;
    }
    return false;
}

/* True: it may go.  False: the op waits or has failed. */
static bool
delete_is_allowed(struct meta_op *op, struct meta_volume *volume)
{
    char owner[512];
    struct dl_error err;

    if (volume->reader_count > 0) {
        (void)dl_error_set(&err, -DL_E_VOLUME_BUSY,
                           "volume %s is open for reading %" PRIu32 " times", volume->desc.name,
                           volume->reader_count);
        dl_error_hint(&err, "close it first");
        meta_op_fail(op, &err);
        return false;
    }
    if (!volume->desc.owned)
        return true;
    if (!meta_lease_probe(op, volume))
        return false;
    if (!op->probed_alive)
        return true;
    meta_lease_owner_text(op->core, volume, owner, sizeof(owner));
    (void)dl_error_set(&err, -DL_E_VOLUME_BUSY, "volume %s is attached by %s", volume->desc.name,
                       owner);
    dl_error_hint(&err, "stop that program first");
    meta_op_fail(op, &err);
    return false;
}

void
meta_run_volume_delete(struct meta_op *op)
{
    const Dl__VolumeDelete *message = (const Dl__VolumeDelete *)op->message;
    struct meta_volume *volume;
    struct volume_desc *desc;

    if (meta_volume_by_name(op->core, message->name) == NULL && delete_is_repeated(op))
        return;
    volume = meta_op_volume_by_name(op, message->name);
    if (volume == NULL || !delete_is_allowed(op, volume))
        return;
    desc = meta_op_next_desc(op, volume);
    desc->deleting = true;
    desc->has_change_id = meta_id_is_valid(message->change_id);
    if (desc->has_change_id)
        memcpy(desc->change_id, message->change_id.data, META_ID_BYTES);
    op->volume = volume;
    meta_op_put_volume(op);
    meta_op_commit(op, delete_on_committed);
}
