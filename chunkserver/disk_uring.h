/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_uring.h: the disk of a running chunkserver: asynchronous I/O on the reactor's ring.
 *
 * Reads and writes go to the ring, and are submitted with the turn; a flush is an fdatasync there.
 *
 * Some files can't do asynchronous I/O at all (they refuse RWF_NOWAIT: memory filesystems, some
 * network and FUSE ones): the ring would hand each operation to a kernel thread, which costs more
 * than the operation itself where that never sleeps.  With such a file I/O is done in place, as
 * long as it is seen not to sleep: samples look whether the thread was put to sleep in the call,
 * and if one was, that kind of I/O goes to the ring for a second.  What the file is on is never
 * asked.
 *
 * Threads: the loop's.  Errors: as disk.h says.
 */
#ifndef DLBLK_CHUNKSERVER_DISK_URING_H
#define DLBLK_CHUNKSERVER_DISK_URING_H

#include <stdbool.h>
#include <stdint.h>

#include "common/disk.h"
#include "common/loop.h"
#include "dlblk/error.h"

struct disk_uring;

struct disk_uring_options {
    bool never_in_place; /* for tests and comparisons */
};

/*
 * base: the same disk with its blocking operations (disk_file_disk()), fd: its descriptor
 * (disk_file_fd()); both stay the caller's and outlive the disk.  options may be NULL.
 */
int disk_uring_create(struct disk_uring **ret_disk, struct loop *loop, struct disk *base, int fd,
                      const struct disk_uring_options *options, struct dl_error *err);
/* Nothing may be in flight.  NULL is allowed. */
void disk_uring_destroy(struct disk_uring *disk);
struct disk *disk_uring_disk(struct disk_uring *disk);

struct disk_uring_stats {
    uint64_t ios[3]; /* by disk_io_kind */
    uint64_t bytes[3];
    uint64_t in_place; /* of ios */
    uint64_t slept;    /* samples in which an I/O in place slept */
    uint32_t in_flight;
};
void disk_uring_get_stats(const struct disk_uring *disk, struct disk_uring_stats *ret_stats);

#endif
