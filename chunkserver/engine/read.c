/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read.c: a read: leaves in memory, one disk read per run of blocks, zeroes for the rest.
 *
 * Invariants:
 * 1. A read sees the leaves as they are when the last of them is in memory: what is acknowledged,
 *    or durable and about to be (a group that is applied in slices), nothing else.
 * 2. From its start to its end it is in engine.reads, ordered by started_seq: blocks that are freed
 *    meanwhile are not handed out before it has ended (alloc.h, quarantine).
 * 3. With the leaves in memory nothing is allocated: ops and I/Os come from free lists.
 */
#include <string.h>

#include "chunkserver/engine/engine_private.h"

uint64_t
read_seq_min(const struct engine *engine)
{
    if (list_is_empty(&engine->reads))
        return UINT64_MAX;
    return list_first_entry(&engine->reads, struct read_op, node)->read->started_seq;
}

struct store_read *
read_op_end(struct read_op *op)
{
    struct engine *engine = op->engine;
    struct store_read *read = op->read;

    dl_assert(read->ios_pending == 0);
    dl_assert(!list_is_linked(&op->waiter.node));
    list_remove(&op->node);
    dl_assert(op->chunk->refs > 0);
    op->chunk->refs--;
    freelist_give(&engine->read_ops, op);
    if (engine->alloc.quarantined_blocks > 0)
        alloc_release(&engine->alloc, read_seq_min(engine));
    return read;
}

static void
read_finish(struct read_op *op)
{
    struct engine *engine = op->engine;
    struct store_read *read = read_op_end(op);

    engine_finish_read(engine, read, read->err);
}

/* --- disk --- */

static void
read_io_done(struct read_op *op, int result)
{
    struct store_read *read = op->read;

    if (result < 0) {
        op->engine->stats.media_errors++;
        read->err = -DL_E_MEDIA_READ;
    }
    dl_assert(read->ios_pending > 0);
    if (--read->ios_pending == 0)
        read_finish(op);
}

static void
read_on_io(struct disk_io *io, int result)
{
    struct read_io *read_io = list_entry(io, struct read_io, io);
    struct read_op *op = read_io->op;

    if (read_io != &op->first_io)
        freelist_give(&op->engine->read_ios, read_io);
    read_io_done(op, result);
}

void
read_submit(struct read_op *op, uint32_t first, uint32_t count, uint64_t block)
{
    struct engine *engine = op->engine;
    struct store_read *read = op->read;
    bool embedded = op->first_io.op == NULL;
    struct read_io *read_io = embedded ? &op->first_io : freelist_take(&engine->read_ios);
    struct disk_io *io = &read_io->io;

    read_io->op = op;
    io->kind = DISK_READ;
    io->offset_bytes = engine_block_offset(engine, block);
    io->iov_one.iov_base = (uint8_t *)read->buffer + (size_t)first * SECTOR_BYTES;
    io->iov_one.iov_len = (size_t)count * SECTOR_BYTES;
    io->iov = &io->iov_one;
    io->iov_count = 1;
    io->on_done = read_on_io;
    read->ios_pending++;
    disk_submit(engine->disk, io);
}

/* --- leaves --- */

/* All leaves are in memory. */
static void
read_map(struct read_op *op)
{
    struct store_read *read = op->read;
    uint32_t run_first = 0, run_count = 0;
    uint64_t run_block = 0;

    for (uint32_t i = 0; i < read->length_sectors; i++) {
        const struct leaf_sector *sector = leaf_sector_at(op->chunk, read->offset_sectors + i);
        unsigned kind = leaf_sector_kind(sector);
        uint64_t block = leaf_sector_block(sector);

        read->kinds[i] = (uint8_t)kind;
        read->crcs[i] = sector->crc;
        if (kind == SECTOR_VOID)
            read->err = sector->birth == SECTOR_VOID_DAMAGED ? -DL_E_INDEX_CORRUPT
                                                             : -DL_E_NOT_IN_SYNC;
        if (kind != SECTOR_DATA) {
            memset((uint8_t *)read->buffer + (size_t)i * SECTOR_BYTES, 0, SECTOR_BYTES);
            continue;
        }
        read->data_sectors++;
        if (run_count > 0 && run_first + run_count == i && run_block + run_count == block) {
            run_count++;
            continue;
        }
        if (run_count > 0)
            read_submit(op, run_first, run_count, run_block);
        run_first = i;
        run_count = 1;
        run_block = block;
    }
    if (run_count > 0)
        read_submit(op, run_first, run_count, run_block);
}

/* Wait for a leaf, or begin to read, or find that nothing is to be read. */
static void
read_step(struct read_op *op)
{
    const struct store_read *read = op->read;
    struct leaf_range range = leaf_range(op->chunk, read->offset_sectors, read->length_sectors);
    struct leaf *missing = leaf_range_missing(op->engine, op->chunk, range);

    if (missing != NULL) {
        op->engine->stats.leaf_misses++;
        op->pinned = range;
        leaf_range_pin(op->engine, op->chunk, range);
        leaf_wait(op->engine, missing, &op->waiter);
        return;
    }
    op->engine->stats.leaf_hits++;
    if (leaf_range_is_corrupt(op->chunk, range))
        op->read->err = -DL_E_INDEX_CORRUPT;
    else
        read_map(op); /* of void sectors it leaves the same error */
}

static void
read_on_leaf(struct leaf_waiter *waiter, int err)
{
    struct read_op *op = list_entry(waiter, struct read_op, waiter);

    (void)err; /* an unreadable leaf is LEAF_CORRUPT now */
    leaf_range_unpin(op->engine, op->chunk, &op->pinned);
    /* Its leaves are being cleared: that would look like holes, to one who only has an old map. */
    if (op->chunk->chunk->state == CHUNK_DELETING)
        op->read->err = -DL_E_CHUNK_UNKNOWN;
    else
        read_step(op);
    if (op->read->ios_pending == 0 && !list_is_linked(&op->waiter.node))
        read_finish(op);
}

/* --- start --- */

static int
read_check(const struct store_read *read)
{
    if (read->length_sectors == 0 || read->length_sectors > STORE_IO_SECTORS_MAX ||
        read->offset_sectors >= CHUNK_SECTORS_MAX ||
        read->length_sectors > CHUNK_SECTORS_MAX - read->offset_sectors)
        return -DL_E_RANGE;
    /*
     * Kept extents have their keys in the index, but nobody writes them yet: there is nothing to
     * read.
     */
    if (read->snapshot_seq != 0)
        return -DL_E_RANGE;
    return 0;
}

struct read_op *
read_op_create(struct engine *engine, struct store_read *read, struct engine_chunk *chunk)
{
    struct read_op *op = freelist_take(&engine->read_ops);

    op->read = read;
    op->engine = engine;
    op->chunk = chunk;
    op->pinned = (struct leaf_range){0};
    op->first_io.op = NULL;
    op->waiter.fn = read_on_leaf;
    list_init(&op->waiter.node);
    list_init(&op->node);
    list_push_back(&engine->reads, &op->node);
    chunk->refs++;
    return op;
}

void
read_start(struct chunk_store *store, struct store_read *read)
{
    struct engine *engine = engine_of_store(store);
    struct chunk *chunk = chunk_table_find(engine->chunks, &read->key);
    struct read_op *op;

    dl_assert(!engine->stopping);
    read->data_sectors = 0;
    read->ios_pending = 0;
    read->err = read_check(read);
    read->started_seq = ++engine->read_seq;
    if (read->err == 0 && chunk == NULL)
        read->err = -DL_E_CHUNK_UNKNOWN;
    if (read->err != 0) {
        engine_finish_read_later(engine, read, read->err);
        return;
    }
    op = read_op_create(engine, read, engine_chunk_of(chunk));
    read_step(op);
    if (read->ios_pending > 0 || list_is_linked(&op->waiter.node))
        return;
    /* Nothing but holes and zeroes, or an unreadable leaf: nothing to wait for. */
    read = read_op_end(op);
    engine_finish_read_later(engine, read, read->err);
}
