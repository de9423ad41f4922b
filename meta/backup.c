/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/crc32c.h"
#include "common/le.h"
#include "common/version.h"
#include "meta/limits.h"
#include "meta/memory.h"
#include "meta/meta.pb-c.h"
#include "meta/offline.h"
#include "meta/schema.h"

#define MAGIC            "DLBLKMB1"
#define MAGIC_BYTES      8u
#define RECORD_HEAD      8u
#define RECORD_BYTES_MAX (STORE_VALUE_BYTES_MAX + 1024u)
#define RESTORE_BATCH    1000u
#define PATH_BYTES       4096

static bool
key_is(struct store_bytes key, const char *text)
{
    return key.length_bytes == strlen(text) && memcmp(key.bytes, text, key.length_bytes) == 0;
}

static bool
key_begins(struct store_bytes key, const char *prefix)
{
    return key.length_bytes >= strlen(prefix) && memcmp(key.bytes, prefix, strlen(prefix)) == 0;
}

static void
report_count(struct backup_report *report, struct store_bytes key)
{
    report->items++;
    report->volumes += key_begins(key, "volume/");
    report->segments += key_begins(key, "segment/");
    report->servers += key_begins(key, "server/");
}

/* --- writing --- */

struct writer {
    FILE *file;
    const char *path;
    uint32_t crc; /* over the records' CRCs */
    struct backup_report report;
    bool header_written;
};

static int
writer_failed(const struct writer *writer, struct dl_error *err)
{
    int code = errno != 0 ? -errno : -EIO;

    return dl_error_set(err, code, "%s can not be written: %s", writer->path, dl_err_str(code));
}

static int
writer_put(struct writer *writer, const Dl__Meta__BackupRecord *record, struct dl_error *err)
{
    size_t bytes = dl__meta__backup_record__get_packed_size(record);
    DL_CLEANUP(free) uint8_t *packed = meta_alloc(RECORD_HEAD + bytes);
    uint32_t crc;

    (void)dl__meta__backup_record__pack(record, packed + RECORD_HEAD);
    crc = crc32c(0, packed + RECORD_HEAD, bytes);
    le32_store(packed, (uint32_t)bytes);
    le32_store(packed + 4, crc);
    writer->crc = crc32c(writer->crc, packed + 4, 4);
    writer->report.bytes += RECORD_HEAD + bytes;
    errno = 0;
    if (fwrite(packed, RECORD_HEAD + bytes, 1, writer->file) != 1)
        return writer_failed(writer, err);
    return 0;
}

static int
writer_put_header(struct writer *writer, const Dl__Meta__ClusterRecord *cluster,
                  struct dl_error *err)
{
    Dl__Meta__BackupRecord record = DL__META__BACKUP_RECORD__INIT;
    Dl__Meta__BackupHeader header = DL__META__BACKUP_HEADER__INIT;

    header.format_version = BACKUP_FORMAT_VERSION;
    header.schema_version = META_SCHEMA_VERSION;
    header.cluster_id = cluster->cluster_id;
    header.created_ms = writer->report.created_ms = clock_wall_ms();
    header.software = (char *)(uintptr_t)dlblk_version_text("dlblk-meta");
    record.record_case = DL__META__BACKUP_RECORD__RECORD_HEADER;
    record.header = &header;
    errno = 0;
    if (fwrite(MAGIC, MAGIC_BYTES, 1, writer->file) != 1)
        return writer_failed(writer, err);
    return writer_put(writer, &record, err);
}

/* The cluster's and the schema's records are looked at before anything else is written. */
static int
backup_read_identity(void *context, struct store_item item, struct dl_error *err)
{
    struct writer *writer = context;
    int result = 0;

    if (key_is(item.key, "schema")) {
        Dl__Meta__SchemaRecord *schema = dl__meta__schema_record__unpack(
            NULL, item.value.length_bytes, item.value.bytes);

        if (schema == NULL || schema->version != META_SCHEMA_VERSION)
            result = dl_error_set(err, -DL_E_STORE_FORMAT,
                                  "the metadata store has schema version %" PRIu32
                                  ", this program knows version %u",
                                  schema == NULL ? 0 : schema->version, META_SCHEMA_VERSION);
        if (schema != NULL)
            dl__meta__schema_record__free_unpacked(schema, NULL);
    } else if (key_is(item.key, "cluster")) {
        Dl__Meta__ClusterRecord *cluster = dl__meta__cluster_record__unpack(
            NULL, item.value.length_bytes, item.value.bytes);

        if (cluster == NULL || cluster->cluster_id.len != META_ID_BYTES) {
            result = dl_error_set(err, -DL_E_STORE_DAMAGED,
                                  "the record of the cluster's id is damaged");
        } else {
            memcpy(writer->report.cluster_id, cluster->cluster_id.data, META_ID_BYTES);
            result = writer_put_header(writer, cluster, err);
            writer->header_written = result == 0;
        }
        if (cluster != NULL)
            dl__meta__cluster_record__free_unpacked(cluster, NULL);
    }
    return result;
}

static int
backup_write_item(void *context, struct store_item item, struct dl_error *err)
{
    struct writer *writer = context;
    Dl__Meta__BackupRecord record = DL__META__BACKUP_RECORD__INIT;
    Dl__Meta__BackupItem message = DL__META__BACKUP_ITEM__INIT;

    if (key_is(item.key, "leader"))
        return 0; /* of this process, not of the cluster */
    message.key = (ProtobufCBinaryData){item.key.length_bytes,
                                        (uint8_t *)(uintptr_t)item.key.bytes};
    message.value = (ProtobufCBinaryData){item.value.length_bytes,
                                          (uint8_t *)(uintptr_t)item.value.bytes};
    record.record_case = DL__META__BACKUP_RECORD__RECORD_ITEM;
    record.item = &message;
    report_count(&writer->report, item.key);
    return writer_put(writer, &record, err);
}

static int
writer_put_end(struct writer *writer, struct dl_error *err)
{
    Dl__Meta__BackupRecord record = DL__META__BACKUP_RECORD__INIT;
    Dl__Meta__BackupEnd end = DL__META__BACKUP_END__INIT;

    end.item_count = writer->report.items;
    end.items_crc = writer->crc;
    record.record_case = DL__META__BACKUP_RECORD__RECORD_END;
    record.end = &end;
    return writer_put(writer, &record, err);
}

static int
backup_write_all(struct writer *writer, struct offline *offline, struct dl_error *err)
{
    int result = offline_walk(offline, backup_read_identity, writer, err);

    if (result == 0 && !writer->header_written)
        result = dl_error_set(err, -DL_E_STORE_FORMAT, "the metadata store holds no cluster");
    if (result == 0)
        result = offline_walk(offline, backup_write_item, writer, err);
    if (result == 0)
        result = writer_put_end(writer, err);
    errno = 0;
    if (result == 0 && (fflush(writer->file) != 0 || fsync(fileno(writer->file)) < 0))
        result = writer_failed(writer, err);
    return result;
}

/* FILE.new takes FILE's place: a crash leaves the old one, or none. */
static int
backup_publish(const char *from, const char *to, bool replace, struct dl_error *err)
{
    char dir[PATH_BYTES];
    char *slash;
    DL_CLEANUP(close) int fd = -1;

    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, replace ? 0 : RENAME_NOREPLACE) < 0) {
        int code = -errno;

        (void)unlink(from);
        (void)dl_error_set(err, code, "%s can not be made: %s", to, dl_err_str(code));
        if (code == -EEXIST)
            dl_error_hint(err, "name another file, or replace it with --force");
        return code;
    }
    (void)snprintf(dir, sizeof(dir), "%s", to);
    slash = strrchr(dir, '/');
    if (slash == NULL)
        (void)snprintf(dir, sizeof(dir), ".");
    else
        slash[slash == dir] = '\0';
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return dl_error_set(err, -errno, "the directory of %s can not be synced: %s", to,
                            dl_err_str(-errno));
    return 0;
}

int
backup_write(const char *dir, const char *file, bool replace, struct backup_report *ret_report,
             struct dl_error *err)
{
    struct writer writer = {.path = file};
    struct offline *offline = NULL;
    char temporary[PATH_BYTES];
    int result;

    if (snprintf(temporary, sizeof(temporary), "%s.new", file) >= (int)sizeof(temporary))
        return dl_error_set(err, -ENAMETOOLONG, "the name of the backup file is too long");
    if (!replace && access(file, F_OK) == 0) {
        (void)dl_error_set(err, -EEXIST, "%s exists already", file);
        dl_error_hint(err, "name another file, or replace it with --force");
        return -EEXIST;
    }
    result = offline_open(&offline, dir, err);
    if (result < 0)
        return result;
    writer.file = fopen(temporary, "we");
    if (writer.file == NULL) {
        result = writer_failed(&writer, err);
    } else {
        result = backup_write_all(&writer, offline, err);
        if (fclose(writer.file) != 0 && result == 0)
            result = writer_failed(&writer, err);
        if (result < 0)
            (void)unlink(temporary);
        else
            result = backup_publish(temporary, file, replace, err);
    }
    offline_close(offline);
    if (result == 0)
        *ret_report = writer.report;
    return result;
}

/* --- reading --- */

struct reader {
    FILE *file;
    const char *path;
    uint64_t offset;
    uint32_t crc;
    Dl__Meta__BackupRecord *record; /* the last one */
};

static int
reader_damaged(const struct reader *reader, const char *why, struct dl_error *err)
{
    (void)dl_error_set(err, -DL_E_STORE_DAMAGED, "%s is damaged at byte %" PRIu64 ": %s",
                       reader->path, reader->offset, why);
    dl_error_hint(err, "use another backup; nothing was restored");
    return err->code;
}

static int
reader_take(struct reader *reader, void *bytes, size_t length_bytes, struct dl_error *err)
{
    errno = 0;
    if (fread(bytes, 1, length_bytes, reader->file) == length_bytes)
        return 0;
    if (ferror(reader->file))
        return dl_error_set(err, errno != 0 ? -errno : -EIO, "%s can not be read: %s", reader->path,
                            dl_err_str(errno != 0 ? errno : EIO));
    return reader_damaged(reader, "it ends here", err);
}

static void
reader_drop(struct reader *reader)
{
    if (reader->record != NULL)
        dl__meta__backup_record__free_unpacked(reader->record, NULL);
    reader->record = NULL;
}

static int
reader_next(struct reader *reader, struct dl_error *err)
{
    uint8_t head[RECORD_HEAD];
    DL_CLEANUP(free) uint8_t *packed = NULL;
    uint32_t bytes;
    int result;

    reader_drop(reader);
    result = reader_take(reader, head, sizeof(head), err);
    if (result < 0)
        return result;
    bytes = le32_load(head);
    if (bytes > RECORD_BYTES_MAX)
        return reader_damaged(reader, "a record is too long", err);
    packed = meta_alloc(bytes);
    result = reader_take(reader, packed, bytes, err);
    if (result < 0)
        return result;
    if (crc32c(0, packed, bytes) != le32_load(head + 4))
        return reader_damaged(reader, "a record does not match its checksum", err);
    reader->record = dl__meta__backup_record__unpack(NULL, bytes, packed);
    if (reader->record == NULL ||
        reader->record->record_case == DL__META__BACKUP_RECORD__RECORD__NOT_SET)
        return reader_damaged(reader, "a record is no such message", err);
    reader->offset += sizeof(head) + bytes;
    if (reader->record->record_case != DL__META__BACKUP_RECORD__RECORD_END)
        reader->crc = crc32c(reader->crc, head + 4, 4);
    return 0;
}

static int
reader_check_header(struct reader *reader, struct backup_report *report, struct dl_error *err)
{
    const Dl__Meta__BackupHeader *header;
    int result = reader_next(reader, err);

    if (result < 0)
        return result;
    dl_assert(reader->record != NULL);
    if (reader->record->record_case != DL__META__BACKUP_RECORD__RECORD_HEADER)
        return reader_damaged(reader, "the header is missing", err);
    header = reader->record->header;
    if (header->format_version != BACKUP_FORMAT_VERSION ||
        header->schema_version != META_SCHEMA_VERSION)
        return dl_error_set(err, -DL_E_STORE_FORMAT,
                            "%s has format %" PRIu32 " and schema %" PRIu32
                            ", this program knows %u and %u",
                            reader->path, header->format_version, header->schema_version,
                            BACKUP_FORMAT_VERSION, META_SCHEMA_VERSION);
    if (header->cluster_id.len != META_ID_BYTES)
        return reader_damaged(reader, "the cluster's id has a wrong length", err);
    memcpy(report->cluster_id, header->cluster_id.data, META_ID_BYTES);
    report->created_ms = header->created_ms;
    return 0;
}

static int
reader_check_end(struct reader *reader, uint64_t items, struct dl_error *err)
{
    const Dl__Meta__BackupEnd *end = reader->record->end;

    if (end->item_count != items || end->items_crc != reader->crc)
        return reader_damaged(reader, "records are missing or doubled", err);
    if (fgetc(reader->file) != EOF)
        return reader_damaged(reader, "there is more behind the end", err);
    return 0;
}

/* From the beginning; on_item may be NULL: only checked. */
static int
reader_walk(struct reader *reader, struct backup_report *report,
            int (*on_item)(void *context, const Dl__Meta__BackupItem *item, struct dl_error *err),
            void *context, struct dl_error *err)
{
    char magic[MAGIC_BYTES];
    int result;

    rewind(reader->file);
    reader->offset = MAGIC_BYTES;
    reader->crc = 0;
    *report = (struct backup_report){0};
    if (fread(magic, MAGIC_BYTES, 1, reader->file) != 1 || memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
        return dl_error_set(err, -DL_E_STORE_FORMAT, "%s is no backup of dlblk-meta", reader->path);
    result = reader_check_header(reader, report, err);
    while (result == 0) {
        struct store_bytes key;

        result = reader_next(reader, err);
        if (result < 0)
            break;
        dl_assert(reader->record != NULL);
        if (reader->record->record_case == DL__META__BACKUP_RECORD__RECORD_END)
            return reader_check_end(reader, report->items, err);
        if (reader->record->record_case != DL__META__BACKUP_RECORD__RECORD_ITEM)
            return reader_damaged(reader, "a second header", err);
        key = (struct store_bytes){reader->record->item->key.data,
                                   (uint32_t)reader->record->item->key.len};
        if (key.length_bytes == 0 || key.length_bytes > STORE_KEY_BYTES_MAX)
            return reader_damaged(reader, "a key has a wrong length", err);
        report_count(report, key);
        if (on_item != NULL)
            result = on_item(context, reader->record->item, err);
    }
    report->bytes = reader->offset;
    return result;
}

/* --- restoring --- */

struct restore {
    struct offline *offline;
    struct store_batch batch;
    struct store_batch last; /* the schema: it makes the store complete */
    struct backup_report *report;
    const char *path;
};

static int
restore_damaged(const struct restore *restore, const char *what, struct dl_error *err)
{
    return dl_error_set(err, -DL_E_STORE_DAMAGED, "%s holds a damaged record of %s", restore->path,
                        what);
}

/*
 * Owners since the backup have had higher lease epochs, which nobody remembers but the
 * chunkservers: the next one must be above all of them.  What they left unfinished is unknown, so
 * the next owner takes over.
 */
static int
restore_volume(struct restore *restore, struct store_bytes key, struct store_bytes value,
               struct dl_error *err)
{
    Dl__Meta__VolumeRecord *record = dl__meta__volume_record__unpack(NULL, value.length_bytes,
                                                                     value.bytes);

    if (record == NULL || record->lease_epoch > META_LEASE_EPOCH_MAX) {
        if (record != NULL)
            dl__meta__volume_record__free_unpacked(record, NULL);
        return restore_damaged(restore, "a volume", err);
    }
    record->lease_epoch += BACKUP_LEASE_EPOCHS_SKIP;
    if (record->lease_epoch >= META_LEASE_EPOCH_MAX) {
        record->lease_epoch = META_LEASE_EPOCH_MAX;
        restore->report->volumes_at_end++;
    }
    record->clean = false;
    record->ready = false;
    record->takeover = false;
    record->attach_id.len = 0; /* unpacked data stays allocated, and is freed with the record */
    store_batch_put_message(&restore->batch, key, &record->base);
    dl__meta__volume_record__free_unpacked(record, NULL);
    return 0;
}

static int
restore_counter(struct restore *restore, struct store_bytes key, struct store_bytes value,
                uint64_t skip, struct dl_error *err)
{
    Dl__Meta__CounterRecord *record = dl__meta__counter_record__unpack(NULL, value.length_bytes,
                                                                       value.bytes);

    if (record == NULL)
        return restore_damaged(restore, "a counter", err);
    record->next += skip;
    store_batch_put_message(&restore->batch, key, &record->base);
    dl__meta__counter_record__free_unpacked(record, NULL);
    return 0;
}

static int
restore_cluster(struct restore *restore, struct store_bytes key, struct store_bytes value,
                struct dl_error *err)
{
    Dl__Meta__ClusterRecord *record = dl__meta__cluster_record__unpack(NULL, value.length_bytes,
                                                                       value.bytes);

    if (record == NULL)
        return restore_damaged(restore, "the cluster", err);
    record->restores++;
    record->restored_ms = clock_wall_ms();
    store_batch_put_message(&restore->batch, key, &record->base);
    dl__meta__cluster_record__free_unpacked(record, NULL);
    return 0;
}

static int
restore_flush(struct restore *restore, uint32_t at_least, struct dl_error *err)
{
    int result;

    if (restore->batch.count < at_least || restore->batch.count == 0)
        return 0;
    result = offline_commit(restore->offline, &restore->batch, err);
    store_batch_fini(&restore->batch);
    return result;
}

static int
restore_item(void *context, const Dl__Meta__BackupItem *item, struct dl_error *err)
{
    struct restore *restore = context;
    struct store_bytes key = {item->key.data, (uint32_t)item->key.len};
    struct store_bytes value = {item->value.data, (uint32_t)item->value.len};
    int result = 0;

    if (key_is(key, "schema"))
        store_batch_put(&restore->last, key, value);
    else if (key_is(key, "cluster"))
        result = restore_cluster(restore, key, value, err);
    else if (key_is(key, "next/volume"))
        result = restore_counter(restore, key, value, BACKUP_VOLUME_IDS_SKIP, err);
    else if (key_is(key, "next/server"))
        result = restore_counter(restore, key, value, BACKUP_SERVER_IDS_SKIP, err);
    else if (key_begins(key, "volume/"))
        result = restore_volume(restore, key, value, err);
    else if (key_begins(key, "server/") || key_begins(key, "segment/") ||
             key_begins(key, "removal/") || key_begins(key, "event/"))
        store_batch_put(&restore->batch, key, value);
    else
        result = restore_damaged(restore, "an unknown kind", err);
    return result < 0 ? result : restore_flush(restore, RESTORE_BATCH, err);
}

static int
restore_all(struct restore *restore, struct reader *reader, struct dl_error *err)
{
    struct backup_report counted;
    int result = reader_walk(reader, &counted, restore_item, restore, err);

    if (result == 0)
        result = restore_flush(restore, 1, err);
    if (result == 0 && restore->last.count != 1)
        result = restore_damaged(restore, "the schema", err);
    if (result == 0)
        result = offline_commit(restore->offline, &restore->last, err);
    return result;
}

int
backup_restore(const char *dir, const char *file, struct backup_report *ret_report,
               struct dl_error *err)
{
    struct reader reader = {.path = file, .file = fopen(file, "re")};
    struct backup_report report;
    struct restore restore = {.report = &report, .path = file};
    int result;

    if (reader.file == NULL)
        return dl_error_set(err, -errno, "%s can not be read: %s", file, dl_err_str(-errno));
    /* All of it is checked before anything is made. */
    result = reader_walk(&reader, &report, NULL, NULL, err);
    if (result == 0)
        result = offline_create(&restore.offline, dir, err);
    if (result == 0) {
        result = restore_all(&restore, &reader, err);
        if (result == 0)
            result = offline_finish(restore.offline, err);
        else
            offline_close(restore.offline);
    }
    store_batch_fini(&restore.batch);
    store_batch_fini(&restore.last);
    reader_drop(&reader);
    (void)fclose(reader.file);
    if (result == 0)
        *ret_report = report;
    return result;
}
