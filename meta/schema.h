/* SPDX-License-Identifier: Apache-2.0 */
/*
 * schema.h: keys of the store.  Values are messages of meta.proto.
 *
 *     schema                            SchemaRecord
 *     cluster                           ClusterRecord
 *     leader                            LeaderRecord
 *     next/server  next/volume          CounterRecord
 *     server/  id: 4 bytes              ServerRecord
 *     volume/  id: 8 bytes              VolumeRecord
 *     segment/ id: 8 bytes, index: 4    SegmentRecord
 *     removal/ server: 4, volume: 8, segment: 4, slot: 1, incarnation: 4   RemovalRecord
 *     event/   sequence: 8              EventRecord
 *
 * Numbers in keys are big-endian, so that scans come in their order.
 *
 * Versions: a service refuses a store whose version it doesn't know, with a text that names both.
 *
 * Threads: any; pure functions.
 */
#ifndef DLBLK_META_SCHEMA_H
#define DLBLK_META_SCHEMA_H

#include <stdbool.h>
#include <stdint.h>

#include "meta/store.h"

/* number, what changed, date */
#define META_SCHEMA_VERSIONS(X) X(1, "the first", "2026-11")
#define META_SCHEMA_VERSION     1u

/* A key by value: schema_key_volume(7).  Passed on with schema_bytes(). */
struct schema_key {
    uint8_t bytes[STORE_KEY_BYTES_MAX];
    uint32_t length_bytes;
};

struct schema_key schema_key_text(const char *text);
struct schema_key schema_key_server(uint32_t id);
struct schema_key schema_key_volume(uint64_t id);
struct schema_key schema_key_segment(uint64_t volume_id, uint32_t index);
struct schema_key schema_key_removal(uint32_t server_id, uint64_t volume_id, uint32_t segment,
                                     uint8_t slot, uint32_t incarnation);
struct schema_key schema_key_event(uint64_t sequence);
/* The first key that does not begin with this prefix any more: the end of a scan. */
struct schema_key schema_key_after_prefix(const char *prefix);
/* The key that follows `key` immediately. */
struct schema_key schema_key_next(struct store_bytes key);

static inline struct store_bytes
schema_bytes(const struct schema_key *key)
{
    return (struct store_bytes){.bytes = key->bytes, .length_bytes = key->length_bytes};
}

/* False: not such a key. */
bool schema_parse_server(struct store_bytes key, uint32_t *ret_id);
bool schema_parse_volume(struct store_bytes key, uint64_t *ret_id);
bool schema_parse_segment(struct store_bytes key, uint64_t *ret_volume_id, uint32_t *ret_index);
bool schema_parse_removal(struct store_bytes key, uint32_t *ret_server_id, uint64_t *ret_volume_id,
                          uint32_t *ret_segment, uint8_t *ret_slot, uint32_t *ret_incarnation);
bool schema_parse_event(struct store_bytes key, uint64_t *ret_sequence);

#endif
