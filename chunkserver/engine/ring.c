/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.c: how full the ring is, and whether requests may still have room in it.
 *
 * Invariant: requests leave room for all that must be journaled so that the tail can move: the FREE
 * records of what may be given up (debt), and some blocks for marks.  So write-back always gets on,
 * and with it everything else.
 */
#include <stdlib.h>

#include "chunkserver/engine/engine_private.h"

#define MEMORY_BYTES_MIN (UINT64_C(4) << 20)

static uint64_t
debt_units(uint64_t blocks)
{
    uint64_t per_unit = (UNIT_BYTES - sizeof(struct journal_header_disk) -
                         sizeof(struct record_extents_disk)) /
                        sizeof(struct extent_disk);

    return (blocks + per_unit - 1) / per_unit;
}

static uint64_t
ring_used_with(const struct engine *engine, uint64_t more_debt)
{
    return engine->next_lsn - engine->tail +
           debt_units(engine->debt_sectors + more_debt + engine->alloc.queued_blocks);
}

uint64_t
ring_used_units(const struct engine *engine)
{
    return ring_used_with(engine, 0);
}

/*
 * Leaves that cannot be evicted, beyond the cache's budget: from a quarter at the budget to full at
 * 1.75 times it.
 */
static uint64_t
memory_permille(const struct engine *engine)
{
    uint64_t budget = engine->cache_budget > MEMORY_BYTES_MIN ? engine->cache_budget
                                                              : MEMORY_BYTES_MIN;
    uint64_t used = leaf_cache_bytes(engine);

    return used > budget ? 250 + (used - budget) * 1000 / budget : 0;
}

uint32_t
engine_fill_permille(const struct engine *engine)
{
    uint64_t fill = ring_used_units(engine) * 1000 / engine->ring_units;
    uint64_t records = engine->ring_records * 1000 / engine->records_max;
    uint64_t memory = memory_permille(engine);

    fill = fill > records ? fill : records;
    fill = fill > memory ? fill : memory;
    return fill > 1000 ? 1000 : (uint32_t)fill;
}

bool
ring_admits(const struct engine *engine, uint64_t debt)
{
    uint64_t kept = engine->ring_reserve_units + engine->group_units_max;

    if (engine->ring_records >= engine->records_max)
        return false;
    if (ring_used_with(engine, debt) + kept <= engine->ring_units)
        return true;
    /* One that can never fit with the debt it makes goes alone, when nothing else is left. */
    return engine->tail == engine->next_lsn && engine->debt_sectors == 0;
}

void
ring_add_stretch(struct engine *engine, uint64_t end_lsn, uint32_t record_count)
{
    struct ring_stretch *stretches = engine->stretches;
    uint32_t capacity = engine->stretch_capacity;

    if (engine->stretch_count == capacity) {
        uint32_t grown = capacity == 0 ? 256 : capacity * 2;

        stretches = malloc(grown * sizeof(*stretches));
        dl_assert(stretches != NULL);
        for (uint32_t i = 0; i < capacity; i++)
            stretches[i] = engine->stretches[(engine->stretch_head + i) & (capacity - 1)];
        free(engine->stretches);
        engine->stretches = stretches;
        engine->stretch_head = 0;
        engine->stretch_capacity = grown;
    }
    stretches[(engine->stretch_head + engine->stretch_count) & (engine->stretch_capacity - 1)] =
        (struct ring_stretch){.end_lsn = end_lsn, .record_count = record_count};
    engine->stretch_count++;
    engine->ring_records += record_count;
}

void
ring_set_tail(struct engine *engine, uint64_t lsn)
{
    dl_assert(lsn >= engine->tail);
    dl_assert(lsn <= engine->acked_lsn);
    engine->tail = lsn;
    while (engine->stretch_count > 0) {
        struct ring_stretch *first = &engine->stretches[engine->stretch_head];

        if (first->end_lsn > lsn)
            return;
        dl_assert(engine->ring_records >= first->record_count);
        engine->ring_records -= first->record_count;
        engine->stretch_head = (engine->stretch_head + 1) & (engine->stretch_capacity - 1);
        engine->stretch_count--;
    }
}

uint64_t
ring_records_below(const struct engine *engine, uint64_t lsn)
{
    uint64_t records = 0;

    for (uint32_t i = 0; i < engine->stretch_count; i++) {
        uint32_t idx = (engine->stretch_head + i) & (engine->stretch_capacity - 1);

        if (engine->stretches[idx].end_lsn > lsn)
            break;
        records += engine->stretches[idx].record_count;
    }
    return records;
}
