/* SPDX-License-Identifier: Apache-2.0 */
/*
 * freelist.h: items of one size, taken and given back without malloc, as many as needed; all freed
 * at once.
 *
 * For what the engine's limits bound but do not fix: operations, leaves, deltas.  (A fixed number
 * of items:  common/pool.h.)  Items given back last are taken first.  With the address sanitizer
 * free items are poisoned.
 *
 * Threads: one owner.  Blocks: never.
 * Errors:  none; without memory the process ends.
 * Memory:  freelist_fini() frees every item, also those not given back.
 */
#ifndef DLBLK_ENGINE_FREELIST_H
#define DLBLK_ENGINE_FREELIST_H

#include <stddef.h>
#include <stdint.h>

#include "common/pool.h"

struct freelist_item {
    struct freelist_item *next;
};

struct freelist_slab {
    struct freelist_slab *next;
};

struct freelist {
    size_t item_bytes;
    uint32_t items_per_slab;
    struct freelist_item *free;
    struct freelist_slab *slabs;
    uint64_t taken_count;
    uint64_t memory_bytes;
};

/* item_bytes is rounded up to a multiple of 16. */
void freelist_init(struct freelist *list, size_t item_bytes, uint32_t items_per_slab);
void freelist_fini(struct freelist *list);

/* More items; `free` is not empty afterwards. */
void freelist_grow(struct freelist *list);

/* What the item holds is not defined. */
static inline void *
freelist_take(struct freelist *list)
{
    struct freelist_item *item;

    if (list->free == NULL)
        freelist_grow(list);
    item = list->free;
#ifdef __SANITIZE_ADDRESS__
    pool_unpoison(item, list->item_bytes);
#endif
    list->free = item->next;
    list->taken_count++;
    return item;
}

static inline void
freelist_give(struct freelist *list, void *memory)
{
    struct freelist_item *item = memory;

    dl_assert(list->taken_count > 0);
    list->taken_count--;
    item->next = list->free;
    list->free = item;
#ifdef __SANITIZE_ADDRESS__
    pool_poison(item, list->item_bytes);
#endif
}

#endif
