/* SPDX-License-Identifier: Apache-2.0 */
/* Growable arrays keep what was pushed while they grow, and refuse what no memory could hold. */
#include "tests/unit/lib/unit.h"

#include "common/vec.h"

struct range {
    uint64_t from, to;
};

static void
test_push_grow_walk(void **state)
{
    VEC(struct range) ranges = {0};
    unsigned grown_count = 0;
    uint64_t i = 0;

    (void)state;
    vec_for_each (range, &ranges)
        fail_msg("an empty one has no items, but %p", (void *)range);
    for (; i < 1000; i++) {
        size_t capacity = ranges.capacity;

        assert_int_equal(vec_push(&ranges, ((struct range){i, i + 1})), 0);
        grown_count += ranges.capacity != capacity;
    }
    assert_in_range(grown_count, 1, 10); /* doubling: constant time per item */
    assert_int_equal(ranges.count, 1000);
    assert_true(ranges.capacity >= 1000 && ranges.capacity < 2048);
    i = 0;
    vec_for_each (range, &ranges) {
        assert_int_equal(range->from, i);
        assert_int_equal(range->to, ++i);
    }
    assert_int_equal(i, 1000);
    assert_int_equal(vec_pop(&ranges).from, 999);
    assert_int_equal(ranges.count, 999);
    vec_clear(&ranges);
    assert_int_equal(ranges.count, 0);
    assert_true(ranges.capacity >= 1000); /* kept for the next use */
    vec_fini(&ranges);
    assert_null(ranges.items);
}

static void
test_remove_swap(void **state)
{
    VEC(int) numbers = {0};

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(vec_push(&numbers, i), 0);
    vec_remove_swap(&numbers, 1);
    assert_int_equal(numbers.count, 3);
    assert_int_equal(numbers.items[1], 3);
    vec_remove_swap(&numbers, 2);
    assert_int_equal(numbers.count, 2);
    assert_int_equal(numbers.items[0], 0);
    assert_int_equal(numbers.items[1], 3);
    vec_fini(&numbers);
}

static void
test_reserve_and_no_memory(void **state)
{
    VEC(struct range) ranges = {0};

    (void)state;
    assert_int_equal(vec_push(&ranges, ((struct range){1, 2})), 0);
    assert_int_equal(vec_reserve(&ranges, SIZE_MAX / 2), -DL_E_NO_MEMORY);
    assert_int_equal(vec_reserve(&ranges, SIZE_MAX), -DL_E_NO_MEMORY);
    assert_int_equal(ranges.count, 1);
    assert_int_equal(ranges.items[0].to, 2);
    assert_int_equal(vec_reserve(&ranges, 100), 0);
    assert_true(ranges.capacity >= 100);
    vec_fini(&ranges);
}

UNIT_MAIN(cmocka_unit_test(test_push_grow_walk), cmocka_unit_test(test_remove_swap),
          cmocka_unit_test(test_reserve_and_no_memory))
