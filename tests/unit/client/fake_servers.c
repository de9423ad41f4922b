/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/client/fake_servers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"

static void
fake_require(bool condition)
{
    if (!condition)
        abort();
}

static void *
fake_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes);

    fake_require(memory != NULL);
    return memory;
}

/* One link of a client, to any of the servers. */
struct fake_session {
    struct list node;
    struct link *link;
    bool greeted;
    bool closing;
    void *payload; /* being received */
};

/* A reply that owns what it is made of. */
struct fake_reply {
    struct frame_out frame; /* first */
    struct list held_node;
    struct fake_session *session; /* while it is held */
    uint8_t *tail;
    uint8_t *payload;
};

static void
fake_reply_on_sent(struct frame_out *frame, int err)
{
    struct fake_reply *reply = (struct fake_reply *)frame;

    (void)err;
    free(reply->tail);
    free(reply->payload);
    free(reply);
}

static struct fake_session *
fake_session_create(struct list *links, struct link *link)
{
    struct fake_session *session = fake_alloc(sizeof(*session));

    session->link = link;
    link->user = session;
    list_push_back(links, &session->node);
    return session;
}

static void
fake_session_destroy(struct fake_session *session)
{
    list_remove(&session->node);
    free(session->payload);
    free(session);
}

static void
fake_drop_held_of(struct list *held, const struct fake_session *session)
{
    struct fake_reply *reply;
    struct fake_reply *following;

    list_for_each_entry_safe (reply, following, held, held_node) {
        if (reply->session != session)
            continue;
        list_remove(&reply->held_node);
        fake_reply_on_sent(&reply->frame, 0);
    }
}

static void
fake_session_close(struct fake_session *session)
{
    if (session->closing)
        return;
    session->closing = true;
    link_close(session->link);
}

static void
fake_send(struct fake_session *session, struct frame_out *frame)
{
    fake_require(frame != NULL);
    link_send(session->link, frame);
}

static void
fake_send_error(struct fake_session *session, const struct frame *request, int err,
                const char *text)
{
    fake_send(session,
              frame_out_create_error(request->opcode, request->request_id, err, text, NULL));
}

static void
fake_send_message(struct fake_session *session, const struct frame *request,
                  const ProtobufCMessage *message)
{
    fake_send(session, frame_out_create_message(request->opcode, FRAME_REPLY, request->request_id,
                                                0, message));
}

/* HELLO of a client: answered with who is here. */
static void
fake_on_hello(struct fake_cluster *cluster, struct fake_session *session, const struct frame *frame,
              Dl__Role role, const struct fake_server *server)
{
    Dl__Hello *hello = (Dl__Hello *)frame_unpack(frame, &dl__hello__descriptor);
    Dl__Hello reply = DL__HELLO__INIT;
    uint8_t uuid[FAKE_ID_BYTES];
    bool right = true;

    fake_require(hello != NULL && frame->opcode == OP_HELLO);
    fake_require(hello->role == DL__ROLE__ROLE_CLIENT && hello->instance.len == FAKE_ID_BYTES);
    if (server != NULL && !server->faults.any_disk)
        right = hello->cluster_id.len == FAKE_ID_BYTES &&
                memcmp(hello->cluster_id.data, cluster->cluster_id, FAKE_ID_BYTES) == 0 &&
                hello->server_uuid.len == FAKE_ID_BYTES &&
                memcmp(hello->server_uuid.data, server->uuid, FAKE_ID_BYTES) == 0;
    dl__hello__free_unpacked(hello, NULL);
    right = right && (server == NULL || !server->faults.refuses);
    if (!right) {
        fake_send_error(session, frame, -DL_E_SERVER_UNKNOWN, "another disk is meant");
        return;
    }
    reply.version_min = WIRE_VERSION;
    reply.version_max = WIRE_VERSION;
    reply.role = role;
    reply.cluster_id = (ProtobufCBinaryData){.data = cluster->cluster_id, .len = FAKE_ID_BYTES};
    if (server != NULL) {
        memcpy(uuid, server->uuid, FAKE_ID_BYTES);
        reply.server_uuid = (ProtobufCBinaryData){.data = uuid, .len = FAKE_ID_BYTES};
    }
    session->greeted = true;
    fake_send_message(session, frame, &reply.base);
}

/* --- chunks --- */

struct fake_chunk *
fake_server_chunk(struct fake_server *server, uint64_t volume, uint32_t segment)
{
    struct fake_chunk *chunk;

    list_for_each_entry (chunk, &server->chunks, node)
        if (chunk->volume == volume && chunk->segment == segment)
            return chunk;
    return NULL;
}

static struct fake_chunk *
fake_chunk_get(struct fake_server *server, const struct data_target *target)
{
    struct fake_chunk *chunk = fake_server_chunk(server, target->volume, target->segment);

    if (chunk != NULL)
        return chunk;
    chunk = fake_alloc(sizeof(*chunk));
    chunk->volume = target->volume;
    chunk->segment = target->segment;
    chunk->slot = target->slot;
    chunk->sector_count = server->cluster->volumes[target->volume - 1].segment_bytes /
                          WIRE_SECTOR_BYTES;
    chunk->sectors = fake_alloc(chunk->sector_count * sizeof(chunk->sectors[0]));
    list_push_back(&server->chunks, &chunk->node);
    return chunk;
}

static void
fake_chunk_destroy(struct fake_chunk *chunk)
{
    list_remove(&chunk->node);
    for (uint32_t i = 0; i < chunk->sector_count; i++)
        free(chunk->sectors[i].data);
    free(chunk->sectors);
    vec_fini(&chunk->pending);
    free(chunk);
}

static void
fake_chunk_set_stable(struct fake_chunk *chunk, uint64_t stable)
{
    size_t kept = 0;

    if (stable <= chunk->stable)
        return;
    chunk->stable = stable;
    for (size_t i = 0; i < chunk->pending.count; i++)
        if (chunk->pending.items[i].version > stable)
            chunk->pending.items[kept++] = chunk->pending.items[i];
    chunk->pending.count = kept;
}

static bool
fake_chunk_has_version(const struct fake_chunk *chunk, uint64_t version)
{
    if (version <= chunk->stable)
        return true;
    for (size_t i = 0; i < chunk->pending.count; i++)
        if (chunk->pending.items[i].version == version)
            return true;
    return false;
}

static void
fake_chunk_write(struct fake_chunk *chunk, const struct data_write *write, const uint8_t *payload)
{
    const struct data_target *target = &write->target;
    struct fake_pending pending = {write->version, target->offset_sectors, target->length_sectors};

    fake_require(target->offset_sectors + target->length_sectors <= chunk->sector_count);
    /* The same version is always the same bytes: whoever has it has it. */
    if (fake_chunk_has_version(chunk, write->version)) {
        fake_require((target->flags & WRITE_RETRY) != 0);
        return;
    }
    for (uint32_t i = 0; i < target->length_sectors; i++) {
        struct fake_sector *sector = &chunk->sectors[target->offset_sectors + i];

        if (sector->version > write->version)
            continue;
        sector->version = write->version;
        sector->kind = (target->flags & WRITE_ZERO) != 0 ? WIRE_SECTOR_ZERO : WIRE_SECTOR_DATA;
        sector->crc = 0;
        if (sector->kind == WIRE_SECTOR_ZERO)
            continue;
        if (sector->data == NULL)
            sector->data = fake_alloc(WIRE_SECTOR_BYTES);
        memcpy(sector->data, payload + (size_t)i * WIRE_SECTOR_BYTES, WIRE_SECTOR_BYTES);
        sector->crc = le32_load(write->crcs_le + i * sizeof(le32));
    }
    fake_require(vec_push(&chunk->pending, pending) == 0);
    fake_require(chunk->pending.count <= 1024);
}

void
fake_server_put(struct fake_server *server, const struct fake_volume *volume, uint32_t segment,
                uint64_t version, uint32_t first_sector, uint32_t sector_count, const uint8_t *data)
{
    le32 crcs[WIRE_IO_SECTORS_MAX];
    struct data_write write = {
        .target = {.volume = volume->id,
                   .segment = segment,
                   .flags = data == NULL ? WRITE_ZERO : 0,
                   .offset_sectors = first_sector,
                   .length_sectors = sector_count},
        .version = version,
        .crcs_le = crcs[0].bytes,
    };

    for (uint32_t slot = 0; slot < volume->replicas; slot++)
        if (fake_volume_server_id(server->cluster, volume, segment, slot) == server->id)
            write.target.slot = slot;
    for (uint32_t i = 0; i < sector_count && data != NULL; i++)
        crcs[i] = le32_of(crc32c(0, data + (size_t)i * WIRE_SECTOR_BYTES, WIRE_SECTOR_BYTES));
    fake_chunk_write(fake_chunk_get(server, &write.target), &write, data);
}

/* --- a chunkserver's requests --- */

static bool
fake_take_fault(uint32_t *count)
{
    if (*count == 0)
        return false;
    if (*count != UINT32_MAX)
        (*count)--;
    return true;
}

static struct fake_reply *
fake_reply_create(const struct frame *request, int status)
{
    struct fake_reply *reply = fake_alloc(sizeof(*reply));

    reply->frame.on_sent = fake_reply_on_sent;
    frame_out_empty(&reply->frame, request->opcode, FRAME_REPLY, request->request_id, status);
    return reply;
}

static void
fake_reply_send(struct fake_session *session, struct list *held, bool hold,
                struct fake_reply *reply)
{
    reply->session = session;
    if (hold)
        list_push_back(held, &reply->held_node);
    else
        link_send(session->link, &reply->frame);
}

/* 0, or why the request is refused. */
static bool
fake_map_has(const struct fake_volume *volume, uint32_t segment, uint32_t number,
             uint32_t server_id)
{
    for (uint32_t i = 0; i < FAKE_PLACES; i++)
        if (volume->slots[segment][i].server_id == server_id &&
            volume->slots[segment][i].number == number)
            return true;
    return false;
}

static int
fake_server_check_target(struct fake_server *server, const struct data_target *target)
{
    struct fake_cluster *cluster = server->cluster;
    const struct fake_volume *volume;
    struct fake_chunk *chunk = fake_server_chunk(server, target->volume, target->segment);

    fake_require(target->volume >= 1 && target->volume <= cluster->volume_count);
    volume = &cluster->volumes[target->volume - 1];
    /* Only to where the map says. */
    fake_require(volume->allocated[target->segment]);
    fake_require(target->config_epoch < volume->config_epoch[target->segment] ||
                 fake_map_has(volume, target->segment, target->slot, server->id));
    if (target->lease_epoch < server->fence[target->volume]) {
        server->lease_refused++;
        return -DL_E_LEASE_OLD;
    }
    if (chunk == NULL && target->config_epoch != 1)
        return -DL_E_CHUNK_UNKNOWN;
    if (chunk != NULL && target->config_epoch < chunk->config_epoch)
        return -DL_E_EPOCH_OLD;
    return 0;
}

/* A write without an attempt under a higher config epoch: the slot has been promoted. */
static int
fake_server_check_attempt(struct fake_server *server, const struct data_write *write)
{
    struct fake_chunk *chunk = fake_server_chunk(server, write->target.volume,
                                                 write->target.segment);
    uint32_t attempt = chunk != NULL ? chunk->attempt : 0;

    if (write->attempt == 0 && attempt != 0 && write->target.config_epoch > attempt)
        chunk->attempt = attempt = 0;
    if (write->attempt == attempt)
        return 0;
    server->not_yet++;
    return -DL_E_NOT_YET;
}

static int
fake_server_check_payload(struct fake_server *server, const struct data_write *write,
                          uint8_t *payload)
{
    if (write->crc_count > 0 && fake_take_fault(&server->faults.write_flip_count))
        payload[write->crc_count * WIRE_SECTOR_BYTES / 2] ^= 4;
    for (uint32_t i = 0; i < write->crc_count; i++) {
        uint32_t crc = crc32c(0, payload + (size_t)i * WIRE_SECTOR_BYTES, WIRE_SECTOR_BYTES);

        if (crc != le32_load(write->crcs_le + i * sizeof(le32))) {
            server->crc_refused++;
            return -DL_E_CRC_WIRE;
        }
    }
    return 0;
}

static void
fake_server_count_write(struct fake_server *server, const struct data_write *write)
{
    server->writes++;
    server->write_order = ++server->cluster->order;
    server->zeroes += (write->target.flags & WRITE_ZERO) != 0;
    server->retries += (write->target.flags & WRITE_RETRY) != 0;
    server->resolves += (write->target.flags & WRITE_RESOLVE) != 0;
    server->last_version = write->version;
    server->last_crc = write->crc_count > 0 ? le32_load(write->crcs_le) : 0;
    server->last_slot_mask = write->slot_mask;
    fake_require((write->slot_mask & 1u << write->target.slot) != 0);
}

static void
fake_server_on_write(struct fake_server *server, struct fake_session *session,
                     const struct frame *frame)
{
    struct fake_faults *faults = &server->faults;
    struct data_write write;
    struct fake_chunk *chunk;
    int err = data_write_decode(frame, &write);

    fake_require(err == 0);
    fake_server_count_write(server, &write);
    if (faults->lost_writes)
        return;
    err = fake_server_check_target(server, &write.target);
    if (err == 0)
        err = fake_server_check_attempt(server, &write);
    if (err == 0)
        err = fake_server_check_payload(server, &write, frame->payload);
    if (err == 0 && fake_take_fault(&faults->write_err_count))
        err = faults->write_err;
    if (err == 0) {
        chunk = fake_chunk_get(server, &write.target);
        if (write.target.config_epoch > chunk->config_epoch)
            chunk->config_epoch = write.target.config_epoch;
        fake_chunk_set_stable(chunk, write.stable_version);
        fake_chunk_write(chunk, &write, frame->payload);
        if (fake_take_fault(&faults->write_err_after_count))
            err = faults->write_err_after;
    }
    if (faults->close_after_writes > 0 && --faults->close_after_writes == 0) {
        fake_session_close(session);
        return;
    }
    fake_reply_send(session, &server->held, faults->hold_writes, fake_reply_create(frame, err));
}

static void
fake_server_fill_read(const struct data_target *target, const struct fake_chunk *chunk,
                      struct fake_reply *reply, const struct frame *frame)
{
    uint32_t length = target->length_sectors;
    uint32_t data_sectors = 0;

    reply->tail = fake_alloc(length * sizeof(le32) + (length + 3) / 4 * 4);
    reply->payload = fake_alloc((size_t)length * WIRE_SECTOR_BYTES);
    for (uint32_t i = 0; i < length && chunk != NULL; i++) {
        const struct fake_sector *sector = &chunk->sectors[target->offset_sectors + i];

        le32_store(reply->tail + i * sizeof(le32), sector->crc);
        reply->tail[length * sizeof(le32) + i] = sector->kind;
        if (sector->kind != WIRE_SECTOR_DATA) {
            /* Nobody has said what stands there: whoever shows it is seen. */
            memset(reply->payload + (size_t)i * WIRE_SECTOR_BYTES, 0xbd, WIRE_SECTOR_BYTES);
            continue;
        }
        data_sectors++;
        memcpy(reply->payload + (size_t)i * WIRE_SECTOR_BYTES, sector->data, WIRE_SECTOR_BYTES);
    }
    frame_out_read_reply(&reply->frame, frame->request_id, length, data_sectors, reply->tail,
                         reply->payload, data_sectors == 0 ? 0 : length * WIRE_SECTOR_BYTES);
}

static void
fake_server_on_read(struct fake_server *server, struct fake_session *session,
                    const struct frame *frame)
{
    struct fake_faults *faults = &server->faults;
    struct data_read read;
    struct fake_reply *reply = fake_reply_create(frame, 0);
    int err = data_read_decode(frame, &read);

    fake_require(err == 0);
    server->reads++;
    if (faults->lost_reads) {
        free(reply);
        return;
    }
    err = fake_server_check_target(server, &read.target);
    if (err == 0 && fake_server_chunk(server, read.target.volume, read.target.segment) != NULL &&
        fake_server_chunk(server, read.target.volume, read.target.segment)->attempt != 0)
        err = -DL_E_NOT_IN_SYNC;
    if (err == 0 && fake_take_fault(&faults->read_err_count))
        err = faults->read_err;
    if (err != 0) {
        frame_out_empty(&reply->frame, frame->opcode, FRAME_REPLY, frame->request_id, err);
    } else {
        fake_server_fill_read(&read.target,
                              fake_server_chunk(server, read.target.volume, read.target.segment),
                              reply, frame);
        if (reply->frame.payload_bytes > 0 && fake_take_fault(&faults->read_flip_count))
            reply->payload[reply->frame.payload_bytes / 2] ^= 1;
    }
    fake_reply_send(session, &server->held, faults->hold_reads, reply);
}

/* It may only be said when this slot has confirmed it. */
static void
fake_server_forget(struct fake_server *server, const struct fake_chunk *chunk,
                   const struct data_stable *stable)
{
    server->forgets++;
    fake_require(chunk->attempt == 0);
    fake_require(stable->stable_version <= chunk->stable);
}

static void
fake_server_on_stable(struct fake_server *server, struct fake_session *session,
                      const struct frame *frame)
{
    struct data_stable stable;
    struct fake_chunk *chunk;
    int err = data_stable_decode(frame, &stable);

    fake_require(err == 0);
    server->stables++;
    err = fake_server_check_target(server, &stable.target);
    if (err == 0 && fake_take_fault(&server->faults.stable_err_count))
        err = server->faults.stable_err;
    if (err == 0) {
        chunk = fake_server_chunk(server, stable.target.volume, stable.target.segment);
        if (chunk == NULL)
            err = -DL_E_CHUNK_UNKNOWN;
        else if ((stable.target.flags & STABLE_FORGET) != 0)
            fake_server_forget(server, chunk, &stable);
        else if (chunk->attempt == stable.attempt)
            fake_chunk_set_stable(chunk, stable.stable_version);
    }
    fake_reply_send(session, &server->held, server->faults.hold_stables,
                    fake_reply_create(frame, err));
}

static void
fake_server_on_repair(struct fake_server *server, struct fake_session *session,
                      const struct frame *frame)
{
    Dl__Repair *repair = (Dl__Repair *)frame_unpack(frame, &dl__repair__descriptor);

    fake_require(repair != NULL);
    server->repairs++;
    server->repair_first = repair->first_sector;
    server->repair_count = repair->sector_count;
    dl__repair__free_unpacked(repair, NULL);
    fake_send_message(session, frame, NULL);
}

static void fake_server_on_pending(struct fake_server *server, struct fake_session *session,
                                   const struct frame *frame);

static void
fake_server_on_accept(void *core, struct link *link)
{
    struct fake_server *server = core;

    (void)fake_session_create(&server->links, link);
}

static void *
fake_server_on_payload(void *core, struct link *link, const struct frame *frame)
{
    struct fake_session *session = link->user;

    (void)core;
    free(session->payload);
    session->payload = aligned_alloc(WIRE_SECTOR_BYTES, frame->payload_bytes);
    fake_require(session->payload != NULL);
    return session->payload;
}

static void
fake_server_on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct fake_server *server = core;
    struct fake_session *session = link->user;

    if (session->closing || server->faults.deaf)
        return;
    if (!session->greeted) {
        fake_on_hello(server->cluster, session, frame, DL__ROLE__ROLE_CHUNKSERVER, server);
        return;
    }
    switch (frame->opcode) {
    case OP_WRITE:
        fake_server_on_write(server, session, frame);
        return;
    case OP_READ:
        fake_server_on_read(server, session, frame);
        return;
    case OP_STABLE:
        fake_server_on_stable(server, session, frame);
        return;
    case OP_PENDING:
        fake_server_on_pending(server, session, frame);
        return;
    case OP_REPAIR:
        fake_server_on_repair(server, session, frame);
        return;
    case OP_PING:
        fake_send_message(session, frame, NULL);
        return;
    default:
        fake_require(false);
    }
}

static void
fake_server_on_down(void *core, struct link *link, int err)
{
    struct fake_server *server = core;

    (void)err;
    fake_drop_held_of(&server->held, link->user);
    fake_session_destroy(link->user);
}

const struct link_events fake_server_events = {
    .on_accept = fake_server_on_accept,
    .on_payload = fake_server_on_payload,
    .on_frame = fake_server_on_frame,
    .on_down = fake_server_on_down,
};

void
fake_server_release(struct fake_server *server)
{
    struct list *node;

    server->faults.hold_writes = false;
    server->faults.hold_reads = false;
    server->faults.hold_stables = false;
    while ((node = list_pop_front(&server->held)) != NULL) {
        struct fake_reply *reply = list_entry(node, struct fake_reply, held_node);

        link_send(reply->session->link, &reply->frame);
    }
}

void
fake_server_pause(struct fake_server *server, bool paused)
{
    struct fake_session *session;

    list_for_each_entry (session, &server->links, node)
        link_pause(session->link, paused);
}

void
fake_server_drop_links(struct fake_server *server)
{
    struct fake_session *session;

    list_for_each_entry (session, &server->links, node)
        fake_session_close(session);
}

void
fake_server_forget_links(struct fake_server *server)
{
    while (!list_is_empty(&server->links)) {
        struct fake_session *session = list_first_entry(&server->links, struct fake_session, node);

        fake_drop_held_of(&server->held, session);
        fake_session_destroy(session);
    }
}

/* --- the metadata service: maps --- */

uint32_t
fake_volume_server_id(const struct fake_cluster *cluster, const struct fake_volume *volume,
                      uint32_t segment, uint32_t slot)
{
    fake_require(slot < FAKE_PLACES && volume->replicas <= cluster->server_count);
    if (volume->allocated[segment])
        return volume->slots[segment][slot].server_id;
    return (segment + slot) % cluster->server_count + 1;
}

struct fake_map {
    Dl__Segment segments[FAKE_SEGMENTS];
    Dl__Segment *segment_pointers[FAKE_SEGMENTS];
    Dl__Slot slots[FAKE_SEGMENTS][FAKE_PLACES];
    Dl__Slot *slot_pointers[FAKE_SEGMENTS][FAKE_PLACES];
    Dl__ServerAddress servers[FAKE_SERVERS_MAX];
    Dl__ServerAddress *server_pointers[FAKE_SERVERS_MAX];
    uint8_t uuids[FAKE_SERVERS_MAX][FAKE_ID_BYTES];
    size_t segment_count;
};

static void
fake_map_add_servers(struct fake_map *map, struct fake_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        Dl__ServerAddress *address = &map->servers[i];

        dl__server_address__init(address);
        address->server_id = cluster->servers[i].id;
        memcpy(map->uuids[i], cluster->servers[i].uuid, FAKE_ID_BYTES);
        address->uuid = (ProtobufCBinaryData){.data = map->uuids[i], .len = FAKE_ID_BYTES};
        address->address = cluster->servers[i].address;
        address->host = cluster->servers[i].host;
        address->state = DL__SERVER_STATE__SERVER_UP;
        map->server_pointers[i] = address;
    }
}

static void
fake_map_add_segment(struct fake_map *map, const struct fake_cluster *cluster,
                     const struct fake_volume *volume, uint32_t index)
{
    size_t at = map->segment_count++;
    Dl__Segment *segment = &map->segments[at];

    dl__segment__init(segment);
    segment->index = index;
    segment->config_epoch = volume->config_epoch[index];
    (void)cluster;
    segment->n_slots = volume->replicas + 1;
    segment->slots = map->slot_pointers[at];
    for (uint32_t i = 0; i < volume->replicas + 1; i++) {
        Dl__Slot *slot = &map->slots[at][i];

        dl__slot__init(slot);
        slot->server_id = volume->slots[index][i].server_id;
        slot->state = (Dl__SlotState)volume->slots[index][i].state;
        slot->attempt = volume->slots[index][i].attempt;
        slot->number = volume->slots[index][i].number;
        map->slot_pointers[at][i] = slot;
    }
    map->segment_pointers[at] = segment;
}

/* --- the metadata service: requests --- */

static struct fake_volume *
fake_volume_by_name(struct fake_cluster *cluster, const char *name)
{
    for (uint32_t i = 0; i < cluster->volume_count; i++)
        if (strcmp(cluster->volumes[i].name, name) == 0)
            return &cluster->volumes[i];
    return NULL;
}

static void
fake_fill_volume(Dl__Volume *message, Dl__VolumePolicy *policy, const struct fake_volume *volume)
{
    dl__volume_policy__init(policy);
    policy->redundancy = DL__REDUNDANCY__REDUNDANCY_REPLICATED;
    policy->replicas = volume->replicas;
    policy->min_write = volume->min_write;
    policy->failure_domain = DL__FAILURE_DOMAIN__DOMAIN_SERVER;
    dl__volume__init(message);
    message->id = volume->id;
    message->name = (char *)(uintptr_t)volume->name;
    message->size_bytes = volume->size_bytes;
    message->segment_bytes = volume->segment_bytes;
    message->logical_block_bytes = volume->logical_block_bytes;
    message->stripe_width = volume->stripe_width;
    message->stripe_unit_bytes = volume->stripe_unit_bytes;
    message->policy = policy;
    message->lease_epoch = volume->lease_epoch;
    message->snapshot_seq = 1;
    message->clean = volume->clean;
}

static void
fake_fence_servers(struct fake_cluster *cluster, const struct fake_volume *volume)
{
    for (uint32_t i = 0; i < cluster->server_count; i++)
        cluster->servers[i].fence[volume->id] = volume->lease_epoch;
}

void
fake_meta_take_over(struct fake_cluster *cluster, struct fake_volume *volume, bool fence)
{
    volume->takeover = !volume->clean;
    volume->lease_epoch++;
    volume->owned = true;
    volume->clean = false;
    memset(volume->attach_id, 0xee, FAKE_ID_BYTES);
    if (fence)
        fake_fence_servers(cluster, volume);
}

static void
fake_meta_reply_attach(struct fake_cluster *cluster, struct fake_session *session,
                       const struct frame *frame, const struct fake_volume *volume)
{
    struct fake_map *map = fake_alloc(sizeof(*map));
    Dl__AttachReply reply = DL__ATTACH_REPLY__INIT;
    Dl__Volume message;
    Dl__VolumePolicy policy;

    fake_fill_volume(&message, &policy, volume);
    fake_map_add_servers(map, cluster);
    for (uint32_t i = 0; i < FAKE_SEGMENTS; i++) {
        /* Two only: the rest comes by MAP_GET. */
        if (volume->allocated[i] && map->segment_count < 2)
            fake_map_add_segment(map, cluster, volume, i);
        reply.segments_total += volume->allocated[i];
    }
    reply.volume = &message;
    reply.lease_epoch = volume->lease_epoch;
    reply.n_segments = map->segment_count;
    reply.segments = map->segment_pointers;
    reply.n_servers = cluster->server_count;
    reply.servers = map->server_pointers;
    reply.takeover = volume->takeover;
    fake_send_message(session, frame, &reply.base);
    free(map);
}

static void
fake_meta_on_attach(struct fake_cluster *cluster, struct fake_session *session,
                    const struct frame *frame)
{
    Dl__Attach *attach = (Dl__Attach *)frame_unpack(frame, &dl__attach__descriptor);
    struct fake_volume *volume;

    fake_require(attach != NULL && attach->attach_id.len == FAKE_ID_BYTES);
    cluster->attaches++;
    volume = fake_volume_by_name(cluster, attach->name);
    if (attach->volume != 0 && !cluster->names_only)
        volume = &cluster->volumes[attach->volume - 1];
    if (cluster->attach_held) {
        dl__attach__free_unpacked(attach, NULL);
        return;
    }
    if (volume == NULL) {
        fake_send_error(session, frame, -DL_E_VOLUME_UNKNOWN, "volume does not exist");
    } else if (fake_take_fault(&cluster->attach_err_count)) {
        fake_send_error(session, frame, cluster->attach_err, "not now");
    } else if (attach->read_only && volume->owned) {
        fake_send_error(session, frame, -DL_E_VOLUME_BUSY, "volume is attached by somebody");
    } else {
        if (!attach->read_only &&
            memcmp(volume->attach_id, attach->attach_id.data, FAKE_ID_BYTES) != 0) {
            fake_meta_take_over(cluster, volume, volume->lease_epoch > 0);
            memcpy(volume->attach_id, attach->attach_id.data, FAKE_ID_BYTES);
        }
        fake_meta_reply_attach(cluster, session, frame, volume);
    }
    dl__attach__free_unpacked(attach, NULL);
}

/* NULL: an error was sent. */
static struct fake_volume *
fake_meta_check_lease(struct fake_cluster *cluster, struct fake_session *session,
                      const struct frame *frame, uint64_t id, uint32_t lease_epoch)
{
    struct fake_volume *volume;

    fake_require(id >= 1 && id <= cluster->volume_count);
    volume = &cluster->volumes[id - 1];
    if (volume->owned && volume->lease_epoch == lease_epoch)
        return volume;
    fake_send_error(session, frame, -DL_E_LEASE_OLD, "the lease is over");
    return NULL;
}

static void
fake_meta_on_detach(struct fake_cluster *cluster, struct fake_session *session,
                    const struct frame *frame)
{
    Dl__Detach *detach = (Dl__Detach *)frame_unpack(frame, &dl__detach__descriptor);
    struct fake_volume *volume;

    fake_require(detach != NULL);
    cluster->detaches++;
    cluster->detaches_clean += detach->clean;
    volume = &cluster->volumes[detach->volume - 1];
    if (!volume->owned) {
        fake_send_message(session, frame, NULL); /* a reader's */
    } else {
        volume = fake_meta_check_lease(cluster, session, frame, detach->volume,
                                       detach->lease_epoch);
        if (volume != NULL) {
            volume->owned = false;
            volume->clean = detach->clean;
            fake_send_message(session, frame, NULL);
        }
    }
    dl__detach__free_unpacked(detach, NULL);
}

static void
fake_meta_reply_map(struct fake_cluster *cluster, struct fake_session *session,
                    const struct frame *frame, struct fake_map *map, bool more)
{
    Dl__MapReply reply = DL__MAP_REPLY__INIT;

    fake_map_add_servers(map, cluster);
    reply.n_segments = map->segment_count;
    reply.segments = map->segment_pointers;
    reply.n_servers = cluster->server_count;
    reply.servers = map->server_pointers;
    reply.more = more;
    fake_send_message(session, frame, &reply.base);
    free(map);
}

static void
fake_meta_on_map_get(struct fake_cluster *cluster, struct fake_session *session,
                     const struct frame *frame)
{
    Dl__MapGet *get = (Dl__MapGet *)frame_unpack(frame, &dl__map_get__descriptor);
    struct fake_map *map;
    struct fake_volume *volume;
    bool more = false;

    fake_require(get != NULL);
    cluster->map_gets++;
    volume = &cluster->volumes[get->volume - 1];
    if (get->lease_epoch != 0)
        volume = fake_meta_check_lease(cluster, session, frame, get->volume, get->lease_epoch);
    if (volume != NULL && fake_take_fault(&cluster->map_err_count)) {
        fake_send_error(session, frame, cluster->map_err, "no map now");
        volume = NULL;
    }
    if (volume != NULL) {
        map = fake_alloc(sizeof(*map));
        /* Pages of three: the client has to ask more than once. */
        for (uint32_t i = get->first; i < FAKE_SEGMENTS; i++) {
            if (!volume->allocated[i])
                continue;
            more = map->segment_count == (get->max < 3 ? get->max : 3);
            if (more)
                break;
            fake_map_add_segment(map, cluster, volume, i);
        }
        fake_meta_reply_map(cluster, session, frame, map, more);
    }
    dl__map_get__free_unpacked(get, NULL);
}

/* A request that is answered later: its frame is kept, without its session's link if that goes. */
struct fake_held {
    struct list node;
    struct fake_session *session;
    struct frame frame;
    uint8_t *body;
};

static void
fake_meta_hold(struct fake_cluster *cluster, struct fake_session *session,
               const struct frame *frame)
{
    struct fake_held *held = fake_alloc(sizeof(*held));

    held->session = session;
    held->frame = *frame;
    held->body = fake_alloc(frame->body_bytes + 1);
    memcpy(held->body, frame->body, frame->body_bytes);
    held->frame.body = held->body;
    list_push_back(&cluster->meta_held, &held->node);
}

static void
fake_meta_allocate(struct fake_cluster *cluster, struct fake_session *session,
                   const struct frame *frame, const Dl__Allocate *allocate)
{
    struct fake_volume *volume = fake_meta_check_lease(cluster, session, frame, allocate->volume,
                                                       allocate->lease_epoch);
    struct fake_map *map;

    if (volume == NULL)
        return;
    if (fake_take_fault(&cluster->allocate_err_count)) {
        fake_send_error(session, frame, cluster->allocate_err, "there is no room");
        return;
    }
    if (cluster->allocate_max != 0 && allocate->n_segments > cluster->allocate_max) {
        fake_send_error(session, frame, -DL_E_NO_SPACE, "there is no room for so many");
        return;
    }
    map = fake_alloc(sizeof(*map));
    for (size_t i = 0; i < allocate->n_segments; i++) {
        uint32_t index = allocate->segments[i];

        fake_require(index < FAKE_SEGMENTS);
        if (!volume->allocated[index]) {
            for (uint32_t k = 0; k < volume->replicas; k++)
                volume->slots[index][k] = (struct fake_slot){
                    .server_id = fake_volume_server_id(cluster, volume, index, k),
                    .state = DL__SLOT_STATE__SLOT_IN_SYNC,
                    .number = k,
                };
            volume->allocated[index] = true;
            volume->config_epoch[index] = 1;
            cluster->segments_allocated++;
        }
        if (!cluster->allocate_empty)
            fake_map_add_segment(map, cluster, volume, index);
    }
    fake_meta_reply_map(cluster, session, frame, map, false);
}

static void
fake_meta_on_allocate(struct fake_cluster *cluster, struct fake_session *session,
                      const struct frame *frame)
{
    Dl__Allocate *allocate = (Dl__Allocate *)frame_unpack(frame, &dl__allocate__descriptor);

    fake_require(allocate != NULL && allocate->n_segments > 0);
    cluster->allocates++;
    if (cluster->allocate_held)
        fake_meta_hold(cluster, session, frame);
    else
        fake_meta_allocate(cluster, session, frame, allocate);
    dl__allocate__free_unpacked(allocate, NULL);
}

/* --- FENCE_STATUS --- */

struct fake_answers {
    Dl__FenceAnswer answers[FAKE_SERVERS_MAX];
    Dl__FenceAnswer *answer_pointers[FAKE_SERVERS_MAX];
    uint32_t waiting[FAKE_SERVERS_MAX];
    size_t answer_count, waiting_count;
    VEC(void *) memory;
};

static void *
fake_answers_alloc(struct fake_answers *answers, size_t bytes)
{
    void *memory = fake_alloc(bytes);

    fake_require(vec_push(&answers->memory, memory) == 0);
    return memory;
}

static int
fake_pending_compare(const void *a, const void *b)
{
    uint64_t left = (*(Dl__PendingWrite *const *)a)->version;
    uint64_t right = (*(Dl__PendingWrite *const *)b)->version;

    return left < right ? -1 : left > right;
}

/* Writes from first_version on, by version, part_writes at most; `more`, if that is not all. */
static Dl__PendingChunk *
fake_pending_chunk(struct fake_answers *answers, const struct fake_chunk *chunk,
                   uint64_t first_version, uint32_t part_writes)
{
    Dl__PendingChunk *message = fake_answers_alloc(answers, sizeof(*message));

    dl__pending_chunk__init(message);
    message->segment = chunk->segment;
    message->slot = chunk->slot;
    message->config_epoch = chunk->config_epoch;
    message->stable_version = chunk->stable;
    message->attempt = chunk->attempt;
    if (chunk->attempt != 0)
        return message;
    message->writes = fake_answers_alloc(answers, chunk->pending.count * sizeof(void *));
    for (size_t i = 0; i < chunk->pending.count; i++) {
        Dl__PendingWrite *write;

        if (chunk->pending.items[i].version < first_version)
            continue;
        write = fake_answers_alloc(answers, sizeof(*write));
        dl__pending_write__init(write);
        write->version = chunk->pending.items[i].version;
        write->offset_sectors = chunk->pending.items[i].first_sector;
        write->length_sectors = chunk->pending.items[i].sector_count;
        message->writes[message->n_writes++] = write;
    }
    qsort(message->writes, message->n_writes, sizeof(void *), fake_pending_compare);
    if (part_writes != 0 && message->n_writes > part_writes) {
        message->more = true;
        message->next_version = message->writes[part_writes]->version;
        message->n_writes = part_writes;
    }
    return message;
}

/* In parts: each answer has at most one chunk. */
static void
fake_add_answer(struct fake_answers *answers, struct fake_server *server,
                const Dl__FenceStatus *status, uint32_t part_writes)
{
    bool resumed = status->resume_server == server->id;
    uint32_t first_segment = resumed ? status->resume_segment : 0;
    uint64_t first_version = resumed ? status->resume_version : 0;
    Dl__FenceAnswer *answer = &answers->answers[answers->answer_count];
    struct fake_chunk *chosen = NULL;
    struct fake_chunk *chunk;

    dl__fence_answer__init(answer);
    answer->server_id = server->id;
    list_for_each_entry (chunk, &server->chunks, node) {
        if (chunk->volume != status->volume || (chunk->pending.count == 0 && chunk->attempt == 0) ||
            chunk->segment < first_segment)
            continue;
        if (chosen == NULL || chunk->segment < chosen->segment) {
            answer->more = answer->more || chosen != NULL;
            chosen = chunk;
        } else {
            answer->more = true;
        }
    }
    if (chosen != NULL) {
        answer->chunks = fake_answers_alloc(answers, sizeof(void *));
        answer->chunks[0] = fake_pending_chunk(
            answers, chosen, chosen->segment == first_segment ? first_version : 0, part_writes);
        answer->n_chunks = 1;
        answer->next_segment = chosen->segment + 1;
        if (answer->chunks[0]->more) {
            answer->more = true;
            answer->next_segment = chosen->segment;
            answer->next_slot = chosen->slot;
            answer->next_version = answer->chunks[0]->next_version;
        }
    }
    answers->answer_pointers[answers->answer_count++] = answer;
}

static bool
fake_is_known(const Dl__FenceStatus *status, uint32_t server_id)
{
    for (size_t i = 0; i < status->n_known; i++)
        if (status->known[i] == server_id)
            return true;
    return false;
}

/* False: nothing new, hold it. */
static bool
fake_meta_answer_status(struct fake_cluster *cluster, struct fake_session *session,
                        const struct frame *frame, const Dl__FenceStatus *status)
{
    struct fake_answers answers = {0};
    Dl__FenceStatusReply reply = DL__FENCE_STATUS_REPLY__INIT;
    uint32_t waited_for = 0;
    bool news, resumes = status->resume_server != 0 &&
                         (cluster->unanswered & 1u << (status->resume_server - 1)) != 0;

    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct fake_server *server = &cluster->servers[i];

        if (fake_is_known(status, server->id) || (cluster->unnamed & 1u << i) != 0)
            continue;
        if ((cluster->unanswered & 1u << i) != 0) {
            answers.waiting[answers.waiting_count++] = server->id;
            waited_for |= 1u << i;
        } else if (!resumes) {
            /* What was begun comes first. */
            fake_add_answer(&answers, server, status, cluster->part_writes);
            resumes = answers.answers[answers.answer_count - 1].more;
            if (resumes)
                cluster->unanswered |= cluster->gone_after_part & 1u << i;
        }
    }
    news = answers.answer_count > 0 || waited_for == 0 || waited_for != cluster->waited_for;
    cluster->waited_for = waited_for;
    if (news) {
        reply.n_answers = answers.answer_count;
        reply.answers = answers.answer_pointers;
        reply.n_waiting_for = answers.waiting_count;
        reply.waiting_for = answers.waiting;
        fake_send_message(session, frame, &reply.base);
    }
    vec_for_each (memory, &answers.memory)
        free(*memory);
    vec_fini(&answers.memory);
    return news;
}

static void
fake_meta_on_fence_status(struct fake_cluster *cluster, struct fake_session *session,
                          const struct frame *frame)
{
    Dl__FenceStatus *status = (Dl__FenceStatus *)frame_unpack(frame, &dl__fence_status__descriptor);
    struct fake_volume *volume;

    fake_require(status != NULL);
    cluster->fence_statuses++;
    volume = fake_meta_check_lease(cluster, session, frame, status->volume, status->lease_epoch);
    if (volume != NULL && !fake_meta_answer_status(cluster, session, frame, status))
        fake_meta_hold(cluster, session, frame);
    dl__fence_status__free_unpacked(status, NULL);
}

static void
fake_server_on_pending(struct fake_server *server, struct fake_session *session,
                       const struct frame *frame)
{
    Dl__Pending *pending = (Dl__Pending *)frame_unpack(frame, &dl__pending__descriptor);
    struct fake_answers answers = {0};
    struct fake_chunk *chunk;
    int err = 0;

    fake_require(pending != NULL);
    server->pendings++;
    chunk = fake_server_chunk(server, pending->volume, pending->segment);
    if (pending->lease_epoch < server->fence[pending->volume])
        err = -DL_E_LEASE_OLD;
    else if (chunk == NULL)
        err = -DL_E_CHUNK_UNKNOWN;
    else if (pending->config_epoch < chunk->config_epoch)
        err = -DL_E_EPOCH_OLD;
    else if (chunk->attempt != 0)
        err = -DL_E_NOT_YET;
    else if (fake_take_fault(&server->faults.pending_err_count))
        err = server->faults.pending_err;
    if (err == 0)
        server->fence[pending->volume] = pending->lease_epoch;
    if (server->faults.lost_pendings)
        ;
    else if (err != 0)
        fake_send_error(session, frame, err, "not now");
    else
        fake_send_message(session, frame,
                          &fake_pending_chunk(&answers, chunk, pending->first_version,
                                              server->cluster->part_writes)
                               ->base);
    vec_for_each (memory, &answers.memory)
        free(*memory);
    vec_fini(&answers.memory);
    dl__pending__free_unpacked(pending, NULL);
}

/* --- the metadata service: slots that change --- */

void
fake_server_tell(struct fake_server *server, const struct fake_volume *volume, uint32_t segment)
{
    for (uint32_t i = 0; i < FAKE_PLACES; i++) {
        const struct fake_slot *slot = &volume->slots[segment][i];
        struct data_target target = {
            .volume = volume->id, .segment = segment, .slot = (uint16_t)slot->number};
        struct fake_chunk *chunk;

        if (slot->server_id != server->id || slot->state == DL__SLOT_STATE__SLOT_EJECTED)
            continue;
        chunk = fake_chunk_get(server, &target);
        chunk->config_epoch = volume->config_epoch[segment];
        if (chunk->attempt == slot->attempt)
            continue;
        if (slot->attempt != 0) {
            for (uint32_t k = 0; k < chunk->sector_count; k++)
                if (chunk->sectors[k].version > chunk->stable)
                    chunk->sectors[k] = (struct fake_sector){.data = chunk->sectors[k].data};
            vec_clear(&chunk->pending);
        }
        chunk->attempt = slot->attempt;
    }
}

void
fake_server_pull(struct fake_server *server, struct fake_server *source,
                 const struct fake_volume *volume, uint32_t segment)
{
    struct fake_chunk *to = fake_server_chunk(server, volume->id, segment);
    const struct fake_chunk *from = fake_server_chunk(source, volume->id, segment);

    fake_require(to != NULL && from != NULL);
    for (uint32_t i = 0; i < to->sector_count; i++) {
        struct fake_sector *sector = &to->sectors[i];
        uint8_t *data = sector->data;
        struct fake_pending pending = {from->sectors[i].version, i, 1};

        if (sector->version >= from->sectors[i].version)
            continue;
        if (data == NULL)
            data = fake_alloc(WIRE_SECTOR_BYTES);
        *sector = from->sectors[i];
        sector->data = data;
        if (from->sectors[i].data != NULL)
            memcpy(data, from->sectors[i].data, WIRE_SECTOR_BYTES);
        if (pending.version > from->stable)
            fake_require(vec_push(&to->pending, pending) == 0);
    }
    to->stable = to->stable > from->stable ? to->stable : from->stable;
}

static void
fake_meta_tell_all(struct fake_cluster *cluster, const struct fake_volume *volume, uint32_t segment)
{
    for (uint32_t i = 0; i < cluster->server_count && !cluster->untold; i++)
        fake_server_tell(&cluster->servers[i], volume, segment);
}

void
fake_meta_set_slot(struct fake_cluster *cluster, struct fake_volume *volume, uint32_t segment,
                   uint32_t place, struct fake_slot slot)
{
    volume->config_epoch[segment]++;
    if (slot.state == DL__SLOT_STATE__SLOT_RECOVERING && slot.attempt == 0)
        slot.attempt = volume->config_epoch[segment];
    volume->slots[segment][place] = slot;
    fake_meta_tell_all(cluster, volume, segment);
}

/* Rules 1 and 2 of docs/recovery.md. */
static void
fake_meta_eject(struct fake_cluster *cluster, struct fake_volume *volume,
                const Dl__Ejection *ejection, uint32_t *refused, size_t *refused_count)
{
    struct fake_slot *slots = volume->slots[ejection->segment];
    uint32_t left = 0;
    bool in_sync = false;
    bool found = false;

    fake_require(volume->allocated[ejection->segment] && ejection->n_server_ids > 0);
    cluster->ejections++;
    cluster->last_ejected_server = ejection->server_ids[0];
    cluster->last_eject_reason = (uint32_t)ejection->reason;
    cluster->last_eject_resolved = ejection->resolved;
    if (ejection->config_epoch != volume->config_epoch[ejection->segment]) {
        cluster->ejections_old++;
        return;
    }
    for (unsigned pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < FAKE_PLACES; i++) {
            bool named = false;

            for (size_t k = 0; k < ejection->n_server_ids; k++)
                named = named || slots[i].server_id == ejection->server_ids[k];
            if (!named && pass == 0)
                left += slots[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
            if (!named)
                continue;
            in_sync = in_sync || slots[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
            found = true;
            if (pass == 0)
                continue;
            slots[i].state = DL__SLOT_STATE__SLOT_EJECTED;
            slots[i].attempt = 0;
        }
        if (in_sync && left < volume->min_write) {
            cluster->ejections_refused++;
            refused[(*refused_count)++] = ejection->segment;
            return;
        }
    }
    if (!found)
        return;
    volume->config_epoch[ejection->segment]++;
    for (uint32_t i = 0; i < FAKE_PLACES && !ejection->resolved; i++)
        if (slots[i].state == DL__SLOT_STATE__SLOT_RECOVERING)
            slots[i].attempt = volume->config_epoch[ejection->segment];
    fake_meta_tell_all(cluster, volume, ejection->segment);
}

static void
fake_meta_on_eject(struct fake_cluster *cluster, struct fake_session *session,
                   const struct frame *frame)
{
    Dl__Eject *eject = (Dl__Eject *)frame_unpack(frame, &dl__eject__descriptor);
    Dl__EjectReply reply = DL__EJECT_REPLY__INIT;
    struct fake_map *map = fake_alloc(sizeof(*map));
    struct fake_volume *volume;
    uint32_t refused[FAKE_SEGMENTS];
    size_t refused_count = 0;

    fake_require(eject != NULL && eject->n_ejections > 0 && eject->n_ejections <= FAKE_SEGMENTS);
    volume = fake_meta_check_lease(cluster, session, frame, eject->volume, eject->lease_epoch);
    if (volume == NULL) {
    } else if (cluster->eject_held) {
        fake_meta_hold(cluster, session, frame);
    } else if (fake_take_fault(&cluster->eject_err_count)) {
        fake_send_error(session, frame, cluster->eject_err, "not now");
    } else {
        cluster->ejects++;
        for (size_t i = 0; i < eject->n_ejections; i++)
            fake_meta_eject(cluster, volume, eject->ejections[i], refused, &refused_count);
        for (size_t i = 0; i < eject->n_ejections; i++)
            fake_map_add_segment(map, cluster, volume, eject->ejections[i]->segment);
        fake_map_add_servers(map, cluster);
        reply.segments = map->segment_pointers;
        reply.n_segments = map->segment_count;
        reply.servers = map->server_pointers;
        reply.n_servers = cluster->server_count;
        reply.refused = refused;
        reply.n_refused = refused_count;
        fake_send_message(session, frame, &reply.base);
    }
    free(map);
    dl__eject__free_unpacked(eject, NULL);
}

/* --- the metadata service: links --- */

static void
fake_meta_on_volume_info(struct fake_cluster *cluster, struct fake_session *session,
                         const struct frame *frame)
{
    Dl__VolumeInfo *info = (Dl__VolumeInfo *)frame_unpack(frame, &dl__volume_info__descriptor);
    Dl__VolumeReply reply = DL__VOLUME_REPLY__INIT;
    const struct fake_volume *volume;
    Dl__Volume message;
    Dl__VolumePolicy policy;

    fake_require(info != NULL);
    volume = fake_volume_by_name(cluster, info->name);
    if (volume == NULL) {
        fake_send_error(session, frame, -DL_E_VOLUME_UNKNOWN, "volume does not exist");
    } else {
        fake_fill_volume(&message, &policy, volume);
        reply.volume = &message;
        fake_send_message(session, frame, &reply.base);
    }
    dl__volume_info__free_unpacked(info, NULL);
}

static void
fake_meta_on_status(struct fake_cluster *cluster, struct fake_session *session,
                    const struct frame *frame)
{
    Dl__ClusterStatusReply reply = DL__CLUSTER_STATUS_REPLY__INIT;
    char state[] = "healthy";

    reply.cluster_id = (ProtobufCBinaryData){.data = cluster->cluster_id, .len = FAKE_ID_BYTES};
    reply.state = state;
    reply.servers_total = cluster->server_count;
    reply.servers_up = cluster->server_count;
    fake_send_message(session, frame, &reply.base);
}

static void
fake_meta_on_waits(struct fake_cluster *cluster, struct fake_session *session,
                   const struct frame *frame)
{
    Dl__OwnerWaits *waits = (Dl__OwnerWaits *)frame_unpack(frame, &dl__owner_waits__descriptor);
    Dl__OwnerWaitsReply reply = DL__OWNER_WAITS_REPLY__INIT;

    fake_require(waits != NULL && strlen(waits->text) < sizeof(cluster->waits));
    cluster->waits_count++;
    if (cluster->waits_unknown) {
        fake_send_error(session, frame, -DL_E_OPCODE_UNKNOWN, "what?");
    } else if (fake_meta_check_lease(cluster, session, frame, waits->volume, waits->lease_epoch) !=
               NULL) {
        (void)snprintf(cluster->waits, sizeof(cluster->waits), "%s", waits->text);
        cluster->waited_ms = waits->waited_ms;
        fake_send_message(session, frame, &reply.base);
    }
    dl__owner_waits__free_unpacked(waits, NULL);
}

static void
fake_meta_on_request(struct fake_cluster *cluster, struct fake_session *session,
                     const struct frame *frame)
{
    switch (frame->opcode) {
    case OP_PING:
        fake_send_message(session, frame, NULL);
        return;
    case OP_ATTACH:
        fake_meta_on_attach(cluster, session, frame);
        return;
    case OP_DETACH:
        fake_meta_on_detach(cluster, session, frame);
        return;
    case OP_MAP_GET:
        fake_meta_on_map_get(cluster, session, frame);
        return;
    case OP_ALLOCATE:
        fake_meta_on_allocate(cluster, session, frame);
        return;
    case OP_FENCE_STATUS:
        fake_meta_on_fence_status(cluster, session, frame);
        return;
    case OP_EJECT:
        fake_meta_on_eject(cluster, session, frame);
        return;
    case OP_OWNER_WAITS:
        fake_meta_on_waits(cluster, session, frame);
        return;
    case OP_VOLUME_INFO:
        fake_meta_on_volume_info(cluster, session, frame);
        return;
    case OP_CLUSTER_STATUS:
        fake_meta_on_status(cluster, session, frame);
        return;
    default:
        fake_send_error(session, frame, -DL_E_OPCODE_UNKNOWN, "not in this test");
    }
}

static void
fake_meta_on_accept(void *core, struct link *link)
{
    struct fake_cluster *cluster = core;

    (void)fake_session_create(&cluster->meta_links, link);
}

static void *
fake_meta_on_payload(void *core, struct link *link, const struct frame *frame)
{
    (void)core;
    (void)link;
    (void)frame;
    fake_require(false);
    return NULL;
}

static void
fake_meta_on_frame(void *core, struct link *link, const struct frame *frame)
{
    struct fake_cluster *cluster = core;
    struct fake_session *session = link->user;

    if (session->closing || cluster->silent)
        return;
    if (!session->greeted)
        fake_on_hello(cluster, session, frame, DL__ROLE__ROLE_META, NULL);
    else if (frame_is_reply(frame)) {
        if (frame->opcode == OP_OWNER_PROBE)
            cluster->last_probe_status = (uint64_t)-frame->status;
        cluster->maps_known += frame->opcode == OP_MAP_CHANGED && frame->status == 0;
    } else {
        fake_meta_on_request(cluster, session, frame);
    }
}

static void
fake_meta_drop_held_of(struct fake_cluster *cluster, const struct fake_session *session)
{
    struct fake_held *held;
    struct fake_held *following;

    list_for_each_entry_safe (held, following, &cluster->meta_held, node) {
        if (session != NULL && held->session != session)
            continue;
        list_remove(&held->node);
        free(held->body);
        free(held);
    }
}

static void
fake_meta_on_down(void *core, struct link *link, int err)
{
    struct fake_cluster *cluster = core;

    (void)err;
    fake_meta_drop_held_of(cluster, link->user);
    fake_session_destroy(link->user);
}

const struct link_events fake_meta_events = {
    .on_accept = fake_meta_on_accept,
    .on_payload = fake_meta_on_payload,
    .on_frame = fake_meta_on_frame,
    .on_down = fake_meta_on_down,
};

void
fake_meta_drop_links(struct fake_cluster *cluster)
{
    struct fake_session *session;

    list_for_each_entry (session, &cluster->meta_links, node)
        fake_session_close(session);
}

void
fake_meta_forget_links(struct fake_cluster *cluster)
{
    fake_meta_drop_held_of(cluster, NULL);
    while (!list_is_empty(&cluster->meta_links))
        fake_session_destroy(list_first_entry(&cluster->meta_links, struct fake_session, node));
}

void
fake_meta_release(struct fake_cluster *cluster)
{
    struct list round;
    struct list *node;

    cluster->allocate_held = false;
    cluster->eject_held = false;
    list_init(&round);
    list_splice_back(&round, &cluster->meta_held);
    while ((node = list_pop_front(&round)) != NULL) {
        struct fake_held *held = list_entry(node, struct fake_held, node);

        if (!held->session->closing)
            fake_meta_on_request(cluster, held->session, &held->frame);
        free(held->body);
        free(held);
    }
}

static void
fake_meta_push(struct fake_cluster *cluster, uint16_t opcode, const ProtobufCMessage *message)
{
    struct fake_session *session;

    list_for_each_entry (session, &cluster->meta_links, node)
        if (session->greeted && !session->closing)
            fake_send(session, frame_out_create_message(opcode, 0, 77, 0, message));
}

void
fake_meta_probe(struct fake_cluster *cluster, const struct fake_volume *volume)
{
    Dl__OwnerProbe probe = DL__OWNER_PROBE__INIT;

    probe.volume = volume->id;
    probe.lease_epoch = volume->lease_epoch;
    fake_meta_push(cluster, OP_OWNER_PROBE, &probe.base);
}

void
fake_meta_push_changed(struct fake_cluster *cluster, const struct fake_volume *volume, bool deleted)
{
    Dl__VolumeChanged changed = DL__VOLUME_CHANGED__INIT;
    Dl__Volume message;
    Dl__VolumePolicy policy;

    fake_fill_volume(&message, &policy, volume);
    changed.volume = &message;
    changed.deleted = deleted;
    fake_meta_push(cluster, OP_VOLUME_CHANGED, &changed.base);
}

void
fake_meta_push_map(struct fake_cluster *cluster, const struct fake_volume *volume, uint32_t segment)
{
    Dl__MapChanged changed = DL__MAP_CHANGED__INIT;
    struct fake_map *map = fake_alloc(sizeof(*map));

    fake_map_add_segment(map, cluster, volume, segment);
    fake_map_add_servers(map, cluster);
    changed.volume = volume->id;
    changed.lease_epoch = volume->lease_epoch;
    changed.segments = map->segment_pointers;
    changed.n_segments = map->segment_count;
    changed.servers = map->server_pointers;
    changed.n_servers = cluster->server_count;
    fake_meta_push(cluster, OP_MAP_CHANGED, &changed.base);
    free(map);
}

/* --- life --- */

void
fake_cluster_init(struct fake_cluster *cluster, struct env *meta_env)
{
    memset(cluster, 0, sizeof(*cluster));
    cluster->meta_env = meta_env;
    memset(cluster->cluster_id, 0xc1, FAKE_ID_BYTES);
    list_init(&cluster->meta_links);
    list_init(&cluster->meta_held);
    cluster->last_probe_status = UINT64_MAX;
}

struct fake_server *
fake_cluster_add_server(struct fake_cluster *cluster, struct env *env, const char *address,
                        const char *host)
{
    struct fake_server *server = &cluster->servers[cluster->server_count++];

    fake_require(cluster->server_count <= FAKE_SERVERS_MAX);
    server->cluster = cluster;
    server->env = env;
    server->id = cluster->server_count;
    memset(server->uuid, (int)server->id, FAKE_ID_BYTES);
    (void)snprintf(server->address, sizeof(server->address), "%s", address);
    (void)snprintf(server->host, sizeof(server->host), "%s", host);
    list_init(&server->chunks);
    list_init(&server->links);
    list_init(&server->held);
    return server;
}

struct fake_volume *
fake_cluster_add_volume(struct fake_cluster *cluster, const char *name, uint64_t size_bytes)
{
    struct fake_volume *volume = &cluster->volumes[cluster->volume_count++];

    fake_require(cluster->volume_count <= FAKE_VOLUMES);
    volume->id = cluster->volume_count;
    (void)snprintf(volume->name, sizeof(volume->name), "%s", name);
    volume->size_bytes = size_bytes;
    volume->segment_bytes = 1u << 20;
    volume->logical_block_bytes = 4096;
    volume->stripe_width = 1;
    volume->stripe_unit_bytes = 64u << 10;
    volume->replicas = 3;
    volume->min_write = 2;
    volume->clean = true;
    return volume;
}

void
fake_cluster_fini(struct fake_cluster *cluster)
{
    fake_meta_forget_links(cluster);
    for (uint32_t i = 0; i < cluster->server_count; i++) {
        struct fake_server *server = &cluster->servers[i];

        fake_server_forget_links(server);
        while (!list_is_empty(&server->chunks))
            fake_chunk_destroy(list_first_entry(&server->chunks, struct fake_chunk, node));
    }
}
