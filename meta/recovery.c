/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recovery: which slots want something, and when it is their turn.
 *
 * A segment is in the table of repairs as long as something about it is not as it should be: a slot
 * that is ejected or recovering, an incoming one, an in-sync one on a server that is to be emptied.
 * The scheduler takes those with the fewest in-sync slots first, then who waits longest, and makes
 * one change at a time:
 *
 *   resume    ejected -> recovering, its server is there again
 *   replace   ejected -> recovering on another server: its own is out, drained, or full
 *   incoming  an in-sync slot on a server that is to be emptied gets one that will replace it
 *   drop      an incoming slot whose server can not go on
 *   eject     an in-sync slot of a server that is out, once it is not the last one any more
 *
 * Limits: recovery_per_server slots recovering onto, and as many from, a server.  All of this is
 * memory; a restart makes it anew from the map.
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
#include "meta/placement.h"
#include "meta/recovery.h"

#define SCHEDULE_EVERY_NS (500 * NS_PER_MS)
#define SCHEDULE_MAX      64u /* changes begun in one round, and other servers looked for */
#define SCHEDULE_MANY     1000u
#define SCHEDULE_PAUSE_NS (50 * NS_PER_MS)
#define STUCK_NS          (30 * NS_PER_S)
#define RATE_NS           (2 * NS_PER_S)
#define REBALANCE_NS      NS_PER_S
#define REBALANCE_TRIES   16u
#define RECOVERED_NS      (10 * NS_PER_S) /* one event for all that became in-sync meanwhile */
#define MOVES_BUCKET      (META_REPLICAS_MAX + 1)

static void schedule_on_task(struct env_task *task);
static void schedule_on_timer(struct env_timer *timer);

void
meta_recovery_create(struct meta_core *core)
{
    struct meta_recovery *recovery = meta_alloc(sizeof(*recovery));

    recovery->core = core;
    core->recovery = recovery;
    for (unsigned i = 0; i < META_REPLICAS_MAX + 2; i++)
        list_init(&recovery->waiting[i]);
    list_init(&recovery->recovering);
    list_init(&recovery->busy);
    list_init(&recovery->notices);
    list_init(&recovery->sweeps);
    list_init(&recovery->events);
    list_init(&recovery->event_pollers);
    list_init(&recovery->event_posts);
    meta_serial_init(&recovery->event_serial);
    recovery->event_next = 1;
    recovery->schedule_task.fn = schedule_on_task;
    recovery->schedule_timer.fn = schedule_on_timer;
}

/* --- servers --- */

bool
meta_server_takes_chunks(const struct meta_server *server)
{
    return server->session != NULL && server->up && !server->damaged && !server->out &&
           server->stopped[0] == '\0' && server->desc.admin_state == META_ADMIN_IN_USE;
}

/* For one more chunk, beside those that recover there: what they pull takes from the reserve. */
static bool
server_has_room(const struct meta_server *server, const struct volume_desc *desc, uint32_t onto)
{
    return server->available_bytes / (onto + 1) >= meta_volume_chunk_bytes(desc);
}

/* Can it go on with a chunk that it has? */
static bool
server_is_fit(const struct meta_server *server)
{
    return server->session != NULL && server->up && !server->out && server->stopped[0] == '\0';
}

static bool
server_is_emptied(const struct meta_server *server)
{
    return server->out || server->desc.admin_state != META_ADMIN_IN_USE;
}

/* --- the table --- */

struct meta_repair *
meta_repair_find(const struct meta_core *core, uint64_t volume_id, uint32_t index)
{
    struct meta_repair probe, *repair;

    memset(&probe, 0, sizeof(probe));
    probe.key.volume_id = volume_id;
    probe.key.index = index;
    HASH_FIND(hh, core->recovery->repairs, &probe.key, sizeof(probe.key), repair);
    return repair;
}

static void
repair_remove(struct meta_core *core, struct meta_repair *repair)
{
    struct meta_volume *volume;

    if (list_is_linked(&repair->waiting_node))
        list_remove(&repair->waiting_node);
    if (list_is_linked(&repair->recovering_node))
        list_remove(&repair->recovering_node);
    if (list_is_linked(&repair->busy_node))
        list_remove(&repair->busy_node);
    HASH_DEL(core->recovery->repairs, repair);
    core->recovery->repair_count--;
    volume = meta_volume_by_id(core, repair->key.volume_id);
    if (volume != NULL)
        volume->repair_count--;
    free(repair);
}

static struct meta_repair *
repair_create(struct meta_core *core, struct meta_volume *volume, uint32_t index)
{
    struct meta_repair *repair = meta_alloc(sizeof(*repair) + volume->segments.place_count *
                                                                  sizeof(struct repair_slot));

    repair->key.volume_id = volume->desc.id;
    repair->key.index = index;
    repair->since_ns = env_now_ns(core->env);
    repair->since_ms = core->env->ops->wall_ms(core->env);
    repair->in_sync = UINT32_MAX;
    list_init(&repair->waiting_node);
    list_init(&repair->recovering_node);
    list_init(&repair->busy_node);
    HASH_ADD(hh, core->recovery->repairs, key, sizeof(repair->key), repair);
    core->recovery->repair_count++;
    volume->repair_count++;
    return repair;
}

struct wants {
    bool waiting;    /* the scheduler may have to do something */
    bool recovering; /* a slot is recovering */
    bool ejected;
};

static struct wants
segment_wants(const struct meta_core *core, const struct segment_table *table,
              const struct segment *segment)
{
    struct wants wants = {0};

    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];

        if (slot->server_id == 0)
            continue;
        wants.ejected |= slot->state == DL__SLOT_STATE__SLOT_EJECTED;
        wants.recovering |= slot->state == DL__SLOT_STATE__SLOT_RECOVERING;
        wants.waiting |= slot->state == DL__SLOT_STATE__SLOT_EJECTED ||
                         server_is_emptied(core->servers[slot->server_id]);
    }
    return wants;
}

static bool
slot_is_in_sync_on(const struct segment_table *table, const struct segment *segment,
                   uint32_t server_id)
{
    uint32_t place = server_id == 0 ? UINT32_MAX : meta_segment_place_of(table, segment, server_id);

    return place != UINT32_MAX && segment->slots[place].state == DL__SLOT_STATE__SLOT_IN_SYNC;
}

/* The progress of attempts that are over is forgotten. */
static void
repair_update_slots(struct meta_core *core, struct meta_repair *repair,
                    const struct segment_table *table, const struct segment *segment)
{
    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];
        struct repair_slot *progress = &repair->slots[i];
        uint32_t source_id = progress->source_id;
        bool full = progress->full && slot->state == DL__SLOT_STATE__SLOT_EJECTED &&
                    progress->server_id == slot->server_id;

        if (slot->state != DL__SLOT_STATE__SLOT_RECOVERING)
            *progress = (struct repair_slot){.server_id = full ? slot->server_id : 0, .full = full};
        else if (progress->attempt != slot->attempt || progress->server_id != slot->server_id)
            *progress = (struct repair_slot){
                .server_id = slot->server_id,
                .attempt = slot->attempt,
                .source_id = source_id,
                .moved_ns = env_now_ns(core->env),
            };
        if (!slot_is_in_sync_on(table, segment, progress->source_id))
            progress->source_id = 0;
    }
}

void
meta_repair_mark_full(struct meta_core *core, const struct meta_volume *volume, uint32_t index,
                      uint32_t server_id)
{
    struct meta_repair *repair = meta_repair_find(core, volume->desc.id, index);
    const struct segment *segment = meta_segments_find(&volume->segments, index);
    uint32_t place = meta_segment_place_of(&volume->segments, segment, server_id);

    if (repair == NULL || place == UINT32_MAX ||
        segment->slots[place].state != DL__SLOT_STATE__SLOT_EJECTED)
        return;
    repair->slots[place].server_id = server_id;
    repair->slots[place].full = true;
}

static void
repair_link(struct list *list, struct list *node, bool wanted)
{
    if (list_is_linked(node) && !wanted)
        list_remove(node);
    else if (!list_is_linked(node) && wanted)
        list_push_back(list, node);
}

void
meta_repair_update(struct meta_core *core, const struct meta_volume *volume,
                   const struct segment *segment)
{
    struct meta_recovery *recovery = core->recovery;
    struct wants wants = segment_wants(core, &volume->segments, segment);
    struct meta_repair *repair = meta_repair_find(core, volume->desc.id, segment->index);
    uint32_t in_sync = meta_segment_in_sync(&volume->segments, segment);

    if (volume->desc.deleting || (!wants.waiting && !wants.recovering)) {
        if (repair != NULL)
            repair_remove(core, repair);
        return;
    }
    if (repair == NULL)
        repair = repair_create(core, meta_volume_by_id(core, volume->desc.id), segment->index);
    if (in_sync == volume->segments.slot_count)
        in_sync = MOVES_BUCKET;
    if (repair->in_sync != in_sync && list_is_linked(&repair->waiting_node))
        list_remove(&repair->waiting_node);
    repair->in_sync = in_sync;
    repair_update_slots(core, repair, &volume->segments, segment);
    repair_link(&recovery->waiting[in_sync], &repair->waiting_node, wants.waiting);
    repair_link(&recovery->recovering, &repair->recovering_node, wants.recovering);
}

void
meta_recovery_loaded_segment(struct meta_core *core, const struct meta_volume *volume,
                             const struct segment *segment, bool told)
{
    if (volume->desc.deleting)
        return;
    meta_repair_update(core, volume, segment);
    if (!told)
        meta_tell_segment(core, volume, NULL, segment);
}

void
meta_recovery_server_changed(struct meta_core *core, const struct meta_server *server)
{
    struct meta_volume *volume, *following;

    HASH_ITER (hh, core->volumes, volume, following) {
        const struct segment *segment = meta_segments_at_or_after(&volume->segments, 0);

        for (; segment != NULL && !volume->desc.deleting;
             segment = meta_segments_after(&volume->segments, segment->index))
            if (meta_segment_place_of(&volume->segments, segment, server->desc.id) != UINT32_MAX)
                meta_repair_update(core, volume, segment);
    }
    meta_recovery_kick(core);
}

uint32_t
meta_recovery_source(const struct meta_core *core, const struct meta_volume *volume,
                     const struct segment *segment, uint32_t place)
{
    const struct meta_repair *repair = meta_repair_find(core, volume->desc.id, segment->index);

    return repair == NULL ? 0 : repair->slots[place].source_id;
}

bool
meta_server_is_recovering(const struct meta_core *core, uint32_t server_id)
{
    const struct meta_repair *repair;

    list_for_each_entry (repair, &core->recovery->recovering, recovering_node) {
        const struct meta_volume *volume = meta_volume_by_id((struct meta_core *)(uintptr_t)core,
                                                             repair->key.volume_id);

        for (uint32_t i = 0; i < volume->segments.place_count; i++)
            if (repair->slots[i].attempt != 0 && repair->slots[i].server_id == server_id)
                return true;
    }
    return false;
}

/* --- what is under way, by server --- */

struct load {
    uint32_t onto, from;
};

/* One round of the scheduler. */
struct round {
    struct load *loads; /* by server id */
    uint32_t tries;     /* of placement, which takes some 100 us with many servers */
};

/* Can it be pulled from?  A store that takes no writes can't be told of an attempt (rule 12). */
static bool
slot_is_source(const struct meta_core *core, const struct segment_slot *slot)
{
    const struct meta_server *server;

    if (slot->state != DL__SLOT_STATE__SLOT_IN_SYNC)
        return false;
    server = core->servers[slot->server_id];
    return server->session != NULL && server->up && server->stopped[0] == '\0';
}

/* An in-sync slot whose server can serve it, the least busy; 0: none below the limit. */
static uint32_t
source_choose(const struct meta_core *core, const struct segment_table *table,
              const struct segment *segment, const struct load *loads)
{
    uint32_t best = 0;

    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];

        if (!slot_is_source(core, slot) ||
            loads[slot->server_id].from >= core->options.recovery_per_server)
            continue;
        if (best == 0 || loads[slot->server_id].from < loads[best].from)
            best = slot->server_id;
    }
    return best;
}

/*
 * What takes none of the places: who is down pulls nothing, and who has not got on for a while
 * (bad sectors of its sources, say) would keep all others waiting.
 */
static bool
slot_is_idle(const struct meta_core *core, const struct repair_slot *slot)
{
    return slot->attempt == 0 || !core->servers[slot->server_id]->up ||
           env_now_ns(core->env) - slot->moved_ns > STUCK_NS;
}

static void
loads_count(struct meta_core *core, struct load *loads)
{
    struct meta_repair *repair;

    list_for_each_entry (repair, &core->recovery->busy, busy_node) {
        loads[repair->target_id].onto++;
        loads[repair->source_id].from++;
    }
    list_for_each_entry (repair, &core->recovery->recovering, recovering_node) {
        const struct meta_volume *volume = meta_volume_by_id(core, repair->key.volume_id);
        const struct segment *segment = meta_segments_find(&volume->segments,
                                                           (uint32_t)repair->key.index);

        for (uint32_t i = 0; i < volume->segments.place_count; i++) {
            struct repair_slot *slot = &repair->slots[i];

            if (slot_is_idle(core, slot))
                continue;
            if (slot->source_id == 0)
                slot->source_id = source_choose(core, &volume->segments, segment, loads);
            loads[slot->server_id].onto++;
            loads[slot->source_id].from += slot->source_id != 0;
        }
    }
}

/* --- what to do --- */

enum plan_kind { PLAN_NONE, PLAN_RESUME, PLAN_REPLACE, PLAN_INCOMING, PLAN_DROP, PLAN_EJECT };

struct plan {
    uint64_t volume_id;
    uint32_t index;
    uint32_t config_epoch;
    enum plan_kind kind;
    uint32_t place;
    uint32_t target_id; /* recovers */
    uint32_t source_id;
    enum recovery_wait wait; /* PLAN_NONE: of this place */
};

/*
 * Another server for one place: placement as for a new segment, in a domain that the others don't
 * have; 0: there is none now.
 */
static uint32_t
target_choose(struct meta_core *core, const struct meta_volume *volume,
              const struct segment *segment, uint32_t place, struct round *round)
{
    const struct load *loads = round->loads;
    struct placement_server *servers;
    uint32_t kept[META_REPLICAS_MAX + 1];
    uint32_t kept_count = 0, count, id = 0;
    struct placement *placement = NULL;

    if (round->tries == 0)
        return 0;
    round->tries--;
    servers = meta_candidates_collect(core, &volume->desc, &count);
    for (uint32_t i = 0; i < volume->segments.place_count; i++)
        if (i != place && segment->slots[i].server_id != 0)
            kept[kept_count++] = segment->slots[i].server_id;
    for (uint32_t i = 0; i < count; i++)
        if (loads[servers[i].id].onto >= core->options.recovery_per_server ||
            core->servers[servers[i].id]->must_be_heard ||
            servers[i].id == segment->slots[place].server_id)
            servers[i].weight = 0;
    if (placement_create(&placement, servers, count, volume->segments.slot_count,
                         core->placement_seed) == 0 &&
        placement_pick_one(placement, kept, kept_count, meta_core_random, core, &id) < 0)
        id = 0;
    placement_destroy(placement);
    free(servers);
    return id;
}

/* No source could be chosen: why? */
static enum recovery_wait
source_wait(const struct meta_core *core, const struct segment_table *table,
            const struct segment *segment)
{
    for (uint32_t i = 0; i < table->place_count; i++)
        if (slot_is_source(core, &segment->slots[i]))
            return WAIT_SOURCE;
    return WAIT_NO_SOURCE;
}

/* May a slot that was ejected go on on its own server, and recover there beside so many others? */
static enum recovery_wait
resume_wait(const struct meta_core *core, const struct meta_volume *volume,
            const struct meta_server *server, bool full, uint32_t onto)
{
    if (!server_is_fit(server))
        return server_is_emptied(server) ? WAIT_ELSEWHERE : WAIT_SERVER;
    if (full && !server_has_room(server, &volume->desc, onto))
        return WAIT_ROOM;
    if (server->must_be_heard)
        return WAIT_HEARD;
    if (env_now_ns(core->env) < server->resume_ns)
        return WAIT_PUT_OFF;
    return onto >= core->options.recovery_per_server ? WAIT_LIMIT : WAIT_NOTHING;
}

/* An ejected slot: back to its own server, or to another one. */
static enum plan_kind
plan_ejected(struct meta_core *core, const struct meta_volume *volume,
             const struct segment *segment, uint32_t place, struct round *round, struct plan *plan)
{
    const struct load *loads = round->loads;
    const struct meta_server *server = core->servers[segment->slots[place].server_id];
    bool incoming = place == volume->segments.slot_count;
    uint32_t onto = loads[server->desc.id].onto;
    /* For what it lacks there may be room where there is none for a whole chunk. */
    bool full = meta_repair_find(core, volume->desc.id, segment->index)->slots[place].full;
    bool has_room = !full || server_has_room(server, &volume->desc, 0);
    bool elsewhere = server_is_emptied(server) || (server_is_fit(server) && !has_room);

    if (incoming && elsewhere)
        return PLAN_DROP;
    plan->wait = resume_wait(core, volume, server, full, onto);
    plan->source_id = source_choose(core, &volume->segments, segment, loads);
    if (plan->source_id == 0) {
        enum recovery_wait wait = source_wait(core, &volume->segments, segment);

        if (wait == WAIT_NO_SOURCE || plan->wait == WAIT_NOTHING || elsewhere)
            plan->wait = wait;
        return PLAN_NONE;
    }
    if (elsewhere) {
        plan->target_id = target_choose(core, volume, segment, place, round);
        if (plan->target_id != 0)
            return PLAN_REPLACE;
    }
    if (plan->wait != WAIT_NOTHING)
        return PLAN_NONE;
    plan->target_id = server->desc.id;
    return PLAN_RESUME;
}

static enum plan_kind
plan_in_sync(struct meta_core *core, const struct meta_volume *volume,
             const struct segment *segment, uint32_t place, struct round *round, struct plan *plan)
{
    const struct load *loads = round->loads;
    const struct meta_server *server = core->servers[segment->slots[place].server_id];

    if (!server_is_emptied(server))
        return PLAN_NONE;
    if (!server_is_fit(server) && (server->out || server->desc.admin_state == META_ADMIN_REMOVING))
        return meta_segment_in_sync(&volume->segments, segment) > 1 ? PLAN_EJECT : PLAN_NONE;
    if (segment->slots[volume->segments.slot_count].server_id != 0)
        return PLAN_NONE;
    plan->source_id = source_choose(core, &volume->segments, segment, loads);
    if (plan->source_id == 0) {
        plan->wait = source_wait(core, &volume->segments, segment);
        return PLAN_NONE;
    }
    plan->wait = WAIT_ELSEWHERE;
    plan->target_id = target_choose(core, volume, segment, place, round);
    return plan->target_id != 0 ? PLAN_INCOMING : PLAN_NONE;
}

/* False: there is nothing to do, or it has to wait, as repair->slots says. */
static bool
plan_make(struct meta_core *core, const struct meta_volume *volume, const struct segment *segment,
          struct meta_repair *repair, struct round *round, struct plan *plan)
{
    *plan = (struct plan){
        .volume_id = volume->desc.id,
        .index = segment->index,
        .config_epoch = segment->config_epoch,
    };
    for (uint32_t i = 0; i < volume->segments.place_count; i++) {
        if (segment->slots[i].state != DL__SLOT_STATE__SLOT_EJECTED)
            continue;
        plan->place = i;
        plan->kind = plan_ejected(core, volume, segment, i, round, plan);
        if (plan->kind != PLAN_NONE)
            return true;
        repair->slots[i].wait = plan->wait;
    }
    for (uint32_t i = 0; i < volume->segments.slot_count; i++) {
        if (segment->slots[i].state != DL__SLOT_STATE__SLOT_IN_SYNC)
            continue;
        plan->place = i;
        plan->wait = WAIT_NOTHING;
        plan->kind = plan_in_sync(core, volume, segment, i, round, plan);
        if (plan->kind != PLAN_NONE)
            return true;
        repair->slots[i].wait = plan->wait;
    }
    return false;
}

/* --- doing it --- */

static void
plan_build(struct meta_op *op, struct meta_volume *volume, const struct segment *segment,
           const struct plan *plan)
{
    struct segment *next = meta_change_add(op, volume, segment);
    struct segment_slot *slot = &next->slots[plan->place];
    bool anew = plan->kind == PLAN_REPLACE || plan->kind == PLAN_INCOMING;

    switch (plan->kind) {
    case PLAN_REPLACE:
        meta_change_vacate(op, next, slot);
        break;
    case PLAN_INCOMING:
        slot = &next->slots[volume->segments.slot_count];
        slot->number = plan->place & 0xfu;
        break;
    case PLAN_DROP:
        meta_change_vacate(op, next, slot);
        return;
    case PLAN_EJECT:
        slot->state = DL__SLOT_STATE__SLOT_EJECTED;
        meta_change_new_attempts(&volume->segments, next);
        return;
    case PLAN_RESUME:
    case PLAN_NONE:
        break;
    }
    slot->server_id = plan->target_id & 0xffffffu;
    if (anew)
        slot->incarnation = next->config_epoch;
    meta_change_recover(next, slot);
}

static void
plan_over(struct meta_core *core, const struct plan *plan)
{
    struct meta_repair *repair = meta_repair_find(core, plan->volume_id, plan->index);

    if (repair != NULL && repair->busy) {
        repair->busy = false;
        list_remove(&repair->busy_node);
    }
    meta_recovery_kick(core);
}

static void
plan_on_committed(struct meta_op *op)
{
    const struct plan *plan = op->scratch;
    struct meta_volume *volume = op->volume;
    struct meta_repair *repair = meta_repair_find(op->core, plan->volume_id, plan->index);
    uint32_t place = plan->kind == PLAN_INCOMING ? volume->segments.slot_count : plan->place;

    if (repair != NULL)
        repair->slots[place].source_id = plan->source_id; /* the slot is told of it first */
    meta_change_apply(op);
    plan_over(op->core, plan);
    meta_op_end(op);
}

static bool
plan_is_current(const struct meta_core *core, const struct meta_volume *volume,
                const struct segment *segment, const struct plan *plan)
{
    const struct meta_server *target = core->servers[plan->target_id];

    if (volume->desc.deleting || segment == NULL || segment->config_epoch != plan->config_epoch)
        return false;
    if (plan->kind == PLAN_DROP)
        return true;
    if (plan->kind == PLAN_EJECT)
        return server_is_emptied(core->servers[segment->slots[plan->place].server_id]);
    if (target == NULL || target->must_be_heard)
        return false;
    return plan->kind == PLAN_RESUME ? server_is_fit(target) : meta_server_takes_chunks(target);
}

/* The core's own op: op->scratch is the plan. */
static void
plan_run(struct meta_op *op)
{
    struct meta_core *core = op->core;
    const struct plan *plan = op->scratch;
    struct meta_volume *volume = meta_volume_by_id(core, plan->volume_id);
    const struct segment *segment;

    if (volume != NULL && !meta_op_take(op, &volume->serial))
        return;
    segment = volume == NULL ? NULL : meta_segments_find(&volume->segments, plan->index);
    if (volume == NULL || !plan_is_current(core, volume, segment, plan)) {
        plan_over(core, plan);
        meta_op_end(op);
        return;
    }
    op->volume = volume;
    plan_build(op, volume, segment, plan);
    meta_change_put(op);
    meta_op_commit(op, plan_on_committed);
}

static const struct meta_handler plan_handler = {.run = plan_run};

/* --- the scheduler --- */

/* True: something was begun. */
static bool
schedule_repair(struct meta_core *core, struct meta_repair *repair, struct round *round)
{
    const struct meta_volume *volume = meta_volume_by_id(core, repair->key.volume_id);
    const struct segment *segment = meta_segments_find(&volume->segments,
                                                       (uint32_t)repair->key.index);
    struct plan plan;
    struct meta_op *op;

    if (repair->busy || !plan_make(core, volume, segment, repair, round, &plan))
        return false;
    repair->busy = true;
    repair->target_id = plan.target_id;
    repair->source_id = plan.source_id;
    list_push_back(&core->recovery->busy, &repair->busy_node);
    round->loads[plan.target_id].onto++;
    round->loads[plan.source_id].from++;
    op = meta_op_create_internal(core, &plan_handler);
    op->scratch = meta_copy(&plan, sizeof(plan));
    return true;
}

/* Fewest in-sync slots first.  Those that find no other server let others have a try. */
static void
schedule_bucket(struct meta_core *core, struct list *bucket, struct round *round, uint32_t *begun)
{
    struct meta_repair *repair, *following;
    struct list failed;

    list_init(&failed);
    list_for_each_entry_safe (repair, following, bucket, waiting_node) {
        uint32_t tries = round->tries;

        if (*begun == SCHEDULE_MAX)
            break;
        if (schedule_repair(core, repair, round)) {
            ++*begun;
        } else if (round->tries < tries) {
            list_remove(&repair->waiting_node);
            list_push_back(&failed, &repair->waiting_node);
        }
    }
    list_splice_back(bucket, &failed);
}

static void
schedule_on_task(struct env_task *task)
{
    struct meta_recovery *recovery = list_entry(task, struct meta_recovery, schedule_task);
    struct meta_core *core = recovery->core;
    struct round round = {.tries = SCHEDULE_MAX};
    uint32_t begun = 0;

    if (core->phase != META_SERVING)
        return;
    recovery->scheduled_ns = env_now_ns(core->env);
    round.loads = meta_alloc((core->servers_end + 1) * sizeof(*round.loads));
    loads_count(core, round.loads);
    for (uint32_t bucket = 0; bucket < META_REPLICAS_MAX + 2; bucket++)
        schedule_bucket(core, &recovery->waiting[bucket], &round, &begun);
    free(round.loads);
}

static void
schedule_on_timer(struct env_timer *timer)
{
    struct meta_recovery *recovery = list_entry(timer, struct meta_recovery, schedule_timer);

    env_defer(recovery->core->env, &recovery->schedule_task);
}

void
meta_recovery_kick(struct meta_core *core)
{
    struct meta_recovery *recovery = core->recovery;
    uint64_t since_ns = env_now_ns(core->env) - recovery->scheduled_ns;

    if (core->phase != META_SERVING || recovery->repair_count == 0)
        return;
    /* It looks at all that wait: not for each of very many changes. */
    if (recovery->repair_count > SCHEDULE_MANY && since_ns < SCHEDULE_PAUSE_NS)
        env_timer_start(core->env, &recovery->schedule_timer, SCHEDULE_PAUSE_NS - since_ns);
    else
        env_defer(core->env, &recovery->schedule_task);
}

/* --- balance: a server gets slots of one that has more than its share --- */

/* In thousandths of its capacity. */
static uint64_t
server_share(const struct meta_server *server)
{
    uint64_t capacity = max_u64(1, server->capacity_bytes / 1000);

    return server->assigned_bytes / capacity;
}

/* One segment that has a slot on the fuller server, and may have it on the other one. */
static bool
rebalance_pair(struct meta_core *core, struct meta_volume *volume, const struct meta_server *full,
               const struct meta_server *empty, struct round *round)
{
    const struct segment_table *table = &volume->segments;
    uint64_t skip = meta_core_random(core) % max_u64(1, table->count);
    const struct segment *segment = meta_segments_at_or_after(table, 0);
    uint32_t seen = 0, tries = 0;

    for (; segment != NULL; segment = meta_segments_after(table, segment->index)) {
        uint32_t place = meta_segment_place_of(table, segment, full->desc.id);
        struct plan plan = {.volume_id = volume->desc.id, .index = segment->index};
        struct meta_op *op;

        if (seen++ < skip || place == UINT32_MAX ||
            meta_repair_find(core, volume->desc.id, segment->index) != NULL)
            continue;
        if (tries++ == REBALANCE_TRIES)
            return false;
        plan.config_epoch = segment->config_epoch;
        plan.kind = PLAN_INCOMING;
        plan.place = place;
        plan.source_id = source_choose(core, table, segment, round->loads);
        plan.target_id = target_choose(core, volume, segment, place, round);
        if (plan.source_id == 0 || plan.target_id == 0 ||
            server_share(core->servers[plan.target_id]) > server_share(empty) + 20)
            continue;
        op = meta_op_create_internal(core, &plan_handler);
        op->scratch = meta_copy(&plan, sizeof(plan));
        return true;
    }
    return false;
}

static void
rebalance(struct meta_core *core)
{
    const struct meta_server *full = NULL, *empty = NULL;
    struct round round = {.tries = REBALANCE_TRIES};
    struct meta_volume *volume, *following;

    for (uint32_t id = 0; id < core->servers_end; id++) {
        const struct meta_server *server = core->servers[id];

        if (server == NULL || !meta_server_takes_chunks(server))
            continue;
        if (full == NULL || server_share(server) > server_share(full))
            full = server;
        if (empty == NULL || server_share(server) < server_share(empty))
            empty = server;
    }
    /* Within 10 % of their capacities is even enough. */
    if (full == NULL || server_share(full) < server_share(empty) + 100)
        return;
    round.loads = meta_alloc((core->servers_end + 1) * sizeof(*round.loads));
    loads_count(core, round.loads);
    HASH_ITER (hh, core->volumes, volume, following) {
        if (volume->creating || volume->desc.deleting)
            continue;
        if (rebalance_pair(core, volume, full, empty, &round))
            break;
    }
    free(round.loads);
}

/* --- RECOVERY_REPORT --- */

static void
report_on_committed(struct meta_op *op)
{
    op->core->recovery->recovered_slots++;
    meta_change_apply(op);
    meta_op_reply(op, &(Dl__RecoveryReportReply)DL__RECOVERY_REPORT_REPLY__INIT.base);
}

static void
report_promote(struct meta_op *op, struct meta_volume *volume, const struct segment *segment,
               uint32_t place)
{
    struct segment *next = meta_change_add(op, volume, segment);
    struct segment_slot *slot = &next->slots[place];
    bool replaces = place == volume->segments.slot_count;
    bool leaves_in_sync = false;

    slot->state = DL__SLOT_STATE__SLOT_IN_SYNC;
    slot->attempt = 0;
    if (replaces) {
        struct segment_slot *replaced = &next->slots[slot->number];

        leaves_in_sync = replaced->state == DL__SLOT_STATE__SLOT_IN_SYNC;
        meta_change_vacate(op, next, replaced);
        *replaced = *slot;
        *slot = (struct segment_slot){0};
    }
    /* As with an ejection: what others pulled may come from the slot that is none any more. */
    if (leaves_in_sync && !DLBLK_MUTANT(meta_replace_keep_attempt))
        meta_change_new_attempts(&volume->segments, next);
    op->volume = volume;
    meta_change_put(op);
    meta_op_commit(op, report_on_committed);
}

static void
report_on_given_up(struct meta_op *op)
{
    const Dl__RecoveryReport *message = (const Dl__RecoveryReport *)op->message;

    meta_change_apply(op);
    meta_repair_mark_full(op->core, op->volume, message->segment, op->server->desc.id);
    meta_op_reply(op, &(Dl__RecoveryReportReply)DL__RECOVERY_REPORT_REPLY__INIT.base);
}

/* Its server has no room for what it lacks: another one may have, or it waits until it has. */
static void
report_give_up(struct meta_op *op, struct meta_volume *volume, const struct segment *segment,
               uint32_t place)
{
    struct meta_server *server = op->session->server;
    struct segment *next = meta_change_add(op, volume, segment);

    next->slots[place].state = DL__SLOT_STATE__SLOT_EJECTED;
    next->slots[place].attempt = 0;
    op->volume = volume;
    op->server = server;
    meta_event_put(op, DL__EVENT_KIND__EVENT_EJECTED, server, volume, segment->index, 1,
                   "server %s: no room to recover segment %" PRIu32 " of volume %s: given up there",
                   meta_server_text(server), segment->index, volume->desc.name);
    meta_change_put(op);
    meta_op_commit(op, report_on_given_up);
}

static void
report_progress(struct meta_core *core, const struct meta_volume *volume,
                const Dl__RecoveryReport *message, uint32_t place)
{
    struct meta_repair *repair = meta_repair_find(core, volume->desc.id, message->segment);
    uint32_t sectors_max = (uint32_t)(meta_volume_chunk_bytes(&volume->desc) / 4096);
    struct repair_slot *slot;

    if (repair == NULL || repair->slots[place].attempt != message->attempt)
        return;
    slot = &repair->slots[place];
    if (message->cursor_sectors > slot->cursor_sectors && message->cursor_sectors <= sectors_max) {
        core->recovery->covered_bytes += (uint64_t)(message->cursor_sectors -
                                                    slot->cursor_sectors) *
                                         4096;
        slot->cursor_sectors = message->cursor_sectors;
        slot->moved_ns = env_now_ns(core->env);
    }
    slot->pulled_bytes = max_u64(slot->pulled_bytes, message->pulled_bytes);
}

void
meta_run_recovery_report(struct meta_op *op)
{
    const Dl__RecoveryReport *message = (const Dl__RecoveryReport *)op->message;
    Dl__RecoveryReportReply reply = DL__RECOVERY_REPORT_REPLY__INIT;
    struct meta_volume *volume = meta_volume_by_id(op->core, message->volume);
    const struct segment *segment;
    uint32_t place;
    struct dl_error err;

    if (op->session->server == NULL) {
        (void)dl_error_set(&err, -DL_E_SERVER_UNKNOWN, "RECOVERY_REPORT before SERVER_REGISTER");
        meta_op_fail(op, &err);
        return;
    }
    if (volume != NULL && !meta_op_take(op, &volume->serial))
        return;
    segment = volume == NULL || volume->desc.deleting
                  ? NULL
                  : meta_segments_find(&volume->segments, message->segment);
    place = segment == NULL
                ? UINT32_MAX
                : meta_segment_place_of(&volume->segments, segment, op->session->server->desc.id);
    if (place == UINT32_MAX || segment->slots[place].number != message->slot ||
        segment->slots[place].state != DL__SLOT_STATE__SLOT_RECOVERING) {
        meta_op_reply(op, &reply.base);
        return;
    }
    /* Its fence is too low, after a clean detach: it hears of the new lease. */
    if (segment->slots[place].attempt == message->attempt &&
        message->lease_epoch < volume->desc.lease_epoch)
        meta_tell_again(op->core, volume, segment, place);
    /* Of an older attempt, or of one that began before the volume had its present owner. */
    if ((segment->slots[place].attempt != message->attempt ||
         message->lease_epoch < volume->desc.lease_epoch) &&
        !DLBLK_MUTANT(meta_promote_stale)) {
        meta_op_reply(op, &reply.base);
        return;
    }
    report_progress(op->core, volume, message, place);
    if (message->done)
        report_promote(op, volume, segment, place);
    else if (message->no_space)
        report_give_up(op, volume, segment, place);
    else
        meta_op_reply(op, &reply.base);
}

/* --- sums --- */

void
meta_recovery_sums(struct meta_core *core, struct recovery_sums *ret_sums)
{
    struct meta_recovery *recovery = core->recovery;
    struct recovery_sums sums = {.rate_bytes_per_s = recovery->rate_bytes_per_s};
    struct meta_repair *repair, *following;

    HASH_ITER (hh, recovery->repairs, repair, following) {
        const struct meta_volume *volume = meta_volume_by_id(core, repair->key.volume_id);
        const struct segment *segment = meta_segments_find(&volume->segments,
                                                           (uint32_t)repair->key.index);

        sums.segments += repair->in_sync != MOVES_BUCKET;
        sums.segments_moving += repair->in_sync == MOVES_BUCKET;
        for (uint32_t i = 0; i < volume->segments.place_count; i++) {
            const struct segment_slot *slot = &segment->slots[i];

            if (slot->server_id == 0 || slot->state == DL__SLOT_STATE__SLOT_IN_SYNC)
                continue;
            sums.slots_recovering += slot->state == DL__SLOT_STATE__SLOT_RECOVERING;
            sums.left_bytes += meta_volume_chunk_bytes(&volume->desc) -
                               (uint64_t)repair->slots[i].cursor_sectors * 4096;
        }
    }
    *ret_sums = sums;
}

/* --- time, the end --- */

static void
recovery_rate(struct meta_recovery *recovery, uint64_t now_ns)
{
    uint64_t elapsed_ms = (now_ns - recovery->rate_ns) / NS_PER_MS;
    uint64_t bytes = recovery->covered_bytes - recovery->rate_covered_bytes;
    uint64_t rate = bytes * 1000 / max_u64(1, elapsed_ms);

    /* A new round has nothing to do with how the one before went out. */
    if (bytes == 0 && list_is_empty(&recovery->recovering))
        recovery->rate_bytes_per_s = 0;
    else if (recovery->rate_bytes_per_s == 0)
        recovery->rate_bytes_per_s = rate;
    else
        recovery->rate_bytes_per_s = (3 * recovery->rate_bytes_per_s + rate) / 4;
    recovery->rate_covered_bytes = recovery->covered_bytes;
    recovery->rate_ns = now_ns;
}

static void
recovered_post(struct meta_core *core, uint64_t now_ns)
{
    struct meta_recovery *recovery = core->recovery;
    uint64_t slots = recovery->recovered_slots - recovery->recovered_posted;

    meta_event_post(core, DL__EVENT_KIND__EVENT_RECOVERED, NULL,
                    "%" PRIu64
                    " %s in-sync again; segments that still recover, move or wait: %" PRIu64,
                    slots, slots == 1 ? "slot is" : "slots are", recovery->repair_count);
    recovery->recovered_posted = recovery->recovered_slots;
    recovery->posted_ns = now_ns;
}

void
meta_recovery_tick(struct meta_core *core, uint64_t now_ns)
{
    struct meta_recovery *recovery = core->recovery;

    meta_tell_tick(core);
    if (now_ns - recovery->rate_ns >= RATE_NS)
        recovery_rate(recovery, now_ns);
    if (now_ns - recovery->scheduled_ns >= SCHEDULE_EVERY_NS)
        meta_recovery_kick(core);
    if (recovery->recovered_slots > recovery->recovered_posted &&
        now_ns - recovery->posted_ns >= RECOVERED_NS)
        recovered_post(core, now_ns);
    if (core->options.rebalance && recovery->repair_count < core->options.recovery_per_server &&
        now_ns - recovery->rebalanced_ns >= REBALANCE_NS) {
        recovery->rebalanced_ns = now_ns;
        rebalance(core);
    }
}

void
meta_recovery_forget_volume(struct meta_core *core, const struct meta_volume *volume)
{
    struct meta_repair *repair, *following;

    HASH_ITER (hh, core->recovery->repairs, repair, following)
        if (repair->key.volume_id == volume->desc.id)
            repair_remove(core, repair);
    meta_tell_forget_volume(core, volume->desc.id);
    meta_removal_release(core, volume->desc.id);
}

void
meta_recovery_free(struct meta_core *core)
{
    struct meta_recovery *recovery = core->recovery;
    struct meta_repair *repair, *following;

    if (recovery == NULL)
        return;
    HASH_ITER (hh, recovery->repairs, repair, following)
        repair_remove(core, repair);
    env_timer_stop(core->env, &recovery->schedule_timer);
    meta_tell_free_all(core);
    meta_notice_free_all(core);
    meta_sweep_free_all(core);
    meta_removal_free_all(core);
    meta_event_free_all(core);
    free(recovery->told);
    free(recovery);
    core->recovery = NULL;
}
