/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads when things go wrong: data that does not match its checksum, slots that can't deliver,
 * servers that are away, slow or silent; reads asked for twice.  The right bytes, or an error that
 * names the server; and a buffer given back is never touched.
 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
open_filled(struct fixture *f)
{
    (void)fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 2 * MIB, 3), 0);
}

static void
test_a_checksum_error_is_read_elsewhere(void **state)
{
    struct fixture *f = fixture_create(1, 3);

    (void)state;
    open_filled(f);
    for (unsigned i = 0; i < 3; i++) {
        f->cluster.servers[i].faults.read_flip_count = 5;
        for (unsigned k = 0; k < 20; k++)
            fixture_check(f, k * 8192, 8192, 3);
        assert_int_equal(f->cluster.servers[i].faults.read_flip_count, 0);
    }
    assert_int_equal(fixture_stats(f).crc_errors, 15);
    assert_true(fixture_has_event(f, "server 2 (server-2:"));
    assert_true(fixture_has_event(f, "does not match its checksum"));
    fixture_destroy(f);
}

static void
test_all_copies_are_damaged(void **state)
{
    struct fixture *f = fixture_create(2, 3);

    (void)state;
    open_filled(f);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.read_flip_count = UINT32_MAX;
    assert_int_equal(fixture_read(f, 0, 4096, NULL), -DL_E_CRC_DATA);
    assert_true(fixture_has_event(f, "a read at 0 (segment 0) failed"));
    /* Each was asked again, but not without end. */
    for (unsigned i = 0; i < 3; i++)
        assert_in_range(f->cluster.servers[i].reads, 5, 20);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.read_flip_count = 0;
    fixture_check(f, 0, 4096, 3);
    fixture_destroy(f);
}

static void
test_slots_that_fail_are_passed_over(void **state)
{
    static const int errors[] = {DL_E_MEDIA_READ,  DL_E_INDEX_CORRUPT, DL_E_CHUNK_UNKNOWN,
                                 DL_E_NOT_IN_SYNC, DL_E_BUSY,          DL_E_INTERNAL};
    struct fixture *f = fixture_create(3, 3);

    (void)state;
    open_filled(f);
    for (unsigned i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        for (unsigned k = 0; k < 2; k++) {
            f->cluster.servers[k].faults.read_err = -errors[i];
            f->cluster.servers[k].faults.read_err_count = UINT32_MAX;
        }
        for (unsigned k = 0; k < 6; k++)
            fixture_check(f, k * 4096, 4096, 3);
        assert_true(f->cluster.servers[2].reads > 0);
    }
    /* All of them, for a while: it is tried again. */
    f->cluster.servers[2].faults.read_err = -DL_E_BUSY;
    f->cluster.servers[2].faults.read_err_count = 3;
    fixture_check(f, 0, 4096, 3);
    fixture_destroy(f);
}

static void
test_servers_away(void **state)
{
    struct fixture *f = fixture_create(4, 3);
    struct fixture_request *read;

    (void)state;
    open_filled(f);
    fixture_server_down(f, 0);
    for (unsigned k = 0; k < 6; k++)
        fixture_check(f, k * 4096, 4096, 3);
    fixture_server_down(f, 1);
    fixture_check(f, 0, 65536, 3);
    fixture_server_down(f, 2);
    read = fixture_submit(f, DLBLK_READ, 0, 4096, 0);
    fixture_run(f, 2 * SIM_S);
    assert_false(read->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "waits for server"));
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, read), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_read(f, 0, 4096, NULL), -DL_E_TIMEOUT);
    for (unsigned i = 0; i < 3; i++)
        fixture_server_up(f, i);
    fixture_destroy(f);
}

/* Links break under reads, at any byte. */
static void
test_links_break(void **state)
{
    uint64_t cut_in_payload = 0;
    unsigned cuts = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fixture_request *reads[40];
        uint8_t *expected = malloc(65536);

        open_filled(f);
        for (unsigned i = 0; i < 40; i++)
            reads[i] = fixture_submit(f, DLBLK_READ, i * 16384, 65536, 0);
        for (unsigned i = 0; i < 30; i++) {
            fixture_run(f, 60 * SIM_US);
            cuts += sim_net_cut_one(&f->client_process, i);
        }
        for (unsigned i = 0; i < 40; i++) {
            assert_true(fixture_run_until(f, &reads[i]->done, 20 * SIM_S));
            assert_int_equal(reads[i]->err, 0);
            fixture_pattern(expected, i * 16384, 65536, 3);
            assert_memory_equal(reads[i]->buffer, expected, 65536);
            fixture_free(reads[i]);
        }
        cut_in_payload += f->world.net_stats.cuts_in_payload;
        free(expected);
        fixture_destroy(f);
    }
    assert_true(cuts > 100);
    assert_true(cut_in_payload > 0);
}

/* A slot that does not answer is given up after a while; what it says later meets nobody. */
static void
test_a_slow_slot(void **state)
{
    struct fixture *f = fixture_create(5, 3);
    struct fixture_request *reads[9];
    struct client_core_stats stats;
    uint64_t before;

    (void)state;
    open_filled(f);
    f->cluster.servers[0].faults.hold_reads = true;
    for (unsigned i = 0; i < 9; i++)
        reads[i] = fixture_submit(f, DLBLK_READ, i * 4096, 4096, 0);
    fixture_run(f, 2900 * NS_PER_MS);
    assert_true(f->cluster.servers[0].reads > 0);
    fixture_run(f, 500 * NS_PER_MS);
    for (unsigned i = 0; i < 9; i++)
        assert_true(reads[i]->done);
    for (unsigned i = 0; i < 9; i++)
        assert_int_equal(fixture_wait(f, reads[i]), 0); /* frees its buffer */
    fixture_server_release(f, 0);
    fixture_run(f, SIM_S);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.replies_unknown, f->cluster.servers[0].reads);
    /* What was given up does not count as its load: it gets its share again. */
    before = f->cluster.servers[0].reads;
    for (unsigned i = 0; i < 30; i++)
        fixture_check(f, 0, 4096, 3);
    assert_int_equal(f->cluster.servers[0].reads - before, 10);
    fixture_destroy(f);
}

/*
 * A server so busy that it takes nothing for a while: what waits in front of it is late, not lost.
 * Its link stays, and no write is sent to it twice.
 */
static void
test_a_busy_server(void **state)
{
    struct fixture *f = fixture_create(9, 3);
    struct fixture_request *write;
    struct fixture_request *reads[9];

    (void)state;
    open_filled(f);
    f->world.net.buffer_bytes = 8192;
    fixture_server_pause(f, 0, true);
    write = fixture_submit(f, DLBLK_WRITE, MIB, MIB / 4, 4);
    for (unsigned i = 0; i < 9; i++)
        reads[i] = fixture_submit(f, DLBLK_READ, i * 4096, 4096, 0);
    fixture_run(f, 3500 * NS_PER_MS);
    fixture_server_pause(f, 0, false);
    assert_int_equal(fixture_wait(f, write), 0);
    for (unsigned i = 0; i < 9; i++)
        assert_int_equal(fixture_wait(f, reads[i]), 0);
    assert_int_equal(fixture_stats(f).reconnects, 0);
    assert_int_equal(f->cluster.servers[0].retries, 0);
    fixture_destroy(f);
}

/*
 * Payloads that arrive so slowly that the time-out comes in the middle of them: the link is closed
 * first, and only then the buffer goes to another slot, or back to the caller.
 */
static void
test_time_out_in_the_middle_of_a_payload(void **state)
{
    uint64_t closes = 0;
    unsigned failed = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fixture_request *reads[20];
        uint8_t *expected = malloc(16384);

        f->options.request_timeout_ms = 7000;
        open_filled(f);
        f->world.net.split_percent = 70;
        f->world.net.tail_permille = 150;
        f->world.net.tail_ns = 20 * SIM_S;
        for (unsigned i = 0; i < 20; i++)
            reads[i] = fixture_submit(f, DLBLK_READ, i * 16384, 16384, 0);
        for (unsigned i = 0; i < 20; i++) {
            assert_true(fixture_run_until(f, &reads[i]->done, 60 * SIM_S));
            fixture_pattern(expected, i * 16384, 16384, 3);
            if (reads[i]->err == 0)
                assert_memory_equal(reads[i]->buffer, expected, 16384);
            failed += reads[i]->err != 0;
            fixture_free(reads[i]);
        }
        closes += f->world.net_stats.closes;
        f->world.net.tail_permille = 0;
        fixture_run(f, 30 * SIM_S);
        free(expected);
        fixture_destroy(f);
    }
    printf("%lu links closed in the middle of a payload\n", closes);
    assert_true(closes > 30);
    assert_true(failed > 0);
}

/* A read that overlaps a write in flight waits for it. */
static void
test_waits_for_a_write(void **state)
{
    struct fixture *f = fixture_create(6, 3);
    struct fixture_request *write, *overlapping, *beside;

    (void)state;
    open_filled(f);
    f->cluster.servers[1].faults.hold_writes = true;
    write = fixture_submit(f, DLBLK_WRITE, 4096, 4096, 9);
    overlapping = fixture_submit(f, DLBLK_READ, 0, 8192, 0);
    beside = fixture_submit(f, DLBLK_READ, 8192, 4096, 0);
    fixture_run(f, SIM_S);
    assert_false(write->done || overlapping->done);
    assert_true(beside->done);
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(fixture_wait(f, overlapping), 0);
    assert_int_equal(fixture_wait(f, beside), 0);
    fixture_check(f, 4096, 4096, 9);
    fixture_destroy(f);
}

/* A checker that names a slot is told what that slot has, not what another one has. */
static void
test_one_slot_only(void **state)
{
    struct fixture *f = fixture_create(7, 3);

    (void)state;
    open_filled(f);
    assert_int_equal(fixture_close(f), 0);
    f->cluster.servers[1].faults.read_flip_count = UINT32_MAX;
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY | DLBLK_OPEN_READ_SLOT(1)), 0);
    assert_int_equal(fixture_read(f, 0, 4096, NULL), -DL_E_CRC_DATA);
    assert_int_equal(f->cluster.servers[1].reads, 1);
    f->cluster.servers[1].faults.read_flip_count = 0;
    f->cluster.servers[1].faults.read_err = -DL_E_MEDIA_READ;
    f->cluster.servers[1].faults.read_err_count = 1;
    assert_int_equal(fixture_read(f, 0, 4096, NULL), -DL_E_MEDIA_READ);
    fixture_check(f, 0, 4096, 3);
    fixture_destroy(f);
}

/* Zeroes come from what the reply says, not from its payload. */
static void
test_holes_and_zeroes(void **state)
{
    struct fixture *f = fixture_create(8, 3);

    (void)state;
    open_filled(f);
    assert_int_equal(fixture_write(f, 4 * MIB + 8192, 4096, 5), 0);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 65536, 4096), 0);
    fixture_check(f, 4 * MIB, 8192, 0);
    fixture_check(f, 4 * MIB + 8192, 4096, 5);
    fixture_check(f, 4 * MIB + 12288, 65536, 0);
    fixture_check(f, 65536 - 4096, 4096, 3);
    fixture_check(f, 65536, 4096, 0);
    fixture_check(f, 65536 + 4096, 4096, 3);
    fixture_destroy(f);
}

/* --- hedges: a read that takes longer than nearly all is asked for elsewhere too --- */

static void
open_hedged(struct fixture *f)
{
    f->options.hedge_min_ms = 10;
    open_filled(f);
}

static uint64_t
reads_of(const struct fixture *f)
{
    uint64_t reads = 0;

    for (unsigned i = 0; i < f->cluster.server_count; i++)
        reads += f->cluster.servers[i].reads;
    return reads;
}

/* A slot that does not answer costs some 10 ms, not 3 s; its late answer meets nobody. */
static void
test_a_hedge_wins(void **state)
{
    struct fixture *f = fixture_create(20, 3);
    struct client_core_stats stats;

    (void)state;
    open_hedged(f);
    f->cluster.servers[0].faults.hold_reads = true;
    for (unsigned i = 0; i < 9; i++) {
        uint64_t begin_ns = f->world.now_ns;

        fixture_check(f, i * 8192, 8192, 3); /* frees its buffer */
        assert_true(f->world.now_ns - begin_ns < 25 * NS_PER_MS);
        assert_int_equal(fixture_stats(f).hedged_reads, f->cluster.servers[0].reads);
    }
    assert_in_range(f->cluster.servers[0].reads, 3, 9);
    fixture_server_release(f, 0);
    fixture_run(f, SIM_S);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.replies_unknown, f->cluster.servers[0].reads);
    assert_int_equal(stats.reconnects, 0);
    fixture_destroy(f);
}

/* The first good one counts: here the first that was asked, after all. */
static void
test_a_hedge_loses(void **state)
{
    struct fixture *f = fixture_create(21, 3);
    struct fixture_request *read;

    (void)state;
    open_hedged(f);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_reads = true;
    read = fixture_submit(f, DLBLK_READ, 0, 65536, 0);
    fixture_run(f, NS_PER_MS);
    assert_int_equal(reads_of(f), 1);
    for (unsigned i = 0; i < 3; i++) {
        struct fixture_request *other;

        if (f->cluster.servers[i].reads == 0)
            continue;
        fixture_run(f, 30 * NS_PER_MS);
        assert_int_equal(reads_of(f), 2);
        fixture_server_release(f, i);
        fixture_run(f, 2 * NS_PER_MS);
        assert_true(read->done);
        other = read;
        for (unsigned k = 0; k < 3; k++)
            fixture_server_release(f, k);
        fixture_run(f, 5 * NS_PER_MS);
        assert_int_equal(other->err, 0);
        break;
    }
    fixture_free(read);
    fixture_check(f, 0, 65536, 3);
    fixture_destroy(f);
}

/* One fails, the other delivers: whichever is which. */
static void
test_a_hedge_and_errors(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fixture_request *reads[12];
        uint8_t *expected = malloc(32768);

        open_hedged(f);
        f->world.net.split_percent = 60;
        f->world.net.tail_permille = 100;
        f->world.net.tail_ns = 60 * NS_PER_MS;
        f->cluster.servers[seed % 3].faults.read_flip_count = 6;
        f->cluster.servers[(seed + 1) % 3].faults.read_err = -DL_E_BUSY;
        f->cluster.servers[(seed + 1) % 3].faults.read_err_count = seed % 4;
        for (unsigned i = 0; i < 12; i++)
            reads[i] = fixture_submit(f, DLBLK_READ, i * 16384, 32768, 0);
        for (unsigned i = 0; i < 12; i++) {
            if (i % 4 == seed % 4)
                (void)sim_net_cut_one(&f->client_process, i);
            assert_true(fixture_run_until(f, &reads[i]->done, 20 * SIM_S));
            assert_int_equal(reads[i]->err, 0);
            fixture_pattern(expected, i * 16384, 32768, 3);
            assert_memory_equal(reads[i]->buffer, expected, 32768);
            fixture_free(reads[i]);
        }
        free(expected);
        fixture_destroy(f);
    }
}

/* When all are slow, nearly no read is asked for twice: the slowest hundredth is slower then. */
static void
test_hedges_are_few(void **state)
{
    struct fixture *f = fixture_create(22, 3);
    struct dlblk_volume_stats stats;

    (void)state;
    open_hedged(f);
    f->world.net.delay_min_ns = 10 * NS_PER_MS;
    f->world.net.delay_max_ns = 20 * NS_PER_MS;
    for (unsigned i = 0; i < 400; i++)
        fixture_check(f, i % 60 * 4096, 4096, 3);
    stats = fixture_stats(f);
    assert_in_range(stats.hedged_reads, 1, 16 + 400 / 20);
    for (unsigned i = 0; i < 400; i++)
        fixture_check(f, i % 60 * 4096, 4096, 3);
    assert_in_range(fixture_stats(f).hedged_reads - stats.hedged_reads, 0, 12);
    fixture_destroy(f);
}

/* A client that dies with hedges in flight, and one that closes. */
static void
test_a_hedge_outlives_its_read(void **state)
{
    (void)state;
    for (unsigned kill = 0; kill < 2; kill++) {
        struct fixture *f = fixture_create(23 + kill, 3);
        struct fixture_request *reads[6];

        open_hedged(f);
        for (unsigned i = 0; i < 3; i++)
            f->cluster.servers[i].faults.lost_reads = true;
        for (unsigned i = 0; i < 6; i++)
            reads[i] = fixture_submit(f, DLBLK_READ, i * 65536, 65536, 0);
        fixture_run(f, 100 * NS_PER_MS);
        assert_int_equal(fixture_stats(f).hedged_reads, 6);
        if (kill != 0)
            fixture_kill_client(f);
        for (unsigned i = 0; i < 3; i++)
            f->cluster.servers[i].faults.lost_reads = false;
        for (unsigned i = 0; i < 6 && kill == 0; i++)
            assert_int_equal(fixture_wait(f, reads[i]), 0);
        for (unsigned i = 0; i < 6 && kill != 0; i++)
            fixture_free(reads[i]);
        fixture_destroy(f);
    }
}

/*
 * The hedge says that the volume has another owner: the read fails at once, like all others,
 * whether or not the first slot ever answers.
 */
static void
test_a_hedge_meets_a_newer_owner(void **state)
{
    struct fixture *f = fixture_create(26, 3);
    struct fixture_request *read;

    (void)state;
    open_hedged(f);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.lost_reads = true;
    read = fixture_submit(f, DLBLK_READ, 0, 65536, 0);
    fixture_run(f, NS_PER_MS);
    assert_int_equal(reads_of(f), 1);
    for (unsigned i = 0; i < 3; i++) {
        if (f->cluster.servers[i].reads > 0)
            continue;
        f->cluster.servers[i].faults.lost_reads = false;
        f->cluster.servers[i].faults.read_err = -DL_E_LEASE_OLD;
        f->cluster.servers[i].faults.read_err_count = 1;
    }
    fixture_run(f, 50 * NS_PER_MS);
    assert_int_equal(reads_of(f), 2);
    assert_true(read->done);
    assert_int_equal(fixture_wait(f, read), -DL_E_LEASE_OLD);
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    fixture_destroy(f);
}

/* Who reads one slot only is not told what another one has. */
static void
test_no_hedge_for_one_slot_only(void **state)
{
    struct fixture *f = fixture_create(25, 3);
    struct fixture_request *read;

    (void)state;
    open_hedged(f);
    assert_int_equal(fixture_close(f), 0);
    f->cluster.servers[1].faults.hold_reads = true;
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_READ_ONLY | DLBLK_OPEN_READ_SLOT(1)), 0);
    read = fixture_submit(f, DLBLK_READ, 0, 4096, 0);
    fixture_run(f, SIM_S);
    assert_false(read->done);
    assert_int_equal(reads_of(f), 1);
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, read), 0);
    fixture_destroy(f);
}

/* --- repair: who has a bad copy is told which --- */

static void
test_a_bad_sector_is_reported(void **state)
{
    static const int errors[] = {-DL_E_CRC_DATA, -DL_E_INDEX_CORRUPT, -DL_E_MEDIA_READ};
    struct fixture *f = fixture_create(26, 3);
    struct fake_sector *sectors;
    uint64_t repairs = 0;

    (void)state;
    open_filled(f);
    sectors = fake_server_chunk(&f->cluster.servers[1], 1, 0)->sectors;
    sectors[10].data[77] ^= 1;
    sectors[12].data[99] ^= 1;
    for (unsigned i = 0; i < 3; i++)
        fixture_check(f, 8 * 4096, 8 * 4096, 3);
    fixture_run(f, 10 * NS_PER_MS);
    repairs = f->cluster.servers[1].repairs;
    assert_in_range(repairs, 1, 3);
    assert_int_equal(f->cluster.servers[1].repair_first, 10);
    assert_int_equal(f->cluster.servers[1].repair_count, 3);
    assert_int_equal(f->cluster.servers[0].repairs + f->cluster.servers[2].repairs, 0);
    assert_int_equal(fixture_stats(f).repairs, repairs);
    sectors[10].data[77] ^= 1;
    sectors[12].data[99] ^= 1;
    /* What the server itself finds, of whatever kind, is said to it as well. */
    for (unsigned k = 0; k < sizeof(errors) / sizeof(errors[0]); k++) {
        uint64_t begin_ns = f->world.now_ns;

        for (unsigned i = 0; i < 3; i++) {
            f->cluster.servers[i].faults.read_err = errors[k];
            f->cluster.servers[i].faults.read_err_count = 1;
        }
        fixture_check(f, 0, 4096, 3);
        /* All had one: as soon as they may have repaired it the read goes on. */
        assert_true(f->world.now_ns - begin_ns < 25 * NS_PER_MS);
        fixture_run(f, 10 * NS_PER_MS);
        repairs += 3;
        assert_int_equal(f->cluster.servers[0].repairs + f->cluster.servers[1].repairs +
                             f->cluster.servers[2].repairs,
                         repairs);
    }
    fixture_destroy(f);
}

UNIT_MAIN(cmocka_unit_test(test_a_checksum_error_is_read_elsewhere),
          cmocka_unit_test(test_a_hedge_wins), cmocka_unit_test(test_a_hedge_loses),
          cmocka_unit_test(test_a_hedge_and_errors), cmocka_unit_test(test_hedges_are_few),
          cmocka_unit_test(test_a_hedge_outlives_its_read),
          cmocka_unit_test(test_a_hedge_meets_a_newer_owner),
          cmocka_unit_test(test_no_hedge_for_one_slot_only),
          cmocka_unit_test(test_a_bad_sector_is_reported),
          cmocka_unit_test(test_all_copies_are_damaged),
          cmocka_unit_test(test_slots_that_fail_are_passed_over),
          cmocka_unit_test(test_servers_away), cmocka_unit_test(test_links_break),
          cmocka_unit_test(test_a_slow_slot), cmocka_unit_test(test_a_busy_server),
          cmocka_unit_test(test_time_out_in_the_middle_of_a_payload),
          cmocka_unit_test(test_waits_for_a_write), cmocka_unit_test(test_one_slot_only),
          cmocka_unit_test(test_holes_and_zeroes))
