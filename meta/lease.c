/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases: attach, probe, detach.
 *
 *              attach, volume clean                       detach clean
 *   no owner ------------------------> owner, ready ------------------------> no owner, clean
 *      |                                  ^   |
 *      | attach, not clean                |   | dies, or is robbed: attach by another
 *      |                                  |   | (after a probe, or with steal)
 *      v                                  |   v
 *   owner, not ready --- each segment ----+   owner, not ready, next lease epoch
 *      |                 covered by a fence
 *      +--- dies: as any owner that did not detach cleanly
 *
 * Invariants:
 * 1. Each attach that gets the volume raises the lease epoch, in the commit that names the owner.
 * 2. `clean` is true only from the commit of a clean detach (or of the creation) to that of the
 *    next attach.
 * 3. An attach is answered only when `ready` is committed: at once if the volume was clean or has
 *    no segment, else when for each segment one in-sync slot's server has answered the fence of
 *    this lease epoch (takeover.c).
 * 4. `takeover` tells the owner to resolve; it stays until a clean detach, so an owner that asks
 *    again is told again.
 * 5. There are readers only while there is no owner and the volume is clean.  They are known in
 *    memory only.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/mutant.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/recovery.h"

struct meta_probe {
    struct meta_core *core;
    struct meta_volume *volume;
    uint32_t lease_epoch;
    struct meta_peer_request request;
    struct env_timer timer;
    struct list waiters; /* of meta_op.node */
};

/* --- whose connection is the owner's --- */

void
meta_lease_owner_text(const struct meta_core *core, const struct meta_volume *volume, char *text,
                      size_t text_bytes)
{
    uint64_t now_ms = core->env->ops->wall_ms(core->env);
    uint64_t since_ms = now_ms - min_u64(now_ms, volume->desc.attached_ms);

    (void)snprintf(text, text_bytes, "%s%s%s%s, for %s", text_quote(volume->desc.owner).text,
                   volume->owner_session != NULL ? " (connected from " : "",
                   volume->owner_session != NULL ? volume->owner_session->peer.text : "",
                   volume->owner_session != NULL ? ")" : "",
                   text_of_duration(since_ms * NS_PER_MS).text);
}

static void probe_send(struct meta_probe *probe);

/*
 * The newest connection counts: what comes late over one that the owner has given up, or waited
 * there, does not bring that back.
 */
void
meta_lease_set_owner_session(struct meta_volume *volume, struct meta_session *session)
{
    if (volume->owner_session == session || (volume->owner_session != NULL && session != NULL &&
                                             session->link->id < volume->owner_session->link->id))
        return;
    if (list_is_linked(&volume->owner_node))
        list_remove(&volume->owner_node);
    volume->owner_session = session;
    if (session == NULL)
        return;
    list_push_back(&session->owned, &volume->owner_node);
    meta_notice_owner_back(session->core, volume);
    /*
     * Somebody waits to see whether the owner comes back, or was asked on a connection that it has
     * left: it has come, so it is asked here.
     */
    if (volume->probe != NULL) {
        meta_peer_request_cancel(&volume->probe->request);
        probe_send(volume->probe);
    }
}

static void
lease_owner_lost(struct meta_core *core, struct meta_volume *volume)
{
    meta_lease_set_owner_session(volume, NULL);
    volume->owner_lost_ns = env_now_ns(core->env);
}

void
meta_reader_remove(struct meta_reader *reader)
{
    struct meta_volume *volume = reader->volume;
    struct meta_core *core = reader->session->core;

    volume->reader_count--;
    list_remove(&reader->volume_node);
    list_remove(&reader->session_node);
    free(reader);
    if (core->recovery != NULL)
        meta_removal_release(core, volume->desc.id);
}

void
meta_lease_session_down(struct meta_core *core, struct meta_session *session)
{
    while (!list_is_empty(&session->owned))
        lease_owner_lost(core, list_first_entry(&session->owned, struct meta_volume, owner_node));
    while (!list_is_empty(&session->readers))
        meta_reader_remove(list_first_entry(&session->readers, struct meta_reader, session_node));
}

/* --- the probe: does the owner live? --- */

static void
probe_free(struct meta_probe *probe)
{
    env_timer_stop(probe->core->env, &probe->timer);
    meta_peer_request_cancel(&probe->request);
    probe->volume->probe = NULL;
    free(probe);
}

static void
probe_resolved(struct meta_probe *probe, bool alive)
{
    struct meta_core *core = probe->core;

    meta_log(core, META_LOG_INFO, "lease", "volume %s: owner %s %s", probe->volume->desc.name,
             text_quote(probe->volume->desc.owner).text, alive ? "lives" : "does not answer");
    while (!list_is_empty(&probe->waiters)) {
        struct meta_op *op = list_first_entry(&probe->waiters, struct meta_op, node);

        op->probed_epoch = probe->lease_epoch;
        op->probed_alive = alive;
        meta_op_run_soon(op);
    }
    probe_free(probe);
}

static void
probe_on_reply(struct meta_peer_request *request, const struct frame *frame, int err)
{
    struct meta_probe *probe = list_entry(request, struct meta_probe, request);

    (void)err;
    if (frame != NULL)
        probe_resolved(probe, frame->status == 0);
    /* The connection broke: it may come back until the timer says no. */
}

static void
probe_on_timer(struct env_timer *timer)
{
    probe_resolved(list_entry(timer, struct meta_probe, timer), false);
}

static void
probe_send(struct meta_probe *probe)
{
    Dl__OwnerProbe message = DL__OWNER_PROBE__INIT;

    message.volume = probe->volume->desc.id;
    message.lease_epoch = probe->lease_epoch;
    env_timer_start(probe->core->env, &probe->timer, probe->core->options.probe_ns);
    meta_peer_request_send(probe->volume->owner_session, &probe->request, OP_OWNER_PROBE,
                           &message.base, probe_on_reply);
}

/*
 * How much longer an owner without a connection may take to come back; clients reconnect within a
 * second.
 */
static uint64_t
probe_patience_ns(const struct meta_core *core, const struct meta_volume *volume)
{
    uint64_t now_ns = env_now_ns(core->env);
    uint64_t until_ns = max_u64(volume->owner_lost_ns + core->options.probe_ns,
                                core->serving_ns + core->options.grace_ns);

    return until_ns > now_ns ? until_ns - now_ns : 0;
}

static void
probe_start(struct meta_core *core, struct meta_volume *volume, uint64_t patience_ns)
{
    struct meta_probe *probe = meta_alloc(sizeof(*probe));

    probe->core = core;
    probe->volume = volume;
    probe->lease_epoch = volume->desc.lease_epoch;
    probe->timer.fn = probe_on_timer;
    list_init(&probe->waiters);
    volume->probe = probe;
    if (volume->owner_session != NULL && !volume->owner_session->closing)
        probe_send(probe);
    else
        env_timer_start(core->env, &probe->timer, patience_ns);
}

bool
meta_lease_probe(struct meta_op *op, struct meta_volume *volume)
{
    struct meta_core *core = op->core;
    uint64_t patience_ns = probe_patience_ns(core, volume);

    if (op->probed_epoch == volume->desc.lease_epoch)
        return true;
    if (meta_takeover_has_attacher(volume) ||
        (volume->owner_session == NULL && volume->probe == NULL && patience_ns == 0)) {
        op->probed_epoch = volume->desc.lease_epoch;
        op->probed_alive = meta_takeover_has_attacher(volume);
        return true;
    }
    meta_op_release(op);
    if (volume->probe != NULL && volume->probe->lease_epoch != volume->desc.lease_epoch)
        meta_lease_probe_cancel(core, volume);
    if (volume->probe == NULL)
        probe_start(core, volume, patience_ns);
    meta_op_wait(op, &volume->probe->waiters);
    return false;
}

void
meta_lease_probe_cancel(struct meta_core *core, struct meta_volume *volume)
{
    struct meta_probe *probe = volume->probe;

    (void)core;
    if (probe == NULL)
        return;
    while (!list_is_empty(&probe->waiters))
        meta_op_run_soon(list_first_entry(&probe->waiters, struct meta_op, node));
    probe_free(probe);
}

/* --- attach: answers --- */

void
meta_lease_reply_attach(struct meta_op *op, struct meta_volume *volume)
{
    Dl__AttachReply reply = DL__ATTACH_REPLY__INIT;
    Dl__Volume message = DL__VOLUME__INIT;
    Dl__VolumePolicy policy = DL__VOLUME_POLICY__INIT;
    struct meta_core *core = op->core;
    struct meta_map map;

    message.policy = &policy;
    meta_volume_fill(&message, volume);
    meta_map_init(&map, op->core);
    for (uint32_t i = 0; i < volume->server_count; i++)
        meta_map_add_server(&map, op->core, volume->servers[i].server_id);
    meta_map_add_range(&map, op->core, volume, 0, META_MAP_PAGE);
    reply.volume = &message;
    reply.lease_epoch = volume->desc.lease_epoch;
    reply.n_segments = map.segment_count;
    reply.segments = map.segments;
    reply.n_servers = map.server_count;
    reply.servers = map.servers;
    reply.takeover = volume->desc.owned && volume->desc.takeover;
    reply.segments_total = volume->segments.count;
    if (volume->desc.owned && !volume->owner_answered) {
        volume->owner_answered = true;
        volume->owner_map_seq = volume->map_seq;
    }
    meta_op_reply(op, &reply.base);
    meta_map_fini(&map);
    meta_removal_release(core, volume->desc.id);
    meta_notice_owner_back(core, volume);
}

static void
attach_fail_busy(struct meta_op *op, const struct meta_volume *volume)
{
    char owner[512];
    struct dl_error err;

    if (volume->desc.owned) {
        meta_lease_owner_text(op->core, volume, owner, sizeof(owner));
        (void)dl_error_set(&err, -DL_E_VOLUME_BUSY, "volume %s is %s by %s", volume->desc.name,
                           volume->desc.ready ? "attached" : "being attached", owner);
        dl_error_hint(&err, "stop that program, or take the volume from it: dlblk attach --steal, "
                            "nbdkit steal=true");
    } else {
        const struct meta_reader *reader = list_first_entry(&volume->readers, struct meta_reader,
                                                            volume_node);

        (void)dl_error_set(&err, -DL_E_VOLUME_BUSY,
                           "volume %s is open for reading %" PRIu32 " times, first by %s",
                           volume->desc.name, volume->reader_count, text_quote(reader->owner).text);
        dl_error_hint(&err, "close it there, or take the volume: dlblk attach --steal, nbdkit "
                            "steal=true");
    }
    meta_op_fail(op, &err);
}

/* --- attach for reading --- */

static void
attach_read_only(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;
    struct meta_reader *reader;
    struct dl_error err;

    if (volume->desc.owned) {
        if (!meta_lease_probe(op, volume))
            return;
        if (op->probed_alive) {
            attach_fail_busy(op, volume);
            return;
        }
    }
    if (!volume->desc.clean) {
        (void)dl_error_set(
            &err, -DL_E_FENCE_PENDING,
            "volume %s was not detached cleanly: unfinished writes%s%s must be settled first",
            volume->desc.name, volume->desc.owned ? " of its last owner " : "",
            volume->desc.owned ? text_quote(volume->desc.owner).text : "");
        dl_error_hint(&err, "open it once for writing, and close it");
        meta_op_fail(op, &err);
        return;
    }
    if (volume->reader_count >= META_READERS_MAX) {
        (void)dl_error_set(&err, -DL_E_LIMIT,
                           "volume %s is open for reading %" PRIu32 " times, the most possible",
                           volume->desc.name, volume->reader_count);
        meta_op_fail(op, &err);
        return;
    }
    reader = meta_alloc(sizeof(*reader));
    reader->session = op->session;
    reader->volume = volume;
    reader->map_seq = volume->map_seq;
    meta_text_clean(reader->owner, message->owner);
    list_push_back(&volume->readers, &reader->volume_node);
    list_push_back(&op->session->readers, &reader->session_node);
    volume->reader_count++;
    meta_lease_reply_attach(op, volume);
}

/* --- attach for writing --- */

static uint64_t
attach_wait_ns(const struct meta_op *op)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;

    return message->wait_ms != 0 ? message->wait_ms * NS_PER_MS : op->core->options.attach_wait_ns;
}

/* The lease is committed: answer now, or when the servers have shut out the owners before. */
static void
attach_go_on(struct meta_op *op, struct meta_volume *volume)
{
    meta_op_release(op);
    if (volume->desc.ready) {
        meta_lease_reply_attach(op, volume);
        return;
    }
    if (volume->takeover == NULL)
        meta_takeover_start(op->core, volume, NULL, 0);
    meta_takeover_wait_attach(op, volume, attach_wait_ns(op));
}

/* Whoever had the volume hears that it is taken. */
static void
attach_push_out(struct meta_core *core, struct meta_volume *volume)
{
    struct dl_error err;

    (void)dl_error_set(&err, -DL_E_LEASE_OLD, "volume %s was taken over with lease %" PRIu32,
                       volume->desc.name, volume->desc.lease_epoch);
    meta_lease_probe_cancel(core, volume);
    meta_takeover_end(core, volume, &err);
    meta_volume_notify(volume, volume->owner_session, false);
    lease_owner_lost(core, volume);
    while (!list_is_empty(&volume->readers)) {
        struct meta_reader *reader = list_first_entry(&volume->readers, struct meta_reader,
                                                      volume_node);

        meta_volume_notify(volume, reader->session, false);
        meta_reader_remove(reader);
    }
}

/* After a clean detach. */
static void
attach_tell_lease(struct meta_core *core, const struct meta_volume *volume)
{
    const struct meta_repair *repair;

    list_for_each_entry (repair, &core->recovery->recovering, recovering_node)
        if (repair->key.volume_id == volume->desc.id)
            meta_tell_segment(core, volume, NULL,
                              meta_segments_find(&volume->segments, (uint32_t)repair->key.index));
}

static void
attach_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;

    meta_log(op->core, META_LOG_INFO, "lease", "volume %s: lease %" PRIu32 " for %s%s%s",
             op->desc->name, op->desc->lease_epoch, text_quote(op->desc->owner).text,
             volume->desc.owned ? ", taken from " : "",
             volume->desc.owned ? text_quote(volume->desc.owner).text : "");
    volume->desc = *op->desc;
    attach_push_out(op->core, volume);
    /* Whoever is the owner now has no older map. */
    volume->owner_answered = false;
    volume->owner_map_seq = UINT64_MAX;
    if (op->change == NULL)
        attach_tell_lease(op->core, volume);
    meta_change_apply(op);
    meta_removal_release(op->core, volume->desc.id);
    if (op->session == NULL) {
        meta_op_end(op); /* its client is gone: a lease that the next one takes over */
        return;
    }
    meta_lease_set_owner_session(volume, op->session);
    attach_go_on(op, volume);
}

/*
 * With a takeover each recovering slot begins anew: what it pulled may be of the old owner's
 * unfinished writes.  Without one it is told again, with the new lease, or its fence would stay
 * below that and it could not be promoted; the record says so until it is.
 */
static void
attach_recovering_slots(struct meta_op *op, struct meta_volume *volume, bool takeover)
{
    const struct segment_table *table = &volume->segments;
    const struct meta_repair *repair;

    list_for_each_entry (repair, &op->core->recovery->recovering, recovering_node) {
        const struct segment *segment;

        if (repair->key.volume_id != volume->desc.id)
            continue;
        segment = meta_segments_find(table, (uint32_t)repair->key.index);
        if (takeover && !DLBLK_MUTANT(meta_takeover_keep_attempt))
            meta_change_new_attempts(table, meta_change_add(op, volume, segment));
        else
            meta_record_put_segment(&op->batch, volume->desc.id, segment, table->slot_count, false);
    }
    if (op->change != NULL)
        meta_change_put(op);
}

static void
attach_commit(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;
    struct volume_desc *desc = meta_op_next_desc(op, volume);

    desc->takeover = !volume->desc.clean && volume->segments.count > 0 &&
                     !DLBLK_MUTANT(meta_forget_takeover);
    desc->ready = !desc->takeover;
    if (volume->desc.lease_epoch == 0 || !DLBLK_MUTANT(meta_reuse_lease_epoch))
        desc->lease_epoch++;
    desc->clean = false;
    desc->owned = true;
    memcpy(desc->attach_id, message->attach_id.data, META_ID_BYTES);
    meta_text_clean(desc->owner, message->owner);
    desc->attached_ms = op->core->env->ops->wall_ms(op->core->env);
    op->volume = volume;
    meta_op_put_volume(op);
    attach_recovering_slots(op, volume, desc->takeover);
    if (desc->takeover)
        meta_event_put(op, DL__EVENT_KIND__EVENT_TAKEOVER, NULL, volume, 0, volume->segments.count,
                       "volume %s: taken over by %s, with lease %" PRIu32 "; %s%s", desc->name,
                       text_quote(desc->owner).text, desc->lease_epoch,
                       volume->desc.owned ? "it was " : "its last owner did not detach cleanly",
                       volume->desc.owned ? text_quote(volume->desc.owner).text : "");
    meta_op_commit(op, attach_on_committed);
}

static bool
attach_is_repeated(const struct meta_op *op, const struct meta_volume *volume)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;

    return volume->desc.owned &&
           memcmp(volume->desc.attach_id, message->attach_id.data, META_ID_BYTES) == 0;
}

static void
attach_write(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;
    struct dl_error err;

    if (attach_is_repeated(op, volume)) {
        struct meta_session *session = op->session;

        /* The answer first: who is probed before he knows that he has it says no. */
        attach_go_on(op, volume);
        meta_lease_set_owner_session(volume, session);
        return;
    }
    if (volume->reader_count > 0 && !message->steal) {
        attach_fail_busy(op, volume);
        return;
    }
    if (volume->desc.owned && !message->steal) {
        if (!meta_lease_probe(op, volume))
            return;
        if (op->probed_alive) {
            attach_fail_busy(op, volume);
            return;
        }
    }
    if (volume->desc.lease_epoch >= META_LEASE_EPOCH_MAX) {
        (void)dl_error_set(&err, -DL_E_LIMIT,
                           "volume %s was attached %" PRIu32 " times, the most possible",
                           volume->desc.name, volume->desc.lease_epoch);
        dl_error_hint(&err, "copy its content to a new volume");
        meta_op_fail(op, &err);
        return;
    }
    if (!meta_eject_gone(op, volume, message->gone_servers, message->n_gone_servers))
        return;
    attach_commit(op, volume);
}

void
meta_run_attach(struct meta_op *op)
{
    const Dl__Attach *message = (const Dl__Attach *)op->message;
    struct meta_volume *volume;
    struct dl_error err;

    if (!meta_id_is_valid(message->attach_id)) {
        (void)dl_error_set(&err, -DL_E_MESSAGE_MALFORMED,
                           "ATTACH of volume %s without an attach id of %u bytes",
                           text_quote(message->name).text, META_ID_BYTES);
        meta_op_fail(op, &err);
        return;
    }
    volume = meta_op_volume_by_name(op, message->name);
    if (volume == NULL)
        return;
    if (message->read_only)
        attach_read_only(op, volume);
    else
        attach_write(op, volume);
}

/* --- detach --- */

static void
detach_on_committed(struct meta_op *op)
{
    struct meta_volume *volume = op->volume;
    Dl__DetachReply reply = DL__DETACH_REPLY__INIT;
    struct dl_error err;

    meta_log(op->core, META_LOG_INFO, "lease", "volume %s: detached %s by %s", volume->desc.name,
             op->desc->clean ? "cleanly" : "without having settled everything",
             text_quote(volume->desc.owner).text);
    volume->desc = *op->desc;
    (void)dl_error_set(&err, -DL_E_LEASE_OLD, "volume %s was detached", volume->desc.name);
    meta_lease_probe_cancel(op->core, volume);
    meta_takeover_end(op->core, volume, &err);
    lease_owner_lost(op->core, volume);
    meta_removal_release(op->core, volume->desc.id);
    meta_op_reply(op, &reply.base);
}

static void
detach_commit(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__Detach *message = (const Dl__Detach *)op->message;
    struct volume_desc *desc = meta_op_next_desc(op, volume);

    desc->owned = false;
    desc->owner[0] = '\0';
    desc->clean = message->clean;
    desc->ready = false;
    desc->takeover = false;
    op->volume = volume;
    meta_op_put_volume(op);
    meta_op_commit(op, detach_on_committed);
}

/* The session's read-only attachment, or NULL. */
static struct meta_reader *
detach_find_reader(const struct meta_session *session, const struct meta_volume *volume)
{
    struct meta_reader *reader;

    list_for_each_entry (reader, &session->readers, session_node)
        if (reader->volume == volume)
            return reader;
    return NULL;
}

/* What needs no commit.  True: answered. */
static bool
detach_is_done(struct meta_op *op, struct meta_volume *volume)
{
    const Dl__Detach *message = (const Dl__Detach *)op->message;
    Dl__DetachReply reply = DL__DETACH_REPLY__INIT;
    struct meta_reader *reader = detach_find_reader(op->session, volume);

    if (volume->desc.deleting || volume->desc.owned ||
        volume->desc.lease_epoch != message->lease_epoch)
        return false;
    if (reader != NULL)
        meta_reader_remove(reader);
    meta_op_reply(op, &reply.base);
    return true;
}

void
meta_run_detach(struct meta_op *op)
{
    const Dl__Detach *message = (const Dl__Detach *)op->message;
    struct meta_volume *volume = meta_volume_by_id(op->core, message->volume);
    struct dl_error err;

    if (volume != NULL && !volume->creating) {
        if (!meta_op_take(op, &volume->serial) || detach_is_done(op, volume))
            return;
    }
    volume = meta_op_volume_by_lease(op, message->volume, message->lease_epoch);
    if (volume == NULL)
        return;
    if (message->clean && !volume->desc.ready) {
        (void)dl_error_set(
            &err, -DL_E_FENCE_PENDING,
            "volume %s can not be detached cleanly: its attach has not been answered yet",
            volume->desc.name);
        meta_op_fail(op, &err);
        return;
    }
    detach_commit(op, volume);
}
