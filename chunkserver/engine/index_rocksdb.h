/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index_rocksdb.h: index.h on RocksDB, through its C interface.
 *
 * One column family, the keys as they are.  RocksDB's own log is off: what the engine's journal
 * holds needs no second log, and a crash takes the index back to the end of some batch, as index.h
 * says.  Merges are concatenations.
 *
 * Threads: RocksDB is called from two threads of the index's own, one for gets and one for batches
 *          and flushes, so that a get doesn't wait for a flush.  (The _now forms and open, format
 *          and close call it from the caller's.)  What they have finished waits in a queue; `post`
 *          tells the loop of it, which calls index_rocksdb_poll().
 * Errors:  the first failed write, flush or compaction is final: every later batch and flush fails
 *          with the same code.
 * Memory:  RocksDB's write buffers and block cache together stay within memory_bytes.
 */
#ifndef DLBLK_ENGINE_INDEX_ROCKSDB_H
#define DLBLK_ENGINE_INDEX_ROCKSDB_H

#include <stdint.h>

#include "chunkserver/engine/index.h"
#include "dlblk/error.h"

#define INDEX_ROCKSDB_MEMORY_DEFAULT (32u << 20)
#define INDEX_ROCKSDB_MEMORY_MIN     (4u << 20)

struct index_rocksdb_options {
    const char *path;      /* the database's directory */
    uint64_t memory_bytes; /* 0: the default */
    /*
     * Called from the index's threads when the queue of finished requests is no longer empty: wake
     * up the loop and let it call index_rocksdb_poll().  Must not block, and must not call the
     * index.  NULL: the loop polls by itself.
     */
    void (*post)(void *context);
    void *post_context;
};

/* Create an empty database.  The directory must not exist, or be empty. */
int index_rocksdb_format(const char *path, struct dl_error *err);

/*
 * Open one that format made.  -DL_E_NOT_FOUND: there is none.  -DL_E_INDEX_CORRUPT,
 * -DL_E_DISK_BUSY.
 */
int index_rocksdb_open(const struct index_rocksdb_options *options, struct index **ret_index,
                       struct dl_error *err);

/* Remove a database that format made, with all that is in it. */
int index_rocksdb_remove(const char *path, struct dl_error *err);

/* Run the callbacks of what has finished.  Returns how many. */
uint32_t index_rocksdb_poll(struct index *index);

/*
 * For offline tools and tests: sleep until something has finished, then poll.  At once if nothing
 * was started.
 */
uint32_t index_rocksdb_wait(struct index *index);

/* RocksDB's text of the first error, "" if there was none; valid until close. */
const char *index_rocksdb_error_text(struct index *index);

/* What RocksDB keeps in memory at this moment: write buffers, block cache, table readers. */
uint64_t index_rocksdb_memory_bytes(struct index *index);

#endif
