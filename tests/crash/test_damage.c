/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damage is told from a torn tail, and never costs more than it must.
 *
 *     ring:  | life 1: 10 writes ... | life 2: 6 writes, one block each |
 *            T = 0                   C (cut)          mark            end
 *
 * Bits are flipped in blocks of each part, copies of the superblock, values of the index and data;
 * blocks become unreadable.  Expected is what docs/engine.md says under Replay: refused, opened as
 * damaged, opened with the tail dropped, or (one superblock copy) opened as if nothing had
 * happened.
 */
#include "tests/unit/lib/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/journal.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "tests/crash/layout.h"
#include "tests/crash/world.h"

#define BLOCKS_MAX 128u

struct block_seen {
    uint64_t offset_bytes;
    uint64_t lsn, mark;
};

struct rig {
    struct world world;
    struct event_counts counts;
    struct superblock superblock;
    struct block_seen blocks[BLOCKS_MAX]; /* ascending LSNs */
    uint32_t block_count;
    uint64_t mark; /* the highest in them */
};

static void
write_one_by_one(struct world *world, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        op_write_new(world, &world->model.chunks[i % world->model.chunk_count]);
        world_drain(world);
    }
}

static int
compare_blocks(const void *a, const void *b)
{
    const struct block_seen *first = a, *second = b;

    return (first->lsn > second->lsn) - (first->lsn < second->lsn);
}

/* What is in the ring now. */
static void
rig_look(struct rig *rig)
{
    const struct superblock_geometry *geometry = &rig->superblock.geometry;
    struct dl_error err;

    if (superblock_load_now(&rig->world.disk.disk, &rig->superblock, &err) != 0)
        fail_msg("%s", err.text);
    rig->block_count = 0;
    rig->mark = rig->superblock.cut;
    for (uint64_t at = 0; at < geometry->ring_bytes; at += UNIT_BYTES) {
        struct journal_header header;

        if (journal_block_check(rig->world.disk.image + geometry->ring_offset + at, UNIT_BYTES,
                                rig->superblock.disk_uuid, &header, NULL) != 0)
            continue;
        assert_true(rig->block_count < BLOCKS_MAX);
        rig->blocks[rig->block_count++] = (struct block_seen){
            .offset_bytes = geometry->ring_offset + at, .lsn = header.lsn, .mark = header.mark};
        rig->mark = header.mark > rig->mark ? header.mark : rig->mark;
    }
    qsort(rig->blocks, rig->block_count, sizeof(rig->blocks[0]), compare_blocks);
}

/* Two lives, the second killed when all its writes were acknowledged: nothing of them is lost. */
static int
rig_setup(void **state)
{
    static const struct profile profile = {.slabs = 1,
                                           .journal_units = 128,
                                           .volumes = 1,
                                           .chunks = 2,
                                           .chunk_sectors = 256,
                                           .cache_bytes = 1 << 20,
                                           .reserve_bytes = LAYOUT_UNIT,
                                           .ops_max = WORLD_OPS_MAX - 8,
                                           .multi_percent = 50};
    struct rig *rig = calloc(1, sizeof(*rig));

    assert_non_null(rig);
    world_init(&rig->world, 42, &profile, &rig->counts, getenv("DLBLK_TEST_TRACE") != NULL);
    rig->world.env.timer_percent = 0;
    world_open(&rig->world);
    write_one_by_one(&rig->world, 10);
    world_kill(&rig->world);
    world_open(&rig->world);
    write_one_by_one(&rig->world, 6);
    world_kill(&rig->world);
    fake_disk_settle(&rig->world.disk);
    rig_look(rig);
    assert_true(rig->block_count >= 16);
    assert_true(rig->superblock.cut > 0);
    assert_true(rig->mark > rig->superblock.cut);
    *state = rig;
    return 0;
}

static int
rig_teardown(void **state)
{
    struct rig *rig = *state;

    world_fini(&rig->world);
    free(rig);
    return 0;
}

static int
rig_open(struct rig *rig, bool *ret_damaged)
{
    struct engine_identity identity = {0};
    struct dl_error err = {0};
    int result = world_try_open(&rig->world, &err);

    *ret_damaged = false;
    if (result == 0) {
        engine_identity(rig->world.engine, &identity);
        *ret_damaged = identity.damaged;
    } else {
        assert_true(strlen(err.text) > 0);
    }
    return result;
}

static void
flip(struct rig *rig, uint64_t offset_bytes)
{
    fake_disk_flip_bit(&rig->world.disk, offset_bytes, 3);
}

/* The n-th block with LSN in [from, to). */
static const struct block_seen *
block_in(const struct rig *rig, uint64_t from, uint64_t to, uint32_t n)
{
    for (uint32_t i = 0; i < rig->block_count; i++)
        if (rig->blocks[i].lsn >= from && rig->blocks[i].lsn < to && n-- == 0)
            return &rig->blocks[i];
    fail_msg("no such block between %llu and %llu", (unsigned long long)from,
             (unsigned long long)to);
    return NULL;
}

/* --- the superblock --- */

static void
check_superblock_copy(struct rig *rig, unsigned copy)
{
    struct superblock_copy copies[SUPERBLOCK_COPIES];

    flip(rig, superblock_copy_offset(rig->world.disk.disk.size_bytes, copy) + 100);
    superblock_copies_read_now(&rig->world.disk.disk, copies);
    assert_false(copies[copy].valid);
    assert_true(strlen(copies[copy].problem) > 0);
    world_open(&rig->world);
    superblock_copies_read_now(&rig->world.disk.disk, copies);
    assert_true(copies[0].valid);
    assert_true(copies[1].valid);
}

static void
test_first_superblock_copy_damaged(void **state)
{
    check_superblock_copy(*state, 0);
}

static void
test_second_superblock_copy_damaged(void **state)
{
    check_superblock_copy(*state, 1);
}

static void
test_superblock_copy_unreadable(void **state)
{
    struct rig *rig = *state;

    fake_disk_set_bad(&rig->world.disk, 0, 4096, true);
    world_open(&rig->world);
}

static void
test_both_superblock_copies_damaged(void **state)
{
    struct rig *rig = *state;
    uint64_t writes = rig->world.disk.ios[DISK_WRITE];
    bool damaged;
    int result;

    for (unsigned copy = 0; copy < SUPERBLOCK_COPIES; copy++)
        flip(rig, superblock_copy_offset(rig->world.disk.disk.size_bytes, copy) + 100);
    result = rig_open(rig, &damaged);
    assert_true(result == -DL_E_DISK_DAMAGED || result == -DL_E_DISK_FORMAT);
    assert_int_equal(rig->world.disk.ios[DISK_WRITE], writes);
    /* With one of them back it is as if nothing had happened. */
    flip(rig, superblock_copy_offset(rig->world.disk.disk.size_bytes, 1) + 100);
    world_open(&rig->world);
}

static void
test_both_superblock_copies_unreadable(void **state)
{
    struct rig *rig = *state;
    bool damaged;

    for (unsigned copy = 0; copy < SUPERBLOCK_COPIES; copy++)
        fake_disk_set_bad(&rig->world.disk,
                          superblock_copy_offset(rig->world.disk.disk.size_bytes, copy), 4096,
                          true);
    assert_int_not_equal(rig_open(rig, &damaged), 0);
}

/* --- the journal --- */

/* Every block below the cut, header and body: the index needs it, so the disk is refused. */
static void
test_block_below_the_cut(void **state)
{
    static const uint64_t places[] = {40, 90};
    struct rig *rig = *state;

    for (uint32_t n = 0; n < 10; n++)
        for (uint32_t p = 0; p < 2; p++) {
            const struct block_seen *block = block_in(rig, 0, rig->superblock.cut, n);
            uint64_t writes = rig->world.disk.ios[DISK_WRITE];
            bool damaged;

            flip(rig, block->offset_bytes + places[p]);
            assert_int_equal(rig_open(rig, &damaged), -DL_E_INDEX_MISMATCH);
            assert_int_equal(rig->world.disk.ios[DISK_WRITE], writes);
            flip(rig, block->offset_bytes + places[p]);
        }
    world_open(&rig->world);
}

static void
test_unreadable_block_below_the_cut(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *block = block_in(rig, 0, rig->superblock.cut, 4);
    bool damaged;

    fake_disk_set_bad(&rig->world.disk, block->offset_bytes, 4096, true);
    assert_int_not_equal(rig_open(rig, &damaged), 0);
    fake_disk_set_bad(&rig->world.disk, block->offset_bytes, 4096, false);
    world_open(&rig->world);
}

/*
 * What the index has already is not needed any more: no block below its position makes the disk
 * refused, or count as damaged, not even the last one.
 */
static void
test_blocks_below_the_position(void **state)
{
    static const uint64_t places[] = {5, 20, 41, 13, 90};
    struct rig *rig = *state;
    bool damaged;

    world_open(&rig->world);
    write_one_by_one(&rig->world, 5);
    world_quiet(&rig->world);
    world_kill(&rig->world);
    fake_disk_settle(&rig->world.disk);
    rig_look(rig);
    for (uint32_t n = 0; n < rig->block_count; n++) {
        struct world *world = &rig->world;
        const struct block_seen *block = &rig->blocks[n];
        size_t bytes = world->disk.disk.size_bytes;
        uint8_t *image = malloc(bytes);

        assert_non_null(image);
        fake_disk_peek(&world->disk, image, bytes, 0);
        for (uint32_t p = 0; p <= sizeof(places) / sizeof(places[0]); p++) {
            bool unreadable = p == sizeof(places) / sizeof(places[0]);

            if (unreadable)
                fake_disk_set_bad(&world->disk, block->offset_bytes, 4096, true);
            else
                flip(rig, block->offset_bytes + places[p]);
            assert_int_equal(rig_open(rig, &damaged), 0);
            assert_false(damaged);
            assert_null(engine_check(world->engine));
            world_kill(world);
            fake_disk_settle(&world->disk);
            fake_disk_set_bad(&world->disk, block->offset_bytes, 4096, false);
            fake_disk_poke(&world->disk, image, bytes, 0);
        }
        free(image);
    }
}

/* Later blocks say that it was durable: no crash does that. */
static void
test_block_between_cut_and_mark(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *block = block_in(rig, rig->superblock.cut, rig->mark, 0);
    bool damaged;

    flip(rig, block->offset_bytes + 90);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
    assert_null(engine_check(rig->world.engine));
}

/* One later block is enough, if its mark says so. */
static void
test_block_before_the_last(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *block = &rig->blocks[rig->block_count - 2];
    bool damaged;

    assert_true(block->lsn >= rig->superblock.cut);
    assert_true(rig->blocks[rig->block_count - 1].mark > block->lsn);
    flip(rig, block->offset_bytes + 90);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
}

/* It stays so: the disk does not forget at its next start that something was lost. */
static void
test_damage_is_remembered(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *block = block_in(rig, rig->superblock.cut, rig->mark, 0);
    bool damaged;

    flip(rig, block->offset_bytes + 90);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
    world_power_cut(&rig->world);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
}

static void
test_unreadable_block_above_the_cut(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *block = block_in(rig, rig->superblock.cut, UINT64_MAX, 3);
    bool damaged;

    fake_disk_set_bad(&rig->world.disk, block->offset_bytes, 4096, true);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
}

/*
 * Nothing later says anything of the last block: that is what a crash looks like.  All before it is
 * there.
 */
static void
test_last_block(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *last = &rig->blocks[rig->block_count - 1];
    bool damaged;

    assert_true(last->lsn >= rig->mark);
    flip(rig, last->offset_bytes + 90);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_false(damaged);
    assert_null(engine_check(rig->world.engine));
    assert_true(engine_counters(rig->world.engine)->replayed_blocks >= rig->block_count - 1);
}

static void
test_last_block_unreadable(void **state)
{
    struct rig *rig = *state;
    bool damaged;

    fake_disk_set_bad(&rig->world.disk, rig->blocks[rig->block_count - 1].offset_bytes, 4096, true);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
}

/* The same where the header can be read, but not the rest. */
static void
test_last_block_half_unreadable(void **state)
{
    struct rig *rig = *state;
    struct world *world = &rig->world;
    const struct superblock_geometry *geometry = &rig->superblock.geometry;
    struct journal_header header, last = {0};
    bool damaged;

    world_open(world);
    for (uint32_t i = 0; i < 100; i++)
        op_write_new(world, &world->model.chunks[i % world->model.chunk_count]);
    world_drain(world);
    world_kill(world);
    fake_disk_settle(&world->disk);
    for (uint64_t at = 0; at < geometry->ring_bytes; at += UNIT_BYTES)
        if (journal_block_check(world->disk.image + geometry->ring_offset + at,
                                (uint32_t)(geometry->ring_bytes - at), rig->superblock.disk_uuid,
                                &header, NULL) == 0 &&
            header.lsn > last.lsn)
            last = header;
    assert_true(last.units > 1);
    fake_disk_set_bad(&world->disk,
                      geometry->ring_offset +
                          (last.lsn * UNIT_BYTES + UNIT_BYTES) % geometry->ring_bytes,
                      4096, true);
    assert_int_equal(rig_open(rig, &damaged), 0);
    assert_true(damaged);
}

/* A block that was moved, or is another disk's, is none. */
static void
test_foreign_block_behind_the_end(void **state)
{
    struct rig *rig = *state;
    const struct block_seen *last = &rig->blocks[rig->block_count - 1];
    uint8_t bytes[UNIT_BYTES];
    struct journal_header_disk header;

    fake_disk_peek(&rig->world.disk, bytes, sizeof(bytes), last->offset_bytes);
    memcpy(&header, bytes, sizeof(header));
    le64_set(&header.lsn, last->lsn + 1);
    le64_set(&header.mark, last->lsn + 1);
    header.disk_uuid[0] ^= 1;
    memcpy(bytes, &header, sizeof(header));
    le32_store(bytes, crc32c(0, bytes + sizeof(le32), sizeof(header) - sizeof(le32)));
    fake_disk_poke(&rig->world.disk, bytes, sizeof(bytes), last->offset_bytes + UNIT_BYTES);
    world_open(&rig->world);
}

/* --- the index --- */

static void
make_index_current(struct rig *rig)
{
    world_open(&rig->world);
    world_quiet(&rig->world);
    world_stop(&rig->world);
    world_kill(&rig->world);
}

static void
test_empty_index(void **state)
{
    struct rig *rig = *state;
    struct fake_index *index = &rig->world.index;
    bool damaged;

    make_index_current(rig);
    fake_index_fini(index);
    fake_index_init(index, &rig->world.env);
    index->closed = true;
    assert_int_equal(rig_open(rig, &damaged), -DL_E_INDEX_MISMATCH);
}

/*
 * The disk went back, the index did not: an old image under it, of an earlier life, or of an
 * earlier moment of the same one.
 */
static void
check_older_disk(struct rig *rig, bool same_life)
{
    size_t bytes = rig->world.disk.disk.size_bytes;
    uint8_t *image = malloc(bytes);
    bool damaged;

    assert_non_null(image);
    world_open(&rig->world);
    world_quiet(&rig->world);
    memcpy(image, rig->world.disk.image, bytes);
    if (!same_life) {
        world_kill(&rig->world);
        world_open(&rig->world);
    }
    write_one_by_one(&rig->world, 5);
    world_quiet(&rig->world);
    world_kill(&rig->world);
    fake_disk_poke(&rig->world.disk, image, bytes, 0);
    free(image);
    assert_int_equal(rig_open(rig, &damaged), -DL_E_INDEX_MISMATCH);
}

static void
test_older_disk_of_an_earlier_life(void **state)
{
    check_older_disk(*state, false);
}

static void
test_older_disk_of_the_same_life(void **state)
{
    check_older_disk(*state, true);
}

static void
test_index_of_another_disk(void **state)
{
    struct rig *rig = *state;
    struct index_position_disk position;
    const uint8_t *value;
    struct index_batch *batch;
    struct index *index = &rig->world.index.index;
    uint32_t bytes;
    bool damaged;

    make_index_current(rig);
    value = fake_index_peek(&rig->world.index, "P", 1, &bytes);
    assert_non_null(value);
    assert_int_equal(bytes, sizeof(position));
    memcpy(&position, value, sizeof(position));
    position.disk_uuid[5] ^= 0x10;
    position.crc = le32_of(
        crc32c(0, (uint8_t *)&position + sizeof(le32), sizeof(position) - sizeof(le32)));
    fake_index_reopen(&rig->world.index);
    batch = index->ops->batch_create(index);
    index->ops->batch_put(batch, "P", 1, &position, sizeof(position));
    fake_index_apply_now(&rig->world.index, batch);
    rig->world.index.closed = true;
    assert_int_equal(rig_open(rig, &damaged), -DL_E_INDEX_MISMATCH);
}

/*
 * Position, chunk records, fences, bitmap: a flipped bit anywhere is seen when the index is loaded.
 */
static void
test_flipped_bit_in_what_is_loaded_at_open(void **state)
{
    struct rig *rig = *state;
    struct fake_index *index = &rig->world.index;
    uint32_t tried = 0;

    make_index_current(rig);
    for (const char *prefix = "PCFB"; *prefix != '\0'; prefix++) {
        uint8_t key[INDEX_KEY_BYTES_MAX];
        uint32_t key_bytes, value_bytes;
        bool damaged;

        if (!fake_index_key_at(index, prefix, 1, 0, key, &key_bytes))
            continue;
        assert_non_null(fake_index_peek(index, key, key_bytes, &value_bytes));
        for (uint32_t byte = 0; byte < value_bytes; byte += 1 + value_bytes / 37) {
            int result;

            assert_true(fake_index_flip_bit(index, key, key_bytes, byte, 5));
            result = rig_open(rig, &damaged);
            if (result != -DL_E_INDEX_CORRUPT)
                fail_msg("%c, byte %u of %u: %s", *prefix, byte, value_bytes, dl_err_name(result));
            assert_true(fake_index_flip_bit(index, key, key_bytes, byte, 5));
            tried++;
        }
    }
    assert_true(tried > 50);
    world_open(&rig->world);
}

struct read_seen {
    struct store_read read;
    bool done;
    int err;
};

static void
read_seen_on_done(struct store_read *read, int err)
{
    struct read_seen *seen = list_entry(read, struct read_seen, read);

    seen->done = true;
    seen->err = err;
}

static void
read_run(struct rig *rig, struct read_seen *seen, uint32_t offset, uint32_t length, void *buffer)
{
    memset(seen, 0, sizeof(*seen));
    seen->read.key = rig->world.model.chunks[0].key;
    seen->read.offset_sectors = offset;
    seen->read.length_sectors = length;
    seen->read.buffer = buffer;
    seen->read.on_done = read_seen_on_done;
    rig->world.store->ops->read_start(rig->world.store, &seen->read);
    assert_true(fake_env_run(&rig->world.env, &seen->done, 100000));
}

/*
 * A leaf that cannot be read is an error for its range, also after it was written to; the rest of
 * the chunk is there.
 */
static void
test_flipped_bit_in_a_leaf(void **state)
{
    struct rig *rig = *state;
    struct read_seen *seen = calloc(1, sizeof(*seen));
    void *buffer = aligned_alloc(SECTOR_BYTES, 64 * SECTOR_BYTES);
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes, number, value_bytes;
    uint64_t local_id, found_id;

    assert_non_null(seen);
    assert_non_null(buffer);
    make_index_current(rig);
    world_open(&rig->world);
    local_id =
        chunk_table_find(rig->world.store->chunks, &rig->world.model.chunks[0].key)->local_id;
    world_kill(&rig->world);
    for (uint32_t idx = 0;; idx++) {
        assert_true(fake_index_key_at(&rig->world.index, "L", 1, idx, key, &key_bytes));
        assert_int_equal(key_bytes, 13);
        memcpy(&found_id, key + 1, sizeof(found_id));
        if (be64toh(found_id) == local_id)
            break;
    }
    memcpy(&number, key + 9, sizeof(number));
    number = be32toh(number);
    assert_non_null(fake_index_peek(&rig->world.index, key, key_bytes, &value_bytes));
    assert_true(fake_index_flip_bit(&rig->world.index, key, key_bytes, value_bytes / 2, 1));
    {
        bool damaged;

        assert_int_equal(rig_open(rig, &damaged), 0);
    }
    read_run(rig, seen, number * 64, 64, buffer);
    assert_int_equal(seen->err, -DL_E_INDEX_CORRUPT);
    for (uint32_t other = 0; other < 4; other++) {
        if (other == number)
            continue;
        read_run(rig, seen, other * 64, 64, buffer);
        assert_int_equal(seen->err, 0);
    }
    read_run(rig, seen, number * 64 + 1, 1, buffer);
    assert_int_equal(seen->err, -DL_E_INDEX_CORRUPT);
    free(buffer);
    free(seen);
}

/* --- blocks of a damaged leaf --- */

/* The key of some leaf of the first chunk; returns the leaf's number. */
static uint32_t
leaf_key(struct rig *rig, uint8_t *ret_key, uint32_t *ret_key_bytes)
{
    uint64_t local_id =
        chunk_table_find(rig->world.store->chunks, &rig->world.model.chunks[0].key)->local_id;

    for (uint32_t idx = 0;; idx++) {
        uint64_t found_id;
        uint32_t number;

        assert_true(fake_index_key_at(&rig->world.index, "L", 1, idx, ret_key, ret_key_bytes));
        memcpy(&found_id, ret_key + 1, sizeof(found_id));
        memcpy(&number, ret_key + 9, sizeof(number));
        if (be64toh(found_id) == local_id)
            return be32toh(number);
    }
}

static uint64_t
used_blocks(struct rig *rig)
{
    struct store_stats stats;

    rig->world.store->ops->get_stats(rig->world.store, &stats);
    return stats.used_bytes / SECTOR_BYTES;
}

static void
rig_quiet(struct rig *rig)
{
    char *wrong;

    for (int i = 0; i < 120 && !engine_is_quiet(rig->world.engine); i++)
        fake_env_run_for(&rig->world.env, 1000000000);
    assert_true(engine_is_quiet(rig->world.engine));
    wrong = engine_check(rig->world.engine);
    if (wrong != NULL)
        fail_msg("%s", wrong);
}

struct write_seen {
    struct store_write write;
    bool done;
    int err;
};

static void
write_seen_on_done(struct store_write *write, int err)
{
    struct write_seen *seen = list_entry(write, struct write_seen, write);

    seen->done = true;
    seen->err = err;
}

/* Sectors of the first chunk, in a version above all. */
static void
write_over(struct rig *rig, uint32_t offset, uint32_t length, const void *payload)
{
    struct write_seen seen = {.write = {.key = rig->world.model.chunks[0].key,
                                        .config_epoch = 99,
                                        .birth = 1,
                                        .version = (UINT64_C(99) << 40) + offset + 1,
                                        .offset_sectors = offset,
                                        .length_sectors = length,
                                        .payload = payload,
                                        .on_done = write_seen_on_done}};
    uint32_t crcs[64];

    for (uint32_t i = 0; i < length; i++)
        crcs[i] = crc32c(0, (const uint8_t *)payload + (size_t)i * SECTOR_BYTES, SECTOR_BYTES);
    seen.write.crcs = crcs;
    rig->world.store->ops->write_start(rig->world.store, &seen.write);
    assert_true(fake_env_run(&rig->world.env, &seen.done, 100000));
    assert_int_equal(seen.err, 0);
}

/*
 * A leaf with so many blocks is damaged: they are in use, and nobody knows them.  When the leaf has
 * been written to (one sector, or all), they are found and free, the space is exact again, and what
 * all other leaves have is there.  In one life; after a start; with a power cut at any turn of it.
 */
static void
check_blocks_come_back(struct rig *rig, uint32_t written, int64_t cut_turns)
{
    struct read_seen *seen = calloc(1, sizeof(*seen));
    uint8_t *buffer = aligned_alloc(SECTOR_BYTES, 64 * SECTOR_BYTES);
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes, number, value_bytes;
    uint64_t used;
    bool damaged;

    assert_non_null(seen);
    assert_non_null(buffer);
    make_index_current(rig);
    world_open(&rig->world);
    number = leaf_key(rig, key, &key_bytes);
    used = used_blocks(rig);
    read_run(rig, seen, number * 64, 64, buffer);
    assert_int_equal(seen->err, 0);
    assert_true(seen->read.data_sectors > 1);
    used -= seen->read.data_sectors;
    world_kill(&rig->world);
    assert_non_null(fake_index_peek(&rig->world.index, key, key_bytes, &value_bytes));
    assert_true(fake_index_flip_bit(&rig->world.index, key, key_bytes, value_bytes / 2, 1));
    assert_int_equal(rig_open(rig, &damaged), 0);
    memset(buffer, 0x17, 64 * SECTOR_BYTES);
    write_over(rig, number * 64, written, buffer);
    if (cut_turns >= 0) {
        fake_env_run_for(&rig->world.env, 5000000000);
        for (int64_t i = 0; i < cut_turns; i++)
            (void)fake_env_turn(&rig->world.env);
        world_power_cut(&rig->world);
        assert_int_equal(rig_open(rig, &damaged), 0);
        /* Whoever looks at it finds it damaged still, if the index had not got it yet. */
        read_run(rig, seen, number * 64, 1, buffer);
        write_over(rig, number * 64 + 1, 1, buffer);
        written = written > 2 ? written : 2;
    }
    rig_quiet(rig);
    assert_int_equal(fake_index_count(&rig->world.index, "Z", 1), 0);
    assert_int_equal(used_blocks(rig), used + written);
    assert_true(cut_turns >= 0 || engine_counters(rig->world.engine)->blocks_reclaimed > 0);
    for (uint32_t leaf = 0; leaf < 4; leaf++) {
        if (leaf == number)
            continue;
        read_run(rig, seen, leaf * 64, 64, buffer);
        assert_int_equal(seen->err, 0);
        for (uint32_t i = 0; i < 64; i++)
            if (seen->read.kinds[i] == SECTOR_DATA)
                assert_int_equal(seen->read.crcs[i],
                                 crc32c(0, buffer + (size_t)i * SECTOR_BYTES, SECTOR_BYTES));
    }
    free(buffer);
    free(seen);
}

/*
 * Two leaves are damaged, one is written to.  The other's value leaves the index, too, before its
 * blocks are free: it could have been damaged on the way only, and claim them at the next start.
 */
static void
test_blocks_of_two_damaged_leaves(void **state)
{
    struct rig *rig = *state;
    struct read_seen *seen = calloc(1, sizeof(*seen));
    uint8_t *buffer = aligned_alloc(SECTOR_BYTES, 64 * SECTOR_BYTES);
    uint8_t keys[2][INDEX_KEY_BYTES_MAX], before[4096];
    uint32_t key_bytes, number, value_bytes, after_bytes;
    const uint8_t *value;
    uint64_t used;
    bool damaged;

    assert_non_null(seen);
    assert_non_null(buffer);
    make_index_current(rig);
    world_open(&rig->world);
    number = leaf_key(rig, keys[0], &key_bytes);
    memcpy(keys[1], keys[0], sizeof(keys[0]));
    keys[1][key_bytes - 1]++;
    used = used_blocks(rig);
    read_run(rig, seen, number * 64, 128, aligned_alloc(SECTOR_BYTES, 128 * SECTOR_BYTES));
    used -= seen->read.data_sectors;
    free(seen->read.buffer);
    world_kill(&rig->world);
    for (uint32_t i = 0; i < 2; i++) {
        assert_non_null(fake_index_peek(&rig->world.index, keys[i], key_bytes, &value_bytes));
        assert_true(fake_index_flip_bit(&rig->world.index, keys[i], key_bytes, 30, 1));
    }
    value = fake_index_peek(&rig->world.index, keys[1], key_bytes, &value_bytes);
    assert_true(value_bytes <= sizeof(before));
    memcpy(before, value, value_bytes);
    assert_int_equal(rig_open(rig, &damaged), 0);
    memset(buffer, 0x17, 64 * SECTOR_BYTES);
    write_over(rig, number * 64, 1, buffer);
    rig_quiet(rig);
    assert_int_equal(fake_index_count(&rig->world.index, "Z", 1), 0);
    assert_int_equal(used_blocks(rig), used + 1);
    value = fake_index_peek(&rig->world.index, keys[1], key_bytes, &after_bytes);
    assert_false(after_bytes == value_bytes && memcmp(value, before, value_bytes) == 0);
    world_power_cut(&rig->world);
    assert_int_equal(rig_open(rig, &damaged), 0);
    read_run(rig, seen, number * 64 + 64, 1, buffer);
    assert_int_equal(seen->err, -DL_E_INDEX_CORRUPT);
    rig_quiet(rig);
    assert_int_equal(used_blocks(rig), used + 1);
    free(buffer);
    free(seen);
}

static void
test_blocks_of_a_damaged_leaf(void **state)
{
    check_blocks_come_back(*state, 64, -1);
}

static void
test_blocks_of_a_leaf_that_stays_damaged(void **state)
{
    check_blocks_come_back(*state, 1, -1);
}

static void
test_blocks_of_a_damaged_leaf_with_cuts(void **state)
{
    (void)rig_teardown(state);
    for (int64_t turns = 0; turns < 60; turns++) {
        (void)rig_setup(state);
        check_blocks_come_back(*state, 1 + (uint32_t)turns % 64, turns);
        (void)rig_teardown(state);
    }
    (void)rig_setup(state);
}

/* The engine gives what the disk gave; the CRC beside it tells. */
static void
test_flipped_bit_in_data(void **state)
{
    struct rig *rig = *state;
    struct read_seen *seen = calloc(1, sizeof(*seen));
    uint8_t *buffer = aligned_alloc(SECTOR_BYTES, 256 * SECTOR_BYTES);
    uint32_t wrong = 0;

    assert_non_null(seen);
    assert_non_null(buffer);
    make_index_current(rig);
    for (uint64_t at = rig->world.data_offset; at < rig->world.data_end; at += SECTOR_BYTES)
        flip(rig, at + 7);
    {
        bool damaged;

        assert_int_equal(rig_open(rig, &damaged), 0);
    }
    read_run(rig, seen, 0, 256, buffer);
    assert_int_equal(seen->err, 0);
    assert_true(seen->read.data_sectors > 0);
    for (uint32_t i = 0; i < 256; i++)
        if (seen->read.kinds[i] == SECTOR_DATA)
            wrong += seen->read.crcs[i] !=
                     crc32c(0, buffer + (size_t)i * SECTOR_BYTES, SECTOR_BYTES);
    assert_int_equal(wrong, seen->read.data_sectors);
    free(buffer);
    free(seen);
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

UNIT_MAIN(RIG_TEST(test_first_superblock_copy_damaged),
          RIG_TEST(test_second_superblock_copy_damaged), RIG_TEST(test_superblock_copy_unreadable),
          RIG_TEST(test_both_superblock_copies_damaged),
          RIG_TEST(test_both_superblock_copies_unreadable), RIG_TEST(test_block_below_the_cut),
          RIG_TEST(test_unreadable_block_below_the_cut), RIG_TEST(test_blocks_below_the_position),
          RIG_TEST(test_block_between_cut_and_mark), RIG_TEST(test_block_before_the_last),
          RIG_TEST(test_damage_is_remembered), RIG_TEST(test_unreadable_block_above_the_cut),
          RIG_TEST(test_last_block), RIG_TEST(test_last_block_unreadable),
          RIG_TEST(test_last_block_half_unreadable), RIG_TEST(test_older_disk_of_an_earlier_life),
          RIG_TEST(test_older_disk_of_the_same_life), RIG_TEST(test_foreign_block_behind_the_end),
          RIG_TEST(test_empty_index), RIG_TEST(test_index_of_another_disk),
          RIG_TEST(test_flipped_bit_in_what_is_loaded_at_open),
          RIG_TEST(test_flipped_bit_in_a_leaf), RIG_TEST(test_blocks_of_a_damaged_leaf),
          RIG_TEST(test_blocks_of_a_leaf_that_stays_damaged),
          RIG_TEST(test_blocks_of_two_damaged_leaves),
          RIG_TEST(test_blocks_of_a_damaged_leaf_with_cuts), RIG_TEST(test_flipped_bit_in_data))
