/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-disk format: look whether anything on the disk would be lost, zero a file, make the index,
 * and last, so that a format that was interrupted leaves no disk that looks whole, the ring and the
 * superblock.
 */
#include "chunkserver/disk_tool.h"

#include <blkid/blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "chunkserver/disk_file.h"
#include "chunkserver/engine/engine.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "common/text.h"
#include "dlblk/client.h"

#define FILE_BYTES_MIN  (64u << 20)
#define ZERO_STEP_BYTES (4u << 20)
#define META_TIMEOUT_MS 3000u

/* --- uuids --- */

void
uuid_to_text(const uint8_t uuid[SUPERBLOCK_UUID_BYTES], char ret_text[UUID_TEXT_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    char *at = ret_text;

    for (unsigned i = 0; i < SUPERBLOCK_UUID_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = digits[uuid[i] >> 4];
        *at++ = digits[uuid[i] & 15];
    }
    *at = '\0';
}

static int
hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return -1;
}

int
uuid_from_text(const char *what, const char *text, uint8_t ret_uuid[SUPERBLOCK_UUID_BYTES],
               struct dl_error *err)
{
    uint8_t uuid[SUPERBLOCK_UUID_BYTES];
    const char *at = text;
    bool good = strlen(text) == UUID_TEXT_BYTES - 1;

    for (unsigned i = 0; good && i < SUPERBLOCK_UUID_BYTES; i++, at += 2) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            good = *at++ == '-';
        good = good && hex_value(at[0]) >= 0 && hex_value(at[1]) >= 0;
        if (good)
            uuid[i] = (uint8_t)(hex_value(at[0]) << 4 | hex_value(at[1]));
    }
    if (!good)
        return dl_error_set(err, -DL_E_USAGE,
                            "%s: %s is no UUID: 32 hexadecimal digits as "
                            "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx",
                            what, text_quote(text).text);
    memcpy(ret_uuid, uuid, sizeof(uuid));
    return 0;
}

int
uuid_random(uint8_t ret_uuid[SUPERBLOCK_UUID_BYTES], struct dl_error *err)
{
    if (getrandom(ret_uuid, SUPERBLOCK_UUID_BYTES, 0) != SUPERBLOCK_UUID_BYTES)
        return dl_error_set(err, -errno, "cannot get random bytes: %s", dl_err_str(errno));
    ret_uuid[6] = (uint8_t)((ret_uuid[6] & 0x0f) | 0x40);
    ret_uuid[8] = (uint8_t)((ret_uuid[8] & 0x3f) | 0x80);
    return 0;
}

/* --- which cluster --- */

/* The cluster's id: what the administrator said, else what the metadata service says. */
static int
fetch_cluster_id(const struct disk_tool_options *options,
                 uint8_t ret_cluster_id[SUPERBLOCK_UUID_BYTES], struct dl_error *err)
{
    struct dlblk_client_options client_options = {
        .meta = options->meta,
        .program = "dlblk-disk",
        .connect_timeout_ms = META_TIMEOUT_MS,
    };
    struct dlblk_cluster_status status;
    struct dlblk_client *client;
    int result;

    if (options->cluster_id != NULL)
        return uuid_from_text("--cluster-id", options->cluster_id, ret_cluster_id, err);
    result = dlblk_client_create(&client, &client_options, err);
    if (result == 0) {
        result = dlblk_cluster_status(client, &status, err);
        dlblk_client_destroy(client);
    }
    if (result != 0) {
        dl_error_hint(err,
                      "start the metadata service, or name the cluster with --cluster-id UUID");
        return result;
    }
    result = uuid_from_text("the cluster's id", status.cluster_id, ret_cluster_id, err);
    dlblk_cluster_status_fini(&status);
    return result;
}

/* --- what would be lost --- */

/*
 * What libblkid finds at the disk's start and end; 0: nothing it knows.  It reads with buffers of
 * its own, so not through the disk's descriptor, whose O_DIRECT would refuse them.
 */
static int
find_signature(const struct disk_tool_options *options, char *ret_what, size_t what_bytes,
               struct dl_error *err)
{
    blkid_probe probe = blkid_new_probe();
    const char *type = NULL, *usage = NULL;
    int fd = open(options->path, O_RDONLY | O_CLOEXEC);
    int result;

    ret_what[0] = '\0';
    if (fd < 0 || probe == NULL || blkid_probe_set_device(probe, fd, 0, 0) != 0) {
        blkid_free_probe(probe);
        if (fd >= 0)
            (void)close(fd);
        return dl_error_set(err, -DL_E_MEDIA_READ, "%s: cannot look for signatures", options->path);
    }
    (void)blkid_probe_enable_superblocks(probe, 1);
    (void)blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE |
                                                       BLKID_SUBLKS_LABEL);
    (void)blkid_probe_enable_partitions(probe, 1);
    result = blkid_do_safeprobe(probe);
    if (result == 0) {
        if (blkid_probe_lookup_value(probe, "TYPE", &type, NULL) != 0)
            (void)blkid_probe_lookup_value(probe, "PTTYPE", &type, NULL);
        if (blkid_probe_lookup_value(probe, "USAGE", &usage, NULL) != 0)
            usage = "partition table";
        (void)snprintf(ret_what, what_bytes, "%s (%s)", type != NULL ? type : "something", usage);
    } else if (result == -2) {
        (void)snprintf(ret_what, what_bytes, "several signatures");
    }
    blkid_free_probe(probe);
    (void)close(fd);
    if (result == -1)
        return dl_error_set(err, -DL_E_MEDIA_READ, "%s: cannot be read for signatures",
                            options->path);
    return 0;
}

static int
refuse_dlblk_disk(const struct disk_tool_options *options, const struct superblock *superblock,
                  const uint8_t *cluster_id, struct dl_error *err)
{
    char disk_text[UUID_TEXT_BYTES], cluster_text[UUID_TEXT_BYTES];
    bool same = memcmp(superblock->cluster_id, cluster_id, SUPERBLOCK_UUID_BYTES) == 0;

    uuid_to_text(superblock->disk_uuid, disk_text);
    uuid_to_text(superblock->cluster_id, cluster_text);
    (void)dl_error_set(err, same ? -DL_E_DISK_BUSY : -DL_E_DISK_FOREIGN,
                       "%s holds dlblk disk %s of %s cluster %s", options->path, disk_text,
                       same ? "this" : "another", cluster_text);
    dl_error_hint(err, "see what is on it: dlblk-disk inspect %s; --force destroys it",
                  options->path);
    return same ? -DL_E_DISK_BUSY : -DL_E_DISK_FOREIGN;
}

/* A copy of our superblock that this version cannot use: damaged, or of a newer version. */
static int
refuse_unreadable_copy(const struct disk_tool_options *options, const struct superblock_copy *copy,
                       struct dl_error *err)
{
    if (!copy->is_ours)
        return 0;
    (void)dl_error_set(err, -DL_E_DISK_FOREIGN,
                       "%s holds a dlblk superblock that cannot be used: %s", options->path,
                       copy->problem);
    dl_error_hint(err, "see what is on it: dlblk-disk inspect %s; --force destroys it",
                  options->path);
    return -DL_E_DISK_FOREIGN;
}

/* Nothing without --force if the disk holds anything that somebody may want. */
static int
check_contents(const struct disk_tool_options *options, struct disk_file *file,
               const uint8_t *cluster_id, struct dl_error *err)
{
    struct superblock_copy copies[SUPERBLOCK_COPIES];
    char what[128];
    int result;

    if (options->force)
        return 0;
    superblock_copies_read_now(disk_file_disk(file), copies);
    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++)
        if (copies[i].valid)
            return refuse_dlblk_disk(options, &copies[i].superblock, cluster_id, err);
    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
        result = refuse_unreadable_copy(options, &copies[i], err);
        if (result != 0)
            return result;
    }
    result = find_signature(options, what, sizeof(what), err);
    if (result != 0 || what[0] == '\0')
        return result;
    (void)dl_error_set(err, -DL_E_DISK_FOREIGN, "%s holds data: %s", options->path, what);
    dl_error_hint(err, "--force destroys it");
    return -DL_E_DISK_FOREIGN;
}

/* --- the file --- */

static void
show_progress(void *context, uint64_t done_bytes, uint64_t size_bytes)
{
    static uint64_t shown_percent;
    const struct disk_tool_options *options = context;
    uint64_t percent = size_bytes > 0 ? done_bytes * 100 / size_bytes : 100;

    if (options->quiet || isatty(STDERR_FILENO) == 0)
        return;
    if (percent == shown_percent && done_bytes != size_bytes)
        return;
    shown_percent = percent;
    (void)fprintf(stderr, "\rwriting zeroes: %3llu %%%s", (unsigned long long)percent,
                  done_bytes == size_bytes ? "\n" : "");
}

/* An existing file may be sparse, or allocated without having been written. */
static int
zero_file(const struct disk_tool_options *options, struct disk_file *file, struct dl_error *err)
{
    struct disk *disk = disk_file_disk(file);
    void *zeroes = NULL;
    int result = posix_memalign(&zeroes, 4096, ZERO_STEP_BYTES) == 0 ? 0 : -ENOMEM;

    if (result == 0)
        memset(zeroes, 0, ZERO_STEP_BYTES);
    for (uint64_t done = 0; result == 0 && done < disk->size_bytes;) {
        uint64_t step = disk->size_bytes - done;

        if (step > ZERO_STEP_BYTES)
            step = ZERO_STEP_BYTES;
        result = disk->ops->write_now(disk, zeroes, step, done);
        done += step;
        show_progress((void *)(uintptr_t)options, done, disk->size_bytes);
    }
    if (result == 0)
        result = disk->ops->flush_now(disk);
    free(zeroes);
    if (result != 0)
        return dl_error_set(err, result, "%s: cannot write zeroes: %s", options->path,
                            dl_err_str(result));
    return 0;
}

static int
create_file(const struct disk_tool_options *options, struct dl_error *err)
{
    if (strncmp(options->path, "/dev/", strlen("/dev/")) == 0)
        return dl_error_set(err, -ENOENT, "%s does not exist", options->path);
    if (options->size_bytes == 0) {
        (void)dl_error_set(err, -ENOENT, "%s does not exist", options->path);
        dl_error_hint(err, "to make a file there, say how large: --size 4G");
        return -ENOENT;
    }
    return disk_file_create(options->path, options->size_bytes, show_progress,
                            (void *)(uintptr_t)options, err);
}

static int
check_size(const struct disk_tool_options *options, struct disk_file *file, struct dl_error *err)
{
    uint64_t size_bytes = disk_file_disk(file)->size_bytes;

    if (options->size_bytes != 0 && options->size_bytes / 4096 * 4096 != size_bytes)
        return dl_error_set(err, -DL_E_SIZE_INVALID, "%s exists and has %s, not the %s of --size",
                            options->path, text_of_size(size_bytes).text,
                            text_of_size(options->size_bytes).text);
    if (size_bytes < FILE_BYTES_MIN)
        return dl_error_set(err, -DL_E_SIZE_INVALID, "%s has only %s; a disk has at least %s",
                            options->path, text_of_size(size_bytes).text,
                            text_of_size(FILE_BYTES_MIN).text);
    return 0;
}

/* --- the index --- */

/* The default place of a device's index, on a machine that has no dlblk disk yet. */
static int
make_index_directory(const struct disk_tool_options *options, struct dl_error *err)
{
    if (strncmp(options->index_path, DISK_INDEX_DIRECTORY "/", strlen(DISK_INDEX_DIRECTORY "/")) !=
        0)
        return 0;
    if (mkdir(DISK_INDEX_DIRECTORY, 0700) == 0 || errno == EEXIST)
        return 0;
    return dl_error_set(err, -errno, "cannot make the directory " DISK_INDEX_DIRECTORY ": %s",
                        dl_err_str(errno));
}

static int
format_index(const struct disk_tool_options *options, struct dl_error *err)
{
    struct stat index_stat;
    int result = make_index_directory(options, err);

    if (result != 0)
        return result;

    if (stat(options->index_path, &index_stat) == 0 && options->force) {
        result = index_rocksdb_remove(options->index_path, err);
        if (result != 0)
            return result;
    }
    result = index_rocksdb_format(options->index_path, err);
    if (result != 0)
        dl_error_hint(err, "another place: --index DIR; --force replaces an index that is there");
    return result;
}

/* --- all of it --- */

static int
format_disk(const struct disk_tool_options *options, struct disk_file *file,
            const uint8_t *cluster_id, struct dl_error *err)
{
    struct engine_format format = {.meta_address = options->meta,
                                   .created_ms = (uint64_t)time(NULL) * 1000,
                                   .journal_bytes = options->journal_bytes,
                                   .metadata_bytes = options->metadata_bytes};
    char disk_text[UUID_TEXT_BYTES];
    int result;

    memcpy(format.cluster_id, cluster_id, sizeof(format.cluster_id));
    result = uuid_random(format.disk_uuid, err);
    if (result == 0)
        result = format_index(options, err);
    if (result == 0)
        result = engine_format_now(disk_file_disk(file), &format, err);
    if (result != 0)
        return result;
    uuid_to_text(format.disk_uuid, disk_text);
    if (!options->quiet)
        (void)printf("%s: %s, disk %s, index in %s\n", options->path,
                     text_of_size(disk_file_disk(file)->size_bytes).text, disk_text,
                     options->index_path);
    return 0;
}

static int
format_open_disk(const struct disk_tool_options *options, struct disk_file *file, bool created,
                 const uint8_t *cluster_id, struct dl_error *err)
{
    int result = check_size(options, file, err);

    if (result == 0)
        result = check_contents(options, file, cluster_id, err);
    if (result == 0 && !created && !disk_file_is_device(file))
        result = zero_file(options, file, err);
    if (result == 0)
        result = format_disk(options, file, cluster_id, err);
    return result;
}

int
disk_tool_format(const struct disk_tool_options *options, struct dl_error *err)
{
    uint8_t cluster_id[SUPERBLOCK_UUID_BYTES];
    struct disk_file *file = NULL;
    struct stat disk_stat;
    bool created = false;
    int result = fetch_cluster_id(options, cluster_id, err);

    if (result == 0 && stat(options->path, &disk_stat) != 0 && errno == ENOENT) {
        result = create_file(options, err);
        created = result == 0;
    }
    if (result == 0)
        result = disk_file_open(options->path, NULL, &file, err);
    if (result == 0)
        result = format_open_disk(options, file, created, cluster_id, err);
    disk_file_close(file);
    if (result != 0 && created)
        (void)unlink(options->path);
    return result;
}
