/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h: the storage engine: a chunk_store on one disk and one index.
 *
 *     engine_format_now(disk, &format, &err);                      once per disk
 *     engine_open(&engine, env, disk, index, &options, &err);      replays the journal
 *     store = engine_store(engine);
 *     store->ops->write_start(store, &write); ... store->ops->turn_end(store);
 *     store->ops->stop(store, on_done, context);
 *     engine_destroy(engine);                                      after on_done has returned
 *
 * How it works: docs/engine.md.  What is on the disk: docs/disk-format.md, format.h.
 *
 * Threads: one owner, the loop.  engine_format_now(), engine_open() and engine_check() block;
 *          nothing else does.
 * Errors:  0 or a negative DL_E_*, with text in `err` where there is one.  Of requests:
 *          chunk_store.h.
 * Memory:  env, disk and index are the caller's and outlive the engine.  The engine closes none of
 *          them.
 */
#ifndef DLBLK_ENGINE_ENGINE_H
#define DLBLK_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_store.h"
#include "chunkserver/engine/index.h"
#include "chunkserver/engine/superblock.h"
#include "common/disk.h"
#include "common/env.h"
#include "dlblk/error.h"

struct engine;

/* What a disk is to become.  Zero sizes mean: chosen by the size of the disk. */
struct engine_format {
    uint8_t disk_uuid[SUPERBLOCK_UUID_BYTES]; /* random, made by the caller: also the server's id */
    uint8_t cluster_id[SUPERBLOCK_UUID_BYTES];
    const char *meta_address; /* where the metadata service was at the time; may be NULL */
    uint64_t created_ms;      /* for display */
    uint64_t journal_bytes;   /* the ring; at least ENGINE_JOURNAL_UNITS_MIN blocks */
    uint64_t metadata_bytes;  /* the metadata region */
    uint64_t reserve_bytes;   /* what new allocations leave free, beside 2 % of the data region */
};

#define ENGINE_JOURNAL_UNITS_MIN 64u

/*
 * Zero the ring, write both superblock copies.  The index of a freshly formatted disk must be
 * empty.  Whatever the disk contained is lost: the caller has asked.
 *   -DL_E_SIZE_INVALID the disk is too small for what was asked; err says how large it would have
 *   to be -DL_E_MEDIA_WRITE
 */
int engine_format_now(struct disk *disk, const struct engine_format *format, struct dl_error *err);

/* Zero or NULL: the default. */
struct engine_options {
    const uint8_t *cluster_id;  /* a disk of another cluster is refused; NULL: any */
    uint64_t cache_bytes;       /* budget of clean leaves; 64 MiB */
    uint32_t records_max;       /* journal records not yet written back; 262144 */
    uint32_t writeback_items;   /* leaves and other values in one index batch; 512 */
    uint64_t idle_mark_ns;      /* a block with the mark alone after so much idle time; 1 s */
    uint64_t idle_writeback_ns; /* everything is written back after so much idle time; 5 s */
    uint32_t slice_leaves;      /* leaves changed by one record in one turn; 256 */
};

/*
 * Check superblock and index against each other, replay the journal, start a new incarnation.
 *   -DL_E_DISK_FORMAT     no copy of a superblock, or an unknown format or feature: err says what
 *                         is at each place
 *   -DL_E_DISK_DAMAGED    both copies are damaged, or a journal block is intact but makes no sense
 *   -DL_E_DISK_FOREIGN    the disk belongs to another cluster
 *   -DL_E_INDEX_MISMATCH  the index is of another disk, or older than the disk, or the journal does
 *                         not reach it:  `dlblk-disk rebuild`
 *   -DL_E_INDEX_CORRUPT, -DL_E_MEDIA_READ, -DL_E_MEDIA_WRITE
 * A damaged journal is no error: see store_stats.damaged.
 */
int engine_open(struct engine **ret_engine, struct env *env, struct disk *disk, struct index *index,
                const struct engine_options *options, struct dl_error *err);

/*
 * Free all memory, without any I/O: after stop's on_done, from outside of it; or, in tests, at any
 * moment, as a crash would.  In the latter case nothing of disk, index or env may call back any
 * more: requests that are under way are forgotten and their on_done never runs.  The timers are
 * stopped; a deferred task may still be queued with the env, which must forget it.  NULL is
 * allowed.
 */
void engine_destroy(struct engine *engine);

struct chunk_store *engine_store(struct engine *engine);

struct engine_identity {
    uint8_t disk_uuid[SUPERBLOCK_UUID_BYTES];
    uint8_t cluster_id[SUPERBLOCK_UUID_BYTES];
    uint64_t incarnation;      /* grows with each start */
    uint64_t journal_position; /* LSN of the next journal block */
    bool was_clean;            /* the last life ended with a stop */
    bool damaged;
};
void engine_identity(const struct engine *engine, struct engine_identity *ret_identity);

/*
 * How often each thing happened in this life: for tests that want to see that it did, and for
 * status displays.  name, meaning
 */
#define ENGINE_COUNTERS(X)                                                                   \
    X(ring_wraps, "journal blocks at the start of the ring, the first lap left out")         \
    X(groups, "groups composed")                                                             \
    X(mark_blocks, "groups without a record of a request")                                   \
    X(writes_small, "writes whose data went with their group")                               \
    X(writes_large, "writes whose data went ahead of their group")                           \
    X(writes_duplicate, "writes whose version was durable or in flight already")             \
    X(zero_extents, "zero records applied")                                                  \
    X(zeroes_forgotten, "leaves whose zeroes became holes")                                  \
    X(writes_refused_full, "writes refused: no space")                                       \
    X(reserve_writes, "writes that took blocks of the reserve")                              \
    X(fences, "fences applied")                                                              \
    X(epochs, "config epochs raised by a request of their own")                              \
    X(stables, "stable versions confirmed by a request of their own")                        \
    X(applied_in_slices, "turns in which a record that changes many leaves was not done")    \
    X(chunks_created, "chunks created")                                                      \
    X(chunks_deleted, "deletions applied")                                                   \
    X(leaves_cleared, "leaves of deleted chunks given back")                                 \
    X(chunks_forgotten, "deleted chunks whose record is gone")                               \
    X(data_write_errors, "data writes that the disk failed")                                 \
    X(aborts, "records aborted")                                                             \
    X(bad_blocks, "blocks never used again")                                                 \
    X(blocks_allocated, "blocks handed to writes")                                           \
    X(blocks_reused, "of these: blocks that had been given up before in this life")          \
    X(blocks_given_up, "blocks replaced, cleared or lost against a higher version")          \
    X(blocks_freed, "blocks whose FREE record became durable")                               \
    X(blocks_quarantined, "of these: blocks that waited for a read")                         \
    X(writes_outdated, "sectors that lost against what was there")                           \
    X(leaf_loads, "leaves read from the index")                                              \
    X(leaf_loads_with_deltas, "of these: with changes waiting")                              \
    X(leaf_evictions, "leaves dropped from the cache")                                       \
    X(free_pairings, "blocks given up by replay whose FREE record was found in the journal") \
    X(writebacks, "index batches completed")                                                 \
    X(leaves_put, "leaves written whole")                                                    \
    X(leaves_merged, "leaves written as a delta")                                            \
    X(leaves_deleted, "keys of empty leaves removed from the index")                         \
    X(bitmap_pages_put, "pages of the allocation map written")                               \
    X(index_flushes, "index flushes completed")                                              \
    X(ring_full_waits, "turns in which a group waited for room in the ring")                 \
    X(throttles, "groups delayed because the ring was filling up")                           \
    X(replayed_blocks, "journal blocks replayed at open")                                    \
    X(replayed_records, "records in them")                                                   \
    X(replay_verified, "records whose data was compared at open")                            \
    X(replay_dropped_blocks, "journal blocks dropped at open")                               \
    X(replay_foreign_blocks, "blocks of an earlier incarnation behind the end")

/* ... of slots that recover, and of damage. */
#define ENGINE_RECOVERY_COUNTERS(X)                                       \
    X(attempts, "recovery attempts begun")                                \
    X(promotions, "chunks in-sync again")                                 \
    X(reports, "ends of pulling noted")                                   \
    X(merges, "parts of merges applied")                                  \
    X(repairs, "of these: repairs")                                       \
    X(pulls, "windows given to another slot")                             \
    X(leaves_damaged, "leaves that could not be understood: void")        \
    X(reclaims, "walks over all leaves for blocks that damaged ones had") \
    X(blocks_reclaimed, "blocks that were found")

struct engine_counters {
#define X(name, meaning) uint64_t name;
    ENGINE_COUNTERS(X)
    ENGINE_RECOVERY_COUNTERS(X)
#undef X
};

const struct engine_counters *engine_counters(struct engine *engine);

/*
 * Nothing under way: no request, no write-back, no deletion, no block waiting to be freed, nothing
 * that the index does not have for good.  An engine that is left alone gets there, some seconds
 * after its last request.
 */
bool engine_is_quiet(const struct engine *engine);

/*
 * Compare the allocation map with the leaves, in memory and in the index: each block in use must
 * belong to exactly one sector of one leaf, to a write in flight, to the queue of blocks given up,
 * to the quarantine, or be bad; each other block must be free.  (If leaves were lost, blocks that
 * were theirs may be in use and belong to nothing: that is left out.)  NULL: they agree, or else a
 * malloc'ed text that names the first few differences.  Blocks, and takes a byte per block.  At any
 * moment between two events of the loop.
 */
char *engine_check(struct engine *engine);

#endif
