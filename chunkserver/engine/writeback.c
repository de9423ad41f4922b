/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writeback.c: what differs from the index goes there, oldest first, so that the tail of the ring
 * can move.
 *
 *     IDLE --> LOADING --> WAITING --> BATCH --> IDLE, or FLUSH --> IDLE
 *       collect:  leaves     staged:     in the    tail = position
 *       oldest    are read   bytes are   index     of the batch
 *       first                fixed
 *
 * A thing is staged as it is at that moment, and leaves the dirty list; what changes it afterwards
 * makes it dirty again.  So a leaf that changes with every group can be written back as well as any
 * other.
 *
 * Invariants:
 * 1. A batch enters the index only when every change in it lies below a mark in a durable journal
 *    block.  Replay trusts what is below a mark, and may drop what is above: the index must not
 *    know more than the journal.
 * 2. ... and when the FREE records of all blocks that its leaves gave up are durable: replay skips
 *    changes that a stored leaf has, so nobody would give these blocks up again, and they would be
 *    lost.
 * 3. A batch's position is the lowest recovery_lsn of what stays dirty, or the end of what is
 *    acknowledged: a crash that keeps the batch replays all that it does not have.  Leaves and
 *    position share the batch.
 * 4. The tail moves only when a flush that was started after the batch has completed: a crash may
 *    take the index back to that flush, and then needs the journal from there.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

#define FORGOTTEN_KEYS_MAX 4096u /* deleted in one batch, but for the last chunk's */

/* --- what goes next --- */

static uint64_t
first_recovery_lsn(const struct engine *engine)
{
    return list_is_empty(&engine->dirty)
               ? UINT64_MAX
               : list_first_entry(&engine->dirty, struct dirty, node)->recovery_lsn;
}

/* Up to where the tail is wanted, apart from what the ring's fill asks for. */
static uint64_t
wanted_position(const struct engine *engine)
{
    if (engine->client_blocked || engine->writeback.stopping)
        return engine->acked_lsn;
    return engine->writeback.target_lsn;
}

/* Is there a reason to write back now? */
static bool
writeback_is_due(const struct engine *engine)
{
    /* Not only below it: what changed without a record bears the LSN of the next block. */
    if (first_recovery_lsn(engine) <= wanted_position(engine))
        return true;
    if (engine->writeback.stopping && !list_is_empty(&engine->dirty))
        return true;
    return engine_fill_permille(engine) >= 250;
}

/* Rough size of what it will add to the batch. */
static uint64_t
item_bytes(const struct dirty *dirty)
{
    switch (dirty->kind) {
    case DIRTY_LEAF:
        return 128;
    case DIRTY_BITMAP:
        return sizeof(struct index_bitmap_disk);
    default:
        return 96;
    }
}

static void
collect_item(struct engine *engine, struct dirty *dirty)
{
    struct writeback *wb = &engine->writeback;
    int err = vec_push(&wb->items, dirty);

    dl_assert(err == 0);
    if (dirty->kind == DIRTY_LEAF) {
        struct leaf *leaf = list_entry(dirty, struct leaf, dirty);

        leaf->for_writeback = true;
        leaf_request(engine, leaf);
        wb->loads_pending += leaf->state == LEAF_LOADING;
    }
}

/*
 * The oldest things, up to the limits of a batch; when requests wait for room, at least all that
 * holds a quarter of the ring, so that each round makes more room than it takes.
 */
static void
collect(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;
    uint64_t urgent_lsn = engine->client_blocked ? engine->tail + engine->ring_units / 4 : 0;
    uint64_t bytes = 0;
    struct dirty *dirty;

    list_for_each_entry (dirty, &engine->dirty, node) {
        bool full = bytes >= WRITEBACK_BATCH_BYTES ||
                    wb->items.count >= engine->writeback_items_max;

        if (full && dirty->recovery_lsn >= urgent_lsn)
            return;
        bytes += item_bytes(dirty);
        collect_item(engine, dirty);
    }
}

/*
 * Those that were cleared first are free to go first: the tail passes their records in that order.
 */
static void
collect_forgotten(struct engine *engine)
{
    struct engine_chunk *chunk;
    uint64_t keys = 0;

    list_for_each_entry (chunk, &engine->cleared, deletion_node) {
        int err;

        if (keys >= FORGOTTEN_KEYS_MAX || !delete_may_forget(engine, chunk))
            return;
        keys += 1 + chunk->leaf_count;
        err = vec_push(&engine->writeback.forgotten, chunk);
        dl_assert(err == 0);
        if (list_is_linked(&chunk->dirty.node))
            list_remove(&chunk->dirty.node);
    }
}

/* --- the steps --- */

static void
writeback_stage(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    dl_assert(wb->loads_pending == 0);
    vec_clear(&wb->staged);
    wb->needs_free_seq = 0;
    /* First: what follows may have lost leaves again. */
    stage_lost_over(engine);
    vec_for_each (item, &wb->items) {
        bool news = list_is_linked(&(*item)->node);
        struct leaf *leaf = NULL;

        if ((*item)->kind == DIRTY_LEAF) {
            leaf = list_entry(*item, struct leaf, dirty);
            leaf->for_writeback = false;
        }
        if (news) {
            stage_item(engine, *item);
            continue;
        }
        /* What was replayed turned out to be no news when the leaf was read. */
        *item = NULL;
        if (leaf != NULL)
            leaf_settle(engine, leaf);
    }
    stage_forgotten(engine);
    forget_stage_emptied(engine);
    stage_position(engine);
    wb->state = WRITEBACK_WAITING;
}

static bool
writeback_begin(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;
    bool due = writeback_is_due(engine);

    vec_clear(&wb->items);
    vec_clear(&wb->forgotten);
    collect_forgotten(engine);
    if (due)
        collect(engine);
    /* With nothing else to do, the position alone can make room. */
    if (wb->items.count == 0 && wb->forgotten.count == 0 && !forget_has_emptied(engine) &&
        !engine->lost_over &&
        !(list_is_empty(&engine->dirty) && wb->batch_position < wanted_position(engine)))
        return false;
    wb->state = WRITEBACK_LOADING;
    return true;
}

/* Invariants 1 and 2. */
static bool
writeback_may_enter(const struct engine *engine)
{
    const struct writeback *wb = &engine->writeback;

    return wb->lsn_max < engine->durable_mark &&
           (wb->needs_free_seq <= engine->alloc.freed_durable_seq ||
            DLBLK_MUTANT(leaf_before_free));
}

bool
writeback_wants_block(const struct engine *engine)
{
    const struct writeback *wb = &engine->writeback;
    uint64_t named_seq = engine->alloc.freed_durable_seq + engine->alloc.named_blocks;

    if (wb->state != WRITEBACK_WAITING)
        return false;
    return engine->composed_mark <= wb->lsn_max || named_seq < wb->needs_free_seq;
}

static void
writeback_settle_items(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    vec_for_each (item, &wb->items) {
        struct leaf *leaf;

        if (*item == NULL || (*item)->kind != DIRTY_LEAF)
            continue;
        leaf = list_entry(*item, struct leaf, dirty);
        leaf->staged = false;
        leaf_settle(engine, leaf);
    }
    vec_for_each (forgotten, &wb->forgotten)
        delete_forget(engine, *forgotten);
    vec_clear(&wb->items);
    vec_clear(&wb->forgotten);
    leaf_cache_trim(engine);
}

static void
writeback_on_batch(void *context, int err)
{
    struct engine *engine = context;
    struct writeback *wb = &engine->writeback;

    dl_assert(wb->state == WRITEBACK_BATCH);
    wb->state = WRITEBACK_IDLE;
    if (err != 0) {
        engine_fail(engine, -DL_E_MEDIA_WRITE);
    } else {
        wb->index_dirty = true;
        wb->batch_records = ring_records_below(engine, wb->batch_position);
        engine->counters.writebacks++;
        writeback_settle_items(engine);
        if (DLBLK_MUTANT(tail_before_flush))
            ring_set_tail(engine, wb->batch_position);
    }
    engine_kick(engine);
}

static void
writeback_enter(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;
    const struct index_ops *ops = engine->index->ops;
    struct index_batch *batch = ops->batch_create(engine->index);
    size_t at = 0;

    while (at < wb->staged.count) {
        struct staged_op header;
        const uint8_t *key, *value;

        memcpy(&header, wb->staged.items + at, sizeof(header));
        key = wb->staged.items + at + sizeof(header);
        value = key + header.key_bytes;
        if (header.kind == STAGED_PUT)
            ops->batch_put(batch, key, header.key_bytes, value, header.value_bytes);
        else if (header.kind == STAGED_MERGE)
            ops->batch_merge(batch, key, header.key_bytes, value, header.value_bytes);
        else
            ops->batch_delete(batch, key, header.key_bytes);
        at += sizeof(header) + header.key_bytes + header.value_bytes;
    }
    wb->state = WRITEBACK_BATCH;
    ops->batch_start(engine->index, batch, writeback_on_batch, engine);
}

static void
writeback_on_flush(void *context, int err)
{
    struct engine *engine = context;
    struct writeback *wb = &engine->writeback;

    dl_assert(wb->state == WRITEBACK_FLUSH);
    wb->state = WRITEBACK_IDLE;
    if (err != 0) {
        engine_fail(engine, -DL_E_MEDIA_WRITE);
    } else {
        engine->counters.index_flushes++;
        engine->lost_flushed = engine->lost_flushing;
        ring_set_tail(engine, wb->flush_position);
    }
    engine_kick(engine);
}

/*
 * Each eighth of the ring or of the record limit; when requests wait for room; and when all that
 * was asked for is in the index.
 */
static bool
writeback_flush_is_due(const struct engine *engine)
{
    const struct writeback *wb = &engine->writeback;

    if (!wb->index_dirty)
        return false;
    if (engine->client_blocked && wb->batch_position > engine->tail)
        return true;
    if (wb->stopping && list_is_empty(&engine->dirty) && wb->batch_position == engine->acked_lsn)
        return true;
    if (wb->target_lsn > engine->tail && wb->batch_position >= wb->target_lsn)
        return true;
    /* Also when the position did not move: what has no record is durable by this flush alone. */
    if (wb->flush_all && list_is_empty(&engine->dirty))
        return true;
    return wb->batch_position - engine->tail >= engine->ring_units / 8 ||
           wb->batch_records >= engine->records_max / 8;
}

static void
writeback_flush(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    wb->state = WRITEBACK_FLUSH;
    wb->flush_position = wb->batch_position;
    engine->lost_flushing = engine->lost_seq;
    wb->index_dirty = false;
    if (list_is_empty(&engine->dirty))
        wb->flush_all = false;
    engine->index->ops->flush_start(engine->index, writeback_on_flush, engine);
}

void
writeback_step(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    /* A group that is half applied is not staged: its LSN would stand for all of it. */
    if (engine->stopped != 0 || engine->applying)
        return;
    if (wb->state == WRITEBACK_IDLE && writeback_flush_is_due(engine))
        writeback_flush(engine);
    else if (wb->state == WRITEBACK_IDLE && !writeback_begin(engine))
        return;
    if (wb->state == WRITEBACK_LOADING && wb->loads_pending == 0)
        writeback_stage(engine);
    if (wb->state == WRITEBACK_WAITING && writeback_may_enter(engine))
        writeback_enter(engine);
}

void
writeback_leaf_loaded(struct engine *engine)
{
    dl_assert(engine->writeback.state == WRITEBACK_LOADING);
    dl_assert(engine->writeback.loads_pending > 0);
    engine->writeback.loads_pending--;
}

void
writeback_all(struct engine *engine)
{
    engine->writeback.target_lsn = engine->acked_lsn;
    engine->writeback.flush_all = true;
}

void
writeback_fini(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    vec_fini(&wb->items);
    vec_fini(&wb->forgotten);
    vec_fini(&wb->staged);
}
