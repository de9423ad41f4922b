/* SPDX-License-Identifier: Apache-2.0 */
#include "common/pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/align.h"
#include "dlblk/error.h"

#if POOL_POISONS
#include <sanitizer/asan_interface.h>
#endif

#define CACHE_LINE_BYTES 64

void
pool_poison(void *item, size_t item_bytes)
{
#if POOL_POISONS
    ASAN_POISON_MEMORY_REGION(item, item_bytes);
#else
    (void)item;
    (void)item_bytes;
#endif
}

void
pool_unpoison(void *item, size_t item_bytes)
{
#if POOL_POISONS
    ASAN_UNPOISON_MEMORY_REGION(item, item_bytes);
#else
    (void)item;
    (void)item_bytes;
#endif
}

int
pool_init(struct pool *pool, size_t item_bytes, uint32_t item_count)
{
    void *mapping;

    dl_assert(item_bytes > 0);
    dl_assert(item_count > 0);
    memset(pool, 0, sizeof(*pool));
    pool->item_bytes = align_up(item_bytes, CACHE_LINE_BYTES);
    pool->item_count = item_count;
    if (__builtin_mul_overflow(pool->item_bytes, (size_t)item_count, &pool->mapping_bytes))
        return -DL_E_NO_MEMORY;

    mapping = mmap(NULL, pool->mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (mapping == MAP_FAILED)
        return -DL_E_NO_MEMORY;
    pool->base = mapping;
    pool->free_idx = calloc(item_count, sizeof(pool->free_idx[0]));
    pool->taken = calloc(item_count, sizeof(pool->taken[0]));
    if (pool->free_idx == NULL || pool->taken == NULL) {
        pool_fini(pool);
        return -DL_E_NO_MEMORY;
    }
    /* The first item is on top of the stack, so that memory is touched from the beginning. */
    for (uint32_t i = 0; i < item_count; i++)
        pool->free_idx[i] = item_count - 1 - i;
    pool->free_count = item_count;
    pool_poison(pool->base, pool->mapping_bytes);
    return 0;
}

void
pool_fini(struct pool *pool)
{
    if (pool->base == NULL)
        return;
    /* A pool whose init failed half way has no free items, and none taken either. */
    dl_assert(pool->free_count == pool->item_count || pool->free_idx == NULL ||
              pool->taken == NULL);
    pool_unpoison(pool->base, pool->mapping_bytes);
    (void)munmap(pool->base, pool->mapping_bytes);
    free(pool->free_idx);
    free(pool->taken);
    memset(pool, 0, sizeof(*pool));
}
