/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block_io.c: a range of bytes and the blocks it touches:
 *
 *              skip            length                 rest
 *            |<---->|<----------------------------->|<----->|
 *      ------+------#######+############+###########+-------+------
 *            |    head     |   middle   |      tail         |
 *          first                                            end      (both at block boundaries)
 *
 * The head is there if skip > 0, the tail if rest > 0; a range inside one block has a head only.
 * A write of parts submits head, middle and tail as one request, the middle straight from the
 * caller's buffer.
 */
#include "nbdkit-plugin/block_io.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/assert.h"
#include "nbdkit-plugin/request.h"

/* One request's range, in blocks; split so that a request to libdlblk is never too large. */
struct span {
    uint64_t first_bytes, end_bytes; /* of the blocks touched */
    uint32_t skip_bytes, rest_bytes;
    bool head, tail;
};

/* A rewrite of parts of blocks that is between its read and the submission of its write. */
struct partial_write {
    uint64_t first_bytes, end_bytes;
    struct partial_write *next;
};

static struct span
span_of(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    uint64_t mask = io->block_bytes - 1;
    uint64_t end = offset_bytes + length_bytes;
    struct span span = {
        .first_bytes = offset_bytes & ~mask,
        .end_bytes = (end + mask) & ~mask,
        .skip_bytes = (uint32_t)(offset_bytes & mask),
    };

    span.rest_bytes = (uint32_t)(span.end_bytes - end);
    span.head = span.skip_bytes > 0;
    span.tail = span.rest_bytes > 0;
    /* Inside one block: the head is all there is. */
    if (span.end_bytes - span.first_bytes == io->block_bytes && (span.head || span.tail)) {
        span.head = true;
        span.tail = false;
    }
    return span;
}

static uint64_t
span_middle_first(const struct block_io *io, const struct span *span)
{
    return span->first_bytes + (span->head ? io->block_bytes : 0);
}

static uint64_t
span_middle_end(const struct block_io *io, const struct span *span)
{
    return span->end_bytes - (span->tail ? io->block_bytes : 0);
}

/* The next piece of a range whose blocks fit into one request. */
static uint32_t
piece_bytes(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    uint64_t skip = offset_bytes & (io->block_bytes - 1);
    uint64_t most = DLBLK_REQUEST_BYTES_MAX - skip;

    return length_bytes < most ? length_bytes : (uint32_t)most;
}

void
block_io_init(struct block_io *io, struct dlblk_volume *volume)
{
    struct dlblk_volume_geometry geometry;
    pthread_rwlockattr_t attributes;

    dlblk_volume_get_geometry(volume, &geometry);
    dl_assert(geometry.logical_block_bytes >= 512);
    dl_assert(geometry.logical_block_bytes <= BLOCK_IO_BLOCK_BYTES_MAX);
    *io = (struct block_io){
        .volume = volume,
        .block_bytes = geometry.logical_block_bytes,
    };
    /* A stream of writes of whole blocks must not keep those of parts out for ever. */
    (void)pthread_rwlockattr_init(&attributes);
    (void)pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    (void)pthread_rwlock_init(&io->lock, &attributes);
    (void)pthread_rwlockattr_destroy(&attributes);
}

void
block_io_fini(struct block_io *io)
{
    dl_assert(io->partials == NULL);
    (void)pthread_rwlock_destroy(&io->lock);
}

bool
block_io_is_aligned(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    return ((offset_bytes | length_bytes) & (io->block_bytes - 1)) == 0;
}

/* --- who may submit when --- */

static bool
partials_overlap(const struct block_io *io, uint64_t first_bytes, uint64_t end_bytes)
{
    for (const struct partial_write *partial = io->partials; partial != NULL;
         partial = partial->next) {
        if (first_bytes < partial->end_bytes && partial->first_bytes < end_bytes)
            return true;
    }
    return false;
}

/* Called with the lock, which is given back meanwhile. */
static void
partials_wait(struct block_io *io)
{
    uint32_t ended = atomic_load(&io->partials_ended);

    (void)pthread_rwlock_unlock(&io->lock);
    (void)syscall(SYS_futex, &io->partials_ended, FUTEX_WAIT_PRIVATE, ended, NULL, NULL, 0);
}

static void
partial_begin(struct block_io *io, struct partial_write *partial, const struct span *span)
{
    partial->first_bytes = span->first_bytes;
    partial->end_bytes = span->end_bytes;
    (void)pthread_rwlock_wrlock(&io->lock);
    while (partials_overlap(io, partial->first_bytes, partial->end_bytes)) {
        partials_wait(io);
        (void)pthread_rwlock_wrlock(&io->lock);
    }
    partial->next = io->partials;
    io->partials = partial;
    (void)pthread_rwlock_unlock(&io->lock);
}

static void
partial_end(struct block_io *io, struct partial_write *partial)
{
    struct partial_write **link;

    (void)pthread_rwlock_wrlock(&io->lock);
    for (link = &io->partials; *link != partial; link = &(*link)->next)
        dl_assert(*link != NULL);
    *link = partial->next;
    (void)atomic_fetch_add(&io->partials_ended, 1);
    (void)pthread_rwlock_unlock(&io->lock);
    (void)syscall(SYS_futex, &io->partials_ended, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Submits a write, zero or discard of whole blocks when no rewrite is under way in its range. */
static void
start_whole(struct block_io *io, struct request *request, enum dlblk_op op, const struct iovec *iov,
            uint64_t length_bytes, uint64_t offset_bytes)
{
    (void)pthread_rwlock_rdlock(&io->lock);
    while (partials_overlap(io, offset_bytes, offset_bytes + length_bytes)) {
        partials_wait(io);
        (void)pthread_rwlock_rdlock(&io->lock);
    }
    request_start(request, io->volume, op, iov, iov != NULL ? 1 : 0, length_bytes, offset_bytes);
    (void)pthread_rwlock_unlock(&io->lock);
}

static int
run_whole(struct block_io *io, enum dlblk_op op, const struct iovec *iov, uint64_t length_bytes,
          uint64_t offset_bytes)
{
    struct request request;

    start_whole(io, &request, op, iov, length_bytes, offset_bytes);
    return request_wait(&request);
}

/* --- blocks in part --- */

/* The first and the last block of a span, where they are not touched as a whole. */
struct edges {
    uint8_t head[BLOCK_IO_BLOCK_BYTES_MAX] __attribute__((aligned(4096)));
    uint8_t tail[BLOCK_IO_BLOCK_BYTES_MAX] __attribute__((aligned(4096)));
};

static int
edges_read(struct block_io *io, const struct span *span, struct edges *edges)
{
    struct iovec head_iov = {edges->head, io->block_bytes};
    struct iovec tail_iov = {edges->tail, io->block_bytes};
    struct request head, tail;
    int head_err = 0, tail_err = 0;

    if (span->head)
        request_start(&head, io->volume, DLBLK_READ, &head_iov, 1, io->block_bytes,
                      span->first_bytes);
    if (span->tail)
        request_start(&tail, io->volume, DLBLK_READ, &tail_iov, 1, io->block_bytes,
                      span->end_bytes - io->block_bytes);
    if (span->head)
        head_err = request_wait(&head);
    if (span->tail)
        tail_err = request_wait(&tail);
    return head_err != 0 ? head_err : tail_err;
}

/* How many of the range's bytes lie in the head block. */
static uint32_t
span_head_bytes(const struct block_io *io, const struct span *span)
{
    uint32_t in_block = io->block_bytes - span->skip_bytes;
    uint64_t all = span->end_bytes - span->rest_bytes - span->first_bytes - span->skip_bytes;

    return all < in_block ? (uint32_t)all : in_block;
}

/*
 * The buffers of one request for the whole span: edge blocks and the middle straight in the
 * caller's buffer.  Returns their number, 1 to 3.
 */
static uint32_t
span_to_iov(const struct block_io *io, const struct span *span, struct edges *edges,
            uint8_t *buffer, struct iovec iov[3])
{
    uint64_t middle = span_middle_end(io, span) - span_middle_first(io, span);
    uint32_t count = 0;

    if (span->head) {
        iov[count++] = (struct iovec){edges->head, io->block_bytes};
        buffer += span_head_bytes(io, span);
    }
    if (middle > 0)
        iov[count++] = (struct iovec){buffer, middle};
    if (span->tail)
        iov[count++] = (struct iovec){edges->tail, io->block_bytes};
    return count;
}

static int
read_piece(struct block_io *io, uint8_t *buffer, uint32_t length_bytes, uint64_t offset_bytes)
{
    struct span span = span_of(io, length_bytes, offset_bytes);
    struct edges edges;
    struct iovec iov[3];
    uint32_t iov_count = span_to_iov(io, &span, &edges, buffer, iov);
    uint32_t tail_bytes = io->block_bytes - span.rest_bytes;
    struct request request;
    int err;

    request_start(&request, io->volume, DLBLK_READ, iov, iov_count,
                  span.end_bytes - span.first_bytes, span.first_bytes);
    err = request_wait(&request);
    if (err != 0)
        return err;
    if (span.head)
        memcpy(buffer, edges.head + span.skip_bytes, span_head_bytes(io, &span));
    if (span.tail)
        memcpy(buffer + length_bytes - tail_bytes, edges.tail, tail_bytes);
    return 0;
}

static int
write_piece_in_part(struct block_io *io, const uint8_t *buffer, uint32_t length_bytes,
                    const struct span *span)
{
    uint32_t tail_bytes = io->block_bytes - span->rest_bytes;
    struct partial_write partial;
    struct edges edges;
    struct iovec iov[3];
    struct request request;
    uint32_t iov_count;
    int err;

    partial_begin(io, &partial, span);
    err = edges_read(io, span, &edges);
    if (err != 0) {
        partial_end(io, &partial);
        return err;
    }
    if (span->head)
        memcpy(edges.head + span->skip_bytes, buffer, span_head_bytes(io, span));
    if (span->tail)
        memcpy(edges.tail, buffer + length_bytes - tail_bytes, tail_bytes);
    /* A write only reads its buffers. */
    iov_count = span_to_iov(io, span, &edges, (uint8_t *)(uintptr_t)buffer, iov);
    request_start(&request, io->volume, DLBLK_WRITE, iov, iov_count,
                  span->end_bytes - span->first_bytes, span->first_bytes);
    partial_end(io, &partial);
    return request_wait(&request);
}

static int
write_piece(struct block_io *io, const uint8_t *buffer, uint32_t length_bytes,
            uint64_t offset_bytes)
{
    struct span span = span_of(io, length_bytes, offset_bytes);
    struct iovec iov = {(void *)(uintptr_t)buffer, length_bytes};

    if (span.head || span.tail)
        return write_piece_in_part(io, buffer, length_bytes, &span);
    return run_whole(io, DLBLK_WRITE, &iov, length_bytes, offset_bytes);
}

/* Head, middle and tail are separate requests here, in flight together. */
static int
zero_in_part(struct block_io *io, const struct span *span)
{
    uint64_t middle_first = span_middle_first(io, span);
    uint64_t middle_bytes = span_middle_end(io, span) - middle_first;
    struct partial_write partial;
    struct edges edges;
    struct iovec head_iov = {edges.head, io->block_bytes};
    struct iovec tail_iov = {edges.tail, io->block_bytes};
    struct request requests[3];
    uint32_t count = 0;
    int err;

    partial_begin(io, &partial, span);
    err = edges_read(io, span, &edges);
    if (err == 0 && span->head) {
        memset(edges.head + span->skip_bytes, 0, span_head_bytes(io, span));
        request_start(&requests[count++], io->volume, DLBLK_WRITE, &head_iov, 1, io->block_bytes,
                      span->first_bytes);
    }
    if (err == 0 && span->tail) {
        memset(edges.tail, 0, io->block_bytes - span->rest_bytes);
        request_start(&requests[count++], io->volume, DLBLK_WRITE, &tail_iov, 1, io->block_bytes,
                      span->end_bytes - io->block_bytes);
    }
    if (err == 0 && middle_bytes > 0)
        request_start(&requests[count++], io->volume, DLBLK_WRITE_ZEROES, NULL, 0, middle_bytes,
                      middle_first);
    partial_end(io, &partial);
    for (uint32_t i = 0; i < count; i++) {
        int request_err = request_wait(&requests[i]);

        if (err == 0)
            err = request_err;
    }
    return err;
}

/* --- the interface --- */

int
block_io_read(struct block_io *io, void *buffer, uint32_t length_bytes, uint64_t offset_bytes)
{
    uint8_t *next = buffer;

    while (length_bytes > 0) {
        uint32_t piece = piece_bytes(io, length_bytes, offset_bytes);
        int err = read_piece(io, next, piece, offset_bytes);

        if (err != 0)
            return err;
        next += piece;
        offset_bytes += piece;
        length_bytes -= piece;
    }
    return 0;
}

int
block_io_write(struct block_io *io, const void *buffer, uint32_t length_bytes,
               uint64_t offset_bytes)
{
    const uint8_t *next = buffer;

    while (length_bytes > 0) {
        uint32_t piece = piece_bytes(io, length_bytes, offset_bytes);
        int err = write_piece(io, next, piece, offset_bytes);

        if (err != 0)
            return err;
        next += piece;
        offset_bytes += piece;
        length_bytes -= piece;
    }
    return 0;
}

int
block_io_zero(struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    struct span span = span_of(io, length_bytes, offset_bytes);

    if (length_bytes == 0)
        return 0;
    if (span.head || span.tail)
        return zero_in_part(io, &span);
    return run_whole(io, DLBLK_WRITE_ZEROES, NULL, length_bytes, offset_bytes);
}

bool
block_io_zero_is_fast(const struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    struct span span = span_of(io, length_bytes, offset_bytes);

    return span_middle_end(io, &span) > span_middle_first(io, &span);
}

int
block_io_trim(struct block_io *io, uint32_t length_bytes, uint64_t offset_bytes)
{
    struct span span = span_of(io, length_bytes, offset_bytes);
    uint64_t first = span_middle_first(io, &span);
    uint64_t end = span_middle_end(io, &span);

    if (length_bytes == 0 || end <= first)
        return 0;
    return run_whole(io, DLBLK_DISCARD, NULL, end - first, first);
}

int
block_io_flush(struct block_io *io)
{
    struct request request;

    request_start(&request, io->volume, DLBLK_FLUSH, NULL, 0, 0, 0);
    return request_wait(&request);
}
