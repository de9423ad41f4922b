/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.h: a fixed number of equal items, taken and given back without allocation.
 *
 * For operations and buffers of the data path.  Items begin at multiples of 64 bytes, or of 4096 if
 * item_bytes is a multiple of that.  The item given back last is taken first, since it is in the
 * cache; memory that was never taken is never touched.  An empty pool is the back-pressure: the
 * caller waits, or refuses.
 *
 * Threads: one owner.  Blocks: never.
 * Errors:  pool_acquire() returns NULL when all are taken; giving back what is not taken asserts.
 * Memory:  one mapping made by pool_init(); with the address sanitizer items that are not taken are
 *          poisoned.
 */
#ifndef DLBLK_COMMON_POOL_H
#define DLBLK_COMMON_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "common/assert.h"

#if defined(__SANITIZE_ADDRESS__)
#define POOL_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POOL_POISONS 1
#endif
#endif
#ifndef POOL_POISONS
#define POOL_POISONS 0
#endif

struct pool {
    uint8_t *base; /* of one mapping: can be registered with the kernel as a whole */
    size_t mapping_bytes;
    size_t item_bytes; /* as rounded up */
    uint32_t item_count;
    uint32_t free_count;
    uint32_t *free_idx; /* a stack: free_count items that are not taken */
    uint8_t *taken;     /* per item, to see one given back twice */
};

/* 0 or -DL_E_NO_MEMORY. */
int pool_init(struct pool *pool, size_t item_bytes, uint32_t item_count);

/* All items must have been given back.  A zeroed pool is allowed. */
void pool_fini(struct pool *pool);

/* Tell the address sanitizer; nothing without it. */
void pool_poison(void *item, size_t item_bytes);
void pool_unpoison(void *item, size_t item_bytes);

/* NULL: all are taken.  What the item holds is not defined. */
static inline void *
pool_acquire(struct pool *pool)
{
    uint32_t idx;
    void *item;

    if (pool->free_count == 0)
        return NULL;
    idx = pool->free_idx[--pool->free_count];
    dl_assert(!pool->taken[idx]);
    pool->taken[idx] = 1;
    item = pool->base + (size_t)idx * pool->item_bytes;
    if (POOL_POISONS)
        pool_unpoison(item, pool->item_bytes);
    return item;
}

static inline void
pool_release(struct pool *pool, void *item)
{
    size_t offset_bytes = (size_t)((uint8_t *)item - pool->base);
    size_t idx = offset_bytes / pool->item_bytes;

    dl_assert(idx < pool->item_count);
    dl_assert(offset_bytes % pool->item_bytes == 0);
    dl_assert(pool->taken[idx]);
    pool->taken[idx] = 0;
    pool->free_idx[pool->free_count++] = (uint32_t)idx;
    if (POOL_POISONS)
        pool_poison(item, pool->item_bytes);
}

static inline uint32_t
pool_taken_count(const struct pool *pool)
{
    return pool->item_count - pool->free_count;
}

#endif
