/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.c: the engine's turns: completions, timers, failure; its memory.
 *
 * Everything that could allow something else to go on calls engine_kick(); at the end of the turn
 * one pass looks at deletions, write-back and groups.  Idle engines have no timer armed.
 */
#include "chunkserver/engine/engine.h"

#include <stdlib.h>
#include <string.h>

#include "chunkserver/engine/engine_private.h"

#define CACHE_BYTES_DEFAULT     (UINT64_C(64) << 20)
#define RECORDS_MAX_DEFAULT     262144u
#define WRITEBACK_ITEMS_DEFAULT 512u /* their leaves are read in one chain, before others' */
#define SLICE_LEAVES_DEFAULT    256u /* 64 MiB of zeroes */
#define IDLE_MARK_DEFAULT       (1000 * NS_PER_MS)
#define IDLE_WRITEBACK_DEFAULT  (5000 * NS_PER_MS)

uint64_t
engine_block_offset(const struct engine *engine, uint64_t block)
{
    dl_assert(block < (uint64_t)engine->alloc.slab_count * SLAB_BLOCKS);
    return engine->superblock.geometry.data_offset + block * BLOCK_BYTES;
}

/* --- completions --- */

void
engine_finish_write(struct engine *engine, struct store_write *write, int err)
{
    dl_assert(engine->requests > 0);
    engine->requests--;
    if (err == 0) {
        engine->stats.writes++;
        engine->stats.bytes_written += write->zero ? 0
                                                   : (uint64_t)write->length_sectors * SECTOR_BYTES;
    }
    if (engine->stop_done != NULL)
        engine_kick(engine);
    write->on_done(write, err);
}

void
engine_finish_change(struct engine *engine, struct store_change *change, int err)
{
    dl_assert(engine->requests > 0);
    engine->requests--;
    if (engine->stop_done != NULL)
        engine_kick(engine);
    change->on_done(change, err);
}

void
engine_finish_read(struct engine *engine, struct store_read *read, int err)
{
    if (err == 0) {
        engine->stats.reads++;
        engine->stats.bytes_read += (uint64_t)read->length_sectors * SECTOR_BYTES;
    }
    if (engine->stop_done != NULL)
        engine_kick(engine);
    read->on_done(read, err);
}

void
engine_finish_write_later(struct engine *engine, struct store_write *write, int err)
{
    write->store_private[0] = (void *)(intptr_t)err;
    list_push_back(&engine->done_writes, &write->node);
    env_defer(engine->env, &engine->done_task);
}

void
engine_finish_change_later(struct engine *engine, struct store_change *change, int err)
{
    change->store_private[0] = (void *)(intptr_t)err;
    list_push_back(&engine->done_changes, &change->node);
    env_defer(engine->env, &engine->done_task);
}

void
engine_finish_read_later(struct engine *engine, struct store_read *read, int err)
{
    read->err = err;
    list_init(&read->node);
    list_push_back(&engine->done_reads, &read->node);
    env_defer(engine->env, &engine->done_task);
}

static void
done_on_task(struct env_task *task)
{
    struct engine *engine = list_entry(task, struct engine, done_task);
    struct list writes, changes, reads;

    list_init(&writes);
    list_init(&changes);
    list_init(&reads);
    list_splice_back(&writes, &engine->done_writes);
    list_splice_back(&changes, &engine->done_changes);
    list_splice_back(&reads, &engine->done_reads);
    while (!list_is_empty(&writes)) {
        struct store_write *write = list_entry(list_pop_front(&writes), struct store_write, node);

        engine_finish_write(engine, write, (int)(intptr_t)write->store_private[0]);
    }
    while (!list_is_empty(&changes)) {
        struct store_change *change = list_entry(list_pop_front(&changes), struct store_change,
                                                 node);

        engine_finish_change(engine, change, (int)(intptr_t)change->store_private[0]);
    }
    while (!list_is_empty(&reads)) {
        struct store_read *read = list_entry(list_pop_front(&reads), struct store_read, node);

        engine_finish_read(engine, read, read->err);
    }
}

/* --- turns --- */

static void
engine_turn(struct engine *engine)
{
    if (engine->applying && engine->stopped == 0)
        group_ack_all(engine);
    delete_step(engine);
    forget_step(engine);
    reclaim_step(engine);
    /*
     * What write-back stages can want a block, and a block that finds no room can want write-back.
     */
    for (int i = 0; i < 2; i++) {
        writeback_step(engine);
        group_close_all(engine);
    }
    if (engine->stop_done != NULL)
        stop_step(engine);
}

static void
kick_on_task(struct env_task *task)
{
    engine_turn(list_entry(task, struct engine, kick_task));
}

void
engine_kick(struct engine *engine)
{
    env_defer(engine->env, &engine->kick_task);
}

static void
later_on_timer(struct env_timer *timer)
{
    engine_kick(list_entry(timer, struct engine, later_timer));
}

/* A deferred call would come before the loop looks at sockets and disks again. */
void
engine_kick_later(struct engine *engine)
{
    env_timer_start(engine->env, &engine->later_timer, 0);
}

static void
engine_turn_end(struct chunk_store *store)
{
    group_close_all(engine_of_store(store));
}

/* --- idle --- */

void
engine_arm_idle(struct engine *engine)
{
    if (!env_timer_armed(&engine->idle_timer))
        env_timer_start(engine->env, &engine->idle_timer, engine->idle_mark_ns);
}

bool
engine_has_request(const struct engine *engine)
{
    return engine->requests > 0 || !list_is_empty(&engine->groups) ||
           !list_is_empty(&engine->ready) || !list_is_empty(&engine->urgent);
}

static void
idle_on_timer(struct env_timer *timer)
{
    struct engine *engine = list_entry(timer, struct engine, idle_timer);
    uint64_t idle_ns = env_now_ns(engine->env) - engine->active_ns;

    if (engine->stopped != 0)
        return;
    if (!engine_has_request(engine)) {
        if (idle_ns >= engine->idle_mark_ns &&
            (engine->records_lsn > engine->composed_mark || engine->alloc.queued_blocks > 0))
            engine->want_mark = true;
        if (idle_ns >= engine->idle_writeback_ns)
            writeback_all(engine);
    }
    engine_kick(engine);
    if (!engine_is_quiet(engine))
        env_timer_start(engine->env, &engine->idle_timer, engine->idle_mark_ns);
}

bool
engine_is_quiet(const struct engine *engine)
{
    return !engine_has_request(engine) && list_is_empty(&engine->reads) &&
           list_is_empty(&engine->done_reads) && list_is_empty(&engine->dirty) &&
           list_is_empty(&engine->deletions) && list_is_empty(&engine->cleared) &&
           list_is_empty(&engine->forgets) && list_is_empty(&engine->emptied) &&
           reclaim_is_idle(engine) && alloc_awaiting(&engine->alloc) == 0 &&
           engine->records_lsn <= engine->composed_mark &&
           engine->writeback.state == WRITEBACK_IDLE && !engine->writeback.index_dirty &&
           engine->loads_pending == 0;
}

/* --- failure --- */

static void
engine_fail_list(struct engine *engine, struct list *ops)
{
    struct list failed;

    list_init(&failed);
    list_splice_back(&failed, ops);
    while (!list_is_empty(&failed))
        op_finish(engine, list_entry(list_pop_front(&failed), struct op, node), engine->stopped);
}

void
engine_fail(struct engine *engine, int err)
{
    dl_assert(err < 0);
    if (engine->stopped != 0)
        return;
    dl_trace("engine", "stopped: %d", -err);
    engine->stopped = err;
    env_timer_stop(engine->env, &engine->throttle_timer);
    engine_fail_list(engine, &engine->ready);
    engine_fail_list(engine, &engine->urgent);
    engine_fail_list(engine, &engine->barriers_waiting);
    group_fail_all(engine);
    engine_kick(engine);
}

/* --- what there is to know --- */

static void
engine_get_stats(struct chunk_store *store, struct store_stats *ret_stats)
{
    struct engine *engine = engine_of_store(store);
    const struct alloc *alloc = &engine->alloc;
    uint64_t reserve = alloc_reserve(alloc);

    *ret_stats = engine->stats;
    ret_stats->capacity_bytes = alloc->data_blocks * BLOCK_BYTES;
    ret_stats->used_bytes = (alloc->data_blocks - alloc->free_blocks) * BLOCK_BYTES;
    ret_stats->available_bytes = alloc->free_blocks > reserve
                                     ? (alloc->free_blocks - reserve) * BLOCK_BYTES
                                     : 0;
    ret_stats->chunk_count = engine->chunks->chunk_count;
    ret_stats->journal_position = engine->acked_lsn;
    ret_stats->device_bytes_index = engine->index->ops->device_bytes_written(engine->index);
    ret_stats->leaves_cached = engine->loaded_count;
    ret_stats->cache_bytes = leaf_cache_bytes(engine);
    ret_stats->damaged = engine->damaged;
    ret_stats->stopped = engine->stopped;
}

const struct engine_counters *
engine_counters(struct engine *engine)
{
    engine->counters.blocks_reused = engine->alloc.reused_total;
    engine->counters.blocks_quarantined = engine->alloc.waited_total;
    return &engine->counters;
}

struct chunk_store *
engine_store(struct engine *engine)
{
    return &engine->store;
}

void
engine_identity(const struct engine *engine, struct engine_identity *ret_identity)
{
    const struct superblock *superblock = &engine->superblock;

    memcpy(ret_identity->disk_uuid, superblock->disk_uuid, SUPERBLOCK_UUID_BYTES);
    memcpy(ret_identity->cluster_id, superblock->cluster_id, SUPERBLOCK_UUID_BYTES);
    ret_identity->incarnation = superblock->incarnation;
    ret_identity->journal_position = engine->next_lsn;
    ret_identity->was_clean = engine->was_clean;
    ret_identity->damaged = engine->damaged;
}

/* --- create --- */

static const struct chunk_store_ops engine_ops = {
    .write_start = write_start,
    .read_start = read_start,
    .change_start = change_start,
    .pull_start = pull_start,
    .voids_start = voids_start,
    .merge_start = merge_start,
    .turn_end = engine_turn_end,
    .get_stats = engine_get_stats,
    .stop = stop_start,
};

static void
engine_init_lists(struct engine *engine)
{
    list_init(&engine->dirty);
    list_init(&engine->groups);
    list_init(&engine->groups_free);
    list_init(&engine->ready);
    list_init(&engine->urgent);
    list_init(&engine->slow);
    list_init(&engine->barriers_waiting);
    list_init(&engine->cache);
    list_init(&engine->loads);
    list_init(&engine->reads);
    list_init(&engine->deletions);
    list_init(&engine->cleared);
    list_init(&engine->forgets);
    list_init(&engine->emptied);
    list_init(&engine->done_writes);
    list_init(&engine->done_changes);
    list_init(&engine->done_reads);
}

static void
engine_init_memory(struct engine *engine)
{
    const struct leaf_delta *delta = NULL;

    freelist_init(&engine->ops, sizeof(struct op), 64);
    freelist_init(&engine->extents, ALLOC_EXTENTS_MAX * sizeof(struct extent), 4);
    freelist_init(&engine->leaves, sizeof(struct leaf), 64);
    freelist_init(&engine->sectors, LEAF_SECTORS * sizeof(struct leaf_sector), 32);
    freelist_init(&engine->deltas_one, sizeof(*delta) + sizeof(delta->data[0]), 256);
    freelist_init(&engine->deltas_few, sizeof(*delta) + 8 * sizeof(delta->data[0]), 64);
    freelist_init(&engine->deltas_many, sizeof(*delta) + LEAF_SECTORS * sizeof(delta->data[0]), 16);
    freelist_init(&engine->loads_pool, leaf_load_bytes(), 64);
    freelist_init(&engine->delete_waiters, delete_waiter_bytes(), 16);
    freelist_init(&engine->forget_waiters, forget_waiter_bytes(), 16);
    freelist_init(&engine->reclaim_waiters, reclaim_waiter_bytes(), 8);
    freelist_init(&engine->read_ops, sizeof(struct read_op), 64);
    freelist_init(&engine->read_ios, sizeof(struct read_io), 64);
    freelist_init(&engine->data_ios, sizeof(struct data_io), 32);
    freelist_init(&engine->chunks_pool, sizeof(struct engine_chunk), 64);
    freelist_init(&engine->volumes_pool, sizeof(struct engine_volume), 16);
    freelist_init(&engine->bad_pool, sizeof(struct bad_block), 16);
    freelist_init(&engine->attempts_pool, sizeof(struct attempt), 4);
    freelist_init(&engine->merges_pool, sizeof(struct merge), 1);
    freelist_init(&engine->pulls_pool, pull_bytes(), 1);
    freelist_init(&engine->voids_pool, voids_bytes(), 1);
}

struct engine *
engine_create(struct env *env, struct disk *disk, struct index *index,
              const struct engine_options *options)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    dl_assert(engine != NULL);
    dl_owner_set(&engine->owner);
    engine->env = env;
    engine->disk = disk;
    engine->index = index;
    engine->cache_budget = options->cache_bytes != 0 ? options->cache_bytes : CACHE_BYTES_DEFAULT;
    engine->records_max = options->records_max != 0 ? options->records_max : RECORDS_MAX_DEFAULT;
    engine->writeback_items_max = options->writeback_items != 0 ? options->writeback_items
                                                                : WRITEBACK_ITEMS_DEFAULT;
    engine->idle_mark_ns = options->idle_mark_ns != 0 ? options->idle_mark_ns : IDLE_MARK_DEFAULT;
    engine->idle_writeback_ns = options->idle_writeback_ns != 0 ? options->idle_writeback_ns
                                                                : IDLE_WRITEBACK_DEFAULT;
    engine->slice_leaves = options->slice_leaves != 0 ? options->slice_leaves
                                                      : SLICE_LEAVES_DEFAULT;
    engine_init_lists(engine);
    engine_init_memory(engine);
    engine->chunks = chunk_table_create();
    engine->store.ops = &engine_ops;
    engine->store.chunks = engine->chunks;
    engine->local_id_next = 1;
    engine->done_task.fn = done_on_task;
    engine->kick_task.fn = kick_on_task;
    engine->load_task.fn = leaf_loads_start;
    engine->idle_timer.fn = idle_on_timer;
    engine->later_timer.fn = later_on_timer;
    return engine;
}

/* --- destroy --- */

static void
engine_fini_memory(struct engine *engine)
{
    struct freelist *lists[] = {
        &engine->ops,           &engine->extents,        &engine->leaves,
        &engine->sectors,       &engine->deltas_one,     &engine->deltas_few,
        &engine->deltas_many,   &engine->loads_pool,     &engine->delete_waiters,
        &engine->read_ops,      &engine->read_ios,       &engine->data_ios,
        &engine->chunks_pool,   &engine->volumes_pool,   &engine->bad_pool,
        &engine->attempts_pool, &engine->merges_pool,    &engine->pulls_pool,
        &engine->voids_pool,    &engine->forget_waiters, &engine->reclaim_waiters,
    };

    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
        freelist_fini(lists[i]);
}

void
engine_destroy(struct engine *engine)
{
    struct chunk *chunk, *next;

    if (engine == NULL)
        return;
    env_timer_stop(engine->env, &engine->idle_timer);
    env_timer_stop(engine->env, &engine->throttle_timer);
    env_timer_stop(engine->env, &engine->later_timer);
    HASH_ITER (by_local_id, engine->chunks->by_local_id, chunk, next) {
        forget_chunk_fini(engine_chunk_of(chunk));
        free(engine_chunk_of(chunk)->leaves);
    }
    chunk_table_destroy(engine->chunks);
    writeback_fini(engine);
    reclaim_fini(engine);
    group_free_all(engine);
    alloc_fini(&engine->alloc);
    free(engine->pages);
    free(engine->stretches);
    free(engine->replay_frees);
    free(engine->stop_buffer);
    engine_fini_memory(engine);
    free(engine);
}
