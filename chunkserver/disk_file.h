/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_file.h: opens a block device or a preallocated file for the engine, and locks it.
 *
 * Its struct disk has the blocking operations of disk.h; a program with a loop gives the descriptor
 * to disk_uring.h and uses that one's.  The submit of this one queues, and disk_file_poll() does
 * what was queued: for offline tools and benchmarks without a loop.
 *
 * The lock (O_EXCL of a device, flock of a file) belongs to the open file description behind
 * disk_file_fd(): it is released when the last I/O of a process that died has ended.
 *
 * Threads: one.  Blocks: everything.
 * Errors:  0 or negative, with path and reason in `err`.
 */
#ifndef DLBLK_CHUNKSERVER_DISK_FILE_H
#define DLBLK_CHUNKSERVER_DISK_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/disk.h"
#include "dlblk/error.h"

struct disk_file;

struct disk_file_options {
    bool read_only;
    bool no_lock; /* only with read_only: look at a disk that a server uses */
    /* If another process has it: wait so long for the lock, 0: not at all; -DL_E_DISK_BUSY then. */
    uint64_t wait_ms;
    /* Called once, before the first wait. */
    void (*on_wait)(void *context, const char *path);
    void *on_wait_context;
};

/*
 * options NULL: for writing, without waiting.
 *   -DL_E_DISK_BUSY    in use by another process, or mounted
 *   -DL_E_DISK_FORMAT  neither a block device nor a regular file, or with sectors above 4 KiB
 *   -errno             of open
 */
int disk_file_open(const char *path, const struct disk_file_options *options,
                   struct disk_file **ret_file, struct dl_error *err);

/* What was queued must have been polled.  NULL is allowed. */
void disk_file_close(struct disk_file *file);

struct disk *disk_file_disk(struct disk_file *file);
int disk_file_fd(const struct disk_file *file); /* stays the file's */
bool disk_file_is_device(const struct disk_file *file);
bool
disk_file_is_direct(const struct disk_file *file); /* O_DIRECT; a filesystem may not offer it */
/* Logical sectors of a device; 512 for a file. */
uint32_t disk_file_sector_bytes(const struct disk_file *file);

/* Do what was submitted, and run its callbacks.  Returns how many. */
uint32_t disk_file_poll(struct disk_file *file);

/* Where the index of a device is by default: /dev does not survive a restart of the machine. */
#define DISK_INDEX_DIRECTORY "/var/lib/dlblk"

/*
 * Where the index of a disk is unless the administrator says otherwise: beside a file, DISK.index;
 * of a device /dev/x/y in DISK_INDEX_DIRECTORY/dev-x-y.index.  -ENAMETOOLONG if it does not fit.
 */
int disk_index_path(const char *path, char *ret_path, size_t path_bytes);

/*
 * Create a file of size_bytes and write it full of zeroes: never a sparse or merely allocated one,
 * whose extents could come back as zeroes after a power cut although data was written.  progress
 * may be NULL.  The file must not exist; on failure it is removed.
 */
int disk_file_create(const char *path, uint64_t size_bytes,
                     void (*progress)(void *context, uint64_t done_bytes, uint64_t size_bytes),
                     void *context, struct dl_error *err);

#endif
