/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Takeover: an owner died and left writes on some slots and not on others.  The next one makes
 *           every listed sector alike: the highest version that can be read wins; overlapping
 *           writes of several sectors by whole sectors; zeroes as zeroes.  Segments wait for the
 *           answers of all their in-sync slots, and for nothing else.  Slots that come into sync,
 *           leave, or do not answer while all this goes on: docs/recovery.md, rules 18 to 21.
 */
#include "tests/unit/client/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/lib/fake_rng.h"

#define LEASE             1ull
#define VERSION(sequence) (LEASE << 40 | (uint64_t)(sequence))

/* A volume whose first 3 segments were written by an owner that is gone; nothing pending. */
static struct fake_volume *
abandoned(struct fixture *f)
{
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 8 * MIB);

    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_write(f, 0, 3 * MIB, 1), 0);
    fixture_run(f, SIM_S);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    fixture_kill_client(f);
    assert_false(volume->clean);
    return volume;
}

/* The server that has this slot of the segment. */
static struct fake_server *
server_of(struct fixture *f, const struct fake_volume *volume, uint32_t segment, uint32_t slot)
{
    return &f->cluster.servers[fake_volume_server_id(&f->cluster, volume, segment, slot) - 1];
}

static void
put(struct fixture *f, const struct fake_volume *volume, uint32_t segment, uint32_t slot,
    uint64_t version, uint32_t first, uint32_t count, uint8_t fill)
{
    uint8_t *data = malloc((size_t)count * 4096);

    fixture_pattern(data, (uint64_t)segment * MIB + first * 4096ull, count * 4096ull, fill);
    fake_server_put(server_of(f, volume, segment, slot), volume, segment, version, first, count,
                    fill == 0 ? NULL : data);
    free(data);
}

static void
check_sectors(struct fixture *f, uint32_t segment, uint32_t first, uint32_t count, uint8_t fill)
{
    fixture_check(f, (uint64_t)segment * MIB + first * 4096ull, count * 4096ull, fill);
}

static void
close_clean(struct fixture *f, const struct fake_volume *volume)
{
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    assert_int_equal(fixture_close(f), 0);
    assert_true(volume->clean);
    fixture_check_slots_alike(f, volume);
    assert_int_equal(fixture_pending_count(f, volume), 0);
    fixture_destroy(f);
}

static uint64_t
total_resolves(const struct fixture *f)
{
    uint64_t resolves = 0;

    for (uint32_t i = 0; i < f->cluster.server_count; i++)
        resolves += f->cluster.servers[i].resolves;
    return resolves;
}

static void
test_nothing_pending(void **state)
{
    struct fixture *f = fixture_create(1, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_check(f, 0, 3 * MIB, 1);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    assert_int_equal(total_resolves(f), 0);
    close_clean(f, volume);
}

/* On one slot, on two, on all: wherever it is, it is everywhere afterwards. */
static void
test_pending_on_some_slots(void **state)
{
    struct fixture *f = fixture_create(2, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 5, 3, 2);
    put(f, volume, 0, 1, VERSION(11), 20, 1, 3);
    put(f, volume, 0, 2, VERSION(11), 20, 1, 3);
    for (unsigned slot = 0; slot < 3; slot++)
        put(f, volume, 1, slot, VERSION(4), 0, 2, 4);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 5, 3, 2);
    check_sectors(f, 0, 20, 1, 3);
    check_sectors(f, 1, 0, 2, 4);
    check_sectors(f, 0, 4, 1, 1);
    check_sectors(f, 0, 8, 1, 1);
    close_clean(f, volume);
}

/*
 *   sector     0  1  2  3  4  5
 *   slot 0     A  A  A  A            version 10
 *   slot 1           B  B  B  B      version 11
 *   slot 2        C                  version 12
 *   then       A  C  B  B  B  B
 */
static void
test_overlapping_writes(void **state)
{
    struct fixture *f = fixture_create(3, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 0, 4, 10);
    put(f, volume, 0, 1, VERSION(11), 2, 4, 11);
    put(f, volume, 0, 2, VERSION(12), 1, 1, 12);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 1, 10);
    check_sectors(f, 0, 1, 1, 12);
    check_sectors(f, 0, 2, 4, 11);
    check_sectors(f, 0, 6, 1, 1);
    close_clean(f, volume);
}

/* The lower version is on more slots: the higher one wins all the same. */
static void
test_the_highest_version_wins(void **state)
{
    (void)state;
    /* Whichever server is connected first. */
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct fixture *f = fixture_create(seed, 3);
        struct fake_volume *volume = abandoned(f);

        put(f, volume, 0, 0, VERSION(10), 7, 1, 10);
        put(f, volume, 0, 1, VERSION(11), 7, 1, 11); /* listed in any order */
        put(f, volume, 0, 1, VERSION(10), 7, 1, 10);
        put(f, volume, 0, 2, VERSION(10), 7, 1, 10);
        assert_int_equal(fixture_open(f, "v", 0), 0);
        check_sectors(f, 0, 7, 1, 11);
        close_clean(f, volume);
    }
}

static void
test_zeroes(void **state)
{
    struct fixture *f = fixture_create(5, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 1, VERSION(10), 0, 256, 0);  /* the whole segment */
    put(f, volume, 0, 2, VERSION(11), 100, 2, 11); /* and a write in it */
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 100, 0);
    check_sectors(f, 0, 100, 2, 11);
    check_sectors(f, 0, 102, 154, 0);
    check_sectors(f, 1, 0, 256, 1);
    close_clean(f, volume); /* compares kinds as well */
}

/*
 * The slot with the highest version can't deliver it, and another one lacks it: it was never
 * acknowledged, and what the others have is rewritten.
 */
static void
test_an_unreadable_highest_version(void **state)
{
    struct fixture *f = fixture_create(6, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 3, 1, 10);
    put(f, volume, 0, 1, VERSION(11), 3, 1, 11);
    server_of(f, volume, 0, 1)->faults.read_err = -DL_E_MEDIA_READ;
    server_of(f, volume, 0, 1)->faults.read_err_count = 1;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 3, 1, 10);
    close_clean(f, volume);
}

/* As before, by a checksum error; and nobody else has anything pending. */
static void
test_a_damaged_highest_version(void **state)
{
    struct fixture *f = fixture_create(7, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 1, VERSION(11), 3, 1, 11);
    server_of(f, volume, 0, 1)->faults.read_flip_count = 1;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 3, 1, 1);
    close_clean(f, volume);
}

/* Each slot has other bad sectors: the range goes sector by sector. */
static void
test_bad_sectors_in_different_places(void **state)
{
    struct fixture *f = fixture_create(31, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    for (unsigned slot = 0; slot < 3; slot++) {
        put(f, volume, 0, slot, VERSION(11), 3, 4, 11);
        fake_server_chunk(server_of(f, volume, 0, slot), volume->id, 0)
            ->sectors[3 + slot]
            .data[9] ^= 1;
    }
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 3, 1);
    check_sectors(f, 0, 3, 4, 11);
    close_clean(f, volume);
}

/* All have it and none can deliver it: they are alike, and the volume can be used. */
static void
test_unreadable_everywhere(void **state)
{
    struct fixture *f = fixture_create(8, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    for (unsigned slot = 0; slot < 3; slot++) {
        put(f, volume, 0, slot, VERSION(11), 3, 1, 11);
        server_of(f, volume, 0, slot)->faults.read_err = -DL_E_MEDIA_READ;
        server_of(f, volume, 0, slot)->faults.read_err_count = 1;
    }
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 3, 1);
    check_sectors(f, 0, 3, 1, 11);
    assert_int_equal(total_resolves(f), 0);
    fixture_destroy(f);
}

/*
 * One lists it, the others don't, and none can deliver what it has there: nobody can say what is to
 * be kept.  The segment waits, and says why, also to the metadata service, until some copy is good.
 */
static void
test_unreadable_everywhere_and_not_alike(void **state)
{
    struct fixture *f = fixture_create(33, 3);
    struct fake_volume *volume = abandoned(f);
    struct fixture_request *write;

    (void)state;
    put(f, volume, 0, 1, VERSION(11), 3, 1, 11);
    for (unsigned slot = 0; slot < 3; slot++)
        fake_server_chunk(server_of(f, volume, 0, slot), volume->id, 0)->sectors[3].data[9] ^= 1;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, 5 * SIM_S);
    assert_true(fixture_has_event(f, "segment 0, from sector 3: what the last owner left"));
    assert_non_null(strstr(f->cluster.waits, "segment 0, from sector 3: what the last owner left"));
    assert_non_null(strstr(f->cluster.waits, "from every copy"));
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 7);
    fixture_run(f, 6 * SIM_S);
    assert_false(write->done);
    assert_non_null(strstr(fixture_stats(f).blocked, "from every copy"));
    assert_in_range(f->cluster.waited_ms, 2000, 7000);
    fake_server_chunk(server_of(f, volume, 0, 0), volume->id, 0)->sectors[3].data[9] ^= 1;
    fixture_run(f, 3 * SIM_S);
    assert_int_equal(fixture_wait(f, write), 0);
    assert_string_equal(f->cluster.waits, "");
    check_sectors(f, 0, 3, 1, 1);
    close_clean(f, volume);
}

/*
 * Two slots have pulled the write from one that has it and one that lacks it: they list the range
 * that holds its parts, and have a hole in it.  Where nobody else can deliver they are not alike:
 * the write was never acknowledged, and the hole is written to all.
 */
static void
test_a_hole_in_what_was_pulled(void **state)
{
    struct fixture *f = fixture_create(32, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    for (unsigned slot = 0; slot < 3; slot++) {
        struct fake_sector *sectors;

        put(f, volume, 0, slot, VERSION(11), 3, 4, 11);
        sectors = fake_server_chunk(server_of(f, volume, 0, slot), volume->id, 0)->sectors;
        if (slot == 0) {
            sectors[4].data[9] ^= 1;
            continue;
        }
        for (uint32_t i = 4; i < 6; i++)
            sectors[i] = (struct fake_sector){.kind = WIRE_SECTOR_HOLE, .data = sectors[i].data};
    }
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 3, 1);
    check_sectors(f, 0, 3, 1, 11);
    check_sectors(f, 0, 4, 1, 0);
    check_sectors(f, 0, 5, 2, 11);
    close_clean(f, volume);
}

/* How long the first read waits for a segment with so many pending writes, in virtual time. */
static uint64_t
takeover_ns(uint64_t seed, uint32_t count)
{
    struct fixture *f = fixture_create(seed, 3);
    struct fake_volume *volume = abandoned(f);
    uint64_t begin_ns, end_ns;

    for (uint32_t i = 0; i < count; i++)
        put(f, volume, 0, i % 3, VERSION(10 + i), 2 * i, 1, (uint8_t)(10 + i));
    assert_int_equal(fixture_open(f, "v", 0), 0);
    begin_ns = f->world.now_ns;
    check_sectors(f, 0, 1, 1, 1);
    end_ns = f->world.now_ns;
    for (uint32_t i = 0; i < count; i++)
        check_sectors(f, 0, 2 * i, 1, (uint8_t)(10 + i));
    assert_true(total_resolves(f) >= count);
    close_clean(f, volume);
    return end_ns - begin_ns;
}

/* Whoever uses the segment waits for all that is pending in it: it is not settled one by one. */
static void
test_many_at_a_time(void **state)
{
    (void)state;
    for (uint64_t seed = 40; seed < 44; seed++) {
        uint64_t one_ns = takeover_ns(seed, 1);
        uint64_t many_ns = takeover_ns(seed, 96);

        print_message("# 1: %lu us, 96: %lu us\n", (unsigned long)(one_ns / 1000),
                      (unsigned long)(many_ns / 1000));
        assert_true(many_ns < 24 * one_ns);
    }
}

/* A segment waits for its own servers only; and says for whom. */
static void
test_waits_for_answers(void **state)
{
    struct fixture *f = fixture_create(9, 4);
    struct fake_volume *volume = abandoned(f);
    struct fixture_request *read, *write;

    (void)state;
    put(f, volume, 1, 2, VERSION(10), 3, 1, 10);
    /* Of the segments that exist, 0 to 5, all but 0 and 4 have a slot on server 4. */
    f->cluster.unanswered = 1u << 3;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 0, 4, 1);
    assert_int_equal(fixture_write(f, 4096, 4096, 5), 0);
    assert_int_equal(fixture_write(f, 7 * MIB, 4096, 5), 0); /* allocated by this owner */
    read = fixture_submit(f, DLBLK_READ, MIB + 3 * 4096, 4096, 0);
    write = fixture_submit(f, DLBLK_WRITE, 2 * MIB, 4096, 6);
    fixture_run(f, 3 * SIM_S);
    assert_false(read->done || write->done);
    assert_int_equal(client_volume_unresolved_count(f->volume), 4);
    assert_non_null(strstr(fixture_stats(f).blocked, "server 4 (server-4:"));
    f->cluster.unanswered = 0;
    fixture_meta_release(f);
    assert_int_equal(fixture_wait(f, read), 0);
    assert_int_equal(fixture_wait(f, write), 0);
    check_sectors(f, 1, 3, 1, 10);
    fixture_check(f, 2 * MIB, 4096, 6);
    close_clean(f, volume);
}

/* A close that can't wait for the answers leaves the rest to the next owner. */
static void
test_a_close_before_the_end(void **state)
{
    struct fixture *f = fixture_create(10, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 1, 2, VERSION(10), 3, 1, 10);
    f->cluster.unanswered = 1u << 3;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    assert_int_equal(fixture_close(f), -DL_E_TIMEOUT);
    assert_false(volume->clean);
    f->cluster.unanswered = 0;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 1, 3, 1, 10);
    close_clean(f, volume);
}

/*
 * An attach that fails before the takeover could begin gives the lease back, but not as if there
 * were nothing left to settle.
 */
static void
test_an_attach_that_fails(void **state)
{
    struct fixture *f = fixture_create(14, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 1, 2, VERSION(10), 3, 1, 10);
    f->cluster.map_err = -DL_E_INTERNAL;
    f->cluster.map_err_count = 1;
    assert_int_equal(fixture_open(f, "v", 0), -DL_E_INTERNAL);
    assert_false(volume->owned);
    assert_false(volume->clean);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 1, 3, 1, 10);
    close_clean(f, volume);
}

/*
 * The stable version goes nowhere before a segment is resolved: it would take from the slots what
 * is not settled yet.
 */
static void
test_no_stable_version_before_the_end(void **state)
{
    struct fixture *f = fixture_create(11, 3);
    struct fake_volume *volume = abandoned(f);
    struct fake_chunk *chunk;

    (void)state;
    /* The last run's source does not answer: the segment stays half way. */
    for (unsigned i = 0; i < 20; i++)
        put(f, volume, 0, i == 19 ? 1 : i % 2 * 2, VERSION(10 + i), i * 10, 1, (uint8_t)(10 + i));
    server_of(f, volume, 0, 1)->faults.hold_reads = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, 2 * SIM_S);
    assert_int_equal(total_resolves(f), 19 * 3);
    assert_true(client_volume_unresolved_count(f->volume) > 0);
    fixture_kill_client(f);
    for (unsigned slot = 0; slot < 3; slot++) {
        chunk = fake_server_chunk(server_of(f, volume, 0, slot), volume->id, 0);
        assert_true(chunk->stable < VERSION(10));
    }
    fixture_server_release(f, 0);
    fixture_server_release(f, 1);
    fixture_server_release(f, 2);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 20; i++)
        check_sectors(f, 0, i * 10, 1, (uint8_t)(10 + i));
    close_clean(f, volume);
}

/* Taken over itself in the middle of it. */
static void
test_fenced_during_the_takeover(void **state)
{
    struct fixture *f = fixture_create(12, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 3, 1, 10);
    server_of(f, volume, 0, 0)->faults.hold_reads = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, SIM_S);
    fake_meta_take_over(&f->cluster, volume, true);
    fixture_push_changed(f, volume, false);
    fixture_run(f, SIM_S);
    assert_true(client_volume_is_fenced(f->volume));
    assert_int_equal(fixture_close(f), -DL_E_LEASE_OLD);
    fixture_destroy(f);
}

/* --- slots that come and go meanwhile --- */

#define IN_SYNC    DL__SLOT_STATE__SLOT_IN_SYNC
#define RECOVERING DL__SLOT_STATE__SLOT_RECOVERING
#define EJECTED    DL__SLOT_STATE__SLOT_EJECTED

static struct fake_slot
slot_of(uint32_t server_id, uint32_t state, uint32_t number)
{
    return (struct fake_slot){.server_id = server_id, .state = state, .number = number};
}

static uint64_t
total_pendings(const struct fixture *f)
{
    uint64_t pendings = 0;

    for (uint32_t i = 0; i < f->cluster.server_count; i++)
        pendings += f->cluster.servers[i].pendings;
    return pendings;
}

/* Segment 0 is on servers 1, 2, 3 and segment 1 on 2, 3, 1; server 3 does not answer the fence. */
static struct fake_volume *
abandoned_unanswered(struct fixture *f)
{
    struct fake_volume *volume = abandoned(f);

    f->cluster.unanswered = 1u << 2;
    return volume;
}

static void
answer(struct fixture *f)
{
    f->cluster.unanswered = 0;
    fixture_meta_release(f);
}

/*
 * Server 2 is recovering when it answers the fence, pulls a pending write from server 1, and is
 * promoted; server 1 goes.  Nobody who is left has listed that write.
 */
static void
promoted_slot(bool early, bool told)
{
    struct fixture *f = fixture_create(20, 3);
    struct fake_volume *volume = abandoned_unanswered(f);
    struct fixture_request *read;

    put(f, volume, 0, 0, VERSION(10), 7, 2, 10);
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, RECOVERING, 1));
    if (!early)
        assert_int_equal(fixture_open(f, "v", 0), 0);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    /*
     * Before the attach: its server does not know yet, and its answer says that it is recovering.
     */
    f->cluster.untold = early || !told;
    if (early) {
        fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, IN_SYNC, 1));
        assert_int_equal(fixture_open(f, "v", 0), 0);
    } else {
        fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    }
    fixture_run(f, 200 * NS_PER_MS);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    fixture_run(f, 200 * NS_PER_MS);
    answer(f);
    read = fixture_submit(f, DLBLK_READ, 7 * 4096, 8192, 0);
    fixture_run(f, SIM_S);
    if (f->cluster.untold) {
        assert_false(read->done);
        f->cluster.untold = false;
        fake_server_tell(&f->cluster.servers[1], volume, 0);
        fixture_run(f, SIM_S);
    }
    assert_true(read->done);
    assert_int_equal(fixture_wait(f, read), 0);
    assert_true(f->cluster.servers[1].pendings > 0);
    assert_int_equal(f->cluster.servers[0].pendings, 0);
    check_sectors(f, 0, 7, 2, 10);
    fixture_check_slots_alike(f, volume);
    close_clean(f, volume);
}

static void
test_a_promoted_slot_is_asked(void **state)
{
    (void)state;
    promoted_slot(false, true);
}

static void
test_a_promoted_slot_that_does_not_know(void **state)
{
    (void)state;
    promoted_slot(false, false);
}

static void
test_a_slot_promoted_after_its_answer(void **state)
{
    (void)state;
    promoted_slot(true, false);
}

/* While a slot has to say something, the metadata service is not asked again and again. */
static void
test_nothing_more_to_ask(void **state)
{
    struct fixture *f = fixture_create(31, 3);
    struct fake_volume *volume = abandoned_unanswered(f);

    (void)state;
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, RECOVERING, 1));
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    f->cluster.untold = true;
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    answer(f);
    fixture_run(f, 2500 * NS_PER_MS);
    assert_int_equal(client_volume_unresolved_count(f->volume), 1);
    assert_in_range(f->cluster.fence_statuses, 2, 8);
    f->cluster.untold = false;
    fake_server_tell(&f->cluster.servers[1], volume, 0);
    fixture_run(f, SIM_S);
    close_clean(f, volume);
}

/* Lists that come in parts, also in the middle of a chunk, are taken whole. */
static void
test_lists_in_parts(void **state)
{
    struct fixture *f = fixture_create(32, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    f->cluster.part_writes = 3;
    for (uint32_t i = 0; i < 10; i++) {
        put(f, volume, 0, i % 3, VERSION(40 - i), 20 * i, 2, (uint8_t)(10 + i));
        put(f, volume, 1, 1, VERSION(10 + i), 3 * i, 1, (uint8_t)(30 + i));
    }
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, SIM_S);
    assert_in_range(f->cluster.fence_statuses, 5, 20);
    assert_int_equal(total_resolves(f), 3 * 20);
    for (uint32_t i = 0; i < 10; i++) {
        check_sectors(f, 0, 20 * i, 2, (uint8_t)(10 + i));
        check_sectors(f, 1, 3 * i, 1, (uint8_t)(30 + i));
    }
    close_clean(f, volume);
}

/*
 * A server goes for good when it has told a part of its list: it is given up, and those that it
 * kept from telling theirs have their turn.
 */
static void
test_a_server_goes_in_the_middle_of_its_list(void **state)
{
    struct fixture *f = fixture_create(60, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    f->options.eject_silent_ms = 3000;
    f->cluster.part_writes = 3;
    f->cluster.gone_after_part = 1;
    for (uint32_t i = 0; i < 10; i++) {
        put(f, volume, 0, 0, VERSION(40 - i), 20 * i, 2, (uint8_t)(10 + i));
        put(f, volume, 0, 1, VERSION(40 - i), 20 * i, 2, (uint8_t)(10 + i));
    }
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (unsigned i = 0; i < 10; i++) {
        f->cluster.waited_for = 0;
        fixture_meta_release(f); /* it waits no longer with its answer */
        fixture_run(f, SIM_S);
    }
    assert_int_equal(f->cluster.last_ejected_server, 1);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    for (uint32_t i = 0; i < 10; i++)
        check_sectors(f, 0, 20 * i, 2, (uint8_t)(10 + i));
    close_clean(f, volume);
}

/* Likewise of a slot that was promoted: here only it has them. */
static void
test_a_promoted_slot_with_a_long_list(void **state)
{
    struct fixture *f = fixture_create(33, 3);
    struct fake_volume *volume = abandoned_unanswered(f);

    (void)state;
    f->cluster.part_writes = 3;
    for (uint32_t i = 0; i < 10; i++)
        put(f, volume, 0, 0, VERSION(40 - i), 20 * i, 1, (uint8_t)(10 + i));
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, RECOVERING, 1));
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    fixture_run(f, 200 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[1].pendings, 4);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    answer(f);
    fixture_run(f, SIM_S);
    assert_int_equal(f->cluster.servers[1].pendings, 4);
    for (uint32_t i = 0; i < 10; i++)
        check_sectors(f, 0, 20 * i, 1, (uint8_t)(10 + i));
    fixture_check_slots_alike(f, volume);
    close_clean(f, volume);
}

/* Who was in sync all the time is not asked twice. */
static void
test_slots_that_stay_are_not_asked(void **state)
{
    struct fixture *f = fixture_create(21, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    f->cluster.unanswered = 1u << 2;
    put(f, volume, 0, 1, VERSION(10), 7, 2, 10);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    fixture_run(f, 10 * NS_PER_MS);
    fixture_set_slot(f, volume, 0, 0, 4, RECOVERING, 0);
    fixture_run(f, 10 * NS_PER_MS);
    answer(f);
    check_sectors(f, 0, 7, 2, 10);
    assert_int_equal(total_pendings(f), 0);
    close_clean(f, volume);
}

/* Out and in again, and we have not seen the step between: what it listed is asked for again. */
static void
test_out_and_in_again(void **state)
{
    struct fixture *f = fixture_create(22, 3);
    struct fake_volume *volume = abandoned_unanswered(f);

    (void)state;
    put(f, volume, 0, 1, VERSION(10), 7, 2, 10);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, EJECTED, 1));
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, RECOVERING, 1)); /* voids it */
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    fixture_run(f, 200 * NS_PER_MS);
    assert_true(f->cluster.servers[1].pendings > 0);
    answer(f);
    check_sectors(f, 0, 7, 2, 1);
    assert_int_equal(total_resolves(f), 0);
    close_clean(f, volume);
}

/* What a slot listed goes with it. */
static void
test_lists_of_slots_that_left(void **state)
{
    struct fixture *f = fixture_create(23, 3);
    struct fake_volume *volume = abandoned_unanswered(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 7, 2, 10);
    put(f, volume, 0, 0, VERSION(11), 9, 2, 11);
    put(f, volume, 0, 1, VERSION(11), 9, 2, 11);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, 10 * NS_PER_MS);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    fixture_run(f, 10 * NS_PER_MS);
    answer(f);
    check_sectors(f, 0, 7, 2, 1);
    check_sectors(f, 0, 9, 2, 11);
    assert_int_equal(total_resolves(f), 2);
    close_clean(f, volume);
}

/* While it is being read: the source is no slot any more, and so begins again with who is left. */
static void
test_the_source_leaves(void **state)
{
    struct fixture *f = fixture_create(24, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(11), 7, 1, 11);
    put(f, volume, 0, 1, VERSION(10), 7, 1, 10);
    f->cluster.servers[0].faults.hold_reads = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, SIM_S);
    assert_true(client_volume_unresolved_count(f->volume) > 0);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    fixture_run(f, 100 * NS_PER_MS);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    fixture_server_release(f, 0);
    check_sectors(f, 0, 7, 1, 10);
    close_clean(f, volume);
}

/*
 * Rule 20.  A rewrite is on one slot and not on another when the slot that listed it leaves: it is
 * finished all the same, with the same version and bytes, before anybody uses the segment.
 */
static void
test_a_rewrite_is_finished(void **state)
{
    struct fixture *f = fixture_create(25, 3);
    struct fake_volume *volume = abandoned(f);
    struct fixture_request *read;
    uint64_t version;
    uint32_t crc;

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 7, 1, 10);
    f->cluster.servers[1].faults.lost_writes = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, SIM_S);
    version = f->cluster.servers[2].last_version;
    crc = f->cluster.servers[2].last_crc;
    assert_int_equal(version >> 40, volume->lease_epoch);
    fixture_set_slot(f, volume, 0, 0, 1, EJECTED, 0);
    read = fixture_submit(f, DLBLK_READ, 7 * 4096, 4096, 0);
    fixture_run(f, SIM_S);
    assert_false(read->done);
    f->cluster.servers[1].faults.lost_writes = false;
    fixture_server_drop_links(f, 1);
    assert_int_equal(fixture_wait(f, read), 0);
    assert_int_equal(f->cluster.servers[1].last_version, version);
    assert_int_equal(f->cluster.servers[1].last_crc, crc);
    check_sectors(f, 0, 7, 1, 10);
    close_clean(f, volume);
}

/* ... and on a new slot as well: also a recovering one gets it. */
static void
test_a_rewrite_goes_to_new_slots(void **state)
{
    struct fixture *f = fixture_create(26, 4);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 7, 1, 10);
    f->cluster.servers[1].faults.hold_writes = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, SIM_S);
    fixture_set_slot(f, volume, 0, 0, 4, RECOVERING, 0);
    fixture_run(f, 100 * NS_PER_MS);
    assert_int_equal(f->cluster.servers[3].resolves, 1);
    assert_int_equal(f->cluster.servers[3].last_version, f->cluster.servers[2].last_version);
    assert_true(client_volume_unresolved_count(f->volume) > 0);
    fixture_server_release(f, 1);
    check_sectors(f, 0, 7, 1, 10);
    close_clean(f, volume);
}

/* Rule 19: a slot that does not answer the fence is ejected; recovering slots begin anew. */
static void
test_a_slot_that_does_not_answer(void **state)
{
    struct fixture *f = fixture_create(27, 3);
    struct fake_volume *volume = abandoned_unanswered(f);
    struct fixture_request *read;

    (void)state;
    f->options.eject_silent_ms = 3000;
    put(f, volume, 0, 0, VERSION(10), 7, 1, 10);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    read = fixture_submit(f, DLBLK_READ, 7 * 4096, 4096, 0);
    fixture_run(f, 2800 * NS_PER_MS);
    assert_int_equal(f->cluster.ejections, 0);
    assert_false(read->done);
    fixture_run(f, 1200 * NS_PER_MS);
    assert_true(read->done);
    assert_int_equal(fixture_wait(f, read), 0);
    assert_int_equal(f->cluster.last_ejected_server, 3);
    assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_SILENT);
    assert_false(f->cluster.last_eject_resolved);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    check_sectors(f, 0, 7, 1, 10);
    assert_int_equal(fixture_write(f, 0, 4096, 5), 0);
    close_clean(f, volume);
}

/* One that has to be asked for more later has its time from then on. */
static void
test_a_slot_that_stops_answering(void **state)
{
    struct fixture *f = fixture_create(34, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    f->options.eject_silent_ms = 3000;
    f->cluster.unnamed = 1u << 2;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, 10 * SIM_S);
    assert_true(client_volume_unresolved_count(f->volume) > 0);
    f->cluster.unnamed = 0;
    f->cluster.unanswered = 1u << 2;
    fixture_run(f, 2800 * NS_PER_MS);
    assert_int_equal(f->cluster.ejections, 0);
    fixture_run(f, 2200 * NS_PER_MS);
    assert_int_equal(f->cluster.last_ejected_server, 3);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    close_clean(f, volume);
}

/*
 * One that has answered is gone before what it alone has is read: it is ejected as if it had to be
 * written, and what the others have is kept.  Segments that don't need it wait for nothing.
 */
static void
test_a_source_that_is_gone(void **state)
{
    struct fixture *f = fixture_create(35, 3);
    struct fake_volume *volume = abandoned(f);

    (void)state;
    f->options.eject_lost_ms = 200;
    f->options.eject_silent_ms = 3000;
    put(f, volume, 0, 0, VERSION(11), 7, 1, 11);
    put(f, volume, 0, 1, VERSION(10), 7, 1, 10);
    server_of(f, volume, 0, 0)->faults.lost_reads = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fixture_run(f, 100 * NS_PER_MS);
    assert_int_equal(client_volume_unresolved_count(f->volume), 1);
    assert_int_equal(f->cluster.ejections, 0);
    fixture_server_down(f, fake_volume_server_id(&f->cluster, volume, 0, 0) - 1);
    fixture_run(f, 2 * SIM_S);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    assert_int_equal(f->cluster.ejections, 1);
    assert_int_equal(f->cluster.last_ejected_server,
                     fake_volume_server_id(&f->cluster, volume, 0, 0));
    assert_int_equal(f->cluster.last_eject_reason, DL__EJECT_REASON__EJECT_CONNECTION);
    assert_false(f->cluster.last_eject_resolved);
    check_sectors(f, 0, 7, 1, 10);
    close_clean(f, volume);
}

/* Not below min_write: then it is waited for. */
static void
test_a_slot_that_can_not_be_spared(void **state)
{
    struct fixture *f = fixture_create(28, 3);
    struct fake_volume *volume = abandoned_unanswered(f);
    struct fixture_request *read;

    (void)state;
    f->options.eject_silent_ms = 3000;
    f->options.request_timeout_ms = 60000;
    for (unsigned i = 0; i < 8; i++)
        if (volume->allocated[i])
            fake_meta_set_slot(&f->cluster, volume, i, 0,
                               slot_of(volume->slots[i][0].server_id, EJECTED, 0));
    put(f, volume, 0, 1, VERSION(10), 7, 1, 10);
    assert_int_equal(fixture_open(f, "v", 0), 0);
    read = fixture_submit(f, DLBLK_READ, 7 * 4096, 4096, 0);
    fixture_run(f, 10 * SIM_S);
    assert_false(read->done);
    assert_true(f->cluster.ejections_refused > 0);
    assert_non_null(strstr(fixture_stats(f).blocked, "server 3 (server-3:"));
    answer(f);
    assert_int_equal(fixture_wait(f, read), 0);
    check_sectors(f, 0, 7, 1, 10);
    close_clean(f, volume);
}

/* A promoted slot that does not answer PENDING can be ejected likewise. */
static void
test_a_promoted_slot_that_does_not_answer(void **state)
{
    struct fixture *f = fixture_create(29, 3);
    struct fake_volume *volume = abandoned_unanswered(f);

    (void)state;
    f->options.eject_silent_ms = 3000;
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, RECOVERING, 1));
    assert_int_equal(fixture_open(f, "v", 0), 0);
    fake_server_pull(&f->cluster.servers[1], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 1, 2, IN_SYNC, 1);
    f->cluster.servers[1].faults.lost_pendings = true;
    fixture_run(f, 100 * NS_PER_MS);
    answer(f);
    fixture_run(f, 2 * SIM_S);
    assert_int_equal(client_volume_unresolved_count(f->volume), 1);
    fixture_run(f, 2500 * NS_PER_MS);
    assert_int_equal(client_volume_unresolved_count(f->volume), 0);
    assert_int_equal(volume->slots[0][1].state, EJECTED);
    close_clean(f, volume);
}

/* Nor does a server that answers no PENDING keep others from being asked, though it has many. */
static void
test_promoted_slots_that_do_not_answer(void **state)
{
    struct fixture *f = fixture_create(39, 3);
    struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 40 * MIB);

    (void)state;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(fixture_write(f, i * MIB, 4096, 1), 0);
    fixture_run(f, SIM_S);
    fixture_kill_client(f);
    f->cluster.unanswered = 1u << 2;
    f->cluster.servers[0].faults.lost_pendings = true;
    f->cluster.servers[1].faults.lost_pendings = true;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    for (uint32_t segment = 0; segment < 40; segment++) {
        for (uint32_t slot = 0; slot < 3; slot++) {
            uint32_t server_id = volume->slots[segment][slot].server_id;

            if ((server_id == 3) != (segment == 39))
                continue;
            fixture_set_slot(f, volume, segment, slot, server_id, RECOVERING, slot);
            fixture_set_slot(f, volume, segment, slot, server_id, IN_SYNC, slot);
        }
    }
    fixture_run(f, SIM_S);
    assert_true(f->cluster.servers[0].pendings < 39);
    assert_true(f->cluster.servers[1].pendings < 39);
    assert_true(f->cluster.servers[2].pendings > 0);
    fixture_kill_client(f);
    fixture_destroy(f);
}

/* Rule 21: one in-sync slot is enough to resolve; not to acknowledge what users write. */
static void
test_rewrites_with_too_few_slots(void **state)
{
    struct fixture *f = fixture_create(30, 3);
    struct fake_volume *volume = abandoned(f);
    struct fixture_request *write;

    (void)state;
    put(f, volume, 0, 0, VERSION(10), 7, 1, 10);
    fake_meta_set_slot(&f->cluster, volume, 0, 1, slot_of(2, EJECTED, 1));
    fake_meta_set_slot(&f->cluster, volume, 0, 2, slot_of(3, RECOVERING, 2));
    f->options.request_timeout_ms = 60000;
    assert_int_equal(fixture_open(f, "v", 0), 0);
    check_sectors(f, 0, 7, 1, 10);
    assert_int_equal(total_resolves(f), 2);
    write = fixture_submit(f, DLBLK_WRITE, 0, 4096, 5);
    fixture_run(f, 5 * SIM_S);
    assert_false(write->done);
    assert_true(fixture_stats(f).is_blocked);
    fake_server_pull(&f->cluster.servers[2], &f->cluster.servers[0], volume, 0);
    fixture_set_slot(f, volume, 0, 2, 3, IN_SYNC, 2);
    assert_int_equal(fixture_wait(f, write), 0);
    close_clean(f, volume);
}

/*
 * Random: owners write, and die at any moment; the next one takes over.  What was acknowledged is
 *         there, what was not is there or not, and both on all slots alike.
 */
static void
test_owners_that_die(void **state)
{
    uint64_t resolves = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct fixture *f = fixture_create(seed, 4);
        struct fake_volume *volume = fake_cluster_add_volume(&f->cluster, "v", 4 * MIB);
        uint8_t acknowledged[1024] = {0};
        struct fake_rng rng;

        fake_rng_init(&rng, seed);
        for (unsigned life = 0; life < 6; life++) {
            struct fixture_request *writes[60];
            uint8_t possible[1024][2];
            unsigned count = 0;

            for (unsigned i = 0; i < 1024; i++)
                possible[i][0] = possible[i][1] = acknowledged[i];
            assert_int_equal(fixture_open(f, "v", 0), 0);
            /* One write per place, so that one life has two possible contents at most. */
            for (unsigned i = 0; i < 60; i++) {
                uint32_t first = i * 17 % 1024;
                uint32_t length = (uint32_t)fake_rng_range(&rng, 1, 16);
                uint8_t fill = (uint8_t)fake_rng_range(&rng, 1, 200);

                if (first + length > 1024)
                    continue;
                writes[count] = fixture_submit(f, DLBLK_WRITE, first * 4096ull, length * 4096ull,
                                               fill);
                for (uint32_t k = first; k < first + length; k++)
                    possible[k][1] = fill;
                count++;
            }
            fixture_run(f, fake_rng_below(&rng, 3000) * SIM_US);
            fixture_kill_client(f);
            for (unsigned i = 0; i < count; i++) {
                uint64_t first = writes[i]->request.offset_bytes / 4096;
                uint64_t length = writes[i]->request.length_bytes / 4096;

                for (uint64_t k = first; k < first + length && writes[i]->done; k++)
                    possible[k][0] = possible[k][1];
                fixture_free(writes[i]);
            }
            assert_int_equal(fixture_open(f, "v", 0), 0);
            for (uint32_t i = 0; i < 1024; i++) {
                uint8_t found[4096], expected[2][4096];

                assert_int_equal(fixture_read(f, i * 4096ull, 4096, found), 0);
                fixture_pattern(expected[0], i * 4096ull, 4096, possible[i][0]);
                fixture_pattern(expected[1], i * 4096ull, 4096, possible[i][1]);
                acknowledged[i] = memcmp(found, expected[0], 4096) == 0 ? possible[i][0]
                                                                        : possible[i][1];
                if (acknowledged[i] != possible[i][0])
                    assert_memory_equal(found, expected[1], 4096);
            }
            assert_int_equal(fixture_close(f), 0);
            fixture_check_slots_alike(f, volume);
            assert_int_equal(fixture_pending_count(f, volume), 0);
        }
        resolves += total_resolves(f);
        fixture_destroy(f);
    }
    printf("%lu writes to resolve\n", resolves);
    assert_true(resolves > 5000);
}

UNIT_MAIN(cmocka_unit_test(test_nothing_pending), cmocka_unit_test(test_pending_on_some_slots),
          cmocka_unit_test(test_overlapping_writes),
          cmocka_unit_test(test_the_highest_version_wins), cmocka_unit_test(test_zeroes),
          cmocka_unit_test(test_an_unreadable_highest_version),
          cmocka_unit_test(test_a_damaged_highest_version),
          cmocka_unit_test(test_unreadable_everywhere),
          cmocka_unit_test(test_unreadable_everywhere_and_not_alike),
          cmocka_unit_test(test_a_hole_in_what_was_pulled), cmocka_unit_test(test_many_at_a_time),
          cmocka_unit_test(test_bad_sectors_in_different_places),
          cmocka_unit_test(test_waits_for_answers), cmocka_unit_test(test_a_close_before_the_end),
          cmocka_unit_test(test_an_attach_that_fails),
          cmocka_unit_test(test_no_stable_version_before_the_end),
          cmocka_unit_test(test_fenced_during_the_takeover),
          cmocka_unit_test(test_a_promoted_slot_is_asked),
          cmocka_unit_test(test_a_promoted_slot_that_does_not_know),
          cmocka_unit_test(test_a_slot_promoted_after_its_answer),
          cmocka_unit_test(test_nothing_more_to_ask), cmocka_unit_test(test_lists_in_parts),
          cmocka_unit_test(test_a_server_goes_in_the_middle_of_its_list),
          cmocka_unit_test(test_a_promoted_slot_with_a_long_list),
          cmocka_unit_test(test_slots_that_stay_are_not_asked),
          cmocka_unit_test(test_out_and_in_again), cmocka_unit_test(test_lists_of_slots_that_left),
          cmocka_unit_test(test_the_source_leaves), cmocka_unit_test(test_a_rewrite_is_finished),
          cmocka_unit_test(test_a_rewrite_goes_to_new_slots),
          cmocka_unit_test(test_a_slot_that_does_not_answer),
          cmocka_unit_test(test_a_slot_that_stops_answering),
          cmocka_unit_test(test_a_source_that_is_gone),
          cmocka_unit_test(test_a_slot_that_can_not_be_spared),
          cmocka_unit_test(test_a_promoted_slot_that_does_not_answer),
          cmocka_unit_test(test_promoted_slots_that_do_not_answer),
          cmocka_unit_test(test_rewrites_with_too_few_slots),
          cmocka_unit_test(test_owners_that_die))
