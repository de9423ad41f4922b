/* SPDX-License-Identifier: Apache-2.0 */
#include "chunkserver/disk_uring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/list.h"

#define BLOCK_BYTES 4096u
/* In place: one of so many I/Os is looked at, and all of the first ones. */
#define SAMPLE_INTERVAL 16u
#define SAMPLE_FIRST    8u
#define SLEPT_PAUSE_NS  NS_PER_S

struct disk_uring {
    struct disk disk; /* first */
    struct loop *loop;
    struct disk *base;
    int fd;
    int file_index;
    bool in_place;
    uint64_t ring_until_ns[3]; /* by kind: not in place before */
    uint64_t in_place_count[3];
    /* done in place, on_done to be called by the task */
    struct disk_io *done_first;
    struct disk_io **done_last;
    struct env_task done_task;
    struct disk_uring_stats stats;
};

/* What an I/O in flight needs, in its disk_private. */
struct disk_uring_io {
    union {
        struct io_req req; /* in the ring */
        int result;        /* done in place */
    };
    struct disk_uring *disk;
    union {
        size_t length_bytes;  /* in the ring */
        struct disk_io *next; /* done in place */
    };
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

/* --- in the ring --- */

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
disk_start_in_ring(struct disk_uring *disk, struct disk_io *io, size_t length_bytes)
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

/* --- in place --- */

static long
thread_sleeps(void)
{
    struct rusage usage;

    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw : 0;
}

static ssize_t
disk_call(const struct disk_uring *disk, const struct disk_io *io)
{
    switch (io->kind) {
    case DISK_READ:
        return preadv(disk->fd, io->iov, (int)io->iov_count, (off_t)io->offset_bytes);
    case DISK_WRITE:
        return pwritev(disk->fd, io->iov, (int)io->iov_count, (off_t)io->offset_bytes);
    case DISK_FLUSH:
        return fdatasync(disk->fd);
    }
    dl_unreachable();
}

static void
disk_do_in_place(struct disk_uring *disk, struct disk_io *io, size_t length_bytes)
{
    uint64_t count = disk->in_place_count[io->kind]++;
    bool sample = count < SAMPLE_FIRST || count % SAMPLE_INTERVAL == 0;
    long sleeps = sample ? thread_sleeps() : 0;
    ssize_t done;

    do
        done = disk_call(disk, io);
    while (done < 0 && errno == EINTR);
    private_of(io)->result = done < 0 ? -errno : (size_t)done == length_bytes ? 0 : -EIO;
    disk->stats.in_place++;
    if (sample && thread_sleeps() != sleeps) {
        disk->stats.slept++;
        disk->ring_until_ns[io->kind] = loop_now_ns(disk->loop) + SLEPT_PAUSE_NS;
    }
    private_of(io)->next = NULL;
    *disk->done_last = io;
    disk->done_last = &private_of(io)->next;
    loop_defer(disk->loop, &disk->done_task);
}

static void
disk_on_done_task(struct env_task *task)
{
    struct disk_uring *disk = list_entry(task, struct disk_uring, done_task);
    struct disk_io *io = disk->done_first;

    disk->done_first = NULL;
    disk->done_last = &disk->done_first;
    while (io != NULL) {
        struct disk_io *next = private_of(io)->next;

        disk_finish(disk, io, private_of(io)->result);
        io = next;
    }
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
    if (disk->in_place && loop_now_ns(disk->loop) >= disk->ring_until_ns[io->kind])
        disk_do_in_place(disk, io, length_bytes);
    else
        disk_start_in_ring(disk, io, length_bytes);
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

/* Would the kernel need a thread of its own for each I/O? */
static bool
file_refuses_nowait(int fd)
{
    void *block = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    struct iovec piece = {.iov_base = block, .iov_len = BLOCK_BYTES};
    ssize_t got;
    int err;

    if (block == NULL)
        return false;
    got = preadv2(fd, &piece, 1, 0, RWF_NOWAIT);
    err = got < 0 ? errno : 0;
    free(block);
    return err == EOPNOTSUPP;
}

int
disk_uring_create(struct disk_uring **ret_disk, struct loop *loop, struct disk *base, int fd,
                  const struct disk_uring_options *options, struct dl_error *err)
{
    struct disk_uring *disk = calloc(1, sizeof(*disk));

    if (disk == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for a disk");
    disk->disk = *base;
    disk->disk.ops = &disk_uring_ops;
    disk->loop = loop;
    disk->base = base;
    disk->fd = fd;
    disk->done_last = &disk->done_first;
    disk->done_task.fn = disk_on_done_task;
    disk->in_place = (options == NULL || !options->never_in_place) && file_refuses_nowait(fd);
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
