/* SPDX-License-Identifier: Apache-2.0 */
#include "client/geometry.h"

#include "dlblk/error.h"

static bool
geometry_is_power_of_two(uint32_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

int
geometry_init(struct geometry *ret_geometry, uint64_t size_bytes, uint32_t segment_bytes,
              uint32_t logical_block_bytes, uint32_t stripe_width, uint32_t stripe_unit_bytes)
{
    struct geometry geometry = {
        .size_bytes = size_bytes,
        .segment_bytes = segment_bytes,
        .logical_block_bytes = logical_block_bytes,
        .stripe_width = stripe_width,
        .stripe_unit_bytes = stripe_unit_bytes,
    };

    if (!geometry_is_power_of_two(segment_bytes) || segment_bytes < SEGMENT_BYTES_MIN ||
        segment_bytes > SEGMENT_BYTES_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    if (logical_block_bytes != 512 && logical_block_bytes != WIRE_SECTOR_BYTES)
        return -DL_E_MESSAGE_MALFORMED;
    if (size_bytes == 0 || size_bytes % logical_block_bytes != 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (stripe_width == 0)
        return -DL_E_MESSAGE_MALFORMED;
    if (!geometry_is_power_of_two(stripe_unit_bytes) || stripe_unit_bytes < WIRE_SECTOR_BYTES ||
        stripe_unit_bytes > segment_bytes)
        return -DL_E_MESSAGE_MALFORMED;
    geometry.set_bytes = (uint64_t)segment_bytes * stripe_width;
    if (geometry_segment_count(&geometry) > UINT32_MAX)
        return -DL_E_MESSAGE_MALFORMED;
    geometry.segment_shift = (uint32_t)__builtin_ctz(segment_bytes);
    geometry.unit_shift = (uint32_t)__builtin_ctz(stripe_unit_bytes);
    *ret_geometry = geometry;
    return 0;
}

static uint32_t
geometry_min(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

struct geometry_piece
geometry_first_piece(const struct geometry *geometry, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct geometry_piece piece;
    uint32_t run_bytes;

    dl_assert(length_bytes > 0);
    dl_assert(offset_bytes < geometry->size_bytes);
    dl_assert(length_bytes <= geometry->size_bytes - offset_bytes);
    if (geometry->stripe_width == 1) {
        piece.segment = (uint32_t)(offset_bytes >> geometry->segment_shift);
        piece.offset_bytes = (uint32_t)(offset_bytes & (geometry->segment_bytes - 1));
        run_bytes = geometry->segment_bytes - piece.offset_bytes;
    } else {
        uint32_t set = geometry_set_of_offset(geometry, offset_bytes);
        uint64_t in_set = offset_bytes - set * geometry->set_bytes;
        uint64_t unit = in_set >> geometry->unit_shift;
        uint32_t in_unit = (uint32_t)(in_set & (geometry->stripe_unit_bytes - 1));

        piece.segment = set * geometry->stripe_width + (uint32_t)(unit % geometry->stripe_width);
        piece.offset_bytes = (uint32_t)(unit / geometry->stripe_width << geometry->unit_shift) +
                             in_unit;
        run_bytes = geometry->stripe_unit_bytes - in_unit;
    }
    run_bytes = geometry_min(run_bytes, WINDOW_BYTES - (piece.offset_bytes & (WINDOW_BYTES - 1)));
    piece.length_bytes = geometry_min(run_bytes, length_bytes);
    dl_assert(piece.length_bytes > 0);
    return piece;
}

/*
 * How many bytes before `in_set` (an offset in a set) belong to the member: the chunk offset at
 * which it goes on.
 */
static uint32_t
geometry_member_bytes_before(const struct geometry *geometry, uint64_t in_set, uint32_t member)
{
    uint64_t unit = in_set >> geometry->unit_shift;
    uint64_t row = unit / geometry->stripe_width;
    uint32_t column = (uint32_t)(unit % geometry->stripe_width);
    uint64_t bytes = row << geometry->unit_shift;

    if (member < column)
        bytes += geometry->stripe_unit_bytes;
    else if (member == column)
        bytes += in_set & (geometry->stripe_unit_bytes - 1);
    dl_assert(bytes <= geometry->segment_bytes);
    return (uint32_t)bytes;
}

struct geometry_slice
geometry_set_slice(const struct geometry *geometry, uint64_t start_bytes, uint64_t end_bytes,
                   uint32_t member)
{
    uint32_t set = geometry_set_of_offset(geometry, start_bytes);
    uint64_t set_start = set * geometry->set_bytes;
    struct geometry_slice slice;
    uint32_t end;

    dl_assert(member < geometry->stripe_width);
    dl_assert(start_bytes <= end_bytes);
    dl_assert(end_bytes - set_start <= geometry->set_bytes);
    slice.segment = set * geometry->stripe_width + member;
    slice.offset_bytes = geometry_member_bytes_before(geometry, start_bytes - set_start, member);
    end = geometry_member_bytes_before(geometry, end_bytes - set_start, member);
    dl_assert(end >= slice.offset_bytes);
    slice.length_bytes = end - slice.offset_bytes;
    return slice;
}

uint64_t
geometry_volume_offset(const struct geometry *geometry, uint32_t segment, uint32_t offset_bytes)
{
    uint64_t set = segment / geometry->stripe_width;
    uint64_t member = segment % geometry->stripe_width;
    uint64_t row = offset_bytes >> geometry->unit_shift;
    uint64_t in_unit = offset_bytes & (geometry->stripe_unit_bytes - 1);

    dl_assert(offset_bytes < geometry->segment_bytes);
    return set * geometry->set_bytes +
           ((row * geometry->stripe_width + member) << geometry->unit_shift) + in_unit;
}
