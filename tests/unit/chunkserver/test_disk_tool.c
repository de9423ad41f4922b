/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-disk: a formatted file is inspected and checked as whole; what somebody may want to keep is
 * not overwritten without --force; a damaged disk is shown, and told apart.
 */
#include "tests/unit/lib/unit.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/disk_tool.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "chunkserver/engine/journal.h"

#define CLUSTER       "6f2c1e1a-8d0b-4a0e-9a53-0f2f0a4f6c11"
#define OTHER_CLUSTER "00000000-0000-4000-8000-000000000001"
#define DISK_BYTES    (96u << 20)

struct rig {
    char directory[64];
    char path[96];
    struct disk_tool_options options;
    char output[16384]; /* of the last command */
};

static int
rig_setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    assert_non_null(rig);
    (void)snprintf(rig->directory, sizeof(rig->directory), "dlblk-disk-tool-XXXXXX");
    assert_non_null(mkdtemp(rig->directory));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/disk", rig->directory);
    rig->options = (struct disk_tool_options){.path = rig->path,
                                              .cluster_id = CLUSTER,
                                              .meta = "127.0.0.1:7000",
                                              .size_bytes = DISK_BYTES,
                                              .quiet = true};
    (void)snprintf(rig->options.index_path, sizeof(rig->options.index_path), "%s/index",
                   rig->directory);
    *state = rig;
    return 0;
}

static int
rig_teardown(void **state)
{
    struct rig *rig = *state;

    (void)index_rocksdb_remove(rig->options.index_path, NULL);
    (void)rmdir(rig->options.index_path);
    (void)unlink(rig->path);
    assert_int_equal(rmdir(rig->directory), 0);
    free(rig);
    return 0;
}

/* Run a command with its standard output in rig->output. */
static int
run(struct rig *rig,
    int (*command)(const struct disk_tool_options *options, bool *ret_damaged,
                   struct dl_error *err),
    bool *ret_damaged, struct dl_error *err)
{
    FILE *file = tmpfile();
    int saved, result;
    size_t bytes;

    assert_non_null(file);
    (void)fflush(stdout);
    saved = dup(STDOUT_FILENO);
    assert_true(saved >= 0 && dup2(fileno(file), STDOUT_FILENO) >= 0);
    result = command(&rig->options, ret_damaged, err);
    (void)fflush(stdout);
    assert_true(dup2(saved, STDOUT_FILENO) >= 0);
    (void)close(saved);
    rewind(file);
    bytes = fread(rig->output, 1, sizeof(rig->output) - 1, file);
    rig->output[bytes] = '\0';
    (void)fclose(file);
    return result;
}

static void
format_good(struct rig *rig)
{
    struct dl_error err;

    if (disk_tool_format(&rig->options, &err) != 0)
        fail_msg("%s", err.text);
    rig->options.size_bytes = 0;
}

static void
overwrite(struct rig *rig, off_t offset, const void *bytes, size_t length)
{
    int fd = open(rig->path, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, length, offset), length);
    (void)close(fd);
}

static void
test_a_formatted_file_is_whole(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    bool damaged = true;
    json_t *root;
    struct stat found;

    format_good(rig);
    assert_int_equal(stat(rig->path, &found), 0);
    assert_int_equal(found.st_size, DISK_BYTES);
    assert_true((uint64_t)found.st_blocks * 512 >= DISK_BYTES);
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_false(damaged);
    assert_non_null(strstr(rig->output, CLUSTER));
    assert_non_null(strstr(rig->output, "127.0.0.1:7000"));
    damaged = true;
    assert_int_equal(run(rig, disk_tool_check, &damaged, &err), 0);
    assert_false(damaged);
    assert_non_null(strstr(rig->output, "agree"));
    rig->options.json = true;
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    root = json_loads(rig->output, 0, NULL);
    assert_non_null(root);
    assert_int_equal(json_array_size(json_object_get(root, "superblocks")), 2);
    assert_true(json_is_false(json_object_get(root, "damaged")));
    json_decref(root);
    assert_int_equal(run(rig, disk_tool_check, &damaged, &err), 0);
    root = json_loads(rig->output, 0, NULL);
    assert_non_null(root);
    assert_true(json_is_null(json_object_get(root, "differences")));
    json_decref(root);
}

static void
test_check_changes_nothing(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    uint8_t *before = malloc(DISK_BYTES), *after = malloc(DISK_BYTES);
    bool damaged;
    int fd;

    assert_non_null(before);
    assert_non_null(after);
    format_good(rig);
    fd = open(rig->path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, before, DISK_BYTES, 0), DISK_BYTES);
    assert_int_equal(run(rig, disk_tool_check, &damaged, &err), 0);
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_int_equal(pread(fd, after, DISK_BYTES, 0), DISK_BYTES);
    assert_memory_equal(before, after, DISK_BYTES);
    (void)close(fd);
    free(before);
    free(after);
}

static void
test_a_dlblk_disk_is_not_overwritten(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;

    format_good(rig);
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_BUSY);
    assert_non_null(strstr(err.text, CLUSTER));
    assert_non_null(strstr(err.hint, "--force"));
    rig->options.cluster_id = OTHER_CLUSTER;
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_FOREIGN);
    assert_non_null(strstr(err.text, CLUSTER));
    rig->options.force = true;
    format_good(rig);
    rig->options.force = false;
    rig->options.cluster_id = CLUSTER;
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_FOREIGN);
    assert_non_null(strstr(err.text, OTHER_CLUSTER));
}

/* A partition table with one partition. */
static void
test_a_partition_table_is_not_overwritten(void **state)
{
    struct rig *rig = *state;
    uint8_t sector[512] = {0};
    struct dl_error err;
    int fd = open(rig->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    sector[446 + 4] = 0x83;
    sector[446 + 9] = 8;
    sector[446 + 13] = 16;
    sector[510] = 0x55;
    sector[511] = 0xaa;
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    assert_int_equal(pwrite(fd, sector, sizeof(sector), 0), sizeof(sector));
    (void)close(fd);
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_FOREIGN);
    assert_non_null(strstr(err.text, "partition table"));
}

static void
test_other_data_is_not_overwritten(void **state)
{
    static const uint8_t luks[] = {'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1};
    struct rig *rig = *state;
    struct dl_error err;
    int fd = open(rig->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, DISK_BYTES), 0);
    assert_int_equal(pwrite(fd, luks, sizeof(luks), 0), sizeof(luks));
    (void)close(fd);
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_FOREIGN);
    assert_non_null(strstr(err.text, "LUKS"));
    rig->options.force = true;
    format_good(rig);
}

/* A superblock that is damaged is still a reason to ask. */
static void
test_a_damaged_dlblk_disk_is_not_overwritten(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    bool damaged = false;

    format_good(rig);
    overwrite(rig, 60, "XXXX", 4);
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_true(damaged);
    overwrite(rig, DISK_BYTES - 4096 + 60, "XXXX", 4);
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_DISK_FOREIGN);
    damaged = false;
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_true(damaged);
    assert_non_null(strstr(rig->output, "NOT VALID"));
    assert_int_not_equal(run(rig, disk_tool_check, &damaged, &err), 0);
    assert_true(strlen(err.text) > 0);
}

static void
test_a_disk_without_its_index(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    bool damaged = false;

    format_good(rig);
    assert_int_equal(index_rocksdb_remove(rig->options.index_path, &err), 0);
    (void)rmdir(rig->options.index_path);
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_non_null(strstr(rig->output, "not shown"));
    assert_int_equal(run(rig, disk_tool_check, &damaged, &err), -DL_E_NOT_FOUND);
    assert_non_null(strstr(err.text, rig->options.index_path));
}

static void
test_wrong_arguments(void **state)
{
    struct rig *rig = *state;
    struct dl_error err;
    struct stat found;

    rig->options.cluster_id = NULL;
    rig->options.meta = "127.0.0.1:1"; /* nobody there to ask */
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_META_UNREACHABLE);
    assert_non_null(strstr(err.hint, "--cluster-id"));
    rig->options.cluster_id = "6f2c1e1a-8d0b-4a0e-9a53-0f2f0a4f6cXX";
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_USAGE);
    rig->options.cluster_id = "6f2c1e1a";
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_USAGE);
    rig->options.cluster_id = CLUSTER;
    rig->options.size_bytes = 0;
    assert_int_equal(disk_tool_format(&rig->options, &err), -ENOENT);
    assert_non_null(strstr(err.hint, "--size"));
    rig->options.size_bytes = 1 << 20;
    assert_int_equal(disk_tool_format(&rig->options, &err), -DL_E_SIZE_INVALID);
    /* What a failed format made is gone again. */
    assert_int_equal(stat(rig->path, &found), -1);
}

static void
test_uuid_text(void **state)
{
    uint8_t uuid[SUPERBLOCK_UUID_BYTES], again[SUPERBLOCK_UUID_BYTES];
    char text[UUID_TEXT_BYTES];
    struct dl_error err;

    (void)state;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(uuid_random(uuid, &err), 0);
        uuid_to_text(uuid, text);
        assert_int_equal(strlen(text), UUID_TEXT_BYTES - 1);
        assert_int_equal(text[14], '4');
        assert_int_equal(uuid_from_text("x", text, again, &err), 0);
        assert_memory_equal(uuid, again, sizeof(uuid));
    }
    assert_int_equal(uuid_from_text("--it", "", again, &err), -DL_E_USAGE);
    assert_non_null(strstr(err.text, "--it"));
}

/* --- a disk whose server was killed --- */

static void
write_journal_block(struct disk *disk, const struct superblock *superblock, uint64_t lsn,
                    uint64_t tail)
{
    static _Alignas(UNIT_BYTES) uint8_t buffer[UNIT_BYTES];
    uint64_t place = lsn % (superblock->geometry.ring_bytes / UNIT_BYTES);
    struct journal_header header = {
        .incarnation = superblock->incarnation, .lsn = lsn, .mark = lsn, .tail = tail};
    struct journal_compose compose;

    memcpy(header.disk_uuid, superblock->disk_uuid, sizeof(header.disk_uuid));
    journal_compose_init(&compose, buffer, sizeof(buffer));
    assert_int_equal(journal_compose_seal(&compose, &header), 1);
    assert_int_equal(disk->ops->write_now(disk, buffer, sizeof(buffer),
                                          superblock->geometry.ring_offset + place * UNIT_BYTES),
                     0);
}

/*
 * A second life that wrote more than the ring holds, killed at `end`; without the block at
 * `missing`.  The tail of its start, in the superblock, is overwritten.
 */
static void
make_killed_disk(struct rig *rig, uint64_t missing, struct superblock *ret_superblock)
{
    struct superblock *superblock = ret_superblock;
    struct disk_file *file;
    struct disk *disk;
    struct dl_error err;
    uint64_t units;

    format_good(rig);
    assert_int_equal(disk_file_open(rig->path, NULL, &file, &err), 0);
    disk = disk_file_disk(file);
    assert_int_equal(superblock_load_now(disk, superblock, &err), 0);
    units = superblock->geometry.ring_bytes / UNIT_BYTES;
    superblock->incarnation = 2;
    superblock->tail = units;
    superblock->cut = units + 8;
    superblock->clean = false;
    assert_int_equal(superblock_store_now(disk, superblock, &err), 0);
    for (uint64_t lsn = superblock->cut; lsn < 2 * units + 50; lsn++)
        if (lsn != 2 * units + missing)
            write_journal_block(disk, superblock, lsn, lsn - 40);
    disk_file_close(file);
}

static json_int_t
journal_number(struct rig *rig, const char *name)
{
    json_t *root = json_loads(rig->output, 0, NULL);
    json_t *number;
    json_int_t result;

    assert_non_null(root);
    number = json_object_get(json_object_get(root, "journal"), name);
    assert_true(json_is_integer(number));
    result = json_integer_value(number);
    json_decref(root);
    return result;
}

/*
 * A ring that has gone around since the start is whole, though the place where that start began to
 * replay is overwritten; a block that is missing behind the newest tail is damage, unless a server
 * is writing at the same time.
 */
static void
test_inspect_after_a_kill(void **state)
{
    struct rig *rig = *state;
    struct superblock superblock;
    struct disk_file *file;
    struct dl_error err;
    bool damaged = true;
    uint64_t units;

    rig->options.json = true;
    make_killed_disk(rig, UINT64_MAX / 2, &superblock);
    units = superblock.geometry.ring_bytes / UNIT_BYTES;
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_false(damaged);
    assert_int_equal(journal_number(rig, "tail"), 2 * units + 9);
    assert_int_equal(journal_number(rig, "mark"), 2 * units + 49);
    assert_int_equal(journal_number(rig, "chain_end"), 2 * units + 50);

    rig->options.force = true;
    make_killed_disk(rig, 20, &superblock);
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_true(damaged);
    assert_int_equal(journal_number(rig, "chain_end"), 2 * units + 20);

    assert_int_equal(disk_file_open(rig->path, NULL, &file, &err), 0);
    damaged = false;
    assert_int_equal(run(rig, disk_tool_inspect, &damaged, &err), 0);
    assert_false(damaged);
    disk_file_close(file);
}

#define RIG_TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

UNIT_MAIN(RIG_TEST(test_a_formatted_file_is_whole), RIG_TEST(test_check_changes_nothing),
          RIG_TEST(test_a_dlblk_disk_is_not_overwritten),
          RIG_TEST(test_other_data_is_not_overwritten),
          RIG_TEST(test_a_partition_table_is_not_overwritten),
          RIG_TEST(test_a_damaged_dlblk_disk_is_not_overwritten),
          RIG_TEST(test_a_disk_without_its_index), RIG_TEST(test_inspect_after_a_kill),
          RIG_TEST(test_wrong_arguments), cmocka_unit_test(test_uuid_text))
