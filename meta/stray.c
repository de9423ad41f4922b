/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chunks that no map names: an older copy of a disk has brought them back after they had left the
 * map, and been deleted.
 *
 *   a server has started anew
 *     CHUNK_LIST, by parts: what it has
 *       what has surely left the map: a removal's record, as when it left (removal.c)
 *
 * Surely: the volume was deleted; or the segment's map, which is newer than the chunk, has no such
 * slot on this server.  A chunk that is about to be written first is in a map already: allocation
 * is committed before anyone hears of it.  Of a segment that was never allocated nothing is known,
 * nor is anything after the store was made from a backup: what it doesn't know may be the only
 * copy.  Nor is a disk looked at that is new here: it may be one that was given up too early.
 *
 * What the answer of one start has not led to is looked for after the next one.  A server of an
 * older version, which can't say what it has, keeps it.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "common/assert.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define STRAY_PART_CHUNKS 2048u /* of a part of a list, about */

struct meta_stray {
    struct meta_command command;
    struct meta_core *core;
    struct meta_server *server;
    uint32_t parts; /* 0: how many chunks there are is asked for */
    uint32_t part;
};

struct stray_chunk {
    uint64_t volume_id;
    uint32_t config_epoch;
    struct change_removal removal;
};

/* --- which ones --- */

static bool
chunk_is_stray(struct meta_core *core, const struct stray_chunk *chunk)
{
    struct meta_volume *volume = meta_volume_by_id(core, chunk->volume_id);
    const struct change_removal *removal = &chunk->removal;
    const struct segment *segment;

    if (chunk->volume_id == 0 || removal->slot >= META_REPLICAS_MAX ||
        meta_removal_is_known(core, chunk->volume_id, removal))
        return false;
    if (volume == NULL)
        return chunk->volume_id < core->next_volume_id;
    if (volume->desc.deleting)
        return false;
    segment = meta_segments_find(&volume->segments, removal->segment);
    if (segment == NULL || segment->config_epoch < chunk->config_epoch)
        return false;
    for (uint32_t i = 0; i < volume->segments.place_count; i++)
        if (segment->slots[i].server_id == removal->server_id &&
            segment->slots[i].number == removal->slot)
            return false;
    return true;
}

/* --- their records --- */

static void
records_on_committed(struct meta_op *op)
{
    const struct stray_chunk *chunks = op->scratch;

    for (uint32_t i = 0; i < op->scratch_count; i++)
        meta_removal_add_stray(op->core, chunks[i].volume_id, &chunks[i].removal);
    meta_log(op->core, META_LOG_WARNING, "server",
             "server %s: %" PRIu32 " chunks that had left the map are there again: deleted",
             meta_server_text(op->server), op->scratch_count);
    meta_op_end(op);
}

/* The core's own op: op->request_id is the server's id, op->scratch what it has said. */
static void
records_run(struct meta_op *op)
{
    struct meta_server *server = meta_server_by_id(op->core, (uint32_t)op->request_id);
    struct stray_chunk *chunks = op->scratch;
    uint32_t kept = 0;

    if (!meta_op_take(op, &server->serial))
        return;
    op->server = server;
    for (uint32_t i = 0; i < op->scratch_count && !server->forgotten; i++)
        if (chunk_is_stray(op->core, &chunks[i]))
            chunks[kept++] = chunks[i];
    op->scratch_count = kept;
    if (kept == 0) {
        meta_op_end(op);
        return;
    }
    for (uint32_t i = 0; i < kept; i++)
        meta_removal_put(&op->batch, chunks[i].volume_id, &chunks[i].removal,
                         op->core->env->ops->wall_ms(op->core->env));
    meta_op_commit(op, records_on_committed);
}

static const struct meta_handler records_handler = {.run = records_run};

/* --- the list --- */

static void
stray_send(struct meta_command *command)
{
    const struct meta_stray *stray = list_entry(command, struct meta_stray, command);
    Dl__ChunkList message = DL__CHUNK_LIST__INIT;

    message.parts = stray->parts;
    message.part = stray->part;
    meta_command_send(command, OP_CHUNK_LIST, &message.base);
}

static void
stray_take(struct meta_stray *stray, const Dl__ChunkListReply *reply)
{
    struct stray_chunk *chunks = meta_alloc((reply->n_chunks + 1) * sizeof(*chunks));
    struct meta_op *op;
    uint32_t count = 0;

    for (size_t i = 0; i < reply->n_chunks; i++) {
        const Dl__ChunkEntry *entry = reply->chunks[i];

        chunks[count] = (struct stray_chunk){
            .volume_id = entry->volume,
            .config_epoch = entry->config_epoch,
            .removal = {.server_id = stray->server->desc.id,
                        .segment = entry->segment,
                        .slot = entry->slot,
                        .incarnation = entry->incarnation},
        };
        count += chunk_is_stray(stray->core, &chunks[count]);
    }
    if (count == 0) {
        free(chunks);
        return;
    }
    op = meta_op_create_internal(stray->core, &records_handler);
    op->request_id = stray->server->desc.id;
    op->scratch = chunks;
    op->scratch_count = count;
}

static bool
stray_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct meta_stray *stray = list_entry(command, struct meta_stray, command);
    struct meta_server *server = stray->server;
    ProtobufCMessage *message;
    const Dl__ChunkListReply *reply;

    if (frame->status != 0) {
        meta_stray_end(server);
        return true;
    }
    message = frame_unpack(frame, &dl__chunk_list_reply__descriptor);
    reply = (const void *)message;
    if (message == NULL)
        return false;
    if (stray->parts == 0) {
        stray->parts = (uint32_t)(reply->total / STRAY_PART_CHUNKS) + 1;
    } else {
        stray_take(stray, reply);
        stray->part++;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    if (stray->part < stray->parts)
        meta_command_start(command, server, false);
    else
        meta_stray_end(server);
    return true;
}

void
meta_stray_begin(struct meta_core *core, struct meta_server *server)
{
    meta_stray_end(server);
    if (core->restores > 0)
        return;
    server->stray = meta_alloc(sizeof(*server->stray));
    server->stray->core = core;
    server->stray->server = server;
    server->stray->command.optional = true;
    server->stray->command.name = "CHUNK_LIST";
    server->stray->command.send = stray_send;
    server->stray->command.on_reply = stray_on_reply;
    meta_command_start(&server->stray->command, server, false);
}

void
meta_stray_end(struct meta_server *server)
{
    if (server->stray == NULL)
        return;
    meta_command_cancel(&server->stray->command);
    free(server->stray);
    server->stray = NULL;
}
