/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/engine/freelist.h"

#include <stdlib.h>
#include <string.h>

#define SLAB_HEADER_BYTES 64u

static_assert(sizeof(struct freelist_slab) <= SLAB_HEADER_BYTES, "slab header");

void
freelist_init(struct freelist *list, size_t item_bytes, uint32_t items_per_slab)
{
    dl_assert(item_bytes >= sizeof(struct freelist_item));
    dl_assert(items_per_slab > 0);
    memset(list, 0, sizeof(*list));
    list->item_bytes = (item_bytes + 15) & ~(size_t)15;
    list->items_per_slab = items_per_slab;
}

void
freelist_fini(struct freelist *list)
{
    while (list->slabs != NULL) {
        struct freelist_slab *slab = list->slabs;

        list->slabs = slab->next;
#ifdef __SANITIZE_ADDRESS__
        pool_unpoison(slab, SLAB_HEADER_BYTES + list->item_bytes * list->items_per_slab);
#endif
        free(slab);
    }
    list->free = NULL;
    list->taken_count = 0;
    list->memory_bytes = 0;
}

void
freelist_grow(struct freelist *list)
{
    size_t bytes = SLAB_HEADER_BYTES + list->item_bytes * list->items_per_slab;
    struct freelist_slab *slab = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    uint8_t *items = (uint8_t *)slab + SLAB_HEADER_BYTES;

    dl_assert(slab != NULL);
    slab->next = list->slabs;
    list->slabs = slab;
    list->memory_bytes += bytes;
    /* The first item is on top in the end. */
    for (uint32_t i = list->items_per_slab; i > 0; i--) {
        struct freelist_item *item = (struct freelist_item *)(items + (i - 1) * list->item_bytes);

        item->next = list->free;
        list->free = item;
#ifdef __SANITIZE_ADDRESS__
        pool_poison(item, list->item_bytes);
#endif
    }
}
