/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A slot that recovers, cut anywhere. One chunk, and beside it what an in-sync peer has:
 *
 *     in-sync, writes --> power cut --> the peer gets more writes
 *       --> attempt: all above S is void --+--> windows from 0 to the end: voids, what the peer
 *            ^                             |    has of them and above the steps, merged; writes
 *            `--- power cut, at any turn --'    of the attempt in between
 *       --> report, in-sync: every sector is the peer's, the space exact
 *
 * And what each of the requests promises by itself.
 */
#include "tests/unit/lib/unit.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "common/crc32c.h"
#include "common/list.h"
#include "tests/crash/layout.h"
#include "tests/unit/lib/fake_disk.h"
#include "tests/unit/lib/fake_env.h"
#include "tests/unit/lib/fake_index.h"
#include "tests/unit/lib/fake_rng.h"

#define UNITS      128u
#define SECTORS    320u
#define WRITES_MAX 6u
#define TURNS_MAX  1000000u
#define LEASE(n)   ((uint64_t)(n) << 40)

static const struct chunk_key key = {.volume = 7, .segment = 1, .slot = 2};

/* What a slot has in a sector. */
struct truth {
    uint64_t version;
    enum sector_kind kind;
};

struct test_write {
    struct store_write write;
    bool started, done;
    int err;
    uint32_t crcs[16];
    uint8_t *payload;
};

struct rig {
    struct fake_env env;
    struct fake_disk disk;
    struct fake_index index;
    struct fake_rng rng;
    struct engine *engine;
    struct chunk_store *store;
    uint64_t data_offset, data_end;
    /* the history */
    struct truth peer[SECTORS];
    struct truth here[SECTORS]; /* acknowledged */
    struct test_write writes[WRITES_MAX];
    uint64_t version;
    uint64_t stable; /* every write up to it is on both */
    uint32_t epoch, attempt;
    uint64_t cuts, merges_cut, attempts_cut, writes_kept;
};

/* --- the rig --- */

static void
on_turn_end(void *context)
{
    struct rig *rig = context;

    rig->store->ops->turn_end(rig->store);
}

static void
rig_open(struct rig *rig)
{
    struct engine_options options = {.cache_bytes = fake_rng_percent(&rig->rng, 50) ? 1 : 0,
                                     .writeback_items = fake_rng_percent(&rig->rng, 50) ? 1 : 0,
                                     .slice_leaves = (uint32_t)fake_rng_range(&rig->rng, 1, 3)};
    struct dl_error err = {0};
    char *wrong;

    fake_index_reopen(&rig->index);
    if (engine_open(&rig->engine, &rig->env.env, &rig->disk.disk, &rig->index.index, &options,
                    &err) != 0)
        fail_msg("open: %s", err.text);
    rig->store = engine_store(rig->engine);
    fake_env_add_turn_end(&rig->env, on_turn_end, rig);
    wrong = engine_check(rig->engine);
    if (wrong != NULL)
        fail_msg("%s", wrong);
}

static void
rig_init(struct rig *rig, uint64_t seed)
{
    struct engine_format format;
    struct superblock superblock;

    memset(rig, 0, sizeof(*rig));
    fake_rng_init(&rig->rng, seed);
    fake_env_init(&rig->env, seed);
    layout_format(2, UNITS, LAYOUT_UNIT, &format);
    fake_disk_init(&rig->disk, &rig->env, layout_disk_bytes(2, UNITS), false);
    fake_index_init(&rig->index, &rig->env);
    assert_int_equal(engine_format_now(&rig->disk.disk, &format, NULL), 0);
    assert_int_equal(superblock_load_now(&rig->disk.disk, &superblock, NULL), 0);
    rig->data_offset = superblock.geometry.data_offset;
    rig->data_end = rig->data_offset + superblock.geometry.data_bytes;
    fake_disk_settle(&rig->disk);
    rig->index.closed = true;
    rig->epoch = 1;
    rig_open(rig);
}

static void
rig_forget_writes(struct rig *rig)
{
    for (uint32_t i = 0; i < WRITES_MAX; i++) {
        free(rig->writes[i].payload);
        rig->writes[i] = (struct test_write){0};
    }
}

static void
rig_cut(struct rig *rig)
{
    fake_env_remove_turn_end(&rig->env, rig);
    engine_destroy(rig->engine);
    rig_forget_writes(rig);
    fake_env_crash(&rig->env);
    if (fake_rng_percent(&rig->rng, 70))
        fake_disk_crash(&rig->disk);
    else
        fake_disk_kill(&rig->disk);
    fake_index_crash(&rig->index);
    rig->cuts++;
    rig_open(rig);
}

static void
rig_run(struct rig *rig, const bool *done)
{
    assert_true(fake_env_run(&rig->env, done, TURNS_MAX));
}

/* Returns false if the power went before that. */
static bool
rig_run_or_cut(struct rig *rig, const bool *done, unsigned cut_percent)
{
    uint64_t turns = fake_rng_percent(&rig->rng, cut_percent) ? fake_rng_below(&rig->rng, 16)
                                                              : TURNS_MAX;

    if (fake_env_run(&rig->env, done, turns))
        return true;
    assert_true(turns < TURNS_MAX);
    rig_cut(rig);
    return false;
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
    fake_env_remove_turn_end(&rig->env, rig);
    engine_destroy(rig->engine);
    rig_forget_writes(rig);
    assert_int_equal(rig->disk.violations, 0);
    fake_env_crash(&rig->env);
    fake_index_fini(&rig->index);
    fake_disk_fini(&rig->disk);
    fake_env_fini(&rig->env);
}

static const struct chunk *
rig_chunk(struct rig *rig)
{
    const struct chunk *chunk = chunk_table_find(rig->store->chunks, &key);

    assert_non_null(chunk);
    return chunk;
}

/* --- requests --- */

static void
fill(uint8_t *bytes, uint64_t version, uint32_t sector)
{
    memset(bytes, (int)(version * 7 + sector), SECTOR_BYTES);
    memcpy(bytes, &version, sizeof(version));
    memcpy(bytes + 8, &sector, sizeof(sector));
}

static uint32_t
fill_crc(uint64_t version, uint32_t sector)
{
    uint8_t bytes[SECTOR_BYTES];

    fill(bytes, version, sector);
    return crc32c(0, bytes, sizeof(bytes));
}

static void
write_on_done(struct store_write *store_write, int err)
{
    struct test_write *write = list_entry(store_write, struct test_write, write);

    assert_false(write->done);
    write->done = true;
    write->err = err;
}

static void
write_start(struct rig *rig, struct test_write *write, uint64_t version, uint32_t offset,
            uint32_t length, bool zero)
{
    assert_true(length <= 16);
    free(write->payload);
    *write = (struct test_write){.started = true};
    write->payload = aligned_alloc(SECTOR_BYTES, (size_t)length * SECTOR_BYTES);
    assert_non_null(write->payload);
    for (uint32_t i = 0; i < length; i++) {
        fill(write->payload + (size_t)i * SECTOR_BYTES, version, offset + i);
        write->crcs[i] = crc32c(0, write->payload + (size_t)i * SECTOR_BYTES, SECTOR_BYTES);
    }
    write->write = (struct store_write){
        .key = key,
        .config_epoch = rig->epoch,
        .birth = 1,
        .version = version,
        .stable_version = rig->stable,
        .attempt = rig->attempt,
        .offset_sectors = offset,
        .length_sectors = length,
        .zero = zero,
        .create = rig->epoch == 1,
        .payload = zero ? NULL : write->payload,
        .crcs = zero ? NULL : write->crcs,
        .on_done = write_on_done,
    };
    rig->store->ops->write_start(rig->store, &write->write);
}

static int
write_now(struct rig *rig, uint64_t version, uint32_t offset, uint32_t length)
{
    struct test_write *write = &rig->writes[0];

    write_start(rig, write, version, offset, length, false);
    rig_run(rig, &write->done);
    return write->err;
}

struct test_change {
    struct store_change change;
    bool done;
    int err;
};

static void
change_on_done(struct store_change *store_change, int err)
{
    struct test_change *change = list_entry(store_change, struct test_change, change);

    change->done = true;
    change->err = err;
}

static void
change_start(struct rig *rig, struct test_change *change, struct store_change what)
{
    *change = (struct test_change){.change = what};
    change->change.key = key;
    change->change.on_done = change_on_done;
    rig->store->ops->change_start(rig->store, &change->change);
    assert_false(change->done);
}

static int
change_now(struct rig *rig, struct store_change what)
{
    struct test_change change;

    change_start(rig, &change, what);
    rig_run(rig, &change.done);
    return change.err;
}

static struct store_change
attempt_of(const struct rig *rig, uint32_t attempt)
{
    (void)rig;
    return (struct store_change){.kind = STORE_ATTEMPT,
                                 .incarnation = 1,
                                 .config_epoch = attempt,
                                 .attempt = attempt,
                                 .lease_epoch = 1,
                                 .segment_sectors = SECTORS};
}

struct test_voids {
    struct store_voids voids;
    bool done;
    int err;
};

static void
voids_on_done(struct store_voids *store_voids, int err)
{
    struct test_voids *voids = list_entry(store_voids, struct test_voids, voids);

    voids->done = true;
    voids->err = err;
}

static bool
voids_run(struct rig *rig, struct test_voids *voids, uint32_t first, uint32_t count,
          unsigned cut_percent)
{
    *voids = (struct test_voids){
        .voids = {
            .key = key, .first_sector = first, .window_sectors = count, .on_done = voids_on_done}};
    rig->store->ops->voids_start(rig->store, &voids->voids);
    assert_false(voids->done);
    return rig_run_or_cut(rig, &voids->done, cut_percent);
}

static bool
voids_has(const struct test_voids *voids, uint32_t sector)
{
    uint32_t idx = sector - voids->voids.first_sector;

    return (voids->voids.bits[idx / 64] >> (idx % 64) & 1) != 0;
}

struct test_merge {
    struct store_merge merge;
    bool done;
    int err;
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint8_t *payload;
};

static void
merge_on_done(struct store_merge *store_merge, int err)
{
    struct test_merge *merge = list_entry(store_merge, struct test_merge, merge);

    merge->done = true;
    merge->err = err;
}

static struct test_merge *
merge_make(struct rig *rig)
{
    struct test_merge *merge = calloc(1, sizeof(*merge));

    assert_non_null(merge);
    merge->payload = aligned_alloc(SECTOR_BYTES, (size_t)STORE_IO_SECTORS_MAX * SECTOR_BYTES);
    assert_non_null(merge->payload);
    merge->merge = (struct store_merge){.key = key,
                                        .attempt = rig->attempt,
                                        .sectors = merge->sectors,
                                        .payload = merge->payload,
                                        .on_done = merge_on_done};
    return merge;
}

static struct test_merge *
repair_make(struct rig *rig)
{
    const struct chunk *chunk = rig_chunk(rig);
    struct test_merge *merge = merge_make(rig);

    merge->merge.attempt = 0;
    merge->merge.repair = true;
    merge->merge.config_epoch = chunk->config_epoch;
    merge->merge.lease_epoch = chunk->volume->lease_epoch;
    return merge;
}

static void
merge_add(struct test_merge *merge, uint32_t sector, const struct truth *truth)
{
    static uint32_t data_count;

    if (merge->merge.sector_count == 0)
        data_count = 0;
    if (truth->kind == SECTOR_DATA)
        fill(merge->payload + (size_t)data_count++ * SECTOR_BYTES, truth->version, sector);
    merge->sectors[merge->merge.sector_count++] = (struct store_sector){
        .sector = sector,
        .birth = truth->kind == SECTOR_HOLE ? 0 : 1,
        .version = truth->version,
        .crc = truth->kind == SECTOR_DATA ? fill_crc(truth->version, sector) : 0,
        .kind = truth->kind,
    };
}

static void
merge_free(struct test_merge *merge)
{
    free(merge->payload);
    free(merge);
}

/* Frees it. */
static int
merge_now(struct rig *rig, struct test_merge *merge, uint32_t *ret_taken)
{
    int err;

    rig->store->ops->merge_start(rig->store, &merge->merge);
    assert_false(merge->done);
    rig_run(rig, &merge->done);
    err = merge->err;
    if (ret_taken != NULL)
        *ret_taken = merge->merge.taken_sectors;
    merge_free(merge);
    return err;
}

struct test_pull {
    struct store_pull pull;
    bool done;
    int err;
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint8_t *buffer;
};

static void
pull_on_done(struct store_pull *store_pull, int err)
{
    struct test_pull *pull = list_entry(store_pull, struct test_pull, pull);

    pull->done = true;
    pull->err = err;
}

static struct test_pull *
pull_now(struct rig *rig, uint32_t first, uint32_t count, uint64_t above, const uint64_t *wanted)
{
    struct test_pull *pull = calloc(1, sizeof(*pull));

    assert_non_null(pull);
    pull->buffer = aligned_alloc(SECTOR_BYTES, (size_t)STORE_IO_SECTORS_MAX * SECTOR_BYTES);
    assert_non_null(pull->buffer);
    pull->pull = (struct store_pull){.key = key,
                                     .first_sector = first,
                                     .window_sectors = count,
                                     .above_version = above,
                                     .wanted = wanted,
                                     .buffer = pull->buffer,
                                     .sectors = pull->sectors,
                                     .on_done = pull_on_done};
    rig->store->ops->pull_start(rig->store, &pull->pull);
    assert_false(pull->done);
    rig_run(rig, &pull->done);
    return pull;
}

static void
pull_free(struct test_pull *pull)
{
    free(pull->buffer);
    free(pull);
}

/* Sector by sector: is it the peer's?  Of holes a pull says nothing, unless they are wanted. */
static void
expect_content(struct rig *rig, const struct truth *expected)
{
    uint64_t wanted[STORE_WINDOW_WORDS];
    uint32_t next = 0, data = 0;

    memset(wanted, 0xff, sizeof(wanted));
    while (next < SECTORS) {
        struct test_pull *pull = pull_now(rig, next, SECTORS - next, UINT64_MAX, wanted);
        uint32_t at = 0;

        assert_int_equal(pull->err, 0);
        assert_int_equal(pull->pull.next_sector - next, pull->pull.sector_count);
        for (uint32_t i = 0; i < pull->pull.sector_count; i++) {
            const struct store_sector *sector = &pull->sectors[i];
            const struct truth *truth = &expected[next + i];
            uint8_t bytes[SECTOR_BYTES];

            assert_int_equal(sector->sector, next + i);
            if (sector->kind != truth->kind || sector->version != truth->version)
                fail_msg("sector %u: kind %u version %llx, expected %u %llx", next + i,
                         sector->kind, (unsigned long long)sector->version, truth->kind,
                         (unsigned long long)truth->version);
            if (sector->kind != SECTOR_DATA)
                continue;
            fill(bytes, truth->version, next + i);
            assert_memory_equal(pull->buffer + (size_t)at++ * SECTOR_BYTES, bytes, SECTOR_BYTES);
            assert_int_equal(sector->crc, crc32c(0, bytes, SECTOR_BYTES));
        }
        assert_int_equal(at, pull->pull.data_sectors);
        data += at;
        next = pull->pull.next_sector;
        pull_free(pull);
    }
    (void)data;
}

/* --- histories --- */

static void
truth_apply(struct truth *truth, uint64_t version, uint32_t offset, uint32_t length, bool zero)
{
    for (uint32_t sector = offset; sector < offset + length; sector++)
        if (truth[sector].version < version)
            truth[sector] = (struct truth){version, zero ? SECTOR_ZERO : SECTOR_DATA};
}

/* A new write of the owner, here and (sometimes only there) at the peer. */
static void
history_write(struct rig *rig, bool here, bool peer)
{
    uint32_t length = (uint32_t)fake_rng_range(&rig->rng, 1, 16);
    uint32_t offset = (uint32_t)fake_rng_range(&rig->rng, 0, SECTORS - length);
    uint64_t version = LEASE(1) + ++rig->version;
    bool zero = fake_rng_percent(&rig->rng, 15);

    if (peer)
        truth_apply(rig->peer, version, offset, length, zero);
    for (uint32_t i = 0; here && i < WRITES_MAX; i++) {
        if (rig->writes[i].started && !rig->writes[i].done)
            continue;
        write_start(rig, &rig->writes[i], version, offset, length, zero);
        return;
    }
}

/* Let the writes end; what was acknowledged was so by the peer, too. */
static bool
history_settle(struct rig *rig, unsigned cut_percent)
{
    for (uint32_t i = 0; i < WRITES_MAX; i++) {
        if (!rig->writes[i].started)
            continue;
        if (!rig_run_or_cut(rig, &rig->writes[i].done, cut_percent))
            return false;
        assert_int_equal(rig->writes[i].err, 0);
    }
    return true;
}

static void
history_in_sync(struct rig *rig)
{
    for (uint32_t i = 0; i < 30; i++) {
        for (uint64_t n = fake_rng_range(&rig->rng, 1, 4); n > 0; n--)
            history_write(rig, true, true);
        assert_true(history_settle(rig, 0));
        if (fake_rng_percent(&rig->rng, 30))
            rig->stable = LEASE(1) + rig->version;
        if (fake_rng_percent(&rig->rng, 10))
            fake_env_run_for(&rig->env, UINT64_C(6000000000));
    }
    /* Here only, unacknowledged: the peer has them, or never will. */
    for (uint32_t i = 0; i < WRITES_MAX; i++)
        history_write(rig, true, fake_rng_percent(&rig->rng, 50));
    for (uint64_t turns = fake_rng_below(&rig->rng, 30); turns > 0; turns--)
        (void)fake_env_turn(&rig->env);
}

/* What is above its step is void (some sectors, and all that there is of voids). */
static bool
history_check_voids(struct rig *rig)
{
    struct test_voids voids;

    if (!voids_run(rig, &voids, 0, SECTORS, 5))
        return false;
    assert_int_equal(voids.err, 0);
    for (uint32_t n = 0; n < 40; n++) {
        uint32_t sector = (uint32_t)fake_rng_below(&rig->rng, SECTORS);
        struct test_pull *pull = pull_now(rig, sector, 1, 0, NULL);

        assert_int_equal(pull->err, voids_has(&voids, sector) ? -DL_E_NOT_IN_SYNC : 0);
        if (pull->pull.sector_count > 0)
            assert_true(pull->sectors[0].version <= chunk_step_version(rig_chunk(rig), sector));
        pull_free(pull);
    }
    return true;
}

/* One window: what the peer has of the voids and above the steps. */
static bool
history_window(struct rig *rig)
{
    uint32_t first = rig_chunk(rig)->cursor_sectors;
    uint32_t count = (uint32_t)fake_rng_range(&rig->rng, 1, 200);
    uint64_t stable = rig->stable;
    struct test_voids voids;
    struct test_merge *merge;
    bool done;

    count = count < SECTORS - first ? count : SECTORS - first;
    if (!voids_run(rig, &voids, first, count, 3))
        return false;
    assert_int_equal(voids.err, 0);
    merge = merge_make(rig);
    for (uint32_t i = first; i < first + count; i++)
        if (voids_has(&voids, i) || rig->peer[i].version > chunk_step_version(rig_chunk(rig), i))
            merge_add(merge, i, &rig->peer[i]);
    merge->merge.cursor_sectors = first + count;
    merge->merge.stable_version = stable;
    rig->store->ops->merge_start(rig->store, &merge->merge);
    for (uint64_t n = fake_rng_below(&rig->rng, 4); n > 0; n--)
        history_write(rig, true, true);
    done = rig_run_or_cut(rig, &merge->done, 30);
    rig->merges_cut += !done;
    if (done) {
        assert_int_equal(merge->err, 0);
        assert_int_equal(rig_chunk(rig)->cursor_sectors, first + count);
    }
    merge_free(merge);
    return done;
}

static bool
history_attempt(struct rig *rig)
{
    uint32_t attempt = ++rig->epoch, cursor;
    struct test_change change;

    change_start(rig, &change, attempt_of(rig, attempt));
    if (!rig_run_or_cut(rig, &change.done, 30)) {
        rig->attempts_cut++;
        return false;
    }
    assert_int_equal(change.err, 0);
    rig->attempt = attempt;
    assert_int_equal(rig_chunk(rig)->attempt, attempt);
    assert_int_equal(rig_chunk(rig)->pending_count, 0);
    if (!history_check_voids(rig))
        return false;
    while (rig_chunk(rig)->cursor_sectors < SECTORS) {
        if (!history_window(rig) || !history_settle(rig, 5))
            return false;
        /* Write-back begins, and gets somewhere. */
        if (fake_rng_percent(&rig->rng, 30)) {
            fake_env_run_for(&rig->env, fake_rng_range(&rig->rng, 10, 60) * 100000000u);
            for (uint64_t turns = fake_rng_below(&rig->rng, 30); turns > 0; turns--)
                (void)fake_env_turn(&rig->env);
        }
        if (fake_rng_percent(&rig->rng, 15)) {
            rig_cut(rig);
            return false;
        }
    }
    cursor = rig_chunk(rig)->cursor_sectors;
    assert_int_equal(cursor, SECTORS);
    change_start(rig, &change,
                 (struct store_change){
                     .kind = STORE_REPORT, .attempt = attempt, .stable_version = rig->stable});
    if (!rig_run_or_cut(rig, &change.done, 10))
        return false;
    assert_int_equal(change.err, 0);
    return true;
}

static void
history_promote(struct rig *rig)
{
    rig->epoch++;
    if (fake_rng_percent(&rig->rng, 50)) {
        assert_int_equal(change_now(rig, (struct store_change){.kind = STORE_IN_SYNC,
                                                               .incarnation = 1,
                                                               .config_epoch = rig->epoch}),
                         0);
        rig->attempt = 0;
    } else {
        /* The owner heard of it first. */
        rig->attempt = 0;
        history_write(rig, true, true);
        assert_true(history_settle(rig, 0));
    }
    if (fake_rng_percent(&rig->rng, 50))
        rig_cut(rig);
    assert_int_equal(rig_chunk(rig)->attempt, 0);
    assert_int_equal(rig_chunk(rig)->config_epoch, rig->epoch);
    assert_true(rig_chunk(rig)->stable_version >= rig->stable);
}

static void
check_space(struct rig *rig)
{
    struct store_stats stats;
    uint64_t data = 0;

    rig_quiet(rig);
    rig->store->ops->get_stats(rig->store, &stats);
    for (uint32_t i = 0; i < SECTORS; i++)
        data += rig->peer[i].kind == SECTOR_DATA;
    assert_int_equal(stats.used_bytes, data * SECTOR_BYTES);
}

static void
test_histories(void **state)
{
    uint64_t cuts = 0, merges_cut = 0, attempts_cut = 0, promoted = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        struct rig *rig = calloc(1, sizeof(*rig));

        assert_non_null(rig);
        rig_init(rig, seed);
        for (uint32_t round = 0; round < 2; round++) {
            history_in_sync(rig);
            rig_cut(rig);
            for (uint64_t n = fake_rng_below(&rig->rng, 20); n > 0; n--)
                history_write(rig, false, true);
            if (fake_rng_percent(&rig->rng, 50))
                rig->stable = LEASE(1) + rig->version;
            while (!history_attempt(rig))
                for (uint64_t n = fake_rng_below(&rig->rng, 3); n > 0; n--)
                    history_write(rig, false, true);
            history_promote(rig);
            expect_content(rig, rig->peer);
            check_space(rig);
            promoted++;
        }
        cuts += rig->cuts;
        merges_cut += rig->merges_cut;
        attempts_cut += rig->attempts_cut;
        rig_fini(rig);
        free(rig);
    }
    print_message("%llu cuts, %llu in a merge, %llu before an attempt had begun\n",
                  (unsigned long long)cuts, (unsigned long long)merges_cut,
                  (unsigned long long)attempts_cut);
    assert_true(merges_cut > 50);
    assert_true(attempts_cut > 50);
    assert_int_equal(promoted, 300);
}

/* --- single requests --- */

static struct truth
data_of(uint64_t version)
{
    return (struct truth){version, SECTOR_DATA};
}

/*
 * All above S is void, and no hole: errors to readers; S and below is untouched.  The pending list
 * is empty; the fence has risen.  Writes of the attempt are taken, others are not; a write without
 * attempt under a higher config epoch promotes.
 */
static void
test_attempt(void **state)
{
    struct store_change change = {
        .kind = STORE_ATTEMPT, .incarnation = 1, .config_epoch = 5, .attempt = 5, .lease_epoch = 3};
    struct test_voids voids;
    struct rig *rig = calloc(1, sizeof(*rig));

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 1);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 16), 0);
    rig->stable = LEASE(1) + 1;
    assert_int_equal(write_now(rig, LEASE(1) + 2, 8, 4), 0);
    assert_int_equal(change_now(rig, change), 0);
    assert_int_equal(rig_chunk(rig)->attempt, 5);
    assert_int_equal(rig_chunk(rig)->config_epoch, 5);
    assert_int_equal(rig_chunk(rig)->pending_count, 0);
    assert_int_equal(chunk_table_fence(rig->store->chunks, key.volume), 3);
    assert_true(voids_run(rig, &voids, 0, SECTORS, 0));
    assert_int_equal(voids.err, 0);
    assert_int_equal(voids.voids.count, 4);
    assert_true(voids_has(&voids, 8) && voids_has(&voids, 11));
    /* The same again, and an older one: nothing more becomes void. */
    rig->attempt = 5;
    rig->epoch = 5;
    assert_int_equal(write_now(rig, LEASE(1) + 3, 9, 1), 0);
    assert_int_equal(change_now(rig, change), 0);
    change.attempt = 4;
    change.config_epoch = 4;
    assert_int_equal(change_now(rig, change), 0);
    assert_true(voids_run(rig, &voids, 0, SECTORS, 0));
    assert_int_equal(voids.voids.count, 3);
    rig->attempt = 4;
    assert_int_equal(write_now(rig, LEASE(1) + 4, 9, 1), -DL_E_EPOCH_OLD);
    rig->attempt = 0;
    assert_int_equal(write_now(rig, LEASE(1) + 4, 9, 1), -DL_E_EPOCH_OLD);
    rig_cut(rig);
    assert_int_equal(rig_chunk(rig)->attempt, 5);
    assert_true(voids_run(rig, &voids, 0, SECTORS, 0));
    assert_int_equal(voids.voids.count, 3);
    rig->epoch = 6;
    assert_int_equal(write_now(rig, LEASE(1) + 4, 8, 4), 0);
    assert_int_equal(rig_chunk(rig)->attempt, 0);
    rig_cut(rig);
    assert_int_equal(rig_chunk(rig)->attempt, 0);
    assert_int_equal(rig_chunk(rig)->config_epoch, 6);
    rig_quiet(rig);
    rig_fini(rig);
    free(rig);
}

/*
 * The index has the chunk as it was after its attempt, or after its promotion, and is replayed
 * from before it: nothing of it happens twice.
 */
static void
test_replay_of_what_the_index_has(void **state)
{
    uint64_t replayed = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct rig *rig = calloc(1, sizeof(*rig));
        struct test_voids voids;
        bool never = false;

        assert_non_null(rig);
        rig_init(rig, seed);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(write_now(rig, LEASE(1) + 1 + i, i * 64, 4), 0);
        assert_int_equal(change_now(rig, attempt_of(rig, 5)), 0);
        if (seed % 2 == 0)
            assert_int_equal(change_now(rig, (struct store_change){.kind = STORE_IN_SYNC,
                                                                   .incarnation = 1,
                                                                   .config_epoch = 6}),
                             0);
        fake_env_run_for(&rig->env, 4900000000u);
        (void)fake_env_run(&rig->env, &never, fake_rng_below(&rig->rng, 20));
        rig_cut(rig);
        replayed += engine_counters(rig->engine)->replayed_records > 0;
        assert_int_equal(rig_chunk(rig)->attempt, seed % 2 == 0 ? 0 : 5);
        assert_int_equal(rig_chunk(rig)->pending_count, 0);
        assert_true(voids_run(rig, &voids, 0, SECTORS, 0));
        assert_int_equal(voids.voids.count, 12);
        rig_fini(rig);
        free(rig);
    }
    print_message("%llu of 300 replayed something\n", (unsigned long long)replayed);
    assert_true(replayed > 20);
}

/* What comes is taken where it is void or older; what is above the source's S is listed. */
static void
test_merge(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct truth hole = {0, SECTOR_HOLE}, zero = {LEASE(1) + 9, SECTOR_ZERO};
    struct truth newer = data_of(LEASE(1) + 20), older = data_of(LEASE(1) + 1);
    struct test_merge *merge;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 2);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 4), 0);
    rig->stable = LEASE(1) + 1;
    assert_int_equal(write_now(rig, LEASE(1) + 2, 10, 4), 0);
    assert_int_equal(change_now(rig, attempt_of(rig, 5)), 0);
    rig->attempt = 5;
    rig->epoch = 5;
    assert_int_equal(write_now(rig, LEASE(1) + 30, 3, 1), 0);
    merge = merge_make(rig);
    merge_add(merge, 0, &older); /* is here */
    merge_add(merge, 1, &newer);
    merge_add(merge, 2, &hole);  /* not void: stays */
    merge_add(merge, 3, &newer); /* here is a newer one */
    merge_add(merge, 10, &hole);
    merge_add(merge, 11, &zero);
    merge_add(merge, 12, &newer);
    merge_add(merge, 13, &older);
    merge_add(merge, 300, &newer);
    merge->merge.cursor_sectors = 200;
    merge->merge.stable_version = LEASE(1) + 10;
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 6);
    for (int again = 0; again < 2; again++) {
        struct truth expected[SECTORS] = {0};
        const struct chunk *chunk = rig_chunk(rig);

        expected[0] = expected[2] = expected[13] = older;
        expected[1] = expected[12] = expected[300] = newer;
        expected[3] = data_of(LEASE(1) + 30);
        expected[11] = zero;
        expect_content(rig, expected);
        assert_int_equal(chunk->cursor_sectors, 200);
        assert_int_equal(chunk->reported_version, LEASE(1) + 10);
        assert_int_equal(chunk->pending_count, 2);
        assert_int_equal(chunk->pending[0].version, LEASE(1) + 20);
        assert_true(chunk->pending[0].pulled);
        assert_int_equal(chunk->pending[0].offset_sectors, 1);
        assert_int_equal(chunk->pending[0].length_sectors, 300);
        rig_quiet(rig);
        rig_cut(rig);
    }
    rig->attempt = 4;
    assert_int_equal(merge_now(rig, merge_make(rig), NULL), -DL_E_EPOCH_OLD);
    rig_fini(rig);
    free(rig);
}

/* 256 sectors of as many versions don't fit into one record. */
static void
test_merge_of_many_versions(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct truth expected[SECTORS] = {0};
    struct test_merge *merge;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 3);
    assert_int_equal(change_now(rig, attempt_of(rig, 2)), 0);
    rig->attempt = 2;
    merge = merge_make(rig);
    for (uint32_t i = 0; i < STORE_IO_SECTORS_MAX; i++) {
        expected[i] = data_of(LEASE(1) + 1 + i);
        merge_add(merge, i, &expected[i]);
    }
    merge->merge.cursor_sectors = STORE_IO_SECTORS_MAX;
    merge->merge.stable_version = LEASE(2);
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, STORE_IO_SECTORS_MAX);
    assert_true(engine_counters(rig->engine)->merges > 1);
    assert_int_equal(rig_chunk(rig)->cursor_sectors, STORE_IO_SECTORS_MAX);
    expect_content(rig, expected);
    rig_cut(rig);
    expect_content(rig, expected);
    rig_fini(rig);
    free(rig);
}

/*
 * A repair replaces exactly its version; the old block is never used again, also not after a
 * crash.
 */
static void
test_repair(void **state)
{
    struct truth good = data_of(LEASE(1) + 1), other = data_of(LEASE(1) + 2);
    struct rig *rig = calloc(1, sizeof(*rig));
    struct store_stats stats;
    struct test_merge *merge;
    struct test_pull *pull;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 4);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 4), 0);
    fake_disk_settle(&rig->disk);
    fake_disk_flip_bit(&rig->disk, rig->data_offset + 2 * SECTOR_BYTES + 77, 3);
    pull = pull_now(rig, 0, 64, 0, NULL);
    assert_int_equal(pull->err, -DL_E_CRC_DATA);
    assert_int_equal(pull->pull.bad_sector, 2);
    pull_free(pull);
    /* The slots of the segment have changed since it was asked for, or the volume was fenced. */
    merge = repair_make(rig);
    merge->merge.config_epoch--;
    merge_add(merge, 2, &good);
    assert_int_equal(merge_now(rig, merge, NULL), -DL_E_EPOCH_OLD);
    merge = repair_make(rig);
    merge->merge.lease_epoch++;
    merge_add(merge, 2, &good);
    assert_int_equal(merge_now(rig, merge, NULL), -DL_E_EPOCH_OLD);
    merge = repair_make(rig);
    merge_add(merge, 2, &good);
    merge_add(merge, 3, &other); /* not what is here */
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 1);
    for (int again = 0; again < 3; again++) {
        struct truth expected[SECTORS] = {0};

        expected[0] = expected[1] = expected[2] = expected[3] = good;
        expect_content(rig, expected);
        rig_quiet(rig);
        rig->store->ops->get_stats(rig->store, &stats);
        assert_int_equal(stats.used_bytes, 5 * SECTOR_BYTES);
        rig_cut(rig);
    }
    assert_int_equal(fake_index_count(&rig->index, "X", 1), 1);
    rig_fini(rig);
    free(rig);
}

/*
 * A sector that nobody has right comes with other bytes than its CRC says.  A crash right after it
 * loses neither it nor what came behind it, reads fail, and the very version repairs it.
 */
static void
test_merge_of_a_bad_sector(void **state)
{
    struct truth good = data_of(LEASE(1) + 1), behind = data_of(LEASE(1) + 2);
    struct rig *rig = calloc(1, sizeof(*rig));
    struct truth expected[SECTORS] = {0};
    struct test_merge *merge;
    struct test_pull *pull;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 5);
    assert_int_equal(change_now(rig, attempt_of(rig, 2)), 0);
    rig->attempt = rig->epoch = 2;
    merge = merge_make(rig);
    merge_add(merge, 7, &good);
    memset(merge->payload, 0, SECTOR_BYTES);
    merge->merge.bad = true;
    merge->merge.cursor_sectors = 8;
    merge->merge.stable_version = LEASE(2);
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 1);
    merge = merge_make(rig);
    merge_add(merge, 8, &behind);
    merge->merge.cursor_sectors = SECTORS;
    assert_int_equal(merge_now(rig, merge, NULL), 0);
    rig_cut(rig);
    assert_int_equal(rig_chunk(rig)->cursor_sectors, SECTORS);
    assert_int_equal(
        change_now(rig,
                   (struct store_change){.kind = STORE_IN_SYNC, .key = key, .config_epoch = 3}),
        0);
    for (int again = 0; again < 2; again++) {
        pull = pull_now(rig, 0, 64, 0, NULL);
        assert_int_equal(pull->err, -DL_E_CRC_DATA);
        assert_int_equal(pull->pull.bad_sector, 7);
        pull_free(pull);
        rig_quiet(rig);
        rig_cut(rig);
    }
    merge = repair_make(rig);
    merge_add(merge, 7, &good);
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 1);
    expected[7] = good;
    expected[8] = behind;
    expect_content(rig, expected);
    merge = merge_make(rig);
    merge->merge.bad = true;
    assert_int_equal(merge_now(rig, merge, NULL), -DL_E_RANGE);
    rig_fini(rig);
    free(rig);
}

static void
damage_leaf(struct rig *rig)
{
    uint8_t leaf[INDEX_KEY_BYTES_MAX];
    uint32_t bytes;

    fake_env_remove_turn_end(&rig->env, rig);
    engine_destroy(rig->engine);
    fake_env_crash(&rig->env);
    fake_disk_crash(&rig->disk);
    fake_index_crash(&rig->index);
    assert_true(fake_index_key_at(&rig->index, "L", 1, 0, leaf, &bytes));
    assert_true(fake_index_flip_bit(&rig->index, leaf, bytes, 20, 3));
    fake_index_reopen(&rig->index);
    assert_int_equal(
        engine_open(&rig->engine, &rig->env.env, &rig->disk.disk, &rig->index.index, NULL, NULL),
        0);
    rig->store = engine_store(rig->engine);
    fake_env_add_turn_end(&rig->env, on_turn_end, rig);
}

/*
 * A leaf that makes no sense is void: what is written heals it sector by sector, for good; what
 * comes from another slot only when that had all that this one may have acknowledged.
 */
static void
test_damaged_leaf(void **state)
{
    struct truth good = data_of(LEASE(1) + 1);
    struct rig *rig = calloc(1, sizeof(*rig));
    struct test_voids voids;
    struct test_merge *merge;
    struct test_pull *pull;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 5);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 16), 0);
    assert_int_equal(write_now(rig, LEASE(1) + 7, 5, 1), 0);
    rig_quiet(rig);
    damage_leaf(rig);
    assert_true(voids_run(rig, &voids, 0, 64, 0));
    assert_int_equal(voids.err, 0);
    assert_int_equal(voids.voids.count, 64);
    pull = pull_now(rig, 0, 64, 0, NULL);
    assert_int_equal(pull->err, -DL_E_INDEX_CORRUPT);
    pull_free(pull);
    assert_int_equal(write_now(rig, LEASE(1) + 8, 0, 2), 0);
    /* The source had not yet all that this slot may have had. */
    merge = repair_make(rig);
    merge->merge.stable_version = LEASE(1) + 6;
    merge_add(merge, 3, &good);
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 0);
    merge = repair_make(rig);
    merge->merge.stable_version = LEASE(1) + 7;
    for (uint32_t i = 2; i < 64; i++) {
        struct truth hole = {0, SECTOR_HOLE}, five = data_of(LEASE(1) + 7);

        merge_add(merge, i, i == 5 ? &five : i < 16 ? &good : &hole);
    }
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 62);
    for (int again = 0; again < 3; again++) {
        struct truth expected[SECTORS] = {0};

        for (uint32_t i = 0; i < 16; i++)
            expected[i] = good;
        expected[0] = expected[1] = data_of(LEASE(1) + 8);
        expected[5] = data_of(LEASE(1) + 7);
        expect_content(rig, expected);
        if (again == 0)
            for (int i = 0; i < 60 && !engine_is_quiet(rig->engine); i++)
                fake_env_run_for(&rig->env, UINT64_C(1000000000));
        assert_true(again == 2 || engine_is_quiet(rig->engine) || again == 1);
        rig_cut(rig);
    }
    /* And what the damaged leaf had is free again. */
    rig_quiet(rig);
    assert_int_equal(fake_index_count(&rig->index, "Z", 1), 0);
    rig_fini(rig);
    free(rig);
}

/*
 * What a damaged leaf may have had above the step counts for nothing in a new attempt; all below it
 * every source has.
 */
static void
test_damaged_leaf_in_an_attempt(void **state)
{
    struct truth good = data_of(LEASE(1) + 1), expected[SECTORS] = {0};
    struct truth hole = {0, SECTOR_HOLE};
    struct rig *rig = calloc(1, sizeof(*rig));
    struct test_merge *merge;
    uint32_t taken;

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 6);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 16), 0);
    rig->stable = LEASE(1) + 1;
    assert_int_equal(write_now(rig, LEASE(1) + 7, 5, 1), 0);
    rig_quiet(rig);
    damage_leaf(rig);
    assert_int_equal(change_now(rig, attempt_of(rig, 5)), 0);
    rig->attempt = rig->epoch = 5;
    merge = merge_make(rig);
    merge->merge.stable_version = LEASE(1) + 1;
    for (uint32_t i = 0; i < 64; i++)
        merge_add(merge, i, i < 16 ? &good : &hole);
    assert_int_equal(merge_now(rig, merge, &taken), 0);
    assert_int_equal(taken, 64);
    for (uint32_t i = 0; i < 16; i++)
        expected[i] = good;
    for (int again = 0; again < 2; again++) {
        expect_content(rig, expected);
        rig_quiet(rig);
        rig_cut(rig);
    }
    rig_fini(rig);
    free(rig);
}

/* While the answer waits for a leaf the chunk grows: its new leaves are not looked at. */
static void
test_voids_of_a_chunk_that_grows(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct test_voids voids = {
        .voids = {.key = key, .window_sectors = SECTORS, .on_done = voids_on_done}};

    (void)state;
    assert_non_null(rig);
    rig_init(rig, 6);
    assert_int_equal(write_now(rig, LEASE(1) + 1, 0, 16), 0);
    rig_quiet(rig);
    rig_cut(rig);
    rig->index.held = true;
    rig->store->ops->voids_start(rig->store, &voids.voids);
    assert_int_equal(write_now(rig, LEASE(1) + 2, SECTORS - 16, 16), 0);
    assert_false(voids.done);
    rig->index.held = false;
    rig_run(rig, &voids.done);
    assert_int_equal(voids.err, 0);
    assert_int_equal(voids.voids.count, 0);
    rig_fini(rig);
    free(rig);
}

UNIT_MAIN(cmocka_unit_test(test_attempt), cmocka_unit_test(test_replay_of_what_the_index_has),
          cmocka_unit_test(test_merge), cmocka_unit_test(test_merge_of_a_bad_sector),
          cmocka_unit_test(test_merge_of_many_versions), cmocka_unit_test(test_repair),
          cmocka_unit_test(test_damaged_leaf), cmocka_unit_test(test_damaged_leaf_in_an_attempt),
          cmocka_unit_test(test_voids_of_a_chunk_that_grows), cmocka_unit_test(test_histories))
