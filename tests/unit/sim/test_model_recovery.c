/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model of the store, as a slot that recovers sees it: what is voided when an attempt begins,
 * what a merge takes, what a pull waits for; and, over many histories with crashes between any two
 * steps, that a slot which is promoted has what its source has.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/sim/model_store.h"
#include "tests/sim/sim.h"

#define SECTORS    64u
#define WRITES_MAX 600u
#define LEASE      (1ull << 40)

static const struct chunk_key the_chunk = {.volume = 3, .segment = 1, .slot = 2};

struct one_write {
    struct store_write write;
    uint64_t version;
    uint32_t offset, length;
    uint8_t *payload;
    uint32_t crcs[128];
    bool started, done;
    int err;
};

struct fixture {
    struct sim_world world;
    struct sim_process process;
    struct model_disk disk;
    struct chunk_store *store;
    struct fake_rng rng;
    struct store_change change;
    bool change_done;
    int change_err;
    struct store_voids voids;
    struct store_merge merge;
    struct store_sector sectors[STORE_IO_SECTORS_MAX];
    uint8_t *buffer;
    struct store_pull pull;
    bool busy; /* voids, merge or pull */
    int err;
    /* The histories. */
    struct one_write writes[WRITES_MAX];
    uint32_t write_count;
    uint64_t truth[SECTORS]; /* what the source has */
    uint64_t pulled_stable;
    uint32_t config_epoch, attempt;
    bool in_map;
};

static void
enter(struct fixture *fx, struct sim_process **before)
{
    *before = sim_enter(&fx->process);
}

static void
leave(struct fixture *fx, struct sim_process *before)
{
    fx->store->ops->turn_end(fx->store);
    sim_leave(&fx->process, before);
}

static void
fixture_open(struct fixture *fx)
{
    struct sim_process *before;

    sim_process_start(&fx->process);
    enter(fx, &before);
    fx->store = model_store_open(&fx->disk, &fx->process.env);
    leave(fx, before);
}

static void
fixture_crash(struct fixture *fx)
{
    model_store_crash(fx->store);
    sim_process_kill(&fx->process, true);
}

static struct fixture *
fixture_create(uint64_t seed)
{
    struct fixture *fx = calloc(1, sizeof(*fx));

    assert_non_null(fx);
    sim_world_init(&fx->world, seed);
    sim_process_init(&fx->process, &fx->world, "server");
    model_disk_init(&fx->disk, seed);
    fake_rng_init(&fx->rng, seed);
    fx->buffer = aligned_alloc(4096, (size_t)STORE_IO_SECTORS_MAX * SECTOR_BYTES);
    assert_non_null(fx->buffer);
    fixture_open(fx);
    return fx;
}

static void
fixture_destroy(struct fixture *fx)
{
    fixture_crash(fx);
    for (uint32_t i = 0; i < fx->write_count; i++)
        free(fx->writes[i].payload);
    free(fx->buffer);
    model_disk_fini(&fx->disk);
    sim_process_fini(&fx->process);
    sim_world_fini(&fx->world);
    free(fx);
}

static void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

static struct chunk *
chunk_of(struct fixture *fx)
{
    struct chunk *chunk = chunk_table_find(fx->disk.chunks, &the_chunk);

    assert_non_null(chunk);
    return chunk;
}

static struct model_sector
sector_of(struct fixture *fx, uint32_t idx)
{
    const struct model_chunk *content = chunk_of(fx)->store_private;

    return idx < content->sector_count ? content->sectors[idx] : (struct model_sector){0};
}

/* --- requests --- */

static void
on_written(struct store_write *write, int err)
{
    struct one_write *one = list_entry(write, struct one_write, write);

    one->done = true;
    one->err = err;
}

static void
send_write(struct fixture *fx, struct one_write *one, uint64_t stable, uint32_t attempt)
{
    struct sim_process *before;

    one->started = true;
    one->done = false;
    one->write = (struct store_write){
        .key = the_chunk,
        .config_epoch = fx->config_epoch,
        .birth = 1,
        .version = one->version,
        .stable_version = stable,
        .attempt = attempt,
        .offset_sectors = one->offset,
        .length_sectors = one->length,
        .create = true,
        .payload = one->payload,
        .crcs = one->crcs,
        .on_done = on_written,
    };
    enter(fx, &before);
    fx->store->ops->write_start(fx->store, &one->write);
    leave(fx, before);
}

static struct one_write *
make_write(struct fixture *fx, uint64_t version, uint32_t offset, uint32_t length)
{
    struct one_write *one = &fx->writes[fx->write_count++];

    assert_true(fx->write_count <= WRITES_MAX);
    one->version = version;
    one->offset = offset;
    one->length = length;
    one->payload = malloc((size_t)length * SECTOR_BYTES);
    assert_non_null(one->payload);
    memset(one->payload, (int)(version & 0xff), (size_t)length * SECTOR_BYTES);
    for (uint32_t i = 0; i < length; i++)
        one->crcs[i] = crc32c(0, one->payload, SECTOR_BYTES);
    return one;
}

static void
write_now(struct fixture *fx, uint64_t version, uint32_t offset, uint32_t length, uint64_t stable,
          uint32_t attempt)
{
    struct one_write *one = make_write(fx, version, offset, length);

    send_write(fx, one, stable, attempt);
    run_for(fx, SIM_S);
    assert_true(one->done);
    assert_int_equal(one->err, 0);
}

static void
on_changed(struct store_change *change, int err)
{
    struct fixture *fx = list_entry(change, struct fixture, change);

    fx->change_done = true;
    fx->change_err = err;
}

static void
start_change(struct fixture *fx, struct store_change change)
{
    struct sim_process *before;

    fx->change = change;
    fx->change.key = the_chunk;
    fx->change.on_done = on_changed;
    fx->change_done = false;
    enter(fx, &before);
    fx->store->ops->change_start(fx->store, &fx->change);
    leave(fx, before);
}

static int
change_now(struct fixture *fx, struct store_change change)
{
    start_change(fx, change);
    run_for(fx, SIM_S);
    assert_true(fx->change_done);
    return fx->change_err;
}

static struct store_change
attempt_change(uint32_t config_epoch, uint32_t incarnation)
{
    return (struct store_change){
        .kind = STORE_ATTEMPT,
        .config_epoch = config_epoch,
        .attempt = config_epoch,
        .incarnation = incarnation,
        .lease_epoch = 1,
        .segment_sectors = SECTORS,
    };
}

static struct store_change
in_sync_change(uint32_t config_epoch)
{
    return (struct store_change){
        .kind = STORE_IN_SYNC, .config_epoch = config_epoch, .incarnation = 1};
}

static void
on_voids(struct store_voids *voids, int err)
{
    struct fixture *fx = list_entry(voids, struct fixture, voids);

    fx->busy = false;
    fx->err = err;
}

static void
on_merged(struct store_merge *merge, int err)
{
    struct fixture *fx = list_entry(merge, struct fixture, merge);

    fx->busy = false;
    fx->err = err;
}

static void
on_pulled(struct store_pull *pull, int err)
{
    struct fixture *fx = list_entry(pull, struct fixture, pull);

    fx->busy = false;
    fx->err = err;
}

static void
start_voids(struct fixture *fx, uint32_t first, uint32_t window)
{
    struct sim_process *before;

    fx->voids = (struct store_voids){
        .key = the_chunk, .first_sector = first, .window_sectors = window, .on_done = on_voids};
    fx->busy = true;
    enter(fx, &before);
    fx->store->ops->voids_start(fx->store, &fx->voids);
    leave(fx, before);
}

static void
start_merge(struct fixture *fx, uint32_t count, uint32_t cursor, uint64_t stable, uint32_t attempt)
{
    struct sim_process *before;

    fx->merge = (struct store_merge){
        .key = the_chunk,
        .attempt = attempt,
        .sectors = fx->sectors,
        .sector_count = count,
        .payload = fx->buffer,
        .cursor_sectors = cursor,
        .stable_version = stable,
        .on_done = on_merged,
    };
    fx->busy = true;
    enter(fx, &before);
    fx->store->ops->merge_start(fx->store, &fx->merge);
    leave(fx, before);
}

static void
start_pull(struct fixture *fx, uint64_t above, const uint64_t *wanted)
{
    struct sim_process *before;

    fx->pull = (struct store_pull){
        .key = the_chunk,
        .window_sectors = SECTORS,
        .above_version = above,
        .wanted = wanted,
        .buffer = fx->buffer,
        .sectors = fx->sectors,
        .on_done = on_pulled,
    };
    fx->busy = true;
    enter(fx, &before);
    fx->store->ops->pull_start(fx->store, &fx->pull);
    leave(fx, before);
}

static int
wait_idle(struct fixture *fx)
{
    run_for(fx, SIM_S);
    assert_false(fx->busy);
    return fx->err;
}

/* One more sector for the next merge; version 0 is a hole. */
static void
sector_for_merge(struct fixture *fx, uint32_t *count, uint32_t *data_count, uint32_t sector,
                 uint64_t version)
{
    uint8_t *data = fx->buffer + (size_t)*data_count * SECTOR_BYTES;

    memset(data, (int)(version & 0xff), SECTOR_BYTES);
    fx->sectors[(*count)++] = (struct store_sector){
        .sector = sector,
        .birth = version == 0 ? 0 : 1,
        .version = version,
        .crc = version == 0 ? 0 : crc32c(0, data, SECTOR_BYTES),
        .kind = version == 0 ? SECTOR_HOLE : SECTOR_DATA,
    };
    *data_count += version != 0;
}

/* --- single rules --- */

/*
 * S = 2 when the attempt begins: versions 3 and 4 are void, and the list is empty; the same version
 * again is taken again, an older one is not; a lower attempt voids nothing.
 */
static void
test_attempt_voids(void **state)
{
    struct fixture *fx = fixture_create(1);

    (void)state;
    fx->config_epoch = 1;
    write_now(fx, LEASE + 1, 0, 4, 0, 0);
    write_now(fx, LEASE + 2, 4, 4, 0, 0);
    write_now(fx, LEASE + 3, 2, 4, LEASE + 2, 0);
    write_now(fx, LEASE + 4, 10, 1, LEASE + 2, 0);
    assert_int_equal(change_now(fx, attempt_change(5, 1)), 0);
    assert_int_equal(chunk_of(fx)->attempt, 5);
    assert_int_equal(chunk_of(fx)->config_epoch, 5);
    assert_int_equal(chunk_of(fx)->pending_count, 0);
    assert_int_equal(chunk_table_fence(fx->disk.chunks, the_chunk.volume), 1);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(sector_of(fx, i).is_void, (i >= 2 && i < 6) || i == 10);
    assert_int_equal(sector_of(fx, 0).version, LEASE + 1);
    start_voids(fx, 2, 9);
    assert_int_equal(wait_idle(fx), 0);
    assert_int_equal(fx->voids.count, 5);
    assert_int_equal(fx->voids.bits[0], 0x10f);

    fx->config_epoch = 5;
    write_now(fx, LEASE + 3, 2, 4, LEASE + 2, 5);
    assert_int_equal(sector_of(fx, 3).version, LEASE + 3);
    assert_false(sector_of(fx, 3).is_void);
    assert_int_equal(chunk_of(fx)->stable_version, LEASE + 2);
    write_now(fx, LEASE + 2, 10, 1, LEASE + 1,
              5); /* stable long ago: tells nothing of what is void */
    assert_true(sector_of(fx, 10).is_void);
    assert_int_equal(change_now(fx, attempt_change(5, 1)), 0);
    assert_int_equal(sector_of(fx, 3).version, LEASE + 3);
    assert_int_equal(change_now(fx, attempt_change(4, 1)), 0);
    assert_int_equal(chunk_of(fx)->attempt, 5);

    /* A write of another attempt is not for this store. */
    struct one_write *one = make_write(fx, LEASE + 9, 0, 1);
    send_write(fx, one, 0, 4);
    run_for(fx, SIM_S);
    assert_int_equal(one->err, -DL_E_EPOCH_OLD);
    assert_int_equal(sector_of(fx, 0).version, LEASE + 1);
    fixture_destroy(fx);
}

/* A large write that was started before the attempt is void with the rest, whenever it ends. */
static void
test_attempt_waits_for_large_writes(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct one_write *one;

        fx->config_epoch = 1;
        write_now(fx, LEASE + 1, 0, 4, 0, 0);
        one = make_write(fx, LEASE + 2, 0, 40);
        send_write(fx, one, LEASE + 1, 0);
        assert_int_equal(change_now(fx, attempt_change(5, 1)), 0);
        assert_true(one->done);
        for (uint32_t i = 0; i < 40; i++)
            assert_true(sector_of(fx, i).is_void);
        assert_int_equal(chunk_of(fx)->pending_count, 0);
        fixture_destroy(fx);
    }
}

/* Rule 6: of a lower incarnation nothing is left; of a lower config epoch nothing is done. */
static void
test_incarnations(void **state)
{
    struct fixture *fx = fixture_create(1);
    struct store_change unknown = attempt_change(5, 0);

    (void)state;
    assert_int_equal(change_now(fx, unknown), -DL_E_CHUNK_UNKNOWN);
    fx->config_epoch = 1;
    write_now(fx, LEASE + 1, 0, 4, LEASE, 0);
    assert_int_equal(change_now(fx, attempt_change(5, 4)), 0);
    assert_int_equal(chunk_of(fx)->incarnation, 4);
    assert_int_equal(chunk_of(fx)->stable_version, 0);
    assert_int_equal(chunk_step_version(chunk_of(fx), 9), 0);
    assert_int_equal(sector_of(fx, 0).version, 0);
    assert_false(sector_of(fx, 0).is_void);
    assert_int_equal(fx->disk.chunks->chunk_count, 1);
    assert_int_equal(change_now(fx, attempt_change(3, 9)), 0);
    assert_int_equal(chunk_of(fx)->incarnation, 4);
    struct store_change later = in_sync_change(9);
    later.incarnation = 8;
    assert_int_equal(change_now(fx, later), -DL_E_CHUNK_UNKNOWN);
    fixture_destroy(fx);
}

/*
 * Rules 14, 15, 17: lower ones and void ones are taken, the cursor and the source's S go with them,
 * what is above that S is listed, but is no answer to a retry; S rises at the promotion alone.
 */
static void
test_merge_and_promotion(void **state)
{
    struct fixture *fx = fixture_create(1);
    uint32_t count = 0, data = 0;

    (void)state;
    fx->config_epoch = 1;
    write_now(fx, LEASE + 1, 0, 2, 0, 0);
    write_now(fx, LEASE + 5, 2, 2, LEASE + 1, 0);
    assert_int_equal(change_now(fx, attempt_change(2, 1)), 0);
    fx->config_epoch = 2;
    write_now(fx, LEASE + 9, 1, 1, LEASE + 1, 2);
    sector_for_merge(fx, &count, &data, 0, LEASE + 4);
    sector_for_merge(fx, &count, &data, 1, LEASE + 8); /* lower than what the attempt has written */
    sector_for_merge(fx, &count, &data, 2, 0);         /* void here, a hole there */
    sector_for_merge(fx, &count, &data, 3, LEASE + 1); /* void here, an older content there */
    start_merge(fx, count, 4, LEASE + 4, 1);
    assert_int_equal(wait_idle(fx), -DL_E_EPOCH_OLD);
    start_merge(fx, count, 4, LEASE + 4, 2);
    assert_int_equal(wait_idle(fx), 0);
    assert_int_equal(fx->merge.taken_sectors, 3);
    assert_int_equal(sector_of(fx, 0).version, LEASE + 4);
    assert_int_equal(sector_of(fx, 1).version, LEASE + 9);
    assert_int_equal(sector_of(fx, 2).version, 0);
    assert_false(sector_of(fx, 2).is_void);
    assert_int_equal(sector_of(fx, 3).version, LEASE + 1);
    assert_int_equal(sector_of(fx, 3).data[5], 1);
    assert_int_equal(chunk_of(fx)->cursor_sectors, 4);
    assert_int_equal(chunk_of(fx)->stable_version, LEASE + 1);
    assert_int_equal(chunk_of(fx)->reported_version, LEASE + 4);
    assert_int_equal(chunk_of(fx)->pending_count, 2);
    assert_false(chunk_version_is_durable(chunk_of(fx), LEASE + 8));
    assert_true(chunk_version_is_durable(chunk_of(fx), LEASE + 9));

    struct store_change report = {.kind = STORE_REPORT, .attempt = 2, .stable_version = LEASE + 8};
    assert_int_equal(change_now(fx, report), 0);
    report.attempt = 1;
    assert_int_equal(change_now(fx, report), -DL_E_EPOCH_OLD);
    assert_int_equal(chunk_of(fx)->stable_version, LEASE + 1);
    assert_int_equal(change_now(fx, in_sync_change(2)), 0); /* not of a later config epoch */
    assert_int_equal(chunk_of(fx)->attempt, 2);
    assert_int_equal(change_now(fx, in_sync_change(3)), 0);
    assert_int_equal(chunk_of(fx)->attempt, 0);
    assert_int_equal(chunk_of(fx)->stable_version, LEASE + 8);
    assert_int_equal(chunk_of(fx)->pending_count, 1);
    start_merge(fx, count, 8, LEASE + 4, 2);
    assert_int_equal(wait_idle(fx), -DL_E_EPOCH_OLD);
    fixture_destroy(fx);
}

/* A write without an attempt, under a later config epoch, says that the slot was promoted. */
static void
test_promotion_by_write(void **state)
{
    struct fixture *fx = fixture_create(1);

    (void)state;
    assert_int_equal(change_now(fx, attempt_change(2, 2)), 0);
    fx->config_epoch = 3;
    write_now(fx, LEASE + 1, 0, 1, 0, 0);
    assert_int_equal(chunk_of(fx)->attempt, 0);
    assert_int_equal(chunk_of(fx)->config_epoch, 3);
    assert_int_equal(fx->disk.counters.promotions, 1);
    fixture_destroy(fx);
}

/* A repair replaces exactly the version that it names. */
static void
test_repair(void **state)
{
    struct fixture *fx = fixture_create(1);
    uint32_t count = 0, data = 0;

    (void)state;
    fx->config_epoch = 1;
    write_now(fx, LEASE + 1, 0, 2, 0, 0);
    sector_for_merge(fx, &count, &data, 0, LEASE + 1);
    sector_for_merge(fx, &count, &data, 1, LEASE + 2);
    fx->buffer[0] = 0xee;
    start_merge(fx, count, 0, 0, 0);
    assert_int_equal(wait_idle(fx), -DL_E_EPOCH_OLD);
    start_merge(fx, count, 0, 0, 0);
    fx->merge.repair = true;
    assert_int_equal(wait_idle(fx), -DL_E_EPOCH_OLD); /* of another map */
    start_merge(fx, count, 0, 0, 0);
    fx->merge.repair = true;
    fx->merge.config_epoch = 1;
    assert_int_equal(wait_idle(fx), 0);
    assert_int_equal(fx->merge.taken_sectors, 1);
    assert_int_equal(sector_of(fx, 0).data[0], 0xee);
    assert_int_equal(sector_of(fx, 1).version, LEASE + 1);
    assert_int_equal(chunk_of(fx)->cursor_sectors, 0);
    fixture_destroy(fx);
}

/*
 * A pull sees what was started before it, a slow write too; gives what is above the version or
 * wanted, holes too if they are; and does not give what the disk has damaged.
 */
static void
test_pull(void **state)
{
    uint64_t wanted[STORE_WINDOW_WORDS] = {0};
    struct fixture *fx = fixture_create(7);

    (void)state;
    fx->config_epoch = 1;
    start_pull(fx, 0, NULL);
    assert_int_equal(wait_idle(fx), -DL_E_CHUNK_UNKNOWN);
    write_now(fx, LEASE + 1, 0, 4, 0, 0);
    send_write(fx, make_write(fx, LEASE + 2, 2, 40), LEASE + 1, 0);
    start_pull(fx, LEASE + 1, NULL);
    assert_int_equal(wait_idle(fx), 0);
    assert_int_equal(fx->pull.sector_count, 40);
    assert_int_equal(fx->pull.data_sectors, 40);
    assert_int_equal(fx->sectors[0].sector, 2);
    assert_int_equal(fx->pull.next_sector, SECTORS);
    assert_int_equal(fx->pull.stable_version, LEASE + 1);
    assert_int_equal(fx->buffer[0], 2);
    wanted[0] = 1ull << 1 | 1ull << 50;
    start_pull(fx, LEASE + 2, wanted);
    assert_int_equal(wait_idle(fx), 0);
    assert_int_equal(fx->pull.sector_count, 2);
    assert_int_equal(fx->sectors[0].version, LEASE + 1);
    assert_int_equal(fx->sectors[1].kind, SECTOR_HOLE);
    fx->disk.profile.read_flips_per_million = 1000000;
    start_pull(fx, LEASE, NULL);
    assert_int_equal(wait_idle(fx), -DL_E_CRC_DATA);
    assert_true(fx->pull.bad_sector < 42);
    fx->disk.profile.read_flips_per_million = 0;
    assert_int_equal(change_now(fx, attempt_change(5, 1)), 0);
    start_pull(fx, LEASE, NULL);
    assert_int_equal(wait_idle(fx), -DL_E_NOT_IN_SYNC);
    fixture_destroy(fx);
}

/* --- histories --- */

static uint64_t
history_stable(const struct fixture *fx)
{
    for (uint32_t i = 0; i < fx->write_count; i++)
        if (!fx->writes[i].done)
            return LEASE + i;
    return LEASE + fx->write_count;
}

/* The owner writes: to the source at once, and to the slot if it takes part. */
static void
history_write(struct fixture *fx)
{
    uint32_t length = fake_rng_percent(&fx->rng, 20) ? 30
                                                     : 1 + (uint32_t)fake_rng_below(&fx->rng, 3);
    uint32_t offset = (uint32_t)fake_rng_below(&fx->rng, SECTORS - length);
    uint64_t stable = history_stable(fx);
    struct one_write *one;

    if (fx->write_count == WRITES_MAX)
        return;
    one = make_write(fx, LEASE + fx->write_count + 1, offset, length);
    for (uint32_t i = 0; i < length; i++)
        fx->truth[offset + i] = one->version;
    if (fx->in_map)
        send_write(fx, one, stable, fx->attempt);
    else
        one->done = true; /* all slots of the map have it */
}

/* A part of what the source has, as PULL would give it. */
static void
history_pull(struct fixture *fx)
{
    struct chunk *chunk = chunk_of(fx);
    uint32_t first = chunk->cursor_sectors;
    uint32_t window = 1 + (uint32_t)fake_rng_below(&fx->rng, 12);
    uint32_t count = 0, data = 0;
    uint64_t above;

    if (first >= SECTORS || fx->busy)
        return;
    if (window > SECTORS - first)
        window = SECTORS - first;
    above = chunk_step_version(chunk, first);
    for (uint32_t i = 1; i < window; i++)
        if (chunk_step_version(chunk, first + i) != above)
            window = i;
    start_voids(fx, first, window);
    for (uint32_t i = 0; i < 100 && fx->busy; i++)
        run_for(fx, 100 * SIM_US);
    assert_false(fx->busy);
    for (uint32_t i = 0; i < window; i++)
        if (fx->truth[first + i] > above || (fx->voids.bits[i / 64] >> (i % 64) & 1) != 0)
            sector_for_merge(fx, &count, &data, first + i, fx->truth[first + i]);
    start_merge(fx, count, first + window, LEASE, fx->attempt);
}

static void
history_crash(struct fixture *fx)
{
    fixture_crash(fx);
    fx->busy = false;
    fixture_open(fx);
}

/* The slot is away for a while; what was not acknowledged goes on without it. */
static void
history_away(struct fixture *fx)
{
    fx->in_map = false;
    fx->config_epoch++;
    for (uint32_t i = 0; i < fx->write_count; i++)
        fx->writes[i].done = true;
    for (uint64_t i = fake_rng_below(&fx->rng, 4); i > 0; i--)
        history_write(fx);
}

/* A new attempt; a crash may cut it off, then the next one follows. */
static void
history_begin(struct fixture *fx)
{
    for (;;) {
        fx->attempt = ++fx->config_epoch;
        start_change(fx, attempt_change(fx->attempt, 1));
        run_for(fx, fake_rng_below(&fx->rng, 600) * SIM_US);
        if (fx->change_done)
            break;
        history_crash(fx);
    }
    assert_int_equal(fx->change_err, 0);
    assert_int_equal(chunk_of(fx)->attempt, fx->attempt);
    fx->in_map = true;
    /* Rule 4: what is not acknowledged is sent again on the new map. */
    for (uint32_t i = 0; i < fx->write_count; i++)
        if (!fx->writes[i].done)
            send_write(fx, &fx->writes[i], history_stable(fx), fx->attempt);
}

static void
history_finish(struct fixture *fx)
{
    struct store_change report = {
        .kind = STORE_REPORT, .attempt = fx->attempt, .stable_version = LEASE};

    while (chunk_of(fx)->cursor_sectors < SECTORS) {
        (void)wait_idle(fx);
        history_pull(fx);
    }
    (void)wait_idle(fx);
    for (uint32_t i = 0; i < fx->write_count; i++)
        assert_true(fx->writes[i].done && fx->writes[i].err == 0);
    assert_int_equal(change_now(fx, report), 0);
    assert_int_equal(change_now(fx, in_sync_change(++fx->config_epoch)), 0);
    fx->attempt = 0;
    for (uint32_t i = 0; i < SECTORS; i++) {
        assert_false(sector_of(fx, i).is_void);
        assert_int_equal(sector_of(fx, i).version, fx->truth[i]);
    }
}

static void
history_step(struct fixture *fx)
{
    uint64_t dice = fake_rng_below(&fx->rng, 100);

    if (dice < 50) {
        history_write(fx);
    } else if (dice < 85) {
        history_pull(fx);
    } else if (dice < 88) {
        history_crash(fx);
        /* Its writes may be there or not; half the time the slot was ejected meanwhile. */
        if (fake_rng_percent(&fx->rng, 50))
            history_away(fx);
        history_begin(fx);
    } else if (dice < 90) {
        history_begin(fx);
    }
    run_for(fx, fake_rng_below(&fx->rng, 300) * SIM_US);
}

static void
test_histories(void **state)
{
    uint64_t attempts = 0, voided = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct fixture *fx = fixture_create(seed);

        fx->config_epoch = 1;
        fx->in_map = true;
        for (uint32_t i = 0; i < 8; i++)
            history_write(fx);
        (void)wait_idle(fx);
        for (uint32_t round = 0; round < 3; round++) {
            for (uint32_t i = 0; i < 10; i++)
                history_write(fx); /* in-sync */
            run_for(fx, fake_rng_below(&fx->rng, 500) * SIM_US);
            history_crash(fx);
            history_away(fx);
            history_begin(fx);
            for (uint32_t i = 0; i < 60; i++)
                history_step(fx);
            history_finish(fx);
        }
        attempts += fx->disk.counters.attempts;
        voided += fx->disk.counters.sectors_voided;
        fixture_destroy(fx);
    }
    assert_true(attempts > 400);
    assert_true(voided > 1000);
}

UNIT_MAIN(cmocka_unit_test(test_attempt_voids),
          cmocka_unit_test(test_attempt_waits_for_large_writes),
          cmocka_unit_test(test_incarnations), cmocka_unit_test(test_merge_and_promotion),
          cmocka_unit_test(test_promotion_by_write), cmocka_unit_test(test_repair),
          cmocka_unit_test(test_pull), cmocka_unit_test(test_histories))
