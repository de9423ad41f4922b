/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reclaim.c: blocks that damaged leaves had: in use, but nobody's.  Found by a walk over all
 * leaves, in the background.
 *
 *     IDLE --> COPYING --> WALKING --> ENDING --> IDLE, and key Z goes
 *      ^        the map     each leaf   what is left over is given up
 *      |                       |
 *      '-- damaged leaves: they are put as they are, then again
 *
 * It begins at the start, or when a flush of the index is over, if key Z says that leaves were
 * lost: what they had in the index before is gone by then, and can't claim blocks any more.
 *
 * A candidate is a block that has been in use since it was copied, and of which no owner was seen.
 * Owners are: leaves; the queue of blocks given up, and FREE or BAD records under way; bad blocks.
 * A block that stays in use stays with the leaf that has it, so one look at each leaf is enough;
 * one that is given up, or freed, is no candidate any more (reclaim_forget()).  Kept extents will
 * be owners, too.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

#define RECLAIM_WINDOW      8u
#define RECLAIM_SLICE_WORDS (1u << 16) /* 16 GiB of blocks in a turn */

static uint64_t
map_words(const struct engine *engine)
{
    return (uint64_t)engine->alloc.slab_count * ALLOC_SLAB_WORDS;
}

void
reclaim_forget(struct engine *engine, uint64_t block, uint32_t count)
{
    uint64_t *candidates = engine->reclaim.candidates;

    for (uint64_t i = block; candidates != NULL && i < block + count; i++)
        candidates[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static void
reclaim_end(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;

    free(reclaim->candidates);
    free(reclaim->local_ids);
    *reclaim = (struct reclaim){
        .state = RECLAIM_IDLE, .again_seq = reclaim->again_seq, .never = reclaim->never};
    engine_kick(engine);
}

/* No memory: at the next start. */
static void
reclaim_give_up(struct engine *engine)
{
    engine->reclaim.never = true;
    reclaim_end(engine);
}

/* --- the beginning --- */

/* After the map: a chunk that came into being while that was copied has blocks in it, too. */
static bool
reclaim_copy_ids(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;
    struct chunk *chunk, *next;

    reclaim->local_ids = malloc((HASH_CNT(by_local_id, engine->chunks->by_local_id) + 1) *
                                sizeof(reclaim->local_ids[0]));
    if (reclaim->local_ids == NULL)
        return false;
    HASH_ITER (by_local_id, engine->chunks->by_local_id, chunk, next)
        reclaim->local_ids[reclaim->chunk_count++] = chunk->local_id;
    return true;
}

static void
reclaim_begin(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;

    reclaim->lost_seq = engine->lost_seq;
    reclaim->candidates = calloc(map_words(engine), sizeof(uint64_t));
    if (reclaim->candidates == NULL) {
        reclaim_give_up(engine);
        return;
    }
    reclaim->state = RECLAIM_COPYING;
    engine->counters.reclaims++;
}

/* Owners that are no leaves. */
static void
reclaim_forget_queues(struct engine *engine)
{
    const struct alloc *alloc = &engine->alloc;
    const struct group *group;

    for (uint32_t i = 0; i < alloc->queued.count; i++) {
        struct extent run = alloc_queue_at(&alloc->queued, i)->extent;

        reclaim_forget(engine, run.block, run.count);
    }
    list_for_each_entry (group, &engine->groups, node) {
        for (size_t i = 0; i < group->freed.count; i++)
            reclaim_forget(engine, group->freed.items[i].block, group->freed.items[i].count);
        for (size_t i = 0; i < group->worn.count; i++)
            reclaim_forget(engine, group->worn.items[i].block, group->worn.items[i].count);
    }
    for (const struct bad_block *bad = engine->bad; bad != NULL; bad = bad->next)
        reclaim_forget(engine, bad->block, 1);
}

/* Words [next, ...) of a slice; returns their end. */
static uint64_t
reclaim_slice_end(const struct engine *engine)
{
    uint64_t end = engine->reclaim.next_word + RECLAIM_SLICE_WORDS;

    return end < map_words(engine) ? end : map_words(engine);
}

static void
reclaim_copy(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;
    uint64_t end = reclaim_slice_end(engine);

    memcpy(reclaim->candidates + reclaim->next_word, engine->alloc.map + reclaim->next_word,
           (end - reclaim->next_word) * sizeof(uint64_t));
    for (uint64_t slab = reclaim->next_word / ALLOC_SLAB_WORDS; slab < end / ALLOC_SLAB_WORDS;
         slab++)
        reclaim_forget(engine, slab * SLAB_BLOCKS + SLAB_DATA_BLOCKS,
                       SLAB_BLOCKS - SLAB_DATA_BLOCKS);
    reclaim->next_word = end;
    if (end < map_words(engine))
        return;
    reclaim_forget_queues(engine);
    if (reclaim_copy_ids(engine))
        reclaim->state = RECLAIM_WALKING;
    else
        reclaim_give_up(engine);
}
static_assert(RECLAIM_SLICE_WORDS % ALLOC_SLAB_WORDS == 0, "whole slabs");

/* --- the walk --- */

/*
 * A damaged leaf has forgotten its blocks, but the index has not: it must, before somebody else
 * gets them.  One that can't be read may know them at the next start.
 */
static void
reclaim_look(struct engine *engine, struct leaf *leaf)
{
    struct reclaim *reclaim = &engine->reclaim;

    if (leaf->state != LEAF_LOADED) {
        reclaim->never = true;
        return;
    }
    if (leaf->damaged) {
        reclaim->again = true;
        dirty_mark_unjournaled(engine, &leaf->dirty);
        leaf_settle(engine, leaf);
        return;
    }
    for (uint32_t i = 0; i < LEAF_SECTORS; i++)
        if (leaf_sector_kind(&leaf->sectors[i]) == SECTOR_DATA)
            reclaim_forget(engine, leaf_sector_block(&leaf->sectors[i]), 1);
}

struct reclaim_waiter {
    struct leaf_waiter waiter;
    struct engine_chunk *chunk;
    uint32_t number;
};

size_t
reclaim_waiter_bytes(void)
{
    return sizeof(struct reclaim_waiter);
}

static void
reclaim_on_leaf(struct leaf_waiter *leaf_waiter, int err)
{
    struct reclaim_waiter *waiter = list_entry(leaf_waiter, struct reclaim_waiter, waiter);
    struct engine_chunk *chunk = waiter->chunk;
    struct engine *engine = chunk->engine;
    struct leaf *leaf = leaf_find(chunk, waiter->number);

    (void)err;
    dl_assert(leaf != NULL);
    dl_assert(engine->reclaim.state == RECLAIM_WALKING && engine->reclaim.pending > 0);
    engine->reclaim.pending--;
    chunk->refs--;
    freelist_give(&engine->reclaim_waiters, waiter);
    reclaim_look(engine, leaf);
    engine_kick(engine);
}

static void
reclaim_leaf(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    struct leaf *leaf = leaf_get(engine, chunk, number);
    struct reclaim_waiter *waiter;

    if (leaf->state == LEAF_LOADED || leaf->state == LEAF_CORRUPT) {
        reclaim_look(engine, leaf);
        leaf_settle(engine, leaf);
        return;
    }
    waiter = freelist_take(&engine->reclaim_waiters);
    *waiter = (struct reclaim_waiter){
        .waiter = {.fn = reclaim_on_leaf}, .chunk = chunk, .number = number};
    list_init(&waiter->waiter.node);
    engine->reclaim.pending++;
    chunk->refs++;
    leaf_wait(engine, leaf, &waiter->waiter);
}

/* As many leaves as may be looked at now.  A chunk that is gone has given up what it had. */
static void
reclaim_walk(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;
    uint32_t looked = 0;

    while (reclaim->chunk_idx < reclaim->chunk_count && reclaim->pending < RECLAIM_WINDOW &&
           looked++ < engine->slice_leaves) {
        struct chunk *chunk = chunk_table_find_local(engine->chunks,
                                                     reclaim->local_ids[reclaim->chunk_idx]);

        if (chunk != NULL && reclaim->next_leaf < engine_chunk_of(chunk)->leaf_count) {
            reclaim_leaf(engine, engine_chunk_of(chunk), reclaim->next_leaf++);
            continue;
        }
        reclaim->chunk_idx++;
        reclaim->next_leaf = 0;
    }
    if (reclaim->chunk_idx < reclaim->chunk_count || reclaim->pending > 0) {
        if (reclaim->pending < RECLAIM_WINDOW && reclaim->chunk_idx < reclaim->chunk_count)
            engine_kick_later(engine);
        return;
    }
    if (reclaim->again || reclaim->never) {
        /* Those damaged leaves are still to be put. */
        reclaim->again_seq = reclaim->lost_seq;
        reclaim_end(engine);
        return;
    }
    reclaim->next_word = 0;
    reclaim->state = RECLAIM_ENDING;
}

/* --- the end --- */

static void
reclaim_give_up_word(struct engine *engine, uint64_t word)
{
    uint64_t *bits = &engine->reclaim.candidates[word];

    while (*bits != 0) {
        uint64_t block = word * 64 + (uint64_t)__builtin_ctzll(*bits);

        *bits &= *bits - 1;
        engine->lost_free_seq = alloc_give_up(&engine->alloc, block, 1);
        engine->counters.blocks_reclaimed++;
    }
}

/* The key that says that there are such blocks goes when their FREE records are durable. */
static void
reclaim_finish(struct engine *engine)
{
    uint64_t end = reclaim_slice_end(engine);

    for (uint64_t word = engine->reclaim.next_word; word < end; word++)
        reclaim_give_up_word(engine, word);
    engine->reclaim.next_word = end;
    engine_kick_later(engine);
    if (end < map_words(engine))
        return;
    engine->lost_searched = engine->reclaim.lost_seq;
    engine->lost_over = engine->lost_searched == engine->lost_seq;
    engine_arm_idle(engine);
    reclaim_end(engine);
}

/* Leaves were lost, and the index has forgotten for good what they had. */
static bool
reclaim_is_due(const struct engine *engine)
{
    return engine->lost_searched < engine->lost_seq && engine->lost_flushed == engine->lost_seq &&
           engine->lost_flushed > engine->reclaim.again_seq && !engine->reclaim.never;
}

void
reclaim_step(struct engine *engine)
{
    struct reclaim *reclaim = &engine->reclaim;

    if (engine->stopped != 0 || engine->stopping)
        return;
    if (reclaim->state == RECLAIM_IDLE && reclaim_is_due(engine))
        reclaim_begin(engine);
    switch (reclaim->state) {
    case RECLAIM_IDLE:
        return;
    case RECLAIM_COPYING:
        reclaim_copy(engine);
        engine_kick_later(engine);
        return;
    case RECLAIM_WALKING:
        reclaim_walk(engine);
        return;
    case RECLAIM_ENDING:
        reclaim_finish(engine);
        return;
    }
}

bool
reclaim_is_idle(const struct engine *engine)
{
    return engine->reclaim.state == RECLAIM_IDLE && !engine->lost_over && !reclaim_is_due(engine);
}

void
reclaim_fini(struct engine *engine)
{
    free(engine->reclaim.candidates);
    free(engine->reclaim.local_ids);
}
