/* SPDX-License-Identifier: Apache-2.0 */
#include "meta/segment_table.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/assert.h"
#include "meta/memory.h"

static_assert(sizeof(struct segment_slot) == 12, "4 places and the head: 56 bytes");
static_assert(sizeof(struct segment) == 8, "4 places and the head: 56 bytes");

#define SEGMENT_LEAF_STEP 16u /* leaves grow by so many */

/* Items lie one after the other, `stride` bytes each. */
struct segment_leaf {
    uint32_t count;
    uint32_t capacity;
    uint8_t bytes[] __attribute__((aligned(8)));
};

static size_t
segment_stride(const struct segment_table *table)
{
    return meta_segment_bytes(table);
}

static struct segment *
leaf_item(const struct segment_table *table, const struct segment_leaf *leaf, uint32_t idx)
{
    return (struct segment *)(uintptr_t)(leaf->bytes + idx * segment_stride(table));
}

void
meta_segments_init(struct segment_table *table, uint32_t slot_count)
{
    dl_assert(slot_count > 0);
    *table = (struct segment_table){.slot_count = slot_count, .place_count = slot_count + 1};
}

void
meta_segments_fini(struct segment_table *table)
{
    for (uint32_t i = 0; i < table->leaf_count; i++)
        free(table->leaves[i]);
    free(table->leaves);
    meta_segments_init(table, table->slot_count);
}

/* The last leaf whose first index is <= index, else the first leaf; leaves are never empty. */
static uint32_t
table_leaf_of(const struct segment_table *table, uint32_t index)
{
    uint32_t low = 0, high = table->leaf_count;

    while (low + 1 < high) {
        uint32_t middle = low + (high - low) / 2;

        if (leaf_item(table, table->leaves[middle], 0)->index <= index)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The first item whose index is not below `index`; may be leaf->count. */
static uint32_t
leaf_lower_bound(const struct segment_table *table, const struct segment_leaf *leaf, uint32_t index)
{
    uint32_t low = 0, high = leaf->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (leaf_item(table, leaf, middle)->index < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct segment *
meta_segments_at_or_after(const struct segment_table *table, uint32_t index)
{
    uint32_t leaf_idx, idx;

    if (table->leaf_count == 0)
        return NULL;
    leaf_idx = table_leaf_of(table, index);
    idx = leaf_lower_bound(table, table->leaves[leaf_idx], index);
    if (idx < table->leaves[leaf_idx]->count)
        return leaf_item(table, table->leaves[leaf_idx], idx);
    if (leaf_idx + 1 == table->leaf_count)
        return NULL;
    return leaf_item(table, table->leaves[leaf_idx + 1], 0);
}

struct segment *
meta_segments_after(const struct segment_table *table, uint32_t index)
{
    return index == UINT32_MAX ? NULL : meta_segments_at_or_after(table, index + 1);
}

struct segment *
meta_segments_find(const struct segment_table *table, uint32_t index)
{
    struct segment *segment = meta_segments_at_or_after(table, index);

    return segment != NULL && segment->index == index ? segment : NULL;
}

static struct segment_leaf *
leaf_resize(const struct segment_table *table, struct segment_leaf *leaf, uint32_t capacity)
{
    struct segment_leaf *resized = meta_realloc(leaf, 1,
                                                sizeof(*leaf) + capacity * segment_stride(table));

    if (leaf == NULL)
        resized->count = 0;
    resized->capacity = capacity;
    return resized;
}

static void
table_insert_leaf(struct segment_table *table, uint32_t leaf_idx, struct segment_leaf *leaf)
{
    if (table->leaf_count == table->leaf_capacity) {
        table->leaf_capacity = table->leaf_capacity == 0 ? 4 : table->leaf_capacity * 2;
        table->leaves = meta_realloc(table->leaves, table->leaf_capacity,
                                     sizeof(struct segment_leaf *));
    }
    memmove(table->leaves + leaf_idx + 1, table->leaves + leaf_idx,
            (table->leaf_count - leaf_idx) * sizeof(struct segment_leaf *));
    table->leaves[leaf_idx] = leaf;
    table->leaf_count++;
}

/*
 * Room for one more in front of item *idx of leaf *leaf_idx, which is full: behind the last item of
 * the table a new leaf begins, elsewhere the leaf's upper half moves to a new one.
 */
static void
table_split(struct segment_table *table, uint32_t *leaf_idx, uint32_t *idx)
{
    struct segment_leaf *leaf = table->leaves[*leaf_idx];
    bool at_end = *leaf_idx + 1 == table->leaf_count && *idx == leaf->count;
    uint32_t keep = at_end ? leaf->count : leaf->count / 2;
    struct segment_leaf *upper = leaf_resize(table, NULL, leaf->count - keep + SEGMENT_LEAF_STEP);

    upper->count = leaf->count - keep;
    memcpy(upper->bytes, leaf_item(table, leaf, keep), upper->count * segment_stride(table));
    leaf->count = keep;
    if (!at_end)
        table->leaves[*leaf_idx] = leaf_resize(table, leaf, keep + SEGMENT_LEAF_STEP);
    table_insert_leaf(table, *leaf_idx + 1, upper);
    if (*idx > keep || at_end) {
        *leaf_idx += 1;
        *idx -= keep;
    }
}

struct segment *
meta_segments_insert(struct segment_table *table, uint32_t index)
{
    size_t stride = segment_stride(table);
    uint32_t leaf_idx = 0, idx = 0;
    struct segment_leaf *leaf;
    struct segment *segment;

    if (table->leaf_count == 0)
        table_insert_leaf(table, 0, leaf_resize(table, NULL, SEGMENT_LEAF_STEP));
    else {
        leaf_idx = table_leaf_of(table, index);
        idx = leaf_lower_bound(table, table->leaves[leaf_idx], index);
    }
    leaf = table->leaves[leaf_idx];
    dl_assert(idx == leaf->count || leaf_item(table, leaf, idx)->index != index);
    if (leaf->count == SEGMENT_LEAF_MAX)
        table_split(table, &leaf_idx, &idx);
    leaf = table->leaves[leaf_idx];
    if (leaf->count == leaf->capacity) {
        leaf = leaf_resize(table, leaf, leaf->capacity + SEGMENT_LEAF_STEP);
        table->leaves[leaf_idx] = leaf;
    }
    segment = leaf_item(table, leaf, idx);
    memmove((uint8_t *)segment + stride, segment, (leaf->count - idx) * stride);
    memset(segment, 0, stride);
    segment->index = index;
    leaf->count++;
    table->count++;
    return segment;
}

void
meta_segments_remove(struct segment_table *table, uint32_t index)
{
    uint32_t leaf_idx = table_leaf_of(table, index);
    struct segment_leaf *leaf = table->leaves[leaf_idx];
    uint32_t idx = leaf_lower_bound(table, leaf, index);
    struct segment *segment = leaf_item(table, leaf, idx);

    dl_assert(idx < leaf->count && segment->index == index);
    leaf->count--;
    table->count--;
    memmove(segment, (uint8_t *)segment + segment_stride(table),
            (leaf->count - idx) * segment_stride(table));
    if (leaf->count > 0)
        return;
    free(leaf);
    table->leaf_count--;
    memmove(table->leaves + leaf_idx, table->leaves + leaf_idx + 1,
            (table->leaf_count - leaf_idx) * sizeof(struct segment_leaf *));
}

uint64_t
meta_segments_memory_bytes(const struct segment_table *table)
{
    uint64_t bytes = table->leaf_capacity * sizeof(struct segment_leaf *);

    for (uint32_t i = 0; i < table->leaf_count; i++)
        bytes += sizeof(struct segment_leaf) + table->leaves[i]->capacity * segment_stride(table);
    return bytes;
}
