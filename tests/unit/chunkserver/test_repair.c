/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad sectors: those that clients complain of are repaired from a slot that has the same version,
 * others are left alone; a damaged leaf takes what cannot be older than what was lost.
 */
#include "tests/unit/chunkserver/recovery_fixture.h"

static int
repair_now(struct fixture *fx, uint32_t slot, uint32_t first, uint32_t count)
{
    struct asker *asker = asker_up(fx, slot, true);
    Dl__Repair message = DL__REPAIR__INIT;

    message.volume = VOLUME;
    message.segment = SEGMENT;
    message.slot = slot;
    message.first_sector = first;
    message.sector_count = count;
    asker_send(fx, asker, frame_out_create_message(OP_REPAIR, 0, ++fx->next_id, 0, &message.base));
    return wait_answer(fx, fx->next_id)->status;
}

static void
damage(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    assert_non_null(sector_of(fx, slot, sector).data);
    sector_of(fx, slot, sector).data[100] ^= 0x40;
}

/* What is bad is repaired from a slot that has this very version; what is fine is left alone. */
static void
test_repair(void **state)
{
    struct fixture *fx = fixture_create(11);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    damage(fx, 2, 3);
    damage(fx, 2, 5);
    damage(fx, 0, 5); /* the first source has it bad as well */
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0); /* told twice */
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_bad, 2);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 2);
    assert_same(fx, 1, 2);
    assert_int_equal(fx->servers[2].disk.counters.sectors_merged, 2);
    assert_int_equal(repair_now(fx, 2, 0, 0), -DL_E_MESSAGE_MALFORMED);
    assert_int_equal(repair_now(fx, 2, 1u << 18, 1), -DL_E_RANGE);
    fixture_destroy(fx);
}

/* Rule 23: another version is no repair; neither is what an ejected slot has. */
static void
test_repair_of_another_version(void **state)
{
    struct fixture *fx = fixture_create(12);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    write_all(fx, 3, 50, 3, 1, 0);
    damage(fx, 2, 3);
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).repairs_failed, 1);
    assert_int_equal(sector_of(fx, 2, 3).version, VERSION(1));
    write_all(fx, 4, 50, 3, 1, 0);
    damage(fx, 2, 3);
    fx->in_sync = 4;
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).repairs_failed, 2);
    fx->in_sync = 6;
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 1);
    assert_same(fx, 1, 2);
    fixture_destroy(fx);
}

/* A damaged leaf of an in-sync slot takes what cannot be older than what was lost, holes too. */
static void
test_repair_of_a_lost_leaf(void **state)
{
    struct fixture *fx = fixture_create(14);

    (void)state;
    fx->in_sync = 7;
    fill(fx, 7);
    model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 4); /* data, then holes */
    assert_int_equal(read_now(fx, 2, 1), 0);
    assert_int_equal(wait_answer(fx, send_read(fx, 2, 256, 1, 1))->status, -DL_E_INDEX_CORRUPT);
    assert_int_equal(repair_now(fx, 2, 256, 64), 0);
    run_for(fx, 10 * SIM_S);
    /* S is 19 everywhere, and it may have had 20. */
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 0);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(stable_now(fx, slot, 20, 1, 0), 0);
    assert_int_equal(repair_now(fx, 2, 256, 64), 0);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 64);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/*
 * What a source had when it was asked may be of no account when its answer is here: the volume was
 * fenced, and told what this slot has; the source was ejected, with a write that nobody else has.
 */
static void
test_repair_under_a_fence(void **state)
{
    struct fixture *fx = fixture_create(17);
    Dl__FenceReply *reply;

    (void)state;
    fx->in_sync = 3;
    fill(fx, 7);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(stable_now(fx, slot, 20, 1, 0), 0);
    damage(fx, 2, 3); /* so that the source is connected */
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 1);
    write_all(fx, 1, 60, 256, 1, 20);
    model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 4);
    sim_net_block(&fx->world, &fx->servers[0].process, &fx->servers[2].process, 3 * SIM_S);
    assert_int_equal(repair_now(fx, 2, 256, 1), 0);
    run_for(fx, SIM_S);
    reply = fence_now(fx, 2, 2);
    assert_int_equal(reply->n_chunks, 0);
    dl__fence_reply__free_unpacked(reply, NULL);
    fx->in_sync = 2;
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[2]).sectors_repaired, 2);
    assert_int_equal(sector_of(fx, 2, 256).version, sector_of(fx, 1, 256).version);
    fixture_destroy(fx);
}

/*
 * A slot with a damaged leaf is not whole before a source's S covers what was lost in this attempt:
 * it may have acknowledged it before the source.  What it had above its step before the attempt
 * counts for nothing.
 */
static void
test_recovery_of_a_lost_leaf(void **state)
{
    (void)state;
    for (unsigned anew = 0; anew < 2; anew++) {
        struct fixture *fx = fixture_create(15);

        fill(fx, 7);
        tell_in_sync(fx, 0, 5);
        tell_attempt(fx, 2, 5, 1, 0);
        assert_int_equal(write_now(fx, 2, 21, 4 * 64, 1, 5, 5, 19), 0);
        assert_int_equal(write_now(fx, 0, 21, 4 * 64, 1, 5, 0, 19), 0);
        model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 4);
        tell_in_sync(fx, 0, 5 + anew);
        tell_attempt(fx, 2, 5 + anew, 1, 1);
        run_for(fx, 10 * SIM_S);
        assert_int_equal(chunk_of(fx, 2)->cursor_sectors, SECTORS);
        assert_int_equal(is_reported(fx, 2, 5 + anew), anew == 1);
        if (anew == 0)
            assert_int_equal(stable_now(fx, 0, 21, 5, 0), 0);
        wait_reported(fx, 2, 5 + anew);
        tell_in_sync(fx, 2, 7);
        assert_same(fx, 0, 2);
        fixture_destroy(fx);
    }
}

/*
 * Sources that have bad sectors, each in other places of the same window, the first one a whole
 * leaf: recovery gets on, and they are repaired.
 */
static void
test_recovery_from_bad_sources(void **state)
{
    struct fixture *fx = fixture_create(16);

    (void)state;
    fx->in_sync = 3;
    fill(fx, 3);
    assert_int_equal(stable_now(fx, 0, 20, 1, 0), 0);
    assert_int_equal(stable_now(fx, 1, 20, 1, 0), 0);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    damage(fx, 0, 3);
    damage(fx, 1, 7);
    damage(fx, 0, 9);
    model_disk_damage_leaf(&fx->servers[0].disk, chunk_of(fx, 0), 4);
    tell_attempt(fx, 2, 5, 5, 3);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(&fx->servers[0]).sectors_repaired, 2 + 64);
    assert_int_equal(stats_of(&fx->servers[1]).sectors_repaired, 1);
    assert_same(fx, 0, 1);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* Is its content other than its CRC says? */
static bool
is_bad(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    struct model_sector content = sector_of(fx, slot, sector);

    assert_int_equal(content.kind, SECTOR_DATA);
    return crc32c(0, content.data, 4096) != content.crc;
}

/*
 * Sectors that the only source has bad: all else is recovered, and they are bad in the promoted
 * slot as well, in their version, and listed; who has them right after all repairs them, or a
 * write.
 */
static void
test_recovery_of_what_nobody_has(void **state)
{
    static const uint32_t bad[] = {0, 3, 4, 19 * 290 + 2};
    struct fixture *fx = fixture_create(18);

    (void)state;
    fx->in_sync = 1;
    fill(fx, 3);
    assert_int_equal(stable_now(fx, 0, 20, 1, 0), 0);
    assert_int_equal(stable_now(fx, 1, 20, 1, 0), 0);
    tell_in_sync(fx, 0, 5);
    fx->config_epoch = 5;
    for (uint32_t i = 0; i < 4; i++)
        damage(fx, 0, bad[i]);
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(is_bad(fx, 2, bad[i]));
        assert_int_equal(sector_of(fx, 2, bad[i]).version, sector_of(fx, 0, bad[i]).version);
        assert_int_equal(sector_of(fx, 2, bad[i]).crc, sector_of(fx, 1, bad[i]).crc);
    }
    assert_false(is_bad(fx, 2, 5));
    run_for(fx, 30 * SIM_S);
    assert_int_equal(fx->servers[0].scrub_counts.left_bad, 4);
    assert_int_equal(fx->servers[2].scrub_counts.left_bad, 4);
    for (unsigned i = 0; i < 3; i += 2) {
        assert_int_equal(fx->servers[i].bad_volume.volume, VOLUME);
        assert_int_equal(fx->servers[i].bad_volume.bad, 4);
        assert_int_equal(fx->servers[i].bad_volume.lost, i == 0 ? 4 : 0);
        assert_int_equal(fx->servers[i].bad_volume.segment, SEGMENT);
    }
    assert_int_equal(fx->bad_told, 8);
    assert_int_equal(fx->repaired_told, 0);
    tell_in_sync(fx, 0, 7);
    tell_in_sync(fx, 1, 7);
    tell_in_sync(fx, 2, 7);
    fx->config_epoch = 7;
    fx->in_sync = 7;
    write_all(fx, 7, 21, 3, 1, 20);
    assert_int_equal(repair_now(fx, 2, 0, 5), 0);
    assert_int_equal(repair_now(fx, 2, 19 * 290, 3), 0);
    assert_int_equal(repair_now(fx, 0, 0, 5), 0);
    assert_int_equal(repair_now(fx, 0, 19 * 290, 3), 0);
    run_for(fx, 30 * SIM_S);
    assert_same(fx, 0, 1);
    assert_same(fx, 2, 1);
    assert_int_equal(fx->servers[0].scrub_counts.left_bad, 0);
    assert_int_equal(fx->servers[0].bad_volume.volume, 0);
    assert_int_equal(fx->servers[2].scrub_counts.left_bad, 0);
    fixture_destroy(fx);
}

/*
 * A leaf was lost here, and what it had was void still when all else had been pulled; one of its
 * sectors is bad in the only source.  The others come, and this one is bad here as well.
 */
static void
test_recovery_of_a_lost_leaf_that_nobody_has(void **state)
{
    const uint32_t bad = 19 * 64 + 10;
    struct fixture *fx = fixture_create(24);

    (void)state;
    fx->in_sync = 1;
    fill(fx, 7);
    tell_in_sync(fx, 0, 5);
    fx->config_epoch = 5;
    tell_attempt(fx, 2, 5, 1, 0);
    assert_int_equal(write_now(fx, 2, 21, 19 * 64, 1, 5, 5, 19), 0);
    assert_int_equal(write_now(fx, 0, 21, 19 * 64, 1, 5, 0, 19), 0);
    model_disk_damage_leaf(&fx->servers[2].disk, chunk_of(fx, 2), 19);
    tell_attempt(fx, 2, 5, 1, 1);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, SECTORS);
    assert_false(is_reported(fx, 2, 5));
    damage(fx, 0, bad);
    assert_int_equal(stable_now(fx, 0, 21, 5, 0), 0);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 7);
    assert_true(is_bad(fx, 2, bad));
    assert_int_equal(sector_of(fx, 2, bad).version, sector_of(fx, 0, bad).version);
    assert_false(is_bad(fx, 2, bad - 1));
    assert_false(is_bad(fx, 2, bad + 1));
    fixture_destroy(fx);
}

/*
 * A sector is bad in the only slot that has got its last write, so that was never acknowledged:
 * what the other one has is recovered, or it would be nowhere when that slot goes.
 */
static void
test_recovery_of_what_one_lacks(void **state)
{
    struct fixture *fx = fixture_create(20);

    (void)state;
    fx->in_sync = 3;
    fill(fx, 3);
    assert_int_equal(stable_now(fx, 0, 20, 1, 0), 0);
    assert_int_equal(stable_now(fx, 1, 20, 1, 0), 0);
    write_all(fx, 1, 30, 3, 1, 0);
    damage(fx, 0, 3);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    fx->config_epoch = 5;
    assert_int_equal(repair_now(fx, 0, 3, 1), 0); /* it is known there that nobody has it */
    run_for(fx, 10 * SIM_S);
    tell_attempt(fx, 2, 5, 5, 3);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_true(is_bad(fx, 0, 3));
    assert_false(is_bad(fx, 2, 3));
    assert_int_equal(sector_of(fx, 2, 3).version, sector_of(fx, 1, 3).version);
    assert_same(fx, 1, 2);
    fixture_destroy(fx);
}

/* The other slot's drive fails a read once: that it has the sector bad is not proved by that. */
static void
test_recovery_after_a_read_error(void **state)
{
    struct fixture *fx = fixture_create(21);

    (void)state;
    fx->in_sync = 3;
    fill(fx, 3);
    assert_int_equal(stable_now(fx, 0, 20, 1, 0), 0);
    assert_int_equal(stable_now(fx, 1, 20, 1, 0), 0);
    damage(fx, 0, 3);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    fx->config_epoch = 5;
    fx->servers[1].disk.profile.read_errors_per_million = 1000000;
    assert_int_equal(repair_now(fx, 0, 3, 1), 0);
    run_for(fx, 10 * SIM_S);
    fx->servers[1].disk.profile.read_errors_per_million = 0;
    tell_attempt(fx, 2, 5, 5, 1);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_false(is_bad(fx, 2, 3));
    assert_false(is_bad(fx, 0, 3));
    fixture_destroy(fx);
}

/* As long as another slot in-sync can't be asked it may have the sector: it is waited for. */
static void
test_recovery_waits_for_who_may_have_it(void **state)
{
    struct fixture *fx = fixture_create(19);

    (void)state;
    fx->in_sync = 3;
    fill(fx, 3);
    assert_int_equal(stable_now(fx, 0, 20, 1, 0), 0);
    assert_int_equal(stable_now(fx, 1, 20, 1, 0), 0);
    tell_in_sync(fx, 0, 5);
    tell_in_sync(fx, 1, 5);
    fx->config_epoch = 5;
    damage(fx, 0, 3);
    server_crash(&fx->servers[1]);
    tell_attempt(fx, 2, 5, 5, 3);
    run_for(fx, 60 * SIM_S);
    assert_false(is_reported(fx, 2, 5));
    assert_int_equal(chunk_of(fx, 2)->cursor_sectors, 3);
    server_up(&fx->servers[1]);
    wait_registered(fx);
    wait_reported(fx, 2, 5);
    tell_in_sync(fx, 2, 6);
    assert_int_equal(repair_now(fx, 0, 3, 1), 0);
    run_for(fx, 10 * SIM_S);
    assert_same(fx, 0, 1);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* A metadata service that does not answer, a source that is away: neither holds it up for good. */
static void
test_repair_waits(void **state)
{
    struct fixture *fx = fixture_create(13);
    struct server *server = &fx->servers[2];

    (void)state;
    fx->in_sync = 5;
    fx->hold_maps = true;
    fill(fx, 7);
    damage(fx, 2, 3);
    server_crash(&fx->servers[0]);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    run_for(fx, 7 * SIM_S);
    assert_true(fx->maps > 1);
    fx->hold_maps = false;
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(server).repairs_failed, 1);
    assert_int_equal(repair_now(fx, 2, 0, 8), 0);
    run_for(fx, SIM_S);
    server_up(&fx->servers[0]);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(server).sectors_repaired, 1);
    assert_int_equal(stats_of(server).repairs_failed, 1);
    fixture_destroy(fx);
}

/* While nobody can be asked the sector is written anew: nothing is wrong with it any more. */
static void
test_repair_of_what_is_written_anew(void **state)
{
    struct fixture *fx = fixture_create(15);
    struct server *server = &fx->servers[2];

    (void)state;
    fx->in_sync = 5;
    fill(fx, 7);
    damage(fx, 2, 3);
    server_crash(&fx->servers[0]);
    assert_int_equal(repair_now(fx, 2, 3, 1), 0);
    run_for(fx, SIM_S);
    assert_int_equal(write_now(fx, 2, 50, 3, 1, 1, 0, 0), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(server).sectors_bad, 1);
    assert_int_equal(stats_of(server).repairs_failed, 0);
    /* If it isn't, it is bad. */
    damage(fx, 2, 4);
    assert_int_equal(repair_now(fx, 2, 4, 1), 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(stats_of(server).repairs_failed, 1);
    fixture_destroy(fx);
}

/* Complaints are bounded, and a stop at any moment of a repair ends. */
static void
test_stop_in_a_repair(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture *fx = fixture_create(seed);
        struct server *server = &fx->servers[2];
        struct sim_process *before;
        uint32_t busy = 0;

        fx->in_sync = 7;
        fx->hold_maps = seed == 1;
        fill(fx, 7);
        damage(fx, 2, 3);
        (void)asker_up(fx, 2, true);
        assert_int_equal(repair_now(fx, 2, 3, 1), 0);
        for (uint32_t i = 1; i < 80 && seed == 1; i++)
            busy += repair_now(fx, 2, i * 20, 17) == -DL_E_BUSY;
        assert_true((busy > 0) == (seed == 1));
        run_for(fx, seed * 100 * SIM_US);
        before = sim_enter(&server->process);
        chunkserver_core_stop(server->core, on_stopped, server);
        sim_leave(&server->process, before);
        run_for(fx, 8 * SIM_S);
        assert_true(server->stopped);
        sim_process_kill(&server->process, false);
        chunkserver_core_destroy(server->core);
        server->backing->close(server);
        server->core = NULL;
        fixture_destroy(fx);
    }
}

UNIT_MAIN(cmocka_unit_test(test_repair), cmocka_unit_test(test_repair_of_another_version),
          cmocka_unit_test(test_recovery_of_what_nobody_has),
          cmocka_unit_test(test_recovery_of_a_lost_leaf_that_nobody_has),
          cmocka_unit_test(test_recovery_of_what_one_lacks),
          cmocka_unit_test(test_recovery_after_a_read_error),
          cmocka_unit_test(test_recovery_waits_for_who_may_have_it),
          cmocka_unit_test(test_repair_waits),
          cmocka_unit_test(test_repair_of_what_is_written_anew),
          cmocka_unit_test(test_stop_in_a_repair), cmocka_unit_test(test_repair_of_a_lost_leaf),
          cmocka_unit_test(test_repair_under_a_fence),
          cmocka_unit_test(test_recovery_of_a_lost_leaf),
          cmocka_unit_test(test_recovery_from_bad_sources))
