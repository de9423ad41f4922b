/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of the store: meta.proto and back.  What comes out of the store is checked as what comes
 * from a peer is: a damaged record is an error that names it, and the service doesn't start.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/align.h"
#include "common/assert.h"
#include "common/text.h"
#include "meta/internal.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/schema.h"

static char *
text_of(const char *text)
{
    return (char *)(uintptr_t)text; /* the packer only reads */
}

static ProtobufCBinaryData
id_of(const uint8_t *id, bool present)
{
    return (ProtobufCBinaryData){present ? META_ID_BYTES : 0, (uint8_t *)(uintptr_t)id};
}

/* False: too long for its place. */
static bool
text_take(char *to, size_t to_bytes, const char *from)
{
    size_t length_bytes = strlen(from);

    if (length_bytes >= to_bytes)
        return false;
    memcpy(to, from, length_bytes + 1);
    return true;
}

static int
record_damaged(struct dl_error *err, const char *what, uint64_t id, const char *why)
{
    return dl_error_set(err, -DL_E_STORE_DAMAGED, "the record of %s %" PRIu64 " is damaged: %s",
                        what, id, why);
}

static void *
record_unpack(struct store_item item, const ProtobufCMessageDescriptor *type)
{
    return protobuf_c_message_unpack(type, NULL, item.value.length_bytes, item.value.bytes);
}

/* --- volumes --- */

void
meta_record_put_volume(struct store_batch *batch, const struct volume_desc *desc)
{
    Dl__Meta__VolumeRecord record = DL__META__VOLUME_RECORD__INIT;
    struct schema_key key = schema_key_volume(desc->id);

    record.id = desc->id;
    record.name = text_of(desc->name);
    record.size_bytes = desc->size_bytes;
    record.segment_bytes = desc->segment_bytes;
    record.logical_block_bytes = desc->logical_block_bytes;
    record.stripe_width = desc->stripe_width;
    record.stripe_unit_bytes = desc->stripe_unit_bytes;
    record.redundancy = desc->redundancy;
    record.replicas = desc->replicas;
    record.data_shards = desc->data_shards;
    record.parity_shards = desc->parity_shards;
    record.min_write = desc->min_write;
    record.failure_domain = desc->failure_domain;
    record.clique = text_of(desc->clique);
    record.created_ms = desc->created_ms;
    record.snapshot_seq = desc->snapshot_seq;
    record.change_id = id_of(desc->change_id, desc->has_change_id);
    record.deleting = desc->deleting;
    record.lease_epoch = desc->lease_epoch;
    record.clean = desc->clean;
    record.attach_id = id_of(desc->attach_id, desc->owned);
    record.owner = text_of(desc->owner);
    record.attached_ms = desc->attached_ms;
    record.ready = desc->ready;
    record.takeover = desc->takeover;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
}

static void
volume_take_numbers(struct volume_desc *desc, const Dl__Meta__VolumeRecord *record)
{
    desc->size_bytes = record->size_bytes;
    desc->segment_bytes = record->segment_bytes;
    desc->logical_block_bytes = record->logical_block_bytes;
    desc->stripe_width = record->stripe_width;
    desc->stripe_unit_bytes = record->stripe_unit_bytes;
    desc->redundancy = record->redundancy;
    desc->replicas = record->replicas;
    desc->data_shards = record->data_shards;
    desc->parity_shards = record->parity_shards;
    desc->min_write = record->min_write;
    desc->failure_domain = record->failure_domain;
    desc->created_ms = record->created_ms;
    desc->snapshot_seq = record->snapshot_seq;
    desc->deleting = record->deleting;
    desc->lease_epoch = record->lease_epoch;
    desc->clean = record->clean;
    desc->attached_ms = record->attached_ms;
    desc->ready = record->ready;
    desc->takeover = record->takeover;
}

static int
volume_check(const struct volume_desc *desc, const Dl__Meta__VolumeRecord *record,
             struct dl_error *err)
{
    if (text_check_name("volume", desc->name, NULL) < 0)
        return record_damaged(err, "volume", desc->id, "its name is not valid");
    if (desc->redundancy != DL__REDUNDANCY__REDUNDANCY_REPLICATED || desc->replicas == 0 ||
        desc->replicas > META_REPLICAS_MAX)
        return record_damaged(err, "volume", desc->id,
                              "a redundancy that this version doesn't know");
    if (!is_power_of_two(desc->segment_bytes) || desc->segment_bytes < META_SEGMENT_BYTES_MIN ||
        desc->segment_bytes > META_SEGMENT_BYTES_MAX || desc->stripe_width == 0 ||
        desc->stripe_width > META_STRIPE_WIDTH_MAX || desc->size_bytes == 0 ||
        meta_volume_segment_count(desc) > META_VOLUME_SEGMENTS_MAX)
        return record_damaged(err, "volume", desc->id, "size or striping are not valid");
    if (desc->lease_epoch > META_LEASE_EPOCH_MAX)
        return record_damaged(err, "volume", desc->id, "a lease epoch beyond the limit");
    if (record->attach_id.len != 0 && record->attach_id.len != META_ID_BYTES)
        return record_damaged(err, "volume", desc->id, "an attach id of a wrong length");
    return 0;
}

int
meta_record_get_volume(struct store_item item, struct volume_desc *ret_desc, struct dl_error *err)
{
    struct volume_desc desc = {0};
    Dl__Meta__VolumeRecord *record = NULL;
    int result;

    if (!schema_parse_volume(item.key, &desc.id))
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a volume's record has a damaged key");
    record = record_unpack(item, &dl__meta__volume_record__descriptor);
    if (record == NULL)
        return record_damaged(err, "volume", desc.id, "it is no such message");
    volume_take_numbers(&desc, record);
    if (record->id != desc.id)
        result = record_damaged(err, "volume", desc.id, "it lies under another volume's key");
    else if (!text_take(desc.name, sizeof(desc.name), record->name) ||
             !text_take(desc.clique, sizeof(desc.clique), record->clique) ||
             !text_take(desc.owner, sizeof(desc.owner), record->owner))
        result = record_damaged(err, "volume", desc.id, "a text is too long");
    else
        result = volume_check(&desc, record, err);
    if (result == 0) {
        desc.owned = record->attach_id.len != 0;
        if (desc.owned)
            memcpy(desc.attach_id, record->attach_id.data, META_ID_BYTES);
        desc.has_change_id = record->change_id.len == META_ID_BYTES;
        if (desc.has_change_id)
            memcpy(desc.change_id, record->change_id.data, META_ID_BYTES);
        *ret_desc = desc;
    }
    protobuf_c_message_free_unpacked(&record->base, NULL);
    return result;
}

/* --- servers --- */

void
meta_record_put_server(struct store_batch *batch, const struct server_desc *desc)
{
    Dl__Meta__ServerRecord record = DL__META__SERVER_RECORD__INIT;
    struct schema_key key = schema_key_server(desc->id);

    record.id = desc->id;
    record.uuid = id_of(desc->uuid, true);
    record.instance = id_of(desc->instance, true);
    record.address = text_of(desc->address);
    record.host = text_of(desc->host);
    record.rack = text_of(desc->rack);
    record.clique = text_of(desc->clique);
    record.start_count = desc->start_count;
    record.journal_position = desc->journal_position;
    record.capacity_bytes = desc->capacity_bytes;
    record.used_bytes = desc->used_bytes;
    record.software = text_of(desc->software);
    record.created_ms = desc->created_ms;
    record.admin_state = desc->admin_state;
    record.labels_set = desc->labels_set;
    record.weight_percent = desc->weight_percent;
    record.start_count_highest = desc->start_count_highest;
    record.reset_start_count = desc->reset_start_count;
    record.scrub_volume = desc->scrub.volume;
    record.scrub_segment = desc->scrub.segment;
    record.scrub_slot = desc->scrub.slot;
    record.scrub_completed_ms = desc->scrub.completed_ms;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
}

static int
server_take(struct server_desc *desc, const Dl__Meta__ServerRecord *record, struct dl_error *err)
{
    if (record->id != desc->id || desc->id == 0)
        return record_damaged(err, "server", desc->id, "it lies under another server's key");
    if (record->uuid.len != META_ID_BYTES || record->instance.len != META_ID_BYTES)
        return record_damaged(err, "server", desc->id, "its uuid has a wrong length");
    if (!text_take(desc->address, sizeof(desc->address), record->address) ||
        !text_take(desc->host, sizeof(desc->host), record->host) ||
        !text_take(desc->rack, sizeof(desc->rack), record->rack) ||
        !text_take(desc->clique, sizeof(desc->clique), record->clique) ||
        !text_take(desc->software, sizeof(desc->software), record->software))
        return record_damaged(err, "server", desc->id, "a text is too long");
    if (record->admin_state > META_ADMIN_REMOVING)
        return record_damaged(err, "server", desc->id, "a state that this version doesn't know");
    desc->admin_state = (enum meta_admin_state)record->admin_state;
    desc->labels_set = record->labels_set;
    desc->weight_percent = record->weight_percent;
    desc->start_count_highest = max_u64(record->start_count_highest, record->start_count);
    desc->reset_start_count = record->reset_start_count;
    desc->scrub = (struct scrub_place){
        .volume = record->scrub_volume,
        .segment = record->scrub_segment,
        .slot = record->scrub_slot,
        .completed_ms = record->scrub_completed_ms,
    };
    memcpy(desc->uuid, record->uuid.data, META_ID_BYTES);
    memcpy(desc->instance, record->instance.data, META_ID_BYTES);
    desc->start_count = record->start_count;
    desc->journal_position = record->journal_position;
    desc->capacity_bytes = record->capacity_bytes;
    desc->used_bytes = record->used_bytes;
    desc->created_ms = record->created_ms;
    return 0;
}

int
meta_record_get_server(struct store_item item, struct server_desc *ret_desc, struct dl_error *err)
{
    struct server_desc desc = {0};
    Dl__Meta__ServerRecord *record;
    int result;

    if (!schema_parse_server(item.key, &desc.id))
        return dl_error_set(err, -DL_E_STORE_DAMAGED, "a server's record has a damaged key");
    record = record_unpack(item, &dl__meta__server_record__descriptor);
    if (record == NULL)
        return record_damaged(err, "server", desc.id, "it is no such message");
    result = server_take(&desc, record, err);
    if (result == 0)
        *ret_desc = desc;
    protobuf_c_message_free_unpacked(&record->base, NULL);
    return result;
}

/* --- segments --- */

void
meta_record_put_segment(struct store_batch *batch, uint64_t volume_id,
                        const struct segment *segment, uint32_t slot_count, bool told)
{
    Dl__Meta__SegmentRecord record = DL__META__SEGMENT_RECORD__INIT;
    Dl__Meta__SlotRecord slots[META_REPLICAS_MAX + 1];
    Dl__Meta__SlotRecord *pointers[META_REPLICAS_MAX + 1];
    uint32_t place_count = slot_count + (segment->slots[slot_count].server_id != 0);
    struct schema_key key = schema_key_segment(volume_id, segment->index);

    dl_assert(slot_count <= META_REPLICAS_MAX);
    for (uint32_t i = 0; i < place_count; i++) {
        dl__meta__slot_record__init(&slots[i]);
        slots[i].server_id = segment->slots[i].server_id;
        slots[i].state = segment->slots[i].state;
        slots[i].incarnation = segment->slots[i].incarnation;
        slots[i].attempt = segment->slots[i].attempt;
        slots[i].number = i < slot_count ? 0 : segment->slots[i].number;
        pointers[i] = &slots[i];
    }
    record.config_epoch = segment->config_epoch;
    record.n_slots = place_count;
    record.told = told;
    record.slots = pointers;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
}

/* False: it makes no sense; why says what is wrong. */
static bool
segment_take_slot(struct segment *segment, uint32_t place, uint32_t slot_count,
                  const Dl__Meta__SlotRecord *record, char *why, size_t why_bytes)
{
    struct segment_slot *slot = &segment->slots[place];
    bool recovering = record->state == DL__SLOT_STATE__SLOT_RECOVERING;

    why[0] = '\0';
    if (record->state < DL__SLOT_STATE__SLOT_IN_SYNC ||
        record->state > DL__SLOT_STATE__SLOT_EJECTED)
        (void)snprintf(why, why_bytes, "slot %" PRIu32 " has state %" PRIu32, place, record->state);
    else if (record->server_id == 0 || record->server_id > 0xffffffu)
        (void)snprintf(why, why_bytes, "slot %" PRIu32 " has no server", place);
    else if (record->attempt > segment->config_epoch || record->incarnation > segment->config_epoch)
        (void)snprintf(why, why_bytes, "slot %" PRIu32 " has an epoch above the segment's", place);
    else if (recovering != (record->attempt != 0))
        (void)snprintf(why, why_bytes, "slot %" PRIu32 " %s an attempt", place,
                       recovering ? "recovers without" : "does not recover, but has");
    else if (place == slot_count &&
             (record->number >= slot_count || record->state == DL__SLOT_STATE__SLOT_IN_SYNC))
        (void)snprintf(why, why_bytes, "its incoming slot replaces none");
    slot->server_id = record->server_id & 0xffffffu;
    slot->state = record->state & 0xfu;
    slot->number = (place < slot_count ? place : record->number) & 0xfu;
    slot->incarnation = record->incarnation;
    slot->attempt = record->attempt;
    return why[0] == '\0';
}

int
meta_record_get_segment(struct store_item item, struct segment *segment, uint32_t slot_count,
                        bool *ret_told, struct dl_error *err)
{
    Dl__Meta__SegmentRecord *record = record_unpack(item, &dl__meta__segment_record__descriptor);
    uint64_t volume_id = 0;
    char why[64];
    bool good;

    (void)schema_parse_segment(item.key, &volume_id, &segment->index);
    if (record == NULL)
        return dl_error_set(err, -DL_E_STORE_DAMAGED,
                            "the record of segment %" PRIu32 " of volume %" PRIu64
                            " is damaged: it is no such message",
                            segment->index, volume_id);
    good = record->config_epoch != 0 &&
           (record->n_slots == slot_count || record->n_slots == slot_count + 1);
    (void)snprintf(why, sizeof(why), "it has not what a segment has");
    segment->config_epoch = record->config_epoch;
    for (uint32_t i = 0; good && i < record->n_slots; i++)
        good = segment_take_slot(segment, i, slot_count, record->slots[i], why, sizeof(why));
    *ret_told = record->told || record->config_epoch == 1;
    if (!good)
        (void)dl_error_set(
            err, -DL_E_STORE_DAMAGED,
            "the record of segment %" PRIu32 " of volume %" PRIu64
            " is damaged: %s (%zu slots instead of %" PRIu32 ", config epoch %" PRIu32 ")",
            segment->index, volume_id, why, record->n_slots, slot_count, record->config_epoch);
    protobuf_c_message_free_unpacked(&record->base, NULL);
    return good ? 0 : -DL_E_STORE_DAMAGED;
}

/* --- counters --- */

void
meta_record_put_counter(struct store_batch *batch, const char *name, uint64_t next)
{
    Dl__Meta__CounterRecord record = DL__META__COUNTER_RECORD__INIT;
    struct schema_key key = schema_key_text(name);

    record.next = next;
    store_batch_put_message(batch, schema_bytes(&key), &record.base);
}

int
meta_record_get_counter(struct store_item item, uint64_t *ret_next, struct dl_error *err)
{
    Dl__Meta__CounterRecord *record = record_unpack(item, &dl__meta__counter_record__descriptor);
    int result = 0;

    if (record == NULL || record->next == 0)
        result = dl_error_set(err, -DL_E_STORE_DAMAGED, "a counter's record is damaged");
    else
        *ret_next = record->next;
    if (record != NULL)
        protobuf_c_message_free_unpacked(&record->base, NULL);
    return result;
}
