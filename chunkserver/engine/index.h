/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index.h: the ordered key-value index behind the engine: get, scan, batch, flush.
 *
 * Implementations: index_rocksdb.c (calls run on a worker thread, completion on the loop) and
 * tests/unit/lib/fake_index.c (in memory, loses on a crash any suffix of the batches since the last
 * completed flush).
 *
 * Semantics all implementations keep:
 * - A batch is atomic.  Batches are applied in the order of index_batch_start().
 * - A batch is durable when a flush that was started after its completion has completed; before
 *   that a crash keeps some prefix of the batches, never a later one without an earlier one.
 * - merge(key, operand) appends operand to the value: the value is the concatenation of the last
 *   put (if any) and all merges since, in order.  delete removes both.
 *
 * Threads: started from the loop, completed on the loop, never inside the start call.  The _now
 * forms block: for open and offline tools only.
 * Errors:  0 or a negative DL_E_*: -DL_E_INDEX_CORRUPT, -DL_E_MEDIA_WRITE, -DL_E_NOT_FOUND.
 */
#ifndef DLBLK_ENGINE_INDEX_H
#define DLBLK_ENGINE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INDEX_KEY_BYTES_MAX 32u

struct index;

struct index_get {
    uint8_t key[INDEX_KEY_BYTES_MAX];
    uint32_t key_bytes;
    void *value; /* result: malloc'ed, the caller frees it; NULL with -DL_E_NOT_FOUND */
    uint32_t value_bytes;
    void (*on_done)(struct index_get *get, int err);
    struct index_get *next; /* a chain is started with one call; sorted by key it is cheapest */
    void *index_private[2];
};

struct index_batch; /* opaque: operations are added, then it is started once */

typedef void (*index_done_fn)(void *context, int err);
/* Returns 0 to go on, anything else ends the scan and is its result. */
typedef int (*index_scan_fn)(void *context, const uint8_t *key, uint32_t key_bytes,
                             const uint8_t *value, uint32_t value_bytes);

struct index_ops {
    void (*get_start)(struct index *index, struct index_get *chain);
    struct index_batch *(*batch_create)(struct index *index);
    void (*batch_put)(struct index_batch *batch, const void *key, uint32_t key_bytes,
                      const void *value, uint32_t value_bytes);
    void (*batch_merge)(struct index_batch *batch, const void *key, uint32_t key_bytes,
                        const void *value, uint32_t value_bytes);
    void (*batch_delete)(struct index_batch *batch, const void *key, uint32_t key_bytes);
    /* Takes the batch, also on failure. */
    void (*batch_start)(struct index *index, struct index_batch *batch, index_done_fn on_done,
                        void *context);
    void (*flush_start)(struct index *index, index_done_fn on_done, void *context);
    /* Keys with this prefix, in order.  Blocks. */
    int (*scan_now)(struct index *index, const void *prefix, uint32_t prefix_bytes,
                    index_scan_fn fn, void *context);
    /*
     * Keys only, with this prefix, from `from` on, at most `max`, on the worker: for the deletion
     * of chunks.
     */
    uint64_t (*device_bytes_written)(struct index *index); /* log-free: tables and compaction */
    void (*close)(struct index *index); /* waits for what was started; does not flush */
};

struct index {
    const struct index_ops *ops;
};

#endif
