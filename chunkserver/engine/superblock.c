/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/superblock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/format.h"
#include "chunkserver/engine/region.h"
#include "common/assert.h"
#include "proto/disk.pb-c.h"

#define SUPERBLOCK_MAGIC "dlblk-sb"

uint64_t
superblock_copy_offset(uint64_t disk_bytes, unsigned copy)
{
    dl_assert(copy < SUPERBLOCK_COPIES);
    dl_assert(disk_bytes >= 2 * SUPERBLOCK_BYTES);
    return copy == 0 ? 0 : disk_bytes / SUPERBLOCK_BYTES * SUPERBLOCK_BYTES - SUPERBLOCK_BYTES;
}

/* --- bytes --- */

static ProtobufCBinaryData
superblock_bytes(const uint8_t *bytes)
{
    return (ProtobufCBinaryData){.len = SUPERBLOCK_UUID_BYTES, .data = (uint8_t *)(uintptr_t)bytes};
}

static void
superblock_message(const struct superblock *superblock, Dl__Disk__Superblock *message,
                   Dl__Disk__Geometry *geometry)
{
    const struct superblock_geometry *from = &superblock->geometry;

    dl__disk__geometry__init(geometry);
    geometry->disk_bytes = from->disk_bytes;
    geometry->ring_offset = from->ring_offset;
    geometry->ring_bytes = from->ring_bytes;
    geometry->metadata_offset = from->metadata_offset;
    geometry->metadata_bytes = from->metadata_bytes;
    geometry->data_offset = from->data_offset;
    geometry->data_bytes = from->data_bytes;
    geometry->reserve_bytes = from->reserve_bytes;
    dl__disk__superblock__init(message);
    message->length = SUPERBLOCK_BYTES;
    message->format_version = superblock->format_version;
    message->features_incompatible = superblock->features_incompatible;
    message->features_read_only = superblock->features_read_only;
    message->features_compatible = superblock->features_compatible;
    message->disk_uuid = superblock_bytes(superblock->disk_uuid);
    message->cluster_id = superblock_bytes(superblock->cluster_id);
    message->generation = superblock->generation;
    message->incarnation = superblock->incarnation;
    message->cut = superblock->cut;
    message->tail = superblock->tail;
    message->clean = superblock->clean;
    message->geometry = geometry;
    message->has_damaged = 1;
    message->damaged = superblock->damaged;
    message->has_created_ms = 1;
    message->created_ms = superblock->created_ms;
    message->meta_address = (char *)(uintptr_t)superblock->meta_address;
}

void
superblock_encode(const struct superblock *superblock, void *ret_bytes)
{
    Dl__Disk__Superblock message;
    Dl__Disk__Geometry geometry;
    size_t message_bytes;

    superblock_message(superblock, &message, &geometry);
    message_bytes = dl__disk__superblock__get_packed_size(&message);
    dl_assert(message_bytes <= SUPERBLOCK_BYTES - REGION_HEADER_BYTES);
    (void)dl__disk__superblock__pack(&message, (uint8_t *)ret_bytes + REGION_HEADER_BYTES);
    region_seal(ret_bytes, SUPERBLOCK_BYTES, SUPERBLOCK_MAGIC, (uint32_t)message_bytes);
}

#define REFUSE(code, ...)                                               \
    do {                                                                \
        (void)snprintf(problem, SUPERBLOCK_PROBLEM_BYTES, __VA_ARGS__); \
        return code;                                                    \
    } while (0)

/* Where one region ends and the next begins, in whole units. */
static bool
geometry_is_sound(const struct superblock_geometry *g)
{
    return g->disk_bytes >= 2 * SUPERBLOCK_BYTES && g->ring_offset >= SUPERBLOCK_BYTES &&
           g->ring_offset % UNIT_BYTES == 0 && g->ring_bytes % UNIT_BYTES == 0 &&
           g->ring_bytes >= JOURNAL_BYTES_MAX && g->data_offset % BLOCK_BYTES == 0 &&
           g->data_bytes % SLAB_BYTES == 0 && g->data_bytes > 0 && g->ring_offset < g->disk_bytes &&
           g->ring_bytes <= g->disk_bytes - g->ring_offset &&
           g->metadata_offset >= g->ring_offset + g->ring_bytes &&
           g->metadata_offset <= g->disk_bytes &&
           g->metadata_bytes <= g->disk_bytes - g->metadata_offset &&
           g->data_offset >= g->metadata_offset + g->metadata_bytes &&
           g->data_offset < g->disk_bytes && g->data_bytes <= g->disk_bytes - g->data_offset &&
           g->data_offset + g->data_bytes <= superblock_copy_offset(g->disk_bytes, 1);
}

static int
superblock_take(const Dl__Disk__Superblock *message, struct superblock *superblock, char *problem)
{
    const Dl__Disk__Geometry *from = message->geometry;
    const char *meta = message->meta_address != NULL ? message->meta_address : "";

    memset(superblock, 0, sizeof(*superblock));
    if (message->format_version == 0 || message->format_version > DISK_FORMAT_VERSION_NEWEST)
        REFUSE(-DL_E_DISK_FORMAT, "disk format %u is unknown, the newest known is %u",
               message->format_version, (unsigned)DISK_FORMAT_VERSION_NEWEST);
    if ((message->features_incompatible & ~(uint64_t)SUPERBLOCK_FEATURES_INCOMPATIBLE) != 0)
        REFUSE(-DL_E_DISK_FORMAT, "it uses features that this version does not know: 0x%llx",
               (unsigned long long)message->features_incompatible);
    if (message->length != SUPERBLOCK_BYTES || message->disk_uuid.len != SUPERBLOCK_UUID_BYTES ||
        message->cluster_id.len != SUPERBLOCK_UUID_BYTES ||
        strlen(meta) > SUPERBLOCK_META_BYTES_MAX)
        REFUSE(-DL_E_DISK_DAMAGED, "a field has an impossible length");
    memcpy(superblock->disk_uuid, message->disk_uuid.data, SUPERBLOCK_UUID_BYTES);
    memcpy(superblock->cluster_id, message->cluster_id.data, SUPERBLOCK_UUID_BYTES);
    superblock->format_version = message->format_version;
    superblock->features_incompatible = message->features_incompatible;
    superblock->features_read_only = message->features_read_only;
    superblock->features_compatible = message->features_compatible;
    superblock->generation = message->generation;
    superblock->incarnation = message->incarnation;
    superblock->cut = message->cut;
    superblock->tail = message->tail;
    superblock->clean = message->clean;
    superblock->damaged = message->has_damaged && message->damaged;
    superblock->created_ms = message->created_ms;
    (void)snprintf(superblock->meta_address, sizeof(superblock->meta_address), "%s", meta);
    superblock->geometry = (struct superblock_geometry){
        .disk_bytes = from->disk_bytes,
        .ring_offset = from->ring_offset,
        .ring_bytes = from->ring_bytes,
        .metadata_offset = from->metadata_offset,
        .metadata_bytes = from->metadata_bytes,
        .data_offset = from->data_offset,
        .data_bytes = from->data_bytes,
        .reserve_bytes = from->reserve_bytes,
    };
    if (!geometry_is_sound(&superblock->geometry))
        REFUSE(-DL_E_DISK_DAMAGED, "its layout makes no sense");
    return 0;
}

int
superblock_decode(const void *bytes, struct superblock *ret_superblock, char *problem)
{
    Dl__Disk__Superblock *message;
    struct superblock superblock;
    const uint8_t *packed;
    uint32_t packed_bytes;
    int err;

    err = region_open(bytes, SUPERBLOCK_BYTES, SUPERBLOCK_MAGIC, &packed, &packed_bytes, problem,
                      SUPERBLOCK_PROBLEM_BYTES);
    if (err != 0)
        return err;
    message = dl__disk__superblock__unpack(NULL, packed_bytes, packed);
    if (message == NULL)
        REFUSE(-DL_E_DISK_DAMAGED, "its message cannot be decoded");
    err = superblock_take(message, &superblock, problem);
    dl__disk__superblock__free_unpacked(message, NULL);
    if (err == 0)
        *ret_superblock = superblock;
    return err;
}

/* --- the two places --- */

static void *
superblock_buffer(void)
{
    void *buffer = aligned_alloc(SUPERBLOCK_BYTES, SUPERBLOCK_BYTES);

    dl_assert(buffer != NULL);
    return buffer;
}

void
superblock_copies_read_now(struct disk *disk, struct superblock_copy ret_copies[SUPERBLOCK_COPIES])
{
    void *buffer = superblock_buffer();

    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
        struct superblock_copy *copy = &ret_copies[i];
        int err;

        memset(copy, 0, sizeof(*copy));
        if (disk->size_bytes < 2 * SUPERBLOCK_BYTES) {
            copy->err = -DL_E_DISK_FORMAT;
            (void)snprintf(copy->problem, sizeof(copy->problem), "the disk is too small");
            continue;
        }
        copy->offset_bytes = superblock_copy_offset(disk->size_bytes, i);
        err = disk->ops->read_now(disk, buffer, SUPERBLOCK_BYTES, copy->offset_bytes);
        if (err != 0) {
            copy->err = -DL_E_MEDIA_READ;
            (void)snprintf(copy->problem, sizeof(copy->problem), "it cannot be read: %s",
                           dl_err_str(err));
            continue;
        }
        copy->is_ours = memcmp(buffer, SUPERBLOCK_MAGIC, REGION_MAGIC_BYTES) == 0;
        copy->err = superblock_decode(buffer, &copy->superblock, copy->problem);
        copy->valid = copy->err == 0;
    }
    free(buffer);
}

/* The index of the newest valid copy; -1: none. */
static int
superblock_newest(const struct superblock_copy copies[SUPERBLOCK_COPIES])
{
    if (copies[0].valid && copies[1].valid)
        return copies[1].superblock.generation > copies[0].superblock.generation ? 1 : 0;
    if (copies[0].valid)
        return 0;
    return copies[1].valid ? 1 : -1;
}

/* Why there is no superblock: not dlblk's disk at all, or a damaged one. */
static int
superblock_refuse(const struct superblock_copy copies[SUPERBLOCK_COPIES], struct dl_error *err)
{
    bool foreign = copies[0].err == -DL_E_DISK_FORMAT && copies[1].err == -DL_E_DISK_FORMAT;

    dl_error_set(err, foreign ? -DL_E_DISK_FORMAT : -DL_E_DISK_DAMAGED,
                 "no usable superblock: at offset 0: %s; at offset %llu: %s", copies[0].problem,
                 (unsigned long long)copies[1].offset_bytes, copies[1].problem);
    if (foreign)
        dl_error_hint(err, "prepare the disk with dlblk-disk format, or use the version of dlblk "
                           "that wrote it");
    else
        dl_error_hint(err, "look at it with dlblk-disk inspect");
    return foreign ? -DL_E_DISK_FORMAT : -DL_E_DISK_DAMAGED;
}

int
superblock_load_now(struct disk *disk, struct superblock *ret_superblock, struct dl_error *err)
{
    struct superblock_copy copies[SUPERBLOCK_COPIES];
    const struct superblock *found;
    int newest;

    superblock_copies_read_now(disk, copies);
    newest = superblock_newest(copies);
    if (newest < 0)
        return superblock_refuse(copies, err);
    found = &copies[newest].superblock;
    if (found->geometry.disk_bytes > disk->size_bytes)
        return dl_error_set(
            err, -DL_E_DISK_DAMAGED, "the disk has %llu bytes, it was formatted with %llu",
            (unsigned long long)disk->size_bytes, (unsigned long long)found->geometry.disk_bytes);
    *ret_superblock = *found;
    return 0;
}

static int
superblock_store_copy(struct disk *disk, const void *bytes, unsigned copy, struct dl_error *err)
{
    uint64_t offset_bytes = superblock_copy_offset(disk->size_bytes, copy);
    int result = disk->ops->write_now(disk, bytes, SUPERBLOCK_BYTES, offset_bytes);

    if (result == 0)
        result = disk->ops->flush_now(disk);
    if (result != 0)
        return dl_error_set(err, -DL_E_MEDIA_WRITE,
                            "writing the superblock at offset %llu failed: %s",
                            (unsigned long long)offset_bytes, dl_err_str(result));
    return 0;
}

int
superblock_store_now(struct disk *disk, struct superblock *superblock, struct dl_error *err)
{
    struct superblock_copy copies[SUPERBLOCK_COPIES];
    void *buffer = superblock_buffer();
    unsigned first;
    int result;

    superblock_copies_read_now(disk, copies);
    first = superblock_newest(copies) == 0 ? 1 : 0;
    superblock->generation++;
    superblock_encode(superblock, buffer);
    result = superblock_store_copy(disk, buffer, first, err);
    if (result == 0)
        result = superblock_store_copy(disk, buffer, 1 - first, err);
    free(buffer);
    return result;
}
