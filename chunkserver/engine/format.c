/* SPDX-License-Identifier: Apache-2.0 */
/*
 * format.c: what makes a disk one of ours: layout, zeroed ring, superblocks.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "common/assert.h"

#define RING_OFFSET        (64u << 10)
#define RING_BYTES_MIN     ((uint64_t)ENGINE_JOURNAL_UNITS_MIN * UNIT_BYTES)
#define RING_BYTES_DEFAULT (UINT64_C(256) << 20) /* at most; 1/64 of a smaller disk */
#define ALIGN_BYTES        (64u << 10)
#define RESERVE_DEFAULT    (UINT64_C(64) << 20) /* at most; 1/16 of a smaller data region */
#define ZERO_BYTES         (1u << 20)

static uint64_t
round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

static uint64_t
ring_default(uint64_t disk_bytes)
{
    uint64_t bytes = disk_bytes / 64 / ALIGN_BYTES * ALIGN_BYTES;

    if (bytes > RING_BYTES_DEFAULT)
        return RING_BYTES_DEFAULT;
    return bytes < RING_BYTES_MIN ? RING_BYTES_MIN : bytes;
}

static int
layout(const struct disk *disk, const struct engine_format *format, struct superblock_geometry *g,
       struct dl_error *err)
{
    uint64_t end, needed;

    *g = (struct superblock_geometry){.disk_bytes = disk->size_bytes, .ring_offset = RING_OFFSET};
    g->ring_bytes = format->journal_bytes != 0 ? format->journal_bytes
                                               : ring_default(disk->size_bytes);
    g->ring_bytes = g->ring_bytes / UNIT_BYTES * UNIT_BYTES;
    if (g->ring_bytes < RING_BYTES_MIN)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "a journal of %" PRIu64 " bytes is too small, it takes %" PRIu64,
                            g->ring_bytes, RING_BYTES_MIN);
    g->metadata_offset = round_up(g->ring_offset + g->ring_bytes, ALIGN_BYTES);
    g->metadata_bytes = round_up(
        format->metadata_bytes != 0 ? format->metadata_bytes : disk->size_bytes / 100, ALIGN_BYTES);
    g->data_offset = g->metadata_offset + g->metadata_bytes;
    needed = g->data_offset + SLAB_BYTES + SUPERBLOCK_BYTES;
    if (disk->size_bytes < needed)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "the disk has %" PRIu64 " bytes, it takes at least %" PRIu64,
                            disk->size_bytes, needed);
    end = superblock_copy_offset(disk->size_bytes, 1);
    g->data_bytes = (end - g->data_offset) / SLAB_BYTES * SLAB_BYTES;
    g->reserve_bytes = format->reserve_bytes;
    if (g->reserve_bytes == 0)
        g->reserve_bytes = g->data_bytes / 16 < RESERVE_DEFAULT ? g->data_bytes / 16
                                                                : RESERVE_DEFAULT;
    return 0;
}

static int
zero_range(struct disk *disk, uint64_t offset_bytes, uint64_t length_bytes, struct dl_error *err)
{
    void *zeroes = aligned_alloc(UNIT_BYTES, ZERO_BYTES);
    int result = 0;

    dl_assert(zeroes != NULL);
    memset(zeroes, 0, ZERO_BYTES);
    while (length_bytes > 0 && result == 0) {
        uint64_t part = length_bytes < ZERO_BYTES ? length_bytes : ZERO_BYTES;

        result = disk->ops->write_now(disk, zeroes, part, offset_bytes);
        offset_bytes += part;
        length_bytes -= part;
    }
    free(zeroes);
    if (result != 0)
        return dl_error_set(err, -DL_E_MEDIA_WRITE,
                            "writing zeroes before offset %" PRIu64 " failed: %s", offset_bytes,
                            dl_err_str(result));
    return 0;
}

/*
 * Both copies of what was there before must be gone before the ring is: half a disk of each must
 * not look like one.
 */
static int
wipe(struct disk *disk, const struct superblock_geometry *g, struct dl_error *err)
{
    int result = zero_range(disk, superblock_copy_offset(disk->size_bytes, 0), SUPERBLOCK_BYTES,
                            err);

    if (result == 0)
        result = zero_range(disk, superblock_copy_offset(disk->size_bytes, 1), SUPERBLOCK_BYTES,
                            err);
    if (result == 0 && disk->ops->flush_now(disk) != 0)
        result = dl_error_set(err, -DL_E_MEDIA_WRITE, "flushing the disk failed");
    if (result == 0)
        result = zero_range(disk, g->ring_offset, g->ring_bytes, err);
    return result;
}

int
engine_format_now(struct disk *disk, const struct engine_format *format, struct dl_error *err)
{
    struct superblock superblock = {.format_version = DISK_FORMAT_VERSION_NEWEST, .clean = true};
    const char *meta = format->meta_address != NULL ? format->meta_address : "";
    int result = layout(disk, format, &superblock.geometry, err);

    if (result != 0)
        return result;
    if (strlen(meta) > SUPERBLOCK_META_BYTES_MAX)
        return dl_error_set(err, -DL_E_SIZE_INVALID,
                            "the address of the metadata service is longer than %u bytes",
                            SUPERBLOCK_META_BYTES_MAX);
    memcpy(superblock.disk_uuid, format->disk_uuid, sizeof(superblock.disk_uuid));
    memcpy(superblock.cluster_id, format->cluster_id, sizeof(superblock.cluster_id));
    memcpy(superblock.meta_address, meta, strlen(meta));
    superblock.created_ms = format->created_ms;
    /* LSNs begin with the second lap, so that none is 0 and none is less than a ring. */
    superblock.cut = superblock.geometry.ring_bytes / UNIT_BYTES;
    superblock.tail = superblock.cut;
    result = wipe(disk, &superblock.geometry, err);
    if (result != 0)
        return result;
    return superblock_store_now(disk, &superblock, err);
}
