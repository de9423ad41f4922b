/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel asks becomes what the client does, and the answer goes back as the kernel wants
 * it: offsets and lengths at the edges, flags, operations that are not ours, each error code; and
 * the parameters that promise it all.  No kernel.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <string.h>

#include "ublk/request.h"

#define SECTORS (1u << 20) /* 512 MiB */

static struct ublk_shape
shape_4k(void)
{
    return (struct ublk_shape){
        .size_bytes = (uint64_t)SECTORS * 512,
        .logical_bytes = 4096,
        .physical_bytes = 4096,
        .optimal_bytes = 1u << 20,
        .buffer_bytes = 512u << 10,
    };
}

static int
map(const struct ublk_shape *shape, uint32_t op_flags, uint64_t start, uint32_t count,
    struct ublk_mapped *ret_mapped)
{
    struct ublk_io_desc desc = {
        .op_flags = op_flags,
        .start_sector = start,
        .sector_count = count,
        .addr = 0xdead0000,
    };

    memset(ret_mapped, 0x55, sizeof(*ret_mapped));
    return ublk_request_map(shape, &desc, ret_mapped);
}

/* Sectors of the kernel are 512 bytes, whatever the logical block is. */
static void
test_offsets_are_in_512_byte_sectors(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    assert_int_equal(map(&shape, UBLK_OP_WRITE, 24, 16, &mapped), 0);
    assert_int_equal(mapped.op, DLBLK_WRITE);
    assert_int_equal(mapped.offset_bytes, 24 * 512);
    assert_int_equal(mapped.length_bytes, 16 * 512);
    assert_false(mapped.fua);
    /* Beyond 32 bits of bytes, and of sectors. */
    shape.size_bytes = 1ull << 45;
    assert_int_equal(map(&shape, UBLK_OP_READ, (1ull << 36) - 8, 8, &mapped), 0);
    assert_int_equal(mapped.offset_bytes, (1ull << 45) - 4096);
}

static void
test_operations_and_flags(void **state)
{
    static const struct {
        uint32_t op;
        enum dlblk_op expected;
    } ops[] = {
        {UBLK_OP_READ, DLBLK_READ},
        {UBLK_OP_WRITE, DLBLK_WRITE},
        {UBLK_OP_DISCARD, DLBLK_DISCARD},
        {UBLK_OP_WRITE_ZEROES, DLBLK_WRITE_ZEROES},
    };
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        /* Fail-fast, meta, no-unmap, swap: nothing that changes what is done. */
        assert_int_equal(map(&shape, ops[i].op | 0x18700, 8, 8, &mapped), 0);
        assert_int_equal(mapped.op, ops[i].expected);
        assert_false(mapped.fua);
    }
    assert_int_equal(map(&shape, UBLK_OP_WRITE | UBLK_IO_F_FUA, 8, 8, &mapped), 0);
    assert_true(mapped.fua);
    /* A flush has no place. */
    assert_int_equal(map(&shape, UBLK_OP_FLUSH, UINT64_MAX, 0, &mapped), 0);
    assert_int_equal(mapped.op, DLBLK_FLUSH);
    assert_int_equal(mapped.offset_bytes, 0);
    assert_int_equal(mapped.length_bytes, 0);
    /* WRITE_SAME, zones, and what is not invented yet. */
    assert_int_equal(map(&shape, 4, 8, 8, &mapped), -EOPNOTSUPP);
    assert_int_equal(map(&shape, 18, 8, 8, &mapped), -EOPNOTSUPP);
    assert_int_equal(map(&shape, 255, 8, 8, &mapped), -EOPNOTSUPP);
}

static void
test_the_end_of_the_device(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    assert_int_equal(map(&shape, UBLK_OP_READ, SECTORS - 8, 8, &mapped), 0);
    assert_int_equal(map(&shape, UBLK_OP_READ, SECTORS - 8, 16, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_READ, SECTORS, 8, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_READ, 0, 0, &mapped), -EINVAL);
    /* A sum that wraps around is not inside. */
    assert_int_equal(map(&shape, UBLK_OP_READ, UINT64_MAX - 7, 8, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_DISCARD, 0, SECTORS, &mapped), 0);
    assert_int_equal(map(&shape, UBLK_OP_DISCARD, 8, SECTORS, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_DISCARD, 0, UINT32_MAX, &mapped), -EINVAL);
}

static void
test_logical_blocks(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    assert_int_equal(map(&shape, UBLK_OP_READ, 1, 8, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_READ, 8, 1, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_WRITE_ZEROES, 8, 9, &mapped), -EINVAL);
    shape.logical_bytes = 512;
    assert_int_equal(map(&shape, UBLK_OP_READ, 1, 9, &mapped), 0);
    assert_int_equal(mapped.offset_bytes, 512);
    assert_int_equal(mapped.length_bytes, 9 * 512);
}

/* What has a payload has to fit into a tag's buffer; the others have none. */
static void
test_buffers(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    assert_int_equal(map(&shape, UBLK_OP_WRITE, 0, 1024, &mapped), 0);
    assert_int_equal(map(&shape, UBLK_OP_WRITE, 0, 1032, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_READ, 0, 1032, &mapped), -EINVAL);
    assert_int_equal(map(&shape, UBLK_OP_WRITE_ZEROES, 0, 1032, &mapped), 0);
}

static void
test_read_only(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_mapped mapped;

    (void)state;
    shape.read_only = true;
    assert_int_equal(map(&shape, UBLK_OP_READ, 0, 8, &mapped), 0);
    assert_int_equal(map(&shape, UBLK_OP_FLUSH, 0, 0, &mapped), 0);
    assert_int_equal(map(&shape, UBLK_OP_WRITE, 0, 8, &mapped), -EIO);
    assert_int_equal(map(&shape, UBLK_OP_DISCARD, 0, 8, &mapped), -EIO);
    assert_int_equal(map(&shape, UBLK_OP_WRITE_ZEROES, 0, 8, &mapped), -EIO);
}

/* The kernel takes 0 of a read or a write for an error, and bytes of the others for nothing. */
static void
test_results(void **state)
{
    struct ublk_mapped read = {.op = DLBLK_READ, .length_bytes = 512u << 10};
    struct ublk_mapped write = {.op = DLBLK_WRITE, .length_bytes = 4096};
    struct ublk_mapped discard = {.op = DLBLK_DISCARD, .length_bytes = 1u << 30};
    struct ublk_mapped flush = {.op = DLBLK_FLUSH};

    (void)state;
    assert_int_equal(ublk_request_result(&read, 0), 512 << 10);
    assert_int_equal(ublk_request_result(&write, 0), 4096);
    assert_int_equal(ublk_request_result(&discard, 0), 0);
    assert_int_equal(ublk_request_result(&flush, 0), 0);
}

/* Each error becomes one that the block layer has a status for. */
static void
test_errors(void **state)
{
    static const struct {
        int err;
        int32_t expected;
    } errors[] = {
        {-DL_E_NO_SPACE, -ENOSPC},
        {-DL_E_TOO_FEW_DOMAINS, -ENOSPC},
        {-DL_E_NO_MEMORY, -ENOMEM},
        {-DL_E_LEASE_OLD, -ENODEV},
        {-DL_E_OPCODE_UNKNOWN, -EOPNOTSUPP},
        {-DL_E_TIMEOUT, -EIO},
        {-DL_E_CRC_DATA, -EIO},
        {-DL_E_MEDIA_READ, -EIO},
        {-DL_E_READ_ONLY, -EIO},
        {-DL_E_RANGE, -EIO},
        {-DL_E_VOLUME_DELETED, -EIO},
        {-EINTR, -EIO},
        {-ENOSPC, -ENOSPC},
        {-(DL_E_FIRST + 999), -EIO},
    };
    struct ublk_mapped write = {.op = DLBLK_WRITE, .length_bytes = 4096};

    (void)state;
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
        assert_int_equal(ublk_request_result(&write, errors[i].err), errors[i].expected);
#define X(number, name, errno_class, text) \
    assert_true(ublk_request_result(&write, -DL_E_##name) < 0);
    DL_ERRORS(X)
#undef X
}

static void
test_parameters(void **state)
{
    struct ublk_shape shape = shape_4k();
    struct ublk_params params;

    (void)state;
    shape.logical_bytes = 512;
    ublk_shape_params(&shape, &params);
    assert_int_equal(params.len, sizeof(params));
    assert_int_equal(params.types, UBLK_PARAM_BASIC | UBLK_PARAM_DISCARD);
    /* Acknowledged is durable: the kernel is told of no cache, and never asks for a flush. */
    assert_int_equal(params.basic.attrs, 0);
    assert_int_equal(params.basic.logical_shift, 9);
    assert_int_equal(params.basic.physical_shift, 12);
    assert_int_equal(params.basic.io_minimal_shift, 12);
    assert_int_equal(params.basic.io_optimal_shift, 20);
    assert_int_equal(params.basic.max_sectors, 1024);
    assert_int_equal(params.basic.device_sectors, SECTORS);
    assert_int_equal(params.discard.granularity, 4096);
    assert_int_equal(params.discard.max_segments, 1);
    assert_true(params.discard.max_sectors > 0);
    assert_true(params.discard.max_write_zeroes_sectors > 0);

    shape.volatile_cache = true;
    ublk_shape_params(&shape, &params);
    assert_int_equal(params.basic.attrs, UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA);

    shape.volatile_cache = false;
    shape.read_only = true;
    ublk_shape_params(&shape, &params);
    assert_int_equal(params.types, UBLK_PARAM_BASIC);
    assert_int_equal(params.basic.attrs, UBLK_ATTR_READ_ONLY);
}

static void
test_shapes_that_cannot_be(void **state)
{
    struct ublk_shape shape = shape_4k();

    (void)state;
    assert_int_equal(ublk_shape_check(&shape), 0);
    shape.logical_bytes = 1024;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
    shape = shape_4k();
    shape.size_bytes += 512;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
    shape = shape_4k();
    shape.size_bytes = 0;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
    shape = shape_4k();
    shape.physical_bytes = 512;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
    shape = shape_4k();
    shape.optimal_bytes = 3 << 12;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
    shape = shape_4k();
    shape.buffer_bytes = 4000;
    assert_int_equal(ublk_shape_check(&shape), -EINVAL);
}

/* The numbers that the kernel's header gives: an encoding that moves would be seen as ENOTSUP. */
static void
test_encoding(void **state)
{
    (void)state;
    assert_int_equal(ublk_encode_control(UBLK_GET_FEATURES), 0x80207513);
    assert_int_equal(ublk_encode_control(UBLK_ADD_DEV), 0xc0207504);
    assert_int_equal(ublk_encode_control(UBLK_END_USER_RECOVERY), 0xc0207511);
    assert_int_equal(ublk_encode_control(UBLK_DEL_DEV_ASYNC), 0x80207514);
    assert_int_equal(ublk_encode_io(UBLK_FETCH), 0xc0107520);
    assert_int_equal(ublk_encode_io(UBLK_COMMIT_AND_FETCH), 0xc0107521);
    assert_int_equal(UBLK_DESC_STRIDE_BYTES, 98304);
}

UNIT_MAIN(cmocka_unit_test(test_offsets_are_in_512_byte_sectors),
          cmocka_unit_test(test_operations_and_flags), cmocka_unit_test(test_the_end_of_the_device),
          cmocka_unit_test(test_logical_blocks), cmocka_unit_test(test_buffers),
          cmocka_unit_test(test_read_only), cmocka_unit_test(test_results),
          cmocka_unit_test(test_errors), cmocka_unit_test(test_parameters),
          cmocka_unit_test(test_shapes_that_cannot_be), cmocka_unit_test(test_encoding))
