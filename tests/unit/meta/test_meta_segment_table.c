/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of a volume's segments against a plain array, through random inserts and removals; and
 * its memory: under 100 bytes per segment however they come.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "meta/segment_table.h"
#include "tests/unit/lib/fake_rng.h"

#define INDEXES 4000u

static void
check_against(const struct segment_table *table, const uint32_t *model)
{
    uint32_t count = 0;
    uint32_t next = UINT32_MAX;

    for (uint32_t i = INDEXES; i-- > 0;) {
        struct segment *found = meta_segments_find(table, i);
        struct segment *after = meta_segments_after(table, i);
        struct segment *at;

        if (next == UINT32_MAX)
            assert_null(after);
        else
            assert_int_equal(after->index, next);
        if (model[i] == 0) {
            assert_null(found);
        } else {
            assert_non_null(found);
            assert_int_equal(found->config_epoch, model[i]);
            assert_int_equal(found->slots[2].server_id, model[i] & 0xffffff);
            count++;
            next = i;
        }
        at = meta_segments_at_or_after(table, i);
        assert_true(next == UINT32_MAX ? at == NULL : at->index == next);
    }
    assert_int_equal(table->count, count);
}

static void
test_against_a_model(void **state)
{
    struct segment_table table;
    uint32_t *model = calloc(INDEXES, sizeof(*model));
    uint64_t seed = 20261121;
    struct fake_rng rng;

    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    fake_rng_init(&rng, seed);
    meta_segments_init(&table, 3);
    for (uint32_t step = 0; step < 60000; step++) {
        uint32_t index = (uint32_t)fake_rng_below(&rng, INDEXES);

        /* It grows, then it shrinks, several times. */
        if (model[index] == 0 && fake_rng_percent(&rng, step / 10000 % 2 == 0 ? 90 : 20)) {
            struct segment *segment = meta_segments_insert(&table, index);

            assert_int_equal(segment->index, index);
            assert_int_equal(segment->config_epoch, 0);
            assert_int_equal(segment->slots[2].incarnation, 0);
            model[index] = step + 1;
            segment->config_epoch = step + 1;
            segment->slots[2].server_id = (step + 1) & 0xffffff;
        } else if (model[index] != 0 && fake_rng_percent(&rng, step / 10000 % 2 == 0 ? 10 : 90)) {
            meta_segments_remove(&table, index);
            model[index] = 0;
        }
        if (step % 2500 == 0)
            check_against(&table, model);
    }
    check_against(&table, model);
    for (uint32_t i = 0; i < INDEXES; i++)
        if (model[i] != 0)
            meta_segments_remove(&table, i);
    memset(model, 0, INDEXES * sizeof(*model));
    check_against(&table, model);
    assert_int_equal(meta_segments_memory_bytes(&table) / 64, table.leaf_capacity * 8 / 64);
    meta_segments_fini(&table);
    free(model);
}

static void
check_memory(uint32_t count, uint32_t (*index_of)(uint32_t i), uint32_t bytes_max)
{
    struct segment_table table;
    uint64_t bytes;

    meta_segments_init(&table, 3);
    for (uint32_t i = 0; i < count; i++)
        (void)meta_segments_insert(&table, index_of(i));
    bytes = meta_segments_memory_bytes(&table);
    assert_int_equal(table.count, count);
    assert_in_range(bytes, 56 * count, bytes_max * count);
    meta_segments_fini(&table);
}

static uint32_t
index_up(uint32_t i)
{
    return i;
}

static uint32_t
index_down(uint32_t i)
{
    return UINT32_MAX - i;
}

/* A bijection on 32 bits: scattered writes over a huge volume. */
static uint32_t
index_scattered(uint32_t i)
{
    return i * 2654435761u;
}

static void
test_memory_per_segment(void **state)
{
    (void)state;
    check_memory(100000, index_up, 60);
    check_memory(100000, index_down, 66);
    check_memory(100000, index_scattered, 66);
}

UNIT_MAIN(cmocka_unit_test(test_against_a_model), cmocka_unit_test(test_memory_per_segment))
