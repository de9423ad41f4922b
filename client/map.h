/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map.h: which slots of which servers hold a volume's segments: the client's copy of metadata's
 * map.
 *
 * All allocated segments of an attached volume are here: one that is not reads as zeroes without a
 * question.  (Only the owner has segments allocated, and a reader's volume has no owner.)  A
 * segment's address stays while the volume is open, so that operations can point to it.  About 110
 * bytes each.
 *
 *        (none) --- first write ---> WANTED --- allocated ---> READY
 *                                                                ^
 *        attach after an unclean owner ---> UNRESOLVED --- resolved
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_MAP_H
#define DLBLK_CLIENT_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/assert.h"
#include "common/list.h"
#include "proto/control.pb-c.h"

#define MAP_PAGE_SEGMENTS 1024u

struct segment_writer; /* stable.h */

enum segment_state {
    SEGMENT_WANTED = 1, /* not allocated yet; somebody waits for it */
    SEGMENT_READY,
    SEGMENT_UNRESOLVED, /* a takeover has not got to it: nothing may be read or written */
};

/* What becomes of the slots that writes want ejected: eject.c. */
enum segment_eject {
    SEGMENT_EJECT_NONE,
    SEGMENT_EJECT_WANTED,
    SEGMENT_EJECT_ASKED,
    SEGMENT_EJECT_REFUSED, /* too few would be left: asked again after a while */
};

struct segment_slot {
    uint32_t server_id : 24; /* 0: no slot in this place */
    uint32_t state : 3;      /* Dl__SlotState */
    uint32_t number : 5;     /* the slot that requests name */
    uint32_t attempt;
};

struct segment {
    uint32_t index;
    uint32_t config_epoch;
    uint64_t sequence_last; /* of the versions given under this lease */
    struct segment_writer
        *writer;         /* NULL: nothing written that is not stable and confirmed everywhere */
    struct list waiters; /* io_op.wait_node: WANTED or UNRESOLVED */
    uint8_t state;
    uint8_t slot_count;
    bool allocating;             /* an ALLOCATE names it */
    bool changed_early;          /* its map changed between the attach and the takeover */
    bool zeroed;                 /* slots may have zero extents of ours that they could forget */
    uint8_t eject_state;         /* of this config epoch */
    uint32_t eject_mask;         /* by place */
    uint32_t eject_refused_mask; /* could not go together, until eject_retry_ns */
    uint64_t eject_retry_ns;
    struct segment_slot slots[]; /* room for map->slots_max */
};

struct segment_map {
    struct segment ***pages; /* page_count pages of MAP_PAGE_SEGMENTS; NULL: none of them */
    uint32_t page_count;
    uint32_t slots_max;
    uint32_t segment_count; /* entries that exist */
};

void client_map_init(struct segment_map *map, uint32_t slots_max);
void client_map_fini(struct segment_map *map);

/* NULL: not allocated, and nobody waits for it. */
static inline struct segment *
client_map_get(const struct segment_map *map, uint32_t index)
{
    uint32_t page = index / MAP_PAGE_SEGMENTS;

    if (page >= map->page_count || map->pages[page] == NULL)
        return NULL;
    return map->pages[page][index % MAP_PAGE_SEGMENTS];
}

static inline bool
segment_is_allocated(const struct segment *segment)
{
    return segment != NULL && segment->state != SEGMENT_WANTED;
}

static inline bool
segment_slot_is_read(const struct segment_slot *slot)
{
    return slot->state == DL__SLOT_STATE__SLOT_IN_SYNC;
}

/* Recovering slots get every write too. */
static inline bool
segment_slot_is_written(const struct segment_slot *slot)
{
    return slot->state == DL__SLOT_STATE__SLOT_IN_SYNC ||
           slot->state == DL__SLOT_STATE__SLOT_RECOVERING;
}

static inline uint32_t
segment_in_sync_count(const struct segment *segment)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < segment->slot_count; i++)
        count += segment_slot_is_read(&segment->slots[i]);
    return count;
}

/* The segment, new as WANTED if it was not there.  NULL: no memory. */
struct segment *client_map_want(struct segment_map *map, uint32_t index);

/* The first that exists at or behind `index`; NULL: none. */
struct segment *client_map_next(const struct segment_map *map, uint32_t index);

/*
 * Take what the metadata service says about a segment.  True in ret_changed if its slots are new or
 * changed. -DL_E_MESSAGE_MALFORMED: it can't be; -DL_E_NO_MEMORY.
 */
int client_map_apply(struct segment_map *map, const Dl__Segment *message,
                     struct segment **ret_segment, bool *ret_changed);

#endif
