/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk.h: one disk as the storage engine sees it: asynchronous reads, writes and flushes.
 *
 * Two implementations: chunkserver/disk_uring.c (a block device or a file, O_DIRECT, on the
 * reactor's ring) and tests/unit/lib/fake_disk.c (records every write and flush, loses any subset
 * of what was not flushed).
 *
 * Threads: one owner, the loop; completions come from it, never from inside disk_submit().
 * Memory:  a disk_io and the memory that its iovecs name belong to the disk from disk_submit()
 *          until on_done.
 * Errors:  on_done gets 0 or a negative errno; a short read or write is -EIO.  Nothing is retried.
 */
#ifndef DLBLK_COMMON_DISK_H
#define DLBLK_COMMON_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum disk_io_kind { DISK_READ, DISK_WRITE, DISK_FLUSH };

struct disk_io;
typedef void (*disk_io_fn)(struct disk_io *io, int result);

/*
 * Embedded in the request it serves.  Offset, and each iovec's base and length, are multiples of
 * 4096.
 */
struct disk_io {
    enum disk_io_kind kind;
    uint32_t iov_count;
    uint64_t offset_bytes;
    struct iovec *iov;    /* caller-owned until on_done; unused for DISK_FLUSH */
    struct iovec iov_one; /* room for the common case: iov = &io->iov_one */
    disk_io_fn on_done;
    void *disk_private[3]; /* for the implementation */
};

struct disk;

struct disk_ops {
    /*
     * Start one I/O.  A flush makes durable every write that had completed before it was submitted.
     */
    void (*submit)(struct disk *disk, struct disk_io *io);
    /* Blocking forms, for format, open and offline tools only.  0 or a negative errno. */
    int (*read_now)(struct disk *disk, void *buffer, size_t length_bytes, uint64_t offset_bytes);
    int (*write_now)(struct disk *disk, const void *buffer, size_t length_bytes,
                     uint64_t offset_bytes);
    int (*flush_now)(struct disk *disk);
};

struct disk {
    const struct disk_ops *ops;
    uint64_t size_bytes;
    bool write_through; /* completed writes are durable: flushes may be left out */
};

static inline void
disk_submit(struct disk *disk, struct disk_io *io)
{
    disk->ops->submit(disk, io);
}

#endif
