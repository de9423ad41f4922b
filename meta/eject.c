/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EJECT: slots that failed a write of the owner.  docs/recovery.md, rules 1 to 3.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/mutant.h"
#include "common/text.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define BACKOFF_NS_MAX    (15 * NS_PER_S)
#define BACKOFF_FORGET_NS (60 * NS_PER_S)
#define GONE_BATCH        256u /* segments of one commit */
#define GONE_NAMES_BYTES  256u

static bool
ejection_names(const Dl__Ejection *ejection, uint32_t server_id)
{
    for (size_t i = 0; i < ejection->n_server_ids; i++)
        if (ejection->server_ids[i] == server_id)
            return true;
    return false;
}

static int
eject_check(struct meta_op *op, const struct meta_volume *volume, struct dl_error *err)
{
    const Dl__Eject *message = (const Dl__Eject *)op->message;

    if (message->n_ejections == 0 || message->n_ejections > META_ALLOCATE_MAX)
        return dl_error_set(err, -DL_E_MESSAGE_MALFORMED,
                            "EJECT of %zu segments: 1 to %u are possible", message->n_ejections,
                            META_ALLOCATE_MAX);
    for (size_t i = 0; i < message->n_ejections; i++) {
        const Dl__Ejection *ejection = message->ejections[i];

        if (meta_segments_find(&volume->segments, ejection->segment) == NULL)
            return dl_error_set(err, -DL_E_RANGE,
                                "EJECT in segment %" PRIu32 " of volume %s, which is not allocated",
                                ejection->segment, volume->desc.name);
        for (size_t k = 0; k < ejection->n_server_ids; k++)
            if (ejection->server_ids[k] == 0)
                return dl_error_set(err, -DL_E_MESSAGE_MALFORMED, "EJECT of server 0");
    }
    if (!volume->desc.ready)
        return dl_error_set(err, -DL_E_FENCE_PENDING,
                            "volume %s: the attach with lease %" PRIu32
                            " has not been answered yet",
                            volume->desc.name, volume->desc.lease_epoch);
    return 0;
}

struct ejection_count {
    uint32_t in_sync, recovering; /* of those that it names */
};

static struct ejection_count
ejection_count(const struct meta_volume *volume, const struct segment *segment,
               const Dl__Ejection *ejection)
{
    struct ejection_count count = {0};

    for (uint32_t i = 0; i < volume->segments.place_count; i++) {
        if (!ejection_names(ejection, segment->slots[i].server_id))
            continue;
        count.in_sync += segment->slots[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
        count.recovering += segment->slots[i].state == DL__SLOT_STATE__SLOT_RECOVERING;
    }
    return count;
}

static void
ejection_apply(struct meta_op *op, struct meta_volume *volume, const struct segment *segment,
               const Dl__Ejection *ejection, const struct ejection_count *count)
{
    struct segment *next = meta_change_add(op, volume, segment);

    for (uint32_t i = 0; i < volume->segments.place_count; i++) {
        struct segment_slot *slot = &next->slots[i];

        if (!ejection_names(ejection, slot->server_id))
            continue;
        slot->state = DL__SLOT_STATE__SLOT_EJECTED;
        slot->attempt = 0;
    }
    /* What the recovering slots pulled may come from a slot that is none any more. */
    if (count->in_sync > 0 && !ejection->resolved && !DLBLK_MUTANT(meta_eject_keep_attempt))
        meta_change_new_attempts(&volume->segments, next);
}

static const char *
reason_text(Dl__EjectReason reason)
{
    switch (reason) {
    case DL__EJECT_REASON__EJECT_CONNECTION:
        return "no connection";
    case DL__EJECT_REASON__EJECT_SILENT:
        return "silent";
    case DL__EJECT_REASON__EJECT_SLOW:
        return "a write took too long";
    case DL__EJECT_REASON__EJECT_FULL:
        return "full";
    default:
        return "a write failed";
    }
}

/*
 * A server that is up, but fails: when it recovers at once it is waited for at once.  Each time
 * longer, but for one that did well for a while.
 */
static void
server_put_off(struct meta_core *core, struct meta_server *server)
{
    uint64_t now_ns = env_now_ns(core->env);

    if (now_ns < server->resume_ns)
        return; /* of the same failure */
    if (now_ns - server->resume_ns > BACKOFF_FORGET_NS)
        server->backoff_ns = 0;
    server->backoff_ns = min_u64(BACKOFF_NS_MAX, max_u64(NS_PER_S, 2 * server->backoff_ns));
    server->resume_ns = now_ns + server->backoff_ns;
}

/* One event for each server that the message names, with its first segment. */
static void
eject_log(struct meta_op *op, const struct meta_volume *volume)
{
    const Dl__Eject *message = (const Dl__Eject *)op->message;
    uint32_t logged[META_REPLICAS_MAX];
    uint32_t logged_count = 0;

    for (size_t i = 0; i < message->n_ejections; i++) {
        const Dl__Ejection *ejection = message->ejections[i];
        char detail[META_TEXT_BYTES_MAX + 1];

        if (meta_change_find(op, ejection->segment) == NULL)
            continue;
        for (size_t k = 0; k < ejection->n_server_ids; k++) {
            struct meta_server *server = meta_server_by_id(op->core, ejection->server_ids[k]);
            bool known = server == NULL || logged_count == META_REPLICAS_MAX;

            for (uint32_t j = 0; j < logged_count; j++)
                known = known || logged[j] == ejection->server_ids[k];
            if (known)
                continue;
            logged[logged_count++] = ejection->server_ids[k];
            server_put_off(op->core, server);
            meta_text_clean(detail, ejection->detail);
            meta_event_put(op, DL__EVENT_KIND__EVENT_EJECTED, server, volume, ejection->segment,
                           op->change->count,
                           "server %s: ejected from up to %" PRIu32
                           " segment%s of volume %s by its owner: %s%s%s",
                           meta_server_text(server), op->change->count,
                           op->change->count == 1 ? "" : "s", volume->desc.name,
                           reason_text(ejection->reason), detail[0] != '\0' ? ": " : "", detail);
        }
    }
}

/* Segments where too few would be left are in op->scratch. */
static void
eject_reply(struct meta_op *op, const struct meta_volume *volume)
{
    const Dl__Eject *message = (const Dl__Eject *)op->message;
    Dl__EjectReply reply = DL__EJECT_REPLY__INIT;
    struct meta_map map;

    meta_map_init(&map, op->core);
    for (size_t i = 0; i < message->n_ejections; i++)
        meta_map_add_segment(&map, op->core, volume,
                             meta_segments_find(&volume->segments, message->ejections[i]->segment));
    reply.segments = map.segments;
    reply.n_segments = map.segment_count;
    reply.servers = map.servers;
    reply.n_servers = map.server_count;
    reply.refused = op->scratch;
    reply.n_refused = op->scratch_count;
    meta_op_reply(op, &reply.base);
    meta_map_fini(&map);
}

static void
eject_on_committed(struct meta_op *op)
{
    const Dl__Eject *message = (const Dl__Eject *)op->message;
    struct meta_volume *volume = op->volume;

    meta_change_apply(op);
    for (size_t i = 0; i < message->n_ejections; i++) {
        const Dl__Ejection *ejection = message->ejections[i];

        if (ejection->reason != DL__EJECT_REASON__EJECT_FULL)
            continue;
        for (size_t k = 0; k < ejection->n_server_ids; k++)
            meta_repair_mark_full(op->core, volume, ejection->segment, ejection->server_ids[k]);
    }
    eject_reply(op, volume);
}

/* One segment: nothing, refused, or part of the change. */
static void
eject_segment(struct meta_op *op, struct meta_volume *volume, const Dl__Ejection *ejection)
{
    const struct segment *segment = meta_segments_find(&volume->segments, ejection->segment);
    struct ejection_count count = ejection_count(volume, segment, ejection);
    uint32_t left = meta_segment_in_sync(&volume->segments, segment) - count.in_sync;

    if (meta_change_find(op, ejection->segment) != NULL)
        return; /* named twice: it has another config epoch by now */
    if (ejection->config_epoch != segment->config_epoch && !DLBLK_MUTANT(meta_eject_forget_epoch))
        return;
    if (count.in_sync + count.recovering == 0)
        return;
    if (count.in_sync > 0 &&
        left < (DLBLK_MUTANT(meta_eject_below_min) ? 1 : volume->desc.min_write)) {
        ((uint32_t *)op->scratch)[op->scratch_count++] = ejection->segment;
        return;
    }
    ejection_apply(op, volume, segment, ejection, &count);
}

void
meta_run_eject(struct meta_op *op)
{
    const Dl__Eject *message = (const Dl__Eject *)op->message;
    struct meta_volume *volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
    struct dl_error err;

    if (volume == NULL || !meta_op_take(op, &volume->serial))
        return;
    if (eject_check(op, volume, &err) < 0) {
        meta_op_fail(op, &err);
        return;
    }
    free(op->scratch);
    op->scratch = meta_alloc(message->n_ejections * sizeof(uint32_t));
    op->scratch_count = 0;
    op->volume = volume;
    for (size_t i = 0; i < message->n_ejections; i++)
        eject_segment(op, volume, message->ejections[i]);
    if (op->change == NULL) {
        eject_reply(op, volume);
        return;
    }
    eject_log(op, volume);
    meta_change_put(op);
    meta_op_commit(op, eject_on_committed);
}

/* --- servers that an operator says are gone --- */

static void
gone_on_committed(struct meta_op *op)
{
    meta_change_apply(op);
    if (op->session == NULL)
        meta_op_end(op);
    else
        meta_op_run_soon(op); /* holds the serial on */
}

static int
gone_check(struct meta_core *core, const uint32_t *server_ids, size_t server_count,
           struct dl_error *err)
{
    for (size_t i = 0; i < server_count; i++) {
        const struct meta_server *server = meta_server_by_id(core, server_ids[i]);

        if (server == NULL || server->creating)
            return dl_error_set(err, -DL_E_SERVER_UNKNOWN, "server %" PRIu32 " does not exist",
                                server_ids[i]);
        if (server->session != NULL)
            return dl_error_set(err, -DL_E_BUSY, "server %s is not gone: it is connected from %s",
                                meta_server_text(server), server->session->peer.text);
    }
    return 0;
}

static void
gone_names(struct meta_core *core, const uint32_t *server_ids, size_t server_count, char *text,
           size_t text_bytes)
{
    size_t used = 0;

    for (size_t i = 0; i < server_count && used + 1 < text_bytes; i++)
        used += (size_t)snprintf(text + used, text_bytes - used, "%sserver %s", i == 0 ? "" : ", ",
                                 meta_server_text(meta_server_by_id(core, server_ids[i])));
}

/* The last in-sync slot stays, whoever says what. */
static void
gone_segment(struct meta_op *op, struct meta_volume *volume, const struct segment *segment,
             const uint32_t *server_ids, size_t server_count)
{
    const struct segment_table *table = &volume->segments;
    uint32_t in_sync = meta_segment_in_sync(table, segment);
    struct segment *next = NULL;
    bool was_in_sync = false;

    for (size_t i = 0; i < server_count; i++) {
        uint32_t place = meta_segment_place_of(table, segment, server_ids[i]);
        uint32_t state = place == UINT32_MAX ? 0 : segment->slots[place].state;

        if (state != DL__SLOT_STATE__SLOT_RECOVERING &&
            (state != DL__SLOT_STATE__SLOT_IN_SYNC || in_sync == 1))
            continue;
        if (next == NULL)
            next = meta_change_add(op, volume, segment);
        next->slots[place].state = DL__SLOT_STATE__SLOT_EJECTED;
        next->slots[place].attempt = 0;
        if (state == DL__SLOT_STATE__SLOT_IN_SYNC) {
            in_sync--;
            was_in_sync = true;
        }
    }
    if (was_in_sync)
        meta_change_new_attempts(table, next);
}

bool
meta_eject_gone(struct meta_op *op, struct meta_volume *volume, const uint32_t *server_ids,
                size_t server_count)
{
    const struct segment *segment = meta_segments_at_or_after(&volume->segments, 0);
    char names[GONE_NAMES_BYTES];
    struct dl_error err;

    if (server_count == 0)
        return true;
    if (gone_check(op->core, server_ids, server_count, &err) < 0) {
        meta_op_fail(op, &err);
        return false;
    }
    for (; segment != NULL; segment = meta_segments_after(&volume->segments, segment->index)) {
        if (op->change != NULL && op->change->count == GONE_BATCH)
            break;
        gone_segment(op, volume, segment, server_ids, server_count);
    }
    if (op->change == NULL)
        return true;
    op->volume = volume;
    gone_names(op->core, server_ids, server_count, names, sizeof(names));
    meta_event_put(op, DL__EVENT_KIND__EVENT_EJECTED, meta_server_by_id(op->core, server_ids[0]),
                   volume, op->change->segments[0]->index, op->change->count,
                   "%s: ejected from up to %" PRIu32
                   " %s of volume %s by an operator's word that %s gone",
                   names, op->change->count, op->change->count == 1 ? "segment" : "segments",
                   volume->desc.name, server_count == 1 ? "it is" : "they are");
    meta_change_put(op);
    meta_op_commit(op, gone_on_committed);
    return false;
}
