/* SPDX-License-Identifier: Apache-2.0 */
/*
 * superblock.h: who a disk is, how it is laid out, and where its journal's past ends.
 *
 * Two copies: the first 4 KiB of the disk and its last whole 4 KiB.  One valid copy is enough; of
 * two valid ones the higher generation counts.  Format: docs/disk-format.md, proto/disk.proto.
 *
 * Threads: any, one at a time per disk.  Blocks: yes (open, format, stop's last step has a form of
 *          its own).
 * Errors:  0 or a negative DL_E_*, with the text in `err`.
 * Memory:  a struct superblock holds no pointers.
 */
#ifndef DLBLK_ENGINE_SUPERBLOCK_H
#define DLBLK_ENGINE_SUPERBLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/disk.h"
#include "dlblk/error.h"

#define SUPERBLOCK_BYTES          4096u
#define SUPERBLOCK_COPIES         2u
#define SUPERBLOCK_UUID_BYTES     16u
#define SUPERBLOCK_META_BYTES_MAX 255u
#define SUPERBLOCK_PROBLEM_BYTES  160u

/* Feature bits that this build knows, by what an older build must do that doesn't know one. */
#define SUPERBLOCK_FEATURES_INCOMPATIBLE 0u /* refuse the disk */
#define SUPERBLOCK_FEATURES_READ_ONLY    0u /* inspect it, don't write */
#define SUPERBLOCK_FEATURES_COMPATIBLE   0u /* ignore it */

/* Positions in bytes from the start of the disk. */
struct superblock_geometry {
    uint64_t disk_bytes; /* as it was formatted */
    uint64_t ring_offset;
    uint64_t ring_bytes;
    uint64_t metadata_offset;
    uint64_t metadata_bytes;
    uint64_t data_offset;
    uint64_t data_bytes; /* whole slabs */
    uint64_t reserve_bytes;
};

struct superblock {
    uint8_t disk_uuid[SUPERBLOCK_UUID_BYTES];
    uint8_t cluster_id[SUPERBLOCK_UUID_BYTES];
    uint32_t format_version;
    uint64_t features_incompatible, features_read_only, features_compatible;
    struct superblock_geometry geometry;
    uint64_t generation;  /* grows with each writing of the copies */
    uint64_t incarnation; /* grows with each start */
    uint64_t cut;         /* LSN: from here on only blocks of this incarnation count */
    uint64_t tail;        /* LSN: the index reaches at least to here */
    bool clean;           /* the last life ended with a stop */
    bool damaged;         /* acknowledged records were lost, in this start or an earlier one */
    uint64_t created_ms;
    char meta_address[SUPERBLOCK_META_BYTES_MAX + 1];
};

/* What was found at one copy's place. */
struct superblock_copy {
    uint64_t offset_bytes;
    bool valid;
    bool is_ours; /* it has our magic, whatever else is wrong with it */
    int err;      /* if it is not valid: as of superblock_decode(), or -DL_E_MEDIA_READ */
    char problem[SUPERBLOCK_PROBLEM_BYTES]; /* ... and why */
    struct superblock superblock;
};

/* Encode into SUPERBLOCK_BYTES bytes. */
void superblock_encode(const struct superblock *superblock, void *ret_bytes);
/*
 * Any bytes: 0, or what is wrong in `problem` (SUPERBLOCK_PROBLEM_BYTES) and -DL_E_DISK_FORMAT (not
 * a superblock, or one that this version does not know) or -DL_E_DISK_DAMAGED.
 */
int superblock_decode(const void *bytes, struct superblock *ret_superblock, char *problem);

/* Look at both places, whatever is there: for inspection. */
void superblock_copies_read_now(struct disk *disk,
                                struct superblock_copy ret_copies[SUPERBLOCK_COPIES]);

/*
 * The newest valid copy.  -DL_E_DISK_FORMAT or -DL_E_DISK_DAMAGED if there is none: err names what
 * is wrong with each; -DL_E_DISK_DAMAGED also if the disk is smaller than it was when it was
 * formatted.
 */
int superblock_load_now(struct disk *disk, struct superblock *ret_superblock, struct dl_error *err);

/*
 * Raise the generation and write both copies, one after the other, each flushed before the next:
 * first the one that is not the newest valid copy on the disk, so that a valid one exists at every
 * moment.
 */
int superblock_store_now(struct disk *disk, struct superblock *superblock, struct dl_error *err);

/* Where the two copies are, given the size of the disk. */
uint64_t superblock_copy_offset(uint64_t disk_bytes, unsigned copy);

#endif
