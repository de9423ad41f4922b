/* SPDX-License-Identifier: Apache-2.0 */
/*
 * repair.c: bad sectors, which clients complain of (REPAIR), which a PULL came across, or which
 * the scrub has found.  See core_internal.h, docs/recovery.md (bad sectors; rule 23).
 *
 *      IDLE --> CHECKING --bad--> NAMING --> MAPPING --> ASKING --> WRITING
 *       ^          |  ^             |           |          | ^         |
 *       +-- none --+  +-- next -----+           |          +-+ next    |
 *       left       |                            |            source    |
 *                  +<----------- sector --------+------------+---------+
 *
 * A range is noted and its REPAIR answered; then one sector after the other is looked at here, and
 * what is fine is left alone: the client may be the one with the bad memory.  Of a bad one version
 * and CRC are known to the index; the metadata service says who else has the segment in-sync, and
 * who gives this very version, and nothing else, replaces it.  If nobody does, and it has not been
 * written anew meanwhile, the sector stays as it is, and the next one who reads it says so again.
 *
 * Of a sector whose leaf was damaged nothing is known (`lost`): whatever an in-sync slot has is
 * offered to the store, with that slot's S; the store knows whether it can be what was lost.  Only
 * under the config epoch and the fence under which the source was asked: with others it may be none
 * any more, and what it alone had was given up, or the volume's new owner was told that it is not
 * here.  Then the sector is looked at from the beginning.
 *
 * Suspending: CHECKING, NAMING, WRITING for the store; MAPPING for the metadata service (with a
 * timer); ASKING for the source (with a timer, which also runs while it is not connected).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/core_internal.h"
#include "chunkserver/peer.h"
#include "chunkserver/scrub.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mutant.h"
#include "dlblk/error.h"

#define REPAIRS_MAX       64u
#define LEAF_SECTORS      64u /* of the engine's map of a chunk */
#define REPAIR_MAP_NS     (5000 * CORE_NS_PER_MS)
#define REPAIR_MAP_TRIES  10u
#define REPAIR_PEER_NS    (100 * CORE_NS_PER_MS) /* until a source is looked for again */
#define REPAIR_PEER_TRIES 20u
#define REPAIR_PULL_NS    (10000 * CORE_NS_PER_MS)

enum repair_state {
    REPAIR_IDLE,
    REPAIR_CHECKING,
    REPAIR_NAMING,
    REPAIR_MAPPING,
    REPAIR_ASKING,
    REPAIR_WRITING,
};

struct repair_range {
    struct chunk_key key;
    uint32_t first_sector, sector_count;
    bool by_scrub; /* which waits for it */
};

struct repair {
    struct chunkserver_core *core;
    enum repair_state state;
    struct repair_range ranges[REPAIRS_MAX]; /* the first is under way */
    uint32_t range_count;
    void *buffer; /* STORE_IO_SECTORS_MAX sectors */
    struct store_pull pull;
    struct store_sector sectors[STORE_IO_SECTORS_MAX]; /* of the store; [0] is the bad one */
    bool lost;                                         /* nothing is known of it */
    uint32_t hopeless_epoch; /* of the map, as long as all in-sync slots say that it is bad there */
    uint64_t bad_version;    /* 0: not known */
    const char *last_word;   /* why it is given up, if it is still the same; NULL: it is not */
    struct store_sector taken; /* of a source */
    uint64_t source_stable;
    uint32_t config_epoch, lease_epoch; /* of the chunk, and its fence, when the source was asked */
    struct store_merge merge;
    struct env_timer timer;
    uint64_t map_id; /* of MAP_GET; 0: not sent */
    uint32_t tries;
    struct pull_source sources[PULL_SOURCES_MAX];
    uint32_t source_count, source_idx;
    struct session_call call;
};

static void repair_step(struct repair *repair);

static struct repair_range *
repair_now(struct repair *repair)
{
    dl_assert(repair->range_count > 0);
    return &repair->ranges[0];
}

static void
repair_log(const struct repair *repair, const char *what)
{
    const struct repair_range *range = &repair->ranges[0];
    char name[80];

    (void)snprintf(name, sizeof(name), "volume %" PRIu64 " segment %u slot %u", range->key.volume,
                   range->key.segment, range->key.slot);
    log_warning("chunkserver", name, "bad sector %u: %s", range->first_sector, what);
}

/* --- ends --- */

static void
repair_forget_range(struct repair *repair)
{
    dl_assert(repair->range_count > 0);
    repair->range_count--;
    memmove(&repair->ranges[0], &repair->ranges[1],
            repair->range_count * sizeof(repair->ranges[0]));
}

/* Who counts bad sectors, and who waits for this one, hears how it went. */
static void
repair_tell(struct repair *repair, enum repair_outcome outcome)
{
    const struct repair_range *range = repair_now(repair);
    struct chunkserver_core *core = repair->core;
    const struct chunk *chunk = chunk_table_find(core->chunks, &range->key);

    if (chunk != NULL &&
        (outcome == REPAIR_DONE || outcome == REPAIR_REWRITTEN || outcome == REPAIR_FAILED))
        findings_bad(core->findings, chunk, range->first_sector, repair->bad_version,
                     outcome != REPAIR_FAILED, repair->hopeless_epoch);
    if (outcome == REPAIR_FINE)
        findings_read(core->findings, &range->key, range->first_sector, range->first_sector + 1, 0);
    if (range->by_scrub)
        scrub_on_repaired(core->scrub, outcome);
}

/* This sector is as good as it will be. */
static void
repair_next_sector(struct repair *repair, enum repair_outcome outcome)
{
    struct repair_range *range = repair_now(repair);

    env_timer_stop(repair->core->env, &repair->timer);
    repair->state = REPAIR_IDLE;
    repair_tell(repair, outcome);
    range->first_sector++;
    if (--range->sector_count == 0)
        repair_forget_range(repair);
    repair_step(repair);
}

static void repair_name(struct repair *repair);

/*
 * Others may lack the version since it is being written anew: it is looked at once more before it
 * counts as bad.
 */
static void
repair_give_up(struct repair *repair, const char *why)
{
    if (repair->bad_version != 0 && repair->last_word == NULL && !repair->core->stopping) {
        env_timer_stop(repair->core->env, &repair->timer);
        repair->last_word = why;
        repair_name(repair);
        return;
    }
    repair->core->stats.repairs_failed++;
    repair_log(repair, why);
    repair_next_sector(repair, REPAIR_FAILED);
}

/* --- the repair --- */

static void repair_next_source(struct repair *repair, int err);

/* The sector from the beginning: what was found out may hold no more. */
static void
repair_again(struct repair *repair)
{
    env_timer_stop(repair->core->env, &repair->timer);
    repair->state = REPAIR_IDLE;
    repair_step(repair);
}

static void
repair_on_merged(struct store_merge *merge, int err)
{
    struct repair *repair = list_entry(merge, struct repair, merge);

    if (repair->core->stopping || err == -DL_E_EPOCH_OLD) {
        repair_again(repair);
        return;
    }
    if (err != 0) {
        repair_give_up(repair, dl_err_str(err));
        return;
    }
    if (repair->lost && merge->taken_sectors == 0) {
        repair_next_source(repair, -DL_E_INDEX_CORRUPT);
        return;
    }
    repair->core->stats.sectors_repaired += merge->taken_sectors;
    repair_log(repair, merge->taken_sectors > 0 ? "repaired" : "written anew meanwhile");
    repair_next_sector(repair, merge->taken_sectors > 0 ? REPAIR_DONE : REPAIR_REWRITTEN);
}

static void
repair_write(struct repair *repair)
{
    struct chunkserver_core *core = repair->core;

    env_timer_stop(core->env, &repair->timer);
    repair->state = REPAIR_WRITING;
    repair->merge = (struct store_merge){
        .key = repair_now(repair)->key,
        .repair = true,
        .config_epoch = repair->config_epoch,
        .lease_epoch = repair->lease_epoch,
        .sectors = &repair->taken,
        .sector_count = 1,
        .payload = repair->buffer,
        .stable_version = repair->source_stable,
        .on_done = repair_on_merged,
    };
    core->store->ops->merge_start(core->store, &repair->merge);
    core_store_started(core);
}

/* --- the sources --- */

static void repair_ask(struct repair *repair);

/*
 * err: of the one before it.  One that lacks the version (then it was never acknowledged) has
 * something in its place, which who recovers gets from there.
 */
static void
repair_next_source(struct repair *repair, int err)
{
    if (err != -DL_E_CRC_DATA && err != -DL_E_MEDIA_READ)
        repair->hopeless_epoch = 0;
    repair->tries = 0;
    if (++repair->source_idx < repair->source_count)
        repair_ask(repair);
    else
        repair_give_up(repair, "no other slot has given its version");
}

/* Whatever the source has, if it is what it says. */
static int
repair_take_lost(struct repair *repair, const struct frame *frame, const Dl__PullRun *run)
{
    bool data = run->kind == SECTOR_DATA;

    if (run->kind > SECTOR_DATA || (run->kind == SECTOR_HOLE) != (run->version == 0) ||
        run->n_crcs != data || frame->payload_bytes != data * SECTOR_BYTES ||
        (data && frame->payload == NULL))
        return -DL_E_MESSAGE_MALFORMED;
    if (data && crc32c(0, repair->buffer, SECTOR_BYTES) != run->crcs[0])
        return -DL_E_CRC_WIRE;
    repair->taken = (struct store_sector){
        .sector = run->first_sector,
        .birth = run->birth,
        .version = run->version,
        .crc = data ? run->crcs[0] : 0,
        .kind = (enum sector_kind)run->kind,
    };
    return 0;
}

/* It must be the same version with the same bytes. */
static int
repair_take_reply(struct repair *repair, const struct frame *frame, const Dl__PullReply *reply)
{
    const struct store_sector *bad = &repair->sectors[0];
    const Dl__PullRun *run = reply->n_runs == 1 ? reply->runs[0] : NULL;

    repair->source_stable = reply->stable_version;
    if (reply->n_runs == 0 && !repair->lost)
        return -DL_E_NOT_FOUND; /* a lower one, or none */
    if (run != NULL && repair->lost && run->first_sector == bad->sector && run->sector_count == 1)
        return repair_take_lost(repair, frame, run);
    if (run == NULL || run->first_sector != bad->sector || run->sector_count != 1 ||
        run->kind != SECTOR_DATA || run->n_crcs != 1 || frame->payload_bytes != SECTOR_BYTES ||
        frame->payload == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    if (DLBLK_MUTANT(chunkserver_repair_any_version))
        return repair_take_lost(repair, frame, run);
    if (run->version != bad->version)
        return -DL_E_NOT_FOUND;
    if (crc32c(0, repair->buffer, SECTOR_BYTES) != run->crcs[0] || run->crcs[0] != bad->crc)
        return -DL_E_CRC_WIRE;
    repair->taken = *bad;
    return 0;
}

static int
repair_on_reply(struct session_call *call, const struct frame *frame)
{
    struct repair *repair = list_entry(call, struct repair, call);
    ProtobufCMessage *message;
    int err;

    if (frame->status != 0)
        return frame->status;
    message = frame_unpack(frame, &dl__pull_reply__descriptor);
    if (message == NULL)
        return -DL_E_MESSAGE_MALFORMED;
    err = repair_take_reply(repair, frame, (const void *)message);
    protobuf_c_message_free_unpacked(message, NULL);
    return err;
}

static void *
repair_on_payload(struct session_call *call, const struct frame *frame)
{
    struct repair *repair = list_entry(call, struct repair, call);

    return frame->payload_bytes <= BUFFER_BYTES_MAX ? repair->buffer : NULL;
}

/* Is the chunk what it was when the source was asked? */
static bool
repair_is_current(struct repair *repair)
{
    const struct chunk_key *key = &repair_now(repair)->key;
    const struct chunk *chunk = chunk_table_find(repair->core->chunks, key);

    return chunk != NULL && chunk->attempt == 0 && !slot_is_beginning(repair->core, key) &&
           chunk->config_epoch == repair->config_epoch &&
           chunk->volume->lease_epoch == repair->lease_epoch;
}

static void
repair_on_pulled(struct session_call *call, int err)
{
    struct repair *repair = list_entry(call, struct repair, call);

    if (repair->core->stopping)
        repair->state = REPAIR_IDLE;
    else if (err != 0)
        repair_next_source(repair, err);
    else if (!repair_is_current(repair))
        repair_again(repair);
    else
        repair_write(repair);
}

static bool
repair_send_pull(struct repair *repair, struct client_session *session)
{
    const struct chunk *chunk = chunk_table_find(repair->core->chunks, &repair_now(repair)->key);
    Dl__Pull message = DL__PULL__INIT;
    struct frame_out *frame;
    uint64_t request_id;
    uint8_t wanted = 1;

    repair->config_epoch = chunk == NULL ? 1 : chunk->config_epoch;
    repair->lease_epoch = chunk == NULL ? 0 : chunk->volume->lease_epoch;
    message.volume = repair_now(repair)->key.volume;
    message.segment = repair_now(repair)->key.segment;
    message.slot = repair->sources[repair->source_idx].slot;
    message.config_epoch = repair->config_epoch;
    message.first_sector = repair->sectors[0].sector;
    message.window_sectors = 1;
    message.above_version = repair->sectors[0].version - 1;
    if (repair->lost) {
        message.above_version = UINT64_MAX;
        message.wanted = (ProtobufCBinaryData){1, &wanted};
    }
    request_id = client_session_begin(session, &repair->call, OP_PULL);
    if (request_id == 0)
        return false;
    frame = frame_out_create_message(OP_PULL, 0, request_id, 0, &message.base);
    if (frame == NULL) {
        (void)client_session_cancel(&repair->call);
        return false;
    }
    client_session_send_message(&repair->call, frame);
    return true;
}

/* The source in turn, when it is connected. */
static void
repair_ask(struct repair *repair)
{
    struct chunkserver_core *core = repair->core;
    struct peer *peer = peer_get(core, &repair->sources[repair->source_idx]);

    repair->state = REPAIR_ASKING;
    if (peer != NULL && client_session_is_up(&peer->session) &&
        repair_send_pull(repair, &peer->session))
        env_timer_start(core->env, &repair->timer, REPAIR_PULL_NS);
    else if (repair->tries++ < REPAIR_PEER_TRIES)
        env_timer_start(core->env, &repair->timer, REPAIR_PEER_NS);
    else
        repair_next_source(repair, -DL_E_CONNECTION_LOST);
}

/* --- who has it --- */

static void
repair_add_source(struct repair *repair, const Dl__Slot *slot, const Dl__ServerAddress *server)
{
    if (repair->source_count < PULL_SOURCES_MAX &&
        peer_take_source(repair->core, slot, server, &repair->sources[repair->source_count]))
        repair->source_count++;
    else if (slot->state == DL__SLOT_STATE__SLOT_IN_SYNC &&
             slot->server_id != repair->core->meta.server_id)
        repair->hopeless_epoch = 0; /* it can't be asked */
}

static void
repair_take_map(struct repair *repair, const Dl__MapReply *map)
{
    const Dl__Segment *segment = map->n_segments == 1 ? map->segments[0] : NULL;

    repair->source_count = 0;
    repair->source_idx = 0;
    repair->tries = 0;
    if (segment != NULL && segment->index != repair_now(repair)->key.segment)
        segment = NULL;
    repair->hopeless_epoch = segment == NULL || repair->lost ? 0 : segment->config_epoch;
    if (segment != NULL)
        for (size_t i = 0; i < segment->n_slots; i++)
            repair_add_source(repair, segment->slots[i],
                              peer_map_server(map, segment->slots[i]->server_id));
    if (repair->source_count == 0)
        repair_give_up(repair, "no other slot is in-sync");
    else
        repair_ask(repair);
}

void
repair_on_map(struct chunkserver_core *core, const struct frame *frame)
{
    struct repair *repair = core->repair;
    ProtobufCMessage *message;

    if (repair == NULL || repair->state != REPAIR_MAPPING || repair->map_id != frame->request_id)
        return;
    repair->map_id = 0;
    env_timer_stop(core->env, &repair->timer);
    message = frame->status == 0 ? frame_unpack(frame, &dl__map_reply__descriptor) : NULL;
    if (message == NULL) {
        repair_give_up(repair, "the metadata service does not say who else has it");
        return;
    }
    repair_take_map(repair, (const void *)message);
    protobuf_c_message_free_unpacked(message, NULL);
}

/* The metadata service may be away for a while. */
static void
repair_get_map(struct repair *repair)
{
    Dl__MapGet message = DL__MAP_GET__INIT;

    message.volume = repair_now(repair)->key.volume;
    message.first = repair_now(repair)->key.segment;
    message.max = 1;
    repair->state = REPAIR_MAPPING;
    repair->map_id = meta_link_request(repair->core, OP_MAP_GET, &message.base);
    env_timer_start(repair->core->env, &repair->timer, REPAIR_MAP_NS);
}

/* --- what is here --- */

static void
repair_on_named(struct store_pull *pull, int err)
{
    struct repair *repair = list_entry(pull, struct repair, pull);

    if (repair->core->stopping) {
        repair->state = REPAIR_IDLE;
        core_stop_step(repair->core);
    } else if (err != 0) {
        repair_give_up(repair, dl_err_str(err));
    } else if (pull->sector_count == 0 || pull->data_sectors == 0 ||
               (repair->last_word != NULL && repair->sectors[0].version != repair->bad_version)) {
        repair_next_sector(repair, REPAIR_REWRITTEN);
    } else if (repair->last_word != NULL) {
        repair_give_up(repair, repair->last_word);
    } else {
        repair->bad_version = repair->sectors[0].version;
        repair->tries = 0;
        repair_get_map(repair);
    }
}

static void
repair_pull(struct repair *repair, enum repair_state state,
            void (*on_done)(struct store_pull *pull, int err))
{
    struct chunkserver_core *core = repair->core;
    const struct repair_range *range = repair_now(repair);

    repair->state = state;
    repair->pull = (struct store_pull){
        .key = range->key,
        .first_sector = range->first_sector,
        .window_sectors = 1,
        .without_data = state == REPAIR_NAMING,
        .buffer = repair->buffer,
        .sectors = repair->sectors,
        .on_done = on_done,
    };
    core->store->ops->pull_start(core->store, &repair->pull);
    core_store_started(core);
}

static void
repair_name(struct repair *repair)
{
    repair_pull(repair, REPAIR_NAMING, repair_on_named);
}

static void
repair_on_checked(struct store_pull *pull, int err)
{
    struct repair *repair = list_entry(pull, struct repair, pull);

    if (repair->core->stopping) {
        repair->state = REPAIR_IDLE;
        core_stop_step(repair->core);
    } else if (err == -DL_E_INDEX_CORRUPT) {
        repair->core->stats.sectors_bad++;
        repair->lost = true;
        repair->sectors[0] = (struct store_sector){.sector = repair_now(repair)->first_sector};
        repair->tries = 0;
        repair_get_map(repair);
    } else if (err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ) {
        repair->core->stats.sectors_bad++;
        repair->lost = false;
        repair_name(repair);
    } else if (err == -DL_E_CHUNK_UNKNOWN || err == -DL_E_NOT_IN_SYNC) {
        repair_next_sector(repair, REPAIR_GONE);
    } else if (err != 0) {
        repair_give_up(repair, dl_err_str(err));
    } else {
        repair_next_sector(repair, REPAIR_FINE);
    }
}

/* The next sector that somebody has complained about. */
static void
repair_step(struct repair *repair)
{
    const struct chunk *chunk;

    dl_assert(repair->state == REPAIR_IDLE);
    while (repair->range_count > 0 && !repair->core->stopping) {
        chunk = chunk_table_find(repair->core->chunks, &repair_now(repair)->key);
        if (chunk != NULL && chunk->attempt == 0 &&
            !slot_is_beginning(repair->core, &repair_now(repair)->key)) {
            repair->bad_version = 0;
            repair->last_word = NULL;
            repair->hopeless_epoch = 0;
            repair_pull(repair, REPAIR_CHECKING, repair_on_checked);
            return;
        }
        repair_tell(repair, REPAIR_GONE); /* or it recovers anyway */
        repair_forget_range(repair);
    }
    core_stop_step(repair->core);
}

static void
repair_on_timer(struct env_timer *timer)
{
    struct repair *repair = list_entry(timer, struct repair, timer);

    if (repair->state == REPAIR_MAPPING) {
        if (repair->tries++ < REPAIR_MAP_TRIES)
            repair_get_map(repair);
        else
            repair_give_up(repair, "the metadata service does not answer");
    } else if (!client_session_call_is_active(&repair->call)) {
        repair_ask(repair); /* is it connected now? */
    } else if (client_session_cancel(&repair->call)) {
        repair_next_source(repair, -DL_E_TIMEOUT);
    }
}

/* --- the request --- */

static struct repair *
repair_get(struct chunkserver_core *core)
{
    struct repair *repair = core->repair;

    if (repair != NULL)
        return repair;
    repair = calloc(1, sizeof(*repair));
    if (repair == NULL)
        return NULL;
    repair->buffer = buffer_pool_acquire(core->pull_buffers, BUFFER_BYTES_MAX);
    dl_assert(repair->buffer != NULL);
    repair->core = core;
    repair->timer.fn = repair_on_timer;
    repair->call.on_reply = repair_on_reply;
    repair->call.on_payload = repair_on_payload;
    repair->call.on_done = repair_on_pulled;
    core->repair = repair;
    return repair;
}

static bool
repair_is_noted(const struct repair *repair, const struct repair_range *range)
{
    for (uint32_t i = 0; i < repair->range_count; i++) {
        const struct repair_range *noted = &repair->ranges[i];

        if (memcmp(&noted->key, &range->key, sizeof(range->key)) == 0 && !range->by_scrub &&
            noted->first_sector <= range->first_sector &&
            noted->first_sector + noted->sector_count >= range->first_sector + range->sector_count)
            return true;
    }
    return false;
}

static int
repair_note(struct chunkserver_core *core, const struct repair_range *range)
{
    struct repair *repair = repair_get(core);

    if (repair == NULL)
        return -DL_E_NO_MEMORY;
    if (chunk_table_find(core->chunks, &range->key) == NULL)
        return -DL_E_CHUNK_UNKNOWN;
    if (repair_is_noted(repair, range))
        return 0;
    if (repair->range_count == REPAIRS_MAX)
        return -DL_E_BUSY;
    repair->ranges[repair->range_count++] = *range;
    if (repair->state == REPAIR_IDLE && repair->range_count == 1)
        repair_step(repair);
    return 0;
}

int
repair_by_scrub(struct chunkserver_core *core, const struct chunk_key *key, uint32_t sector)
{
    const struct repair_range range = {
        .key = *key, .first_sector = sector, .sector_count = 1, .by_scrub = true};

    return repair_note(core, &range);
}

void
repair_found(struct chunkserver_core *core, const struct chunk_key *key, uint32_t sector)
{
    struct repair_range range = {
        .key = *key,
        .first_sector = sector,
        .sector_count = LEAF_SECTORS - sector % LEAF_SECTORS,
    };

    (void)repair_note(core, &range); /* whoever comes across it next says so again */
}

static int
repair_message_check(const Dl__Repair *message)
{
    if (message == NULL || message->volume == 0 || message->slot >= WIRE_SLOTS_MAX ||
        message->sector_count == 0 || message->sector_count > STORE_IO_SECTORS_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    if (message->first_sector >= WIRE_CHUNK_SECTORS_MAX ||
        message->sector_count > WIRE_CHUNK_SECTORS_MAX - message->first_sector)
        return -DL_E_RANGE;
    return 0;
}

static int
repair_complaint(struct chunkserver_core *core, const Dl__Repair *message)
{
    struct repair_range range = {
        .key = {.volume = message->volume, .segment = message->segment, .slot = message->slot},
        .first_sector = message->first_sector,
        .sector_count = message->sector_count,
    };

    return repair_note(core, &range);
}

void
repair_receive(struct session *session, const struct frame *frame)
{
    ProtobufCMessage *message = frame_unpack(frame, &dl__repair__descriptor);
    Dl__RepairReply reply = DL__REPAIR_REPLY__INIT;
    int err = repair_message_check((const void *)message);

    session->core->stats.repairs++;
    if (err == 0)
        err = repair_complaint(session->core, (const void *)message);
    if (err != 0)
        session_refuse(session, frame, err);
    else
        session_send(session, frame_out_create_message(OP_REPAIR, FRAME_REPLY, frame->request_id, 0,
                                                       &reply.base));
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}

/* --- life --- */

void
repair_stop(struct chunkserver_core *core)
{
    struct repair *repair = core->repair;

    if (repair == NULL)
        return;
    env_timer_stop(core->env, &repair->timer);
    repair->range_count = repair->state == REPAIR_IDLE ? 0 : 1;
    if (repair->state == REPAIR_MAPPING)
        repair->state = REPAIR_IDLE;
    if (repair->state == REPAIR_ASKING &&
        (!client_session_call_is_active(&repair->call) || client_session_cancel(&repair->call)))
        repair->state = REPAIR_IDLE;
}

bool
repair_is_idle(const struct chunkserver_core *core)
{
    return core->repair == NULL || core->repair->state == REPAIR_IDLE;
}

void
repair_free(struct chunkserver_core *core)
{
    free(core->repair);
}
