/* SPDX-License-Identifier: Apache-2.0 */
/* watch.c: what must be so at any moment.  See watch.h. */
#include "tests/sim/watch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/geometry.h"
#include "common/crc32c.h"
#include "dlblk/error.h"
#include "meta/internal.h"
#include "meta/schema.h"

#define SEGMENTS_MAX  256u
#define IDS_MAX       64u
#define TOLD_MAX      4096u /* a power of two */
#define REQUESTS_MAX  512u
#define EJECTIONS_MAX 256u
#define EJECTED_MAX   8u
#define LOOK_AGAIN    32u /* so many acknowledged writes after the last look at a segment */

struct watch_place {
    struct sim_server *server; /* NULL: it never came up */
    uint32_t server_id;
    uint32_t state; /* Dl__SlotState */
    uint32_t number;
    uint32_t attempt;
};

struct watch_segment {
    uint64_t volume;
    uint32_t index;
    uint32_t config_epoch;
    uint32_t place_count;
    uint32_t acknowledged; /* since it was looked at */
    struct watch_place places[SIM_PLACES_MAX];
};

/* The highest config epoch of a chunk that its server was told by those who may. */
struct watch_told {
    struct chunk_key key;
    uint32_t server_idx; /* of its process, and 1; 0: free */
    uint32_t config_epoch;
    bool removed; /* CHUNK_DELETE has named it, and no SLOT_TELL since */
};

/* A READ that arrived when the slot was recovering, a PULL, or a SLOT_TELL. */
struct watch_request {
    uint64_t link_id; /* 0: free */
    uint64_t request_id;
    struct sim_server *server;
    struct chunk_key key;
    uint32_t attempt;      /* of the slot then; 0: none.  SLOT_TELL: that it names */
    uint32_t config_epoch; /* PULL: the attempt for which it pulls.  SLOT_TELL: its own */
    uint32_t lease_epoch;  /* SLOT_TELL: the fence that it names */
};

/* An ejection that the metadata service was asked for. */
struct watch_ejection {
    uint64_t volume;
    uint32_t segment, config_epoch;
    uint32_t server_count, server_ids[EJECTED_MAX];
    uint32_t life; /* of the metadata service */
    bool resolved;
};

struct watch {
    struct cluster *cluster;
    struct aim *aim;
    struct watch_takeovers *takeovers;
    uint64_t revision; /* of the metadata service's database */
    uint32_t segment_count;
    struct watch_segment segments[SEGMENTS_MAX];
    struct watch_told told[TOLD_MAX];
    struct watch_request requests[REQUESTS_MAX];
    uint32_t next_request;
    uint64_t late_link_id, late_request_id; /* a WRITE of a chunk that is no more; 0: none */
    struct watch_ejection ejections[EJECTIONS_MAX];
    uint32_t next_ejection;
};

static struct watch *
watch_of(const struct cluster *cluster)
{
    return cluster->world.frame_context;
}

/* --- what the map says --- */

struct sim_server *
watch_server_of_process(struct cluster *cluster, const struct sim_process *process)
{
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (&cluster->servers[i].process == process)
            return &cluster->servers[i];
    return NULL;
}

static struct sim_server *
server_of_uuid(struct cluster *cluster, const uint8_t uuid[16])
{
    for (uint32_t i = 0; i < cluster->server_count; i++)
        if (memcmp(cluster->servers[i].uuid, uuid, 16) == 0)
            return &cluster->servers[i];
    return NULL;
}

static void
read_servers(struct cluster *cluster, struct sim_server *servers[IDS_MAX])
{
    struct store_memory_db *db = cluster->meta.db;
    struct server_desc desc;
    struct dl_error err;
    uint32_t id;

    memset(servers, 0, IDS_MAX * sizeof(servers[0]));
    for (uint32_t i = 0; i < store_memory_db_count(db); i++) {
        struct store_item item = store_memory_db_item(db, i);

        if (!schema_parse_server(item.key, &id) || id >= IDS_MAX)
            continue;
        sim_require(&cluster->world, meta_record_get_server(item, &desc, &err) == 0,
                    "the record of server %u can't be read: %s", id, err.text);
        servers[id] = server_of_uuid(cluster, desc.uuid);
    }
}

struct sim_server *
watch_server_by_id(struct cluster *cluster, uint32_t id)
{
    struct sim_server *servers[IDS_MAX];

    read_servers(cluster, servers);
    return id < IDS_MAX ? servers[id] : NULL;
}

static void
read_segment(struct cluster *cluster, struct store_item item, struct sim_server *servers[IDS_MAX],
             struct watch_segment *segment)
{
    union {
        struct segment segment;
        uint8_t bytes[sizeof(struct segment) + SIM_PLACES_MAX * sizeof(struct segment_slot)];
    } found = {0};
    uint32_t replicas = cluster->profile.replicas;
    struct dl_error err;
    bool told;

    sim_require(&cluster->world,
                meta_record_get_segment(item, &found.segment, replicas, &told, &err) == 0,
                "the record of a segment can't be read: %s", err.text);
    segment->config_epoch = found.segment.config_epoch;
    segment->place_count = 0;
    for (uint32_t i = 0; i <= replicas; i++) {
        const struct segment_slot *slot = &found.segment.slots[i];

        if (slot->server_id == 0)
            continue;
        segment->places[segment->place_count++] = (struct watch_place){
            .server = slot->server_id < IDS_MAX ? servers[slot->server_id] : NULL,
            .server_id = slot->server_id,
            .state = slot->state,
            .number = slot->number,
            .attempt = slot->attempt,
        };
    }
}

static struct watch_segment *
watch_find(struct watch *watch, uint64_t volume, uint32_t index)
{
    for (uint32_t i = 0; i < watch->segment_count; i++)
        if (watch->segments[i].volume == volume && watch->segments[i].index == index)
            return &watch->segments[i];
    return NULL;
}

static bool
place_is_in_sync(const struct watch_place *place)
{
    return place->state == DL__SLOT_STATE__SLOT_IN_SYNC;
}

/* And what it should have, as far as the metadata service knows. */
static bool
place_has_disk(const struct cluster *cluster, const struct watch_place *place)
{
    return place->server != NULL && !place->server->gone && place->server != cluster->fragile;
}

static struct chunk *
place_chunk(const struct watch_segment *segment, const struct watch_place *place)
{
    struct chunk_key key = {segment->volume, segment->index, place->number};

    return place->server == NULL ? NULL : chunk_table_find(place->server->disk.chunks, &key);
}

static const struct model_sector *
chunk_sector_of(const struct chunk *chunk, uint32_t idx)
{
    static const struct model_sector hole = {.kind = SECTOR_HOLE};
    const struct model_chunk *content = chunk == NULL ? NULL : chunk->store_private;

    return content == NULL || idx >= content->sector_count ? &hole : &content->sectors[idx];
}

/* --- 1. what was acknowledged is there --- */

static uint64_t
sector_value(const struct model_sector *sector, uint32_t offset_bytes)
{
    uint64_t value = 0;

    if (sector->kind == SECTOR_DATA)
        memcpy(&value, sector->data + offset_bytes, sizeof(value));
    return value;
}

/* Bits have flipped: whoever reads it notices. */
static bool
sector_is_bad(const struct model_sector *sector)
{
    return sector->kind == SECTOR_DATA && crc32c(0, sector->data, SECTOR_BYTES) != sector->crc;
}

static void
check_block(struct cluster *cluster, const struct sim_volume *volume,
            const struct watch_segment *segment, const struct watch_place *place,
            const struct chunk *chunk, uint64_t block, uint32_t offset_bytes)
{
    uint32_t idx = offset_bytes / SECTOR_BYTES;
    const struct model_sector *sector = chunk_sector_of(chunk, idx);
    uint64_t value;

    if (sector->damaged_version != 0)
        return;
    sim_require(&cluster->world, !sector->is_void,
                "volume %" PRIu64 " segment %u slot %u on %s is in-sync, and sector %u is void",
                segment->volume, segment->index, place->number, place->server->process.name, idx);
    value = sector_value(sector, offset_bytes % SECTOR_BYTES);
    if (oracle_may_be_stored(&volume->oracle, block, value) || sector_is_bad(sector))
        return;
    oracle_print_block(&volume->oracle, block);
    sim_fail(&cluster->world,
             "volume %" PRIu64 " segment %u slot %u on %s is in-sync under config epoch %u, but "
             "has value %" PRIu64 " (version %#" PRIx64 ") in sector %u, block %" PRIu64
             ": something newer was acknowledged",
             segment->volume, segment->index, place->number, place->server->process.name,
             segment->config_epoch, value, sector->version, idx, block);
}

static void
volume_geometry(const struct sim_volume *volume, struct geometry *ret_geometry)
{
    (void)geometry_init(ret_geometry, volume->size_bytes_asked, volume->segment_bytes,
                        volume->logical_block_bytes, volume->stripe_width,
                        volume->stripe_unit_bytes);
}

static void
check_acknowledged(struct cluster *cluster, const struct watch_segment *segment,
                   const struct watch_place *place)
{
    const struct sim_volume *volume = cluster_volume(cluster, segment->volume);
    const struct chunk *chunk = place_chunk(segment, place);
    struct geometry geometry;

    if (volume == NULL || !place_is_in_sync(place) || !place_has_disk(cluster, place))
        return;
    volume_geometry(volume, &geometry);
    for (uint32_t at = 0; at < volume->segment_bytes; at += volume->logical_block_bytes) {
        uint64_t block = geometry_volume_offset(&geometry, segment->index, at) /
                         volume->logical_block_bytes;

        if (block < volume->oracle.block_count && volume->oracle.blocks[block].count > 0)
            check_block(cluster, volume, segment, place, chunk, block, at);
    }
}

/* --- 2. what would not be asked for is there --- */

/* Zeroes are a hole once all slots have them: in one slot earlier than in another. */
static bool
zeroes_are_forgotten(const struct model_sector *a, const struct model_sector *b)
{
    return a->kind != SECTOR_DATA && b->kind != SECTOR_DATA && (a->version == 0 || b->version == 0);
}

/* Of a sector: what a new attempt would take for granted. */
static uint64_t
trusted_version(const struct chunk_step *steps, uint32_t count, uint32_t sector)
{
    uint64_t version = 0;

    for (uint32_t i = 0; i < count && steps[i].first_sector <= sector; i++)
        version = steps[i].stable_version;
    return version;
}

static void
check_trusted(struct cluster *cluster, const struct watch_segment *segment,
              const struct watch_place *place, const struct watch_place *other)
{
    const struct chunk *chunk = place_chunk(segment, place);
    const struct chunk *source = place_chunk(segment, other);
    const struct model_chunk *content = source == NULL ? NULL : source->store_private;
    struct chunk_step steps[CHUNK_STEPS_MAX];
    uint32_t count;

    if (chunk == NULL || content == NULL)
        return;
    count = chunk_attempt_steps(chunk, steps);
    for (uint32_t i = 0; i < content->sector_count; i++) {
        const struct model_sector *from = &content->sectors[i];
        const struct model_sector *here = chunk_sector_of(chunk, i);

        sim_require(&cluster->world,
                    from->is_void || from->version == 0 || here->is_void ||
                        here->version >= from->version || zeroes_are_forgotten(from, here) ||
                        from->version > trusted_version(steps, count, i),
                    "volume %" PRIu64 " segment %u slot %u on %s has version %#" PRIx64
                    " of sector %u, and would not ask for %#" PRIx64 " up to %#" PRIx64
                    ", which slot %u on %s has (config epoch %u, attempt %u, cursor %u)",
                    segment->volume, segment->index, place->number, place->server->process.name,
                    here->version, i, from->version, trusted_version(steps, count, i),
                    other->number, other->server->process.name, segment->config_epoch,
                    chunk->attempt, chunk->cursor_sectors);
    }
}

/* --- 3. older owners --- */

static uint32_t
segment_lease_in_use(const struct cluster *cluster, const struct watch_segment *segment)
{
    const struct sim_volume *volume = cluster_volume(cluster, segment->volume);
    uint32_t highest = 0;

    for (uint32_t i = 0; i < cluster->profile.client_count && volume != NULL; i++) {
        uint32_t lease = watch_client_lease(&cluster->clients[i], segment->volume);

        if (lease == volume->lease_epoch_max &&
            watch_client_uses(&cluster->clients[i], segment->volume, segment->index))
            highest = lease;
    }
    return highest;
}

static bool
sector_is_older(const struct model_sector *sector, uint32_t lease_epoch)
{
    return !sector->is_void && sector->version >> WIRE_VERSION_SEQUENCE_BITS < lease_epoch;
}

static void
check_alike(struct cluster *cluster, const struct watch_segment *segment,
            const struct watch_place *a, const struct watch_place *b, uint32_t lease_epoch)
{
    const struct sim_volume *volume = cluster_volume(cluster, segment->volume);
    const struct chunk *one = place_chunk(segment, a);
    const struct chunk *other = place_chunk(segment, b);

    for (uint32_t i = 0; i < volume->segment_bytes / SECTOR_BYTES; i++) {
        const struct model_sector *left = chunk_sector_of(one, i);
        const struct model_sector *right = chunk_sector_of(other, i);

        sim_require(&cluster->world,
                    !sector_is_older(left, lease_epoch) || !sector_is_older(right, lease_epoch) ||
                        left->version == right->version || zeroes_are_forgotten(left, right),
                    "volume %" PRIu64 " segment %u is in use by owner %u, but in sector %u slot %u "
                    "on %s has version %#" PRIx64 " and slot %u on %s version %#" PRIx64,
                    segment->volume, segment->index, lease_epoch, i, a->number,
                    a->server->process.name, left->version, b->number, b->server->process.name,
                    right->version);
    }
}

/* --- 4. ejections --- */

static bool
ejection_names(const struct watch_ejection *ejection, uint32_t server_id)
{
    for (uint32_t i = 0; i < ejection->server_count; i++)
        if (ejection->server_ids[i] == server_id)
            return true;
    return false;
}

/* Has the metadata service reasons of its own? */
static bool
server_is_lost(const struct cluster *cluster, uint32_t server_id)
{
    const struct meta_server *server;

    if (cluster->meta.core == NULL)
        return true;
    server = meta_server_by_id(cluster->meta.core, server_id);
    return server == NULL || server->out || server->sweep != NULL || server->settle != NULL;
}

static void
check_ejection(struct watch *watch, const struct watch_segment *before,
               const struct watch_segment *now, const struct watch_place *place)
{
    const struct cluster *cluster = watch->cluster;
    bool was_in_sync = false, is_named = false, was_named = false;
    uint32_t left = 0;

    if (server_is_lost(cluster, place->server_id))
        return;
    for (uint32_t i = 0; i < before->place_count; i++)
        if (before->places[i].server_id == place->server_id)
            was_in_sync = place_is_in_sync(&before->places[i]);
    for (uint32_t i = 0; i < now->place_count; i++)
        left += place_is_in_sync(&now->places[i]);
    for (uint32_t i = 0; i < EJECTIONS_MAX; i++) {
        const struct watch_ejection *ejection = &watch->ejections[i];

        if (ejection->volume != now->volume || ejection->segment != now->index ||
            ejection->life != cluster->meta.process.life ||
            !ejection_names(ejection, place->server_id))
            continue;
        is_named |= ejection->config_epoch == before->config_epoch;
        was_named |= ejection->config_epoch != before->config_epoch;
    }
    sim_require(&cluster->world, is_named || !was_named,
                "volume %" PRIu64 " segment %u: server %u is ejected from the map of config epoch "
                "%u, and the owner wanted that of another one",
                now->volume, now->index, place->server_id, before->config_epoch);
    sim_require(&cluster->world, !is_named || !was_in_sync || left >= cluster->profile.min_write,
                "volume %" PRIu64 " segment %u: server %u is ejected for the owner, which leaves "
                "%u in-sync slots",
                now->volume, now->index, place->server_id, left);
}

static const struct watch_place *
place_of_server(const struct watch_segment *segment, uint32_t server_id)
{
    for (uint32_t i = 0; i < segment->place_count; i++)
        if (segment->places[i].server_id == server_id)
            return &segment->places[i];
    return NULL;
}

/* Has the owner said that all its in-sync slots are alike? */
static bool
ejection_was_resolved(const struct watch *watch, const struct watch_segment *before)
{
    for (uint32_t i = 0; i < EJECTIONS_MAX; i++) {
        const struct watch_ejection *ejection = &watch->ejections[i];

        if (ejection->resolved && ejection->volume == before->volume &&
            ejection->segment == before->index && ejection->config_epoch == before->config_epoch)
            return true;
    }
    return false;
}

/* What recovers may have pulled from a slot that is none any more. */
static void
check_new_attempts(struct watch *watch, const struct watch_segment *before,
                   const struct watch_segment *now)
{
    const struct watch_place *lost = NULL;

    for (uint32_t i = 0; i < before->place_count; i++) {
        const struct watch_place *place = place_of_server(now, before->places[i].server_id);

        if (place_is_in_sync(&before->places[i]) && (place == NULL || !place_is_in_sync(place)))
            lost = &before->places[i];
    }
    if (lost == NULL || ejection_was_resolved(watch, before))
        return;
    for (uint32_t i = 0; i < now->place_count; i++)
        sim_require(&watch->cluster->world,
                    now->places[i].state != DL__SLOT_STATE__SLOT_RECOVERING ||
                        now->places[i].attempt == now->config_epoch,
                    "volume %" PRIu64 " segment %u: with config epoch %u server %u is not in-sync "
                    "any more, and slot %u on server %u goes on with attempt %u",
                    now->volume, now->index, now->config_epoch, lost->server_id,
                    now->places[i].number, now->places[i].server_id, now->places[i].attempt);
}

static void
check_ejections(struct watch *watch, const struct watch_segment *before,
                const struct watch_segment *now)
{
    if (now->config_epoch != before->config_epoch + 1)
        return;
    check_new_attempts(watch, before, now);
    for (uint32_t i = 0; i < now->place_count; i++) {
        const struct watch_place *place = &now->places[i];

        for (uint32_t k = 0; k < before->place_count; k++)
            if (before->places[k].server_id == place->server_id &&
                before->places[k].state != place->state &&
                place->state == DL__SLOT_STATE__SLOT_EJECTED)
                check_ejection(watch, before, now, place);
    }
}

/* --- a segment --- */

static void
watch_look(struct watch *watch, struct watch_segment *segment)
{
    struct cluster *cluster = watch->cluster;
    uint32_t lease_epoch = segment_lease_in_use(cluster, segment);

    segment->acknowledged = 0;
    for (uint32_t i = 0; i < segment->place_count; i++)
        check_acknowledged(cluster, segment, &segment->places[i]);
    for (uint32_t i = 0; i < segment->place_count; i++)
        for (uint32_t k = 0; k < segment->place_count; k++) {
            const struct watch_place *one = &segment->places[i];
            const struct watch_place *other = &segment->places[k];

            if (i == k || !place_has_disk(cluster, one) || !place_has_disk(cluster, other) ||
                !place_is_in_sync(other))
                continue;
            check_trusted(cluster, segment, one, other);
            if (i < k && place_is_in_sync(one) && lease_epoch != 0)
                check_alike(cluster, segment, one, other, lease_epoch);
        }
}

static void
watch_take(struct watch *watch, const struct watch_segment *now)
{
    struct watch_segment *before = watch_find(watch, now->volume, now->index);

    if (before == NULL) {
        sim_require(&watch->cluster->world, watch->segment_count < SEGMENTS_MAX,
                    "too many segments to watch");
        before = &watch->segments[watch->segment_count++];
        *before = *now;
        return;
    }
    if (now->config_epoch == before->config_epoch)
        return;
    check_ejections(watch, before, now);
    *before = *now;
    watch_look(watch, before);
}

/* Volumes that were deleted. */
static void
watch_forget(struct watch *watch, const bool *seen)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < watch->segment_count; i++)
        if (seen[i])
            watch->segments[count++] = watch->segments[i];
    watch->segment_count = count;
}

void
watch_step(struct cluster *cluster)
{
    struct watch *watch = watch_of(cluster);
    struct store_memory_db *db = cluster->meta.db;
    struct sim_server *servers[IDS_MAX];
    bool seen[SEGMENTS_MAX] = {false};
    struct watch_segment segment;

    watch_takeovers_step(watch->takeovers);
    if (store_memory_db_revision(db) == watch->revision)
        return;
    watch->revision = store_memory_db_revision(db);
    read_servers(cluster, servers);
    for (uint32_t i = 0; i < store_memory_db_count(db); i++) {
        struct store_item item = store_memory_db_item(db, i);

        memset(&segment, 0, sizeof(segment));
        if (!schema_parse_segment(item.key, &segment.volume, &segment.index))
            continue;
        read_segment(cluster, item, servers, &segment);
        watch_take(watch, &segment);
        seen[watch_find(watch, segment.volume, segment.index) - watch->segments] = true;
    }
    watch_forget(watch, seen);
}

void
watch_acknowledged(struct cluster *cluster, const struct sim_volume *volume, uint64_t first_block,
                   uint64_t block_count)
{
    struct watch *watch = watch_of(cluster);
    uint32_t block_bytes = volume->logical_block_bytes;
    struct geometry geometry;

    volume_geometry(volume, &geometry);
    for (uint64_t block = first_block; block < first_block + block_count; block++) {
        struct geometry_piece piece = geometry_first_piece(&geometry, block * block_bytes,
                                                           block_bytes);
        struct watch_segment *segment = watch_find(watch, volume->id, piece.segment);

        if (segment == NULL)
            continue; /* zeroes that were zeroes */
        for (uint32_t i = 0; i < segment->place_count; i++) {
            const struct watch_place *place = &segment->places[i];

            if (place_is_in_sync(place) && place_has_disk(cluster, place))
                check_block(cluster, volume, segment, place, place_chunk(segment, place), block,
                            piece.offset_bytes);
        }
        segment->acknowledged++;
        if (segment->acknowledged >= LOOK_AGAIN)
            watch_look(watch, segment);
    }
}

/* --- frames --- */

static struct watch_told *
watch_told(struct watch *watch, const struct sim_server *server, const struct chunk_key *key)
{
    uint32_t idx = (uint32_t)(key->volume * 31 + key->segment * 7 + key->slot * 131) +
                   server->process.idx * 1009;

    for (uint32_t tries = 0; tries < TOLD_MAX; tries++, idx++) {
        struct watch_told *told = &watch->told[idx % TOLD_MAX];

        if (told->server_idx == 0)
            *told = (struct watch_told){.key = *key, .server_idx = server->process.idx + 1};
        if (told->server_idx == server->process.idx + 1 &&
            memcmp(&told->key, key, sizeof(*key)) == 0)
            return told;
    }
    sim_fail(&watch->cluster->world, "too many slots to watch");
}

static void
watch_tell(struct watch *watch, const struct sim_server *server, const struct chunk_key *key,
           uint32_t config_epoch)
{
    struct watch_told *told = watch_told(watch, server, key);

    if (config_epoch > told->config_epoch)
        told->config_epoch = config_epoch;
}

static uint32_t
attempt_at(const struct sim_server *server, const struct chunk_key *key)
{
    const struct chunk *chunk = chunk_table_find(server->disk.chunks, key);

    return chunk == NULL ? 0 : chunk->attempt;
}

static struct watch_request *
watch_note_request(struct watch *watch, const struct sim_frame_event *event,
                   struct sim_server *server, const struct chunk_key *key, uint32_t config_epoch)
{
    struct watch_request *request = &watch->requests[watch->next_request++ % REQUESTS_MAX];

    *request = (struct watch_request){
        .link_id = event->link_id,
        .request_id = event->frame->request_id,
        .server = server,
        .key = *key,
        .attempt = attempt_at(server, key),
        .config_epoch = config_epoch,
    };
    return request;
}

/* 5. and 6. */
static void
check_answer(struct watch *watch, const struct watch_request *request, uint16_t opcode)
{
    sim_require(&watch->cluster->world,
                request->attempt == 0 ||
                    attempt_at(request->server, &request->key) != request->attempt,
                "%s answers %s of volume %" PRIu64 " segment %u slot %u, which recovers: attempt "
                "%u",
                request->server->process.name, opcode_name(opcode), request->key.volume,
                request->key.segment, request->key.slot, request->attempt);
    sim_require(&watch->cluster->world,
                watch_told(watch, request->server, &request->key)->config_epoch >=
                    request->config_epoch,
                "%s answers PULL of volume %" PRIu64 " segment %u slot %u for attempt %u, of which "
                "only the puller has told it",
                request->server->process.name, request->key.volume, request->key.segment,
                request->key.slot, request->config_epoch);
}

/* 8.  If the slot is as it was told: the message may have been an old one. */
static void
check_told(struct watch *watch, const struct watch_request *request)
{
    const struct chunk *chunk = chunk_table_find(request->server->disk.chunks, &request->key);

    if (chunk == NULL || chunk->attempt != request->attempt ||
        chunk->config_epoch != request->config_epoch)
        return;
    sim_require(&watch->cluster->world, chunk->volume->lease_epoch >= request->lease_epoch,
                "%s: volume %" PRIu64 " segment %u slot %u is in attempt %u, and its fence is %u, "
                "below %u",
                request->server->process.name, request->key.volume, request->key.segment,
                request->key.slot, request->attempt, chunk->volume->lease_epoch,
                request->lease_epoch);
}

/* 9. */
static void
check_late_write(struct watch *watch, const struct sim_frame_event *event)
{
    if (watch->late_link_id != event->link_id || watch->late_request_id != event->frame->request_id)
        return;
    watch->late_link_id = 0;
    sim_require(&watch->cluster->world, event->frame->status != 0,
                "%s: a late WRITE makes a chunk anew that CHUNK_DELETE has taken away",
                event->from->name);
}

/* A server has answered. */
static void
watch_on_answer(struct watch *watch, const struct sim_frame_event *event)
{
    for (uint32_t i = 0; i < REQUESTS_MAX; i++) {
        struct watch_request *request = &watch->requests[i];

        if (request->link_id != event->link_id || request->request_id != event->frame->request_id)
            continue;
        request->link_id = 0;
        if (event->frame->status != 0)
            return;
        if (event->frame->opcode == OP_SLOT_TELL)
            check_told(watch, request);
        else
            check_answer(watch, request, event->frame->opcode);
        return;
    }
}

static void
watch_on_slot_tell(struct watch *watch, const struct sim_frame_event *event,
                   struct sim_server *server)
{
    Dl__SlotTell *tell = (Dl__SlotTell *)frame_unpack(event->frame, &dl__slot_tell__descriptor);
    struct watch_request *request;

    if (tell == NULL)
        return;
    struct chunk_key key = {tell->volume, tell->segment, tell->slot};
    watch_tell(watch, server, &key, tell->config_epoch);
    watch_told(watch, server, &key)->removed = false;
    if (tell->attempt != 0) {
        request = watch_note_request(watch, event, server, &key, tell->config_epoch);
        request->attempt = tell->attempt;
        request->lease_epoch = tell->lease_epoch;
    }
    dl__slot_tell__free_unpacked(tell, NULL);
}

static void
watch_on_pull(struct watch *watch, const struct sim_frame_event *event, struct sim_server *server)
{
    Dl__Pull *pull = (Dl__Pull *)frame_unpack(event->frame, &dl__pull__descriptor);

    if (pull == NULL)
        return;
    struct chunk_key key = {pull->volume, pull->segment, pull->slot};
    /* Of an in-sync slot that compares itself with another one nothing is asked here. */
    (void)watch_note_request(watch, event, server, &key,
                             pull->checksums_only ? 0 : pull->config_epoch);
    dl__pull__free_unpacked(pull, NULL);
}

/* 7. */
static void
check_deletion(struct watch *watch, const struct sim_server *server, const Dl__ChunkRef *ref)
{
    struct cluster *cluster = watch->cluster;
    uint32_t fence = chunk_table_fence(server->disk.chunks, ref->volume);
    struct chunk_key key = {ref->volume, ref->segment, ref->slot};
    const struct chunk *chunk = chunk_table_find(server->disk.chunks, &key);
    struct sim_server *servers[IDS_MAX];

    if (chunk == NULL || chunk->incarnation > ref->incarnation)
        return; /* it is gone, or there is another one in its place */
    read_servers(cluster, servers);
    for (uint32_t i = 0; i < cluster->profile.client_count; i++) {
        const struct sim_client *client = &cluster->clients[i];

        if (watch_client_lease(client, ref->volume) < fence)
            continue;
        for (uint32_t id = 0; id < IDS_MAX; id++)
            sim_require(&cluster->world,
                        servers[id] != server ||
                            !watch_client_reads(client, ref->volume, ref->segment, ref->slot, id),
                        "%s: a chunk of volume %" PRIu64 " segment %u slot %u is deleted, but %s "
                        "would read it",
                        server->process.name, ref->volume, ref->segment, ref->slot,
                        client->process.name);
    }
}

static void
watch_on_chunk_delete(struct watch *watch, const struct sim_frame_event *event,
                      const struct sim_server *server)
{
    Dl__ChunkDelete *deletion = (Dl__ChunkDelete *)frame_unpack(event->frame,
                                                                &dl__chunk_delete__descriptor);

    if (deletion == NULL)
        return;
    for (size_t i = 0; i < deletion->n_chunks; i++)
        if (cluster_volume(watch->cluster, deletion->chunks[i]->volume) != NULL) {
            const Dl__ChunkRef *ref = deletion->chunks[i];
            struct chunk_key key = {ref->volume, ref->segment, ref->slot};

            check_deletion(watch, server, ref);
            watch_told(watch, server, &key)->removed = true;
        }
    dl__chunk_delete__free_unpacked(deletion, NULL);
}

static void
watch_on_eject(struct watch *watch, const struct sim_frame_event *event)
{
    Dl__Eject *eject = (Dl__Eject *)frame_unpack(event->frame, &dl__eject__descriptor);

    for (size_t i = 0; eject != NULL && i < eject->n_ejections; i++) {
        const Dl__Ejection *from = eject->ejections[i];
        struct watch_ejection *ejection = &watch->ejections[watch->next_ejection++ % EJECTIONS_MAX];

        *ejection = (struct watch_ejection){
            .volume = eject->volume,
            .segment = from->segment,
            .config_epoch = from->config_epoch,
            .life = event->to->life,
            .resolved = from->resolved,
        };
        for (size_t k = 0; k < from->n_server_ids && k < EJECTED_MAX; k++)
            ejection->server_ids[ejection->server_count++] = from->server_ids[k];
    }
    if (eject != NULL)
        dl__eject__free_unpacked(eject, NULL);
}

static void
check_resolved(struct watch *watch, const struct sim_frame_event *event)
{
    struct cluster *cluster = watch->cluster;
    Dl__Eject *eject = (Dl__Eject *)frame_unpack(event->frame, &dl__eject__descriptor);

    for (uint32_t i = 0; eject != NULL && i < cluster->profile.client_count; i++) {
        const struct sim_client *client = &cluster->clients[i];

        for (size_t k = 0; k < eject->n_ejections && &client->process == event->from; k++)
            sim_require(
                &cluster->world,
                !eject->ejections[k]->resolved ||
                    !watch_client_resolves(client, eject->volume, eject->ejections[k]->segment),
                "%s says that volume %" PRIu64 " segment %u is resolved, and it is not",
                client->process.name, eject->volume, eject->ejections[k]->segment);
    }
    if (eject != NULL)
        dl__eject__free_unpacked(eject, NULL);
}

static void
watch_on_request(struct watch *watch, const struct sim_frame_event *event)
{
    const struct frame *frame = event->frame;
    struct sim_server *server = watch_server_of_process(watch->cluster, event->to);
    struct data_write write;
    struct data_read read;
    struct chunk_key key;

    if (frame->opcode == OP_EJECT)
        watch_on_eject(watch, event);
    if (server == NULL)
        return;
    switch (frame->opcode) {
    case OP_WRITE:
        if (data_write_decode(frame, &write) != 0)
            return;
        key = (struct chunk_key){write.target.volume, write.target.segment, write.target.slot};
        watch_tell(watch, server, &key, write.target.config_epoch);
        if (watch_told(watch, server, &key)->removed &&
            chunk_table_find(server->disk.chunks, &key) == NULL) {
            watch->late_link_id = event->link_id;
            watch->late_request_id = frame->request_id;
        }
        return;
    case OP_READ:
        if (data_read_decode(frame, &read) != 0)
            return;
        key = (struct chunk_key){read.target.volume, read.target.segment, read.target.slot};
        if (attempt_at(server, &key) != 0)
            (void)watch_note_request(watch, event, server, &key, 0);
        return;
    case OP_PULL:
        watch_on_pull(watch, event, server);
        return;
    case OP_SLOT_TELL:
        watch_on_slot_tell(watch, event, server);
        return;
    case OP_CHUNK_DELETE:
        watch_on_chunk_delete(watch, event, server);
        return;
    default:
        return;
    }
}

static void
watch_on_frame(void *context, const struct sim_frame_event *event)
{
    struct watch *watch = context;
    const struct frame *frame = event->frame;

    if (event->arrives && !frame_is_reply(frame))
        watch_on_request(watch, event);
    if (!event->arrives && frame_is_reply(frame) &&
        (frame->opcode == OP_READ || frame->opcode == OP_PULL || frame->opcode == OP_SLOT_TELL))
        watch_on_answer(watch, event);
    if (!event->arrives && frame_is_reply(frame) && frame->opcode == OP_WRITE)
        check_late_write(watch, event);
    if (!event->arrives && !frame_is_reply(frame) && frame->opcode == OP_EJECT &&
        frame->body != NULL)
        check_resolved(watch, event);
    watch_takeovers_on_frame(watch->takeovers, event);
    aim_on_frame(watch->aim, event);
}

/* --- life --- */

void
watch_create(struct cluster *cluster)
{
    struct watch *watch = calloc(1, sizeof(*watch));

    sim_require(&cluster->world, watch != NULL, "no memory");
    watch->cluster = cluster;
    watch->aim = aim_create(cluster);
    watch->takeovers = watch_takeovers_create(cluster);
    cluster->world.on_frame = watch_on_frame;
    cluster->world.frame_context = watch;
}

void
watch_destroy(struct cluster *cluster)
{
    struct watch *watch = watch_of(cluster);

    cluster->world.on_frame = NULL;
    cluster->world.frame_context = NULL;
    aim_destroy(watch->aim);
    watch_takeovers_destroy(watch->takeovers);
    free(watch);
}
