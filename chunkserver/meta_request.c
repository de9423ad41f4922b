/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meta_request.c: what the metadata service asks of a chunkserver: FENCE, CHUNK_DELETE,
 * SLOT_TELL, SCRUB_VOLUME, CHUNK_LIST, PING.
 *
 * Each of the first three is answered when the store has it durably.  The metadata service sends
 * again on its next connection what was not answered, so an answer whose connection is gone is
 * dropped, and every request may come twice.
 */
#include <stdlib.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/log.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define DELETE_REFS_MAX 4096u
#define LIST_CHUNKS_MAX 4096u /* at most 37 bytes each */

/* An upper bound of what a chunk takes in a packed message, without its writes. */
#define PENDING_CHUNK_BYTES 64u

static_assert(PENDING_PART_BYTES <= FRAME_BODY_BYTES_MAX / 4, "the metadata service keeps parts");

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

/* Where an answer begins: chunks below it were in the parts before. */
struct fence_cursor {
    uint32_t segment, slot;
    uint64_t version; /* of this chunk: the first write */
};

struct fence_request {
    struct meta_request request;
    struct store_change change;
    struct fence_cursor first;
};

/* The first entry at or above this version. */
static uint32_t
pending_first(const struct chunk *chunk, uint64_t version)
{
    uint32_t low = 0, high = chunk->pending_count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (chunk->pending[middle].version < version)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct pending_slice
pending_slice_of(const struct chunk *chunk, uint64_t first_version, uint32_t lease_epoch)
{
    uint64_t version_end = (uint64_t)lease_epoch << WIRE_VERSION_SEQUENCE_BITS;
    struct pending_slice slice = {0};
    uint32_t end;

    if (chunk->attempt != 0)
        return slice; /* of a recovering chunk nothing counts */
    slice.first = pending_first(chunk, first_version);
    end = pending_first(chunk, version_end);
    slice.count = end > slice.first ? end - slice.first : 0;
    return slice;
}

size_t
pending_chunk_fill(Dl__PendingChunk *reply, const struct chunk *chunk, struct pending_slice slice,
                   Dl__PendingWrite *writes, Dl__PendingWrite **pointers)
{
    size_t count = 0;

    dl_assert(slice.first + slice.count <= chunk->pending_count);
    for (uint32_t i = slice.first; i < slice.first + slice.count; i++) {
        const struct pending_write *pending = &chunk->pending[i];

        if (DLBLK_MUTANT(chunkserver_forget_pending) && i % 4 == 3)
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

/* What a reply is made of: counted first, then filled. */
struct fence_part {
    struct chunk *chunk;
    struct pending_slice slice;
};

struct fence_parts {
    struct fence_part *parts;
    size_t count, capacity;
    size_t write_count;
    bool more;
    struct fence_cursor next;
    bool no_memory;
};

static void
fence_parts_add(struct fence_parts *parts, struct chunk *chunk, struct pending_slice slice)
{
    struct fence_part *grown;

    if (parts->count == parts->capacity) {
        parts->capacity = parts->capacity * 2 + 64;
        grown = reallocarray(parts->parts, parts->capacity, sizeof(parts->parts[0]));
        if (grown == NULL) {
            parts->no_memory = true;
            return;
        }
        parts->parts = grown;
    }
    parts->parts[parts->count++] = (struct fence_part){chunk, slice};
}

static int
fence_part_compare(const void *a, const void *b)
{
    const struct chunk_key *left = &((const struct fence_part *)a)->chunk->key;
    const struct chunk_key *right = &((const struct fence_part *)b)->chunk->key;

    if (left->segment != right->segment)
        return left->segment < right->segment ? -1 : 1;
    return left->slot < right->slot ? -1 : left->slot > right->slot;
}

/* Chunks in order, until the part is full; it may end in the middle of a chunk's writes. */
static void
fence_parts_limit(struct fence_parts *parts)
{
    size_t room = PENDING_PART_BYTES;

    qsort(parts->parts, parts->count, sizeof(parts->parts[0]), fence_part_compare);
    for (size_t i = 0; i < parts->count; i++) {
        const struct chunk *chunk = parts->parts[i].chunk;
        struct pending_slice *slice = &parts->parts[i].slice;
        size_t writes = room < PENDING_CHUNK_BYTES
                            ? 0
                            : (room - PENDING_CHUNK_BYTES) / PENDING_WRITE_BYTES;

        if (writes == 0 || slice->count > writes) {
            uint32_t first = slice->first;

            slice->count = (uint32_t)writes;
            parts->more = true;
            parts->next.segment = chunk->key.segment;
            parts->next.slot = chunk->key.slot;
            parts->next.version = writes == 0 && first == 0
                                      ? 0
                                      : chunk->pending[first + writes].version;
            parts->count = writes == 0 ? i : i + 1;
            parts->write_count += writes;
            return;
        }
        parts->write_count += slice->count;
        room -= PENDING_CHUNK_BYTES + (size_t)slice->count * PENDING_WRITE_BYTES;
    }
}

/* Chunks with something to tell that were not in the parts before. */
static void
fence_parts_collect(struct fence_parts *parts, const struct fence_request *fence)
{
    const struct chunk_volume *volume = chunk_table_volume(fence->request.core->chunks,
                                                           fence->change.key.volume);
    const struct fence_cursor *first = &fence->first;
    struct chunk *chunk;

    if (volume == NULL || fence->change.lease_epoch == WIRE_LEASE_EPOCH_TOMBSTONE)
        return; /* a deleted volume: nobody will look at its pending writes again */
    list_for_each_entry (chunk, &volume->chunks, volume_node) {
        const struct chunk_key *key = &chunk->key;
        bool is_first = key->segment == first->segment && key->slot == first->slot;
        struct pending_slice slice;

        if (chunk->state != CHUNK_PRESENT || key->segment < first->segment ||
            (key->segment == first->segment && key->slot < first->slot))
            continue;
        slice = pending_slice_of(chunk, is_first ? first->version : 0, fence->change.lease_epoch);
        if ((slice.count > 0 || chunk->attempt != 0) && !parts->no_memory)
            fence_parts_add(parts, chunk, slice);
    }
    if (!parts->no_memory && parts->count > 0)
        fence_parts_limit(parts);
}

static void
fence_reply_parts(const struct fence_request *fence, const struct fence_parts *parts)
{
    Dl__FenceReply reply = DL__FENCE_REPLY__INIT;
    Dl__PendingChunk *chunks = calloc(parts->count + 1, sizeof(*chunks));
    Dl__PendingChunk **chunk_pointers = calloc(parts->count + 1,
                                               sizeof(struct _Dl__PendingChunk *));
    Dl__PendingWrite *writes = calloc(parts->write_count + 1, sizeof(*writes));
    Dl__PendingWrite **write_pointers = calloc(parts->write_count + 1,
                                               sizeof(struct _Dl__PendingWrite *));
    size_t write_count = 0;

    if (chunks == NULL || chunk_pointers == NULL || writes == NULL || write_pointers == NULL) {
        meta_request_reply(&fence->request, -DL_E_NO_MEMORY, NULL, NULL);
        goto out;
    }
    for (size_t i = 0; i < parts->count; i++) {
        write_count += pending_chunk_fill(&chunks[i], parts->parts[i].chunk, parts->parts[i].slice,
                                          writes + write_count, write_pointers + write_count);
        chunk_pointers[i] = &chunks[i];
    }
    reply.volume = fence->change.key.volume;
    reply.lease_epoch = fence->change.lease_epoch;
    reply.n_chunks = parts->count;
    reply.chunks = chunk_pointers;
    reply.more = parts->more;
    reply.next_segment = parts->next.segment;
    reply.next_slot = parts->next.slot;
    reply.next_version = parts->next.version;
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
    free(parts.parts);
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
    fence->first = (struct fence_cursor){
        .segment = message->first_segment,
        .slot = message->first_slot,
        .version = message->first_version,
    };
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
    removed_note(owner->request.core, &one->slot.change.key);
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

/* --- CHUNK_LIST --- */

/* Chunks that came one after the other are in different parts, whatever went since. */
static bool
chunk_is_of_part(const struct chunk *chunk, const Dl__ChunkList *message)
{
    return message->parts > 0 &&
           (chunk->local_id * UINT64_C(0x9e3779b97f4a7c15) >> 32) % message->parts == message->part;
}

static void
list_receive(struct chunkserver_core *core, const struct frame *frame, const Dl__ChunkList *message)
{
    Dl__ChunkListReply reply = DL__CHUNK_LIST_REPLY__INIT;
    Dl__ChunkEntry *entries = calloc(LIST_CHUNKS_MAX, sizeof(*entries));
    Dl__ChunkEntry **pointers = calloc(LIST_CHUNKS_MAX, sizeof(struct _Dl__ChunkEntry *));
    int err = entries == NULL || pointers == NULL ? -DL_E_NO_MEMORY : 0;
    struct chunk *chunk, *next;

    reply.total = core->chunks->chunk_count;
    reply.chunks = pointers;
    HASH_ITER (by_key, core->chunks->by_key, chunk, next) {
        if (err != 0 || !chunk_is_of_part(chunk, message))
            continue;
        if (reply.n_chunks == LIST_CHUNKS_MAX) {
            err = -DL_E_LIMIT;
            break;
        }
        pointers[reply.n_chunks] = &entries[reply.n_chunks];
        dl__chunk_entry__init(&entries[reply.n_chunks]);
        entries[reply.n_chunks].volume = chunk->key.volume;
        entries[reply.n_chunks].segment = chunk->key.segment;
        entries[reply.n_chunks].slot = chunk->key.slot;
        entries[reply.n_chunks].incarnation = chunk->incarnation;
        entries[reply.n_chunks].config_epoch = chunk->config_epoch;
        reply.n_chunks++;
    }
    if (err != 0)
        meta_refuse(core, frame, err, NULL);
    else
        meta_link_send(core, core->meta.connection,
                       frame_out_create_message(OP_CHUNK_LIST, FRAME_REPLY, frame->request_id, 0,
                                                &reply.base));
    free(entries);
    free(pointers);
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
    case OP_SCRUB_VOLUME:
        return &dl__scrub_volume__descriptor;
    case OP_CHUNK_LIST:
        return &dl__chunk_list__descriptor;
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
    case OP_SCRUB_VOLUME:
        scrub_volume_receive(core->scrub, frame, body);
        break;
    case OP_CHUNK_LIST:
        list_receive(core, frame, body);
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
