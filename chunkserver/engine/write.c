/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write.c: a write from its start until it is ready for a group, and its end.
 *
 *     start --> blocks handed out --> up to 64 KiB: ready
 *       |                        `--> larger: data I/O --> ready                           (slow)
 *       |--> no room: an overwrite may take the reserve; the leaf must be read to know     (slow)
 *       `--> durable already, or a duplicate of one in flight
 *
 * What starts later may overtake a slow one.
 *
 * Invariants:
 * 1. Everything that engine.slow holds was accepted, and is not acknowledged; fences and epochs
 *    that were started later wait for it.
 * 2. A chunk that is being deleted gets no new record but CLEARs: requests see an unknown chunk
 *    from the start of the deletion, and a slow write looks again before it becomes ready.
 */
#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

#define VERSION_LEASE_SHIFT 40 /* chunk_store.h */

/* --- ops --- */

struct op *
op_create(struct engine *engine, enum record_kind kind, struct engine_chunk *chunk)
{
    struct op *op = freelist_take(&engine->ops);

    memset(op, 0, sizeof(*op));
    op->kind = kind;
    op->chunk = chunk;
    op->extents = op->extents_inline;
    op->start_seq = ++engine->start_seq;
    list_init(&op->node);
    list_init(&op->duplicates);
    list_init(&op->chunk_node);
    list_init(&op->slow_node);
    if (chunk != NULL)
        chunk->refs++;
    return op;
}

void
op_destroy(struct engine *engine, struct op *op)
{
    dl_assert(list_is_empty(&op->duplicates));
    dl_assert(!list_is_linked(&op->node));
    if (list_is_linked(&op->chunk_node))
        list_remove(&op->chunk_node);
    if (list_is_linked(&op->slow_node))
        list_remove(&op->slow_node);
    if (op->extents != op->extents_inline)
        freelist_give(&engine->extents, op->extents);
    if (op->chunk != NULL) {
        dl_assert(op->chunk->refs > 0);
        op->chunk->refs--;
    }
    freelist_give(&engine->ops, op);
}

void
op_ready(struct engine *engine, struct op *op)
{
    dl_assert(!list_is_linked(&op->node));
    list_push_back(&engine->ready, &op->node);
}

void
op_set_extents(struct engine *engine, struct op *op, const struct extent *extents, uint32_t count)
{
    dl_assert(op->extent_count == 0);
    dl_assert(count <= ALLOC_EXTENTS_MAX);
    if (count > OP_EXTENTS_INLINE && op->extents == op->extents_inline)
        op->extents = freelist_take(&engine->extents);
    memcpy(op->extents, extents, count * sizeof(*extents));
    op->extent_count = count;
}

void
op_mark_slow(struct engine *engine, struct op *op)
{
    if (op->slow)
        return;
    op->slow = true;
    list_push_back(&engine->slow, &op->slow_node);
}

/* Its blocks stand in no journal block. */
static void
op_return_blocks(struct engine *engine, struct op *op)
{
    for (uint32_t i = 0; i < op->extent_count; i++)
        if (op->extents[i].count > 0)
            alloc_return(&engine->alloc, op->extents[i].block, op->extents[i].count);
    op->extent_count = 0;
}

/*
 * A write of a version that is durable already.  It may carry a config epoch that is not: its
 * acknowledgement says that both are, so the epoch gets a record of its own.
 */
static void
write_finish_duplicate(struct engine *engine, struct engine_chunk *chunk, struct store_write *write)
{
    struct op *op;

    if (write->config_epoch <= chunk->epoch_durable || chunk->chunk->state == CHUNK_DELETING) {
        engine_finish_write_later(engine, write, 0);
        return;
    }
    if (write->config_epoch > chunk->chunk->config_epoch)
        chunk->chunk->config_epoch = write->config_epoch;
    op = op_create(engine, RECORD_EPOCH, chunk);
    op->number = write->config_epoch;
    op->write = write;
    op_ready(engine, op);
    engine_kick(engine);
}

static void write_begin(struct engine *engine, struct store_write *write);

/*
 * It would begin only now, and what came since it was accepted, a fence or a config epoch, has not
 * waited for it.
 */
static int
write_check_twin(const struct engine_chunk *chunk, const struct store_write *twin)
{
    if (twin->version >> VERSION_LEASE_SHIFT < chunk->chunk->volume->lease_epoch)
        return -DL_E_LEASE_OLD;
    return twin->config_epoch < chunk->chunk->config_epoch ? -DL_E_EPOCH_OLD : 0;
}

/* The first write of the version is over: so it is for the one that waited for it, or it is not. */
static void
write_finish_twin(struct engine *engine, struct engine_chunk *chunk, struct store_write *twin,
                  int err)
{
    bool again = (err == -DL_E_NO_SPACE || err == -DL_E_BUSY) && twin->use_reserve;

    if (again)
        err = write_check_twin(chunk, twin);
    if (again && err == 0)
        write_begin(engine, twin);
    else if (err == 0)
        write_finish_duplicate(engine, chunk, twin);
    else
        engine_finish_write_later(engine, twin, err);
}

void
op_finish(struct engine *engine, struct op *op, int err)
{
    struct store_write *write = op->write;
    struct store_change *change = op->change;
    struct engine_chunk *chunk = op->chunk;
    bool slow = op->slow;
    struct list duplicates;

    list_init(&duplicates);
    list_splice_back(&duplicates, &op->duplicates);
    /*
     * An acknowledged op's blocks are the leaf's; when the store has stopped nothing is handed out
     * any more.
     */
    dl_assert(op->extent_count == 0 || engine->stopped != 0);
    op_return_blocks(engine, op);
    op_destroy(engine, op);
    if (change != NULL)
        engine_finish_change(engine, change, err);
    if (write != NULL)
        engine_finish_write(engine, write, err);
    while (!list_is_empty(&duplicates)) {
        struct store_write *twin = list_entry(list_pop_front(&duplicates), struct store_write,
                                              node);

        write_finish_twin(engine, chunk, twin, err);
    }
    if (slow)
        change_check_waiting(engine);
}

/* --- blocks --- */

/*
 * What the write would give up makes up for what it takes.  1: it is an overwrite of data with the
 * same birth; 0: not; -1: a leaf must be read to know, and the op waits for it.
 */
static int
write_is_overwrite(struct engine *engine, struct op *op)
{
    const struct store_write *write = op->write;
    uint32_t end = write->offset_sectors + write->length_sectors;

    for (uint32_t sector = write->offset_sectors; sector < end; sector++) {
        uint32_t number = sector / LEAF_SECTORS;
        const struct leaf_sector *old;
        struct leaf *leaf;

        if (number >= op->chunk->leaf_count)
            return 0;
        leaf = leaf_get(engine, op->chunk, number);
        if (leaf->state == LEAF_CORRUPT)
            return 0;
        if (leaf->state != LEAF_LOADED) {
            op->pinned = leaf_range(op->chunk, write->offset_sectors, write->length_sectors);
            leaf_range_pin(engine, op->chunk, op->pinned);
            leaf_wait(engine, leaf, &op->waiter);
            return -1;
        }
        old = &leaf->sectors[sector % LEAF_SECTORS];
        if (leaf_sector_kind(old) != SECTOR_DATA || old->birth != write->birth)
            return 0;
    }
    return 1;
}

static bool
write_take_blocks(struct engine *engine, struct op *op, bool use_reserve)
{
    const struct store_write *write = op->write;
    struct extent extents[ALLOC_EXTENTS_MAX];
    enum alloc_kind kind = write->length_sectors >= ALLOC_LARGE_BLOCKS ? ALLOC_LARGE : ALLOC_SMALL;
    uint32_t count = alloc_take(&engine->alloc, kind, write->length_sectors, use_reserve, extents);

    if (count == 0)
        return false;
    op_set_extents(engine, op, extents, count);
    return true;
}

/* --- data ahead of the group --- */

static void write_submit(struct engine *engine, struct op *op);

/* Again with other blocks, or the end: no record names the old ones. */
static void
write_joined_failed(struct engine *engine, struct op *op)
{
    if (++op->attempts < WRITE_ATTEMPTS_MAX && write_take_blocks(engine, op, true)) {
        write_submit(engine, op);
        return;
    }
    op_finish(engine, op, -DL_E_MEDIA_WRITE);
}

static void
write_joined_done(struct engine *engine, struct op *op)
{
    if (engine->stopped != 0) {
        op_finish(engine, op, engine->stopped);
    } else if (op->chunk->chunk->state == CHUNK_DELETING) {
        op_return_blocks(engine, op);
        op_finish(engine, op, -DL_E_CHUNK_DELETED);
    } else if (op->extent_count == 0) {
        write_joined_failed(engine, op);
    } else {
        op_ready(engine, op);
    }
    engine_kick(engine);
}

static void
write_on_data(struct disk_io *io, int result)
{
    struct data_io *data = list_entry(io, struct data_io, io);
    struct engine *engine = data->engine;
    struct op *op = data->op;

    if (result < 0) {
        engine->counters.data_write_errors++;
        engine->stats.media_errors++;
        group_queue_bad(engine, data->extent);
        for (uint32_t i = 0; i < op->extent_count; i++)
            if (op->extents[i].block == data->extent.block)
                op->extents[i].count = 0;
        op->io_failed = true;
    }
    freelist_give(&engine->data_ios, data);
    dl_assert(op->ios_pending > 0);
    if (--op->ios_pending > 0)
        return;
    /* The good runs are free again, the bad ones (count 0 here) are the BAD op's. */
    if (op->io_failed)
        op_return_blocks(engine, op);
    op->io_failed = false;
    write_joined_done(engine, op);
}

static void
write_submit_data(struct engine *engine, struct op *op)
{
    uint8_t *payload = (uint8_t *)(uintptr_t)op->write->payload;
    uint32_t extent_count = op->extent_count;

    op->joined = true;
    op->ios_pending = extent_count;
    for (uint32_t i = 0; i < extent_count; i++) {
        struct data_io *data = freelist_take(&engine->data_ios);
        struct extent extent = op->extents[i];
        size_t bytes = (size_t)extent.count * BLOCK_BYTES;

        *data = (struct data_io){.engine = engine, .op = op, .extent = extent};
        data->io.kind = DISK_WRITE;
        data->io.iov_one = (struct iovec){.iov_base = payload, .iov_len = bytes};
        data->io.iov = &data->io.iov_one;
        data->io.iov_count = 1;
        data->io.offset_bytes = engine_block_offset(engine, extent.block);
        data->io.on_done = write_on_data;
        engine->stats.device_bytes_data += bytes;
        payload += bytes;
        disk_submit(engine->disk, &data->io);
    }
}

/* The op has its blocks. */
static void
write_submit(struct engine *engine, struct op *op)
{
    engine->counters.blocks_allocated += op->kind == RECORD_ZERO ? 0 : op->write->length_sectors;
    if (op->kind == RECORD_ZERO || op->write->length_sectors <= LARGE_WRITE_SECTORS) {
        op_ready(engine, op);
        return;
    }
    op_mark_slow(engine, op);
    write_submit_data(engine, op);
}

/* --- a record was aborted --- */

struct op *
write_op_create(struct engine *engine, struct engine_chunk *chunk, struct store_write *write,
                enum record_kind kind)
{
    struct op *op = op_create(engine, kind, chunk);

    op->write = write;
    /* Also of one that must wait for a leaf first: a second one of its version has to find it. */
    if (write->version > chunk->version_max)
        chunk->version_max = write->version;
    list_push_back(&chunk->writes, &op->chunk_node);
    return op;
}

void
write_retry(struct engine *engine, struct op *op, struct op *abort_op)
{
    struct store_write *write = op->write;
    struct op *again;

    op->write = NULL;
    list_remove(&op->chunk_node);
    again = write_op_create(engine, op->chunk, write, op->kind);
    again->promotes = op->promotes;
    again->attempts = (uint8_t)(op->attempts + 1);
    again->start_seq = op->start_seq;
    op_mark_slow(engine, again);
    list_splice_back(&again->duplicates, &op->duplicates);
    if (again->chunk->chunk->state == CHUNK_DELETING)
        again->err = -DL_E_CHUNK_DELETED;
    else if (again->attempts >= WRITE_ATTEMPTS_MAX || !write_take_blocks(engine, again, true))
        again->err = -DL_E_MEDIA_WRITE;
    if (again->err == 0) {
        write_submit(engine, again);
        return;
    }
    /*
     * Nothing is left to try.  The requester must not hear of it while a crash could still bring
     * the record to life.
     */
    abort_op->write = write;
    abort_op->err = again->err;
    list_splice_back(&abort_op->duplicates, &again->duplicates);
    abort_op->start_seq = again->start_seq;
    abort_op->chunk = again->chunk;
    abort_op->chunk->refs++;
    list_remove(&again->chunk_node);
    list_push_back(&abort_op->chunk->writes, &abort_op->chunk_node);
    op_mark_slow(engine, abort_op);
    again->write = NULL;
    op_destroy(engine, again);
}

/* --- start --- */

/*
 * No blocks to be had: help to make some free, so that the next one has better luck.  What gives
 * back as much as it takes (`overwrites`) is only too early, if others that do are under way.
 */
static void
write_refuse_full(struct engine *engine, struct op *op, bool overwrites)
{
    const struct alloc *alloc = &engine->alloc;

    engine->counters.writes_refused_full++;
    engine->want_mark = engine->want_mark || alloc->queued_blocks > 0;
    if (engine->debt_sectors > 0)
        writeback_all(engine);
    op->err = overwrites && (alloc->limbo_blocks > 0 || alloc_awaiting(alloc) > 0) ? -DL_E_BUSY
                                                                                   : -DL_E_NO_SPACE;
}

/*
 * Hand out blocks.  Returns false if the op waits for a leaf.  On true op->err says how it went.
 */
static bool
write_find_room(struct engine *engine, struct op *op)
{
    int overwrite;

    if (op->kind == RECORD_ZERO || write_take_blocks(engine, op, false))
        return true;
    overwrite = op->write->use_reserve ? 1 : write_is_overwrite(engine, op);
    if (overwrite < 0)
        return false;
    if (overwrite > 0 && write_take_blocks(engine, op, true))
        engine->counters.reserve_writes++;
    else
        write_refuse_full(engine, op, overwrite > 0);
    return true;
}

/*
 * Accepted: what refuses lower epochs and drops old pending writes may change at once, it is true
 * whatever happens.
 */
static void
write_accept(struct engine *engine, struct op *op)
{
    struct chunk *chunk = op->chunk->chunk;
    const struct store_write *write = op->write;

    if (write->config_epoch > chunk->config_epoch)
        chunk->config_epoch = write->config_epoch;
    (void)chunk_stable_hear(chunk, write->attempt, write->stable_version);
    op->promotes = write->attempt == 0 && chunk->attempt != 0;
    write_submit(engine, op);
}

void
write_go(struct engine *engine, struct op *op, bool use_reserve)
{
    dl_assert(op->kind == RECORD_MERGE);
    if (op->write->length_sectors == 0) {
        op_ready(engine, op);
    } else if (write_take_blocks(engine, op, use_reserve)) {
        write_submit(engine, op);
    } else {
        write_refuse_full(engine, op, use_reserve);
        engine_finish_write_later(engine, op->write, op->err);
        op_destroy(engine, op);
    }
    engine_kick(engine);
}

/* Of a recovering chunk: a write of its attempt, or one that says that it was promoted. */
static int
write_check_attempt(const struct engine_chunk *chunk, const struct store_write *write)
{
    const struct chunk *known = chunk->chunk;

    if (recover_is_beginning(chunk))
        return -DL_E_EPOCH_OLD;
    if (known->attempt == 0 || write->attempt == known->attempt)
        return 0;
    return write->attempt == 0 && write->config_epoch > known->attempt ? 0 : -DL_E_EPOCH_OLD;
}

static void
write_on_leaf(struct leaf_waiter *waiter, int err)
{
    struct op *op = list_entry(waiter, struct op, waiter);
    struct engine *engine = op->chunk->engine;

    leaf_range_unpin(engine, op->chunk, &op->pinned);
    (void)err; /* an unreadable leaf is no overwrite: write_is_overwrite() sees it */
    if (engine->stopped != 0)
        op->err = engine->stopped;
    else if (op->chunk->chunk->state == CHUNK_DELETING)
        op->err = -DL_E_CHUNK_DELETED;
    else if (!write_find_room(engine, op))
        return;
    if (op->err != 0)
        op_finish(engine, op, op->err);
    else
        write_accept(engine, op);
    engine_kick(engine);
}

static int
write_check(const struct engine *engine, const struct store_write *write)
{
    uint32_t length_max = write->zero ? CHUNK_SECTORS_MAX : STORE_IO_SECTORS_MAX;

    if (engine->stopped != 0)
        return engine->stopped;
    if (write->length_sectors == 0 || write->length_sectors > length_max ||
        write->offset_sectors >= CHUNK_SECTORS_MAX ||
        write->length_sectors > CHUNK_SECTORS_MAX - write->offset_sectors || write->version == 0)
        return -DL_E_RANGE;
    return 0;
}

static bool
write_is_in_list(const struct list *deletions, const struct store_write *write)
{
    const struct engine_chunk *chunk;

    list_for_each_entry (chunk, deletions, deletion_node)
        if (memcmp(&chunk->chunk->key, &write->key, sizeof(write->key)) == 0 &&
            write->config_epoch <= chunk->chunk->config_epoch)
            return true;
    return false;
}

/*
 * Was this very chunk deleted, so that the write is a late one?  Its successor has a higher config
 * epoch.
 */
static bool
write_is_of_deleted(const struct engine *engine, const struct store_write *write)
{
    return write_is_in_list(&engine->deletions, write) || write_is_in_list(&engine->cleared, write);
}

struct engine_chunk *
engine_chunk_create(struct engine *engine, const struct chunk_key *key, uint32_t incarnation,
                    struct op **ret_op)
{
    struct engine_chunk *chunk = engine_chunk_add(engine, key, engine->local_id_next, incarnation);
    struct op *op = op_create(engine, RECORD_CREATE, chunk);

    op->number = incarnation;
    op_ready(engine, op);
    if (ret_op != NULL)
        *ret_op = op;
    return chunk;
}

static int
write_find_chunk(struct engine *engine, const struct store_write *write,
                 struct engine_chunk **ret_chunk)
{
    struct chunk *chunk = chunk_table_find(engine->chunks, &write->key);

    if (chunk != NULL) {
        *ret_chunk = engine_chunk_of(chunk);
        return 0;
    }
    if (write_is_of_deleted(engine, write))
        return -DL_E_CHUNK_DELETED;
    if (!write->create)
        return -DL_E_CHUNK_UNKNOWN;
    /* Before the chunk is created: a refused write changes nothing. */
    if (!write->zero &&
        !alloc_has_room(&engine->alloc, write->length_sectors, write->use_reserve)) {
        engine->counters.writes_refused_full++;
        return -DL_E_NO_SPACE;
    }
    *ret_chunk = engine_chunk_create(engine, &write->key, write->config_epoch, NULL);
    return 0;
}

/* The op of this version that is under way; NULL: none. */
static struct op *
write_find_twin(const struct engine_chunk *chunk, uint64_t version)
{
    struct op *op;

    if (version > chunk->version_max)
        return NULL;
    list_for_each_entry (op, &chunk->writes, chunk_node)
        if (op->write->version == version)
            return op;
    return NULL;
}

/*
 * Returns whether the write has been dealt with: it is durable, or waits for the first of its
 * version.
 */
static bool
write_is_duplicate(struct engine *engine, struct engine_chunk *chunk, struct store_write *write)
{
    struct op *twin = write_find_twin(chunk, write->version);

    if (twin != NULL) {
        list_push_back(&twin->duplicates, &write->node);
    } else if (chunk_version_is_durable(chunk->chunk, write->version)) {
        write_finish_duplicate(engine, chunk, write);
    } else {
        return false;
    }
    engine->counters.writes_duplicate++;
    return true;
}

static void
write_begin(struct engine *engine, struct store_write *write)
{
    struct engine_chunk *chunk = NULL;
    struct op *op;
    int err = write_check(engine, write);

    list_init(&write->node);
    if (err == 0)
        err = write_find_chunk(engine, write, &chunk);
    if (err == 0)
        err = write_check_attempt(chunk, write);
    if (err == 0 && write_is_duplicate(engine, chunk, write)) {
        /* No record of its own carries it. */
        change_stable_heard(engine, chunk, write->attempt, write->stable_version);
        return;
    }
    if (err == 0 && chunk->chunk->pending_count >=
                        (write->use_reserve ? CHUNK_PENDING_TAKEOVER_MAX : CHUNK_PENDING_MAX))
        err = -DL_E_BUSY;
    if (err != 0) {
        engine_finish_write_later(engine, write, err);
        return;
    }
    op = write_op_create(engine, chunk, write, write->zero ? RECORD_ZERO : RECORD_WRITE);
    op->waiter.fn = write_on_leaf;
    engine->counters.writes_small += write->length_sectors <= LARGE_WRITE_SECTORS && !write->zero;
    engine->counters.writes_large += write->length_sectors > LARGE_WRITE_SECTORS && !write->zero;
    if (!write_find_room(engine, op)) {
        op_mark_slow(engine, op);
    } else if (op->err != 0) {
        engine_finish_write_later(engine, write, op->err);
        op_destroy(engine, op);
    } else {
        write_accept(engine, op);
    }
    engine_kick(engine);
}

void
write_start(struct chunk_store *store, struct store_write *write)
{
    struct engine *engine = engine_of_store(store);

    dl_assert(!engine->stopping);
    engine->requests++;
    write_begin(engine, write);
}
