/* SPDX-License-Identifier: Apache-2.0 */
/*
 * leaf_cache.c: which leaves are in memory, and how they get there.
 *
 *     ABSENT ---request---> LOADING ---get done---> LOADED ---evicted---> (not in memory)
 *        deltas wait in      |                        changes apply at once
 *        either state        |--makes no sense-> LOADED, all of it void
 *                            `--cannot be read-> CORRUPT until the next start
 *                                                  changes are written back as deltas
 *
 * Invariants:
 * 1. A leaf is in memory while it is loaded or corrupt, or has deltas, or somebody waits for it;
 *    else it is forgotten at once.
 * 2. Only a leaf that is loaded, clean, not staged and not waited for is in engine.cache, and only
 *    those are evicted.
 * 3. Deltas of a leaf have ascending LSNs; when it is read those at or below its stored LSN are
 *    skipped.
 * 4. What a delta gives up joins the queue of blocks when the leaf is read, not before: until then
 *    nobody knows.
 *
 * Threads: the owner.  Blocks: never.
 * Errors:  a leaf that cannot be read is an error for those who wait for it, never a hole.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/mutant.h"

struct leaf_load {
    struct index_get get;
    struct engine *engine;
    struct leaf *leaf;
};

#define DELTA_FEW_SECTORS 8u

size_t
leaf_load_bytes(void)
{
    return sizeof(struct leaf_load);
}

struct leaf *
leaf_find(const struct engine_chunk *chunk, uint32_t number)
{
    return number < chunk->leaf_capacity ? chunk->leaves[number] : NULL;
}

const struct leaf_sector *
leaf_sector_at(const struct engine_chunk *chunk, uint32_t sector)
{
    static const struct leaf_sector hole;
    const struct leaf *leaf;

    if (sector / LEAF_SECTORS >= chunk->leaf_count)
        return &hole;
    leaf = leaf_find(chunk, sector / LEAF_SECTORS);
    dl_assert(leaf != NULL && leaf->state == LEAF_LOADED);
    return &leaf->sectors[sector % LEAF_SECTORS];
}

static void
leaf_table_grow(struct engine_chunk *chunk, uint32_t number)
{
    uint32_t capacity = chunk->leaf_capacity == 0 ? 16 : chunk->leaf_capacity;
    struct leaf **leaves;

    dl_assert(number < CHUNK_LEAVES_MAX);
    while (capacity <= number)
        capacity *= 2;
    leaves = realloc(chunk->leaves, capacity * sizeof(struct leaf *));
    dl_assert(leaves != NULL);
    memset(leaves + chunk->leaf_capacity, 0,
           (capacity - chunk->leaf_capacity) * sizeof(struct leaf *));
    chunk->leaves = leaves;
    chunk->leaf_capacity = capacity;
}

static void
leaf_set_sectors(struct engine *engine, struct leaf *leaf)
{
    leaf->sectors = freelist_take(&engine->sectors);
    memset(leaf->sectors, 0, LEAF_SECTORS * sizeof(leaf->sectors[0]));
    engine->loaded_count++;
}

struct leaf *
leaf_get(struct engine *engine, struct engine_chunk *chunk, uint32_t number)
{
    struct leaf *leaf = leaf_find(chunk, number);

    if (leaf != NULL)
        return leaf;
    if (number >= chunk->leaf_capacity)
        leaf_table_grow(chunk, number);
    leaf = freelist_take(&engine->leaves);
    memset(leaf, 0, sizeof(*leaf));
    leaf->chunk = chunk;
    leaf->number = number;
    dirty_init(&leaf->dirty, DIRTY_LEAF);
    list_init(&leaf->waiters);
    list_init(&leaf->cache_node);
    list_init(&leaf->load_node);
    /*
     * A leaf that was never touched needs no look at the index.  Not in replay: there leaf_count
     * can be older than the leaves that are in the index.
     */
    if (engine->serving && number >= chunk->leaf_count) {
        leaf->state = LEAF_LOADED;
        leaf_set_sectors(engine, leaf);
    }
    chunk->leaves[number] = leaf;
    engine->leaf_count++;
    return leaf;
}

static void
leaf_forget(struct engine *engine, struct leaf *leaf)
{
    dl_assert(list_is_empty(&leaf->waiters));
    dl_assert(leaf->deltas == NULL);
    dl_assert(!leaf->staged && !list_is_linked(&leaf->dirty.node));
    dl_assert(leaf->chunk->leaves[leaf->number] == leaf);
    if (list_is_linked(&leaf->cache_node))
        list_remove(&leaf->cache_node);
    if (leaf->sectors != NULL) {
        freelist_give(&engine->sectors, leaf->sectors);
        engine->loaded_count--;
    }
    leaf->chunk->leaves[leaf->number] = NULL;
    engine->leaf_count--;
    freelist_give(&engine->leaves, leaf);
}

bool
leaf_is_pinned(const struct leaf *leaf)
{
    return list_is_linked(&leaf->dirty.node) || leaf->staged || leaf->pinned || leaf->pins > 0 ||
           leaf->for_writeback || leaf->state == LEAF_LOADING || !list_is_empty(&leaf->waiters);
}

void
leaf_settle(struct engine *engine, struct leaf *leaf)
{
    bool pinned = leaf_is_pinned(leaf);
    bool cached = list_is_linked(&leaf->cache_node);

    if (leaf->state == LEAF_LOADED) {
        if (pinned && cached)
            list_remove(&leaf->cache_node);
        else if (!pinned && !cached)
            list_push_back(&engine->cache, &leaf->cache_node);
        return;
    }
    dl_assert(!cached);
    if (leaf->state == LEAF_ABSENT && !pinned && leaf->deltas == NULL)
        leaf_forget(engine, leaf);
}

void
leaf_forget_all(struct engine *engine, struct engine_chunk *chunk)
{
    for (uint32_t i = 0; i < chunk->leaf_capacity; i++)
        if (chunk->leaves[i] != NULL)
            leaf_forget(engine, chunk->leaves[i]);
}

struct leaf *
leaf_range_missing(struct engine *engine, struct engine_chunk *chunk, struct leaf_range range)
{
    for (uint32_t number = range.first; number < range.end; number++) {
        struct leaf *leaf = leaf_find(chunk, number);

        if (leaf == NULL || leaf->state == LEAF_ABSENT || leaf->state == LEAF_LOADING)
            return leaf_get(engine, chunk, number);
        leaf_touch(engine, leaf);
    }
    return NULL;
}

bool
leaf_range_is_corrupt(const struct engine_chunk *chunk, struct leaf_range range)
{
    for (uint32_t number = range.first; number < range.end; number++)
        if (leaf_find(chunk, number)->state == LEAF_CORRUPT)
            return true;
    return false;
}

struct leaf_range
leaf_range(const struct engine_chunk *chunk, uint32_t offset_sectors, uint32_t length_sectors)
{
    uint32_t end = (offset_sectors + length_sectors - 1) / LEAF_SECTORS + 1;

    dl_assert(length_sectors > 0);
    return (struct leaf_range){
        .first = offset_sectors / LEAF_SECTORS,
        .end = end < chunk->leaf_count ? end : chunk->leaf_count,
    };
}

void
leaf_range_pin(struct engine *engine, struct engine_chunk *chunk, struct leaf_range range)
{
    for (uint32_t number = range.first; number < range.end; number++) {
        struct leaf *leaf = leaf_get(engine, chunk, number);

        leaf->pins++;
        leaf_request(engine, leaf);
        leaf_settle(engine, leaf);
    }
}

void
leaf_range_unpin(struct engine *engine, struct engine_chunk *chunk, struct leaf_range *range)
{
    for (uint32_t number = range->first; number < range->end; number++) {
        struct leaf *leaf = leaf_find(chunk, number);

        dl_assert(leaf->pins > 0);
        leaf->pins--;
        leaf_settle(engine, leaf);
    }
    *range = (struct leaf_range){0};
}

void
leaf_touch(struct engine *engine, struct leaf *leaf)
{
    if (!list_is_linked(&leaf->cache_node))
        return;
    list_remove(&leaf->cache_node);
    list_push_back(&engine->cache, &leaf->cache_node);
}

uint64_t
leaf_cache_bytes(const struct engine *engine)
{
    return engine->leaf_count * sizeof(struct leaf) + engine->delta_bytes +
           engine->loaded_count * LEAF_SECTORS * sizeof(struct leaf_sector);
}

void
leaf_cache_trim(struct engine *engine)
{
    while (leaf_cache_bytes(engine) > engine->cache_budget && !list_is_empty(&engine->cache)) {
        leaf_forget(engine, list_first_entry(&engine->cache, struct leaf, cache_node));
        engine->counters.leaf_evictions++;
    }
}

/* --- deltas --- */

static struct freelist *
delta_list(struct engine *engine, uint32_t data_sectors)
{
    if (data_sectors <= 1)
        return &engine->deltas_one;
    return data_sectors <= DELTA_FEW_SECTORS ? &engine->deltas_few : &engine->deltas_many;
}

static uint32_t
delta_data_sectors(uint8_t kind, uint32_t count)
{
    return kind == SECTOR_DATA ? count : 0;
}

void
leaf_add_delta(struct engine *engine, struct leaf *leaf, const struct leaf_change *change,
               bool replayed)
{
    struct freelist *list = delta_list(engine, delta_data_sectors(change->kind, change->count));
    struct leaf_delta *delta = freelist_take(list);

    dl_assert(leaf->state != LEAF_LOADED);
    dl_assert(leaf->deltas == NULL || leaf->deltas_last->lsn <= change->lsn);
    dl_assert(leaf_delta_bytes(change) <= list->item_bytes);
    leaf_delta_init(delta, change, replayed);
    if (leaf->deltas == NULL)
        leaf->deltas = delta;
    else
        leaf->deltas_last->next = delta;
    leaf->deltas_last = delta;
    leaf->delta_sectors += delta->count;
    leaf->replayed_deltas += replayed;
    engine->replayed_deltas += replayed;
    engine->debt_sectors += delta->count;
    engine->delta_bytes += list->item_bytes;
}

void
leaf_drop_deltas(struct engine *engine, struct leaf *leaf)
{
    while (leaf->deltas != NULL) {
        struct leaf_delta *delta = leaf->deltas;
        struct freelist *list = delta_list(engine, delta_data_sectors(delta->kind, delta->count));

        leaf->deltas = delta->next;
        engine->delta_bytes -= list->item_bytes;
        freelist_give(list, delta);
    }
    dl_assert(engine->debt_sectors >= leaf->delta_sectors);
    dl_assert(engine->replayed_deltas >= leaf->replayed_deltas);
    engine->debt_sectors -= leaf->delta_sectors;
    engine->replayed_deltas -= leaf->replayed_deltas;
    leaf->deltas_last = NULL;
    leaf->delta_sectors = 0;
    leaf->replayed_deltas = 0;
    if (engine->serving && engine->replayed_deltas == 0 && engine->replay_frees != NULL) {
        /* All that replay left open is known now. */
        free(engine->replay_frees);
        engine->replay_frees = NULL;
        engine->replay_free_count = 0;
    }
}

/* --- changes --- */

/*
 * Was this block, given up by a record of this LSN, freed by a FREE record of the replayed journal?
 *
 * A block is given up, named by a FREE, and only then handed out again: the LSNs of these events of
 * one block alternate, and a FREE lies in a later journal block than the change that gave up.  So
 * if any FREE above this LSN is in the journal, the first of them is this change's own; and if the
 * change's FREE is durable, it is in the journal's chain, because it is above the change, which is
 * in it.  Hence the last FREE of each block is enough to know.
 */
bool
leaf_was_freed(const struct engine *engine, uint64_t block, uint64_t lsn)
{
    size_t low = 0, high = engine->replay_free_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (engine->replay_frees[middle].block < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low < engine->replay_free_count && engine->replay_frees[low].block == block &&
           engine->replay_frees[low].lsn > lsn;
}

struct give_up {
    struct engine *engine;
    struct leaf *leaf;
    bool replayed;
};

static void
leaf_give_up(void *context, uint64_t block, uint64_t lsn, bool worn)
{
    struct give_up *give_up = context;
    struct engine *engine = give_up->engine;

    if (give_up->replayed && !DLBLK_MUTANT(no_pairing) && leaf_was_freed(engine, block, lsn)) {
        engine->counters.free_pairings++;
        return;
    }
    engine->counters.blocks_given_up++;
    if (engine->reclaim.candidates != NULL)
        reclaim_forget(engine, block, 1);
    give_up->leaf->needs_free_seq = worn ? alloc_give_up_worn(&engine->alloc, block)
                                         : alloc_give_up(&engine->alloc, block, 1);
}

struct leaf_result
leaf_change(struct engine *engine, struct leaf *leaf, const struct leaf_change *change)
{
    struct give_up give_up = {.engine = engine, .leaf = leaf};
    struct leaf_result result;

    dl_assert(leaf->state == LEAF_LOADED);
    dl_assert(change->lsn > leaf->stored_lsn);
    result = leaf_apply(leaf->sectors, change, leaf_give_up, &give_up);
    leaf->changed |= result.changed;
    return result;
}

/* Returns how many deltas were news to the leaf. */
static uint32_t
leaf_apply_deltas(struct engine *engine, struct leaf *leaf)
{
    uint32_t applied = 0;

    for (struct leaf_delta *delta = leaf->deltas; delta != NULL; delta = delta->next) {
        struct give_up give_up = {.engine = engine, .leaf = leaf, .replayed = delta->replayed};
        struct leaf_result result;

        /*
         * The stored leaf has this change, and the FREE records of what it gave up are durable:
         * leaves go to the index only then (writeback.c).  To compare versions instead would give
         * blocks up a second time.
         */
        if (delta->lsn <= leaf->stored_lsn && !DLBLK_MUTANT(no_leaf_lsn))
            continue;
        result = leaf_apply_delta(leaf->sectors, delta, leaf_give_up, &give_up);
        leaf->changed |= result.changed;
        if (delta->kind == SECTOR_DATA || delta->kind == SECTOR_ZERO)
            engine->counters.writes_outdated += result.outdated;
        applied++;
    }
    return applied;
}

/* --- loading --- */

void
leaf_request(struct engine *engine, struct leaf *leaf)
{
    if (leaf->state != LEAF_ABSENT)
        return;
    leaf->state = LEAF_LOADING;
    list_push_back(&engine->loads, &leaf->load_node);
    engine->loads_pending++;
    env_defer(engine->env, &engine->load_task);
}

void
leaf_wait(struct engine *engine, struct leaf *leaf, struct leaf_waiter *waiter)
{
    dl_assert(leaf->state == LEAF_ABSENT || leaf->state == LEAF_LOADING);
    leaf_request(engine, leaf);
    list_push_back(&leaf->waiters, &waiter->node);
}

/*
 * The index gave a value that makes no sense.  Its sectors are void, not above the highest version
 * that the chunk may have: what is written later, or comes from another slot, heals them one by
 * one.  In the index all stays as it is until something changes; then the leaf is put whole.
 */
static void
leaf_set_damaged(struct engine *engine, struct leaf *leaf)
{
    uint64_t bound = leaf->chunk->version_max;

    leaf_set_void(leaf->sectors, bound > 0 ? bound : 1);
    leaf->damaged = true;
    leaf->stored_lsn = 0;
    leaf->fragments = LEAF_FRAGMENTS_MAX;
    engine->counters.leaves_damaged++;
    engine->stats.crc_errors++;
}

static int
leaf_take_value(struct engine *engine, struct leaf *leaf, const struct index_get *get, int err)
{
    uint64_t blocks = (uint64_t)engine->alloc.slab_count * SLAB_BLOCKS;

    if (err == -DL_E_NOT_FOUND)
        return 0;
    if (err != 0 && err != -DL_E_INDEX_CORRUPT)
        return err;
    leaf->stored = true;
    if (err == 0)
        err = leaf_decode(get->value, get->value_bytes, blocks, leaf->sectors, &leaf->stored_lsn,
                          &leaf->fragments);
    if (err != 0)
        leaf_set_damaged(engine, leaf);
    return 0;
}

static void
leaf_wake(struct leaf *leaf, int err)
{
    struct list waiters;

    list_init(&waiters);
    list_splice_back(&waiters, &leaf->waiters);
    while (!list_is_empty(&waiters)) {
        struct leaf_waiter *waiter = list_first_entry(&waiters, struct leaf_waiter, node);

        list_remove(&waiter->node);
        waiter->fn(waiter, err);
    }
}

static void
leaf_loaded(struct engine *engine, struct leaf *leaf)
{
    bool had_deltas = leaf->deltas != NULL;
    uint32_t applied = leaf_apply_deltas(engine, leaf);

    engine->counters.leaf_loads_with_deltas += had_deltas;
    leaf_drop_deltas(engine, leaf);
    leaf->state = LEAF_LOADED;
    if (leaf->dirty.lsn < leaf->stored_lsn)
        leaf->dirty.lsn = leaf->stored_lsn;
    /* Replay brought nothing that the index does not have. */
    if (had_deltas && applied == 0 && list_is_linked(&leaf->dirty.node))
        list_remove(&leaf->dirty.node);
    forget_on_loaded(engine, leaf);
}

static void
leaf_on_get(struct index_get *get, int err)
{
    struct leaf_load *load = list_entry(get, struct leaf_load, get);
    struct engine *engine = load->engine;
    struct leaf *leaf = load->leaf;

    dl_assert(leaf->state == LEAF_LOADING);
    dl_assert(engine->loads_pending > 0);
    engine->loads_pending--;
    engine->counters.leaf_loads++;
    leaf_set_sectors(engine, leaf);
    err = leaf_take_value(engine, leaf, get, err);
    if (err == 0) {
        leaf_loaded(engine, leaf);
    } else {
        freelist_give(&engine->sectors, leaf->sectors);
        leaf->sectors = NULL;
        engine->loaded_count--;
        leaf->state = LEAF_CORRUPT;
        engine->stats.crc_errors++;
    }
    free(get->value);
    freelist_give(&engine->loads_pool, load);
    if (leaf->for_writeback)
        writeback_leaf_loaded(engine);
    /*
     * Those who wait may look at other leaves, and wait again, but this one must not go before all
     * of them ran.
     */
    leaf->pinned = true;
    leaf_wake(leaf, err);
    leaf->pinned = false;
    leaf_settle(engine, leaf);
    leaf_cache_trim(engine);
    engine_kick(engine);
}

static int
load_compare(const void *a, const void *b)
{
    const struct leaf *left = (*(struct leaf_load *const *)a)->leaf;
    const struct leaf *right = (*(struct leaf_load *const *)b)->leaf;
    uint64_t left_id = left->chunk->chunk->local_id, right_id = right->chunk->chunk->local_id;

    if (left_id != right_id)
        return left_id < right_id ? -1 : 1;
    return left->number < right->number ? -1 : left->number > right->number;
}

static struct leaf_load *
leaf_load_create(struct engine *engine, struct leaf *leaf)
{
    struct leaf_load *load = freelist_take(&engine->loads_pool);

    memset(load, 0, sizeof(*load));
    load->engine = engine;
    load->leaf = leaf;
    load->get.key_bytes = index_key_leaf(load->get.key, leaf->chunk->chunk->local_id, leaf->number);
    load->get.on_done = leaf_on_get;
    return load;
}

/* The reads that this turn asked for: in the order of their keys, as one chain. */
void
leaf_loads_start(struct env_task *task)
{
    struct engine *engine = list_entry(task, struct engine, load_task);
    VEC(struct leaf_load *) loads = {0};

    while (!list_is_empty(&engine->loads)) {
        struct leaf *leaf = list_first_entry(&engine->loads, struct leaf, load_node);
        int err = vec_push(&loads, leaf_load_create(engine, leaf));

        dl_assert(err == 0);
        list_remove(&leaf->load_node);
    }
    if (loads.count == 0)
        return;
    qsort(loads.items, loads.count, sizeof(struct leaf_load *), load_compare);
    for (size_t i = 0; i + 1 < loads.count; i++)
        loads.items[i]->get.next = &loads.items[i + 1]->get;
    engine->index->ops->get_start(engine->index, &loads.items[0]->get);
    vec_fini(&loads);
}
