/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read_op.h: reading one piece from one slot after the other, until one delivers it with the right
 * checksums.
 *
 * Threads: the env's.
 */
#ifndef DLBLK_CLIENT_READ_OP_H
#define DLBLK_CLIENT_READ_OP_H

#include "client/volume_internal.h"

struct read_op;
typedef void (*read_op_fn)(struct read_op *op, int err);

size_t client_read_op_bytes(void);
void client_read_init(struct client_volume *volume);

/*
 * A piece of a request: client_volume_piece_done() follows.  The pool has one (the caller has
 * looked).
 */
void client_read_start(struct client_volume *volume, struct dlblk_request *request,
                       const struct io_piece *piece);

#define READ_ANY_SLOT UINT32_MAX

/*
 * A read of our own, of whole sectors of a segment that is allocated: no range lock, and the
 * segment's state and what is unsettled do not matter.
 */
struct read_own {
    struct segment *segment;
    uint32_t first_sector;
    uint32_t sector_count;
    uint32_t slot;  /* READ_ANY_SLOT; or only this one, which reports what it can't deliver */
    void *buffer;   /* NULL: only the kinds matter */
    uint8_t *kinds; /* sector_count of them; NULL: they don't matter */
    uint64_t deadline_ns;
    struct pool *pool; /* volume->read_ops or volume->fill_ops; it has one */
    read_op_fn on_done;
    void *context;
};
struct read_op *client_read_start_own(struct client_volume *volume, const struct read_own *own);
void *client_read_context(const struct read_op *op);
/* on_done follows with err, unless it has run. */
void client_read_abort(struct read_op *op, int err);

#endif
