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
 *    they must not change by that.  Epochs and stable versions only rise, the pending list takes a
 *    version once, a bit is what its last record in the journal says.  Leaves compare LSNs.
 * 2. The items of engine.dirty are in the order of their recovery_lsn, because records are applied
 *    in the order of the journal.
 */
#include <inttypes.h>
#include <stdlib.h>

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
    list_init(&chunk->deletion_node);
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
apply_leaf_change(struct engine *engine, struct engine_chunk *chunk, uint32_t number,
                  const struct leaf_change *change, bool replayed)
{
    struct leaf *leaf = leaf_get(engine, chunk, number);

    if (number >= chunk->leaf_count)
        chunk->leaf_count = number + 1;
    dirty_mark(engine, &leaf->dirty, change->lsn);
    if (leaf->state == LEAF_LOADED) {
        struct leaf_result result = leaf_change(engine, leaf, change);

        dl_assert(!replayed);
        engine->counters.writes_outdated += change->kind == SECTOR_HOLE ? 0 : result.outdated;
    } else {
        leaf_add_delta(engine, leaf, change, replayed);
    }
    leaf_settle(engine, leaf);
}

/* A WRITE or ZERO, however it came. */
struct write_record {
    const struct journal_record *record; /* its extents and CRCs are in the arrays here */
    const struct extent *extents;
    uint32_t extent_count;
    const uint32_t *crcs;
    uint64_t lsn;
    bool replayed;
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
    apply_leaf_change(engine, chunk, sector / LEAF_SECTORS, &change, write->replayed);
}

static void
apply_write(struct engine *engine, struct engine_chunk *chunk, const struct write_record *write)
{
    const struct journal_record *record = write->record;
    uint32_t done = 0, extent_idx = 0, extent_used = 0;

    for (uint32_t i = 0; i < write->extent_count; i++) {
        struct extent extent = write->extents[i];

        if (write->replayed)
            alloc_replay_set(&engine->alloc, extent.block, extent.count);
        else
            alloc_commit(&engine->alloc, extent.block, extent.count);
        apply_bitmap(engine, extent.block, write->lsn);
    }
    apply_epoch(chunk, record->number);
    (void)chunk_stable_raise(chunk->chunk, record->stable_version);
    /* Replay of a chunk that is being deleted: its list is dropped already. */
    if (chunk->chunk->state == CHUNK_PRESENT)
        chunk_pending_add(chunk->chunk, record->version, record->offset_sectors,
                          record->length_sectors);
    apply_chunk(engine, chunk, write->lsn);
    while (done < record->length_sectors) {
        uint32_t room = LEAF_SECTORS - (record->offset_sectors + done) % LEAF_SECTORS;
        uint32_t left = record->length_sectors - done;
        uint32_t count = left < room ? left : room;

        apply_piece(engine, chunk, write, done, count, &extent_idx, &extent_used);
        done += count;
    }
    if (record->kind == RECORD_ZERO)
        engine->counters.zero_extents++;
}

static void
apply_clear(struct engine *engine, struct engine_chunk *chunk, uint32_t number, uint64_t lsn,
            bool replayed)
{
    struct leaf_change change = {
        .lsn = lsn, .first = 0, .count = LEAF_SECTORS, .kind = SECTOR_HOLE};

    dl_assert(chunk->chunk->state == CHUNK_DELETING);
    apply_chunk(engine, chunk, lsn);
    apply_leaf_change(engine, chunk, number, &change, replayed);
}

/* --- in service --- */

static void
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
    };

    apply_write(engine, op->chunk, &write);
    /* They are the leaf's now. */
    op->extent_count = 0;
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

void
apply_op(struct engine *engine, struct op *op, uint64_t lsn)
{
    dl_assert(!op->aborted);
    if (op->barrier)
        return;
    switch (op->kind) {
    case RECORD_WRITE:
    case RECORD_ZERO:
        apply_op_write(engine, op, lsn);
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
    case RECORD_BAD:
        apply_op_bad(engine, op, lsn);
        break;
    case RECORD_ABORT:
        break;
    case RECORD_FREE:
        dl_unreachable();
    }
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
    };

    for (uint32_t i = 0; i < record->extent_count; i++)
        extents[i] = extent_get(&record->extents[i]);
    for (uint32_t i = 0; record->kind == RECORD_WRITE && i < record->length_sectors; i++)
        crcs[i] = le32_get(record->crcs[i]);
    apply_write(engine, chunk, &write);
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
        (void)chunk_stable_raise(known, record->stable_version);
        apply_chunk(engine, chunk, lsn);
        break;
    case RECORD_DELETE:
        replay_delete(engine, chunk, lsn);
        break;
    case RECORD_CLEAR:
        apply_clear(engine, chunk, record->number, lsn, true);
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
