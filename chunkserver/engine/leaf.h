/* SPDX-License-Identifier: Apache-2.0 */
/*
 * leaf.h: the map of 64 sectors of a chunk: where each is, which version it has, its CRC.  Changes
 * and bytes; no I/O.
 *
 * The rules, per sector; what loses gives its block up:
 *   LEAF_WRITE   The higher version wins; at equal versions what is there stays (the same version
 *                is always the same bytes).  As a hole (CLEAR): a hole, whatever was there.  As
 *                void: what is above the change's version is void.
 *   LEAF_MERGE   What comes from another slot: as LEAF_WRITE, but a hole replaces only void.
 *   LEAF_REPAIR  Replaces data of the same version, or void; the old block is worn: not used
 *   again.
 *   LEAF_FORGET  Zeroes up to the change's version become holes; nothing else changes.
 *
 * Void sectors have a version V: they take writes of V and above.  Where an attempt made them void
 * V is the step plus one, and they take all that comes from another slot.  Where a leaf was
 * damaged (birth SECTOR_VOID_DAMAGED) V is what the chunk may have had; of another slot they take
 * only what it had when all up to V was stable there: else what was acknowledged here, and not yet
 * there, would be replaced by what was before it.
 *
 * Threads: any.  Blocks: never.
 * Errors:  of leaf_decode(): -DL_E_INDEX_CORRUPT; any bytes are allowed.
 */
#ifndef DLBLK_ENGINE_LEAF_H
#define DLBLK_ENGINE_LEAF_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_store.h"
#include "chunkserver/engine/format.h"

#define SECTOR_VOID_DAMAGED UINT32_MAX

struct leaf_sector {
    uint64_t version;    /* 0: hole */
    uint64_t block_kind; /* enum sector_kind in the highest byte */
    uint32_t birth;
    uint32_t crc;
};
static_assert(sizeof(struct leaf_sector) == 24, "a leaf is 1.5 KiB");

static inline unsigned
leaf_sector_kind(const struct leaf_sector *sector)
{
    return (unsigned)(sector->block_kind >> 56);
}

static inline uint64_t
leaf_sector_block(const struct leaf_sector *sector)
{
    return sector->block_kind & ((UINT64_C(1) << 56) - 1);
}

static inline uint64_t
leaf_block_kind(unsigned kind, uint64_t block)
{
    return (uint64_t)kind << 56 | block;
}

enum leaf_rule { LEAF_WRITE, LEAF_MERGE, LEAF_REPAIR, LEAF_FORGET };

/* What one journal record does to one leaf. */
struct leaf_change {
    uint64_t lsn;
    uint64_t version;
    uint64_t stable_version; /* LEAF_MERGE, LEAF_REPAIR: of the source */
    uint32_t birth;
    uint8_t first, count;
    uint8_t rule;           /* enum leaf_rule */
    uint8_t kind;           /* SECTOR_DATA, SECTOR_ZERO, SECTOR_HOLE, SECTOR_VOID */
    const uint64_t *blocks; /* SECTOR_DATA: one per sector */
    const uint32_t *crcs;   /* SECTOR_DATA: one per sector */
};

/* The same, waiting until its leaf is read. */
struct leaf_delta {
    struct leaf_delta *next;
    uint64_t lsn;
    uint64_t version;
    uint64_t stable_version;
    uint32_t birth;
    uint8_t first, count, kind, rule;
    bool replayed; /* from the journal at open: its blocks may have been freed there already */
    struct {
        uint64_t block;
        uint32_t crc;
    } data[]; /* SECTOR_DATA: one per sector */
};

struct leaf_result {
    uint64_t changed;  /* mask of sectors */
    uint32_t outdated; /* sectors of the change that lost, or had nothing to change */
};

/* worn: the block is never to be used again. */
typedef void (*leaf_give_up_fn)(void *context, uint64_t block, uint64_t lsn, bool worn);

/* Apply a change to the sectors of a leaf; each block that is given up goes to give_up. */
struct leaf_result leaf_apply(struct leaf_sector *sectors, const struct leaf_change *change,
                              leaf_give_up_fn give_up, void *context);
struct leaf_result leaf_apply_delta(struct leaf_sector *sectors, const struct leaf_delta *delta,
                                    leaf_give_up_fn give_up, void *context);

size_t leaf_delta_bytes(const struct leaf_change *change);
/* Fill memory of leaf_delta_bytes(). */
void leaf_delta_init(struct leaf_delta *delta, const struct leaf_change *change, bool replayed);

/* Damaged: nothing is known of what was at or below the version. */
void leaf_set_void(struct leaf_sector *sectors, uint64_t version);
/* No sector is anything but a hole. */
bool leaf_is_empty(const struct leaf_sector *sectors);

/*
 * Encode a fragment into ret_bytes (room for LEAF_FRAGMENT_BYTES_MAX): the sectors of `mask`, or,
 * whole, all of them.  Returns its bytes.
 */
uint32_t leaf_encode(const struct leaf_sector *sectors, uint64_t mask, bool whole, uint64_t lsn,
                     void *ret_bytes);
/*
 * A fragment that holds one delta, for a leaf that cannot be read; of a CLEAR it is a whole leaf
 * without sectors.
 */
uint32_t leaf_encode_delta(const struct leaf_delta *delta, void *ret_bytes);

/*
 * Decode a stored value: one fragment or more.  block_count bounds the block numbers.
 * ret_fragments: how many there are since the last whole one, itself included.
 */
int leaf_decode(const void *bytes, uint32_t length_bytes, uint64_t block_count,
                struct leaf_sector ret_sectors[LEAF_SECTORS], uint64_t *ret_lsn,
                uint32_t *ret_fragments);

#endif
