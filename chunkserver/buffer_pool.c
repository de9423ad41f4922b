/* SPDX-License-Identifier: Apache-2.0 */
/*
 * buffer_pool.c: see buffer_pool.h.
 *
 * The arena is cut into units of 4 KiB.  A block of order k is 2^k units, at a multiple of 2^k.
 * What is known of a block stands in units[] at its first unit:
 *   order, free   valid for the first unit of a block only
 *   next, prev    a free block's place in the list of its order (unit numbers, UNIT_NONE ends)
 * Invariants: two free buddies of one order never exist, except single units in `spare`, which
 *             count as in use here.
 */
#include "chunkserver/buffer_pool.h"

#include <stdlib.h>

#include "common/assert.h"

#define UNIT_BYTES  4096u
#define ORDER_MAX   8u /* 1 MiB */
#define UNIT_NONE   UINT32_MAX
#define SPARE_UNITS 64u

static_assert(UNIT_BYTES << ORDER_MAX == BUFFER_BYTES_MAX, "orders");

struct unit {
    uint32_t next, prev;
    uint8_t order;
    bool free;
};

struct buffer_pool {
    uint8_t *arena;
    struct unit *units;
    uint32_t unit_count;
    uint32_t used_units;
    uint32_t free_heads[ORDER_MAX + 1];
    uint32_t spare_count;
    uint32_t spare[SPARE_UNITS];
};

static void
block_push(struct buffer_pool *pool, uint32_t idx, uint32_t order)
{
    struct unit *unit = &pool->units[idx];

    unit->order = (uint8_t)order;
    unit->free = true;
    unit->prev = UNIT_NONE;
    unit->next = pool->free_heads[order];
    if (unit->next != UNIT_NONE)
        pool->units[unit->next].prev = idx;
    pool->free_heads[order] = idx;
}

static void
block_unlink(struct buffer_pool *pool, uint32_t idx)
{
    struct unit *unit = &pool->units[idx];

    dl_assert(unit->free);
    if (unit->prev != UNIT_NONE)
        pool->units[unit->prev].next = unit->next;
    else
        pool->free_heads[unit->order] = unit->next;
    if (unit->next != UNIT_NONE)
        pool->units[unit->next].prev = unit->prev;
    unit->free = false;
}

/* The smallest block that fits, split down to `order`.  UNIT_NONE: there is none. */
static uint32_t
block_take(struct buffer_pool *pool, uint32_t order)
{
    uint32_t from = order;
    uint32_t idx;

    while (from <= ORDER_MAX && pool->free_heads[from] == UNIT_NONE)
        from++;
    if (from > ORDER_MAX)
        return UNIT_NONE;
    idx = pool->free_heads[from];
    block_unlink(pool, idx);
    while (from > order) {
        from--;
        block_push(pool, idx + (1u << from), from);
    }
    pool->units[idx].order = (uint8_t)order;
    return idx;
}

static void
block_give(struct buffer_pool *pool, uint32_t idx, uint32_t order)
{
    while (order < ORDER_MAX) {
        uint32_t buddy = idx ^ (1u << order);

        if (!pool->units[buddy].free || pool->units[buddy].order != order)
            break;
        block_unlink(pool, buddy);
        idx &= ~(1u << order);
        order++;
    }
    block_push(pool, idx, order);
}

static void
spare_give_all(struct buffer_pool *pool)
{
    while (pool->spare_count > 0)
        block_give(pool, pool->spare[--pool->spare_count], 0);
}

static uint32_t
order_of_length(uint32_t length_bytes)
{
    uint32_t order = 0;

    dl_assert(length_bytes > 0);
    dl_assert(length_bytes <= BUFFER_BYTES_MAX);
    while (UNIT_BYTES << order < length_bytes)
        order++;
    return order;
}

struct buffer_pool *
buffer_pool_create(size_t arena_bytes)
{
    struct buffer_pool *pool = calloc(1, sizeof(*pool));
    size_t block_count = (arena_bytes + BUFFER_BYTES_MAX - 1) / BUFFER_BYTES_MAX;

    if (pool == NULL)
        return NULL;
    dl_assert(block_count > 0);
    dl_assert(block_count < UNIT_NONE >> ORDER_MAX);
    pool->unit_count = (uint32_t)block_count << ORDER_MAX;
    pool->units = calloc(pool->unit_count, sizeof(*pool->units));
    pool->arena = aligned_alloc(UNIT_BYTES, (size_t)pool->unit_count * UNIT_BYTES);
    if (pool->units == NULL || pool->arena == NULL) {
        buffer_pool_destroy(pool);
        return NULL;
    }
    for (uint32_t order = 0; order <= ORDER_MAX; order++)
        pool->free_heads[order] = UNIT_NONE;
    for (uint32_t idx = pool->unit_count; idx > 0; idx -= 1u << ORDER_MAX)
        block_push(pool, idx - (1u << ORDER_MAX), ORDER_MAX);
    return pool;
}

void
buffer_pool_destroy(struct buffer_pool *pool)
{
    if (pool == NULL)
        return;
    free(pool->arena);
    free(pool->units);
    free(pool);
}

void *
buffer_pool_acquire(struct buffer_pool *pool, uint32_t length_bytes)
{
    uint32_t order = order_of_length(length_bytes);
    uint32_t idx;

    if (order == 0 && pool->spare_count > 0)
        idx = pool->spare[--pool->spare_count];
    else
        idx = block_take(pool, order);
    if (idx == UNIT_NONE) {
        spare_give_all(pool);
        idx = block_take(pool, order);
    }
    if (idx == UNIT_NONE)
        return NULL;
    pool->used_units += 1u << order;
    return pool->arena + (size_t)idx * UNIT_BYTES;
}

void
buffer_pool_release(struct buffer_pool *pool, void *buffer, uint32_t length_bytes)
{
    uint32_t order = order_of_length(length_bytes);
    size_t offset_bytes = (size_t)((uint8_t *)buffer - pool->arena);
    uint32_t idx = (uint32_t)(offset_bytes / UNIT_BYTES);

    dl_assert(offset_bytes % UNIT_BYTES == 0);
    dl_assert(idx < pool->unit_count);
    dl_assert(!pool->units[idx].free && pool->units[idx].order == order);
    dl_assert(pool->used_units >= 1u << order);
    pool->used_units -= 1u << order;
    if (order == 0 && pool->spare_count < SPARE_UNITS)
        pool->spare[pool->spare_count++] = idx;
    else
        block_give(pool, idx, order);
}

bool
buffer_pool_has_room(struct buffer_pool *pool)
{
    if (pool->free_heads[ORDER_MAX] != UNIT_NONE)
        return true;
    spare_give_all(pool);
    return pool->free_heads[ORDER_MAX] != UNIT_NONE;
}

size_t
buffer_pool_used_bytes(const struct buffer_pool *pool)
{
    return (size_t)pool->used_units * UNIT_BYTES;
}
