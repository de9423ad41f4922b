/* SPDX-License-Identifier: Apache-2.0 */
/* Rounding agrees with division at and around every power of two; a unit that is none asserts. */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/align.h"
#include "tests/unit/lib/child.h"

static void
test_rounding_agrees_with_division(void **state)
{
    (void)state;
    for (uint64_t unit = 1; unit <= 1ull << 40; unit *= 2) {
        for (uint64_t value = unit < 3 ? 0 : unit - 3; value < 3 * unit + 3;
             value += 1 + unit / 7) {
            assert_int_equal(align_down(value, unit), value / unit * unit);
            assert_int_equal(align_up(value, unit), (value + unit - 1) / unit * unit);
            assert_int_equal(is_aligned(value, unit), value % unit == 0);
        }
    }
    assert_int_equal(align_down(UINT64_MAX, 4096), UINT64_MAX - 4095);
    assert_int_equal(align_up(UINT64_MAX - 4095, 4096), UINT64_MAX - 4095);
    assert_true(is_aligned_pointer((void *)8192, 4096));
    assert_false(is_aligned_pointer((void *)8193, 4096));
}

static void
test_powers_of_two(void **state)
{
    (void)state;
    assert_false(is_power_of_two(0));
    for (unsigned bit = 0; bit < 64; bit++) {
        assert_true(is_power_of_two(1ull << bit));
        assert_int_equal(log2_floor(1ull << bit), bit);
        if (bit > 1) {
            assert_false(is_power_of_two((1ull << bit) - 1));
            assert_int_equal(log2_floor((1ull << bit) - 1), bit - 1);
        }
    }
}

static void
test_least_and_greatest(void **state)
{
    (void)state;
    assert_int_equal(min_u64(1ull << 40, 2), 2);
    assert_int_equal(max_u64(1ull << 40, 2), 1ull << 40);
    assert_int_equal(min_u32(7, 9), 7);
    assert_int_equal(max_u32(7, 9), 9);
    assert_int_equal(DIV_ROUND_UP(8, 4), 2);
    assert_int_equal(DIV_ROUND_UP(9, 4), 3);
}

static void
rounds_to_three(void *context)
{
    uint64_t *value = context;

    *value = align_up(*value, 3);
}

static void
rounds_beyond_the_end(void *context)
{
    uint64_t *value = context;

    *value = align_up(*value, 4096);
}

static void
test_nonsense_asserts(void **state)
{
    uint64_t value = 10, last = UINT64_MAX;
    struct child child;

    (void)state;
    child_run(&child, rounds_to_three, &value);
    assert_true(child_aborted(&child));
    assert_non_null(strstr(child.text, "is_power_of_two(unit)"));
    child_run(&child, rounds_beyond_the_end, &last);
    assert_true(child_aborted(&child));
}

UNIT_MAIN(cmocka_unit_test(test_rounding_agrees_with_division),
          cmocka_unit_test(test_powers_of_two), cmocka_unit_test(test_least_and_greatest),
          cmocka_unit_test(test_nonsense_asserts))
