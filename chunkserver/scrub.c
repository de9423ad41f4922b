/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scrub.c: reads everything that is kept here, again and again, and compares it with its CRCs and
 * with other slots.  See scrub.h, docs/recovery.md (bad sectors).
 *
 *                     +-- next window --+
 *                     v                 |
 *   IDLE -- chunk --> READING ----------+-- end --> MAPPING -- we compare --> LOOKING <---+
 *    ^                 ^  | bad                        |                        |         | next
 *    |                 |  v                            | another slot does      v         | window
 *    |                 REPAIRING                       |                       ASKING ----+
 *    |                                                 |                        |  ^
 *    |                                                 |            they differ v  |
 *    +----------------------- chunk done --------------+                     CONFIRMING
 *
 *   PAUSED: between any two of them, by the timer
 *
 * There is one walk at a time, chunk by chunk in the order of volume, segment, slot.  A scrub of a
 * volume that somebody has asked for (a job) goes before that of the disk, which begins its chunk
 * anew afterwards.  The scrub of the disk goes so fast that it is through in scrub_period; where it
 * is (the last chunk that it has done) the metadata service remembers, so that a restart costs a
 * chunk, or some minutes of work.
 *
 * A window that has something bad is made smaller until it is one sector; repair.c looks at that
 * again (what was bad may be elsewhere by now), repairs it, and says how that went.
 *
 * Comparing is the work of the lowest in-sync slot whose server is there.  What can be said of two
 * in-sync slots, with this one's S from before it looked: every version up to S is in both.  So a
 * sector has the same version in both, or a higher one than S in one; the same version has the same
 * CRC.  A zero extent may be forgotten, so it is as good as a hole.  Where this does not hold the
 * map is asked for again: if the segment's config epoch has not changed meanwhile, then both slots
 * were in-sync all the time, and they differ.  That is told, and not touched: nobody knows which
 * one is right.
 *
 * Suspending: READING, LOOKING for the store; REPAIRING for repair.c; MAPPING, CONFIRMING for the
 * metadata service, ASKING for the other slot, each with a timer.
 */
#include "chunkserver/scrub.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/peer.h"
#include "common/align.h"
#include "common/assert.h"
#include "common/log.h"
#include "dlblk/error.h"

#define ID_BYTES          16u
#define JOBS_MAX          64u
#define JOB_KEPT_NS       (600000 * CORE_NS_PER_MS) /* after its end, for those who ask how it went */
#define BATCH_CHUNKS      64u
#define WINDOW_FOREGROUND 64u /* sectors, while clients ask for something */
#define REST_MIN_NS       (1 * CORE_NS_PER_MS)
#define REST_MAX_NS       (100 * CORE_NS_PER_MS)
#define REST_FACTOR       3u
#define BUSY_NS           (100 * CORE_NS_PER_MS)
#define MAP_NS            (5000 * CORE_NS_PER_MS)
#define ASK_NS            (10000 * CORE_NS_PER_MS)
#define ASK_RETRY_NS      (100 * CORE_NS_PER_MS)
#define ASK_TRIES         20u
#define BEHIND_MAX_NS     (60000 * CORE_NS_PER_MS)
#define BETWEEN_MIN_NS    (60000 * CORE_NS_PER_MS) /* from the end of a scrub of the disk on */
#define BETWEEN_FRACTION  100u

enum scrub_state {
    SCRUB_IDLE,
    SCRUB_READING,
    SCRUB_REPAIRING,
    SCRUB_MAPPING,
    SCRUB_LOOKING,
    SCRUB_ASKING,
    SCRUB_CONFIRMING,
    SCRUB_PAUSED,
};

struct scrub_job {
    struct list node;
    uint64_t volume;
    uint8_t id[ID_BYTES];
    bool done;
    uint64_t ended_ns;
    struct chunk_key *keys; /* ascending */
    size_t key_count, key_idx;
    Dl__ScrubCounts counts;
    uint64_t skipped, uncompared;
};

/* What a slot has of a window: not its holes. */
struct scrub_look {
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint32_t sector_count;
    uint32_t next_sector;
};

struct scrub {
    struct chunkserver_core *core;
    enum scrub_state state;
    struct env_timer timer;
    void (*resume)(struct scrub *scrub); /* PAUSED */
    struct list jobs;                    /* of scrub_job.node, oldest first */
    uint32_t job_count;

    /* The scrub of the disk. */
    bool is_placed;            /* it knows where it is */
    struct chunk_key position; /* the last one that was done; volume 0: none */
    uint64_t completed_ms;
    uint64_t next_ns; /* not before */
    struct chunk_key batch[BATCH_CHUNKS];
    uint32_t batch_count, batch_idx;

    /* The chunk under way. */
    struct scrub_job *job; /* NULL: the disk's */
    bool has_chunk;
    struct chunk_key key;
    uint64_t local_id;
    uint32_t sector; /* all before it is done, read or compared */
    uint32_t window; /* to be tried next */
    uint64_t began_ns;
    void *buffer;
    struct store_pull pull;
    struct scrub_look own, peer;
    uint64_t own_stable;

    /* Comparing. */
    bool comparing, incomplete;
    uint64_t map_id;
    uint32_t config_epoch; /* of the map */
    uint32_t end_sector;   /* of the segment */
    struct pull_source peers[PULL_SOURCES_MAX];
    uint32_t peer_count, peer_idx;
    uint32_t peer_sector; /* compared with this one up to here */
    uint32_t tries;
    struct session_call call;
    uint32_t differ_count, differ_first;
};

static void scrub_next_chunk(struct scrub *scrub);
static void scrub_read(struct scrub *scrub);
static void scrub_look(struct scrub *scrub);
static void scrub_ask(struct scrub *scrub);

static void
scrub_log(const struct scrub *scrub, const char *what)
{
    char name[80];

    (void)snprintf(name, sizeof(name), "volume %" PRIu64 " segment %u slot %u", scrub->key.volume,
                   scrub->key.segment, scrub->key.slot);
    log_warning("chunkserver", name, "scrub: %s", what);
}

static int
key_compare(const struct chunk_key *a, const struct chunk_key *b)
{
    if (a->volume != b->volume)
        return a->volume < b->volume ? -1 : 1;
    if (a->segment != b->segment)
        return a->segment < b->segment ? -1 : 1;
    return a->slot == b->slot ? 0 : a->slot < b->slot ? -1 : 1;
}

/* --- time --- */

/* The store, a link or repair.c has given back what it had, and the core stops. */
static bool
scrub_ends(struct scrub *scrub)
{
    if (!scrub->core->stopping)
        return false;
    scrub->state = SCRUB_IDLE;
    core_stop_step(scrub->core);
    return true;
}

static void
scrub_pause(struct scrub *scrub, uint64_t pause_ns, void (*resume)(struct scrub *scrub))
{
    scrub->state = SCRUB_PAUSED;
    scrub->resume = resume;
    env_timer_start(scrub->core->env, &scrub->timer, pause_ns);
}

/* So long one sector takes if all that is used is to be read in time. */
static uint64_t
scrub_sector_ns(const struct scrub *scrub)
{
    struct store_stats stats = {0};

    scrub->core->store->ops->get_stats(scrub->core->store, &stats);
    return scrub->core->options.scrub_period_ns / max_u64(1, stats.used_bytes / SECTOR_BYTES);
}

static bool
scrub_has_foreground(const struct scrub *scrub)
{
    return core_pulls_max(scrub->core) == PULLS_FOREGROUND;
}

/* Go on, after so many sectors were read, as soon as that is fair. */
static void
scrub_rest(struct scrub *scrub, uint32_t sectors, void (*resume)(struct scrub *scrub))
{
    uint64_t now_ns = env_now_ns(scrub->core->env);
    uint64_t rest_ns = 0;

    if (scrub_has_foreground(scrub))
        rest_ns = max_u64(REST_MIN_NS,
                          min_u64(REST_MAX_NS, REST_FACTOR * (now_ns - scrub->began_ns)));
    if (scrub->job == NULL && sectors > 0) {
        scrub->next_ns = max_u64(scrub->next_ns, max_u64(now_ns, BEHIND_MAX_NS) - BEHIND_MAX_NS) +
                         sectors * scrub_sector_ns(scrub);
        if (scrub->next_ns > now_ns)
            rest_ns = max_u64(rest_ns, scrub->next_ns - now_ns);
    }
    scrub_pause(scrub, rest_ns, resume);
}

/* --- chunks --- */

static struct scrub_job *
scrub_next_job(struct scrub *scrub)
{
    struct scrub_job *job;

    list_for_each_entry (job, &scrub->jobs, node)
        if (!job->done)
            return job;
    return NULL;
}

/* May it be read on? */
static bool
scrub_chunk_is_there(const struct scrub *scrub)
{
    const struct chunk *chunk = chunk_table_find(scrub->core->chunks, &scrub->key);

    return chunk != NULL && chunk->local_id == scrub->local_id && chunk->attempt == 0 &&
           !slot_is_beginning(scrub->core, &scrub->key);
}

static void
scrub_leave_chunk(struct scrub *scrub)
{
    if (scrub->job != NULL) {
        scrub->job->uncompared += scrub->incomplete;
        scrub->job->key_idx++;
    } else {
        scrub->position = scrub->key;
    }
    scrub->has_chunk = false;
    scrub_pause(scrub, 0, scrub_next_chunk);
}

/* It recovers, or is gone, or the store is of no use.  One that is gone nobody misses. */
static void
scrub_skip_chunk(struct scrub *scrub)
{
    if (scrub->job != NULL && chunk_table_find(scrub->core->chunks, &scrub->key) != NULL)
        scrub->job->skipped++;
    scrub->incomplete = false;
    scrub_leave_chunk(scrub);
}

static void
scrub_begin_chunk(struct scrub *scrub, struct scrub_job *job, const struct chunk_key *key)
{
    const struct chunk *chunk = chunk_table_find(scrub->core->chunks, key);

    scrub->job = job;
    scrub->key = *key;
    scrub->local_id = chunk == NULL ? 0 : chunk->local_id;
    scrub->has_chunk = true;
    scrub->comparing = false;
    scrub->incomplete = false;
    scrub->sector = 0;
    scrub->window = STORE_WINDOW_SECTORS_MAX;
    scrub_read(scrub);
}

/* The next ones in order behind the position: few of many, so that a look at all serves for long. */
static void
scrub_fill_batch(struct scrub *scrub)
{
    const struct chunk *chunk, *following;

    scrub->batch_count = scrub->batch_idx = 0;
    HASH_ITER (by_key, scrub->core->chunks->by_key, chunk, following) {
        uint32_t at = scrub->batch_count;

        if (key_compare(&chunk->key, &scrub->position) <= 0)
            continue;
        if (at == BATCH_CHUNKS && key_compare(&chunk->key, &scrub->batch[at - 1]) > 0)
            continue;
        if (at == BATCH_CHUNKS)
            at--;
        else
            scrub->batch_count++;
        for (; at > 0 && key_compare(&chunk->key, &scrub->batch[at - 1]) < 0; at--)
            scrub->batch[at] = scrub->batch[at - 1];
        scrub->batch[at] = chunk->key;
    }
}

static void
scrub_complete_disk(struct scrub *scrub)
{
    struct chunkserver_core *core = scrub->core;
    uint64_t period_ns = core->options.scrub_period_ns;

    scrub->position = (struct chunk_key){0};
    scrub->completed_ms = core->env->ops->wall_ms(core->env);
    scrub->next_ns = max_u64(scrub->next_ns,
                             env_now_ns(core->env) +
                                 max_u64(BETWEEN_MIN_NS, period_ns / BETWEEN_FRACTION));
    core->stats.scrubs++;
    log_info("chunkserver", "scrub", "everything here has been read and compared");
}

static void
scrub_next_of_disk(struct scrub *scrub)
{
    uint64_t now_ns = env_now_ns(scrub->core->env);

    scrub->job = NULL;
    if (scrub->core->options.scrub_period_ns == 0 || !scrub->is_placed) {
        scrub->state = SCRUB_IDLE;
        return;
    }
    if (scrub->batch_idx == scrub->batch_count)
        scrub_fill_batch(scrub);
    if (scrub->batch_count == 0)
        scrub_complete_disk(scrub);
    if (scrub->next_ns > now_ns)
        scrub_pause(scrub, scrub->next_ns - now_ns, scrub_next_chunk);
    else if (scrub->batch_count > 0)
        scrub_begin_chunk(scrub, NULL, &scrub->batch[scrub->batch_idx++]);
}

static void
scrub_next_chunk(struct scrub *scrub)
{
    struct scrub_job *job;

    while ((job = scrub_next_job(scrub)) != NULL) {
        if (job->key_idx < job->key_count) {
            scrub_begin_chunk(scrub, job, &job->keys[job->key_idx]);
            return;
        }
        job->done = true;
        job->ended_ns = env_now_ns(scrub->core->env);
    }
    scrub_next_of_disk(scrub);
}

/* A job goes before the disk's scrub, which will read this chunk from its beginning. */
static bool
scrub_gives_way(struct scrub *scrub)
{
    if (!scrub->has_chunk || scrub->job != NULL || scrub_next_job(scrub) == NULL)
        return false;
    scrub->has_chunk = false;
    dl_assert(scrub->batch_idx > 0);
    scrub->batch_idx--;
    scrub_next_chunk(scrub);
    return true;
}

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

static void
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
    scrub->window = min_u32(4 * scrub->window, STORE_WINDOW_SECTORS_MAX);
    if (scrub->sector >= scrub->end_sector || scrub->peer_count == 0)
        scrub_compare_end(scrub);
    else if (scrub_has_foreground(scrub))
        scrub_pause(scrub, REST_MIN_NS, scrub_look);
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

/* Both ascend; what a look does not name is a hole. */
static void
scrub_compare(struct scrub *scrub)
{
    static const struct store_sector hole = {.kind = SECTOR_HOLE};
    uint32_t end = min_u32(scrub->own.next_sector, scrub->peer.next_sector);
    uint32_t own_idx = 0, peer_idx = 0;

    scrub->differ_count = 0;
    for (uint32_t sector = scrub->peer_sector; sector < end; sector++) {
        const struct store_sector *own = &hole, *peer = &hole;

        while (own_idx < scrub->own.sector_count && scrub->own.sectors[own_idx].sector < sector)
            own_idx++;
        while (peer_idx < scrub->peer.sector_count && scrub->peer.sectors[peer_idx].sector < sector)
            peer_idx++;
        if (own_idx < scrub->own.sector_count && scrub->own.sectors[own_idx].sector == sector)
            own = &scrub->own.sectors[own_idx];
        if (peer_idx < scrub->peer.sector_count && scrub->peer.sectors[peer_idx].sector == sector)
            peer = &scrub->peer.sectors[peer_idx];
        if (!sectors_differ(own, peer, scrub->own_stable))
            continue;
        if (scrub->differ_count++ == 0)
            scrub->differ_first = sector;
    }
    scrub->peer_sector = end;
    if (scrub->differ_count > 0)
        scrub_get_map(scrub, SCRUB_CONFIRMING);
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
scrub_pull(struct scrub *scrub, enum scrub_state state, struct store_sector *sectors,
           void (*on_done)(struct store_pull *pull, int err))
{
    struct chunkserver_core *core = scrub->core;
    uint32_t end = state == SCRUB_READING ? WIRE_CHUNK_SECTORS_MAX : scrub->end_sector;
    uint32_t window = scrub->window;

    if (state == SCRUB_READING && scrub_has_foreground(scrub))
        window = min_u32(window, WINDOW_FOREGROUND);
    scrub->state = state;
    scrub->began_ns = env_now_ns(core->env);
    scrub->pull = (struct store_pull){
        .key = scrub->key,
        .first_sector = scrub->sector,
        .window_sectors = min_u32(window, end - scrub->sector),
        .without_data = state == SCRUB_LOOKING,
        .buffer = scrub->buffer,
        .sectors = sectors,
        .on_done = on_done,
    };
    core->store->ops->pull_start(core->store, &scrub->pull);
    core_store_started(core);
}

/* Something in the window is bad, or not to be known. */
static bool
is_bad(int err)
{
    return err == -DL_E_CRC_DATA || err == -DL_E_MEDIA_READ || err == -DL_E_INDEX_CORRUPT;
}

static void
scrub_narrow(struct scrub *scrub)
{
    scrub->window = scrub->pull.window_sectors > 16 ? 16 : 1;
}

static void
scrub_on_looked(struct store_pull *pull, int err)
{
    struct scrub *scrub = list_entry(pull, struct scrub, pull);

    if (scrub_ends(scrub))
        return;
    if (is_bad(err) && pull->window_sectors > 1) {
        scrub_narrow(scrub);
        scrub_look(scrub);
        return;
    }
    if (err != 0 && !is_bad(err)) {
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
    scrub_pull(scrub, SCRUB_LOOKING, scrub->own.sectors, scrub_on_looked);
}

/* --- reading --- */

static void
scrub_repair(struct scrub *scrub)
{
    if (!scrub_chunk_is_there(scrub)) {
        scrub_skip_chunk(scrub);
        return;
    }
    scrub->state = SCRUB_REPAIRING;
    if (repair_by_scrub(scrub->core, &scrub->key, scrub->sector) != 0)
        scrub_pause(scrub, BUSY_NS, scrub_repair);
}

void
scrub_on_repaired(struct scrub *scrub, enum repair_outcome outcome)
{
    bool healed = outcome == REPAIR_DONE || outcome == REPAIR_REWRITTEN;
    bool bad = healed || outcome == REPAIR_FAILED;

    if (scrub->core->stopping)
        return;
    dl_assert(scrub->state == SCRUB_REPAIRING);
    if (scrub->job != NULL) {
        scrub->job->counts.sectors += bad;
        scrub->job->counts.bad += bad;
        scrub->job->counts.repaired += healed;
        scrub->job->counts.left_bad += outcome == REPAIR_FAILED;
    }
    scrub->sector++;
    scrub_rest(scrub, 1, scrub_read);
}

static void
scrub_on_read(struct store_pull *pull, int err)
{
    struct scrub *scrub = list_entry(pull, struct scrub, pull);

    if (scrub_ends(scrub))
        return;
    if (is_bad(err) && pull->window_sectors > 1) {
        scrub_narrow(scrub);
        scrub_read(scrub);
    } else if (is_bad(err)) {
        scrub->window = 1; /* bad ones come in company */
        scrub_repair(scrub);
    } else if (err != 0) {
        if (err != -DL_E_CHUNK_UNKNOWN && err != -DL_E_NOT_IN_SYNC)
            scrub_log(scrub, dl_err_str(err));
        scrub_skip_chunk(scrub);
    } else {
        findings_read(scrub->core->findings, &scrub->key, pull->first_sector, pull->next_sector,
                      pull->data_sectors);
        if (scrub->job != NULL)
            scrub->job->counts.sectors += pull->data_sectors;
        scrub->sector = pull->next_sector;
        scrub->window = min_u32(4 * scrub->window, STORE_WINDOW_SECTORS_MAX);
        scrub_rest(scrub, pull->data_sectors, scrub_read);
    }
}

static void
scrub_read(struct scrub *scrub)
{
    if (!scrub_chunk_is_there(scrub))
        scrub_skip_chunk(scrub);
    else if (scrub->sector < WIRE_CHUNK_SECTORS_MAX)
        scrub_pull(scrub, SCRUB_READING, scrub->own.sectors, scrub_on_read);
    else
        scrub_compare_begin(scrub);
}

static void
scrub_on_timer(struct env_timer *timer)
{
    struct scrub *scrub = list_entry(timer, struct scrub, timer);

    switch (scrub->state) {
    case SCRUB_PAUSED:
        if (!scrub_gives_way(scrub))
            scrub->resume(scrub);
        break;
    case SCRUB_MAPPING:
    case SCRUB_CONFIRMING:
        scrub->map_id = 0;
        scrub_compare_fail(scrub);
        break;
    case SCRUB_ASKING:
        if (client_session_cancel(&scrub->call))
            scrub_ask_again(scrub);
        break;
    default:
        dl_unreachable();
    }
}

/* --- what is asked for --- */

static struct scrub_job *
job_find(struct scrub *scrub, uint64_t volume, const uint8_t id[ID_BYTES])
{
    struct scrub_job *job;

    list_for_each_entry (job, &scrub->jobs, node)
        if (job->volume == volume && memcmp(job->id, id, ID_BYTES) == 0)
            return job;
    return NULL;
}

static void
job_destroy(struct scrub *scrub, struct scrub_job *job)
{
    list_remove(&job->node);
    scrub->job_count--;
    free(job->keys);
    free(job);
}

static int
key_compare_void(const void *a, const void *b)
{
    return key_compare(a, b);
}

/* The chunks that are there now; what comes later was just written. */
static int
job_take_keys(struct scrub_job *job, const struct chunk_table *chunks)
{
    const struct chunk_volume *volume = chunk_table_volume(chunks, job->volume);
    const struct chunk *chunk;

    if (volume == NULL)
        return 0;
    list_for_each_entry (chunk, &volume->chunks, volume_node)
        job->key_count += chunk->state == CHUNK_PRESENT;
    job->keys = calloc(job->key_count + 1, sizeof(job->keys[0]));
    if (job->keys == NULL)
        return -DL_E_NO_MEMORY;
    job->key_count = 0;
    list_for_each_entry (chunk, &volume->chunks, volume_node)
        if (chunk->state == CHUNK_PRESENT)
            job->keys[job->key_count++] = chunk->key;
    qsort(job->keys, job->key_count, sizeof(job->keys[0]), key_compare_void);
    return 0;
}

static struct scrub_job *
job_create(struct scrub *scrub, uint64_t volume, const uint8_t id[ID_BYTES])
{
    struct scrub_job *job = calloc(1, sizeof(*job));

    if (job == NULL)
        return NULL;
    job->volume = volume;
    memcpy(job->id, id, ID_BYTES);
    dl__scrub_counts__init(&job->counts);
    if (job_take_keys(job, scrub->core->chunks) != 0) {
        free(job);
        return NULL;
    }
    list_push_back(&scrub->jobs, &job->node);
    scrub->job_count++;
    return job;
}

static void
job_reply(const struct scrub *scrub, const struct frame *frame, struct scrub_job *job)
{
    Dl__ScrubVolumeReply reply = DL__SCRUB_VOLUME_REPLY__INIT;
    struct frame_out *out;

    reply.done = job->done;
    reply.chunks = job->key_count;
    reply.chunks_done = job->key_idx;
    if (!job->done && scrub->job == job && scrub->has_chunk)
        reply.sectors_done = scrub->comparing ? WIRE_CHUNK_SECTORS_MAX : scrub->sector;
    reply.counts = &job->counts;
    reply.chunks_skipped = job->skipped;
    reply.uncompared = job->uncompared;
    out = frame_out_create_message(OP_SCRUB_VOLUME, FRAME_REPLY, frame->request_id, 0, &reply.base);
    meta_link_send(scrub->core, scrub->core->meta.connection, out);
}

void
scrub_volume_receive(struct scrub *scrub, const struct frame *frame, const Dl__ScrubVolume *message)
{
    struct scrub_job *job;

    if (message->scrub_id.len != ID_BYTES || message->volume == 0) {
        meta_refuse(scrub->core, frame, -DL_E_MESSAGE_MALFORMED, "a scrub has an id of 16 bytes");
        return;
    }
    job = job_find(scrub, message->volume, message->scrub_id.data);
    if (job == NULL && scrub->job_count >= JOBS_MAX) {
        meta_refuse(scrub->core, frame, -DL_E_BUSY, "too many scrubs were asked for");
        return;
    }
    if (job == NULL)
        job = job_create(scrub, message->volume, message->scrub_id.data);
    if (job == NULL) {
        meta_refuse(scrub->core, frame, -DL_E_NO_MEMORY, NULL);
        return;
    }
    if (scrub->state == SCRUB_IDLE)
        scrub_pause(scrub, 0, scrub_next_chunk);
    else if (scrub->state == SCRUB_PAUSED && scrub->job == NULL && !job->done)
        scrub_pause(scrub, 0, scrub->resume); /* the disk's gives way */
    job_reply(scrub, frame, job);
}

void
scrub_tick(struct scrub *scrub, uint64_t now_ns)
{
    struct scrub_job *job, *following;

    list_for_each_entry_safe (job, following, &scrub->jobs, node)
        if (job->done && now_ns - job->ended_ns > JOB_KEPT_NS)
            job_destroy(scrub, job);
}

/* --- the disk --- */

void
scrub_on_registered(struct scrub *scrub, const Dl__ScrubPosition *position)
{
    if (scrub->is_placed)
        return;
    scrub->is_placed = true;
    if (position != NULL) {
        scrub->position = (struct chunk_key){
            .volume = position->volume, .segment = position->segment, .slot = position->slot};
        scrub->completed_ms = position->completed_ms;
    }
    if (scrub->state == SCRUB_IDLE && !scrub->core->stopping)
        scrub_pause(scrub, 0, scrub_next_chunk);
}

void
scrub_fill_position(const struct scrub *scrub, Dl__ScrubPosition *position)
{
    position->volume = scrub->position.volume;
    position->segment = scrub->position.segment;
    position->slot = scrub->position.slot;
    position->completed_ms = scrub->completed_ms;
}

/* --- life --- */

struct scrub *
scrub_create(struct chunkserver_core *core)
{
    struct scrub *scrub = calloc(1, sizeof(*scrub));

    if (scrub == NULL)
        return NULL;
    scrub->core = core;
    scrub->buffer = buffer_pool_acquire(core->pull_buffers, BUFFER_BYTES_MAX);
    dl_assert(scrub->buffer != NULL);
    list_init(&scrub->jobs);
    scrub->timer.fn = scrub_on_timer;
    scrub->call.on_reply = scrub_on_reply;
    scrub->call.on_done = scrub_on_answered;
    return scrub;
}

void
scrub_stop(struct scrub *scrub)
{
    env_timer_stop(scrub->core->env, &scrub->timer);
    switch (scrub->state) {
    case SCRUB_READING:
    case SCRUB_LOOKING:
        return;
    case SCRUB_ASKING:
        if (client_session_call_is_active(&scrub->call) && !client_session_cancel(&scrub->call))
            return;
        break;
    default:
        break;
    }
    scrub->state = SCRUB_IDLE;
}

bool
scrub_is_idle(const struct scrub *scrub)
{
    return scrub->state == SCRUB_IDLE;
}

void
scrub_free(struct scrub *scrub)
{
    if (scrub == NULL)
        return;
    while (!list_is_empty(&scrub->jobs))
        job_destroy(scrub, list_first_entry(&scrub->jobs, struct scrub_job, node));
    free(scrub);
}
