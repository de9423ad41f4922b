/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/disk_uring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "common/assert.h"
#include "common/list.h"

#define BLOCK_BYTES 4096u

struct disk_uring {
    struct disk disk; /* first */
    struct loop *loop;
    struct disk *base;
    int file_index;
    struct disk_uring_stats stats;
};

/* What an I/O in flight needs, in its disk_private. */
struct disk_uring_io {
    struct io_req req;
    struct disk_uring *disk;
    size_t length_bytes;
};
static_assert(sizeof(struct disk_uring_io) <= sizeof(((struct disk_io *)0)->disk_private),
              "room in disk_private");

static inline struct disk_uring_io *
private_of(struct disk_io *io)
{
    return (struct disk_uring_io *)(void *)io->disk_private;
}

static void
disk_finish(struct disk_uring *disk, struct disk_io *io, int result)
{
    dl_assert(disk->stats.in_flight > 0);
    disk->stats.in_flight--;
    io->on_done(io, result);
}

static void
disk_on_cqe(struct io_req *req, int res)
{
    struct disk_uring_io *private = list_entry(req, struct disk_uring_io, req);
    struct disk_io *io = list_entry((void *)private, struct disk_io, disk_private);
    int result = res < 0 ? res : 0;

    if (res >= 0 && io->kind != DISK_FLUSH && (size_t)res != private->length_bytes)
        result = -EIO;
    disk_finish(private->disk, io, result);
}

static void
disk_start(struct disk_uring *disk, struct disk_io *io, size_t length_bytes)
{
    struct disk_uring_io *private = private_of(io);
    struct io_uring_sqe *sqe;

    private->req.on_cqe = disk_on_cqe;
    private->disk = disk;
    private->length_bytes = length_bytes;
    sqe = loop_get_sqe(disk->loop, &private->req);
    if (io->kind == DISK_FLUSH)
        io_uring_prep_fsync(sqe, disk->file_index, IORING_FSYNC_DATASYNC);
    else if (io->kind == DISK_WRITE && io->iov_count == 1)
        io_uring_prep_write(sqe, disk->file_index, io->iov->iov_base, (unsigned)length_bytes,
                            io->offset_bytes);
    else if (io->kind == DISK_WRITE)
        io_uring_prep_writev(sqe, disk->file_index, io->iov, io->iov_count, io->offset_bytes);
    else if (io->iov_count == 1)
        io_uring_prep_read(sqe, disk->file_index, io->iov->iov_base, (unsigned)length_bytes,
                           io->offset_bytes);
    else
        io_uring_prep_readv(sqe, disk->file_index, io->iov, io->iov_count, io->offset_bytes);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, &private->req);
}

/* --- disk.h --- */

static size_t
disk_io_check(const struct disk_uring *disk, const struct disk_io *io)
{
    size_t length_bytes = 0;

    dl_assert(io->on_done != NULL);
    if (io->kind == DISK_FLUSH)
        return 0;
    dl_assert(io->iov_count >= 1);
    dl_assert(io->offset_bytes % BLOCK_BYTES == 0);
    for (uint32_t i = 0; i < io->iov_count; i++) {
        dl_assert(((uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len) % BLOCK_BYTES == 0);
        length_bytes += io->iov[i].iov_len;
    }
    dl_assert(length_bytes > 0);
    dl_assert(io->offset_bytes <= disk->disk.size_bytes);
    dl_assert(length_bytes <= disk->disk.size_bytes - io->offset_bytes);
    return length_bytes;
}

static void
disk_uring_submit(struct disk *base, struct disk_io *io)
{
    struct disk_uring *disk = (struct disk_uring *)base;
    size_t length_bytes = disk_io_check(disk, io);

    disk->stats.in_flight++;
    disk->stats.ios[io->kind]++;
    disk->stats.bytes[io->kind] += length_bytes;
    disk_start(disk, io, length_bytes);
}

static int
disk_uring_read_now(struct disk *base, void *buffer, size_t length_bytes, uint64_t offset_bytes)
{
    struct disk *file = ((struct disk_uring *)base)->base;

    return file->ops->read_now(file, buffer, length_bytes, offset_bytes);
}

static int
disk_uring_write_now(struct disk *base, const void *buffer, size_t length_bytes,
                     uint64_t offset_bytes)
{
    struct disk *file = ((struct disk_uring *)base)->base;

    return file->ops->write_now(file, buffer, length_bytes, offset_bytes);
}

static int
disk_uring_flush_now(struct disk *base)
{
    struct disk *file = ((struct disk_uring *)base)->base;

    return file->ops->flush_now(file);
}

static const struct disk_ops disk_uring_ops = {
    .submit = disk_uring_submit,
    .read_now = disk_uring_read_now,
    .write_now = disk_uring_write_now,
    .flush_now = disk_uring_flush_now,
};

/* --- life --- */

int
disk_uring_create(struct disk_uring **ret_disk, struct loop *loop, struct disk *base, int fd,
                  struct dl_error *err)
{
    struct disk_uring *disk = calloc(1, sizeof(*disk));

    if (disk == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a disk");
    disk->disk = *base;
    disk->disk.ops = &disk_uring_ops;
    disk->loop = loop;
    disk->base = base;
    disk->file_index = loop_register_file(loop, fd);
    if (disk->file_index < 0) {
        int result = dl_error_set(err, disk->file_index,
                                  "can't register the disk with io_uring: %s",
                                  dl_err_str(disk->file_index));

        free(disk);
        return result;
    }
    *ret_disk = disk;
    return 0;
}

void
disk_uring_destroy(struct disk_uring *disk)
{
    if (disk == NULL)
        return;
    dl_assert(disk->stats.in_flight == 0);
    loop_unregister_file(disk->loop, disk->file_index);
    free(disk);
}

struct disk *
disk_uring_disk(struct disk_uring *disk)
{
    return &disk->disk;
}

void
disk_uring_get_stats(const struct disk_uring *disk, struct disk_uring_stats *ret_stats)
{
    *ret_stats = disk->stats;
}
