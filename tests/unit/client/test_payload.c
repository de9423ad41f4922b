/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payloads: any run of bytes, in any pieces of memory, over any old content of the sectors at its
 * edges, becomes whole sectors with the right CRCs; and what the caller changes later is noticed.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "client/payload.h"
#include "common/crc32c.h"
#include "tests/unit/lib/fake_rng.h"

#define SECTORS_MAX 12u
#define IOVS_MAX    40u

struct payload_test {
    struct fake_rng rng;
    struct buffers buffers;
    struct payload payload;
    struct io_op op;
    struct iovec iovs[IOVS_MAX];
    uint8_t *memory;  /* the caller's */
    uint8_t *sectors; /* as they should be */
};

static void
test_init(struct payload_test *t, uint64_t seed)
{
    memset(t, 0, sizeof(*t));
    fake_rng_init(&t->rng, seed);
    buffers_init(&t->buffers);
    t->memory = malloc(SECTORS_MAX * WIRE_SECTOR_BYTES);
    t->sectors = malloc(SECTORS_MAX * WIRE_SECTOR_BYTES);
    for (uint32_t i = 0; i < SECTORS_MAX * WIRE_SECTOR_BYTES; i++) {
        t->memory[i] = (uint8_t)fake_rng_below(&t->rng, 256);
        t->sectors[i] = (uint8_t)fake_rng_below(&t->rng, 256);
    }
}

static void
test_fini(struct payload_test *t)
{
    payload_fini(&t->payload);
    assert_int_equal(t->buffers.used_bytes, 0);
    buffers_fini(&t->buffers);
    free(t->memory);
    free(t->sectors);
}

/* [skip_bytes, skip_bytes + length_bytes) of the sectors, in so many pieces of memory. */
static void
test_plan(struct payload_test *t, uint32_t skip_bytes, uint32_t length_bytes, uint32_t pieces)
{
    uint32_t end_bytes = skip_bytes + length_bytes, at = 0;
    uint8_t *place;

    for (uint32_t i = 0; i < pieces; i++) {
        uint32_t bytes = i + 1 == pieces ? length_bytes - at : length_bytes / pieces;

        t->iovs[i] = (struct iovec){.iov_base = t->memory + at, .iov_len = bytes};
        at += bytes;
    }
    t->op.slice = (struct io_slice){t->iovs, 0};
    t->op.skip_bytes = skip_bytes;
    t->op.length_bytes = length_bytes;
    t->op.sector_count = (end_bytes + WIRE_SECTOR_BYTES - 1) / WIRE_SECTOR_BYTES;
    payload_init(&t->payload, &t->buffers, &t->op);
    assert_int_equal(payload_plan(&t->payload), 0);
    place = payload_head_place(&t->payload);
    if (place != NULL)
        memcpy(place, t->sectors, WIRE_SECTOR_BYTES);
    assert_int_equal(place != NULL, skip_bytes != 0);
    place = payload_tail_place(&t->payload);
    if (place != NULL)
        memcpy(place, t->sectors + end_bytes / WIRE_SECTOR_BYTES * WIRE_SECTOR_BYTES,
               WIRE_SECTOR_BYTES);
    memcpy(t->sectors + skip_bytes, t->memory, length_bytes);
    assert_int_equal(payload_build(&t->payload), 0);
}

static void
check_payload(const struct payload_test *t)
{
    const struct payload *payload = &t->payload;
    size_t at = 0;

    for (uint32_t i = 0; i < payload->iov_count; i++) {
        assert_memory_equal(payload->iovs[i].iov_base, t->sectors + at, payload->iovs[i].iov_len);
        at += payload->iovs[i].iov_len;
    }
    assert_int_equal(at, payload->sector_count * WIRE_SECTOR_BYTES);
    for (uint32_t i = 0; i < payload->sector_count; i++)
        assert_int_equal(le32_get(payload->crcs[i]),
                         crc32c(0, t->sectors + i * WIRE_SECTOR_BYTES, WIRE_SECTOR_BYTES));
}

static void
test_any_range_in_any_pieces(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct payload_test t;
        uint32_t skip_bytes, length_bytes, pieces;

        test_init(&t, seed);
        skip_bytes = (uint32_t)fake_rng_below(&t.rng, 8) * 512;
        length_bytes = (uint32_t)fake_rng_range(&t.rng, 1, SECTORS_MAX * 8) * 512;
        if (skip_bytes + length_bytes > SECTORS_MAX * WIRE_SECTOR_BYTES)
            length_bytes = SECTORS_MAX * WIRE_SECTOR_BYTES - skip_bytes;
        pieces = (uint32_t)fake_rng_range(&t.rng, 1, IOVS_MAX);
        test_plan(&t, skip_bytes, length_bytes, pieces);
        check_payload(&t);
        test_fini(&t);
    }
}

/* Whole sectors are not copied. */
static void
test_whole_sectors_stay_where_they_are(void **state)
{
    struct payload_test t;

    (void)state;
    test_init(&t, 1);
    test_plan(&t, 0, 4 * WIRE_SECTOR_BYTES, 2);
    check_payload(&t);
    assert_int_equal(t.payload.iov_count, 2);
    assert_ptr_equal(t.payload.iovs[0].iov_base, t.memory);
    assert_null(t.payload.bounce);
    test_fini(&t);
}

/* No memory at all: zeroes; whole sectors of them are written without a payload. */
static void
test_zeroes(void **state)
{
    struct payload_test t;

    (void)state;
    test_init(&t, 1);
    memset(t.memory, 0, SECTORS_MAX * WIRE_SECTOR_BYTES);
    test_plan(&t, 512, WIRE_SECTOR_BYTES, 1);
    payload_fini(&t.payload);
    memset(&t.payload, 0, sizeof(t.payload));
    t.op.slice.iov = NULL;
    payload_init(&t.payload, &t.buffers, &t.op);
    assert_int_equal(payload_plan(&t.payload), 0);
    memcpy(payload_head_place(&t.payload), t.sectors, WIRE_SECTOR_BYTES);
    memcpy(payload_tail_place(&t.payload), t.sectors + WIRE_SECTOR_BYTES, WIRE_SECTOR_BYTES);
    assert_int_equal(payload_build(&t.payload), 0);
    check_payload(&t);
    test_fini(&t);
}

static void
test_what_the_caller_changes(void **state)
{
    (void)state;
    for (uint32_t skip_bytes = 0; skip_bytes <= 512; skip_bytes += 512) {
        struct payload_test t;

        test_init(&t, 7);
        test_plan(&t, skip_bytes, SECTORS_MAX * WIRE_SECTOR_BYTES - 2 * skip_bytes, 3);
        assert_false(payload_has_changed(&t.payload));
        t.memory[5 * WIRE_SECTOR_BYTES]++;
        assert_true(payload_has_changed(&t.payload));
        assert_int_equal(payload_copy(&t.payload), 0);
        t.sectors[5 * WIRE_SECTOR_BYTES + skip_bytes]++;
        check_payload(&t);
        t.memory[5 * WIRE_SECTOR_BYTES]++; /* is nobody's business any more */
        assert_false(payload_has_changed(&t.payload));
        check_payload(&t);
        test_fini(&t);
    }
}

UNIT_MAIN(cmocka_unit_test(test_any_range_in_any_pieces),
          cmocka_unit_test(test_whole_sectors_stay_where_they_are), cmocka_unit_test(test_zeroes),
          cmocka_unit_test(test_what_the_caller_changes))
