/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes when things go wrong: servers away, answers lost, damaged frames, slots that refuse, a
 * caller that changes its buffer, a newer owner; versions above the stable one; segments that can't
 * be allocated.  After each: all slots alike, and S where it belongs.
 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct fake_volume *
open_small(struct fixture *f)
{
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    assert_int_equal(fixture_open(f, "v", 0), 0);
    return volume;
}

static void
close_clean(struct fixture *f, const struct fake_volume *volume)
{
    assert_int_equal(fixture_close(f), 0);
    assert_true(volume->clean);
    fixture_check_slots_alike(f, volume);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    fixture_destroy(f);
}

/* --- servers away --- */

static void
test_a_server_comes_back(void **state)
{
    struct fixture *f = fixture_create(1, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 4 * SIM_S);
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "server 2 (server-2:"));
    assert_int_equal(fixture_stats(f).requests_waiting, 1);
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/*
 * A write that waits for a server asks the metadata service now and then: it may be somewhere else,
 * or not be needed any more.
 */
static void
test_a_server_may_be_elsewhere(void **state)
{
    struct fixture *f = fixture_create(35, 3);
    struct fake_volume *volume;
    struct fixture_request *write;
    uint64_t map_gets;

    (void)state;
    f->options.request_timeout_ms = 30000;
    volume = open_small(f);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, SIM_S);
    map_gets = f->cluster.map_gets;
    fixture_run(f, 10 * SIM_S);
    assert_false(write->done);
    assert_in_range(f->cluster.map_gets - map_gets, 3, 12);
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    close_clean(f, volume);
}

/* The write was done, its acknowledgement was lost: sent again with the flag, and done once. */
static void
test_a_lost_acknowledgement(void **state)
{
    struct fixture *f = fixture_create(2, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    f->cluster.servers[2].faults.close_after_writes = 1;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    assert_int_equal(f->cluster.servers[2].writes, 2);
    assert_int_equal(f->cluster.servers[2].retries, 1);
    assert_int_equal(f->cluster.servers[0].retries, 0);
    assert_int_equal(fixture_stats(f).retries, 1);
    fixture_check(f, 0, 65536, 1);
    close_clean(f, volume);
}

/*
 * Away for longer than a request waits: an error that names the server; then undecided until all
 * are back.
 */
static void
test_a_server_stays_away(void **state)
{
    struct fixture *f = fixture_create(3, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *read;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 16384, 1), 0);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_write(f, 4096, 4096, 2), -DL_E_TIMEOUT);
    assert_true(fixture_has_event(f, "server 2 (server-2:"));
    /*
     * What is beside it can be read; it can't: its content is one thing on two slots, another on
     * the third.
     */
    fixture_check(f, 0, 4096, 1);
    fixture_check(f, 8192, 4096, 1);
    read = fixture_submit(f, DLBLK_READ, 4096, 4096, 0);
    fixture_run(f, 3 * SIM_S);
    assert_false(read->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "undecided"));
    /* S stays below it, whatever else happens. */
    assert_int_equal(fixture_pending_count(f, volume), 2);
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, read), 0);
    fixture_check(f, 4096, 4096, 2);
    assert_true(f->cluster.servers[1].resolves > 0);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    close_clean(f, volume);
}

static void
test_reads_of_undecided_ranges_fail_in_the_end(void **state)
{
    struct fixture *f = fixture_create(4, 3);

    (void)state;
    (void)open_small(f);
    assert_int_equal(fixture_write(f, 0, 16384, 1), 0);
    fixture_server_down(f, 0);
    assert_int_equal(fixture_write(f, 4096, 4096, 2), -DL_E_TIMEOUT);
    assert_int_equal(fixture_read(f, 4096, 4096, NULL), -DL_E_TIMEOUT);
    assert_int_equal(fixture_close(f), -DL_E_TIMEOUT);
    assert_non_null(strstr(f->error.text, "could not be detached cleanly"));
    assert_int_equal(f->cluster.detaches, 1);
    assert_int_equal(f->cluster.detaches_clean, 0);
    fixture_destroy(f);
}

/* The user writes there again: that settles it as well, and what is left of it otherwise. */
static void
test_a_rewrite_settles(void **state)
{
    struct fixture *f = fixture_create(5, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_write(f, 8192, 32768, 2), -DL_E_TIMEOUT);
    write = fixture_submit(f, DLBLK_WRITE, 16384, 4096, 3);
    fixture_run(f, 100 * NS_PER_MS);
    fixture_server_up(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_check(f, 16384, 4096, 3);
    fixture_check(f, 0, 8192, 1);
    fixture_check(f, 8192, 8192, 2);
    fixture_check(f, 20480, 20480, 2);
    fixture_check(f, 40960, 24576, 1);
    close_clean(f, volume);
}

/* Whole segments of zeroes, failed, and settled. */
static void
test_zeroes_stay_undecided_too(void **state)
{
    struct fixture *f = fixture_create(6, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 2 * MIB, 1), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, MIB), -DL_E_TIMEOUT);
    fixture_server_up(f, 1);
    fixture_check(f, 0, MIB, 0);
    fixture_check(f, MIB, MIB, 1);
    close_clean(f, volume);
}

/*
 * While it is being settled nobody else writes there: else what was read before would be written
 * over what came after.
 */
static void
test_settling_keeps_others_out(void **state)
{
    struct fixture *f = fixture_create(28, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 16384, 1), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_write(f, 4096, 4096, 2), -DL_E_TIMEOUT);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_reads = true;
    fixture_server_up(f, 1);
    fixture_run(f, 2 * SIM_S); /* it reads, and waits for the answer */
    write = fixture_submit(f, DLBLK_WRITE, 4096, 4096, 3);
    fixture_run(f, 500 * NS_PER_MS);
    assert_false(write->done);
    for (unsigned i = 0; i < 3; i++)
        fixture_server_release(f, i);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_check(f, 4096, 4096, 3);
    fixture_run(f, 3 * SIM_S);
    fixture_check(f, 4096, 4096, 3);
    close_clean(f, volume);
}

/* What is rewritten can have data in one place and none in another. */
static void
test_settling_of_data_and_holes(void **state)
{
    struct fixture *f = fixture_create(29, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    assert_int_equal(fixture_write(f, 12288, 4096, 1), 0);
    /* The first slot has none of it: the old content is what settles. */
    f->cluster.servers[0].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[0].faults.write_err_count = 1;
    assert_int_equal(fixture_write(f, 0, 65536, 2), -DL_E_NO_SPACE);
    fixture_check(f, 0, 4096, 1);
    fixture_check(f, 4096, 8192, 0);
    fixture_check(f, 12288, 4096, 1);
    fixture_check(f, 16384, 49152, 0);
    /* Zeroes take no space. */
    assert_int_equal(fake_server_chunk(&f->cluster.servers[1], 1, 0)->sectors[1].kind,
                     WIRE_SECTOR_ZERO);
    close_clean(f, volume);
}

/* --- slots that refuse --- */

static void
test_one_slot_has_no_space(void **state)
{
    struct fixture *f = fixture_create(7, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = 1;
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_NO_SPACE);
    assert_true(fixture_has_event(f, "server 2"));
    fixture_check(f, 0, 4096, 2); /* settled: by chance with what two of three have */
    close_clean(f, volume);
}

/* Refused by all: nothing has changed, nothing is undecided, and S goes on. */
static void
test_all_slots_have_no_space(void **state)
{
    struct fixture *f = fixture_create(8, 3);
    struct fake_volume *volume = open_small(f);
    uint64_t resolves = 0;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    for (unsigned i = 0; i < 3; i++) {
        f->cluster.servers[i].faults.write_err = -DL_E_NO_SPACE;
        f->cluster.servers[i].faults.write_err_count = 1;
    }
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_NO_SPACE);
    fixture_check(f, 0, 8192, 1);
    assert_int_equal(fixture_write(f, 4096, 4096, 3), 0);
    fixture_run(f, 2 * SIM_S);
    for (unsigned i = 0; i < 3; i++)
        resolves += f->cluster.servers[i].resolves;
    assert_int_equal(resolves, 0);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    close_clean(f, volume);
}

/* Busy is no failure. */
static void
test_busy_slots_are_asked_again(void **state)
{
    struct fixture *f = fixture_create(9, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    f->cluster.servers[0].faults.write_err = -DL_E_BUSY;
    f->cluster.servers[0].faults.write_err_count = 3;
    f->cluster.servers[1].faults.write_err = -DL_E_NOT_YET;
    f->cluster.servers[1].faults.write_err_count = 2;
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    assert_int_equal(f->cluster.servers[0].writes, 4);
    assert_int_equal(f->cluster.servers[1].writes, 3);
    close_clean(f, volume);
}

/* The map has changed under the write: it is asked for, and the write sent again to all slots. */
static void
test_an_old_map(void **state)
{
    struct fixture *f = fixture_create(10, 3);
    struct fake_volume *volume = open_small(f);
    uint64_t before[3];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    volume->config_epoch[0] = 5;
    fake_server_chunk(&f->cluster.servers[1], 1, 0)->config_epoch = 5;
    for (unsigned i = 0; i < 3; i++)
        before[i] = f->cluster.servers[i].writes;
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(f->cluster.servers[i].writes - before[i], 2);
        assert_int_equal(fake_server_chunk(&f->cluster.servers[i], 1, 0)->config_epoch, 5);
    }
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/* Many at a time, as when a server is gone: not one after the other. */
static void
test_many_old_maps(void **state)
{
    struct fixture *f = fixture_create(36, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[8];

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(fixture_write(f, i * MIB, 4096, 1), 0);
        volume->config_epoch[i] = 5;
        fake_server_chunk(&f->cluster.servers[1], 1, i)->config_epoch = 5;
    }
    for (unsigned i = 0; i < 8; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, i * MIB, 4096, 2);
    fixture_run(f, 4 * SIM_S); /* the fake service tells of three in an answer */
    for (unsigned i = 0; i < 8; i++) {
        assert_true(writes[i]->done);
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    }
    close_clean(f, volume);
}

/* --- damage --- */

static void
test_damaged_on_the_way(void **state)
{
    struct fixture *f = fixture_create(11, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    f->cluster.servers[1].faults.write_flip_count = 2;
    assert_int_equal(fixture_write(f, 0, 16384, 7), 0);
    assert_int_equal(f->cluster.servers[1].crc_refused, 2);
    assert_int_equal(f->cluster.servers[1].writes, 3);
    assert_int_equal(f->cluster.servers[0].writes,
                     1); /* the same version: nobody else is asked again */
    assert_int_equal(fixture_stats(f).crc_errors, 2);
    assert_true(fixture_has_event(f, "damaged on its way to server 2"));
    fixture_check(f, 0, 16384, 7);
    close_clean(f, volume);
}

/* A server that finds fault with the checksums of zeroes, which have none: an error like any. */
static void
test_zeroes_have_no_checksums(void **state)
{
    struct fixture *f = fixture_create(32, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    f->cluster.servers[1].faults.write_err = -DL_E_CRC_WIRE;
    f->cluster.servers[1].faults.write_err_count = 1;
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, MIB), -DL_E_CRC_WIRE);
    assert_int_equal(fixture_write(f, 0, MIB, 2), 0);
    fixture_check(f, 0, MIB, 2);
    close_clean(f, volume);
}

/*
 * Two slots have the old bytes, the third would get new ones: all get a copy, under another
 * version.
 */
static void
test_the_caller_changes_its_buffer(void **state)
{
    struct fixture *f = fixture_create(12, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;
    uint8_t *written;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 16384, 1), 0);
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 16384, 2);
    fixture_run(f, SIM_S);
    write->buffer[5000]++;
    written = malloc(16384);
    memcpy(written, write->buffer, 16384);
    fixture_server_up(f, 1);
    fixture_run(f, 100 * NS_PER_MS);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_true(fixture_has_event(f, "buffer was changed"));
    write = fixture_submit(f, DLBLK_READ, 0, 16384, 0);
    assert_true(fixture_run_until(f, &write->done, SIM_S));
    assert_memory_equal(write->buffer, written, 16384);
    fixture_free(write);
    free(written);
    close_clean(f, volume);
}

/* --- buffers given back are not touched --- */

static void
test_a_server_that_never_answers(void **state)
{
    struct fixture *f = fixture_create(13, 3);
    struct fake_volume *volume = open_small(f);
    struct client_core_stats stats;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[0].faults.hold_writes = true;
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_TIMEOUT); /* frees its buffer */
    fixture_server_release(f, 0);
    fixture_run(f, SIM_S);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.replies_unknown, 1); /* the late one: it met nobody */
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/* Each sector is the one or the other. */
static void
check_either(struct fixture *f, uint64_t offset, uint64_t length, uint8_t a, uint8_t b)
{
    uint8_t *found = malloc(length);
    uint8_t expected[2][4096];

    assert_int_equal(fixture_read(f, offset, length, found), 0);
    for (uint64_t at = 0; at < length; at += 4096) {
        fixture_pattern(expected[0], offset + at, 4096, a);
        fixture_pattern(expected[1], offset + at, 4096, b);
        assert_true(memcmp(found + at, expected[0], 4096) == 0 ||
                    memcmp(found + at, expected[1], 4096) == 0);
    }
    free(found);
}

/* So slow a link that deadlines come while frames are still in it. */
static void
test_frames_come_back_before_on_done(void **state)
{
    (void)state;
    for (uint64_t seed = 100; seed < 112; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fixture_request *writes[30];
        unsigned failed = 0;

        f->options.request_timeout_ms = 500;
        (void)open_small(f);
        assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
        f->world.net.buffer_bytes = 8192; /* one frame at a time */
        sim_net_block(&f->world, &f->client_process, &f->server_processes[seed % 3], 30 * SIM_S);
        for (unsigned i = 0; i < 30; i++)
            writes[i] = fixture_submit(f, DLBLK_WRITE, i * 16384, 16384, (uint8_t)(i + 2));
        for (unsigned i = 0; i < 30; i++)
            failed += fixture_wait(f, writes[i]) != 0;
        assert_int_equal(failed, 30);
        sim_net_unblock_all(&f->world);
        f->world.net.buffer_bytes = 4 * MIB;
        fixture_run(f, 10 * SIM_S);
        for (unsigned i = 0; i < 30; i++)
            check_either(f, i * 16384, 16384, 1, (uint8_t)(i + 2));
        fixture_destroy(f);
    }
}

/* --- a newer owner --- */

static void
test_taken_over(void **state)
{
    struct fixture *f = fixture_create(14, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fake_meta_take_over(&f->cluster, volume, true);
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_LEASE_OLD);
    assert_true(fixture_has_event(f, "taken over"));
    assert_true(client_volume_is_fenced(f->volume));
    assert_int_equal(fixture_write(f, MIB, 4096, 2), -DL_E_LEASE_OLD);
    assert_int_equal(fixture_read(f, 0, 4096, NULL), -DL_E_LEASE_OLD);
    assert_int_equal(fixture_op(f, DLBLK_FLUSH, 0, 0), -DL_E_LEASE_OLD);
    fixture_probe(f, volume);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.last_probe_status, DL_E_LEASE_OLD);
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    assert_int_equal(f->cluster.detaches, 0);
    fixture_destroy(f);
}

/* Told by the metadata service, in the middle of everything: all that waits fails at once. */
static void
test_taken_over_while_requests_wait(void **state)
{
    struct fixture *f = fixture_create(15, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *requests[12];

    (void)state;
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    f->cluster.allocate_held = true;
    fixture_server_down(f, 1);
    f->cluster.servers[2].faults.hold_writes = true;
    f->cluster.servers[0].faults.hold_reads = true;
    f->cluster.servers[2].faults.hold_reads = true;
    for (unsigned i = 0; i < 12; i++)
        requests[i] = fixture_submit(f, i % 3 == 0 ? DLBLK_READ : DLBLK_WRITE,
                                     i % 4 == 3 ? 3 * MIB : i % 2 * 4096, 4096, 5);
    fixture_run(f, SIM_S);
    fake_meta_take_over(&f->cluster, volume, false);
    fixture_push_changed(f, volume, false);
    fixture_run(f, 100 * NS_PER_MS);
    for (unsigned i = 0; i < 12; i++) {
        /* What was read from an unallocated segment was over before. */
        assert_true(requests[i]->done);
        assert_true(requests[i]->err == -DL_E_LEASE_OLD ||
                    (i % 4 == 3 && i % 3 == 0 && requests[i]->err == 0));
        fixture_free(requests[i]);
    }
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    fixture_destroy(f);
}

/* It has stood still: news of the newer owner come first, then, at once, a READ's data. */
static void
test_taken_over_before_the_answer(void **state)
{
    struct fixture *f = fixture_create(15, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *read;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_reads = true;
    read = fixture_submit(f, DLBLK_READ, 0, 4096, 1);
    fixture_run(f, 5 * NS_PER_MS);
    sim_process_pause(&f->client_process, 100 * NS_PER_MS);
    fake_meta_take_over(&f->cluster, volume, false);
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    for (unsigned i = 0; i < 3; i++)
        fixture_server_release(f, i);
    fixture_run(f, SIM_S);
    assert_true(read->done);
    assert_int_equal(read->err, -DL_E_LEASE_OLD);
    fixture_free(read);
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    fixture_destroy(f);
}

static void
test_probe_of_the_owner(void **state)
{
    struct fixture *f = fixture_create(16, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    fixture_probe(f, volume);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.last_probe_status, 0);
    close_clean(f, volume);
}

/*
 * One client has the volume open twice, the second time by taking it from itself: questions and
 * news are for the one whose lease they are about.
 */
static void
test_two_handles_of_one_volume(void **state)
{
    struct fixture *f = fixture_create(33, 3);
    struct fake_volume *volume = open_small(f);
    struct client_volume *first = f->volume;

    (void)state;
    assert_int_equal(fixture_open(f, "v", DLBLK_OPEN_STEAL), 0);
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    assert_true(client_volume_is_fenced(first));
    assert_false(client_volume_is_fenced(f->volume));
    fixture_probe(f, volume);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.last_probe_status, 0);
    volume->size_bytes *= 2;
    fixture_push_changed(f, volume, false);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(fixture_write(f, volume->size_bytes - 4096, 4096, 1), 0);
    assert_int_equal(fixture_close(f), 0);
    f->volume = first;
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    fixture_destroy(f);
}

/*
 * After a lost connection the owner says again who it is; if it was replaced meanwhile, it learns
 * so.
 */
static void
test_meta_reconnect(void **state)
{
    struct fixture *f = fixture_create(17, 3);
    struct fake_volume *volume = open_small(f);
    uint64_t map_gets;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    map_gets = f->cluster.map_gets;
    fixture_meta_drop_links(f);
    fixture_run(f, 3 * SIM_S);
    assert_true(f->cluster.map_gets > map_gets);
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    fake_meta_take_over(&f->cluster, volume, false);
    fixture_meta_drop_links(f);
    fixture_run(f, 3 * SIM_S);
    assert_true(client_volume_is_fenced(f->volume));
    fixture_destroy(f);
}

/* --- versions --- */

/* Never more above S than a slot may have to remember; and all get there. */
static void
test_versions_above_stable_are_bounded(void **state)
{
    struct fixture *f = fixture_create(18, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[1500];
    struct fixture_request *first;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.hold_writes = true;
    first = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 20 * NS_PER_MS);
    f->cluster.servers[1].faults.hold_writes = false;
    for (unsigned i = 0; i < 1500; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, (1 + i % 200) * 4096, 4096, 3);
    fixture_run(f, SIM_S);
    assert_int_equal(f->cluster.servers[1].writes, 1 + 960); /* the window, less its reserve */
    assert_non_null(strstr(fixture_stats(f).blocked, "too many newer"));
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, first), 0);
    for (unsigned i = 0; i < 1500; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    assert_int_equal(f->cluster.servers[1].writes, 1502);
    close_clean(f, volume);
}

/*
 * A slot refuses what settles a range, again and again: it is one version with the same bytes, each
 * time, and the window above S stays as it is.
 */
static void
test_settling_takes_one_version(void **state)
{
    struct fixture *f = fixture_create(40, 3);
    struct fake_volume *volume = open_small(f);
    uint64_t version = 0;
    uint32_t crc = 0;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 16384, 1), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_write(f, 4096, 4096, 2), -DL_E_TIMEOUT);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
    fixture_server_up(f, 1);
    for (unsigned i = 0; i < 100; i++) {
        fixture_run(f, SIM_S);
        if (f->cluster.servers[1].resolves > 0 && version == 0) {
            version = f->cluster.servers[1].last_version;
            crc = f->cluster.servers[1].last_crc;
        }
    }
    assert_true(f->cluster.servers[1].resolves > 50);
    assert_int_equal(f->cluster.servers[0].resolves, 1);
    assert_int_equal(f->cluster.servers[1].last_version, version);
    assert_int_equal(f->cluster.servers[1].last_crc, crc);
    assert_true(fixture_has_event(f, "can't be settled yet: server 2"));
    f->cluster.servers[1].faults.write_err_count = 0;
    fixture_check(f, 4096, 4096, 2);
    assert_int_equal(fixture_write(f, 0, 4096, 3), 0);
    assert_int_equal(f->cluster.servers[1].last_version, version + 1);
    close_clean(f, volume);
}

/*
 * The window is full, and S waits for writes whose buffers were changed on the way: their second
 * versions find room, however many they are.
 */
static void
test_second_versions_in_a_full_window(void **state)
{
    struct fixture *f = fixture_create(41, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *changed[100];
    struct fixture_request *writes[1000];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.hold_writes = true;
    for (unsigned i = 0; i < 100; i++)
        changed[i] = fixture_submit(f, DLBLK_WRITE, (uint64_t)i * 4096, 4096, 2);
    fixture_run(f, 20 * NS_PER_MS);
    f->cluster.servers[1].faults.hold_writes = false;
    for (unsigned i = 0; i < 1000; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, (100 + i % 150) * 4096, 4096, 3);
    fixture_run(f, 2 * SIM_S);
    assert_non_null(strstr(fixture_stats(f).blocked, "too many newer"));
    for (unsigned i = 0; i < 100; i++)
        changed[i]->buffer[100]++;
    fixture_server_drop_links(f, 1); /* they are sent again, as they are now */
    fixture_run(f, 4 * SIM_S);
    for (unsigned i = 0; i < 100; i++) {
        assert_true(changed[i]->done);
        assert_int_equal(fixture_wait(f, changed[i]), 0);
    }
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    close_clean(f, volume);
}

/*
 * ... and the one that S waits for has a place of its own, when the others have taken what is kept
 * back: here it is the last to learn that it needs one.
 */
static void
test_the_second_version_that_all_wait_for(void **state)
{
    struct fixture *f = fixture_create(42, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *changed[100];
    struct fixture_request *writes[1000];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    for (unsigned i = 0; i < 100; i++) {
        f->cluster.servers[i == 0 ? 2 : 1].faults.hold_writes = true;
        changed[i] = fixture_submit(f, DLBLK_WRITE, (uint64_t)i * 4096, 4096, 2);
        if (i == 0)
            fixture_run(f, 20 * NS_PER_MS);
        f->cluster.servers[2].faults.hold_writes = false;
    }
    fixture_run(f, 20 * NS_PER_MS);
    f->cluster.servers[1].faults.hold_writes = false;
    for (unsigned i = 0; i < 1000; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, (100 + i % 150) * 4096, 4096, 3);
    fixture_run(f, SIM_S);
    for (unsigned i = 1; i < 100; i++)
        changed[i]->buffer[100]++;
    fixture_server_drop_links(f, 1);
    fixture_run(f, 2 * SIM_S);
    changed[0]->buffer[100]++;
    fixture_server_drop_links(f, 2);
    fixture_run(f, 4 * SIM_S);
    for (unsigned i = 0; i < 100; i++) {
        assert_true(changed[i]->done);
        assert_int_equal(fixture_wait(f, changed[i]), 0);
    }
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    close_clean(f, volume);
}

/*
 * A write fails, and before its range is settled others fill the window above it.  One of them is
 * of the same range, and settling needs that: it does not keep it while it waits for S.
 */
static void
test_a_full_window_above_a_failed_write(void **state)
{
    struct fixture *f = fixture_create(43, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[1200];
    struct fixture_request *again;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = 1;
    assert_int_equal(fixture_write(f, 0, 8192, 2), -DL_E_NO_SPACE);
    for (unsigned i = 0; i < 1200; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, (2 + i % 200) * 4096, 4096, 3);
    fixture_run(f, 40 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].resolves, 0);
    assert_int_equal(f->cluster.servers[1].writes, 1 + 448); /* half the window, less its reserve */
    again = fixture_submit(f, DLBLK_WRITE, 4096, 4096, 4);
    assert_true(fixture_run_until(f, &again->done, SIM_S));
    assert_int_equal(fixture_wait(f, again), 0);
    for (unsigned i = 0; i < 1200; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    fixture_check(f, 4096, 4096, 4);
    close_clean(f, volume);
}

/*
 * The same, and what settles the range are many runs of data and holes: they find room, too.
 */
static void
test_a_full_window_above_many_runs(void **state)
{
    struct fixture *f = fixture_create(45, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);
    struct fixture_request *writes[1200];

    (void)state;
    volume->segment_bytes = 4 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 128; i++)
        assert_int_equal(fixture_write(f, i * 8192, 4096, 1), 0);
    f->cluster.servers[0].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[0].faults.write_err_count = 1;
    assert_int_equal(fixture_write(f, 0, MIB, 2), -DL_E_NO_SPACE);
    for (unsigned i = 0; i < 1200; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, MIB + i % 700 * 4096, 4096, 3);
    fixture_run(f, 40 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].resolves, 0);
    for (unsigned i = 0; i < 1200; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    fixture_check(f, 0, 4096, 1);
    fixture_check(f, 4096, 4096, 0);
    close_clean(f, volume);
}

/* ... and so do the pieces that other writes have left of it. */
static void
test_a_full_window_above_many_pieces(void **state)
{
    struct fixture *f = fixture_create(46, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);
    struct fixture_request *writes[1200];

    (void)state;
    volume->segment_bytes = 4 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    f->cluster.servers[0].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[0].faults.write_err_count = 1;
    assert_int_equal(fixture_write(f, 0, MIB, 2), -DL_E_NO_SPACE);
    for (unsigned i = 0; i < 1200; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, i < 128 ? i * 8192 + 4096 : MIB + i % 700 * 4096,
                                   4096, 3);
    fixture_run(f, 40 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].resolves, 0);
    for (unsigned i = 0; i < 1200; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    assert_int_equal(f->cluster.servers[0].resolves, 128);
    fixture_check(f, 0, 4096, 1);
    fixture_check(f, 4096, 4096, 3);
    close_clean(f, volume);
}

/* Zeroes that failed are finished, all at once: they can be many windows. */
static void
test_settling_of_long_zeroes(void **state)
{
    struct fixture *f = fixture_create(47, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 16 * MIB);

    (void)state;
    volume->segment_bytes = 4 * MIB;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    assert_int_equal(fixture_write(f, 3 * MIB, MIB, 1), 0);
    f->cluster.servers[0].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[0].faults.write_err_count = 1;
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 4096, 4 * MIB - 8192), -DL_E_NO_SPACE);
    fixture_check(f, MIB, MIB, 0);
    fixture_check(f, 4096, MIB - 4096, 0);
    fixture_check(f, 0, 4096, 1);
    fixture_check(f, 4 * MIB - 4096, 4096, 1);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].resolves, 1);
    close_clean(f, volume);
}

/* ... but not over what was written there while settling waited for the range. */
static void
test_settling_zeroes_after_a_write(void **state)
{
    struct fixture *f = fixture_create(50, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    f->cluster.servers[0].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[0].faults.write_err_count = 1;
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 65536), -DL_E_NO_SPACE);
    f->cluster.servers[1].faults.hold_writes = true;
    write = fixture_submit(f, DLBLK_WRITE, 4096, 4096, 5);
    fixture_run(f, 300 * NS_PER_MS);
    assert_false(write->done);
    f->cluster.servers[1].faults.hold_writes = false;
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_run(f, SIM_S);
    fixture_check(f, 0, 4096, 0);
    fixture_check(f, 4096, 4096, 5);
    fixture_check(f, 8192, 57344, 0);
    close_clean(f, volume);
}

/*
 * What can't be settled, or confirmed, is given up at a close; and is not begun again while DETACH
 * finds no metadata service.
 */
static void
test_a_close_that_gives_up(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct fixture *f = fixture_create(48 + i, 3);
        uint64_t begin_ns;

        (void)open_small(f);
        assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
        fixture_run(f, SIM_S);
        if (i == 0) {
            f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
            f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
            assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_NO_SPACE);
        } else {
            f->cluster.servers[1].faults.hold_stables = true;
            assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
        }
        fixture_meta_down(f);
        begin_ns = f->world.now_ns;
        assert_int_equal(fixture_close(f), -DL_E_TIMEOUT);
        assert_in_range(f->world.now_ns - begin_ns, 5 * SIM_S, 10 * SIM_S);
        fixture_destroy(f);
    }
}

/* S goes alone when a segment has been idle, once per slot; and nothing more is said. */
static void
test_stable_goes_alone(void **state)
{
    struct fixture *f = fixture_create(19, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    assert_int_equal(fixture_write(f, MIB, 4096, 1), 0);
    assert_int_equal(fixture_pending_count(f, volume), 6);
    assert_int_equal(f->cluster.servers[0].stables, 0);
    fixture_run(f, 400 * NS_PER_MS);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    fixture_run(f, 5 * SIM_S);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].stables, 2);
    /* Confirmed: a close has nothing to ask any more. */
    assert_int_equal(fixture_close(f), 0);
    assert_int_equal(f->cluster.servers[0].stables, 2);
    assert_true(volume->clean);
    fixture_destroy(f);
}

/* A slot whose STABLE fails is told again; a close waits for it. */
static void
test_stable_is_said_again(void **state)
{
    struct fixture *f = fixture_create(20, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.stable_err = -DL_E_MEDIA_WRITE;
    f->cluster.servers[1].faults.stable_err_count = 2;
    fixture_run(f, 2 * SIM_S);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    f->cluster.servers[1].faults.stable_err_count = 3;
    close_clean(f, volume);
}

/* What slots confirm counts under the map that it was said under: slots may have changed. */
static void
test_stable_under_an_old_map(void **state)
{
    struct fixture *f = fixture_create(34, 3);
    struct fake_volume *volume = open_small(f);
    uint64_t before;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_stables = true;
    fixture_run(f, 300 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].stables, 1);
    /* The client learns of another map before the answers come. */
    volume->config_epoch[0] = 5;
    for (unsigned i = 0; i < 3; i++)
        fake_server_chunk(&f->cluster.servers[i], 1, 0)->config_epoch = 5;
    fixture_check(f, 0, 4096, 1);
    before = f->cluster.servers[0].stables;
    for (unsigned i = 0; i < 3; i++)
        fixture_server_release(f, i);
    fixture_run(f, SIM_S);
    assert_true(f->cluster.servers[0].stables > before);
    close_clean(f, volume);
}

/* Zeroes may be forgotten once they are stable: said once to each slot; not of data. */
static void
test_zeroes_may_be_forgotten(void **state)
{
    struct fixture *f = fixture_create(41, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_run(f, SIM_S);
    assert_int_equal(f->cluster.servers[0].forgets, 0);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 8192), 0);
    assert_int_equal(fixture_op(f, DLBLK_WRITE_ZEROES, 65536, 8192), 0);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].forgets, 1);
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    fixture_run(f, SIM_S);
    assert_int_equal(f->cluster.servers[0].forgets, 1);
    /* A slot that can't be told, or will not be: it was worth one try, and holds up nobody. */
    f->cluster.servers[1].faults.stable_err = -DL_E_INTERNAL;
    f->cluster.servers[1].faults.stable_err_count = 1;
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 8192), 0);
    fixture_run(f, 150 * NS_PER_MS);
    f->cluster.servers[2].faults.stable_err = -DL_E_INTERNAL;
    f->cluster.servers[2].faults.stable_err_count = 1000;
    fixture_run(f, 5 * SIM_S);
    f->cluster.servers[2].faults.stable_err_count = 0;
    close_clean(f, volume);
}

/* Not while a slot is away, or recovers: then it must learn of them.  When it is back, unasked. */
static void
test_zeroes_are_remembered_for_others(void **state)
{
    struct fixture *f = fixture_create(42, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_set_slot(f, volume, 0, 1, 2, DL__SLOT_STATE__SLOT_EJECTED, 1);
    assert_int_equal(fixture_op(f, DLBLK_DISCARD, 0, 8192), 0);
    fixture_run(f, SIM_S);
    fixture_set_slot(f, volume, 0, 1, 2, DL__SLOT_STATE__SLOT_RECOVERING, 1);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].forgets, 0);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, DL__SLOT_STATE__SLOT_IN_SYNC, 1);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(f->cluster.servers[i].forgets, 1);
    close_clean(f, volume);
}

/*
 * A slot goes while the others are being told that zeroes may be forgotten: what was said is given
 * up, and with it all that was left to do for the segment.
 */
static void
test_zeroes_and_a_slot_that_goes(void **state)
{
    struct fixture *f = fixture_create(43, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 2), 0);
    assert_int_equal(fixture_op(f, DLBLK_WRITE_ZEROES, 0, 8192), 0);
    for (unsigned i = 0; i < 1000 && f->cluster.servers[0].stables == 0; i++)
        fixture_run(f, NS_PER_MS);
    fixture_run(f, 20 * NS_PER_MS);
    for (unsigned i = 0; i < 3; i++)
        f->cluster.servers[i].faults.hold_stables = true;
    for (unsigned i = 0; i < 1000 && f->cluster.servers[0].forgets == 0; i++)
        fixture_run(f, NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].forgets, 1);
    fixture_set_slot(f, volume, 0, 1, 2, DL__SLOT_STATE__SLOT_EJECTED, 1);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 3; i++)
        fixture_server_release(f, i);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_run(f, SIM_S);
    fixture_check(f, 0, 4096, 1);
    close_clean(f, volume);
}

/* --- allocation --- */

/* A sequential writer waits for segments less and less often. */
static void
test_allocation_ahead(void **state)
{
    struct fixture *f = fixture_create(21, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 60 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 60; i++) {
        assert_int_equal(fixture_write(f, (uint64_t)i * MIB, 4096, 1), 0);
        fixture_run(f, NS_PER_MS);
        /* Once it is known as sequential the next segment is there before it is needed. */
        assert_true(i < 2 || i == 59 || volume->allocated[i + 1]);
    }
    assert_int_equal(f->cluster.segments_allocated, 60);
    assert_in_range(f->cluster.allocates, 4, 8);
    close_clean(f, volume);
}

/* A random writer gets what it writes to. */
static void
test_no_allocation_ahead_of_random_writes(void **state)
{
    struct fixture *f = fixture_create(22, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 60 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(fixture_write(f, (uint64_t)(i * 37 % 60) * MIB, 4096, 1), 0);
    assert_int_equal(f->cluster.segments_allocated, 20);
    close_clean(f, volume);
}

static void
test_no_room_for_a_segment(void **state)
{
    struct fixture *f = fixture_create(23, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    f->cluster.allocate_err = -DL_E_NO_SPACE;
    f->cluster.allocate_err_count = UINT32_MAX;
    assert_int_equal(fixture_write(f, 0, 4096, 1), -DL_E_NO_SPACE);
    assert_true(fixture_has_event(f, "there is no room"));
    fixture_check(f, 0, 4096, 0);
    f->cluster.allocate_err_count = 0;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_check(f, 0, 4096, 1);
    close_clean(f, volume);
}

/* An answer that is none: it is asked for again, but not all the time. */
static void
test_an_allocation_without_segments(void **state)
{
    struct fixture *f = fixture_create(44, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    f->cluster.allocate_empty = true;
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 1);
    fixture_run(f, 5 * SIM_S);
    assert_false(write->done);
    assert_in_range(f->cluster.allocates, 3, 6);
    f->cluster.allocate_empty = false;
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_check(f, 0, 4096, 1);
    close_clean(f, volume);
}

/* Too much was asked for, ahead: what is needed is asked for alone. */
static void
test_no_room_for_segments_ahead(void **state)
{
    struct fixture *f = fixture_create(24, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 40 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    f->cluster.allocate_max = 1;
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(fixture_write(f, (uint64_t)i * MIB, 4096, 1), 0);
    assert_int_equal(f->cluster.segments_allocated, 20);
    close_clean(f, volume);
}

/*
 * Of the writes that one answer wakes, the first asks for more segments ahead; the others are woken
 * all the same.
 */
static void
test_allocation_ahead_by_one_that_waited(void **state)
{
    struct fixture *f = fixture_create(30, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 40 * MIB);
    struct fixture_request *writes[5];

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.allocate_held = true;
    for (unsigned i = 0; i < 5; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, (i + 1) * (uint64_t)MIB, 4096, 1);
    fixture_run(f, 100 * NS_PER_MS);
    assert_false(volume->allocated[1]);
    fixture_meta_release(f);
    fixture_run(f, SIM_S);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(writes[i]->done);
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    }
    /* More was asked for than they wait for: it was the case that this is about. */
    assert_true(volume->allocated[6]);
    close_clean(f, volume);
}

/* What can be mended by waiting is waited for; and says so. */
static void
test_allocation_waits(void **state)
{
    struct fixture *f = fixture_create(25, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.allocate_err = -DL_E_SERVER_DOWN;
    f->cluster.allocate_err_count = 3;
    write = fixture_submit(f, DLBLK_WRITE, 4 * MIB, 4096, 2);
    fixture_run(f, 1500 * NS_PER_MS);
    assert_non_null(strstr(fixture_stats(f).blocked, "there is no room"));
    assert_int_equal(fixture_write(f, 4096, 4096, 1), 0);
    assert_int_equal(fixture_wait(f, write), 0);
    close_clean(f, volume);
}

/* Without the metadata service: allocated segments go on, others wait, and the volume says so. */
static void
test_meta_is_down(void **state)
{
    struct fixture *f = fixture_create(26, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    fixture_meta_down(f);
    write = fixture_submit(f, DLBLK_WRITE, 4 * MIB, 65536, 2);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(fixture_write(f, i * 4096, 4096, (uint8_t)(i + 1)), 0);
        fixture_check(f, i * 4096, 4096, (uint8_t)(i + 1));
        fixture_run(f, 100 * NS_PER_MS);
    }
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "segment 4 to be allocated: meta:1"));
    fixture_meta_up(f);
    assert_int_equal(fixture_wait(f, write), 0);
    close_clean(f, volume);
}

/*
 * More than may be in flight waits for segments that don't come: what has its segment goes on all
 * the same.
 */
static void
test_waiting_for_segments_stops_nobody(void **state)
{
    struct fixture *f = fixture_create(27, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[40];

    (void)state;
    f->options.in_flight_bytes_max = 256 * 1024;
    fixture_close(f);
    fixture_kill_client(f);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
    f->cluster.allocate_held = true;
    for (unsigned i = 0; i < 40; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, 2 * MIB + i * 65536, 65536, 2);
    fixture_check(f, 0, MIB, 1);
    assert_int_equal(fixture_write(f, 0, 65536, 2), 0);
    fixture_meta_release(f);
    for (unsigned i = 0; i < 40; i++)
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    close_clean(f, volume);
}

UNIT_MAIN(
    cmocka_unit_test(test_a_server_comes_back), cmocka_unit_test(test_a_server_may_be_elsewhere),
    cmocka_unit_test(test_a_lost_acknowledgement), cmocka_unit_test(test_a_server_stays_away),
    cmocka_unit_test(test_reads_of_undecided_ranges_fail_in_the_end),
    cmocka_unit_test(test_a_rewrite_settles), cmocka_unit_test(test_zeroes_stay_undecided_too),
    cmocka_unit_test(test_settling_keeps_others_out),
    cmocka_unit_test(test_settling_of_data_and_holes), cmocka_unit_test(test_one_slot_has_no_space),
    cmocka_unit_test(test_all_slots_have_no_space),
    cmocka_unit_test(test_busy_slots_are_asked_again), cmocka_unit_test(test_an_old_map),
    cmocka_unit_test(test_many_old_maps), cmocka_unit_test(test_damaged_on_the_way),
    cmocka_unit_test(test_zeroes_have_no_checksums),
    cmocka_unit_test(test_two_handles_of_one_volume),
    cmocka_unit_test(test_stable_under_an_old_map), cmocka_unit_test(test_zeroes_may_be_forgotten),
    cmocka_unit_test(test_zeroes_are_remembered_for_others),
    cmocka_unit_test(test_zeroes_and_a_slot_that_goes),
    cmocka_unit_test(test_the_caller_changes_its_buffer),
    cmocka_unit_test(test_a_server_that_never_answers),
    cmocka_unit_test(test_frames_come_back_before_on_done), cmocka_unit_test(test_taken_over),
    cmocka_unit_test(test_taken_over_before_the_answer),
    cmocka_unit_test(test_taken_over_while_requests_wait),
    cmocka_unit_test(test_probe_of_the_owner), cmocka_unit_test(test_meta_reconnect),
    cmocka_unit_test(test_versions_above_stable_are_bounded),
    cmocka_unit_test(test_settling_takes_one_version),
    cmocka_unit_test(test_second_versions_in_a_full_window),
    cmocka_unit_test(test_the_second_version_that_all_wait_for),
    cmocka_unit_test(test_a_full_window_above_a_failed_write),
    cmocka_unit_test(test_a_full_window_above_many_runs),
    cmocka_unit_test(test_a_full_window_above_many_pieces),
    cmocka_unit_test(test_settling_of_long_zeroes),
    cmocka_unit_test(test_settling_zeroes_after_a_write),
    cmocka_unit_test(test_a_close_that_gives_up), cmocka_unit_test(test_stable_goes_alone),
    cmocka_unit_test(test_stable_is_said_again), cmocka_unit_test(test_allocation_ahead),
    cmocka_unit_test(test_no_allocation_ahead_of_random_writes),
    cmocka_unit_test(test_no_room_for_a_segment),
    cmocka_unit_test(test_an_allocation_without_segments),
    cmocka_unit_test(test_no_room_for_segments_ahead),
    cmocka_unit_test(test_allocation_ahead_by_one_that_waited),
    cmocka_unit_test(test_allocation_waits), cmocka_unit_test(test_meta_is_down),
    cmocka_unit_test(test_waiting_for_segments_stops_nobody))
