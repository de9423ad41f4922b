/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk of each released format is understood for good.  format-1.txt, made by make_golden, holds:
 *
 *     chunk 7/0/1 (incarnation 3, config epoch 8): sectors 0-2 v1, 1 v2, 10-14 v3 zero, 130-149 v4;
 *     S = v1; and, only in the
 *                 journal: 2 v5, 131 v6 zero, 12 v7, S = v2, the config epoch
 *     chunk 7/1/1 written, and deleted
 *     chunk 9/0/1: sectors 63 and 64 v1, in two leaves; volume 9 is fenced below lease epoch 5
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/engine/engine.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "tests/golden/golden.h"

struct rig {
    struct golden golden;
    struct engine *engine;
    struct chunk_store *store;
};

static int
rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct dl_error err;

    assert_non_null(rig);
    golden_load(&rig->golden, DLBLK_GOLDEN_DIRECTORY "/format-1.txt");
    if (engine_open(&rig->engine, &rig->golden.env.env, &rig->golden.disk.disk,
                    &rig->golden.index.index, NULL, &err) != 0)
        fail_msg("%s", err.text);
    rig->store = engine_store(rig->engine);
    *state = rig;
    return 0;
}

static int
rig_teardown(void **state)
{
    struct rig *rig = *state;

    engine_destroy(rig->engine);
    fake_env_crash(&rig->golden.env);
    golden_fini(&rig->golden);
    free(rig);
    return 0;
}

static void
test_identity(void **state)
{
    struct rig *rig = *state;
    struct engine_identity identity;
    uint8_t disk_uuid[16], cluster_id[16];

    memset(disk_uuid, 0xd1, sizeof(disk_uuid));
    memset(cluster_id, 0xc1, sizeof(cluster_id));
    engine_identity(rig->engine, &identity);
    assert_memory_equal(identity.disk_uuid, disk_uuid, sizeof(disk_uuid));
    assert_memory_equal(identity.cluster_id, cluster_id, sizeof(cluster_id));
    assert_false(identity.was_clean);
    assert_false(identity.damaged);
    assert_null(engine_check(rig->engine));
}

static void
test_chunk_table(void **state)
{
    static const struct chunk_key first = {7, 0, 1}, deleted = {7, 1, 1}, last = {9, 0, 1};
    static const struct pending_write expected[] = {
        {3, 10, 5, 0}, {4, 130, 20, 0}, {5, 2, 1, 0}, {6, 131, 1, 0}, {7, 12, 1, 0}};
    struct rig *rig = *state;
    const struct chunk_table *table = rig->store->chunks;
    const struct chunk *chunk = chunk_table_find(table, &first);

    assert_non_null(chunk);
    assert_int_equal(chunk->incarnation, 3);
    assert_int_equal(chunk->config_epoch, 8);
    assert_int_equal(chunk->stable_version, UINT64_C(4) << 40 | 2);
    assert_int_equal(chunk->pending_count, 5);
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(chunk->pending[i].version, UINT64_C(4) << 40 | expected[i].version);
        assert_int_equal(chunk->pending[i].offset_sectors, expected[i].offset_sectors);
        assert_int_equal(chunk->pending[i].length_sectors, expected[i].length_sectors);
    }
    assert_null(chunk_table_find(table, &deleted));
    assert_non_null(chunk_table_find(table, &last));
    assert_int_equal(chunk_table_fence(table, 7), 0);
    assert_int_equal(chunk_table_fence(table, 9), 5);
}

struct read_seen {
    struct store_read read;
    bool done;
    int err;
};

static void
read_on_done(struct store_read *read, int err)
{
    struct read_seen *seen = list_entry(read, struct read_seen, read);

    seen->done = true;
    seen->err = err;
}

/* versions[i]: of sector i; 0: hole; negative: zero. */
static void
check_sectors(struct rig *rig, uint64_t volume, const int *versions, uint32_t count)
{
    struct read_seen *seen = calloc(1, sizeof(*seen));
    uint8_t *buffer = aligned_alloc(SECTOR_BYTES, (size_t)count * SECTOR_BYTES);
    uint8_t expected[SECTOR_BYTES];

    assert_non_null(seen);
    assert_non_null(buffer);
    seen->read.key = (struct chunk_key){volume, 0, 1};
    seen->read.length_sectors = count;
    seen->read.buffer = buffer;
    seen->read.on_done = read_on_done;
    rig->store->ops->read_start(rig->store, &seen->read);
    rig->store->ops->turn_end(rig->store);
    assert_true(fake_env_run(&rig->golden.env, &seen->done, 100000));
    assert_int_equal(seen->err, 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(seen->read.kinds[i], versions[i] == 0  ? SECTOR_HOLE
                                              : versions[i] < 0 ? SECTOR_ZERO
                                                                : SECTOR_DATA);
        memset(expected, 0, sizeof(expected));
        if (versions[i] > 0) {
            golden_fill(volume, 0, i, (uint64_t)versions[i], expected);
            assert_int_equal(seen->read.crcs[i], crc32c(0, expected, sizeof(expected)));
        }
        assert_memory_equal(buffer + (size_t)i * SECTOR_BYTES, expected, SECTOR_BYTES);
    }
    free(buffer);
    free(seen);
}

static void
test_content(void **state)
{
    struct rig *rig = *state;
    int first[200] = {1, 2, 5}, last[100] = {0};

    for (uint32_t i = 10; i < 15; i++)
        first[i] = -3;
    first[12] = 7;
    for (uint32_t i = 130; i < 150; i++)
        first[i] = 4;
    first[131] = -6;
    last[63] = 1;
    last[64] = 1;
    check_sectors(rig, 7, first, 200);
    check_sectors(rig, 9, last, 100);
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

UNIT_MAIN(RIG_TEST(test_identity), RIG_TEST(test_chunk_table), RIG_TEST(test_content))
