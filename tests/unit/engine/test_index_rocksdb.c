/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index on RocksDB keeps what index.h promises: merges are concatenated across flushes and
 * reopening; a process that dies keeps a prefix of its batches, at least what a flush covered;
 * nothing is created but by format; errors are told apart; a write error is final; memory stays
 * within the budget.
 *
 * A death is real: a child process is killed in the middle of its batches.
 */
#include "tests/unit/lib/unit.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chunkserver/engine/index_rocksdb.h"

struct rig {
    char directory[64];
    char path[96];
    struct index *index;
    atomic_uint posts;
};

static void
rig_post(void *context)
{
    struct rig *rig = context;

    atomic_fetch_add(&rig->posts, 1);
}

static int
rig_open_with(struct rig *rig, uint64_t memory_bytes, struct dl_error *err)
{
    struct index_rocksdb_options options = {
        .path = rig->path, .memory_bytes = memory_bytes, .post = rig_post, .post_context = rig};

    return index_rocksdb_open(&options, &rig->index, err);
}

static void
rig_open(struct rig *rig)
{
    struct dl_error err;

    if (rig_open_with(rig, 0, &err) != 0)
        fail_msg("%s", err.text);
}

static void
rig_close(struct rig *rig)
{
    rig->index->ops->close(rig->index);
    rig->index = NULL;
}

static int
rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct dl_error err;

    assert_non_null(rig);
    (void)snprintf(rig->directory, sizeof(rig->directory), "/tmp/dlblk-index-XXXXXX");
    assert_non_null(mkdtemp(rig->directory));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/index", rig->directory);
    if (index_rocksdb_format(rig->path, &err) != 0)
        fail_msg("%s", err.text);
    *state = rig;
    return 0;
}

static int
rig_teardown(void **state)
{
    struct rig *rig = *state;

    if (rig->index != NULL)
        rig_close(rig);
    (void)index_rocksdb_remove(rig->path, NULL);
    (void)rmdir(rig->path);
    assert_int_equal(rmdir(rig->directory), 0);
    free(rig);
    return 0;
}

struct result {
    bool done;
    int err;
};

static void
result_on_done(void *context, int err)
{
    struct result *result = context;

    result->done = true;
    result->err = err;
}

static int
wait_for(struct rig *rig, struct result *result)
{
    while (!result->done)
        (void)index_rocksdb_wait(rig->index);
    return result->err;
}

static int
batch_run(struct rig *rig, struct index_batch *batch)
{
    struct result result = {0};

    rig->index->ops->batch_start(rig->index, batch, result_on_done, &result);
    assert_false(result.done);
    return wait_for(rig, &result);
}

static int
flush_run(struct rig *rig)
{
    struct result result = {0};

    rig->index->ops->flush_start(rig->index, result_on_done, &result);
    assert_false(result.done);
    return wait_for(rig, &result);
}

static void
put(struct rig *rig, const char *key, const char *value)
{
    struct index_batch *batch = rig->index->ops->batch_create(rig->index);

    rig->index->ops->batch_put(batch, key, (uint32_t)strlen(key), value, (uint32_t)strlen(value));
    assert_int_equal(batch_run(rig, batch), 0);
}

static void
merge(struct rig *rig, const char *key, const char *value)
{
    struct index_batch *batch = rig->index->ops->batch_create(rig->index);

    rig->index->ops->batch_merge(batch, key, (uint32_t)strlen(key), value, (uint32_t)strlen(value));
    assert_int_equal(batch_run(rig, batch), 0);
}

struct get_result {
    struct index_get get;
    bool done;
    int err;
};

static void
get_on_done(struct index_get *get, int err)
{
    struct get_result *result = (struct get_result *)get;

    assert_false(result->done);
    result->done = true;
    result->err = err;
}

static void
assert_value(struct rig *rig, const char *key, const char *expected)
{
    struct get_result result = {
        .get = {.key_bytes = (uint32_t)strlen(key), .on_done = get_on_done}};

    memcpy(result.get.key, key, strlen(key));
    rig->index->ops->get_start(rig->index, &result.get);
    assert_false(result.done);
    while (!result.done)
        (void)index_rocksdb_wait(rig->index);
    if (expected == NULL) {
        assert_int_equal(result.err, -DL_E_NOT_FOUND);
        assert_null(result.get.value);
        return;
    }
    assert_int_equal(result.err, 0);
    assert_int_equal(result.get.value_bytes, strlen(expected));
    assert_memory_equal(result.get.value, expected, strlen(expected));
    free(result.get.value);
}

static void
test_merge_across_flush_and_reopen(void **state)
{
    struct rig *rig = *state;
    struct index_batch *batch;

    rig_open(rig);
    put(rig, "k", "one,");
    merge(rig, "k", "two,");
    merge(rig, "only-merged", "a");
    assert_int_equal(flush_run(rig), 0);
    merge(rig, "k", "three,");
    assert_value(rig, "k", "one,two,three,");
    assert_int_equal(flush_run(rig), 0);
    rig_close(rig);
    rig_open(rig);
    merge(rig, "k", "four");
    merge(rig, "only-merged", "b");
    assert_value(rig, "k", "one,two,three,four");
    assert_value(rig, "only-merged", "ab");
    batch = rig->index->ops->batch_create(rig->index);
    rig->index->ops->batch_delete(batch, "k", 1);
    rig->index->ops->batch_merge(batch, "k", 1, "new", 3);
    assert_int_equal(batch_run(rig, batch), 0);
    assert_int_equal(flush_run(rig), 0);
    assert_value(rig, "k", "new");
    assert_true(rig->index->ops->device_bytes_written(rig->index) > 0);
    assert_true(atomic_load(&rig->posts) > 0);
}

static int
scan_collect(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
             uint32_t value_bytes)
{
    char *text = context;

    strncat(text, (const char *)key, key_bytes);
    strncat(text, "=", 2);
    strncat(text, (const char *)value, value_bytes);
    strncat(text, " ", 2);
    return strstr(text, "stop") != NULL ? 42 : 0;
}

static int
scan_count(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
           uint32_t value_bytes)
{
    (void)key;
    (void)key_bytes;
    (void)value;
    (void)value_bytes;
    ++*(uint32_t *)context;
    return 0;
}

static void
test_scan_is_ordered_and_bounded_by_its_prefix(void **state)
{
    struct rig *rig = *state;
    char text[256] = "";

    rig_open(rig);
    put(rig, "Lb", "2");
    put(rig, "La", "1");
    put(rig, "K", "0");
    put(rig, "M", "9");
    assert_int_equal(flush_run(rig), 0);
    merge(rig, "La", "1");
    put(rig, "Lc", "3");
    assert_int_equal(rig->index->ops->scan_now(rig->index, "L", 1, scan_collect, text), 0);
    assert_string_equal(text, "La=11 Lb=2 Lc=3 ");
    put(rig, "Lab", "stop");
    text[0] = '\0';
    assert_int_equal(rig->index->ops->scan_now(rig->index, "L", 1, scan_collect, text), 42);
    assert_string_equal(text, "La=11 Lab=stop ");
}

/* More gets in one chain than RocksDB is asked for at once. */
static void
test_long_chain_of_gets(void **state)
{
    enum { COUNT = 300 };
    struct rig *rig = *state;
    struct get_result *gets = calloc(COUNT, sizeof(*gets));
    char key[16];

    assert_non_null(gets);
    rig_open(rig);
    for (int i = 0; i < COUNT; i += 2) {
        (void)snprintf(key, sizeof(key), "key%05d", i);
        put(rig, key, key + 3);
    }
    assert_int_equal(flush_run(rig), 0);
    for (int i = 0; i < COUNT; i++) {
        (void)snprintf(key, sizeof(key), "key%05d", i);
        memcpy(gets[i].get.key, key, 8);
        gets[i].get.key_bytes = 8;
        gets[i].get.on_done = get_on_done;
        gets[i].get.next = i + 1 < COUNT ? &gets[i + 1].get : NULL;
    }
    rig->index->ops->get_start(rig->index, &gets[0].get);
    while (!gets[COUNT - 1].done)
        (void)index_rocksdb_wait(rig->index);
    for (int i = 0; i < COUNT; i++) {
        assert_true(gets[i].done);
        assert_int_equal(gets[i].err, i % 2 == 0 ? 0 : -DL_E_NOT_FOUND);
        if (i % 2 == 0)
            assert_memory_equal(gets[i].get.value, gets[i].get.key + 3, 5);
        free(gets[i].get.value);
    }
    free(gets);
}

/*
 * The child is this program started anew (RocksDB's threads don't survive a fork).  It reports each
 * completed batch as 0 and each completed flush by the batch's number, until it is killed.
 */
static int
crash_child(const char *path, int report_fd)
{
    struct rig rig = {0};

    (void)snprintf(rig.path, sizeof(rig.path), "%s", path);
    rig_open(&rig);
    for (uint32_t i = 1;; i++) {
        char number[16];
        struct index_batch *batch = rig.index->ops->batch_create(rig.index);
        uint32_t report = i % 37 == 0 ? i : 0;

        (void)snprintf(number, sizeof(number), "%08u", i);
        rig.index->ops->batch_put(batch, "last", 4, number, 8);
        rig.index->ops->batch_put(batch, number, 8, number, 8);
        if (batch_run(&rig, batch) != 0 || (report != 0 && flush_run(&rig) != 0))
            return 1;
        if (write(report_fd, &report, sizeof(report)) != sizeof(report))
            return 1;
    }
}

static pid_t
crash_child_start(const struct rig *rig, int *ret_report_fd)
{
    int pipe_fds[2];
    char report_fd[16];
    pid_t child;

    assert_int_equal(pipe(pipe_fds), 0);
    (void)snprintf(report_fd, sizeof(report_fd), "%d", pipe_fds[1]);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)execl("/proc/self/exe", "test_index_rocksdb", "--child", rig->path, report_fd, NULL);
        _exit(1);
    }
    (void)close(pipe_fds[1]);
    *ret_report_fd = pipe_fds[0];
    return child;
}

static void
test_death_keeps_a_prefix_with_all_that_was_flushed(void **state)
{
    struct rig *rig = *state;
    uint32_t flushed = 0, report, last;
    struct get_result result = {.get = {.key = "last", .key_bytes = 4, .on_done = get_on_done}};
    int report_fd, status;
    char number[16];
    pid_t child = crash_child_start(rig, &report_fd);

    for (int i = 0; i < 500; i++) {
        assert_int_equal(read(report_fd, &report, sizeof(report)), sizeof(report));
        if (report != 0)
            flushed = report;
    }
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    (void)close(report_fd);
    assert_true(flushed > 0);

    rig_open(rig);
    rig->index->ops->get_start(rig->index, &result.get);
    while (!result.done)
        (void)index_rocksdb_wait(rig->index);
    assert_int_equal(result.err, 0);
    memcpy(number, result.get.value, 8);
    number[8] = '\0';
    free(result.get.value);
    last = (uint32_t)strtoul(number, NULL, 10);
    assert_true(last >= flushed);
    for (uint32_t i = 1; i <= last + 100; i++) {
        (void)snprintf(number, sizeof(number), "%08u", i);
        assert_value(rig, number, i <= last ? number : NULL);
    }
}

static void
test_open_creates_nothing(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    char other[128];

    (void)snprintf(other, sizeof(other), "%s", rig->path);
    assert_int_equal(index_rocksdb_remove(rig->path, NULL), 0);
    (void)rmdir(rig->path);
    assert_int_equal(rig_open_with(rig, 0, &err), -DL_E_NOT_FOUND);
    assert_non_null(strstr(err.text, other));
    rig->index = NULL;
}

static void
test_format_refuses_a_database(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;

    assert_int_not_equal(index_rocksdb_format(rig->path, &err), 0);
    assert_non_null(strstr(err.text, rig->path));
}

static void
test_a_second_open_is_refused(void **state)
{
    struct rig *rig = *state;
    struct rig second = *rig;
    struct dl_error err;

    rig_open(rig);
    assert_int_equal(rig_open_with(&second, 0, &err), -DL_E_DISK_BUSY);
}

/* Overwrite something of each block of every table file, from an offset on. */
static void
damage_tables(const char *path, off_t from)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    uint32_t damaged = 0;

    assert_non_null(directory);
    while ((entry = readdir(directory)) != NULL) {
        char file[512];
        char garbage[256];
        int fd;

        if (strstr(entry->d_name, ".sst") == NULL)
            continue;
        (void)snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        fd = open(file, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        memset(garbage, 0x5a, sizeof(garbage));
        for (off_t at = from; at < 16 * 4096; at += 2048)
            assert_int_equal(pwrite(fd, garbage, sizeof(garbage), at), sizeof(garbage));
        (void)close(fd);
        damaged++;
    }
    (void)closedir(directory);
    assert_true(damaged > 0);
}

static void
test_damaged_table_is_an_error_not_a_hole(void **state)
{
    struct rig *rig = *state;
    struct get_result result = {.get = {.key = "k00030", .key_bytes = 6, .on_done = get_on_done}};
    struct index_batch *batch;
    char text[4096];

    rig_open(rig);
    batch = rig->index->ops->batch_create(rig->index);
    memset(text, 'x', sizeof(text));
    for (int i = 0; i < 500; i++) {
        char key[16];

        (void)snprintf(key, sizeof(key), "k%05d", i);
        rig->index->ops->batch_put(batch, key, 6, text, 1000);
    }
    assert_int_equal(batch_run(rig, batch), 0);
    assert_int_equal(flush_run(rig), 0);
    rig_close(rig);
    damage_tables(rig->path, 0);
    rig_open(rig);
    rig->index->ops->get_start(rig->index, &result.get);
    while (!result.done)
        (void)index_rocksdb_wait(rig->index);
    assert_int_equal(result.err, -DL_E_INDEX_CORRUPT);
    assert_null(result.get.value);
    assert_true(strlen(index_rocksdb_error_text(rig->index)) > 0);
    text[0] = '\0';
    assert_int_equal(rig->index->ops->scan_now(rig->index, "k00030", 6, scan_collect, text),
                     -DL_E_INDEX_CORRUPT);
}

/* What lies behind a prefix is not looked at: a server starts though a leaf is damaged. */
static void
test_scan_stops_before_what_is_damaged(void **state)
{
    struct rig *rig = *state;
    struct index_batch *batch;
    char value[1000];
    uint32_t count = 0;

    rig_open(rig);
    batch = rig->index->ops->batch_create(rig->index);
    memset(value, 'x', sizeof(value));
    /* Four of them fill a block: the leaves begin with the third. */
    for (int i = 0; i < 200; i++) {
        char key[16];

        (void)snprintf(key, sizeof(key), "%c%05d", i < 8 ? 'F' : 'L', i);
        rig->index->ops->batch_put(batch, key, 6, value, i < 8 ? sizeof(value) : 999);
    }
    assert_int_equal(batch_run(rig, batch), 0);
    assert_int_equal(flush_run(rig), 0);
    rig_close(rig);
    damage_tables(rig->path, 9000);
    rig_open(rig);
    assert_int_equal(rig->index->ops->scan_now(rig->index, "F", 1, scan_count, &count), 0);
    assert_int_equal(count, 8);
    assert_int_equal(rig->index->ops->scan_now(rig->index, "L", 1, scan_count, &count),
                     -DL_E_INDEX_CORRUPT);
}

/*
 * The directory goes away under the database: the flush fails, and so does all after it, also when
 * the directory is back.
 */
static void
test_a_write_error_is_final(void **state)
{
    struct rig *rig = *state;
    struct index_batch *batch;
    char moved[128];

    rig_open(rig);
    put(rig, "k", "v");
    (void)snprintf(moved, sizeof(moved), "%s.moved", rig->path);
    assert_int_equal(rename(rig->path, moved), 0);
    assert_int_equal(flush_run(rig), -DL_E_MEDIA_WRITE);
    assert_int_equal(rename(moved, rig->path), 0);
    batch = rig->index->ops->batch_create(rig->index);
    rig->index->ops->batch_put(batch, "k", 1, "w", 1);
    assert_int_equal(batch_run(rig, batch), -DL_E_MEDIA_WRITE);
    assert_int_equal(flush_run(rig), -DL_E_MEDIA_WRITE);
    assert_true(strlen(index_rocksdb_error_text(rig->index)) > 0);
}

static void
test_memory_stays_within_the_budget(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    char value[1024];
    uint64_t most = 0;

    memset(value, 'v', sizeof(value));
    assert_int_equal(rig_open_with(rig, 8 << 20, &err), 0);
    for (uint32_t i = 0; i < 300; i++) {
        struct index_batch *batch = rig->index->ops->batch_create(rig->index);
        uint64_t now;

        for (uint32_t j = 0; j < 100; j++) {
            uint32_t key = (i * 100 + j) * 2654435761u;

            rig->index->ops->batch_put(batch, &key, sizeof(key), value, sizeof(value));
        }
        assert_int_equal(batch_run(rig, batch), 0);
        now = index_rocksdb_memory_bytes(rig->index);
        most = now > most ? now : most;
    }
    assert_true(most > 1 << 20);
    assert_in_range(most, 0, 9 << 20);
    /* 30 MB went in; all of it was written at least once, the newest write buffer apart. */
    assert_int_equal(flush_run(rig), 0);
    assert_true(rig->index->ops->device_bytes_written(rig->index) > 25u << 20);
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_merge_across_flush_and_reopen),
        RIG_TEST(test_scan_is_ordered_and_bounded_by_its_prefix),
        RIG_TEST(test_long_chain_of_gets),
        RIG_TEST(test_death_keeps_a_prefix_with_all_that_was_flushed),
        RIG_TEST(test_open_creates_nothing),
        RIG_TEST(test_format_refuses_a_database),
        RIG_TEST(test_a_second_open_is_refused),
        RIG_TEST(test_damaged_table_is_an_error_not_a_hole),
        RIG_TEST(test_scan_stops_before_what_is_damaged),
        RIG_TEST(test_a_write_error_is_final),
        RIG_TEST(test_memory_stays_within_the_budget),
    };

    if (argc == 4 && strcmp(argv[1], "--child") == 0)
        return crash_child(argv[2], (int)strtol(argv[3], NULL, 10));
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
