/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scrub: everything that is bad is found and repaired, what nobody has right stays and is said,
 * slots that differ are found by one of them and left alone, and only if they really should not.
 * The scrub of a disk takes its time, goes on after a restart, and gives way to clients and to
 * scrubs that are asked for.  What is found is told in few messages.
 */
#include "tests/unit/chunkserver/recovery_fixture.h"

static void
damage(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    assert_non_null(sector_of(fx, slot, sector).data);
    sector_of(fx, slot, sector).data[100] ^= 0x40;
}

/* Another content, with the checksum that fits. */
static void
forge(struct fixture *fx, uint32_t slot, uint32_t sector)
{
    struct model_chunk *content = chunk_of(fx, slot)->store_private;

    damage(fx, slot, sector);
    content->sectors[sector].crc = crc32c(0, content->sectors[sector].data, 4096);
}

/* All slots are in-sync and have S = 20. */
static struct fixture *
scrub_fixture(uint64_t seed)
{
    struct fixture *fx = fixture_create(seed);

    fx->in_sync = 7;
    fill(fx, 7);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(stable_now(fx, slot, 20, 1, 0), 0);
    run_for(fx, 100 * SIM_MS);
    return fx;
}

/* What the server says of the scrub with this id; the caller frees it. */
static Dl__ScrubVolumeReply *
ask_scrub(struct fixture *fx, uint32_t server_idx, uint8_t id)
{
    Dl__ScrubVolume message = DL__SCRUB_VOLUME__INIT;
    Dl__ScrubVolumeReply *reply;
    uint8_t bytes[16] = {id};
    struct answer *answer;

    message.volume = VOLUME;
    message.scrub_id = (ProtobufCBinaryData){16, bytes};
    answer = wait_answer(fx, send_meta(fx, server_idx, OP_SCRUB_VOLUME, &message.base));
    assert_int_equal(answer->status, 0);
    reply = dl__scrub_volume_reply__unpack(NULL, answer->body_bytes, answer->body);
    assert_non_null(reply);
    return reply;
}

struct result {
    uint64_t sectors, bad, repaired, left_bad, mismatches, chunks, skipped, uncompared;
    uint64_t took_ns;
};

static struct result
scrub_one(struct fixture *fx, uint32_t server_idx, uint8_t id)
{
    uint64_t began_ns = fx->world.now_ns;
    struct result result = {0};

    for (uint32_t i = 0; i < 4000; i++) {
        Dl__ScrubVolumeReply *reply = ask_scrub(fx, server_idx, id);
        bool done = reply->done;

        result = (struct result){
            .sectors = reply->counts->sectors,
            .bad = reply->counts->bad,
            .repaired = reply->counts->repaired,
            .left_bad = reply->counts->left_bad,
            .mismatches = reply->counts->mismatches,
            .chunks = reply->chunks,
            .skipped = reply->chunks_skipped,
            .uncompared = reply->uncompared,
            .took_ns = fx->world.now_ns - began_ns,
        };
        assert_true(reply->chunks_done <= reply->chunks);
        assert_true(done == (reply->chunks_done == reply->chunks));
        dl__scrub_volume_reply__free_unpacked(reply, NULL);
        if (done)
            return result;
        run_for(fx, 20 * SIM_MS);
    }
    fail_msg("the scrub of server %u does not end", server_idx);
    return result;
}

/* On all servers, one after the other, who compares at last: the sum. */
static struct result
scrub_all(struct fixture *fx, uint8_t id)
{
    struct result sum = {0};

    for (uint32_t i = 0; i < SERVERS; i++) {
        struct result one = scrub_one(fx, SERVERS - 1 - i, id);

        sum.sectors += one.sectors;
        sum.bad += one.bad;
        sum.repaired += one.repaired;
        sum.left_bad += one.left_bad;
        sum.mismatches += one.mismatches;
        sum.chunks += one.chunks;
        sum.skipped += one.skipped;
        sum.uncompared += one.uncompared;
    }
    return sum;
}

static uint32_t
data_sectors_of(struct fixture *fx, uint32_t slot)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < SECTORS; i++)
        count += sector_of(fx, slot, i).kind == SECTOR_DATA;
    return count;
}

/* Bits that have flipped, in company and alone, and a leaf: all found, all repaired. */
static void
test_all_is_found(void **state)
{
    struct fixture *fx = scrub_fixture(1);
    uint32_t sectors = data_sectors_of(fx, 0);
    struct result result;

    (void)state;
    for (uint32_t i = 0; i < 100; i++)
        damage(fx, i % 3, i);
    damage(fx, 2, 255);
    damage(fx, 0, 19 * 290);
    model_disk_damage_leaf(&fx->servers[1].disk, chunk_of(fx, 1), 18); /* a run, and holes */
    result = scrub_all(fx, 1);
    assert_int_equal(result.chunks, 3);
    assert_int_equal(result.bad, 102 + 64);
    assert_int_equal(result.repaired, 102 + 64);
    assert_int_equal(result.left_bad, 0);
    assert_int_equal(result.mismatches, 0);
    assert_int_equal(result.skipped + result.uncompared, 0);
    assert_same(fx, 0, 1);
    assert_same(fx, 0, 2);
    result = scrub_all(fx, 2);
    assert_int_equal(result.bad, 0);
    assert_int_equal(result.sectors, 3 * sectors);
    run_for(fx, 30 * SIM_S);
    assert_int_equal(fx->bad_told, 102 + 64);
    assert_int_equal(fx->repaired_told, 102 + 64);
    assert_int_equal(fx->servers[2].scrub_counts.left_bad, 0);
    fixture_destroy(fx);
}

/* The same id is the same scrub, however often it is asked for. */
static void
test_once_per_id(void **state)
{
    struct fixture *fx = scrub_fixture(2);
    struct result first, again;

    (void)state;
    damage(fx, 2, 3);
    first = scrub_one(fx, 2, 1);
    damage(fx, 2, 3);
    again = scrub_one(fx, 2, 1);
    assert_int_equal(again.bad, 1);
    assert_int_equal(again.sectors, first.sectors);
    assert_int_equal(scrub_one(fx, 2, 2).bad, 1);
    fixture_destroy(fx);
}

/* What nobody has right is left, said once, and not bad any more when it was written anew. */
static void
test_what_nobody_has(void **state)
{
    struct fixture *fx = scrub_fixture(3);
    struct result result;

    (void)state;
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        damage(fx, slot, 7);
    result = scrub_all(fx, 1);
    assert_int_equal(result.bad, 3);
    assert_int_equal(result.repaired, 0);
    assert_int_equal(result.left_bad, 3);
    run_for(fx, 30 * SIM_S);
    assert_int_equal(fx->bad_told, 3);
    assert_int_equal(fx->repaired_told, 0);
    assert_int_equal(fx->servers[1].scrub_counts.left_bad, 1);
    assert_int_equal(scrub_all(fx, 2).left_bad, 3);
    run_for(fx, 700 * SIM_S);
    assert_int_equal(fx->bad_told, 3);
    write_all(fx, 7, 21, 8, 1, 20);
    run_for(fx, SIM_S);
    assert_int_equal(fx->servers[1].scrub_counts.left_bad, 1);
    write_all(fx, 7, 22, 7, 1, 20);
    run_for(fx, SIM_S);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(fx->servers[slot].scrub_counts.left_bad, 0);
    assert_int_equal(scrub_all(fx, 3).left_bad, 0);
    fixture_destroy(fx);
}

/*
 * Slot 1 has other bytes in one sector; slot 2 lacks a write up to S, and slot 0 another one.  Slot
 * 0 finds all of it, and nothing is changed.  What is above S is no finding.
 */
static void
test_slots_that_differ(void **state)
{
    struct fixture *fx = scrub_fixture(4);
    struct result result;

    (void)state;
    forge(fx, 1, 5);
    write_all(fx, 3, 21, 100, 2, 20); /* not slot 2 */
    write_all(fx, 6, 22, 400, 1, 20); /* not slot 0 */
    run_for(fx, SIM_S);
    result = scrub_all(fx, 1);
    assert_int_equal(result.mismatches, 1);
    assert_int_equal(result.bad, 0);
    run_for(fx, 5 * SIM_S);
    assert_int_equal(fx->mismatches_told, 1);
    assert_int_equal(fx->finding_key.segment, SEGMENT);
    assert_int_equal(fx->finding_key.slot, 0);
    assert_int_equal(fx->finding_slot, 1);
    assert_int_equal(fx->finding_sector, 5);
    for (uint32_t slot = 0; slot < SERVERS; slot++)
        assert_int_equal(stable_now(fx, slot, 22, 1, 0), 0);
    run_for(fx, SIM_S);
    result = scrub_all(fx, 2);
    /* With slot 1: 5 and 400; with slot 2: 100, 101, 400. */
    assert_int_equal(result.mismatches, 5);
    assert_int_equal(scrub_one(fx, 1, 2).mismatches, 0);
    assert_int_equal(result.uncompared, 0);
    assert_int_equal(sector_of(fx, 1, 5).version, VERSION(1));
    assert_int_not_equal(sector_of(fx, 1, 5).crc, sector_of(fx, 0, 5).crc);
    assert_int_equal(sector_of(fx, 2, 100).version, VERSION(1));
    fixture_destroy(fx);
}

/*
 * While it is compared a volume is written to and discarded, and the zeroes are forgotten: where
 * one slot had data when it was looked at, the other one has a hole a moment later.  No slot
 * differs; but one that does is found still.
 */
static void
test_discards_meanwhile(void **state)
{
    uint32_t forged = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct fixture *fx = scrub_fixture(seed);
        uint64_t sequence = 30;
        Dl__ScrubVolumeReply *reply;
        bool done = false;

        if (seed % 2 == 0)
            forge(fx, 1, 5);
        fx->servers[0].disk.profile.read_ns_max = 20 * SIM_MS;
        for (uint32_t i = 0; i < 4000 && !done; i++) {
            if (i % 2 == 0)
                write_all(fx, 7, ++sequence, 100, 10, 0);
            for (uint32_t slot = 0; slot < SERVERS && i % 2 == 1; slot++)
                assert_int_equal(zero_now(fx, slot, sequence, 100, 10, 1), 0);
            for (uint32_t slot = 0; slot < SERVERS; slot++)
                assert_int_equal(stable_now(fx, slot, sequence, 1, 0), 0);
            for (uint32_t slot = 0; slot < SERVERS && i % 2 == 1; slot++)
                assert_int_equal(forget_now(fx, slot, sequence, 1), 0);
            sequence += i % 2 == 0;
            reply = ask_scrub(fx, 0, 1);
            done = reply->done;
            forged += done ? (uint32_t)reply->counts->mismatches : 0;
            assert_true(reply->counts->mismatches <= 1);
            dl__scrub_volume_reply__free_unpacked(reply, NULL);
        }
        assert_true(done);
        fixture_destroy(fx);
    }
    assert_int_equal(forged, 5);
}

/* A slot that the map does not have in-sync any more is no judge; nor is one that is away. */
static void
test_who_is_compared(void **state)
{
    struct fixture *fx = scrub_fixture(5);
    struct result result;

    (void)state;
    forge(fx, 1, 5);
    fx->in_sync = 5; /* slot 1 is not in-sync */
    assert_int_equal(scrub_all(fx, 1).mismatches, 0);
    fx->in_sync = 7;
    fx->map_changes_at = fx->maps + 2; /* between PULL and the look at the map behind it */
    result = scrub_one(fx, 0, 2);
    assert_int_equal(result.mismatches, 0);
    assert_int_equal(result.uncompared, 1);
    fx->config_epoch = 1;
    fx->down = 1; /* the lowest slot's server: the next one does its work */
    result = scrub_one(fx, 1, 3);
    assert_int_equal(result.mismatches, 1);
    assert_int_equal(result.uncompared, 1);
    fx->down = 0;
    server_crash(&fx->servers[2]); /* as long as the map doesn't know it */
    result = scrub_one(fx, 0, 4);
    assert_int_equal(result.mismatches, 1);
    assert_int_equal(result.uncompared, 1);
    fx->hold_maps = true;
    result = scrub_one(fx, 0, 5);
    assert_int_equal(result.mismatches, 0);
    assert_int_equal(result.uncompared, 1);
    fixture_destroy(fx);
}

/* A slot that recovers is not looked at, and that is said. */
static void
test_recovering_slot(void **state)
{
    struct fixture *fx = scrub_fixture(6);
    struct result result;

    (void)state;
    tell_attempt(fx, 2, 5, 1, 0); /* nobody to pull from */
    result = scrub_one(fx, 2, 1);
    assert_int_equal(result.skipped, 1);
    assert_int_equal(result.sectors, 0);
    fixture_destroy(fx);
}

/* A dying disk does not fill the log: a thousand bad sectors are a few messages. */
static void
test_few_messages(void **state)
{
    struct fixture *fx = scrub_fixture(7);
    uint32_t bad = 0;

    (void)state;
    for (uint32_t i = 0; i < SECTORS; i++)
        if (sector_of(fx, 2, i).kind == SECTOR_DATA) {
            damage(fx, 2, i);
            bad++;
        }
    assert_true(bad > 1000);
    assert_int_equal(scrub_one(fx, 2, 1).repaired, bad);
    fx->hold_findings = true; /* the answer is lost: told again */
    run_for(fx, 30 * SIM_S);
    assert_true(fx->bad_messages > 0);
    fx->hold_findings = false;
    run_for(fx, 60 * SIM_S);
    assert_int_equal(fx->bad_told + fx->servers[2].scrub_counts.left_bad, bad);
    assert_true(fx->bad_messages < 20);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* Clients first: with them a scrub takes longer. */
static void
test_gives_way(void **state)
{
    uint64_t took_ns[2];

    (void)state;
    for (uint32_t busy = 0; busy < 2; busy++) {
        struct fixture *fx = scrub_fixture(8);
        uint64_t began_ns = fx->world.now_ns;
        Dl__ScrubVolumeReply *reply;
        bool done = false;

        for (uint32_t i = 0; i < 4000 && !done; i++) {
            reply = ask_scrub(fx, 1, 1);
            done = reply->done;
            dl__scrub_volume_reply__free_unpacked(reply, NULL);
            if (busy == 1)
                assert_int_equal(read_now(fx, 1, 1), 0);
            run_for(fx, SIM_MS);
        }
        assert_true(done);
        took_ns[busy] = fx->world.now_ns - began_ns;
        fixture_destroy(fx);
    }
    assert_true(took_ns[1] > 2 * took_ns[0]);
}

static void
restart(struct server *server, uint64_t scrub_period_ns)
{
    server_crash(server);
    server->scrub_period_ns = scrub_period_ns;
    server_up(server);
}

/* A whole disk, in about the time that it may take; what is bad is found without being asked. */
static void
test_disk(void **state)
{
    struct fixture *fx = scrub_fixture(9);
    struct server *server = &fx->servers[2];
    uint64_t began_ns;

    (void)state;
    damage(fx, 2, 3);
    damage(fx, 2, 15 * 290);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(server->scrub.completed_ms, 0);
    restart(server, 1000 * SIM_S);
    wait_registered(fx);
    began_ns = fx->world.now_ns;
    while (server->scrub.completed_ms == 0 && fx->world.now_ns - began_ns < 3000 * SIM_S)
        run_for(fx, SIM_S);
    assert_true(fx->world.now_ns - began_ns > 500 * SIM_S);
    assert_true(fx->world.now_ns - began_ns < 1500 * SIM_S);
    assert_int_equal(server->scrub_counts.repaired, 2);
    assert_int_equal(server->scrub_counts.sectors, data_sectors_of(fx, 2) - 2);
    assert_int_equal(stats_of(server).scrubs, 1);
    assert_same(fx, 0, 2);
    fixture_destroy(fx);
}

/* After a restart it goes on behind the chunk that was done last: here that was all. */
static void
test_disk_goes_on(void **state)
{
    struct fixture *fx = scrub_fixture(11);
    struct server *server = &fx->servers[2];

    (void)state;
    server->scrub.volume = VOLUME;
    server->scrub.segment = SEGMENT;
    server->scrub.slot = 2;
    server->scrub.completed_ms = 77;
    restart(server, 1000000 * SIM_S);
    wait_registered(fx);
    run_for(fx, 10 * SIM_S);
    assert_int_equal(stats_of(server).scrubs, 0);
    run_for(fx, 30 * SIM_S);
    assert_int_equal(server->scrub_counts.sectors, 0);
    assert_int_equal(stats_of(server).scrubs, 1);
    assert_int_equal(server->scrub.volume, 0);
    assert_int_not_equal(server->scrub.completed_ms, 77);
    server->scrub.slot = 1;
    server->scrub.volume = VOLUME;
    server->scrub.segment = SEGMENT;
    restart(server, 1000 * SIM_S);
    wait_registered(fx);
    for (uint32_t i = 0; i < 1500 && stats_of(server).scrubs == 0; i++)
        run_for(fx, SIM_S);
    run_for(fx, SIM_S);
    assert_int_equal(server->scrub_counts.sectors, data_sectors_of(fx, 2));
    fixture_destroy(fx);
}

/* One that is asked for does not wait for the disk's; and that goes on afterwards. */
static void
test_asked_for_goes_first(void **state)
{
    struct fixture *fx = scrub_fixture(10);
    struct server *server = &fx->servers[2];

    (void)state;
    restart(server, 100000 * SIM_S);
    wait_registered(fx);
    run_for(fx, 40 * SIM_S);
    damage(fx, 2, 15 * 290);
    assert_int_equal(scrub_one(fx, 2, 1).repaired, 1);
    assert_true(fx->world.now_ns < 1000 * SIM_S);
    assert_int_equal(server->scrub.completed_ms, 0);
    damage(fx, 2, 15 * 290);
    run_for(fx, 150000 * SIM_S);
    assert_int_not_equal(server->scrub.completed_ms, 0);
    assert_int_equal(stats_of(server).sectors_repaired, 2);
    fixture_destroy(fx);
}

/* A stop at any moment of it ends. */
static void
test_stop_in_a_scrub(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct fixture *fx = scrub_fixture(seed);
        struct server *server = &fx->servers[0];
        struct sim_process *before;

        damage(fx, 0, 3);
        forge(fx, 0, 9);
        dl__scrub_volume_reply__free_unpacked(ask_scrub(fx, 0, 1), NULL);
        run_for(fx, seed * 150 * SIM_US);
        before = sim_enter(&server->process);
        chunkserver_core_stop(server->core, on_stopped, server);
        sim_leave(&server->process, before);
        run_for(fx, 10 * SIM_S);
        assert_true(server->stopped);
        sim_process_kill(&server->process, false);
        chunkserver_core_destroy(server->core);
        server->backing->close(server);
        server->core = NULL;
        fixture_destroy(fx);
    }
}

UNIT_MAIN(cmocka_unit_test(test_all_is_found), cmocka_unit_test(test_once_per_id),
          cmocka_unit_test(test_what_nobody_has), cmocka_unit_test(test_slots_that_differ),
          cmocka_unit_test(test_discards_meanwhile), cmocka_unit_test(test_who_is_compared),
          cmocka_unit_test(test_recovering_slot), cmocka_unit_test(test_few_messages),
          cmocka_unit_test(test_gives_way), cmocka_unit_test(test_disk),
          cmocka_unit_test(test_disk_goes_on), cmocka_unit_test(test_asked_for_goes_first),
          cmocka_unit_test(test_stop_in_a_scrub))
