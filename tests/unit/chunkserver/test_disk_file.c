/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk file is created full of written zeroes, is locked against a second opening by any process,
 * waits for the lock if asked, refuses what is no disk, and does what was queued in order, whole,
 * with an error for what fails.
 */
#include "tests/unit/lib/unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"

#define MIB (1u << 20)

struct rig {
    char directory[64];
    char path[96];
    struct disk_file *file;
    uint64_t progress_last, progress_calls;
    uint32_t waits;
};

static void
rig_progress(void *context, uint64_t done_bytes, uint64_t size_bytes)
{
    struct rig *rig = context;

    assert_true(done_bytes > rig->progress_last && done_bytes <= size_bytes);
    rig->progress_last = done_bytes;
    rig->progress_calls++;
}

static int
rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct dl_error err;

    assert_non_null(rig);
    /* On the filesystem of the tree, which is more like a server's than a tmpfs is. */
    (void)snprintf(rig->directory, sizeof(rig->directory), "dlblk-disk-file-XXXXXX");
    assert_non_null(mkdtemp(rig->directory));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/disk", rig->directory);
    if (disk_file_create(rig->path, 9 * MIB + 512, rig_progress, rig, &err) != 0)
        fail_msg("%s", err.text);
    *state = rig;
    return 0;
}

static int
rig_teardown(void **state)
{
    struct rig *rig = *state;

    disk_file_close(rig->file);
    (void)unlink(rig->path);
    assert_int_equal(rmdir(rig->directory), 0);
    free(rig);
    return 0;
}

static void
rig_open(struct rig *rig)
{
    struct dl_error err;

    if (disk_file_open(rig->path, NULL, &rig->file, &err) != 0)
        fail_msg("%s", err.text);
}

static void
test_created_file_is_written_whole(void **state)
{
    struct rig *rig = *state;
    struct stat found;
    struct dl_error err;

    assert_int_equal(stat(rig->path, &found), 0);
    assert_int_equal(found.st_size, 9 * MIB + 512);
    assert_true((uint64_t)found.st_blocks * 512 >= 9 * MIB);
    assert_int_equal(rig->progress_last, 9 * MIB + 512);
    assert_true(rig->progress_calls >= 3);
    assert_int_equal(disk_file_create(rig->path, MIB, NULL, NULL, &err), -EEXIST);
    rig_open(rig);
    assert_int_equal(disk_file_disk(rig->file)->size_bytes, 9 * MIB);
    assert_false(disk_file_disk(rig->file)->write_through);
    assert_false(disk_file_is_device(rig->file));
}

static void
test_second_open_is_refused(void **state)
{
    struct rig *rig = *state;
    struct disk_file *second;
    struct disk_file_options look = {.read_only = true, .no_lock = true};
    struct dl_error err;

    rig_open(rig);
    assert_int_equal(disk_file_open(rig->path, NULL, &second, &err), -DL_E_DISK_BUSY);
    assert_non_null(strstr(err.text, rig->path));
    assert_int_equal(disk_file_open(rig->path, &look, &second, &err), 0);
    disk_file_close(second);
    disk_file_close(rig->file);
    rig_open(rig);
}

static void
rig_on_wait(void *context, const char *path)
{
    struct rig *rig = context;

    assert_string_equal(path, rig->path);
    rig->waits++;
}

/*
 * Another process holds the disk for a moment: it is told once, and waited for; or not long enough.
 */
static void
test_open_waits_for_the_lock(void **state)
{
    struct rig *rig = *state;
    struct disk_file_options options = {
        .wait_ms = 200, .on_wait = rig_on_wait, .on_wait_context = rig};
    struct dl_error err;
    int ready[2], status;
    char byte;
    pid_t child;

    assert_int_equal(pipe(ready), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct disk_file *held;

        if (disk_file_open(rig->path, NULL, &held, &err) != 0 || write(ready[1], "x", 1) != 1)
            _exit(1);
        (void)usleep(700000);
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(disk_file_open(rig->path, &options, &rig->file, &err), -DL_E_DISK_BUSY);
    assert_int_equal(rig->waits, 1);
    options.wait_ms = 30000;
    assert_int_equal(disk_file_open(rig->path, &options, &rig->file, &err), 0);
    assert_int_equal(rig->waits, 2);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    (void)close(ready[0]);
    (void)close(ready[1]);
}

static void
test_what_is_no_disk_is_refused(void **state)
{
    struct rig *rig = *state;
    struct disk_file *file;
    struct dl_error err;

    assert_int_equal(disk_file_open(rig->directory, NULL, &file, &err), -DL_E_DISK_FORMAT);
    assert_int_equal(disk_file_open("/dev/zero", NULL, &file, &err), -DL_E_DISK_FORMAT);
    assert_non_null(strstr(err.text, "/dev/zero"));
    assert_int_equal(disk_file_open("/no/such/disk", NULL, &file, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/no/such/disk"));
}

static void
test_index_is_not_put_where_it_would_vanish(void **state)
{
    char path[64];

    (void)state;
    assert_int_equal(disk_index_path("/srv/disk0", path, sizeof(path)), 0);
    assert_string_equal(path, "/srv/disk0.index");
    assert_int_equal(disk_index_path("disk0", path, sizeof(path)), 0);
    assert_string_equal(path, "disk0.index");
    assert_int_equal(disk_index_path("/dev/shm/disk0", path, sizeof(path)), 0);
    assert_string_equal(path, "/dev/shm/disk0.index");
    assert_int_equal(disk_index_path("/dev/sdb", path, sizeof(path)), 0);
    assert_string_equal(path, "/var/lib/dlblk/dev-sdb.index");
    assert_int_equal(disk_index_path("/dev/disk/by-id/x", path, sizeof(path)), 0);
    assert_string_equal(path, "/var/lib/dlblk/dev-disk-by-id-x.index");
    assert_int_equal(disk_index_path("/srv/disk0", path, 16), -ENAMETOOLONG);
}

struct request {
    struct disk_io io;
    int result;
    uint32_t order;
};

static uint32_t request_count;

static void
request_on_done(struct disk_io *io, int result)
{
    struct request *request = (struct request *)io;

    request->result = result;
    request->order = ++request_count;
}

static void
request_submit(struct rig *rig, struct request *request, enum disk_io_kind kind,
               uint64_t offset_bytes, struct iovec *iov, uint32_t iov_count)
{
    *request = (struct request){.io = {.kind = kind,
                                       .offset_bytes = offset_bytes,
                                       .iov = iov,
                                       .iov_count = iov_count,
                                       .on_done = request_on_done}};
    disk_submit(disk_file_disk(rig->file), &request->io);
}

static void
test_queue_writes_flushes_and_reads(void **state)
{
    struct rig *rig = *state;
    struct request put, flush, get, beyond;
    uint8_t *memory = aligned_alloc(4096, 6 * 4096);
    struct iovec out[2] = {{memory, 4096}, {memory + 4096, 8192}};
    struct iovec in[1] = {{memory + 3 * 4096, 3 * 4096}};

    assert_non_null(memory);
    rig_open(rig);
    request_count = 0;
    for (uint32_t i = 0; i < 3 * 4096; i++)
        memory[i] = (uint8_t)(i % 251);
    request_submit(rig, &put, DISK_WRITE, 8192, out, 2);
    request_submit(rig, &flush, DISK_FLUSH, 0, NULL, 0);
    request_submit(rig, &get, DISK_READ, 8192, in, 1);
    request_submit(rig, &beyond, DISK_READ, 64 * MIB, in, 1);
    assert_int_equal(request_count, 0);
    assert_int_equal(disk_file_poll(rig->file), 4);
    assert_int_equal(put.order, 1);
    assert_int_equal(put.result, 0);
    assert_int_equal(flush.result, 0);
    assert_int_equal(get.result, 0);
    assert_int_equal(beyond.result, -EIO);
    assert_memory_equal(memory, memory + 3 * 4096, 3 * 4096);
    assert_int_equal(disk_file_poll(rig->file), 0);
    free(memory);
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

UNIT_MAIN(RIG_TEST(test_created_file_is_written_whole), RIG_TEST(test_second_open_is_refused),
          RIG_TEST(test_open_waits_for_the_lock), RIG_TEST(test_what_is_no_disk_is_refused),
          cmocka_unit_test(test_index_is_not_put_where_it_would_vanish),
          RIG_TEST(test_queue_writes_flushes_and_reads))
