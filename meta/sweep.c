/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sweeps: changes of all slots of one server, some hundred segments per commit, volume by volume.
 *
 *   out      the server is out, or being removed: its in-sync and recovering slots are ejected
 *   renew    it was started anew: each of its recovering slots begins a new attempt
 *   nothing  its disk went back in time, or is damaged: all of its slots are ejected, and will be
 *            recovered from nothing (a new incarnation)
 *
 * The last in-sync slot of a segment is never ejected.
 *
 * The last two come before the registration of the server is committed, so that a restart of this
 * service in between loses nothing: the server registers again and is swept again.  And `nothing`
 * waits until everybody who uses one of these volumes knows the new map: nobody reads from that
 * disk what it has forgotten.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "common/mutant.h"
#include "common/text.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define SWEEP_BATCH   256u
#define WARN_AFTER_NS (10 * NS_PER_S)

enum sweep_kind { SWEEP_OUT, SWEEP_RENEW, SWEEP_NOTHING };

struct sweep_volume {
    uint64_t id;
    uint64_t map_seq; /* of our last change */
};

struct meta_sweep {
    struct list node; /* in meta_recovery.sweeps */
    struct meta_core *core;
    uint32_t server_id;
    enum sweep_kind kind;
    bool cancelled;
    bool done;
    struct sweep_volume *volumes;
    uint32_t volume_count;
    uint32_t at;    /* the volume that is its turn */
    uint32_t index; /* segments below it are done */
    uint64_t changed;
    uint64_t done_ns; /* since when it waits for those who use the volumes; 0: it was said */
    /* renew, nothing: of which registration. */
    uint64_t start_count;
    uint8_t instance[META_ID_BYTES];
};

static void
sweep_free(struct meta_sweep *sweep)
{
    list_remove(&sweep->node);
    free(sweep->volumes);
    free(sweep);
}

/* --- one segment --- */

/* False: it stays as it is. */
static bool
slot_wants_change(const struct segment_slot *slot, enum sweep_kind kind, uint32_t in_sync)
{
    switch (slot->state) {
    case DL__SLOT_STATE__SLOT_IN_SYNC:
        return kind != SWEEP_RENEW && in_sync > 1;
    case DL__SLOT_STATE__SLOT_RECOVERING:
        return true;
    default:
        return kind == SWEEP_NOTHING;
    }
}

static void
sweep_change(struct meta_op *op, const struct meta_sweep *sweep, struct meta_volume *volume,
             const struct segment *segment, uint32_t place)
{
    struct segment *next = meta_change_add(op, volume, segment);
    struct segment_slot *slot = &next->slots[place];
    bool was_in_sync = slot->state == DL__SLOT_STATE__SLOT_IN_SYNC;

    if (sweep->kind == SWEEP_RENEW) {
        meta_change_recover(next, slot);
        return;
    }
    slot->state = DL__SLOT_STATE__SLOT_EJECTED;
    slot->attempt = 0;
    if (sweep->kind == SWEEP_NOTHING)
        slot->incarnation = next->config_epoch;
    if (was_in_sync && !DLBLK_MUTANT(meta_out_keep_attempt))
        meta_change_new_attempts(&volume->segments, next);
}

/* Up to SWEEP_BATCH changes.  True: there may be more. */
static bool
sweep_collect(struct meta_op *op, struct meta_sweep *sweep, struct meta_volume *volume)
{
    const struct segment_table *table = &volume->segments;
    struct segment *segment = meta_segments_at_or_after(table, sweep->index);

    for (; segment != NULL; segment = meta_segments_after(table, segment->index)) {
        uint32_t place = meta_segment_place_of(table, segment, sweep->server_id);

        if (op->change != NULL && op->change->count == SWEEP_BATCH)
            return true;
        sweep->index = segment->index + 1;
        if (place == UINT32_MAX)
            continue;
        if (slot_wants_change(&segment->slots[place], sweep->kind,
                              meta_segment_in_sync(table, segment)))
            sweep_change(op, sweep, volume, segment, place);
        else
            meta_repair_update(sweep->core, volume, segment); /* the scheduler looks after it */
    }
    return false;
}

/* --- all of them --- */

static void
sweep_wake(struct meta_server *server)
{
    while (!list_is_empty(&server->settle_ops))
        meta_op_run_soon(list_first_entry(&server->settle_ops, struct meta_op, node));
}

static void
sweep_finish(struct meta_op *op, struct meta_sweep *sweep)
{
    struct meta_server *server = meta_server_by_id(sweep->core, sweep->server_id);

    meta_op_end(op);
    if (sweep->cancelled) {
        sweep_free(sweep);
        return;
    }
    if (sweep->changed > 0)
        meta_log(sweep->core, META_LOG_WARNING, "sweep", "server %s: %" PRIu64 " of its slots %s",
                 meta_server_text(server), sweep->changed,
                 sweep->kind == SWEEP_OUT     ? "were ejected"
                 : sweep->kind == SWEEP_RENEW ? "recover on"
                                              : "were ejected, to be recovered from nothing");
    meta_recovery_kick(sweep->core);
    sweep->done = true;
    sweep->done_ns = env_now_ns(sweep->core->env);
    if (sweep->kind == SWEEP_OUT) {
        server->sweep = NULL;
        sweep_free(sweep);
    } else {
        meta_sweep_tick(sweep->core, server);
    }
}

static void
sweep_on_committed(struct meta_op *op)
{
    struct meta_sweep *sweep = *(struct meta_sweep **)op->scratch;

    sweep->changed += op->change->count;
    meta_change_apply(op);
    sweep->volumes[sweep->at].map_seq = op->volume->map_seq;
    if (!op->verdict) {
        meta_op_release(op);
        sweep->at++;
        sweep->index = 0;
    }
    meta_op_run_soon(op);
}

/* The core's own op: op->scratch points to the sweep. */
static void
sweep_run(struct meta_op *op)
{
    struct meta_sweep *sweep = *(struct meta_sweep **)op->scratch;
    struct meta_volume *volume;

    for (; !sweep->cancelled && sweep->at < sweep->volume_count; sweep->at++, sweep->index = 0) {
        volume = meta_volume_by_id(sweep->core, sweep->volumes[sweep->at].id);
        if (volume == NULL || volume->desc.deleting)
            continue;
        if (!meta_op_take(op, &volume->serial))
            return;
        op->verdict = sweep_collect(op, sweep, volume);
        if (op->change != NULL) {
            op->volume = volume;
            meta_change_put(op);
            meta_op_commit(op, sweep_on_committed);
            return;
        }
        meta_op_release(op);
    }
    sweep_finish(op, sweep);
}

static const struct meta_handler sweep_handler = {.run = sweep_run};

static int
volume_id_compare(const void *a, const void *b)
{
    uint64_t left = ((const struct sweep_volume *)a)->id;
    uint64_t right = ((const struct sweep_volume *)b)->id;

    return left < right ? -1 : left > right;
}

static bool
volume_has_server(const struct meta_volume *volume, uint32_t server_id)
{
    for (uint32_t i = 0; i < volume->server_count; i++)
        if (volume->servers[i].server_id == server_id)
            return true;
    return false;
}

static struct meta_sweep *
sweep_start(struct meta_core *core, struct meta_server *server, enum sweep_kind kind)
{
    struct meta_sweep *sweep = meta_alloc(sizeof(*sweep));
    struct meta_volume *volume, *following;
    struct meta_op *op;

    sweep->core = core;
    sweep->server_id = server->desc.id;
    sweep->kind = kind;
    list_push_back(&core->recovery->sweeps, &sweep->node);
    sweep->volumes = meta_alloc(core->volume_count * sizeof(*sweep->volumes));
    HASH_ITER (hh, core->volumes, volume, following)
        if (!volume->desc.deleting && volume_has_server(volume, server->desc.id))
            sweep->volumes[sweep->volume_count++].id = volume->desc.id;
    qsort(sweep->volumes, sweep->volume_count, sizeof(*sweep->volumes), volume_id_compare);
    op = meta_op_create_internal(core, &sweep_handler);
    op->scratch = meta_copy(&sweep, sizeof(sweep));
    return sweep;
}

void
meta_sweep_cancel(struct meta_sweep *sweep)
{
    if (sweep == NULL)
        return;
    if (sweep->done)
        sweep_free(sweep);
    else
        sweep->cancelled = true; /* its op frees it */
}

void
meta_sweep_free_all(struct meta_core *core)
{
    struct meta_sweep *sweep, *following;

    list_for_each_entry_safe (sweep, following, &core->recovery->sweeps, node)
        sweep_free(sweep);
}

void
meta_sweep_out(struct meta_core *core, struct meta_server *server)
{
    if (server->sweep == NULL)
        server->sweep = sweep_start(core, server, SWEEP_OUT);
}

/* --- registrations --- */

/* Does everybody who uses these volumes know what became of the slots? */
static bool
sweep_is_known(const struct meta_sweep *sweep)
{
    for (uint32_t i = 0; i < sweep->volume_count; i++) {
        const struct meta_volume *volume = meta_volume_by_id(sweep->core, sweep->volumes[i].id);

        if (volume != NULL && !volume->desc.deleting &&
            !meta_notice_is_known(volume, sweep->volumes[i].map_seq))
            return false;
    }
    return true;
}

static bool
sweep_is_settled(const struct meta_sweep *sweep)
{
    return sweep->done && (sweep->kind != SWEEP_NOTHING || sweep_is_known(sweep));
}

/* Whom it waits for, once. */
static void
sweep_warn(struct meta_core *core, const struct meta_server *server, struct meta_sweep *sweep)
{
    if (!sweep->done || sweep->done_ns == 0 || list_is_empty(&server->settle_ops) ||
        env_now_ns(core->env) - sweep->done_ns < WARN_AFTER_NS)
        return;
    sweep->done_ns = 0;
    for (uint32_t i = 0; i < sweep->volume_count; i++) {
        const struct meta_volume *volume = meta_volume_by_id(core, sweep->volumes[i].id);

        if (volume == NULL || volume->desc.deleting ||
            meta_notice_is_known(volume, sweep->volumes[i].map_seq))
            continue;
        meta_log(core, META_LOG_ERROR, "sweep",
                 "server %s: not admitted before %s of volume %s knows that its disk went back: "
                 "attach the volume with --steal if that is gone",
                 meta_server_text(server),
                 volume->desc.owned ? text_quote(volume->desc.owner).text : "a reader",
                 volume->desc.name);
        return;
    }
}

void
meta_sweep_tick(struct meta_core *core, struct meta_server *server)
{
    if (server->settle != NULL)
        sweep_warn(core, server, server->settle);
    if (server->settle != NULL && !list_is_empty(&server->settle_ops) &&
        sweep_is_settled(server->settle))
        sweep_wake(server);
}

void
meta_sweep_known(struct meta_core *core)
{
    struct meta_sweep *sweep;

    list_for_each_entry (sweep, &core->recovery->sweeps, node)
        if (sweep->kind == SWEEP_NOTHING && sweep->done && !sweep->cancelled)
            meta_sweep_tick(core, meta_server_by_id(core, sweep->server_id));
}

void
meta_sweep_settled(struct meta_server *server)
{
    meta_sweep_cancel(server->settle);
    server->settle = NULL;
}

/* A segment that would be left without any in-sync slot. */
static bool
server_has_last(const struct meta_core *core, uint32_t server_id,
                const struct meta_volume **ret_volume, uint32_t *ret_index)
{
    struct meta_volume *volume, *following;

    HASH_ITER (hh, core->volumes, volume, following) {
        const struct segment_table *table = &volume->segments;
        const struct segment *segment = meta_segments_at_or_after(table, 0);

        if (volume->desc.deleting || !volume_has_server(volume, server_id))
            continue;
        for (; segment != NULL; segment = meta_segments_after(table, segment->index)) {
            uint32_t place = meta_segment_place_of(table, segment, server_id);

            if (place == UINT32_MAX ||
                segment->slots[place].state != DL__SLOT_STATE__SLOT_IN_SYNC ||
                meta_segment_in_sync(table, segment) > 1)
                continue;
            *ret_volume = volume;
            *ret_index = segment->index;
            return true;
        }
    }
    return false;
}

static bool
settle_is_refused(struct meta_op *op, const struct meta_server *server)
{
    const struct meta_volume *volume;
    uint32_t index;
    struct dl_error err;

    if (!server_has_last(op->core, server->desc.id, &volume, &index))
        return false;
    (void)dl_error_set(&err, -DL_E_SERVER_WENT_BACK,
                       "the disk of server %s is damaged, or an older copy of itself, and it has "
                       "the last copy of segment %" PRIu32 " of volume %s",
                       meta_server_text(server), index, volume->desc.name);
    dl_error_hint(&err, "start the servers that have the other copies; or delete the volume");
    meta_log(op->core, META_LOG_ERROR, "server", "registration refused: %s", err.text);
    meta_op_fail(op, &err);
    return true;
}

bool
meta_sweep_settle(struct meta_op *op, struct meta_server *server, bool from_nothing)
{
    const Dl__ServerRegister *message = (const Dl__ServerRegister *)op->message;
    enum sweep_kind kind = from_nothing ? SWEEP_NOTHING : SWEEP_RENEW;
    struct meta_sweep *sweep = server->settle;

    if (sweep != NULL && (sweep->start_count != message->start_count || sweep->kind < kind ||
                          memcmp(sweep->instance, op->session->instance, META_ID_BYTES) != 0)) {
        meta_sweep_settled(server);
        sweep = NULL;
    }
    if (sweep != NULL && sweep_is_settled(sweep)) {
        /* The other slots may have gone meanwhile. */
        if (sweep->kind == SWEEP_NOTHING && settle_is_refused(op, server)) {
            meta_sweep_settled(server);
            return false;
        }
        return true;
    }
    if (sweep == NULL) {
        if (kind == SWEEP_NOTHING && settle_is_refused(op, server))
            return false;
        sweep = server->settle = sweep_start(op->core, server, kind);
        sweep->start_count = message->start_count;
        memcpy(sweep->instance, op->session->instance, META_ID_BYTES);
    }
    meta_op_release(op);
    meta_op_wait(op, &server->settle_ops);
    return false;
}
