/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SLOT_TELL: after each change of a segment, each of its slots that is written must learn what it
 * is now; also after a restart of this service.
 *
 * A slot has at most one tell, which is built from the map when it is sent: of several changes only
 * the newest is told.  When all slots of a segment have answered, that is recorded with the
 * segment, in batches; what is not recorded is told again after a restart, which changes nothing at
 * the slot.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "meta/memory.h"
#include "meta/recovery.h"

#define TOLD_BATCH 1024u

struct meta_tell {
    struct {
        uint64_t volume_id;
        uint32_t index;
        uint32_t server_id;
    } key;
    struct meta_command command;
    struct meta_core *core;
    uint32_t sent_epoch;
    bool again; /* it has changed while this was on its way */
    UT_hash_handle hh;
};

static struct meta_tell *
tell_find(const struct meta_core *core, uint64_t volume_id, uint32_t index, uint32_t server_id)
{
    struct meta_tell probe, *tell;

    memset(&probe, 0, sizeof(probe));
    probe.key.volume_id = volume_id;
    probe.key.index = index;
    probe.key.server_id = server_id;
    HASH_FIND(hh, core->recovery->tells, &probe.key, sizeof(probe.key), tell);
    return tell;
}

static void
tell_free(struct meta_tell *tell)
{
    meta_command_cancel(&tell->command);
    HASH_DEL(tell->core->recovery->tells, tell);
    free(tell);
}

static bool
slot_is_told(const struct segment_slot *slot)
{
    return slot->state == DL__SLOT_STATE__SLOT_IN_SYNC ||
           slot->state == DL__SLOT_STATE__SLOT_RECOVERING;
}

/* --- the message --- */

/* The in-sync slots, that which it should pull from first. */
static void
tell_fill_peers(const struct meta_core *core, const struct meta_volume *volume,
                const struct segment *segment, uint32_t place, Dl__SlotTell *message,
                Dl__Peer *peers, Dl__ServerAddress *addresses)
{
    uint32_t source_id = meta_recovery_source(core, volume, segment, place);

    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < volume->segments.place_count; i++) {
            const struct segment_slot *slot = &segment->slots[i];
            size_t count = message->n_peers;

            if (slot->state != DL__SLOT_STATE__SLOT_IN_SYNC ||
                (slot->server_id == source_id) != (round == 0))
                continue;
            dl__peer__init(&peers[count]);
            dl__server_address__init(&addresses[count]);
            meta_server_fill_address(&addresses[count], core->servers[slot->server_id]);
            peers[count].slot = slot->number;
            peers[count].server = &addresses[count];
            message->peers[message->n_peers++] = &peers[count];
        }
    }
}

static void
tell_send(struct meta_command *command)
{
    struct meta_tell *tell = list_entry(command, struct meta_tell, command);
    struct meta_core *core = tell->core;
    const struct meta_volume *volume = meta_volume_by_id(core, tell->key.volume_id);
    const struct segment *segment = meta_segments_find(&volume->segments, tell->key.index);
    uint32_t place = meta_segment_place_of(&volume->segments, segment, tell->key.server_id);
    const struct segment_slot *slot = &segment->slots[place];
    Dl__Peer peers[META_REPLICAS_MAX], *pointers[META_REPLICAS_MAX];
    Dl__ServerAddress addresses[META_REPLICAS_MAX];
    Dl__SlotTell message = DL__SLOT_TELL__INIT;

    dl_assert(place != UINT32_MAX);
    dl_assert(slot_is_told(slot));
    message.volume = volume->desc.id;
    message.segment = segment->index;
    message.slot = slot->number;
    message.config_epoch = segment->config_epoch;
    message.state = (Dl__SlotState)slot->state;
    message.incarnation = slot->incarnation;
    message.segment_sectors = (uint32_t)(meta_volume_chunk_bytes(&volume->desc) / 4096);
    message.peers = pointers;
    if (slot->state == DL__SLOT_STATE__SLOT_RECOVERING) {
        message.attempt = slot->attempt;
        message.lease_epoch = volume->desc.lease_epoch;
        tell_fill_peers(core, volume, segment, place, &message, peers, addresses);
    }
    tell->again = false;
    tell->sent_epoch = segment->config_epoch;
    meta_command_send(command, OP_SLOT_TELL, &message.base);
}

/* --- answers --- */

/* One slot has answered: was it the last of its segment? */
static void
told_check(struct meta_core *core, uint64_t volume_id, uint32_t index, uint32_t sent_epoch)
{
    struct meta_recovery *recovery = core->recovery;
    const struct meta_volume *volume = meta_volume_by_id(core, volume_id);
    const struct segment *segment = meta_segments_find(&volume->segments, index);

    if (segment->config_epoch != sent_epoch)
        return;
    for (uint32_t i = 0; i < volume->segments.place_count; i++)
        if (segment->slots[i].server_id != 0 &&
            tell_find(core, volume_id, index, segment->slots[i].server_id) != NULL)
            return;
    if (recovery->told_count == 0 || is_power_of_two(recovery->told_count))
        recovery->told = meta_realloc(recovery->told, 2 * recovery->told_count + 1,
                                      sizeof(*recovery->told));
    recovery->told[recovery->told_count++] = (struct told_segment){volume_id, index, sent_epoch};
}

static bool
tell_on_reply(struct meta_command *command, const struct frame *frame)
{
    struct meta_tell *tell = list_entry(command, struct meta_tell, command);
    struct meta_core *core = tell->core;
    uint64_t volume_id = tell->key.volume_id;
    uint32_t index = tell->key.index, sent_epoch = tell->sent_epoch;

    (void)frame;
    if (tell->again) {
        meta_command_start(command, meta_server_by_id(core, tell->key.server_id), true);
        return true;
    }
    tell_free(tell);
    told_check(core, volume_id, index, sent_epoch);
    return true;
}

/* --- what is to be told --- */

static void
tell_slot(struct meta_core *core, const struct meta_volume *volume, const struct segment *segment,
          const struct segment_slot *slot)
{
    struct meta_tell *tell = tell_find(core, volume->desc.id, segment->index, slot->server_id);

    if (tell != NULL) {
        tell->again = true; /* matters only if it is on its way */
        tell->command.retry_ns = 0;
        return;
    }
    tell = meta_alloc(sizeof(*tell));
    tell->core = core;
    tell->key.volume_id = volume->desc.id;
    tell->key.index = segment->index;
    tell->key.server_id = slot->server_id;
    tell->command.name = "SLOT_TELL";
    tell->command.volume_id = volume->desc.id;
    tell->command.send = tell_send;
    tell->command.on_reply = tell_on_reply;
    HASH_ADD(hh, core->recovery->tells, key, sizeof(tell->key), tell);
    meta_command_start(&tell->command, meta_server_by_id(core, slot->server_id), false);
}

void
meta_tell_segment(struct meta_core *core, const struct meta_volume *volume,
                  const struct segment *old, const struct segment *segment)
{
    const struct segment_table *table = &volume->segments;

    for (uint32_t i = 0; old != NULL && i < table->place_count; i++) {
        uint32_t server_id = old->slots[i].server_id;
        uint32_t place = server_id == 0 ? UINT32_MAX
                                        : meta_segment_place_of(table, segment, server_id);
        struct meta_tell *tell;

        if (server_id == 0 || (place != UINT32_MAX && slot_is_told(&segment->slots[place])))
            continue;
        tell = tell_find(core, volume->desc.id, segment->index, server_id);
        if (tell != NULL)
            tell_free(tell);
    }
    for (uint32_t i = 0; i < table->place_count; i++)
        if (slot_is_told(&segment->slots[i]))
            tell_slot(core, volume, segment, &segment->slots[i]);
}

void
meta_tell_again(struct meta_core *core, const struct meta_volume *volume,
                const struct segment *segment, uint32_t place)
{
    tell_slot(core, volume, segment, &segment->slots[place]);
}

void
meta_tell_address(struct meta_core *core, uint32_t server_id)
{
    struct meta_repair *repair;

    list_for_each_entry (repair, &core->recovery->recovering, recovering_node) {
        const struct meta_volume *volume = meta_volume_by_id(core, repair->key.volume_id);
        const struct segment *segment = meta_segments_find(&volume->segments,
                                                           (uint32_t)repair->key.index);
        uint32_t place = meta_segment_place_of(&volume->segments, segment, server_id);

        if (place == UINT32_MAX || segment->slots[place].state != DL__SLOT_STATE__SLOT_IN_SYNC)
            continue;
        for (uint32_t i = 0; i < volume->segments.place_count; i++)
            if (segment->slots[i].state == DL__SLOT_STATE__SLOT_RECOVERING)
                tell_slot(core, volume, segment, &segment->slots[i]);
    }
}

/* --- recording that all were told --- */

static void
told_on_committed(struct meta_op *op)
{
    meta_op_end(op);
}

/* The core's own op: the segments of op->scratch, all of one volume. */
static void
told_run(struct meta_op *op)
{
    const struct told_segment *told = op->scratch;
    struct meta_volume *volume = meta_volume_by_id(op->core, told[0].volume_id);

    if (volume == NULL || volume->desc.deleting) {
        meta_op_end(op);
        return;
    }
    if (!meta_op_take(op, &volume->serial))
        return;
    for (uint32_t i = 0; i < op->scratch_count; i++) {
        const struct segment *segment = meta_segments_find(&volume->segments, told[i].index);

        if (segment != NULL && segment->config_epoch == told[i].config_epoch)
            meta_record_put_segment(&op->batch, volume->desc.id, segment,
                                    volume->segments.slot_count, true);
    }
    if (op->batch.count == 0)
        meta_op_end(op);
    else
        meta_op_commit(op, told_on_committed);
}

static const struct meta_handler told_handler = {.run = told_run};

/* Those of the first one's volume. */
static void
told_flush(struct meta_core *core)
{
    struct meta_recovery *recovery = core->recovery;
    uint64_t volume_id = recovery->told[0].volume_id;
    struct meta_op *op = meta_op_create_internal(core, &told_handler);
    struct told_segment *taken = meta_alloc(TOLD_BATCH * sizeof(*taken));
    uint32_t kept = 0;

    for (uint32_t i = 0; i < recovery->told_count; i++) {
        if (recovery->told[i].volume_id == volume_id && op->scratch_count < TOLD_BATCH)
            taken[op->scratch_count++] = recovery->told[i];
        else
            recovery->told[kept++] = recovery->told[i];
    }
    recovery->told_count = kept;
    op->scratch = taken;
}

void
meta_tell_tick(struct meta_core *core)
{
    while (core->recovery->told_count > 0)
        told_flush(core);
    free(core->recovery->told);
    core->recovery->told = NULL;
}

void
meta_tell_forget_volume(struct meta_core *core, uint64_t volume_id)
{
    struct meta_tell *tell, *following;

    HASH_ITER (hh, core->recovery->tells, tell, following)
        if (tell->key.volume_id == volume_id)
            tell_free(tell);
}

void
meta_tell_free_all(struct meta_core *core)
{
    struct meta_tell *tell, *following;

    HASH_ITER (hh, core->recovery->tells, tell, following)
        tell_free(tell);
}
