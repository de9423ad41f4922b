/* SPDX-License-Identifier: Apache-2.0 */
/*
 * apply.c: what a record does to the chunk table, the leaves and the allocation map.
 *
 * In service a record is applied when its group is acknowledged, from its op; at open when it is
 * replayed, from its bytes.  Both ways end in the same functions, so that a life and its replay
 * cannot differ, but for one thing: in service a record's blocks go from limbo to the map, and in
 * replay there is no limbo yet.
 *
 * Invariants:
 * 1. Replay may apply a record to a chunk record, a fence or a bitmap page that has it already:
 *    they must not change by that.  Chunk records and leaves compare LSNs; fences only rise, a bit
 *    is what its last record in the journal says.
 * 2. The items of engine.dirty are in the order of their recovery_lsn, because records are applied
 *    in the order of the journal.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

/* --- what differs from the index --- */

void
dirty_init(struct dirty *dirty, enum dirty_kind kind)
{
    *dirty = (struct dirty){.kind = kind};
    list_init(&dirty->node);
}

/* It differs from the index since recovery_lsn. */
static void
dirty_link(struct engine *engine, struct dirty *dirty, uint64_t recovery_lsn)
{
    if (list_is_linked(&dirty->node))
        return;
    dl_assert(list_is_empty(&engine->dirty) ||
              list_last_entry(&engine->dirty, struct dirty, node)->recovery_lsn <= recovery_lsn);
    dirty->recovery_lsn = recovery_lsn;
    list_push_back(&engine->dirty, &dirty->node);
}

void
dirty_mark(struct engine *engine, struct dirty *dirty, uint64_t lsn)
{
    dl_assert(lsn >= engine->tail);
    dirty_link(engine, dirty, lsn);
    /* While it is replayed, what the index has can be newer than the record. */
    if (lsn > dirty->lsn)
        dirty->lsn = lsn;
}

void
dirty_mark_unjournaled(struct engine *engine, struct dirty *dirty)
{
    dirty_link(engine, dirty, engine->acked_lsn);
}

/* --- the table's objects and the engine's part of them --- */

struct engine_chunk *
engine_chunk_add(struct engine *engine, const struct chunk_key *key, uint64_t local_id,
                 uint32_t incarnation)
{
    struct engine_chunk *chunk = freelist_take(&engine->chunks_pool);

    *chunk = (struct engine_chunk){.engine = engine};
    chunk->chunk = chunk_table_add(engine->chunks, key, local_id, incarnation);
    chunk->chunk->store_private = chunk;
    dirty_init(&chunk->dirty, DIRTY_CHUNK);
    list_init(&chunk->writes);
    list_init(&chunk->attempts);
    list_init(&chunk->deletion_node);
    list_init(&chunk->forget_node);
    list_init(&chunk->emptied_node);
    if (local_id >= engine->local_id_next)
        engine->local_id_next = local_id + 1;
    return chunk;
}

struct engine_volume *
engine_volume_get(struct engine *engine, uint64_t volume)
{
    struct chunk_volume *found = chunk_table_volume_get(engine->chunks, volume);
    struct engine_volume *private;

    if (found->store_private != NULL)
        return found->store_private;
    private = freelist_take(&engine->volumes_pool);
    private->volume = found;
    dirty_init(&private->dirty, DIRTY_FENCE);
    found->store_private = private;
    return private;
}

/* --- pieces of records --- */

void
apply_bitmap(struct engine *engine, uint64_t block, uint64_t lsn)
{
    dirty_mark(engine, &engine->pages[block / BITMAP_PAGE_BLOCKS].dirty, lsn);
}

static void
apply_chunk(struct engine *engine, struct engine_chunk *chunk, uint64_t lsn)
{
    chunk->last_lsn = lsn;
    dirty_mark(engine, &chunk->dirty, lsn);
}

static void
apply_epoch(struct engine_chunk *chunk, uint32_t config_epoch)
{
    if (config_epoch > chunk->epoch_durable)
        chunk->epoch_durable = config_epoch;
    if (config_epoch > chunk->chunk->config_epoch)
        chunk->chunk->config_epoch = config_epoch;
}

static struct bad_block *
bad_find(const struct engine *engine, uint64_t block)
{
    struct bad_block *bad = engine->bad;

    while (bad != NULL && bad->block != block)
        bad = bad->next;
    return bad;
}

struct bad_block *
bad_add(struct engine *engine, uint64_t block)
{
    struct bad_block *bad = freelist_take(&engine->bad_pool);

    bad->block = block;
    dirty_init(&bad->dirty, DIRTY_BAD);
    bad->next = engine->bad;
    engine->bad = bad;
    engine->counters.bad_blocks++;
    return bad;
}

static void
apply_bad(struct engine *engine, struct extent extent, uint64_t lsn, bool replayed)
{
    for (uint64_t block = extent.block; block < extent.block + extent.count; block++) {
        /* In service a block is in limbo before it turns bad: it cannot be known. */
        struct bad_block *bad = replayed ? bad_find(engine, block) : NULL;

        if (bad == NULL)
            bad = bad_add(engine, block);
        dirty_mark(engine, &bad->dirty, lsn);
    }
    apply_bitmap(engine, extent.block, lsn);
}

void
apply_worn(struct engine *engine, struct extent extent, uint64_t lsn)
{
    for (uint64_t block = extent.block; block < extent.block + extent.count; block++)
        dirty_mark(engine, &bad_add(engine, block)->dirty, lsn);
}

uint32_t
apply_leaf_change(struct engine *engine, struct engine_chunk *chunk, uint32_t number,
                  const struct leaf_change *change, bool replayed)
{
    struct leaf *leaf = leaf_get(engine, chunk, number);
    uint32_t taken = 0;

    if (number >= chunk->leaf_count)
        chunk->leaf_count = number + 1;
    dirty_mark(engine, &leaf->dirty, change->lsn);
    if (chunk->emptied.count > 0 || change->kind == SECTOR_ZERO)
        forget_on_changed(chunk, number, change->kind);
    if (leaf->state == LEAF_LOADED) {
        struct leaf_result result = leaf_change(engine, leaf, change);

        dl_assert(!replayed);
        if (change->kind == SECTOR_DATA || change->kind == SECTOR_ZERO)
            engine->counters.writes_outdated += result.outdated;
        taken = change->count - result.outdated;
    } else {
        leaf_add_delta(engine, leaf, change, replayed);
    }
    leaf_settle(engine, leaf);
    return taken;
}

/* Is what the record does to the chunk's entry in the table news?  Not if the index had it. */
static bool
apply_is_news(const struct engine_chunk *chunk, uint64_t lsn)
{
    return lsn > chunk->stored_lsn;
}

/* A WRITE or ZERO, however it came. */
struct write_record {
    const struct journal_record *record; /* its extents and CRCs are in the arrays here */
    const struct extent *extents;
    uint32_t extent_count;
    const uint32_t *crcs;
    uint64_t lsn;
    bool replayed;
    bool promotes;
};

/* The change of a piece that lies in one leaf; next_* say where in the extents it begins. */
static void
apply_piece(struct engine *engine, struct engine_chunk *chunk, const struct write_record *write,
            uint32_t done, uint32_t count, uint32_t *extent_idx, uint32_t *extent_used)
{
    const struct journal_record *record = write->record;
    uint32_t sector = record->offset_sectors + done;
    uint64_t blocks[LEAF_SECTORS];
    struct leaf_change change = {
        .lsn = write->lsn,
        .version = record->version,
        .birth = record->birth,
        .first = (uint8_t)(sector % LEAF_SECTORS),
        .count = (uint8_t)count,
        .kind = record->kind == RECORD_WRITE ? SECTOR_DATA : SECTOR_ZERO,
        .blocks = blocks,
        .crcs = record->kind == RECORD_WRITE ? write->crcs + done : NULL,
    };

    for (uint32_t i = 0; record->kind == RECORD_WRITE && i < count; i++) {
        dl_assert(*extent_idx < write->extent_count);
        blocks[i] = write->extents[*extent_idx].block + *extent_used;
        if (++*extent_used == write->extents[*extent_idx].count) {
            ++*extent_idx;
            *extent_used = 0;
        }
    }
    (void)apply_leaf_change(engine, chunk, sector / LEAF_SECTORS, &change, write->replayed);
}

/* The sectors of a record up to the end of a leaf. */
static uint32_t
piece_length(uint32_t offset, uint32_t length, uint32_t done)
{
    uint32_t room = LEAF_SECTORS - (offset + done) % LEAF_SECTORS;

    return length - done < room ? length - done : room;
}

static void
apply_promotion(struct engine *engine, struct engine_chunk *chunk, uint32_t config_epoch)
{
    engine->counters.promotions += chunk->chunk->attempt != 0;
    chunk_promote(chunk->chunk, config_epoch);
}

/* What a WRITE or ZERO does to the chunk, its leaves left out. */
static void
apply_write_chunk(struct engine *engine, struct engine_chunk *chunk,
                  const struct write_record *write)
{
    const struct journal_record *record = write->record;

    apply_epoch(chunk, record->number);
    if (apply_is_news(chunk, write->lsn)) {
        if (write->promotes)
            apply_promotion(engine, chunk, record->number);
        (void)chunk_stable_hear(chunk->chunk, chunk->chunk->attempt, record->stable_version);
        /* Replay of a chunk that is being deleted: its list is dropped already. */
        if (chunk->chunk->state == CHUNK_PRESENT)
            chunk_pending_add(chunk->chunk, record->version, record->offset_sectors,
                              record->length_sectors);
    }
    apply_chunk(engine, chunk, write->lsn);
}

static void
apply_extents(struct engine *engine, const struct write_record *write)
{
    for (uint32_t i = 0; i < write->extent_count; i++) {
        struct extent extent = write->extents[i];

        if (write->replayed)
            alloc_replay_set(&engine->alloc, extent.block, extent.count);
        else
            alloc_commit(&engine->alloc, extent.block, extent.count);
        apply_bitmap(engine, extent.block, write->lsn);
    }
}

/*
 * The leaves, from the sector *applied on.  Returns whether that was all: in service a record
 * without data changes at most slice_leaves of them in a turn.
 */
static bool
apply_write_leaves(struct engine *engine, struct engine_chunk *chunk,
                   const struct write_record *write, uint32_t *applied)
{
    const struct journal_record *record = write->record;
    uint32_t extent_idx = 0, extent_used = 0, leaves = 0;

    while (*applied < record->length_sectors) {
        uint32_t count = piece_length(record->offset_sectors, record->length_sectors, *applied);

        if (record->kind == RECORD_ZERO && !write->replayed && leaves++ == engine->slice_leaves)
            return false;
        apply_piece(engine, chunk, write, *applied, count, &extent_idx, &extent_used);
        *applied += count;
    }
    engine->counters.zero_extents += record->kind == RECORD_ZERO;
    return true;
}

/* --- merges and attempts --- */

/* A MERGE, however it came. */
struct merge_record {
    const struct journal_record *record; /* its extents and CRCs are in the arrays here */
    const struct merge_run_disk *runs;
    uint32_t run_count;
    const uint64_t *blocks; /* one per sector with data */
    const uint32_t *crcs;
    uint64_t lsn;
    bool replayed;
};

static void
apply_merge_run(struct engine *engine, struct engine_chunk *chunk, const struct merge_record *merge,
                const struct merge_run_disk *run, uint32_t *data_idx)
{
    uint32_t sector = le32_get(run->sector), length = run->count_minus_one + 1u;
    bool data = run->kind == SECTOR_DATA;

    for (uint32_t done = 0, count; done < length; done += count) {
        struct leaf_change change = {
            .lsn = merge->lsn,
            .version = le64_get(run->version),
            .stable_version = merge->record->stable_version,
            .birth = le32_get(run->birth),
            .first = (uint8_t)((sector + done) % LEAF_SECTORS),
            .rule = (merge->record->flags & RECORD_MERGE_REPAIR) != 0 ? LEAF_REPAIR : LEAF_MERGE,
            .kind = run->kind,
            .blocks = merge->blocks + *data_idx,
            .crcs = merge->crcs + *data_idx,
        };

        count = piece_length(sector, length, done);
        change.count = (uint8_t)count;
        engine->merge_taken += apply_leaf_change(engine, chunk, (sector + done) / LEAF_SECTORS,
                                                 &change, merge->replayed);
        *data_idx += data ? count : 0;
    }
}

/* What it does to the chunk, its leaves left out. */
static void
apply_merge_chunk(struct engine_chunk *engine_chunk, const struct merge_record *merge)
{
    const struct journal_record *record = merge->record;
    struct chunk *chunk = engine_chunk->chunk;
    bool repair = (record->flags & RECORD_MERGE_REPAIR) != 0;

    if (!apply_is_news(engine_chunk, merge->lsn) || chunk->state != CHUNK_PRESENT)
        return;
    /* Of a repair: no news, unless it healed what was damaged. */
    for (uint32_t i = 0; i < merge->run_count; i++) {
        const struct merge_run_disk *run = &merge->runs[i];

        if (repair || le64_get(run->version) > record->stable_version)
            chunk_pending_add_pulled(chunk, le64_get(run->version), le32_get(run->sector),
                                     run->count_minus_one + 1u);
    }
    if (repair || record->number != chunk->attempt || chunk->attempt == 0)
        return;
    if (record->offset_sectors > chunk->cursor_sectors)
        chunk->cursor_sectors = record->offset_sectors;
    chunk_sources_hear(chunk, record->stable_version);
}

static void
apply_merge(struct engine *engine, struct engine_chunk *chunk, const struct merge_record *merge)
{
    uint32_t data_idx = 0;

    apply_merge_chunk(chunk, merge);
    apply_chunk(engine, chunk, merge->lsn);
    for (uint32_t i = 0; i < merge->run_count; i++)
        apply_merge_run(engine, chunk, merge, &merge->runs[i], &data_idx);
    dl_assert(data_idx == merge->record->length_sectors);
    engine->counters.merges++;
    engine->counters.repairs += (merge->record->flags & RECORD_MERGE_REPAIR) != 0;
}

/* Above its step a leaf's sectors are void. */
static void
apply_void_leaf(struct engine *engine, struct engine_chunk *chunk,
                const struct journal_record *record, uint32_t number, uint64_t lsn, bool replayed)
{
    uint32_t first = number * LEAF_SECTORS;

    for (uint32_t i = 0; i < record->step_count; i++) {
        uint32_t begin = record->steps[i].first_sector;
        uint32_t end = i + 1 < record->step_count ? record->steps[i + 1].first_sector
                                                  : CHUNK_SECTORS_MAX;
        struct leaf_change change = {
            .lsn = lsn, .version = record->steps[i].stable_version, .kind = SECTOR_VOID};

        begin = begin > first ? begin : first;
        end = end < first + LEAF_SECTORS ? end : first + LEAF_SECTORS;
        if (begin >= end)
            continue;
        change.first = (uint8_t)(begin - first);
        change.count = (uint8_t)(end - begin);
        (void)apply_leaf_change(engine, chunk, number, &change, replayed);
    }
}

static void
apply_attempt_chunk(struct engine *engine, struct engine_chunk *chunk,
                    const struct journal_record *record, uint64_t lsn)
{
    struct engine_volume *volume = engine_volume_get(engine, chunk->chunk->key.volume);

    chunk_table_fence_raise(engine->chunks, chunk->chunk->key.volume, record->lease_epoch);
    dirty_mark(engine, &volume->dirty, lsn);
    apply_epoch(chunk, record->config_epoch);
    apply_chunk(engine, chunk, lsn);
    if (!apply_is_news(chunk, lsn))
        return;
    chunk_attempt_begin(chunk->chunk, record->number);
    /* As they were decided: what was heard last may be forgotten. */
    memcpy(chunk->chunk->steps, record->steps, sizeof(record->steps));
    chunk->chunk->step_count = record->step_count;
    engine->counters.attempts++;
}

/*
 * Which leaves had something above the steps nobody knows any more, if the index has the chunk as
 * it was later.  So all of them: to the others it changes nothing.
 */
static int
replay_attempt(struct engine *engine, struct engine_chunk *chunk,
               const struct journal_record *record, uint64_t lsn)
{
    if (apply_is_news(chunk, lsn) && record->number <= chunk->chunk->attempt)
        return -DL_E_DISK_DAMAGED;
    apply_attempt_chunk(engine, chunk, record, lsn);
    for (uint32_t number = 0; number < chunk->leaf_count; number++)
        apply_void_leaf(engine, chunk, record, number, lsn, true);
    return 0;
}

static void
apply_report(struct engine *engine, struct engine_chunk *chunk, uint32_t attempt,
             uint64_t stable_version, uint64_t lsn)
{
    if (apply_is_news(chunk, lsn) && attempt == chunk->chunk->attempt && attempt != 0)
        chunk_sources_hear(chunk->chunk, stable_version);
    apply_chunk(engine, chunk, lsn);
    engine->counters.reports++;
}

static void
apply_in_sync(struct engine *engine, struct engine_chunk *chunk, uint32_t config_epoch,
              uint64_t lsn)
{
    apply_epoch(chunk, config_epoch);
    if (apply_is_news(chunk, lsn) && config_epoch > chunk->chunk->attempt)
        apply_promotion(engine, chunk, config_epoch);
    apply_chunk(engine, chunk, lsn);
}

static void
apply_clear(struct engine *engine, struct engine_chunk *chunk, uint32_t number, uint64_t lsn,
            bool replayed)
{
    struct leaf_change change = {
        .lsn = lsn, .first = 0, .count = LEAF_SECTORS, .kind = SECTOR_HOLE};

    dl_assert(chunk->chunk->state == CHUNK_DELETING);
    apply_chunk(engine, chunk, lsn);
    (void)apply_leaf_change(engine, chunk, number, &change, replayed);
}

static void
apply_forget(struct engine *engine, struct engine_chunk *chunk, uint32_t number, uint64_t version,
             uint64_t lsn, bool replayed)
{
    struct leaf_change change = {.lsn = lsn,
                                 .version = version,
                                 .first = 0,
                                 .count = LEAF_SECTORS,
                                 .rule = LEAF_FORGET,
                                 .kind = SECTOR_HOLE};

    apply_chunk(engine, chunk, lsn);
    (void)apply_leaf_change(engine, chunk, number, &change, replayed);
}

/* --- in service --- */

static bool
apply_op_write(struct engine *engine, struct op *op, uint64_t lsn)
{
    const struct store_write *request = op->write;
    struct journal_record record = {
        .kind = op->kind,
        .number = request->config_epoch,
        .version = request->version,
        .stable_version = request->stable_version,
        .birth = request->birth,
        .offset_sectors = request->offset_sectors,
        .length_sectors = request->length_sectors,
    };
    struct write_record write = {
        .record = &record,
        .extents = op->extents,
        .extent_count = op->extent_count,
        .crcs = request->crcs,
        .lsn = lsn,
        .promotes = op->promotes,
    };

    if (!op->applying) {
        op->applying = true;
        apply_extents(engine, &write);
        apply_write_chunk(engine, op->chunk, &write);
    }
    if (!apply_write_leaves(engine, op->chunk, &write, &op->applied))
        return false;
    /* They are the leaf's now. */
    op->extent_count = 0;
    return true;
}

static void
apply_op_merge(struct engine *engine, struct op *op, uint64_t lsn)
{
    struct merge *part = merge_of_write(op->write);
    uint64_t blocks[STORE_IO_SECTORS_MAX];
    uint32_t count = 0, taken = engine->merge_taken;
    struct journal_record record = {
        .kind = RECORD_MERGE,
        .number = part->request->attempt,
        .stable_version = part->request->stable_version,
        .offset_sectors = part->cursor,
        .length_sectors = part->write.length_sectors,
        .flags = merge_flags(part),
    };
    struct merge_record merge = {
        .record = &record,
        .runs = part->runs,
        .run_count = part->run_count,
        .blocks = blocks,
        .crcs = part->write.crcs,
        .lsn = lsn,
    };

    for (uint32_t i = 0; i < op->extent_count; i++) {
        struct extent extent = op->extents[i];

        alloc_commit(&engine->alloc, extent.block, extent.count);
        apply_bitmap(engine, extent.block, lsn);
        for (uint32_t j = 0; j < extent.count; j++)
            blocks[count++] = extent.block + j;
    }
    dl_assert(count == record.length_sectors);
    apply_merge(engine, op->chunk, &merge);
    part->taken = engine->merge_taken - taken;
    op->extent_count = 0;
}

/* The leaves that the attempt names, a slice of them in a turn. */
static bool
apply_op_attempt(struct engine *engine, struct op *op, uint64_t lsn)
{
    const struct attempt *attempt = op->attempt;
    struct journal_record record = {
        .number = op->number,
        .config_epoch = attempt->change->config_epoch,
        .lease_epoch = attempt->change->lease_epoch,
        .step_count = attempt->step_count,
    };
    uint32_t leaves = 0;

    memcpy(record.steps, attempt->steps, sizeof(record.steps));
    if (!op->applying) {
        op->applying = true;
        apply_attempt_chunk(engine, op->chunk, &record, lsn);
    }
    for (; op->applied < op->chunk->leaf_count; op->applied++) {
        if ((attempt->leaves[op->applied / 64] >> (op->applied % 64) & 1) == 0)
            continue;
        if (leaves++ == engine->slice_leaves)
            return false;
        apply_void_leaf(engine, op->chunk, &record, op->applied, lsn, false);
    }
    return true;
}

static void
apply_op_bad(struct engine *engine, struct op *op, uint64_t lsn)
{
    for (uint32_t i = 0; i < op->extent_count; i++) {
        alloc_commit(&engine->alloc, op->extents[i].block, op->extents[i].count);
        apply_bad(engine, op->extents[i], lsn, false);
    }
    op->extent_count = 0;
}

bool
apply_op(struct engine *engine, struct op *op, uint64_t lsn)
{
    dl_assert(!op->aborted);
    if (op->barrier)
        return true;
    switch (op->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
        return apply_op_write(engine, op, lsn);
    case RECORD_MERGE:
        apply_op_merge(engine, op, lsn);
        break;
    case RECORD_ATTEMPT:
        return apply_op_attempt(engine, op, lsn);
    case RECORD_REPORT:
        apply_report(engine, op->chunk, op->number, op->version, lsn);
        break;
    case RECORD_IN_SYNC:
        apply_in_sync(engine, op->chunk, op->number, lsn);
        break;
    case RECORD_CREATE:
        engine->counters.chunks_created++;
        apply_epoch(op->chunk, op->number);
        apply_chunk(engine, op->chunk, lsn);
        break;
    case RECORD_EPOCH:
        engine->counters.epochs++;
        apply_epoch(op->chunk, op->number);
        apply_chunk(engine, op->chunk, lsn);
        break;
    case RECORD_STABLE:
        engine->counters.stables++;
        (void)chunk_stable_hear(op->chunk->chunk, op->number, op->version);
        apply_chunk(engine, op->chunk, lsn);
        break;
    case RECORD_FENCE:
        engine->counters.fences++;
        dirty_mark(engine, &op->volume->dirty, lsn);
        break;
    case RECORD_DELETE:
        engine->counters.chunks_deleted++;
        apply_chunk(engine, op->chunk, lsn);
        delete_begin(engine, op->chunk);
        break;
    case RECORD_CLEAR:
        engine->counters.leaves_cleared++;
        apply_clear(engine, op->chunk, op->number, lsn, false);
        delete_cleared(engine, op->chunk);
        break;
    case RECORD_FORGET:
        engine->counters.zeroes_forgotten++;
        apply_forget(engine, op->chunk, op->number, op->version, lsn, false);
        forget_applied(engine, op->chunk, op->number);
        break;
    case RECORD_BAD:
        apply_op_bad(engine, op, lsn);
        break;
    case RECORD_ABORT:
        break;
    case RECORD_FREE:
        dl_unreachable();
    }
    return true;
}

/* --- replay --- */

static int
replay_extents_check(struct engine *engine, const struct journal_record *record, uint64_t lsn,
                     struct dl_error *err)
{
    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct extent extent = extent_get(&record->extents[i]);

        if (!alloc_run_is_valid(&engine->alloc, extent.block, extent.count))
            return dl_error_set(err, -DL_E_DISK_DAMAGED,
                                "a %s record of the journal block at LSN %" PRIu64
                                " names blocks that do not exist: %" PRIu64 " + %u",
                                record_kind_name(record->kind), lsn, extent.block, extent.count);
    }
    return 0;
}

static void
replay_write(struct engine *engine, struct engine_chunk *chunk, const struct journal_record *record,
             uint64_t lsn)
{
    struct extent extents[STORE_IO_SECTORS_MAX];
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    struct write_record write = {
        .record = record,
        .extents = extents,
        .extent_count = record->extent_count,
        .crcs = crcs,
        .lsn = lsn,
        .replayed = true,
        .promotes = (record->flags & RECORD_WRITE_PROMOTES) != 0,
    };
    uint32_t applied = 0;

    for (uint32_t i = 0; i < record->extent_count; i++)
        extents[i] = extent_get(&record->extents[i]);
    for (uint32_t i = 0; record->kind == RECORD_WRITE && i < record->length_sectors; i++)
        crcs[i] = le32_get(record->crcs[i]);
    apply_extents(engine, &write);
    apply_write_chunk(engine, chunk, &write);
    (void)apply_write_leaves(engine, chunk, &write, &applied);
}

static void
replay_merge(struct engine *engine, struct engine_chunk *chunk, const struct journal_record *record,
             uint64_t lsn)
{
    uint64_t blocks[STORE_IO_SECTORS_MAX];
    uint32_t crcs[STORE_IO_SECTORS_MAX];
    struct merge_record merge = {
        .record = record,
        .runs = record->runs,
        .run_count = record->run_count,
        .blocks = blocks,
        .crcs = crcs,
        .lsn = lsn,
        .replayed = true,
    };
    uint32_t count = 0;

    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct extent extent = extent_get(&record->extents[i]);

        alloc_replay_set(&engine->alloc, extent.block, extent.count);
        apply_bitmap(engine, extent.block, lsn);
        for (uint32_t j = 0; j < extent.count; j++)
            blocks[count++] = extent.block + j;
    }
    for (uint32_t i = 0; i < record->length_sectors; i++)
        crcs[i] = le32_get(record->crcs[i]);
    apply_merge(engine, chunk, &merge);
}

static int
replay_create(struct engine *engine, const struct journal_record *record, uint64_t lsn,
              struct dl_error *err)
{
    struct chunk *known = chunk_table_find_local(engine->chunks, record->local_id);
    struct engine_chunk *chunk;

    if (known == NULL && chunk_table_find(engine->chunks, &record->key) != NULL)
        return dl_error_set(err, -DL_E_DISK_DAMAGED,
                            "the journal block at LSN %" PRIu64 " creates a chunk that is there",
                            lsn);
    chunk = known != NULL
                ? engine_chunk_of(known)
                : engine_chunk_add(engine, &record->key, record->local_id, record->number);
    apply_epoch(chunk, record->number);
    apply_chunk(engine, chunk, lsn);
    return 0;
}

static void
replay_delete(struct engine *engine, struct engine_chunk *chunk, uint64_t lsn)
{
    if (chunk->chunk->state == CHUNK_PRESENT)
        chunk_table_delete(engine->chunks, chunk->chunk);
    apply_chunk(engine, chunk, lsn);
}

/* Records of a chunk. */
static int
replay_chunk_record(struct engine *engine, const struct journal_record *record, uint64_t lsn,
                    struct dl_error *err)
{
    struct chunk *known = chunk_table_find_local(engine->chunks, record->local_id);
    struct engine_chunk *chunk;

    /*
     * A chunk's record leaves the index only when no record above the journal position names it: an
     * unknown chunk is no leftover of a deletion.
     */
    if (known == NULL || (record->kind == RECORD_CLEAR && known->state != CHUNK_DELETING))
        return dl_error_set(err, -DL_E_DISK_DAMAGED,
                            "a %s record of the journal block at LSN %" PRIu64
                            " does not fit the chunk with local id %" PRIu64,
                            record_kind_name(record->kind), lsn, record->local_id);
    chunk = engine_chunk_of(known);
    switch (record->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
        replay_write(engine, chunk, record, lsn);
        break;
    case RECORD_EPOCH:
        apply_epoch(chunk, record->number);
        apply_chunk(engine, chunk, lsn);
        break;
    case RECORD_STABLE:
        if (apply_is_news(chunk, lsn))
            (void)chunk_stable_hear(known, record->number, record->stable_version);
        apply_chunk(engine, chunk, lsn);
        break;
    case RECORD_MERGE:
        replay_merge(engine, chunk, record, lsn);
        break;
    case RECORD_ATTEMPT:
        if (replay_attempt(engine, chunk, record, lsn) != 0)
            return dl_error_set(
                err, -DL_E_DISK_DAMAGED,
                "the journal block at LSN %" PRIu64 " begins an attempt that has begun", lsn);
        break;
    case RECORD_REPORT:
        apply_report(engine, chunk, record->number, record->stable_version, lsn);
        break;
    case RECORD_IN_SYNC:
        apply_in_sync(engine, chunk, record->number, lsn);
        break;
    case RECORD_DELETE:
        replay_delete(engine, chunk, lsn);
        break;
    case RECORD_CLEAR:
        apply_clear(engine, chunk, record->number, lsn, true);
        break;
    case RECORD_FORGET:
        apply_forget(engine, chunk, record->number, record->stable_version, lsn, true);
        break;
    default:
        dl_unreachable();
    }
    return 0;
}

static void
replay_fence(struct engine *engine, const struct journal_record *record, uint64_t lsn)
{
    struct engine_volume *volume = engine_volume_get(engine, record->key.volume);

    chunk_table_fence_raise(engine->chunks, record->key.volume, record->number);
    dirty_mark(engine, &volume->dirty, lsn);
}

/*
 * FREE clears, BAD sets: whatever an older page of the map says, the last record of the journal is
 * right.
 */
static void
replay_runs(struct engine *engine, const struct journal_record *record, uint64_t lsn)
{
    for (uint32_t i = 0; i < record->extent_count; i++) {
        struct extent extent = extent_get(&record->extents[i]);

        if (record->kind == RECORD_FREE) {
            alloc_replay_clear(&engine->alloc, extent.block, extent.count);
            apply_bitmap(engine, extent.block, lsn);
        } else {
            alloc_replay_set(&engine->alloc, extent.block, extent.count);
            apply_bad(engine, extent, lsn, true);
        }
    }
}

int
apply_record(struct engine *engine, const struct journal_record *record, uint64_t lsn,
             struct dl_error *err)
{
    int result = replay_extents_check(engine, record, lsn, err);

    if (result != 0)
        return result;
    switch (record->kind) {
    case RECORD_CREATE:
        return replay_create(engine, record, lsn, err);
    case RECORD_FENCE:
        replay_fence(engine, record, lsn);
        return 0;
    case RECORD_FREE:
    case RECORD_BAD:
        replay_runs(engine, record, lsn);
        return 0;
    case RECORD_ABORT:
        return 0;
    default:
        return replay_chunk_record(engine, record, lsn, err);
    }
}
