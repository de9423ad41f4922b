/* SPDX-License-Identifier: Apache-2.0 */
/*
 * journal.h: journal blocks and their records: bytes to structs and back.  No I/O and no state of
 * the engine here.
 *
 *     journal_compose_init(&compose, buffer, capacity_bytes);
 *     journal_put_write(&compose, &record, extents, crcs); ...
 *     units = journal_compose_seal(&compose, &header);           buffer holds units * 4 KiB to
 *     write
 *
 *     if (journal_block_check(bytes, available_bytes, uuid, &header, problem) == 0)
 *         for (journal_iter_init(&iter, bytes, &header); (result = journal_iter_next(&iter,
 *         &record)) > 0;)
 *             ...
 *
 * Format: format.h.  Rules of replay: replay.c.
 *
 * Threads: any.  Blocks: never.
 * Errors:  of the parsing side: any bytes are allowed, nothing is asserted about them.
 * Memory:  a parsed record points into the block's bytes.
 */
#ifndef DLBLK_ENGINE_JOURNAL_H
#define DLBLK_ENGINE_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/chunk_table.h"
#include "chunkserver/engine/format.h"

/* A run of blocks of the data region. */
struct extent {
    uint64_t block;
    uint32_t count;
};

struct journal_header {
    uint8_t disk_uuid[16];
    uint64_t incarnation;
    uint64_t lsn;
    uint64_t mark;
    uint64_t tail;
    uint32_t units;
    uint32_t record_count;
    uint32_t body_bytes;
    uint16_t flags;
};

/* A record; which fields count depends on its kind. */
struct journal_record {
    enum record_kind kind;
    uint64_t local_id; /* all but FENCE, FREE, ABORT, BAD */
    /*
     * WRITE, ZERO, EPOCH, IN_SYNC: config epoch.  CREATE: incarnation.  FENCE: lease epoch.  CLEAR,
     * FORGET: leaf.  ABORT: index of the record.  STABLE, ATTEMPT, REPORT, MERGE: attempt.
     */
    uint32_t number;
    uint64_t lsn;            /* ABORT: of the block whose record never happened */
    struct chunk_key key;    /* CREATE; FENCE: only key.volume */
    uint64_t version;        /* WRITE, ZERO */
    uint64_t stable_version; /* WRITE, ZERO, STABLE, REPORT, MERGE; FORGET: the version */
    uint32_t birth;          /* WRITE, ZERO */
    uint32_t offset_sectors; /* WRITE, ZERO; MERGE: the cursor */
    uint32_t length_sectors; /* WRITE, ZERO; MERGE: of them, with data */
    uint16_t flags;          /* WRITE, ZERO: enum record_write_flags; MERGE: _merge_flags */
    uint32_t config_epoch, lease_epoch, step_count; /* ATTEMPT */
    struct chunk_step steps[CHUNK_STEPS_MAX];       /* ATTEMPT */
    uint32_t run_count;                             /* MERGE: parsed ones only */
    const struct merge_run_disk *runs;
    uint32_t extent_count; /* WRITE, MERGE, FREE, BAD: parsed ones only */
    const struct extent_disk *extents;
    const le32 *crcs; /* WRITE, MERGE: one per sector with data */
};

/* --- compose --- */

struct journal_compose {
    uint8_t *buffer; /* 4096-aligned */
    uint32_t capacity_bytes;
    uint32_t used_bytes; /* the header included */
    uint32_t record_count;
    uint32_t extents_at; /* of the record of runs that is being put; 0: none */
};

/* capacity_bytes: a multiple of 4096, at most JOURNAL_BYTES_MAX. */
void journal_compose_init(struct journal_compose *compose, void *buffer, uint32_t capacity_bytes);

static inline uint32_t
journal_room_bytes(const struct journal_compose *compose)
{
    return compose->capacity_bytes - compose->used_bytes;
}

/*
 * Bytes that a record of this kind takes: of a WRITE with so many extents and sectors (0 for every
 * other kind).
 */
uint32_t journal_record_bytes(enum record_kind kind, uint32_t extent_count, uint32_t sectors);

/* Each asserts that there is room, and returns the index of the record in its block. */
uint32_t journal_put_write(struct journal_compose *compose, const struct journal_record *record,
                           const struct extent *extents, uint32_t extent_count,
                           const uint32_t *crcs);
uint32_t journal_put(struct journal_compose *compose, const struct journal_record *record);
/* A MERGE: record without runs, extents and CRCs, which follow. */
uint32_t journal_merge_bytes(uint32_t run_count, uint32_t extent_count, uint32_t data_sectors);
uint32_t journal_put_merge(struct journal_compose *compose, const struct journal_record *record,
                           const struct merge_run_disk *runs, uint32_t run_count,
                           const struct extent *extents, uint32_t extent_count,
                           const uint32_t *crcs);

/*
 * A FREE or BAD record: begin, then runs (of any length; returns how many of its blocks found
 * room), then end, which takes the record back if nothing was put.
 */
void journal_put_runs_begin(struct journal_compose *compose, enum record_kind kind);
uint32_t journal_put_run(struct journal_compose *compose, uint64_t block, uint32_t count);
void journal_put_runs_end(struct journal_compose *compose);

/*
 * Fill in the header and zero the rest of the last unit.  header: all but units, record_count and
 * body_bytes, which it sets.  Returns the units.
 */
uint32_t journal_compose_seal(struct journal_compose *compose, struct journal_header *header);

/* --- parse --- */

#define JOURNAL_PROBLEM_BYTES 96u

/*
 * Is there a whole journal block of this disk at `bytes`?  0, or a negative error and why in
 * `problem` (may be NULL).
 *   -DL_E_NOT_FOUND     no block, or a torn one, or another disk's
 *   -DL_E_DISK_FORMAT   a block of a format that this version does not know
 * Incarnation and place are the caller's to judge.
 */
int journal_block_check(const void *bytes, uint32_t available_bytes, const uint8_t *disk_uuid,
                        struct journal_header *ret_header, char *problem);
/* The header alone: its CRC is checked, the body's is not. */
int journal_header_check(const void *bytes, const uint8_t *disk_uuid,
                         struct journal_header *ret_header, char *problem);

struct journal_iter {
    const uint8_t *at;
    const uint8_t *end;
    uint32_t record_idx; /* of the record that was returned last */
    uint32_t record_count;
    uint32_t next_idx;
};

/* The block must have passed journal_block_check(). */
void journal_iter_init(struct journal_iter *iter, const void *bytes,
                       const struct journal_header *header);
/*
 * 1: there is a record; 0: the end; -DL_E_DISK_DAMAGED: the bytes make no sense although the CRC is
 * right.
 */
int journal_iter_next(struct journal_iter *iter, struct journal_record *ret_record);

static inline struct extent
extent_get(const struct extent_disk *disk)
{
    uint64_t block = 0;

    for (int i = 4; i >= 0; i--)
        block = block << 8 | disk->block[i];
    return (struct extent){.block = block, .count = disk->count_minus_one + 1u};
}

static inline struct extent_disk
extent_of(uint64_t block, uint32_t count)
{
    struct extent_disk disk;

    dl_assert(count >= 1 && count <= EXTENT_BLOCKS_MAX);
    dl_assert(block <= BLOCK_NUMBER_MAX);
    disk.count_minus_one = (uint8_t)(count - 1);
    for (int i = 0; i < 5; i++)
        disk.block[i] = (uint8_t)(block >> (8 * i));
    return disk;
}

const char *record_kind_name(enum record_kind kind);

#endif
