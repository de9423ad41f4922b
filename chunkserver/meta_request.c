/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meta_request.c: what the metadata service asks of a chunkserver: FENCE, CHUNK_DELETE,
 * SLOT_TELL, PING.
 *
 * Each is answered when the store has it durably.  The metadata service sends again on its next
 * connection what was not answered, so an answer whose connection is gone is dropped, and every
 * request may come twice.
 */
#include <stdlib.h>

#include "chunkserver/core_internal.h"
#include "common/assert.h"
#include "common/log.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define DELETE_REFS_MAX 4096u

/* An upper bound of what they take in a packed message. */
#define PENDING_WRITE_BYTES   32u
#define PENDING_CHUNK_BYTES   64u
#define FENCE_REPLY_BYTES_MAX (FRAME_BODY_BYTES_MAX - 1024u)

void
meta_request_begin(struct meta_request *request, struct chunkserver_core *core,
                   const struct frame *frame)
{
    request->core = core;
    request->connection = core->meta.connection;
    request->request_id = frame->request_id;
    request->opcode = frame->opcode;
    list_push_back(&core->meta_request_list, &request->node);
    core->meta_requests++;
}

void
meta_request_end(struct meta_request *request)
{
    dl_assert(request->core->meta_requests > 0);
    list_remove(&request->node);
    request->core->meta_requests--;
    core_stop_step(request->core);
}

void
meta_request_reply(const struct meta_request *request, int err, const char *text,
                   const ProtobufCMessage *message)
{
    struct frame_out *frame;

    if (err != 0)
        frame = frame_out_create_error(request->opcode, request->request_id, err, text, NULL);
    else
        frame = frame_out_create_message(request->opcode, FRAME_REPLY, request->request_id, 0,
                                         message);
    meta_link_send(request->core, request->connection, frame);
}

void
meta_refuse(struct chunkserver_core *core, const struct frame *frame, int err, const char *text)
{
    meta_link_send(core, core->meta.connection,
                   frame_out_create_error(frame->opcode, frame->request_id, err, text, NULL));
}

/* --- FENCE --- */

struct fence_request {
    struct meta_request request;
    struct store_change change;
    uint32_t first_segment;
};

size_t
pending_chunk_fill(Dl__PendingChunk *reply, const struct chunk *chunk, uint64_t version_end,
                   Dl__PendingWrite *writes, Dl__PendingWrite **pointers)
{
    size_t count = 0;

    for (uint32_t i = 0; chunk->attempt == 0 && i < chunk->pending_count; i++) {
        const struct pending_write *pending = &chunk->pending[i];

        if (pending->version >= version_end ||
            (DLBLK_MUTANT(chunkserver_forget_pending) && i % 4 == 3))
            continue;
        dl__pending_write__init(&writes[count]);
        writes[count].version = pending->version;
        writes[count].offset_sectors = pending->offset_sectors;
        writes[count].length_sectors = pending->length_sectors;
        pointers[count] = &writes[count];
        count++;
    }
    dl__pending_chunk__init(reply);
    reply->segment = chunk->key.segment;
    reply->slot = chunk->key.slot;
    reply->config_epoch = chunk->config_epoch;
    reply->stable_version = chunk->attempt == 0 ? chunk->stable_version : 0;
    reply->attempt = chunk->attempt;
    reply->n_writes = count;
    reply->writes = pointers;
    return count;
}

static int
chunk_compare(const void *a, const void *b)
{
    const struct chunk_key *left = &(*(struct chunk *const *)a)->key;
    const struct chunk_key *right = &(*(struct chunk *const *)b)->key;

    if (left->segment != right->segment)
        return left->segment < right->segment ? -1 : 1;
    return left->slot < right->slot ? -1 : left->slot > right->slot;
}

/* What a reply is made of: counted first, then filled. */
struct fence_parts {
    struct chunk **chunks;
    size_t chunk_count, chunk_capacity;
    size_t write_count;
    bool more;
    uint32_t next_segment;
    bool no_memory;
};

static void
fence_parts_add(struct fence_parts *parts, struct chunk *chunk)
{
    struct chunk **grown;

    if (parts->chunk_count == parts->chunk_capacity) {
        parts->chunk_capacity = parts->chunk_capacity * 2 + 64;
        grown = reallocarray(parts->chunks, parts->chunk_capacity, sizeof(struct chunk *));
        if (grown == NULL) {
            parts->no_memory = true;
            return;
        }
        parts->chunks = grown;
    }
    parts->chunks[parts->chunk_count++] = chunk;
}

/* Chunks in order, until a frame is full; it ends between two segments. */
static void
fence_parts_limit(struct fence_parts *parts)
{
    size_t bytes = 0;

    qsort(parts->chunks, parts->chunk_count, sizeof(struct chunk *), chunk_compare);
    for (size_t i = 0; i < parts->chunk_count; i++) {
        const struct chunk *chunk = parts->chunks[i];

        bytes += PENDING_CHUNK_BYTES + (size_t)chunk->pending_count * PENDING_WRITE_BYTES;
        if (bytes > FENCE_REPLY_BYTES_MAX && i > 0 &&
            chunk->key.segment != parts->chunks[i - 1]->key.segment) {
            parts->more = true;
            parts->next_segment = chunk->key.segment;
            parts->chunk_count = i;
            return;
        }
        parts->write_count += chunk->pending_count;
    }
}

static void
fence_parts_collect(struct fence_parts *parts, const struct fence_request *fence)
{
    const struct chunk_volume *volume = chunk_table_volume(fence->request.core->chunks,
                                                           fence->change.key.volume);
    struct chunk *chunk;

    if (volume == NULL || fence->change.lease_epoch == WIRE_LEASE_EPOCH_TOMBSTONE)
        return; /* a deleted volume: nobody will look at its pending writes again */
    list_for_each_entry (chunk, &volume->chunks, volume_node)
        if (chunk->state == CHUNK_PRESENT && (chunk->pending_count > 0 || chunk->attempt != 0) &&
            chunk->key.segment >= fence->first_segment && !parts->no_memory)
            fence_parts_add(parts, chunk);
    if (!parts->no_memory && parts->chunk_count > 0)
        fence_parts_limit(parts);
}

static void
fence_reply_parts(const struct fence_request *fence, const struct fence_parts *parts)
{
    Dl__FenceReply reply = DL__FENCE_REPLY__INIT;
    uint64_t version_end = (uint64_t)fence->change.lease_epoch << WIRE_VERSION_SEQUENCE_BITS;
    Dl__PendingChunk *chunks = calloc(parts->chunk_count + 1, sizeof(*chunks));
    Dl__PendingChunk **chunk_pointers = calloc(parts->chunk_count + 1,
                                               sizeof(struct _Dl__PendingChunk *));
    Dl__PendingWrite *writes = calloc(parts->write_count + 1, sizeof(*writes));
    Dl__PendingWrite **write_pointers = calloc(parts->write_count + 1,
                                               sizeof(struct _Dl__PendingWrite *));
    size_t chunk_count = 0;
    size_t write_count = 0;
    size_t count;

    if (chunks == NULL || chunk_pointers == NULL || writes == NULL || write_pointers == NULL) {
        meta_request_reply(&fence->request, -DL_E_NO_MEMORY, NULL, NULL);
        goto out;
    }
    for (size_t i = 0; i < parts->chunk_count; i++) {
        count = pending_chunk_fill(&chunks[chunk_count], parts->chunks[i], version_end,
                                   writes + write_count, write_pointers + write_count);
        if (count == 0 && parts->chunks[i]->attempt == 0)
            continue;
        write_count += count;
        chunk_pointers[chunk_count] = &chunks[chunk_count];
        chunk_count++;
    }
    reply.volume = fence->change.key.volume;
    reply.lease_epoch = fence->change.lease_epoch;
    reply.n_chunks = chunk_count;
    reply.chunks = chunk_pointers;
    reply.more = parts->more;
    reply.next_segment = parts->next_segment;
    meta_request_reply(&fence->request, 0, NULL, &reply.base);
out:
    free(chunks);
    free(chunk_pointers);
    free(writes);
    free(write_pointers);
}

static void
fence_on_done(struct store_change *change, int err)
{
    struct fence_request *fence = list_entry(change, struct fence_request, change);
    struct fence_parts parts = {0};

    if (err == 0)
        fence_parts_collect(&parts, fence);
    if (parts.no_memory)
        err = -DL_E_NO_MEMORY;
    if (err != 0)
        meta_request_reply(&fence->request, err, NULL, NULL);
    else
        fence_reply_parts(fence, &parts);
    free(parts.chunks);
    meta_request_end(&fence->request);
    free(fence);
}

static void
fence_receive(struct chunkserver_core *core, const struct frame *frame, const Dl__Fence *message)
{
    struct fence_request *fence;

    core->stats.fences++;
    if (message->lease_epoch == 0 || message->lease_epoch > WIRE_LEASE_EPOCH_TOMBSTONE) {
        meta_refuse(core, frame, -DL_E_MESSAGE_MALFORMED, "not a lease epoch");
        return;
    }
    if (message->lease_epoch < chunk_table_fence(core->chunks, message->volume)) {
        meta_refuse(core, frame, -DL_E_LEASE_OLD, "a newer owner's fence stands already");
        return;
    }
    fence = calloc(1, sizeof(*fence));
    if (fence == NULL) {
        meta_refuse(core, frame, -DL_E_NO_MEMORY, NULL);
        return;
    }
    meta_request_begin(&fence->request, core, frame);
    fence->first_segment = message->first_segment;
    fence->change.kind = STORE_FENCE;
    fence->change.key.volume = message->volume;
    fence->change.lease_epoch = message->lease_epoch;
    fence->change.on_done = fence_on_done;
    if (DLBLK_MUTANT(chunkserver_fence_early)) {
        fence_on_done(&fence->change, 0);
        return;
    }
    core->store->ops->change_start(core->store, &fence->change);
    core_store_started(core);
}

/* --- CHUNK_DELETE --- */

struct delete_request;

struct delete_one {
    struct delete_request *owner;
    struct slot_change slot;
};

struct delete_request {
    struct meta_request request;
    size_t pending;
    int err;
    struct delete_one ones[];
};

static void
delete_on_done(struct slot_change *slot, int err)
{
    struct delete_request *owner = list_entry(slot, struct delete_one, slot)->owner;
    Dl__ChunkDeleteReply reply = DL__CHUNK_DELETE_REPLY__INIT;

    recovery_check(owner->request.core, &slot->change.key);
    dl_assert(owner->pending > 0);
    if (err != 0 && owner->err == 0)
        owner->err = err;
    if (--owner->pending > 0)
        return;
    meta_request_reply(&owner->request, owner->err, NULL, &reply.base);
    meta_request_end(&owner->request);
    free(owner);
}

static void
delete_one_start(struct delete_request *owner, struct delete_one *one, const Dl__ChunkRef *ref)
{
    one->owner = owner;
    one->slot.change.kind = STORE_DELETE;
    one->slot.change.key = (struct chunk_key){
        .volume = ref->volume,
        .segment = ref->segment,
        .slot = ref->slot,
    };
    one->slot.change.incarnation = ref->incarnation;
    one->slot.on_done = delete_on_done;
    slot_change_start(owner->request.core, &one->slot);
}

static void
delete_receive(struct chunkserver_core *core, const struct frame *frame,
               const Dl__ChunkDelete *message)
{
    struct delete_request *owner;

    core->stats.deletes++;
    if (message->n_chunks == 0 || message->n_chunks > DELETE_REFS_MAX) {
        meta_refuse(core, frame, -DL_E_MESSAGE_MALFORMED, "1 to 4096 chunks can be named");
        return;
    }
    owner = calloc(1, sizeof(*owner) + message->n_chunks * sizeof(owner->ones[0]));
    if (owner == NULL) {
        meta_refuse(core, frame, -DL_E_NO_MEMORY, NULL);
        return;
    }
    meta_request_begin(&owner->request, core, frame);
    owner->pending = message->n_chunks;
    for (size_t i = 0; i < message->n_chunks; i++)
        delete_one_start(owner, &owner->ones[i], message->chunks[i]);
}

/* --- dispatch --- */

static const ProtobufCMessageDescriptor *
message_type_of(uint16_t opcode)
{
    switch (opcode) {
    case OP_FENCE:
        return &dl__fence__descriptor;
    case OP_CHUNK_DELETE:
        return &dl__chunk_delete__descriptor;
    case OP_SLOT_TELL:
        return &dl__slot_tell__descriptor;
    default:
        return NULL;
    }
}

static void
meta_request_dispatch(struct chunkserver_core *core, const struct frame *frame,
                      const ProtobufCMessage *message)
{
    const void *body = message;

    switch (frame->opcode) {
    case OP_FENCE:
        fence_receive(core, frame, body);
        break;
    case OP_CHUNK_DELETE:
        delete_receive(core, frame, body);
        break;
    case OP_SLOT_TELL:
        tell_receive(core, frame, body);
        break;
    default:
        dl_unreachable();
    }
}

void
meta_request_receive(struct chunkserver_core *core, const struct frame *frame)
{
    const ProtobufCMessageDescriptor *type = message_type_of(frame->opcode);
    ProtobufCMessage *message;

    if (frame->opcode == OP_PING) {
        meta_link_send(core, core->meta.connection,
                       frame_out_create_message(OP_PING, FRAME_REPLY, frame->request_id, 0, NULL));
        return;
    }
    if (type == NULL) {
        meta_refuse(core, frame, -DL_E_OPCODE_UNKNOWN, opcode_name(frame->opcode));
        return;
    }
    message = frame_unpack(frame, type);
    if (message == NULL) {
        meta_refuse(core, frame, -DL_E_MESSAGE_MALFORMED, opcode_name(frame->opcode));
        return;
    }
    if (core->stopping)
        meta_refuse(core, frame, -DL_E_SHUTTING_DOWN, NULL);
    else
        meta_request_dispatch(core, frame, message);
    protobuf_c_message_free_unpacked(message, NULL);
}
