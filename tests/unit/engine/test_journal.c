/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Journal blocks: every kind of record comes back as it was put, a record of a 4 KiB write is
 * small, the largest record fits into the smallest block, and no damaged byte of a block passes for
 * a good one.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/journal.h"
#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/unit/lib/fake_rng.h"

static const uint8_t uuid[16] = {1, 2, 3, 4};
static uint8_t *buffer;

static int
setup(void **state)
{
    (void)state;
    buffer = aligned_alloc(UNIT_BYTES, JOURNAL_BYTES_MAX);
    memset(buffer, 0xaa, JOURNAL_BYTES_MAX);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    free(buffer);
    return 0;
}

static struct journal_header
header_make(void)
{
    struct journal_header header = {
        .incarnation = 7, .lsn = 1000, .mark = 998, .tail = 500, .flags = JOURNAL_HAS_ABORT};

    memcpy(header.disk_uuid, uuid, sizeof(uuid));
    return header;
}

static struct journal_record
write_record(uint32_t sectors)
{
    return (struct journal_record){.kind = RECORD_WRITE,
                                   .local_id = 42,
                                   .number = 3,
                                   .version = 0x10000000005,
                                   .stable_version = 0x10000000001,
                                   .birth = 9,
                                   .offset_sectors = 100,
                                   .length_sectors = sectors};
}

static void
test_small_write_is_small(void **state)
{
    (void)state;
    assert_in_range(journal_record_bytes(RECORD_WRITE, 1, 1), 40, 64);
}

static void
test_largest_record_fits(void **state)
{
    struct journal_record record = write_record(256), back;
    struct journal_header header = header_make(), found;
    struct journal_compose compose;
    struct journal_iter iter;
    struct extent extents[256];
    uint32_t crcs[256];

    (void)state;
    for (uint32_t i = 0; i < 256; i++) {
        extents[i] = (struct extent){.block = BLOCK_NUMBER_MAX - i * 2, .count = 1};
        crcs[i] = i * 0x01010101u;
    }
    journal_compose_init(&compose, buffer, UNIT_BYTES);
    assert_int_equal(journal_put_write(&compose, &record, extents, 256, crcs), 0);
    assert_int_equal(journal_compose_seal(&compose, &header), 1);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, NULL), 0);
    journal_iter_init(&iter, buffer, &found);
    assert_int_equal(journal_iter_next(&iter, &back), 1);
    assert_int_equal(back.extent_count, 256);
    for (uint32_t i = 0; i < 256; i++) {
        assert_int_equal(extent_get(&back.extents[i]).block, extents[i].block);
        assert_int_equal(extent_get(&back.extents[i]).count, 1);
        assert_int_equal(le32_get(back.crcs[i]), crcs[i]);
    }
    assert_int_equal(journal_iter_next(&iter, &back), 0);
}

static const struct journal_record others[] = {
    {.kind = RECORD_CREATE,
     .local_id = 5,
     .number = 2,
     .key = {.volume = 77, .segment = 8, .slot = 1}},
    {.kind = RECORD_EPOCH, .local_id = 5, .number = 4},
    {.kind = RECORD_STABLE, .local_id = 5, .stable_version = 123456789012},
    {.kind = RECORD_FENCE, .number = 6, .key = {.volume = 77}},
    {.kind = RECORD_DELETE, .local_id = 5},
    {.kind = RECORD_CLEAR, .local_id = 5, .number = 4095},
    {.kind = RECORD_FORGET, .local_id = 5, .number = 4095, .stable_version = 123456789013},
    {.kind = RECORD_ABORT, .number = 3, .lsn = 990},
};
#define OTHERS (sizeof(others) / sizeof(others[0]))

/* A block with one record of each kind.  Returns its units. */
static uint32_t
compose_all(struct journal_header *header)
{
    struct journal_record write = write_record(5), zero = write_record(20000);
    struct extent extents[2] = {{.block = 10, .count = 2}, {.block = 900, .count = 3}};
    uint32_t crcs[5] = {1, 2, 3, 4, 5};
    struct journal_compose compose;

    zero.kind = RECORD_ZERO;
    journal_compose_init(&compose, buffer, 2 * UNIT_BYTES);
    assert_int_equal(journal_put_write(&compose, &write, extents, 2, crcs), 0);
    assert_int_equal(journal_put_write(&compose, &zero, NULL, 0, NULL), 1);
    for (uint32_t i = 0; i < OTHERS; i++)
        assert_int_equal(journal_put(&compose, &others[i]), 2 + i);
    journal_put_runs_begin(&compose, RECORD_BAD);
    assert_int_equal(journal_put_run(&compose, 33, 1), 1);
    journal_put_runs_end(&compose);
    journal_put_runs_begin(&compose, RECORD_FREE);
    assert_int_equal(journal_put_run(&compose, 1024, 700), 700);
    assert_int_equal(journal_put_run(&compose, 7, 1), 1);
    journal_put_runs_end(&compose);
    /* Nothing to say: no record. */
    journal_put_runs_begin(&compose, RECORD_FREE);
    journal_put_runs_end(&compose);
    return journal_compose_seal(&compose, header);
}

static void
test_every_kind_comes_back(void **state)
{
    struct journal_header header = header_make(), found;
    struct journal_record record;
    struct journal_iter iter;

    (void)state;
    assert_int_equal(compose_all(&header), 1);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, NULL), 0);
    assert_memory_equal(&found, &header, offsetof(struct journal_header, flags));
    assert_int_equal(found.flags, header.flags);
    assert_int_equal(found.record_count, 2 + OTHERS + 2);
    journal_iter_init(&iter, buffer, &found);
    assert_int_equal(journal_iter_next(&iter, &record), 1);
    assert_int_equal(record.kind, RECORD_WRITE);
    assert_int_equal(record.version, 0x10000000005);
    assert_int_equal(record.stable_version, 0x10000000001);
    assert_int_equal(record.birth, 9);
    assert_int_equal(record.offset_sectors, 100);
    assert_int_equal(record.number, 3);
    assert_int_equal(extent_get(&record.extents[1]).block, 900);
    assert_int_equal(le32_get(record.crcs[4]), 5);
    assert_int_equal(journal_iter_next(&iter, &record), 1);
    assert_int_equal(record.kind, RECORD_ZERO);
    assert_int_equal(record.length_sectors, 20000);
    for (uint32_t i = 0; i < OTHERS; i++) {
        assert_int_equal(journal_iter_next(&iter, &record), 1);
        assert_int_equal(iter.record_idx, 2 + i);
        assert_memory_equal(&record, &others[i], sizeof(record));
    }
    assert_int_equal(journal_iter_next(&iter, &record), 1);
    assert_int_equal(record.kind, RECORD_BAD);
    assert_int_equal(journal_iter_next(&iter, &record), 1);
    assert_int_equal(record.kind, RECORD_FREE);
    assert_int_equal(record.extent_count, 4); /* 256 + 256 + 188, and 1 */
    assert_int_equal(extent_get(&record.extents[2]).block, 1024 + 512);
    assert_int_equal(extent_get(&record.extents[2]).count, 188);
    assert_int_equal(journal_iter_next(&iter, &record), 0);
}

static void
test_runs_stop_where_the_block_ends(void **state)
{
    struct journal_header header = header_make();
    struct journal_compose compose;
    uint32_t put = 0;

    (void)state;
    journal_compose_init(&compose, buffer, UNIT_BYTES);
    journal_put_runs_begin(&compose, RECORD_FREE);
    while (journal_put_run(&compose, put * 2, 1) == 1)
        put++;
    journal_put_runs_end(&compose);
    assert_int_equal(put, (UNIT_BYTES - sizeof(struct journal_header_disk) - 8) / 6);
    assert_int_equal(journal_compose_seal(&compose, &header), 1);
}

static void
test_flipped_bits_are_refused(void **state)
{
    struct journal_header header = header_make(), found;
    uint32_t used;

    (void)state;
    compose_all(&header);
    used = (uint32_t)sizeof(struct journal_header_disk) + header.body_bytes;
    for (uint32_t bit = 0; bit < used * 8; bit++) {
        char problem[JOURNAL_PROBLEM_BYTES] = "";

        buffer[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_not_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, problem), 0);
        assert_int_not_equal(problem[0], '\0');
        buffer[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, NULL), 0);
}

static void
test_foreign_blocks_are_refused(void **state)
{
    static const uint8_t other[16] = {9};
    struct journal_header header = header_make(), found;

    (void)state;
    compose_all(&header);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, other, &found, NULL), -DL_E_NOT_FOUND);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, NULL, &found, NULL), 0);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES - 1, uuid, &found, NULL),
                     -DL_E_NOT_FOUND);
    memset(buffer, 0, UNIT_BYTES);
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, NULL), -DL_E_NOT_FOUND);
}

/* A format of the future is told apart from garbage. */
static void
test_unknown_format(void **state)
{
    struct journal_header header = header_make(), found;
    struct journal_header_disk disk;

    (void)state;
    compose_all(&header);
    memcpy(&disk, buffer, sizeof(disk));
    disk.format = le16_of(JOURNAL_FORMAT + 1);
    disk.header_crc = le32_of(crc32c(0, (uint8_t *)&disk + 4, sizeof(disk) - 4));
    memcpy(buffer, &disk, sizeof(disk));
    assert_int_equal(journal_block_check(buffer, UNIT_BYTES, uuid, &found, NULL),
                     -DL_E_DISK_FORMAT);
}

/*
 * Records that make no sense: one byte of the body is changed after the CRC was checked.  Parsing
 * must end in an error or in as many records as the header says, and never look beyond the body
 * (the address sanitizer sees that).
 */
static void
test_nonsense_is_refused(void **state)
{
    struct journal_header header = header_make();
    uint64_t refused = 0, tried = 0;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 5);
    compose_all(&header);
    for (uint32_t at = 0; at < header.body_bytes; at++) {
        uint8_t *body = malloc(sizeof(struct journal_header_disk) + header.body_bytes);
        struct journal_record record;
        struct journal_iter iter;
        uint32_t count = 0;
        int result;

        memcpy(body, buffer, sizeof(struct journal_header_disk) + header.body_bytes);
        body[sizeof(struct journal_header_disk) + at] ^= (uint8_t)fake_rng_range(&rng, 1, 255);
        journal_iter_init(&iter, body, &header);
        while ((result = journal_iter_next(&iter, &record)) > 0)
            count++;
        assert_true(result == -DL_E_DISK_DAMAGED || (result == 0 && count == header.record_count));
        refused += result != 0;
        tried++;
        free(body);
    }
    /*
     * Many bytes are plain numbers, for which any value makes sense; kinds, lengths and counts are
     * not.
     */
    assert_true(refused > tried / 10);
}

/* How parsing ends, and after how many records. */
static int
last_result(const struct journal_header *header, const void *bytes, uint32_t *ret_count)
{
    struct journal_record record;
    struct journal_iter iter;
    int result;

    *ret_count = 0;
    journal_iter_init(&iter, bytes, header);
    while ((result = journal_iter_next(&iter, &record)) > 0)
        ++*ret_count;
    return result;
}

static void
test_wrong_number_of_records(void **state)
{
    struct journal_header header = header_make();
    uint32_t count;

    (void)state;
    compose_all(&header);
    assert_int_equal(last_result(&header, buffer, &count), 0);
    header.record_count++;
    assert_int_equal(last_result(&header, buffer, &count), -DL_E_DISK_DAMAGED);
    header.record_count -= 2;
    assert_int_equal(last_result(&header, buffer, &count), -DL_E_DISK_DAMAGED);
}

/* A record that says of itself, consistently, that it is longer than what is left of the body. */
static void
test_record_beyond_the_body(void **state)
{
    struct journal_header header = header_make();
    struct journal_compose compose;
    struct record_extents_disk disk;
    uint8_t *at = buffer + sizeof(struct journal_header_disk);
    uint32_t count;

    (void)state;
    journal_compose_init(&compose, buffer, UNIT_BYTES);
    journal_put_runs_begin(&compose, RECORD_FREE);
    assert_int_equal(journal_put_run(&compose, 5, 1), 1);
    journal_put_runs_end(&compose);
    journal_compose_seal(&compose, &header);
    assert_int_equal(last_result(&header, buffer, &count), 0);
    memcpy(&disk, at, sizeof(disk));
    disk.extent_count = le32_of(2);
    disk.header.bytes = le16_of(sizeof(disk) + 2 * sizeof(struct extent_disk));
    memcpy(at, &disk, sizeof(disk));
    assert_int_equal(last_result(&header, buffer, &count), -DL_E_DISK_DAMAGED);
    assert_int_equal(count, 0);
}

UNIT_MAIN(cmocka_unit_test_setup_teardown(test_small_write_is_small, setup, teardown),
          cmocka_unit_test_setup_teardown(test_largest_record_fits, setup, teardown),
          cmocka_unit_test_setup_teardown(test_every_kind_comes_back, setup, teardown),
          cmocka_unit_test_setup_teardown(test_runs_stop_where_the_block_ends, setup, teardown),
          cmocka_unit_test_setup_teardown(test_flipped_bits_are_refused, setup, teardown),
          cmocka_unit_test_setup_teardown(test_foreign_blocks_are_refused, setup, teardown),
          cmocka_unit_test_setup_teardown(test_unknown_format, setup, teardown),
          cmocka_unit_test_setup_teardown(test_wrong_number_of_records, setup, teardown),
          cmocka_unit_test_setup_teardown(test_record_beyond_the_body, setup, teardown),
          cmocka_unit_test_setup_teardown(test_nonsense_is_refused, setup, teardown))
