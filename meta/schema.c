/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/schema.h"

#include <endian.h>
#include <string.h>

#include "common/assert.h"

#define SERVER_PREFIX  "server/"
#define VOLUME_PREFIX  "volume/"
#define SEGMENT_PREFIX "segment/"
#define REMOVAL_PREFIX "removal/"
#define EVENT_PREFIX   "event/"

static void
schema_key_append(struct schema_key *key, const void *bytes, size_t length_bytes)
{
    dl_assert(key->length_bytes + length_bytes <= sizeof(key->bytes));
    memcpy(key->bytes + key->length_bytes, bytes, length_bytes);
    key->length_bytes += (uint32_t)length_bytes;
}

struct schema_key
schema_key_text(const char *text)
{
    struct schema_key key = {.length_bytes = 0};

    schema_key_append(&key, text, strlen(text));
    return key;
}

struct schema_key
schema_key_server(uint32_t id)
{
    struct schema_key key = schema_key_text(SERVER_PREFIX);
    uint32_t raw = htobe32(id);

    schema_key_append(&key, &raw, sizeof(raw));
    return key;
}

struct schema_key
schema_key_volume(uint64_t id)
{
    struct schema_key key = schema_key_text(VOLUME_PREFIX);
    uint64_t raw = htobe64(id);

    schema_key_append(&key, &raw, sizeof(raw));
    return key;
}

struct schema_key
schema_key_segment(uint64_t volume_id, uint32_t index)
{
    struct schema_key key = schema_key_text(SEGMENT_PREFIX);
    uint64_t raw_id = htobe64(volume_id);
    uint32_t raw_index = htobe32(index);

    schema_key_append(&key, &raw_id, sizeof(raw_id));
    schema_key_append(&key, &raw_index, sizeof(raw_index));
    return key;
}

struct schema_key
schema_key_removal(uint32_t server_id, uint64_t volume_id, uint32_t segment, uint8_t slot,
                   uint32_t incarnation)
{
    struct schema_key key = schema_key_text(REMOVAL_PREFIX);
    uint32_t raw_server = htobe32(server_id);
    uint64_t raw_volume = htobe64(volume_id);
    uint32_t raw_segment = htobe32(segment);
    uint32_t raw_incarnation = htobe32(incarnation);

    schema_key_append(&key, &raw_server, sizeof(raw_server));
    schema_key_append(&key, &raw_volume, sizeof(raw_volume));
    schema_key_append(&key, &raw_segment, sizeof(raw_segment));
    schema_key_append(&key, &slot, sizeof(slot));
    schema_key_append(&key, &raw_incarnation, sizeof(raw_incarnation));
    return key;
}

struct schema_key
schema_key_event(uint64_t sequence)
{
    struct schema_key key = schema_key_text(EVENT_PREFIX);
    uint64_t raw = htobe64(sequence);

    schema_key_append(&key, &raw, sizeof(raw));
    return key;
}

struct schema_key
schema_key_after_prefix(const char *prefix)
{
    struct schema_key key = schema_key_text(prefix);

    dl_assert(key.length_bytes > 0 && key.bytes[key.length_bytes - 1] < 0xff);
    key.bytes[key.length_bytes - 1]++;
    return key;
}

struct schema_key
schema_key_next(struct store_bytes key)
{
    struct schema_key next = {.length_bytes = 0};
    uint8_t zero = 0;

    schema_key_append(&next, key.bytes, key.length_bytes);
    schema_key_append(&next, &zero, 1);
    return next;
}

/* What follows the prefix, if the key is as long as it should be. */
static const uint8_t *
schema_parse(struct store_bytes key, const char *prefix, size_t rest_bytes)
{
    size_t prefix_bytes = strlen(prefix);

    if (key.length_bytes != prefix_bytes + rest_bytes ||
        memcmp(key.bytes, prefix, prefix_bytes) != 0)
        return NULL;
    return (const uint8_t *)key.bytes + prefix_bytes;
}

bool
schema_parse_server(struct store_bytes key, uint32_t *ret_id)
{
    const uint8_t *rest = schema_parse(key, SERVER_PREFIX, sizeof(uint32_t));
    uint32_t raw;

    if (rest == NULL)
        return false;
    memcpy(&raw, rest, sizeof(raw));
    *ret_id = be32toh(raw);
    return true;
}

bool
schema_parse_volume(struct store_bytes key, uint64_t *ret_id)
{
    const uint8_t *rest = schema_parse(key, VOLUME_PREFIX, sizeof(uint64_t));
    uint64_t raw;

    if (rest == NULL)
        return false;
    memcpy(&raw, rest, sizeof(raw));
    *ret_id = be64toh(raw);
    return true;
}

bool
schema_parse_segment(struct store_bytes key, uint64_t *ret_volume_id, uint32_t *ret_index)
{
    const uint8_t *rest = schema_parse(key, SEGMENT_PREFIX, sizeof(uint64_t) + sizeof(uint32_t));
    uint64_t raw_id;
    uint32_t raw_index;

    if (rest == NULL)
        return false;
    memcpy(&raw_id, rest, sizeof(raw_id));
    memcpy(&raw_index, rest + sizeof(raw_id), sizeof(raw_index));
    *ret_volume_id = be64toh(raw_id);
    *ret_index = be32toh(raw_index);
    return true;
}

bool
schema_parse_removal(struct store_bytes key, uint32_t *ret_server_id, uint64_t *ret_volume_id,
                     uint32_t *ret_segment, uint8_t *ret_slot, uint32_t *ret_incarnation)
{
    const uint8_t *rest = schema_parse(key, REMOVAL_PREFIX, 21);
    uint64_t raw_volume;
    uint32_t raw;

    if (rest == NULL)
        return false;
    memcpy(&raw, rest, sizeof(raw));
    *ret_server_id = be32toh(raw);
    memcpy(&raw_volume, rest + 4, sizeof(raw_volume));
    *ret_volume_id = be64toh(raw_volume);
    memcpy(&raw, rest + 12, sizeof(raw));
    *ret_segment = be32toh(raw);
    *ret_slot = rest[16];
    memcpy(&raw, rest + 17, sizeof(raw));
    *ret_incarnation = be32toh(raw);
    return true;
}

bool
schema_parse_event(struct store_bytes key, uint64_t *ret_sequence)
{
    const uint8_t *rest = schema_parse(key, EVENT_PREFIX, sizeof(uint64_t));
    uint64_t raw;

    if (rest == NULL)
        return false;
    memcpy(&raw, rest, sizeof(raw));
    *ret_sequence = be64toh(raw);
    return true;
}
