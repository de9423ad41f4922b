/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chunkserver's disk on the reactor: what was written is read back, in one piece and in
 * several; completions never come from inside the start call, and none of the calls blocks: with
 * all of them made, nothing has happened yet; errors and short I/Os arrive as errors; many I/Os at
 * a time all complete once.
 *
 * Runs on two filesystems: the one of $TMPDIR or /tmp, and /dev/shm, whose files the kernel can
 * only serve with threads of its own.
 */
#include "tests/unit/lib/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/disk_uring.h"
#include "common/clock.h"
#include "common/list.h"
#include "common/loop.h"
#include "tests/unit/lib/fake_rng.h"

#define FILE_BYTES    (8u << 20)
#define BLOCK         4096u
#define BLOCKS        (FILE_BYTES / BLOCK)
#define DEPTH         48u
#define IO_BLOCKS_MAX 64u

struct setup {
    char dir[128], path[160];
    struct loop *loop;
    struct disk_file *file;
    struct disk_uring *uring;
    struct disk *disk;
};

static void
setup_init(struct setup *setup, const char *parent)
{
    struct dl_error err;

    (void)snprintf(setup->dir, sizeof(setup->dir), "%s/test_disk_uring.XXXXXX", parent);
    assert_non_null(mkdtemp(setup->dir));
    (void)snprintf(setup->path, sizeof(setup->path), "%s/disk", setup->dir);
    if (disk_file_create(setup->path, FILE_BYTES, NULL, NULL, &err) != 0 ||
        disk_file_open(setup->path, NULL, &setup->file, &err) != 0 ||
        loop_create(&setup->loop, NULL, &err) != 0 ||
        disk_uring_create(&setup->uring, setup->loop, disk_file_disk(setup->file),
                          disk_file_fd(setup->file), &err) != 0)
        fail_msg("%s", err.text);
    setup->disk = disk_uring_disk(setup->uring);
    assert_int_equal(setup->disk->size_bytes, FILE_BYTES);
}

static void
setup_fini(struct setup *setup)
{
    disk_uring_destroy(setup->uring);
    loop_destroy(setup->loop);
    disk_file_close(setup->file);
    (void)unlink(setup->path);
    (void)rmdir(setup->dir);
}

struct test_io {
    struct disk_io io;
    bool in_call, busy;
    int result;
    uint8_t *memory;
    struct iovec iov[8];
    uint32_t first_block, block_count;
    uint64_t *done;
};

static void
on_io(struct disk_io *io, int result)
{
    struct test_io *test = list_entry(io, struct test_io, io);

    assert_false(test->in_call);
    assert_true(test->busy);
    test->busy = false;
    test->result = result;
    (*test->done)++;
}

static void
io_start(struct setup *setup, struct test_io *test)
{
    test->io.on_done = on_io;
    test->busy = true;
    test->in_call = true;
    disk_submit(setup->disk, &test->io);
    test->in_call = false;
}

/* The range, in as many pieces as fit. */
static void
io_set_range(struct test_io *test, enum disk_io_kind kind, uint32_t first_block,
             uint32_t block_count, bool pieces)
{
    uint32_t count = pieces && block_count > 1 ? (block_count < 8 ? block_count : 8) : 1;
    uint32_t each = block_count / count;
    uint8_t *at = test->memory;

    test->io.kind = kind;
    test->io.offset_bytes = (uint64_t)first_block * BLOCK;
    test->io.iov = count == 1 ? &test->io.iov_one : test->iov;
    test->io.iov_count = count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t blocks = i + 1 < count ? each : block_count - each * (count - 1);

        test->io.iov[i] = (struct iovec){.iov_base = at, .iov_len = blocks * BLOCK};
        at += blocks * BLOCK;
    }
    test->first_block = first_block;
    test->block_count = block_count;
}

static void
wait_for(struct setup *setup, const uint64_t *done, uint64_t count)
{
    for (unsigned turns = 0; *done < count && turns < 10000; turns++)
        assert_int_equal(loop_turn(setup->loop, NS_PER_S), 0);
    assert_int_equal(*done, count);
}

/* Random writes and reads that don't overlap, some dozens at a time, against a copy in memory. */
static void
random_io(const char *parent)
{
    static uint8_t model[FILE_BYTES];
    struct test_io *ios = calloc(DEPTH, sizeof(*ios));
    struct disk_uring_stats stats;
    struct setup setup;
    struct fake_rng rng;
    uint64_t done = 0;
    uint64_t started = 0;

    assert_non_null(ios);
    memset(model, 0, sizeof(model));
    fake_rng_init(&rng, 11);
    setup_init(&setup, parent);
    for (unsigned i = 0; i < DEPTH; i++) {
        ios[i].memory = aligned_alloc(BLOCK, IO_BLOCKS_MAX * BLOCK);
        assert_non_null(ios[i].memory);
        ios[i].done = &done;
    }
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            /* Each has a part of the disk for itself in this round. */
            uint32_t part = BLOCKS / DEPTH;
            uint32_t count = (uint32_t)fake_rng_range(&rng, 1,
                                                      part < IO_BLOCKS_MAX ? part : IO_BLOCKS_MAX);
            uint32_t first = i * part + (uint32_t)fake_rng_below(&rng, part - count + 1);
            bool write = fake_rng_percent(&rng, 50);

            if (fake_rng_percent(&rng, 5)) {
                ios[i].io.kind = DISK_FLUSH;
                ios[i].block_count = 0;
            } else {
                io_set_range(&ios[i], write ? DISK_WRITE : DISK_READ, first, count,
                             fake_rng_percent(&rng, 50));
                for (uint32_t k = 0; write && k < count * BLOCK; k += 8) {
                    uint64_t value = fake_rng_next(&rng);

                    memcpy(ios[i].memory + k, &value, 8);
                }
                if (write)
                    memcpy(model + first * BLOCK, ios[i].memory, count * BLOCK);
            }
            io_start(&setup, &ios[i]);
            started++;
        }
        wait_for(&setup, &done, started);
        for (unsigned i = 0; i < DEPTH; i++) {
            assert_int_equal(ios[i].result, 0);
            if (ios[i].io.kind == DISK_READ)
                assert_memory_equal(ios[i].memory, model + ios[i].first_block * BLOCK,
                                    ios[i].block_count * BLOCK);
        }
    }
    disk_uring_get_stats(setup.uring, &stats);
    assert_int_equal(stats.in_flight, 0);
    assert_int_equal(stats.ios[DISK_READ] + stats.ios[DISK_WRITE] + stats.ios[DISK_FLUSH], started);
    assert_true(stats.ios[DISK_FLUSH] > 50);
    for (unsigned i = 0; i < DEPTH; i++)
        free(ios[i].memory);
    free(ios);
    /* The blocking forms see the same. */
    for (unsigned i = 0; i < BLOCKS; i += 7) {
        static _Alignas(BLOCK) uint8_t block[BLOCK];

        assert_int_equal(setup.disk->ops->read_now(setup.disk, block, BLOCK, (uint64_t)i * BLOCK),
                         0);
        assert_memory_equal(block, model + (size_t)i * BLOCK, BLOCK);
    }
    setup_fini(&setup);
}

static const char *
tmp_dir(void)
{
    const char *dir = getenv("TMPDIR");

    return dir != NULL ? dir : "/tmp";
}

static void
test_random_io(void **state)
{
    (void)state;
    random_io(tmp_dir());
    random_io("/dev/shm");
}

/*
 * The file ends before the I/O does: an error, not a short success.  A file that is closed to
 * writing: its errno.
 */
static void
errors(const char *parent)
{
    struct setup setup;
    uint64_t done = 0;
    struct test_io test = {.done = &done};
    struct disk_uring *read_only;
    struct dl_error err;
    int fd;

    setup_init(&setup, parent);
    test.memory = aligned_alloc(BLOCK, 4 * BLOCK);
    assert_non_null(test.memory);
    memset(test.memory, 7, 4 * BLOCK);
    assert_int_equal(truncate(setup.path, FILE_BYTES - 2 * BLOCK), 0);
    for (unsigned pieces = 0; pieces < 2; pieces++) {
        io_set_range(&test, DISK_READ, BLOCKS - 4, 4, pieces != 0);
        io_start(&setup, &test);
        wait_for(&setup, &done, pieces + 1);
        assert_int_equal(test.result, -EIO);
    }
    io_set_range(&test, DISK_READ, BLOCKS - 4, 2, false);
    io_start(&setup, &test);
    wait_for(&setup, &done, 3);
    assert_int_equal(test.result, 0);

    fd = open(setup.path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(
        disk_uring_create(&read_only, setup.loop, disk_file_disk(setup.file), fd, &err), 0);
    io_set_range(&test, DISK_WRITE, 0, 1, false);
    test.busy = true;
    disk_submit(disk_uring_disk(read_only), &test.io);
    wait_for(&setup, &done, 4);
    assert_int_equal(test.result, -EBADF);
    disk_uring_destroy(read_only);
    (void)close(fd);
    free(test.memory);
    setup_fini(&setup);
}

static void
test_errors(void **state)
{
    (void)state;
    errors(tmp_dir());
    errors("/dev/shm");
}

/* --- calls that could block --- */

static unsigned blocking_calls;

/* The library's calls are these (--wrap): none of them may be made for a submitted I/O. */
#define BLOCKING_CALL(type, name, parameters, arguments) \
    type __real_##name parameters;                       \
    type __wrap_##name parameters;                       \
    type __wrap_##name parameters                        \
    {                                                    \
        blocking_calls++;                                \
        return __real_##name arguments;                  \
    }
BLOCKING_CALL(ssize_t, pread, (int fd, void *buffer, size_t bytes, off_t offset),
              (fd, buffer, bytes, offset))
BLOCKING_CALL(ssize_t, pwrite, (int fd, const void *buffer, size_t bytes, off_t offset),
              (fd, buffer, bytes, offset))
BLOCKING_CALL(ssize_t, preadv, (int fd, const struct iovec *iov, int count, off_t offset),
              (fd, iov, count, offset))
BLOCKING_CALL(ssize_t, pwritev, (int fd, const struct iovec *iov, int count, off_t offset),
              (fd, iov, count, offset))
BLOCKING_CALL(ssize_t, preadv2,
              (int fd, const struct iovec *iov, int count, off_t offset, int flags),
              (fd, iov, count, offset, flags))
BLOCKING_CALL(int, fdatasync, (int fd), (fd))

/* Creation and all kinds of I/O leave the reactor alone; the blocking forms show that it counts. */
static void
test_no_call_blocks(void **state)
{
    static const enum disk_io_kind kinds[] = {DISK_WRITE, DISK_READ, DISK_FLUSH};
    struct setup setup;
    uint64_t done = 0;
    struct test_io test = {.done = &done};
    unsigned before;

    (void)state;
    setup_init(&setup, "/dev/shm");
    disk_uring_destroy(setup.uring);
    before = blocking_calls;
    assert_int_equal(disk_uring_create(&setup.uring, setup.loop, disk_file_disk(setup.file),
                                       disk_file_fd(setup.file), NULL),
                     0);
    setup.disk = disk_uring_disk(setup.uring);
    test.memory = aligned_alloc(BLOCK, BLOCK);
    assert_non_null(test.memory);
    memset(test.memory, 7, BLOCK);
    for (unsigned i = 0; i < 30; i++) {
        io_set_range(&test, kinds[i % 3], i, 1, false);
        io_start(&setup, &test);
        wait_for(&setup, &done, i + 1);
        assert_int_equal(test.result, 0);
    }
    assert_int_equal(blocking_calls, before);
    assert_int_equal(setup.disk->ops->read_now(setup.disk, test.memory, BLOCK, 0), 0);
    assert_true(blocking_calls > before);
    free(test.memory);
    setup_fini(&setup);
}

UNIT_MAIN(cmocka_unit_test(test_random_io), cmocka_unit_test(test_errors),
          cmocka_unit_test(test_no_call_blocks))
