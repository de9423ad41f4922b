/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buffer_pool: buffers don't overlap, are aligned, all come back; and has_room() keeps its promise:
 * while it says yes, a buffer of the largest size can be had.  Shown by random acquiring and
 * releasing with a map of who has which byte.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <string.h>

#include "chunkserver/buffer_pool.h"
#include "tests/unit/lib/child.h"
#include "tests/unit/lib/fake_rng.h"

#define ARENA_BYTES ((size_t)4 << 20)
#define HELD_MAX    1024u

struct held {
    uint8_t *buffer;
    uint32_t bytes;
    uint8_t mark;
};

static uint32_t
random_bytes(struct fake_rng *rng)
{
    if (fake_rng_percent(rng, 60))
        return (uint32_t)fake_rng_range(rng, 1, 4096);
    return (uint32_t)fake_rng_range(rng, 1, BUFFER_BYTES_MAX);
}

static void
held_check_and_release(struct buffer_pool *pool, struct held *held)
{
    for (uint32_t i = 0; i < held->bytes; i++)
        assert_int_equal(held->buffer[i], held->mark);
    buffer_pool_release(pool, held->buffer, held->bytes);
}

static void
test_buffers_are_apart(void **state)
{
    struct buffer_pool *pool = buffer_pool_create(ARENA_BYTES);
    static struct held held[HELD_MAX];
    uint32_t count = 0, refused = 0, rounds;
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 1);
    for (rounds = 0; rounds < 20000; rounds++) {
        if (count < HELD_MAX && fake_rng_percent(&rng, 52)) {
            struct held *one = &held[count];

            one->bytes = random_bytes(&rng);
            one->buffer = buffer_pool_acquire(pool, one->bytes);
            if (one->buffer == NULL) {
                assert_false(one->bytes <= BUFFER_BYTES_MAX && buffer_pool_has_room(pool));
                refused++;
                continue;
            }
            assert_int_equal((uintptr_t)one->buffer % 4096, 0);
            one->mark = (uint8_t)fake_rng_next(&rng);
            memset(one->buffer, one->mark, one->bytes);
            count++;
        } else if (count > 0) {
            uint32_t idx = (uint32_t)fake_rng_below(&rng, count);

            held_check_and_release(pool, &held[idx]);
            held[idx] = held[--count];
        }
    }
    assert_true(refused > 100);
    while (count > 0)
        held_check_and_release(pool, &held[--count]);
    assert_int_equal(buffer_pool_used_bytes(pool), 0);
    buffer_pool_destroy(pool);
}

/*
 * After everything came back, in whatever order, the largest buffers can be had again: all of them.
 */
static void
test_what_is_freed_is_joined(void **state)
{
    struct buffer_pool *pool = buffer_pool_create(ARENA_BYTES);
    size_t small_count = ARENA_BYTES / 4096;
    static void *small[ARENA_BYTES / 4096];
    void *large[ARENA_BYTES / BUFFER_BYTES_MAX];

    (void)state;
    for (size_t i = 0; i < small_count; i++) {
        small[i] = buffer_pool_acquire(pool, 4096);
        assert_non_null(small[i]);
    }
    assert_null(buffer_pool_acquire(pool, 1));
    assert_false(buffer_pool_has_room(pool));
    assert_int_equal(buffer_pool_used_bytes(pool), ARENA_BYTES);
    /* Every other one first. */
    for (size_t i = 0; i < small_count; i += 2)
        buffer_pool_release(pool, small[i], 4096);
    assert_false(buffer_pool_has_room(pool));
    for (size_t i = 1; i < small_count; i += 2)
        buffer_pool_release(pool, small[i], 4096);
    for (size_t i = 0; i < ARENA_BYTES / BUFFER_BYTES_MAX; i++) {
        assert_true(buffer_pool_has_room(pool));
        large[i] = buffer_pool_acquire(pool, BUFFER_BYTES_MAX);
        assert_non_null(large[i]);
    }
    assert_false(buffer_pool_has_room(pool));
    for (size_t i = 0; i < ARENA_BYTES / BUFFER_BYTES_MAX; i++)
        buffer_pool_release(pool, large[i], BUFFER_BYTES_MAX);
    buffer_pool_destroy(pool);
}

static void
release_twice(void *context)
{
    struct buffer_pool *pool = buffer_pool_create(ARENA_BYTES);
    void *buffer = buffer_pool_acquire(pool, 65536);

    (void)context;
    buffer_pool_release(pool, buffer, 65536);
    buffer_pool_release(pool, buffer, 65536);
}

static void
test_released_twice_aborts(void **state)
{
    static struct child child;

    (void)state;
    child_run(&child, release_twice, NULL);
    assert_true(child_aborted(&child));
}

UNIT_MAIN(cmocka_unit_test(test_buffers_are_apart), cmocka_unit_test(test_what_is_freed_is_joined),
          cmocka_unit_test(test_released_twice_aborts))
