/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment_table.h: the allocated segments of one volume in memory, by index.
 *
 * Leaves of up to SEGMENT_LEAF_MAX segments, sorted, in a sorted array of leaves.  A segment with
 * three slots takes 56 bytes: it has one place more than slots, for the incoming one, which
 * replaces another when it is in-sync.  Leaves have little room to spare, however they grow: 56 to
 * 64 bytes per segment.
 *
 *     struct segment_table table;
 *     meta_segments_init(&table, 3);
 *     segment = meta_segments_insert(&table, index);
 *     for (segment = meta_segments_at_or_after(&table, 0); segment != NULL;
 *          segment = meta_segments_after(&table, segment->index))
 *         ...
 *
 * Threads: one owner.  Errors: none.  Memory: pointers to segments are valid until the next insert
 *          or remove.
 */
#ifndef DLBLK_META_SEGMENT_TABLE_H
#define DLBLK_META_SEGMENT_TABLE_H

#include <stdint.h>

#define SEGMENT_LEAF_MAX 256u

struct segment_slot {
    uint32_t server_id : 24;
    uint32_t state : 4;   /* Dl__SlotState; of an empty place: 0, and no server */
    uint32_t number : 4;  /* which replica; the place's index, but for the incoming slot */
    uint32_t incarnation; /* config epoch that created the chunk */
    uint32_t attempt;     /* recovering: the attempt's config epoch */
};

struct segment {
    uint32_t index;
    uint32_t config_epoch;
    struct segment_slot slots[]; /* place_count */
};

struct segment_leaf;

struct segment_table {
    struct segment_leaf **leaves;
    uint32_t leaf_count;
    uint32_t leaf_capacity;
    uint32_t slot_count;  /* of each segment */
    uint32_t place_count; /* slot_count + 1: the last is for the incoming slot */
    uint32_t count;
};

void meta_segments_init(struct segment_table *table, uint32_t slot_count);
void meta_segments_fini(struct segment_table *table);

/* NULL: not there. */
struct segment *meta_segments_find(const struct segment_table *table, uint32_t index);
/* The one with the lowest index >= `index`; NULL: none. */
struct segment *meta_segments_at_or_after(const struct segment_table *table, uint32_t index);
/* As above with > `index`. */
struct segment *meta_segments_after(const struct segment_table *table, uint32_t index);
/* A zeroed segment; it must not be there yet. */
struct segment *meta_segments_insert(struct segment_table *table, uint32_t index);
/* It must be there. */
void meta_segments_remove(struct segment_table *table, uint32_t index);

uint64_t meta_segments_memory_bytes(const struct segment_table *table);

/* One segment with all its places. */
static inline uint32_t
meta_segment_bytes(const struct segment_table *table)
{
    return (uint32_t)(sizeof(struct segment) + table->place_count * sizeof(struct segment_slot));
}

#endif
