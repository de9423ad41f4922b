/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine promises through chunk_store.h, and what it costs in I/Os: on a fake disk, a fake
 * index and a virtual clock.  That it survives crashes is shown by tests/crash.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "common/crc32c.h"
#include "tests/unit/lib/fake_disk.h"
#include "tests/unit/lib/fake_env.h"
#include "tests/unit/lib/fake_index.h"

#define SLABS      3u
#define UNITS      256u
#define DISK_BYTES ((uint64_t)SLABS * SLAB_BYTES + UNITS * UNIT_BYTES + SLAB_BYTES)
#define TURNS_MAX  1000000u
#define WRITES_MAX 64u
#define VERSION(n) ((UINT64_C(1) << 40) + (n))

static const struct chunk_key key = {.volume = 7, .segment = 1, .slot = 2};

struct rig {
    struct fake_env env;
    struct fake_disk disk;
    struct fake_index index;
    struct engine *engine;
    struct chunk_store *store;
    uint64_t data_offset;
    uint32_t done_count; /* of all requests: the order in which they end */
    struct engine_options options;
};

struct test_write {
    struct store_write write;
    struct rig *rig;
    bool done;
    int err;
    uint32_t done_order;
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    uint8_t *payload;
};

struct test_change {
    struct store_change change;
    struct rig *rig;
    bool done;
    int err;
    uint32_t done_order;
};

/* --- the rig --- */

static void
hook_turn_end(void *context)
{
    struct rig *rig = context;

    rig->store->ops->turn_end(rig->store);
}

static void
rig_open(struct rig *rig)
{
    struct dl_error err = {0};
    int result = engine_open(&rig->engine, &rig->env.env, &rig->disk.disk, &rig->index.index,
                             &rig->options, &err);

    if (result != 0)
        fail_msg("open: %s", err.text);
    rig->store = engine_store(rig->engine);
    fake_env_add_turn_end(&rig->env, hook_turn_end, rig);
}

static void
rig_init(struct rig *rig, uint64_t seed)
{
    struct engine_format format = {.journal_bytes = UNITS * UNIT_BYTES,
                                   .metadata_bytes = UNIT_BYTES,
                                   .reserve_bytes = 20 * BLOCK_BYTES};
    struct superblock superblock;

    memset(rig, 0, sizeof(*rig));
    memset(format.disk_uuid, 0xd1, sizeof(format.disk_uuid));
    fake_env_init(&rig->env, seed);
    fake_disk_init(&rig->disk, &rig->env, DISK_BYTES, false);
    fake_index_init(&rig->index, &rig->env);
    assert_int_equal(engine_format_now(&rig->disk.disk, &format, NULL), 0);
    assert_int_equal(superblock_load_now(&rig->disk.disk, &superblock, NULL), 0);
    rig->data_offset = superblock.geometry.data_offset;
    rig_open(rig);
}

static void
note_stop(void *context, int err)
{
    *(int *)context = err;
}

static int
rig_stop(struct rig *rig)
{
    int result = 1;

    rig->store->ops->stop(rig->store, note_stop, &result);
    for (uint32_t i = 0; i < TURNS_MAX && result == 1; i++)
        assert_true(fake_env_turn(&rig->env));
    fake_env_remove_turn_end(&rig->env, rig);
    engine_destroy(rig->engine);
    return result;
}

static void
rig_restart(struct rig *rig)
{
    assert_int_equal(rig_stop(rig), 0);
    rig_open(rig);
}

static void
rig_quiet(struct rig *rig)
{
    char *wrong;

    for (int i = 0; i < 60 && !engine_is_quiet(rig->engine); i++)
        fake_env_run_for(&rig->env, UINT64_C(1000000000));
    assert_true(engine_is_quiet(rig->engine));
    wrong = engine_check(rig->engine);
    if (wrong != NULL)
        fail_msg("%s", wrong);
}

static void
rig_fini(struct rig *rig)
{
    (void)rig_stop(rig);
    assert_int_equal(rig->disk.violations, 0);
    fake_index_fini(&rig->index);
    fake_disk_fini(&rig->disk);
    fake_env_fini(&rig->env);
}

static uint64_t
used_blocks(struct rig *rig)
{
    struct store_stats stats;

    rig->store->ops->get_stats(rig->store, &stats);
    return stats.used_bytes / BLOCK_BYTES;
}

/* --- requests --- */

static void
write_on_done(struct store_write *store_write, int err)
{
    struct test_write *write = (struct test_write *)store_write;

    assert_false(write->done);
    write->done = true;
    write->err = err;
    write->done_order = ++write->rig->done_count;
}

static struct test_write *
write_make(struct rig *rig, uint64_t version, uint32_t offset, uint32_t length)
{
    struct test_write *write = calloc(1, sizeof(*write));

    write->rig = rig;
    write->payload = aligned_alloc(SECTOR_BYTES, (size_t)length * SECTOR_BYTES);
    for (uint32_t i = 0; i < length; i++) {
        memset(write->payload + (size_t)i * SECTOR_BYTES, (int)(version + i), SECTOR_BYTES);
        if (i < STORE_IO_SECTORS_MAX)
            write->crcs[i] = crc32c(0, write->payload + (size_t)i * SECTOR_BYTES, SECTOR_BYTES);
    }
    write->write = (struct store_write){.key = key,
                                        .config_epoch = 1,
                                        .birth = 1,
                                        .version = version,
                                        .offset_sectors = offset,
                                        .length_sectors = length,
                                        .create = true,
                                        .payload = write->payload,
                                        .crcs = write->crcs,
                                        .on_done = write_on_done};
    return write;
}

static void
write_start(struct test_write *write)
{
    write->rig->store->ops->write_start(write->rig->store, &write->write);
    assert_false(write->done);
}

/* Let it end; returns how, and frees it. */
static int
write_end(struct test_write *write)
{
    int err;

    assert_true(fake_env_run(&write->rig->env, &write->done, TURNS_MAX));
    err = write->err;
    free(write->payload);
    free(write);
    return err;
}

static int
write_now(struct rig *rig, uint64_t version, uint32_t offset, uint32_t length)
{
    struct test_write *write = write_make(rig, version, offset, length);

    write_start(write);
    return write_end(write);
}

static int
zero_now(struct rig *rig, uint64_t version, uint32_t offset, uint32_t length)
{
    struct test_write *write = write_make(rig, version, offset, 1);

    write->write.zero = true;
    write->write.payload = NULL;
    write->write.crcs = NULL;
    write->write.length_sectors = length;
    write_start(write);
    return write_end(write);
}

static void
change_on_done(struct store_change *store_change, int err)
{
    struct test_change *change = (struct test_change *)store_change;

    assert_false(change->done);
    change->done = true;
    change->err = err;
    change->done_order = ++change->rig->done_count;
}

static void
change_start(struct rig *rig, struct test_change *change, struct store_change store_change)
{
    memset(change, 0, sizeof(*change));
    change->change = store_change;
    change->change.on_done = change_on_done;
    change->rig = rig;
    rig->store->ops->change_start(rig->store, &change->change);
    assert_false(change->done);
}

static int
change_now(struct rig *rig, struct store_change store_change)
{
    struct test_change change;

    change_start(rig, &change, store_change);
    assert_true(fake_env_run(&rig->env, &change.done, TURNS_MAX));
    return change.err;
}

struct test_read {
    struct store_read read;
    bool done;
    int err;
    uint8_t *buffer;
};

static void
read_on_done(struct store_read *store_read, int err)
{
    struct test_read *read = (struct test_read *)store_read;

    read->done = true;
    read->err = err;
}

static struct test_read *
read_make(struct rig *rig, uint32_t offset, uint32_t length)
{
    struct test_read *read = calloc(1, sizeof(*read));

    read->buffer = aligned_alloc(SECTOR_BYTES, (size_t)STORE_IO_SECTORS_MAX * SECTOR_BYTES);
    memset(read->buffer, 0x5a, (size_t)STORE_IO_SECTORS_MAX * SECTOR_BYTES);
    read->read = (struct store_read){.key = key,
                                     .offset_sectors = offset,
                                     .length_sectors = length,
                                     .buffer = read->buffer,
                                     .on_done = read_on_done};
    rig->store->ops->read_start(rig->store, &read->read);
    assert_false(read->done);
    return read;
}

static struct test_read *
read_now(struct rig *rig, uint32_t offset, uint32_t length)
{
    struct test_read *read = read_make(rig, offset, length);

    assert_true(fake_env_run(&rig->env, &read->done, TURNS_MAX));
    return read;
}

static void
read_free(struct test_read *read)
{
    free(read->buffer);
    free(read);
}

/* Sector `offset` has what version wrote to it from first_offset on; version 0: nothing. */
static void
expect_sector(struct rig *rig, uint32_t offset, uint64_t version, uint32_t first_offset)
{
    struct test_read *read = read_now(rig, offset, 1);
    uint8_t expected[SECTOR_BYTES];

    memset(expected, version == 0 ? 0 : (int)(version + offset - first_offset), sizeof(expected));
    assert_int_equal(read->err, 0);
    assert_int_equal(read->read.kinds[0] == SECTOR_DATA, version != 0);
    assert_memory_equal(read->buffer, expected, sizeof(expected));
    if (version != 0)
        assert_int_equal(read->read.crcs[0], crc32c(0, expected, sizeof(expected)));
    read_free(read);
}

/* --- data --- */

static void
test_what_is_written_is_read(void **state)
{
    struct test_read *read;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 10, 3), 0);
    assert_int_equal(zero_now(&rig, VERSION(2), 20, 2), 0);
    read = read_now(&rig, 8, 16);
    assert_int_equal(read->err, 0);
    assert_int_equal(read->read.data_sectors, 3);
    for (uint32_t i = 0; i < 16; i++) {
        uint32_t sector = 8 + i;
        enum sector_kind kind = sector >= 10 && sector < 13   ? SECTOR_DATA
                                : sector >= 20 && sector < 22 ? SECTOR_ZERO
                                                              : SECTOR_HOLE;

        assert_int_equal(read->read.kinds[i], kind);
        assert_int_equal(read->buffer[i * SECTOR_BYTES],
                         kind == SECTOR_DATA ? (uint8_t)(VERSION(1) + sector - 10) : 0);
    }
    read_free(read);
    rig_fini(&rig);
}

static void
test_holes_cost_no_disk_read(void **state)
{
    struct rig rig;
    uint64_t reads;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    reads = rig.disk.ios[DISK_READ];
    expect_sector(&rig, 5, 0, 0);
    expect_sector(&rig, 5000, 0, 0);
    assert_int_equal(rig.disk.ios[DISK_READ], reads);
    rig_fini(&rig);
}

/* Sectors written apart lie in runs of their own: one disk read per run. */
static void
test_one_disk_read_per_run(void **state)
{
    struct test_read *read;
    struct rig rig;
    uint64_t reads;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 60, 8), 0); /* over the border of two leaves */
    assert_int_equal(write_now(&rig, VERSION(2), 68, 2), 0); /* next on the disk as well */
    reads = rig.disk.ios[DISK_READ];
    read_free(read_now(&rig, 60, 10));
    assert_int_equal(rig.disk.ios[DISK_READ], reads + 1);
    assert_int_equal(write_now(&rig, VERSION(3), 63, 1), 0);
    reads = rig.disk.ios[DISK_READ];
    read = read_now(&rig, 58, 14);
    assert_int_equal(rig.disk.ios[DISK_READ], reads + 3);
    assert_int_equal(read->read.data_sectors, 10);
    read_free(read);
    expect_sector(&rig, 63, VERSION(3), 63);
    rig_fini(&rig);
}

/*
 * Small writes of one turn: one data write, one journal block, one flush; acknowledged in their
 * order.
 */
static void
test_group_commit(void **state)
{
    struct test_write *writes[32];
    struct rig rig;
    uint64_t ios, bytes, flushes;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    ios = rig.disk.ios[DISK_WRITE];
    bytes = rig.disk.bytes[DISK_WRITE];
    flushes = rig.disk.ios[DISK_FLUSH];
    for (uint32_t i = 0; i < 32; i++) {
        writes[i] = write_make(&rig, VERSION(2 + i), 100 + i * 70, 1);
        write_start(writes[i]);
    }
    for (uint32_t i = 0; i < 32; i++) {
        assert_true(fake_env_run(&rig.env, &writes[i]->done, TURNS_MAX));
        assert_int_equal(writes[i]->done_order, 2 + i);
        assert_int_equal(write_end(writes[i]), 0);
    }
    assert_int_equal(rig.disk.ios[DISK_WRITE] - ios, 2);
    assert_int_equal(rig.disk.bytes[DISK_WRITE] - bytes, 33 * BLOCK_BYTES);
    assert_int_equal(rig.disk.ios[DISK_FLUSH] - flushes, 1);
    for (uint32_t i = 0; i < 32; i++)
        expect_sector(&rig, 100 + i * 70, VERSION(2 + i), 100 + i * 70);
    rig_fini(&rig);
}

/* A write through: no flush at all. */
static void
test_write_through_needs_no_flush(void **state)
{
    struct rig rig;
    uint64_t flushes;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(rig_stop(&rig), 0);
    fake_disk_settle(&rig.disk);
    rig.disk.disk.write_through = true;
    rig_open(&rig);
    flushes = rig.disk.ios[DISK_FLUSH];
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(write_now(&rig, VERSION(1 + i), i, 1), 0);
    assert_int_equal(rig.disk.ios[DISK_FLUSH], flushes);
    rig_fini(&rig);
}

static void
test_versions(void **state)
{
    struct rig rig;
    uint64_t bytes;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(5), 0, 4), 0);
    /* An older one that comes late fills only what is not newer. */
    assert_int_equal(write_now(&rig, VERSION(4), 2, 4), 0);
    expect_sector(&rig, 3, VERSION(5), 0);
    expect_sector(&rig, 4, VERSION(4), 2);
    /* Both are durable, and sent again: no I/O. */
    bytes = rig.disk.bytes[DISK_WRITE];
    assert_int_equal(write_now(&rig, VERSION(4), 2, 4), 0);
    assert_int_equal(write_now(&rig, VERSION(5), 0, 4), 0);
    assert_int_equal(rig.disk.bytes[DISK_WRITE], bytes);
    assert_int_equal(engine_counters(rig.engine)->writes_duplicate, 2);
    rig_quiet(&rig);
    assert_int_equal(used_blocks(&rig), 6);
    rig_fini(&rig);
}

/* The second of two equal versions waits for the first, and writes nothing itself. */
static void
test_version_in_flight(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct test_write *first, *second;
        struct store_stats stats;
        struct rig rig;

        rig_init(&rig, seed);
        first = write_make(&rig, VERSION(1), 0, 1 + (uint32_t)(seed % 2) * 40);
        second = write_make(&rig, VERSION(1), 0, 1 + (uint32_t)(seed % 2) * 40);
        write_start(first);
        second->write.retry = true;
        write_start(second);
        assert_true(fake_env_run(&rig.env, &second->done, TURNS_MAX));
        assert_true(first->done && first->done_order < second->done_order);
        rig.store->ops->get_stats(rig.store, &stats);
        assert_int_equal(stats.device_bytes_data, first->write.length_sectors * BLOCK_BYTES);
        assert_int_equal(write_end(first), 0);
        assert_int_equal(write_end(second), 0);
        rig_fini(&rig);
    }
}

/* The same where the first one waits for a leaf, because on a full disk only overwrites go on. */
static void
test_version_that_waits_for_a_leaf(void **state)
{
    struct test_write *first, *second;
    struct store_stats stats;
    struct rig rig;
    uint32_t filled = 0;

    (void)state;
    rig_init(&rig, 1);
    while (write_now(&rig, VERSION(1 + filled), filled * 50, 50) == 0)
        filled++;
    rig_restart(&rig);
    first = write_make(&rig, VERSION(1000), 0, 50);
    second = write_make(&rig, VERSION(1000), 0, 50);
    write_start(first);
    write_start(second);
    assert_int_equal(engine_counters(rig.engine)->writes_duplicate, 1);
    assert_true(fake_env_run(&rig.env, &second->done, TURNS_MAX));
    assert_int_equal(engine_counters(rig.engine)->reserve_writes, 1);
    rig.store->ops->get_stats(rig.store, &stats);
    assert_int_equal(stats.device_bytes_data, 50 * BLOCK_BYTES);
    assert_int_equal(write_end(first), 0);
    assert_int_equal(write_end(second), 0);
    rig_fini(&rig);
}

/* --- what is remembered --- */

static void
test_restart_keeps_everything(void **state)
{
    const struct chunk *chunk;
    struct engine_identity before, after;
    struct rig rig;

    (void)state;
    rig_init(&rig, 3);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 200), 0);
    assert_int_equal(write_now(&rig, VERSION(2), 100, 1), 0);
    assert_int_equal(zero_now(&rig, VERSION(3), 150, 20), 0);
    assert_int_equal(change_now(&rig, (struct store_change){.kind = STORE_STABLE,
                                                            .key = key,
                                                            .stable_version = VERSION(1)}),
                     0);
    assert_int_equal(
        change_now(&rig,
                   (struct store_change){.kind = STORE_IN_SYNC, .key = key, .config_epoch = 9}),
        0);
    assert_int_equal(change_now(&rig, (struct store_change){.kind = STORE_FENCE,
                                                            .key = {.volume = key.volume},
                                                            .lease_epoch = 4}),
                     0);
    engine_identity(rig.engine, &before);
    rig_restart(&rig);
    engine_identity(rig.engine, &after);
    assert_true(after.was_clean);
    assert_int_equal(after.incarnation, before.incarnation + 1);
    assert_int_equal(engine_counters(rig.engine)->replayed_blocks, 0);
    chunk = chunk_table_find(rig.store->chunks, &key);
    assert_non_null(chunk);
    assert_int_equal(chunk->incarnation, 1);
    assert_int_equal(chunk->config_epoch, 9);
    assert_int_equal(chunk->stable_version, VERSION(1));
    assert_int_equal(chunk->pending_count, 2);
    assert_int_equal(chunk->pending[0].version, VERSION(2));
    assert_int_equal(chunk->pending[1].offset_sectors, 150);
    assert_int_equal(chunk_table_fence(rig.store->chunks, key.volume), 4);
    expect_sector(&rig, 99, VERSION(1), 0);
    expect_sector(&rig, 100, VERSION(2), 100);
    expect_sector(&rig, 169, 0, 0);
    expect_sector(&rig, 170, VERSION(1), 0);
    rig_quiet(&rig);
    assert_int_equal(used_blocks(&rig), 180);
    rig_fini(&rig);
}

/* A stable version that comes with a write that is here already: it has no record of its own. */
static void
hear_now(struct rig *rig, uint64_t duplicate, uint64_t stable_version)
{
    struct test_write *write = write_make(rig, duplicate, 0, 1);

    write->write.stable_version = stable_version;
    write_start(write);
    assert_int_equal(write_end(write), 0);
}

/* It costs no I/O, and is durable after some idle seconds. */
static void
test_stable_of_a_duplicate(void **state)
{
    const struct chunk *chunk;
    struct rig rig;
    uint64_t ios;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    rig_quiet(&rig);
    ios = rig.disk.ios[DISK_WRITE];
    hear_now(&rig, VERSION(1), VERSION(1));
    rig_quiet(&rig);
    assert_int_equal(rig.disk.ios[DISK_WRITE], ios);
    /* Not a stop, which would write it in any case. */
    fake_env_remove_turn_end(&rig.env, &rig);
    engine_destroy(rig.engine);
    fake_env_crash(&rig.env);
    fake_disk_crash(&rig.disk);
    rig_open(&rig);
    chunk = chunk_table_find(rig.store->chunks, &key);
    assert_int_equal(chunk->stable_version, VERSION(1));
    assert_int_equal(chunk->pending_count, 0);
    rig_fini(&rig);
}

/* The process dies and the machine loses power; what the index never flushed is lost. */
static void
rig_power_cut(struct rig *rig)
{
    fake_env_remove_turn_end(&rig->env, rig);
    engine_destroy(rig->engine);
    fake_env_crash(&rig->env);
    fake_disk_crash(&rig->disk);
    fake_index_crash(&rig->index);
    fake_index_reopen(&rig->index);
    rig_open(rig);
}

/*
 * A quiet engine has nothing to lose: also a stable version that came last, with nothing else to
 * write back, is in the index for good.
 */
static void
test_last_stable_is_flushed(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
        assert_int_equal(write_now(&rig, VERSION(2), 0, 1), 0);
        rig_quiet(&rig);
        for (uint64_t version = 1; version <= 2; version++) {
            hear_now(&rig, VERSION(1), VERSION(version));
            rig_quiet(&rig);
            rig_power_cut(&rig);
            assert_int_equal(chunk_table_find(rig.store->chunks, &key)->stable_version,
                             VERSION(version));
            rig_quiet(&rig);
        }
        rig_fini(&rig);
    }
}

/* An idle engine writes its mark and goes to sleep: no timer is left. */
static void
test_idle_engine_sleeps(void **state)
{
    struct rig rig;
    uint64_t fired, blocks;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    rig_quiet(&rig);
    fake_env_run_for(&rig.env, UINT64_C(60000000000));
    fired = rig.env.timers_fired;
    blocks = rig.disk.ios[DISK_WRITE];
    fake_env_run_for(&rig.env, UINT64_C(3600000000000));
    assert_int_equal(rig.env.timers_fired, fired);
    assert_int_equal(rig.disk.ios[DISK_WRITE], blocks);
    rig_fini(&rig);
}

/* --- fences --- */

/* A fence is done after the large write that was accepted before it, however the disk works. */
static void
test_fence_waits_for_large_writes(void **state)
{
    uint32_t overtaken = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct store_change what = {.kind = STORE_FENCE, .key = key, .lease_epoch = 2};
        struct test_write *large, *small;
        struct test_change change;
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
        large = write_make(&rig, VERSION(2), 0, 200);
        write_start(large);
        change_start(&rig, &change, what);
        small = write_make(&rig, VERSION(3), 300, 1);
        write_start(small);
        assert_int_equal(chunk_table_fence(rig.store->chunks, key.volume), 2);
        assert_true(fake_env_run(&rig.env, &change.done, TURNS_MAX));
        assert_true(large->done);
        assert_true(large->done_order < change.done_order);
        assert_true(fake_env_run(&rig.env, &small->done, TURNS_MAX));
        overtaken += small->done_order < large->done_order;
        assert_int_equal(write_end(large), 0);
        assert_int_equal(write_end(small), 0);
        rig_fini(&rig);
    }
    assert_true(overtaken > 0);
}

/* --- space --- */

static void
test_zeroes_free_space(void **state)
{
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 256), 0);
    assert_int_equal(used_blocks(&rig), 256);
    assert_int_equal(zero_now(&rig, VERSION(2), 10, 16000), 0);
    rig_quiet(&rig);
    assert_int_equal(used_blocks(&rig), 10);
    rig_fini(&rig);
}

static int
stable_now(struct rig *rig, uint64_t version)
{
    return change_now(
        rig, (struct store_change){.kind = STORE_STABLE, .key = key, .stable_version = version});
}

static int
forget_now(struct rig *rig, uint64_t version)
{
    return change_now(
        rig, (struct store_change){.kind = STORE_FORGET, .key = key, .stable_version = version});
}

static uint32_t
stored_leaves(const struct rig *rig)
{
    return fake_index_count(&rig->index, "L", 1);
}

static uint8_t
kind_of(struct rig *rig, uint32_t sector)
{
    struct test_read *read = read_now(rig, sector, 1);
    uint8_t kind = read->read.kinds[0];

    assert_int_equal(read->err, 0);
    read_free(read);
    return kind;
}

/*
 * Zeroes that no slot needs any more: 100 leaves of which one has data too.  They become holes, and
 * 99 leaves leave the index; what is written later is there, also after a power cut.
 */
static void
test_zeroes_are_forgotten(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 200), 0);
        assert_int_equal(zero_now(&rig, VERSION(2), 0, 6400), 0);
        assert_int_equal(write_now(&rig, VERSION(3), 70, 1), 0);
        assert_int_equal(stable_now(&rig, VERSION(3)), 0);
        if (seed % 2 == 0)
            rig_quiet(&rig);
        if (seed % 2 == 0)
            assert_int_equal(stored_leaves(&rig), 100);
        assert_int_equal(forget_now(&rig, VERSION(3)), 0);
        rig_quiet(&rig);
        assert_int_equal(stored_leaves(&rig), 1);
        assert_int_equal(used_blocks(&rig), 1);
        assert_int_equal(kind_of(&rig, 0), SECTOR_HOLE);
        assert_int_equal(kind_of(&rig, 6399), SECTOR_HOLE);
        expect_sector(&rig, 70, VERSION(3), 70);
        /* A late copy of what is stable everywhere does not come back in the hole. */
        assert_int_equal(write_now(&rig, VERSION(1), 0, 200), 0);
        assert_int_equal(kind_of(&rig, 0), SECTOR_HOLE);
        assert_int_equal(write_now(&rig, VERSION(4), 640, 2), 0);
        assert_int_equal(zero_now(&rig, VERSION(5), 641, 1), 0);
        if (seed % 3 == 0)
            rig_quiet(&rig);
        rig_power_cut(&rig);
        assert_int_equal(kind_of(&rig, 0), SECTOR_HOLE);
        assert_int_equal(kind_of(&rig, 641), SECTOR_ZERO);
        expect_sector(&rig, 640, VERSION(4), 640);
        rig_quiet(&rig);
        assert_int_equal(stored_leaves(&rig), 2);
        rig_fini(&rig);
    }
}

/*
 * What lost against zeroes does not come back in the hole: the key of an empty leaf stays until the
 * journal has nothing of the leaf any more.  Written back one thing at a time, cut at any turn.
 */
static void
test_empty_leaves_stay_for_a_while(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct rig rig;

        rig_init(&rig, seed);
        rig.options.writeback_items = 1;
        rig_restart(&rig);
        assert_int_equal(zero_now(&rig, VERSION(5), 0, 1), 0);
        assert_int_equal(write_now(&rig, VERSION(6), 64, 1), 0);
        assert_int_equal(write_now(&rig, VERSION(3), 0, 1), 0);
        assert_int_equal(write_now(&rig, VERSION(7), 130, 1), 0);
        assert_int_equal(stable_now(&rig, VERSION(7)), 0);
        assert_int_equal(forget_now(&rig, VERSION(7)), 0);
        fake_env_run_for(&rig.env, UINT64_C(5000000000));
        for (uint64_t turns = seed % 100; turns > 0; turns--)
            (void)fake_env_turn(&rig.env);
        rig_power_cut(&rig);
        assert_int_not_equal(kind_of(&rig, 0), SECTOR_DATA);
        expect_sector(&rig, 64, VERSION(6), 64);
        rig_quiet(&rig);
        assert_int_equal(used_blocks(&rig), 2);
        rig_fini(&rig);
    }
}

/*
 * Not above what is said, not above S, not in a chunk that recovers.  After a start those are
 * forgotten that were replayed, or in leaves that somebody has read.
 */
static void
test_zeroes_are_kept(void **state)
{
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(zero_now(&rig, VERSION(1), 0, 1), 0);
    assert_int_equal(zero_now(&rig, VERSION(2), 1, 1), 0);
    assert_int_equal(stable_now(&rig, VERSION(1)), 0);
    assert_int_equal(forget_now(&rig, VERSION(2)), 0);
    rig_quiet(&rig);
    assert_int_equal(kind_of(&rig, 0), SECTOR_ZERO);
    assert_int_equal(forget_now(&rig, VERSION(1)), 0);
    rig_quiet(&rig);
    assert_int_equal(kind_of(&rig, 0), SECTOR_HOLE);
    assert_int_equal(kind_of(&rig, 1), SECTOR_ZERO);
    assert_int_equal(stable_now(&rig, VERSION(2)), 0);
    assert_int_equal(change_now(&rig, (struct store_change){.kind = STORE_ATTEMPT,
                                                            .key = key,
                                                            .config_epoch = 2,
                                                            .attempt = 2,
                                                            .lease_epoch = 1,
                                                            .segment_sectors = 64}),
                     0);
    assert_int_equal(forget_now(&rig, VERSION(2)), 0);
    assert_int_equal(
        change_now(&rig,
                   (struct store_change){.kind = STORE_IN_SYNC, .key = key, .config_epoch = 3}),
        0);
    rig_quiet(&rig);
    assert_int_equal(kind_of(&rig, 1), SECTOR_ZERO);
    rig_restart(&rig);
    assert_int_equal(forget_now(&rig, VERSION(2)), 0);
    rig_quiet(&rig);
    assert_int_equal(stored_leaves(&rig), 1);
    assert_int_equal(kind_of(&rig, 1), SECTOR_ZERO);
    assert_int_equal(forget_now(&rig, VERSION(2)), 0);
    rig_quiet(&rig);
    assert_int_equal(stored_leaves(&rig), 0);
    assert_int_equal(kind_of(&rig, 1), SECTOR_HOLE);
    rig_fini(&rig);
}

/*
 * Zeroes of the largest chunk change 4096 leaves: 256 in a turn of the loop (512 in the one that
 * made them durable), so that sockets and disks have theirs.  What comes behind waits; what was
 * there before is gone when it is answered.
 */
static void
test_many_zeroes_take_turns(void **state)
{
    struct test_write *zeroes, *after;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), CHUNK_SECTORS_MAX - 8, 8), 0);
    zeroes = write_make(&rig, VERSION(2), 0, 1);
    zeroes->write.zero = true;
    zeroes->write.length_sectors = CHUNK_SECTORS_MAX;
    write_start(zeroes);
    after = write_make(&rig, VERSION(3), 100, 1);
    write_start(after);
    fake_env_settle(&rig.env);
    while (!after->done) {
        uint64_t slices = engine_counters(rig.engine)->applied_in_slices;

        assert_true(fake_env_turn(&rig.env));
        assert_in_range(engine_counters(rig.engine)->applied_in_slices, slices, slices + 2);
    }
    assert_true(zeroes->done && zeroes->done_order < after->done_order);
    assert_int_equal(engine_counters(rig.engine)->applied_in_slices, CHUNK_LEAVES_MAX / 256 - 1);
    assert_int_equal(write_end(zeroes), 0);
    assert_int_equal(write_end(after), 0);
    expect_sector(&rig, CHUNK_SECTORS_MAX - 1, 0, 0);
    expect_sector(&rig, 100, VERSION(3), 100);
    rig_quiet(&rig);
    assert_int_equal(used_blocks(&rig), 1);
    rig_fini(&rig);
}

static void
test_deletion_frees_space(void **state)
{
    struct store_change deletion = {.kind = STORE_DELETE, .key = key, .incarnation = 1};
    struct test_write *late;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(write_now(&rig, VERSION(1 + i), i * 300, 200), 0);
    rig_quiet(&rig);
    deletion.incarnation = 0; /* an older chunk: not this one */
    assert_int_equal(change_now(&rig, deletion), 0);
    assert_non_null(chunk_table_find(rig.store->chunks, &key));
    deletion.incarnation = 1;
    assert_int_equal(change_now(&rig, deletion), 0);
    assert_null(chunk_table_find(rig.store->chunks, &key));
    /* A late write must not bring it back. */
    late = write_make(&rig, VERSION(20), 0, 1);
    write_start(late);
    assert_int_equal(write_end(late), -DL_E_CHUNK_DELETED);
    /* Its successor under a later config epoch may come at once. */
    late = write_make(&rig, VERSION(21), 5, 1);
    late->write.config_epoch = 3;
    write_start(late);
    assert_int_equal(write_end(late), 0);
    rig_quiet(&rig);
    assert_int_equal(used_blocks(&rig), 1);
    assert_int_equal(engine_counters(rig.engine)->chunks_forgotten, 1);
    assert_int_equal(fake_index_count(&rig.index, "C", 1), 1);
    assert_int_equal(fake_index_count(&rig.index, "L", 1), 1);
    expect_sector(&rig, 5, VERSION(21), 5);
    expect_sector(&rig, 0, 0, 0);
    rig_fini(&rig);
}

/*
 * A read that waits for its leaf while the chunk is deleted must not see the holes that the
 * deletion makes: they would be taken for data.
 */
static void
test_read_of_a_chunk_that_is_deleted(void **state)
{
    uint32_t refused = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct store_change deletion = {.kind = STORE_DELETE, .key = key, .incarnation = 1};
        struct test_change change;
        struct test_read *read;
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 256), 0);
        rig_restart(&rig);
        read = read_make(&rig, 0, 256);
        change_start(&rig, &change, deletion);
        assert_true(fake_env_run(&rig.env, &change.done, TURNS_MAX));
        assert_true(fake_env_run(&rig.env, &read->done, TURNS_MAX));
        if (read->err == 0)
            assert_int_equal(read->read.data_sectors, 256);
        else
            assert_int_equal(read->err, -DL_E_CHUNK_UNKNOWN);
        refused += read->err != 0;
        read_free(read);
        rig_fini(&rig);
    }
    assert_true(refused > 0);
}

/*
 * The second of two equal versions may take the reserve, the first may not: it is not refused with
 * the first.
 */
static void
test_twin_with_reserve(void **state)
{
    struct test_write *first, *second;
    struct rig rig;
    uint32_t filled = 0;

    (void)state;
    rig_init(&rig, 1);
    while (write_now(&rig, VERSION(1 + filled), filled * 50, 40) == 0)
        filled++;
    rig_restart(&rig);
    /* Not all of it is there already: an overwrite would go on. */
    first = write_make(&rig, VERSION(1000), 0, 50);
    second = write_make(&rig, VERSION(1000), 0, 50);
    second->write.use_reserve = true;
    write_start(first);
    write_start(second);
    assert_int_equal(engine_counters(rig.engine)->writes_duplicate, 1);
    assert_true(fake_env_run(&rig.env, &second->done, TURNS_MAX));
    assert_int_equal(write_end(first), -DL_E_NO_SPACE);
    assert_int_equal(write_end(second), 0);
    expect_sector(&rig, 45, VERSION(1000), 0);
    rig_fini(&rig);
}

/* The same, with a fence behind both: when that is done neither is under way any more. */
static void
test_twin_with_reserve_and_a_fence(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct store_change what = {.kind = STORE_FENCE, .key = key, .lease_epoch = 2};
        struct test_write *first, *second;
        struct test_change change;
        struct rig rig;
        uint32_t filled = 0;

        rig_init(&rig, seed);
        while (write_now(&rig, VERSION(1 + filled), filled * 50, 40) == 0)
            filled++;
        rig_restart(&rig);
        first = write_make(&rig, VERSION(1000), 0, 50);
        second = write_make(&rig, VERSION(1000), 0, 50);
        second->write.use_reserve = true;
        write_start(first);
        write_start(second);
        change_start(&rig, &change, what);
        assert_true(fake_env_run(&rig.env, &change.done, TURNS_MAX));
        assert_int_equal(change.err, 0);
        assert_true(first->done && second->done);
        assert_int_equal(write_end(first), -DL_E_NO_SPACE);
        assert_int_equal(write_end(second), -DL_E_LEASE_OLD);
        expect_sector(&rig, 0, VERSION(1), 0);
        rig_fini(&rig);
    }
}

/*
 * Too many versions above S: the client must wait, a takeover's rewrite need not; that is bounded
 * as well.
 */
static void
test_pending_is_bounded(void **state)
{
    struct test_write *writes[WRITES_MAX];
    uint64_t version = 1;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    for (uint32_t pending = 0; pending < CHUNK_PENDING_TAKEOVER_MAX + WRITES_MAX;
         pending += WRITES_MAX) {
        bool reserve = pending >= CHUNK_PENDING_MAX;

        if (pending == CHUNK_PENDING_MAX)
            assert_int_equal(write_now(&rig, VERSION(version), 0, 1), -DL_E_BUSY);
        for (uint32_t i = 0; i < WRITES_MAX; i++) {
            writes[i] = write_make(&rig, VERSION(version++), i, 1);
            writes[i]->write.use_reserve = reserve;
            write_start(writes[i]);
        }
        for (uint32_t i = 0; i < WRITES_MAX; i++)
            assert_int_equal(write_end(writes[i]),
                             pending < CHUNK_PENDING_TAKEOVER_MAX ? 0 : -DL_E_BUSY);
    }
    /* A version that is here already is no news, however full the list. */
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    hear_now(&rig, VERSION(1), VERSION(version));
    assert_int_equal(write_now(&rig, VERSION(version + 1), 0, 1), 0);
    rig_fini(&rig);
}

/*
 * A version that is sent again under a higher config epoch: its acknowledgement says that the epoch
 * is durable, whether the first one is in flight or long done.
 */
static void
test_duplicate_teaches_the_epoch(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct test_write *first, *second, *third;
        struct rig rig;

        rig_init(&rig, seed);
        first = write_make(&rig, VERSION(1), 0, 1 + (uint32_t)(seed % 2) * 40);
        second = write_make(&rig, VERSION(1), 0, 1 + (uint32_t)(seed % 2) * 40);
        second->write.config_epoch = 5;
        write_start(first);
        write_start(second);
        assert_true(fake_env_run(&rig.env, &second->done, TURNS_MAX));
        assert_int_equal(write_end(first), 0);
        assert_int_equal(write_end(second), 0);
        rig_power_cut(&rig);
        assert_int_equal(chunk_table_find(rig.store->chunks, &key)->config_epoch, 5);
        third = write_make(&rig, VERSION(1), 0, 1 + (uint32_t)(seed % 2) * 40);
        third->write.config_epoch = 6;
        write_start(third);
        assert_int_equal(write_end(third), 0);
        rig_power_cut(&rig);
        assert_int_equal(chunk_table_find(rig.store->chunks, &key)->config_epoch, 6);
        rig_fini(&rig);
    }
}

static void
test_full_disk(void **state)
{
    struct store_stats stats;
    struct test_write *write;
    struct rig rig;
    uint32_t filled = 0;
    int err;

    (void)state;
    rig_init(&rig, 1);
    while ((err = write_now(&rig, VERSION(1 + filled), filled * 50, 50)) == 0)
        filled++;
    assert_int_equal(err, -DL_E_NO_SPACE);
    assert_int_equal(engine_counters(rig.engine)->writes_refused_full, 1);
    /* 2 % of 3000 blocks stay. */
    assert_int_equal(filled, (SLABS * SLAB_DATA_BLOCKS - 60) / 50);
    rig.store->ops->get_stats(rig.store, &stats);
    assert_true(stats.available_bytes < 50 * BLOCK_BYTES);
    /* What is there can be overwritten, also when its leaf must be read first. */
    rig_restart(&rig);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_equal(write_now(&rig, VERSION(1000 + i), i * 50, 20), 0);
    assert_true(engine_counters(rig.engine)->reserve_writes > 0);
    assert_int_equal(write_now(&rig, VERSION(2000), filled * 50, 50), -DL_E_NO_SPACE);
    /* A takeover's rewrite may go below. */
    write = write_make(&rig, VERSION(2000), filled * 50, 10);
    write->write.use_reserve = true;
    write_start(write);
    assert_int_equal(write_end(write), 0);
    /* A discard makes room. */
    assert_int_equal(zero_now(&rig, VERSION(3000), 0, 500), 0);
    rig_quiet(&rig);
    assert_int_equal(write_now(&rig, VERSION(3001), filled * 50 + 10, 50), 0);
    rig_fini(&rig);
}

/* More overwrites at a time than the reserve has room for: later, but not refused. */
static void
test_full_disk_overwrites_wait(void **state)
{
    struct test_write *writes[12];
    struct rig rig;
    uint32_t filled = 0, busy = 0, done = 0;

    (void)state;
    rig_init(&rig, 1);
    while (write_now(&rig, VERSION(1 + filled), filled * 50, 50) == 0)
        filled++;
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < 12; i++) {
            writes[i] = write_make(&rig, VERSION(1000 + round * 12 + i), i * 50, 50);
            write_start(writes[i]);
        }
        for (uint32_t i = 0; i < 12; i++) {
            int err = write_end(writes[i]);

            assert_true(err == 0 || err == -DL_E_BUSY);
            busy += err != 0;
            done += err == 0;
        }
        fake_env_run_for(&rig.env, 2000000000);
    }
    assert_true(busy > 0);
    assert_int_equal(done, 40);
    assert_int_equal(write_now(&rig, VERSION(5000), filled * 50, 50), -DL_E_NO_SPACE);
    rig_quiet(&rig);
    rig_fini(&rig);
}

/* Sectors that were pulled, from `offset` on, all of one version. */
struct test_merge {
    struct store_merge merge;
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint8_t *payload;
    bool done;
    int err;
};

static void
merge_on_done(struct store_merge *store_merge, int err)
{
    struct test_merge *merge = (struct test_merge *)store_merge;

    merge->done = true;
    merge->err = err;
}

static int
merge_now(struct rig *rig, uint32_t attempt, uint64_t version, uint32_t offset, uint32_t length)
{
    struct test_merge *merge = calloc(1, sizeof(*merge));
    int err;

    merge->payload = aligned_alloc(SECTOR_BYTES, (size_t)length * SECTOR_BYTES);
    memset(merge->payload, 0x77, (size_t)length * SECTOR_BYTES);
    for (uint32_t i = 0; i < length; i++)
        merge->sectors[i] = (struct store_sector){.sector = offset + i,
                                                  .birth = 1,
                                                  .version = version,
                                                  .crc = crc32c(0, merge->payload, SECTOR_BYTES),
                                                  .kind = SECTOR_DATA};
    merge->merge = (struct store_merge){.key = key,
                                        .attempt = attempt,
                                        .sectors = merge->sectors,
                                        .sector_count = length,
                                        .payload = merge->payload,
                                        .cursor_sectors = offset + length,
                                        .stable_version = version,
                                        .on_done = merge_on_done};
    rig->store->ops->merge_start(rig->store, &merge->merge);
    assert_false(merge->done); /* never inside the start call */
    assert_true(fake_env_run(&rig->env, &merge->done, TURNS_MAX));
    err = merge->err;
    free(merge->payload);
    free(merge);
    return err;
}

/* Recovery takes from the reserve what it gives back, and nothing else. */
static void
test_full_disk_recovers(void **state)
{
    struct store_change change = {.kind = STORE_STABLE, .key = key};
    struct rig rig;
    uint32_t filled = 0;

    (void)state;
    rig_init(&rig, 1);
    while (write_now(&rig, VERSION(1 + filled), filled * 50, 50) == 0)
        filled++;
    change.stable_version = VERSION(filled - 1); /* the last write will be void */
    assert_int_equal(change_now(&rig, change), 0);
    rig_restart(&rig);
    change = (struct store_change){.kind = STORE_ATTEMPT,
                                   .key = key,
                                   .config_epoch = 5,
                                   .incarnation = 1,
                                   .attempt = 5,
                                   .lease_epoch = 1,
                                   .segment_sectors = 4096};
    assert_int_equal(change_now(&rig, change), 0);
    assert_int_equal(merge_now(&rig, 5, VERSION(500), (filled - 1) * 50, 50), 0); /* void */
    for (uint32_t i = 0; i < 2 * filled; i++) /* in place of data */
        assert_int_equal(merge_now(&rig, 5, VERSION(1000 + i), i % (filled - 1) * 50, 50), 0);
    assert_int_equal(merge_now(&rig, 5, VERSION(2000), filled * 50, 50), -DL_E_NO_SPACE);
    assert_int_equal(merge_now(&rig, 5, VERSION(2000), filled * 50 - 49, 50), -DL_E_NO_SPACE);
    assert_int_equal(merge_now(&rig, 5, VERSION(2000), 0, 50), 0);
    rig_quiet(&rig);
    rig_fini(&rig);
}

/* --- errors --- */

static void
test_requests_out_of_range(void **state)
{
    struct test_write *write;
    struct test_read *read;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), CHUNK_SECTORS_MAX - 1, 2), -DL_E_RANGE);
    assert_int_equal(write_now(&rig, VERSION(1), UINT32_MAX, 2), -DL_E_RANGE);
    assert_int_equal(write_now(&rig, 0, 0, 1), -DL_E_RANGE);
    assert_int_equal(zero_now(&rig, VERSION(1), 1, CHUNK_SECTORS_MAX), -DL_E_RANGE);
    write = write_make(&rig, VERSION(1), 0, 257);
    write_start(write);
    assert_int_equal(write_end(write), -DL_E_RANGE);
    write = write_make(&rig, VERSION(1), 0, 1);
    write->write.create = false;
    write_start(write);
    assert_int_equal(write_end(write), -DL_E_CHUNK_UNKNOWN);
    read = read_now(&rig, 0, 1);
    assert_int_equal(read->err, -DL_E_CHUNK_UNKNOWN);
    read_free(read);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
    read = read_now(&rig, 0, 257);
    assert_int_equal(read->err, -DL_E_RANGE);
    read_free(read);
    assert_int_equal(
        change_now(&rig, (struct store_change){.kind = STORE_IN_SYNC, .key = {.volume = 1}}),
        -DL_E_CHUNK_UNKNOWN);
    assert_int_equal(
        change_now(&rig, (struct store_change){.kind = STORE_DELETE, .key = {.volume = 1}}), 0);
    rig_fini(&rig);
}

/* A block that cannot be written is never used again; the write succeeds elsewhere. */
static void
test_failed_data_write(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        uint32_t length = seed % 2 ? 3 : 40;
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
        fake_disk_fail(&rig.disk, DISK_WRITE, 0, 1, -EIO, rig.data_offset, DISK_BYTES);
        assert_int_equal(write_now(&rig, VERSION(2), 100, length), 0);
        assert_int_equal(rig.disk.faults[DISK_WRITE].hits, 1);
        assert_int_equal(engine_counters(rig.engine)->aborts, seed % 2 ? 1 : 0);
        assert_int_equal(engine_counters(rig.engine)->bad_blocks, length);
        for (uint32_t i = 0; i < length; i++)
            expect_sector(&rig, 100 + i, VERSION(2), 100);
        rig_quiet(&rig);
        assert_int_equal(used_blocks(&rig), 1 + 2 * length);
        rig_restart(&rig);
        expect_sector(&rig, 100, VERSION(2), 100);
        assert_int_equal(used_blocks(&rig), 1 + 2 * length);
        rig_fini(&rig);
    }
}

static void
test_data_write_that_always_fails(void **state)
{
    (void)state;
    for (uint32_t length = 1; length < 50; length += 40) {
        struct rig rig;

        rig_init(&rig, length);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 50), 0);
        fake_disk_fail(&rig.disk, DISK_WRITE, 0, 3, -EIO, rig.data_offset, DISK_BYTES);
        assert_int_equal(write_now(&rig, VERSION(2), 0, length), -DL_E_MEDIA_WRITE);
        expect_sector(&rig, 0, VERSION(1), 0);
        /* It was no journal or flush: the store goes on, and takes that very version. */
        assert_int_equal(write_now(&rig, VERSION(2), 0, length), 0);
        expect_sector(&rig, 0, VERSION(2), 0);
        rig_quiet(&rig);
        rig_fini(&rig);
    }
}

/*
 * A failed flush (or journal write) is never tried again: no more writes, but what is there can be
 * read.
 */
static void
test_failed_flush_stops_the_store(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct store_stats stats;
        struct rig rig;

        rig_init(&rig, seed);
        assert_int_equal(write_now(&rig, VERSION(1), 0, 1), 0);
        if (seed % 2)
            fake_disk_fail(&rig.disk, DISK_FLUSH, 0, 1, -EIO, 0, 0);
        else
            fake_disk_fail(&rig.disk, DISK_WRITE, 0, 1, -EIO, 0, UNITS * UNIT_BYTES);
        assert_int_equal(write_now(&rig, VERSION(2), 0, 1), -DL_E_MEDIA_WRITE);
        assert_int_equal(write_now(&rig, VERSION(3), 1, 1), -DL_E_MEDIA_WRITE);
        assert_int_equal(
            change_now(&rig,
                       (struct store_change){.kind = STORE_FENCE, .key = key, .lease_epoch = 3}),
            -DL_E_MEDIA_WRITE);
        rig.store->ops->get_stats(rig.store, &stats);
        assert_int_equal(stats.stopped, -DL_E_MEDIA_WRITE);
        expect_sector(&rig, 0, VERSION(1), 0);
        assert_int_equal(rig_stop(&rig), -DL_E_MEDIA_WRITE);
        rig_open(&rig);
        expect_sector(&rig, 1, 0, 0);
        rig_fini(&rig);
    }
}

static void
test_unreadable_data(void **state)
{
    struct test_read *read;
    struct rig rig;

    (void)state;
    rig_init(&rig, 1);
    assert_int_equal(write_now(&rig, VERSION(1), 0, 4), 0);
    fake_disk_set_bad(&rig.disk, rig.data_offset + BLOCK_BYTES, BLOCK_BYTES, true);
    read = read_now(&rig, 0, 4);
    assert_int_equal(read->err, -DL_E_MEDIA_READ);
    read_free(read);
    rig_fini(&rig);
}

/* --- cost --- */

/*
 * 4 KiB writes at depth 32, scattered, until the ring has wrapped twice: bytes to the disk per byte
 * written.
 */
static void
test_journal_is_small(void **state)
{
    struct test_write *writes[32] = {NULL};
    struct store_stats stats;
    struct rig rig;
    struct fake_rng rng;
    uint64_t version = 1;

    (void)state;
    rig_init(&rig, 1);
    fake_rng_init(&rng, 9);
    while (engine_counters(rig.engine)->ring_wraps < 2) {
        for (uint32_t i = 0; i < 32; i++) {
            writes[i] = write_make(&rig, VERSION(version), (uint32_t)fake_rng_below(&rng, 2000), 1);
            writes[i]->write.stable_version = VERSION(version) - 33;
            version++;
            write_start(writes[i]);
        }
        for (uint32_t i = 0; i < 32; i++)
            assert_int_equal(write_end(writes[i]), 0);
    }
    rig.store->ops->get_stats(rig.store, &stats);
    assert_int_equal(stats.device_bytes_data, stats.bytes_written);
    /* One block of 4 KiB for 32 writes, and now and then one with a mark. */
    assert_true(stats.device_bytes_journal * 100 < stats.bytes_written * 5);
    assert_true(stats.device_bytes_index * 100 < stats.bytes_written * 15);
    rig_quiet(&rig);
    rig_fini(&rig);
}

UNIT_MAIN(
    cmocka_unit_test(test_what_is_written_is_read), cmocka_unit_test(test_holes_cost_no_disk_read),
    cmocka_unit_test(test_one_disk_read_per_run), cmocka_unit_test(test_group_commit),
    cmocka_unit_test(test_write_through_needs_no_flush), cmocka_unit_test(test_versions),
    cmocka_unit_test(test_version_in_flight), cmocka_unit_test(test_version_that_waits_for_a_leaf),
    cmocka_unit_test(test_restart_keeps_everything), cmocka_unit_test(test_stable_of_a_duplicate),
    cmocka_unit_test(test_last_stable_is_flushed), cmocka_unit_test(test_twin_with_reserve),
    cmocka_unit_test(test_twin_with_reserve_and_a_fence), cmocka_unit_test(test_pending_is_bounded),
    cmocka_unit_test(test_duplicate_teaches_the_epoch), cmocka_unit_test(test_idle_engine_sleeps),
    cmocka_unit_test(test_fence_waits_for_large_writes), cmocka_unit_test(test_zeroes_free_space),
    cmocka_unit_test(test_many_zeroes_take_turns), cmocka_unit_test(test_zeroes_are_forgotten),
    cmocka_unit_test(test_zeroes_are_kept), cmocka_unit_test(test_empty_leaves_stay_for_a_while),
    cmocka_unit_test(test_deletion_frees_space),
    cmocka_unit_test(test_read_of_a_chunk_that_is_deleted), cmocka_unit_test(test_full_disk),
    cmocka_unit_test(test_full_disk_overwrites_wait), cmocka_unit_test(test_full_disk_recovers),
    cmocka_unit_test(test_requests_out_of_range), cmocka_unit_test(test_failed_data_write),
    cmocka_unit_test(test_data_write_that_always_fails),
    cmocka_unit_test(test_failed_flush_stops_the_store), cmocka_unit_test(test_unreadable_data),
    cmocka_unit_test(test_journal_is_small))
