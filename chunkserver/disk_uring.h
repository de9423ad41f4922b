/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_uring.h: the disk of a running chunkserver: asynchronous I/O on the reactor's ring.
 *
 * Reads and writes go to the ring, and are submitted with the turn; a flush is an fdatasync there.
 * So it is on every filesystem: where a file can't do asynchronous I/O the kernel uses threads of
 * its own, and nothing here can block the reactor.
 *
 * Threads: the loop's.  Errors: as disk.h says.
 */
#ifndef DLBLK_CHUNKSERVER_DISK_URING_H
#define DLBLK_CHUNKSERVER_DISK_URING_H

#include <stdint.h>

#include "common/disk.h"
#include "common/loop.h"
#include "dlblk/error.h"

struct disk_uring;

/*
 * base: the same disk with its blocking operations (disk_file_disk()), fd: its descriptor
 * (disk_file_fd()); both stay the caller's and outlive the disk.
 */
int disk_uring_create(struct disk_uring **ret_disk, struct loop *loop, struct disk *base, int fd,
                      struct dl_error *err);
/* Nothing may be in flight.  NULL is allowed. */
void disk_uring_destroy(struct disk_uring *disk);
struct disk *disk_uring_disk(struct disk_uring *disk);

struct disk_uring_stats {
    uint64_t ios[3]; /* by disk_io_kind */
    uint64_t bytes[3];
    uint32_t in_flight;
};
void disk_uring_get_stats(const struct disk_uring *disk, struct disk_uring_stats *ret_stats);

#endif
