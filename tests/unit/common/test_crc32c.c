/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checksum is CRC-32C as published, can be continued at any place, and sees any one flipped
 * bit.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/crc32c.h"

static void
test_published_vectors(void **state)
{
    uint8_t bytes[48];

    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283); /* the check value of the catalogues */
    assert_int_equal(crc32c(0, "", 0), 0);
    assert_int_equal(crc32c(0, "a", 1), 0xc1d04330);

    /* RFC 3720, B.4 */
    memset(bytes, 0, 32);
    assert_int_equal(crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    assert_int_equal(crc32c(0, bytes, 32), 0x62a8ab43);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    assert_int_equal(crc32c(0, bytes, 32), 0x46dd794e);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(31 - i);
    assert_int_equal(crc32c(0, bytes, 32), 0x113fdb5c);
}

/* The definition, bit by bit. */
static uint32_t
crc32c_slow(const uint8_t *data, size_t length_bytes)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < length_bytes; i++) {
        crc ^= data[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

static void
test_every_length_and_alignment(void **state)
{
    static uint8_t data[4096 + 64];

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 167 + i / 251);
    for (size_t length_bytes = 0; length_bytes <= 4096; length_bytes += 1 + length_bytes / 16) {
        for (size_t shift = 0; shift < 17; shift++)
            assert_int_equal(crc32c(0, data + shift, length_bytes),
                             crc32c_slow(data + shift, length_bytes));
    }
}

static void
test_continued_at_any_place(void **state)
{
    static uint8_t data[4096];
    uint32_t whole;

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 31);
    whole = crc32c(0, data, sizeof(data));
    for (size_t cut = 0; cut <= sizeof(data); cut++)
        assert_int_equal(crc32c(crc32c(0, data, cut), data + cut, sizeof(data) - cut), whole);
}

static void
test_each_flipped_bit_is_seen(void **state)
{
    static uint8_t data[4096];
    uint32_t whole = crc32c(0, data, sizeof(data));

    (void)state;
    for (size_t bit = 0; bit < sizeof(data) * 8; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_not_equal(crc32c(0, data, sizeof(data)), whole);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

UNIT_MAIN(cmocka_unit_test(test_published_vectors),
          cmocka_unit_test(test_every_length_and_alignment),
          cmocka_unit_test(test_continued_at_any_place),
          cmocka_unit_test(test_each_flipped_bit_is_seen))
