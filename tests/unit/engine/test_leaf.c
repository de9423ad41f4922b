/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A leaf follows the rule of versions whatever the order of arrival, each block that loses is given
 * up exactly once, its bytes come back as they were (whole, and as a whole fragment with deltas
 * behind it), and damaged bytes are refused.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/leaf.h"
#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/unit/lib/fake_rng.h"

#define BLOCKS 100000u

struct given {
    uint32_t count, worn;
    uint64_t last_block, last_lsn;
    uint8_t times[BLOCKS];
};

static void
note(void *context, uint64_t block, uint64_t lsn, bool worn)
{
    struct given *given = context;

    given->worn += worn;
    given->count++;
    given->last_block = block;
    given->last_lsn = lsn;
    given->times[block]++;
}

static struct given given;

static struct leaf_result
write_one(struct leaf_sector *sectors, uint8_t sector, uint64_t version, uint64_t block,
          uint64_t lsn)
{
    uint32_t crc = (uint32_t)block * 7;
    struct leaf_change change = {.lsn = lsn,
                                 .version = version,
                                 .birth = 1,
                                 .first = sector,
                                 .count = 1,
                                 .kind = SECTOR_DATA,
                                 .blocks = &block,
                                 .crcs = &crc};

    return leaf_apply(sectors, &change, note, &given);
}

static int
reset(void **state)
{
    (void)state;
    memset(&given, 0, sizeof(given));
    return 0;
}

static void
test_higher_version_wins(void **state)
{
    struct leaf_sector sectors[LEAF_SECTORS] = {{0}};

    (void)state;
    assert_int_equal(write_one(sectors, 3, 10, 100, 1).changed, 1 << 3);
    assert_int_equal(given.count, 0);
    assert_int_equal(write_one(sectors, 3, 11, 101, 2).changed, 1 << 3);
    assert_int_equal(given.last_block, 100);
    assert_int_equal(given.last_lsn, 2);
    /* An older one that comes late: its own block goes. */
    assert_int_equal(write_one(sectors, 3, 10, 102, 3).outdated, 1);
    assert_int_equal(given.last_block, 102);
    /* The same version again: what is there stays. */
    assert_int_equal(write_one(sectors, 3, 11, 103, 4).changed, 0);
    assert_int_equal(given.last_block, 103);
    assert_int_equal(given.count, 3);
    assert_int_equal(leaf_sector_block(&sectors[3]), 101);
    assert_int_equal(sectors[3].version, 11);
    assert_int_equal(sectors[3].crc, 101 * 7);
}

static void
test_zeroes_and_clear(void **state)
{
    struct leaf_sector sectors[LEAF_SECTORS] = {{0}};
    struct leaf_change zero = {
        .lsn = 5, .version = 20, .first = 0, .count = 64, .kind = SECTOR_ZERO};
    struct leaf_change clear = {.lsn = 6, .first = 0, .count = 64, .kind = SECTOR_HOLE};

    (void)state;
    write_one(sectors, 1, 10, 100, 1);
    write_one(sectors, 2, 30, 101, 2);
    assert_int_equal(leaf_apply(sectors, &zero, note, &given).outdated, 1);
    assert_int_equal(given.count, 1);
    assert_int_equal(given.last_block, 100);
    assert_int_equal(leaf_sector_kind(&sectors[1]), SECTOR_ZERO);
    assert_int_equal(leaf_sector_kind(&sectors[2]), SECTOR_DATA);
    assert_false(leaf_is_empty(sectors));
    leaf_apply(sectors, &clear, note, &given);
    assert_int_equal(given.last_block, 101);
    assert_true(leaf_is_empty(sectors));
    assert_int_equal(given.count, 2);
}

/* Zeroes up to the version become holes; data, voids and later zeroes stay what they are. */
static void
test_forget(void **state)
{
    struct leaf_sector sectors[LEAF_SECTORS] = {{0}};
    struct leaf_change zero = {
        .lsn = 2, .version = 20, .first = 0, .count = 4, .kind = SECTOR_ZERO};
    struct leaf_change later = {
        .lsn = 3, .version = 31, .first = 4, .count = 1, .kind = SECTOR_ZERO};
    struct leaf_change forget = {
        .lsn = 5, .version = 30, .first = 0, .count = 64, .rule = LEAF_FORGET, .kind = SECTOR_HOLE};
    struct leaf_result result;

    (void)state;
    leaf_apply(sectors, &zero, note, &given);
    leaf_apply(sectors, &later, note, &given);
    write_one(sectors, 3, 21, 100, 4);
    sectors[9] = (struct leaf_sector){.version = 5, .block_kind = leaf_block_kind(SECTOR_VOID, 0)};
    result = leaf_apply(sectors, &forget, note, &given);
    assert_int_equal(result.changed, 7);
    assert_int_equal(given.count, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(sectors[i].version + sectors[i].block_kind, 0);
    assert_int_equal(leaf_sector_kind(&sectors[3]), SECTOR_DATA);
    assert_int_equal(leaf_sector_kind(&sectors[4]), SECTOR_ZERO);
    assert_int_equal(leaf_sector_kind(&sectors[9]), SECTOR_VOID);
    assert_int_equal(leaf_apply(sectors, &forget, note, &given).changed, 0);
}

/* --- at random: any order of arrival ends in the same content --- */

struct random_change {
    struct leaf_change change;
    uint64_t blocks[LEAF_SECTORS];
    uint32_t crcs[LEAF_SECTORS];
};

static void
random_change(struct fake_rng *rng, struct random_change *random, uint64_t lsn, uint64_t version,
              uint64_t *next_block)
{
    uint8_t first = (uint8_t)fake_rng_below(rng, LEAF_SECTORS);
    uint8_t count = (uint8_t)fake_rng_range(rng, 1, LEAF_SECTORS - first);
    bool scattered = fake_rng_percent(rng, 30);

    random->change = (struct leaf_change){
        .lsn = lsn,
        .version = version,
        .birth = (uint32_t)fake_rng_below(rng, 3),
        .first = first,
        .count = count,
        .kind = fake_rng_percent(rng, 80) ? SECTOR_DATA : SECTOR_ZERO,
        .blocks = random->blocks,
        .crcs = random->crcs,
    };
    for (uint8_t i = 0; i < count; i++) {
        random->blocks[i] = *next_block;
        *next_block += scattered ? 2 : 1;
        random->crcs[i] = (uint32_t)fake_rng_next(rng);
    }
}

/* Owners of all blocks: each that was handed out is in the leaf, or was given up, once. */
static void
check_blocks(const struct random_change *changes, uint32_t count, const struct leaf_sector *sectors)
{
    static uint8_t owned[BLOCKS];

    memset(owned, 0, sizeof(owned));
    for (uint32_t i = 0; i < LEAF_SECTORS; i++)
        if (leaf_sector_kind(&sectors[i]) == SECTOR_DATA)
            owned[leaf_sector_block(&sectors[i])]++;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; changes[i].change.kind == SECTOR_DATA && j < changes[i].change.count;
             j++)
            assert_int_equal(owned[changes[i].blocks[j]] + given.times[changes[i].blocks[j]], 1);
}

#define CHANGES 24u

static void
test_order_does_not_matter(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        static struct random_change changes[CHANGES];
        struct leaf_sector in_order[LEAF_SECTORS] = {{0}}, shuffled[LEAF_SECTORS] = {{0}};
        uint64_t next_block = 0;
        uint32_t order[CHANGES];
        struct fake_rng rng;

        fake_rng_init(&rng, seed);
        memset(&given, 0, sizeof(given));
        for (uint32_t i = 0; i < CHANGES; i++) {
            random_change(&rng, &changes[i], i + 1, i + 1, &next_block);
            changes[i].change.blocks = changes[i].blocks;
            changes[i].change.crcs = changes[i].crcs;
            leaf_apply(in_order, &changes[i].change, note, &given);
            order[i] = i;
        }
        check_blocks(changes, CHANGES, in_order);
        memset(&given, 0, sizeof(given));
        for (uint32_t i = CHANGES - 1; i > 0; i--) {
            uint32_t j = (uint32_t)fake_rng_below(&rng, i + 1), swap = order[i];

            order[i] = order[j];
            order[j] = swap;
        }
        for (uint32_t i = 0; i < CHANGES; i++)
            leaf_apply(shuffled, &changes[order[i]].change, note, &given);
        check_blocks(changes, CHANGES, shuffled);
        assert_memory_equal(in_order, shuffled, sizeof(shuffled));
    }
}

/* A delta does what its change does. */
static void
test_deltas(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct leaf_sector direct[LEAF_SECTORS] = {{0}}, delayed[LEAF_SECTORS] = {{0}};
        struct random_change random;
        struct leaf_delta *delta;
        uint64_t next_block = 0;
        struct fake_rng rng;

        fake_rng_init(&rng, seed);
        random_change(&rng, &random, 9, 4, &next_block);
        delta = malloc(leaf_delta_bytes(&random.change));
        leaf_delta_init(delta, &random.change, true);
        assert_true(delta->replayed);
        leaf_apply(direct, &random.change, note, &given);
        leaf_apply_delta(delayed, delta, note, &given);
        assert_memory_equal(direct, delayed, sizeof(direct));
        free(delta);
    }
}

/* --- bytes --- */

static void
test_bytes_come_back(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct leaf_sector sectors[LEAF_SECTORS] = {{0}}, back[LEAF_SECTORS];
        uint8_t value[12 * LEAF_FRAGMENT_BYTES_MAX];
        uint32_t bytes, fragments, expected = 1;
        uint64_t lsn, next_block = 0;
        struct random_change random;
        struct fake_rng rng;

        fake_rng_init(&rng, seed);
        random_change(&rng, &random, 1, 1, &next_block);
        leaf_apply(sectors, &random.change, note, &given);
        bytes = leaf_encode(sectors, 0, true, 1, value);
        for (uint64_t i = 2; i < 10; i++) {
            struct leaf_result result;
            bool whole = fake_rng_percent(&rng, 10);

            random_change(&rng, &random, i, fake_rng_range(&rng, 1, 10), &next_block);
            result = leaf_apply(sectors, &random.change, note, &given);
            bytes += leaf_encode(sectors, result.changed, whole, i, value + bytes);
            expected = whole ? 1 : expected + 1;
        }
        assert_int_equal(leaf_decode(value, bytes, BLOCKS, back, &lsn, &fragments), 0);
        assert_int_equal(lsn, 9);
        assert_int_equal(fragments, expected);
        assert_memory_equal(sectors, back, sizeof(back));
    }
}

static void
test_one_sector_is_small(void **state)
{
    struct leaf_sector sectors[LEAF_SECTORS] = {{0}};
    uint8_t value[LEAF_FRAGMENT_BYTES_MAX];
    uint64_t changed;

    (void)state;
    changed = write_one(sectors, 63, 1, 99999, 1).changed;
    assert_int_equal(leaf_encode(sectors, changed, false, 1, value), 44);
}

static void
test_flipped_bits_are_refused(void **state)
{
    struct leaf_sector sectors[LEAF_SECTORS] = {{0}}, back[LEAF_SECTORS];
    uint8_t value[2 * LEAF_FRAGMENT_BYTES_MAX];
    uint32_t bytes, fragments;
    uint64_t lsn;

    (void)state;
    for (uint8_t i = 0; i < 20; i++)
        write_one(sectors, i, 1, 50 + i, 1);
    bytes = leaf_encode(sectors, 0, true, 1, value);
    write_one(sectors, 30, 2, 200, 2);
    bytes += leaf_encode(sectors, UINT64_C(1) << 30, false, 2, value + bytes);
    for (uint32_t bit = 0; bit < bytes * 8; bit++) {
        value[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_equal(leaf_decode(value, bytes, BLOCKS, back, &lsn, &fragments),
                         -DL_E_INDEX_CORRUPT);
        value[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    for (uint32_t cut = 1; cut < bytes; cut++)
        if (cut != le16_load(value + 4))
            assert_int_equal(leaf_decode(value, cut, BLOCKS, back, &lsn, &fragments),
                             -DL_E_INDEX_CORRUPT);
    assert_int_equal(leaf_decode(value, 0, BLOCKS, back, &lsn, &fragments), -DL_E_INDEX_CORRUPT);
    assert_int_equal(leaf_decode(value, bytes, BLOCKS, back, &lsn, &fragments), 0);
}

/* Bytes that make no sense under a CRC that is right. */
static void
expect_nonsense(struct leaf_run_disk run, uint32_t crc_count)
{
    uint8_t value[LEAF_FRAGMENT_BYTES_MAX] = {0};
    uint32_t bytes = (uint32_t)(sizeof(struct leaf_fragment_disk) + sizeof(run) + crc_count * 4);
    struct leaf_fragment_disk header = {
        .bytes = le16_of((uint16_t)bytes), .flags = LEAF_WHOLE, .run_count = 1, .lsn = le64_of(5)};
    struct leaf_sector back[LEAF_SECTORS];
    uint32_t fragments;
    uint64_t lsn;

    memcpy(value, &header, sizeof(header));
    memcpy(value + sizeof(header), &run, sizeof(run));
    le32_store(value, crc32c(0, value + 4, bytes - 4));
    assert_int_equal(leaf_decode(value, bytes, 1000, back, &lsn, &fragments), -DL_E_INDEX_CORRUPT);
}

static void
test_nonsense_is_refused(void **state)
{
    struct leaf_run_disk good = {
        .first = 0, .count = 2, .kind = SECTOR_DATA, .block = {1}, .version = le64_of(1)};
    struct leaf_run_disk run;

    (void)state;
    run = good;
    run.first = 63;
    expect_nonsense(run, 2);
    run = good;
    run.count = 0;
    expect_nonsense(run, 0);
    run = good;
    run.kind = SECTOR_VOID + 1;
    expect_nonsense(run, 2);
    run = good;
    run.block[0] = 0xe7; /* 999: the second block would be beyond the end */
    run.block[1] = 0x03;
    expect_nonsense(run, 2);
    run = good;
    run.version = le64_of(0);
    expect_nonsense(run, 2);
    run = good;
    run.kind = SECTOR_ZERO; /* with a block */
    expect_nonsense(run, 0);
    expect_nonsense(good, 1); /* a CRC is missing */
    expect_nonsense(good, 3); /* one too many */
}

UNIT_MAIN(cmocka_unit_test_setup(test_higher_version_wins, reset),
          cmocka_unit_test_setup(test_zeroes_and_clear, reset),
          cmocka_unit_test_setup(test_forget, reset),
          cmocka_unit_test_setup(test_order_does_not_matter, reset),
          cmocka_unit_test_setup(test_deltas, reset),
          cmocka_unit_test_setup(test_bytes_come_back, reset),
          cmocka_unit_test_setup(test_one_sector_is_small, reset),
          cmocka_unit_test_setup(test_flipped_bits_are_refused, reset),
          cmocka_unit_test_setup(test_nonsense_is_refused, reset))
