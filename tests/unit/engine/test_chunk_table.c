/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunk table finds chunks by key and by local id, lets a deleted chunk's key be used again
 * while its space is still being given back, and keeps the list of pending writes exact: checked
 * against a plain array for random orders of writes and stable versions.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunk_table.h"
#include "tests/unit/lib/fake_rng.h"

static const struct chunk_key key_a = {.volume = 7, .segment = 3, .slot = 1};
static const struct chunk_key key_b = {.volume = 7, .segment = 3, .slot = 2};

static void
test_find_add_delete(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *a, *b, *again;

    (void)state;
    assert_null(chunk_table_find(table, &key_a));
    a = chunk_table_add(table, &key_a, 1, 5);
    b = chunk_table_add(table, &key_b, 2, 6);
    assert_int_equal(a->incarnation, 5);
    assert_int_equal(a->config_epoch, 5);
    assert_ptr_equal(chunk_table_find(table, &key_a), a);
    assert_ptr_equal(chunk_table_find(table, &key_b), b);
    assert_int_equal(table->chunk_count, 2);
    chunk_pending_add(a, 9, 0, 1);
    chunk_table_delete(table, a);
    assert_null(chunk_table_find(table, &key_a));
    assert_ptr_equal(chunk_table_find_local(table, 1), a);
    assert_int_equal(a->pending_count, 0);
    again = chunk_table_add(table, &key_a, 3, 8);
    assert_ptr_equal(chunk_table_find(table, &key_a), again);
    chunk_table_remove(table, a);
    assert_null(chunk_table_find_local(table, 1));
    assert_ptr_equal(chunk_table_find(table, &key_a), again);
    assert_int_equal(table->chunk_count, 2);
    chunk_table_remove(table, b);
    assert_int_equal(table->chunk_count, 1);
    assert_int_equal(list_length(&again->volume->chunks), 1);
    chunk_table_destroy(table);
}

static void
test_fence_only_rises(void **state)
{
    struct chunk_table *table = chunk_table_create();

    (void)state;
    assert_int_equal(chunk_table_fence(table, 7), 0);
    assert_null(chunk_table_volume(table, 7));
    chunk_table_fence_raise(table, 7, 4);
    chunk_table_fence_raise(table, 7, 2);
    assert_int_equal(chunk_table_fence(table, 7), 4);
    assert_int_equal(chunk_table_fence(table, 8), 0);
    chunk_table_destroy(table);
}

/* What the list must be: versions above S, in any order. */
struct model {
    bool durable[512];
    uint64_t stable;
};

static void
compare(const struct chunk *chunk, const struct model *model)
{
    uint32_t listed = 0;
    uint64_t last = model->stable;

    for (uint64_t version = 1; version < 512; version++) {
        assert_int_equal(chunk_version_is_durable(chunk, version),
                         version <= model->stable || model->durable[version]);
        if (version > model->stable && model->durable[version]) {
            assert_int_equal(chunk->pending[listed].version, version);
            assert_int_equal(chunk->pending[listed].offset_sectors, version * 3);
            listed++;
            last = version;
        }
    }
    assert_int_equal(chunk->pending_count, listed);
    assert_int_equal(chunk_version_max(chunk), last);
}

static void
test_pending_is_exact(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct chunk_table *table = chunk_table_create();
        struct chunk *chunk = chunk_table_add(table, &key_a, 1, 1);
        struct model model = {.stable = 0};
        struct fake_rng rng;

        fake_rng_init(&rng, seed);
        for (int step = 0; step < 400; step++) {
            uint64_t version = fake_rng_range(&rng, 1, 511);

            if (fake_rng_percent(&rng, 90)) {
                chunk_pending_add(chunk, version, (uint32_t)version * 3, 1);
                model.durable[version] = true;
            } else {
                /* Small steps, so that there is something to drop and something to keep. */
                version = model.stable + fake_rng_below(&rng, 20);
                assert_int_equal(chunk_stable_raise(chunk, version), version > model.stable);
                if (version > model.stable)
                    model.stable = version;
            }
            if (step % 16 == 0)
                compare(chunk, &model);
        }
        compare(chunk, &model);
        assert_true(chunk_stable_raise(chunk, UINT64_MAX));
        assert_int_equal(chunk->pending_count, 0);
        chunk_table_destroy(table);
    }
}

/* A client that writes for ever with S close behind: the memory of the list stays small. */
static void
test_pending_memory_is_bounded(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *chunk = chunk_table_add(table, &key_a, 1, 1);

    (void)state;
    for (uint64_t version = 1; version < 100000; version++) {
        chunk_pending_add(chunk, version, 0, 1);
        if (version > 32)
            chunk_stable_raise(chunk, version - 32);
        assert_true(chunk->pending_count <= 33);
        assert_true((uint64_t)(chunk->pending - chunk->pending_memory) + chunk->pending_capacity <=
                    128);
    }
    chunk_table_destroy(table);
}

/* Pulled parts of a write are listed with the range that holds them, and answer nothing. */
static void
test_pulled_parts(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *chunk = chunk_table_add(table, &key_a, 1, 5);

    (void)state;
    chunk_pending_add_pulled(chunk, 20, 10, 2);
    chunk_pending_add_pulled(chunk, 20, 30, 4);
    chunk_pending_add_pulled(chunk, 20, 12, 1);
    assert_int_equal(chunk->pending_count, 1);
    assert_int_equal(chunk->pending[0].offset_sectors, 10);
    assert_int_equal(chunk->pending[0].length_sectors, 24);
    assert_true(chunk->pending[0].pulled);
    assert_false(chunk_version_is_durable(chunk, 20));
    chunk_pending_add(chunk, 20, 5, 40);
    assert_true(chunk_version_is_durable(chunk, 20));
    assert_int_equal(chunk->pending[0].offset_sectors, 5);
    assert_int_equal(chunk->pending[0].length_sectors, 40);
    chunk_pending_add_pulled(chunk, 20, 10, 2);
    assert_false(chunk->pending[0].pulled);
    assert_int_equal(chunk->pending[0].length_sectors, 40);
    (void)chunk_stable_raise(chunk, 20);
    chunk_pending_add_pulled(chunk, 20, 10, 2);
    assert_int_equal(chunk->pending_count, 0);
    chunk_table_destroy(table);
}

static void
expect_step(const struct chunk *chunk, uint32_t idx, uint32_t first, uint64_t version)
{
    assert_true(idx < chunk->step_count);
    assert_int_equal(chunk->steps[idx].first_sector, first);
    assert_int_equal(chunk->steps[idx].stable_version, version);
}

/*
 *     in-sync, S = 10        steps 0:10
 *     heard 50, cursor 100   steps 0:50 100:10
 *     heard 60, cursor 40    steps 0:60 40:50 100:10
 *     heard 70, cursor 200   steps 0:70 200:10
 */
static void
test_steps_of_attempts(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *chunk = chunk_table_add(table, &key_a, 1, 5);

    (void)state;
    (void)chunk_stable_raise(chunk, 10);
    chunk_pending_add(chunk, 11, 0, 1);
    assert_int_equal(chunk_step_version(chunk, 77), 10);
    chunk_attempt_begin(chunk, 7);
    assert_int_equal(chunk->step_count, 1);
    assert_int_equal(chunk->pending_count, 0);
    expect_step(chunk, 0, 0, 10);
    assert_false(chunk_stable_hear(chunk, 0, 49));
    assert_false(chunk_stable_hear(chunk, 6, 49));
    chunk_pending_add(chunk, 45, 0, 1);
    chunk_pending_add(chunk, 55, 0, 1);
    assert_true(chunk_stable_hear(chunk, 7, 50));
    assert_int_equal(chunk->pending_count, 1);
    assert_true(chunk_version_is_durable(chunk, 45));
    assert_int_equal(chunk->stable_version, 10);
    chunk->cursor_sectors = 100;
    chunk_attempt_begin(chunk, 8);
    assert_int_equal(chunk->step_count, 2);
    expect_step(chunk, 0, 0, 50);
    expect_step(chunk, 1, 100, 10);
    assert_false(chunk_version_is_durable(chunk, 45));
    assert_int_equal(chunk_step_version(chunk, 99), 50);
    assert_int_equal(chunk_step_version(chunk, 100), 10);
    (void)chunk_stable_hear(chunk, 8, 60);
    chunk->cursor_sectors = 40;
    chunk_attempt_begin(chunk, 9);
    assert_int_equal(chunk->step_count, 3);
    expect_step(chunk, 0, 0, 60);
    expect_step(chunk, 1, 40, 50);
    expect_step(chunk, 2, 100, 10);
    (void)chunk_stable_hear(chunk, 9, 70);
    chunk->cursor_sectors = 200;
    chunk_attempt_begin(chunk, 10);
    assert_int_equal(chunk->step_count, 2);
    expect_step(chunk, 0, 0, 70);
    expect_step(chunk, 1, 200, 10);
    chunk->reported_version = 65;
    (void)chunk_stable_hear(chunk, 10, 80);
    chunk_promote(chunk, 11);
    assert_int_equal(chunk->attempt, 0);
    assert_int_equal(chunk->step_count, 0);
    assert_int_equal(chunk->config_epoch, 11);
    assert_int_equal(chunk->stable_version, 80);
    chunk_table_destroy(table);
}

/*
 * What an earlier attempt had heard is not pulled again below its cursor, and so not listed: S
 * covers it after the promotion, though the last source has not heard of it.
 */
static void
test_promotion_with_steps(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *chunk = chunk_table_add(table, &key_a, 1, 5);

    (void)state;
    chunk_attempt_begin(chunk, 7);
    chunk_pending_add(chunk, 60, 3, 1);
    (void)chunk_stable_hear(chunk, 7, 60);
    chunk->cursor_sectors = 100;
    chunk_attempt_begin(chunk, 8);
    chunk_sources_hear(chunk, 50);
    chunk->cursor_sectors = 200;
    chunk_promote(chunk, 9);
    assert_int_equal(chunk->stable_version, 60);
    assert_true(chunk_version_is_durable(chunk, 60));
    assert_int_equal(chunk->pending_count, 0);
    chunk_table_destroy(table);
}

/* However often it is cut off: four steps, and none claims more than was true of its sectors. */
static void
test_steps_are_bounded(void **state)
{
    struct chunk_table *table = chunk_table_create();
    struct chunk *chunk = chunk_table_add(table, &key_a, 1, 5);
    uint64_t truth[64] = {0};
    struct fake_rng rng;

    (void)state;
    fake_rng_init(&rng, 3);
    for (uint32_t attempt = 6; attempt < 2000; attempt++) {
        chunk_attempt_begin(chunk, attempt);
        for (uint32_t i = 0; i < 64; i++) {
            assert_true(chunk_step_version(chunk, i) <= truth[i]);
            truth[i] = chunk_step_version(chunk, i);
        }
        assert_true(chunk->step_count >= 1 && chunk->step_count <= CHUNK_STEPS_MAX);
        (void)chunk_stable_hear(chunk, attempt, attempt * 10 + fake_rng_below(&rng, 5));
        chunk->cursor_sectors = (uint32_t)fake_rng_below(&rng, 64);
        for (uint32_t i = 0; i < chunk->cursor_sectors; i++)
            truth[i] = chunk->heard_version;
    }
    chunk_table_destroy(table);
}

UNIT_MAIN(cmocka_unit_test(test_pulled_parts), cmocka_unit_test(test_steps_of_attempts),
          cmocka_unit_test(test_promotion_with_steps), cmocka_unit_test(test_steps_are_bounded),
          cmocka_unit_test(test_find_add_delete), cmocka_unit_test(test_fence_only_rises),
          cmocka_unit_test(test_pending_is_exact), cmocka_unit_test(test_pending_memory_is_bounded))
