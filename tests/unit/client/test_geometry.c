/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Geometry: for random volumes, each byte has exactly one place; pieces cover a range without gap
 *           or overlap, stay inside their unit, window and segment; the inverse leads back; slices
 *           of a stripe set are exactly what the pieces say. Prints its seed; GEOMETRY_SEED sets
 *           it.
 */
#include "tests/unit/lib/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/geometry.h"
#include "dlblk/error.h"
#include "tests/unit/lib/fake_rng.h"

#define ROUNDS 400u

static struct fake_rng rng;

static struct geometry
random_geometry(void)
{
    struct geometry geometry;
    uint32_t segment_bytes = 1u << fake_rng_range(&rng, 20, 30);
    uint32_t unit_bytes = 1u << fake_rng_range(&rng, 12, (uint64_t)__builtin_ctz(segment_bytes));
    uint32_t width = (uint32_t)fake_rng_range(&rng, 1, 12);
    uint32_t block_bytes = fake_rng_percent(&rng, 50) ? 512 : 4096;
    uint64_t size_bytes = fake_rng_range(&rng, 1,
                                         5 * (uint64_t)segment_bytes * width / block_bytes) *
                          block_bytes;

    assert_int_equal(
        geometry_init(&geometry, size_bytes, segment_bytes, block_bytes, width, unit_bytes), 0);
    return geometry;
}

static void
check_piece(const struct geometry *geometry, uint64_t offset_bytes,
            const struct geometry_piece *piece)
{
    uint32_t last = piece->offset_bytes + piece->length_bytes - 1;

    assert_true(piece->length_bytes > 0);
    assert_true(piece->segment < geometry_segment_count(geometry));
    assert_true(last < geometry->segment_bytes);
    assert_int_equal(piece->offset_bytes / WINDOW_BYTES, last / WINDOW_BYTES);
    if (geometry->stripe_width > 1)
        assert_int_equal(piece->offset_bytes / geometry->stripe_unit_bytes,
                         last / geometry->stripe_unit_bytes);
    /* Both ends lead back to where they came from: so the whole run does. */
    assert_int_equal(geometry_volume_offset(geometry, piece->segment, piece->offset_bytes),
                     offset_bytes);
    assert_int_equal(geometry_volume_offset(geometry, piece->segment, last),
                     offset_bytes + piece->length_bytes - 1);
}

static void
test_pieces_cover_a_range(void **state)
{
    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct geometry geometry = random_geometry();
        uint64_t at = fake_rng_below(&rng, geometry.size_bytes);
        uint64_t end = fake_rng_range(&rng, at + 1, geometry.size_bytes);

        for (unsigned pieces = 0; at < end && pieces < 300; pieces++) {
            struct geometry_piece piece = geometry_first_piece(&geometry, at, end - at);

            check_piece(&geometry, at, &piece);
            assert_true(piece.length_bytes <= end - at);
            at += piece.length_bytes;
        }
    }
}

/* The slices of a stripe set's members, against the pieces of the same range. */
static void
test_slices_agree_with_pieces(void **state)
{
    unsigned compared = 0;

    (void)state;
    for (unsigned round = 0; round < ROUNDS; round++) {
        struct geometry geometry = random_geometry();
        uint64_t sectors = geometry.size_bytes / WIRE_SECTOR_BYTES;
        uint32_t first[12], length[12] = {0};
        uint64_t start, end, set_end;

        if (sectors == 0)
            continue;
        start = fake_rng_below(&rng, sectors) * WIRE_SECTOR_BYTES;
        set_end = sector_round_down(geometry_set_end(&geometry, start));
        if (set_end - start > 64 * WINDOW_BYTES)
            set_end = start + 64 * WINDOW_BYTES;
        end = start +
              fake_rng_below(&rng, (set_end - start) / WIRE_SECTOR_BYTES + 1) * WIRE_SECTOR_BYTES;
        for (uint64_t at = start; at < end;) {
            struct geometry_piece piece = geometry_first_piece(&geometry, at, end - at);
            uint32_t member = piece.segment % geometry.stripe_width;

            if (length[member] == 0)
                first[member] = piece.offset_bytes;
            assert_int_equal(first[member] + length[member], piece.offset_bytes);
            length[member] += piece.length_bytes;
            at += piece.length_bytes;
        }
        for (uint32_t member = 0; member < geometry.stripe_width; member++) {
            struct geometry_slice slice = geometry_set_slice(&geometry, start, end, member);

            assert_int_equal(slice.length_bytes, length[member]);
            assert_int_equal(slice.segment,
                             geometry_set_of_offset(&geometry, start) * geometry.stripe_width +
                                 member);
            if (length[member] > 0)
                assert_int_equal(slice.offset_bytes, first[member]);
            compared++;
        }
    }
    assert_true(compared > ROUNDS);
}

static void
test_a_known_layout(void **state)
{
    struct geometry geometry;
    struct geometry_piece piece;

    (void)state;
    assert_int_equal(geometry_init(&geometry, 10u << 20, 1u << 20, 4096, 3, 256u << 10), 0);
    assert_int_equal(geometry_segment_count(&geometry), 12);
    /* Unit 4 of the first set: the second row of segment 1. */
    piece = geometry_first_piece(&geometry, (4u << 18) + 100, 1u << 20);
    assert_int_equal(piece.segment, 1);
    assert_int_equal(piece.offset_bytes, (1u << 18) + 100);
    assert_int_equal(piece.length_bytes, (1u << 18) - 100);
    /* The second set begins at 3 MiB. */
    piece = geometry_first_piece(&geometry, 3u << 20, 512);
    assert_int_equal(piece.segment, 3);
    assert_int_equal(piece.offset_bytes, 0);
    assert_int_equal(piece.length_bytes, 512);
}

static void
test_nonsense_is_refused(void **state)
{
    struct geometry geometry;
    const int malformed = -DL_E_MESSAGE_MALFORMED;

    (void)state;
    assert_int_equal(geometry_init(&geometry, 1u << 20, 3u << 20, 4096, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 19, 4096, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 31, 4096, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 20, 1024, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 0, 1u << 20, 4096, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 512, 1u << 20, 4096, 1, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 20, 4096, 0, 4096), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 20, 4096, 2, 2048), malformed);
    assert_int_equal(geometry_init(&geometry, 1u << 20, 1u << 20, 4096, 2, 2u << 20), malformed);
    /* More segments than a u32 can name. */
    assert_int_equal(geometry_init(&geometry, 1ull << 53, 1u << 20, 4096, 1, 4096), malformed);
}

static int
setup(void **state)
{
    const char *given = getenv("GEOMETRY_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);

    (void)state;
    printf("GEOMETRY_SEED=%lu\n", seed);
    fake_rng_init(&rng, seed);
    return 0;
}

UNIT_MAIN(cmocka_unit_test_setup(test_pieces_cover_a_range, setup),
          cmocka_unit_test_setup(test_slices_agree_with_pieces, setup),
          cmocka_unit_test(test_a_known_layout), cmocka_unit_test(test_nonsense_is_refused))
