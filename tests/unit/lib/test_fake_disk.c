/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake disk loses on a crash what a disk may lose and nothing else: what a flush covered stays,
 * of the rest every subset comes up over many seeds, in whole writes, blocks and 512-byte pieces.
 * It completes I/Os in many orders, fails the ones it is told to, and sees a user who breaks the
 * rules.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/lib/fake_disk.h"

#define BLOCK FAKE_DISK_BLOCK

struct rig {
    struct fake_env env;
    struct fake_disk disk;
    uint8_t *buffer; /* 16 blocks */
};

struct request {
    struct disk_io io;
    int result;
    uint32_t order; /* 0: not done */
};

static uint32_t done_count;

static void
request_on_done(struct disk_io *io, int result)
{
    struct request *request = (struct request *)io;

    request->result = result;
    request->order = ++done_count;
}

static void
rig_init(struct rig *rig, uint64_t seed)
{
    fake_env_init(&rig->env, seed);
    fake_disk_init(&rig->disk, &rig->env, 64 * BLOCK, false);
    rig->buffer = aligned_alloc(BLOCK, 16 * BLOCK);
    assert_non_null(rig->buffer);
    done_count = 0;
}

static void
rig_fini(struct rig *rig)
{
    fake_disk_fini(&rig->disk);
    fake_env_fini(&rig->env);
    free(rig->buffer);
}

static void
submit(struct rig *rig, struct request *request, enum disk_io_kind kind, uint64_t block,
       uint32_t blocks, uint8_t *memory)
{
    memset(request, 0, sizeof(*request));
    request->io.kind = kind;
    request->io.offset_bytes = block * BLOCK;
    request->io.iov_one = (struct iovec){.iov_base = memory, .iov_len = (size_t)blocks * BLOCK};
    request->io.iov = &request->io.iov_one;
    request->io.iov_count = 1;
    request->io.on_done = request_on_done;
    disk_submit(&rig->disk.disk, &request->io);
}

static void
drain(struct rig *rig)
{
    while (fake_env_turn(&rig->env))
        ;
}

/* 1: every 512 bytes of the range have the byte; 0: none has; -1: some. */
static int
content_is(struct rig *rig, uint64_t block, uint32_t blocks, uint8_t byte)
{
    uint32_t same = 0;
    uint8_t found[FAKE_DISK_PIECE];
    uint32_t pieces = blocks * (BLOCK / FAKE_DISK_PIECE);

    for (uint32_t i = 0; i < pieces; i++) {
        fake_disk_peek(&rig->disk, found, sizeof(found), block * BLOCK + i * FAKE_DISK_PIECE);
        for (uint32_t at = 1; at < sizeof(found); at++)
            assert_int_equal(found[at], found[0]);
        same += found[0] == byte;
    }
    return same == pieces ? 1 : same == 0 ? 0 : -1;
}

static void
test_crash_keeps_what_a_flush_covered(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct rig rig;
        struct request write, flush;

        rig_init(&rig, seed);
        memset(rig.buffer, 0x11, 4 * BLOCK);
        submit(&rig, &write, DISK_WRITE, 8, 4, rig.buffer);
        drain(&rig);
        submit(&rig, &flush, DISK_FLUSH, 0, 0, NULL);
        drain(&rig);
        fake_disk_crash(&rig.disk);
        assert_int_equal(content_is(&rig, 8, 4, 0x11), 1);
        rig_fini(&rig);
    }
}

/*
 * A flush submitted before the write had completed covers it only by luck: over the seeds it is
 * lost, kept and torn.
 */
static void
test_crash_loses_any_part_of_the_rest(void **state)
{
    uint32_t lost = 0, kept = 0, torn = 0, block_torn = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct rig rig;
        struct request write, flush;
        int found;

        rig_init(&rig, seed);
        memset(rig.buffer, 0x22, 4 * BLOCK);
        submit(&rig, &flush, DISK_FLUSH, 0, 0, NULL);
        submit(&rig, &write, DISK_WRITE, 8, 4, rig.buffer);
        if (seed % 2 == 0)
            drain(&rig);
        fake_disk_crash(&rig.disk);
        found = content_is(&rig, 8, 4, 0x22);
        lost += found == 0;
        kept += found == 1;
        torn += found == -1;
        for (uint64_t block = 8; block < 12; block++)
            block_torn += content_is(&rig, block, 1, 0x22) == -1;
        rig_fini(&rig);
    }
    assert_true(lost > 40);
    assert_true(kept > 40);
    assert_true(torn > 40);
    assert_true(block_torn > 20);
}

static void
test_kill_keeps_what_had_completed(void **state)
{
    uint32_t lost_later = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct rig rig;
        struct request write;

        rig_init(&rig, seed);
        memset(rig.buffer, 0x33, BLOCK);
        submit(&rig, &write, DISK_WRITE, 3, 1, rig.buffer);
        drain(&rig);
        fake_disk_kill(&rig.disk);
        assert_int_equal(content_is(&rig, 3, 1, 0x33), 1);
        fake_disk_crash(&rig.disk);
        lost_later += content_is(&rig, 3, 1, 0x33) != 1;
        rig_fini(&rig);
    }
    assert_true(lost_later > 10);
}

static void
test_completion_order_varies(void **state)
{
    uint32_t first_last = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct rig rig;
        struct request writes[3];

        rig_init(&rig, seed);
        for (uint32_t i = 0; i < 3; i++)
            submit(&rig, &writes[i], DISK_WRITE, i, 1, rig.buffer + i * BLOCK);
        assert_int_equal(done_count, 0);
        drain(&rig);
        assert_int_equal(done_count, 3);
        first_last += writes[0].order == 3;
        rig_fini(&rig);
    }
    assert_in_range(first_last, 15, 60);
}

static void
test_failed_flush_is_for_good(void **state)
{
    uint32_t lost = 0;

    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct rig rig;
        struct request write, flush;

        rig_init(&rig, seed);
        memset(rig.buffer, 0x44, BLOCK);
        submit(&rig, &write, DISK_WRITE, 5, 1, rig.buffer);
        drain(&rig);
        fake_disk_fail(&rig.disk, DISK_FLUSH, 0, 1, -EIO, 0, 0);
        submit(&rig, &flush, DISK_FLUSH, 0, 0, NULL);
        drain(&rig);
        assert_int_equal(flush.result, -EIO);
        submit(&rig, &flush, DISK_FLUSH, 0, 0, NULL);
        drain(&rig);
        assert_int_equal(flush.result, 0);
        fake_disk_crash(&rig.disk);
        lost += content_is(&rig, 5, 1, 0x44) != 1;
        rig_fini(&rig);
    }
    assert_true(lost > 10);
}

static void
test_faults_hit_where_they_are_set(void **state)
{
    struct rig rig;
    struct request a, b, c;

    (void)state;
    rig_init(&rig, 1);
    fake_disk_fail(&rig.disk, DISK_WRITE, 1, 1, -EIO, 4 * BLOCK, 8 * BLOCK);
    submit(&rig, &a, DISK_WRITE, 1, 1, rig.buffer);
    drain(&rig);
    submit(&rig, &b, DISK_WRITE, 4, 1, rig.buffer);
    drain(&rig);
    submit(&rig, &c, DISK_WRITE, 5, 1, rig.buffer);
    drain(&rig);
    assert_int_equal(a.result, 0);
    assert_int_equal(b.result, 0);
    assert_int_equal(c.result, -EIO);
    fake_disk_set_bad(&rig.disk, 4 * BLOCK, BLOCK, true);
    submit(&rig, &a, DISK_READ, 3, 2, rig.buffer);
    drain(&rig);
    assert_int_equal(a.result, -EIO);
    submit(&rig, &a, DISK_WRITE, 4, 1, rig.buffer);
    drain(&rig);
    submit(&rig, &a, DISK_READ, 3, 2, rig.buffer);
    drain(&rig);
    assert_int_equal(a.result, 0);
    assert_int_equal(rig.disk.violations, 0);
    rig_fini(&rig);
}

static void
test_violations_are_seen(void **state)
{
    struct rig rig;
    struct request a, b;

    (void)state;
    rig_init(&rig, 1);
    memset(rig.buffer, 1, 16 * BLOCK);
    submit(&rig, &a, DISK_WRITE, 1, 2, rig.buffer);
    submit(&rig, &b, DISK_WRITE, 2, 1, rig.buffer + 4 * BLOCK);
    assert_int_equal(rig.disk.violations, 1);
    drain(&rig);
    submit(&rig, &a, DISK_READ, 9, 1, rig.buffer);
    submit(&rig, &b, DISK_WRITE, 9, 1, rig.buffer + 4 * BLOCK);
    assert_int_equal(rig.disk.violations, 2);
    drain(&rig);
    submit(&rig, &a, DISK_WRITE, 9, 1, rig.buffer);
    rig.buffer[17]++;
    drain(&rig);
    assert_int_equal(rig.disk.violations, 3);
    rig_fini(&rig);
}

UNIT_MAIN(cmocka_unit_test(test_crash_keeps_what_a_flush_covered),
          cmocka_unit_test(test_crash_loses_any_part_of_the_rest),
          cmocka_unit_test(test_kill_keeps_what_had_completed),
          cmocka_unit_test(test_completion_order_varies),
          cmocka_unit_test(test_failed_flush_is_for_good),
          cmocka_unit_test(test_faults_hit_where_they_are_set),
          cmocka_unit_test(test_violations_are_seen))
