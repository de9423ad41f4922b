/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots that recover, on the engine: source and target lose their power, or their process, at any
 * moment of an attempt; what the promoted slot reads is what its sources read.
 *
 * The engine lives on a fake disk and a fake index with a clock of their own, which a timer of the
 * server moves on.
 */
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/format.h"
#include "tests/unit/chunkserver/recovery_fixture.h"
#include "tests/unit/lib/fake_disk.h"
#include "tests/unit/lib/fake_env.h"
#include "tests/unit/lib/fake_index.h"

#define SLABS      10u
#define UNITS      256u
#define DISK_BYTES ((uint64_t)SLABS * SLAB_BYTES + UNITS * UNIT_BYTES + SLAB_BYTES)
#define STEP_NS    (100 * SIM_US)

struct rig {
    struct server *server;
    struct fake_env env;
    struct fake_disk disk;
    struct fake_index index;
    struct engine *engine;
    struct env_timer timer;
};

static void
rig_turn_end(void *context)
{
    struct rig *rig = context;

    rig->server->store->ops->turn_end(rig->server->store);
}

static void
rig_on_timer(struct env_timer *timer)
{
    struct rig *rig = list_entry(timer, struct rig, timer);

    fake_env_run_for(&rig->env, STEP_NS);
    env_timer_start(&rig->server->process.env, timer, STEP_NS);
}

static void
rig_init(struct server *server, uint64_t seed)
{
    struct engine_format format = {.journal_bytes = UNITS * UNIT_BYTES,
                                   .metadata_bytes = UNIT_BYTES,
                                   .reserve_bytes = 20 * BLOCK_BYTES};
    struct rig *rig = calloc(1, sizeof(*rig));

    assert_non_null(rig);
    server->rig = rig;
    rig->server = server;
    fake_env_init(&rig->env, seed);
    fake_disk_init(&rig->disk, &rig->env, DISK_BYTES, false);
    fake_index_init(&rig->index, &rig->env);
    memcpy(format.disk_uuid, server->uuid, sizeof(format.disk_uuid));
    assert_int_equal(engine_format_now(&rig->disk.disk, &format, NULL), 0);
    fake_disk_settle(&rig->disk);
    rig->index.closed = true;
}

static void
rig_open(struct server *server)
{
    struct rig *rig = server->rig;
    struct dl_error err = {0};

    fake_index_reopen(&rig->index);
    if (engine_open(&rig->engine, &rig->env.env, &rig->disk.disk, &rig->index.index, NULL, &err) !=
        0)
        fail_msg("open: %s", err.text);
    server->store = engine_store(rig->engine);
    fake_env_add_turn_end(&rig->env, rig_turn_end, rig);
    rig->timer = (struct env_timer){.fn = rig_on_timer};
    env_timer_start(&server->process.env, &rig->timer, STEP_NS);
}

/* A power cut, or the end of the process alone. */
static void
rig_crash(struct server *server)
{
    struct rig *rig = server->rig;

    engine_destroy(rig->engine);
    fake_env_crash(&rig->env);
    fake_env_remove_turn_end(&rig->env, rig);
    if (server->starts % 2 == 0)
        fake_disk_crash(&rig->disk);
    else
        fake_disk_kill(&rig->disk);
    fake_index_crash(&rig->index);
}

static void
rig_fini(struct server *server)
{
    struct rig *rig = server->rig;

    assert_int_equal(rig->disk.violations, 0);
    fake_index_fini(&rig->index);
    fake_disk_fini(&rig->disk);
    fake_env_fini(&rig->env);
    free(rig);
}

static const struct backing engine_backing = {
    .init = rig_init,
    .open = rig_open,
    .crash = rig_crash,
    .fini = rig_fini,
};

static void
test_whole_segment(void **state)
{
    struct fixture *fx = fixture_create_on(1, &engine_backing);

    (void)state;
    fill(fx, 3);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    tell_attempt(fx, 2, 5, 5, 3);
    for (uint32_t i = 0; i < 10; i++)
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            assert_int_equal(write_now(fx, slot, 100 + i, i * 140, 5, 5, slot == 2 ? 5 : 0, 20), 0);
    assert_int_equal(read_now(fx, 2, 5), -DL_E_NOT_IN_SYNC);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_int_equal(chunk_of(fx, 2)->stable_version, VERSION(20));
    assert_int_equal(chunk_of(fx, 2)->pending_count, 10);
    assert_reads_same(fx, 0, 2);
    fixture_destroy(fx);
}

static void
test_stable_around_promotion(void **state)
{
    (void)state;
    check_stable_around_promotion(&engine_backing);
}

/* The n-th block that has the data of write 1 can't be read any more. */
static void
break_block(struct fixture *fx, uint32_t slot, uint32_t n)
{
    struct rig *rig = fx->servers[slot].rig;
    uint8_t data[BLOCK_BYTES], block[BLOCK_BYTES];

    memset(data, 1, sizeof(data));
    for (uint64_t offset = 0; offset < DISK_BYTES; offset += BLOCK_BYTES) {
        fake_disk_peek(&rig->disk, block, sizeof(block), offset);
        if (memcmp(block, data, sizeof(block)) != 0 || n-- > 0)
            continue;
        fake_disk_set_bad(&rig->disk, offset, BLOCK_BYTES, true);
        return;
    }
    fail_msg("slot %u has no such block", slot);
}

/* Drives that fail reads, each of another place of the same window: recovery gets on. */
static void
test_sources_with_unreadable_sectors(void **state)
{
    struct fixture *fx = fixture_create_on(3, &engine_backing);

    (void)state;
    fx->in_sync = 3;
    fill(fx, 3);
    break_block(fx, 0, 0);
    break_block(fx, 0, 100);
    break_block(fx, 1, 50);
    break_block(fx, 1, 255);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    tell_attempt(fx, 2, 5, 5, 3);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    run_for(fx, 10 * SIM_S);
    assert_true(stats_of(&fx->servers[0]).sectors_repaired > 0);
    assert_true(stats_of(&fx->servers[1]).sectors_repaired > 0);
    assert_reads_same(fx, 0, 2);
    assert_reads_same(fx, 1, 2);
    fixture_destroy(fx);
}

/* With writes that nobody else has, and one under way that is sent again under the next attempt. */
static void
test_crash_at_any_moment(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 16; seed++) {
        struct fixture *fx = fixture_create_on(seed + 1, &engine_backing);
        struct server *victim = &fx->servers[seed % 2 == 0 ? 2 : 0];

        fill(fx, seed % 4 < 2 ? 3 : 7);
        write_all(fx, 4, 60, 900, 40, 0);
        tell_in_sync(fx, 0, 5);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            (void)asker_up(fx, slot, true);
        (void)send_attempt(fx, 2, 5, 5, 1, 1);
        run_for(fx, seed * 800 * SIM_US);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            (void)send_write(fx, slot, 70, 500, 60, 5, slot == 2 ? 5 : 0, 19);
        run_for(fx, seed * 100 * SIM_US);
        server_crash(victim);
        run_for(fx, 20 * SIM_MS);
        server_up(victim);
        wait_registered(fx);
        tell_in_sync(fx, 0, 7);
        tell_attempt(fx, 2, 7, 1, 1);
        for (uint32_t slot = 0; slot < SERVERS; slot++)
            assert_int_equal(write_now(fx, slot, 70, 500, 60, 7, slot == 2 ? 7 : 0, 19), 0);
        wait_reported(fx, 2, 7);
        server_crash(&fx->servers[2]); /* promoted all the same */
        server_up(&fx->servers[2]);
        tell_in_sync(fx, 2, 8);
        assert_reads_same(fx, 0, 2);
        fixture_destroy(fx);
    }
}

UNIT_MAIN(cmocka_unit_test(test_whole_segment), cmocka_unit_test(test_stable_around_promotion),
          cmocka_unit_test(test_sources_with_unreadable_sectors),
          cmocka_unit_test(test_crash_at_any_moment))
