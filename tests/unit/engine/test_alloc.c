/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The allocator hands out each block to one owner at a time, in runs where it can, keeps the
 * reserve, frees a block only when its FREE record is durable and older reads have ended, and its
 * saved pages say what the journal says.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/alloc.h"
#include "tests/unit/lib/fake_rng.h"

#define SLABS 5u

static void
setup(struct alloc *alloc, uint32_t slabs, uint64_t reserve_blocks)
{
    alloc_init(alloc, slabs, reserve_blocks);
    alloc_start(alloc);
}

/* One run of `count` blocks in use. */
static struct extent
take_one(struct alloc *alloc, enum alloc_kind kind, uint32_t count)
{
    struct extent extents[ALLOC_EXTENTS_MAX];

    assert_int_equal(alloc_take(alloc, kind, count, false, extents), 1);
    assert_int_equal(extents[0].count, count);
    return extents[0];
}

static void
test_small_writes_are_neighbours(void **state)
{
    struct alloc alloc;

    (void)state;
    setup(&alloc, SLABS, 0);
    for (uint64_t i = 0; i < SLAB_DATA_BLOCKS; i++) {
        struct extent extent = take_one(&alloc, ALLOC_SMALL, 1);

        assert_int_equal(extent.block, i);
        alloc_commit(&alloc, extent.block, 1);
    }
    /* The footers are left out. */
    assert_int_equal(take_one(&alloc, ALLOC_SMALL, 1).block, SLAB_BLOCKS);
    alloc_fini(&alloc);
}

static void
test_large_writes_have_a_slab_of_their_own(void **state)
{
    struct alloc alloc;
    struct extent small, large;

    (void)state;
    setup(&alloc, SLABS, 0);
    small = take_one(&alloc, ALLOC_SMALL, 3);
    large = take_one(&alloc, ALLOC_LARGE, 256);
    assert_int_not_equal(small.block / SLAB_BLOCKS, large.block / SLAB_BLOCKS);
    assert_int_equal(take_one(&alloc, ALLOC_LARGE, 256).block, large.block + 256);
    assert_int_equal(take_one(&alloc, ALLOC_SMALL, 1).block, small.block + 3);
    alloc_fini(&alloc);
}

/*
 * Every second block of a slab is in use: a large write leaves its holes alone as long as there are
 * others.
 */
static void
test_large_writes_pass_over_holes(void **state)
{
    struct alloc alloc;
    struct extent extents[ALLOC_EXTENTS_MAX];

    (void)state;
    alloc_init(&alloc, 2, 0);
    for (uint64_t i = 0; i < 100; i++)
        alloc_replay_set(&alloc, i * 2, 1);
    for (uint64_t i = 0; i < 50; i++)
        alloc_replay_set(&alloc, SLAB_BLOCKS + i * 2, 1);
    alloc_start(&alloc);
    assert_int_equal(alloc_take(&alloc, ALLOC_LARGE, 200, false, extents), 1);
    /* 50 blocks are missing there, 100 here: there it is emptier. */
    assert_int_equal(extents[0].block, SLAB_BLOCKS + 99);
    alloc_fini(&alloc);
}

static void
test_fragments_when_nothing_else_is_left(void **state)
{
    struct alloc alloc;
    struct extent extents[ALLOC_EXTENTS_MAX];
    uint32_t count;

    (void)state;
    alloc_init(&alloc, 1, 0);
    for (uint64_t i = 0; i < SLAB_DATA_BLOCKS / 2; i++)
        alloc_replay_set(&alloc, i * 2, 1);
    alloc_start(&alloc);
    assert_int_equal(alloc.free_blocks, SLAB_DATA_BLOCKS / 2);
    count = alloc_take(&alloc, ALLOC_LARGE, 256, true, extents);
    assert_int_equal(count, 256);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(extents[i].count, 1);
        assert_int_equal(extents[i].block % 2, 1);
    }
    alloc_fini(&alloc);
}

static void
test_reserve_is_kept(void **state)
{
    struct alloc alloc;
    struct extent extents[ALLOC_EXTENTS_MAX];
    uint64_t taken = 0;

    (void)state;
    setup(&alloc, 1, 100);
    while (alloc_take(&alloc, ALLOC_SMALL, 1, false, extents) > 0)
        taken++;
    assert_int_equal(taken, SLAB_DATA_BLOCKS - 100);
    assert_false(alloc_has_room(&alloc, 1, false));
    assert_true(alloc_has_room(&alloc, 100, true));
    while (alloc_take(&alloc, ALLOC_SMALL, 1, true, extents) > 0)
        taken++;
    assert_int_equal(taken, SLAB_DATA_BLOCKS);
    alloc_fini(&alloc);
}

/* Blocks that wait to be freed raise the reserve; of a large disk 2 % is more than that. */
static void
test_reserve_grows_with_what_waits(void **state)
{
    struct alloc alloc;
    struct extent extent;

    (void)state;
    setup(&alloc, 1, 10);
    assert_int_equal(alloc_reserve(&alloc), 20);
    extent = take_one(&alloc, ALLOC_SMALL, 50);
    alloc_commit(&alloc, extent.block, 50);
    alloc_give_up(&alloc, extent.block, 50);
    assert_int_equal(alloc_reserve(&alloc), 60);
    alloc_fini(&alloc);
}

static void
test_life_of_a_block(void **state)
{
    struct alloc alloc;
    struct extent extent, run;
    bool worn;
    uint64_t free_blocks;

    (void)state;
    setup(&alloc, 1, 0);
    free_blocks = alloc.free_blocks;
    extent = take_one(&alloc, ALLOC_SMALL, 4);
    assert_false(alloc_in_map(&alloc, extent.block));
    assert_true(alloc_in_limbo(&alloc, extent.block));
    alloc_commit(&alloc, extent.block, 4);
    assert_true(alloc_in_map(&alloc, extent.block));
    assert_false(alloc_in_limbo(&alloc, extent.block));
    assert_int_equal(alloc_give_up(&alloc, extent.block, 2), 2);
    assert_int_equal(alloc_give_up(&alloc, extent.block + 2, 2), 4);
    /* Neighbours are named by one run. */
    assert_true(alloc_queue_peek(&alloc, &run, &worn));
    assert_int_equal(run.block, extent.block);
    assert_int_equal(run.count, 4);
    alloc_queue_pop(&alloc, 3);
    assert_true(alloc_queue_peek(&alloc, &run, &worn));
    assert_int_equal(run.block, extent.block + 3);
    /* No read is in flight: free at once. */
    alloc_free_durable(&alloc, extent.block, 3, false, 0);
    assert_int_equal(alloc.freed_durable_seq, 3);
    assert_int_equal(alloc.free_blocks, free_blocks - 1);
    alloc_queue_pop(&alloc, 1);
    /* Reads 7 and 8 are in flight. */
    alloc_free_durable(&alloc, extent.block + 3, 1, true, 8);
    assert_false(alloc_in_map(&alloc, extent.block + 3));
    assert_int_equal(alloc.free_blocks, free_blocks - 1);
    alloc_release(&alloc, 8);
    assert_int_equal(alloc.free_blocks, free_blocks - 1);
    alloc_release(&alloc, 9);
    assert_int_equal(alloc.free_blocks, free_blocks);
    assert_int_equal(alloc_awaiting(&alloc), 0);
    assert_int_equal(alloc.freed_durable_seq, alloc.given_up_seq);
    alloc_fini(&alloc);
}

/* A page saved now, and a new life that loads it: what was in limbo is free there. */
static void
test_saved_pages(void **state)
{
    struct alloc alloc, again;
    uint8_t *page = malloc(BITMAP_PAGE_BYTES);
    struct extent kept, lost;
    uint32_t slabs = BITMAP_PAGE_BLOCKS / SLAB_BLOCKS + 3; /* the second page is short */

    (void)state;
    setup(&alloc, slabs, 0);
    assert_int_equal(alloc_page_count(&alloc), 2);
    kept = take_one(&alloc, ALLOC_SMALL, 17);
    alloc_commit(&alloc, kept.block, 17);
    lost = take_one(&alloc, ALLOC_SMALL, 5);
    alloc_init(&again, slabs, 0);
    for (uint32_t i = 0; i < 2; i++) {
        alloc_save_page(&alloc, i, page);
        alloc_load_page(&again, i, page);
    }
    alloc_start(&again);
    assert_int_equal(again.free_blocks, again.data_blocks - 17);
    assert_true(alloc_in_map(&again, kept.block + 16));
    assert_false(alloc_in_map(&again, lost.block));
    alloc_fini(&alloc);
    alloc_fini(&again);
    free(page);
}

/* --- at random, against one byte per block --- */

enum model_state { FREE, TAKEN, USED, QUEUED, NAMED, QUARANTINE };

struct model {
    uint8_t states[SLABS * SLAB_BLOCKS];
    uint64_t read_seq[SLABS * SLAB_BLOCKS];
    uint64_t reads_min, reads_next; /* reads in flight: [min, next) */
};

static void
model_set(struct model *model, struct extent run, enum model_state from, enum model_state to)
{
    for (uint64_t i = run.block; i < run.block + run.count; i++) {
        assert_int_equal(model->states[i], from);
        assert_true(i % SLAB_BLOCKS < SLAB_DATA_BLOCKS);
        model->states[i] = (uint8_t)to;
    }
}

static bool
model_pick(const struct model *model, struct fake_rng *rng, enum model_state wanted,
           uint64_t *ret_block)
{
    for (int tries = 0; tries < 400; tries++) {
        uint64_t block = fake_rng_below(rng, SLABS * SLAB_BLOCKS);

        if (model->states[block] == wanted && block % SLAB_BLOCKS < SLAB_DATA_BLOCKS) {
            *ret_block = block;
            return true;
        }
    }
    return false;
}

static void
model_compare(const struct model *model, const struct alloc *alloc)
{
    uint64_t free_blocks = 0;

    for (uint64_t i = 0; i < SLABS * SLAB_BLOCKS; i++) {
        enum model_state state = model->states[i];

        if (i % SLAB_BLOCKS >= SLAB_DATA_BLOCKS)
            continue;
        free_blocks += state == FREE;
        assert_int_equal(alloc_in_map(alloc, i),
                         state == USED || state == QUEUED || state == NAMED);
        assert_int_equal(alloc_in_limbo(alloc, i), state == TAKEN || state == QUARANTINE);
    }
    assert_int_equal(alloc->free_blocks, free_blocks);
}

static void
model_take(struct model *model, struct alloc *alloc, struct fake_rng *rng)
{
    uint32_t count = fake_rng_percent(rng, 80) ? (uint32_t)fake_rng_range(rng, 1, 4)
                                               : (uint32_t)fake_rng_range(rng, 16, 256);
    enum alloc_kind kind = count < ALLOC_LARGE_BLOCKS ? ALLOC_SMALL : ALLOC_LARGE;
    bool use_reserve = fake_rng_percent(rng, 50);
    bool expected = alloc_has_room(alloc, count, use_reserve);
    struct extent extents[ALLOC_EXTENTS_MAX];
    uint32_t extent_count = alloc_take(alloc, kind, count, use_reserve, extents), total = 0;

    assert_int_equal(extent_count > 0, expected);
    for (uint32_t i = 0; i < extent_count; i++) {
        model_set(model, extents[i], FREE, TAKEN);
        total += extents[i].count;
    }
    assert_int_equal(total, expected ? count : 0);
}

static void
model_free(struct model *model, struct alloc *alloc, struct fake_rng *rng)
{
    bool reads = model->reads_min < model->reads_next, worn;
    struct extent run;

    if (!alloc_queue_peek(alloc, &run, &worn))
        return;
    run.count = (uint32_t)fake_rng_range(rng, 1, run.count);
    alloc_queue_pop(alloc, run.count);
    model_set(model, run, QUEUED, NAMED);
    if (fake_rng_percent(rng, 5)) {
        alloc_queue_back(alloc, run.block, run.count, false);
        model_set(model, run, NAMED, QUEUED);
        return;
    }
    alloc_free_durable(alloc, run.block, run.count, reads, model->reads_next - 1);
    model_set(model, run, NAMED, reads ? QUARANTINE : FREE);
    for (uint64_t i = run.block; i < run.block + run.count; i++)
        model->read_seq[i] = model->reads_next - 1;
}

static void
model_end_reads(struct model *model, struct alloc *alloc, struct fake_rng *rng)
{
    model->reads_min = fake_rng_range(rng, model->reads_min, model->reads_next);
    alloc_release(alloc, model->reads_min < model->reads_next ? model->reads_min : UINT64_MAX);
    for (uint64_t i = 0; i < SLABS * SLAB_BLOCKS; i++)
        if (model->states[i] == QUARANTINE &&
            (model->read_seq[i] < model->reads_min || model->reads_min == model->reads_next))
            model->states[i] = FREE;
}

static void
model_step(struct model *model, struct alloc *alloc, struct fake_rng *rng)
{
    uint64_t block;

    switch (fake_rng_below(rng, 12)) {
    case 0:
    case 1:
        model_take(model, alloc, rng);
        break;
    case 2:
    case 3:
    case 4:
        if (model_pick(model, rng, TAKEN, &block)) {
            alloc_commit(alloc, block, 1);
            model->states[block] = USED;
        }
        break;
    case 5:
        if (model_pick(model, rng, TAKEN, &block)) {
            alloc_return(alloc, block, 1);
            model->states[block] = FREE;
        }
        break;
    case 6:
    case 7:
    case 8:
        if (model_pick(model, rng, USED, &block)) {
            alloc_give_up(alloc, block, 1);
            model->states[block] = QUEUED;
        }
        break;
    case 9:
    case 10:
        model_free(model, alloc, rng);
        break;
    default:
        model->reads_next += fake_rng_below(rng, 3);
        model_end_reads(model, alloc, rng);
        break;
    }
}

static void
test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct model *model = calloc(1, sizeof(*model));
        struct fake_rng rng;
        struct alloc alloc;

        fake_rng_init(&rng, seed);
        model->reads_min = 1;
        model->reads_next = 1;
        setup(&alloc, SLABS, 64);
        for (int step = 0; step < 20000; step++) {
            model_step(model, &alloc, &rng);
            if (step % 500 == 0)
                model_compare(model, &alloc);
        }
        model_compare(model, &alloc);
        assert_true(alloc.reused_total > 0);
        assert_true(alloc.waited_total > 0);
        alloc_fini(&alloc);
        free(model);
    }
}

UNIT_MAIN(cmocka_unit_test(test_small_writes_are_neighbours),
          cmocka_unit_test(test_large_writes_have_a_slab_of_their_own),
          cmocka_unit_test(test_large_writes_pass_over_holes),
          cmocka_unit_test(test_fragments_when_nothing_else_is_left),
          cmocka_unit_test(test_reserve_is_kept),
          cmocka_unit_test(test_reserve_grows_with_what_waits),
          cmocka_unit_test(test_life_of_a_block), cmocka_unit_test(test_saved_pages),
          cmocka_unit_test(test_random))
