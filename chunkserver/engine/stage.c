/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stage.c: the bytes of a batch: what the index is to hold, encoded as it is at this moment.
 *
 * They wait in engine.writeback.staged until the batch may enter the index (writeback.c).
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

static void
stage(struct engine *engine, enum staged_kind kind, const uint8_t *key, uint32_t key_bytes,
      const void *value, uint32_t value_bytes)
{
    struct writeback *wb = &engine->writeback;
    struct staged_op header = {
        .kind = (uint8_t)kind, .key_bytes = (uint8_t)key_bytes, .value_bytes = value_bytes};
    size_t bytes = sizeof(header) + key_bytes + value_bytes;
    int err = vec_reserve(&wb->staged, wb->staged.count + bytes);
    uint8_t *at;

    dl_assert(err == 0);
    dl_assert(key_bytes <= INDEX_KEY_BYTES_MAX);
    at = wb->staged.items + wb->staged.count;
    memcpy(at, &header, sizeof(header));
    memcpy(at + sizeof(header), key, key_bytes);
    if (value_bytes > 0)
        memcpy(at + sizeof(header) + key_bytes, value, value_bytes);
    wb->staged.count += bytes;
}

static void stage_lost(struct engine *engine);

static void
stage_leaf_deltas(struct engine *engine, struct leaf *leaf, const uint8_t *key, uint32_t key_bytes)
{
    uint8_t value[LEAF_FRAGMENT_BYTES_MAX];

    /*
     * The stored part cannot be read.  What was written since is kept beside it; which blocks that
     * gave up nobody knows.
     */
    for (const struct leaf_delta *delta = leaf->deltas; delta != NULL; delta = delta->next) {
        bool whole = delta->kind == SECTOR_HOLE && delta->rule == LEAF_WRITE;
        enum staged_kind kind = whole ? STAGED_PUT : STAGED_MERGE;

        stage(engine, kind, key, key_bytes, value, leaf_encode_delta(delta, value));
    }
    leaf_drop_deltas(engine, leaf);
    stage_lost(engine);
}

/*
 * With this leaf the index forgets which blocks the damaged one had.  They stay in use until
 * reclaim.c has found them, and whoever compares the map with the leaves must know why.
 */
static void
stage_lost(struct engine *engine)
{
    uint8_t key = INDEX_LOST;
    struct index_lost_disk value;
    uint32_t bytes = index_lost_encode(&value);

    engine->leaves_lost = true;
    engine->lost_seq++;
    stage(engine, STAGED_PUT, &key, 1, &value, bytes);
}

void
stage_lost_over(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;
    uint8_t key = INDEX_LOST;

    if (!engine->lost_over)
        return;
    engine->lost_over = false;
    if (engine->lost_searched < engine->lost_seq)
        return; /* once more, later */
    engine->leaves_lost = false;
    stage(engine, STAGED_DELETE, &key, 1, NULL, 0);
    if (engine->lost_free_seq > wb->needs_free_seq)
        wb->needs_free_seq = engine->lost_free_seq;
}

static void
stage_leaf(struct engine *engine, struct leaf *leaf)
{
    struct writeback *wb = &engine->writeback;
    uint8_t key[INDEX_KEY_BYTES_MAX], value[LEAF_FRAGMENT_BYTES_MAX];
    uint32_t key_bytes = index_key_leaf(key, leaf->chunk->chunk->local_id, leaf->number);

    dl_assert(leaf->dirty.lsn >= leaf->stored_lsn);
    if (leaf->state == LEAF_CORRUPT) {
        stage_leaf_deltas(engine, leaf, key, key_bytes);
    } else {
        bool empty = leaf_is_empty(leaf->sectors);
        /* A delta of everything is as long, and leaves behind what it replaces. */
        bool whole = !leaf->stored || leaf->fragments >= LEAF_FRAGMENTS_MAX || empty ||
                     leaf->changed == UINT64_MAX;
        uint32_t bytes = leaf_encode(leaf->sectors, leaf->changed, whole, leaf->dirty.lsn, value);

        stage(engine, whole ? STAGED_PUT : STAGED_MERGE, key, key_bytes, value, bytes);
        engine->counters.leaves_put += whole;
        engine->counters.leaves_merged += !whole;
        if (leaf->damaged)
            stage_lost(engine);
        leaf->damaged = false;
        leaf->stored = true;
        leaf->fragments = whole ? 1 : leaf->fragments + 1;
        if (empty)
            forget_on_staged_empty(engine, leaf);
    }
    leaf->stored_lsn = leaf->dirty.lsn;
    leaf->changed = 0;
    leaf->staged = true;
    if (leaf->needs_free_seq > wb->needs_free_seq)
        wb->needs_free_seq = leaf->needs_free_seq;
}

static void
stage_chunk(struct engine *engine, const struct engine_chunk *chunk)
{
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes = index_key_id(key, INDEX_CHUNK, chunk->chunk->local_id);
    size_t bytes = index_chunk_bytes(chunk->chunk);
    uint8_t *value = malloc(bytes);

    dl_assert(value != NULL);
    index_chunk_encode(chunk, value);
    stage(engine, STAGED_PUT, key, key_bytes, value, (uint32_t)bytes);
    free(value);
}

static void
stage_fence(struct engine *engine, const struct engine_volume *volume)
{
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes = index_key_id(key, INDEX_FENCE, volume->volume->volume);
    struct index_fence_disk value;
    uint32_t bytes = index_fence_encode(volume->volume->lease_epoch, &value);

    stage(engine, STAGED_PUT, key, key_bytes, &value, bytes);
}

static void
stage_bitmap(struct engine *engine, const struct bitmap_page *page)
{
    uint32_t number = (uint32_t)(page - engine->pages);
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes = index_key_page(key, number);
    struct index_bitmap_disk value;
    uint32_t bytes = index_bitmap_encode(&engine->alloc, number, page->dirty.lsn, &value);

    stage(engine, STAGED_PUT, key, key_bytes, &value, bytes);
    engine->counters.bitmap_pages_put++;
}

static void
stage_bad(struct engine *engine, const struct bad_block *bad)
{
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes = index_key_id(key, INDEX_BAD, bad->block);
    struct index_bad_disk value;
    uint32_t bytes = index_bad_encode(bad->dirty.lsn, &value);

    stage(engine, STAGED_PUT, key, key_bytes, &value, bytes);
}

void
stage_item(struct engine *engine, struct dirty *dirty)
{
    switch (dirty->kind) {
    case DIRTY_LEAF:
        stage_leaf(engine, list_entry(dirty, struct leaf, dirty));
        break;
    case DIRTY_CHUNK:
        stage_chunk(engine, list_entry(dirty, struct engine_chunk, dirty));
        break;
    case DIRTY_FENCE:
        stage_fence(engine, list_entry(dirty, struct engine_volume, dirty));
        break;
    case DIRTY_BITMAP:
        stage_bitmap(engine, list_entry(dirty, struct bitmap_page, dirty));
        break;
    case DIRTY_BAD:
        stage_bad(engine, list_entry(dirty, struct bad_block, dirty));
        break;
    }
    if (dirty->lsn > engine->writeback.lsn_max)
        engine->writeback.lsn_max = dirty->lsn;
    list_remove(&dirty->node);
}

void
stage_leaf_delete(struct engine *engine, const struct engine_chunk *chunk, uint32_t number)
{
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes = index_key_leaf(key, chunk->chunk->local_id, number);

    stage(engine, STAGED_DELETE, key, key_bytes, NULL, 0);
    engine->counters.leaves_deleted++;
}

/*
 * The keys of its empty leaves.  Not as soon as a leaf is empty: its LSN must be known for as long
 * as the journal has changes of it.  An empty leaf without one would take them all again, and a
 * change that once lost at once against what was stored would now give its block up at the CLEAR,
 * after the FREE record of that block: a block that others may use by then.
 */
static void
stage_forgotten_leaves(struct engine *engine, const struct engine_chunk *chunk)
{
    for (uint32_t number = 0; number < chunk->leaf_count; number++)
        stage_leaf_delete(engine, chunk, number);
}

void
stage_forgotten(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;

    vec_for_each (forgotten, &wb->forgotten) {
        uint8_t key[INDEX_KEY_BYTES_MAX];
        uint32_t key_bytes = index_key_id(key, INDEX_CHUNK, (*forgotten)->chunk->local_id);

        stage(engine, STAGED_DELETE, key, key_bytes, NULL, 0);
        stage_forgotten_leaves(engine, *forgotten);
    }
}

void
stage_position(struct engine *engine)
{
    struct writeback *wb = &engine->writeback;
    struct index_position position = {.incarnation = engine->superblock.incarnation,
                                      .lsn_highest = wb->lsn_max,
                                      .local_id_next = engine->local_id_next};
    struct index_position_disk value;
    uint8_t key = INDEX_POSITION;

    wb->batch_position = list_is_empty(&engine->dirty)
                             ? engine->acked_lsn
                             : list_first_entry(&engine->dirty, struct dirty, node)->recovery_lsn;
    dl_assert(wb->batch_position <= engine->acked_lsn);
    dl_assert(wb->batch_position >= engine->tail);
    memcpy(position.disk_uuid, engine->superblock.disk_uuid, sizeof(position.disk_uuid));
    position.position = wb->batch_position;
    index_position_encode(&position, &value);
    stage(engine, STAGED_PUT, &key, 1, &value, sizeof(value));
}
