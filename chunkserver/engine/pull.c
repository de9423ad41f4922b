/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pull.c: what another slot asks of this one: the sectors of a window above a version, with their
 * data; and which sectors of a window are void here.
 *
 * A pull is a read to the rest of the engine: while it is under way the blocks that it reads are
 * not handed out again.
 */
#include <string.h>

#include "chunkserver/engine/engine_private.h"
#include "common/crc32c.h"

struct pull {
    struct store_read read; /* for read.c: packed sectors of the request's buffer */
    struct store_pull *request;
    struct engine *engine;
    struct engine_chunk *chunk;
    struct store_change wait; /* for what was started before */
};

size_t
pull_bytes(void)
{
    return sizeof(struct pull);
}

static int
window_check(uint32_t first_sector, uint32_t window_sectors)
{
    if (window_sectors == 0 || window_sectors > STORE_WINDOW_SECTORS_MAX ||
        first_sector >= CHUNK_SECTORS_MAX || window_sectors > CHUNK_SECTORS_MAX - first_sector)
        return -DL_E_RANGE;
    return 0;
}

/* --- pull --- */

/* Compare what was read with its CRCs. */
static int
pull_verify(struct store_pull *request)
{
    const uint8_t *bytes = request->buffer;

    for (uint32_t i = 0; i < request->sector_count; i++) {
        const struct store_sector *sector = &request->sectors[i];

        if (sector->kind != SECTOR_DATA)
            continue;
        if (crc32c(0, bytes, SECTOR_BYTES) != sector->crc) {
            request->bad_sector = sector->sector;
            return -DL_E_CRC_DATA;
        }
        bytes += SECTOR_BYTES;
    }
    return 0;
}

static void
pull_on_read(struct store_read *read, int err)
{
    struct pull *pull = list_entry(read, struct pull, read);
    struct store_pull *request = pull->request;

    if (err == 0 && !request->without_data) {
        err = pull_verify(request);
        pull->engine->stats.crc_errors += err != 0;
    }
    if (err == 0)
        pull->engine->counters.pulls++;
    freelist_give(&pull->engine->pulls_pool, pull);
    request->on_done(request, err);
}

static bool
pull_wants(const struct store_pull *request, uint32_t idx, const struct leaf_sector *sector)
{
    if (leaf_sector_kind(sector) != SECTOR_HOLE && sector->version > request->above_version)
        return true;
    return request->wanted != NULL && (request->wanted[idx / 64] >> (idx % 64) & 1) != 0;
}

/* One sector more; runs of blocks are read at once. */
static void
pull_add(struct store_pull *request, uint32_t number, const struct leaf_sector *sector)
{
    request->sectors[request->sector_count++] = (struct store_sector){
        .sector = number,
        .birth = sector->birth,
        .version = sector->version,
        .crc = sector->crc,
        .kind = (enum sector_kind)leaf_sector_kind(sector),
    };
    request->data_sectors += leaf_sector_kind(sector) == SECTOR_DATA;
}

static int
pull_collect(struct read_op *op, struct store_pull *request)
{
    uint32_t run_first = 0, run_count = 0, idx;
    uint64_t run_block = 0;

    for (idx = 0; idx < request->window_sectors && request->sector_count < STORE_IO_SECTORS_MAX;
         idx++) {
        const struct leaf_sector *sector = leaf_sector_at(op->chunk, request->first_sector + idx);
        uint64_t block = leaf_sector_block(sector);

        /* Nobody knows what it is: it may be above the version. */
        if (leaf_sector_kind(sector) == SECTOR_VOID) {
            request->bad_sector = request->first_sector + idx;
            return sector->birth == SECTOR_VOID_DAMAGED ? -DL_E_INDEX_CORRUPT : -DL_E_NOT_IN_SYNC;
        }
        if (!pull_wants(request, idx, sector))
            continue;
        pull_add(request, request->first_sector + idx, sector);
        if (leaf_sector_kind(sector) != SECTOR_DATA || request->without_data)
            continue;
        if (run_count > 0 && run_block + run_count == block) {
            run_count++;
            continue;
        }
        if (run_count > 0)
            read_submit(op, run_first, run_count, run_block);
        run_first = request->data_sectors - 1;
        run_count = 1;
        run_block = block;
    }
    request->next_sector = request->first_sector + idx;
    if (run_count > 0)
        read_submit(op, run_first, run_count, run_block);
    return 0;
}

/* Returns whether it waits for something. */
static bool
pull_step(struct read_op *op)
{
    struct pull *pull = list_entry(op->read, struct pull, read);
    struct store_pull *request = pull->request;
    struct engine *engine = op->engine;
    struct leaf_range range = leaf_range(op->chunk, request->first_sector, request->window_sectors);
    struct leaf *missing = leaf_range_missing(engine, op->chunk, range);

    if (missing != NULL) {
        op->pinned = range;
        leaf_range_pin(engine, op->chunk, range);
        leaf_wait(engine, missing, &op->waiter);
        return true;
    }
    request->stable_version = op->chunk->chunk->stable_version;
    if (leaf_range_is_corrupt(op->chunk, range))
        op->read->err = -DL_E_INDEX_CORRUPT;
    else if (op->read->err == 0)
        op->read->err = pull_collect(op, request);
    return op->read->ios_pending > 0;
}

static void
pull_on_leaf(struct leaf_waiter *waiter, int err)
{
    struct read_op *op = list_entry(waiter, struct read_op, waiter);
    struct store_read *read;

    (void)err;
    leaf_range_unpin(op->engine, op->chunk, &op->pinned);
    if (op->chunk->chunk->state == CHUNK_DELETING)
        op->read->err = -DL_E_CHUNK_UNKNOWN;
    else if (pull_step(op))
        return;
    read = read_op_end(op);
    pull_on_read(read, read->err);
}

/* All that was started before is durable, or will never be: look. */
static void
pull_on_wait(struct store_change *wait, int err)
{
    struct pull *pull = list_entry(wait, struct pull, wait);
    struct engine *engine = pull->engine;
    struct engine_chunk *chunk = pull->chunk;
    struct store_read *read = &pull->read;

    chunk->refs--;
    if (err == 0 && chunk->chunk->state == CHUNK_DELETING)
        err = -DL_E_CHUNK_UNKNOWN;
    read->started_seq = ++engine->read_seq;
    if (err == 0) {
        struct read_op *op = read_op_create(engine, read, chunk);

        op->waiter.fn = pull_on_leaf;
        if (pull_step(op))
            return;
        (void)read_op_end(op);
        err = read->err;
    }
    engine_finish_read_later(engine, read, err);
}

void
pull_start(struct chunk_store *store, struct store_pull *request)
{
    struct engine *engine = engine_of_store(store);
    struct chunk *chunk = chunk_table_find(engine->chunks, &request->key);
    struct pull *pull = freelist_take(&engine->pulls_pool);
    struct store_read *read = &pull->read;

    dl_assert(!engine->stopping);
    memset(pull, 0, sizeof(*pull));
    pull->request = request;
    pull->engine = engine;
    request->sector_count = 0;
    request->data_sectors = 0;
    request->next_sector = request->first_sector;
    request->bad_sector = 0;
    read->buffer = request->buffer;
    read->on_done = pull_on_read;
    read->err = window_check(request->first_sector, request->window_sectors);
    if (read->err == 0 && chunk == NULL)
        read->err = -DL_E_CHUNK_UNKNOWN;
    if (read->err != 0) {
        engine_finish_read_later(engine, read, read->err);
        return;
    }
    pull->chunk = engine_chunk_of(chunk);
    pull->chunk->refs++;
    change_wait(engine, pull->chunk, &pull->wait, pull_on_wait);
}

/* --- voids --- */

struct voids {
    struct store_voids *request;
    struct engine *engine;
    struct engine_chunk *chunk;
    struct leaf_range pinned;
    struct leaf_waiter waiter;
    struct store_change done; /* for the way back, next turn */
    int err;
};

size_t
voids_bytes(void)
{
    return sizeof(struct voids);
}

static void
voids_on_done(struct store_change *change, int err)
{
    struct voids *voids = list_entry(change, struct voids, done);
    struct store_voids *request = voids->request;

    if (voids->chunk != NULL)
        voids->chunk->refs--;
    freelist_give(&voids->engine->voids_pool, voids);
    request->on_done(request, err);
}

/* Leaves that came meanwhile are not in memory for us, and nothing in them is void. */
static void
voids_collect(struct voids *voids)
{
    struct store_voids *request = voids->request;

    for (uint32_t i = 0; i < request->window_sectors; i++) {
        if (request->first_sector + i >= voids->pinned.end * LEAF_SECTORS)
            break;
        if (leaf_sector_kind(leaf_sector_at(voids->chunk, request->first_sector + i)) !=
            SECTOR_VOID)
            continue;
        request->bits[i / 64] |= UINT64_C(1) << (i % 64);
        request->count++;
    }
}

static void
voids_finish(struct voids *voids)
{
    if (voids->chunk->chunk->state == CHUNK_DELETING)
        voids->err = -DL_E_CHUNK_UNKNOWN;
    else if (leaf_range_is_corrupt(voids->chunk, voids->pinned))
        voids->err = -DL_E_INDEX_CORRUPT;
    else
        voids_collect(voids);
    leaf_range_unpin(voids->engine, voids->chunk, &voids->pinned);
    engine_finish_change_later(voids->engine, &voids->done, voids->err);
}

static void
voids_on_leaf(struct leaf_waiter *waiter, int err)
{
    struct voids *voids = list_entry(waiter, struct voids, waiter);
    struct leaf *missing = leaf_range_missing(voids->engine, voids->chunk, voids->pinned);

    (void)err;
    if (missing != NULL)
        leaf_wait(voids->engine, missing, &voids->waiter);
    else
        voids_finish(voids);
}

void
voids_start(struct chunk_store *store, struct store_voids *request)
{
    struct engine *engine = engine_of_store(store);
    struct chunk *chunk = chunk_table_find(engine->chunks, &request->key);
    struct voids *voids = freelist_take(&engine->voids_pool);
    struct leaf *missing;

    dl_assert(!engine->stopping);
    memset(voids, 0, sizeof(*voids));
    memset(request->bits, 0, sizeof(request->bits));
    request->count = 0;
    voids->request = request;
    voids->engine = engine;
    voids->waiter.fn = voids_on_leaf;
    voids->done.on_done = voids_on_done;
    list_init(&voids->waiter.node);
    list_init(&voids->done.node);
    engine->requests++;
    voids->err = window_check(request->first_sector, request->window_sectors);
    if (voids->err == 0 && chunk == NULL)
        voids->err = -DL_E_CHUNK_UNKNOWN;
    if (voids->err != 0) {
        engine_finish_change_later(engine, &voids->done, voids->err);
        return;
    }
    voids->chunk = engine_chunk_of(chunk);
    voids->chunk->refs++;
    voids->pinned = leaf_range(voids->chunk, request->first_sector, request->window_sectors);
    leaf_range_pin(engine, voids->chunk, voids->pinned);
    missing = leaf_range_missing(engine, voids->chunk, voids->pinned);
    if (missing != NULL)
        leaf_wait(engine, missing, &voids->waiter);
    else
        voids_finish(voids);
}
