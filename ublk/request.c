/* SPDX-License-Identifier: Apache-2.0 */
#include "ublk/request.h"

#include <errno.h>
#include <string.h>

#include "common/assert.h"

/* Sizes of one DISCARD or WRITE_ZEROES: the kernel counts their sectors in 32 bits. */
#define ZEROES_BYTES_MAX (1u << 30)

static int
request_map_op(uint32_t op, enum dlblk_op *ret_op)
{
    switch (op) {
    case UBLK_OP_READ:
        *ret_op = DLBLK_READ;
        return 0;
    case UBLK_OP_WRITE:
        *ret_op = DLBLK_WRITE;
        return 0;
    case UBLK_OP_FLUSH:
        *ret_op = DLBLK_FLUSH;
        return 0;
    case UBLK_OP_DISCARD:
        *ret_op = DLBLK_DISCARD;
        return 0;
    case UBLK_OP_WRITE_ZEROES:
        *ret_op = DLBLK_WRITE_ZEROES;
        return 0;
    default:
        return -EOPNOTSUPP;
    }
}

int
ublk_request_map(const struct ublk_shape *shape, const struct ublk_io_desc *desc,
                 struct ublk_mapped *ret_mapped)
{
    uint64_t device_sectors = shape->size_bytes >> UBLK_SECTOR_SHIFT;
    struct ublk_mapped mapped = {.fua = (desc->op_flags & UBLK_IO_F_FUA) != 0};
    int err = request_map_op(desc->op_flags & 0xff, &mapped.op);

    if (err != 0)
        return err;
    if (mapped.op == DLBLK_FLUSH) {
        *ret_mapped = mapped;
        return 0;
    }
    if (desc->sector_count == 0 || desc->sector_count > device_sectors ||
        desc->start_sector > device_sectors - desc->sector_count)
        return -EINVAL;
    mapped.offset_bytes = desc->start_sector << UBLK_SECTOR_SHIFT;
    mapped.length_bytes = (uint64_t)desc->sector_count << UBLK_SECTOR_SHIFT;
    if ((mapped.offset_bytes | mapped.length_bytes) % shape->logical_bytes != 0)
        return -EINVAL;
    if ((mapped.op == DLBLK_READ || mapped.op == DLBLK_WRITE) &&
        mapped.length_bytes > shape->buffer_bytes)
        return -EINVAL;
    if (mapped.op != DLBLK_READ && shape->read_only)
        return -EIO;
    *ret_mapped = mapped;
    return 0;
}

int32_t
ublk_request_result(const struct ublk_mapped *mapped, int err)
{
    if (err == 0)
        return mapped->op == DLBLK_READ || mapped->op == DLBLK_WRITE ? (int32_t)mapped->length_bytes
                                                                     : 0;
    switch (dl_err_class(err)) {
    case ENOSPC:
        return -ENOSPC;
    case ENOMEM:
        return -ENOMEM;
    case ENOTSUP:
        return -EOPNOTSUPP;
    case ESHUTDOWN:
        /* The volume has another owner: the block layer calls that a device that is offline. */
        return -ENODEV;
    default:
        return -EIO;
    }
}

static uint8_t
shift_of(uint32_t power_of_two)
{
    dl_assert(power_of_two != 0);
    return (uint8_t)__builtin_ctz(power_of_two);
}

static bool
is_power_of_two(uint32_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

int
ublk_shape_check(const struct ublk_shape *shape)
{
    if (shape->logical_bytes != 512 && shape->logical_bytes != 4096)
        return -EINVAL;
    if (!is_power_of_two(shape->physical_bytes) || shape->physical_bytes < shape->logical_bytes)
        return -EINVAL;
    /* Larger physical blocks than pages are for kernels that we have not seen. */
    if (shape->physical_bytes > 4096)
        return -EINVAL;
    if (!is_power_of_two(shape->optimal_bytes) || shape->optimal_bytes < shape->physical_bytes)
        return -EINVAL;
    if (shape->buffer_bytes < 4096 || shape->buffer_bytes % 4096 != 0)
        return -EINVAL;
    if (shape->size_bytes == 0 || shape->size_bytes % shape->logical_bytes != 0)
        return -EINVAL;
    return 0;
}

void
ublk_shape_params(const struct ublk_shape *shape, struct ublk_params *ret_params)
{
    struct ublk_params params = {
        .len = sizeof(params),
        .types = UBLK_PARAM_BASIC,
        .basic =
            {
                .logical_shift = shift_of(shape->logical_bytes),
                .physical_shift = shift_of(shape->physical_bytes),
                .io_optimal_shift = shift_of(shape->optimal_bytes),
                .io_minimal_shift = shift_of(shape->physical_bytes),
                .max_sectors = shape->buffer_bytes >> UBLK_SECTOR_SHIFT,
                .device_sectors = shape->size_bytes >> UBLK_SECTOR_SHIFT,
            },
    };

    dl_assert(ublk_shape_check(shape) == 0);
    if (shape->volatile_cache)
        params.basic.attrs |= UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA;
    if (shape->read_only) {
        params.basic.attrs |= UBLK_ATTR_READ_ONLY;
    } else {
        /* Whole sectors give space back; smaller ranges are written as zeroes by the client. */
        params.types |= UBLK_PARAM_DISCARD;
        params.discard.alignment = 0;
        params.discard.granularity = shape->physical_bytes;
        params.discard.max_sectors = ZEROES_BYTES_MAX >> UBLK_SECTOR_SHIFT;
        params.discard.max_write_zeroes_sectors = ZEROES_BYTES_MAX >> UBLK_SECTOR_SHIFT;
        params.discard.max_segments = 1;
    }
    *ret_params = params;
}
