/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model of the store keeps what the engine promises, and loses in a crash what the engine may
 * lose: acknowledged writes are always there, of the others a prefix of groups, each whole; fences
 * hold at once and last when they were answered.
 */
#include "tests/unit/lib/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"
#include "tests/sim/model_store.h"
#include "tests/sim/sim.h"

#define WRITES 12u

struct one_write {
    struct store_write write;
    uint8_t *payload;
    uint32_t crcs[256];
    bool done;
    int err;
};

struct fixture {
    struct sim_world world;
    struct sim_process process;
    struct model_disk disk;
    struct chunk_store *store;
    struct one_write writes[WRITES];
    struct store_change fence;
    bool fence_done;
};

static const struct chunk_key the_chunk = {.volume = 3, .segment = 1, .slot = 2};

static void
fixture_open(struct fixture *fx)
{
    struct sim_process *before;

    sim_process_start(&fx->process);
    before = sim_enter(&fx->process);
    fx->store = model_store_open(&fx->disk, &fx->process.env);
    sim_leave(&fx->process, before);
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
    fixture_open(fx);
    return fx;
}

static void
fixture_destroy(struct fixture *fx)
{
    fixture_crash(fx);
    for (uint32_t i = 0; i < WRITES; i++)
        free(fx->writes[i].payload);
    model_disk_fini(&fx->disk);
    sim_process_fini(&fx->process);
    sim_world_fini(&fx->world);
    free(fx);
}

static void
on_written(struct store_write *write, int err)
{
    struct one_write *one = list_entry(write, struct one_write, write);

    assert_false(one->done);
    one->done = true;
    one->err = err;
}

/* Write idx covers two sectors of its own, or a hundred. */
static void
start_write_under(struct fixture *fx, uint32_t idx, uint32_t length, uint32_t config_epoch)
{
    struct one_write *one = &fx->writes[idx];
    struct sim_process *before = sim_enter(&fx->process);

    one->payload = malloc((size_t)length * SECTOR_BYTES);
    assert_non_null(one->payload);
    memset(one->payload, (int)idx + 1, (size_t)length * SECTOR_BYTES);
    for (uint32_t i = 0; i < length; i++)
        one->crcs[i] = crc32c(0, one->payload, SECTOR_BYTES);
    one->write = (struct store_write){
        .key = the_chunk,
        .config_epoch = config_epoch,
        .birth = 1,
        .version = (1ull << 40) + idx + 1,
        .offset_sectors = idx * 100,
        .length_sectors = length,
        .create = true,
        .payload = one->payload,
        .crcs = one->crcs,
        .on_done = on_written,
    };
    fx->store->ops->write_start(fx->store, &one->write);
    fx->store->ops->turn_end(fx->store);
    sim_leave(&fx->process, before);
}

static void
start_write(struct fixture *fx, uint32_t idx, uint32_t length)
{
    start_write_under(fx, idx, length, 1);
}

static void
run_for(struct fixture *fx, uint64_t duration_ns)
{
    uint64_t end_ns = fx->world.now_ns + duration_ns;

    while (sim_world_step(&fx->world, end_ns))
        ;
}

/* All of its sectors, or none. */
static bool
write_is_there(const struct fixture *fx, uint32_t idx)
{
    const struct store_write *write = &fx->writes[idx].write;
    struct chunk *chunk = chunk_table_find(fx->disk.chunks, &the_chunk);
    uint32_t there = 0;

    for (uint32_t i = 0; chunk != NULL && i < write->length_sectors; i++) {
        const struct model_chunk *content = chunk->store_private;
        uint32_t sector = write->offset_sectors + i;

        there += sector < content->sector_count && content->sectors[sector].kind == SECTOR_DATA &&
                 content->sectors[sector].data[77] == idx + 1;
    }
    assert_true(there == 0 || there == write->length_sectors);
    assert_int_equal(there > 0, chunk != NULL && chunk_version_is_durable(chunk, write->version));
    return there > 0;
}

static void
test_crash_keeps_what_was_acknowledged(void **state)
{
    uint32_t kept = 0, lost = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct fixture *fx = fixture_create(seed);
        bool gap = false;

        for (uint32_t i = 0; i < WRITES; i++) {
            start_write(fx, i, i % 5 == 3 ? 100 : 2);
            run_for(fx, seed * 500);
        }
        fixture_crash(fx);
        for (uint32_t i = 0; i < WRITES; i++) {
            bool there = write_is_there(fx, i);

            if (fx->writes[i].done) {
                assert_int_equal(fx->writes[i].err, 0);
                assert_true(there);
            } else {
                kept += there;
                lost += !there;
            }
            /* Small ones are in the order of their start. */
            if (i % 5 != 3) {
                assert_false(gap && there);
                gap = gap || !there;
            }
        }
        fixture_open(fx);
        fixture_destroy(fx);
    }
    assert_true(kept > 50);
    assert_true(lost > 50);
}

static void
on_fenced(struct store_change *change, int err)
{
    struct fixture *fx = list_entry(change, struct fixture, fence);

    assert_int_equal(err, 0);
    fx->fence_done = true;
    for (uint32_t i = 0; i < 6; i++)
        assert_true(chunk_version_is_durable(chunk_table_find(fx->disk.chunks, &the_chunk),
                                             fx->writes[i].write.version));
}

/*
 * A fence holds at once, is answered after all that came before it, and then survives every crash.
 */
static void
test_fence(void **state)
{
    uint32_t undone = 0, answered = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct sim_process *before;

        for (uint32_t i = 0; i < 6; i++)
            start_write(fx, i, i == 2 ? 100 : 1);
        before = sim_enter(&fx->process);
        fx->fence = (struct store_change){
            .kind = STORE_FENCE,
            .key = {.volume = the_chunk.volume},
            .lease_epoch = 9,
            .on_done = on_fenced,
        };
        fx->store->ops->change_start(fx->store, &fx->fence);
        fx->store->ops->turn_end(fx->store);
        sim_leave(&fx->process, before);
        assert_int_equal(chunk_table_fence(fx->disk.chunks, the_chunk.volume), 9);
        run_for(fx, seed * 10 * SIM_US);
        fixture_crash(fx);
        if (fx->fence_done)
            assert_int_equal(chunk_table_fence(fx->disk.chunks, the_chunk.volume), 9);
        answered += fx->fence_done;
        undone += chunk_table_fence(fx->disk.chunks, the_chunk.volume) == 0;
        fixture_open(fx);
        fixture_destroy(fx);
    }
    assert_true(answered > 20);
    assert_true(undone > 20);
}

/*
 * A config epoch holds at once, and then survives every crash if it was answered; a crash may take
 * it back before.
 */
static void
test_config_epoch(void **state)
{
    uint32_t undone = 0, answered = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct sim_process *before;
        uint32_t config_epoch;

        start_write(fx, 0, 1);
        run_for(fx, SIM_S);
        if (seed % 2 == 0) {
            before = sim_enter(&fx->process);
            fx->fence = (struct store_change){
                .kind = STORE_IN_SYNC,
                .key = the_chunk,
                .config_epoch = 9,
                .on_done = on_fenced,
            };
            fx->store->ops->change_start(fx->store, &fx->fence);
            fx->store->ops->turn_end(fx->store);
            sim_leave(&fx->process, before);
        } else {
            start_write_under(fx, 1, 1 + (uint32_t)(seed % 4) * 30, 9);
        }
        assert_int_equal(chunk_table_find(fx->disk.chunks, &the_chunk)->config_epoch, 9);
        run_for(fx, seed * 4 * SIM_US);
        fixture_crash(fx);
        config_epoch = chunk_table_find(fx->disk.chunks, &the_chunk)->config_epoch;
        if (fx->fence_done || fx->writes[1].done)
            assert_int_equal(config_epoch, 9);
        answered += fx->fence_done || fx->writes[1].done;
        undone += config_epoch != 9;
        fixture_open(fx);
        fixture_destroy(fx);
    }
    assert_true(answered > 20);
    assert_true(undone > 20);
}

/* The same version twice is written once, and acknowledged twice; a lower version does not show. */
static void
test_versions(void **state)
{
    struct fixture *fx = fixture_create(1);
    struct chunk *chunk;

    (void)state;
    start_write(fx, 0, 2);
    run_for(fx, SIM_S);
    start_write(fx, 1, 2);
    fx->writes[1].write.version = fx->writes[0].write.version;
    fx->writes[1].write.offset_sectors = 0;
    run_for(fx, SIM_S);
    assert_true(fx->writes[1].done);
    assert_int_equal(fx->writes[1].err, 0);
    assert_int_equal(fx->disk.counters.duplicates, 1);
    assert_true(write_is_there(fx, 0));
    start_write(fx, 2, 2);
    fx->writes[2].write.version = fx->writes[0].write.version - 1;
    fx->writes[2].write.offset_sectors = 0;
    run_for(fx, SIM_S);
    assert_int_equal(fx->writes[2].err, 0);
    assert_int_equal(fx->disk.counters.outdated_sectors, 2);
    assert_true(write_is_there(fx, 0));
    chunk = chunk_table_find(fx->disk.chunks, &the_chunk);
    assert_int_equal(chunk->pending_count, 2);
    fixture_destroy(fx);
}

UNIT_MAIN(cmocka_unit_test(test_crash_keeps_what_was_acknowledged), cmocka_unit_test(test_fence),
          cmocka_unit_test(test_config_epoch), cmocka_unit_test(test_versions))
