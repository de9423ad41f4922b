/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store_rocksdb.h: the store in a directory of this machine, by RocksDB.
 *
 * Every commit is in RocksDB's log and synced before its on_done runs; commits that wait together
 * share one sync.  A value is stored as the key's revision (8 bytes, little-endian) and the value;
 * the store's revision is kept under a key of its own that begins with a zero byte.
 *
 * Threads: requests are started and completed on the owner's thread; a thread of the store's own
 *          calls RocksDB.  Completions are handed over with `post`, which is called from that
 *          thread: it makes message->fn run on the owner's.
 * Blocks:  open and close; nothing else.
 * Errors:  -DL_E_NOT_FOUND (no store there), -DL_E_DISK_BUSY (another process has it),
 *          -DL_E_STORE_DAMAGED, -DL_E_MEDIA_READ.
 */
#ifndef DLBLK_META_STORE_ROCKSDB_H
#define DLBLK_META_STORE_ROCKSDB_H

#include <stdbool.h>

#include "common/loop.h"
#include "dlblk/error.h"
#include "meta/store.h"

enum store_rocksdb_mode {
    STORE_ROCKSDB_OPEN,      /* it must be there */
    STORE_ROCKSDB_CREATE,    /* it must not be there; the directory is made, but not its parents */
    STORE_ROCKSDB_READ_ONLY, /* as it is now, also while another process serves it; commits fail */
};

struct store_rocksdb_options {
    enum store_rocksdb_mode mode;
    void (*post)(void *context, struct loop_message *message);
    void *post_context;
};

int store_rocksdb_open(struct store **ret_store, const char *path,
                       const struct store_rocksdb_options *options, struct dl_error *err);
/*
 * Finishes what was started, without on_done: before the memory of requests in flight is freed.
 * NULL is allowed.
 */
void store_rocksdb_close(struct store *store);
/* What RocksDB said at the last failure; empty: there was none. */
const char *store_rocksdb_failure_text(struct store *store);

/* Delete what is left of a store that was not finished.  Nothing there: success. */
int store_rocksdb_remove(const char *path, struct dl_error *err);

/* True: there is a store in this directory, whatever its state. */
bool store_rocksdb_exists(const char *path);

#endif
