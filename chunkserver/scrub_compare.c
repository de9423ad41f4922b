/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub_compare.c: what a slot has, against what the others have.  See scrub_internal.h; the states
 * are in scrub.c.
 *
 * Comparing is the work of the lowest in-sync slot whose server is there.  What can be said of two
 * in-sync slots, with this one's S from before it looked: every version up to S is in both.  So a
 * sector has the same version in both, or a higher one than S in one; the same version has the same
 * CRC.  A zero extent may be forgotten, so it is as good as a hole.
 *
 * Where this does not hold this slot looks once more: what was discarded between its look and the
 * other one's, and forgotten already, was a hole there, with no version to tell that it is new.
 * Zeroes are forgotten when all slots have them, so this slot would have had them by then.  If it
 * has still what it had, the map is asked for again: if the segment's config epoch has not changed
 * meanwhile, then both slots were in-sync all the time, and they differ.  That is told, and not
 * touched: nobody knows which one is right.
 */
#include <stdio.h>
#include <string.h>

#include "chunkserver/scrub_internal.h"
#include "common/align.h"
#include "common/assert.h"
#include "dlblk/error.h"

#define MAP_NS       (5000 * CORE_NS_PER_MS)
#define ASK_NS       (10000 * CORE_NS_PER_MS)
#define ASK_RETRY_NS (100 * CORE_NS_PER_MS)
#define ASK_TRIES    20u

static void scrub_look(struct scrub *scrub);
static void scrub_ask(struct scrub *scrub);

/* --- differences between slots --- */

static void
scrub_compare_end(struct scrub *scrub)
{
    scrub->comparing = false;
    scrub_leave_chunk(scrub);
}

/* It could not be done: this is no finding, but nobody shall think that it was. */
static void
scrub_compare_fail(struct scrub *scrub)
{
    scrub->incomplete = true;
    scrub_compare_end(scrub);
}

static void
scrub_get_map(struct scrub *scrub, enum scrub_state state)
{
    Dl__MapGet message = DL__MAP_GET__INIT;

    message.volume = scrub->key.volume;
    message.first = scrub->key.segment;
    message.max = 1;
    scrub->state = state;
    scrub->map_id = meta_link_request(scrub->core, OP_MAP_GET, &message.base);
    if (scrub->map_id == 0)
        scrub_compare_fail(scrub);
    else
        env_timer_start(scrub->core->env, &scrub->timer, MAP_NS);
}

void
scrub_compare_begin(struct scrub *scrub)
{
    scrub->comparing = true;
    scrub->sector = 0;
    scrub->window = STORE_WINDOW_SECTORS_MAX;
    scrub_get_map(scrub, SCRUB_MAPPING);
}

/* The slots to compare with; none if that is another one's work, or there is no other. */
static void
scrub_take_slots(struct scrub *scrub, const Dl__MapReply *map, const Dl__Segment *segment)
{
    uint32_t lowest = UINT32_MAX;
    bool absent = false;

    scrub->peer_count = 0;
    for (size_t i = 0; i < segment->n_slots; i++) {
        const Dl__Slot *slot = segment->slots[i];
        const Dl__ServerAddress *server = peer_map_server(map, slot->server_id);

        if (slot->state != DL__SLOT_STATE__SLOT_IN_SYNC || server == NULL)
            continue;
        if (server->state == DL__SERVER_STATE__SERVER_DOWN) {
            absent = true;
            continue;
        }
        lowest = min_u32(lowest, slot->number);
        if (scrub->peer_count < PULL_SOURCES_MAX &&
            peer_take_source(scrub->core, slot, server, &scrub->peers[scrub->peer_count]))
            scrub->peer_count++;
    }
    for (size_t i = 0; i < segment->n_slots; i++)
        if (segment->slots[i]->number == lowest &&
            segment->slots[i]->state == DL__SLOT_STATE__SLOT_IN_SYNC &&
            segment->slots[i]->server_id == scrub->core->meta.server_id &&
            lowest == scrub->key.slot) {
            scrub->incomplete = absent;
            return;
        }
    scrub->peer_count = 0;
}

static void
scrub_take_map(struct scrub *scrub, const Dl__MapReply *map)
{
    const Dl__Segment *segment = map->n_segments == 1 ? map->segments[0] : NULL;

    if (segment == NULL || segment->index != scrub->key.segment) {
        scrub_compare_end(scrub); /* it is no part of the volume any more */
        return;
    }
    scrub->config_epoch = segment->config_epoch;
    scrub->end_sector = WIRE_CHUNK_SECTORS_MAX;
    if (map->segment_sectors != 0)
        scrub->end_sector = min_u32(map->segment_sectors, WIRE_CHUNK_SECTORS_MAX);
    scrub_take_slots(scrub, map, segment);
    if (scrub->peer_count == 0)
        scrub_compare_end(scrub);
    else
        scrub_look(scrub);
}

static void
scrub_report_difference(struct scrub *scrub)
{
    const struct pull_source *peer = &scrub->peers[scrub->peer_idx];
    char what[120];

    (void)snprintf(what, sizeof(what), "%u sectors, from %u on, are not what slot %u has",
                   scrub->differ_count, scrub->differ_first, peer->slot);
    scrub_log(scrub, what);
    if (scrub->job != NULL)
        scrub->job->counts.mismatches += scrub->differ_count;
    findings_mismatch(scrub->core->findings, &scrub->key, scrub->differ_first, scrub->differ_count,
                      peer->slot);
}

/* Compared with all others: the next window. */
static void
scrub_compared_window(struct scrub *scrub)
{
    scrub->sector = scrub->own.next_sector;
    scrub_widen(scrub);
    if (scrub->sector >= scrub->end_sector || scrub->peer_count == 0)
        scrub_compare_end(scrub);
    else if (scrub_has_foreground(scrub))
        scrub_pause(scrub, SCRUB_REST_MIN_NS, scrub_look);
    else
        scrub_look(scrub);
}

/* This slot's part of the window is done, or given up. */
static void
scrub_next_peer(struct scrub *scrub)
{
    scrub->tries = 0;
    scrub->peer_sector = scrub->sector;
    if (++scrub->peer_idx < scrub->peer_count)
        scrub_ask(scrub);
    else
        scrub_compared_window(scrub);
}

static void
scrub_compared(struct scrub *scrub)
{
    scrub->tries = 0;
    if (scrub->peer_sector < scrub->own.next_sector)
        scrub_ask(scrub);
    else
        scrub_next_peer(scrub);
}

static void
scrub_confirm(struct scrub *scrub, const Dl__MapReply *map)
{
    const Dl__Segment *segment = map->n_segments == 1 ? map->segments[0] : NULL;

    if (segment != NULL && segment->index == scrub->key.segment &&
        segment->config_epoch == scrub->config_epoch)
        scrub_report_difference(scrub);
    else
        scrub->incomplete = true; /* the next scrub compares them again */
    scrub_compared(scrub);
}

void
scrub_on_map(struct scrub *scrub, const struct frame *frame)
{
    ProtobufCMessage *message;

    if ((scrub->state != SCRUB_MAPPING && scrub->state != SCRUB_CONFIRMING) ||
        scrub->map_id != frame->request_id)
        return;
    scrub->map_id = 0;
    env_timer_stop(scrub->core->env, &scrub->timer);
    message = frame->status == 0 ? frame_unpack(frame, &dl__map_reply__descriptor) : NULL;
    if (frame->status == -DL_E_VOLUME_UNKNOWN)
        scrub_compare_end(scrub);
    else if (message == NULL)
        scrub_compare_fail(scrub);
    else if (scrub->state == SCRUB_MAPPING)
        scrub_take_map(scrub, (const void *)message);
    else
        scrub_confirm(scrub, (const void *)message);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}

/* Zero extents are forgotten some day, each slot's at its own time. */
static bool
is_empty(const struct store_sector *sector)
{
    return sector->kind != SECTOR_DATA;
}

static bool
sectors_differ(const struct store_sector *own, const struct store_sector *peer, uint64_t own_stable)
{
    if (is_empty(own) && is_empty(peer))
        return false;
    if (own->version == peer->version)
        return own->kind != peer->kind || own->crc != peer->crc;
    return max_u64(own->version, peer->version) <= own_stable;
}

static bool
sector_has_changed(const struct store_sector *before, const struct store_sector *now)
{
    return before->version != now->version || before->kind != now->kind || before->crc != now->crc;
}

/* Looks ascend, and so do the sectors asked for: *idx only rises.  What is not named is a hole. */
static const struct store_sector *
look_sector(const struct scrub_look *look, uint32_t *idx, uint32_t sector)
{
    static const struct store_sector hole = {.kind = SECTOR_HOLE};

    while (*idx < look->sector_count && look->sectors[*idx].sector < sector)
        ++*idx;
    return *idx < look->sector_count && look->sectors[*idx].sector == sector ? &look->sectors[*idx]
                                                                             : &hole;
}

/* Of what was compared up to here; with another look only where nothing has changed here since. */
static void
scrub_count_differences(struct scrub *scrub, uint32_t end, const struct scrub_look *again)
{
    uint32_t own_idx = 0, peer_idx = 0, again_idx = 0;

    scrub->differ_count = 0;
    for (uint32_t sector = scrub->compared_from; sector < end; sector++) {
        const struct store_sector *own = look_sector(&scrub->own, &own_idx, sector);
        const struct store_sector *peer = look_sector(&scrub->peer, &peer_idx, sector);

        if (!sectors_differ(own, peer, scrub->own_stable) ||
            (again != NULL && sector_has_changed(own, look_sector(again, &again_idx, sector))))
            continue;
        if (scrub->differ_count++ == 0)
            scrub->differ_first = sector;
    }
}

static void
scrub_on_looked_again(struct store_pull *pull, int err)
{
    struct scrub *scrub = list_entry(pull, struct scrub, pull);

    if (scrub_ends(scrub))
        return;
    if (err != 0 && !scrub_is_bad(err)) {
        scrub_compare_fail(scrub);
        return;
    }
    scrub->again.sector_count = err == 0 ? pull->sector_count : 0;
    scrub->again.next_sector = err == 0 ? pull->next_sector : scrub->compared_from;
    scrub->incomplete |= scrub->again.next_sector < scrub->peer_sector;
    scrub_count_differences(scrub, scrub->again.next_sector, &scrub->again);
    if (scrub->differ_count > 0)
        scrub_get_map(scrub, SCRUB_CONFIRMING);
    else
        scrub_compared(scrub);
}

static void
scrub_look_again(struct scrub *scrub)
{
    struct chunkserver_core *core = scrub->core;

    if (!scrub_chunk_is_there(scrub)) {
        scrub_compare_fail(scrub);
        return;
    }
    scrub->state = SCRUB_LOOKING;
    scrub->pull = (struct store_pull){
        .key = scrub->key,
        .first_sector = scrub->compared_from,
        .window_sectors = scrub->peer_sector - scrub->compared_from,
        .without_data = true,
        .buffer = scrub->buffer,
        .sectors = scrub->again.sectors,
        .on_done = scrub_on_looked_again,
    };
    core->store->ops->pull_start(core->store, &scrub->pull);
    core_store_started(core);
}

static void
scrub_compare(struct scrub *scrub)
{
    scrub->compared_from = scrub->peer_sector;
    scrub->peer_sector = min_u32(scrub->own.next_sector, scrub->peer.next_sector);
    scrub_count_differences(scrub, scrub->peer_sector, NULL);
    if (scrub->differ_count > 0)
        scrub_look_again(scrub);
    else
        scrub_compared(scrub);
}

/* --- what the other slot has --- */

static int
scrub_take_run(struct scrub_look *look, const Dl__PullRun *run, uint32_t end)
{
    uint32_t first = run->first_sector;

    if (run->kind > SECTOR_DATA || run->sector_count == 0 || first >= end ||
        run->sector_count > end - first ||
        run->n_crcs != (run->kind == SECTOR_DATA ? run->sector_count : 0) ||
        run->sector_count > STORE_IO_SECTORS_MAX - look->sector_count ||
        (look->sector_count > 0 && look->sectors[look->sector_count - 1].sector >= first))
        return -DL_E_MESSAGE_MALFORMED;
    for (uint32_t i = 0; i < run->sector_count; i++)
        look->sectors[look->sector_count++] = (struct store_sector){
            .sector = first + i,
            .birth = run->birth,
            .version = run->version,
            .crc = run->kind == SECTOR_DATA ? run->crcs[i] : 0,
            .kind = (enum sector_kind)run->kind,
        };
    return 0;
}

static int
scrub_take_reply(struct scrub *scrub, const Dl__PullReply *reply)
{
    struct scrub_look *look = &scrub->peer;
    int err = 0;

    look->sector_count = 0;
    look->next_sector = reply->next_sector;
    if (reply->next_sector <= scrub->peer_sector || reply->next_sector > scrub->own.next_sector)
        return -DL_E_MESSAGE_MALFORMED;
    for (size_t i = 0; i < reply->n_runs && err == 0; i++)
        err = scrub_take_run(look, reply->runs[i], reply->next_sector);
    return err;
}

static int
scrub_on_reply(struct session_call *call, const struct frame *frame)
{
    struct scrub *scrub = list_entry(call, struct scrub, call);
    ProtobufCMessage *message;
    int err;

    if (frame->status != 0)
        return frame->status;
    message = frame_unpack(frame, &dl__pull_reply__descriptor);
    if (message == NULL || frame->payload_bytes != 0)
        err = -DL_E_MESSAGE_MALFORMED;
    else
        err = scrub_take_reply(scrub, (const void *)message);
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
    return err;
}

/* It is down, or busy, or has to recover or to be repaired there. */
static void
scrub_ask_again(struct scrub *scrub)
{
    if (scrub->tries++ < ASK_TRIES) {
        scrub_pause(scrub, ASK_RETRY_NS, scrub_ask);
        return;
    }
    /* Not for every window again. */
    scrub->incomplete = true;
    scrub->peer_count--;
    memmove(&scrub->peers[scrub->peer_idx], &scrub->peers[scrub->peer_idx + 1],
            (scrub->peer_count - scrub->peer_idx) * sizeof(scrub->peers[0]));
    scrub->peer_idx--;
    scrub_next_peer(scrub);
}

static void
scrub_on_answered(struct session_call *call, int err)
{
    struct scrub *scrub = list_entry(call, struct scrub, call);

    env_timer_stop(scrub->core->env, &scrub->timer);
    if (scrub_ends(scrub))
        return;
    if (err == -DL_E_CHUNK_UNKNOWN) { /* if it is in-sync, then nothing was ever written there */
        scrub->peer.sector_count = 0;
        scrub->peer.next_sector = scrub->own.next_sector;
        err = 0;
    }
    if (err == 0)
        scrub_compare(scrub);
    else
        scrub_ask_again(scrub);
}

static int
scrub_send_pull(struct scrub *scrub, struct client_session *session)
{
    Dl__Pull message = DL__PULL__INIT;
    struct frame_out *frame;
    uint64_t request_id;

    message.volume = scrub->key.volume;
    message.segment = scrub->key.segment;
    message.slot = scrub->peers[scrub->peer_idx].slot;
    message.config_epoch = scrub->config_epoch;
    message.first_sector = scrub->peer_sector;
    message.window_sectors = scrub->own.next_sector - scrub->peer_sector;
    message.checksums_only = true;
    request_id = client_session_begin(session, &scrub->call, OP_PULL);
    if (request_id == 0)
        return -DL_E_NO_MEMORY;
    frame = frame_out_create_message(OP_PULL, 0, request_id, 0, &message.base);
    if (frame == NULL) {
        (void)client_session_cancel(&scrub->call);
        return -DL_E_NO_MEMORY;
    }
    client_session_send_message(&scrub->call, frame);
    return 0;
}

static void
scrub_ask(struct scrub *scrub)
{
    struct peer *peer = peer_get(scrub->core, &scrub->peers[scrub->peer_idx]);

    scrub->state = SCRUB_ASKING;
    if (peer != NULL && client_session_is_up(&peer->session) &&
        scrub_send_pull(scrub, &peer->session) == 0)
        env_timer_start(scrub->core->env, &scrub->timer, ASK_NS);
    else
        scrub_ask_again(scrub);
}

/* --- what this slot has --- */

static void
scrub_on_looked(struct store_pull *pull, int err)
{
    struct scrub *scrub = list_entry(pull, struct scrub, pull);

    if (scrub_ends(scrub))
        return;
    if (scrub_is_bad(err) && pull->window_sectors > 1) {
        scrub_narrow(scrub);
        scrub_look(scrub);
        return;
    }
    if (err != 0 && !scrub_is_bad(err)) {
        scrub_compare_fail(scrub);
        return;
    }
    /* What is bad still was counted when it was read; it can't be compared. */
    scrub->own.sector_count = err == 0 ? pull->sector_count : 0;
    scrub->own.next_sector = err == 0 ? pull->next_sector : scrub->sector + 1;
    scrub->own_stable = pull->stable_version;
    scrub->peer_idx = 0;
    scrub->peer_sector = scrub->sector;
    scrub->tries = 0;
    if (err == 0)
        scrub_ask(scrub);
    else
        scrub_compared_window(scrub);
}

static void
scrub_look(struct scrub *scrub)
{
    if (!scrub_chunk_is_there(scrub)) {
        scrub_compare_fail(scrub);
        return;
    }
    scrub_pull(scrub, SCRUB_LOOKING, scrub->end_sector, scrub_on_looked);
}

/* --- from outside --- */

void
scrub_compare_timeout(struct scrub *scrub)
{
    if (scrub->state != SCRUB_ASKING) {
        scrub->map_id = 0;
        scrub_compare_fail(scrub);
    } else if (client_session_cancel(&scrub->call)) {
        scrub_ask_again(scrub);
    }
}

bool
scrub_compare_cancel(struct scrub *scrub)
{
    return !client_session_call_is_active(&scrub->call) || client_session_cancel(&scrub->call);
}

void
scrub_compare_init(struct scrub *scrub)
{
    scrub->call.on_reply = scrub_on_reply;
    scrub->call.on_done = scrub_on_answered;
}
