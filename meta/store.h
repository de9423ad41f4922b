/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.h: where the metadata service keeps its state: get, ordered scan, atomic commit of a batch
 * with a guard.
 *
 * Implementations: store_rocksdb.c (a directory on this machine), store_memory.c (tests and the
 *                  simulator).  The form is
 * etcd's, so that an etcd cluster can be the third.
 *
 * Semantics that all implementations keep:
 * - Keys are bytes in memcmp order, 1 to STORE_KEY_BYTES_MAX, and don't begin with a zero byte.
 * - The store has a revision, raised by each commit.  A key's revision is that of the commit that
 *   put it last; a key that isn't there has revision 0.
 * - A commit is atomic.  Commits take effect in the order of store_commit_start().  With a guard it
 *   takes effect only if the guard's key has that revision at this moment, else
 *   -DL_E_STORE_CONFLICT.
 * - on_done with 0 means durable: it survives the death of the process and of the machine.  A
 *   commit whose on_done did not run may be there or not after a crash, but never without those
 *   started before it.  After any other error than -DL_E_STORE_CONFLICT it may be there or not as
 *   well: the owner must stop and load again.
 * - A get or scan sees every commit whose on_done has run.
 *
 * Threads: one owner, the loop.  Blocks: never.
 * Errors:  in on_done, never in the start call.
 * Memory:  requests, batches and keys are the caller's and stay put until on_done has run; on_done
 *          may free them.  Results are the store's and valid during on_done.
 */
#ifndef DLBLK_META_STORE_H
#define DLBLK_META_STORE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_KEY_BYTES_MAX   64u
#define STORE_VALUE_BYTES_MAX (1u << 20)

struct store;

struct store_bytes {
    const void *bytes;
    uint32_t length_bytes;
};

struct store_item {
    struct store_bytes key;
    struct store_bytes value;
    uint64_t revision;
};

/* err: 0, -DL_E_NOT_FOUND, -DL_E_MEDIA_READ, -DL_E_STORE_DAMAGED. */
struct store_get {
    struct store_bytes key;
    void (*on_done)(struct store_get *get, int err);
    struct store_item item; /* result */
};

/*
 * Keys with start <= key < end, in order, at most items_max of them.  err as above, but an empty
 * result is success.
 */
struct store_scan {
    struct store_bytes start;
    struct store_bytes end;
    uint32_t items_max;
    void (*on_done)(struct store_scan *scan, int err);
    struct store_item *items; /* result */
    uint32_t item_count;
    bool more; /* there are more: scan again with start = the last key and a zero byte */
};

/* One edit of a batch.  bytes NULL in value: the key is deleted. */
struct store_edit {
    struct store_bytes key;
    struct store_bytes value;
};

/* A zeroed batch is empty. */
struct store_batch {
    struct store_edit *edits;
    uint32_t count;
    uint32_t capacity;
};

struct store_guard {
    struct store_bytes key; /* bytes NULL: no guard */
    uint64_t revision;
};

/* err: 0, -DL_E_STORE_CONFLICT, -DL_E_MEDIA_WRITE, -DL_E_NO_SPACE. */
struct store_commit {
    const struct store_batch *batch;
    struct store_guard guard;
    void (*on_done)(struct store_commit *commit, int err);
    uint64_t revision; /* result: of this commit */
};

struct store_ops {
    void (*get_start)(struct store *store, struct store_get *get);
    void (*scan_start)(struct store *store, struct store_scan *scan);
    void (*commit_start)(struct store *store, struct store_commit *commit);
};

struct store {
    const struct store_ops *ops;
};

static inline void
store_get_start(struct store *store, struct store_get *get)
{
    store->ops->get_start(store, get);
}

static inline void
store_scan_start(struct store *store, struct store_scan *scan)
{
    store->ops->scan_start(store, scan);
}

static inline void
store_commit_start(struct store *store, struct store_commit *commit)
{
    store->ops->commit_start(store, commit);
}

/* --- batches; everything is copied --- */

void store_batch_put(struct store_batch *batch, struct store_bytes key, struct store_bytes value);
void store_batch_put_message(struct store_batch *batch, struct store_bytes key,
                             const ProtobufCMessage *message);
void store_batch_delete(struct store_batch *batch, struct store_bytes key);
void store_batch_fini(struct store_batch *batch);

/* As memcmp, a prefix before what it begins. */
int store_bytes_compare(struct store_bytes a, struct store_bytes b);

#endif
