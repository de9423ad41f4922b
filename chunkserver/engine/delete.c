/* SPDX-License-Identifier: Apache-2.0 */
/*
 * delete.c: giving back the space of deleted chunks, in the background.
 *
 *     DELETE durable
 *       --> leaf after leaf: read, CLEAR record, written back (empty, with its LSN)
 *       --> all cleared, the tail past the last CLEAR: its record and its leaves' keys go
 *
 * Invariants:
 * 1. No other record of the chunk follows its DELETE (write.c, change.c).
 * 2. At most DELETE_WINDOW leaves of one chunk at a time are read or cleared, so that foreground
 *    writes keep their share.
 * 3. A chunk's record outlives, in the index, all journal records that name it: replay never meets
 *    an unknown chunk.
 */
#include <stdlib.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

#define DELETE_WINDOW 16u

void
delete_begin(struct engine *engine, struct engine_chunk *chunk)
{
    dl_assert(chunk->chunk->state == CHUNK_DELETING);
    if (!list_is_linked(&chunk->deletion_node))
        list_push_back(&engine->deletions, &chunk->deletion_node);
    chunk->deletion_durable = true;
}

/* The leaf is in memory: a CLEAR for what it has. */
static void
delete_clear(struct engine *engine, struct leaf *leaf)
{
    struct op *op;

    /*
     * Invariant 1: nothing but a CLEAR can change it any more.  Of an unreadable leaf the key at
     * least can go.
     */
    if (leaf->state == LEAF_LOADED && leaf_is_empty(leaf->sectors))
        return;
    op = op_create(engine, RECORD_CLEAR, leaf->chunk);
    op->number = leaf->number;
    leaf->chunk->clears_pending++;
    op_ready(engine, op);
}

struct delete_waiter {
    struct leaf_waiter waiter;
    struct engine_chunk *chunk;
    uint32_t number;
};

size_t
delete_waiter_bytes(void)
{
    return sizeof(struct delete_waiter);
}

static void
delete_on_leaf(struct leaf_waiter *leaf_waiter, int err)
{
    struct delete_waiter *waiter = list_entry(leaf_waiter, struct delete_waiter, waiter);
    struct engine_chunk *chunk = waiter->chunk;
    struct engine *engine = chunk->engine;
    struct leaf *leaf = leaf_find(chunk, waiter->number);

    (void)err;
    dl_assert(leaf != NULL);
    dl_assert(chunk->clears_pending > 0);
    chunk->clears_pending--;
    freelist_give(&engine->delete_waiters, waiter);
    if (engine->stopped == 0 && !engine->stopping)
        delete_clear(engine, leaf);
    engine_kick(engine);
}

static void
delete_leaf(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    struct leaf *leaf = leaf_get(engine, chunk, number);
    struct delete_waiter *waiter;

    if (leaf->state == LEAF_LOADED || leaf->state == LEAF_CORRUPT) {
        delete_clear(engine, leaf);
        return;
    }
    waiter = freelist_take(&engine->delete_waiters);
    *waiter = (struct delete_waiter){
        .waiter = {.fn = delete_on_leaf}, .chunk = chunk, .number = number};
    list_init(&waiter->waiter.node);
    chunk->clears_pending++;
    leaf_wait(engine, leaf, &waiter->waiter);
}

void
delete_cleared(struct engine *engine, struct engine_chunk *chunk)
{
    dl_assert(chunk->clears_pending > 0);
    chunk->clears_pending--;
    engine_kick(engine);
}

void
delete_step(struct engine *engine)
{
    struct engine_chunk *chunk, *next;

    if (engine->stopped != 0 || engine->stopping)
        return;
    list_for_each_entry_safe (chunk, next, &engine->deletions, deletion_node) {
        if (!chunk->deletion_durable)
            return; /* nor are those behind it */
        while (chunk->clear_next < chunk->leaf_count && chunk->clears_pending < DELETE_WINDOW)
            delete_leaf(engine, chunk, chunk->clear_next++);
        if (chunk->clear_next < chunk->leaf_count || chunk->clears_pending > 0)
            return; /* one chunk after the other */
        chunk->cleared = true;
        list_remove(&chunk->deletion_node);
        list_push_back(&engine->cleared, &chunk->deletion_node);
    }
}

bool
delete_may_forget(const struct engine *engine, const struct engine_chunk *chunk)
{
    if (!chunk->cleared || chunk->refs > 0 ||
        (chunk->last_lsn >= engine->tail && !DLBLK_MUTANT(forget_early)))
        return false;
    for (uint32_t i = 0; i < chunk->leaf_capacity; i++)
        if (chunk->leaves[i] != NULL && leaf_is_pinned(chunk->leaves[i]))
            return false;
    return true;
}

void
delete_forget(struct engine *engine, struct engine_chunk *chunk)
{
    dl_assert(chunk->refs == 0);
    dl_assert(list_is_empty(&chunk->writes));
    leaf_forget_all(engine, chunk);
    forget_chunk_fini(chunk);
    free(chunk->leaves);
    if (list_is_linked(&chunk->dirty.node))
        list_remove(&chunk->dirty.node);
    list_remove(&chunk->deletion_node);
    chunk_table_remove(engine->chunks, chunk->chunk);
    freelist_give(&engine->chunks_pool, chunk);
    engine->counters.chunks_forgotten++;
}
