/* SPDX-License-Identifier: Apache-2.0 */
/*
 * merge.c: what comes from another slot: pulled sectors of a chunk that recovers, repaired ones.
 *
 *     request --> part --> its leaves in memory --> data and MERGE record, as a write --> next
 *     part
 *
 * A record must fit into the smallest journal block, so a request with many short runs is cut into
 * parts, one after the other.
 *
 * Invariants:
 * 1. The cursor rises with the last part only, and that is started when those before it are
 * durable.
 * 2. A part is applied while its leaves are in memory: the number of sectors that were taken is
 *    exact.
 * 3. No part is started while an attempt is being begun, nor under another attempt than the
 *    request's: an attempt waits for those that were started before (recover.c).
 */
#include <string.h>

#include "chunkserver/engine/engine_private.h"

static void merge_step(struct merge *merge);

static void
merge_finish(struct merge *merge, int err)
{
    struct engine *engine = merge->engine;
    struct store_merge *request = merge->request;

    dl_assert(merge->chunk == NULL || merge->chunk->refs > 0);
    if (merge->chunk != NULL)
        merge->chunk->refs--;
    freelist_give(&engine->merges_pool, merge);
    request->on_done(request, err);
}

/* --- a part --- */

/* Does the sector continue the run? */
static bool
run_takes(const struct merge_run_disk *run, const struct store_sector *sector)
{
    return run->count_minus_one < UINT8_MAX &&
           le32_get(run->sector) + run->count_minus_one + 1 == sector->sector &&
           run->kind == (uint8_t)sector->kind && le64_get(run->version) == sector->version &&
           le32_get(run->birth) == sector->birth;
}

/* As many sectors as fit into a record, from merge->next on. */
static void
merge_take_part(struct merge *merge)
{
    const struct store_merge *request = merge->request;
    const uint8_t *payload = request->payload;
    uint32_t bytes = 0, data = 0;

    merge->run_count = 0;
    merge->sector_count = 0;
    payload += (size_t)merge->data_next * SECTOR_BYTES;
    while (merge->next + merge->sector_count < request->sector_count) {
        const struct store_sector *sector = &request->sectors[merge->next + merge->sector_count];
        struct merge_run_disk *last = merge->run_count > 0 ? &merge->runs[merge->run_count - 1]
                                                           : NULL;
        bool joins = last != NULL && run_takes(last, sector);

        bytes += joins ? 0 : (uint32_t)sizeof(*last);
        if (sector->kind == SECTOR_DATA)
            bytes += (uint32_t)(sizeof(struct extent_disk) + sizeof(le32));
        if (bytes > RECORD_MERGE_BODY_MAX)
            break;
        if (joins)
            last->count_minus_one++;
        else
            merge->runs[merge->run_count++] = (struct merge_run_disk){
                .sector = le32_of(sector->sector),
                .kind = (uint8_t)sector->kind,
                .birth = le32_of(sector->birth),
                .version = le64_of(sector->version),
            };
        if (sector->kind == SECTOR_DATA)
            merge->crcs[data++] = sector->crc;
        if (sector->version > merge->chunk->version_max)
            merge->chunk->version_max = sector->version;
        merge->sector_count++;
    }
    merge->write.length_sectors = data;
    merge->write.payload = payload;
    merge->write.crcs = merge->crcs;
    merge->cursor = merge->next + merge->sector_count == request->sector_count
                        ? request->cursor_sectors
                        : 0;
}

uint16_t
merge_flags(const struct merge *merge)
{
    if (merge->request->bad)
        return RECORD_MERGE_BAD;
    return merge->request->repair ? RECORD_MERGE_REPAIR : 0;
}

/* The leaves from the part's first sector to its last. */
static struct leaf_range
merge_leaves(const struct merge *merge)
{
    const struct store_sector *sectors = &merge->request->sectors[merge->next];
    uint32_t first, last;

    if (merge->sector_count == 0)
        return (struct leaf_range){0};
    first = sectors[0].sector;
    last = sectors[merge->sector_count - 1].sector;
    return leaf_range(merge->chunk, first, last - first + 1);
}

/* Is the chunk the one that it was asked for? */
static bool
merge_is_current(const struct merge *merge)
{
    const struct chunk *chunk = merge->chunk->chunk;
    const struct store_merge *request = merge->request;

    if (recover_is_beginning(merge->chunk) || request->attempt != chunk->attempt)
        return false;
    if (!request->repair)
        return chunk->attempt != 0;
    return request->config_epoch == chunk->config_epoch &&
           request->lease_epoch == chunk->volume->lease_epoch;
}

/* May it go on?  As the chunk is now. */
static int
merge_check(const struct merge *merge)
{
    if (merge->engine->stopped != 0)
        return merge->engine->stopped;
    if (merge->chunk->chunk->state == CHUNK_DELETING)
        return -DL_E_CHUNK_UNKNOWN;
    return merge_is_current(merge) ? 0 : -DL_E_EPOCH_OLD;
}

static void
merge_on_part(struct store_write *write, int err)
{
    struct merge *merge = merge_of_write(write);

    leaf_range_unpin(merge->engine, merge->chunk, &merge->pinned);
    if (err == 0) {
        merge->request->taken_sectors += merge->taken;
        merge->next += merge->sector_count;
        merge->data_next += merge->write.length_sectors;
    }
    if (err != 0 || merge->next == merge->request->sector_count)
        merge_finish(merge, err);
    else
        merge_step(merge);
}

/*
 * What takes the place of data takes no room in the end, and what is void had data before it was
 * voided.  All else must find room outside of the reserve, or recovery would take from all others
 * what lets them overwrite theirs.
 */
static bool
merge_may_use_reserve(const struct merge *merge)
{
    const struct store_sector *sectors = &merge->request->sectors[merge->next];

    for (uint32_t i = 0; i < merge->sector_count && !merge->request->repair; i++) {
        unsigned old = SECTOR_HOLE;

        /* Leaves that came meanwhile are not in memory for us. */
        if (sectors[i].sector < merge->pinned.end * LEAF_SECTORS)
            old = leaf_sector_kind(leaf_sector_at(merge->chunk, sectors[i].sector));
        if (sectors[i].kind == SECTOR_DATA && old != SECTOR_DATA && old != SECTOR_VOID)
            return false;
    }
    return true;
}

/* All leaves are in memory, and stay there. */
static void
merge_go(struct merge *merge)
{
    struct engine *engine = merge->engine;
    struct op *op;
    int err = merge_check(merge);

    if (err == 0 && leaf_range_is_corrupt(merge->chunk, merge->pinned))
        err = -DL_E_INDEX_CORRUPT;
    engine->requests++;
    if (err != 0) {
        engine_finish_write_later(engine, &merge->write, err);
        return;
    }
    op = write_op_create(engine, merge->chunk, &merge->write, RECORD_MERGE);
    write_go(engine, op, merge_may_use_reserve(merge));
}

static void
merge_on_leaf(struct leaf_waiter *waiter, int err)
{
    struct merge *merge = list_entry(waiter, struct merge, waiter);
    struct leaf *missing = leaf_range_missing(merge->engine, merge->chunk, merge->pinned);

    (void)err; /* an unreadable leaf is LEAF_CORRUPT now */
    if (missing != NULL)
        leaf_wait(merge->engine, missing, &merge->waiter);
    else
        merge_go(merge);
}

static void
merge_step(struct merge *merge)
{
    struct engine *engine = merge->engine;
    struct leaf *missing;

    merge_take_part(merge);
    merge->pinned = merge_leaves(merge);
    leaf_range_pin(engine, merge->chunk, merge->pinned);
    missing = leaf_range_missing(engine, merge->chunk, merge->pinned);
    if (missing != NULL)
        leaf_wait(engine, missing, &merge->waiter);
    else
        merge_go(merge);
}

/* --- start --- */

static int
request_check(const struct engine *engine, const struct store_merge *request)
{
    if (engine->stopped != 0)
        return engine->stopped;
    if (request->sector_count > STORE_IO_SECTORS_MAX || request->cursor_sectors > CHUNK_SECTORS_MAX)
        return -DL_E_RANGE;
    for (uint32_t i = 0; i < request->sector_count; i++) {
        const struct store_sector *sector = &request->sectors[i];

        if (sector->sector >= CHUNK_SECTORS_MAX || (unsigned)sector->kind > SECTOR_DATA ||
            (sector->kind == SECTOR_HOLE) != (sector->version == 0) ||
            (i > 0 && sector->sector <= request->sectors[i - 1].sector))
            return -DL_E_RANGE;
    }
    if (request->bad &&
        (request->repair || request->sector_count != 1 || request->sectors[0].kind != SECTOR_DATA))
        return -DL_E_RANGE;
    return 0;
}

void
merge_start(struct chunk_store *store, struct store_merge *request)
{
    struct engine *engine = engine_of_store(store);
    struct chunk *chunk = chunk_table_find(engine->chunks, &request->key);
    struct merge *merge = freelist_take(&engine->merges_pool);
    int err = request_check(engine, request);

    dl_assert(!engine->stopping);
    memset(merge, 0, sizeof(*merge));
    request->taken_sectors = 0;
    merge->engine = engine;
    merge->request = request;
    merge->write.key = request->key;
    merge->write.on_done = merge_on_part;
    merge->waiter.fn = merge_on_leaf;
    list_init(&merge->write.node);
    list_init(&merge->waiter.node);
    if (err == 0 && chunk == NULL)
        err = -DL_E_CHUNK_UNKNOWN;
    if (err == 0) {
        merge->chunk = engine_chunk_of(chunk);
        merge->chunk->refs++;
        err = merge_check(merge);
    }
    if (err == 0) {
        merge_step(merge);
        return;
    }
    engine->requests++;
    engine_finish_write_later(engine, &merge->write, err);
}
