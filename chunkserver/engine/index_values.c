/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index_values.c: keys and values of the index, and what of it is read at open (all but the
 * leaves).
 */
#include <endian.h>
#include <inttypes.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/crc32c.h"

/* --- keys: big-endian, so that they sort --- */

uint32_t
index_key_id(uint8_t *key, char prefix, uint64_t id)
{
    uint64_t raw = htobe64(id);

    key[0] = (uint8_t)prefix;
    memcpy(key + 1, &raw, sizeof(raw));
    return 1 + sizeof(raw);
}

uint32_t
index_key_page(uint8_t *key, uint32_t page)
{
    uint32_t raw = htobe32(page);

    key[0] = INDEX_BITMAP;
    memcpy(key + 1, &raw, sizeof(raw));
    return 1 + sizeof(raw);
}

uint32_t
index_key_leaf(uint8_t *key, uint64_t local_id, uint32_t number)
{
    uint32_t bytes = index_key_id(key, INDEX_LEAF, local_id);
    uint32_t raw = htobe32(number);

    memcpy(key + bytes, &raw, sizeof(raw));
    return bytes + (uint32_t)sizeof(raw);
}

bool
index_key_parse_id(const uint8_t *key, uint32_t key_bytes, uint64_t *ret_id)
{
    uint64_t raw;

    if (key_bytes != 1 + sizeof(raw))
        return false;
    memcpy(&raw, key + 1, sizeof(raw));
    *ret_id = be64toh(raw);
    return true;
}

bool
index_key_parse_page(const uint8_t *key, uint32_t key_bytes, uint32_t *ret_page)
{
    uint32_t raw;

    if (key_bytes != 1 + sizeof(raw))
        return false;
    memcpy(&raw, key + 1, sizeof(raw));
    *ret_page = be32toh(raw);
    return true;
}

bool
index_key_parse_leaf(const uint8_t *key, uint32_t key_bytes, uint64_t *ret_id, uint32_t *ret_number)
{
    uint32_t raw;

    if (key_bytes != 1 + sizeof(*ret_id) + sizeof(raw))
        return false;
    (void)index_key_parse_id(key, 1 + sizeof(*ret_id), ret_id);
    memcpy(&raw, key + 1 + sizeof(*ret_id), sizeof(raw));
    *ret_number = be32toh(raw);
    return true;
}

/* --- values: a CRC of all that follows it --- */

static void
value_seal(void *value, size_t bytes)
{
    le32_store(value, crc32c(0, (const uint8_t *)value + sizeof(le32), bytes - sizeof(le32)));
}

static bool
value_is_sound(const void *value, size_t bytes)
{
    return le32_load(value) ==
           crc32c(0, (const uint8_t *)value + sizeof(le32), bytes - sizeof(le32));
}

void
index_position_encode(const struct index_position *position, struct index_position_disk *ret)
{
    *ret = (struct index_position_disk){
        .format = le32_of(INDEX_VALUE_FORMAT),
        .incarnation = le64_of(position->incarnation),
        .position = le64_of(position->position),
        .lsn_highest = le64_of(position->lsn_highest),
        .local_id_next = le64_of(position->local_id_next),
    };
    memcpy(ret->disk_uuid, position->disk_uuid, sizeof(ret->disk_uuid));
    value_seal(ret, sizeof(*ret));
}

int
index_position_decode(const void *value, uint32_t value_bytes, struct index_position *ret)
{
    struct index_position_disk disk;

    if (value_bytes != sizeof(disk) || !value_is_sound(value, sizeof(disk)))
        return -DL_E_INDEX_CORRUPT;
    memcpy(&disk, value, sizeof(disk));
    if (le32_get(disk.format) != INDEX_VALUE_FORMAT)
        return -DL_E_INDEX_CORRUPT;
    memcpy(ret->disk_uuid, disk.disk_uuid, sizeof(ret->disk_uuid));
    ret->incarnation = le64_get(disk.incarnation);
    ret->position = le64_get(disk.position);
    ret->lsn_highest = le64_get(disk.lsn_highest);
    ret->local_id_next = le64_get(disk.local_id_next);
    return 0;
}

size_t
index_chunk_bytes(const struct chunk *chunk)
{
    return sizeof(struct index_chunk_disk) + chunk->pending_count * sizeof(struct pending_disk) +
           (chunk->attempt != 0 ? sizeof(struct index_recovery_disk) : 0);
}

static void
recovery_encode(const struct chunk *chunk, struct index_recovery_disk *ret)
{
    *ret = (struct index_recovery_disk){
        .attempt = le32_of(chunk->attempt),
        .cursor_sectors = le32_of(chunk->cursor_sectors),
        .heard_version = le64_of(chunk->heard_version),
        .reported_version = le64_of(chunk->reported_version),
        .step_count = le32_of(chunk->step_count),
    };
    for (uint32_t i = 0; i < chunk->step_count; i++) {
        ret->steps[i].first_sector = le32_of(chunk->steps[i].first_sector);
        ret->steps[i].stable_version = le64_of(chunk->steps[i].stable_version);
    }
}

void
index_chunk_encode(const struct engine_chunk *chunk, void *ret_value)
{
    const struct chunk *from = chunk->chunk;
    struct index_chunk_disk disk = {
        .format = le32_of(INDEX_VALUE_FORMAT),
        .volume = le64_of(from->key.volume),
        .segment = le32_of(from->key.segment),
        .slot = le32_of(from->key.slot),
        .incarnation = le32_of(from->incarnation),
        .config_epoch = le32_of(from->config_epoch),
        .stable_version = le64_of(from->stable_version),
        .lsn = le64_of(chunk->dirty.lsn),
        .state = le32_of(from->state),
        .leaf_count = le32_of(chunk->leaf_count),
        .pending_count = le32_of(from->pending_count),
        .recovery_bytes = le32_of(from->attempt != 0 ? sizeof(struct index_recovery_disk) : 0),
    };
    uint8_t *at = (uint8_t *)ret_value + sizeof(disk);

    memcpy(ret_value, &disk, sizeof(disk));
    for (uint32_t i = 0; i < from->pending_count; i++, at += sizeof(struct pending_disk)) {
        struct pending_disk pending = {
            .version = le64_of(from->pending[i].version),
            .offset_sectors = le32_of(from->pending[i].offset_sectors),
            .length_sectors = le32_of(from->pending[i].length_sectors |
                                      (from->pending[i].pulled ? PENDING_PULLED : 0)),
        };

        memcpy(at, &pending, sizeof(pending));
    }
    if (from->attempt != 0) {
        struct index_recovery_disk recovery;

        recovery_encode(from, &recovery);
        memcpy(at, &recovery, sizeof(recovery));
    }
    value_seal(ret_value, index_chunk_bytes(from));
}

uint32_t
index_lost_encode(struct index_lost_disk *ret)
{
    *ret = (struct index_lost_disk){0};
    value_seal(ret, sizeof(*ret));
    return sizeof(*ret);
}

uint32_t
index_fence_encode(uint32_t lease_epoch, struct index_fence_disk *ret)
{
    *ret = (struct index_fence_disk){.lease_epoch = le32_of(lease_epoch)};
    value_seal(ret, sizeof(*ret));
    return sizeof(*ret);
}

uint32_t
index_bad_encode(uint64_t lsn, struct index_bad_disk *ret)
{
    *ret = (struct index_bad_disk){.lsn = le64_of(lsn)};
    value_seal(ret, sizeof(*ret));
    return sizeof(*ret);
}

uint32_t
index_bitmap_encode(const struct alloc *alloc, uint32_t page, uint64_t lsn,
                    struct index_bitmap_disk *ret)
{
    *ret = (struct index_bitmap_disk){.format = le32_of(INDEX_VALUE_FORMAT), .lsn = le64_of(lsn)};
    alloc_save_page(alloc, page, ret->bits);
    value_seal(ret, sizeof(*ret));
    return sizeof(*ret);
}

/* --- open: everything but the leaves --- */

struct index_load {
    struct engine *engine;
    struct index_position *position;
    bool position_found;
    struct dl_error *err;
};

static int
load_corrupt(const struct index_load *load, char prefix, uint64_t id)
{
    dl_error_set(load->err, -DL_E_INDEX_CORRUPT, "the index has a damaged value: key %c %" PRIu64,
                 prefix, id);
    dl_error_hint(load->err, "make a new index from the disk with dlblk-disk rebuild");
    return -DL_E_INDEX_CORRUPT;
}

static int
load_position(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
              uint32_t value_bytes)
{
    struct index_load *load = context;

    (void)key;
    if (key_bytes != 1 || index_position_decode(value, value_bytes, load->position) != 0)
        return load_corrupt(load, INDEX_POSITION, 0);
    load->position_found = true;
    return 0;
}

static bool
chunk_value_is_sound(const struct index_chunk_disk *disk, const uint8_t *value,
                     uint32_t value_bytes)
{
    uint32_t pending_count = le32_get(disk->pending_count);
    uint32_t state = le32_get(disk->state);
    uint32_t recovery_bytes = le32_get(disk->recovery_bytes);

    return pending_count <= UINT32_MAX / sizeof(struct pending_disk) - 64 &&
           (recovery_bytes == 0 || recovery_bytes == sizeof(struct index_recovery_disk)) &&
           value_bytes ==
               sizeof(*disk) + pending_count * sizeof(struct pending_disk) + recovery_bytes &&
           value_is_sound(value, value_bytes) && le32_get(disk->format) == INDEX_VALUE_FORMAT &&
           (state == CHUNK_PRESENT || state == CHUNK_DELETING) &&
           le32_get(disk->leaf_count) <= CHUNK_LEAVES_MAX;
}

static bool
load_pending(struct chunk *chunk, const uint8_t *at, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++, at += sizeof(struct pending_disk)) {
        struct pending_disk pending;

        uint32_t length;

        memcpy(&pending, at, sizeof(pending));
        length = le32_get(pending.length_sectors);
        if (length == 0 || (length & ~PENDING_PULLED) > CHUNK_SECTORS_MAX ||
            le32_get(pending.offset_sectors) >= CHUNK_SECTORS_MAX)
            return false;
        if ((length & PENDING_PULLED) != 0)
            chunk_pending_add_pulled(chunk, le64_get(pending.version),
                                     le32_get(pending.offset_sectors), length & ~PENDING_PULLED);
        else
            chunk_pending_add(chunk, le64_get(pending.version), le32_get(pending.offset_sectors),
                              length);
    }
    return true;
}

static bool
load_recovery(struct chunk *chunk, const uint8_t *at)
{
    struct index_recovery_disk disk;

    memcpy(&disk, at, sizeof(disk));
    chunk->attempt = le32_get(disk.attempt);
    chunk->cursor_sectors = le32_get(disk.cursor_sectors);
    chunk->heard_version = le64_get(disk.heard_version);
    chunk->reported_version = le64_get(disk.reported_version);
    chunk->step_count = le32_get(disk.step_count);
    if (chunk->attempt == 0 || chunk->step_count == 0 || chunk->step_count > CHUNK_STEPS_MAX)
        return false;
    for (uint32_t i = 0; i < chunk->step_count; i++) {
        chunk->steps[i].first_sector = le32_get(disk.steps[i].first_sector);
        chunk->steps[i].stable_version = le64_get(disk.steps[i].stable_version);
    }
    return chunk->steps[0].first_sector == 0;
}

static int
load_chunk(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
           uint32_t value_bytes)
{
    struct index_load *load = context;
    struct index_chunk_disk disk;
    struct engine_chunk *chunk;
    struct chunk *older;
    struct chunk_key chunk_key = {0};
    uint64_t local_id = 0;

    if (!index_key_parse_id(key, key_bytes, &local_id) || value_bytes < sizeof(disk))
        return load_corrupt(load, INDEX_CHUNK, local_id);
    memcpy(&disk, value, sizeof(disk));
    if (!chunk_value_is_sound(&disk, value, value_bytes))
        return load_corrupt(load, INDEX_CHUNK, local_id);
    chunk_key.volume = le64_get(disk.volume);
    chunk_key.segment = le32_get(disk.segment);
    chunk_key.slot = le32_get(disk.slot);
    /*
     * An older chunk of the same key: it was deleted before this one came into being, but its
     * record in the index does not say so yet.  The DELETE is in the journal above the position.
     */
    older = chunk_table_find(load->engine->chunks, &chunk_key);
    if (older != NULL)
        chunk_table_delete(load->engine->chunks, older);
    chunk = engine_chunk_add(load->engine, &chunk_key, local_id, le32_get(disk.incarnation));
    chunk->chunk->config_epoch = le32_get(disk.config_epoch);
    chunk->epoch_durable = chunk->chunk->config_epoch;
    chunk->dirty.lsn = le64_get(disk.lsn);
    chunk->last_lsn = le64_get(disk.lsn);
    chunk->leaf_count = le32_get(disk.leaf_count);
    (void)chunk_stable_raise(chunk->chunk, le64_get(disk.stable_version));
    chunk->stored_lsn = le64_get(disk.lsn);
    if (le32_get(disk.recovery_bytes) != 0 &&
        !load_recovery(chunk->chunk, value + value_bytes - sizeof(struct index_recovery_disk)))
        return load_corrupt(load, INDEX_CHUNK, local_id);
    if (!load_pending(chunk->chunk, value + sizeof(disk), le32_get(disk.pending_count)))
        return load_corrupt(load, INDEX_CHUNK, local_id);
    if (le32_get(disk.state) == CHUNK_DELETING)
        chunk_table_delete(load->engine->chunks, chunk->chunk);
    return 0;
}

static int
load_fence(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
           uint32_t value_bytes)
{
    struct index_load *load = context;
    struct index_fence_disk disk;
    uint64_t volume = 0;

    if (!index_key_parse_id(key, key_bytes, &volume) || value_bytes != sizeof(disk) ||
        !value_is_sound(value, value_bytes))
        return load_corrupt(load, INDEX_FENCE, volume);
    memcpy(&disk, value, sizeof(disk));
    (void)engine_volume_get(load->engine, volume);
    chunk_table_fence_raise(load->engine->chunks, volume, le32_get(disk.lease_epoch));
    return 0;
}

static int
load_bitmap(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
            uint32_t value_bytes)
{
    struct index_load *load = context;
    struct index_bitmap_disk disk;
    uint32_t page = 0;

    if (!index_key_parse_page(key, key_bytes, &page) || value_bytes != sizeof(disk) ||
        page >= alloc_page_count(&load->engine->alloc) || !value_is_sound(value, value_bytes))
        return load_corrupt(load, INDEX_BITMAP, page);
    memcpy(&disk, value, sizeof(disk));
    if (le32_get(disk.format) != INDEX_VALUE_FORMAT)
        return load_corrupt(load, INDEX_BITMAP, page);
    alloc_load_page(&load->engine->alloc, page, disk.bits);
    load->engine->pages[page].dirty.lsn = le64_get(disk.lsn);
    return 0;
}

static int
load_bad(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
         uint32_t value_bytes)
{
    struct index_load *load = context;
    struct index_bad_disk disk;
    uint64_t block = 0;

    if (!index_key_parse_id(key, key_bytes, &block) || value_bytes != sizeof(disk) ||
        !value_is_sound(value, value_bytes) || !alloc_run_is_valid(&load->engine->alloc, block, 1))
        return load_corrupt(load, INDEX_BAD, block);
    memcpy(&disk, value, sizeof(disk));
    bad_add(load->engine, block)->dirty.lsn = le64_get(disk.lsn);
    return 0;
}

static int
load_lost(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
          uint32_t value_bytes)
{
    struct index_load *load = context;

    (void)key;
    if (key_bytes != 1 || value_bytes != sizeof(struct index_lost_disk) ||
        !value_is_sound(value, value_bytes))
        return load_corrupt(load, INDEX_LOST, 0);
    load->engine->leaves_lost = true;
    load->engine->lost_seq = 1;
    load->engine->lost_flushed = 1;
    return 0;
}

static int
load_prefix(struct index_load *load, char prefix, index_scan_fn fn)
{
    struct index *index = load->engine->index;
    int err = index->ops->scan_now(index, &prefix, 1, fn, load);

    if (err != 0 && load->err != NULL && load->err->code != err)
        dl_error_set(load->err, err, "reading the index failed: %s", dl_err_str(err));
    return err;
}

int
index_load_now(struct engine *engine, struct index_position *ret_position, bool *ret_found,
               struct dl_error *err)
{
    struct index_load load = {.engine = engine, .position = ret_position, .err = err};
    int result;

    if (err != NULL)
        err->code = 0;
    result = load_prefix(&load, INDEX_POSITION, load_position);
    if (result == 0)
        result = load_prefix(&load, INDEX_CHUNK, load_chunk);
    if (result == 0)
        result = load_prefix(&load, INDEX_FENCE, load_fence);
    if (result == 0)
        result = load_prefix(&load, INDEX_BITMAP, load_bitmap);
    if (result == 0)
        result = load_prefix(&load, INDEX_BAD, load_bad);
    if (result == 0)
        result = load_prefix(&load, INDEX_LOST, load_lost);
    *ret_found = load.position_found;
    return result;
}
