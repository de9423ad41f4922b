/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Extents: runs in order, adjacent ones differ, exact to 4 KiB inside allocated segments; against a
 *          map of what was written.
 */
#include "tests/unit/client/fixture.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/lib/fake_rng.h"

#define SECTORS_MAX (16u * 256u)

struct told {
    struct client_extents extents;
    bool data[SECTORS_MAX];
    uint64_t next_bytes;
    int last_hole; /* -1: no run yet */
    unsigned runs, stop_after;
    bool done;
    int err;
};

static int
on_run(void *context, uint64_t offset_bytes, uint64_t length_bytes, bool hole)
{
    struct told *told = context;

    assert_true(length_bytes > 0);
    assert_int_equal(offset_bytes, told->next_bytes);
    assert_int_not_equal(told->last_hole, hole);
    for (uint64_t at = offset_bytes; at < offset_bytes + length_bytes; at += 512)
        told->data[at / 4096] = !hole;
    told->next_bytes = offset_bytes + length_bytes;
    told->last_hole = hole;
    return ++told->runs == told->stop_after ? 42 : 0;
}

static void
on_done(struct client_extents *extents, int err)
{
    struct told *told = extents->context;

    told->done = true;
    told->err = err;
}

static int
run_extents(struct fixture *f, struct told *told, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct sim_process *before;

    *told = (struct told){
        .next_bytes = offset_bytes, .last_hole = -1, .stop_after = told->stop_after};
    told->extents = (struct client_extents){
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
        .fn = on_run,
        .on_done = on_done,
        .context = told,
    };
    before = sim_enter(&f->client_process);
    client_volume_extents(f->volume, &told->extents);
    sim_leave(&f->client_process, before);
    assert_false(told->done);
    assert_true(fixture_run_until(f, &told->done, 60 * SIM_S));
    return told->err;
}

static void
test_agrees_with_what_was_written(void **state)
{
    static const struct {
        uint32_t width, block;
    } shapes[] = {{1, 4096}, {3, 4096}, {1, 512}, {2, 512}};
    static struct told told;
    static bool written[SECTORS_MAX];

    (void)state;
    for (unsigned shape = 0; shape < 4; shape++) {
        struct fixture *f = fixture_create(shape, 4);
        struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);
        struct fake_rng rng;

        volume->stripe_width = shapes[shape].width;
        volume->logical_block_bytes = shapes[shape].block;
        memset(written, 0, sizeof(written));
        memset(&told, 0, sizeof(told));
        fake_rng_init(&rng, shape);
        assert_int_equal(fixture_open(f, "v", 0), 0);
        assert_int_equal(run_extents(f, &told, 0, 16 * MIB), 0);
        assert_int_equal(told.runs, 1);
        assert_int_equal(told.last_hole, 1);
        for (unsigned i = 0; i < 40; i++) {
            /* In the first 12 MiB, so that some segments never come into being. */
            uint64_t first = fake_rng_below(&rng, 12 * 256);
            uint64_t count = fake_rng_range(&rng, 1, 40);
            bool zero = i % 4 == 3;

            if (zero)
                assert_int_equal(fixture_op(f, DLBLK_DISCARD, first * 4096, count * 4096), 0);
            else
                assert_int_equal(fixture_write(f, first * 4096, count * 4096, 5), 0);
            for (uint64_t k = first; k < first + count; k++)
                written[k] = !zero;
        }
        assert_int_equal(run_extents(f, &told, 0, 16 * MIB), 0);
        assert_int_equal(told.next_bytes, 16 * MIB);
        assert_memory_equal(told.data, written, sizeof(written));
        assert_true(told.runs > 20);
        /* A part of it, not on sectors if the blocks are smaller. */
        assert_int_equal(run_extents(f, &told, 5 * MIB + shapes[shape].block, 2 * MIB), 0);
        assert_int_equal(told.next_bytes, 7 * MIB + shapes[shape].block);
        assert_memory_equal(told.data + 5 * 256 + 2, written + 5 * 256 + 2, 2 * 256 - 2);
        fixture_destroy(f);
    }
}

static void
test_ends(void **state)
{
    struct fixture *f = fixture_create(9, 3);
    static struct told told;

    (void)state;
    (void)fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 4096, 4096, 5), 0);
    assert_int_equal(fixture_write(f, 16384, 4096, 5), 0);
    told.stop_after = 3;
    assert_int_equal(run_extents(f, &told, 0, 8 * MIB), 42);
    assert_int_equal(told.runs, 3);
    assert_int_equal(told.next_bytes, 16384);
    told.stop_after = 0;
    assert_int_equal(run_extents(f, &told, 4 * MIB, 5 * MIB), -DL_E_RANGE);
    assert_int_equal(run_extents(f, &told, 4 * MIB, 0), 0);
    assert_int_equal(told.runs, 0);
    /* Nobody who could say: an error when time is over. */
    for (unsigned i = 0; i < 3; i++)
        fixture_server_down(f, i);
    assert_int_equal(run_extents(f, &told, 0, 8 * MIB), -DL_E_TIMEOUT);
    for (unsigned i = 0; i < 3; i++)
        fixture_server_up(f, i);
    assert_int_equal(run_extents(f, &told, 0, 8 * MIB), 0);
    fixture_destroy(f);
}

/*
 * Who has been replaced does not know where data is: what nobody had written may have been since.
 */
static void
test_taken_over(void **state)
{
    struct fixture *f = fixture_create(10, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);
    static struct told told;

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(run_extents(f, &told, 0, 8 * MIB), 0);
    assert_int_equal(told.runs, 1);
    fake_meta_take_over(&f->cluster, volume, true);
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    assert_true(client_volume_is_fenced(f->volume));
    assert_int_equal(run_extents(f, &told, 0, 8 * MIB), -DL_E_LEASE_OLD);
    assert_int_equal(told.runs, 0);
    fixture_destroy(f);
}

UNIT_MAIN(cmocka_unit_test(test_agrees_with_what_was_written), cmocka_unit_test(test_ends),
          cmocka_unit_test(test_taken_over))
