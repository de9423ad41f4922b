/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubs.  What chunkservers do by themselves they tell with their heartbeats: how far it is (which
 * is remembered for them, now and then) and what they have found; bad sectors come by BAD_SECTORS,
 * too, and go to the log.
 *
 * A scrub of a volume, SCRUB, is asked of each server that has slots of it: SCRUB_VOLUME, again and
 * again until it is done there.  The id says which scrub is meant, so nothing has to be remembered
 * here: a service that was started anew gets the same id from who waits, and the servers tell how
 * far they are; a server that was started anew begins again.  One that is down is not waited for,
 * but named.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define PERSIST_EVERY_NS (600 * NS_PER_S)
#define FINDINGS_MAX     64u /* of one BAD_SECTORS */
#define BAD_VOLUMES_MAX  64u /* of one SERVER_HEARTBEAT */

struct scrub_part {
    struct meta_scrub *scrub;
    uint32_t server_id;
    uint64_t slot_count; /* by the map, when it began */
    struct meta_command command;
    bool heard, done, absent;
    uint64_t chunks, chunks_done, sectors_done;
    Dl__ScrubCounts counts;
    uint64_t skipped, uncompared;
};

struct meta_scrub {
    struct list node; /* of core->scrubs, until it is done */
    struct meta_core *core;
    struct meta_volume *volume;
    uint8_t id[META_ID_BYTES];
    bool done;
    uint64_t begun_ns, ended_ns;
    uint64_t begun_ms, ended_ms;
    uint32_t part_count;
    struct scrub_part parts[];
};

/* Without what else is in a message. */
static Dl__ScrubCounts
counts_of(const Dl__ScrubCounts *message)
{
    Dl__ScrubCounts counts = DL__SCRUB_COUNTS__INIT;

    if (message == NULL)
        return counts;
    counts.sectors = message->sectors;
    counts.bad = message->bad;
    counts.repaired = message->repaired;
    counts.left_bad = message->left_bad;
    counts.mismatches = message->mismatches;
    return counts;
}

/* --- what servers tell by themselves --- */

static void
server_take_bad_volumes(struct meta_server *server, const Dl__ServerHeartbeat *message)
{
    uint32_t count = (uint32_t)min_u64(message->n_bad_volumes, BAD_VOLUMES_MAX);

    free(server->bad_volumes);
    server->bad_volumes = count == 0 ? NULL : meta_alloc(count * sizeof(Dl__BadVolume));
    server->bad_volume_count = count;
    for (uint32_t i = 0; i < count; i++) {
        const Dl__BadVolume *from = message->bad_volumes[i];
        Dl__BadVolume *bad = &server->bad_volumes[i];

        dl__bad_volume__init(bad); /* without what else is in the message */
        bad->volume = from->volume;
        bad->bad = from->bad;
        bad->lost = from->lost;
        bad->segment = from->segment;
        bad->sector = from->sector;
    }
}

const Dl__BadVolume *
meta_scrub_bad_volume(const struct meta_server *server, uint64_t volume_id)
{
    for (uint32_t i = 0; i < server->bad_volume_count; i++)
        if (server->bad_volumes[i].volume == volume_id)
            return &server->bad_volumes[i];
    return NULL;
}

void
meta_scrub_take_heartbeat(struct meta_server *server, const Dl__ServerHeartbeat *message)
{
    const Dl__ScrubPosition *position = message->scrub;

    server->scrub_counts = counts_of(message->scrub_counts);
    server_take_bad_volumes(server, message);
    if (position == NULL)
        return; /* one that has none yet */
    server->scrub = (struct scrub_place){
        .volume = position->volume,
        .segment = position->segment,
        .slot = position->slot,
        .completed_ms = position->completed_ms,
    };
}

void
meta_scrub_fill_position(const struct meta_server *server, Dl__ScrubPosition *position)
{
    position->volume = server->scrub.volume;
    position->segment = server->scrub.segment;
    position->slot = server->scrub.slot;
    position->completed_ms = server->scrub.completed_ms;
}

bool
meta_scrub_wants_persist(const struct meta_server *server, uint64_t now_ns)
{
    const struct scrub_place *now = &server->scrub, *then = &server->desc.scrub;

    if (now->completed_ms != then->completed_ms)
        return true;
    return (now->volume != then->volume || now->segment != then->segment ||
            now->slot != then->slot) &&
           (server->session == NULL || now_ns - server->scrub_persisted_ns >= PERSIST_EVERY_NS);
}

/* --- BAD_SECTORS --- */

static void
bad_sectors_put(struct meta_op *op, const Dl__BadSectorFinding *finding)
{
    const struct meta_server *server = op->session->server;
    const struct meta_volume *volume = meta_volume_by_id(op->core, finding->volume);
    char where[META_NAME_BYTES_MAX + 96], more[64] = "";

    (void)snprintf(where, sizeof(where), "volume %s, segment %" PRIu32,
                   volume != NULL ? volume->desc.name : "(deleted)", finding->segment);
    if (finding->segments > 1)
        (void)snprintf(more, sizeof(more), ", the first of %" PRIu32 " segments",
                       finding->segments);
    if (finding->mismatches > 0)
        meta_event_put(op, DL__EVENT_KIND__EVENT_BAD_SECTOR, server, volume, finding->segment,
                       finding->segments,
                       "server %s: %s, sector %" PRIu32 "%s: slots %" PRIu32 " and %" PRIu32
                       " differ in %" PRIu64 " sectors, each with a checksum that fits; nothing "
                       "was changed",
                       meta_server_text(server), where, finding->first_sector, more, finding->slot,
                       finding->other_slot, finding->mismatches);
    else
        meta_event_put(op, DL__EVENT_KIND__EVENT_BAD_SECTOR, server, volume, finding->segment,
                       finding->segments,
                       "server %s: %s, slot %" PRIu32 ", sector %" PRIu32 "%s: %" PRIu64
                       " bad sectors, %" PRIu64 " of them repaired",
                       meta_server_text(server), where, finding->slot, finding->first_sector, more,
                       finding->bad, finding->repaired);
}

static void
bad_sectors_on_committed(struct meta_op *op)
{
    Dl__BadSectorsReply reply = DL__BAD_SECTORS_REPLY__INIT;

    meta_op_reply(op, &reply.base);
}

void
meta_run_bad_sectors(struct meta_op *op)
{
    const Dl__BadSectors *message = (const Dl__BadSectors *)op->message;
    struct dl_error err;

    if (op->session->server == NULL || message->n_findings == 0 ||
        message->n_findings > FINDINGS_MAX) {
        if (op->session->server == NULL)
            (void)dl_error_set(&err, -DL_E_SERVER_UNKNOWN, "BAD_SECTORS before SERVER_REGISTER");
        else
            (void)dl_error_set(&err, -DL_E_MESSAGE_MALFORMED, "BAD_SECTORS with %zu findings",
                               message->n_findings);
        meta_op_fail(op, &err);
        return;
    }
    if (!meta_op_take(op, &op->core->recovery->event_serial))
        return;
    for (size_t i = 0; i < message->n_findings; i++)
        bad_sectors_put(op, message->findings[i]);
    meta_op_commit(op, bad_sectors_on_committed);
}

/* --- a scrub of a volume: the servers' parts --- */

static void
part_send(struct meta_command *command)
{
    struct scrub_part *part = list_entry(command, struct scrub_part, command);
    Dl__ScrubVolume message = DL__SCRUB_VOLUME__INIT;

    message.volume = part->scrub->volume->desc.id;
    message.scrub_id = (ProtobufCBinaryData){META_ID_BYTES, part->scrub->id};
    meta_command_send(command, OP_SCRUB_VOLUME, &message.base);
}

static bool
part_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct scrub_part *part = list_entry(command, struct scrub_part, command);
    ProtobufCMessage *message = frame_unpack(frame, &dl__scrub_volume_reply__descriptor);
    const Dl__ScrubVolumeReply *reply = (const void *)message;

    if (reply == NULL)
        return false;
    part->heard = true;
    part->done = reply->done;
    part->chunks = reply->chunks;
    part->chunks_done = reply->chunks_done;
    part->sectors_done = reply->sectors_done;
    part->counts = counts_of(reply->counts);
    part->skipped = reply->chunks_skipped;
    part->uncompared = reply->uncompared;
    protobuf_c_message_free_unpacked(message, NULL);
    return true;
}

/* Returns whether it is waited for. */
static bool
part_step(struct scrub_part *part)
{
    struct meta_server *server = meta_server_by_id(part->scrub->core, part->server_id);

    part->absent = !part->done && (server == NULL || server->forgotten || !server->up);
    if (part->absent || part->done) {
        meta_command_cancel(&part->command);
        return false;
    }
    if (part->command.server == NULL)
        meta_command_start(&part->command, server, false);
    return true;
}

static void
scrub_step(struct meta_scrub *scrub)
{
    bool waits = false;

    for (uint32_t i = 0; i < scrub->part_count; i++)
        waits |= part_step(&scrub->parts[i]);
    if (waits)
        return;
    scrub->done = true;
    scrub->ended_ns = env_now_ns(scrub->core->env);
    scrub->ended_ms = scrub->core->env->ops->wall_ms(scrub->core->env);
    list_remove(&scrub->node);
    meta_log(scrub->core, META_LOG_INFO, "scrub", "volume %s: scrubbed in %s",
             scrub->volume->desc.name, text_of_duration(scrub->ended_ns - scrub->begun_ns).text);
}

void
meta_scrub_tick(struct meta_core *core)
{
    struct meta_scrub *scrub, *following;

    list_for_each_entry_safe (scrub, following, &core->scrubs, node)
        scrub_step(scrub);
}

/* --- life --- */

static void
scrub_create(struct meta_core *core, struct meta_volume *volume, const uint8_t id[META_ID_BYTES])
{
    size_t parts_bytes = volume->server_count * sizeof(struct scrub_part);
    struct meta_scrub *scrub = meta_alloc(sizeof(*scrub) + parts_bytes);

    scrub->core = core;
    scrub->volume = volume;
    memcpy(scrub->id, id, META_ID_BYTES);
    scrub->begun_ns = env_now_ns(core->env);
    scrub->begun_ms = core->env->ops->wall_ms(core->env);
    for (uint32_t i = 0; i < volume->server_count; i++) {
        struct scrub_part *part = &scrub->parts[i];

        part->scrub = scrub;
        part->server_id = volume->servers[i].server_id;
        part->slot_count = volume->servers[i].slot_count;
        part->counts = counts_of(NULL);
        part->command.name = "SCRUB_VOLUME";
        part->command.volume_id = volume->desc.id;
        part->command.send = part_send;
        part->command.on_reply = part_on_reply;
    }
    scrub->part_count = volume->server_count;
    list_push_back(&core->scrubs, &scrub->node);
    volume->scrub = scrub;
    scrub_step(scrub);
}

void
meta_scrub_free(struct meta_volume *volume)
{
    struct meta_scrub *scrub = volume->scrub;

    if (scrub == NULL)
        return;
    for (uint32_t i = 0; i < scrub->part_count; i++)
        meta_command_cancel(&scrub->parts[i].command);
    if (!scrub->done)
        list_remove(&scrub->node);
    volume->scrub = NULL;
    free(scrub);
}

/* --- how far it is --- */

static void
fill_add_part(struct scrub_message *entry, const struct scrub_part *part, uint64_t chunk_bytes)
{
    Dl__ScrubReply *message = &entry->message;
    uint64_t chunks = part->heard ? part->chunks : part->slot_count;

    if (part->absent && message->n_servers_absent < META_SCRUB_ABSENT_MAX)
        message->servers_absent[message->n_servers_absent++] = part->server_id;
    if (part->absent)
        chunks = part->chunks_done;
    message->total_bytes += chunks * chunk_bytes;
    message->done_bytes += part->chunks_done * chunk_bytes +
                           (part->done ? 0 : min_u64(part->sectors_done * 4096, chunk_bytes));
    entry->counts.sectors += part->counts.sectors;
    entry->counts.bad += part->counts.bad;
    entry->counts.repaired += part->counts.repaired;
    entry->counts.left_bad += part->counts.left_bad;
    entry->counts.mismatches += part->counts.mismatches;
    message->chunks_skipped += part->skipped;
    message->uncompared += part->uncompared;
}

void
meta_scrub_fill(const struct meta_core *core, const struct meta_volume *volume,
                struct scrub_message *entry)
{
    const struct meta_scrub *scrub = volume->scrub;
    Dl__ScrubReply *message = &entry->message;
    uint64_t passed_ms;

    dl__scrub_reply__init(message);
    dl__scrub_counts__init(&entry->counts);
    message->state = (char *)(uintptr_t)(scrub == NULL ? "none" : scrub->done ? "done" : "running");
    message->counts = &entry->counts;
    message->servers_absent = entry->absent;
    if (scrub == NULL)
        return;
    memcpy(entry->id, scrub->id, META_ID_BYTES);
    message->scrub_id = (ProtobufCBinaryData){META_ID_BYTES, entry->id};
    for (uint32_t i = 0; i < scrub->part_count; i++)
        fill_add_part(entry, &scrub->parts[i], meta_volume_chunk_bytes(&volume->desc));
    message->done_bytes = min_u64(message->done_bytes, message->total_bytes);
    message->begun_ms = scrub->begun_ms;
    message->ended_ms = scrub->ended_ms;
    passed_ms = (env_now_ns(core->env) - scrub->begun_ns) / NS_PER_MS;
    if (!scrub->done && message->done_bytes >= passed_ms && passed_ms > 0)
        message->left_s = (message->total_bytes - message->done_bytes) /
                              (message->done_bytes / passed_ms) / 1000 +
                          1;
}

/* --- SCRUB --- */

static struct meta_volume *
scrub_volume_find(struct meta_op *op, const char *name)
{
    struct meta_volume *volume = meta_volume_by_name(op->core, name);
    struct dl_error err;

    if (volume != NULL && !volume->creating && strcmp(volume->desc.name, name) == 0)
        return volume;
    (void)dl_error_set(&err, -DL_E_VOLUME_UNKNOWN, "volume %s does not exist",
                       text_quote(name).text);
    dl_error_hint(&err, "dlblk volume list shows all volumes");
    meta_op_fail(op, &err);
    return NULL;
}

void
meta_run_scrub(struct meta_op *op)
{
    const Dl__Scrub *message = (const Dl__Scrub *)op->message;
    struct meta_volume *volume;
    struct scrub_message entry;
    struct dl_error err;

    if (!meta_id_is_valid(message->scrub_id)) {
        (void)dl_error_set(&err, -DL_E_MESSAGE_MALFORMED, "SCRUB without an id of %u bytes",
                           META_ID_BYTES);
        meta_op_fail(op, &err);
        return;
    }
    volume = scrub_volume_find(op, message->name);
    if (volume == NULL)
        return;
    if (volume->scrub == NULL ||
        (volume->scrub->done &&
         memcmp(volume->scrub->id, message->scrub_id.data, META_ID_BYTES) != 0)) {
        meta_scrub_free(volume);
        scrub_create(op->core, volume, message->scrub_id.data);
    }
    meta_scrub_fill(op->core, volume, &entry);
    meta_op_reply(op, &entry.message.base);
}
