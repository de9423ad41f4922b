/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dlblk-disk inspect: what a disk says about itself, read only.  Everything is described as far as
 * it can be understood:  a disk that no server would start with is shown as well.
 */
#include "chunkserver/disk_tool.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/disk_file.h"
#include "chunkserver/engine/format.h"
#include "chunkserver/engine/index_rocksdb.h"
#include "chunkserver/engine/journal.h"
#include "common/crc32c.h"
#include "common/text.h"

#define SCAN_STEP_BYTES (1u << 20) /* plus the longest journal block */

struct journal_summary {
    bool readable;
    uint64_t read_errors;               /* places that the drive did not give */
    uint64_t blocks;                    /* whole ones, at their place */
    uint64_t torn;                      /* a header that is right, a body that is not */
    uint64_t below_cut, current, stale; /* of the whole ones: which count, and which do not */
    uint64_t lsn_first, lsn_end, mark;  /* of those that count */
    uint64_t tail;                      /* the newest one: the ring is overwritten up to it */
    uint64_t chain_end;                 /* the chain from the tail on reaches so far */
    uint64_t *lsns;                     /* of those that count, for the chain: lsn, end, ... */
    size_t lsn_count, lsn_capacity;
};

struct index_chunk_seen {
    struct chunk_key key;
    uint32_t incarnation, config_epoch, pending_count;
    uint64_t stable_version;
    bool deleting;
};

struct index_summary {
    bool opened;
    char problem[DL_ERROR_TEXT_BYTES];
    bool has_position;
    bool same_disk;
    uint64_t position, lsn_highest, incarnation;
    struct index_chunk_seen *chunks;
    size_t chunk_count, chunk_capacity;
    uint64_t bad_values, fences, bad_blocks;
};

struct inspection {
    const struct disk_tool_options *options;
    struct disk_file *file;
    struct superblock_copy copies[SUPERBLOCK_COPIES];
    const struct superblock *newest; /* NULL: no valid copy */
    struct journal_summary journal;
    struct index_summary index;
    bool in_use; /* what is shown of the journal may have changed while it was read */
    bool damaged;
};

/* --- the journal --- */

static void
journal_remember(struct journal_summary *summary, uint64_t lsn, uint64_t end)
{
    if (summary->lsn_count + 2 > summary->lsn_capacity) {
        size_t capacity = summary->lsn_capacity * 2 + 256;
        uint64_t *lsns = realloc(summary->lsns, capacity * sizeof(*lsns));

        if (lsns == NULL)
            return;
        summary->lsns = lsns;
        summary->lsn_capacity = capacity;
    }
    summary->lsns[summary->lsn_count++] = lsn;
    summary->lsns[summary->lsn_count++] = end;
}

static void
journal_count_block(struct journal_summary *summary, const struct superblock *superblock,
                    const struct journal_header *header)
{
    bool below = header->lsn < superblock->cut;
    uint64_t end = header->lsn + header->units;

    summary->blocks++;
    summary->below_cut += below;
    if (!below && header->incarnation != superblock->incarnation) {
        summary->stale++;
        return;
    }
    summary->current += !below;
    if (summary->lsn_count == 0 || header->lsn < summary->lsn_first)
        summary->lsn_first = header->lsn;
    if (end > summary->lsn_end)
        summary->lsn_end = end;
    if (header->mark > summary->mark)
        summary->mark = header->mark;
    if (header->tail > summary->tail)
        summary->tail = header->tail;
    journal_remember(summary, header->lsn, end);
}

static void
journal_look_at(struct journal_summary *summary, const struct superblock *superblock,
                const uint8_t *bytes, uint32_t available_bytes, uint64_t unit)
{
    uint64_t ring_units = superblock->geometry.ring_bytes / UNIT_BYTES;
    struct journal_header header;

    if (journal_header_check(bytes, superblock->disk_uuid, &header, NULL) != 0)
        return;
    if (header.lsn % ring_units != unit)
        return;
    if (journal_block_check(bytes, available_bytes, superblock->disk_uuid, &header, NULL) != 0) {
        summary->torn++;
        return;
    }
    journal_count_block(summary, superblock, &header);
}

static int
compare_lsn_pairs(const void *a, const void *b)
{
    const uint64_t *first = a, *second = b;

    return (first[0] > second[0]) - (first[0] < second[0]);
}

/* From the tail on, block after block: how far without a gap. */
static void
journal_walk_chain(struct journal_summary *summary)
{
    if (summary->lsn_count > 0)
        qsort(summary->lsns, summary->lsn_count / 2, 2 * sizeof(uint64_t), compare_lsn_pairs);
    summary->chain_end = summary->tail;
    for (size_t i = 0; i < summary->lsn_count; i += 2)
        if (summary->lsns[i] == summary->chain_end)
            summary->chain_end = summary->lsns[i + 1];
}

/* What must be there for a server to start is not. */
static bool
journal_has_gap(const struct journal_summary *summary, const struct superblock *superblock)
{
    uint64_t needed = summary->mark > superblock->cut ? summary->mark : superblock->cut;

    return summary->chain_end < needed;
}

/* Read a piece of the ring; what the drive doesn't give counts as zeroes. */
static void
journal_read(struct inspection *inspection, uint8_t *buffer, uint64_t offset_bytes, uint64_t bytes)
{
    struct disk *disk = disk_file_disk(inspection->file);

    if (disk->ops->read_now(disk, buffer, bytes, offset_bytes) == 0)
        return;
    memset(buffer, 0, bytes);
    for (uint64_t at = 0; at < bytes; at += UNIT_BYTES)
        if (disk->ops->read_now(disk, buffer + at, UNIT_BYTES, offset_bytes + at) != 0)
            inspection->journal.read_errors++;
}

static void
inspect_journal(struct inspection *inspection)
{
    const struct superblock *superblock = inspection->newest;
    const struct superblock_geometry *geometry = &superblock->geometry;
    struct journal_summary *summary = &inspection->journal;
    void *buffer = NULL;

    if (geometry->ring_offset + geometry->ring_bytes > disk_file_disk(inspection->file)->size_bytes)
        return;
    if (posix_memalign(&buffer, UNIT_BYTES, SCAN_STEP_BYTES + JOURNAL_BYTES_MAX) != 0)
        return;
    summary->readable = true;
    /* As of the last start; the blocks written since then know better. */
    summary->tail = superblock->tail;
    for (uint64_t at = 0; at < geometry->ring_bytes; at += SCAN_STEP_BYTES) {
        uint64_t left = geometry->ring_bytes - at;
        uint64_t bytes = left < SCAN_STEP_BYTES + JOURNAL_BYTES_MAX
                             ? left
                             : SCAN_STEP_BYTES + JOURNAL_BYTES_MAX;

        journal_read(inspection, buffer, geometry->ring_offset + at, bytes);
        for (uint64_t unit = 0; unit * UNIT_BYTES < bytes && unit * UNIT_BYTES < SCAN_STEP_BYTES;
             unit++)
            journal_look_at(summary, superblock, (uint8_t *)buffer + unit * UNIT_BYTES,
                            (uint32_t)(bytes - unit * UNIT_BYTES), at / UNIT_BYTES + unit);
    }
    free(buffer);
    journal_walk_chain(summary);
    if (summary->read_errors > 0 || (journal_has_gap(summary, superblock) && !inspection->in_use))
        inspection->damaged = true;
}

/* --- the index --- */

static bool
value_is_whole(const uint8_t *value, uint32_t value_bytes, size_t least_bytes)
{
    return value_bytes >= least_bytes &&
           le32_load(value) == crc32c(0, value + sizeof(le32), value_bytes - sizeof(le32));
}

static int
index_see_chunk(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
                uint32_t value_bytes)
{
    struct index_summary *summary = context;
    const struct index_chunk_disk *disk = (const void *)value;

    (void)key;
    (void)key_bytes;
    if (!value_is_whole(value, value_bytes, sizeof(*disk))) {
        summary->bad_values++;
        return 0;
    }
    if (summary->chunk_count == summary->chunk_capacity) {
        size_t capacity = summary->chunk_capacity * 2 + 64;
        struct index_chunk_seen *chunks = realloc(summary->chunks,
                                                  capacity * sizeof(summary->chunks[0]));

        if (chunks == NULL)
            return -DL_E_NO_MEMORY;
        summary->chunks = chunks;
        summary->chunk_capacity = capacity;
    }
    summary->chunks[summary->chunk_count++] = (struct index_chunk_seen){
        .key = {.volume = le64_get(disk->volume),
                .segment = le32_get(disk->segment),
                .slot = le32_get(disk->slot)},
        .incarnation = le32_get(disk->incarnation),
        .config_epoch = le32_get(disk->config_epoch),
        .stable_version = le64_get(disk->stable_version),
        .pending_count = le32_get(disk->pending_count),
        .deleting = le32_get(disk->state) == CHUNK_DELETING,
    };
    return 0;
}

struct position_scan {
    struct index_summary *summary;
    const struct superblock *superblock;
};

static int
index_see_position(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
                   uint32_t value_bytes)
{
    struct position_scan *scan = context;
    struct index_summary *summary = scan->summary;
    const struct index_position_disk *disk = (const void *)value;

    (void)key;
    (void)key_bytes;
    if (!value_is_whole(value, value_bytes, sizeof(*disk))) {
        summary->bad_values++;
        return 0;
    }
    summary->has_position = true;
    summary->position = le64_get(disk->position);
    summary->lsn_highest = le64_get(disk->lsn_highest);
    summary->incarnation = le64_get(disk->incarnation);
    summary->same_disk = scan->superblock == NULL ||
                         memcmp(disk->disk_uuid, scan->superblock->disk_uuid,
                                sizeof(disk->disk_uuid)) == 0;
    return 0;
}

static int
index_count(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
            uint32_t value_bytes)
{
    (void)key;
    (void)key_bytes;
    (void)value;
    (void)value_bytes;
    ++*(uint64_t *)context;
    return 0;
}

static void
inspect_index(struct inspection *inspection)
{
    struct index_summary *summary = &inspection->index;
    struct index_rocksdb_options options = {.path = inspection->options->index_path,
                                            .memory_bytes = INDEX_ROCKSDB_MEMORY_MIN};
    struct position_scan scan = {.summary = summary, .superblock = inspection->newest};
    struct index *index;
    struct dl_error err;
    int result = index_rocksdb_open(&options, &index, &err);

    if (result != 0) {
        (void)snprintf(summary->problem, sizeof(summary->problem), "%s",
                       result == -DL_E_DISK_BUSY ? "in use by a running server" : err.text);
        return;
    }
    summary->opened = true;
    result = index->ops->scan_now(index, "P", 1, index_see_position, &scan);
    if (result == 0)
        result = index->ops->scan_now(index, "C", 1, index_see_chunk, summary);
    if (result == 0)
        result = index->ops->scan_now(index, "F", 1, index_count, &summary->fences);
    if (result == 0)
        result = index->ops->scan_now(index, "X", 1, index_count, &summary->bad_blocks);
    if (result != 0)
        (void)snprintf(summary->problem, sizeof(summary->problem), "%s: %s", dl_err_str(result),
                       index_rocksdb_error_text(index));
    index->ops->close(index);
    if (result != 0 || summary->bad_values > 0 || (summary->has_position && !summary->same_disk))
        inspection->damaged = true;
}

/* --- for people --- */

static void
print_copies(const struct inspection *inspection)
{
    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
        const struct superblock_copy *copy = &inspection->copies[i];

        (void)printf("superblock %u   at %" PRIu64 ": ", i + 1, copy->offset_bytes);
        if (copy->valid)
            (void)printf("valid, generation %" PRIu64 "\n", copy->superblock.generation);
        else
            (void)printf("NOT VALID: %s\n", copy->problem);
    }
}

static void
print_superblock(const struct superblock *superblock)
{
    const struct superblock_geometry *geometry = &superblock->geometry;
    char disk_text[UUID_TEXT_BYTES], cluster_text[UUID_TEXT_BYTES], created[32] = "unknown";
    time_t seconds = (time_t)(superblock->created_ms / 1000);
    struct tm when;

    uuid_to_text(superblock->disk_uuid, disk_text);
    uuid_to_text(superblock->cluster_id, cluster_text);
    if (gmtime_r(&seconds, &when) != NULL)
        (void)strftime(created, sizeof(created), "%Y-%m-%d %H:%M:%S UTC", &when);
    (void)printf("disk           %s, format version %u, created %s\n", disk_text,
                 superblock->format_version, created);
    (void)printf("cluster        %s%s%s\n", cluster_text,
                 superblock->meta_address[0] != '\0' ? ", metadata service at " : "",
                 superblock->meta_address);
    (void)printf("life           %" PRIu64 ", %s\n", superblock->incarnation,
                 superblock->clean ? "stopped cleanly" : "running, or ended by a crash");
    (void)printf("layout         journal %s at %" PRIu64 ", ",
                 text_of_size(geometry->ring_bytes).text, geometry->ring_offset);
    (void)printf("metadata %s at %" PRIu64 ", ", text_of_size(geometry->metadata_bytes).text,
                 geometry->metadata_offset);
    (void)printf("data %s at %" PRIu64 "\n", text_of_size(geometry->data_bytes).text,
                 geometry->data_offset);
}

static void
print_journal(const struct inspection *inspection)
{
    const struct journal_summary *journal = &inspection->journal;
    const struct superblock *superblock = inspection->newest;

    if (!journal->readable) {
        (void)printf("journal        cannot be read\n");
        return;
    }
    (void)printf("journal        %" PRIu64 " blocks (%" PRIu64 " below the cut, %" PRIu64
                 " of this life, %" PRIu64 " dropped ones of earlier lives), %" PRIu64 " torn\n",
                 journal->blocks, journal->below_cut, journal->current, journal->stale,
                 journal->torn);
    (void)printf("               tail %" PRIu64 ", cut %" PRIu64 ", mark %" PRIu64
                 ", chain from the tail to %" PRIu64 "\n",
                 journal->tail, superblock->cut, journal->mark, journal->chain_end);
    if (journal->read_errors > 0)
        (void)printf("               %" PRIu64 " READ ERRORS\n", journal->read_errors);
    if (inspection->in_use)
        (void)printf("               in use: it changes while it is read\n");
    else if (journal_has_gap(journal, superblock))
        (void)printf("               DAMAGED: the chain does not reach the cut and the mark\n");
}

static void
print_index(const struct inspection *inspection)
{
    const struct index_summary *index = &inspection->index;

    (void)printf("index          %s: ", inspection->options->index_path);
    if (!index->opened) {
        (void)printf("not shown: %s\n", index->problem);
        return;
    }
    if (index->has_position)
        (void)printf("journal position %" PRIu64 ", life %" PRIu64 "%s, ", index->position,
                     index->incarnation, index->same_disk ? "" : " OF ANOTHER DISK");
    (void)printf("%zu chunks, %" PRIu64 " fences, %" PRIu64 " bad blocks\n", index->chunk_count,
                 index->fences, index->bad_blocks);
    if (index->bad_values > 0)
        (void)printf("               %" PRIu64 " DAMAGED VALUES\n", index->bad_values);
    if (index->problem[0] != '\0')
        (void)printf("               DAMAGED: %s\n", index->problem);
    for (size_t i = 0; i < index->chunk_count; i++) {
        const struct index_chunk_seen *chunk = &index->chunks[i];

        (void)printf("chunk          volume %" PRIu64 " segment %u slot %u: incarnation %u, "
                     "config epoch %u, stable %" PRIx64 ", %u pending%s\n",
                     chunk->key.volume, chunk->key.segment, chunk->key.slot, chunk->incarnation,
                     chunk->config_epoch, chunk->stable_version, chunk->pending_count,
                     chunk->deleting ? ", being deleted" : "");
    }
}

static void
print_text(const struct inspection *inspection)
{
    (void)printf("%s: %s, %s\n", inspection->options->path,
                 disk_file_is_device(inspection->file) ? "block device" : "file",
                 text_of_size(disk_file_disk(inspection->file)->size_bytes).text);
    print_copies(inspection);
    if (inspection->newest != NULL) {
        print_superblock(inspection->newest);
        print_journal(inspection);
    }
    print_index(inspection);
}

/* --- for programs --- */

static json_t *
json_of_superblock(const struct superblock *superblock)
{
    const struct superblock_geometry *geometry = &superblock->geometry;
    char disk_text[UUID_TEXT_BYTES], cluster_text[UUID_TEXT_BYTES];

    uuid_to_text(superblock->disk_uuid, disk_text);
    uuid_to_text(superblock->cluster_id, cluster_text);
    return json_pack(
        "{s:s, s:s, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:b, s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I}}",
        "disk", disk_text, "cluster", cluster_text, "format_version",
        (int)superblock->format_version, "meta", superblock->meta_address, "created_ms",
        (json_int_t)superblock->created_ms, "generation", (json_int_t)superblock->generation,
        "incarnation", (json_int_t)superblock->incarnation, "cut", (json_int_t)superblock->cut,
        "tail", (json_int_t)superblock->tail, "clean", (int)superblock->clean, "layout",
        "disk_bytes", (json_int_t)geometry->disk_bytes, "journal_offset",
        (json_int_t)geometry->ring_offset, "journal_bytes", (json_int_t)geometry->ring_bytes,
        "metadata_offset", (json_int_t)geometry->metadata_offset, "metadata_bytes",
        (json_int_t)geometry->metadata_bytes, "data_offset", (json_int_t)geometry->data_offset,
        "data_bytes", (json_int_t)geometry->data_bytes);
}

static json_t *
json_of_copies(const struct inspection *inspection)
{
    json_t *copies = json_array();

    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
        const struct superblock_copy *copy = &inspection->copies[i];
        json_t *object = json_pack("{s:I, s:b}", "offset_bytes", (json_int_t)copy->offset_bytes,
                                   "valid", (int)copy->valid);

        if (copy->valid)
            (void)json_object_set_new(object, "superblock", json_of_superblock(&copy->superblock));
        else
            (void)json_object_set_new(object, "problem", json_string(copy->problem));
        (void)json_array_append_new(copies, object);
    }
    return copies;
}

static json_t *
json_of_journal(const struct journal_summary *journal)
{
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "readable",
                     (int)journal->readable, "blocks", (json_int_t)journal->blocks, "below_cut",
                     (json_int_t)journal->below_cut, "current", (json_int_t)journal->current,
                     "dropped", (json_int_t)journal->stale, "torn", (json_int_t)journal->torn,
                     "read_errors", (json_int_t)journal->read_errors, "mark",
                     (json_int_t)journal->mark, "tail", (json_int_t)journal->tail, "chain_end",
                     (json_int_t)journal->chain_end);
}

static json_t *
json_of_index(const struct inspection *inspection)
{
    const struct index_summary *index = &inspection->index;
    json_t *object = json_pack("{s:s, s:b, s:I, s:I, s:I}", "path", inspection->options->index_path,
                               "readable", (int)(index->opened && index->problem[0] == '\0'),
                               "damaged_values", (json_int_t)index->bad_values, "fences",
                               (json_int_t)index->fences, "bad_blocks",
                               (json_int_t)index->bad_blocks);
    json_t *chunks = json_array();

    if (index->problem[0] != '\0')
        (void)json_object_set_new(object, "problem", json_string(index->problem));
    if (index->has_position) {
        (void)json_object_set_new(object, "position", json_integer((json_int_t)index->position));
        (void)json_object_set_new(object, "incarnation",
                                  json_integer((json_int_t)index->incarnation));
        (void)json_object_set_new(object, "same_disk", json_boolean(index->same_disk));
    }
    for (size_t i = 0; i < index->chunk_count; i++) {
        const struct index_chunk_seen *chunk = &index->chunks[i];

        (void)json_array_append_new(
            chunks, json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "volume",
                              (json_int_t)chunk->key.volume, "segment",
                              (json_int_t)chunk->key.segment, "slot", (json_int_t)chunk->key.slot,
                              "incarnation", (json_int_t)chunk->incarnation, "config_epoch",
                              (json_int_t)chunk->config_epoch, "stable_version",
                              (json_int_t)chunk->stable_version, "pending",
                              (json_int_t)chunk->pending_count, "deleting", (int)chunk->deleting));
    }
    (void)json_object_set_new(object, "chunks", chunks);
    return object;
}

static int
print_json(const struct inspection *inspection, struct dl_error *err)
{
    json_t *root = json_pack("{s:s, s:b, s:I, s:b, s:b}", "path", inspection->options->path,
                             "device", (int)disk_file_is_device(inspection->file), "size_bytes",
                             (json_int_t)disk_file_disk(inspection->file)->size_bytes, "in_use",
                             (int)inspection->in_use, "damaged", (int)inspection->damaged);
    int result;

    (void)json_object_set_new(root, "superblocks", json_of_copies(inspection));
    if (inspection->newest != NULL)
        (void)json_object_set_new(root, "journal", json_of_journal(&inspection->journal));
    (void)json_object_set_new(root, "index", json_of_index(inspection));
    result = json_dumpf(root, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(root);
    return result == 0 ? 0 : dl_error_set(err, -EIO, "cannot write the result");
}

/* --- all of it --- */

static void
inspect_superblocks(struct inspection *inspection)
{
    superblock_copies_read_now(disk_file_disk(inspection->file), inspection->copies);
    for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
        const struct superblock_copy *copy = &inspection->copies[i];

        if (!copy->valid)
            inspection->damaged = true;
        else if (inspection->newest == NULL ||
                 copy->superblock.generation > inspection->newest->generation)
            inspection->newest = &copy->superblock;
    }
}

int
disk_tool_inspect(const struct disk_tool_options *options, bool *ret_damaged, struct dl_error *err)
{
    struct disk_file_options open_options = {.read_only = true};
    struct inspection inspection = {.options = options};
    int result = disk_file_open(options->path, &open_options, &inspection.file, err);

    /* With the lock the disk keeps still; a server that starts meanwhile waits for it. */
    if (result == -DL_E_DISK_BUSY) {
        inspection.in_use = true;
        open_options.no_lock = true;
        result = disk_file_open(options->path, &open_options, &inspection.file, err);
    }
    if (result != 0)
        return result;
    inspect_superblocks(&inspection);
    if (inspection.newest != NULL)
        inspect_journal(&inspection);
    inspect_index(&inspection);
    if (options->json)
        result = print_json(&inspection, err);
    else
        print_text(&inspection);
    *ret_damaged = inspection.damaged;
    free(inspection.journal.lsns);
    free(inspection.index.chunks);
    disk_file_close(inspection.file);
    return result;
}
