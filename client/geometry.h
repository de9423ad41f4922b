/* SPDX-License-Identifier: Apache-2.0 */
/*
 * geometry.h: where a byte of a volume lies: in which segment, at which offset of its chunk.  Pure
 * functions.
 *
 * A volume is a row of stripe sets.  A set consists of W segments; stripe units go round-robin over
 * them:
 *
 *     volume   | u0 | u1 | u2 | u3 | u4 | u5 | ...          W = 3
 *     segment 0  u0   u3  ...       chunk offset of u3: 1 unit
 *     segment 1  u1   u4  ...
 *     segment 2  u2   u5  ...
 *
 * W = 1: the segment follows from the offset alone, and the unit plays no part. A *piece* is a run
 * of bytes that is contiguous in the volume and in one chunk, and stays inside one window (1 MiB of
 * a chunk, aligned: the largest payload of a frame, and the unit by which range_lock.h looks for
 * overlaps).
 *
 * Threads: any.  Errors: geometry_init() only; the others assert.
 */
#ifndef DLBLK_CLIENT_GEOMETRY_H
#define DLBLK_CLIENT_GEOMETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/assert.h"
#include "proto/data.h"

#define SECTOR_SHIFT      12u
#define WINDOW_SECTORS    WIRE_IO_SECTORS_MAX
#define WINDOW_BYTES      FRAME_PAYLOAD_BYTES_MAX
#define SEGMENT_BYTES_MIN (1u << 20)
#define SEGMENT_BYTES_MAX (1u << 30)
static_assert(WIRE_SECTOR_BYTES == 1u << SECTOR_SHIFT, "sector");
static_assert(WINDOW_BYTES <= SEGMENT_BYTES_MIN, "a window lies inside one segment");

struct geometry {
    uint64_t size_bytes;
    uint64_t set_bytes; /* stripe_width segments */
    uint32_t segment_bytes;
    uint32_t logical_block_bytes;
    uint32_t stripe_width;
    uint32_t stripe_unit_bytes;
    uint32_t segment_shift;
    uint32_t unit_shift;
};

struct geometry_piece {
    uint32_t segment;
    uint32_t offset_bytes; /* in the chunk */
    uint32_t length_bytes; /* 1 .. WINDOW_BYTES */
};

/* A run of a chunk: not contiguous in the volume, if that is striped. */
struct geometry_slice {
    uint32_t segment;
    uint32_t offset_bytes;
    uint32_t length_bytes; /* 0: the range has nothing of this segment */
};

/* -DL_E_MESSAGE_MALFORMED: not a geometry that a metadata service of this version hands out. */
int geometry_init(struct geometry *ret_geometry, uint64_t size_bytes, uint32_t segment_bytes,
                  uint32_t logical_block_bytes, uint32_t stripe_width, uint32_t stripe_unit_bytes);

/* The first piece of [offset, offset + length). */
struct geometry_piece geometry_first_piece(const struct geometry *geometry, uint64_t offset_bytes,
                                           uint64_t length_bytes);

/*
 * What segment `member` (0 .. stripe_width - 1) of the stripe set that holds `start` has of [start,
 * end).  Both are multiples of a sector, and lie in one set.
 */
struct geometry_slice geometry_set_slice(const struct geometry *geometry, uint64_t start_bytes,
                                         uint64_t end_bytes, uint32_t member);

/* The volume's offset of a byte of a chunk: the inverse of geometry_first_piece(). */
uint64_t geometry_volume_offset(const struct geometry *geometry, uint32_t segment,
                                uint32_t offset_bytes);

static inline uint32_t
geometry_set_of_offset(const struct geometry *geometry, uint64_t offset_bytes)
{
    uint64_t set = offset_bytes / geometry->set_bytes;

    dl_assert(set <= UINT32_MAX);
    return (uint32_t)set;
}

/* End of the stripe set that holds the offset, or of the volume. */
static inline uint64_t
geometry_set_end(const struct geometry *geometry, uint64_t offset_bytes)
{
    uint64_t end = ((uint64_t)geometry_set_of_offset(geometry, offset_bytes) + 1) *
                   geometry->set_bytes;

    return end < geometry->size_bytes ? end : geometry->size_bytes;
}

/* Segments that the volume's address space has, allocated or not. */
static inline uint64_t
geometry_segment_count(const struct geometry *geometry)
{
    return (geometry->size_bytes + geometry->set_bytes - 1) / geometry->set_bytes *
           geometry->stripe_width;
}

static inline uint32_t
geometry_segment_sectors(const struct geometry *geometry)
{
    return geometry->segment_bytes >> SECTOR_SHIFT;
}

/* The sector that holds a byte of a chunk. */
static inline uint32_t
sector_of_offset(uint32_t offset_bytes)
{
    return offset_bytes >> SECTOR_SHIFT;
}

/* Of a byte offset that stands on a sector. */
static inline uint32_t
sectors_of_bytes(uint64_t bytes)
{
    dl_assert(bytes % WIRE_SECTOR_BYTES == 0);
    dl_assert(bytes >> SECTOR_SHIFT <= UINT32_MAX);
    return (uint32_t)(bytes >> SECTOR_SHIFT);
}

static inline uint64_t
bytes_of_sectors(uint32_t sectors)
{
    return (uint64_t)sectors << SECTOR_SHIFT;
}

static inline uint64_t
sector_round_down(uint64_t bytes)
{
    return bytes & ~(uint64_t)(WIRE_SECTOR_BYTES - 1);
}

static inline uint64_t
sector_round_up(uint64_t bytes)
{
    return sector_round_down(bytes + WIRE_SECTOR_BYTES - 1);
}

#endif
