/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forget.c: zero extents that no slot of the segment needs any more become holes, and leaves with
 * nothing in them leave the index.
 *
 *     STORE_FORGET: up to version F
 *       --> each leaf that may have zeroes: read, FORGET record if it has some up to F
 *       --> a leaf that is empty now: written back empty, with its LSN
 *       --> the tail past that LSN: its key goes
 *
 * Which leaves may have zeroes is known by bits that are set when zeroes are written, pulled,
 * replayed, or seen in a leaf that was read.  After a start the bits of leaves that nobody has
 * read are missing: their zeroes stay until then, and cost nothing but room.
 *
 * Invariants:
 * 1. F is at or below the chunk's S, which is durable, and the chunk is in-sync.
 * 2. No FORGET follows the chunk's DELETE.
 * 3. The key of an empty leaf goes when no record from the tail on names the leaf: replay would
 *    apply to the hole what the leaf's LSN tells it to skip.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/align.h"

#define FORGET_WINDOW    16u
#define EMPTIED_KEYS_MAX 4096u /* deleted in one batch, but for the last chunk's */

/* --- sets of leaves --- */

void
leaf_set_add(struct leaf_set *set, uint32_t number)
{
    uint32_t word = number / 64;

    if (word >= set->word_count) {
        uint32_t count = set->word_count * 2 > word ? set->word_count * 2 : word + 1;
        uint64_t *words = realloc(set->words, count * sizeof(*words));

        dl_assert(words != NULL);
        memset(words + set->word_count, 0, (count - set->word_count) * sizeof(*words));
        set->words = words;
        set->word_count = count;
    }
    if ((set->words[word] >> (number % 64) & 1) == 0)
        set->count++;
    set->words[word] |= UINT64_C(1) << (number % 64);
}

void
leaf_set_remove(struct leaf_set *set, uint32_t number)
{
    uint64_t bit = UINT64_C(1) << (number % 64);

    if (set->count == 0 || number / 64 >= set->word_count || (set->words[number / 64] & bit) == 0)
        return;
    set->words[number / 64] &= ~bit;
    set->count--;
}

/* The first at or above `number`; UINT32_MAX: none. */
static uint32_t
leaf_set_next(const struct leaf_set *set, uint32_t number)
{
    for (uint32_t word = number / 64; set->count > 0 && word < set->word_count; word++) {
        uint64_t bits = set->words[word];

        if (word == number / 64)
            bits &= UINT64_MAX << (number % 64);
        if (bits != 0)
            return word * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return UINT32_MAX;
}

/* --- what is seen --- */

static bool
leaf_has_zeroes(const struct leaf *leaf, uint64_t up_to_version)
{
    for (uint32_t i = 0; i < LEAF_SECTORS; i++)
        if (leaf_sector_kind(&leaf->sectors[i]) == SECTOR_ZERO &&
            leaf->sectors[i].version <= up_to_version)
            return true;
    return false;
}

static void
forget_add_emptied(struct engine *engine, struct engine_chunk *chunk, uint32_t number, uint64_t lsn)
{
    leaf_set_add(&chunk->emptied, number);
    if (lsn > chunk->emptied_lsn)
        chunk->emptied_lsn = lsn;
    if (!list_is_linked(&chunk->emptied_node))
        list_push_back(&engine->emptied, &chunk->emptied_node);
    engine_arm_idle(engine);
}

void
forget_on_loaded(struct engine *engine, const struct leaf *leaf)
{
    struct engine_chunk *chunk = leaf->chunk;

    if (chunk->chunk->state != CHUNK_PRESENT)
        return;
    if (leaf_has_zeroes(leaf, UINT64_MAX))
        leaf_set_add(&chunk->zeroes, leaf->number);
    if (leaf->stored && !list_is_linked(&leaf->dirty.node) && leaf_is_empty(leaf->sectors))
        forget_add_emptied(engine, chunk, leaf->number, leaf->stored_lsn);
}

void
forget_on_changed(struct engine_chunk *chunk, uint32_t number, uint8_t kind)
{
    leaf_set_remove(&chunk->emptied, number);
    if (kind == SECTOR_ZERO)
        leaf_set_add(&chunk->zeroes, number);
}

void
forget_on_staged_empty(struct engine *engine, const struct leaf *leaf)
{
    if (leaf->chunk->chunk->state == CHUNK_PRESENT)
        forget_add_emptied(engine, leaf->chunk, leaf->number, leaf->dirty.lsn);
}

/* --- zeroes --- */

/* May zeroes of the chunk be forgotten as it is now?  Invariants 1 and 2. */
static bool
forget_may_go_on(const struct engine_chunk *chunk)
{
    return chunk->chunk->state == CHUNK_PRESENT && chunk->chunk->attempt == 0 &&
           !recover_is_beginning(chunk);
}

/* The leaf is in memory, or can't be read. */
static void
forget_look(struct engine *engine, struct leaf *leaf)
{
    struct engine_chunk *chunk = leaf->chunk;
    struct op *op;

    if (leaf->state != LEAF_LOADED || !leaf_has_zeroes(leaf, UINT64_MAX)) {
        leaf_set_remove(&chunk->zeroes, leaf->number);
        return;
    }
    if (!forget_may_go_on(chunk) || !leaf_has_zeroes(leaf, chunk->forget_version))
        return;
    op = op_create(engine, RECORD_FORGET, chunk);
    op->number = leaf->number;
    op->version = chunk->forget_version;
    chunk->forgets_pending++;
    op_ready(engine, op);
}

struct forget_waiter {
    struct leaf_waiter waiter;
    struct engine_chunk *chunk;
    uint32_t number;
};

size_t
forget_waiter_bytes(void)
{
    return sizeof(struct forget_waiter);
}

static void
forget_on_leaf(struct leaf_waiter *leaf_waiter, int err)
{
    struct forget_waiter *waiter = list_entry(leaf_waiter, struct forget_waiter, waiter);
    struct engine_chunk *chunk = waiter->chunk;
    struct engine *engine = chunk->engine;
    struct leaf *leaf = leaf_find(chunk, waiter->number);

    (void)err;
    dl_assert(leaf != NULL);
    dl_assert(chunk->forgets_pending > 0);
    chunk->forgets_pending--;
    chunk->refs--;
    freelist_give(&engine->forget_waiters, waiter);
    if (engine->stopped == 0 && !engine->stopping)
        forget_look(engine, leaf);
    engine_kick(engine);
}

static void
forget_leaf(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    struct leaf *leaf = leaf_get(engine, chunk, number);
    struct forget_waiter *waiter;

    if (leaf->state == LEAF_LOADED || leaf->state == LEAF_CORRUPT) {
        forget_look(engine, leaf);
        leaf_settle(engine, leaf);
        return;
    }
    waiter = freelist_take(&engine->forget_waiters);
    *waiter = (struct forget_waiter){
        .waiter = {.fn = forget_on_leaf}, .chunk = chunk, .number = number};
    list_init(&waiter->waiter.node);
    chunk->forgets_pending++;
    chunk->refs++;
    leaf_wait(engine, leaf, &waiter->waiter);
}

void
forget_applied(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    const struct leaf *leaf = leaf_find(chunk, number);

    dl_assert(chunk->forgets_pending > 0);
    chunk->forgets_pending--;
    if (leaf != NULL && leaf->state == LEAF_LOADED && !leaf_has_zeroes(leaf, UINT64_MAX))
        leaf_set_remove(&chunk->zeroes, number);
    engine_kick(engine);
}

void
forget_start(struct engine *engine, struct store_change *change)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &change->key);
    struct engine_chunk *private;

    engine_finish_change_later(engine, change, 0);
    if (chunk == NULL || change->stable_version > chunk->stable_version)
        return;
    private = engine_chunk_of(chunk);
    if (!forget_may_go_on(private) || private->zeroes.count == 0)
        return;
    private->forget_version = max_u64(private->forget_version, change->stable_version);
    private->forget_next = 0;
    if (!list_is_linked(&private->forget_node))
        list_push_back(&engine->forgets, &private->forget_node);
}

/* Returns whether the chunk is done with. */
static bool
forget_chunk(struct engine *engine, struct engine_chunk *chunk)
{
    uint32_t number;

    if (!forget_may_go_on(chunk))
        return true;
    while (chunk->forgets_pending < FORGET_WINDOW &&
           (number = leaf_set_next(&chunk->zeroes, chunk->forget_next)) != UINT32_MAX) {
        chunk->forget_next = number + 1;
        forget_leaf(engine, chunk, number);
    }
    return chunk->forgets_pending == 0 &&
           leaf_set_next(&chunk->zeroes, chunk->forget_next) == UINT32_MAX;
}

void
forget_step(struct engine *engine)
{
    struct engine_chunk *chunk, *next;

    if (engine->stopped != 0 || engine->stopping)
        return;
    list_for_each_entry_safe (chunk, next, &engine->forgets, forget_node) {
        if (!forget_chunk(engine, chunk))
            return; /* one chunk after the other */
        list_remove(&chunk->forget_node);
    }
}

/* --- empty leaves --- */

static bool
emptied_is_due(const struct engine *engine, const struct engine_chunk *chunk)
{
    return chunk->emptied_lsn < engine->tail;
}

bool
forget_has_emptied(struct engine *engine)
{
    struct engine_chunk *chunk, *next;
    bool any = false;

    if (engine->stopping)
        return false;
    list_for_each_entry_safe (chunk, next, &engine->emptied, emptied_node) {
        if (chunk->emptied.count == 0 || chunk->chunk->state != CHUNK_PRESENT) {
            list_remove(&chunk->emptied_node);
            chunk->emptied_lsn = 0;
            continue;
        }
        any = any || emptied_is_due(engine, chunk);
    }
    return any;
}

/* Its key goes.  Not of a leaf that somebody reads just now: he would take it for stored. */
static void
stage_emptied_leaf(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    struct leaf *leaf = leaf_find(chunk, number);

    if (leaf != NULL) {
        if (leaf->state != LEAF_LOADED || leaf->staged || list_is_linked(&leaf->dirty.node))
            return;
        leaf->stored = false;
        leaf->fragments = 0;
    }
    leaf_set_remove(&chunk->emptied, number);
    stage_leaf_delete(engine, chunk, number);
}

void
forget_stage_emptied(struct engine *engine)
{
    struct engine_chunk *chunk;
    uint32_t keys = 0;

    if (!forget_has_emptied(engine))
        return;
    list_for_each_entry (chunk, &engine->emptied, emptied_node) {
        uint32_t number = 0;

        if (!emptied_is_due(engine, chunk))
            continue;
        for (; (number = leaf_set_next(&chunk->emptied, number)) != UINT32_MAX; number++, keys++)
            stage_emptied_leaf(engine, chunk, number);
        if (keys >= EMPTIED_KEYS_MAX)
            return;
    }
}

void
forget_chunk_fini(struct engine_chunk *chunk)
{
    if (list_is_linked(&chunk->forget_node))
        list_remove(&chunk->forget_node);
    if (list_is_linked(&chunk->emptied_node))
        list_remove(&chunk->emptied_node);
    free(chunk->zeroes.words);
    free(chunk->emptied.words);
}
