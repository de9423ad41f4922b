/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes of segments.  A change is built as copies of the segments, put into one batch with all
 * that belongs to it, and shown when that is committed:
 *
 *   the table, the counts of slots
 *   SLOT_TELL to the slots (tell.c), MAP_CHANGED to those who use the volume
 *   what wants recovery (recovery.c), what is to be deleted (removal.c), who waits for a takeover
 *
 * Who uses a volume: its owner, and readers.  Each has the number of the last change that it is
 * known to know: as of its attach, then by its replies to MAP_CHANGED.  An owner whose connection
 * broke is told again when it is back.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/mutant.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define NOTICE_SEGMENTS 1024u

/* --- segments --- */

uint32_t
meta_segment_in_sync(const struct segment_table *table, const struct segment *segment)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < table->place_count; i++)
        count += segment->slots[i].state == DL__SLOT_STATE__SLOT_IN_SYNC;
    return count;
}

uint32_t
meta_segment_place_of(const struct segment_table *table, const struct segment *segment,
                      uint32_t server_id)
{
    dl_assert(server_id != 0);
    for (uint32_t i = 0; i < table->place_count; i++)
        if (segment->slots[i].server_id == server_id)
            return i;
    return UINT32_MAX;
}

/* --- building --- */

struct segment *
meta_change_add(struct meta_op *op, struct meta_volume *volume, const struct segment *segment)
{
    struct meta_change *change = op->change;
    struct segment *next;

    dl_assert(op->serial == &volume->serial);
    dl_assert(!volume->desc.deleting);
    if (change == NULL) {
        change = op->change = meta_alloc(sizeof(*change));
        change->volume = volume;
    }
    dl_assert(change->volume == volume);
    dl_assert(meta_change_find(op, segment->index) == NULL);
    next = meta_copy(segment, meta_segment_bytes(&volume->segments));
    next->config_epoch++;
    dl_assert(next->config_epoch != 0);
    if (change->count == 0 || is_power_of_two(change->count))
        change->segments = meta_realloc(change->segments, 2 * change->count + 1,
                                        sizeof(struct segment *));
    change->segments[change->count++] = next;
    return next;
}

struct segment *
meta_change_find(const struct meta_op *op, uint32_t index)
{
    for (uint32_t i = 0; op->change != NULL && i < op->change->count; i++)
        if (op->change->segments[i]->index == index)
            return op->change->segments[i];
    return NULL;
}

void
meta_change_recover(struct segment *segment, struct segment_slot *slot)
{
    slot->state = DL__SLOT_STATE__SLOT_RECOVERING;
    slot->attempt = segment->config_epoch;
}

void
meta_change_new_attempts(const struct segment_table *table, struct segment *segment)
{
    for (uint32_t i = 0; i < table->place_count; i++)
        if (segment->slots[i].state == DL__SLOT_STATE__SLOT_RECOVERING)
            meta_change_recover(segment, &segment->slots[i]);
}

void
meta_change_vacate(struct meta_op *op, struct segment *segment, struct segment_slot *slot)
{
    struct meta_change *change = op->change;

    dl_assert(slot->server_id != 0);
    change->removals = meta_realloc(change->removals, change->removal_count + 1,
                                    sizeof(*change->removals));
    change->removals[change->removal_count++] = (struct change_removal){
        .server_id = slot->server_id,
        .segment = segment->index,
        .slot = slot->number,
        .incarnation = slot->incarnation,
    };
    *slot = (struct segment_slot){.number = slot->number};
}

static void notice_send_all(struct meta_core *core, struct meta_volume *volume,
                            const struct meta_change *change);

/* What no change may ever make of a segment. */
static void
change_check(const struct segment_table *table, const struct segment *segment)
{
    const struct segment_slot *incoming = &segment->slots[table->slot_count];

    dl_assert(meta_segment_in_sync(table, segment) > 0);
    dl_assert(incoming->state != DL__SLOT_STATE__SLOT_IN_SYNC);
    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &segment->slots[i];

        dl_assert(i == table->slot_count || (slot->server_id != 0 && slot->number == i));
        dl_assert((slot->state == DL__SLOT_STATE__SLOT_RECOVERING) == (slot->attempt != 0));
        for (uint32_t k = 0; k < i; k++)
            dl_assert(slot->server_id == 0 || slot->server_id != segment->slots[k].server_id);
    }
}

void
meta_change_put(struct meta_op *op)
{
    const struct meta_change *change = op->change;
    struct meta_volume *volume = change->volume;
    uint64_t now_ms = op->core->env->ops->wall_ms(op->core->env);

    for (uint32_t i = 0; i < change->count; i++) {
        change_check(&volume->segments, change->segments[i]);
        meta_record_put_segment(&op->batch, volume->desc.id, change->segments[i],
                                volume->segments.slot_count, false);
    }
    for (uint32_t i = 0; i < change->removal_count; i++)
        meta_removal_put(&op->batch, volume->desc.id, &change->removals[i], now_ms);
    if (DLBLK_MUTANT(meta_tell_uncommitted))
        notice_send_all(op->core, volume, change);
}

void
meta_change_free(struct meta_change *change)
{
    if (change == NULL)
        return;
    for (uint32_t i = 0; i < change->count; i++)
        free(change->segments[i]);
    free(change->segments);
    free(change->removals);
    free(change);
}

/* --- MAP_CHANGED --- */

struct notice {
    struct meta_peer_request request;
    struct list node; /* in meta_recovery.notices */
    struct meta_core *core;
    struct meta_session *session;
    uint64_t volume_id;
    uint32_t lease_epoch;
    uint64_t map_seq;
    bool owner;
};

static void
notice_on_reply(struct meta_peer_request *request, const struct frame *frame, int err)
{
    struct notice *notice = list_entry(request, struct notice, request);
    struct meta_core *core = notice->core;
    struct meta_volume *volume = meta_volume_by_id(core, notice->volume_id);
    struct meta_reader *reader;

    (void)err;
    if (frame != NULL && frame->status == 0 && volume != NULL) {
        if (notice->owner && volume->desc.lease_epoch == notice->lease_epoch)
            volume->owner_map_seq = max_u64(volume->owner_map_seq, notice->map_seq);
        list_for_each_entry (reader, &volume->readers, volume_node)
            if (!notice->owner && reader->session == notice->session)
                reader->map_seq = max_u64(reader->map_seq, notice->map_seq);
        meta_removal_release(core, volume->desc.id);
        meta_sweep_known(core);
    }
    list_remove(&notice->node);
    free(notice);
}

static void
notice_send(struct meta_core *core, const struct meta_volume *volume, struct meta_session *session,
            bool owner, uint64_t map_seq, const struct meta_map *map)
{
    struct notice *notice;
    Dl__MapChanged message = DL__MAP_CHANGED__INIT;

    if (session == NULL || session->closing)
        return;
    notice = meta_alloc(sizeof(*notice));
    notice->core = core;
    notice->session = session;
    notice->volume_id = volume->desc.id;
    notice->lease_epoch = volume->desc.lease_epoch;
    notice->map_seq = map_seq;
    notice->owner = owner;
    list_push_back(&core->recovery->notices, &notice->node);
    message.volume = volume->desc.id;
    message.lease_epoch = volume->desc.lease_epoch;
    message.n_segments = map->segment_count;
    message.segments = map->segments;
    message.n_servers = map->server_count;
    message.servers = map->servers;
    meta_peer_request_send(session, &notice->request, OP_MAP_CHANGED, &message.base,
                           notice_on_reply);
}

/* The owner whose attach is not answered yet gets the map with the answer. */
static bool
notice_wants_owner(const struct meta_volume *volume)
{
    return volume->desc.owned && volume->owner_session != NULL && volume->owner_answered;
}

static void
notice_send_all(struct meta_core *core, struct meta_volume *volume,
                const struct meta_change *change)
{
    struct meta_reader *reader;
    struct meta_map map;

    if (!notice_wants_owner(volume) && list_is_empty(&volume->readers))
        return;
    for (uint32_t first = 0; first < change->count; first += NOTICE_SEGMENTS) {
        bool last = first + NOTICE_SEGMENTS >= change->count;
        /* Only with the last part all of it is known. */
        uint64_t map_seq = last ? volume->map_seq : 0;

        meta_map_init(&map, core);
        for (uint32_t i = first; i < change->count && i < first + NOTICE_SEGMENTS; i++)
            meta_map_add_segment(&map, core, volume, change->segments[i]);
        if (notice_wants_owner(volume))
            notice_send(core, volume, volume->owner_session, true, map_seq, &map);
        list_for_each_entry (reader, &volume->readers, volume_node)
            notice_send(core, volume, reader->session, false, map_seq, &map);
        meta_map_fini(&map);
    }
}

struct missed {
    struct meta_core *core;
    struct meta_volume *volume;
    struct meta_map map;
};

static void
missed_send(struct missed *missed, uint64_t map_seq)
{
    notice_send(missed->core, missed->volume, missed->volume->owner_session, true, map_seq,
                &missed->map);
    meta_map_fini(&missed->map);
    meta_map_init(&missed->map, missed->core);
}

static void
missed_add(void *context, uint32_t index)
{
    struct missed *missed = context;
    const struct segment *segment = meta_segments_find(&missed->volume->segments, index);

    if (segment == NULL)
        return;
    meta_map_add_segment(&missed->map, missed->core, missed->volume, segment);
    if (missed->map.segment_count == NOTICE_SEGMENTS)
        missed_send(missed, 0);
}

/*
 * What it may have missed and must know before something happens: segments that are not as they
 * should be, and those that chunks left.
 */
void
meta_notice_owner_back(struct meta_core *core, struct meta_volume *volume)
{
    struct missed missed = {.core = core, .volume = volume};
    struct meta_repair *repair, *following;

    if (!notice_wants_owner(volume) || volume->owner_map_seq >= volume->map_seq)
        return;
    meta_map_init(&missed.map, core);
    HASH_ITER (hh, core->recovery->repairs, repair, following)
        if (repair->key.volume_id == volume->desc.id)
            missed_add(&missed, (uint32_t)repair->key.index);
    meta_removal_held(volume, missed_add, &missed);
    missed_send(&missed, volume->map_seq);
    meta_map_fini(&missed.map);
}

bool
meta_notice_is_known(const struct meta_volume *volume, uint64_t map_seq)
{
    const struct meta_reader *reader;

    if (volume->desc.owned && volume->owner_map_seq < map_seq)
        return false;
    list_for_each_entry (reader, &volume->readers, volume_node)
        if (reader->map_seq < map_seq)
            return false;
    return true;
}

void
meta_notice_free_all(struct meta_core *core)
{
    struct notice *notice, *following;

    list_for_each_entry_safe (notice, following, &core->recovery->notices, node) {
        meta_peer_request_cancel(&notice->request);
        free(notice);
    }
    list_init(&core->recovery->notices);
}

/* --- showing --- */

/* What becomes of each slot. */
static void
change_show_slots(struct meta_core *core, struct meta_volume *volume, const struct segment *old,
                  const struct segment *next)
{
    const struct segment_table *table = &volume->segments;

    for (uint32_t i = 0; i < table->place_count; i++) {
        const struct segment_slot *slot = &next->slots[i], *before;
        uint32_t place;

        if (slot->server_id == 0)
            continue;
        place = meta_segment_place_of(table, old, slot->server_id);
        before = place == UINT32_MAX ? NULL : &old->slots[place];
        if (before == NULL || before->state == slot->state)
            continue;
        if (slot->state == DL__SLOT_STATE__SLOT_IN_SYNC)
            meta_takeover_promoted(volume, next, slot, before->attempt);
        else if (slot->state == DL__SLOT_STATE__SLOT_EJECTED)
            core->servers[slot->server_id]->must_be_heard = true;
    }
}

static void
change_show(struct meta_core *core, struct meta_volume *volume, const struct segment *next)
{
    uint32_t bytes = meta_segment_bytes(&volume->segments);
    struct segment *segment = meta_segments_find(&volume->segments, next->index);
    struct segment *old;

    dl_assert(segment != NULL && segment->config_epoch + 1 == next->config_epoch);
    old = meta_copy(segment, bytes);
    change_show_slots(core, volume, old, next);
    meta_volume_count_slots(core, volume, next, 1);
    meta_volume_count_slots(core, volume, segment, -1);
    memcpy(segment, next, bytes);
    meta_repair_update(core, volume, segment);
    meta_tell_segment(core, volume, old, segment);
    free(old);
}

void
meta_change_apply(struct meta_op *op)
{
    struct meta_change *change = op->change;
    struct meta_core *core = op->core;
    struct meta_volume *volume;

    if (change == NULL)
        return;
    volume = change->volume;
    op->change = NULL;
    volume->map_seq++;
    for (uint32_t i = 0; i < change->count; i++)
        change_show(core, volume, change->segments[i]);
    notice_send_all(core, volume, change);
    for (uint32_t i = 0; i < change->removal_count; i++)
        meta_removal_add(core, volume->desc.id, &change->removals[i], volume->map_seq);
    if (change->removal_count > 0)
        meta_removal_release(core, volume->desc.id);
    meta_takeover_map_changed(volume);
    meta_recovery_kick(core);
    meta_change_free(change);
}
