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

UNIT_MAIN(cmocka_unit_test(test_find_add_delete), cmocka_unit_test(test_fence_only_rises),
          cmocka_unit_test(test_pending_is_exact), cmocka_unit_test(test_pending_memory_is_bounded))
