/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/journal.h"

#include <stdio.h>
#include <string.h>

#include "common/crc32c.h"
#include "dlblk/error.h"

#define HEADER_BYTES ((uint32_t)sizeof(struct journal_header_disk))

const char *
record_kind_name(enum record_kind kind)
{
    switch (kind) {
    case RECORD_WRITE:
        return "WRITE";
    case RECORD_ZERO:
        return "ZERO";
    case RECORD_CREATE:
        return "CREATE";
    case RECORD_EPOCH:
        return "EPOCH";
    case RECORD_STABLE:
        return "STABLE";
    case RECORD_FENCE:
        return "FENCE";
    case RECORD_DELETE:
        return "DELETE";
    case RECORD_CLEAR:
        return "CLEAR";
    case RECORD_FREE:
        return "FREE";
    case RECORD_ABORT:
        return "ABORT";
    case RECORD_BAD:
        return "BAD";
    case RECORD_ATTEMPT:
        return "ATTEMPT";
    case RECORD_REPORT:
        return "REPORT";
    case RECORD_IN_SYNC:
        return "IN_SYNC";
    case RECORD_MERGE:
        return "MERGE";
    case RECORD_FORGET:
        return "FORGET";
    }
    return "unknown";
}

/* --- compose --- */

void
journal_compose_init(struct journal_compose *compose, void *buffer, uint32_t capacity_bytes)
{
    dl_assert(capacity_bytes >= UNIT_BYTES && capacity_bytes <= JOURNAL_BYTES_MAX);
    dl_assert(capacity_bytes % UNIT_BYTES == 0);
    *compose = (struct journal_compose){
        .buffer = buffer, .capacity_bytes = capacity_bytes, .used_bytes = HEADER_BYTES};
}

uint32_t
journal_record_bytes(enum record_kind kind, uint32_t extent_count, uint32_t sectors)
{
    switch (kind) {
    case RECORD_WRITE:
        return (uint32_t)(sizeof(struct record_write_disk) +
                          extent_count * sizeof(struct extent_disk) + sectors * sizeof(le32));
    case RECORD_ZERO:
        return sizeof(struct record_write_disk);
    case RECORD_CREATE:
        return sizeof(struct record_create_disk);
    case RECORD_EPOCH:
    case RECORD_STABLE:
    case RECORD_DELETE:
    case RECORD_CLEAR:
    case RECORD_REPORT:
    case RECORD_IN_SYNC:
    case RECORD_FORGET:
        return sizeof(struct record_chunk_disk);
    case RECORD_ATTEMPT:
        return sizeof(struct record_attempt_disk);
    case RECORD_MERGE: /* journal_merge_bytes() */
        break;
    case RECORD_FENCE:
        return sizeof(struct record_fence_disk);
    case RECORD_ABORT:
        return sizeof(struct record_abort_disk);
    case RECORD_FREE:
    case RECORD_BAD:
        return (uint32_t)(sizeof(struct record_extents_disk) +
                          extent_count * sizeof(struct extent_disk));
    }
    dl_unreachable();
}

uint32_t
journal_merge_bytes(uint32_t run_count, uint32_t extent_count, uint32_t data_sectors)
{
    return (uint32_t)(sizeof(struct record_merge_disk) + run_count * sizeof(struct merge_run_disk) +
                      extent_count * sizeof(struct extent_disk) + data_sectors * sizeof(le32));
}

static struct record_header_disk
record_header_of(enum record_kind kind, uint32_t bytes)
{
    dl_assert(bytes <= UINT16_MAX);
    return (struct record_header_disk){.kind = (uint8_t)kind, .bytes = le16_of((uint16_t)bytes)};
}

/* Room for a record of so many bytes. */
static uint8_t *
journal_put_room(struct journal_compose *compose, uint32_t bytes)
{
    uint8_t *at = compose->buffer + compose->used_bytes;

    dl_assert(bytes <= journal_room_bytes(compose));
    dl_assert(compose->extents_at == 0);
    compose->used_bytes += bytes;
    compose->record_count++;
    return at;
}

static void
put_extents_and_crcs(uint8_t *at, const struct extent *extents, uint32_t extent_count,
                     const uint32_t *crcs, uint32_t crc_count)
{
    for (uint32_t i = 0; i < extent_count; i++, at += sizeof(struct extent_disk)) {
        struct extent_disk extent = extent_of(extents[i].block, extents[i].count);

        memcpy(at, &extent, sizeof(extent));
    }
    for (uint32_t i = 0; i < crc_count; i++, at += sizeof(le32))
        le32_store(at, crcs[i]);
}

uint32_t
journal_put_write(struct journal_compose *compose, const struct journal_record *record,
                  const struct extent *extents, uint32_t extent_count, const uint32_t *crcs)
{
    uint32_t crc_count = record->kind == RECORD_WRITE ? record->length_sectors : 0;
    uint32_t bytes = journal_record_bytes(record->kind, extent_count, crc_count);
    uint8_t *at = journal_put_room(compose, bytes);
    struct record_write_disk disk = {
        .header = record_header_of(record->kind, bytes),
        .config_epoch = le32_of(record->number),
        .local_id = le64_of(record->local_id),
        .version = le64_of(record->version),
        .stable_version = le64_of(record->stable_version),
        .birth = le32_of(record->birth),
        .offset_sectors = le32_of(record->offset_sectors),
        .length_sectors = le32_of(record->length_sectors),
        .extent_count = le16_of((uint16_t)extent_count),
        .flags = le16_of(record->flags),
    };

    dl_assert(record->kind == RECORD_WRITE || extent_count == 0);
    memcpy(at, &disk, sizeof(disk));
    put_extents_and_crcs(at + sizeof(disk), extents, extent_count, crcs, crc_count);
    return compose->record_count - 1;
}

uint32_t
journal_put_merge(struct journal_compose *compose, const struct journal_record *record,
                  const struct merge_run_disk *runs, uint32_t run_count,
                  const struct extent *extents, uint32_t extent_count, const uint32_t *crcs)
{
    uint32_t bytes = journal_merge_bytes(run_count, extent_count, record->length_sectors);
    uint8_t *at = journal_put_room(compose, bytes);
    struct record_merge_disk disk = {
        .header = record_header_of(RECORD_MERGE, bytes),
        .attempt = le32_of(record->number),
        .local_id = le64_of(record->local_id),
        .stable_version = le64_of(record->stable_version),
        .cursor_sectors = le32_of(record->offset_sectors),
        .run_count = le16_of((uint16_t)run_count),
        .extent_count = le16_of((uint16_t)extent_count),
        .data_sectors = le16_of((uint16_t)record->length_sectors),
        .flags = le16_of(record->flags),
    };

    dl_assert(record->kind == RECORD_MERGE);
    memcpy(at, &disk, sizeof(disk));
    at += sizeof(disk);
    if (run_count > 0)
        memcpy(at, runs, run_count * sizeof(*runs));
    put_extents_and_crcs(at + run_count * sizeof(*runs), extents, extent_count, crcs,
                         record->length_sectors);
    return compose->record_count - 1;
}

static void
journal_put_attempt(uint8_t *at, uint32_t bytes, const struct journal_record *record)
{
    struct record_attempt_disk disk = {
        .header = record_header_of(record->kind, bytes),
        .attempt = le32_of(record->number),
        .local_id = le64_of(record->local_id),
        .config_epoch = le32_of(record->config_epoch),
        .lease_epoch = le32_of(record->lease_epoch),
        .step_count = le32_of(record->step_count),
    };

    for (uint32_t i = 0; i < record->step_count; i++)
        disk.steps[i] = (struct step_disk){
            .first_sector = le32_of(record->steps[i].first_sector),
            .stable_version = le64_of(record->steps[i].stable_version),
        };
    memcpy(at, &disk, sizeof(disk));
}

static void
journal_put_create(uint8_t *at, uint32_t bytes, const struct journal_record *record)
{
    struct record_create_disk disk = {
        .header = record_header_of(record->kind, bytes),
        .incarnation = le32_of(record->number),
        .local_id = le64_of(record->local_id),
        .volume = le64_of(record->key.volume),
        .segment = le32_of(record->key.segment),
        .slot = le32_of(record->key.slot),
    };

    memcpy(at, &disk, sizeof(disk));
}

static void
journal_put_chunk(uint8_t *at, uint32_t bytes, const struct journal_record *record)
{
    struct record_chunk_disk disk = {
        .header = record_header_of(record->kind, bytes),
        .number = le32_of(record->number),
        .local_id = le64_of(record->local_id),
        .value = le64_of(record->stable_version),
    };

    memcpy(at, &disk, sizeof(disk));
}

uint32_t
journal_put(struct journal_compose *compose, const struct journal_record *record)
{
    uint32_t bytes = journal_record_bytes(record->kind, 0, 0);
    uint8_t *at = journal_put_room(compose, bytes);
    struct record_fence_disk fence;
    struct record_abort_disk abort;

    switch (record->kind) {
    case RECORD_CREATE:
        journal_put_create(at, bytes, record);
        break;
    case RECORD_EPOCH:
    case RECORD_STABLE:
    case RECORD_DELETE:
    case RECORD_CLEAR:
    case RECORD_REPORT:
    case RECORD_IN_SYNC:
    case RECORD_FORGET:
        journal_put_chunk(at, bytes, record);
        break;
    case RECORD_ATTEMPT:
        journal_put_attempt(at, bytes, record);
        break;
    case RECORD_FENCE:
        fence = (struct record_fence_disk){.header = record_header_of(record->kind, bytes),
                                           .lease_epoch = le32_of(record->number),
                                           .volume = le64_of(record->key.volume)};
        memcpy(at, &fence, sizeof(fence));
        break;
    case RECORD_ABORT:
        abort = (struct record_abort_disk){.header = record_header_of(record->kind, bytes),
                                           .record_idx = le32_of(record->number),
                                           .lsn = le64_of(record->lsn)};
        memcpy(at, &abort, sizeof(abort));
        break;
    case RECORD_WRITE:
    case RECORD_ZERO:
    case RECORD_FREE:
    case RECORD_BAD:
    case RECORD_MERGE:
        dl_unreachable();
    }
    return compose->record_count - 1;
}

void
journal_put_runs_begin(struct journal_compose *compose, enum record_kind kind)
{
    uint32_t at = compose->used_bytes;
    struct record_extents_disk disk = {.header = record_header_of(kind, sizeof(disk))};

    dl_assert(kind == RECORD_FREE || kind == RECORD_BAD);
    memcpy(journal_put_room(compose, sizeof(disk)), &disk, sizeof(disk));
    compose->extents_at = at;
}

uint32_t
journal_put_run(struct journal_compose *compose, uint64_t block, uint32_t count)
{
    uint32_t done = 0;

    dl_assert(compose->extents_at != 0);
    while (done < count && journal_room_bytes(compose) >= sizeof(struct extent_disk)) {
        uint32_t part = count - done < EXTENT_BLOCKS_MAX ? count - done : EXTENT_BLOCKS_MAX;
        struct extent_disk extent = extent_of(block + done, part);

        memcpy(compose->buffer + compose->used_bytes, &extent, sizeof(extent));
        compose->used_bytes += sizeof(extent);
        done += part;
    }
    return done;
}

void
journal_put_runs_end(struct journal_compose *compose)
{
    uint8_t *at = compose->buffer + compose->extents_at;
    uint32_t bytes = compose->used_bytes - compose->extents_at;
    struct record_extents_disk disk;
    uint32_t extent_count;

    dl_assert(compose->extents_at != 0);
    dl_assert(bytes >= sizeof(disk));
    extent_count = (uint32_t)((bytes - sizeof(disk)) / sizeof(struct extent_disk));
    if (extent_count == 0) {
        compose->used_bytes = compose->extents_at;
        compose->record_count--;
    } else {
        memcpy(&disk, at, sizeof(disk));
        disk.header = record_header_of((enum record_kind)disk.header.kind, bytes);
        disk.extent_count = le32_of(extent_count);
        memcpy(at, &disk, sizeof(disk));
    }
    compose->extents_at = 0;
}

uint32_t
journal_compose_seal(struct journal_compose *compose, struct journal_header *header)
{
    uint32_t units = (compose->used_bytes + UNIT_BYTES - 1) / UNIT_BYTES;
    uint32_t body_bytes = compose->used_bytes - HEADER_BYTES;
    struct journal_header_disk disk = {
        .magic = le32_of(JOURNAL_MAGIC),
        .format = le16_of(JOURNAL_FORMAT),
        .flags = le16_of(header->flags),
        .units = le16_of((uint16_t)units),
        .incarnation = le64_of(header->incarnation),
        .lsn = le64_of(header->lsn),
        .mark = le64_of(header->mark),
        .tail = le64_of(header->tail),
        .record_count = le32_of(compose->record_count),
        .body_bytes = le32_of(body_bytes),
    };

    dl_assert(compose->extents_at == 0);
    dl_assert(header->mark <= header->lsn);
    memcpy(disk.disk_uuid, header->disk_uuid, sizeof(disk.disk_uuid));
    disk.body_crc = le32_of(crc32c(0, compose->buffer + HEADER_BYTES, body_bytes));
    disk.header_crc = le32_of(
        crc32c(0, (const uint8_t *)&disk + sizeof(le32), sizeof(disk) - sizeof(le32)));
    memcpy(compose->buffer, &disk, sizeof(disk));
    memset(compose->buffer + compose->used_bytes, 0,
           (size_t)units * UNIT_BYTES - compose->used_bytes);
    header->units = units;
    header->record_count = compose->record_count;
    header->body_bytes = body_bytes;
    return units;
}

/* --- parse --- */

#define REFUSE(code, ...)                                                \
    do {                                                                 \
        if (problem != NULL)                                             \
            (void)snprintf(problem, JOURNAL_PROBLEM_BYTES, __VA_ARGS__); \
        return code;                                                     \
    } while (0)

int
journal_header_check(const void *bytes, const uint8_t *disk_uuid, struct journal_header *ret_header,
                     char *problem)
{
    struct journal_header_disk disk;

    memcpy(&disk, bytes, sizeof(disk));
    if (le32_get(disk.magic) != JOURNAL_MAGIC)
        REFUSE(-DL_E_NOT_FOUND, "no journal block");
    if (crc32c(0, (const uint8_t *)bytes + sizeof(le32), sizeof(disk) - sizeof(le32)) !=
        le32_get(disk.header_crc))
        REFUSE(-DL_E_NOT_FOUND, "the header does not match its CRC");
    if (disk_uuid != NULL && memcmp(disk.disk_uuid, disk_uuid, sizeof(disk.disk_uuid)) != 0)
        REFUSE(-DL_E_NOT_FOUND, "a journal block of another disk");
    if (le16_get(disk.format) != JOURNAL_FORMAT)
        REFUSE(-DL_E_DISK_FORMAT, "journal format %u is unknown", le16_get(disk.format));
    if (le16_get(disk.units) < 1 || le16_get(disk.units) > JOURNAL_UNITS_MAX ||
        le32_get(disk.body_bytes) > le16_get(disk.units) * UNIT_BYTES - HEADER_BYTES ||
        le64_get(disk.mark) > le64_get(disk.lsn))
        REFUSE(-DL_E_NOT_FOUND, "the header's numbers make no sense");
    memcpy(ret_header->disk_uuid, disk.disk_uuid, sizeof(disk.disk_uuid));
    ret_header->incarnation = le64_get(disk.incarnation);
    ret_header->lsn = le64_get(disk.lsn);
    ret_header->mark = le64_get(disk.mark);
    ret_header->tail = le64_get(disk.tail);
    ret_header->units = le16_get(disk.units);
    ret_header->flags = le16_get(disk.flags);
    ret_header->record_count = le32_get(disk.record_count);
    ret_header->body_bytes = le32_get(disk.body_bytes);
    return 0;
}

int
journal_block_check(const void *bytes, uint32_t available_bytes, const uint8_t *disk_uuid,
                    struct journal_header *ret_header, char *problem)
{
    struct journal_header header;
    struct journal_header_disk disk;
    int err;

    if (available_bytes < UNIT_BYTES)
        REFUSE(-DL_E_NOT_FOUND, "less than a unit");
    err = journal_header_check(bytes, disk_uuid, &header, problem);
    if (err != 0)
        return err;
    if (header.units * UNIT_BYTES > available_bytes)
        REFUSE(-DL_E_NOT_FOUND, "the block crosses the end of the ring");
    memcpy(&disk, bytes, sizeof(disk));
    if (crc32c(0, (const uint8_t *)bytes + HEADER_BYTES, header.body_bytes) !=
        le32_get(disk.body_crc))
        REFUSE(-DL_E_NOT_FOUND, "the records do not match their CRC");
    *ret_header = header;
    return 0;
}

void
journal_iter_init(struct journal_iter *iter, const void *bytes, const struct journal_header *header)
{
    iter->at = (const uint8_t *)bytes + HEADER_BYTES;
    iter->end = iter->at + header->body_bytes;
    iter->record_idx = 0;
    iter->next_idx = 0;
    iter->record_count = header->record_count;
}

/* Extents and CRCs of so many sectors. */
static int
parse_data(const uint8_t *at, uint32_t sectors, struct journal_record *record)
{
    uint32_t blocks = 0;

    record->extents = (const struct extent_disk *)at;
    for (uint32_t i = 0; i < record->extent_count; i++)
        blocks += extent_get(&record->extents[i]).count;
    if (blocks != sectors)
        return -DL_E_DISK_DAMAGED;
    record->crcs = (const le32 *)(record->extents + record->extent_count);
    return 0;
}

static int
parse_write(const uint8_t *at, uint32_t bytes, struct journal_record *record)
{
    struct record_write_disk disk;
    uint32_t sectors;

    if (bytes < sizeof(disk))
        return -DL_E_DISK_DAMAGED;
    memcpy(&disk, at, sizeof(disk));
    record->local_id = le64_get(disk.local_id);
    record->number = le32_get(disk.config_epoch);
    record->version = le64_get(disk.version);
    record->stable_version = le64_get(disk.stable_version);
    record->birth = le32_get(disk.birth);
    record->offset_sectors = le32_get(disk.offset_sectors);
    record->length_sectors = le32_get(disk.length_sectors);
    record->extent_count = le16_get(disk.extent_count);
    record->flags = le16_get(disk.flags);
    if ((record->flags & ~(unsigned)RECORD_WRITE_PROMOTES) != 0)
        return -DL_E_DISK_DAMAGED;
    if (record->offset_sectors >= CHUNK_SECTORS_MAX || record->length_sectors == 0 ||
        record->length_sectors > CHUNK_SECTORS_MAX - record->offset_sectors)
        return -DL_E_DISK_DAMAGED;
    sectors = record->kind == RECORD_WRITE ? record->length_sectors : 0;
    if (sectors > STORE_IO_SECTORS_MAX || record->extent_count > sectors ||
        bytes != journal_record_bytes(record->kind, record->extent_count, sectors))
        return -DL_E_DISK_DAMAGED;
    return parse_data(at + sizeof(disk), sectors, record);
}

/* The sectors of a MERGE; those with data are counted by the record. */
static int
parse_runs(struct journal_record *record)
{
    uint32_t data = 0;

    for (uint32_t i = 0; i < record->run_count; i++) {
        const struct merge_run_disk *run = &record->runs[i];
        uint32_t count = run->count_minus_one + 1u;
        uint32_t sector = le32_get(run->sector);

        if (sector >= CHUNK_SECTORS_MAX || count > CHUNK_SECTORS_MAX - sector ||
            run->kind > SECTOR_DATA || (run->kind == SECTOR_HOLE) != (le64_get(run->version) == 0))
            return -DL_E_DISK_DAMAGED;
        data += run->kind == SECTOR_DATA ? count : 0;
    }
    return data == record->length_sectors ? 0 : -DL_E_DISK_DAMAGED;
}

static int
parse_merge(const uint8_t *at, uint32_t bytes, struct journal_record *record)
{
    struct record_merge_disk disk;
    int err;

    if (bytes < sizeof(disk))
        return -DL_E_DISK_DAMAGED;
    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.attempt);
    record->local_id = le64_get(disk.local_id);
    record->stable_version = le64_get(disk.stable_version);
    record->offset_sectors = le32_get(disk.cursor_sectors);
    record->length_sectors = le16_get(disk.data_sectors);
    record->run_count = le16_get(disk.run_count);
    record->extent_count = le16_get(disk.extent_count);
    record->flags = le16_get(disk.flags);
    if (record->length_sectors > STORE_IO_SECTORS_MAX || record->run_count > STORE_IO_SECTORS_MAX ||
        record->extent_count > record->length_sectors ||
        record->offset_sectors > CHUNK_SECTORS_MAX ||
        (record->flags & ~(unsigned)(RECORD_MERGE_REPAIR | RECORD_MERGE_BAD)) != 0 ||
        bytes !=
            journal_merge_bytes(record->run_count, record->extent_count, record->length_sectors))
        return -DL_E_DISK_DAMAGED;
    record->runs = (const struct merge_run_disk *)(at + sizeof(disk));
    err = parse_runs(record);
    return err != 0 ? err
                    : parse_data(at + sizeof(disk) + record->run_count * sizeof(record->runs[0]),
                                 record->length_sectors, record);
}

static int
parse_attempt(const uint8_t *at, struct journal_record *record)
{
    struct record_attempt_disk disk;

    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.attempt);
    record->local_id = le64_get(disk.local_id);
    record->config_epoch = le32_get(disk.config_epoch);
    record->lease_epoch = le32_get(disk.lease_epoch);
    record->step_count = le32_get(disk.step_count);
    if (record->number == 0 || record->step_count == 0 || record->step_count > CHUNK_STEPS_MAX)
        return -DL_E_DISK_DAMAGED;
    for (uint32_t i = 0; i < record->step_count; i++) {
        struct chunk_step *step = &record->steps[i];

        step->first_sector = le32_get(disk.steps[i].first_sector);
        step->stable_version = le64_get(disk.steps[i].stable_version);
        if (i == 0 ? step->first_sector != 0 : step->first_sector <= step[-1].first_sector)
            return -DL_E_DISK_DAMAGED;
    }
    return 0;
}

static int
parse_create(const uint8_t *at, struct journal_record *record)
{
    struct record_create_disk disk;

    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.incarnation);
    record->local_id = le64_get(disk.local_id);
    record->key.volume = le64_get(disk.volume);
    record->key.segment = le32_get(disk.segment);
    record->key.slot = le32_get(disk.slot);
    return 0;
}

static int
parse_chunk(const uint8_t *at, struct journal_record *record)
{
    struct record_chunk_disk disk;

    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.number);
    record->local_id = le64_get(disk.local_id);
    record->stable_version = le64_get(disk.value);
    if ((record->kind == RECORD_CLEAR || record->kind == RECORD_FORGET) &&
        record->number >= CHUNK_LEAVES_MAX)
        return -DL_E_DISK_DAMAGED;
    return 0;
}

static int
parse_extents(const uint8_t *at, uint32_t bytes, struct journal_record *record)
{
    struct record_extents_disk disk;
    uint32_t room;

    if (bytes < sizeof(disk))
        return -DL_E_DISK_DAMAGED;
    memcpy(&disk, at, sizeof(disk));
    room = (uint32_t)((bytes - sizeof(disk)) / sizeof(struct extent_disk));
    record->extent_count = le32_get(disk.extent_count);
    record->extents = (const struct extent_disk *)(at + sizeof(disk));
    if (record->extent_count != room ||
        bytes != journal_record_bytes(record->kind, record->extent_count, 0))
        return -DL_E_DISK_DAMAGED;
    return 0;
}

static int
parse_fence(const uint8_t *at, struct journal_record *record)
{
    struct record_fence_disk disk;

    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.lease_epoch);
    record->key.volume = le64_get(disk.volume);
    return 0;
}

static int
parse_abort(const uint8_t *at, struct journal_record *record)
{
    struct record_abort_disk disk;

    memcpy(&disk, at, sizeof(disk));
    record->number = le32_get(disk.record_idx);
    record->lsn = le64_get(disk.lsn);
    return 0;
}

static int
parse_record(const uint8_t *at, uint32_t bytes, struct journal_record *record)
{
    switch (record->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
        return parse_write(at, bytes, record);
    case RECORD_MERGE:
        return parse_merge(at, bytes, record);
    case RECORD_FREE:
    case RECORD_BAD:
        return parse_extents(at, bytes, record);
    case RECORD_CREATE:
    case RECORD_EPOCH:
    case RECORD_STABLE:
    case RECORD_DELETE:
    case RECORD_CLEAR:
    case RECORD_FENCE:
    case RECORD_ABORT:
    case RECORD_ATTEMPT:
    case RECORD_REPORT:
    case RECORD_IN_SYNC:
    case RECORD_FORGET:
        break;
    default: /* a byte from the disk can be anything */
        return -DL_E_DISK_DAMAGED;
    }
    if (bytes != journal_record_bytes(record->kind, 0, 0))
        return -DL_E_DISK_DAMAGED;
    if (record->kind == RECORD_CREATE)
        return parse_create(at, record);
    if (record->kind == RECORD_FENCE)
        return parse_fence(at, record);
    if (record->kind == RECORD_ABORT)
        return parse_abort(at, record);
    if (record->kind == RECORD_ATTEMPT)
        return parse_attempt(at, record);
    return parse_chunk(at, record);
}

int
journal_iter_next(struct journal_iter *iter, struct journal_record *ret_record)
{
    struct record_header_disk header;
    size_t left = (size_t)(iter->end - iter->at);
    uint32_t bytes;
    int err;

    if (left == 0)
        return iter->next_idx == iter->record_count ? 0 : -DL_E_DISK_DAMAGED;
    if (left < sizeof(header))
        return -DL_E_DISK_DAMAGED;
    memcpy(&header, iter->at, sizeof(header));
    bytes = le16_get(header.bytes);
    if (bytes < sizeof(header) || bytes > left || header.flags != 0)
        return -DL_E_DISK_DAMAGED;
    memset(ret_record, 0, sizeof(*ret_record));
    ret_record->kind = (enum record_kind)header.kind;
    err = parse_record(iter->at, bytes, ret_record);
    if (err != 0)
        return err;
    iter->at += bytes;
    iter->record_idx = iter->next_idx++;
    return 1;
}
