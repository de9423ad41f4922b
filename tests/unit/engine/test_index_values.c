/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys of the index sort like what they name and come apart again; a position with any flipped bit
 * is refused.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "chunkserver/engine/engine_private.h"

static int
compare_leaf_keys(uint64_t id_a, uint32_t number_a, uint64_t id_b, uint32_t number_b)
{
    uint8_t a[INDEX_KEY_BYTES_MAX], b[INDEX_KEY_BYTES_MAX];
    uint32_t bytes = index_key_leaf(a, id_a, number_a);

    assert_int_equal(index_key_leaf(b, id_b, number_b), bytes);
    return memcmp(a, b, bytes);
}

static void
test_keys_sort(void **state)
{
    (void)state;
    assert_true(compare_leaf_keys(1, 0, 1, 1) < 0);
    assert_true(compare_leaf_keys(1, 255, 1, 256) < 0);
    assert_true(compare_leaf_keys(1, 4095, 2, 0) < 0);
    assert_true(compare_leaf_keys(255, 0, 256, 0) < 0);
    assert_true(compare_leaf_keys(UINT32_MAX, 7, UINT64_C(1) << 32, 0) < 0);
}

static void
test_keys_come_apart(void **state)
{
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t number = 0, page = 0, bytes;
    uint64_t id = 0;

    (void)state;
    bytes = index_key_leaf(key, 0x0102030405060708, 0x1122);
    assert_true(index_key_parse_leaf(key, bytes, &id, &number));
    assert_true(id == 0x0102030405060708 && number == 0x1122);
    assert_false(index_key_parse_leaf(key, bytes - 1, &id, &number));
    assert_false(index_key_parse_id(key, bytes, &id));
    bytes = index_key_id(key, INDEX_CHUNK, 77);
    assert_true(index_key_parse_id(key, bytes, &id));
    assert_int_equal(id, 77);
    bytes = index_key_page(key, 5);
    assert_true(index_key_parse_page(key, bytes, &page));
    assert_int_equal(page, 5);
    assert_false(index_key_parse_page(key, bytes + 1, &page));
}

static void
test_position(void **state)
{
    struct index_position position = {
        .disk_uuid = {3}, .incarnation = 4, .position = 5, .lsn_highest = 6, .local_id_next = 7};
    struct index_position back;
    struct index_position_disk disk;
    uint8_t *bytes = (uint8_t *)&disk;

    (void)state;
    index_position_encode(&position, &disk);
    assert_int_equal(index_position_decode(&disk, sizeof(disk), &back), 0);
    assert_memory_equal(&back, &position, sizeof(back));
    assert_int_equal(index_position_decode(&disk, sizeof(disk) - 1, &back), -DL_E_INDEX_CORRUPT);
    for (uint32_t bit = 0; bit < sizeof(disk) * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        assert_int_equal(index_position_decode(&disk, sizeof(disk), &back), -DL_E_INDEX_CORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
}

UNIT_MAIN(cmocka_unit_test(test_keys_sort), cmocka_unit_test(test_keys_come_apart),
          cmocka_unit_test(test_position))
