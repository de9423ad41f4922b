/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io_op.h: what reads and writes of one piece have in common.
 *
 * A piece is a run of bytes in one chunk.  Its operation covers whole sectors: [first_sector,
 * first_sector + sector_count), of which the request has length_bytes from skip_bytes on.
 *
 *      sectors   |-----------|-----------|-----------|
 *      request        |==================|             skip_bytes, length_bytes
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_IO_OP_H
#define DLBLK_CLIENT_IO_OP_H

#include <sys/uio.h>

#include "client/geometry.h"
#include "client/map.h"
#include "client/range_lock.h"
#include "client/slot_io.h"
#include "common/sm.h"
#include "dlblk/client.h"

struct io_op;

/* Where in a caller's iovecs a piece begins.  iov NULL: zeroes. */
struct io_slice {
    const struct iovec *iov;
    size_t skip_bytes; /* of iov[0] */
};

/* The piece's memory, if it is in one iovec; else NULL. */
static inline uint8_t *
io_slice_contiguous(struct io_slice slice, uint32_t length_bytes)
{
    if (slice.iov == NULL || slice.iov->iov_len - slice.skip_bytes < length_bytes)
        return NULL;
    return (uint8_t *)slice.iov->iov_base + slice.skip_bytes;
}

/* Go on by so many bytes. */
struct io_slice io_slice_advance(struct io_slice slice, uint64_t bytes);
void io_slice_copy_from(struct io_slice slice, void *to, uint32_t length_bytes);
void io_slice_copy_to(struct io_slice slice, const void *from, uint32_t length_bytes);
void io_slice_zero(struct io_slice slice, uint32_t length_bytes);
/* The pieces of memory, at most iov_max; returns how many, 0 if they are more. */
uint32_t io_slice_iovecs(struct io_slice slice, uint32_t length_bytes, struct iovec *ret_iov,
                         uint32_t iov_max);

/* What an operation is to do. */
struct io_piece {
    uint32_t segment_idx;
    uint32_t first_sector;
    uint32_t sector_count;
    uint32_t skip_bytes;
    uint32_t length_bytes;
    struct io_slice slice;
};

struct io_op_type {
    const char *name;
    void (*step)(struct io_op *op);
    /* Time is over, or the volume is: op->err is set; give up what is under way, then step. */
    void (*abort)(struct io_op *op);
    /* A slot that does not answer; called when the op is older than SLOT_TIMEOUT. */
    void (*check)(struct io_op *op, uint64_t now_ns);
    /* What it waits for, to be shown; false: nothing. */
    bool (*waits_for)(const struct io_op *op, char *text, size_t text_bytes);
    void (*free)(struct io_op *op);
};

struct io_op {
    struct sm sm;
    const struct io_op_type *type;
    struct client_volume *volume;
    struct dlblk_request *request; /* NULL: of our own */
    struct list node;              /* volume->ops, by start */
    struct list
        wait_node; /* where it waits: volume->retry, segment->waiters, writer->credit_waiters */
    struct range_lock_entry lock;
    struct segment *segment;
    struct io_slice slice;
    uint64_t start_ns;
    uint64_t deadline_ns;
    uint64_t retry_ns; /* in volume->retry: not before */
    uint32_t segment_idx;
    uint32_t first_sector;
    uint32_t sector_count;
    uint32_t skip_bytes;
    uint32_t length_bytes;
    uint32_t admitted_bytes; /* counted in core->in_flight_bytes */
    int err;                 /* set: the op is to end with it */
    bool blocked;            /* counted in volume->blocked_ops */
};

static inline bool
io_op_is_partial(const struct io_op *op)
{
    return op->skip_bytes != 0 || op->length_bytes != op->sector_count * WIRE_SECTOR_BYTES;
}

static inline struct io_op *
io_op_of_wait_node(struct list *node)
{
    return list_entry(node, struct io_op, wait_node);
}

#endif
