/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What state volumes are in: for CLUSTER_STATUS, VOLUME_STATUS; and where a byte lies:
 * SEGMENT_LOCATE.
 *
 *   healthy     every segment has all of its copies, and their servers are there
 *   recovering  some copies are being made again, or wait for their turn; nobody has to do anything
 *   degraded    some copies are missing, and come back only when somebody does something, or their
 *               server is out
 *   blocked     writes or reads of some segments wait until somebody does something
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/text.h"
#include "meta/health.h"
#include "meta/memory.h"
#include "meta/placement.h"

/* --- counting --- */

static bool
server_is_there(const struct meta_server *server)
{
    return server->session != NULL && server->up;
}

static void
servers_add(struct health_servers *servers, uint32_t server_id)
{
    for (uint32_t i = 0; i < servers->count; i++)
        if (servers->ids[i] == server_id)
            return;
    if (servers->count < VOLUME_HEALTH_SERVERS)
        servers->ids[servers->count++] = server_id;
    else
        servers->more = true;
}

/* Since when it is not there, for display. */
static uint64_t
server_away_ms(const struct meta_core *core, const struct meta_server *server)
{
    uint64_t now_ns = env_now_ns(core->env), now_ms = core->env->ops->wall_ms(core->env);
    uint64_t away_ms = (now_ns - min_u64(now_ns, server->lost_ns)) / NS_PER_MS;

    return now_ms - min_u64(now_ms, away_ms);
}

/* The earlier one; 0: not known. */
static void
since_add(uint64_t *since_ms, uint64_t ms)
{
    if (ms != 0 && (*since_ms == 0 || ms < *since_ms))
        *since_ms = ms;
}

/* A slot that was given up, whose server is there, but has no room for it. */
static bool
slot_has_no_room(const struct meta_core *core, const struct meta_volume *volume,
                 const struct segment_slot *slot, const struct repair_slot *repair)
{
    const struct meta_server *server = core->servers[slot->server_id];

    return repair->full && slot->state == DL__SLOT_STATE__SLOT_EJECTED && server_is_there(server) &&
           server->available_bytes < meta_volume_chunk_bytes(&volume->desc);
}

/* Why one of its slots is not recovering, or moving, yet. */
static void
waits_add(struct volume_health *health, const struct segment_slot *slot, enum recovery_wait why)
{
    bool of_server = why != WAIT_TURN && why != WAIT_SOURCE && why != WAIT_NO_SOURCE;
    uint32_t server_id = of_server ? slot->server_id : 0, i = 0;

    while (i < health->wait_count &&
           (health->waits[i].why != why || health->waits[i].server_id != server_id))
        i++;
    if (i == VOLUME_HEALTH_WAITS)
        return;
    if (i == health->wait_count)
        health->waits[health->wait_count++] = (struct health_wait){why, server_id, 0};
    health->waits[i].count++;
}

static bool
slot_waits(const struct meta_core *core, const struct segment_slot *slot)
{
    const struct meta_server *server = core->servers[slot->server_id];

    return slot->state == DL__SLOT_STATE__SLOT_EJECTED ||
           (slot->state == DL__SLOT_STATE__SLOT_IN_SYNC &&
            (server->out || server->desc.admin_state != META_ADMIN_IN_USE));
}

/* The copies in sync of a segment, and since when some of their servers are away, in that order. */
struct copies {
    uint64_t away_ms[META_REPLICAS_MAX + 1];
    uint32_t away, in_sync;
    uint64_t given_up_ms; /* since when some are not in sync */
};

static void
copies_add_away(struct copies *copies, uint64_t ms)
{
    uint32_t i = copies->away++;

    for (; i > 0 && copies->away_ms[i - 1] > ms; i--)
        copies->away_ms[i] = copies->away_ms[i - 1];
    copies->away_ms[i] = ms;
}

/* Since when fewer than so many are there. */
static uint64_t
copies_fewer_ms(const struct copies *copies, uint32_t least)
{
    if (copies->in_sync < least)
        return copies->given_up_ms;
    dl_assert(copies->in_sync - copies->away < least);
    return copies->away_ms[copies->in_sync - least];
}

static void
health_add_copies(const struct meta_core *core, const struct meta_volume *volume,
                  const struct segment *segment, const struct copies *copies,
                  struct volume_health *health)
{
    const struct segment_table *table = &volume->segments;
    uint32_t there = copies->in_sync - copies->away;
    uint32_t least = there == 0 ? 1 : volume->desc.min_write;

    if (there >= table->slot_count)
        return;
    if (there >= least) {
        health->degraded++;
        since_add(&health->degraded_ms, copies_fewer_ms(copies, table->slot_count));
        return;
    }
    if (there == 0)
        health->unreadable++;
    else
        health->blocked++;
    since_add(there == 0 ? &health->unreadable_ms : &health->blocked_ms,
              copies_fewer_ms(copies, least));
    for (uint32_t i = 0; i < table->slot_count; i++)
        if (segment->slots[i].state == DL__SLOT_STATE__SLOT_IN_SYNC &&
            !server_is_there(core->servers[segment->slots[i].server_id]))
            servers_add(&health->needed, segment->slots[i].server_id);
}

static void
health_add_segment(const struct meta_core *core, const struct meta_volume *volume,
                   const struct segment *segment, struct volume_health *health)
{
    const struct segment_table *table = &volume->segments;
    const struct meta_repair *repair = volume->repair_count == 0
                                           ? NULL
                                           : meta_repair_find(core, volume->desc.id,
                                                              segment->index);
    struct copies copies = {.given_up_ms = repair != NULL ? repair->since_ms : 0};
    bool absent = false, no_room = false;

    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];
        const struct meta_server *server;
        bool is_awaited, is_away;

        if (slot->server_id == 0)
            continue;
        server = core->servers[slot->server_id];
        is_awaited = meta_server_is_awaited(server);
        is_away = !server_is_there(server) && !is_awaited;
        copies.in_sync += slot->state == DL__SLOT_STATE__SLOT_IN_SYNC;
        if (slot->state == DL__SLOT_STATE__SLOT_IN_SYNC && is_away)
            copies_add_away(&copies, server_away_ms(core, server));
        health->slots_recovering += slot->state == DL__SLOT_STATE__SLOT_RECOVERING;
        if (i < table->slot_count && is_awaited)
            servers_add(&health->awaited, slot->server_id);
        if (i < table->slot_count && is_away) {
            absent = true;
            servers_add(&health->waiting, slot->server_id);
        }
        if (i < table->slot_count && repair != NULL &&
            slot_has_no_room(core, volume, slot, &repair->slots[i])) {
            no_room = true;
            servers_add(&health->full, slot->server_id);
        }
        if (repair != NULL && !repair->busy && repair->slots[i].wait != WAIT_NOTHING &&
            slot_waits(core, slot))
            waits_add(health, slot, repair->slots[i].wait);
        if (slot->state != DL__SLOT_STATE__SLOT_IN_SYNC)
            health->left_bytes += meta_volume_chunk_bytes(&volume->desc) -
                                  (repair == NULL ? 0 : repair->slots[i].cursor_sectors * 4096ull);
    }
    health->segments++;
    health->in_sync += copies.in_sync == table->slot_count;
    health->moving += copies.in_sync == table->slot_count && repair != NULL;
    health->absent += absent;
    health->no_room += no_room;
    health_add_copies(core, volume, segment, &copies, health);
}

/* Is there anything to count?  Most volumes are whole, and all of their servers are there. */
static bool
volume_is_suspect(const struct meta_core *core, const struct meta_volume *volume)
{
    for (uint32_t i = 0; i < volume->server_count; i++) {
        const struct meta_server *server = core->servers[volume->servers[i].server_id];

        if (!server_is_there(server) || server->out ||
            server->desc.admin_state != META_ADMIN_IN_USE)
            return true;
    }
    return volume->repair_count > 0;
}

/* Others take the place of who has no room, if there are enough. */
static bool
others_have_room(const struct meta_core *core, const struct meta_volume *volume)
{
    uint32_t count, domains;
    struct placement_server *servers = meta_candidates_collect(core, &volume->desc, &count);

    domains = placement_domain_count(servers, count, 1);
    free(servers);
    return domains >= volume->segments.slot_count;
}

/* The server with the most that no copy has right, or the most that is bad. */
static void
health_add_bad(const struct meta_core *core, const struct meta_volume *volume,
               struct volume_health *health)
{
    for (uint32_t i = 0; i < volume->server_count; i++) {
        const struct meta_server *server = core->servers[volume->servers[i].server_id];
        const Dl__BadVolume *bad = meta_scrub_bad_volume(server, volume->desc.id);

        if (bad == NULL || !server_is_there(server) ||
            (health->bad != NULL &&
             (bad->lost < health->bad->lost ||
              (bad->lost == health->bad->lost && bad->bad <= health->bad->bad))))
            continue;
        health->bad = bad;
        health->bad_server = server;
    }
}

void
meta_health_volume(const struct meta_core *core, const struct meta_volume *volume,
                   struct volume_health *ret_health)
{
    struct volume_health health = {0};
    const struct segment *segment = meta_segments_at_or_after(&volume->segments, 0);
    char text[META_PROBLEM_BYTES];

    if (!volume_is_suspect(core, volume)) {
        health.segments = health.in_sync = volume->segments.count;
        segment = NULL;
    }
    for (; segment != NULL; segment = meta_segments_after(&volume->segments, segment->index))
        health_add_segment(core, volume, segment, &health);
    for (uint32_t i = 0; i < volume->server_count; i++)
        if (meta_server_is_full(core->servers[volume->servers[i].server_id]))
            servers_add(&health.full, volume->servers[i].server_id);
    if (health.full.count > 0 && others_have_room(core, volume))
        health.no_room = health.full.count = 0;
    health_add_bad(core, volume, &health);
    health.owner_waits = meta_waits_text(core, volume, text, sizeof(text));
    since_add(&health.since_ms, health.unreadable_ms);
    since_add(&health.since_ms, health.blocked_ms);
    if (health.owner_waits)
        since_add(&health.since_ms, meta_waits_since_ms(core, volume));
    if (health.since_ms == 0)
        health.since_ms = health.degraded_ms;
    *ret_health = health;
}

const char *
meta_health_state(const struct volume_health *health)
{
    if (health->unreadable > 0 || health->blocked > 0 || health->owner_waits)
        return "blocked";
    if (health->absent > 0 || health->no_room > 0 || health->bad != NULL ||
        health->awaited.count > 0)
        return "degraded";
    return health->degraded > 0 || health->moving > 0 ? "recovering" : "healthy";
}

/* --- in words --- */

static void
servers_text(const struct meta_core *core, const struct health_servers *servers, char *text,
             size_t text_bytes)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t i = 0; i < servers->count && used + 1 < text_bytes; i++) {
        const struct meta_server *server = core->servers[servers->ids[i]];

        used += (size_t)snprintf(text + used, text_bytes - used, "%sserver %s", i == 0 ? "" : ", ",
                                 meta_server_text(server));
    }
    if (used == 0)
        (void)snprintf(text, text_bytes, "no server");
    else if (servers->more && used + 1 < text_bytes)
        (void)snprintf(text + used, text_bytes - used, ", and others");
}

struct since_text {
    char text[64];
};

/* " for 3.0 s", or nothing. */
static struct since_text
since_text(const struct meta_core *core, uint64_t since_ms)
{
    uint64_t now_ms = core->env->ops->wall_ms(core->env);
    struct since_text since = {0};

    if (since_ms != 0)
        (void)snprintf(since.text, sizeof(since.text), " for %s",
                       text_of_duration((now_ms - min_u64(now_ms, since_ms)) * NS_PER_MS).text);
    return since;
}

static const char *
segments_word(uint64_t count)
{
    return count == 1 ? "segment" : "segments";
}

/* Where a byte of a segment is in the volume: segment_of_offset() the other way round. */
static uint64_t
offset_of_segment(const struct volume_desc *desc, uint32_t segment, uint64_t in_segment)
{
    uint64_t set = segment / desc->stripe_width, column = segment % desc->stripe_width;
    uint64_t set_bytes = (uint64_t)desc->segment_bytes * desc->stripe_width;
    uint64_t unit = in_segment / desc->stripe_unit_bytes;

    return set * set_bytes + (unit * desc->stripe_width + column) * desc->stripe_unit_bytes +
           in_segment % desc->stripe_unit_bytes;
}

static void
bad_text(const struct meta_volume *volume, const struct volume_health *health, char *text)
{
    const Dl__BadVolume *bad = health->bad;
    bool lost = bad->lost > 0;
    uint64_t count = lost ? bad->lost : bad->bad;

    (void)snprintf(
        text, META_PROBLEM_BYTES,
        "volume %s: %" PRIu64 " %s bad on server %s%s, the first at byte %" PRIu64
        " of the volume (segment %" PRIu32 ", sector %" PRIu32 "): %s; dlblk scrub looks again",
        volume->desc.name, count, count == 1 ? "sector is" : "sectors are",
        meta_server_text(health->bad_server), lost ? " and in every other copy in sync" : "",
        offset_of_segment(&volume->desc, bad->segment, bad->sector * 4096ull), bad->segment,
        bad->sector,
        lost ? "reads fail until they are written anew, or another copy is back"
             : "to be repaired as soon as another copy can be read");
}

static void
awaited_text(const struct meta_core *core, const struct meta_volume *volume,
             const struct volume_health *health, char *text)
{
    char servers[192];
    bool one = health->awaited.count == 1;

    servers_text(core, &health->awaited, servers, sizeof(servers));
    (void)snprintf(
        text, META_PROBLEM_BYTES,
        "volume %s: %s %s not registered yet since the metadata service started %s ago, and "
        "%s counted as there: ask again in some seconds",
        volume->desc.name, servers, one ? "has" : "have",
        text_of_duration(env_now_ns(core->env) - core->serving_ns).text, one ? "is" : "are");
}

/* An owner that has gone: only when somebody asks about this volume, it harms nobody. */
static bool
owner_lost_text(const struct meta_core *core, const struct meta_volume *volume, char *text)
{
    if (!volume->desc.owned || volume->owner_session != NULL)
        return false;
    (void)snprintf(text, META_PROBLEM_BYTES,
                   "volume %s: its owner, %s, has not been connected for %s: if it is dead, the "
                   "next attach takes the volume over",
                   volume->desc.name, text_quote(volume->desc.owner).text,
                   text_of_duration(env_now_ns(core->env) - volume->owner_lost_ns).text);
    return true;
}

uint32_t
meta_health_problems(const struct meta_core *core, const struct meta_volume *volume,
                     const struct volume_health *health, char (*texts)[META_PROBLEM_BYTES])
{
    bool some_needed = health->needed.count > 0;
    char servers[192], needed[192], full[192];
    uint32_t count = 0;

    servers_text(core, &health->waiting, servers, sizeof(servers));
    servers_text(core, some_needed ? &health->needed : &health->waiting, needed, sizeof(needed));
    servers_text(core, &health->full, full, sizeof(full));
    if (health->unreadable > 0)
        (void)snprintf(texts[count++], META_PROBLEM_BYTES,
                       "volume %s: %" PRIu64 " %s can be neither read nor written%s: none of their "
                       "copies in sync is there; start %s",
                       volume->desc.name, health->unreadable, segments_word(health->unreadable),
                       since_text(core, health->unreadable_ms).text, needed);
    if (health->blocked > 0)
        (void)snprintf(texts[count++], META_PROBLEM_BYTES,
                       "volume %s: writes to %" PRIu64 " %s wait%s: fewer than %" PRIu32
                       " copies (min_write) are there; %s%s",
                       volume->desc.name, health->blocked, segments_word(health->blocked),
                       since_text(core, health->blocked_ms).text, volume->desc.min_write,
                       health->waiting.count > 0 ? "start " : "",
                       health->waiting.count > 0 ? needed : "they are being recovered");
    if (health->degraded > 0)
        (void)snprintf(texts[count++], META_PROBLEM_BYTES,
                       "volume %s: %" PRIu64 " %s %s fewer copies than %" PRIu32 "%s: %s%s",
                       volume->desc.name, health->degraded, segments_word(health->degraded),
                       health->degraded == 1 ? "has" : "have", volume->segments.slot_count,
                       since_text(core, health->degraded_ms).text,
                       health->absent > 0    ? "start "
                       : health->no_room > 0 ? "there is no room on "
                                             : "they are being recovered",
                       health->absent > 0    ? servers
                       : health->no_room > 0 ? full
                                             : "");
    if (health->bad != NULL)
        bad_text(volume, health, texts[count++]);
    if (meta_waits_text(core, volume, texts[count], META_PROBLEM_BYTES))
        count++;
    if (health->full.count > 0)
        (void)snprintf(texts[count++], META_PROBLEM_BYTES,
                       "volume %s: new data finds no room on %s: %s", volume->desc.name, full,
                       META_HINT_FULL);
    if (health->awaited.count > 0)
        awaited_text(core, volume, health, texts[count++]);
    return count;
}

bool
meta_health_no_place(const struct meta_core *core, const struct meta_volume *volume,
                     const struct volume_health *health, char *text, size_t text_bytes)
{
    struct dl_error err;
    int result;

    if (health->unreadable > 0 || health->blocked > 0 || health->full.count > 0 ||
        volume->segments.count >= meta_volume_segment_count(&volume->desc))
        return false;
    result = meta_segment_check_place(core, volume, NULL, &err);
    if (result < 0)
        (void)snprintf(text, text_bytes, "%s; writes of new data %s until there are", err.text,
                       result == -DL_E_SERVER_DOWN ? "wait" : "fail");
    return result < 0;
}

static void
wait_text(const struct meta_core *core, const struct health_wait *wait, char *text,
          size_t text_bytes)
{
    const struct meta_server *server = wait->server_id == 0 ? NULL : core->servers[wait->server_id];
    const char *name = server == NULL ? "" : meta_server_text(server);
    uint32_t limit = core->options.recovery_per_server;
    uint64_t now_ns = env_now_ns(core->env), left_s;
    char problem[META_TEXT_BYTES_MAX] = "";

    if (server != NULL)
        meta_server_problem(core, server, problem, sizeof(problem));
    switch (wait->why) {
    case WAIT_SERVER:
        (void)snprintf(text, text_bytes, "server %s: %s", name,
                       problem[0] != '\0' ? problem : "not ready");
        return;
    case WAIT_ELSEWHERE:
        dl_assert(server != NULL);
        (void)snprintf(text, text_bytes, "server %s is %s, and no other server can take them now",
                       name,
                       server->out                                       ? "out"
                       : server->desc.admin_state == META_ADMIN_DRAINING ? "drained"
                                                                         : "being removed");
        return;
    case WAIT_ROOM:
        (void)snprintf(text, text_bytes,
                       "server %s has no room, and no other server can take them now", name);
        return;
    case WAIT_HEARD:
        (void)snprintf(text, text_bytes, "server %s has not been heard of since it was given up",
                       name);
        return;
    case WAIT_PUT_OFF:
        dl_assert(server != NULL);
        left_s = (server->resume_ns - min_u64(now_ns, server->resume_ns)) / NS_PER_S + 1;
        (void)snprintf(text, text_bytes,
                       "server %s failed while it was up, and is tried again in %" PRIu64 " s",
                       name, left_s);
        return;
    case WAIT_LIMIT:
        (void)snprintf(text, text_bytes,
                       "server %s recovers as many at once as it may (recovery_per_server, %" PRIu32
                       ")",
                       name, limit);
        return;
    case WAIT_SOURCE:
        (void)snprintf(text, text_bytes,
                       "the servers with copies in sync recover as many at once as they may "
                       "(recovery_per_server, %" PRIu32 ")",
                       limit);
        return;
    case WAIT_NO_SOURCE:
        (void)snprintf(text, text_bytes, "no server with a copy in sync can be pulled from");
        return;
    case WAIT_TURN:
    case WAIT_NOTHING:
        break;
    }
    (void)snprintf(text, text_bytes, "it is the turn of others");
}

uint32_t
meta_health_waits(const struct meta_core *core, const struct meta_volume *volume,
                  const struct volume_health *health, char (*texts)[META_PROBLEM_BYTES])
{
    for (uint32_t i = 0; i < health->wait_count; i++) {
        const struct health_wait *wait = &health->waits[i];
        char why[META_PROBLEM_BYTES / 2];

        wait_text(core, wait, why, sizeof(why));
        (void)snprintf(texts[i], META_PROBLEM_BYTES,
                       "volume %s: %" PRIu64 " %s to be recovered or moved: %s", volume->desc.name,
                       wait->count, wait->count == 1 ? "copy waits" : "copies wait", why);
    }
    return health->wait_count;
}

void
meta_health_fill_sums(struct meta_core *core, uint64_t slots_recovering, uint64_t left_bytes,
                      uint64_t *ret_rate, uint64_t *ret_left_s)
{
    uint64_t rate = slots_recovering == 0 ? 0 : core->recovery->rate_bytes_per_s;

    *ret_rate = rate;
    *ret_left_s = rate == 0 || left_bytes == 0 ? 0 : left_bytes / rate + 1;
}

/* --- VOLUME_STATUS --- */

#define VOLUME_STATUS_PROBLEMS (META_HEALTH_PROBLEMS + VOLUME_HEALTH_WAITS + 3)

static struct meta_volume *
volume_find(struct meta_op *op, const char *name)
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
meta_run_volume_status(struct meta_op *op)
{
    const Dl__VolumeStatus *message = (const Dl__VolumeStatus *)op->message;
    struct meta_volume *volume = volume_find(op, message->name);
    Dl__VolumeStatusReply reply = DL__VOLUME_STATUS_REPLY__INIT;
    Dl__Volume filled = DL__VOLUME__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    char texts[VOLUME_STATUS_PROBLEMS][META_PROBLEM_BYTES], *pointers[VOLUME_STATUS_PROBLEMS];
    struct volume_health health;
    struct scrub_message scrub;
    bool waits;

    if (volume == NULL)
        return;
    meta_scrub_fill(op->core, volume, &scrub);
    reply.scrub = &scrub.message;
    filled.policy = &policy;
    meta_volume_fill(&filled, volume);
    meta_health_volume(op->core, volume, &health);
    reply.volume = &filled;
    reply.n_problems = meta_health_problems(op->core, volume, &health, texts);
    reply.n_problems += meta_health_waits(op->core, volume, &health, texts + reply.n_problems);
    if (meta_health_no_place(op->core, volume, &health, texts[reply.n_problems],
                             META_PROBLEM_BYTES))
        reply.n_problems++;
    if (owner_lost_text(op->core, volume, texts[reply.n_problems]))
        reply.n_problems++;
    waits = volume->desc.owned && !volume->desc.ready;
    if (waits) {
        char servers[META_PROBLEM_BYTES / 2];

        meta_takeover_text(op->core, volume, servers, sizeof(servers));
        (void)snprintf(texts[reply.n_problems++], META_PROBLEM_BYTES,
                       "volume %s: its attach waits for %s", volume->desc.name,
                       servers[0] != '\0' ? servers : "its new owner to ask again");
    }
    for (size_t i = 0; i < reply.n_problems; i++)
        pointers[i] = texts[i];
    reply.problems = pointers;
    reply.state = (char *)(uintptr_t)(waits ? "blocked" : meta_health_state(&health));
    reply.since_ms = health.since_ms;
    reply.segments = health.segments;
    reply.segments_in_sync = health.in_sync;
    reply.segments_degraded = health.degraded;
    reply.segments_blocked = health.blocked;
    reply.segments_unreadable = health.unreadable;
    reply.segments_moving = health.moving;
    reply.slots_recovering = health.slots_recovering;
    reply.left_bytes = health.left_bytes;
    meta_health_fill_sums(op->core, reply.slots_recovering, reply.left_bytes,
                          &reply.rate_bytes_per_s, &reply.left_s);
    meta_op_reply(op, &reply.base);
}

/* --- SEGMENT_LOCATE --- */

/* Striping: units go round-robin over the segments of a stripe set. */
static uint32_t
segment_of_offset(const struct volume_desc *desc, uint64_t offset_bytes, uint64_t *ret_offset)
{
    uint64_t set_bytes = (uint64_t)desc->segment_bytes * desc->stripe_width;
    uint64_t set = offset_bytes / set_bytes, in_set = offset_bytes % set_bytes;
    uint64_t unit = in_set / desc->stripe_unit_bytes;

    if (desc->stripe_width == 1) {
        *ret_offset = in_set;
        return (uint32_t)set;
    }
    *ret_offset = unit / desc->stripe_width * desc->stripe_unit_bytes +
                  in_set % desc->stripe_unit_bytes;
    return (uint32_t)(set * desc->stripe_width + unit % desc->stripe_width);
}

struct located {
    Dl__LocatedSlot message;
    Dl__Slot slot;
    Dl__ServerAddress address;
    char problem[META_TEXT_BYTES_MAX];
};

static void
locate_slot(const struct meta_core *core, const struct meta_volume *volume,
            const struct segment *segment, uint32_t place, struct located *located)
{
    const struct segment_slot *slot = &segment->slots[place];
    const struct meta_repair *repair = meta_repair_find(core, volume->desc.id, segment->index);

    dl__located_slot__init(&located->message);
    dl__slot__init(&located->slot);
    dl__server_address__init(&located->address);
    located->slot.server_id = slot->server_id;
    located->slot.state = (Dl__SlotState)slot->state;
    located->slot.attempt = slot->attempt;
    located->slot.number = slot->number;
    meta_server_fill_address(&located->address, core->servers[slot->server_id]);
    meta_server_problem(core, core->servers[slot->server_id], located->problem,
                        sizeof(located->problem));
    located->message.slot = &located->slot;
    located->message.server = &located->address;
    located->message.incarnation = slot->incarnation;
    located->message.problem = located->problem;
    if (!server_is_there(core->servers[slot->server_id]))
        located->address.state = DL__SERVER_STATE__SERVER_DOWN;
    located->message.incoming = place == volume->segments.slot_count;
    if (repair != NULL && repair->slots[place].attempt != 0)
        located->message.cursor_sectors = repair->slots[place].cursor_sectors;
}

void
meta_run_segment_locate(struct meta_op *op)
{
    const Dl__SegmentLocate *message = (const Dl__SegmentLocate *)op->message;
    struct meta_volume *volume = volume_find(op, message->name);
    Dl__SegmentLocateReply reply = DL__SEGMENT_LOCATE_REPLY__INIT;
    Dl__LocatedSlot *pointers[META_REPLICAS_MAX + 1];
    struct located located[META_REPLICAS_MAX + 1];
    const struct segment *segment;
    struct dl_error err;

    if (volume == NULL)
        return;
    if (message->offset_bytes >= volume->desc.size_bytes) {
        (void)dl_error_set(&err, -DL_E_RANGE,
                           "byte %" PRIu64 " lies beyond the end of volume %s, which has %" PRIu64,
                           message->offset_bytes, volume->desc.name, volume->desc.size_bytes);
        meta_op_fail(op, &err);
        return;
    }
    reply.segment = segment_of_offset(&volume->desc, message->offset_bytes,
                                      &reply.offset_in_segment);
    reply.segment_sectors = volume->desc.segment_bytes / 4096;
    reply.slots = pointers;
    segment = meta_segments_find(&volume->segments, reply.segment);
    if (segment != NULL) {
        reply.allocated = true;
        reply.config_epoch = segment->config_epoch;
        for (uint32_t i = 0; i < volume->segments.place_count; i++) {
            if (segment->slots[i].server_id == 0)
                continue;
            locate_slot(op->core, volume, segment, i, &located[reply.n_slots]);
            pointers[reply.n_slots] = &located[reply.n_slots].message;
            reply.n_slots++;
        }
    }
    meta_op_reply(op, &reply.base);
}
