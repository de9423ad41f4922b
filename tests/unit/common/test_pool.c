/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool gives out each item once, aligned, up to its count and not one more; wrong returns are
 * seen.
 */
#include "tests/unit/lib/unit.h"

#include <string.h>

#include "common/align.h"
#include "common/pool.h"
#include "dlblk/error.h"
#include "tests/unit/lib/child.h"

#define ITEM_COUNT 100u

static void
test_all_items_and_no_more(void **state)
{
    static const size_t sizes[] = {1, 64, 100, 4096, 12288};

    (void)state;
    for (unsigned s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint8_t *items[ITEM_COUNT];
        struct pool pool;

        assert_int_equal(pool_init(&pool, sizes[s], ITEM_COUNT), 0);
        for (unsigned round = 0; round < 3; round++) {
            for (unsigned i = 0; i < ITEM_COUNT; i++) {
                items[i] = pool_acquire(&pool);
                assert_non_null(items[i]);
                assert_true(is_aligned_pointer(items[i], sizes[s] % 4096 == 0 ? 4096 : 64));
                memset(items[i], (int)i, sizes[s]);
            }
            assert_null(pool_acquire(&pool));
            assert_int_equal(pool_taken_count(&pool), ITEM_COUNT);
            /* No two share a byte: each still holds what was written into it. */
            for (unsigned i = 0; i < ITEM_COUNT; i++) {
                assert_int_equal(items[i][0], i);
                assert_int_equal(items[i][sizes[s] - 1], i);
            }
            for (unsigned i = 0; i < ITEM_COUNT; i++)
                pool_release(&pool, items[(i * 37 + round) % ITEM_COUNT]);
            assert_int_equal(pool_taken_count(&pool), 0);
        }
        pool_fini(&pool);
    }
}

static void
test_last_returned_comes_first(void **state)
{
    struct pool pool;
    void *a, *b;

    (void)state;
    assert_int_equal(pool_init(&pool, 4096, 8), 0);
    a = pool_acquire(&pool);
    b = pool_acquire(&pool);
    assert_ptr_equal(a, pool.base); /* memory is touched from its beginning */
    assert_ptr_equal(b, pool.base + 4096);
    pool_release(&pool, b);
    pool_release(&pool, a);
    assert_ptr_equal(pool_acquire(&pool), a);
    pool_release(&pool, a);
    pool_fini(&pool);
}

static void
test_too_large_and_empty(void **state)
{
    struct pool pool;

    (void)state;
    assert_int_equal(pool_init(&pool, (size_t)1 << 50, UINT32_MAX), -DL_E_NO_MEMORY);
    assert_int_equal(pool_init(&pool, (size_t)1 << 46, 4), -DL_E_NO_MEMORY);
    pool_fini(&pool); /* after a failure */
    memset(&pool, 0, sizeof(pool));
    pool_fini(&pool);
}

static void
writes_what_was_returned(void *context)
{
    struct pool *pool = context;
    volatile uint8_t *item = pool_acquire(pool);

    item[63] = 1;
    pool_release(pool, (void *)item);
    item[63] = 2;
}

static void
test_use_after_return_is_seen_by_the_sanitizer(void **state)
{
    struct pool pool;
    struct child child;

    (void)state;
    assert_int_equal(pool_init(&pool, 64, 4), 0);
    child_run(&child, writes_what_was_returned, &pool);
    if (POOL_POISONS)
        assert_non_null(strstr(child.text, "use-after-poison"));
    else
        assert_int_equal(child.status, 0);
    pool_fini(&pool);
}

static void
returns_twice(void *context)
{
    struct pool *pool = context;
    void *item = pool_acquire(pool);

    pool_release(pool, item);
    pool_release(pool, item);
}

static void
returns_middle(void *context)
{
    struct pool *pool = context;

    pool_release(pool, (uint8_t *)pool_acquire(pool) + 64);
}

static void
returns_foreign(void *context)
{
    struct pool *pool = context;
    char foreign;

    (void)pool_acquire(pool);
    pool_release(pool, &foreign);
}

static void
ends_with_one_taken(void *context)
{
    struct pool *pool = context;

    (void)pool_acquire(pool);
    pool_fini(pool);
}

static void
test_misuse_asserts(void **state)
{
    static void (*const misuses[])(void *) = {returns_twice, returns_middle, returns_foreign,
                                              ends_with_one_taken};
    struct pool pool;

    (void)state;
    assert_int_equal(pool_init(&pool, 4096, 4), 0);
    for (unsigned i = 0; i < sizeof(misuses) / sizeof(misuses[0]); i++) {
        struct child child;

        child_run(&child, misuses[i], &pool);
        assert_true(child_aborted(&child));
        assert_non_null(strstr(child.text, "assertion failed"));
    }
    pool_fini(&pool);
}

UNIT_MAIN(cmocka_unit_test(test_all_items_and_no_more),
          cmocka_unit_test(test_last_returned_comes_first),
          cmocka_unit_test(test_too_large_and_empty),
          cmocka_unit_test(test_use_after_return_is_seen_by_the_sanitizer),
          cmocka_unit_test(test_misuse_asserts))
