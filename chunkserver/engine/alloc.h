/* SPDX-License-Identifier: Apache-2.0 */
/*
 * alloc.h: which blocks of the data region are in use, which one is handed out next, and when one
 * may be used again.
 *
 *          alloc_take        alloc_commit     alloc_give_up  FREE composed  alloc_free_durable
 *     free ----------> handed out ----------> in use ---------> queued --------> named -----.
 *      ^                   |   (record is acknowledged)                                     v
 *      |<------------------'   alloc_return (never journaled, or aborted)          quarantine
 *      `------------------------------------------------------------------------------------'
 *                              alloc_release (reads begun before have ended)
 *
 * Invariants:
 * 1. The map is what replay of the journal would rebuild at this moment: records of acknowledged
 *    groups set, FREE records of acknowledged groups clear.  So blocks that are handed out or in
 *    quarantine are not in the map: they are in limbo.
 * 2. A block is free if it is neither in the map nor in limbo; it is never in both.
 * 3. Blocks leave the queue in the order in which they were given up: given_up_seq and
 *    freed_durable_seq count them.
 * 4. A run of blocks never leaves its slab: the footers keep slabs apart.
 *
 * Threads: one owner.  Blocks: never.  Errors: no space is an answer, not an error.
 * Memory:  a bit per block, some 20 bytes per slab, 128 bytes for each slab with blocks in limbo.
 */
#ifndef DLBLK_ENGINE_ALLOC_H
#define DLBLK_ENGINE_ALLOC_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/engine/format.h"
#include "chunkserver/engine/freelist.h"
#include "chunkserver/engine/journal.h"

#define ALLOC_SLAB_WORDS  (SLAB_BLOCKS / 64)
#define ALLOC_CLASSES     126u /* slabs by free blocks, 8 per class */
#define ALLOC_EXTENTS_MAX 256u
/* From 64 KiB on a write prefers one run, in a slab of its own kind. */
#define ALLOC_LARGE_BLOCKS 16u

struct alloc_slab {
    uint32_t previous, next; /* in its class */
    uint16_t free_count;
    uint16_t recycled; /* of these: freed in this life, at most */
    bool open;
    uint64_t *limbo; /* ALLOC_SLAB_WORDS words; NULL: none */
    uint16_t limbo_count;
};

enum alloc_kind { ALLOC_SMALL, ALLOC_LARGE };

struct alloc_open {
    uint32_t slab; /* ALLOC_NONE: none */
    uint32_t cursor;
};
#define ALLOC_NONE UINT32_MAX

/* A first-in first-out queue of runs. */
struct alloc_run {
    struct extent extent;
    /* quarantine: reads up to this one must have ended; queue: 0, or ALLOC_WORN */
    uint64_t read_seq;
};
#define ALLOC_WORN UINT64_MAX
struct alloc_queue {
    struct alloc_run *runs;
    uint32_t head, count, capacity; /* capacity: a power of two, or 0 */
};

struct alloc {
    uint32_t slab_count;
    uint64_t data_blocks; /* footers left out */
    uint64_t *map;
    struct alloc_slab *slabs;
    uint32_t classes[ALLOC_CLASSES];
    uint64_t class_mask[2];
    struct alloc_open open[2]; /* by alloc_kind */
    struct freelist limbo_words;
    uint64_t free_blocks;
    uint64_t limbo_blocks;
    uint64_t reserve_blocks;
    struct alloc_queue queued;
    struct alloc_queue quarantined;
    uint64_t queued_blocks, named_blocks, quarantined_blocks;
    uint64_t given_up_seq;      /* blocks ever given up */
    uint64_t freed_durable_seq; /* ... of these, with a durable FREE record */
    /* counters */
    uint64_t taken_total, reused_total, waited_total;
};

/* Everything is free but the footers. */
void alloc_init(struct alloc *alloc, uint32_t slab_count, uint64_t reserve_blocks);
void alloc_fini(struct alloc *alloc);

/* --- while the journal is replayed: the map alone --- */

uint32_t alloc_page_count(const struct alloc *alloc);
/* Take over a saved page of BITMAP_PAGE_BYTES bytes; footers stay in use. */
void alloc_load_page(struct alloc *alloc, uint32_t page, const uint8_t *bits);
/* Is this a run of data blocks of one slab? */
bool alloc_run_is_valid(const struct alloc *alloc, uint64_t block, uint32_t count);
void alloc_replay_set(struct alloc *alloc, uint64_t block, uint32_t count);
void alloc_replay_clear(struct alloc *alloc, uint64_t block, uint32_t count);
/* Count what is free: from here on blocks are handed out. */
void alloc_start(struct alloc *alloc);

/* --- in service --- */

/* What a write without use_reserve must leave free. */
uint64_t alloc_reserve(const struct alloc *alloc);
/* Blocks that will be free when their FREE records are durable and reads have ended. */
static inline uint64_t
alloc_awaiting(const struct alloc *alloc)
{
    return alloc->queued_blocks + alloc->named_blocks + alloc->quarantined_blocks;
}

/* Will alloc_take() find so many blocks? */
bool alloc_has_room(const struct alloc *alloc, uint32_t count, bool use_reserve);
/*
 * Hand out count blocks (1 .. 256) as runs in ret_extents (room for count; fewer are preferred).
 * Returns the number of runs; 0: there is no room, nothing was changed.
 */
uint32_t alloc_take(struct alloc *alloc, enum alloc_kind kind, uint32_t count, bool use_reserve,
                    struct extent *ret_extents);
/* Handed out, and the record that names them is acknowledged: in use (bad blocks: for ever). */
void alloc_commit(struct alloc *alloc, uint64_t block, uint32_t count);
/* Handed out, and no journal record names them, or it was aborted: free again. */
void alloc_return(struct alloc *alloc, uint64_t block, uint32_t count);

/*
 * In use, and no longer needed.  Returns given_up_seq, which FREE records must reach before this
 * is forgotten.
 */
uint64_t alloc_give_up(struct alloc *alloc, uint64_t block, uint32_t count);
/*
 * The same of a block that must never be used again: it goes through the queue like any other, but
 * a BAD record names it, and it stays in use.
 */
uint64_t alloc_give_up_worn(struct alloc *alloc, uint64_t block);
/* The run that the next FREE or (worn) BAD record should name first; false: none waits. */
bool alloc_queue_peek(const struct alloc *alloc, struct extent *ret_run, bool *ret_worn);
/* The idx-th run, for inspection. */
struct alloc_run *alloc_queue_at(const struct alloc_queue *queue, uint32_t idx);
/* The first `count` blocks of that run stand in a journal block now. */
void alloc_queue_pop(struct alloc *alloc, uint32_t count);
/*
 * The journal block with this run will never be durable: back to the queue.  Only when the store
 * has stopped.
 */
void alloc_queue_back(struct alloc *alloc, uint64_t block, uint32_t count, bool worn);
/*
 * That journal block is durable: the run is free, or, if a read is in flight (reads_in_flight),
 * when the read with number read_seq and all before it have ended.
 */
void alloc_free_durable(struct alloc *alloc, uint64_t block, uint32_t count, bool reads_in_flight,
                        uint64_t read_seq);
/* A journal block whose BAD record names this worn run is durable. */
void alloc_worn_durable(struct alloc *alloc, uint32_t count);
/* No read below min_read_seq is in flight any more. */
void alloc_release(struct alloc *alloc, uint64_t min_read_seq);

static inline bool
alloc_in_map(const struct alloc *alloc, uint64_t block)
{
    return (alloc->map[block / 64] >> (block % 64) & 1) != 0;
}

bool alloc_in_limbo(const struct alloc *alloc, uint64_t block);

/* The saved form of a page: BITMAP_PAGE_BYTES bytes. */
void alloc_save_page(const struct alloc *alloc, uint32_t page, uint8_t *ret_bits);

#endif
