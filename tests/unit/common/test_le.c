/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integers of formats stand in memory least significant byte first, at any address, without
 * padding.
 */
#include "tests/unit/lib/unit.h"

#include "common/le.h"

struct mixed {
    le16 a;
    le64 b;
    uint8_t c;
    le32 d;
};

static_assert(sizeof(struct mixed) == 15, "no padding");

static void
test_bytes_are_little_endian(void **state)
{
    static const uint8_t expected[] = {0x02, 0x01, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03,
                                       0x02, 0x01, 0xff, 0x04, 0x03, 0x02, 0x01};
    struct mixed mixed = {.c = 0xff};

    (void)state;
    le16_set(&mixed.a, 0x0102);
    le64_set(&mixed.b, 0x0102030405060708);
    mixed.d = le32_of(0x01020304);
    assert_memory_equal(&mixed, expected, sizeof(expected));
}

static void
test_what_is_set_is_read(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 64; bit++) {
        uint64_t value = (1ull << bit) + 0x35;

        assert_int_equal(le64_get(le64_of(value)), value);
        assert_int_equal(le32_get(le32_of((uint32_t)value)), (uint32_t)value);
        assert_int_equal(le16_get(le16_of((uint16_t)value)), (uint16_t)value);
    }
}

static void
test_any_address(void **state)
{
    uint8_t bytes[32];

    (void)state;
    for (unsigned shift = 0; shift < 8; shift++) {
        memset(bytes, 0xee, sizeof(bytes));
        le64_store(bytes + shift + 1, 0x1122334455667788);
        assert_int_equal(bytes[shift], 0xee);
        assert_int_equal(bytes[shift + 9], 0xee);
        assert_int_equal(le64_load(bytes + shift + 1), 0x1122334455667788);
        assert_int_equal(le64_get(*(const le64 *)(bytes + shift + 1)), 0x1122334455667788);
        assert_int_equal(le32_load(bytes + shift + 1), 0x55667788);
        assert_int_equal(le16_load(bytes + shift + 1), 0x7788);
        le32_store(bytes + shift + 1, 1);
        le16_store(bytes + shift + 5, 2);
        assert_int_equal(le64_load(bytes + shift + 1), 0x1122000200000001);
    }
}

UNIT_MAIN(cmocka_unit_test(test_bytes_are_little_endian),
          cmocka_unit_test(test_what_is_set_is_read), cmocka_unit_test(test_any_address))
