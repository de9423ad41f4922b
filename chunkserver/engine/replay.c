/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay.c: what the journal says at open: which blocks count, the durable decision, and its
 * application.
 *
 *     ring: | ... chain from the position T ... | end: missing, or not verified | what lies behind
 *                          ^ mark: below it all is trusted
 *
 * Rules, each of which closes a hole through which data is lost (checked with a random model; what
 * goes wrong without it is in brackets):
 * 1. A block counts if it is intact, this disk's, at its place, and below the cut or of the
 *    superblock's incarnation.  [Without the cut, blocks that an earlier replay dropped come back
 *    to life behind new ones.]
 * 2. The chain is a prefix: it ends at the first block that is missing, or is above the mark and
 *    has a record whose data does not verify.  What follows does not exist, also if it is intact.
 *    [Dropping records one by one makes FREE records refer to changes that never happened: blocks
 *    in use are handed out again.]
 * 3. A record with an ABORT is no reason to end, provided the block with the ABORT is kept; and it
 *    is not applied.
 * 4. The device is flushed, then the end is written to both superblocks as the new cut with a new
 *    incarnation, and only then anything is served or written.  [Otherwise a second crash can
 *    decide otherwise, and a read result goes back.]
 * 5. Leaves skip changes at or below their own LSN (leaf_cache.c).  [Versions alone make blocks be
 *    given up twice.]
 * 6. What a replayed change gives up is looked up among the journal's FREE records first
 *    (leaf_cache.c).
 * 7. What is missing below a mark is damage, not a torn tail: the disk comes up with what it has,
 *    and says so.
 *
 * Blocks: yes, at open only.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"
#include "common/crc32c.h"

#define SCAN_UNITS 256u

enum unit_state { UNIT_NOTHING, UNIT_BLOCK, UNIT_UNREADABLE };

/* What lies at a place of the ring. */
struct unit {
    uint64_t lsn, mark, tail, incarnation;
    uint16_t units, flags;
    uint8_t state; /* enum unit_state */
};

struct abort_entry {
    uint64_t lsn; /* of the block with the record */
    uint32_t record_idx;
    uint64_t carrier_lsn; /* of the block with the ABORT */
};

struct replay {
    struct engine *engine;
    const struct index_position *position;
    struct dl_error *err;
    struct unit *units;
    uint64_t unit_count;
    uint8_t *buffer;     /* SCAN_UNITS + JOURNAL_UNITS_MAX units */
    VEC(uint64_t) chain; /* LSNs */
    VEC(struct abort_entry) aborts;
    uint64_t mark;
    uint64_t end;
    bool data_unreadable; /* above the mark */
    VEC(struct free_entry) frees;
};

static struct unit *
unit_at(struct replay *replay, uint64_t lsn)
{
    return &replay->units[lsn % replay->unit_count];
}

static uint64_t
unit_offset(const struct replay *replay, uint64_t place)
{
    return replay->engine->superblock.geometry.ring_offset + place * UNIT_BYTES;
}

/* --- look at the whole ring --- */

/*
 * Is there a journal block of which a later unit cannot be read?  Then nobody knows whether it is a
 * torn one.
 */
static bool
scan_meets_unreadable(const struct replay *replay, uint64_t place, const uint8_t *bytes)
{
    struct journal_header header;

    if (journal_header_check(bytes, replay->engine->superblock.disk_uuid, &header, NULL) != 0)
        return false;
    for (uint64_t i = place + 1; i < place + header.units && i < replay->unit_count; i++)
        if (replay->units[i].state == UNIT_UNREADABLE)
            return true;
    return false;
}

static void
scan_unit(struct replay *replay, uint64_t place, const uint8_t *bytes, uint32_t available_bytes)
{
    struct unit *unit = &replay->units[place];
    struct journal_header header;

    if (journal_block_check(bytes, available_bytes, replay->engine->superblock.disk_uuid, &header,
                            NULL) != 0) {
        if (scan_meets_unreadable(replay, place, bytes))
            unit->state = UNIT_UNREADABLE;
        return;
    }
    if (header.lsn % replay->unit_count != place || place + header.units > replay->unit_count)
        return;
    *unit = (struct unit){
        .lsn = header.lsn,
        .mark = header.mark,
        .tail = header.tail,
        .incarnation = header.incarnation,
        .units = (uint16_t)header.units,
        .flags = header.flags,
        .state = UNIT_BLOCK,
    };
}

/* A read of many units failed: which ones are it? */
static void
scan_unreadable(struct replay *replay, uint64_t place, uint64_t count)
{
    struct disk *disk = replay->engine->disk;

    for (uint64_t i = 0; i < count; i++) {
        uint8_t *at = replay->buffer + i * UNIT_BYTES;

        if (disk->ops->read_now(disk, at, UNIT_BYTES, unit_offset(replay, place + i)) == 0)
            continue;
        /* Zeroes are no part of a block: one that needs this unit fails its CRC. */
        memset(at, 0, UNIT_BYTES);
        replay->units[place + i].state = UNIT_UNREADABLE;
        replay->engine->stats.media_errors++;
    }
}

static void
scan_ring(struct replay *replay)
{
    struct disk *disk = replay->engine->disk;

    for (uint64_t place = 0; place < replay->unit_count; place += SCAN_UNITS) {
        uint64_t left = replay->unit_count - place;
        uint64_t here = left < SCAN_UNITS ? left : SCAN_UNITS;
        uint64_t count = left < SCAN_UNITS + JOURNAL_UNITS_MAX ? left
                                                               : SCAN_UNITS + JOURNAL_UNITS_MAX;

        if (disk->ops->read_now(disk, replay->buffer, count * UNIT_BYTES,
                                unit_offset(replay, place)) != 0)
            scan_unreadable(replay, place, count);
        for (uint64_t i = 0; i < here; i++)
            if (replay->units[place + i].state != UNIT_UNREADABLE)
                scan_unit(replay, place + i, replay->buffer + i * UNIT_BYTES,
                          (uint32_t)((count - i) * UNIT_BYTES));
    }
}

/* --- the chain --- */

/* Rule 1. */
static bool
unit_counts(const struct replay *replay, const struct unit *unit)
{
    const struct superblock *superblock = &replay->engine->superblock;

    return unit->state == UNIT_BLOCK &&
           (unit->lsn < superblock->cut || unit->incarnation == superblock->incarnation ||
            DLBLK_MUTANT(old_lives_count));
}

/*
 * Does a block lie here that ended at `lsn`, but for some damage?  Of what names it (magic, uuid,
 * LSN, units) one may be wrong.
 */
static bool
unit_ended_at(struct replay *replay, uint64_t lsn, uint64_t units)
{
    const struct engine *engine = replay->engine;
    struct journal_header_disk header;
    struct journal_header whole;
    uint64_t start = lsn - units;

    if (unit_at(replay, start)->state == UNIT_UNREADABLE)
        return true;
    if (engine->disk->ops->read_now(engine->disk, replay->buffer, UNIT_BYTES,
                                    unit_offset(replay, start % replay->unit_count)) != 0)
        return true;
    /* With a header that is whole it is that block, or an older one: an old copy of the disk. */
    if (journal_header_check(replay->buffer, engine->superblock.disk_uuid, &whole, NULL) == 0)
        return whole.lsn == start && whole.units == units;
    memcpy(&header, replay->buffer, sizeof(header));
    return (le32_get(header.magic) == JOURNAL_MAGIC) +
               (memcmp(header.disk_uuid, engine->superblock.disk_uuid, sizeof(header.disk_uuid)) ==
                0) +
               (le64_get(header.lsn) == start) + (le16_get(header.units) == units) >=
           3;
}

/*
 * The index needs nothing below its position: damage of the block before it is no reason to refuse
 * the disk.
 */
static bool
ring_was_damaged_before(struct replay *replay, uint64_t lsn)
{
    for (uint64_t units = 1; units <= JOURNAL_UNITS_MAX; units++)
        if (unit_ended_at(replay, lsn, units)) {
            replay->engine->stats.media_errors++;
            return true;
        }
    return false;
}

/*
 * Was the journal ever written up to here?  The block that ends at the position stays until what
 * follows has gone all around.
 */
static bool
ring_reaches(struct replay *replay, uint64_t lsn)
{
    for (uint64_t place = 0; place < replay->unit_count; place++) {
        const struct unit *unit = &replay->units[place];

        if (unit_counts(replay, unit) && unit->lsn + unit->units == lsn)
            return true;
    }
    return ring_was_damaged_before(replay, lsn);
}

static int
find_chain(struct replay *replay)
{
    const struct superblock *superblock = &replay->engine->superblock;
    uint64_t lsn = replay->position->position;

    replay->mark = superblock->cut;
    for (;;) {
        const struct unit *unit = unit_at(replay, lsn);
        int err;

        if (!unit_counts(replay, unit) || unit->lsn != lsn)
            break;
        err = vec_push(&replay->chain, lsn);
        dl_assert(err == 0);
        if (unit->mark > replay->mark)
            replay->mark = unit->mark;
        lsn += unit->units;
    }
    replay->end = lsn;
    if (replay->chain.count == 0 && lsn > superblock->cut && !ring_reaches(replay, lsn)) {
        dl_error_set(replay->err, -DL_E_INDEX_MISMATCH,
                     "the index is newer than the disk: it reaches to LSN %" PRIu64
                     ", the journal has nothing that ends there",
                     lsn);
        return -DL_E_INDEX_MISMATCH;
    }
    if (lsn >= superblock->cut)
        return 0;
    dl_error_set(replay->err, -DL_E_INDEX_MISMATCH,
                 "the journal ends at LSN %" PRIu64
                 " when followed from the index's position %" PRIu64
                 ", but it was valid up to %" PRIu64,
                 lsn, replay->position->position, superblock->cut);
    return -DL_E_INDEX_MISMATCH;
}

/* The whole block, again. */
static int
read_block(struct replay *replay, uint64_t lsn, struct journal_header *ret_header)
{
    struct disk *disk = replay->engine->disk;
    uint32_t bytes = unit_at(replay, lsn)->units * UNIT_BYTES;
    int err = disk->ops->read_now(disk, replay->buffer, bytes,
                                  unit_offset(replay, lsn % replay->unit_count));

    if (err == 0)
        err = journal_block_check(replay->buffer, bytes, replay->engine->superblock.disk_uuid,
                                  ret_header, NULL);
    if (err == 0)
        return 0;
    return dl_error_set(replay->err, -DL_E_MEDIA_READ,
                        "the journal block at LSN %" PRIu64 " could be read once, but not again",
                        lsn);
}

static int
record_error(struct replay *replay, uint64_t lsn)
{
    return dl_error_set(
        replay->err, -DL_E_DISK_DAMAGED,
        "the journal block at LSN %" PRIu64 " is intact, but its records make no sense", lsn);
}

/* The ABORT records of the chain. */
static int
collect_aborts(struct replay *replay)
{
    vec_for_each (lsn, &replay->chain) {
        struct journal_header header;
        struct journal_record record;
        struct journal_iter iter;
        int result;

        if ((unit_at(replay, *lsn)->flags & JOURNAL_HAS_ABORT) == 0)
            continue;
        result = read_block(replay, *lsn, &header);
        if (result != 0)
            return result;
        journal_iter_init(&iter, replay->buffer, &header);
        while ((result = journal_iter_next(&iter, &record)) > 0) {
            struct abort_entry entry = {
                .lsn = record.lsn, .record_idx = record.number, .carrier_lsn = *lsn};

            if (record.kind == RECORD_ABORT && vec_push(&replay->aborts, entry) != 0)
                dl_unreachable();
        }
        if (result < 0)
            return record_error(replay, *lsn);
    }
    return 0;
}

static const struct abort_entry *
find_abort(const struct replay *replay, uint64_t lsn, uint32_t record_idx)
{
    for (size_t i = 0; i < replay->aborts.count; i++)
        if (replay->aborts.items[i].lsn == lsn && replay->aborts.items[i].record_idx == record_idx)
            return &replay->aborts.items[i];
    return NULL;
}

/* --- verify what is above the mark --- */

enum verify_result { VERIFY_GOOD, VERIFY_DIFFERS, VERIFY_UNREADABLE };

static enum verify_result
verify_record(struct replay *replay, const struct journal_record *record, uint8_t *data)
{
    struct engine *engine = replay->engine;
    uint32_t sector = 0;

    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct extent extent = extent_get(&record->extents[i]);

        if (!alloc_run_is_valid(&engine->alloc, extent.block, extent.count))
            return VERIFY_GOOD; /* replay refuses it with a text of its own */
        if (engine->disk->ops->read_now(engine->disk, data, (size_t)extent.count * BLOCK_BYTES,
                                        engine_block_offset(engine, extent.block)) != 0)
            return VERIFY_UNREADABLE;
        for (uint32_t j = 0; j < extent.count; j++, sector++)
            if (crc32c(0, data + (size_t)j * BLOCK_BYTES, BLOCK_BYTES) !=
                le32_get(record->crcs[sector]))
                return VERIFY_DIFFERS;
    }
    return VERIFY_GOOD;
}

/*
 * Verify the records of a block.  *ret_needs: the LSN of the block that must be kept for this one
 * to be kept: its own, that of an ABORT, or UINT64_MAX: it cannot be kept.
 */
static int
verify_block(struct replay *replay, uint64_t lsn, uint8_t *data, uint64_t *ret_needs)
{
    struct journal_header header = {0};
    struct journal_record record;
    struct journal_iter iter;
    uint64_t needs = lsn;
    int result = read_block(replay, lsn, &header);

    if (result != 0)
        return result;
    journal_iter_init(&iter, replay->buffer, &header);
    while ((result = journal_iter_next(&iter, &record)) > 0) {
        const struct abort_entry *aborted;
        enum verify_result verified;

        if (record.kind != RECORD_WRITE && record.kind != RECORD_MERGE)
            continue;
        /* Its data was never right: whatever is there now will be taken for bad. */
        if (record.kind == RECORD_MERGE && (record.flags & RECORD_MERGE_BAD) != 0)
            continue;
        replay->engine->counters.replay_verified++;
        verified = verify_record(replay, &record, data);
        if (verified == VERIFY_GOOD)
            continue;
        aborted = find_abort(replay, lsn, iter.record_idx);
        if (aborted == NULL) {
            replay->data_unreadable = replay->data_unreadable || verified == VERIFY_UNREADABLE;
            *ret_needs = UINT64_MAX;
            return 0;
        }
        if (aborted->carrier_lsn > needs)
            needs = aborted->carrier_lsn;
    }
    *ret_needs = needs;
    return result == 0 ? 0 : record_error(replay, lsn);
}

/* Rules 2 and 3: how many blocks of the chain are kept. */
static int
verify_chain(struct replay *replay)
{
    size_t kept = 0;
    uint64_t needs_max = 0;
    uint8_t *data = aligned_alloc(BLOCK_BYTES, (size_t)EXTENT_BLOCKS_MAX * BLOCK_BYTES);
    int result = 0;

    dl_assert(data != NULL);
    for (size_t i = 0; i < replay->chain.count && result == 0; i++) {
        uint64_t lsn = replay->chain.items[i], needs = lsn;

        /*
         * What is below the mark was flushed, or aborted, and its ABORT is below the mark as well.
         */
        if (lsn >= replay->mark && !DLBLK_MUTANT(no_verify))
            result = verify_block(replay, lsn, data, &needs);
        if (needs == UINT64_MAX)
            break;
        if (needs > needs_max)
            needs_max = needs;
        if (needs_max <= lsn)
            kept = i + 1;
    }
    free(data);
    if (kept < replay->chain.count)
        replay->end = replay->chain.items[kept];
    replay->engine->counters.replay_dropped_blocks += replay->chain.count - kept;
    replay->chain.count = kept;
    return result;
}

/* An ABORT whose block is not kept never happened either: its record verified, so it counts. */
static void
drop_aborts(struct replay *replay)
{
    size_t kept = 0;

    for (size_t i = 0; i < replay->aborts.count; i++)
        if (replay->aborts.items[i].carrier_lsn < replay->end)
            replay->aborts.items[kept++] = replay->aborts.items[i];
    replay->aborts.count = kept;
}

/* --- what lies behind the end --- */

/* Rule 7. */
static bool
is_damaged(struct replay *replay)
{
    const struct superblock *superblock = &replay->engine->superblock;
    uint64_t behind = 0;
    bool damaged = replay->data_unreadable ||
                   unit_at(replay, replay->end)->state == UNIT_UNREADABLE;

    for (uint64_t place = 0; place < replay->unit_count; place++) {
        const struct unit *unit = &replay->units[place];

        if (unit->state != UNIT_BLOCK || unit->lsn < replay->end)
            continue;
        if (unit->incarnation != superblock->incarnation) {
            replay->engine->counters.replay_foreign_blocks++;
            continue;
        }
        if (unit->mark > replay->end)
            damaged = true;
        /*
         * One that carries ABORTs was written when all before it was flushed: it is beside the
         * window.
         */
        if (unit->lsn > replay->end && (unit->flags & JOURNAL_HAS_ABORT) == 0)
            behind++;
    }
    return damaged || behind >= JOURNAL_WINDOW;
}

/* The index must be the one that belongs to this journal, and not an old copy of it. */
static int
check_index(struct replay *replay)
{
    uint64_t tail = replay->engine->superblock.tail;

    for (uint64_t place = 0; place < replay->unit_count; place++)
        if (replay->units[place].state == UNIT_BLOCK && replay->units[place].tail > tail)
            tail = replay->units[place].tail;
    if (tail > replay->position->position)
        return dl_error_set(replay->err, -DL_E_INDEX_MISMATCH,
                            "the index is older than the disk: it reaches to LSN %" PRIu64
                            ", the journal begins at %" PRIu64,
                            replay->position->position, tail);
    return 0;
}

static int
check_end(struct replay *replay)
{
    if (replay->position->lsn_highest < replay->end)
        return 0;
    return dl_error_set(replay->err, -DL_E_INDEX_MISMATCH,
                        "the index is newer than the journal: it has changes of LSN %" PRIu64
                        ", the journal ends at %" PRIu64,
                        replay->position->lsn_highest, replay->end);
}

/* --- the decision becomes durable --- */

/* Rule 4. */
static int
seal_decision(struct replay *replay)
{
    struct engine *engine = replay->engine;
    struct superblock *superblock = &engine->superblock;
    int result = DLBLK_MUTANT(no_replay_flush) ? 0 : engine->disk->ops->flush_now(engine->disk);

    /*
     * What verified was perhaps never flushed: a process that was killed leaves its last writes in
     * the disk's cache.
     */
    if (result != 0)
        return dl_error_set(replay->err, -DL_E_MEDIA_WRITE, "flushing the disk failed: %s",
                            dl_err_str(result));
    if (DLBLK_MUTANT(no_cut))
        return 0;
    superblock->incarnation++;
    superblock->cut = replay->end;
    superblock->tail = replay->position->position;
    superblock->clean = false;
    superblock->damaged = superblock->damaged || engine->damaged;
    engine->damaged = superblock->damaged;
    return superblock_store_now(engine->disk, superblock, replay->err);
}

/* --- apply --- */

static void
note_frees(struct replay *replay, const struct journal_record *record, uint64_t lsn)
{
    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct extent extent = extent_get(&record->extents[i]);

        for (uint32_t j = 0; j < extent.count; j++) {
            struct free_entry entry = {.block = extent.block + j, .lsn = lsn};

            if (vec_push(&replay->frees, entry) != 0)
                dl_unreachable();
        }
    }
}

static int
apply_block(struct replay *replay, uint64_t lsn)
{
    struct engine *engine = replay->engine;
    struct journal_header header = {0};
    struct journal_record record;
    struct journal_iter iter;
    int result = read_block(replay, lsn, &header);

    if (result != 0)
        return result;
    journal_iter_init(&iter, replay->buffer, &header);
    while ((result = journal_iter_next(&iter, &record)) > 0) {
        engine->counters.replayed_records++;
        if (find_abort(replay, lsn, iter.record_idx) != NULL && !DLBLK_MUTANT(no_abort))
            continue;
        result = apply_record(engine, &record, lsn, replay->err);
        if (result != 0)
            return result;
        if (record.kind == RECORD_FREE || record.kind == RECORD_BAD)
            note_frees(replay, &record, lsn);
    }
    if (result < 0)
        return record_error(replay, lsn);
    engine->counters.replayed_blocks++;
    ring_add_stretch(engine, lsn + header.units, header.record_count);
    return 0;
}

static int
free_entry_compare(const void *a, const void *b)
{
    const struct free_entry *left = a, *right = b;

    if (left->block != right->block)
        return left->block < right->block ? -1 : 1;
    return left->lsn < right->lsn ? -1 : left->lsn > right->lsn;
}

/* By block, of each the last one. */
static void
keep_frees(struct replay *replay)
{
    struct free_entry *frees = replay->frees.items;
    size_t count = 0;

    if (replay->frees.count == 0)
        return;
    qsort(frees, replay->frees.count, sizeof(frees[0]), free_entry_compare);
    for (size_t i = 0; i < replay->frees.count; i++) {
        if (count > 0 && frees[count - 1].block == frees[i].block)
            count--;
        frees[count++] = frees[i];
    }
    replay->engine->replay_frees = frees;
    replay->engine->replay_free_count = count;
    memset(&replay->frees, 0, sizeof(replay->frees));
}

static int
apply_chain(struct replay *replay)
{
    struct engine *engine = replay->engine;

    engine->tail = replay->position->position;
    engine->acked_lsn = replay->end;
    engine->next_lsn = replay->end;
    engine->records_lsn = replay->end;
    /* The cut says of all that is left what a mark would say. */
    engine->durable_mark = replay->end;
    engine->composed_mark = replay->end;
    vec_for_each (lsn, &replay->chain) {
        int result = apply_block(replay, *lsn);

        if (result != 0)
            return result;
    }
    keep_frees(replay);
    return 0;
}

static int
replay_steps(struct replay *replay)
{
    int result;

    scan_ring(replay);
    result = check_index(replay);
    if (result == 0)
        result = find_chain(replay);
    if (result == 0)
        result = collect_aborts(replay);
    if (result == 0)
        result = verify_chain(replay);
    if (result == 0)
        result = check_end(replay);
    if (result != 0)
        return result;
    drop_aborts(replay);
    replay->engine->damaged = is_damaged(replay);
    result = seal_decision(replay);
    return result == 0 ? apply_chain(replay) : result;
}

int
replay_now(struct engine *engine, const struct index_position *position, struct dl_error *err)
{
    struct replay replay = {.engine = engine, .position = position, .err = err};
    int result;

    replay.unit_count = engine->ring_units;
    replay.units = calloc(replay.unit_count, sizeof(struct unit));
    replay.buffer = aligned_alloc(UNIT_BYTES,
                                  (size_t)(SCAN_UNITS + JOURNAL_UNITS_MAX) * UNIT_BYTES);
    dl_assert(replay.units != NULL && replay.buffer != NULL);
    result = replay_steps(&replay);
    if (result == -DL_E_INDEX_MISMATCH)
        dl_error_hint(err, "make a new index from the disk with dlblk-disk rebuild");
    free(replay.units);
    free(replay.buffer);
    vec_fini(&replay.chain);
    vec_fini(&replay.aborts);
    vec_fini(&replay.frees);
    return result;
}
