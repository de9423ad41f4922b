/* SPDX-License-Identifier: Apache-2.0 */
/*
 * format.h: the bytes of the journal and of the index.  Specification with all rules:
 * docs/disk-format.md.
 *
 *     superblock | journal ring | metadata region | data region: slabs | copy of the superblock
 *
 * The journal block, 1 to 16 units of 4 KiB:
 *
 *     | header 80 | record | record | ... | zeroes to the end of its last unit |
 *       crc, magic, uuid, LSN, mark ...     body_crc covers the records
 *
 * A block with LSN L and n units is followed by L + n, lies at ring offset (L mod ring units), and
 * never crosses the ring's end.  It is never rewritten.  It counts if all of this holds: magic,
 * header_crc and body_crc; its uuid is the disk's; its LSN fits its place; its LSN is below the
 * superblock's cut, or its incarnation is the superblock's.
 *
 * Crash cases: a torn block fails one of the CRCs.  A block of an earlier lap has another LSN at
 * its place.  A block of an earlier life, dropped when that life was replayed, is at or above the
 * cut with another incarnation.
 *
 * Block numbers count 4 KiB blocks from the start of the data region.  All integers are
 * little-endian, keys excepted.
 */
#ifndef DLBLK_ENGINE_FORMAT_H
#define DLBLK_ENGINE_FORMAT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "common/le.h"
#include "common/version.h"

/* number, what changed, when */
#define DISK_FORMAT_VERSIONS(X) X(1, "the first one", "2025-11")

enum {
#define X(number, change, date) DISK_FORMAT_VERSION_NEWEST = number,
    DISK_FORMAT_VERSIONS(X)
#undef X
};
static_assert((int)DISK_FORMAT_VERSION_NEWEST == DLBLK_DISK_FORMAT_VERSION,
              "version.h says another version");

/* --- units --- */

#define BLOCK_BYTES        4096u
#define UNIT_BYTES         4096u /* LSNs count these */
#define SLAB_BLOCKS        1024u
#define SLAB_DATA_BLOCKS   1000u /* then two footer places of 12 blocks each */
#define SLAB_FOOTER_BLOCKS 12u
#define SLAB_BYTES         (SLAB_BLOCKS * BLOCK_BYTES)
static_assert(SLAB_DATA_BLOCKS + 2 * SLAB_FOOTER_BLOCKS == SLAB_BLOCKS, "slab");

#define LEAF_SECTORS      64u
#define CHUNK_SECTORS_MAX (1u << 18) /* 1 GiB: the largest segment */
#define CHUNK_LEAVES_MAX  (CHUNK_SECTORS_MAX / LEAF_SECTORS)

/* --- the journal --- */

#define JOURNAL_MAGIC     0x4c4e4a44u /* "DJNL" */
#define JOURNAL_FORMAT    1u
#define JOURNAL_UNITS_MAX 16u
#define JOURNAL_BYTES_MAX (JOURNAL_UNITS_MAX * UNIT_BYTES)
#define JOURNAL_WINDOW    2u /* blocks that are written but not flushed, at most */

enum journal_flags {
    JOURNAL_HAS_ABORT = 1u << 0, /* carries ABORT records: follows a failed data write */
};

struct journal_header_disk {
    le32 header_crc; /* CRC-32C of the rest of the header */
    le32 magic;
    le16 format;
    le16 flags;
    le16 units;
    le16 reserved_0;
    uint8_t disk_uuid[16];
    le64 incarnation;
    le64 lsn;
    le64 mark; /* all records below this LSN are flushed, or aborted */
    le64 tail; /* the index reaches at least to this LSN: below it the ring may be overwritten */
    le32 record_count;
    le32 body_bytes;
    le32 body_crc;
    le32 reserved_1;
};
static_assert(sizeof(struct journal_header_disk) == 80, "journal header");
static_assert(offsetof(struct journal_header_disk, disk_uuid) == 16, "journal header");
static_assert(offsetof(struct journal_header_disk, lsn) == 40, "journal header");
static_assert(offsetof(struct journal_header_disk, record_count) == 64, "journal header");

/* Numbers are on disk: never used again. */
enum record_kind {
    RECORD_WRITE = 1,    /* data in blocks */
    RECORD_ZERO = 2,     /* a zero extent */
    RECORD_CREATE = 3,   /* a chunk comes into being */
    RECORD_EPOCH = 4,    /* config epoch of a chunk */
    RECORD_STABLE = 5,   /* stable version of a chunk */
    RECORD_FENCE = 6,    /* lease epoch of a volume */
    RECORD_DELETE = 7,   /* a chunk is gone, its space follows by CLEAR */
    RECORD_CLEAR = 8,    /* all sectors of a leaf of a deleted chunk become holes */
    RECORD_FREE = 9,     /* blocks that changes of earlier blocks gave up may be used again */
    RECORD_ABORT = 10,   /* a record of an earlier block never happened */
    RECORD_BAD = 11,     /* blocks that failed a write, or were repaired: never used again */
    RECORD_ATTEMPT = 12, /* a recovery attempt begins: what is above its steps is void */
    RECORD_REPORT = 13,  /* ... its pulling has ended */
    RECORD_IN_SYNC = 14, /* ... it is over: the chunk was promoted */
    RECORD_MERGE = 15,   /* sectors pulled from another slot, or repaired from it */
    RECORD_FORGET = 16,  /* zero extents of a leaf up to a version become holes */
    /* 17 to 31: kept for relocation, undo, trimming of snapshots */
};

struct record_header_disk {
    uint8_t kind;
    uint8_t flags; /* 0 */
    le16 bytes;    /* of the whole record */
};
static_assert(sizeof(struct record_header_disk) == 4, "record header");

/* A run of 1 to 256 blocks. */
struct extent_disk {
    uint8_t count_minus_one;
    uint8_t block[5];
};
static_assert(sizeof(struct extent_disk) == 6, "extent");
#define EXTENT_BLOCKS_MAX 256u
#define BLOCK_NUMBER_MAX  ((UINT64_C(1) << 40) - 1)

/* RECORD_WRITE: this, extent_count extents, one le32 CRC per sector.  RECORD_ZERO: this alone. */
struct record_write_disk {
    struct record_header_disk header;
    le32 config_epoch;
    le64 local_id;
    le64 version;
    le64 stable_version;
    le32 birth;
    le32 offset_sectors;
    le32 length_sectors;
    le16 extent_count;
    le16 flags; /* enum record_write_flags */
};
static_assert(sizeof(struct record_write_disk) == 48, "write record");
enum record_write_flags {
    RECORD_WRITE_PROMOTES = 1u << 0, /* the chunk was recovering, and is not any more */
};
#define RECORD_WRITE_BYTES_MAX \
    (sizeof(struct record_write_disk) + 256 * (sizeof(struct extent_disk) + sizeof(le32)))
static_assert(sizeof(struct journal_header_disk) + RECORD_WRITE_BYTES_MAX <= UNIT_BYTES,
              "the smallest block holds the largest record");

struct record_create_disk {
    struct record_header_disk header;
    le32 incarnation;
    le64 local_id;
    le64 volume;
    le32 segment;
    le32 slot;
};
static_assert(sizeof(struct record_create_disk) == 32, "create record");

/*
 * RECORD_EPOCH, RECORD_STABLE, RECORD_DELETE, RECORD_CLEAR, RECORD_REPORT, RECORD_IN_SYNC,
 * RECORD_FORGET: one or two numbers of a chunk.
 */
struct record_chunk_disk {
    struct record_header_disk header;
    /* EPOCH, IN_SYNC: config epoch; CLEAR, FORGET: the leaf; STABLE, REPORT: attempt */
    le32 number;
    le64 local_id;
    le64 value; /* STABLE, REPORT: stable version; FORGET: version */
};
static_assert(sizeof(struct record_chunk_disk) == 24, "chunk record");

#define STEPS_DISK 4u
struct step_disk {
    le32 first_sector;
    le32 reserved;
    le64 stable_version;
};
static_assert(sizeof(struct step_disk) == 16, "step");

struct record_attempt_disk {
    struct record_header_disk header;
    le32 attempt;
    le64 local_id;
    le32 config_epoch;
    le32 lease_epoch; /* the volume's fence rises to it */
    le32 step_count;
    le32 reserved;
    struct step_disk steps[STEPS_DISK];
};
static_assert(sizeof(struct record_attempt_disk) == 96, "attempt record");

/* This, run_count runs, extent_count extents, one le32 CRC per sector with data. */
struct record_merge_disk {
    struct record_header_disk header;
    le32 attempt;
    le64 local_id;
    le64 stable_version; /* of the source */
    le32 cursor_sectors; /* all below it has been pulled; 0: it stays */
    le16 run_count;
    le16 extent_count;
    le16 data_sectors;
    le16 flags; /* enum record_merge_flags */
    le32 reserved;
};
static_assert(sizeof(struct record_merge_disk) == 40, "merge record");
enum record_merge_flags {
    RECORD_MERGE_REPAIR = 1u << 0, /* takes the place of exactly the same version */
    RECORD_MERGE_BAD = 1u << 1,    /* the data does not match its CRC, and is not meant to */
};

struct merge_run_disk {
    le32 sector;
    uint8_t count_minus_one;
    uint8_t kind; /* enum sector_kind */
    le16 reserved;
    le32 birth;
    le32 reserved_1;
    le64 version;
};
static_assert(sizeof(struct merge_run_disk) == 24, "merge run");
/* So many bytes of runs, extents and CRCs fit into a record, and it into the smallest block. */
#define RECORD_MERGE_BODY_MAX \
    (UNIT_BYTES - sizeof(struct journal_header_disk) - sizeof(struct record_merge_disk))

struct record_fence_disk {
    struct record_header_disk header;
    le32 lease_epoch;
    le64 volume;
};
static_assert(sizeof(struct record_fence_disk) == 16, "fence record");

struct record_abort_disk {
    struct record_header_disk header;
    le32 record_idx;
    le64 lsn;
};
static_assert(sizeof(struct record_abort_disk) == 16, "abort record");

/* RECORD_FREE, RECORD_BAD: this, then extents to the end of the record. */
struct record_extents_disk {
    struct record_header_disk header;
    le32 extent_count;
};
static_assert(sizeof(struct record_extents_disk) == 8, "extents record");

/* --- keys and values of the index; keys are big-endian, so that they sort --- */

#define INDEX_POSITION 'P' /* P */
#define INDEX_CHUNK    'C' /* C, local id u64 */
#define INDEX_FENCE    'F' /* F, volume u64 */
#define INDEX_LEAF     'L' /* L, local id u64, leaf u32 */
#define INDEX_KEPT     'K' /* K, local id u64, leaf u32, snapshot u32: reserved for snapshots */
#define INDEX_BITMAP   'B' /* B, page u32 */
#define INDEX_BAD      'X' /* X, block u64 */
#define INDEX_LOST     'Z' /* Z: leaves were lost, blocks that were theirs may be in use */

#define INDEX_VALUE_FORMAT 1u

/* Each value begins with the CRC-32C of all that follows it. */
struct index_position_disk {
    le32 crc;
    le32 format;
    uint8_t disk_uuid[16];
    le64 incarnation; /* that wrote it */
    le64 position;    /* LSN from which the journal is replayed */
    le64 lsn_highest; /* of a change that is in the index */
    le64 local_id_next;
};
static_assert(sizeof(struct index_position_disk) == 56, "position value");

/* Followed by pending_count struct pending_disk, ascending. */
struct index_chunk_disk {
    le32 crc;
    le32 format;
    le64 volume;
    le32 segment;
    le32 slot;
    le32 incarnation;
    le32 config_epoch;
    le64 stable_version;
    le64 lsn;        /* of the last change that is in here */
    le32 state;      /* enum chunk_state */
    le32 leaf_count; /* no leaf at or above it has a key, or had one */
    le32 pending_count;
    le32 recovery_bytes; /* behind the pending writes: a struct index_recovery_disk, or 0 */
};
static_assert(sizeof(struct index_chunk_disk) == 64, "chunk value");

/* Of a recovering chunk. */
struct index_recovery_disk {
    le32 attempt;
    le32 cursor_sectors;
    le64 heard_version;
    le64 reported_version;
    le32 step_count;
    le32 reserved;
    struct step_disk steps[STEPS_DISK];
};
static_assert(sizeof(struct index_recovery_disk) == 96, "recovery value");

struct pending_disk {
    le64 version;
    le32 offset_sectors;
    le32 length_sectors; /* highest bit: PENDING_PULLED */
};
#define PENDING_PULLED (1u << 31)
static_assert(sizeof(struct pending_disk) == 16, "pending write");

struct index_fence_disk {
    le32 crc;
    le32 lease_epoch;
};
static_assert(sizeof(struct index_fence_disk) == 8, "fence value");

struct index_lost_disk {
    le32 crc;
    le32 reserved;
};
static_assert(sizeof(struct index_lost_disk) == 8, "lost leaves value");

struct index_bad_disk {
    le32 crc;
    le32 reserved;
    le64 lsn;
};
static_assert(sizeof(struct index_bad_disk) == 16, "bad block value");

/* One bit per block, 1: in use. */
#define BITMAP_PAGE_BYTES  4096u
#define BITMAP_PAGE_BLOCKS (BITMAP_PAGE_BYTES * 8)
static_assert(BITMAP_PAGE_BLOCKS % SLAB_BLOCKS == 0, "a slab lies in one page");

struct index_bitmap_disk {
    le32 crc;
    le32 format;
    le64 lsn;
    uint8_t bits[BITMAP_PAGE_BYTES];
};
static_assert(sizeof(struct index_bitmap_disk) == 16 + BITMAP_PAGE_BYTES, "bitmap value");

/*
 * A leaf's value is one or more fragments, in the order of their changes (the index concatenates).
 * A fragment is this, run_count runs, and one le32 CRC for each sector of each data run.
 */
struct leaf_fragment_disk {
    le32 crc;   /* of the rest of the fragment */
    le16 bytes; /* of the whole fragment */
    uint8_t flags;
    uint8_t run_count;
    le64 lsn; /* the fragment holds the leaf's changes up to this LSN */
};
static_assert(sizeof(struct leaf_fragment_disk) == 16, "leaf fragment");

enum leaf_fragment_flags {
    LEAF_WHOLE = 1u << 0, /* what it does not name is a hole, and fragments before it don't count */
};

struct leaf_run_disk {
    uint8_t first; /* sector of the leaf */
    uint8_t count;
    uint8_t kind; /* enum sector_kind, or SECTOR_VOID */
    uint8_t block[5];
    le32 birth;
    le32 reserved;
    le64 version;
};
static_assert(sizeof(struct leaf_run_disk) == 24, "leaf run");

#define LEAF_FRAGMENT_BYTES_MAX          \
    (sizeof(struct leaf_fragment_disk) + \
     LEAF_SECTORS * (sizeof(struct leaf_run_disk) + sizeof(le32)))

#endif
