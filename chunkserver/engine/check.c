/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check.c: the allocation map against everything that owns a block: for tests, debug builds and
 * offline tools.
 *
 * Owners of blocks in the map: sectors of leaves (in memory, or in the index with the deltas that
 * wait in memory), the queue of blocks given up, FREE runs of groups under way, bad blocks.  Owners
 * of blocks in limbo: writes under way, the quarantine.  Each block has exactly one owner, or is
 * free.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

#define CHECK_TEXT_BYTES   4096u
#define CHECK_PROBLEMS_MAX 12u

struct check {
    struct engine *engine;
    uint8_t *map_owners; /* by block */
    uint8_t *limbo_owners;
    char *text;
    size_t text_bytes;
    uint32_t problems;
    bool unreadable; /* a leaf, or the index: what it owns is unknown */
};

static void __attribute__((format(printf, 2, 3)))
check_problem(struct check *check, const char *format, ...)
{
    va_list arguments;
    int bytes;

    if (check->problems++ >= CHECK_PROBLEMS_MAX)
        return;
    va_start(arguments, format);
    bytes = vsnprintf(check->text + check->text_bytes, CHECK_TEXT_BYTES - check->text_bytes, format,
                      arguments);
    va_end(arguments);
    if (bytes > 0 && check->text_bytes + (size_t)bytes < CHECK_TEXT_BYTES)
        check->text_bytes += (size_t)bytes;
}

static void
own_block(struct check *check, uint8_t *owners, uint64_t block, const char *who)
{
    if (!alloc_run_is_valid(&check->engine->alloc, block, 1)) {
        check_problem(check, "%s has block %" PRIu64 ", which does not exist\n", who, block);
        return;
    }
    if (owners[block] > 0)
        check_problem(check, "block %" PRIu64 " has another owner beside %s\n", block, who);
    if (owners[block] < UINT8_MAX)
        owners[block]++;
}

static void
own_run(struct check *check, uint8_t *owners, struct extent run, const char *who)
{
    for (uint32_t i = 0; i < run.count; i++)
        own_block(check, owners, run.block + i, who);
}

/* --- leaves --- */

static void
own_sectors(struct check *check, const struct leaf_sector *sectors, uint64_t local_id,
            uint32_t number)
{
    for (uint32_t i = 0; i < LEAF_SECTORS; i++) {
        char who[96];

        if (leaf_sector_kind(&sectors[i]) != SECTOR_DATA)
            continue;
        (void)snprintf(who, sizeof(who), "chunk %" PRIu64 " leaf %u sector %u version %" PRIu64,
                       local_id, number, i, sectors[i].version);
        own_block(check, check->map_owners, leaf_sector_block(&sectors[i]), who);
    }
}

struct check_give_up {
    struct check *check;
    bool replayed;
};

static void
check_on_give_up(void *context, uint64_t block, uint64_t lsn, bool worn)
{
    struct check_give_up *give_up = context;

    (void)worn;
    if (give_up->replayed && leaf_was_freed(give_up->check->engine, block, lsn))
        return;
    own_block(give_up->check, give_up->check->map_owners, block,
              "a change of a leaf not in memory");
}

/* What the leaf would be if it were read now. */
static void
own_unloaded(struct check *check, const struct leaf *leaf, struct leaf_sector *sectors,
             uint64_t stored_lsn)
{
    for (const struct leaf_delta *delta = leaf->deltas; delta != NULL; delta = delta->next) {
        struct check_give_up give_up = {.check = check, .replayed = delta->replayed};

        if (delta->lsn > stored_lsn)
            (void)leaf_apply_delta(sectors, delta, check_on_give_up, &give_up);
    }
    own_sectors(check, sectors, leaf->chunk->chunk->local_id, leaf->number);
}

static int
check_stored_leaf(void *context, const uint8_t *key, uint32_t key_bytes, const uint8_t *value,
                  uint32_t value_bytes)
{
    struct check *check = context;
    struct engine *engine = check->engine;
    struct leaf_sector sectors[LEAF_SECTORS];
    uint64_t local_id, lsn, blocks = (uint64_t)engine->alloc.slab_count * SLAB_BLOCKS;
    uint32_t number, fragments;
    struct chunk *chunk;
    struct leaf *leaf;

    if (!index_key_parse_leaf(key, key_bytes, &local_id, &number)) {
        check_problem(check, "a leaf's key has %u bytes\n", key_bytes);
        return 0;
    }
    chunk = chunk_table_find_local(engine->chunks, local_id);
    if (chunk == NULL || number >= engine_chunk_of(chunk)->leaf_count) {
        check_problem(check, "leaf %u of chunk %" PRIu64 " belongs to nobody\n", number, local_id);
        return 0;
    }
    leaf = leaf_find(engine_chunk_of(chunk), number);
    if (leaf != NULL && leaf->state == LEAF_LOADED)
        return 0;
    if (leaf_decode(value, value_bytes, blocks, sectors, &lsn, &fragments) != 0) {
        check_problem(check, "leaf %u of chunk %" PRIu64 " cannot be read\n", number, local_id);
        check->unreadable = true;
        return 0;
    }
    if (leaf == NULL) {
        own_sectors(check, sectors, local_id, number);
        return 0;
    }
    leaf->checked = true;
    own_unloaded(check, leaf, sectors, lsn);
    return 0;
}

static void
check_memory_leaf(struct check *check, const struct leaf *leaf)
{
    struct leaf_sector sectors[LEAF_SECTORS];

    if (leaf->state == LEAF_LOADED) {
        if (leaf->damaged) {
            check_problem(check, "leaf %u of chunk %" PRIu64 " could not be understood\n",
                          leaf->number, leaf->chunk->chunk->local_id);
            check->unreadable = true;
        }
        own_sectors(check, leaf->sectors, leaf->chunk->chunk->local_id, leaf->number);
    } else if (leaf->state == LEAF_CORRUPT) {
        check_problem(check, "leaf %u of chunk %" PRIu64 " could not be read\n", leaf->number,
                      leaf->chunk->chunk->local_id);
        check->unreadable = true;
    } else if (!leaf->checked) {
        memset(sectors, 0, sizeof(sectors));
        own_unloaded(check, leaf, sectors, 0);
    }
}

static void
check_leaves(struct check *check)
{
    struct engine *engine = check->engine;
    uint8_t prefix = INDEX_LEAF;
    struct chunk *chunk, *next;
    int err;

    HASH_ITER (by_local_id, engine->chunks->by_local_id, chunk, next) {
        struct engine_chunk *private = engine_chunk_of(chunk);

        for (uint32_t i = 0; i < private->leaf_capacity; i++)
            if (private->leaves[i] != NULL)
        private->leaves[i]->checked = false;
    }
    err = engine->index->ops->scan_now(engine->index, &prefix, 1, check_stored_leaf, check);
    if (err != 0) {
        check_problem(check, "the index cannot be read: %s\n", dl_err_str(err));
        check->unreadable = true;
    }
    HASH_ITER (by_local_id, engine->chunks->by_local_id, chunk, next) {
        struct engine_chunk *private = engine_chunk_of(chunk);

        for (uint32_t i = 0; i < private->leaf_capacity; i++)
            if (private->leaves[i] != NULL)
                check_memory_leaf(check, private->leaves[i]);
    }
}

/* --- what is under way --- */

static bool
is_failed(const struct group *group, uint64_t block)
{
    for (size_t i = 0; group != NULL && i < group->failed.count; i++)
        if (block >= group->failed.items[i].block &&
            block < group->failed.items[i].block + group->failed.items[i].count)
            return true;
    return false;
}

/* Failed blocks of an aborted record belong to the BAD record by then. */
static void
own_op(struct check *check, const struct op *op, const struct group *group)
{
    for (uint32_t i = 0; i < op->extent_count; i++)
        for (uint32_t j = 0; j < op->extents[i].count; j++)
            if (!op->aborted || !is_failed(group, op->extents[i].block + j))
                own_block(check, check->limbo_owners, op->extents[i].block + j,
                          "a write under way");
}

static void
check_under_way(struct check *check)
{
    struct engine *engine = check->engine;
    const struct group *group;
    const struct op *op;

    list_for_each_entry (op, &engine->ready, node)
        own_op(check, op, NULL);
    list_for_each_entry (op, &engine->urgent, node)
        own_op(check, op, NULL);
    list_for_each_entry (op, &engine->slow, slow_node)
        if (!list_is_linked(&op->node))
            own_op(check, op, NULL);
    list_for_each_entry (group, &engine->groups, node) {
        list_for_each_entry (op, &group->ops, node)
            own_op(check, op, group);
        for (size_t i = 0; i < group->freed.count; i++)
            own_run(check, check->map_owners, group->freed.items[i], "a FREE record under way");
        for (size_t i = 0; i < group->worn.count; i++)
            own_run(check, check->map_owners, group->worn.items[i], "a BAD record under way");
    }
}

static void
check_queues(struct check *check)
{
    const struct alloc *alloc = &check->engine->alloc;

    for (uint32_t i = 0; i < alloc->queued.count; i++)
        own_run(check, check->map_owners, alloc_queue_at(&alloc->queued, i)->extent,
                "the queue of blocks given up");
    for (uint32_t i = 0; i < alloc->quarantined.count; i++)
        own_run(check, check->limbo_owners, alloc_queue_at(&alloc->quarantined, i)->extent,
                "the quarantine");
    for (const struct bad_block *bad = check->engine->bad; bad != NULL; bad = bad->next)
        own_block(check, check->map_owners, bad->block, "the bad blocks");
}

static void
check_map(struct check *check)
{
    const struct alloc *alloc = &check->engine->alloc;
    uint64_t free_blocks = 0;

    for (uint64_t block = 0; block < (uint64_t)alloc->slab_count * SLAB_BLOCKS; block++) {
        bool map = alloc_in_map(alloc, block), limbo = alloc_in_limbo(alloc, block);

        if (!alloc_run_is_valid(alloc, block, 1))
            continue;
        free_blocks += !map && !limbo;
        if (map && check->map_owners[block] == 0 && !check->engine->leaves_lost)
            check_problem(check, "block %" PRIu64 " is in use, but has no owner\n", block);
        if (!map && check->map_owners[block] > 0)
            check_problem(check, "block %" PRIu64 " has an owner, but is not in use%s\n", block,
                          limbo ? " (limbo)" : "");
        if (limbo != (check->limbo_owners[block] > 0))
            check_problem(check, "block %" PRIu64 " is %sin limbo, but has %s\n", block,
                          limbo ? "" : "not ", limbo ? "no owner there" : "an owner there");
        if (map && limbo)
            check_problem(check, "block %" PRIu64 " is in use and in limbo\n", block);
    }
    if (free_blocks != alloc->free_blocks)
        check_problem(check, "%" PRIu64 " blocks are free, the counter says %" PRIu64 "\n",
                      free_blocks, alloc->free_blocks);
}

char *
engine_check_unreadable(struct engine *engine, bool *ret_unreadable)
{
    struct check check = {.engine = engine};
    uint64_t blocks = (uint64_t)engine->alloc.slab_count * SLAB_BLOCKS;

    check.map_owners = calloc(blocks, 1);
    check.limbo_owners = calloc(blocks, 1);
    check.text = calloc(1, CHECK_TEXT_BYTES);
    dl_assert(check.map_owners != NULL && check.limbo_owners != NULL && check.text != NULL);
    check_leaves(&check);
    check_under_way(&check);
    check_queues(&check);
    check_map(&check);
    free(check.map_owners);
    free(check.limbo_owners);
    *ret_unreadable = check.unreadable;
    if (check.problems > 0)
        return check.text;
    free(check.text);
    return NULL;
}

char *
engine_check(struct engine *engine)
{
    bool unreadable;

    return engine_check_unreadable(engine, &unreadable);
}
