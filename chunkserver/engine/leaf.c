/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/leaf.h"

#include <stddef.h>
#include <string.h>

#include "chunkserver/engine/journal.h"
#include "common/assert.h"
#include "common/crc32c.h"
#include "dlblk/error.h"

/* --- changes --- */

/* Does what comes take the place of a void sector? */
static bool
void_takes(const struct leaf_sector *sector, const struct leaf_sector *new,
           const struct leaf_change *change)
{
    if (new->version >= sector->version)
        return true;
    return change->rule != LEAF_WRITE &&
           (sector->birth != SECTOR_VOID_DAMAGED || change->stable_version >= sector->version);
}

/* Does the sector take what comes? */
static bool
sector_takes(const struct leaf_sector *sector, const struct leaf_sector *new,
             const struct leaf_change *change)
{
    unsigned kind = leaf_sector_kind(new), old = leaf_sector_kind(sector);

    if (change->rule == LEAF_FORGET)
        return old == SECTOR_ZERO && sector->version <= change->version;
    if (change->rule == LEAF_WRITE && kind == SECTOR_HOLE)
        return sector->version != 0;
    if (kind == SECTOR_VOID)
        return sector->version > change->version;
    if (old == SECTOR_VOID)
        return void_takes(sector, new, change);
    if (change->rule == LEAF_REPAIR)
        return new->version == sector->version &&old == SECTOR_DATA &&kind == SECTOR_DATA;
    /*
     * Not "the later record wins": two records of one window may overlap, and retries and the
     * rewrites of a takeover can bring an older version later.
     */
    return new->version > sector->version;
}

/* Returns whether the sector changed. */
static bool
sector_apply(struct leaf_sector *sector, const struct leaf_sector *new,
             const struct leaf_change *change, leaf_give_up_fn give_up, void *context)
{
    bool takes = sector_takes(sector, new, change);
    const struct leaf_sector *loser = takes ? sector : new;

    if (leaf_sector_kind(loser) == SECTOR_DATA) {
        dl_assert(new->block_kind != sector->block_kind);
        give_up(context, leaf_sector_block(loser), change->lsn,
                takes && change->rule == LEAF_REPAIR);
    }
    if (!takes)
        return false;
    *sector = *new;
    return true;
}

void
leaf_set_void(struct leaf_sector *sectors, uint64_t version)
{
    for (uint32_t i = 0; i < LEAF_SECTORS; i++) {
        sectors[i] = (struct leaf_sector){.version = version, .birth = SECTOR_VOID_DAMAGED};
        sectors[i].block_kind = leaf_block_kind(SECTOR_VOID, 0);
    }
}

struct leaf_result
leaf_apply(struct leaf_sector *sectors, const struct leaf_change *change, leaf_give_up_fn give_up,
           void *context)
{
    struct leaf_result result = {0};

    dl_assert(change->count > 0 && change->first + change->count <= LEAF_SECTORS);
    dl_assert(change->kind == SECTOR_HOLE || change->kind == SECTOR_VOID || change->version > 0);
    for (uint32_t i = 0; i < change->count; i++) {
        bool data = change->kind == SECTOR_DATA;
        struct leaf_sector new = {
            .version = change->version + (change->kind == SECTOR_VOID),
            .block_kind = leaf_block_kind(change->kind, data ? change->blocks[i] : 0),
            .birth = change->birth,
            .crc = data ? change->crcs[i] : 0,
        };

        if (change->rule == LEAF_FORGET)
            new.version = 0;
        if (sector_apply(&sectors[change->first + i], &new, change, give_up, context))
            result.changed |= UINT64_C(1) << (change->first + i);
        else
            result.outdated++;
    }
    return result;
}

struct leaf_result
leaf_apply_delta(struct leaf_sector *sectors, const struct leaf_delta *delta,
                 leaf_give_up_fn give_up, void *context)
{
    uint64_t blocks[LEAF_SECTORS];
    uint32_t crcs[LEAF_SECTORS];
    struct leaf_change change = {
        .lsn = delta->lsn,
        .version = delta->version,
        .stable_version = delta->stable_version,
        .birth = delta->birth,
        .first = delta->first,
        .count = delta->count,
        .rule = delta->rule,
        .kind = delta->kind,
        .blocks = blocks,
        .crcs = crcs,
    };

    dl_assert(delta->count <= LEAF_SECTORS);
    for (uint32_t i = 0; delta->kind == SECTOR_DATA && i < delta->count; i++) {
        blocks[i] = delta->data[i].block;
        crcs[i] = delta->data[i].crc;
    }
    return leaf_apply(sectors, &change, give_up, context);
}

size_t
leaf_delta_bytes(const struct leaf_change *change)
{
    const struct leaf_delta *delta = NULL;

    return sizeof(*delta) +
           (change->kind == SECTOR_DATA ? change->count * sizeof(delta->data[0]) : 0);
}

void
leaf_delta_init(struct leaf_delta *delta, const struct leaf_change *change, bool replayed)
{
    *delta = (struct leaf_delta){
        .lsn = change->lsn,
        .version = change->version,
        .stable_version = change->stable_version,
        .birth = change->birth,
        .first = change->first,
        .count = change->count,
        .kind = change->kind,
        .rule = change->rule,
        .replayed = replayed,
    };
    for (uint32_t i = 0; change->kind == SECTOR_DATA && i < change->count; i++) {
        delta->data[i].block = change->blocks[i];
        delta->data[i].crc = change->crcs[i];
    }
}

bool
leaf_is_empty(const struct leaf_sector *sectors)
{
    for (uint32_t i = 0; i < LEAF_SECTORS; i++)
        if (sectors[i].version != 0)
            return false;
    return true;
}

/* --- bytes --- */

struct fragment_writer {
    uint8_t *bytes;
    uint32_t used;
    uint32_t run_count;
    struct leaf_run_disk runs[LEAF_SECTORS];
    uint32_t crcs[LEAF_SECTORS];
    uint32_t crc_count;
};

/* Does `next` continue the run that begins with sectors[first] and has `count` sectors? */
static bool
run_continues(const struct leaf_sector *first, uint32_t count, const struct leaf_sector *next)
{
    unsigned kind = leaf_sector_kind(first);
    uint64_t block = leaf_sector_block(first) + (kind == SECTOR_DATA ? count : 0);

    return next->version == first->version && next->birth == first->birth &&
           next->block_kind == leaf_block_kind(kind, block);
}

static void
writer_put_run(struct fragment_writer *writer, const struct leaf_sector *sectors, uint32_t first,
               uint32_t count)
{
    const struct leaf_sector *sector = &sectors[first];
    unsigned kind = leaf_sector_kind(sector);
    struct leaf_run_disk *run = &writer->runs[writer->run_count++];
    uint64_t block = leaf_sector_block(sector);

    *run = (struct leaf_run_disk){
        .first = (uint8_t)first,
        .count = (uint8_t)count,
        .kind = (uint8_t)kind,
        .birth = le32_of(sector->birth),
        .version = le64_of(sector->version),
    };
    for (int i = 0; i < 5; i++)
        run->block[i] = (uint8_t)(block >> (8 * i));
    for (uint32_t i = 0; kind == SECTOR_DATA && i < count; i++)
        writer->crcs[writer->crc_count++] = sectors[first + i].crc;
}

static uint32_t
writer_finish(struct fragment_writer *writer, uint8_t flags, uint64_t lsn, uint8_t *bytes)
{
    uint32_t runs_bytes = writer->run_count * (uint32_t)sizeof(writer->runs[0]);
    uint32_t total = (uint32_t)sizeof(struct leaf_fragment_disk) + runs_bytes +
                     writer->crc_count * (uint32_t)sizeof(le32);
    struct leaf_fragment_disk header = {
        .bytes = le16_of((uint16_t)total),
        .flags = flags,
        .run_count = (uint8_t)writer->run_count,
        .lsn = le64_of(lsn),
    };
    uint8_t *at = bytes + sizeof(header);

    dl_assert(total <= LEAF_FRAGMENT_BYTES_MAX);
    memcpy(at, writer->runs, runs_bytes);
    at += runs_bytes;
    for (uint32_t i = 0; i < writer->crc_count; i++, at += sizeof(le32))
        le32_store(at, writer->crcs[i]);
    memcpy(bytes, &header, sizeof(header));
    header.crc = le32_of(crc32c(0, bytes + sizeof(le32), total - sizeof(le32)));
    memcpy(bytes, &header, sizeof(header));
    return total;
}

uint32_t
leaf_encode(const struct leaf_sector *sectors, uint64_t mask, bool whole, uint64_t lsn,
            void *ret_bytes)
{
    struct fragment_writer writer;
    uint32_t first = 0;

    writer.run_count = 0;
    writer.crc_count = 0;
    while (first < LEAF_SECTORS) {
        uint32_t count = 1;

        if (whole ? sectors[first].version == 0 : (mask >> first & 1) == 0) {
            first++;
            continue;
        }
        while (first + count < LEAF_SECTORS && (whole || (mask >> (first + count) & 1) != 0) &&
               run_continues(&sectors[first], count, &sectors[first + count]))
            count++;
        writer_put_run(&writer, sectors, first, count);
        first += count;
    }
    return writer_finish(&writer, whole ? LEAF_WHOLE : 0, lsn, ret_bytes);
}

static void
ignore_block(void *context, uint64_t block, uint64_t lsn, bool worn)
{
    (void)context;
    (void)block;
    (void)lsn;
    (void)worn;
}

uint32_t
leaf_encode_delta(const struct leaf_delta *delta, void *ret_bytes)
{
    struct leaf_sector sectors[LEAF_SECTORS];
    struct leaf_result result;

    memset(sectors, 0, sizeof(sectors));
    /* Nobody knows what is at or below its version: all of it is void then. */
    if (delta->kind == SECTOR_VOID)
        leaf_set_void(sectors, UINT64_MAX);
    result = leaf_apply_delta(sectors, delta, ignore_block, NULL);
    return leaf_encode(sectors, result.changed,
                       delta->kind == SECTOR_HOLE && delta->rule == LEAF_WRITE, delta->lsn,
                       ret_bytes);
}

/* One run of a fragment; crcs points to its first CRC. */
static int
decode_run(const struct leaf_run_disk *run, const uint8_t *crcs, uint64_t block_count,
           struct leaf_sector *sectors)
{
    bool data = run->kind == SECTOR_DATA;
    uint64_t block = 0;

    for (int i = 4; i >= 0; i--)
        block = block << 8 | run->block[i];
    if (run->count == 0 || run->first + run->count > LEAF_SECTORS || run->kind > SECTOR_VOID)
        return -DL_E_INDEX_CORRUPT;
    if (data ? block >= block_count || run->count > block_count - block : block != 0)
        return -DL_E_INDEX_CORRUPT;
    if ((run->kind == SECTOR_HOLE) != (le64_get(run->version) == 0))
        return -DL_E_INDEX_CORRUPT;
    for (uint32_t i = 0; i < run->count; i++)
        sectors[run->first + i] = (struct leaf_sector){
            .version = le64_get(run->version),
            .block_kind = leaf_block_kind(run->kind, data ? block + i : 0),
            .birth = le32_get(run->birth),
            .crc = data ? le32_load(crcs + i * sizeof(le32)) : 0,
        };
    return 0;
}

/* The header of the fragment at `at`, with everything but its runs checked. */
static int
decode_header(const uint8_t *at, size_t left, struct leaf_fragment_disk *ret_header)
{
    uint32_t bytes;

    if (left < sizeof(*ret_header))
        return -DL_E_INDEX_CORRUPT;
    memcpy(ret_header, at, sizeof(*ret_header));
    bytes = le16_get(ret_header->bytes);
    if (bytes < sizeof(*ret_header) || bytes > left ||
        (ret_header->flags & ~(unsigned)LEAF_WHOLE) != 0)
        return -DL_E_INDEX_CORRUPT;
    if (crc32c(0, at + sizeof(le32), bytes - sizeof(le32)) != le32_get(ret_header->crc))
        return -DL_E_INDEX_CORRUPT;
    return 0;
}

static int
decode_fragment(const uint8_t *at, const struct leaf_fragment_disk *header, uint64_t block_count,
                struct leaf_sector *sectors)
{
    uint32_t bytes = le16_get(header->bytes), crcs_at, expected;

    expected = (uint32_t)(sizeof(*header) + header->run_count * sizeof(struct leaf_run_disk));
    crcs_at = expected;
    if (expected > bytes)
        return -DL_E_INDEX_CORRUPT;
    for (uint32_t i = 0; i < header->run_count; i++) {
        struct leaf_run_disk run;
        int err;

        memcpy(&run, at + sizeof(*header) + i * sizeof(run), sizeof(run));
        if (run.kind == SECTOR_DATA)
            expected += run.count * (uint32_t)sizeof(le32);
        if (expected > bytes)
            return -DL_E_INDEX_CORRUPT;
        err = decode_run(&run, at + crcs_at, block_count, sectors);
        if (err != 0)
            return err;
        crcs_at = expected;
    }
    return expected == bytes ? 0 : -DL_E_INDEX_CORRUPT;
}

int
leaf_decode(const void *bytes, uint32_t length_bytes, uint64_t block_count,
            struct leaf_sector ret_sectors[LEAF_SECTORS], uint64_t *ret_lsn,
            uint32_t *ret_fragments)
{
    const uint8_t *at = bytes;
    const uint8_t *end = at + length_bytes;
    uint32_t fragments = 0;
    uint64_t lsn = 0;

    if (length_bytes == 0)
        return -DL_E_INDEX_CORRUPT;
    memset(ret_sectors, 0, LEAF_SECTORS * sizeof(ret_sectors[0]));
    while (at < end) {
        struct leaf_fragment_disk header;
        int err = decode_header(at, (size_t)(end - at), &header);

        if (err != 0)
            return err;
        if ((header.flags & LEAF_WHOLE) != 0) {
            memset(ret_sectors, 0, LEAF_SECTORS * sizeof(ret_sectors[0]));
            fragments = 0;
        }
        err = decode_fragment(at, &header, block_count, ret_sectors);
        if (err != 0 || le64_get(header.lsn) < lsn)
            return -DL_E_INDEX_CORRUPT;
        lsn = le64_get(header.lsn);
        fragments++;
        at += le16_get(header.bytes);
    }
    *ret_lsn = lsn;
    *ret_fragments = fragments;
    return 0;
}
