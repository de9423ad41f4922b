/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots that fail a write are ejected: which sign counts, after how long, and what becomes of the
 * write; what can't be ejected blocks the volume until it can go on.  Maps that change under writes
 * and reads: what older config epochs said does not count, recovering slots are written and not
 * read, places come and go.  The rules are those of docs/recovery.md.
 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IN_SYNC    DL__SLOT_STATE__SLOT_IN_SYNC
#define RECOVERING DL__SLOT_STATE__SLOT_RECOVERING
#define EJECTED    DL__SLOT_STATE__SLOT_EJECTED

static struct fake_volume *
open_small(struct fixture *f)
{
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    f->options.eject_lost_ms = 200;
    f->options.eject_silent_ms = 3000;
    f->options.eject_slow_ms = 10000;
    f->options.request_timeout_ms = 0;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    return volume;
}

static void
close_clean(struct fixture *f, const struct fake_volume *volume)
{
    assert_int_equal(fixture_close(f), 0);
    assert_true(volume->clean);
    fixture_check_slots_alike(f, volume);
    fixture_destroy(f);
}

static uint32_t
state_of(const struct fake_volume *volume, uint32_t segment, uint32_t server_id)
{
    for (uint32_t i = 0; i < FAKE_PLACES; i++)
        if (volume->slots[segment][i].server_id == server_id)
            return volume->slots[segment][i].state;
    return DL__SLOT_STATE__SLOT_NONE;
}

static unsigned
count_events(const struct fixture *f, const char *text)
{
    unsigned count = 0;

    for (unsigned i = 0; i < FIXTURE_EVENTS_MAX; i++)
        count += strstr(f->events[i], text) != NULL;
    return count;
}

/* --- how a slot fails --- */

/*
 * A server is killed under writes to all segments: one EJECT, and nobody waits for half a second.
 */
static void
test_a_server_is_killed(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *writes[8];
        uint64_t begin_ns;

        for (unsigned i = 0; i < 8; i++)
            assert_int_equal(fixture_write(f, i * MIB, 4096, 1), 0);
        fixture_server_down(f, 1);
        begin_ns = f->world.now_ns;
        for (unsigned i = 0; i < 8; i++)
            writes[i] = fixture_submit(f, DLBLK_WRITE, i * MIB, 4096, 2);
        for (unsigned i = 0; i < 8; i++)
            assert_int_equal(fixture_wait(f, writes[i]), 0);
        assert_in_range(f->world.now_ns - begin_ns, 150 * NS_PER_MS, 300 * NS_PER_MS);
        assert_int_equal(f->cluster.ejects, 1);
        assert_int_equal(f->cluster.ejections, 8);
        assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_CONNECTION);
        assert_true(f->cluster.last_eject_resolved);
        for (unsigned i = 0; i < 8; i++)
            assert_int_equal(state_of(volume, i, 2), EJECTED);
        assert_int_equal(fixture_stats(f).ejections, 8);
        assert_int_equal(count_events(f, "server 2 (server-2:7710) was ejected from 8 segments"),
                         1);
        /* It does not cost the next ones anything. */
        begin_ns = f->world.now_ns;
        assert_int_equal(fixture_write(f, 0, 4096, 3), 0);
        assert_true(f->world.now_ns - begin_ns < 10 * NS_PER_MS);
        fixture_check(f, 0, 4096, 3);
        close_clean(f, volume);
    }
}

/* Back in time: it is tried often enough that a short break ejects nobody. */
static void
test_a_short_break(void **state)
{
    struct fixture *f = fixture_create(11, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    for (unsigned i = 0; i < 5; i++) {
        struct fixture_request *write;

        fixture_server_down(f, 1);
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, (uint8_t)(i + 2));
        fixture_run(f, 150 * NS_PER_MS);
        fixture_server_up(f, 1);
        fixture_run(f, 45 * NS_PER_MS);
        assert_true(write->done);
        assert_int_equal(fixture_wait(f, write), 0);
    }
    assert_int_equal(f->cluster.ejections, 0);
    close_clean(f, volume);
}

/* A server that is there, and refuses whoever greets it: as good as gone. */
static void
test_a_server_that_refuses(void **state)
{
    struct fixture *f = fixture_create(12, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.refuses = true;
    fixture_server_drop_links(f, 1);
    fixture_run(f, NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 400 * NS_PER_MS);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    f->cluster.servers[1].faults.refuses = false;
    close_clean(f, volume);
}

/* ... for a moment only: as a server does that starts, and has not been admitted yet. */
static void
test_a_server_that_starts(void **state)
{
    struct fixture *f = fixture_create(49, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.refuses = true;
    fixture_server_drop_links(f, 1);
    fixture_run(f, NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 120 * NS_PER_MS);
    f->cluster.servers[1].faults.refuses = false;
    fixture_run(f, 50 * NS_PER_MS);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(f->cluster.ejections, 0);
    close_clean(f, volume);
}

/* Not a byte, though it was pinged: after 3 s, not before; its connection is closed. */
static void
test_a_silent_server(void **state)
{
    struct fixture *f = fixture_create(13, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[4];

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(fixture_write(f, i * MIB, 4096, 1), 0);
    f->cluster.servers[1].faults.deaf = true;
    for (unsigned i = 0; i < 4; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, i * MIB, 4096, 2);
    fixture_run(f, 2900 * NS_PER_MS);
    assert_int_equal(f->cluster.ejections, 0);
    fixture_run(f, 400 * NS_PER_MS);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(writes[i]->done);
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    }
    assert_int_equal(f->cluster.ejects, 1);
    assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_SILENT);
    assert_true(fixture_has_event(f, "it has been silent for 3 seconds"));
    f->cluster.servers[1].faults.deaf = false;
    close_clean(f, volume);
}

/* Slow is not dead: it answers PING, and this write within 10 s. */
static void
test_a_slow_server(void **state)
{
    struct fixture *f = fixture_create(14, 3);
    struct fake_volume *volume = open_small(f);
    struct client_core_stats stats;
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[1].faults.hold_writes = true;
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 9500 * NS_PER_MS);
    assert_false(write->done);
    fixture_server_release(f, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(f->cluster.ejections, 0);

    f->cluster.servers[1].faults.hold_writes = true;
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 3);
    fixture_run(f, 10700 * NS_PER_MS);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0); /* frees its buffer */
    assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_SLOW);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    /* The late answer meets nobody; the connection is as good as it was. */
    fixture_server_release(f, 1);
    fixture_run(f, SIM_S);
    client_core_get_stats(f->core, &stats);
    assert_int_equal(stats.replies_unknown, 1);
    assert_int_equal(stats.reconnects, 0);
    close_clean(f, volume);
}

/* Who was stopped himself has heard nothing either: that is nobody's fault. */
static void
test_we_were_stopped(void **state)
{
    (void)state;
    for (uint64_t seed = 60; seed < 70; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *write;

        assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
        f->cluster.servers[1].faults.hold_writes = true;
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
        fixture_run(f, (seed - 59) * 300 * NS_PER_MS);
        /* One that is away comes back meanwhile. */
        fixture_server_drop_links(f, 2);
        fixture_run(f, NS_PER_MS);
        sim_process_pause(&f->client_process, 20 * SIM_S);
        fixture_run(f, 22 * SIM_S);
        assert_int_equal(f->cluster.ejections, 0);
        fixture_server_release(f, 1);
        assert_int_equal(fixture_wait(f, write), 0);
        close_clean(f, volume);
    }
}

/* It can't, and others can: it goes, at once. */
static void
test_one_slot_is_full(void **state)
{
    static const int errors[] = {DL_E_NO_SPACE, DL_E_MEDIA_WRITE, DL_E_INTERNAL};

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct fixture *f = fixture_create(15 + i, 3);
        struct fake_volume *volume = open_small(f);
        uint64_t begin_ns;

        assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
        f->cluster.servers[1].faults.write_err = -errors[i];
        f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
        begin_ns = f->world.now_ns;
        assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
        assert_true(f->world.now_ns - begin_ns < 10 * NS_PER_MS);
        assert_int_equal(state_of(volume, 0, 2), EJECTED);
        assert_int_equal(f->cluster.last_eject_reason,
                         i == 0 ? DL__EJECT_REASON__EJECT_FULL : DL__EJECT_REASON__EJECT_ERROR);
        fixture_check(f, 0, 4096, 2);
        close_clean(f, volume);
    }
}

/* None has taken it: the user's error, and nothing has changed. */
static void
test_all_slots_are_full(void **state)
{
    struct fixture *f = fixture_create(18, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    for (unsigned i = 0; i < 3; i++) {
        f->cluster.servers[i].faults.write_err = -DL_E_NO_SPACE;
        f->cluster.servers[i].faults.write_err_count = 1;
    }
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_NO_SPACE);
    assert_int_equal(f->cluster.ejects, 0);
    fixture_check(f, 0, 8192, 1);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    close_clean(f, volume);
}

/* Two can't, and may not both go: the user's error; then undecided, and settled. */
static void
test_two_slots_are_full(void **state)
{
    struct fixture *f = fixture_create(19, 3);
    struct fake_volume *volume = open_small(f);
    uint8_t found[4096], expected[2][4096];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    for (unsigned i = 1; i < 3; i++) {
        f->cluster.servers[i].faults.write_err = -DL_E_NO_SPACE;
        f->cluster.servers[i].faults.write_err_count = UINT32_MAX;
    }
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_NO_SPACE);
    assert_true(f->cluster.ejections_refused > 0);
    for (unsigned i = 1; i < 3; i++)
        f->cluster.servers[i].faults.write_err_count = 0;
    assert_int_equal(fixture_read(f, 0, 4096, found), 0);
    fixture_pattern(expected[0], 0, 4096, 1);
    fixture_pattern(expected[1], 0, 4096, 2);
    assert_true(memcmp(found, expected[0], 4096) == 0 || memcmp(found, expected[1], 4096) == 0);
    close_clean(f, volume);
}

/*
 * Of one write one slot can't, of a later one two: the one is ejected, and they do not ask for both
 * again and again.
 */
static void
test_full_for_a_later_write(void **state)
{
    struct fixture *f = fixture_create(22, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[2];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
    f->cluster.eject_err = -DL_E_INTERNAL; /* the next one is for both */
    f->cluster.eject_err_count = 1;
    writes[0] = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 300 * NS_PER_MS);
    f->cluster.servers[2].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[2].faults.write_err_count = 1;
    writes[1] = fixture_submit(f, DLBLK_WRITE, 8192, 4096, 3);
    fixture_run(f, 2 * SIM_S);
    assert_in_range(f->cluster.ejections_refused, 1, 3);
    assert_int_equal(fixture_wait(f, writes[0]), 0);
    assert_int_equal(fixture_wait(f, writes[1]), 0);
    assert_true((state_of(volume, 0, 1) == EJECTED) != (state_of(volume, 0, 2) == EJECTED));
    close_clean(f, volume);
}

/*
 * One that can't, and one that is away: the two may not go together.  When the other is back, the
 * one can.
 */
static void
test_full_and_away(void **state)
{
    struct fixture *f = fixture_create(20, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 8192, 1), 0);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
    f->cluster.eject_err = -DL_E_INTERNAL; /* the next one is for both */
    f->cluster.eject_err_count = 1;
    fixture_server_down(f, 2);
    fixture_run(f, 300 * NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 1500 * NS_PER_MS);
    assert_int_equal(f->cluster.ejections_refused, 1);
    assert_false(write->done);
    fixture_server_up(f, 2);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/* --- what can't be ejected --- */

/* Two of three are gone: all waits, the volume says so once, and goes on when one is back. */
static void
test_blocked(void **state)
{
    struct fixture *f = fixture_create(21, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *writes[6];
    struct dlblk_volume_stats stats;

    (void)state;
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(fixture_write(f, i * MIB, 4096, 1), 0);
    fixture_server_down(f, 1);
    fixture_server_down(f, 2);
    for (unsigned i = 0; i < 6; i++)
        writes[i] = fixture_submit(f, DLBLK_WRITE, i * MIB, 4096, 2);
    fixture_run(f, 60 * SIM_S); /* longer than any request waits by default */
    for (unsigned i = 0; i < 6; i++)
        assert_false(writes[i]->done);
    stats = fixture_stats(f);
    assert_true(stats.is_blocked);
    assert_true(stats.ejections_refused > 0);
    assert_non_null(strstr(stats.blocked, "fewer than 2 copies"));
    assert_int_equal(count_events(f, "is blocked"), 1);
    fixture_check(f, 5 * MIB + 8192, 4096, 0); /* reads go on */
    /* The first of the two that was missed was ejected: it is the other one that is needed. */
    fixture_server_up(f, state_of(volume, 0, 2) == EJECTED ? 2 : 1);
    fixture_run(f, 300 * NS_PER_MS);
    for (unsigned i = 0; i < 6; i++) {
        assert_true(writes[i]->done);
        assert_int_equal(fixture_wait(f, writes[i]), 0);
    }
    assert_false(fixture_stats(f).is_blocked);
    assert_int_equal(count_events(f, "is blocked"), 1);
    assert_int_equal(count_events(f, "goes on; it was blocked for"), 1);
    close_clean(f, volume);
}

/*
 * The metadata service, to which both servers may look well, is told what is waited for, and when
 * that is over; one that does not know the message is not asked again.
 */
static void
test_waits_are_told(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct fixture *f = fixture_create(24, 3);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *write;

        (void)state;
        f->cluster.waits_unknown = i == 1;
        assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
        fixture_run(f, 5 * SIM_S);
        assert_int_equal(f->cluster.waits_count, 0);
        fixture_server_down(f, 1);
        fixture_server_down(f, 2);
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
        fixture_run(f, 20 * SIM_S);
        assert_false(write->done);
        if (i == 1) {
            assert_int_equal(f->cluster.waits_count, 1);
        } else {
            assert_in_range(f->cluster.waits_count, 8, 10);
            assert_in_range(f->cluster.waited_ms, 17000, 21000);
            assert_non_null(strstr(f->cluster.waits, "a write of segment 0 waits for server"));
            assert_non_null(strstr(f->cluster.waits, "fewer than 2 copies"));
        }
        fixture_server_up(f, state_of(volume, 0, 2) == EJECTED ? 2 : 1);
        fixture_run(f, 3 * SIM_S);
        assert_int_equal(fixture_wait(f, write), 0);
        assert_string_equal(f->cluster.waits, "");
        f->cluster.waits_count = 0;
        fixture_run(f, 10 * SIM_S);
        assert_int_equal(f->cluster.waits_count, 0);
        close_clean(f, volume);
    }
}

/* A deadline that was asked for is kept. */
static void
test_blocked_with_a_deadline(void **state)
{
    struct fixture *f = fixture_create(22, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    (void)state;
    f->options.eject_lost_ms = 200;
    f->options.request_timeout_ms = 5000;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_server_down(f, 1);
    fixture_server_down(f, 2);
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_TIMEOUT);
    fixture_server_up(f, 1);
    fixture_server_up(f, 2);
    fixture_check(f, 4096, 4096, 0);
    close_clean(f, volume);
}

/*
 * All slots of the map have it, and they are too few: it is not acknowledged before there are more.
 */
static void
test_too_few_in_sync(void **state)
{
    struct fixture *f = fixture_create(23, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_set_slot(f, volume, 0, 1, 2, EJECTED, 1);
    fixture_set_slot(f, volume, 0, 2, 3, EJECTED, 2);
    fixture_run(f, 10 * NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 5 * SIM_S);
    assert_false(write->done);
    assert_true(fixture_stats(f).is_blocked);
    assert_non_null(strstr(fixture_stats(f).blocked, "1 copies are in sync, and 2 are needed"));
    /* A recovering one does not count, though it takes the write. */
    fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
    fixture_run(f, 5 * SIM_S);
    assert_false(write->done);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    fixture_run(f, 200 * NS_PER_MS);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/* What must wait for the metadata service says so. */
static void
test_meta_is_down(void **state)
{
    struct fixture *f = fixture_create(24, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_meta_down(f);
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 20 * SIM_S);
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "server 2 (server-2:"));
    assert_non_null(strstr(fixture_stats(f).blocked, "can't be reached"));
    fixture_meta_up(f);
    fixture_run(f, 2 * SIM_S);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    close_clean(f, volume);
}

/* --- rule 1: the config epoch that it was decided under --- */

static void
test_an_ejection_under_an_old_map(void **state)
{
    struct fixture *f = fixture_create(25, 4);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.eject_held = true;
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, SIM_S);
    /* Somebody has ejected it already, and another server has its place. */
    fake_meta_set_slot(&f->cluster, volume, 0, 1, (struct fake_slot){2, EJECTED, 0, 1});
    fake_meta_set_slot(&f->cluster, volume, 0, 1, (struct fake_slot){4, RECOVERING, 0, 1});
    fixture_meta_release(f);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(f->cluster.ejections_old, 1);
    assert_int_equal(volume->config_epoch[0], 3);
    assert_int_equal(f->cluster.servers[3].writes, 1);
    fixture_check(f, 0, 4096, 2);
    fixture_server_up(f, 1);
    close_clean(f, volume);
}

/* Done, and the answer was lost: asked again, it is answered with the map as it is. */
static void
test_a_lost_answer_to_an_ejection(void **state)
{
    struct fixture *f = fixture_create(26, 3);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.eject_err = -DL_E_INTERNAL;
    f->cluster.eject_err_count = 2;
    fixture_server_down(f, 1);
    fixture_run(f, 500 * NS_PER_MS);
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    assert_true(fixture_has_event(f, "did not eject slots that failed"));
    assert_int_equal(f->cluster.ejections, 1);
    close_clean(f, volume);
}

static void
test_news_before_the_answer(void **state)
{
    struct fixture *f = fixture_create(27, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.eject_held = true;
    fixture_server_down(f, 1);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, SIM_S);
    fixture_set_slot(f, volume, 0, 1, 2, EJECTED, 1);
    fixture_run(f, 10 * NS_PER_MS);
    assert_true(write->done); /* it does not wait for the answer */
    assert_int_equal(fixture_wait(f, write), 0);
    fixture_meta_release(f);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_write(f, 0, 4096, 3), 0);
    fixture_push_map(f, volume, 0); /* and twice */
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_write(f, 0, 4096, 4), 0);
    close_clean(f, volume);
}

/* --- rule 4: a new map --- */

/* Two acknowledge under the old map, the third one too, late: none of that counts. */
static void
test_acknowledgements_of_an_old_map(void **state)
{
    struct fixture *f = fixture_create(28, 4);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;
    uint64_t before[4];

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.servers[2].faults.hold_writes = true;
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 10 * NS_PER_MS);
    for (unsigned i = 0; i < 4; i++)
        before[i] = f->cluster.servers[i].writes;
    /* Server 2's place goes to server 4, which does not answer yet. */
    f->cluster.servers[3].faults.hold_writes = true;
    f->cluster.servers[0].faults.hold_writes = true;
    fixture_set_slot(f, volume, 0, 1, 4, RECOVERING, 1);
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[0].writes - before[0], 1);
    assert_int_equal(f->cluster.servers[1].writes - before[1], 0);
    assert_int_equal(f->cluster.servers[2].writes - before[2], 0); /* the first is on its way */
    assert_int_equal(f->cluster.servers[3].writes - before[3], 1);
    fixture_server_release(f, 2); /* the late answer, then it is asked again */
    f->cluster.servers[2].faults.hold_writes = true;
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[2].writes - before[2], 1);
    fixture_server_release(f, 3);
    fixture_run(f, 10 * NS_PER_MS);
    assert_false(write->done);
    fixture_server_release(f, 2);
    fixture_run(f, 10 * NS_PER_MS);
    assert_false(write->done);
    fixture_server_release(f, 0);
    fixture_run(f, 10 * NS_PER_MS);
    assert_true(write->done);
    assert_int_equal(fixture_wait(f, write), 0);
    /* No healthy link was closed for it. */
    assert_int_equal(fixture_stats(f).reconnects, 0);
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

/* Map after map, while frames are in slow links: each slot has the last word in the end. */
static void
test_many_maps(void **state)
{
    (void)state;
    for (uint64_t seed = 30; seed < 40; seed++) {
        struct fixture *f = fixture_create(seed, 5);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *writes[64];

        volume->min_write = 1;
        assert_int_equal(fixture_close(f), 0);
        assert_int_equal(fixture_open(f, "v", 0), 0);
        assert_int_equal(fixture_write(f, 0, MIB, 1), 0);
        f->world.net.buffer_bytes = 65536;
        for (unsigned i = 0; i < 64; i++)
            writes[i] = fixture_submit(f, DLBLK_WRITE, i * 16384, 16384, (uint8_t)(i + 2));
        for (unsigned i = 0; i < 12; i++) {
            uint32_t place = 1 + i / 4 % 2;

            fixture_run(f, (seed % 5 + 1) * 50 * SIM_US);
            if (i % 4 == 0)
                fixture_set_slot(f, volume, 0, place, volume->slots[0][place].server_id, EJECTED,
                                 place);
            else if (i % 4 == 1)
                fixture_set_slot(f, volume, 0, place, 4 + i / 4 % 2, RECOVERING, place);
            else if (i % 4 == 2)
                fixture_set_slot(f, volume, 0, 3, 1, EJECTED, 0);
        }
        for (unsigned i = 0; i < 64; i++)
            assert_int_equal(fixture_wait(f, writes[i]), 0);
        for (unsigned i = 0; i < 64; i++)
            fixture_check(f, i * 16384, 16384, (uint8_t)(i + 2));
        fixture_destroy(f);
    }
}

/* --- rule 5, and recovering slots --- */

/* A recovering slot that fails is ejected before the write is acknowledged. */
static void
test_a_recovering_slot_fails(void **state)
{
    (void)state;
    for (unsigned full = 0; full < 2; full++) {
        struct fixture *f = fixture_create(41, 3);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *write;

        assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
        fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
        assert_int_equal(fixture_write(f, 4096, 4096, 2), 0);
        if (full == 0)
            fixture_server_down(f, 1);
        f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
        f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
        f->cluster.eject_held = true;
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
        fixture_run(f, 5 * SIM_S);
        assert_false(write->done);
        fixture_meta_release(f);
        assert_int_equal(fixture_wait(f, write), 0);
        assert_int_equal(state_of(volume, 0, 2), EJECTED);
        close_clean(f, volume);
    }
}

/*
 * An in-sync slot that may not be ejected, and a recovering one that can: the latter goes though
 * both are wanted.
 */
static void
test_a_recovering_slot_is_spared_first(void **state)
{
    struct fixture *f = fixture_create(42, 3);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
    fixture_run(f, 10 * NS_PER_MS);
    f->cluster.servers[1].faults.write_err = -DL_E_NO_SPACE;
    f->cluster.servers[1].faults.write_err_count = UINT32_MAX;
    fixture_server_down(f, 2);
    fixture_run(f, 300 * NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 2 * SIM_S);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    assert_int_equal(state_of(volume, 0, 3), IN_SYNC);
    assert_false(write->done);
    fixture_server_up(f, 2);
    assert_int_equal(fixture_wait(f, write), 0);
    close_clean(f, volume);
}

/* A slot that has not been told yet is asked again and again, and is no failure. */
static void
test_not_yet(void **state)
{
    struct fixture *f = fixture_create(43, 4);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;
    uint64_t begin_ns;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.untold = true;
    /* One that has a chunk, and one that has none: NOT_YET, and CHUNK_UNKNOWN. */
    fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
    fixture_set_slot(f, volume, 0, 2, 4, RECOVERING, 2);
    volume->min_write = 1;
    fixture_run(f, 10 * NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    fixture_run(f, 60 * NS_PER_MS);
    assert_in_range(f->cluster.servers[1].not_yet, 3, 4); /* after 10, 30, 70 ms */
    fixture_run(f, 5 * SIM_S);
    assert_in_range(f->cluster.servers[1].not_yet, 40, 60);
    assert_in_range(f->cluster.servers[3].writes, 40, 60);
    assert_false(write->done);
    begin_ns = f->world.now_ns;
    fake_server_tell(&f->cluster.servers[1], volume, 0);
    fake_server_tell(&f->cluster.servers[3], volume, 0);
    f->cluster.untold = false;
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_true(f->world.now_ns - begin_ns < 200 * NS_PER_MS);
    assert_int_equal(f->cluster.ejections, 0);
    assert_int_equal(fixture_stats(f).reconnects, 0);
    close_clean(f, volume);
}

/* ... but not for ever. */
static void
test_not_yet_for_too_long(void **state)
{
    struct fixture *f = fixture_create(44, 4);
    struct fake_volume *volume = open_small(f);

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    f->cluster.untold = true;
    fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
    fixture_run(f, 10 * NS_PER_MS);
    f->cluster.untold = false;
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_SLOW);
    assert_int_equal(state_of(volume, 0, 2), EJECTED);
    close_clean(f, volume);
}

/*
 * A server is there again, and the metadata service knows first: who still waits for his next try
 * to connect does not eject it for what was before.
 */
static void
test_a_server_is_there_again(void **state)
{
    (void)state;
    for (uint64_t seed = 70; seed < 80; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fake_volume *volume = open_small(f);
        struct fixture_request *write;

        assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
        fixture_server_down(f, 1);
        assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
        fixture_run(f, 20 * SIM_S);
        assert_int_equal(f->cluster.ejections, 1);
        fixture_server_up(f, 1);
        fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
        fixture_run(f, NS_PER_MS);
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 3);
        fixture_run(f, 50 * NS_PER_MS);
        assert_true(write->done);
        assert_int_equal(fixture_wait(f, write), 0);
        assert_int_equal(f->cluster.ejections, 1);
        /* Gone again with a new attempt, and the news is wrong: it has as long as before. */
        fixture_server_down(f, 1);
        fixture_run(f, 20 * SIM_S);
        fixture_set_slot(f, volume, 0, 1, 2, RECOVERING, 1);
        fixture_run(f, NS_PER_MS);
        write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 4);
        fixture_run(f, 150 * NS_PER_MS);
        assert_false(write->done);
        fixture_run(f, 150 * NS_PER_MS);
        assert_true(write->done);
        assert_int_equal(fixture_wait(f, write), 0);
        assert_int_equal(f->cluster.ejections, 2);
        close_clean(f, volume);
    }
}

/* Reads: from in-sync slots only, also when nobody has told us. */
static void
test_reads_of_a_map_that_changed(void **state)
{
    struct fixture *f = fixture_create(45, 4);
    struct fake_volume *volume = open_small(f);
    uint64_t before;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    fake_meta_set_slot(&f->cluster, volume, 0, 1, (struct fake_slot){2, RECOVERING, 0, 1});
    for (unsigned i = 0; i < 9; i++) {
        uint64_t begin_ns = f->world.now_ns;

        fixture_check(f, i * 4096, 4096, 1);
        assert_true(f->world.now_ns - begin_ns < 10 * NS_PER_MS);
    }
    before = f->cluster.servers[1].reads;
    assert_in_range(before, 0, 2);
    for (unsigned i = 0; i < 9; i++)
        fixture_check(f, i * 4096, 4096, 1);
    assert_int_equal(f->cluster.servers[1].reads, before);
    close_clean(f, volume);
}

/*
 * A slot that comes to replace another: written with it, under the same number, not read before it
 * is in sync; then the other goes.
 */
static void
test_an_incoming_slot(void **state)
{
    struct fixture *f = fixture_create(46, 4);
    struct fake_volume *volume = open_small(f);
    struct fixture_request *write;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 65536, 1), 0);
    fixture_set_slot(f, volume, 0, 3, 4, RECOVERING, 1);
    fixture_run(f, 10 * NS_PER_MS);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 2);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_int_equal(f->cluster.servers[3].writes, 1);
    assert_int_equal(f->cluster.servers[3].last_slot_mask, 7);
    for (unsigned i = 0; i < 12; i++)
        fixture_check(f, 4096 + i * 4096, 4096, 1);
    assert_int_equal(f->cluster.servers[3].reads, 0);
    fake_server_pull(&f->cluster.servers[3], &f->cluster.servers[0], volume, 0);
    volume->slots[0][3] = (struct fake_slot){0, DL__SLOT_STATE__SLOT_NONE, 0, 0};
    fixture_set_slot(f, volume, 0, 1, 4, IN_SYNC, 1);
    fixture_run(f, 10 * NS_PER_MS);
    fixture_server_down(f, 1); /* nobody needs it any more */
    assert_int_equal(fixture_write(f, 0, 4096, 3), 0);
    assert_int_equal(f->cluster.ejections, 0);
    for (unsigned i = 0; i < 12; i++)
        fixture_check(f, 4096 + i * 4096, 4096, 1);
    assert_true(f->cluster.servers[3].reads > 0);
    close_clean(f, volume);
}

/* News of another lease, and maps that can't be, change nothing. */
static void
test_news_that_does_not_concern_us(void **state)
{
    struct fixture *f = fixture_create(47, 3);
    struct fake_volume *volume = open_small(f);
    struct fake_slot kept;

    (void)state;
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    volume->lease_epoch++;
    fixture_set_slot(f, volume, 0, 1, 2, EJECTED, 1);
    volume->lease_epoch--;
    fixture_run(f, 10 * NS_PER_MS);
    assert_int_equal(fixture_write(f, 0, 4096, 2), 0);
    kept = volume->slots[0][0];
    fixture_set_slot(f, volume, 0, 0, 0, IN_SYNC, 0);
    fixture_run(f, 10 * NS_PER_MS);
    assert_true(fixture_has_event(f, "news of its map can't be used"));
    fixture_set_slot(f, volume, 0, 0, kept.server_id, IN_SYNC, 0);
    assert_int_equal(fixture_write(f, 0, 4096, 3), 0);
    close_clean(f, volume);
}

/* Without the options nobody is ejected, whatever happens. */
static void
test_never(void **state)
{
    struct fixture *f = fixture_create(48, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 4096, 1), 0);
    fixture_server_down(f, 1);
    assert_int_equal(fixture_write(f, 0, 4096, 2), -DL_E_TIMEOUT);
    assert_int_equal(f->cluster.ejects, 0);
    fixture_server_up(f, 1);
    fixture_check(f, 0, 4096, 2);
    close_clean(f, volume);
}

UNIT_MAIN(cmocka_unit_test(test_a_server_is_killed), cmocka_unit_test(test_a_short_break),
          cmocka_unit_test(test_a_server_that_refuses), cmocka_unit_test(test_a_server_that_starts),
          cmocka_unit_test(test_a_silent_server), cmocka_unit_test(test_a_slow_server),
          cmocka_unit_test(test_we_were_stopped), cmocka_unit_test(test_one_slot_is_full),
          cmocka_unit_test(test_all_slots_are_full), cmocka_unit_test(test_two_slots_are_full),
          cmocka_unit_test(test_full_and_away), cmocka_unit_test(test_full_for_a_later_write),
          cmocka_unit_test(test_blocked), cmocka_unit_test(test_waits_are_told),
          cmocka_unit_test(test_blocked_with_a_deadline), cmocka_unit_test(test_too_few_in_sync),
          cmocka_unit_test(test_meta_is_down), cmocka_unit_test(test_an_ejection_under_an_old_map),
          cmocka_unit_test(test_a_lost_answer_to_an_ejection),
          cmocka_unit_test(test_news_before_the_answer),
          cmocka_unit_test(test_acknowledgements_of_an_old_map), cmocka_unit_test(test_many_maps),
          cmocka_unit_test(test_a_recovering_slot_fails),
          cmocka_unit_test(test_a_recovering_slot_is_spared_first), cmocka_unit_test(test_not_yet),
          cmocka_unit_test(test_not_yet_for_too_long),
          cmocka_unit_test(test_a_server_is_there_again),
          cmocka_unit_test(test_reads_of_a_map_that_changed),
          cmocka_unit_test(test_an_incoming_slot),
          cmocka_unit_test(test_news_that_does_not_concern_us), cmocka_unit_test(test_never))
